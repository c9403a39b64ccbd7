/* SPDX-License-Identifier: MIT */
/* ioeventfd: a guest write to an address signals an eventfd. And what eventfds of the client's need. */
#include <errno.h>
#include <fcntl.h>
#include <linux/kcmp.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/uio.h>

#include "host/syscall.h"
#include "kvm/io_bus.h"

/* ---- eventfds of the client ------------------------------------------------------- */

/* Out of the way of clients that expect the lowest numbers for themselves. */
#define OUR_FDS_FROM 512

static int dup_high(int fd)
{
	int r = host_syscall(SYS_fcntl, fd, F_DUPFD_CLOEXEC, OUR_FDS_FROM, 0);

	if (r == -EMFILE || r == -EINVAL)
		r = host_syscall(SYS_fcntl, fd, F_DUPFD_CLOEXEC, 3, 0);
	return r;
}

/* Text of /proc/self/fdinfo/fd, or -errno. */
static int read_fdinfo(int fd, char *buf, size_t size)
{
	char path[40];
	ssize_t n;
	int info;

	snprintf(path, sizeof(path), "/proc/self/fdinfo/%d", fd);
	info = host_syscall(SYS_open, path, O_RDONLY | O_CLOEXEC, 0, 0);
	if (info < 0)
		return info;
	n = host_syscall(SYS_read, info, buf, size - 1, 0);
	host_syscall(SYS_close, info, 0, 0, 0);
	if (n < 0)
		return -EIO;
	buf[n] = '\0';
	return 0;
}

/* Is it an eventfd, and which? -EINVAL if it is not; without /proc we believe the client. */
static int eventfd_identify(int fd, u64 *id)
{
	char text[512], link[64], path[40];
	const char *p;
	ssize_t n;

	*id = 0;
	if (!read_fdinfo(fd, text, sizeof(text))) {
		if (!strstr(text, "eventfd-count:"))
			return -EINVAL;
		p = strstr(text, "eventfd-id:");
		if (p)
			*id = strtoull(p + strlen("eventfd-id:"), NULL, 10) + 1;
		return 0;
	}
	snprintf(path, sizeof(path), "/proc/self/fd/%d", fd);
	n = host_syscall(SYS_readlink, path, link, sizeof(link) - 1, 0);
	if (n < 0)
		return 0;
	link[n] = '\0';
	return strstr(link, "[eventfd]") ? 0 : -EINVAL;
}

int eventfd_ref_get(int client_fd, struct eventfd_ref *ref)
{
	int r;

	ref->fd = dup_high(client_fd);
	if (ref->fd < 0) {
		r = ref->fd;
		ref->fd = -1;
		return r;
	}
	r = eventfd_identify(ref->fd, &ref->id);
	if (r)
		eventfd_ref_put(ref);
	return r;
}

void eventfd_ref_put(struct eventfd_ref *ref)
{
	if (ref->fd >= 0)
		host_syscall(SYS_close, ref->fd, 0, 0, 0);
	ref->fd = -1;
}

bool eventfd_ref_same(const struct eventfd_ref *a, const struct eventfd_ref *b)
{
	pid_t self = host_syscall(SYS_getpid, 0, 0, 0, 0);

	if (a->id && b->id)
		return a->id == b->id;
	return host_syscall6(SYS_kcmp, self, self, KCMP_FILE, a->fd, b->fd, 0) == 0;
}

void eventfd_ref_signal(const struct eventfd_ref *ref)
{
	u64 one = 1;

	/* Would block only after 2^64 - 2 signals nobody read; EAGAIN means the same, and is as good as done. */
	host_syscall(SYS_write, ref->fd, &one, sizeof(one), 0);
}

bool eventfd_ref_consume(const struct eventfd_ref *ref)
{
	u64 count;
	struct iovec iov = { &count, sizeof(count) };
	long n = host_syscall6(SYS_preadv2, ref->fd, (long)&iov, 1, -1, -1, RWF_NOWAIT);

	if (n == -EOPNOTSUPP || n == -ENOSYS || n == -ESPIPE)
		n = host_syscall(SYS_read, ref->fd, &count, sizeof(count), 0);
	return n == sizeof(count);
}

/* ---- ioeventfds ------------------------------------------------------------------------ */

struct ioeventfd {
	struct io_device dev;
	struct list_head link;
	enum io_bus_kind bus;
	u64 addr;
	u32 len;		/* 0: any */
	bool datamatch;
	u64 data;
	struct eventfd_ref eventfd;
};

static bool ioeventfd_write(struct vm *vm, struct io_device *dev, gpa_t addr, unsigned len, const void *data)
{
	struct ioeventfd *p = container_of(dev, struct ioeventfd, dev);
	u64 val = 0;

	if (addr != p->addr || (p->len && len != p->len))
		return false;
	if (p->datamatch) {
		memcpy(&val, data, min(len, 8u));
		if (val != p->data)
			return false;
	}
	eventfd_ref_signal(&p->eventfd);
	return true;
}

static bool ioeventfd_collides(struct vm *vm, const struct ioeventfd *new)
{
	struct ioeventfd *p;

	list_for_each(p, &vm->ioeventfds, link) {
		if (p->bus != new->bus || p->addr != new->addr)
			continue;
		if (!p->len || !new->len)
			return true;
		if (p->len == new->len && (!p->datamatch || !new->datamatch || p->data == new->data))
			return true;
	}
	return false;
}

static enum io_bus_kind ioeventfd_bus(const struct kvm_ioeventfd *args)
{
	return args->flags & KVM_IOEVENTFD_FLAG_PIO ? IO_BUS_PIO : IO_BUS_MMIO;
}

static int ioeventfd_insert(struct vm *vm, struct ioeventfd *p)
{
	int r = -EEXIST;

	pthread_mutex_lock(&vm->slots_lock);
	if (!ioeventfd_collides(vm, p))
		r = io_bus_register(vm, p->bus, p->addr, p->len, &p->dev);
	if (!r)
		list_add_tail(&p->link, &vm->ioeventfds);
	pthread_mutex_unlock(&vm->slots_lock);
	return r;
}

static int ioeventfd_assign(struct vm *vm, const struct kvm_ioeventfd *args)
{
	struct ioeventfd *p;
	int r;

	if (args->len > 8 || (args->len & (args->len - 1)))
		return -EINVAL;
	if (args->addr + args->len < args->addr || (args->flags & ~KVM_IOEVENTFD_VALID_FLAG_MASK))
		return -EINVAL;
	if (!args->len && (args->flags & KVM_IOEVENTFD_FLAG_DATAMATCH))
		return -EINVAL;
	/* A bus of s390. The address can hit nothing here, so nothing would ever signal it. */
	if (args->flags & KVM_IOEVENTFD_FLAG_VIRTIO_CCW_NOTIFY)
		return -EINVAL;
	p = calloc(1, sizeof(*p));
	if (!p)
		return -ENOMEM;
	r = eventfd_ref_get(args->fd, &p->eventfd);
	if (!r) {
		p->dev.write = ioeventfd_write;
		p->dev.is_ioeventfd = true;
		p->bus = ioeventfd_bus(args);
		p->addr = args->addr;
		p->len = args->len;
		p->datamatch = args->flags & KVM_IOEVENTFD_FLAG_DATAMATCH;
		p->data = args->datamatch;
		r = ioeventfd_insert(vm, p);
		if (r)
			eventfd_ref_put(&p->eventfd);
	}
	if (r)
		free(p);
	return r;
}

static bool ioeventfd_is(const struct ioeventfd *p, const struct kvm_ioeventfd *args,
			 const struct eventfd_ref *eventfd)
{
	bool datamatch = args->flags & KVM_IOEVENTFD_FLAG_DATAMATCH;

	return p->bus == ioeventfd_bus(args) && p->addr == args->addr && p->len == args->len &&
	       p->datamatch == datamatch && (!datamatch || p->data == args->datamatch) &&
	       eventfd_ref_same(&p->eventfd, eventfd);
}

static int ioeventfd_deassign(struct vm *vm, const struct kvm_ioeventfd *args)
{
	struct ioeventfd *p, *tmp;
	struct eventfd_ref eventfd;
	int r = eventfd_ref_get(args->fd, &eventfd);

	if (r)
		return r;
	r = -ENOENT;
	pthread_mutex_lock(&vm->slots_lock);
	list_for_each_safe(p, tmp, &vm->ioeventfds, link) {
		if (!ioeventfd_is(p, args, &eventfd))
			continue;
		io_bus_unregister(vm, p->bus, &p->dev);
		list_del(&p->link);
		eventfd_ref_put(&p->eventfd);
		free(p);
		r = 0;
		break;
	}
	pthread_mutex_unlock(&vm->slots_lock);
	eventfd_ref_put(&eventfd);
	return r;
}

int vm_ioeventfd(struct vm *vm, const struct kvm_ioeventfd *args)
{
	if (args->flags & KVM_IOEVENTFD_FLAG_DEASSIGN)
		return ioeventfd_deassign(vm, args);
	return ioeventfd_assign(vm, args);
}

void ioeventfds_destroy(struct vm *vm)
{
	struct ioeventfd *p, *tmp;

	list_for_each_safe(p, tmp, &vm->ioeventfds, link) {
		list_del(&p->link);
		eventfd_ref_put(&p->eventfd);
		free(p);
	}
}

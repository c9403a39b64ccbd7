/* SPDX-License-Identifier: MIT */
/*
 * What a descriptor of ours does: ioctl (and getting out of KVM_RUN), mmap, fallocate, read.
 */
#include <errno.h>
#include <fcntl.h>
#include <pthread.h>
#include <sys/mman.h>
#include <sys/stat.h>

#include "api/fd_internal.h"
#include "api/ioctl.h"
#include "host/access.h"
#include "host/host.h"
#include "kvm/guest_memfd.h"

void fd_cancel_thread(pthread_t thread)
{
	struct kvm_file *file = fd_running((unsigned long)thread);

	if (file) {
		vcpu_make_request(file->vcpu, KVM_REQ_STOP);
		vcpu_kick(file->vcpu);
	}
	fd_put(file);
}

static void run_forget(void *p)
{
	struct kvm_file *file = p;

	atomic_store(&file->run_thread, 0);
	fd_put(file);
}

/* A cancellation from before we could be found. Its signal is taken no later than at the end of a system call. */
static void cancel_early(struct kvm_file *file)
{
	pthread_cleanup_push(run_forget, file);
	host_syscall(SYS_sched_yield, 0, 0, 0, 0);
	pthread_setcancelstate(PTHREAD_CANCEL_ENABLE, NULL);
	pthread_testcancel();
	pthread_setcancelstate(PTHREAD_CANCEL_DISABLE, NULL);
	pthread_cleanup_pop(0);
}

/* KVM_RUN is where a thread may be cancelled while it sleeps: that is held, and fd_cancel_thread() gets the thread out. */
static long run_cancellable(struct kvm_file *file, unsigned long arg, bool async)
{
	long r;

	atomic_store(&file->run_thread, (unsigned long)pthread_self());
	if (unlikely(async))
		cancel_early(file);
	r = kvm_ioctl_dispatch(file, KVM_RUN, arg);
	atomic_store(&file->run_thread, 0);
	return r;
}

/* Takes over the reference: a cancelled thread does not come back. */
long fd_ioctl(struct kvm_file *file, unsigned int cmd, unsigned long arg)
{
	struct host_cancel cancel;
	long r = fd_check_alive(file);

	host_cancel_hold(&cancel);
	if (!r) {
		if (cmd == KVM_RUN && file->kind == KVM_FILE_VCPU && cancel.state == PTHREAD_CANCEL_ENABLE)
			r = run_cancellable(file, arg, host_cancel_is_async(&cancel));
		else
			r = kvm_ioctl_dispatch(file, cmd, arg);
	}
	fd_put(file);
	host_cancel_release(&cancel);
	return r;
}

/* ---- mmap ------------------------------------------------------------------------------------- */

static u64 ring_pages(const struct vm *vm)
{
	return (u64)vm->dirty_ring_entries * sizeof(struct kvm_dirty_gfn) / PAGE_SIZE;
}

static bool in_dirty_ring(struct vm *vm, u64 page)
{
	return page >= VCPU_FILE_RING_PAGE && page < VCPU_FILE_RING_PAGE + ring_pages(vm);
}

/* All vCPUs of a VM show the same page; clients read only the first vCPU's. */
static int lay_coalesced(struct vm *vm, u8 *at, int prot)
{
	int fd = vm_coalesced_fd(vm);
	long p;

	if (fd < 0)
		return fd;
	/* By the page rather than by the descriptor, which a closefrom() of the client may have hit. */
	p = host_syscall6(SYS_mremap, (long)vm->coalesced_ring, 0, PAGE_SIZE,
			  MREMAP_MAYMOVE | MREMAP_FIXED, (long)at, 0);
	if (p < 0 && p > -4096)
		p = host_syscall6(SYS_mmap, (long)at, PAGE_SIZE, prot, MAP_SHARED | MAP_FIXED, fd, 0);
	else if (prot != (PROT_READ | PROT_WRITE))
		host_syscall(SYS_mprotect, at, PAGE_SIZE, prot, 0);
	return p < 0 && p > -4096 ? (int)p : 0;
}

/* Pages that a vCPU's file has but KVM does not show fault as they do there: what lies past the file's end is SIGBUS. */
static void lay_nothing(u8 *map, u64 first, u64 end, u64 from, u64 to, int prot, int fd)
{
	from = max(from, first);
	to = min(to, end);
	if (from < to)
		host_syscall6(SYS_mmap, (long)(map + ((from - first) << PAGE_SHIFT)), (to - from) << PAGE_SHIFT,
			      prot, MAP_SHARED | MAP_FIXED, fd, VCPU_FILE_SIZE);
}

static unsigned long mmap_vcpu(struct kvm_file *file, void *addr, size_t len, int prot, int flags,
			       int fd, off_t offset)
{
	u64 first = (u64)offset >> PAGE_SHIFT;
	u64 end = first + ((len + PAGE_SIZE - 1) >> PAGE_SHIFT);
	struct vm *vm = file->vm;
	long p;
	int err;

	if (vm && (in_dirty_ring(vm, first) || in_dirty_ring(vm, end - 1)) &&
	    ((prot & PROT_EXEC) || (flags & MAP_TYPE) == MAP_PRIVATE))
		return -EINVAL;
	p = host_syscall6(SYS_mmap, (long)addr, len, prot, flags, fd, offset);
	if ((p < 0 && p > -4096) || !vm || file->mm != host_mm_id())
		return p;
	lay_nothing((u8 *)p, first, end, KVM_ABI_RUN_MMAP_PAGES, VCPU_FILE_RING_PAGE, prot, fd);
	lay_nothing((u8 *)p, first, end, VCPU_FILE_RING_PAGE + ring_pages(vm),
		    VCPU_FILE_RING_PAGE + VCPU_FILE_RING_PAGES, prot, fd);
	if (first > KVM_COALESCED_MMIO_PAGE_OFFSET || end <= KVM_COALESCED_MMIO_PAGE_OFFSET)
		return p;
	err = lay_coalesced(vm, (u8 *)p + ((KVM_COALESCED_MMIO_PAGE_OFFSET - first) << PAGE_SHIFT), prot);
	if (err) {
		host_syscall(SYS_munmap, p, len, 0, 0);
		return err;
	}
	return p;
}

static unsigned long mmap_gmem(void *addr, size_t len, int prot, int flags, int fd, off_t offset)
{
	u64 gmem_flags = file_position(fd) & GMEM_VIEW_FLAGS;
	struct stat st;

	if (!(gmem_flags & GUEST_MEMFD_FLAG_MMAP))
		return -ENODEV;
	if ((flags & MAP_TYPE) == MAP_PRIVATE)
		return -EINVAL;
	/* Memory that begins as the guest's own cannot be touched: as what lies past the end, SIGBUS. */
	if (!(gmem_flags & GUEST_MEMFD_FLAG_INIT_SHARED) && !host_syscall(SYS_fstat, fd, &st, 0, 0))
		offset = (st.st_size + PAGE_SIZE - 1) & PAGE_MASK;
	return host_syscall6(SYS_mmap, (long)addr, len, prot, flags, fd, offset);
}

unsigned long fd_mmap(struct kvm_file *file, void *addr, size_t len, int prot, int flags, int fd,
		      off_t offset)
{
	if (!len || (offset & ~PAGE_MASK) || len > (size_t)-PAGE_SIZE)
		return len > (size_t)-PAGE_SIZE ? -ENOMEM : -EINVAL;
	if (file->kind == KVM_FILE_GMEM)
		return mmap_gmem(addr, len, prot, flags, fd, offset);
	if (file->kind != KVM_FILE_VCPU)
		return -ENODEV;
	return mmap_vcpu(file, addr, len, prot, flags, fd, offset);
}

/* ---- the size of guest memory ------------------------------------------------------------------ */

#define GMEM_FALLOC (FALLOC_FL_KEEP_SIZE | FALLOC_FL_PUNCH_HOLE)

long fd_fallocate(struct kvm_file *file, int fd, int mode, off_t off, off_t len)
{
	struct stat st;
	long r;

	if (file->kind != KVM_FILE_GMEM)
		return -ENODEV;
	if (off < 0 || len <= 0)
		return -EINVAL;
	if (!(mode & FALLOC_FL_KEEP_SIZE) || (mode & ~GMEM_FALLOC))
		return -EOPNOTSUPP;
	if ((off | len) & ~PAGE_MASK)
		return -EINVAL;
	r = host_syscall(SYS_fstat, fd, &st, 0, 0);
	if (r)
		return r;
	if (!(mode & FALLOC_FL_PUNCH_HOLE) && (off > st.st_size || len > st.st_size - off))
		return -EINVAL;
	return host_syscall(SYS_fallocate, fd, mode, off, len);
}

long fd_ftruncate(struct kvm_file *file)
{
	return -EINVAL;
}

/* ---- reading statistics ------------------------------------------------------------------------- */

static ssize_t stats_copy(struct kvm_file *file, u8 *buf, size_t count, u64 off)
{
	u8 bounce[1024];
	size_t done = 0;

	while (done < count) {
		size_t want = min(count - done, sizeof(bounce)), n, left;

		n = vm_stats_read(file->vm, file->vcpu, bounce, want, off + done);
		if (!n)
			break;
		left = host_copy(buf + done, bounce, n);
		done += n - left;
		if (left)
			return done ? (ssize_t)done : -EFAULT;
		if (n < want)
			break;
	}
	return done;
}

ssize_t fd_stats_read(struct kvm_file *file, void *buf, size_t count, const off_t *off)
{
	ssize_t n;

	if (off && *off < 0)
		return -EINVAL;
	/* A forked child sees what was counted before the fork. */
	if (!file->vm)
		return 0;
	n = stats_copy(file, buf, min(count, (size_t)1 << 20), off ? (u64)*off : atomic_load(&file->pos));
	if (n > 0 && !off)
		atomic_fetch_add(&file->pos, n);
	return n;
}

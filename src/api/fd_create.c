/* SPDX-License-Identifier: MIT */
/*
 * Making descriptors: a memfd of the right size and name, and its struct kvm_file.
 */
#include <errno.h>
#include <fcntl.h>
#include <stdio.h>
#include <string.h>
#include <sys/mman.h>
#include <sys/stat.h>

#include "api/fd_internal.h"
#include "base/inject.h"
#include "host/host.h"
#include "kvm/api_level.h"
#include "kvm/dirty_ring.h"
#include "kvm/guest_memfd.h"
#include "kvm/move.h"

static int create(enum kvm_file_kind kind, struct vm *vm, struct vcpu *vcpu, const char *name,
		  bool cloexec, int open_flags)
{
	struct kvm_file *file = file_alloc(kind, vm, vcpu);
	int fd;

	if (!file)
		return -ENOMEM;
	file->open_flags = open_flags;
	fd = host_memfd(name, PAGE_SIZE, cloexec);
	if (fd < 0) {
		file_free(file);
		return fd;
	}
	return file_install(file, fd);
}

int fd_create_system(int flags)
{
	return create(KVM_FILE_SYSTEM, NULL, NULL, "/dev/kvm", flags & O_CLOEXEC,
		      flags & ~(O_CLOEXEC | O_CREAT | O_EXCL | O_NOCTTY | O_TRUNC | O_NOFOLLOW));
}

static void *map_file(int fd, size_t size)
{
	long p = host_syscall6(SYS_mmap, 0, size, PROT_READ | PROT_WRITE, MAP_SHARED, fd, 0);

	return p < 0 && p > -4096 ? NULL : (void *)p;
}

int fd_create_vm(struct vm *vm)
{
	struct kvm_file *file = file_alloc(KVM_FILE_VM, vm, NULL);
	size_t size = vm->private_mem || kvm_api_level() >= KVM_API_6_18 ? VM_FILE_SIZE : PAGE_SIZE;
	struct vm_control *control;
	int fd;

	if (!file)
		return -ENOMEM;
	fd = host_memfd("anon_inode:kvm-vm", size, true);
	if (fd < 0) {
		file_free(file);
		return fd;
	}
	control = map_file(fd, size);
	if (!control) {
		host_syscall(SYS_close, fd, 0, 0, 0);
		file_free(file);
		return -ENOMEM;
	}
	memcpy(control->magic, VM_CONTROL_MAGIC, sizeof(control->magic));
	control->version = 1;
	atomic_store(&control->state, VM_CONTROL_ALIVE);
	vm->control = control;
	if (size == VM_FILE_SIZE)
		vm->move_area = (void *)((u8 *)control + PAGE_SIZE);
	return file_install(file, fd);
}

int fd_create_vcpu(struct vcpu *vcpu)
{
	struct kvm_file *file = file_alloc(KVM_FILE_VCPU, vcpu->vm, vcpu);
	char name[40];
	void *pages;
	int fd;

	if (!file)
		return -ENOMEM;
	snprintf(name, sizeof(name), "anon_inode:kvm-vcpu:%u", vcpu->id);
	fd = host_memfd(name, VCPU_FILE_SIZE, true);
	if (fd < 0) {
		file_free(file);
		return fd;
	}
	pages = map_file(fd, VCPU_FILE_SIZE);
	if (!pages) {
		host_syscall(SYS_close, fd, 0, 0, 0);
		file_free(file);
		return -ENOMEM;
	}
	vcpu->run = pages;
	vcpu->pio_data = (u8 *)pages + PAGE_SIZE;
	if (vcpu->dirty_ring)
		vcpu->dirty_ring->gfns = (void *)((u8 *)pages + VCPU_FILE_RING_PAGE * PAGE_SIZE);
	vcpu->fd = fd;
	return file_install(file, fd);
}

int fd_create_stats(struct vm *vm, struct vcpu *vcpu)
{
	char name[48] = "anon_inode:kvm-vm-stats";

	if (vcpu)
		snprintf(name, sizeof(name), "anon_inode:kvm-vcpu-stats:%u", vcpu->id);
	return create(KVM_FILE_STATS, vm, vcpu, name, true, O_RDONLY);
}

int fd_create_device(struct vm *vm, const char *name, void *private)
{
	char link[64];
	int fd;

	snprintf(link, sizeof(link), "anon_inode:%s", name);
	fd = create(KVM_FILE_DEVICE, vm, NULL, link, true, O_RDWR);
	if (fd >= 0) {
		struct kvm_file *file = fd_get(fd);

		if (file)
			file->private = private;
		fd_put(file);
	}
	return fd;
}

static u64 new_view(u64 flags)
{
	u64 id = 0;

	/* 1: GRND_NONBLOCK */
	if (host_syscall(SYS_getrandom, &id, sizeof(id), 1, 0) != sizeof(id))
		id = host_rdtsc() ^ (u64)fd_process_id() << 32;
	return ((id & ~(1ull << 63)) & ~GMEM_VIEW_FLAGS) | flags;
}

/* fd, a memfd, becomes a view of vm's. Closes fd on failure. */
static int gmem_install(struct vm *vm, int fd, u64 size, u64 flags)
{
	struct kvm_file *file = file_alloc(KVM_FILE_GMEM, vm, NULL);
	struct gmem *gmem = NULL;
	int err = -ENOMEM;

	if (file)
		gmem = gmem_create(vm, fd, size, flags, &err);
	if (gmem) {
		file->private = gmem;
		file->view = new_view(flags);
		err = host_syscall(SYS_lseek, fd, file->view, SEEK_SET, 0) < 0 ? -EINVAL : 0;
	}
	if (!err)
		return file_install(file, fd);
	host_syscall(SYS_close, fd, 0, 0, 0);
	if (gmem)
		gmem_release(gmem);
	if (file)
		file_free(file);
	return err;
}

int fd_create_gmem(struct vm *vm, u64 size, u64 flags)
{
	int fd = host_memfd(GMEM_NAME, size, false);

	return fd < 0 ? fd : gmem_install(vm, fd, size, flags);
}

/* A second open file on fd's inode; its flags are in fd's position. */
static int gmem_reopen(int fd, u64 *size)
{
	char path[40];
	struct stat st, st2;
	long new;

	if (inject_value(INJECT_GMEM_LINK_FD))
		return -EMFILE;
	snprintf(path, sizeof(path), "/proc/self/fd/%d", fd);
	new = host_syscall(SYS_openat, AT_FDCWD, path, O_RDWR, 0);
	if (new < 0)
		return new;
	/* The number may have been somebody else's by then. */
	if (host_syscall(SYS_fstat, fd, &st, 0, 0) || host_syscall(SYS_fstat, new, &st2, 0, 0) ||
	    st.st_ino != st2.st_ino || st.st_dev != st2.st_dev ||
	    (host_syscall(SYS_fcntl, new, F_GET_SEALS, 0, 0) & F_SEAL_SHRINK) == 0) {
		host_syscall(SYS_close, new, 0, 0, 0);
		return -EINVAL;
	}
	*size = st2.st_size;
	return new;
}

int fd_link_gmem(struct vm *vm, int fd)
{
	struct timespec times[2] = { { .tv_nsec = UTIME_NOW }, { .tv_nsec = UTIME_OMIT } };
	struct kvm_file *file = fd_get(fd);
	u64 size = 0;
	int r = -EINVAL;

	if (file && file->kind == KVM_FILE_GMEM && file->vm != vm) {
		u64 flags = file_position(fd) & GMEM_VIEW_FLAGS;

		r = gmem_reopen(fd, &size);
		if (r >= 0) {
			host_syscall(SYS_utimensat, r, NULL, times, 0);
			r = gmem_install(vm, r, size, flags);
		}
	}
	fd_put(file);
	return r;
}

/* -EBADF: not a VM's. -EINVAL: of one that cannot be moved from. */
int fd_move_foreign(struct vm *dst, int fd)
{
	struct vm_control *control;
	struct stat st;
	int r = -EBADF;

	if (host_syscall(SYS_fstat, fd, &st, 0, 0) || st.st_size < (off_t)PAGE_SIZE ||
	    !(host_syscall(SYS_fcntl, fd, F_GET_SEALS, 0, 0) & F_SEAL_SHRINK))
		return -EBADF;
	control = map_file(fd, st.st_size);
	if (!control)
		return -ENOMEM;
	if (!memcmp(control->magic, VM_CONTROL_MAGIC, sizeof(control->magic)))
		r = st.st_size == (off_t)VM_FILE_SIZE ?
			    vm_move_context_foreign(dst, (void *)((u8 *)control + PAGE_SIZE)) : -EINVAL;
	host_syscall(SYS_munmap, control, st.st_size, 0, 0);
	return r;
}

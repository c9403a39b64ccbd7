/* SPDX-License-Identifier: MIT */
/*
 * Descriptors. What a descriptor is follows from the inode behind it; the table
 * is a cache of that, and counts the descriptors it knows so that a VM dies with
 * the last of them. src/api/fd.c has the rules.
 */
#ifndef SOFTKVM_API_FD_H
#define SOFTKVM_API_FD_H

#include <pthread.h>
#include <sys/types.h>

#include "kvm/kvm_host.h"

enum kvm_file_kind {
	KVM_FILE_SYSTEM,
	KVM_FILE_VM,
	KVM_FILE_VCPU,
	KVM_FILE_STATS,
	KVM_FILE_DEVICE,
	KVM_FILE_GMEM,			/* guest_memfd; private: struct gmem */
};

/* One open file description of ours. Never freed, only recycled: a stale pointer may be looked at. */
struct kvm_file {
	enum kvm_file_kind kind;
	struct vm *vm;			/* NULL for the system, or when the VM is another process's */
	struct vcpu *vcpu;		/* vCPU, or a vCPU's stats */
	void *private;			/* devices: the creator's */
	u64 dev, ino;
	u64 view;			/* guest_memfd: which of the inode's open files; its file position */
	u64 mm;				/* host_mm_id() of the creator */
	int open_flags;			/* what F_GETFL says: O_RDONLY, O_RDWR */
	_Atomic u32 refs;		/* known descriptors and calls under way; 0: on the free list */
	_Atomic u64 pos;		/* stats: the read position */
	_Atomic(unsigned long) run_thread; /* pthread_t inside KVM_RUN, for fd_cancel_thread() */
	struct kvm_file *hash_next;	/* under the table lock; links the free list too */
};

/* First page of a VM's file. Hostile input for whoever reads it. */
struct vm_control {
	char magic[8];
	_Atomic u32 state;
	u32 version;
};
#define VM_CONTROL_MAGIC "SoftKVM" /* and its NUL */
#define VM_CONTROL_ALIVE 1
#define VM_CONTROL_DEAD 2

/* The file of a VM with guest_memfd: the control page, then struct move_area. Sparse. */
#define VM_FILE_SIZE (PAGE_SIZE + ((sizeof(struct move_area) + PAGE_SIZE - 1) & PAGE_MASK))

/* A vCPU's file: kvm_run, PIO data, (coalesced ring,) and at VCPU_FILE_RING_PAGE the dirty ring. */
#define VCPU_FILE_RING_PAGE 64
#define VCPU_FILE_RING_PAGES 256
#define VCPU_FILE_SIZE ((VCPU_FILE_RING_PAGE + VCPU_FILE_RING_PAGES) * PAGE_SIZE)

/*
 * Each returns the new descriptor (O_CLOEXEC), or -errno with the object
 * untouched and still the caller's. On success the object belongs to its
 * descriptors: the VM is destroyed with the last one of the VM, its vCPUs, stats and devices.
 */
int fd_create_system(int flags);
int fd_create_vm(struct vm *vm);
/*
 * Creates the vCPU's file (VCPU_FILE_SIZE, sparse), maps all of it and sets vcpu->fd, vcpu->run
 * and vcpu->pio_data; the dirty ring's pages follow in the same mapping. Unmapped here after
 * vm_destroy(). The caller publishes the vCPU (vm->vcpus) afterwards, which cannot fail.
 */
int fd_create_vcpu(struct vcpu *vcpu);
/* vcpu NULL: the VM's. */
int fd_create_stats(struct vm *vm, struct vcpu *vcpu);
/*
 * guest_memfd, without O_CLOEXEC: new memory, or (fd_link_gmem) another view of the memory behind fd,
 * which -EINVAL says is none or is vm's own.
 */
int fd_create_gmem(struct vm *vm, u64 size, u64 flags);
int fd_link_gmem(struct vm *vm, int fd);
/* Move the context of the VM behind fd, another process's, to dst; dst->lock held. -errno. */
int fd_move_foreign(struct vm *dst, int fd);
int fd_create_device(struct vm *vm, const char *name, void *private);

/* A reference to what fd is, or NULL if it is not ours. Leaves errno alone. */
struct kvm_file *fd_get(int fd);
void fd_put(struct kvm_file *file);
/* Cheap and may lie after untracked system calls: whether fd is worth a fd_get(). */
bool fd_maybe_ours(int fd);
/* VM, vCPU and device calls are for the address space that created the VM: 0, or -EIO. */
int fd_check_alive(const struct kvm_file *file);

/*
 * For wrappers of close, dup and friends, around the real call: detach before the number can be
 * reused, put after (NULL is fine), dup once the new descriptor exists.
 */
struct kvm_file *fd_detach(int fd);
void fd_reattach(int fd, struct kvm_file *file);
void fd_note_dup(int old_fd, int new_fd);
/* After the real close(): a look-up that came between may have entered the number again. */
void fd_closed(int fd);
void fd_closed_range(unsigned first, unsigned last);
/* Detach and put all known descriptors in [first, last]. */
void fd_detach_range(unsigned first, unsigned last);

/* Get a thread out of KVM_RUN: pthread_cancel() on it has just been called. */
void fd_cancel_thread(pthread_t thread);

/* fallocate(2), ftruncate(2); -errno. */
long fd_fallocate(struct kvm_file *file, int fd, int mode, off_t off, off_t len);
long fd_ftruncate(struct kvm_file *file);
/* read(2), pread(2) on a stats descriptor; -errno. off NULL: the file's position. */
ssize_t fd_stats_read(struct kvm_file *file, void *buf, size_t count, const off_t *off);
/* mmap(2) of a descriptor of ours; -errno as an unsigned long above -4096. */
unsigned long fd_mmap(struct kvm_file *file, void *addr, size_t len, int prot, int flags, int fd, off_t offset);
/* ioctl(2); -errno. Takes over the reference to file. */
long fd_ioctl(struct kvm_file *file, unsigned int cmd, unsigned long arg);

#endif

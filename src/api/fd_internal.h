/* SPDX-License-Identifier: MIT */
/*
 * Between the table of descriptors (fd.c), what makes them (fd_create.c) and what they do (fd_ops.c).
 */
#ifndef SOFTKVM_API_FD_INTERNAL_H
#define SOFTKVM_API_FD_INTERNAL_H

#include <sys/syscall.h>
#include <unistd.h>

#include "api/fd.h"
#include "host/syscall.h"

#define GMEM_NAME "anon_inode:[kvm-gmem]"
#define GMEM_VIEW_FLAGS 3ull	/* of the position: GUEST_MEMFD_FLAG_* */

/* The kernel's own answer: a vfork child is another process. */
static inline pid_t fd_process_id(void)
{
	return host_syscall(SYS_getpid, 0, 0, 0, 0);
}

/* A guest_memfd's view and flags: invariant 7 of fd.c. */
static inline u64 file_position(int fd)
{
	return host_syscall(SYS_lseek, fd, 0, SEEK_CUR, 0);
}

/* A file without a descriptor, or NULL; file_free() gives it back. */
struct kvm_file *file_alloc(enum kvm_file_kind kind, struct vm *vm, struct vcpu *vcpu);
void file_free(struct kvm_file *file);
/*
 * The new file's descriptor is fd: enter it. The one reference belongs to the
 * slot; where there can be none it is never dropped (a vfork child's descriptors are out of our sight).
 * fd, or -errno with fd closed and the file given back.
 */
int file_install(struct kvm_file *file, int fd);
/* A reference to the vCPU's file whose KVM_RUN that thread (pthread_t) is in, or NULL. */
struct kvm_file *fd_running(unsigned long thread);

#endif

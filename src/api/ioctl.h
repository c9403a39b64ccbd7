/* SPDX-License-Identifier: MIT */
/*
 * KVM ioctls: the dispatcher, and one handler per row of ioctls.def.
 *
 * A handler returns what ioctl(2) returns: >= 0, or -errno. What its arg is
 * says the row: a kernel-side copy (IN, OUT, INOUT), the client's pointer
 * (USER, to be touched with host_copy_user() only), or the argument itself (INT).
 * vCPU handlers run with vcpu->mutex held, VM and system handlers with nothing.
 */
#ifndef SOFTKVM_API_IOCTL_H
#define SOFTKVM_API_IOCTL_H

#include "kvm/kvm_host.h"

struct kvm_file;

/* Address of a member of something at a client's address p, which may be NULL, misaligned, anything. */
#define user_field(p, member) \
	((void *)((uintptr_t)(p) + __builtin_offsetof(__typeof__(*(p)), member)))

/* cmd is the full 32-bit command. Never touches errno. */
long kvm_ioctl_dispatch(struct kvm_file *file, unsigned int cmd, unsigned long arg);

/* KVM_CHECK_EXTENSION; vm == NULL: on the system descriptor. Unknown capabilities are 0. caps.c */
long kvm_check_extension(struct vm *vm, long cap);
/* XCR0 bits a guest can be given. sys_ioctl.c */
u64 supported_xcr0(void);
/* KVM_ENABLE_CAP on a VM. caps.c */
long vm_enable_cap(struct vm *vm, const struct kvm_enable_cap *cap);

/* For softkvm_print_capabilities(): everything the tables know. False past the end. */
bool kvm_cap_row(unsigned i, const char **name, long *number, long *value);
bool kvm_ioctl_row(unsigned i, const char **name, unsigned int *cmd, const char **fd_kind);

#define IOCTL_SYS(cmd, handler, arg) long handler(void *arg_);
#define IOCTL_VM(cmd, handler, arg) long handler(struct vm *vm, void *arg_);
#define IOCTL_VCPU(cmd, handler, arg) long handler(struct vcpu *vcpu, void *arg_);
#include "api/ioctls.def"
#undef IOCTL_SYS
#undef IOCTL_VM
#undef IOCTL_VCPU

#endif

/* SPDX-License-Identifier: MIT */
/*
 * ioctl dispatch: find the row, copy the argument in, call the handler, copy
 * the answer out.
 *
 * Invariants
 *  1. Nothing changes before the whole argument has been read: a bad pointer
 *     is EFAULT without effect. (An answer that cannot be written is EFAULT
 *     after the fact, as in KVM.)
 *  2. The handlers see a private copy; a client that scribbles over its
 *     argument meanwhile changes nothing that was checked.
 *  3. A client thread is not cancelled while it holds our locks: fd_ioctl() holds cancellation for the length of
 *     the call and acts upon it afterwards. Whoever cancels a thread inside KVM_RUN kicks it as well.
 *  4. errno belongs to the caller.
 */
#include <errno.h>
#include <linux/ioctl.h>
#include <pthread.h>
#include <string.h>

#include "api/fd.h"
#include "api/ioctl.h"
#include "host/host.h"
#include "host/syscall.h"
#include "kvm/arch.h"

enum ioctl_arg { ZERO, INT, IN, OUT, INOUT, INOUT_ALWAYS, USER };

struct ioctl_row {
	const char *name;
	u32 cmd;
	enum ioctl_arg arg;
	union {
		long (*sys)(void *);
		long (*vm)(struct vm *, void *);
		long (*vcpu)(struct vcpu *, void *);
	};
};

#define ARG_MAX_SIZE 4096
#define CHECK_SIZE(cmd) _Static_assert(_IOC_SIZE(cmd) <= ARG_MAX_SIZE, #cmd)

#define IOCTL_SYS(command, fn, how) SYS_##command,
#define IOCTL_VM(command, fn, how)
#define IOCTL_VCPU(command, fn, how)
enum {
#include "api/ioctls.def"
	NR_SYS_ROWS
};
#undef IOCTL_SYS
#undef IOCTL_VM
#define IOCTL_SYS(command, fn, how)
#define IOCTL_VM(command, fn, how) VM_##command,
enum {
#include "api/ioctls.def"
	NR_VM_ROWS
};
#undef IOCTL_VM
#undef IOCTL_VCPU
#define IOCTL_VM(command, fn, how)
#define IOCTL_VCPU(command, fn, how) VCPU_##command,
enum {
#include "api/ioctls.def"
	NR_VCPU_ROWS
};
#undef IOCTL_SYS
#undef IOCTL_VM
#undef IOCTL_VCPU

#define IOCTL_SYS(command, fn, how) { .name = #command, .cmd = (u32)command, .arg = how, .sys = fn },
#define IOCTL_VM(command, fn, how)
#define IOCTL_VCPU(command, fn, how)
static const struct ioctl_row sys_rows[] = {
#include "api/ioctls.def"
};
#undef IOCTL_SYS
#undef IOCTL_VM
#define IOCTL_SYS(command, fn, how)
#define IOCTL_VM(command, fn, how) { .name = #command, .cmd = (u32)command, .arg = how, .vm = fn },
static const struct ioctl_row vm_rows[] = {
#include "api/ioctls.def"
};
#undef IOCTL_VM
#undef IOCTL_VCPU
#define IOCTL_VM(command, fn, how)
#define IOCTL_VCPU(command, fn, how) { .name = #command, .cmd = (u32)command, .arg = how, .vcpu = fn },
static const struct ioctl_row vcpu_rows[] = {
#include "api/ioctls.def"
};
#undef IOCTL_SYS
#undef IOCTL_VM
#undef IOCTL_VCPU

#define IOCTL_SYS(command, fn, how) CHECK_SIZE(command);
#define IOCTL_VM(command, fn, how) CHECK_SIZE(command);
#define IOCTL_VCPU(command, fn, how) CHECK_SIZE(command);
#include "api/ioctls.def"
#undef IOCTL_SYS
#undef IOCTL_VM
#undef IOCTL_VCPU

/* One switch per descriptor kind, which the compiler makes a search tree of. */
#define IOCTL_SYS(command, fn, how) case (u32)command: return &sys_rows[SYS_##command];
#define IOCTL_VM(command, fn, how)
#define IOCTL_VCPU(command, fn, how)
static const struct ioctl_row *find_sys(u32 cmd)
{
	switch (cmd) {
#include "api/ioctls.def"
	default: return NULL;
	}
}
#undef IOCTL_SYS
#undef IOCTL_VM
#define IOCTL_SYS(command, fn, how)
#define IOCTL_VM(command, fn, how) case (u32)command: return &vm_rows[VM_##command];
static const struct ioctl_row *find_vm(u32 cmd)
{
	switch (cmd) {
#include "api/ioctls.def"
	default: return NULL;
	}
}
#undef IOCTL_VM
#undef IOCTL_VCPU
#define IOCTL_VM(command, fn, how)
#define IOCTL_VCPU(command, fn, how) case (u32)command: return &vcpu_rows[VCPU_##command];
static const struct ioctl_row *find_vcpu(u32 cmd)
{
	switch (cmd) {
#include "api/ioctls.def"
	default: return NULL;
	}
}
#undef IOCTL_SYS
#undef IOCTL_VM
#undef IOCTL_VCPU

static long call_handler(const struct ioctl_row *row, struct kvm_file *file, void *arg)
{
	switch (file->kind) {
	case KVM_FILE_SYSTEM:
		return row->sys(arg);
	case KVM_FILE_VM:
		return row->vm(file->vm, arg);
	default:
		return row->vcpu(file->vcpu, arg);
	}
}

/* The copied kinds, apart so that KVM_RUN does not pay for the buffer's stack. */
static never_inline long call_copied(const struct ioctl_row *row, struct kvm_file *file, unsigned long arg)
{
	_Alignas(64) u8 buf[ARG_MAX_SIZE];
	u32 size = _IOC_SIZE(row->cmd);
	long r;

	if (row->arg == OUT)
		memset(buf, 0, size);
	else if (!host_copy_user(buf, (const void *)arg, size))
		return -EFAULT;
	r = call_handler(row, file, buf);
	if (row->arg == IN || (r < 0 && row->arg != INOUT_ALWAYS))
		return r;
	if (!host_copy_user((void *)arg, buf, size))
		return -EFAULT;
	return r;
}

static long call_row(const struct ioctl_row *row, struct kvm_file *file, unsigned long arg)
{
	switch (row->arg) {
	case ZERO:
		if (arg)
			return -EINVAL;
		/* fall through */
	case INT:
	case USER:
		return call_handler(row, file, (void *)arg);
	default:
		return call_copied(row, file, arg);
	}
}

static bool vm_is_dead(struct vm *vm)
{
	return atomic_load_explicit(&vm->dead, memory_order_acquire) != 0;
}

static long vcpu_ioctl(struct kvm_file *file, u32 cmd, unsigned long arg)
{
	struct vcpu *vcpu = file->vcpu;
	const struct ioctl_row *row;
	long r;

	if (vm_is_dead(vcpu->vm))
		return -EIO;
	vm_note_client(vcpu->vm);
	row = find_vcpu(cmd);
	if (!row)
		return -EINVAL;
	pthread_mutex_lock(&vcpu->mutex);
	/* Not cached per thread: a forked child would inherit its parent's. For kicks, also outside KVM_RUN. */
	atomic_store(&vcpu->tid, (pid_t)host_syscall(SYS_gettid, 0, 0, 0, 0));
	/* The VM may have died while we waited for a KVM_RUN to end. */
	r = vm_is_dead(vcpu->vm) ? -EIO : call_row(row, file, arg);
	pthread_mutex_unlock(&vcpu->mutex);
	return r;
}

static long vm_ioctl(struct kvm_file *file, u32 cmd, unsigned long arg)
{
	const struct ioctl_row *row;

	if (vm_is_dead(file->vm))
		return -EIO;
	vm_note_client(file->vm);
	row = find_vm(cmd);
	return row ? call_row(row, file, arg) : -ENOTTY;
}

static long sys_ioctl(struct kvm_file *file, u32 cmd, unsigned long arg)
{
	const struct ioctl_row *row = find_sys(cmd);

	return row ? call_row(row, file, arg) : -EINVAL;
}

long kvm_ioctl_dispatch(struct kvm_file *file, unsigned int cmd, unsigned long arg)
{
	int saved_errno = errno;
	long r;

	switch (file->kind) {
	case KVM_FILE_SYSTEM:
		r = sys_ioctl(file, cmd, arg);
		break;
	case KVM_FILE_VM:
		r = vm_ioctl(file, cmd, arg);
		break;
	case KVM_FILE_VCPU:
		r = vcpu_ioctl(file, cmd, arg);
		break;
	default:
		r = -ENOTTY;
		break;
	}
	errno = saved_errno;
	return r;
}

long do_kvm_run(struct vcpu *vcpu, void *arg)
{
	return arch_vcpu_run(vcpu);
}

static const struct {
	const struct ioctl_row *rows;
	unsigned nr;
	const char *kind;
} kinds[] = {
	{ sys_rows, ARRAY_SIZE(sys_rows), "system" },
	{ vm_rows, ARRAY_SIZE(vm_rows), "vm" },
	{ vcpu_rows, ARRAY_SIZE(vcpu_rows), "vcpu" },
};

bool kvm_ioctl_row(unsigned i, const char **name, unsigned int *cmd, const char **fd_kind)
{
	for (unsigned k = 0; k < ARRAY_SIZE(kinds); k++) {
		if (i < kinds[k].nr) {
			*name = kinds[k].rows[i].name;
			*cmd = kinds[k].rows[i].cmd;
			*fd_kind = kinds[k].kind;
			return true;
		}
		i -= kinds[k].nr;
	}
	return false;
}

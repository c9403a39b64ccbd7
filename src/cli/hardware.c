/* SPDX-License-Identifier: MIT */
/*
 * Does the machine's own KVM work? Only running an instruction tells: modules
 * load and VMs get created on machines where KVM_RUN fails. In a child, since it
 * may also hang; by raw system calls, since we may be preloaded ourselves.
 */
#include "cli/cli.h"

#include <errno.h>
#include <fcntl.h>
#include <linux/kvm.h>
#include <poll.h>
#include <signal.h>
#include <stdint.h>
#include <string.h>
#include <sys/mman.h>
#include <sys/wait.h>
#include <unistd.h>

#include "host/syscall.h"

#define TRIAL_MS 5000
#define CODE_GPA 0x1000

struct trial {
	long kvm, vm, vcpu, run_size;
	void *memory;
	struct kvm_run *run;
};

static long kvm_call(long fd, unsigned long cmd, unsigned long arg)
{
	return host_syscall(SYS_ioctl, fd, cmd, arg, 0);
}

static void *map(long size, long fd)
{
	long flags = fd < 0 ? MAP_PRIVATE | MAP_ANONYMOUS : MAP_SHARED;
	long p = host_syscall6(SYS_mmap, 0, size, PROT_READ | PROT_WRITE, flags, fd, 0);

	return p < 0 && p > -4096 ? NULL : (void *)p;
}

static long step_open(struct trial *t)
{
	return t->kvm = host_syscall(SYS_openat, AT_FDCWD, "/dev/kvm", O_RDWR | O_CLOEXEC, 0);
}

static long step_version(struct trial *t)
{
	long v = kvm_call(t->kvm, KVM_GET_API_VERSION, 0);

	return v < 0 || v == KVM_API_VERSION ? v : -ENOTSUP;
}

static long step_create_vm(struct trial *t)
{
	return t->vm = kvm_call(t->kvm, KVM_CREATE_VM, 0);
}

static long step_memory(struct trial *t)
{
	struct kvm_userspace_memory_region region = { .guest_phys_addr = CODE_GPA, .memory_size = 4096 };

	t->memory = map(4096, -1);
	if (!t->memory)
		return -ENOMEM;
	*(uint8_t *)t->memory = 0xf4; /* hlt */
	region.userspace_addr = (uintptr_t)t->memory;
	/* Intel without unrestricted guests needs a place for its real-mode TSS; elsewhere this may fail. */
	kvm_call(t->vm, KVM_SET_TSS_ADDR, 0xfffbd000);
	return kvm_call(t->vm, KVM_SET_USER_MEMORY_REGION, (uintptr_t)&region);
}

static long step_create_vcpu(struct trial *t)
{
	t->vcpu = kvm_call(t->vm, KVM_CREATE_VCPU, 0);
	if (t->vcpu < 0)
		return t->vcpu;
	t->run_size = kvm_call(t->kvm, KVM_GET_VCPU_MMAP_SIZE, 0);
	if (t->run_size < 0)
		return t->run_size;
	t->run = map(t->run_size, t->vcpu);
	return t->run ? 0 : -ENOMEM;
}

static long step_registers(struct trial *t)
{
	struct kvm_regs regs = { .rip = CODE_GPA, .rflags = 2 };
	struct kvm_sregs sregs;
	long r = kvm_call(t->vcpu, KVM_GET_SREGS, (uintptr_t)&sregs);

	if (r < 0)
		return r;
	sregs.cs.base = 0;
	sregs.cs.selector = 0;
	r = kvm_call(t->vcpu, KVM_SET_SREGS, (uintptr_t)&sregs);
	return r < 0 ? r : kvm_call(t->vcpu, KVM_SET_REGS, (uintptr_t)&regs);
}

static long step_run(struct trial *t)
{
	return kvm_call(t->vcpu, KVM_RUN, 0);
}

static long step_exit(struct trial *t)
{
	return t->run->exit_reason == KVM_EXIT_HLT ? 0 : -(long)t->run->exit_reason;
}

static const struct {
	enum hardware_step step;
	long (*fn)(struct trial *t);
} steps[] = {
	{ HW_OPEN, step_open },
	{ HW_VERSION, step_version },
	{ HW_CREATE_VM, step_create_vm },
	{ HW_MEMORY, step_memory },
	{ HW_CREATE_VCPU, step_create_vcpu },
	{ HW_REGISTERS, step_registers },
	{ HW_RUN, step_run },
	{ HW_EXIT, step_exit },
};

static struct hardware try_here(void)
{
	struct trial t = { 0 };

	for (unsigned i = 0; i < ARRAY_SIZE(steps); i++) {
		long r = steps[i].fn(&t);

		if (r < 0)
			return (struct hardware){ steps[i].step, -r };
	}
	return (struct hardware){ HW_WORKS, 0 };
}

struct hardware hardware_try(void)
{
	struct hardware result = { HW_TRIAL, 0 };
	struct pollfd wait = { .events = POLLIN };
	int pipe_fds[2];
	pid_t child;

	if (pipe2(pipe_fds, O_CLOEXEC)) {
		result.error = errno;
		return result;
	}
	child = fork();
	if (child == 0) {
		result = try_here();
		if (write(pipe_fds[1], &result, sizeof(result)) != sizeof(result))
			_exit(1);
		_exit(0);
	}
	if (child < 0)
		result.error = errno;
	close(pipe_fds[1]);
	wait.fd = pipe_fds[0];
	if (child > 0 && poll(&wait, 1, TRIAL_MS) == 0)
		result.step = HW_HANG;
	else if (child > 0 && read(pipe_fds[0], &result, sizeof(result)) != sizeof(result))
		result = (struct hardware){ HW_TRIAL, ECHILD };
	close(pipe_fds[0]);
	if (child > 0) {
		kill(child, SIGKILL);
		/* A child that even SIGKILL cannot get out of the kernel is not waited for. */
		waitpid(child, NULL, result.step == HW_HANG ? WNOHANG : 0);
	}
	return result;
}

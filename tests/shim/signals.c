/* SPDX-License-Identifier: MIT */
/* Signal calls mean what they mean, and threads can be cancelled in KVM_RUN. */
#include <fcntl.h>
#include <linux/kvm.h>
#include <pthread.h>
#include <signal.h>
#include <stdint.h>
#include <sys/ioctl.h>
#include <sys/mman.h>
#include <sys/syscall.h>
#include <time.h>
#include <unistd.h>

#include "test.h"

static volatile int caught;
static volatile int value;

static void handler(int sig)
{
	caught = sig;
}

static void info_handler(int sig, siginfo_t *info, void *uc)
{
	caught = sig;
	value = info->si_value.sival_int;
}

static int flags_of(int sig)
{
	struct sigaction act;

	return sigaction(sig, NULL, &act) ? -1 : act.sa_flags & ~0x04000000;
}

static void handlers(void)
{
	struct sigaction act = { .sa_sigaction = info_handler, .sa_flags = SA_SIGINFO }, old;
	union sigval v = { .sival_int = 77 };

	CHECK(signal(SIGUSR1, handler) == SIG_DFL);
	CHECK(flags_of(SIGUSR1) == SA_RESTART);
	raise(SIGUSR1);
	CHECK(caught == SIGUSR1);
	CHECK(sigaction(SIGUSR1, &act, &old) == 0 && old.sa_handler == handler);
	CHECK(sigqueue(getpid(), SIGUSR1, v) == 0 && value == 77);
	CHECK(sigaction(SIGUSR1, NULL, &old) == 0 && old.sa_sigaction == info_handler);
	CHECK(signal(SIGUSR1, SIG_DFL) == (sighandler_t)(void *)info_handler);
	CHECK_ERRNO(sigaction(SIGKILL, &act, NULL), EINVAL);
	CHECK_ERRNO(sigaction(0, &act, NULL), EINVAL);
	CHECK_ERRNO(sigaction(65, &act, NULL), EINVAL);
	errno = 0;
	CHECK(signal(100, handler) == SIG_ERR && errno == EINVAL);
}

#pragma GCC diagnostic ignored "-Wdeprecated-declarations"
static void old_ways(void)
{
	sigset_t mask;

	CHECK(siginterrupt(SIGUSR2, 1) == 0);
	CHECK(signal(SIGUSR2, handler) == SIG_DFL && flags_of(SIGUSR2) == 0);
	CHECK(siginterrupt(SIGUSR2, 0) == 0 && flags_of(SIGUSR2) == SA_RESTART);
	CHECK(sysv_signal(SIGUSR2, handler) == handler);
	CHECK(flags_of(SIGUSR2) == (int)(SA_RESETHAND | SA_NODEFER));
	caught = 0;
	raise(SIGUSR2);
	CHECK(caught == SIGUSR2 && signal(SIGUSR2, SIG_DFL) == SIG_DFL);
	CHECK(sigset(SIGUSR2, SIG_HOLD) == SIG_DFL);
	sigprocmask(SIG_BLOCK, NULL, &mask);
	CHECK(sigismember(&mask, SIGUSR2) == 1);
	CHECK(sigset(SIGUSR2, handler) == SIG_HOLD);
	CHECK(sigignore(SIGUSR2) == 0 && signal(SIGUSR2, SIG_DFL) == SIG_IGN);
}

/* The broker's own signals still work for the client. */
static void faults(void)
{
	struct sigaction act = { .sa_handler = handler };

	CHECK(sigaction(SIGSEGV, &act, NULL) == 0 && sigaction(SIGURG, &act, NULL) == 0);
	raise(SIGSEGV);
	CHECK(caught == SIGSEGV);
	raise(SIGURG);
	CHECK(caught == SIGURG);
	CHECK(signal(SIGSEGV, SIG_DFL) == handler && signal(SIGURG, SIG_DFL) == handler);
}

static void raw_sigaction(void)
{
	struct {
		void *handler;
		unsigned long flags;
		void *restorer;
		uint64_t mask;
	} act = { handler, 0, NULL, 0 }, old;

	CHECK(syscall(SYS_rt_sigaction, SIGUSR1, &act, &old, 8) == 0 && old.handler == (void *)SIG_DFL);
	raise(SIGUSR1);
	CHECK(caught == SIGUSR1);
	CHECK(signal(SIGUSR1, SIG_DFL) == handler);
}

static void waiting(void)
{
	struct timespec t = { 0, 20000000 };
	union sigval v = { .sival_int = 5 };
	siginfo_t info;
	sigset_t set, old;
	int sig = 0;

	sigemptyset(&set);
	sigaddset(&set, SIGURG);
	sigaddset(&set, SIGUSR1);
	sigprocmask(SIG_BLOCK, &set, &old);
	CHECK_ERRNO(sigtimedwait(&set, NULL, &t), EAGAIN);
	CHECK(sigqueue(getpid(), SIGURG, v) == 0);
	CHECK(sigtimedwait(&set, &info, &t) == SIGURG && info.si_value.sival_int == 5);
	kill(getpid(), SIGUSR1);
	CHECK(sigwaitinfo(&set, &info) == SIGUSR1 && info.si_code == SI_USER);
	kill(getpid(), SIGURG);
	CHECK(sigwait(&set, &sig) == 0 && sig == SIGURG);
	sigprocmask(SIG_SETMASK, &old, NULL);
}

/* ---- cancellation ---------------------------------------------------------------- */

static int vcpu_fd;
static volatile int in_run;

/* Halted for good: HLT with interrupts off and an interrupt controller in the kernel. */
static int halted_vcpu(int *vm)
{
	int kvm = open("/dev/kvm", O_RDWR), vcpu;
	unsigned char *memory = mmap(NULL, 4096, PROT_READ | PROT_WRITE, MAP_SHARED | MAP_ANONYMOUS, -1, 0);
	struct kvm_userspace_memory_region region = { .guest_phys_addr = 4096, .memory_size = 4096,
						      .userspace_addr = (uintptr_t)memory };
	struct kvm_regs regs = { .rip = 4096, .rflags = 2 };
	struct kvm_sregs sregs;

	memory[0] = 0xf4;
	*vm = ioctl(kvm, KVM_CREATE_VM, 0);
	if (ioctl(*vm, KVM_CREATE_IRQCHIP, 0) || ioctl(*vm, KVM_SET_USER_MEMORY_REGION, &region))
		return -1;
	vcpu = ioctl(*vm, KVM_CREATE_VCPU, 0);
	if (vcpu < 0 || ioctl(vcpu, KVM_GET_SREGS, &sregs))
		return -1;
	sregs.cs.base = sregs.cs.selector = 0;
	close(kvm);
	return ioctl(vcpu, KVM_SET_SREGS, &sregs) || ioctl(vcpu, KVM_SET_REGS, &regs) ? -1 : vcpu;
}

static void *runner(void *type)
{
	pthread_setcanceltype((intptr_t)type, NULL);
	in_run = 1;
	for (;;) {
		ioctl(vcpu_fd, KVM_RUN, 0);
		if (type == (void *)PTHREAD_CANCEL_DEFERRED)
			pthread_testcancel();
	}
	return NULL;
}

static int cancel_and_join(intptr_t type, int delay_us)
{
	struct timespec limit;
	pthread_t t;
	void *result;

	in_run = 0;
	if (pthread_create(&t, NULL, runner, (void *)type))
		return 0;
	while (!in_run)
		;
	usleep(delay_us);
	pthread_cancel(t);
	clock_gettime(CLOCK_REALTIME, &limit);
	limit.tv_sec += 10;
	return !pthread_timedjoin_np(t, &result, &limit) && result == PTHREAD_CANCELED;
}

static void cancelled(void)
{
	struct kvm_regs regs;
	int vm;

	vcpu_fd = halted_vcpu(&vm);
	CHECK(vcpu_fd >= 0);
	CHECK(cancel_and_join(PTHREAD_CANCEL_ASYNCHRONOUS, 200000));
	CHECK(ioctl(vcpu_fd, KVM_GET_REGS, &regs) == 0 && regs.rip == 4097);
	CHECK(cancel_and_join(PTHREAD_CANCEL_DEFERRED, 50000));
	for (int i = 0; i < 100; i++)
		CHECK(cancel_and_join(PTHREAD_CANCEL_ASYNCHRONOUS, i));
	CHECK(ioctl(vcpu_fd, KVM_GET_REGS, &regs) == 0);
	close(vcpu_fd);
	close(vm);
}

int main(void)
{
	static const struct test tests[] = {
		{ "handlers_before", handlers },
		{ "old_ways_before", old_ways },
		{ "faults_before", faults },
		{ "cancelled", cancelled },
		/* Now the broker is installed. */
		{ "handlers", handlers },
		{ "old_ways", old_ways },
		{ "faults", faults },
		{ "raw_sigaction", raw_sigaction },
		{ "waiting", waiting },
	};

	return RUN_TESTS(tests);
}

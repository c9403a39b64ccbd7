/* SPDX-License-Identifier: MIT */
/*
 * Signals and KVM_RUN: client handlers run on client context, KVM_RUN returns EINTR,
 * masks mean what KVM says, and a vCPU asleep in a page fault can be reached.
 */
#include <dirent.h>
#include <linux/userfaultfd.h>
#include <pthread.h>
#include <signal.h>
#include <sys/eventfd.h>
#include <sys/syscall.h>
#include <sys/time.h>
#include <time.h>

#include "api/kvmtest.h"

static _Thread_local int tls_canary = 0x1234;
static volatile int handled, canary_seen, code_seen;
static volatile long value_seen;
static void *volatile stack_seen;

static void on_signal(int sig, siginfo_t *info, void *uc)
{
	(void)sig, (void)uc;
	handled++;
	canary_seen = tls_canary;
	code_seen = info->si_code;
	value_seen = info->si_value.sival_int;
	stack_seen = __builtin_frame_address(0);
}

static void install(int sig, int flags)
{
	struct sigaction sa = { .sa_sigaction = on_signal, .sa_flags = SA_SIGINFO | flags };

	NEED(sigaction(sig, &sa, NULL) == 0);
}

static struct kvmtest spinner(void)
{
	struct kvmtest t = kvmtest_vm(1 << 20, 0);

	kvmtest_add_vcpu(&t, 0);
	kvmtest_long_mode(&t, 0x8000, "\xff\xc0\xeb\xfc", 4); /* 1: inc %eax; jmp 1b */
	return t;
}

static void timer_ms(long ms)
{
	struct itimerval it = { .it_value = { .tv_usec = ms * 1000 } };

	setitimer(ITIMER_REAL, &it, NULL);
}

static void test_eintr(int flags)
{
	struct kvmtest t = spinner();

	install(SIGALRM, flags);
	handled = canary_seen = 0;
	timer_ms(30);
	CHECK_ERRNO(ioctl(t.vcpu, KVM_RUN, 0), EINTR);
	CHECK_EQ(t.run->exit_reason, KVM_EXIT_INTR);
	CHECK_EQ(handled, 1);
	CHECK_EQ(canary_seen, 0x1234);
	/* On this thread's own stack, not in guest RAM. */
	CHECK((uint8_t *)stack_seen < t.mem || (uint8_t *)stack_seen >= t.mem + t.mem_size);
	kvmtest_done(&t);
}

struct sender {
	pthread_t target;
	int sig, value;
};

static void *send_later(void *arg)
{
	struct sender *s = arg;

	usleep(30000);
	pthread_sigqueue(s->target, s->sig, (union sigval){ .sival_int = s->value });
	return NULL;
}

static void test_siginfo(int sig)
{
	struct kvmtest t = spinner();
	struct sender s = { pthread_self(), sig, 4711 };
	pthread_t thread;

	install(sig, 0);
	handled = value_seen = 0;
	pthread_create(&thread, NULL, send_later, &s);
	CHECK_ERRNO(ioctl(t.vcpu, KVM_RUN, 0), EINTR);
	pthread_join(thread, NULL);
	CHECK_EQ(handled, 1);
	CHECK_EQ(value_seen, 4711);
	CHECK_EQ(code_seen, SI_QUEUE);
	kvmtest_done(&t);
}

/* Blocked in the thread: no EINTR, the guest runs on until something else ends it. */
static void test_blocked(void)
{
	struct kvmtest t = spinner();
	sigset_t set;

	install(SIGUSR2, 0);
	install(SIGALRM, 0);
	sigemptyset(&set);
	sigaddset(&set, SIGUSR2);
	pthread_sigmask(SIG_BLOCK, &set, NULL);
	handled = 0;
	raise(SIGUSR2);
	timer_ms(50);
	CHECK_ERRNO(ioctl(t.vcpu, KVM_RUN, 0), EINTR);
	CHECK_EQ(handled, 1); /* SIGALRM only */
	pthread_sigmask(SIG_UNBLOCK, &set, NULL);
	CHECK_EQ(handled, 2);
	kvmtest_done(&t);
}

/* KVM_SET_SIGNAL_MASK opens a signal that the thread blocks: EINTR, no handler, still pending. */
static void test_signal_mask(int with_handler)
{
	struct kvmtest t = spinner();
	struct {
		struct kvm_signal_mask h;
		uint64_t set;
	} mask = { .h.len = 8, .set = 0 };
	struct timespec zero = { 0, 0 };
	struct sender s = { pthread_self(), SIGUSR1, 5 };
	pthread_t thread;
	siginfo_t info;
	sigset_t set;

	if (with_handler)
		install(SIGUSR1, 0);
	else
		signal(SIGUSR1, SIG_DFL);
	sigemptyset(&set);
	sigaddset(&set, SIGUSR1);
	pthread_sigmask(SIG_BLOCK, &set, NULL);
	mask.h.len = 7;
	CHECK_ERRNO(ioctl(t.vcpu, KVM_SET_SIGNAL_MASK, &mask), EINVAL);
	mask.h.len = 8;
	CHECK_EQ(ioctl(t.vcpu, KVM_SET_SIGNAL_MASK, &mask), 0);
	handled = 0;
	pthread_create(&thread, NULL, send_later, &s);
	CHECK_ERRNO(ioctl(t.vcpu, KVM_RUN, 0), EINTR);
	CHECK_EQ(t.run->exit_reason, KVM_EXIT_INTR);
	pthread_join(thread, NULL);
	CHECK_EQ(handled, 0);
	CHECK_EQ(sigtimedwait(&set, &info, &zero), SIGUSR1);
	CHECK_EQ(info.si_value.sival_int, 5);
	pthread_sigmask(SIG_UNBLOCK, &set, NULL);
	kvmtest_done(&t);
}

static void test_ignored(void)
{
	struct kvmtest t = spinner();
	pthread_t thread;
	struct sender s = { pthread_self(), SIGUSR2, 0 };

	signal(SIGUSR2, SIG_IGN);
	install(SIGALRM, 0);
	handled = 0;
	pthread_create(&thread, NULL, send_later, &s);
	timer_ms(80);
	CHECK_ERRNO(ioctl(t.vcpu, KVM_RUN, 0), EINTR);
	pthread_join(thread, NULL);
	CHECK_EQ(handled, 1);
	kvmtest_done(&t);
}

/* A halted vCPU with an in-kernel APIC sleeps in KVM_RUN; a signal gets it out. */
static void test_halted(void)
{
	struct kvmtest t = kvmtest_vm(1 << 20, 1);
	struct timespec a, b;

	kvmtest_add_vcpu(&t, 0);
	kvmtest_long_mode(&t, 0x8000, "\xf4", 1);
	install(SIGALRM, 0);
	/* What a first run costs is none of this test's business. */
	timer_ms(30);
	CHECK_ERRNO(ioctl(t.vcpu, KVM_RUN, 0), EINTR);
	timer_ms(30);
	clock_gettime(CLOCK_THREAD_CPUTIME_ID, &a);
	CHECK_ERRNO(ioctl(t.vcpu, KVM_RUN, 0), EINTR);
	clock_gettime(CLOCK_THREAD_CPUTIME_ID, &b);
	CHECK((b.tv_sec - a.tv_sec) * 1000 + (b.tv_nsec - a.tv_nsec) / 1000000 < 20);
	kvmtest_done(&t);
}

static void *cancelled_thread(void *arg)
{
	struct kvmtest *t = arg;

	pthread_setcanceltype(PTHREAD_CANCEL_ASYNCHRONOUS, NULL);
	for (;;)
		ioctl(t->vcpu, KVM_RUN, 0);
	return NULL;
}

/* Asynchronous cancellation of a thread in KVM_RUN leaves the vCPU usable. */
static void test_cancel(int halted)
{
	struct kvmtest t = kvmtest_vm(1 << 20, 1);
	struct kvm_regs regs;
	pthread_t thread;

	kvmtest_add_vcpu(&t, 0);
	if (halted)
		kvmtest_long_mode(&t, 0x8000, "\xf4", 1);
	else
		kvmtest_long_mode(&t, 0x8000, "\xeb\xfe", 2);
	pthread_create(&thread, NULL, cancelled_thread, &t);
	usleep(50000);
	pthread_cancel(thread);
	CHECK_EQ(pthread_join(thread, NULL), 0);
	CHECK_EQ(ioctl(t.vcpu, KVM_GET_REGS, &regs), 0);
	kvmtest_done(&t);
}

static void *runner(void *arg)
{
	struct kvmtest *t = arg;

	return (void *)(long)ioctl(t->vcpu, KVM_RUN, 0);
}

/*
 * The vCPU sleeps in a page fault that only this thread can resolve (userfaultfd), and this
 * thread deletes an unrelated slot first: the ioctl must not wait for the vCPU.
 */
static void test_userfault(void)
{
	/* mov 0x90000, %eax; hlt */
	static const uint8_t code[] = { 0x8b, 0x04, 0x25, 0, 0, 0x09, 0, 0xf4 };
	struct kvmtest t = kvmtest_vm(1 << 20, 0);
	struct uffdio_api api = { .api = UFFD_API };
	struct uffdio_register reg = { .mode = UFFDIO_REGISTER_MODE_MISSING };
	struct kvm_userspace_memory_region other = { .slot = 1, .guest_phys_addr = 16 << 20, .memory_size = 4096 };
	struct uffdio_copy copy = { 0 };
	struct uffd_msg msg;
	static uint8_t page[4096] = { 0x44, 0x33, 0x22, 0x11 };
	int uffd = syscall(SYS_userfaultfd, O_CLOEXEC);
	struct kvm_regs regs;
	pthread_t thread;
	void *ret;

	kvmtest_add_vcpu(&t, 0);
	kvmtest_long_mode(&t, 0x8000, code, sizeof(code));
	if (uffd < 0 || ioctl(uffd, UFFDIO_API, &api)) {
		kvmtest_skipped++;
		kvmtest_done(&t);
		return;
	}
	reg.range.start = (uintptr_t)t.mem + 0x90000;
	reg.range.len = 4096;
	NEED(ioctl(uffd, UFFDIO_REGISTER, &reg) == 0);
	other.userspace_addr = (uintptr_t)t.mem;
	CHECK_EQ(ioctl(t.vm, KVM_SET_USER_MEMORY_REGION, &other), 0);
	pthread_create(&thread, NULL, runner, &t);
	CHECK_EQ(read(uffd, &msg, sizeof(msg)), sizeof(msg));
	CHECK_EQ(msg.event, UFFD_EVENT_PAGEFAULT);
	other.memory_size = 0;
	CHECK_EQ(ioctl(t.vm, KVM_SET_USER_MEMORY_REGION, &other), 0);
	copy.dst = reg.range.start;
	copy.src = (uintptr_t)page;
	copy.len = 4096;
	CHECK_EQ(ioctl(uffd, UFFDIO_COPY, &copy), 0);
	pthread_join(thread, &ret);
	CHECK_EQ((long)ret, 0);
	CHECK_EQ(t.run->exit_reason, KVM_EXIT_HLT);
	CHECK_EQ(ioctl(t.vcpu, KVM_GET_REGS, &regs), 0);
	CHECK_EQ(regs.rax, 0x11223344);
	close(uffd);
	kvmtest_done(&t);
}

/* Threads that are ours take no signal that was meant for the process. */
static void test_our_threads(void)
{
	struct kvmtest t = kvmtest_vm(1 << 20, 1);
	struct kvm_pit_config pit = { 0 };
	struct kvm_irqfd irqfd = { .fd = eventfd(0, 0), .gsi = 17 };
	char path[300], line[128];
	unsigned others = 0, blocked = 0;
	struct dirent *d;
	DIR *dir;

	CHECK_EQ(ioctl(t.vm, KVM_CREATE_PIT2, &pit), 0);
	CHECK_EQ(ioctl(t.vm, KVM_IRQFD, &irqfd), 0); /* needs a thread to listen */
	dir = opendir("/proc/self/task");
	while (dir && (d = readdir(dir))) {
		unsigned long long mask = 0;
		FILE *f;

		if (d->d_name[0] == '.' || atoi(d->d_name) == getpid())
			continue;
		others++;
		snprintf(path, sizeof(path), "/proc/self/task/%s/status", d->d_name);
		f = fopen(path, "r");
		while (f && fgets(line, sizeof(line), f))
			sscanf(line, "SigBlk: %llx", &mask);
		if (f)
			fclose(f);
		/* All but KILL and STOP, which nobody can block, and libc's own 32 and 33 (setuid() needs them). */
		mask |= 1ull << (SIGKILL - 1) | 1ull << (SIGSTOP - 1) | 3ull << 31;
		if (mask == ~0ull)
			blocked++;
		else
			printf("thread %s blocks %llx only\n", d->d_name, mask);
	}
	closedir(dir);
	CHECK(others > 0);
	CHECK_EQ(blocked, others);
	close(irqfd.fd);
	kvmtest_done(&t);
}

int main(void)
{
	test_our_threads();
	test_eintr(0);
	test_eintr(SA_RESTART);
	test_siginfo(SIGUSR1);
	test_siginfo(SIGRTMIN + 3);
	test_siginfo(SIGURG); /* which the library uses itself */
	test_blocked();
	test_signal_mask(1);
	test_signal_mask(0);
	test_ignored();
	test_halted();
	test_cancel(0);
	test_cancel(1);
	test_userfault();
	return kvmtest_summary();
}

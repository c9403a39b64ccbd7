/* SPDX-License-Identifier: MIT */
/*
 * The LAPIC's timer while a vCPU computes, which is a timer of the thread in KVM_RUN: it arrives in whatever thread that is, an exit
 * loses none, and nobody sees a signal of it outside, neither as a handler's call nor as EINTR.
 */
#include <errno.h>
#include <pthread.h>
#include <signal.h>
#include <time.h>

#include "both.h"

#define CODE 0x100000u
#define HANDLER 0x108000u
#define IDT 0x20000u
#define COUNT 0x120000u
#define VECTOR 0x40u
#define MSR(number, value) "mov $" number ", %ecx; mov $" value ", %eax; xor %edx, %edx; wrmsr\n"

/* Every ms; each fourth is an exit: those between are armed in KVM_RUN and due there. */
GUEST_CODE(periodic, "mov $0x1b, %ecx; rdmsr; or $0xc00, %eax; wrmsr\n" MSR("0x80f", "0x1ff") MSR("0x83e", "0xb")
	   MSR("0x832", "0x20040") MSR("0x838", "1000000") "sti; 1: inc %r12; jmp 1b");
GUEST_CODE(taken, "incq 0x120000; mov $0x80b, %ecx; xor %eax, %eax; xor %edx, %edx; wrmsr\n"
	   "testb $3, 0x120000; jnz 1f; out %al, $0x10; 1: iretq");

static volatile int handled;

static void on_signal(int sig)
{
	(void)sig;
	handled++;
}

static struct kvmtest open_guest(void)
{
	struct kvmtest t = kvmtest_vm(4u << 20, 1);
	struct kvm_regs r;

	kvmtest_add_vcpu(&t, 0);
	kvmtest_set_cpuid(&t);
	kvmtest_long_mode(&t, CODE, periodic, GUEST_LEN(periodic));
	memcpy(t.mem + HANDLER, taken, GUEST_LEN(taken));
	kvmtest_gate(&t, IDT, VECTOR, HANDLER);
	kvmtest_idt(&t, IDT);
	NEED(ioctl(t.vcpu, KVM_GET_REGS, &r) == 0);
	r.rsp = 0x200000;
	NEED(ioctl(t.vcpu, KVM_SET_REGS, &r) == 0);
	return t;
}

static uint64_t count(const struct kvmtest *t)
{
	return *(volatile uint64_t *)(t->mem + COUNT);
}

/* To the next exit. Returns NULL if that is a tick's. If none comes the alarm ends the test. */
static void *run_to_tick(void *arg)
{
	struct kvmtest *t = arg;

	if (ioctl(t->vcpu, KVM_RUN, 0) || t->run->exit_reason != KVM_EXIT_IO)
		return t;
	return NULL;
}

static void test_here(void)
{
	struct kvmtest t = open_guest();

	for (unsigned i = 1; i <= 20; i++) {
		CHECK(!run_to_tick(&t));
		CHECK_EQ(count(&t), 4 * i);
	}
	kvmtest_done(&t);
}

/* A thread each time, gone before the next one. */
static void test_threads(void)
{
	struct kvmtest t = open_guest();
	pthread_t thread;
	void *bad;

	for (unsigned i = 1; i <= 20; i++) {
		NEED(pthread_create(&thread, NULL, run_to_tick, &t) == 0);
		NEED(pthread_join(thread, &bad) == 0);
		CHECK(!bad);
		CHECK_EQ(count(&t), 4 * i);
	}
	kvmtest_done(&t);
}

/* The next one is due while the client sleeps, with a handler for the signal that ticks are. */
static void test_outside(void)
{
	const struct timespec time = { .tv_nsec = 3000000 };
	struct sigaction sa = { .sa_handler = on_signal }, old;
	struct kvmtest t = open_guest();

	NEED(sigaction(SIGURG, &sa, &old) == 0);
	handled = 0;
	for (unsigned i = 1; i <= 20; i++) {
		CHECK(!run_to_tick(&t));
		CHECK_EQ(count(&t), 4 * i);
		CHECK_EQ(nanosleep(&time, NULL), 0);
	}
	CHECK_EQ(handled, 0);
	kvmtest_done(&t);
	CHECK_EQ(nanosleep(&time, NULL), 0);
	/* Its own ones it sees. */
	raise(SIGURG);
	CHECK_EQ(handled, 1);
	NEED(sigaction(SIGURG, &old, NULL) == 0);
}

/* Two vCPUs of one thread: each has its own. */
static void test_two(void)
{
	struct kvmtest t[2] = { open_guest(), open_guest() };

	for (unsigned i = 1; i <= 10; i++) {
		for (unsigned k = 0; k < 2; k++) {
			CHECK(!run_to_tick(&t[k]));
			CHECK_EQ(count(&t[k]), 4 * i);
		}
	}
	kvmtest_done(&t[0]);
	CHECK(!run_to_tick(&t[1]));
	kvmtest_done(&t[1]);
}

static void test(void)
{
	alarm(60);
	test_here();
	test_threads();
	test_outside();
	test_two();
}

int main(int argc, char **argv)
{
	return both_engines(argv[0], test);
}

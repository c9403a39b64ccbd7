/* SPDX-License-Identifier: MIT */
/*
 * A guest whose thread is kicked all the time, in each engine and in both of them in lockstep. A kick may abort any access to
 * guest memory; the instruction is executed again, and the guest notices nothing: it compares what it does to memory with
 * registers. Page walks set accessed and dirty bits all the time. Interrupts, ticks, client signals and changes of memslots come in
 * between; each message is waited for before the next is sent.
 *
 * Linked with the library. Another thread sends its kicks, which take a vCPU that is late by a ms otherwise; they meet
 * the guest's own instructions. Of the C code's accesses each is a few instructions among thousands, so these are aborted as if a kick
 * had come (kicks.h).
 */
#include <pthread.h>
#include <signal.h>
#include <stdatomic.h>
#include <sys/ioctl.h>
#include <sys/mman.h>
#include <sys/syscall.h>
#include <time.h>
#include <unistd.h>

#include "api/fd.h"
#include "kicks.h"
#include "lib/paths.h"
#include "softkvm.h"

static void *map_any(void *addr, size_t len, int prot, int flags, int fd, off_t off)
{
	return fd < 0 ? mmap(addr, len, prot, flags, fd, off) : softkvm_mmap(addr, len, prot, flags, fd, off);
}

/* kvmtest.h is written for clients of the kernel. */
#define ioctl(fd, request, arg) softkvm_ioctl(fd, request, (unsigned long)(arg))
#define mmap map_any
#define open_kvm_or_skip(flags) softkvm_open(flags)
#include "api/both.h"

#define CODE 0x100000u
#define MESSAGE 0x108000u
#define TICK 0x10a000u
#define IDT 0x20000u
#define COUNTS 0x120000u	/* messages, ticks */
#define STACK 0x300000u
#define SPARE 0x10000000u	/* a memslot that comes and goes */
#define MSR(number, value) "mov $" number ", %ecx; mov $" value ", %eax; xor %edx, %edx; wrmsr\n"
#define EOI "push %rax; push %rcx; push %rdx\n" MSR("0x80b", "0") "pop %rdx; pop %rcx; pop %rax; iretq\n"

/*
 * r15: turns, r14: bits. The data are in the second 2 MiB, whose page table entry is at 0x3008. Every 16 turns the wall clock, whose
 * record is then complete, and an exit by port 0x10; by 0x11 if anything is not as it should be.
 */
GUEST_CODE(work,
	   "mov $0x1b, %ecx; rdmsr; or $0xc00, %eax; wrmsr\n" MSR("0x80f", "0x1ff") MSR("0x83e", "0xb")
	   MSR("0x832", "0x20041") MSR("0x838", "300000") "xor %r15d, %r15d; xor %r14d, %r14d; sti; cld\n"
	   "1: inc %r15\n"
	   "incq 0x200000; lock incq 0x200008\n"
	   "mov %r15, %rax; and $63, %eax; lock btc %rax, 0x200010; btc %rax, %r14\n"
	   "push %r15; add %r15, (%rsp); pop %rcx; shr %rcx; cmp %rcx, %r15; jne 9f\n"
	   "mov %r15, %rax; mov $0x210000, %edi; mov $256, %ecx; rep stosb\n"
	   "mov $0x210000, %esi; mov $0x220000, %edi; mov $32, %ecx; rep movsq\n"
	   "mov $0x210000, %esi; mov $0x220000, %edi; mov $32, %ecx; repe cmpsq; jne 9f\n"
	   "cmp %r15b, 0x2200ff; jne 9f\n"
	   "movq %r15, %xmm0; paddq 0x230000, %xmm0; movups %xmm0, 0x230000; movq %xmm0, %rax\n"
	   "sub %r15, %rax; sub 0x230010, %rax; jne 9f; movq %xmm0, 0x230010\n"
	   "andq $~0x60, 0x3008; mov %cr3, %rax; mov %rax, %cr3\n"
	   "cmp 0x200000, %r15; jne 9f; cmp 0x200008, %r15; jne 9f; cmp 0x200010, %r14; jne 9f\n"
	   "test $15, %r15b; jnz 1b\n" MSR("0x4b564d00", "0x240000")
	   "testb $1, 0x240000; jnz 9f; cmpl $0, 0x240004; je 9f; movl $0, 0x240004\n"
	   "out %al, $0x10; jmp 1b\n"
	   "9: out %al, $0x11; hlt");
GUEST_CODE(message, "incq 0x120000\n" EOI);
GUEST_CODE(tick, "incq 0x120008\n" EOI);

static struct kvmtest t;
static pthread_t runner;
static pid_t runner_tid;
static atomic_bool stop;
static atomic_uint kicks, messages, slot_changes, signals;

/* Of the runner: accesses to the next that is aborted; 0: none is. */
static unsigned to_abort, aborted;

static unsigned next_abort(void)
{
	static const unsigned most[] = { 20, 200, 2000, 20000 };
	static unsigned seed = 1;
	unsigned n = rand_r(&seed) >> 8;

	return 1 + rand_r(&seed) % most[n % ARRAY_SIZE(most)];
}

bool kicks_abort(void)
{
	if (!host_guest_current || !to_abort || --to_abort)
		return false;
	to_abort = next_abort();
	aborted++;
	host_kicked = true;
	return true;
}

static void on_signal(int sig)
{
	t.run->immediate_exit = 1;
	signals++;
}

static uint64_t count(unsigned i)
{
	return ((volatile uint64_t *)(t.mem + COUNTS))[i];
}

static void send_message(void)
{
	struct kvm_msi msi = { .address_lo = 0xfee00000, .data = 0x40 };

	if (count(0) != messages)
		return;
	messages++;
	CHECK_EQ(ioctl(t.vm, KVM_SIGNAL_MSI, &msi), 1);
}

static void change_slots(void)
{
	struct kvm_userspace_memory_region region = {
		.slot = 1, .guest_phys_addr = SPARE, .memory_size = slot_changes % 2 ? 0 : 4096, .userspace_addr = (uintptr_t)t.mem,
	};

	slot_changes++;
	CHECK_EQ(ioctl(t.vm, KVM_SET_USER_MEMORY_REGION, &region), 0);
}

static void spin(unsigned ns)
{
	struct timespec now;
	uint64_t end = 0;

	do {
		clock_gettime(CLOCK_MONOTONIC, &now);
		if (!end)
			end = now.tv_nsec + ns;
	} while ((uint64_t)now.tv_nsec < end && end < 1000000000);
}

static void *disturb(void *arg)
{
	unsigned seed = 1;

	while (!stop) {
		unsigned what = rand_r(&seed) >> 8 & 31;

		if (what == 0)
			send_message();
		else if (what == 1)
			pthread_kill(runner, SIGUSR1);
		else if (what == 2)
			change_slots();
		else
			host_kick_thread(runner_tid);
		kicks += what > 2;
		spin(rand_r(&seed) >> 8 & 0xffff);
	}
	return NULL;
}

static void open_guest(void)
{
	struct kvm_sregs s;
	struct kvm_regs r;

	t = kvmtest_vm(4u << 20, 1);
	kvmtest_add_vcpu(&t, 0);
	kvmtest_long_mode(&t, CODE, work, GUEST_LEN(work));
	memcpy(t.mem + MESSAGE, message, GUEST_LEN(message));
	memcpy(t.mem + TICK, tick, GUEST_LEN(tick));
	kvmtest_gate(&t, IDT, 0x40, MESSAGE);
	kvmtest_gate(&t, IDT, 0x41, TICK);
	NEED(ioctl(t.vcpu, KVM_GET_SREGS, &s) == 0);
	s.idt.base = IDT;
	s.idt.limit = 0xfff;
	s.cr4 |= 0x600; /* SSE */
	NEED(ioctl(t.vcpu, KVM_SET_SREGS, &s) == 0);
	NEED(ioctl(t.vcpu, KVM_GET_REGS, &r) == 0);
	r.rsp = STACK;
	NEED(ioctl(t.vcpu, KVM_SET_REGS, &r) == 0);
}

/* Until the next exit that is no signal's. False: that says that something is wrong. */
static bool run_to_exit(unsigned *interruptions)
{
	while (ioctl(t.vcpu, KVM_RUN, 0)) {
		CHECK_EQ(errno, EINTR);
		if (errno != EINTR)
			return false;
		t.run->immediate_exit = 0;
		++*interruptions;
	}
	CHECK_EQ(t.run->exit_reason, KVM_EXIT_IO);
	CHECK_EQ(t.run->io.port, 0x10);
	return t.run->exit_reason == KVM_EXIT_IO && t.run->io.port == 0x10;
}

static bool enough_disturbed(unsigned interruptions)
{
	return kicks >= 2000 && aborted >= 20000 && count(0) >= 20 && count(1) >= 20 && interruptions >= 20 && slot_changes >= 20;
}

static void test(void)
{
	struct sigaction sa = { .sa_handler = on_signal };
	bool lockstep = !strcmp(getenv("SOFTKVM_ENGINE"), "diff");
	unsigned exits = 0, interruptions = 0;
	const struct vcpu_stat *stat;
	pthread_t thread;

	alarm(200);
	open_guest();
	stat = &fd_get(t.vcpu)->vcpu->stat;
	NEED(host_sigaction(SIGUSR1, &sa, NULL) == 0);
	runner = pthread_self();
	runner_tid = syscall(SYS_gettid);
	/* From here on its LAPIC takes messages. */
	NEED(run_to_exit(&interruptions));
	to_abort = next_abort();
	NEED(pthread_create(&thread, NULL, disturb, NULL) == 0);
	while (run_to_exit(&interruptions))
		if (++exits >= 500 && enough_disturbed(interruptions) && (!lockstep || stat->diff_interrupted >= 200))
			break;
	stop = true;
	pthread_join(thread, NULL);
	if (!kvmtest_failed)
		while (count(0) != messages && run_to_exit(&interruptions))
			;
	CHECK_EQ(count(0), messages);
	CHECK(!lockstep || stat->diff_units > stat->diff_interrupted);
	printf("%u exits, %u kicks, %u aborted accesses, %u messages, %u ticks, %u signals, %u changes of slots; "
	       "%llu units compared, %llu interrupted\n", exits, kicks, aborted, messages, (unsigned)count(1), signals, slot_changes,
	       (unsigned long long)stat->diff_units, (unsigned long long)stat->diff_interrupted);
}

int main(int argc, char **argv)
{
	if (getenv("SOFTKVM_ENGINE")) {
		test();
		return kvmtest_summary();
	}
	both_one(argv[0], "interp");
	both_one(argv[0], "dbt");
	both_one(argv[0], "diff");
	return kvmtest_summary();
}

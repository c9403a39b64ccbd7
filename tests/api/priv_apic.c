/* SPDX-License-Identifier: MIT */
/*
 * Local APICs as guests see them: two vCPUs, IPIs of every kind, xAPIC and x2APIC, INIT and
 * SIPI, the three timer modes, the PIT through PIC and IOAPIC; and each MSR of the
 * index list, read and written by the guest itself.
 *
 * Guests run in 64-bit mode on an identity map; handlers count in memory. The first vCPU
 * reports by OUT.
 */
#include <pthread.h>
#include <signal.h>
#include <time.h>

#include "kvmtest.h"

#define COUNTS 0x30000		/* a dword a vector */
#define HANDLERS 0x20000	/* 32 bytes each */
#define IDT 0x5000
#define DATA 0x31000

static struct kvmtest t;
static int vcpu1 = -1;
static struct kvm_run *run1;
static volatile int stop;

/* incl COUNTS + 4 * vector; EOI by x2APIC MSR or MMIO; iretq */
static void handlers(int x2apic)
{
	for (unsigned v = 0; v < 256; v++) {
		uint8_t *h = t.mem + HANDLERS + v * 32;
		uint64_t off = HANDLERS + v * 32;
		uint32_t count = COUNTS + v * 4;
		static const uint8_t eoi_msr[] = { 0x50, 0x51, 0x52, 0xb9, 0x0b, 0x08, 0, 0, 0x31, 0xc0, 0x31, 0xd2, 0x0f, 0x30,
			0x5a, 0x59, 0x58, 0x48, 0xcf };
		/* push %rax; mov $0xfee000b0, %eax; movl $0, (%rax); pop %rax; iretq */
		static const uint8_t eoi_mmio[] = { 0x50, 0xb8, 0xb0, 0, 0xe0, 0xfe, 0xc7, 0, 0, 0, 0, 0, 0x58, 0x48, 0xcf };

		/* lock incl count (absolute: 0x04 0x25) */
		memcpy(h, "\xf0\xff\x04\x25", 4);
		memcpy(h + 4, &count, 4);
		memcpy(h + 8, x2apic ? eoi_msr : eoi_mmio, x2apic ? sizeof(eoi_msr) : sizeof(eoi_mmio));
		*(uint64_t *)(t.mem + IDT + v * 16) = (off & 0xffff) | 8ull << 16 | 0x8eull << 40 | (off >> 16) << 48;
		*(uint64_t *)(t.mem + IDT + v * 16 + 8) = 0;
	}
}

static uint32_t count(unsigned v)
{
	return __atomic_load_n((uint32_t *)(t.mem + COUNTS + v * 4), __ATOMIC_ACQUIRE);
}

static void setup(int vcpu, const void *code, size_t len, uint64_t at, uint64_t rsp)
{
	struct kvm_sregs s;
	struct kvm_regs r = { .rip = at, .rsp = rsp, .rflags = 2 };
	struct kvm_mp_state mp = { KVM_MP_STATE_RUNNABLE };
	struct kvm_segment cs = { .type = 11, .present = 1, .s = 1, .l = 1, .g = 1, .limit = ~0u, .selector = 8 };
	struct kvm_segment ds = { .type = 3, .present = 1, .s = 1, .db = 1, .g = 1, .limit = ~0u, .selector = 16 };
	struct kvm_cpuid2 *c = calloc(1, sizeof(*c) + 200 * sizeof(struct kvm_cpuid_entry2));

	c->nent = 200;
	NEED(ioctl(t.kvm, KVM_GET_SUPPORTED_CPUID, c) == 0);
	for (unsigned i = 0; i < c->nent; i++)
		if (c->entries[i].function == 1)
			c->entries[i].ecx |= 1 << 24 | 1 << 21;
	NEED(ioctl(vcpu, KVM_SET_CPUID2, c) == 0);
	free(c);
	memcpy(t.mem + at, code, len);
	NEED(ioctl(vcpu, KVM_GET_SREGS, &s) == 0);
	s.cs = cs;
	s.ds = s.es = s.fs = s.gs = s.ss = ds;
	s.gdt.base = 0x4000;
	s.gdt.limit = 0x17;
	s.idt.base = IDT;
	s.idt.limit = 0xfff;
	s.cr3 = 0x1000;
	s.cr4 = 0x20;
	s.cr0 = 0x80000011;
	s.efer = 0x500;
	NEED(ioctl(vcpu, KVM_SET_SREGS, &s) == 0);
	NEED(ioctl(vcpu, KVM_SET_REGS, &r) == 0);
	NEED(ioctl(vcpu, KVM_SET_MP_STATE, &mp) == 0);
}

static void on_signal(int sig)
{
	(void)sig;
}

static void *second(void *arg)
{
	(void)arg;
	while (!stop) {
		if (ioctl(vcpu1, KVM_RUN, 0) < 0 && errno != EINTR && errno != EAGAIN)
			break;
		if (!stop && run1->exit_reason == KVM_EXIT_SHUTDOWN)
			break;
	}
	return NULL;
}

static void wait_count(unsigned v, uint32_t want)
{
	for (int i = 0; i < 2000 && count(v) < want; i++)
		usleep(1000);
	if (count(v) != want)
		printf("vector 0x%x: ", v);
	CHECK_EQ(count(v), want);
}

#define BLOB(name, text)                                                        \
	asm(".pushsection .rodata\n" #name ":\n" text "\n" #name "_end:\n.popsection\n"); \
	extern const uint8_t name[], name##_end[]

/* What both do first: software-enable the APIC. */
#define X2APIC_ON "mov $0x1b, %ecx\nrdmsr\nor $0xc00, %eax\nwrmsr\nmov $0x80f, %ecx\nmov $0x1ff, %eax\nxor %edx, %edx\nwrmsr\n"
#define X2ICR(lo, hi) "mov $0x830, %ecx\nmov $" #lo ", %eax\nmov $" #hi ", %edx\nwrmsr\n"
#define XAPIC_ON "mov $0xfee00000, %ebx\nmovl $0x1ff, 0xf0(%rbx)\nmovl $0xffffffff, 0xe0(%rbx)\n"
#define XICR(lo, hi) "movl $" #hi ", 0x310(%rbx)\nmovl $" #lo ", 0x300(%rbx)\n"
#define SPIN_UNTIL(v) "1: pause\ncmpl $0, 0x30000 + 4 * " #v "\nje 1b\n"

BLOB(wait_x2, X2APIC_ON "sti\nmovl $1, 0x31000\n1: hlt\njmp 1b");
BLOB(wait_x, XAPIC_ON "movl $0x02000000, 0xd0(%rbx)\nsti\nmovl $1, 0x31000\n1: hlt\njmp 1b");
/* fixed physical, logical x2APIC, self by shorthand, SELF IPI, all but self, all, NMI */
BLOB(send_x2, X2APIC_ON "1: pause\ncmpl $1, 0x31000\njne 1b\nsti\n" X2ICR(0x40, 1) SPIN_UNTIL(0x40) X2ICR(0x841, 2) SPIN_UNTIL(0x41)
     X2ICR(0x40042, 0) SPIN_UNTIL(0x42) "mov $0x83f, %ecx\nmov $0x43, %eax\nxor %edx, %edx\nwrmsr\n" SPIN_UNTIL(0x43)
     X2ICR(0xc0044, 0) SPIN_UNTIL(0x44) X2ICR(0x80045, 0) "1: pause\ncmpl $2, 0x30000 + 4 * 0x45\njne 1b\n"
     X2ICR(0x400, 1) SPIN_UNTIL(2) "out %al, $0x10");
BLOB(send_x, XAPIC_ON "movl $0x01000000, 0xd0(%rbx)\n1: pause\ncmpl $1, 0x31000\njne 1b\nsti\n" XICR(0x40, 0x01000000) SPIN_UNTIL(0x40)
     XICR(0x841, 0x02000000) SPIN_UNTIL(0x41) XICR(0x40042, 0) SPIN_UNTIL(0x42) XICR(0xc0044, 0) SPIN_UNTIL(0x44)
     XICR(0x845, 0x03000000) "1: pause\ncmpl $2, 0x30000 + 4 * 0x45\njne 1b\n" XICR(0x46, 0xff000000) "1: pause\ncmpl $2, 0x30000 + 4 * 0x46\njne 1b\nout %al, $0x10");
/* INIT, SIPI with vector 6: real-mode code at 0x6000 writes a word */
BLOB(send_sipi, X2APIC_ON X2ICR(0x4500, 1) X2ICR(0x4606, 1) "1: pause\ncmpw $0x1234, 0x31004\njne 1b\nout %al, $0x10");
BLOB(sipi_target, ".code16\nmov $0x3100, %ax\nmov %ax, %ds\nmovw $0x1234, 4\n1: hlt\njmp 1b\n.code64");
/* one-shot, periodic (5 times), TSC deadline, masked; then TPR holds one back */
BLOB(timers, X2APIC_ON "sti\nmov $0x83e, %ecx\nmov $0xb, %eax\nxor %edx, %edx\nwrmsr\nmov $0x832, %ecx\nmov $0x50, %eax\nwrmsr\n"
     "mov $0x838, %ecx\nmov $100000, %eax\nwrmsr\n" SPIN_UNTIL(0x50) "mov $0x832, %ecx\nmov $0x20051, %eax\nxor %edx, %edx\nwrmsr\n"
     "mov $0x838, %ecx\nmov $100000, %eax\nwrmsr\n1: pause\ncmpl $5, 0x30000 + 4 * 0x51\njb 1b\nmov $0x838, %ecx\nxor %eax, %eax\nxor %edx, %edx\nwrmsr\n"
     "mov $0x832, %ecx\nmov $0x40052, %eax\nwrmsr\nrdtsc\nadd $200000, %eax\nadc $0, %edx\nmov $0x6e0, %ecx\nwrmsr\n" SPIN_UNTIL(0x52)
     "mov $0x6e0, %ecx\nrdmsr\nmov %eax, 0x31010\nmov %edx, 0x31014\n"
     "mov $5, %eax\nmov %rax, %cr8\nmov $0x83f, %ecx\nmov $0x53, %eax\nxor %edx, %edx\nwrmsr\nmov $1000, %ecx\n1: loop 1b\nmov 0x30000 + 4 * 0x53, %eax\nmov %eax, 0x31018\n"
     "xor %eax, %eax\nmov %rax, %cr8\nnop\nnop\nmov 0x30000 + 4 * 0x53, %eax\nmov %eax, 0x3101c\nout %al, $0x10");
/* PIC at 0x20, ExtINT through LVT0, PIT channel 0 mode 2 */
BLOB(pit_pic, XAPIC_ON "movl $0x700, 0x350(%rbx)\nmov $0x11, %al\nout %al, $0x20\nmov $0x20, %al\nout %al, $0x21\nmov $4, %al\nout %al, $0x21\nmov $3, %al\nout %al, $0x21\n"
     "mov $0xfe, %al\nout %al, $0x21\nmov $0x34, %al\nout %al, $0x43\nmov $0, %al\nout %al, $0x40\nmov $8, %al\nout %al, $0x40\nsti\n"
     "1: pause\nmov $0x20, %al\nout %al, $0x20\ncmpl $3, 0x30000 + 4 * 0x20\njb 1b\nout %al, $0x10");
/* IOAPIC pin 0 (the PIT, by default routing) to vector 0x60, then masked */
BLOB(pit_ioapic, XAPIC_ON "mov $0xfec00000, %edi\nmovl $0x11, (%rdi)\nmovl $0, 0x10(%rdi)\nmovl $0x10, (%rdi)\nmovl $0x60, 0x10(%rdi)\n"
     "mov $0x34, %al\nout %al, $0x43\nmov $0, %al\nout %al, $0x40\nmov $8, %al\nout %al, $0x40\nsti\n1: pause\ncmpl $3, 0x30000 + 4 * 0x60\njb 1b\n"
     "movl $0x10, (%rdi)\nmovl $0x10060, 0x10(%rdi)\nmov 0x10(%rdi), %eax\nmov %eax, 0x31020\nout %al, $0x10");

static void open_vm(int x2apic)
{
	struct kvm_pit_config pit = { 0 };
	uint64_t *pd;

	t = kvmtest_vm(4 << 20, 1);
	NEED(ioctl(t.vm, KVM_CREATE_PIT2, &pit) == 0);
	kvmtest_add_vcpu(&t, 0);
	vcpu1 = ioctl(t.vm, KVM_CREATE_VCPU, 1);
	NEED(vcpu1 >= 0);
	run1 = mmap(NULL, t.run_size, PROT_READ | PROT_WRITE, MAP_SHARED, vcpu1, 0);
	NEED(run1 != MAP_FAILED);
	*(uint64_t *)(t.mem + 0x1000) = 0x2000 | 7;
	for (unsigned i = 0; i < 4; i++)
		*(uint64_t *)(t.mem + 0x2000 + i * 8) = (uint64_t)i << 30 | 0x87;
	pd = (uint64_t *)(t.mem + 0x4000);
	pd[1] = 0x00af9b000000ffffull;
	pd[2] = 0x00cf93000000ffffull;
	handlers(x2apic);
}

static void close_vm(void)
{
	munmap(run1, t.run_size);
	close(vcpu1);
	kvmtest_done(&t);
}

/* Until vCPU 0 says it is done. */
static int run_first(void)
{
	struct itimerspec its = { .it_value.tv_sec = 20 };
	struct sigevent ev = { .sigev_notify = SIGEV_SIGNAL, .sigev_signo = SIGALRM };
	timer_t timer;
	int r;

	timer_create(CLOCK_MONOTONIC, &ev, &timer);
	timer_settime(timer, 0, &its, NULL);
	r = ioctl(t.vcpu, KVM_RUN, 0);
	timer_delete(timer);
	CHECK_EQ(r, 0);
	CHECK_EQ(t.run->exit_reason, KVM_EXIT_IO);
	return r == 0 && t.run->exit_reason == KVM_EXIT_IO;
}

static void run_both(void)
{
	pthread_t thread;

	stop = 0;
	NEED(pthread_create(&thread, NULL, second, NULL) == 0);
	run_first();
	usleep(20000);
	stop = 1;
	run1->immediate_exit = 1;
	pthread_kill(thread, SIGUSR1);
	pthread_join(thread, NULL);
	run1->immediate_exit = 0;
}

#define START(fd, blob, at, sp) setup(fd, blob, blob##_end - blob, at, sp)

static void test_ipis(int x2apic)
{
	open_vm(x2apic);
	if (x2apic) {
		START(t.vcpu, send_x2, 0x8000, 0x10000);
		START(vcpu1, wait_x2, 0x9000, 0x18000);
	} else {
		START(t.vcpu, send_x, 0x8000, 0x10000);
		START(vcpu1, wait_x, 0x9000, 0x18000);
	}
	run_both();
	wait_count(0x40, 1);
	wait_count(0x41, 1);
	wait_count(0x42, 1);
	wait_count(0x44, 1);
	wait_count(0x45, 2);
	if (x2apic) {
		wait_count(0x43, 1);
		wait_count(2, 1);
	} else {
		wait_count(0x46, 2);
	}
	close_vm();
}

static void test_sipi(void)
{
	struct kvm_mp_state mp = { KVM_MP_STATE_UNINITIALIZED };
	struct kvm_sregs s;

	open_vm(1);
	START(t.vcpu, send_sipi, 0x8000, 0x10000);
	NEED(ioctl(vcpu1, KVM_SET_MP_STATE, &mp) == 0);
	memcpy(t.mem + 0x6000, sipi_target, sipi_target_end - sipi_target);
	run_both();
	NEED(ioctl(vcpu1, KVM_GET_SREGS, &s) == 0);
	CHECK_EQ(s.cs.selector, 0x600);
	CHECK_EQ(s.cs.base, 0x6000);
	CHECK_EQ(s.cr0 & 1, 0);
	close_vm();
}

static void test_alone(void)
{
	open_vm(1);
	START(t.vcpu, timers, 0x8000, 0x10000);
	if (run_first()) {
		CHECK_EQ(count(0x50), 1);
		CHECK(count(0x51) >= 5);
		CHECK_EQ(count(0x52), 1);
		CHECK_EQ(*(uint64_t *)(t.mem + 0x31010), 0);	/* a deadline that has passed reads as 0 */
		CHECK_EQ(*(uint32_t *)(t.mem + 0x31018), 0);	/* held back by CR8 */
		CHECK_EQ(*(uint32_t *)(t.mem + 0x3101c), 1);
	}
	close_vm();
	open_vm(0);
	START(t.vcpu, pit_pic, 0x8000, 0x10000);
	if (run_first())
		CHECK(count(0x20) >= 3);
	close_vm();
	open_vm(0);
	START(t.vcpu, pit_ioapic, 0x8000, 0x10000);
	if (run_first()) {
		CHECK(count(0x60) >= 3);
		CHECK_EQ(*(uint32_t *)(t.mem + 0x31020) & 0x100ff, 0x10060);
	}
	close_vm();
}

/* ---- MSRs ------------------------------------------------------------------------------------- */

/* ecx is the MSR: read it, write the same value, read again; rbx counts faults by way of the #GP handler. */
BLOB(msr_twice, "rdmsr\nout %al, $1\nmov %eax, %esi\nmov %edx, %edi\nwrmsr\nout %al, $2\nrdmsr\nout %al, $3");

static uint64_t msr_host(uint32_t index, int *ok)
{
	struct { uint32_t nmsrs, pad; struct kvm_msr_entry e; } m = { .nmsrs = 1, .e.index = index };

	*ok = ioctl(t.vcpu, KVM_GET_MSRS, &m) == 1;
	return m.e.data;
}

static int run_to_io(void)
{
	return ioctl(t.vcpu, KVM_RUN, 0) == 0 && t.run->exit_reason == KVM_EXIT_IO ?
	       t.run->io.port : -1;
}

/* What a client can read the guest can read, with the same value, unless it ticks; what it writes back sticks. */
static void test_msrs(void)
{
	struct kvm_msr_list *list = calloc(1, sizeof(*list) + 1000 * sizeof(uint32_t));
	unsigned read = 0, written = 0;

	open_vm(0);
	START(t.vcpu, msr_twice, 0x8000, 0x10000);
	/* #GP: hlt would wait; a port says so instead. */
	memcpy(t.mem + HANDLERS + 13 * 32, "\xe6\x0d\xf4", 3);
	list->nmsrs = 1000;
	NEED(ioctl(t.kvm, KVM_GET_MSR_INDEX_LIST, list) == 0);
	for (unsigned i = 0; i < list->nmsrs; i++) {
		uint32_t index = list->indices[i];
		struct kvm_regs r = { .rip = 0x8000, .rsp = 0x10000, .rflags = 2, .rcx = index };
		int ok, port;
		uint64_t host = msr_host(index, &ok), guest;

		NEED(ioctl(t.vcpu, KVM_SET_REGS, &r) == 0);
		port = run_to_io();
		NEED(port >= 0);
		if (port != 1)
			continue;
		read++;
		NEED(ioctl(t.vcpu, KVM_GET_REGS, &r) == 0);
		guest = (r.rdx << 32) | (uint32_t)r.rax;
		if (!ok)
			printf("MSR 0x%x: the guest reads it, the client does not\n", index);
		CHECK(ok);
		/* TSC and its kin move; everything else is what the client saw. */
		if (index != 0x10 && index != 0xc0000104) {
			if (guest != host)
				printf("MSR 0x%x: guest 0x%llx, client 0x%llx\n", index, (long long)guest, (long long)host);
			CHECK(guest == host);
		}
		port = run_to_io();
		CHECK(port == 2 || port == 13);
		if (port != 2)
			continue;
		written++;
		CHECK_EQ(run_to_io(), 3);
		NEED(ioctl(t.vcpu, KVM_GET_REGS, &r) == 0);
		if (index != 0x10)
			CHECK_EQ((r.rdx << 32) | (uint32_t)r.rax, guest);
	}
	printf("%u MSRs, %u read and %u written by the guest\n", list->nmsrs, read, written);
	CHECK(read > list->nmsrs / 2);
	CHECK(written > read / 2);
	free(list);
	close_vm();
}

int main(void)
{
	struct sigaction sa = { .sa_handler = on_signal };

	sigaction(SIGUSR1, &sa, NULL);
	sigaction(SIGALRM, &sa, NULL);
	test_ipis(0);
	test_ipis(1);
	test_sipi();
	test_alone();
	test_msrs();
	return kvmtest_summary();
}

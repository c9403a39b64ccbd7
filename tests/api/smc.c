/* SPDX-License-Identifier: MIT */
/*
 * Code that changes, and who changes it: itself (same block, same page, another page, an alias of the page), another
 * vCPU, the client. Each guest counts what the new code computes. Both engines.
 */
#include <pthread.h>

#include "both.h"

#define CODE 0x100000u
#define FUNC 0x110000u		/* a page of its own */
#define SHARED 0x120000u	/* words between vCPUs and client */
#define STACK 0x300000u
#define MEM (8u << 20)

/* mov $n, %eax; ret: the constant lies at FUNC + 4 */
static const uint8_t func[] = { 0x90, 0x90, 0x90, 0xb8, 0, 0, 0, 0, 0xc3 };

static struct kvmtest open_guest(const uint8_t *code, size_t len)
{
	struct kvmtest t = kvmtest_vm(MEM, 0);

	kvmtest_add_vcpu(&t, 0);
	kvmtest_long_mode(&t, CODE, code, len);
	memcpy(t.mem + FUNC, func, sizeof(func));
	return t;
}

static struct kvm_regs run(struct kvmtest *t)
{
	struct kvm_regs r = { .rip = CODE, .rsp = STACK, .rflags = 2 };

	NEED(ioctl(t->vcpu, KVM_SET_REGS, &r) == 0);
	CHECK_EQ(ioctl(t->vcpu, KVM_RUN, 0), 0);
	CHECK_EQ(t->run->exit_reason, KVM_EXIT_HLT);
	NEED(ioctl(t->vcpu, KVM_GET_REGS, &r) == 0);
	return r;
}

/* 1 + 2 + ... + 1000, each number stored into the instruction that adds it. */
#define SUM(store)                                                              \
	"xor %ebx, %ebx; mov $1000, %ecx\n"                                     \
	"1: " store "\n"                                                        \
	"2: .byte 0x81, 0xc3; 3: .long 0\n"	/* add $n, %ebx */              \
	"dec %ecx; jnz 1b; hlt"

GUEST_CODE(next_insn, SUM("mov %ecx, 3f(%rip)"));
GUEST_CODE(same_block, SUM("mov %ecx, 3f(%rip); mov %ecx, %edx; add %edx, %esi; imul %edx, %esi"));
GUEST_CODE(same_page, SUM("mov %ecx, 3f(%rip); jmp 9f; .skip 100; 9: nop; jmp 2f; .skip 60"));
GUEST_CODE(by_string, SUM("mov %ecx, 0x120000; mov $0x120000, %esi; lea 3f(%rip), %rdi; movsl"));
GUEST_CODE(by_bytes, SUM("mov %cl, 3f(%rip); mov %ch, 3f+1(%rip)"));
GUEST_CODE(by_locked, SUM("xor %eax, %eax; xchg %eax, 3f(%rip); lock add %ecx, 3f(%rip)"));
GUEST_CODE(by_vector, SUM("movd %ecx, %xmm1; movd %xmm1, 3f(%rip)"));
GUEST_CODE(by_push, SUM("mov %rsp, %rbp; lea 3f+8(%rip), %rsp; pushq 3f+0(%rip); mov %ecx, (%rsp); mov 2(%rsp), %dx;"
			"mov %rbp, %rsp"));
/* The constant of a block that has run, modified from one behind it. */
GUEST_CODE(backwards, "xor %ebx, %ebx; mov $1001, %ecx; 2: .byte 0x81, 0xc3; 3: .long 0; dec %ecx; jz 4f\n"
		      "jmp 5f; .skip 40; 5: mov %ecx, 3b(%rip); jmp 2b; 4: hlt");
/* A function on another page: by call, and by a pointer. */
GUEST_CODE(other_page, "xor %ebx, %ebx; mov $1000, %ecx; mov $0x110000, %edi\n"
		       "1: mov %ecx, 4(%rdi); call *%rdi; add %eax, %ebx; dec %ecx; jnz 1b; hlt");
/* The same page by another linear address: 1 GiB + x is mapped to x, see alias(). */
GUEST_CODE(by_alias, "xor %ebx, %ebx; mov $1000, %ecx; mov $0x110000, %edi; mov $0x40110000, %esi\n"
		     "1: mov %ecx, 4(%rsi); call *%rdi; add %eax, %ebx; dec %ecx; jnz 1b; hlt");
/* add becomes sub and back: not just a constant changes. */
GUEST_CODE(opcode, "xor %ebx, %ebx; mov $2000, %ecx; 1: xorb $0x28, 2f+2(%rip); cmp %ecx, %ecx\n"
		   "2: add $1, %bx; dec %ecx; jnz 1b; hlt");

/* An instruction on two pages: its constant on the second, and on both. */
#define ACROSS(head)                                                                                       \
	"0: xor %ebx, %ebx; mov $1000, %ecx; 1: mov %ecx, 3f(%rip); .byte 0xe9; .long 2f - . - 4\n"        \
	".skip 4096 - " head " - (. - 0b); 2: .byte 0x81, 0xc3; 3: .long 0; dec %ecx; jnz 1b; hlt"
GUEST_CODE(across_2, ACROSS("2"));
GUEST_CODE(across_4, ACROSS("4"));
/* Its second page is now this one and now that: 1000 times 1 and 1000 times 2. */
GUEST_CODE(across_remap, "xor %ebx, %ebx; mov $1000, %ecx\n"
			 "1: mov %ecx, %eax; and $1, %eax; shl $21, %eax; add $0x400083, %eax; mov %rax, 0x3008\n"
			 "mov $0x200000, %edx; invlpg (%rdx); mov $0x1ffffe, %edx; call *%rdx; call *%rdx\n"
			 "dec %ecx; jnz 1b; hlt");

static void alias(struct kvmtest *t)
{
	*(uint64_t *)(t->mem + 0x2008) = 0x3000 | 7;
}

static void sum_of(const char *name, const uint8_t *code, size_t len)
{
	struct kvmtest t = open_guest(code, len);

	struct kvm_sregs s;

	alias(&t);
	NEED(ioctl(t.vcpu, KVM_GET_SREGS, &s) == 0);
	s.cr4 |= 0x600;
	NEED(ioctl(t.vcpu, KVM_SET_SREGS, &s) == 0);
	for (int i = 0; i < 2; i++) {
		struct kvm_regs r = run(&t);

		if ((uint32_t)r.rbx != 500500)
			printf("%s: %llu\n", name, r.rbx);
		CHECK_EQ((uint32_t)r.rbx, 500500);
		memcpy(t.mem + CODE, code, len);
	}
	kvmtest_done(&t);
}

#define SUM_OF(name) sum_of(#name, name, GUEST_LEN(name))

static void test_across_remap(void)
{
	static const uint8_t head[] = { 0x81, 0xc3 }; /* add $n, %ebx; ret */
	struct kvmtest t = open_guest(across_remap, GUEST_LEN(across_remap));

	memcpy(t.mem + 0x1ffffe, head, 2);
	memcpy(t.mem + 0x400000, "\1\0\0\0\xc3", 5);
	memcpy(t.mem + 0x600000, "\2\0\0\0\xc3", 5);
	CHECK_EQ((uint32_t)run(&t).rbx, 3000);
	kvmtest_done(&t);
}

static void test_opcode(void)
{
	struct kvmtest t = open_guest(opcode, GUEST_LEN(opcode));

	CHECK_EQ(run(&t).rbx & 0xffff, 0);
	kvmtest_done(&t);
}

/* ---- the client ---------------------------------------------------------------------------------- */

/* Between two returns of KVM_RUN, as a device would by DMA: nothing of the vCPU is set. */
GUEST_CODE(dma, "xor %ebx, %ebx; mov $0x110000, %edi; mov $100, %ecx\n"
		"1: call *%rdi; call *%rdi; add %eax, %ebx; out %al, $0x10; dec %ecx; jnz 1b; hlt");
/* The same, where translated code leads straight from page to page. */
GUEST_CODE(dma_direct, "xor %ebx, %ebx; mov $100, %ecx\n"
		       "1: call 1b-15+0x10000; call 1b-15+0x10000; add %eax, %ebx; out %al, $0x10; dec %ecx; jnz 1b; hlt");

static void dma_between(const uint8_t *code, size_t len)
{
	struct kvmtest t = open_guest(code, len);
	struct kvm_regs r = { .rip = CODE, .rsp = STACK, .rflags = 2 };
	uint32_t n = 1;

	NEED(ioctl(t.vcpu, KVM_SET_REGS, &r) == 0);
	*(uint32_t *)(t.mem + FUNC + 4) = n;
	while (n < 200 && ioctl(t.vcpu, KVM_RUN, 0) == 0 && t.run->exit_reason == KVM_EXIT_IO)
		*(uint32_t *)(t.mem + FUNC + 4) = ++n;
	CHECK_EQ(t.run->exit_reason, KVM_EXIT_HLT);
	NEED(ioctl(t.vcpu, KVM_GET_REGS, &r) == 0);
	CHECK_EQ(r.rbx, 5050);
	kvmtest_done(&t);
}

/* While the vCPU runs; it takes the interrupt that says so, and must then see what was written before. */
GUEST_CODE(dma_irq, "mov $0x110000, %edi; mov $0x120000, %esi; sti\n"
		    "1: call *%rdi; mov %eax, 8(%rsi); cmpl $2, (%rsi); jb 1b; call *%rdi; mov %eax, %ebx; hlt");
GUEST_CODE(dma_handler, "incl (%rsi); iretq");

#define IDT 0x20000u

static void *write_and_interrupt(void *arg)
{
	struct kvmtest *t = arg;
	volatile uint32_t *seen = (uint32_t *)(t->mem + SHARED + 8), *taken = (uint32_t *)(t->mem + SHARED);
	struct kvm_msi msi = { .address_lo = 0xfee00000 };

	/* Twice: the first may be looked at because of KVM_RUN. (Shown to fail: no vm_note_client() in vm_ioctl().) */
	while (*seen != 1)
		usleep(100);
	for (uint32_t i = 1; i <= 2; i++) {
		*(volatile uint32_t *)(t->mem + FUNC + 4) = 76 + i;
		__atomic_thread_fence(__ATOMIC_SEQ_CST);
		msi.data = 0x30 + 0x10 * i; /* of a higher class than the first, which is still in service */
		CHECK_EQ(ioctl(t->vm, KVM_SIGNAL_MSI, &msi), 1);
		while (*taken < i)
			usleep(100);
	}
	return NULL;
}

static void enable_apic(struct kvmtest *t)
{
	struct kvm_lapic_state s;

	NEED(ioctl(t->vcpu, KVM_GET_LAPIC, &s) == 0);
	*(uint32_t *)(s.regs + 0xf0) = 0x1ff;
	NEED(ioctl(t->vcpu, KVM_SET_LAPIC, &s) == 0);
}

static void dma_with_interrupt(void)
{
	struct kvmtest t = kvmtest_vm(MEM, 1);
	struct kvm_regs r = { .rip = CODE, .rsp = STACK, .rflags = 2 };
	pthread_t thread;
	uint64_t *gate = (uint64_t *)(t.mem + IDT + 16 * 0x40);

	kvmtest_add_vcpu(&t, 0);
	kvmtest_long_mode(&t, CODE, dma_irq, GUEST_LEN(dma_irq));
	memcpy(t.mem + FUNC, func, sizeof(func));
	memcpy(t.mem + CODE + 0x1000, dma_handler, GUEST_LEN(dma_handler));
	*(uint32_t *)(t.mem + FUNC + 4) = 1;
	gate[0] = gate[0x20] = 0x1000 | 8ull << 16 | 0x8e00ull << 32 | (uint64_t)(CODE >> 16) << 48;
	kvmtest_idt(&t, IDT);
	NEED(ioctl(t.vcpu, KVM_SET_REGS, &r) == 0);
	enable_apic(&t);
	NEED(pthread_create(&thread, NULL, write_and_interrupt, &t) == 0);
	/* HLT with interrupts on waits for ever: a port tells of the end instead. */
	t.mem[CODE + GUEST_LEN(dma_irq) - 1] = 0xe6;	/* out %al, $imm8 */
	CHECK_EQ(ioctl(t.vcpu, KVM_RUN, 0), 0);
	CHECK_EQ(t.run->exit_reason, KVM_EXIT_IO);
	NEED(ioctl(t.vcpu, KVM_GET_REGS, &r) == 0);
	CHECK_EQ(r.rbx, 78);
	pthread_join(thread, NULL);
	kvmtest_done(&t);
}

/* ---- another vCPU ---------------------------------------------------------------------------------- */

/* Calls the function until it returns 100000; it must never go back. rbx: how often it did. */
GUEST_CODE(reader, "xor %ebx, %ebx; xor %edx, %edx; mov $0x110000, %edi\n"
		   "1: call *%rdi; cmp %edx, %eax; jae 2f; inc %ebx; 2: mov %eax, %edx; cmp $100000, %eax; jne 1b; hlt");
GUEST_CODE(writer, "mov $0x110000, %edi; mov $1, %eax\n"
		   "1: mov %eax, 4(%rdi); mov $20, %ecx; 2: pause; loop 2b; inc %eax; cmp $100001, %eax; jne 1b; hlt");
/* With a handshake each time, as a guest kernel does: written, told, seen. */
GUEST_CODE(asker, "mov $0x110000, %edi; mov $0x120000, %esi; mov $1, %ebp; xor %ebx, %ebx\n"
		  "1: cmp %ebp, (%rsi); jne 1b; xor %eax, %eax; cpuid; call *%rdi; mov %ebp, %ecx\n"
		  "cmp %ecx, %eax; je 2f; incl 16(%rsi); 2: mov %ebp, 8(%rsi); inc %ebp; cmp $2001, %ebp; jne 1b\n"
		  "mov 16(%rsi), %ebx; hlt");
GUEST_CODE(teller, "mov $0x110000, %edi; mov $0x120000, %esi; mov $1, %ebp\n"
		   "1: mov %ebp, 4(%rdi); mov %ebp, (%rsi); 2: pause; cmp %ebp, 8(%rsi); jne 2b\n"
		   "inc %ebp; cmp $2001, %ebp; jne 1b; hlt");
static void *run_thread(void *arg)
{
	struct kvmtest *t = arg;

	CHECK_EQ(ioctl(t->vcpu, KVM_RUN, 0), 0);
	CHECK_EQ(t->run->exit_reason, KVM_EXIT_HLT);
	return NULL;
}

static void two_vcpus(const uint8_t *code0, size_t len0, const uint8_t *code1, size_t len1)
{
	struct kvmtest t = kvmtest_vm(MEM, 0), other;
	struct kvm_regs r = { .rip = CODE, .rsp = STACK, .rflags = 2 };
	pthread_t thread;

	kvmtest_add_vcpu(&t, 0);
	kvmtest_long_mode(&t, CODE, code0, len0);
	other = t;
	kvmtest_add_vcpu(&other, 1);
	kvmtest_long_mode(&other, CODE + 0x2000, code1, len1);
	memcpy(t.mem + FUNC, func, sizeof(func));
	NEED(ioctl(t.vcpu, KVM_SET_REGS, &r) == 0);
	r.rip = CODE + 0x2000;
	r.rsp = STACK + 0x1000;
	NEED(ioctl(other.vcpu, KVM_SET_REGS, &r) == 0);
	NEED(pthread_create(&thread, NULL, run_thread, &other) == 0);
	run_thread(&t);
	pthread_join(thread, NULL);
	NEED(ioctl(t.vcpu, KVM_GET_REGS, &r) == 0);
	CHECK_EQ(r.rbx, 0);
	munmap(other.run, other.run_size);
	close(other.vcpu);
	kvmtest_done(&t);
}

static void all(void)
{
	SUM_OF(next_insn);
	SUM_OF(same_block);
	SUM_OF(same_page);
	SUM_OF(by_string);
	SUM_OF(by_bytes);
	SUM_OF(by_locked);
	SUM_OF(by_vector);
	SUM_OF(by_push);
	SUM_OF(backwards);
	SUM_OF(across_2);
	SUM_OF(across_4);
	test_across_remap();
	SUM_OF(other_page);
	SUM_OF(by_alias);
	test_opcode();
	dma_between(dma, GUEST_LEN(dma));
	dma_between(dma_direct, GUEST_LEN(dma_direct));
	dma_with_interrupt();
	two_vcpus(reader, GUEST_LEN(reader), writer, GUEST_LEN(writer));
	two_vcpus(asker, GUEST_LEN(asker), teller, GUEST_LEN(teller));
}

int main(int argc, char **argv)
{
	return both_engines(argv[0], all);
}

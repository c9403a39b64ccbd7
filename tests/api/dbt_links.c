/* SPDX-License-Identifier: MIT */
/*
 * Code in pages mapped globally, where the translator leads blocks straight to other pages: the page
 * behind a call is mapped elsewhere, or its code replaced, between two rounds of the same loop.
 * And accesses at constant distances from one register, which share a look-up, within a page and
 * across two. Both engines.
 */
#include "both.h"

#define MEM (8u << 20)
#define CODE 0x200000u		/* and the three pages after it, at HIGH */
#define HIGH 0xffffffffc0000000ull
#define PT 0x7000u
#define STACK 0x300000u
#define GLOBAL 0x103u

/* ebx += 200 times what the function at HIGH + 0x1000 adds, in rounds; change: between them, r8 rounds are left */
#define ROUNDS(name, rounds, change)                                            \
	GUEST_CODE(name,                                                        \
		   "xor %ebx, %ebx; mov $" #rounds ", %r8d\n"                   \
		   "0: mov $200, %ecx; 1: call " #name " + 0x1000; dec %ecx; jnz 1b\n" \
		   "dec %r8d; jz 2f\n" change "; jmp 0b; 2: hlt")

ROUNDS(remap, 2, "movq $0x203103, 0x7008; invlpg 0xffffffffc0001000");
ROUNDS(patch, 2, "movl $5, 0x201002");
/* The function goes on to a jump to a third page. Then that is an addition; then links between pages are undone. */
ROUNDS(unjump, 3, "cmp $2, %r8d; jne 3f; mov $0xc300000005c381, %rax; mov %rax, 0x201008; jmp 4f\n"
		  "3: invlpg 0xffffffffc0002000; 4:");

/* Flags nobody reads at 5, until cmp %eax, %eax becomes adc $0, %ebx. */
GUEST_CODE(dead_flags, "xor %ebx, %ebx; mov $2, %r8d\n"
		       "0: mov $200, %ecx; 1: stc; jmp 5f; .skip 20; 5: .byte 0x39, 0xc0, 0x90; dec %ecx; jnz 1b\n"
		       "dec %r8d; jz 2f; movb $0, 0x200002 + 5b - dead_flags; movw $0xd383, 0x200000 + 5b - dead_flags\n"
		       "jmp 0b; 2: hlt");

/* add $1, %ebx; ret */
static const uint8_t add_1[] = { 0x81, 0xc3, 1, 0, 0, 0, 0xc3 };
static const uint8_t add_3[] = { 0x81, 0xc3, 3, 0, 0, 0, 0xc3 };
/* jmp to a jmp to the next page */
static const uint8_t jump[] = { 0xeb, 6, 0, 0, 0, 0, 0, 0, 0xe9, 0xf3, 0x0f, 0, 0 };

static struct kvmtest open_guest(const uint8_t *code, size_t len)
{
	struct kvmtest t = kvmtest_vm(MEM, 0);
	struct kvm_sregs s;

	kvmtest_add_vcpu(&t, 0);
	kvmtest_long_mode(&t, CODE, code, len);
	*(uint64_t *)(t.mem + 0x1ff8) = 0x5003;
	*(uint64_t *)(t.mem + 0x5ff8) = 0x6003;
	*(uint64_t *)(t.mem + 0x6000) = PT | 3;
	for (uint64_t i = 0; i < 512; i++)
		((uint64_t *)(t.mem + PT))[i] = (CODE + i * 4096) | GLOBAL;
	NEED(ioctl(t.vcpu, KVM_GET_SREGS, &s) == 0);
	s.cr4 |= 0x80; /* PGE */
	NEED(ioctl(t.vcpu, KVM_SET_SREGS, &s) == 0);
	return t;
}

static struct kvm_regs run(struct kvmtest *t)
{
	struct kvm_regs r = { .rip = HIGH, .rsp = STACK, .rflags = 2 };

	NEED(ioctl(t->vcpu, KVM_SET_REGS, &r) == 0);
	CHECK_EQ(ioctl(t->vcpu, KVM_RUN, 0), 0);
	CHECK_EQ(t->run->exit_reason, KVM_EXIT_HLT);
	NEED(ioctl(t->vcpu, KVM_GET_REGS, &r) == 0);
	return r;
}

static void test_links(const uint8_t *code, size_t len, const uint8_t *function, size_t function_len,
		       uint64_t want)
{
	struct kvmtest t = open_guest(code, len);

	memcpy(t.mem + CODE + 0x1000, function, function_len);
	memcpy(t.mem + CODE + 0x2000, add_1, sizeof(add_1));
	memcpy(t.mem + CODE + 0x3000, add_3, sizeof(add_3));
	CHECK_EQ(run(&t).rbx, want);
	kvmtest_done(&t);
}

/* ---- shared look-ups ------------------------------------------------------------ */

#define DATA 0x280000u		/* two pages, at HIGH + 0x80000 and, backwards, from HIGH + 0x90000 on */

/* Words at -8, 0 and 8 from an address in rdi, 100 times: read, and written with the count added to those at rsi. */
GUEST_CODE(spans, "xor %ebx, %ebx; mov $100, %ecx\n"
		  "1: mov -8(%rdi), %rax; add %rcx, %rax; mov %rax, -8(%rsi); mov (%rdi), %rdx; add %rcx, %rdx\n"
		  "mov %rdx, (%rsi); mov 8(%rdi), %rbp; add %rcx, %rbp; mov %rbp, 8(%rsi); add %rax, %rbx; add %rdx, %rbx; add %rbp, %rbx; dec %ecx; jnz 1b; hlt");
/* The same with the stack: its pointer is moved by each. */
GUEST_CODE(stack, "xor %ebx, %ebx; mov $100, %ecx; lea 16(%rdi), %rsp\n"
		  "1: push %rcx; push %rbx; push $1; add 8(%rsp), %rbx; pop %rax; pop %rdx; pop %rbp\n"
		  "add %rax, %rbx; sub %rdx, %rbx; add %rbp, %rbx; dec %ecx; jnz 1b; hlt");

static uint64_t *word(struct kvmtest *t, unsigned at)
{
	/* Backwards: the page at HIGH + 0x90000 is the second, the one after it the first. */
	return (uint64_t *)(t->mem + DATA + 0x10000 + (at < 4096 ? 0x1000 + at : at - 4096));
}

static void test_spans(unsigned at)
{
	struct kvmtest t = open_guest(spans, GUEST_LEN(spans));
	uint64_t *pt = (uint64_t *)(t.mem + PT);
	struct kvm_regs r = { .rip = HIGH, .rsp = STACK, .rflags = 2,
			      .rdi = HIGH + 0x80000 + at, .rsi = HIGH + 0x90000 + at };

	pt[0x90] = (DATA + 0x11000) | GLOBAL;
	pt[0x91] = (DATA + 0x10000) | GLOBAL;
	for (unsigned i = 0; i < 3; i++)
		*(uint64_t *)(t.mem + DATA + at - 8 + 8 * i) = 100 + i;
	NEED(ioctl(t.vcpu, KVM_SET_REGS, &r) == 0);
	CHECK_EQ(ioctl(t.vcpu, KVM_RUN, 0), 0);
	CHECK_EQ(t.run->exit_reason, KVM_EXIT_HLT);
	NEED(ioctl(t.vcpu, KVM_GET_REGS, &r) == 0);
	CHECK_EQ(r.rbx, 30300 + 3 * 5050);
	for (unsigned i = 0; i < 3 && at % 8 == 0; i++)
		CHECK_EQ(*word(&t, at - 8 + 8 * i), 101 + i);

	/* The stack where the words were written. */
	memcpy(t.mem + CODE, stack, GUEST_LEN(stack));
	r = (struct kvm_regs){ .rip = HIGH, .rflags = 2, .rdi = HIGH + 0x90000 + at };
	NEED(ioctl(t.vcpu, KVM_SET_REGS, &r) == 0);
	CHECK_EQ(ioctl(t.vcpu, KVM_RUN, 0), 0);
	CHECK_EQ(t.run->exit_reason, KVM_EXIT_HLT);
	NEED(ioctl(t.vcpu, KVM_GET_REGS, &r) == 0);
	{
		uint64_t b = 0;

		for (uint64_t c = 100; c; c--)
			b = b + b + 1 - b + c;
		CHECK_EQ(r.rbx, b);
	}
	kvmtest_done(&t);
}

static void test(void)
{
	test_links(remap, GUEST_LEN(remap), add_1, sizeof(add_1), 200 * 1 + 200 * 3);
	test_links(patch, GUEST_LEN(patch), add_1, sizeof(add_1), 200 * 1 + 200 * 5);
	test_links(unjump, GUEST_LEN(unjump), jump, sizeof(jump), 200 * 1 + 400 * 5);
	test_links(dead_flags, GUEST_LEN(dead_flags), add_1, sizeof(add_1), 200);
	for (unsigned at = 0xff0; at <= 0x1008; at += 4)
		test_spans(at);
}

int main(int argc, char **argv)
{
	return both_engines(argv[0], test);
}

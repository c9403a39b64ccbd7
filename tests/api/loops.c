/* SPDX-License-Identifier: MIT */
/*
 * Loops over arrays, which share look-ups between turns: over the ends of pages that lie elsewhere in memory than their
 * neighbours, up to one that is absent, with indices that wrap. Both engines.
 */
#include "both.h"

#define CODE 0x100000u
#define STACK 0x300000u
#define IDT 0x20000u
#define HANDLER 0x30000u
#define PAGE_DIRECTORY 0x3000u
#define PAGE_TABLE 0x40000u
#define DATA 0x200000u		/* 16 pages, in memory in reversed order */
#define TARGET (DATA + 0x8000u)	/* stores */
#define ABSENT (DATA + 0x4000u)
#define MEMORY 0x400000u
#define PAGES 16u
#define MEM (8u << 20)

/* rsi: the array. rcx: turns. rdi: 0. rdx: TARGET, rsi's place in the page. rbx: the sum. */
GUEST_CODE(upwards, "1: add (%rsi), %rbx; add $8, %rsi; dec %rcx; jnz 1b; hlt");
GUEST_CODE(downwards, "lea (%rsi,%rcx,8), %rsi; 1: sub $8, %rsi; add (%rsi), %rbx; dec %rcx; jnz 1b; hlt");
GUEST_CODE(index_up, "1: add (%rsi,%rdi,8), %rbx; inc %rdi; cmp %rcx, %rdi; jne 1b; hlt");
GUEST_CODE(index_down, "1: add -8(%rsi,%rcx,8), %rbx; lea -1(%rcx), %rcx; test %rcx, %rcx; jnz 1b; hlt");
GUEST_CODE(from_minus, "lea (%rsi,%rcx,8), %rsi; sub %rcx, %rdi; 1: add (%rsi,%rdi,8), %rbx; inc %rdi; jnz 1b; hlt");
GUEST_CODE(homed, "mov %rsi, %r9; mov %rdi, %r10; mov %rcx, %r11; mov %rdi, %r8\n"
		  "1: add (%r9,%r10,8), %r8; add $1, %r10; cmp %r11, %r10; jne 1b; mov %r8, %rbx; hlt");
GUEST_CODE(one_homed, "mov %rsi, %r9; 1: add (%r9), %rbx; add $8, %r9; dec %rcx; jnz 1b; hlt");
GUEST_CODE(no_base, "shr $3, %rsi; 1: add (,%rsi,8), %rbx; inc %rsi; dec %rcx; jnz 1b; hlt");
GUEST_CODE(test_first, "1: cmp %rcx, %rdi; je 2f; add (%rsi,%rdi,8), %rbx; inc %rdi; jmp 1b; 2: hlt");
GUEST_CODE(by_fs, "lea -0x200000(%rsi), %rsi; 1: add %fs:(%rsi), %rbx; add $8, %rsi; dec %rcx; jnz 1b; hlt");
GUEST_CODE(live_flags, "1: mov (%rsi), %rax; cmp $5, %rcx; lea 8(%rsi), %rsi; mov -8(%rsi), %rdx; jb 2f\n"
		       "mov %rdx, %rax; 2: add %rax, %rbx; dec %rcx; jnz 1b; hlt");
GUEST_CODE(copies, "1: mov (%rsi,%rdi,8), %rax; mov %rax, (%rdx,%rdi,8); add (%rdx,%rdi,8), %rbx; inc %rdi\n"
		   "cmp %rcx, %rdi; jne 1b; hlt");
/* Its last turns are for another constant: it is changed when five are left. */
GUEST_CODE(changes, "movl $1, 3f+3(%rip)\n"
		    "1: add (%rsi), %rbx; add $8, %rsi; xor %eax, %eax; cmp $5, %rcx; setb %al; inc %eax; mov %eax, 3f+3(%rip)\n"
		    "3: .byte 0x48, 0x69, 0xdb; .long 1; dec %rcx; jnz 1b; hlt");
/* Registers that wrap as 8, 16 and 32 bits. */
GUEST_CODE(wraps_8, "mov $250, %edi; 1: add (%rsi,%rdi,8), %rbx; inc %dil; dec %rcx; jnz 1b; hlt");
GUEST_CODE(wraps_32, "mov $-2, %edi; shl $3, %rdi; sub %rdi, %rsi; shr $3, %rdi\n"
		     "1: add (%rsi,%rdi,8), %rbx; inc %edi; dec %rcx; jnz 1b; hlt");
GUEST_CODE(stores, "1: mov %rcx, (%rsi); add $8, %rsi; inc %rbx; dec %rcx; jnz 1b; hlt");

static uint8_t *at(struct kvmtest *t, uint64_t va)
{
	unsigned page = (va - DATA) >> 12;

	return t->mem + MEMORY + (PAGES - 1 - page) * 0x1000 + (va & 0xfff);
}

static uint64_t word(uint64_t va)
{
	return (va - DATA) * 0x123456789abcdull + 7;
}

static struct kvmtest open_guest(const uint8_t *code, size_t len)
{
	struct kvmtest t = kvmtest_vm(MEM, 0);
	uint64_t *table = (uint64_t *)(t.mem + PAGE_TABLE);
	struct kvm_sregs s;

	kvmtest_add_vcpu(&t, 0);
	kvmtest_long_mode(&t, CODE, code, len);
	((uint64_t *)(t.mem + PAGE_DIRECTORY))[DATA >> 21] = PAGE_TABLE | 7;
	for (unsigned i = 0; i < 512; i++)
		table[i] = i < PAGES ? (MEMORY + (PAGES - 1 - i) * 0x1000) | 7 : (DATA + i * 0x1000) | 7;
	table[(STACK - DATA) >> 12] = STACK | 7;
	table[(ABSENT - DATA) >> 12] = 0;
	kvmtest_gate(&t, IDT, 14, HANDLER);
	t.mem[HANDLER] = 0xf4;
	for (uint64_t va = DATA; va < DATA + PAGES * 0x1000; va += 8)
		*(uint64_t *)at(&t, va) = word(va);
	NEED(ioctl(t.vcpu, KVM_GET_SREGS, &s) == 0);
	s.idt.base = IDT;
	s.idt.limit = 0xfff;
	s.fs.base = DATA;
	NEED(ioctl(t.vcpu, KVM_SET_SREGS, &s) == 0);
	return t;
}

static struct kvm_regs run(struct kvmtest *t, uint64_t from, unsigned n)
{
	struct kvm_regs r = { .rip = CODE, .rsp = STACK, .rflags = 2, .rsi = from, .rcx = n,
			      .rdx = TARGET + (from & 0xfff) };

	NEED(ioctl(t->vcpu, KVM_SET_REGS, &r) == 0);
	CHECK_EQ(ioctl(t->vcpu, KVM_RUN, 0), 0);
	CHECK_EQ(t->run->exit_reason, KVM_EXIT_HLT);
	NEED(ioctl(t->vcpu, KVM_GET_REGS, &r) == 0);
	return r;
}

static uint64_t sum(uint64_t from, unsigned n)
{
	uint64_t s = 0;

	while (n--)
		s += word(from + 8 * n);
	return s;
}

#define FROM(k) (DATA + 0x1000 - 8 * (k))

static void sums(const uint8_t *code, size_t len)
{
	struct kvmtest t = open_guest(code, len);

	for (unsigned k = 0; k < 10; k++)
		for (unsigned n = 1; n < 14; n++)
			CHECK_EQ(run(&t, FROM(k), n).rbx, sum(FROM(k), n));
	CHECK_EQ(run(&t, DATA, 0x700).rbx, sum(DATA, 0x700));
	kvmtest_done(&t);
}
#define SUMS(code) sums(code, GUEST_LEN(code))

static void test_copies(void)
{
	struct kvmtest t = open_guest(copies, GUEST_LEN(copies));

	for (unsigned k = 0; k < 10; k++) {
		CHECK_EQ(run(&t, FROM(k), 13).rbx, sum(FROM(k), 13));
		for (unsigned i = 0; i < 13; i++)
			CHECK_EQ(*(uint64_t *)at(&t, TARGET + (FROM(k) & 0xfff) + 8 * i), word(FROM(k) + 8 * i));
	}
	kvmtest_done(&t);
}

/* Words that do not lie on a multiple of 8: one crosses. */
static void test_unaligned(void)
{
	struct kvmtest t = open_guest(upwards, GUEST_LEN(upwards));

	for (unsigned k = 1; k < 10; k++) {
		uint64_t s = 0;

		for (unsigned i = 0; i < 9; i++) {
			uint8_t bytes[8];

			for (unsigned j = 0; j < 8; j++)
				bytes[j] = *at(&t, FROM(k) + 3 + 8 * i + j);
			s += *(uint64_t *)bytes;
		}
		CHECK_EQ(run(&t, FROM(k) + 3, 9).rbx, s);
	}
	kvmtest_done(&t);
}

/* Turn k + 1 finds the page absent. What the ones before have done is done, nothing else. */
static void test_absent(void)
{
	struct kvmtest t = open_guest(upwards, GUEST_LEN(upwards)), u = open_guest(stores, GUEST_LEN(stores));
	struct kvm_sregs s;
	struct kvm_regs r;

	for (unsigned k = 0; k < 10; k++) {
		uint64_t from = ABSENT - 8 * k;

		r = run(&t, from, 100);
		CHECK_EQ(r.rip, HANDLER + 1);
		CHECK_EQ(r.rcx, 100 - k);
		CHECK_EQ(r.rsi, ABSENT);
		CHECK_EQ(r.rbx, sum(from, k));
		CHECK_EQ(*(uint64_t *)(t.mem + r.rsp + 8), CODE);
		NEED(ioctl(t.vcpu, KVM_GET_SREGS, &s) == 0);
		CHECK_EQ(s.cr2, ABSENT);
		r = run(&u, from, 100);
		CHECK_EQ(r.rip, HANDLER + 1);
		CHECK_EQ(r.rbx, k);
		for (unsigned i = 0; i < k; i++)
			CHECK_EQ(*(uint64_t *)at(&u, from + 8 * i), 100 - i);
	}
	kvmtest_done(&t);
	kvmtest_done(&u);
}

static void test_wraps(void)
{
	struct kvmtest t = open_guest(wraps_8, GUEST_LEN(wraps_8)), u = open_guest(wraps_32, GUEST_LEN(wraps_32));
	struct kvm_regs r;

	CHECK_EQ(run(&t, DATA + 0x200, 20).rbx, sum(DATA + 0x200 + 250 * 8, 6) + sum(DATA + 0x200, 14));
	/* Two turns below 2^32, then the address is another, where nothing is. */
	r = run(&u, DATA + 0x200, 20);
	CHECK_EQ(r.rip, HANDLER + 1);
	CHECK_EQ(r.rbx, sum(DATA + 0x200, 2));
	CHECK_EQ(r.rcx, 18);
	kvmtest_done(&t);
	kvmtest_done(&u);
}

/* Each turn multiplies by 1, the last four by 2. */
static void test_changes(void)
{
	struct kvmtest t = open_guest(changes, GUEST_LEN(changes));

	for (unsigned n = 1; n < 14; n++) {
		uint64_t s = 0;

		for (unsigned i = 0; i < n; i++)
			s = (s + word(FROM(3) + 8 * i)) * (n - i < 5 ? 2 : 1);
		CHECK_EQ(run(&t, FROM(3), n).rbx, s);
	}
	kvmtest_done(&t);
}

static void all(void)
{
	SUMS(upwards);
	SUMS(downwards);
	SUMS(index_up);
	SUMS(index_down);
	SUMS(from_minus);
	SUMS(homed);
	SUMS(one_homed);
	SUMS(no_base);
	SUMS(test_first);
	SUMS(by_fs);
	SUMS(live_flags);
	test_copies();
	test_unaligned();
	test_absent();
	test_wraps();
	test_changes();
}

int main(int argc, char **argv)
{
	return both_engines(argv[0], all);
}

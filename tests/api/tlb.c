/* SPDX-License-Identifier: MIT */
/*
 * What the software TLB must not make slow, by the counters: two pages that share a place in it, pages that held code
 * once, code on pages that nobody stores to. And what its second level and its entries for the stack and for fixed places must not
 * remember: mappings and permissions that are gone, pages that hold code now, or whose stores are to be noticed.
 */
#include "both.h"

#define MEM (64u << 20)
#define CODE 0x100000u
#define HANDLER 0x30000u
#define IDT 0x20000u
#define STACK 0x300000u
#define TABLE 0x41000u		/* of B's 2 MiB, in small pages; its own page has nothing in common with B */
#define A 0x1000000u
#define B 0x2000000u		/* 4096 pages on: the same place */
#define OTHER 0x2100000u	/* another page for B */
#define ROUNDS 100000
#define FEW 3000

GUEST_CODE(alternate, "mov $100000, %ecx; 1: mov (%rsi), %rax; add %rax, %rbx; mov (%rdi), %rdx; add %rdx, %rbx\n"
		      "mov %rbx, 8(%rsi); mov %rbx, 8(%rdi); dec %ecx; jnz 1b; hlt");
/* Both are there and in each other's way; then something happens to B. */
#define BOTH "mov (%rsi), %rax; mov %rax, 8(%rdi); mov %rax, 8(%rsi); mov (%rdi), %rax; mov (%rsi), %rbx\n"
GUEST_CODE(remap, BOTH "mov %r8, (%r9); invlpg (%rdi); mov (%rsi), %rbx; mov (%rdi), %rbx; hlt");
GUEST_CODE(reload, BOTH "mov %r8, (%r9); mov %cr3, %rax; mov %rax, %cr3; mov (%rsi), %rbx; mov (%rdi), %rbx; hlt");
GUEST_CODE(protect, BOTH "mov %r8, (%r9); invlpg (%rdi); mov (%rsi), %rbx; mov (%rdi), %rbx; mov %rbx, (%rdi); hlt");
/* A function in B: called, changed, called, with A in between. */
GUEST_CODE(changes, "mov %rbx, 0x100(%rdi); mov %rbx, 0x100(%rsi); xor %ebx, %ebx; mov $1000, %ecx\n"
		    "1: call *%rdi; mov 0x100(%rsi), %rax; mov %rax, 0x108(%rsi); mov %ecx, 1(%rdi); add %rdx, %r10; dec %ecx; jnz 1b; hlt");
static const uint8_t function[] = { 0xba, 0, 0, 0, 0, 0xc3 };	/* mov $0, %edx; ret */
/* Stores all over the page of a function that has run. */
GUEST_CODE(reuse, "call *%rdi; mov $100000, %ecx; 1: mov %ecx, %eax; and $0x7f8, %eax; mov %rcx, 0x800(%rdi,%rax); mov %rcx, 0x10(%rdi)\n"
		  "dec %ecx; jnz 1b; call *%rdi; hlt");
/* 256 functions, a page each, that nobody has stored to; stores to 64 other pages before each call. */
GUEST_CODE(new_code, "mov $256, %ecx; 1: mov %rsi, %r10; mov $64, %eax; 2: mov %rax, (%r10); add $0x1000, %r10; dec %eax; jnz 2b\n"
		     "call *%rdi; add $0x1000, %rdi; dec %ecx; jnz 1b; hlt");

/* The stack is in B, and A in its way; then something happens to B. */
#define STACK_IN_B "lea 0x800(%rdi), %rsp; mov $100, %ecx; 1: push %rsi; mov (%rsi), %rax; mov %rax, 8(%rsi); pop %rax; dec %ecx; jnz 1b\n"
GUEST_CODE(stack_stays, "lea 0x800(%rdi), %rsp; mov $100000, %ecx; 1: push %rcx; mov (%rsi), %rax; mov %rax, 8(%rsi); pop %rdx\n"
			"add %rdx, %rbx; dec %ecx; jnz 1b; hlt");
GUEST_CODE(two_stacks, "lea 0x800(%rdi), %r10; lea 0x800(%rsi), %r11; mov $100000, %ecx\n"
		       "1: mov %r10, %rsp; push %rcx; pop %rdx; add %rdx, %rbx; mov %r11, %rsp; push %rcx; pop %rdx; dec %ecx; jnz 1b; hlt");
GUEST_CODE(stack_remap, STACK_IN_B "mov %r8, (%r9); invlpg (%rdi); push %rdi; mov 8(%rsp), %rbx; hlt");
GUEST_CODE(stack_reload, STACK_IN_B "mov %r8, (%r9); mov %cr3, %rax; mov %rax, %cr3; push %rdi; mov 8(%rsp), %rbx; hlt");
/* What a fault pushes is not on the page. */
GUEST_CODE(stack_protect, "mov %rdi, %rsp; mov $100, %ecx; 1: mov %rcx, (%rsp); mov %rcx, 8(%rsp); dec %ecx; jnz 1b\n"
			  "mov %r8, (%r9); invlpg (%rdi); mov (%rsp), %rbx; mov %rdi, (%rsp); hlt");
GUEST_CODE(stack_logged, STACK_IN_B "hlt");
GUEST_CODE(stack_read, "mov $100, %ecx; 1: mov %rdi, %rsp; pop %rax; mov 0xff4(%rsp), %rdx; add %rax, %rbx; add %rdx, %rbx; dec %ecx; jnz 1b; hlt");
/* A function in the page of the stack, changed by a push: as `changes`. */
GUEST_CODE(stack_changes, "mov $0xc300000000, %r11; lea 0x100(%rdi), %r12; mov $1000, %ecx\n"
			  "1: lea 0x800(%rdi), %rsp; mov $20, %eax; 2: push %rax; pop %rbp; dec %eax; jnz 2b; call *%r12; add %rdx, %r10\n"
			  "lea 0x109(%rdi), %rsp; mov %rcx, %rax; or %r11, %rax; push %rax; dec %ecx; jnz 1b; hlt");

/* GS is B, whose offsets have fixed entries, and A in its way; then something happens to B. */
#define FIXED_IN_B "mov $100, %ecx; 1: mov %rsi, %gs:0x7f8; mov (%rsi), %rax; mov %rax, 8(%rsi); mov %gs:0x800, %rdx; dec %ecx; jnz 1b\n"
GUEST_CODE(fixed_stays, "mov $100000, %ecx; 1: mov %rcx, %gs:0x7f8; mov (%rsi), %rax; mov %rax, 8(%rsi); mov %gs:0x7f8, %rdx\n"
			"add %rdx, %rbx; dec %ecx; jnz 1b; hlt");
GUEST_CODE(two_fixed, "mov $100000, %ecx; 1: mov %rcx, %gs:0x7f8; mov %rsi, %fs:0x7f8; add %gs:0x7f8, %rbx; mov %fs:0x7f8, %rdx\n"
		      "dec %ecx; jnz 1b; hlt");
GUEST_CODE(fixed_remap, FIXED_IN_B "mov %r8, (%r9); invlpg (%rdi); mov %rdi, %gs:0x7f8; mov %gs:0x800, %rbx; hlt");
GUEST_CODE(fixed_reload, FIXED_IN_B "mov %r8, (%r9); mov %cr3, %rax; mov %rax, %cr3; mov %rdi, %gs:0x7f8; mov %gs:0x800, %rbx; hlt");
/* B is the last of more pages than are remembered one by one. Its table is there already: what is filled drops them, too. */
GUEST_CODE(fixed_many, "mov (%r9), %rax; mov %rax, (%r9); mov $3, %ecx; 1: .set page, 200 * 4096; .rept 200; mov %gs:page + 0x800, %rax; .set page, page - 4096; .endr\n"
		       "mov %rsi, %gs:0x7f8; dec %ecx; jnz 1b; mov %r8, (%r9); mov %cr3, %rax; mov %rax, %cr3\n"
		       "mov %rdi, %gs:0x7f8; mov %gs:0x800, %rbx; hlt");
/* Stores look anew: what they find is what reads see, too. */
GUEST_CODE(fixed_found, "mov $100, %ecx; 1: mov %gs:0x800, %rax; dec %ecx; jnz 1b; mov %r8, (%r9); mov %rdi, 0x7f8(%rdi); mov %gs:0x800, %rbx; hlt");
GUEST_CODE(fixed_protect, "mov $100, %ecx; 1: mov %rcx, %gs:0; mov %gs:8, %rax; dec %ecx; jnz 1b\n"
			  "mov %r8, (%r9); invlpg (%rdi); mov %gs:0, %rbx; mov %rdi, %gs:0; hlt");
GUEST_CODE(fixed_logged, FIXED_IN_B "hlt");
GUEST_CODE(fixed_read, "mov $100, %ecx; 1: mov %gs:0, %rax; mov %gs:0xffc, %rdx; add %rax, %rbx; add %rdx, %rbx; dec %ecx; jnz 1b; hlt");
/* Not the page, but the base is another from time to time. */
GUEST_CODE(fixed_base, "mov $100, %ecx; 1: mov %gs:0, %rax; add %rax, %rbx; mov %gs:0, %rax; add %rax, %rbx; swapgs; dec %ecx; jnz 1b; hlt");
GUEST_CODE(fixed_changes, "mov $1000, %ecx; lea 0x100(%rdi), %r12; 1: mov $20, %eax; 2: mov %rax, %gs:0x7f8; mov %gs:0x7f8, %rbp; dec %eax; jnz 2b\n"
			  "call *%r12; add %rdx, %r10; mov %ecx, %gs:0x101; dec %ecx; jnz 1b; hlt");

static struct kvmtest open_guest(const uint8_t *code, size_t len)
{
	struct kvmtest t = kvmtest_vm(MEM, 0);
	uint64_t *table = (uint64_t *)(t.mem + TABLE);
	struct kvm_sregs s;

	kvmtest_add_vcpu(&t, 0);
	kvmtest_long_mode(&t, CODE, code, len);
	((uint64_t *)(t.mem + 0x3000))[B >> 21] = TABLE | 7;
	for (unsigned i = 0; i < 512; i++)
		table[i] = (B + i * 0x1000u) | 0x67;
	kvmtest_gate(&t, IDT, 14, HANDLER);
	t.mem[HANDLER] = 0xf4;
	*(uint64_t *)(t.mem + A) = 3;
	*(uint64_t *)(t.mem + B) = 5;
	*(uint64_t *)(t.mem + OTHER) = 7;
	NEED(ioctl(t.vcpu, KVM_GET_SREGS, &s) == 0);
	s.idt.base = IDT;
	s.idt.limit = 0xfff;
	s.cr0 |= 0x10000;
	s.fs.base = A;
	s.gs.base = B;
	NEED(ioctl(t.vcpu, KVM_SET_SREGS, &s) == 0);
	return t;
}

/* entry: what B's entry becomes. */
static struct kvm_regs run(struct kvmtest *t, uint64_t entry)
{
	struct kvm_regs r = { .rip = CODE, .rsp = STACK, .rflags = 2, .rsi = A, .rdi = B, .r8 = entry, .r9 = TABLE };

	NEED(ioctl(t->vcpu, KVM_SET_REGS, &r) == 0);
	CHECK_EQ(ioctl(t->vcpu, KVM_RUN, 0), 0);
	CHECK_EQ(t->run->exit_reason, KVM_EXIT_HLT);
	NEED(ioctl(t->vcpu, KVM_GET_REGS, &r) == 0);
	return r;
}
#define OPEN(code) open_guest(code, GUEST_LEN(code))

/* Tests of the engines make look-ups fail on purpose. */
static bool counters_tell(void)
{
	return kvmtest_softkvm() && !getenv("SOFTKVM_TLB");
}

static void test_alternate(void)
{
	struct kvmtest t = OPEN(alternate);
	long long walks = kvmtest_stat(t.vcpu, "tlb_misses"), calls = kvmtest_stat(t.vcpu, "dbt_slow_calls");

	CHECK_EQ(run(&t, 0).rbx, 8 * ROUNDS);
	CHECK_EQ(*(uint64_t *)(t.mem + B + 8), 8 * ROUNDS);
	if (counters_tell()) {
		CHECK(kvmtest_stat(t.vcpu, "tlb_misses") - walks < FEW);
		CHECK(kvmtest_stat(t.vcpu, "dbt_slow_calls") - calls < FEW);
	}
	kvmtest_done(&t);
}

/* Twice: the second time there is a translation. */
static void test_gone(void)
{
	struct kvmtest t = OPEN(remap);

	for (unsigned i = 0; i < 2; i++) {
		((uint64_t *)(t.mem + TABLE))[0] = B | 0x67;
		CHECK_EQ(run(&t, OTHER | 0x67).rbx, 7);
	}
	kvmtest_done(&t);
	t = OPEN(reload);
	for (unsigned i = 0; i < 2; i++) {
		((uint64_t *)(t.mem + TABLE))[0] = B | 0x67;
		CHECK_EQ(run(&t, OTHER | 0x67).rbx, 7);
	}
	kvmtest_done(&t);
	t = OPEN(protect);
	for (unsigned i = 0; i < 2; i++) {
		((uint64_t *)(t.mem + TABLE))[0] = B | 0x67;
		CHECK_EQ(run(&t, B | 0x65).rip, HANDLER + 1);
	}
	kvmtest_done(&t);
}

static void test_changes(void)
{
	struct kvmtest t = OPEN(changes);

	memcpy(t.mem + B, function, sizeof(function));
	/* The first call returns 0, the others the number before. */
	CHECK_EQ(run(&t, 0).r10, 1000 * 1001 / 2 - 1);
	kvmtest_done(&t);
}

static void test_reuse(bool stepped, bool smp)
{
	static const uint8_t two[] = { 0x90, 0xc3 };
	struct kvm_guest_debug step = { .control = KVM_GUESTDBG_ENABLE | KVM_GUESTDBG_SINGLESTEP };
	struct kvm_regs r = { .rip = B, .rsp = STACK, .rflags = 2 };
	struct kvmtest t = OPEN(reuse);
	int other = smp ? ioctl(t.vm, KVM_CREATE_VCPU, 1) : -1;
	long long walks;

	memcpy(t.mem + B, two, sizeof(two));
	if (stepped) { /* by the interpreter, whatever the engine is */
		NEED(ioctl(t.vcpu, KVM_SET_GUEST_DEBUG, &step) == 0);
		NEED(ioctl(t.vcpu, KVM_SET_REGS, &r) == 0);
		CHECK_EQ(ioctl(t.vcpu, KVM_RUN, 0), 0);
		CHECK_EQ(t.run->exit_reason, KVM_EXIT_DEBUG);
		step.control = 0;
		NEED(ioctl(t.vcpu, KVM_SET_GUEST_DEBUG, &step) == 0);
	}
	walks = kvmtest_stat(t.vcpu, "tlb_misses");
	run(&t, 0);
	if (counters_tell())
		CHECK(kvmtest_stat(t.vcpu, "tlb_misses") - walks < FEW);
	if (smp)
		close(other);
	kvmtest_done(&t);
}

static void test_new_code(void)
{
	struct kvmtest t = OPEN(new_code);
	long long walks = kvmtest_stat(t.vcpu, "tlb_misses");

	for (unsigned i = 0; i < 256; i++)
		t.mem[B + i * 0x1000] = 0xc3;
	run(&t, 0);
	if (counters_tell())
		CHECK(kvmtest_stat(t.vcpu, "tlb_misses") - walks < FEW);
	kvmtest_done(&t);
}

/* Neither what is in the way of the page that has an entry of its own costs a call, nor another page that wants that entry. */
static void check_stays(struct kvmtest one, struct kvmtest two)
{
	long long calls = kvmtest_stat(one.vcpu, "dbt_slow_calls"), refills = kvmtest_stat(one.vcpu, "dbt_refills");

	CHECK_EQ(run(&one, 0).rbx, ROUNDS * (ROUNDS + 1ull) / 2);
	if (counters_tell()) {
		CHECK(kvmtest_stat(one.vcpu, "dbt_slow_calls") - calls < FEW);
		CHECK(kvmtest_stat(one.vcpu, "dbt_refills") - refills < FEW);
	}
	kvmtest_done(&one);
	calls = kvmtest_stat(two.vcpu, "dbt_slow_calls");
	CHECK_EQ(run(&two, 0).rbx, ROUNDS * (ROUNDS + 1ull) / 2);
	if (counters_tell())
		CHECK(kvmtest_stat(two.vcpu, "dbt_slow_calls") - calls < FEW);
	kvmtest_done(&two);
}

/* What is stored afterwards is in the other page, and what was there is read. */
static void check_page_moves(struct kvmtest t)
{
	*(uint64_t *)(t.mem + OTHER + 0x800) = 11;
	for (unsigned i = 0; i < 2; i++) {
		*(uint64_t *)(t.mem + OTHER + 0x7f8) = 0;
		((uint64_t *)(t.mem + TABLE))[0] = B | 0x67;
		CHECK_EQ(run(&t, OTHER | 0x67).rbx, 11);
		CHECK_EQ(*(uint64_t *)(t.mem + B + 0x7f8), A);
		CHECK_EQ(*(uint64_t *)(t.mem + OTHER + 0x7f8), B);
	}
	kvmtest_done(&t);
}

/* The page may not be stored to any more, and holds a function that changes. */
static void check_protected(struct kvmtest t)
{
	for (unsigned i = 0; i < 2; i++) {
		struct kvm_regs r;

		((uint64_t *)(t.mem + TABLE))[0] = B | 0x67;
		r = run(&t, B | 0x65);
		CHECK_EQ(r.rip, HANDLER + 1);
		CHECK_EQ(r.rbx, 1);
		CHECK_EQ(*(uint64_t *)(t.mem + B), 1);
	}
	kvmtest_done(&t);
}

/* It was read-only, and is another one. */
static void check_found(struct kvmtest t)
{
	*(uint64_t *)(t.mem + OTHER + 0x800) = 11;
	for (unsigned i = 0; i < 2; i++) {
		((uint64_t *)(t.mem + TABLE))[0] = B | 0x65;
		CHECK_EQ(run(&t, OTHER | 0x67).rbx, 11);
		CHECK_EQ(*(uint64_t *)(t.mem + OTHER + 0x7f8), B);
	}
	kvmtest_done(&t);
}

static void check_code_changes(struct kvmtest t)
{
	memcpy(t.mem + B + 0x100, function, sizeof(function));
	CHECK_EQ(run(&t, 0).r10, 1000 * 1001 / 2 - 1);
	kvmtest_done(&t);
}

static void test_fixed_gone(void)
{
	check_page_moves(OPEN(fixed_remap));
	check_page_moves(OPEN(fixed_reload));
	check_page_moves(OPEN(fixed_many));
	check_found(OPEN(fixed_found));
	check_protected(OPEN(fixed_protect));
	check_code_changes(OPEN(fixed_changes));
}

static void test_fixed_base(void)
{
	struct kvmtest t = OPEN(fixed_base);

	kvmtest_set_msr(&t, 0xc0000102, A);
	CHECK_EQ(run(&t, 0).rbx, 100 * (3 + 5));
	kvmtest_done(&t);
}

static void test_stack_gone(void)
{
	check_page_moves(OPEN(stack_remap));
	check_page_moves(OPEN(stack_reload));
	check_protected(OPEN(stack_protect));
	check_code_changes(OPEN(stack_changes));
}

/* A page that cannot be stored to, and a word on that and the next one. */
static void check_read_only(struct kvmtest t)
{
	((uint64_t *)(t.mem + TABLE))[0] = B | 0x65;
	*(uint64_t *)(t.mem + B + 0xffc) = 9;
	for (unsigned i = 0; i < 2; i++)
		CHECK_EQ(run(&t, 0).rbx, 100 * (5 + 9));
	kvmtest_done(&t);
}

/* Each run stores to the pages of A and B. */
static void check_logged(struct kvmtest t)
{
	static uint64_t bitmap[MEM / 4096 / 64];
	struct kvm_userspace_memory_region region = { .flags = KVM_MEM_LOG_DIRTY_PAGES, .memory_size = MEM, .userspace_addr = (uintptr_t)t.mem };
	struct kvm_dirty_log log = { .dirty_bitmap = bitmap };

	run(&t, 0);
	NEED(ioctl(t.vm, KVM_SET_USER_MEMORY_REGION, &region) == 0);
	for (unsigned i = 0; i < 3; i++) {
		run(&t, 0);
		CHECK_EQ(ioctl(t.vm, KVM_GET_DIRTY_LOG, &log), 0);
		CHECK(bitmap[B / 4096 / 64] & 1ull << B / 4096 % 64);
		CHECK(bitmap[A / 4096 / 64] & 1ull << A / 4096 % 64);
		CHECK(!(bitmap[OTHER / 4096 / 64] & 1ull << OTHER / 4096 % 64));
	}
	kvmtest_done(&t);
}

static void test(void)
{
	check_stays(OPEN(stack_stays), OPEN(two_stacks));
	test_stack_gone();
	check_stays(OPEN(fixed_stays), OPEN(two_fixed));
	test_fixed_gone();
	test_fixed_base();
	check_read_only(OPEN(stack_read));
	check_read_only(OPEN(fixed_read));
	check_logged(OPEN(stack_logged));
	check_logged(OPEN(fixed_logged));
	test_alternate();
	test_new_code();
	test_gone();
	test_changes();
	for (unsigned i = 0; i < 4; i++)
		test_reuse(i & 1, i & 2);
}

int main(int argc, char **argv)
{
	return both_engines(argv[0], test);
}

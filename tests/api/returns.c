/* SPDX-License-Identifier: MIT */
/*
 * Ways between pages: returns that go elsewhere than the call has left them to, and jumps and calls to a page that is mapped
 * elsewhere now, or differently for somebody else. In the kernel, in user code above 4 GiB and below, and in a kernel's global pages.
 * A program is six pages, all of it relative to itself. Both engines.
 *
 * (Shown to fail: entries for returns that outlive mappings, test_remap(); none for 0, test_zero(); returns that never look at requests,
 * test_forever(); links whose key names no page, or that are stamped for another target, test_neighbours(); KVM_RUN that
 * has no pages looked at again, test_code().)
 */
#include <pthread.h>
#include <signal.h>

#define TABLES 0x200000u
#define TABLES_END 0x800000u

#include "both.h"
#include "generate.h"
#include "rings.h"

#define PROGRAM 0x100000u
#define VARIANTS 0x120000u	/* of the program's pages, PAGES each */
#define ZERO 0x1f0000u		/* what is mapped at address 0 */
#define LIST 0xa00000u
#define LIST_SIZE 0x100000u
#define STACK 0xc00000u
#define STACK_SIZE 0x10000u
#define LIST_VA 0x200000000000ull
#define STACK_VA 0x300000000000ull
#define ALIAS_VA 0x400000000000ull	/* of VARIANTS */
#define ABSENT_VA 0x500000000000ull
#define NX_VA 0x600000000000ull
#define TOP (STACK_VA + STACK_SIZE - 64)

#define PAGES 6u
#define NX (1ull << 63)
#define NO_FLUSH (1ull << 63)

enum { BP = 3, GP = 13, PF = 14 };

static const struct place {
	const char *name;
	uint64_t base;
	unsigned cpl;
	unsigned flags;		/* of PTEs */
} places[] = {
	{ "kernel, low", 0x400000, 0, 7 },
	{ "user, high", 0x555555554000, 3, 7 },
	{ "user, low", 0x400000, 3, 7 },
	{ "kernel, global", 0xffffffffc0000000, 0, 0x103 },
};
#define GLOBAL_PLACE 3

/* ---- the guest's kernel -------------------------------------------------------------------------- */

/*
 * A frame with the vector below it on STACK0. 0x40: rdx PTE, rax its value, rdi the page. 0x41: rax CR3. 0x42: like 0x40 by INVPCID: rdi has
 * the PCID in its low byte, the type in the next.
 */
GUEST_CODE(kernel,
	"remap_service: mov %rax, (%rdx); invlpg (%rdi); iretq\n"
	"cr3_service: mov %rax, %cr3; iretq\n"
	"invpcid_service: mov %rax, (%rdx); mov %rdi, %rax; and $-0x1000, %rax; push %rax; movzbl %dil, %eax; push %rax\n"
	"mov %rdi, %rax; shr $8, %eax; and $3, %eax; invpcid (%rsp), %rax; add $16, %rsp; iretq\n"
	".balign 16\n"
	"vectors: .set vector, 0\n"
	".rept 32\n"
	".balign 16\n"
	".if vector != 8 && (vector < 10 || vector > 14) && vector != 17\n push $0\n .endif\n"
	"push $vector; hlt\n"
	".set vector, vector + 1\n"
	".endr");
extern const uint8_t vectors[], remap_service[], cr3_service[], invpcid_service[];

/* ---- the program ----------------------------------------------------------------------------------- */

#define HASH_IMM(name) "imul $31, %rbx; .byte 0x48, 0x81, 0xc3; " name ": .long 0\n"	/* add $imm, %rbx */
#define ADD_IMM(name) ".byte 0x48, 0x81, 0xc3; " name ": .long 0\n"
#define HASH(n) "imul $31, %rbx; add $" #n ", %rbx\n"
#define HASH_HERE(label) label ": imul $31, %rbx; lea " label "(%rip), %r9; add %r9, %rbx\n"
#define NEXT_TURN(label) "dec %ecx; jnz " label "; int3\n"

GUEST_CODE(code,
	/* ---- page A ---- */
	"e_rec: 1: mov %edx, %ecx; call rec; dec %esi; jnz 1b; int3\n"
	"rec: add %rcx, %rbx; dec %ecx; jz 1f; call rec; add $3, %rbx; 1: ret\n"
	"e_rec2: 1: mov %edx, %ecx; call rec_a; dec %esi; jnz 1b; int3\n"
	"rec_a: add %rcx, %rbx; dec %ecx; jz 1f; call rec_b; add $3, %rbx; 1: ret\n"
	/* r1 or r2, by turns. */
	"e_swap: 1: call f_swap; r1:" HASH(1) "jmp 2f; r2:" HASH(2) "2:" NEXT_TURN("1b")
	"f_swap: test $1, %cl; jz 1f; addq $r2-r1, (%rsp); 1: ret\n"
	"e_swap_b: 1: call f_swap_b; r3:" HASH(1) "r5: " NEXT_TURN("1b")
	"e_imm: 1: push %rcx; push %rdi; call f_imm; add %rax, %rbx; sub $2048, %rsp; call f_imm_b; inc %rbx; " NEXT_TURN("1b")
	"f_imm: mov 8(%rsp), %rax; add 16(%rsp), %rax; ret $16\n"
	"e_push: 1: lea 2f(%rip), %rax; push %rax; ret; ud2; 2:" HASH(3) "lea push_b(%rip), %rax; push %rax; ret; ud2\n"
	"push_back:" HASH(5) NEXT_TURN("1b")
	"e_pop: 1: call 2f; 2: pop %rax; lea 2b(%rip), %rdx; sub %rdx, %rax; add %rax, %rbx; call pop_b; 3:" HASH(7) NEXT_TURN("1b")
	"e_co: 1: call yield;" HASH(1) "call yield_b;" HASH(2) NEXT_TURN("1b")
	"co_other:" HASH(3) "call yield;" HASH(4) "call yield_b; jmp co_other\n"
	"yield: xchg %rsp, %rsi; ret\n"
	/* To 0, where code goes on at rdx: nobody has called with this stack pointer, somebody has. */
	"e_zero: 1: lea 2f(%rip), %rdx; push $0; ret; ud2; 2: lea 3f(%rip), %rdx; call f_zero; ud2; 3:" NEXT_TURN("1b")
	"e_zero_cr3: 1: int $0x41; lea 2f(%rip), %rdx; push $0; ret; ud2; 2: lea 3f(%rip), %rdx; call f_zero_cr3; ud2\n"
	"3: int $0x41; push %rax; pop %rax; lea 4f(%rip), %rdx; call f_zero; ud2\n"
	"4: int $0x41; lea 5f(%rip), %rdx; xor %r8d, %r8d; jmp *%r8; ud2; 5:" NEXT_TURN("1b")
	"f_zero_cr3: int $0x41\n"
	"f_zero: movq $0, (%rsp); ret\n"
	"e_bad_push: push %rdi; bad_push: ret\n"
	"e_bad_call: call 1f; ud2; 1: mov %rdi, (%rsp); bad_call: ret\n"
	"e_bad_after: mov $9, %ecx; 1: lea 2f(%rip), %rax; cmp $1, %ecx; cmove %rdi, %rax; push %rax; bad_after: ret; ud2; 2: dec %ecx; jnz 1b; ud2\n"
	"e_bad_imm: push %rdi; call 1f; 1: pop %rax; bad_imm: ret $0x18\n"
	/*
	 * rax becomes another PTE or CR3 while the function runs, in the turns that r11 tells. At first the stack is touched, and what that
	 * has left in jump tables goes: the table of returns is all there is.
	 */
	"e_remap: push %rax; pop %rax; int $0x40; push %rdi; pop %rdi; 1: call f_remap; remap_r:" HASH_IMM("remap_imm") NEXT_TURN("1b")
	"f_remap: bt %rcx, %r11; jnc 1f; xor %r10, %rax; int $0x40; 1: ret\n"
	"e_remap_b: push %rax; pop %rax; int $0x40; push %rdi; pop %rdi; 1: call f_remap_b; remap_rb:" HASH_IMM("remap_imm_b") NEXT_TURN("1b")
	"e_cr3: push %rax; pop %rax; int $0x41; push %rdi; pop %rdi; 1: call f_cr3;" HASH_IMM("cr3_imm") NEXT_TURN("1b")
	"f_cr3: bt %rcx, %r11; jnc 1f; xor %r10, %rax; int $0x41; 1: ret\n"
	"e_cr3_b: push %rax; pop %rax; int $0x41; push %rdi; pop %rdi; 1: call f_cr3_b;" HASH_IMM("cr3_imm_b") NEXT_TURN("1b")
	"e_smc: 1: call f_smc;" ADD_IMM("smc_imm") NEXT_TURN("1b")
	"f_smc: mov %ecx, smc_imm(%rip); ret\n"
	"e_smc_b: 1: call f_smc_b;" ADD_IMM("smc_imm_b") NEXT_TURN("1b")
	"e_out: 1: call f_out;" ADD_IMM("out_imm") NEXT_TURN("1b")
	"f_out: out %al, $0x10; ret\n"
	"e_out_b: 1: call f_out_b;" ADD_IMM("out_imm_b") NEXT_TURN("1b")
	"e_dma: 1: call f_dma; jmp f_dma2; dma_back: out %al, $0x10;" NEXT_TURN("1b")
	"e_again: 1: mov %ecx, again_imm(%rip); mov $8, %eax; 2: call again; dec %eax; jnz 2b;" NEXT_TURN("1b")
	"again: jmp again_b\n"
	/* For ever. */
	"l_ja: jmp l_jb\n"
	"l_ia: cmp %eax, %eax; jz l_ib; ud2\n"
	"l_3a: jmp l_3b\n"
	"l_ca: call l_cb; jmp l_ca\n"
	"l_xa: call l_xb; jmp l_xa; l_xc: ret\n"
	"l_pa: call l_pb\n"
	"l_pc: pop %rax; jmp l_pa\n"
	"l_ra: lea l_rb(%rip), %rax; push %rax; ret\n"
	/* Some calls, and then there are but returns to where the last has come from. */
	"l_sa: call l_sb; dec %rcx; jg l_sa; sub $8, %rsp; ret\n"
	"l_oa: call l_oc; dec %rcx; jg l_oa; lea -8(%rsp), %rsp; ret; l_oc: ret\n"
	"l_na: call l_nc; dec %rcx; jg l_na; sub $8, %rsp; jmp l_nb; l_nc: ret\n"
	/* Jobs of a list. */
	".balign 16\n"
	"v_jmp: jmp v_b1\n"
	"v_jcc: cmp %eax, %eax; jz v_b1; ud2\n"
	"v_call: call v_b2;" HASH_HERE("v_called") "ret\n"
	"v_chain: jmp v_b3\n"
	"v_twice: call v_b1; call v_b2; jmp v_b1\n"
	/* ---- page B ---- */
	".org code + 0x1000, 0xcc\n"
	"rec_b: add %rcx, %rbx; dec %ecx; jz 1f; call rec_a; add $5, %rbx; 1: ret\n"
	"f_swap_b: test $1, %cl; jz 1f; addq $r4-r3, (%rsp); 1: ret\n"
	"f_imm_b: ret $2048\n"
	"push_b:" HASH(4) "lea push_back(%rip), %rax; push %rax; ret; ud2\n"
	"pop_b: pop %rax;" HASH(6) "jmp *%rax\n"
	"yield_b: xchg %rsp, %rsi; ret\n"
	"f_remap_b: bt %rcx, %r11; jnc 1f; xor %r10, %rax; int $0x40; 1: ret\n"
	"f_cr3_b: bt %rcx, %r11; jnc 1f; xor %r10, %rax; int $0x41; 1: ret\n"
	"f_smc_b: mov %ecx, smc_imm_b(%rip); ret\n"
	"f_out_b: out %al, $0x10; ret\n"
	"f_dma:" ADD_IMM("dma_imm") "ret; f_dma2:" ADD_IMM("dma_imm2") "jmp dma_back\n"
	"again_b:" ADD_IMM("again_imm") "ret\n"
	"l_jb: jmp l_ja\n"
	"l_ib: cmp %eax, %eax; jz l_ia; ud2\n"
	"l_3b: jmp l_3c\n"
	"l_cb: ret\n"
	"l_xb: call l_xc; ret\n"
	"l_pb: pop %rax; call l_pc\n"
	"l_rb: lea l_ra(%rip), %rax; push %rax; ret\n"
	"l_sb: ret\n"
	"l_nb: ret\n"
	".balign 16\n"
	"v_b1:" HASH_IMM("b1_imm") HASH_HERE("b1_here") "ret\n"
	"v_b2:" HASH_IMM("b2_imm") HASH_HERE("b2_here") "jmp v_c2\n"
	"v_b3:" HASH_IMM("b3_imm") "call v_c3; jmp v_c2\n"
	/* ---- page C ---- */
	".org code + 0x2000, 0xcc\n"
	"r4:" HASH(2) "jmp r5\n"
	"l_3c: jmp l_3a\n"
	"v_c2:" HASH_HERE("c2_here") "call v_d1; cmp %eax, %eax; jz v_d1; ud2\n"
	"v_c3:" HASH_HERE("c3_here") "jmp v_b1\n"
	/* ---- page D ---- */
	".org code + 0x3000, 0xcc\n"
	"v_d1:" HASH_IMM("d1_imm") "ret\n"
	/* ---- page E: what works through a list: function, rax, rdx, rdi ---- */
	".org code + 0x4000, 0xcc\n"
	"e_list: 1: mov (%rsi), %r11; mov 8(%rsi), %rax; mov 16(%rsi), %rdx; mov 24(%rsi), %rdi; add $32, %rsi; call *%r11;" NEXT_TURN("1b")
	"op_cr3: int $0x41; ret\n"
	"op_remap: int $0x40; ret\n"
	"op_invpcid: int $0x42; ret\n"
	"op_out: out %al, $0x10; ret\n"
	"op_poke: mov %eax, (%rdx); ret\n"
	".org code + 0x6000, 0xcc\n");

GUEST_CODE(zero, "add $7, %rbx; jmp *%rdx");

#define LABEL(x) extern const uint8_t x[]
LABEL(e_rec); LABEL(e_rec2); LABEL(e_swap); LABEL(e_swap_b); LABEL(e_imm); LABEL(e_push); LABEL(e_pop); LABEL(e_co); LABEL(co_other);
LABEL(e_zero); LABEL(e_zero_cr3); LABEL(e_bad_push); LABEL(bad_push); LABEL(e_bad_call); LABEL(bad_call); LABEL(e_bad_after);
LABEL(bad_after); LABEL(e_bad_imm); LABEL(bad_imm); LABEL(e_remap); LABEL(remap_imm); LABEL(remap_r); LABEL(e_remap_b); LABEL(remap_imm_b);
LABEL(remap_rb); LABEL(e_cr3); LABEL(cr3_imm); LABEL(e_cr3_b); LABEL(cr3_imm_b); LABEL(e_smc); LABEL(e_smc_b); LABEL(e_out); LABEL(out_imm);
LABEL(e_out_b); LABEL(out_imm_b); LABEL(e_dma); LABEL(dma_imm); LABEL(dma_imm2); LABEL(e_again);
LABEL(l_ja); LABEL(l_jb); LABEL(l_ia); LABEL(l_ib); LABEL(l_3a); LABEL(l_3b); LABEL(l_3c); LABEL(l_ca); LABEL(l_cb); LABEL(l_xa); LABEL(l_pa);
LABEL(l_ra); LABEL(l_rb); LABEL(l_sa); LABEL(l_oa); LABEL(l_na);
LABEL(v_jmp); LABEL(v_jcc); LABEL(v_call); LABEL(v_called); LABEL(v_chain); LABEL(v_twice); LABEL(b1_imm); LABEL(b1_here); LABEL(b2_imm);
LABEL(b2_here); LABEL(b3_imm); LABEL(c2_here); LABEL(c3_here); LABEL(d1_imm);
LABEL(e_list); LABEL(op_cr3); LABEL(op_remap); LABEL(op_invpcid); LABEL(op_out); LABEL(op_poke);

static uint64_t off(const uint8_t *label)
{
	return label - code;
}

/* ---- the guest ---------------------------------------------------------------------------------------- */

static const struct place *here;
static const char *what = "";

/* Checks name the place. */
static void equal(int line, const char *expr, uint64_t got, uint64_t want)
{
	if (got == want) {
		kvmtest_passed++;
		return;
	}
	kvmtest_failed++;
	printf("%s:%d: FAIL (%s, %s): %s is 0x%llx, not 0x%llx\n", __FILE__, line, here->name, what, expr, (unsigned long long)got,
	       (unsigned long long)want);
}
#define EQUAL(a, b) equal(__LINE__, #a, a, b)

static uint64_t va(const uint8_t *label)
{
	return here->base + off(label);
}

/* The guest-physical address of a PTE. */
static uint64_t pte_at(struct kvmtest *t, uint64_t cr3, uint64_t at)
{
	return (uint8_t *)rings_entry(t, cr3, at, 12) - t->mem;
}

/* With all but the program. */
static uint64_t new_cr3(struct kvmtest *t)
{
	uint64_t cr3 = rings_root(t);

	rings_map(t, cr3, LIST_VA, LIST, LIST_SIZE, 7);
	rings_map(t, cr3, STACK_VA, STACK, STACK_SIZE, 7);
	rings_map(t, cr3, ALIAS_VA, VARIANTS, ZERO - VARIANTS, 7);
	rings_map(t, cr3, NX_VA, PROGRAM, 0x1000, NX | 7);
	return cr3;
}

static uint64_t program_cr3(struct kvmtest *t)
{
	uint64_t cr3 = new_cr3(t);

	rings_map(t, cr3, here->base, PROGRAM, PAGES * 0x1000, here->flags);
	return cr3;
}

/* On stack 1. */
static void gate(struct kvmtest *t, unsigned vector, const uint8_t *to)
{
	rings_gate(t, vector, KBASE + KERNEL + (to - kernel), 3, 1);
}

static struct kvmtest open_guest(void)
{
	struct kvmtest t = kvmtest_vm(MEM, 0);

	NEED(GUEST_LEN(code) == PAGES * 0x1000);
	tables_used = 0;
	kvmtest_add_vcpu(&t, 0);
	kvmtest_set_cpuid(&t);
	rings_descriptors(&t);
	*(uint64_t *)(t.mem + TSS + 36) = KBASE + STACK0; /* IST1 */
	memcpy(t.mem + KERNEL, kernel, GUEST_LEN(kernel));
	for (unsigned v = 0; v < 32; v++)
		gate(&t, v, vectors + 16 * v);
	gate(&t, 0x40, remap_service);
	gate(&t, 0x41, cr3_service);
	gate(&t, 0x42, invpcid_service);
	memcpy(t.mem + PROGRAM, code, PAGES * 0x1000);
	memcpy(t.mem + ZERO, zero, GUEST_LEN(zero));
	return t;
}

static void set_state(struct kvmtest *t, uint64_t cr3)
{
	struct kvm_sregs s;

	NEED(ioctl(t->vcpu, KVM_GET_SREGS, &s) == 0);
	rings_sregs(&s, here->cpl, cr3);
	s.idt.limit = 0x43 * 16 - 1;
	s.cr0 = 0x80010033;
	s.cr4 = 0x6a0 | (cr3 & 0xfff ? 0x20000 : 0);
	NEED(ioctl(t->vcpu, KVM_SET_SREGS, &s) == 0);
}

struct frame {
	uint64_t vector, error, rip, cs, flags, rsp, ss;
};

static struct kvm_regs begin(const uint8_t *at)
{
	return (struct kvm_regs){ .rip = va(at), .rsp = TOP, .rflags = 0x3002, .rcx = 1000 };
}

/* What op_out asks for: to be stored at ALIAS_VA and on. */
static void client_store(struct kvmtest *t, const struct kvm_regs *r)
{
	uint32_t value = r->rax;

	memcpy(t->mem + VARIANTS + (r->rdx - ALIAS_VA), &value, 4);
}

/* To an exception. */
static const struct frame *go_on(struct kvmtest *t, struct kvm_regs *r)
{
	int ret;

	/* The last kick may come late. */
	while ((ret = ioctl(t->vcpu, KVM_RUN, 0)) ? errno == EINTR : t->run->exit_reason == KVM_EXIT_IO) {
		NEED(ioctl(t->vcpu, KVM_GET_REGS, r) == 0);
		if (!ret)
			client_store(t, r);
	}
	EQUAL(ret, 0);
	EQUAL(t->run->exit_reason, KVM_EXIT_HLT);
	NEED(ioctl(t->vcpu, KVM_GET_REGS, r) == 0);
	return (const struct frame *)(t->mem + STACK0 - sizeof(struct frame));
}

static const struct frame *run(struct kvmtest *t, uint64_t cr3, struct kvm_regs *r)
{
	set_state(t, cr3);
	NEED(ioctl(t->vcpu, KVM_SET_REGS, r) == 0);
	return go_on(t, r);
}

/* As it should end. */
static void run_to_int3(struct kvmtest *t, uint64_t cr3, struct kvm_regs *r)
{
	uint64_t rsp = r->rsp;
	const struct frame *f = run(t, cr3, r);

	EQUAL(f->vector, BP);
	EQUAL(f->rsp, rsp);
}

static uint64_t rbx_of(const uint8_t *entry, struct kvm_regs r)
{
	struct kvmtest t = open_guest();
	uint64_t cr3 = program_cr3(&t);

	r.rip = va(entry);
	run_to_int3(&t, cr3, &r);
	kvmtest_done(&t);
	return r.rbx;
}

/* ---- 1, 2: calls and returns ---------------------------------------------------------------------------- */

static void test_recursion(void)
{
	struct kvm_regs r = begin(e_rec);

	what = "recursion";
	r.rdx = 1000;
	r.rsi = 20;
	EQUAL(rbx_of(e_rec, r), 20 * (500500 + 999 * 3));
	EQUAL(rbx_of(e_rec2, r), 20 * (500500 + 500 * 3 + 499 * 5));
}

/* a and b by turns, a first. */
static uint64_t hashes(unsigned n, uint64_t a, uint64_t b)
{
	uint64_t h = 0;

	for (unsigned i = 0; i < n; i++)
		h = h * 31 + (i % 2 ? b : a);
	return h;
}

static uint64_t hash_list(unsigned turns, const uint8_t *values, unsigned n)
{
	uint64_t h = 0;

	while (turns--)
		for (unsigned i = 0; i < n; i++)
			h = h * 31 + values[i];
	return h;
}

static void test_changed(void)
{
	struct kvm_regs r = begin(e_swap);

	what = "return address replaced";
	r.rcx = 100000;
	EQUAL(rbx_of(e_swap, r), hashes(100000, 1, 2));
	/* r4 goes on to r5, where no 1 is. */
	EQUAL(rbx_of(e_swap_b, r), hashes(100000, 1, 2));
	what = "ret imm16";
	r.rcx = 10000;
	r.rdi = 7;
	EQUAL(rbx_of(e_imm, r), 10000ull * 10001 / 2 + 8 * 10000);
	what = "push, ret";
	EQUAL(rbx_of(e_push, r), hash_list(10000, (const uint8_t[]){ 3, 4, 5 }, 3));
	what = "call, pop";
	EQUAL(rbx_of(e_pop, r), hash_list(10000, (const uint8_t[]){ 6, 7 }, 2));
}

/* Two that go on by turns, on stacks a multiple of the table's size apart, and not. */
static void test_coroutines(void)
{
	what = "stacks";
	for (unsigned apart = 2040; apart <= 4096 + 8; apart += 8) {
		struct kvmtest t;
		struct kvm_regs r = begin(e_co);
		uint64_t cr3;

		if (apart > 2056 && apart < 4088)
			continue;
		t = open_guest();
		cr3 = program_cr3(&t);
		r.rsi = TOP - 8 - apart;
		r.rcx = 10000;
		*(uint64_t *)(t.mem + STACK + (r.rsi - STACK_VA)) = va(co_other);
		run_to_int3(&t, cr3, &r);
		EQUAL(r.rbx, hash_list(10000, (const uint8_t[]){ 3, 1, 4, 2 }, 4));
		kvmtest_done(&t);
	}
}

/* ---- 3: to bad addresses ---------------------------------------------------------------------------------- */

static void test_zero(void)
{
	struct kvmtest t = open_guest();
	uint64_t cr3 = program_cr3(&t);
	struct kvm_regs r = begin(e_zero);

	what = "return to 0";
	rings_map(&t, cr3, 0, ZERO, 0x1000, 7);
	run_to_int3(&t, cr3, &r);
	EQUAL(r.rbx, 7 * 2 * 1000);
	r = begin(e_zero_cr3);
	r.rax = cr3;
	run_to_int3(&t, cr3, &r);
	EQUAL(r.rbx, 7 * 4 * 1000);
	kvmtest_done(&t);
}

static void bad_return(const uint8_t *entry, const uint8_t *ret, uint64_t to, bool canonical, bool present)
{
	struct kvmtest t = open_guest();
	uint64_t cr3 = program_cr3(&t), popped = entry == e_bad_imm ? TOP + 0x18 : TOP;
	struct kvm_regs r = begin(entry);

	r.rdi = to;
	/* Twice: the second time there are translations. */
	for (unsigned i = 0; i < 2; i++) {
		struct kvm_regs now = r;
		struct kvm_sregs s;
		const struct frame *f = run(&t, cr3, &now);

		EQUAL(f->vector, canonical ? PF : GP);
		EQUAL(f->error, canonical ? 0x10 | (here->cpl ? 4 : 0) | present : 0);
		EQUAL(f->rip, canonical ? to : va(ret));
		EQUAL(f->rsp, canonical ? popped : TOP - 8);
		NEED(ioctl(t.vcpu, KVM_GET_SREGS, &s) == 0);
		if (canonical)
			EQUAL(s.cr2, to);
	}
	kvmtest_done(&t);
}

static void test_bad(void)
{
	static const struct {
		uint64_t to;
		bool canonical, present;
	} bad[] = {
		{ 0, true, false }, { ABSENT_VA, true, false }, { ABSENT_VA + 0xfff, true, false }, { NX_VA + 8, true, true },
		{ ~0ull, true, false }, { 1ull << 47, false, false }, { ~(1ull << 47), false, false }, { 0x1234567812345678, false, false },
	};

	for (unsigned i = 0; i < sizeof(bad) / sizeof(bad[0]); i++) {
		what = "return to a bad address";
		bad_return(e_bad_push, bad_push, bad[i].to, bad[i].canonical, bad[i].present);
		bad_return(e_bad_call, bad_call, bad[i].to, bad[i].canonical, bad[i].present);
		bad_return(e_bad_after, bad_after, bad[i].to, bad[i].canonical, bad[i].present);
		bad_return(e_bad_imm, bad_imm, bad[i].to, bad[i].canonical, bad[i].present);
	}
	if (here->cpl) {
		what = "return to the kernel's";
		bad_return(e_bad_push, bad_push, KBASE + KERNEL, true, true);
		bad_return(e_bad_call, bad_call, KBASE + KERNEL, true, true);
	}
}

/* ---- 4: the page returned to is another ---------------------------------------------------------------------- */

static void poke(struct kvmtest *t, uint64_t program, const uint8_t *imm, uint32_t value)
{
	memcpy(t->mem + program + off(imm), &value, 4);
}

/* In which turns another page is mapped: not in the first ones, now and then several times in a row. */
#define TURNS_CHANGED 0x84210c3c00aa3610ull

/* What comes of 1000 turns of which each adds 1, or where the other page is mapped, 2. */
static uint64_t hash_changed(void)
{
	uint64_t h = 0;
	bool other = false;

	for (unsigned c = 1000; c; c--) {
		other ^= TURNS_CHANGED >> c % 64 & 1;
		h = h * 31 + 1 + other;
	}
	return h;
}

static void remapped(const uint8_t *entry, const uint8_t *imm, const uint8_t *ret)
{
	struct kvmtest t = open_guest();
	uint64_t cr3 = program_cr3(&t), pte = KBASE + pte_at(&t, cr3, here->base);
	struct kvm_regs r = begin(entry);
	const struct frame *f;

	what = "INVLPG of the page returned to";
	memcpy(t.mem + VARIANTS, code, 0x1000);
	poke(&t, PROGRAM, imm, 1);
	poke(&t, VARIANTS, imm, 2);
	r.rax = PROGRAM | here->flags;
	r.r10 = PROGRAM ^ VARIANTS;
	r.r11 = TURNS_CHANGED;
	r.rdx = pte;
	r.rdi = here->base;
	run_to_int3(&t, cr3, &r);
	EQUAL(r.rbx, hash_changed());
	/* Absent, after some turns. */
	if (entry == e_remap_b) {
		r = begin(entry);
		r.rax = r.r10 = PROGRAM | here->flags;
		r.r11 = TURNS_CHANGED;
		r.rdx = pte;
		r.rdi = here->base;
		f = run(&t, cr3, &r);
		EQUAL(f->vector, PF);
		EQUAL(f->rip, va(ret));
		EQUAL(f->rsp, TOP);
		EQUAL(r.rcx, 997);
	}
	kvmtest_done(&t);
}

/* mode: 0 no PCIDs, 1 with them, kept, 2 with them, not kept. */
static void reloaded(const uint8_t *entry, const uint8_t *imm, unsigned mode)
{
	struct kvmtest t = open_guest();
	uint64_t cr3 = program_cr3(&t), other = program_cr3(&t);
	struct kvm_regs r = begin(entry);

	what = mode == 1 ? "load of CR3, kept, and the page returned to" : "load of CR3 and the page returned to";
	memcpy(t.mem + VARIANTS, code, 0x1000);
	rings_map(&t, other, here->base, VARIANTS, 0x1000, here->flags);
	poke(&t, PROGRAM, imm, 1);
	poke(&t, VARIANTS, imm, 2);
	if (mode) {
		cr3 |= 1;
		other |= 2;
	}
	r.rax = cr3 | (mode == 1 ? NO_FLUSH : 0);
	r.r10 = cr3 ^ other;
	r.r11 = TURNS_CHANGED;
	run_to_int3(&t, cr3, &r);
	EQUAL(r.rbx, hash_changed());
	kvmtest_done(&t);
}

static void test_remap(void)
{
	remapped(e_remap, remap_imm, remap_r);
	remapped(e_remap_b, remap_imm_b, remap_rb);
	for (unsigned mode = 0; mode < 3 && here != &places[GLOBAL_PLACE]; mode++) {
		reloaded(e_cr3, cr3_imm, mode);
		reloaded(e_cr3_b, cr3_imm_b, mode);
	}
}

/* ---- 5, 8: code that changes ----------------------------------------------------------------------------------- */

/* An exit each turn, at which the client changes these. */
static void by_client(const uint8_t *entry, const uint8_t *imm, const uint8_t *imm2)
{
	struct kvmtest t = open_guest();
	uint64_t cr3 = program_cr3(&t), sum = 0, n = 0;
	struct kvm_regs r = begin(entry);
	bool before = entry == e_dma;

	what = "code changed by the client";
	r.rcx = 200;
	set_state(&t, cr3);
	NEED(ioctl(t.vcpu, KVM_SET_REGS, &r) == 0);
	for (; n <= 200; n++) {
		if (before || n) {
			poke(&t, PROGRAM, imm, 3 * n + 1);
			if (imm2)
				poke(&t, PROGRAM, imm2, 1000 * n);
			sum += 3 * n + 1 + (imm2 ? 1000 * n : 0);
		}
		if (ioctl(t.vcpu, KVM_RUN, 0) || t.run->exit_reason != KVM_EXIT_IO)
			break;
	}
	EQUAL(n, 200);
	if (before)
		sum -= 3 * n + 1 + 1000 * n;
	EQUAL(t.run->exit_reason, KVM_EXIT_HLT);
	NEED(ioctl(t.vcpu, KVM_GET_REGS, &r) == 0);
	EQUAL(r.rbx, sum);
	kvmtest_done(&t);
}

static void test_code(void)
{
	struct kvm_regs r = begin(e_smc);

	what = "code changed by a store";
	EQUAL(rbx_of(e_smc, r), 500500);
	EQUAL(rbx_of(e_smc_b, r), 500500);
	EQUAL(rbx_of(e_again, r), 8 * 500500);
	/* A kernel's global pages are not looked at for what the client writes there (docs/engine.md). */
	if (here == &places[GLOBAL_PLACE])
		return;
	by_client(e_out, out_imm, NULL);
	by_client(e_out_b, out_imm_b, NULL);
	by_client(e_dma, dma_imm, dma_imm2);
}

/* ---- 6: for ever -------------------------------------------------------------------------------------------------- */

static pthread_t runner;
static volatile unsigned running;	/* which KVM_RUN; 0: none */

/* A signal every 5 ms; whoever has had 2000 of them has lost its way. */
static void *kick(void *arg)
{
	unsigned last = 0, kicks = 0;

	(void)arg;
	for (;;) {
		unsigned now = running;

		usleep(5000);
		kicks = now && now == last ? kicks + 1 : 0;
		last = now;
		if (kicks == 2000) {
			printf("%s:%d: FAIL (%s, %s): KVM_RUN does not come back\n", __FILE__, __LINE__, here->name, what);
			printf("%u passed, %u failed, %u skipped\n", kvmtest_passed, kvmtest_failed + 1, kvmtest_skipped);
			fflush(stdout);
			_exit(1);
		}
		if (now)
			pthread_kill(runner, SIGUSR1);
	}
	return NULL;
}

static void on_signal(int sig)
{
	(void)sig;
}

static void run_forever(struct kvmtest *t)
{
	static unsigned runs;
	int ret;

	running = ++runs;
	ret = ioctl(t->vcpu, KVM_RUN, 0);
	running = 0;
	EQUAL(ret == -1 && errno == EINTR, true);
}

/* From here, and in the same VM from there: another order of the host's code. */
static void forever(const char *name, const uint8_t *from, const uint8_t *then)
{
	struct kvmtest t = open_guest();
	uint64_t cr3 = program_cr3(&t);
	struct kvm_regs r;

	what = name;
	for (unsigned i = 0; i < 3; i++) {
		r = begin(i == 1 ? then : from);
		set_state(&t, cr3);
		NEED(ioctl(t.vcpu, KVM_SET_REGS, &r) == 0);
		run_forever(&t);
		run_forever(&t);
		NEED(ioctl(t.vcpu, KVM_GET_REGS, &r) == 0);
		EQUAL(r.rip - here->base < PAGES * 0x1000, true);
	}
	kvmtest_done(&t);
}
#define FOREVER(from, then) forever("for ever, " #from " " #then, from, then)

static void test_forever(void)
{
	FOREVER(l_ja, l_jb);
	FOREVER(l_jb, l_ja);
	FOREVER(l_ia, l_ib);
	FOREVER(l_ib, l_ia);
	FOREVER(l_3a, l_3b);
	FOREVER(l_3b, l_3c);
	FOREVER(l_3c, l_3b);
	FOREVER(l_3a, l_3c);
	FOREVER(l_ca, l_ca);
	FOREVER(l_xa, l_xa);
	FOREVER(l_pa, l_pa);
	FOREVER(l_sa, l_sa);
	FOREVER(l_oa, l_oa);
	FOREVER(l_oa, l_sa);
	FOREVER(l_na, l_na);
	FOREVER(l_ra, l_rb);
	FOREVER(l_rb, l_ra);
}

/* ---- 7, 8: the same page with other neighbours -------------------------------------------------------------------- */

#define NR_VARIANTS 5u
#define NR_BASES 4u
#define NR_SPACES 4u
#define NR_JOBS 6000u

static struct {
	unsigned nr_spaces, space;
	uint64_t cr3[NR_SPACES];	/* without PCIDs */
	unsigned b[NR_SPACES][NR_BASES], d[NR_SPACES][NR_BASES]; /* which variants are mapped */
	struct {
		uint32_t b1, b2, b3, d1;
	} imm[NR_VARIANTS];
	uint64_t rbx;
} m;

static const uint64_t bases[NR_BASES] = { 0x5555aaaa0000, 0x7f1234567000, 0x100000000, 0x10000000 };

static uint64_t variant(unsigned i)
{
	return VARIANTS + i * PAGES * 0x1000;
}

static void model_hash(uint64_t n)
{
	m.rbx = m.rbx * 31 + n;
}

static uint64_t at(unsigned k, const uint8_t *label)
{
	return bases[k] + off(label);
}

static void model_b1(unsigned k)
{
	model_hash((int32_t)m.imm[m.b[m.space][k]].b1);
	model_hash(at(k, b1_here));
}

static void model_c2(unsigned k)
{
	model_hash(at(k, c2_here));
	model_hash((int32_t)m.imm[m.d[m.space][k]].d1);
	model_hash((int32_t)m.imm[m.d[m.space][k]].d1);
}

static void model_b2(unsigned k)
{
	model_hash((int32_t)m.imm[m.b[m.space][k]].b2);
	model_hash(at(k, b2_here));
	model_c2(k);
}

struct job {
	uint64_t function, rax, rdx, rdi;
};

static void job_run(struct job *j, unsigned k)
{
	switch (rnd(6)) {
	case 0:
		j->function = at(k, v_jmp);
		model_b1(k);
		break;
	case 1:
		j->function = at(k, v_jcc);
		model_b1(k);
		break;
	case 2:
		j->function = at(k, v_call);
		model_b2(k);
		model_hash(at(k, v_called));
		break;
	case 3:
		j->function = at(k, v_twice);
		model_b1(k);
		model_b2(k);
		model_b1(k);
		break;
	default:
		j->function = at(k, v_chain);
		model_hash((int32_t)m.imm[m.b[m.space][k]].b3);
		model_hash(at(k, c3_here));
		model_b1(k);
		model_c2(k);
		break;
	}
}

/* Page B or D becomes another variant's: by INVLPG in the present space, by INVPCID in any. */
static void job_remap(struct kvmtest *t, struct job *j, unsigned k, bool invpcid)
{
	bool d = rnd(2);
	unsigned to = rnd(NR_VARIANTS), page = d ? 3 : 1, space = invpcid ? rnd(m.nr_spaces) : m.space;

	(d ? m.d : m.b)[space][k] = to;
	j->function = va(invpcid ? op_invpcid : op_remap);
	j->rax = (variant(to) + page * 0x1000) | 7;
	j->rdi = bases[k] + page * 0x1000;
	j->rdx = KBASE + pte_at(t, m.cr3[space], j->rdi);
	if (invpcid)
		j->rdi |= (space + 1) | rnd(4) << 8;
}

/* A constant in the code of a variant: stored through where it is executed, or elsewhere, or by the client. */
static void job_poke(struct job *j, unsigned k, bool client)
{
	const uint8_t *imms[] = { b1_imm, b2_imm, b3_imm, d1_imm }, *imm;
	unsigned v, which = rnd(4);
	bool alias = client || rnd(2);

	imm = imms[which];
	v = alias ? rnd(NR_VARIANTS) : (which == 3 ? m.d : m.b)[m.space][k];
	j->function = va(client ? op_out : op_poke);
	j->rax = rnd(1u << 31);
	j->rdx = alias ? ALIAS_VA + (variant(v) - VARIANTS) + off(imm) : at(k, imm);
	*(which == 0 ? &m.imm[v].b1 : which == 1 ? &m.imm[v].b2 : which == 2 ? &m.imm[v].b3 : &m.imm[v].d1) = j->rax;
}

/* mode: as reloaded()'s; 3: kept or not. */
static void job_load(struct job *j, unsigned mode)
{
	m.space = rnd(m.nr_spaces);
	j->function = va(op_cr3);
	j->rax = m.cr3[m.space] | (mode ? m.space + 1 : 0) | (mode == 1 || (mode == 3 && rnd(4)) ? NO_FLUSH : 0);
}

static void neighbours(unsigned nr_spaces, unsigned mode, unsigned nr_bases, unsigned changes)
{
	struct kvmtest t = open_guest();
	struct job *jobs = (struct job *)(t.mem + LIST);
	struct kvm_regs r = begin(e_list);
	const struct frame *f;

	NEED((NR_JOBS + 1) * sizeof(*jobs) <= LIST_SIZE && variant(NR_VARIANTS) <= ZERO);
	memset(&m, 0, sizeof(m));
	m.nr_spaces = nr_spaces;
	for (unsigned v = 0; v < NR_VARIANTS; v++) {
		memcpy(t.mem + variant(v), code, PAGES * 0x1000);
		poke(&t, variant(v), b1_imm, m.imm[v].b1 = rnd(1u << 31));
		poke(&t, variant(v), b2_imm, m.imm[v].b2 = rnd(1u << 31));
		poke(&t, variant(v), b3_imm, m.imm[v].b3 = rnd(1u << 31));
		poke(&t, variant(v), d1_imm, m.imm[v].d1 = rnd(1u << 31));
	}
	for (unsigned s = 0; s < nr_spaces; s++) {
		m.cr3[s] = program_cr3(&t);
		for (unsigned k = 0; k < NR_BASES; k++) {
			m.b[s][k] = rnd(NR_VARIANTS);
			m.d[s][k] = rnd(NR_VARIANTS);
			rings_map(&t, m.cr3[s], bases[k], PROGRAM, PAGES * 0x1000, 7);
			rings_map(&t, m.cr3[s], bases[k] + 0x1000, variant(m.b[s][k]) + 0x1000, 0x1000, 7);
			rings_map(&t, m.cr3[s], bases[k] + 0x3000, variant(m.d[s][k]) + 0x3000, 0x1000, 7);
		}
	}
	for (unsigned i = 0; i < NR_JOBS; i++) {
		unsigned k = rnd(nr_bases), dice = rnd(1000);

		if (dice < changes)
			job_remap(&t, &jobs[i], k, mode && rnd(2));
		else if (dice < 2 * changes)
			job_poke(&jobs[i], k, rnd(2));
		else if (nr_spaces > 1 && dice < 2 * changes + 100)
			job_load(&jobs[i], mode);
		else
			job_run(&jobs[i], k);
	}
	r.rsi = LIST_VA;
	r.rcx = NR_JOBS;
	set_state(&t, m.cr3[0] | !!mode);
	NEED(ioctl(t.vcpu, KVM_SET_REGS, &r) == 0);
	f = go_on(&t, &r);
	EQUAL(f->vector, BP);
	EQUAL(f->rsp, TOP);
	EQUAL(r.rcx, 0);
	EQUAL(r.rbx, m.rbx);
	kvmtest_done(&t);
}

static void test_neighbours(void)
{
	static const unsigned changes[] = { 0, 5, 100 };

	seed = 0x123456789;
	for (unsigned i = 0; i < 3; i++) {
		what = "neighbours, one space";
		neighbours(1, 0, 2, changes[i]);
		neighbours(1, 0, NR_BASES, changes[i]);
		what = "neighbours, loads of CR3";
		neighbours(2, 0, 1, changes[i]);
		neighbours(NR_SPACES, 0, NR_BASES, changes[i]);
		what = "neighbours, loads of CR3, kept";
		neighbours(2, 1, 1, changes[i]);
		neighbours(NR_SPACES, 1, NR_BASES, changes[i]);
		what = "neighbours, loads of CR3, kept or not";
		neighbours(NR_SPACES, 3, 2, changes[i]);
	}
}

static void all(void)
{
	pthread_t kicker;

	runner = pthread_self();
	signal(SIGUSR1, on_signal);
	NEED(pthread_create(&kicker, NULL, kick, NULL) == 0);
	alarm(300);
	for (unsigned p = 0; p < sizeof(places) / sizeof(places[0]); p++) {
		here = &places[p];
		test_recursion();
		test_changed();
		test_coroutines();
		test_zero();
		test_bad();
		test_remap();
		test_code();
		test_forever();
		if (here != &places[GLOBAL_PLACE])
			test_neighbours();
	}
}

int main(int argc, char **argv)
{
	(void)argc;
	return both_engines(argv[0], all);
}

/* SPDX-License-Identifier: MIT */
/*
 * The same physical pages of user code, mapped at several linear addresses: what the program does depends on where it is
 * executed. A kernel in the guest runs thousands of jobs, each an entry of the program at one of the mappings, in one
 * KVM_RUN; an exception ends each. A model in C says what must come of it. Both engines.
 *
 * A mapping, by page: A B S C, code that is the same for all; P, code of its own; two pages of data of its own; one that is absent.
 */
#include <stddef.h>

#define TABLES 0x200000u
#define TABLES_END 0x800000u

#include "both.h"
#include "generate.h"
#include "rings.h"

#define SHARED 0x40000u
#define PRIVATE 0x100000u		/* P and data of each mapping, 16 KiB apart */
#define JOBS TABLES_END
#define NR_JOBS 1024u
#define LISTS 0xa00000u
#define STACK3 0xb00000u
#define LISTS_VA 0x200000000000ull	/* the same for all, as is the stack */
#define STACK3_VA 0x300000000000ull
#define STACK3_SIZE 0x4000u
#define LISTS_SIZE 0x40000u

#define DATA 0x5000u			/* in a mapping */
#define DATA_SIZE 0x2000u
#define ABSENT 0x7000u
#define MAPPING_SIZE 0x8000u
/* Places in the data. */
#define ZERO 0xc0u
#define POINTERS 0xf00u
#define FXSAVE 0x1400u
#define FNSTENV 0x1700u
#define UNCOMPARED 0x1400u		/* to 0x1800 */

enum { RAX, RCX, RDX, RBX, RSP, RBP, RSI, RDI, R8, R9, R10, R11, R12, R13, R14, R15 };
enum { DE = 0, BP = 3, UD = 6, GP = 13, PF = 14 };

/*
 * Absolute: below 4 GiB, and the last below 2^47. Two are both: the program begins in absolute pages or ends in them. Two pairs are
 * 2 GiB apart, as far as a branch leads. From 2 GiB it leads into page S of another.
 */
static const uint64_t bases[] = {
	0x555555554000, 0x7f1234567000, 0x100010000, 0x400000, (1ull << 32) - 0x2000, (1ull << 47) - (1ull << 32) - 0x2000,
	(1ull << 47) - MAPPING_SIZE, 0, 0x7ff000, 0x555555554000 + (1ull << 31), 1ull << 31, 0x100000000000,
};
#define NR (sizeof(bases) / sizeof(bases[0]))
#define LAST 6		/* of bases: ends where canonical addresses do */

/* ---- the kernel ------------------------------------------------------------------------------------ */

struct job {
	uint64_t r[16], rip, cr3;	/* cr3 0: the end */
	uint64_t out[16], vector, error, at, cs, flags, cr2;
	uint64_t unused[24];
	uint8_t fx[512];
};
_Static_assert(sizeof(struct job) == 1024, "the guest's kernel knows");
_Static_assert(offsetof(struct job, out) == 144 && offsetof(struct job, vector) == 272, "the guest's kernel knows");
_Static_assert(offsetof(struct job, fx) == 512, "the guest's kernel knows");

/* rbx: the first job. The present one is noted where the stack begins. */
GUEST_CODE(kernel,
	"kernel_start: jmp 2f\n"
	"1: push %rbx; mov 0xffffffff80034000, %rbx\n"	/* the frame: rbx vector error rip cs flags rsp ss */
	"mov %rax, 144(%rbx); mov %rcx, 152(%rbx); mov %rdx, 160(%rbx); mov %rbp, 184(%rbx); mov %rsi, 192(%rbx)\n"
	"mov %rdi, 200(%rbx); mov %r8, 208(%rbx); mov %r9, 216(%rbx); mov %r10, 224(%rbx); mov %r11, 232(%rbx)\n"
	"mov %r12, 240(%rbx); mov %r13, 248(%rbx); mov %r14, 256(%rbx); mov %r15, 264(%rbx)\n"
	"fxsave64 512(%rbx)\n"
	"pop %rax; mov %rax, 168(%rbx); pop %rax; mov %rax, 272(%rbx); pop %rax; mov %rax, 280(%rbx)\n"
	"pop %rax; mov %rax, 288(%rbx); pop %rax; mov %rax, 296(%rbx); pop %rax; mov %rax, 304(%rbx)\n"
	"pop %rax; mov %rax, 176(%rbx); pop %rax; mov %cr2, %rax; mov %rax, 312(%rbx); add $1024, %rbx\n"
	"2: mov %rbx, 0xffffffff80034000; cmpq $0, 136(%rbx); jne 3f; hlt\n"
	"3: mov 136(%rbx), %rax; mov %cr3, %rcx; cmp %rax, %rcx; je 4f; mov %rax, %cr3\n"
	"4: fninit; pushq $0x23; pushq 32(%rbx); pushq $0x202; pushq $0x2b; pushq 128(%rbx)\n"
	"mov 0(%rbx), %rax; mov 8(%rbx), %rcx; mov 16(%rbx), %rdx; mov 40(%rbx), %rbp; mov 48(%rbx), %rsi\n"
	"mov 56(%rbx), %rdi; mov 64(%rbx), %r8; mov 72(%rbx), %r9; mov 80(%rbx), %r10; mov 88(%rbx), %r11\n"
	"mov 96(%rbx), %r12; mov 104(%rbx), %r13; mov 112(%rbx), %r14; mov 120(%rbx), %r15; mov 24(%rbx), %rbx; iretq\n"
	".balign 16\n"
	"kernel_vectors: .set vector, 0\n"
	".rept 32\n"
	".balign 16\n"
	".if vector != 8 && (vector < 10 || vector > 14) && vector != 17\n push $0\n .endif\n"
	"push $vector\n jmp 1b\n"
	".set vector, vector + 1\n"
	".endr");
extern const uint8_t kernel_vectors[];

/* ---- the program ------------------------------------------------------------------------------------- */

/* Each hop adds its own address to what rbx was, 31 times. */
#define HOP(n) "hop" #n ": imul $31, %rbx; lea hop" #n "(%rip), %rax; add %rax, %rbx\n"

GUEST_CODE(code,
	/* ---- page A ---- */
	"e_loads: mov D+0x10(%rip), %rax; add D+0x18(%rip), %rax; movzbl D+0x21(%rip), %ecx; movslq D+0x24(%rip), %rdx\n"
	"mov D+0xff8(%rip), %rsi; mov D+0xffc(%rip), %rdi; mov D+0x1008(%rip), %r8; add D+0x1010(%rip), %r13\n"
	"mov D+0x1018(%rip), %r14; movups D+0x30(%rip), %xmm0; movq %xmm0, %r9; mov %fs:D+0x10(%rip), %r11; int3\n"
	"e_stores: mov %rax, D+0x40(%rip); mov %ecx, D+0x48(%rip); mov %dl, D+0x4d(%rip); movw $0x1234, D+0x4e(%rip)\n"
	"movq $-5, D+0x50(%rip); mov %r14, D+0x1020(%rip); mov %r8, D+0xffd(%rip); mov D+0x41(%rip), %rbx; int3\n"
	"e_rmw: add %rax, D+0x60(%rip); incl D+0x68(%rip); lock xadd %rcx, D+0x70(%rip); xorw $0x5555, D+0x1030(%rip)\n"
	"xchg %rdx, D+0x78(%rip); notq D+0x80(%rip); add %rsi, D+0xffb(%rip); lock addl $77, D+0x1034(%rip); int3\n"
	"e_lea: lea D+0x123(%rip), %rax; lea code(%rip), %rbx; lea code+0x1000(%rip), %ecx; lea code+0x1001(%rip), %dx\n"
	".byte 0x67; lea code+0x30(%rip), %rsi; .byte 0x48, 0x8d, 0x3d; .long -0x70000000; l_far: .byte 0x4c, 0x8d, 0x05\n"
	".long 0x7fffffff; l_end: int3\n"
	"e_call: call 1f; r_1: call 3f; r_2: int3\n"
	"1: mov (%rsp), %r8; ret\n"
	"2: mov (%rsp), %r12; ret\n"
	"e_got: call *D+0xf00(%rip); r_5: jmp *D+0xf08(%rip)\n"
	"g_end: int3\n"
	"e_other: call *D+0xf18(%rip); r_7: mov D+0x10(%rip), %rcx; int3\n"
	"e_hops: " HOP(0) "jmp hop1\n"
	HOP(2) "test %rbx, %rbx; stc; jc hop3; ud2\n"
	"hop6: imul $31, %rbx; lea hop6(%rip), %rax; add %rax, %rbx; clc; jc hop1; jnc hop7; ud2\n"
	HOP(9) "mov $2, %ecx; loop 8f; ud2; 8: jmp hop10\n"
	HOP(12) "int3\n"
	"e_relay: lea e_relay(%rip), %rax; add %rax, %rbx; xor D+0x88(%rip), %rbx; rol $7, %rbx; dec %ecx; jz 9f\n"
	"mov (%rsi), %rax; add $8, %rsi; jmp *%rax\n"
	"9: int3\n"
	"e_loop: 1: add (%rsi), %rbx; add $8, %rsi; incl D+0x90(%rip); dec %ecx; jnz 1b; int3\n"
	"e_copy: 1: mov (%rsi,%rdi,8), %rax; mov %rax, D+0xa0(%rip); inc %rdi; add D+0xa0(%rip), %rbx; cmp %rcx, %rdi; jne 1b; int3\n"
	"e_fill: lea D+0x200(%rip), %rdi; 1: mov %rax, (%rdi); add D+0x98(%rip), %rax; add $8, %rdi; dec %ecx; jnz 1b; int3\n"
	"e_x87: fldl D+0xe00(%rip); x_1: faddl D+0xe08(%rip); mov D+0x10(%rip), %rax; jmp x_2\n"
	"e_x87_other: fldl D+0xe10(%rip); fmul %st(1), %st; x_3: faddl D+0x1108(%rip); add $1, %r8; jmp *%rsi\n"
	"e_x87_ud: x_4: fldl D+0xe10(%rip); mov D+0x10(%rip), %rax; u_1: ud2\n"
	"e_x87_loop: 1: fldl D+0xe20(%rip); x_5: fstpl D+0x1720(%rip); dec %ecx; jnz 1b; jmp *%rsi\n"
	"e_pf_load: mov D+0x10(%rip), %rax; f_1: mov D+0x2010(%rip), %rbx; int3\n"
	"e_pf_store: mov %rax, D+0xb0(%rip); f_2: addl $1, D+0x2020(%rip); int3\n"
	"e_pf_cross: mov D+0x1ff0(%rip), %rax; f_3: mov D+0x1ffc(%rip), %rbx; int3\n"
	"e_pf_call: lea D+0x2008(%rip), %rsp; f_4: call 1f; 1: int3\n"
	"e_pf_fetch: incq D+0xb8(%rip); jmp code+0x7100\n"
	"e_ud: mov D+0x18(%rip), %rax; u_2: ud2\n"
	"e_de: xor %edx, %edx; mov D+0x18(%rip), %rax; u_3: divl D+0xc0(%rip); int3\n"
	"e_beyond: mov D+0x18(%rip), %rax; b_1: jmp code+0x8010\n"
	"e_beyond_if: stc; b_2: jc code+0x8018; int3\n"
	"e_beyond_call: mov D+0x18(%rip), %rax; b_3: call code+0x8020; b_3e: int3\n"
	"e_gp_jmp: lea D+0x10(%rip), %rbx; b_4: jmp *%rax\n"
	"e_gp_call: b_5: call *%rax\n"
	"e_gp_ret: push %rax; b_6: ret\n"
	"land: lea land(%rip), %rdx; int3\n"	/* 2 GiB further on */
	"e_far: .byte 0xe9; .long 0x7fffffff - (far_1 - land) + 1; far_1:\n"
	"e_far_if: cmp %eax, %eax; far_2: .byte 0x0f, 0x84; .long 0x7fffffff - (far_3 - land) + 1; far_3:\n"
	"e_far_back: .byte 0xe9; .long -0x80000000; far_4: lea far_4(%rip), %rdx; int3\n"
	"e_flags: add %rcx, %rdx; jmp fl_1\n"
	"e_flags_if: add %rcx, %rdx; jc fl_2; jmp fl_1\n"
	"e_flags_other: add %rcx, %rdx; jmp *%rsi\n"
	/* A loop over the end of the page, and an instruction there. */
	".org code+0xff0-2, 0xcc\n"
	"e_span: nop; nop; 1: add (%rsi), %rbx; add $8, %rsi; add D+0x98(%rip), %rbx; xor D+0xa8(%rip), %rbx; dec %ecx; jnz 1b; int3\n"
	/* ---- page B ---- */
	".org code+0x1100, 0xcc\n"
	"3: mov (%rsp), %r9; call 4f; r_3: call 2b; r_4: ret\n"
	"fl_1: jo fl_3; fl_2: lahf; seto %al; movzwl %ax, %eax; lea fl_1(%rip), %rbx; int3\n"
	HOP(1) "jmp hop2\n"
	HOP(5) "clc; jnc hop6; ud2\n"
	HOP(8) "jmp hop9\n"
	HOP(11) "xor %ecx, %ecx; jrcxz 8f; ud2; 8: jmp hop12\n"
	"g_2: lea 0(%rip), %r10; g_2e: jmp *D+0xf10(%rip)\n"
	"e_relay2: lea e_relay2(%rip), %rax; add %rax, %rbx; add D+0x1040(%rip), %rbx; rol $9, %rbx; dec %ecx; jz 9f\n"
	"pushq (%rsi); add $8, %rsi; ret\n"
	"9: int3\n"
	"x_2: nop; fnstenv D+0x1700(%rip); mov D+0x170c(%rip), %ecx; mov D+0x1714(%rip), %edx; fxsave64 D+0x1400(%rip)\n"
	"mov D+0x1408(%rip), %rsi; mov D+0x1410(%rip), %rdi; int3\n"
	/* ---- page S: stores into itself ---- */
	".org code+0x2000-12, 0xcc\n"
	"e_span2: 1: add (%rsi), %rbx; add $8, %rsi; xor D+0xa8(%rip), %rbx; loop 1b; int3\n"
	"e_smc: mov %eax, (%rdi); smc_1: mov $0x11111111, %ecx; lea smc_1(%rip), %rdx; int3\n"
	"e_smc_own: mov %eax, smc_2+1(%rip); jmp smc_2; ud2; smc_2: mov $0x11111111, %ecx; add D+0x10(%rip), %rcx; int3\n"
	"e_smc_loop: 1: mov %ecx, (%rdi); jmp smc_3; ud2; smc_3: mov $0x11111111, %eax; add %rax, %rbx; dec %ecx; jnz 1b; int3\n"
	"e_smc_other: mov %eax, smc_1+1(%rip); jmp *%rsi\n"
	/* What is at `land`, for the mapping that has this page where others would have A. */
	".org land + 0x2000, 0xcc\n"
	"1: lea 1b(%rip), %rdx; int3\n"
	/* ---- page C; its last instruction ends on P ---- */
	".org code+0x3000, 0xcc\n"
	"4: mov (%rsp), %r10; mov 8(%rsp), %r11; ret\n"
	"fl_3: jc fl_2; jmp fl_2\n"
	HOP(3) "jmp hop4\n"
	HOP(7) "jmp hop8\n"
	HOP(10) "jmp hop11\n"
	"g_1: mov (%rsp), %r8; lea 0(%rip), %r9; g_1e: add D+0x10(%rip), %rbp; ret\n"
	".org code+0x4000-6, 0xcc\n"
	"e_two_before: inc %eax; e_two: .byte 0x48, 0x8b, 0x05, 0x80\n"	/* mov D+0x80+256*k(%rip), %rax */
	/* ---- page P ---- */
	"p_disp: .byte (D-p_next)>>8 & 255, (D-p_next)>>16 & 255, (D-p_next)>>24 & 255; p_next: lea 0(%rip), %rdx; p_2: int3\n"
	"e_own: .byte 0xb8; p_imm: .long 0; mov D+0x10(%rip), %rdx; lea e_own(%rip), %rcx; int3\n"
	HOP(4) "jmp hop5\n"
	".org code+0x5000, 0xcc\n"
	".set D, code + 0x5000");

#define LABEL(x) extern const uint8_t x[]
LABEL(e_loads); LABEL(e_stores); LABEL(e_rmw); LABEL(e_lea); LABEL(l_far); LABEL(l_end); LABEL(e_call); LABEL(r_1); LABEL(r_2);
LABEL(r_3); LABEL(r_4); LABEL(e_got); LABEL(r_5); LABEL(g_end); LABEL(e_other); LABEL(r_7); LABEL(e_hops); LABEL(e_relay);
LABEL(e_relay2); LABEL(e_loop); LABEL(e_copy); LABEL(e_fill); LABEL(e_span); LABEL(e_x87); LABEL(x_1); LABEL(x_2);
LABEL(e_x87_other); LABEL(x_3); LABEL(e_x87_ud); LABEL(x_4); LABEL(u_1); LABEL(e_x87_loop); LABEL(x_5);
LABEL(e_pf_load); LABEL(f_1); LABEL(e_pf_store); LABEL(f_2); LABEL(e_pf_cross); LABEL(f_3); LABEL(e_pf_call); LABEL(f_4);
LABEL(e_pf_fetch); LABEL(e_ud); LABEL(u_2); LABEL(e_de); LABEL(u_3); LABEL(e_beyond); LABEL(b_1); LABEL(e_beyond_if);
LABEL(b_2); LABEL(e_beyond_call); LABEL(b_3); LABEL(b_3e); LABEL(e_gp_jmp); LABEL(b_4); LABEL(e_gp_call); LABEL(b_5);
LABEL(e_gp_ret); LABEL(b_6); LABEL(e_smc); LABEL(smc_1); LABEL(e_smc_own); LABEL(smc_2); LABEL(e_smc_loop); LABEL(smc_3);
LABEL(e_smc_other); LABEL(e_span2);
LABEL(land); LABEL(e_far); LABEL(far_1); LABEL(e_far_if); LABEL(far_2); LABEL(far_3); LABEL(e_far_back); LABEL(far_4);
LABEL(e_flags); LABEL(e_flags_if); LABEL(e_flags_other); LABEL(fl_1);
LABEL(e_two_before); LABEL(e_two); LABEL(p_disp); LABEL(p_next); LABEL(p_2); LABEL(e_own); LABEL(p_imm); LABEL(g_1);
LABEL(g_1e); LABEL(g_2); LABEL(g_2e);
LABEL(hop0); LABEL(hop1); LABEL(hop2); LABEL(hop3); LABEL(hop4); LABEL(hop5); LABEL(hop6); LABEL(hop7); LABEL(hop8);
LABEL(hop9); LABEL(hop10); LABEL(hop11); LABEL(hop12);

/* ---- the model ------------------------------------------------------------------------------------------ */

struct want {
	uint64_t in[16], r[16];
	unsigned k, other, end;		/* mappings: the job's, another, where it ends */
	uint64_t vector, error, at, cr2;	/* at: 0, after some INT3 of mapping `end` */
	uint64_t fip, fdp;
	bool mixed;			/* others are there */
};

static uint8_t data[NR][DATA_SIZE];
static uint64_t lists[LISTS_SIZE / 8];
static unsigned lists_used;

static uint64_t rnd64(void)
{
	return (uint64_t)rnd(1u << 31) << 33 ^ (uint64_t)rnd(1u << 31) << 12 ^ rnd(1u << 31);
}

static uint64_t off(const uint8_t *label)
{
	return label - code;
}

static uint64_t va(unsigned k, const uint8_t *label)
{
	return bases[k] + off(label);
}

static uint64_t load(unsigned k, unsigned at)
{
	uint64_t v;

	memcpy(&v, &data[k][at], 8);
	return v;
}

static void store(unsigned k, unsigned at, uint64_t v, unsigned size)
{
	memcpy(&data[k][at], &v, size);
}

static void in(struct want *w, unsigned reg, uint64_t v)
{
	w->in[reg] = w->r[reg] = v;
}

static void fault(struct want *w, unsigned vector, unsigned error, const uint8_t *at)
{
	w->vector = vector;
	w->error = error;
	w->at = va(w->k, at);
}

static void page_fault(struct want *w, unsigned error, const uint8_t *at, uint64_t offset)
{
	fault(w, PF, error, at);
	w->cr2 = bases[w->k] + offset;
}

/* Execution has got where nothing is. */
static void fetch_fault(struct want *w, uint64_t offset)
{
	w->vector = PF;
	w->error = 0x14;
	w->at = w->cr2 = bases[w->k] + offset;
}

/* n words; the index of the first. */
static unsigned list(unsigned n)
{
	lists_used += n;
	NEED(lists_used <= LISTS_SIZE / 8);
	return lists_used - n;
}

static unsigned some_mapping(const struct want *w)
{
	return w->mixed ? rnd(NR) : w->k;
}

static void want_loads(struct want *w)
{
	unsigned k = w->k;

	w->r[RAX] = load(k, 0x10) + load(k, 0x18);
	w->r[RCX] = data[k][0x21];
	w->r[RDX] = (int32_t)load(k, 0x24);
	w->r[RSI] = load(k, 0xff8);
	w->r[RDI] = load(k, 0xffc);
	w->r[R8] = load(k, 0x1008);
	w->r[R13] += load(k, 0x1010);
	w->r[R14] = load(k, 0x1018);
	w->r[R9] = load(k, 0x30);
	w->r[R11] = load(k, 0x18);
}

static void want_stores(struct want *w)
{
	unsigned k = w->k;

	store(k, 0x40, w->r[RAX], 8);
	store(k, 0x48, w->r[RCX], 4);
	store(k, 0x4d, w->r[RDX], 1);
	store(k, 0x4e, 0x1234, 2);
	store(k, 0x50, -5, 8);
	store(k, 0x1020, w->r[R14], 8);
	store(k, 0xffd, w->r[R8], 8);
	w->r[RBX] = load(k, 0x41);
}

static void want_rmw(struct want *w)
{
	unsigned k = w->k;
	uint64_t old;

	store(k, 0x60, load(k, 0x60) + w->r[RAX], 8);
	store(k, 0x68, load(k, 0x68) + 1, 4);
	old = load(k, 0x70);
	store(k, 0x70, old + w->r[RCX], 8);
	w->r[RCX] = old;
	store(k, 0x1030, load(k, 0x1030) ^ 0x5555, 2);
	old = load(k, 0x78);
	store(k, 0x78, w->r[RDX], 8);
	w->r[RDX] = old;
	store(k, 0x80, ~load(k, 0x80), 8);
	store(k, 0xffb, load(k, 0xffb) + w->r[RSI], 8);
	store(k, 0x1034, load(k, 0x1034) + 77, 4);
}

static void want_lea(struct want *w)
{
	uint64_t base = bases[w->k];

	w->r[RAX] = base + DATA + 0x123;
	w->r[RBX] = base;
	w->r[RCX] = (uint32_t)(base + 0x1000);
	w->r[RDX] = (w->r[RDX] & ~0xffffull) | ((base + 0x1001) & 0xffff);
	w->r[RSI] = (uint32_t)(base + 0x30);
	w->r[RDI] = va(w->k, l_far) - 0x70000000;
	w->r[R8] = va(w->k, l_end) + 0x7fffffff;
}

static void want_call(struct want *w)
{
	w->r[R8] = va(w->k, r_1);
	w->r[R9] = w->r[R11] = va(w->k, r_2);
	w->r[R10] = va(w->k, r_3);
	w->r[R12] = va(w->k, r_4);
}

static void want_got(struct want *w)
{
	w->r[R8] = va(w->k, r_5);
	w->r[R9] = va(w->k, g_1e);
	w->r[RBP] += load(w->k, 0x10);
	w->r[R10] = va(w->k, g_2e);
	w->at = va(w->k, g_end) + 1;
}

static void want_other(struct want *w)
{
	unsigned to = w->mixed ? (w->k + 1) % NR : w->k;

	w->r[R8] = va(w->k, r_7);
	w->r[R9] = va(to, g_1e);
	w->r[RBP] += load(to, 0x10);
	w->r[RCX] = load(w->k, 0x10);
}

static void want_hops(struct want *w)
{
	const uint8_t *hops[] = { hop0, hop1, hop2, hop3, hop4, hop5, hop6, hop7, hop8, hop9, hop10, hop11, hop12 };

	for (unsigned i = 0; i < sizeof(hops) / sizeof(hops[0]); i++) {
		w->r[RAX] = va(w->k, hops[i]);
		w->r[RBX] = w->r[RBX] * 31 + w->r[RAX];
	}
	w->r[RCX] = 0;
}

static uint64_t rotate(uint64_t v, unsigned n)
{
	return v << n | v >> (64 - n);
}

static void want_relay(struct want *w)
{
	unsigned n = 1 + rnd(12), at = list(n), k = w->k;
	bool second = false;

	in(w, RCX, n);
	in(w, RSI, LISTS_VA + 8 * at);
	for (unsigned i = 0;; i++) {
		w->r[RAX] = va(k, second ? e_relay2 : e_relay);
		w->r[RBX] += w->r[RAX];
		w->r[RBX] = second ? rotate(w->r[RBX] + load(k, 0x1040), 9) : rotate(w->r[RBX] ^ load(k, 0x88), 7);
		if (i == n - 1)
			break;
		w->r[RSI] += 8;
		k = some_mapping(w);
		second = rnd(2);
		lists[at + i] = va(k, second ? e_relay2 : e_relay);
	}
	w->r[RCX] = 0;
	w->end = k;
}

/* An array of n random words, often over the end of a page. */
static unsigned array(struct want *w, unsigned n)
{
	unsigned at;

	if (lists_used % 512 + n < 512 && rnd(2))
		list(512 - lists_used % 512 - 1 - rnd(n));
	at = list(n);
	in(w, RSI, LISTS_VA + 8 * at);
	for (unsigned i = 0; i < n; i++)
		lists[at + i] = rnd64();
	return at;
}

static void want_loop(struct want *w)
{
	unsigned n = 1 + rnd(12), at = array(w, n);

	in(w, RCX, n);
	for (unsigned i = 0; i < n; i++)
		w->r[RBX] += lists[at + i];
	store(w->k, 0x90, load(w->k, 0x90) + n, 4);
	w->r[RSI] += 8 * n;
	w->r[RCX] = 0;
}

static void want_copy(struct want *w)
{
	unsigned n = 1 + rnd(12), at = array(w, n);

	in(w, RCX, n);
	in(w, RDI, 0);
	for (unsigned i = 0; i < n; i++) {
		w->r[RAX] = lists[at + i];
		w->r[RBX] += w->r[RAX];
	}
	store(w->k, 0xa0, w->r[RAX], 8);
	w->r[RDI] = n;
}

static void want_fill(struct want *w)
{
	unsigned n = 1 + rnd(30);

	in(w, RCX, n);
	for (unsigned i = 0; i < n; i++) {
		store(w->k, 0x200 + 8 * i, w->r[RAX], 8);
		w->r[RAX] += load(w->k, 0x98);
	}
	w->r[RDI] = bases[w->k] + DATA + 0x200 + 8 * n;
	w->r[RCX] = 0;
}

static void want_span(struct want *w)
{
	unsigned n = 1 + rnd(9), at = array(w, n);

	in(w, RCX, n);
	for (unsigned i = 0; i < n; i++)
		w->r[RBX] = (w->r[RBX] + lists[at + i] + load(w->k, 0x98)) ^ load(w->k, 0xa8);
	w->r[RSI] += 8 * n;
	w->r[RCX] = 0;
}

static void want_span2(struct want *w)
{
	unsigned n = 1 + rnd(9), at = array(w, n);

	in(w, RCX, n);
	for (unsigned i = 0; i < n; i++)
		w->r[RBX] = (w->r[RBX] + lists[at + i]) ^ load(w->k, 0xa8);
	w->r[RSI] += 8 * n;
	w->r[RCX] = 0;
}

/* Not where the pointers are looked at by the program, but what they are. */
static void pointers(struct want *w, const uint8_t *insn, unsigned operand)
{
	w->fip = va(w->k, insn);
	w->fdp = bases[w->k] + DATA + operand;
}

static void x87_shown(struct want *w)
{
	w->r[RSI] = w->fip;
	w->r[RDI] = w->fdp;
	w->r[RCX] = (uint32_t)w->fip;
	w->r[RDX] = (uint32_t)w->fdp;
}

static void want_x87(struct want *w)
{
	pointers(w, x_1, 0xe08);
	w->r[RAX] = load(w->k, 0x10);
	x87_shown(w);
}

static void want_x87_other(struct want *w)
{
	w->end = some_mapping(w);
	in(w, RSI, va(w->end, x_2));
	w->r[R8]++;
	pointers(w, x_3, 0x1108);
	x87_shown(w);
}

static void want_x87_loop(struct want *w)
{
	w->end = some_mapping(w);
	in(w, RSI, va(w->end, x_2));
	in(w, RCX, 1 + rnd(9));
	pointers(w, x_5, 0x1720);
	x87_shown(w);
}

static void want_x87_ud(struct want *w)
{
	pointers(w, x_4, 0xe10);
	w->r[RAX] = load(w->k, 0x10);
	fault(w, UD, 0, u_1);
}

static void want_pf_load(struct want *w)
{
	w->r[RAX] = load(w->k, 0x10);
	page_fault(w, 4, f_1, ABSENT + 0x10);
}

static void want_pf_store(struct want *w)
{
	store(w->k, 0xb0, w->r[RAX], 8);
	page_fault(w, 6, f_2, ABSENT + 0x20);
}

static void want_pf_cross(struct want *w)
{
	w->r[RAX] = load(w->k, 0x1ff0);
	page_fault(w, 4, f_3, ABSENT);
}

static void want_pf_call(struct want *w)
{
	w->r[RSP] = bases[w->k] + ABSENT + 8;
	page_fault(w, 6, f_4, ABSENT);
}

static void want_pf_fetch(struct want *w)
{
	store(w->k, 0xb8, load(w->k, 0xb8) + 1, 8);
	fetch_fault(w, 0x7100);
}

static void want_ud(struct want *w)
{
	w->r[RAX] = load(w->k, 0x18);
	fault(w, UD, 0, u_2);
}

static void want_de(struct want *w)
{
	w->r[RAX] = load(w->k, 0x18);
	w->r[RDX] = 0;
	fault(w, DE, 0, u_3);
}

/* The branch to where no address is has not been executed; if there might be a page it has been, and that is absent. */
static void beyond(struct want *w, const uint8_t *branch, uint64_t target)
{
	if (w->k == LAST)
		fault(w, GP, 0, branch);
	else
		fetch_fault(w, target);
}

static void want_beyond(struct want *w)
{
	w->r[RAX] = load(w->k, 0x18);
	beyond(w, b_1, 0x8010);
}

static void want_beyond_if(struct want *w)
{
	beyond(w, b_2, 0x8018);
}

static void want_beyond_call(struct want *w)
{
	w->r[RAX] = load(w->k, 0x18);
	beyond(w, b_3, 0x8020);
	w->r[RSP] -= w->k == LAST ? 0 : 8;
}

/* To the same place in the mapping that is so far away, if there is one. */
static bool lands(struct want *w, uint64_t distance, const uint8_t *label)
{
	const uint64_t to = bases[w->k] + distance;

	for (unsigned k = 0; w->mixed && k < NR; k++)
		if (bases[k] == to || (label == land && bases[k] + 0x2000 == to)) {
			w->end = k;
			w->r[RDX] = to + off(label);
			return true;
		}
	return false;
}

static void want_far(struct want *w)
{
	if (!lands(w, 1ull << 31, land))
		beyond(w, e_far, off(land) + (1ull << 31));
}

static void want_far_if(struct want *w)
{
	if (!lands(w, 1ull << 31, land))
		beyond(w, far_2, off(land) + (1ull << 31));
}

/* From the lowest it leads to the kernel's half. */
static void want_far_back(struct want *w)
{
	if (lands(w, -(1ull << 31), far_4))
		return;
	fetch_fault(w, off(far_4) - (1ull << 31));
	w->error = bases[w->k] < MEM ? 0x15 : 0x14;
}

static void want_flags(struct want *w)
{
	uint64_t rax, rdx = w->r[RDX];

	asm("add %2, %0; lahf; seto %%al; movzwl %%ax, %%eax" : "+r"(rdx), "=&a"(rax) : "r"(w->r[RCX]) : "cc");
	w->r[RAX] = rax;
	w->r[RDX] = rdx;
	w->r[RBX] = va(w->end, fl_1);
}

static void want_flags_other(struct want *w)
{
	w->end = some_mapping(w);
	in(w, RSI, va(w->end, fl_1));
	want_flags(w);
}

static void no_address(struct want *w, const uint8_t *branch)
{
	in(w, RAX, (1ull << 47) + rnd(1u << 30));
	fault(w, GP, 0, branch);
}

static void want_gp_jmp(struct want *w)
{
	no_address(w, b_4);
	w->r[RBX] = bases[w->k] + DATA + 0x10;
}

static void want_gp_call(struct want *w)
{
	no_address(w, b_5);
}

static void want_gp_ret(struct want *w)
{
	no_address(w, b_6);
	w->r[RSP] -= 8;
}

static void want_smc(struct want *w)
{
	in(w, RDI, va(some_mapping(w), smc_1 + 1));
	w->r[RCX] = (uint32_t)w->r[RAX];
	w->r[RDX] = va(w->k, smc_1);
}

static void want_smc_own(struct want *w)
{
	w->r[RCX] = (uint32_t)w->r[RAX] + load(w->k, 0x10);
}

static void want_smc_other(struct want *w)
{
	w->end = some_mapping(w);
	in(w, RSI, va(w->end, smc_1));
	w->r[RCX] = (uint32_t)w->r[RAX];
	w->r[RDX] = w->r[RSI];
}

static void want_smc_loop(struct want *w)
{
	unsigned n = 1 + rnd(9);

	in(w, RDI, va(some_mapping(w), smc_3 + 1));
	in(w, RCX, n);
	w->r[RBX] += n * (n + 1) / 2;
	w->r[RAX] = 1;
	w->r[RCX] = 0;
}

/* How far from p_next the mapping's own operand is. */
static uint32_t two_disp(unsigned k)
{
	return ((uint32_t)(code + DATA - p_next) & ~0xffu) + 0x80 + 0x100 * (k + 1);
}

static void want_two(struct want *w)
{
	w->r[RAX] = load(w->k, off(p_next) + two_disp(w->k) - DATA);
	w->r[RDX] = va(w->k, p_2);
}

static uint32_t own_imm(unsigned k)
{
	return 0x9e3779b9u * (k + 1);
}

static void want_own(struct want *w)
{
	w->r[RAX] = own_imm(w->k);
	w->r[RDX] = load(w->k, 0x10);
	w->r[RCX] = va(w->k, e_own);
}

static const struct entry {
	const char *name;
	const uint8_t *label;
	void (*want)(struct want *w);
	bool varies;	/* what it does, or its translations, are not the same for all mappings */
} entries[] = {
#define ENTRY(x) { #x, e_##x, want_##x, false }
#define VARIES(x) { #x, e_##x, want_##x, true }
	ENTRY(loads), ENTRY(stores), ENTRY(rmw), ENTRY(lea), ENTRY(call), ENTRY(got), ENTRY(other), ENTRY(relay), ENTRY(relay),
	ENTRY(loop), ENTRY(copy), ENTRY(fill), ENTRY(span), VARIES(span2), ENTRY(x87), ENTRY(x87_other), ENTRY(x87_ud), ENTRY(x87_loop),
	ENTRY(pf_load), ENTRY(pf_store), ENTRY(pf_cross), ENTRY(pf_call), ENTRY(pf_fetch), ENTRY(ud), ENTRY(de), ENTRY(beyond),
	ENTRY(beyond_if), ENTRY(beyond_call), ENTRY(gp_jmp), ENTRY(gp_call), ENTRY(gp_ret),
	VARIES(far), VARIES(far_if), VARIES(far_back), ENTRY(flags), ENTRY(flags_other),
	{ "flags_if", e_flags_if, want_flags, false },
	VARIES(hops), VARIES(smc), VARIES(smc_own), VARIES(smc_other), VARIES(smc_loop), VARIES(two), VARIES(own),
	{ "two_before", e_two_before, want_two, true },
};
#define ENTRIES (sizeof(entries) / sizeof(entries[0]))

/* ---- the guest ---------------------------------------------------------------------------------------------- */

static void map(struct kvmtest *t, uint64_t cr3, uint64_t at, uint64_t pa, uint64_t size)
{
	rings_map(t, cr3, at, pa, size, 7);
}

static void map_base(struct kvmtest *t, uint64_t cr3, unsigned k)
{
	map(t, cr3, bases[k], SHARED, 0x4000);
	map(t, cr3, bases[k] + 0x4000, PRIVATE + 0x4000 * k, 0x1000 + DATA_SIZE);
}

/* Page tables with what all of them have: the kernel's half, stack and lists. */
static uint64_t new_cr3(struct kvmtest *t)
{
	uint64_t cr3 = rings_root(t);

	map(t, cr3, LISTS_VA, LISTS, LISTS_SIZE);
	map(t, cr3, STACK3_VA, STACK3, STACK3_SIZE);
	return cr3;
}

static void set_state(struct kvmtest *t, uint64_t cr3)
{
	struct kvm_sregs s;

	NEED(ioctl(t->vcpu, KVM_GET_SREGS, &s) == 0);
	rings_sregs(&s, 3, cr3);
	s.cs = rings_code(0);
	s.ss = rings_data(0);
	s.fs.base = 8;
	s.idt.limit = 32 * 16 - 1;
	s.cr0 = 0x80010033;
	s.cr4 = 0x6a0;
	NEED(ioctl(t->vcpu, KVM_SET_SREGS, &s) == 0);
}

static void load_program(struct kvmtest *t)
{
	for (unsigned k = 0; k < NR; k++) {
		uint8_t *own = t->mem + PRIVATE + 0x4000 * k;
		uint32_t disp = two_disp(k), imm = own_imm(k);

		memcpy(own, code + 0x4000, 0x1000);
		memcpy(own, (uint8_t *)&disp + 1, 3);
		memcpy(own + off(p_imm) - 0x4000, &imm, 4);
		for (unsigned i = 0; i < DATA_SIZE; i++)
			data[k][i] = rnd(256);
		store(k, ZERO, 0, 8);
		store(k, POINTERS, va(k, g_1), 8);
		store(k, POINTERS + 8, va(k, g_2), 8);
		store(k, POINTERS + 16, va(k, g_end), 8);
		memcpy(own + 0x1000, data[k], DATA_SIZE);
	}
	memcpy(t->mem + SHARED, code, 0x4000);
}

static struct kvmtest open_guest(void)
{
	struct kvmtest t = kvmtest_vm(MEM, 0);

	NEED(GUEST_LEN(code) == DATA);
	seed = 0x123456789;
	tables_used = 0;
	kvmtest_add_vcpu(&t, 0);
	kvmtest_set_cpuid(&t);
	rings_descriptors(&t);
	*(uint64_t *)(t.mem + TSS + 4) = KBASE + STACK0;
	memcpy(t.mem + KERNEL, kernel, GUEST_LEN(kernel));
	for (unsigned v = 0; v < 32; v++)
		rings_gate(&t, v, KBASE + KERNEL + (kernel_vectors - kernel) + 16 * v, 3, 0);
	load_program(&t);
	return t;
}

/* ---- jobs ------------------------------------------------------------------------------------------------------- */

static struct job *job(struct kvmtest *t, unsigned i)
{
	return (struct job *)(t->mem + JOBS) + i;
}

/* What the job is to find, and what must come of it: the model's data are as after it. */
static void add_job(struct kvmtest *t, unsigned i, const struct entry *e, struct want *w, uint64_t cr3)
{
	struct job *j = job(t, i);

	w->end = w->k;
	w->vector = BP;
	for (unsigned r = 0; r < 16; r++)
		in(w, r, rnd64());
	in(w, RSP, STACK3_VA + STACK3_SIZE - 8 * rnd(600));
	e->want(w);
	memset(j, 0, sizeof(*j));
	memcpy(j->r, w->in, sizeof(w->in));
	j->rip = va(w->k, e->label);
	j->cr3 = cr3;
}

static bool equal(const struct entry *e, const struct want *w, const char *what, uint64_t got, uint64_t want)
{
	static unsigned shown;

	if (got == want)
		return true;
	if (shown++ < 40)
		printf("%s at 0x%llx: %s is 0x%llx, not 0x%llx\n", e->name, (unsigned long long)bases[w->k], what,
		       (unsigned long long)got, (unsigned long long)want);
	return false;
}

static void check_job(const struct job *j, const struct entry *e, const struct want *w)
{
	static const char names[16][4] = { "rax", "rcx", "rdx", "rbx", "rsp", "rbp", "rsi", "rdi", "r8", "r9", "r10", "r11",
					   "r12", "r13", "r14", "r15" };
	uint64_t fip, fdp;
	bool ok = true;

	memcpy(&fip, j->fx + 8, 8);
	memcpy(&fdp, j->fx + 16, 8);
	for (unsigned r = 0; r < 16; r++)
		ok &= equal(e, w, names[r], j->out[r], w->r[r]);
	ok &= equal(e, w, "vector", j->vector, w->vector);
	ok &= equal(e, w, "error code", j->error, w->error);
	ok &= equal(e, w, "cs", j->cs, 0x2b);
	if (w->at)
		ok &= equal(e, w, "rip", j->at, w->at);
	else
		ok &= j->at - bases[w->end] - 1 < DATA && (code[j->at - bases[w->end] - 1] == 0xcc || equal(e, w, "rip", j->at, 0));
	if (w->vector == PF)
		ok &= equal(e, w, "cr2", j->cr2, w->cr2);
	ok &= equal(e, w, "fip", fip, w->fip);
	ok &= equal(e, w, "fdp", fdp, w->fdp);
	CHECK(ok);
}

static void check_data(struct kvmtest *t)
{
	for (unsigned k = 0; k < NR; k++) {
		const uint8_t *now = t->mem + PRIVATE + 0x4000 * k + 0x1000;

		for (unsigned i = 0; i < DATA_SIZE; i++)
			if (now[i] != data[k][i] && (i & ~0x3ffu) != UNCOMPARED) {
				printf("data of 0x%llx at 0x%x: 0x%x, not 0x%x\n", (unsigned long long)bases[k], i, now[i], data[k][i]);
				CHECK(0);
				break;
			}
	}
	CHECK(!memcmp(t->mem + SHARED, code, 0x2000));
	CHECK(!memcmp(t->mem + SHARED + 0x3000, code + 0x3000, 0x1000));
}

/* Jobs 0 to n - 1, which have been added. */
static void run_jobs(struct kvmtest *t, unsigned n)
{
	struct kvm_regs r = { .rip = KBASE + KERNEL, .rsp = KBASE + STACK0, .rbx = KBASE + JOBS, .rflags = 2 };

	memset(job(t, n), 0, sizeof(struct job));
	memcpy(t->mem + LISTS, lists, sizeof(lists));
	lists_used = 0;
	NEED(ioctl(t->vcpu, KVM_SET_REGS, &r) == 0);
	CHECK_EQ(ioctl(t->vcpu, KVM_RUN, 0), 0);
	CHECK_EQ(t->run->exit_reason, KVM_EXIT_HLT);
	NEED(ioctl(t->vcpu, KVM_GET_REGS, &r) == 0);
	CHECK_EQ(r.rbx, KBASE + JOBS + n * sizeof(struct job));
}

/* A CR3 for all mappings, or one for each. */
static void test_random(bool mixed, unsigned rounds)
{
	static struct want wants[NR_JOBS];
	static const struct entry *what[NR_JOBS];
	struct kvmtest t = open_guest();
	uint64_t cr3[NR];

	for (unsigned k = 0; k < NR; k++) {
		cr3[k] = mixed && k ? cr3[0] : new_cr3(&t);
		map_base(&t, cr3[k], k);
		store(k, POINTERS + 24, va(mixed ? (k + 1) % NR : k, g_1), 8);
		memcpy(t.mem + PRIVATE + 0x4000 * k + 0x1000, data[k], DATA_SIZE);
	}
	set_state(&t, cr3[0]);
	while (rounds--) {
		unsigned n = 0;

		for (; n < NR_JOBS - 1 && lists_used < LISTS_SIZE / 8 - 0x300; n++) {
			unsigned k = rnd(NR);

			what[n] = &entries[rnd(ENTRIES)];
			wants[n] = (struct want){ .k = k, .mixed = mixed };
			add_job(&t, n, what[n], &wants[n], cr3[k]);
		}
		run_jobs(&t, n);
		for (unsigned i = 0; i < n; i++)
			check_job(job(&t, i), what[i], &wants[i]);
		check_data(&t);
	}
	kvmtest_done(&t);
}

/* ---- by the statistics --------------------------------------------------------------------------------------------- */

/* Three times what is the same for all mappings, at mapping k; how many translations that took. */
static long long blocks_for(struct kvmtest *t, unsigned k, uint64_t cr3)
{
	static struct want wants[3 * ENTRIES];
	long long before = kvmtest_stat(t->vcpu, "dbt_blocks");
	const struct entry *what[3 * ENTRIES];
	unsigned n = 0;

	seed = 0x987654321;
	for (unsigned i = 0; i < 3 * ENTRIES; i++) {
		if (entries[i % ENTRIES].varies)
			continue;
		what[n] = &entries[i % ENTRIES];
		wants[n] = (struct want){ .k = k };
		add_job(t, n, what[n], &wants[n], cr3);
		n++;
	}
	run_jobs(t, n);
	for (unsigned i = 0; i < n; i++)
		check_job(job(t, i), what[i], &wants[i]);
	return kvmtest_stat(t->vcpu, "dbt_blocks") - before;
}

static void test_blocks(void)
{
	struct kvmtest t = open_guest();
	const unsigned absolute = 3;
	uint64_t cr3 = new_cr3(&t);
	long long first, again, low, flushes;

	for (unsigned k = 0; k < NR; k++) {
		map_base(&t, cr3, k);
		store(k, POINTERS + 24, va(k, g_1), 8);
		memcpy(t.mem + PRIVATE + 0x4000 * k + 0x1000, data[k], DATA_SIZE);
	}
	set_state(&t, cr3);
	run_jobs(&t, 0);
	flushes = kvmtest_stat(t.vcpu, "dbt_flushes");
	first = blocks_for(&t, 0, cr3);
	again = blocks_for(&t, 1, cr3);
	low = blocks_for(&t, absolute, cr3);
	if (first <= 0 || kvmtest_stat(t.vcpu, "dbt_flushes") > flushes) {
		kvmtest_skipped++;
	} else {
		CHECK(again <= first / 20);
		CHECK(low > first / 2);
	}
	kvmtest_done(&t);
}

static void all(void)
{
	alarm(300);	/* a program gone astray may run forever */
	test_random(true, 40);
	test_random(false, 40);
	test_blocks();
}

int main(int argc, char **argv)
{
	return both_engines(argv[0], all);
}

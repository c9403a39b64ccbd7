/* SPDX-License-Identifier: MIT */
/*
 * Random x87, MMX and SSE programs in the guest and on this machine's CPU: the very same bytes at the same linear addresses,
 * from the same state. Registers, flags, memory, all of the FPU with its pointers to the last instruction and operand, and
 * the exception if there is one must come out the same.
 *	x87 [programs [seed]]
 *
 *  1. Data and code are one mapping, which is the guest's memory and this process's at once. The guest's tables map 1 GiB
 *     to itself.
 *  2. A program ends in HLT, which a process may not execute: SIGSEGV there is the end. So does an exception end it, with a
 *     signal here and with the HLT of a handler in the guest.
 *  3. OUT leaves the guest in the middle, with the FPU in use; the process executes a NOP of two bytes instead. The client's own
 *     x87 environment must not have changed.
 *
 * Seen to fail with a note of pointers that is forgotten at a conditional branch (x87_before(), x86/dbt/x87.c), with one that
 * waits although its operand's registers change (can_wait(); SOFTKVM_ENGINE=diff says so), with x87_discard() leaving the client
 * FNINIT's environment (x86/interp/x87.c), and with no fault rows for MMX instructions (waits_for_x87(), x86/dbt/classify.c).
 */
#include <setjmp.h>
#include <signal.h>
#include <ucontext.h>

#include "both.h"
#include "generate.h"

#define REGION 0x20000000ul	/* slot 1: gpa, linear address and address here */
#define REGION_SIZE 0x10000ul
#define CODE (REGION + 0x1000)
#define DATA (REGION + 0x8000)	/* three pages */
#define DATA_SIZE 0x3000u
#define WORDS (REGION + 0x7000)	/* control words, MXCSRs */
#define IMAGE (REGION + 0xc000)	/* environments and images that the program stores */
#define START (REGION + 0xd000)	/* initial image */
#define STACK (REGION + 0xf800)
#define ABSENT (REGION + 0x200000)
#define IDT 0x20000u
#define HANDLERS 0x30000u
#define FLAGS_ARITH 0x8d5u
#define NONE 255

enum { RAX, RCX, RDX, RBX, RSP, RBP, RSI, RDI, R8 };

static int has_fip, has_fdp, has_fop;	/* this CPU notes them for all instructions, not only for an unmasked exception */

/* ---- the generator ------------------------------------------------------------------------------- */

static uint8_t *leaves[64];
static unsigned nr_leaves;

/* rbx, rdi, r13 point to the middle of the data, rsi and r15 are small, rsp is the stack. */
static void memory(unsigned prefix, unsigned rex, unsigned map, unsigned opcode, unsigned reg)
{
	static const struct {
		uint8_t base, index;
	} forms[] = { { RDI, 4 }, { RDI, 4 }, { RBX, 4 }, { 13, 4 }, { RDI, RSI }, { 13, 15 }, { RBX, 15 }, { RSP, 4 } };
	unsigned i = rnd(8), base = forms[i].base, index = forms[i].index;
	int32_t disp = base == RSP ? -(int)rnd(200) - 32 : (int)rnd(2000) - 1000;

	if (rnd(30) == 0 && base != RSP)
		disp = 0x800 - rnd(16);	/* the data's registers are in the middle of a page */
	/* This CPU's MMX stores have moved TOP before they fault. */
	if (rnd(250) == 0 && (map != 0x0f || opcode == 0xae))
		disp = ABSENT - DATA;
	if (prefix)
		put(1, prefix);
	rex |= (base > 7) | (index > 7 ? 2 : 0);
	if (rex)
		put(1, 0x40 | rex);
	if (map)
		put(1, map);
	put(1, opcode);
	reg = reg << 3;
	if (rnd(8) == 0 && base != RSP) {	/* absolute, relative to rip, cut to 32 bits */
		if (rnd(2)) {
			put(2, 0x04 | reg, 0x25);
			put32(DATA + 0x1000 + rnd(500));
		} else {
			put(1, 0x05 | reg);
			put32(DATA + 0x1000 + rnd(500) - (uint32_t)(uintptr_t)(out + 4));
		}
		return;
	}
	put(1, 0x80 | reg | (index != 4 || (base & 7) == 4 ? 4 : base & 7));
	if (index != 4 || (base & 7) == 4)
		put(1, rnd(4) << 6 | (index & 7) << 3 | (base & 7));
	put32(disp);
}

static void absolute(unsigned opcode, unsigned reg, uint32_t at)
{
	put(3, opcode, 0x04 | reg << 3, 0x25);
	put32(at);
}

static void gen_registers(void)
{
	static const struct {
		uint8_t opcode, from, to;
	} forms[] = {
		{ 0xd8, 0xc0, 0xff }, { 0xd9, 0xc0, 0xcf }, { 0xd9, 0xc0, 0xcf }, { 0xd9, 0xd0, 0xd0 }, { 0xd9, 0xe0, 0xe1 },
		{ 0xd9, 0xe4, 0xe5 }, { 0xd9, 0xe8, 0xee }, { 0xd9, 0xe8, 0xee }, { 0xd9, 0xf0, 0xff }, { 0xda, 0xc0, 0xdf },
		{ 0xda, 0xe9, 0xe9 }, { 0xdb, 0xc0, 0xdf }, { 0xdb, 0xe8, 0xf7 }, { 0xdc, 0xc0, 0xcf }, { 0xdc, 0xe0, 0xff },
		{ 0xdd, 0xc0, 0xc7 }, { 0xdd, 0xd0, 0xef }, { 0xde, 0xc0, 0xcf }, { 0xde, 0xd9, 0xd9 }, { 0xde, 0xe0, 0xff },
		{ 0xdf, 0xc0, 0xc7 }, { 0xdf, 0xe0, 0xe0 }, { 0xdf, 0xe8, 0xf7 },
	};
	unsigned i = rnd(sizeof(forms) / sizeof(*forms));

	put(2, forms[i].opcode, forms[i].from + rnd(forms[i].to - forms[i].from + 1));
}

static void gen_memory(void)
{
	/* Bits: /reg that are plain loads, stores and arithmetic. */
	static const uint8_t plain[8] = { 0xff, 0x8d, 0xff, 0xaf, 0xff, 0x8f, 0xff, 0xff };
	unsigned opcode, reg;

	do {
		opcode = rnd(8);
		reg = rnd(8);
	} while (!(plain[opcode] & 1 << reg));
	memory(0, rnd(20) ? 0 : 8, 0, 0xd8 | opcode, reg);
}

/* movw, movl, movq $0 */
static void put_zeros(unsigned size, uint32_t at)
{
	if (size != 4)
		put(1, size == 2 ? 0x66 : 0x48);
	absolute(0xc7, 0, at);
	for (unsigned i = 0; i < (size == 2 ? 2 : 4); i++)
		put(1, 0);
}

static void gen_control(void)
{
	uint32_t at;

	switch (rnd(10)) {
	case 0: absolute(0xd9, 5, WORDS + 2 * rnd(16)); break;	/* fldcw */
	case 1: memory(0, 0, 0, 0xd9, 7); break;	/* fnstcw */
	case 2: memory(0, 0, 0, 0xdd, 7); break;	/* fnstsw */
	case 3: put(2, 0xdf, 0xe0); break;
	case 4: put(2, 0xdb, 0xe2); break;		/* fnclex */
	case 5: put(1, 0x9b); break;
	case 6:
		if (rnd(4) == 0)
			put(2, 0xdb, 0xe3);		/* fninit */
		break;
	case 7: /* fnstenv; it masks everything. Selectors differ */
		absolute(0xd9, 6, at = IMAGE + 32 * rnd(4));
		put_zeros(2, at + 16);
		put_zeros(2, at + 24);
		if (!has_fop)
			put_zeros(2, at + 18);
		if (!has_fip)
			put_zeros(4, at + 12);
		if (!has_fdp)
			put_zeros(4, at + 20);
		break;
	default: /* fxsave64 */
		put(2, 0x48, 0x0f);
		absolute(0xae, 0, at = IMAGE + 0x200 + 0x200 * rnd(3));
		if (!has_fop)
			put_zeros(2, at + 6);
		if (!has_fip)
			put_zeros(8, at + 8);
		if (!has_fdp)
			put_zeros(8, at + 16);
		break;
	}
}

static void gen_mmx(void)
{
	static const uint8_t arithmetic[] = { 0xfc, 0xfd, 0xfe, 0xd4, 0xef, 0xeb, 0x60, 0x61, 0xf5, 0x74, 0x67, 0xf6 };

	switch (rnd(8)) {
	case 0: case 1: memory(0, 0, 0x0f, 0x6f, rnd(8)); break;
	case 2: memory(0, 0, 0x0f, 0x7f, rnd(8)); break;
	case 3: put(3, 0x0f, arithmetic[rnd(sizeof(arithmetic))], 0xc0 | rnd(64)); break;
	case 4: put(4, 0xf2, 0x0f, 0xd6, 0xc0 | rnd(64)); break;	/* movdq2q */
	case 5: put(4, 0xf3, 0x0f, 0xd6, 0xc0 | rnd(64)); break;	/* movq2dq */
	case 6: put(3, 0x0f, 0x7e, 0xc0 | rnd(8) << 3); break;		/* movd mm, eax */
	default: put(2, 0x0f, 0x77); break;
	}
}

static void gen_sse(void)
{
	switch (rnd(6)) {
	case 0: put(1, 0x0f), absolute(0xae, 2, WORDS + 64 + 4 * rnd(16)); break;	/* ldmxcsr */
	case 1: memory(0, 0, 0x0f, 0xae, 3); break;	/* stmxcsr */
	case 2: put(4, 0xf2, 0x0f, 0x58 | rnd(2), 0xc0 | rnd(64)); break;	/* addsd, mulsd */
	case 3: put(4, 0xf3, 0x0f, 0x5e, 0xc0 | rnd(64)); break;	/* divss */
	case 4: memory(0xf3, 0, 0x0f, 0x6f, rnd(8)); break;	/* movdqu */
	default: memory(0xf3, 0, 0x0f, 0x7f, rnd(8)); break;
	}
}

static void gen_integer(void)
{
	switch (rnd(8)) {
	case 0: put(4, 0x48, 0x83, 0xc7, rnd(64) - 32); break;	/* add $, rdi */
	case 1: put(4, 0x49, 0x8d, 0x5d, rnd(64) - 32); break;	/* lea (r13), rbx */
	case 2: put(4, 0x48, 0x8d, 0x34, 0x25), put32(rnd(40)); break;	/* lea $, rsi */
	case 3: put(4, 0x41, 0xbf, rnd(40), 0), put(2, 0, 0); break;	/* mov $, r15d */
	case 4: memory(0, 8, 0, 0x8b, RDX); break;
	case 5: memory(0, 8, 0, 0x01, RDX); break;
	case 6: put(1, 0x9e); break;	/* sahf */
	default: put(2, 0x52, 0x5a); break;	/* push, pop rdx */
	}
}

static void gen_leave(void)
{
	if (nr_leaves == sizeof(leaves) / sizeof(*leaves))
		return;
	leaves[nr_leaves++] = out;
	put(2, 0xe6, 0x80);
}

static void gen_one(unsigned depth)
{
	uint8_t *field;

	switch (rnd(20)) {
	case 0: case 1: case 2: case 3: case 4: case 5: gen_registers(); break;
	case 6: case 7: case 8: case 9: case 10: gen_memory(); break;
	case 11: case 12: gen_control(); break;
	case 13: case 14: gen_integer(); break;
	case 15:
		if (rnd(3) == 0)
			gen_mmx();
		break;
	case 16: case 17: gen_sse(); break;
	case 18:
		if (rnd(6) == 0)
			gen_leave();
		break;
	default:
		if (depth)
			break;
		put(2, 0x70 | rnd(16), 0);	/* jcc over a few */
		field = out;
		for (unsigned n = 1 + rnd(3); n; n--)
			gen_one(depth + 1);
		field[-1] = out - field;
		break;
	}
}

/* Three times, then HLT. */
static void gen_program(void)
{
	uint8_t *start;

	memset((void *)CODE, 0xf4, 0x4000);
	nr_leaves = 0;
	out = (uint8_t *)CODE;
	put(6, 0x41, 0xbc, 3, 0, 0, 0);	/* mov $3, r12d */
	start = out;
	for (unsigned n = 3 + rnd(60); n; n--)
		gen_one(0);
	put(5, 0x41, 0xff, 0xcc, 0x0f, 0x85);	/* dec r12d; jnz */
	put32(start - (out + 4));
	put(1, 0xf4);
}

/* ---- states ------------------------------------------------------------------------------------ */

struct fx {
	uint16_t fcw, fsw;
	uint8_t ftw, pad;
	uint16_t fop;
	uint64_t fip, fdp;
	uint32_t mxcsr, mxcsr_mask;
	uint8_t st[8][16], xmm[16][16], rest[96];
};

struct outcome {
	struct fx fx;
	uint64_t gpr[16];	/* in the order of their numbers */
	uint64_t rip, flags;
	unsigned vector;
	uint8_t memory[STACK - DATA];	/* data and images */
};

static uint8_t initial[REGION_SIZE];

static void fill_data(void)
{
	static const double values[] = { 0, 1, -1, 0.1, 1e300, 1e-310, 3, -0.0, 1e10 };

	for (unsigned i = 0; i < DATA_SIZE; i += 8) {
		double v = values[rnd(9)];

		memcpy((void *)(DATA + i), &v, 8);
		if (rnd(3) == 0)
			*(uint64_t *)(DATA + i) = (uint64_t)rnd(1u << 31) << rnd(34);
	}
	for (unsigned i = 0; i < 16; i++) {
		/* Exceptions are unmasked now and then, and few MXCSRs are impossible. */
		((uint16_t *)WORDS)[i] = (rnd(4) ? 0x3f : rnd(64)) | 0x40 | rnd(16) << 8;
		((uint32_t *)(WORDS + 64))[i] = rnd(40) ? 0x1f80 | rnd(4) << 13 | rnd(2) << 15 | rnd(64) : 0x80001f80;
	}
	memset((void *)IMAGE, 0, 0x800);
	memset((void *)(STACK - 0x800), 0, 0x1000);
}

static void make_start(struct fx *fx)
{
	memset(fx, 0, sizeof(*fx));
	fx->fcw = 0x37f;
	fx->fsw = rnd(8) << 11;
	fx->ftw = rnd(2) ? 0 : rnd(256);
	fx->mxcsr = 0x1f80;
	fx->fip = 0x1234;
	fx->fdp = 0x5678;
	for (unsigned i = 0; i < 8; i++) {
		long double v = (int)rnd(1000) - 500;

		memcpy(fx->st[i], &v, 10);
	}
	for (unsigned i = 0; i < 16; i++)
		for (unsigned j = 0; j < 16; j++)
			fx->xmm[i][j] = j % 8 == 7 ? 0x3f : rnd(256);
}

static uint64_t start_gpr(unsigned r)
{
	switch (r) {
	case RSP: return STACK;
	case RSI: case 15: return 8;
	case RDI: case RBX: case 13: return DATA + 0x1800;
	default: return 0;
	}
}

/* ---- this CPU ------------------------------------------------------------------------------------ */

static sigjmp_buf after;
static struct outcome host;

static void on_signal(int sig, siginfo_t *info, void *context)
{
	static const uint8_t order[16] = { REG_RAX, REG_RCX, REG_RDX, REG_RBX, REG_RSP, REG_RBP, REG_RSI, REG_RDI,
					   REG_R8, REG_R9, REG_R10, REG_R11, REG_R12, REG_R13, REG_R14, REG_R15 };
	ucontext_t *uc = context;
	greg_t *g = uc->uc_mcontext.gregs;

	(void)sig, (void)info;
	if (g[REG_RIP] < (greg_t)CODE || g[REG_RIP] >= (greg_t)CODE + 0x4000)
		_exit(3);
	for (unsigned i = 0; i < 16; i++)
		host.gpr[i] = g[order[i]];
	host.rip = g[REG_RIP];
	host.flags = g[REG_EFL] & FLAGS_ARITH;
	host.vector = *(uint8_t *)host.rip == 0xf4 ? NONE : g[REG_TRAPNO];
	memcpy(&host.fx, uc->uc_mcontext.fpregs, sizeof(host.fx));
	siglongjmp(after, 1);
}

static void run_here(void)
{
	for (unsigned i = 0; i < nr_leaves; i++)
		memcpy(leaves[i], "\x66\x90", 2);
	if (!sigsetjmp(after, 1))
		asm volatile("fxrstor64 %0\n"
			     "mov %1, %%rbx\n mov %%rbx, %%rdi\n mov %%rbx, %%r13\n mov $8, %%esi\n mov $8, %%r15d\n"
			     "mov %2, %%rsp\n"
			     "xor %%eax, %%eax\n xor %%ecx, %%ecx\n xor %%edx, %%edx\n xor %%ebp, %%ebp\n"
			     "xor %%r8d, %%r8d\n xor %%r9d, %%r9d\n xor %%r10d, %%r10d\n xor %%r11d, %%r11d\n"
			     "xor %%r12d, %%r12d\n xor %%r14d, %%r14d\n"
			     "push $0x202\n popf\n"
			     "push %3\n ret"
			     : : "m"(*(struct fx *)START), "i"(DATA + 0x1800), "i"(STACK), "i"(CODE)
			     : "memory");
	asm volatile("fninit");
	memcpy(host.memory, (void *)DATA, sizeof(host.memory));
	for (unsigned i = 0; i < nr_leaves; i++)
		memcpy(leaves[i], "\xe6\x80", 2);
}

static void setup_here(void)
{
	static uint8_t stack[65536];
	const stack_t alternate = { .ss_sp = stack, .ss_size = sizeof(stack) };
	struct sigaction sa = { .sa_sigaction = on_signal, .sa_flags = SA_SIGINFO | SA_ONSTACK };

	NEED(mmap((void *)REGION, REGION_SIZE, PROT_READ | PROT_WRITE | PROT_EXEC,
		  MAP_PRIVATE | MAP_ANONYMOUS | MAP_FIXED_NOREPLACE, -1, 0) == (void *)REGION);
	NEED(!sigaltstack(&alternate, NULL) && !sigaction(SIGFPE, &sa, NULL) && !sigaction(SIGSEGV, &sa, NULL) &&
	     !sigaction(SIGILL, &sa, NULL));
}

/* ---- the guest ----------------------------------------------------------------------------------- */

static void setup_guest(struct kvmtest *t)
{
	struct kvm_userspace_memory_region region = {
		.slot = 1, .guest_phys_addr = REGION, .memory_size = REGION_SIZE, .userspace_addr = REGION,
	};
	struct kvm_sregs s;

	*t = kvmtest_vm(2u << 20, 0);
	NEED(ioctl(t->vm, KVM_SET_USER_MEMORY_REGION, &region) == 0);
	kvmtest_add_vcpu(t, 0);
	kvmtest_long_mode(t, 0, "", 0);
	for (unsigned v = 0; v < 32; v++) {
		uint64_t to = HANDLERS + 16 * v;

		kvmtest_gate(t, IDT, v, to);
		t->mem[to] = 0xf4;
	}
	((uint64_t *)(t->mem + 0x3000))[ABSENT >> 21] = 0;
	NEED(ioctl(t->vcpu, KVM_GET_SREGS, &s) == 0);
	s.idt.base = IDT;
	s.idt.limit = 32 * 16 - 1;
	s.cr0 |= 0x22;	/* MP, NE */
	s.cr4 |= 0x600;
	NEED(ioctl(t->vcpu, KVM_SET_SREGS, &s) == 0);
}

/* KVM_GET_FPU and KVM_SET_FPU have no MXCSR. */
static void set_fx(struct kvmtest *t, const struct fx *fx)
{
	static struct kvm_xsave area;

	memset(&area, 0, sizeof(area));
	memcpy(area.region, fx, sizeof(*fx));
	area.region[512 / 4] = 3;
	NEED(ioctl(t->vcpu, KVM_SET_XSAVE, &area) == 0);
}

static void get_fx(struct kvmtest *t, struct fx *fx)
{
	static struct kvm_xsave area;

	NEED(ioctl(t->vcpu, KVM_GET_XSAVE, &area) == 0);
	memcpy(fx, area.region, sizeof(*fx));
}

struct env {
	uint16_t w[14];
};

/* KVM_RUN with a control word and a status of our own, which are the same afterwards. */
static int run_client(struct kvmtest *t)
{
	struct env before, now;
	uint16_t cw = 0x27f;
	int r;

	/* 1 / 3 is not exact. */
	asm volatile("fninit\n fldcw %1\n fld1\n fldpi\n fdivrp\n fstp %%st(0)\n fnstenv %0\n fldcw %1" : "=m"(before) : "m"(cw));
	r = ioctl(t->vcpu, KVM_RUN, 0);
	asm volatile("fnstenv %0\n fninit" : "=m"(now));
	CHECK_EQ(now.w[0], cw);
	CHECK_EQ(now.w[2], before.w[2]);
	CHECK_EQ(now.w[4], 0xffff);
	return r;
}

static void run_guest(struct kvmtest *t, struct outcome *o)
{
	struct kvm_regs regs = { .rip = CODE, .rflags = 2 };
	__u64 *kvm_order[16] = { &regs.rax, &regs.rcx, &regs.rdx, &regs.rbx, &regs.rsp, &regs.rbp, &regs.rsi, &regs.rdi,
				    &regs.r8, &regs.r9, &regs.r10, &regs.r11, &regs.r12, &regs.r13, &regs.r14, &regs.r15 };

	for (unsigned i = 0; i < 16; i++)
		*kvm_order[i] = start_gpr(i);
	NEED(ioctl(t->vcpu, KVM_SET_REGS, &regs) == 0);
	set_fx(t, (struct fx *)START);
	do
		NEED(run_client(t) == 0);
	while (t->run->exit_reason == KVM_EXIT_IO);
	NEED(t->run->exit_reason == KVM_EXIT_HLT);
	NEED(ioctl(t->vcpu, KVM_GET_REGS, &regs) == 0);
	get_fx(t, &o->fx);
	for (unsigned i = 0; i < 16; i++)
		o->gpr[i] = *kvm_order[i];
	o->rip = regs.rip - 1;
	o->flags = regs.rflags & FLAGS_ARITH;
	o->vector = NONE;
	memcpy(o->memory, (void *)DATA, sizeof(o->memory));
	if (o->rip >= HANDLERS && o->rip < HANDLERS + 32 * 16) {
		const uint64_t *frame = (uint64_t *)regs.rsp;

		o->vector = (o->rip - HANDLERS) / 16;
		if (o->vector == 8 || (o->vector >= 10 && o->vector <= 14))
			frame++;
		o->rip = frame[0];
		o->gpr[RSP] = frame[3];
	}
}

/* ---- comparison ------------------------------------------------------------------------------------ */

static unsigned show;

static int differ(const char *what, uint64_t here, uint64_t there)
{
	if (here != there && show)
		printf("  %s: %llx in the guest, %llx here\n", what, (unsigned long long)there, (unsigned long long)here);
	return here != there;
}

static int compare(const struct outcome *g)
{
	int bad = differ("vector", host.vector, g->vector) | differ("rip", host.rip, g->rip) |
		  differ("fcw", host.fx.fcw, g->fx.fcw) | differ("fsw", host.fx.fsw, g->fx.fsw) |
		  differ("ftw", host.fx.ftw, g->fx.ftw) | differ("mxcsr", host.fx.mxcsr, g->fx.mxcsr);

	bad |= has_fip && differ("fip", host.fx.fip, g->fx.fip);
	bad |= has_fdp && differ("fdp", host.fx.fdp, g->fx.fdp);
	bad |= has_fop && differ("fop", host.fx.fop, g->fx.fop);
	/* What overwrites flags unread need not have them in the frame of an exception. */
	if (host.vector == NONE)
		bad |= differ("flags", host.flags, g->flags);
	for (unsigned i = 0; i < 16; i++)
		bad |= differ("a register", host.gpr[i], g->gpr[i]);
	for (unsigned i = 0; i < 8; i++)
		bad |= !!memcmp(host.fx.st[i], g->fx.st[i], 10) &&
		       differ("st", *(uint64_t *)host.fx.st[i], *(uint64_t *)g->fx.st[i]) + 1;
	bad |= differ("xmm", 0, memcmp(host.fx.xmm, g->fx.xmm, sizeof(g->fx.xmm)));
	for (unsigned i = 0; i < STACK - 0x800 - DATA; i++)
		if (host.memory[i] != g->memory[i])
			return differ("memory at", 0, DATA + i) | 1;
	return bad;
}

static void probe_pointers(void)
{
	static float one = 1;
	struct fx fx;

	memset(&fx, 0, sizeof(fx));
	asm volatile("fninit\n fld1\n fadds %1\n fxsave64 %0\n fninit" : "=m"(fx) : "m"(one));
	has_fip = !!fx.fip;
	has_fdp = fx.fdp == (uintptr_t)&one;
	has_fop = !!fx.fop;
	kvmtest_skipped += !has_fip + !has_fdp + !has_fop;
}

static unsigned programs = 1500;
static uint64_t first_seed = 1;

static void run_programs(void)
{
	static struct outcome guest;
	unsigned ends[256] = { 0 }, bad = 0;
	struct kvmtest t;

	setup_here();
	setup_guest(&t);
	probe_pointers();
	for (unsigned i = 0; i < programs; i++) {
		seed = (first_seed + i) * 0x9e3779b97f4a7c15ull;
		gen_program();
		fill_data();
		make_start((struct fx *)START);
		memcpy(initial, (void *)REGION, sizeof(initial));
		run_here();
		memcpy((void *)REGION, initial, sizeof(initial));
		run_guest(&t, &guest);
		show = 0;
		ends[host.vector]++;
		if (!compare(&guest))
			continue;
		if (++bad > 5)
			break;
		printf("program of seed %llu differs\n", (unsigned long long)(first_seed + i));
		show = 1;
		compare(&guest);
	}
	CHECK_EQ(bad, 0);
	/* Most end well, and some in each of the exceptions there are to be had. */
	CHECK(ends[NONE] > programs / 8);
	CHECK(programs < 1000 || (ends[16] && ends[14] && ends[13]));
	printf("%u programs: %u to the end, %u #MF, %u #PF, %u #GP\n", programs, ends[NONE], ends[16], ends[14], ends[13]);
}

int main(int argc, char **argv)
{
	if (argc > 1)
		programs = strtoul(argv[1], NULL, 0);
	if (argc > 2)
		first_seed = strtoull(argv[2], NULL, 0);
	if (argc > 1) {
		run_programs();
		return kvmtest_summary();
	}
	/* This CPU may not note all that guests get to see: there the engines must agree at least. */
	if (!getenv("SOFTKVM_ENGINE"))
		both_one(argv[0], "diff");
	return both_engines(argv[0], run_programs);
}

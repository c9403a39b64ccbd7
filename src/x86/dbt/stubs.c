/* SPDX-License-Identifier: MIT */
/*
 * The code that is the same for all blocks, generated once, before the first:
 * ways in, ways out, and the call of a C handler from the middle of a block.
 *
 *  1. Between blocks and C the whole state goes through struct vcpu: the frame's
 *     copies (r9-r11, flags, segment bases) are made on the way in.
 *  2. Vector registers of the guest are loaded at the first vector instruction of a
 *     stay in translated code (FRAME_VEC). Calls of handlers store them and load them
 *     again; leaving stores them.
 *  3. x87 registers of the guest stay in the host's, in C as well, until somebody stores them (interp/x87.c).
 *  4. rsp is 16-byte aligned in blocks; a call of a common part makes it 8 less.
 */
#include "x86/dbt/diff.h"

#define VCPU_REG(r) ((s32)(offsetof(struct vcpu, arch.regs) + 8 * (r)))
#define VCPU_YMM(r) ((s32)(offsetof(struct vcpu, arch.fpu.ymm) + 32 * (r)))
#define VCPU(field) ((s32)offsetof(struct vcpu, arch.field))

/* The guest registers that have a host register. */
static const u8 live[][2] = { /* guest, host */
	{ RAX, RAX }, { RCX, RCX }, { RDX, RDX }, { RBX, RBX }, { RBP, RBP }, { RSI, RSI }, { RDI, RDI },
	{ R8, R8 }, { R12, R12 }, { R13, R13 }, { R14, R14 }, { R15, R15 }, { RSP, GUEST_RSP },
};

/* vmovdqu ymm or movups xmm, [base + disp] */
static void put_vector(struct emit *e, bool avx, bool store, u8 reg, u8 base, s32 disp)
{
	struct hmem m = MEM_BASE(base, disp);

	if (avx) {
		put8(e, 0xc4);
		put8(e, (reg < 8) << 7 | 1 << 6 | (base < 8) << 5 | 1);
		put8(e, 0x7e);
		put8(e, store ? 0x7f : 0x6f);
		put_modrm_mem(e, reg, &m);
	} else {
		put_rm(e, W4, OPC_0F | (store ? 0x11 : 0x10), reg, m);
	}
}

/* As mxcsr_load() does; T1 = vcpu. */
static void put_mxcsr_load(struct emit *e)
{
	u32 skip;

	put_rm(e, W4, 0x80, 7, MEM_BASE(T1, VCPU(fpu.mxcsr_live)));
	put8(e, 0);
	skip = put_jcc_later(e, CC_NE);
	put_rm(e, W4, OPC_0F | 0xae, 3, MEM_BASE(T1, VCPU(fpu.host_mxcsr)));	/* stmxcsr */
	put_rm(e, W4, OPC_0F | 0xae, 2, MEM_BASE(T1, VCPU(fpu.mxcsr)));		/* ldmxcsr */
	put_rm(e, W4, 0xc6, 0, MEM_BASE(T1, VCPU(fpu.mxcsr_live)));
	put8(e, 1);
	patch_rel32(e, skip, e->at);
}

static void put_vzeroupper(struct emit *e)
{
	put8(e, 0xc5);
	put8(e, 0xf8);
	put8(e, 0x77);
}

/* T0 = 0: the upper halves in struct vcpu are. Vector registers are lost. */
static void put_upper_test(struct emit *e, u8 base)
{
	put_rm(e, W4, OPC_66 | OPC_0F | 0x6f, 0, MEM_BASE(base, VCPU_YMM(0) + 16));	/* movdqa */
	for (unsigned i = 1; i < 16; i++)
		put_rm(e, W4, OPC_66 | OPC_0F | 0xeb, 0, MEM_BASE(base, VCPU_YMM(i) + 16));	/* por */
	put_rr(e, W4, OPC_66 | OPC_0F | 0x6f, 1, 0);
	put_rr(e, W4, OPC_66 | OPC_0F | 0x6d, 1, 1);	/* punpckhqdq */
	put_rr(e, W4, OPC_66 | OPC_0F | 0xeb, 0, 1);
	put_rr(e, W8, OPC_66 | OPC_0F | 0x7e, 0, T0);	/* movq */
	put_rr(e, W8, 0x85, T0, T0);
}

/*
 * A load of all of a register, even of zeros, makes the host believe that upper halves are in use, until VZEROUPPER. SSE
 * instructions are many times slower then, and a guest that knows no AVX never executes that. T0 is lost.
 */
static void put_vectors_load(struct emit *e, u8 base)
{
	bool avx = host_xcr0() & XFEATURE_AVX;
	u32 in_use = 0, done = 0;

	if (avx) {
		put_vzeroupper(e);
		put_upper_test(e, base);
		in_use = put_jcc_later(e, CC_NE);
	}
	for (unsigned i = 0; i < 16; i++)
		put_vector(e, false, false, i, base, VCPU_YMM(i));
	if (!avx)
		return;
	put_jmp(e, 0);
	done = e->at - 4;
	patch_rel32(e, in_use, e->at);
	for (unsigned i = 0; i < 16; i++)
		put_vector(e, true, false, i, base, VCPU_YMM(i));
	patch_rel32(e, done, e->at);
}

static void put_vectors_store(struct emit *e, u8 base)
{
	bool avx = host_xcr0() & XFEATURE_AVX;

	for (unsigned i = 0; i < 16; i++)
		put_vector(e, avx, true, i, base, VCPU_YMM(i));
	if (avx)
		put_vzeroupper(e);
}

/* if (frame byte FRAME_VEC) store or load all vector registers; T1 = vcpu; off: of the frame from rsp. A load loses T0. */
static void put_vectors_if_live(struct emit *e, bool store, s32 off)
{
	u32 skip;

	put_alu_mem_imm(e, W4, 7, SLOT(off + FRAME_VEC), 0);
	skip = put_jcc_later(e, CC_E);
	if (store) {
		put_vectors_store(e, T1);
	} else {
		put_vectors_load(e, T1);
		put_mxcsr_load(e);
	}
	patch_rel32(e, skip, e->at);
}

/* What blocks have noted of x87 pointers to struct vcpu: C takes it up at once (dbt_take_x87_notes()). T1 = vcpu; rax is lost. */
static void put_x87_notes(struct emit *e, s32 off)
{
	u32 skip;

	put_alu_mem_imm(e, W8, 7, SLOT(off + FRAME_X87_NOTE), 0);
	skip = put_jcc_later(e, CC_E);
	put_load(e, RAX, SLOT(off + FRAME_X87_NOTE));
	put_store(e, MEM_BASE(T1, VCPU(fpu.noted)), RAX);
	put_load(e, RAX, SLOT(off + FRAME_X87_FDP));
	put_store(e, MEM_BASE(T1, VCPU(fpu.noted_fdp)), RAX);
	put_load(e, RAX, SLOT(off + FRAME_X87_PAGE));
	put_store(e, MEM_BASE(T1, VCPU(fpu.noted_page)), RAX);
	put_rm(e, W8, 0xc7, 0, SLOT(off + FRAME_X87_NOTE));
	put32(e, 0);
	patch_rel32(e, skip, e->at);
}

/* Everything to struct vcpu; T1 = vcpu afterwards; T0 survives. Needs rax, rcx, rdx after storing them. */
static void put_spill(struct emit *e, s32 off)
{
	put_load(e, T1, SLOT(off + FRAME_VCPU));
	for (unsigned i = 0; i < ARRAY_SIZE(live); i++)
		put_store(e, MEM_BASE(T1, VCPU_REG(live[i][0])), live[i][1]);
	for (unsigned i = 0; i < 3; i++) {
		put_load(e, RAX, SLOT(off + FRAME_R9 + 8 * i));
		put_store(e, MEM_BASE(T1, VCPU_REG(R9 + i)), RAX);
	}
	put_load(e, RAX, SLOT(off + FRAME_PAGE));
	put_store(e, MEM_BASE(T1, VCPU(block_page)), RAX);
	/* rflags = rflags & ~OSZAPC | AH & 0xd5 | AL << 11 */
	put_rm(e, W4, OPC_0F | 0xb6, RAX, SLOT(off + FRAME_FLAGS + 1));
	put_rm(e, W4, OPC_0F | 0xb6, RCX, SLOT(off + FRAME_FLAGS));
	put_alu_imm(e, W4, 4, RAX, 0xd5);
	put_shift_imm(e, W4, 4, RCX, 11);
	put_rr(e, W4, 0x09, RCX, RAX);
	put_load(e, RCX, MEM_BASE(T1, VCPU(rflags)));
	put_alu_imm(e, W8, 4, RCX, ~(s32)X86_EFLAGS_OSZAPC);
	put_rr(e, W8, 0x09, RAX, RCX);
	put_store(e, MEM_BASE(T1, VCPU(rflags)), RCX);
	put_x87_notes(e, off);
	put_vectors_if_live(e, true, off);
}

/* And back. T1 = vcpu. */
static void put_reload(struct emit *e, s32 off)
{
	put_load(e, RAX, MEM_BASE(T1, VCPU(rflags)));
	put_rm(e, W4, 0x88, RAX, SLOT(off + FRAME_FLAGS + 1));
	put_shift_imm(e, W4, 5, RAX, 11);
	put_alu_imm(e, W4, 4, RAX, 1);
	put_rm(e, W4, 0x88, RAX, SLOT(off + FRAME_FLAGS));
	put_rm(e, W4, OPC_0F | 0xb6, RAX, MEM_BASE(T1, VCPU(fpu.x87_live)));
	put_rm(e, W4, 0x88, RAX, SLOT(off + FRAME_X87));
	put_load(e, RAX, MEM_BASE(T1, VCPU(seg[SEG_FS].base)));
	put_store(e, SLOT(off + FRAME_FS), RAX);
	put_load(e, RAX, MEM_BASE(T1, VCPU(seg[SEG_GS].base)));
	put_store(e, SLOT(off + FRAME_GS), RAX);
	for (unsigned i = 0; i < 3; i++) {
		put_load(e, RAX, MEM_BASE(T1, VCPU_REG(R9 + i)));
		put_store(e, SLOT(off + FRAME_R9 + 8 * i), RAX);
	}
	for (unsigned i = 0; i < ARRAY_SIZE(live); i++)
		put_load(e, live[i][1], MEM_BASE(T1, VCPU_REG(live[i][0])));
}

/* FRAME_PAGE as C has set it. T1 = vcpu. */
static void put_load_page(struct emit *e)
{
	put_load(e, RAX, MEM_BASE(T1, VCPU(block_page)));
	put_store(e, SLOT(FRAME_PAGE), RAX);
}

static const u8 saved[] = { RBX, RBP, R12, R13, R14, R15 };

/* u32 enter(struct vcpu *vcpu, const void *code) */
static void emit_enter(struct dbt *d)
{
	struct emit *e = &d->emit;

	d->enter = e->at;
	for (unsigned i = 0; i < ARRAY_SIZE(saved); i++)
		put_opcode(e, 0x50 | (saved[i] & 7), saved[i] >> 3);
	put_alu_imm(e, W8, 5, RSP, FRAME_SIZE);
	put_store(e, SLOT(FRAME_VCPU), RDI);
	put_store(e, SLOT(FRAME_TMP0), RSI);
	put_mov(e, T1, RDI);
	put_rm(e, W4, 0xc7, 0, SLOT(FRAME_VEC));
	put32(e, 0);
	put_rm(e, W8, 0xc7, 0, SLOT(FRAME_X87_NOTE));
	put32(e, 0);
	put_load_page(e);
	put_reload(e, 0);
	put_rm(e, W4, 0xff, 4, SLOT(FRAME_TMP0)); /* jmp */
}

/* Return eax to C. Everything is in struct vcpu. */
static void put_leave(struct emit *e)
{
	put_alu_imm(e, W8, 0, RSP, FRAME_SIZE);
	for (int i = ARRAY_SIZE(saved) - 1; i >= 0; i--)
		put_opcode(e, 0x58 | (saved[i] & 7), saved[i] >> 3);
	put8(e, 0xc3);
}

/* Direct exits: T0 = exit index */
static void emit_exits(struct dbt *d)
{
	struct emit *e = &d->emit;

	d->exit_host = e->at;
	put_mov(e, T1, RAX);
	put8(e, 0x9f); /* lahf */
	put_rr(e, W4, OPC_0F | 0x90, 0, RAX); /* seto %al */
	put_rm(e, W4, OPC_66 | 0x89, RAX, SLOT(FRAME_FLAGS));
	put_mov(e, RAX, T1);
	d->exit_slot = e->at;
	put_spill(e, 0);
	put_rr(e, W4, 0x89, T0, RAX);
	put_leave(e);

	/* Indirect exits: T0 = site index, FRAME_TMP1 = target */
	d->exit_indirect = e->at;
	put_spill(e, 0);
	put_load(e, RAX, SLOT(FRAME_TMP1));
	put_store(e, MEM_BASE(T1, VCPU(rip)), RAX);
	put_rr(e, W4, 0x89, T0, RAX);
	put_alu_imm(e, W4, 1, RAX, DBT_INDIRECT << 28);
	put_leave(e);
}

/* Return to 0, for which nobody has called: as an indirect exit, of any site. Flags are in the slot. */
static void emit_return_none(struct dbt *d)
{
	struct emit *e = &d->emit;

	d->return_none = e->at;
	put_spill(e, 0);
	put_rm(e, W8, 0xc7, 0, MEM_BASE(T1, VCPU(rip)));
	put32(e, 0);
	put_mov_imm(e, RAX, DBT_INDIRECT << 28);
	put_leave(e);
}

/* fn(vcpu, site); T1 = vcpu before and after, T0 = site. rsp is pad below the frame. */
static void put_site_call(struct emit *e, const void *fn, s32 pad)
{
	put_mov(e, RDI, T1);
	put_rr(e, W4, 0x89, T0, RSI);
	put_mov_imm(e, RAX, (u64)fn);
	put_rr(e, W4, 0xff, 2, RAX); /* call */
	put_load(e, T1, SLOT(pad + FRAME_VCPU));
}

/* Called: T0 = site index. Comes back with everything reloaded, or leaves. */
static void emit_slow(struct dbt *d)
{
	struct emit *e = &d->emit;
	u32 leave;

	d->slow = e->at;
	put_spill(e, 8);
	put_alu_imm(e, W8, 5, RSP, 8);
	put_site_call(e, dbt_call_insn, 16);
	put_alu_imm(e, W8, 0, RSP, 8);
	put_rr(e, W4, 0x85, RAX, RAX);
	leave = put_jcc_later(e, CC_NE);
	put_vectors_if_live(e, false, 8);
	put_reload(e, 8);
	put8(e, 0xc3);
	patch_rel32(e, leave, e->at);
	put_alu_imm(e, W8, 0, RSP, 8);
	put_mov_imm(e, RAX, (u64)DBT_LEAVE << 28);
	put_leave(e);
}

/* T0 = site index. As above, but goes on with the block that C names. Fault rows without code of their own lead here, too. */
static void emit_slow_on(struct dbt *d)
{
	struct emit *e = &d->emit;
	u32 leave;

	d->slow_on = e->at;
	put_spill(e, 0);
	put_site_call(e, dbt_call_insn_on, 0);
	put_rr(e, W8, 0x85, RAX, RAX);
	leave = put_jcc_later(e, CC_E);
	put_store(e, SLOT(FRAME_TMP0), RAX);
	put_vectors_if_live(e, false, 0);
	put_load_page(e);
	put_reload(e, 0);
	put_rm(e, W4, 0xff, 4, SLOT(FRAME_TMP0)); /* jmp */
	patch_rel32(e, leave, e->at);
	put_mov_imm(e, RAX, (u64)DBT_LEAVE << 28);
	put_leave(e);
}

/* Called: make the guest's vector registers live. T0, T1 are free; flags are dead or in the slot. */
static void emit_load_vec(struct dbt *d)
{
	struct emit *e = &d->emit;

	d->load_vec = e->at;
	put_load(e, T1, SLOT(8 + FRAME_VCPU));
	put_vectors_load(e, T1);
	put_rm(e, W4, 0xc6, 0, SLOT(8 + FRAME_VEC));
	put8(e, 1);
	put_mxcsr_load(e);
	put8(e, 0xc3);
}

/* Called: make the guest's x87 registers live, if they are not. As above. */
static void emit_load_x87(struct dbt *d)
{
	struct emit *e = &d->emit;
	u32 live;

	d->load_x87 = e->at;
	put_rm(e, W4, 0x80, 7, SLOT(8 + FRAME_X87));
	put8(e, 0);
	live = put_jcc_later(e, CC_NE);
	put_spill(e, 8);
	put_mov(e, RDI, T1);
	put_alu_imm(e, W8, 5, RSP, 8);
	put_mov_imm(e, RAX, (u64)dbt_load_x87);
	put_rr(e, W4, 0xff, 2, RAX); /* call */
	put_alu_imm(e, W8, 0, RSP, 8);
	put_load(e, T1, SLOT(8 + FRAME_VCPU));
	put_vectors_if_live(e, false, 8);
	put_reload(e, 8);
	patch_rel32(e, live, e->at);
	put8(e, 0xc3);
}

void dbt_emit_common(struct dbt *d)
{
	emit_enter(d);
	emit_exits(d);
	emit_return_none(d);
	emit_slow(d);
	emit_slow_on(d);
	emit_load_vec(d);
	emit_load_x87(d);
	dbt_emit_reps(d);
	dbt_emit_refills(d);
	dbt_emit_jumps(d);
	if (d->diff)
		diff_emit_common(d);
	d->code_start = (d->emit.at + 63) & ~63u;
	d->emit.at = d->code_start;
	d->common_faults = d->nr_faults;
}

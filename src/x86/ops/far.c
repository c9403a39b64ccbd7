/* SPDX-License-Identifier: MIT */
/*
 * Far JMP, CALL and RET, through code segments, call gates, task gates and TSSs.
 * The checks come first, in the manuals' order; commit_cs() cannot fail.
 */
#include <string.h>

#include "x86/interp/operand.h"
#include "x86/ops/descriptor.h"

enum far_kind { FAR_JMP, FAR_CALL };

/* A code segment reached directly or through a gate. */
struct far_target {
	u64 rip;
	struct segment cs;
	unsigned cpl;
};

static u64 next_rip(const struct vcpu *vcpu, const struct insn *insn)
{
	return (vcpu->arch.rip + insn->len) & ip_mask(vcpu);
}

static u64 truncate_rip(u64 rip, unsigned opsize)
{
	return opsize == 2 ? (u16)rip : opsize == 4 ? (u32)rip : rip;
}

static enum exec far_commit(struct vcpu *vcpu, const struct far_target *t)
{
	vcpu->arch.rip = t->rip;
	commit_cs(vcpu, t->cs, t->cpl);
	return EXEC_BRANCH;
}

/* ---- real mode and vm86 --------------------------------------------------------- */

static enum exec far_real(struct vcpu *vcpu, const struct insn *insn, enum far_kind kind, u16 selector, u64 rip)
{
	struct segment cs = segment_real(vcpu, &vcpu->arch.seg[SEG_CS], selector);
	u64 vals[2] = { vcpu->arch.seg[SEG_CS].selector, next_rip(vcpu, insn) };
	struct stack_ref st = stack_current(vcpu);
	u64 sp;
	enum exec r;

	if (rip > cs.limit)
		return queue_gp(vcpu, 0);
	if (kind == FAR_CALL) {
		r = stack_frame_push(vcpu, &st, insn->opsize, vals, 2, &sp);
		if (r != EXEC_OK)
			return r;
		stack_set_sp(vcpu, sp, st.mask);
	}
	vcpu->arch.seg[SEG_CS] = cs;
	vcpu->arch.rip = rip;
	vcpu_update_mode(vcpu);
	return EXEC_BRANCH;
}

/* ---- code segments --------------------------------------------------------------------- */

static enum exec check_l_bit(struct vcpu *vcpu, u16 selector, u64 desc)
{
	if (vcpu->arch.long_mode && desc_l(desc) && desc_db(desc))
		return queue_gp(vcpu, selector & ~3u);
	return EXEC_OK;
}

static enum exec far_direct(struct vcpu *vcpu, u16 selector, u64 desc, u64 rip, struct far_target *t)
{
	unsigned cpl = vcpu->arch.cpl, dpl = desc_dpl(desc);
	bool bad = desc_conforming(desc) ? dpl > cpl : SEL_RPL(selector) > cpl || dpl != cpl;
	enum exec r = check_l_bit(vcpu, selector, desc);

	if (r != EXEC_OK)
		return r;
	if (bad)
		return queue_gp(vcpu, selector & ~3u);
	if (!desc_present(desc))
		return queue_exception_e(vcpu, NP_VECTOR, selector & ~3u);
	t->cpl = cpl;
	t->cs = segment_from_desc((selector & ~3u) | cpl, desc | 1ull << 40);
	t->rip = code_target(vcpu, &t->cs, rip);
	if (!code_target_valid(vcpu, &t->cs, rip))
		return queue_gp(vcpu, 0);
	return descriptor_accessed(vcpu, selector, &desc);
}

static enum exec push_return(struct vcpu *vcpu, const struct insn *insn, unsigned width)
{
	u64 vals[2] = { vcpu->arch.seg[SEG_CS].selector, next_rip(vcpu, insn) };
	struct stack_ref st = stack_current(vcpu);
	u64 sp;
	enum exec r = stack_frame_push(vcpu, &st, width, vals, 2, &sp);

	if (r == EXEC_OK)
		stack_set_sp(vcpu, sp, st.mask);
	return r;
}

static enum exec far_code(struct vcpu *vcpu, const struct insn *insn, enum far_kind kind,
			  u16 selector, u64 desc, u64 rip)
{
	struct far_target t;
	enum exec r = far_direct(vcpu, selector, desc, rip, &t);

	if (r == EXEC_OK && kind == FAR_CALL)
		r = push_return(vcpu, insn, insn->opsize);
	return r == EXEC_OK ? far_commit(vcpu, &t) : r;
}

/* ---- call gates --------------------------------------------------------------------------- */

struct call_gate {
	u16 selector;	/* of the code segment */
	u64 rip;
	unsigned width;	/* of pushed values */
	unsigned params;
};

static enum exec gate_target(struct vcpu *vcpu, const struct call_gate *g, enum far_kind kind, struct far_target *t,
			     bool *inner)
{
	unsigned cpl = vcpu->arch.cpl, dpl;
	u64 desc;
	enum exec r;

	if (SEL_NULL(g->selector))
		return queue_gp(vcpu, 0);
	r = read_descriptor(vcpu, g->selector, GP_VECTOR, &desc);
	if (r != EXEC_OK)
		return r;
	dpl = desc_dpl(desc);
	if (!desc_code(desc) || dpl > cpl || (kind == FAR_JMP && !desc_conforming(desc) && dpl != cpl))
		return queue_gp(vcpu, g->selector & ~3u);
	if (vcpu->arch.long_mode && (!desc_l(desc) || desc_db(desc)))
		return queue_gp(vcpu, g->selector & ~3u);
	if (!desc_present(desc))
		return queue_exception_e(vcpu, NP_VECTOR, g->selector & ~3u);
	*inner = kind == FAR_CALL && !desc_conforming(desc) && dpl < cpl;
	t->cpl = *inner ? dpl : cpl;
	t->rip = g->rip;
	t->cs = segment_from_desc((g->selector & ~3u) | t->cpl, desc | 1ull << 40);
	if (!code_target_valid(vcpu, &t->cs, g->rip))
		return queue_gp(vcpu, 0);
	return descriptor_accessed(vcpu, g->selector, &desc);
}

static enum exec inner_stack(struct vcpu *vcpu, unsigned cpl, struct stack_ref *st)
{
	u16 sel = 0;
	enum exec r = tss_stack(vcpu, cpl, 0, 0, &sel, &st->sp);

	st->access = 0;
	st->flat64 = vcpu->arch.long_mode;
	st->error = 0;
	st->mask = ~0ull;
	if (r != EXEC_OK)
		return r;
	if (st->flat64) {
		st->ss = segment_null(cpl);
		st->ss.ar |= cpl << AR_DPL_SHIFT;
		return EXEC_OK;
	}
	r = check_inner_ss(vcpu, sel, cpl, 0, &st->ss);
	st->error = sel & ~3u;
	st->mask = st->ss.ar & AR_DB ? 0xffffffffull : 0xffffull;
	return r;
}

static enum exec gate_call_inner(struct vcpu *vcpu, const struct insn *insn, const struct call_gate *g,
				 const struct far_target *t)
{
	struct stack_ref old = stack_current(vcpu), st;
	u64 vals[4 + 31], params[31], sp;
	unsigned n = 0;
	enum exec r = inner_stack(vcpu, t->cpl, &st);

	if (r == EXEC_OK && g->params)
		r = stack_frame_read(vcpu, &old, g->width, 0, params, g->params);
	if (r != EXEC_OK)
		return r;
	vals[n++] = vcpu->arch.seg[SEG_SS].selector;
	vals[n++] = vcpu->arch.regs[RSP];
	for (unsigned i = g->params; i-- > 0;)
		vals[n++] = params[i];
	vals[n++] = vcpu->arch.seg[SEG_CS].selector;
	vals[n++] = next_rip(vcpu, insn);
	r = stack_frame_push(vcpu, &st, g->width, vals, n, &sp);
	if (r != EXEC_OK)
		return r;
	vcpu->arch.seg[SEG_SS] = st.ss;
	stack_set_sp(vcpu, sp, st.mask);
	return far_commit(vcpu, t);
}

static enum exec far_gate(struct vcpu *vcpu, const struct insn *insn, enum far_kind kind, u16 selector,
			  u64 desc, u64 hi)
{
	struct call_gate g = {
		.selector = desc >> 16,
		.rip = (desc & 0xffff) | (desc >> 32 & 0xffff0000),
		.width = desc_type(desc) == DESC_CALL16 ? 2 : 4,
		.params = desc >> 32 & 31,
	};
	struct far_target t;
	bool inner = false;
	enum exec r;

	if (desc_dpl(desc) < vcpu->arch.cpl || SEL_RPL(selector) > desc_dpl(desc))
		return queue_gp(vcpu, selector & ~3u);
	if (!desc_present(desc))
		return queue_exception_e(vcpu, NP_VECTOR, selector & ~3u);
	if (vcpu->arch.long_mode) {
		/* The type field of the upper half must be zero. */
		if (hi >> 40 & 0x1f)
			return queue_gp(vcpu, selector & ~3u);
		g.rip |= hi << 32;
		g.width = 8;
		g.params = 0;
	} else if (g.width == 2) {
		g.rip &= 0xffff;
	}
	r = gate_target(vcpu, &g, kind, &t, &inner);
	if (r != EXEC_OK)
		return r;
	if (inner)
		return gate_call_inner(vcpu, insn, &g, &t);
	if (kind == FAR_CALL)
		r = push_return(vcpu, insn, g.width);
	return r == EXEC_OK ? far_commit(vcpu, &t) : r;
}

/* ---- tasks ------------------------------------------------------------------------------------ */

static enum exec far_task(struct vcpu *vcpu, const struct insn *insn, enum far_kind kind, u16 selector, u64 desc)
{
	struct rip_mark mark = rip_mark(vcpu);
	enum exec r;

	if (desc_dpl(desc) < vcpu->arch.cpl || SEL_RPL(selector) > desc_dpl(desc))
		return queue_gp(vcpu, selector & ~3u);
	if (!desc_present(desc))
		return queue_exception_e(vcpu, NP_VECTOR, selector & ~3u);
	if (desc_type(desc) == DESC_TASK_GATE)
		selector = desc >> 16;
	vcpu->arch.rip = next_rip(vcpu, insn);
	r = task_switch(vcpu, selector, kind == FAR_CALL ? TASK_CALL : TASK_JMP, false, 0);
	rip_restore(vcpu, mark, r);
	return r;
}

/* ---- JMP, CALL ------------------------------------------------------------------------------------ */

static enum exec far_transfer(struct vcpu *vcpu, const struct insn *insn, enum far_kind kind,
			      u16 selector, u64 rip)
{
	u64 desc, hi;
	enum exec r;

	if (!vcpu->arch.protected_mode)
		return far_real(vcpu, insn, kind, selector, rip);
	if (SEL_NULL(selector))
		return queue_gp(vcpu, 0);
	r = descriptor_fetch(vcpu, selector, GP_VECTOR, 0, &desc, NULL);
	if (r != EXEC_OK)
		return r;
	if (desc_code(desc))
		return far_code(vcpu, insn, kind, selector, desc, rip);
	if (desc_s(desc))
		return queue_gp(vcpu, selector & ~3u);
	switch (desc_type(desc)) {
	case DESC_CALL32:
		break;
	case DESC_CALL16:
		if (vcpu->arch.long_mode)
			return queue_gp(vcpu, selector & ~3u);
		break;
	case DESC_TASK_GATE: case DESC_TSS16: case DESC_TSS32:
		if (!vcpu->arch.long_mode)
			return far_task(vcpu, insn, kind, selector, desc);
		/* fall through */
	default:
		return queue_gp(vcpu, selector & ~3u);
	}
	r = descriptor_fetch(vcpu, selector, GP_VECTOR, 0, &desc, &hi);
	return r == EXEC_OK ? far_gate(vcpu, insn, kind, selector, desc, hi) : r;
}

static enum exec far_memory(struct vcpu *vcpu, const struct insn *insn, enum far_kind kind)
{
	u8 buf[10];
	u64 rip = 0;
	u16 selector;
	gva_t va;
	enum exec r = insn_linear(vcpu, insn, insn->opsize + 2, false, &va);

	if (r == EXEC_OK)
		r = mem_read(vcpu, va, buf, insn->opsize + 2, mmu_data_access(vcpu, MMU_READ));
	if (r != EXEC_OK)
		return r;
	memcpy(&rip, buf, insn->opsize);
	memcpy(&selector, buf + insn->opsize, 2);
	return far_transfer(vcpu, insn, kind, selector, rip);
}

static enum exec op_jmp_far_imm(struct vcpu *vcpu, const struct insn *insn)
{
	return far_transfer(vcpu, insn, FAR_JMP, insn->imm2, truncate_rip(insn->imm, insn->opsize));
}

static enum exec op_call_far_imm(struct vcpu *vcpu, const struct insn *insn)
{
	return far_transfer(vcpu, insn, FAR_CALL, insn->imm2, truncate_rip(insn->imm, insn->opsize));
}

static enum exec op_jmp_far_m(struct vcpu *vcpu, const struct insn *insn)
{
	return far_memory(vcpu, insn, FAR_JMP);
}

static enum exec op_call_far_m(struct vcpu *vcpu, const struct insn *insn)
{
	return far_memory(vcpu, insn, FAR_CALL);
}

/* ---- RET ------------------------------------------------------------------------------------------------- */

static enum exec retf_real(struct vcpu *vcpu, const struct insn *insn, u64 rip, u16 selector)
{
	struct segment cs = segment_real(vcpu, &vcpu->arch.seg[SEG_CS], selector);
	u64 mask = stack_mask(vcpu);

	if (rip > cs.limit)
		return queue_gp(vcpu, 0);
	stack_set_sp(vcpu, vcpu->arch.regs[RSP] + 2 * insn->opsize + insn->imm, mask);
	vcpu->arch.seg[SEG_CS] = cs;
	vcpu->arch.rip = rip;
	vcpu_update_mode(vcpu);
	return EXEC_BRANCH;
}

static enum exec retf_outer(struct vcpu *vcpu, const struct insn *insn, const struct far_target *t)
{
	struct stack_ref st = stack_current(vcpu);
	struct segment ss;
	u64 vals[2], mask;
	enum exec r = stack_frame_read(vcpu, &st, insn->opsize, 2 * insn->opsize + insn->imm, vals, 2);

	if (r == EXEC_OK)
		r = check_outer_ss(vcpu, vals[1], t->cpl, t->cs.ar, &ss);
	if (r != EXEC_OK)
		return r;
	vcpu->arch.seg[SEG_SS] = ss;
	far_commit(vcpu, t);
	mask = stack_mask(vcpu);
	stack_set_sp(vcpu, vals[0] + insn->imm, mask);
	drop_inner_segments(vcpu);
	return EXEC_BRANCH;
}

static enum exec op_retf(struct vcpu *vcpu, const struct insn *insn)
{
	struct stack_ref st = stack_current(vcpu);
	struct far_target t;
	u64 vals[2];
	enum exec r = stack_frame_read(vcpu, &st, insn->opsize, 0, vals, 2);

	if (r != EXEC_OK)
		return r;
	if (!vcpu->arch.protected_mode)
		return retf_real(vcpu, insn, vals[0], vals[1]);
	r = check_return_cs(vcpu, vals[1], vals[0], &t.cs);
	if (r != EXEC_OK)
		return r;
	t.rip = code_target(vcpu, &t.cs, vals[0]);
	t.cpl = SEL_RPL(vals[1]);
	if (t.cpl > vcpu->arch.cpl)
		return retf_outer(vcpu, insn, &t);
	stack_set_sp(vcpu, st.sp + 2 * insn->opsize + insn->imm, st.mask);
	return far_commit(vcpu, &t);
}

/* ---- checks shared with IRET ----------------------------------------------------------------------------- */

enum exec check_return_cs(struct vcpu *vcpu, u16 selector, u64 rip, struct segment *cs)
{
	unsigned rpl = SEL_RPL(selector);
	u64 desc;
	enum exec r;

	if (SEL_NULL(selector))
		return queue_gp(vcpu, 0);
	r = read_descriptor(vcpu, selector, GP_VECTOR, &desc);
	if (r != EXEC_OK)
		return r;
	if (!desc_code(desc) || rpl < vcpu->arch.cpl)
		return queue_gp(vcpu, selector & ~3u);
	if (desc_conforming(desc) ? desc_dpl(desc) > rpl : desc_dpl(desc) != rpl)
		return queue_gp(vcpu, selector & ~3u);
	r = check_l_bit(vcpu, selector, desc);
	if (r != EXEC_OK)
		return r;
	if (!desc_present(desc))
		return queue_exception_e(vcpu, NP_VECTOR, selector & ~3u);
	*cs = segment_from_desc(selector, desc | 1ull << 40);
	if (!code_target_valid(vcpu, cs, rip))
		return queue_gp(vcpu, 0);
	return descriptor_accessed(vcpu, selector, &desc);
}

enum exec check_outer_ss(struct vcpu *vcpu, u16 selector, unsigned cpl, u32 cs_ar, struct segment *ss)
{
	u64 desc;
	enum exec r;

	if (SEL_NULL(selector)) {
		if (!vcpu->arch.long_mode || !(cs_ar & AR_L) || cpl == 3 || SEL_RPL(selector) != cpl)
			return queue_gp(vcpu, 0);
		*ss = segment_null(selector);
		ss->ar |= cpl << AR_DPL_SHIFT;
		return EXEC_OK;
	}
	r = read_descriptor(vcpu, selector, GP_VECTOR, &desc);
	if (r != EXEC_OK)
		return r;
	if (SEL_RPL(selector) != cpl || !desc_writable_data(desc) || desc_dpl(desc) != cpl)
		return queue_gp(vcpu, selector & ~3u);
	if (!desc_present(desc))
		return queue_exception_e(vcpu, SS_VECTOR, selector & ~3u);
	r = descriptor_accessed(vcpu, selector, &desc);
	*ss = segment_from_desc(selector, desc);
	return r;
}

/* ---- selection ---------------------------------------------------------------------------------------------- */

static insn_fn select_transfer(const struct decode_ctx *ctx, struct insn *insn, insn_fn imm, insn_fn mem)
{
	const ZydisDecodedOperand *op = &ctx->ops[0];

	if (ctx->zi->meta.branch_type != ZYDIS_BRANCH_TYPE_FAR)
		return NULL;
	insn->flags |= INSN_END_BLOCK;
	insn->opsize = ctx->zi->operand_width / 8;
	if (op->type == ZYDIS_OPERAND_TYPE_POINTER) {
		insn->imm = op->ptr.offset;
		insn->imm2 = op->ptr.segment;
		return imm;
	}
	if (op->type != ZYDIS_OPERAND_TYPE_MEMORY)
		return op_ud;
	insn->opsize = op->size / 8 - 2;
	return insn->opsize == 2 || insn->opsize == 4 || insn->opsize == 8 ? mem : op_ud;
}

insn_fn far_select(const struct decode_ctx *ctx, struct insn *insn)
{
	switch (ctx->zi->mnemonic) {
	case ZYDIS_MNEMONIC_JMP:
		return select_transfer(ctx, insn, op_jmp_far_imm, op_jmp_far_m);
	case ZYDIS_MNEMONIC_CALL:
		return select_transfer(ctx, insn, op_call_far_imm, op_call_far_m);
	case ZYDIS_MNEMONIC_RET:
		if (ctx->zi->meta.branch_type != ZYDIS_BRANCH_TYPE_FAR)
			return NULL;
		insn->flags |= INSN_END_BLOCK;
		insn->opsize = ctx->zi->operand_width / 8;
		insn->imm = operand_kind(ctx, 0) == OPERAND_IMM ? operand_imm(ctx, 0) & 0xffff : 0;
		return op_retf;
	default:
		return NULL;
	}
}

/* SPDX-License-Identifier: MIT */
/* Near control flow, and the stack instructions that touch no segment register. */
#include "host/host.h"
#include "x86/interp/operand.h"
#include "x86/ops/flags.h"

/* ---- stack ------------------------------------------------------------------- */

static inline void set_sp(struct vcpu *vcpu, u64 sp)
{
	u64 mask = stack_mask(vcpu);
	u64 *rsp = &vcpu->arch.regs[RSP];

	*rsp = mask == 0xffff ? (*rsp & ~0xffffull) | (sp & 0xffff) : sp & mask;
}

enum exec stack_push(struct vcpu *vcpu, unsigned size, u64 val)
{
	u64 sp = (vcpu->arch.regs[RSP] - size) & stack_mask(vcpu);
	gva_t va;
	enum exec r = seg_linear(vcpu, SEG_SS, sp, size, true, &va);

	if (likely(r == EXEC_OK))
		r = mem_store(vcpu, va, size, val);
	if (likely(r == EXEC_OK))
		set_sp(vcpu, sp);
	return r;
}

enum exec stack_pop(struct vcpu *vcpu, unsigned size, u64 *val)
{
	u64 sp = vcpu->arch.regs[RSP] & stack_mask(vcpu);
	gva_t va;
	enum exec r = seg_linear(vcpu, SEG_SS, sp, size, false, &va);

	if (likely(r == EXEC_OK))
		r = mem_load(vcpu, va, size, val);
	if (likely(r == EXEC_OK))
		set_sp(vcpu, sp + size);
	return r;
}

static enum exec op_push_r(struct vcpu *vcpu, const struct insn *insn)
{
	return stack_push(vcpu, insn->opsize, vcpu->arch.regs[insn->reg]);
}

static enum exec op_push_r64(struct vcpu *vcpu, const struct insn *insn)
{
	return stack_push(vcpu, 8, vcpu->arch.regs[insn->reg]);
}

static enum exec op_push_imm(struct vcpu *vcpu, const struct insn *insn)
{
	return stack_push(vcpu, insn->opsize, insn->imm);
}

static enum exec op_push_m(struct vcpu *vcpu, const struct insn *insn)
{
	gva_t va;
	u64 val;
	enum exec r = insn_linear(vcpu, insn, insn->opsize, false, &va);

	if (r == EXEC_OK)
		r = mem_load(vcpu, va, insn->opsize, &val);
	return r == EXEC_OK ? stack_push(vcpu, insn->opsize, val) : r;
}

static enum exec op_pop_r(struct vcpu *vcpu, const struct insn *insn)
{
	u64 val;
	enum exec r = stack_pop(vcpu, insn->opsize, &val);

	if (likely(r == EXEC_OK))
		gpr_write(vcpu, insn->reg, insn->opsize, false, val);
	return r;
}

/* The address is computed with the stack pointer already incremented. */
static enum exec op_pop_m(struct vcpu *vcpu, const struct insn *insn)
{
	u64 rsp = vcpu->arch.regs[RSP];
	gva_t va;
	u64 val;
	enum exec r = stack_pop(vcpu, insn->opsize, &val);

	if (r != EXEC_OK)
		return r;
	r = insn_linear(vcpu, insn, insn->opsize, true, &va);
	if (r == EXEC_OK)
		r = mem_store(vcpu, va, insn->opsize, val);
	if (r != EXEC_OK)
		vcpu->arch.regs[RSP] = rsp;
	return r;
}

static enum exec op_pusha(struct vcpu *vcpu, const struct insn *insn)
{
	static const u8 order[8] = { RDI, RSI, RBP, RSP, RBX, RDX, RCX, RAX };
	unsigned size = insn->opsize;
	u64 rsp = vcpu->arch.regs[RSP];
	u8 image[32];
	gva_t va;
	u64 sp = (rsp - 8 * size) & stack_mask(vcpu);
	enum exec r = EXEC_OK;

	for (int i = 0; i < 8; i++)
		__builtin_memcpy(image + i * size, &vcpu->arch.regs[order[i]], size);
	/* The first to be pushed is the first to fault; the stack may wrap between any two. */
	for (int i = 7; r == EXEC_OK && i >= 0; i--) {
		r = seg_linear(vcpu, SEG_SS, (sp + i * size) & stack_mask(vcpu), size, true, &va);
		if (r == EXEC_OK)
			r = mem_probe_write(vcpu, va, size, mmu_data_access(vcpu, MMU_WRITE));
	}
	for (int i = 7; r == EXEC_OK && i >= 0; i--) {
		r = seg_linear(vcpu, SEG_SS, (sp + i * size) & stack_mask(vcpu), size, true, &va);
		if (r == EXEC_OK)
			r = mem_write(vcpu, va, image + i * size, size, mmu_data_access(vcpu, MMU_WRITE));
	}
	if (r == EXEC_OK)
		set_sp(vcpu, sp);
	return r;
}

static enum exec op_popa(struct vcpu *vcpu, const struct insn *insn)
{
	static const u8 order[8] = { RDI, RSI, RBP, RSP, RBX, RDX, RCX, RAX };
	unsigned size = insn->opsize;
	u64 sp = vcpu->arch.regs[RSP] & stack_mask(vcpu);
	u8 image[32];
	gva_t va;
	enum exec r = EXEC_OK;

	for (int i = 0; r == EXEC_OK && i < 8; i++) {
		r = seg_linear(vcpu, SEG_SS, (sp + i * size) & stack_mask(vcpu), size, false, &va);
		if (r == EXEC_OK)
			r = mem_read(vcpu, va, image + i * size, size, mmu_data_access(vcpu, MMU_READ));
	}
	if (r != EXEC_OK)
		return r;
	for (int i = 0; i < 8; i++) {
		u64 val = 0;

		__builtin_memcpy(&val, image + i * size, size);
		if (order[i] != RSP)
			gpr_write(vcpu, order[i], size, false, val);
	}
	set_sp(vcpu, sp + 8 * size);
	return EXEC_OK;
}

static enum exec op_leave(struct vcpu *vcpu, const struct insn *insn)
{
	u64 rsp = vcpu->arch.regs[RSP];
	u64 val;
	enum exec r;

	set_sp(vcpu, vcpu->arch.regs[RBP]);
	r = stack_pop(vcpu, insn->opsize, &val);
	if (r == EXEC_OK)
		gpr_write(vcpu, RBP, insn->opsize, false, val);
	else
		vcpu->arch.regs[RSP] = rsp;
	return r;
}

static enum exec op_enter(struct vcpu *vcpu, const struct insn *insn)
{
	unsigned size = insn->opsize, level = insn->imm2 & 31;
	u64 rsp = vcpu->arch.regs[RSP], rbp = vcpu->arch.regs[RBP];
	u64 frame, link = rbp, val;
	gva_t va;
	enum exec r = stack_push(vcpu, size, rbp);

	frame = vcpu->arch.regs[RSP];
	for (unsigned i = 1; r == EXEC_OK && i < level; i++) {
		link -= size;
		r = seg_linear(vcpu, SEG_SS, link & stack_mask(vcpu), size, false, &va);
		if (r == EXEC_OK)
			r = mem_load(vcpu, va, size, &val);
		if (r == EXEC_OK)
			r = stack_push(vcpu, size, val);
	}
	if (r == EXEC_OK && level)
		r = stack_push(vcpu, size, frame);
	if (r == EXEC_OK) {
		u64 sp = (vcpu->arch.regs[RSP] - (u16)insn->imm) & stack_mask(vcpu);

		/* The new top of stack must be writable, as hardware checks. */
		r = seg_linear(vcpu, SEG_SS, sp, size, true, &va);
		if (r == EXEC_OK)
			r = mem_probe_write(vcpu, va, 1, mmu_data_access(vcpu, MMU_WRITE));
		if (r == EXEC_OK) {
			set_sp(vcpu, sp);
			gpr_write(vcpu, RBP, size, false, frame);
		}
	}
	if (r != EXEC_OK)
		vcpu->arch.regs[RSP] = rsp;
	return r;
}

/* ---- branches ---------------------------------------------------------------------- */

static bool is_near_target(const struct vcpu *vcpu, u64 target, unsigned opsize)
{
	if (opsize == 2)
		target = (u16)target;
	return in_64bit_mode(vcpu) ? is_canonical(target) : (u32)target <= vcpu->arch.seg[SEG_CS].limit;
}

enum exec branch_near(struct vcpu *vcpu, u64 target, unsigned opsize)
{
	if (in_64bit_mode(vcpu)) {
		if (unlikely(opsize == 2))
			target = (u16)target;
		if (unlikely(!is_canonical(target)))
			return queue_gp(vcpu, 0);
	} else {
		target = opsize == 2 ? (u16)target : (u32)target;
		if (unlikely(target > vcpu->arch.seg[SEG_CS].limit))
			return queue_gp(vcpu, 0);
	}
	vcpu->arch.rip = target;
	return EXEC_BRANCH;
}

static inline enum exec branch_rel(struct vcpu *vcpu, const struct insn *insn)
{
	return branch_near(vcpu, vcpu->arch.rip + insn->len + insn->imm, insn->opsize);
}

static inline enum exec branch_skip(struct vcpu *vcpu, const struct insn *insn)
{
	vcpu->arch.rip = (vcpu->arch.rip + insn->len) & ip_mask(vcpu);
	return EXEC_BRANCH;
}

#define OP_JCC(cc)                                                              \
	static enum exec op_jcc_##cc(struct vcpu *vcpu, const struct insn *insn) \
	{                                                                       \
		return flags_test(vcpu->arch.rflags, 0x##cc) ?                  \
			       branch_rel(vcpu, insn) :                         \
			       branch_skip(vcpu, insn);                         \
	}
OP_JCC(0) OP_JCC(1) OP_JCC(2) OP_JCC(3) OP_JCC(4) OP_JCC(5) OP_JCC(6) OP_JCC(7)
OP_JCC(8) OP_JCC(9) OP_JCC(a) OP_JCC(b) OP_JCC(c) OP_JCC(d) OP_JCC(e) OP_JCC(f)

static const insn_fn jcc_table[16] = {
	op_jcc_0, op_jcc_1, op_jcc_2, op_jcc_3, op_jcc_4, op_jcc_5, op_jcc_6, op_jcc_7,
	op_jcc_8, op_jcc_9, op_jcc_a, op_jcc_b, op_jcc_c, op_jcc_d, op_jcc_e, op_jcc_f,
};

static enum exec op_jmp_rel(struct vcpu *vcpu, const struct insn *insn)
{
	return branch_rel(vcpu, insn);
}

static enum exec op_jmp_r(struct vcpu *vcpu, const struct insn *insn)
{
	return branch_near(vcpu, gpr_read(vcpu, insn->reg, insn->opsize, false), insn->opsize);
}

static enum exec load_target(struct vcpu *vcpu, const struct insn *insn, u64 *target)
{
	gva_t va;
	enum exec r = insn_linear(vcpu, insn, insn->opsize, false, &va);

	return r == EXEC_OK ? mem_load(vcpu, va, insn->opsize, target) : r;
}

static enum exec op_jmp_m(struct vcpu *vcpu, const struct insn *insn)
{
	u64 target;
	enum exec r = load_target(vcpu, insn, &target);

	return r == EXEC_OK ? branch_near(vcpu, target, insn->opsize) : r;
}

static enum exec stack_probe(struct vcpu *vcpu, unsigned size)
{
	gva_t va;
	enum exec r = seg_linear(vcpu, SEG_SS, (vcpu->arch.regs[RSP] - size) & stack_mask(vcpu), size, true, &va);

	return r == EXEC_OK ? mem_probe_write(vcpu, va, size, mmu_data_access(vcpu, MMU_WRITE)) : r;
}

/*
 * A bad target faults before anything is pushed, but after faults of the stack. While pushing, rip is still the call's own:
 * a push that needs userspace remembers it (x86/mmio.c).
 */
static enum exec call_near(struct vcpu *vcpu, const struct insn *insn, u64 target)
{
	u64 rip = vcpu->arch.rip, taken;
	u64 ret = (rip + insn->len) & ip_mask(vcpu);
	enum exec r;

	if (unlikely(!is_near_target(vcpu, target, insn->opsize))) {
		r = stack_probe(vcpu, insn->opsize);
		return r == EXEC_OK ? queue_gp(vcpu, 0) : r;
	}
	r = branch_near(vcpu, target, insn->opsize);
	if (unlikely(r != EXEC_BRANCH))
		return r;
	taken = vcpu->arch.rip;
	vcpu->arch.rip = rip;
	r = stack_push(vcpu, insn->opsize, ret);
	if (unlikely(r != EXEC_OK))
		return r;
	vcpu->arch.rip = taken;
	return EXEC_BRANCH;
}

static enum exec op_call_rel(struct vcpu *vcpu, const struct insn *insn)
{
	return call_near(vcpu, insn, vcpu->arch.rip + insn->len + insn->imm);
}

static enum exec op_call_r(struct vcpu *vcpu, const struct insn *insn)
{
	return call_near(vcpu, insn, gpr_read(vcpu, insn->reg, insn->opsize, false));
}

static enum exec op_call_m(struct vcpu *vcpu, const struct insn *insn)
{
	u64 target;
	enum exec r = load_target(vcpu, insn, &target);

	return r == EXEC_OK ? call_near(vcpu, insn, target) : r;
}

static enum exec op_ret(struct vcpu *vcpu, const struct insn *insn)
{
	u64 rsp = vcpu->arch.regs[RSP];
	u64 target;
	enum exec r = stack_pop(vcpu, insn->opsize, &target);

	if (likely(r == EXEC_OK)) {
		r = branch_near(vcpu, target, insn->opsize);
		if (likely(r == EXEC_BRANCH))
			set_sp(vcpu, vcpu->arch.regs[RSP] + (u16)insn->imm);
		else
			vcpu->arch.regs[RSP] = rsp;
	}
	return r;
}

static u64 count_mask(const struct insn *insn)
{
	return insn->addrsize == 8 ? ~0ull : insn->addrsize == 4 ? 0xffffffffull : 0xffffull;
}

static enum exec op_jcxz(struct vcpu *vcpu, const struct insn *insn)
{
	return vcpu->arch.regs[RCX] & count_mask(insn) ? branch_skip(vcpu, insn) : branch_rel(vcpu, insn);
}

/* cc: 0 LOOP, 1 LOOPE, 2 LOOPNE */
static enum exec op_loop(struct vcpu *vcpu, const struct insn *insn)
{
	u64 count = (vcpu->arch.regs[RCX] - 1) & count_mask(insn);
	bool zf = vcpu->arch.rflags & X86_EFLAGS_ZF;
	bool taken = count && (insn->cc == 0 || (insn->cc == 1 ? zf : !zf));
	enum exec r = taken ? branch_rel(vcpu, insn) : branch_skip(vcpu, insn);

	if (r == EXEC_BRANCH)
		gpr_write(vcpu, RCX, insn->addrsize, false, count);
	return r;
}

/* ---- selection ------------------------------------------------------------------------ */

/* A 66h prefix before a near branch in 64-bit mode counts on AMD's CPUs only, as in the decoder. */
static void branch_opsize(const struct decode_ctx *ctx, struct insn *insn)
{
	bool rex_w = (ctx->zi->attributes & ZYDIS_ATTRIB_HAS_REX) && ctx->zi->raw.rex.W;

	insn->opsize = in_64bit_mode(ctx->vcpu) ? 8 : ctx->zi->operand_width / 8;
	if (insn->opsize != 8 || rex_w || !host_is_amd())
		return;
	for (unsigned i = 0; i < ctx->zi->raw.prefix_count; i++)
		if (ctx->zi->raw.prefixes[i].value == 0x66)
			insn->opsize = 2;
}

/* A repeat prefix before LOOPE or LOOPNE says which of the two it is: on AMD's CPUs. */
static u8 loop_condition(const struct decode_ctx *ctx)
{
	u8 cc = ctx->zi->mnemonic == ZYDIS_MNEMONIC_LOOPE ? 1 : ctx->zi->mnemonic == ZYDIS_MNEMONIC_LOOPNE ? 2 : 0;

	for (unsigned i = 0; cc && host_is_amd() && i < ctx->zi->raw.prefix_count; i++)
		if (ctx->zi->raw.prefixes[i].value == 0xf2 || ctx->zi->raw.prefixes[i].value == 0xf3)
			cc = ctx->zi->raw.prefixes[i].value == 0xf3 ? 1 : 2;
	return cc;
}

static insn_fn select_jump(const struct decode_ctx *ctx, struct insn *insn, bool call)
{
	if (ctx->zi->meta.branch_type == ZYDIS_BRANCH_TYPE_FAR)
		return NULL;
	branch_opsize(ctx, insn);
	insn->flags |= INSN_END_BLOCK;
	switch (operand_kind(ctx, 0)) {
	case OPERAND_IMM:
		insn->imm = ctx->ops[0].imm.value.s;
		return call ? op_call_rel : op_jmp_rel;
	case OPERAND_GPR:
		operand_to_reg(ctx, 0, insn);
		return call ? op_call_r : op_jmp_r;
	case OPERAND_MEM:
		return call ? op_call_m : op_jmp_m;
	default:
		return NULL;
	}
}

static insn_fn select_push(const struct decode_ctx *ctx, struct insn *insn)
{
	insn->opsize = ctx->zi->operand_width / 8;
	if (in_64bit_mode(ctx->vcpu) && insn->opsize == 4)
		insn->opsize = 8;
	switch (operand_kind(ctx, 0)) {
	case OPERAND_GPR:
		operand_to_reg(ctx, 0, insn);
		return insn->opsize == 8 ? op_push_r64 : op_push_r;
	case OPERAND_MEM:
		return op_push_m;
	case OPERAND_IMM:
		insn->imm = ctx->ops[0].imm.value.s;
		return op_push_imm;
	default:
		return NULL; /* segment registers: ops/system.c */
	}
}

static insn_fn select_pop(const struct decode_ctx *ctx, struct insn *insn)
{
	insn->opsize = ctx->zi->operand_width / 8;
	if (in_64bit_mode(ctx->vcpu) && insn->opsize == 4)
		insn->opsize = 8;
	switch (operand_kind(ctx, 0)) {
	case OPERAND_GPR:
		operand_to_reg(ctx, 0, insn);
		return op_pop_r;
	case OPERAND_MEM:
		return op_pop_m;
	default:
		return NULL;
	}
}

static insn_fn select_conditional(const struct decode_ctx *ctx, struct insn *insn)
{
	static const struct {
		u16 mnemonic;
		u8 cc;
	} jcc[] = {
		{ ZYDIS_MNEMONIC_JO, 0 }, { ZYDIS_MNEMONIC_JNO, 1 }, { ZYDIS_MNEMONIC_JB, 2 },
		{ ZYDIS_MNEMONIC_JNB, 3 }, { ZYDIS_MNEMONIC_JZ, 4 }, { ZYDIS_MNEMONIC_JNZ, 5 },
		{ ZYDIS_MNEMONIC_JBE, 6 }, { ZYDIS_MNEMONIC_JNBE, 7 }, { ZYDIS_MNEMONIC_JS, 8 },
		{ ZYDIS_MNEMONIC_JNS, 9 }, { ZYDIS_MNEMONIC_JP, 10 }, { ZYDIS_MNEMONIC_JNP, 11 },
		{ ZYDIS_MNEMONIC_JL, 12 }, { ZYDIS_MNEMONIC_JNL, 13 }, { ZYDIS_MNEMONIC_JLE, 14 },
		{ ZYDIS_MNEMONIC_JNLE, 15 },
	};

	for (unsigned i = 0; i < ARRAY_SIZE(jcc); i++) {
		if (jcc[i].mnemonic != ctx->zi->mnemonic)
			continue;
		branch_opsize(ctx, insn);
		insn->imm = ctx->ops[0].imm.value.s;
		insn->flags |= INSN_END_BLOCK;
		return jcc_table[jcc[i].cc];
	}
	return NULL;
}

insn_fn ops_flow_select(const struct decode_ctx *ctx, struct insn *insn)
{
	insn_fn fn = select_conditional(ctx, insn);

	if (fn)
		return fn;
	switch (ctx->zi->mnemonic) {
	case ZYDIS_MNEMONIC_JMP:
		return select_jump(ctx, insn, false);
	case ZYDIS_MNEMONIC_CALL:
		return select_jump(ctx, insn, true);
	case ZYDIS_MNEMONIC_RET:
		if (ctx->zi->meta.branch_type == ZYDIS_BRANCH_TYPE_FAR)
			return NULL;
		branch_opsize(ctx, insn);
		insn->imm = operand_kind(ctx, 0) == OPERAND_IMM ? operand_imm(ctx, 0) : 0;
		insn->flags |= INSN_END_BLOCK;
		return op_ret;
	case ZYDIS_MNEMONIC_PUSH:
		return select_push(ctx, insn);
	case ZYDIS_MNEMONIC_POP:
		return select_pop(ctx, insn);
	case ZYDIS_MNEMONIC_PUSHA:
	case ZYDIS_MNEMONIC_PUSHAD:
		insn->opsize = ctx->zi->mnemonic == ZYDIS_MNEMONIC_PUSHA ? 2 : 4;
		return op_pusha;
	case ZYDIS_MNEMONIC_POPA:
	case ZYDIS_MNEMONIC_POPAD:
		insn->opsize = ctx->zi->mnemonic == ZYDIS_MNEMONIC_POPA ? 2 : 4;
		return op_popa;
	case ZYDIS_MNEMONIC_LEAVE:
	case ZYDIS_MNEMONIC_ENTER:
		insn->opsize = ctx->zi->operand_width / 8;
		if (in_64bit_mode(ctx->vcpu) && insn->opsize == 4)
			insn->opsize = 8;
		if (ctx->zi->mnemonic == ZYDIS_MNEMONIC_LEAVE)
			return op_leave;
		insn->imm = operand_imm(ctx, 0);
		insn->imm2 = operand_imm(ctx, 1);
		return op_enter;
	case ZYDIS_MNEMONIC_JCXZ:
	case ZYDIS_MNEMONIC_JECXZ:
	case ZYDIS_MNEMONIC_JRCXZ:
	case ZYDIS_MNEMONIC_LOOP:
	case ZYDIS_MNEMONIC_LOOPE:
	case ZYDIS_MNEMONIC_LOOPNE:
		branch_opsize(ctx, insn);
		insn->addrsize = ctx->zi->address_width / 8;
		insn->imm = ctx->ops[0].imm.value.s;
		insn->flags |= INSN_END_BLOCK;
		insn->cc = loop_condition(ctx);
		return ctx->zi->mnemonic == ZYDIS_MNEMONIC_LOOP ||
		       ctx->zi->mnemonic == ZYDIS_MNEMONIC_LOOPE ||
		       ctx->zi->mnemonic == ZYDIS_MNEMONIC_LOOPNE ? op_loop : op_jcxz;
	default:
		return NULL;
	}
}

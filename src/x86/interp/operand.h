/* SPDX-License-Identifier: MIT */
/* Shapes of operands, for the handler selection of x86/ops. */
#ifndef SOFTKVM_X86_INTERP_OPERAND_H
#define SOFTKVM_X86_INTERP_OPERAND_H

#include "x86/interp/insn.h"

enum operand_kind { OPERAND_NONE, OPERAND_GPR, OPERAND_MEM, OPERAND_IMM, OPERAND_OTHER };

static inline enum operand_kind operand_kind(const struct decode_ctx *ctx, unsigned n)
{
	const ZydisDecodedOperand *op = &ctx->ops[n];
	bool high8;

	if (n >= ctx->zi->operand_count_visible)
		return OPERAND_NONE;
	switch (op->type) {
	case ZYDIS_OPERAND_TYPE_REGISTER:
		return gpr_from_zydis(op->reg.value, &high8) == INSN_NOREG ? OPERAND_OTHER : OPERAND_GPR;
	case ZYDIS_OPERAND_TYPE_MEMORY:
		return OPERAND_MEM;
	case ZYDIS_OPERAND_TYPE_IMMEDIATE:
		return OPERAND_IMM;
	default:
		return OPERAND_OTHER;
	}
}

static inline unsigned operand_bytes(const struct decode_ctx *ctx, unsigned n)
{
	return ctx->ops[n].size / 8;
}

/* Put GPR operand n into insn->reg or insn->rm. */
static inline void operand_to_reg(const struct decode_ctx *ctx, unsigned n, struct insn *insn)
{
	bool high8;

	insn->reg = gpr_from_zydis(ctx->ops[n].reg.value, &high8);
	insn->flags = high8 ? insn->flags | INSN_HIGH8_REG : insn->flags & ~INSN_HIGH8_REG;
}

static inline void operand_to_rm(const struct decode_ctx *ctx, unsigned n, struct insn *insn)
{
	bool high8;

	insn->rm = gpr_from_zydis(ctx->ops[n].reg.value, &high8);
	insn->flags = high8 ? insn->flags | INSN_HIGH8_RM : insn->flags & ~INSN_HIGH8_RM;
}

static inline u64 operand_imm(const struct decode_ctx *ctx, unsigned n)
{
	return ctx->ops[n].imm.value.u;
}

#endif

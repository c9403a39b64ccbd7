/* SPDX-License-Identifier: MIT */
/*
 * What becomes of an instruction: copied, an emitter's, or its handler's.
 *
 * Only what the interpreter's allow-list permits is copied, in forms whose every operand native_form()
 * understands; a few frequent instructions have emitters of their own; everything else calls its C handler.
 *
 * The answer is kept for all instructions with the same bytes (decoded.c): it may depend on them and on what is in
 * mode_key, not on displacements, not on immediates that are skipped there, and not on the address.
 */
#include "x86/decode/decode.h"
#include "x86/dbt/translate.h"
#include "x86/interp/thunk.h"

enum thunk_class { NONE, INT, VEC, X87, NOP };

static const u8 allowed[ZYDIS_MNEMONIC_MAX_VALUE + 1] = {
#define THUNK(mnemonic, class) [ZYDIS_MNEMONIC_##mnemonic] = class,
#include "x86/interp/thunk_allow.def"
#undef THUNK
};

/* ---- copied ------------------------------------------------------------------------------------ */

/* All of a register becomes something that does not depend on what it was. */
static bool overwrites(const struct tinsn *t, const ZydisDecodedOperand *op)
{
	const ZydisDecodedOperand *ops = t->ops;

	if (op->size < 32)
		return false;
	if (decode_is_move(t->zi))
		return op == &ops[0];
	return t->zi->mnemonic == ZYDIS_MNEMONIC_XOR && ops[0].type == ZYDIS_OPERAND_TYPE_REGISTER &&
	       ops[1].type == ZYDIS_OPERAND_TYPE_REGISTER && ops[0].reg.value == ops[1].reg.value;
}

static bool note_gpr(struct tinsn *t, const ZydisDecodedOperand *op, u8 r)
{
	unsigned i = 0;

	if (r == RSP && op->encoding == ZYDIS_OPERAND_ENCODING_NONE)
		return false;
	if (!is_homed(r))
		return true;
	while (i < t->nr_homed && t->homed[i] != r)
		i++;
	if (i == t->nr_homed)
		t->homed[t->nr_homed++] = r;
	if (!overwrites(t, op))
		t->homed_read |= BIT(i);
	if (op->actions & ZYDIS_OPERAND_ACTION_MASK_WRITE)
		t->homed_written |= BIT(i);
	return true;
}

static bool note_register(struct tinsn *t, const ZydisDecodedOperand *op, bool *high8)
{
	ZydisRegister reg = op->reg.value;
	bool high;
	u8 r = gpr_from_zydis(reg, &high);

	*high8 |= high;
	if (r != INSN_NOREG)
		return note_gpr(t, op, r);
	switch (decode_reg_file(reg)) {
	case REG_FILE_YMM:
		t->vec = true;
		return reg <= ZYDIS_REGISTER_YMM15;
	case REG_FILE_XMM:
		t->vec = true;
		return reg <= ZYDIS_REGISTER_XMM15;
	case REG_FILE_FLAGS:
		return true;
	case REG_FILE_X87:
		t->x87 = true;
		return true;
	case REG_FILE_MXCSR:
		/* Which comes and goes with the vectors. */
		t->vec = true;
		return true;
	default:
		return false;
	}
}

/* 32-bit code, which is flat: FS and GS may still have limits, and nobody writes through CS. */
static bool segment_ok(const struct trans *tr, const ZydisDecodedOperand *op)
{
	switch (seg_from_zydis(op->mem.segment)) {
	case SEG_CS:
		return !(op->actions & ZYDIS_OPERAND_ACTION_MASK_WRITE);
	case SEG_FS:
		return tr->vcpu->arch.fs_whole;
	case SEG_GS:
		return tr->vcpu->arch.gs_whole;
	default:
		return true;
	}
}

static bool note_memory(const struct trans *tr, struct tinsn *t, const ZydisDecodedOperand *op)
{
	unsigned size = op->size / 8;

	if (t->mem || op->mem.type != ZYDIS_MEMOP_TYPE_MEM || !size || size > 64 ||
	    op->visibility != ZYDIS_OPERAND_VISIBILITY_EXPLICIT ||
	    (op->encoding != ZYDIS_OPERAND_ENCODING_MODRM_RM && !(code32(t) && is_moffs(t->zi))) ||
	    op->mem.base == ZYDIS_REGISTER_EIP)
		return false;
	if (code32(t) && (t->zi->address_width != 32 || !segment_ok(tr, op)))
		return false;
	t->mem = true;
	t->mem_size = size;
	t->mem_write = op->actions & ZYDIS_OPERAND_ACTION_MASK_WRITE;
	return true;
}

static bool is_bit_string(const struct tinsn *t)
{
	switch (t->zi->mnemonic) {
	case ZYDIS_MNEMONIC_BT:
	case ZYDIS_MNEMONIC_BTS:
	case ZYDIS_MNEMONIC_BTR:
	case ZYDIS_MNEMONIC_BTC:
		return t->mem && t->ops[1].type != ZYDIS_OPERAND_TYPE_IMMEDIATE;
	default:
		return false;
	}
}

/* Does a pending x87 exception come first? */
static bool waits_for_x87(const struct tinsn *t)
{
	return t->insn.thunk_flags & THUNK_X87_WAIT || t->zi->mnemonic == ZYDIS_MNEMONIC_EMMS ||
	       t->zi->mnemonic == ZYDIS_MNEMONIC_FWAIT;
}

/*
 * AH to BH cannot be named beside registers that need a prefix, as operands in memory do. But they may change places with AL to BL while
 * it is executed, if it uses no others and writes nothing else (insns.c).
 */
static bool high8_ok(struct tinsn *t)
{
	if (t->nr_homed || (t->zi->attributes & ZYDIS_ATTRIB_HAS_REX))
		return false;
	if (!t->mem)
		return true;
	if (!decode_is_move_or_alu(t->zi) && t->zi->mnemonic != ZYDIS_MNEMONIC_XCHG)
		return false;
	t->high8 = t->zi->raw.modrm.reg;
	/* The verifier does not see that all of it is as before. */
	t->changes |= BIT(t->high8 & 3);
	return true;
}

/* May the host execute this very instruction? */
static bool native_form(const struct trans *tr, struct tinsn *t)
{
	const ZydisDecodedInstruction *zi = t->zi;
	u8 class = allowed[zi->mnemonic];
	bool high8 = false;

	if ((class != INT && class != VEC && class != X87) || zi->meta.category == ZYDIS_CATEGORY_STRINGOP)
		return false;
	if (zi->encoding != ZYDIS_INSTRUCTION_ENCODING_LEGACY && zi->encoding != ZYDIS_INSTRUCTION_ENCODING_VEX)
		return false;
	for (unsigned i = 0; i < zi->operand_count; i++) {
		const ZydisDecodedOperand *op = &t->ops[i];
		bool ok = op->type == ZYDIS_OPERAND_TYPE_IMMEDIATE;

		if (op->type == ZYDIS_OPERAND_TYPE_REGISTER)
			ok = note_register(t, op, &high8);
		else if (op->type == ZYDIS_OPERAND_TYPE_MEMORY)
			ok = note_memory(tr, t, op);
		if (!ok)
			return false;
	}
	if (code32(t) && !dbt_encodable32(zi, t->ops, t->bytes))
		return false;
	if (is_bit_string(t) || t->nr_homed > (t->mem ? 1 : 2))
		return false;
	if (high8 && !high8_ok(t))
		return false;
	for (unsigned i = 0; high8 && i < zi->operand_count; i++)
		if (t->ops[i].type == ZYDIS_OPERAND_TYPE_REGISTER &&
		    ZydisRegisterGetLargestEnclosing(ZYDIS_MACHINE_MODE_LONG_64, t->ops[i].reg.value) == ZYDIS_REGISTER_RSP)
			return false;
	/* #NM depends on CR0.MP as well. */
	if (zi->mnemonic == ZYDIS_MNEMONIC_FWAIT && (tr->vcpu->arch.cr0 & X86_CR0_TS))
		return false;
	/* Sixteen registers in 64-bit mode, eight elsewhere; Zydis does not name them. */
	if (zi->mnemonic == ZYDIS_MNEMONIC_VZEROUPPER || zi->mnemonic == ZYDIS_MNEMONIC_VZEROALL) {
		if (code32(t))
			return false;
		t->vec = true;
	}
	t->x87 |= class == X87 || zi->mnemonic == ZYDIS_MNEMONIC_EMMS;
	t->x87_pointers = t->insn.thunk_flags & THUNK_X87_POINTERS;
	t->vec |= class == VEC && decode_uses_mxcsr(zi);
	t->may_fault = t->mem || waits_for_x87(t) || (class == VEC && decode_uses_mxcsr(zi)) || zi->mnemonic == ZYDIS_MNEMONIC_DIV ||
		       zi->mnemonic == ZYDIS_MNEMONIC_IDIV;
	return dbt_plan_encoding(&t->encoding, zi, t->ops, t->bytes, class == INT);
}

/* ---- with emitters of their own ---------------------------------------------------------------- */

static enum kind classify_branch(struct trans *tr, struct tinsn *t)
{
	bool near = t->zi->meta.branch_type != ZYDIS_BRANCH_TYPE_FAR;
	bool reg = t->ops[0].type == ZYDIS_OPERAND_TYPE_REGISTER;
	bool imm = t->ops[0].type == ZYDIS_OPERAND_TYPE_IMMEDIATE;

	/* VEX ones (JKZD) are nobody's. */
	if (!near || t->zi->encoding != ZYDIS_INSTRUCTION_ENCODING_LEGACY)
		return K_HANDLER;
	if (code32(t) && t->insn.opsize != 4)
		return K_HANDLER;
	switch (t->zi->mnemonic) {
	case ZYDIS_MNEMONIC_JMP:
		if (imm)
			return K_JMP;
		return reg || note_memory(tr, t, &t->ops[0]) ? K_JMP_IND : K_HANDLER;
	case ZYDIS_MNEMONIC_CALL:
		if (imm)
			return K_CALL;
		return reg || note_memory(tr, t, &t->ops[0]) ? K_CALL_IND : K_HANDLER;
	case ZYDIS_MNEMONIC_RET:
		return K_RET;
	case ZYDIS_MNEMONIC_LOOP:
		return t->zi->address_width >= 32 ? K_LOOP : K_HANDLER;
	case ZYDIS_MNEMONIC_JRCXZ:
	case ZYDIS_MNEMONIC_JECXZ:
		return K_JRCXZ;
	case ZYDIS_MNEMONIC_LOOPE:
	case ZYDIS_MNEMONIC_LOOPNE:
	case ZYDIS_MNEMONIC_JCXZ:
		return K_HANDLER;
	default:
		return decode_is_jcc(t->zi) ? K_JCC : K_HANDLER;
	}
}

static enum kind classify_stack(const struct trans *tr, struct tinsn *t)
{
	const ZydisDecodedOperand *op = &t->ops[0];
	bool high8;

	if (t->insn.opsize != word_size(t) || (t->insn.flags & INSN_LOCK))
		return K_HANDLER;
	switch (t->zi->mnemonic) {
	case ZYDIS_MNEMONIC_LEAVE:
		return K_LEAVE;
	case ZYDIS_MNEMONIC_PUSH:
		if (op->type == ZYDIS_OPERAND_TYPE_MEMORY)
			return note_memory(tr, t, op) ? K_PUSH : K_HANDLER;
		if (op->type == ZYDIS_OPERAND_TYPE_REGISTER && gpr_from_zydis(op->reg.value, &high8) == INSN_NOREG)
			return K_HANDLER;
		return K_PUSH;
	default:
		return op->type == ZYDIS_OPERAND_TYPE_REGISTER &&
		       gpr_from_zydis(op->reg.value, &high8) != INSN_NOREG ? K_POP : K_HANDLER;
	}
}

enum kind classify_insn(struct trans *tr, struct tinsn *t)
{
	bool kernel = !tr->vcpu->arch.cpl;

	switch (t->zi->meta.category) {
	case ZYDIS_CATEGORY_COND_BR:
	case ZYDIS_CATEGORY_UNCOND_BR:
	case ZYDIS_CATEGORY_CALL:
	case ZYDIS_CATEGORY_RET:
		return classify_branch(tr, t);
	default:
		break;
	}
	switch (t->zi->mnemonic) {
	case ZYDIS_MNEMONIC_STI: return kernel ? K_STI : K_HANDLER;
	case ZYDIS_MNEMONIC_CLI: return kernel ? K_CLI : K_HANDLER;
	case ZYDIS_MNEMONIC_CLD: return K_CLD;
	case ZYDIS_MNEMONIC_SWAPGS: return kernel && !code32(t) ? K_SWAPGS : K_HANDLER;
	case ZYDIS_MNEMONIC_PUSHFQ: return K_PUSHF;
	default: break;
	}
	/* #UD, #NM, and what changes the mode. */
	if (t->insn.flags & INSN_END_BLOCK)
		return K_HANDLER;
	switch (t->zi->mnemonic) {
	case ZYDIS_MNEMONIC_STAC: return kernel ? K_STAC : K_HANDLER;
	case ZYDIS_MNEMONIC_CLAC: return kernel ? K_CLAC : K_HANDLER;
	case ZYDIS_MNEMONIC_PUSH:
	case ZYDIS_MNEMONIC_POP:
	case ZYDIS_MNEMONIC_LEAVE:
		return classify_stack(tr, t);
	case ZYDIS_MNEMONIC_LEA:
		if (t->ops[1].mem.base == ZYDIS_REGISTER_EIP || t->insn.opsize < 4 || t->zi->address_width < 32)
			return K_HANDLER;
		return K_LEA;
	default:
		break;
	}
	/* CLFLUSH and its kin do nothing, but may fault. */
	if (allowed[t->zi->mnemonic] == NOP)
		return t->zi->mnemonic == ZYDIS_MNEMONIC_CLFLUSH || t->zi->mnemonic == ZYDIS_MNEMONIC_CLFLUSHOPT ||
		       t->zi->mnemonic == ZYDIS_MNEMONIC_CLWB ? K_HANDLER : K_NOP;
	return native_form(tr, t) ? K_NATIVE : K_HANDLER;
}

/* SPDX-License-Identifier: MIT */
/* Guest bytes to struct insn. */
#ifndef SOFTKVM_X86_DECODE_H
#define SOFTKVM_X86_DECODE_H

#include "x86/interp/insn.h"

#define INSN_MAX_LEN 15

/*
 * Decode the instruction in bytes[0..avail) for the vCPU's present mode. Always
 * yields something that can be executed (an invalid encoding raises its
 * exception); false only if the instruction goes on after the bytes given.
 */
bool decode_insn(struct vcpu *vcpu, const u8 *bytes, unsigned avail, struct insn *insn);
/* The same, and what Zydis said: all zeros (an invalid mnemonic) if the encoding is invalid. */
bool decode_insn_full(struct vcpu *vcpu, const u8 *bytes, unsigned avail, struct insn *insn,
		      ZydisDecodedInstruction *zi, ZydisDecodedOperand *ops);

/* What a register that is no general one belongs to, of those a thunk or a translation may use. */
enum reg_file { REG_FILE_NONE, REG_FILE_FLAGS, REG_FILE_XMM, REG_FILE_YMM, REG_FILE_X87, REG_FILE_MXCSR };

static inline enum reg_file decode_reg_file(ZydisRegister reg)
{
	switch (ZydisRegisterGetClass(reg)) {
	case ZYDIS_REGCLASS_FLAGS: return REG_FILE_FLAGS;
	case ZYDIS_REGCLASS_XMM: return REG_FILE_XMM;
	case ZYDIS_REGCLASS_YMM: return REG_FILE_YMM;
	case ZYDIS_REGCLASS_X87:
	case ZYDIS_REGCLASS_MMX: return REG_FILE_X87;
	default: break;
	}
	switch (reg) {
	case ZYDIS_REGISTER_X87CONTROL:
	case ZYDIS_REGISTER_X87STATUS:
	case ZYDIS_REGISTER_X87TAG: return REG_FILE_X87;
	case ZYDIS_REGISTER_MXCSR: return REG_FILE_MXCSR;
	default: return REG_FILE_NONE;
	}
}

/* Of a vector instruction: does it read or write MXCSR, and may it so raise #XM? */
static inline bool decode_uses_mxcsr(const ZydisDecodedInstruction *zi)
{
	switch (zi->meta.exception_class) {
	case ZYDIS_EXCEPTION_CLASS_SSE2:
	case ZYDIS_EXCEPTION_CLASS_SSE3:
	case ZYDIS_EXCEPTION_CLASS_AVX2:
	case ZYDIS_EXCEPTION_CLASS_AVX3:
	case ZYDIS_EXCEPTION_CLASS_AVX11:
		return true;
	default:
		return zi->meta.category == ZYDIS_CATEGORY_CONVERT;
	}
}

/* A shift by zero leaves all flags alone, and by what a register says perhaps. */
static inline bool decode_may_keep_flags(const ZydisDecodedInstruction *zi, const ZydisDecodedOperand *ops)
{
	const ZydisDecodedOperand *count;

	if (zi->meta.category != ZYDIS_CATEGORY_SHIFT && zi->meta.category != ZYDIS_CATEGORY_ROTATE)
		return false;
	count = &ops[zi->operand_count_visible - 1];
	return count->type != ZYDIS_OPERAND_TYPE_IMMEDIATE || zi->operand_count_visible < 2 ||
	       !(count->imm.value.u & (zi->operand_width == 64 ? 63 : 31));
}

/* What the destination was has no say in what it becomes, if all of it is written. */
static inline bool decode_is_move(const ZydisDecodedInstruction *zi)
{
	return zi->mnemonic == ZYDIS_MNEMONIC_MOV || zi->mnemonic == ZYDIS_MNEMONIC_MOVZX || zi->mnemonic == ZYDIS_MNEMONIC_MOVSX ||
	       zi->mnemonic == ZYDIS_MNEMONIC_MOVSXD;
}

/* MOV, and what has two operands as that does and does arithmetic or logic with them, no more. */
static inline bool decode_is_move_or_alu(const ZydisDecodedInstruction *zi)
{
	switch (zi->mnemonic) {
	case ZYDIS_MNEMONIC_MOV:
	case ZYDIS_MNEMONIC_ADD:
	case ZYDIS_MNEMONIC_OR:
	case ZYDIS_MNEMONIC_ADC:
	case ZYDIS_MNEMONIC_SBB:
	case ZYDIS_MNEMONIC_AND:
	case ZYDIS_MNEMONIC_SUB:
	case ZYDIS_MNEMONIC_XOR:
	case ZYDIS_MNEMONIC_CMP:
	case ZYDIS_MNEMONIC_TEST:
		return true;
	default:
		return false;
	}
}

/* Its condition is in the low four bits of the opcode. */
static inline bool decode_is_jcc(const ZydisDecodedInstruction *zi)
{
	return (zi->opcode_map == ZYDIS_OPCODE_MAP_DEFAULT && (zi->opcode & 0xf0) == 0x70) ||
	       (zi->opcode_map == ZYDIS_OPCODE_MAP_0F && (zi->opcode & 0xf0) == 0x80);
}

#endif

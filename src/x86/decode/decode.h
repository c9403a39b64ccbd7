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

#endif

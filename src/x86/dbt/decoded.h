/* SPDX-License-Identifier: MIT */
/* Instructions that were decoded before. Private to the making of one block. */
#ifndef SOFTKVM_X86_DBT_DECODED_H
#define SOFTKVM_X86_DBT_DECODED_H

#include "x86/dbt/translate.h"

/* An instruction, or all that differ from it in a displacement and a large immediate only. */
struct decoded {
	struct tinsn t;		/* what depends on neither address nor neighbours; points into this record */
	u8 disp_at, disp_size;	/* where its bytes have insn.disp; size 0: it is the same in all of them */
	u8 imm_at, imm_size;	/* the same of insn.imm */
	bool imm_signed;
	ZydisDecodedInstruction zi;
	ZydisDecodedOperand ops[];	/* the visible ones */
};
static_assert(offsetof(struct decoded, zi) <= 3 * 64, "all that decoded_copy() reads, each time from memory that nobody has in a cache");

/*
 * The record of the instruction at bytes; NULL: not all of it is there. The caller has made sure of room
 * (decoded_has_room()) and of that for thunks.
 */
const struct decoded *decoded_get(struct trans *tr, const u8 *bytes, unsigned avail);
/* *t: the one of d that has these bytes. */
void decoded_copy(const struct decoded *d, const u8 *bytes, struct tinsn *t);
/* Does d say of bytes what decoding them says? For tests and SOFTKVM_DBT_VERIFY. */
bool decoded_check(struct vcpu *vcpu, const struct decoded *d, const u8 *bytes);

#endif

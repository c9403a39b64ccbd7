/* SPDX-License-Identifier: MIT */
/* Instructions that were decoded before. Private to the making of one block. */
#ifndef SOFTKVM_X86_DBT_DECODED_H
#define SOFTKVM_X86_DBT_DECODED_H

#include "x86/dbt/translate.h"

/* What may be looked at of an instruction: its bytes, and one more. */
#define DECODED_WINDOW 16u
static_assert(INSN_MAX_LEN < DECODED_WINDOW, "any of them");

/* An instruction, or all that differ from it in a displacement and a large immediate only. */
struct decoded {
	_Alignas(64) u8 first[DECODED_WINDOW]; /* bytes of the first of them... */
	union {
		struct insn insn;
		u8 kept[TINSN_KEPT];	/* of struct tinsn: what depends on neither address nor neighbours */
	};
	u16 mask;		/* ...and which of them matter */
	u8 disp_at : 4, disp_size : 3;	/* where its bytes have insn.disp; size 0: it is the same in all of them */
	bool imm_signed : 1;
	u8 imm_at : 4, imm_size : 4;	/* the same of insn.imm */
	u32 mode_key;
};
static_assert(sizeof(struct decoded) == 2 * 64, "each is read from memory that nobody has in a cache");

/*
 * The record of the instruction at bytes; NULL: not all of it is there. The caller has made sure of room
 * (decode_cache_has_room()) and of that for thunks.
 */
const struct decoded *decoded_get(struct trans *tr, const u8 *bytes, unsigned avail);
/* These bytes are asked for next, one instruction after the other: what that needs is fetched to the host's caches, all of it at a time. */
#define DECODED_EXPECT 8u
void decoded_expect(struct trans *tr, const u8 *bytes, unsigned avail);
/* *t: the one of r that has these bytes. */
void decoded_copy(const struct dbt *d, const struct decoded *r, const u8 *bytes, struct tinsn *t);
/* Does d say of bytes what decoding them says? For tests and SOFTKVM_DBT_VERIFY. */
bool decoded_check(struct vcpu *vcpu, const struct decoded *d, const u8 *bytes);

#endif

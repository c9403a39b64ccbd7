/* SPDX-License-Identifier: MIT */
/* Generated code that executes one guest instruction on the host's CPU. */
#ifndef SOFTKVM_X86_INTERP_THUNK_H
#define SOFTKVM_X86_INTERP_THUNK_H

#include "host/host.h"
#include "x86/interp/insn.h"

enum thunk_flags {
	THUNK_X87 = BIT(0),	/* needs the guest's x87/MMX state in the host's registers */
	THUNK_X87_POINTERS = BIT(1), /* updates FIP, FDP, FOP; the opcode is insn->imm2 */
	THUNK_ATOMIC = BIT(2),	/* locked read-modify-write */
	THUNK_X87_WAIT = BIT(4), /* a pending x87 exception comes before anything of the operand */
	THUNK_ALIGNED = BIT(5),	/* its operand must be aligned, ... */
	THUNK_MISALIGNABLE = BIT(6), /* ... unless MXCSR.MM is set (AMD) */
	THUNK_UNCHECKED = BIT(7), /* its operand is not checked for alignment (#AC) */
	THUNK_MXCSR = BIT(3),	/* runs under the guest's MXCSR, which must be in the host's */
};

struct thunk_cache {
	struct codemem mem;
	u32 *hash;		/* offsets of thunks in mem, 0: free */
	u32 nr;
};

int thunk_cache_init(struct thunk_cache *cache);	/* 0 or -errno */
void thunk_cache_destroy(struct thunk_cache *cache);
void thunk_cache_reset(struct thunk_cache *cache);
bool thunk_cache_has_room(const struct thunk_cache *cache, unsigned nr);

/* x87.c */
void x87_load(struct vcpu *vcpu);	/* guest state into the host's registers, if it is not there */
void x87_discard(struct vcpu *vcpu);	/* forget what is in the host's registers; fpu.fx holds */
void mxcsr_load(struct vcpu *vcpu);	/* guest's MXCSR into the host's, if it is not there */
void mxcsr_sync(struct vcpu *vcpu);	/* and back: fpu.mxcsr holds */
enum exec wait_for_x87(struct vcpu *vcpu); /* ops/fpu.c: #MF if an exception is pending */
void x87_note(struct vcpu *vcpu, const struct insn *insn);	/* a non-control instruction retired */

#endif

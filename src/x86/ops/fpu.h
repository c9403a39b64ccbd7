/* SPDX-License-Identifier: MIT */
/* Images of the FPU's state in memory: what FXSAVE and XSAVE share. ops/fpu.c, ops/xsave.c. */
#ifndef SOFTKVM_X86_OPS_FPU_H
#define SOFTKVM_X86_OPS_FPU_H

#include <string.h>

#include "x86/interp/insn.h"

#define FX_FCW 0
#define FX_FSW 2
#define FX_FTW 4
#define FX_FOP 6
#define FX_FIP 8
#define FX_FDP 16
#define FX_MXCSR 24
#define FX_MXCSR_MASK 28
#define FX_ST 32
#define FX_XMM 160
#define FCW_INIT 0x37f
#define MXCSR_RESET 0x1f80u

static inline u16 get16(const u8 *p)
{
	return p[0] | p[1] << 8;
}

static inline u32 get32(const u8 *p)
{
	u32 v;

	memcpy(&v, p, 4);
	return v;
}

static inline void put16(u8 *p, u16 v)
{
	memcpy(p, &v, 2);
}

static inline void put32(u8 *p, u32 v)
{
	memcpy(p, &v, 4);
}

static inline unsigned nr_vector_regs(const struct vcpu *vcpu)
{
	return in_64bit_mode(vcpu) ? 16 : 8;
}

/* FXSAVE64 and its like: pointers of 64 bits instead of 32 and a selector. */
static inline bool is_wide(const struct insn *insn)
{
	return insn->opsize == 8;
}

static inline insn_fn select_image(struct insn *insn, insn_fn fn, bool wide)
{
	insn->opsize = wide ? 8 : 4;
	return fn;
}

/* As FNINIT. */
void x87_reset(struct vcpu *vcpu);
void x87_to_area(struct vcpu *vcpu, u8 *area, bool wide);
void x87_from_area(struct vcpu *vcpu, const u8 *area, bool wide);
/*
 * #GP(0) if an image is not aligned; on Intel's CPUs #AC, where that is asked for, if not even by 4. Comes after the checks of its address, before
 * its pages are looked at.
 */
enum exec area_aligned(struct vcpu *vcpu, gva_t va, unsigned align);
/*
 * Look at the (up to 4) bytes at disp before the others. The order decides which of two bad pages, and which byte of it, #PF names; it is that
 * of Intel's CPUs (tests/insn/oracle).
 */
enum exec area_touch(struct vcpu *vcpu, const struct insn *insn, unsigned disp, unsigned size, bool write);
/* Linear address of a part of the operand in memory; the offset does not wrap within it. */
enum exec part_linear(struct vcpu *vcpu, const struct insn *insn, u64 disp, unsigned size, bool write, gva_t *va);

/* Handlers of XSAVE, XRSTOR, their other forms, and XGETBV; NULL: none of these. */
insn_fn xsave_select(const struct decode_ctx *ctx, struct insn *insn);

#endif

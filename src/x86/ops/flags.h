/* SPDX-License-Identifier: MIT */
/*
 * Arithmetic with its flags, computed by the very host instruction: undefined
 * flags then follow the host too. LAHF and SETO are cheaper than PUSHF.
 */
#ifndef SOFTKVM_X86_OPS_FLAGS_H
#define SOFTKVM_X86_OPS_FLAGS_H

#include "x86/vcpu_arch.h"

/* Condition cc (low nibble of Jcc) holds? With a constant cc this is a test and a branch. */
static inline bool flags_test(u64 f, unsigned cc)
{
	bool r;

	switch (cc >> 1) {
	case 0: r = f & X86_EFLAGS_OF; break;
	case 1: r = f & X86_EFLAGS_CF; break;
	case 2: r = f & X86_EFLAGS_ZF; break;
	case 3: r = f & (X86_EFLAGS_CF | X86_EFLAGS_ZF); break;
	case 4: r = f & X86_EFLAGS_SF; break;
	case 5: r = f & X86_EFLAGS_PF; break;
	case 6: r = !(f & X86_EFLAGS_SF) != !(f & X86_EFLAGS_OF); break;
	default: r = (f & X86_EFLAGS_ZF) || !(f & X86_EFLAGS_SF) != !(f & X86_EFLAGS_OF); break;
	}
	return r ^ (cc & 1);
}

/* AH = SF ZF 0 AF 0 PF 1 CF after LAHF, AL = OF after SETO. */
static inline u64 flags_from_ax(u32 ax)
{
	return ((ax >> 8) & 0xd5) | (ax & 1) << 11;
}

static inline void flags_set(u64 *rflags, u64 mask, u64 f)
{
	*rflags = (*rflags & ~mask) | (f & mask);
}

/* alu_add(size, &a, b, rflags): a = a op b, OSZAPC into rflags. */
#define ALU_BINARY(name, mnemonic)                                              \
static inline void alu_##name(unsigned size, u64 *a, u64 b, u64 *rflags)        \
{                                                                               \
	u32 ax;                                                                 \
	u64 v = *a;                                                             \
	switch (size) {                                                         \
	case 1: asm(mnemonic "b %b2, %b0; lahf; seto %%al"                      \
		    : "+&r"(v), "=&a"(ax) : "r"(b) : "cc"); break;              \
	case 2: asm(mnemonic "w %w2, %w0; lahf; seto %%al"                      \
		    : "+&r"(v), "=&a"(ax) : "r"(b) : "cc"); break;              \
	case 4: asm(mnemonic "l %k2, %k0; lahf; seto %%al"                      \
		    : "+&r"(v), "=&a"(ax) : "r"(b) : "cc"); break;              \
	default: asm(mnemonic "q %2, %0; lahf; seto %%al"                       \
		     : "+&r"(v), "=&a"(ax) : "r"(b) : "cc"); break;             \
	}                                                                       \
	*a = v;                                                                 \
	flags_set(rflags, X86_EFLAGS_OSZAPC, flags_from_ax(ax));                \
}
ALU_BINARY(add, "add")
ALU_BINARY(sub, "sub")
ALU_BINARY(and, "and")
ALU_BINARY(or, "or")
ALU_BINARY(xor, "xor")

/* With carry in. */
#define ALU_CARRY(name, mnemonic)                                               \
static inline void alu_##name(unsigned size, u64 *a, u64 b, u64 *rflags)        \
{                                                                               \
	u32 ax;                                                                 \
	u64 v = *a;                                                             \
	u32 f = *rflags;                                                        \
	switch (size) {                                                         \
	case 1: asm("btl $0, %3; " mnemonic "b %b2, %b0; lahf; seto %%al"       \
		    : "+&r"(v), "=&a"(ax) : "r"(b), "r"(f) : "cc"); break;      \
	case 2: asm("btl $0, %3; " mnemonic "w %w2, %w0; lahf; seto %%al"       \
		    : "+&r"(v), "=&a"(ax) : "r"(b), "r"(f) : "cc"); break;      \
	case 4: asm("btl $0, %3; " mnemonic "l %k2, %k0; lahf; seto %%al"       \
		    : "+&r"(v), "=&a"(ax) : "r"(b), "r"(f) : "cc"); break;      \
	default: asm("btl $0, %3; " mnemonic "q %2, %0; lahf; seto %%al"        \
		     : "+&r"(v), "=&a"(ax) : "r"(b), "r"(f) : "cc"); break;     \
	}                                                                       \
	*a = v;                                                                 \
	flags_set(rflags, X86_EFLAGS_OSZAPC, flags_from_ax(ax));                \
}
ALU_CARRY(adc, "adc")
ALU_CARRY(sbb, "sbb")

/* Unary: INC and DEC keep CF, NEG sets all. */
#define ALU_UNARY(name, mnemonic, mask)                                         \
static inline void alu_##name(unsigned size, u64 *a, u64 *rflags)               \
{                                                                               \
	u32 ax;                                                                 \
	u64 v = *a;                                                             \
	switch (size) {                                                         \
	case 1: asm(mnemonic "b %b0; lahf; seto %%al"                           \
		    : "+&r"(v), "=&a"(ax) : : "cc"); break;                     \
	case 2: asm(mnemonic "w %w0; lahf; seto %%al"                           \
		    : "+&r"(v), "=&a"(ax) : : "cc"); break;                     \
	case 4: asm(mnemonic "l %k0; lahf; seto %%al"                           \
		    : "+&r"(v), "=&a"(ax) : : "cc"); break;                     \
	default: asm(mnemonic "q %0; lahf; seto %%al"                           \
		     : "+&r"(v), "=&a"(ax) : : "cc"); break;                    \
	}                                                                       \
	*a = v;                                                                 \
	flags_set(rflags, mask, flags_from_ax(ax));                             \
}
ALU_UNARY(inc, "inc", X86_EFLAGS_OSZAPC & ~X86_EFLAGS_CF)
ALU_UNARY(dec, "dec", X86_EFLAGS_OSZAPC & ~X86_EFLAGS_CF)
ALU_UNARY(neg, "neg", X86_EFLAGS_OSZAPC)

/* Shifts and rotates by a count already masked and not zero. */
#define ALU_SHIFT(name, mnemonic, mask)                                         \
static inline void alu_##name(unsigned size, u64 *a, u8 count, u64 *rflags)     \
{                                                                               \
	u32 ax;                                                                 \
	u64 v = *a;                                                             \
	switch (size) {                                                         \
	case 1: asm(mnemonic "b %%cl, %b0; lahf; seto %%al"                     \
		    : "+&r"(v), "=&a"(ax) : "c"(count) : "cc"); break;          \
	case 2: asm(mnemonic "w %%cl, %w0; lahf; seto %%al"                     \
		    : "+&r"(v), "=&a"(ax) : "c"(count) : "cc"); break;          \
	case 4: asm(mnemonic "l %%cl, %k0; lahf; seto %%al"                     \
		    : "+&r"(v), "=&a"(ax) : "c"(count) : "cc"); break;          \
	default: asm(mnemonic "q %%cl, %0; lahf; seto %%al"                     \
		     : "+&r"(v), "=&a"(ax) : "c"(count) : "cc"); break;         \
	}                                                                       \
	*a = v;                                                                 \
	flags_set(rflags, mask, flags_from_ax(ax));                             \
}
ALU_SHIFT(shl, "shl", X86_EFLAGS_OSZAPC)
ALU_SHIFT(shr, "shr", X86_EFLAGS_OSZAPC)
ALU_SHIFT(sar, "sar", X86_EFLAGS_OSZAPC)

static inline void alu_test(unsigned size, u64 *a, u64 b, u64 *rflags)
{
	u64 v = *a;

	alu_and(size, &v, b, rflags);
}

static inline void alu_cmp(unsigned size, u64 *a, u64 b, u64 *rflags)
{
	u64 v = *a;

	alu_sub(size, &v, b, rflags);
}

#endif

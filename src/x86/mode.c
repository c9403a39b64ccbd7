/* SPDX-License-Identifier: MIT */
/*
 * The CPU's mode, derived from the segments, CR0, CR4, EFER, XCR0 and RFLAGS.VM.
 *
 * CPL is SS.DPL, as in the hardware's own state (VMCS guest state): it is right
 * between loading CR0.PE and the first far jump, with conforming code and with
 * null stack selectors in 64-bit mode. Whoever loads SS keeps DPL = CPL in its
 * access rights even if the segment is unusable.
 *
 * flat32 says that 32-bit code need not look at its segments, FS and GS apart. It
 * depends on DS to GS as well: in 32-bit code whoever loads one calls vcpu_update_mode().
 *
 * mode_key holds everything but the bytes themselves that decides what a decoded
 * block means. It need not have unused combinations removed; two keys that mean the
 * same only cost a decode.
 */
#include "x86/x86.h"


enum {
	KEY_CODE_SIZE = 0,	/* 2 bits: log2 of the size */
	KEY_STACK_SIZE = 2,	/* 2 bits */
	KEY_CPL = 4,		/* 2 bits */
	KEY_VM86 = 6,
	KEY_LMA = 7,
	KEY_CR0 = 8,		/* 7 bits */
	KEY_CR4 = 15,		/* 9 bits */
	KEY_AVX = 24,
	KEY_SSE = 25,
	KEY_FLAT32 = 26,
	KEY_FS_WHOLE = 27,
	KEY_GS_WHOLE = 28,
	KEY_UNLOCKED = 29,
};

static u32 size_log2(u8 size)
{
	return size == 8 ? 3 : size == 4 ? 2 : 1;
}

/* PE, MP, EM, TS sit in bits 0-3; NE, AM and PG go beside them. */
static u32 cr0_key(u64 cr0)
{
	return (cr0 & 0xf) | (cr0 & X86_CR0_NE ? 0x10 : 0) | (cr0 & X86_CR0_AM ? 0x20 : 0) |
	       (cr0 & X86_CR0_PG ? 0x40 : 0);
}

static u32 cr4_key(u64 cr4)
{
	return (cr4 & (X86_CR4_VME | X86_CR4_PVI | X86_CR4_TSD | X86_CR4_DE)) |
	       (cr4 & X86_CR4_PCE ? 0x10 : 0) | (cr4 & X86_CR4_OSFXSR ? 0x20 : 0) |
	       (cr4 & X86_CR4_UMIP ? 0x40 : 0) | (cr4 & X86_CR4_FSGSBASE ? 0x80 : 0) |
	       (cr4 & X86_CR4_OSXSAVE ? 0x100 : 0);
}

/* All 4 GiB of it, writable if it is data and readable if it is code. */
static bool is_whole(const struct segment *s, bool code)
{
	unsigned type = s->ar & AR_TYPE;

	return s->limit == ~0u && (s->ar & (AR_P | AR_S | AR_UNUSABLE)) == (AR_P | AR_S) &&
	       (code ? (type & 0xa) == 0xa : (type & 0xe) == 0x2);
}

static bool is_flat(const struct segment *s, bool code)
{
	return !s->base && is_whole(s, code);
}

static bool is_flat32(const struct vcpu_arch *a)
{
	return a->protected_mode && a->code_size == 4 && a->stack_size == 4 &&
	       is_flat(&a->seg[SEG_CS], true) && is_flat(&a->seg[SEG_SS], false) &&
	       is_flat(&a->seg[SEG_DS], false) && is_flat(&a->seg[SEG_ES], false);
}

void vcpu_update_mode(struct vcpu *vcpu)
{
	struct vcpu_arch *a = &vcpu->arch;
	bool pe = a->cr0 & X86_CR0_PE;
	u32 cs = a->seg[SEG_CS].ar, ss = a->seg[SEG_SS].ar;

	a->long_mode = a->efer & EFER_LMA;
	a->paging = a->cr0 & X86_CR0_PG;
	a->vm86 = pe && !a->long_mode && (a->rflags & X86_EFLAGS_VM);
	a->protected_mode = pe && !a->vm86;
	a->cpl = !pe ? 0 : a->vm86 ? 3 : (ss & AR_DPL) >> AR_DPL_SHIFT;
	if (a->vm86)
		a->code_size = a->stack_size = 2;
	else if (a->long_mode && (cs & AR_L))
		a->code_size = a->stack_size = 8;
	else {
		a->code_size = cs & AR_DB ? 4 : 2;
		a->stack_size = ss & AR_DB ? 4 : 2;
	}
	a->mode_key = size_log2(a->code_size) << KEY_CODE_SIZE |
		      size_log2(a->stack_size) << KEY_STACK_SIZE | (u32)a->cpl << KEY_CPL |
		      (u32)a->vm86 << KEY_VM86 | (u32)a->long_mode << KEY_LMA |
		      cr0_key(a->cr0) << KEY_CR0 | cr4_key(a->cr4) << KEY_CR4 |
		      (u32)!!(a->xcr0 & XFEATURE_AVX) << KEY_AVX |
		      (u32)!!(a->xcr0 & XFEATURE_SSE) << KEY_SSE;
	a->flat32 = is_flat32(a);
	a->fs_whole = a->flat32 && is_whole(&a->seg[SEG_FS], false);
	a->gs_whole = a->flat32 && is_whole(&a->seg[SEG_GS], false);
	a->mode_key |= (u32)a->flat32 << KEY_FLAT32 | (u32)a->fs_whole << KEY_FS_WHOLE |
		       (u32)a->gs_whole << KEY_GS_WHOLE;
	a->unlocked = a->sole && a->cpl == 3 && !a->smm;
	a->mode_key |= (u32)a->unlocked << KEY_UNLOCKED;
}

/* Everything that is not reserved: bit 1 reads as one, 3, 5, 15 and 22 up as zero. */
#define RFLAGS_WRITABLE 0x003f7fd5ull

void vcpu_set_rflags(struct vcpu *vcpu, u64 rflags)
{
	u64 old = vcpu->arch.rflags;

	vcpu->arch.rflags = (rflags & RFLAGS_WRITABLE) | X86_EFLAGS_FIXED;
	if ((old ^ vcpu->arch.rflags) & X86_EFLAGS_VM)
		vcpu_update_mode(vcpu);
}

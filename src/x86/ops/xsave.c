/* SPDX-License-Identifier: MIT */
/*
 * XSAVE, XSAVEOPT, XSAVEC, XSAVES, XRSTOR, XRSTORS and XGETBV.
 *
 * insn->imm2 of XSAVE*: the form. Of XRSTOR*: the form, which also says whether the image may be compacted (CPUID).
 *  1. The components we know lie at the same places in either format: there are no gaps to close.
 *  2. In the standard format MXCSR belongs to SSE and AVX; in the compacted one, and to XGETBV, to SSE only.
 *  3. Nothing is loaded before everything that can be refused has been looked at.
 */
#include <string.h>

#include "host/host.h"
#include "x86/interp/operand.h"
#include "x86/ops/fpu.h"

#define XS_HEADER 512
#define XS_AVX 576
#define XS_SIZE 832

enum { FORM_XSAVE, FORM_XSAVEOPT, FORM_XSAVEC, FORM_XSAVES };
enum { FORM_XRSTOR, FORM_XRSTOR_COMPACT, FORM_XRSTORS };
#define XCOMP_COMPACTED BIT_ULL(63)

static bool all_zero(const void *p, unsigned n)
{
	const u8 *b = p;

	for (unsigned i = 0; i < n; i++)
		if (b[i])
			return false;
	return true;
}

static u64 components_in_use(struct vcpu *vcpu)
{
	struct guest_fpu *f = &vcpu->arch.fpu;
	u64 used = 0;

	if (get16(f->fx + FX_FCW) != FCW_INIT || get16(f->fx + FX_FSW) || f->fx[FX_FTW] || f->fop ||
	    f->fip || f->fdp || !all_zero(f->fx + FX_ST, 128))
		used |= XFEATURE_X87;
	for (unsigned i = 0; i < 16; i++) {
		if (!all_zero(f->ymm[i], 16))
			used |= XFEATURE_SSE;
		if (!all_zero(f->ymm[i] + 16, 16))
			used |= XFEATURE_AVX;
	}
	return used;
}

static u64 components_in_use_compact(struct vcpu *vcpu)
{
	return components_in_use(vcpu) | (vcpu->arch.fpu.mxcsr != MXCSR_RESET ? XFEATURE_SSE : 0);
}

static u64 enabled_features(const struct vcpu *vcpu, bool supervisor)
{
	return vcpu->arch.xcr0 | (supervisor ? vcpu->arch.msr.ia32_xss : 0);
}

static u64 requested_features(const struct vcpu *vcpu, bool supervisor)
{
	u64 edx_eax = (vcpu->arch.regs[RDX] << 32) | (u32)vcpu->arch.regs[RAX];

	return edx_eax & enabled_features(vcpu, supervisor);
}

static enum exec xsave_available(struct vcpu *vcpu, bool supervisor)
{
	if (!(vcpu->arch.cr4 & X86_CR4_OSXSAVE))
		return queue_ud(vcpu);
	if (supervisor && vcpu->arch.cpl)
		return queue_gp(vcpu, 0);
	return vcpu->arch.cr0 & X86_CR0_TS ? queue_exception(vcpu, NM_VECTOR) : EXEC_OK;
}

static unsigned xsave_span(u64 features)
{
	return features & XFEATURE_AVX ? XS_SIZE : XS_AVX;
}

/* Fill the parts of a standard-format area that belong to features. */
static void features_to_area(struct vcpu *vcpu, u8 *area, u64 features, u64 mxcsr_features, bool wide)
{
	struct guest_fpu *f = &vcpu->arch.fpu;
	unsigned n = nr_vector_regs(vcpu);

	x87_sync(vcpu);
	if (features & XFEATURE_X87)
		x87_to_area(vcpu, area, wide);
	if (mxcsr_features & (XFEATURE_SSE | XFEATURE_AVX)) {
		put32(area + FX_MXCSR, f->mxcsr);
		put32(area + FX_MXCSR_MASK, host_mxcsr_mask());
	}
	for (unsigned i = 0; i < n; i++) {
		if (features & XFEATURE_SSE)
			memcpy(area + FX_XMM + 16 * i, f->ymm[i], 16);
		if (features & XFEATURE_AVX)
			memcpy(area + XS_AVX + 16 * i, f->ymm[i] + 16, 16);
	}
}

/* XSTATE_BV keeps the bits of what was not asked for; there is no XCOMP_BV. */
static void fill_standard(struct vcpu *vcpu, const struct insn *insn, u8 *area, u64 rfbm)
{
	u64 used = components_in_use(vcpu), bv;
	u64 saved = insn->imm2 == FORM_XSAVEOPT ? rfbm & used : rfbm;

	features_to_area(vcpu, area, saved, rfbm, is_wide(insn));
	memcpy(&bv, area + XS_HEADER, 8);
	bv = (bv & ~rfbm) | (used & rfbm);
	memcpy(area + XS_HEADER, &bv, 8);
}

static void fill_compacted(struct vcpu *vcpu, const struct insn *insn, u8 *area, u64 rfbm)
{
	u64 saved = rfbm & components_in_use_compact(vcpu);
	u64 header[2] = { saved, rfbm | XCOMP_COMPACTED };

	features_to_area(vcpu, area, saved, saved & XFEATURE_SSE, is_wide(insn));
	memcpy(area + XS_HEADER, header, sizeof(header));
}

/* Read, modify, write: what is not saved keeps what it holds. */
static enum exec op_xsave(struct vcpu *vcpu, const struct insn *insn)
{
	bool supervisor = insn->imm2 == FORM_XSAVES;
	u64 rfbm = requested_features(vcpu, supervisor);
	u8 area[XS_SIZE];
	unsigned span;
	gva_t va;
	enum exec r = xsave_available(vcpu, supervisor);

	x87_sync(vcpu);
	/* The compacted forms leave room for what is not in use, but do not touch it. */
	span = xsave_span(insn->imm2 >= FORM_XSAVEC ? rfbm & components_in_use_compact(vcpu) : rfbm);
	if (r == EXEC_OK)
		r = area_linear(vcpu, insn, span, 64, true, &va);
	if (r == EXEC_OK)
		r = mem_probe_write(vcpu, va, span, mmu_data_access(vcpu, MMU_WRITE));
	if (r == EXEC_OK)
		r = mem_read(vcpu, va, area, span, mmu_data_access(vcpu, MMU_READ));
	if (r != EXEC_OK)
		return r;
	if (insn->imm2 >= FORM_XSAVEC)
		fill_compacted(vcpu, insn, area, rfbm);
	else
		fill_standard(vcpu, insn, area, rfbm);
	return mem_write(vcpu, va, area, span, mmu_data_access(vcpu, MMU_WRITE));
}

static bool is_compacted(const u8 *area)
{
	return area[XS_HEADER + 15] & 0x80;
}

/* XSTATE_BV, XCOMP_BV, and the reserved rest: all of it in the compacted format, 8 bytes in the other. */
static bool xrstor_header_valid(const struct vcpu *vcpu, const struct insn *insn, const u8 *area)
{
	const u8 *reserved = area + XS_HEADER + 16;
	u64 enabled = enabled_features(vcpu, insn->imm2 == FORM_XRSTORS), bv, comp;

	memcpy(&bv, area + XS_HEADER, 8);
	memcpy(&comp, area + XS_HEADER + 8, 8);
	if (!(comp & XCOMP_COMPACTED))
		return insn->imm2 != FORM_XRSTORS && !comp && !(bv & ~enabled) && all_zero(reserved, 8);
	comp &= ~XCOMP_COMPACTED;
	return insn->imm2 != FORM_XRSTOR && !(comp & ~enabled) && !(bv & ~comp) && all_zero(reserved, 48);
}

/* In the standard format MXCSR belongs to SSE and AVX, and comes from memory whatever XSTATE_BV says. */
static bool mxcsr_from_area(const u8 *area, u64 rfbm, u64 bv, bool compacted, u32 *mxcsr)
{
	if (!(rfbm & (XFEATURE_SSE | (compacted ? 0 : XFEATURE_AVX))))
		return true;
	*mxcsr = compacted && !(bv & XFEATURE_SSE) ? MXCSR_RESET : get32(area + FX_MXCSR);
	return !(*mxcsr & ~host_mxcsr_mask());
}

static void vectors_from_area(struct vcpu *vcpu, const u8 *area, u64 rfbm, u64 bv)
{
	struct guest_fpu *f = &vcpu->arch.fpu;

	for (unsigned i = 0; i < nr_vector_regs(vcpu); i++) {
		if (rfbm & XFEATURE_SSE)
			memset(f->ymm[i], 0, 16);
		if (rfbm & bv & XFEATURE_SSE)
			memcpy(f->ymm[i], area + FX_XMM + 16 * i, 16);
		if (rfbm & XFEATURE_AVX)
			memset(f->ymm[i] + 16, 0, 16);
		if (rfbm & bv & XFEATURE_AVX)
			memcpy(f->ymm[i] + 16, area + XS_AVX + 16 * i, 16);
	}
}

static void x87_from_image(struct vcpu *vcpu, const u8 *area, bool init, bool wide)
{
	if (!init) {
		x87_from_area(vcpu, area, wide);
		return;
	}
	x87_reset(vcpu);
	memset(vcpu->arch.fpu.fx + FX_ST, 0, 128);
}

/*
 * The image as far as it is looked at: what lies behind the header after the header was checked, and of a
 * compacted image only what XSTATE_BV says is there (tests/insn/oracle knows).
 */
static enum exec read_image(struct vcpu *vcpu, const struct insn *insn, u64 rfbm, u8 *area)
{
	unsigned access = mmu_data_access(vcpu, MMU_READ), span;
	gva_t va;
	u64 bv;
	enum exec r = area_linear(vcpu, insn, XS_AVX, 64, false, &va);

	if (r == EXEC_OK)
		r = mem_read(vcpu, va, area, XS_AVX, access);
	if (r != EXEC_OK)
		return r;
	if (!xrstor_header_valid(vcpu, insn, area))
		return queue_gp(vcpu, 0);
	memcpy(&bv, area + XS_HEADER, 8);
	span = xsave_span(is_compacted(area) ? rfbm & bv : rfbm);
	if (span == XS_AVX)
		return EXEC_OK;
	r = insn_linear(vcpu, insn, span, false, &va);
	return r == EXEC_OK ? mem_read(vcpu, va + XS_AVX, area + XS_AVX, span - XS_AVX, access) : r;
}

static enum exec op_xrstor(struct vcpu *vcpu, const struct insn *insn)
{
	bool supervisor = insn->imm2 == FORM_XRSTORS;
	u64 rfbm = requested_features(vcpu, supervisor), bv;
	u8 area[XS_SIZE];
	u32 mxcsr;
	enum exec r = xsave_available(vcpu, supervisor);

	if (r == EXEC_OK)
		r = read_image(vcpu, insn, rfbm, area);
	if (r != EXEC_OK)
		return r;
	x87_sync(vcpu);
	mxcsr = vcpu->arch.fpu.mxcsr;
	memcpy(&bv, area + XS_HEADER, 8);
	if (!mxcsr_from_area(area, rfbm, bv, is_compacted(area), &mxcsr))
		return queue_gp(vcpu, 0);
	vcpu->arch.fpu.mxcsr = mxcsr;
	if (rfbm & XFEATURE_X87)
		x87_from_image(vcpu, area, !(bv & XFEATURE_X87), is_wide(insn));
	vectors_from_area(vcpu, area, rfbm, bv);
	return EXEC_OK;
}

/* insn->imm2: ECX = 1 is known, and tells which components are in use. */
static enum exec op_xgetbv(struct vcpu *vcpu, const struct insn *insn)
{
	u32 index = vcpu->arch.regs[RCX];
	u64 value = vcpu->arch.xcr0;

	if (!(vcpu->arch.cr4 & X86_CR4_OSXSAVE))
		return queue_ud(vcpu);
	if (index > insn->imm2)
		return queue_gp(vcpu, 0);
	if (index == 1) {
		x87_sync(vcpu);
		value &= components_in_use_compact(vcpu);
	}
	vcpu->arch.regs[RAX] = (u32)value;
	vcpu->arch.regs[RDX] = value >> 32;
	return EXEC_OK;
}

/* ---- selection ------------------------------------------------------------------------------------- */

/* Bits of CPUID leaf 0xd, subleaf 1, EAX. */
enum { CPUID_XSAVEOPT, CPUID_XSAVEC, CPUID_XGETBV1, CPUID_XSAVES };

static bool has_xsave_form(const struct decode_ctx *ctx, unsigned bit)
{
	return guest_cpuid_has(ctx->vcpu, 0xd, 1, CPUID_EAX, bit);
}

/* CPUID is fixed once the vCPU has run, so decoding is early enough to look. */
static insn_fn select_xsave(const struct decode_ctx *ctx, struct insn *insn, unsigned form, bool wide)
{
	if ((form == FORM_XSAVEC && !has_xsave_form(ctx, CPUID_XSAVEC)) ||
	    (form == FORM_XSAVES && !has_xsave_form(ctx, CPUID_XSAVES)))
		return op_ud;
	insn->imm2 = form;
	return select_image(insn, op_xsave, wide);
}

static insn_fn select_xrstor(const struct decode_ctx *ctx, struct insn *insn, bool supervisor, bool wide)
{
	if (supervisor && !has_xsave_form(ctx, CPUID_XSAVES))
		return op_ud;
	insn->imm2 = supervisor ? FORM_XRSTORS :
		     has_xsave_form(ctx, CPUID_XSAVEC) ? FORM_XRSTOR_COMPACT : FORM_XRSTOR;
	return select_image(insn, op_xrstor, wide);
}

static insn_fn select_xgetbv(const struct decode_ctx *ctx, struct insn *insn)
{
	insn->imm2 = has_xsave_form(ctx, CPUID_XGETBV1);
	return op_xgetbv;
}

insn_fn xsave_select(const struct decode_ctx *ctx, struct insn *insn)
{
	switch (ctx->zi->mnemonic) {
	case ZYDIS_MNEMONIC_XSAVE: return select_xsave(ctx, insn, FORM_XSAVE, false);
	case ZYDIS_MNEMONIC_XSAVE64: return select_xsave(ctx, insn, FORM_XSAVE, true);
	case ZYDIS_MNEMONIC_XSAVEOPT: return select_xsave(ctx, insn, FORM_XSAVEOPT, false);
	case ZYDIS_MNEMONIC_XSAVEOPT64: return select_xsave(ctx, insn, FORM_XSAVEOPT, true);
	case ZYDIS_MNEMONIC_XSAVEC: return select_xsave(ctx, insn, FORM_XSAVEC, false);
	case ZYDIS_MNEMONIC_XSAVEC64: return select_xsave(ctx, insn, FORM_XSAVEC, true);
	case ZYDIS_MNEMONIC_XSAVES: return select_xsave(ctx, insn, FORM_XSAVES, false);
	case ZYDIS_MNEMONIC_XSAVES64: return select_xsave(ctx, insn, FORM_XSAVES, true);
	case ZYDIS_MNEMONIC_XRSTOR: return select_xrstor(ctx, insn, false, false);
	case ZYDIS_MNEMONIC_XRSTOR64: return select_xrstor(ctx, insn, false, true);
	case ZYDIS_MNEMONIC_XRSTORS: return select_xrstor(ctx, insn, true, false);
	case ZYDIS_MNEMONIC_XRSTORS64: return select_xrstor(ctx, insn, true, true);
	case ZYDIS_MNEMONIC_XGETBV: return select_xgetbv(ctx, insn);
	default: return NULL;
	}
}

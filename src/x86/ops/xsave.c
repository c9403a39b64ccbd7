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

struct area_part {
	unsigned first, len;
	gva_t va;	/* of first */
};

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

/* The legacy part and that of AVX are accessed for what lies there, the header always. */
static enum exec area_part(struct vcpu *vcpu, const struct insn *insn, bool legacy, bool avx, bool write,
			   struct area_part *part)
{
	enum exec r;

	part->first = legacy ? 0 : XS_HEADER;
	part->len = (avx ? XS_SIZE : XS_AVX) - part->first;
	r = part_linear(vcpu, insn, part->first, part->len, write, &part->va);
	return r == EXEC_OK ? area_aligned(vcpu, part->va, 64) : r;
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

/* What XSAVEOPT and the compacted forms leave out is not in use. */
static u64 features_saved(struct vcpu *vcpu, const struct insn *insn, u64 rfbm)
{
	if (insn->imm2 == FORM_XSAVE)
		return rfbm;
	return rfbm & (insn->imm2 == FORM_XSAVEOPT ? components_in_use(vcpu) : components_in_use_compact(vcpu));
}

/* XSTATE_BV keeps the bits of what was not asked for; there is no XCOMP_BV. */
static void fill_standard(struct vcpu *vcpu, const struct insn *insn, u8 *area, u64 rfbm, u64 saved)
{
	u64 used = components_in_use(vcpu), bv;

	features_to_area(vcpu, area, saved, rfbm, is_wide(insn));
	memcpy(&bv, area + XS_HEADER, 8);
	bv = (bv & ~rfbm) | (used & rfbm);
	memcpy(area + XS_HEADER, &bv, 8);
}

static void fill_compacted(struct vcpu *vcpu, const struct insn *insn, u8 *area, u64 rfbm, u64 saved)
{
	u64 header[2] = { saved, rfbm | XCOMP_COMPACTED };

	features_to_area(vcpu, area, saved, saved & XFEATURE_SSE, is_wide(insn));
	memcpy(area + XS_HEADER, header, sizeof(header));
}

/* Read, modify, write: what is not saved keeps what it holds. */
static enum exec op_xsave(struct vcpu *vcpu, const struct insn *insn)
{
	bool supervisor = insn->imm2 == FORM_XSAVES, standard = insn->imm2 < FORM_XSAVEC;
	u64 rfbm = requested_features(vcpu, supervisor), saved, legacy;
	struct area_part part;
	u8 area[XS_SIZE];
	enum exec r = xsave_available(vcpu, supervisor);

	x87_sync(vcpu);
	saved = features_saved(vcpu, insn, rfbm);
	/* In the standard format MXCSR is SSE's and AVX's, in use or not. */
	legacy = (saved & (XFEATURE_X87 | XFEATURE_SSE)) | (standard ? rfbm & (XFEATURE_SSE | XFEATURE_AVX) : 0);
	if (r == EXEC_OK)
		r = area_part(vcpu, insn, legacy, saved & XFEATURE_AVX, true, &part);
	if (r == EXEC_OK)
		r = area_touch(vcpu, insn, part.first + part.len - 1, 1, true);
	if (r == EXEC_OK && legacy)
		r = area_touch(vcpu, insn, saved & XFEATURE_X87 ? 0 : FX_MXCSR, 1, true);
	if (r == EXEC_OK)
		r = mem_probe_write(vcpu, part.va, part.len, mmu_data_access(vcpu, MMU_WRITE));
	if (r == EXEC_OK)
		r = mem_read(vcpu, part.va, area + part.first, part.len, mmu_data_access(vcpu, MMU_READ));
	if (r != EXEC_OK)
		return r;
	if (standard)
		fill_standard(vcpu, insn, area, rfbm, saved);
	else
		fill_compacted(vcpu, insn, area, rfbm, saved);
	return mem_write(vcpu, part.va, area + part.first, part.len, mmu_data_access(vcpu, MMU_WRITE));
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
 * The image as far as it is looked at: the header first, and what lies around it after that was checked (on
 * Intel's CPUs most of it). Of a compacted image that is what XSTATE_BV says is there, on Intel's CPUs what XCOMP_BV has room for (tests/insn/oracle knows).
 */
static u64 features_read(u64 rfbm, const u8 *area)
{
	u64 in_image;

	memcpy(&in_image, area + XS_HEADER + (host_is_intel() ? 8 : 0), 8);
	return is_compacted(area) ? rfbm & in_image : rfbm;
}

/* Of a compacted image: what XCOMP_BV has room for must be known before it is looked for. */
static bool has_unknown_room(const struct vcpu *vcpu, const struct insn *insn, const u8 *area)
{
	u64 comp;

	memcpy(&comp, area + XS_HEADER + 8, 8);
	return is_compacted(area) && comp & ~XCOMP_COMPACTED & ~enabled_features(vcpu, insn->imm2 == FORM_XRSTORS);
}

static enum exec read_part(struct vcpu *vcpu, struct area_part *part, u8 *area)
{
	return mem_read(vcpu, part->va, area + part->first, part->len, mmu_data_access(vcpu, MMU_READ));
}

static enum exec read_image(struct vcpu *vcpu, const struct insn *insn, u64 rfbm, u8 *area)
{
	struct area_part part;
	u64 wanted, legacy;
	enum exec r = area_part(vcpu, insn, false, false, false, &part);

	if (r == EXEC_OK)
		r = area_touch(vcpu, insn, XS_HEADER + 8, 1, false);
	if (r == EXEC_OK)
		r = read_part(vcpu, &part, area);
	if (r != EXEC_OK)
		return r;
	if (host_is_amd() ? !xrstor_header_valid(vcpu, insn, area) : has_unknown_room(vcpu, insn, area))
		return queue_gp(vcpu, 0);
	wanted = features_read(rfbm, area);
	/* In the standard format MXCSR is AVX's, too. */
	legacy = wanted & (XFEATURE_X87 | XFEATURE_SSE | (is_compacted(area) ? 0 : XFEATURE_AVX));
	r = area_part(vcpu, insn, legacy, wanted & XFEATURE_AVX, false, &part);
	if (r == EXEC_OK && wanted & XFEATURE_AVX)
		r = area_touch(vcpu, insn, XS_SIZE - 1, 1, false);
	if (r == EXEC_OK && legacy)
		r = area_touch(vcpu, insn, wanted & XFEATURE_X87 ? 0 : FX_MXCSR, 1, false);
	if (r == EXEC_OK)
		r = read_part(vcpu, &part, area);
	if (r != EXEC_OK)
		return r;
	return xrstor_header_valid(vcpu, insn, area) ? EXEC_OK : queue_gp(vcpu, 0);
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

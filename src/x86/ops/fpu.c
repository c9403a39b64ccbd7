/* SPDX-License-Identifier: MIT */
/*
 * FPU and vector instructions the host cannot run for us: images of the state in
 * memory, and stores and loads that touch only some of their bytes.
 *
 * Everything here works on struct guest_fpu with the x87 registers synced. The
 * x87 pointers are virtual (fop, fip, fcs, fdp, fds).
 */
#include <string.h>

#include "host/host.h"
#include "x86/interp/operand.h"
#include "x86/interp/thunk.h"

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
#define XS_HEADER 512
#define XS_AVX 576
#define XS_SIZE 832
#define MXCSR_RESET 0x1f80u
#define FCW_INIT 0x37f
#define FSW_ES BIT(7)
#define FSW_B BIT(15)

/* ---- pieces of the state ------------------------------------------------------- */

static u16 get16(const u8 *p)
{
	return p[0] | p[1] << 8;
}

static u32 get32(const u8 *p)
{
	u32 v;

	memcpy(&v, p, 4);
	return v;
}

static void put16(u8 *p, u16 v)
{
	memcpy(p, &v, 2);
}

static void put32(u8 *p, u32 v)
{
	memcpy(p, &v, 4);
}

static unsigned nr_vector_regs(const struct vcpu *vcpu)
{
	return in_64bit_mode(vcpu) ? 16 : 8;
}

/* The image is in stack order: a new TOP without new registers turns it. */
static void set_fsw(struct guest_fpu *f, u16 fsw)
{
	unsigned turn = (fsw >> 11) - (get16(f->fx + FX_FSW) >> 11);
	u8 st[128];

	memcpy(st, f->fx + FX_ST, 128);
	for (unsigned i = 0; i < 8; i++)
		memcpy(f->fx + FX_ST + 16 * i, st + 16 * ((i + turn) & 7), 16);
	put16(f->fx + FX_FSW, fsw);
}

static void x87_reset(struct vcpu *vcpu)
{
	struct guest_fpu *f = &vcpu->arch.fpu;

	put16(f->fx + FX_FCW, FCW_INIT);
	set_fsw(f, 0);
	put16(f->fx + FX_FTW, 0);
	f->fop = f->fcs = f->fds = 0;
	f->fip = f->fdp = 0;
}

/* ES and B are not state but a summary of FSW and FCW. */
static void fsw_summarize(struct guest_fpu *f)
{
	u16 fsw = get16(f->fx + FX_FSW) & ~(FSW_ES | FSW_B);

	if (fsw & ~get16(f->fx + FX_FCW) & 0x3f)
		fsw |= FSW_ES | FSW_B;
	put16(f->fx + FX_FSW, fsw);
}

static bool x87_error_pending(struct vcpu *vcpu)
{
	u16 fsw;

	if (vcpu->arch.fpu.x87_live) {
		asm volatile("fnstsw %0" : "=am"(fsw));
	} else {
		/* A client may have set an image that the host would not load as it is. */
		fsw_summarize(&vcpu->arch.fpu);
		fsw = get16(vcpu->arch.fpu.fx + FX_FSW);
	}
	return fsw & FSW_ES;
}

enum exec wait_for_x87(struct vcpu *vcpu)
{
	return unlikely(x87_error_pending(vcpu)) ? queue_exception(vcpu, MF_VECTOR) : EXEC_OK;
}

static enum exec fpu_available(struct vcpu *vcpu)
{
	return vcpu->arch.cr0 & (X86_CR0_EM | X86_CR0_TS) ? queue_exception(vcpu, NM_VECTOR) : EXEC_OK;
}

static enum exec area_linear(struct vcpu *vcpu, const struct insn *insn, unsigned size, unsigned align,
			     bool write, gva_t *va)
{
	u64 at = insn_offset(vcpu, insn);

	if (!in_64bit_mode(vcpu) || insn->seg >= SEG_FS)
		at += vcpu->arch.seg[insn->seg].base;
	if (at & (align - 1))
		return queue_gp(vcpu, 0);
	return insn_linear(vcpu, insn, size, write, va);
}

/* ---- x87 pointers in FXSAVE layout: 64-bit offsets, or 32-bit ones with selectors ---- */

static void pointers_to_area(const struct guest_fpu *f, u8 *area, bool wide)
{
	put16(area + FX_FOP, f->fop);
	memcpy(area + FX_FIP, &f->fip, 8);
	memcpy(area + FX_FDP, &f->fdp, 8);
	if (wide)
		return;
	put32(area + FX_FIP + 4, f->fcs);
	put32(area + FX_FDP + 4, f->fds);
}

static void pointers_from_area(struct guest_fpu *f, const u8 *area, bool wide)
{
	f->fop = get16(area + FX_FOP) & 0x7ff;
	memcpy(&f->fip, area + FX_FIP, 8);
	memcpy(&f->fdp, area + FX_FDP, 8);
	f->fcs = f->fds = 0;
	if (wide)
		return;
	f->fcs = get16(area + FX_FIP + 4);
	f->fds = get16(area + FX_FDP + 4);
	f->fip = (u32)f->fip;
	f->fdp = (u32)f->fdp;
}

static void x87_to_area(struct vcpu *vcpu, u8 *area, bool wide)
{
	struct guest_fpu *f = &vcpu->arch.fpu;

	x87_sync(vcpu);
	memcpy(area, f->fx, FX_FOP);
	area[FX_FTW + 1] = 0;
	pointers_to_area(f, area, wide);
	memcpy(area + FX_ST, f->fx + FX_ST, 128);
}

static void x87_from_area(struct vcpu *vcpu, const u8 *area, bool wide)
{
	struct guest_fpu *f = &vcpu->arch.fpu;

	x87_sync(vcpu);
	memcpy(f->fx, area, FX_FOP);
	put16(f->fx + FX_FCW, (get16(area + FX_FCW) & 0x1f3f) | 0x40);
	f->fx[FX_FTW + 1] = 0;
	pointers_from_area(f, area, wide);
	memcpy(f->fx + FX_ST, area + FX_ST, 128);
	fsw_summarize(f);
}

/* ---- FXSAVE, FXRSTOR ------------------------------------------------------------------ */

static bool is_wide(const struct insn *insn)
{
	return insn->opsize == 8;
}

static enum exec op_fxsave(struct vcpu *vcpu, const struct insn *insn)
{
	struct guest_fpu *f = &vcpu->arch.fpu;
	unsigned n = nr_vector_regs(vcpu);
	_Alignas(16) u8 area[512] = { 0 };
	gva_t va;
	enum exec r = fpu_available(vcpu);

	if (r == EXEC_OK)
		r = area_linear(vcpu, insn, 512, 16, true, &va);
	if (r != EXEC_OK)
		return r;
	x87_to_area(vcpu, area, is_wide(insn));
	put32(area + FX_MXCSR, f->mxcsr);
	put32(area + FX_MXCSR_MASK, host_mxcsr_mask());
	for (unsigned i = 0; i < n; i++)
		memcpy(area + FX_XMM + 16 * i, f->ymm[i], 16);
	return mem_write(vcpu, va, area, FX_XMM + 16 * n, mmu_data_access(vcpu, MMU_WRITE));
}

static enum exec op_fxrstor(struct vcpu *vcpu, const struct insn *insn)
{
	struct guest_fpu *f = &vcpu->arch.fpu;
	_Alignas(16) u8 area[512];
	gva_t va;
	enum exec r = fpu_available(vcpu);

	if (r == EXEC_OK)
		r = area_linear(vcpu, insn, 512, 16, false, &va);
	if (r == EXEC_OK)
		r = mem_read(vcpu, va, area, 512, mmu_data_access(vcpu, MMU_READ));
	if (r != EXEC_OK)
		return r;
	if (get32(area + FX_MXCSR) & ~host_mxcsr_mask())
		return queue_gp(vcpu, 0);
	x87_from_area(vcpu, area, is_wide(insn));
	f->mxcsr = get32(area + FX_MXCSR);
	for (unsigned i = 0; i < nr_vector_regs(vcpu); i++)
		memcpy(f->ymm[i], area + FX_XMM + 16 * i, 16);
	return EXEC_OK;
}

/* ---- XSAVE and its kin, XGETBV -------------------------------------------------------------- */

/*
 * insn->imm2 of XSAVE*: the form. Of XRSTOR: may the image be compacted (CPUID)?
 * The components we know lie at the same places in either format: there are no gaps to close.
 */
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

/* To the compacted forms and XGETBV, MXCSR is part of the SSE state and of nothing else. */
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
	unsigned span = xsave_span(rfbm);
	u8 area[XS_SIZE];
	gva_t va;
	enum exec r = xsave_available(vcpu, supervisor);

	if (r == EXEC_OK)
		r = area_linear(vcpu, insn, span, 64, true, &va);
	if (r == EXEC_OK)
		r = mem_probe_write(vcpu, va, span, mmu_data_access(vcpu, MMU_WRITE));
	if (r == EXEC_OK)
		r = mem_read(vcpu, va, area, span, mmu_data_access(vcpu, MMU_READ));
	if (r != EXEC_OK)
		return r;
	x87_sync(vcpu);
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

/* ---- FNSTENV, FLDENV, FNSAVE, FRSTOR ---------------------------------------------------------- */

/* Two bits a physical register: valid, zero, special, empty. */
static unsigned x87_tag(const u8 *st)
{
	unsigned exp = get16(st + 8) & 0x7fff;
	u64 mantissa;

	memcpy(&mantissa, st, 8);
	if (!exp && !mantissa)
		return 1;
	return exp == 0x7fff || !exp || !(mantissa >> 63) ? 2 : 0;
}

static u16 full_tag_word(const struct guest_fpu *f)
{
	unsigned top = get16(f->fx + FX_FSW) >> 11 & 7;
	u16 tags = 0;

	for (unsigned phys = 0; phys < 8; phys++) {
		unsigned tag = 3;

		if (f->fx[FX_FTW] & BIT(phys))
			tag = x87_tag(f->fx + FX_ST + 16 * ((phys - top) & 7));
		tags |= tag << (2 * phys);
	}
	return tags;
}

static unsigned env_size(const struct insn *insn)
{
	return insn->opsize == 2 ? 14 : 28;
}

static void env_store(struct vcpu *vcpu, const struct insn *insn, u8 *env)
{
	struct guest_fpu *f = &vcpu->arch.fpu;
	bool prot = vcpu->arch.protected_mode;
	u16 words[3] = { get16(f->fx + FX_FCW), get16(f->fx + FX_FSW), full_tag_word(f) };
	u32 ip = f->fip, dp = f->fdp;

	if (!prot) { /* real mode and vm86 know linear addresses */
		ip += f->fcs * 16u;
		dp += f->fds * 16u;
	}
	if (insn->opsize == 2) {
		for (unsigned i = 0; i < 3; i++)
			put16(env + 2 * i, words[i]);
		put16(env + 6, ip);
		put16(env + 8, prot ? f->fcs : (ip >> 16 & 15) << 12 | f->fop);
		put16(env + 10, dp);
		put16(env + 12, prot ? f->fds : (dp >> 16 & 15) << 12);
		return;
	}
	for (unsigned i = 0; i < 3; i++)
		put32(env + 4 * i, 0xffff0000 | words[i]);
	put32(env + 12, prot ? ip : 0xffff0000 | (ip & 0xffff));
	put32(env + 16, prot ? f->fcs | (u32)f->fop << 16 : (ip >> 16) << 12 | f->fop);
	put32(env + 20, prot ? dp : 0xffff0000 | (dp & 0xffff));
	put32(env + 24, prot ? 0xffff0000 | f->fds : (dp >> 16) << 12);
}

static void env_load_pointers(struct vcpu *vcpu, const struct insn *insn, const u8 *env)
{
	struct guest_fpu *f = &vcpu->arch.fpu;
	bool prot = vcpu->arch.protected_mode;

	f->fcs = f->fds = f->fop = 0;
	if (insn->opsize == 2) {
		f->fip = get16(env + 6);
		f->fdp = get16(env + 10);
		if (prot) {
			f->fcs = get16(env + 8);
			f->fds = get16(env + 12);
		} else {
			f->fip |= (get16(env + 8) >> 12) << 16;
			f->fdp |= (get16(env + 12) >> 12) << 16;
			f->fop = get16(env + 8) & 0x7ff;
		}
		return;
	}
	if (prot) {
		f->fip = get32(env + 12);
		f->fcs = get16(env + 16);
		f->fop = get16(env + 18) & 0x7ff;
		f->fdp = get32(env + 20);
		f->fds = get16(env + 24);
	} else {
		f->fip = get16(env + 12) | (get32(env + 16) >> 12 & 0xffff) << 16;
		f->fop = get16(env + 16) & 0x7ff;
		f->fdp = get16(env + 20) | (get32(env + 24) >> 12 & 0xffff) << 16;
	}
}

static void env_load(struct vcpu *vcpu, const struct insn *insn, const u8 *env)
{
	struct guest_fpu *f = &vcpu->arch.fpu;
	unsigned step = insn->opsize == 2 ? 2 : 4;
	u16 tags = get16(env + 2 * step);
	u8 full = 0;

	for (unsigned i = 0; i < 8; i++)
		if ((tags >> (2 * i) & 3) != 3)
			full |= BIT(i);
	/* Bit 6 of FCW reads as one, the other reserved ones as zero. */
	put16(f->fx + FX_FCW, (get16(env) & 0x1f3f) | 0x40);
	set_fsw(f, get16(env + step));
	f->fx[FX_FTW] = full;
	f->fx[FX_FTW + 1] = 0;
	env_load_pointers(vcpu, insn, env);
	fsw_summarize(f);
}

static enum exec op_fnstenv(struct vcpu *vcpu, const struct insn *insn)
{
	struct guest_fpu *f = &vcpu->arch.fpu;
	unsigned size = env_size(insn);
	u8 env[28];
	gva_t va;
	enum exec r = insn_linear(vcpu, insn, size, true, &va);

	if (r != EXEC_OK)
		return r;
	x87_sync(vcpu);
	env_store(vcpu, insn, env);
	r = mem_write(vcpu, va, env, size, mmu_data_access(vcpu, MMU_WRITE));
	if (r == EXEC_OK) {
		put16(f->fx + FX_FCW, get16(f->fx + FX_FCW) | 0x3f);
		fsw_summarize(f);
	}
	return r;
}

static enum exec op_fldenv(struct vcpu *vcpu, const struct insn *insn)
{
	unsigned size = env_size(insn);
	u8 env[28];
	gva_t va;
	enum exec r = wait_for_x87(vcpu);

	if (r == EXEC_OK)
		r = insn_linear(vcpu, insn, size, false, &va);
	if (r == EXEC_OK)
		r = mem_read(vcpu, va, env, size, mmu_data_access(vcpu, MMU_READ));
	if (r != EXEC_OK)
		return r;
	x87_sync(vcpu);
	env_load(vcpu, insn, env);
	return EXEC_OK;
}

static enum exec op_fnsave(struct vcpu *vcpu, const struct insn *insn)
{
	struct guest_fpu *f = &vcpu->arch.fpu;
	unsigned size = env_size(insn);
	u8 area[28 + 80];
	gva_t va;
	enum exec r = insn_linear(vcpu, insn, size + 80, true, &va);

	if (r != EXEC_OK)
		return r;
	x87_sync(vcpu);
	env_store(vcpu, insn, area);
	for (unsigned i = 0; i < 8; i++)
		memcpy(area + size + 10 * i, f->fx + FX_ST + 16 * i, 10);
	r = mem_write(vcpu, va, area, size + 80, mmu_data_access(vcpu, MMU_WRITE));
	if (r == EXEC_OK)
		x87_reset(vcpu);
	return r;
}

static enum exec op_frstor(struct vcpu *vcpu, const struct insn *insn)
{
	struct guest_fpu *f = &vcpu->arch.fpu;
	unsigned size = env_size(insn);
	u8 area[28 + 80];
	gva_t va;
	enum exec r = wait_for_x87(vcpu);

	if (r == EXEC_OK)
		r = insn_linear(vcpu, insn, size + 80, false, &va);
	if (r == EXEC_OK)
		r = mem_read(vcpu, va, area, size + 80, mmu_data_access(vcpu, MMU_READ));
	if (r != EXEC_OK)
		return r;
	x87_sync(vcpu);
	env_load(vcpu, insn, area);
	for (unsigned i = 0; i < 8; i++)
		memcpy(f->fx + FX_ST + 16 * i, area + size + 10 * i, 10);
	return EXEC_OK;
}

/* ---- control ------------------------------------------------------------------------------------ */

static enum exec op_fninit(struct vcpu *vcpu, const struct insn *insn)
{
	x87_sync(vcpu);
	x87_reset(vcpu);
	return EXEC_OK;
}

static enum exec op_fwait(struct vcpu *vcpu, const struct insn *insn)
{
	if ((vcpu->arch.cr0 & (X86_CR0_MP | X86_CR0_TS)) == (X86_CR0_MP | X86_CR0_TS))
		return queue_exception(vcpu, NM_VECTOR);
	return wait_for_x87(vcpu);
}

static enum exec op_emms(struct vcpu *vcpu, const struct insn *insn)
{
	enum exec r = wait_for_x87(vcpu);

	if (r != EXEC_OK)
		return r;
	x87_load(vcpu);
	asm volatile("emms");
	return EXEC_OK;
}

static enum exec op_ldmxcsr(struct vcpu *vcpu, const struct insn *insn)
{
	gva_t va;
	u64 val;
	enum exec r = insn_linear(vcpu, insn, 4, false, &va);

	if (r == EXEC_OK)
		r = mem_load(vcpu, va, 4, &val);
	if (r != EXEC_OK)
		return r;
	if (val & ~(u64)host_mxcsr_mask())
		return queue_gp(vcpu, 0);
	mxcsr_sync(vcpu);
	vcpu->arch.fpu.mxcsr = val;
	return EXEC_OK;
}

static enum exec op_stmxcsr(struct vcpu *vcpu, const struct insn *insn)
{
	gva_t va;
	enum exec r = insn_linear(vcpu, insn, 4, true, &va);

	mxcsr_sync(vcpu);
	return r == EXEC_OK ? mem_store(vcpu, va, 4, vcpu->arch.fpu.mxcsr) : r;
}

static enum exec op_vzeroupper(struct vcpu *vcpu, const struct insn *insn)
{
	for (unsigned i = 0; i < nr_vector_regs(vcpu); i++)
		memset(vcpu->arch.fpu.ymm[i] + 16, 0, 16);
	return EXEC_OK;
}

static enum exec op_vzeroall(struct vcpu *vcpu, const struct insn *insn)
{
	memset(vcpu->arch.fpu.ymm, 0, 32 * nr_vector_regs(vcpu));
	return EXEC_OK;
}

/* ---- masked moves: reg is data, rm the mask, opsize the vector, memsize the element ----- */

static bool mask_bit(const u8 *mask, unsigned i, unsigned size)
{
	return mask[i * size + size - 1] & 0x80;
}

/* Linear address of an element of one operand in memory; the offset does not wrap within it. */
static enum exec part_linear(struct vcpu *vcpu, const struct insn *insn, u64 disp, unsigned size, bool write, gva_t *va)
{
	u64 off = insn_offset(vcpu, insn) + disp;

	if (!in_64bit_mode(vcpu) && off > 0xffffffff)
		return queue_exception_e(vcpu, insn->seg == SEG_SS ? SS_VECTOR : GP_VECTOR, 0);
	return seg_linear(vcpu, insn->seg, off, size, write, va);
}

/* Linear address of element i; segment checks are per element, as for any suppressed fault. */
static enum exec element_linear(struct vcpu *vcpu, const struct insn *insn, u64 disp, unsigned size,
				bool write, gva_t *va)
{
	u64 off = insn_offset(vcpu, insn) + disp;

	if (insn->addrsize == 4)
		off = (u32)off;
	else if (insn->addrsize == 2)
		off = (u16)off;
	return seg_linear(vcpu, insn->seg, off, size, write, va);
}

static enum exec op_mask_load(struct vcpu *vcpu, const struct insn *insn)
{
	const u8 *mask = vcpu->arch.fpu.ymm[insn->rm];
	unsigned size = insn->memsize;
	u8 data[32] = { 0 };

	for (unsigned i = 0; i < insn->opsize / size; i++) {
		gva_t va;
		u64 val;
		enum exec r;

		if (!mask_bit(mask, i, size))
			continue;
		r = part_linear(vcpu, insn, i * size, size, false, &va);
		if (r == EXEC_OK)
			r = mem_load(vcpu, va, size, &val);
		if (r != EXEC_OK)
			return r;
		memcpy(data + i * size, &val, size);
	}
	memcpy(vcpu->arch.fpu.ymm[insn->reg], data, 32);
	return EXEC_OK;
}

/* Store the elements of data that mask selects at offset base; nothing if any would fault. */
static enum exec store_selected(struct vcpu *vcpu, const struct insn *insn, const u8 *data, const u8 *mask,
				unsigned len, unsigned size)
{
	for (int probe = 1; probe >= 0; probe--) {
		for (unsigned i = 0; i < len / size; i++) {
			gva_t va;
			enum exec r;

			if (!mask_bit(mask, i, size))
				continue;
			r = part_linear(vcpu, insn, i * size, size, true, &va);
			if (r == EXEC_OK && probe)
				r = mem_probe_write(vcpu, va, size, mmu_data_access(vcpu, MMU_WRITE));
			else if (r == EXEC_OK)
				r = mem_write(vcpu, va, data + i * size, size, mmu_data_access(vcpu, MMU_WRITE));
			if (r != EXEC_OK)
				return r;
		}
	}
	return EXEC_OK;
}

static enum exec op_mask_store(struct vcpu *vcpu, const struct insn *insn)
{
	return store_selected(vcpu, insn, vcpu->arch.fpu.ymm[insn->reg], vcpu->arch.fpu.ymm[insn->rm],
			      insn->opsize, insn->memsize);
}

/* AMD's CPUs want all of the operand to be writable, whatever the mask says; Intel's the selected bytes. */
static enum exec maskmov_probe(struct vcpu *vcpu, const struct insn *insn, unsigned len)
{
	gva_t va;
	enum exec r;

	if (!host_is_amd())
		return EXEC_OK;
	r = part_linear(vcpu, insn, 0, len, true, &va);
	return r == EXEC_OK ? mem_probe_write(vcpu, va, len, mmu_data_access(vcpu, MMU_WRITE)) : r;
}

static enum exec op_maskmovdqu(struct vcpu *vcpu, const struct insn *insn)
{
	enum exec r = maskmov_probe(vcpu, insn, 16);

	if (r != EXEC_OK)
		return r;
	return store_selected(vcpu, insn, vcpu->arch.fpu.ymm[insn->reg], vcpu->arch.fpu.ymm[insn->rm], 16, 1);
}

static enum exec op_maskmovq(struct vcpu *vcpu, const struct insn *insn)
{
	struct guest_fpu *f = &vcpu->arch.fpu;
	enum exec r = wait_for_x87(vcpu);
	unsigned top;

	if (r == EXEC_OK)
		r = maskmov_probe(vcpu, insn, 8);
	if (r != EXEC_OK)
		return r;
	x87_sync(vcpu);
	/* MM registers are physical ones; the image is in stack order. */
	top = get16(f->fx + FX_FSW) >> 11 & 7;
	r = store_selected(vcpu, insn, f->fx + FX_ST + 16 * ((insn->reg - top) & 7),
			   f->fx + FX_ST + 16 * ((insn->rm - top) & 7), 8, 1);
	if (r == EXEC_OK)
		set_fsw(f, get16(f->fx + FX_FSW) & ~0x3800);
	if (r == EXEC_OK)
		f->fx[FX_FTW] = 0xff;
	return r;
}

/* ---- gathers: reg, rm = mask, imm = index register, imm2 = index size, memsize = element -------- */

static void gather_finish(u8 *reg, unsigned bytes)
{
	memset(reg + bytes, 0, 32 - bytes);
}

static u64 gather_index(const u8 *index, unsigned i, unsigned size)
{
	s32 d;
	u64 q;

	if (size == 4) {
		memcpy(&d, index + 4 * i, 4);
		return (s64)d;
	}
	memcpy(&q, index + 8 * i, 8);
	return q;
}

/*
 * Of a gather that faults, Intel's CPUs leave the mask as they use it, all ones or zeros, and registers that
 * were written are clear beyond the operand.
 */
static void gather_stop_intel(const struct insn *insn, u8 *data, u8 *mask, bool loaded)
{
	unsigned size = insn->memsize, bytes = insn->opsize;

	for (unsigned i = 0; i < bytes / size; i++)
		memset(mask + i * size, mask_bit(mask, i, size) ? 0xff : 0, size);
	gather_finish(mask, bytes);
	if (loaded)
		gather_finish(data, bytes);
}

/*
 * A fault leaves the elements before it loaded and their mask bits clear; an exit
 * to userspace leaves nothing, because the whole instruction is replayed.
 */
static enum exec op_gather(struct vcpu *vcpu, const struct insn *insn)
{
	struct guest_fpu *f = &vcpu->arch.fpu;
	unsigned size = insn->memsize, n = insn->opsize / max(size, insn->imm2);
	u8 data[32], mask[32];
	enum exec r = EXEC_OK;
	bool loaded = false;

	memcpy(data, f->ymm[insn->reg], 32);
	memcpy(mask, f->ymm[insn->rm], 32);
	for (unsigned i = 0; i < n; i++) {
		u64 off = gather_index(f->ymm[insn->imm & 15], i, insn->imm2) << insn->scale;
		gva_t va;
		u64 val;

		if (mask_bit(mask, i, size)) {
			r = element_linear(vcpu, insn, off, size, false, &va);
			if (r == EXEC_OK)
				r = mem_load(vcpu, va, size, &val);
			if (r != EXEC_OK)
				break;
			memcpy(data + i * size, &val, size);
			loaded = true;
		}
		memset(mask + i * size, 0, size);
	}
	if (r != EXEC_OK && r != EXEC_FAULT)
		return r;
	if (r == EXEC_OK) {
		gather_finish(data, n * size);
		memset(mask, 0, 32);
	} else if (!host_is_amd()) {
		gather_stop_intel(insn, data, mask, loaded);
	}
	memcpy(f->ymm[insn->reg], data, 32);
	memcpy(f->ymm[insn->rm], mask, 32);
	return r;
}

/* ---- selection ------------------------------------------------------------------------------------- */

static u8 vector_number(const ZydisDecodedOperand *op)
{
	ZydisRegister r = op->reg.value;

	if (r >= ZYDIS_REGISTER_YMM0 && r <= ZYDIS_REGISTER_YMM15)
		return r - ZYDIS_REGISTER_YMM0;
	if (r >= ZYDIS_REGISTER_XMM0 && r <= ZYDIS_REGISTER_XMM15)
		return r - ZYDIS_REGISTER_XMM0;
	if (r >= ZYDIS_REGISTER_MM0 && r <= ZYDIS_REGISTER_MM7)
		return r - ZYDIS_REGISTER_MM0;
	return 0;
}

static insn_fn select_maskmov(const struct decode_ctx *ctx, struct insn *insn, unsigned size)
{
	bool load = ctx->ops[0].type == ZYDIS_OPERAND_TYPE_REGISTER;

	insn->reg = vector_number(&ctx->ops[load ? 0 : 2]);
	insn->rm = vector_number(&ctx->ops[1]);
	insn->opsize = ctx->zi->avx.vector_length / 8;
	insn->memsize = size;
	return load ? op_mask_load : op_mask_store;
}

/* The store goes to DS:rDI. */
static insn_fn select_maskmov_rdi(const struct decode_ctx *ctx, struct insn *insn, insn_fn fn)
{
	for (unsigned i = 0; i < ctx->zi->operand_count; i++) {
		const ZydisDecodedOperand *op = &ctx->ops[i];

		if (op->type == ZYDIS_OPERAND_TYPE_MEMORY)
			insn->seg = seg_from_zydis(op->mem.segment);
	}
	/* Visible registers in order: data, mask. */
	unsigned first = ctx->ops[0].type == ZYDIS_OPERAND_TYPE_REGISTER ? 0 : 1;

	insn->base = RDI;
	insn->index = INSN_NOREG;
	insn->disp = 0;
	insn->flags = (insn->flags & ~INSN_RIP_REL) | INSN_MEM | INSN_WRITES_MEM;
	insn->reg = vector_number(&ctx->ops[first]);
	insn->rm = vector_number(&ctx->ops[first + 1]);
	return fn;
}

static insn_fn select_gather(const struct decode_ctx *ctx, struct insn *insn, unsigned index, unsigned size)
{
	const ZydisDecodedOperand *mem = &ctx->ops[1];
	ZydisDecodedOperand vindex = { .type = ZYDIS_OPERAND_TYPE_REGISTER };

	if (mem->type != ZYDIS_OPERAND_TYPE_MEMORY || mem->mem.type != ZYDIS_MEMOP_TYPE_VSIB)
		return NULL;
	vindex.reg.value = mem->mem.index;
	insn->reg = vector_number(&ctx->ops[0]);
	insn->rm = vector_number(&ctx->ops[2]);
	insn->imm = vector_number(&vindex);
	insn->imm2 = index;
	insn->memsize = size;
	insn->index = INSN_NOREG;
	insn->opsize = ctx->zi->avx.vector_length / 8;
	if (insn->reg == insn->rm || insn->reg == insn->imm || insn->rm == insn->imm)
		return op_ud;
	return op_gather;
}

static insn_fn select_image(const struct decode_ctx *ctx, struct insn *insn, insn_fn fn, bool wide)
{
	insn->opsize = wide ? 8 : 4;
	return fn;
}

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
	return select_image(ctx, insn, op_xsave, wide);
}

static insn_fn select_xrstor(const struct decode_ctx *ctx, struct insn *insn, bool supervisor, bool wide)
{
	if (supervisor && !has_xsave_form(ctx, CPUID_XSAVES))
		return op_ud;
	insn->imm2 = supervisor ? FORM_XRSTORS :
		     has_xsave_form(ctx, CPUID_XSAVEC) ? FORM_XRSTOR_COMPACT : FORM_XRSTOR;
	return select_image(ctx, insn, op_xrstor, wide);
}

static insn_fn select_xgetbv(const struct decode_ctx *ctx, struct insn *insn)
{
	insn->imm2 = has_xsave_form(ctx, CPUID_XGETBV1);
	return op_xgetbv;
}

static insn_fn select_env(const struct decode_ctx *ctx, struct insn *insn, insn_fn fn)
{
	insn->opsize = ctx->zi->operand_width == 16 ? 2 : 4;
	return fn;
}

static insn_fn select_vector(const struct decode_ctx *ctx, struct insn *insn)
{
	switch (ctx->zi->mnemonic) {
	case ZYDIS_MNEMONIC_VMASKMOVPS:
	case ZYDIS_MNEMONIC_VPMASKMOVD: return select_maskmov(ctx, insn, 4);
	case ZYDIS_MNEMONIC_VMASKMOVPD:
	case ZYDIS_MNEMONIC_VPMASKMOVQ: return select_maskmov(ctx, insn, 8);
	case ZYDIS_MNEMONIC_MASKMOVDQU:
	case ZYDIS_MNEMONIC_VMASKMOVDQU: return select_maskmov_rdi(ctx, insn, op_maskmovdqu);
	case ZYDIS_MNEMONIC_MASKMOVQ: return select_maskmov_rdi(ctx, insn, op_maskmovq);
	case ZYDIS_MNEMONIC_VGATHERDPS:
	case ZYDIS_MNEMONIC_VPGATHERDD: return select_gather(ctx, insn, 4, 4);
	case ZYDIS_MNEMONIC_VGATHERDPD:
	case ZYDIS_MNEMONIC_VPGATHERDQ: return select_gather(ctx, insn, 4, 8);
	case ZYDIS_MNEMONIC_VGATHERQPS:
	case ZYDIS_MNEMONIC_VPGATHERQD: return select_gather(ctx, insn, 8, 4);
	case ZYDIS_MNEMONIC_VGATHERQPD:
	case ZYDIS_MNEMONIC_VPGATHERQQ: return select_gather(ctx, insn, 8, 8);
	case ZYDIS_MNEMONIC_VZEROUPPER: return op_vzeroupper;
	case ZYDIS_MNEMONIC_VZEROALL: return op_vzeroall;
	case ZYDIS_MNEMONIC_LDMXCSR:
	case ZYDIS_MNEMONIC_VLDMXCSR: return op_ldmxcsr;
	case ZYDIS_MNEMONIC_STMXCSR:
	case ZYDIS_MNEMONIC_VSTMXCSR: return op_stmxcsr;
	default: return NULL;
	}
}

insn_fn ops_fpu_select(const struct decode_ctx *ctx, struct insn *insn)
{
	switch (ctx->zi->mnemonic) {
	case ZYDIS_MNEMONIC_FXSAVE: return select_image(ctx, insn, op_fxsave, false);
	case ZYDIS_MNEMONIC_FXSAVE64: return select_image(ctx, insn, op_fxsave, true);
	case ZYDIS_MNEMONIC_FXRSTOR: return select_image(ctx, insn, op_fxrstor, false);
	case ZYDIS_MNEMONIC_FXRSTOR64: return select_image(ctx, insn, op_fxrstor, true);
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
	case ZYDIS_MNEMONIC_FNSTENV: return select_env(ctx, insn, op_fnstenv);
	case ZYDIS_MNEMONIC_FLDENV: return select_env(ctx, insn, op_fldenv);
	case ZYDIS_MNEMONIC_FNSAVE: return select_env(ctx, insn, op_fnsave);
	case ZYDIS_MNEMONIC_FRSTOR: return select_env(ctx, insn, op_frstor);
	case ZYDIS_MNEMONIC_FNINIT: return op_fninit;
	case ZYDIS_MNEMONIC_FWAIT: return op_fwait;
	case ZYDIS_MNEMONIC_EMMS: return op_emms;
	default: return select_vector(ctx, insn);
	}
}

/* SPDX-License-Identifier: MIT */
/*
 * x87, SSE and AVX state as an XSAVE area in the standard format, which is what
 * KVM_GET/SET_XSAVE exchange.
 *
 * The instruction and data pointers of the x87 live beside its image (struct
 * guest_fpu), because the host's own are not the guest's: bytes 6-23 of fx mean nothing.
 */
#include <errno.h>
#include <string.h>

#include "host/host.h"
#include "x86/x86.h"

/* FXSAVE64 image */
#define FX_FCW 0
#define FX_FSW 2
#define FX_FTW 4	/* one bit a register: not empty */
#define FX_FOP 6
#define FX_FIP 8
#define FX_FDP 16
#define FX_MXCSR 24
#define FX_MXCSR_MASK 28
#define FX_ST 32
#define FX_XMM 160
/* XSAVE header and the first extended component */
#define XS_HEADER 512
#define XS_AVX 576
#define XS_AVX_END 832

#define MXCSR_RESET 0x1f80u
#define FCW_INIT 0x37f
#define XFEATURES (XFEATURE_X87 | XFEATURE_SSE | XFEATURE_AVX)

struct xsave_header {
	u64 xstate_bv, xcomp_bv;
	u64 reserved[6];
};

static void put(u8 *area, unsigned off, const void *v, unsigned len)
{
	memcpy(area + off, v, len);
}

static void get(const u8 *area, unsigned off, void *v, unsigned len)
{
	memcpy(v, area + off, len);
}

static void x87_init(struct guest_fpu *f)
{
	const u16 fcw = FCW_INIT;

	memset(f->fx, 0, sizeof(f->fx));
	put(f->fx, FX_FCW, &fcw, 2);
	f->fop = f->fcs = f->fds = 0;
	f->fip = f->fdp = 0;
}

/* INIT leaves the FPU alone. The reset value of FCW is FNINIT's, as KVM's. */
void fpu_reset(struct vcpu *vcpu, bool init_not_reset)
{
	struct guest_fpu *f = &vcpu->arch.fpu;

	if (init_not_reset)
		return;
	f->x87_live = false;
	x87_init(f);
	memset(f->ymm, 0, sizeof(f->ymm));
	f->mxcsr = MXCSR_RESET;
}

u32 xstate_size(u64 xcr0)
{
	return xcr0 & XFEATURE_AVX ? XS_AVX_END : XS_AVX;
}

static void x87_to_area(const struct guest_fpu *f, u8 *area)
{
	put(area, 0, f->fx, FX_FOP);
	put(area, FX_FOP, &f->fop, 2);
	put(area, FX_FIP, &f->fip, 8);
	put(area, FX_FDP, &f->fdp, 8);
	put(area, FX_ST, f->fx + FX_ST, 128);
}

static void x87_from_area(struct guest_fpu *f, const u8 *area)
{
	u8 zero = 0;

	put(f->fx, 0, area, FX_FOP);
	put(f->fx, FX_FTW + 1, &zero, 1);
	get(area, FX_FOP, &f->fop, 2);
	f->fop &= 0x7ff;
	get(area, FX_FIP, &f->fip, 8);
	get(area, FX_FDP, &f->fdp, 8);
	f->fcs = f->fds = 0;
	put(f->fx, FX_ST, area + FX_ST, 128);
}

void fpu_to_xsave(struct vcpu *vcpu, void *xsave, u32 size)
{
	struct guest_fpu *f = &vcpu->arch.fpu;
	u64 features = (vcpu->arch.guest_supported_xcr0 | XFEATURE_X87 | XFEATURE_SSE) & XFEATURES;
	const u32 mask = host_mxcsr_mask();
	u8 *area = xsave;

	x87_sync(vcpu);
	memset(area, 0, size);
	if (size < XS_AVX)
		return;
	x87_to_area(f, area);
	put(area, FX_MXCSR, &f->mxcsr, 4);
	put(area, FX_MXCSR_MASK, &mask, 4);
	for (int i = 0; i < 16; i++)
		put(area, FX_XMM + 16 * i, f->ymm[i], 16);
	if (size < XS_AVX_END)
		features &= ~XFEATURE_AVX;
	if (features & XFEATURE_AVX)
		for (int i = 0; i < 16; i++)
			put(area, XS_AVX + 16 * i, f->ymm[i] + 16, 16);
	put(area, XS_HEADER, &features, 8);
}

static bool header_valid(const u8 *area, u32 size, struct xsave_header *h)
{
	u32 mxcsr;

	if (size < XS_AVX)
		return false;
	get(area, XS_HEADER, h, sizeof(*h));
	get(area, FX_MXCSR, &mxcsr, 4);
	if ((h->xstate_bv & ~XFEATURES) || h->xcomp_bv || (mxcsr & ~host_mxcsr_mask()))
		return false;
	for (unsigned i = 0; i < ARRAY_SIZE(h->reserved); i++)
		if (h->reserved[i])
			return false;
	return !(h->xstate_bv & XFEATURE_AVX) || size >= XS_AVX_END;
}

/* Components missing from XSTATE_BV get their initial values; MXCSR comes with SSE or AVX, as for XRSTOR. */
int fpu_from_xsave(struct vcpu *vcpu, const void *xsave, u32 size)
{
	struct guest_fpu *f = &vcpu->arch.fpu;
	const u8 *area = xsave;
	struct xsave_header h;

	if (!header_valid(area, size, &h))
		return -EINVAL;
	x87_sync(vcpu);
	if (h.xstate_bv & XFEATURE_X87)
		x87_from_area(f, area);
	else
		x87_init(f);
	if (h.xstate_bv & (XFEATURE_SSE | XFEATURE_AVX))
		get(area, FX_MXCSR, &f->mxcsr, 4);
	for (int i = 0; i < 16; i++) {
		memset(f->ymm[i], 0, sizeof(f->ymm[i]));
		if (h.xstate_bv & XFEATURE_SSE)
			get(area, FX_XMM + 16 * i, f->ymm[i], 16);
		if (h.xstate_bv & XFEATURE_AVX)
			get(area, XS_AVX + 16 * i, f->ymm[i] + 16, 16);
	}
	return 0;
}

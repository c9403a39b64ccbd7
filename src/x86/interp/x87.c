/* SPDX-License-Identifier: MIT */
/*
 * The guest's x87 and MMX registers, borrowed by the host's FPU between two
 * instructions so that a run of them pays for one FXRSTOR.
 *
 *  1. While x87_live, fpu.fx is stale. The instruction and data pointers are in
 *     fop, fip, fdp, fcs and fds at all times; bytes 6 to 23 of fx mean nothing.
 *  2. Nobody but thunks and translated code uses x87 registers on this thread until x87_sync(), which gives the client
 *     its control word and status back. Its registers are empty: we are called.
 *  3. MXCSR is borrowed in the same way (mxcsr_live), by itself: our C code does no
 *     floating point in between.
 */
#include <string.h>

#include "x86/interp/thunk.h"

#define FX_FOP 6	/* from here on the host's pointers: not ours */
#define FX_MXCSR 24
#define FX_X87_REGS 32
#define FX_X87_END 160
#define ENV_FCW 0	/* of FNSTENV's image, in words */
#define ENV_FSW 2
#define FCW_INIT 0x37f

struct fx_area {
	_Alignas(16) u8 b[512];
};

static never_inline void fx_restore(const struct fx_area *fx)
{
	asm volatile("fxrstor64 %0" : : "m"(*fx)
		     : "xmm0", "xmm1", "xmm2", "xmm3", "xmm4", "xmm5", "xmm6", "xmm7", "xmm8", "xmm9",
		       "xmm10", "xmm11", "xmm12", "xmm13", "xmm14", "xmm15");
}

void x87_load(struct vcpu *vcpu)
{
	struct guest_fpu *fpu = &vcpu->arch.fpu;
	struct fx_area fx;

	if (fpu->x87_live)
		return;
	asm volatile("fnstenv %0" : "=m"(fpu->host_x87_env));
	memset(&fx, 0, sizeof(fx));
	memcpy(fx.b, fpu->fx, FX_FOP);
	memcpy(fx.b + FX_X87_REGS, fpu->fx + FX_X87_REGS, FX_X87_END - FX_X87_REGS);
	asm volatile("stmxcsr %0" : "=m"(*(u32 *)(fx.b + FX_MXCSR)));
	fx_restore(&fx);
	fpu->x87_live = true;
}

void x87_discard(struct vcpu *vcpu)
{
	struct guest_fpu *fpu = &vcpu->arch.fpu;

	if (!fpu->x87_live)
		return;
	asm volatile("fninit");
	/* No register of its own is in use: we are called. */
	if (fpu->host_x87_env[ENV_FCW] != FCW_INIT || fpu->host_x87_env[ENV_FSW])
		asm volatile("fldenv %0" : : "m"(fpu->host_x87_env));
	fpu->x87_live = false;
}

void mxcsr_load(struct vcpu *vcpu)
{
	struct guest_fpu *fpu = &vcpu->arch.fpu;

	if (likely(fpu->mxcsr_live))
		return;
	asm volatile("stmxcsr %0; ldmxcsr %1" : "=m"(fpu->host_mxcsr) : "m"(fpu->mxcsr));
	fpu->mxcsr_live = true;
}

void mxcsr_sync(struct vcpu *vcpu)
{
	struct guest_fpu *fpu = &vcpu->arch.fpu;

	if (!fpu->mxcsr_live)
		return;
	asm volatile("stmxcsr %0; ldmxcsr %1" : "=m"(fpu->mxcsr) : "m"(fpu->host_mxcsr));
	fpu->mxcsr_live = false;
}

void x87_sync(struct vcpu *vcpu)
{
	struct guest_fpu *fpu = &vcpu->arch.fpu;
	struct fx_area fx;

	mxcsr_sync(vcpu);
	if (!fpu->x87_live)
		return;
	asm volatile("fxsave64 %0" : "=m"(fx));
	memcpy(fpu->fx, fx.b, FX_FOP);
	memcpy(fpu->fx + FX_X87_REGS, fx.b + FX_X87_REGS, FX_X87_END - FX_X87_REGS);
	x87_discard(vcpu);
}

void x87_note(struct vcpu *vcpu, const struct insn *insn)
{
	struct vcpu_arch *a = &vcpu->arch;

	a->fpu.fip = a->rip;
	a->fpu.fcs = a->seg[SEG_CS].selector;
	a->fpu.fop = insn->imm2;
	if (insn->flags & INSN_MEM) {
		a->fpu.fdp = insn_offset(vcpu, insn);
		a->fpu.fds = a->seg[insn->seg].selector;
	}
}

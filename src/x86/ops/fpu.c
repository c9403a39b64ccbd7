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
#include "x86/ops/fpu.h"

#define FSW_ES BIT(7)
#define FSW_B BIT(15)

/* ---- pieces of the state ------------------------------------------------------- */

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

void x87_reset(struct vcpu *vcpu)
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

enum exec area_aligned(struct vcpu *vcpu, gva_t va, unsigned align)
{
	if (!(va & (align - 1)))
		return EXEC_OK;
	if (va & 3 && host_is_intel() && vcpu->arch.tlb == &vcpu->arch.mmu->tlbs[TLB_USER_AC])
		return queue_exception_e(vcpu, AC_VECTOR, 0);
	return queue_gp(vcpu, 0);
}

enum exec area_touch(struct vcpu *vcpu, const struct insn *insn, unsigned disp, unsigned size, bool write)
{
	u8 bytes[4];
	gva_t va;
	enum exec r = part_linear(vcpu, insn, disp, size, write, &va);

	if (r != EXEC_OK)
		return r;
	return write ? mem_probe_write(vcpu, va, size, mmu_data_access(vcpu, MMU_WRITE)) :
		       mem_read(vcpu, va, bytes, size, mmu_data_access(vcpu, MMU_READ));
}

/* Linear address of the 512 bytes of FXSAVE, all of which must be accessible. */
static enum exec fx_linear(struct vcpu *vcpu, const struct insn *insn, bool write, gva_t *va)
{
	enum exec r = insn_linear(vcpu, insn, 512, write, va);

	if (r == EXEC_OK)
		r = area_aligned(vcpu, *va, 16);
	return r == EXEC_OK ? area_touch(vcpu, insn, 511, 1, write) : r;
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

/* Intel's CPUs keep as much of FIP as an address has bits; FDP is kept as it is. */
static u64 kept_fip(u64 p)
{
	u32 eax, ebx, ecx, edx;
	unsigned unused;

	if (likely(is_canonical(p)) || !host_is_intel())
		return p;
	host_cpuid(0x80000008, 0, &eax, &ebx, &ecx, &edx);
	unused = 64 - (eax >> 8 & 0xff);
	return (s64)(p << unused) >> unused;
}

static void pointers_from_area(struct guest_fpu *f, const u8 *area, bool wide)
{
	f->fop = get16(area + FX_FOP) & 0x7ff;
	memcpy(&f->fip, area + FX_FIP, 8);
	memcpy(&f->fdp, area + FX_FDP, 8);
	f->fcs = f->fds = 0;
	if (wide) {
		f->fip = kept_fip(f->fip);
		return;
	}
	f->fcs = get16(area + FX_FIP + 4);
	f->fds = get16(area + FX_FDP + 4);
	f->fip = (u32)f->fip;
	f->fdp = (u32)f->fdp;
}

void x87_to_area(struct vcpu *vcpu, u8 *area, bool wide)
{
	struct guest_fpu *f = &vcpu->arch.fpu;

	x87_sync(vcpu);
	memcpy(area, f->fx, FX_FOP);
	area[FX_FTW + 1] = 0;
	pointers_to_area(f, area, wide);
	memcpy(area + FX_ST, f->fx + FX_ST, 128);
}

void x87_from_area(struct vcpu *vcpu, const u8 *area, bool wide)
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

static enum exec op_fxsave(struct vcpu *vcpu, const struct insn *insn)
{
	struct guest_fpu *f = &vcpu->arch.fpu;
	unsigned n = nr_vector_regs(vcpu);
	_Alignas(16) u8 area[512] = { 0 };
	gva_t va;
	enum exec r = fpu_available(vcpu);

	if (r == EXEC_OK)
		r = fx_linear(vcpu, insn, true, &va);
	if (r == EXEC_OK)
		r = mem_probe_write(vcpu, va, 512, mmu_data_access(vcpu, MMU_WRITE));
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
		r = fx_linear(vcpu, insn, false, &va);
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

/* Intel's CPUs check words of the environment's size for alignment, and look at the first, then the last byte. */
static enum exec env_linear(struct vcpu *vcpu, const struct insn *insn, unsigned size, bool write, gva_t *va)
{
	enum exec r = insn_linear(vcpu, insn, size, write, va);

	if (r == EXEC_OK && host_is_intel() && *va & (insn->opsize == 2 ? 1 : 3) &&
	    vcpu->arch.tlb == &vcpu->arch.mmu->tlbs[TLB_USER_AC])
		return queue_exception_e(vcpu, AC_VECTOR, 0);
	if (r == EXEC_OK)
		r = area_touch(vcpu, insn, 0, insn->opsize == 2 ? 2 : 4, write);
	return r == EXEC_OK ? area_touch(vcpu, insn, size - 1, 1, write) : r;
}

static enum exec op_fnstenv(struct vcpu *vcpu, const struct insn *insn)
{
	struct guest_fpu *f = &vcpu->arch.fpu;
	unsigned size = env_size(insn);
	u8 env[28];
	gva_t va;
	enum exec r = env_linear(vcpu, insn, size, true, &va);

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
		r = env_linear(vcpu, insn, size, false, &va);
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
	enum exec r = env_linear(vcpu, insn, size + 80, true, &va);

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
		r = env_linear(vcpu, insn, size + 80, false, &va);
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

enum exec part_linear(struct vcpu *vcpu, const struct insn *insn, u64 disp, unsigned size, bool write, gva_t *va)
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

/* Masked loads and gathers are never checked for alignment. */
static enum exec element_load(struct vcpu *vcpu, gva_t va, unsigned size, u64 *val)
{
	*val = 0;
	return mem_read(vcpu, va, val, size, mmu_data_access(vcpu, MMU_READ));
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
			r = element_load(vcpu, va, size, &val);
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

/* All of the operand must be writable, whatever the mask says; Intel's CPUs begin with the upper half. */
static enum exec maskmov_probe(struct vcpu *vcpu, const struct insn *insn, unsigned len)
{
	unsigned step = host_is_intel() ? 8 : len;
	enum exec r = EXEC_OK;
	gva_t va;

	for (unsigned at = len; at && r == EXEC_OK; at -= step) {
		r = part_linear(vcpu, insn, at - step, step, true, &va);
		if (r == EXEC_OK && host_is_intel() && va & 7 && vcpu->arch.tlb == &vcpu->arch.mmu->tlbs[TLB_USER_AC])
			return queue_exception_e(vcpu, AC_VECTOR, 0);
		if (r == EXEC_OK)
			r = mem_probe_write(vcpu, va, step, mmu_data_access(vcpu, MMU_WRITE));
	}
	return r;
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
				r = element_load(vcpu, va, size, &val);
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
	insn_fn fn;

	switch (ctx->zi->mnemonic) {
	case ZYDIS_MNEMONIC_FXSAVE: return select_image(insn, op_fxsave, false);
	case ZYDIS_MNEMONIC_FXSAVE64: return select_image(insn, op_fxsave, true);
	case ZYDIS_MNEMONIC_FXRSTOR: return select_image(insn, op_fxrstor, false);
	case ZYDIS_MNEMONIC_FXRSTOR64: return select_image(insn, op_fxrstor, true);
	case ZYDIS_MNEMONIC_FNSTENV: return select_env(ctx, insn, op_fnstenv);
	case ZYDIS_MNEMONIC_FLDENV: return select_env(ctx, insn, op_fldenv);
	case ZYDIS_MNEMONIC_FNSAVE: return select_env(ctx, insn, op_fnsave);
	case ZYDIS_MNEMONIC_FRSTOR: return select_env(ctx, insn, op_frstor);
	case ZYDIS_MNEMONIC_FNINIT: return op_fninit;
	case ZYDIS_MNEMONIC_FWAIT: return op_fwait;
	case ZYDIS_MNEMONIC_EMMS: return op_emms;
	default: break;
	}
	fn = xsave_select(ctx, insn);
	return fn ? fn : select_vector(ctx, insn);
}

/* SPDX-License-Identifier: MIT */
/*
 * Privileged and sensitive instructions that touch no descriptor: control and
 * debug registers, MSRs, CPUID, time stamp, TLB and cache control, HLT. Also where
 * the system half of the instruction set is asked for handlers: the feature
 * bits that decide whether an instruction exists at all are looked up then.
 */
#include <string.h>

#include "x86/interp/operand.h"
#include "x86/ops/descriptor.h"
#include "x86/smm.h"

static inline enum exec require_cpl0(struct vcpu *vcpu)
{
	return likely(!vcpu->arch.cpl) ? EXEC_OK : queue_gp(vcpu, 0);
}

static enum exec ok_to_end(enum exec r)
{
	return r == EXEC_OK ? EXEC_END : r;
}

static void set_rdx_rax(struct vcpu *vcpu, u64 val)
{
	vcpu->arch.regs[RAX] = (u32)val;
	vcpu->arch.regs[RDX] = val >> 32;
}

static u64 get_rdx_rax(const struct vcpu *vcpu)
{
	return (u32)vcpu->arch.regs[RAX] | vcpu->arch.regs[RDX] << 32;
}

/* ---- control and debug registers ------------------------------------------------- */

/* insn->cc: number of the control or debug register; insn->reg: the other one */
static enum exec op_mov_r_cr(struct vcpu *vcpu, const struct insn *insn)
{
	const struct vcpu_arch *a = &vcpu->arch;
	u64 val;

	if (require_cpl0(vcpu) != EXEC_OK)
		return EXEC_FAULT;
	switch (insn->cc) {
	case 0: val = a->cr0; break;
	case 2: val = a->cr2; break;
	case 3: val = a->cr3; break;
	case 4: val = a->cr4; break;
	default: val = get_cr8(vcpu); break;
	}
	gpr_write(vcpu, insn->reg, insn->opsize, false, val);
	return EXEC_OK;
}

static enum exec op_mov_cr_r(struct vcpu *vcpu, const struct insn *insn)
{
	u64 val = gpr_read(vcpu, insn->reg, insn->opsize, false);

	if (require_cpl0(vcpu) != EXEC_OK)
		return EXEC_FAULT;
	switch (insn->cc) {
	case 0: return ok_to_end(set_cr0(vcpu, val));
	case 2:
		vcpu->arch.cr2 = val;
		return EXEC_OK;
	case 3: return ok_to_end(set_cr3(vcpu, val));
	case 4: return ok_to_end(set_cr4(vcpu, val));
	default: return ok_to_end(set_cr8(vcpu, val));
	}
}

/* Privilege and DR7.GD are set_dr()'s and get_dr()'s business. */
static enum exec op_mov_r_dr(struct vcpu *vcpu, const struct insn *insn)
{
	u64 val;
	enum exec r = get_dr(vcpu, insn->cc, &val);

	if (r == EXEC_OK)
		gpr_write(vcpu, insn->reg, insn->opsize, false, val);
	return r;
}

static enum exec op_mov_dr_r(struct vcpu *vcpu, const struct insn *insn)
{
	return ok_to_end(set_dr(vcpu, insn->cc, gpr_read(vcpu, insn->reg, insn->opsize, false)));
}

static enum exec op_smsw(struct vcpu *vcpu, const struct insn *insn)
{
	if ((vcpu->arch.cr4 & X86_CR4_UMIP) && vcpu->arch.cpl)
		return queue_gp(vcpu, 0);
	return rm_store_small(vcpu, insn, vcpu->arch.cr0);
}

/* MP, EM, TS; PE can be set, not cleared. */
static enum exec op_lmsw(struct vcpu *vcpu, const struct insn *insn)
{
	u64 val;
	enum exec r = require_cpl0(vcpu);

	if (r == EXEC_OK)
		r = rm_load_small(vcpu, insn, &val);
	if (r == EXEC_OK)
		r = set_cr0(vcpu, (vcpu->arch.cr0 & ~0xeull) | (val & 0xf));
	return ok_to_end(r);
}

static enum exec op_clts(struct vcpu *vcpu, const struct insn *insn)
{
	enum exec r = require_cpl0(vcpu);

	if (r == EXEC_OK && (vcpu->arch.cr0 & X86_CR0_TS))
		return ok_to_end(set_cr0(vcpu, vcpu->arch.cr0 & ~(u64)X86_CR0_TS));
	return r;
}

static enum exec op_xsetbv(struct vcpu *vcpu, const struct insn *insn)
{
	enum exec r;

	if (!(vcpu->arch.cr4 & X86_CR4_OSXSAVE))
		return queue_ud(vcpu);
	r = require_cpl0(vcpu);
	if (r == EXEC_OK)
		r = set_xcr(vcpu, vcpu->arch.regs[RCX], get_rdx_rax(vcpu));
	return ok_to_end(r);
}

/* ---- MSRs, CPUID, counters ------------------------------------------------------------ */

static enum exec op_rdmsr(struct vcpu *vcpu, const struct insn *insn)
{
	u64 val;
	enum exec r = require_cpl0(vcpu);

	if (r == EXEC_OK)
		r = guest_rdmsr(vcpu, vcpu->arch.regs[RCX], &val);
	if (r == EXEC_OK)
		set_rdx_rax(vcpu, val);
	return r;
}

static enum exec op_wrmsr(struct vcpu *vcpu, const struct insn *insn)
{
	enum exec r = require_cpl0(vcpu);

	if (r == EXEC_OK)
		r = guest_wrmsr(vcpu, vcpu->arch.regs[RCX], get_rdx_rax(vcpu));
	return ok_to_end(r);
}

static enum exec op_cpuid(struct vcpu *vcpu, const struct insn *insn)
{
	u64 *regs = vcpu->arch.regs;
	u32 eax = regs[RAX], ebx = 0, ecx = regs[RCX], edx = 0;

	/* MSR_MISC_FEATURES_ENABLES: CPUID faulting */
	if ((vcpu->arch.msr.misc_features_enables & 1) && vcpu->arch.cpl)
		return queue_gp(vcpu, 0);
	guest_cpuid(vcpu, &eax, &ebx, &ecx, &edx);
	regs[RAX] = eax;
	regs[RBX] = ebx;
	regs[RCX] = ecx;
	regs[RDX] = edx;
	return EXEC_OK;
}

static bool tsc_disabled(const struct vcpu *vcpu)
{
	return (vcpu->arch.cr4 & X86_CR4_TSD) && vcpu->arch.cpl;
}

static enum exec op_rdtsc(struct vcpu *vcpu, const struct insn *insn)
{
	if (tsc_disabled(vcpu))
		return queue_gp(vcpu, 0);
	set_rdx_rax(vcpu, guest_tsc(vcpu));
	return EXEC_OK;
}

static enum exec op_rdtscp(struct vcpu *vcpu, const struct insn *insn)
{
	enum exec r = op_rdtsc(vcpu, insn);

	if (r == EXEC_OK)
		vcpu->arch.regs[RCX] = (u32)vcpu->arch.msr.tsc_aux;
	return r;
}

/* There is no PMU: no counter number is valid. */
static enum exec op_rdpmc(struct vcpu *vcpu, const struct insn *insn)
{
	return queue_gp(vcpu, 0);
}

static enum exec op_rdpid(struct vcpu *vcpu, const struct insn *insn)
{
	gpr_write(vcpu, insn->reg, insn->opsize, false, (u32)vcpu->arch.msr.tsc_aux);
	return EXEC_OK;
}

/* ---- TLB and caches ---------------------------------------------------------------------- */

static enum exec op_invlpg(struct vcpu *vcpu, const struct insn *insn)
{
	u64 va = insn_offset(vcpu, insn);
	enum exec r = require_cpl0(vcpu);

	if (r != EXEC_OK)
		return r;
	if (!in_64bit_mode(vcpu))
		va = (u32)(va + vcpu->arch.seg[insn->seg].base);
	else if (insn->seg >= SEG_FS)
		va += vcpu->arch.seg[insn->seg].base;
	if (is_canonical(va))
		mmu_flush_page(vcpu, va);
	return EXEC_END;
}

enum invpcid_type { INVPCID_ADDR, INVPCID_CONTEXT, INVPCID_ALL, INVPCID_ALL_NON_GLOBAL };

static enum exec op_invpcid(struct vcpu *vcpu, const struct insn *insn)
{
	u64 type = gpr_read(vcpu, insn->reg, insn->opsize, false), desc[2];
	bool pcide = vcpu->arch.cr4 & X86_CR4_PCIDE;
	gva_t va;
	enum exec r = require_cpl0(vcpu);

	if (r == EXEC_OK && type > INVPCID_ALL_NON_GLOBAL)
		r = queue_gp(vcpu, 0);
	if (r == EXEC_OK)
		r = insn_linear(vcpu, insn, 16, false, &va);
	if (r == EXEC_OK)
		r = mem_read(vcpu, va, desc, 16, mmu_data_access(vcpu, MMU_READ));
	if (r != EXEC_OK)
		return r;
	if (desc[0] >> 12)
		return queue_gp(vcpu, 0);
	if (type <= INVPCID_CONTEXT && !pcide && desc[0])
		return queue_gp(vcpu, 0);
	if (type == INVPCID_ADDR && !is_canonical(desc[1]))
		return queue_gp(vcpu, 0);
	if (type == INVPCID_ADDR && desc[0] == mmu_present_pcid(vcpu))
		mmu_flush_page(vcpu, desc[1]);
	else if (type <= INVPCID_CONTEXT)
		mmu_flush_space(vcpu, desc[0]);
	else if (type == INVPCID_ALL)
		mmu_flush_all(vcpu);
	else
		mmu_flush_nonglobal(vcpu);
	return EXEC_END;
}

/* Caches are coherent: nothing to write back. */
static enum exec op_cache_control(struct vcpu *vcpu, const struct insn *insn)
{
	return require_cpl0(vcpu);
}

static enum exec op_clzero(struct vcpu *vcpu, const struct insn *insn)
{
	static const u8 zeros[64];
	u64 off = vcpu->arch.regs[RAX];
	gva_t va;
	enum exec r;

	off = insn->addrsize == 8 ? off : insn->addrsize == 4 ? (u32)off : (u16)off;
	r = seg_linear(vcpu, insn->seg, off & ~63ull, 64, true, &va);
	return r == EXEC_OK ? mem_write(vcpu, va, zeros, 64, mmu_data_access(vcpu, MMU_WRITE)) : r;
}

/* ---- waiting ------------------------------------------------------------------------------- */

static enum exec op_rsm(struct vcpu *vcpu, const struct insn *insn)
{
	return vcpu->arch.smm ? smm_leave(vcpu) : queue_ud(vcpu);
}

static enum exec op_hlt(struct vcpu *vcpu, const struct insn *insn)
{
	enum exec r = require_cpl0(vcpu);

	return r == EXEC_OK ? vcpu_halt(vcpu) : r;
}

/*
 * As KVM: no-operations, whether or not CPUID has them, unless the quirk is
 * disabled. The legal spurious wake-up, every time.
 */
static enum exec op_monitor_mwait(struct vcpu *vcpu, const struct insn *insn)
{
	if (vcpu->arch.cpl)
		return queue_ud(vcpu);
	if ((vcpu->vm->arch.disabled_quirks & KVM_X86_QUIRK_MWAIT_NEVER_UD_FAULTS) &&
	    !guest_cpuid_has(vcpu, 1, 0, CPUID_ECX, 3))
		return queue_ud(vcpu);
	return EXEC_END;
}

/* ---- selection -------------------------------------------------------------------------------- */

static insn_fn select_end(struct insn *insn, insn_fn fn)
{
	insn->flags |= INSN_END_BLOCK;
	return fn;
}

/* MOV with a control or debug register on one side. */
static insn_fn select_mov_special(const struct decode_ctx *ctx, struct insn *insn)
{
	for (unsigned n = 0; n < 2 && ctx->zi->operand_count_visible >= 2; n++) {
		ZydisRegister reg = ctx->ops[n].reg.value;
		ZydisRegisterClass class;
		ZyanI8 id;

		if (ctx->ops[n].type != ZYDIS_OPERAND_TYPE_REGISTER)
			continue;
		class = ZydisRegisterGetClass(reg);
		if (class != ZYDIS_REGCLASS_CONTROL && class != ZYDIS_REGCLASS_DEBUG)
			continue;
		id = ZydisRegisterGetId(reg);
		operand_to_reg(ctx, !n, insn);
		insn->opsize = in_64bit_mode(ctx->vcpu) ? 8 : 4;
		insn->cc = id;
		if (class == ZYDIS_REGCLASS_DEBUG)
			return id > 7 ? op_ud : n ? op_mov_r_dr : select_end(insn, op_mov_dr_r);
		if (id != 0 && id != 2 && id != 3 && id != 4 && id != 8)
			return op_ud;
		return n ? op_mov_r_cr : select_end(insn, op_mov_cr_r);
	}
	return NULL;
}

static insn_fn select_rm(const struct decode_ctx *ctx, struct insn *insn, insn_fn fn)
{
	if (operand_kind(ctx, 0) == OPERAND_GPR)
		operand_to_rm(ctx, 0, insn);
	else
		insn->rm = INSN_NOREG;
	insn->opsize = operand_bytes(ctx, 0);
	return fn;
}

static insn_fn select_reg(const struct decode_ctx *ctx, struct insn *insn, insn_fn fn)
{
	operand_to_reg(ctx, 0, insn);
	insn->opsize = in_64bit_mode(ctx->vcpu) ? 8 : 4;
	return fn;
}

static insn_fn select_clzero(const struct decode_ctx *ctx, struct insn *insn)
{
	insn->addrsize = ctx->zi->address_width / 8;
	for (unsigned i = 0; i < ctx->zi->raw.prefix_count; i++)
		if (ctx->zi->raw.prefixes[i].value == 0xf2 || ctx->zi->raw.prefixes[i].value == 0xf3)
			return op_ud;
	for (unsigned i = 0; i < ctx->zi->operand_count; i++) {
		if (ctx->ops[i].type == ZYDIS_OPERAND_TYPE_MEMORY)
			insn->seg = seg_from_zydis(ctx->ops[i].mem.segment);
	}
	if (ctx->zi->attributes & ZYDIS_ATTRIB_HAS_SEGMENT_FS)
		insn->seg = SEG_FS;
	if (ctx->zi->attributes & ZYDIS_ATTRIB_HAS_SEGMENT_GS)
		insn->seg = SEG_GS;
	insn->flags |= INSN_WRITES_MEM;
	return op_clzero;
}

static insn_fn select_if(struct vcpu *vcpu, u32 leaf, enum cpuid_reg reg, unsigned bit, insn_fn fn)
{
	return guest_cpuid_has(vcpu, leaf, 0, reg, bit) ? fn : op_ud;
}

static insn_fn system_select(const struct decode_ctx *ctx, struct insn *insn)
{
	struct vcpu *vcpu = ctx->vcpu;

	switch (ctx->zi->mnemonic) {
	case ZYDIS_MNEMONIC_MOV: return select_mov_special(ctx, insn);
	case ZYDIS_MNEMONIC_SMSW: return select_rm(ctx, insn, op_smsw);
	case ZYDIS_MNEMONIC_LMSW: return select_end(insn, select_rm(ctx, insn, op_lmsw));
	case ZYDIS_MNEMONIC_CLTS: return select_end(insn, op_clts);
	case ZYDIS_MNEMONIC_XSETBV: return select_end(insn, op_xsetbv);
	case ZYDIS_MNEMONIC_RDMSR: return op_rdmsr;
	case ZYDIS_MNEMONIC_WRMSR: return select_end(insn, op_wrmsr);
	case ZYDIS_MNEMONIC_CPUID: return op_cpuid;
	case ZYDIS_MNEMONIC_RDTSC: return op_rdtsc;
	case ZYDIS_MNEMONIC_RDTSCP: return select_if(vcpu, 0x80000001, CPUID_EDX, 27, op_rdtscp);
	case ZYDIS_MNEMONIC_RDPMC: return op_rdpmc;
	case ZYDIS_MNEMONIC_RDPID:
		return select_if(vcpu, 7, CPUID_ECX, 22, select_reg(ctx, insn, op_rdpid));
	case ZYDIS_MNEMONIC_INVLPG: return select_end(insn, op_invlpg);
	case ZYDIS_MNEMONIC_INVPCID:
		return select_if(vcpu, 7, CPUID_EBX, 10, select_end(insn, select_reg(ctx, insn, op_invpcid)));
	case ZYDIS_MNEMONIC_INVD:
	case ZYDIS_MNEMONIC_WBINVD: return op_cache_control;
	case ZYDIS_MNEMONIC_CLZERO:
		return select_if(vcpu, 0x80000008, CPUID_EBX, 0, select_clzero(ctx, insn));
	case ZYDIS_MNEMONIC_HLT: return select_end(insn, op_hlt);
	case ZYDIS_MNEMONIC_MONITOR:
	case ZYDIS_MNEMONIC_MWAIT: return select_end(insn, op_monitor_mwait);
	case ZYDIS_MNEMONIC_RSM:
		insn->flags |= INSN_LEAVE_ENGINE;
		return select_end(insn, op_rsm);
	case ZYDIS_MNEMONIC_UD0:
	case ZYDIS_MNEMONIC_UD1:
	case ZYDIS_MNEMONIC_UD2: return select_end(insn, op_ud);
	default: return NULL;
	}
}

insn_fn ops_system_select(const struct decode_ctx *ctx, struct insn *insn)
{
	static insn_fn (*const selectors[])(const struct decode_ctx *, struct insn *) = {
		system_select, descriptor_select, far_select, iret_select, syscall_select, io_select,
	};
	const struct insn plain = *insn;

	for (unsigned i = 0; i < ARRAY_SIZE(selectors); i++) {
		insn_fn fn = selectors[i](ctx, insn);

		if (fn)
			return fn;
		*insn = plain;
	}
	return NULL;
}

/* SPDX-License-Identifier: MIT */
/*
 * Fast system calls, SWAPGS, FS/GS base instructions, hypercalls. Where Intel and
 * AMD differ the guest's CPUID vendor decides, except for the hypercall
 * instruction: there, as in KVM, it is the host's.
 */
#include "host/host.h"
#include "x86/interp/operand.h"
#include "x86/ops/descriptor.h"

#define SYSRET_FLAGS 0x3c7fd7ull

/* Flat segments that are not read from any table. */
static struct segment flat_code(u16 selector, unsigned dpl, bool long_mode)
{
	return (struct segment){
		.selector = selector, .limit = 0xffffffff,
		.ar = 0x9b | dpl << AR_DPL_SHIFT | AR_G | (long_mode ? AR_L : AR_DB),
	};
}

static struct segment flat_stack(u16 selector, unsigned dpl)
{
	return (struct segment){
		.selector = selector, .limit = 0xffffffff,
		.ar = 0x93 | dpl << AR_DPL_SHIFT | AR_G | AR_DB,
	};
}

static enum exec syscall_enter(struct vcpu *vcpu, u16 cs, u16 ss, u64 rip, u64 clear, bool long_mode)
{
	u64 old = vcpu->arch.rflags;

	vcpu->arch.rip = rip;
	vcpu->arch.rflags = (old & ~clear) | X86_EFLAGS_FIXED;
	vcpu->arch.seg[SEG_SS] = flat_stack(ss, 0);
	/* SYSENTER leaves vm86. */
	vcpu_update_mode(vcpu);
	commit_cs(vcpu, flat_code(cs, 0, long_mode), 0);
	(void)rflags_written(vcpu, old);
	return EXEC_BRANCH;
}

static enum exec op_syscall(struct vcpu *vcpu, const struct insn *insn)
{
	struct vcpu_arch *a = &vcpu->arch;
	u64 next = (a->rip + insn->len) & ip_mask(vcpu);
	u16 cs = a->msr.star >> 32 & 0xfffc, ss = (a->msr.star >> 32 & 0xfffc) + 8;
	bool was64 = in_64bit_mode(vcpu);

	if (!a->protected_mode || !(a->efer & EFER_SCE))
		return queue_ud(vcpu);
	if (!was64 && guest_is_intel(vcpu))
		return queue_ud(vcpu);
	a->regs[RCX] = next;
	if (!a->long_mode)
		return syscall_enter(vcpu, cs, ss, (u32)a->msr.star,
				     X86_EFLAGS_VM | X86_EFLAGS_IF | X86_EFLAGS_RF, false);
	a->regs[R11] = a->rflags & ~(u64)X86_EFLAGS_RF;
	return syscall_enter(vcpu, cs, ss, was64 ? a->msr.lstar : a->msr.cstar,
			     (a->msr.sf_mask & ~(u64)X86_EFLAGS_FIXED) | X86_EFLAGS_RF, true);
}

/* AMD loads the selector and leaves the rest of SS alone; DPL is our CPL. */
static struct segment sysret_ss(struct vcpu *vcpu, u16 selector, bool intel)
{
	struct segment ss = vcpu->arch.seg[SEG_SS];

	if (intel)
		return flat_stack(selector, 3);
	ss.selector = selector;
	ss.ar |= AR_DPL;
	return ss;
}

/* insn->opsize 8: to 64-bit mode */
static enum exec op_sysret(struct vcpu *vcpu, const struct insn *insn)
{
	struct vcpu_arch *a = &vcpu->arch;
	u16 base = a->msr.star >> 48;
	bool intel = guest_is_intel(vcpu), to64 = insn->opsize == 8;
	u64 old = a->rflags;

	if (!a->protected_mode || !(a->efer & EFER_SCE) || (intel && !in_64bit_mode(vcpu)))
		return queue_ud(vcpu);
	if (a->cpl)
		return queue_gp(vcpu, 0);
	/* Intel faults here, at CPL 0; AMD fetches at the address, at CPL 3. */
	if (intel && to64 && !is_canonical(a->regs[RCX]))
		return queue_gp(vcpu, 0);
	a->rip = to64 ? a->regs[RCX] : (u32)a->regs[RCX];
	if (a->long_mode)
		a->rflags = (a->regs[R11] & SYSRET_FLAGS) | X86_EFLAGS_FIXED;
	else
		a->rflags |= X86_EFLAGS_IF;
	a->seg[SEG_SS] = sysret_ss(vcpu, (base + 8) | 3, intel);
	commit_cs(vcpu, flat_code((to64 ? base + 16 : base) | 3, 3, to64), 3);
	(void)rflags_written(vcpu, old);
	return EXEC_BRANCH;
}

static enum exec op_sysenter(struct vcpu *vcpu, const struct insn *insn)
{
	struct vcpu_arch *a = &vcpu->arch;
	u16 cs = a->msr.sysenter_cs & 0xfffc;
	bool lm = a->long_mode;

	if (!(a->cr0 & X86_CR0_PE))
		return queue_gp(vcpu, 0);
	if (lm && !guest_is_intel(vcpu))
		return queue_ud(vcpu);
	if (!cs)
		return queue_gp(vcpu, 0);
	a->regs[RSP] = lm ? a->msr.sysenter_esp : (u32)a->msr.sysenter_esp;
	return syscall_enter(vcpu, cs, cs + 8, lm ? a->msr.sysenter_eip : (u32)a->msr.sysenter_eip,
			     X86_EFLAGS_VM | X86_EFLAGS_IF | X86_EFLAGS_RF, lm);
}

static enum exec op_sysexit(struct vcpu *vcpu, const struct insn *insn)
{
	struct vcpu_arch *a = &vcpu->arch;
	bool to64 = insn->opsize == 8;
	u64 rsp = a->regs[RCX], rip = a->regs[RDX];
	u16 cs = (a->msr.sysenter_cs & 0xfffc) + (to64 ? 32 : 16);

	if (!a->protected_mode || a->cpl)
		return queue_gp(vcpu, 0);
	if (a->long_mode && !guest_is_intel(vcpu))
		return queue_ud(vcpu);
	if (!(a->msr.sysenter_cs & 0xfffc))
		return queue_gp(vcpu, 0);
	if (to64 && (!is_canonical(rsp) || !is_canonical(rip)))
		return queue_gp(vcpu, 0);
	a->regs[RSP] = to64 ? rsp : (u32)rsp;
	a->rip = to64 ? rip : (u32)rip;
	a->seg[SEG_SS] = flat_stack((cs + 8) | 3, 3);
	commit_cs(vcpu, flat_code(cs | 3, 3, to64), 3);
	return EXEC_BRANCH;
}

/* ---- SWAPGS, FSGSBASE ------------------------------------------------------------ */

static enum exec op_swapgs(struct vcpu *vcpu, const struct insn *insn)
{
	u64 base = vcpu->arch.seg[SEG_GS].base;

	if (vcpu->arch.cpl)
		return queue_gp(vcpu, 0);
	vcpu->arch.seg[SEG_GS].base = vcpu->arch.msr.kernel_gs_base;
	vcpu->arch.msr.kernel_gs_base = base;
	return EXEC_OK;
}

/* insn->cc: SEG_FS or SEG_GS */
static enum exec op_rdbase(struct vcpu *vcpu, const struct insn *insn)
{
	if (!(vcpu->arch.cr4 & X86_CR4_FSGSBASE))
		return queue_ud(vcpu);
	gpr_write(vcpu, insn->reg, insn->opsize, false, vcpu->arch.seg[insn->cc].base);
	return EXEC_OK;
}

static enum exec op_wrbase(struct vcpu *vcpu, const struct insn *insn)
{
	u64 base = gpr_read(vcpu, insn->reg, insn->opsize, false);

	if (!(vcpu->arch.cr4 & X86_CR4_FSGSBASE))
		return queue_ud(vcpu);
	if (!is_canonical(base))
		return queue_gp(vcpu, 0);
	vcpu->arch.seg[insn->cc].base = base;
	return EXEC_OK;
}

/* ---- hypercalls --------------------------------------------------------------------- */

static enum exec op_hypercall(struct vcpu *vcpu, const struct insn *insn)
{
	return emulate_hypercall(vcpu);
}

/* The other vendor's instruction: KVM replaces it in the guest's code by ours, and runs that. */
static enum exec op_hypercall_foreign(struct vcpu *vcpu, const struct insn *insn)
{
	static const u8 vmcall[3] = { 0x0f, 0x01, 0xc1 }, vmmcall[3] = { 0x0f, 0x01, 0xd9 };
	enum exec r;

	if (vcpu->vm->arch.disabled_quirks & KVM_X86_QUIRK_FIX_HYPERCALL_INSN)
		return queue_ud(vcpu);
	r = mem_write(vcpu, linear_rip(vcpu), host_is_amd() ? vmmcall : vmcall, 3,
		      mmu_data_access(vcpu, MMU_WRITE));
	return r == EXEC_OK ? EXEC_RETRY : r;
}

/* ---- selection ----------------------------------------------------------------------- */

static insn_fn select_base(const struct decode_ctx *ctx, struct insn *insn, enum seg seg, insn_fn fn)
{
	if (!in_64bit_mode(ctx->vcpu) || !guest_cpuid_has(ctx->vcpu, 7, 0, CPUID_EBX, 0))
		return op_ud;
	operand_to_reg(ctx, 0, insn);
	insn->opsize = operand_bytes(ctx, 0);
	insn->cc = seg;
	return fn;
}

static insn_fn select_end(struct insn *insn, insn_fn fn)
{
	insn->flags |= INSN_END_BLOCK;
	return fn;
}

insn_fn syscall_select(const struct decode_ctx *ctx, struct insn *insn)
{
	bool rex_w = in_64bit_mode(ctx->vcpu) && ctx->zi->raw.rex.W;

	switch (ctx->zi->mnemonic) {
	case ZYDIS_MNEMONIC_SYSCALL: return select_end(insn, op_syscall);
	case ZYDIS_MNEMONIC_SYSENTER: return select_end(insn, op_sysenter);
	case ZYDIS_MNEMONIC_SYSRET:
		insn->opsize = rex_w ? 8 : 4;
		return select_end(insn, op_sysret);
	case ZYDIS_MNEMONIC_SYSEXIT:
		insn->opsize = rex_w ? 8 : 4;
		return select_end(insn, op_sysexit);
	case ZYDIS_MNEMONIC_SWAPGS: return in_64bit_mode(ctx->vcpu) ? op_swapgs : op_ud;
	case ZYDIS_MNEMONIC_RDFSBASE: return select_base(ctx, insn, SEG_FS, op_rdbase);
	case ZYDIS_MNEMONIC_RDGSBASE: return select_base(ctx, insn, SEG_GS, op_rdbase);
	case ZYDIS_MNEMONIC_WRFSBASE: return select_base(ctx, insn, SEG_FS, op_wrbase);
	case ZYDIS_MNEMONIC_WRGSBASE: return select_base(ctx, insn, SEG_GS, op_wrbase);
	case ZYDIS_MNEMONIC_VMCALL:
		return select_end(insn, host_is_amd() ? op_hypercall_foreign : op_hypercall);
	case ZYDIS_MNEMONIC_VMMCALL:
		return select_end(insn, host_is_amd() ? op_hypercall : op_hypercall_foreign);
	default: return NULL;
	}
}

/* SPDX-License-Identifier: MIT */
/*
 * Software interrupts, IRET in all its forms, and the flag instructions whose
 * effect depends on IOPL, vm86 and the virtual interrupt flag.
 */
#include <string.h>

#include "x86/interp/operand.h"
#include "x86/ops/descriptor.h"

#define FLAGS_ARITH (X86_EFLAGS_OSZAPC | X86_EFLAGS_TF | X86_EFLAGS_DF | X86_EFLAGS_NT)
#define FLAGS_HIGH (X86_EFLAGS_AC | X86_EFLAGS_ID)

static bool vme(const struct vcpu *vcpu)
{
	return vcpu->arch.vm86 && (vcpu->arch.cr4 & X86_CR4_VME);
}

static bool pvi(const struct vcpu *vcpu)
{
	return vcpu->arch.protected_mode && vcpu->arch.cpl == 3 && (vcpu->arch.cr4 & X86_CR4_PVI);
}

static enum exec write_flags(struct vcpu *vcpu, u64 value, u64 mask)
{
	u64 old = vcpu->arch.rflags;

	vcpu->arch.rflags = (old & ~mask) | (value & mask) | X86_EFLAGS_FIXED;
	if (((old ^ vcpu->arch.rflags) & X86_EFLAGS_AC) && vcpu->arch.mmu)
		mmu_select_tlb(vcpu);
	return rflags_written(vcpu, old);
}

/* ---- INT n, INT3, INTO, INT1, BOUND -------------------------------------------- */

static enum exec deliver_soft(struct vcpu *vcpu, const struct insn *insn, u8 vector, enum event_type type)
{
	struct rip_mark mark = rip_mark(vcpu);
	enum exec r;

	vcpu->arch.rip = (vcpu->arch.rip + insn->len) & ip_mask(vcpu);
	r = deliver_event(vcpu, vector, type, false, 0);
	rip_restore(vcpu, mark, r);
	return r;
}

/* The interrupt redirection bitmap: 32 bytes below the I/O bitmap. */
static enum exec int_redirected(struct vcpu *vcpu, u8 vector, bool *redirected)
{
	const struct segment *tr = &vcpu->arch.seg[SEG_TR];
	u16 io_base;
	u32 at;
	u8 byte;
	enum exec r;

	*redirected = false;
	if (!(tr->ar & 8) || tr->limit < 103)
		return queue_gp(vcpu, 0);
	r = mem_read(vcpu, tr->base + 102, &io_base, 2, MMU_READ | MMU_IMPLICIT);
	if (r != EXEC_OK)
		return r;
	at = io_base - 32u + vector / 8;
	if (io_base < 32 || at > tr->limit)
		return queue_gp(vcpu, 0);
	r = mem_read(vcpu, tr->base + at, &byte, 1, MMU_READ | MMU_IMPLICIT);
	*redirected = r == EXEC_OK && !(byte >> (vector & 7) & 1);
	return r;
}

static enum exec deliver_vm86_int(struct vcpu *vcpu, const struct insn *insn)
{
	u64 image = vcpu->arch.rflags, clear = X86_EFLAGS_TF | X86_EFLAGS_NT;
	struct rip_mark mark = rip_mark(vcpu);
	enum exec r;

	if (iopl(vcpu) == 3) {
		clear |= X86_EFLAGS_IF;
	} else {
		clear |= X86_EFLAGS_VIF;
		image = (image & ~(u64)X86_EFLAGS_IF) | X86_EFLAGS_IOPL |
			(image & X86_EFLAGS_VIF ? X86_EFLAGS_IF : 0);
	}
	vcpu->arch.rip = (vcpu->arch.rip + insn->len) & ip_mask(vcpu);
	r = deliver_real(vcpu, insn->imm, image, clear);
	rip_restore(vcpu, mark, r);
	return r;
}

static enum exec op_int(struct vcpu *vcpu, const struct insn *insn)
{
	bool redirected;

	if (vme(vcpu)) {
		enum exec r = int_redirected(vcpu, insn->imm, &redirected);

		if (r != EXEC_OK)
			return r;
		if (redirected)
			return deliver_vm86_int(vcpu, insn);
	}
	if (vcpu->arch.vm86 && iopl(vcpu) < 3)
		return queue_gp(vcpu, 0);
	return deliver_soft(vcpu, insn, insn->imm, EVENT_SOFT_INT);
}

static enum exec op_int3(struct vcpu *vcpu, const struct insn *insn)
{
	u32 debug = vcpu->guest_debug.control;

	if ((debug & KVM_GUESTDBG_ENABLE) && (debug & KVM_GUESTDBG_USE_SW_BP)) {
		vcpu->run->exit_reason = named_exit(KVM_EXIT_DEBUG);
		vcpu->run->debug.arch = (struct kvm_debug_exit_arch){
			.exception = BP_VECTOR, .pc = linear_rip(vcpu),
		};
		return EXEC_EXIT;
	}
	return deliver_soft(vcpu, insn, BP_VECTOR, EVENT_SOFT_EXC);
}

static enum exec op_into(struct vcpu *vcpu, const struct insn *insn)
{
	if (!(vcpu->arch.rflags & X86_EFLAGS_OF))
		return EXEC_OK;
	return deliver_soft(vcpu, insn, OF_VECTOR, EVENT_SOFT_EXC);
}

/* ICEBP: a hardware #DB for the gate (no DPL check, EXT set), a trap for rip. */
static enum exec op_int1(struct vcpu *vcpu, const struct insn *insn)
{
	enum exec r = deliver_soft(vcpu, insn, DB_VECTOR, EVENT_EXCEPTION);

	/* Not the guest's fault: the instruction, not the event, is what runs again. */
	if (r != EXEC_BRANCH && r != EXEC_FAULT)
		vcpu->arch.exception.injected = false;
	return r;
}

static enum exec op_bound(struct vcpu *vcpu, const struct insn *insn)
{
	unsigned size = insn->opsize;
	u8 buf[8];
	s32 v, lo, hi;
	gva_t va;
	enum exec r = insn_linear(vcpu, insn, 2 * size, false, &va);

	if (r == EXEC_OK)
		r = mem_read(vcpu, va, buf, 2 * size, mmu_data_access(vcpu, MMU_READ));
	if (r != EXEC_OK)
		return r;
	if (size == 2) {
		s16 pair[2];

		memcpy(pair, buf, 4);
		v = (s16)vcpu->arch.regs[insn->reg];
		lo = pair[0];
		hi = pair[1];
	} else {
		v = (s32)vcpu->arch.regs[insn->reg];
		memcpy(&lo, buf, 4);
		memcpy(&hi, buf + 4, 4);
	}
	return v < lo || v > hi ? queue_exception(vcpu, BR_VECTOR) : EXEC_OK;
}

/* ---- IRET ------------------------------------------------------------------------------ */

/* Bits POPF and IRET may change at this CPL and IOPL. */
static u64 flags_mask(const struct vcpu *vcpu, unsigned opsize)
{
	u64 mask = FLAGS_ARITH;

	if (vcpu->arch.cpl <= iopl(vcpu))
		mask |= X86_EFLAGS_IF;
	if (vcpu->arch.cpl == 0)
		mask |= X86_EFLAGS_IOPL;
	if (opsize > 2)
		mask |= FLAGS_HIGH | X86_EFLAGS_RF;
	return mask;
}

/* Set flags after the jump; the engine polls requests between blocks, so EXEC_BRANCH suffices. */
static enum exec iret_flags(struct vcpu *vcpu, u64 value, u64 mask)
{
	(void)write_flags(vcpu, value, mask);
	return EXEC_BRANCH;
}

/* 16-bit POPF and IRET in vm86 under VME: IF is virtual. False: #GP. */
static bool vme_flags(const struct vcpu *vcpu, u64 *value, u64 *mask)
{
	if ((*value & X86_EFLAGS_TF) || ((*value & X86_EFLAGS_IF) && (vcpu->arch.rflags & X86_EFLAGS_VIP)))
		return false;
	*mask = FLAGS_ARITH | X86_EFLAGS_VIF;
	*value = (*value & ~(u64)X86_EFLAGS_VIF) | (*value & X86_EFLAGS_IF ? X86_EFLAGS_VIF : 0);
	return true;
}

static enum exec iret_real(struct vcpu *vcpu, const struct insn *insn)
{
	struct stack_ref st = stack_current(vcpu);
	u64 vals[3], mask = FLAGS_ARITH | X86_EFLAGS_IF;
	struct segment cs;
	enum exec r;

	if (vcpu->arch.vm86 && iopl(vcpu) < 3 && !(vme(vcpu) && insn->opsize == 2))
		return queue_gp(vcpu, 0);
	r = stack_frame_read(vcpu, &st, insn->opsize, 0, vals, 3);
	if (r != EXEC_OK)
		return r;
	if (!vcpu->arch.vm86)
		mask |= X86_EFLAGS_IOPL;
	if (insn->opsize > 2)
		mask |= FLAGS_HIGH | X86_EFLAGS_RF;
	if (vcpu->arch.vm86 && iopl(vcpu) < 3 && !vme_flags(vcpu, &vals[2], &mask))
		return queue_gp(vcpu, 0);
	cs = segment_real(vcpu, &vcpu->arch.seg[SEG_CS], vals[1]);
	if (vals[0] > cs.limit)
		return queue_gp(vcpu, 0);
	stack_set_sp(vcpu, st.sp + 3 * insn->opsize, st.mask);
	vcpu->arch.seg[SEG_CS] = cs;
	vcpu->arch.rip = vals[0];
	vcpu_update_mode(vcpu);
	return iret_flags(vcpu, vals[2], mask);
}

static enum exec iret_task(struct vcpu *vcpu, const struct insn *insn)
{
	struct rip_mark mark = rip_mark(vcpu);
	u16 link;
	enum exec r = mem_read(vcpu, vcpu->arch.seg[SEG_TR].base, &link, 2, MMU_READ | MMU_IMPLICIT);

	if (r != EXEC_OK)
		return r;
	vcpu->arch.rip = (vcpu->arch.rip + insn->len) & ip_mask(vcpu);
	r = task_switch(vcpu, link, TASK_IRET, false, 0);
	rip_restore(vcpu, mark, r);
	return r;
}

/* Ring 0 with VM in the image: nine doublewords. */
static enum exec iret_to_vm86(struct vcpu *vcpu, const struct stack_ref *st, const u64 *head)
{
	static const u8 order[] = { SEG_ES, SEG_DS, SEG_FS, SEG_GS };
	struct vcpu_arch *a = &vcpu->arch;
	u64 tail[6], old = a->rflags;
	enum exec r = stack_frame_read(vcpu, st, 4, 12, tail, 6);

	if (r != EXEC_OK)
		return r;
	a->rip = (u16)head[0];
	vcpu_set_rflags(vcpu, head[2]);
	a->seg[SEG_CS] = segment_real(vcpu, &a->seg[SEG_CS], head[1]);
	a->seg[SEG_SS] = segment_real(vcpu, &a->seg[SEG_SS], tail[1]);
	for (unsigned i = 0; i < 4; i++)
		a->seg[order[i]] = segment_real(vcpu, &a->seg[order[i]], tail[2 + i]);
	a->regs[RSP] = (u32)tail[0];
	vcpu_update_mode(vcpu);
	if (a->mmu)
		mmu_select_tlb(vcpu);
	(void)rflags_written(vcpu, old);
	return EXEC_BRANCH;
}

static enum exec iret_protected(struct vcpu *vcpu, const struct insn *insn)
{
	struct stack_ref st = stack_current(vcpu);
	u64 head[3], tail[2] = { 0, 0 }, mask = flags_mask(vcpu, insn->opsize);
	bool wide = in_64bit_mode(vcpu), outer;
	struct segment cs, ss = { 0 };
	unsigned cpl;
	enum exec r = stack_frame_read(vcpu, &st, insn->opsize, 0, head, 3);

	if (r != EXEC_OK)
		return r;
	if (insn->opsize == 4 && (head[2] & X86_EFLAGS_VM) && !vcpu->arch.cpl && !vcpu->arch.long_mode)
		return iret_to_vm86(vcpu, &st, head);
	r = check_return_cs(vcpu, head[1], head[0], &cs);
	if (r != EXEC_OK)
		return r;
	cpl = SEL_RPL(head[1]);
	outer = cpl > vcpu->arch.cpl;
	if (outer || wide) {
		r = stack_frame_read(vcpu, &st, insn->opsize, 3 * insn->opsize, tail, 2);
		if (r == EXEC_OK)
			r = check_outer_ss(vcpu, tail[1], cpl, cs.ar, &ss);
		if (r != EXEC_OK)
			return r;
	}
	if (!vcpu->arch.cpl && insn->opsize > 2)
		mask |= X86_EFLAGS_VIF | X86_EFLAGS_VIP;
	vcpu->arch.rip = code_target(vcpu, &cs, head[0]);
	if (outer || wide)
		vcpu->arch.seg[SEG_SS] = ss;
	commit_cs(vcpu, cs, cpl);
	if (outer || wide)
		stack_set_sp(vcpu, tail[0], stack_mask(vcpu));
	else
		stack_set_sp(vcpu, st.sp + 3 * insn->opsize, st.mask);
	if (outer)
		drop_inner_segments(vcpu);
	return iret_flags(vcpu, head[2], mask);
}

static enum exec op_iret(struct vcpu *vcpu, const struct insn *insn)
{
	enum exec r;

	if (!vcpu->arch.protected_mode)
		r = iret_real(vcpu, insn);
	else if (!(vcpu->arch.rflags & X86_EFLAGS_NT))
		r = iret_protected(vcpu, insn);
	else if (vcpu->arch.long_mode)
		r = queue_gp(vcpu, 0);
	else
		r = iret_task(vcpu, insn);
	/* An IRET that faults opens NMIs too. */
	if (r == EXEC_BRANCH || r == EXEC_FAULT)
		nmi_unblock(vcpu);
	return r;
}

/* ---- PUSHF, POPF, CLI, STI ------------------------------------------------------------------ */

static enum exec op_pushf(struct vcpu *vcpu, const struct insn *insn)
{
	u64 image = vcpu->arch.rflags & ~(u64)(X86_EFLAGS_VM | X86_EFLAGS_RF);

	if (vcpu->arch.vm86 && iopl(vcpu) < 3) {
		if (!vme(vcpu) || insn->opsize != 2)
			return queue_gp(vcpu, 0);
		image = (image & ~(u64)X86_EFLAGS_IF) | X86_EFLAGS_IOPL |
			(image & X86_EFLAGS_VIF ? X86_EFLAGS_IF : 0);
	}
	return stack_push(vcpu, insn->opsize, image);
}

static enum exec op_popf(struct vcpu *vcpu, const struct insn *insn)
{
	bool virtual = vcpu->arch.vm86 && iopl(vcpu) < 3;
	u64 rsp = vcpu->arch.regs[RSP], value, mask = flags_mask(vcpu, insn->opsize);
	enum exec r;

	if (virtual && (!vme(vcpu) || insn->opsize != 2))
		return queue_gp(vcpu, 0);
	r = stack_pop(vcpu, insn->opsize, &value);
	if (r != EXEC_OK)
		return r;
	if (virtual && !vme_flags(vcpu, &value, &mask)) {
		vcpu->arch.regs[RSP] = rsp;
		return queue_gp(vcpu, 0);
	}
	/* POPFD clears RF whatever the image says. */
	return write_flags(vcpu, value & ~(u64)X86_EFLAGS_RF, mask);
}

static enum exec op_cli(struct vcpu *vcpu, const struct insn *insn)
{
	if (vcpu->arch.cpl <= iopl(vcpu))
		vcpu->arch.rflags &= ~(u64)X86_EFLAGS_IF;
	else if (vme(vcpu) || pvi(vcpu))
		vcpu->arch.rflags &= ~(u64)X86_EFLAGS_VIF;
	else
		return queue_gp(vcpu, 0);
	return EXEC_OK;
}

static enum exec op_sti(struct vcpu *vcpu, const struct insn *insn)
{
	u64 old = vcpu->arch.rflags;

	if (vcpu->arch.cpl <= iopl(vcpu)) {
		if (old & X86_EFLAGS_IF)
			return EXEC_OK;
		vcpu->arch.rflags |= X86_EFLAGS_IF;
		vcpu->arch.interrupt_shadow = KVM_X86_SHADOW_INT_STI;
		return rflags_written(vcpu, old);
	}
	if (!(vme(vcpu) || pvi(vcpu)) || (old & X86_EFLAGS_VIP))
		return queue_gp(vcpu, 0);
	vcpu->arch.rflags |= X86_EFLAGS_VIF;
	return EXEC_OK;
}

/* ---- LAHF, SAHF, CLAC, STAC -------------------------------------------------------------------- */

#define SAHF_MASK (X86_EFLAGS_CF | X86_EFLAGS_PF | X86_EFLAGS_AF | X86_EFLAGS_ZF | X86_EFLAGS_SF)

static enum exec op_lahf(struct vcpu *vcpu, const struct insn *insn)
{
	gpr_write(vcpu, RAX, 1, true, (vcpu->arch.rflags & SAHF_MASK) | X86_EFLAGS_FIXED);
	return EXEC_OK;
}

static enum exec op_sahf(struct vcpu *vcpu, const struct insn *insn)
{
	u64 ah = gpr_read(vcpu, RAX, 1, true);

	vcpu->arch.rflags = (vcpu->arch.rflags & ~(u64)SAHF_MASK) | (ah & SAHF_MASK);
	return EXEC_OK;
}

static enum exec op_clac(struct vcpu *vcpu, const struct insn *insn)
{
	if (vcpu->arch.cpl)
		return queue_ud(vcpu);
	vcpu->arch.rflags &= ~(u64)X86_EFLAGS_AC;
	mmu_select_tlb(vcpu);
	return EXEC_OK;
}

static enum exec op_stac(struct vcpu *vcpu, const struct insn *insn)
{
	if (vcpu->arch.cpl)
		return queue_ud(vcpu);
	vcpu->arch.rflags |= X86_EFLAGS_AC;
	mmu_select_tlb(vcpu);
	return EXEC_OK;
}

/* ---- selection ------------------------------------------------------------------------------------ */

static insn_fn select_sized(struct insn *insn, unsigned opsize, insn_fn fn)
{
	insn->opsize = opsize;
	return fn;
}

static insn_fn select_end(struct insn *insn, unsigned opsize, insn_fn fn)
{
	insn->flags |= INSN_END_BLOCK;
	return select_sized(insn, opsize, fn);
}

insn_fn iret_select(const struct decode_ctx *ctx, struct insn *insn)
{
	struct vcpu *vcpu = ctx->vcpu;

	switch (ctx->zi->mnemonic) {
	case ZYDIS_MNEMONIC_INT:
		insn->imm = operand_imm(ctx, 0) & 0xff;
		return select_end(insn, 0, op_int);
	case ZYDIS_MNEMONIC_INT3: return select_end(insn, 0, op_int3);
	case ZYDIS_MNEMONIC_INTO: return select_end(insn, 0, op_into);
	case ZYDIS_MNEMONIC_INT1: return select_end(insn, 0, op_int1);
	case ZYDIS_MNEMONIC_BOUND:
		operand_to_reg(ctx, 0, insn);
		return select_sized(insn, operand_bytes(ctx, 0), op_bound);
	case ZYDIS_MNEMONIC_IRET: return select_end(insn, 2, op_iret);
	case ZYDIS_MNEMONIC_IRETD: return select_end(insn, 4, op_iret);
	case ZYDIS_MNEMONIC_IRETQ: return select_end(insn, 8, op_iret);
	case ZYDIS_MNEMONIC_PUSHF: return select_sized(insn, 2, op_pushf);
	case ZYDIS_MNEMONIC_PUSHFD: return select_sized(insn, 4, op_pushf);
	case ZYDIS_MNEMONIC_PUSHFQ: return select_sized(insn, 8, op_pushf);
	case ZYDIS_MNEMONIC_POPF: return select_sized(insn, 2, op_popf);
	case ZYDIS_MNEMONIC_POPFD: return select_sized(insn, 4, op_popf);
	case ZYDIS_MNEMONIC_POPFQ: return select_sized(insn, 8, op_popf);
	case ZYDIS_MNEMONIC_CLI: return op_cli;
	case ZYDIS_MNEMONIC_STI: return select_end(insn, 0, op_sti);
	case ZYDIS_MNEMONIC_LAHF: return op_lahf;
	case ZYDIS_MNEMONIC_SAHF: return op_sahf;
	case ZYDIS_MNEMONIC_CLAC:
	case ZYDIS_MNEMONIC_STAC:
		if (!guest_cpuid_has(vcpu, 7, 0, CPUID_EBX, 20))
			return op_ud;
		return ctx->zi->mnemonic == ZYDIS_MNEMONIC_CLAC ? op_clac : op_stac;
	default:
		return NULL;
	}
}

/* SPDX-License-Identifier: MIT */
/*
 * The interpreter's loop: find the block at rip, check that its bytes are still
 * there, call one handler per instruction.
 *
 *  1. rip is exact whenever a handler runs and after it.
 *  2. Whatever changes what the next instruction means (CPL, mode, mappings)
 *     is looked at between blocks; a handler that changes it mid-block returns
 *     EXEC_END or EXEC_BRANCH.
 *  3. Everything rare (trap flag, RFLAGS.RF, breakpoints, interrupt shadow, the
 *     segment limit) goes through exec_one(); the loop only asks whether any of it is there.
 *  4. The engine is left when interrupts become enabled (the run loop may have one
 *     to inject), and when a request is set. A single instruction is never
 *     refused because of a request: it may be the completion of an exit.
 */
#include <stdlib.h>

#include "x86/debug.h"
#include "x86/interp/interp.h"

static bool interp_create(struct vcpu *vcpu)
{
	struct interp *in = calloc(1, sizeof(*in));

	if (!in)
		return false;
	if (block_cache_init(&in->blocks)) {
		free(in);
		return false;
	}
	if (thunk_cache_init(&in->thunks)) {
		block_cache_destroy(&in->blocks);
		free(in);
		return false;
	}
	vcpu->arch.interp = in;
	return true;
}

void interp_destroy(struct vcpu *vcpu)
{
	struct interp *in = vcpu->arch.interp;

	if (!in)
		return;
	vcpu->arch.interp = NULL;
	thunk_cache_destroy(&in->thunks);
	block_cache_destroy(&in->blocks);
	free(in);
}

void interp_flush(struct vcpu *vcpu)
{
	if (vcpu->arch.interp)
		block_cache_forget_jumps(&vcpu->arch.interp->blocks);
}

u32 interp_generation(struct vcpu *vcpu)
{
	return vcpu->arch.interp ? vcpu->arch.interp->generation : 0;
}

bool interp_prepare(struct vcpu *vcpu)
{
	return likely(vcpu->arch.interp) || interp_create(vcpu);
}

/* Make room for the thunks of nr instructions by dropping everything, if need be. */
void interp_make_room(struct vcpu *vcpu, unsigned nr)
{
	if (unlikely(!thunk_cache_has_room(&vcpu->arch.interp->thunks, nr)))
		block_cache_reset(vcpu);
}

/* The verified block at rip, or NULL with *r. */
static inline struct block *block_at_rip(struct vcpu *vcpu, enum exec *r)
{
	gva_t va = linear_rip(vcpu);
	struct jump_entry *e = &vcpu->arch.interp->blocks.jump[jump_index(va)];

	if (likely(e->va == va && e->block && e->mode_key == vcpu->arch.mode_key &&
		   e->generation == vcpu->arch.mmu->tlbs[0].fetch_generation) &&
	    likely(block_matches_at(e->block, e->host) == 1))
		return e->block;
	return block_lookup_slow(vcpu, va, r);
}

static inline bool within_cs_limit(const struct vcpu *vcpu, unsigned len)
{
	return in_64bit_mode(vcpu) || vcpu->arch.rip + len - 1 <= vcpu->arch.seg[SEG_CS].limit;
}

static void enter_block(struct vcpu *vcpu, struct block *b)
{
	vcpu->arch.block_abort = false;
	vcpu->arch.code_page = b->gpa & PAGE_MASK;
	if (unlikely(b->unmarks != vcpu->arch.mmu->interp_unmarks))
		block_mark_pages(vcpu, b);
	mmu_select_tlb(vcpu);
}

/* ---- one instruction, with everything that can be asked of one ------------------ */

static bool is_software_event(const struct insn *insn)
{
	switch (insn->mnemonic) {
	case ZYDIS_MNEMONIC_INT:
	case ZYDIS_MNEMONIC_INT1:
	case ZYDIS_MNEMONIC_INT3:
	case ZYDIS_MNEMONIC_INTO:
	case ZYDIS_MNEMONIC_SYSCALL:
	case ZYDIS_MNEMONIC_SYSENTER:
		return true;
	default:
		return false;
	}
}

/* Is a single-step trap due after this instruction? tf is RFLAGS.TF before it. */
static bool step_trap_due(const struct vcpu *vcpu, const struct insn *insn, bool tf)
{
	u32 control = vcpu->guest_debug.control;

	if ((control & KVM_GUESTDBG_ENABLE) && (control & KVM_GUESTDBG_SINGLESTEP))
		return true;
	if (!tf || (vcpu->arch.interrupt_shadow & KVM_X86_SHADOW_INT_MOV_SS))
		return false;
	return !is_software_event(insn) || (vcpu->arch.rflags & X86_EFLAGS_TF);
}

static void retire(struct vcpu *vcpu, const struct insn *insn, u64 rflags, u8 shadow)
{
	vcpu->arch.interrupt_shadow &= ~shadow;
	/* IRET alone can set RF for what follows. */
	if (!(insn->flags & INSN_LEAVE_ENGINE))
		vcpu->arch.rflags &= ~(u64)X86_EFLAGS_RF;
	vcpu->stat.guest_instructions++;
	mmio_boundary(vcpu);
	if (step_trap_due(vcpu, insn, rflags & X86_EFLAGS_TF)) {
		vcpu->arch.db_trap = true;
		vcpu->arch.db_dr6 |= DR6_BS;
	}
}

static enum exec exec_one(struct vcpu *vcpu)
{
	struct vcpu_arch *a = &vcpu->arch;
	u8 shadow = a->interrupt_shadow;
	u64 rflags = a->rflags, dr6 = 0;
	u64 mask = ip_mask(vcpu);
	const struct insn *insn;
	struct block *b;
	enum exec r;

	if (unlikely(a->eff_dr7 & 0xff) && !(shadow & KVM_X86_SHADOW_INT_MOV_SS) &&
	    debug_check_code_bp(vcpu, &dr6))
		return queue_db(vcpu, dr6);
	b = block_at_rip(vcpu, &r);
	if (!b)
		return r;
	insn = b->insns;
	if (!within_cs_limit(vcpu, insn->len))
		return queue_gp(vcpu, 0);
	enter_block(vcpu, b);
	r = insn->fn(vcpu, insn);
	if (r == EXEC_OK || r == EXEC_END)
		a->rip = (a->rip + insn->len) & mask;
	if (r == EXEC_OK || r == EXEC_END || r == EXEC_BRANCH)
		retire(vcpu, insn, rflags, shadow);
	a->code_page = ~0ull;
	return r == EXEC_OK ? EXEC_END : r;
}

/* ---- many ------------------------------------------------------------------------- */

/* EXEC_OK: went off its end. EXEC_BRANCH: by a branch that allows to go on. */
static inline enum exec exec_block(struct vcpu *vcpu, const struct block *b)
{
	struct vcpu_arch *a = &vcpu->arch;
	const struct insn *insn = b->insns, *end = insn + b->nr;
	u64 mask = ip_mask(vcpu);
	enum exec r;

	do {
		r = insn->fn(vcpu, insn);
		if (unlikely(r != EXEC_OK))
			break;
		a->rip = (a->rip + insn->len) & mask;
		mmio_boundary(vcpu);
		insn++;
		if (unlikely(a->block_abort))
			break;
	} while (insn != end);
	vcpu->stat.guest_instructions += insn - b->insns;
	if (likely(r == EXEC_OK))
		return r;
	if (r == EXEC_END)
		a->rip = (a->rip + insn->len) & mask;
	if (r == EXEC_END || r == EXEC_BRANCH) {
		vcpu->stat.guest_instructions++;
		mmio_boundary(vcpu);
	}
	if (r == EXEC_BRANCH && unlikely(insn->flags & INSN_LEAVE_ENGINE))
		return EXEC_END;
	return r;
}

static enum exec run_blocks(struct vcpu *vcpu)
{
	struct vcpu_arch *a = &vcpu->arch;
	/* Flags that, once set, want the slow way or the run loop. */
	const u64 watch = X86_EFLAGS_TF | X86_EFLAGS_RF |
			  (a->rflags & X86_EFLAGS_IF ? 0 : X86_EFLAGS_IF);
	enum exec r = EXEC_OK;

	for (;;) {
		struct block *b;

		if (unlikely(vcpu_has_requests(vcpu)))
			return EXEC_RETRY;
		/* The translator's turn. */
		if (a->dbt && in_flat_mode(vcpu))
			return EXEC_END;
		if (unlikely((a->rflags & watch) | a->interrupt_shadow))
			return a->rflags & watch & ~(u64)X86_EFLAGS_RF || a->interrupt_shadow ?
				       EXEC_END : exec_one(vcpu);
		b = block_at_rip(vcpu, &r);
		if (unlikely(!b))
			return r;
		if (unlikely(!within_cs_limit(vcpu, b->len)))
			return exec_one(vcpu);
		enter_block(vcpu, b);
		r = exec_block(vcpu, b);
		if (unlikely(r != EXEC_OK && r != EXEC_BRANCH))
			return r;
	}
}

static enum exec exec_counted(struct vcpu *vcpu, const struct block *b, u32 nr, u32 *done)
{
	struct vcpu_arch *a = &vcpu->arch;

	for (u32 i = 0; i < b->nr && *done < nr && !a->block_abort; i++) {
		const struct insn *insn = &b->insns[i];
		u64 next = (a->rip + insn->len) & ip_mask(vcpu);
		u8 shadow = a->interrupt_shadow;
		enum exec r = insn->fn(vcpu, insn);

		if (r != EXEC_OK && r != EXEC_END && r != EXEC_BRANCH)
			return r;
		if (r != EXEC_BRANCH)
			a->rip = next;
		a->interrupt_shadow &= ~shadow;
		mmio_boundary(vcpu);
		++*done;
		if (r == EXEC_BRANCH && a->rip != next)
			return EXEC_BRANCH;
		if (r != EXEC_OK)
			break;
	}
	return EXEC_OK;
}

enum exec interp_run_counted(struct vcpu *vcpu, u32 nr, u32 *done)
{
	enum exec r = EXEC_OK;

	for (*done = 0; *done < nr && r == EXEC_OK;) {
		struct block *b = block_at_rip(vcpu, &r);

		if (!b)
			break;
		enter_block(vcpu, b);
		r = exec_counted(vcpu, b, nr, done);
	}
	vcpu->arch.code_page = ~0ull;
	vcpu->arch.block_abort = false;
	return r == EXEC_BRANCH ? EXEC_OK : r;
}

enum exec interp_run(struct vcpu *vcpu, bool single_instruction)
{
	enum exec r;

	if (unlikely(!vcpu->arch.interp) && !interp_create(vcpu)) {
		vm_bug(vcpu->vm, "no memory for the interpreter", __FILE__, __LINE__);
		return EXEC_RETRY;
	}
	if (single_instruction || vcpu->arch.interrupt_shadow || (vcpu->arch.rflags & X86_EFLAGS_TF))
		return exec_one(vcpu);
	r = run_blocks(vcpu);
	vcpu->arch.code_page = ~0ull;
	return r;
}

/* SPDX-License-Identifier: MIT */
/*
 * The translator's dispatcher: what happens between two visits to translated code.
 *
 *  1. Whatever is not plain execution of flat code (single steps, breakpoints,
 *     interrupt shadows, a first instruction whose second page cannot be had) is the interpreter's.
 *  2. Translated code is entered only with no request pending, jump tables that belong to the
 *     present mappings and mode, and no noted store to code unexamined, other vCPUs' included.
 *  3. gs base is the client's except inside dbt_run().
 */
#include <asm/prctl.h>
#include <stdlib.h>
#include <sys/auxv.h>

#include "base/log.h"
#include "host/syscall.h"
#include "kvm/sole.h"
#include "x86/dbt/dbt.h"
#include "x86/dbt/diff.h"
#include "x86/knobs.h"

/* ---- gs ------------------------------------------------------------------------------ */

#define HWCAP2_FSGSBASE BIT(1)

static bool has_fsgsbase(void)
{
	return getauxval(AT_HWCAP2) & HWCAP2_FSGSBASE;
}

static u64 gs_swap(u64 base)
{
	u64 old;

	if (likely(has_fsgsbase())) {
		asm volatile("rdgsbase %0" : "=r"(old));
		asm volatile("wrgsbase %0" : : "r"(base) : "memory");
	} else {
		host_syscall(SYS_arch_prctl, ARCH_GET_GS, &old, 0, 0);
		host_syscall(SYS_arch_prctl, ARCH_SET_GS, base, 0, 0);
	}
	return old;
}

/* ---- the call of a handler ---------------------------------------------------------------- */

u32 dbt_call_insn(struct vcpu *vcpu, u32 site)
{
	struct vcpu_arch *a = &vcpu->arch;
	struct dbt *d = a->dbt;
	const struct dbt_site *s = &d->sites[site];
	const u32 mode_key = a->mode_key;
	enum exec r = EXEC_RETRY;
	struct insn insn;

	dbt_take_x87_notes(vcpu);
	a->rip = dbt_absolute(vcpu, s->relative, s->rip);
	vcpu->stat.dbt_slow_calls++;
	dbt_site_insn(d, s, &insn);
	if (likely(!d->abort_access))
		r = insn.fn(vcpu, &insn);
	d->abort_access = false;
	if (r == EXEC_OK || r == EXEC_END || r == EXEC_BRANCH)
		mmio_boundary(vcpu);
	if (likely(r == EXEC_OK)) {
		bool stale = unlikely(a->mmu->nr_code_stores) && dbt_take_code_stores(vcpu);

		/*
		 * A request may say that code changed, and this instruction may have been the one to wait for it.
		 * The mode changes without a word where 32-bit code loads DS to GS: what follows is for flat ones.
		 */
		if (likely(!stale && a->tlb == &a->mmu->tlbs[s->ctx] && a->mode_key == mode_key && !vcpu_has_requests(vcpu)))
			return DBT_CALL_DONE;
	}
	if (r == EXEC_OK || r == EXEC_END)
		a->rip = (a->rip + insn.len) & ip_mask(vcpu);
	d->result = r;
	d->left = site;
	return DBT_CALL_LEAVE;
}

/* There is no way back into a range: the jump table knows the block after the instruction, or the dispatcher finds it. */
const void *dbt_call_insn_on(struct vcpu *vcpu, u32 site)
{
	struct vcpu_arch *a = &vcpu->arch;
	struct dbt *d = a->dbt;
	const u8 len = d->sites[site].len, ctx = d->sites[site].ctx;
	if (dbt_call_insn(vcpu, site) == DBT_CALL_LEAVE)
		return NULL;
	a->rip = (a->rip + len) & ip_mask(vcpu);
	a->block_page = a->rip & PAGE_MASK;
	d->result = EXEC_OK;
	d->left = site;
	return dbt_jump_find(vcpu, ctx, a->rip);
}

/* ---- look-up ---------------------------------------------------------------------------------- */

static unsigned present_context(const struct vcpu *vcpu)
{
	return vcpu->arch.tlb - vcpu->arch.mmu->tlbs;
}

/* Jump tables are for the mappings and the mode they were filled under. */
static void check_generation(struct vcpu *vcpu, unsigned ctx)
{
	struct dbt *d = vcpu->arch.dbt;
	const struct mmu *mmu = vcpu->arch.mmu;
	bool all = d->seen_global_drops != mmu->global_drops;

	if (unlikely(all || d->seen_local_drops != mmu->local_drops)) {
		d->seen_local_drops = mmu->local_drops;
		d->seen_global_drops = mmu->global_drops;
		d->generation++;
		d->global_generation += all;
		if (all)
			dbt_unlink_far(d);
		dbt_renew_jumps(vcpu, all);
	}
	if (unlikely(d->jump_key[ctx] != vcpu->arch.mode_key)) {
		d->jump_key[ctx] = vcpu->arch.mode_key;
		dbt_flush_jumps(vcpu, ctx);
		dbt_forget_jumps(vcpu, true);
	}
}

/* Does what is known of LOCK (kvm/sole.c) no longer hold, or not yet? It matters to programs only, and these are entered from here. */
static bool sole_stale(const struct vcpu *vcpu, const struct dbt *d)
{
	return vcpu->arch.cpl == 3 && (d->sole_turn != sole_turn() || d->sole_generation != vcpu->slots_generation);
}

static coldpath void sole_renew(struct vcpu *vcpu)
{
	struct dbt *d = vcpu->arch.dbt;

	d->sole_turn = sole_turn();
	/* SMM's slots have generations of their own. */
	d->sole_generation = vcpu->as_id ? 0 : vcpu->slots_generation;
	vcpu->arch.sole = knob(KNOB_DBT_UNLOCK) && sole_ask(vcpu);
	vcpu_update_mode(vcpu);
}

/* The page after va's, where an instruction goes on. NULL: *r, or EXEC_OK for the interpreter. */
static struct dbt_page *tail_page(struct vcpu *vcpu, u64 va, bool *global, enum exec *r)
{
	gva_t next = dbt_next_page(vcpu, va);
	bool tail_global;
	gpa_t gpa;
	u8 *host;

	*r = EXEC_OK;
	if (!is_canonical(next))
		return NULL;
	*r = mmu_fetch_page(vcpu, next, &gpa, &host);
	if (*r == EXEC_UNHANDLED)
		*r = EXEC_OK;
	if (*r != EXEC_OK)
		return NULL;
	tail_global = mmu_fetch_is_global(vcpu, next);
	*global &= tail_global;
	return dbt_page_get(vcpu, gpa, host, tail_global, r);
}

static struct dbt_block *translate(struct vcpu *vcpu, u64 va, struct dbt_page *page, unsigned ctx, bool narrow, bool *global,
				   enum exec *r)
{
	struct dbt_block *b = dbt_translate(vcpu, va, page, NULL, ctx, narrow);
	struct dbt_page *tail;

	/* Where the page cannot be fetched from, the interpreter finds out whether the instruction really needs it. */
	if (likely(b) || !dbt_near_end(va) || !mmu_fetched_page(vcpu, dbt_next_page(vcpu, va)))
		return b;
	tail = tail_page(vcpu, va, global, r);
	return tail ? dbt_translate(vcpu, va, page, tail, ctx, narrow) : NULL;
}

/* NULL with *r EXEC_OK: for the interpreter. */
static struct dbt_block *block_at_rip(struct vcpu *vcpu, unsigned ctx, bool narrow, bool *global, enum exec *r)
{
	struct dbt *d = vcpu->arch.dbt;
	u64 va = vcpu->arch.rip;
	struct dbt_page *page, *tail;
	struct dbt_block *b;
	gpa_t gpa;
	u8 *host;

	if (!is_canonical(va)) {
		*r = queue_gp(vcpu, 0);
		return NULL;
	}
	*r = mmu_fetch_page(vcpu, va, &gpa, &host);
	if (*r != EXEC_OK)
		return NULL;
	dbt_page_expect(d, gpa, va);
	if (unlikely(!dbt_has_room(d)))
		dbt_flush_all(vcpu);
	*global = mmu_fetch_is_global(vcpu, va);
	page = dbt_page_get(vcpu, gpa, host, *global, r);
	if (!page)
		return NULL;
	b = dbt_block_find(page, dbt_block_va(vcpu, ctx, va), vcpu->arch.mode_key, ctx, narrow);
	if (likely(b && !b->head))
		return b;
	if (b) {
		tail = tail_page(vcpu, va, global, r);
		if (!tail || (!b->dead && b->tail_gpa == tail->gpa))
			return tail ? b : NULL;
		dbt_drop(vcpu, b->gpa);
	}
	interp_make_room(vcpu, DBT_BLOCK_INSNS + 1);
	if (unlikely(d->engine_generation != interp_generation(vcpu))) {
		d->engine_generation = interp_generation(vcpu);
		dbt_flush_all(vcpu);
		page = dbt_page_get(vcpu, gpa, host, *global, r);
		if (!page)
			return NULL;
	}
	return translate(vcpu, va, page, ctx, narrow, global, r);
}

/* ---- the loop ------------------------------------------------------------------------------------ */

/* A handler said END: is there anything that only the run loop can do? */
static bool may_go_on(const struct vcpu *vcpu)
{
	const struct vcpu_arch *a = &vcpu->arch;

	return !a->interrupt_shadow && !(a->rflags & X86_EFLAGS_TF) && !a->db_trap &&
	       !a->exit_after_insn && !(a->eff_dr7 & 0xff) && !a->triple_fault_pending &&
	       in_flat_mode(vcpu) &&
	       atomic_load_explicit(&((struct vcpu *)vcpu)->arch.mp_state, memory_order_relaxed) ==
		       KVM_MP_STATE_RUNNABLE;
}

/* A near branch found nothing in the jump table, as its target is impossible: as if it had not run, its handler raises the exception. */
static enum exec impossible_target(struct vcpu *vcpu, const struct dbt_site *s)
{
	u64 *rsp = &vcpu->arch.regs[RSP];
	struct insn insn;

	dbt_site_insn(vcpu->arch.dbt, s, &insn);
	if (insn.mnemonic == ZYDIS_MNEMONIC_RET)
		*rsp -= 8 + (u16)insn.imm;
	else if (insn.mnemonic == ZYDIS_MNEMONIC_CALL)
		*rsp += 8;
	vcpu->arch.rip = dbt_absolute(vcpu, s->relative, s->rip);
	return insn.fn(vcpu, &insn);
}

static bool leads_to(const struct dbt *d, const struct dbt_exit *x, const struct dbt_block *b)
{
	return x->target == b->va && x->ctx == b->ctx && x->mode_key == b->mode_key && x->narrow == b->narrow && dbt_exit_fits(d, x, b->gpa);
}

/* The same of an exit to another page, from the page that was executed last, which has led here. */
static bool reaches(const struct vcpu *vcpu, const struct dbt_exit *x, const struct dbt_block *b)
{
	return x->ctx == b->ctx && x->mode_key == b->mode_key && !b->narrow &&
	       dbt_is_relative(vcpu, b->ctx, vcpu->arch.rip) == x->relative;
}

typedef u32 (*enter_fn)(struct vcpu *vcpu, const void *code);

static enum exec dispatch(struct vcpu *vcpu)
{
	struct vcpu_arch *a = &vcpu->arch;
	struct dbt *d = a->dbt;
	enter_fn enter = (enter_fn)(d->mem.rx + d->enter);
	const struct dbt_exit *link = NULL;
	bool indirect = false, global = false, narrow = false;
	const bool linking = knob(KNOB_DBT_LINK) && !d->diff;

	for (;;) {
		struct dbt_block *b;
		unsigned ctx;
		u64 flushes;
		enum exec r;
		u32 why;

		if (unlikely(vcpu_has_requests(vcpu)))
			return EXEC_RETRY;
		if (unlikely(!may_go_on(vcpu)))
			return EXEC_END;
		/* No breakpoints are set: nothing heeds it, and the next instruction would clear it. */
		a->rflags &= ~(u64)X86_EFLAGS_RF;
		flushes = vcpu->stat.dbt_flushes;
		/* An instruction of its own may have made the interpreter drop the thunks that sites point to. */
		if (unlikely(d->engine_generation != interp_generation(vcpu))) {
			d->engine_generation = interp_generation(vcpu);
			dbt_flush_all(vcpu);
		}
		if (unlikely(a->mmu->nr_code_stores))
			dbt_take_code_stores(vcpu);
		if (unlikely(d->many_vcpus) && d->code_log_seen != mmu_code_log_head(vcpu->vm))
			dbt_take_code_log(vcpu);
		if (unlikely(sole_stale(vcpu, d)))
			sole_renew(vcpu);
		mmu_select_tlb(vcpu);
		ctx = present_context(vcpu);
		check_generation(vcpu, ctx);
		b = block_at_rip(vcpu, ctx, narrow, &global, &r);
		if (unlikely(flushes != vcpu->stat.dbt_flushes))
			link = NULL; /* its record is gone */
		if (unlikely(!b)) {
			if (r != EXEC_OK)
				return r;
			r = interp_run(vcpu, true);
			if (r != EXEC_END && r != EXEC_BRANCH)
				return r;
			link = NULL;
			indirect = narrow = false;
			continue;
		}
		if (unlikely(!linking)) {
			/* For tests: every block comes back here. */
		} else if (link && !b->head && leads_to(d, link, b) && (link->linkable || (link->far && global))) {
			if (link->linkable)
				dbt_link(d, link, b);
			else
				dbt_link_far(d, link - d->exits, b);
			vcpu->stat.dbt_links++;
		} else if ((link || indirect) && !narrow) {
			if (link && link->local && !b->head && reaches(vcpu, link, b)) {
				dbt_link_local(vcpu, link, b);
				vcpu->stat.dbt_links++;
			}
			dbt_jump_add(vcpu, ctx, a->rip, b, global);
		}
		vcpu->stat.dbt_entries++;
		a->block_page = a->rip & PAGE_MASK;
		why = unlikely(d->diff) ? diff_enter(vcpu, b) : enter(vcpu, d->mem.rx + b->slot);
		dbt_take_x87_notes(vcpu);
		link = NULL;
		indirect = narrow = false;
		switch (why >> 28) {
		case DBT_DIRECT:
			link = &d->exits[why];
			narrow = link->narrow;
			a->rip = dbt_absolute(vcpu, link->relative, link->target);
			break;
		case DBT_INDIRECT:
			why &= BIT(28) - 1;
			indirect = true;
			if (unlikely(!is_canonical(a->rip)))
				return impossible_target(vcpu, &d->sites[why]);
			break;
		default:
			if (d->result != EXEC_OK && d->result != EXEC_BRANCH && d->result != EXEC_END)
				return d->result;
			if (d->result == EXEC_END && !may_go_on(vcpu))
				return EXEC_END;
			indirect = d->result == EXEC_OK;
			break;
		}
	}
}

/* ---- for the run loop --------------------------------------------------------------------------------- */

static bool asked_for(void)
{
	const char *engine = getenv("SOFTKVM_ENGINE");

	if (!engine || !*engine || !strcmp(engine, "dbt") || !strcmp(engine, "diff"))
		return true;
	if (strcmp(engine, "interp"))
		log_error("SOFTKVM_ENGINE=%s is none of interp, dbt and diff; taken as dbt", engine);
	return !!strcmp(engine, "interp");
}

bool dbt_wanted(const struct vcpu *vcpu)
{
	static _Atomic int wanted; /* 0: not asked yet */
	int w = atomic_load_explicit(&wanted, memory_order_relaxed);

	if (unlikely(!w)) {
		w = asked_for() ? 1 : -1;
		atomic_store(&wanted, w);
	}
	return w > 0;
}

enum exec dbt_run(struct vcpu *vcpu)
{
	struct vcpu_arch *a = &vcpu->arch;
	bool many = atomic_load_explicit(&vcpu->vm->nr_vcpus, memory_order_relaxed) > 1;
	enum exec r;
	u64 gs;

	/* No memory for it: the other engine can do all this one can. */
	if (unlikely(!a->dbt) && dbt_create(vcpu))
		return interp_run(vcpu, false);
	if (unlikely(!interp_prepare(vcpu) || (many && !mmu_shared_code_create(vcpu->vm)))) {
		vm_bug(vcpu->vm, "no memory for the translator", __FILE__, __LINE__);
		return EXEC_RETRY;
	}
	if (unlikely(a->dbt->many_vcpus != many || a->dbt->engine_generation != interp_generation(vcpu))) {
		a->dbt->many_vcpus = many;
		a->dbt->engine_generation = interp_generation(vcpu);
		dbt_flush_all(vcpu);
	}
	a->code_page = ~0ull;
	gs = gs_swap((u64)a->mmu);
	r = dispatch(vcpu);
	gs_swap(gs);
	a->code_page = ~0ull;
	return r;
}

/*
 * KVM_RUN is entered, or an interrupt is taken. If the client has called since, it or its devices may have written: look at
 * pages again that are not mapped globally. Nobody loads a kernel's own code into place behind its back.
 */
void dbt_recheck(struct vcpu *vcpu)
{
	u32 turns = atomic_load_explicit(&vcpu->vm->client_turns, memory_order_acquire);

	if (!vcpu->arch.mmu || vcpu->arch.dbt->client_seen == turns)
		return;
	vcpu->arch.dbt->client_seen = turns;
	vcpu->arch.dbt->seen_local_drops = vcpu->arch.mmu->local_drops - 1;
	dbt_forget_jumps(vcpu, false);
}

/* The client may have written anywhere: look at pages again before they are executed. */
void dbt_flush(struct vcpu *vcpu)
{
	if (vcpu->arch.mmu)
		vcpu->arch.dbt->seen_global_drops = vcpu->arch.mmu->global_drops - 1;
}

/* SPDX-License-Identifier: MIT */
/*
 * What lies off the straight path: slow paths, ways out, and the sites and fault rows that lead there. The code of all blocks' is
 * together, behind all straight paths (dbt.cold).
 *
 *  1. Where a slow path begins nothing of the guest has changed: the instruction's handler does all of it instead.
 *  2. Nor has an instruction that faults on the host changed anything: its handler repeats it (fault rows) and
 *     raises what is due.
 *  3. A slow path within a range does not come back, but goes on with another block. If only faults lead there it has no
 *     code: the fault row names the site.
 *  4. What is exchanged for an instruction (tinsn.high8) is so after its look-up only. Faults put it back.
 */
#include "x86/dbt/translate.h"

/* ---- sites and fault rows ---------------------------------------------------------------------- */

u32 site_new(struct trans *tr, const struct tinsn *t)
{
	struct dbt_site *s = &tr->d->sites[tr->d->nr_sites];

	*s = (struct dbt_site){
		.rip = t->rip, .imm = t->insn.imm, .disp = t->insn.disp, .record = t->record, .len = t->insn.len,
		.ctx = tr->ctx, .retired = tr->retired, .relative = tr->relative,
	};
	return tr->d->nr_sites++;
}

struct cold *slow_new(struct trans *tr, const struct tinsn *t)
{
	struct cold *c = cold_new(tr, COLD_SLOW);

	c->index = site_new(tr, t);
	c->row = tr->d->nr_faults;
	c->note = tr->note;
	if (t->in_range)
		c->insn = t;
	return c;
}

/* The next host instruction may fault. */
void put_fault_row(struct trans *tr, struct cold *c)
{
	struct dbt_fault_row *row = &tr->d->faults[tr->d->nr_faults++];

	row->at = tr->e->at;
	row->stub = tr->host ? FAULT_HOST_FLAGS : 0;
	c->nr_rows++;
}

/* The instruction is complete: where its handler's way joins again. */
void slow_end(struct trans *tr, struct cold *c, u32 live)
{
	c->resume = tr->e->at;
	c->host_flags = live && tr->host;
	c->x87 = tr->x87_live;
}

/* ---- the code ---------------------------------------------------------------------------------- */

/*
 * A range could not be had, and T0 is the address of its beginning, or where in the page that is (refill.c; for who has no refills
 * the page is never there). If it crosses pages, on without ranges. Otherwise the TLB lacks it, probably:
 * its first instruction's handler fills it, and what follows is a block with ranges of its own.
 */
static void put_cold_range(struct trans *tr, struct cold *c)
{
	const struct range *r = &tr->ranges[c->insn->range];
	struct emit *e = tr->e;
	u32 exit, crosses;

	put_alu_imm(e, W4, 4, T0, PAGE_SIZE - 1);
	put_alu_imm(e, W4, 7, T0, PAGE_SIZE - (r->hi - r->lo));
	put_x87_note(tr, &c->note); /* leaves flags alone */
	tr->retired = c->retired - 1;
	exit = put_narrow_exit_if(tr, CC_A, c->insn->rip);
	crosses = e->at - 4;
	put_mov_imm(e, T0, c->index);
	put_jmp(e, tr->d->slow_on);
	patch_rel32(e, crosses, e->at);
	put_leave(tr, exit, false);
}

/* A look-up that the TLB's second level may know: afterwards it is repeated. What leads to the slow path gets there. */
static void put_refills(struct trans *tr, struct cold *c)
{
	struct emit *e = tr->e;

	for (u32 i = 0; i < c->nr_fields; i++) {
		const struct lookup *l = &c->lookups[i];

		if (!l->retry || tr->ctx >= DBT_REFILL_CTXS)
			continue;
		patch_rel32(e, c->fields[i], e->at);
		if (l->place >= 0)
			put_mov_imm(e, T1, l->place);
		put_call(e, tr->d->refill[tr->ctx][l->kind]);
		put_jmp(e, l->retry);
		/* DBT_REFILL_SKIP bytes on. The last one is there already. */
		if (i == c->nr_fields - 1) {
			c->nr_fields--;
			return;
		}
		put_jmp(e, 0);
		c->fields[i] = e->at - 4;
	}
}

/* Faults lead to the slow path at `at`. */
static void put_fault_stub(struct trans *tr, const struct cold *c, u32 at)
{
	const u32 exchange = tr->e->at;

	if (c->high8) {
		put_exchange(tr->e, c->high8);
		put_jmp(tr->e, at);
		at = exchange;
	}
	for (u32 i = 0; i < c->nr_rows; i++)
		tr->d->faults[c->row + i].stub |= at;
}

void put_cold(struct trans *tr, struct cold *c)
{
	struct emit *e = tr->e;
	bool no_code = c->type == COLD_SLOW && c->insn && !c->nr_fields && !c->note.insn && !c->high8;
	u32 at;

	tr->retired = c->retired;
	tr->ctx = c->ctx;
	put_refills(tr, c);
	at = no_code ? FAULT_SITE | c->index : e->at;
	for (u32 i = 0; i < c->nr_fields; i++)
		patch_rel32(e, c->fields[i], at);
	switch (c->type) {
	case COLD_SLOW:
		if (no_code)
			break;
		put_x87_note(tr, &c->note);
		put_mov_imm(e, T0, c->index);
		if (c->insn) {
			put_jmp(e, tr->d->slow_on);
			break;
		}
		put_call(e, tr->d->slow);
		if (c->x87)
			put_call(e, tr->d->load_x87);
		if (c->target)
			put_code_address(tr, T0, c->target);
		if (c->host_flags)
			flags_restore(e);
		put_jmp(e, c->resume);
		break;
	case COLD_RANGE:
		put_cold_range(tr, c);
		break;
	case COLD_EXIT:
		put_cold_exit(tr, c);
		break;
	case COLD_JUMP:
		flags_save(e);
		put_jump_known(tr, c->target);
		break;
	case COLD_INDIRECT:
		put_jump_second(tr, c->index, true);
		break;
	case COLD_LINK:
		put_cold_link(tr, c);
		break;
	case COLD_RETURN:
		put_jump_indirect(tr, c->index);
		break;
	case COLD_VEC:
	case COLD_X87:
		put_call(e, c->type == COLD_VEC ? tr->d->load_vec : tr->d->load_x87);
		put_jmp(e, c->resume);
		break;
	}
	put_fault_stub(tr, c, at);
}

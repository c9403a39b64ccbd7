/* SPDX-License-Identifier: MIT */
/*
 * One block: decode, find out where flags are live and which accesses share a look-up, emit, publish.
 *
 *   classify.c   what becomes of an instruction       insns.c   its code
 *   flags.c      where flags are live, and kept       stack.c   the same for PUSH, POP and so on
 *   ranges.c     accesses that share a look-up        branch.c  the same for branches, and the block's ways out
 *   operand.c    look-ups                             cold.c    what lies off the straight path
 *   x87.c        x87 and MMX registers                locked.c  LOCKed instructions that need not be
 *
 * What must hold is said where it is done.
 */
#include <stdlib.h>

#include "x86/decode/decode.h"
#include "x86/dbt/decoded.h"
#include "x86/dbt/diff.h"
#include "x86/dbt/translate.h"
#include "x86/dbt/verify.h"
#include "x86/dbt/watch.h"

int dbt_scratch_create(struct dbt *d)
{
	d->scratch = malloc(sizeof(*d->scratch));
	return d->scratch ? 0 : -1;
}

/* ---- decoding ---------------------------------------------------------------------------------- */

#define BLOCK_BRANCHES 3

/* A conditional branch forward is not taken, mostly: what follows it belongs to the block, within reason. */
static bool goes_on_after(struct trans *tr, const struct tinsn *t)
{
	if (t->kind != K_JCC || (s64)t->insn.imm < 0 || tr->nr > DBT_BLOCK_INSNS / 2)
		return false;
	return ++tr->branches <= BLOCK_BRANCHES;
}

static u16 changed_registers(const struct tinsn *t)
{
	u16 changes = 0;
	bool high8;

	for (unsigned i = 0; i < t->zi->operand_count; i++) {
		const ZydisDecodedOperand *op = &t->ops[i];
		u8 r = op->type == ZYDIS_OPERAND_TYPE_REGISTER ? gpr_from_zydis(op->reg.value, &high8) : INSN_NOREG;

		if (r != INSN_NOREG && (op->actions & ZYDIS_OPERAND_ACTION_MASK_WRITE))
			changes |= BIT(r);
	}
	return changes;
}

void tinsn_init(struct trans *tr, struct tinsn *t)
{
	bool high8;

	t->code32 = t->zi->machine_mode != ZYDIS_MACHINE_MODE_LONG_64;
	t->changes = changed_registers(t);
	t->excluded = tr->d->diff && diff_excludes(t->zi, t->ops);
	t->kind = classify_insn(tr, t);
	t->gpr = t->ops[0].type == ZYDIS_OPERAND_TYPE_REGISTER ? gpr_from_zydis(t->ops[0].reg.value, &high8) : NOREG;
	t->cc = t->zi->opcode & 15;
	note_copy(t);
	if (t->kind == K_HANDLER) {
		t->mem = false;
		t->nr_homed = 0;
		t->vec = t->x87 = t->x87_pointers = false;
	}
	switch (t->kind) {
	case K_NATIVE:
		native_flags(t);
		break;
	case K_HANDLER:
	case K_PUSHF:
		t->reads = FLAGS_ALL;
		break;
	case K_JCC:
		t->reads = FLAGS_ALL; /* nobody knows what it leads to */
		break;
	default:
		break;
	}
	t->end = t->kind == K_HANDLER && ((t->insn.flags & INSN_END_BLOCK) ||
					  t->zi->mnemonic == ZYDIS_MNEMONIC_POPFQ ||
					  t->zi->mnemonic == ZYDIS_MNEMONIC_POPFD);
}

static void make_handler(struct tinsn *t)
{
	t->kind = K_HANDLER;
	t->mem = false;
	t->nr_homed = 0;
	t->vec = t->may_fault = t->x87 = t->x87_pointers = false;
	t->reads = FLAGS_ALL;
	t->writes = 0;
	t->end = true;
}

/* A branch whose target is impossible. */
static bool leads_nowhere(const struct trans *tr, const struct tinsn *t)
{
	switch (t->kind) {
	case K_JCC:
	case K_JMP:
	case K_CALL:
	case K_LOOP:
	case K_JRCXZ:
		return tr->width == W8 && !is_canonical(t->rip + t->insn.len + t->insn.imm);
	default:
		return false;
	}
}

/* An operand whose distance from the page no address can have: its displacement is from the instruction. */
static bool is_too_far(const struct tinsn *t)
{
	s64 disp = (s64)t->insn.disp + (s64)t->rip + t->insn.len;

	return t->relative && (t->insn.flags & INSN_RIP_REL) && disp != (s32)disp;
}

/* The instruction at bytes, which are at rip. False: not all of it is there. */
static bool decode_one(struct trans *tr, struct tinsn *t, u64 rip, const u8 *bytes, unsigned avail)
{
	const struct decoded *d = decoded_get(tr, bytes, avail);

	if (!d)
		return false;
	decoded_copy(tr->d, d, bytes, t);
	t->rip = rip;
	t->relative = tr->relative;
	if (unlikely(leads_nowhere(tr, t) || is_too_far(t)))
		make_handler(t);
	t->end |= t->kind >= K_JCC && !goes_on_after(tr, t);
	return true;
}

/* Instructions at off in page, which is at va, as many as belong to the block. */
static void decode_from(struct trans *tr, const struct dbt_page *page, gva_t va, unsigned off)
{
	for (unsigned n = 0; tr->nr < DBT_BLOCK_INSNS && off < PAGE_SIZE; n++) {
		struct tinsn *t = &tr->insns[tr->nr];
		unsigned left = min((unsigned)(PAGE_SIZE - off), DECODED_WINDOW);

		if (n % DECODED_EXPECT == 0)
			decoded_expect(tr, page->bytes + off, PAGE_SIZE - off);
		if (!decode_one(tr, t, va + off, page->bytes + off, left))
			break;
		if (unlikely(t->excluded) && tr->nr)
			break;
		t->end |= t->excluded;
		tr->nr++;
		off += t->insn.len;
		if (t->end)
			break;
	}
}

/* What follows STI runs before an interrupt is taken: both or none. */
static void dont_end_in_sti(struct trans *tr)
{
	while (tr->nr && tr->insns[tr->nr - 1].kind == K_STI) {
		if (tr->nr == 1) {
			make_handler(&tr->insns[0]);
			break;
		}
		tr->nr--;
	}
}

static void decode_block(struct trans *tr, const struct dbt_page *page)
{
	decode_from(tr, page, tr->va & PAGE_MASK, tr->va & ~PAGE_MASK);
	dont_end_in_sti(tr);
}

/*
 * A block that begins with an instruction on two pages, and goes on on the second. It is the jump table's only, which is
 * emptied when either page is mapped anew.
 */
static void decode_across(struct trans *tr, const struct dbt_page *page, const struct dbt_page *tail)
{
	unsigned head = PAGE_SIZE - (tr->va & ~PAGE_MASK);
	u8 *bytes = tr->d->scratch->bytes;
	struct tinsn *t = &tr->insns[0];

	if (tr->d->diff)
		return;
	memcpy(bytes, page->bytes + PAGE_SIZE - head, head);
	memcpy(bytes + head, tail->bytes, INSN_MAX_LEN - head);
	if (!decode_one(tr, t, tr->va, bytes, INSN_MAX_LEN) || t->insn.len <= head)
		return;
	tr->nr = 1;
	tr->head = head;
	if (!t->end)
		decode_from(tr, tail, dbt_next_page(tr->vcpu, tr->va), t->insn.len - head);
	dont_end_in_sti(tr);
}

/* ---- loops ------------------------------------------------------------------------------------- */

#define LOOP_COPIES 4

/* Does one look-up serve more than one turn? */
static bool turns_share(const struct trans *tr, unsigned body)
{
	for (unsigned i = 0; i < tr->nr_ranges; i++)
		if (tr->ranges[i].slot && tr->ranges[i].last / body > tr->ranges[i].first / body)
			return true;
	return false;
}

/*
 * A block that ends with a branch to its own beginning is a loop: the following turns belong to it, too, if that
 * saves look-ups. The branch in between leaves where it is not taken.
 */
static void unroll(struct trans *tr)
{
	const unsigned body = tr->nr, copies = min(DBT_BLOCK_INSNS / body, (unsigned)LOOP_COPIES);
	struct tinsn *last = &tr->insns[body - 1];

	if (tr->width != W8 || tr->narrow || tr->head || (last->kind != K_JCC && last->kind != K_JMP) || copies < 2 ||
	    next_rip(tr, last) + last->insn.imm != tr->va)
		return;
	for (unsigned i = 0; i < body; i++)
		if (tr->insns[i].kind == K_HANDLER)
			return;
	for (unsigned i = 1; i < copies; i++)
		memcpy(&tr->insns[i * body], tr->insns, body * sizeof(*tr->insns));
	for (unsigned i = 1; i < copies; i++) {
		struct tinsn *t = &tr->insns[i * body - 1];

		if (t->kind == K_JMP)
			t->kind = K_NOP;
		t->inverted = true;
	}
	tr->nr = body * copies;
	plan_ranges(tr);
	if (turns_share(tr, body))
		return;
	tr->nr = body;
	last->kind = tr->insns[body * copies - 1].kind;
	last->inverted = false;
}

/* ---- entries ----------------------------------------------------------------------------------- */

/* Flags are live at the beginning: where does the first instruction that cares want them? */
static bool wants_host_flags(const struct trans *tr)
{
	for (unsigned i = 0; i < tr->nr; i++) {
		const struct tinsn *t = &tr->insns[i];

		switch (t->kind) {
		case K_NOP:
		case K_LEA:
			continue;
		case K_NATIVE:
			if (t->mem || t->vec || t->x87)
				return false;
			if (t->needs)
				return true;
			continue;
		case K_JCC:
			return true;
		default:
			return false;
		}
	}
	return false;
}

/* Requests? Flags are dead or in the slot. */
static void put_poll(struct trans *tr, u32 leave_field[1])
{
	put_load(tr->e, T0, SLOT(FRAME_VCPU));
	put_alu_mem_imm(tr->e, W8, 7, MEM_BASE(T0, offsetof(struct vcpu, requests)), 0);
	*leave_field = put_jcc_later(tr->e, CC_NE);
}

/* The entries that are not on the straight path, and the way out that stands for the block itself. */
static void put_entries(struct trans *tr, struct dbt_block *b, bool live_in, u32 leave_field)
{
	struct emit *e = tr->e;
	u32 self = exit_new(tr, b->va, b->main_host);

	b->self = self;
	tr->d->exits[self].ctx = b->ctx;
	tr->d->exits[self].narrow = b->narrow;
	b->leave = e->at;
	put_leave(tr, self, b->main_host);
	if (!live_in) {
		patch_rel32(e, leave_field, b->leave);
		b->host = b->main;
		b->self_host = exit_new(tr, b->va, true);
		tr->d->exits[b->self_host].ctx = b->ctx;
		tr->d->exits[b->self_host].narrow = b->narrow;
		b->leave_host = e->at;
		put_leave(tr, b->self_host, true);
		return;
	}
	if (!b->main_host) {
		patch_rel32(e, leave_field, b->leave);
		b->slot = b->main;
		return;
	}
	b->host = b->main;
	b->host_poll = e->at;
	flags_save(e);
	b->slot_poll = e->at;
	put_poll(tr, &leave_field);
	b->slot = e->at;
	flags_restore(e);
	put_jmp(e, b->main);
	patch_rel32(e, leave_field, e->at);
	self = exit_new(tr, b->va, false);
	tr->d->exits[self].ctx = b->ctx;
	tr->d->exits[self].narrow = b->narrow;
	put_leave(tr, self, false);
}

/* ---- the block --------------------------------------------------------------------------------- */

/* Room for a jump. */
static void put_filler(struct emit *e)
{
	put_mov_imm(e, T0, 0);
}

/* Ways to other pages are taken as often as others: they are behind the straight path, where the host's caches have them. */
static bool is_near(const struct cold *c)
{
	return c->type == COLD_JUMP || c->type == COLD_LINK;
}

static void put_colds(struct trans *tr, bool near)
{
	for (unsigned i = 0; i < tr->nr_cold; i++)
		if (is_near(&tr->cold[i]) == near)
			put_cold(tr, &tr->cold[i]);
}

static void emit_block(struct trans *tr, struct dbt_block *b)
{
	const struct tinsn *last = &tr->insns[tr->nr - 1];
	bool live_in = tr->insns[0].live_before;
	u32 leave_field = 0;

	tr->e->at = (tr->e->at + 15) & ~15u;
	b->main_host = live_in && wants_host_flags(tr);
	tr->host = b->main_host;
	tr->slot = live_in && !b->main_host;
	if (!live_in) {
		b->host_poll = tr->e->at;
		put_filler(tr->e);
	}
	/* Who comes with flags in the host's is as frequent as the others: no way off the straight path. */
	if (live_in && !b->main_host) {
		b->host = b->host_poll = tr->e->at;
		flags_save(tr->e);
	}
	if (!b->main_host) {
		b->slot_poll = tr->e->at;
		put_poll(tr, &leave_field);
	}
	if (!live_in) {
		b->slot = tr->e->at;
		put_filler(tr->e);
	}
	b->main = tr->e->at;
	for (unsigned i = 0; i < tr->nr; i++) {
		tr->d->scratch->starts[i] = tr->e->at;
		tr->retired = i + 1;
		emit_insn(tr, &tr->insns[i]);
	}
	if (last->kind < K_JCC) {
		put_x87_note(tr, &tr->note);
		put_exit(tr, next_rip(tr, last));
	}
	tr->d->scratch->starts[tr->nr] = tr->e->at;
	put_colds(tr, true);
	b->code_end = tr->e->at;
	tr->e = &tr->d->cold;
	b->cold = tr->e->at;
	put_colds(tr, false);
	tr->retired = 0;
	put_entries(tr, b, live_in, leave_field);
	b->cold_end = tr->e->at;
}

struct dbt_block *dbt_translate(struct vcpu *vcpu, u64 va, struct dbt_page *page, struct dbt_page *tail, unsigned ctx,
				bool narrow)
{
	struct dbt *d = vcpu->arch.dbt;
	struct trans tr = {
		.vcpu = vcpu, .d = d, .e = &d->emit,
		.insns = d->scratch->insns, .cold = d->scratch->cold, .ranges = d->scratch->ranges,
		.ctx = ctx, .va = dbt_block_va(vcpu, ctx, va), .relative = dbt_is_relative(vcpu, ctx, va),
		.width = in_64bit_mode(vcpu) ? W8 : W4, .narrow = narrow, .t1_range = -1,
	};
	const u32 begin = (d->emit.at + 15) & ~15u;
	const struct tinsn *last;
	struct dbt_block *b;

	tr.page = va - tr.va;
	if (unlikely(tail))
		decode_across(&tr, page, tail);
	else
		decode_block(&tr, page);
	if (!tr.nr)
		return NULL;
	unroll(&tr);
	find_live_flags(&tr);
	plan_ranges(&tr);
	last = &tr.insns[tr.nr - 1];
	b = dbt_arena_alloc(d, sizeof(*b));
	*b = (struct dbt_block){
		.va = tr.va,
		.page = tr.page,
		.gpa = page->gpa | (va & ~PAGE_MASK),
		.mode_key = vcpu->arch.mode_key,
		.ctx = ctx,
		.narrow = narrow,
		.len = tr.head ? tr.head : last->rip + last->insn.len - tr.va,
		.head = tr.head,
		.tail_gpa = tail ? tail->gpa : 0,
	};
	b->first_exit = d->nr_exits;
	emit_block(&tr, b);
	b->end_exit = d->nr_exits;
	/* One that is refused may be worth a look. */
	if (dump_wanted(va, b->len))
		dump_block(vcpu, b, tr.insns[0].bytes, d->scratch->starts, tr.nr);
	if (unlikely(d->verifier) && !dbt_verify_new(vcpu, b, begin))
		return NULL;
	if (unlikely(d->diff))
		diff_note_block(vcpu, b, page->bytes + (va & ~PAGE_MASK), tr.nr);
	perfmap_block(d, b);
	dbt_block_add(d, page, b, tail, tail ? last->rip + last->insn.len - dbt_next_page(vcpu, tr.va) : 0);
	vcpu->stat.dbt_blocks++;
	return b;
}

/* SPDX-License-Identifier: MIT */
/*
 * The guest's memory operands: addresses, the look-up in the TLB, and what members of a range share of it.
 *
 *  1. A memory access is preceded by a look-up in the TLB's tags. If the tag does not match, or the page ends in
 *     between, the handler does the whole instruction instead (cold.c).
 *  2. What a range's look-up has found is good until an instruction that is its handler's (ranges.c).
 *  3. What is addressed by the stack pointer, and not far from it, is looked for in the TLB's entry for the stack only, which is at a fixed place and
 *     good for reads and writes. Pages that cannot be there (without a write tag) are their handlers'.
 *  4. What is at a distance from its code that does not change, in code that may be anywhere, and what is at a constant offset from the
 *     base of FS or GS, is on the same page again and again: each such instruction has an entry of the TLB's fixed ones, that of the page
 *     that it is on when it is translated, and shares it with others.
 *  5. T1 keeps a range's difference from one instruction to the next only past those of keeps_t1().
 */
#include "x86/dbt/translate.h"

/* ---- addresses --------------------------------------------------------------------------------- */

struct ea ea_of(const struct tinsn *t)
{
	const struct insn *insn = &t->insn;
	struct ea ea = {
		.base = insn->base, .index = insn->index, .scale = insn->scale, .disp = insn->disp, .seg = insn->seg,
		.addr32 = insn->addrsize == 4, .flat32 = code32(t),
	};

	if (insn->flags & INSN_RIP_REL) {
		ea.disp += t->rip + insn->len;
		ea.base = t->relative ? PAGE_REG : NOREG;
	}
	return ea;
}

struct ea ea_stack(const struct trans *tr, u8 base, s32 disp)
{
	return (struct ea){
		.base = base, .index = NOREG, .seg = SEG_SS, .disp = disp,
		.addr32 = tr->width == W4, .flat32 = tr->width == W4,
	};
}

/* The address without its segment's base, or what of it one operand can hold: registers are loaded to T0 and index_tmp. */
static struct hmem ea_operand(struct trans *tr, const struct ea *ea, u8 index_tmp)
{
	struct hmem m = { .base = NOREG, .index = NOREG, .scale = ea->scale, .disp = ea->disp };

	if (ea->base != NOREG)
		m.base = gpr_to_host(tr->e, ea->base, T0);
	if (ea->index != NOREG)
		m.index = gpr_to_host(tr->e, ea->index, index_tmp);
	return m;
}

void put_offset(struct trans *tr, const struct ea *ea, u8 index_tmp)
{
	struct hmem m;

	if (ea->base == NOREG && ea->index == NOREG) {
		put_mov_imm(tr->e, T0, ea->addr32 ? (u32)ea->disp : (u64)ea->disp);
		return;
	}
	m = ea_operand(tr, ea, index_tmp);
	if (m.base == NOREG || m.index != NOREG || m.disp || ea->addr32)
		put_rm(tr->e, ea->addr32 ? W4 : W8, 0x8d, T0, m);
	else if (m.base != T0)
		put_mov(tr->e, T0, m.base);
}

/* From the base of FS or GS. */
static bool is_fixed_offset(const struct ea *ea)
{
	return ea->seg >= SEG_FS && ea->base == NOREG && ea->index == NOREG && !ea->addr32 && !ea->flat32 && ea->disp == (s32)ea->disp;
}

/* T0 = address. index_tmp is lost if the index is homed. */
static void put_ea(struct trans *tr, const struct ea *ea, u8 index_tmp)
{
	const struct hmem base = SLOT(ea->seg == SEG_FS ? FRAME_FS : FRAME_GS);

	if (is_fixed_offset(ea)) {
		put_load(tr->e, T0, base);
		if (ea->disp)
			put_lea(tr->e, T0, MEM_BASE(T0, ea->disp));
		return;
	}
	put_offset(tr, ea, index_tmp);
	if (ea->seg >= SEG_FS)
		put_rm(tr->e, ea->flat32 ? W4 : W8, 0x03, T0, base);
}

/* ---- look-up ----------------------------------------------------------------------------------- */

static s32 tlb_disp(const struct trans *tr, size_t field)
{
	return offsetof(struct mmu, tlbs) + tr->ctx * sizeof(struct tlb) + field;
}

/*
 * ea has been looked up, T0 is used up and T1 its place: the operand. The address is computed a second time, so that
 * only the difference is waited for. T0, if one register is free; none, if *both.
 */
static struct hmem put_operand(struct trans *tr, const struct ea *ea, s32 tag, s32 delta, bool *both)
{
	struct emit *e = tr->e;
	bool plain = ea->seg < SEG_FS && !ea->addr32;
	struct hmem m;

	*both = false;
	if (ea->addr32 || (is_homed(ea->base) && is_homed(ea->index))) {
		put_rm(e, W8, 0x2b, T0, MEM_GS(T1, tag));
		put_rm(e, W8, 0x03, T0, MEM_GS(T1, delta));
		return MEM_BASE(T0, 0);
	}
	if (plain && (ea->base == NOREG || ea->index == NOREG)) {
		put_load(e, T1, MEM_GS(T1, delta));
		m = ea_operand(tr, ea, T0);
		if (m.base == NOREG) {
			m.base = T1;
		} else {
			m.index = T1;
			m.scale = 0;
		}
		*both = is_homed(ea->base) || is_homed(ea->index);
		return m;
	}
	put_ea(tr, ea, T0);
	put_load(e, T1, MEM_GS(T1, delta));
	*both = true;
	return MEM_SIB(T0, T1, 0, 0);
}

/* T0 is an address: T0 = offset in the page that tag is of, if size bytes of it can be had. */
static void put_compare(struct trans *tr, struct lookup l, struct hmem tag, u32 size, struct cold *c)
{
	c->lookups[c->nr_fields] = l;
	put_rm(tr->e, W8, 0x03, T0, tag);
	put_alu_imm(tr->e, W8, 7, T0, PAGE_SIZE - size);
	put_jcc_cold(tr, CC_A, c);
}

/* The same with T1 its place unless that is constant. begin: of the look-up. */
static void put_tag_check(struct trans *tr, u32 begin, u32 size, bool write, s32 place, struct cold *c)
{
	s32 tag = tlb_disp(tr, write ? offsetof(struct tlb, write) : offsetof(struct tlb, read));
	struct lookup l = { .retry = begin, .place = place, .kind = write ? REFILL_WRITE : REFILL_READ };

	put_compare(tr, l, place < 0 ? MEM_GS(T1, tag) : MEM_GS(NOREG, tag + place), size, c);
}

/* What is further up is on other pages than what is pushed, and would be in its way. */
#define STACK_REACH 2048

static bool is_on_stack(const struct trans *tr, const struct ea *ea)
{
	return ea->base == RSP && ea->index == NOREG && ea->seg < SEG_FS && !ea->addr32 &&
	       ea->disp < STACK_REACH && ea->disp >= -STACK_REACH && tr->ctx < DBT_REFILL_CTXS;
}

/* Look up size bytes of the stack at ea: T1 = difference. */
static void put_stack_lookup(struct trans *tr, const struct ea *ea, u32 size, struct cold *c)
{
	struct lookup l = { .retry = tr->e->at, .place = -1, .kind = REFILL_STACK };

	put_ea(tr, ea, T1);
	put_compare(tr, l, MEM_GS(NOREG, tlb_disp(tr, offsetof(struct tlb, stack_tag))), size, c);
	put_load(tr->e, T1, MEM_GS(NOREG, tlb_disp(tr, offsetof(struct tlb, stack_delta))));
}

static bool is_at_fixed(const struct trans *tr, const struct ea *ea)
{
	if (ea_is_constant(ea))
		return tr->ctx == TLB_USER;
	return tr->ctx < DBT_REFILL_CTXS && (is_fixed_offset(ea) || ea_is_fixed(ea));
}

/* Which entry is ea's? As long as there are enough of them each page has its own. */
static u32 fixed_entry(const struct trans *tr, const struct ea *ea)
{
	u64 va = ea->disp + (ea->seg >= SEG_FS ? tr->vcpu->arch.seg[ea->seg].base : ea->base == PAGE_REG ? tr->page : 0);
	struct dbt_fixed *f = &tr->d->fixed[tr->ctx];
	u16 *near = f->places[(u32)(va >> PAGE_SHIFT) * JUMP_FACTOR >> (32 - DBT_FIXED_SHIFT)], n;

	va &= PAGE_MASK;
	for (unsigned i = 0; i < DBT_FIXED_NEAR; i++)
		if (f->pages[near[i]] == va)
			return near[i];
	n = f->next++ % TLB_FIXED;
	near[n % DBT_FIXED_NEAR] = n;
	f->pages[n] = va;
	return n;
}

/* Look up size bytes at ea, which is_at_fixed(): T0 = host address. */
static void put_fixed_lookup(struct trans *tr, const struct ea *ea, u32 size, bool write, struct cold *c)
{
	const s32 place = fixed_entry(tr, ea) * 8;
	struct lookup l = { .retry = tr->e->at, .place = place, .kind = write ? REFILL_FIXED_WRITE : REFILL_FIXED_READ };

	put_ea(tr, ea, T1);
	put_compare(tr, l, MEM_GS(NOREG, tlb_disp(tr, offsetof(struct tlb, fixed_tag[write])) + place), size, c);
	put_rm(tr->e, W8, 0x03, T0, MEM_GS(NOREG, tlb_disp(tr, offsetof(struct tlb, fixed_page[write])) + place));
}

/*
 * Look up size bytes at ea. Afterwards the operand is *m, and the register returned is free, if any (NOREG): T1 if
 * m is (T0), T0 if it is not part of m. The host's flags are lost.
 */
u8 put_check(struct trans *tr, const struct ea *ea, unsigned size, bool write, struct hmem *m, struct cold *c)
{
	struct emit *e = tr->e;
	s32 tag = tlb_disp(tr, write ? offsetof(struct tlb, write) : offsetof(struct tlb, read));
	s32 delta = tlb_disp(tr, offsetof(struct tlb, delta));
	const u32 begin = e->at;
	bool both;

	if (is_on_stack(tr, ea)) {
		put_stack_lookup(tr, ea, size, c);
		*m = MEM_SIB(GUEST_RSP, T1, 0, ea->disp);
		return T0;
	}
	if (is_at_fixed(tr, ea)) {
		put_fixed_lookup(tr, ea, size, write, c);
		*m = MEM_BASE(T0, 0);
		return T1;
	}
	put_ea(tr, ea, T1);
	if (ea_is_constant(ea)) {
		s32 at = tlb_index(ea->disp) * 8;

		put_tag_check(tr, begin, size, write, at, c);
		put_mov_imm(e, T0, ea->disp);
		put_rm(e, W8, 0x03, T0, MEM_GS(NOREG, delta + at));
		*m = MEM_BASE(T0, 0);
		return T1;
	}
	put_tlb_place(e);
	put_tag_check(tr, begin, size, write, -1, c);
	*m = put_operand(tr, ea, tag, delta, &both);
	return both ? NOREG : m->base == T0 ? T1 : T0;
}

/* Look up the word that a push (disp -word) or a pop (0) touches. As put_check(). */
u8 put_check_stack(struct trans *tr, s32 disp, bool write, struct hmem *m, struct cold *c)
{
	struct ea ea = ea_stack(tr, RSP, disp);

	return put_check(tr, &ea, word(tr), write, m, c);
}

/* ---- ranges ------------------------------------------------------------------------------------ */

static struct ea range_ea(const struct range *r, s32 at)
{
	struct ea ea = r->ea;

	ea.disp += at;
	return ea;
}

/* T1 = host address of ea, which has been looked up: T1 is its place. */
static void put_pointer(struct trans *tr, const struct ea *ea, s32 tag, s32 delta)
{
	struct hmem m;
	bool both;

	if (ea_is_constant(ea)) {
		put_mov_imm(tr->e, T1, ea->disp);
		put_rm(tr->e, W8, 0x03, T1, MEM_GS(NOREG, delta + tlb_index(ea->disp) * 8));
		return;
	}
	m = put_operand(tr, ea, tag, delta, &both);
	put_lea(tr->e, T1, m);
}

/* T1 = what members of r need. The host's flags are lost. */
static void put_range_lookup(struct trans *tr, const struct range *r, struct cold *c)
{
	s32 tag = tlb_disp(tr, r->write ? offsetof(struct tlb, write) : offsetof(struct tlb, read));
	s32 delta = tlb_disp(tr, offsetof(struct tlb, delta));
	struct ea ea = range_ea(r, r->lo);
	struct emit *e = tr->e;
	const u32 begin = e->at;

	if (is_on_stack(tr, &ea)) {
		put_stack_lookup(tr, &ea, r->hi - r->lo, c);
		if (r->pointers)
			put_lea(e, T1, MEM_SIB(GUEST_RSP, T1, 0, ea.disp));
		return;
	}
	if (is_at_fixed(tr, &ea)) {
		put_fixed_lookup(tr, &ea, r->hi - r->lo, r->write, c);
		put_mov(e, T1, T0);
		return;
	}
	put_ea(tr, &ea, T1);
	if (!ea_is_constant(&ea))
		put_tlb_place(e);
	put_tag_check(tr, begin, r->hi - r->lo, r->write, ea_is_constant(&ea) ? (s32)tlb_index(ea.disp) * 8 : -1, c);
	if (r->pointers)
		put_pointer(tr, &ea, tag, delta);
	else
		put_load(e, T1, MEM_GS(T1, delta));
}

/* The operand of a member of a range, at disp from base if it is by the difference. T0 is free. c is for its faults. */
void put_member(struct trans *tr, struct tinsn *t, u8 base, s64 disp, struct hmem *m, struct cold *c)
{
	const struct range *r = &tr->ranges[t->range];

	if (t == &tr->insns[r->first]) {
		struct cold *miss = cold_new(tr, COLD_RANGE);

		flags_clobber(tr, t->live_before);
		miss->insn = t;
		miss->index = c->index;
		miss->note = c->note;
		put_range_lookup(tr, r, miss);
		if (r->reloaded)
			put_store(tr->e, SLOT(r->slot), T1);
	} else if (tr->t1_range != t->range) {
		VM_BUG_ON(!r->reloaded, tr->vcpu->vm);
		put_load(tr->e, T1, SLOT(r->slot));
	}
	tr->t1_range = t->range;
	*m = r->pointers ? MEM_BASE(T1, t->range_at - r->lo) : MEM_SIB(base == RSP ? GUEST_RSP : base, T1, 0, disp);
}

u8 put_stack_word(struct trans *tr, struct tinsn *t, bool push, struct hmem *m, struct cold *c)
{
	if (t->range >= 0) {
		put_member(tr, t, RSP, push ? -8 : 0, m, c);
		return T0;
	}
	flags_clobber(tr, t->live_before);
	return put_check_stack(tr, push ? -(s32)word(tr) : 0, push, m, c);
}

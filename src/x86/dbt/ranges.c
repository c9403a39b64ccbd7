/* SPDX-License-Identifier: MIT */
/*
 * Which memory accesses of a block share one TLB look-up.
 *
 * Accesses whose addresses differ by constants form a range: the same base, index and scale, and registers that do not
 * change meanwhile, or by constants only; the same segment; fixed addresses of one page. Its first access looks all of it up,
 * and leaves in a slot of the frame what the others need (operand.c).
 * PUSH, POP, CALL, RET and additions of constants move their register along, and an index scale times as far.
 *
 *  1. A range ends with a register's value, with an instruction that is its handler's, and where
 *     the TLB's context changes. Until then the bases of FS and GS are constants, too.
 *  2. It asks for all that its members need: the whole span within one page, writable if one of
 *     them writes. If it crosses pages the block goes on without ranges (`narrow`).
 *  3. After a handler nothing is known any more: what it was called for by an instruction within a range
 *     goes on with another block, which begins after it.
 *  4. Only what moves a whole 64-bit register moves a range: narrower sums wrap.
 */
#include "x86/dbt/translate.h"

#define RANGE_SPAN 256
#define MOVED_MAX 0x1000
#define ACTIVE_MAX 12

struct active {
	u8 range;
	s32 moved;	/* by how much its registers have moved the address since it began */
};

struct plan {
	struct trans *tr;
	struct active active[ACTIVE_MAX];	/* the oldest first */
	unsigned nr;
};

struct access {
	struct ea ea;
	u32 size;
	bool write;
};

/* ---- accesses ---------------------------------------------------------------------------------- */

/* An address that is fixed. */
static bool on_one_page(const struct access *a)
{
	return (a->ea.disp & ~PAGE_MASK) + a->size <= PAGE_SIZE;
}

/* The one access of t that may share, or false. */
static bool shared_access(const struct trans *tr, const struct tinsn *t, struct access *a)
{
	*a = (struct access){ .ea = ea_stack(tr, RSP, 0), .size = 8 };
	switch (t->kind) {
	case K_PUSH:
	case K_CALL:
		a->ea.disp = -8;
		a->write = true;
		return !t->mem;
	case K_POP:
	case K_RET:
		return true;
	case K_NATIVE:
		break;
	default:
		return false;
	}
	if (!t->mem || t->insn.addrsize != 8)
		return false;
	a->ea = ea_of(t);
	a->size = t->mem->size / 8;
	a->write = t->mem->actions & ZYDIS_OPERAND_ACTION_MASK_WRITE;
	if (ea_is_fixed(&a->ea))
		return on_one_page(a);
	return a->ea.disp > -0x10000000 && a->ea.disp < 0x10000000;
}

static bool same_place(const struct ea *x, const struct ea *y)
{
	bool fs_gs = x->seg >= SEG_FS || y->seg >= SEG_FS;

	if (x->base != y->base || x->index != y->index || (x->index != NOREG && x->scale != y->scale) ||
	    (fs_gs && x->seg != y->seg))
		return false;
	return !ea_is_fixed(x) || !((x->disp ^ y->disp) & PAGE_MASK);
}

static bool fits(const struct range *r, s64 at, u32 size)
{
	return max((s64)r->hi, at + size) - min((s64)r->lo, at) <= (ea_is_fixed(&r->ea) ? (s64)PAGE_SIZE : RANGE_SPAN);
}

static void join(struct range *r, struct tinsn *t, const struct access *a, s64 at, unsigned i)
{
	r->lo = min((s64)r->lo, at);
	r->hi = max((s64)r->hi, at + a->size);
	r->write |= a->write;
	r->last = i;
	r->members++;
	t->range_at = at;
}

static void forget(struct plan *p, unsigned i)
{
	memmove(&p->active[i], &p->active[i + 1], (--p->nr - i) * sizeof(p->active[0]));
}

static void join_range(struct plan *p, struct tinsn *t, unsigned at)
{
	struct trans *tr = p->tr;
	struct access a;
	struct range *r;
	s64 origin;

	if (!shared_access(tr, t, &a))
		return;
	for (unsigned i = 0; i < p->nr; i++) {
		r = &tr->ranges[p->active[i].range];
		origin = a.ea.disp - r->ea.disp + p->active[i].moved;
		if (!same_place(&r->ea, &a.ea) || !fits(r, origin, a.size))
			continue;
		join(r, t, &a, origin, at);
		t->range = p->active[i].range;
		return;
	}
	if (p->nr == ACTIVE_MAX)
		forget(p, 0);
	p->active[p->nr++] = (struct active){ .range = tr->nr_ranges };
	t->range = tr->nr_ranges;
	t->range_at = 0;
	tr->ranges[tr->nr_ranges++] = (struct range){
		.ea = a.ea, .hi = a.size, .write = a.write, .first = at, .last = at, .members = 1,
	};
}

/* ---- what ends and what moves them ------------------------------------------------------------------ */

static void move_register(struct plan *p, u8 r, s64 by)
{
	for (unsigned i = p->nr; i-- > 0;) {
		const struct ea *ea = &p->tr->ranges[p->active[i].range].ea;
		s64 moved = p->active[i].moved;

		moved += ea->base == r ? by : 0;
		moved += ea->index == r ? by * (1 << ea->scale) : 0;
		if (moved > MOVED_MAX || moved < -MOVED_MAX)
			forget(p, i);
		else
			p->active[i].moved = moved;
	}
}

static void end_register(struct plan *p, u8 r)
{
	for (unsigned i = p->nr; i-- > 0;) {
		const struct ea *ea = &p->tr->ranges[p->active[i].range].ea;

		if (ea->base == r || ea->index == r)
			forget(p, i);
	}
}

/* t adds a constant to a whole register. */
static bool adds_constant(const struct tinsn *t, u8 *r, s64 *by)
{
	const ZydisDecodedOperand *op = &t->ops[0];
	bool high8;

	if (op->type != ZYDIS_OPERAND_TYPE_REGISTER || op->size != 64)
		return false;
	*r = gpr_from_zydis(op->reg.value, &high8);
	if (*r == INSN_NOREG)
		return false;
	switch (t->insn.mnemonic) {
	case ZYDIS_MNEMONIC_INC:
		*by = 1;
		break;
	case ZYDIS_MNEMONIC_DEC:
		*by = -1;
		break;
	case ZYDIS_MNEMONIC_ADD:
	case ZYDIS_MNEMONIC_SUB:
		*by = t->insn.mnemonic == ZYDIS_MNEMONIC_ADD ? (s64)t->insn.imm : -(s64)t->insn.imm;
		if (t->ops[1].type != ZYDIS_OPERAND_TYPE_IMMEDIATE)
			return false;
		break;
	case ZYDIS_MNEMONIC_LEA:
		*by = t->insn.disp;
		if (t->insn.addrsize != 8 || t->insn.base != *r || t->insn.index != INSN_NOREG)
			return false;
		break;
	default:
		return false;
	}
	return *by <= MOVED_MAX && *by >= -MOVED_MAX;
}

/* Registers that t writes: their ranges end, unless it is known by how much they move. */
static void end_ranges(struct plan *p, const struct tinsn *t)
{
	bool high8;
	s64 by;
	u8 r;

	switch (t->kind) {
	case K_NOP:
	case K_JCC:
		return;
	case K_PUSH:
		move_register(p, RSP, -8);
		return;
	case K_POP:
		end_register(p, gpr_from_zydis(t->ops[0].reg.value, &high8));
		move_register(p, RSP, 8);
		return;
	case K_NATIVE:
	case K_LEA:
		break;
	default:
		p->nr = 0;
		return;
	}
	if (adds_constant(t, &r, &by)) {
		move_register(p, r, by);
		return;
	}
	for (u32 left = t->changes; left; left &= left - 1)
		end_register(p, __builtin_ctz(left));
}

/* ---- the plan ------------------------------------------------------------------------------------ */

/* A slot each while they last; ranges of one, and those for whom there is none, dissolve. */
static void assign_slots(struct trans *tr)
{
	s32 free_at[FRAME_DELTAS];

	memset(free_at, -1, sizeof(free_at));
	for (unsigned i = 0; i < tr->nr_ranges; i++) {
		struct range *r = &tr->ranges[i];

		r->slot = 0;
		for (unsigned s = 0; s < FRAME_DELTAS && r->members > 1 && !r->slot; s++) {
			if (free_at[s] >= (s32)r->first)
				continue;
			free_at[s] = r->last;
			r->slot = FRAME_DELTA + 8 * s;
		}
	}
	for (unsigned i = 0; i < tr->nr; i++)
		if (tr->insns[i].range >= 0 && !tr->ranges[tr->insns[i].range].slot)
			tr->insns[i].range = -1;
	for (unsigned i = 0; i < tr->nr_ranges; i++)
		for (unsigned at = tr->ranges[i].first; tr->ranges[i].slot && at <= tr->ranges[i].last; at++)
			tr->insns[at].in_range = true;
}

void plan_ranges(struct trans *tr)
{
	struct plan p = { .tr = tr };

	tr->nr_ranges = 0;
	for (unsigned i = 0; i < tr->nr; i++) {
		tr->insns[i].range = -1;
		tr->insns[i].in_range = false;
	}
	if (tr->width != W8 || tr->narrow)
		return;
	for (unsigned i = 0; i < tr->nr; i++) {
		join_range(&p, &tr->insns[i], i);
		end_ranges(&p, &tr->insns[i]);
	}
	assign_slots(tr);
}

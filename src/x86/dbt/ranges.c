/* SPDX-License-Identifier: MIT */
/*
 * Which memory accesses of a block share one TLB look-up.
 *
 * Each register holds a value, which is a symbol and a constant. Copies (MOV, LEA) have the same symbol, constants that are added to a
 * register (ADD, SUB, INC, DEC, LEA; PUSH, POP, CALL, RET) move it, and whatever else it becomes is a new symbol. An address
 * so is a place: the symbols of base and index, a scale, the base of a segment, a constant. Accesses whose places differ in the constant
 * only form a range, by whatever registers they get there; so do fixed addresses of one page.
 * Its first access looks all of it up, and leaves in a slot of the frame what the others need (operand.c).
 *
 *  1. A range ends with an instruction that is its handler's, and where the TLB's context changes. Until
 *     then the bases of FS and GS are constants, too.
 *  2. It asks for all that its members need: the whole span within one page, writable if one of
 *     them writes. If it crosses pages the block goes on without ranges (`narrow`).
 *  3. After a handler nothing is known any more: what it was called for by an instruction within a range
 *     goes on with another block, which begins after it.
 *  4. The slot is stored if a member may need it: while nothing else uses T1 that has it, too.
 *  5. Only what copies or moves a whole 64-bit register keeps its symbol: narrower results are cut off.
 */
#include "x86/dbt/translate.h"

#define RANGE_SPAN 256
#define ACTIVE_MAX 12

/* What a register holds. */
struct value {
	u16 symbol;	/* 0: none */
	u64 plus;
};

struct place {
	u16 base, index;	/* symbols */
	u8 scale, seg;
	u64 plus;
};

struct active {
	struct place place;	/* of its first access */
	u8 range;
};

struct plan {
	struct trans *tr;
	struct value regs[PAGE_REG + 1];
	u16 nr_symbols;
	struct active active[ACTIVE_MAX];	/* the least recently used first */
	unsigned nr;
	bool joined;		/* some range has two members */
};

struct access {
	struct ea ea;
	struct place place;
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
	a->size = t->mem_size;
	a->write = t->mem_write;
	if (ea_is_fixed(&a->ea))
		return on_one_page(a);
	return a->ea.disp > -0x10000000 && a->ea.disp < 0x10000000;
}

/* FS and GS aside, no segment has a base. */
static struct place place_of(const struct plan *p, const struct ea *ea)
{
	struct place at = { .plus = ea->disp, .seg = ea->seg >= SEG_FS ? ea->seg : 0 };

	if (ea->base != NOREG) {
		at.base = p->regs[ea->base].symbol;
		at.plus += p->regs[ea->base].plus;
	}
	if (ea->index != NOREG) {
		at.index = p->regs[ea->index].symbol;
		at.scale = ea->scale;
		at.plus += p->regs[ea->index].plus << ea->scale;
	}
	return at;
}

/* But for the constant. */
static bool same_symbols(const struct place *x, const struct place *y)
{
	return x->base == y->base && x->index == y->index && x->scale == y->scale && x->seg == y->seg;
}

/* May a, whose first byte is at `at` of r, belong there? */
static bool fits(const struct range *r, const struct access *a, s64 at)
{
	if (ea_is_fixed(&r->ea) && ((a->ea.disp ^ r->ea.disp) & PAGE_MASK))
		return false;
	if (at > (s64)PAGE_SIZE || at < -(s64)PAGE_SIZE)
		return false;
	return max((s64)r->hi, at + a->size) - min((s64)r->lo, at) <= (ea_is_fixed(&r->ea) ? (s64)PAGE_SIZE : RANGE_SPAN);
}

/* Members that name their registers and add the difference need T0 for none of these. */
static bool needs_pointers(const struct ea *ea)
{
	return ea->seg >= SEG_FS || ea->index != NOREG || ea->base == NOREG || is_homed(ea->base);
}

static void join(struct range *r, struct tinsn *t, const struct access *a, s64 at, unsigned i)
{
	r->lo = min((s64)r->lo, at);
	r->hi = max((s64)r->hi, at + a->size);
	r->write |= a->write;
	r->pointers |= needs_pointers(&a->ea);
	r->last = i;
	r->members++;
	t->range_at = at;
}

/* To the end of the list. */
static void used(struct plan *p, unsigned n)
{
	const struct active last = p->active[n];

	memmove(&p->active[n], &p->active[n + 1], (p->nr - 1 - n) * sizeof(last));
	p->active[p->nr - 1] = last;
}

static void join_range(struct plan *p, struct tinsn *t, unsigned i)
{
	struct trans *tr = p->tr;
	struct access a;

	if (!shared_access(tr, t, &a))
		return;
	a.place = place_of(p, &a.ea);
	for (unsigned n = p->nr; n-- > 0;) {
		struct range *r = &tr->ranges[p->active[n].range];
		s64 at = a.place.plus - p->active[n].place.plus;

		if (!same_symbols(&p->active[n].place, &a.place) || !fits(r, &a, at))
			continue;
		join(r, t, &a, at, i);
		p->joined = true;
		t->range = p->active[n].range;
		used(p, n);
		return;
	}
	if (p->nr == ACTIVE_MAX)
		used(p, 0);
	else
		p->nr++;
	p->active[p->nr - 1] = (struct active){ .range = tr->nr_ranges, .place = a.place };
	t->range = tr->nr_ranges;
	t->range_at = 0;
	tr->ranges[tr->nr_ranges++] = (struct range){
		.ea = a.ea, .hi = a.size, .write = a.write, .first = i, .last = i, .members = 1,
		.pointers = needs_pointers(&a.ea),
	};
}

/* ---- what registers hold ------------------------------------------------------------------------ */

static void set_unknown(struct plan *p, u8 r)
{
	p->regs[r] = (struct value){ .symbol = ++p->nr_symbols };
}

static void set_all_unknown(struct plan *p)
{
	p->nr = 0;
	for (unsigned r = 0; r < ARRAY_SIZE(p->regs); r++)
		set_unknown(p, r);
}

static u8 whole_register(const ZydisDecodedOperand *op)
{
	bool high8;

	return op->type == ZYDIS_OPERAND_TYPE_REGISTER && op->size == 64 ? gpr_from_zydis(op->reg.value, &high8) : NOREG;
}

void note_copy(struct tinsn *t)
{
	const u8 to = whole_register(&t->ops[0]);

	t->copy_to = t->copy_from = NOREG;
	if (t->kind == K_POP)
		t->changes = BIT(t->gpr);
	if ((t->kind != K_NATIVE && t->kind != K_LEA) || to == NOREG)
		return;
	switch (t->insn.mnemonic) {
	case ZYDIS_MNEMONIC_MOV:
		t->copy_from = whole_register(&t->ops[1]);
		break;
	case ZYDIS_MNEMONIC_INC:
	case ZYDIS_MNEMONIC_DEC:
		t->copy_from = to;
		t->copy_plus = t->insn.mnemonic == ZYDIS_MNEMONIC_INC ? PLUS_ONE : MINUS_ONE;
		break;
	case ZYDIS_MNEMONIC_ADD:
	case ZYDIS_MNEMONIC_SUB:
		t->copy_from = t->ops[1].type == ZYDIS_OPERAND_TYPE_IMMEDIATE ? to : NOREG;
		t->copy_plus = t->insn.mnemonic == ZYDIS_MNEMONIC_ADD ? PLUS_IMM : MINUS_IMM;
		break;
	case ZYDIS_MNEMONIC_LEA:
		t->copy_from = t->insn.addrsize == 8 && t->insn.index == NOREG ? t->insn.base : NOREG;
		t->copy_plus = PLUS_DISP;
		break;
	default:
		break;
	}
	t->copy_to = t->copy_from != NOREG ? to : NOREG;
}

static u64 copy_plus(const struct tinsn *t)
{
	switch (t->copy_plus) {
	case PLUS_ONE: return 1;
	case MINUS_ONE: return -1;
	case PLUS_IMM: return t->insn.imm;
	case MINUS_IMM: return -t->insn.imm;
	case PLUS_DISP: return t->insn.disp;
	default: return 0;
	}
}

/* What registers hold after t. */
static void follow(struct plan *p, const struct tinsn *t)
{
	switch (t->kind) {
	case K_NOP:
	case K_JCC:
		return;
	case K_PUSH:
		p->regs[RSP].plus -= 8;
		return;
	case K_POP:
		p->regs[RSP].plus += 8;
		break;
	case K_NATIVE:
	case K_LEA:
		break;
	default:
		set_all_unknown(p);
		return;
	}
	if (t->copy_to != NOREG) {
		p->regs[t->copy_to] = p->regs[t->copy_from];
		p->regs[t->copy_to].plus += copy_plus(t);
		return;
	}
	for (u32 left = t->changes; left; left &= left - 1)
		set_unknown(p, __builtin_ctz(left));
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

/* These at least: what is emitted before an instruction for its registers, or for x87 pointers, may use T1 as well. */
static void find_reloads(struct trans *tr)
{
	bool vec = false, x87 = false;
	s8 t1 = -1;

	for (unsigned i = 0; i < tr->nr; i++) {
		const struct tinsn *t = &tr->insns[i];

		x87 |= t->x87;
		if (!keeps_t1(t) || (t->vec && !vec) || x87)
			t1 = -1;
		vec |= t->vec;
		if (t->range < 0)
			continue;
		tr->ranges[t->range].reloaded |= i != tr->ranges[t->range].first && t1 != t->range;
		t1 = t->range;
	}
}

/* Nobody shares anything. */
static void no_ranges(struct trans *tr)
{
	tr->nr_ranges = 0;
	for (unsigned i = 0; i < tr->nr; i++) {
		tr->insns[i].range = -1;
		tr->insns[i].in_range = false;
	}
}

static bool has_access(const struct tinsn *t)
{
	return t->mem || t->kind == K_PUSH || t->kind == K_POP || t->kind == K_CALL || t->kind == K_RET;
}

void plan_ranges(struct trans *tr)
{
	struct plan p;
	unsigned accesses = 0;

	no_ranges(tr);
	for (unsigned i = 0; i < tr->nr; i++)
		accesses += has_access(&tr->insns[i]);
	if (tr->width != W8 || tr->narrow || accesses < 2)
		return;
	p.tr = tr;
	p.nr_symbols = 0;
	p.joined = false;
	set_all_unknown(&p);
	for (unsigned i = 0; i < tr->nr; i++) {
		join_range(&p, &tr->insns[i], i);
		follow(&p, &tr->insns[i]);
	}
	if (!p.joined) {
		no_ranges(tr);
		return;
	}
	assign_slots(tr);
	find_reloads(tr);
}

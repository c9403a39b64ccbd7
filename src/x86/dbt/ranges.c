/* SPDX-License-Identifier: MIT */
/*
 * Which memory accesses of a block share one TLB look-up.
 *
 * Accesses at constant distances from a register that otherwise does not change form a
 * range: its first access looks all of it up, and leaves the difference between
 * host and guest addresses in a slot of the frame for the others (operand.c).
 * PUSH, POP, CALL, RET and additions of constants move rsp along.
 *
 *  1. A range ends with the register's value, with an instruction that is its handler's, and where
 *     the TLB's context changes.
 *  2. It asks for all that its members need: the whole span within one page, writable if one of
 *     them writes. If it crosses pages the block goes on without ranges (`narrow`).
 *  3. After a handler nothing is known any more: what it was called for by an instruction within a range
 *     goes on with another block, which begins after it.
 */
#include "x86/dbt/translate.h"

#define RANGE_SPAN 256

struct plan {
	struct trans *tr;
	s8 of[16];	/* register's range, -1: none */
	s32 moved[16];	/* what was added to it since the range began */
};

/* The one access of t that may share, or false. Offset from the register as t finds it. */
static bool shared_access(const struct tinsn *t, u8 *base, s32 *disp, u32 *size, bool *write)
{
	bool high8;

	*base = RSP;
	*disp = 0;
	*size = 8;
	*write = false;
	switch (t->kind) {
	case K_PUSH:
	case K_CALL:
		*disp = -8;
		*write = true;
		return !t->mem;
	case K_POP:
	case K_RET:
		return true;
	case K_NATIVE:
		break;
	default:
		return false;
	}
	if (!t->mem || t->mem->mem.index != ZYDIS_REGISTER_NONE || t->zi->address_width != 64 ||
	    seg_from_zydis(t->mem->mem.segment) >= SEG_FS)
		return false;
	*base = gpr_from_zydis(t->mem->mem.base, &high8);
	if (*base == INSN_NOREG || (*base >= R13 && t->nr_homed))
		return false;
	*disp = t->mem->mem.disp.value;
	*size = t->mem->size / 8;
	*write = t->mem->actions & ZYDIS_OPERAND_ACTION_MASK_WRITE;
	return *disp == t->mem->mem.disp.value && *disp > -0x10000000 && *disp < 0x10000000;
}

static void join_range(struct plan *p, struct tinsn *t, unsigned at)
{
	struct trans *tr = p->tr;
	struct range *r;
	bool write;
	s32 disp;
	u32 size;
	u8 base;

	if (!shared_access(t, &base, &disp, &size, &write))
		return;
	if (p->of[base] >= 0) {
		s32 lo, hi;

		r = &tr->ranges[p->of[base]];
		disp += p->moved[base];
		lo = min(r->lo, disp);
		hi = max(r->hi, disp + (s32)size);
		if (hi - lo <= RANGE_SPAN) {
			r->lo = lo;
			r->hi = hi;
			r->write |= write;
			r->last = at;
			r->members++;
			t->range = p->of[base];
			return;
		}
		disp -= p->moved[base];
	}
	p->of[base] = t->range = tr->nr_ranges;
	p->moved[base] = 0;
	tr->ranges[tr->nr_ranges++] = (struct range){
		.base = base, .lo = disp, .hi = disp + size, .write = write,
		.first = at, .last = at, .members = 1,
	};
}

static void forget_all(struct plan *p)
{
	memset(p->of, -1, sizeof(p->of));
}

static void move_register(struct plan *p, u8 r, s64 by)
{
	if (p->of[r] < 0)
		return;
	if (by > 0x1000 || by < -0x1000)
		p->of[r] = -1;
	else
		p->moved[r] += by;
}

/* add, sub $constant, rsp */
static bool adds_constant(const struct tinsn *t, s64 *by)
{
	if ((t->zi->mnemonic != ZYDIS_MNEMONIC_ADD && t->zi->mnemonic != ZYDIS_MNEMONIC_SUB) || t->mem ||
	    t->ops[0].type != ZYDIS_OPERAND_TYPE_REGISTER || t->ops[0].reg.value != ZYDIS_REGISTER_RSP ||
	    t->ops[1].type != ZYDIS_OPERAND_TYPE_IMMEDIATE)
		return false;
	*by = t->zi->mnemonic == ZYDIS_MNEMONIC_ADD ? t->ops[1].imm.value.s : -t->ops[1].imm.value.s;
	return true;
}

/* Registers that t writes: their ranges end, unless it is known by how much they move. */
static void end_ranges(struct plan *p, const struct tinsn *t)
{
	bool high8;
	s64 by;

	switch (t->kind) {
	case K_NOP:
	case K_JCC:
		return;
	case K_PUSH:
		move_register(p, RSP, -8);
		return;
	case K_POP:
		p->of[gpr_from_zydis(t->ops[0].reg.value, &high8)] = -1;
		move_register(p, RSP, 8);
		return;
	case K_NATIVE:
	case K_LEA:
		break;
	default:
		forget_all(p);
		return;
	}
	if (t->kind == K_NATIVE && adds_constant(t, &by)) {
		move_register(p, RSP, by);
		return;
	}
	for (unsigned i = 0; i < t->zi->operand_count; i++) {
		const ZydisDecodedOperand *op = &t->ops[i];
		u8 r = op->type == ZYDIS_OPERAND_TYPE_REGISTER ? gpr_from_zydis(op->reg.value, &high8) : INSN_NOREG;

		if (r != INSN_NOREG && (op->actions & ZYDIS_OPERAND_ACTION_MASK_WRITE))
			p->of[r] = -1;
	}
}

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
	forget_all(&p);
	for (unsigned i = 0; i < tr->nr; i++) {
		join_range(&p, &tr->insns[i], i);
		end_ranges(&p, &tr->insns[i]);
	}
	assign_slots(tr);
}

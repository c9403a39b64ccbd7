/* SPDX-License-Identifier: MIT */
/*
 * The guest's memory operands: addresses, the look-up in the TLB, and what members of a range share of it.
 *
 *  1. A memory access is preceded by a look-up in the TLB's tags. If the tag does not match, or the page ends in
 *     between, the handler does the whole instruction instead (cold.c).
 *  2. What a range's look-up has found is good until an instruction that is its handler's (ranges.c).
 *  3. T1 keeps a range's difference from one instruction to the next only past those of keeps_t1().
 */
#include "x86/dbt/translate.h"

/* ---- addresses --------------------------------------------------------------------------------- */

struct ea ea_of(const struct tinsn *t)
{
	const ZydisDecodedOperandMem *m = &t->mem->mem;
	struct ea ea = { .disp = t->insn.disp, .seg = seg_from_zydis(m->segment) };

	ea.addr32 = t->zi->address_width == 32;
	ea.flat32 = code32(t);
	ea.scale = m->scale == 8 ? 3 : m->scale == 4 ? 2 : m->scale == 2 ? 1 : 0;
	ea.base = t->insn.base;
	ea.index = t->insn.index;
	if (m->base == ZYDIS_REGISTER_RIP) {
		ea.base = NOREG;
		ea.disp += t->rip + t->insn.len;
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

/* T0 = address. T1 is lost. */
static void put_ea(struct trans *tr, const struct ea *ea)
{
	struct emit *e = tr->e;
	unsigned w = ea->addr32 ? W4 : W8;

	if (ea->base == NOREG && ea->index == NOREG) {
		put_mov_imm(e, T0, ea->addr32 ? (u32)ea->disp : (u64)ea->disp);
	} else {
		struct hmem m = { .base = NOREG, .index = NOREG, .scale = ea->scale, .disp = ea->disp };

		if (ea->base != NOREG)
			m.base = gpr_to_host(e, ea->base, T0);
		if (ea->index != NOREG)
			m.index = gpr_to_host(e, ea->index, T1);
		put_rm(e, w, 0x8d, T0, m);
	}
	if (ea->seg >= SEG_FS)
		put_rm(e, ea->flat32 ? W4 : W8, 0x03, T0, SLOT(ea->seg == SEG_FS ? FRAME_FS : FRAME_GS));
}

/* ---- look-up ----------------------------------------------------------------------------------- */

static s32 tlb_disp(const struct trans *tr, size_t field)
{
	return offsetof(struct mmu, tlbs) + tr->ctx * sizeof(struct tlb) + field;
}

/*
 * Look up size bytes at ea. Afterwards the operand is *m, and the register
 * returned is free: T1 if m is (T0), T0 if it is base and T1. The host's flags are lost.
 */
u8 put_check(struct trans *tr, const struct ea *ea, unsigned size, bool write, struct hmem *m, struct cold *c)
{
	struct emit *e = tr->e;
	s32 tag = tlb_disp(tr, write ? offsetof(struct tlb, write) : offsetof(struct tlb, read));
	s32 delta = tlb_disp(tr, offsetof(struct tlb, delta));
	bool plain = ea->seg < SEG_FS && !ea->addr32;
	bool simple = plain && ea->index == NOREG && ea->base != NOREG && !is_homed(ea->base);

	put_ea(tr, ea);
	if (plain && ea->base == NOREG && ea->index == NOREG) {
		s32 at = tlb_index(ea->disp) * 8;

		put_rm(e, W8, 0x03, T0, MEM_GS(NOREG, tag + at));
		put_alu_imm(e, W8, 7, T0, PAGE_SIZE - size);
		put_jcc_cold(tr, CC_A, c);
		put_mov_imm(e, T0, ea->disp);
		put_rm(e, W8, 0x03, T0, MEM_GS(NOREG, delta + at));
		*m = MEM_BASE(T0, 0);
		return T1;
	}
	put_mov(e, T1, T0);
	put_shift_imm(e, W8, 5, T1, PAGE_SHIFT - 3);
	put_alu_imm(e, W4, 4, T1, (TLB_ENTRIES - 1) * 8);
	put_rm(e, W8, 0x03, T0, MEM_GS(T1, tag));
	put_alu_imm(e, W8, 7, T0, PAGE_SIZE - size);
	put_jcc_cold(tr, CC_A, c);
	if (simple) {
		put_load(e, T1, MEM_GS(T1, delta));
		*m = MEM_SIB(ea->base == RSP ? GUEST_RSP : ea->base, T1, 0, ea->disp);
		return T0;
	}
	put_rm(e, W8, 0x2b, T0, MEM_GS(T1, tag));
	put_rm(e, W8, 0x03, T0, MEM_GS(T1, delta));
	*m = MEM_BASE(T0, 0);
	return T1;
}

/* Look up the word that a push (disp -word) or a pop (0) touches. As put_check(). */
u8 put_check_stack(struct trans *tr, s32 disp, bool write, struct hmem *m, struct cold *c)
{
	struct ea ea = ea_stack(tr, RSP, disp);

	return put_check(tr, &ea, word(tr), write, m, c);
}

/* ---- ranges ------------------------------------------------------------------------------------ */

/* T1 and the slot = host - guest address of all of r. The host's flags are lost. */
static void put_range(struct trans *tr, const struct range *r, struct cold *c)
{
	s32 tag = tlb_disp(tr, r->write ? offsetof(struct tlb, write) : offsetof(struct tlb, read));
	struct emit *e = tr->e;
	u8 base = gpr_to_host(e, r->base, T0);

	put_lea(e, T0, MEM_BASE(base, r->lo));
	put_mov(e, T1, T0);
	put_shift_imm(e, W8, 5, T1, PAGE_SHIFT - 3);
	put_alu_imm(e, W4, 4, T1, (TLB_ENTRIES - 1) * 8);
	put_rm(e, W8, 0x03, T0, MEM_GS(T1, tag));
	put_alu_imm(e, W8, 7, T0, PAGE_SIZE - (r->hi - r->lo));
	put_jcc_cold(tr, CC_A, c);
	put_load(e, T1, MEM_GS(T1, tlb_disp(tr, offsetof(struct tlb, delta))));
	put_store(e, SLOT(r->slot), T1);
}

/*
 * The operand of a member of a range, at disp from the range's register: T0 is free, unless the register
 * is homed. c is for its faults.
 */
void put_member(struct trans *tr, struct tinsn *t, s64 disp, struct hmem *m, struct cold *c)
{
	const struct range *r = &tr->ranges[t->range];

	if (t == &tr->insns[r->first]) {
		struct cold *miss = cold_new(tr, COLD_RANGE);

		flags_clobber(tr, t->live_before);
		miss->insn = t;
		miss->index = c->index;
		put_range(tr, r, miss);
	} else if (tr->t1_range != t->range) {
		put_load(tr->e, T1, SLOT(r->slot));
	}
	tr->t1_range = t->range;
	*m = MEM_SIB(gpr_to_host(tr->e, r->base, T0), T1, 0, disp);
}

/* SPDX-License-Identifier: MIT */
/*
 * A look-up has found another page's entry in the first level of the TLB, or an empty one: common code that asks the second, one
 * piece for each TLB and kind of access. Two pages that a loop needs and that share an index there would otherwise cost a call of C each
 * time round, and so would all pages of a process that runs again.
 *
 *  1. Called with T0 and T1 as the look-up has left them: address + tag, place. It returns for the look-up to be
 *     repeated, which then succeeds; or, if there is nothing to be done, DBT_REFILL_SKIP bytes further on, past the jump to its
 *     beginning, with T0 the address, or what is left of that if the tag has matched: its lower 12 bits are in both.
 *  2. Which entries the first level has is also in global[] and used[] (mmu/tlb.c), which this keeps true. With fewer entries
 *     than there are (SOFTKVM_TLB) filled[] would have to be, too: there it leaves those alone that are empty.
 *  3. A tag that has matched means that the access crosses the page.
 *  4. The stack has an entry of its own (operand.c): it is copied from the first level, if that has a write tag. Otherwise the second
 *     level is asked as above, for writing, and the copy is made when the look-up has failed once more. T1 is nothing then.
 *  5. The same goes for fixed entries, for reading or writing. T1 is the entry's place.
 */
#include "x86/dbt/dbt.h"
#include "x86/knobs.h"

#define CALLED 8	/* a return address is below the frame */
#define SECOND(field) (second + (s32)offsetof(struct tlb_second, field))

/* rax = page ^ key of the second level's entry for T0, rcx = its place. */
static void put_second(struct emit *e, s32 second)
{
	put_mov(e, RAX, T0);
	put_shift_imm(e, W8, 5, RAX, PAGE_SHIFT);
	put_mov(e, RCX, RAX);
	put_shift_imm(e, W8, 5, RCX, PAGE_SHIFT);
	put_rr(e, W8, 0x31, RAX, RCX);
	put_alu_imm(e, W4, 4, RCX, TLB_SECOND - 1);
	static_assert(sizeof(struct tlb_second) == 32, "shifted");
	put_shift_imm(e, W4, 4, RCX, 5);
	put_shift_imm(e, W8, 4, RAX, PAGE_SHIFT);
	put_rm(e, W8, 0x33, RAX, MEM_GS(RCX, SECOND(key)));
}

/*
 * What the first level has at T1 will be global, or local: as entry_fill() (mmu/tlb.c) does it. rax and T0 are lost.
 */
static void put_kind(struct emit *e, s32 tlb, bool global)
{
	const struct hmem kind = MEM_GS(RAX, tlb + (s32)offsetof(struct tlb, global));
	const struct hmem nr_used = MEM_GS(NOREG, tlb + (s32)offsetof(struct tlb, nr_used));
	struct hmem used = MEM_GS(T0, tlb + (s32)offsetof(struct tlb, used));
	u32 was_global, listed[2];

	put_mov(e, RAX, T1);
	put_shift_imm(e, W4, 5, RAX, 3);
	if (global) {
		put_rm(e, W4, 0xc6, 0, MEM_GS(NOREG, tlb + (s32)offsetof(struct tlb, has_global)));
		put8(e, 1);
	} else {
		put_rm(e, W4, 0x80, 7, kind);
		put8(e, 0);
		was_global = put_jcc_later(e, CC_NE);
		/* No valid tag ends in ones, nor does TLB_EVICTED. */
		put_alu_mem_imm(e, W4, 7, MEM_GS(T1, tlb + (s32)offsetof(struct tlb, read)), (s32)TLB_INVALID);
		listed[0] = put_jcc_later(e, CC_NE);
		patch_rel32(e, was_global, e->at);
		put_rm(e, W4, 0x8b, T0, nr_used);
		put_alu_imm(e, W4, 7, T0, TLB_USED_MAX);
		listed[1] = put_jcc_later(e, CC_AE);
		used.scale = 1;
		put_rm(e, W4, OPC_66 | 0x89, RAX, used);
		put_rm(e, W4, 0xff, 0, nr_used);
		patch_rel32(e, listed[0], e->at);
		patch_rel32(e, listed[1], e->at);
	}
	put_rm(e, W4, 0xc6, 0, kind);
	put8(e, global);
}

/* rax = write tag of the second level's entry at rcx, if flags are E */
static void put_write_tag(struct emit *e, s32 second)
{
	put_load(e, RAX, MEM_GS(RCX, SECOND(write)));
	put_rm(e, W8, 0x2b, RAX, MEM_GS(NOREG, offsetof(struct mmu, write_generation)));
	put_rm(e, W8, 0x3b, RAX, MEM_GS(RCX, SECOND(read)));
}

/* The entry at rcx to the first level's at T1. */
static void put_move(struct emit *e, s32 tlb, s32 second)
{
	u32 writable;

	put_write_tag(e, second);
	writable = put_jcc_later(e, CC_E);
	put_mov_imm(e, RAX, TLB_INVALID);
	patch_rel32(e, writable, e->at);
	put_store(e, MEM_GS(T1, tlb + (s32)offsetof(struct tlb, write)), RAX);
	put_load(e, RAX, MEM_GS(RCX, SECOND(read)));
	put_store(e, MEM_GS(T1, tlb + (s32)offsetof(struct tlb, read)), RAX);
	put_load(e, RAX, MEM_GS(RCX, SECOND(delta)));
	put_store(e, MEM_GS(T1, tlb + (s32)offsetof(struct tlb, delta)), RAX);
	put_load(e, RAX, SLOT(CALLED + FRAME_VCPU));
	put_rm(e, W8, 0xff, 0, MEM_BASE(RAX, offsetof(struct vcpu, stat.dbt_refills)));
}

static void put_restore(struct emit *e)
{
	put_load(e, RAX, SLOT(CALLED + FRAME_REFILL));
	put_load(e, RCX, SLOT(CALLED + FRAME_REFILL + 8));
}

/* There is nothing to be done: return past the jump to the look-up. */
static void put_skip(struct emit *e)
{
	put_alu_mem_imm(e, W8, 0, SLOT(0), DBT_REFILL_SKIP);
	put8(e, 0xc3);
}

static u32 emit_refill(struct dbt *d, unsigned ctx, bool write)
{
	const s32 tlb = offsetof(struct mmu, tlbs) + ctx * sizeof(struct tlb), second = tlb + offsetof(struct tlb, second);
	struct emit *e = &d->emit;
	const u32 begin = e->at = (e->at + 15) & ~15u;
	u32 crosses, local, filled, none[4], nr_none = 0;

	put_alu_imm(e, W8, 7, T0, PAGE_SIZE);
	crosses = put_jcc_later(e, CC_B);
	put_rm(e, W8, 0x2b, T0, MEM_GS(T1, tlb + (write ? (s32)offsetof(struct tlb, write) : (s32)offsetof(struct tlb, read))));
	put_store(e, SLOT(CALLED + FRAME_REFILL), RAX);
	put_store(e, SLOT(CALLED + FRAME_REFILL + 8), RCX);
	put_second(e, second);
	if (knob(KNOB_TLB) < TLB_ENTRIES) {
		put_alu_mem_imm(e, W4, 7, MEM_GS(T1, tlb + (s32)offsetof(struct tlb, read)), (s32)TLB_INVALID);
		none[nr_none++] = put_jcc_later(e, CC_E);
	}
	put_rm(e, W8, 0x3b, RAX, MEM_GS(NOREG, tlb + (s32)offsetof(struct tlb, generation[0])));
	local = put_jcc_later(e, CC_E);
	put_rm(e, W8, 0x3b, RAX, MEM_GS(NOREG, tlb + (s32)offsetof(struct tlb, generation[1])));
	none[nr_none++] = put_jcc_later(e, CC_NE);
	if (write) {
		put_write_tag(e, second);
		none[nr_none++] = put_jcc_later(e, CC_NE);
	}
	put_kind(e, tlb, true);
	put_jmp(e, 0);
	filled = e->at - 4;
	patch_rel32(e, local, e->at);
	if (write) {
		put_write_tag(e, second);
		none[nr_none++] = put_jcc_later(e, CC_NE);
	}
	put_kind(e, tlb, false);
	patch_rel32(e, filled, e->at);
	put_move(e, tlb, second);
	put_restore(e);
	put8(e, 0xc3);
	for (u32 i = 0; i < nr_none; i++)
		patch_rel32(e, none[i], e->at);
	put_restore(e);
	patch_rel32(e, crosses, e->at);
	put_skip(e);
	return begin;
}

static u32 emit_stack_refill(struct dbt *d, unsigned ctx)
{
	const s32 tlb = offsetof(struct mmu, tlbs) + ctx * sizeof(struct tlb);
	const struct hmem tag = MEM_GS(NOREG, tlb + (s32)offsetof(struct tlb, stack_tag));
	const struct hmem write_tag = MEM_GS(T1, tlb + (s32)offsetof(struct tlb, write));
	struct emit *e = &d->emit;
	const u32 begin = e->at = (e->at + 15) & ~15u;
	u32 crosses;

	put_alu_imm(e, W8, 7, T0, PAGE_SIZE);
	crosses = put_jcc_later(e, CC_B);
	put_rm(e, W8, 0x2b, T0, tag);
	put_tlb_place(e);
	put_rm(e, W8, 0x03, T0, write_tag);
	put_alu_imm(e, W8, 7, T0, PAGE_SIZE);
	put_jcc(e, CC_AE, d->refill[ctx][REFILL_WRITE]);
	put_load(e, T0, write_tag);
	put_store(e, tag, T0);
	put_load(e, T0, MEM_GS(T1, tlb + (s32)offsetof(struct tlb, delta)));
	put_store(e, MEM_GS(NOREG, tlb + (s32)offsetof(struct tlb, stack_delta)), T0);
	put8(e, 0xc3);
	patch_rel32(e, crosses, e->at);
	put_skip(e);
	return begin;
}

/* The entry whose place is in rax is one of the page whose negated address is in T0, which is lost. */
static void put_fixed_kept(struct emit *e, s32 tlb)
{
	const struct hmem nr = MEM_GS(NOREG, tlb + (s32)offsetof(struct tlb, nr_fixed));
	struct hmem list = MEM_GS(T0, tlb + (s32)offsetof(struct tlb, fixed_list));
	u32 full;

	put_rr(e, W8, 0xf7, 3, T0); /* neg */
	put_shift_imm(e, W8, 5, T0, PAGE_SHIFT);
	put_alu_imm(e, W4, 4, T0, TLB_FIXED_HAS - 1);
	put_rm(e, W4, 0xc6, 0, MEM_GS(T0, tlb + (s32)offsetof(struct tlb, fixed_has)));
	put8(e, 1);
	put_rm(e, W4, 0x8b, T0, nr);
	put_alu_imm(e, W4, 7, T0, TLB_FIXED_LIST);
	full = put_jcc_later(e, CC_AE);
	list.scale = 1;
	put_rm(e, W4, OPC_66 | 0x89, RAX, list);
	put_rm(e, W4, 0xff, 0, nr);
	patch_rel32(e, full, e->at);
}

/* Of two pages that have the same entry each is copied each time: by far not so dear as a call of C. */
static u32 emit_fixed_refill(struct dbt *d, unsigned ctx, bool write)
{
	const s32 tlb = offsetof(struct mmu, tlbs) + ctx * sizeof(struct tlb);
	const s32 tags = tlb + (s32)offsetof(struct tlb, fixed_tag[write]), pages = tlb + (s32)offsetof(struct tlb, fixed_page[write]);
	const struct hmem tag = MEM_GS(T1, tlb + (write ? (s32)offsetof(struct tlb, write) : (s32)offsetof(struct tlb, read)));
	struct emit *e = &d->emit;
	const u32 begin = e->at = (e->at + 15) & ~15u;
	u32 crosses;

	put_alu_imm(e, W8, 7, T0, PAGE_SIZE);
	crosses = put_jcc_later(e, CC_B);
	put_rm(e, W8, 0x2b, T0, MEM_GS(T1, tags));
	put_store(e, SLOT(CALLED + FRAME_TMP1), T1);
	put_tlb_place(e);
	put_rm(e, W8, 0x03, T0, tag);
	put_alu_imm(e, W8, 7, T0, PAGE_SIZE);
	put_jcc(e, CC_AE, d->refill[ctx][write ? REFILL_WRITE : REFILL_READ]);
	put_store(e, SLOT(CALLED + FRAME_REFILL), RAX);
	put_load(e, RAX, SLOT(CALLED + FRAME_TMP1));
	put_load(e, T0, tag);
	put_store(e, MEM_GS(RAX, tags), T0);
	put_load(e, T1, MEM_GS(T1, tlb + (s32)offsetof(struct tlb, delta)));
	put_rr(e, W8, 0x29, T0, T1); /* sub: the tag is the page, negated */
	put_store(e, MEM_GS(RAX, pages), T1);
	put_fixed_kept(e, tlb);
	put_load(e, RAX, SLOT(CALLED + FRAME_VCPU));
	put_rm(e, W8, 0xff, 0, MEM_BASE(RAX, offsetof(struct vcpu, stat.dbt_refills)));
	put_load(e, RAX, SLOT(CALLED + FRAME_REFILL));
	put8(e, 0xc3);
	patch_rel32(e, crosses, e->at);
	put_skip(e);
	return begin;
}

void dbt_emit_refills(struct dbt *d)
{
	for (unsigned ctx = 0; ctx < DBT_REFILL_CTXS; ctx++) {
		d->refill[ctx][REFILL_READ] = emit_refill(d, ctx, false);
		d->refill[ctx][REFILL_WRITE] = emit_refill(d, ctx, true);
		d->refill[ctx][REFILL_STACK] = emit_stack_refill(d, ctx);
		d->refill[ctx][REFILL_FIXED_READ] = emit_fixed_refill(d, ctx, false);
		d->refill[ctx][REFILL_FIXED_WRITE] = emit_fixed_refill(d, ctx, true);
	}
}

bool dbt_is_refill(const struct dbt *d, u32 at, u8 *ctx, enum refill_kind *kind)
{
	for (unsigned i = 0; i < NR_REFILLS * DBT_REFILL_CTXS; i++) {
		*ctx = i / NR_REFILLS;
		*kind = i % NR_REFILLS;
		if (d->refill[*ctx][*kind] == at)
			return true;
	}
	return false;
}

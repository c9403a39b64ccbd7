/* SPDX-License-Identifier: MIT */
/*
 * Jump tables: where translated code goes on for a linear address, a table per context.
 *
 * The first level is asked by blocks themselves (branch.c), has what belongs to the present mappings and mode, and is emptied when
 * these change. What it lacks common code looks for in the second level, which has another index and entries of several
 * address spaces, and copies it. So neither two places that share an entry of the first level nor a visit to another process
 * cost a look-up of blocks.
 *
 * Returns are looked for in a small table first, whose entries calls have written: by the stack pointer, which is the same after a call and
 * before its return. It stays in the host's nearest cache, as tables of all addresses of a large program do not.
 *
 *  1. A level has, for an address, code of a block that has been found there. A block that is dropped since leads away by itself
 *     (cache.c).
 *  2. An entry of the second level is good as long as its generation is the present address space's, or the one of
 *     all global pages. A space gets another one when the MMU has dropped anything it was fetched from (struct mmu_space.drops), or
 *     when the client may have written to memory. A generation is never used again.
 *  3. Which entries of the first level are in use is noted, by C and by common code, for whoever empties it. Its first one, which is
 *     empty with another value, is always emptied.
 *  4. A link (struct jump_link) is good, as an entry of the second level is, under one generation. It may lead to different targets where
 *     one page of relative code is mapped twice, so its key names the page, too. Which one it is good for
 *     changes here, and when the dispatcher has found the target.
 *  5. A page of code that the dispatcher has been to is known (jump_pages), under the generation it was then. What a link leads to is good
 *     again if the target's page is the one that the link's block is on: in a process that has just begun one visit of the
 *     dispatcher to each page will do, instead of one to each target.
 *  6. Any value may be returned to, so an empty entry of returns[] belongs to one, too: 0, and has code for it.
 */
#include "x86/dbt/dbt.h"

#define SECOND_FACTOR 0x9e3779b1u

/* What an empty entry holds: an address that belongs to another one, so that no target ever equals it. */
static u64 jump_empty(u32 i)
{
	return i ? 0 : ~0ull;
}
static_assert((u32)~0u * JUMP_FACTOR >> (32 - JUMP_TABLE_SHIFT), "~0 does not belong to entry 0");

static u32 second_index(u64 va)
{
	return (u32)va * SECOND_FACTOR >> (32 - JUMP_SECOND_SHIFT);
}

/* ---- emptying ---------------------------------------------------------------------------------- */

static void flush_returns(struct vcpu *vcpu, unsigned ctx)
{
	const void *none = vcpu->arch.dbt->mem.rx + vcpu->arch.dbt->return_none;

	for (u32 i = 0; i < RETURN_CACHE; i++)
		vcpu->arch.mmu->returns[ctx][i] = (struct jump_entry_host){ .code = none };
}

void dbt_flush_jumps(struct vcpu *vcpu, unsigned ctx)
{
	struct jump_used *used = &vcpu->arch.mmu->jump_used[ctx];
	struct jump_table *t = &vcpu->arch.mmu->jumps[ctx];

	if (used->nr < JUMP_USED_MAX) {
		for (u32 i = 0; i < used->nr; i++)
			t->at[used->at[i]].va = jump_empty(used->at[i]);
	} else {
		for (u32 i = 1; i < JUMP_TABLE_SIZE; i++)
			t->at[i].va = jump_empty(i);
	}
	t->at[0].va = jump_empty(0);
	used->nr = 0;
	used->local = false;
	flush_returns(vcpu, ctx);
}

/* As many as jump_key can name. Empty entries are of generation 0. */
#define JUMP_GENERATIONS BIT(29)

static u32 next_generation(struct dbt *d, struct mmu *mmu)
{
	if (unlikely(++d->jump_generation == JUMP_GENERATIONS)) {
		memset(mmu->jump_second, 0, sizeof(mmu->jump_second));
		for (u32 i = 0; i < d->nr_links; i++)
			mmu->jump_links[i].key = 0;
		memset(mmu->jump_pages, 0, sizeof(mmu->jump_pages));
		memset(d->space_drops, 0, sizeof(d->space_drops));
		mmu->jump_generation[1] = 1;
		d->jump_generation = 2;
	}
	return d->jump_generation;
}

/* Bits that no address of a user's page has. */
static void set_generation(struct mmu *mmu, u32 generation)
{
	mmu->jump_generation[0] = generation;
	mmu->jump_key = (generation & ~PAGE_MASK) | (u64)(generation >> PAGE_SHIFT) << 47;
}

void dbt_forget_jumps(struct vcpu *vcpu, bool all)
{
	struct mmu *mmu = vcpu->arch.mmu;
	struct dbt *d = vcpu->arch.dbt;

	memset(d->space_drops, 0, sizeof(d->space_drops));
	if (all)
		mmu->jump_generation[1] = next_generation(d, mmu);
	set_generation(mmu, next_generation(d, mmu));
	d->space_drops[mmu->space] = mmu->spaces[mmu->space].drops;
	d->space_generation[mmu->space] = mmu->jump_generation[0];
}

void dbt_renew_jumps(struct vcpu *vcpu, bool all)
{
	struct mmu *mmu = vcpu->arch.mmu;
	struct dbt *d = vcpu->arch.dbt;
	const u32 i = mmu->space;

	if (all) {
		dbt_forget_jumps(vcpu, true);
	} else if (d->space_drops[i] != mmu->spaces[i].drops) {
		d->space_generation[i] = next_generation(d, mmu);
		d->space_drops[i] = mmu->spaces[i].drops;
	}
	set_generation(mmu, d->space_generation[i]);
	for (unsigned ctx = 0; ctx < NR_TLBS; ctx++) {
		if (all || mmu->jump_used[ctx].local)
			dbt_flush_jumps(vcpu, ctx);
		else
			flush_returns(vcpu, ctx);
	}
}

/* ---- filling ----------------------------------------------------------------------------------- */

/* Of b's page, where relative code is, or all other code. Never 0. */
static u32 page_number(const struct dbt_block *b, bool relative)
{
	return (b->home + 1) << 1 | relative;
}

/* b, which begins there, is on the page that is mapped at va. */
static void add_page(struct vcpu *vcpu, u64 va, const struct dbt_block *b, unsigned ctx)
{
	struct mmu *mmu = vcpu->arch.mmu;

	mmu->jump_pages[va / PAGE_SIZE % JUMP_PAGES] = (struct jump_page){
		.va = va & PAGE_MASK, .generation = mmu->jump_generation[0], .page = page_number(b, dbt_is_relative(vcpu, ctx, va)),
	};
}

void dbt_jump_add(struct vcpu *vcpu, unsigned ctx, u64 va, const struct dbt_block *b, bool global)
{
	struct mmu *mmu = vcpu->arch.mmu;
	struct jump_used *used = &mmu->jump_used[ctx];
	u32 i = jump_table_index(va);
	struct jump_entry_host *e = &mmu->jumps[ctx].at[i];

	if (e->va == jump_empty(i) && used->nr < JUMP_USED_MAX)
		used->at[used->nr++] = i;
	used->local |= !global;
	e->va = va;
	e->code = vcpu->arch.dbt->mem.rx + b->slot_poll;
	mmu->jump_second[ctx][second_index(va)] = (struct jump_second){
		.va = va, .code = b->slot_poll, .generation = mmu->jump_generation[global],
	};
	if (ctx == TLB_USER)
		add_page(vcpu, va, b, ctx);
}

const void *dbt_jump_find(struct vcpu *vcpu, unsigned ctx, u64 va)
{
	const struct mmu *mmu = vcpu->arch.mmu;
	const struct jump_entry_host *e = &mmu->jumps[ctx].at[jump_table_index(va)];
	const struct jump_second *s = &mmu->jump_second[ctx][second_index(va)];

	if (e->va == va)
		return e->code;
	if (s->va == va && (s->generation == mmu->jump_generation[0] || s->generation == mmu->jump_generation[1]))
		return vcpu->arch.dbt->mem.rx + s->code;
	return NULL;
}

/* ---- links ------------------------------------------------------------------------------------- */

bool dbt_link_new(struct vcpu *vcpu, u32 exit, u32 *link)
{
	struct dbt *d = vcpu->arch.dbt;

	if (d->nr_links == JUMP_LINKS)
		return false;
	*link = d->nr_links++;
	/* Under no generation: 0 is never one. */
	vcpu->arch.mmu->jump_links[*link] = (struct jump_link){ .exit = exit };
	return true;
}

void dbt_link_local(struct vcpu *vcpu, const struct dbt_exit *x, const struct dbt_block *to)
{
	struct mmu *mmu = vcpu->arch.mmu;
	struct jump_link *link = &mmu->jump_links[x->stub];

	dbt_link(vcpu->arch.dbt, x, to);
	link->code = vcpu->arch.dbt->mem.rx + to->slot_poll;
	link->page = page_number(to, x->relative);
	link->key = mmu->jump_key ^ (x->relative ? vcpu->arch.block_page : 0);
}

/* ---- common code ------------------------------------------------------------------------------- */

/* rcx = index of T0 * factor, by its upper bits */
static void put_index(struct emit *e, u32 factor, unsigned shift)
{
	put_rr(e, W4, 0x69, RCX, T0); /* imul */
	put32(e, factor);
	put_shift_imm(e, W4, 5, RCX, 32 - shift);
}

/* rax = code of T0's entry in the second level, or to none[] */
static void put_second(struct dbt *d, unsigned ctx, u32 none[2])
{
	const s32 second = offsetof(struct mmu, jump_second) + ctx * JUMP_SECOND_SIZE * sizeof(struct jump_second);
	const s32 generation = offsetof(struct mmu, jump_generation);
	struct emit *e = &d->emit;
	u32 global;

	put_index(e, SECOND_FACTOR, JUMP_SECOND_SHIFT);
	static_assert(sizeof(struct jump_second) == 16, "shifted");
	put_shift_imm(e, W4, 4, RCX, 4);
	put_rm(e, W8, 0x3b, T0, MEM_GS(RCX, second + (s32)offsetof(struct jump_second, va)));
	none[0] = put_jcc_later(e, CC_NE);
	put_rm(e, W4, 0x8b, RAX, MEM_GS(RCX, second + (s32)offsetof(struct jump_second, generation)));
	put_rm(e, W4, 0x3b, RAX, MEM_GS(NOREG, generation + 4));
	global = put_jcc_later(e, CC_E);
	put_rm(e, W4, 0x3b, RAX, MEM_GS(NOREG, generation));
	none[1] = put_jcc_later(e, CC_NE);
	put_rm(e, W4, 0xc6, 0, MEM_GS(NOREG, offsetof(struct mmu, jump_used[ctx].local)));
	put8(e, 1);
	patch_rel32(e, global, e->at);
	put_rm(e, W4, 0x8b, RCX, MEM_GS(RCX, second + (s32)offsetof(struct jump_second, code)));
	put_mov_imm(e, RAX, (u64)d->mem.rx);
	put_rr(e, W8, 0x01, RCX, RAX);
}

/* T0 and rax to the first level. rcx and T1 are lost. */
static void put_first(struct dbt *d, unsigned ctx)
{
	const s32 first = offsetof(struct mmu, jumps) + ctx * sizeof(struct jump_table);
	const s32 used = offsetof(struct mmu, jump_used) + ctx * sizeof(struct jump_used);
	struct hmem at = MEM_GS(T1, used + (s32)offsetof(struct jump_used, at));
	struct emit *e = &d->emit;
	u32 noted[2];

	put_index(e, JUMP_FACTOR, JUMP_TABLE_SHIFT);
	put_mov(e, T1, RCX);
	put_shift_imm(e, W4, 4, T1, 4);
	static_assert(sizeof(struct jump_entry_host) == 16, "shifted");
	put_alu_mem_imm(e, W8, 7, MEM_GS(T1, first + (s32)offsetof(struct jump_entry_host, va)), 0);
	put_store(e, MEM_GS(T1, first + (s32)offsetof(struct jump_entry_host, va)), T0);
	put_store(e, MEM_GS(T1, first + (s32)offsetof(struct jump_entry_host, code)), RAX);
	noted[0] = put_jcc_later(e, CC_NE);
	put_rm(e, W4, 0x8b, T1, MEM_GS(NOREG, used + (s32)offsetof(struct jump_used, nr)));
	put_alu_imm(e, W4, 7, T1, JUMP_USED_MAX);
	noted[1] = put_jcc_later(e, CC_AE);
	at.scale = 2;
	put_rm(e, W4, 0x89, RCX, at);
	put_rm(e, W4, 0xff, 0, MEM_GS(NOREG, used + (s32)offsetof(struct jump_used, nr)));
	patch_rel32(e, noted[0], e->at);
	patch_rel32(e, noted[1], e->at);
}

static void put_restore(struct emit *e)
{
	put_load(e, RAX, SLOT(FRAME_REFILL));
	put_load(e, RCX, SLOT(FRAME_REFILL + 8));
}

/* A piece of its own: rax and rcx are free in it. */
static u32 put_begin(struct emit *e)
{
	const u32 begin = e->at = (e->at + 15) & ~15u;

	put_store(e, SLOT(FRAME_REFILL), RAX);
	put_store(e, SLOT(FRAME_REFILL + 8), RCX);
	return begin;
}

/* On with the code in FRAME_TMP0, for the target in T0. After that, where none[] leads, T0 and T1 are as they were there. */
static void put_go_on(struct emit *e, bool user, const u32 *none, unsigned nr_none)
{
	if (user) {
		put_alu_imm(e, W8, 4, T0, (s32)PAGE_MASK);
		put_store(e, SLOT(FRAME_PAGE), T0);
	}
	put_restore(e);
	put_rm(e, W4, 0xff, 4, SLOT(FRAME_TMP0)); /* jmp */
	for (unsigned i = 0; i < nr_none; i++)
		patch_rel32(e, none[i], e->at);
	put_restore(e);
}

/* Jumped to: T0 = target, T1 = exit or (indirect) site. Flags are in the slot. */
static u32 emit_jump(struct dbt *d, unsigned ctx, bool indirect)
{
	struct emit *e = &d->emit;
	const u32 begin = put_begin(e);
	u32 none[2];

	put_second(d, ctx, none);
	put_store(e, SLOT(FRAME_TMP0), RAX);
	put_first(d, ctx);
	put_load(e, RAX, SLOT(FRAME_VCPU));
	put_rm(e, W8, 0xff, 0, MEM_BASE(RAX, offsetof(struct vcpu, stat.dbt_jump_refills)));
	put_go_on(e, ctx >= TLB_USER, none, ARRAY_SIZE(none));
	put_store(e, SLOT(FRAME_TMP1), T0);
	put_mov(e, T0, T1);
	put_jmp(e, indirect ? d->exit_indirect : d->exit_slot);
	return begin;
}

/* rcx = place of the page of T0's address in jump_pages, if it is known at present; rax is lost */
static void put_page(struct emit *e, u32 *none)
{
	const s32 pages = offsetof(struct mmu, jump_pages);

	put_mov(e, RAX, T0);
	put_alu_imm(e, W8, 4, RAX, (s32)PAGE_MASK);
	put_mov(e, RCX, RAX);
	static_assert(sizeof(struct jump_page) == 16 && PAGE_SHIFT == 12, "shifted");
	put_shift_imm(e, W8, 5, RCX, PAGE_SHIFT - 4);
	put_alu_imm(e, W4, 4, RCX, (JUMP_PAGES - 1) << 4);
	put_rm(e, W8, 0x3b, RAX, MEM_GS(RCX, pages + (s32)offsetof(struct jump_page, va)));
	none[0] = put_jcc_later(e, CC_NE);
	put_rm(e, W4, 0x8b, RAX, MEM_GS(RCX, pages + (s32)offsetof(struct jump_page, generation)));
	put_rm(e, W4, 0x3b, RAX, MEM_GS(NOREG, offsetof(struct mmu, jump_generation)));
	none[1] = put_jcc_later(e, CC_NE);
}

/* Jumped to: T0 = target, T1 = offset of a link that is not good now. Flags are in the slot. */
static u32 emit_jump_linked(struct dbt *d, bool relative)
{
	const s32 links = offsetof(struct mmu, jump_links);
	struct emit *e = &d->emit;
	const u32 begin = put_begin(e);
	u32 none[3];

	put_page(e, none);
	put_rm(e, W4, 0x8b, RAX, MEM_GS(RCX, offsetof(struct mmu, jump_pages[0].page)));
	put_rm(e, W4, 0x3b, RAX, MEM_GS(T1, links + (s32)offsetof(struct jump_link, page)));
	none[2] = put_jcc_later(e, CC_NE);
	put_load(e, RCX, MEM_GS(NOREG, offsetof(struct mmu, jump_key)));
	if (relative)
		put_rm(e, W8, 0x33, RCX, SLOT(FRAME_PAGE));
	put_store(e, MEM_GS(T1, links + (s32)offsetof(struct jump_link, key)), RCX);
	put_load(e, RAX, MEM_GS(T1, links + (s32)offsetof(struct jump_link, code)));
	put_store(e, SLOT(FRAME_TMP0), RAX);
	put_go_on(e, true, none, ARRAY_SIZE(none));
	put_rm(e, W4, 0x8b, T0, MEM_GS(T1, links + (s32)offsetof(struct jump_link, exit)));
	put_jmp(e, d->exit_slot);
	return begin;
}

void dbt_emit_jumps(struct dbt *d)
{
	d->jump_linked[false] = emit_jump_linked(d, false);
	d->jump_linked[true] = emit_jump_linked(d, true);
	for (unsigned ctx = 0; ctx < DBT_REFILL_CTXS; ctx++)
		for (unsigned indirect = 0; indirect < 2; indirect++)
			d->jump[ctx][indirect] = emit_jump(d, ctx, indirect);
}

bool dbt_is_jump(const struct dbt *d, u32 at, bool *indirect)
{
	for (unsigned i = 0; i < 2 * DBT_REFILL_CTXS; i++) {
		*indirect = i % 2;
		if (d->jump[i / 2][*indirect] == at)
			return true;
	}
	return false;
}

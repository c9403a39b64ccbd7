/* SPDX-License-Identifier: MIT */
/* Filling and dropping of software TLB entries, and the set of pages that hold decoded code. */
#include <errno.h>
#include <stdlib.h>
#include <string.h>

#include "host/host.h"
#include "x86/knobs.h"
#include "x86/mmu/mmu_internal.h"

static void entry_clear(struct tlb *tlb, u32 i)
{
	tlb->read[i] = tlb->write[i] = TLB_INVALID;
}

/* Invariant 4 of x86/mmu.h */
static void stack_clear(struct tlb *tlb)
{
	tlb->stack_tag = TLB_INVALID;
}

static bool *fixed_has(struct tlb *tlb, gva_t va)
{
	return &tlb->fixed_has[(va >> PAGE_SHIFT) % TLB_FIXED_HAS];
}

static void fixed_clear(struct tlb *tlb)
{
	const u32 nr = tlb->nr_fixed < TLB_FIXED_LIST ? tlb->nr_fixed : TLB_FIXED;

	if (!nr)
		return;
	for (u32 i = 0; i < nr; i++) {
		const u32 n = nr == TLB_FIXED ? i : tlb->fixed_list[i] / sizeof(u64);

		tlb->fixed_tag[0][n] = tlb->fixed_tag[1][n] = TLB_INVALID;
	}
	memset(tlb->fixed_has, 0, sizeof(tlb->fixed_has));
	tlb->nr_fixed = 0;
}

/* ---- sets of pages, and a few more (Bloom filters of up to 2^17 bits) ----------- */

#define FILTER_PROBES 3

static u32 filter_bit(u64 page, unsigned probe, u32 bits)
{
	return ((page >> PAGE_SHIFT) * 0x9e3779b97f4a7c15ull) >> (47 - 17 * probe) & (bits - 1);
}

static void filter_add(u64 *filter, u32 bits, u64 page)
{
	for (unsigned i = 0; i < FILTER_PROBES; i++)
		filter[filter_bit(page, i, bits) / 64] |= BIT_ULL(filter_bit(page, i, bits) % 64);
}

static bool filter_has(const u64 *filter, u32 bits, u64 page)
{
	for (unsigned i = 0; i < FILTER_PROBES; i++)
		if (!(filter[filter_bit(page, i, bits) / 64] & BIT_ULL(filter_bit(page, i, bits) % 64)))
			return false;
	return true;
}

/* ---- pages that code was fetched from ------------------------------------------ */

static void fetched_note(struct mmu *mmu, struct tlb *tlb, gva_t va, bool global)
{
	if (global)
		filter_add(tlb->fetched_global, TLB_FETCHED_GLOBAL, va);
	else
		filter_add(mmu->spaces[mmu->space].fetched, TLB_FETCHED_LOCAL, va);
}

/* What may have been derived from a fetch of this page: TLB_DROP_*. */
static u8 fetched_kinds(const struct mmu *mmu, gva_t va)
{
	u8 kinds = filter_has(mmu->spaces[mmu->space].fetched, TLB_FETCHED_LOCAL, va) ? TLB_DROP_LOCAL : 0;

	for (int i = 0; i < NR_TLBS; i++)
		if (filter_has(mmu->tlbs[i].fetched_global, TLB_FETCHED_GLOBAL, va))
			return TLB_DROP_LOCAL | TLB_DROP_GLOBAL;
	return kinds;
}

static void fetch_clear(struct tlb *tlb, bool all)
{
	if (all)
		memset(tlb->fetched_global, 0, sizeof(tlb->fetched_global));
	if (tlb->nr_fetch_used < TLB_FETCH_USED_MAX && !(all && tlb->fetch_global)) {
		for (u32 i = 0; i < tlb->nr_fetch_used; i++)
			if (all || !tlb->fetch[tlb->fetch_used[i]].global)
				tlb->fetch[tlb->fetch_used[i]].tag = TLB_INVALID;
	} else {
		for (u32 i = 0; i < ARRAY_SIZE(tlb->fetch); i++)
			if (all || !tlb->fetch[i].global)
				tlb->fetch[i].tag = TLB_INVALID;
	}
	tlb->nr_fetch_used = 0;
	tlb->fetch_global &= !all;
}

/* ---- the second level ----------------------------------------------------------- */

static void second_clear_global(struct tlb *tlb)
{
	if (++tlb->generation[1] % TLB_GENERATIONS)
		return;
	if (tlb->second_used)
		memset(tlb->second, 0, sizeof(tlb->second));
	tlb->generation[1] = TLB_GENERATION_GLOBAL + 1;
}

/* With SOFTKVM_TLB, half of all pages: tests want to see both ways. */
static void second_fill(const struct mmu *mmu, struct tlb *tlb, gva_t va)
{
	const unsigned i = tlb_index(va);

	if (unlikely(mmu->tlb_limit) && (va >> PAGE_SHIFT & 1))
		return;
	tlb->second_used = true;
	tlb->second[tlb_second_index(va)] = (struct tlb_second){
		.key = (va & PAGE_MASK) + tlb->generation[tlb->global[i]],
		.read = tlb->read[i],
		.write = tlb->write[i] == TLB_INVALID ? TLB_INVALID : tlb->write[i] + mmu->write_generation,
		.delta = tlb->delta[i],
	};
}

static void second_flush_page(struct tlb *tlb, gva_t va)
{
	if (tlb->second_used)
		tlb->second[tlb_second_index(va)].key = 0;
}

/* They are none of the present generation any more. */
static void second_flush_write_tags(struct mmu *mmu)
{
	if (++mmu->write_generation < PAGE_SIZE)
		return;
	mmu->write_generation = 0;
	for (int t = 0; t < NR_TLBS; t++)
		for (u32 i = 0; i < TLB_SECOND && mmu->tlbs[t].second_used; i++)
			mmu->tlbs[t].second[i].write = TLB_INVALID;
}

/* ---- address spaces -------------------------------------------------------------- */

/* No more generations: nothing is left of anybody. */
static void spaces_wrap(struct mmu *mmu)
{
	for (int i = 0; i < NR_TLBS; i++)
		if (mmu->tlbs[i].second_used)
			memset(mmu->tlbs[i].second, 0, sizeof(mmu->tlbs[i].second));
	for (int i = 0; i < MMU_SPACES; i++)
		mmu->spaces[i].generation = 0;
	mmu->space_generation = 1;
}

/* Nothing is known of the present space any more. */
static void space_renew(struct mmu *mmu)
{
	struct mmu_space *s = &mmu->spaces[mmu->space];

	if (++mmu->space_generation == TLB_GENERATIONS)
		spaces_wrap(mmu);
	s->generation = mmu->space_generation;
	s->drops = ++mmu->space_drops;
	memset(s->fetched, 0, sizeof(s->fetched));
}

static void space_enter(struct mmu *mmu)
{
	for (int i = 0; i < NR_TLBS; i++)
		mmu->tlbs[i].generation[0] = mmu->spaces[mmu->space].generation;
}

static void spaces_forget(struct mmu *mmu)
{
	for (int i = 0; i < MMU_SPACES; i++)
		mmu->spaces[i].generation = 0;
	space_renew(mmu);
	space_enter(mmu);
}

/* The space of a PCID, or the one that was left longest ago. */
static u32 space_find(const struct mmu *mmu, u64 pcid)
{
	u32 oldest = 0;

	for (u32 i = 0; i < MMU_SPACES; i++) {
		if (mmu->spaces[i].generation && (mmu->spaces[i].cr3 & CR3_PCID_MASK) == pcid)
			return i;
		if (mmu->spaces[i].used < mmu->spaces[oldest].used)
			oldest = i;
	}
	return oldest;
}

/* ---- both ------------------------------------------------------------------------ */

/* But for what the second level has of address spaces. Kinds is TLB_DROP_LOCAL, or both. */
static void tlb_clear(struct tlb *tlb, u8 kinds)
{
	bool all = kinds & TLB_DROP_GLOBAL;

	stack_clear(tlb);
	fixed_clear(tlb);
	if (tlb->nr_used < TLB_USED_MAX && !(all && tlb->has_global)) {
		for (u32 i = 0; i < tlb->nr_used; i++)
			if (all || !tlb->global[tlb->used[i]])
				entry_clear(tlb, tlb->used[i]);
	} else {
		for (u32 i = 0; i < TLB_ENTRIES; i++)
			if (all || !tlb->global[i])
				entry_clear(tlb, i);
	}
	tlb->nr_used = 0;
	tlb->has_global &= !all;
	if (all)
		second_clear_global(tlb);
	tlb->fetch_generation++;
	fetch_clear(tlb, all);
}

static void count_drops(struct mmu *mmu, u8 kinds)
{
	mmu->local_drops += !!(kinds & TLB_DROP_LOCAL);
	mmu->global_drops += !!(kinds & TLB_DROP_GLOBAL);
}

int mmu_create(struct vcpu *vcpu)
{
	struct mmu *mmu = host_map_lazy(sizeof(*mmu));

	if (!mmu)
		return -ENOMEM;
	mmu->code_gfns = calloc(1024, sizeof(*mmu->code_gfns));
	if (!mmu->code_gfns) {
		host_unmap_lazy(mmu, sizeof(*mmu));
		return -ENOMEM;
	}
	mmu->code_mask = 1023;
	mmu->tlb_limit = knob(KNOB_TLB) < TLB_ENTRIES ? knob(KNOB_TLB) : 0;
	for (int i = 0; i < NR_TLBS; i++) {
		mmu->tlbs[i].nr_used = TLB_USED_MAX;
		mmu->tlbs[i].generation[1] = TLB_GENERATION_GLOBAL;
		mmu->tlbs[i].nr_fetch_used = TLB_FETCH_USED_MAX;
		mmu->tlbs[i].nr_fixed = TLB_FIXED_LIST;
		tlb_clear(&mmu->tlbs[i], TLB_DROP_LOCAL | TLB_DROP_GLOBAL);
	}
	spaces_forget(mmu);
	vcpu->arch.mmu = mmu;
	mmu_select_tlb(vcpu);
	return 0;
}

void mmu_destroy(struct vcpu *vcpu)
{
	if (!vcpu->arch.mmu)
		return;
	free(vcpu->arch.mmu->code_gfns);
	host_unmap_lazy(vcpu->arch.mmu, sizeof(*vcpu->arch.mmu));
	vcpu->arch.mmu = NULL;
	vcpu->arch.tlb = NULL;
}

void mmu_flush_all(struct vcpu *vcpu)
{
	struct mmu *mmu = vcpu->arch.mmu;

	if (!mmu)
		return;
	for (int i = 0; i < NR_TLBS; i++)
		tlb_clear(&mmu->tlbs[i], TLB_DROP_LOCAL | TLB_DROP_GLOBAL);
	spaces_forget(mmu);
	count_drops(mmu, TLB_DROP_LOCAL | TLB_DROP_GLOBAL);
	memset(mmu->large, 0, sizeof(mmu->large));
	mmu->large_overflow = false;
	mmu->last_slot = NULL;
	vcpu->stat.tlb_flush++;
}

/* Large pages stay noted: global ones may have stayed. */
static void clear_nonglobal(struct vcpu *vcpu)
{
	struct mmu *mmu = vcpu->arch.mmu;

	for (int i = 0; i < NR_TLBS; i++)
		tlb_clear(&mmu->tlbs[i], TLB_DROP_LOCAL);
	count_drops(mmu, TLB_DROP_LOCAL);
	mmu->last_slot = NULL;
	vcpu->stat.tlb_flush++;
}

void mmu_flush_nonglobal(struct vcpu *vcpu)
{
	if (!vcpu->arch.mmu)
		return;
	clear_nonglobal(vcpu);
	spaces_forget(vcpu->arch.mmu);
}

/*
 * Whatever else than a load changes CR3 flushes everything. So if the present space is not known by the CR3 that is left,
 * it is of several.
 */
void mmu_load_space(struct vcpu *vcpu, u64 cr3, bool keep)
{
	struct mmu *mmu = vcpu->arch.mmu;
	struct mmu_space *s;

	if (!mmu)
		return;
	s = &mmu->spaces[mmu->space];
	if (s->cr3 != vcpu->arch.cr3)
		s->generation = 0;
	s->used = ++mmu->space_loads;
	mmu->space = space_find(mmu, cr3 & CR3_PCID_MASK);
	s = &mmu->spaces[mmu->space];
	if (!keep || !s->generation || s->cr3 != cr3)
		space_renew(mmu);
	s->cr3 = cr3;
	space_enter(mmu);
	clear_nonglobal(vcpu);
}

void mmu_flush_space(struct vcpu *vcpu, u64 pcid)
{
	struct mmu *mmu = vcpu->arch.mmu;
	u32 i;

	if (!mmu)
		return;
	i = space_find(mmu, pcid);
	if (mmu_present_pcid(vcpu) == pcid)
		mmu_flush_nonglobal(vcpu);
	else if ((mmu->spaces[i].cr3 & CR3_PCID_MASK) == pcid)
		mmu->spaces[i].generation = 0;
}

/* Open addressing, a few steps. */
static u64 *large_slot(struct mmu *mmu, u64 key)
{
	u32 h = key * 0x9e3779b97f4a7c15ull >> 48;

	for (u32 i = 0; i < 8; i++) {
		u64 *slot = &mmu->large[(h + i) % ARRAY_SIZE(mmu->large)];

		if (!*slot || *slot == key)
			return slot;
	}
	return NULL;
}

static void large_note(struct mmu *mmu, u64 key)
{
	u64 *slot = large_slot(mmu, key);

	if (slot)
		*slot = key;
	else
		mmu->large_overflow = true;
}

static bool large_hit(struct mmu *mmu, u64 key)
{
	u64 *slot = large_slot(mmu, key);

	return slot && *slot == key;
}

#define LARGE_KEY_2M(va) (((va) >> 21) + 1)
#define LARGE_KEY_1G(va) (((va) >> 30 | BIT_ULL(63)) + 1)

void mmu_flush_page(struct vcpu *vcpu, gva_t va)
{
	struct mmu *mmu = vcpu->arch.mmu;
	u8 drops;

	vcpu->stat.invlpg++;
	if (!mmu)
		return;
	if (mmu->large_overflow || large_hit(mmu, LARGE_KEY_2M(va)) || large_hit(mmu, LARGE_KEY_1G(va))) {
		mmu_flush_all(vcpu);
		return;
	}
	for (int i = 0; i < NR_TLBS; i++) {
		struct tlb *tlb = &mmu->tlbs[i];
		struct tlb_fetch *f = &tlb->fetch[(va >> PAGE_SHIFT) % ARRAY_SIZE(tlb->fetch)];

		entry_clear(tlb, tlb_index(va));
		stack_clear(tlb);
		if (*fixed_has(tlb, va))
			fixed_clear(tlb);
		second_flush_page(tlb, va);
		if (f->tag == (va & PAGE_MASK))
			f->tag = TLB_INVALID;
	}
	drops = fetched_kinds(mmu, va);
	if (!drops)
		return;
	for (int i = 0; i < NR_TLBS; i++)
		mmu->tlbs[i].fetch_generation++;
	mmu->spaces[mmu->space].drops = ++mmu->space_drops;
	count_drops(mmu, drops);
}

void mmu_flush_write_tags(struct vcpu *vcpu)
{
	for (int t = 0; t < NR_TLBS; t++) {
		for (u32 i = 0; i < TLB_ENTRIES; i++)
			vcpu->arch.mmu->tlbs[t].write[i] = TLB_INVALID;
		stack_clear(&vcpu->arch.mmu->tlbs[t]);
		fixed_clear(&vcpu->arch.mmu->tlbs[t]);
	}
	second_flush_write_tags(vcpu->arch.mmu);
	memset(vcpu->arch.mmu->writable, 0, sizeof(vcpu->arch.mmu->writable));
}

static void note_large(struct mmu *mmu, gva_t va, unsigned page_shift)
{
	if (page_shift == 30)
		large_note(mmu, LARGE_KEY_1G(va));
	else if (page_shift > PAGE_SHIFT)
		large_note(mmu, LARGE_KEY_2M(va));
}

/* As if there were only mmu->tlb_limit entries: the one that would be in the way of entry i goes. */
static void tlb_make_room(struct mmu *mmu, struct tlb *tlb, u32 i)
{
	u16 *filled = &mmu->filled[tlb - mmu->tlbs][i % mmu->tlb_limit];

	if (*filled != i && tlb->read[*filled] != TLB_INVALID)
		tlb->read[*filled] = tlb->write[*filled] = TLB_EVICTED;
	*filled = i;
}

static void entry_fill(struct mmu *mmu, struct tlb *tlb, gva_t page, s64 delta, bool write_ok, bool global)
{
	unsigned i = tlb_index(page);

	if (unlikely(mmu->tlb_limit))
		tlb_make_room(mmu, tlb, i);
	if (global)
		tlb->has_global = true;
	else if ((tlb->read[i] == TLB_INVALID || tlb->global[i]) && tlb->nr_used < TLB_USED_MAX)
		tlb->used[tlb->nr_used++] = i;
	tlb->global[i] = global;
	/* Another translation of the page than before, perhaps. */
	if (tlb->stack_tag == -page)
		stack_clear(tlb);
	if (unlikely(*fixed_has(tlb, page)))
		fixed_clear(tlb);
	tlb->read[i] = -page;
	tlb->write[i] = write_ok ? -page : TLB_INVALID;
	tlb->delta[i] = delta;
}

bool tlb_refill(struct vcpu *vcpu, struct tlb *tlb, gva_t va, bool write)
{
	const struct tlb_second *s = &tlb->second[tlb_second_index(va)];
	gva_t page = va & PAGE_MASK;
	bool global = s->key == page + tlb->generation[1];
	bool write_ok = s->write - vcpu->arch.mmu->write_generation == s->read;

	if ((!global && s->key != page + tlb->generation[0]) || (write && !write_ok))
		return false;
	entry_fill(vcpu->arch.mmu, tlb, page, s->delta, write_ok, global);
	return true;
}

void tlb_fill(struct vcpu *vcpu, struct tlb *tlb, gva_t va, u8 *host, bool write_ok, const struct walk *walk)
{
	struct mmu *mmu = vcpu->arch.mmu;

	write_ok &= !mmu->journal;
	if (write_ok)
		filter_add(mmu->writable, MMU_WRITABLE, walk->gpa);
	entry_fill(mmu, tlb, va & PAGE_MASK, (s64)((u64)host - va), write_ok, walk->global);
	second_fill(mmu, tlb, va);
	note_large(mmu, va, walk->page_shift);
}

/* ---- pages with decoded code ------------------------------------------------ */

static u32 code_hash(gfn_t gfn)
{
	return (u32)(gfn * 0x9e3779b97f4a7c15ull >> 32);
}

#define CODE_USER(user) BIT_ULL(62 + (user))
#define CODE_USERS (CODE_USER(CODE_INTERP) | CODE_USER(CODE_DBT))
/* Stores to a page that is the interpreter's only, since it was marked. */
#define CODE_STORE BIT_ULL(50)
#define CODE_STORES (0x7ffull * CODE_STORE)
#define CODE_SHARED BIT_ULL(61)	/* used in shared_code.c; the translator's only */
#define CODE_EXTRA (CODE_USERS | CODE_SHARED | CODE_STORES)
#define INTERP_STORES_MAX 200

/* The slot of key, or the free one where it would be. */
static u64 *code_slot(u64 *table, u32 mask, u64 key)
{
	u32 i = code_hash(key) & mask;

	while (table[i] && (table[i] & ~CODE_EXTRA) != key)
		i = (i + 1) & mask;
	return &table[i];
}

static void code_grow(struct mmu *mmu)
{
	u32 mask = mmu->code_mask * 2 + 1, nr = 0;
	u64 *table = calloc(mask + 1ul, sizeof(*table));

	if (!table)
		return; /* a fuller table is slower, not wrong, until it is full */
	for (u32 i = 0; i <= mmu->code_mask; i++) {
		u64 entry = mmu->code_gfns[i];

		if (!(entry & CODE_USERS))
			continue;
		*code_slot(table, mask, entry & ~CODE_EXTRA) = entry;
		nr++;
	}
	free(mmu->code_gfns);
	mmu->code_gfns = table;
	mmu->code_mask = mask;
	mmu->code_nr = nr;
}

static u64 code_key(gpa_t page)
{
	return (page >> PAGE_SHIFT) + 1; /* 0 marks a free slot */
}

bool mmu_is_code_page(struct vcpu *vcpu, gpa_t page)
{
	const struct mmu *mmu = vcpu->arch.mmu;

	return *code_slot(mmu->code_gfns, mmu->code_mask, code_key(page)) & CODE_USERS ||
	       mmu_is_shared_code_page(vcpu->vm, page);
}

void mmu_mark_code_page(struct vcpu *vcpu, gpa_t page, enum code_user user)
{
	struct mmu *mmu = vcpu->arch.mmu;
	bool was = mmu_is_code_page(vcpu, page);
	u64 *slot;

	if (mmu->code_nr >= mmu->code_mask / 2)
		code_grow(mmu);
	if (VM_BUG_ON(mmu->code_nr >= mmu->code_mask - 1, vcpu->vm))
		return;
	slot = code_slot(mmu->code_gfns, mmu->code_mask, code_key(page));
	mmu->code_nr += !*slot;
	*slot = (*slot & (CODE_USERS | CODE_SHARED)) | code_key(page) | CODE_USER(user);
	if (!was && filter_has(mmu->writable, MMU_WRITABLE, page))
		mmu_flush_write_tags(vcpu);
}

/*
 * The interpreter never says that a page is of no more use to it: it compares what it executes with memory, and needs the mark
 * only to notice a block that changes itself. So the page is data again after some stores, until it is executed.
 */
bool mmu_code_page_store(struct vcpu *vcpu, gpa_t page)
{
	struct mmu *mmu = vcpu->arch.mmu;
	u64 *slot = code_slot(mmu->code_gfns, mmu->code_mask, code_key(page));

	if ((*slot & CODE_USERS) == CODE_USER(CODE_INTERP) && page != vcpu->arch.code_page) {
		*slot += CODE_STORE;
		if ((*slot & CODE_STORES) > INTERP_STORES_MAX * CODE_STORE) {
			*slot &= ~CODE_EXTRA;
			mmu->interp_unmarks++;
		}
	}
	return mmu_is_code_page(vcpu, page);
}

static void entry_unmark(struct vcpu *vcpu, u64 *slot, u64 users)
{
	if ((users & CODE_USER(CODE_DBT)) && (*slot & CODE_SHARED)) {
		mmu_unshare_code_page(vcpu->vm, ((*slot & ~CODE_EXTRA) - 1) << PAGE_SHIFT);
		*slot &= ~CODE_SHARED;
	}
	*slot &= ~users;
}

void mmu_unmark_code_page(struct vcpu *vcpu, gpa_t page, enum code_user user)
{
	struct mmu *mmu = vcpu->arch.mmu;

	entry_unmark(vcpu, code_slot(mmu->code_gfns, mmu->code_mask, code_key(page)), CODE_USER(user));
}

bool mmu_note_shared(struct vcpu *vcpu, gpa_t page)
{
	struct mmu *mmu = vcpu->arch.mmu;
	u64 *slot = code_slot(mmu->code_gfns, mmu->code_mask, code_key(page));

	if (*slot & CODE_SHARED)
		return false;
	*slot |= CODE_SHARED;
	return true;
}

void mmu_unmark_code_pages(struct vcpu *vcpu, enum code_user user)
{
	struct mmu *mmu = vcpu->arch.mmu;

	for (u32 i = 0; mmu->code_nr && i <= mmu->code_mask; i++)
		entry_unmark(vcpu, &mmu->code_gfns[i], CODE_USER(user));
}

void mmu_clear_code_pages(struct vcpu *vcpu)
{
	struct mmu *mmu = vcpu->arch.mmu;

	if (!mmu)
		return;
	mmu_unmark_code_pages(vcpu, CODE_DBT);
	memset(mmu->code_gfns, 0, (mmu->code_mask + 1ul) * sizeof(*mmu->code_gfns));
	mmu->code_nr = 0;
}

struct memslot *mmu_find_slot(struct vcpu *vcpu, gpa_t gpa)
{
	struct mmu *mmu = vcpu->arch.mmu;
	gfn_t gfn = gpa >> PAGE_SHIFT;
	struct memslot *slot = mmu ? mmu->last_slot : NULL;

	if (likely(slot && gfn - slot->base_gfn < slot->npages))
		return slot;
	slot = memslots_find(vcpu->slots, gfn);
	if (mmu)
		mmu->last_slot = slot;
	return slot;
}

const u8 *mmu_fetched_page(struct vcpu *vcpu, gva_t va)
{
	struct tlb *tlb = &vcpu->arch.mmu->tlbs[vcpu->arch.cpl == 3 ? TLB_USER : TLB_KERNEL];
	struct tlb_fetch *f = &tlb->fetch[(va >> PAGE_SHIFT) % ARRAY_SIZE(tlb->fetch)];

	return f->tag == (va & PAGE_MASK) ? f->host : NULL;
}

enum exec mmu_fetch_page(struct vcpu *vcpu, gva_t va, gpa_t *page_gpa, u8 **host)
{
	struct tlb *tlb = &vcpu->arch.mmu->tlbs[vcpu->arch.cpl == 3 ? TLB_USER : TLB_KERNEL];
	struct tlb_fetch *f = &tlb->fetch[(va >> PAGE_SHIFT) % ARRAY_SIZE(tlb->fetch)];
	struct memslot *slot;
	struct walk walk;
	enum exec r;

	if (likely(f->tag == (va & PAGE_MASK))) {
		*page_gpa = f->gpa;
		*host = f->host;
		return EXEC_OK;
	}
	r = mmu_walk(vcpu, va, MMU_FETCH | (vcpu->arch.cpl == 3 ? MMU_USER : 0), &walk);
	if (r != EXEC_OK)
		return r;
	slot = mmu_find_slot(vcpu, walk.gpa);
	if (!slot && !vm_gfn_is_private(vcpu->vm, walk.gpa >> PAGE_SHIFT))
		return EXEC_UNHANDLED;
	*host = slot ? vcpu_guest_host(vcpu, slot, walk.gpa & PAGE_MASK) : NULL;
	if (unlikely(!*host))
		return mmu_memory_fault(vcpu, walk.gpa, MMU_FETCH);
	fetched_note(vcpu->arch.mmu, tlb, va, walk.global);
	f->tag = va & PAGE_MASK;
	f->gpa = *page_gpa = walk.gpa & PAGE_MASK;
	f->host = *host;
	f->global = walk.global;
	if (walk.global)
		tlb->fetch_global = true;
	else if (tlb->nr_fetch_used < TLB_FETCH_USED_MAX)
		tlb->fetch_used[tlb->nr_fetch_used++] = f - tlb->fetch;
	note_large(vcpu->arch.mmu, va, walk.page_shift);
	return EXEC_OK;
}

bool mmu_fetch_is_global(struct vcpu *vcpu, gva_t va)
{
	struct tlb *tlb = &vcpu->arch.mmu->tlbs[vcpu->arch.cpl == 3 ? TLB_USER : TLB_KERNEL];

	return tlb->fetch[(va >> PAGE_SHIFT) % ARRAY_SIZE(tlb->fetch)].global;
}

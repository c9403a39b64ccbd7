/* SPDX-License-Identifier: MIT */
/* Filling and dropping of software TLB entries, and the set of pages that hold decoded code. */
#include <errno.h>
#include <stdlib.h>
#include <string.h>

#include "x86/mmu/mmu_internal.h"

static void tlb_clear(struct tlb *tlb)
{
	if (tlb->nr_used < TLB_USED_MAX) {
		for (u32 i = 0; i < tlb->nr_used; i++)
			tlb->read[tlb->used[i]] = tlb->write[tlb->used[i]] = TLB_INVALID;
	} else {
		for (u32 i = 0; i < TLB_ENTRIES; i++)
			tlb->read[i] = tlb->write[i] = TLB_INVALID;
	}
	tlb->nr_used = 0;
	for (u32 i = 0; i < ARRAY_SIZE(tlb->fetch); i++)
		tlb->fetch[i].tag = TLB_INVALID;
	tlb->fetch_generation++;
}

int mmu_create(struct vcpu *vcpu)
{
	struct mmu *mmu = calloc(1, sizeof(*mmu));

	if (!mmu)
		return -ENOMEM;
	mmu->code_gfns = calloc(1024, sizeof(gfn_t));
	if (!mmu->code_gfns) {
		free(mmu);
		return -ENOMEM;
	}
	mmu->code_mask = 1023;
	for (int i = 0; i < NR_TLBS; i++) {
		mmu->tlbs[i].nr_used = TLB_USED_MAX;
		tlb_clear(&mmu->tlbs[i]);
	}
	vcpu->arch.mmu = mmu;
	mmu_select_tlb(vcpu);
	return 0;
}

void mmu_destroy(struct vcpu *vcpu)
{
	if (!vcpu->arch.mmu)
		return;
	free(vcpu->arch.mmu->code_gfns);
	free(vcpu->arch.mmu);
	vcpu->arch.mmu = NULL;
	vcpu->arch.tlb = NULL;
}

void mmu_flush_all(struct vcpu *vcpu)
{
	struct mmu *mmu = vcpu->arch.mmu;

	if (!mmu)
		return;
	for (int i = 0; i < NR_TLBS; i++)
		tlb_clear(&mmu->tlbs[i]);
	memset(mmu->large, 0, sizeof(mmu->large));
	mmu->large_overflow = false;
	mmu->last_slot = NULL;
	vcpu->stat.tlb_flush++;
}

static void large_note(struct mmu *mmu, u64 key)
{
	u64 *slot = &mmu->large[key % ARRAY_SIZE(mmu->large)];

	if (*slot && *slot != key)
		mmu->large_overflow = true;
	*slot = key;
}

static bool large_hit(const struct mmu *mmu, u64 key)
{
	return mmu->large[key % ARRAY_SIZE(mmu->large)] == key;
}

#define LARGE_KEY_2M(va) (((va) >> 21) + 1)
#define LARGE_KEY_1G(va) (((va) >> 30 | BIT_ULL(63)) + 1)

void mmu_flush_page(struct vcpu *vcpu, gva_t va)
{
	struct mmu *mmu = vcpu->arch.mmu;

	vcpu->stat.invlpg++;
	if (!mmu)
		return;
	if (mmu->large_overflow || large_hit(mmu, LARGE_KEY_2M(va)) || large_hit(mmu, LARGE_KEY_1G(va))) {
		mmu_flush_all(vcpu);
		return;
	}
	for (int i = 0; i < NR_TLBS; i++) {
		struct tlb *tlb = &mmu->tlbs[i];

		tlb->read[tlb_index(va)] = tlb->write[tlb_index(va)] = TLB_INVALID;
		tlb->fetch[(va >> PAGE_SHIFT) % ARRAY_SIZE(tlb->fetch)].tag = TLB_INVALID;
		tlb->fetch_generation++;
	}
}

void mmu_flush_write_tags(struct vcpu *vcpu)
{
	for (int t = 0; t < NR_TLBS; t++)
		for (u32 i = 0; i < TLB_ENTRIES; i++)
			vcpu->arch.mmu->tlbs[t].write[i] = TLB_INVALID;
}

void tlb_fill(struct vcpu *vcpu, struct tlb *tlb, gva_t va, u8 *host, bool write_ok, unsigned page_shift)
{
	unsigned i = tlb_index(va);
	gva_t page = va & PAGE_MASK;

	if (tlb->read[i] == TLB_INVALID && tlb->nr_used < TLB_USED_MAX)
		tlb->used[tlb->nr_used++] = i;
	tlb->read[i] = -page;
	tlb->write[i] = write_ok ? -page : TLB_INVALID;
	tlb->delta[i] = (s64)((u64)host - va);
	if (page_shift == 30)
		large_note(vcpu->arch.mmu, LARGE_KEY_1G(va));
	else if (page_shift > PAGE_SHIFT)
		large_note(vcpu->arch.mmu, LARGE_KEY_2M(va));
}

/* ---- pages with decoded code ------------------------------------------------ */

static u32 code_hash(gfn_t gfn)
{
	return (u32)(gfn * 0x9e3779b97f4a7c15ull >> 32);
}

static bool code_insert(gfn_t *table, u32 mask, gfn_t key)
{
	u32 i = code_hash(key) & mask;

	for (; table[i]; i = (i + 1) & mask)
		if (table[i] == key)
			return false;
	table[i] = key;
	return true;
}

static void code_grow(struct mmu *mmu)
{
	u32 mask = mmu->code_mask * 2 + 1;
	gfn_t *table = calloc(mask + 1ul, sizeof(gfn_t));

	if (!table)
		return; /* a fuller table is slower, not wrong, until it is full */
	for (u32 i = 0; i <= mmu->code_mask; i++)
		if (mmu->code_gfns[i])
			code_insert(table, mask, mmu->code_gfns[i]);
	free(mmu->code_gfns);
	mmu->code_gfns = table;
	mmu->code_mask = mask;
}

bool mmu_is_code_page(struct vcpu *vcpu, gpa_t page)
{
	const struct mmu *mmu = vcpu->arch.mmu;
	gfn_t key = (page >> PAGE_SHIFT) + 1; /* 0 marks a free slot */

	for (u32 i = code_hash(key) & mmu->code_mask; mmu->code_gfns[i]; i = (i + 1) & mmu->code_mask)
		if (mmu->code_gfns[i] == key)
			return true;
	return false;
}

void mmu_mark_code_page(struct vcpu *vcpu, gpa_t page)
{
	struct mmu *mmu = vcpu->arch.mmu;

	if (mmu_is_code_page(vcpu, page))
		return;
	if (mmu->code_nr >= mmu->code_mask / 2)
		code_grow(mmu);
	if (VM_BUG_ON(mmu->code_nr >= mmu->code_mask - 1, vcpu->vm))
		return;
	code_insert(mmu->code_gfns, mmu->code_mask, (page >> PAGE_SHIFT) + 1);
	mmu->code_nr++;
	mmu_flush_write_tags(vcpu);
}

void mmu_clear_code_pages(struct vcpu *vcpu)
{
	struct mmu *mmu = vcpu->arch.mmu;

	if (!mmu)
		return;
	memset(mmu->code_gfns, 0, (mmu->code_mask + 1ul) * sizeof(gfn_t));
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
	if (!slot)
		return EXEC_UNHANDLED;
	f->tag = va & PAGE_MASK;
	f->gpa = *page_gpa = walk.gpa & PAGE_MASK;
	f->host = *host = (u8 *)memslot_hva(slot, walk.gpa & PAGE_MASK);
	if (walk.page_shift == 30)
		large_note(vcpu->arch.mmu, LARGE_KEY_1G(va));
	else if (walk.page_shift > PAGE_SHIFT)
		large_note(vcpu->arch.mmu, LARGE_KEY_2M(va));
	return EXEC_OK;
}

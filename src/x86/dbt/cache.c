/* SPDX-License-Identifier: MIT */
/*
 * What has been translated, and whether it still means what the guest's memory says.
 *
 *  1. A page with translations keeps the 4 KiB it was translated from. Stores by
 *     this vCPU cannot hit it unnoticed: the MMU gives such pages no write tag and
 *     notes the stores that come through its slow path (dbt_take_code_stores()).
 *  2. Nobody tells of stores by the client and by DMA: the first look-up of a page
 *     after anything was dropped from the fetch side of the TLB compares all of it.
 *     Code reached without a look-up is in a page that has been looked up, or is
 *     on the same page.
 *  3. A block that is no longer true gets a jump to its exit written over its
 *     beginning, later to its successor, so that nobody needs to know who leads
 *     to it. Its memory is not used again before everything is dropped.
 *  4. With more than one vCPU the others' stores come through mmu/shared_code.c.
 *  5. Links to other pages lead to pages mapped globally only, and are undone
 *     when a global fetch translation is dropped (dbt_unlink_far()).
 *  6. A block whose first instruction goes on on the next page is both pages' (struct dbt_tail), and leads a life in the
 *     jump table only: the dispatcher looks at both pages before it is entered there.
 */
#include <errno.h>
#include <stdlib.h>

#include "kvm/guest_memfd.h"
#include "x86/dbt/dbt.h"
#include "x86/dbt/diff.h"
#include "x86/dbt/verify.h"
#include "x86/dbt/watch.h"
#include "x86/interp/interp.h"
#include "x86/knobs.h"

static bool fault_handler(int sig, siginfo_t *info, ucontext_t *uc);

static void dbt_free(struct dbt *d)
{
	if (d->mem.rx) {
		host_register_code_fault(d->mem.rx, d->mem.rx + d->mem.size, NULL);
		codemem_free(&d->mem);
	}
	host_unmap_lazy(d->sites, d->max_sites * sizeof(*d->sites));
	host_unmap_lazy(d->exits, d->max_exits * sizeof(*d->exits));
	host_unmap_lazy(d->faults, d->max_faults * sizeof(*d->faults));
	host_unmap_lazy(d->far_links, DBT_MAX_FAR_LINKS * sizeof(*d->far_links));
	host_unmap_lazy(d->arena, d->arena_size);
	free(d->pages);
	free(d->scratch);
	decode_cache_destroy(d);
	diff_destroy(d);
	dbt_verifier_destroy(d);
	host_unmap_lazy(d, sizeof(*d));
}

static void set_limits(struct dbt *d, size_t code)
{
	d->max_sites = code / DBT_CODE_PER_SITE;
	d->max_exits = code / DBT_CODE_PER_EXIT;
	d->max_faults = code / DBT_CODE_PER_FAULT;
	d->arena_size = DBT_ARENA_PER_CODE * code;
}

/* Where the straight paths end, and the rest begins: of that there are two bytes to three. */
static void split_code(struct dbt *d)
{
	d->cold_start = (d->code_start + (u64)(d->mem.size - d->code_start) * 3 / 5) & ~63u;
	d->emit.end = d->cold_start;
	d->cold = (struct emit){ .base = d->mem.rw, .at = d->cold_start, .end = d->mem.size, .bmi2 = d->emit.bmi2 };
}

static bool host_has_bmi2(void)
{
	u32 eax, ebx, ecx, edx;

	host_cpuid(0, 0, &eax, &ebx, &ecx, &edx);
	if (eax < 7)
		return false;
	host_cpuid(7, 0, &eax, &ebx, &ecx, &edx);
	return ebx & BIT(8);
}

int dbt_create(struct vcpu *vcpu)
{
	const size_t cache = (size_t)knob(KNOB_DBT_CACHE) << 10;
	struct dbt *d = host_map_lazy(sizeof(*d));

	if (!d)
		return -ENOMEM;
	set_limits(d, max(cache, DBT_RECORDS_FOR));
	d->sites = host_map_lazy(d->max_sites * sizeof(*d->sites));
	d->exits = host_map_lazy(d->max_exits * sizeof(*d->exits));
	d->faults = host_map_lazy(d->max_faults * sizeof(*d->faults));
	d->far_links = host_map_lazy(DBT_MAX_FAR_LINKS * sizeof(*d->far_links));
	d->arena = host_map_lazy(d->arena_size);
	d->pages = calloc(DBT_PAGE_HASH_SIZE, sizeof(*d->pages));
	if (!d->sites || !d->exits || !d->faults || !d->far_links || !d->arena || !d->pages ||
	    dbt_scratch_create(d) || decode_cache_create(d) || codemem_init(&d->mem, cache) ||
	    (diff_wanted() && diff_create(vcpu, d))) {
		dbt_free(d);
		return -ENOMEM;
	}
	if (!host_register_code_fault(d->mem.rx, d->mem.rx + d->mem.size, fault_handler)) {
		dbt_free(d);
		return -ENOMEM;
	}
	d->emit = (struct emit){ .base = d->mem.rw, .at = 64, .end = d->mem.size, .bmi2 = host_has_bmi2() };
	dbt_emit_common(d);
	split_code(d);
	perfmap_common(d);
	vcpu->arch.dbt = d;
	vcpu->arch.mmu->note_code_stores = true;
	dbt_flush_all(vcpu);
	if (knob(KNOB_DBT_VERIFY) && dbt_verifier_create(vcpu, d)) {
		dbt_destroy(vcpu);
		return -ENOMEM;
	}
	return 0;
}

void dbt_destroy(struct vcpu *vcpu)
{
	if (vcpu->arch.dbt)
		dbt_free(vcpu->arch.dbt);
	vcpu->arch.dbt = NULL;
}

void dbt_flush_all(struct vcpu *vcpu)
{
	struct dbt *d = vcpu->arch.dbt;

	memset(d->pages, 0, DBT_PAGE_HASH_SIZE * sizeof(*d->pages));
	/* Or stores to what they will be used for take the slow path for ever. */
	mmu_unmark_code_pages(vcpu, CODE_DBT);
	d->arena_used = 0;
	d->nr_sites = d->nr_exits = 0;
	d->nr_faults = d->common_faults;
	d->nr_far_links = d->nr_links = 0;
	d->emit.at = d->code_start;
	d->cold.at = d->cold_start;
	decode_cache_flush(vcpu);
	dbt_verifier_reset(d);
	vcpu->arch.mmu->nr_code_stores = 0;
	for (unsigned ctx = 0; ctx < NR_TLBS; ctx++)
		dbt_flush_jumps(vcpu, ctx);
	dbt_forget_jumps(vcpu, true);
	vcpu->stat.dbt_flushes++;
}

bool dbt_has_room(const struct dbt *d)
{
	return d->emit.at + DBT_BLOCK_PART <= d->emit.end && d->cold.at + DBT_BLOCK_PART <= d->cold.end && decode_cache_has_room(d) &&
	       d->nr_sites + 4 * DBT_BLOCK_INSNS <= d->max_sites &&
	       d->nr_exits + 4 * DBT_BLOCK_INSNS <= d->max_exits &&
	       d->nr_faults + 4 * DBT_BLOCK_INSNS <= d->max_faults &&
	       d->arena_used + 2 * sizeof(struct dbt_page) + sizeof(struct dbt_block) + 256 + 8 * DBT_BLOCK_INSNS <= d->arena_size;
}

void *dbt_arena_alloc(struct dbt *d, size_t size)
{
	void *p = d->arena + d->arena_used;

	d->arena_used += (size + DBT_ARENA_UNIT - 1) & ~(DBT_ARENA_UNIT - 1);
	return p;
}

static struct dbt_page **page_slot(const struct dbt *d, gpa_t gpa)
{
	return &d->pages[(gpa >> PAGE_SHIFT) * 0x9e3779b97f4a7c15ull >> 40 & (DBT_PAGE_HASH_SIZE - 1)];
}

static struct dbt_page *page_find_any(struct dbt *d, gpa_t gpa)
{
	struct dbt_page *p = *page_slot(d, gpa);

	while (p && p->gpa != gpa)
		p = p->next;
	return p;
}

/* ---- blocks ---------------------------------------------------------------------- */

/* By their places on it. */
static u64 *bucket_of(struct dbt_page *page, u64 place)
{
	return &page->buckets[(place ^ place >> 6) % DBT_PAGE_BUCKETS];
}

static struct dbt_block *block_of(u64 ref)
{
	return (struct dbt_block *)(ref & DBT_REF_BLOCK);
}

void dbt_page_expect(const struct dbt *d, gpa_t gpa, u64 va)
{
	struct dbt_page *page = *page_slot(d, gpa & PAGE_MASK);

	if (!page)
		return;
	__builtin_prefetch(page);
	__builtin_prefetch(bucket_of(page, va & ~PAGE_MASK));
	__builtin_prefetch(page->bytes + (va & ~PAGE_MASK));
}

struct dbt_block *dbt_block_find(const struct dbt_page *page, u64 va, u32 mode_key, unsigned ctx, bool narrow)
{
	const u64 place = va & ~PAGE_MASK;
	u64 ref = *bucket_of((struct dbt_page *)page, place);

	for (; ref; ref = ref & DBT_REF_MORE ? block_of(ref)->next : 0) {
		struct dbt_block *b = block_of(ref);

		if ((ref >> DBT_REF_PLACE & ~PAGE_MASK) == place && b->va == va && b->mode_key == mode_key && b->ctx == ctx &&
		    b->narrow == narrow)
			return b;
	}
	return NULL;
}

void dbt_block_add(struct dbt *d, struct dbt_page *page, struct dbt_block *b, struct dbt_page *tail, unsigned tail_len)
{
	const u64 place = b->va & ~PAGE_MASK;
	u64 *bucket = bucket_of(page, place);
	struct dbt_tail *t;

	b->next = *bucket;
	*bucket = (u64)b | place << DBT_REF_PLACE | (b->next ? DBT_REF_MORE : 0);
	b->home = ((const u8 *)page - d->arena) / DBT_ARENA_UNIT;
	page->nr_blocks++;
	if (likely(!tail))
		return;
	t = dbt_arena_alloc(d, sizeof(*t));
	*t = (struct dbt_tail){ .next = tail->tails, .block = b, .len = tail_len };
	tail->tails = t;
}

/* Whoever comes to this place of a block that is no more leaves, and later is led on to the translation that takes its place. */
static void divert(struct dbt *d, const struct dbt_block *b, u32 at, u32 leave, u32 exit)
{
	struct emit e = d->emit;

	e.at = at;
	put_jmp(&e, leave);
	d->exits[exit].field = e.at - 4;
	d->exits[exit].linkable = true;
	d->exits[exit].stub = ((u8 *)b - d->arena) / DBT_ARENA_UNIT;
	d->exits[exit].dropped = true;
}

/* Nobody executes in it now; whoever comes is sent to the dispatcher. */
static void block_invalidate(struct vcpu *vcpu, struct dbt_block *b)
{
	struct dbt *d = vcpu->arch.dbt;
	struct emit e = d->emit;

	b->dead = true;
	/* Its ways out may lie where the jumps are now. */
	for (u32 i = b->first_exit; i < b->end_exit; i++)
		d->exits[i].linkable = d->exits[i].far = d->exits[i].local = false;
	if (!b->leave_host) {
		divert(d, b, b->main, b->leave, b->self);
	} else {
		/* To this block flags were dead, but not to what comes instead: it must be known where they are. */
		divert(d, b, b->slot, b->leave, b->self);
		divert(d, b, b->main, b->leave_host, b->self_host);
		e.at = b->host_poll;
		put_jmp(&e, b->leave_host);
	}
	vcpu->stat.blocks_invalidated++;
}

static void block_unlist(struct dbt *d, const struct dbt_block *b)
{
	struct dbt_page *page = page_find_any(d, b->gpa & PAGE_MASK);
	u64 *link = bucket_of(page, b->va & ~PAGE_MASK);

	while (block_of(*link) != b)
		link = &block_of(*link)->next;
	*link = b->next;
	page->nr_blocks--;
}

/* As page_invalidate(), of the blocks that begin on the page before. */
static bool tails_invalidate(struct vcpu *vcpu, struct dbt_page *page, u64 start, const u8 *only)
{
	struct dbt_tail **link = &page->tails, *t;
	bool any = false;

	while ((t = *link)) {
		if (!t->block->dead && t->len > start && (!only || host_compare(page->bytes, only, t->len))) {
			block_unlist(vcpu->arch.dbt, t->block);
			block_invalidate(vcpu, t->block);
			any = true;
		}
		if (t->block->dead)
			*link = t->next;
		else
			link = &t->next;
	}
	return any;
}

/* All blocks of page that have bytes in [start, end) and, with only set, no longer equal those at host. */
static bool page_invalidate(struct vcpu *vcpu, struct dbt_page *page, u64 start, u64 end, const u8 *only)
{
	u32 was = page->nr_blocks;

	for (unsigned i = 0; i < DBT_PAGE_BUCKETS && page->nr_blocks; i++) {
		struct dbt_block *b, *next;

		for (b = block_of(page->buckets[i]); b; b = next) {
			u64 off = b->gpa & ~PAGE_MASK;

			next = block_of(b->next);
			if (off >= end || off + b->len <= start || (only && !host_compare(page->bytes + off, only + off, b->len)))
				continue;
			block_unlist(vcpu->arch.dbt, b);
			block_invalidate(vcpu, b);
		}
	}
	return tails_invalidate(vcpu, page, start, only) || page->nr_blocks != was;
}

void dbt_drop(struct vcpu *vcpu, gpa_t gpa)
{
	struct dbt_page *page = dbt_page_find(vcpu->arch.dbt, gpa & PAGE_MASK);
	u64 off = gpa & ~PAGE_MASK;

	if (page)
		page_invalidate(vcpu, page, off, off + 1, NULL);
}

/* ---- pages ------------------------------------------------------------------------- */

struct dbt_page *dbt_page_find(struct dbt *d, gpa_t gpa)
{
	struct dbt_page *p = page_find_any(d, gpa);

	return p && p->marked ? p : NULL;
}

/* Its bytes as they are now; from here on stores are noticed. False: not now, or *r. */
static bool page_mark(struct vcpu *vcpu, struct dbt_page *page, const u8 *host, enum exec *r)
{
	struct dbt *d = vcpu->arch.dbt;

	/* Before the bytes are read: a later store will then be noticed. */
	mmu_mark_code_page(vcpu, page->gpa, CODE_DBT);
	if (d->many_vcpus && !mmu_share_code_page(vcpu, page->gpa))
		return false; /* the interpreter can do without */
	if (host_copy(page->bytes, host, PAGE_SIZE)) {
		*r = mem_access_failed();
		return false;
	}
	page->verified = d->generation;
	page->verified_global = d->global_generation;
	page->stores = 0;
	page->marked = true;
	return true;
}

static struct dbt_page *page_create(struct dbt *d, gpa_t gpa)
{
	struct dbt_page *page = dbt_arena_alloc(d, sizeof(*page)), **slot = page_slot(d, gpa);

	memset(page->buckets, 0, sizeof(page->buckets));
	page->nr_blocks = 0;
	page->tails = NULL;
	page->gpa = gpa;
	page->marked = false;
	page->next = *slot;
	*slot = page;
	return page;
}

/* Room for two pages and a block was made sure of by the caller (dbt_has_room()). */
struct dbt_page *dbt_page_get(struct vcpu *vcpu, gpa_t gpa, const u8 *host, bool global, enum exec *r)
{
	struct dbt *d = vcpu->arch.dbt;
	struct dbt_page *page = page_find_any(d, gpa);
	int differs;

	*r = EXEC_OK;
	if (unlikely(!page || !page->marked)) {
		if (!page)
			page = page_create(d, gpa);
		return page_mark(vcpu, page, host, r) ? page : NULL;
	}
	if (likely(global ? page->verified_global == d->global_generation : page->verified == d->generation))
		return page;
	differs = host_compare(page->bytes, host, PAGE_SIZE);
	if (differs < 0) {
		*r = mem_access_failed();
		return NULL;
	}
	if (differs) {
		page_invalidate(vcpu, page, 0, PAGE_SIZE, host);
		if (host_copy(page->bytes, host, PAGE_SIZE)) {
			*r = mem_access_failed();
			return NULL;
		}
	}
	page->verified = d->generation;
	page->verified_global = d->global_generation;
	return page;
}

#define PAGE_STORES_MAX 200

static bool take_code_store(struct vcpu *vcpu, const struct code_store *st)
{
	struct dbt *d = vcpu->arch.dbt;
	struct dbt_page *page = dbt_page_find(d, st->gpa & PAGE_MASK);
	u64 off = st->gpa & ~PAGE_MASK;
	struct memslot *slot;
	bool any;
	u8 *host;

	if (!page)
		return false;
	any = page_invalidate(vcpu, page, off, off + st->len, NULL);
	/* Data by now: no more trouble with each store. */
	if ((!page->nr_blocks && !page->tails) || ++page->stores > PAGE_STORES_MAX) {
		any |= page_invalidate(vcpu, page, 0, PAGE_SIZE, NULL);
		page->marked = false;
		mmu_unmark_code_page(vcpu, page->gpa, CODE_DBT);
		return any;
	}
	slot = mmu_find_slot(vcpu, st->gpa);
	/* If it cannot be read now, the next look-up will see. */
	host = slot ? vcpu_guest_host(vcpu, slot, st->gpa) : NULL;
	if (!host || host_copy(page->bytes + off, host, st->len)) {
		host_kicked = false;
		page_invalidate(vcpu, page, 0, PAGE_SIZE, NULL);
		page->verified = d->generation - 1;
		page->verified_global = d->global_generation - 1;
		return true;
	}
	return any;
}

bool dbt_take_code_stores(struct vcpu *vcpu)
{
	struct mmu *mmu = vcpu->arch.mmu;
	bool any = false;

	if (mmu->nr_code_stores > CODE_STORES_MAX || !dbt_has_room(vcpu->arch.dbt)) {
		mmu_publish_code_stores(vcpu);
		dbt_flush_all(vcpu);
		return true;
	}
	for (u32 i = 0; i < mmu->nr_code_stores; i++)
		any |= take_code_store(vcpu, &mmu->code_stores[i]);
	mmu_publish_code_stores(vcpu);
	return any;
}

void dbt_take_code_log(struct vcpu *vcpu)
{
	struct dbt *d = vcpu->arch.dbt;
	struct code_store stores[SHARED_CODE_LOG];
	unsigned n = mmu_read_code_log(vcpu->vm, &d->code_log_seen, stores);

	if (n > SHARED_CODE_LOG) {
		dbt_flush(vcpu); /* most pages will turn out to be as they were */
		return;
	}
	for (unsigned i = 0; i < n; i++)
		take_code_store(vcpu, &stores[i]);
}

/* ---- ways from block to block ---------------------------------------------------------- */

/* In either part of the code: what this one ends with is the end of all. */
static void patch_exit(struct dbt *d, const struct dbt_exit *x, u32 target)
{
	patch_rel32(&d->cold, x->field, target);
}

/*
 * Every cycle of links has one that does not lead forward in our code: requests are looked at there. Where a block is, is where
 * its straight path is: from there on to a link that is part of it one goes forward, and the others, off
 * it, are behind the straight paths of all blocks: none of them leads forward. A return does not tell where it comes from.
 */
void dbt_link(struct dbt *d, const struct dbt_exit *x, const struct dbt_block *to)
{
	bool poll = x->returned_to || to->main <= x->field;
	u32 target = x->host_flags ? (poll ? to->host_poll : to->host) : (poll ? to->slot_poll : to->slot);

	patch_exit(d, x, target);
}

/* A link to another page: whoever undoes it must find it. */
void dbt_link_far(struct dbt *d, u32 exit, const struct dbt_block *to)
{
	if (d->nr_far_links == DBT_MAX_FAR_LINKS)
		return;
	d->far_links[d->nr_far_links++] = exit;
	dbt_link(d, &d->exits[exit], to);
}

void dbt_unlink_far(struct dbt *d)
{
	for (u32 i = 0; i < d->nr_far_links; i++) {
		const struct dbt_exit *x = &d->exits[d->far_links[i]];

		if (x->far)
			patch_exit(d, x, x->stub);
	}
	d->nr_far_links = 0;
}

/* ---- faults -------------------------------------------------------------------------------- */

static const struct dbt_fault_row *fault_find(const struct dbt *d, u32 at)
{
	u32 lo = 0, hi = d->nr_faults;

	while (lo < hi) {
		u32 mid = (lo + hi) / 2;

		if (d->faults[mid].at == at)
			return &d->faults[mid];
		if (d->faults[mid].at < at)
			lo = mid + 1;
		else
			hi = mid;
	}
	return NULL;
}

/*
 * In a signal handler, on the thread that runs translated code: the instruction at the
 * PC did not happen. Its handler will do it again and find out what is wrong.
 */
static bool fault_handler(int sig, siginfo_t *info, ucontext_t *uc)
{
	struct host_guest_ctx *ctx = host_guest_current;
	greg_t *gregs = uc->uc_mcontext.gregs;
	const struct dbt_fault_row *row;
	struct vcpu *vcpu;
	struct dbt *d;
	u8 *frame;

	if (!ctx || !ctx->requests)
		return false;
	vcpu = container_of(ctx->requests, struct vcpu, requests);
	d = vcpu->arch.dbt;
	/* Rows are of straight paths and common code. */
	if (!d || (u64)gregs[REG_RIP] - (u64)d->mem.rx >= d->emit.at)
		return false;
	row = fault_find(d, (u64)gregs[REG_RIP] - (u64)d->mem.rx);
	if (!row)
		return false;
	frame = (u8 *)gregs[REG_RSP];
	if (row->stub & FAULT_HOST_FLAGS) {
		frame[FRAME_FLAGS] = !!(gregs[REG_EFL] & X86_EFLAGS_OF);
		frame[FRAME_FLAGS + 1] = gregs[REG_EFL];
	}
	if (sig == SIGURG)
		d->abort_access = true;
	if (row->stub & FAULT_SITE) {
		gregs[REG_R10] = row->stub & FAULT_STUB; /* T0 */
		gregs[REG_RIP] = (greg_t)(d->mem.rx + d->slow_on);
	} else {
		gregs[REG_RIP] = (greg_t)(d->mem.rx + (row->stub & FAULT_STUB));
	}
	return true;
}

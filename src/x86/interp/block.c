/* SPDX-License-Identifier: MIT */
/*
 * Decoded basic blocks, keyed by guest-physical address and mode.
 *
 *  1. A block is executed only after its source bytes have been compared with
 *     guest memory at that very entry. Nobody tells us of stores by other vCPUs,
 *     by the client or by DMA; this finds them all.
 *  2. Stores by this vCPU to the page it executes from end the block
 *     (arch.block_abort), because the comparison is only made at entry.
 *  3. Blocks are never freed one by one. When the arena or the code memory of
 *     the thunks runs low, everything goes and decoding starts afresh; a check before
 *     each new block guarantees that nothing runs out in its middle.
 *  4. A block lies in one page, except for a single instruction that crosses into
 *     the next one; such a block is found through both pages every time.
 */
#include <errno.h>
#include <stdlib.h>
#include <string.h>

#include "host/host.h"
#include "x86/decode/decode.h"
#include "x86/interp/interp.h"

#define BLOCK_ARENA_SIZE (28ul << 20)
#define SOURCE_MAX (BLOCK_MAX_INSNS * INSN_MAX_LEN)
#define BLOCK_MAX_BYTES \
	(sizeof(struct block) + BLOCK_MAX_INSNS * sizeof(struct insn) + SOURCE_MAX + 64)

int block_cache_init(struct block_cache *cache)
{
	cache->hash = calloc(BLOCK_HASH_SIZE, sizeof(*cache->hash));
	cache->arena = host_map_lazy(BLOCK_ARENA_SIZE);
	if (!cache->hash || !cache->arena) {
		block_cache_destroy(cache);
		return -ENOMEM;
	}
	cache->size = BLOCK_ARENA_SIZE;
	cache->used = 0;
	block_cache_forget_jumps(cache);
	return 0;
}

void block_cache_destroy(struct block_cache *cache)
{
	host_unmap_lazy(cache->arena, BLOCK_ARENA_SIZE);
	free(cache->hash);
	cache->arena = NULL;
	cache->hash = NULL;
}

void block_cache_forget_jumps(struct block_cache *cache)
{
	for (unsigned i = 0; i < JUMP_ENTRIES; i++)
		cache->jump[i].block = NULL;
}

void block_cache_reset(struct vcpu *vcpu)
{
	struct interp *in = vcpu->arch.interp;

	memset(in->blocks.hash, 0, BLOCK_HASH_SIZE * sizeof(*in->blocks.hash));
	in->blocks.used = 0;
	block_cache_forget_jumps(&in->blocks);
	thunk_cache_reset(&in->thunks);
	in->generation++;
	mmu_clear_code_pages(vcpu);
}

static void *arena_alloc(struct block_cache *cache, size_t size)
{
	void *p = cache->arena + cache->used;

	cache->used += (size + 15) & ~15ul;
	return p;
}

static struct block **hash_slot(struct block_cache *cache, gpa_t gpa, u32 key)
{
	u64 h = (gpa ^ (u64)key << 40) * 0x9e3779b97f4a7c15ull;

	return &cache->hash[h >> 49 & (BLOCK_HASH_SIZE - 1)];
}

/* ---- the source: one page, and the next if an instruction goes on there ---------- */

struct source {
	gva_t va;
	gpa_t gpa, page2;
	const u8 *host, *host2;	/* of va, and of the second page's first byte once needed */
};

static enum exec source_open(struct vcpu *vcpu, gva_t va, struct source *src)
{
	u8 *host;
	gpa_t page;
	enum exec r = mmu_fetch_page(vcpu, va, &page, &host);

	if (r != EXEC_OK)
		return r;
	*src = (struct source){
		.va = va,
		.gpa = page | (va & ~PAGE_MASK),
		.page2 = ~0ull,
		.host = host + (va & ~PAGE_MASK),
	};
	return EXEC_OK;
}

/* A fault here is the second page's: CR2 is its first byte. */
static enum exec source_open_second(struct vcpu *vcpu, struct source *src)
{
	gva_t next = (src->va & PAGE_MASK) + PAGE_SIZE;
	u8 *host;
	enum exec r;

	if (src->host2)
		return EXEC_OK;
	if (!in_64bit_mode(vcpu))
		next = (u32)next;
	else if (!is_canonical(next))
		return queue_gp(vcpu, 0);
	r = mmu_fetch_page(vcpu, next, &src->page2, &host);
	if (r == EXEC_OK)
		src->host2 = host;
	return r;
}

int source_compare_bytes(const u8 *want, const u8 *host, unsigned len)
{
	for (unsigned i = 0; i < len; i++) {
		u64 v;

		if (!host_load8(host + i, &v))
			return -1;
		if (v != want[i])
			return 0;
	}
	return 1;
}

/*
 * 1: b is what stands there, 0: it is of the past, -1: *r says why not. The second page is looked at only if the bytes on the
 * first one want it: what stands there now may well end on the first, and the second be absent.
 */
static int block_matches(struct vcpu *vcpu, const struct block *b, struct source *src, bool *other_page, enum exec *r)
{
	int m = block_matches_at(b, src->host);

	*other_page = false;
	if (m == 1 && b->page2 != ~0ull) {
		*r = source_open_second(vcpu, src);
		if (*r != EXEC_OK)
			return -1;
		*other_page = b->page2 != src->page2;
		if (!*other_page)
			m = source_compare_bytes((const u8 *)b->source + b->len1, src->host2, b->len - b->len1);
	}
	if (m < 0)
		*r = mem_access_failed();
	return m;
}

/* ---- look-up ----------------------------------------------------------------------- */

static struct block *block_find(struct vcpu *vcpu, struct source *src, enum exec *r)
{
	struct block **link = hash_slot(&vcpu->arch.interp->blocks, src->gpa, vcpu->arch.mode_key);
	struct block *b;

	*r = EXEC_OK;
	while ((b = *link)) {
		bool other_page;
		int m;

		if (b->gpa != src->gpa || b->mode_key != vcpu->arch.mode_key) {
			link = &b->next;
			continue;
		}
		m = block_matches(vcpu, b, src, &other_page, r);
		if (m < 0)
			return NULL;
		if (other_page) {
			link = &b->next;
			continue;
		}
		if (m == 1)
			return b;
		*link = b->next;
		vcpu->stat.blocks_invalidated++;
	}
	return NULL;
}

/* ---- decoding ------------------------------------------------------------------------ */

struct draft {
	struct insn insns[BLOCK_MAX_INSNS];
	u8 bytes[SOURCE_MAX + INSN_MAX_LEN];
	unsigned nr, len, avail;
	bool crosses;
};

static enum exec draft_crossing(struct vcpu *vcpu, struct source *src, struct draft *d)
{
	enum exec r = source_open_second(vcpu, src);
	unsigned more = INSN_MAX_LEN - d->avail;

	if (r != EXEC_OK)
		return r;
	mmu_mark_code_page(vcpu, src->page2, CODE_INTERP);
	if (host_copy(d->bytes + d->avail, src->host2, more))
		return mem_access_failed();
	if (VM_BUG_ON(!decode_insn(vcpu, d->bytes, INSN_MAX_LEN, &d->insns[0]), vcpu->vm))
		return EXEC_UNHANDLED;
	d->nr = 1;
	d->len = d->insns[0].len;
	d->crosses = true;
	return EXEC_OK;
}

static enum exec draft_block(struct vcpu *vcpu, struct source *src, struct draft *d)
{
	d->nr = d->len = 0;
	d->crosses = false;
	d->avail = min((unsigned)(PAGE_SIZE - (src->gpa & ~PAGE_MASK)), (unsigned)SOURCE_MAX);
	if (host_copy(d->bytes, src->host, d->avail))
		return mem_access_failed();
	while (d->nr < BLOCK_MAX_INSNS && d->len < d->avail) {
		struct insn *insn = &d->insns[d->nr];
		unsigned left = min(d->avail - d->len, (unsigned)INSN_MAX_LEN);

		if (!decode_insn(vcpu, d->bytes + d->len, left, insn))
			return d->nr ? EXEC_OK : draft_crossing(vcpu, src, d);
		d->nr++;
		d->len += insn->len;
		if (insn->flags & INSN_END_BLOCK)
			break;
	}
	return EXEC_OK;
}

static struct block *block_finish(struct vcpu *vcpu, const struct source *src, const struct draft *d)
{
	struct block_cache *cache = &vcpu->arch.interp->blocks;
	struct block **slot = hash_slot(cache, src->gpa, vcpu->arch.mode_key);
	struct block *b = arena_alloc(cache, sizeof(*b) + d->nr * sizeof(struct insn));
	u8 *source = arena_alloc(cache, d->len + 8);
	unsigned off = src->gpa & ~PAGE_MASK, tail = d->len % 8;

	memcpy(b->insns, d->insns, d->nr * sizeof(struct insn));
	memset(source + (d->len & ~7u), 0, 8);
	memcpy(source, d->bytes, d->len);
	b->gpa = src->gpa;
	b->page2 = d->crosses ? src->page2 : ~0ull;
	b->unmarks = vcpu->arch.mmu->interp_unmarks;
	b->mode_key = vcpu->arch.mode_key;
	b->nr = d->nr;
	b->len = d->len;
	b->len1 = d->crosses ? min(d->len, d->avail) : d->len;
	b->words = off + (d->len + 7) / 8 * 8 > PAGE_SIZE ? BLOCK_BYTEWISE : (d->len - 1) / 8;
	b->last_mask = tail ? BIT_ULL(8 * tail) - 1 : ~0ull;
	b->source = (const u64 *)source;
	b->next = *slot;
	*slot = b;
	vcpu->stat.blocks_decoded++;
	return b;
}

void block_mark_pages(struct vcpu *vcpu, struct block *b)
{
	b->unmarks = vcpu->arch.mmu->interp_unmarks;
	mmu_mark_code_page(vcpu, b->gpa & PAGE_MASK, CODE_INTERP);
	if (b->page2 != ~0ull)
		mmu_mark_code_page(vcpu, b->page2, CODE_INTERP);
}

static struct block *block_decode(struct vcpu *vcpu, struct source *src, enum exec *r)
{
	struct interp *in = vcpu->arch.interp;
	struct draft d;

	if (in->blocks.size - in->blocks.used < BLOCK_MAX_BYTES ||
	    !thunk_cache_has_room(&in->thunks, BLOCK_MAX_INSNS))
		block_cache_reset(vcpu);
	/* Before the bytes are read: a later store of ours will then be noticed. */
	mmu_mark_code_page(vcpu, src->gpa & PAGE_MASK, CODE_INTERP);
	*r = draft_block(vcpu, src, &d);
	return *r == EXEC_OK ? block_finish(vcpu, src, &d) : NULL;
}

static void jump_fill(struct vcpu *vcpu, const struct source *src, struct block *b)
{
	struct jump_entry *e = &vcpu->arch.interp->blocks.jump[jump_index(src->va)];

	if (b->page2 != ~0ull)
		return;
	e->va = src->va;
	e->block = b;
	e->host = src->host;
	e->mode_key = vcpu->arch.mode_key;
	e->generation = vcpu->arch.mmu->tlbs[0].fetch_generation;
}

struct block *block_lookup_slow(struct vcpu *vcpu, gva_t va, enum exec *r)
{
	struct source src;
	struct block *b;

	if (in_64bit_mode(vcpu) && !is_canonical(va)) {
		*r = queue_gp(vcpu, 0);
		return NULL;
	}
	if (!in_64bit_mode(vcpu) && vcpu->arch.rip > vcpu->arch.seg[SEG_CS].limit) {
		*r = queue_gp(vcpu, 0);
		return NULL;
	}
	*r = source_open(vcpu, va, &src);
	if (*r != EXEC_OK)
		return NULL;
	b = block_find(vcpu, &src, r);
	if (!b && *r == EXEC_OK)
		b = block_decode(vcpu, &src, r);
	if (b)
		jump_fill(vcpu, &src, b);
	return b;
}

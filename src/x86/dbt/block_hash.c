/* SPDX-License-Identifier: MIT */
/*
 * Which block is there for an address in a mode: open addressing, eight bytes an entry, so that a look-up misses
 * the host's caches once here and once at the block.
 *
 *  1. An entry is empty, or a block's, or was one's. The tag is of the whole key: other blocks are hardly ever looked at.
 *  2. There is always an empty entry, or a search would not end (dbt_hash_has_room()).
 */
#include "x86/dbt/dbt.h"

#define EMPTY 0u
#define GONE ~0u

static u32 place_of(const struct dbt *d, const struct dbt_block *b)
{
	return ((const u8 *)b - d->arena) / 16 + 1;
}

static struct dbt_block *block_of(const struct dbt *d, u32 place)
{
	return (struct dbt_block *)(d->arena + 16ul * (place - 1));
}

static u64 hash_key(u64 va, gpa_t gpa, u32 mode_key, unsigned ctx, bool narrow)
{
	u64 h = (va ^ (gpa >> PAGE_SHIFT) * 0x9e3779b97f4a7c15ull) * 0xd6e8feb86659fd93ull;

	h ^= h >> 32;
	return (h ^ mode_key ^ (u64)ctx << 40 ^ (u64)narrow << 44) * 0xd6e8feb86659fd93ull;
}

int dbt_hash_create(struct dbt *d)
{
	u32 size = 1024;

	/* A block takes more than this of code, as a rule. */
	while (size < d->mem.size / 128)
		size *= 2;
	d->hash = host_map_lazy(size * sizeof(*d->hash));
	d->hash_mask = size - 1;
	return d->hash ? 0 : -1;
}

void dbt_hash_destroy(struct dbt *d)
{
	host_unmap_lazy(d->hash, (d->hash_mask + 1ul) * sizeof(*d->hash));
}

void dbt_hash_reset(struct dbt *d)
{
	/* Not the first time: it takes no memory before it is needed. */
	if (d->hash_used)
		memset(d->hash, 0, (d->hash_mask + 1ul) * sizeof(*d->hash));
	d->hash_used = 0;
}

bool dbt_hash_has_room(const struct dbt *d)
{
	return d->hash_used < d->hash_mask - d->hash_mask / 8;
}

struct dbt_block *dbt_block_find(struct dbt *d, u64 va, gpa_t gpa, u32 mode_key, unsigned ctx, bool narrow)
{
	u64 h = hash_key(va, gpa, mode_key, ctx, narrow);

	for (u32 i = h & d->hash_mask; d->hash[i].place != EMPTY; i = (i + 1) & d->hash_mask) {
		struct dbt_block *b;

		if (d->hash[i].tag != h >> 32 || d->hash[i].place == GONE)
			continue;
		b = block_of(d, d->hash[i].place);
		if (b->va == va && b->gpa == gpa && b->mode_key == mode_key && b->ctx == ctx && b->narrow == narrow)
			return b;
	}
	return NULL;
}

void dbt_hash_add(struct dbt *d, const struct dbt_block *b)
{
	u64 h = hash_key(b->va, b->gpa, b->mode_key, b->ctx, b->narrow);
	u32 i = h & d->hash_mask;

	while (d->hash[i].place != EMPTY && d->hash[i].place != GONE)
		i = (i + 1) & d->hash_mask;
	d->hash_used += d->hash[i].place == EMPTY;
	d->hash[i].tag = h >> 32;
	d->hash[i].place = place_of(d, b);
}

void dbt_hash_remove(struct dbt *d, const struct dbt_block *b)
{
	u64 h = hash_key(b->va, b->gpa, b->mode_key, b->ctx, b->narrow);
	const u32 place = place_of(d, b);

	for (u32 i = h & d->hash_mask; d->hash[i].place != EMPTY; i = (i + 1) & d->hash_mask) {
		if (d->hash[i].place == place) {
			d->hash[i].place = GONE;
			return;
		}
	}
}

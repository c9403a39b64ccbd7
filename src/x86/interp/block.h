/* SPDX-License-Identifier: MIT */
/* Cache of decoded basic blocks, one per vCPU, touched by its thread only. */
#ifndef SOFTKVM_X86_INTERP_BLOCK_H
#define SOFTKVM_X86_INTERP_BLOCK_H

#include "x86/interp/insn.h"

#define BLOCK_MAX_INSNS 32

struct block {
	struct block *next;	/* hash chain */
	gpa_t gpa;		/* of the first byte */
	gpa_t page2;		/* of the second page when the (only) instruction crosses, else ~0 */
	u32 mode_key;
	u32 unmarks;		/* mmu.interp_unmarks when its pages were marked last */
	u16 nr;
	u16 len;		/* source bytes */
	u16 len1;		/* of them on the first page */
	u16 words;		/* whole 8-byte words before the last (perhaps partial) one; BLOCK_BYTEWISE: compare bytes */
	u64 last_mask;		/* bytes of the last word that count */
	const u64 *source;	/* len bytes as they were decoded, padded with zeros to 8 */
	struct insn insns[];
};
/* Reading whole words would go beyond the page. */
#define BLOCK_BYTEWISE 0xffff

/* Direct-mapped: linear address to block, valid while no fetch translation was dropped. */
struct jump_entry {
	u64 va;
	struct block *block;	/* never one that crosses pages */
	const u8 *host;		/* where its source is */
	u32 mode_key;
	u32 generation;
};
#define JUMP_ENTRIES 4096
#define BLOCK_HASH_SIZE 32768

struct block_cache {
	u8 *arena;
	size_t size, used;
	struct block **hash;
	struct jump_entry jump[JUMP_ENTRIES];
};

int block_cache_init(struct block_cache *cache);	/* 0 or -ENOMEM */
void block_cache_destroy(struct block_cache *cache);
/* Forget every block. Not while one is executing. */
void block_cache_reset(struct vcpu *vcpu);
void block_cache_forget_jumps(struct block_cache *cache);

/* The block at rip with its bytes verified, or NULL and *r why not. */
struct block *block_lookup_slow(struct vcpu *vcpu, gva_t va, enum exec *r);
/* Before it is executed, if some page has been unmarked since: stores to its pages are noticed. */
void block_mark_pages(struct vcpu *vcpu, struct block *b);

static inline unsigned jump_index(gva_t va)
{
	return (va ^ va >> 12) & (JUMP_ENTRIES - 1);
}

/* 1 same, 0 different, -1 not accessible. host is the client's memory, on one page. */
int source_compare_bytes(const u8 *want, const u8 *host, unsigned len);

static inline int block_matches_at(const struct block *b, const u8 *host)
{
	u64 v;

	if (unlikely(b->words == BLOCK_BYTEWISE))
		return source_compare_bytes((const u8 *)b->source, host, b->len1);
	for (unsigned i = 0; i < b->words; i++) {
		if (unlikely(!host_load64(host + 8 * i, &v)))
			return -1;
		if (unlikely(v != b->source[i]))
			return 0;
	}
	if (unlikely(!host_load64(host + 8 * b->words, &v)))
		return -1;
	return !((v ^ b->source[b->words]) & b->last_mask);
}

#endif

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
	u16 nr;
	u16 len;		/* source bytes */
	u16 len1;		/* of them on the first page */
	const u8 *source;	/* len bytes as they were decoded, padded to 8 */
	struct insn insns[];
};

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
/* *r for an access to the source that failed. */
enum exec block_access_failed(void);

static inline unsigned jump_index(gva_t va)
{
	return (va ^ va >> 12) & (JUMP_ENTRIES - 1);
}

/* 1 same, 0 different, -1 not accessible. want is padded, host is the client's memory. */
static inline int source_matches(const u8 *want, const u8 *host, unsigned len)
{
	unsigned i;
	u64 v, w;

	for (i = 0; i + 8 <= len; i += 8) {
		if (unlikely(!host_load64(host + i, &v)))
			return -1;
		__builtin_memcpy(&w, want + i, 8);
		if (unlikely(v != w))
			return 0;
	}
	for (; i < len;) {
		unsigned n = len - i >= 4 ? 4 : len - i >= 2 ? 2 : 1;

		w = 0;
		if (unlikely(!host_load(host + i, n, &v)))
			return -1;
		__builtin_memcpy(&w, want + i, n);
		if (unlikely(v != w))
			return 0;
		i += n;
	}
	return 1;
}

#endif

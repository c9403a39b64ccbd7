/* SPDX-License-Identifier: MIT */
/*
 * Instructions that were decoded before: large programs consist of few different ones. What decoding and
 * classification say depends on the bytes and the mode key only (decode/decode.c), so it is kept in records that are found
 * by these two.
 *
 * They are found byte by byte: a node has an entry for each value of one byte, which leads to the next node or
 * to the record. That needs no idea of where an instruction ends, and nothing is compared. A displacement, a branch's
 * distance and an immediate of four bytes or more are skipped: one record stands for all instructions that
 * differ in these only, and decoded_copy() reads them from the bytes.
 *
 *  1. The Zydis structures of a record have the displacement and immediate of the first of them: use those of
 *     struct insn.
 *  2. What is skipped has no say in what becomes of an instruction. So immediates of one and two bytes are not skipped, nor
 *     are those that a thunk has in its code.
 *  3. Records live until all are dropped, together with the blocks, whose sites name them: when there is no
 *     room, and when the interpreter has dropped the thunks they point to.
 *  4. A record that has no place (an invalid encoding; a path that is taken) is made anew each time.
 */
#include "x86/decode/decode.h"
#include "x86/dbt/decoded.h"

#define MAX_NODES (12u << 10)
#define MAX_RECORDS (52u << 10)
#define MAX_ROOTS 32
#define ARENA_SIZE (38ul << 20)

/*
 * For each value of a byte 0: unknown; with IS_RECORD: a record, by its place in the arena; else a node. One line of the
 * host's cache is touched of each node on the way: there are megabytes of them.
 */
struct node {
	_Alignas(64) u32 next[256];
};
#define RECORD_ALIGN 64u
#define IS_RECORD BIT(31)

struct decode_cache {
	u32 nr_records, nr_nodes, nr_roots;
	u32 generation;		/* of the interpreter's thunks */
	size_t used;
	struct {
		u32 mode_key;
		u16 node;
	} roots[MAX_ROOTS];
	struct decoded *records[MAX_RECORDS];
	u8 skip[MAX_NODES];	/* bytes that do not matter, before the one that does */
	struct node nodes[MAX_NODES];
	_Alignas(64) u8 arena[ARENA_SIZE];
};

int decode_cache_create(struct dbt *d)
{
	d->decode_cache = host_map_lazy(sizeof(*d->decode_cache));
	return d->decode_cache ? 0 : -1;
}

void decode_cache_destroy(struct dbt *d)
{
	host_unmap_lazy(d->decode_cache, sizeof(*d->decode_cache));
}

#define RECORD_MAX (sizeof(struct decoded) + ZYDIS_MAX_OPERAND_COUNT * sizeof(ZydisDecodedOperand) + 64)

bool decode_cache_has_room(const struct dbt *d)
{
	const struct decode_cache *c = d->decode_cache;
	const unsigned n = DBT_BLOCK_INSNS + 1;

	return c->nr_records + n <= MAX_RECORDS && c->nr_nodes + n * INSN_MAX_LEN <= MAX_NODES && c->nr_roots < MAX_ROOTS &&
	       c->used + n * RECORD_MAX <= ARENA_SIZE;
}

/* All blocks are being dropped: drop the records too if they are of no more use. */
void decode_cache_flush(struct vcpu *vcpu)
{
	struct dbt *d = vcpu->arch.dbt;
	struct decode_cache *c = d->decode_cache;

	if (c->generation == interp_generation(vcpu) && decode_cache_has_room(d))
		return;
	c->generation = interp_generation(vcpu);
	c->nr_records = c->nr_roots = 0;
	c->nr_nodes = 1;
	c->used = 0;
}

/* ---- the way to a record ------------------------------------------------------------------------- */

static u16 node_new(struct decode_cache *c, unsigned skip)
{
	memset(&c->nodes[c->nr_nodes], 0, sizeof(c->nodes[0]));
	c->skip[c->nr_nodes] = skip;
	return c->nr_nodes++;
}

static u16 root(struct decode_cache *c, u32 mode_key)
{
	unsigned i = 0;

	while (i < c->nr_roots && c->roots[i].mode_key != mode_key)
		i++;
	if (unlikely(i == c->nr_roots)) {
		c->roots[i].mode_key = mode_key;
		c->roots[i].node = node_new(c, 0);
		c->nr_roots++;
	}
	return c->roots[i].node;
}

static struct decoded *find(struct decode_cache *c, u32 n, const u8 *bytes, unsigned avail)
{
	struct decoded *d;
	unsigned at = 0;

	do {
		at += c->skip[n];
		if (at >= avail)
			return NULL;
		n = c->nodes[n].next[bytes[at++]];
		if (!n)
			return NULL;
	} while (!(n & IS_RECORD));
	d = (void *)(c->arena + (size_t)(n & ~IS_RECORD) * RECORD_ALIGN);
	for (unsigned at = RECORD_ALIGN; at < offsetof(struct decoded, zi); at += RECORD_ALIGN)
		__builtin_prefetch((const u8 *)d + at);
	return d->t.insn.len <= avail ? d : NULL;
}

static bool is_skipped(const struct decoded *d, unsigned at)
{
	return (at >= d->disp_at && at < d->disp_at + d->disp_size) || (at >= d->imm_at && at < d->imm_at + d->imm_size);
}

static void link_record(struct decode_cache *c, u32 n, const struct decoded *d, const u8 *bytes)
{
	unsigned len = d->t.insn.len, skip = 0;
	u32 *slot = NULL;

	while (is_skipped(d, len - 1))
		len--;
	for (unsigned at = 0; at < len; at++) {
		if (is_skipped(d, at)) {
			skip++;
			continue;
		}
		if (slot) {
			if (!*slot)
				*slot = node_new(c, skip);
			if ((*slot & IS_RECORD) || c->skip[*slot] != skip)
				return;
			n = *slot;
		}
		skip = 0;
		slot = &c->nodes[n].next[bytes[at]];
	}
	if (!*slot)
		*slot = IS_RECORD | (u32)(((const u8 *)d - c->arena) / RECORD_ALIGN);
}

/* ---- records --------------------------------------------------------------------------------- */

static u64 read_le(const u8 *p, unsigned size, bool is_signed)
{
	u64 v = 0;

	memcpy(&v, p, size);
	return is_signed && size < 8 ? (u64)((s64)(v << (64 - 8 * size)) >> (64 - 8 * size)) : v;
}

void decoded_copy(const struct decoded *d, const u8 *bytes, struct tinsn *t)
{
	*t = d->t;
	t->bytes = bytes;
	if (d->disp_size)
		t->insn.disp = d->disp_size == 1 ? (s8)bytes[d->disp_at] : (s32)read_le(bytes + d->disp_at, 4, true);
	if (d->imm_size)
		t->insn.imm = read_le(bytes + d->imm_at, d->imm_size, d->imm_signed);
}

/* The small ones of others say what the instruction is, or have bits that do not count. */
static bool small_immediate_ok(const ZydisDecodedInstruction *zi)
{
	return decode_is_move_or_alu(zi) || zi->mnemonic == ZYDIS_MNEMONIC_PUSH;
}

/* Which bytes do not matter? */
static void find_skipped(struct decoded *d)
{
	const struct insn *insn = &d->t.insn;
	const ZydisDecodedInstruction *zi = &d->zi;
	unsigned disp = zi->raw.disp.size / 8, imm = zi->raw.imm[0].size / 8;

	d->disp_size = d->imm_size = 0;
	if ((disp == 1 || disp == 4) && (insn->flags & INSN_MEM) && insn->disp == zi->raw.disp.value &&
	    (zi->attributes & ZYDIS_ATTRIB_HAS_MODRM)) {
		d->disp_at = zi->raw.disp.offset;
		d->disp_size = disp;
	}
	if ((zi->raw.imm[0].is_relative || imm >= 4 || small_immediate_ok(zi)) && imm && !zi->raw.imm[1].size && !insn->thunk &&
	    d->ops[0].type != ZYDIS_OPERAND_TYPE_POINTER && insn->imm == zi->raw.imm[0].value.u) {
		d->imm_at = zi->raw.imm[0].offset;
		d->imm_size = imm;
		d->imm_signed = zi->raw.imm[0].is_signed || zi->raw.imm[0].is_relative;
	}
}

/* Everything about it, in the next free record. Only its visible operands remain; two can be looked at in any. */
static struct decoded *decode(struct trans *tr, const u8 *bytes, unsigned avail)
{
	struct decode_cache *c = tr->d->decode_cache;
	struct decoded *d = (void *)(c->arena + c->used);

	memset(d, 0, sizeof(*d));
	if (!decode_insn_full(tr->vcpu, bytes, avail, &d->t.insn, &d->zi, d->ops))
		return NULL;
	d->t.record = c->nr_records;
	d->t.zi = &d->zi;
	d->t.ops = d->ops;
	d->t.bytes = bytes;
	tinsn_init(tr, &d->t);
	d->zi.operand_count = d->zi.operand_count_visible;
	c->records[c->nr_records++] = d;
	c->used += (sizeof(*d) + max((unsigned)d->zi.operand_count, 2u) * sizeof(d->ops[0]) + RECORD_ALIGN - 1) & ~(size_t)(RECORD_ALIGN - 1);
	return d;
}

const struct decoded *decoded_get(struct trans *tr, const u8 *bytes, unsigned avail)
{
	struct decode_cache *c = tr->d->decode_cache;
	u32 n = root(c, tr->vcpu->arch.mode_key);
	struct decoded *d = find(c, n, bytes, avail);

	if (likely(d)) {
		if (unlikely(tr->d->verifier))
			VM_BUG_ON(!decoded_check(tr->vcpu, d, bytes), tr->vcpu->vm);
		return d;
	}
	d = decode(tr, bytes, avail);
	if (d && d->zi.mnemonic != ZYDIS_MNEMONIC_INVALID) {
		find_skipped(d);
		link_record(c, n, d, bytes);
	}
	return d;
}

void dbt_site_insn(const struct dbt *d, const struct dbt_site *s, struct insn *insn)
{
	const struct decoded *r = d->decode_cache->records[s->record];

	*insn = r->t.insn;
	if (r->disp_size)
		insn->disp = s->disp;
	insn->imm = s->imm;
}

bool decoded_check(struct vcpu *vcpu, const struct decoded *d, const u8 *bytes)
{
	ZydisDecodedOperand ops[ZYDIS_MAX_OPERAND_COUNT];
	ZydisDecodedInstruction zi;
	struct tinsn t;
	struct insn a;

	if (!decode_insn_full(vcpu, bytes, d->t.insn.len, &a, &zi, ops))
		return false;
	decoded_copy(d, bytes, &t);
	return a.fn == t.insn.fn && a.len == t.insn.len && a.opsize == t.insn.opsize && a.addrsize == t.insn.addrsize &&
	       a.reg == t.insn.reg && a.rm == t.insn.rm && a.base == t.insn.base && a.index == t.insn.index &&
	       a.scale == t.insn.scale && a.seg == t.insn.seg && a.cc == t.insn.cc && a.flags == t.insn.flags &&
	       a.mnemonic == t.insn.mnemonic && a.memsize == t.insn.memsize && a.disp == t.insn.disp &&
	       a.imm == t.insn.imm && a.imm2 == t.insn.imm2 && a.thunk == t.insn.thunk &&
	       a.thunk_flags == t.insn.thunk_flags && zi.attributes == d->zi.attributes &&
	       zi.mnemonic == d->zi.mnemonic && zi.operand_count_visible == d->zi.operand_count;
}

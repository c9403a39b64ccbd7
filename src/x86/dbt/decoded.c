/* SPDX-License-Identifier: MIT */
/*
 * Instructions that were decoded before: large programs consist of few different ones. What decoding and
 * classification say depends on the bytes and the mode key only (decode/decode.c), so it is kept in records that are found
 * by these two.
 *
 * A hash table leads to them, by the bytes that an instruction begins with. A displacement, a branch's distance and
 * an immediate of four bytes or more do not matter: one record stands for all instructions that differ in these
 * only, and decoded_copy() reads them from the bytes. Which these are is known when the instruction is: a record has a mask.
 *
 *  1. The Zydis structures of a record have the displacement and immediate of the first of them: use those of
 *     struct insn.
 *  2. What does not matter has no say in what becomes of an instruction. So immediates of one and two bytes do, and
 *     those that a thunk has in its code.
 *  3. Records live until all are dropped, together with the blocks, whose sites name them: when there is no
 *     room, and when the interpreter has dropped the thunks they point to.
 *  4. Where an instruction's fixed bytes end is guessed for the hash (shape_of()): a wrong guess costs a second
 *     record, no more. Whole lengths are guessed for decoded_expect(), with as little harm.
 *  5. An invalid encoding has no place in the table, and a record is made anew each time.
 */
#include "x86/decode/decode.h"
#include "x86/dbt/decoded.h"

#define MAX_RECORDS (52u << 10)
#define ARENA_SIZE (22ul << 20)

/*
 * Places: 0, or a record's number + 1 and some more bits of its hash. Records lie close together: more than the host's
 * TLB has room for are in use.
 */
#define TABLE_SHIFT 16
#define TAG_SHIFT 16
static_assert(MAX_RECORDS < BIT(16), "beside the tag, and in sites");
static_assert(MAX_RECORDS < BIT(TABLE_SHIFT), "there is an end to each search");

struct decode_cache {
	u32 nr_records;
	u32 generation;		/* of the interpreter's thunks */
	size_t used;		/* of the arena */
	struct expected {
		const u8 *bytes;
		u64 hash;
	} expected[DECODED_EXPECT];	/* latest decoded_expect(): in order of these bytes */
	u32 nr_expected, next_expected;
	u32 table[1u << TABLE_SHIFT];
	struct decoded records[MAX_RECORDS];
	_Alignas(16) u8 arena[ARENA_SIZE];	/* Zydis' structures */
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

#define ZYDIS_MAX (sizeof(ZydisDecodedInstruction) + ZYDIS_MAX_OPERAND_COUNT * sizeof(ZydisDecodedOperand))

bool decode_cache_has_room(const struct dbt *d)
{
	const struct decode_cache *c = d->decode_cache;
	const unsigned n = DBT_BLOCK_INSNS + 1;

	return c->nr_records + n <= MAX_RECORDS && c->used + n * ZYDIS_MAX <= ARENA_SIZE;
}

/* All blocks are being dropped: drop the records too if they are of no more use. */
void decode_cache_flush(struct vcpu *vcpu)
{
	struct dbt *d = vcpu->arch.dbt;
	struct decode_cache *c = d->decode_cache;

	if (c->generation == interp_generation(vcpu) && decode_cache_has_room(d))
		return;
	c->generation = interp_generation(vcpu);
	if (c->nr_records)
		memset(c->table, 0, sizeof(c->table));
	c->nr_records = 0;
	c->used = 0;
}

/* ---- the way to a record ------------------------------------------------------------------------- */

enum {
	MODRM = 1, IMM8 = 2, IMM32 = 4, PREFIX = 8, ENDS = 16,
	COUNTS = 32,		/* its immediate matters */
};

static const u8 one_byte[256] = {
	[0x00 ... 0x03] = MODRM, [0x04] = IMM8, [0x05] = IMM32, [0x08 ... 0x0b] = MODRM, [0x0c] = IMM8, [0x0d] = IMM32,
	[0x10 ... 0x13] = MODRM, [0x14] = IMM8, [0x15] = IMM32, [0x18 ... 0x1b] = MODRM, [0x1c] = IMM8, [0x1d] = IMM32,
	[0x20 ... 0x23] = MODRM, [0x24] = IMM8, [0x25] = IMM32, [0x28 ... 0x2b] = MODRM, [0x2c] = IMM8, [0x2d] = IMM32,
	[0x30 ... 0x33] = MODRM, [0x34] = IMM8, [0x35] = IMM32, [0x38 ... 0x3b] = MODRM, [0x3c] = IMM8, [0x3d] = IMM32,
	[0x26] = PREFIX, [0x2e] = PREFIX, [0x36] = PREFIX, [0x3e] = PREFIX, [0x63] = MODRM, [0x64 ... 0x67] = PREFIX,
	[0x68] = IMM32, [0x69] = MODRM | IMM32, [0x6a] = IMM8, [0x6b] = MODRM | IMM8 | COUNTS, [0x70 ... 0x7f] = IMM8,
	[0x80] = MODRM | IMM8, [0x81] = MODRM | IMM32, [0x82 ... 0x83] = MODRM | IMM8, [0x84 ... 0x8f] = MODRM,
	[0xa8] = IMM8, [0xa9] = IMM32, [0xb0 ... 0xb7] = IMM8, [0xb8 ... 0xbf] = IMM32, [0xc0 ... 0xc1] = MODRM | IMM8 | COUNTS,
	[0xc3] = ENDS, [0xc4 ... 0xc5] = MODRM, [0xc6] = MODRM | IMM8, [0xc7] = MODRM | IMM32, [0xd0 ... 0xd3] = MODRM,
	[0xd8 ... 0xdf] = MODRM, [0xe0 ... 0xe7] = IMM8, [0xe8 ... 0xe9] = IMM32 | ENDS, [0xeb] = IMM8 | ENDS, [0xf0] = PREFIX,
	[0xf2 ... 0xf3] = PREFIX, [0xf6 ... 0xf7] = MODRM, [0xfe ... 0xff] = MODRM,
};
/* After 0F, in what they differ from most. */
static const u8 two_byte[256] = {
	[0x05 ... 0x0b] = MODRM, [0x30 ... 0x37] = MODRM, [0x70 ... 0x73] = IMM8 | COUNTS, [0x77] = MODRM,
	[0x80 ... 0x8f] = MODRM | IMM32, [0xa0 ... 0xa2] = MODRM, [0xa4] = IMM8 | COUNTS, [0xa8 ... 0xaa] = MODRM,
	[0xac] = IMM8 | COUNTS, [0xba] = IMM8 | COUNTS, [0xc2] = IMM8 | COUNTS, [0xc4 ... 0xc6] = IMM8 | COUNTS, [0xc8 ... 0xcf] = MODRM,
};

/* What its first bytes say of an instruction, mostly. */
struct shape {
	u8 fixed, len;		/* bytes before a displacement or an immediate; all */
	bool ends;		/* the block, unconditionally */
};

static unsigned disp_size(u8 modrm, u8 sib)
{
	switch (modrm >> 6) {
	case 0: return (modrm & 7) == 5 || ((modrm & 7) == 4 && (sib & 7) == 5) ? 4 : 0;
	case 1: return 1;
	case 2: return 4;
	default: return 0;
	}
}

static struct shape shape_of(const u8 *b, bool wide)
{
	unsigned n = 0, kind, disp = 0, imm;
	bool word = false;

	for (; n < 4 && (one_byte[b[n]] & PREFIX); n++)
		word |= b[n] == 0x66;
	if (wide && (b[n] & 0xf0) == 0x40)
		n++;
	kind = one_byte[b[n]];
	if (b[n] == 0x0f && (b[n + 1] & 0xfd) == 0x38) {
		kind = b[n + 1] == 0x3a ? MODRM | IMM8 | COUNTS : MODRM;
		n += 2;
	} else if (b[n] == 0x0f) {
		kind = two_byte[b[++n]] ^ MODRM;
	} else if (b[n] == 0xc5 && (wide || b[n + 1] >= 0xc0)) {
		n += 2;
		kind = two_byte[b[n]] ^ MODRM;
	} else if (b[n] == 0xc4 && (wide || b[n + 1] >= 0xc0)) {
		kind = (b[n + 1] & 31) == 3 ? MODRM | IMM8 | COUNTS : MODRM;
		n += 3;
	}
	imm = kind & IMM8 ? 1 : kind & IMM32 ? word ? 2 : 4 : 0;
	if ((b[n] & 0xf8) == 0xb8 && kind == IMM32 && n && (b[n - 1] & 0xf8) == 0x48)
		imm = 8;
	n++;
	if (kind & MODRM) {
		const u8 modrm = b[n++];

		disp = disp_size(modrm, b[n]);
		n += modrm < 0xc0 && (modrm & 7) == 4;
	}
	return (struct shape){ .fixed = kind & COUNTS && !disp ? n + imm : n, .len = n + disp + imm, .ends = kind & ENDS };
}

/* All bytes there may be: the seventh is in both. */
struct window {
	u64 part[2];
};
static_assert(INSN_MAX_LEN == 15, "two words");

static struct window window_at(const u8 *bytes)
{
	struct window w;

	memcpy(&w.part[0], bytes, 8);
	memcpy(&w.part[1], bytes + 7, 8);
	return w;
}

/* Where to look first, and the tag in the lower bits. */
static u64 hash(const struct vcpu *vcpu, unsigned fixed, const struct window *w)
{
	const u64 x = fixed < 8 ? w->part[0] & (BIT_ULL(8 * fixed) - 1) : w->part[0];

	return ((x ^ (u64)vcpu->arch.mode_key << 32) * 0x9e3779b97f4a7c15ull ^ vcpu->arch.mode_key) >> (64 - TABLE_SHIFT - TAG_SHIFT);
}

static bool matches(const struct decoded *d, u32 mode_key, const struct window *w)
{
	return !((w->part[0] ^ d->first[0]) & d->mask[0]) && !((w->part[1] ^ d->first[1]) & d->mask[1]) && d->mode_key == mode_key;
}

/* NULL: the place is free. */
static struct decoded *find(struct decode_cache *c, u64 hash, u32 mode_key, const struct window *w, u32 *place)
{
	const u32 tag = (u32)hash << (32 - TAG_SHIFT);
	u32 i = hash >> TAG_SHIFT, at;

	while ((at = c->table[i])) {
		struct decoded *d = &c->records[(u16)at - 1];

		if (at - (u16)at == tag && likely(matches(d, mode_key, w)))
			return d;
		i = (i + 1) & (BIT(TABLE_SHIFT) - 1);
	}
	*place = i;
	return NULL;
}

static void prefetch_record(const struct decode_cache *c, u32 at)
{
	const u8 *p;

	if (!at)
		return;
	p = (const u8 *)&c->records[(u16)at - 1];
	for (unsigned n = 0; n < sizeof(struct decoded); n += 64)
		__builtin_prefetch(p + n);
}

void decoded_expect(struct trans *tr, const u8 *bytes, unsigned avail)
{
	struct decode_cache *c = tr->d->decode_cache;
	const bool wide = in_64bit_mode(tr->vcpu);
	unsigned n = 0;

	for (unsigned at = 0; n < DECODED_EXPECT && at + INSN_MAX_LEN <= avail;) {
		const struct shape shape = shape_of(bytes + at, wide);
		const struct window w = window_at(bytes + at);
		const u64 h = hash(tr->vcpu, shape.fixed, &w);

		__builtin_prefetch(&c->table[h >> TAG_SHIFT]);
		c->expected[n++] = (struct expected){ bytes + at, h };
		if (shape.ends)
			break;
		at += shape.len;
	}
	c->nr_expected = n;
	c->next_expected = 0;
	for (unsigned i = 0; i < n; i++)
		prefetch_record(c, c->table[c->expected[i].hash >> TAG_SHIFT]);
}

/* Of the instruction at bytes, which are w. */
static u64 hash_of(struct trans *tr, const u8 *bytes, const u8 *padded, const struct window *w)
{
	struct decode_cache *c = tr->d->decode_cache;
	const u32 next = c->next_expected;

	if (likely(next < c->nr_expected && c->expected[next].bytes == bytes)) {
		c->next_expected++;
		return c->expected[next].hash;
	}
	return hash(tr->vcpu, shape_of(padded, in_64bit_mode(tr->vcpu)).fixed, w);
}

/* d is the one of w, from now on. */
static void enter_record(struct decode_cache *c, struct decoded *d, u64 hash, u32 mode_key, const struct window *w, u32 place)
{
	u8 matters[16] = { 0 };
	struct window mask;

	for (unsigned at = 0; at < d->t.insn.len; at++)
		if (!(at >= d->disp_at && at < d->disp_at + d->disp_size) && !(at >= d->imm_at && at < d->imm_at + d->imm_size))
			matters[at] = 0xff;
	mask = window_at(matters);
	for (unsigned i = 0; i < 2; i++) {
		d->first[i] = w->part[i];
		d->mask[i] = mask.part[i];
	}
	d->mode_key = mode_key;
	c->table[place] = (u32)hash << (32 - TAG_SHIFT) | (u32)(d - c->records + 1);
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
	const ZydisDecodedInstruction *zi = d->t.zi;
	unsigned disp = zi->raw.disp.size / 8, imm = zi->raw.imm[0].size / 8;

	d->disp_size = d->imm_size = 0;
	if ((disp == 1 || disp == 4) && (insn->flags & INSN_MEM) && insn->disp == zi->raw.disp.value &&
	    (zi->attributes & ZYDIS_ATTRIB_HAS_MODRM)) {
		d->disp_at = zi->raw.disp.offset;
		d->disp_size = disp;
	}
	if ((zi->raw.imm[0].is_relative || imm >= 4 || small_immediate_ok(zi)) && imm && !zi->raw.imm[1].size && !insn->thunk &&
	    d->t.ops[0].type != ZYDIS_OPERAND_TYPE_POINTER && insn->imm == zi->raw.imm[0].value.u) {
		d->imm_at = zi->raw.imm[0].offset;
		d->imm_size = imm;
		d->imm_signed = zi->raw.imm[0].is_signed || zi->raw.imm[0].is_relative;
	}
}

/*
 * Everything about it, in the next free record. Of what Zydis says its visible operands remain (two can be looked at in any), and all but
 * the end of the rest, which is the bytes' and asked for here only.
 */
static struct decoded *decode(struct trans *tr, const u8 *bytes, unsigned avail)
{
	struct decode_cache *c = tr->d->decode_cache;
	struct decoded *d = &c->records[c->nr_records];
	ZydisDecodedOperand *ops = (void *)(c->arena + c->used);
	ZydisDecodedInstruction zi;

	memset(d, 0, sizeof(*d));
	if (!decode_insn_full(tr->vcpu, bytes, avail, &d->t.insn, &zi, ops))
		return NULL;
	d->t.record = c->nr_records++;
	d->t.zi = &zi;
	d->t.ops = ops;
	d->t.bytes = bytes;
	tinsn_init(tr, &d->t);
	find_skipped(d);
	zi.operand_count = zi.operand_count_visible;
	d->t.zi = memcpy(&ops[max((unsigned)zi.operand_count, 2u)], &zi, offsetof(ZydisDecodedInstruction, raw));
	c->used = ((const u8 *)d->t.zi - c->arena + offsetof(ZydisDecodedInstruction, raw) + 15) & ~15ul;
	return d;
}

const struct decoded *decoded_get(struct trans *tr, const u8 *bytes, unsigned avail)
{
	struct decode_cache *c = tr->d->decode_cache;
	const u32 mode_key = tr->vcpu->arch.mode_key;
	u8 padded[INSN_MAX_LEN] = { 0 };
	const u8 *all = bytes;
	struct window w;
	struct decoded *d;
	u32 place;
	u64 h;

	if (unlikely(avail < INSN_MAX_LEN))
		all = memcpy(padded, bytes, avail);
	w = window_at(all);
	h = hash_of(tr, bytes, all, &w);
	d = find(c, h, mode_key, &w, &place);
	if (likely(d)) {
		if (unlikely(d->t.insn.len > avail))
			return NULL;
		if (unlikely(tr->d->verifier))
			VM_BUG_ON(!decoded_check(tr->vcpu, d, bytes), tr->vcpu->vm);
		return d;
	}
	d = decode(tr, bytes, avail);
	if (d && d->t.zi->mnemonic != ZYDIS_MNEMONIC_INVALID)
		enter_record(c, d, h, mode_key, &w, place);
	return d;
}

void dbt_site_insn(const struct dbt *d, const struct dbt_site *s, struct insn *insn)
{
	const struct decoded *r = &d->decode_cache->records[s->record];

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
	       a.thunk_flags == t.insn.thunk_flags && zi.attributes == d->t.zi->attributes &&
	       zi.mnemonic == d->t.zi->mnemonic && zi.operand_count_visible == d->t.zi->operand_count;
}

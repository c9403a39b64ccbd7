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
#include <emmintrin.h>

#include "x86/decode/decode.h"
#include "x86/dbt/decoded.h"

#define MAX_RECORDS (104u << 10)
#define ARENA_SIZE (44ul << 20)

/*
 * Places: 0, or a record's number + 1 and some more bits of its hash. Records lie close together: more than the host's
 * TLB has room for are in use.
 */
#define TABLE_SHIFT 17
#define NUMBER_BITS 17
#define TAG_BITS (32 - NUMBER_BITS)
static_assert(MAX_RECORDS < BIT(NUMBER_BITS), "beside the tag");
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

/* Of the instruction's structure, before those of its operands. */
#define ZI_KEPT ((offsetof(ZydisDecodedInstruction, raw) + 15) & ~15ul)
#define ZYDIS_MAX (ZI_KEPT + ZYDIS_MAX_OPERAND_COUNT * sizeof(ZydisDecodedOperand))

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

/* Where to look first, and the tag in the lower bits. */
static u64 hash(const struct vcpu *vcpu, unsigned fixed, const u8 *bytes)
{
	u64 x;

	memcpy(&x, bytes, sizeof(x));
	if (fixed < 8)
		x &= BIT_ULL(8 * fixed) - 1;
	return ((x ^ (u64)vcpu->arch.mode_key << 32) * 0x9e3779b97f4a7c15ull ^ vcpu->arch.mode_key) >> (64 - TABLE_SHIFT - TAG_BITS);
}

static bool matches(const struct decoded *d, u32 mode_key, __m128i window)
{
	const u32 same = _mm_movemask_epi8(_mm_cmpeq_epi8(_mm_load_si128((const __m128i *)d->first), window));

	return !(~same & d->mask) && d->mode_key == mode_key;
}

static u32 tag_of(u64 hash)
{
	return (u32)hash << NUMBER_BITS;
}

/* Of the record that a place leads to. */
static u32 number_at(u32 place)
{
	return (place & (BIT(NUMBER_BITS) - 1)) - 1;
}

/* NULL: the place is free. */
static struct decoded *find(struct decode_cache *c, u64 hash, u32 mode_key, const u8 *bytes, u32 *place)
{
	const __m128i window = _mm_loadu_si128((const __m128i *)bytes);
	u32 i = hash >> TAG_BITS, at;

	while ((at = c->table[i])) {
		struct decoded *d = &c->records[number_at(at)];

		if (!((at ^ tag_of(hash)) >> NUMBER_BITS) && likely(matches(d, mode_key, window)))
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
	p = (const u8 *)&c->records[number_at(at)];
	__builtin_prefetch(p);
	__builtin_prefetch(p + 64);
}

void decoded_expect(struct trans *tr, const u8 *bytes, unsigned avail)
{
	struct decode_cache *c = tr->d->decode_cache;
	const bool wide = in_64bit_mode(tr->vcpu);
	unsigned n = 0;

	for (unsigned at = 0; n < DECODED_EXPECT && at + DECODED_WINDOW <= avail;) {
		const struct shape shape = shape_of(bytes + at, wide);
		const u64 h = hash(tr->vcpu, shape.fixed, bytes + at);

		__builtin_prefetch(&c->table[h >> TAG_BITS]);
		c->expected[n++] = (struct expected){ bytes + at, h };
		if (shape.ends)
			break;
		at += shape.len;
	}
	c->nr_expected = n;
	c->next_expected = 0;
	for (unsigned i = 0; i < n; i++)
		prefetch_record(c, c->table[c->expected[i].hash >> TAG_BITS]);
}

/* Of the instruction at bytes, a window of which is at padded. */
static u64 hash_of(struct trans *tr, const u8 *bytes, const u8 *padded)
{
	struct decode_cache *c = tr->d->decode_cache;
	const u32 next = c->next_expected;

	if (likely(next < c->nr_expected && c->expected[next].bytes == bytes)) {
		c->next_expected++;
		return c->expected[next].hash;
	}
	return hash(tr->vcpu, shape_of(padded, in_64bit_mode(tr->vcpu)).fixed, padded);
}

/* d is the one of the instruction at bytes, from now on. */
static void enter_record(struct decode_cache *c, struct decoded *d, u64 hash, u32 mode_key, const u8 *bytes, u32 place)
{
	for (int at = 0; at < d->insn.len; at++)
		if (!(at >= d->disp_at && at < d->disp_at + d->disp_size) && !(at >= d->imm_at && at < d->imm_at + d->imm_size))
			d->mask |= BIT(at);
	memcpy(d->first, bytes, DECODED_WINDOW);
	d->mode_key = mode_key;
	c->table[place] = tag_of(hash) | (u32)(d - c->records + 1);
}

/* ---- records --------------------------------------------------------------------------------- */

static u64 read_le(const u8 *p, unsigned size, bool is_signed)
{
	u64 v = 0;

	memcpy(&v, p, size);
	return is_signed && size < 8 ? (u64)((s64)(v << (64 - 8 * size)) >> (64 - 8 * size)) : v;
}

void decoded_copy(const struct dbt *d, const struct decoded *r, const u8 *bytes, struct tinsn *t)
{
	memcpy(t, r->kept, TINSN_KEPT);
	t->bytes = bytes;
	t->zi = (const void *)(d->decode_cache->arena + t->zydis);
	t->ops = (const void *)(d->decode_cache->arena + t->zydis + ZI_KEPT);
	t->inverted = false;
	if (r->disp_size)
		t->insn.disp = r->disp_size == 1 ? (s8)bytes[r->disp_at] : (s32)read_le(bytes + r->disp_at, 4, true);
	if (r->imm_size)
		t->insn.imm = read_le(bytes + r->imm_at, r->imm_size, r->imm_signed);
}

/* The small ones of others say what the instruction is, or have bits that do not count. */
static bool small_immediate_ok(const ZydisDecodedInstruction *zi)
{
	return decode_is_move_or_alu(zi) || zi->mnemonic == ZYDIS_MNEMONIC_PUSH;
}

/* Which bytes do not matter? */
static void find_skipped(struct decoded *d, const ZydisDecodedInstruction *zi, const ZydisDecodedOperand *ops)
{
	const struct insn *insn = &d->insn;
	unsigned disp = zi->raw.disp.size / 8, imm = zi->raw.imm[0].size / 8;

	d->disp_size = d->imm_size = 0;
	if ((disp == 1 || disp == 4) && (insn->flags & INSN_MEM) && insn->disp == zi->raw.disp.value &&
	    (zi->attributes & ZYDIS_ATTRIB_HAS_MODRM)) {
		d->disp_at = zi->raw.disp.offset;
		d->disp_size = disp;
	}
	if ((zi->raw.imm[0].is_relative || imm >= 4 || small_immediate_ok(zi)) && imm && !zi->raw.imm[1].size && !insn->thunk &&
	    ops[0].type != ZYDIS_OPERAND_TYPE_POINTER && insn->imm == zi->raw.imm[0].value.u) {
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
	ZydisDecodedOperand *ops = (void *)(c->arena + c->used + ZI_KEPT);
	ZydisDecodedInstruction zi;
	struct tinsn t = { .zi = &zi, .ops = ops, .bytes = bytes, .record = c->nr_records, .zydis = c->used };

	if (!decode_insn_full(tr->vcpu, bytes, min(avail, (unsigned)INSN_MAX_LEN), &t.insn, &zi, ops))
		return NULL;
	tinsn_init(tr, &t);
	memset(d, 0, sizeof(*d));
	memcpy(d->kept, &t, TINSN_KEPT);
	find_skipped(d, &zi, ops);
	zi.operand_count = zi.operand_count_visible;
	memcpy(c->arena + c->used, &zi, offsetof(ZydisDecodedInstruction, raw));
	c->used += ZI_KEPT + max((unsigned)zi.operand_count, 2u) * sizeof(*ops);
	c->nr_records++;
	return d;
}

const struct decoded *decoded_get(struct trans *tr, const u8 *bytes, unsigned avail)
{
	struct decode_cache *c = tr->d->decode_cache;
	const u32 mode_key = tr->vcpu->arch.mode_key;
	u8 padded[DECODED_WINDOW] = { 0 };
	const u8 *all = bytes;
	struct decoded *d;
	u32 place;
	u64 h;

	if (unlikely(avail < DECODED_WINDOW))
		all = memcpy(padded, bytes, avail);
	h = hash_of(tr, bytes, all);
	d = find(c, h, mode_key, all, &place);
	if (likely(d)) {
		if (unlikely(d->insn.len > avail))
			return NULL;
		if (unlikely(tr->d->verifier))
			VM_BUG_ON(!decoded_check(tr->vcpu, d, bytes), tr->vcpu->vm);
		return d;
	}
	d = decode(tr, bytes, avail);
	if (d && d->insn.mnemonic != ZYDIS_MNEMONIC_INVALID)
		enter_record(c, d, h, mode_key, all, place);
	return d;
}

void dbt_site_insn(const struct dbt *d, const struct dbt_site *s, struct insn *insn)
{
	const struct decoded *r = &d->decode_cache->records[s->record];

	*insn = r->insn;
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

	if (!decode_insn_full(vcpu, bytes, d->insn.len, &a, &zi, ops))
		return false;
	decoded_copy(vcpu->arch.dbt, d, bytes, &t);
	return a.fn == t.insn.fn && a.len == t.insn.len && a.opsize == t.insn.opsize && a.addrsize == t.insn.addrsize &&
	       a.reg == t.insn.reg && a.rm == t.insn.rm && a.base == t.insn.base && a.index == t.insn.index &&
	       a.scale == t.insn.scale && a.seg == t.insn.seg && a.cc == t.insn.cc && a.flags == t.insn.flags &&
	       a.mnemonic == t.insn.mnemonic && a.memsize == t.insn.memsize && a.disp == t.insn.disp &&
	       a.imm == t.insn.imm && a.imm2 == t.insn.imm2 && a.thunk == t.insn.thunk &&
	       a.thunk_flags == t.insn.thunk_flags && zi.attributes == t.zi->attributes && (zi.opcode & 15) == t.cc &&
	       zi.mnemonic == t.zi->mnemonic && zi.operand_count_visible == t.zi->operand_count;
}

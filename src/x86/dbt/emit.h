/* SPDX-License-Identifier: MIT */
/*
 * Writing x86-64 machine code: just the forms the translator uses. Registers are
 * host registers by number (enum gpr). Nothing here knows about guests.
 *
 * Writing past the end is harmless: the position goes on, the bytes do not.
 */
#ifndef SOFTKVM_X86_DBT_EMIT_H
#define SOFTKVM_X86_DBT_EMIT_H

#include <string.h>

#include "x86/vcpu_arch.h"

#define NOREG 0xff

struct emit {
	u8 *base;	/* where offset 0 is written */
	u32 at, end;
	bool bmi2;	/* the host has RORX */
};

/* A memory operand. disp is what follows base and index, or an absolute 32-bit address without them. */
struct hmem {
	u8 base, index, scale;
	bool gs;
	s32 disp;
};

#define MEM_BASE(b, d) ((struct hmem){ .base = (b), .index = NOREG, .disp = (d) })
#define MEM_SIB(b, i, s, d) ((struct hmem){ .base = (b), .index = (i), .scale = (s), .disp = (d) })
#define MEM_GS(i, d) ((struct hmem){ .base = NOREG, .index = (i), .gs = true, .disp = (d) })

static inline void put8(struct emit *e, u8 v)
{
	if (e->at < e->end)
		e->base[e->at] = v;
	e->at++;
}

static inline void put32(struct emit *e, u32 v)
{
	if (e->at + 4 <= e->end)
		memcpy(e->base + e->at, &v, 4);
	e->at += 4;
}

/* Up to eight bytes at once. What follows them is overwritten: only at the end of the code. */
struct chunk {
	u64 bytes;
	unsigned n;
};

static inline void chunk_add(struct chunk *c, u8 v)
{
	c->bytes |= (u64)v << 8 * c->n++;
}

static inline void put_chunk(struct emit *e, const struct chunk *c)
{
	if (e->at + 8 <= e->end)
		memcpy(e->base + e->at, &c->bytes, 8);
	e->at += c->n;
}

static inline void put_bytes(struct emit *e, const u8 *bytes, unsigned n)
{
	for (unsigned i = 0; i < n; i++)
		put8(e, bytes[i]);
}

static inline void put64(struct emit *e, u64 v)
{
	put32(e, v);
	put32(e, v >> 32);
}

static inline u8 mem_rex(const struct hmem *m)
{
	return (m->index != NOREG && m->index > 7) << 1 | (m->base != NOREG && m->base > 7);
}

/* ModRM and SIB; the displacement's size in bytes is returned. */
static inline unsigned chunk_modrm_mem(struct chunk *c, u8 reg, const struct hmem *m)
{
	u8 r = (reg & 7) << 3;
	bool sib = m->index != NOREG || m->base == NOREG || (m->base & 7) == RSP;
	bool none = m->base == NOREG;
	u8 mod = none ? 0 : !m->disp && (m->base & 7) != RBP ? 0 : m->disp == (s8)m->disp ? 0x40 : 0x80;

	chunk_add(c, mod | r | (sib ? RSP : m->base & 7));
	if (sib)
		chunk_add(c, m->scale << 6 | (m->index == NOREG ? RSP : m->index & 7) << 3 | (none ? RBP : m->base & 7));
	return none || mod == 0x80 ? 4 : mod ? 1 : 0;
}

static inline void put_disp(struct emit *e, s32 disp, unsigned size)
{
	if (size == 4)
		put32(e, disp);
	else if (size)
		put8(e, disp);
}

static inline void put_modrm_mem(struct emit *e, u8 reg, const struct hmem *m)
{
	struct chunk c = { 0 };
	unsigned size = chunk_modrm_mem(&c, reg, m);

	put_chunk(e, &c);
	put_disp(e, m->disp, size);
}

/* Prefixes and opcode bytes, packed: bits 0-7 opcode, 8-15 map (0, 0x0f), 16-23 prefix (0, 66, f2, f3). */
#define OPC_0F 0x0f00u
#define OPC_66 0x660000u

static inline void chunk_opcode(struct chunk *c, u32 op, u8 rex)
{
	if (op >> 16 & 0xff)
		chunk_add(c, op >> 16);
	if (rex)
		chunk_add(c, 0x40 | rex);
	if (op >> 8 & 0xff)
		chunk_add(c, 0x0f);
	chunk_add(c, op);
}

static inline void put_opcode(struct emit *e, u32 op, u8 rex)
{
	struct chunk c = { 0 };

	chunk_opcode(&c, op, rex);
	put_chunk(e, &c);
}

#define W8 1u	/* operand is 64 bits wide */
#define W4 0u

static inline void put_rm(struct emit *e, unsigned w, u32 op, u8 reg, struct hmem m)
{
	struct chunk c = { 0 };
	unsigned size;

	/* An index alone is a base, if it counts once: that is a byte less. */
	if (m.base == NOREG && !m.scale) {
		m.base = m.index;
		m.index = NOREG;
	}
	if (m.gs)
		chunk_add(&c, 0x65);
	chunk_opcode(&c, op, w << 3 | (reg > 7) << 2 | mem_rex(&m));
	size = chunk_modrm_mem(&c, reg, &m);
	put_chunk(e, &c);
	put_disp(e, m.disp, size);
}

static inline void put_rr(struct emit *e, unsigned w, u32 op, u8 reg, u8 rm)
{
	struct chunk c = { 0 };

	chunk_opcode(&c, op, w << 3 | (reg > 7) << 2 | rm >> 3);
	chunk_add(&c, 0xc0 | (reg & 7) << 3 | (rm & 7));
	put_chunk(e, &c);
}

static inline void put_mov(struct emit *e, u8 dst, u8 src)
{
	put_rr(e, W8, 0x89, src, dst);
}

static inline void put_load(struct emit *e, u8 dst, struct hmem m)
{
	put_rm(e, W8, 0x8b, dst, m);
}

static inline void put_store(struct emit *e, struct hmem m, u8 src)
{
	put_rm(e, W8, 0x89, src, m);
}

static inline void put_lea(struct emit *e, u8 dst, struct hmem m)
{
	put_rm(e, W8, 0x8d, dst, m);
}

/* Group 1 with an immediate: /ext is 0 add, 1 or, 4 and, 5 sub, 6 xor, 7 cmp. */
static inline void put_alu_imm(struct emit *e, unsigned w, u8 ext, u8 reg, s32 imm)
{
	put_rr(e, w, imm == (s8)imm ? 0x83 : 0x81, ext, reg);
	if (imm == (s8)imm)
		put8(e, imm);
	else
		put32(e, imm);
}

static inline void put_alu_mem_imm(struct emit *e, unsigned w, u8 ext, struct hmem m, s32 imm)
{
	put_rm(e, w, imm == (s8)imm ? 0x83 : 0x81, ext, m);
	if (imm == (s8)imm)
		put8(e, imm);
	else
		put32(e, imm);
}

/* The shortest move of a constant. */
static inline void put_mov_imm(struct emit *e, u8 reg, u64 v)
{
	if (v == (u32)v) {
		put_opcode(e, 0xb8 | (reg & 7), reg >> 3);
		put32(e, v);
	} else if (v == (u64)(s64)(s32)v) {
		put_rr(e, W8, 0xc7, 0, reg);
		put32(e, v);
	} else {
		put_opcode(e, 0xb8 | (reg & 7), W8 << 3 | reg >> 3);
		put64(e, v);
	}
}

static inline void put_shift_imm(struct emit *e, unsigned w, u8 ext, u8 reg, u8 n)
{
	put_rr(e, w, 0xc1, ext, reg);
	put8(e, n);
}

/* dst = src, its bits moved to the right by n, around the end. Flags stay as they are. Needs BMI2. */
static inline void put_rorx(struct emit *e, u8 dst, u8 src, u8 n)
{
	struct chunk c = { 0 };

	chunk_add(&c, 0xc4);
	chunk_add(&c, (dst < 8) << 7 | 0x40 | (src < 8) << 5 | 3);
	chunk_add(&c, 0xfb);
	chunk_add(&c, 0xf0);
	chunk_add(&c, 0xc0 | (dst & 7) << 3 | (src & 7));
	chunk_add(&c, n);
	put_chunk(e, &c);
}

/* Branches to a known offset. The field that holds the distance is the last four bytes. */
static inline void put_jmp(struct emit *e, u32 target)
{
	put8(e, 0xe9);
	put32(e, target - (e->at + 4));
}

static inline void put_jcc(struct emit *e, u8 cc, u32 target)
{
	put8(e, 0x0f);
	put8(e, 0x80 | cc);
	put32(e, target - (e->at + 4));
}

/* jcc to what comes later: the field for patch_rel32(). */
static inline u32 put_jcc_later(struct emit *e, u8 cc)
{
	put_jcc(e, cc, 0);
	return e->at - 4;
}

/* reg = address of the code at target. */
static inline void put_lea_code(struct emit *e, u8 reg, u32 target)
{
	put_opcode(e, 0x8d, W8 << 3 | (reg > 7) << 2);
	put8(e, (reg & 7) << 3 | RBP);	/* rip + */
	put32(e, target - (e->at + 4));
}

static inline void put_call(struct emit *e, u32 target)
{
	put8(e, 0xe8);
	put32(e, target - (e->at + 4));
}

/* Make the distance field that ends at offset `field` + 4 lead to target. */
static inline void patch_rel32(struct emit *e, u32 field, u32 target)
{
	u32 v = target - (field + 4);

	if (field + 4 <= e->end)
		memcpy(e->base + field, &v, 4);
}

enum { CC_O, CC_NO, CC_B, CC_AE, CC_E, CC_NE, CC_BE, CC_A };

#endif

/* SPDX-License-Identifier: MIT */
/*
 * What to run: every opcode of every map with every ModRM.reg, several r/m forms
 * and the prefixes that may change its meaning; and states in which the operands
 * are where it gets interesting: aligned or not, across pages, read-only, absent,
 * not canonical, beyond the limit.
 */
#include <string.h>

#include "oracle.h"
#include "x86/interp/insn.h"

u64 oracle_seed = 0x9e3779b97f4a7c15ull;
struct oracle_memory oracle_native, oracle_guest;

u64 rnd(void)
{
	oracle_seed ^= oracle_seed << 13;
	oracle_seed ^= oracle_seed >> 7;
	oracle_seed ^= oracle_seed << 17;
	return oracle_seed * 0x2545f4914f6cdd1dull >> 8 | oracle_seed << 56;
}

static bool one_in(unsigned n)
{
	return rnd() % n == 0;
}

#define PICK(table) ((table)[rnd() % ARRAY_SIZE(table)])

void gen_store_code(u64 va, const void *bytes, unsigned len)
{
	for (unsigned i = 0; i < len; i++)
		if (va + i - ORACLE_CODE < ORACLE_CODE_SIZE)
			oracle_native.code[va + i - ORACLE_CODE] = oracle_guest.code[va + i - ORACLE_CODE] =
				((const u8 *)bytes)[i];
}

/* Operands: what would lie in the code is left out. */
static void gen_store(u64 va, const void *bytes, unsigned len)
{
	for (unsigned i = 0; i < len; i++)
		if (va + i - ORACLE_DATA < ORACLE_DATA_SIZE)
			oracle_native.data[va + i - ORACLE_DATA] = oracle_guest.data[va + i - ORACLE_DATA] =
				((const u8 *)bytes)[i];
}

/* ---- values ----------------------------------------------------------------------- */

static const u64 int_edges[] = {
	0, 1, 2, ~0ull, 0x7f, 0x80, 0xff, 0x7fff, 0x8000, 0xffff, 0x7fffffff, 0x80000000, 0xffffffff,
	1ull << 63, ~(1ull << 63), 0x0101010101010101ull, 63, 64, 31, 32, 9, 10, 0x99,
};

static const u64 float_edges[] = {
	0x3ff0000000000000ull, 0xbff0000000000000ull, 0x7ff0000000000000ull, 0xfff0000000000000ull,
	0x7ff8000000000000ull, 0x7ff4000000000000ull, 0x0000000000000001ull, 0x000fffffffffffffull,
	0x0010000000000000ull, 0x7fefffffffffffffull, 0x8000000000000000ull, 0x41dfffffffc00000ull,
	0x43e0000000000000ull, 0x3f8000003f800000ull, 0x7f8000007fc00000ull, 0x7fa00000ff800000ull,
	0x0000000100800000ull, 0x007fffff80000000ull, 0x4f0000007f7fffffull, 0x3c00bc007c00fc00ull,
	0x7e000001040083ffull, 0x3f000000bf000000ull,
};

static u64 code_pointer(enum oracle_mode mode)
{
	u64 at = ORACLE_CODE + rnd() % 0x800;

	if (mode == ORACLE_16)
		return (at - ORACLE_CS16_BASE) * 0x10001;
	return mode == ORACLE_32 ? at * 0x100000001ull : at;
}

static u64 value(enum oracle_mode mode)
{
	switch (rnd() % 8) {
	case 0: case 1: return PICK(int_edges);
	case 2: return PICK(float_edges);
	case 3: return rnd() % 256;
	case 4: return (s64)(s32)rnd();
	case 5: return one_in(2) ? code_pointer(mode) : rnd();
	default: return rnd();
	}
}

static u64 float_value(void)
{
	switch (rnd() % 4) {
	case 0: return PICK(float_edges);
	case 1: return (rnd() & 0x800fffffffffffffull) | (1023 - 40 + rnd() % 80) << 52;
	case 2: return ((rnd() & 0x807fffff807fffffull) | (127 - 20 + rnd() % 40) << 23 |
			(u64)(127 - 20 + rnd() % 40) << 55);
	default: return rnd();
	}
}

static void x87_value(u8 *reg)
{
	static const u16 exponents[] = { 0, 1, 0x3fff, 0x7ffe, 0x7fff, 0x3ffe, 0x4000, 0x403e, 0x403d, 0x401e };
	static const u64 mantissas[] = {
		0, 1, 1ull << 63, 3ull << 62, ~0ull, 0xc000000000000001ull, 0x4000000000000000ull,
		0xa000000000000000ull, 0xc90fdaa22168c235ull,
	};
	u64 mantissa = one_in(3) ? PICK(mantissas) : rnd();
	u16 exponent = one_in(4) ? PICK(exponents) : 0x3fff - 40 + rnd() % 80;

	if (!one_in(12))
		mantissa |= 1ull << 63;
	if (one_in(8)) {	/* an MMX register */
		mantissa = rnd();
		exponent = 0xffff;
	}
	exponent |= rnd() & 0x8000;
	memcpy(reg, &mantissa, 8);
	memcpy(reg + 8, &exponent, 2);
}

/* AMD's CPUs have MXCSR.MM. */
static bool has_misaligned_sse(void)
{
	static _Alignas(16) u8 fx[512];
	u32 mask;

	if (!fx[0])
		asm volatile("fxsave %0" : "=m"(fx));
	memcpy(&mask, fx + 28, 4);
	return mask & BIT(17);
}

static u32 mxcsr_value(void)
{
	u32 v = 0x1f80;

	if (one_in(2))
		v = (v & ~0x6000u) | (rnd() & 0xe07f);
	if (one_in(6))
		v ^= rnd() & 0x1f80;
	if (one_in(40) && has_misaligned_sse())
		v |= BIT(17);
	return v;
}

static void fx_image(u8 *fx)
{
	u16 fcw = 0x37f, fsw = (rnd() & 7) << 11;
	u32 mxcsr = mxcsr_value(), mask = 0x2ffff;
	u16 fop = rnd() & 0x7ff;
	u64 fip = rnd() & 0xffffffff, fdp = rnd() & 0xffffffff;

	memset(fx, 0, 512);
	if (one_in(2))
		fcw = 0x40 | (rnd() & 0xf3f) | (one_in(3) ? 0 : 0x3f);
	if (one_in(2))
		fsw |= rnd() & 0x477f;
	if (fsw & ~fcw & 0x3f)
		fsw |= 0x8080;
	else
		fsw &= ~0x8080;
	memcpy(fx, &fcw, 2);
	memcpy(fx + 2, &fsw, 2);
	fx[4] = one_in(3) ? rnd() : one_in(3) ? 0 : 0xff;
	if (fsw & 0x80) {	/* AMD's CPUs have these for a pending exception only */
		memcpy(fx + 6, &fop, 2);
		memcpy(fx + 8, &fip, 8);
		memcpy(fx + 16, &fdp, 8);
	}
	memcpy(fx + 24, &mxcsr, 4);
	memcpy(fx + 28, &mask, 4);
	for (int i = 0; i < 8; i++)
		x87_value(fx + 32 + 16 * i);
	for (int i = 0; i < 32; i++) {
		u64 v = one_in(3) ? value(ORACLE_64) : float_value();

		memcpy(fx + 160 + 8 * i, &v, 8);
	}
}

/* ---- operands in memory ----------------------------------------------------------------- */

/* Where an operand of size bytes goes. */
static u64 place(unsigned size)
{
	const u64 middle = ORACLE_DATA + PAGE_SIZE, ro = ORACLE_DATA + ORACLE_DATA_RW,
		  end = ORACLE_DATA + ORACLE_DATA_SIZE;
	unsigned part = size > 1 ? 1 + rnd() % (size - 1) : 0;

	switch (rnd() % 32) {
	case 0: case 1: return middle - part;
	case 2: return ro - part;
	case 3: return ro + (rnd() % 0x800 & ~63ull);
	case 4: return end - part;
	case 5: return end - size;
	case 6: return ORACLE_DATA - part;
	case 7: return one_in(4) ? rnd() : end + rnd() % 64;
	case 8: case 9: case 10: case 11: return ORACLE_DATA + 0x100 + rnd() % 0x1a00;
	case 12: return ro - size;
	case 13: return middle - size;
	default: return (ORACLE_DATA + 0x400 + rnd() % 0x1000) & ~63ull;
	}
}

bool oracle_is_image(ZydisMnemonic m)
{
	return (m >= ZYDIS_MNEMONIC_XRSTOR && m <= ZYDIS_MNEMONIC_XSAVES64) ||
	       m == ZYDIS_MNEMONIC_FXSAVE || m == ZYDIS_MNEMONIC_FXSAVE64 ||
	       m == ZYDIS_MNEMONIC_FXRSTOR || m == ZYDIS_MNEMONIC_FXRSTOR64;
}

/* Images of the whole state: most often aligned, each of their parts across each kind of border. */
static u64 place_image(void)
{
	u64 border = ORACLE_DATA + rnd() % (ORACLE_DATA_SIZE / PAGE_SIZE + 1) * PAGE_SIZE;

	switch (rnd() % 8) {
	case 0: return place(512);
	case 1: return border - 16 * (rnd() % 52);
	case 2: return ORACLE_DATA + 0x400 + 64 * (rnd() % 16);
	default: return border - 64 * (rnd() % 14);
	}
}

void oracle_default_segments(enum oracle_mode mode, struct oracle_state *s)
{
	u16 data = mode == ORACLE_16 ? ORACLE_LDT_DS16 : ORACLE_DS;

	s->sel[SEG_CS] = mode == ORACLE_64 ? ORACLE_CS64 : mode == ORACLE_32 ? ORACLE_CS32 : ORACLE_LDT_CS16;
	s->sel[SEG_DS] = s->sel[SEG_ES] = s->sel[SEG_SS] = data;
	s->sel[SEG_FS] = mode == ORACLE_64 ? 0 : ORACLE_LDT_DOWN;
	s->sel[SEG_GS] = mode == ORACLE_64 ? 0 : ORACLE_LDT_SMALL;
	s->fs_base = mode == ORACLE_64 ? ORACLE_FS_BASE : ORACLE_DATA;
	s->gs_base = mode == ORACLE_64 ? ORACLE_GS_BASE : ORACLE_DATA;
}

static u64 segment_base(const struct oracle_case *c, ZydisRegister seg)
{
	if (seg == ZYDIS_REGISTER_FS)
		return c->mode == ORACLE_64 ? ORACLE_FS_BASE : ORACLE_DATA;
	if (seg == ZYDIS_REGISTER_GS)
		return c->mode == ORACLE_64 ? ORACLE_GS_BASE : ORACLE_DATA;
	if (c->mode == ORACLE_16)
		return seg == ZYDIS_REGISTER_CS ? ORACLE_CS16_BASE : ORACLE_DS16_BASE;
	return 0;
}

/* Values around the operand; most often small, so that they mean something as counts and pointers. */
static void fill(const struct oracle_case *c, u64 va, unsigned size)
{
	u8 buf[1024];
	unsigned n = size + 32 < sizeof(buf) ? size + 32 : sizeof(buf);

	for (unsigned i = 0; i < n; i += 8) {
		u64 v = one_in(3) ? float_value() : value(c->mode);

		memcpy(buf + i, &v, 8);
	}
	gen_store(va - 16, buf, n);
}

static void set_low(u64 *reg, u64 v, unsigned size)
{
	if (size == 2)
		*reg = (*reg & ~0xffffull) | (u16)v;
	else if (size == 4)
		*reg = (*reg & ~0xffffffffull) | (u32)v;
	else
		*reg = v;
}

static u64 *gpr(struct oracle_case *c, ZydisRegister reg)
{
	bool high8;
	u8 r = gpr_from_zydis(reg, &high8);

	return r == INSN_NOREG ? NULL : &c->in.gpr[r];
}

static void set_vector_index(struct oracle_case *c, ZydisRegister reg)
{
	unsigned r = reg >= ZYDIS_REGISTER_YMM0 ? reg - ZYDIS_REGISTER_YMM0 : reg - ZYDIS_REGISTER_XMM0;
	bool wide = strstr(ZydisMnemonicGetString(c->zi.mnemonic), "gatherq") != NULL;

	for (int i = 0; i < 8; i++) {
		s32 v = one_in(12) ? (s32)rnd() : (s32)(rnd() % 128) - 32;
		s64 v8 = v;
		u8 *at = i < 4 ? c->in.fx + 160 + 16 * r + 4 * i : c->in.ymmh[r] + 4 * (i - 4);

		if (!wide)
			memcpy(at, &v, 4);
		else if (!(i & 1))
			memcpy(at, &v8, 8);
	}
}

static void patch_disp(struct oracle_case *c, u64 disp)
{
	memcpy(c->bytes + c->zi.raw.disp.offset, &disp, c->zi.raw.disp.size / 8);
}

static void place_operand(struct oracle_case *c, const ZydisDecodedOperand *op)
{
	const ZydisDecodedOperandMem *m = &op->mem;
	unsigned size = op->size ? op->size / 8 : 1, width = c->zi.address_width / 8;
	u64 va = oracle_is_image(c->zi.mnemonic) ? place_image() : place(size), off = va - segment_base(c, m->segment);
	u64 *base = gpr(c, m->base), *index = gpr(c, m->index);

	fill(c, va, size);
	if (m->type == ZYDIS_MEMOP_TYPE_VSIB) {
		set_vector_index(c, m->index);
		index = NULL;
	}
	if (m->base == ZYDIS_REGISTER_RIP || m->base == ZYDIS_REGISTER_EIP) {
		patch_disp(c, off - (c->in.rip + c->zi.length));
		return;
	}
	if (!base && !index) {
		if (c->zi.raw.disp.size)
			patch_disp(c, off);
		return;
	}
	off -= m->disp.value;
	if (index && index != base && base) {
		if (one_in(2))
			set_low(index, rnd() % 256, width);
		off -= *index * m->scale;
	} else if (index == base) {
		off /= m->scale + 1;
	} else if (!base) {
		off /= m->scale ? m->scale : 1;
		base = index;
	}
	set_low(base, off, width);
}

/* ---- what single instructions want ------------------------------------------------------------ */

static bool is_bit_string(ZydisMnemonic m)
{
	return m == ZYDIS_MNEMONIC_BT || m == ZYDIS_MNEMONIC_BTS || m == ZYDIS_MNEMONIC_BTR ||
	       m == ZYDIS_MNEMONIC_BTC;
}

static u64 operand_address(struct oracle_case *c, const ZydisDecodedOperand *op)
{
	const ZydisDecodedOperandMem *m = &op->mem;
	u64 *base = gpr(c, m->base), *index = gpr(c, m->index), off = m->disp.value;

	if (base)
		off += *base;
	if (index)
		off += *index * m->scale;
	if (c->zi.address_width < 64)
		off &= c->zi.address_width == 16 ? 0xffff : 0xffffffff;
	return off + segment_base(c, m->segment);
}

/* Images that have a chance of being accepted. */
static void fill_image(struct oracle_case *c, const ZydisDecodedOperand *op)
{
	u8 buf[832];
	u64 va = operand_address(c, op), bv = one_in(2) ? 7 : rnd() & 7;
	u32 mxcsr = mxcsr_value();
	bool compacted = false;

	switch (c->zi.mnemonic) {
	case ZYDIS_MNEMONIC_LDMXCSR:
	case ZYDIS_MNEMONIC_VLDMXCSR:
		if (!one_in(8))
			gen_store(va, &mxcsr, 4);
		return;
	case ZYDIS_MNEMONIC_XRSTOR:
	case ZYDIS_MNEMONIC_XRSTOR64:
		compacted = one_in(2);
		/* fall through */
	case ZYDIS_MNEMONIC_XSAVE:
	case ZYDIS_MNEMONIC_XSAVE64:
	case ZYDIS_MNEMONIC_XSAVEOPT:
	case ZYDIS_MNEMONIC_XSAVEOPT64:
	case ZYDIS_MNEMONIC_XSAVEC:
	case ZYDIS_MNEMONIC_XSAVEC64:
	case ZYDIS_MNEMONIC_FXRSTOR:
	case ZYDIS_MNEMONIC_FXRSTOR64:
		fx_image(buf);
		if (one_in(16))
			buf[26] |= 4; /* a bit of MXCSR that does not exist */
		memset(buf + 512, 0, 64);
		for (int i = 576; i < 832; i++)
			buf[i] = rnd();
		memcpy(buf + 512, &bv, 8);
		if (compacted) {
			/* Most often all that is in XSTATE_BV, as it must be. */
			bv = 1ull << 63 | (one_in(8) ? rnd() & 7 : bv | (rnd() & 7));
			memcpy(buf + 520, &bv, 8);
		}
		if (one_in(16))
			buf[512 + rnd() % (compacted ? 64 : 24)] |= 8;
		gen_store(va, buf, sizeof(buf));
		return;
	default:
		return;
	}
}

static void tune_explicit(struct oracle_case *c)
{
	const ZydisDecodedOperand *a = &c->ops[0], *b = &c->ops[1];

	if (is_bit_string(c->zi.mnemonic) && a->type == ZYDIS_OPERAND_TYPE_MEMORY &&
	    b->type == ZYDIS_OPERAND_TYPE_REGISTER && !one_in(8)) {
		s64 offset = (s64)(rnd() % 8192) - 4096;
		u64 *reg = gpr(c, b->reg.value);

		if (reg && !(a->mem.base && gpr(c, a->mem.base) == reg) && !(a->mem.index && gpr(c, a->mem.index) == reg))
			set_low(reg, offset, b->size / 8);
	}
	if ((c->zi.mnemonic == ZYDIS_MNEMONIC_DIV || c->zi.mnemonic == ZYDIS_MNEMONIC_IDIV) && !one_in(3)) {
		c->in.gpr[RDX] = one_in(3) ? ~0ull : rnd() & 3;
		c->in.gpr[RAX] &= one_in(2) ? 0xff : ~0ull;
	}
	if (c->zi.mnemonic >= ZYDIS_MNEMONIC_XRSTOR && c->zi.mnemonic <= ZYDIS_MNEMONIC_XSAVES64) {
		c->in.gpr[RAX] &= 7; /* the host has more states than the guest */
		c->in.gpr[RDX] = 0;
	}
	if ((c->zi.mnemonic == ZYDIS_MNEMONIC_CMPXCHG || c->zi.mnemonic == ZYDIS_MNEMONIC_CMPXCHG8B ||
	     c->zi.mnemonic == ZYDIS_MNEMONIC_CMPXCHG16B) && a->type == ZYDIS_OPERAND_TYPE_MEMORY && one_in(2)) {
		u64 at = operand_address(c, a) - ORACLE_DATA;
		unsigned half = c->zi.mnemonic == ZYDIS_MNEMONIC_CMPXCHG8B ? 4 : 8;

		if (at > ORACLE_DATA_SIZE - 16)
			return;
		memcpy(&c->in.gpr[RAX], oracle_native.data + at, half);
		memcpy(&c->in.gpr[RDX], oracle_native.data + at + half, half);
	}
}

static bool is_rep(const struct oracle_case *c)
{
	return c->zi.attributes & (ZYDIS_ATTRIB_HAS_REP | ZYDIS_ATTRIB_HAS_REPE | ZYDIS_ATTRIB_HAS_REPNE);
}

/* Strings, stack, XLAT, MASKMOVQ: registers that point without being asked. */
static void place_implicit(struct oracle_case *c)
{
	unsigned width = c->zi.address_width / 8;

	for (unsigned i = 0; i < c->zi.operand_count; i++) {
		const ZydisDecodedOperand *op = &c->ops[i];
		u64 *base;

		if (op->type != ZYDIS_OPERAND_TYPE_MEMORY || op->visibility == ZYDIS_OPERAND_VISIBILITY_EXPLICIT)
			continue;
		base = gpr(c, op->mem.base);
		if (base && base != &c->in.gpr[RSP]) {
			u64 va = place(op->size / 8 ? op->size / 8 : 1);

			fill(c, va, 64);
			set_low(base, va - segment_base(c, op->mem.segment), width);
		}
	}
	if (is_rep(c))
		set_low(&c->in.gpr[RCX], one_in(10) ? 0 : rnd() % 24, c->mode == ORACLE_64 && width == 4 && one_in(2) ? 4 : 8);
	if (c->zi.mnemonic == ZYDIS_MNEMONIC_LOOP || c->zi.mnemonic == ZYDIS_MNEMONIC_LOOPE ||
	    c->zi.mnemonic == ZYDIS_MNEMONIC_LOOPNE || c->zi.meta.category == ZYDIS_CATEGORY_COND_BR)
		if (one_in(2))
			c->in.gpr[RCX] = rnd() % 3;
	if (is_rep(c) && one_in(4)) /* overlapping */
		set_low(&c->in.gpr[RDI], c->in.gpr[RSI] + rnd() % 24 - 4, width);
	/* Equal strings now and then, or REPE ends at once. */
	if (is_rep(c) && one_in(2)) {
		u8 same[256];

		memset(same, (u8)c->in.gpr[RAX], sizeof(same));
		gen_store((u32)c->in.gpr[RDI] + segment_base(c, ZYDIS_REGISTER_ES) - 64, same, 128 + rnd() % 128);
		gen_store((u32)c->in.gpr[RSI] + segment_base(c, ZYDIS_REGISTER_DS) - 64, same, 128 + rnd() % 128);
		c->in.gpr[RAX] = (u8)c->in.gpr[RAX] * 0x0101010101010101ull;
	}
}

static void place_stack(struct oracle_case *c, u64 *reg)
{
	u64 va = one_in(6) ? place(8) : (ORACLE_DATA + 0x800 + rnd() % 0x800) & ~7ull;

	if (one_in(8))
		va += rnd() % 8;
	fill(c, va - 32, 96);
	set_low(reg, va - segment_base(c, ZYDIS_REGISTER_SS), c->mode == ORACLE_64 ? 8 : c->mode == ORACLE_32 ? 4 : 2);
}

/* ---- the whole state ----------------------------------------------------------------------------- */

static bool branches_into_itself(const struct oracle_case *c)
{
	for (unsigned i = 0; i < c->zi.operand_count_visible; i++) {
		const ZydisDecodedOperand *op = &c->ops[i];
		u64 target, mask = c->mode == ORACLE_64 ? ~0ull : c->mode == ORACLE_32 ? 0xffffffff : 0xffff;

		if (op->type != ZYDIS_OPERAND_TYPE_IMMEDIATE || !op->imm.is_relative)
			continue;
		target = (c->in.rip + c->zi.length + op->imm.value.s) & mask;
		if (target - c->in.rip < c->zi.length || (u16)target - (u16)c->in.rip < c->zi.length)
			return true;
	}
	return false;
}

/* Mostly in the middle of a page; sometimes across two, sometimes running off the end of the code. */
static u64 place_code(const struct oracle_case *c)
{
	u64 va = ORACLE_CODE + 0xc00 + rnd() % 64;

	if (one_in(16))
		va = ORACLE_CODE + PAGE_SIZE - 1 - rnd() % c->zi.length;
	else if (one_in(32))
		va = ORACLE_CODE + ORACLE_CODE_SIZE - 1 - rnd() % c->zi.length;
	return c->mode == ORACLE_16 ? va - ORACLE_CS16_BASE : va;
}

static u64 rflags_value(void)
{
	u64 v = (rnd() & X86_EFLAGS_OSZAPC) | X86_EFLAGS_FIXED | X86_EFLAGS_IF;

	if (one_in(4))
		v |= X86_EFLAGS_DF;
	if (one_in(16))
		v |= X86_EFLAGS_AC;
	return v;
}

bool gen_state(struct oracle_case *c)
{
	const ZydisDecodedOperand *mem = NULL;
	struct oracle_state *s = &c->in;

	fx_image(s->fx);
	for (int i = 0; i < 16; i++) {
		u64 v[2] = { float_value(), value(c->mode) };

		memcpy(s->ymmh[i], v, 16);
		s->gpr[i] = value(c->mode);
	}
	s->rflags = rflags_value();
	s->rip = place_code(c);
	oracle_default_segments(c->mode, s);
	place_stack(c, &s->gpr[RSP]);
	place_stack(c, &s->gpr[RBP]);
	place_implicit(c);
	for (unsigned i = 0; i < c->zi.operand_count; i++)
		if (c->ops[i].type == ZYDIS_OPERAND_TYPE_MEMORY && c->ops[i].visibility == ZYDIS_OPERAND_VISIBILITY_EXPLICIT)
			mem = &c->ops[i];
	if (mem && mem->mem.type != ZYDIS_MEMOP_TYPE_AGEN)
		place_operand(c, mem);
	tune_explicit(c);
	if (mem)
		fill_image(c, mem);
	if (c->mode != ORACLE_64)
		for (int i = 0; i < 16; i++)
			s->gpr[i] = i < 8 ? (u32)s->gpr[i] : 0;
	return !branches_into_itself(c);
}

/* ---- encodings -------------------------------------------------------------------------------------- */

typedef void (*encoding_fn)(enum oracle_mode mode, const u8 bytes[16]);

static u8 modrm(enum oracle_mode mode, unsigned reg, unsigned form)
{
	unsigned rm = rnd() & 7;

	if (form < 2)
		return 0xc0 | reg << 3 | rm;
	if (form == 2 && mode != ORACLE_16 && one_in(2))
		rm = 4; /* SIB */
	return (rnd() % 3) << 6 | reg << 3 | rm;
}

/* Operand bytes behind the opcode: ModRM, and whatever may follow. */
static void put_tail(u8 *b, unsigned n, u8 m)
{
	b[n++] = m;
	for (; n < 16; n++)
		b[n] = one_in(2) ? rnd() : (rnd() & 15);
}

static bool is_prefix(enum oracle_mode mode, u8 opcode)
{
	switch (opcode) {
	case 0x26: case 0x2e: case 0x36: case 0x3e: case 0x64: case 0x65: case 0x66: case 0x67:
	case 0xf0: case 0xf2: case 0xf3: case 0x0f:
		return true;
	case 0x62:
		return mode == ORACLE_64;
	default:
		return mode == ORACLE_64 && (opcode & 0xf0) == 0x40;
	}
}

static unsigned put_map(u8 *b, unsigned map)
{
	unsigned n = 0;

	if (map)
		b[n++] = 0x0f;
	if (map > 1)
		b[n++] = map == 2 ? 0x38 : 0x3a;
	return n;
}

static void legacy_form(enum oracle_mode mode, unsigned map, u8 opcode, const u8 *prefix, unsigned rex,
			unsigned reg, unsigned form, encoding_fn fn)
{
	static const u8 segments[] = { 0x2e, 0x36, 0x3e, 0x26, 0x64, 0x65 };
	u8 b[32] = { 0 };
	unsigned n = 0;

	if (one_in(16))
		b[n++] = PICK(segments);
	if (one_in(8))
		b[n++] = 0x67;
	for (unsigned i = 0; i < 2; i++)
		if (prefix[i])
			b[n++] = prefix[i];
	if (rex)
		b[n++] = rex == 1 ? 0x40 | (rnd() & 7) : 0x48 | (rnd() & 7);
	n += put_map(b + n, map);
	b[n++] = opcode;
	put_tail(b, n, modrm(mode, reg, form));
	fn(mode, b);
}

static void legacy_opcode(enum oracle_mode mode, unsigned map, u8 opcode, bool thorough, encoding_fn fn)
{
	static const u8 prefixes[][2] = {
		{ 0 }, { 0x66 }, { 0xf2 }, { 0xf3 }, { 0xf0 }, { 0x66, 0xf2 }, { 0x66, 0xf3 }, { 0xf0, 0x66 },
	};
	unsigned rexes = mode == ORACLE_64 ? 3 : 1;

	for (unsigned p = 0; p < ARRAY_SIZE(prefixes); p++)
		for (unsigned rex = 0; rex < rexes; rex++)
			for (unsigned reg = 0; reg < 8; reg++)
				for (unsigned form = 0; form < 4; form++)
					if (thorough || ((reg ^ form ^ p ^ rex) & 3) == (rnd() & 3))
						legacy_form(mode, map, opcode, prefixes[p], rex, reg, form, fn);
}

static void vex_form(enum oracle_mode mode, unsigned map, unsigned pp, unsigned wl, u8 opcode, unsigned reg,
		     unsigned form, encoding_fn fn)
{
	u8 b[32] = { 0 };
	unsigned n = 0, vvvv = form & 1 ? 15 : rnd() & (mode == ORACLE_64 ? 15 : 7);
	unsigned rxb = mode == ORACLE_64 ? rnd() & 7 : 7;

	if (mode != ORACLE_64)
		vvvv |= 8;
	if (one_in(16))
		b[n++] = 0x67;
	if (one_in(24))
		b[n++] = one_in(2) ? 0x64 : 0x65;
	if (map == 1 && !(wl & 2) && (rxb & 3) == 3 && one_in(2)) {
		b[n++] = 0xc5;
		b[n++] = (rxb & 4) << 5 | vvvv << 3 | (wl & 1) << 2 | pp;
	} else {
		b[n++] = 0xc4;
		b[n++] = rxb << 5 | map;
		b[n++] = (wl & 2) << 6 | vvvv << 3 | (wl & 1) << 2 | pp;
	}
	b[n++] = opcode;
	put_tail(b, n, modrm(mode, reg, form));
	fn(mode, b);
}

static void vex_opcode(enum oracle_mode mode, unsigned map, u8 opcode, bool thorough, encoding_fn fn)
{
	for (unsigned pp = 0; pp < 4; pp++)
		for (unsigned wl = 0; wl < 4; wl++)
			for (unsigned reg = 0; reg < 8; reg++)
				for (unsigned form = 0; form < 4; form++)
					if (thorough || ((reg ^ form ^ pp ^ wl) & 7) == (rnd() & 7))
						vex_form(mode, map, pp, wl, opcode, reg, form, fn);
}

void gen_encodings(enum oracle_mode mode, bool thorough, encoding_fn fn)
{
	for (unsigned map = 0; map < 4; map++)
		for (unsigned opcode = 0; opcode < 256; opcode++)
			if (map || !is_prefix(mode, opcode))
				legacy_opcode(mode, map, opcode, thorough, fn);
	for (unsigned map = 1; map < 4; map++)
		for (unsigned opcode = 0; opcode < 256; opcode++)
			vex_opcode(mode, map, opcode, thorough, fn);
}

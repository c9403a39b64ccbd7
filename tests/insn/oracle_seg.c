/* SPDX-License-Identifier: MIT */
/*
 * Segment registers, descriptors and far transfers, as far as a process can have them: an LDT of
 * random descriptors made by modify_ldt(2), and random selectors. The instruction is followed by one that uses what it
 * loaded, at an offset near the limit; a transfer lands among HLTs in whatever code segment it was given.
 *
 * Linux keeps some from us: conforming segments that are present, gates, DPL below 3, the 64-bit bit. SGDT, SIDT, SLDT,
 * STR and SMSW are emulated under UMIP. The priv_* tests of tests/api have these.
 */
#include <asm/ldt.h>
#include <stdio.h>
#include <string.h>

#include "oracle.h"

#define BATCH 500	/* cases to a table */

static struct user_desc table[ORACLE_LDT_ENTRIES];

static bool one_in(unsigned n)
{
	return rnd() % n == 0;
}

#define PICK(list) ((list)[rnd() % ARRAY_SIZE(list)])

/* ---- descriptors ----------------------------------------------------------------------------- */

/* What the kernel makes of an entry. */
static u64 image(const struct user_desc *d)
{
	u64 access = 1 | (d->read_exec_only ? 0 : 2) | d->contents << 2 | 0x70 | (d->seg_not_present ? 0 : 0x80);
	u64 flags = d->useable | d->seg_32bit << 2 | d->limit_in_pages << 3;

	/* This one means "none" to the kernel. */
	if (!d->base_addr && !d->limit && !d->contents && d->read_exec_only && !d->seg_32bit && !d->limit_in_pages &&
	    d->seg_not_present && !d->useable)
		return 0;
	return (d->limit & 0xffff) | (u64)(d->base_addr & 0xffffff) << 16 | access << 40 |
	       (u64)(d->limit >> 16) << 48 | flags << 52 | (u64)(d->base_addr >> 24) << 56;
}

static void random_entry(unsigned nr)
{
	static const u32 data_bases[] = { 0, ORACLE_DATA, ORACLE_DATA + 0x800, ORACLE_DS16_BASE, 0xfffff000 };
	static const u32 code_bases[] = { 0, ORACLE_CODE, ORACLE_CS16_BASE, ORACLE_CODE - 0x800, ORACLE_DATA };
	static const u32 limits[] = { 0, 1, 0xfff, 0x7ff, 0x1000, 0xffff, 0xfffff, 0x20001, 0x10001, 0xd7ff };
	struct user_desc d = { .entry_number = nr, .contents = rnd() % 4, .limit = PICK(limits) };

	d.base_addr = d.contents >= MODIFY_LDT_CONTENTS_CODE ? PICK(code_bases) : PICK(data_bases);
	if (one_in(16))
		d.base_addr = rnd();
	if (one_in(8))
		d.limit = rnd() & 0xfffff;
	d.seg_32bit = one_in(2);
	d.read_exec_only = one_in(4);
	d.limit_in_pages = one_in(2);
	d.seg_not_present = d.contents == 3 || one_in(10);
	d.useable = one_in(2);
	if (!native_set_ldt(&d))
		return;
	table[nr] = d;
	guest_set_ldt(nr, image(&d));
}

static const struct user_desc *entry_of(u16 selector)
{
	return (selector & 4) && selector >> 3 < ORACLE_LDT_ENTRIES ? &table[selector >> 3] : NULL;
}

bool oracle_is_small_stack(u16 ss)
{
	const struct user_desc *d = entry_of(ss);

	return ss == ORACLE_LDT_DS16 || (d && !d->seg_32bit);
}

/* GDT entry 15 says which CPU this is: not that one. */
static u16 random_selector(void)
{
	u16 free = ORACLE_LDT_FREE + rnd() % (ORACLE_LDT_ENTRIES - 1 - ORACLE_LDT_FREE);

	switch (rnd() % 16) {
	case 0: return rnd() % 4;
	case 1: return (rnd() % 15) << 3 | (rnd() & 3);
	case 2: return one_in(2) ? ORACLE_DS : ORACLE_CS32;
	case 3: return one_in(2) ? ORACLE_CS64 : ORACLE_LDT_CS16;
	case 4: return (rnd() % ORACLE_LDT_ENTRIES) << 3 | 4 | (rnd() & 3);
	case 5: return one_in(4) ? (rnd() | 0x200) : ORACLE_LDT_ENTRIES << 3 | 7;
	default: return free << 3 | 7;
	}
}

/* An offset that says something about the limit of what the selector names, or lies in DATA. */
static u64 random_offset(u16 selector)
{
	const struct user_desc *d = entry_of(selector);
	u32 base = d ? d->base_addr : 0;
	u32 limit = d ? d->limit_in_pages ? d->limit << 12 | 0xfff : d->limit : 0xffffffff;

	switch (rnd() % 8) {
	case 0: return limit - rnd() % 6;
	case 1: return limit + rnd() % 3;
	case 2: return 0x10000 - rnd() % 8;
	default: return ORACLE_DATA + 0x100 + rnd() % 0x1c00 - base;
	}
}

static u64 code_offset(u16 selector)
{
	const struct user_desc *d = entry_of(selector);
	u64 target = ORACLE_CODE + 0x100 + rnd() % 0x800;

	if (selector == ORACLE_LDT_CS16)
		return target - ORACLE_CS16_BASE;
	return one_in(10) ? rnd() : one_in(10) && d ? d->limit + rnd() % 3 : target - (d ? d->base_addr : 0);
}

/* ---- instructions -------------------------------------------------------------------------------- */

struct code {
	enum oracle_mode mode;
	u8 bytes[32];
	unsigned n;
	unsigned opsize;	/* of pointers and frames, in bytes */
	u16 selector;		/* what the instruction will find */
	enum { SELECTOR, POINTER, FAR_POINTER, RETURN, FRAME } finds;	/* in memory; FAR_POINTER: to code */
};

static void put(struct code *k, u8 byte)
{
	k->bytes[k->n++] = byte;
}

/* A 66h, sometimes, or REX.W. */
static void put_size(struct code *k)
{
	k->opsize = k->mode == ORACLE_16 ? 2 : 4;
	if (one_in(3)) {
		put(k, 0x66);
		k->opsize ^= 6;
	}
	if (k->mode == ORACLE_64 && one_in(3)) {
		put(k, 0x48);
		k->opsize = 8;
	}
}

/* Register 0 (the selector's), or [rBX]. */
static void put_modrm(struct code *k, unsigned reg, bool mem)
{
	put(k, mem ? reg << 3 | (k->mode == ORACLE_16 ? 7 : 3) : 0xc0 | reg << 3);
}

/* Through seg at rSI: a load or a store of one, two or four bytes. */
static void put_probe(struct code *k, unsigned seg)
{
	static const u8 prefixes[] = { 0x26, 0x2e, 0x36, 0x3e, 0x64, 0x65 };

	put(k, prefixes[seg]);
	if (one_in(3))
		put(k, 0x66);
	put(k, 0x88 | (rnd() & 3));
	put(k, k->mode == ORACLE_16 ? 0x0c : 0x0e);	/* CL, CX or ECX */
}

static void gen_mov_sreg(struct code *k)
{
	unsigned seg = rnd() % 6;
	bool mem = one_in(2);

	if (one_in(20))
		seg = rnd() & 7;
	put_size(k);
	put(k, 0x8e);
	put_modrm(k, seg, mem);
	if (seg < 6)
		put_probe(k, seg);
}

static void gen_store_sreg(struct code *k)
{
	put_size(k);
	put(k, 0x8c);
	put_modrm(k, rnd() & 7, one_in(2));
}

static void gen_pop_sreg(struct code *k)
{
	static const u8 opcodes[] = { 0x07, 0, 0x17, 0x1f, 0xa1, 0xa9 };
	unsigned seg = k->mode == ORACLE_64 ? 4 + rnd() % 2 : rnd() % 6;

	if (seg == 1)
		seg = 2;
	put_size(k);
	if (seg >= 4)
		put(k, 0x0f);
	put(k, opcodes[seg]);
	put_probe(k, seg);
}

static void gen_push_sreg(struct code *k)
{
	static const u8 opcodes[] = { 0x06, 0x0e, 0x16, 0x1e, 0xa0, 0xa8 };
	unsigned seg = k->mode == ORACLE_64 ? 4 + rnd() % 2 : rnd() % 6;

	put_size(k);
	if (seg >= 4)
		put(k, 0x0f);
	put(k, opcodes[seg]);
}

static void gen_load_pointer(struct code *k)
{
	static const u8 opcodes[] = { 0xc4, 0, 0xb2, 0xc5, 0xb4, 0xb5 };
	unsigned seg = k->mode == ORACLE_64 ? 4 + rnd() % 2 : rnd() % 6;

	if (seg == 1 || one_in(4))
		seg = 2;
	put_size(k);
	if (seg == 2 || seg >= 4)
		put(k, 0x0f);
	put(k, opcodes[seg]);
	put_modrm(k, 7, true);	/* rDI */
	put_probe(k, seg);
	k->finds = POINTER;
}

static void gen_lar(struct code *k)
{
	put_size(k);
	put(k, 0x0f);
	put(k, 2 + (rnd() & 1));
	put_modrm(k, 7, one_in(2));
}

static void gen_verr(struct code *k)
{
	put_size(k);
	put(k, 0x0f);
	put(k, 0x00);
	put_modrm(k, 4 + (rnd() & 1), one_in(2));
}

static void gen_arpl(struct code *k)
{
	if (k->mode == ORACLE_64)
		return;
	put(k, 0x63);
	put_modrm(k, 7, one_in(2));
}

static void gen_far_mem(struct code *k)
{
	put_size(k);
	put(k, 0xff);
	put_modrm(k, one_in(2) ? 3 : 5, true);
	k->finds = FAR_POINTER;
}

static void gen_far_imm(struct code *k)
{
	u64 off = code_offset(k->selector);

	if (k->mode == ORACLE_64)
		return;
	put_size(k);
	put(k, one_in(2) ? 0x9a : 0xea);
	for (unsigned i = 0; i < k->opsize; i++)
		put(k, off >> 8 * i);
	put(k, k->selector);
	put(k, k->selector >> 8);
}

static void gen_retf(struct code *k)
{
	put_size(k);
	k->finds = RETURN;
	if (one_in(2)) {
		put(k, 0xcb);
		return;
	}
	put(k, 0xca);
	put(k, rnd() & 31);
	put(k, 0);
}

static void gen_iret(struct code *k)
{
	put_size(k);
	put(k, 0xcf);
	k->finds = FRAME;
}

/* INT 80h is a system call. */
static void gen_int(struct code *k)
{
	u8 vector = rnd();

	if (vector == 0x80)
		return;
	put(k, 0xcd);
	put(k, vector);
}

/* Stack instructions after SS has been loaded: the new B bit. */
static void gen_ss_push(struct code *k)
{
	put(k, 0x8e);
	put_modrm(k, 2, false);
	if (one_in(3))
		put(k, 0x66);
	put(k, one_in(2) ? 0x51 : 0x59);	/* rCX */
}

static void (*const kinds[])(struct code *k) = {
	gen_mov_sreg, gen_mov_sreg, gen_store_sreg, gen_pop_sreg, gen_pop_sreg, gen_push_sreg, gen_load_pointer,
	gen_load_pointer, gen_lar, gen_lar, gen_verr, gen_arpl, gen_far_mem, gen_far_mem, gen_far_imm, gen_retf,
	gen_retf, gen_iret, gen_iret, gen_int, gen_ss_push,
};

/* ---- state ------------------------------------------------------------------------------------------ */

static void store(u64 va, u64 value, unsigned len)
{
	for (unsigned i = 0; i < len; i++, value >>= 8)
		if (va + i - ORACLE_DATA < ORACLE_DATA_SIZE)
			oracle_native.data[va + i - ORACLE_DATA] = oracle_guest.data[va + i - ORACLE_DATA] = value;
}

static const u64 frame_flags = X86_EFLAGS_OSZAPC | X86_EFLAGS_DF | X86_EFLAGS_IOPL | X86_EFLAGS_IF | X86_EFLAGS_NT |
			       X86_EFLAGS_AC | X86_EFLAGS_ID;

static void store_stack(const struct code *k, u64 at)
{
	u64 vals[5] = {
		code_offset(k->selector), k->selector, (rnd() & frame_flags) | X86_EFLAGS_FIXED, ORACLE_DATA + 0x1400,
		one_in(3) ? random_selector() : ORACLE_DS,
	};
	unsigned n = k->finds == FRAME ? 5 : 2;

	if (k->finds != RETURN && k->finds != FRAME) {
		store(at, k->selector | rnd() << 16, 8);
		return;
	}
	for (unsigned i = 0; i < n; i++, at += k->opsize)
		store(at, vals[i], k->opsize);
}

/* rBX points to a selector or a far pointer, rAX is the selector, the stack has it too. */
static void fill(struct oracle_case *c, const struct code *k)
{
	u64 bx = ORACLE_DATA + 0x200 + rnd() % 0x100, sp = ORACLE_DATA + 0x1000 + (rnd() % 0x100 & ~7ull);
	u64 base = c->mode == ORACLE_16 ? ORACLE_DS16_BASE : 0, end = ORACLE_DATA + ORACLE_DATA_SIZE;
	u64 *r = c->in.gpr;

	if (one_in(16))
		bx = end - 1 - rnd() % 12;
	/* All of it, or nothing: which part is looked at first is the CPU's choice. */
	if (one_in(16))
		sp = one_in(2) ? end : end - 40;
	r[RAX] = (r[RAX] & ~0xffffull) | k->selector;
	r[RBX] = bx - base;
	r[RSP] = sp - base;
	r[RSI] = random_offset(k->selector);
	store_stack(k, sp);
	if (k->finds == POINTER || k->finds == FAR_POINTER) {
		store(bx, k->finds == POINTER ? rnd() : code_offset(k->selector), k->opsize);
		store(bx + k->opsize, k->selector, 2);
	} else {
		store(bx, k->selector, 2);
	}
}

static void random_state(struct oracle_case *c, const struct code *k)
{
	static const u8 fx[32] = { 0x7f, 0x03, [24] = 0x80, 0x1f, [28] = 0xff, 0xff };

	memset(&c->in, 0, sizeof(c->in));
	memcpy(c->in.fx, fx, sizeof(fx));
	oracle_default_segments(c->mode, &c->in);
	for (int i = 0; i < 16; i++)
		c->in.gpr[i] = rnd();
	c->in.rip = ORACLE_CODE + 0xc00 + rnd() % 64 - (c->mode == ORACLE_16 ? ORACLE_CS16_BASE : 0);
	c->in.rflags = (rnd() & X86_EFLAGS_OSZAPC) | X86_EFLAGS_FIXED | X86_EFLAGS_IF;
	fill(c, k);
	for (int i = 0; i < 16 && c->mode != ORACLE_64; i++)
		c->in.gpr[i] = i < 8 ? (u32)c->in.gpr[i] : 0;
}

bool oracle_segments_differ(const struct oracle_state *n, const struct oracle_state *g, char *why, size_t len)
{
	static const char *const names[] = { "es", "cs", "ss", "ds", "fs", "gs" };

	for (unsigned i = 0; i < 6; i++)
		/* The way back from the kernel makes any null selector 0. */
		if (n->sel[i] != g->sel[i] && (n->sel[i] || g->sel[i] > 3))
			return snprintf(why, len, "%s is %x, not %x", names[i], g->sel[i], n->sel[i]);
	if (n->fs_base != g->fs_base)
		return snprintf(why, len, "FS base is %llx, not %llx", (long long)g->fs_base, (long long)n->fs_base);
	if (n->gs_base != g->gs_base)
		return snprintf(why, len, "GS base is %llx, not %llx", (long long)g->gs_base, (long long)n->gs_base);
	return false;
}

void oracle_segments(enum oracle_mode mode, unsigned n, bool (*decode)(struct oracle_case *c),
		     void (*run)(struct oracle_case *c, unsigned len))
{
	for (unsigned i = 0; i < n; i++) {
		struct oracle_case c = { .mode = mode };
		struct code k = { .mode = mode, .selector = random_selector() };

		if (i % BATCH == 0)
			for (unsigned e = ORACLE_LDT_FREE; e < ORACLE_LDT_ENTRIES - 1; e++)
				random_entry(e);
		kinds[rnd() % ARRAY_SIZE(kinds)](&k);
		memcpy(c.bytes, k.bytes, sizeof(c.bytes));
		if (!k.n || k.n > sizeof(c.bytes) || !decode(&c))
			continue;
		random_state(&c, &k);
		run(&c, k.n);
	}
}

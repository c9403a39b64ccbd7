/* SPDX-License-Identifier: MIT */
/*
 * Random programs, in 64-bit mode and in flat 32-bit mode, executed by each engine in a process
 * of its own: registers, flags, vectors and memory must come out the same.
 *	engines [programs [seed [64|32|user]]]	compare
 *	engines child|verbose 64|32|user first programs seed	execute and print, for the former
 * A program is straight code with forward branches, calls, loops over arrays, self-modification and now and then
 * an access to a page that is absent, repeated a few times; it ends in HLT, or in
 * the HLT of an exception handler. Where an exception finds flags that are
 * overwritten before anybody reads them, engines may differ: frames are compared without them.
 * The third kind are user programs in 64-bit mode, which end in INT3. Code and data are mapped a second time, at another
 * address each time, and there they begin; what refers to absolute addresses leads to the first mapping, and back.
 */
#include <linux/kvm.h>
#include <signal.h>
#include <unistd.h>

#include "api/generate.h"
#include "api/kvmtest.h"

#define MEM_SIZE (8u << 20)
#define CODE 0x100000u
#define DATA 0x200000u		/* three pages; operands stay inside or cross between them */
#define DATA_SIZE 0x3000u
#define ABSENT 0x600000u	/* 2 MiB not mapped */
#define STACK 0x310000u
#define TABLES_END 0x5000u
#define IDT 0x20000u
#define HANDLERS 0x30000u	/* HLT, 16 bytes apart */
#define COUNTER (DATA - 0x1000)
#define FLAGS_ARITH 0x8d5u
#define LOOPS "loops"
#define TABLES_HIT "hit its page tables"
#define FS_BASE 0x3000u
#define GDT 0x28000u
#define PAGE_DIRECTORY 0x4000u	/* of 32-bit programs */
#define CODE_SIZE 0x8000u
/* Of user programs: */
#define SECOND_PML4 0x5000u
#define HIGH_TABLES 0x6000u	/* of the second mapping */
#define HIGH_TABLES_END 0x10000u
#define TSS 0x29000u
#define STACK0 0x3f000u
#define INT3_END (HANDLERS + 3 * 16 + 1)

static enum kind { KIND_64, KIND_32, KIND_USER, NR_KINDS } kind;
static const char *const kinds[] = { "64", "32", "user" };
static int narrow;		/* 32-bit programs */
static int user;		/* user programs... */
static uint64_t high;		/* ...have CODE here, too, and DATA as far from it */

/* ---- the generator --------------------------------------------------------------- */

static uint8_t *start;

/* Any register but rsp. */
static unsigned reg(void)
{
	unsigned r = rnd(narrow ? 7 : 15);

	return r >= 4 ? r + 1 : r;
}

static unsigned reg_not(unsigned other)
{
	unsigned r;

	do
		r = reg();
	while (r == other);
	return r;
}

static void mov_imm32(unsigned r, uint32_t v)
{
	if (r > 7)
		put(1, 0x41);
	put(1, 0xb8 | (r & 7));
	put32(v);
}

static void mov_imm64(unsigned r, uint64_t v)
{
	if (narrow) {
		mov_imm32(r, v);
		return;
	}
	put(2, 0x48 | r >> 3, 0xb8 | (r & 7));
	put32(v);
	put32(v >> 32);
}

/* How far the mapping is from the first that is to be used. */
static uint64_t some_mapping(void)
{
	return user && rnd(3) == 0 ? high - CODE : 0;
}

static void mov_address(unsigned r, uint32_t v)
{
	uint64_t to = some_mapping();

	if (to)
		mov_imm64(r, v + to);
	else
		mov_imm32(r, v);
}

struct operand {
	int mem;
	unsigned base, index, scale, rm;
	int32_t disp;
	int rsp, fs, rip;
};

static struct operand op_reg(void)
{
	return (struct operand){ .rm = reg() };
}

/* Sets up address registers (no flags change); avoid is not used for them. */
static struct operand op_mem(unsigned avoid)
{
	struct operand o = { .mem = 1, .index = 4 };
	uint32_t at = DATA + 64 + rnd(DATA_SIZE - 256);

	if (rnd(4) == 0)
		at = DATA + 0x1000 - rnd(20) + (rnd(2) ? 0x1000 : 0);
	if (rnd(150) == 0)
		at = ABSENT + rnd(4096);
	if (rnd(8) == 0) {
		o.rsp = 1;
		o.base = 4;
		o.disp = rnd(2) ? (int)rnd(100) - 200 : (int)rnd(2000) - 4000;
		return o;
	}
	if (rnd(10) == 0) {
		o.fs = 1;
		at -= FS_BASE;
	}
	if (user && rnd(2)) {
		o.rip = 1;
		o.base = 0;
		o.disp = at - CODE;
		return o;
	}
	o.base = reg_not(avoid);
	o.disp = rnd(3) ? (int)rnd(200) - 100 : (int)rnd(100000) - 50000;
	if (rnd(2)) {
		uint32_t i = rnd(1000);

		do
			o.index = reg_not(avoid);
		while (o.index == o.base);
		o.scale = rnd(4);
		mov_imm32(o.index, i);
		mov_address(o.base, at - o.disp - (i << o.scale));
	} else {
		mov_address(o.base, at - o.disp);
	}
	return o;
}

static unsigned rex_of(const struct operand *o, unsigned r, int wide)
{
	unsigned rex = (wide ? 8 : 0) | (r > 7 ? 4 : 0);

	if (!o->mem)
		return rex | (o->rm > 7);
	return rex | (o->index > 7 ? 2 : 0) | (o->base > 7);
}

static void segment_prefix(const struct operand *o)
{
	if (o->fs)
		put(1, 0x64);
}

static void modrm(const struct operand *o, unsigned r)
{
	r = (r & 7) << 3;
	if (!o->mem) {
		put(1, 0xc0 | r | (o->rm & 7));
		return;
	}
	if (o->rip) {
		/* What follows moves it by no more than an immediate's size. */
		put(1, r | 5);
		put32(o->disp - (out + 4 - start));
		return;
	}
	put(1, 0x80 | r | (o->index != 4 || (o->base & 7) == 4 ? 4 : o->base & 7));
	if (o->index != 4 || (o->base & 7) == 4)
		put(1, o->scale << 6 | (o->index & 7) << 3 | (o->base & 7));
	put32(o->disp);
}

/* prefix, REX, map and opcode, operands. size 1, 2, 4, 8 */
static void insn(unsigned prefix, unsigned size, unsigned map, unsigned opcode, unsigned r, struct operand o)
{
	unsigned rex = rex_of(&o, r, size == 8 && !narrow);

	segment_prefix(&o);
	if (size == 2)
		put(1, 0x66);
	if (prefix)
		put(1, prefix);
	/* A byte register: any prefix, or none and perhaps AH to BH. */
	if (rex || (size == 1 && rnd(2) && !narrow))
		put(1, 0x40 | rex);
	if (map)
		put(1, 0x0f);
	if (map > 0x0f)
		put(1, map);
	put(1, opcode);
	modrm(&o, r);
}

static unsigned any_size(void)
{
	return 1u << rnd(narrow ? 3 : 4);
}

static unsigned wide_size(void)
{
	return 2u << rnd(narrow ? 2 : 3);
}

static struct operand op_any(unsigned avoid)
{
	return rnd(2) ? op_mem(avoid) : op_reg();
}

static void imm(unsigned size)
{
	for (unsigned i = 0; i < (size == 8 ? 4 : size); i++)
		put(1, rnd(256));
}

/* add r, r: what flags were undefined are defined now */
static void define_flags(void)
{
	insn(0, 8, 0, 0x01, reg(), op_reg());
}

static void gen_alu(void)
{
	unsigned op = rnd(8), size = any_size(), r = reg();

	switch (rnd(4)) {
	case 0: insn(0, size, 0, op << 3 | (size > 1), r, op_any(r)); break;
	case 1: insn(0, size, 0, op << 3 | 2 | (size > 1), r, op_any(r)); break;
	case 2:
		insn(0, size, 0, size > 1 ? 0x81 : 0x80, op, op_any(16));
		imm(size);
		break;
	default:
		size = wide_size();
		insn(0, size, 0, 0x83, op, op_any(16));
		imm(1);
		break;
	}
}

static void gen_locked(void)
{
	static const uint8_t ops[] = { 0x01, 0x09, 0x11, 0x19, 0x21, 0x29, 0x31 };
	unsigned r = reg(), size = wide_size();
	struct operand o = op_mem(r);

	put(1, 0xf0);
	switch (rnd(7)) {
	case 0: insn(0, size, 0, ops[rnd(7)], r, o); break;
	case 1:
		insn(0, size, 0, 0x83, rnd(7), o);
		put(1, rnd(3) ? rnd(256) : rnd(2) ? 0 : 0xff);
		break;
	case 2: insn(0, size, 0, 0xf7, 2 + rnd(2), o); break;	/* not, neg */
	case 3: insn(0, 1, 0, ops[rnd(7)] - 1, r, o); break;
	case 4: insn(0, size, 0x0f, 0xb1, r, o); break;	/* cmpxchg */
	case 5: insn(0, size, 0x0f, 0xc1, r, o); break;	/* xadd */
	default: insn(0, size, 0, 0xff, rnd(2), o); break;	/* inc, dec */
	}
}

static void gen_move(void)
{
	unsigned size = any_size(), r = reg();

	switch (rnd(8)) {
	case 0: insn(0, size, 0, 0x88 | (size > 1), r, op_any(r)); break;
	case 1: insn(0, size, 0, 0x8a | (size > 1), r, op_any(r)); break;
	case 2:
		insn(0, size, 0, 0xc6 | (size > 1), 0, op_any(16));
		imm(size);
		break;
	case 3: insn(0, wide_size(), 0x0f, 0xb6 | rnd(2) | (rnd(2) ? 8 : 0), r, op_any(r)); break;
	case 4: insn(0, 8, 0, 0x63, r, op_any(r)); break;
	case 5: insn(0, wide_size(), 0, 0x8d, r, op_mem(r)); break;
	case 6: insn(0, size, 0, 0x86 | (size > 1), r, op_any(r)); break;
	default: insn(0, wide_size(), 0x0f, 0x40 | rnd(16), r, op_any(r)); break;	/* cmov */
	}
}

static void gen_one(void)
{
	unsigned size = any_size();

	switch (rnd(6)) {
	case 0: insn(0, size, 0, 0xfe | (size > 1), rnd(2), op_any(16)); break;
	case 1: insn(0, size, 0, 0xf6 | (size > 1), 2 + rnd(2), op_any(16)); break;	/* not, neg */
	case 2: insn(0, 1, 0x0f, 0x90 | rnd(16), 0, op_any(16)); break;	/* setcc */
	case 3: insn(0, rnd(2) ? 4 : 8, 0x0f, 0xc8 | rnd(8), 0, op_reg()), out--; break;	/* bswap */
	case 4: put(1, "\x98\x99\xf8\xf9\xf5\x9f\x9e"[rnd(7)]); break;
	default: put(2, 0x48, rnd(2) ? 0x98 : 0x99); break;
	}
}

/* AH, CH, DH or BH beside memory, perhaps addressed by what they are part of. */
static void gen_high8(void)
{
	static const uint8_t ops[] = { 0x84, 0x86, 0x88, 0x88, 0x8a, 0x8a };
	unsigned r = 4 + rnd(4);
	struct operand o;

	do
		o = op_mem(16);
	while (o.base > 7 || o.index > 7);
	segment_prefix(&o);
	put(1, rnd(2) ? rnd(8) << 3 | rnd(2) << 1 : ops[rnd(6)]);
	modrm(&o, r);
}

static void gen_undefined_flags(void)
{
	unsigned size = any_size(), r = reg();

	switch (rnd(8)) {
	case 0:
		insn(0, size, 0, 0xc0 | (size > 1), (const uint8_t[]){ 0, 1, 2, 3, 4, 5, 7 }[rnd(7)], op_any(16));
		put(1, rnd(40));
		break;
	case 1: insn(0, size, 0, 0xd0 | (size > 1), (const uint8_t[]){ 0, 1, 4, 5, 7 }[rnd(5)], op_any(16)); break;
	case 2: insn(0, size, 0, 0xd2 | (size > 1), (const uint8_t[]){ 0, 1, 2, 3, 4, 5, 7 }[rnd(7)], op_any(1)); break;
	case 3: insn(0, wide_size(), 0x0f, 0xaf, r, op_any(r)); break;	/* imul */
	case 4: insn(0, size, 0, 0xf6 | (size > 1), 4 + rnd(2), op_any(0)); break;	/* mul, imul */
	case 5:
		insn(0, wide_size(), 0x0f, 0xba, 4 + rnd(4), op_any(16));
		put(1, rnd(64));
		break;
	case 6: insn(0xf3, rnd(2) ? 4 : 8, 0x0f, (const uint8_t[]){ 0xb8, 0xbc, 0xbd }[rnd(3)], r, op_any(r)); break;
	default:
		insn(0, rnd(2) ? 4 : 8, 0x0f, rnd(2) ? 0xa4 : 0xac, r, op_any(r));
		put(1, rnd(32));
		break;
	}
	define_flags();
}

/* What 64-bit mode has not: inc and dec in a byte, moffs, the second opcode of group 1. */
static void gen_narrow(void)
{
	switch (rnd(4)) {
	case 0: put(1, 0x40 | rnd(2) << 3 | reg()); break;
	case 1:
		put(1, 0x66);
		put(1, 0x40 | rnd(2) << 3 | reg());
		break;
	case 2:
		put(1, 0xa0 | rnd(4));
		put32(DATA + rnd(DATA_SIZE - 4));
		break;
	default:
		insn(0, 1, 0, 0x82, rnd(8), op_any(16));
		imm(1);
		break;
	}
}

/* bt family with a register: memory far from the operand, so bounded first */
static void gen_bits(void)
{
	unsigned r = reg();
	struct operand o = op_any(r);

	if (o.mem)
		mov_imm32(r, rnd(500));
	insn(0, rnd(2) ? 4 : 8, 0x0f, 0xa3 | rnd(4) << 3, r, o);
	define_flags();
}

static void gen_stack(void)
{
	unsigned r = reg();

	switch (rnd(7)) {
	case 0:
	case 1:
		if (r > 7)
			put(1, 0x41);
		put(1, 0x50 | (r & 7));
		break;
	case 2:
	case 3:
		if (r > 7)
			put(1, 0x41);
		put(1, 0x58 | (r & 7));
		break;
	case 4:
		put(1, rnd(2) ? 0x6a : 0x68);
		imm(out[-1] == 0x6a ? 1 : 4);
		break;
	case 5: insn(0, 4, 0, 0xff, 6, op_mem(16)); break;	/* push m */
	default:
		put(2, 0x9c, 0x5b); /* pushf; pop rbx */
		define_flags();
		break;
	}
}

static void gen_vector(void)
{
	static const struct {
		uint8_t prefix, opcode;
	} ops[] = {
		{ 0xf3, 0x6f }, { 0xf3, 0x7f }, { 0x66, 0xef }, { 0x66, 0xfe }, { 0x66, 0x6e }, { 0x66, 0x7e },
		{ 0xf2, 0x2a }, { 0xf2, 0x58 }, { 0xf2, 0x59 }, { 0x66, 0x14 }, { 0, 0x10 }, { 0, 0x11 },
		{ 0x66, 0x2e },
	};
	unsigned i = rnd(sizeof(ops) / sizeof(ops[0])), r = rnd(narrow ? 8 : 16);
	int aligned = ops[i].opcode == 0xef || ops[i].opcode == 0xfe || ops[i].opcode == 0x14;
	struct operand o = aligned ? op_reg() : op_any(16);

	segment_prefix(&o);
	if (ops[i].prefix)
		put(1, ops[i].prefix);
	if (rex_of(&o, r, 0))
		put(1, 0x40 | rex_of(&o, r, 0));
	put(2, 0x0f, ops[i].opcode);
	modrm(&o, r);
}

/* What a loop walks over: [base + index * scale + disp], near the end of a page. */
struct array {
	unsigned base, index, scale, data;
};

static struct operand op_array(const struct array *a)
{
	struct operand o = { .mem = 1, .base = a->base, .index = rnd(3) ? a->index : 4, .scale = a->scale };

	o.disp = rnd(4) ? (int)rnd(64) - 32 : (int)rnd(400) - 200;
	return o;
}

static void setup_array(struct array *a)
{
	uint32_t at = rnd(12) ? DATA + 0x1000 * (1 + rnd(2)) - rnd(0x180) : ABSENT - rnd(0x100);
	uint64_t i;

	do
		a->base = reg_not(1);
	while (a->base == 4);
	do
		a->index = reg_not(1);
	while (a->index == a->base);
	do
		a->data = reg_not(1);
	while (a->data == a->base || a->data == a->index);
	a->scale = rnd(4);
	switch (rnd(6)) {
	case 0: i = -(uint64_t)rnd(40); break;	/* soon 0 */
	case 1: i = (1ull << 63) + (1ull << 62) + (1ull << 61) + rnd(20); break;
	case 2: i = 0xffffffff - rnd(40); break;	/* 32-bit sums wrap, 64-bit ones do not */
	default: i = rnd(100); break;
	}
	mov_imm64(a->index, i);
	mov_imm64(a->base, at + some_mapping() - (i << a->scale));
}

/* Change one of its registers, mostly in ways that can be followed. */
static void move_array(const struct array *a)
{
	unsigned r = rnd(2) ? a->base : a->index;
	struct operand lea = { .mem = 1, .base = r, .index = 4, .disp = (int)rnd(40) - 20 };

	switch (rnd(8)) {
	case 0:
		if (rnd(2) == 0) {
			lea.base = 4;
			lea.disp -= 100;
		}
		insn(0, 8, 0, 0x8d, r, lea);
		break;
	case 1: insn(0, 8, 0, 0xff, rnd(2), (struct operand){ .rm = r }); break;
	case 2: insn(0, 8, 0, 0x03, r, (struct operand){ .rm = a->data }); break;
	case 3:
		insn(0, rnd(3) ? 4 : 2, 0, 0x83, rnd(2) ? 0 : 5, (struct operand){ .rm = r });
		put(1, rnd(16));
		break;
	default:
		insn(0, 8, 0, 0x83, rnd(4) ? 0 : 5, (struct operand){ .rm = r });
		put(1, 1 << rnd(6));
		break;
	}
}

static struct operand op_near(unsigned base)
{
	return (struct operand){ .mem = 1, .base = base, .index = 4, .disp = (int)rnd(64) - 32 };
}

/* The base copied to another register, as a whole or not, and accesses by both, which may move meanwhile. */
static void gen_copy(const struct array *a)
{
	unsigned to = a->data, from = a->base, other = reg_not(to);
	unsigned size = rnd(6) ? 8 : rnd(3) ? 4 : 2;

	while (other == from || other == a->index || other == 1)
		other = reg_not(to);
	if (rnd(2))
		insn(0, any_size(), 0, rnd(2) ? 0x8b : 0x03, other, op_near(from));
	switch (rnd(4)) {
	case 0: insn(0, size, 0, 0x8d, to, op_near(from)); break;
	case 1: insn(0, size, 0, 0x89, from, (struct operand){ .rm = to }); break;
	case 2: insn(0, size, 0, 0x8b, to, (struct operand){ .rm = from }); break;
	default: insn(0, 8, 0, 0x8b, to, (struct operand){ .rm = from }); break;
	}
	for (unsigned n = 1 + rnd(3); n; n--) {
		unsigned by = rnd(2) ? to : from;

		switch (rnd(6)) {
		case 0: insn(0, 8, 0, 0x83, rnd(2) ? 0 : 5, (struct operand){ .rm = by }), put(1, 1 << rnd(4)); break;
		case 1: insn(0, 8, 0, 0x8b, to, (struct operand){ .rm = from }); break;
		case 2: insn(0, any_size(), 0, 0x01, other, op_near(by)); break;
		default: insn(0, any_size(), 0, rnd(2) ? 0x8b : 0x03, other, op_near(by)); break;
		}
	}
}

static void gen_self_modifying(void);

static void gen_array_insn(const struct array *a, uint8_t **leave)
{
	switch (rnd(12)) {
	case 0: case 1: insn(0, any_size(), 0, rnd(8) << 3 | 3, a->data, op_array(a)); break;
	case 2: case 3: insn(0, any_size(), 0, rnd(8) << 3 | 1, a->data, op_array(a)); break;
	case 4: insn(0, any_size(), 0, 0x8b, a->data, op_array(a)); break;
	case 5: insn(0, 4, 0x0f, rnd(2) ? 0x10 : 0x11, rnd(8), op_array(a)); break;	/* movups */
	case 6: /* to or from a constant address */
		if (user && rnd(2)) {
			insn(0, 4, 0, 0x29 | rnd(2) << 1, a->data,
			     (struct operand){ .mem = 1, .rip = 1, .index = 4, .disp = DATA - CODE + 0x1000 - rnd(200) });
			break;
		}
		put(3, 0x29 | rnd(2) << 1, 0x04 | (a->data & 7) << 3, 0x25);
		if (narrow)
			out[-2] = 0x05 | (a->data & 7) << 3, out--;
		put32(DATA + 0x1000 - rnd(200));
		break;
	case 7:
		if (!*leave && rnd(2)) {
			put(2, 0x0f, 0x80 | rnd(16));
			put32(0);
			*leave = out;
		}
		break;
	case 8: insn(0, any_size(), 0, 0x01 | rnd(8) << 3, reg(), (struct operand){ .rm = a->data }); break;
	case 9: case 10: gen_copy(a); break;
	default: insn(0, 8, 0, 0x8d, a->data, op_array(a)); break;
	}
}

static void gen_array_loop(void)
{
	unsigned n = 1 + rnd(4);
	uint8_t *head, *leave = NULL;
	struct array a;

	setup_array(&a);
	mov_imm32(1, 1 + rnd(12));
	if (rnd(3) == 0)
		put(2, 0xeb, 0);
	head = out;
	while (n--) {
		gen_array_insn(&a, &leave);
		if (rnd(2))
			move_array(&a);
	}
	if (rnd(12) == 0) {
		put(1, 0x51);	/* rcx is our own */
		gen_self_modifying();
		put(1, 0x59);
	}
	put(4, 0xff, 0xc9, 0x0f, rnd(8) ? 0x85 : 0x8f);	/* dec ecx; jnz, jg */
	put32(head - (out + 4));
	if (leave)
		*(uint32_t *)(leave - 4) = out - leave;
}

static void gen_body(unsigned n, unsigned depth);

static void gen_branch(unsigned depth)
{
	uint8_t *field;

	switch (rnd(user ? 8 : 5)) {
	case 0: /* call over a jump, with the function in between */
		put(2, 0xeb, 0);
		field = out;
		gen_body(1 + rnd(3), depth + 1);
		put(1, 0xc3);
		if (out - field > 127) {
			out = field - 2;
			return;
		}
		field[-1] = out - field;
		put(1, 0xe8);
		put32(field - (out + 4));
		break;
	case 1: /* loop: rcx times */
		mov_imm32(1, 1 + rnd(3));
		put(1, 0x51); /* push rcx */
		field = out;
		define_flags();
		insn(0, 8, 0, 0x11, reg_not(1), op_mem(1));
		mov_imm32(1, 0);
		put(1, 0x59); /* pop rcx */
		put(4, 0xff, 0xc9, 0x51, 0x75); /* dec ecx; push rcx; jnz */
		put(1, 0);
		out[-1] = field - out;
		put(1, 0x59);
		break;
	case 2: case 5: case 6: /* jump through a register */
		if (user && rnd(2)) {
			field = out + 2;
			mov_imm64(3, high);
			put(7, 0xff, 0xe3, 0x90, 0x90, 0x90, 0x90, 0x90);
			*(uint64_t *)field = high + (out - start);
			break;
		}
		field = out;
		mov_imm32(3, 0);
		put(2, 0xff, 0xe3);
		put(1, 0x90 | (rnd(256) & 0));
		put32(0x90909090);
		*(uint32_t *)(field + 1) = CODE + (out - start);
		break;
	default:
		put(2, 0x70 | rnd(16), 0);
		field = out;
		gen_body(1 + rnd(3), depth + 1);
		if (out - field > 127) {
			out = field - 2;
			return;
		}
		field[-1] = out - field;
		break;
	}
}

/* Store into an instruction that comes a little later, then execute it. */
static void gen_self_modifying(void)
{
	int relative = user && rnd(2);
	uint8_t *store = out;
	unsigned r = reg();

	if (relative)
		put(3, 0x2e, 0xc7, 0x05); /* movl $imm, disp(%rip), with a prefix that means nothing */
	else
		put(3, 0xc7, 0x04, 0x25); /* movl $imm, abs32 */
	put32(0);
	imm(4);
	if (rnd(2))
		gen_move();
	else
		define_flags();
	mov_imm32(r, 1);
	*(uint32_t *)(store + 3) = relative ? out - 4 - (store + 11) : CODE + (out - 4 - start);
}

/* All exceptions masked; tests/api/x87.c has the others. */
static void gen_x87(void)
{
	static const uint8_t plain[8] = { 0xff, 0x8d, 0xff, 0xaf, 0xff, 0x8f, 0xff, 0xff };	/* bits: /reg that load, store, calculate */
	static const uint8_t pairs[][2] = {
		{ 0xd9, 0xe8 }, { 0xd9, 0xc9 }, { 0xd9, 0xc1 }, { 0xdb, 0xf1 }, { 0xdf, 0xe9 }, { 0xda, 0xc1 }, { 0xde, 0xc1 },
		{ 0xdf, 0xe0 }, { 0xdd, 0xc0 }, { 0xd9, 0xe5 }, { 0xdc, 0xf2 }, { 0x0f, 0x77 }, { 0xd9, 0xee },
	};

	for (unsigned n = 1 + rnd(4); n; n--) {
		unsigned opcode = rnd(8), r = rnd(8), i = rnd(sizeof(pairs) / 2);

		if (rnd(2))
			put(2, pairs[i][0], pairs[i][1]);
		else if (plain[opcode] & 1 << r)
			insn(0, 4, 0, 0xd8 | opcode, r, op_mem(16));
	}
}

static void gen_body(unsigned n, unsigned depth)
{
	while (n--) {
		switch (rnd(24)) {
		case 0: case 1: case 2: case 3: case 4: case 5: gen_alu(); break;
		case 6: case 7: case 8: case 9: case 10: gen_move(); break;
		case 11: rnd(3) ? gen_one() : gen_high8(); break;
		case 12: narrow ? gen_narrow() : gen_one(); break;
		case 13: case 14: gen_undefined_flags(); break;
		case 15: gen_bits(); break;
		case 16: case 17: gen_stack(); break;
		case 18: gen_vector(); break;
		case 19: rnd(3) ? gen_vector() : gen_x87(); break;
		case 20: gen_locked(); break;
		case 21: if (rnd(4) == 0) gen_self_modifying(); break;
		case 22: if (rnd(2)) gen_array_loop(); break;
		default: if (depth < 3) gen_branch(depth); break;
		}
	}
}

/* The whole body three times, then HLT or INT3. It may begin `at` some place in the code. */
static void gen_program(uint8_t *code, unsigned at)
{
	start = code;
	out = start + at;
	gen_body(4 + rnd(60), 0);
	put(4, 0x66, 0x90, 0x66, 0x90);
	put(3, 0xff, 0x0c, 0x25); /* decl COUNTER */
	put32(COUNTER);
	put(2, 0x0f, 0x85); /* jnz start */
	put32(start + at - (out + 4));
	put(1, user ? 0xcc : 0xf4);
}

/* ---- execution ---------------------------------------------------------------------- */

static uint64_t hash(uint64_t h, const void *p, size_t n)
{
	const uint8_t *b = p;

	while (n--)
		h = (h ^ *b++) * 0x100000001b3ull;
	return h;
}

static void setup_exceptions(struct kvmtest *t)
{
	struct kvm_sregs s;

	for (unsigned v = 0; v < 32; v++) {
		uint64_t to = HANDLERS + 16 * v;

		kvmtest_gate(t, IDT, v, to);
		t->mem[to] = 0xf4;
	}
	((uint64_t *)(t->mem + 0x3000))[ABSENT >> 21] = 0;
	NEED(ioctl(t->vcpu, KVM_GET_SREGS, &s) == 0);
	s.idt.base = IDT;
	s.idt.limit = 32 * 16 - 1;
	s.fs.base = FS_BASE;
	s.cr4 |= 0x600;
	NEED(ioctl(t->vcpu, KVM_SET_SREGS, &s) == 0);
}

/* Flat 32-bit protected mode; the second half of memory is absent. */
static void setup_narrow(struct kvmtest *t)
{
	const struct kvm_segment code = { .limit = ~0u, .selector = 8, .type = 0xb, .present = 1, .s = 1, .db = 1, .g = 1 };
	struct kvm_segment data = code;
	struct kvm_sregs s;

	data.selector = 16;
	data.type = 3;
	for (unsigned v = 0; v < 32; v++) {
		uint64_t to = HANDLERS + 16 * v;

		*(uint64_t *)(t->mem + IDT + 8 * v) =
			(to & 0xffff) | 8ull << 16 | 0x8e00ull << 32 | (to >> 16) << 48;
		t->mem[to] = 0xf4;
	}
	((uint64_t *)(t->mem + GDT))[1] = 0x00cf9b000000ffffull;
	*(uint32_t *)(t->mem + PAGE_DIRECTORY) = 0xe7;
	NEED(ioctl(t->vcpu, KVM_GET_SREGS, &s) == 0);
	s.cs = code;
	s.ds = s.es = s.ss = s.fs = s.gs = data;
	s.fs.base = FS_BASE;
	s.gdt.base = GDT;
	s.gdt.limit = 23;
	s.idt.base = IDT;
	s.idt.limit = 32 * 8 - 1;
	s.cr0 = 0x80050033;
	s.cr3 = PAGE_DIRECTORY;
	s.cr4 = 0x610;
	s.efer = 0;
	NEED(ioctl(t->vcpu, KVM_SET_SREGS, &s) == 0);
}

/* What setup_exceptions() has done is the kernel's; programs are to run at CPL 3. */
static void setup_user(struct kvmtest *t)
{
	const struct kvm_segment code = { .limit = ~0u, .selector = 0x23, .type = 0xb, .present = 1, .dpl = 3, .s = 1, .l = 1, .g = 1 };
	uint64_t *gdt = (uint64_t *)(t->mem + GDT);
	struct kvm_segment data = code;
	struct kvm_sregs s;

	data.selector = 0x1b;
	data.type = 3;
	data.l = 0;
	data.db = 1;
	gdt[1] = 0x00af9b000000ffffull;
	gdt[2] = 0x00cf93000000ffffull;
	gdt[3] = 0x00cff3000000ffffull;
	gdt[4] = 0x00affb000000ffffull;
	*(uint64_t *)(t->mem + TSS + 4) = STACK0;
	t->mem[IDT + 16 * 3 + 5] = 0xee;
	/* Who goes astray does not leave memory. */
	memset(t->mem + 0x3000 + 8 * (MEM_SIZE >> 21), 0, 0x1000 - 8 * (MEM_SIZE >> 21));
	NEED(ioctl(t->vcpu, KVM_GET_SREGS, &s) == 0);
	s.cs = code;
	s.ds = s.es = s.ss = s.fs = s.gs = data;
	s.fs.base = FS_BASE;
	s.tr = (struct kvm_segment){ .base = TSS, .limit = 0x67, .selector = 0x28, .type = 11, .present = 1 };
	s.gdt.base = GDT;
	s.gdt.limit = 0x37;
	NEED(ioctl(t->vcpu, KVM_SET_SREGS, &s) == 0);
}

/* An exception's frame: its flags image may have dead bits. */
static void mask_frame(struct kvmtest *t, const struct kvm_regs *regs)
{
	unsigned vector = (regs->rip - 1 - HANDLERS) / 16;
	unsigned word = narrow ? 4 : 8;
	uint64_t at = regs->rsp + 2 * word;

	/* INT3 reads all flags. */
	if (vector == 3)
		return;
	if (vector == 8 || (vector >= 10 && vector <= 14) || vector == 17)
		at += word;
	if (at + 4 <= t->mem_size)
		*(uint32_t *)(t->mem + at) &= ~FLAGS_ARITH;
}

static _Alignas(8) uint8_t pristine[0x40000];
static struct kvm_sregs pristine_sregs;

static void print_state(struct kvmtest *t, const struct kvm_regs *regs, const struct kvm_fpu *fpu)
{
	const uint64_t *r = (const uint64_t *)regs;

	for (unsigned i = 0; i < 18; i++)
		printf("  r%u %016llx\n", i, (unsigned long long)r[i]);
	for (unsigned i = 0; i < 16; i++)
		printf("  x%u %016llx %016llx\n", i, ((unsigned long long *)fpu->xmm[i])[0],
		       ((unsigned long long *)fpu->xmm[i])[1]);
	printf("  data %016llx stack %016llx code %016llx\n",
	       (unsigned long long)hash(0, t->mem + DATA - 0x2000, DATA_SIZE + 0x4000),
	       (unsigned long long)hash(0, t->mem + STACK - 0x4000, 0x8000),
	       (unsigned long long)hash(0, t->mem + CODE, 0x8000));
}

static int tables_hit(struct kvmtest *t)
{
	const uint64_t *now = (uint64_t *)t->mem, *was = (uint64_t *)pristine;
	const uint64_t accessed_dirty = 0x60;

	for (unsigned i = 0; i < (user ? HIGH_TABLES_END : TABLES_END) / 8; i++)
		if ((now[i] ^ was[i]) & ~accessed_dirty)
			return 1;
	return 0;
}

/* ---- the second mapping ----------------------------------------------------------------- */

/* Somewhere above 4 GiB; sometimes over the ends of what is translated for any address. */
static uint64_t choose_high(void)
{
	const uint64_t top = 1ull << 47, pages = rnd(CODE_SIZE / 0x1000);

	switch (rnd(8)) {
	case 0: return (1ull << 32) - 0x1000 * pages;
	case 1: return top - (1ull << 32) - 0x1000 * pages;
	case 2: return top - 0x110000 - 0x1000 * pages;
	default: return (1ull << 32) + (((uint64_t)rnd(1u << 31) << 16 ^ rnd(1u << 31)) % (top - (1ull << 33)) & ~0xfffull);
	}
}

static void map_high(uint64_t cr3, uint64_t va, uint64_t pa, uint64_t *used)
{
	uint64_t *table = (uint64_t *)(pristine + cr3);

	for (int shift = 39; shift > 12; shift -= 9) {
		uint64_t *entry = &table[va >> shift & 511];

		if (!*entry) {
			*entry = *used | 7;
			*used += 0x1000;
			NEED(*used <= HIGH_TABLES_END);
		}
		table = (uint64_t *)(pristine + (*entry & ~0xfffull));
	}
	table[va >> 12 & 511] = pa | 7;
}

/* Two tables take turns. */
static void choose_mapping(unsigned nr)
{
	static uint8_t without[HIGH_TABLES_END];
	static bool saved;
	uint64_t used = HIGH_TABLES, cr3 = nr & 1 ? SECOND_PML4 : 0x1000;

	if (!saved)
		memcpy(without, pristine, sizeof(without));
	saved = true;
	memcpy(pristine, without, sizeof(without));
	memcpy(pristine + SECOND_PML4, pristine + 0x1000, 0x1000);
	high = choose_high();
	for (unsigned i = 0; i < CODE_SIZE; i += 0x1000)
		map_high(cr3, high + i, CODE + i, &used);
	for (unsigned i = DATA - 0x1000; i <= DATA + DATA_SIZE; i += 0x1000)
		map_high(cr3, high - CODE + i, i, &used);
	pristine_sregs.cr3 = cr3;
}

/* ---- one program ------------------------------------------------------------------------- */

static void run_program(struct kvmtest *t, unsigned nr, uint64_t program_seed, int verbose)
{
	struct kvm_regs regs = { .rip = CODE, .rsp = STACK, .rflags = 2 };
	struct kvm_fpu fpu = { .fcw = 0x37f, .mxcsr = 0x1f80 };
	uint64_t *r = (uint64_t *)&regs, h = 0xcbf29ce484222325ull;
	int fault, end;

	seed = program_seed;
	if (user)
		choose_mapping(nr);
	/* Tables may have been hit by a program gone astray. */
	memcpy(t->mem, pristine, sizeof(pristine));
	memset(t->mem + CODE, 0xf4, 0x8000);
	memset(t->mem + STACK - 0x4000, 0, 0x8000);
	/* User programs lie over the end of a page. */
	if (user)
		regs.rip = high + 0x1000 - rnd(500);
	gen_program(t->mem + CODE, user ? regs.rip - high : 0);
	for (unsigned i = 0; i < DATA_SIZE; i += 4)
		*(uint32_t *)(t->mem + DATA + i) = rnd(1u << 31) * 5;
	*(uint32_t *)(t->mem + COUNTER) = user ? 3 + rnd(5) : 3;
	for (unsigned i = 0; i < 16; i++)
		if (&r[i] != (uint64_t *)&regs.rsp)
			r[i] = (narrow ? 0 : (uint64_t)rnd(1u << 31) << 33) ^ rnd(1u << 31) ^ rnd(1u << 31) << 8;
	regs.rsp = STACK;
	for (unsigned i = 0; i < 16; i++)
		for (unsigned j = 0; j < 16; j++)
			fpu.xmm[i][j] = j % 8 == 7 ? 0x3f : rnd(256);
	/* Programs gone astray load segments. */
	NEED(ioctl(t->vcpu, KVM_SET_SREGS, &pristine_sregs) == 0);
	NEED(ioctl(t->vcpu, KVM_SET_REGS, &regs) == 0);
	NEED(ioctl(t->vcpu, KVM_SET_FPU, &fpu) == 0);
	alarm(user ? 10 : 20);
	if (ioctl(t->vcpu, KVM_RUN, 0)) {
		printf("%u " LOOPS "\n", nr);
		memset(t->mem + sizeof(pristine), 0, MEM_SIZE - sizeof(pristine));
		return;
	}
	alarm(0);
	NEED(ioctl(t->vcpu, KVM_GET_REGS, &regs) == 0);
	NEED(ioctl(t->vcpu, KVM_GET_FPU, &fpu) == 0);
	if (tables_hit(t)) {
		printf("%u " TABLES_HIT "\n", nr);
		memset(t->mem + sizeof(pristine), 0, MEM_SIZE - sizeof(pristine));
		return;
	}
	fault = regs.rip > HANDLERS && regs.rip < HANDLERS + 512;
	end = user ? regs.rip == INT3_END : t->run->exit_reason == KVM_EXIT_HLT && regs.rip >= CODE && regs.rip < CODE + CODE_SIZE;
	if (fault)
		mask_frame(t, &regs);
	if (regs.rip != INT3_END && (fault || t->run->exit_reason != KVM_EXIT_HLT))
		regs.rflags &= ~(uint64_t)FLAGS_ARITH;
	h = hash(h, &regs, sizeof(regs));
	h = hash(h, fpu.xmm, sizeof(fpu.xmm));
	h = hash(h, &fpu.mxcsr, 4);
	h = hash(h, &fpu, (uint8_t *)fpu.xmm - (uint8_t *)&fpu);	/* registers, tags, pointers */
	h = hash(h, t->mem + DATA - 0x2000, DATA_SIZE + 0x4000);
	h = hash(h, t->mem + STACK - 0x4000, 0x8000);
	h = hash(h, t->mem + CODE, 0x8000);
	if (user)
		h = hash(h, t->mem + STACK0 - 64, 64);
	printf("%u exit %u rip %llx %016llx\n", nr, t->run->exit_reason, (unsigned long long)regs.rip,
	       (unsigned long long)h);
	if (verbose)
		print_state(t, &regs, &fpu);
	/* It may have gone astray: leave nothing behind for the next one. */
	if (!end)
		memset(t->mem + sizeof(pristine), 0, MEM_SIZE - sizeof(pristine));
}

static uint64_t program_seed(uint64_t base, unsigned nr)
{
	return (base + nr) * 0x9e3779b97f4a7c15ull | 1;
}

static void on_alarm(int sig)
{
}

static int child(unsigned first, unsigned n, uint64_t base, int verbose)
{
	struct kvmtest t = kvmtest_vm(MEM_SIZE, 0);

	/* A program gone astray may run forever: KVM_RUN is interrupted. */
	sigaction(SIGALRM, &(struct sigaction){ .sa_handler = on_alarm }, NULL);
	kvmtest_add_vcpu(&t, 0);
	kvmtest_long_mode(&t, CODE, "\xf4", 1);
	if (narrow)
		setup_narrow(&t);
	else
		setup_exceptions(&t);
	if (user)
		setup_user(&t);
	memcpy(pristine, t.mem, sizeof(pristine));
	NEED(ioctl(t.vcpu, KVM_GET_SREGS, &pristine_sregs) == 0);
	for (unsigned i = first; i < first + n; i++)
		run_program(&t, i, program_seed(base, i), verbose);
	return 0;
}

/* ---- comparison -------------------------------------------------------------------------- */

static FILE *start_child(const char *self, const char *engine, unsigned first, unsigned n, uint64_t base,
			 const char *mode)
{
	char command[4096];

	snprintf(command, sizeof(command), "SOFTKVM_ENGINE=%s '%s' %s %s %u %u %llu", engine, self, mode,
		 kinds[kind], first, n, (unsigned long long)base);
	return popen(command, "r");
}

static void show(const char *self, unsigned nr, uint64_t base)
{
	FILE *a = start_child(self, "interp", nr, 1, base, "verbose");
	FILE *b = start_child(self, "dbt", nr, 1, base, "verbose");
	char x[200], y[200];

	while (a && b && fgets(x, sizeof(x), a) && fgets(y, sizeof(y), b))
		if (strcmp(x, y))
			printf("  interp %s  dbt    %s", x, y);
	if (a)
		pclose(a);
	if (b)
		pclose(b);
}

static void compare(const char *self, unsigned n, uint64_t base)
{
	FILE *a = start_child(self, "interp", 0, n, base, "child");
	FILE *b = start_child(self, "dbt", 0, n, base, "child");
	unsigned faults = 0, shown = 0, too_long = 0;
	char x[200], y[200];

	NEED(a && b);
	for (unsigned i = 0; i < n; i++) {
		int ok = fgets(x, sizeof(x), a) && fgets(y, sizeof(y), b);

		CHECK(ok);
		if (!ok)
			break;
		faults += !strstr(x, user ? "rip 30031 " : "rip 1");
		/* Page tables written without a flush: from there on what each TLB holds decides. */
		if (strstr(x, TABLES_HIT) || strstr(y, TABLES_HIT))
			continue;
		/*
		 * Some count down from billions, or store into their own code each time round: seconds for one
		 * engine, a minute for the other (with the verifier: the translator).
		 */
		if (!strstr(x, LOOPS) != !strstr(y, LOOPS)) {
			too_long++;
			continue;
		}
		CHECK(!strcmp(x, y));
		if (strcmp(x, y) && shown++ < 5) {
			printf("program %u of kind %s differs (seed %llu):\n  %s  %s", i, kinds[kind],
			       (unsigned long long)base, x, y);
			show(self, i, base);
		}
	}
	CHECK_EQ(pclose(a), 0);
	CHECK_EQ(pclose(b), 0);
	CHECK(too_long <= 1 + n / 500);
	/* Both kinds of end are being tested. */
	CHECK(faults > 0);
	CHECK(faults < n);
}

static void set_kind(enum kind k)
{
	kind = k;
	narrow = k == KIND_32;
	user = k == KIND_USER;
}

static enum kind kind_called(const char *name)
{
	enum kind k = 0;

	while (k < NR_KINDS - 1 && strcmp(name, kinds[k]))
		k++;
	return k;
}

int main(int argc, char **argv)
{
	unsigned long long base = 1;

	if (argc == 6) {
		setvbuf(stdout, NULL, _IOFBF, 1 << 16);
		set_kind(kind_called(argv[2]));
		return child(atoi(argv[3]), atoi(argv[4]), strtoull(argv[5], NULL, 10), !strcmp(argv[1], "verbose"));
	}
	if (argc > 2)
		base = strtoull(argv[2], NULL, 10);
	for (unsigned k = 0; k < NR_KINDS; k++) {
		if (argc > 3 && k != kind_called(argv[3]))
			continue;
		set_kind(k);
		compare(argv[0], argc > 1 ? atoi(argv[1]) : 1500, base);
	}
	return kvmtest_summary();
}

/* SPDX-License-Identifier: MIT */
/*
 * Is a block safe to execute? It is decoded and executed on abstract values. Nothing is known
 * about how the translator works, only what may be touched:
 *
 *  1. The frame: rsp with a displacement inside it; rsp itself and the vCPU's pointer at its
 *     beginning never change.
 *  2. struct mmu through gs, reading only: an entry of a table of tags, deltas or
 *     jumps, by a constant or an index whose possible bits stay within the table.
 *  3. struct vcpu through that pointer: the fields of vcpu_fields[].
 *  4. Guest memory at A + delta(A) + c, where A is an address, its delta was read from the TLB
 *     entry that A selects, and a branch has established A + tag(A) <= 4096 - size for the same context, so that [A, A + size)
 *     is in the page; the access is within that range, and within a write tag's if it stores. A fault row stands
 *     for the instruction.
 *  5. Branches lead to instructions of the block, to entries of verified blocks, to the common code (with an index in
 *     bounds where it takes one), or through a jump table's entry whose address has just
 *     compared equal.
 *  6. Instructions are on the list, and write no register that belongs to the host.
 *  7. No address of the host's is in a register or slot of the guest's when a block is left, nor stored in guest memory.
 *
 * A value has a name while somebody may add to it or compare it: the place that first asked (pc and register).
 * At a label values and facts from all ways there are merged: what is not the same is anything. What is
 * established about a name cannot survive the name's next definition, because that is in a loop, and at its head nobody has
 * both.
 */
#include <stdio.h>
#include <stdlib.h>

#include "base/log.h"
#include "x86/dbt/diff.h"
#include "x86/dbt/verify.h"

enum value_kind {
	ANY,		/* the guest's, or anything else that is no address of ours; without a name */
	SYM,		/* name + a */
	CONST,		/* a */
	SHIFTED,	/* A >> 9 */
	INDEX,		/* (A >> 9) & mask: byte offset of A's entry in a TLB's array */
	BITS,		/* name; only bits in a may be set */
	OFFSET,		/* A + tag of A's entry */
	TAG,		/* tag of A's entry */
	/* Not for guests: */
	DELTA,		/* delta of A's entry */
	HOST,		/* A + delta of A's entry + c */
	VCPU,		/* the vCPU's pointer */
	SECRET,		/* made of these */
};

/* A is name + a, or a itself without a name. */
struct value {
	u8 kind, ctx;
	bool write;	/* OFFSET, TAG: of the write tags */
	u32 name;
	u64 a;
	s64 c;
};

struct fact {
	enum { FACT_CHECKED, FACT_JUMP } kind;
	u8 ctx;
	bool write;
	u32 name;	/* CHECKED: [A, A + size) is in one page of the TLB. JUMP: entry `name`, or a without one, has compared equal */
	u64 a;
	u32 size;
};

enum flags_kind { FLAGS_NONE, FLAGS_OFFSET, FLAGS_JUMP };

#define NR_SLOTS (FRAME_SIZE / 8)
#define FACTS_MAX 72

struct state {
	struct value reg[16], slot[NR_SLOTS];
	struct fact facts[FACTS_MAX];
	u32 nr_facts;
	/* The flags come from comparing value with limit, or value (an index) with its jump table entry's address. */
	enum flags_kind flags;
	struct value compared;
	u64 limit;
};

struct label {
	u32 at;
	bool pending, seen;
	struct state in;
};

#define LABELS_MAX 1024
#define INSNS_MAX 8192

struct dbt_verifier {
	ZydisDecoder decoder, decoder32;
	u8 *entries;			/* bitmap over the code: entries of verified blocks */
	u8 *kinds;			/* of each byte of the block: 1 instruction starts here, 2 and is a label */
	struct label labels[LABELS_MAX];
	u32 nr_labels;
	u64 jump_va, jump_code, jump_stride; /* in struct jump_table */
	/* the block */
	struct vcpu *vcpu;
	struct dbt *d;
	const struct dbt_block *b;
	u32 start, end;
	struct state now;
	/* the instruction */
	u32 pc;
	ZydisDecodedInstruction zi;
	ZydisDecodedOperand ops[ZYDIS_MAX_OPERAND_COUNT];
	const char *why;		/* not NULL: refused */
};

static bool refuse(struct dbt_verifier *v, const char *why)
{
	if (!v->why)
		v->why = why;
	return false;
}

/* ---- what may be touched ------------------------------------------------------------------- */

enum { NONE, INT, VEC, X87, NOP };

static const u8 allowed[ZYDIS_MNEMONIC_MAX_VALUE + 1] = {
#define THUNK(mnemonic, class) [ZYDIS_MNEMONIC_##mnemonic] = class,
#include "x86/interp/thunk_allow.def"
#undef THUNK
	[ZYDIS_MNEMONIC_LEA] = INT,
};

#define VCPU_FIELD(field, store) \
	{ offsetof(struct vcpu, field), sizeof(((struct vcpu *)0)->field), store }

static const struct {
	u32 at, size;
	bool store;
} vcpu_fields[] = {
	VCPU_FIELD(arch.regs, true),
	VCPU_FIELD(arch.rip, true),
	VCPU_FIELD(arch.rflags, true),
	VCPU_FIELD(arch.fpu, true),
	VCPU_FIELD(arch.tlb, true),	/* one of ours: store_vcpu() */
	VCPU_FIELD(arch.irq_window, false),
	VCPU_FIELD(arch.seg, false),
	VCPU_FIELD(requests, false),
	VCPU_FIELD(stat, true),
};

static bool vcpu_field_ok(s64 at, u32 size, bool store)
{
	for (unsigned i = 0; i < ARRAY_SIZE(vcpu_fields); i++)
		if (at >= vcpu_fields[i].at && at + size <= vcpu_fields[i].at + vcpu_fields[i].size)
			return !store || vcpu_fields[i].store;
	return false;
}

/* The tables of struct mmu. */
enum table { T_READ, T_WRITE, T_DELTA, T_JUMP_VA, T_JUMP_CODE, NR_TABLES };

static u64 table_start(const struct dbt_verifier *v, enum table t, unsigned ctx)
{
	switch (t) {
	case T_READ: return offsetof(struct mmu, tlbs[0].read) + ctx * sizeof(struct tlb);
	case T_WRITE: return offsetof(struct mmu, tlbs[0].write) + ctx * sizeof(struct tlb);
	case T_DELTA: return offsetof(struct mmu, tlbs[0].delta) + ctx * sizeof(struct tlb);
	case T_JUMP_VA: return offsetof(struct mmu, jumps) + ctx * sizeof(struct jump_table) + v->jump_va;
	default: return offsetof(struct mmu, jumps) + ctx * sizeof(struct jump_table) + v->jump_code;
	}
}

/* Offset in a jump table of the word that equals value; ~0: none. */
static u64 find_word(const struct jump_table *t, u64 value)
{
	const u64 *word = (const u64 *)t;

	for (u64 i = 0; i < sizeof(*t) / 8; i++)
		if (word[i] == value)
			return 8 * i;
	return ~0ull;
}

/* Where jump tables keep addresses and code, as whoever fills them does it. */
static bool learn_jump_tables(struct dbt_verifier *v, struct vcpu *vcpu, struct dbt *d)
{
	struct jump_table *t = &vcpu->arch.mmu->jumps[0];
	const u64 va = 0x7e57ull << 32;
	struct dbt_block b = { .slot_poll = 1 };

	dbt_jump_add(vcpu, 0, va, &b);
	v->jump_va = find_word(t, va);
	v->jump_code = find_word(t, (u64)(d->mem.rx + b.slot_poll));
	dbt_jump_add(vcpu, 0, va + 1, &b);
	v->jump_stride = find_word(t, va + 1) - v->jump_va;
	dbt_flush_jumps(vcpu, 0);
	return v->jump_va < sizeof(*t) && v->jump_code < sizeof(*t) && (v->jump_stride == 8 || v->jump_stride == 16);
}

/* ---- values --------------------------------------------------------------------------------- */

static bool value_equal(const struct value *x, const struct value *y)
{
	return x->kind == y->kind && x->ctx == y->ctx && x->write == y->write && x->name == y->name &&
	       x->a == y->a && x->c == y->c;
}

static bool is_secret(const struct value *x)
{
	return x->kind >= DELTA;
}

/* what: a register's value before the instruction, after it (+ RESULT), or a slot's (+ IN_SLOT). */
enum { RESULT = 16, IN_SLOT = 32 };

static u32 name_here(const struct dbt_verifier *v, unsigned what)
{
	return ((v->pc - v->start) << 6 | what) + 1;
}

static const struct value any = { .kind = ANY };
static const struct value secret = { .kind = SECRET };

static struct value sym(u32 name)
{
	return (struct value){ .kind = SYM, .name = name };
}

static struct value constant(u64 a)
{
	return (struct value){ .kind = CONST, .a = a };
}

static struct value bits(const struct dbt_verifier *v, unsigned reg, u64 mask)
{
	return (struct value){ .kind = BITS, .name = name_here(v, reg + RESULT), .a = mask };
}

/* The value of a register, with a name. */
static struct value *reg_get(struct dbt_verifier *v, unsigned r)
{
	struct value *x = &v->now.reg[r];

	if (x->kind == ANY)
		*x = sym(name_here(v, r));
	return x;
}

/* Name and a are A. */
static bool is_address(const struct value *x)
{
	return x->kind == SYM || x->kind == CONST;
}

/* What is known of its bits is of no use in an address. */
static struct value as_address(const struct value *x)
{
	return x->kind == BITS ? sym(x->name) : *x;
}

static bool same_address(const struct value *x, const struct value *y)
{
	return x->name == y->name && x->a == y->a;
}

/* All bits that may be set. */
static u64 possible_bits(const struct value *x)
{
	return x->kind == BITS || x->kind == CONST ? x->a : x->kind == INDEX ? (TLB_ENTRIES - 1) * 8 : ~0ull;
}

static struct value derived(u8 kind, const struct value *address)
{
	return (struct value){ .kind = kind, .name = address->name, .a = address->a };
}

/* An address and what was read from a TLB entry, if x and y are that in this order. */
static bool add_entry(const struct value *x, const struct value *y, struct value *r)
{
	*r = *y;
	if (!is_address(x))
		return false;
	if (y->kind == TAG && same_address(x, y)) {
		r->kind = OFFSET;
		return true;
	}
	/* Any address of this name will do: the fact has to cover both. */
	if (y->kind == DELTA && x->name == y->name) {
		r->kind = HOST;
		r->c = x->a - y->a;
		return true;
	}
	return false;
}

static struct value add_constant(const struct value *x, u64 n)
{
	struct value r = *x;

	switch (x->kind) {
	case CONST:
	case SYM:
		r.a += n;
		return r;
	case HOST:
	case VCPU:
		r.c += n;
		return r;
	default:
		return !n ? r : is_secret(x) ? secret : any;
	}
}

static struct value value_add(const struct value *x, const struct value *y)
{
	const struct value p = as_address(x), q = as_address(y);
	struct value r;

	if (add_entry(&p, &q, &r) || add_entry(&q, &p, &r))
		return r;
	if (y->kind == CONST)
		return add_constant(&p, y->a);
	if (x->kind == CONST)
		return add_constant(&q, x->a);
	return is_secret(x) || is_secret(y) ? secret : any;
}

static struct value value_sub(const struct value *x, const struct value *y)
{
	struct value r = *x;

	if (y->kind == CONST && (x->kind == SYM || x->kind == CONST))
		r.a -= y->a;
	else if (y->kind == CONST && (x->kind == HOST || x->kind == VCPU))
		r.c -= y->a;
	else if (x->kind == OFFSET && y->kind == TAG && same_address(x, y) && x->ctx == y->ctx && x->write == y->write)
		r = (struct value){ .kind = x->name ? SYM : CONST, .name = x->name, .a = x->a };
	else
		r = is_secret(x) || is_secret(y) ? secret : any;
	return r;
}

/* ---- facts ------------------------------------------------------------------------------------ */

static bool fact_equal(const struct fact *x, const struct fact *y)
{
	return x->kind == y->kind && x->ctx == y->ctx && x->write == y->write && x->name == y->name &&
	       x->a == y->a && x->size == y->size;
}

static void fact_add(struct state *s, struct fact f)
{
	for (u32 i = 0; i < s->nr_facts; i++)
		if (fact_equal(&s->facts[i], &f))
			return;
	/* The oldest goes. */
	if (s->nr_facts == FACTS_MAX)
		memmove(s->facts, s->facts + 1, --s->nr_facts * sizeof(f));
	s->facts[s->nr_facts++] = f;
}

/* Is [A + c, A + c + size) permitted, with A's delta of this context? */
static bool is_checked(const struct state *s, const struct value *host, u32 size, bool write)
{
	for (u32 i = 0; i < s->nr_facts; i++) {
		const struct fact *f = &s->facts[i];
		u64 at = host->a + host->c - f->a;

		if (f->kind == FACT_CHECKED && f->name == host->name && f->ctx == host->ctx && (f->write || !write) &&
		    host->a - f->a < f->size && at < f->size && at + size <= f->size)
			return true;
	}
	return false;
}

/* ---- memory operands ----------------------------------------------------------------------------- */

enum place { AT_FRAME, AT_MMU, AT_VCPU, AT_GUEST };

struct operand {
	enum place place;
	s64 at;			/* FRAME, VCPU: offset */
	struct value value;	/* what a load of 8 bytes gives; JUMP tables: the index */
	enum table table;
	u8 ctx;
};

static u8 gpr(ZydisRegister reg)
{
	bool high8;

	return gpr_from_zydis(reg, &high8);
}

/* Entry index of a TLB's array: where index leads, or (without a register) a constant place. */
static bool tlb_entry(struct operand *o, u64 disp, const struct value *index, u64 scale)
{
	u8 kind = o->table == T_DELTA ? DELTA : TAG;

	if (index->kind == INDEX && !disp && scale == 1)
		o->value = derived(kind, index);
	else if (index->kind == CONST && !index->a && disp % 8 == 0 && disp < 8 * TLB_ENTRIES)
		/* Of whatever constant address selects it: adopt_constant(). */
		o->value = (struct value){ .kind = kind, .a = disp / 8 << PAGE_SHIFT };
	else
		return false;
	o->value.ctx = o->ctx;
	o->value.write = o->table == T_WRITE;
	return true;
}

/* o->value is the index, for comparison with what the entry's other half is read by. */
static bool jump_entry(const struct dbt_verifier *v, struct operand *o, u64 disp, const struct value *index, u64 scale)
{
	const u64 stride = v->jump_stride, size = JUMP_TABLE_SIZE * stride;
	u64 reach = index->a * scale;

	if (index->kind == BITS && !disp && index->a < size && reach % stride == 0 && reach + stride <= size)
		o->value = *index;
	else if (index->kind == CONST && !index->a && disp % stride == 0 && disp < size)
		o->value = constant(disp / stride);
	else
		return false;
	return true;
}

static bool mmu_entry(struct dbt_verifier *v, const ZydisDecodedOperand *op, struct operand *o, enum table t, unsigned ctx)
{
	u64 disp = (u64)op->mem.disp.value - table_start(v, t, ctx), scale = 1;
	struct value index = constant(0);

	if (op->mem.index != ZYDIS_REGISTER_NONE) {
		index = *reg_get(v, gpr(op->mem.index));
		scale = op->mem.scale;
	} else if (op->mem.base != ZYDIS_REGISTER_NONE) {
		index = *reg_get(v, gpr(op->mem.base));
	}
	*o = (struct operand){ .place = AT_MMU, .table = t, .ctx = ctx };
	return t < T_JUMP_VA ? tlb_entry(o, disp, &index, scale) : jump_entry(v, o, disp, &index, scale);
}

static bool mmu_operand(struct dbt_verifier *v, const ZydisDecodedOperand *op, struct operand *o)
{
	if (op->mem.base != ZYDIS_REGISTER_NONE && op->mem.index != ZYDIS_REGISTER_NONE)
		return refuse(v, "gs operand of two registers");
	if (op->size != 64 || (op->actions & ZYDIS_OPERAND_ACTION_MASK_WRITE))
		return refuse(v, "gs operand that is no plain read of 8 bytes");
	for (unsigned ctx = 0; ctx < NR_TLBS; ctx++)
		for (enum table t = 0; t < NR_TABLES; t++)
			if (mmu_entry(v, op, o, t, ctx))
				return true;
	return refuse(v, "gs operand outside the tables");
}

/* The address of op as a value. */
static struct value operand_address(struct dbt_verifier *v, const ZydisDecodedOperand *op)
{
	struct value x = constant(op->mem.disp.value);

	if (op->mem.base != ZYDIS_REGISTER_NONE)
		x = value_add(reg_get(v, gpr(op->mem.base)), &x);
	if (op->mem.index == ZYDIS_REGISTER_NONE)
		return x;
	if (op->mem.scale != 1)
		return is_secret(&x) || is_secret(reg_get(v, gpr(op->mem.index))) ? secret : any;
	return value_add(&x, reg_get(v, gpr(op->mem.index)));
}

static bool has_fault_row(const struct dbt *d, u32 at, u32 *stub)
{
	u32 lo = 0, hi = d->nr_faults;

	while (lo < hi) {
		u32 mid = (lo + hi) / 2;

		if (d->faults[mid].at == at) {
			*stub = d->faults[mid].stub & ~FAULT_HOST_FLAGS;
			return true;
		}
		if (d->faults[mid].at < at)
			lo = mid + 1;
		else
			hi = mid;
	}
	return false;
}

static bool guest_operand(struct dbt_verifier *v, const ZydisDecodedOperand *op, const struct value *at)
{
	u32 size = op->size / 8, stub;
	bool write = op->actions & ZYDIS_OPERAND_ACTION_MASK_WRITE;

	if (at->kind != HOST)
		return refuse(v, "operand at an address that is not known to be safe");
	if (!size || size > 64 || !is_checked(&v->now, at, size, write))
		return refuse(v, write ? "store without a check that covers it" : "load without a check that covers it");
	if (!has_fault_row(v->d, v->pc, &stub))
		return refuse(v, "access to guest memory without a fault row");
	return true;
}

static bool vcpu_operand(struct dbt_verifier *v, const ZydisDecodedOperand *op, s64 at)
{
	bool store = op->actions & ZYDIS_OPERAND_ACTION_MASK_WRITE;

	if (!vcpu_field_ok(at, op->size / 8, store))
		return refuse(v, "field of struct vcpu that blocks may not touch");
	if (store && at == offsetof(struct vcpu, arch.tlb)) {
		const struct value *x = &v->now.reg[gpr(v->ops[1].type == ZYDIS_OPERAND_TYPE_REGISTER ?
							v->ops[1].reg.value : ZYDIS_REGISTER_NONE) & 15];
		const struct mmu *mmu = v->vcpu->arch.mmu;

		for (unsigned i = 0; i < NR_TLBS; i++)
			if (v->zi.mnemonic == ZYDIS_MNEMONIC_MOV && x->kind == CONST && x->a == (u64)&mmu->tlbs[i])
				return true;
		return refuse(v, "vcpu->arch.tlb becomes something else than a TLB");
	}
	return true;
}

static bool frame_operand(struct dbt_verifier *v, const ZydisDecodedOperand *op, s64 at)
{
	u32 size = op->size / 8;

	if (at < 0 || !size || at + size > FRAME_SIZE)
		return refuse(v, "outside the frame");
	if ((op->actions & ZYDIS_OPERAND_ACTION_MASK_WRITE) && at < FRAME_VCPU + 8)
		return refuse(v, "store to the frame's vCPU pointer");
	return true;
}

static bool classify_operand(struct dbt_verifier *v, const ZydisDecodedOperand *op, struct operand *o)
{
	struct value at;

	if (op->mem.type != ZYDIS_MEMOP_TYPE_MEM || v->zi.address_width != 64 || op->mem.base == ZYDIS_REGISTER_RIP)
		return refuse(v, "kind of memory operand");
	if (op->mem.segment == ZYDIS_REGISTER_FS)
		return refuse(v, "fs operand");
	if (op->mem.segment == ZYDIS_REGISTER_GS)
		return mmu_operand(v, op, o);
	*o = (struct operand){ .place = AT_GUEST };
	if (op->mem.base == ZYDIS_REGISTER_RSP) {
		o->place = AT_FRAME;
		o->at = op->mem.disp.value;
		if (op->mem.index != ZYDIS_REGISTER_NONE)
			return refuse(v, "frame operand with an index");
		if (!frame_operand(v, op, o->at))
			return false;
		o->value = any;
		if (o->at % 8 == 0 && op->size == 64) {
			struct value *slot = &v->now.slot[o->at / 8];

			if (slot->kind == ANY)
				*slot = sym(name_here(v, IN_SLOT + o->at / 8));
			o->value = *slot;
		}
		return true;
	}
	at = operand_address(v, op);
	if (at.kind == VCPU) {
		o->place = AT_VCPU;
		o->at = at.c;
		return vcpu_operand(v, op, at.c);
	}
	return guest_operand(v, op, &at);
}

/* ---- instructions ----------------------------------------------------------------------------------- */

static bool is_jcc(const ZydisDecodedInstruction *zi)
{
	return (zi->opcode_map == ZYDIS_OPCODE_MAP_DEFAULT && (zi->opcode & 0xf0) == 0x70) ||
	       (zi->opcode_map == ZYDIS_OPCODE_MAP_0F && (zi->opcode & 0xf0) == 0x80);
}

static bool reg_write_ok(struct dbt_verifier *v, ZydisRegister reg)
{
	switch (ZydisRegisterGetClass(reg)) {
	case ZYDIS_REGCLASS_GPR8:
	case ZYDIS_REGCLASS_GPR16:
	case ZYDIS_REGCLASS_GPR32:
	case ZYDIS_REGCLASS_GPR64:
		return gpr(reg) != RSP || refuse(v, "rsp is written");
	case ZYDIS_REGCLASS_XMM:
		return reg <= ZYDIS_REGISTER_XMM15 || refuse(v, "xmm16 and above");
	case ZYDIS_REGCLASS_YMM:
		return reg <= ZYDIS_REGISTER_YMM15 || refuse(v, "ymm16 and above");
	case ZYDIS_REGCLASS_FLAGS:
		return true;
	default:
		return reg == ZYDIS_REGISTER_MXCSR || refuse(v, "register of the host's is written");
	}
}

/* A register operand's value; the width of op is 64. */
static struct value source_value(struct dbt_verifier *v, const ZydisDecodedOperand *op, const struct operand *mem)
{
	switch (op->type) {
	case ZYDIS_OPERAND_TYPE_REGISTER:
		return gpr(op->reg.value) == INSN_NOREG ? any : *reg_get(v, gpr(op->reg.value));
	case ZYDIS_OPERAND_TYPE_IMMEDIATE:
		return constant(op->imm.is_signed ? (u64)op->imm.value.s : op->imm.value.u);
	case ZYDIS_OPERAND_TYPE_MEMORY:
		if (mem->place == AT_MMU && mem->table >= T_JUMP_VA)
			return secret;
		if (mem->place == AT_VCPU && mem->at == offsetof(struct vcpu, arch.tlb))
			return secret;
		return mem->place == AT_FRAME || mem->place == AT_MMU ? mem->value : any;
	default:
		return any;
	}
}

/* A constant entry of a table belongs to every constant address that selects it. */
static void adopt_constant(struct value *x, const struct value *with)
{
	if ((x->kind == TAG || x->kind == DELTA) && !x->name && with->kind == CONST &&
	    x->a >> PAGE_SHIFT == tlb_index(with->a))
		x->a = with->a;
}

/* Results the analysis follows; anything else is ANY, or SECRET if it may hold some of one. */
static struct value result(struct dbt_verifier *v, unsigned dst, struct value x, struct value y)
{
	bool wide = v->zi.operand_width == 64;

	switch (v->zi.mnemonic) {
	case ZYDIS_MNEMONIC_MOV:
		if (y.kind == CONST)
			return constant(wide ? y.a : (u32)y.a);
		if (wide)
			return y;
		return is_secret(&y) ? secret : bits(v, dst, 0xffffffff & possible_bits(&y));
	case ZYDIS_MNEMONIC_ADD:
		/* Twice the same */
		if (x.kind == BITS && value_equal(&x, &y) && x.a < BIT_ULL(31))
			return bits(v, dst, x.a << 1);
		if (!wide)
			break;
		adopt_constant(&y, &x);
		return value_add(&x, &y);
	case ZYDIS_MNEMONIC_SUB:
		if (!wide)
			break;
		adopt_constant(&y, &x);
		return value_sub(&x, &y);
	case ZYDIS_MNEMONIC_AND:
		if (y.kind != CONST)
			break;
		if (x.kind == SHIFTED && (wide ? y.a : (u32)y.a) == (TLB_ENTRIES - 1) * 8)
			return derived(INDEX, &x);
		return is_secret(&x) ? secret : bits(v, dst, possible_bits(&x) & (wide ? y.a : (u32)y.a));
	case ZYDIS_MNEMONIC_SHR:
		if (y.kind != CONST || !wide)
			break;
		if ((is_address(&x) || x.kind == BITS) && y.a == PAGE_SHIFT - 3) {
			x = as_address(&x);
			return derived(SHIFTED, &x);
		}
		return is_secret(&x) ? secret : bits(v, dst, possible_bits(&x) >> (y.a & 63));
	default:
		break;
	}
	return is_secret(&x) || is_secret(&y) ? secret : any;
}

/* As RORX, SHLX and so on name their sources: a secret anywhere in makes the result one. */
static bool any_secret_source(struct dbt_verifier *v)
{
	for (unsigned i = 0; i < v->zi.operand_count; i++) {
		const ZydisDecodedOperand *op = &v->ops[i];

		if (op->type == ZYDIS_OPERAND_TYPE_REGISTER && (op->actions & ZYDIS_OPERAND_ACTION_MASK_READ) &&
		    gpr(op->reg.value) != INSN_NOREG && is_secret(&v->now.reg[gpr(op->reg.value)]))
			return true;
	}
	return false;
}

static void set_flags(struct dbt_verifier *v, const struct operand *mem)
{
	const ZydisAccessedFlags *f = v->zi.cpu_flags;
	struct state *s = &v->now;
	struct value x, y;

	if (!f || !(f->modified | f->set_0 | f->set_1 | f->undefined))
		return;
	s->flags = FLAGS_NONE;
	if (v->zi.mnemonic != ZYDIS_MNEMONIC_CMP || v->zi.operand_width != 64)
		return;
	x = source_value(v, &v->ops[0], mem);
	y = source_value(v, &v->ops[1], mem);
	if (x.kind == OFFSET && y.kind == CONST && y.a < PAGE_SIZE) {
		s->flags = FLAGS_OFFSET;
		s->compared = x;
		s->limit = y.a;
	} else if (v->ops[1].type == ZYDIS_OPERAND_TYPE_MEMORY && mem->place == AT_MMU && mem->table == T_JUMP_VA) {
		s->flags = FLAGS_JUMP;
		s->compared = mem->value;
		s->compared.ctx = mem->ctx;
	}
}

/* Secrets may be kept in the frame's scratch slots, nowhere else. */
static bool store(struct dbt_verifier *v, const ZydisDecodedOperand *op, const struct operand *mem)
{
	struct state *s = &v->now;
	bool whole = op->size == 64 && mem->at % 8 == 0 && v->zi.mnemonic == ZYDIS_MNEMONIC_MOV;
	bool leaks = any_secret_source(v);

	if (mem->place == AT_FRAME) {
		for (s64 i = mem->at / 8; i <= (mem->at + op->size / 8 - 1) / 8; i++)
			s->slot[i] = leaks ? secret : any;
		if (whole)
			s->slot[mem->at / 8] = source_value(v, &v->ops[1], mem);
		return true;
	}
	/* The base and index of the operand itself are read, too. */
	for (unsigned i = 0; i < v->zi.operand_count; i++) {
		const ZydisDecodedOperand *src = &v->ops[i];

		if (src->type == ZYDIS_OPERAND_TYPE_REGISTER && (src->actions & ZYDIS_OPERAND_ACTION_MASK_READ) &&
		    gpr(src->reg.value) != INSN_NOREG && is_secret(&s->reg[gpr(src->reg.value)]))
			return refuse(v, "address of the host's is stored");
	}
	return true;
}

static void write_registers(struct dbt_verifier *v, const struct operand *mem)
{
	bool leaks = any_secret_source(v);
	struct value first = any;
	unsigned first_reg = INSN_NOREG;

	if (v->ops[0].type == ZYDIS_OPERAND_TYPE_REGISTER && gpr(v->ops[0].reg.value) != INSN_NOREG &&
	    (v->ops[0].actions & ZYDIS_OPERAND_ACTION_MASK_WRITE) && v->zi.operand_width >= 32 &&
	    v->ops[0].size >= 32 && v->zi.operand_count_visible >= 2) {
		struct value y = source_value(v, &v->ops[1], mem);

		first_reg = gpr(v->ops[0].reg.value);
		if (v->zi.mnemonic == ZYDIS_MNEMONIC_LEA)
			first = v->zi.operand_width == 64 && v->zi.address_width == 64 ? operand_address(v, &v->ops[1]) :
				leaks ? secret : any;
		else if (v->zi.operand_count_visible == 2)
			first = result(v, first_reg, v->zi.mnemonic == ZYDIS_MNEMONIC_MOV ? any : *reg_get(v, first_reg), y);
		else
			first = leaks ? secret : any;
		if (v->zi.mnemonic == ZYDIS_MNEMONIC_MOVZX)
			first = is_secret(&y) ? secret : bits(v, first_reg, (1ull << v->ops[1].size) - 1);
	}
	for (unsigned i = 0; i < v->zi.operand_count; i++) {
		const ZydisDecodedOperand *op = &v->ops[i];
		u8 r;

		if (op->type != ZYDIS_OPERAND_TYPE_REGISTER || !(op->actions & ZYDIS_OPERAND_ACTION_MASK_WRITE))
			continue;
		r = gpr(op->reg.value);
		if (r == INSN_NOREG || !reg_write_ok(v, op->reg.value))
			continue;
		v->now.reg[r] = leaks ? secret : any;
	}
	/* Only our own code computes places in tables, and in scratch registers. */
	if (first.kind >= SHIFTED && first.kind <= TAG && first.kind != BITS && first_reg != T0 && first_reg != T1)
		first = any;
	if (first_reg != INSN_NOREG && first_reg != RSP)
		v->now.reg[first_reg] = first;
}

/* Neither branch nor call. */
static bool plain(struct dbt_verifier *v)
{
	const ZydisDecodedInstruction *zi = &v->zi;
	const ZydisDecodedOperand *mem_op = NULL;
	struct operand mem = { .place = AT_FRAME };
	bool nop = allowed[zi->mnemonic] == NOP;

	if ((allowed[zi->mnemonic] != INT && allowed[zi->mnemonic] != VEC && !nop) ||
	    zi->meta.category == ZYDIS_CATEGORY_STRINGOP || zi->encoding == ZYDIS_INSTRUCTION_ENCODING_EVEX ||
	    (zi->attributes & (ZYDIS_ATTRIB_HAS_REP | ZYDIS_ATTRIB_HAS_REPE | ZYDIS_ATTRIB_HAS_REPNE)))
		return refuse(v, "instruction is not on the list");
	for (unsigned i = 0; i < zi->operand_count && !nop; i++) {
		const ZydisDecodedOperand *op = &v->ops[i];

		if (op->type == ZYDIS_OPERAND_TYPE_REGISTER && (op->actions & ZYDIS_OPERAND_ACTION_MASK_WRITE) &&
		    !reg_write_ok(v, op->reg.value))
			return false;
		if (op->type != ZYDIS_OPERAND_TYPE_MEMORY || op->mem.type == ZYDIS_MEMOP_TYPE_AGEN)
			continue;
		if (mem_op || op->visibility != ZYDIS_OPERAND_VISIBILITY_EXPLICIT)
			return refuse(v, "memory operand that cannot be seen");
		mem_op = op;
	}
	/* Its bit number reaches far outside the operand. */
	if (mem_op && zi->meta.category == ZYDIS_CATEGORY_BITBYTE && zi->opcode_map == ZYDIS_OPCODE_MAP_0F &&
	    (zi->opcode & 0xe7) == 0xa3)
		return refuse(v, "bit string in memory");
	if (mem_op && !classify_operand(v, mem_op, &mem))
		return false;
	if (zi->mnemonic == ZYDIS_MNEMONIC_LEA && v->ops[1].mem.base == ZYDIS_REGISTER_RIP)
		return refuse(v, "address of code");
	set_flags(v, &mem);
	if (mem_op && (mem_op->actions & ZYDIS_OPERAND_ACTION_MASK_WRITE) && !store(v, mem_op, &mem))
		return false;
	if (!nop)
		write_registers(v, &mem);
	return !v->why;
}

/* ---- the ways of control ------------------------------------------------------------------------------- */

static struct label *label_at(struct dbt_verifier *v, u32 at)
{
	u32 lo = 0, hi = v->nr_labels;

	while (lo < hi) {
		u32 mid = (lo + hi) / 2;

		if (v->labels[mid].at < at)
			lo = mid + 1;
		else
			hi = mid;
	}
	return lo < v->nr_labels && v->labels[lo].at == at ? &v->labels[lo] : NULL;
}

/*
 * Where two ways meet: a register that holds one address on one way and another on the other is an
 * unknown of its own from here on, and what was known of either relative to it remains if it is the
 * same. `in` is what the label has got so far.
 */
struct anchor {
	struct value in, other;	/* addresses */
	struct value out;
};

struct meeting {
	struct anchor anchors[16 + 3];
	u32 nr;
	struct label *label;
	u32 start;
};

static void anchor_add(struct meeting *m, const struct value *in, const struct value *other, u32 what)
{
	struct anchor *a = &m->anchors[m->nr];

	a->in = as_address(in);
	a->other = as_address(other);
	if (!is_address(&a->in) || !is_address(&a->other))
		return;
	a->out = same_address(&a->in, &a->other) ? a->in : sym(((m->label->at - m->start) << 6 | what) + 1);
	m->nr++;
}

/* x on one way and y on the other, made of the addresses of an anchor in the same manner. */
static bool meet_at(const struct anchor *a, u32 *name, u64 *at, u32 other_name, u64 other_at)
{
	if (*name != a->in.name || other_name != a->other.name || *at - a->in.a != other_at - a->other.a)
		return false;
	*at = a->out.a + (*at - a->in.a);
	*name = a->out.name;
	return true;
}

static void value_meet(const struct meeting *m, struct value *x, const struct value *y, bool *changed)
{
	struct value r = *x;
	bool alike = x->kind == y->kind && x->ctx == y->ctx && x->write == y->write && x->c == y->c && x->kind != BITS;

	if (value_equal(x, y))
		return;
	/* A constant address is as good as an unknown one. */
	if ((x->kind == CONST || x->kind == SYM) && is_address(y)) {
		r.kind = SYM;
		alike = true;
	}
	for (u32 i = 0; alike && i < m->nr; i++) {
		if (meet_at(&m->anchors[i], &r.name, &r.a, y->name, y->a) && (r.kind != SYM || r.name)) {
			*changed |= !value_equal(x, &r);
			*x = r;
			return;
		}
	}
	r = is_secret(x) || is_secret(y) ? secret : any;
	*changed |= !value_equal(x, &r);
	*x = r;
}

static void facts_meet(const struct meeting *m, struct state *in, const struct state *s, bool *changed)
{
	struct fact old[FACTS_MAX];
	u32 n = in->nr_facts;
	bool same = true;

	memcpy(old, in->facts, n * sizeof(*old));
	in->nr_facts = 0;
	for (u32 i = 0; i < n; i++) {
		for (u32 j = 0; j < s->nr_facts; j++) {
			struct fact f = s->facts[j];

			f.name = old[i].name;
			f.a = old[i].a;
			if (!fact_equal(&f, &old[i]))
				continue;
			if (f.name == s->facts[j].name && f.a == s->facts[j].a)
				fact_add(in, f);
			for (u32 k = 0; k < m->nr; k++) {
				f = old[i];
				if (meet_at(&m->anchors[k], &f.name, &f.a, s->facts[j].name, s->facts[j].a))
					fact_add(in, f);
			}
		}
	}
	for (u32 i = 0; i < n && n == in->nr_facts; i++)
		same &= fact_equal(&old[i], &in->facts[i]);
	*changed |= !same || n != in->nr_facts;
}

static void state_meet(struct label *l, const struct state *s, u32 start)
{
	struct meeting m = { .label = l, .start = start };
	struct state *in = &l->in;
	bool changed = false;

	if (!l->seen) {
		*in = *s;
		l->seen = l->pending = true;
		return;
	}
	for (unsigned r = 0; r < 16; r++)
		if (r != T0 && r != T1)
			anchor_add(&m, &in->reg[r], &s->reg[r], r);
	for (unsigned i = 0; i < 3; i++)
		anchor_add(&m, &in->slot[FRAME_R13 / 8 + i], &s->slot[FRAME_R13 / 8 + i], IN_SLOT + FRAME_R13 / 8 + i);
	for (unsigned r = 0; r < 16; r++)
		value_meet(&m, &in->reg[r], &s->reg[r], &changed);
	for (unsigned i = 0; i < NR_SLOTS; i++)
		value_meet(&m, &in->slot[i], &s->slot[i], &changed);
	facts_meet(&m, in, s, &changed);
	if (in->flags != FLAGS_NONE && (in->flags != s->flags || in->limit != s->limit || !value_equal(&in->compared, &s->compared))) {
		in->flags = FLAGS_NONE;
		changed = true;
	}
	l->pending |= changed;
}

static bool flow_to(struct dbt_verifier *v, u32 target, const struct state *s)
{
	struct label *l = target >= v->start && target < v->end ? label_at(v, target) : NULL;

	if (!l)
		return refuse(v, "branch into the middle of an instruction, or out of the block");
	state_meet(l, s, v->start);
	return true;
}

/* The guest gets to see its registers and the slots that stand for some. */
static bool nothing_leaks(struct dbt_verifier *v)
{
	const struct state *s = &v->now;

	for (unsigned r = 0; r < 16; r++)
		if (r != RSP && r != T0 && r != T1 && is_secret(&s->reg[r]))
			return refuse(v, "address of the host's in a guest register");
	for (unsigned i = 0; i < 3; i++)
		if (is_secret(&s->slot[FRAME_R13 / 8 + i]))
			return refuse(v, "address of the host's in a guest register's slot");
	return true;
}

static bool index_ok(struct dbt_verifier *v, u32 limit)
{
	return (v->now.reg[T0].kind == CONST && v->now.reg[T0].a < limit) || refuse(v, "index out of bounds");
}

static void forget_all(struct state *s)
{
	for (unsigned r = 0; r < 16; r++)
		s->reg[r] = any;
	s->reg[T1] = secret;
	for (unsigned i = 0; i < NR_SLOTS; i++)
		s->slot[i] = any;
	s->slot[FRAME_VCPU / 8] = (struct value){ .kind = VCPU };
	s->nr_facts = 0;
	s->flags = FLAGS_NONE;
}

static void forget_reg(struct state *s, u8 r)
{
	if (r == RSP)
		s->reg[GUEST_RSP] = any;
	else if (r >= R13)
		s->slot[FRAME_R13 / 8 + r - R13] = any;
	else
		s->reg[r] = any;
}

/* The guest's instruction at a site, from the bytes of the block's page. */
static bool guest_insn(struct dbt_verifier *v, u32 site, ZydisDecodedInstruction *zi, ZydisDecodedOperand *ops)
{
	const struct dbt_page *page = dbt_page_find(v->d, v->b->gpa & PAGE_MASK);
	const struct dbt_site *s = &v->d->sites[site];
	u32 off = s->rip & ~PAGE_MASK;

	return page && off + s->insn.len <= PAGE_SIZE &&
	       ZYAN_SUCCESS(ZydisDecoderDecodeFull(v->vcpu->arch.code_size == 8 ? &v->decoder : &v->decoder32,
						   page->bytes + off, s->insn.len, zi, ops));
}

/* PUSH and POP move rsp by as much as they store or load. 0: something else. */
static s64 stack_move(const ZydisDecodedInstruction *zi, const ZydisDecodedOperand *ops)
{
	switch (zi->mnemonic) {
	case ZYDIS_MNEMONIC_PUSH:
	case ZYDIS_MNEMONIC_PUSHFQ:
		return -(s64)(zi->operand_width / 8);
	case ZYDIS_MNEMONIC_POP:
		return ops[0].type == ZYDIS_OPERAND_TYPE_REGISTER && gpr(ops[0].reg.value) == RSP ? 0 : zi->operand_width / 8;
	default:
		return 0;
	}
}

/*
 * A handler changes what its instruction writes, and comes back only if nobody has asked for what was looked
 * up to be given back. One of a system instruction may do anything.
 */
static void handler(struct dbt_verifier *v, u32 site)
{
	ZydisDecodedOperand ops[ZYDIS_MAX_OPERAND_COUNT];
	ZydisDecodedInstruction zi;
	struct state *s = &v->now;
	struct value rsp = *reg_get(v, GUEST_RSP);
	s64 moved;

	if (!guest_insn(v, site, &zi, ops) || diff_excludes(&zi, ops)) {
		forget_all(s);
		return;
	}
	for (unsigned i = 0; i < zi.operand_count; i++)
		if (ops[i].type == ZYDIS_OPERAND_TYPE_REGISTER && (ops[i].actions & ZYDIS_OPERAND_ACTION_MASK_WRITE) &&
		    gpr(ops[i].reg.value) != INSN_NOREG)
			forget_reg(s, gpr(ops[i].reg.value));
	moved = stack_move(&zi, ops);
	if (moved && v->vcpu->arch.code_size == 8)
		s->reg[GUEST_RSP] = add_constant(&rsp, moved);
	s->reg[T0] = any;
	s->reg[T1] = secret;
	s->slot[FRAME_FLAGS / 8] = s->slot[FRAME_FS / 8] = s->slot[FRAME_GS / 8] = any;
	s->flags = FLAGS_NONE;
}

static bool call(struct dbt_verifier *v, u32 target)
{
	const struct dbt *d = v->d;

	if (target == d->slow) {
		if (!index_ok(v, d->nr_sites) || !nothing_leaks(v))
			return false;
		handler(v, v->now.reg[T0].a);
		return true;
	}
	if (target == d->load_vec) {
		v->now.reg[T0] = v->now.reg[T1] = secret;
		v->now.flags = FLAGS_NONE;
		return true;
	}
	return refuse(v, "call of something unknown");
}

static bool is_entry(const struct dbt_verifier *v, u32 at)
{
	return at < v->d->mem.size && (v->entries[at / 8] & BIT(at % 8));
}

/* Unconditionally away. */
static bool jump(struct dbt_verifier *v, u32 target)
{
	const struct dbt *d = v->d;

	if (target >= v->start && target < v->end)
		return flow_to(v, target, &v->now);
	if (!nothing_leaks(v))
		return false;
	if (target == d->exit_slot || target == d->exit_host)
		return index_ok(v, d->nr_exits);
	if (target == d->exit_indirect)
		return index_ok(v, d->nr_sites);
	return is_entry(v, target) || refuse(v, "jump to something unknown");
}

/* jmp *table(index) */
static bool jump_table(struct dbt_verifier *v)
{
	struct operand mem;

	if (v->ops[0].type != ZYDIS_OPERAND_TYPE_MEMORY || v->ops[0].mem.segment != ZYDIS_REGISTER_GS)
		return refuse(v, "indirect jump");
	if (!mmu_operand(v, &v->ops[0], &mem))
		return false;
	if (mem.table != T_JUMP_CODE)
		return refuse(v, "jump through something that is no jump table");
	for (u32 i = 0; i < v->now.nr_facts; i++) {
		const struct fact *f = &v->now.facts[i];

		if (f->kind == FACT_JUMP && f->ctx == mem.ctx && f->name == mem.value.name && f->a == mem.value.a)
			return nothing_leaks(v);
	}
	return refuse(v, "jump table entry is not compared");
}

/* What the flags say on the way where cc holds. */
static void assume(struct state *s, u8 cc)
{
	u64 max;

	if (s->flags == FLAGS_JUMP) {
		if (cc == CC_E)
			fact_add(s, (struct fact){ .kind = FACT_JUMP, .ctx = s->compared.ctx, .name = s->compared.name,
						   .a = s->compared.a });
		return;
	}
	if (s->flags != FLAGS_OFFSET || (cc != CC_BE && cc != CC_B && cc != CC_E) || (cc == CC_B && !s->limit))
		return;
	max = s->limit - (cc == CC_B);
	fact_add(s, (struct fact){ .kind = FACT_CHECKED, .ctx = s->compared.ctx, .write = s->compared.write,
				   .name = s->compared.name, .a = s->compared.a, .size = PAGE_SIZE - max });
}

static u32 branch_target(const struct dbt_verifier *v)
{
	return v->pc + v->zi.length + (u32)v->ops[0].imm.value.s;
}

static bool conditional(struct dbt_verifier *v, u8 cc)
{
	struct state taken = v->now;
	u32 target = branch_target(v);

	assume(&taken, cc);
	if (target >= v->start && target < v->end) {
		if (!flow_to(v, target, &taken))
			return false;
	} else if (!nothing_leaks(v) || !is_entry(v, target)) {
		return refuse(v, "conditional branch to something unknown");
	}
	assume(&v->now, cc ^ 1);
	return true;
}

enum step { STEP_NEXT, STEP_END, STEP_BAD };

static enum step step(struct dbt_verifier *v)
{
	bool imm = v->ops[0].type == ZYDIS_OPERAND_TYPE_IMMEDIATE;
	u32 stub;

	/* What is true before the instruction is true where a fault leads to. */
	if (has_fault_row(v->d, v->pc, &stub) && !flow_to(v, stub, &v->now))
		return STEP_BAD;
	if (v->zi.meta.branch_type == ZYDIS_BRANCH_TYPE_NONE)
		return plain(v) ? STEP_NEXT : STEP_BAD;
	if (v->zi.mnemonic == ZYDIS_MNEMONIC_JMP)
		return (imm ? jump(v, branch_target(v)) : jump_table(v)) ? STEP_END : STEP_BAD;
	if (v->zi.mnemonic == ZYDIS_MNEMONIC_CALL && imm)
		return call(v, branch_target(v)) ? STEP_NEXT : STEP_BAD;
	if (is_jcc(&v->zi))
		return conditional(v, v->zi.opcode & 15) ? STEP_NEXT : STEP_BAD;
	if (v->zi.mnemonic == ZYDIS_MNEMONIC_JRCXZ || v->zi.mnemonic == ZYDIS_MNEMONIC_JECXZ)
		return flow_to(v, branch_target(v), &v->now) ? STEP_NEXT : STEP_BAD;
	refuse(v, "kind of branch");
	return STEP_BAD;
}

/* ---- the block ------------------------------------------------------------------------------------------------ */

static bool decode(struct dbt_verifier *v)
{
	const u8 *code = v->d->mem.rw + v->pc;

	return ZYAN_SUCCESS(ZydisDecoderDecodeFull(&v->decoder, code, v->end - v->pc, &v->zi, v->ops)) || refuse(v, "not an instruction");
}

static void mark(struct dbt_verifier *v, u32 at)
{
	if (at >= v->start && at < v->end)
		v->kinds[at - v->start] |= 2;
}

/* Where instructions begin, and which are branched to. */
static bool find_labels(struct dbt_verifier *v, const struct dbt_block *b)
{
	u32 stub;

	memset(v->kinds, 0, v->end - v->start);
	for (v->pc = v->start; v->pc < v->end; v->pc += v->zi.length) {
		if (!decode(v))
			return false;
		v->kinds[v->pc - v->start] |= 1;
		if (v->zi.meta.branch_type != ZYDIS_BRANCH_TYPE_NONE && v->ops[0].type == ZYDIS_OPERAND_TYPE_IMMEDIATE)
			mark(v, branch_target(v));
		if (has_fault_row(v->d, v->pc, &stub))
			mark(v, stub);
	}
	mark(v, b->main), mark(v, b->slot), mark(v, b->slot_poll), mark(v, b->host), mark(v, b->host_poll), mark(v, b->leave);
	v->nr_labels = 0;
	for (u32 i = 0; i < v->end - v->start; i++) {
		if (!(v->kinds[i] & 2))
			continue;
		if (!(v->kinds[i] & 1))
			return refuse(v, "branch into the middle of an instruction");
		if (v->nr_labels == LABELS_MAX)
			return refuse(v, "too many labels");
		v->labels[v->nr_labels].at = v->start + i;
		v->labels[v->nr_labels].seen = v->labels[v->nr_labels].pending = false;
		v->nr_labels++;
	}
	return true;
}

/* From a label to the next, or to a jump. */
static bool run(struct dbt_verifier *v, struct label *l)
{
	l->pending = false;
	v->now = l->in;
	for (v->pc = l->at; v->pc < v->end;) {
		if (v->pc != l->at && (v->kinds[v->pc - v->start] & 2))
			return flow_to(v, v->pc, &v->now);
		if (!decode(v))
			return false;
		switch (step(v)) {
		case STEP_NEXT: break;
		case STEP_END: return true;
		default: return false;
		}
		v->pc += v->zi.length;
	}
	return refuse(v, "runs off the end");
}

/* The last label first: what lies off the straight path is behind it, and joins it again with less known. */
static bool run_all(struct dbt_verifier *v)
{
	for (u32 turns = 0, i = v->nr_labels; i-- > 0;) {
		if (!v->labels[i].pending)
			continue;
		if (++turns > 64 * LABELS_MAX)
			return refuse(v, "does not end");
		if (!run(v, &v->labels[i]))
			return false;
		i = v->nr_labels;
	}
	return true;
}

static bool start(struct dbt_verifier *v, u32 at)
{
	struct label *l = label_at(v, at);

	if (!l)
		return refuse(v, "an entry is not in the block");
	forget_all(&v->now);
	state_meet(l, &v->now, v->start);
	return true;
}

static void note_entry(struct dbt_verifier *v, u32 at)
{
	v->entries[at / 8] |= BIT(at % 8);
}

/* Each entry by itself is the beginning of an execution about which nothing is known. */
static bool verify(struct dbt_verifier *v, const struct dbt_block *b)
{
	if (v->end - v->start > DBT_BLOCK_CODE || v->end > v->d->mem.size)
		return refuse(v, "too long");
	if (!find_labels(v, b) || !start(v, b->main) || !start(v, b->slot) || !start(v, b->slot_poll) ||
	    !start(v, b->host) || !start(v, b->host_poll) || !start(v, b->leave) || !run_all(v))
		return false;
	note_entry(v, b->slot);
	note_entry(v, b->slot_poll);
	note_entry(v, b->host);
	note_entry(v, b->host_poll);
	return true;
}

bool dbt_verify(struct vcpu *vcpu, struct dbt *d, const struct dbt_block *b, u32 begin, const char **why)
{
	struct dbt_verifier *v = d->verifier;

	v->vcpu = vcpu;
	v->d = d;
	v->b = b;
	v->start = begin;
	v->end = b->code_end;
	v->why = NULL;
	v->pc = begin;
	if (verify(v, b))
		return true;
	*why = v->why;
	return false;
}

static void dump(const struct dbt_verifier *v)
{
	char line[3 * 48 + 1] = "";
	u32 n = 0, from = v->pc - min(v->pc - v->start, 24u);

	for (u32 i = from; i < v->end && i < from + 48; i++)
		n += snprintf(line + n, sizeof(line) - n, "%02x%s", v->d->mem.rw[i], i + 1 == v->pc ? "|" : " ");
	log_error("translated code around it: %s", line);
}

bool dbt_verify_new(struct vcpu *vcpu, const struct dbt_block *b, u32 begin)
{
	struct dbt *d = vcpu->arch.dbt;
	const char *why;

	vcpu->stat.dbt_verified++;
	if (likely(dbt_verify(vcpu, d, b, begin, &why)))
		return true;
	log_error("translation of 0x%llx refused at byte %u of %u: %s", (unsigned long long)b->va,
		  d->verifier->pc - begin, b->code_end - begin, why);
	dump(d->verifier);
	vm_bug(vcpu->vm, "unsafe translation", __FILE__, __LINE__);
	return false;
}

/* The vCPU's dbt is complete but for this. */
int dbt_verifier_create(struct vcpu *vcpu, struct dbt *d)
{
	struct dbt_verifier *v = calloc(1, sizeof(*v));

	if (!v)
		return -1;
	v->entries = calloc(1, d->mem.size / 8 + 1);
	v->kinds = malloc(DBT_BLOCK_CODE);
	d->verifier = v;
	ZydisDecoderInit(&v->decoder, ZYDIS_MACHINE_MODE_LONG_64, ZYDIS_STACK_WIDTH_64);
	ZydisDecoderInit(&v->decoder32, ZYDIS_MACHINE_MODE_LEGACY_32, ZYDIS_STACK_WIDTH_32);
	return v->entries && v->kinds && learn_jump_tables(v, vcpu, d) ? 0 : -1;
}

void dbt_verifier_destroy(struct dbt *d)
{
	if (!d->verifier)
		return;
	free(d->verifier->entries);
	free(d->verifier->kinds);
	free(d->verifier);
	d->verifier = NULL;
}

/* All code has been dropped. */
void dbt_verifier_reset(struct dbt *d)
{
	if (d->verifier)
		memset(d->verifier->entries, 0, d->mem.size / 8 + 1);
}

/* SPDX-License-Identifier: MIT */
/*
 * What may be touched, and where: the frame, struct vcpu, the tables of struct mmu, the guest's memory (1 to 4
 * in verify.c).
 */
#include "x86/dbt/verify_internal.h"

/* ---- fields and tables ------------------------------------------------------------------------- */

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
	VCPU_FIELD(arch.tlb, true),	/* one of ours: vcpu_operand() */
	VCPU_FIELD(arch.irq_window, false),
	VCPU_FIELD(arch.seg[SEG_GS].base, true),
	VCPU_FIELD(arch.msr.kernel_gs_base, true),
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

static u64 table_start(const struct dbt_verifier *v, enum table t, unsigned ctx)
{
	switch (t) {
	case T_READ: return offsetof(struct mmu, tlbs[0].read) + ctx * sizeof(struct tlb);
	case T_WRITE: return offsetof(struct mmu, tlbs[0].write) + ctx * sizeof(struct tlb);
	case T_DELTA: return offsetof(struct mmu, tlbs[0].delta) + ctx * sizeof(struct tlb);
	case T_STACK_TAG: return offsetof(struct mmu, tlbs[0].stack_tag) + ctx * sizeof(struct tlb);
	case T_STACK_DELTA: return offsetof(struct mmu, tlbs[0].stack_delta) + ctx * sizeof(struct tlb);
	case T_FIXED_TAG: return offsetof(struct mmu, tlbs[0].fixed_tag) + ctx * sizeof(struct tlb);
	case T_FIXED_PAGE: return offsetof(struct mmu, tlbs[0].fixed_page) + ctx * sizeof(struct tlb);
	case T_JUMP_VA: return offsetof(struct mmu, jumps) + ctx * sizeof(struct jump_table) + v->jump_va;
	case T_JUMP_CODE: return offsetof(struct mmu, jumps) + ctx * sizeof(struct jump_table) + v->jump_code;
	case T_RETURN_VA: return offsetof(struct mmu, returns[ctx]) + v->jump_va;
	default: return offsetof(struct mmu, returns[ctx]) + v->jump_code;
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
bool learn_jump_tables(struct dbt_verifier *v, struct vcpu *vcpu, struct dbt *d)
{
	struct jump_table *t = &vcpu->arch.mmu->jumps[0];
	const u64 va = 0x7e57ull << 32;
	struct dbt_block b = { .slot_poll = 1 };

	dbt_jump_add(vcpu, 0, va, &b, false);
	v->jump_stride = sizeof(*t) / JUMP_TABLE_SIZE;
	v->jump_va = find_word(t, va) % v->jump_stride;
	v->jump_code = find_word(t, (u64)(d->mem.rx + b.slot_poll)) % v->jump_stride;
	dbt_flush_jumps(vcpu, 0);
	return v->jump_va % 8 == 0 && v->jump_code % 8 == 0 && v->jump_va != v->jump_code;
}

/* ---- operands ---------------------------------------------------------------------------------- */

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

/* The stack's, or a fixed one. */
static bool own_entry(const struct dbt_verifier *v, struct operand *o, u64 disp, const struct value *index)
{
	const bool fixed = o->table == T_FIXED_TAG || o->table == T_FIXED_PAGE, tag = o->table == T_STACK_TAG || o->table == T_FIXED_TAG;
	const u16 ctx = o->ctx | (fixed ? OF_FIXED(disp / 8) : OF_STACK);

	if (disp >= (fixed ? 2 * TLB_FIXED * 8 : 8) || disp % 8 || index->kind != CONST || index->a)
		return false;
	o->value = secret;
	if (tag)
		o->value = (struct value){ .kind = TAG, .ctx = ctx, .write = !fixed || disp / 8 >= TLB_FIXED };
	for (u32 i = 0; i < v->now.nr_facts && !tag; i++) {
		const struct fact *f = &v->now.facts[i];

		if (f->kind == FACT_ENTRY && f->ctx == ctx)
			o->value = (struct value){ .kind = fixed ? PAGE : DELTA, .ctx = ctx, .name = f->name, .a = f->a };
	}
	return true;
}

/* o->value is the index, for comparison with what the entry's other half is read by. */
static bool jump_entry(const struct dbt_verifier *v, struct operand *o, u64 disp, const struct value *index, u64 scale)
{
	const u64 stride = v->jump_stride, size = (o->table < T_RETURN_VA ? JUMP_TABLE_SIZE : RETURN_CACHE) * stride;
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
	if (t >= T_STACK_TAG && t <= T_FIXED_PAGE)
		return own_entry(v, o, disp, &index);
	return t < T_JUMP_VA ? tlb_entry(o, disp, &index, scale) : jump_entry(v, o, disp, &index, scale);
}

/* The present key of links, or that of one of them. */
static bool is_link_key(const ZydisDecodedOperand *op)
{
	const u64 at = op->mem.disp.value, links = offsetof(struct mmu, jump_links);

	if (op->size != 64 || op->mem.base != ZYDIS_REGISTER_NONE || op->mem.index != ZYDIS_REGISTER_NONE)
		return false;
	return at == offsetof(struct mmu, jump_key) ||
	       (at >= links && (at - links) % sizeof(struct jump_link) == 0 && (at - links) / sizeof(struct jump_link) < JUMP_LINKS);
}

bool mmu_operand(struct dbt_verifier *v, const ZydisDecodedOperand *op, struct operand *o)
{
	const bool write = op->actions & ZYDIS_OPERAND_ACTION_MASK_WRITE;

	if (op->mem.base != ZYDIS_REGISTER_NONE && op->mem.index != ZYDIS_REGISTER_NONE)
		return refuse(v, "gs operand of two registers");
	/* Nothing is known of these. */
	*o = (struct operand){ .place = AT_MMU, .table = NR_TABLES };
	if (!write && is_link_key(op))
		return true;
	if (op->size != 64 || (write && v->zi.mnemonic != ZYDIS_MNEMONIC_MOV))
		return refuse(v, "gs operand that is no plain read or store of 8 bytes");
	for (unsigned ctx = 0; ctx < NR_TLBS; ctx++)
		for (enum table t = write ? T_RETURN_VA : 0; t < NR_TABLES; t++)
			if (mmu_entry(v, op, o, t, ctx))
				return true;
	return refuse(v, "gs operand outside the tables");
}

/* The address of op as a value. A delta comes last: it belongs to the sum of the others. */
struct value operand_address(struct dbt_verifier *v, const ZydisDecodedOperand *op)
{
	struct value x = constant(op->mem.disp.value), index = constant(0);

	if (op->mem.index != ZYDIS_REGISTER_NONE)
		index = *reg_get(v, gpr(op->mem.index));
	if (index.kind != DELTA)
		x = value_scaled(v, &x, &index, op->mem.index != ZYDIS_REGISTER_NONE ? op->mem.scale : 1);
	else if (op->mem.scale != 1)
		return secret;
	if (op->mem.base != ZYDIS_REGISTER_NONE)
		x = value_add(v, reg_get(v, gpr(op->mem.base)), &x);
	return index.kind == DELTA ? value_add(v, &x, &index) : x;
}

bool has_fault_row(const struct dbt *d, u32 at, u32 *stub)
{
	u32 lo = 0, hi = d->nr_faults;

	while (lo < hi) {
		u32 mid = (lo + hi) / 2;

		if (d->faults[mid].at == at) {
			*stub = d->faults[mid].stub & (FAULT_SITE | FAULT_STUB);
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
	if ((op->actions & ZYDIS_OPERAND_ACTION_MASK_WRITE) && at <= FRAME_X87 && at + size > FRAME_X87)
		return refuse(v, "store to what says whether x87 registers are live");
	return true;
}

bool classify_operand(struct dbt_verifier *v, const ZydisDecodedOperand *op, struct operand *o)
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

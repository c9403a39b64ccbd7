/* SPDX-License-Identifier: MIT */
/*
 * Branches, calls and handlers: where each may lead (5 in verify.c), what is known on either way, and that the
 * guest gets to see nothing of ours when a block is left (8).
 */
#include "x86/decode/decode.h"
#include "x86/dbt/diff.h"
#include "x86/dbt/verify_internal.h"

struct label *label_at(struct dbt_verifier *v, u32 at)
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

bool flow_to(struct dbt_verifier *v, u32 target, const struct state *s)
{
	struct label *l = in_block(v, target) ? label_at(v, target) : NULL;

	if (!l)
		return refuse(v, "branch into the middle of an instruction, or out of the block");
	state_meet(v, l, s);
	return true;
}

/* The guest gets to see its registers and the slots that stand for some. */
static bool nothing_leaks(struct dbt_verifier *v)
{
	const struct state *s = &v->now;

	for (unsigned r = 0; r < 16; r++)
		if (r != RSP && r != T0 && r != T1 && is_secret(&s->reg[r]))
			return refuse(v, "address of the host's in a guest register");
	for (unsigned i = 0; i < 4; i++) /* FRAME_PAGE included */
		if (is_secret(&s->slot[FRAME_R9 / 8 + i]))
			return refuse(v, "address of the host's in a guest register's slot");
	return true;
}

static bool index_in(struct dbt_verifier *v, u8 reg, u32 limit)
{
	return (v->now.reg[reg].kind == CONST && v->now.reg[reg].a < limit) || refuse(v, "index out of bounds");
}

static bool index_ok(struct dbt_verifier *v, u32 limit)
{
	return index_in(v, T0, limit);
}

static void forget_reg(struct state *s, u8 r)
{
	if (r == RSP)
		s->reg[GUEST_RSP] = any;
	else if (has_home(r))
		s->slot[FRAME_R9 / 8 + r - R9] = any;
	else
		s->reg[r] = any;
}

/* The guest's instruction at a site, from the bytes of the block's page. */
static bool guest_insn(struct dbt_verifier *v, u32 site, ZydisDecodedInstruction *zi, ZydisDecodedOperand *ops)
{
	const struct dbt_site *s = &v->d->sites[site];
	bool tail = (s->rip ^ v->b->va) & PAGE_MASK;
	const struct dbt_page *page = dbt_page_find(v->d, tail ? v->b->tail_gpa : v->b->gpa & PAGE_MASK);
	u32 off = s->rip & ~PAGE_MASK;

	return page && off + s->len <= PAGE_SIZE &&
	       ZYAN_SUCCESS(ZydisDecoderDecodeFull(v->vcpu->arch.code_size == 8 ? &v->decoder : &v->decoder32,
						   page->bytes + off, s->len, zi, ops));
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
		state_forget(s);
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

/* Is T1 what a refill needs to know of the place it is for? T0 is the offset that was no good. */
static bool refill_place(const struct value *t0, const struct value *t1, u8 ctx, enum refill_kind kind)
{
	switch (kind) {
	case REFILL_STACK:
		return t0->ctx == (ctx | OF_STACK);
	case REFILL_FIXED_READ:
	case REFILL_FIXED_WRITE:
		return t1->kind == CONST && t1->a % 8 == 0 && t1->a / 8 < TLB_FIXED &&
		       t0->ctx == (ctx | OF_FIXED(t1->a / 8 + t0->write * TLB_FIXED));
	default:
		return t0->ctx == ctx && (t1->kind == INDEX ? same_address(t0, t1) :
					  t1->kind == CONST && !t0->name && t1->a == tlb_index(t0->a) * 8);
	}
}

/* T0 and T1 are of one address, whose tag has not matched; the stack's needs no T1. It comes back, or to after the next jump. */
static bool refill(struct dbt_verifier *v, u8 ctx, enum refill_kind kind)
{
	struct value *t0 = &v->now.reg[T0], *t1 = &v->now.reg[T1];
	bool write = kind != REFILL_READ && kind != REFILL_FIXED_READ;

	if (t0->kind != OFFSET || t0->write != write || !refill_place(t0, t1, ctx, kind))
		return refuse(v, "refill of something else than what was looked up");
	v->now.flags = FLAGS_NONE;
	*t0 = *t1 = any;
	return flow_to(v, v->pc + v->zi.length + DBT_REFILL_SKIP, &v->now);
}

static bool call(struct dbt_verifier *v, u32 target)
{
	const struct dbt *d = v->d;
	enum refill_kind kind;
	u8 ctx;

	entries_forget(&v->now);
	if (target == d->slow || dbt_is_rep_stub(d, target)) {
		if (!index_ok(v, d->nr_sites) || !nothing_leaks(v))
			return false;
		handler(v, v->now.reg[T0].a);
		v->now.x87 = false;
		return true;
	}
	if (dbt_is_refill(d, target, &ctx, &kind))
		return refill(v, ctx, kind);
	if (target == d->load_vec) {
		v->now.reg[T0] = v->now.reg[T1] = secret;
		v->now.flags = FLAGS_NONE;
		return true;
	}
	if (target == d->load_x87) {
		v->now.reg[T0] = is_secret(&v->now.reg[T0]) ? secret : any; /* the guest's, or as it was */
		v->now.reg[T1] = secret;
		v->now.flags = FLAGS_NONE;
		v->now.x87 = true;
		return nothing_leaks(v);
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
	bool indirect;

	if (in_block(v, target))
		return flow_to(v, target, &v->now);
	if (!nothing_leaks(v))
		return false;
	if (target == d->exit_slot || target == d->exit_host)
		return index_ok(v, d->nr_exits);
	if (target == d->exit_indirect || target == d->slow_on)
		return index_ok(v, d->nr_sites);
	if (dbt_is_jump(d, target, &indirect))
		return is_secret(&v->now.reg[T0]) ? refuse(v, "jump to an address of the host's") :
						    index_in(v, T1, indirect ? d->nr_sites : d->nr_exits);
	if (target == d->jump_linked[0] || target == d->jump_linked[1])
		return is_secret(&v->now.reg[T0]) ? refuse(v, "jump to an address of the host's") :
		       (v->now.reg[T1].kind == CONST && !(v->now.reg[T1].a % sizeof(struct jump_link)) &&
			v->now.reg[T1].a / sizeof(struct jump_link) < d->nr_links) || refuse(v, "link of nobody");
	return is_entry(v, target) || refuse(v, "jump to something unknown");
}

/* Nothing is known there. */
bool code_address(struct dbt_verifier *v, u32 at)
{
	struct state s;

	if (!in_block(v, at))
		return is_entry(v, at);
	state_forget(&s);
	return flow_to(v, at, &s);
}

/* jmp *table(index) */
static bool jump_table(struct dbt_verifier *v)
{
	struct operand mem;

	if (v->ops[0].type != ZYDIS_OPERAND_TYPE_MEMORY || v->ops[0].mem.segment != ZYDIS_REGISTER_GS)
		return refuse(v, "indirect jump");
	if (!mmu_operand(v, &v->ops[0], &mem))
		return false;
	if (mem.table != T_JUMP_CODE && mem.table != T_RETURN_CODE)
		return refuse(v, "jump through something that is no jump table");
	for (u32 i = 0; i < v->now.nr_facts; i++) {
		const struct fact *f = &v->now.facts[i];

		if (f->kind == FACT_JUMP && f->ctx == mem.ctx && f->size + 1 == mem.table && f->name == mem.value.name && f->a == mem.value.a)
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
						   .a = s->compared.a, .size = s->limit });
		return;
	}
	s->x87 |= s->flags == FLAGS_X87 && cc == CC_NE;
	if (s->flags != FLAGS_OFFSET || (cc != CC_BE && cc != CC_B && cc != CC_E) || (cc == CC_B && !s->limit))
		return;
	max = s->limit - (cc == CC_B);
	if (of_own_entry(&s->compared)) {
		entries_forget(s);
		fact_add(s, (struct fact){ .kind = FACT_ENTRY, .ctx = s->compared.ctx, .name = s->compared.name, .a = s->compared.a });
	}
	fact_add(s, (struct fact){ .kind = FACT_CHECKED, .ctx = s->compared.ctx, .write = s->compared.write,
				   .name = s->compared.name, .a = s->compared.a, .size = PAGE_SIZE - max });
}

u32 branch_target(const struct dbt_verifier *v)
{
	return v->pc + v->zi.length + (u32)v->ops[0].imm.value.s;
}

static bool conditional(struct dbt_verifier *v, u8 cc)
{
	struct state taken = v->now;
	u32 target = branch_target(v);

	assume(&taken, cc);
	if (in_block(v, target)) {
		if (!flow_to(v, target, &taken))
			return false;
	} else if (!nothing_leaks(v) || !is_entry(v, target)) {
		return refuse(v, "conditional branch to something unknown");
	}
	assume(&v->now, cc ^ 1);
	return true;
}

/* What is true before an instruction is true where a fault of it leads to. */
static bool fault(struct dbt_verifier *v, u32 stub)
{
	if (!(stub & FAULT_SITE))
		return flow_to(v, stub, &v->now);
	return (stub & FAULT_STUB) < v->d->nr_sites ? nothing_leaks(v) : refuse(v, "fault row of no site");
}

enum step verify_step(struct dbt_verifier *v)
{
	bool imm = v->ops[0].type == ZYDIS_OPERAND_TYPE_IMMEDIATE;
	u32 stub;

	if (has_fault_row(v->d, v->pc, &stub) && !fault(v, stub))
		return STEP_BAD;
	if (v->zi.meta.branch_type == ZYDIS_BRANCH_TYPE_NONE)
		return verify_plain(v) ? STEP_NEXT : STEP_BAD;
	if (v->zi.mnemonic == ZYDIS_MNEMONIC_JMP)
		return (imm ? jump(v, branch_target(v)) : jump_table(v)) ? STEP_END : STEP_BAD;
	if (v->zi.mnemonic == ZYDIS_MNEMONIC_CALL && imm)
		return call(v, branch_target(v)) ? STEP_NEXT : STEP_BAD;
	if (decode_is_jcc(&v->zi))
		return conditional(v, v->zi.opcode & 15) ? STEP_NEXT : STEP_BAD;
	if (v->zi.mnemonic == ZYDIS_MNEMONIC_JRCXZ || v->zi.mnemonic == ZYDIS_MNEMONIC_JECXZ)
		return flow_to(v, branch_target(v), &v->now) ? STEP_NEXT : STEP_BAD;
	refuse(v, "kind of branch");
	return STEP_BAD;
}

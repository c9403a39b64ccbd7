/* SPDX-License-Identifier: MIT */
/*
 * One instruction: its handler's call, a copy, or an emitter. Those of the stack are in stack.c, those that
 * leave the block in branch.c.
 */
#include "x86/dbt/translate.h"

static void emit_handler(struct trans *tr, struct tinsn *t)
{
	flags_clobber(tr, FLAGS_ALL);
	put_mov_imm(tr->e, T0, site_new(tr, t));
	put_call(tr->e, dbt_rep_stub(tr->d, tr->ctx, t->zi, &t->insn));
}

static void emit_vec_check(struct trans *tr, struct tinsn *t)
{
	struct cold *c;

	if (!t->vec || tr->vec_live)
		return;
	flags_clobber(tr, t->live_before);
	c = cold_new(tr, COLD_VEC);
	put_alu_mem_imm(tr->e, W4, 7, SLOT(FRAME_VEC), 0);
	put_jcc_cold(tr, CC_E, c);
	c->resume = tr->e->at;
	tr->vec_live = true;
	tr->t1_range = -1;
}

/* AH is where AL was while t is executed, and its operand does not depend on that. It has no homed ones. */
static void exchange_for(struct trans *tr, const struct tinsn *t, struct hmem *m, struct cold *c)
{
	u8 low = t->high8 & 3;

	if (m->base == low || m->index == low) {
		put_lea(tr->e, T0, *m);
		*m = MEM_BASE(T0, 0);
	}
	put_exchange(tr->e, t->high8);
	c->high8 = t->high8;
}

static void emit_native(struct trans *tr, struct tinsn *t)
{
	struct hins h = { .encoding = &t->encoding, .bytes = t->bytes, .unlocked = drops_lock(tr, t) };
	const bool moves = h.unlocked && t->insn.mnemonic == ZYDIS_MNEMONIC_XCHG;
	static const u8 temps[2] = { T0, T1 };
	const u8 in_place = dbt_encoding_home(&t->encoding);
	struct cold *c = NULL;
	u8 tmp = T0;

	/* There is no other vCPU then. */
	if (unlikely(h.unlocked))
		tr->vcpu->vm->stat.dbt_unlocked++;
	emit_vec_check(tr, t);
	emit_x87_check(tr, t);
	if (t->may_fault)
		c = slow_new(tr, t);
	if (t->range >= 0) {
		put_member(tr, t, t->insn.base, t->insn.disp, &h.mem, c);
		h.has_mem = true;
	} else if (t->mem) {
		struct ea ea = ea_of(t);

		flags_clobber(tr, t->live_before);
		tmp = put_check(tr, &ea, t->mem_size, t->mem_write, &h.mem, c);
		h.has_mem = true;
		if (tmp == NOREG && (t->nr_homed || moves)) {
			put_lea(tr->e, T0, h.mem);
			h.mem = MEM_BASE(T0, 0);
			tmp = T1;
		}
	}
	if (moves) {
		put_exchange_moves(tr, t, h.mem, tmp, c);
		slow_end(tr, c, t->live_after);
		return;
	}
	if (t->needs)
		flags_to_host(tr);
	for (unsigned i = 0; i < t->nr_homed; i++) {
		if (t->homed[i] == in_place)
			continue;
		h.home[t->homed[i] - R9] = t->mem ? tmp : temps[i];
		if (t->homed_read & BIT(i))
			put_load(tr->e, h.home[t->homed[i] - R9], HOME(t->homed[i]));
	}
	if (in_place != NOREG) {
		h.mem = HOME(in_place);
		h.has_mem = true;
	}
	if (t->high8)
		exchange_for(tr, t, &h.mem, c);
	if (c)
		put_fault_row(tr, c);
	if (VM_BUG_ON(!dbt_encode(tr->e, &h), tr->vcpu->vm))
		return;
	if (t->high8)
		put_exchange(tr->e, t->high8);
	for (unsigned i = 0; i < t->nr_homed; i++)
		if ((t->homed_written & BIT(i)) && t->homed[i] != in_place)
			put_store(tr->e, HOME(t->homed[i]), h.home[t->homed[i] - R9]);
	if (t->writes) {
		tr->host = true;
		tr->slot = false;
	}
	if (t->x87_pointers)
		x87_executed(tr, t, c->index);
	if (c)
		slow_end(tr, c, t->live_after);
}

static void emit_lea(struct trans *tr, struct tinsn *t)
{
	struct emit *e = tr->e;
	const u8 dst = t->gpr, host = is_homed(dst) ? T0 : dst == RSP ? GUEST_RSP : dst;
	const bool narrow = t->insn.opsize == 4 || t->insn.addrsize == 4;
	const struct ea ea = ea_of(t);

	if (ea.base == NOREG && ea.index == NOREG) {
		put_mov_imm(e, host, narrow ? (u32)ea.disp : (u64)ea.disp);
	} else {
		struct hmem m = { .base = NOREG, .index = NOREG, .scale = ea.scale, .disp = ea.disp };

		if (ea.base != NOREG)
			m.base = gpr_to_host(e, ea.base, T0);
		if (ea.index != NOREG)
			m.index = gpr_to_host(e, ea.index, T1);
		put_rm(e, narrow ? W4 : W8, 0x8d, host, m);
	}
	if (is_homed(dst))
		put_store(e, HOME(dst), T0);
}

static void put_rflags_bits(struct trans *tr, u32 set, u32 clear)
{
	put_load(tr->e, T1, SLOT(FRAME_VCPU));
	if (set)
		put_alu_mem_imm(tr->e, W4, 1, MEM_BASE(T1, VCPU(rflags)), set);
	else
		put_alu_mem_imm(tr->e, W4, 4, MEM_BASE(T1, VCPU(rflags)), ~clear);
}

static void emit_cld(struct trans *tr, struct tinsn *t)
{
	flags_clobber(tr, t->live_before);
	put_rflags_bits(tr, 0, X86_EFLAGS_DF);
}

/* Leaves flags alone. */
static void emit_swapgs(struct trans *tr)
{
	struct emit *e = tr->e;

	put_load(e, T0, SLOT(FRAME_VCPU));
	put_load(e, T1, MEM_BASE(T0, VCPU(msr.kernel_gs_base)));
	put_store(e, SLOT(FRAME_TMP0), T1);
	put_load(e, T1, SLOT(FRAME_GS));
	put_store(e, MEM_BASE(T0, VCPU(msr.kernel_gs_base)), T1);
	put_load(e, T1, SLOT(FRAME_TMP0));
	put_store(e, MEM_BASE(T0, VCPU(seg[SEG_GS].base)), T1);
	put_store(e, SLOT(FRAME_GS), T1);
}

static void emit_ac(struct trans *tr, struct tinsn *t)
{
	bool set = t->kind == K_STAC;

	flags_clobber(tr, t->live_before);
	put_rflags_bits(tr, set ? X86_EFLAGS_AC : 0, X86_EFLAGS_AC);
	tr->ctx = set ? TLB_KERNEL_AC : TLB_KERNEL;
	put_mov_imm(tr->e, T0, (u64)&tr->vcpu->arch.mmu->tlbs[tr->ctx]);
	put_store(tr->e, MEM_BASE(T1, VCPU(tlb)), T0);
}

static void emit_if(struct trans *tr, struct tinsn *t)
{
	struct cold *c;

	flags_clobber(tr, t->live_before);
	if (t->kind == K_CLI) {
		put_rflags_bits(tr, 0, X86_EFLAGS_IF);
		return;
	}
	/* Somebody waits for the window: the handler sees to it. */
	c = slow_new(tr, t);
	put_load(tr->e, T1, SLOT(FRAME_VCPU));
	put_rm(tr->e, W4, 0x80, 7, MEM_BASE(T1, VCPU(irq_window)));
	put8(tr->e, 0);
	put_jcc_cold(tr, CC_NE, c);
	put_rflags_bits(tr, X86_EFLAGS_IF, 0);
	slow_end(tr, c, t->live_after);
}

bool keeps_t1(const struct tinsn *t)
{
	return t->range >= 0 || t->kind == K_NOP || t->kind == K_JCC || (t->kind == K_LEA && !is_homed(t->insn.index)) ||
	       (t->kind == K_NATIVE && !t->mem && (!t->may_fault || t->in_range) && t->nr_homed < 2);
}

void emit_insn(struct trans *tr, struct tinsn *t)
{
	if (!keeps_t1(t))
		tr->t1_range = -1;
	x87_before(tr, t);
	switch (t->kind) {
	case K_HANDLER:
		emit_handler(tr, t);
		tr->slot = true;
		tr->host = tr->x87_live = false;
		break;
	case K_NATIVE: emit_native(tr, t); break;
	case K_NOP: break;
	case K_LEA: emit_lea(tr, t); break;
	case K_PUSH: emit_push(tr, t); break;
	case K_POP: emit_pop(tr, t); break;
	case K_LEAVE: emit_leave(tr, t); break;
	case K_PUSHF: emit_pushf(tr, t); break;
	case K_STAC:
	case K_CLAC: emit_ac(tr, t); break;
	case K_CLI:
	case K_STI: emit_if(tr, t); break;
	case K_CLD: emit_cld(tr, t); break;
	case K_SWAPGS: emit_swapgs(tr); break;
	case K_RET: emit_ret(tr, t); break;
	case K_LOOP:
	case K_JRCXZ: emit_count_branch(tr, t); break;
	default: emit_jump(tr, t); break;
	}
}

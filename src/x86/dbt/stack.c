/* SPDX-License-Identifier: MIT */
/* The stack instructions that have emitters: PUSH, POP, LEAVE, PUSHF. */
#include "x86/dbt/translate.h"

bool fits_imm(const struct trans *tr, u64 v)
{
	return tr->width == W4 || v == (u64)(s64)(s32)v;
}

void store_imm(struct trans *tr, struct hmem m, u64 v)
{
	put_rm(tr->e, tr->width, 0xc7, 0, m);
	put32(tr->e, v);
}

/* Push the value in FRAME_TMP0, a register or a constant. */
void emit_push(struct trans *tr, struct tinsn *t)
{
	struct cold *c = slow_new(tr, t);
	struct emit *e = tr->e;
	struct hmem m;
	u8 tmp;

	if (t->mem) {
		struct ea ea = ea_of(t);

		flags_clobber(tr, t->live_before);
		put_check(tr, &ea, word(tr), false, &m, c);
		put_fault_row(tr, c);
		put_rm(e, tr->width, 0x8b, T0, m);
		put_store(e, SLOT(FRAME_TMP0), T0);
	}
	tmp = put_stack_word(tr, t, true, &m, c);
	if (!t->mem && t->gpr == NOREG) {
		put_fault_row(tr, c);
		store_imm(tr, m, t->insn.imm);
	} else {
		u8 r = tmp;

		if (t->mem)
			put_load(e, tmp, SLOT(FRAME_TMP0));
		else
			r = gpr_to_host(e, t->gpr, tmp);
		put_fault_row(tr, c);
		put_rm(e, tr->width, 0x89, r, m);
	}
	put_add_rsp(tr, -(s32)word(tr));
	slow_end(tr, c, t->live_after);
}

void emit_pop(struct trans *tr, struct tinsn *t)
{
	struct cold *c = slow_new(tr, t);
	struct emit *e = tr->e;
	struct hmem m;
	u8 r = t->gpr;
	u8 host = is_homed(r) ? T0 : r == RSP ? GUEST_RSP : r;

	put_stack_word(tr, t, false, &m, c);
	put_fault_row(tr, c);
	put_rm(e, tr->width, 0x8b, host, m);
	if (r != RSP)
		put_add_rsp(tr, word(tr));
	if (is_homed(r))
		put_store(e, HOME(r), T0);
	slow_end(tr, c, t->live_after);
}

void emit_leave(struct trans *tr, struct tinsn *t)
{
	struct ea ea = ea_stack(tr, RBP, 0);
	struct cold *c = slow_new(tr, t);
	struct hmem m;

	flags_clobber(tr, t->live_before);
	put_check(tr, &ea, word(tr), false, &m, c);
	put_fault_row(tr, c);
	put_rm(tr->e, tr->width, 0x8b, T0, m);
	put_rm(tr->e, tr->width, 0x8d, GUEST_RSP, MEM_BASE(RBP, word(tr)));
	put_mov(tr->e, RBP, T0);
	slow_end(tr, c, t->live_after);
}

void emit_pushf(struct trans *tr, struct tinsn *t)
{
	struct cold *c = slow_new(tr, t);
	struct emit *e = tr->e;
	struct hmem m;
	u8 tmp;

	flags_clobber(tr, FLAGS_ALL);
	put_rm(e, W4, OPC_0F | 0xb6, T0, SLOT(FRAME_FLAGS + 1));
	put_rm(e, W4, OPC_0F | 0xb6, T1, SLOT(FRAME_FLAGS));
	put_alu_imm(e, W4, 4, T0, 0xd5);
	put_shift_imm(e, W4, 4, T1, 11);
	put_rr(e, W4, 0x09, T1, T0);
	put_load(e, T1, SLOT(FRAME_VCPU));
	put_load(e, T1, MEM_BASE(T1, VCPU(rflags)));
	put_alu_imm(e, W8, 4, T1, ~(s32)(X86_EFLAGS_OSZAPC | X86_EFLAGS_VM | X86_EFLAGS_RF));
	put_rr(e, W8, 0x09, T0, T1);
	put_store(e, SLOT(FRAME_TMP0), T1);
	tmp = put_check_stack(tr, -(s32)word(tr), true, &m, c);
	put_load(e, tmp, SLOT(FRAME_TMP0));
	put_fault_row(tr, c);
	put_store(e, m, tmp);
	put_add_rsp(tr, -8);
	slow_end(tr, c, t->live_after);
}

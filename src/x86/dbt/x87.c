/* SPDX-License-Identifier: MIT */
/*
 * x87 and MMX instructions in translated code: they are copied as others are, and run on the host's registers, which hold
 * the guest's while fpu.x87_live, in C as well (interp/x87.c).
 *
 *  1. A block looks at FRAME_X87 before its first x87 instruction, and again after a handler, which may have stored
 *     the registers. Where a slow path joins again they are live as before.
 *  2. An instruction that waits for exceptions has a fault row: a pending one leads to its handler, which raises it.
 *  3. The pointers to the last instruction and operand are the guest's, and nobody sees them but C. What translated code
 *     leaves in the frame (a note) is the site of that instruction and the operand's offset. A note is put off
 *     (trans.note) until something may call or leave. Slow paths write it for themselves, off the straight path.
 *  4. A note that was put off may be written twice, once by a slow path: registers that the offset
 *     is made of do not change in between.
 */
#include "x86/dbt/translate.h"
#include "x86/interp/thunk.h"

/* ---- called ------------------------------------------------------------------------------------ */

void dbt_make_x87_pointers(struct vcpu *vcpu)
{
	struct vcpu_arch *a = &vcpu->arch;
	u32 last = a->fpu.noted, with_operand = a->fpu.noted >> 32;
	struct insn insn;

	if (with_operand) {
		dbt_site_insn(a->dbt, &a->dbt->sites[with_operand - 1], &insn);
		a->fpu.fdp = a->fpu.noted_fdp;
		a->fpu.fds = a->seg[insn.seg].selector;
	}
	if (last) {
		dbt_site_insn(a->dbt, &a->dbt->sites[last - 1], &insn);
		a->fpu.fip = a->dbt->sites[last - 1].rip + a->fpu.noted_page;
		a->fpu.fcs = a->seg[SEG_CS].selector;
		a->fpu.fop = insn.imm2;
	}
	a->fpu.noted = 0;
}

void dbt_load_x87(struct vcpu *vcpu)
{
	dbt_take_x87_notes(vcpu);
	x87_load(vcpu);
}

/* ---- in a block -------------------------------------------------------------------------------- */

void emit_x87_check(struct trans *tr, const struct tinsn *t)
{
	struct cold *c;

	if (!t->x87 || tr->x87_live)
		return;
	flags_clobber(tr, t->live_before);
	c = cold_new(tr, COLD_X87);
	put_rm(tr->e, W4, 0x80, 7, SLOT(FRAME_X87));
	put8(tr->e, 0);
	put_jcc_cold(tr, CC_E, c);
	c->resume = tr->e->at;
	tr->x87_live = true;
	tr->t1_range = -1;
}

void x87_executed(struct trans *tr, const struct tinsn *t, u32 site)
{
	tr->note.insn = site + 1;
	if (t->mem) {
		tr->note.operand = site + 1;
		tr->note.with_operand = t;
	}
}

static bool writes_register(const struct tinsn *t, u8 r)
{
	return t->changes & BIT(r);
}

/* May the note be written after t, or by its slow path? */
static bool can_wait(const struct x87_note *note, const struct tinsn *t)
{
	const struct tinsn *with = note->with_operand;

	if (t->kind != K_NATIVE && t->kind != K_LEA && t->kind != K_NOP)
		return false;
	if (!with)
		return true;
	return (with->insn.base == INSN_NOREG || !writes_register(t, with->insn.base)) &&
	       (with->insn.index == INSN_NOREG || !writes_register(t, with->insn.index));
}

void x87_before(struct trans *tr, const struct tinsn *t)
{
	if (unlikely(tr->note.insn) && !can_wait(&tr->note, t)) {
		put_x87_note(tr, &tr->note);
		tr->note = (struct x87_note){ 0 };
	}
}

/* T0 is lost, and T1 if the operand's index is homed. */
void put_x87_note(struct trans *tr, const struct x87_note *note)
{
	struct emit *e = tr->e;
	struct ea ea;

	if (!note->insn)
		return;
	put_rm(e, W4, 0xc7, 0, SLOT(FRAME_X87_NOTE));
	put32(e, note->insn);
	if (tr->relative) {
		put_load(e, T0, SLOT(FRAME_PAGE));
		put_store(e, SLOT(FRAME_X87_PAGE), T0);
	} else {
		put_rm(e, W8, 0xc7, 0, SLOT(FRAME_X87_PAGE));
		put32(e, 0);
	}
	if (!note->with_operand)
		return;
	put_rm(e, W4, 0xc7, 0, SLOT(FRAME_X87_NOTE + 4));
	put32(e, note->operand);
	ea = ea_of(note->with_operand);
	if (is_homed(ea.index))
		tr->t1_range = -1;
	put_offset(tr, &ea, T1);
	put_store(e, SLOT(FRAME_X87_FDP), T0);
}

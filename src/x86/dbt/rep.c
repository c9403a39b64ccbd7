/* SPDX-License-Identifier: MIT */
/*
 * STOS and MOVS, with REP for up to a page, forwards, by the host's own: common code, one piece for each TLB context,
 * size and kind, in place of the call of the handler. Flags are dead or in the slot.
 *
 *  1. Called as the slow path is, with the site in T0. Whatever is not plain (DF, more than a page, the end
 *     of a page, a TLB miss) goes there, with nothing changed.
 *  2. rdi and rsi are the host's while the instruction runs and no longer. Nobody looks at them then but
 *     the fault rows' stubs, which make them the guest's again. What is done by then is done, as architected: the handler
 *     goes on from there.
 */
#include "x86/dbt/dbt.h"

#define CALLED 8	/* a return address is below the frame */
/* Kinds: */
#define REP_MOVS 1u	/* not STOS */
#define REP_ONCE 2u	/* without REP */
#define SPILLED_SITE SLOT(CALLED + FRAME_TMP1)
#define DST_DELTA SLOT(CALLED + FRAME_TMP0)

struct rep {
	struct emit *e;
	unsigned ctx, shift;
	bool once;		/* without REP */
	u32 slow[6], nr_slow;
};

static void slow_if(struct rep *p, u8 cc)
{
	p->slow[p->nr_slow++] = put_jcc_later(p->e, cc);
}

/* T1 = host - guest address for rcx elements, or one, at pointer. */
static void put_lookup(struct rep *p, u8 pointer, size_t tags)
{
	s32 tlb = offsetof(struct mmu, tlbs) + p->ctx * sizeof(struct tlb);
	struct emit *e = p->e;

	put_mov(e, T0, pointer);
	put_tlb_place(e);
	put_rm(e, W8, 0x03, T0, MEM_GS(T1, tlb + tags));
	put_lea(e, T0, p->once ? MEM_BASE(T0, 1 << p->shift) : MEM_SIB(T0, RCX, p->shift, 0));
	put_alu_imm(e, W8, 7, T0, PAGE_SIZE);
	slow_if(p, CC_A);
	put_load(e, T1, MEM_GS(T1, tlb + offsetof(struct tlb, delta)));
}

static void put_rep(struct rep *p, u8 opcode)
{
	if (!p->once)
		put8(p->e, 0xf3);
	if (p->shift == 3)
		put8(p->e, 0x48);
	else if (p->shift == 1)
		put8(p->e, 0x66);
	put8(p->e, p->shift ? opcode | 1 : opcode);
}

static void put_add(struct emit *e, bool sub, u8 reg, u8 by)
{
	put_rr(e, W8, sub ? 0x29 : 0x01, by, reg);
}

static u32 emit_rep(struct dbt *d, unsigned ctx, unsigned shift, bool movs, bool once)
{
	struct emit *e = &d->emit;
	struct rep p = { .e = e, .ctx = ctx, .shift = shift, .once = once };
	const u32 begin = e->at = (e->at + 15) & ~15u;
	struct dbt_fault_row *row;

	put_store(e, SPILLED_SITE, T0);
	put_load(e, T1, SLOT(CALLED + FRAME_VCPU));
	put_rm(e, W4, 0xf7, 0, MEM_BASE(T1, offsetof(struct vcpu, arch.rflags)));
	put32(e, X86_EFLAGS_DF);
	slow_if(&p, CC_NE);
	if (!once) {
		/* So that rcx elements are no more bytes than that, too. */
		put_alu_imm(e, W8, 7, RCX, PAGE_SIZE >> shift);
		slow_if(&p, CC_A);
	}
	put_lookup(&p, RDI, offsetof(struct tlb, write));
	if (movs) {
		put_store(e, DST_DELTA, T1);
		put_lookup(&p, RSI, offsetof(struct tlb, read));
		put_load(e, T0, DST_DELTA);
		put_add(e, false, RSI, T1);
	}
	put_add(e, false, RDI, movs ? T0 : T1);
	row = &d->faults[d->nr_faults++];
	row->at = e->at;
	put_rep(&p, movs ? 0xa4 : 0xaa);
	for (unsigned fault = 0; fault < 2; fault++) {
		if (fault)
			row->stub = e->at;
		put_add(e, true, RDI, movs ? T0 : T1);
		if (movs)
			put_add(e, true, RSI, T1);
		if (!fault)
			put8(e, 0xc3);
	}
	for (u32 i = 0; i < p.nr_slow; i++)
		patch_rel32(e, p.slow[i], e->at);
	put_load(e, T0, SPILLED_SITE);
	put_jmp(e, d->slow);
	return begin;
}

void dbt_emit_reps(struct dbt *d)
{
	for (unsigned ctx = 0; ctx < DBT_REP_CTXS; ctx++)
		for (unsigned shift = 0; shift < 4; shift++)
			for (unsigned kind = 0; kind < 4; kind++)
				d->rep[ctx][shift][kind] = emit_rep(d, ctx, shift, kind & REP_MOVS, kind & REP_ONCE);
}

u32 dbt_rep_stub(const struct dbt *d, unsigned ctx, const ZydisDecodedInstruction *zi, const struct insn *insn)
{
	unsigned kind = insn->flags & (INSN_REP | INSN_REPNE) ? 0 : REP_ONCE;

	if (zi->meta.category != ZYDIS_CATEGORY_STRINGOP || zi->address_width != 64 || zi->machine_mode != ZYDIS_MACHINE_MODE_LONG_64 || ctx >= DBT_REP_CTXS)
		return d->slow;
	switch (zi->mnemonic) {
	case ZYDIS_MNEMONIC_MOVSB:
	case ZYDIS_MNEMONIC_MOVSW:
	case ZYDIS_MNEMONIC_MOVSD:
	case ZYDIS_MNEMONIC_MOVSQ:
		if (insn->seg >= SEG_FS)
			return d->slow;
		kind |= REP_MOVS;
		break;
	case ZYDIS_MNEMONIC_STOSB:
	case ZYDIS_MNEMONIC_STOSW:
	case ZYDIS_MNEMONIC_STOSD:
	case ZYDIS_MNEMONIC_STOSQ:
		break;
	default:
		return d->slow;
	}
	return d->rep[ctx][__builtin_ctz(insn->opsize)][kind];
}

bool dbt_is_rep_stub(const struct dbt *d, u32 at)
{
	for (unsigned i = 0; i < sizeof(d->rep) / sizeof(u32); i++)
		if ((&d->rep[0][0][0])[i] == at)
			return true;
	return false;
}

/* SPDX-License-Identifier: MIT */
/*
 * LOCKed instructions of programs, where nobody can tell whether they are atomic (kvm/sole.c): they are copied without LOCK. XCHG with
 * memory has one that cannot be taken away, and becomes two moves.
 *
 *  1. It is all in the mode key (x86/mode.c): blocks, records and jump tables of code that is LOCKed and of code that is not never meet.
 *     Handlers, to which slow paths lead, are LOCKed.
 *  2. What has an immediate that leaves every operand as it was is a fence, and remains one.
 *  3. The look-up of XCHG is one for writing, of all its bytes, and both moves have fault rows. Neither of them finds anything of the guest
 *     changed: its register is written last, and one that lives in the frame waits in a slot that is nobody's.
 */
#include "x86/dbt/translate.h"

/* Does the instruction order what is before and after it, and nothing else? Its immediate leaves every operand as it was. */
static bool is_fence(const struct tinsn *t)
{
	const u64 mask = t->mem_size == 8 ? ~0ull : BIT_ULL(8 * t->mem_size) - 1;

	/* Group 1: 80, 81, 83 */
	if (t->encoding.nr_opcode != 1 || (t->encoding.opcode[0] & 0xfc) != 0x80)
		return false;
	switch (t->insn.mnemonic) {
	case ZYDIS_MNEMONIC_ADD:
	case ZYDIS_MNEMONIC_SUB:
	case ZYDIS_MNEMONIC_OR:
	case ZYDIS_MNEMONIC_XOR:
		return !(t->insn.imm & mask);
	case ZYDIS_MNEMONIC_AND:
		return (t->insn.imm & mask) == mask;
	default:
		return false;
	}
}

/* A program's instruction that is LOCKed, and need not be (kvm/sole.c). XCHG with memory always is. */
bool drops_lock(const struct trans *tr, const struct tinsn *t)
{
	if (!tr->vcpu->arch.unlocked || !t->mem)
		return false;
	return t->insn.mnemonic == ZYDIS_MNEMONIC_XCHG ? !t->high8 : t->encoding.lock && !is_fence(t);
}

static void put_sized_load(struct emit *e, unsigned size, u8 dst, struct hmem m)
{
	static const u32 ops[] = { OPC_0F | 0xb6, OPC_0F | 0xb7, 0x8b, 0x8b };

	put_rm(e, size == 8 ? W8 : W4, ops[__builtin_ctz(size)], dst, m);
}

/* One of the two is T0 or T1, which need a prefix: so SPL to DIL have theirs. */
static const u32 move_ops[] = { 0x88, OPC_66 | 0x89, 0x89, 0x89 };

static void put_sized_store(struct emit *e, unsigned size, struct hmem m, u8 src)
{
	put_rm(e, size == 8 ? W8 : W4, move_ops[__builtin_ctz(size)], src, m);
}

void put_exchange_moves(struct trans *tr, const struct tinsn *t, struct hmem m, u8 tmp, struct cold *c)
{
	const u8 guest = t->insn.reg, reg = guest == RSP ? GUEST_RSP : guest;
	const unsigned size = t->mem_size;
	struct emit *e = tr->e;

	put_fault_row(tr, c);
	put_sized_load(e, size, tmp, m);
	if (is_homed(guest)) {
		put_store(e, SLOT(FRAME_TMP0), tmp);
		put_load(e, tmp, HOME(guest));
		put_fault_row(tr, c);
		put_sized_store(e, size, m, tmp);
		put_load(e, tmp, SLOT(FRAME_TMP0));
		put_sized_store(e, size == 4 ? 8 : size, HOME(guest), tmp);
		return;
	}
	put_fault_row(tr, c);
	put_sized_store(e, size, m, reg);
	put_rr(e, size == 8 ? W8 : W4, move_ops[__builtin_ctz(size)], tmp, reg);
}

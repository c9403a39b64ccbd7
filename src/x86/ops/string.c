/* SPDX-License-Identifier: MIT */
/*
 * MOVS, CMPS, STOS, LODS, SCAS and their REP forms.
 *
 * A repetition retires iteration by iteration: registers are exact after each,
 * so a fault, an exit or a request simply stops there with rip on the
 * instruction. Runs that stay in one page of plain RAM are moved at once.
 */
#include "x86/interp/operand.h"
#include "x86/ops/flags.h"

#include "host/host.h"
#include "x86/debug.h"

static inline u64 asize_mask(const struct insn *insn)
{
	return insn->addrsize == 8 ? ~0ull : insn->addrsize == 4 ? 0xffffffffull : 0xffffull;
}

static inline u64 str_reg(const struct vcpu *vcpu, const struct insn *insn, unsigned r)
{
	return vcpu->arch.regs[r] & asize_mask(insn);
}

static inline void str_advance(struct vcpu *vcpu, const struct insn *insn, unsigned r, s64 by)
{
	gpr_write(vcpu, r, insn->addrsize, false, vcpu->arch.regs[r] + by);
}

static inline s64 str_step(const struct vcpu *vcpu, const struct insn *insn)
{
	return vcpu->arch.rflags & X86_EFLAGS_DF ? -(s64)insn->opsize : (s64)insn->opsize;
}

static enum exec str_load(struct vcpu *vcpu, const struct insn *insn, enum seg seg, unsigned reg, u64 *val)
{
	gva_t va;
	enum exec r = seg_linear(vcpu, seg, str_reg(vcpu, insn, reg), insn->opsize, false, &va);

	return r == EXEC_OK ? mem_load(vcpu, va, insn->opsize, val) : r;
}

static enum exec str_store(struct vcpu *vcpu, const struct insn *insn, u64 val)
{
	gva_t va;
	enum exec r = seg_linear(vcpu, SEG_ES, str_reg(vcpu, insn, RDI), insn->opsize, true, &va);

	return r == EXEC_OK ? mem_store(vcpu, va, insn->opsize, val) : r;
}

/* ---- one iteration each ----------------------------------------------------------- */

static enum exec movs_once(struct vcpu *vcpu, const struct insn *insn)
{
	u64 val;
	enum exec r = str_load(vcpu, insn, insn->seg, RSI, &val);

	if (r == EXEC_OK)
		r = str_store(vcpu, insn, val);
	if (r != EXEC_OK)
		return r;
	str_advance(vcpu, insn, RSI, str_step(vcpu, insn));
	str_advance(vcpu, insn, RDI, str_step(vcpu, insn));
	return EXEC_OK;
}

static enum exec stos_once(struct vcpu *vcpu, const struct insn *insn)
{
	enum exec r = str_store(vcpu, insn, vcpu->arch.regs[RAX]);

	if (r == EXEC_OK)
		str_advance(vcpu, insn, RDI, str_step(vcpu, insn));
	return r;
}

static enum exec lods_once(struct vcpu *vcpu, const struct insn *insn)
{
	u64 val;
	enum exec r = str_load(vcpu, insn, insn->seg, RSI, &val);

	if (r != EXEC_OK)
		return r;
	gpr_write(vcpu, RAX, insn->opsize, false, val);
	str_advance(vcpu, insn, RSI, str_step(vcpu, insn));
	return EXEC_OK;
}

/* Which operand's fault comes first is the CPU's choice. */
static enum exec cmps_once(struct vcpu *vcpu, const struct insn *insn)
{
	bool di_first = !host_is_amd();
	u64 a, b;
	enum exec r = di_first ? str_load(vcpu, insn, SEG_ES, RDI, &b) : EXEC_OK;

	if (r == EXEC_OK)
		r = str_load(vcpu, insn, insn->seg, RSI, &a);
	if (r == EXEC_OK && !di_first)
		r = str_load(vcpu, insn, SEG_ES, RDI, &b);
	if (r != EXEC_OK)
		return r;
	alu_cmp(insn->opsize, &a, b, &vcpu->arch.rflags);
	str_advance(vcpu, insn, RSI, str_step(vcpu, insn));
	str_advance(vcpu, insn, RDI, str_step(vcpu, insn));
	return EXEC_OK;
}

static enum exec scas_once(struct vcpu *vcpu, const struct insn *insn)
{
	u64 a = vcpu->arch.regs[RAX], b;
	enum exec r = str_load(vcpu, insn, SEG_ES, RDI, &b);

	if (r != EXEC_OK)
		return r;
	alu_cmp(insn->opsize, &a, b, &vcpu->arch.rflags);
	str_advance(vcpu, insn, RDI, str_step(vcpu, insn));
	return EXEC_OK;
}

/* ---- runs within a page ---------------------------------------------------------------- */

/* Iterations, at most count, from the offset in reg that stay in one page and do not wrap the offset. */
static u64 run_length(const struct vcpu *vcpu, const struct insn *insn, gva_t va, unsigned reg, u64 count)
{
	u64 in_page = (PAGE_SIZE - (va & ~PAGE_MASK)) / insn->opsize;
	u64 to_wrap = (asize_mask(insn) - str_reg(vcpu, insn, reg)) / insn->opsize;

	return min(count, min(in_page, to_wrap));
}

/* Does the limit alone say what may be accessed? */
static bool segment_is_plain(const struct segment *s, bool write)
{
	unsigned type = s->ar & AR_TYPE;

	if (s->ar & AR_UNUSABLE || (type & 0xc) == 4) /* expand-down */
		return false;
	return write ? (type & 0xa) == 2 : (type & 0xa) != 8;
}

static bool run_pointer(struct vcpu *vcpu, const struct insn *insn, enum seg seg, unsigned reg,
			bool write, u64 *count, u8 **p)
{
	gva_t va;
	unsigned idx;
	u64 tag;

	/* A fault is found again, and reported, by the single iteration that follows. */
	if (!in_64bit_mode(vcpu) &&
	    (!segment_is_plain(&vcpu->arch.seg[seg], write) ||
	     str_reg(vcpu, insn, reg) + *count * insn->opsize - 1 > vcpu->arch.seg[seg].limit))
		return false;
	va = in_64bit_mode(vcpu) ? str_reg(vcpu, insn, reg) + (seg >= SEG_FS ? vcpu->arch.seg[seg].base : 0) :
				   (u32)(vcpu->arch.seg[seg].base + str_reg(vcpu, insn, reg));
	*count = run_length(vcpu, insn, va, reg, *count);
	if (*count < 2)
		return false;
	idx = tlb_index(va);
	tag = write ? vcpu->arch.tlb->write[idx] : vcpu->arch.tlb->read[idx];
	if (va + tag >= PAGE_SIZE)
		return false;
	*p = (u8 *)(va + vcpu->arch.tlb->delta[idx]);
	return true;
}

static u64 clamp_count(u64 count, const struct insn *insn)
{
	return min(count, (u64)PAGE_SIZE / insn->opsize);
}

/* Iterations done at once, 0 if a single one must go the slow way. */
static u64 movs_run(struct vcpu *vcpu, const struct insn *insn, u64 count)
{
	u8 *src, *dst;
	u64 n = clamp_count(count, insn), bytes, left;

	if ((vcpu->arch.rflags & X86_EFLAGS_DF) ||
	    !run_pointer(vcpu, insn, insn->seg, RSI, false, &n, &src) ||
	    !run_pointer(vcpu, insn, SEG_ES, RDI, true, &n, &dst))
		return 0;
	bytes = n * insn->opsize;
	if (dst > src && dst < src + bytes && (u64)(dst - src) < 8)
		return 0; /* overlap within an element, or within what host_copy() moves at a time: order matters */
	left = host_copy(dst, src, bytes);
	n = (bytes - left) / insn->opsize;
	str_advance(vcpu, insn, RSI, n * insn->opsize);
	str_advance(vcpu, insn, RDI, n * insn->opsize);
	return n;
}

static u64 stos_run(struct vcpu *vcpu, const struct insn *insn, u64 count)
{
	u8 *dst;
	u64 n = clamp_count(count, insn), i, val = vcpu->arch.regs[RAX];

	if ((vcpu->arch.rflags & X86_EFLAGS_DF) || !run_pointer(vcpu, insn, SEG_ES, RDI, true, &n, &dst))
		return 0;
	if (gpr_read(vcpu, RAX, insn->opsize, false) == 0 || insn->opsize == 1) {
		n = (n * insn->opsize - host_set(dst, (u8)val, n * insn->opsize)) / insn->opsize;
	} else {
		for (i = 0; i < n && host_store(dst + i * insn->opsize, insn->opsize, val); i++)
			;
		n = i;
	}
	str_advance(vcpu, insn, RDI, n * insn->opsize);
	return n;
}

/* ---- repetition -------------------------------------------------------------------------------- */

typedef enum exec (*str_once_fn)(struct vcpu *vcpu, const struct insn *insn);
typedef u64 (*str_run_fn)(struct vcpu *vcpu, const struct insn *insn, u64 count);

/*
 * What Intel's CPUs make of a repetition that ends early, or before it began: flags as before the
 * instruction if it faults, and with 32-bit addresses in 64-bit mode the upper halves of RCX, and of
 * what MOVS and STOS point with, cleared.
 */
static never_inline void str_repeat_intel(struct vcpu *vcpu, const struct insn *insn, str_run_fn run, u64 flags,
					  enum exec r)
{
	if (r == EXEC_FAULT)
		vcpu->arch.rflags = (vcpu->arch.rflags & ~X86_EFLAGS_OSZAPC) | (flags & X86_EFLAGS_OSZAPC);
	if (insn->addrsize != 4 || !in_64bit_mode(vcpu))
		return;
	vcpu->arch.regs[RCX] = (u32)vcpu->arch.regs[RCX];
	if (run == movs_run)
		vcpu->arch.regs[RSI] = (u32)vcpu->arch.regs[RSI];
	if (run)
		vcpu->arch.regs[RDI] = (u32)vcpu->arch.regs[RDI];
}

/* compare: stop by ZF, as REPE (want true) or REPNE does. */
static inline enum exec str_repeat_any(struct vcpu *vcpu, const struct insn *insn, str_once_fn once,
				       str_run_fn run, bool compare)
{
	for (;;) {
		u64 count = str_reg(vcpu, insn, RCX), done = 0;
		enum exec r;

		if (!count)
			return EXEC_OK;
		if (run && count > 1 && likely(!debug_is_stepped(vcpu)))
			done = run(vcpu, insn, count);
		if (!done) {
			r = once(vcpu, insn);
			if (r != EXEC_OK)
				return r;
			mmio_boundary(vcpu);
			done = 1;
		}
		gpr_write(vcpu, RCX, insn->addrsize, false, count - done);
		if (compare && !(vcpu->arch.rflags & X86_EFLAGS_ZF) == !(insn->flags & INSN_REPNE))
			return EXEC_OK;
		if (count == done)
			return EXEC_OK;
		if (unlikely(debug_is_stepped(vcpu)))
			debug_step_trap(vcpu);
		/* A trap, of a data breakpoint too, comes between two iterations. */
		if (unlikely(vcpu_has_requests(vcpu)) || unlikely(vcpu->arch.db_trap) ||
		    unlikely(vcpu->arch.block_abort))
			return EXEC_RETRY;
	}
}

static inline enum exec str_repeat(struct vcpu *vcpu, const struct insn *insn, str_once_fn once,
				   str_run_fn run, bool compare)
{
	u64 flags = vcpu->arch.rflags;
	enum exec r;

	if (!(insn->flags & (INSN_REP | INSN_REPNE)))
		return once(vcpu, insn);
	r = str_repeat_any(vcpu, insn, once, run, compare);
	if (!host_is_amd())
		str_repeat_intel(vcpu, insn, run, flags, r);
	return r;
}

static enum exec op_movs(struct vcpu *vcpu, const struct insn *insn)
{
	return str_repeat(vcpu, insn, movs_once, movs_run, false);
}

static enum exec op_stos(struct vcpu *vcpu, const struct insn *insn)
{
	return str_repeat(vcpu, insn, stos_once, stos_run, false);
}

static enum exec op_lods(struct vcpu *vcpu, const struct insn *insn)
{
	return str_repeat(vcpu, insn, lods_once, NULL, false);
}

static enum exec op_cmps(struct vcpu *vcpu, const struct insn *insn)
{
	return str_repeat(vcpu, insn, cmps_once, NULL, true);
}

static enum exec op_scas(struct vcpu *vcpu, const struct insn *insn)
{
	return str_repeat(vcpu, insn, scas_once, NULL, true);
}

static const struct str_row {
	u16 mnemonic;
	u8 size;
	insn_fn fn;
} str_rows[] = {
	{ ZYDIS_MNEMONIC_MOVSB, 1, op_movs }, { ZYDIS_MNEMONIC_MOVSW, 2, op_movs },
	{ ZYDIS_MNEMONIC_MOVSD, 4, op_movs }, { ZYDIS_MNEMONIC_MOVSQ, 8, op_movs },
	{ ZYDIS_MNEMONIC_STOSB, 1, op_stos }, { ZYDIS_MNEMONIC_STOSW, 2, op_stos },
	{ ZYDIS_MNEMONIC_STOSD, 4, op_stos }, { ZYDIS_MNEMONIC_STOSQ, 8, op_stos },
	{ ZYDIS_MNEMONIC_LODSB, 1, op_lods }, { ZYDIS_MNEMONIC_LODSW, 2, op_lods },
	{ ZYDIS_MNEMONIC_LODSD, 4, op_lods }, { ZYDIS_MNEMONIC_LODSQ, 8, op_lods },
	{ ZYDIS_MNEMONIC_CMPSB, 1, op_cmps }, { ZYDIS_MNEMONIC_CMPSW, 2, op_cmps },
	{ ZYDIS_MNEMONIC_CMPSD, 4, op_cmps }, { ZYDIS_MNEMONIC_CMPSQ, 8, op_cmps },
	{ ZYDIS_MNEMONIC_SCASB, 1, op_scas }, { ZYDIS_MNEMONIC_SCASW, 2, op_scas },
	{ ZYDIS_MNEMONIC_SCASD, 4, op_scas }, { ZYDIS_MNEMONIC_SCASQ, 8, op_scas },
};

/* The DS:rSI operand carries the segment override; ES:rDI cannot be overridden. */
static u8 source_segment(const struct decode_ctx *ctx)
{
	for (unsigned i = 0; i < ctx->zi->operand_count; i++) {
		const ZydisDecodedOperand *op = &ctx->ops[i];
		bool high8;

		if (op->type == ZYDIS_OPERAND_TYPE_MEMORY &&
		    gpr_from_zydis(op->mem.base, &high8) == RSI)
			return seg_from_zydis(op->mem.segment);
	}
	return SEG_DS;
}

insn_fn ops_string_select(const struct decode_ctx *ctx, struct insn *insn)
{
	for (unsigned i = 0; i < ARRAY_SIZE(str_rows); i++) {
		if (str_rows[i].mnemonic != ctx->zi->mnemonic)
			continue;
		/* MOVSD and CMPSD are also SSE2 mnemonics, with visible operands. */
		if (ctx->zi->meta.category != ZYDIS_CATEGORY_STRINGOP)
			return NULL;
		insn->opsize = str_rows[i].size;
		insn->addrsize = ctx->zi->address_width / 8;
		insn->seg = source_segment(ctx);
		return str_rows[i].fn;
	}
	return NULL;
}

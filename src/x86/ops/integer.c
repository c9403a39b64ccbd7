/* SPDX-License-Identifier: MIT */
/*
 * Integer instructions in C: the common ones, because a C handler is faster
 * than a thunk, and those the host cannot run for us (BCD, which 64-bit mode lacks;
 * bit tests on memory, which reach outside their operand; XLAT). What is not
 * claimed here goes to a thunk: LOCKed forms, multiplication, rare shapes.
 *
 * Handlers exist per operation, operand shape and size, from macros; the size
 * is a compile-time constant in each, so the helpers collapse to one instruction.
 */
#include "host/host.h"
#include "x86/interp/operand.h"
#include "x86/ops/flags.h"

/* Shapes: RR rm,reg  RM reg,[mem]  MR [mem],reg  RI rm,imm  MI [mem],imm */
enum shape { SHAPE_RR, SHAPE_RM, SHAPE_MR, SHAPE_RI, SHAPE_MI, NR_SHAPES };

static inline u64 read_reg(const struct vcpu *vcpu, const struct insn *insn, unsigned size)
{
	return gpr_read(vcpu, insn->reg, size, size == 1 && (insn->flags & INSN_HIGH8_REG));
}

static inline u64 read_rm(const struct vcpu *vcpu, const struct insn *insn, unsigned size)
{
	return gpr_read(vcpu, insn->rm, size, size == 1 && (insn->flags & INSN_HIGH8_RM));
}

static inline void write_reg(struct vcpu *vcpu, const struct insn *insn, unsigned size, u64 val)
{
	gpr_write(vcpu, insn->reg, size, size == 1 && (insn->flags & INSN_HIGH8_REG), val);
}

static inline void write_rm(struct vcpu *vcpu, const struct insn *insn, unsigned size, u64 val)
{
	gpr_write(vcpu, insn->rm, size, size == 1 && (insn->flags & INSN_HIGH8_RM), val);
}

static inline enum exec load_mem(struct vcpu *vcpu, const struct insn *insn, unsigned size, u64 *val)
{
	gva_t va;
	enum exec r = insn_linear(vcpu, insn, size, false, &va);

	return likely(r == EXEC_OK) ? mem_load(vcpu, va, size, val) : r;
}

static inline enum exec store_mem(struct vcpu *vcpu, const struct insn *insn, unsigned size, u64 val)
{
	gva_t va;
	enum exec r = insn_linear(vcpu, insn, size, true, &va);

	return likely(r == EXEC_OK) ? mem_store(vcpu, va, size, val) : r;
}

/* Read for modification: faults are reported as for a write, before anything is read. */
static inline enum exec load_rmw(struct vcpu *vcpu, const struct insn *insn, unsigned size, gva_t *va,
				 u64 *val)
{
	struct tlb *tlb = vcpu->arch.tlb;
	enum exec r = insn_linear(vcpu, insn, size, true, va);

	if (unlikely(r != EXEC_OK))
		return r;
	if (unlikely(*va + tlb->write[tlb_index(*va)] > PAGE_SIZE - size)) {
		*val = 0;
		return mem_read(vcpu, *va, val, size, mmu_data_access(vcpu, MMU_RMW));
	}
	return mem_load(vcpu, *va, size, val);
}

/* ---- two-operand arithmetic ----------------------------------------------------- */

#define OP_ALU_SIZE(name, size, writes)                                         \
static enum exec op_##name##_rr_##size(struct vcpu *vcpu, const struct insn *insn) \
{                                                                               \
	u64 a = read_rm(vcpu, insn, size);                                      \
	alu_##name(size, &a, read_reg(vcpu, insn, size), &vcpu->arch.rflags);   \
	if (writes)                                                             \
		write_rm(vcpu, insn, size, a);                                  \
	return EXEC_OK;                                                         \
}                                                                               \
static enum exec op_##name##_ri_##size(struct vcpu *vcpu, const struct insn *insn) \
{                                                                               \
	u64 a = read_rm(vcpu, insn, size);                                      \
	alu_##name(size, &a, insn->imm, &vcpu->arch.rflags);                    \
	if (writes)                                                             \
		write_rm(vcpu, insn, size, a);                                  \
	return EXEC_OK;                                                         \
}                                                                               \
static enum exec op_##name##_rm_##size(struct vcpu *vcpu, const struct insn *insn) \
{                                                                               \
	u64 b, a;                                                               \
	enum exec r = load_mem(vcpu, insn, size, &b);                           \
	if (unlikely(r != EXEC_OK))                                             \
		return r;                                                       \
	a = read_reg(vcpu, insn, size);                                         \
	alu_##name(size, &a, b, &vcpu->arch.rflags);                            \
	if (writes)                                                             \
		write_reg(vcpu, insn, size, a);                                 \
	return EXEC_OK;                                                         \
}                                                                               \
static inline enum exec op_##name##_m_##size(struct vcpu *vcpu, const struct insn *insn, u64 b) \
{                                                                               \
	u64 a, flags = vcpu->arch.rflags;                                       \
	gva_t va = 0;                                                           \
	enum exec r = writes ? load_rmw(vcpu, insn, size, &va, &a)              \
			     : load_mem(vcpu, insn, size, &a);                  \
	if (unlikely(r != EXEC_OK))                                             \
		return r;                                                       \
	alu_##name(size, &a, b, &flags);                                        \
	if (writes) {                                                           \
		r = mem_store(vcpu, va, size, a);                               \
		if (unlikely(r != EXEC_OK))                                     \
			return r;                                               \
	}                                                                       \
	vcpu->arch.rflags = flags;                                              \
	return EXEC_OK;                                                         \
}                                                                               \
static enum exec op_##name##_mr_##size(struct vcpu *vcpu, const struct insn *insn) \
{                                                                               \
	return op_##name##_m_##size(vcpu, insn, read_reg(vcpu, insn, size));    \
}                                                                               \
static enum exec op_##name##_mi_##size(struct vcpu *vcpu, const struct insn *insn) \
{                                                                               \
	return op_##name##_m_##size(vcpu, insn, insn->imm);                     \
}

#define SHAPES(name, size)                                                      \
	{ op_##name##_rr_##size, op_##name##_rm_##size, op_##name##_mr_##size,  \
	  op_##name##_ri_##size, op_##name##_mi_##size }

#define OP_ALU(name, writes)                                                    \
OP_ALU_SIZE(name, 1, writes)                                                    \
OP_ALU_SIZE(name, 2, writes)                                                    \
OP_ALU_SIZE(name, 4, writes)                                                    \
OP_ALU_SIZE(name, 8, writes)                                                    \
static const insn_fn name##_table[4][NR_SHAPES] = {                             \
	SHAPES(name, 1), SHAPES(name, 2), SHAPES(name, 4), SHAPES(name, 8) };

OP_ALU(add, true)
OP_ALU(or, true)
OP_ALU(adc, true)
OP_ALU(sbb, true)
OP_ALU(and, true)
OP_ALU(sub, true)
OP_ALU(xor, true)
OP_ALU(cmp, false)
OP_ALU(test, false)

/* ---- MOV -------------------------------------------------------------------------- */

#define OP_MOV_SIZE(size)                                                       \
static enum exec op_mov_rr_##size(struct vcpu *vcpu, const struct insn *insn)   \
{                                                                               \
	write_rm(vcpu, insn, size, read_reg(vcpu, insn, size));                 \
	return EXEC_OK;                                                         \
}                                                                               \
static enum exec op_mov_ri_##size(struct vcpu *vcpu, const struct insn *insn)   \
{                                                                               \
	write_rm(vcpu, insn, size, insn->imm);                                  \
	return EXEC_OK;                                                         \
}                                                                               \
static enum exec op_mov_rm_##size(struct vcpu *vcpu, const struct insn *insn)   \
{                                                                               \
	u64 val;                                                                \
	enum exec r = load_mem(vcpu, insn, size, &val);                         \
	if (likely(r == EXEC_OK))                                               \
		write_reg(vcpu, insn, size, val);                               \
	return r;                                                               \
}                                                                               \
static enum exec op_mov_mr_##size(struct vcpu *vcpu, const struct insn *insn)   \
{                                                                               \
	return store_mem(vcpu, insn, size, read_reg(vcpu, insn, size));         \
}                                                                               \
static enum exec op_mov_mi_##size(struct vcpu *vcpu, const struct insn *insn)   \
{                                                                               \
	return store_mem(vcpu, insn, size, insn->imm);                          \
}
OP_MOV_SIZE(1)
OP_MOV_SIZE(2)
OP_MOV_SIZE(4)
OP_MOV_SIZE(8)
static const insn_fn mov_table[4][NR_SHAPES] = {
	SHAPES(mov, 1), SHAPES(mov, 2), SHAPES(mov, 4), SHAPES(mov, 8)
};

/* ---- widening moves, LEA, CMOV, SETcc ------------------------------------------------ */

static inline u64 sign_extend(u64 val, unsigned size)
{
	switch (size) {
	case 1: return (s64)(s8)val;
	case 2: return (s64)(s16)val;
	case 4: return (s64)(s32)val;
	default: return val;
	}
}

/* memsize is the source's size for both shapes. */
static enum exec op_movzx_rr(struct vcpu *vcpu, const struct insn *insn)
{
	gpr_write(vcpu, insn->reg, insn->opsize, false, read_rm(vcpu, insn, insn->memsize));
	return EXEC_OK;
}

static enum exec op_movsx_rr(struct vcpu *vcpu, const struct insn *insn)
{
	gpr_write(vcpu, insn->reg, insn->opsize, false,
		  sign_extend(read_rm(vcpu, insn, insn->memsize), insn->memsize));
	return EXEC_OK;
}

static enum exec op_movzx_rm(struct vcpu *vcpu, const struct insn *insn)
{
	u64 val;
	enum exec r = load_mem(vcpu, insn, insn->memsize, &val);

	if (likely(r == EXEC_OK))
		gpr_write(vcpu, insn->reg, insn->opsize, false, val);
	return r;
}

static enum exec op_movsx_rm(struct vcpu *vcpu, const struct insn *insn)
{
	u64 val;
	enum exec r = load_mem(vcpu, insn, insn->memsize, &val);

	if (likely(r == EXEC_OK))
		gpr_write(vcpu, insn->reg, insn->opsize, false, sign_extend(val, insn->memsize));
	return r;
}

static enum exec op_lea(struct vcpu *vcpu, const struct insn *insn)
{
	gpr_write(vcpu, insn->reg, insn->opsize, false, insn_offset(vcpu, insn));
	return EXEC_OK;
}

static enum exec op_lea64(struct vcpu *vcpu, const struct insn *insn)
{
	vcpu->arch.regs[insn->reg] = insn_offset(vcpu, insn);
	return EXEC_OK;
}

/* A false condition still zeroes the upper half of a 32-bit destination. */
static enum exec op_cmov_rr(struct vcpu *vcpu, const struct insn *insn)
{
	u64 val = flags_test(vcpu->arch.rflags, insn->cc) ? read_rm(vcpu, insn, insn->opsize) :
							    read_reg(vcpu, insn, insn->opsize);

	write_reg(vcpu, insn, insn->opsize, val);
	return EXEC_OK;
}

static enum exec op_cmov_rm(struct vcpu *vcpu, const struct insn *insn)
{
	u64 val;
	enum exec r = load_mem(vcpu, insn, insn->opsize, &val);

	if (unlikely(r != EXEC_OK))
		return r;
	if (!flags_test(vcpu->arch.rflags, insn->cc))
		val = read_reg(vcpu, insn, insn->opsize);
	write_reg(vcpu, insn, insn->opsize, val);
	return EXEC_OK;
}

static enum exec op_setcc_r(struct vcpu *vcpu, const struct insn *insn)
{
	write_rm(vcpu, insn, 1, flags_test(vcpu->arch.rflags, insn->cc));
	return EXEC_OK;
}

static enum exec op_setcc_m(struct vcpu *vcpu, const struct insn *insn)
{
	return store_mem(vcpu, insn, 1, flags_test(vcpu->arch.rflags, insn->cc));
}

/* ---- one-operand arithmetic and shifts -------------------------------------------------- */

#define OP_UNARY(name)                                                          \
static enum exec op_##name##_r(struct vcpu *vcpu, const struct insn *insn)      \
{                                                                               \
	u64 a = read_rm(vcpu, insn, insn->opsize);                              \
	alu_##name(insn->opsize, &a, &vcpu->arch.rflags);                       \
	write_rm(vcpu, insn, insn->opsize, a);                                  \
	return EXEC_OK;                                                         \
}                                                                               \
static enum exec op_##name##_m(struct vcpu *vcpu, const struct insn *insn)      \
{                                                                               \
	u64 a, flags = vcpu->arch.rflags;                                       \
	gva_t va;                                                               \
	enum exec r = load_rmw(vcpu, insn, insn->opsize, &va, &a);              \
	if (unlikely(r != EXEC_OK))                                             \
		return r;                                                       \
	alu_##name(insn->opsize, &a, &flags);                                   \
	r = mem_store(vcpu, va, insn->opsize, a);                               \
	if (likely(r == EXEC_OK))                                               \
		vcpu->arch.rflags = flags;                                      \
	return r;                                                               \
}
static inline void alu_not(unsigned size, u64 *a, u64 *rflags)
{
	*a = ~*a;
}
OP_UNARY(inc)
OP_UNARY(dec)
OP_UNARY(neg)
OP_UNARY(not)

#define OP_SHIFT(name)                                                          \
static enum exec op_##name##_ri(struct vcpu *vcpu, const struct insn *insn)     \
{                                                                               \
	u64 a = read_rm(vcpu, insn, insn->opsize);                              \
	alu_##name(insn->opsize, &a, insn->imm, &vcpu->arch.rflags);            \
	write_rm(vcpu, insn, insn->opsize, a);                                  \
	return EXEC_OK;                                                         \
}                                                                               \
static enum exec op_##name##_rcl(struct vcpu *vcpu, const struct insn *insn)    \
{                                                                               \
	u64 a = read_rm(vcpu, insn, insn->opsize);                              \
	u8 count = vcpu->arch.regs[RCX] & (insn->opsize == 8 ? 63 : 31);        \
	if (count)                                                              \
		alu_##name(insn->opsize, &a, count, &vcpu->arch.rflags);        \
	write_rm(vcpu, insn, insn->opsize, a);                                  \
	return EXEC_OK;                                                         \
}
OP_SHIFT(shl)
OP_SHIFT(shr)
OP_SHIFT(sar)

static enum exec op_xchg_rr(struct vcpu *vcpu, const struct insn *insn)
{
	u64 a = read_rm(vcpu, insn, insn->opsize), b = read_reg(vcpu, insn, insn->opsize);

	write_rm(vcpu, insn, insn->opsize, b);
	write_reg(vcpu, insn, insn->opsize, a);
	return EXEC_OK;
}

static enum exec op_nop(struct vcpu *vcpu, const struct insn *insn)
{
	return EXEC_OK;
}

/* ---- bit tests on memory: the bit offset is a signed register and reaches anywhere ---------- */

enum { BT_TEST, BT_SET, BT_RESET, BT_COMPLEMENT };

static void bt_linear_offset(const struct vcpu *vcpu, const struct insn *insn, u64 *off, unsigned *bit)
{
	unsigned bits = insn->opsize * 8;
	s64 index = sign_extend(read_reg(vcpu, insn, insn->opsize), insn->opsize);

	*bit = index & (bits - 1);
	*off = insn_offset(vcpu, insn) + (index >> (bits == 64 ? 6 : bits == 32 ? 5 : 4)) * insn->opsize;
	if (insn->addrsize == 4)
		*off = (u32)*off;
	else if (insn->addrsize == 2)
		*off = (u16)*off;
}

static u64 bt_apply(unsigned kind, u64 val, u64 mask)
{
	switch (kind) {
	case BT_SET: return val | mask;
	case BT_RESET: return val & ~mask;
	case BT_COMPLEMENT: return val ^ mask;
	default: return val;
	}
}

/* Atomic when memory is plain: compare-exchange until nobody interferes. */
static enum exec bt_modify(struct vcpu *vcpu, const struct insn *insn, gva_t va, u64 mask, u64 *old)
{
	enum exec r;
	u64 val = 0;
	void *p = mem_host_atomic(vcpu, va, insn->opsize, &r);

	if (r != EXEC_OK)
		return r;
	if (p && insn->opsize >= 4) {
		if (!host_load(p, insn->opsize, &val))
			return mem_access_failed();
		for (;;) {
			int done = host_cmpxchg(p, insn->opsize, &val, bt_apply(insn->imm2, val, mask));

			if (done < 0)
				return mem_access_failed();
			if (done)
				break;
		}
		*old = val;
		return EXEC_OK;
	}
	r = mem_read(vcpu, va, &val, insn->opsize, mmu_data_access(vcpu, MMU_RMW));
	if (r != EXEC_OK)
		return r;
	*old = val;
	return mem_store(vcpu, va, insn->opsize, bt_apply(insn->imm2, val, mask));
}

static enum exec op_bt_mr(struct vcpu *vcpu, const struct insn *insn)
{
	unsigned bit;
	u64 off, val;
	gva_t va;
	enum exec r;

	bt_linear_offset(vcpu, insn, &off, &bit);
	r = seg_linear(vcpu, insn->seg, off, insn->opsize, insn->imm2 != BT_TEST, &va);
	if (r != EXEC_OK)
		return r;
	if (insn->imm2 == BT_TEST)
		r = mem_load(vcpu, va, insn->opsize, &val);
	else
		r = bt_modify(vcpu, insn, va, BIT_ULL(bit), &val);
	if (r == EXEC_OK)
		flags_set(&vcpu->arch.rflags, X86_EFLAGS_CF, val >> bit & 1);
	return r;
}

/* ---- BCD and other things 64-bit mode lacks --------------------------------------------------- */

static u64 flags_szp(u8 al)
{
	u64 f = 0;

	if (al & 0x80)
		f |= X86_EFLAGS_SF;
	if (!al)
		f |= X86_EFLAGS_ZF;
	if (!(__builtin_popcount(al) & 1))
		f |= X86_EFLAGS_PF;
	return f;
}

/*
 * The flags that the manuals leave undefined are as AMD's CPUs have them: of the addition or
 * subtraction that corrects, before anything is masked.
 */
static enum exec op_daa_das(struct vcpu *vcpu, const struct insn *insn)
{
	bool sub = insn->mnemonic == ZYDIS_MNEMONIC_DAS;
	u64 rf = vcpu->arch.rflags, f = 0;
	u8 al = vcpu->arch.regs[RAX], old = al;
	bool cf = rf & X86_EFLAGS_CF;

	if ((al & 0xf) > 9 || (rf & X86_EFLAGS_AF)) {
		if (cf || (sub ? al < 6 : al > 0xf9))
			f |= X86_EFLAGS_CF;
		al += sub ? -6 : 6;
		f |= X86_EFLAGS_AF;
	}
	if (old > 0x99 || cf) {
		al += sub ? -0x60 : 0x60;
		f |= X86_EFLAGS_CF;
	} else if (!sub) {
		f &= ~(u64)X86_EFLAGS_CF;
	}
	if ((sub ? old & ~al : ~old & al) & 0x80)
		f |= X86_EFLAGS_OF;
	gpr_write(vcpu, RAX, 1, false, al);
	flags_set(&vcpu->arch.rflags, X86_EFLAGS_OSZAPC, f | flags_szp(al));
	return EXEC_OK;
}

static enum exec op_aaa_aas(struct vcpu *vcpu, const struct insn *insn)
{
	bool sub = insn->mnemonic == ZYDIS_MNEMONIC_AAS;
	u64 f = 0;
	u16 ax = vcpu->arch.regs[RAX], old = ax;

	if ((ax & 0xf) > 9 || (vcpu->arch.rflags & X86_EFLAGS_AF)) {
		ax += sub ? -0x106 : 0x106;
		f = X86_EFLAGS_AF | X86_EFLAGS_CF;
	}
	f |= flags_szp(ax) & X86_EFLAGS_PF;
	f |= (ax ? 0 : X86_EFLAGS_ZF) | (ax & 0x8000 ? X86_EFLAGS_SF : 0);
	if ((sub ? old & ~ax : ~old & ax) & 0x8000)
		f |= X86_EFLAGS_OF;
	gpr_write(vcpu, RAX, 2, false, ax & 0xff0f);
	flags_set(&vcpu->arch.rflags, X86_EFLAGS_OSZAPC, f);
	return EXEC_OK;
}

static enum exec op_aam(struct vcpu *vcpu, const struct insn *insn)
{
	u8 al = vcpu->arch.regs[RAX], base = insn->imm;

	if (!base)
		return queue_exception(vcpu, DE_VECTOR);
	gpr_write(vcpu, RAX, 2, false, (al / base) << 8 | al % base);
	flags_set(&vcpu->arch.rflags, X86_EFLAGS_OSZAPC, flags_szp(al % base));
	return EXEC_OK;
}

static enum exec op_aad(struct vcpu *vcpu, const struct insn *insn)
{
	u16 ax = vcpu->arch.regs[RAX];
	u8 old = ax, add = (ax >> 8) * (u8)insn->imm, al = old + add;
	u64 f = flags_szp(al);

	f |= (al < old ? X86_EFLAGS_CF : 0) | ((old ^ add ^ al) & X86_EFLAGS_AF);
	if ((old ^ al) & (add ^ al) & 0x80)
		f |= X86_EFLAGS_OF;
	gpr_write(vcpu, RAX, 2, false, al);
	flags_set(&vcpu->arch.rflags, X86_EFLAGS_OSZAPC, f);
	return EXEC_OK;
}

static enum exec op_salc(struct vcpu *vcpu, const struct insn *insn)
{
	gpr_write(vcpu, RAX, 1, false, vcpu->arch.rflags & X86_EFLAGS_CF ? 0xff : 0);
	return EXEC_OK;
}

static enum exec op_xlat(struct vcpu *vcpu, const struct insn *insn)
{
	u64 off = vcpu->arch.regs[RBX] + (u8)vcpu->arch.regs[RAX], val;
	gva_t va;
	enum exec r;

	if (insn->addrsize != 8)
		off = insn->addrsize == 4 ? (u32)off : (u16)off;
	r = seg_linear(vcpu, insn->seg, off, 1, false, &va);
	if (r == EXEC_OK)
		r = mem_load(vcpu, va, 1, &val);
	if (r == EXEC_OK)
		gpr_write(vcpu, RAX, 1, false, val);
	return r;
}

/* ---- flag bits, sign extension of the accumulator -------------------------------------------------- */

static enum exec op_carry(struct vcpu *vcpu, const struct insn *insn)
{
	u64 *f = &vcpu->arch.rflags;

	if (insn->mnemonic == ZYDIS_MNEMONIC_CLC)
		*f &= ~(u64)X86_EFLAGS_CF;
	else if (insn->mnemonic == ZYDIS_MNEMONIC_STC)
		*f |= X86_EFLAGS_CF;
	else
		*f ^= X86_EFLAGS_CF;
	return EXEC_OK;
}

static enum exec op_direction(struct vcpu *vcpu, const struct insn *insn)
{
	if (insn->mnemonic == ZYDIS_MNEMONIC_CLD)
		vcpu->arch.rflags &= ~(u64)X86_EFLAGS_DF;
	else
		vcpu->arch.rflags |= X86_EFLAGS_DF;
	return EXEC_OK;
}

/* CBW, CWDE, CDQE: opsize is the result's. */
static enum exec op_cbw(struct vcpu *vcpu, const struct insn *insn)
{
	u64 val = sign_extend(vcpu->arch.regs[RAX], insn->opsize / 2);

	gpr_write(vcpu, RAX, insn->opsize, false, val);
	return EXEC_OK;
}

/* CWD, CDQ, CQO */
static enum exec op_cwd(struct vcpu *vcpu, const struct insn *insn)
{
	s64 val = sign_extend(vcpu->arch.regs[RAX], insn->opsize);

	gpr_write(vcpu, RDX, insn->opsize, false, val >> 63);
	return EXEC_OK;
}

/* ---- selection ---------------------------------------------------------------------------------------- */

static unsigned size_index(unsigned size)
{
	return size == 1 ? 0 : size == 2 ? 1 : size == 4 ? 2 : 3;
}

static insn_fn select_two(const struct decode_ctx *ctx, struct insn *insn,
			  const insn_fn table[4][NR_SHAPES])
{
	enum operand_kind dst = operand_kind(ctx, 0), src = operand_kind(ctx, 1);
	unsigned size = operand_bytes(ctx, 0);
	enum shape shape;

	if (insn->flags & INSN_LOCK)
		return NULL;
	if (size != 1 && size != 2 && size != 4 && size != 8)
		return NULL;
	if (dst == OPERAND_GPR && src == OPERAND_GPR)
		shape = SHAPE_RR;
	else if (dst == OPERAND_GPR && src == OPERAND_MEM)
		shape = SHAPE_RM;
	else if (dst == OPERAND_MEM && src == OPERAND_GPR)
		shape = SHAPE_MR;
	else if (dst == OPERAND_GPR && src == OPERAND_IMM)
		shape = SHAPE_RI;
	else if (dst == OPERAND_MEM && src == OPERAND_IMM)
		shape = SHAPE_MI;
	else
		return NULL;
	if (shape == SHAPE_RR || shape == SHAPE_RI)
		operand_to_rm(ctx, 0, insn);
	if (shape == SHAPE_RM)
		operand_to_reg(ctx, 0, insn);
	if (shape == SHAPE_RR || shape == SHAPE_MR)
		operand_to_reg(ctx, 1, insn);
	if (shape == SHAPE_RI || shape == SHAPE_MI)
		insn->imm = operand_imm(ctx, 1);
	insn->opsize = size;
	return table[size_index(size)][shape];
}

static insn_fn select_widen(const struct decode_ctx *ctx, struct insn *insn, insn_fn rr, insn_fn rm)
{
	insn->opsize = operand_bytes(ctx, 0);
	insn->memsize = operand_bytes(ctx, 1);
	operand_to_reg(ctx, 0, insn);
	if (operand_kind(ctx, 1) == OPERAND_MEM)
		return rm;
	operand_to_rm(ctx, 1, insn);
	return rr;
}

/* With a register of 16 bits Intel's CPUs read no more than they write. */
static insn_fn select_movsxd(const struct decode_ctx *ctx, struct insn *insn)
{
	insn_fn fn = select_widen(ctx, insn, op_movsx_rr, op_movsx_rm);

	if (insn->opsize == 2 && host_is_intel())
		insn->memsize = 2;
	return fn;
}

static insn_fn select_one(const struct decode_ctx *ctx, struct insn *insn, insn_fn r, insn_fn m)
{
	if (insn->flags & INSN_LOCK)
		return NULL;
	insn->opsize = operand_bytes(ctx, 0);
	if (operand_kind(ctx, 0) == OPERAND_MEM)
		return m;
	operand_to_rm(ctx, 0, insn);
	return r;
}

static insn_fn select_shift(const struct decode_ctx *ctx, struct insn *insn, insn_fn ri, insn_fn rcl)
{
	if (operand_kind(ctx, 0) != OPERAND_GPR)
		return NULL;
	insn->opsize = operand_bytes(ctx, 0);
	operand_to_rm(ctx, 0, insn);
	if (operand_kind(ctx, 1) != OPERAND_IMM)
		return operand_kind(ctx, 1) == OPERAND_GPR ? rcl : NULL;
	insn->imm = operand_imm(ctx, 1) & (insn->opsize == 8 ? 63 : 31);
	return insn->imm ? ri : NULL;
}

static insn_fn select_bt(const struct decode_ctx *ctx, struct insn *insn, unsigned kind)
{
	if (operand_kind(ctx, 0) != OPERAND_MEM || operand_kind(ctx, 1) != OPERAND_GPR)
		return NULL;
	insn->opsize = operand_bytes(ctx, 1);
	operand_to_reg(ctx, 1, insn);
	insn->imm2 = kind;
	return op_bt_mr;
}

static int condition_code(const struct decode_ctx *ctx, ZydisMnemonic m, bool *cmov)
{
	static const struct {
		u16 cmov, set;
	} cc[16] = {
		{ ZYDIS_MNEMONIC_CMOVO, ZYDIS_MNEMONIC_SETO },
		{ ZYDIS_MNEMONIC_CMOVNO, ZYDIS_MNEMONIC_SETNO },
		{ ZYDIS_MNEMONIC_CMOVB, ZYDIS_MNEMONIC_SETB },
		{ ZYDIS_MNEMONIC_CMOVNB, ZYDIS_MNEMONIC_SETNB },
		{ ZYDIS_MNEMONIC_CMOVZ, ZYDIS_MNEMONIC_SETZ },
		{ ZYDIS_MNEMONIC_CMOVNZ, ZYDIS_MNEMONIC_SETNZ },
		{ ZYDIS_MNEMONIC_CMOVBE, ZYDIS_MNEMONIC_SETBE },
		{ ZYDIS_MNEMONIC_CMOVNBE, ZYDIS_MNEMONIC_SETNBE },
		{ ZYDIS_MNEMONIC_CMOVS, ZYDIS_MNEMONIC_SETS },
		{ ZYDIS_MNEMONIC_CMOVNS, ZYDIS_MNEMONIC_SETNS },
		{ ZYDIS_MNEMONIC_CMOVP, ZYDIS_MNEMONIC_SETP },
		{ ZYDIS_MNEMONIC_CMOVNP, ZYDIS_MNEMONIC_SETNP },
		{ ZYDIS_MNEMONIC_CMOVL, ZYDIS_MNEMONIC_SETL },
		{ ZYDIS_MNEMONIC_CMOVNL, ZYDIS_MNEMONIC_SETNL },
		{ ZYDIS_MNEMONIC_CMOVLE, ZYDIS_MNEMONIC_SETLE },
		{ ZYDIS_MNEMONIC_CMOVNLE, ZYDIS_MNEMONIC_SETNLE },
	};

	for (int i = 0; i < 16; i++) {
		*cmov = cc[i].cmov == m;
		if (*cmov || cc[i].set == m)
			return i;
	}
	return -1;
}

static insn_fn select_conditional(const struct decode_ctx *ctx, struct insn *insn)
{
	bool cmov;
	int cc = condition_code(ctx, ctx->zi->mnemonic, &cmov);

	if (cc < 0)
		return NULL;
	insn->cc = cc;
	if (!cmov)
		return select_one(ctx, insn, op_setcc_r, op_setcc_m);
	return select_widen(ctx, insn, op_cmov_rr, op_cmov_rm);
}

/* 0F 0D with a register: a NOP on Intel's CPUs, #UD on AMD's. */
static bool is_prefetch_of_register(const struct decode_ctx *ctx)
{
	return ctx->zi->opcode_map == ZYDIS_OPCODE_MAP_0F && ctx->zi->opcode == 0x0d && ctx->zi->raw.modrm.mod == 3;
}

static insn_fn select_fixed(const struct decode_ctx *ctx, struct insn *insn)
{
	switch (ctx->zi->mnemonic) {
	case ZYDIS_MNEMONIC_DAA:
	case ZYDIS_MNEMONIC_DAS:
		return op_daa_das;
	case ZYDIS_MNEMONIC_AAA:
	case ZYDIS_MNEMONIC_AAS:
		return op_aaa_aas;
	case ZYDIS_MNEMONIC_AAM:
	case ZYDIS_MNEMONIC_AAD:
		insn->imm = operand_imm(ctx, 0);
		return ctx->zi->mnemonic == ZYDIS_MNEMONIC_AAM ? op_aam : op_aad;
	case ZYDIS_MNEMONIC_SALC:
		return op_salc;
	case ZYDIS_MNEMONIC_XLAT:
		insn->addrsize = ctx->zi->address_width / 8;
		for (unsigned i = 0; i < ctx->zi->operand_count; i++)
			if (ctx->ops[i].type == ZYDIS_OPERAND_TYPE_MEMORY)
				insn->seg = seg_from_zydis(ctx->ops[i].mem.segment);
		return op_xlat;
	case ZYDIS_MNEMONIC_CLC:
	case ZYDIS_MNEMONIC_STC:
	case ZYDIS_MNEMONIC_CMC:
		return op_carry;
	case ZYDIS_MNEMONIC_CLD:
	case ZYDIS_MNEMONIC_STD:
		return op_direction;
	case ZYDIS_MNEMONIC_CBW:
	case ZYDIS_MNEMONIC_CWD:
		insn->opsize = 2;
		break;
	case ZYDIS_MNEMONIC_CWDE:
	case ZYDIS_MNEMONIC_CDQ:
		insn->opsize = 4;
		break;
	case ZYDIS_MNEMONIC_CDQE:
	case ZYDIS_MNEMONIC_CQO:
		insn->opsize = 8;
		break;
	default:
		return NULL;
	}
	return ctx->zi->mnemonic == ZYDIS_MNEMONIC_CBW || ctx->zi->mnemonic == ZYDIS_MNEMONIC_CWDE ||
	       ctx->zi->mnemonic == ZYDIS_MNEMONIC_CDQE ? op_cbw : op_cwd;
}

insn_fn ops_integer_select(const struct decode_ctx *ctx, struct insn *insn)
{
	switch (ctx->zi->mnemonic) {
	case ZYDIS_MNEMONIC_MOV: return select_two(ctx, insn, mov_table);
	case ZYDIS_MNEMONIC_ADD: return select_two(ctx, insn, add_table);
	case ZYDIS_MNEMONIC_OR: return select_two(ctx, insn, or_table);
	case ZYDIS_MNEMONIC_ADC: return select_two(ctx, insn, adc_table);
	case ZYDIS_MNEMONIC_SBB: return select_two(ctx, insn, sbb_table);
	case ZYDIS_MNEMONIC_AND: return select_two(ctx, insn, and_table);
	case ZYDIS_MNEMONIC_SUB: return select_two(ctx, insn, sub_table);
	case ZYDIS_MNEMONIC_XOR: return select_two(ctx, insn, xor_table);
	case ZYDIS_MNEMONIC_CMP: return select_two(ctx, insn, cmp_table);
	case ZYDIS_MNEMONIC_TEST: return select_two(ctx, insn, test_table);
	case ZYDIS_MNEMONIC_MOVZX: return select_widen(ctx, insn, op_movzx_rr, op_movzx_rm);
	case ZYDIS_MNEMONIC_MOVSX: return select_widen(ctx, insn, op_movsx_rr, op_movsx_rm);
	case ZYDIS_MNEMONIC_MOVSXD: return select_movsxd(ctx, insn);
	case ZYDIS_MNEMONIC_LEA:
		insn->opsize = operand_bytes(ctx, 0);
		operand_to_reg(ctx, 0, insn);
		return insn->opsize == 8 ? op_lea64 : op_lea;
	case ZYDIS_MNEMONIC_INC: return select_one(ctx, insn, op_inc_r, op_inc_m);
	case ZYDIS_MNEMONIC_DEC: return select_one(ctx, insn, op_dec_r, op_dec_m);
	case ZYDIS_MNEMONIC_NEG: return select_one(ctx, insn, op_neg_r, op_neg_m);
	case ZYDIS_MNEMONIC_NOT: return select_one(ctx, insn, op_not_r, op_not_m);
	case ZYDIS_MNEMONIC_SHL: return select_shift(ctx, insn, op_shl_ri, op_shl_rcl);
	case ZYDIS_MNEMONIC_SHR: return select_shift(ctx, insn, op_shr_ri, op_shr_rcl);
	case ZYDIS_MNEMONIC_SAR: return select_shift(ctx, insn, op_sar_ri, op_sar_rcl);
	case ZYDIS_MNEMONIC_BT: return select_bt(ctx, insn, BT_TEST);
	case ZYDIS_MNEMONIC_BTS: return select_bt(ctx, insn, BT_SET);
	case ZYDIS_MNEMONIC_BTR: return select_bt(ctx, insn, BT_RESET);
	case ZYDIS_MNEMONIC_BTC: return select_bt(ctx, insn, BT_COMPLEMENT);
	case ZYDIS_MNEMONIC_NOP:
		return is_prefetch_of_register(ctx) && host_is_amd() ? op_ud : op_nop;
	case ZYDIS_MNEMONIC_ENDBR32:
	case ZYDIS_MNEMONIC_ENDBR64: return op_nop;
	case ZYDIS_MNEMONIC_PAUSE: /* with REX.B it is XCHG R8 on AMD's CPUs, which ignores the F3 */
		if (!host_is_amd() || !(ctx->zi->attributes & ZYDIS_ATTRIB_HAS_REX) || !ctx->zi->raw.rex.B)
			return NULL;
		insn->opsize = ctx->zi->operand_width / 8;
		insn->rm = R8;
		insn->reg = RAX;
		insn->flags &= ~(INSN_HIGH8_RM | INSN_HIGH8_REG);
		return op_xchg_rr;
	case ZYDIS_MNEMONIC_XCHG:
		if (operand_kind(ctx, 0) != OPERAND_GPR || operand_kind(ctx, 1) != OPERAND_GPR)
			return NULL;
		insn->opsize = operand_bytes(ctx, 0);
		operand_to_rm(ctx, 0, insn);
		operand_to_reg(ctx, 1, insn);
		return op_xchg_rr;
	default: break;
	}
	insn_fn fn = select_conditional(ctx, insn);

	return fn ? fn : select_fixed(ctx, insn);
}

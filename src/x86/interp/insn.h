/* SPDX-License-Identifier: MIT */
/*
 * A decoded guest instruction and what the handlers of x86/ops may assume.
 *
 * A handler runs with arch.rip at its own instruction. Register operands are
 * read and written with the gpr_* helpers. It returns an enum exec
 * (base/exec.h); on anything but OK/END/BRANCH the guest-visible state is as if it had
 * not run, except for REP strings, which retire whole iterations.
 */
#ifndef SOFTKVM_X86_INTERP_INSN_H
#define SOFTKVM_X86_INTERP_INSN_H

#include <Zydis/Zydis.h>

#include "x86/mmu.h"
#include "x86/x86.h"

struct insn;
typedef enum exec (*insn_fn)(struct vcpu *vcpu, const struct insn *insn);

#define INSN_NOREG 0xff

enum insn_flags {
	INSN_MEM = BIT(0),	/* has a memory operand (base/index/scale/disp/seg valid) */
	INSN_RIP_REL = BIT(1),	/* disp is relative to the end of the instruction */
	INSN_LOCK = BIT(2),
	INSN_REP = BIT(3),	/* F3 */
	INSN_REPNE = BIT(4),	/* F2 */
	INSN_HIGH8_REG = BIT(5),/* reg names AH..DH: regs 0..3, bits 8..15 */
	INSN_HIGH8_RM = BIT(6),	/* rm names AH..DH */
	INSN_END_BLOCK = BIT(7),/* decoder: stop the block after this one */
	INSN_WRITES_MEM = BIT(8),
	INSN_READS_MEM = BIT(9),
	INSN_LEAVE_ENGINE = BIT(10), /* decoder: IRET; NMIs or interrupts may be deliverable afterwards */
};

/*
 * Operands: `reg` is ModRM.reg or the opcode's register, `rm` is ModRM.rm when
 * it names a register (INSN_NOREG when memory). Which one is source and which
 * destination is the handler's business (its name says: op_add_rm_r, op_add_r_rm, op_add_rm_imm).
 */
struct insn {
	insn_fn fn;
	u8 len;
	u8 opsize;		/* operand size in bytes: 1, 2, 4, 8 (16, 32 for vectors) */
	u8 addrsize;		/* 2, 4, 8 */
	u8 reg, rm;
	u8 base, index, scale;	/* INSN_NOREG: none; scale is the shift 0..3 */
	u8 seg;			/* enum seg of the memory operand, default applied */
	u8 cc;			/* condition code of Jcc/SETcc/CMOVcc */
	u16 flags;
	u16 mnemonic;		/* ZydisMnemonic */
	u16 memsize;		/* bytes accessed by the memory operand */
	s64 disp;
	u64 imm;		/* immediate sign-extended to 64 bits, branch displacement, or far offset */
	u32 imm2;		/* ENTER level, far selector */
	u32 thunk_flags;	/* interp/thunk.h */
	const void *thunk;	/* generated code (op_thunk) */
};

/* Effective offset of the memory operand, truncated to the address size. */
static inline u64 insn_offset(const struct vcpu *vcpu, const struct insn *insn)
{
	u64 off = insn->disp;

	if (insn->base != INSN_NOREG)
		off += vcpu->arch.regs[insn->base];
	if (insn->index != INSN_NOREG)
		off += vcpu->arch.regs[insn->index] << insn->scale;
	if (insn->flags & INSN_RIP_REL)
		off += vcpu->arch.rip + insn->len;
	if (insn->addrsize == 4)
		off = (u32)off;
	else if (insn->addrsize == 2)
		off = (u16)off;
	return off;
}

/* Linear address of the memory operand, segment-checked for size bytes. */
static inline enum exec insn_linear(struct vcpu *vcpu, const struct insn *insn, unsigned size,
				    bool write, gva_t *va)
{
	return seg_linear(vcpu, insn->seg, insn_offset(vcpu, insn), size, write, va);
}

/* 8-bit registers: high says AH..DH. 32-bit writes clear the upper half. */
static inline u64 gpr_read(const struct vcpu *vcpu, u8 reg, unsigned size, bool high8)
{
	u64 v = vcpu->arch.regs[reg];

	switch (size) {
	case 1: return high8 ? (u8)(v >> 8) : (u8)v;
	case 2: return (u16)v;
	case 4: return (u32)v;
	default: return v;
	}
}

static inline void gpr_write(struct vcpu *vcpu, u8 reg, unsigned size, bool high8, u64 val)
{
	u64 *r = &vcpu->arch.regs[reg];

	switch (size) {
	case 1:
		if (high8)
			*r = (*r & ~0xff00ull) | (u64)(u8)val << 8;
		else
			*r = (*r & ~0xffull) | (u8)val;
		break;
	case 2: *r = (*r & ~0xffffull) | (u16)val; break;
	case 4: *r = (u32)val; break;
	default: *r = val; break;
	}
}

/*
 * Handler selection. Each ops file exports one function that the decoder asks
 * in order (system, string, flow, integer): returns the handler for this decoded instruction, or NULL.
 * It may read everything Zydis decoded and may adjust the insn fields. Nothing claimed: the thunk allow-list; else #UD.
 */
struct decode_ctx {
	const ZydisDecodedInstruction *zi;
	const ZydisDecodedOperand *ops;	/* ZYDIS_MAX_OPERAND_COUNT */
	struct vcpu *vcpu;		/* mode only: CPL etc. may change before execution */
	const u8 *bytes;		/* zi->length of them */
};
insn_fn ops_system_select(const struct decode_ctx *ctx, struct insn *insn);	/* ops/system.c, ops/io.c, ops/far.c ... */
insn_fn ops_string_select(const struct decode_ctx *ctx, struct insn *insn);	/* ops/string.c: MOVS CMPS STOS LODS SCAS */
insn_fn ops_flow_select(const struct decode_ctx *ctx, struct insn *insn);	/* ops/flow.c: near Jcc JMP CALL RET LOOP, stack ops */
insn_fn ops_integer_select(const struct decode_ctx *ctx, struct insn *insn);	/* ops/integer.c: fast paths in C and what the host cannot run */
insn_fn ops_fpu_select(const struct decode_ctx *ctx, struct insn *insn);	/* ops/fpu.c: FXSAVE XSAVE FNSTENV EMMS LDMXCSR VZEROUPPER masked moves gathers */
insn_fn thunk_select(const struct decode_ctx *ctx, struct insn *insn);		/* interp/thunk.c: allow-list */

/* Handler of invalid or refused encodings: #UD. */
enum exec op_ud(struct vcpu *vcpu, const struct insn *insn);

/*
 * Zydis register -> our numbering. gpr_from_zydis: any GPR width to 0..15, sets *high8 for AH..DH; INSN_NOREG if not a GPR.
 */
u8 gpr_from_zydis(ZydisRegister reg, bool *high8);
u8 seg_from_zydis(ZydisRegister reg);

/* Stack helpers (ops/stack.h semantic): width = bytes pushed. Address uses stack_size, SS checks; rsp changes only on success. */
enum exec stack_push(struct vcpu *vcpu, unsigned size, u64 val);
enum exec stack_pop(struct vcpu *vcpu, unsigned size, u64 *val);
/* Near branch target check and set: truncates to opsize, checks CS limit / canonical (#GP(0)), sets rip. EXEC_BRANCH or EXEC_FAULT. */
enum exec branch_near(struct vcpu *vcpu, u64 target, unsigned opsize);

#endif

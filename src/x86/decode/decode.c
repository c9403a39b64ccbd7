/* SPDX-License-Identifier: MIT */
/*
 * From bytes to struct insn. Zydis knows the encodings; here they become our
 * operands, the mode decides what is legal, and each family of handlers is
 * asked whether it wants the instruction.
 *
 *  1. What is decided here depends on the bytes and on mode_key, nothing else:
 *     decoded instructions are shared by everything with the same two.
 *  2. An encoding nobody claims is #UD. There is no fallback that executes it.
 */
#include <string.h>

#include "host/host.h"
#include "x86/decode/decode.h"

enum exec op_ud(struct vcpu *vcpu, const struct insn *insn)
{
	return queue_ud(vcpu);
}

static enum exec op_nm(struct vcpu *vcpu, const struct insn *insn)
{
	return queue_exception(vcpu, NM_VECTOR);
}

static enum exec op_too_long(struct vcpu *vcpu, const struct insn *insn)
{
	return queue_gp(vcpu, 0);
}

u8 gpr_from_zydis(ZydisRegister reg, bool *high8)
{
	*high8 = false;
	if (reg >= ZYDIS_REGISTER_AL && reg <= ZYDIS_REGISTER_BL)
		return reg - ZYDIS_REGISTER_AL;
	if (reg >= ZYDIS_REGISTER_AH && reg <= ZYDIS_REGISTER_BH) {
		*high8 = true;
		return reg - ZYDIS_REGISTER_AH;
	}
	if (reg >= ZYDIS_REGISTER_SPL && reg <= ZYDIS_REGISTER_R15B)
		return reg - ZYDIS_REGISTER_SPL + RSP;
	if (reg >= ZYDIS_REGISTER_AX && reg <= ZYDIS_REGISTER_R15W)
		return reg - ZYDIS_REGISTER_AX;
	if (reg >= ZYDIS_REGISTER_EAX && reg <= ZYDIS_REGISTER_R15D)
		return reg - ZYDIS_REGISTER_EAX;
	if (reg >= ZYDIS_REGISTER_RAX && reg <= ZYDIS_REGISTER_R15)
		return reg - ZYDIS_REGISTER_RAX;
	return INSN_NOREG;
}

u8 seg_from_zydis(ZydisRegister reg)
{
	if (reg >= ZYDIS_REGISTER_ES && reg <= ZYDIS_REGISTER_GS)
		return reg - ZYDIS_REGISTER_ES;
	return SEG_DS;
}

/* ---- what the mode allows ---------------------------------------------------- */

static bool is_vector_or_mmx(const ZydisDecodedOperand *op, bool *mmx)
{
	ZydisRegisterClass class;

	if (op->type != ZYDIS_OPERAND_TYPE_REGISTER)
		return false;
	class = ZydisRegisterGetClass(op->reg.value);
	*mmx |= class == ZYDIS_REGCLASS_MMX;
	return class == ZYDIS_REGCLASS_XMM || class == ZYDIS_REGCLASS_YMM;
}

static insn_fn gate_vex(const struct vcpu *vcpu, const ZydisDecodedInstruction *zi)
{
	const struct vcpu_arch *a = &vcpu->arch;

	if (!a->protected_mode)
		return op_ud;
	switch (zi->meta.isa_ext) {
	case ZYDIS_ISA_EXT_BMI1:
	case ZYDIS_ISA_EXT_BMI2:
		return NULL;
	case ZYDIS_ISA_EXT_FMA4:
	case ZYDIS_ISA_EXT_AVX512VEX:
	case ZYDIS_ISA_EXT_KNC:
	case ZYDIS_ISA_EXT_KNCV:
	case ZYDIS_ISA_EXT_AMX_TILE:
		return op_ud;
	default:
		break;
	}
	if (!(a->cr4 & X86_CR4_OSXSAVE) ||
	    (a->xcr0 & (XFEATURE_SSE | XFEATURE_AVX)) != (XFEATURE_SSE | XFEATURE_AVX))
		return op_ud;
	return a->cr0 & X86_CR0_TS ? op_nm : NULL;
}

/* #UD or #NM that the control registers demand before anything else is looked at; NULL: none. */
static insn_fn feature_gate(const struct vcpu *vcpu, const ZydisDecodedInstruction *zi,
			    const ZydisDecodedOperand *ops)
{
	const struct vcpu_arch *a = &vcpu->arch;
	bool vector = false, mmx = false;

	switch (zi->encoding) {
	case ZYDIS_INSTRUCTION_ENCODING_LEGACY:
		break;
	case ZYDIS_INSTRUCTION_ENCODING_VEX:
		return gate_vex(vcpu, zi);
	default:
		return op_ud;
	}
	if (zi->mnemonic == ZYDIS_MNEMONIC_FWAIT)
		return NULL;
	if (zi->meta.isa_ext == ZYDIS_ISA_EXT_X87 || zi->mnemonic == ZYDIS_MNEMONIC_FISTTP)
		return a->cr0 & (X86_CR0_EM | X86_CR0_TS) ? op_nm : NULL;
	for (unsigned i = 0; i < zi->operand_count; i++)
		vector |= is_vector_or_mmx(&ops[i], &mmx);
	if (zi->mnemonic == ZYDIS_MNEMONIC_EMMS)
		mmx = true;
	if (zi->mnemonic == ZYDIS_MNEMONIC_LDMXCSR || zi->mnemonic == ZYDIS_MNEMONIC_STMXCSR)
		vector = true;
	if (!vector && !mmx)
		return NULL;
	if (a->cr0 & X86_CR0_EM)
		return op_ud;
	/* Forms of SSE that only touch MMX registers do not depend on OSFXSR. */
	if (vector && !(a->cr4 & X86_CR4_OSFXSR))
		return op_ud;
	return a->cr0 & X86_CR0_TS ? op_nm : NULL;
}

/* ---- operands ---------------------------------------------------------------------- */

/* Zydis 4.0 takes [disp32 + index] with REX.B and a 67h prefix for one with base R13D. */
static bool has_no_base(const ZydisDecodedInstruction *zi)
{
	return (zi->attributes & ZYDIS_ATTRIB_HAS_SIB) && zi->raw.modrm.mod == 0 && zi->raw.sib.base == 5;
}

static void set_memory(const ZydisDecodedInstruction *zi, const ZydisDecodedOperand *op, struct insn *insn)
{
	const ZydisDecodedOperandMem *mem = &op->mem;
	bool high8;

	insn->flags |= INSN_MEM;
	if (op->actions & ZYDIS_OPERAND_ACTION_MASK_READ)
		insn->flags |= INSN_READS_MEM;
	if (op->actions & ZYDIS_OPERAND_ACTION_MASK_WRITE)
		insn->flags |= INSN_WRITES_MEM;
	insn->seg = seg_from_zydis(mem->segment);
	insn->memsize = op->size / 8;
	insn->disp = has_no_base(zi) ? zi->raw.disp.value : mem->disp.value; /* zero without one */
	if (mem->base == ZYDIS_REGISTER_RIP || mem->base == ZYDIS_REGISTER_EIP)
		insn->flags |= INSN_RIP_REL;
	else
		insn->base = has_no_base(zi) ? INSN_NOREG : gpr_from_zydis(mem->base, &high8);
	if (mem->type != ZYDIS_MEMOP_TYPE_VSIB)
		insn->index = gpr_from_zydis(mem->index, &high8);
	insn->scale = mem->scale == 8 ? 3 : mem->scale == 4 ? 2 : mem->scale == 2 ? 1 : 0;
}

static void set_register(const ZydisDecodedOperand *op, struct insn *insn)
{
	bool high8;
	u8 r = gpr_from_zydis(op->reg.value, &high8);

	if (r == INSN_NOREG)
		return;
	if (op->encoding == ZYDIS_OPERAND_ENCODING_MODRM_RM) {
		insn->rm = r;
		insn->flags |= high8 ? INSN_HIGH8_RM : 0;
	} else if (op->encoding == ZYDIS_OPERAND_ENCODING_MODRM_REG ||
		   op->encoding == ZYDIS_OPERAND_ENCODING_OPCODE) {
		insn->reg = r;
		insn->flags |= high8 ? INSN_HIGH8_REG : 0;
	}
}

static void set_immediates(const ZydisDecodedInstruction *zi, const ZydisDecodedOperand *ops, struct insn *insn)
{
	bool first = true;

	for (unsigned i = 0; i < zi->operand_count_visible; i++) {
		if (ops[i].type == ZYDIS_OPERAND_TYPE_POINTER) {
			insn->imm = ops[i].ptr.offset;
			insn->imm2 = ops[i].ptr.segment;
		}
		if (ops[i].type != ZYDIS_OPERAND_TYPE_IMMEDIATE)
			continue;
		if (first)
			insn->imm = ops[i].imm.value.u;
		else
			insn->imm2 = ops[i].imm.value.u;
		first = false;
	}
}

static u16 prefix_flags(const ZydisDecodedInstruction *zi)
{
	u16 flags = 0;

	if (zi->attributes & ZYDIS_ATTRIB_HAS_LOCK)
		flags |= INSN_LOCK;
	if (zi->attributes & (ZYDIS_ATTRIB_HAS_REP | ZYDIS_ATTRIB_HAS_REPE | ZYDIS_ATTRIB_HAS_REPZ))
		flags |= INSN_REP;
	if (zi->attributes & (ZYDIS_ATTRIB_HAS_REPNE | ZYDIS_ATTRIB_HAS_REPNZ))
		flags |= INSN_REPNE;
	return flags;
}

static bool ends_block(const ZydisDecodedInstruction *zi)
{
	switch (zi->meta.category) {
	case ZYDIS_CATEGORY_COND_BR:
	case ZYDIS_CATEGORY_UNCOND_BR:
	case ZYDIS_CATEGORY_CALL:
	case ZYDIS_CATEGORY_RET:
	case ZYDIS_CATEGORY_INTERRUPT:
	case ZYDIS_CATEGORY_SYSCALL:
	case ZYDIS_CATEGORY_SYSRET:
		return true;
	default:
		return false;
	}
}

static void set_operands(const ZydisDecodedInstruction *zi, const ZydisDecodedOperand *ops, struct insn *insn)
{
	*insn = (struct insn){
		.len = zi->length,
		.opsize = zi->operand_width / 8,
		.addrsize = zi->address_width / 8,
		.mnemonic = zi->mnemonic,
		.base = INSN_NOREG,
		.index = INSN_NOREG,
		.reg = INSN_NOREG,
		.rm = INSN_NOREG,
		.seg = SEG_DS,
		.flags = prefix_flags(zi) | (ends_block(zi) ? INSN_END_BLOCK : 0),
	};
	for (unsigned i = 0; i < zi->operand_count; i++) {
		const ZydisDecodedOperand *op = &ops[i];

		if (op->type == ZYDIS_OPERAND_TYPE_MEMORY && op->visibility == ZYDIS_OPERAND_VISIBILITY_EXPLICIT &&
		    !(insn->flags & INSN_MEM))
			set_memory(zi, op, insn);
		else if (op->type == ZYDIS_OPERAND_TYPE_REGISTER && i < zi->operand_count_visible)
			set_register(op, insn);
	}
	set_immediates(zi, ops, insn);
	if (zi->mnemonic == ZYDIS_MNEMONIC_IRET || zi->mnemonic == ZYDIS_MNEMONIC_IRETD ||
	    zi->mnemonic == ZYDIS_MNEMONIC_IRETQ)
		insn->flags |= INSN_LEAVE_ENGINE;
}

/* ---- handlers ---------------------------------------------------------------------------- */

/* A selector may scribble over fields before it declines: each starts from the same ones. */
static insn_fn select_handler(const struct decode_ctx *ctx, struct insn *insn)
{
	static insn_fn (*const selectors[])(const struct decode_ctx *, struct insn *) = {
		ops_system_select, ops_string_select, ops_flow_select,
		ops_integer_select, ops_fpu_select, thunk_select,
	};
	const struct insn plain = *insn;

	for (unsigned i = 0; i < ARRAY_SIZE(selectors); i++) {
		insn_fn fn = selectors[i](ctx, insn);

		if (fn)
			return fn;
		*insn = plain;
	}
	return op_ud;
}

static void decoder_init(const struct vcpu *vcpu, ZydisDecoder *decoder)
{
	static const struct {
		ZydisMachineMode mode;
		ZydisStackWidth stack;
	} modes[] = {
		[0] = { ZYDIS_MACHINE_MODE_REAL_16, ZYDIS_STACK_WIDTH_16 },
		[1] = { ZYDIS_MACHINE_MODE_LEGACY_16, ZYDIS_STACK_WIDTH_16 },
		[2] = { ZYDIS_MACHINE_MODE_LEGACY_32, ZYDIS_STACK_WIDTH_32 },
		[3] = { ZYDIS_MACHINE_MODE_LONG_64, ZYDIS_STACK_WIDTH_64 },
	};
	unsigned m = vcpu->arch.code_size == 8 ? 3 : vcpu->arch.code_size == 4 ? 2 :
		     vcpu->arch.protected_mode ? 1 : 0;

	ZydisDecoderInit(decoder, modes[m].mode, modes[m].stack);
	/* Not offered to guests: their encodings are the hint NOPs they grew from. */
	ZydisDecoderEnableMode(decoder, ZYDIS_DECODER_MODE_MPX, ZYAN_FALSE);
	ZydisDecoderEnableMode(decoder, ZYDIS_DECODER_MODE_CET, ZYAN_FALSE);
	ZydisDecoderEnableMode(decoder, ZYDIS_DECODER_MODE_CLDEMOTE, ZYAN_FALSE);
	/* What 66h does to a near branch in 64-bit mode is the vendor's choice, and guests have the host's. */
	ZydisDecoderEnableMode(decoder, ZYDIS_DECODER_MODE_AMD_BRANCHES, host_is_amd());
}

static void decode_invalid(ZyanStatus status, unsigned avail, struct insn *insn)
{
	*insn = (struct insn){
		.fn = status == ZYDIS_STATUS_INSTRUCTION_TOO_LONG ? op_too_long : op_ud,
		.len = min(avail, (unsigned)INSN_MAX_LEN),
		.flags = INSN_END_BLOCK,
		.base = INSN_NOREG, .index = INSN_NOREG, .reg = INSN_NOREG, .rm = INSN_NOREG,
	};
}

bool decode_insn(struct vcpu *vcpu, const u8 *bytes, unsigned avail, struct insn *insn)
{
	ZydisDecodedInstruction zi;
	ZydisDecodedOperand ops[ZYDIS_MAX_OPERAND_COUNT];

	return decode_insn_full(vcpu, bytes, avail, insn, &zi, ops);
}

bool decode_insn_full(struct vcpu *vcpu, const u8 *bytes, unsigned avail, struct insn *insn,
		      ZydisDecodedInstruction *zi, ZydisDecodedOperand *ops)
{
	struct decode_ctx ctx = { .zi = zi, .ops = ops, .vcpu = vcpu, .bytes = bytes };
	ZydisDecoder decoder;
	ZyanStatus status;

	decoder_init(vcpu, &decoder);
	/* Not #UD in real mode but #GP, and allowed in vm86, which Zydis does not tell apart. */
	if (avail >= 2 && bytes[0] == 0x0f && (bytes[1] & 0xfe) == 0x34 &&
	    decoder.machine_mode == ZYDIS_MACHINE_MODE_REAL_16)
		decoder.machine_mode = ZYDIS_MACHINE_MODE_LEGACY_16;
	status = ZydisDecoderDecodeFull(&decoder, bytes, avail, zi, ops);
	if (status == ZYDIS_STATUS_NO_MORE_DATA && avail < INSN_MAX_LEN)
		return false;
	if (!ZYAN_SUCCESS(status)) {
		memset(zi, 0, sizeof(*zi));
		/* Fifteen bytes and still not complete is too long as well. */
		decode_invalid(status == ZYDIS_STATUS_NO_MORE_DATA ? ZYDIS_STATUS_INSTRUCTION_TOO_LONG : status,
			       avail, insn);
		return true;
	}
	set_operands(zi, ops, insn);
	insn->fn = feature_gate(vcpu, zi, ops);
	if (!insn->fn)
		insn->fn = select_handler(&ctx, insn);
	if (insn->fn == op_ud || insn->fn == op_nm)
		insn->flags |= INSN_END_BLOCK;
	return true;
}

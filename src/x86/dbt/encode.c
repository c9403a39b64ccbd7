/* SPDX-License-Identifier: MIT */
/*
 * A guest instruction once more, with its general registers renamed to where the
 * translator keeps them and its memory operand replaced. Opcode, immediates and
 * vector registers stay as they are. Only for what the allow-list permits, in
 * forms whose operands dbt_translate() has understood.
 */
#include "x86/dbt/dbt.h"

struct fields {
	u8 mod, reg, rm, opcode_reg, vvvv;
	bool has_modrm, has_opcode_reg;
};

/* Guest register number of a general register operand that may be renamed; NOREG: leave it alone. */
static u8 renamed(const struct hins *h, const ZydisDecodedOperand *op, bool *high8)
{
	u8 r;

	*high8 = false;
	if (op->type != ZYDIS_OPERAND_TYPE_REGISTER)
		return NOREG;
	r = gpr_from_zydis(op->reg.value, high8);
	return r == INSN_NOREG || *high8 ? NOREG : host_gpr(h, r);
}

static struct fields get_fields(const struct hins *h, u8 r, u8 b, u8 vvvv, bool *any_high8)
{
	const ZydisDecodedInstruction *zi = h->zi;
	struct fields f = {
		.has_modrm = zi->attributes & ZYDIS_ATTRIB_HAS_MODRM,
		.mod = zi->raw.modrm.mod,
		.reg = zi->raw.modrm.reg | r << 3,
		.rm = zi->raw.modrm.rm | b << 3,
		.vvvv = vvvv,
	};

	for (unsigned i = 0; i < zi->operand_count; i++) {
		const ZydisDecodedOperand *op = &h->ops[i];
		bool high8;
		u8 reg = renamed(h, op, &high8);

		*any_high8 |= high8;
		if (op->encoding == ZYDIS_OPERAND_ENCODING_OPCODE && op->type == ZYDIS_OPERAND_TYPE_REGISTER &&
		    (reg != NOREG || high8)) {
			f.has_opcode_reg = true;
			f.opcode_reg = reg != NOREG ? reg : zi->opcode & 7;
			continue;
		}
		if (reg == NOREG)
			continue;
		switch (op->encoding) {
		case ZYDIS_OPERAND_ENCODING_MODRM_REG: f.reg = reg; break;
		case ZYDIS_OPERAND_ENCODING_MODRM_RM: f.rm = reg; break;
		case ZYDIS_OPERAND_ENCODING_NDSNDD: f.vvvv = reg; break;
		default: break;
		}
	}
	return f;
}

static void put_rm_bytes(struct emit *e, const struct hins *h, const struct fields *f)
{
	if (!f->has_modrm)
		return;
	if (h->has_mem)
		put_modrm_mem(e, f->reg, &h->mem);
	else
		put8(e, f->mod << 6 | (f->reg & 7) << 3 | (f->rm & 7));
}

/* Whatever follows the address bytes: immediates, registers named by one. */
static void put_immediates(struct emit *e, const struct hins *h)
{
	const ZydisDecodedInstruction *zi = h->zi;
	unsigned at = zi->length;

	if (zi->attributes & ZYDIS_ATTRIB_HAS_MODRM)
		at = zi->raw.modrm.offset + 1 + (zi->attributes & ZYDIS_ATTRIB_HAS_SIB ? 1 : 0) +
		     zi->raw.disp.size / 8;
	else if (zi->raw.imm[0].size)
		at = zi->raw.imm[0].offset;
	for (; at < zi->length; at++)
		put8(e, h->bytes[at]);
}

/*
 * Opcodes that 64-bit mode does not have, or has for something else, in their longer form: 82 is 80,
 * A0 to A3 are 88 to 8B with an address, 40 to 4F are FF /0 and /1 with a register.
 */
static u8 widen_opcode32(const struct hins *h, struct fields *f)
{
	const ZydisDecodedInstruction *zi = h->zi;

	if (zi->machine_mode == ZYDIS_MACHINE_MODE_LONG_64 || zi->opcode_map != ZYDIS_OPCODE_MAP_DEFAULT)
		return zi->opcode;
	if (is_moffs(zi)) {
		f->has_modrm = true;
		f->reg = RAX;
		return 0x88 | (zi->opcode & 1) | (zi->opcode & 2 ? 0 : 2);
	}
	if ((zi->opcode & 0xf0) == 0x40) {
		f->has_modrm = true;
		f->mod = 3;
		f->reg = zi->opcode >> 3 & 1;
		f->rm = f->opcode_reg;
		f->has_opcode_reg = false;
		return 0xff;
	}
	return zi->opcode == 0x82 ? 0x80 : zi->opcode;
}

static bool encode_legacy(struct emit *e, const struct hins *h)
{
	const ZydisDecodedInstruction *zi = h->zi;
	bool has_rex = zi->attributes & ZYDIS_ATTRIB_HAS_REX, high8 = false;
	bool size_prefix = h->int_class && zi->operand_width == 16 &&
			   zi->mnemonic != ZYDIS_MNEMONIC_CMPXCHG8B;
	struct fields f = get_fields(h, has_rex && zi->raw.rex.R, has_rex && zi->raw.rex.B, 0, &high8);
	u8 rex = (has_rex && zi->raw.rex.W) << 3, opcode = widen_opcode32(h, &f);

	for (unsigned i = 0; i < zi->raw.prefix_count; i++) {
		u8 value = zi->raw.prefixes[i].value;

		if (zi->raw.prefixes[i].type != ZYDIS_PREFIX_TYPE_MANDATORY)
			continue;
		if (value == 0x66)
			size_prefix = true;
		else if (value == 0xf2 || value == 0xf3)
			put8(e, value);
	}
	if (size_prefix)
		put8(e, 0x66);
	if (zi->attributes & ZYDIS_ATTRIB_HAS_LOCK)
		put8(e, 0xf0);
	if (f.has_modrm)
		rex |= (f.reg > 7) << 2 | (h->has_mem ? mem_rex(&h->mem) : f.rm > 7);
	if (f.has_opcode_reg)
		rex |= f.opcode_reg > 7;
	if (rex && high8)
		return false;
	/* SPL to DIL exist only with a prefix. */
	if (rex || (has_rex && !high8))
		put8(e, 0x40 | rex);
	switch (zi->opcode_map) {
	case ZYDIS_OPCODE_MAP_DEFAULT:
		break;
	case ZYDIS_OPCODE_MAP_0F38:
	case ZYDIS_OPCODE_MAP_0F3A:
	case ZYDIS_OPCODE_MAP_0F:
		put8(e, 0x0f);
		if (zi->opcode_map != ZYDIS_OPCODE_MAP_0F)
			put8(e, zi->opcode_map == ZYDIS_OPCODE_MAP_0F38 ? 0x38 : 0x3a);
		break;
	default:
		return false;
	}
	put8(e, f.has_opcode_reg ? (opcode & ~7) | (f.opcode_reg & 7) : opcode);
	put_rm_bytes(e, h, &f);
	put_immediates(e, h);
	return true;
}

/* Always the three-byte form. */
static bool encode_vex(struct emit *e, const struct hins *h)
{
	const u8 *vex = h->bytes + h->zi->raw.vex.offset;
	bool three = vex[0] == 0xc4, high8 = false;
	u8 b1 = three ? vex[1] : (vex[1] & 0x80) | 0x61;
	u8 b2 = three ? vex[2] : vex[1] & 0x7f;
	bool long_mode = h->zi->machine_mode == ZYDIS_MACHINE_MODE_LONG_64; /* else: the top bits of register numbers mean nothing */
	struct fields f = get_fields(h, !(b1 & 0x80), long_mode && !(b1 & 0x20),
				     ~(b2 >> 3) & (long_mode ? 15 : 7), &high8);
	u8 xb = h->has_mem ? mem_rex(&h->mem) : f.rm > 7;

	put8(e, 0xc4);
	put8(e, (f.reg < 8) << 7 | !(xb & 2) << 6 | !(xb & 1) << 5 | (b1 & 0x1f));
	put8(e, (b2 & 0x87) | (~f.vvvv & 15) << 3);
	put8(e, h->zi->opcode);
	put_rm_bytes(e, h, &f);
	put_immediates(e, h);
	return true;
}

/* Outside 64-bit mode W means nothing beside general registers, and a register in an immediate has three bits. */
bool dbt_encodable32(const ZydisDecodedInstruction *zi, const ZydisDecodedOperand *ops, const u8 *bytes)
{
	bool vex_w = zi->encoding == ZYDIS_INSTRUCTION_ENCODING_VEX && zi->raw.vex.W;
	bool high8;

	for (unsigned i = 0; i < zi->operand_count; i++) {
		const ZydisDecodedOperand *op = &ops[i];

		if (vex_w && op->type == ZYDIS_OPERAND_TYPE_REGISTER &&
		    gpr_from_zydis(op->reg.value, &high8) != INSN_NOREG)
			return false;
		if (op->encoding == ZYDIS_OPERAND_ENCODING_IS4 && (bytes[zi->length - 1] & 0x80))
			return false;
	}
	return !vex_w || (zi->mnemonic != ZYDIS_MNEMONIC_VMOVD && zi->mnemonic != ZYDIS_MNEMONIC_VPEXTRD &&
			  zi->mnemonic != ZYDIS_MNEMONIC_VPINSRD && zi->meta.category != ZYDIS_CATEGORY_CONVERT);
}

bool dbt_encode(struct emit *e, const struct hins *h)
{
	return h->zi->encoding == ZYDIS_INSTRUCTION_ENCODING_VEX ? encode_vex(e, h) : encode_legacy(e, h);
}

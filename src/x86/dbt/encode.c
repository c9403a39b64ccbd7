/* SPDX-License-Identifier: MIT */
/*
 * A guest instruction once more, with its general registers renamed to where the
 * translator keeps them and its memory operand replaced. Opcode, immediates and
 * vector registers stay as they are. Only for what the allow-list permits, in
 * forms whose operands dbt_translate() has understood.
 */
#include "x86/dbt/dbt.h"

struct fields {
	u8 reg, rm, opcode_reg, vvvv;
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
		put8(e, h->zi->raw.modrm.mod << 6 | (f->reg & 7) << 3 | (f->rm & 7));
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

static bool encode_legacy(struct emit *e, const struct hins *h)
{
	const ZydisDecodedInstruction *zi = h->zi;
	bool has_rex = zi->attributes & ZYDIS_ATTRIB_HAS_REX, high8 = false;
	bool size_prefix = h->int_class && zi->operand_width == 16 &&
			   zi->mnemonic != ZYDIS_MNEMONIC_CMPXCHG8B;
	struct fields f = get_fields(h, has_rex && zi->raw.rex.R, has_rex && zi->raw.rex.B, 0, &high8);
	u8 rex = (has_rex && zi->raw.rex.W) << 3;

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
	put8(e, f.has_opcode_reg ? (zi->opcode & ~7) | (f.opcode_reg & 7) : zi->opcode);
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
	struct fields f = get_fields(h, !(b1 & 0x80), !(b1 & 0x20), ~(b2 >> 3) & 15, &high8);
	u8 xb = h->has_mem ? mem_rex(&h->mem) : f.rm > 7;

	put8(e, 0xc4);
	put8(e, (f.reg < 8) << 7 | !(xb & 2) << 6 | !(xb & 1) << 5 | (b1 & 0x1f));
	put8(e, (b2 & 0x87) | (~f.vvvv & 15) << 3);
	put8(e, h->zi->opcode);
	put_rm_bytes(e, h, &f);
	put_immediates(e, h);
	return true;
}

bool dbt_encode(struct emit *e, const struct hins *h)
{
	return h->zi->encoding == ZYDIS_INSTRUCTION_ENCODING_VEX ? encode_vex(e, h) : encode_legacy(e, h);
}

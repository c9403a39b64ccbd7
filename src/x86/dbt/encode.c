/* SPDX-License-Identifier: MIT */
/*
 * A guest instruction once more, with its general registers renamed to where the
 * translator keeps them and its memory operand replaced. Opcode, immediates and
 * vector registers stay as they are. Only for what the allow-list permits, in
 * forms whose operands dbt_translate() has understood.
 */
#include "x86/dbt/dbt.h"

/* A register of an encoding that is one of h->home[]. */
#define HOMED 0x80

/* What a general register operand becomes; NOREG: it is left alone. exchanged: AH to BH are AL to BL meanwhile. */
static u8 renamed(const ZydisDecodedOperand *op, bool exchanged, bool *high8)
{
	u8 r;

	*high8 = false;
	if (op->type != ZYDIS_OPERAND_TYPE_REGISTER)
		return NOREG;
	r = gpr_from_zydis(op->reg.value, high8);
	*high8 &= !exchanged;
	if (r == INSN_NOREG || *high8)
		return NOREG;
	return r == RSP ? GUEST_RSP : has_home(r) ? HOMED | (r - R9) : r;
}

static void set_fields(struct encoding *n, const ZydisDecodedInstruction *zi, const ZydisDecodedOperand *ops, u8 r, u8 b)
{
	n->has_modrm = zi->attributes & ZYDIS_ATTRIB_HAS_MODRM;
	n->mod = zi->raw.modrm.mod;
	n->reg = zi->raw.modrm.reg | r << 3;
	n->rm = zi->raw.modrm.rm | b << 3;
	for (unsigned i = 0; i < zi->operand_count; i++) {
		const ZydisDecodedOperand *op = &ops[i];
		bool high8;
		u8 reg = renamed(op, n->has_modrm && n->mod != 3, &high8);

		n->high8 |= high8;
		if (op->encoding == ZYDIS_OPERAND_ENCODING_OPCODE && op->type == ZYDIS_OPERAND_TYPE_REGISTER &&
		    (reg != NOREG || high8)) {
			n->has_opcode_reg = true;
			n->opcode_reg = reg != NOREG ? reg : zi->opcode & 7;
			continue;
		}
		if (reg == NOREG)
			continue;
		switch (op->encoding) {
		case ZYDIS_OPERAND_ENCODING_MODRM_REG: n->reg = reg; break;
		case ZYDIS_OPERAND_ENCODING_MODRM_RM: n->rm = reg; break;
		case ZYDIS_OPERAND_ENCODING_NDSNDD: n->vvvv = reg; break;
		default: break;
		}
	}
}

/* Whatever follows the address bytes: immediates, registers named by one. */
static u8 find_tail(const ZydisDecodedInstruction *zi)
{
	if (zi->attributes & ZYDIS_ATTRIB_HAS_MODRM)
		return zi->raw.modrm.offset + 1 + (zi->attributes & ZYDIS_ATTRIB_HAS_SIB ? 1 : 0) + zi->raw.disp.size / 8;
	return zi->raw.imm[0].size ? zi->raw.imm[0].offset : zi->length;
}

/*
 * Opcodes that 64-bit mode does not have, or has for something else, in their longer form: 82 is 80,
 * A0 to A3 are 88 to 8B with an address, 40 to 4F are FF /0 and /1 with a register.
 */
static u8 widen_opcode32(const ZydisDecodedInstruction *zi, struct encoding *n)
{
	if (zi->machine_mode == ZYDIS_MACHINE_MODE_LONG_64 || zi->opcode_map != ZYDIS_OPCODE_MAP_DEFAULT)
		return zi->opcode;
	if (is_moffs(zi)) {
		n->has_modrm = true;
		n->reg = RAX;
		return 0x88 | (zi->opcode & 1) | (zi->opcode & 2 ? 0 : 2);
	}
	if ((zi->opcode & 0xf0) == 0x40) {
		n->has_modrm = true;
		n->mod = 3;
		n->reg = zi->opcode >> 3 & 1;
		n->rm = n->opcode_reg;
		n->has_opcode_reg = false;
		return 0xff;
	}
	return zi->opcode == 0x82 ? 0x80 : zi->opcode;
}

static void set_prefixes(struct encoding *n, const ZydisDecodedInstruction *zi, bool size_prefix)
{
	for (unsigned i = 0; i < zi->raw.prefix_count; i++) {
		u8 value = zi->raw.prefixes[i].value;

		if (zi->raw.prefixes[i].type != ZYDIS_PREFIX_TYPE_MANDATORY)
			continue;
		if (value == 0x66)
			size_prefix = true;
		else if (value == 0xf2 || value == 0xf3)
			n->before[n->nr_before++] = value;
	}
	if (size_prefix)
		n->before[n->nr_before++] = 0x66;
	n->lock = zi->attributes & ZYDIS_ATTRIB_HAS_LOCK;
}

/* Which of reg and rm is written is a bit of the opcode: MOV and eight others. */
static bool has_direction(const ZydisDecodedInstruction *zi)
{
	return zi->opcode_map == ZYDIS_OPCODE_MAP_DEFAULT &&
	       ((zi->opcode & 0xfc) == 0x88 || (zi->opcode < 0x40 && (zi->opcode & 7) < 4));
}

enum use { NOT_KNOWN, READ, WRITTEN };

/* What a register in rm is to an instruction that would do the same to memory. */
static enum use use_of_rm(const ZydisDecodedInstruction *zi)
{
	if (zi->meta.category == ZYDIS_CATEGORY_CMOV)
		return READ;
	if (has_direction(zi))
		return zi->mnemonic != ZYDIS_MNEMONIC_CMP && !(zi->opcode & 2) ? WRITTEN : READ;
	switch (zi->mnemonic) {
	case ZYDIS_MNEMONIC_CMP: case ZYDIS_MNEMONIC_TEST:
	case ZYDIS_MNEMONIC_MOVZX: case ZYDIS_MNEMONIC_MOVSX: case ZYDIS_MNEMONIC_MOVSXD:
		return READ;
	case ZYDIS_MNEMONIC_IMUL:
		return zi->operand_count_visible > 1 ? READ : NOT_KNOWN;
	case ZYDIS_MNEMONIC_MOV: case ZYDIS_MNEMONIC_ADD: case ZYDIS_MNEMONIC_OR: case ZYDIS_MNEMONIC_AND:
	case ZYDIS_MNEMONIC_SUB: case ZYDIS_MNEMONIC_XOR: case ZYDIS_MNEMONIC_INC: case ZYDIS_MNEMONIC_DEC:
	case ZYDIS_MNEMONIC_NEG: case ZYDIS_MNEMONIC_NOT: case ZYDIS_MNEMONIC_SHL: case ZYDIS_MNEMONIC_SHR:
	case ZYDIS_MNEMONIC_SAR:
		return WRITTEN;
	default:
		return NOT_KNOWN;
	}
}

/*
 * A register that is in the frame may be an operand in memory: one instruction instead of two or three. Not if less than all of it
 * is written: 32 bits clear the rest of a register, and whoever loads all of it next would wait for a narrower store.
 */
static void plan_home(struct encoding *n, const ZydisDecodedInstruction *zi, u8 *opcode)
{
	const bool wide = zi->operand_width == 64, read = zi->mnemonic == ZYDIS_MNEMONIC_CMP;
	enum use rm = use_of_rm(zi);

	if (!n->has_modrm || n->mod != 3 || n->high8 || n->reg == n->rm || rm == NOT_KNOWN)
		return;
	if ((n->rm & HOMED) && (rm == READ || wide)) {
		n->from_home = true;
	} else if ((n->reg & HOMED) && has_direction(zi) && (read || rm == WRITTEN || wide)) {
		u8 reg = n->reg;

		n->reg = n->rm;
		n->rm = reg;
		*opcode ^= 2;
		n->from_home = true;
	}
}

u8 dbt_encoding_home(const struct encoding *n)
{
	return n->from_home ? R9 + (n->rm & 3) : NOREG;
}

static bool plan_legacy(struct encoding *n, const ZydisDecodedInstruction *zi, const ZydisDecodedOperand *ops, bool int_class)
{
	bool has_rex = zi->attributes & ZYDIS_ATTRIB_HAS_REX;
	u8 opcode;

	set_prefixes(n, zi, int_class && zi->operand_width == 16 && zi->mnemonic != ZYDIS_MNEMONIC_CMPXCHG8B);
	set_fields(n, zi, ops, has_rex && zi->raw.rex.R, has_rex && zi->raw.rex.B);
	opcode = widen_opcode32(zi, n);
	if (opcode == zi->opcode)
		plan_home(n, zi, &opcode);
	n->rex_w = (has_rex && zi->raw.rex.W) << 3;
	/* SPL to DIL exist only with a prefix. */
	n->wants_rex = has_rex && !n->high8;
	switch (zi->opcode_map) {
	case ZYDIS_OPCODE_MAP_DEFAULT:
		break;
	case ZYDIS_OPCODE_MAP_0F38:
	case ZYDIS_OPCODE_MAP_0F3A:
	case ZYDIS_OPCODE_MAP_0F:
		n->opcode[n->nr_opcode++] = 0x0f;
		if (zi->opcode_map != ZYDIS_OPCODE_MAP_0F)
			n->opcode[n->nr_opcode++] = zi->opcode_map == ZYDIS_OPCODE_MAP_0F38 ? 0x38 : 0x3a;
		break;
	default:
		return false;
	}
	n->opcode[n->nr_opcode++] = n->has_opcode_reg ? opcode & ~7 : opcode;
	return true;
}

/* Always the three-byte form. */
static bool plan_vex(struct encoding *n, const ZydisDecodedInstruction *zi, const ZydisDecodedOperand *ops, const u8 *bytes)
{
	const u8 *vex = bytes + zi->raw.vex.offset;
	bool three = vex[0] == 0xc4;
	bool long_mode = zi->machine_mode == ZYDIS_MACHINE_MODE_LONG_64; /* else: the top bits of register numbers mean nothing */
	u8 b1 = three ? vex[1] : (vex[1] & 0x80) | 0x61;
	u8 b2 = three ? vex[2] : vex[1] & 0x7f;

	n->vvvv = ~(b2 >> 3) & (long_mode ? 15 : 7);
	set_fields(n, zi, ops, !(b1 & 0x80), long_mode && !(b1 & 0x20));
	n->vex = true;
	n->before[0] = b1 & 0x1f;
	n->before[1] = b2 & 0x87;
	n->opcode[0] = zi->opcode;
	return true;
}

bool dbt_plan_encoding(struct encoding *n, const ZydisDecodedInstruction *zi, const ZydisDecodedOperand *ops, const u8 *bytes,
		       bool int_class)
{
	*n = (struct encoding){ .tail = find_tail(zi), .len = zi->length };
	return zi->encoding == ZYDIS_INSTRUCTION_ENCODING_VEX ? plan_vex(n, zi, ops, bytes) : plan_legacy(n, zi, ops, int_class);
}

static u8 reg_of(const struct hins *h, u8 field)
{
	return field & HOMED ? h->home[field & 3] : field;
}

static void put_operands(struct emit *e, const struct hins *h, u8 reg, u8 rm)
{
	const struct encoding *n = h->encoding;

	if (n->has_modrm) {
		if (h->has_mem)
			put_modrm_mem(e, reg, &h->mem);
		else
			put8(e, n->mod << 6 | (reg & 7) << 3 | (rm & 7));
	}
	put_bytes(e, h->bytes + n->tail, n->len - n->tail);
}

static bool encode_legacy(struct emit *e, const struct hins *h)
{
	const struct encoding *n = h->encoding;
	u8 reg = reg_of(h, n->reg), rm = reg_of(h, n->rm), opcode_reg = reg_of(h, n->opcode_reg);
	u8 rex = n->rex_w;
	struct chunk c = { 0 };

	for (unsigned i = 0; i < n->nr_before; i++)
		chunk_add(&c, n->before[i]);
	if (n->lock && !h->unlocked)
		chunk_add(&c, 0xf0);
	if (n->has_modrm)
		rex |= (reg > 7) << 2 | (h->has_mem ? mem_rex(&h->mem) : rm > 7);
	if (n->has_opcode_reg)
		rex |= opcode_reg > 7;
	if (rex && n->high8)
		return false;
	if (rex || n->wants_rex)
		chunk_add(&c, 0x40 | rex);
	for (unsigned i = 0; i < n->nr_opcode; i++)
		chunk_add(&c, n->opcode[i]);
	if (n->has_opcode_reg)
		c.bytes += (u64)(opcode_reg & 7) << 8 * (c.n - 1);
	put_chunk(e, &c);
	put_operands(e, h, reg, rm);
	return true;
}

static bool encode_vex(struct emit *e, const struct hins *h)
{
	const struct encoding *n = h->encoding;
	u8 reg = reg_of(h, n->reg), rm = reg_of(h, n->rm);
	u8 xb = h->has_mem ? mem_rex(&h->mem) : rm > 7;
	struct chunk c = { 0 };

	chunk_add(&c, 0xc4);
	chunk_add(&c, (reg < 8) << 7 | !(xb & 2) << 6 | !(xb & 1) << 5 | n->before[0]);
	chunk_add(&c, n->before[1] | (~reg_of(h, n->vvvv) & 15) << 3);
	chunk_add(&c, n->opcode[0]);
	put_chunk(e, &c);
	put_operands(e, h, reg, rm);
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
	return h->encoding->vex ? encode_vex(e, h) : encode_legacy(e, h);
}

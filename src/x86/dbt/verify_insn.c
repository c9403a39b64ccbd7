/* SPDX-License-Identifier: MIT */
/*
 * What a plain instruction, neither branch nor call, does to the abstract values; which ones there may be, which
 * registers they may write, and what they may store (6 to 8 in verify.c).
 */
#include "x86/dbt/verify_internal.h"

enum { NONE, INT, VEC, X87, NOP };

static const u8 allowed[ZYDIS_MNEMONIC_MAX_VALUE + 1] = {
#define THUNK(mnemonic, class) [ZYDIS_MNEMONIC_##mnemonic] = class,
#include "x86/interp/thunk_allow.def"
#undef THUNK
	[ZYDIS_MNEMONIC_LEA] = INT,
};

static bool reg_write_ok(struct dbt_verifier *v, ZydisRegister reg)
{
	switch (ZydisRegisterGetClass(reg)) {
	case ZYDIS_REGCLASS_GPR8:
	case ZYDIS_REGCLASS_GPR16:
	case ZYDIS_REGCLASS_GPR32:
	case ZYDIS_REGCLASS_GPR64:
		return gpr(reg) != RSP || refuse(v, "rsp is written");
	case ZYDIS_REGCLASS_XMM:
		return reg <= ZYDIS_REGISTER_XMM15 || refuse(v, "xmm16 and above");
	case ZYDIS_REGCLASS_YMM:
		return reg <= ZYDIS_REGISTER_YMM15 || refuse(v, "ymm16 and above");
	case ZYDIS_REGCLASS_FLAGS:
	case ZYDIS_REGCLASS_X87:
	case ZYDIS_REGCLASS_MMX:
		return true;
	default:
		return reg == ZYDIS_REGISTER_MXCSR || reg == ZYDIS_REGISTER_X87STATUS || refuse(v, "register of the host's is written");
	}
}

/* A register operand's value; the width of op is 64. */
static struct value source_value(struct dbt_verifier *v, const ZydisDecodedOperand *op, const struct operand *mem)
{
	switch (op->type) {
	case ZYDIS_OPERAND_TYPE_REGISTER:
		return gpr(op->reg.value) == INSN_NOREG ? any : *reg_get(v, gpr(op->reg.value));
	case ZYDIS_OPERAND_TYPE_IMMEDIATE:
		return constant(op->imm.is_signed ? (u64)op->imm.value.s : op->imm.value.u);
	case ZYDIS_OPERAND_TYPE_MEMORY:
		if (mem->place == AT_MMU && mem->table == NR_TABLES)
			return any;
		/* Of whatever is added to it, at once: adopt_any(). */
		if (mem->place == AT_MMU && (mem->table == T_STACK_TAG || mem->table == T_FIXED_TAG) && v->zi.mnemonic != ZYDIS_MNEMONIC_ADD)
			return any;
		if (mem->place == AT_MMU && mem->table >= T_JUMP_VA)
			return secret;
		if (mem->place == AT_VCPU && mem->at == offsetof(struct vcpu, arch.tlb))
			return secret;
		return mem->place == AT_FRAME || mem->place == AT_MMU ? mem->value : any;
	default:
		return any;
	}
}

/* A constant entry of a table belongs to every constant address that selects it. */
static void adopt_constant(struct value *x, const struct value *with)
{
	if ((x->kind == TAG || x->kind == DELTA) && !x->name && with->kind == CONST &&
	    x->a >> PAGE_SHIFT == tlb_index(with->a))
		x->a = with->a;
}

/* The tag of an entry that no address selects belongs to any. */
static void adopt_any(struct value *x, const struct value *with)
{
	const struct value a = as_address(with);

	if (x->kind == TAG && of_own_entry(x) && is_address(&a)) {
		x->name = a.name;
		x->a = a.a;
	}
}

/* x, by as much as it takes to become a place in a TLB's arrays. */
static struct value shifted(const struct value *x, bool leaks)
{
	const struct value at = as_address(x);

	return is_address(&at) ? derived(SHIFTED, &at) : leaks || is_secret(x) ? secret : any;
}

/* Results the analysis follows; anything else is ANY, or SECRET if it may hold some of one. */
static struct value result(struct dbt_verifier *v, unsigned dst, struct value x, struct value y)
{
	bool wide = v->zi.operand_width == 64;

	switch (v->zi.mnemonic) {
	case ZYDIS_MNEMONIC_MOV:
		if (y.kind == CONST)
			return constant(wide ? y.a : (u32)y.a);
		if (wide)
			return y;
		return is_secret(&y) ? secret : bits(v, dst, 0xffffffff & possible_bits(&y));
	case ZYDIS_MNEMONIC_ADD:
		/* Twice the same */
		if (x.kind == BITS && value_equal(&x, &y) && x.a < BIT_ULL(31))
			return bits(v, dst, x.a << 1);
		if (!wide)
			break;
		adopt_constant(&y, &x);
		adopt_any(&y, &x);
		return value_add(v, &x, &y);
	case ZYDIS_MNEMONIC_SUB:
		if (!wide)
			break;
		adopt_constant(&y, &x);
		return value_sub(&x, &y);
	case ZYDIS_MNEMONIC_XOR:
		if (v->ops[1].type != ZYDIS_OPERAND_TYPE_REGISTER || v->ops[0].reg.value != v->ops[1].reg.value)
			break;
		return constant(0);
	case ZYDIS_MNEMONIC_AND:
		if (y.kind != CONST)
			break;
		if (x.kind == SHIFTED && (wide ? y.a : (u32)y.a) == (TLB_ENTRIES - 1) * 8)
			return derived(INDEX, &x);
		return is_secret(&x) ? secret : bits(v, dst, possible_bits(&x) & (wide ? y.a : (u32)y.a));
	case ZYDIS_MNEMONIC_SHR:
		if (y.kind != CONST)
			break;
		if (wide && (is_address(&x) || x.kind == BITS) && y.a == PAGE_SHIFT - 3)
			return shifted(&x, false);
		return is_secret(&x) ? secret :
		       bits(v, dst, wide ? possible_bits(&x) >> (y.a & 63) : (u32)possible_bits(&x) >> (y.a & 31));
	default:
		break;
	}
	return is_secret(&x) || is_secret(&y) ? secret : any;
}

/* As RORX, SHLX and so on name their sources: a secret anywhere in makes the result one. */
static bool any_secret_source(struct dbt_verifier *v)
{
	for (unsigned i = 0; i < v->zi.operand_count; i++) {
		const ZydisDecodedOperand *op = &v->ops[i];

		if (op->type == ZYDIS_OPERAND_TYPE_REGISTER && (op->actions & ZYDIS_OPERAND_ACTION_MASK_READ) &&
		    gpr(op->reg.value) != INSN_NOREG && is_secret(&v->now.reg[gpr(op->reg.value)]))
			return true;
	}
	return false;
}

static void set_flags(struct dbt_verifier *v, const struct operand *mem)
{
	const ZydisAccessedFlags *f = v->zi.cpu_flags;
	struct state *s = &v->now;
	struct value x, y;

	if (!f || !(f->modified | f->set_0 | f->set_1 | f->undefined))
		return;
	s->flags = FLAGS_NONE;
	if (v->zi.mnemonic != ZYDIS_MNEMONIC_CMP)
		return;
	if (v->ops[0].type == ZYDIS_OPERAND_TYPE_MEMORY && mem->place == AT_FRAME && mem->at == FRAME_X87 &&
	    v->ops[0].size == 8 && v->ops[1].type == ZYDIS_OPERAND_TYPE_IMMEDIATE && !v->ops[1].imm.value.u)
		s->flags = FLAGS_X87;
	if (v->zi.operand_width != 64)
		return;
	x = source_value(v, &v->ops[0], mem);
	y = source_value(v, &v->ops[1], mem);
	if (x.kind == OFFSET && y.kind == CONST && y.a < PAGE_SIZE) {
		s->flags = FLAGS_OFFSET;
		s->compared = x;
		s->limit = y.a;
	} else if (v->ops[1].type == ZYDIS_OPERAND_TYPE_MEMORY && mem->place == AT_MMU &&
		   (mem->table == T_JUMP_VA || mem->table == T_RETURN_VA)) {
		s->flags = FLAGS_JUMP;
		s->compared = mem->value;
		s->compared.ctx = mem->ctx;
		s->limit = mem->table;
	}
}

/* What becomes of x, which a slot of the frame has. */
static struct value slot_result(struct dbt_verifier *v, const struct value *x)
{
	const ZydisDecodedOperand *op = &v->ops[1];
	struct value at = as_address(x), y = any;

	if (is_secret(x))
		return secret;
	if (v->zi.operand_count_visible == 2 && op->type == ZYDIS_OPERAND_TYPE_IMMEDIATE)
		y = source_value(v, op, NULL);
	switch (v->zi.mnemonic) {
	case ZYDIS_MNEMONIC_INC: return add_constant(&at, 1);
	case ZYDIS_MNEMONIC_DEC: return add_constant(&at, -1);
	case ZYDIS_MNEMONIC_ADD: return y.kind == CONST ? add_constant(&at, y.a) : any;
	case ZYDIS_MNEMONIC_SUB: return y.kind == CONST ? add_constant(&at, -y.a) : any;
	default: return any;
	}
}

/* Secrets may be kept in the frame's scratch slots, nowhere else. */
static bool store(struct dbt_verifier *v, const ZydisDecodedOperand *op, const struct operand *mem)
{
	struct state *s = &v->now;
	bool whole = op->size == 64 && mem->at % 8 == 0 && v->zi.mnemonic == ZYDIS_MNEMONIC_MOV;
	bool leaks = any_secret_source(v);

	if (mem->place == AT_FRAME) {
		for (s64 i = mem->at / 8; i <= (mem->at + op->size / 8 - 1) / 8; i++)
			s->slot[i] = leaks ? secret : any;
		if (whole)
			s->slot[mem->at / 8] = source_value(v, &v->ops[1], mem);
		else if (op->size == 64 && mem->at % 8 == 0 && !leaks)
			s->slot[mem->at / 8] = slot_result(v, &mem->value);
		if (is_guest_slot(mem->at) && is_place(&s->slot[mem->at / 8]))
			s->slot[mem->at / 8] = any;
		return true;
	}
	if (mem->place == AT_MMU && mem->table == T_RETURN_CODE)
		return source_value(v, &v->ops[1], mem).kind == CODE || refuse(v, "address of no code is noted");
	/* The base and index of the operand itself are read, too. */
	for (unsigned i = 0; i < v->zi.operand_count; i++) {
		const ZydisDecodedOperand *src = &v->ops[i];

		if (src->type == ZYDIS_OPERAND_TYPE_REGISTER && (src->actions & ZYDIS_OPERAND_ACTION_MASK_READ) &&
		    gpr(src->reg.value) != INSN_NOREG && is_secret(&s->reg[gpr(src->reg.value)]))
			return refuse(v, "address of the host's is stored");
	}
	return true;
}

static void write_registers(struct dbt_verifier *v, const struct operand *mem)
{
	bool leaks = any_secret_source(v);
	struct value first = any;
	unsigned first_reg = INSN_NOREG;

	if (v->ops[0].type == ZYDIS_OPERAND_TYPE_REGISTER && gpr(v->ops[0].reg.value) != INSN_NOREG &&
	    (v->ops[0].actions & ZYDIS_OPERAND_ACTION_MASK_WRITE) && v->zi.operand_width >= 32 &&
	    v->ops[0].size >= 32 && v->zi.operand_count_visible >= 2) {
		struct value y = source_value(v, &v->ops[1], mem);

		first_reg = gpr(v->ops[0].reg.value);
		if (v->zi.mnemonic == ZYDIS_MNEMONIC_LEA && v->ops[1].mem.base == ZYDIS_REGISTER_RIP)
			first = (struct value){ .kind = CODE };
		else if (v->zi.mnemonic == ZYDIS_MNEMONIC_LEA)
			first = v->zi.operand_width == 64 && v->zi.address_width == 64 ? operand_address(v, &v->ops[1]) :
				leaks ? secret : any;
		else if (v->zi.operand_count_visible == 2)
			first = result(v, first_reg, decode_is_move(&v->zi) ? any : *reg_get(v, first_reg), y);
		else if (v->zi.mnemonic == ZYDIS_MNEMONIC_RORX && v->zi.operand_width == 64 && v->ops[2].imm.value.u == PAGE_SHIFT - 3)
			first = shifted(&y, leaks);
		else
			first = leaks ? secret : any;
		if (v->zi.mnemonic == ZYDIS_MNEMONIC_MOVZX)
			first = is_secret(&y) ? secret : bits(v, first_reg, (1ull << v->ops[1].size) - 1);
	}
	if ((v->zi.mnemonic == ZYDIS_MNEMONIC_INC || v->zi.mnemonic == ZYDIS_MNEMONIC_DEC) && v->zi.operand_width == 64 &&
	    v->ops[0].type == ZYDIS_OPERAND_TYPE_REGISTER) {
		first_reg = gpr(v->ops[0].reg.value);
		first = as_address(reg_get(v, first_reg));
		first = add_constant(&first, v->zi.mnemonic == ZYDIS_MNEMONIC_INC ? 1 : -1);
	}
	for (unsigned i = 0; i < v->zi.operand_count; i++) {
		const ZydisDecodedOperand *op = &v->ops[i];
		u8 r;

		if (op->type != ZYDIS_OPERAND_TYPE_REGISTER || !(op->actions & ZYDIS_OPERAND_ACTION_MASK_WRITE))
			continue;
		r = gpr(op->reg.value);
		if (r == INSN_NOREG || !reg_write_ok(v, op->reg.value))
			continue;
		v->now.reg[r] = leaks ? secret : any;
	}
	/* Only our own code computes places in tables, and in scratch registers. */
	if (is_place(&first) && first_reg != T0 && first_reg != T1)
		first = any;
	if (first_reg != INSN_NOREG && first_reg != RSP)
		v->now.reg[first_reg] = first;
}

/* MM registers are the same ones. */
static bool uses_x87(const struct dbt_verifier *v)
{
	if (allowed[v->zi.mnemonic] == X87 || v->zi.mnemonic == ZYDIS_MNEMONIC_EMMS)
		return true;
	for (unsigned i = 0; i < v->zi.operand_count; i++)
		if (v->ops[i].type == ZYDIS_OPERAND_TYPE_REGISTER && ZydisRegisterGetClass(v->ops[i].reg.value) == ZYDIS_REGCLASS_MMX)
			return true;
	return false;
}

/* Neither branch nor call. */
bool verify_plain(struct dbt_verifier *v)
{
	const ZydisDecodedInstruction *zi = &v->zi;
	const ZydisDecodedOperand *mem_op = NULL;
	struct operand mem = { .place = AT_FRAME };
	bool nop = allowed[zi->mnemonic] == NOP;

	if (allowed[zi->mnemonic] == NONE || zi->meta.category == ZYDIS_CATEGORY_STRINGOP || zi->encoding == ZYDIS_INSTRUCTION_ENCODING_EVEX ||
	    (zi->attributes & (ZYDIS_ATTRIB_HAS_REP | ZYDIS_ATTRIB_HAS_REPE | ZYDIS_ATTRIB_HAS_REPNE)))
		return refuse(v, "instruction is not on the list");
	if (uses_x87(v) && !v->now.x87)
		return refuse(v, "x87 registers may not be the guest's");
	for (unsigned i = 0; i < zi->operand_count && !nop; i++) {
		const ZydisDecodedOperand *op = &v->ops[i];

		if (op->type == ZYDIS_OPERAND_TYPE_REGISTER && (op->actions & ZYDIS_OPERAND_ACTION_MASK_WRITE) &&
		    !reg_write_ok(v, op->reg.value))
			return false;
		if (op->type != ZYDIS_OPERAND_TYPE_MEMORY || op->mem.type == ZYDIS_MEMOP_TYPE_AGEN)
			continue;
		if (mem_op || op->visibility != ZYDIS_OPERAND_VISIBILITY_EXPLICIT)
			return refuse(v, "memory operand that cannot be seen");
		mem_op = op;
	}
	/* Its bit number reaches far outside the operand. */
	if (mem_op && zi->meta.category == ZYDIS_CATEGORY_BITBYTE && zi->opcode_map == ZYDIS_OPCODE_MAP_0F &&
	    (zi->opcode & 0xe7) == 0xa3)
		return refuse(v, "bit string in memory");
	if (mem_op && !classify_operand(v, mem_op, &mem))
		return false;
	if (zi->mnemonic == ZYDIS_MNEMONIC_LEA && v->ops[1].mem.base == ZYDIS_REGISTER_RIP &&
	    (zi->operand_width != 64 || zi->address_width != 64 || v->ops[1].mem.index != ZYDIS_REGISTER_NONE ||
	     !code_address(v, v->pc + zi->length + (u32)v->ops[1].mem.disp.value)))
		return refuse(v, "address of code");
	set_flags(v, &mem);
	if (mem_op && (mem_op->actions & ZYDIS_OPERAND_ACTION_MASK_WRITE) && !store(v, mem_op, &mem))
		return false;
	if (!nop)
		write_registers(v, &mem);
	return !v->why;
}

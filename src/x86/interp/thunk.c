/* SPDX-License-Identifier: MIT */
/*
 * One guest instruction, executed by the host.
 *
 * A thunk loads the guest registers the instruction uses into the host registers
 * of the same names, executes that very instruction with its memory operand
 * replaced by (M), and stores what was written:
 *
 *	V = vcpu			a register the instruction does not use
 *	flags from rflags		SAHF and an ADD that makes OF; never POPF
 *	M = mem				a low register, so that AH..DH need no REX
 *	registers
 *	the instruction			guest rsp lives in T meanwhile
 *	registers, flags back
 *
 * Invariants
 *  1. Only what thunk_allow.def lists, in forms whose every operand analyse()
 *     understands. The memory operand is explicit, single, of known size.
 *  2. The instruction is the only one that may fault, and guest state in struct
 *     vcpu is written only after it: a fault leaves nothing half done.
 *  3. Host rsp is never a guest value; of the guest's flags only OSZAPC get in.
 *  4. Code is position independent (all state is reached through V), so equal
 *     bytes are one thunk.
 */
#include <errno.h>
#include <sched.h>
#include <stdlib.h>
#include <string.h>

#include "host/host.h"
#include "x86/decode/decode.h"
#include "x86/interp/interp.h"

#define THUNK_ARENA_SIZE (4ul << 20)
#define THUNK_HASH_SIZE 65536u
#define THUNK_MAX_NR (THUNK_HASH_SIZE / 2)
#define THUNK_MAX_BYTES 768u
#define MXCSR_MM BIT(17)
#define THUNK_MEM_MAX 64	/* largest memory operand */

u32 thunk_enter(struct vcpu *vcpu, void *mem, const void *code, void **resume);
extern const char thunk_leave[] __attribute__((visibility("hidden")));

/* Why a thunk was left early: eax at thunk_leave. */
enum thunk_fault {
	THUNK_DONE, THUNK_DE, THUNK_MF, THUNK_XM, THUNK_GP, THUNK_UD, THUNK_EFAULT, THUNK_RETRY,
};

/* In front of the code. */
struct thunk_head {
	u32 len;	/* of the code */
	u32 insn;	/* offset of the guest's instruction in it */
};

enum thunk_class { NONE, INT, VEC, X87, NOP };

static const u8 allowed[ZYDIS_MNEMONIC_MAX_VALUE + 1] = {
#define THUNK(mnemonic, class) [ZYDIS_MNEMONIC_##mnemonic] = class,
#include "x86/interp/thunk_allow.def"
#undef THUNK
};

/* ---- analysis --------------------------------------------------------------------- */

struct thunk_plan {
	const ZydisDecodedInstruction *zi;
	const ZydisDecodedOperand *ops;
	const u8 *bytes;
	const ZydisDecodedOperand *mem;	/* or NULL */
	enum thunk_class class;
	bool mode64;
	u16 gprs, gprs_written;		/* guest registers; RSP only if explicit */
	u16 vecs, vecs_written;
	bool high8, ymm, vex, x87, mxcsr, gpr_operand;
	bool is4;			/* the immediate names a register */
	bool flags_in, flags_out;
	u8 v, m, t;			/* host registers: vcpu, memory pointer, guest rsp */
};

static bool analyse_gpr(struct thunk_plan *p, const ZydisDecodedOperand *op, u8 r, bool high8)
{
	if (r == RSP && op->encoding == ZYDIS_OPERAND_ENCODING_NONE)
		return false;
	p->gprs |= BIT(r);
	p->gpr_operand = true;
	if (op->actions & ZYDIS_OPERAND_ACTION_MASK_WRITE)
		p->gprs_written |= BIT(r);
	p->high8 |= high8 && op->encoding != ZYDIS_OPERAND_ENCODING_NONE;
	return true;
}

static bool analyse_vector(struct thunk_plan *p, const ZydisDecodedOperand *op, unsigned nr)
{
	if (nr > 15)
		return false;
	p->is4 |= op->encoding == ZYDIS_OPERAND_ENCODING_IS4;
	p->vecs |= BIT(nr);
	if (op->actions & ZYDIS_OPERAND_ACTION_MASK_WRITE)
		p->vecs_written |= BIT(nr);
	return true;
}

static bool analyse_register(struct thunk_plan *p, const ZydisDecodedOperand *op)
{
	ZydisRegister reg = op->reg.value;
	bool high8;
	u8 r = gpr_from_zydis(reg, &high8);

	if (r != INSN_NOREG)
		return analyse_gpr(p, op, r, high8);
	switch (decode_reg_file(reg)) {
	case REG_FILE_YMM:
		p->ymm = true;
		return analyse_vector(p, op, reg - ZYDIS_REGISTER_YMM0);
	case REG_FILE_XMM:
		return analyse_vector(p, op, reg - ZYDIS_REGISTER_XMM0);
	case REG_FILE_X87:
		p->x87 = true;
		return true;
	case REG_FILE_FLAGS:
		return true;
	case REG_FILE_MXCSR:
		p->mxcsr = true;
		return true;
	default:
		return false;
	}
}

static bool analyse_memory(struct thunk_plan *p, const ZydisDecodedOperand *op)
{
	unsigned size = op->size / 8;

	if (p->mem || op->mem.type != ZYDIS_MEMOP_TYPE_MEM || !size || size > THUNK_MEM_MAX ||
	    op->visibility != ZYDIS_OPERAND_VISIBILITY_EXPLICIT ||
	    op->encoding != ZYDIS_OPERAND_ENCODING_MODRM_RM)
		return false;
	p->mem = op;
	return true;
}

static bool may_be_bit_string(const struct thunk_plan *p)
{
	switch (p->zi->mnemonic) {
	case ZYDIS_MNEMONIC_BT:
	case ZYDIS_MNEMONIC_BTS:
	case ZYDIS_MNEMONIC_BTR:
	case ZYDIS_MNEMONIC_BTC:
		return p->mem && p->ops[1].type != ZYDIS_OPERAND_TYPE_IMMEDIATE;
	default:
		return false;
	}
}

static void analyse_flags(struct thunk_plan *p)
{
	const ZydisAccessedFlags *f = p->zi->cpu_flags;
	u32 tested, defined, undefined;

	if (!f)
		return;
	tested = f->tested & X86_EFLAGS_OSZAPC;
	defined = (f->modified | f->set_0 | f->set_1) & X86_EFLAGS_OSZAPC;
	undefined = f->undefined & X86_EFLAGS_OSZAPC;
	p->flags_out = defined | undefined;
	/* A shift by zero keeps them; undefined ones may turn out to be kept. */
	p->flags_in = tested || (p->flags_out && (defined != X86_EFLAGS_OSZAPC || undefined ||
						  p->zi->meta.category == ZYDIS_CATEGORY_SHIFT ||
						  p->zi->meta.category == ZYDIS_CATEGORY_ROTATE));
}

static u8 pick(u16 taken, const u8 *from, unsigned n)
{
	for (unsigned i = 0; i < n; i++)
		if (!(taken & BIT(from[i])))
			return from[i];
	return INSN_NOREG;
}

/* M must encode as a plain [reg]: neither rsp/r12 nor rbp/r13. */
static bool pick_registers(struct thunk_plan *p)
{
	static const u8 for_t[] = { RBP, RBX, RDI, RSI, RDX, RCX, RAX };
	static const u8 for_m[] = { RSI, RDI, RBX, RDX, RCX, RAX };
	static const u8 for_v[] = { R15, R14, R11, R10, R9, R8 };
	u16 taken = p->gprs;

	p->t = RSP;
	if (p->gprs & BIT(RSP)) {
		p->t = pick(taken, for_t, ARRAY_SIZE(for_t));
		if (p->t == INSN_NOREG)
			return false;
		taken |= BIT(p->t);
	}
	if (p->mem) {
		p->m = pick(taken, for_m, ARRAY_SIZE(for_m));
		if (p->m == INSN_NOREG)
			return false;
	}
	p->v = pick(taken, for_v, ARRAY_SIZE(for_v));
	return p->v != INSN_NOREG;
}

static bool analyse(struct thunk_plan *p)
{
	const ZydisDecodedInstruction *zi = p->zi;

	if (zi->encoding != ZYDIS_INSTRUCTION_ENCODING_LEGACY && zi->encoding != ZYDIS_INSTRUCTION_ENCODING_VEX)
		return false;
	if (zi->meta.category == ZYDIS_CATEGORY_STRINGOP)
		return false;
	for (unsigned i = 0; i < zi->operand_count; i++) {
		const ZydisDecodedOperand *op = &p->ops[i];
		bool ok = false;

		if (op->type == ZYDIS_OPERAND_TYPE_REGISTER)
			ok = analyse_register(p, op);
		else if (op->type == ZYDIS_OPERAND_TYPE_MEMORY)
			ok = analyse_memory(p, op);
		else if (op->type == ZYDIS_OPERAND_TYPE_IMMEDIATE)
			ok = true;
		if (!ok)
			return false;
	}
	if (may_be_bit_string(p))
		return false;
	/* INC and DEC of one byte, encoded as REX in 64-bit mode. */
	if (!(zi->attributes & ZYDIS_ATTRIB_HAS_MODRM) && zi->opcode_map == ZYDIS_OPCODE_MAP_DEFAULT &&
	    zi->opcode >= 0x40 && zi->opcode <= 0x4f)
		return false;
	p->vex = zi->encoding == ZYDIS_INSTRUCTION_ENCODING_VEX;
	p->x87 |= p->class == X87;
	p->mxcsr |= p->class == VEC && decode_uses_mxcsr(zi);
	analyse_flags(p);
	return pick_registers(p);
}

/* ---- emission ------------------------------------------------------------------------- */

struct emit {
	u8 b[THUNK_MAX_BYTES];
	unsigned n, insn;
	u8 v;
};

static void put(struct emit *e, u8 byte)
{
	if (e->n < sizeof(e->b))
		e->b[e->n] = byte;
	e->n++;
}

static void put_bytes(struct emit *e, const void *bytes, unsigned n)
{
	for (unsigned i = 0; i < n; i++)
		put(e, ((const u8 *)bytes)[i]);
}

#define VCPU_REG(r) (offsetof(struct vcpu, arch.regs) + 8 * (r))
#define VCPU_YMM(r) (offsetof(struct vcpu, arch.fpu.ymm) + 32 * (r))
#define VCPU_RFLAGS offsetof(struct vcpu, arch.rflags)

static void put_modrm_vcpu(struct emit *e, unsigned reg, u32 offset)
{
	put(e, 0x80 | (reg & 7) << 3 | (e->v & 7));
	put_bytes(e, &offset, 4);
}

/* [REX] opcode reg, [V + offset] */
static void put_op_vcpu(struct emit *e, bool wide, u8 map0f, u8 opcode, unsigned reg, u32 offset)
{
	put(e, 0x40 | wide << 3 | (reg >> 3) << 2 | e->v >> 3);
	if (map0f)
		put(e, 0x0f);
	put(e, opcode);
	put_modrm_vcpu(e, reg, offset);
}

static void put_vector(struct emit *e, bool vex, bool ymm, bool store, unsigned reg)
{
	u8 opcode = store ? 0x29 : 0x28;

	if (!vex) {
		put_op_vcpu(e, false, true, opcode, reg, VCPU_YMM(reg));
		return;
	}
	put(e, 0xc4);
	put(e, (reg < 8) << 7 | 1 << 6 | (e->v < 8) << 5 | 1);
	put(e, 0x78 | ymm << 2);
	put(e, opcode);
	put_modrm_vcpu(e, reg, VCPU_YMM(reg));
}

static void put_mov_rr(struct emit *e, u8 dst, u8 src)
{
	put(e, 0x48 | (src >> 3) << 2 | dst >> 3);
	put(e, 0x89);
	put(e, 0xc0 | (src & 7) << 3 | (dst & 7));
}

/* rflags -> host flags; uses eax and ecx. */
static void put_load_flags(struct emit *e)
{
	static const u8 code[] = {
		0x89, 0xc1,		/* mov %eax, %ecx */
		0xc1, 0xe9, 0x0b,	/* shr $11, %ecx */
		0x83, 0xe1, 0x01,	/* and $1, %ecx */
		0x88, 0xc4,		/* mov %al, %ah */
		0x80, 0xc1, 0x7f,	/* add $0x7f, %cl: overflows if it was 1 */
		0x9e,			/* sahf */
	};

	put_op_vcpu(e, false, false, 0x8b, RAX, VCPU_RFLAGS);
	put_bytes(e, code, sizeof(code));
}

/* host flags -> rflags; uses rax, rcx, rdx, all stored by now. */
static void put_store_flags(struct emit *e)
{
	static const u8 collect[] = {
		0x9f,				/* lahf */
		0x0f, 0x90, 0xc0,		/* seto %al */
		0x0f, 0xb6, 0xcc,		/* movzx %ah, %ecx */
		0x81, 0xe1, 0xd5, 0, 0, 0,	/* and $0xd5, %ecx */
		0x0f, 0xb6, 0xc0,		/* movzx %al, %eax */
		0xc1, 0xe0, 0x0b,		/* shl $11, %eax */
		0x09, 0xc1,			/* or %eax, %ecx */
	};
	static const u8 merge[] = {
		0x25, 0x2a, 0xf7, 0xff, 0xff,	/* and $~OSZAPC, %eax */
		0x09, 0xc8,			/* or %ecx, %eax */
	};

	put_bytes(e, collect, sizeof(collect));
	put_op_vcpu(e, false, false, 0x8b, RAX, VCPU_RFLAGS);
	put_bytes(e, merge, sizeof(merge));
	put_op_vcpu(e, true, false, 0x89, RAX, VCPU_RFLAGS);
}

/* ---- the instruction itself --------------------------------------------------------------- */

/* Register fields after replacing the memory base and guest rsp. */
struct fields {
	u8 reg, rm, opcode_reg, vvvv;
	bool has_modrm, memory, has_opcode_reg;
};

static bool is_guest_rsp(const ZydisDecodedOperand *op)
{
	bool high8;

	return op->type == ZYDIS_OPERAND_TYPE_REGISTER && gpr_from_zydis(op->reg.value, &high8) == RSP;
}

static struct fields get_fields(const struct thunk_plan *p, u8 r, u8 x, u8 b, u8 vvvv)
{
	const ZydisDecodedInstruction *zi = p->zi;
	struct fields f = {
		.has_modrm = zi->attributes & ZYDIS_ATTRIB_HAS_MODRM,
		.reg = zi->raw.modrm.reg | r << 3,
		.rm = zi->raw.modrm.rm | b << 3,
		.vvvv = vvvv,
		.memory = p->mem,
	};

	for (unsigned i = 0; i < zi->operand_count; i++) {
		const ZydisDecodedOperand *op = &p->ops[i];
		bool high8;

		if (op->encoding == ZYDIS_OPERAND_ENCODING_OPCODE && op->type == ZYDIS_OPERAND_TYPE_REGISTER &&
		    gpr_from_zydis(op->reg.value, &high8) != INSN_NOREG) {
			f.has_opcode_reg = true;
			f.opcode_reg = (zi->opcode & 7) | b << 3;
		}
		if (!is_guest_rsp(op))
			continue;
		switch (op->encoding) {
		case ZYDIS_OPERAND_ENCODING_MODRM_REG: f.reg = p->t; break;
		case ZYDIS_OPERAND_ENCODING_MODRM_RM: f.rm = p->t; break;
		case ZYDIS_OPERAND_ENCODING_OPCODE: f.opcode_reg = p->t; break;
		case ZYDIS_OPERAND_ENCODING_NDSNDD: f.vvvv = p->t; break;
		default: break;
		}
	}
	if (f.memory)
		f.rm = p->m;
	return f;
}

static void put_modrm(struct emit *e, const struct thunk_plan *p, const struct fields *f)
{
	if (f->has_modrm)
		put(e, (f->memory ? 0 : p->zi->raw.modrm.mod << 6) | (f->reg & 7) << 3 | (f->rm & 7));
}

/* Whatever follows the address bytes: immediates, is4 registers. */
static void put_immediates(struct emit *e, const struct thunk_plan *p)
{
	const ZydisDecodedInstruction *zi = p->zi;
	unsigned at = zi->length;

	if (zi->attributes & ZYDIS_ATTRIB_HAS_MODRM) {
		at = zi->raw.modrm.offset + 1 + (zi->attributes & ZYDIS_ATTRIB_HAS_SIB ? 1 : 0) +
		     zi->raw.disp.size / 8;
	} else if (zi->raw.imm[0].size) {
		at = zi->raw.imm[0].offset;
	}
	for (; at < zi->length; at++)
		put(e, p->bytes[at] & (p->is4 && !p->mode64 ? 0x7f : 0xff));
}

static bool wants_operand_size_prefix(const struct thunk_plan *p)
{
	return p->class == INT && p->zi->operand_width == 16 &&
	       p->zi->mnemonic != ZYDIS_MNEMONIC_CMPXCHG8B;
}

/* An 8-bit operand in a register that only REX names (SPL..DIL). */
static bool wants_bare_rex(const struct thunk_plan *p)
{
	return p->mode64 && (p->zi->attributes & ZYDIS_ATTRIB_HAS_REX) && !p->high8;
}

static bool put_legacy(struct emit *e, const struct thunk_plan *p)
{
	const ZydisDecodedInstruction *zi = p->zi;
	bool has_rex = p->mode64 && (zi->attributes & ZYDIS_ATTRIB_HAS_REX);
	u8 w = has_rex && zi->raw.rex.W, r = has_rex && zi->raw.rex.R, x = has_rex && zi->raw.rex.X,
	   b = has_rex && zi->raw.rex.B;
	struct fields f = get_fields(p, r, x, b, 0);
	bool size_prefix = wants_operand_size_prefix(p);
	u8 rex;

	for (unsigned i = 0; i < zi->raw.prefix_count; i++) {
		u8 value = zi->raw.prefixes[i].value;

		if (zi->raw.prefixes[i].type != ZYDIS_PREFIX_TYPE_MANDATORY)
			continue;
		if (value != 0x66 && value != 0xf2 && value != 0xf3)
			continue;
		if (value == 0x66)
			size_prefix = true;
		else
			put(e, value);
	}
	if (size_prefix)
		put(e, 0x66);
	if (zi->attributes & ZYDIS_ATTRIB_HAS_LOCK)
		put(e, 0xf0);
	if (f.has_opcode_reg)
		f.rm = f.opcode_reg;
	rex = w << 3 | (f.has_modrm && f.reg > 7) << 2 | ((f.has_modrm || f.has_opcode_reg) && f.rm > 7);
	if (rex && p->high8)
		return false;
	if (rex || wants_bare_rex(p))
		put(e, 0x40 | rex);
	switch (zi->opcode_map) {
	case ZYDIS_OPCODE_MAP_DEFAULT:
		break;
	case ZYDIS_OPCODE_MAP_0F:
		put(e, 0x0f);
		break;
	case ZYDIS_OPCODE_MAP_0F38:
		put(e, 0x0f);
		put(e, 0x38);
		break;
	case ZYDIS_OPCODE_MAP_0F3A:
		put(e, 0x0f);
		put(e, 0x3a);
		break;
	default:
		return false;
	}
	if (zi->opcode_map == ZYDIS_OPCODE_MAP_DEFAULT && zi->opcode == 0x82)
		put(e, 0x80); /* its alias, which 64-bit mode has kept */
	else
		put(e, f.has_opcode_reg ? (zi->opcode & ~7) | (f.opcode_reg & 7) : zi->opcode);
	put_modrm(e, p, &f);
	put_immediates(e, p);
	return true;
}

/* W would make these access 64 bits; outside 64-bit mode it is ignored. */
static bool has_gpr_of_w(const struct thunk_plan *p)
{
	switch (p->zi->mnemonic) {
	case ZYDIS_MNEMONIC_VCVTSI2SD:
	case ZYDIS_MNEMONIC_VCVTSI2SS:
	case ZYDIS_MNEMONIC_VMOVD:
	case ZYDIS_MNEMONIC_VPEXTRD:
	case ZYDIS_MNEMONIC_VPINSRD:
		return true;
	default:
		return p->gpr_operand;
	}
}

/* Always the three-byte form. Outside 64-bit mode the bits that select registers 8 to 15 mean nothing. */
static bool put_vex(struct emit *e, const struct thunk_plan *p)
{
	const u8 *vex = p->bytes + p->zi->raw.vex.offset;
	bool three = vex[0] == 0xc4;
	u8 b1 = three ? vex[1] : (vex[1] & 0x80) | 0x61;
	u8 b2 = three ? vex[2] : vex[1] & 0x7f;
	struct fields f;

	if (!p->mode64) {
		b1 |= 0xe0;
		b2 |= 0x40;
		if (has_gpr_of_w(p))
			b2 &= 0x7f;
	}
	f = get_fields(p, !(b1 & 0x80), !(b1 & 0x40), !(b1 & 0x20), ~(b2 >> 3) & 15);
	put(e, 0xc4);
	put(e, (f.reg < 8) << 7 | 1 << 6 | (f.rm < 8) << 5 | (b1 & 0x1f));
	put(e, (b2 & 0x87) | (~f.vvvv & 15) << 3);
	put(e, p->zi->opcode);
	put_modrm(e, p, &f);
	put_immediates(e, p);
	return true;
}

static void put_entry(struct emit *e, const struct thunk_plan *p)
{
	put_mov_rr(e, p->v, RDI);
	if (p->flags_in)
		put_load_flags(e);
	if (p->mem && p->m != RSI)
		put_mov_rr(e, p->m, RSI);
	for (unsigned i = 0; i < 16; i++)
		if (p->vecs & BIT(i))
			put_vector(e, p->vex, p->ymm, false, i);
	for (unsigned i = 0; i < 16; i++)
		if (p->gprs & BIT(i))
			put_op_vcpu(e, true, false, 0x8b, i == RSP ? p->t : i, VCPU_REG(i));
}

static void put_exit(struct emit *e, const struct thunk_plan *p)
{
	for (unsigned i = 0; i < 16; i++)
		if (p->gprs_written & BIT(i))
			put_op_vcpu(e, true, false, 0x89, i == RSP ? p->t : i, VCPU_REG(i));
	if (p->flags_out)
		put_store_flags(e);
	/* A VEX destination of 128 bits has its upper half cleared: store all of it. */
	for (unsigned i = 0; i < 16; i++)
		if (p->vecs_written & BIT(i))
			put_vector(e, p->vex, true, true, i);
	if (p->ymm)
		put_bytes(e, "\xc5\xf8\x77", 3); /* vzeroupper */
	put(e, 0xc3);
}

static bool emit_thunk(struct emit *e, const struct thunk_plan *p)
{
	e->n = 0;
	e->v = p->v;
	put_entry(e, p);
	e->insn = e->n;
	if (!(p->vex ? put_vex(e, p) : put_legacy(e, p)))
		return false;
	put_exit(e, p);
	return e->n <= sizeof(e->b);
}

/* ---- the cache of thunks ---------------------------------------------------------------------- */

static bool thunk_fault_handler(int sig, siginfo_t *info, ucontext_t *uc);

int thunk_cache_init(struct thunk_cache *cache)
{
	int r = codemem_init(&cache->mem, THUNK_ARENA_SIZE);

	if (r)
		return r;
	cache->hash = calloc(THUNK_HASH_SIZE, sizeof(*cache->hash));
	if (!cache->hash) {
		codemem_free(&cache->mem);
		return -ENOMEM;
	}
	thunk_cache_reset(cache);
	if (!host_register_code_fault(cache->mem.rx, cache->mem.rx + cache->mem.size, thunk_fault_handler)) {
		free(cache->hash);
		codemem_free(&cache->mem);
		return -ENOMEM;
	}
	return 0;
}

void thunk_cache_destroy(struct thunk_cache *cache)
{
	host_register_code_fault(cache->mem.rx, cache->mem.rx + cache->mem.size, NULL);
	codemem_free(&cache->mem);
	free(cache->hash);
	cache->hash = NULL;
}

void thunk_cache_reset(struct thunk_cache *cache)
{
	memset(cache->hash, 0, THUNK_HASH_SIZE * sizeof(*cache->hash));
	cache->mem.used = 16; /* offset 0 means none */
	cache->nr = 0;
}

bool thunk_cache_has_room(const struct thunk_cache *cache, unsigned nr)
{
	return cache->nr + nr <= THUNK_MAX_NR &&
	       cache->mem.used + nr * (THUNK_MAX_BYTES + 32ul) <= cache->mem.size;
}

static u32 hash_bytes(const u8 *b, unsigned n)
{
	u32 h = 2166136261u;

	for (unsigned i = 0; i < n; i++)
		h = (h ^ b[i]) * 16777619u;
	return h ^ h >> 15;
}

/* rx address of the code in e, shared with any other instruction that needs the same. */
static const void *thunk_intern(struct vcpu *vcpu, const struct emit *e)
{
	struct thunk_cache *cache = &vcpu->arch.interp->thunks;
	struct thunk_head head = { .len = e->n, .insn = e->insn };
	u32 i = hash_bytes(e->b, e->n) % THUNK_HASH_SIZE;
	u32 at;

	for (; cache->hash[i]; i = (i + 1) % THUNK_HASH_SIZE) {
		const u8 *old = cache->mem.rw + cache->hash[i];

		if (!memcmp(old - sizeof(head), &head, sizeof(head)) && !memcmp(old, e->b, e->n))
			return cache->mem.rx + cache->hash[i];
	}
	if (!thunk_cache_has_room(cache, 1))
		return NULL;
	at = ((cache->mem.used + sizeof(head) + 15) & ~15ul);
	memcpy(cache->mem.rw + at - sizeof(head), &head, sizeof(head));
	memcpy(cache->mem.rw + at, e->b, e->n);
	cache->mem.used = at + e->n;
	cache->hash[i] = at;
	cache->nr++;
	vcpu->stat.thunks_generated++;
	return cache->mem.rx + at;
}

/* ---- faults -------------------------------------------------------------------------------------- */

static enum thunk_fault fault_reason(int sig, const ucontext_t *uc)
{
	enum { TRAP_DE = 0, TRAP_GP = 13, TRAP_MF = 16 };
	greg_t trap = uc->uc_mcontext.gregs[REG_TRAPNO];

	switch (sig) {
	case SIGFPE:
		return trap == TRAP_DE ? THUNK_DE : trap == TRAP_MF ? THUNK_MF : THUNK_XM;
	case SIGILL:
		return THUNK_UD;
	case SIGSEGV:
		return trap == TRAP_GP ? THUNK_GP : THUNK_EFAULT;
	case SIGBUS:
		return THUNK_EFAULT;
	default:
		return THUNK_RETRY;
	}
}

/* In a signal handler, on the thread that runs the thunk: resume at thunk_leave if the guest's instruction is to blame. */
static bool thunk_fault_handler(int sig, siginfo_t *info, ucontext_t *uc)
{
	struct host_guest_ctx *ctx = host_guest_current;
	greg_t *gregs = uc->uc_mcontext.gregs;
	const struct thunk_head *head;
	u64 *frame;

	if (!ctx || !ctx->thunk_rsp)
		return false;
	frame = ctx->thunk_rsp;
	head = (const struct thunk_head *)frame[0] - 1;
	if ((u64)gregs[REG_RIP] != frame[0] + head->insn)
		return false;
	gregs[REG_RIP] = (greg_t)thunk_leave;
	gregs[REG_RSP] = (greg_t)frame;
	gregs[REG_RAX] = fault_reason(sig, uc);
	return true;
}

static coldpath enum exec thunk_failed(struct vcpu *vcpu, enum thunk_fault reason)
{
	switch (reason) {
	case THUNK_DE:
		return queue_exception(vcpu, DE_VECTOR);
	case THUNK_MF:
		return queue_exception(vcpu, MF_VECTOR);
	case THUNK_XM:
		return vcpu->arch.cr4 & X86_CR4_OSXMMEXCPT ? queue_exception(vcpu, XM_VECTOR) : queue_ud(vcpu);
	case THUNK_GP:
		return queue_gp(vcpu, 0);
	case THUNK_UD:
		return queue_ud(vcpu);
	case THUNK_RETRY:
		host_kicked = false;
		return EXEC_RETRY;
	default:
		return EXEC_EFAULT;
	}
}

/* ---- handlers --------------------------------------------------------------------------------------- */

static inline enum exec run_thunk(struct vcpu *vcpu, const struct insn *insn, void *mem)
{
	u32 reason;

	if (insn->thunk_flags & (THUNK_X87 | THUNK_MXCSR)) {
		if (insn->thunk_flags & THUNK_MXCSR)
			mxcsr_load(vcpu);
		if (insn->thunk_flags & THUNK_X87)
			x87_load(vcpu);
	}
	reason = thunk_enter(vcpu, mem, insn->thunk, &host_guest_current->thunk_rsp);
	if (unlikely(reason))
		return thunk_failed(vcpu, reason);
	if (insn->thunk_flags & THUNK_X87_POINTERS)
		x87_note(vcpu, insn);
	return EXEC_OK;
}

static enum exec op_thunk(struct vcpu *vcpu, const struct insn *insn)
{
	return run_thunk(vcpu, insn, NULL);
}

/* What an instruction that also stores may have changed by the time its store fails. */
struct undo {
	u64 regs[16], rflags, fip, fdp;
	u16 fop, fcs, fds;
	u8 fx[160];
};

static void undo_save(struct vcpu *vcpu, const struct insn *insn, struct undo *u)
{
	const struct vcpu_arch *a = &vcpu->arch;

	memcpy(u->regs, a->regs, sizeof(u->regs));
	u->rflags = a->rflags;
	if (insn->thunk_flags & THUNK_X87) {
		x87_sync(vcpu);
		memcpy(u->fx, a->fpu.fx, sizeof(u->fx));
		u->fcs = a->fpu.fcs;
		u->fds = a->fpu.fds;
		u->fop = a->fpu.fop;
		u->fip = a->fpu.fip;
		u->fdp = a->fpu.fdp;
	}
}

static void undo_apply(struct vcpu *vcpu, const struct insn *insn, const struct undo *u)
{
	struct vcpu_arch *a = &vcpu->arch;

	memcpy(a->regs, u->regs, sizeof(u->regs));
	a->rflags = u->rflags;
	if (insn->thunk_flags & THUNK_X87) {
		x87_discard(vcpu);
		memcpy(a->fpu.fx, u->fx, sizeof(u->fx));
		a->fpu.fcs = u->fcs;
		a->fpu.fds = u->fds;
		a->fpu.fop = u->fop;
		a->fpu.fip = u->fip;
		a->fpu.fdp = u->fdp;
	}
}

/*
 * The operand is not one plain piece of RAM: execute on a copy at the same
 * offset modulo 64. All permission checks come first; if the store needs
 * userspace the instruction is as if it had not run.
 */
static enum exec run_bounced(struct vcpu *vcpu, const struct insn *insn, gva_t va)
{
	_Alignas(64) u8 buf[128 + THUNK_MEM_MAX];
	u8 *p = buf + (va & 63);
	bool write = insn->flags & INSN_WRITES_MEM;
	unsigned access = mmu_data_access(vcpu, MMU_READ);
	struct undo undo;
	enum exec r = EXEC_OK;

	if (write)
		r = mem_probe_write(vcpu, va, insn->memsize, access);
	/* A conditional store (x87's too: not after an unmasked exception) writes back what it found. */
	if (r == EXEC_OK && (!write || (insn->flags & INSN_READS_MEM) || (insn->thunk_flags & THUNK_X87)))
		r = mem_read(vcpu, va, p, insn->memsize, access);
	if (r != EXEC_OK)
		return r;
	if (!write)
		return run_thunk(vcpu, insn, p);
	undo_save(vcpu, insn, &undo);
	r = run_thunk(vcpu, insn, p);
	if (r != EXEC_OK)
		return r;
	r = mem_write(vcpu, va, p, insn->memsize, mmu_data_access(vcpu, MMU_WRITE));
	if (r != EXEC_OK)
		undo_apply(vcpu, insn, &undo);
	return r;
}

/* Locked, and across two pages: atomic with respect to others of its kind, as the bus lock was. */
static enum exec run_split_lock(struct vcpu *vcpu, const struct insn *insn, gva_t va)
{
	_Atomic u32 *lock = &vcpu->vm->arch.split_lock;
	enum exec r;

	while (atomic_exchange_explicit(lock, 1, memory_order_acquire))
		sched_yield();
	r = run_bounced(vcpu, insn, va);
	atomic_store_explicit(lock, 0, memory_order_release);
	return r;
}

static never_inline enum exec op_thunk_mem_slow(struct vcpu *vcpu, const struct insn *insn, gva_t va)
{
	enum exec r;
	void *p;

	if (!(insn->thunk_flags & THUNK_ATOMIC))
		return run_bounced(vcpu, insn, va);
	p = mem_host_atomic(vcpu, va, insn->memsize, &r);
	if (p)
		return run_thunk(vcpu, insn, p);
	return r == EXEC_OK ? run_split_lock(vcpu, insn, va) : r;
}

/* Comes before anything else that may be wrong with the operand. */
static inline bool is_misaligned(const struct vcpu *vcpu, const struct insn *insn)
{
	u64 va = insn_offset(vcpu, insn);

	if (!in_64bit_mode(vcpu) || insn->seg >= SEG_FS)
		va += vcpu->arch.seg[insn->seg].base;
	return va & (insn->memsize - 1);
}

static never_inline bool may_be_misaligned(struct vcpu *vcpu, const struct insn *insn)
{
	if (!(insn->thunk_flags & THUNK_MISALIGNABLE))
		return false;
	mxcsr_sync(vcpu);
	if (!(vcpu->arch.fpu.mxcsr & MXCSR_MM))
		return false;
	mxcsr_load(vcpu);
	return true;
}

static enum exec op_thunk_mem(struct vcpu *vcpu, const struct insn *insn)
{
	bool write = insn->flags & INSN_WRITES_MEM;
	enum exec r;
	gva_t va;
	void *p;

	if (unlikely(insn->thunk_flags & THUNK_X87_WAIT)) {
		r = wait_for_x87(vcpu);
		if (r != EXEC_OK)
			return r;
	}
	if (unlikely(insn->thunk_flags & THUNK_ALIGNED) && is_misaligned(vcpu, insn) && !may_be_misaligned(vcpu, insn))
		return queue_gp(vcpu, 0);
	r = insn_linear(vcpu, insn, insn->memsize, write, &va);
	if (unlikely(r != EXEC_OK))
		return r;
	if (unlikely(insn->thunk_flags & THUNK_UNCHECKED))
		return run_bounced(vcpu, insn, va);
	p = mem_host(vcpu, va, insn->memsize, write, &r);
	if (likely(p))
		return run_thunk(vcpu, insn, p);
	return r == EXEC_OK ? op_thunk_mem_slow(vcpu, insn, va) : r;
}

/* Cache lines are not ours to flush, but the address must be a readable one. */
static enum exec op_clflush(struct vcpu *vcpu, const struct insn *insn)
{
	gva_t va;
	enum exec r = insn_linear(vcpu, insn, 1, false, &va);

	if (r == EXEC_OK)
		mem_host(vcpu, va, 1, false, &r);
	return r;
}

static bool is_clflush(ZydisMnemonic m)
{
	return m == ZYDIS_MNEMONIC_CLFLUSH || m == ZYDIS_MNEMONIC_CLFLUSHOPT || m == ZYDIS_MNEMONIC_CLWB;
}

static enum exec op_hint(struct vcpu *vcpu, const struct insn *insn)
{
	return EXEC_OK;
}

/* Spinning for another vCPU that may be waiting for this very core: what pause-loop exits are for. */
#define PAUSES_PER_YIELD 512

static enum exec op_pause(struct vcpu *vcpu, const struct insn *insn)
{
	if (unlikely(++vcpu->arch.interp->pauses % PAUSES_PER_YIELD == 0))
		sched_yield();
	return EXEC_OK;
}

/* ---- selection ------------------------------------------------------------------------------------------ */

/* Control instructions leave the instruction and data pointers alone. */
static bool is_x87_control(ZydisMnemonic m)
{
	switch (m) {
	case ZYDIS_MNEMONIC_FLDCW:
	case ZYDIS_MNEMONIC_FNSTCW:
	case ZYDIS_MNEMONIC_FNSTSW:
	case ZYDIS_MNEMONIC_FNCLEX:
	case ZYDIS_MNEMONIC_FDISI8087_NOP:
	case ZYDIS_MNEMONIC_FENI8087_NOP:
	case ZYDIS_MNEMONIC_FSETPM287_NOP:
		return true;
	default:
		return false;
	}
}

/* Packed SSE operands, but for those of instructions made for any alignment; of VEX ones the aligned moves. */
static u32 alignment_flags(const struct thunk_plan *p)
{
	unsigned class = p->zi->meta.exception_class;

	if (p->zi->mnemonic == ZYDIS_MNEMONIC_CMPXCHG16B)
		return THUNK_ALIGNED;
	if (!p->mem || p->class != VEC || (p->mem->size != 128 && p->mem->size != 256))
		return 0;
	if (p->vex)
		return class == ZYDIS_EXCEPTION_CLASS_AVX1 ? THUNK_ALIGNED : 0;
	switch (p->zi->mnemonic) {
	case ZYDIS_MNEMONIC_MOVUPS:
	case ZYDIS_MNEMONIC_MOVUPD:
	case ZYDIS_MNEMONIC_MOVDQU:
	case ZYDIS_MNEMONIC_LDDQU:
	case ZYDIS_MNEMONIC_PCMPESTRI:
	case ZYDIS_MNEMONIC_PCMPESTRM:
	case ZYDIS_MNEMONIC_PCMPISTRI:
	case ZYDIS_MNEMONIC_PCMPISTRM:
		return 0;
	default:
		if (p->zi->meta.isa_ext == ZYDIS_ISA_EXT_SHA)
			return host_is_amd() ? 0 : THUNK_ALIGNED;
		return class == ZYDIS_EXCEPTION_CLASS_SSE1 ? THUNK_ALIGNED : THUNK_ALIGNED | THUNK_MISALIGNABLE;
	}
}

/* Half precision's, and of Intel's CPUs only (exceptions of class 11; tests/insn/oracle). */
static bool is_unchecked(const struct thunk_plan *p)
{
	return p->mem && host_is_intel() &&
	       (p->zi->mnemonic == ZYDIS_MNEMONIC_VCVTPH2PS || p->zi->mnemonic == ZYDIS_MNEMONIC_VCVTPS2PH);
}

static u32 plan_flags(const struct thunk_plan *p)
{
	const ZydisDecodedInstruction *zi = p->zi;
	u32 flags = alignment_flags(p);

	if (p->x87)
		flags |= THUNK_X87;
	if (p->x87 && (!is_x87_control(zi->mnemonic) || zi->mnemonic == ZYDIS_MNEMONIC_FLDCW))
		flags |= THUNK_X87_WAIT;
	if (p->mxcsr)
		flags |= THUNK_MXCSR;
	if (is_unchecked(p))
		flags |= THUNK_UNCHECKED;
	if (p->class == X87 && !is_x87_control(zi->mnemonic))
		flags |= THUNK_X87_POINTERS;
	if (p->mem && ((zi->attributes & ZYDIS_ATTRIB_HAS_LOCK) || zi->mnemonic == ZYDIS_MNEMONIC_XCHG))
		flags |= THUNK_ATOMIC;
	return flags;
}

/* AMD's CPUs know no VPEXTRD and VPINSRD with W set outside 64-bit mode. */
static bool is_w1_refused(const struct thunk_plan *p)
{
	return !p->mode64 && p->zi->raw.vex.W && host_is_amd() &&
	       (p->zi->mnemonic == ZYDIS_MNEMONIC_VPEXTRD || p->zi->mnemonic == ZYDIS_MNEMONIC_VPINSRD);
}

/* What the host would refuse must not fault on its operand before: whole extensions that one vendor lacks. */
static bool is_missing(const struct thunk_plan *p)
{
	u32 eax, ebx, ecx, edx;

	if (p->zi->meta.isa_ext != ZYDIS_ISA_EXT_SSE4A)
		return false;
	host_cpuid(0x80000001, 0, &eax, &ebx, &ecx, &edx);
	return !(ecx & BIT(6));
}

insn_fn thunk_select(const struct decode_ctx *ctx, struct insn *insn)
{
	struct thunk_plan plan = {
		.zi = ctx->zi,
		.ops = ctx->ops,
		.bytes = ctx->bytes,
		.class = allowed[ctx->zi->mnemonic],
		.mode64 = in_64bit_mode(ctx->vcpu),
	};
	struct emit e;

	if (plan.class == NONE || is_w1_refused(&plan) || is_missing(&plan))
		return NULL;
	if (plan.class == NOP && is_clflush(ctx->zi->mnemonic))
		return op_clflush;
	if (plan.class == NOP)
		return ctx->zi->mnemonic == ZYDIS_MNEMONIC_PAUSE ? op_pause : op_hint;
	if (!analyse(&plan) || !emit_thunk(&e, &plan))
		return NULL;
	insn->thunk_flags = plan_flags(&plan);
	if (insn->thunk_flags & THUNK_X87_POINTERS)
		insn->imm2 = (ctx->zi->opcode & 7) << 8 | ctx->bytes[ctx->zi->raw.modrm.offset];
	insn->thunk = thunk_intern(ctx->vcpu, &e);
	if (VM_BUG_ON(!insn->thunk, ctx->vcpu->vm))
		return NULL;
	return plan.mem ? op_thunk_mem : op_thunk;
}

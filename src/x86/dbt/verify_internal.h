/* SPDX-License-Identifier: MIT */
/* Private to the verifier of blocks: verify.c and the files it names. */
#ifndef SOFTKVM_X86_DBT_VERIFY_INTERNAL_H
#define SOFTKVM_X86_DBT_VERIFY_INTERNAL_H

#include "x86/dbt/verify.h"

enum value_kind {
	ANY,		/* the guest's, or anything else that is no address of ours; without a name */
	SYM,		/* name + a */
	CONST,		/* a */
	SHIFTED,	/* A >> 9, but for its upper 9 bits */
	INDEX,		/* (A >> 9) & mask: byte offset of A's entry in a TLB's array */
	BITS,		/* name; only bits in a may be set */
	OFFSET,		/* A + tag of A's entry */
	TAG,		/* tag of A's entry */
	/* Not for guests: */
	DELTA,		/* delta of A's entry */
	PAGE,		/* A's page: delta - tag of A's entry */
	HOST,		/* A + delta of A's entry + c */
	VCPU,		/* the vCPU's pointer */
	CODE,		/* of a block's entry, or of this block's code at `a`, verified for whoever comes there */
	SECRET,		/* made of these */
};

/* A is name + a, or a itself without a name. */
struct value {
	u8 kind;
	bool write;	/* OFFSET, TAG: of the write tags */
	u16 ctx;
	u32 name;
	u64 a;
	s64 c;
};

/*
 * In ctx: of the stack's entry of that TLB, or of a fixed one (those for writes come last), not of one that A selects. Its tag is for
 * any A; its delta or page is A's, and remains that, if A has been found to be on its page (FACT_ENTRY) and nothing has been called since.
 */
#define OF_STACK BIT(3)
#define OF_FIXED(n) (((n) + 2) << 3)
static_assert(NR_TLBS <= 8 && OF_FIXED(2 * TLB_FIXED) <= UINT16_MAX, "in one word");

struct fact {
	enum { FACT_CHECKED, FACT_JUMP, FACT_ENTRY } kind;
	bool write;
	u16 ctx;
	u32 name;	/* CHECKED: [A, A + size) is in one page of the TLB. JUMP: entry `name`, or a without one, has compared equal */
	u64 a;
	u32 size;	/* JUMP: enum table, of the addresses */
};

enum flags_kind { FLAGS_NONE, FLAGS_OFFSET, FLAGS_JUMP, FLAGS_X87 };

#define NR_SLOTS (FRAME_SIZE / 8)
#define FACTS_MAX 72

struct state {
	struct value reg[16], slot[NR_SLOTS];
	struct fact facts[FACTS_MAX];
	u32 nr_facts;
	bool x87;	/* x87 and MMX registers are the guest's */
	/* The flags come from comparing value with limit, or value (an index) with its jump table entry's address, or FRAME_X87 with 0. */
	enum flags_kind flags;
	struct value compared;
	u64 limit;	/* JUMP: enum table */
};

struct label {
	u32 at;
	bool pending, seen;
	struct state in;
};

#define LABELS_MAX 1024

/* What a name above EXPRESSION stands for: x + y * scale, both names or 0. */
struct expression {
	u32 x, y, scale;
};
#define EXPRESSIONS_MAX 1024
#define EXPRESSION BIT(31)
/* What is in FRAME_PAGE. */
#define PAGE_NAME BIT(30)

struct dbt_verifier {
	ZydisDecoder decoder, decoder32;
	u8 *entries;			/* bitmap over the code: entries of verified blocks */
	u8 *kinds;			/* of each byte of the block: 1 instruction starts here, 2 and is a label */
	struct label labels[LABELS_MAX];
	u32 nr_labels;
	struct expression expressions[EXPRESSIONS_MAX];
	u32 nr_expressions;
	u64 jump_va, jump_code, jump_stride; /* in struct jump_table */
	/* the block */
	struct vcpu *vcpu;
	struct dbt *d;
	const struct dbt_block *b;
	u32 start, end;			/* its straight path */
	u32 cold, cold_end;		/* the rest, further on */
	struct state now;
	/* the instruction */
	u32 pc;
	ZydisDecodedInstruction zi;
	ZydisDecodedOperand ops[ZYDIS_MAX_OPERAND_COUNT];
	const char *why;		/* not NULL: refused */
};

enum place { AT_FRAME, AT_MMU, AT_VCPU, AT_GUEST };

/* The tables of struct mmu. */
enum table { T_READ, T_WRITE, T_DELTA, T_STACK_TAG, T_STACK_DELTA, T_FIXED_TAG, T_FIXED_PAGE,
	     T_JUMP_VA, T_JUMP_CODE, T_RETURN_VA, T_RETURN_CODE, NR_TABLES };

struct operand {
	enum place place;
	s64 at;			/* FRAME, VCPU: offset */
	struct value value;	/* what a load of 8 bytes gives; JUMP tables: the index */
	enum table table;
	u16 ctx;
};

enum step { STEP_NEXT, STEP_END, STEP_BAD };

static inline bool refuse(struct dbt_verifier *v, const char *why)
{
	if (!v->why)
		v->why = why;
	return false;
}

/* ---- values ------------------------------------------------------------------------------------ */

static inline bool value_equal(const struct value *x, const struct value *y)
{
	return x->kind == y->kind && x->ctx == y->ctx && x->write == y->write && x->name == y->name &&
	       x->a == y->a && x->c == y->c;
}

static inline bool is_secret(const struct value *x)
{
	return x->kind >= DELTA;
}

/* what: a register's value before the instruction, after it (+ RESULT), or a slot's (+ IN_SLOT). */
enum { RESULT = 16, IN_SLOT = 32 };

/* Does the block have code at `at`? */
static inline bool in_block(const struct dbt_verifier *v, u32 at)
{
	return (at >= v->start && at < v->end) || (at >= v->cold && at < v->cold_end);
}

/* Bytes of the block before this one. */
static inline u32 bytes_before(const struct dbt_verifier *v, u32 at)
{
	return at < v->end ? at - v->start : at - v->cold + (v->end - v->start);
}

static inline u32 name_at(const struct dbt_verifier *v, u32 at, unsigned what)
{
	return (bytes_before(v, at) << 6 | what) + 1;
}

static inline u32 name_here(const struct dbt_verifier *v, unsigned what)
{
	return name_at(v, v->pc, what);
}

static const struct value any = { .kind = ANY };
static const struct value secret = { .kind = SECRET };

static inline struct value sym(u32 name)
{
	return (struct value){ .kind = SYM, .name = name };
}

static inline struct value constant(u64 a)
{
	return (struct value){ .kind = CONST, .a = a };
}

static inline struct value bits(const struct dbt_verifier *v, unsigned reg, u64 mask)
{
	return (struct value){ .kind = BITS, .name = name_here(v, reg + RESULT), .a = mask };
}

/* The value of a register, with a name. */
static inline struct value *reg_get(struct dbt_verifier *v, unsigned r)
{
	struct value *x = &v->now.reg[r];

	if (x->kind == ANY)
		*x = sym(name_here(v, r));
	return x;
}

/* Name and a are A. */
static inline bool is_address(const struct value *x)
{
	return x->kind == SYM || x->kind == CONST;
}

/* What is known of its bits is of no use in an address. */
static inline struct value as_address(const struct value *x)
{
	return x->kind == BITS ? sym(x->name) : *x;
}

static inline bool same_address(const struct value *x, const struct value *y)
{
	return x->name == y->name && x->a == y->a;
}

/* Something on the way to an entry of a table: no name of its own. */
static inline bool is_place(const struct value *x)
{
	return x->kind == SHIFTED || x->kind == INDEX || x->kind == OFFSET || x->kind == TAG;
}

/* Of r9 to r11. */
static inline bool is_guest_slot(s64 at)
{
	return at >= FRAME_R9 && at < FRAME_R9 + 24;
}

/* All bits that may be set. */
static inline u64 possible_bits(const struct value *x)
{
	return x->kind == BITS || x->kind == CONST ? x->a : x->kind == INDEX ? (TLB_ENTRIES - 1) * 8 : ~0ull;
}

/* Is it of an entry that no address selects? */
static inline bool of_own_entry(const struct value *x)
{
	return x->ctx >> 3;
}

static inline struct value derived(u8 kind, const struct value *address)
{
	return (struct value){ .kind = kind, .name = address->name, .a = address->a };
}

static inline u8 gpr(ZydisRegister reg)
{
	bool high8;

	return gpr_from_zydis(reg, &high8);
}

/* verify_state.c */
struct value value_add(struct dbt_verifier *v, const struct value *x, const struct value *y);
struct value value_scaled(struct dbt_verifier *v, const struct value *x, const struct value *y, u32 scale);
struct value value_sub(const struct value *x, const struct value *y);
struct value add_constant(const struct value *x, u64 n);
void fact_add(struct state *s, struct fact f);
/* What is known of entries that no address selects may not be so any more. */
void entries_forget(struct state *s);
bool is_checked(const struct state *s, const struct value *host, u32 size, bool write);
void state_forget(struct state *s);
void state_meet(struct dbt_verifier *v, struct label *l, const struct state *s);

/* verify_mem.c */
bool learn_jump_tables(struct dbt_verifier *v, struct vcpu *vcpu, struct dbt *d);
bool has_fault_row(const struct dbt *d, u32 at, u32 *stub);
bool mmu_operand(struct dbt_verifier *v, const ZydisDecodedOperand *op, struct operand *o);
struct value operand_address(struct dbt_verifier *v, const ZydisDecodedOperand *op);
bool classify_operand(struct dbt_verifier *v, const ZydisDecodedOperand *op, struct operand *o);

/* verify_insn.c */
bool verify_plain(struct dbt_verifier *v);

/* verify_flow.c */
struct label *label_at(struct dbt_verifier *v, u32 at);
bool flow_to(struct dbt_verifier *v, u32 target, const struct state *s);
/* May code at `at` be jumped to from anywhere? */
bool code_address(struct dbt_verifier *v, u32 at);
u32 branch_target(const struct dbt_verifier *v);
enum step verify_step(struct dbt_verifier *v);

#endif

/* SPDX-License-Identifier: MIT */
/* Private to the making of one block: translate.c and the files it names. */
#ifndef SOFTKVM_X86_DBT_TRANSLATE_H
#define SOFTKVM_X86_DBT_TRANSLATE_H

#include "x86/dbt/dbt.h"

enum kind {
	K_HANDLER, K_NATIVE, K_NOP, K_LEA, K_PUSH, K_POP, K_LEAVE, K_PUSHF, K_STAC, K_CLAC, K_CLI, K_STI, K_CLD, K_SWAPGS,
	K_JCC, K_JMP, K_JMP_IND, K_CALL, K_CALL_IND, K_RET, K_LOOP, K_JRCXZ,
};

enum copy_plus { PLUS_NOTHING, PLUS_ONE, MINUS_ONE, PLUS_IMM, MINUS_IMM, PLUS_DISP };

#define FLAGS_ALL ((u32)X86_EFLAGS_OSZAPC)

struct tinsn {
	/* What depends on its bytes and the mode only: a record keeps that (decoded.c). */
	struct insn insn;
	u32 record, zydis;		/* its number; where the arena has what Zydis says */
	u16 changes;			/* general registers: NATIVE, LEA, POP but for rsp */
	u16 reads, writes;		/* flags */
	u8 gpr;				/* LEA, PUSH, POP, JMP_IND, CALL_IND: the register it is about; NOREG: none */
	u8 cc;				/* JCC */
	u8 copy_to, copy_from;		/* NATIVE, LEA: the former becomes the latter and a constant, all 64 bits of them; NOREG: nothing such */
	u8 copy_plus;			/* enum copy_plus */
	u8 mem_size;			/* bytes of its memory operand */
	u8 high8;			/* NATIVE with AH, CH, DH or BH beside a memory operand: its number, 4 to 7 */
	u8 homed[3];			/* guest r9-r11 that are operands (not address) */
	u8 nr_homed : 2, homed_read : 3, homed_written : 3; /* how many; bits, by their place in homed[] */
	enum kind kind : 8;
	bool end : 1;			/* of the block */
	bool code32 : 1, vec : 1, may_fault : 1;
	bool mem : 1, mem_write : 1;	/* has a memory operand; writes it */
	bool excluded : 1;		/* from comparison with the interpreter (diff.c) */
	bool x87 : 1, x87_pointers : 1;	/* needs x87 or MMX registers; changes the pointers to instruction and operand */
	struct encoding encoding;	/* NATIVE */
	/* What its block makes of it. */
	const u8 *bytes;
	const ZydisDecodedInstruction *zi;
	const ZydisDecodedOperand *ops;
	u64 rip;
	bool relative;			/* rip is in the page */
	s8 range;			/* of its memory access, -1: none */
	bool inverted;			/* JCC: the straight path is the one where it is taken */
	bool in_range;			/* one begins here or before, and lasts: no way back from the handler */
	s32 range_at;			/* of its access, from the range's first */
	u32 live_before, live_after, needs; /* flags; needs: must be in the host's flags when it executes */
};
#define TINSN_KEPT (offsetof(struct tinsn, encoding) + sizeof(struct encoding))

/* The address of the page that a relative block is on, as if it were a register of the guest's. */
#define PAGE_REG 16

/* An address: guest registers, constant, base of a segment. */
struct ea {
	u8 base, index, scale;
	u8 seg;
	bool addr32;
	bool flat32;	/* so is the linear address, including the base of FS or GS */
	s64 disp;
};

static inline bool ea_is_constant(const struct ea *ea)
{
	return ea->seg < SEG_FS && !ea->addr32 && ea->base == NOREG && ea->index == NOREG;
}

/* A constant, but for where the page is: it is known what is on one page with it. */
static inline bool ea_is_fixed(const struct ea *ea)
{
	return ea->seg < SEG_FS && !ea->addr32 && (ea->base == NOREG || ea->base == PAGE_REG) && ea->index == NOREG;
}

/* Accesses that share one TLB look-up (ranges.c). */
struct range {
	struct ea ea;		/* of the first access */
	s32 lo, hi;		/* span, counted from there */
	bool write;		/* somebody writes */
	bool pointers;		/* members name no register but T1 */
	u8 members, first, last;	/* instructions */
	bool reloaded;		/* a member finds something else in T1: the slot is needed */
	u8 slot;		/* of the frame, once looked up: host - guest address, or (pointers) the host's address of lo */
};

/* x87 instructions whose pointers translated code has yet to note (x87.c): sites + 1, 0: none. */
struct x87_note {
	u32 insn, operand;
	const struct tinsn *with_operand;
};

/* Something off the straight path, emitted after the block. */
struct cold {
	enum { COLD_SLOW, COLD_RANGE, COLD_EXIT, COLD_JUMP, COLD_INDIRECT, COLD_RETURN, COLD_LINK, COLD_VEC, COLD_X87 } type;
	u32 fields[3], nr_fields;	/* distances that lead here... */
	struct lookup {
		u32 retry;		/* ...from a look-up: where it begins, 0: it is none */
		s32 place;		/* constant, or -1: in T1 */
		enum refill_kind kind;
	} lookups[3];
	u32 index;			/* site or exit */
	u32 resume;
	bool host_flags;		/* SLOW: put them back; EXIT, JUMP: they are there */
	u32 nr_rows, row;		/* fault rows to complete */
	u8 ctx;				/* in force there */
	u64 target;			/* SLOW: goes back into T0, 0: nothing */
	u8 retired;			/* as trans.retired was */
	bool x87;			/* SLOW: x87 registers are expected to be live where it joins again */
	u8 high8;			/* SLOW: at faults it is exchanged with the low byte */
	struct x87_note note;		/* SLOW, RANGE: of what was before */
	const struct tinsn *insn;	/* RANGE; SLOW in a range: goes on with a block that begins after it */
};

struct dbt_scratch {
	struct tinsn insns[DBT_BLOCK_INSNS + 1];
	struct range ranges[DBT_BLOCK_INSNS + 1];
	struct cold cold[4 * DBT_BLOCK_INSNS];
	u8 bytes[INSN_MAX_LEN];		/* of an instruction on two pages */
	u32 starts[DBT_BLOCK_INSNS + 2];	/* code offsets of the instructions, for who wants to look at them */
};

struct trans {
	struct vcpu *vcpu;
	struct dbt *d;
	struct emit *e;
	struct tinsn *insns;
	struct cold *cold;
	unsigned nr, nr_cold, branches;
	unsigned ctx;
	u64 va;			/* of the block: if it is relative, in its page. So are all others derived from it */
	bool relative;
	u64 page;		/* relative: where that page is at present */
	bool host, slot;	/* where live flags are */
	bool vec_live, x87_live;
	struct x87_note note;
	unsigned width;		/* W8, W4: of pointers and of the stack */
	bool narrow;		/* without ranges: one could not be had */
	unsigned nr_ranges;
	struct range *ranges;
	unsigned retired;	/* instructions before what is emitted now, the present one included */
	u8 head;		/* struct dbt_block's */
	s8 t1_range;		/* T1 holds this one's difference, -1: nobody's */
};

static inline bool code32(const struct tinsn *t)
{
	return t->code32;
}

/* Of the stack and of pointers. */
static inline unsigned word_size(const struct tinsn *t)
{
	return code32(t) ? 4 : 8;
}

static inline unsigned word(const struct trans *tr)
{
	return tr->width == W8 ? 8 : 4;
}

static inline u64 wrap_rip(const struct trans *tr, u64 rip)
{
	return tr->width == W8 ? rip : (u32)rip;
}

static inline u64 next_rip(const struct trans *tr, const struct tinsn *t)
{
	return wrap_rip(tr, t->rip + t->insn.len);
}

/* classify.c */
enum kind classify_insn(struct trans *tr, struct tinsn *t);

/* translate.c: what becomes of an instruction that was just decoded, wherever it is. */
void tinsn_init(struct trans *tr, struct tinsn *t);

/* ranges.c */
void plan_ranges(struct trans *tr);
/* What plan_ranges() is going to ask of t's operands, once for all instructions with the same bytes. */
void note_copy(struct tinsn *t);

/* x87.c */
void emit_x87_check(struct trans *tr, const struct tinsn *t);
void x87_executed(struct trans *tr, const struct tinsn *t, u32 site);
void x87_before(struct trans *tr, const struct tinsn *t);
void put_x87_note(struct trans *tr, const struct x87_note *note);

/* flags.c */
void native_flags(struct tinsn *t);
void find_live_flags(struct trans *tr);
void flags_save(struct emit *e);
void flags_restore(struct emit *e);

/* cold.c */
u32 site_new(struct trans *tr, const struct tinsn *t);
struct cold *slow_new(struct trans *tr, const struct tinsn *t);
void put_fault_row(struct trans *tr, struct cold *c);
void slow_end(struct trans *tr, struct cold *c, u32 live);
void put_cold(struct trans *tr, struct cold *c);

/* branch.c */
u32 exit_new(struct trans *tr, u64 target, bool host_flags);
void put_leave(struct trans *tr, u32 exit, bool host_flags);
/* reg = the guest's address of code at va. Flags of the host's are lost if that is far away. */
void put_code_address(struct trans *tr, u8 reg, u64 va);
void put_jump_known(struct trans *tr, u64 target);
/* Jump to the guest address in T0. Flags are in the slot. */
void put_jump_indirect(struct trans *tr, u32 site);
void put_jump_second(struct trans *tr, u32 index, bool indirect);
void put_exit(struct trans *tr, u64 target);
void put_cold_link(struct trans *tr, struct cold *c);
void put_cold_exit(struct trans *tr, struct cold *c);
u32 put_narrow_exit_if(struct trans *tr, u8 cc, u64 target);
void emit_jump(struct trans *tr, struct tinsn *t);
void emit_ret(struct trans *tr, struct tinsn *t);
void emit_count_branch(struct trans *tr, struct tinsn *t);

/* operand.c */
struct ea ea_of(const struct tinsn *t);
/* T0 = address without its segment's base. index_tmp is lost if the index is homed. */
void put_offset(struct trans *tr, const struct ea *ea, u8 index_tmp);
struct ea ea_stack(const struct trans *tr, u8 base, s32 disp);
u8 put_check(struct trans *tr, const struct ea *ea, unsigned size, bool write, struct hmem *m, struct cold *c);
u8 put_check_stack(struct trans *tr, s32 disp, bool write, struct hmem *m, struct cold *c);
void put_member(struct trans *tr, struct tinsn *t, u8 base, s64 disp, struct hmem *m, struct cold *c);
/* The word that a push or a pop touches, by its range's look-up or one of its own. As put_check(). */
u8 put_stack_word(struct trans *tr, struct tinsn *t, bool push, struct hmem *m, struct cold *c);

/* stack.c */
/* A word of the stack that one instruction can store: these are sign-extended. */
bool fits_imm(const struct trans *tr, u64 v);
void store_imm(struct trans *tr, struct hmem m, u64 v);
void emit_push(struct trans *tr, struct tinsn *t);
void emit_pop(struct trans *tr, struct tinsn *t);
void emit_leave(struct trans *tr, struct tinsn *t);
void emit_pushf(struct trans *tr, struct tinsn *t);

/* locked.c */
bool drops_lock(const struct trans *tr, const struct tinsn *t);
/* XCHG of m and a register by moves. tmp is free, and not part of m. */
void put_exchange_moves(struct trans *tr, const struct tinsn *t, struct hmem m, u8 tmp, struct cold *c);

/* insns.c */
/* T1 is as before after t, or what its range has left there. Who does not come back from a fault has not changed it. */
bool keeps_t1(const struct tinsn *t);
void emit_insn(struct trans *tr, struct tinsn *t);

/* ---- small things ------------------------------------------------------------------------------ */

#define VCPU(field) ((s32)offsetof(struct vcpu, arch.field))

static inline s32 jump_entry(unsigned ctx, u64 i, size_t field)
{
	return offsetof(struct mmu, jumps) + ctx * sizeof(struct jump_table) + sizeof(struct jump_entry_host) * i +
	       field;
}

#define JUMP_VA offsetof(struct jump_entry_host, va)
#define JUMP_CODE offsetof(struct jump_entry_host, code)

static inline bool is_homed(u8 guest)
{
	return has_home(guest) || guest == PAGE_REG;
}

/* A guest register's value in a host register: its own, or tmp. */
static inline u8 gpr_to_host(struct emit *e, u8 guest, u8 tmp)
{
	if (!is_homed(guest))
		return guest == RSP ? GUEST_RSP : guest;
	put_load(e, tmp, guest == PAGE_REG ? SLOT(FRAME_PAGE) : HOME(guest));
	return tmp;
}

static inline void put_add_rsp(struct trans *tr, s32 n)
{
	put_rm(tr->e, tr->width, 0x8d, GUEST_RSP, MEM_BASE(GUEST_RSP, n));
}

static inline void flags_to_slot(struct trans *tr, u32 live)
{
	if (live && !tr->slot) {
		flags_save(tr->e);
		tr->slot = true;
	}
}

static inline void flags_to_host(struct trans *tr)
{
	if (!tr->host) {
		flags_restore(tr->e);
		tr->host = true;
	}
}

/* The host's flags are about to be destroyed. */
static inline void flags_clobber(struct trans *tr, u32 live)
{
	flags_to_slot(tr, live);
	tr->host = false;
}

static inline struct cold *cold_new(struct trans *tr, int type)
{
	struct cold *c = &tr->cold[tr->nr_cold++];

	*c = (struct cold){ .type = type, .retired = tr->retired, .ctx = tr->ctx };
	return c;
}

/* AH to BH, by its number, and AL to BL change places. Flags do not change. */
static inline void put_exchange(struct emit *e, u8 high8)
{
	put8(e, 0x86);
	put8(e, 0xc0 | high8 << 3 | (high8 & 3));
}

/* jcc to be led to c */
static inline void put_jcc_cold(struct trans *tr, u8 cc, struct cold *c)
{
	put_jcc(tr->e, cc, 0);
	c->fields[c->nr_fields++] = tr->e->at - 4;
}

#endif

/* SPDX-License-Identifier: MIT */
/* Private to the making of one block: translate.c, ranges.c. */
#ifndef SOFTKVM_X86_DBT_TRANSLATE_H
#define SOFTKVM_X86_DBT_TRANSLATE_H

#include "x86/dbt/dbt.h"

enum kind {
	K_HANDLER, K_NATIVE, K_NOP, K_LEA, K_PUSH, K_POP, K_LEAVE, K_PUSHF, K_STAC, K_CLAC, K_CLI, K_STI,
	K_JCC, K_JMP, K_JMP_IND, K_CALL, K_CALL_IND, K_RET, K_LOOP, K_JRCXZ,
};

#define FLAGS_ALL ((u32)X86_EFLAGS_OSZAPC)

struct tinsn {
	struct insn insn;
	ZydisDecodedInstruction zi;
	ZydisDecodedOperand ops[ZYDIS_MAX_OPERAND_COUNT];
	const u8 *bytes;
	u64 rip;
	enum kind kind;
	bool end;			/* of the block */
	bool vec, may_fault, int_class;
	u8 homed[3], nr_homed;		/* guest r13-r15 that are operands (not address) */
	bool homed_written[3];
	const ZydisDecodedOperand *mem;
	u32 reads, writes;		/* flags */
	u32 live_before, live_after, needs; /* needs: must be in the host's flags when it executes */
	s8 range;			/* of its memory access, -1: none */
	bool in_range;			/* one begins here or before, and lasts: no way back from the handler */
};

/* Accesses that share one TLB look-up (ranges.c). */
struct range {
	u8 base;		/* guest register... */
	s32 lo, hi;		/* ...and span, counted from its value at the first access */
	bool write;		/* somebody writes */
	u8 members, first, last;	/* instructions */
	u8 slot;		/* of the frame: host - guest address, once looked up */
};

/* Something off the straight path, emitted after the block. */
struct cold {
	enum { COLD_SLOW, COLD_RANGE, COLD_EXIT, COLD_JUMP, COLD_INDIRECT, COLD_VEC } type;
	u32 fields[3], nr_fields;	/* distances that lead here */
	u32 index;			/* site or exit */
	u32 resume;
	bool host_flags;		/* SLOW: put them back; EXIT, JUMP: they are there */
	u32 nr_rows, row;		/* fault rows to complete */
	u8 ctx;				/* in force there */
	u64 target;
	u8 retired;			/* as trans.retired was */
	const struct tinsn *insn;	/* RANGE; SLOW in a range: goes on with a block that begins after it */
};

struct dbt_scratch {
	struct tinsn insns[DBT_BLOCK_INSNS + 1];
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
	u64 va;			/* of the block */
	bool host, slot;	/* where live flags are */
	bool vec_live;
	unsigned width;		/* W8, W4: of pointers and of the stack */
	bool narrow;		/* without ranges: one could not be had */
	unsigned nr_ranges;
	struct range ranges[DBT_BLOCK_INSNS + 1];
	unsigned retired;	/* instructions before what is emitted now, the present one included */
	u8 head;		/* struct dbt_site's */
	s8 t1_range;		/* T1 holds this one's difference, -1: nobody's */
};

void plan_ranges(struct trans *tr);


#endif

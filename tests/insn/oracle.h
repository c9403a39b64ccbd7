/* SPDX-License-Identifier: MIT */
/*
 * The host CPU as oracle for the interpreter: one instruction, the same state,
 * the same linear addresses, once on the host and once in a guest.
 *
 *	CODE	two executable pages full of HLT, the instruction among them
 *	DATA	two writable pages, a read-only one
 *
 * and nothing else below 4 GiB, on either side. Whatever the instruction does ends in
 * a fault: its own, or the #GP of the HLT it falls or jumps to. The fault's vector,
 * error code and address belong to the result.
 */
#ifndef TESTS_INSN_ORACLE_H
#define TESTS_INSN_ORACLE_H

#include <Zydis/Zydis.h>

#include "x86/x86.h"

#define ORACLE_CODE 0x10000000ul
#define ORACLE_CODE_SIZE (2 * PAGE_SIZE)
#define ORACLE_DATA 0x20000000ul
#define ORACLE_DATA_RW (2 * PAGE_SIZE)
#define ORACLE_DATA_SIZE (3 * PAGE_SIZE)
#define ORACLE_GS_BASE 0x1230	/* 64-bit mode */

/* Segments of a process of Linux, and three in the LDT. */
#define ORACLE_CS64 0x33
#define ORACLE_CS32 0x23
#define ORACLE_DS 0x2b
#define ORACLE_LDT_CS16 0x07
#define ORACLE_LDT_DS16 0x0f
#define ORACLE_LDT_SMALL 0x17	/* GS outside 64-bit mode: ends in the middle of DATA */
#define ORACLE_CS16_BASE (ORACLE_CODE - 0x1000)
#define ORACLE_DS16_BASE (ORACLE_DATA - 0x8000)
#define ORACLE_DS16_LIMIT 0xd7ffu
#define ORACLE_SMALL_LIMIT 0x17ffu

enum oracle_mode { ORACLE_64, ORACLE_32, ORACLE_16, ORACLE_MODES };

struct oracle_state {
	_Alignas(64) u8 fx[512];	/* FXSAVE64 image, MXCSR and XMM registers included */
	u8 ymmh[16][16];
	u64 gpr[16];
	u64 rip, rflags;
	u32 vector, error;		/* what it ended in */
	u64 cr2;
};

/* Memory as the two see it: CODE and DATA. */
struct oracle_memory {
	u8 *code, *data;
};

void native_init(struct oracle_memory *mem);
void native_set_mode(enum oracle_mode mode);
void native_run(const struct oracle_state *in, struct oracle_state *out);

void guest_init(struct oracle_memory *mem);
void guest_set_mode(enum oracle_mode mode);
void guest_run(const struct oracle_state *in, struct oracle_state *out);
/* Is this bit set in the CPUID that guests are shown? */
bool guest_offers_bit(u32 function, enum cpuid_reg reg, unsigned bit);

/* One case: the instruction at in.rip. */
struct oracle_case {
	struct oracle_state in;
	enum oracle_mode mode;
	u8 bytes[16];
	ZydisDecodedInstruction zi;
	ZydisDecodedOperand ops[ZYDIS_MAX_OPERAND_COUNT];
};

/* oracle_gen.c */
extern u64 oracle_seed;
u64 rnd(void);
extern struct oracle_memory oracle_native, oracle_guest;
/* Random state for the decoded instruction, its operands where they are interesting. False: not this one. */
bool gen_state(struct oracle_case *c);
/* The instruction itself, into the code of both. */
void gen_store_code(u64 va, const void *bytes, unsigned len);
/* Calls fn for every encoding worth decoding; thorough: all ModRM forms instead of a choice. */
void gen_encodings(enum oracle_mode mode, bool thorough, void (*fn)(enum oracle_mode mode, const u8 bytes[16]));

#endif

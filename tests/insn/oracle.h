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

#define ORACLE_FS_BASE 0x2340

/* Segments of a process of Linux, and some in the LDT. */
#define ORACLE_CS64 0x33
#define ORACLE_CS32 0x23
#define ORACLE_DS 0x2b
#define ORACLE_LDT_CS16 0x07
#define ORACLE_LDT_DS16 0x0f
#define ORACLE_LDT_SMALL 0x17	/* GS outside 64-bit mode: ends in the middle of DATA */
#define ORACLE_LDT_DOWN 0x1f	/* FS outside 64-bit mode: expands down */
#define ORACLE_LDT_FREE 4	/* entries from here on are oracle_seg.c's */
#define ORACLE_LDT_ENTRIES 64
#define ORACLE_CS16_BASE (ORACLE_CODE - 0x1000)
#define ORACLE_DS16_BASE (ORACLE_DATA - 0x8000)
#define ORACLE_DS16_LIMIT 0xd7ffu
#define ORACLE_SMALL_LIMIT 0x17ffu
#define ORACLE_DOWN_LIMIT 0x7ffu

enum oracle_mode { ORACLE_64, ORACLE_32, ORACLE_16, ORACLE_MODES };

struct oracle_state {
	_Alignas(64) u8 fx[512];	/* FXSAVE64 image, MXCSR and XMM registers included */
	u8 ymmh[16][16];
	u64 gpr[16];
	u64 rip, rflags;
	u16 sel[6];		/* by enum seg */
	u64 fs_base, gs_base;	/* in: counts with a null selector only */
	u32 vector, error;		/* what it ended in */
	u64 cr2;
};

/* Memory as the two see it: CODE and DATA. */
struct oracle_memory {
	u8 *code, *data;
};

void native_init(struct oracle_memory *mem);
/* An LDT entry in the words of modify_ldt(2), and what the kernel makes of it; false: it refuses. */
struct user_desc;
bool native_set_ldt(const struct user_desc *d);
void native_run(const struct oracle_state *in, struct oracle_state *out);

void guest_init(struct oracle_memory *mem);
void guest_set_mode(enum oracle_mode mode);
void guest_set_ldt(unsigned nr, u64 desc);
void guest_run(const struct oracle_state *in, struct oracle_state *out);
/* SOFTKVM_ENGINE=dbt: 64-bit and flat 32-bit code is the translator's. */
bool guest_translates(void);
/* Is this bit set in the CPUID that guests are shown? */
bool guest_offers_bit(u32 function, enum cpuid_reg reg, unsigned bit);

/* One case: the instruction at in.rip. */
struct oracle_case {
	struct oracle_state in;
	enum oracle_mode mode;
	u8 bytes[32];
	ZydisDecodedInstruction zi;
	ZydisDecodedOperand ops[ZYDIS_MAX_OPERAND_COUNT];
};

/* The selectors and bases each mode begins with. */
void oracle_default_segments(enum oracle_mode mode, struct oracle_state *s);

/*
 * oracle_seg.c: n cases about segment registers and far transfers. run gets a complete one whose code is len
 * bytes: the decoded instruction, and perhaps one that uses what it loaded.
 */
void oracle_segments(enum oracle_mode mode, unsigned n, bool (*decode)(struct oracle_case *c),
		     void (*run)(struct oracle_case *c, unsigned len));
bool oracle_segments_differ(const struct oracle_state *n, const struct oracle_state *g, char *why, size_t len);
/* Does a stack segment leave the upper half of ESP to chance (the kernel's, on its way back)? */
bool oracle_is_small_stack(u16 ss);

/* oracle_compare.c. g is put as the host's kernel would deliver it. */
enum oracle_verdict { ORACLE_SAME, ORACLE_EXCUSED, ORACLE_DIFFERENT };
enum oracle_verdict oracle_compare(const struct oracle_case *c, const struct oracle_state *n, struct oracle_state *g);
void oracle_show_excused(unsigned nr);
void oracle_print_excuses(void);
extern char oracle_why[160];	/* the last difference found */
void oracle_print_case(const struct oracle_case *c);

/* oracle_gen.c */
extern u64 oracle_seed;
u64 rnd(void);
extern struct oracle_memory oracle_native, oracle_guest;
/* Random state for the decoded instruction, its operands where they are interesting. False: not this one. */
bool gen_state(struct oracle_case *c);
/* FXSAVE, XSAVE, their other forms, and what loads such images. */
bool oracle_is_image(ZydisMnemonic m);
/* The instruction itself, into the code of both. */
void gen_store_code(u64 va, const void *bytes, unsigned len);
/* Calls fn for every encoding worth decoding; thorough: all ModRM forms instead of a choice. */
void gen_encodings(enum oracle_mode mode, bool thorough, void (*fn)(enum oracle_mode mode, const u8 bytes[16]));

#endif

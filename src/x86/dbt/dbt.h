/* SPDX-License-Identifier: MIT */
/*
 * The translator: guest code in 64-bit mode becomes host code. docs/engine.md
 * has the whole picture; this is what its files share.
 *
 * Host registers in translated code:
 *	rax rcx rdx rbx rbp rsi rdi r8 r12-r15	the guest's registers of these names
 *	r9					the guest's rsp
 *	r10, r11 (T0, T1)			scratch; guest r9-r11 live in the frame: compilers use them least
 *	rsp					our own stack: struct dbt_frame by offset
 *	gs base					struct mmu: TLB tags and jump tables
 * Guest flags are in the host's flags, or in the frame's slot, or both, or dead;
 * the translator knows which at every point.
 */
#ifndef SOFTKVM_X86_DBT_H
#define SOFTKVM_X86_DBT_H

#include "host/host.h"
#include "x86/dbt/emit.h"
#include "x86/decode/decode.h"
#include "x86/interp/insn.h"

#define T0 R10
#define T1 R11
#define GUEST_RSP R9

/* Offsets from rsp in translated code. */
enum dbt_frame {
	FRAME_VCPU = 0,
	FRAME_FLAGS = 8,	/* u16: AL = OF, AH = SF ZF AF PF CF as LAHF has them */
	FRAME_X87 = 10,		/* u8: guest x87 registers are in the host's, as fpu.x87_live says */
	FRAME_VEC = 12,		/* u8: guest vector registers are in the host's */
	FRAME_R9 = 16,		/* guest r9, r10, r11 */
	FRAME_PAGE = 40,	/* relative blocks: the address of the page that the block is on. As if it were r16 */
	FRAME_FS = 48,		/* copies of the FS and GS bases */
	FRAME_GS = 56,
	FRAME_TMP0 = 64,
	FRAME_TMP1 = 72,
	FRAME_DELTA = 80,	/* host - guest addresses of a block's ranges */
	FRAME_DELTAS = 6,
	FRAME_X87_NOTE = 128,	/* fpu.noted, noted_fdp and noted_page, on their way there (x87.c) */
	FRAME_X87_FDP = 136,
	FRAME_X87_PAGE = 144,
	FRAME_REFILL = 152,	/* refill.c: rax, rcx */
	FRAME_SIZE = 168,	/* with the return address and six saved registers: a multiple of 16 */
};
#define SLOT(offset) MEM_BASE(RSP, offset)
/* Guest registers that live in the frame, and where. */
static inline bool has_home(u8 guest)
{
	return guest >= R9 && guest <= R11;
}
#define HOME(guest) SLOT(FRAME_R9 + 8 * ((guest) - R9))

/* An instruction that may have to be executed by its C handler. */
struct dbt_site {
	u64 rip;
	u64 imm;		/* struct insn's */
	s32 disp;		/* the same, if its record does not have it */
	u32 record;		/* the rest of it (decoded.c) */
	u8 len;
	u8 ctx;			/* enum tlb_context it was translated for */
	u8 retired;		/* instructions of the block, this one included */
	bool relative;		/* rip is relative to the page's address */
};

/* A way out of a block to a known address. */
struct dbt_exit {
	u64 target;
	u32 field;		/* code offset of the distance to patch, 0: none */
	u32 stub;		/* far: where it leads while there is no link. dropped: the block, by its place in the arena.
				   local: its place in mmu.jump_links */
	u32 mode_key;
	u8 ctx;
	u8 retired;		/* instructions of the block before it */
	bool host_flags : 1;	/* the flags are in the host's at that point */
	bool linkable : 1;	/* to a block of the same page */
	bool narrow : 1;	/* to the translation without ranges */
	bool far : 1;		/* to one of another page, if that is mapped globally */
	bool relative : 1;	/* target is relative to the page's address */
	bool returned_to : 1;	/* what is patched is an address for mmu.returns */
	bool local : 1;		/* to another page, as its link says */
	bool dropped : 1;	/* what stands for a dropped block: leads to its successor only */
};
static_assert(sizeof(struct dbt_exit) == 24, "there are five to a block");

struct dbt_block {
	/* What the dispatcher looks at is together: one miss of the host's caches. */
	u64 next;			/* of the same bucket: as there */
	u64 va;				/* of a relative block: in its page */
	gpa_t gpa;
	u32 mode_key;
	u32 slot, slot_poll, host, host_poll; /* entries: where the flags are, and whether requests are looked at */
	u16 len;			/* bytes on its page */
	u8 ctx;				/* enum tlb_context */
	bool narrow;			/* accesses share no look-ups */
	bool main_host;			/* flags are expected in the host's at `main` */
	bool dead;			/* dropped */
	u8 head;			/* bytes of its first instruction before the page ends, if it goes on on the next; else 0 */
	gpa_t tail_gpa;			/* that page */
	u64 page;			/* of a relative block: where that was when it was translated. For people */
	u32 leave;			/* code that leaves for the dispatcher with rip at va... */
	u32 self;			/* ...by this exit */
	u32 leave_host, self_host;	/* the same with flags in the host's, if they are dead at the entry; else 0 */
	u32 first_exit, end_exit;	/* all exits */
	u32 home;			/* its page: place in the arena */
	u32 main;			/* code offset all entries go through */
	u32 code_end;
	u32 cold, cold_end;	/* the rest of its code, off the straight path */
	/* For diff.c: */
	bool comparable;
	u8 nr_insns, body;	/* body: of one turn of a loop */
	struct diff_insn {
		u16 undefined;		/* flags that are after it */
		u16 dead;		/* flags that the rest of the block overwrites unread */
		u8 len;
	} *insns;
};

/* The code offset of what comes first of its straight path. */
static inline u32 dbt_block_begin(const struct dbt_block *b)
{
	return min(min(b->main, b->slot_poll), b->host);
}

/* The end of a block that begins on the page before. */
struct dbt_tail {
	struct dbt_tail *next;
	struct dbt_block *block;
	u16 len;
};

/*
 * A guest page with translations. Who looks for a block has its page by then, and what is executed together is on few pages: a
 * table for all of them would miss the host's caches each time.
 */
#define DBT_PAGE_BUCKETS 64u
/* The first of a list of blocks: its address, its place on the page, and whether there may be another one. Most that are not it need no look. */
#define DBT_REF_BLOCK (BIT_ULL(48) - 1)
#define DBT_REF_PLACE 48
#define DBT_REF_MORE BIT_ULL(63)
struct dbt_page {
	struct dbt_page *next;
	gpa_t gpa;
	u32 verified, verified_global;	/* generations in which bytes was last found equal to memory */
	u32 nr_blocks;			/* that begin here */
	u16 stores;			/* noticed since it was marked */
	bool marked;			/* stores are noticed; otherwise there are no blocks, and bytes is nothing */
	struct dbt_tail *tails;		/* of those that only end here */
	u64 buckets[DBT_PAGE_BUCKETS];	/* the former, by where they begin: DBT_REF_* */
	_Alignas(16) u8 bytes[PAGE_SIZE];
};

/* Host instructions that may fault: in order of code offset. */
struct dbt_fault_row {
	u32 at;			/* code offset of the instruction */
	u32 stub;		/* where to go on: code offset or, with FAULT_SITE, slow_on, for a site */
};
#define FAULT_HOST_FLAGS BIT(31)	/* the guest's flags are in the host's at `at` */
#define FAULT_SITE BIT(30)
#define FAULT_STUB (FAULT_SITE - 1)

/* Bytes of code to one of each, as a rule: how many there may be follows from SOFTKVM_DBT_CACHE, or 32 MiB if that is more. */
#define DBT_CODE_PER_SITE 40
#define DBT_CODE_PER_EXIT 48
#define DBT_CODE_PER_FAULT 40
#define DBT_ARENA_PER_CODE 2
#define DBT_ARENA_UNIT 64ul
#define DBT_RECORDS_FOR (32ul << 20)
#define DBT_MAX_FAR_LINKS (256u << 10)
#define DBT_PAGE_HASH_SIZE 16384u
#define DBT_BLOCK_INSNS 64
#define DBT_BLOCK_CODE (32u << 10)	/* more than any block needs; checked before each translation... */
#define DBT_BLOCK_PART (DBT_BLOCK_CODE / 2)	/* ...half of it for the straight path, half for the rest */

/* What a look-up has asked: the tags for reads, those for writes, the stack's entry, a fixed one. */
enum refill_kind { REFILL_READ, REFILL_WRITE, REFILL_STACK, REFILL_FIXED_READ, REFILL_FIXED_WRITE, NR_REFILLS };

struct dbt {
	struct codemem mem;
	struct emit emit;	/* common code and blocks' straight paths... */
	struct emit cold;	/* ...and after all of these the rest of the blocks: what is seldom executed is not to be in between */
	u32 code_start;		/* blocks begin here; the common parts are before */
	u32 cold_start;
	struct dbt_site *sites;
	struct dbt_exit *exits;
	struct dbt_fault_row *faults;
	u32 nr_sites, nr_exits, nr_faults;
	u32 max_sites, max_exits, max_faults;
	u32 *far_links;		/* exits */
	u32 nr_far_links;
	struct dbt_page **pages;
	u8 *arena;
	size_t arena_used, arena_size;
	u32 seen_local_drops, seen_global_drops; /* of the MMU's fetch side, as last looked at */
	u32 generation;		/* counts changes of these: jump tables and page verification are for this one */
	u32 global_generation;	/* the same for code in pages mapped globally */
	u32 jump_key[NR_TLBS];	/* mode_key of each context's jump table */
	u32 jump_generation;	/* the latest of the second level's */
	u64 space_drops[MMU_SPACES];	/* of each address space: as last looked at... */
	u32 space_generation[MMU_SPACES]; /* ...and its own in the second level */
	u32 engine_generation;	/* of the interpreter's caches, which hold our thunks */
	bool many_vcpus;
	u64 sole_generation;	/* of the memslots, and sole_turn(), that vcpu->arch.sole is for */
	u32 sole_turn;
	u32 client_seen;	/* vm->client_turns, as last looked at */
	u64 code_log_seen;	/* of other vCPUs' stores to code */
	bool abort_access;	/* a kick found the thread in an access: give it up */
	enum exec result;	/* why dbt_call_insn() left... */
	u32 left;		/* ...which site */
	/* offsets of the common code */
#define DBT_REP_CTXS 3u	/* of enum tlb_context; TLB_USER_AC is never filled */
	u32 rep[DBT_REP_CTXS][4][4];	/* REP STOS, REP MOVS, STOS, MOVS by log2 of the element's size */
#define DBT_REFILL_CTXS 3u
	u32 refill[DBT_REFILL_CTXS][NR_REFILLS];
	u32 jump[DBT_REFILL_CTXS][2];	/* for direct, indirect jumps */
	u32 jump_linked[2];		/* from absolute, relative code */
	u32 nr_links;			/* mmu.jump_links in use */
	u32 common_faults;	/* rows of these */
	/* What pages the fixed entries of each TLB are for (operand.c), the next one to be given away, and where to look for a page's. */
	struct dbt_fixed {
		u64 pages[TLB_FIXED];
		u32 next;
#define DBT_FIXED_SHIFT 8
#define DBT_FIXED_NEAR 8u
		u16 places[1u << DBT_FIXED_SHIFT][DBT_FIXED_NEAR];
	} fixed[NR_TLBS];
	u32 return_none;	/* an empty entry of mmu.returns */
	u32 enter, slow, slow_on, exit_slot, exit_host, exit_indirect, load_vec, load_x87;
	struct dbt_scratch *scratch;	/* translate.c */
	struct decode_cache *decode_cache; /* decoded.c */
	struct dbt_verifier *verifier;	/* NULL: blocks are not verified */
	struct diff *diff;		/* NULL: no comparison with the interpreter */
};

/* What common code returns: kind in the upper half, index (site or exit) in the lower. */
enum dbt_exit_kind { DBT_DIRECT, DBT_INDIRECT, DBT_LEAVE };
/* What dbt_call_insn() returns. */
enum dbt_call { DBT_CALL_DONE, DBT_CALL_LEAVE };

/* The address of the page after the one that va is on. */
static inline gva_t dbt_next_page(const struct vcpu *vcpu, gva_t va)
{
	return ((va & PAGE_MASK) + PAGE_SIZE) & ip_mask(vcpu);
}
/*
 * Is the block at va relative: good for all addresses its page may be mapped at? User programs are, that are position-independent:
 * the same program and libraries are found at other addresses each time they are loaded. Below 4 GiB are those that are
 * not; and near the end of canonical addresses it matters to a branch where it is. Page 0 is among the relative ones
 * so that nothing else has an address that small (dbt_block_find()).
 */
#define RELATIVE_MIN BIT_ULL(32)
#define RELATIVE_MAX (BIT_ULL(47) - BIT_ULL(32))
static inline bool dbt_is_relative(const struct vcpu *vcpu, unsigned ctx, gva_t va)
{
	return ctx >= TLB_USER && in_64bit_mode(vcpu) && ((va >= RELATIVE_MIN && va < RELATIVE_MAX) || va < PAGE_SIZE);
}
/* The address that is va on its page, or as it is. */
static inline u64 dbt_absolute(const struct vcpu *vcpu, bool relative, u64 va)
{
	return relative ? vcpu->arch.block_page + va : va;
}
/* The address that a block at va is known by. */
static inline u64 dbt_block_va(const struct vcpu *vcpu, unsigned ctx, gva_t va)
{
	return dbt_is_relative(vcpu, ctx, va) ? va & ~PAGE_MASK : va;
}
/* May an instruction at va go on on the next page? */
static inline bool dbt_near_end(gva_t va)
{
	return (va & ~PAGE_MASK) > PAGE_SIZE - INSN_MAX_LEN;
}
/* May x lead to code at gpa? */
static inline bool dbt_exit_fits(const struct dbt *d, const struct dbt_exit *x, gpa_t gpa)
{
	return !x->dropped || ((const struct dbt_block *)(d->arena + x->stub * DBT_ARENA_UNIT))->gpa == gpa;
}
/* cache.c: drop the translations with bytes at gpa. */
void dbt_drop(struct vcpu *vcpu, gpa_t gpa);

/* T1 = place in the TLB's arrays of the address in T0. */
static inline void put_tlb_place(struct emit *e)
{
	if (e->bmi2) {
		put_rorx(e, T1, T0, PAGE_SHIFT - 3); /* what comes around is masked */
	} else {
		put_mov(e, T1, T0);
		put_shift_imm(e, W8, 5, T1, PAGE_SHIFT - 3);
	}
	put_alu_imm(e, W4, 4, T1, (TLB_ENTRIES - 1) * 8);
}

/* Entry of a jump table for va. Functions begin at multiples of 16: the low bits alone would not spread them. */
#define JUMP_FACTOR 0x61c88647u
static inline u32 jump_table_index(u64 va)
{
	return (u32)va * JUMP_FACTOR >> (32 - JUMP_TABLE_SHIFT);
}

/* stubs.c: the code before the first block. */
void dbt_emit_common(struct dbt *d);
/* rep.c: common code for STOS and MOVS, with and without REP */
void dbt_emit_reps(struct dbt *d);
/* What to call in place of the slow path, or that itself. */
u32 dbt_rep_stub(const struct dbt *d, unsigned ctx, const ZydisDecodedInstruction *zi, const struct insn *insn);
bool dbt_is_rep_stub(const struct dbt *d, u32 at);
/* refill.c: code that moves an entry to the first level of the TLB, and where it goes on if it cannot: after a jump. */
void dbt_emit_refills(struct dbt *d);
#define DBT_REFILL_SKIP 5
/* Is it at `at`? For which TLB? */
bool dbt_is_refill(const struct dbt *d, u32 at, u8 *ctx, enum refill_kind *kind);
/* dbt.c: called by translated code: execute the instruction of a site by its handler. */
u32 dbt_call_insn(struct vcpu *vcpu, u32 site);
/* The same, and on with another block, which begins after it. NULL: leave. */
const void *dbt_call_insn_on(struct vcpu *vcpu, u32 site);

/* x87.c: called by translated code: the guest's x87 registers into the host's. */
void dbt_load_x87(struct vcpu *vcpu);
/* x87.c: the pointers to the instruction and operand that translated code has noted. */
void dbt_make_x87_pointers(struct vcpu *vcpu);
/* Translated code was left, or has called: before anybody looks at them. */
static inline void dbt_take_x87_notes(struct vcpu *vcpu)
{
	if (unlikely(vcpu->arch.fpu.noted))
		dbt_make_x87_pointers(vcpu);
}

/* cache.c */
int dbt_create(struct vcpu *vcpu);
void dbt_flush_all(struct vcpu *vcpu);
bool dbt_has_room(const struct dbt *d);
void *dbt_arena_alloc(struct dbt *d, size_t size);
/* The block at va, which is as struct dbt_block has it. */
struct dbt_block *dbt_block_find(const struct dbt_page *page, u64 va, u32 mode_key, unsigned ctx, bool narrow);
/* tail: the page it ends on, if that is another; tail_len: bytes there. */
void dbt_block_add(struct dbt *d, struct dbt_page *page, struct dbt_block *b, struct dbt_page *tail, unsigned tail_len);
/* The page at gpa will be asked for, and its block at va: what that needs is fetched to the host's caches, all of it at a time. */
void dbt_page_expect(const struct dbt *d, gpa_t gpa, u64 va);
/* NULL also if there are no translations. */
struct dbt_page *dbt_page_find(struct dbt *d, gpa_t gpa);
/* The page with its bytes checked against memory, or NULL and *r. */
struct dbt_page *dbt_page_get(struct vcpu *vcpu, gpa_t gpa, const u8 *host, bool global, enum exec *r);
/* Stores to code pages that the MMU has noted. True if a translation had to go. */
bool dbt_take_code_stores(struct vcpu *vcpu);
/* The same for other vCPUs' stores. */
void dbt_take_code_log(struct vcpu *vcpu);
void dbt_link(struct dbt *d, const struct dbt_exit *x, const struct dbt_block *to);
void dbt_link_far(struct dbt *d, u32 exit, const struct dbt_block *to);
void dbt_unlink_far(struct dbt *d);

/* jumps.c: the first level of a context's jump table is emptied. */
void dbt_flush_jumps(struct vcpu *vcpu, unsigned ctx);
/* What the MMU has dropped since: all that is not global, of all address spaces, or all. */
void dbt_forget_jumps(struct vcpu *vcpu, bool all);
/* The first levels are for what the MMU has present now; local: some of them may not be. */
void dbt_renew_jumps(struct vcpu *vcpu, bool all);
void dbt_jump_add(struct vcpu *vcpu, unsigned ctx, u64 va, const struct dbt_block *b, bool global);
/* Where translated code would go on, or NULL. */
const void *dbt_jump_find(struct vcpu *vcpu, unsigned ctx, u64 va);
/* Common code for those that the first level does not have. */
void dbt_emit_jumps(struct dbt *d);
bool dbt_is_jump(const struct dbt *d, u32 at, bool *indirect);
/* A link for an exit, not good yet. False: there are too many. */
bool dbt_link_new(struct vcpu *vcpu, u32 exit, u32 *link);
/* x, an exit of the block that was left last, leads to a block that has been found where it leads. */
void dbt_link_local(struct vcpu *vcpu, const struct dbt_exit *x, const struct dbt_block *to);

/*
 * translate.c: the block at va, whose page is verified. NULL: not ours. If its first instruction goes on on the
 * next page, that is needed too: `tail`, also verified, else NULL.
 */
struct dbt_block *dbt_translate(struct vcpu *vcpu, u64 va, struct dbt_page *page, struct dbt_page *tail, unsigned ctx,
				bool narrow);
int dbt_scratch_create(struct dbt *d);

/* decoded.c */
int decode_cache_create(struct dbt *d);
void decode_cache_destroy(struct dbt *d);
bool decode_cache_has_room(const struct dbt *d);
void decode_cache_flush(struct vcpu *vcpu);
void dbt_site_insn(const struct dbt *d, const struct dbt_site *s, struct insn *insn);

/* encode.c */
/* All that is known of an instruction's new form before it is put somewhere. */
struct encoding {
	u8 before[3];		/* prefixes, or two bytes of VEX */
	u8 opcode[3];
	u8 nr_before : 4, nr_opcode : 4;
	u8 rex_w : 4, mod : 4;
	u8 reg, rm, opcode_reg, vvvv;
	u8 tail : 4, len : 4;	/* where what follows the address bytes is in the instruction */
	bool has_modrm : 1, has_opcode_reg : 1, vex : 1;
	bool high8 : 1, wants_rex : 1;
	bool lock : 1;		/* LOCK goes with it, unless whoever puts it says otherwise */
	bool from_home : 1;	/* rm is one of r9 to r11, and may be its slot of the frame instead of a register */
};
struct hins {
	const struct encoding *encoding;
	const u8 *bytes;
	u8 home[3];		/* where guest r9, r10, r11 are for this instruction */
	bool has_mem;
	bool unlocked;		/* without LOCK */
	struct hmem mem;
};
/* False: cannot be encoded. */
bool dbt_plan_encoding(struct encoding *n, const ZydisDecodedInstruction *zi, const ZydisDecodedOperand *ops, const u8 *bytes,
		       bool int_class);
/* The register of n, as the guest numbers them, that is its slot of the frame; NOREG: none. */
u8 dbt_encoding_home(const struct encoding *n);
/* Put the guest's instruction with its registers and memory operand replaced. False: cannot be encoded. */
bool dbt_encode(struct emit *e, const struct hins *h);

/* Of code that is not 64-bit: would the host's 64-bit mode understand the same? */
bool dbt_encodable32(const ZydisDecodedInstruction *zi, const ZydisDecodedOperand *ops, const u8 *bytes);

/* MOV between the accumulator and an absolute address. */
static inline bool is_moffs(const ZydisDecodedInstruction *zi)
{
	return zi->opcode_map == ZYDIS_OPCODE_MAP_DEFAULT && (zi->opcode & 0xfc) == 0xa0;
}

#endif

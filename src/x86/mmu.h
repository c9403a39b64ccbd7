/* SPDX-License-Identifier: MIT */
/*
 * Guest linear memory: page walks, the software TLB, and every access the CPU
 * makes. The only way from a guest address to a host pointer.
 *
 * Invariants
 *  1. A TLB entry points into a memslot of vcpu->slots and nowhere else.
 *  2. A write tag exists only for pages that are writable, dirty in the guest's
 *     page table, logged dirty if logging is on, and not holding decoded code of
 *     this vCPU. Everything else takes the slow path.
 *  3. A host pointer from the TLB is used before the next boundary, and only
 *     through the accessors of host/access.h or a thunk, which survive faults.
 *  4. The stack's entry of a TLB (stack_tag) is a copy of one with a write tag, for reads and writes. The fixed ones (fixed_tag) are
 *     copies for reads, and of those with a write tag for writes. Whatever takes tags away, of all pages or of one that may be theirs,
 *     takes them all away, too; they outlive their originals only when these make room for other pages.
 *
 * Tags are stored negated: tag + va is the offset in the page when the page
 * matches, so one unsigned compare with PAGE_SIZE - size tests tag, page
 * crossing and size at once.
 */
#ifndef SOFTKVM_X86_MMU_H
#define SOFTKVM_X86_MMU_H

#include "host/access.h"
#include "host/host.h"
#include "x86/x86.h"

#define TLB_ENTRIES 4096
#define TLB_INVALID (~0ull >> 1)	/* tag + va is never a small number for a canonical va */
#define TLB_EVICTED (TLB_INVALID - 1)	/* as well; but the index is in used[] */

/*
 * The second level: what was filled, by another index, so that pages that are in each other's way in the first level are not in
 * the second. Translated code moves them back by itself (dbt/refill.c); C just walks.
 */
#define TLB_SECOND 8192
struct tlb_second {
	u64 key;		/* page address + generation */
	u64 read;
	u64 write;		/* tag + mmu.write_generation */
	s64 delta;
};
#define TLB_GENERATION_GLOBAL 0x800u
#define TLB_GENERATIONS 0x800u

struct tlb {
	u64 read[TLB_ENTRIES];
	u64 write[TLB_ENTRIES];
	s64 delta[TLB_ENTRIES];		/* host address - va */
	u64 stack_tag;			/* translated code's: the page that the stack was on lately, or TLB_INVALID... */
	s64 stack_delta;		/* ...as it was copied from above (dbt/refill.c) */
	/*
	 * Translated code's as well: pages that some of its instructions are on each time, as long as a program is where it is. Each
	 * knows its entry: for reads, for writes. fixed_page is where that page is in the host.
	 */
#define TLB_FIXED 1024u
	u64 fixed_tag[2][TLB_FIXED];
	u64 fixed_page[2][TLB_FIXED];
#define TLB_FIXED_LIST 128u
	u16 fixed_list[TLB_FIXED_LIST];	/* places, in bytes, that were filled since all were empty... */
	u32 nr_fixed;			/* ...TLB_FIXED_LIST: or others */
#define TLB_FIXED_HAS 64u
	bool fixed_has[TLB_FIXED_HAS];	/* by the lower bits of their addresses: there may be entries of such pages */
	u32 fetch_generation;		/* bumped by every flush: cached rip -> block mappings are stale */
	u32 nr_used;			/* entries of used[]; TLB_USED_MAX: too many, look at everything */
#define TLB_USED_MAX 1024
	u16 used[TLB_USED_MAX];		/* indices filled with what is not global since the last flush */
	bool has_global;		/* there are others */
	/*
	 * Pages that have been in fetch[] since the last flush of their kind, and few others (Bloom filters). A kernel that
	 * uses INVLPG all the time on a page that is taken for one of its code's costs it all links between pages, each time.
	 */
#define TLB_FETCHED_LOCAL 16384u	/* bits; in struct mmu_space */
#define TLB_FETCHED_GLOBAL 131072u
	struct tlb_second second[TLB_SECOND];
	bool second_used;
	u64 generation[2];		/* of live entries there: the space's; global ones: 1 to 0x7ff + TLB_GENERATION_GLOBAL */
	u64 fetched_global[TLB_FETCHED_GLOBAL / 64];
	bool global[TLB_ENTRIES];
	bool fetch_global;		/* there are global entries in fetch[] */
	u32 nr_fetch_used;		/* as nr_used, for fetch[] */
#define TLB_FETCH_USED_MAX 256
	u16 fetch_used[TLB_FETCH_USED_MAX];
	/* fetch side, used per block, not per access */
	struct tlb_fetch {
		u64 tag;		/* page va, or TLB_INVALID */
		gpa_t gpa;		/* of the page */
		u8 *host;
		bool global;
	} fetch[1024];
};
#define TLB_DROP_LOCAL BIT(0)
#define TLB_DROP_GLOBAL BIT(1)

/*
 * One TLB per privilege context, so that a change of CPL or (under SMAP) of
 * RFLAGS.AC is a switch and not a flush. With alignment checks on (CPL 3, AC and
 * CR0.AM) it is TLB_USER_AC, which is never filled: the slow paths make the checks.
 */
enum tlb_context { TLB_KERNEL, TLB_KERNEL_AC, TLB_USER, TLB_USER_AC, NR_TLBS };

/*
 * An address space: a value of CR3 with its PCID. First levels hold translations of the present one; what second levels hold
 * of the others outlives loads of CR3 that ask for that, told apart by generation.
 */
#define MMU_SPACES 16
struct mmu_space {
	u64 cr3;
	u32 generation;		/* in second levels: 1 to 0x7ff; 0: nothing is left of it */
	u64 drops;		/* another value, never used before, when what was derived from its fetches is stale */
	u64 used;		/* when, as counted by mmu.space_loads */
	u64 fetched[TLB_FETCHED_LOCAL / 64];	/* as tlb.fetched_global */
};

struct mmu {
	struct tlb tlbs[NR_TLBS];
	struct mmu_space spaces[MMU_SPACES];
	u32 space;		/* the present one */
	u32 space_generation;	/* the latest, and so on */
	u64 space_drops, space_loads;
	u64 write_generation;	/* of write tags in second levels; less than a page */
	/*
	 * Guest-physical pages that have had a write tag since these were last flushed, and few others (a Bloom filter). Programs execute
	 * pages that nobody has stored to lately, most of the time: no need to take all write tags away for these.
	 */
#define MMU_WRITABLE 131072u	/* bits */
	u64 writable[MMU_WRITABLE / 64];
	/* How often fetch translations were dropped, by kind: what was derived from them is stale, or another space's. */
	u32 local_drops, global_drops;
	/* regions mapped by large pages since the last flush: INVLPG there flushes all (key: va >> 21, or va >> 30 with bit 63) */
	u64 large[2048];
	bool large_overflow;
	struct memslot *last_slot;	/* of vcpu->slots; reset with every flush */
	/* open-addressed set of gfns + 1 that hold decoded code; whose code, in the upper bits: none if it did once */
	u64 *code_gfns;
	u32 interp_unmarks;	/* pages that are the interpreter's no more: blocks that have not seen it mark theirs again */
	u32 code_mask, code_nr;
	/* Stores to such pages, for the translator: what it has not looked at yet. */
	bool note_code_stores;
	u32 nr_code_stores;		/* CODE_STORES_MAX + 1: more than fit */
#define CODE_STORES_MAX 16
	struct code_store {
		gpa_t gpa;
		u32 len;
	} code_stores[CODE_STORES_MAX];
	/* The translator's: linear address to host code, a table per context; touched by it alone (dbt/jumps.c). */
#define JUMP_TABLE_SHIFT 17
#define JUMP_TABLE_SIZE (1u << JUMP_TABLE_SHIFT)
	struct jump_table {
		struct jump_entry_host {
			u64 va;
			const void *code;
		} at[JUMP_TABLE_SIZE];
	} jumps[NR_TLBS];
	/* Where calls return to, by the stack pointer. */
#define RETURN_CACHE 256u
	struct jump_entry_host returns[NR_TLBS][RETURN_CACHE];
	/* Second level, of several address spaces. */
#define JUMP_SECOND_SHIFT 18
#define JUMP_SECOND_SIZE (1u << JUMP_SECOND_SHIFT)
	struct jump_second {
		u64 va;
		u32 code;		/* offset */
		u32 generation;
	} jump_second[NR_TLBS][JUMP_SECOND_SIZE];
	u32 jump_generation[2];		/* of live entries there: the space's, global ones */
	/*
	 * Links from user code to other pages. Each is good under one generation and, from relative code, on one page: key is both
	 * (jump_key is the present generation's, to be combined with the page's address).
	 */
#define JUMP_LINKS (512u << 10)
	u64 jump_key;
	struct jump_link {
		u64 key;
		const void *code;	/* of the target... */
		u32 exit;
		u32 page;		/* ...which is on this one: as in jump_pages, 0: no target is known */
	} jump_links[JUMP_LINKS];
	/* Where pages of code that user code has gone on to are mapped, under which generation. By their addresses. */
#define JUMP_PAGES 8192u
	struct jump_page {
		u64 va;
		u32 generation;		/* as in jump_second; 0: empty */
		u32 page;		/* the translator's number of its guest-physical page */
	} jump_pages[JUMP_PAGES];
	/* Of the first level: entries in use, for who empties it. */
	struct jump_used {
		bool local;		/* some are of pages that are not global */
		u32 nr;			/* JUMP_USED_MAX: too many, look at everything */
#define JUMP_USED_MAX 32768u
		u32 at[JUMP_USED_MAX];
	} jump_used[NR_TLBS];
	/* Fewer entries than TLB_ENTRIES in use (SOFTKVM_TLB), 0: all. Of indices equal modulo limit one is filled. */
	u32 tlb_limit;
	u16 filled[NR_TLBS][TLB_ENTRIES];
	struct store_journal *journal;	/* stores are recorded there, MMIO is refused: dbt/diff.c */
};

/* What stores have overwritten, in their order, so that they can be undone. */
struct store_journal {
	bool refused;		/* an access that cannot be undone, or more than fits: EXEC_RETRY */
	u32 nr, used;
	struct {
		u8 *host;
		u32 len, at;
	} stores[8192];
	u8 old[65536];
};

int mmu_create(struct vcpu *vcpu);		/* first KVM_RUN; 0 or -ENOMEM */
void mmu_destroy(struct vcpu *vcpu);
/* Code cache dropped: no page holds decoded code any more. */
void mmu_clear_code_pages(struct vcpu *vcpu);
/* A GPA to a host pointer for a vCPU in guest mode, or NULL (no slot). */
struct memslot *mmu_find_slot(struct vcpu *vcpu, gpa_t gpa);

enum mmu_access {
	MMU_READ = 0,
	MMU_WRITE = BIT(0),
	MMU_FETCH = BIT(1),
	MMU_USER = BIT(2),	/* check as CPL 3; otherwise as supervisor */
	MMU_IMPLICIT = BIT(3),	/* implicit supervisor access (descriptor tables, TSS): SMAP ignores AC */
	MMU_NOFAULT = BIT(4),	/* query only: queue no exception, set no A/D bits (KVM_TRANSLATE) */
	MMU_RMW = BIT(5),	/* read that will be written: fault as a write */
};

static inline unsigned mmu_data_access(const struct vcpu *vcpu, unsigned access)
{
	return access | (vcpu->arch.cpl == 3 ? MMU_USER : 0);
}

/* An access to the client's memory has failed: EXEC_EFAULT, or EXEC_RETRY if it was aborted by a kick. */
static inline enum exec mem_access_failed(void)
{
	if (!host_kicked)
		return EXEC_EFAULT;
	host_kicked = false;
	return EXEC_RETRY;
}

/* Walk: EXEC_OK with *gpa, or EXEC_FAULT (#PF queued), or as mem_access_failed(); MMU_NOFAULT: EXEC_EFAULT for both. */
enum exec mmu_translate(struct vcpu *vcpu, gva_t va, unsigned access, gpa_t *gpa);

/* The low bits of CR3: a PCID, if CR4.PCIDE says so. */
#define CR3_PCID_MASK 0xfffull
static inline u64 mmu_present_pcid(const struct vcpu *vcpu)
{
	return vcpu->arch.cr4 & X86_CR4_PCIDE ? vcpu->arch.cr3 & CR3_PCID_MASK : 0;
}

void mmu_flush_all(struct vcpu *vcpu);		/* every entry */
void mmu_flush_nonglobal(struct vcpu *vcpu);	/* of all address spaces */
/* CR3 is about to change: keep what is known of the new one. */
void mmu_load_space(struct vcpu *vcpu, u64 cr3, bool keep);
void mmu_flush_space(struct vcpu *vcpu, u64 pcid);
/* Is the code page at va, just fetched by mmu_fetch_page(), mapped globally? */
bool mmu_fetch_is_global(struct vcpu *vcpu, gva_t va);
/* The host's address of the code page at va if it has been fetched from lately, else NULL. Raises nothing. */
const u8 *mmu_fetched_page(struct vcpu *vcpu, gva_t va);
void mmu_flush_page(struct vcpu *vcpu, gva_t va);	/* INVLPG */
void mmu_flush_write_tags(struct vcpu *vcpu);
/* This page now holds code this vCPU has decoded: stores there must take the slow path. */
enum code_user { CODE_INTERP, CODE_DBT };
void mmu_mark_code_page(struct vcpu *vcpu, gpa_t page, enum code_user user);
/* None of this user's any more. */
void mmu_unmark_code_page(struct vcpu *vcpu, gpa_t page, enum code_user user);
void mmu_unmark_code_pages(struct vcpu *vcpu, enum code_user user);
bool mmu_is_code_page(struct vcpu *vcpu, gpa_t page);
/* The same, for a store that has come through the slow path. Pages of the interpreter's that are stored to often are marked no more. */
bool mmu_code_page_store(struct vcpu *vcpu, gpa_t page);

/* mmu/shared_code.c: the same between vCPUs. False: no memory. */
bool mmu_shared_code_create(struct vm *vm);
void mmu_shared_code_destroy(struct vm *vm);
bool mmu_is_shared_code_page(struct vm *vm, gpa_t page);
/* From now on no store to page goes unnoticed. False: cannot be had now. In guest mode. */
bool mmu_share_code_page(struct vcpu *vcpu, gpa_t page);
/* What KVM_REQ_CODE_PAGE asks for. */
void mmu_drop_tags_for_code(struct vcpu *vcpu);
/* The noted stores to such pages have happened: tell the others, and forget them. */
void mmu_publish_code_stores(struct vcpu *vcpu);
/* Stores after *seen, which moves on; SHARED_CODE_LOG + 1: too many, anything may have changed. */
#define SHARED_CODE_LOG 64u
u64 mmu_code_log_head(struct vm *vm);
unsigned mmu_read_code_log(struct vm *vm, u64 *seen, struct code_store *stores);
/* KVM_SET_SREGS, mode switches: PDPTRs from memory. False: reserved bits (#GP). */
bool mmu_load_pdptrs(struct vcpu *vcpu, u64 cr3);

/*
 * Fetch side: the page of code at linear address va. *host is readable for the
 * rest of the page through access.h. EXEC_UNHANDLED: not RAM.
 */
enum exec mmu_fetch_page(struct vcpu *vcpu, gva_t va, gpa_t *page_gpa, u8 **host);

/*
 * Any length, any alignment, RAM or MMIO, crossing pages; all permission checks are made for the
 * whole range before anything is stored. access from mmu_data_access() or MMU_IMPLICIT for system structures.
 */
enum exec mem_read(struct vcpu *vcpu, gva_t va, void *buf, unsigned len, unsigned access);
enum exec mem_write(struct vcpu *vcpu, gva_t va, const void *buf, unsigned len, unsigned access);
/* Check that a later mem_write() of the range will not fault (PUSHA, ENTER, far calls, task switches). */
enum exec mem_probe_write(struct vcpu *vcpu, gva_t va, unsigned len, unsigned access);

/*
 * Host pointer for len bytes at va if they lie in one page of plain RAM (write:
 * plainly writable), else NULL with *r = why (EXEC_OK: use mem_read/mem_write with a bounce buffer:
 * page crossing, MMIO, dirty tracking, code page). Fills the TLB.
 */
void *mem_host_slow(struct vcpu *vcpu, gva_t va, unsigned len, bool write, enum exec *r);

/*
 * Pointer for one atomic read-modify-write of len bytes: as mem_host(), but also for pages whose
 * stores must be noticed (code, dirty tracking), which it accounts for. NULL with EXEC_OK: MMIO or crossing pages.
 */
void *mem_host_atomic(struct vcpu *vcpu, gva_t va, unsigned len, enum exec *r);

/* At every block entry and wherever CPL or AC may have changed. */
static inline void mmu_select_tlb(struct vcpu *vcpu)
{
	unsigned ctx = vcpu->arch.cpl == 3 ? TLB_USER : TLB_KERNEL;

	if (unlikely(vcpu->arch.rflags & X86_EFLAGS_AC) && (ctx == TLB_KERNEL || (vcpu->arch.cr0 & X86_CR0_AM)))
		ctx++;
	vcpu->arch.tlb = &vcpu->arch.mmu->tlbs[ctx];
}

static inline unsigned tlb_index(gva_t va)
{
	return (va >> PAGE_SHIFT) & (TLB_ENTRIES - 1);
}

static inline unsigned tlb_second_index(gva_t va)
{
	return (va >> PAGE_SHIFT ^ va >> (2 * PAGE_SHIFT)) & (TLB_SECOND - 1);
}

static inline void *mem_host(struct vcpu *vcpu, gva_t va, unsigned len, bool write, enum exec *r)
{
	struct tlb *tlb = vcpu->arch.tlb;
	unsigned i = tlb_index(va);
	u64 off = va + (write ? tlb->write[i] : tlb->read[i]);

	if (likely(off <= PAGE_SIZE - len))
		return (void *)(va + tlb->delta[i]);
	return mem_host_slow(vcpu, va, len, write, r);
}

/* Plain data loads and stores at CPL. size is 1, 2, 4 or 8; the value is zero-extended. */
enum exec mem_load_slow(struct vcpu *vcpu, gva_t va, unsigned size, u64 *val);
enum exec mem_store_slow(struct vcpu *vcpu, gva_t va, unsigned size, u64 val);

static inline enum exec mem_load(struct vcpu *vcpu, gva_t va, unsigned size, u64 *val)
{
	struct tlb *tlb = vcpu->arch.tlb;
	unsigned i = tlb_index(va);

	if (likely(va + tlb->read[i] <= PAGE_SIZE - size) &&
	    likely(host_load((void *)(va + tlb->delta[i]), size, val)))
		return EXEC_OK;
	return mem_load_slow(vcpu, va, size, val);
}

static inline enum exec mem_store(struct vcpu *vcpu, gva_t va, unsigned size, u64 val)
{
	struct tlb *tlb = vcpu->arch.tlb;
	unsigned i = tlb_index(va);

	if (likely(va + tlb->write[i] <= PAGE_SIZE - size) &&
	    likely(host_store((void *)(va + tlb->delta[i]), size, val)))
		return EXEC_OK;
	return mem_store_slow(vcpu, va, size, val);
}

/*
 * Logical to linear: limit and type checks outside 64-bit mode, canonical
 * checks in it. #SS(0) for SEG_SS, #GP(0) otherwise.
 */
enum exec seg_linear_slow(struct vcpu *vcpu, enum seg seg, u64 off, unsigned size, bool write, gva_t *va);

static inline enum exec seg_linear(struct vcpu *vcpu, enum seg seg, u64 off, unsigned size,
				   bool write, gva_t *va)
{
	if (likely(in_64bit_mode(vcpu))) {
		*va = off;
		if (unlikely(seg >= SEG_FS))
			*va += vcpu->arch.seg[seg].base;
		if (likely(is_canonical(*va) && is_canonical(*va + size - 1)))
			return EXEC_OK;
	}
	return seg_linear_slow(vcpu, seg, off, size, write, va);
}

#endif

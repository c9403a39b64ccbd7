/* SPDX-License-Identifier: MIT */
/*
 * Page walks for 32-bit, PAE and 4-level paging.
 *
 * Every level works on a 64-bit entry; 32-bit ones are widened so that one loop
 * serves all formats. Accessed and dirty bits are set by compare-exchange on
 * the client's memory, because other vCPUs and the client write there too: a lost
 * race restarts the walk. Order follows the hardware: presence, then reserved
 * bits, level by level; permissions only once the leaf is known.
 */
#include "x86/mmu/mmu_internal.h"

#define PTE_P BIT_ULL(0)
#define PTE_W BIT_ULL(1)
#define PTE_U BIT_ULL(2)
#define PTE_A BIT_ULL(5)
#define PTE_D BIT_ULL(6)
#define PTE_PS BIT_ULL(7)
#define PTE_G BIT_ULL(8)
#define PTE_PAT_LARGE BIT_ULL(12)
#define PTE_NX BIT_ULL(63)
#define PTE_ADDR 0x000ffffffffff000ull

#define PFERR_P BIT(0)
#define PFERR_W BIT(1)
#define PFERR_U BIT(2)
#define PFERR_RSVD BIT(3)
#define PFERR_I BIT(4)

struct paging {
	u8 levels;		/* entries read, leaf included */
	u8 index_bits;		/* 9, or 10 for 32-bit paging */
	u8 entry_size;		/* 8 or 4 */
	bool large_ok[4];	/* PS honoured at this level; [0] unused */
	u64 reserved;		/* in any entry */
	u64 root;
};

static void paging_mode(struct vcpu *vcpu, gva_t va, struct paging *pg)
{
	struct vcpu_arch *a = &vcpu->arch;
	u64 high = ~(BIT_ULL(a->maxphyaddr ? a->maxphyaddr : 36) - 1) & PTE_ADDR;

	*pg = (struct paging){ .index_bits = 9, .entry_size = 8 };
	if (a->long_mode) {
		pg->levels = 4;
		pg->large_ok[1] = pg->large_ok[2] = true;
		pg->reserved = high | (a->efer & EFER_NX ? 0 : PTE_NX);
		pg->root = a->cr3 & PTE_ADDR;
	} else if (a->cr4 & X86_CR4_PAE) {
		pg->levels = 2;
		pg->large_ok[1] = true;
		pg->reserved = high | 0x7ff0000000000000ull | (a->efer & EFER_NX ? 0 : PTE_NX);
		pg->root = a->pdptrs[(u32)va >> 30];
	} else {
		pg->levels = 2;
		pg->index_bits = 10;
		pg->entry_size = 4;
		pg->large_ok[1] = a->cr4 & X86_CR4_PSE;
		pg->root = a->cr3 & 0xfffff000;
	}
}

static enum exec walk_fault(struct vcpu *vcpu, gva_t va, unsigned access, u32 error)
{
	if (access & MMU_NOFAULT)
		return EXEC_FAULT;
	if (access & (MMU_WRITE | MMU_RMW))
		error |= PFERR_W;
	if (access & MMU_USER)
		error |= PFERR_U;
	if ((access & MMU_FETCH) &&
	    ((vcpu->arch.efer & EFER_NX && vcpu->arch.cr4 & X86_CR4_PAE) ||
	     (vcpu->arch.cr4 & X86_CR4_SMEP)))
		error |= PFERR_I;
	vcpu->stat.pf_guest++;
	return queue_page_fault(vcpu, va, error);
}

/* All bits of the leaf's path combined: may this access happen? */
static bool walk_permitted(struct vcpu *vcpu, unsigned access, bool user, bool writable, bool nx)
{
	u64 cr4 = vcpu->arch.cr4;
	bool write = access & (MMU_WRITE | MMU_RMW);

	if (access & MMU_USER)
		return user && (!write || writable) && !((access & MMU_FETCH) && nx);
	if (access & MMU_FETCH)
		return !nx && !(user && (cr4 & X86_CR4_SMEP));
	if (user && (cr4 & X86_CR4_SMAP) &&
	    ((access & MMU_IMPLICIT) || !(vcpu->arch.rflags & X86_EFLAGS_AC)))
		return false;
	return !write || writable || !(vcpu->arch.cr0 & X86_CR0_WP);
}

static u64 large_reserved(const struct paging *pg, unsigned level)
{
	if (pg->entry_size == 4)
		return 0x3fe000ull & ~0x1fe000ull; /* bit 21; PSE-36 carries address bits 32-39 in 13-20 */
	return (BIT_ULL(12 + 9 * level) - 1) & PTE_ADDR & ~PTE_PAT_LARGE;
}

static gpa_t leaf_gpa(const struct paging *pg, u64 entry, unsigned level, unsigned shift, gva_t va)
{
	u64 offset = va & (BIT_ULL(shift) - 1);

	if (level == 0)
		return (entry & (pg->entry_size == 4 ? 0xfffff000ull : PTE_ADDR)) | offset;
	if (pg->entry_size == 4)
		return (entry & 0xffc00000ull) | (entry & 0x1fe000ull) << 19 | offset;
	return (entry & PTE_ADDR & ~(BIT_ULL(shift) - 1)) | offset;
}

/* 1: set; 0: the entry changed, walk again; -1: not accessible. */
static int set_entry_bits(struct vcpu *vcpu, struct memslot *slot, gpa_t gpa, u8 *host, const struct paging *pg,
			  u64 entry, u64 bits)
{
	u64 old = entry;
	int r;

	if (slot->flags & KVM_MEM_READONLY)
		return 1; /* page tables in ROM: their A/D bits cannot be written */
	r = host_cmpxchg(host, pg->entry_size, &old, entry | bits);
	if (r == 1)
		memslot_mark_dirty(vcpu, slot, gpa >> PAGE_SHIFT);
	return r;
}

/* Who asks for an address only looks at host_kicked himself. */
static enum exec entry_failed(unsigned access)
{
	return access & MMU_NOFAULT ? EXEC_EFAULT : mem_access_failed();
}

static enum exec walk_once(struct vcpu *vcpu, gva_t va, unsigned access, struct walk *walk, bool *again)
{
	struct paging pg;
	gpa_t table;
	bool user = true, writable = true, nx = false;

	*again = false;
	paging_mode(vcpu, va, &pg);
	table = pg.root;
	if (pg.entry_size == 8 && pg.levels == 2) {
		if (!(table & PTE_P))
			return walk_fault(vcpu, va, access, 0);
		table &= PTE_ADDR;
	}

	for (int level = pg.levels - 1;; level--) {
		unsigned shift = 12 + pg.index_bits * level;
		gpa_t gpa = table + ((va >> shift) & (BIT_ULL(pg.index_bits) - 1)) * pg.entry_size;
		struct memslot *slot = mmu_find_slot(vcpu, gpa);
		u64 entry, rsvd = pg.reserved, want;
		bool leaf;
		u8 *host;
		int set;

		if (!slot)
			return walk_fault(vcpu, va, access, 0);
		host = vcpu_guest_host(vcpu, slot, gpa);
		if (unlikely(!host))
			return mmu_memory_fault(vcpu, gpa, access);
		if (!host_load(host, pg.entry_size, &entry))
			return entry_failed(access);
		if (!(entry & PTE_P))
			return walk_fault(vcpu, va, access, 0);

		leaf = level == 0 || ((entry & PTE_PS) && pg.large_ok[level]);
		if (leaf && level)
			rsvd |= large_reserved(&pg, level);
		else if (level == 3 || (level == 2 && !pg.large_ok[2]))
			rsvd |= PTE_PS;
		if (entry & rsvd)
			return walk_fault(vcpu, va, access, PFERR_P | PFERR_RSVD);

		user &= !!(entry & PTE_U);
		writable &= !!(entry & PTE_W);
		nx |= pg.entry_size == 8 && (entry & PTE_NX) && (vcpu->arch.efer & EFER_NX);

		if (leaf && !walk_permitted(vcpu, access, user, writable, nx))
			return walk_fault(vcpu, va, access, PFERR_P);

		want = PTE_A;
		if (leaf && (access & MMU_WRITE))
			want |= PTE_D;
		if ((entry & want) != want && !(access & MMU_NOFAULT)) {
			set = set_entry_bits(vcpu, slot, gpa, host, &pg, entry, want);
			if (set < 0)
				return entry_failed(access);
			if (!set) {
				*again = true;
				return EXEC_RETRY;
			}
			entry |= want;
		}
		if (leaf) {
			walk->gpa = leaf_gpa(&pg, entry, level, shift, va);
			walk->page_shift = shift;
			walk->dirty = entry & PTE_D;
			walk->global = (entry & PTE_G) && (vcpu->arch.cr4 & X86_CR4_PGE);
			walk->writable = walk_permitted(vcpu, (access & ~MMU_FETCH) | MMU_WRITE, user,
							writable, nx);
			return EXEC_OK;
		}
		table = entry & (pg.entry_size == 4 ? 0xfffff000ull : PTE_ADDR);
	}
}

enum exec mmu_walk(struct vcpu *vcpu, gva_t va, unsigned access, struct walk *walk)
{
	bool again;
	enum exec r;

	if (!vcpu->arch.long_mode)
		va = (u32)va;
	if (!vcpu->arch.paging) {
		*walk = (struct walk){ .gpa = (u32)va, .page_shift = PAGE_SHIFT,
				       .writable = true, .dirty = true };
		return EXEC_OK;
	}
	do {
		r = walk_once(vcpu, va, access, walk, &again);
	} while (again);
	return r;
}

enum exec mmu_translate(struct vcpu *vcpu, gva_t va, unsigned access, gpa_t *gpa)
{
	struct walk walk;
	enum exec r = mmu_walk(vcpu, va, access, &walk);

	if (r == EXEC_OK)
		*gpa = walk.gpa;
	return r;
}

bool mmu_load_pdptrs(struct vcpu *vcpu, u64 cr3)
{
	u64 high = ~(BIT_ULL(vcpu->arch.maxphyaddr ? vcpu->arch.maxphyaddr : 36) - 1);
	u64 pdptrs[4];

	if (vcpu_read_guest(vcpu, cr3 & 0xffffffe0, pdptrs, sizeof(pdptrs)))
		return false;
	for (int i = 0; i < 4; i++)
		if ((pdptrs[i] & PTE_P) && (pdptrs[i] & (high | 0x1e6)))
			return false;
	for (int i = 0; i < 4; i++)
		vcpu->arch.pdptrs[i] = pdptrs[i];
	return true;
}

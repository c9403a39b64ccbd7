/* SPDX-License-Identifier: MIT */
/* Private to x86/mmu. */
#ifndef SOFTKVM_X86_MMU_INTERNAL_H
#define SOFTKVM_X86_MMU_INTERNAL_H

#include "kvm/guest_memfd.h"
#include "x86/mmu.h"

/* Result of a page walk. */
struct walk {
	gpa_t gpa;		/* of va itself */
	u8 page_shift;		/* 12, 21, 22 or 30 */
	bool writable;		/* a write at the same privilege would be allowed... */
	bool dirty;		/* ...and the leaf is dirty already */
	bool global;		/* survives loads of CR3 */
};

enum exec mmu_walk(struct vcpu *vcpu, gva_t va, unsigned access, struct walk *walk);

/* Private memory that is not there: EXEC_EFAULT, with the exit filled in unless the access is a mere question. */
static inline enum exec mmu_memory_fault(struct vcpu *vcpu, gpa_t gpa, unsigned access)
{
	if (!(access & MMU_NOFAULT))
		vcpu_memory_fault(vcpu, gpa);
	return EXEC_EFAULT;
}

static inline struct tlb *tlb_for(struct vcpu *vcpu, unsigned access)
{
	unsigned ctx = TLB_KERNEL;

	if (access & MMU_USER)
		ctx = TLB_USER;
	else if (!(access & MMU_IMPLICIT) && (vcpu->arch.rflags & X86_EFLAGS_AC))
		ctx = TLB_KERNEL_AC;
	return &vcpu->arch.mmu->tlbs[ctx];
}

/* The entry of va from the second level. False: it is not there, or not for writing. */
bool tlb_refill(struct vcpu *vcpu, struct tlb *tlb, gva_t va, bool write);
void tlb_fill(struct vcpu *vcpu, struct tlb *tlb, gva_t va, u8 *host, bool write_ok,
	      const struct walk *walk);

/* tlb.c: this vCPU uses the page, which is marked, until the translator's mark goes. False: it does already. */
bool mmu_note_shared(struct vcpu *vcpu, gpa_t page);
/* shared_code.c: one vCPU less uses it. */
void mmu_unshare_code_page(struct vm *vm, gpa_t page);

#endif

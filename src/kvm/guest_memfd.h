/* SPDX-License-Identifier: MIT */
/*
 * Private guest memory: guest_memfd files, the attribute map that says which
 * pages are private, and where a guest's access to a page goes. src/kvm/guest_memfd.c
 */
#ifndef SOFTKVM_KVM_GUEST_MEMFD_H
#define SOFTKVM_KVM_GUEST_MEMFD_H

#include "kvm/kvm_host.h"

/* One VM's view of a guest_memfd. The pages belong to the inode, which views in other VMs and processes share. */
struct gmem {
	struct vm *vm;
	u8 *host;		/* all of it, mapped shared; the guest's way in, no client ever sees this address */
	u64 size;
	u64 dev, ino;		/* equal for views of the same memory */
	u32 flags;		/* GUEST_MEMFD_FLAG_* */
};

/* Flags KVM_CREATE_GUEST_MEMFD takes at this API level. */
u64 gmem_supported_flags(struct vm *vm);
/* A view of the memfd fd (not taken over), or NULL with *err. */
struct gmem *gmem_create(struct vm *vm, int fd, u64 size, u32 flags, int *err);
/* The view's last descriptor is gone: bindings go, pages stay with the inode. Takes slots_lock. */
void gmem_release(struct gmem *gmem);
/* For a new slot: 0, or -EINVAL. slots_lock held. */
int gmem_bind(struct memslot *slot, struct gmem *gmem, u64 offset);

/* ---- private pages --------------------------------------------------------------- */

struct gfn_range {
	gfn_t start, end;	/* end is the first gfn after it */
};

/* The private pages of a VM: ascending, disjoint, not adjacent. Immutable; replaced under slots_lock. */
struct mem_attrs {
	u32 nr;
	struct gfn_range ranges[];
};

#define MEM_ATTRS_MAX_RANGES (1u << 22)

/* KVM_SET_MEMORY_ATTRIBUTES */
int vm_set_memory_attributes(struct vm *vm, const struct kvm_memory_attributes *attrs);
/* A copy of ranges after checks, or NULL with *err: they come from another process. */
struct mem_attrs *mem_attrs_create(const struct gfn_range *ranges, u32 nr, int *err);
/* Vcpus in guest mode, or under slots_lock. */
bool vm_gfn_is_private(struct vm *vm, gfn_t gfn);

u8 *vcpu_guest_host_slow(struct vcpu *vcpu, const struct memslot *slot, gpa_t gpa);

/* Where the guest's accesses of gpa go. NULL: nowhere, KVM_EXIT_MEMORY_FAULT. In guest mode. */
static inline u8 *vcpu_guest_host(struct vcpu *vcpu, const struct memslot *slot, gpa_t gpa)
{
	if (likely(!(slot->flags & KVM_MEM_GUEST_MEMFD) &&
		   !atomic_load_explicit(&vcpu->vm->attrs, memory_order_relaxed)))
		return (u8 *)memslot_hva(slot, gpa);
	return vcpu_guest_host_slow(vcpu, slot, gpa);
}

/* KVM_EXIT_MEMORY_FAULT into kvm_run; KVM_RUN then fails with EFAULT. */
void vcpu_memory_fault(struct vcpu *vcpu, gpa_t gpa);

/* ---- moving the memory context: kvm/move.c ------------------------------------------ */

/* Become part of a move; false: is part of one already. */
bool vm_begin_move(struct vm *vm);
void vm_end_move(struct vm *vm);
/* KVM_CAP_VM_MOVE_ENC_CONTEXT_FROM. dst->lock held. 0 or -errno. */
int vm_move_context(struct vm *dst, struct vm *src);

#endif

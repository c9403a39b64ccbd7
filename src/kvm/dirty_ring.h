/* SPDX-License-Identifier: MIT */
/* Dirty rings: a vCPU's log of pages it wrote, read by the client from the vCPU's mapping. src/kvm/dirty_ring.c */
#ifndef SOFTKVM_KVM_DIRTY_RING_H
#define SOFTKVM_KVM_DIRTY_RING_H

#include "kvm/kvm_host.h"

/* Entries kept free for what is written between the moment the ring counts as full and the exit. */
#define DIRTY_RING_RESERVED 64

struct dirty_ring {
	struct kvm_dirty_gfn *gfns;	/* shared with the client: hostile */
	u32 size;			/* a power of two */
	_Atomic u32 dirty_index;	/* free-running; written by the vCPU's thread */
	_Atomic u32 reset_index;	/* free-running; written under slots_lock */
};

/* KVM_ENABLE_CAP: 0 or -errno. vm->lock held. */
int vm_enable_dirty_ring(struct vm *vm, u64 bytes);
/* The ring of a new vCPU, if its VM has rings: 0 or -ENOMEM. Whoever maps the vCPU's pages sets gfns. */
int dirty_ring_create(struct vcpu *vcpu);
void dirty_ring_destroy(struct vcpu *vcpu);
/* The page is newly dirty. vCPU's thread. Sets KVM_REQ_DIRTY_RING_SOFT_FULL when the client must empty the ring. */
void dirty_ring_push(struct vcpu *vcpu, const struct memslot *slot, u64 offset);
bool dirty_ring_soft_full(const struct vcpu *vcpu);
/* KVM_RESET_DIRTY_RINGS: entries consumed, or -EINVAL. */
long vm_reset_dirty_rings(struct vm *vm);

#endif

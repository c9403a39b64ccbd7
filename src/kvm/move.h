/* SPDX-License-Identifier: MIT */
/*
 * Context moves: what kvm/move.c (in one process) and kvm/move_agent.c (between two) share,
 * and the part of a VM's file that two processes talk through.
 */
#ifndef SOFTKVM_KVM_MOVE_H
#define SOFTKVM_KVM_MOVE_H

#include "kvm/guest_memfd.h"

/* A memslot without anything that only its owner may know. */
struct move_slot {
	u64 base_gfn, npages;
	u64 flags;
	u64 gmem_offset, dev, ino;
};

#define MOVE_MAX_RANGES (1u << 17)

/*
 * After the control page in the file of a VM that can be moved from. Hostile
 * input for both sides: sizes are read once and checked, contents are copied.
 */
struct move_area {
	_Atomic u32 state;		/* enum move_state; the futex both sides wait on */
	s32 error;			/* with MOVE_FAILED: a positive errno */
	u64 type;			/* of the source */
	u32 nr_slots, nr_ranges;
	u8 reserved[4096 - 24];
	struct move_slot slots[KVM_ABI_USER_MEM_SLOTS];
	struct gfn_range ranges[MOVE_MAX_RANGES];
};

enum move_state {
	MOVE_IDLE,
	MOVE_ASKED,	/* by the destination */
	MOVE_READY,	/* by the source: locked, slots published */
	MOVE_COMMIT,	/* by the destination: they agree */
	MOVE_ABORT,	/* by the destination: they do not */
	MOVE_DONE,	/* by the source: dead, its map published */
	MOVE_FAILED,	/* by the source */
};

/* No vCPU of a dead VM is in guest code on return, nor ever will be. slots_lock held. */
void vm_stop_vcpus(struct vm *vm);
/* ioctls of a dead VM that had begun before it died are over when this returns. slots_lock not held. */
void vm_drain_vcpus(struct vm *vm);
void move_describe_slot(struct move_slot *out, const struct memslot *slot);
/* False also for slots whose guest_memfd is closed. */
bool move_same_slot(const struct move_slot *a, const struct move_slot *b);

/* Let other processes move from vm: a thread that answers them. 0 or -errno; once is enough. */
int move_agent_start(struct vm *vm);
void move_agent_stop(struct vm *vm);
/* As vm_move_context(), from the VM of another process whose file area belongs to. */
int vm_move_context_foreign(struct vm *dst, struct move_area *area);

#endif

/* SPDX-License-Identifier: MIT */
/*
 * Dirty rings.
 *
 * An entry goes 0 -> DIRTY (the vCPU) -> RESET set (the client has harvested it)
 * -> 0 (KVM_RESET_DIRTY_RINGS). "Write-protected" is here a clear bit in the
 * slot's dirty_bitmap: the first writer of a page sets the bit and pushes the
 * page; resetting clears the bit and flushes write tags, so that the next write
 * is logged again. One bitmap serves all vCPUs, as KVM's page tables do.
 *
 * 1. The ring is the client's to scribble on. Each field is read once into a
 *    local; indices are ours and only ever masked; what an entry names is looked
 *    up and checked before use. A client that marks entries as harvested which
 *    never were moves reset_index past dirty_index: its ring then counts
 *    as full for ever, which hurts nobody else.
 * 2. When KVM_RESET_DIRTY_RINGS returns, every entry it consumed has been
 *    re-armed: bits first, then one vm_sync_vcpus(), also when it leaves early.
 *    memslot.c explains why that order loses no write.
 * 3. One call is bounded: INT_MAX entries. A lap of each ring is done whatever signals come, since honest
 *    clients (QEMU) rely on the count they harvested; beyond a lap, which only entries
 *    harvested during the call itself can cause, a signal ends it. The count so far is the result, never EINTR.
 * 4. No lock but this VM's slots_lock is held meanwhile.
 */
#include "kvm/dirty_ring.h"

#include <errno.h>
#include <limits.h>
#include <stdlib.h>

#include "base/inject.h"
#include "host/host.h"
#include "kvm/arch.h"
#include "kvm/trace.h"

static void clear_logs(const struct memslots *slots)
{
	for (u32 i = 0; i < slots->nr; i++)
		for (u64 w = 0; slots->by_id[i]->dirty_bitmap && w < (slots->by_id[i]->npages + 63) / 64; w++)
			atomic_store_explicit(&slots->by_id[i]->dirty_bitmap[w], 0, memory_order_relaxed);
}

int vm_enable_dirty_ring(struct vm *vm, u64 bytes)
{
	if (!bytes || (bytes & (bytes - 1)))
		return -EINVAL;
	if (bytes < PAGE_SIZE || bytes < DIRTY_RING_RESERVED * sizeof(struct kvm_dirty_gfn))
		return -EINVAL;
	if (bytes > KVM_ABI_DIRTY_RING_MAX_ENTRIES * sizeof(struct kvm_dirty_gfn))
		return -E2BIG;
	if (vm->dirty_ring_entries || atomic_load(&vm->nr_vcpus))
		return -EINVAL;
	pthread_mutex_lock(&vm->slots_lock);
	/* Pages of slots that are logged already are to be pushed, too. */
	for (unsigned as_id = 0; as_id < KVM_ABI_ADDRESS_SPACES; as_id++)
		clear_logs(atomic_load(vm_slots(vm, as_id)));
	vm->dirty_ring_entries = bytes / sizeof(struct kvm_dirty_gfn);
	pthread_mutex_unlock(&vm->slots_lock);
	return 0;
}

int dirty_ring_create(struct vcpu *vcpu)
{
	struct dirty_ring *ring;

	if (!vcpu->vm->dirty_ring_entries)
		return 0;
	ring = calloc(1, sizeof(*ring));
	if (!ring)
		return -ENOMEM;
	ring->size = vcpu->vm->dirty_ring_entries;
	vcpu->dirty_ring = ring;
	return 0;
}

void dirty_ring_destroy(struct vcpu *vcpu)
{
	free(vcpu->dirty_ring);
	vcpu->dirty_ring = NULL;
}

static u32 ring_used(const struct dirty_ring *ring)
{
	/* Acquire: the entries below reset_index are free. */
	return atomic_load_explicit(&((struct dirty_ring *)ring)->dirty_index, memory_order_relaxed) -
	       atomic_load_explicit(&((struct dirty_ring *)ring)->reset_index, memory_order_acquire);
}

bool dirty_ring_soft_full(const struct vcpu *vcpu)
{
	const struct dirty_ring *ring = vcpu->dirty_ring;

	return ring && ring_used(ring) >= ring->size - DIRTY_RING_RESERVED;
}

void dirty_ring_push(struct vcpu *vcpu, const struct memslot *slot, u64 offset)
{
	struct dirty_ring *ring = vcpu->dirty_ring;
	u32 index = atomic_load_explicit(&ring->dirty_index, memory_order_relaxed);
	struct kvm_dirty_gfn *gfn = &ring->gfns[index & (ring->size - 1)];

	/* With the reserve only a client that has wrecked its own ring gets here. */
	if (unlikely(ring_used(ring) >= ring->size)) {
		vcpu_make_request(vcpu, KVM_REQ_DIRTY_RING_SOFT_FULL);
		return;
	}
	gfn->slot = (u32)slot->as_id << 16 | slot->id;
	gfn->offset = offset;
	/* Pairs with the client's acquire: slot and offset are there when it sees DIRTY. */
	__atomic_store_n(&gfn->flags, KVM_DIRTY_GFN_F_DIRTY, __ATOMIC_RELEASE);
	atomic_store_explicit(&ring->dirty_index, index + 1, memory_order_release);
	trace(kvm_dirty_ring_push, vcpu->id, index + 1, atomic_load(&ring->reset_index), gfn->slot, offset);
	if (dirty_ring_soft_full(vcpu)) {
		vcpu_make_request(vcpu, KVM_REQ_DIRTY_RING_SOFT_FULL);
		/* The reserve is for one instruction, not for a block of them. */
		arch_vcpu_end_block(vcpu);
	}
}

/* ---- KVM_RESET_DIRTY_RINGS ----------------------------------------------------------- */

struct reset_walk {
	struct vm *vm;
	u64 count, limit, slow_ns;
	_Atomic u64 signal;	/* a client's signal has come */
	bool strict, interrupted;
	/* The batch: pages of one slot within 64 of each other. */
	u32 slot;
	u64 base, mask;
};

/* Entries that name no page of a logged slot are none of our business any more. */
static void rearm(struct reset_walk *w)
{
	unsigned as_id = w->slot >> 16;
	struct memslot *slot = as_id >= vm_nr_address_spaces(w->vm) ? NULL :
			       memslots_find_id(atomic_load(vm_slots(w->vm, as_id)), (u16)w->slot);
	u64 mask = w->mask, low;

	w->mask = 0;
	if (!mask || !slot || !slot->dirty_bitmap || w->base >= slot->npages)
		return;
	w->vm->stat.dirty_ring_batches++;
	if (slot->npages - w->base < 64)
		mask &= BIT_ULL(slot->npages - w->base) - 1;
	low = w->base & 63;
	atomic_fetch_and(&slot->dirty_bitmap[w->base / 64], ~(mask << low));
	if (low && mask >> (64 - low))
		atomic_fetch_and(&slot->dirty_bitmap[w->base / 64 + 1], ~(mask >> (64 - low)));
}

static void gather(struct reset_walk *w, u32 slot, u64 offset)
{
	s64 delta = offset - w->base;

	if (w->mask && slot == w->slot) {
		if (delta >= 0 && delta < 64) {
			w->mask |= BIT_ULL(delta);
			return;
		}
		/* Backwards, as long as no page falls off the mask's other end. */
		if (delta < 0 && delta > -64 && w->mask << -delta >> -delta == w->mask) {
			w->base = offset;
			w->mask = w->mask << -delta | 1;
			return;
		}
	}
	rearm(w);
	w->slot = slot;
	w->base = offset;
	w->mask = 1;
}

static void be_slow(u64 ns)
{
	u64 end = host_now_ns() + ns;

	while (host_now_ns() < end)
		;
}

static bool must_stop(struct reset_walk *w, u64 done, u32 size)
{
	if (w->count >= w->limit)
		return true;
	if (likely(!atomic_load_explicit(&w->signal, memory_order_relaxed)) || (!w->strict && done < size))
		return false;
	w->interrupted = true;
	return true;
}

/* False: the walk ends here. */
static bool reset_ring(struct reset_walk *w, struct dirty_ring *ring)
{
	u32 index = atomic_load_explicit(&ring->reset_index, memory_order_relaxed);

	for (u64 done = 0;; done++) {
		struct kvm_dirty_gfn *gfn = &ring->gfns[index & (ring->size - 1)];
		u32 slot;
		u64 offset;

		if (!(__atomic_load_n(&gfn->flags, __ATOMIC_ACQUIRE) & KVM_DIRTY_GFN_F_RESET))
			return true;
		if (must_stop(w, done, ring->size))
			return false;
		if (unlikely(w->slow_ns))
			be_slow(w->slow_ns);
		slot = __atomic_load_n(&gfn->slot, __ATOMIC_RELAXED);
		offset = __atomic_load_n(&gfn->offset, __ATOMIC_RELAXED);
		/* Free from here on: the producer must not find old flags behind its new entry. */
		__atomic_store_n(&gfn->flags, 0, __ATOMIC_RELEASE);
		atomic_store_explicit(&ring->reset_index, ++index, memory_order_release);
		w->count++;
		gather(w, slot, offset);
	}
}

static void reset_all(struct reset_walk *w)
{
	struct vm *vm = w->vm;
	struct vcpu *vcpu;
	u32 i;

	pthread_mutex_lock(&vm->slots_lock);
	vm_for_each_vcpu(vm, vcpu, i) {
		bool more = !vcpu->dirty_ring || reset_ring(w, vcpu->dirty_ring);

		if (vcpu->dirty_ring)
			trace(kvm_dirty_ring_reset, vcpu->id, atomic_load(&vcpu->dirty_ring->dirty_index),
			      atomic_load(&vcpu->dirty_ring->reset_index));
		if (!more)
			break;
	}
	rearm(w);
	if (w->count)
		vm_sync_vcpus(vm, KVM_REQ_TLB_FLUSH);
	vm->stat.dirty_ring_resets++;
	vm->stat.dirty_ring_entries_reset += w->count;
	vm->stat.dirty_ring_resets_interrupted += w->interrupted;
	pthread_mutex_unlock(&vm->slots_lock);
}

long vm_reset_dirty_rings(struct vm *vm)
{
	u64 limit = inject_value(INJECT_DIRTY_RESET_LIMIT);
	struct reset_walk w = {
		.vm = vm,
		.limit = limit ? min(limit, (u64)INT_MAX) : INT_MAX,
		.slow_ns = inject_value(INJECT_DIRTY_RESET_SLOW),
		.strict = inject_value(INJECT_DIRTY_RESET_STRICT),
	};
	struct host_guest_ctx ctx = { .requests = &w.signal, .signal_request = 1 };

	if (!vm->dirty_ring_entries)
		return -EINVAL;
	/* Client signals become a bit in w.signal, and are handled when the locks are gone. */
	host_guest_enter(&ctx, NULL);
	reset_all(&w);
	host_guest_leave(&ctx);
	return w.count;
}

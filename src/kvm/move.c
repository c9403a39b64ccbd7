/* SPDX-License-Identifier: MIT */
/*
 * Moving a VM's memory context to another VM: KVM_CAP_VM_MOVE_ENC_CONTEXT_FROM.
 *
 * The destination has linked the source's guest_memfds and laid them out in equal slots. What
 * moves is the knowledge which pages are private; the source dies of it.
 *
 * 1. Everything is checked before anything is changed: a failure leaves two VMs alive and as they were.
 * 2. The source's vCPUs are out of guest code before its map is taken, and the destination's old
 *    translations are gone when the call returns.
 * 3. vm->moving makes a VM part of one move at a time: two threads moving in opposite
 *    directions get EBUSY, and no lock order is needed between VMs.
 */
#include <errno.h>
#include <stdlib.h>

#include "base/inject.h"
#include "host/host.h"
#include "kvm/move.h"

#define WAIT_NS 1000000ull

void move_describe_slot(struct move_slot *out, const struct memslot *slot)
{
	*out = (struct move_slot){ .base_gfn = slot->base_gfn, .npages = slot->npages, .flags = slot->flags };
	if (!(slot->flags & KVM_MEM_GUEST_MEMFD))
		return;
	out->gmem_offset = slot->gmem_offset;
	if (slot->gmem) {
		out->dev = slot->gmem->dev;
		out->ino = slot->gmem->ino;
	}
}

bool move_same_slot(const struct move_slot *a, const struct move_slot *b)
{
	if (a->base_gfn != b->base_gfn || a->npages != b->npages || a->flags != b->flags)
		return false;
	if (!(a->flags & KVM_MEM_GUEST_MEMFD))
		return true;
	return a->ino && a->ino == b->ino && a->dev == b->dev && a->gmem_offset == b->gmem_offset;
}

static int compare_slots(const struct memslots *a, const struct memslots *b)
{
	if (a->nr != b->nr)
		return -EINVAL;
	for (u32 i = 0; i < a->nr; i++) {
		struct move_slot x, y;

		move_describe_slot(&x, a->by_gfn[i]);
		move_describe_slot(&y, b->by_gfn[i]);
		if (!move_same_slot(&x, &y))
			return -EINVAL;
	}
	return 0;
}

void vm_stop_vcpus(struct vm *vm)
{
	struct vcpu *vcpu;
	u32 i;

	vm_make_all_request(vm, KVM_REQ_VM_DEAD);
	vm_sync_vcpus(vm, KVM_REQ_VM_DEAD);
	/* One that has taken the request may still be on its way out, writing its steal time. */
	atomic_fetch_add(&vm->sync_waiters, 1);
	vm_for_each_vcpu(vm, vcpu, i)
		while (atomic_load(&vcpu->mode) != VCPU_OUTSIDE) {
			u32 seq = atomic_load(&vm->sync_futex);

			if (atomic_load(&vcpu->mode) == VCPU_OUTSIDE)
				break;
			host_futex_wait(&vm->sync_futex, seq, host_now_ns() + WAIT_NS);
			if (atomic_load(&vcpu->mode) != VCPU_OUTSIDE)
				host_kick_thread(atomic_load(&vcpu->tid));
		}
	atomic_fetch_sub(&vm->sync_waiters, 1);
}

/* Both slots_locks held. */
static void commit(struct vm *dst, struct vm *src)
{
	struct mem_attrs *old;

	vm_kill(src);
	vm_stop_vcpus(src);
	old = atomic_exchange(&dst->attrs, atomic_exchange(&src->attrs, NULL));
	vm_sync_vcpus(dst, KVM_REQ_TLB_FLUSH);
	free(old);
	dst->stat.ctx_moves++;
}

static int move_locked(struct vm *dst, struct vm *src)
{
	int r;

	pthread_mutex_lock(&dst->slots_lock);
	pthread_mutex_lock(&src->slots_lock);
	r = compare_slots(atomic_load(&dst->slots), atomic_load(&src->slots));
	if (!r && inject_value(INJECT_MOVE_CTX_STAGE2))
		r = -ENOMEM;
	if (!r)
		commit(dst, src);
	pthread_mutex_unlock(&src->slots_lock);
	pthread_mutex_unlock(&dst->slots_lock);
	return r;
}

bool vm_begin_move(struct vm *vm)
{
	u32 idle = 0;

	return atomic_compare_exchange_strong(&vm->moving, &idle, 1);
}

void vm_end_move(struct vm *vm)
{
	atomic_store(&vm->moving, 0);
}

void vm_drain_vcpus(struct vm *vm)
{
	struct vcpu *vcpu;
	u32 i;

	vm_for_each_vcpu(vm, vcpu, i) {
		pthread_mutex_lock(&vcpu->mutex);
		pthread_mutex_unlock(&vcpu->mutex);
	}
}

int vm_move_context(struct vm *dst, struct vm *src)
{
	int r = -EIO;

	if (dst->type != src->type || dst == src)
		return -EINVAL;
	if (!vm_begin_move(dst))
		return -EBUSY;
	if (!vm_begin_move(src)) {
		vm_end_move(dst);
		return -EBUSY;
	}
	pthread_mutex_lock(&src->lock);
	if (!atomic_load(&src->dead) && !atomic_load(&dst->dead))
		r = move_locked(dst, src);
	pthread_mutex_unlock(&src->lock);
	if (!r)
		vm_drain_vcpus(src);
	vm_end_move(src);
	vm_end_move(dst);
	return r;
}

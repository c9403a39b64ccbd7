/* SPDX-License-Identifier: MIT */
/*
 * How threads get a vCPU's attention, and how they know they have it.
 *
 * A vCPU in guest mode reads guest memory through pointers it got from its
 * memslots snapshot and its TLB. Whoever withdraws something from it (a slot, a
 * right to write without logging, an I/O bus, an MSR filter) does, in order:
 *
 *	(a) publish the new state	(b) set a request on every vCPU
 *	(c) look at each vCPU's mode	(d) wait for those in guest mode
 *	(e) free the old state
 *
 * and a vCPU does: (1) mode = IN_GUEST, (2) read the published state,
 * (3) look at requests, (4) run guest code, (3) again ... (5) mode = OUTSIDE.
 *
 * Invariants
 *  1. (b) before (c) and (1) before (3) are separated by full barriers. So
 *     either the waiter sees IN_GUEST and waits, or the vCPU sees the request
 *     before it runs guest code; and in that case, by (a) before (c) and (1) before
 *     (2), it reads the new state as well.
 *  2. A vCPU takes the request only at an instruction boundary, and having taken
 *     it drops what it derived from the old state and reads the published
 *     state again before it touches guest memory. So a request that is gone from
 *     the word is an acknowledgement, and so is mode OUTSIDE.
 *  3. The wait is a futex with a timeout of 1 ms, never a plain wait: the vCPU may sleep in a host page
 *     fault that only the waiter's own thread (a userfaultfd server) can
 *     resolve. A kick by signal makes it abort that access and come to a boundary.
 *  4. A vCPU's own thread is not waited for: it is at a boundary by being here.
 */
#include "host/host.h"
#include "host/syscall.h"
#include "kvm/arch.h"
#include "kvm/kvm_host.h"

#define SYNC_TIMEOUT_NS 1000000ull

void vcpu_kick(struct vcpu *vcpu)
{
	/* Pairs with the store to sleeping in vcpu_wait(): one of the two sees the other. */
	atomic_fetch_add(&vcpu->wake_futex, 1);
	if (atomic_load(&vcpu->sleeping))
		host_futex_wake(&vcpu->wake_futex);
}

void vcpu_wait(struct vcpu *vcpu, u64 deadline_ns)
{
	u32 seq = atomic_load(&vcpu->wake_futex);

	atomic_store(&vcpu->sleeping, 1);
	/* A kick after seq was read makes the futex return at once; one before it has set its request. */
	if (!atomic_load(&vcpu->requests))
		host_futex_wait(&vcpu->wake_futex, seq, deadline_ns);
	atomic_store(&vcpu->sleeping, 0);
}

void vm_make_all_request(struct vm *vm, enum vcpu_request req)
{
	struct vcpu *vcpu;
	u32 i;

	vm_for_each_vcpu(vm, vcpu, i) {
		vcpu_make_request(vcpu, req);
		vcpu_kick(vcpu);
	}
}

static bool vcpu_synced(struct vcpu *vcpu, u64 bit)
{
	return atomic_load(&vcpu->mode) == VCPU_OUTSIDE || !(atomic_load(&vcpu->requests) & bit);
}

static void sync_one(struct vm *vm, struct vcpu *vcpu, u64 bit)
{
	while (!vcpu_synced(vcpu, bit)) {
		u32 seq = atomic_load(&vm->sync_futex);
		u64 start;

		if (vcpu_synced(vcpu, bit))
			break;
		start = host_now_ns();
		host_futex_wait(&vm->sync_futex, seq, start + SYNC_TIMEOUT_NS);
		/* Woken by another vCPU's boundary, or by a signal: no reason to kick yet. */
		if (host_now_ns() - start >= SYNC_TIMEOUT_NS && !vcpu_synced(vcpu, bit))
			host_kick_thread(atomic_load(&vcpu->tid));
	}
}

void vm_sync_vcpus(struct vm *vm, enum vcpu_request req)
{
	pid_t self = host_syscall(SYS_gettid, 0, 0, 0, 0);
	u64 bit = BIT_ULL(req);
	struct vcpu *vcpu;
	u32 i;

	if (!atomic_load(&vm->nr_vcpus))
		return;
	vm->stat.remote_tlb_flush_requests++;
	/* No kick: engines poll the word, and who sleeps is outside and looks before it runs guest code. */
	vm_for_each_vcpu(vm, vcpu, i)
		vcpu_make_request(vcpu, req);
	atomic_fetch_add(&vm->sync_waiters, 1);
	atomic_thread_fence(memory_order_seq_cst); /* invariant 1 */
	vm_for_each_vcpu(vm, vcpu, i)
		if (atomic_load(&vcpu->mode) != VCPU_OUTSIDE && atomic_load(&vcpu->tid) != self)
			sync_one(vm, vcpu, bit);
	atomic_fetch_sub(&vm->sync_waiters, 1);
	vm->stat.remote_tlb_flush++;
}

void vcpu_sync_others(struct vcpu *self, const u64 *mask, enum vcpu_request req)
{
	struct vm *vm = self->vm;
	struct vcpu *vcpu;
	u32 i;

	atomic_fetch_add(&vm->sync_waiters, 1);
	atomic_thread_fence(memory_order_seq_cst); /* invariant 1 */
	vm_for_each_vcpu(vm, vcpu, i)
		if (vcpu != self && (mask[i / 64] & BIT_ULL(i % 64)))
			sync_one(vm, vcpu, BIT_ULL(req));
	atomic_fetch_sub(&vm->sync_waiters, 1);
}

void vcpu_enter_guest_mode(struct vcpu *vcpu)
{
	struct memslots *slots;

	atomic_store(&vcpu->mode, VCPU_IN_GUEST);
	atomic_thread_fence(memory_order_seq_cst); /* invariant 1 */
	slots = atomic_load(vm_slots(vcpu->vm, vcpu->as_id));
	vcpu->slots = slots;
	if (unlikely(slots->generation != vcpu->slots_generation)) {
		vcpu->slots_generation = slots->generation;
		arch_vcpu_flush_tlb(vcpu);
	}
}

void vcpu_leave_guest_mode(struct vcpu *vcpu)
{
	struct vm *vm = vcpu->vm;

	vcpu->slots = NULL;
	atomic_store(&vcpu->mode, VCPU_OUTSIDE);
	/* Pairs with sync_waiters++ before the look at mode. */
	if (unlikely(atomic_load(&vm->sync_waiters))) {
		atomic_fetch_add(&vcpu->boundary_seq, 1);
		atomic_fetch_add(&vm->sync_futex, 1);
		host_futex_wake(&vm->sync_futex);
	}
}

void vcpu_set_address_space(struct vcpu *vcpu, unsigned as_id)
{
	bool in_guest = atomic_load(&vcpu->mode) == VCPU_IN_GUEST;

	vcpu->as_id = as_id;
	vcpu->slots_generation = 0; /* of no snapshot */
	if (!in_guest)
		return;
	vcpu_leave_guest_mode(vcpu);
	vcpu_enter_guest_mode(vcpu);
}

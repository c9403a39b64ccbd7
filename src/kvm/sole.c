/* SPDX-License-Identifier: MIT */
/*
 * Is a vCPU alone with what its guest's programs (CPL 3) have in memory? Then nobody can tell whether a LOCKed instruction of
 * theirs is atomic, nor in which order their stores and loads happen, and the translator drops LOCK (x86/dbt/locked.c): the host's
 * takes some 18 cycles, and a program's mutexes and reference counts are full of it. Interrupts are taken between blocks, so that
 * for the guest itself each instruction is indivisible anyway.
 *
 * All of this must hold:
 *
 *  1. The VM has one vCPU, and had no second one.
 *  2. The code runs at CPL 3, outside SMM. A kernel shares rings with the client's devices, which are other threads of this
 *     process: it needs every LOCK.
 *  3. All memory slots are, from end to end, memory that is private to this process, readable and, unless the slot is read-only,
 *     writable. So no other process sees it (vhost-user, ivshmem, a DAX window with files of the host's). A window in which
 *     nothing is mapped yet is for something of that kind. No slot has a guest_memfd. What cannot be found out does not hold.
 *  4. No program of the VM has accessed MMIO or a port: one that drives a device shares memory with it as kernels do.
 *  5. The VM is, and was, the only one of the process: two can have the same memory.
 *
 * What remains is a device that stores, by DMA that a kernel has asked for, to the very operand of a LOCKed instruction while
 * that is executed, and a program that drives a device by system calls only. The latter orders its accesses by what is a fence and nothing else:
 * MFENCE, or a LOCKed instruction that leaves its operand as it was (LOCK OR $0). These are kept (docs/deviations.md).
 *
 * How a vCPU gets to know
 *
 *  1, 4 and 5 end for ever (vm->not_sole); 3 is looked up in the kernel's list of mappings, by the vCPU, before it executes
 * programs for the first time with a set of slots. Its answer is part of the mode key (x86/mode.c), which blocks, records and jump tables belong to,
 * so that both kinds of translation exist beside each other. Every way to CPL 3 leads through the dispatcher, and it
 * asks again when the slots' generation or sole_turns differs from what they were.
 *
 *  a. Who ends it sets not_sole, then counts a turn, then has the vCPU pass a boundary (request.c). By the time a second vCPU or VM can
 *     execute anything, the first one has left what it was in, and looks at sole_turns before it enters translated code again.
 *  b. Other slots are seen by a vCPU from a boundary on, too (vm_sync_vcpus()): never with the old ones' answer.
 *  c. A shared mapping that is laid over a slot's memory counts a turn. Nobody waits for the vCPU: its guest learns
 *     of such a mapping from a device, that is by its kernel, and comes by the dispatcher on its way back. sole_turns is read before the
 *     list of mappings is.
 */
#include "kvm/sole.h"

#include "host/host.h"

#define SLOTS_MAX 64u	/* more than machines have; the answer to more is no */

_Atomic u32 sole_turns;
/* Of all memory that was asked about: what is mapped elsewhere is none of a guest's. */
static _Atomic u64 lowest = ~0ull, highest;

/* The VMs of the process; a forked child has none of its parent's. */
static pthread_mutex_t lock = PTHREAD_MUTEX_INITIALIZER;
static u64 lock_mm;
static u32 nr_vms;
static struct vm *only;		/* NULL: there are several, or none */

static void lock_in_child(void)
{
	pthread_mutex_init(&lock, NULL);
}

static void register_child(void)
{
	pthread_atfork(NULL, NULL, lock_in_child);
}

static void lock_vms(void)
{
	static pthread_once_t once = PTHREAD_ONCE_INIT;

	pthread_once(&once, register_child);
	pthread_mutex_lock(&lock);
	if (lock_mm == host_mm_id())
		return;
	lock_mm = host_mm_id();
	nr_vms = 0;
	only = NULL;
}

static void set_not_sole(struct vm *vm)
{
	atomic_store(&vm->not_sole, true);
	atomic_fetch_add(&sole_turns, 1);
}

void sole_end(struct vm *vm)
{
	/* Who finds it ended has waited as long as whoever ended it. */
	pthread_mutex_lock(&vm->slots_lock);
	if (!atomic_load(&vm->not_sole)) {
		set_not_sole(vm);
		vm_sync_vcpus(vm, KVM_REQ_SYNC);
	}
	pthread_mutex_unlock(&vm->slots_lock);
}

void sole_vm_created(struct vm *vm)
{
	lock_vms();
	if (nr_vms++)
		atomic_store(&vm->not_sole, true);
	if (only)
		sole_end(only);
	only = nr_vms == 1 ? vm : NULL;
	pthread_mutex_unlock(&lock);
}

void sole_vm_destroyed(struct vm *vm)
{
	lock_vms();
	if (nr_vms)
		nr_vms--;
	if (only == vm)
		only = NULL;
	pthread_mutex_unlock(&lock);
}

void sole_device_used(struct vcpu *vcpu)
{
	if (likely(atomic_load_explicit(&vcpu->vm->not_sole, memory_order_relaxed)))
		return;
	set_not_sole(vcpu->vm);
	vcpu_make_request(vcpu, KVM_REQ_SYNC);
}

void sole_mapped(u64 start, u64 size)
{
	if (start < atomic_load(&highest) && start + size > atomic_load(&lowest))
		atomic_fetch_add(&sole_turns, 1);
}

/* Before the list is read: a mapping that comes too late for it is counted. */
static void note_range(const struct host_range *r)
{
	u64 low = atomic_load(&lowest), high = atomic_load(&highest);

	while (r->start < low && !atomic_compare_exchange_weak(&lowest, &low, r->start))
		;
	while (r->start + r->size > high && !atomic_compare_exchange_weak(&highest, &high, r->start + r->size))
		;
}

static bool slots_private(const struct memslots *slots)
{
	struct host_range ranges[SLOTS_MAX];

	if (slots->nr > SLOTS_MAX)
		return false;
	for (u32 i = 0; i < slots->nr; i++) {
		const struct memslot *slot = slots->by_gfn[i];

		if (slot->flags & KVM_MEM_GUEST_MEMFD)
			return false;
		ranges[i] = (struct host_range){
			.start = slot->userspace_addr, .size = slot->npages << PAGE_SHIFT, .read_only = slot->flags & KVM_MEM_READONLY,
		};
		note_range(&ranges[i]);
	}
	return host_is_private(ranges, slots->nr);
}

bool sole_ask(struct vcpu *vcpu)
{
	/* In SMM it does not matter, and is not remembered. */
	return !atomic_load(&vcpu->vm->not_sole) && !vcpu->as_id && slots_private(vcpu->slots);
}

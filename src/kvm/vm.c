/* SPDX-License-Identifier: MIT */
/* Life and death of a VM. */
#include <errno.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/mman.h>
#include <unistd.h>

#include "base/log.h"
#include "host/host.h"
#include "kvm/arch.h"
#include "kvm/io_bus.h"
#include "kvm/irq_routing.h"
#include "kvm/move.h"
#include "kvm/sole.h"
#include "kvm/stats.h"
#include "kvm/trace.h"

_Static_assert(sizeof(struct vm) <= 8192, "a VM that never ran stays small");
/* Tables of slots are not in it. */
_Static_assert(sizeof(struct vm) <= 4096, "and without its slots fits a page");

static void vm_init(struct vm *vm, unsigned long type)
{
	pthread_mutex_init(&vm->lock, NULL);
	pthread_mutex_init(&vm->slots_lock, NULL);
	pthread_mutex_init(&vm->irq_lock, NULL);
	pthread_mutex_init(&vm->coalesced_lock, NULL);
	list_init(&vm->coalesced_zones);
	list_init(&vm->ioeventfds);
	list_init(&vm->irqfds);
	vm->coalesced_fd = -1;
	vm->type = type;
	vm->owner = getpid();
	vm->stat.vm_struct_bytes = sizeof(*vm);
	snprintf(vm->name, sizeof(vm->name), "kvm-%d", (int)vm->owner);
}

static void vm_free(struct vm *vm)
{
	pthread_mutex_destroy(&vm->lock);
	pthread_mutex_destroy(&vm->slots_lock);
	pthread_mutex_destroy(&vm->irq_lock);
	pthread_mutex_destroy(&vm->coalesced_lock);
	free(vm);
}

static bool create_slots(struct vm *vm)
{
	for (unsigned as_id = 0; as_id < KVM_ABI_ADDRESS_SPACES; as_id++) {
		struct memslots *slots = calloc(1, sizeof(*slots));

		if (!slots)
			return false;
		slots->generation = 1;
		atomic_store(vm_slots(vm, as_id), slots);
	}
	return true;
}

static void free_slots(struct vm *vm)
{
	for (unsigned as_id = 0; as_id < KVM_ABI_ADDRESS_SPACES; as_id++)
		memslots_free(atomic_load(vm_slots(vm, as_id)));
}

struct vm *vm_create(unsigned long type, int *err)
{
	struct vm *vm;

	*err = -EINVAL;
	if (!arch_vm_type_supported(type))
		return NULL;
	trace_init();
	*err = -ENOMEM;
	vm = calloc(1, sizeof(*vm));
	if (!vm)
		return NULL;
	vm_init(vm, type);
	if (!create_slots(vm)) {
		free_slots(vm);
		vm_free(vm);
		return NULL;
	}
	*err = arch_vm_create(vm, type);
	if (*err) {
		free_slots(vm);
		vm_free(vm);
		return NULL;
	}
	stats_vm_created(vm);
	sole_vm_created(vm);
	return vm;
}

/*
 * Last descriptor closed: no ioctl is under way and none will come. Our own
 * threads (PIT timer, irqfd poller) still run, so first they are made unable to
 * deliver, which they do under irq_lock.
 */
void vm_destroy(struct vm *vm)
{
	u32 nr = atomic_load(&vm->nr_vcpus);

	stats_vm_destroyed(vm);
	sole_vm_destroyed(vm);
	pthread_mutex_lock(&vm->irq_lock);
	atomic_store(&vm->dead, 1);
	pthread_mutex_unlock(&vm->irq_lock);
	move_agent_stop(vm);
	irqfds_destroy(vm);
	for (u32 i = 0; i < nr; i++)
		vcpu_destroy(vm->vcpus[i]);
	atomic_store(&vm->nr_vcpus, 0);
	arch_vm_destroy(vm);
	if (vm->timers)
		vm_timers_destroy(vm->timers);
	io_buses_destroy(vm);
	free_slots(vm);
	free(vm->spare_slots);
	free(atomic_load(&vm->attrs));
	irq_routing_free(atomic_load(&vm->routing));
	free(vm->arch.msr_filter);
	vcpu_array_free(vm);
	trace_flush();
	vm_free(vm);
}

void vm_kill(struct vm *vm)
{
	atomic_store(&vm->dead, 1);
	vm_make_all_request(vm, KVM_REQ_VM_DEAD);
}

void vm_bug(struct vm *vm, const char *what, const char *file, int line)
{
	struct vcpu *vcpu;
	u32 i;

	if (atomic_exchange(&vm->dead, 1))
		return;
	log_error("bug: %s at %s:%d; the VM of process %d is stopped, the program goes on",
		  what, file, line, (int)vm->owner);
	vm_for_each_vcpu(vm, vcpu, i) {
		vcpu_make_request(vcpu, KVM_REQ_VM_DEAD);
		vcpu_kick(vcpu);
	}
}

struct vcpu *vm_vcpu_by_id(struct vm *vm, u32 id)
{
	struct vcpu *vcpu;
	u32 i;

	/* Clients number vCPUs in order of creation, mostly. */
	if (id < atomic_load_explicit(&vm->nr_vcpus, memory_order_acquire) && vm->vcpus[id]->id == id)
		return vm->vcpus[id];
	vm_for_each_vcpu(vm, vcpu, i)
		if (vcpu->id == id)
			return vcpu;
	return NULL;
}

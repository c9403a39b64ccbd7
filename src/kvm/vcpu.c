/* SPDX-License-Identifier: MIT */
/*
 * Creation and destruction of vCPUs, and the array of a VM's vCPUs.
 *
 * The array is read without locks (vm_for_each_vcpu), so it is never freed
 * while the VM lives: when it grows, the new one keeps the old one behind its
 * back. Doubling bounds the waste to the array's own size.
 */
#include <errno.h>
#include <stdlib.h>
#include <string.h>

#include "kvm/arch.h"
#include "kvm/dirty_ring.h"
#include "kvm/io_bus.h"
#include "kvm/kvm_host.h"

struct vcpu_array {
	struct vcpu_array *older;
	struct vcpu *vcpus[];
};

static struct vcpu_array *vcpu_array(struct vm *vm)
{
	return vm->vcpus ? container_of(vm->vcpus, struct vcpu_array, vcpus) : NULL;
}

int vcpu_reserve(struct vm *vm)
{
	u32 nr = atomic_load(&vm->nr_vcpus);
	u32 capacity = vm->vcpus_capacity ? vm->vcpus_capacity * 2 : 4;
	struct vcpu_array *a;

	if (nr < vm->vcpus_capacity)
		return 0;
	a = calloc(1, sizeof(*a) + capacity * sizeof(a->vcpus[0]));
	if (!a)
		return -ENOMEM;
	if (nr)
		memcpy(a->vcpus, vm->vcpus, nr * sizeof(a->vcpus[0]));
	a->older = vcpu_array(vm);
	__atomic_store_n(&vm->vcpus, &a->vcpus[0], __ATOMIC_RELEASE);
	vm->vcpus_capacity = capacity;
	return 0;
}

void vcpu_array_free(struct vm *vm)
{
	struct vcpu_array *a = vcpu_array(vm);

	vm->vcpus = NULL;
	while (a) {
		struct vcpu_array *older = a->older;

		free(a);
		a = older;
	}
}

static int vcpu_id_check(struct vm *vm, u32 id)
{
	if (id >= KVM_ABI_MAX_VCPU_IDS || atomic_load(&vm->nr_vcpus) >= KVM_ABI_MAX_VCPUS)
		return -EINVAL;
	/* From the first creation on the limit can no longer be set: KVM_CAP_MAX_VCPU_ID. */
	if (!vm->max_vcpu_ids)
		vm->max_vcpu_ids = KVM_ABI_MAX_VCPU_IDS;
	if (id >= vm->max_vcpu_ids)
		return -EINVAL;
	return vm_vcpu_by_id(vm, id) ? -EEXIST : 0;
}

int vcpu_create(struct vm *vm, u32 id, struct vcpu **out)
{
	size_t size = (sizeof(struct vcpu) + 63) & ~(size_t)63;
	struct vcpu *vcpu;
	int r = vcpu_id_check(vm, id);

	if (r)
		return r;
	vcpu = aligned_alloc(64, size);
	if (!vcpu)
		return -ENOMEM;
	memset(vcpu, 0, size);
	vcpu->vm = vm;
	vcpu->id = id;
	vcpu->index = atomic_load(&vm->nr_vcpus);
	vcpu->fd = -1;
	pthread_mutex_init(&vcpu->mutex, NULL);
	r = arch_vcpu_create(vcpu);
	if (r) {
		pthread_mutex_destroy(&vcpu->mutex);
		free(vcpu);
		return r;
	}
	*out = vcpu;
	return 0;
}

void vcpu_publish(struct vcpu *vcpu)
{
	struct vm *vm = vcpu->vm;

	vm->vcpus[vcpu->index] = vcpu;
	/* Pairs with the acquire in vm_for_each_vcpu(). */
	atomic_store_explicit(&vm->nr_vcpus, vcpu->index + 1, memory_order_release);
}

void vcpu_destroy(struct vcpu *vcpu)
{
	arch_vcpu_destroy(vcpu);
	dirty_ring_destroy(vcpu);
	pthread_mutex_destroy(&vcpu->mutex);
	free(vcpu);
}

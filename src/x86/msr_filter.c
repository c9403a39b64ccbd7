/* SPDX-License-Identifier: MIT */
/*
 * MSR filters: immutable, replaced under slots_lock, freed when no vCPU can be
 * looking at the old one.
 */
#include <errno.h>
#include <stdlib.h>

#include "host/host.h"
#include "x86/msr_filter.h"

#define RANGE_FLAGS (KVM_MSR_FILTER_READ | KVM_MSR_FILTER_WRITE)
#define MAX_BITMAP_BYTES 0x600

#define X2APIC_MSR_FIRST 0x800
#define X2APIC_MSR_LAST 0x8ff

bool msr_filter_allows(struct vm *vm, u32 index, bool write)
{
	/* Pairs with the exchange in msr_filter_set(). */
	const struct msr_filter *f = __atomic_load_n(&vm->arch.msr_filter, __ATOMIC_ACQUIRE);
	u32 kind = write ? KVM_MSR_FILTER_WRITE : KVM_MSR_FILTER_READ;

	/* The x2APIC is beyond filters, as in KVM. */
	if (likely(!f) || (index >= X2APIC_MSR_FIRST && index <= X2APIC_MSR_LAST))
		return true;
	for (u32 i = 0; i < f->nr; i++) {
		const struct msr_filter_range *r = &f->ranges[i];
		u32 bit = index - r->base;

		if (bit < r->nmsrs && index >= r->base && (r->flags & kind))
			return r->bitmap[bit / 64] >> (bit & 63) & 1;
	}
	return f->default_allow;
}

static size_t bitmap_bytes(const struct kvm_msr_filter_range *r)
{
	return ((u64)r->nmsrs + 63) / 64 * 8;
}

/* Errors as KVM's, in its order: range by range. */
static int check_ranges(const struct kvm_msr_filter *user, size_t *bytes)
{
	bool empty = true;

	*bytes = 0;
	if (user->flags & ~KVM_MSR_FILTER_DEFAULT_DENY)
		return -EINVAL;
	for (u32 i = 0; i < KVM_MSR_FILTER_MAX_RANGES; i++) {
		const struct kvm_msr_filter_range *r = &user->ranges[i];

		if (!r->nmsrs)
			continue;
		empty = false;
		if ((r->flags & ~RANGE_FLAGS) || !r->flags || bitmap_bytes(r) > MAX_BITMAP_BYTES)
			return -EINVAL;
		*bytes += bitmap_bytes(r);
	}
	return empty && (user->flags & KVM_MSR_FILTER_DEFAULT_DENY) ? -EINVAL : 0;
}

static int copy_ranges(struct msr_filter *f, const struct kvm_msr_filter *user)
{
	u64 *bitmap = (u64 *)(f + 1);

	for (u32 i = 0; i < KVM_MSR_FILTER_MAX_RANGES; i++) {
		const struct kvm_msr_filter_range *r = &user->ranges[i];

		if (!r->nmsrs)
			continue;
		if (!host_copy_user(bitmap, r->bitmap, bitmap_bytes(r)))
			return -EFAULT;
		f->ranges[f->nr++] = (struct msr_filter_range){
			.flags = r->flags, .base = r->base, .nmsrs = r->nmsrs, .bitmap = bitmap,
		};
		bitmap += bitmap_bytes(r) / 8;
	}
	return 0;
}

int msr_filter_set(struct vm *vm, const struct kvm_msr_filter *user)
{
	struct msr_filter *f;
	size_t bytes;
	int r = check_ranges(user, &bytes);

	if (r)
		return r;
	f = calloc(1, sizeof(*f) + bytes);
	if (!f)
		return -ENOMEM;
	f->default_allow = !(user->flags & KVM_MSR_FILTER_DEFAULT_DENY);
	r = copy_ranges(f, user);
	if (!r) {
		pthread_mutex_lock(&vm->slots_lock);
		f = __atomic_exchange_n(&vm->arch.msr_filter, f, __ATOMIC_SEQ_CST);
		vm_sync_vcpus(vm, KVM_REQ_SYNC);
		pthread_mutex_unlock(&vm->slots_lock);
	}
	free(f);
	return r;
}

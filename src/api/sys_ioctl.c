/* SPDX-License-Identifier: MIT */
/* Handlers of the system descriptor's ioctls. */
#include <errno.h>
#include <stdlib.h>
#include <string.h>

#include "api/fd.h"
#include "api/ioctl.h"
#include "host/host.h"
#include "x86/msr.h"
#include "x86/x86.h"

#define MAX_CPUID_ENTRIES 256
#define MAX_IO_MSRS 256

long do_kvm_get_api_version(void *arg)
{
	return KVM_API_VERSION;
}

long do_kvm_create_vm(void *arg)
{
	int err, fd;
	struct vm *vm = vm_create((unsigned long)arg, &err);

	if (!vm)
		return err;
	fd = fd_create_vm(vm);
	if (fd < 0)
		vm_destroy(vm);
	return fd;
}

long do_kvm_sys_check_extension(void *arg)
{
	return kvm_check_extension(NULL, (long)arg);
}

long do_kvm_get_vcpu_mmap_size(void *arg)
{
	return KVM_ABI_RUN_MMAP_PAGES * PAGE_SIZE;
}

/* ---- MSR lists -------------------------------------------------------------------- */

/* The count is written back even when the client's array is too small: that is how clients learn it. */
static long get_msr_list(void *user, u32 (*list)(u32 *out, u32 max))
{
	struct kvm_msr_list *u = user;
	u32 room, nr = list(NULL, 0);
	u32 *indices;
	long r = 0;

	if (!host_copy_user(&room, user_field(u, nmsrs), sizeof(room)) || !host_copy_user(user_field(u, nmsrs), &nr, sizeof(nr)))
		return -EFAULT;
	if (room < nr)
		return -E2BIG;
	indices = calloc(nr + 1, sizeof(*indices));
	if (!indices)
		return -ENOMEM;
	list(indices, nr);
	if (!host_copy_user(user_field(u, indices), indices, nr * sizeof(*indices)))
		r = -EFAULT;
	free(indices);
	return r;
}

long do_kvm_get_msr_index_list(void *arg)
{
	return get_msr_list(arg, msr_index_list);
}

long do_kvm_get_msr_feature_index_list(void *arg)
{
	return get_msr_list(arg, msr_feature_list);
}

/* Feature MSRs: how many were read, up to the first that is none. */
long do_kvm_sys_get_msrs(void *arg)
{
	struct kvm_msr_entry entries[MAX_IO_MSRS];
	struct kvm_msrs *u = arg, head;
	size_t size;
	u32 i;

	if (!host_copy_user(&head, u, sizeof(head)))
		return -EFAULT;
	if (head.nmsrs >= MAX_IO_MSRS)
		return -E2BIG;
	size = head.nmsrs * sizeof(entries[0]);
	if (!host_copy_user(entries, user_field(u, entries), size))
		return -EFAULT;
	for (i = 0; i < head.nmsrs; i++) {
		u64 value;

		if (msr_feature_read(entries[i].index, &value))
			break;
		entries[i].data = value;
	}
	return host_copy_user(user_field(u, entries), entries, size) ? (long)i : -EFAULT;
}

/* ---- CPUID -------------------------------------------------------------------------- */

/* What software can stand in for on any host: MOVBE, RDPID. */
static u32 cpuid_emulated(struct kvm_cpuid_entry2 *entries, u32 max)
{
	static const struct kvm_cpuid_entry2 list[] = {
		{ .function = 0, .eax = 7 },
		{ .function = 1, .ecx = BIT(22) },
		{ .function = 7, .flags = KVM_CPUID_FLAG_SIGNIFCANT_INDEX, .ecx = BIT(22) },
	};

	memcpy(entries, list, min(max, (u32)ARRAY_SIZE(list)) * sizeof(list[0]));
	return ARRAY_SIZE(list);
}

/* KVM_GET_EMULATED_CPUID demands that the client's entries have their padding clear. */
static long check_padding(const struct kvm_cpuid2 *u, u32 nent)
{
	for (u32 i = 0; i < nent; i++) {
		u32 pad[3];

		if (!host_copy_user(pad, user_field(u, entries[i].padding), sizeof(pad)) || pad[0] || pad[1] || pad[2])
			return -EINVAL;
	}
	return 0;
}

static long get_cpuid(struct kvm_cpuid2 *u, u32 (*list)(struct kvm_cpuid_entry2 *, u32), bool padded)
{
	struct kvm_cpuid_entry2 *entries;
	struct kvm_cpuid2 head;
	long r = 0;
	u32 nr;

	if (!host_copy_user(&head, u, sizeof(head)))
		return -EFAULT;
	if (!head.nent)
		return -E2BIG;
	head.nent = min(head.nent, (u32)MAX_CPUID_ENTRIES);
	if (padded && check_padding(u, head.nent))
		return -EINVAL;
	entries = calloc(head.nent, sizeof(*entries));
	if (!entries)
		return -ENOMEM;
	nr = list(entries, head.nent);
	if (nr > head.nent) {
		r = -E2BIG;
	} else {
		head.nent = nr;
		if (!host_copy_user(user_field(u, entries), entries, nr * sizeof(*entries)) ||
		    !host_copy_user(u, &head, sizeof(head)))
			r = -EFAULT;
	}
	free(entries);
	return r;
}

long do_kvm_get_supported_cpuid(void *arg)
{
	return get_cpuid(arg, cpuid_supported, false);
}

long do_kvm_get_emulated_cpuid(void *arg)
{
	return get_cpuid(arg, cpuid_emulated, true);
}

u64 supported_xcr0(void)
{
	struct kvm_cpuid_entry2 entries[MAX_CPUID_ENTRIES];
	u32 nr = min(cpuid_supported(entries, ARRAY_SIZE(entries)), (u32)ARRAY_SIZE(entries));

	for (u32 i = 0; i < nr; i++)
		if (entries[i].function == 0xd && entries[i].index == 0)
			return entries[i].eax | (u64)entries[i].edx << 32;
	return XFEATURE_X87 | XFEATURE_SSE;
}

/* ---- the rest ------------------------------------------------------------------------- */

long do_kvm_x86_get_mce_cap_supported(void *arg)
{
	/* MCG_CTL_P, MCG_CMCI_P, MCG_SER_P */
	u64 cap = BIT_ULL(8) | BIT_ULL(10) | BIT_ULL(24);

	memcpy(arg, &cap, sizeof(cap));
	return 0;
}

long do_kvm_sys_has_device_attr(void *arg)
{
	const struct kvm_device_attr *attr = arg;

	return !attr->group && attr->attr == KVM_X86_XCOMP_GUEST_SUPP ? 0 : -ENXIO;
}

long do_kvm_sys_get_device_attr(void *arg)
{
	const struct kvm_device_attr *attr = arg;
	u64 value = supported_xcr0();
	long r = do_kvm_sys_has_device_attr(arg);

	if (!r && !host_copy_user((void *)attr->addr, &value, sizeof(value)))
		r = -EFAULT;
	return r;
}

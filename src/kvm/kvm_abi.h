/* SPDX-License-Identifier: MIT */
/*
 * The KVM ABI as clients compile it: the system's <linux/kvm.h>, and what newer
 * kernels added to it (numbers and layouts as documented in the KVM API), so
 * that the library builds on older userland headers.
 */
#ifndef SOFTKVM_KVM_ABI_H
#define SOFTKVM_KVM_ABI_H

#include <linux/kvm.h>
#include "base/types.h"

#ifndef KVM_SET_USER_MEMORY_REGION2
#define KVM_CAP_USER_MEMORY2 231
#define KVM_CAP_MEMORY_FAULT_INFO 232
#define KVM_CAP_MEMORY_ATTRIBUTES 233
#define KVM_CAP_GUEST_MEMFD 234
#define KVM_CAP_VM_TYPES 235
#define KVM_MEM_GUEST_MEMFD (1UL << 2)
#define KVM_EXIT_MEMORY_FAULT 39
#define KVM_MEMORY_EXIT_FLAG_PRIVATE (1ULL << 3)
#define KVM_MEMORY_ATTRIBUTE_PRIVATE (1ULL << 3)

struct kvm_userspace_memory_region2 {
	u32 slot;
	u32 flags;
	u64 guest_phys_addr;
	u64 memory_size;
	u64 userspace_addr;
	u64 guest_memfd_offset;
	u32 guest_memfd;
	u32 pad1;
	u64 pad2[14];
};

struct kvm_memory_attributes {
	u64 address;
	u64 size;
	u64 attributes;
	u64 flags;
};

struct kvm_create_guest_memfd {
	u64 size;
	u64 flags;
	u64 reserved[6];
};

#define KVM_SET_USER_MEMORY_REGION2 _IOW(KVMIO, 0x49, struct kvm_userspace_memory_region2)
#define KVM_SET_MEMORY_ATTRIBUTES _IOW(KVMIO, 0xd2, struct kvm_memory_attributes)
#define KVM_CREATE_GUEST_MEMFD _IOWR(KVMIO, 0xd4, struct kvm_create_guest_memfd)
#endif

#ifndef KVM_PRE_FAULT_MEMORY
#define KVM_CAP_PRE_FAULT_MEMORY 236
#define KVM_CAP_X86_APIC_BUS_CYCLES_NS 237
#define KVM_CAP_X86_GUEST_MODE 238
struct kvm_pre_fault_memory {
	u64 gpa;
	u64 size;
	u64 flags;
	u64 padding[5];
};
#define KVM_PRE_FAULT_MEMORY _IOWR(KVMIO, 0xd5, struct kvm_pre_fault_memory)
#endif

#ifndef KVM_CAP_DIRTY_LOG_RING_WITH_BITMAP
#define KVM_CAP_DIRTY_LOG_RING_WITH_BITMAP 225
#endif
#ifndef KVM_CAP_DIRTY_LOG_RING_ACQ_REL
#define KVM_CAP_DIRTY_LOG_RING_ACQ_REL 223
#endif
#ifndef KVM_CAP_PMU_EVENT_MASKED_EVENTS
#define KVM_CAP_PMU_EVENT_MASKED_EVENTS 226
#endif

#ifndef KVM_X86_SW_PROTECTED_VM
#define KVM_X86_DEFAULT_VM 0
#define KVM_X86_SW_PROTECTED_VM 1
#endif

#ifndef GUEST_MEMFD_FLAG_MMAP
#define KVM_CAP_GUEST_MEMFD_FLAGS 244
#define GUEST_MEMFD_FLAG_MMAP (1ull << 0)
#define GUEST_MEMFD_FLAG_INIT_SHARED (1ull << 1)
#endif

/* A series under review; its number was others' before and may be again: never look at the number alone. */
#ifndef KVM_LINK_GUEST_MEMFD
struct kvm_link_guest_memfd {
	u64 fd;
	u64 flags;
	u64 reserved[6];
};
#define KVM_LINK_GUEST_MEMFD _IOWR(KVMIO, 0xd6, struct kvm_link_guest_memfd)
#endif

#ifndef KVM_XEN_HVM_CONFIG_RUNSTATE_UPDATE_FLAG
#define KVM_XEN_HVM_CONFIG_RUNSTATE_UPDATE_FLAG (1 << 6)
#define KVM_XEN_ATTR_TYPE_RUNSTATE_UPDATE_FLAG 0x5
#endif
#ifndef KVM_XEN_HVM_CONFIG_SHARED_INFO_HVA
#define KVM_XEN_HVM_CONFIG_PVCLOCK_TSC_UNSTABLE (1 << 7)
#define KVM_XEN_HVM_CONFIG_SHARED_INFO_HVA (1 << 8)
#define KVM_XEN_ATTR_TYPE_SHARED_INFO_HVA 0x6
#define KVM_XEN_VCPU_ATTR_TYPE_VCPU_INFO_HVA 0x9
#endif
#ifndef KVM_XEN_INVALID_GPA
#define KVM_XEN_INVALID_GPA ((u64)-1)
#endif
#ifndef KVM_XEN_INVALID_GFN
#define KVM_XEN_INVALID_GFN ((u64)-1)
#endif

/* kvm_run.memory_fault */
struct kvm_memory_fault_exit {
	u64 flags;
	u64 gpa;
	u64 size;
};

#define KVM_ABI_IRQCHIP_NUM_PINS 24
#define KVM_ABI_MAX_IRQ_ROUTES 4096
#define KVM_ABI_MAX_VCPUS 1024
#define KVM_ABI_MAX_VCPU_IDS 4096
#define KVM_ABI_USER_MEM_SLOTS 32764
#define KVM_ABI_ADDRESS_SPACES 2 /* 1: what SMM sees */
#define KVM_ABI_RUN_MMAP_PAGES 3 /* kvm_run, PIO data, coalesced ring */
#define KVM_ABI_DIRTY_RING_PAGE 64 /* KVM_DIRTY_LOG_PAGE_OFFSET */
#define KVM_ABI_DIRTY_RING_MAX_ENTRIES 65536

#endif

/* SPDX-License-Identifier: MIT */
/* KVM_X86_SET_MSR_FILTER. */
#ifndef SOFTKVM_X86_MSR_FILTER_H
#define SOFTKVM_X86_MSR_FILTER_H

#include "kvm/kvm_host.h"

struct msr_filter_range {
	u32 flags;	/* KVM_MSR_FILTER_READ | KVM_MSR_FILTER_WRITE: the accesses it decides */
	u32 base, nmsrs;
	const u64 *bitmap;	/* 1: allowed; inside the same allocation */
};

/* Immutable, one allocation: free() is enough. */
struct msr_filter {
	bool default_allow;
	u32 nr;
	struct msr_filter_range ranges[KVM_MSR_FILTER_MAX_RANGES];
};

/* vCPU thread in guest mode. The first range that covers index and decides this kind of access wins. */
bool msr_filter_allows(struct vm *vm, u32 index, bool write);
/* The ioctl; bitmaps are the client's. 0 or -errno. */
int msr_filter_set(struct vm *vm, const struct kvm_msr_filter *user);

#endif

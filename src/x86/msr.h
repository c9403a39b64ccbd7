/* SPDX-License-Identifier: MIT */
/* Model-specific registers: lists for the API, life cycle; access itself is in x86.h. */
#ifndef SOFTKVM_X86_MSR_H
#define SOFTKVM_X86_MSR_H

#include "x86/x86.h"

/* KVM_GET_MSR_INDEX_LIST, KVM_GET_MSR_FEATURE_INDEX_LIST: fill at most max, return the number wanted. */
u32 msr_index_list(u32 *out, u32 max);
u32 msr_feature_list(u32 *out, u32 max);
/* KVM_GET_MSRS on the system descriptor: 0, or 1 if that is no feature MSR. */
int msr_feature_read(u32 index, u64 *v);

/* A new vCPU's values, once, from vCPU creation. INIT and SIPI change none of them. */
void msr_init(struct vcpu *vcpu);
/* KVM_RUN entry: take the answer to KVM_EXIT_X86_RDMSR/WRMSR; the restarted instruction will find it. */
void msr_complete_userspace(struct vcpu *vcpu);
/* MISC_FEATURES_ENABLES: CPUID outside CPL 0 is #GP(0). */
bool msr_cpuid_faulting(const struct vcpu *vcpu);

/* 4 registers a bank, and behind all of them IA32_MCx_CTL2 of each; all zero at first. NULL: no memory. */
#define MCE_BANKS_MAX 32
#define MCE_CTL2 (4 * MCE_BANKS_MAX)
#define MCI_CTL2_CMCI_EN BIT_ULL(30)
u64 *mce_banks_get(struct vcpu *vcpu);
/* x86/mtrr.c: 0, or 1 for #GP */
int mtrr_read(struct vcpu *vcpu, u32 index, u64 *value);
int mtrr_write(struct vcpu *vcpu, u32 index, u64 value);

#endif

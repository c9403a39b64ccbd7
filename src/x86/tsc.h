/* SPDX-License-Identifier: MIT */
/* Guest TSC: frequency, offsets, writes. guest_tsc() and its kind are in x86.h. */
#ifndef SOFTKVM_X86_TSC_H
#define SOFTKVM_X86_TSC_H

#include "x86/x86.h"

#define TSC_KHZ_LIMIT 0x7fffffffu	/* KVM_SET_TSC_KHZ takes less than this */

/* 0 or -EINVAL. khz 0: the host's. */
int tsc_set_khz(struct vcpu *vcpu, u32 khz);
/* What the guest's counter really advances by, kHz. */
u32 tsc_effective_khz(const struct vcpu *vcpu);
/* A new vCPU: start at 0, in step with its siblings. */
void tsc_init(struct vcpu *vcpu);
/* IA32_TSC: written by the client (KVM's synchronisation rules) or by the guest (moves TSC_ADJUST along). */
void tsc_write(struct vcpu *vcpu, u64 value, bool host_initiated);
/* IA32_TSC_ADJUST: the guest's write moves the TSC, the client's does not. */
void tsc_adjust_write(struct vcpu *vcpu, u64 value, bool host_initiated);
/* KVM_VCPU_TSC_OFFSET */
void tsc_set_offset(struct vcpu *vcpu, u64 offset);
u64 tsc_scale(const struct vcpu *vcpu, u64 host_tsc);

#endif

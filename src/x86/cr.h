/* SPDX-License-Identifier: MIT */
/* Control registers: what the API and the MSR code need besides x86.h. */
#ifndef SOFTKVM_X86_CR_H
#define SOFTKVM_X86_CR_H

#include "x86/x86.h"

/* May these values be in the register at all (guest CPUID included)? No state is looked at. */
bool cr0_valid(u64 cr0);
bool cr4_valid(const struct vcpu *vcpu, u64 cr4);
bool cr3_valid(const struct vcpu *vcpu, u64 cr3);
bool efer_valid(struct vcpu *vcpu, u64 efer);
bool xcr0_valid(const struct vcpu *vcpu, u64 xcr0);

/* WRMSR or KVM_SET_MSRS of EFER: 0, or 1 for #GP / refused. LMA is kept. */
int set_efer(struct vcpu *vcpu, u64 value, bool host_initiated);
/* CR8 without an exception: false if bits above 3 are set. */
bool cr8_write(struct vcpu *vcpu, u64 value);
/* CR4 bits this library can offer at all; in force until the client sets CPUID. */
u64 cr4_supported_bits(void);

static inline bool pae_paging(const struct vcpu *vcpu)
{
	return (vcpu->arch.cr0 & X86_CR0_PG) && (vcpu->arch.cr4 & X86_CR4_PAE) &&
	       !(vcpu->arch.efer & EFER_LMA);
}

#endif

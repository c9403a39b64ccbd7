/* SPDX-License-Identifier: MIT */
/* KVM_CAP_SYNC_REGS: register state in kvm_run. */
#ifndef SOFTKVM_X86_SYNC_REGS_H
#define SOFTKVM_X86_SYNC_REGS_H

#include "x86/x86.h"

/* KVM_RUN entry: take what kvm_dirty_regs announces. 0 or -EINVAL. Outside guest mode. */
int sync_regs_load(struct vcpu *vcpu);
/* KVM_RUN exit: store what kvm_valid_regs asks for. */
void sync_regs_store(struct vcpu *vcpu);

#endif

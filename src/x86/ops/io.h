/* SPDX-License-Identifier: MIT */
#ifndef SOFTKVM_X86_OPS_IO_H
#define SOFTKVM_X86_OPS_IO_H

#include "kvm/kvm_host.h"

/* KVM_RUN entry: userspace has served the batch in arch.pio; the restarted instruction takes it. */
void pio_complete_userspace(struct vcpu *vcpu);

#endif

/* SPDX-License-Identifier: MIT */
/* Counters of VMs and vCPUs, for people: stats_page.c. KVM_GET_STATS_FD is kvm_host.h's vm_stats_read(). */
#ifndef SOFTKVM_KVM_STATS_H
#define SOFTKVM_KVM_STATS_H

#include "kvm/kvm_host.h"
#include "kvm/stats_page.h"
#include "kvm/trace_format.h"

/* Where descriptors and values are, in this process. */
struct stats_block vm_stats_block(void);
struct stats_block vcpu_stats_block(void);

/* The VM is complete; it is about to be taken apart. */
void stats_vm_created(struct vm *vm);
void stats_vm_destroyed(struct vm *vm);

#endif

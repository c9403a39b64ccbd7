/* SPDX-License-Identifier: MIT */
/*
 * The hypervisor interface of Microsoft's Hyper-V, as far as KVM offers it: MSRs, hypercalls, reference
 * clock, synthetic interrupts and timers. Everything is off until the guest's CPUID says "Hv#1".
 *
 * vm->arch.hyperv and vcpu->arch.hyperv are allocated when something here is first used. All
 * functions run on the vCPU's thread with vcpu->mutex held unless they say otherwise.
 */
#ifndef SOFTKVM_X86_HYPERV_H
#define SOFTKVM_X86_HYPERV_H

#include "x86/x86.h"

struct hv_vm;
struct hv_vcpu;

/* ---- life (hyperv/hyperv.c) ------------------------------------------------------ */

void hyperv_vcpu_destroy(struct vcpu *vcpu);
void hyperv_vm_destroy(struct vm *vm);
/* KVM_ENABLE_CAP on a vCPU: 0, -EINVAL, -ENOMEM */
int hyperv_enable_synic(struct vcpu *vcpu, bool keep_pages);
int hyperv_enforce_cpuid(struct vcpu *vcpu, bool enforce);

/* ---- CPUID (hyperv/cpuid.c) ------------------------------------------------------- */

#define HYPERV_CPUID_ENTRIES 10
/* KVM_GET_SUPPORTED_HV_CPUID; vcpu NULL: on the system descriptor. */
void hyperv_cpuid_supported(struct vcpu *vcpu, struct kvm_cpuid_entry2 entries[HYPERV_CPUID_ENTRIES]);
/* KVM_SET_CPUID2 is about to install these: 0, or -ENOMEM. */
int hyperv_prepare_cpuid(struct vcpu *vcpu, const struct kvm_cpuid_entry2 *entries, u32 nent);
void hyperv_cpuid_updated(struct vcpu *vcpu);
/* The guest is to ask for an invariant TSC before its CPUID shows one. */
bool hyperv_invtsc_suppressed(const struct vcpu *vcpu);

/* ---- MSRs (hyperv/msr.c) ------------------------------------------------------------ */

/* 0, or 1 for #GP. In guest mode. */
int hyperv_msr_read(struct vcpu *vcpu, u32 index, u64 *value, bool host);
int hyperv_msr_write(struct vcpu *vcpu, u32 index, u64 value, bool host);

/* ---- hypercalls (hyperv/hypercall.c) ------------------------------------------------- */

bool hyperv_hypercall_enabled(const struct vcpu *vcpu);
enum exec hyperv_hypercall(struct vcpu *vcpu);
void hyperv_hypercall_result(struct vcpu *vcpu, u64 result);
/* KVM_RUN entry: the client's answer to KVM_EXIT_HYPERV_SYNDBG. */
void hyperv_syndbg_complete(struct vcpu *vcpu);

/* ---- run loop (hyperv/hyperv.c) -------------------------------------------------------- */

/* KVM_REQ_HV_EXIT: true with kvm_run filled in. */
bool hyperv_take_exit(struct vcpu *vcpu);
/* KVM_REQ_HV_FLUSH, outside guest mode: wait until the vCPUs whose TLBs were flushed have noticed. */
void hyperv_flush_wait(struct vcpu *vcpu);

/* ---- clock (hyperv/clock.c) ---------------------------------------------------------------- */

/* KVM_REQ_CLOCK_UPDATE, in guest mode. */
void hyperv_clock_update(struct vcpu *vcpu);
/* kvmclock was set. Any thread, clock_lock not held. */
void hyperv_clock_changed(struct vm *vm);

/* ---- synthetic interrupts and timers (hyperv/synic.c, stimer.c) ----------------------------- */

/* KVM_IRQ_ROUTING_HV_SINT: 1 delivered, 0 dropped, -EINVAL, -ENOENT. Any thread. */
int hyperv_synic_set_irq(struct vm *vm, u32 vp_index, u32 sint);
bool hyperv_synic_has_vector(const struct vcpu *vcpu, u8 vector);
/* Acknowledging such a vector ends it. */
bool hyperv_synic_auto_eoi(const struct vcpu *vcpu, u8 vector);
void hyperv_synic_eoi(struct vcpu *vcpu, u8 vector);
/* Timers have expired and wait for KVM_REQ_HV_STIMER to be taken. */
bool hyperv_stimer_pending(const struct vcpu *vcpu);
void hyperv_stimer_run(struct vcpu *vcpu);	/* in guest mode */

/* ---- eventfds (hyperv/eventfd.c) ------------------------------------------------------------- */

/* KVM_HYPERV_EVENTFD: 0 or -errno. Any thread. */
int vm_hyperv_eventfd(struct vm *vm, const struct kvm_hyperv_eventfd *args);

#endif

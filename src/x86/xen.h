/* SPDX-License-Identifier: MIT */
/*
 * What KVM does for clients that emulate Xen: hypercalls to userspace, the shared info and vcpu info
 * pages, event channels, one-shot timers, run states. A VM has it from KVM_XEN_HVM_CONFIG on.
 *
 * vm->arch.xen and vcpu->arch.xen are allocated when first needed. All functions run on the
 * vCPU's thread with vcpu->mutex held unless they say otherwise.
 */
#ifndef SOFTKVM_X86_XEN_H
#define SOFTKVM_X86_XEN_H

#include "x86/x86.h"

struct xen_vm;
struct xen_vcpu;

/* ---- life and settings (xen/xen.c) ------------------------------------------------- */

long xen_features(void);		/* KVM_CAP_XEN_HVM */
void xen_vcpu_destroy(struct vcpu *vcpu);
void xen_vm_destroy(struct vm *vm);
/* Ioctls: 0 or -errno. VM's: any thread, no locks held. */
int vm_xen_config(struct vm *vm, const struct kvm_xen_hvm_config *config);
int vm_xen_get_attr(struct vm *vm, struct kvm_xen_hvm_attr *attr);
int vm_xen_set_attr(struct vm *vm, const struct kvm_xen_hvm_attr *attr);
int vm_xen_evtchn_send(struct vm *vm, const struct kvm_irq_routing_xen_evtchn *event);
int vcpu_xen_get_attr(struct vcpu *vcpu, struct kvm_xen_vcpu_attr *attr);
int vcpu_xen_set_attr(struct vcpu *vcpu, const struct kvm_xen_vcpu_attr *attr);

/* ---- hypercalls (xen/hypercall.c) ----------------------------------------------------- */

bool xen_hypercall_enabled(const struct vm *vm);
enum exec xen_hypercall(struct vcpu *vcpu);
/* Is that the MSR a guest writes to have its hypercall page filled? Then: 0, or 1 for #GP. */
bool xen_is_msr(const struct vm *vm, u32 index);
int xen_write_msr(struct vcpu *vcpu, u64 value);

/* ---- run loop ------------------------------------------------------------------------------ */

/* KVM_RUN begins: 0 or -ENOMEM. */
int xen_run_prepare(struct vcpu *vcpu);
/* KVM_REQ_XEN: deliver what others have sent. In guest mode. */
void xen_take_events(struct vcpu *vcpu);
/* KVM_REQ_CLOCK_UPDATE, KVM_REQ_STEAL_UPDATE; in guest mode. */
void xen_clock_update(struct vcpu *vcpu);
void xen_runstate_running(struct vcpu *vcpu);
/* The vCPU sleeps in SCHEDOP_poll: until when (~0: no limit, also if it does not), is that over, it is. */
u64 xen_poll_deadline(const struct vcpu *vcpu);
bool xen_poll_is_over(const struct vcpu *vcpu);
void xen_poll_end(struct vcpu *vcpu);

/* ---- interrupts (xen/evtchn.c) ---------------------------------------------------------------- */

/* The VM-wide vector, if it has one and this vCPU's upcall is pending; else 0. */
u8 xen_pending_vector(struct vcpu *vcpu);
/* The local APIC has just been enabled. */
void xen_apic_enabled(struct vcpu *vcpu);
/* KVM_IRQ_ROUTING_XEN_EVTCHN: 1 sent, -EINVAL. Any thread, irq_lock held. */
int xen_queue_event(struct vm *vm, u32 vcpu_id, u32 port);

#endif

/* SPDX-License-Identifier: MIT */
/* KVM's view of a vCPU's registers, as its ioctls and kvm_run.s exchange it. vcpu->mutex held. */
#ifndef SOFTKVM_X86_STATE_H
#define SOFTKVM_X86_STATE_H

#include "host/host.h"
#include "x86/x86.h"

/*
 * For an ioctl that reads or writes guest memory outside KVM_RUN: faults become
 * errors and memslots stay put in between. Nests inside KVM_RUN.
 */
struct guest_access {
	struct host_guest_ctx ctx;
	bool entered_host, entered_guest;
};
void guest_access_begin(struct vcpu *vcpu, struct guest_access *ga);
/* After a failed access: true if a kick was the reason; a boundary has been passed, try again. */
bool guest_access_kicked(struct vcpu *vcpu, struct guest_access *ga);
void guest_access_end(struct vcpu *vcpu, struct guest_access *ga);

void regs_get(struct vcpu *vcpu, struct kvm_regs *regs);
void regs_set(struct vcpu *vcpu, const struct kvm_regs *regs);
/* Setters: 0, or -EINVAL with nothing changed. */
void sregs_get(struct vcpu *vcpu, struct kvm_sregs *sregs);
int sregs_set(struct vcpu *vcpu, const struct kvm_sregs *sregs);
void sregs2_get(struct vcpu *vcpu, struct kvm_sregs2 *sregs);
int sregs2_set(struct vcpu *vcpu, const struct kvm_sregs2 *sregs);
void vcpu_events_get(struct vcpu *vcpu, struct kvm_vcpu_events *events);
int vcpu_events_set(struct vcpu *vcpu, const struct kvm_vcpu_events *events);
void debugregs_get(struct vcpu *vcpu, struct kvm_debugregs *regs);
int debugregs_set(struct vcpu *vcpu, const struct kvm_debugregs *regs);

bool triple_fault_pending(struct vcpu *vcpu);

/* The client changed state that decoded code may rest on, or code itself: look again. */
void state_changed(struct vcpu *vcpu);

#endif

/* SPDX-License-Identifier: MIT */
/*
 * What the architecture-neutral half asks of a guest architecture. x86 answers
 * in src/x86; another architecture would stand beside it with the same names.
 */
#ifndef SOFTKVM_KVM_ARCH_H
#define SOFTKVM_KVM_ARCH_H

#include "kvm/kvm_host.h"

bool arch_vm_type_supported(unsigned long type);
int arch_vm_create(struct vm *vm, unsigned long type);	/* 0 or -errno */
void arch_vm_destroy(struct vm *vm);
int arch_vcpu_create(struct vcpu *vcpu);		/* vm->lock held */
void arch_vcpu_destroy(struct vcpu *vcpu);
/* KVM_RUN after generic checks; vcpu->mutex held, mode OUTSIDE. 0 or -errno. */
int arch_vcpu_run(struct vcpu *vcpu);
/* Deliver one routed interrupt; irq_lock held. As vm_set_irq() returns. */
int arch_set_routed_irq(struct vm *vm, const struct kvm_irq_routing_entry *e, int source, int level);
int arch_send_msi(struct vm *vm, u32 address_lo, u32 address_hi, u32 data);
/* EINVAL rules for routing entries that only the architecture knows. */
int arch_check_routing_entry(struct vm *vm, const struct kvm_irq_routing_entry *e);
/* Drop cached translations of this vCPU; its own thread, on KVM_REQ_TLB_FLUSH. */
void arch_vcpu_flush_tlb(struct vcpu *vcpu);
/* Get to a boundary after the instruction under way; its own thread. */
void arch_vcpu_end_block(struct vcpu *vcpu);
/* Called with routing just replaced: IOAPIC/LAPIC EOI bookkeeping. */
void arch_routing_updated(struct vm *vm);
bool arch_irqchip_in_kernel(struct vm *vm);	/* full or split */
bool arch_irqchip_full(struct vm *vm);		/* PIC and IOAPIC too */

#endif

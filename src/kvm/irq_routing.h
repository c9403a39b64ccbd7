/* SPDX-License-Identifier: MIT */
/*
 * From GSI to irqchip pins and MSIs. Immutable, replaced and used under irq_lock.
 * Private to src/kvm.
 */
#ifndef SOFTKVM_KVM_IRQ_ROUTING_H
#define SOFTKVM_KVM_IRQ_ROUTING_H

#include "kvm/kvm_host.h"

#define NR_IRQCHIPS 3	/* KVM_IRQCHIP_PIC_MASTER, _PIC_SLAVE, _IOAPIC */

struct irq_routing {
	u32 nr_gsi;				/* length of first[] less one */
	s16 pin_gsi[NR_IRQCHIPS][KVM_ABI_IRQCHIP_NUM_PINS]; /* -1: none */
	struct kvm_irq_routing_entry *entries;	/* grouped by GSI */
	u16 first[];				/* entries of gsi: first[gsi] .. first[gsi + 1] */
};

/* Not while anybody may look. */
void irq_routing_free(struct irq_routing *rt);
/* irq_lock held. */
int vm_set_irq_locked(struct vm *vm, int source, u32 gsi, int level);
/* GSI of a pin (a PIC slave's counted from 0 or from 8), or -1. irq_lock held. */
int irq_routing_pin_to_gsi(struct vm *vm, unsigned irqchip, unsigned pin);
/* Somebody began or ceased to want EOIs of gsi, or the routing changed. irq_lock held. */
void irq_notifiers_changed(struct vm *vm);

/* irqfd.c: is there a resampler on gsi; one EOI of it. irq_lock held. */
bool irqfd_has_resampler(struct vm *vm, u32 gsi);
void irqfd_resample(struct vm *vm, u32 gsi);

#endif

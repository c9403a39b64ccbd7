/* SPDX-License-Identifier: MIT */
/*
 * The interrupt controllers of a VM as a whole: creation, ports, routing
 * targets, state ioctls. Lock order: vm->lock, pit->lock, vm->irq_lock, map lock; GSIs are
 * raised (vm_set_irq) with none of them held but vm->lock.
 */
#include <errno.h>
#include <string.h>

#include "x86/hyperv.h"
#include "x86/irqchip/irqchip_internal.h"
#include "x86/irqchip/lapic.h"
#include "x86/xen.h"

struct vm_timers *irqchip_timers(struct vm *vm)
{
	if (!vm->timers)
		vm->timers = vm_timers_create();
	return vm->timers;
}

bool arch_irqchip_in_kernel(struct vm *vm)
{
	return atomic_load_explicit(&vm->arch.irqchip_mode, memory_order_acquire) != IRQCHIP_NONE;
}

bool arch_irqchip_full(struct vm *vm)
{
	return atomic_load_explicit(&vm->arch.irqchip_mode, memory_order_acquire) == IRQCHIP_KERNEL;
}

void irqchip_acked(struct vm *vm, unsigned chip, unsigned pin)
{
	vm_notify_acked_irq(vm, chip, pin);
	pit_pin_acked(vm, chip, pin);
}

/* ---- creation --------------------------------------------------------------------------- */

static void set_mode(struct vm *vm, enum irqchip_mode mode)
{
	atomic_store_explicit(&vm->arch.irqchip_mode, mode, memory_order_release);
}

int irqchip_create(struct vm *vm)
{
	int r;

	if (arch_irqchip_in_kernel(vm))
		return -EEXIST;
	if (atomic_load(&vm->nr_vcpus))
		return -EINVAL;
	r = apic_maps_create(vm);
	if (!r)
		r = pic_create(vm);
	if (!r)
		r = ioapic_create(vm);
	if (!r) {
		set_mode(vm, IRQCHIP_KERNEL);
		r = vm_set_default_routing(vm);
	}
	if (r)
		irqchip_destroy(vm);
	return r;
}

int irqchip_create_split(struct vm *vm, u32 reserved_pins)
{
	int r;

	if (reserved_pins > KVM_ABI_MAX_IRQ_ROUTES)
		return -EINVAL;
	if (arch_irqchip_in_kernel(vm) || atomic_load(&vm->nr_vcpus))
		return -EEXIST;
	r = apic_maps_create(vm);
	if (r)
		return r;
	vm->arch.split_nr_reserved_pins = reserved_pins;
	set_mode(vm, IRQCHIP_SPLIT);
	return 0;
}

/* vCPUs are gone, or were never made. */
void irqchip_destroy(struct vm *vm)
{
	pit_destroy(vm);
	set_mode(vm, IRQCHIP_NONE);
	ioapic_destroy(vm);
	pic_destroy(vm);
	apic_maps_destroy(vm);
}

/* ---- routing targets ------------------------------------------------------------------------ */

static int set_routed_pin(struct vm *vm, unsigned chip, unsigned pin, int source, int level)
{
	if (!arch_irqchip_full(vm))
		return -1;
	if (source == KVM_IRQ_SOURCE_PIT)
		pit_note_pin(vm, chip, pin);
	if (chip == KVM_IRQCHIP_IOAPIC)
		return ioapic_set_irq(vm, source, pin, level);
	return pic_set_irq(vm, source, chip * 8 + pin, level);
}

/* level is that of this source; the pins OR their sources. */
int arch_set_routed_irq(struct vm *vm, const struct kvm_irq_routing_entry *e, int source, int level)
{
	switch (e->type) {
	case KVM_IRQ_ROUTING_IRQCHIP:
		return set_routed_pin(vm, e->u.irqchip.irqchip, e->u.irqchip.pin, source, level);
	case KVM_IRQ_ROUTING_MSI:
		return level ? msi_deliver(vm, e->u.msi.address_lo, e->u.msi.address_hi, e->u.msi.data) : -1;
	case KVM_IRQ_ROUTING_HV_SINT:
		return level ? hyperv_synic_set_irq(vm, e->u.hv_sint.vcpu, e->u.hv_sint.sint) : -1;
	case KVM_IRQ_ROUTING_XEN_EVTCHN:
		return level ? xen_queue_event(vm, e->u.xen_evtchn.vcpu, e->u.xen_evtchn.port) : -1;
	}
	return -1;
}

int arch_send_msi(struct vm *vm, u32 address_lo, u32 address_hi, u32 data)
{
	if (!arch_irqchip_in_kernel(vm))
		return -1;
	return msi_deliver(vm, address_lo, address_hi, data);
}

/*
 * With a userspace IOAPIC the first GSIs are its pins. Remember the vectors they
 * were ever given for level-triggered interrupts: together with the vector's TMR
 * bit that tells whose EOI userspace must hear of. It only grows, so an
 * interrupt in service across a routing change, or a restored one, is not missed.
 */
static void note_split_vector(struct vm *vm, const struct kvm_irq_routing_entry *e)
{
	u8 vector = e->u.msi.data & 0xff;

	if (atomic_load(&vm->arch.irqchip_mode) == IRQCHIP_SPLIT &&
	    e->gsi < vm->arch.split_nr_reserved_pins && (e->u.msi.data & BIT(15)))
		atomic_fetch_or(&vm->arch.apic_maps->split_vectors[vector >> 6], BIT_ULL(vector & 63));
}

int arch_check_routing_entry(struct vm *vm, const struct kvm_irq_routing_entry *e)
{
	bool split = atomic_load(&vm->arch.irqchip_mode) == IRQCHIP_SPLIT;

	switch (e->type) {
	case KVM_IRQ_ROUTING_IRQCHIP:
		if (split || e->u.irqchip.irqchip >= KVM_NR_IRQCHIPS)
			return -EINVAL;
		if (e->u.irqchip.pin >= (e->u.irqchip.irqchip == KVM_IRQCHIP_IOAPIC ? KVM_IOAPIC_NUM_PINS : 8))
			return -EINVAL;
		return 0;
	case KVM_IRQ_ROUTING_MSI:
		if ((vm->arch.x2apic_format & X2APIC_API_32BIT_IDS) && (e->u.msi.address_hi & 0xff))
			return -EINVAL;
		note_split_vector(vm, e);
		return 0;
	case KVM_IRQ_ROUTING_HV_SINT:
		return 0;
	case KVM_IRQ_ROUTING_XEN_EVTCHN:
		return e->u.xen_evtchn.priority == KVM_IRQ_ROUTING_XEN_EVTCHN_PRIO_2LEVEL ? 0 : -EINVAL;
	}
	return -EINVAL;
}

void arch_routing_updated(struct vm *vm)
{
	/* Nothing is cached per route: see note_split_vector() and ioapic.c's handled. */
}

/* ---- ports ------------------------------------------------------------------------------------- */

bool irqchip_pio_match(struct vm *vm, u16 port)
{
	return arch_irqchip_full(vm) && (pic_port_match(port, 1) || pit_port_match(vm, port));
}

/* An access must lie inside one device's ports; the PIC answers bytes only. */
static bool pit_takes(struct vm *vm, u16 port, unsigned len)
{
	return pit_port_match(vm, port) && (port == 0x61 || port + len <= 0x44);
}

bool irqchip_pio_read(struct vm *vm, u16 port, void *data, unsigned len)
{
	u8 val;

	if (!arch_irqchip_full(vm) || !len)
		return false;
	if (pit_takes(vm, port, len)) {
		pit_port_read(vm, port, data, len);
		return true;
	}
	if (!pic_port_match(port, len))
		return false;
	memset(data, 0, len);
	if (len == 1) {
		val = pic_port_read(vm, port);
		memcpy(data, &val, 1);
	}
	return true;
}

bool irqchip_pio_write(struct vm *vm, u16 port, const void *data, unsigned len)
{
	u8 val;

	if (!arch_irqchip_full(vm) || !len)
		return false;
	memcpy(&val, data, 1);
	if (pit_takes(vm, port, len)) {
		pit_port_write(vm, port, val);
		return true;
	}
	if (!pic_port_match(port, len))
		return false;
	if (len == 1)
		pic_port_write(vm, port, val);
	return true;
}

/* ---- KVM_GET/SET_IRQCHIP -------------------------------------------------------------------------- */

int irqchip_get_state(struct vm *vm, struct kvm_irqchip *chip)
{
	if (!arch_irqchip_full(vm))
		return -ENXIO;
	switch (chip->chip_id) {
	case KVM_IRQCHIP_PIC_MASTER:
	case KVM_IRQCHIP_PIC_SLAVE:
		pic_get(vm, chip->chip_id, &chip->chip.pic);
		return 0;
	case KVM_IRQCHIP_IOAPIC:
		ioapic_get(vm, &chip->chip.ioapic);
		return 0;
	}
	return -EINVAL;
}

int irqchip_set_state(struct vm *vm, const struct kvm_irqchip *chip)
{
	if (!arch_irqchip_full(vm))
		return -ENXIO;
	switch (chip->chip_id) {
	case KVM_IRQCHIP_PIC_MASTER:
	case KVM_IRQCHIP_PIC_SLAVE:
		return pic_set(vm, chip->chip_id, &chip->chip.pic);
	case KVM_IRQCHIP_IOAPIC:
		return ioapic_set(vm, &chip->chip.ioapic);
	}
	return -EINVAL;
}

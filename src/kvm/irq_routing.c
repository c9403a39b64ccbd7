/* SPDX-License-Identifier: MIT */
/*
 * GSI routing, delivery of interrupts from outside the guest, and the way back
 * for resamplers.
 *
 * Everything happens under irq_lock, but for vm_irq_has_notifier(), which the
 * interrupt controllers ask while holding it and which reads a word computed
 * beforehand.
 */
#include <errno.h>
#include <stdlib.h>
#include <string.h>

#include "kvm/arch.h"
#include "kvm/irq_routing.h"
#include "kvm/trace.h"

/* ---- tables -------------------------------------------------------------------- */

static int check_entry(struct vm *vm, const struct kvm_irq_routing_entry *e)
{
	if (e->gsi >= KVM_ABI_MAX_IRQ_ROUTES)
		return -EINVAL;
	switch (e->type) {
	case KVM_IRQ_ROUTING_IRQCHIP:
		if (e->flags || e->u.irqchip.irqchip >= NR_IRQCHIPS ||
		    e->u.irqchip.pin >= KVM_ABI_IRQCHIP_NUM_PINS)
			return -EINVAL;
		break;
	case KVM_IRQ_ROUTING_MSI:
		if (e->flags & ~KVM_MSI_VALID_DEVID)
			return -EINVAL;
		break;
	case KVM_IRQ_ROUTING_HV_SINT:
	case KVM_IRQ_ROUTING_XEN_EVTCHN:
		if (e->flags)
			return -EINVAL;
		break;
	default:
		return -EINVAL;
	}
	return arch_check_routing_entry(vm, e);
}

/* A GSI has one MSI, or at most one pin of each irqchip. */
static bool entries_clash(const struct kvm_irq_routing_entry *a, const struct kvm_irq_routing_entry *b)
{
	return a->type != KVM_IRQ_ROUTING_IRQCHIP || b->type != KVM_IRQ_ROUTING_IRQCHIP ||
	       a->u.irqchip.irqchip == b->u.irqchip.irqchip;
}

static struct irq_routing *routing_alloc(const struct kvm_irq_routing_entry *entries, u32 nr)
{
	u32 nr_gsi = 1;
	size_t head;
	struct irq_routing *rt;

	for (u32 i = 0; i < nr; i++)
		nr_gsi = max(nr_gsi, entries[i].gsi + 1);
	head = (sizeof(*rt) + (nr_gsi + 1) * sizeof(rt->first[0]) + 7) & ~(size_t)7;
	rt = calloc(1, head + nr * sizeof(*entries));
	if (!rt)
		return NULL;
	rt->nr_gsi = nr_gsi;
	rt->entries = (void *)((u8 *)rt + head);
	memset(rt->pin_gsi, 0xff, sizeof(rt->pin_gsi));
	return rt;
}

/* Counting sort by GSI. -EINVAL if entries of one GSI exclude each other. */
static int routing_fill(struct irq_routing *rt, const struct kvm_irq_routing_entry *entries, u32 nr)
{
	for (u32 i = 0; i < nr; i++)
		rt->first[entries[i].gsi + 1]++;
	for (u32 gsi = 0; gsi < rt->nr_gsi; gsi++) {
		if (rt->first[gsi + 1] > NR_IRQCHIPS)
			return -EINVAL;
		rt->first[gsi + 1] += rt->first[gsi];
	}
	for (u32 i = 0; i < nr; i++) {
		const struct kvm_irq_routing_entry *e = &entries[i];
		struct kvm_irq_routing_entry *p = &rt->entries[rt->first[e->gsi]];

		/* A slot still empty has type 0, which no entry has. */
		for (; p->type; p++)
			if (entries_clash(p, e))
				return -EINVAL;
		*p = *e;
		if (e->type == KVM_IRQ_ROUTING_IRQCHIP)
			rt->pin_gsi[e->u.irqchip.irqchip][e->u.irqchip.pin] = e->gsi;
	}
	return 0;
}

/* What KVM_CREATE_IRQCHIP sets up is the same in every VM, and shared; it stays until the process ends. */
static struct irq_routing *_Atomic default_routing;

void irq_routing_free(struct irq_routing *rt)
{
	if (rt != atomic_load(&default_routing))
		free(rt);
}

static void routing_install(struct vm *vm, struct irq_routing *rt)
{
	struct irq_routing *old;

	pthread_mutex_lock(&vm->irq_lock);
	old = atomic_exchange(&vm->routing, rt);
	irq_notifiers_changed(vm);
	pthread_mutex_unlock(&vm->irq_lock);
	arch_routing_updated(vm);
	irq_routing_free(old);
}

int vm_set_gsi_routing(struct vm *vm, const struct kvm_irq_routing_entry *entries, u32 nr, u32 flags)
{
	struct irq_routing *rt;
	int r;

	if (flags || nr > KVM_ABI_MAX_IRQ_ROUTES)
		return -EINVAL;
	for (u32 i = 0; i < nr; i++) {
		r = check_entry(vm, &entries[i]);
		if (r)
			return r;
	}
	rt = routing_alloc(entries, nr);
	if (!rt)
		return -ENOMEM;
	r = routing_fill(rt, entries, nr);
	if (r) {
		free(rt);
		return r;
	}
	routing_install(vm, rt);
	return 0;
}

static struct irq_routing *default_routing_make(void)
{
	struct kvm_irq_routing_entry e[16 + KVM_ABI_IRQCHIP_NUM_PINS];
	struct irq_routing *rt;
	u32 nr = 0;

	memset(e, 0, sizeof(e));
	for (u32 gsi = 0; gsi < KVM_ABI_IRQCHIP_NUM_PINS; gsi++) {
		e[nr].gsi = gsi;
		e[nr].type = KVM_IRQ_ROUTING_IRQCHIP;
		e[nr].u.irqchip.irqchip = KVM_IRQCHIP_IOAPIC;
		e[nr++].u.irqchip.pin = gsi;
		if (gsi >= 16)
			continue;
		e[nr].gsi = gsi;
		e[nr].type = KVM_IRQ_ROUTING_IRQCHIP;
		e[nr].u.irqchip.irqchip = gsi < 8 ? KVM_IRQCHIP_PIC_MASTER : KVM_IRQCHIP_PIC_SLAVE;
		e[nr++].u.irqchip.pin = gsi & 7;
	}
	rt = routing_alloc(e, nr);
	if (rt)
		(void)routing_fill(rt, e, nr);
	return rt;
}

int vm_set_default_routing(struct vm *vm)
{
	struct irq_routing *rt = atomic_load(&default_routing), *none = NULL;

	if (!rt) {
		rt = default_routing_make();
		if (!rt)
			return -ENOMEM;
		if (!atomic_compare_exchange_strong(&default_routing, &none, rt)) {
			free(rt);
			rt = none;
		}
	}
	routing_install(vm, rt);
	return 0;
}

/* ---- delivery --------------------------------------------------------------------- */

static int deliver(struct vm *vm, const struct kvm_irq_routing_entry *e, int source, int level)
{
	if (e->type != KVM_IRQ_ROUTING_MSI)
		return arch_set_routed_irq(vm, e, source, level);
	/* A message is sent by the rising edge. */
	return level ? arch_send_msi(vm, e->u.msi.address_lo, e->u.msi.address_hi, e->u.msi.data) : -1;
}

int vm_set_irq_locked(struct vm *vm, int source, u32 gsi, int level)
{
	struct irq_routing *rt = atomic_load(&vm->routing);
	int ret = -1;

	trace(kvm_set_irq, 0, gsi, level, source);
	if (!rt || gsi >= rt->nr_gsi || atomic_load(&vm->dead))
		return -1;
	/* PIC and IOAPIC both get the line: which one the guest uses is its secret. */
	for (u32 i = rt->first[gsi]; i < rt->first[gsi + 1]; i++) {
		int r = deliver(vm, &rt->entries[i], source, level);

		if (r >= 0)
			ret = r + (ret < 0 ? 0 : ret);
	}
	return ret;
}

int vm_set_irq(struct vm *vm, int source, u32 gsi, int level)
{
	int r;

	pthread_mutex_lock(&vm->irq_lock);
	r = vm_set_irq_locked(vm, source, gsi, !!level);
	pthread_mutex_unlock(&vm->irq_lock);
	return r;
}

int vm_send_msi(struct vm *vm, const struct kvm_msi *msi)
{
	if (!arch_irqchip_in_kernel(vm) || (msi->flags & ~KVM_MSI_VALID_DEVID))
		return -EINVAL;
	return arch_send_msi(vm, msi->address_lo, msi->address_hi, msi->data);
}

/* ---- acknowledgement ----------------------------------------------------------------- */

static unsigned normal_pin(unsigned irqchip, unsigned pin)
{
	return irqchip == KVM_IRQCHIP_IOAPIC ? pin : pin & 7;
}

int irq_routing_pin_to_gsi(struct vm *vm, unsigned irqchip, unsigned pin)
{
	struct irq_routing *rt = atomic_load(&vm->routing);

	pin = normal_pin(irqchip, pin);
	if (!rt || irqchip >= NR_IRQCHIPS || pin >= KVM_ABI_IRQCHIP_NUM_PINS)
		return -1;
	return rt->pin_gsi[irqchip][pin];
}

/* The next entry from *e on that routes to a synthetic interrupt, or NULL. irq_lock held. */
static const struct kvm_irq_routing_entry *next_sint(struct vm *vm, const struct kvm_irq_routing_entry *e)
{
	const struct irq_routing *rt = atomic_load(&vm->routing);

	if (!rt)
		return NULL;
	e = e ? e + 1 : rt->entries;
	for (; e < rt->entries + rt->first[rt->nr_gsi]; e++)
		if (e->type == KVM_IRQ_ROUTING_HV_SINT)
			return e;
	return NULL;
}

static bool any_sint_notifier(struct vm *vm)
{
	const struct kvm_irq_routing_entry *e = NULL;

	while ((e = next_sint(vm, e)))
		if (irqfd_has_resampler(vm, e->gsi))
			return true;
	return false;
}

void vm_notify_acked_sint(struct vm *vm, u32 vp_index, u32 sint)
{
	const struct kvm_irq_routing_entry *e = NULL;

	if (!atomic_load(&vm->notifier_sints))
		return;
	pthread_mutex_lock(&vm->irq_lock);
	while ((e = next_sint(vm, e)))
		if (e->u.hv_sint.vcpu == vp_index && e->u.hv_sint.sint == sint)
			irqfd_resample(vm, e->gsi);
	pthread_mutex_unlock(&vm->irq_lock);
}

void irq_notifiers_changed(struct vm *vm)
{
	for (unsigned chip = 0; chip < NR_IRQCHIPS; chip++) {
		u32 pins = 0;

		for (unsigned pin = 0; pin < KVM_ABI_IRQCHIP_NUM_PINS; pin++) {
			int gsi = chip == KVM_IRQCHIP_IOAPIC || pin < 8 ?
				  irq_routing_pin_to_gsi(vm, chip, pin) : -1;

			if (gsi >= 0 && irqfd_has_resampler(vm, gsi))
				pins |= BIT(pin);
		}
		atomic_store(&vm->notifier_pins[chip], pins);
	}
	atomic_store(&vm->notifier_sints, any_sint_notifier(vm));
}

bool vm_irq_has_notifier(struct vm *vm, unsigned irqchip, unsigned pin)
{
	pin = normal_pin(irqchip, pin);
	return irqchip < NR_IRQCHIPS && pin < KVM_ABI_IRQCHIP_NUM_PINS &&
	       (atomic_load(&vm->notifier_pins[irqchip]) & BIT(pin));
}

void vm_notify_acked_irq(struct vm *vm, unsigned irqchip, unsigned pin)
{
	int gsi;

	if (!vm_irq_has_notifier(vm, irqchip, pin))
		return;
	pthread_mutex_lock(&vm->irq_lock);
	gsi = irq_routing_pin_to_gsi(vm, irqchip, pin);
	if (gsi >= 0)
		irqfd_resample(vm, gsi);
	pthread_mutex_unlock(&vm->irq_lock);
}

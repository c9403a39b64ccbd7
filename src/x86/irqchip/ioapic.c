/* SPDX-License-Identifier: MIT */
/*
 * The I/O APIC: an 82093AA with 24 inputs (version 11h, so no EOI register).
 *
 * State is under vm->irq_lock. `handled` names every vector in the redirection
 * table, whatever its trigger mode, so that most EOIs are known without the
 * lock not to concern us; it is a superset of what needs an EOI and is
 * rewritten with the table.
 *
 * An EOI drops irq_lock around each ack notifier (which may lower or raise
 * lines). remote_irr is cleared only afterwards: a level line raised meanwhile
 * lands in irr and is sent when the notifier is done.
 *
 * A line that is still high at EOI is sent again at once, as KVM does, but
 * after STORM_LIMIT times in a row only 10 ms later, so that a guest which does
 * not serve its device gets to run at all.
 */
#include <errno.h>
#include <stdlib.h>
#include <string.h>

#include "x86/irqchip/irqchip_internal.h"
#include "x86/irqchip/lapic.h"

#define NR_PINS KVM_IOAPIC_NUM_PINS
#define MMIO_LENGTH 0x100
#define REG_SELECT 0x00
#define REG_WINDOW 0x10
#define INDEX_ID 0
#define INDEX_VERSION 1
#define INDEX_ARBITRATION 2
#define INDEX_TABLE 0x10
#define VERSION 0x11
#define ENTRY_READ_ONLY (BIT_ULL(12) | BIT_ULL(14)) /* delivery status, remote IRR */
#define RTC_PIN 8
#define STORM_LIMIT 10000
#define STORM_DELAY_NS 10000000ull

_Static_assert(sizeof(struct kvm_ioapic_state) == 24 + 8 * NR_PINS, "ABI");

static struct ioapic *ioapic_of(struct vm *vm)
{
	return vm->arch.ioapic;
}

/* ---- sending --------------------------------------------------------------------------- */

static void message_of(const struct ioapic *io, unsigned pin, struct apic_irq *irq)
{
	*irq = (struct apic_irq){
		.dest = io->s.redirtbl[pin].fields.dest_id,
		.dest_mode = io->s.redirtbl[pin].fields.dest_mode,
		.delivery_mode = io->s.redirtbl[pin].fields.delivery_mode,
		.vector = io->s.redirtbl[pin].fields.vector,
		.trig_level = io->s.redirtbl[pin].fields.trig_mode,
		.level = true,
	};
}

/* As vm_set_irq() counts. */
static int service(struct ioapic *io, unsigned pin)
{
	struct apic_irq irq;
	int r;

	message_of(io, pin, &irq);
	if (io->s.redirtbl[pin].fields.mask ||
	    (irq.trig_level && io->s.redirtbl[pin].fields.remote_irr))
		return -1;
	if (!irq.trig_level)
		io->irr_delivered |= BIT(pin);
	r = apic_deliver(io->vm, NULL, &irq);
	if (r && irq.trig_level)
		io->s.redirtbl[pin].fields.remote_irr = 1;
	return r;
}

/*
 * The RTC's edges are coalesced while one is being served: clients count ticks
 * by the answer to KVM_IRQ_LINE_STATUS and make up for lost ones.
 */
static bool rtc_is_busy(struct ioapic *io)
{
	struct apic_irq irq;
	struct vcpu *vcpu;
	u32 i;

	message_of(io, RTC_PIN, &irq);
	vm_for_each_vcpu(io->vm, vcpu, i) {
		struct lapic *a = vcpu->arch.apic;

		if (a && apic_vector_pending(a, irq.vector) &&
		    apic_match_dest(a, NULL, 0, irq.dest, irq.dest_mode))
			return true;
	}
	return false;
}

static int set_pin(struct ioapic *io, unsigned pin, bool level)
{
	u32 bit = BIT(pin);
	bool edge = !io->s.redirtbl[pin].fields.trig_mode, was_set = io->s.irr & bit;

	if (!level) {
		io->s.irr &= ~bit;
		return 1;
	}
	if (pin == RTC_PIN && edge && !io->s.redirtbl[pin].fields.mask && rtc_is_busy(io))
		return 0;
	io->s.irr |= bit;
	if (edge) {
		io->irr_delivered &= ~bit;
		if (was_set)
			return 0;
	}
	return service(io, pin);
}

int ioapic_set_irq(struct vm *vm, int source, unsigned pin, int level)
{
	struct ioapic *io = ioapic_of(vm);

	if (VM_BUG_ON(pin >= NR_PINS, vm))
		return -1;
	return set_pin(io, pin, irq_line_level(&io->lines[pin], source, level));
}

/* ---- EOI ------------------------------------------------------------------------------------ */

static void table_changed(struct ioapic *io)
{
	u64 handled[4] = { 0 };

	for (unsigned i = 0; i < NR_PINS; i++) {
		u8 vector = io->s.redirtbl[i].fields.vector;

		handled[vector >> 6] |= BIT_ULL(vector & 63);
	}
	for (unsigned i = 0; i < 4; i++)
		atomic_store(&io->handled[i], handled[i]);
}

bool ioapic_handles_vector(struct vm *vm, u8 vector)
{
	struct ioapic *io = ioapic_of(vm);

	return io && (atomic_load_explicit(&io->handled[vector >> 6], memory_order_relaxed) &
		      BIT_ULL(vector & 63));
}

static void resend(struct ioapic *io, unsigned pin)
{
	if (io->s.redirtbl[pin].fields.mask || !(io->s.irr & BIT(pin))) {
		io->successive[pin] = 0;
	} else if (++io->successive[pin] >= STORM_LIMIT) {
		io->successive[pin] = 0;
		vm_timer_arm(&io->storm, host_now_ns() + STORM_DELAY_NS);
	} else {
		service(io, pin);
	}
}

static void storm_over(struct vm_timer *t)
{
	struct ioapic *io = container_of(t, struct ioapic, storm);

	pthread_mutex_lock(&io->vm->irq_lock);
	for (unsigned i = 0; i < NR_PINS && !atomic_load(&io->vm->dead); i++)
		if (io->s.redirtbl[i].fields.trig_mode && (io->s.irr & BIT(i)))
			service(io, i);
	pthread_mutex_unlock(&io->vm->irq_lock);
}

static void eoi_pin(struct ioapic *io, struct vcpu *vcpu, unsigned pin, bool level_triggered)
{
	pthread_mutex_unlock(&io->vm->irq_lock);
	irqchip_acked(io->vm, KVM_IRQCHIP_IOAPIC, pin);
	pthread_mutex_lock(&io->vm->irq_lock);
	if (!level_triggered || (apic_reg(vcpu->arch.apic, APIC_SPIV) & APIC_SPIV_DIRECTED_EOI))
		return;
	io->s.redirtbl[pin].fields.remote_irr = 0;
	resend(io, pin);
}

void ioapic_eoi(struct vcpu *vcpu, u8 vector, bool level_triggered)
{
	struct ioapic *io = ioapic_of(vcpu->vm);

	pthread_mutex_lock(&io->vm->irq_lock);
	for (unsigned i = 0; i < NR_PINS; i++)
		if (io->s.redirtbl[i].fields.vector == vector)
			eoi_pin(io, vcpu, i, level_triggered);
	pthread_mutex_unlock(&io->vm->irq_lock);
}

/* ---- registers ---------------------------------------------------------------------------------- */

static u32 read_indirect(const struct ioapic *io)
{
	u32 index = io->s.ioregsel;
	u64 entry = ~0ull;

	switch (index) {
	case INDEX_VERSION:
		return (NR_PINS - 1) << 16 | VERSION;
	case INDEX_ID:
	case INDEX_ARBITRATION:
		return (io->s.id & 15) << 24;
	}
	if (index >= INDEX_TABLE && (index - INDEX_TABLE) / 2 < NR_PINS)
		entry = io->s.redirtbl[(index - INDEX_TABLE) / 2].bits;
	return index & 1 ? entry >> 32 : entry;
}

/*
 * A line pending since before it was masked may be low by now: a resampler can
 * tell, so ask it instead of raising an interrupt nobody will claim.
 */
static void level_pin_opened(struct ioapic *io, unsigned pin)
{
	if (io->s.redirtbl[pin].fields.mask || io->s.redirtbl[pin].fields.remote_irr)
		return;
	if (!vm_irq_has_notifier(io->vm, KVM_IRQCHIP_IOAPIC, pin)) {
		service(io, pin);
		return;
	}
	io->s.irr &= ~BIT(pin);
	pthread_mutex_unlock(&io->vm->irq_lock);
	vm_notify_acked_irq(io->vm, KVM_IRQCHIP_IOAPIC, pin);
	pthread_mutex_lock(&io->vm->irq_lock);
}

static void write_entry(struct ioapic *io, unsigned pin, bool high, u32 val)
{
	u64 old = io->s.redirtbl[pin].bits, new;
	bool was_masked = io->s.redirtbl[pin].fields.mask;

	new = high ? (u32)old | (u64)val << 32 : (old & ~0xffffffffull) | val;
	io->s.redirtbl[pin].bits = (new & ~ENTRY_READ_ONLY) | (old & ENTRY_READ_ONLY);
	/* How systems without an EOI register end a stuck interrupt: edge and back. */
	if (!io->s.redirtbl[pin].fields.trig_mode)
		io->s.redirtbl[pin].fields.remote_irr = 0;
	table_changed(io);
	if (was_masked && !io->s.redirtbl[pin].fields.mask)
		pit_pin_unmasked(io->vm, KVM_IRQCHIP_IOAPIC, pin);
	if (io->s.redirtbl[pin].fields.trig_mode && (io->s.irr & BIT(pin)))
		level_pin_opened(io, pin);
}

static void write_indirect(struct ioapic *io, u32 val)
{
	u32 index = io->s.ioregsel;

	if (index == INDEX_ID)
		io->s.id = val >> 24 & 15;
	else if (index >= INDEX_TABLE && (index - INDEX_TABLE) / 2 < NR_PINS)
		write_entry(io, (index - INDEX_TABLE) / 2, index & 1, val);
}

/* The device decodes the default page only; a base the client loaded elsewhere makes it unreachable. */
bool ioapic_mmio_match(struct vm *vm, gpa_t gpa)
{
	struct ioapic *io = ioapic_of(vm);

	return io && gpa - IOAPIC_DEFAULT_BASE < MMIO_LENGTH &&
	       gpa - __atomic_load_n(&io->s.base_address, __ATOMIC_RELAXED) < MMIO_LENGTH;
}

void ioapic_mmio_read(struct vm *vm, gpa_t gpa, void *data, unsigned len)
{
	struct ioapic *io = ioapic_of(vm);
	u64 val = 0;

	pthread_mutex_lock(&vm->irq_lock);
	if ((gpa & 0xff) == REG_SELECT)
		val = io->s.ioregsel;
	else if ((gpa & 0xff) == REG_WINDOW)
		val = read_indirect(io);
	pthread_mutex_unlock(&vm->irq_lock);
	memcpy(data, &val, min(len, 8u));
}

void ioapic_mmio_write(struct vm *vm, gpa_t gpa, const void *data, unsigned len)
{
	struct ioapic *io = ioapic_of(vm);
	u32 val = 0;

	if (len != 1 && len != 2 && len != 4 && len != 8)
		return;
	memcpy(&val, data, min(len, 4u));
	pthread_mutex_lock(&vm->irq_lock);
	if ((gpa & 0xff) == REG_SELECT)
		io->s.ioregsel = val & 0xff;
	else if ((gpa & 0xff) == REG_WINDOW)
		write_indirect(io, val);
	pthread_mutex_unlock(&vm->irq_lock);
}

/* ---- life and state -------------------------------------------------------------------------------- */

int ioapic_create(struct vm *vm)
{
	struct vm_timers *timers = irqchip_timers(vm);
	struct ioapic *io = calloc(1, sizeof(*io));

	if (!io || !timers) {
		free(io);
		return -ENOMEM;
	}
	io->vm = vm;
	io->s.base_address = IOAPIC_DEFAULT_BASE;
	for (unsigned i = 0; i < NR_PINS; i++)
		io->s.redirtbl[i].fields.mask = 1;
	vm_timer_init(&io->storm, timers, storm_over);
	table_changed(io);
	vm->arch.ioapic = io;
	return 0;
}

void ioapic_destroy(struct vm *vm)
{
	struct ioapic *io = ioapic_of(vm);

	if (!io)
		return;
	vm_timer_cancel(&io->storm);
	vm->arch.ioapic = NULL;
	free(io);
}

void ioapic_get(struct vm *vm, struct kvm_ioapic_state *s)
{
	struct ioapic *io = ioapic_of(vm);

	pthread_mutex_lock(&vm->irq_lock);
	*s = io->s;
	s->irr &= ~io->irr_delivered;
	pthread_mutex_unlock(&vm->irq_lock);
}

int ioapic_set(struct vm *vm, const struct kvm_ioapic_state *s)
{
	struct ioapic *io = ioapic_of(vm);

	pthread_mutex_lock(&vm->irq_lock);
	io->s = *s;
	io->s.irr = 0;
	io->irr_delivered = 0;
	table_changed(io);
	for (unsigned i = 0; i < NR_PINS; i++)
		if (s->irr & BIT(i))
			set_pin(io, i, true);
	pthread_mutex_unlock(&vm->irq_lock);
	return 0;
}

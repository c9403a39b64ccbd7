/* SPDX-License-Identifier: MIT */
/*
 * The irqchip models alone, compiled into the test, on a fake clock and a fake
 * rest of the world; irqchip_rename.h keeps them apart from the library.
 *
 * Routing as QEMU sets it up: GSI n is PIC input n and IOAPIC pin n, GSI 0 is pin 2.
 */
#ifndef TESTS_UNIT_IRQCHIP_HARNESS_H
#define TESTS_UNIT_IRQCHIP_HARNESS_H

#include "irqchip_rename.h"

#include <setjmp.h>
#include <stdarg.h>
#include <stddef.h>
#include <stdint.h>
#include <stdlib.h>
#include <string.h>
#include <cmocka.h>

#include "../../src/x86/irqchip/apic_map.c"
#include "../../src/x86/irqchip/apic_timer.c"
#include "../../src/x86/irqchip/ioapic.c"
#include "../../src/x86/irqchip/irqchip.c"
#include "../../src/x86/irqchip/lapic.c"
#include "../../src/x86/irqchip/pic.c"
#include "../../src/x86/irqchip/pit.c"
#include "../../src/x86/irqchip/pv_eoi.c"

#define MAX_TEST_VCPUS 300

static u64 fake_now = 1000000000;
static _Atomic unsigned nr_acks, nr_kicks;
static unsigned last_ack_chip, last_ack_pin;
static bool no_x2apic, has_resampler;
static u8 guest_memory[64];
static struct vm_timer *armed_timers[MAX_TEST_VCPUS + 4];
static unsigned nr_armed;
_Thread_local struct host_guest_ctx *host_guest_current;

u64 host_now_ns(void) { return fake_now; }
u64 guest_tsc(struct vcpu *vcpu) { return fake_now; }
u64 guest_tsc_to_deadline_ns(struct vcpu *vcpu, u64 tsc) { return max(tsc, fake_now); }
void vcpu_kick(struct vcpu *vcpu) { nr_kicks++; }
void vm_bug(struct vm *vm, const char *what, const char *file, int line) { fail_msg("%s", what); }
int vm_set_default_routing(struct vm *vm) { return 0; }

bool guest_cpuid_has(struct vcpu *vcpu, u32 function, u32 index, enum cpuid_reg reg, unsigned bit)
{
	return !(no_x2apic && bit == 21);
}

void vm_notify_acked_irq(struct vm *vm, unsigned irqchip, unsigned pin)
{
	nr_acks++;
	last_ack_chip = irqchip;
	last_ack_pin = pin;
	/* must be free here */
	assert_int_equal(pthread_mutex_trylock(&vm->irq_lock), 0);
	pthread_mutex_unlock(&vm->irq_lock);
}

bool vm_irq_has_notifier(struct vm *vm, unsigned irqchip, unsigned pin)
{
	return has_resampler;
}

int vcpu_read_guest(struct vcpu *vcpu, gpa_t gpa, void *buf, size_t len)
{
	if (gpa + len > sizeof(guest_memory))
		return -EFAULT;
	memcpy(buf, guest_memory + gpa, len);
	return 0;
}

int vcpu_write_guest(struct vcpu *vcpu, gpa_t gpa, const void *buf, size_t len)
{
	if (gpa + len > sizeof(guest_memory))
		return -EFAULT;
	memcpy(guest_memory + gpa, buf, len);
	return 0;
}

int vm_set_irq(struct vm *vm, int source, u32 gsi, int level)
{
	struct kvm_irq_routing_entry e = { .gsi = gsi, .type = KVM_IRQ_ROUTING_IRQCHIP };
	int r = -1, x;

	pthread_mutex_lock(&vm->irq_lock);
	if (gsi < 16) {
		e.u.irqchip.irqchip = gsi / 8;
		e.u.irqchip.pin = gsi % 8;
		r = arch_set_routed_irq(vm, &e, source, level);
	}
	e.u.irqchip.irqchip = KVM_IRQCHIP_IOAPIC;
	e.u.irqchip.pin = gsi ? gsi : 2;
	x = arch_set_routed_irq(vm, &e, source, level);
	pthread_mutex_unlock(&vm->irq_lock);
	return r < 0 ? x : x < 0 ? r : r + x;
}

/* ---- host timers on the fake clock ---- */

struct vm_timers *vm_timers_create(void) { return (struct vm_timers *)&armed_timers; }

void vm_timer_init(struct vm_timer *t, struct vm_timers *owner, void (*fn)(struct vm_timer *))
{
	*t = (struct vm_timer){ .fn = fn, .owner = owner };
}

void vm_timer_cancel(struct vm_timer *t)
{
	if (!t->heap_index)
		return;
	t->heap_index = 0;
	for (unsigned i = 0; i < nr_armed; i++)
		if (armed_timers[i] == t)
			armed_timers[i] = armed_timers[--nr_armed];
}

void vm_timer_arm(struct vm_timer *t, u64 deadline_ns)
{
	vm_timer_cancel(t);
	t->deadline_ns = deadline_ns;
	t->heap_index = 1;
	armed_timers[nr_armed++] = t;
}

static inline void advance(u64 ns)
{
	u64 end = fake_now + ns;

	for (;;) {
		struct vm_timer *first = NULL;

		for (unsigned i = 0; i < nr_armed; i++)
			if (!first || armed_timers[i]->deadline_ns < first->deadline_ns)
				first = armed_timers[i];
		if (!first || first->deadline_ns > end)
			break;
		fake_now = max(fake_now, first->deadline_ns);
		vm_timer_cancel(first);
		first->fn(first);
	}
	fake_now = end;
}

/* ---- a VM ---- */

static inline struct vm *make_vm(unsigned vcpus, bool split)
{
	struct vm *vm = calloc(1, sizeof(*vm));

	pthread_mutex_init(&vm->irq_lock, NULL);
	vm->arch.apic_bus_ns = 1;
	vm->vcpus = calloc(MAX_TEST_VCPUS, sizeof(*vm->vcpus));
	assert_int_equal(split ? irqchip_create_split(vm, 24) : irqchip_create(vm), 0);
	for (unsigned i = 0; i < vcpus; i++) {
		struct vcpu *vcpu = aligned_alloc(64, (sizeof(*vcpu) + 63) & ~63ul);

		memset(vcpu, 0, sizeof(*vcpu));
		vcpu->vm = vm;
		vcpu->id = vcpu->index = i;
		vcpu->arch.maxphyaddr = 40;
		assert_int_equal(lapic_create(vcpu), 0);
		lapic_reset(vcpu, false);
		vm->vcpus[i] = vcpu;
		atomic_store(&vm->nr_vcpus, i + 1);
	}
	nr_acks = nr_kicks = 0;
	return vm;
}

static inline void free_vm(struct vm *vm)
{
	u32 nr = atomic_exchange(&vm->nr_vcpus, 0);

	for (u32 i = 0; i < nr; i++) {
		lapic_destroy(vm->vcpus[i]);
		free(vm->vcpus[i]);
	}
	irqchip_destroy(vm);
	free(vm->vcpus);
	free(vm);
}

static inline u32 apic_read32(struct vcpu *vcpu, u32 offset)
{
	u32 val;

	lapic_mmio_read(vcpu, (lapic_get_base(vcpu) & PAGE_MASK) + offset, &val, 4);
	return val;
}

static inline void apic_write32(struct vcpu *vcpu, u32 offset, u32 val)
{
	lapic_mmio_write(vcpu, (lapic_get_base(vcpu) & PAGE_MASK) + offset, &val, 4);
}

static inline void outb(struct vm *vm, u16 port, u8 val)
{
	assert_true(irqchip_pio_write(vm, port, &val, 1));
}

static inline u8 inb(struct vm *vm, u16 port)
{
	u8 val;

	assert_true(irqchip_pio_read(vm, port, &val, 1));
	return val;
}

/* The usual 8259 start-up: vectors 20h and 28h, everything open. */
static inline void pic_start(struct vm *vm)
{
	static const u8 words[][2] = {
		{ 0x20, 0x11 }, { 0x21, 0x20 }, { 0x21, 4 }, { 0x21, 1 }, { 0x21, 0 },
		{ 0xa0, 0x11 }, { 0xa1, 0x28 }, { 0xa1, 2 }, { 0xa1, 1 }, { 0xa1, 0 },
	};

	for (unsigned i = 0; i < ARRAY_SIZE(words); i++)
		outb(vm, words[i][0], words[i][1]);
}

static inline void ioapic_entry(struct vm *vm, unsigned pin, u64 entry)
{
	for (unsigned half = 0; half < 2; half++) {
		u32 index = 0x11 + pin * 2 - half, val = half ? entry : entry >> 32;

		ioapic_mmio_write(vm, IOAPIC_DEFAULT_BASE, &index, 4);
		ioapic_mmio_write(vm, IOAPIC_DEFAULT_BASE + 0x10, &val, 4);
	}
}

static inline u64 ioapic_read_entry(struct vm *vm, unsigned pin)
{
	struct kvm_ioapic_state s;

	ioapic_get(vm, &s);
	return s.redirtbl[pin].bits;
}

#endif

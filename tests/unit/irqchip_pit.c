/* SPDX-License-Identifier: MIT */
/* 8254. */
#include "irqchip_harness.h"

static struct vm *vm;
static struct vcpu *cpu;

#define TICK_1MS 1193

static int setup(void **state)
{
	struct kvm_pit_config cfg = { .flags = KVM_PIT_SPEAKER_DUMMY };

	vm = make_vm(1, false);
	cpu = vm->vcpus[0];
	pic_start(vm);
	assert_int_equal(pit_create(vm, &cfg), 0);
	assert_int_equal(pit_create(vm, &cfg), -EEXIST);
	return 0;
}

static int teardown(void **state)
{
	free_vm(vm);
	return 0;
}

static void program(unsigned channel, unsigned mode, u16 count)
{
	outb(vm, 0x43, channel << 6 | 0x30 | mode << 1);
	outb(vm, 0x40 + channel, count);
	outb(vm, 0x40 + channel, count >> 8);
}

static u16 read_count(unsigned channel)
{
	u8 low;

	outb(vm, 0x43, channel << 6);
	low = inb(vm, 0x40 + channel);
	return low | inb(vm, 0x40 + channel) << 8;
}

/* Take and end every IRQ 0 there is. */
static unsigned serve(void)
{
	unsigned n = 0;

	while (irqchip_get_interrupt(cpu) == 0x20 && n < 100) {
		n++;
		outb(vm, 0x20, 0x20);
	}
	return n;
}

static void periodic_tick(void **state)
{
	unsigned n = 0;

	program(0, 2, TICK_1MS);
	for (unsigned i = 0; i < 100; i++) {
		advance(1000000);
		n += serve();
	}
	assert_in_range(n, 99, 101);
}

static void late_ticks_are_reinjected(void **state)
{
	program(0, 2, TICK_1MS);
	advance(10500000);
	assert_int_equal(serve(), 10);
	assert_int_equal(serve(), 0);
}

static void or_lost_if_so_wished(void **state)
{
	assert_int_equal(pit_reinject_control(vm, false), 0);
	program(0, 2, TICK_1MS);
	advance(10500000);
	assert_int_equal(serve(), 1);
	advance(1000000);
	assert_int_equal(serve(), 1);
	assert_int_equal(pit_reinject_control(vm, true), 0);
	advance(1000000);
	assert_int_equal(serve(), 1);
}

/* The guest moves the tick from the PIC to the IOAPIC: the chain must not break. */
static void tick_through_ioapic(void **state)
{
	program(0, 2, TICK_1MS);
	advance(5000000);
	outb(vm, 0x21, 0xff);
	apic_write32(cpu, APIC_SPIV, 0x1ff);
	apic_write32(cpu, APIC_LVT0, 0x10700);
	ioapic_entry(vm, 2, 0x30);
	for (unsigned i = 0; i < 3; i++) {
		advance(1000000);
		assert_int_equal(irqchip_get_interrupt(cpu), 0x30);
		apic_write32(cpu, APIC_EOI, 0);
	}
}

static void one_shot(void **state)
{
	program(0, 0, TICK_1MS);
	advance(900000);
	assert_int_equal(serve(), 0);
	advance(200000);
	assert_int_equal(serve(), 1);
	advance(100000000);
	assert_int_equal(serve(), 0);
}

static void counts(void **state)
{
	program(2, 0, 0xffff);
	outb(vm, 0x61, 1);
	advance(1000000);
	assert_in_range(read_count(2), 0xffff - 1195, 0xffff - 1192);
	outb(vm, 0x43, 0xe8); /* read back status of channel 2 */
	assert_int_equal(inb(vm, 0x42), 0x30);
	program(2, 3, 1000);
	advance(100000); /* 119 ticks, two a time */
	assert_in_range(read_count(2), 1000 - 2 * 120, 1000 - 2 * 118);
	program(2, 2, 0); /* 65536 */
	assert_int_equal(read_count(2), 0);
	/* one byte only */
	outb(vm, 0x43, 0x90);
	outb(vm, 0x42, 0x12);
	assert_int_equal(inb(vm, 0x42), 0x12);
	outb(vm, 0x43, 0xa0);
	outb(vm, 0x42, 0x12);
	assert_int_equal(inb(vm, 0x42), 0x12);
}

/* How kernels calibrate: mode 0 on channel 2, watch its output in port 61h. */
static void speaker_port(void **state)
{
	outb(vm, 0x61, 0x01);
	program(2, 0, 5 * TICK_1MS);
	assert_int_equal(inb(vm, 0x61) & 0x23, 0x01);
	advance(4900000);
	assert_int_equal(inb(vm, 0x61) & 0x20, 0);
	advance(200000);
	assert_int_equal(inb(vm, 0x61) & 0x20, 0x20);
	outb(vm, 0x61, 0x02);
	assert_int_equal(inb(vm, 0x61) & 0x03, 0x02);
}

static void state_round_trip(void **state)
{
	struct kvm_pit_state2 a, b;

	program(0, 2, TICK_1MS);
	program(2, 3, 77);
	outb(vm, 0x61, 3);
	pit_get(vm, &a);
	assert_int_equal(a.channels[0].count, TICK_1MS);
	assert_int_equal(a.flags, KVM_PIT_FLAGS_SPEAKER_DATA_ON);
	assert_int_equal(pit_set(vm, &a), 0);
	pit_get(vm, &b);
	assert_memory_equal(&a, &b, sizeof(a));
	advance(1100000);
	assert_int_equal(serve(), 1);
	a.flags |= KVM_PIT_FLAGS_HPET_LEGACY;
	assert_int_equal(pit_set(vm, &a), 0);
	advance(10000000);
	assert_int_equal(serve(), 0);
	a.flags = 0;
	assert_int_equal(pit_set(vm, &a), 0);
	advance(1100000);
	assert_int_equal(serve(), 1);
}

static void hostile_state(void **state)
{
	struct kvm_pit_state2 s;

	memset(&s, 0xff, sizeof(s));
	s.flags = 0;
	for (unsigned mode = 0; mode < 8; mode++) {
		for (unsigned i = 0; i < 3; i++) {
			s.channels[i].mode = mode;
			s.channels[i].count = mode & 1 ? 0 : ~0u;
		}
		assert_int_equal(pit_set(vm, &s), 0);
		advance(1000000);
		for (unsigned port = 0x40; port < 0x44; port++)
			inb(vm, port);
		outb(vm, 0x43, 0xc0 | 0x0e);
		inb(vm, 0x61);
	}
}

static void nmi_watchdog(void **state)
{
	apic_write32(cpu, APIC_SPIV, 0x1ff);
	apic_write32(cpu, APIC_LVT0, 0x400);
	program(0, 2, TICK_1MS);
	advance(1100000);
	assert_int_equal(atomic_load(&cpu->arch.nmi_pending), 1);
}

int main(void)
{
	const struct CMUnitTest tests[] = {
#define T(f) cmocka_unit_test_setup_teardown(f, setup, teardown)
		T(periodic_tick), T(late_ticks_are_reinjected), T(or_lost_if_so_wished),
		T(tick_through_ioapic), T(one_shot), T(counts), T(speaker_port), T(state_round_trip),
		T(hostile_state), T(nmi_watchdog),
	};

	return cmocka_run_group_tests_name("irqchip_pit", tests, NULL, NULL);
}

/* SPDX-License-Identifier: MIT */
/* Local APIC: registers, IPIs, maps, modes, timer, PV EOI. */
#include "irqchip_harness.h"

static struct vm *vm;
static struct vcpu *cpu;

static struct vm *enabled_vm(unsigned n)
{
	struct vm *v = make_vm(n, false);

	for (unsigned i = 0; i < n; i++)
		apic_write32(v->vcpus[i], APIC_SPIV, 0x1ff);
	return v;
}

static int setup(void **state)
{
	vm = enabled_vm(4);
	cpu = vm->vcpus[0];
	return 0;
}

static int teardown(void **state)
{
	no_x2apic = false;
	free_vm(vm);
	return 0;
}

static void ipi(struct vcpu *from, u32 dest, u32 low)
{
	apic_write32(from, APIC_ICR2, dest << 24);
	apic_write32(from, APIC_ICR, low);
}

static bool has_request(struct vcpu *v, unsigned req)
{
	return atomic_load(&v->requests) & BIT_ULL(req);
}

static void reset_values(void **state)
{
	struct vm *v = make_vm(2, false);

	assert_int_equal(lapic_get_base(v->vcpus[0]), 0xfee00900);
	assert_int_equal(lapic_get_base(v->vcpus[1]), 0xfee00800);
	assert_int_equal(apic_read32(v->vcpus[1], APIC_ID), 1 << 24);
	assert_int_equal(apic_read32(v->vcpus[0], APIC_LVR), 0x50014);
	assert_int_equal(apic_read32(v->vcpus[0], APIC_LVT0), 0x700);
	assert_int_equal(apic_read32(v->vcpus[1], APIC_LVT0), 0x10000);
	assert_int_equal(apic_read32(v->vcpus[0], APIC_DFR), 0xffffffff);
	assert_int_equal(apic_read32(v->vcpus[0], APIC_SPIV), 0xff);
	/* LVT writes keep the mask while the APIC is off */
	apic_write32(v->vcpus[0], APIC_LVTT, 0x30);
	assert_int_equal(apic_read32(v->vcpus[0], APIC_LVTT), 0x10030);
	free_vm(v);
}

static void priorities(void **state)
{
	ipi(cpu, 0, 0x4041);
	ipi(cpu, 0, 0x4043);
	ipi(cpu, 0, 0x4051);
	assert_int_equal(apic_read32(cpu, APIC_IRR + 0x20), 0x2000a);
	assert_int_equal(irqchip_get_interrupt(cpu), 0x51);
	assert_int_equal(apic_read32(cpu, APIC_PPR), 0x50);
	assert_false(irqchip_has_interrupt(cpu));
	apic_write32(cpu, APIC_EOI, 0);
	assert_int_equal(irqchip_get_interrupt(cpu), 0x43);
	apic_write32(cpu, APIC_EOI, 0);
	lapic_set_tpr(cpu, 4);
	assert_int_equal(lapic_get_tpr(cpu), 4);
	assert_false(irqchip_has_interrupt(cpu));
	atomic_store(&cpu->requests, 0);
	lapic_set_tpr(cpu, 3);
	assert_true(has_request(cpu, KVM_REQ_EVENT));
	assert_int_equal(irqchip_get_interrupt(cpu), 0x41);
}

static void shorthands_and_modes(void **state)
{
	ipi(cpu, 0, 0x40000 | 0x31);
	assert_int_equal(irqchip_get_interrupt(cpu), 0x31);
	ipi(cpu, 0, 0xc0000 | 0x32);
	assert_false(irqchip_has_interrupt(cpu));
	for (unsigned i = 1; i < 4; i++)
		assert_int_equal(irqchip_get_interrupt(vm->vcpus[i]), 0x32);
	ipi(cpu, 0, 0x80000 | 0x400);
	for (unsigned i = 0; i < 4; i++)
		assert_int_equal(atomic_load(&vm->vcpus[i]->arch.nmi_pending), 1);
	/* INIT, its de-assert, SIPI */
	ipi(cpu, 2, 0xc500);
	ipi(cpu, 2, 0x8500);
	assert_int_equal(atomic_load(&vm->vcpus[2]->arch.apic_pending_events), APIC_EVENT_INIT);
	ipi(cpu, 2, 0x69a);
	assert_int_equal(atomic_load(&vm->vcpus[2]->arch.sipi_vector), 0x9a);
	assert_int_equal(atomic_load(&vm->vcpus[2]->arch.apic_pending_events),
			 APIC_EVENT_INIT | APIC_EVENT_SIPI);
	assert_int_equal(apic_read32(cpu, APIC_ICR), 0x69a);
}

static void logical_flat_and_cluster(void **state)
{
	for (unsigned i = 0; i < 4; i++)
		apic_write32(vm->vcpus[i], APIC_LDR, 1u << (24 + i));
	ipi(cpu, 0x0a, 0x800 | 0x33);
	assert_false(irqchip_has_interrupt(cpu));
	assert_int_equal(irqchip_get_interrupt(vm->vcpus[1]), 0x33);
	assert_int_equal(irqchip_get_interrupt(vm->vcpus[3]), 0x33);
	/* lowest priority picks by vector: 0x35 % 2 -> second of {1, 3} */
	ipi(cpu, 0x0a, 0x900 | 0x45);
	assert_true(irqchip_has_interrupt(vm->vcpus[3]));
	assert_false(irqchip_has_interrupt(vm->vcpus[1]));
	for (unsigned i = 0; i < 4; i++) {
		apic_write32(vm->vcpus[i], APIC_DFR, 0);
		apic_write32(vm->vcpus[i], APIC_LDR, (i / 2) << 28 | 1u << (24 + i % 2));
	}
	ipi(cpu, 0x12, 0x800 | 0x53);
	assert_int_equal(irqchip_get_interrupt(vm->vcpus[3]), 0x53);
	assert_false(irqchip_has_interrupt(vm->vcpus[2]));
	ipi(cpu, 0xff, 0x800 | 0x63);
	assert_int_equal(irqchip_get_interrupt(vm->vcpus[2]), 0x63);
}

/* Two APICs with one id, or mixed logical modes: the scan delivers to all that match. */
static void aliases_and_mixtures(void **state)
{
	apic_write32(vm->vcpus[1], APIC_ID, 2 << 24);
	ipi(cpu, 2, 0x34);
	assert_int_equal(irqchip_get_interrupt(vm->vcpus[1]), 0x34);
	assert_int_equal(irqchip_get_interrupt(vm->vcpus[2]), 0x34);
	assert_int_equal(lapic_send_pv_ipi(vm, 1, 0, 0, 0x44, true), -EOPNOTSUPP);
	apic_write32(vm->vcpus[1], APIC_ID, 1 << 24);
	assert_int_equal(lapic_send_pv_ipi(vm, 3, 0, 0, 0x54, true), 2);
	apic_write32(vm->vcpus[1], APIC_LDR, 3u << 24);
	ipi(cpu, 2, 0x800 | 0x64);
	assert_int_equal(irqchip_get_interrupt(vm->vcpus[1]), 0x64);
}

static void x2apic_modes(void **state)
{
	u64 val;

	assert_int_equal(lapic_set_base(cpu, 0xfee00400, false), 1);
	assert_int_equal(lapic_set_base(cpu, 0xfee00900 | BIT_ULL(40), false), 1);
	assert_int_equal(lapic_set_base(cpu, 0xfee00901, false), 1);
	assert_int_equal(lapic_set_base(cpu, 0xfee00d00, false), 0);
	assert_int_equal(lapic_set_base(cpu, 0xfee00900, false), 1);
	assert_int_equal(lapic_x2apic_read(cpu, 0x802, &val), 0);
	assert_int_equal(val, 0);
	assert_int_equal(lapic_x2apic_read(cpu, 0x80d, &val), 0);
	assert_int_equal(val, 1);
	assert_int_equal(lapic_x2apic_read(cpu, 0x80e, &val), 1);
	assert_int_equal(lapic_x2apic_read(cpu, 0x831, &val), 1);
	assert_int_equal(lapic_x2apic_read(cpu, 0x80b, &val), 1);
	assert_int_equal(lapic_x2apic_read(cpu, 0x8ff, &val), 1);
	assert_int_equal(lapic_x2apic_write(cpu, 0x802, 0), 1);
	assert_int_equal(lapic_x2apic_write(cpu, 0x80d, 0), 1);
	assert_int_equal(lapic_x2apic_write(cpu, 0x828, 1), 1);
	assert_int_equal(lapic_x2apic_write(cpu, 0x828, 0), 0);
	assert_int_equal(lapic_x2apic_write(cpu, 0x808, 1ull << 32), 1);
	assert_int_equal(lapic_x2apic_write(cpu, 0x830, BIT_ULL(13)), 1);
	assert_int_equal(lapic_x2apic_write(cpu, 0x83f, 0x144), 1);
	assert_int_equal(lapic_x2apic_write(cpu, 0x83f, 0x44), 0);
	assert_int_equal(irqchip_get_interrupt(cpu), 0x44);
	assert_int_equal(lapic_x2apic_write(cpu, 0x830, 3ull << 32 | 0x1055), 0);
	assert_int_equal(lapic_x2apic_read(cpu, 0x830, &val), 0);
	assert_int_equal(val, 3ull << 32 | 0x55);
	assert_int_equal(irqchip_get_interrupt(vm->vcpus[3]), 0x55);
	/* the page is a hole now */
	assert_true(lapic_mmio_match(cpu, 0xfee00020));
	assert_int_equal(apic_read32(cpu, APIC_ID), 0xffffffff);
	vm->arch.disabled_quirks = KVM_X86_QUIRK_LAPIC_MMIO_HOLE;
	assert_false(lapic_mmio_match(cpu, 0xfee00020));
	/* off, and from there not straight back */
	assert_int_equal(lapic_set_base(cpu, 0xfee00100, false), 0);
	assert_int_equal(lapic_x2apic_read(cpu, 0x802, &val), 1);
	assert_int_equal(lapic_set_base(cpu, 0xfee00d00, false), 1);
	assert_int_equal(lapic_set_base(cpu, 0xfee00900, false), 0);
	no_x2apic = true;
	assert_int_equal(lapic_set_base(cpu, 0xfee00d00, true), 1);
}

static void many_cpus_in_clusters(void **state)
{
	struct vm *v = make_vm(280, false);

	v->arch.x2apic_format = X2APIC_API_32BIT_IDS;
	for (unsigned i = 0; i < 280; i++) {
		assert_int_equal(lapic_set_base(v->vcpus[i], 0xfee00c00 | (i ? 0 : 0x100), true), 0);
		assert_int_equal(lapic_x2apic_write(v->vcpus[i], 0x80f, 0x1ff), 0);
	}
	/* cluster 17: ids 272 .. 279 */
	assert_int_equal(lapic_x2apic_write(v->vcpus[0], 0x830, 17ull << 48 | 0xff81ull << 32 | 0x844), 0);
	for (unsigned i = 0; i < 280; i++)
		assert_int_equal(irqchip_has_interrupt(v->vcpus[i]), i == 272 || i == 279);
	assert_int_equal(lapic_send_pv_ipi(v, ~0ull, ~0ull, 200, 0x66, true), 80);
	assert_int_equal(lapic_send_pv_ipi(v, 1, 1, 270, 0x67, false), 1);
	assert_int_equal(lapic_send_pv_ipi(v, 1, 1, 0xf0000000, 0x67, true), 0);
	assert_int_equal(lapic_send_pv_ipi(v, 1, 1, 0, 0x867, true), -22);
	lapic_pv_kick(v, 279);
	assert_true(atomic_load(&v->vcpus[279]->arch.pv_unhalted));
	assert_int_equal(lapic_x2apic_write(v->vcpus[0], 0x830, 0xffffffffull << 32 | 0x77), 0);
	for (unsigned i = 0; i < 280; i++)
		assert_int_equal(apic_highest_vector(v->vcpus[i]->arch.apic, APIC_IRR), 0x77);
	free_vm(v);
}

static void hotplugged_cpu_is_found(void **state)
{
	struct vcpu *last = vm->vcpus[3];

	atomic_store(&vm->nr_vcpus, 3);
	ipi(cpu, 3, 0x38);
	assert_false(irqchip_has_interrupt(last));
	atomic_store(&vm->nr_vcpus, 4);
	ipi(cpu, 3, 0x38);
	assert_int_equal(irqchip_get_interrupt(last), 0x38);
}

static void state_round_trip(void **state)
{
	struct kvm_lapic_state a, b;

	apic_write32(cpu, APIC_LVT1, 0x400);
	ipi(cpu, 0, 0x4071);
	lapic_get_state(cpu, &a);
	assert_int_equal(lapic_set_state(cpu, &a), 0);
	lapic_get_state(cpu, &b);
	assert_memory_equal(&a, &b, sizeof(a));
	assert_int_equal(irqchip_get_interrupt(cpu), 0x71);
}

/* As the xapic_state selftest checks it. */
static void x2apic_id_format(void **state)
{
	struct vcpu *v = vm->vcpus[3];
	struct kvm_lapic_state s;

	assert_int_equal(lapic_set_base(v, 0xfee00c00, true), 0);
	lapic_get_state(v, &s);
	assert_int_equal(state_reg(&s, APIC_ID), 3 << 24);
	set_state_reg(&s, APIC_ID, 7 << 24);
	set_state_reg(&s, APIC_LDR, 0x55);
	assert_int_equal(lapic_set_state(v, &s), 0);
	lapic_get_state(v, &s);
	assert_int_equal(state_reg(&s, APIC_ID), 3 << 24);
	assert_int_equal(state_reg(&s, APIC_LDR), 8);
	vm->arch.x2apic_format = X2APIC_API_32BIT_IDS;
	lapic_get_state(v, &s);
	assert_int_equal(state_reg(&s, APIC_ID), 3);
	set_state_reg(&s, APIC_ID, 7);
	assert_int_equal(lapic_set_state(v, &s), -EINVAL);
	assert_int_equal(lapic_set_base(v, 0xfee00800, true), 0);
	lapic_get_state(v, &s);
	assert_int_equal(state_reg(&s, APIC_ID), 3 << 24);
}

static void hostile_state(void **state)
{
	struct kvm_lapic_state s;

	memset(&s, 0xff, sizeof(s));
	assert_int_equal(lapic_set_state(cpu, &s), 0);
	advance(1000000000);
	lapic_timer_fire(cpu);
	irqchip_get_interrupt(cpu);
	apic_write32(cpu, APIC_EOI, 0);
	vm->arch.apic_bus_ns = ~0ull >> 1;
	apic_write32(cpu, APIC_LVTT, 0x20031);
	apic_write32(cpu, APIC_TMICT, 0xffffffff);
	apic_read32(cpu, APIC_TMCCT);
	memset(&s, 0, sizeof(s));
	assert_int_equal(lapic_set_state(cpu, &s), 0);
}

/* ---- timer ---- */

static unsigned timer_interrupts(u64 step, unsigned steps)
{
	unsigned n = 0;

	for (unsigned i = 0; i < steps; i++) {
		advance(step);
		if (vcpu_check_request(cpu, KVM_REQ_APIC_TIMER))
			lapic_timer_fire(cpu);
		if (irqchip_get_interrupt(cpu) == 0xec) {
			n++;
			apic_write32(cpu, APIC_EOI, 0);
		}
	}
	return n;
}

static void one_shot(void **state)
{
	apic_write32(cpu, APIC_TDCR, 3); /* 16 */
	apic_write32(cpu, APIC_LVTT, 0xec);
	apic_write32(cpu, APIC_TMICT, 100000); /* 1.6 ms */
	assert_int_equal(lapic_timer_deadline(cpu), fake_now + 1600000);
	advance(800000);
	assert_int_equal(apic_read32(cpu, APIC_TMCCT), 50000);
	apic_write32(cpu, APIC_TDCR, 0xb); /* 1: the rest of the count runs faster */
	assert_int_equal(apic_read32(cpu, APIC_TMCCT), 50000);
	assert_int_equal(lapic_timer_deadline(cpu), fake_now + 50000);
	assert_int_equal(timer_interrupts(10000, 100), 1);
	assert_int_equal(apic_read32(cpu, APIC_TMCCT), 0);
	assert_int_equal(lapic_timer_deadline(cpu), ~0ull);
	/* masked: counts, but nobody hears */
	apic_write32(cpu, APIC_LVTT, 0x100ec);
	apic_write32(cpu, APIC_TMICT, 100000);
	assert_int_equal(timer_interrupts(10000, 100), 0);
}

static void periodic(void **state)
{
	apic_write32(cpu, APIC_TDCR, 0xb);
	apic_write32(cpu, APIC_LVTT, 0x200ec);
	apic_write32(cpu, APIC_TMICT, 1000000);
	assert_int_equal(timer_interrupts(100000, 100), 10);
	assert_int_equal(timer_interrupts(3500000, 2), 2); /* late ones are dropped */
	assert_int_equal(timer_interrupts(100000, 100), 10);
	apic_write32(cpu, APIC_TMICT, 0);
	assert_int_equal(timer_interrupts(100000, 100), 0);
	apic_write32(cpu, APIC_TMICT, 10); /* too fast: 200 us */
	assert_int_equal(timer_interrupts(10000, 100), 5);
}

static void tsc_deadline(void **state)
{
	lapic_set_tscdeadline(cpu, fake_now + 100); /* wrong mode: ignored */
	assert_int_equal(lapic_get_tscdeadline(cpu), 0);
	apic_write32(cpu, APIC_LVTT, 0x400ec);
	lapic_set_tscdeadline(cpu, fake_now + 100000);
	assert_int_equal(lapic_get_tscdeadline(cpu), fake_now + 100000);
	apic_write32(cpu, APIC_TMICT, 5);
	assert_int_equal(apic_read32(cpu, APIC_TMICT), 0);
	assert_int_equal(timer_interrupts(10000, 100), 1);
	assert_int_equal(lapic_get_tscdeadline(cpu), 0);
	lapic_set_tscdeadline(cpu, 1); /* long ago: now */
	assert_int_equal(timer_interrupts(0, 1), 1);
	lapic_set_tscdeadline(cpu, fake_now + 100000);
	lapic_set_tscdeadline(cpu, 0);
	assert_int_equal(timer_interrupts(10000, 100), 0);
	/* a change of mode disarms */
	lapic_set_tscdeadline(cpu, fake_now + 100000);
	apic_write32(cpu, APIC_LVTT, 0xec);
	assert_int_equal(timer_interrupts(10000, 100), 0);
}

static void timer_survives_restore(void **state)
{
	struct kvm_lapic_state s;

	apic_write32(cpu, APIC_TDCR, 0xb);
	apic_write32(cpu, APIC_LVTT, 0x200ec);
	apic_write32(cpu, APIC_TMICT, 1000000);
	advance(400000);
	lapic_get_state(cpu, &s);
	assert_int_equal(state_reg(&s, APIC_TMCCT), 600000);
	lapic_reset(cpu, false);
	assert_int_equal(lapic_timer_deadline(cpu), ~0ull);
	assert_int_equal(lapic_set_state(cpu, &s), 0);
	assert_int_equal(lapic_timer_deadline(cpu), fake_now + 600000);
	assert_int_equal(timer_interrupts(100000, 16), 2);
}

/* ---- PV EOI ---- */

static void pv_eoi(void **state)
{
	assert_int_equal(lapic_set_pv_eoi(cpu, 0x13), 1);
	assert_int_equal(lapic_set_pv_eoi(cpu, 0x11), 0);
	ipi(cpu, 0, 0x4041);
	assert_int_equal(irqchip_get_interrupt(cpu), 0x41);
	lapic_sync_pv_eoi_to_guest(cpu);
	assert_int_equal(guest_memory[0x10], 1);
	/* still in service */
	lapic_sync_pv_eoi_from_guest(cpu);
	assert_int_equal(guest_memory[0x10], 0);
	assert_int_equal(apic_highest_vector(cpu->arch.apic, APIC_ISR), 0x41);
	lapic_sync_pv_eoi_to_guest(cpu);
	guest_memory[0x10] = 0; /* the guest's EOI */
	ipi(cpu, 0, 0x4042);
	assert_true(irqchip_has_interrupt(cpu)); /* a halted CPU must wake up for it */
	lapic_sync_pv_eoi_from_guest(cpu);
	assert_int_equal(irqchip_get_interrupt(cpu), 0x42);
	/* more waiting: the EOI must be a real one */
	ipi(cpu, 0, 0x4043);
	lapic_sync_pv_eoi_to_guest(cpu);
	assert_int_equal(guest_memory[0x10], 0);
}

/* Switched off right after the guest has made its EOI by the byte: that EOI counts. */
static void pv_eoi_off_with_eoi_owed(void **state)
{
	struct memslots slots = { 0 };

	assert_int_equal(lapic_set_pv_eoi(cpu, 0x11), 0);
	ipi(cpu, 0, 0x4041);
	assert_int_equal(irqchip_get_interrupt(cpu), 0x41);
	lapic_sync_pv_eoi_to_guest(cpu);
	guest_memory[0x10] = 0;
	cpu->slots = &slots; /* in guest mode: the MSR is written by the guest */
	assert_int_equal(lapic_set_pv_eoi(cpu, 0), 0);
	cpu->slots = NULL;
	assert_int_equal(apic_highest_vector(cpu->arch.apic, APIC_ISR), -1);
}

static void lint_and_watchdog(void **state)
{
	apic_write32(vm->vcpus[1], APIC_LVT0, 0x400);
	assert_int_equal(atomic_load(&vm->arch.apic_maps->lvt0_nmi), 1);
	apic_write32(vm->vcpus[1], APIC_LVT0, 0x10400);
	assert_int_equal(atomic_load(&vm->arch.apic_maps->lvt0_nmi), 0);
	apic_write32(vm->vcpus[1], APIC_LVT1, 0xffffffff);
	assert_int_equal(apic_read32(vm->vcpus[1], APIC_LVT1), 0x1f7ff);
	apic_write32(vm->vcpus[1], APIC_SPIV, 0xff);
	ipi(cpu, 1, 0x41); /* software-disabled: dropped */
	assert_false(irqchip_has_interrupt(vm->vcpus[1]));
	ipi(cpu, 1, 0x400); /* but not NMIs */
	assert_int_equal(atomic_load(&vm->vcpus[1]->arch.nmi_pending), 1);
}

int main(void)
{
	const struct CMUnitTest tests[] = {
#define T(f) cmocka_unit_test_setup_teardown(f, setup, teardown)
		T(reset_values), T(priorities), T(shorthands_and_modes), T(logical_flat_and_cluster),
		T(aliases_and_mixtures), T(x2apic_modes), T(many_cpus_in_clusters),
		T(hotplugged_cpu_is_found), T(state_round_trip), T(x2apic_id_format), T(hostile_state),
		T(one_shot), T(periodic), T(tsc_deadline), T(timer_survives_restore), T(pv_eoi),
		T(pv_eoi_off_with_eoi_owed),
		T(lint_and_watchdog),
	};

	return cmocka_run_group_tests_name("irqchip_lapic", tests, NULL, NULL);
}

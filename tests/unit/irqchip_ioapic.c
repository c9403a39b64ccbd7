/* SPDX-License-Identifier: MIT */
/* I/O APIC, MSIs, routing rules. */
#include "irqchip_harness.h"

#define ENTRY_LEVEL BIT_ULL(15)
#define ENTRY_MASKED BIT_ULL(16)
#define ENTRY_REMOTE_IRR BIT_ULL(14)

static struct vm *vm;
static struct vcpu *cpu;

static int setup(void **state)
{
	vm = make_vm(2, false);
	for (unsigned i = 0; i < 2; i++)
		apic_write32(vm->vcpus[i], APIC_SPIV, 0x1ff);
	cpu = vm->vcpus[0];
	outb(vm, 0x21, 0xff);
	outb(vm, 0xa1, 0xff);
	return 0;
}

static int teardown(void **state)
{
	free_vm(vm);
	return 0;
}

static int set(unsigned irq, int level)
{
	return vm_set_irq(vm, KVM_IRQ_SOURCE_USERSPACE, irq, level);
}

static u32 reg(u32 index)
{
	u32 val;

	ioapic_mmio_write(vm, IOAPIC_DEFAULT_BASE, &index, 4);
	ioapic_mmio_read(vm, IOAPIC_DEFAULT_BASE + 0x10, &val, 4);
	return val;
}

static void registers(void **state)
{
	u32 val = 0x0f000000, index = 0;

	assert_int_equal(reg(1), 0x00170011);
	assert_int_equal(reg(0x10), 0x10000);
	assert_int_equal(reg(0x3f), 0);
	assert_int_equal(reg(0x40), 0xffffffff);
	assert_int_equal(reg(5), 0xffffffff);
	ioapic_mmio_write(vm, IOAPIC_DEFAULT_BASE, &index, 4);
	ioapic_mmio_write(vm, IOAPIC_DEFAULT_BASE + 0x10, &val, 4);
	assert_int_equal(reg(0), 0x0f000000);
	assert_int_equal(reg(2), 0x0f000000);
	assert_true(ioapic_mmio_match(vm, IOAPIC_DEFAULT_BASE + 0xff));
	assert_false(ioapic_mmio_match(vm, IOAPIC_DEFAULT_BASE + 0x100));
}

static void edge(void **state)
{
	ioapic_entry(vm, 4, 0x34);
	assert_true(set(4, 1) > 0);
	assert_int_equal(irqchip_get_interrupt(cpu), 0x34);
	assert_int_equal(set(4, 1), 0); /* no new edge */
	set(4, 0);
	apic_write32(cpu, APIC_EOI, 0);
	assert_false(irqchip_has_interrupt(cpu));
	assert_true(set(4, 1) > 0);
	assert_int_equal(irqchip_get_interrupt(cpu), 0x34);
}

static void masked_edge_waits_for_a_new_one(void **state)
{
	ioapic_entry(vm, 4, 0x34 | ENTRY_MASKED);
	assert_true(set(4, 1) < 0);
	ioapic_entry(vm, 4, 0x34);
	assert_false(irqchip_has_interrupt(cpu));
}

static void level_until_lowered(void **state)
{
	ioapic_entry(vm, 10, 0x5a | ENTRY_LEVEL);
	assert_true(set(10, 1) > 0);
	assert_true(ioapic_read_entry(vm, 10) & ENTRY_REMOTE_IRR);
	assert_int_equal(irqchip_get_interrupt(cpu), 0x5a);
	assert_true(set(10, 1) < 0);
	assert_false(irqchip_has_interrupt(cpu));
	apic_write32(cpu, APIC_EOI, 0);
	assert_int_equal(nr_acks, 1);
	assert_int_equal(last_ack_chip, KVM_IRQCHIP_IOAPIC);
	assert_int_equal(last_ack_pin, 10);
	assert_int_equal(irqchip_get_interrupt(cpu), 0x5a); /* still high */
	set(10, 0);
	apic_write32(cpu, APIC_EOI, 0);
	assert_false(irqchip_has_interrupt(cpu));
	assert_false(ioapic_read_entry(vm, 10) & ENTRY_REMOTE_IRR);
}

static void level_masked_then_opened(void **state)
{
	ioapic_entry(vm, 11, 0x5b | ENTRY_LEVEL | ENTRY_MASKED);
	set(11, 1);
	assert_false(irqchip_has_interrupt(cpu));
	ioapic_entry(vm, 11, 0x5b | ENTRY_LEVEL);
	assert_int_equal(irqchip_get_interrupt(cpu), 0x5b);
	/* to edge and back: the EOI of systems without an EOI register */
	ioapic_entry(vm, 11, 0x5b | ENTRY_MASKED);
	assert_false(ioapic_read_entry(vm, 11) & ENTRY_REMOTE_IRR);
}

static void resampler_is_asked_first(void **state)
{
	has_resampler = true;
	ioapic_entry(vm, 11, 0x5b | ENTRY_LEVEL | ENTRY_MASKED);
	set(11, 1);
	ioapic_entry(vm, 11, 0x5b | ENTRY_LEVEL);
	has_resampler = false;
	assert_int_equal(nr_acks, 1);
	assert_false(irqchip_has_interrupt(cpu));
	set(11, 0);
	assert_true(set(11, 1) > 0);
}

static void storm_is_slowed_down(void **state)
{
	unsigned n = 0;

	ioapic_entry(vm, 10, 0x5a | ENTRY_LEVEL);
	set(10, 1);
	while (irqchip_get_interrupt(cpu) == 0x5a && n++ < 20000)
		apic_write32(cpu, APIC_EOI, 0);
	assert_int_equal(n, STORM_LIMIT);
	advance(STORM_DELAY_NS);
	assert_int_equal(irqchip_get_interrupt(cpu), 0x5a);
}

static void rtc_coalesces(void **state)
{
	ioapic_entry(vm, 8, 0x48);
	assert_true(set(8, 1) > 0);
	set(8, 0);
	assert_int_equal(set(8, 1), 0);
	assert_int_equal(irqchip_get_interrupt(cpu), 0x48);
	assert_int_equal(set(8, 1), 0);
	set(8, 0);
	apic_write32(cpu, APIC_EOI, 0);
	assert_true(set(8, 1) > 0);
}

static void destinations_and_modes(void **state)
{
	ioapic_entry(vm, 5, 0x55 | 1ull << 56);
	set(5, 1);
	assert_int_equal(irqchip_get_interrupt(vm->vcpus[1]), 0x55);
	assert_false(irqchip_has_interrupt(cpu));
	ioapic_entry(vm, 6, 0x400 | 1ull << 56);
	set(6, 1);
	assert_int_equal(atomic_load(&vm->vcpus[1]->arch.nmi_pending), 1);
	ioapic_entry(vm, 7, 0x500 | 1ull << 56);
	set(7, 1);
	assert_int_equal(atomic_load(&vm->vcpus[1]->arch.apic_pending_events), APIC_EVENT_INIT);
	ioapic_entry(vm, 9, 0x59 | 0xffull << 56);
	assert_int_equal(set(9, 1), 2);
}

static void state_round_trip(void **state)
{
	struct kvm_irqchip a = { .chip_id = KVM_IRQCHIP_IOAPIC }, b = a;

	ioapic_entry(vm, 10, 0x5a | ENTRY_LEVEL);
	ioapic_entry(vm, 4, 0x34);
	set(4, 1);
	set(10, 1);
	assert_int_equal(irqchip_get_state(vm, &a), 0);
	assert_int_equal(a.chip.ioapic.irr, BIT(10)); /* the edge was delivered */
	assert_int_equal(irqchip_set_state(vm, &a), 0);
	assert_int_equal(irqchip_get_state(vm, &b), 0);
	assert_memory_equal(&a, &b, sizeof(a));
}

static void hostile_state(void **state)
{
	struct kvm_irqchip a = { .chip_id = KVM_IRQCHIP_IOAPIC };

	memset(&a.chip, 0xff, sizeof(a.chip));
	assert_int_equal(irqchip_set_state(vm, &a), 0);
	assert_false(ioapic_mmio_match(vm, IOAPIC_DEFAULT_BASE));
	reg(0x10);
	a.chip.ioapic.ioregsel = 0xffffffff;
	memset(a.chip.ioapic.redirtbl, 0, sizeof(a.chip.ioapic.redirtbl));
	assert_int_equal(irqchip_set_state(vm, &a), 0);
	assert_int_equal(reg(0x10) & 0xff, 0);
}

static void msi(void **state)
{
	vm->arch.x2apic_format = X2APIC_API_32BIT_IDS;
	assert_int_equal(arch_send_msi(vm, 0xfee00000, 1, 0x41), -EINVAL);
	assert_int_equal(arch_send_msi(vm, 0xfee01000, 0, 0x41), 1);
	assert_int_equal(irqchip_get_interrupt(vm->vcpus[1]), 0x41);
	assert_int_equal(arch_send_msi(vm, 0xfee01000, 0x100, 0x41), 0); /* id 257: nobody */
	vm->arch.x2apic_format = 0;
	assert_int_equal(arch_send_msi(vm, 0xfee01000, 0x101, 0x42), 1);
}

static void routing_rules(void **state)
{
	struct kvm_irq_routing_entry e = { .type = KVM_IRQ_ROUTING_IRQCHIP };

	assert_int_equal(arch_check_routing_entry(vm, &e), 0);
	e.u.irqchip.pin = 8;
	assert_int_equal(arch_check_routing_entry(vm, &e), -EINVAL);
	e.u.irqchip.irqchip = KVM_IRQCHIP_IOAPIC;
	assert_int_equal(arch_check_routing_entry(vm, &e), 0);
	e.u.irqchip.pin = 24;
	assert_int_equal(arch_check_routing_entry(vm, &e), -EINVAL);
	e.u.irqchip.irqchip = 3;
	assert_int_equal(arch_check_routing_entry(vm, &e), -EINVAL);
	e.type = 77;
	assert_int_equal(arch_check_routing_entry(vm, &e), -EINVAL);
	assert_int_equal(irqchip_create(vm), -EEXIST);
}

/* Userspace IOAPIC: only EOIs of level-triggered routes of its pins go there. */
static void split_eoi(void **state)
{
	struct vm *split = make_vm(1, true);
	struct vcpu *v = split->vcpus[0];
	struct kvm_irq_routing_entry e = { .gsi = 5, .type = KVM_IRQ_ROUTING_MSI };

	apic_write32(v, APIC_SPIV, 0x1ff);
	assert_true(apic_read32(v, APIC_LVR) & APIC_LVR_DIRECTED_EOI);
	e.u.msi.address_lo = 0xfee00000;
	e.u.msi.data = 0x8061;
	assert_int_equal(arch_check_routing_entry(split, &e), 0);
	assert_int_equal(arch_set_routed_irq(split, &e, 0, 1), 1);
	assert_int_equal(irqchip_get_interrupt(v), 0x61);
	apic_write32(v, APIC_EOI, 0);
	assert_true(atomic_load(&v->requests) & BIT_ULL(KVM_REQ_IOAPIC_EOI));
	assert_int_equal(v->arch.pending_ioapic_eoi, 0x61);
	atomic_store(&v->requests, 0);
	e.u.msi.data = 0x61; /* an edge now */
	assert_int_equal(arch_set_routed_irq(split, &e, 0, 1), 1);
	assert_int_equal(irqchip_get_interrupt(v), 0x61);
	apic_write32(v, APIC_EOI, 0);
	assert_false(atomic_load(&v->requests) & BIT_ULL(KVM_REQ_IOAPIC_EOI));
	e.type = KVM_IRQ_ROUTING_IRQCHIP;
	assert_int_equal(arch_check_routing_entry(split, &e), -EINVAL);
	assert_int_equal(irqchip_create_split(split, 24), -EEXIST);
	assert_int_equal(irqchip_create_split(split, 4097), -EINVAL);
	free_vm(split);
}

int main(void)
{
	const struct CMUnitTest tests[] = {
#define T(f) cmocka_unit_test_setup_teardown(f, setup, teardown)
		T(registers), T(edge), T(masked_edge_waits_for_a_new_one), T(level_until_lowered),
		T(level_masked_then_opened), T(resampler_is_asked_first), T(storm_is_slowed_down), T(rtc_coalesces),
		T(destinations_and_modes), T(state_round_trip), T(hostile_state), T(msi),
		T(routing_rules), T(split_eoi),
	};

	return cmocka_run_group_tests_name("irqchip_ioapic", tests, NULL, NULL);
}

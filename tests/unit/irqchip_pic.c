/* SPDX-License-Identifier: MIT */
/* 8259 pair. */
#include "irqchip_harness.h"

static struct vm *vm;
static struct vcpu *cpu;

static int setup(void **state)
{
	vm = make_vm(1, false);
	cpu = vm->vcpus[0];
	pic_start(vm);
	return 0;
}

static int teardown(void **state)
{
	free_vm(vm);
	return 0;
}

static void set(unsigned irq, int level)
{
	vm_set_irq(vm, KVM_IRQ_SOURCE_USERSPACE, irq, level);
}

static void edge_is_taken_once(void **state)
{
	assert_false(irqchip_has_interrupt(cpu));
	set(4, 1);
	assert_true(irqchip_has_interrupt(cpu));
	assert_true(atomic_load(&cpu->requests) & BIT_ULL(KVM_REQ_EVENT));
	assert_int_equal(irqchip_get_interrupt(cpu), 0x24);
	assert_false(irqchip_has_interrupt(cpu));
	outb(vm, 0x20, 0x20);
	assert_int_equal(nr_acks, 1);
	assert_int_equal(last_ack_chip, KVM_IRQCHIP_PIC_MASTER);
	assert_int_equal(last_ack_pin, 4);
	assert_false(irqchip_has_interrupt(cpu)); /* still high, but edge-triggered */
	set(4, 0);
	set(4, 1);
	assert_int_equal(irqchip_get_interrupt(cpu), 0x24);
}

static void level_comes_back_until_lowered(void **state)
{
	outb(vm, 0x4d1, 0xff);
	assert_int_equal(inb(vm, 0x4d1), 0xde);
	outb(vm, 0x4d0, 0xff);
	assert_int_equal(inb(vm, 0x4d0), 0xf8);
	set(10, 1);
	assert_int_equal(irqchip_get_interrupt(cpu), 0x2a);
	assert_false(irqchip_has_interrupt(cpu));
	outb(vm, 0xa0, 0x20);
	assert_int_equal(last_ack_chip, KVM_IRQCHIP_PIC_SLAVE);
	assert_int_equal(last_ack_pin, 2);
	outb(vm, 0x20, 0x20);
	assert_int_equal(irqchip_get_interrupt(cpu), 0x2a);
	set(10, 0);
	outb(vm, 0xa0, 0x62); /* specific EOI */
	outb(vm, 0x20, 0x62);
	assert_false(irqchip_has_interrupt(cpu));
}

static void sources_share_a_level_line(void **state)
{
	outb(vm, 0x4d0, 0x20);
	vm_set_irq(vm, KVM_IRQ_SOURCE_USERSPACE, 5, 1);
	vm_set_irq(vm, KVM_IRQ_SOURCE_RESAMPLER, 5, 1);
	vm_set_irq(vm, KVM_IRQ_SOURCE_USERSPACE, 5, 0);
	assert_true(pic_output(vm));
	vm_set_irq(vm, KVM_IRQ_SOURCE_RESAMPLER, 5, 0);
	assert_false(pic_output(vm));
}

static void priorities_nest(void **state)
{
	set(5, 1);
	assert_int_equal(irqchip_get_interrupt(cpu), 0x25);
	set(6, 1);
	assert_false(irqchip_has_interrupt(cpu));
	set(3, 1);
	assert_int_equal(irqchip_get_interrupt(cpu), 0x23);
	outb(vm, 0x20, 0x20);
	outb(vm, 0x20, 0x0b);
	assert_int_equal(inb(vm, 0x20), 0x20); /* ISR: 5 */
	outb(vm, 0x20, 0x0a);
	assert_int_equal(inb(vm, 0x20), 0x40); /* IRR: 6 */
	outb(vm, 0x20, 0x20);
	assert_int_equal(irqchip_get_interrupt(cpu), 0x26);
}

static void special_mask_lets_lower_through(void **state)
{
	set(1, 1);
	assert_int_equal(irqchip_get_interrupt(cpu), 0x21);
	set(6, 1);
	assert_false(irqchip_has_interrupt(cpu));
	outb(vm, 0x21, 0x02);
	outb(vm, 0x20, 0x68);
	assert_int_equal(irqchip_get_interrupt(cpu), 0x26);
}

static void rotation(void **state)
{
	set(3, 1);
	assert_int_equal(irqchip_get_interrupt(cpu), 0x23);
	outb(vm, 0x20, 0xa0); /* rotate on EOI: 3 is lowest now */
	set(3, 0);
	set(3, 1);
	set(4, 1);
	set(1, 1);
	assert_int_equal(irqchip_get_interrupt(cpu), 0x24);
	outb(vm, 0x20, 0x20);
	assert_int_equal(irqchip_get_interrupt(cpu), 0x21);
	outb(vm, 0x20, 0x20);
	assert_int_equal(irqchip_get_interrupt(cpu), 0x23);
}

static void auto_eoi(void **state)
{
	outb(vm, 0x20, 0x11);
	outb(vm, 0x21, 0x20);
	outb(vm, 0x21, 4);
	outb(vm, 0x21, 3);
	set(0, 1);
	set(0, 0);
	assert_int_equal(irqchip_get_interrupt(cpu), 0x20);
	assert_int_equal(nr_acks, 1);
	set(0, 1);
	assert_int_equal(irqchip_get_interrupt(cpu), 0x20);
}

static void poll_and_spurious(void **state)
{
	set(7, 1);
	outb(vm, 0x20, 0x0c);
	assert_int_equal(inb(vm, 0x20), 0x87);
	assert_false(pic_output(vm));
	outb(vm, 0x20, 0x0c);
	assert_int_equal(inb(vm, 0x20), 7);
	assert_int_equal(pic_read_irq(vm), 0x27);
	outb(vm, 0x20, 0x0b);
	assert_int_equal(inb(vm, 0x20), 0); /* spurious: not in service */
}

static void mask_holds_back(void **state)
{
	outb(vm, 0x21, 0xff);
	assert_int_equal(inb(vm, 0x21), 0xff);
	set(1, 1);
	assert_false(pic_output(vm));
	outb(vm, 0x21, 0xfd);
	assert_true(pic_output(vm));
	/* LVT0 masked: not for this CPU */
	apic_write32(cpu, APIC_LVT0, APIC_LVT_MASKED);
	assert_false(irqchip_has_interrupt(cpu));
	/* APIC off: the INT pin is wired to the CPU */
	assert_int_equal(lapic_set_base(cpu, APIC_DEFAULT_BASE, true), 0);
	assert_true(irqchip_has_interrupt(cpu));
}

static void state_round_trip(void **state)
{
	struct kvm_irqchip a = { .chip_id = KVM_IRQCHIP_PIC_SLAVE }, b = a;

	set(12, 1);
	outb(vm, 0xa1, 0x41);
	assert_int_equal(irqchip_get_state(vm, &a), 0);
	assert_int_equal(a.chip.pic.irq_base, 0x28);
	assert_int_equal(a.chip.pic.imr, 0x41);
	assert_int_equal(a.chip.pic.irr, 0x10);
	pic_start(vm);
	assert_int_equal(irqchip_set_state(vm, &a), 0);
	assert_int_equal(irqchip_get_state(vm, &b), 0);
	assert_memory_equal(&a, &b, sizeof(a));
	assert_int_equal(irqchip_get_interrupt(cpu), 0x2c);
	a.chip_id = 3;
	assert_int_equal(irqchip_set_state(vm, &a), -EINVAL);
}

static void hostile_state(void **state)
{
	struct kvm_irqchip a = { .chip_id = KVM_IRQCHIP_PIC_MASTER };

	memset(&a.chip, 0xff, sizeof(a.chip));
	for (unsigned i = 0; i < 2; i++) {
		a.chip_id = i;
		assert_int_equal(irqchip_set_state(vm, &a), 0);
	}
	set(3, 1);
	assert_in_range(pic_read_irq(vm), 0, 255);
	inb(vm, 0x20);
	outb(vm, 0x21, 3);
	outb(vm, 0x20, 0x20);
}

static void port_sizes(void **state)
{
	u32 val = 0xffffffff;

	assert_true(irqchip_pio_read(vm, 0x20, &val, 2));
	assert_int_equal(val & 0xffff, 0);
	assert_false(irqchip_pio_read(vm, 0x21, &val, 2));
	assert_false(irqchip_pio_read(vm, 0x20, &val, 4));
	assert_true(irqchip_pio_match(vm, 0x4d1));
	assert_false(irqchip_pio_match(vm, 0x40)); /* no PIT yet */
	assert_false(irqchip_pio_match(vm, 0x22));
}

int main(void)
{
	const struct CMUnitTest tests[] = {
#define T(f) cmocka_unit_test_setup_teardown(f, setup, teardown)
		T(edge_is_taken_once), T(level_comes_back_until_lowered), T(sources_share_a_level_line),
		T(priorities_nest), T(special_mask_lets_lower_through), T(rotation), T(auto_eoi),
		T(poll_and_spurious), T(mask_holds_back), T(state_round_trip), T(hostile_state),
		T(port_sizes),
	};

	return cmocka_run_group_tests_name("irqchip_pic", tests, NULL, NULL);
}

/* SPDX-License-Identifier: MIT */
/* Interrupt controllers and event descriptors: errnos, routing, delivery into a guest. */
#include <poll.h>
#include <sys/eventfd.h>

#include "api/kvmtest.h"

static void test_creation(void)
{
	struct kvmtest t = kvmtest_vm(1 << 20, 0);
	struct kvm_pit_config pit = { 0 };
	struct kvm_irqchip chip = { .chip_id = KVM_IRQCHIP_IOAPIC };
	struct kvm_irqfd irqfd = { .fd = eventfd(0, 0), .gsi = 5 };
	struct kvm_irq_level level = { .irq = 4, .level = 1 };

	CHECK_ERRNO(ioctl(t.vm, KVM_IRQ_LINE, &level), ENXIO);
	CHECK_ERRNO(ioctl(t.vm, KVM_CREATE_PIT2, &pit), ENOENT);
	CHECK_ERRNO(ioctl(t.vm, KVM_GET_IRQCHIP, &chip), ENXIO);
	CHECK_ERRNO(ioctl(t.vm, KVM_IRQFD, &irqfd), EINVAL);
	CHECK_EQ(ioctl(t.vm, KVM_CREATE_IRQCHIP, 0), 0);
	CHECK_ERRNO(ioctl(t.vm, KVM_CREATE_IRQCHIP, 0), EEXIST);
	CHECK_EQ(ioctl(t.vm, KVM_CREATE_PIT2, &pit), 0);
	CHECK_ERRNO(ioctl(t.vm, KVM_CREATE_PIT2, &pit), EEXIST);
	CHECK_EQ(ioctl(t.vm, KVM_IRQ_LINE, &level), 0);
	CHECK_EQ(ioctl(t.vm, KVM_GET_IRQCHIP, &chip), 0);
	CHECK_EQ(ioctl(t.vm, KVM_SET_IRQCHIP, &chip), 0);
	chip.chip_id = 9;
	CHECK_ERRNO(ioctl(t.vm, KVM_GET_IRQCHIP, &chip), EINVAL);
	close(irqfd.fd);
	kvmtest_done(&t);

	t = kvmtest_vm(1 << 20, 0);
	kvmtest_add_vcpu(&t, 0);
	CHECK_ERRNO(ioctl(t.vm, KVM_CREATE_IRQCHIP, 0), EINVAL); /* too late */
	kvmtest_done(&t);
}

static void test_pit_state(void)
{
	struct kvmtest t = kvmtest_vm(1 << 20, 1);
	struct kvm_pit_config pit = { .flags = KVM_PIT_SPEAKER_DUMMY };
	struct kvm_pit_state2 a, b;

	CHECK_EQ(ioctl(t.vm, KVM_CREATE_PIT2, &pit), 0);
	CHECK_EQ(ioctl(t.vm, KVM_GET_PIT2, &a), 0);
	a.channels[2].count = 1234;
	a.channels[2].mode = 3;
	CHECK_EQ(ioctl(t.vm, KVM_SET_PIT2, &a), 0);
	CHECK_EQ(ioctl(t.vm, KVM_GET_PIT2, &b), 0);
	CHECK_EQ(b.channels[2].count, 1234);
	CHECK_EQ(b.channels[2].mode, 3);
	kvmtest_done(&t);
}

static void test_routing(void)
{
	struct kvmtest t = kvmtest_vm(1 << 20, 1);
	struct {
		struct kvm_irq_routing h;
		struct kvm_irq_routing_entry e[2];
	} r = { .h.nr = 1 };

	r.e[0] = (struct kvm_irq_routing_entry){ .gsi = 24, .type = KVM_IRQ_ROUTING_MSI,
						 .u.msi = { .address_lo = 0xfee00000, .data = 0x41 } };
	CHECK_EQ(ioctl(t.vm, KVM_SET_GSI_ROUTING, &r), 0);
	r.h.flags = 1;
	CHECK_ERRNO(ioctl(t.vm, KVM_SET_GSI_ROUTING, &r), EINVAL);
	r.h.flags = 0;
	r.h.nr = 4097;
	CHECK_ERRNO(ioctl(t.vm, KVM_SET_GSI_ROUTING, &r), EINVAL);
	r.h.nr = 1;
	r.e[0].gsi = 4096;
	CHECK_ERRNO(ioctl(t.vm, KVM_SET_GSI_ROUTING, &r), EINVAL);
	r.e[0] = (struct kvm_irq_routing_entry){ .gsi = 3, .type = KVM_IRQ_ROUTING_IRQCHIP,
						 .u.irqchip = { .irqchip = KVM_IRQCHIP_IOAPIC, .pin = 24 } };
	CHECK_ERRNO(ioctl(t.vm, KVM_SET_GSI_ROUTING, &r), EINVAL);
	r.e[0].u.irqchip.irqchip = 7;
	CHECK_ERRNO(ioctl(t.vm, KVM_SET_GSI_ROUTING, &r), EINVAL);
	r.e[0].type = 77;
	CHECK_ERRNO(ioctl(t.vm, KVM_SET_GSI_ROUTING, &r), EINVAL);
	kvmtest_done(&t);
}

static void test_ioeventfd(void)
{
	/* mov $0x42, %al; mov $0x99, %dx; out; inc %al; out; hlt */
	static const uint8_t code[] = { 0xb0, 0x42, 0xba, 0x99, 0, 0xee, 0xfe, 0xc0, 0xee, 0xf4 };
	struct kvmtest t = kvmtest_vm(1 << 20, 0);
	struct kvm_ioeventfd io = { .addr = 0x99, .len = 1, .datamatch = 0x42,
				    .flags = KVM_IOEVENTFD_FLAG_PIO | KVM_IOEVENTFD_FLAG_DATAMATCH };
	uint64_t n = 0;

	io.fd = eventfd(0, EFD_NONBLOCK);
	kvmtest_add_vcpu(&t, 0);
	kvmtest_real_mode(&t, 0x1000, code, sizeof(code));
	CHECK_EQ(ioctl(t.vm, KVM_IOEVENTFD, &io), 0);
	CHECK_ERRNO(ioctl(t.vm, KVM_IOEVENTFD, &io), EEXIST);
	io.len = 3;
	CHECK_ERRNO(ioctl(t.vm, KVM_IOEVENTFD, &io), EINVAL);
	io.len = 1;
	io.flags |= 1 << 20;
	CHECK_ERRNO(ioctl(t.vm, KVM_IOEVENTFD, &io), EINVAL);
	io.flags &= ~(1u << 20);
	CHECK_EQ(ioctl(t.vcpu, KVM_RUN, 0), 0); /* the first OUT is swallowed, the second is ours */
	CHECK_EQ(t.run->exit_reason, KVM_EXIT_IO);
	CHECK_EQ(*((uint8_t *)t.run + t.run->io.data_offset), 0x43);
	CHECK_EQ(read(io.fd, &n, 8), 8);
	CHECK_EQ(n, 1);
	io.flags |= KVM_IOEVENTFD_FLAG_DEASSIGN;
	CHECK_EQ(ioctl(t.vm, KVM_IOEVENTFD, &io), 0);
	CHECK_ERRNO(ioctl(t.vm, KVM_IOEVENTFD, &io), ENOENT);
	close(io.fd);
	kvmtest_done(&t);
}

static void test_coalesced(void)
{
	/* 3 OUTs to port 0x99, then hlt */
	static const uint8_t code[] = { 0xba, 0x99, 0, 0xb0, 1, 0xee, 0xb0, 2, 0xee, 0xb0, 3, 0xee, 0xf4 };
	struct kvmtest t = kvmtest_vm(1 << 20, 0);
	struct kvm_coalesced_mmio_zone zone = { .addr = 0x99, .size = 1, .pio = 1 };
	struct kvm_coalesced_mmio_ring *ring;

	kvmtest_add_vcpu(&t, 0);
	kvmtest_real_mode(&t, 0x1000, code, sizeof(code));
	CHECK_EQ(ioctl(t.vm, KVM_REGISTER_COALESCED_MMIO, &zone), 0);
	CHECK_EQ(ioctl(t.vcpu, KVM_RUN, 0), 0);
	CHECK_EQ(t.run->exit_reason, KVM_EXIT_HLT);
	ring = (void *)((char *)t.run + 2 * 4096);
	CHECK_EQ(ring->first, 0);
	CHECK_EQ(ring->last, 3);
	CHECK_EQ(ring->coalesced_mmio[2].data[0], 3);
	CHECK_EQ(ring->coalesced_mmio[0].phys_addr, 0x99);
	CHECK_EQ(ring->coalesced_mmio[0].pio, 1);
	CHECK_EQ(ioctl(t.vm, KVM_UNREGISTER_COALESCED_MMIO, &zone), 0);
	zone.pio = 2;
	CHECK_ERRNO(ioctl(t.vm, KVM_REGISTER_COALESCED_MMIO, &zone), EINVAL);
	kvmtest_done(&t);
}

/*
 * A 64-bit guest with an IDT entry for vector 0x41, its APIC software-enabled, that halts with
 * interrupts on; the handler counts in %rbx, writes EOI and returns.
 */
static struct kvmtest irq_guest(void)
{
	/* 1: sti; hlt; jmp 1b */
	static const uint8_t loop[] = { 0xfb, 0xf4, 0xeb, 0xfc };
	/* inc %ebx; out %al, $0x10; mov $0xfee000b0, %edi (zero-extends); movl $0, (%rdi); iretq */
	static const uint8_t handler[] = { 0xff, 0xc3, 0xe6, 0x10, 0xbf, 0xb0, 0x00, 0xe0, 0xfe,
					   0xc7, 0x07, 0, 0, 0, 0, 0x48, 0xcf };
	struct kvmtest t = kvmtest_vm(1 << 20, 1);
	struct kvm_sregs sregs;
	struct kvm_lapic_state apic;
	uint64_t *pd, *gate;

	kvmtest_add_vcpu(&t, 0);
	kvmtest_long_mode(&t, 0x8000, loop, sizeof(loop));
	/* The APIC page at 0xfee00000 lies in the fourth GiB: map it too. */
	pd = (uint64_t *)(t.mem + 0x5000);
	*(uint64_t *)(t.mem + 0x2000 + 3 * 8) = 0x5000 | 7;
	pd[(0xfee00000 >> 21) & 511] = 0xfee00000 | 0x87;
	memcpy(t.mem + 0x9000, handler, sizeof(handler));
	gate = (uint64_t *)(t.mem + 0x6000 + 0x41 * 16);
	gate[0] = 0x9000 | 8ull << 16 | 0x8e00ull << 32;
	gate[1] = 0;
	NEED(ioctl(t.vcpu, KVM_GET_SREGS, &sregs) == 0);
	sregs.idt.base = 0x6000;
	sregs.idt.limit = 0xfff;
	NEED(ioctl(t.vcpu, KVM_SET_SREGS, &sregs) == 0);
	NEED(ioctl(t.vcpu, KVM_GET_LAPIC, &apic) == 0);
	*(uint32_t *)(apic.regs + 0xf0) = 0x1ff;
	NEED(ioctl(t.vcpu, KVM_SET_LAPIC, &apic) == 0);
	return t;
}

static void expect_handler(struct kvmtest *t, unsigned count)
{
	struct kvm_regs regs;

	CHECK_EQ(ioctl(t->vcpu, KVM_RUN, 0), 0);
	CHECK_EQ(t->run->exit_reason, KVM_EXIT_IO);
	CHECK_EQ(ioctl(t->vcpu, KVM_GET_REGS, &regs), 0);
	CHECK_EQ(regs.rbx, count);
}

static void test_delivery(void)
{
	struct kvmtest t = irq_guest();
	struct kvm_msi msi = { .address_lo = 0xfee00000, .data = 0x41 };
	struct {
		struct kvm_irq_routing h;
		struct kvm_irq_routing_entry e[1];
	} r = { .h.nr = 1 };
	struct kvm_irqfd irqfd = { .fd = eventfd(0, 0), .gsi = 24 };
	uint64_t one = 1;

	CHECK_EQ(ioctl(t.vm, KVM_SIGNAL_MSI, &msi), 1);
	expect_handler(&t, 1);
	CHECK_EQ(ioctl(t.vm, KVM_SIGNAL_MSI, &msi), 1);
	expect_handler(&t, 2);
	r.e[0] = (struct kvm_irq_routing_entry){ .gsi = 24, .type = KVM_IRQ_ROUTING_MSI,
						 .u.msi = { .address_lo = 0xfee00000, .data = 0x41 } };
	CHECK_EQ(ioctl(t.vm, KVM_SET_GSI_ROUTING, &r), 0);
	CHECK_EQ(ioctl(t.vm, KVM_IRQFD, &irqfd), 0);
	CHECK_ERRNO(ioctl(t.vm, KVM_IRQFD, &irqfd), EBUSY);
	CHECK_EQ(write(irqfd.fd, &one, 8), 8);
	expect_handler(&t, 3); /* wakes the halted vCPU inside KVM_RUN */
	irqfd.flags = KVM_IRQFD_FLAG_DEASSIGN;
	CHECK_EQ(ioctl(t.vm, KVM_IRQFD, &irqfd), 0);
	irqfd.flags = 1 << 20;
	CHECK_ERRNO(ioctl(t.vm, KVM_IRQFD, &irqfd), EINVAL);
	irqfd.flags = 0;
	irqfd.gsi = 5000;
	close(irqfd.fd);
	irqfd.fd = -1;
	CHECK_ERRNO(ioctl(t.vm, KVM_IRQFD, &irqfd), EBADF);
	kvmtest_done(&t);
}

/* Level-triggered line (of the IOAPIC alone: GSIs below 16 reach the PIC too) with a resample descriptor: it fires at the guest's EOI. */
static void test_resample(void)
{
	struct kvmtest t = irq_guest();
	struct kvm_irqchip chip = { .chip_id = KVM_IRQCHIP_IOAPIC };
	struct kvm_irqfd irqfd = { .fd = eventfd(0, 0), .gsi = 17, .flags = KVM_IRQFD_FLAG_RESAMPLE,
				   .resamplefd = eventfd(0, EFD_NONBLOCK) };
	struct pollfd p = { .fd = irqfd.resamplefd, .events = POLLIN };
	uint64_t one = 1, n;

	CHECK_EQ(ioctl(t.vm, KVM_GET_IRQCHIP, &chip), 0);
	chip.chip.ioapic.redirtbl[17].bits = 0x41 | 1 << 15; /* level, unmasked, physical 0 */
	CHECK_EQ(ioctl(t.vm, KVM_SET_IRQCHIP, &chip), 0);
	CHECK_EQ(ioctl(t.vm, KVM_IRQFD, &irqfd), 0);
	CHECK_EQ(write(irqfd.fd, &one, 8), 8);
	expect_handler(&t, 1);
	CHECK_EQ(poll(&p, 1, 0), 0);	/* not before the EOI */
	/* Finish the handler: it returns, halts, and the second interrupt below ends the wait. */
	struct kvm_msi msi = { .address_lo = 0xfee00000, .data = 0x41 };
	CHECK_EQ(ioctl(t.vm, KVM_SIGNAL_MSI, &msi), 1);
	expect_handler(&t, 2);
	CHECK_EQ(poll(&p, 1, 1000), 1);
	CHECK_EQ(read(irqfd.resamplefd, &n, 8), 8);
	close(irqfd.fd);
	close(irqfd.resamplefd);
	kvmtest_done(&t);
}

#define APIC_LDR 0xd0
#define APIC_DFR 0xe0
#define APIC_SVR 0xf0
#define APIC_IRR 0x200

static uint32_t *lapic_reg(struct kvm_lapic_state *l, unsigned reg)
{
	return (uint32_t *)(l->regs + reg);
}

/* Enabled, with one bit of the flat logical model, nothing pending. */
static void logical_lapic(int vcpu, unsigned id)
{
	struct kvm_lapic_state l;

	NEED(ioctl(vcpu, KVM_GET_LAPIC, &l) == 0);
	*lapic_reg(&l, APIC_LDR) = 1u << (24 + id);
	*lapic_reg(&l, APIC_DFR) = ~0u;
	*lapic_reg(&l, APIC_SVR) = 0x1ff;
	for (unsigned i = 0; i < 8; i++)
		*lapic_reg(&l, APIC_IRR + 0x10 * i) = 0;
	NEED(ioctl(vcpu, KVM_SET_LAPIC, &l) == 0);
}

static int has_pending(int vcpu, unsigned vector)
{
	struct kvm_lapic_state l;

	NEED(ioctl(vcpu, KVM_GET_LAPIC, &l) == 0);
	return *lapic_reg(&l, APIC_IRR + vector / 32 * 0x10) >> vector % 32 & 1;
}

/* Lowest priority among several: KVM spreads by vector (vector_hashing), n of m meant gets those of v % m = n. */
static void test_lowest_priority(void)
{
	struct kvmtest t = kvmtest_vm(1 << 20, 1);
	int vcpus[4];

	for (unsigned i = 0; i < 4; i++)
		NEED((vcpus[i] = ioctl(t.vm, KVM_CREATE_VCPU, i)) >= 0);
	for (unsigned mask = 1; mask < 16; mask++) {
		for (unsigned vector = 0x40; vector < 0x4d; vector++) {
			struct kvm_msi msi = { .address_lo = 0xfee00000 | mask << 12 | 4, .data = 0x100 | vector };
			unsigned skip = vector % __builtin_popcount(mask), want = 0;

			for (unsigned i = 0; i < 4; i++)
				logical_lapic(vcpus[i], i);
			while (!(mask >> want & 1) || skip--)
				want++;
			CHECK_EQ(ioctl(t.vm, KVM_SIGNAL_MSI, &msi), 1);
			for (unsigned i = 0; i < 4; i++)
				CHECK_EQ(has_pending(vcpus[i], vector), i == want);
			/* Fixed: everybody meant. */
			msi.data = vector + 0x20;
			CHECK_EQ(ioctl(t.vm, KVM_SIGNAL_MSI, &msi) > 0, 1);
			for (unsigned i = 0; i < 4; i++)
				CHECK_EQ(has_pending(vcpus[i], vector + 0x20), mask >> i & 1);
		}
	}
	for (unsigned i = 0; i < 4; i++)
		close(vcpus[i]);
	kvmtest_done(&t);
}

int main(void)
{
	test_creation();
	test_pit_state();
	test_routing();
	test_ioeventfd();
	test_coalesced();
	test_delivery();
	test_resample();
	test_lowest_priority();
	return kvmtest_summary();
}

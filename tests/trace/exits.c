/* SPDX-License-Identifier: MIT */
/*
 * Guests that make KVM_RUN return for every reason SoftKVM has. Prints "exit NAME" for each one seen,
 * "skip NAME" for what this KVM does not offer; check-trace compares with the trace.
 */
#include "api/kvmtest.h"

#ifndef KVM_EXIT_MEMORY_FAULT
#define KVM_EXIT_MEMORY_FAULT 39
#endif
#define CAP_VM_TYPES 235

struct memory_attributes {
	uint64_t address, size, attributes, flags;
};
#define SET_MEMORY_ATTRIBUTES _IOW(KVMIO, 0xd2, struct memory_attributes)

static void expect(struct kvmtest *t, unsigned reason, const char *name)
{
	int r = ioctl(t->vcpu, KVM_RUN, 0);

	if (reason == KVM_EXIT_INTR)
		CHECK(r == -1 && errno == EINTR);
	else if (reason == KVM_EXIT_MEMORY_FAULT)
		CHECK(r == -1 && errno == EFAULT && t->run->exit_reason == reason);
	else
		CHECK(r == 0 && t->run->exit_reason == reason);
	printf("exit %s\n", name);
}
#define EXPECT(t, reason) expect(t, reason, #reason)

static struct kvmtest real_mode(const void *code, size_t len)
{
	struct kvmtest t = kvmtest_vm(1 << 20, 0);

	kvmtest_add_vcpu(&t, 0);
	kvmtest_real_mode(&t, 0x7000, code, len);
	return t;
}

static void change_sregs(struct kvmtest *t, void (*change)(struct kvm_sregs *))
{
	struct kvm_sregs sregs;

	NEED(ioctl(t->vcpu, KVM_GET_SREGS, &sregs) == 0);
	change(&sregs);
	NEED(ioctl(t->vcpu, KVM_SET_SREGS, &sregs) == 0);
}

static void enable(struct kvmtest *t, unsigned cap, uint64_t arg)
{
	struct kvm_enable_cap c = { .cap = cap, .args[0] = arg };

	NEED(ioctl(t->vm, KVM_ENABLE_CAP, &c) >= 0);
}

static void plain(void)
{
	static const uint8_t code[] = {
		0xe6, 0x10,		/* out %al, $0x10 */
		0xe4, 0x11,		/* in $0x11, %al */
		0x64, 0xa2, 0, 0,	/* mov %al, %fs:0 */
		0x64, 0xa0, 0, 0,	/* mov %fs:0, %al */
		0x6c,			/* insb */
		0x6e,			/* outsb */
		0xfb, 0x90, 0x90,	/* sti; nop; nop */
		0xf4,			/* hlt */
	};
	struct kvm_guest_debug debug = { .control = KVM_GUESTDBG_ENABLE | KVM_GUESTDBG_SINGLESTEP };
	struct kvmtest t = real_mode(code, sizeof(code));
	struct kvm_sregs sregs;

	NEED(ioctl(t.vcpu, KVM_GET_SREGS, &sregs) == 0);
	sregs.fs.base = 0xd0000000;
	NEED(ioctl(t.vcpu, KVM_SET_SREGS, &sregs) == 0);
	t.run->immediate_exit = 1;
	EXPECT(&t, KVM_EXIT_INTR);
	t.run->immediate_exit = 0;
	for (int i = 0; i < 2; i++)
		EXPECT(&t, KVM_EXIT_IO);
	for (int i = 0; i < 2; i++)
		EXPECT(&t, KVM_EXIT_MMIO);
	for (int i = 0; i < 2; i++)
		EXPECT(&t, KVM_EXIT_IO);
	t.run->request_interrupt_window = 1;
	EXPECT(&t, KVM_EXIT_IRQ_WINDOW_OPEN);
	t.run->request_interrupt_window = 0;
	NEED(ioctl(t.vcpu, KVM_SET_GUEST_DEBUG, &debug) == 0);
	EXPECT(&t, KVM_EXIT_DEBUG);
	debug.control = 0;
	NEED(ioctl(t.vcpu, KVM_SET_GUEST_DEBUG, &debug) == 0);
	EXPECT(&t, KVM_EXIT_HLT);
	kvmtest_done(&t);
}

static void no_idt(struct kvm_sregs *s)
{
	s->idt.limit = 0;
}

static void stack_in_the_void(struct kvm_sregs *s)
{
	s->ss.base = 0xd0000000;
}

static void broken(void)
{
	static const uint8_t code[] = { 0x0f, 0x0b }; /* ud2 */
	struct kvmtest t = real_mode(code, sizeof(code));

	change_sregs(&t, no_idt);
	EXPECT(&t, KVM_EXIT_SHUTDOWN);
	kvmtest_done(&t);
	t = real_mode(code, sizeof(code));
	change_sregs(&t, stack_in_the_void);
	EXPECT(&t, KVM_EXIT_INTERNAL_ERROR);
	kvmtest_done(&t);
}

static void msrs_and_hypercall(void)
{
	static const uint8_t code[] = {
		0x66, 0xb9, 0x1b, 0, 0, 0, 0x0f, 0x32,	/* rdmsr of APIC_BASE: no exit */
		0x66, 0xb9, 0x45, 0x23, 0x01, 0,	/* mov $0x12345, %ecx */
		0x0f, 0x32, 0x0f, 0x30,			/* rdmsr; wrmsr */
		0x66, 0xb8, 12, 0, 0, 0,		/* mov $KVM_HC_MAP_GPA_RANGE, %eax */
		0x66, 0xbb, 0, 0, 0, 0,			/* gpa 0 */
		0x66, 0xb9, 1, 0, 0, 0,			/* one page */
		0x66, 0xba, 0, 0, 0, 0,
		0x0f, 0x01, 0xc1,			/* vmcall */
		0xf4,
	};
	struct kvmtest t = real_mode(code, sizeof(code));

	enable(&t, KVM_CAP_X86_USER_SPACE_MSR, KVM_MSR_EXIT_REASON_INVAL | KVM_MSR_EXIT_REASON_UNKNOWN);
	enable(&t, KVM_CAP_EXIT_HYPERCALL, 1 << 12);
	kvmtest_set_cpuid(&t);
	EXPECT(&t, KVM_EXIT_X86_RDMSR);
	EXPECT(&t, KVM_EXIT_X86_WRMSR);
	EXPECT(&t, KVM_EXIT_HYPERCALL);
	EXPECT(&t, KVM_EXIT_HLT);
	kvmtest_done(&t);
}

static void apic_in_ds(struct kvm_sregs *s)
{
	s->ds.base = 0xfee00000;
}

/* Split irqchip: a level-triggered vector that a userspace IOAPIC would want to know the EOI of. */
static void ioapic_eoi(void)
{
	static const uint8_t code[] = {
		0x66, 0xc7, 0x06, 0xf0, 0, 0xff, 1, 0, 0, /* APIC on */
		0xfb, 0x90, 0xe6, 0x10,			/* sti; nop; out: now */
		0x90, 0x90, 0xf4,
	};
	static const uint8_t handler[] = { 0x66, 0xc7, 0x06, 0xb0, 0, 0, 0, 0, 0, 0xcf }; /* EOI; iret */
	struct kvm_irq_routing *routing = calloc(1, sizeof(*routing) + sizeof(routing->entries[0]));
	struct kvm_msi msi = { .address_lo = 0xfee00000, .data = 0xc040 };
	struct kvmtest t = kvmtest_vm(1 << 20, 0);

	enable(&t, KVM_CAP_SPLIT_IRQCHIP, 24);
	routing->nr = 1;
	routing->entries[0].type = KVM_IRQ_ROUTING_MSI;
	routing->entries[0].u.msi.address_lo = 0xfee00000;
	routing->entries[0].u.msi.data = 0xc040;
	NEED(ioctl(t.vm, KVM_SET_GSI_ROUTING, routing) == 0);
	free(routing);
	kvmtest_add_vcpu(&t, 0);
	kvmtest_real_mode(&t, 0x7000, code, sizeof(code));
	change_sregs(&t, apic_in_ds);
	memcpy(t.mem + 0x7100, handler, sizeof(handler));
	memcpy(t.mem + 0x40 * 4, (uint8_t[]){ 0, 0x71, 0, 0 }, 4);
	EXPECT(&t, KVM_EXIT_IO);
	CHECK_EQ(ioctl(t.vm, KVM_SIGNAL_MSI, &msi), 1);
	EXPECT(&t, KVM_EXIT_IOAPIC_EOI);
	CHECK_EQ(t.run->eoi.vector, 0x40);
	kvmtest_done(&t);
}

/* A store to each page from 1 MiB to 3 MiB, then HLT. */
static const uint8_t dirtier[] = {
	0x48, 0xc7, 0xc7, 0, 0, 0x10, 0,
	0x88, 0x07,
	0x48, 0x81, 0xc7, 0, 0x10, 0, 0,
	0x48, 0x81, 0xff, 0, 0, 0x30, 0,
	0x72, 0xee,
	0xf4,
};

static void dirty_ring(void)
{
	struct kvmtest t = kvmtest_vm(4 << 20, 0);
	struct kvm_userspace_memory_region region = { .memory_size = 4 << 20, .flags = KVM_MEM_LOG_DIRTY_PAGES };

	if (ioctl(t.kvm, KVM_CHECK_EXTENSION, KVM_CAP_DIRTY_LOG_RING) <= 0) {
		printf("skip KVM_EXIT_DIRTY_RING_FULL\n");
		kvmtest_skipped++;
	} else {
		enable(&t, KVM_CAP_DIRTY_LOG_RING, 4096);
		region.userspace_addr = (uintptr_t)t.mem;
		NEED(ioctl(t.vm, KVM_SET_USER_MEMORY_REGION, &region) == 0);
		kvmtest_add_vcpu(&t, 0);
		kvmtest_long_mode(&t, 0x8000, dirtier, sizeof(dirtier));
		EXPECT(&t, KVM_EXIT_DIRTY_RING_FULL);
	}
	kvmtest_done(&t);
}

/* A page declared private in a slot that has no private memory. */
static void memory_fault(void)
{
	int kvm = open("/dev/kvm", O_RDWR | O_CLOEXEC), types = ioctl(kvm, KVM_CHECK_EXTENSION, CAP_VM_TYPES);
	struct memory_attributes attributes = { .address = 0x200000, .size = 4096, .attributes = 8 };
	struct kvm_userspace_memory_region region = { .memory_size = 4 << 20 };
	struct kvmtest t = { .kvm = kvm, .vcpu = -1, .mem_size = 4 << 20 };

	if (types < 0 || !(types & 2)) {
		printf("skip KVM_EXIT_MEMORY_FAULT\n");
		kvmtest_skipped++;
		close(kvm);
		return;
	}
	t.vm = ioctl(kvm, KVM_CREATE_VM, 1);
	NEED(t.vm >= 0);
	t.mem = mmap(NULL, t.mem_size, PROT_READ | PROT_WRITE, MAP_PRIVATE | MAP_ANONYMOUS, -1, 0);
	region.userspace_addr = (uintptr_t)t.mem;
	NEED(ioctl(t.vm, KVM_SET_USER_MEMORY_REGION, &region) == 0);
	t.run_size = ioctl(kvm, KVM_GET_VCPU_MMAP_SIZE, 0);
	kvmtest_add_vcpu(&t, 0);
	kvmtest_long_mode(&t, 0x8000, dirtier, sizeof(dirtier));
	NEED(ioctl(t.vm, SET_MEMORY_ATTRIBUTES, &attributes) == 0);
	EXPECT(&t, KVM_EXIT_MEMORY_FAULT);
	kvmtest_done(&t);
}

int main(void)
{
	plain();
	broken();
	msrs_and_hypercall();
	ioapic_eoi();
	dirty_ring();
	memory_fault();
	return kvmtest_summary();
}

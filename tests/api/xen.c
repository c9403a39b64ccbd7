/* SPDX-License-Identifier: MIT */
/*
 * What a client that emulates Xen gets: errnos of its ioctls, the hypercall page, events between clients, vCPUs and
 * eventfds, timers, in both layouts. The happy path of a 64-bit guest is in the kernel's own selftests.
 *
 * Seen to fail with masks not looked at, pending bits not looked at, the selector at the 64-bit place in 32-bit guests,
 * lost selectors not kept, and the runstate's sum not checked.
 */
#include <sys/eventfd.h>

#include "api/kvmtest.h"

#ifndef KVM_XEN_ATTR_TYPE_SHARED_INFO_HVA
#define KVM_XEN_ATTR_TYPE_SHARED_INFO_HVA 0x6
#define KVM_XEN_VCPU_ATTR_TYPE_VCPU_INFO_HVA 0x9
#endif
#ifndef KVM_XEN_INVALID_GPA
#define KVM_XEN_INVALID_GPA ((uint64_t)-1)
#endif

#define MEM (1 << 20)
#define SHINFO 0x20000
#define INFO 0x21000
#define TIME 0x22000
#define RUNSTATE 0x23000
#define PAGE 0x24000		/* hypercalls */
#define XEN_MSR 0x40000200
#define VECTOR 0x71
#define PRIO KVM_IRQ_ROUTING_XEN_EVTCHN_PRIO_2LEVEL

#define DO_VMCALL 0x5000
#define DO_WRMSR 0x5100
#define DO_STI 0x5200
#define IDT 0x6000
#define HANDLERS 0x10000	/* `mov $vector, %al; out %al, $0x81; iretq` */

static volatile uint32_t *u32_at(struct kvmtest *t, unsigned gpa)
{
	return (volatile uint32_t *)(t->mem + gpa);
}

static void put_code(struct kvmtest *t, unsigned at, const char *code, size_t len)
{
	memcpy(t->mem + at, code, len);
	memcpy(t->mem + at + len, "\xe6\x80\xeb\xfe", 4);
}

static int configure(struct kvmtest *t, uint32_t flags, uint32_t msr)
{
	struct kvm_xen_hvm_config c = { .flags = flags, .msr = msr };

	return ioctl(t->vm, KVM_XEN_HVM_CONFIG, &c);
}

static int set_vm(struct kvmtest *t, uint16_t type, uint64_t value)
{
	struct kvm_xen_hvm_attr a = { .type = type };

	memcpy(&a.u, &value, sizeof(value));
	return ioctl(t->vm, KVM_XEN_HVM_SET_ATTR, &a);
}

static uint64_t get_vm(struct kvmtest *t, uint16_t type)
{
	struct kvm_xen_hvm_attr a = { .type = type };
	uint64_t value;

	CHECK_EQ(ioctl(t->vm, KVM_XEN_HVM_GET_ATTR, &a), 0);
	memcpy(&value, &a.u, sizeof(value));
	return value;
}

static int set_vcpu(struct kvmtest *t, uint16_t type, uint64_t value)
{
	struct kvm_xen_vcpu_attr a = { .type = type };

	memcpy(&a.u, &value, sizeof(value));
	return ioctl(t->vcpu, KVM_XEN_VCPU_SET_ATTR, &a);
}

static uint64_t get_vcpu(struct kvmtest *t, uint16_t type)
{
	struct kvm_xen_vcpu_attr a = { .type = type };
	uint64_t value;

	CHECK_EQ(ioctl(t->vcpu, KVM_XEN_VCPU_GET_ATTR, &a), 0);
	memcpy(&value, &a.u, sizeof(value));
	return value;
}

static int send(struct kvmtest *t, uint32_t port, uint32_t vcpu, uint32_t priority)
{
	struct kvm_irq_routing_xen_evtchn e = { .port = port, .vcpu = vcpu, .priority = priority };

	return ioctl(t->vm, KVM_XEN_HVM_EVTCHN_SEND, &e);
}

static int port(struct kvmtest *t, uint32_t send_port, uint32_t type, uint32_t flags, uint32_t to, uint32_t vcpu_or_fd)
{
	struct kvm_xen_hvm_attr a = { .type = KVM_XEN_ATTR_TYPE_EVTCHN };

	a.u.evtchn.send_port = send_port;
	a.u.evtchn.type = type;
	a.u.evtchn.flags = flags;
	a.u.evtchn.deliver.port.port = to;
	a.u.evtchn.deliver.port.vcpu = vcpu_or_fd;
	a.u.evtchn.deliver.port.priority = PRIO;
	if (!to) {
		a.u.evtchn.deliver.eventfd.port = 0;
		a.u.evtchn.deliver.eventfd.fd = vcpu_or_fd;
	}
	return ioctl(t->vm, KVM_XEN_HVM_SET_ATTR, &a);
}

/* A guest with everything in place, in 64-bit mode. */
static struct kvmtest guest(void)
{
	struct kvmtest t = kvmtest_vm(MEM, 1);
	struct kvm_lapic_state apic;

	kvmtest_add_vcpu(&t, 0);
	kvmtest_long_mode(&t, DO_VMCALL, "\x90", 1);
	put_code(&t, DO_VMCALL, "\x0f\x01\xc1", 3);
	put_code(&t, DO_WRMSR, "\x0f\x30", 2);
	put_code(&t, DO_STI, "\xfb\x90\x90\xfa", 4);
	for (unsigned v = 0; v < 256; v++) {
		uint64_t to = HANDLERS + v * 16;
		uint8_t code[] = { 0xb0, v, 0xe6, 0x81, 0x48, 0xcf };

		memcpy(t.mem + to, code, sizeof(code));
		kvmtest_gate(&t, IDT, v, to);
	}
	kvmtest_idt(&t, IDT);
	NEED(ioctl(t.vcpu, KVM_GET_LAPIC, &apic) == 0);
	apic.regs[0xf1] |= 1;
	NEED(ioctl(t.vcpu, KVM_SET_LAPIC, &apic) == 0);
	CHECK_EQ(configure(&t, KVM_XEN_HVM_CONFIG_INTERCEPT_HCALL | KVM_XEN_HVM_CONFIG_EVTCHN_SEND, XEN_MSR), 0);
	CHECK_EQ(set_vm(&t, KVM_XEN_ATTR_TYPE_LONG_MODE, 1), 0);
	CHECK_EQ(set_vm(&t, KVM_XEN_ATTR_TYPE_SHARED_INFO, SHINFO >> 12), 0);
	CHECK_EQ(set_vcpu(&t, KVM_XEN_VCPU_ATTR_TYPE_VCPU_INFO, INFO), 0);
	CHECK_EQ(set_vm(&t, KVM_XEN_ATTR_TYPE_UPCALL_VECTOR, VECTOR), 0);
	return t;
}

/* 0: the guest came to its end; a vector; -1: another exit. */
static int go_on(struct kvmtest *t)
{
	if (ioctl(t->vcpu, KVM_RUN, 0) || t->run->exit_reason != KVM_EXIT_IO)
		return -1;
	return t->run->io.port == 0x80 ? 0 : *((uint8_t *)t->run + t->run->io.data_offset);
}

static int run_at(struct kvmtest *t, uint64_t rip, struct kvm_regs *regs)
{
	int r;

	regs->rip = rip;
	regs->rsp = 0x10000;
	regs->rflags = 2;
	t->run->immediate_exit = 1; /* the OUT that ended the last run */
	ioctl(t->vcpu, KVM_RUN, 0);
	t->run->immediate_exit = 0;
	NEED(ioctl(t->vcpu, KVM_SET_REGS, regs) == 0);
	r = go_on(t);
	NEED(ioctl(t->vcpu, KVM_GET_REGS, regs) == 0);
	return r;
}

static int sti(struct kvmtest *t)
{
	struct kvm_regs regs = { 0 };

	return run_at(t, DO_STI, &regs);
}

static long hypercall(struct kvmtest *t, uint64_t nr, uint64_t a, uint64_t b, uint64_t c)
{
	struct kvm_regs regs = { .rax = nr, .rdi = a, .rsi = b, .rdx = c };

	return run_at(t, DO_VMCALL, &regs) ? -1000 : (long)regs.rax;
}

/* ---- errnos -------------------------------------------------------------------------- */

static void test_config_errno(void)
{
	struct kvm_xen_hvm_config blob = { .flags = KVM_XEN_HVM_CONFIG_INTERCEPT_HCALL, .blob_size_64 = 1 };
	struct kvmtest t = kvmtest_vm(MEM, 0);

	CHECK_EQ(ioctl(t.kvm, KVM_CHECK_EXTENSION, KVM_CAP_XEN_HVM) & ~0x48, 0x1b7);
	CHECK_ERRNO(configure(&t, KVM_XEN_HVM_CONFIG_SHARED_INFO, XEN_MSR), EINVAL);
	CHECK_ERRNO(configure(&t, 1u << 9, XEN_MSR), EINVAL);
	CHECK_ERRNO(ioctl(t.vm, KVM_XEN_HVM_CONFIG, &blob), EINVAL);
	blob.flags = 0;
	CHECK_EQ(ioctl(t.vm, KVM_XEN_HVM_CONFIG, &blob), 0);
	CHECK_ERRNO(ioctl(t.vm, KVM_XEN_HVM_CONFIG, 0), EFAULT);
	kvmtest_done(&t);
}

static void test_vm_attr_errno(void)
{
	struct kvm_xen_hvm_attr bad = { .type = 99 };
	struct kvmtest t = kvmtest_vm(MEM, 0);

	CHECK_ERRNO(ioctl(t.vm, KVM_XEN_HVM_SET_ATTR, &bad), ENOENT);
	CHECK_ERRNO(ioctl(t.vm, KVM_XEN_HVM_GET_ATTR, &bad), ENOENT);
	CHECK_ERRNO(ioctl(t.vm, KVM_XEN_HVM_GET_ATTR, 0), EFAULT);
	CHECK_EQ(get_vm(&t, KVM_XEN_ATTR_TYPE_SHARED_INFO), -1);
	CHECK_EQ(get_vm(&t, KVM_XEN_ATTR_TYPE_SHARED_INFO_HVA), 0);
	CHECK_ERRNO(set_vm(&t, KVM_XEN_ATTR_TYPE_SHARED_INFO, 1 << 20), EFAULT);
	CHECK_ERRNO(set_vm(&t, KVM_XEN_ATTR_TYPE_SHARED_INFO_HVA, (uintptr_t)t.mem + 8), EINVAL);
	CHECK_ERRNO(set_vm(&t, KVM_XEN_ATTR_TYPE_SHARED_INFO_HVA, 4096), EFAULT);
	CHECK_EQ(set_vm(&t, KVM_XEN_ATTR_TYPE_SHARED_INFO_HVA, (uintptr_t)t.mem + SHINFO), 0);
	CHECK_EQ(get_vm(&t, KVM_XEN_ATTR_TYPE_SHARED_INFO_HVA), (uintptr_t)t.mem + SHINFO);
	CHECK_EQ(get_vm(&t, KVM_XEN_ATTR_TYPE_SHARED_INFO), -1);
	CHECK_EQ(set_vm(&t, KVM_XEN_ATTR_TYPE_SHARED_INFO, SHINFO >> 12), 0);
	CHECK_EQ(get_vm(&t, KVM_XEN_ATTR_TYPE_SHARED_INFO), SHINFO >> 12);
	CHECK_EQ(set_vm(&t, KVM_XEN_ATTR_TYPE_SHARED_INFO, -1), 0);
	CHECK_EQ(get_vm(&t, KVM_XEN_ATTR_TYPE_SHARED_INFO), -1);
	CHECK_ERRNO(set_vm(&t, KVM_XEN_ATTR_TYPE_UPCALL_VECTOR, 15), EINVAL);
	CHECK_EQ(set_vm(&t, KVM_XEN_ATTR_TYPE_UPCALL_VECTOR, 16), 0);
	CHECK_EQ(get_vm(&t, KVM_XEN_ATTR_TYPE_UPCALL_VECTOR), 16);
	CHECK_EQ(set_vm(&t, KVM_XEN_ATTR_TYPE_XEN_VERSION, 0x4000a), 0);
	CHECK_EQ(get_vm(&t, KVM_XEN_ATTR_TYPE_XEN_VERSION), 0x4000a);
	kvmtest_done(&t);
}

static void test_ports_errno(void)
{
	struct kvmtest t = kvmtest_vm(MEM, 0);
	int fd = eventfd(0, 0);

	CHECK_ERRNO(port(&t, 0, 2, 0, 5, 0), EINVAL);
	CHECK_ERRNO(port(&t, 1024, 2, 0, 5, 0), EINVAL);	/* a 32-bit guest's limit */
	CHECK_EQ(set_vm(&t, KVM_XEN_ATTR_TYPE_LONG_MODE, 1), 0);
	CHECK_EQ(port(&t, 1024, 2, 0, 5, 0), 0);
	CHECK_ERRNO(port(&t, 1024, 2, 0, 5, 0), EEXIST);
	CHECK_ERRNO(port(&t, 7, 2, 0, 4096, 0), EINVAL);
	CHECK_ERRNO(port(&t, 7, 3, 0, 5, 0), EINVAL);		/* no such type of channel */
	CHECK_ERRNO(port(&t, 7, 5, 0, 5, 0), EINVAL);		/* an IPI's is its own port */
	CHECK_EQ(port(&t, 7, 5, 0, 7, 0), 0);
	CHECK_ERRNO(port(&t, 8, 2, 0, 0, -1), EBADF);
	CHECK_ERRNO(port(&t, 8, 2, 0, 0, t.vm), EINVAL);
	CHECK_EQ(port(&t, 8, 2, 0, 0, fd), 0);
	CHECK_ERRNO(port(&t, 9, 2, KVM_XEN_EVTCHN_UPDATE, 5, 0), ENOENT);
	CHECK_ERRNO(port(&t, 8, 2, KVM_XEN_EVTCHN_UPDATE, 5, 0), EINVAL);	/* eventfds stay */
	CHECK_ERRNO(port(&t, 1024, 2, KVM_XEN_EVTCHN_UPDATE, 6, 0), EINVAL);
	CHECK_EQ(port(&t, 1024, 2, KVM_XEN_EVTCHN_UPDATE, 5, 3), 0);
	CHECK_ERRNO(port(&t, 8, 2, 8, 0, fd), EINVAL);
	CHECK_EQ(port(&t, 8, 2, KVM_XEN_EVTCHN_DEASSIGN, 0, 0), 0);
	CHECK_ERRNO(port(&t, 8, 2, KVM_XEN_EVTCHN_DEASSIGN, 0, 0), ENOENT);
	CHECK_EQ(port(&t, 0, 0, KVM_XEN_EVTCHN_RESET, 0, 0), 0);
	CHECK_EQ(port(&t, 7, 5, 0, 7, 0), 0);
	close(fd);
	kvmtest_done(&t);
}

static void test_vcpu_attr_errno(void)
{
	struct kvm_xen_vcpu_attr a = { .type = 99 };
	struct kvmtest t = kvmtest_vm(MEM, 1);

	kvmtest_add_vcpu(&t, 0);
	CHECK_ERRNO(ioctl(t.vcpu, KVM_XEN_VCPU_SET_ATTR, &a), ENOENT);
	CHECK_ERRNO(ioctl(t.vcpu, KVM_XEN_VCPU_GET_ATTR, &a), ENOENT);
	CHECK_EQ(get_vcpu(&t, KVM_XEN_VCPU_ATTR_TYPE_VCPU_INFO), -1);
	CHECK_ERRNO(set_vcpu(&t, KVM_XEN_VCPU_ATTR_TYPE_VCPU_INFO, INFO + 2), ENXIO);
	CHECK_ERRNO(set_vcpu(&t, KVM_XEN_VCPU_ATTR_TYPE_VCPU_INFO, INFO + 0xfc4), EINVAL);
	CHECK_ERRNO(set_vcpu(&t, KVM_XEN_VCPU_ATTR_TYPE_VCPU_INFO, 1ull << 32), EFAULT);
	CHECK_EQ(set_vcpu(&t, KVM_XEN_VCPU_ATTR_TYPE_VCPU_INFO, INFO + 0x40), 0);
	CHECK_EQ(get_vcpu(&t, KVM_XEN_VCPU_ATTR_TYPE_VCPU_INFO), INFO + 0x40);
	CHECK_EQ(set_vcpu(&t, KVM_XEN_VCPU_ATTR_TYPE_VCPU_INFO_HVA, (uintptr_t)t.mem + INFO), 0);
	CHECK_EQ(get_vcpu(&t, KVM_XEN_VCPU_ATTR_TYPE_VCPU_INFO_HVA), (uintptr_t)t.mem + INFO);
	CHECK_EQ(set_vcpu(&t, KVM_XEN_VCPU_ATTR_TYPE_VCPU_INFO_HVA, 0), 0);
	CHECK_ERRNO(set_vcpu(&t, KVM_XEN_VCPU_ATTR_TYPE_VCPU_TIME_INFO, TIME + 0xff0), EINVAL);
	CHECK_EQ(set_vcpu(&t, KVM_XEN_VCPU_ATTR_TYPE_VCPU_TIME_INFO, TIME), 0);
	CHECK_EQ(get_vcpu(&t, KVM_XEN_VCPU_ATTR_TYPE_VCPU_TIME_INFO), TIME);
	CHECK_ERRNO(set_vcpu(&t, KVM_XEN_VCPU_ATTR_TYPE_VCPU_ID, 1024), EINVAL);
	CHECK_EQ(set_vcpu(&t, KVM_XEN_VCPU_ATTR_TYPE_VCPU_ID, 1023), 0);
	CHECK_EQ(get_vcpu(&t, KVM_XEN_VCPU_ATTR_TYPE_VCPU_ID), 1023);
	CHECK_ERRNO(set_vcpu(&t, KVM_XEN_VCPU_ATTR_TYPE_UPCALL_VECTOR, 1), EINVAL);
	CHECK_EQ(set_vcpu(&t, KVM_XEN_VCPU_ATTR_TYPE_UPCALL_VECTOR, 0x31), 0);
	CHECK_EQ(get_vcpu(&t, KVM_XEN_VCPU_ATTR_TYPE_UPCALL_VECTOR), 0x31);
	a = (struct kvm_xen_vcpu_attr){ .type = KVM_XEN_VCPU_ATTR_TYPE_TIMER, .u.timer.port = 3 };
	CHECK_ERRNO(ioctl(t.vcpu, KVM_XEN_VCPU_SET_ATTR, &a), EINVAL);	/* priority */
	kvmtest_done(&t);
}

static void test_runstate_errno(void)
{
	struct kvm_xen_vcpu_attr a = { .type = KVM_XEN_VCPU_ATTR_TYPE_RUNSTATE_DATA };
	struct kvmtest t = kvmtest_vm(MEM, 1);

	kvmtest_add_vcpu(&t, 0);
	if (!(ioctl(t.kvm, KVM_CHECK_EXTENSION, KVM_CAP_XEN_HVM) & KVM_XEN_HVM_CONFIG_RUNSTATE)) {
		CHECK_ERRNO(ioctl(t.vcpu, KVM_XEN_VCPU_SET_ATTR, &a), EOPNOTSUPP);
		kvmtest_skipped++;
		kvmtest_done(&t);
		return;
	}
	a.u.runstate.state = 4;
	CHECK_ERRNO(ioctl(t.vcpu, KVM_XEN_VCPU_SET_ATTR, &a), EINVAL);
	a.u.runstate.state = 2;
	a.u.runstate.state_entry_time = 5;
	CHECK_ERRNO(ioctl(t.vcpu, KVM_XEN_VCPU_SET_ATTR, &a), EINVAL);	/* the sum */
	a.u.runstate.time_running = 2;
	a.u.runstate.time_offline = 3;
	CHECK_EQ(ioctl(t.vcpu, KVM_XEN_VCPU_SET_ATTR, &a), 0);
	memset(&a.u, 0, sizeof(a.u));
	CHECK_EQ(ioctl(t.vcpu, KVM_XEN_VCPU_GET_ATTR, &a), 0);
	CHECK_EQ(a.u.runstate.state, 2);
	CHECK_EQ(a.u.runstate.time_offline, 3);
	a.u.runstate.state_entry_time = a.u.runstate.time_running = 1ull << 62;
	a.u.runstate.time_offline = 0;
	CHECK_ERRNO(ioctl(t.vcpu, KVM_XEN_VCPU_SET_ATTR, &a), EINVAL);	/* the future */
	CHECK_ERRNO(set_vcpu(&t, KVM_XEN_VCPU_ATTR_TYPE_RUNSTATE_CURRENT, 4), EINVAL);
	a = (struct kvm_xen_vcpu_attr){ .type = KVM_XEN_VCPU_ATTR_TYPE_RUNSTATE_ADJUST, .u.runstate.state = 4 };
	CHECK_ERRNO(ioctl(t.vcpu, KVM_XEN_VCPU_SET_ATTR, &a), EINVAL);
	CHECK_ERRNO(ioctl(t.vcpu, KVM_XEN_VCPU_GET_ATTR, &a), EINVAL);
	a.type = KVM_XEN_VCPU_ATTR_TYPE_RUNSTATE_ADDR;
	CHECK_ERRNO(ioctl(t.vcpu, KVM_XEN_VCPU_GET_ATTR, &a), ENOENT);
	CHECK_ERRNO(set_vcpu(&t, KVM_XEN_VCPU_ATTR_TYPE_RUNSTATE_ADDR, MEM - 20), EFAULT);
	CHECK_ERRNO(ioctl(t.vcpu, KVM_XEN_VCPU_GET_ATTR, &a), ENOENT);
	CHECK_EQ(set_vcpu(&t, KVM_XEN_VCPU_ATTR_TYPE_RUNSTATE_ADDR, RUNSTATE), 0);
	CHECK_EQ(*u32_at(&t, RUNSTATE), 2);
	CHECK_EQ(set_vcpu(&t, KVM_XEN_VCPU_ATTR_TYPE_RUNSTATE_ADDR, -1), 0);
	kvmtest_done(&t);
}

static void test_send_errno(void)
{
	struct {
		struct kvm_irq_routing h;
		struct kvm_irq_routing_entry e;
	} r = { .h.nr = 1, .e = { .gsi = 30, .type = KVM_IRQ_ROUTING_XEN_EVTCHN } };
	struct kvmtest t = kvmtest_vm(MEM, 1);

	kvmtest_add_vcpu(&t, 0);
	CHECK_ERRNO(send(&t, 0, 0, PRIO), EINVAL);
	CHECK_ERRNO(send(&t, 1024, 0, PRIO), EINVAL);
	CHECK_ERRNO(send(&t, 3, 0, 0), EINVAL);
	CHECK_ERRNO(send(&t, 3, 9, PRIO), EINVAL);
	CHECK_ERRNO(send(&t, 3, 0, PRIO), EINVAL);	/* no shared info */
	r.e.u.xen_evtchn.port = 3;
	CHECK_ERRNO(ioctl(t.vm, KVM_SET_GSI_ROUTING, &r), EINVAL);
	r.e.u.xen_evtchn.priority = PRIO;
	CHECK_EQ(ioctl(t.vm, KVM_SET_GSI_ROUTING, &r), 0);
	r.e.flags = 1;
	CHECK_ERRNO(ioctl(t.vm, KVM_SET_GSI_ROUTING, &r), EINVAL);
	kvmtest_done(&t);
}

/* ---- events ------------------------------------------------------------------------------- */

/* Offsets in the two layouts. */
static void events(bool wide)
{
	const unsigned mask = SHINFO + (wide ? 0xa00 : 0x880), sel = INFO + (wide ? 8 : 4), bits = wide ? 64 : 32;
	struct kvmtest t = guest();

	CHECK_EQ(set_vm(&t, KVM_XEN_ATTR_TYPE_LONG_MODE, wide), 0);
	CHECK_EQ(sti(&t), 0);
	/* Port 70: pending, its word selected, the upcall, the interrupt. */
	CHECK_EQ(send(&t, 70, 0, PRIO), 0);
	CHECK_EQ(*u32_at(&t, SHINFO + 0x800 + 8), 1 << 6);
	CHECK_EQ(*u32_at(&t, sel), 1u << 70 / bits);
	CHECK_EQ(t.mem[INFO], 1);
	CHECK_EQ(sti(&t), VECTOR);
	/* As long as the guest leaves it there. */
	CHECK_EQ(sti(&t), VECTOR);
	t.mem[INFO] = 0;
	CHECK_EQ(sti(&t), 0);
	/* Pending already: nothing new. */
	*u32_at(&t, sel) = 0;
	CHECK_EQ(send(&t, 70, 0, PRIO), 0);
	CHECK_EQ(t.mem[INFO], 0);
	/* Masked: pending only. */
	*u32_at(&t, mask) = 1 << 5;
	CHECK_EQ(send(&t, 5, 0, PRIO), 0);
	CHECK_EQ(*u32_at(&t, SHINFO + 0x800), 1 << 5);
	CHECK_EQ(*u32_at(&t, sel), 0);
	CHECK_EQ(sti(&t), 0);
	/* Without a vcpu_info it waits for one. */
	CHECK_EQ(set_vcpu(&t, KVM_XEN_VCPU_ATTR_TYPE_VCPU_INFO, -1), 0);
	CHECK_EQ(send(&t, 6, 0, PRIO), 0);
	CHECK_EQ(sti(&t), 0);
	CHECK_EQ(set_vcpu(&t, KVM_XEN_VCPU_ATTR_TYPE_VCPU_INFO, INFO), 0);
	CHECK_EQ(sti(&t), VECTOR);
	CHECK_EQ(send(&t, 1000, 0, PRIO), 0);
	CHECK_EQ(*u32_at(&t, sel), 1u << 1000 / bits | 1);
	kvmtest_done(&t);
}

/* With a vector of its own the vCPU gets it through its APIC, once. */
static void test_vcpu_vector(void)
{
	struct kvmtest t = guest();
	struct kvm_lapic_state apic;

	CHECK_EQ(set_vm(&t, KVM_XEN_ATTR_TYPE_UPCALL_VECTOR, 0), 0);
	CHECK_EQ(set_vcpu(&t, KVM_XEN_VCPU_ATTR_TYPE_UPCALL_VECTOR, 0x55), 0);
	CHECK_EQ(send(&t, 5, 0, PRIO), 0);
	CHECK_EQ(sti(&t), 0x55);
	CHECK_EQ(sti(&t), 0);
	NEED(ioctl(t.vcpu, KVM_GET_LAPIC, &apic) == 0);
	CHECK_EQ((uint8_t)apic.regs[0x100 + 0x55 / 32 * 16 + 0x55 % 32 / 8], 1 << 0x55 % 8);
	kvmtest_done(&t);
}

static void test_gsi(void)
{
	struct {
		struct kvm_irq_routing h;
		struct kvm_irq_routing_entry e;
	} r = { .h.nr = 1, .e = { .gsi = 30, .type = KVM_IRQ_ROUTING_XEN_EVTCHN } };
	struct kvm_irq_level level = { .irq = 30, .level = 1 };
	struct kvmtest t = guest();

	r.e.u.xen_evtchn.port = 9;
	r.e.u.xen_evtchn.priority = PRIO;
	CHECK_EQ(ioctl(t.vm, KVM_SET_GSI_ROUTING, &r), 0);
	CHECK_EQ(ioctl(t.vm, KVM_IRQ_LINE, &level), 0);
	CHECK_EQ(sti(&t), VECTOR);
	CHECK_EQ(*u32_at(&t, SHINFO + 0x800), 1 << 9);
	kvmtest_done(&t);
}

/* ---- hypercalls ---------------------------------------------------------------------------------- */

static void test_hypercalls(void)
{
	struct kvm_regs regs = { .rcx = XEN_MSR, .rax = PAGE };
	struct kvmtest t = guest();
	int fd = eventfd(0, EFD_NONBLOCK);
	uint64_t count;

	/* The page: one entry a call. */
	CHECK_EQ(run_at(&t, DO_WRMSR, &regs), 0);
	CHECK(!memcmp(t.mem + PAGE + 17 * 32, "\xb8\x11\0\0\0\x0f\x01", 7));
	CHECK_EQ(t.mem[PAGE + 17 * 32 + 8], 0xc3);
	regs = (struct kvm_regs){ .rcx = XEN_MSR, .rax = PAGE | 1 };
	CHECK_EQ(run_at(&t, DO_WRMSR, &regs), 13);
	regs = (struct kvm_regs){ .rcx = XEN_MSR, .rax = 1u << 30 };
	CHECK_EQ(run_at(&t, DO_WRMSR, &regs), 13);

	/* What KVM does not know is the client's. */
	CHECK_EQ(hypercall(&t, 17, 0, 0, 0), -1000);
	CHECK_EQ(t.run->exit_reason, KVM_EXIT_XEN);
	CHECK_EQ(t.run->xen.u.hcall.input, 17);
	t.run->xen.u.hcall.result = 0x1122334455667788ull;
	CHECK_EQ(go_on(&t), 0);
	NEED(ioctl(t.vcpu, KVM_GET_REGS, &regs) == 0);
	CHECK_EQ(regs.rax, 0x1122334455667788ull);
	CHECK_EQ(set_vm(&t, KVM_XEN_ATTR_TYPE_XEN_VERSION, 0x4000a), 0);
	CHECK_EQ(hypercall(&t, 17, 0, 0, 0), 0x4000a);

	/* Outbound events. */
	CHECK_EQ(hypercall(&t, 32, 4, 1ull << 40, 0), -EFAULT);
	*u32_at(&t, 0x30000) = 12;
	CHECK_EQ(hypercall(&t, 32, 4, 0x30000, 0), -1000);	/* nobody's: the client's */
	CHECK_EQ(port(&t, 12, 2, 0, 0, fd), 0);
	CHECK_EQ(hypercall(&t, 32, 4, 0x30000, 0), 0);
	CHECK_EQ(read(fd, &count, 8), 8);
	*u32_at(&t, 0x30000) = 13;
	CHECK_EQ(port(&t, 13, 2, 0, 40, 0), 0);
	CHECK_EQ(hypercall(&t, 32, 4, 0x30000, 0), 0);
	CHECK_EQ(*u32_at(&t, SHINFO + 0x804), 1 << 8);
	CHECK_EQ(sti(&t), VECTOR);
	t.mem[INFO] = 0;

	/* Yielding, polling for what is there already, and for nonsense. */
	CHECK_EQ(hypercall(&t, 29, 0, 0, 0), 0);
	*(uint64_t *)(t.mem + 0x30000) = 0x30100;
	*(uint64_t *)(t.mem + 0x30008) = 1;
	*(uint64_t *)(t.mem + 0x30010) = 0;
	*u32_at(&t, 0x30100) = 40;
	CHECK_EQ(hypercall(&t, 29, 3, 0x30000, 0), 0);
	*u32_at(&t, 0x30100) = 4096;
	CHECK_EQ(hypercall(&t, 29, 3, 0x30000, 0), -EINVAL);
	*(uint64_t *)(t.mem + 0x30008) = 129;
	CHECK_EQ(hypercall(&t, 29, 3, 0x30000, 0), -EINVAL);
	/* No port at all, for a millisecond: the time is over. */
	*(uint64_t *)(t.mem + 0x30008) = 0;
	*(uint64_t *)(t.mem + 0x30010) = 1000000;
	CHECK_EQ(hypercall(&t, 29, 3, 0x30000, 0), 0);
	close(fd);
	kvmtest_done(&t);
}

static void test_timer(void)
{
	struct kvm_xen_vcpu_attr a = { .type = KVM_XEN_VCPU_ATTR_TYPE_TIMER, .u.timer = { .port = 20, .priority = PRIO } };
	struct kvmtest t = guest();

	CHECK_EQ(hypercall(&t, 15, 5, 0, 0), -1000);	/* no timer: the client's */
	CHECK_EQ(ioctl(t.vcpu, KVM_XEN_VCPU_SET_ATTR, &a), 0);
	CHECK_EQ(hypercall(&t, 15, 1, 0, 0), 0);	/* the past */
	CHECK_EQ(sti(&t), VECTOR);
	CHECK_EQ(*u32_at(&t, SHINFO + 0x800), 1 << 20);
	t.mem[INFO] = 0;
	*u32_at(&t, SHINFO + 0x800) = 0;
	*u32_at(&t, INFO + 8) = 0;
	/* The far future stays; 0 stops it. */
	CHECK_EQ(hypercall(&t, 15, 1ull << 49, 0, 0), 0);
	CHECK_EQ(ioctl(t.vcpu, KVM_XEN_VCPU_GET_ATTR, &a), 0);
	CHECK_EQ(a.u.timer.expires_ns, 1ull << 49);
	CHECK_EQ(a.u.timer.port, 20);
	CHECK_EQ(hypercall(&t, 15, 0, 0, 0), 0);
	CHECK_EQ(ioctl(t.vcpu, KVM_XEN_VCPU_GET_ATTR, &a), 0);
	CHECK_EQ(a.u.timer.expires_ns, 0);
	/* What old kernels mean by an overflow is soon. */
	CHECK_EQ(hypercall(&t, 15, 1ull << 62, 0, 0), 0);
	CHECK_EQ(ioctl(t.vcpu, KVM_XEN_VCPU_GET_ATTR, &a), 0);
	CHECK(a.u.timer.expires_ns < 1ull << 50);
	CHECK_EQ(hypercall(&t, 15, 0, 0, 0), 0);
	/* The same by vcpu_op, for this vCPU only. */
	*(uint64_t *)(t.mem + 0x30000) = 1ull << 49;
	CHECK_EQ(hypercall(&t, 24, 8, 1, 0x30000), -EINVAL);
	CHECK_EQ(hypercall(&t, 24, 8, 0, 0x30000), 0);
	CHECK_EQ(ioctl(t.vcpu, KVM_XEN_VCPU_GET_ATTR, &a), 0);
	CHECK_EQ(a.u.timer.expires_ns, 1ull << 49);
	CHECK_EQ(hypercall(&t, 24, 9, 0, 0), 0);
	CHECK_EQ(ioctl(t.vcpu, KVM_XEN_VCPU_GET_ATTR, &a), 0);
	CHECK_EQ(a.u.timer.expires_ns, 0);
	kvmtest_done(&t);
}

int main(void)
{
	test_config_errno();
	test_vm_attr_errno();
	test_ports_errno();
	test_vcpu_attr_errno();
	test_runstate_errno();
	test_send_errno();
	events(true);
	events(false);
	test_vcpu_vector();
	test_gsi();
	test_hypercalls();
	test_timer();
	return kvmtest_summary();
}

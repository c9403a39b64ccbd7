/* SPDX-License-Identifier: MIT */
/*
 * Hyper-V's interface as a client and a guest see it: errnos, MSRs, hypercalls, exits, synthetic interrupts
 * and timers. What the kernel's own selftests check (CPUID gates, IPIs, TLB flushes) is not repeated.
 *
 * Seen to fail with no EOI hook in the local APIC, no auto EOI, no notification of resamplers, a clock that does not
 * notice KVM_SET_CLOCK, no suppression of the invariant TSC, the answer to KVM_EXIT_HYPERV_SYNDBG dropped and
 * unlimited XMM input; and to hang with msg_pending ignored, with stimers that do not wake a halted vCPU, and with
 * waits for flushes inside guest mode.
 */
#include <pthread.h>
#include <sys/eventfd.h>

#include "api/kvmtest.h"

#ifndef KVM_HYPERV_CONN_ID_MASK
#define KVM_HYPERV_CONN_ID_MASK 0x00ffffff
#endif

enum {
	GUEST_OS_ID = 0x40000000, HYPERCALL, VP_INDEX, RESET, VP_RUNTIME = 0x40000010,
	TIME_REF_COUNT = 0x40000020, REFERENCE_TSC, TSC_FREQUENCY, APIC_FREQUENCY,
	HV_EOI = 0x40000070, HV_ICR, HV_TPR, VP_ASSIST, SCONTROL = 0x40000080, SVERSION, SIEFP, SIMP, EOM,
	SINT0 = 0x40000090, STIMER0_CONFIG = 0x400000b0, STIMER0_COUNT,
	SYNDBG_CONTROL = 0x400000f1, SYNDBG_STATUS, SYNDBG_OPTIONS = 0x400000ff,
	CRASH_P0 = 0x40000100, CRASH_CTL = 0x40000105, TSC_EMULATION_STATUS = 0x40000108,
	TSC_INVARIANT_CONTROL = 0x40000118,
};

#define OS_ID 0x8100000000000000ull
#define SIMP_PAGE 0x8000
#define MESSAGE(t, sint) ((t)->mem + SIMP_PAGE + (sint) * 256)

/* Entry points of the guest: what to execute before `out %al, $0x80`. */
#define DO_VMCALL 0x5000
#define DO_WRMSR 0x5100
#define DO_RDMSR 0x5200
#define DO_CPUID 0x5300
#define DO_STI 0x5400
#define DO_HALT 0x5500
#define IDT 0x6000
#define HANDLERS 0x20000	/* 16 bytes each: `mov $vector, %al; out %al, $0x81; iretq` */
#define SCRATCH 0x30000

static const uint8_t end[] = { 0xe6, 0x80, 0xeb, 0xfe };

static void put_code(struct kvmtest *t, unsigned at, const void *code, size_t len)
{
	memcpy(t->mem + at, code, len);
	memcpy(t->mem + at + len, end, sizeof(end));
}

static void put_idt(struct kvmtest *t)
{
	for (unsigned v = 0; v < 256; v++) {
		uint64_t to = HANDLERS + v * 16;
		uint8_t code[] = { 0xb0, v, 0xe6, 0x81, 0x48, 0xcf };

		memcpy(t->mem + to, code, sizeof(code));
		kvmtest_gate(t, IDT, v, to);
	}
}

/* Everything both lists offer; skip: a Hyper-V leaf to leave out. */
static void set_hv_cpuid(struct kvmtest *t, uint32_t skip)
{
	struct kvm_cpuid2 *c = calloc(1, sizeof(*c) + 100 * sizeof(struct kvm_cpuid_entry2));
	struct kvm_cpuid2 *hv = calloc(1, sizeof(*c) + 100 * sizeof(struct kvm_cpuid_entry2));
	unsigned n = 0;

	c->nent = hv->nent = 100;
	NEED(ioctl(t->kvm, KVM_GET_SUPPORTED_CPUID, c) == 0);
	NEED(ioctl(t->kvm, KVM_GET_SUPPORTED_HV_CPUID, hv) == 0);
	for (unsigned i = 0; i < c->nent; i++)
		if (c->entries[i].function >> 8 != 0x400000)
			c->entries[n++] = c->entries[i];
	for (unsigned i = 0; i < hv->nent; i++)
		if (hv->entries[i].function != skip)
			c->entries[n++] = hv->entries[i];
	c->nent = n;
	NEED(ioctl(t->vcpu, KVM_SET_CPUID2, c) == 0);
	free(c);
	free(hv);
}

static struct kvmtest guest(int irqchip)
{
	static const uint8_t vmcall[] = { 0x0f, 0x01, 0xc1 }, wrmsr[] = { 0x0f, 0x30 }, rdmsr[] = { 0x0f, 0x32 },
			     cpuid[] = { 0x0f, 0xa2 }, sti[] = { 0xfb, 0x90, 0x90, 0xfa },
			     halt[] = { 0xfb, 0xf4 };
	struct kvmtest t = kvmtest_vm(1 << 20, irqchip);
	struct kvm_sregs sregs;

	kvmtest_add_vcpu(&t, 0);
	kvmtest_long_mode(&t, DO_VMCALL, vmcall, sizeof(vmcall));
	set_hv_cpuid(&t, 0);
	put_code(&t, DO_VMCALL, vmcall, sizeof(vmcall));
	put_code(&t, DO_WRMSR, wrmsr, sizeof(wrmsr));
	put_code(&t, DO_RDMSR, rdmsr, sizeof(rdmsr));
	put_code(&t, DO_CPUID, cpuid, sizeof(cpuid));
	put_code(&t, DO_STI, sti, sizeof(sti));
	put_code(&t, DO_HALT, halt, sizeof(halt));
	put_idt(&t);
	NEED(ioctl(t.vcpu, KVM_GET_SREGS, &sregs) == 0);
	sregs.idt.base = IDT;
	sregs.idt.limit = 0xfff;
	NEED(ioctl(t.vcpu, KVM_SET_SREGS, &sregs) == 0);
	if (irqchip) {
		struct kvm_lapic_state apic;

		NEED(ioctl(t.vcpu, KVM_GET_LAPIC, &apic) == 0);
		apic.regs[0xf1] |= 1; /* software enable */
		NEED(ioctl(t.vcpu, KVM_SET_LAPIC, &apic) == 0);
	}
	return t;
}

/* KVM_RUN: 0 when the guest came to its end, the vector of an exception or interrupt, or -1: another exit. */
static int go_on(struct kvmtest *t)
{
	if (ioctl(t->vcpu, KVM_RUN, 0) || t->run->exit_reason != KVM_EXIT_IO)
		return -1;
	if (t->run->io.port == 0x80)
		return 0;
	return *((uint8_t *)t->run + t->run->io.data_offset);
}

static int run_at(struct kvmtest *t, uint64_t rip, struct kvm_regs *regs)
{
	int r;

	regs->rip = rip;
	regs->rsp = 0x10000;
	regs->rflags = 2;
	/* The OUT that ended the last run first. */
	t->run->immediate_exit = 1;
	ioctl(t->vcpu, KVM_RUN, 0);
	t->run->immediate_exit = 0;
	NEED(ioctl(t->vcpu, KVM_SET_REGS, regs) == 0);
	r = go_on(t);
	NEED(ioctl(t->vcpu, KVM_GET_REGS, regs) == 0);
	return r;
}

static int guest_wrmsr(struct kvmtest *t, uint32_t msr, uint64_t value)
{
	struct kvm_regs regs = { .rcx = msr, .rax = (uint32_t)value, .rdx = value >> 32 };

	return run_at(t, DO_WRMSR, &regs);
}

static int guest_rdmsr(struct kvmtest *t, uint32_t msr, uint64_t *value)
{
	struct kvm_regs regs = { .rcx = msr };
	int r = run_at(t, DO_RDMSR, &regs);

	*value = regs.rdx << 32 | (uint32_t)regs.rax;
	return r;
}

/* The status, or -1: no such exit. */
static long hypercall(struct kvmtest *t, uint64_t control, uint64_t in, uint64_t out)
{
	struct kvm_regs regs = { .rcx = control, .rdx = in, .r8 = out, .rax = ~0ull };

	return run_at(t, DO_VMCALL, &regs) ? -1 : (long)regs.rax;
}

struct one_msr {
	struct kvm_msrs h;
	struct kvm_msr_entry e;
};

static int set_msr(struct kvmtest *t, uint32_t index, uint64_t value)
{
	struct one_msr m = { .h.nmsrs = 1, .e = { .index = index, .data = value } };

	return ioctl(t->vcpu, KVM_SET_MSRS, &m);
}

static uint64_t get_msr(struct kvmtest *t, uint32_t index)
{
	struct one_msr m = { .h.nmsrs = 1, .e.index = index };

	NEED(ioctl(t->vcpu, KVM_GET_MSRS, &m) == 1);
	return m.e.data;
}

static int enable_cap(int fd, uint32_t cap, uint64_t arg)
{
	struct kvm_enable_cap c = { .cap = cap, .args = { arg } };

	return ioctl(fd, KVM_ENABLE_CAP, &c);
}

/* ---- errnos ------------------------------------------------------------------------ */

static void test_cpuid_errno(int fd)
{
	struct {
		struct kvm_cpuid2 h;
		struct kvm_cpuid_entry2 e[11];
	} c = { .h.nent = 9 };

	CHECK_ERRNO(ioctl(fd, KVM_GET_SUPPORTED_HV_CPUID, 0), EFAULT);
	CHECK_ERRNO(ioctl(fd, KVM_GET_SUPPORTED_HV_CPUID, &c), E2BIG);
	CHECK_EQ(c.h.nent, 9);
	c.h.nent = 11;
	CHECK_EQ(ioctl(fd, KVM_GET_SUPPORTED_HV_CPUID, &c), 0);
	CHECK_EQ(c.h.nent, 10);
	CHECK_EQ(c.e[0].function, 0x40000000);
	CHECK_EQ(c.e[0].eax, 0x40000082);
	CHECK_EQ(c.e[1].eax, 0x31237648);
	CHECK_EQ(c.e[3].eax & ~0xaaff, 0);
}

static void test_caps(void)
{
	struct kvmtest t = kvmtest_vm(1 << 20, 0), u = kvmtest_vm(1 << 20, 1);
	struct kvm_enable_cap flags = { .cap = KVM_CAP_HYPERV_ENFORCE_CPUID, .flags = 1 };

	kvmtest_add_vcpu(&t, 0);
	kvmtest_add_vcpu(&u, 0);
	test_cpuid_errno(t.kvm);
	test_cpuid_errno(t.vcpu);
	CHECK_EQ(ioctl(t.kvm, KVM_CHECK_EXTENSION, KVM_CAP_HYPERV), 1);
	CHECK_EQ(ioctl(t.vm, KVM_CHECK_EXTENSION, KVM_CAP_HYPERV_SYNIC2), 1);
	CHECK_EQ(ioctl(t.kvm, KVM_CHECK_EXTENSION, KVM_CAP_HYPERV_ENLIGHTENED_VMCS), 0);
	CHECK_ERRNO(enable_cap(t.vcpu, KVM_CAP_HYPERV_SYNIC, 0), EINVAL);	/* no irqchip */
	CHECK_ERRNO(enable_cap(t.vcpu, KVM_CAP_HYPERV_SYNIC2, 0), EINVAL);
	CHECK_ERRNO(enable_cap(u.vcpu, KVM_CAP_HYPERV_SYNIC2, 1), EINVAL);
	CHECK_EQ(enable_cap(u.vcpu, KVM_CAP_HYPERV_SYNIC2, 0), 0);
	CHECK_EQ(enable_cap(u.vcpu, KVM_CAP_HYPERV_SYNIC, 1), 0);
	CHECK_ERRNO(enable_cap(u.vm, KVM_CAP_HYPERV_SYNIC, 0), EINVAL);
	CHECK_ERRNO(enable_cap(u.vcpu, KVM_CAP_HYPERV_ENLIGHTENED_VMCS, 0), ENOTTY);
	CHECK_ERRNO(enable_cap(u.vcpu, KVM_CAP_HYPERV_DIRECT_TLBFLUSH, 0), ENOTTY);
	CHECK_ERRNO(ioctl(u.vcpu, KVM_ENABLE_CAP, &flags), EINVAL);
	CHECK_EQ(enable_cap(t.vcpu, KVM_CAP_HYPERV_ENFORCE_CPUID, 0), 0);
	CHECK_EQ(enable_cap(t.vcpu, KVM_CAP_HYPERV_ENFORCE_CPUID, 1), 0);
	kvmtest_done(&t);
	kvmtest_done(&u);
}

static void test_eventfd_errno(void)
{
	struct kvmtest t = kvmtest_vm(1 << 20, 0);
	struct kvm_hyperv_eventfd e = { .conn_id = 5, .fd = -1 };

	CHECK_ERRNO(ioctl(t.vm, KVM_HYPERV_EVENTFD, &e), EBADF);
	e.fd = t.vm;
	CHECK_ERRNO(ioctl(t.vm, KVM_HYPERV_EVENTFD, &e), EINVAL);
	e.fd = eventfd(0, 0);
	e.flags = 2;
	CHECK_ERRNO(ioctl(t.vm, KVM_HYPERV_EVENTFD, &e), EINVAL);
	e.flags = 0;
	e.conn_id = KVM_HYPERV_CONN_ID_MASK + 1;
	CHECK_ERRNO(ioctl(t.vm, KVM_HYPERV_EVENTFD, &e), EINVAL);
	e.conn_id = KVM_HYPERV_CONN_ID_MASK;
	CHECK_EQ(ioctl(t.vm, KVM_HYPERV_EVENTFD, &e), 0);
	CHECK_ERRNO(ioctl(t.vm, KVM_HYPERV_EVENTFD, &e), EEXIST);
	e.flags = KVM_HYPERV_EVENTFD_DEASSIGN;
	CHECK_EQ(ioctl(t.vm, KVM_HYPERV_EVENTFD, &e), 0);
	CHECK_ERRNO(ioctl(t.vm, KVM_HYPERV_EVENTFD, &e), ENOENT);
	CHECK_ERRNO(ioctl(t.vm, KVM_HYPERV_EVENTFD, 0), EFAULT);
	close(e.fd);
	kvmtest_done(&t);
}

static void route_sint(struct kvmtest *t, uint32_t gsi, uint32_t vp, uint32_t sint, uint32_t flags, int want)
{
	struct {
		struct kvm_irq_routing h;
		struct kvm_irq_routing_entry e;
	} r = { .h.nr = 1, .e = { .gsi = gsi, .type = KVM_IRQ_ROUTING_HV_SINT, .flags = flags } };

	r.e.u.hv_sint.vcpu = vp;
	r.e.u.hv_sint.sint = sint;
	if (want)
		CHECK_ERRNO(ioctl(t->vm, KVM_SET_GSI_ROUTING, &r), want);
	else
		CHECK_EQ(ioctl(t->vm, KVM_SET_GSI_ROUTING, &r), 0);
}

/* ---- MSRs ---------------------------------------------------------------------------- */

static void test_msrs_of_client(void)
{
	struct kvmtest t = kvmtest_vm(1 << 20, 0);

	kvmtest_add_vcpu(&t, 0);
	CHECK_EQ(set_msr(&t, VP_INDEX, 1024), 0);
	CHECK_EQ(set_msr(&t, VP_INDEX, 77), 1);
	CHECK_EQ(get_msr(&t, VP_INDEX), 77);
	CHECK_EQ(set_msr(&t, SCONTROL, 1), 0);	/* no SynIC: only what is there */
	CHECK_EQ(set_msr(&t, SCONTROL, 0), 1);
	CHECK_EQ(set_msr(&t, STIMER0_CONFIG, 1), 0);
	CHECK_EQ(set_msr(&t, STIMER0_CONFIG, 0), 1);
	CHECK_EQ(get_msr(&t, SVERSION), 1);
	CHECK_EQ(get_msr(&t, SINT0), 0x10000);
	CHECK_EQ(set_msr(&t, TSC_INVARIANT_CONTROL, 2), 0);
	CHECK_EQ(set_msr(&t, TSC_INVARIANT_CONTROL, 1), 1);
	CHECK_EQ(set_msr(&t, TSC_INVARIANT_CONTROL, 0), 1);	/* the client may take it back */
	CHECK_EQ(set_msr(&t, TSC_EMULATION_STATUS, 3), 1);
	CHECK_EQ(set_msr(&t, TIME_REF_COUNT, 3), 1);
	CHECK_EQ(set_msr(&t, CRASH_CTL, ~0ull), 1);
	CHECK_EQ(get_msr(&t, CRASH_CTL), 1ull << 63);
	CHECK_EQ(set_msr(&t, CRASH_P0 + 4, 5), 1);
	CHECK_EQ(get_msr(&t, CRASH_P0 + 4), 5);
	CHECK_EQ(set_msr(&t, 0x40000004, 0), 0);
	CHECK_EQ(set_msr(&t, 0x4000001f, 0), 0);
	CHECK_EQ(set_msr(&t, HV_TPR, 0), 0);	/* no APIC */
	CHECK_EQ(get_msr(&t, APIC_FREQUENCY), 1000000000);
	CHECK_EQ(get_msr(&t, TSC_FREQUENCY), ioctl(t.vcpu, KVM_GET_TSC_KHZ, 0) * 1000ull);
	kvmtest_done(&t);
}

/* Without "Hv#1" there is none of it; refusals can go to userspace, and filters apply. */
static void test_msrs_of_guest(void)
{
	static uint8_t bitmap[8];
	struct kvmtest t = guest(0);
	struct kvm_msr_filter filter = {
		.ranges[0] = { .flags = KVM_MSR_FILTER_READ, .nmsrs = 16, .base = GUEST_OS_ID, .bitmap = bitmap },
	};
	uint64_t value;

	CHECK_EQ(guest_wrmsr(&t, GUEST_OS_ID, OS_ID), 0);
	CHECK_EQ(guest_wrmsr(&t, VP_INDEX, 3), 13);
	CHECK_EQ(guest_wrmsr(&t, SCONTROL, 0), 13);
	CHECK_EQ(guest_rdmsr(&t, 0x40000004, &value), 13);
	CHECK_EQ(guest_wrmsr(&t, TSC_INVARIANT_CONTROL, 1), 0);
	CHECK_EQ(guest_wrmsr(&t, TSC_INVARIANT_CONTROL, 0), 13);
	CHECK_EQ(enable_cap(t.vm, KVM_CAP_X86_USER_SPACE_MSR,
			    KVM_MSR_EXIT_REASON_INVAL | KVM_MSR_EXIT_REASON_FILTER), 0);
	CHECK_EQ(guest_wrmsr(&t, TIME_REF_COUNT, 3), -1);
	CHECK_EQ(t.run->exit_reason, KVM_EXIT_X86_WRMSR);
	CHECK_EQ(t.run->msr.reason, KVM_MSR_EXIT_REASON_INVAL);
	CHECK_EQ(t.run->msr.data, 3);
	CHECK_EQ(go_on(&t), 0);
	NEED(ioctl(t.vm, KVM_X86_SET_MSR_FILTER, &filter) == 0);
	CHECK_EQ(guest_rdmsr(&t, GUEST_OS_ID, &value), -1);
	CHECK_EQ(t.run->exit_reason, KVM_EXIT_X86_RDMSR);
	CHECK_EQ(t.run->msr.reason, KVM_MSR_EXIT_REASON_FILTER);
	t.run->msr.data = 0x1234;
	CHECK_EQ(go_on(&t), 0);
	kvmtest_done(&t);

	t = guest(0);
	set_hv_cpuid(&t, 0x40000001);
	CHECK_EQ(guest_wrmsr(&t, GUEST_OS_ID, OS_ID), 13);
	kvmtest_done(&t);
}

static void test_exits(void)
{
	struct kvmtest t = guest(1);
	uint64_t value;

	CHECK_EQ(enable_cap(t.vcpu, KVM_CAP_HYPERV_SYNIC, 0), 0);
	memset(t.mem + SIMP_PAGE, 0xee, 4096);
	CHECK_EQ(guest_wrmsr(&t, SIMP, SIMP_PAGE | 1), -1);
	CHECK_EQ(t.run->exit_reason, KVM_EXIT_HYPERV);
	CHECK_EQ(t.run->hyperv.type, KVM_EXIT_HYPERV_SYNIC);
	CHECK_EQ(t.run->hyperv.u.synic.msr, SIMP);
	CHECK_EQ(t.run->hyperv.u.synic.control, 1);
	CHECK_EQ(t.run->hyperv.u.synic.msg_page, SIMP_PAGE | 1);
	CHECK_EQ(t.mem[SIMP_PAGE + 4095], 0);
	CHECK_EQ(go_on(&t), 0);		/* the write has retired */
	CHECK_EQ(guest_wrmsr(&t, SIEFP, 1ull << 30 | 1), 13);	/* no memory there */
	CHECK_EQ(guest_wrmsr(&t, SVERSION, 1), 13);
	CHECK_EQ(guest_wrmsr(&t, SINT0, 8), 13);
	CHECK_EQ(guest_wrmsr(&t, SINT0, 0x10000), 0);
	CHECK_EQ(guest_rdmsr(&t, EOM, &value), 0);

	CHECK_EQ(guest_wrmsr(&t, CRASH_CTL, 1), 0);
	CHECK_EQ(guest_wrmsr(&t, CRASH_CTL, 1ull << 63), -1);
	CHECK_EQ(t.run->exit_reason, KVM_EXIT_SYSTEM_EVENT);
	CHECK_EQ(t.run->system_event.type, KVM_SYSTEM_EVENT_CRASH);
	CHECK_EQ(guest_wrmsr(&t, RESET, 1), -1);
	CHECK_EQ(t.run->exit_reason, KVM_EXIT_SYSTEM_EVENT);
	CHECK_EQ(t.run->system_event.type, KVM_SYSTEM_EVENT_RESET);

	CHECK_EQ(guest_wrmsr(&t, SYNDBG_CONTROL, 1), -1);
	CHECK_EQ(t.run->exit_reason, KVM_EXIT_HYPERV);
	CHECK_EQ(t.run->hyperv.type, KVM_EXIT_HYPERV_SYNDBG);
	CHECK_EQ(t.run->hyperv.u.syndbg.control, 1);
	t.run->hyperv.u.syndbg.status = 0x77;
	CHECK_EQ(go_on(&t), 0);
	CHECK_EQ(get_msr(&t, SYNDBG_STATUS), 0x77);
	kvmtest_done(&t);

	/* SynIC 2 leaves the pages as they are. */
	t = guest(1);
	CHECK_EQ(enable_cap(t.vcpu, KVM_CAP_HYPERV_SYNIC2, 0), 0);
	memset(t.mem + SIMP_PAGE, 0xee, 4096);
	CHECK_EQ(guest_wrmsr(&t, SIMP, SIMP_PAGE | 1), -1);
	CHECK_EQ(t.mem[SIMP_PAGE], 0xee);
	kvmtest_done(&t);
}

/* ---- hypercalls --------------------------------------------------------------------------- */

static void test_hypercall_page(void)
{
	struct kvmtest t = guest(0);
	const uint8_t *page = t.mem + SCRATCH;

	CHECK_EQ(guest_wrmsr(&t, HYPERCALL, SCRATCH | 1), 0);
	CHECK_EQ(get_msr(&t, HYPERCALL), 0);	/* not without an OS */
	CHECK_EQ(guest_wrmsr(&t, GUEST_OS_ID, OS_ID), 0);
	CHECK_EQ(guest_wrmsr(&t, HYPERCALL, 1ull << 30 | 1), 13);
	CHECK_EQ(guest_wrmsr(&t, HYPERCALL, SCRATCH | 1), 0);
	CHECK_EQ(get_msr(&t, HYPERCALL), SCRATCH | 1);
	CHECK(!memcmp(page, "\x0f\x01\xc1\xc3", 4) || !memcmp(page, "\x0f\x01\xd9\xc3", 4));
	CHECK_EQ(guest_wrmsr(&t, GUEST_OS_ID, 0), 0);
	CHECK_EQ(get_msr(&t, HYPERCALL), SCRATCH);
	kvmtest_done(&t);
}

#define FAST (1ull << 16)
#define VAR(n) ((uint64_t)(n) << 17)
#define REP(n) ((uint64_t)(n) << 32)

static void test_hypercall_input(void)
{
	static const struct {
		uint64_t control, in, out;
		long status;
	} rows[] = {
		{ 0x1234, 0, 0, 2 },
		{ 0x1234 | 1ull << 63, 0, 0, 3 },	/* reserved */
		{ 0x08, 0, 0, 0 },
		{ 0x08 | VAR(1), 0, 0, 3 },
		{ 0x02, 1ull << 30, 0, 3 },		/* input that is not there */
		{ 0x02, SCRATCH, 0, 0 },
		{ 0x02 | REP(1), SCRATCH, 0, 3 },
		{ 0x03, SCRATCH, 0, 3 },		/* a list of nothing */
		{ 0x03 | REP(2), SCRATCH, 0, 0 | REP(2) },
		{ 0x03 | REP(40), SCRATCH, 0, 0 | REP(40) },
		{ 0x03 | REP(2) | 1ull << 48, SCRATCH, 0, 3 },
		{ 0x03 | REP(11) | FAST, 0, 1, 0 | REP(11) },	/* all that fits the registers */
		{ 0x03 | REP(12) | FAST, 0, 1, 3 },
		{ 0x13 | VAR(1), SCRATCH, 0, 3 },	/* more banks than bits say */
		{ 0x0b, SCRATCH, 0, 3 },		/* vector 0; no APIC */
		{ 0x5c, SCRATCH, 0, 3 },		/* no SynIC */
		{ 0x5d | FAST, 9, 0, 3 },
		{ 0x5d, SCRATCH + 4, 0, 4 },
		{ 0x5d | FAST, 1ull << 24, 0, 3 },
		{ 0x69 | FAST, 0, 0, 5 },
		{ 0x6b, 0, 0, 8 },			/* debug hypercalls are off */
		{ 0x8001 | FAST, 0, 0, 5 },
	};
	struct kvmtest t = guest(0);

	CHECK_EQ(guest_wrmsr(&t, GUEST_OS_ID, OS_ID), 0);
	for (unsigned i = 0; i < sizeof(rows) / sizeof(rows[0]); i++) {
		long status = hypercall(&t, rows[i].control, rows[i].in, rows[i].out);

		if (status != rows[i].status)
			printf("row %u: control 0x%llx\n", i, (unsigned long long)rows[i].control);
		CHECK_EQ(status, rows[i].status);
	}
	kvmtest_done(&t);
}

static void test_hypercall_exit(void)
{
	struct kvm_hyperv_eventfd e = { .conn_id = 9, .fd = eventfd(0, EFD_NONBLOCK) };
	struct kvm_regs regs = { .rcx = 0x5c, .rdx = SCRATCH, .r8 = SCRATCH + 8 };
	struct kvmtest t = guest(1);
	uint64_t count;

	CHECK_EQ(guest_wrmsr(&t, GUEST_OS_ID, OS_ID), 0);
	CHECK_EQ(enable_cap(t.vcpu, KVM_CAP_HYPERV_SYNIC2, 0), 0);
	CHECK_EQ(run_at(&t, DO_VMCALL, &regs), -1);
	CHECK_EQ(t.run->exit_reason, KVM_EXIT_HYPERV);
	CHECK_EQ(t.run->hyperv.type, KVM_EXIT_HYPERV_HCALL);
	CHECK_EQ(t.run->hyperv.u.hcall.input, 0x5c);
	CHECK_EQ(t.run->hyperv.u.hcall.params[0], SCRATCH);
	CHECK_EQ(t.run->hyperv.u.hcall.params[1], SCRATCH + 8);
	t.run->hyperv.u.hcall.result = 0x1234500000011ull;
	CHECK_EQ(go_on(&t), 0);
	NEED(ioctl(t.vcpu, KVM_GET_REGS, &regs) == 0);
	CHECK_EQ(regs.rax, 0x1234500000011ull);

	/* An event: to its eventfd, or to the client. */
	CHECK_EQ(ioctl(t.vm, KVM_HYPERV_EVENTFD, &e), 0);
	CHECK_EQ(hypercall(&t, 0x5d | FAST, 9, 0), 0);
	CHECK_EQ(read(e.fd, &count, 8), 8);
	CHECK_EQ(count, 1);
	*(uint64_t *)(t.mem + SCRATCH) = 9;
	CHECK_EQ(hypercall(&t, 0x5d, SCRATCH, 0), 0);
	CHECK_EQ(read(e.fd, &count, 8), 8);
	CHECK_EQ(hypercall(&t, 0x5d | FAST, 10, 0), -1);
	CHECK_EQ(t.run->exit_reason, KVM_EXIT_HYPERV);
	CHECK_EQ(t.run->hyperv.u.hcall.params[0], 10);
	e.flags = KVM_HYPERV_EVENTFD_DEASSIGN;
	CHECK_EQ(ioctl(t.vm, KVM_HYPERV_EVENTFD, &e), 0);
	CHECK_EQ(hypercall(&t, 0x5d | FAST, 9, 0), -1);
	close(e.fd);
	kvmtest_done(&t);
}

/* Two vCPUs that flush each other's TLBs all the time, and so wait for each other: neither waits for ever. */
#define FLUSHES 20000

static void *flusher(void *arg)
{
	struct kvmtest *t = arg;
	struct kvm_regs regs = { .rip = 0x5600, .rsp = 0x10000, .rflags = 2, .rbx = FLUSHES,
				 .rcx = 0x02 | FAST, .r8 = 1 };

	NEED(ioctl(t->vcpu, KVM_SET_REGS, &regs) == 0);
	return (void *)(intptr_t)go_on(t);
}

static void test_mutual_flush(void)
{
	/*
	 * lock incl SCRATCH; W: cmpl $2, SCRATCH; pause; jnz W		both are there
	 * L: mov %rcx, %r12; vmcall; test %rax, %rax; jnz .; dec %ebx; jnz L
	 */
	static const uint8_t loop[] = { 0xf0, 0xff, 0x04, 0x25, 0, 0, 3, 0,
					0x83, 0x3c, 0x25, 0, 0, 3, 0, 2, 0xf3, 0x90, 0x75, 0xf4, 0x49, 0x89, 0xcc, 0x0f, 0x01, 0xc1, 0x48, 0x85, 0xc0, 0x75, 0xfe,
					0xff, 0xcb, 0x75, 0xf1 };
	struct kvmtest t = guest(0), u = t;
	pthread_t thread;
	struct kvm_sregs sregs;
	void *result;

	put_code(&t, 0x5600, loop, sizeof(loop));
	CHECK_EQ(set_msr(&t, GUEST_OS_ID, OS_ID), 1);
	kvmtest_add_vcpu(&u, 1);
	set_hv_cpuid(&u, 0);
	NEED(ioctl(t.vcpu, KVM_GET_SREGS, &sregs) == 0);
	NEED(ioctl(u.vcpu, KVM_SET_SREGS, &sregs) == 0);
	NEED(pthread_create(&thread, NULL, flusher, &u) == 0);
	CHECK_EQ((intptr_t)flusher(&t), 0);
	NEED(pthread_join(thread, &result) == 0);
	CHECK_EQ((intptr_t)result, 0);
	munmap(u.run, u.run_size);
	close(u.vcpu);
	kvmtest_done(&t);
}

/* Outside 64-bit mode values are pairs of registers: EDX:EAX control and result, EBX:ECX, EDI:ESI. */
static void test_hypercall_32(void)
{
	struct kvm_regs regs = { .rax = 0x10003, .rdx = 0x2, .rbx = 0, .rcx = 0, .rdi = 0, .rsi = 1 };
	struct kvmtest t = guest(0);
	struct kvm_sregs sregs;

	CHECK_EQ(set_msr(&t, GUEST_OS_ID, OS_ID), 1);
	NEED(ioctl(t.vcpu, KVM_GET_SREGS, &sregs) == 0);
	sregs.cs.l = 0;
	sregs.cs.db = 1;
	sregs.cr0 = 0x11;
	sregs.efer = 0;
	NEED(ioctl(t.vcpu, KVM_SET_SREGS, &sregs) == 0);
	CHECK_EQ(run_at(&t, DO_VMCALL, &regs), 0);
	CHECK_EQ(regs.rax, 0);
	CHECK_EQ(regs.rdx, 2);	/* repetitions done */
	/* Not from user mode, whatever the number. */
	sregs.cs.dpl = sregs.ss.dpl = 3;
	sregs.cs.selector |= 3;
	sregs.ss.selector |= 3;
	sregs.idt.limit = 0;
	NEED(ioctl(t.vcpu, KVM_SET_SREGS, &sregs) == 0);
	CHECK_EQ(run_at(&t, DO_VMCALL, &regs), -1);
	CHECK_EQ(t.run->exit_reason, KVM_EXIT_SHUTDOWN);
	kvmtest_done(&t);
}

/* ---- clock ------------------------------------------------------------------------------------ */

static uint64_t page_time(struct kvmtest *t)
{
	const uint64_t *page = (uint64_t *)(t->mem + SCRATCH);

	return ((unsigned __int128)get_msr(t, 0x10) * page[1] >> 64) + page[2];
}

static void test_clock(void)
{
	struct kvm_clock_data clock = { .clock = 1000000000000ull }, now;
	struct kvmtest t = guest(0);
	uint64_t before, msr, after;
	uint32_t sequence;

	CHECK_EQ(guest_wrmsr(&t, GUEST_OS_ID, OS_ID), 0);
	memset(t.mem + SCRATCH, 0, 4096);
	CHECK_EQ(guest_wrmsr(&t, REFERENCE_TSC, SCRATCH | 1), 0);
	sequence = *(volatile uint32_t *)(t.mem + SCRATCH);
	CHECK(sequence && sequence != ~0u);
	/* It is kvmclock, but for roundings. */
	CHECK_EQ(ioctl(t.vm, KVM_GET_CLOCK, &now), 0);
	msr = get_msr(&t, TIME_REF_COUNT);
	CHECK(msr + 10 >= now.clock / 100);
	CHECK_EQ(ioctl(t.vm, KVM_GET_CLOCK, &now), 0);
	CHECK(msr <= now.clock / 100 + 10);
	before = page_time(&t);
	msr = get_msr(&t, TIME_REF_COUNT);
	after = page_time(&t);
	CHECK(before <= msr && msr <= after);
	/* A new time: the MSR tells it at once, the page follows at the next entry. */
	CHECK_EQ(ioctl(t.vm, KVM_SET_CLOCK, &clock), 0);
	CHECK(get_msr(&t, TIME_REF_COUNT) >= 10000000000ull);
	CHECK_EQ(guest_rdmsr(&t, TIME_REF_COUNT, &msr), 0);
	CHECK(msr >= 10000000000ull);
	CHECK(*(volatile uint32_t *)(t.mem + SCRATCH) != sequence);
	CHECK(page_time(&t) >= msr);
	/* A page that is not there: the MSR works on. */
	CHECK_EQ(guest_wrmsr(&t, REFERENCE_TSC, 1ull << 30 | 1), 0);
	CHECK_EQ(guest_rdmsr(&t, TIME_REF_COUNT, &after), 0);
	CHECK(after >= msr);
	kvmtest_done(&t);
}

/* Where the guest has to ask for an invariant TSC, CPUID shows it only then. */
static void test_invtsc(void)
{
	struct kvm_regs regs = { .rax = 0x80000007 };
	struct kvmtest t = guest(0);
	uint64_t host;

	set_hv_cpuid(&t, 0x40000003);	/* nothing to ask with */
	CHECK_EQ(run_at(&t, DO_CPUID, &regs), 0);
	host = regs.rdx & 0x100;
	kvmtest_done(&t);
	if (!host) {
		kvmtest_skipped++;
		return;
	}
	t = guest(0);
	regs = (struct kvm_regs){ .rax = 0x80000007 };
	CHECK_EQ(run_at(&t, DO_CPUID, &regs), 0);
	CHECK_EQ(regs.rdx & 0x100, 0);
	CHECK_EQ(guest_wrmsr(&t, TSC_INVARIANT_CONTROL, 1), 0);
	regs = (struct kvm_regs){ .rax = 0x80000007 };
	CHECK_EQ(run_at(&t, DO_CPUID, &regs), 0);
	CHECK_EQ(regs.rdx & 0x100, 0x100);
	kvmtest_done(&t);
}

/* ---- synthetic interrupts ------------------------------------------------------------------------ */

#define VECTOR 0x40

static struct kvmtest synic_guest(void)
{
	struct kvmtest t = guest(1);

	CHECK_EQ(enable_cap(t.vcpu, KVM_CAP_HYPERV_SYNIC, 0), 0);
	CHECK_EQ(set_msr(&t, GUEST_OS_ID, OS_ID), 1);
	CHECK_EQ(set_msr(&t, SIMP, SIMP_PAGE | 1), 1);
	CHECK_EQ(set_msr(&t, SINT0 + 2, VECTOR), 1);
	return t;
}

static bool in_service(struct kvmtest *t, unsigned vector)
{
	struct kvm_lapic_state apic;

	NEED(ioctl(t->vcpu, KVM_GET_LAPIC, &apic) == 0);
	return apic.regs[0x100 + vector / 32 * 16 + vector % 32 / 8] & 1 << vector % 8;
}

static int sti(struct kvmtest *t)
{
	struct kvm_regs regs = { 0 };

	return run_at(t, DO_STI, &regs);
}

#define STIMER_ENABLE 1ull
#define STIMER_PERIODIC 2ull
#define STIMER_AUTO 8ull
#define STIMER_DIRECT (1ull << 12)
#define STIMER_SINT(n) ((uint64_t)(n) << 16)

static void test_stimer(void)
{
	struct kvmtest t = synic_guest();
	const uint8_t *msg = MESSAGE(&t, 2);
	uint64_t payload[3];

	/* A count of the past: at once. */
	CHECK_EQ(guest_wrmsr(&t, STIMER0_CONFIG + 2, STIMER_AUTO | STIMER_SINT(2)), 0);
	CHECK_EQ(guest_wrmsr(&t, STIMER0_COUNT + 2, 5), 0);
	CHECK_EQ(sti(&t), VECTOR);
	CHECK(in_service(&t, VECTOR));
	CHECK_EQ(*(uint32_t *)msg, 0x80000010);
	CHECK_EQ(msg[4], 24);
	CHECK_EQ(msg[5], 0);
	memcpy(payload, msg + 16, 24);
	CHECK_EQ(payload[0], 1);
	CHECK_EQ(payload[1], 5);
	CHECK(payload[2] >= 5);
	CHECK_EQ(get_msr(&t, STIMER0_CONFIG + 2), STIMER_AUTO | STIMER_SINT(2)); /* one shot */
	/* The slot is in use: the message waits, and says so. */
	CHECK_EQ(guest_wrmsr(&t, STIMER0_COUNT + 2, 6), 0);
	CHECK_EQ(guest_wrmsr(&t, HV_EOI, 0), 0);
	CHECK(!in_service(&t, VECTOR));
	CHECK_EQ(sti(&t), 0);
	CHECK_EQ(msg[5], 1);
	CHECK_EQ(*(uint64_t *)(msg + 24), 5);
	*(uint32_t *)msg = 0;
	CHECK_EQ(sti(&t), 0);
	CHECK_EQ(guest_wrmsr(&t, EOM, 0), 0);
	CHECK_EQ(sti(&t), VECTOR);
	CHECK_EQ(*(uint64_t *)(msg + 24), 6);
	/* An EOI does as well. */
	CHECK_EQ(guest_wrmsr(&t, STIMER0_COUNT + 2, 7), 0);
	*(uint32_t *)msg = 0;
	CHECK_EQ(guest_wrmsr(&t, HV_EOI, 0), 0);
	CHECK_EQ(sti(&t), VECTOR);
	CHECK_EQ(*(uint64_t *)(msg + 24), 7);
	kvmtest_done(&t);
}

static void test_stimer_direct(void)
{
	struct kvm_regs regs = { 0 };
	struct kvmtest t = synic_guest();
	uint64_t now;

	CHECK_EQ(guest_wrmsr(&t, STIMER0_COUNT, 5), 0);
	CHECK_EQ(guest_wrmsr(&t, STIMER0_CONFIG, STIMER_ENABLE | STIMER_DIRECT | 0x51 << 4), 0);
	CHECK_EQ(sti(&t), 0x51);
	CHECK_EQ(guest_wrmsr(&t, HV_EOI, 0), 0);
	/* Later: wakes a halted vCPU. */
	CHECK_EQ(guest_rdmsr(&t, TIME_REF_COUNT, &now), 0);
	CHECK_EQ(guest_wrmsr(&t, STIMER0_COUNT, now + 20000), 0);
	CHECK_EQ(guest_wrmsr(&t, STIMER0_CONFIG, STIMER_ENABLE | STIMER_DIRECT | 0x52 << 4), 0);
	CHECK_EQ(run_at(&t, DO_HALT, &regs), 0x52);
	CHECK_EQ(guest_wrmsr(&t, HV_EOI, 0), 0);
	CHECK_EQ(guest_rdmsr(&t, TIME_REF_COUNT, &now), 0);
	CHECK(now >= get_msr(&t, STIMER0_COUNT));
	/* Again and again. */
	CHECK_EQ(guest_wrmsr(&t, STIMER0_COUNT, 10000), 0);
	CHECK_EQ(guest_wrmsr(&t, STIMER0_CONFIG, STIMER_ENABLE | STIMER_PERIODIC | STIMER_DIRECT | 0x53 << 4), 0);
	for (int i = 0; i < 3; i++) {
		regs = (struct kvm_regs){ 0 };
		CHECK_EQ(run_at(&t, DO_HALT, &regs), 0x53);
		CHECK_EQ(guest_wrmsr(&t, HV_EOI, 0), 0);
	}
	/* A count of 0 ends it. */
	CHECK_EQ(guest_wrmsr(&t, STIMER0_COUNT, 0), 0);
	CHECK_EQ(get_msr(&t, STIMER0_CONFIG) & STIMER_ENABLE, 0);
	/* A running timer cannot move to SINT 0. */
	CHECK_EQ(guest_wrmsr(&t, STIMER0_CONFIG, STIMER_ENABLE | STIMER_SINT(2)), 0);
	CHECK_EQ(set_msr(&t, STIMER0_COUNT, ~0ull), 1);
	CHECK_EQ(set_msr(&t, STIMER0_CONFIG, STIMER_ENABLE | STIMER_SINT(2)), 1);
	CHECK_EQ(set_msr(&t, STIMER0_CONFIG, STIMER_ENABLE), 1);
	CHECK_EQ(get_msr(&t, STIMER0_CONFIG), 0);
	kvmtest_done(&t);
}

/* Timers that expire while a vCPU waits for its SIPI are served when it runs. */
static void test_stimer_not_running(void)
{
	struct kvm_mp_state stopped = { KVM_MP_STATE_INIT_RECEIVED }, running = { KVM_MP_STATE_RUNNABLE };
	struct kvmtest t = synic_guest();

	CHECK_EQ(set_msr(&t, STIMER0_COUNT, 5), 1);
	CHECK_EQ(set_msr(&t, STIMER0_CONFIG, STIMER_ENABLE | STIMER_DIRECT | 0x51 << 4), 1);
	CHECK_EQ(ioctl(t.vcpu, KVM_SET_MP_STATE, &stopped), 0);
	t.run->immediate_exit = 1;
	CHECK_ERRNO(ioctl(t.vcpu, KVM_RUN, 0), EINTR);
	t.run->immediate_exit = 0;
	CHECK_EQ(ioctl(t.vcpu, KVM_SET_MP_STATE, &running), 0);
	CHECK_EQ(sti(&t), 0x51);
	kvmtest_done(&t);
}

static void test_auto_eoi(void)
{
	struct kvmtest t = synic_guest();

	CHECK_EQ(guest_wrmsr(&t, SINT0 + 2, VECTOR | 1 << 17), 0);
	CHECK_EQ(guest_wrmsr(&t, STIMER0_COUNT, 5), 0);
	CHECK_EQ(guest_wrmsr(&t, STIMER0_CONFIG, STIMER_ENABLE | STIMER_SINT(2)), 0);
	CHECK_EQ(sti(&t), VECTOR);
	CHECK(!in_service(&t, VECTOR));
	kvmtest_done(&t);
}

static void test_sint_routing(void)
{
	struct kvm_regs regs = { 0 };
	struct kvmtest t = synic_guest();
	struct kvm_irq_level level = { .irq = 30, .level = 1 };
	struct kvm_irqfd irqfd = { .fd = eventfd(0, 0), .resamplefd = eventfd(0, EFD_NONBLOCK), .gsi = 30,
				   .flags = KVM_IRQFD_FLAG_RESAMPLE };
	uint64_t one = 1, count;

	route_sint(&t, 30, 0, 2, 1, EINVAL);
	route_sint(&t, 30, 0, 2, 0, 0);
	CHECK_EQ(ioctl(t.vm, KVM_IRQ_LINE_STATUS, &level), 0);
	CHECK_EQ(level.status, 1);
	CHECK_EQ(sti(&t), VECTOR);
	CHECK_EQ(guest_wrmsr(&t, HV_EOI, 0), 0);
	level = (struct kvm_irq_level){ .irq = 30, .level = 0 };
	CHECK_EQ(ioctl(t.vm, KVM_IRQ_LINE_STATUS, &level), 0);
	CHECK_EQ(level.status, -1);
	/* The EOI comes back to whoever asked for it. */
	CHECK_EQ(ioctl(t.vm, KVM_IRQFD, &irqfd), 0);
	CHECK_EQ(write(irqfd.fd, &one, 8), 8);
	CHECK_EQ(run_at(&t, DO_HALT, &regs), VECTOR);
	CHECK_EQ(read(irqfd.resamplefd, &count, 8), -1);
	CHECK_EQ(guest_wrmsr(&t, HV_EOI, 0), 0);
	CHECK_EQ(read(irqfd.resamplefd, &count, 8), 8);
	/* By index, not by id; and a masked source is nobody. */
	CHECK_EQ(set_msr(&t, VP_INDEX, 7), 1);
	level = (struct kvm_irq_level){ .irq = 30, .level = 1 };
	CHECK_EQ(ioctl(t.vm, KVM_IRQ_LINE_STATUS, &level), 0);
	CHECK(level.status < 0);
	CHECK_EQ(set_msr(&t, VP_INDEX, 0), 1);
	CHECK_EQ(set_msr(&t, SINT0 + 2, VECTOR | 0x10000), 1);
	level = (struct kvm_irq_level){ .irq = 30, .level = 1 };
	CHECK_EQ(ioctl(t.vm, KVM_IRQ_LINE_STATUS, &level), 0);
	CHECK(level.status < 0);
	close(irqfd.fd);
	close(irqfd.resamplefd);
	kvmtest_done(&t);
}

/* The APIC's registers as MSRs, and the page that saves EOIs. */
static void test_apic(void)
{
	struct kvmtest t = guest(1);
	uint64_t value;

	CHECK_EQ(guest_wrmsr(&t, HV_TPR, 0x50), 0);
	CHECK_EQ(guest_rdmsr(&t, HV_TPR, &value), 0);
	CHECK_EQ(value, 0x50);
	CHECK_EQ(guest_wrmsr(&t, HV_TPR, 1ull << 32), 13);
	CHECK_EQ(guest_rdmsr(&t, HV_EOI, &value), 13);
	CHECK_EQ(guest_wrmsr(&t, HV_ICR, 0x40000 | 0x61), 0);	/* to itself */
	CHECK_EQ(sti(&t), 0x61);
	CHECK_EQ(guest_wrmsr(&t, HV_EOI, 0), 0);
	CHECK_EQ(guest_wrmsr(&t, HV_TPR, 0x70), 0);
	CHECK_EQ(guest_wrmsr(&t, HV_ICR, 0x40000 | 0x61), 0);
	CHECK_EQ(sti(&t), 0);
	CHECK_EQ(guest_wrmsr(&t, HV_TPR, 0), 0);
	memset(t.mem + SCRATCH, 0xee, 16);
	CHECK_EQ(guest_wrmsr(&t, VP_ASSIST, 1ull << 30 | 1), 13);
	CHECK_EQ(guest_wrmsr(&t, VP_ASSIST, SCRATCH | 1), 0);
	CHECK_EQ(*(uint64_t *)(t.mem + SCRATCH), 0xeeeeeeee00000000ull);
	CHECK_EQ(sti(&t), 0x61);
	CHECK_EQ(get_msr(&t, VP_ASSIST), SCRATCH | 1);
	kvmtest_done(&t);
}

int main(void)
{
	test_caps();
	test_eventfd_errno();
	test_msrs_of_client();
	test_msrs_of_guest();
	test_exits();
	test_hypercall_page();
	test_hypercall_input();
	test_hypercall_exit();
	test_mutual_flush();
	test_hypercall_32();
	test_clock();
	test_invtsc();
	test_stimer();
	test_stimer_direct();
	test_stimer_not_running();
	test_auto_eoi();
	test_sint_routing();
	test_apic();
	return kvmtest_summary();
}

/* SPDX-License-Identifier: MIT */
/* vCPU and VM state: get -> set -> get is the identity; refused values change nothing. */
#include <linux/kvm_para.h>

#include "api/kvmtest.h"

#define ROUND_TRIP(type, get, set)                                              \
	do {                                                                    \
		type *a = calloc(1, sizeof(type)), *b = calloc(1, sizeof(type)); \
		CHECK_EQ(ioctl(t->vcpu, get, a), 0);                            \
		CHECK_EQ(ioctl(t->vcpu, set, a), 0);                            \
		CHECK_EQ(ioctl(t->vcpu, get, b), 0);                            \
		CHECK(!memcmp(a, b, sizeof(type)));                             \
		CHECK_ERRNO(ioctl(t->vcpu, get, 8), EFAULT);                    \
		CHECK_ERRNO(ioctl(t->vcpu, set, 8), EFAULT);                    \
		free(a);                                                        \
		free(b);                                                        \
	} while (0)

struct lapic { struct kvm_lapic_state s; };

static void set_cpuid(struct kvmtest *t)
{
	struct kvm_cpuid2 *c = calloc(1, sizeof(*c) + 100 * sizeof(struct kvm_cpuid_entry2));

	c->nent = 100;
	NEED(ioctl(t->kvm, KVM_GET_SUPPORTED_CPUID, c) == 0);
	CHECK_EQ(ioctl(t->vcpu, KVM_SET_CPUID2, c), 0);
	c->nent = 100;
	CHECK_EQ(ioctl(t->vcpu, KVM_GET_CPUID2, c), 0);
	CHECK(c->nent > 5);
	c->nent = 1;
	CHECK_ERRNO(ioctl(t->vcpu, KVM_GET_CPUID2, c), E2BIG);
	c->nent = 1000;
	CHECK_ERRNO(ioctl(t->vcpu, KVM_SET_CPUID2, c), E2BIG);
	free(c);
}

static void test_round_trips(struct kvmtest *t)
{
	ROUND_TRIP(struct kvm_regs, KVM_GET_REGS, KVM_SET_REGS);
	ROUND_TRIP(struct kvm_sregs, KVM_GET_SREGS, KVM_SET_SREGS);
	ROUND_TRIP(struct kvm_sregs2, KVM_GET_SREGS2, KVM_SET_SREGS2);
	ROUND_TRIP(struct kvm_fpu, KVM_GET_FPU, KVM_SET_FPU);
	ROUND_TRIP(struct kvm_xsave, KVM_GET_XSAVE, KVM_SET_XSAVE);
	ROUND_TRIP(struct kvm_xcrs, KVM_GET_XCRS, KVM_SET_XCRS);
	ROUND_TRIP(struct kvm_debugregs, KVM_GET_DEBUGREGS, KVM_SET_DEBUGREGS);
	ROUND_TRIP(struct kvm_mp_state, KVM_GET_MP_STATE, KVM_SET_MP_STATE);
	ROUND_TRIP(struct kvm_vcpu_events, KVM_GET_VCPU_EVENTS, KVM_SET_VCPU_EVENTS);
	ROUND_TRIP(struct lapic, KVM_GET_LAPIC, KVM_SET_LAPIC);
}

/* Values other than the reset ones. */
static void test_values(struct kvmtest *t)
{
	struct kvm_regs regs = { .rax = 1, .rbx = ~0ull, .r15 = 0x1234567890abcdef, .rip = 0x7777, .rflags = 0xcd7 }, r2;
	struct kvm_fpu fpu = { .fcw = 0x37f, .mxcsr = 0x1f80 }, fpu2;
	struct kvm_debugregs dr = { .db = { 1, 2, 3, 4 }, .dr6 = 0xffff0ff0, .dr7 = 0x400 }, dr2;

	CHECK_EQ(ioctl(t->vcpu, KVM_SET_REGS, &regs), 0);
	CHECK_EQ(ioctl(t->vcpu, KVM_GET_REGS, &r2), 0);
	CHECK(!memcmp(&regs, &r2, sizeof(regs)));
	for (unsigned i = 0; i < sizeof(fpu.xmm); i++)
		fpu.xmm[i / 16][i % 16] = i * 7;
	for (unsigned i = 0; i < 8; i++)
		memset(fpu.fpr[i], i + 1, 10);
	fpu.ftwx = 0xff;
	fpu.last_ip = 0x1122334455;
	CHECK_EQ(ioctl(t->vcpu, KVM_SET_FPU, &fpu), 0);
	CHECK_EQ(ioctl(t->vcpu, KVM_GET_FPU, &fpu2), 0);
	CHECK(!memcmp(fpu.xmm, fpu2.xmm, sizeof(fpu.xmm)));
	CHECK(!memcmp(fpu.fpr, fpu2.fpr, sizeof(fpu.fpr)));
	CHECK_EQ(fpu2.ftwx, 0xff);
	CHECK_EQ(fpu2.last_ip, 0x1122334455);
	CHECK_EQ(ioctl(t->vcpu, KVM_SET_DEBUGREGS, &dr), 0);
	CHECK_EQ(ioctl(t->vcpu, KVM_GET_DEBUGREGS, &dr2), 0);
	CHECK_EQ(dr2.db[3], 4);
	dr.dr6 = 1ull << 32;
	CHECK_ERRNO(ioctl(t->vcpu, KVM_SET_DEBUGREGS, &dr), EINVAL);
	dr.dr6 = 0xffff0ff0;
	dr.flags = 1;
	CHECK_ERRNO(ioctl(t->vcpu, KVM_SET_DEBUGREGS, &dr), EINVAL);
}

static void refuse_sregs(struct kvmtest *t, const struct kvm_sregs *bad)
{
	struct kvm_sregs before, after;

	CHECK_EQ(ioctl(t->vcpu, KVM_GET_SREGS, &before), 0);
	CHECK_ERRNO(ioctl(t->vcpu, KVM_SET_SREGS, bad), EINVAL);
	CHECK_EQ(ioctl(t->vcpu, KVM_GET_SREGS, &after), 0);
	CHECK(!memcmp(&before, &after, sizeof(before)));
}

static void test_bad_sregs(struct kvmtest *t)
{
	struct kvm_sregs good, s;

	CHECK_EQ(ioctl(t->vcpu, KVM_GET_SREGS, &good), 0);
	s = good, s.cr4 |= 1ull << 40, refuse_sregs(t, &s);
	s = good, s.cr0 |= 1ull << 33, refuse_sregs(t, &s);
	s = good, s.cr0 = 0x80000010, refuse_sregs(t, &s);	/* PG without PE */
	s = good, s.efer |= 1ull << 40, refuse_sregs(t, &s);
	s = good, s.cr0 = 0x80000011, s.efer = 0x500, s.cr4 = 0, refuse_sregs(t, &s); /* long mode without PAE */
	s = good, s.apic_base |= 1ull << 60, refuse_sregs(t, &s);
}

static void test_msrs(struct kvmtest *t)
{
	struct kvm_msr_list *list = calloc(1, sizeof(*list) + 1024 * 4);
	struct {
		struct kvm_msrs h;
		struct kvm_msr_entry e[2];
	} m = { .h.nmsrs = 1 };

	list->nmsrs = 1024;
	CHECK_EQ(ioctl(t->kvm, KVM_GET_MSR_INDEX_LIST, list), 0);
	for (unsigned pass = 0; pass < 2; pass++) {
		for (unsigned i = 0; i < list->nmsrs; i++) {
			m.e[0].index = list->indices[i];
			errno = 0;
			if (ioctl(t->vcpu, KVM_GET_MSRS, &m) != 1 || ioctl(t->vcpu, KVM_SET_MSRS, &m) != 1) {
				printf("MSR 0x%x value 0x%llx\n", m.e[0].index, (unsigned long long)m.e[0].data);
				CHECK(!"an MSR does not accept its own value");
			} else {
				kvmtest_passed++;
			}
		}
		list->nmsrs = 1024;
		CHECK_EQ(ioctl(t->kvm, KVM_GET_MSR_FEATURE_INDEX_LIST, list), 0);
	}
	m.h.nmsrs = 2;
	m.e[0].index = 0x277;		/* PAT */
	m.e[1].index = 0xdeadbeef;
	CHECK_EQ(ioctl(t->vcpu, KVM_GET_MSRS, &m), 1);
	m.e[0].data = 0x0007040600070406ull;
	CHECK_EQ(ioctl(t->vcpu, KVM_SET_MSRS, &m), 1);
	m.e[0].data = 0x99;		/* bad memory type: the loop stops before it */
	CHECK_EQ(ioctl(t->vcpu, KVM_SET_MSRS, &m), 0);
	m.h.nmsrs = 256;
	CHECK_ERRNO(ioctl(t->vcpu, KVM_GET_MSRS, &m), E2BIG);
	CHECK_ERRNO(ioctl(t->vcpu, KVM_GET_MSRS, 8), EFAULT);
	free(list);
}

static bool set_msr(struct kvmtest *t, uint32_t index, uint64_t value)
{
	struct {
		struct kvm_msrs h;
		struct kvm_msr_entry e;
	} m = { { .nmsrs = 1 }, { .index = index, .data = value } };

	return ioctl(t->vcpu, KVM_SET_MSRS, &m) == 1;
}

static uint64_t get_msr(struct kvmtest *t, uint32_t index)
{
	struct {
		struct kvm_msrs h;
		struct kvm_msr_entry e;
	} m = { { .nmsrs = 1 }, { .index = index, .data = ~0ull } };

	CHECK_EQ(ioctl(t->vcpu, KVM_GET_MSRS, &m), 1);
	return m.e.data;
}

/* Asynchronous page faults and PV EOI, with an APIC of the VM and with one of the client. */
static void test_paravirt_msrs(struct kvmtest *t)
{
	struct kvmtest bare = kvmtest_vm(1 << 20, 0);

	CHECK(set_msr(t, MSR_KVM_ASYNC_PF_EN, 0x1000 | 9));
	CHECK_EQ(get_msr(t, MSR_KVM_ASYNC_PF_EN), 0x1009);
	CHECK(!set_msr(t, MSR_KVM_ASYNC_PF_EN, 0x1010 | 9));		/* reserved bit */
	CHECK(!set_msr(t, MSR_KVM_ASYNC_PF_EN, (1ull << 36) | 9));	/* no memory there */
	CHECK(set_msr(t, MSR_KVM_ASYNC_PF_EN, (1ull << 36) | 1));	/* which counts only if it is enabled, by both bits */
	CHECK(set_msr(t, MSR_KVM_ASYNC_PF_INT, 0xf3));
	CHECK_EQ(get_msr(t, MSR_KVM_ASYNC_PF_INT), 0xf3);
	CHECK(!set_msr(t, MSR_KVM_ASYNC_PF_INT, 0x1f3));
	CHECK(set_msr(t, MSR_KVM_ASYNC_PF_ACK, 1));
	CHECK_EQ(get_msr(t, MSR_KVM_ASYNC_PF_ACK), 0);
	CHECK(set_msr(t, MSR_KVM_ASYNC_PF_EN, 0));

	kvmtest_add_vcpu(&bare, 0);
	CHECK(!set_msr(&bare, MSR_KVM_ASYNC_PF_EN, 0x1009));
	CHECK(set_msr(&bare, MSR_KVM_ASYNC_PF_EN, 0));
	CHECK(!set_msr(&bare, MSR_KVM_ASYNC_PF_INT, 0xf3));
	CHECK(set_msr(&bare, MSR_KVM_ASYNC_PF_INT, 0));
	CHECK(set_msr(&bare, MSR_KVM_PV_EOI_EN, 0x1001));
	CHECK_EQ(get_msr(&bare, MSR_KVM_PV_EOI_EN), 0x1001);
	CHECK(!set_msr(&bare, MSR_KVM_PV_EOI_EN, 0x1003));
	CHECK(set_msr(&bare, MSR_KVM_PV_EOI_EN, 0));
	kvmtest_done(&bare);
}

static void test_events(struct kvmtest *t)
{
	struct kvm_vcpu_events ev;
	struct kvm_mp_state mp;

	CHECK_EQ(ioctl(t->vcpu, KVM_NMI, 0), 0);
	CHECK_EQ(ioctl(t->vcpu, KVM_GET_VCPU_EVENTS, &ev), 0);
	CHECK_EQ(ev.nmi.pending, 1);
	ev.nmi.pending = 0;
	ev.flags = KVM_VCPUEVENT_VALID_NMI_PENDING;
	CHECK_EQ(ioctl(t->vcpu, KVM_SET_VCPU_EVENTS, &ev), 0);
	CHECK_EQ(ioctl(t->vcpu, KVM_GET_VCPU_EVENTS, &ev), 0);
	CHECK_EQ(ev.nmi.pending, 0);
	ev.exception.injected = 1;
	ev.exception.nr = 32;
	CHECK_ERRNO(ioctl(t->vcpu, KVM_SET_VCPU_EVENTS, &ev), EINVAL);
	ev.exception.injected = 0;
	ev.flags = 1 << 20;
	CHECK_ERRNO(ioctl(t->vcpu, KVM_SET_VCPU_EVENTS, &ev), EINVAL);
	CHECK_EQ(ioctl(t->vcpu, KVM_GET_MP_STATE, &mp), 0);
	mp.mp_state = 77;
	CHECK_ERRNO(ioctl(t->vcpu, KVM_SET_MP_STATE, &mp), EINVAL);
}

static void test_time(struct kvmtest *t)
{
	int khz = ioctl(t->vcpu, KVM_GET_TSC_KHZ, 0);
	struct kvm_clock_data a, b;

	CHECK(khz > 100000);
	CHECK_EQ(ioctl(t->vcpu, KVM_SET_TSC_KHZ, khz), 0);
	CHECK_EQ(ioctl(t->vm, KVM_GET_CLOCK, &a), 0);
	usleep(2000);
	CHECK_EQ(ioctl(t->vm, KVM_GET_CLOCK, &b), 0);
	CHECK(b.clock - a.clock >= 2000000 && b.clock - a.clock < 2000000000);
	memset(&b, 0, sizeof(b));
	b.clock = 1ull << 40;
	CHECK_EQ(ioctl(t->vm, KVM_SET_CLOCK, &b), 0);
	CHECK_EQ(ioctl(t->vm, KVM_GET_CLOCK, &a), 0);
	CHECK(a.clock >= 1ull << 40 && a.clock < (1ull << 40) + 1000000000);
	b.flags = 1 << 20;
	CHECK_ERRNO(ioctl(t->vm, KVM_SET_CLOCK, &b), EINVAL);
	CHECK_ERRNO(ioctl(t->vcpu, KVM_KVMCLOCK_CTRL, 0), EINVAL); /* the guest has not enabled it */
}

static void test_translate(struct kvmtest *t)
{
	struct kvm_translation tr = { .linear_address = 0x123456 };

	kvmtest_long_mode(t, 0x8000, "\xf4", 1);
	CHECK_EQ(ioctl(t->vcpu, KVM_TRANSLATE, &tr), 0);
	CHECK_EQ(tr.valid, 1);
	CHECK_EQ(tr.physical_address, 0x123456);
	tr.linear_address = 1ull << 40;
	CHECK_EQ(ioctl(t->vcpu, KVM_TRANSLATE, &tr), 0);
	CHECK_EQ(tr.valid, 0);
}

int main(void)
{
	struct kvmtest t = kvmtest_vm(4 << 20, 1);

	kvmtest_add_vcpu(&t, 0);
	test_round_trips(&t);
	set_cpuid(&t);
	test_round_trips(&t);
	test_values(&t);
	test_bad_sregs(&t);
	test_msrs(&t);
	test_paravirt_msrs(&t);
	test_events(&t);
	test_time(&t);
	test_translate(&t);
	test_round_trips(&t);
	kvmtest_done(&t);
	return kvmtest_summary();
}

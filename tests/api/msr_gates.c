/* SPDX-License-Identifier: MIT */
/*
 * MSRs that a guest has only with a CPUID bit, or unless a capability withholds them: RDMSR with it and
 * without. A #GP finds no IDT, so the guest shuts down. The client itself may read them either way.
 */
#include "api/kvmtest.h"

#define CODE 0x8000

/* rdmsr; hlt */
static const uint8_t read_msr[] = { 0x0f, 0x32, 0xf4 };

enum cpuid_reg { EAX, EBX, ECX, EDX };

struct cpuid_bit {
	uint32_t leaf, index, reg, bit;
};

/* The guest has the MSR with any of these. */
static const struct gate {
	const char *name;
	uint32_t msr;
	struct cpuid_bit bits[4];
} gates[] = {
	{ "SPEC_CTRL", 0x48, { { 7, 0, EDX, 26 }, { 0x80000008, 0, EBX, 12 }, { 0x80000008, 0, EBX, 14 }, { 0x80000008, 0, EBX, 24 } } },
	{ "ARCH_CAPABILITIES", 0x10a, { { 7, 0, EDX, 29 } } },
	{ "TSC_AUX", 0xc0000103, { { 0x80000001, 0, EDX, 27 }, { 7, 0, ECX, 22 } } },
	{ "XSS", 0xda0, { { 0xd, 1, EAX, 3 } } },
};

static struct {
	struct kvm_cpuid2 h;
	struct kvm_cpuid_entry2 e[256];
} cpuid;

static uint32_t *cpuid_reg(const struct cpuid_bit *b)
{
	for (unsigned i = 0; b->leaf && i < cpuid.h.nent; i++) {
		struct kvm_cpuid_entry2 *e = &cpuid.e[i];

		if (e->function == b->leaf && e->index == b->index)
			return (uint32_t *[]){ &e->eax, &e->ebx, &e->ecx, &e->edx }[b->reg];
	}
	return NULL;
}

static void get_cpuid(void)
{
	int kvm = open("/dev/kvm", O_RDWR);

	NEED(kvm >= 0);
	cpuid.h.nent = 256;
	NEED(ioctl(kvm, KVM_GET_SUPPORTED_CPUID, &cpuid) == 0);
	close(kvm);
}

static struct kvmtest open_guest(void)
{
	struct kvmtest t = kvmtest_vm(1 << 20, 0); /* without an APIC HLT is an exit */

	kvmtest_add_vcpu(&t, 0);
	NEED(ioctl(t.vcpu, KVM_SET_CPUID2, &cpuid) == 0);
	kvmtest_long_mode(&t, CODE, read_msr, sizeof(read_msr));
	NEED(ioctl(t.vcpu, KVM_SET_CPUID2, &cpuid) == 0);
	return t;
}

static unsigned exit_of(struct kvmtest *t, uint32_t msr)
{
	struct kvm_regs r = { .rip = CODE, .rflags = 2, .rcx = msr };
	struct kvm_sregs s;

	NEED(ioctl(t->vcpu, KVM_GET_SREGS, &s) == 0);
	s.idt.limit = 0;
	NEED(ioctl(t->vcpu, KVM_SET_SREGS, &s) == 0);
	NEED(ioctl(t->vcpu, KVM_SET_REGS, &r) == 0);
	CHECK_EQ(ioctl(t->vcpu, KVM_RUN, 0), 0);
	return t->run->exit_reason;
}

static void test_gate(const struct gate *g)
{
	struct kvmtest t;
	int offered = 0;

	get_cpuid();
	for (unsigned i = 0; i < 4; i++) {
		uint32_t *reg = cpuid_reg(&g->bits[i]);

		offered |= reg && *reg >> g->bits[i].bit & 1;
	}
	if (!offered) {
		printf("%s is not offered here\n", g->name);
		kvmtest_skipped++;
		return;
	}
	t = open_guest();
	CHECK_EQ(exit_of(&t, g->msr), KVM_EXIT_HLT);
	kvmtest_done(&t);
	for (unsigned i = 0; i < 4; i++)
		if (cpuid_reg(&g->bits[i]))
			*cpuid_reg(&g->bits[i]) &= ~(1u << g->bits[i].bit);
	t = open_guest();
	kvmtest_get_msr(&t, g->msr);
	CHECK_EQ(exit_of(&t, g->msr), KVM_EXIT_SHUTDOWN);
	kvmtest_done(&t);
}

/* KVM's own, and KVM_CAP_ENFORCE_PV_FEATURE_CPUID: kvmclock, poll control, PV EOI. */
static void test_enforced(uint32_t msr, unsigned bit)
{
	const struct cpuid_bit features = { 0x40000001, 0, EAX, bit };
	struct kvm_enable_cap cap = { .cap = KVM_CAP_ENFORCE_PV_FEATURE_CPUID, .args = { 1 } };
	struct kvmtest t;
	uint32_t *reg;

	get_cpuid();
	reg = cpuid_reg(&features);
	NEED(reg);
	for (int enforce = 0; enforce < 2; enforce++) {
		for (int offered = 0; offered < 2; offered++) {
			*reg = offered ? *reg | 1u << bit : *reg & ~(1u << bit);
			t = open_guest();
			cap.args[0] = enforce;
			CHECK_EQ(ioctl(t.vcpu, KVM_ENABLE_CAP, &cap), 0);
			CHECK_EQ(exit_of(&t, msr), enforce && !offered ? KVM_EXIT_SHUTDOWN : KVM_EXIT_HLT);
			kvmtest_done(&t);
		}
	}
}

int main(void)
{
	for (unsigned i = 0; i < sizeof(gates) / sizeof(gates[0]); i++)
		test_gate(&gates[i]);
	test_enforced(0x4b564d01, 3);
	test_enforced(0x4b564d05, 12);
	test_enforced(0x4b564d04, 6);
	return kvmtest_summary();
}

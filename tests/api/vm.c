/* SPDX-License-Identifier: MIT */
/* VM-wide settings and the smaller vCPU ioctls: a success each, and the errnos KVM documents. */
#include <sys/eventfd.h>

#include "api/kvmtest.h"

#ifndef KVM_SET_USER_MEMORY_REGION2
struct kvm_userspace_memory_region2 {
	__u32 slot, flags;
	__u64 guest_phys_addr, memory_size, userspace_addr, guest_memfd_offset;
	__u32 guest_memfd, pad1;
	__u64 pad2[14];
};
#define KVM_SET_USER_MEMORY_REGION2 _IOW(KVMIO, 0x49, struct kvm_userspace_memory_region2)
#endif

static void test_addresses(void)
{
	struct kvmtest t = kvmtest_vm(1 << 20, 0);
	uint64_t addr = 0xfeffc000;

	CHECK_EQ(ioctl(t.vm, KVM_SET_TSS_ADDR, 0xfeffd000ul), 0);
	CHECK_ERRNO(ioctl(t.vm, KVM_SET_TSS_ADDR, 0xfffffffful), EINVAL);
	CHECK_EQ(ioctl(t.vm, KVM_SET_IDENTITY_MAP_ADDR, &addr), 0);
	CHECK_ERRNO(ioctl(t.vm, KVM_SET_IDENTITY_MAP_ADDR, 8), EFAULT);
	CHECK_EQ(ioctl(t.vm, KVM_SET_BOOT_CPU_ID, 1), 0);
	kvmtest_add_vcpu(&t, 0);
	CHECK_ERRNO(ioctl(t.vm, KVM_SET_IDENTITY_MAP_ADDR, &addr), EINVAL);
	CHECK_ERRNO(ioctl(t.vm, KVM_SET_BOOT_CPU_ID, 0), EBUSY);
	kvmtest_done(&t);
}

static void test_mmu_pages(void)
{
	struct kvmtest t = kvmtest_vm(1 << 20, 0);

	CHECK_ERRNO(ioctl(t.vm, KVM_SET_NR_MMU_PAGES, 63), EINVAL);
	CHECK_EQ(ioctl(t.vm, KVM_SET_NR_MMU_PAGES, 64), 0);
	CHECK_ERRNO(ioctl(t.vm, KVM_GET_NR_MMU_PAGES, 0), ENOTTY); /* a macro only */
	kvmtest_done(&t);
}

static void test_region2(void)
{
	struct kvmtest t = kvmtest_vm(1 << 20, 0);
	struct kvm_userspace_memory_region2 r = { .slot = 1, .guest_phys_addr = 4 << 20, .memory_size = 4096 };

	r.userspace_addr = (uintptr_t)t.mem;
	CHECK_EQ(ioctl(t.vm, KVM_SET_USER_MEMORY_REGION2, &r), 0);
	r.flags = 1u << 31;
	CHECK_ERRNO(ioctl(t.vm, KVM_SET_USER_MEMORY_REGION2, &r), EINVAL);
	CHECK_ERRNO(ioctl(t.vm, KVM_SET_USER_MEMORY_REGION2, 8), EFAULT);
	kvmtest_done(&t);
}

static void test_pit(void)
{
	struct kvmtest t = kvmtest_vm(1 << 20, 1);
	struct kvm_reinject_control ctl = { .pit_reinject = 0 };
	struct kvm_pit_config pit = { 0 };
	struct kvm_pit_state state;

	CHECK_ERRNO(ioctl(t.vm, KVM_REINJECT_CONTROL, &ctl), ENXIO);
	CHECK_ERRNO(ioctl(t.vm, KVM_GET_PIT, &state), ENXIO);
	CHECK_EQ(ioctl(t.vm, KVM_CREATE_PIT2, &pit), 0);
	CHECK_EQ(ioctl(t.vm, KVM_REINJECT_CONTROL, &ctl), 0);
	CHECK_EQ(ioctl(t.vm, KVM_GET_PIT, &state), 0);
	CHECK_EQ(ioctl(t.vm, KVM_SET_PIT, &state), 0);
	CHECK_ERRNO(ioctl(t.vm, KVM_CREATE_PIT, 0), EEXIST);
	kvmtest_done(&t);
}

static void test_irq_line_status(void)
{
	struct kvmtest t = kvmtest_vm(1 << 20, 1);
	struct kvm_irq_level l = { .irq = 3, .level = 1 };

	kvmtest_add_vcpu(&t, 0);
	CHECK_EQ(ioctl(t.vm, KVM_IRQ_LINE_STATUS, &l), 0);
	CHECK(l.status >= -1 && l.status <= 1);
	l.irq = 4000; /* not routed: ignored */
	CHECK_EQ(ioctl(t.vm, KVM_IRQ_LINE_STATUS, &l), 0);
	CHECK_EQ((int)l.status, -1);
	CHECK_ERRNO(ioctl(t.vm, KVM_IRQ_LINE_STATUS, 8), EFAULT);
	kvmtest_done(&t);
}

static uint32_t lapic_reg(struct kvm_lapic_state *s, unsigned offset)
{
	uint32_t v;

	memcpy(&v, s->regs + offset, 4);
	return v;
}

/* An uncorrected error without need for action: logged, and an interrupt if MCi_CTL2 and LVTCMCI want it. */
static void test_cmci(void)
{
	const uint64_t cmci = 1ull << 10 | 1ull << 8 | 4, enable = 1ull << 30;
	struct kvmtest t = kvmtest_vm(1 << 16, 1);
	struct kvm_x86_mce mce = { .bank = 2, .status = 1ull << 63 | 1ull << 61, .addr = 0x1000 };
	struct kvm_lapic_state s;
	uint64_t cap = cmci, plain = 4;
	uint32_t v;

	kvmtest_add_vcpu(&t, 0);
	CHECK_EQ(kvmtest_set_msr(&t, 0x282, enable), 0); /* not without MCG_CMCI_P */
	CHECK_EQ(kvmtest_set_msr(&t, 0x282, 0), 1);
	CHECK_EQ(ioctl(t.vcpu, KVM_GET_LAPIC, &s), 0);
	CHECK_EQ(lapic_reg(&s, 0x30) >> 16, 5);
	CHECK_EQ(ioctl(t.vcpu, KVM_X86_SETUP_MCE, &cap), 0);
	CHECK_EQ(kvmtest_set_msr(&t, 0x282, enable | 0x7fff), 1);
	CHECK_EQ(kvmtest_get_msr(&t, 0x282), enable | 0x7fff);
	CHECK_EQ(kvmtest_set_msr(&t, 0x282, enable | 0x8000), 0);
	CHECK_EQ(kvmtest_set_msr(&t, 0x284, enable), 0); /* past the last bank */
	CHECK_EQ(ioctl(t.vcpu, KVM_GET_LAPIC, &s), 0);
	CHECK_EQ(lapic_reg(&s, 0x30) >> 16, 6);
	CHECK_EQ(lapic_reg(&s, 0x2f0), 0x10000);

	CHECK_EQ(ioctl(t.vcpu, KVM_X86_SET_MCE, &mce), 0); /* masked in the APIC */
	CHECK_EQ(kvmtest_get_msr(&t, 0x40a), 0x1000);
	CHECK_EQ(ioctl(t.vcpu, KVM_GET_LAPIC, &s), 0);
	CHECK_EQ(lapic_reg(&s, 0x220), 0);
	v = 0x31;
	memcpy(s.regs + 0x2f0, &v, 4);
	v = 0x1ff;
	memcpy(s.regs + 0xf0, &v, 4);
	CHECK_EQ(ioctl(t.vcpu, KVM_SET_LAPIC, &s), 0);
	mce.bank = 1;
	mce.addr = 0x3000;
	CHECK_EQ(ioctl(t.vcpu, KVM_X86_SET_MCE, &mce), 0); /* not enabled in this bank */
	CHECK_EQ(kvmtest_get_msr(&t, 0x406), 0x3000);
	CHECK_EQ(ioctl(t.vcpu, KVM_GET_LAPIC, &s), 0);
	CHECK_EQ(lapic_reg(&s, 0x210), 0);
	mce.bank = 2;
	CHECK_EQ(ioctl(t.vcpu, KVM_X86_SET_MCE, &mce), 0);
	CHECK_EQ(ioctl(t.vcpu, KVM_GET_LAPIC, &s), 0);
	CHECK_EQ(lapic_reg(&s, 0x210), 1u << (0x31 - 32));
	CHECK_EQ(ioctl(t.vcpu, KVM_X86_SETUP_MCE, &cap), 0);
	CHECK_EQ(kvmtest_get_msr(&t, 0x282), 0); /* disabled again */
	CHECK_EQ(ioctl(t.vcpu, KVM_X86_SETUP_MCE, &plain), 0);
	CHECK_EQ(kvmtest_set_msr(&t, 0x282, enable), 0);
	kvmtest_done(&t);
}

static void test_mce(void)
{
	struct kvmtest t = kvmtest_vm(1 << 20, 1);
	uint64_t cap = 0, ask;

	kvmtest_add_vcpu(&t, 0);
	CHECK_EQ(ioctl(t.kvm, KVM_X86_GET_MCE_CAP_SUPPORTED, &cap), 0);
	CHECK(cap & 1 << 8); /* MCG_CTL_P */
	ask = (cap & ~0xffull) | 10;
	CHECK_EQ(ioctl(t.vcpu, KVM_X86_SETUP_MCE, &ask), 0);
	ask = (cap & ~0xffull) | 33; /* more banks than there are */
	CHECK_ERRNO(ioctl(t.vcpu, KVM_X86_SETUP_MCE, &ask), EINVAL);
	ask = 1ull << 60 | 10;
	CHECK_ERRNO(ioctl(t.vcpu, KVM_X86_SETUP_MCE, &ask), EINVAL);
	struct kvm_x86_mce mce = { .bank = 77, .status = 1ull << 63 };
	CHECK_ERRNO(ioctl(t.vcpu, KVM_X86_SET_MCE, &mce), EINVAL);
	mce.bank = 1;
	CHECK_EQ(ioctl(t.vcpu, KVM_X86_SET_MCE, &mce), 0);
	mce.status = 0; /* not valid */
	CHECK_ERRNO(ioctl(t.vcpu, KVM_X86_SET_MCE, &mce), EINVAL);
	kvmtest_done(&t);
}

static void test_vapic(void)
{
	struct kvmtest t = kvmtest_vm(1 << 20, 1);
	struct kvm_tpr_access_ctl tac = { .enabled = 1 };
	struct kvm_vapic_addr va = { .vapic_addr = 0x1000 };

	kvmtest_add_vcpu(&t, 0);
	CHECK_EQ(ioctl(t.vcpu, KVM_TPR_ACCESS_REPORTING, &tac), 0);
	CHECK_ERRNO(ioctl(t.vcpu, KVM_TPR_ACCESS_REPORTING, 8), EFAULT);
	CHECK_EQ(ioctl(t.vcpu, KVM_SET_VAPIC_ADDR, &va), 0);
	CHECK_ERRNO(ioctl(t.vcpu, KVM_SET_VAPIC_ADDR, 8), EFAULT);
	kvmtest_done(&t);
	t = kvmtest_vm(1 << 20, 0);
	kvmtest_add_vcpu(&t, 0);
	CHECK_ERRNO(ioctl(t.vcpu, KVM_SET_VAPIC_ADDR, &va), EINVAL); /* no local APIC */
	kvmtest_done(&t);
}

static void test_device_attributes(void)
{
	struct kvmtest t = kvmtest_vm(1 << 20, 0);
	uint64_t value = 0;
	struct kvm_device_attr attr = { .group = 0, .attr = 0 };
	struct kvm_create_device dev = { .type = KVM_DEV_TYPE_VFIO };
	int r;

	attr.addr = (uintptr_t)&value;
	CHECK_EQ(ioctl(t.kvm, KVM_HAS_DEVICE_ATTR, &attr), 0);
	CHECK_EQ(ioctl(t.kvm, KVM_GET_DEVICE_ATTR, &attr), 0); /* XCOMP_GUEST_SUPP */
	CHECK_EQ(value & 3, 3);
	attr.attr = 99;
	CHECK_ERRNO(ioctl(t.kvm, KVM_GET_DEVICE_ATTR, &attr), ENXIO);
	kvmtest_add_vcpu(&t, 0);
	attr = (struct kvm_device_attr){ .group = KVM_VCPU_TSC_CTRL, .attr = KVM_VCPU_TSC_OFFSET };
	attr.addr = (uintptr_t)&value;
	CHECK_EQ(ioctl(t.vcpu, KVM_HAS_DEVICE_ATTR, &attr), 0);
	CHECK_EQ(ioctl(t.vcpu, KVM_GET_DEVICE_ATTR, &attr), 0);
	CHECK_EQ(ioctl(t.vcpu, KVM_SET_DEVICE_ATTR, &attr), 0);
	attr.addr = 8;
	CHECK_ERRNO(ioctl(t.vcpu, KVM_GET_DEVICE_ATTR, &attr), EFAULT);
	attr.group = 55;
	CHECK_ERRNO(ioctl(t.vcpu, KVM_GET_DEVICE_ATTR, &attr), ENXIO);
	r = ioctl(t.vm, KVM_CREATE_DEVICE, &dev);
	CHECK(r == -1 && errno == ENODEV);
	kvmtest_done(&t);
}

static void test_xsave2(void)
{
	struct kvmtest t = kvmtest_vm(1 << 20, 0);
	int size = ioctl(t.vm, KVM_CHECK_EXTENSION, KVM_CAP_XSAVE2);
	uint8_t *a = calloc(1, size), *b = calloc(1, size);

	kvmtest_add_vcpu(&t, 0);
	kvmtest_set_cpuid(&t);
	CHECK_EQ(ioctl(t.vcpu, KVM_GET_XSAVE2, a), 0);
	CHECK_EQ(ioctl(t.vcpu, KVM_SET_XSAVE, a), 0);
	CHECK_EQ(ioctl(t.vcpu, KVM_GET_XSAVE2, b), 0);
	CHECK(!memcmp(a, b, size));
	CHECK_ERRNO(ioctl(t.vcpu, KVM_GET_XSAVE2, 8), EFAULT);
	*(uint32_t *)(a + 24) = 0xffffffff; /* MXCSR with reserved bits */
	*(uint64_t *)(a + 512) = 3;
	CHECK_ERRNO(ioctl(t.vcpu, KVM_SET_XSAVE, a), EINVAL);
	free(a);
	free(b);
	kvmtest_done(&t);
}

static void test_cpuid_rules(void)
{
	struct kvmtest t = kvmtest_vm(1 << 20, 0);
	struct {
		struct kvm_cpuid2 h;
		struct kvm_cpuid_entry2 e[100];
	} c = { .h.nent = 100 };

	kvmtest_add_vcpu(&t, 0);
	kvmtest_real_mode(&t, 0x1000, "\xf4", 1);
	CHECK_EQ(ioctl(t.kvm, KVM_GET_EMULATED_CPUID, &c), 0);
	c.h.nent = 100;
	CHECK_EQ(ioctl(t.kvm, KVM_GET_SUPPORTED_CPUID, &c), 0);
	CHECK_EQ(ioctl(t.vcpu, KVM_SET_CPUID2, &c), 0);
	CHECK_EQ(ioctl(t.vcpu, KVM_RUN, 0), 0);
	CHECK_EQ(ioctl(t.vcpu, KVM_SET_CPUID2, &c), 0);	/* the same again is fine */
	c.e[1].eax ^= 0x10;
	CHECK_ERRNO(ioctl(t.vcpu, KVM_SET_CPUID2, &c), EINVAL);
	CHECK_ERRNO(ioctl(t.vcpu, KVM_SET_CPUID2, 8), EFAULT);
	kvmtest_done(&t);
}

static int filter(int vm, unsigned flags, unsigned base, unsigned nmsrs, void *bitmap, unsigned top)
{
	struct kvm_msr_filter f = { .flags = top };

	f.ranges[0] = (struct kvm_msr_filter_range){ .flags = flags, .base = base, .nmsrs = nmsrs, .bitmap = bitmap };
	return ioctl(vm, KVM_X86_SET_MSR_FILTER, &f);
}

/* Denied MSRs go to userspace, whose answer the guest sees; or fault when userspace says so. */
static void test_msr_filter(void)
{
	/* mov $0x174, %ecx; rdmsr; hlt */
	static const uint8_t code[] = { 0xb9, 0x74, 0x01, 0x00, 0x00, 0x0f, 0x32, 0xf4 };
	struct kvmtest t = kvmtest_vm(1 << 20, 0);
	struct kvm_enable_cap cap = { .cap = KVM_CAP_X86_USER_SPACE_MSR, .args = { KVM_MSR_EXIT_REASON_FILTER } };
	uint8_t bitmap[16] = { 0 };
	struct kvm_regs regs;

	kvmtest_add_vcpu(&t, 0);
	kvmtest_long_mode(&t, 0x8000, code, sizeof(code));
	CHECK_EQ(ioctl(t.vm, KVM_ENABLE_CAP, &cap), 0);
	CHECK_EQ(filter(t.vm, KVM_MSR_FILTER_READ, 0x174, 8, bitmap, 0), 0);
	CHECK_ERRNO(filter(t.vm, 1 << 9, 0x174, 8, bitmap, 0), EINVAL);
	CHECK_ERRNO(filter(t.vm, KVM_MSR_FILTER_READ, 0x174, 8, bitmap, 1 << 9), EINVAL);
	CHECK_ERRNO(filter(t.vm, KVM_MSR_FILTER_READ, 0x174, 1u << 30, bitmap, 0), EINVAL);
	CHECK_EQ(ioctl(t.vcpu, KVM_RUN, 0), 0);
	CHECK_EQ(t.run->exit_reason, KVM_EXIT_X86_RDMSR);
	CHECK_EQ(t.run->msr.index, 0x174);
	CHECK_EQ(t.run->msr.reason, KVM_MSR_EXIT_REASON_FILTER);
	t.run->msr.data = 0x1122334455667788ull;
	t.run->msr.error = 0;
	CHECK_EQ(ioctl(t.vcpu, KVM_RUN, 0), 0);
	CHECK_EQ(t.run->exit_reason, KVM_EXIT_HLT);
	CHECK_EQ(ioctl(t.vcpu, KVM_GET_REGS, &regs), 0);
	CHECK_EQ(regs.rax, 0x55667788);
	CHECK_EQ(regs.rdx, 0x11223344);
	cap.args[0] = 1 << 20;
	CHECK_ERRNO(ioctl(t.vm, KVM_ENABLE_CAP, &cap), EINVAL);
	kvmtest_done(&t);
}

static void test_enable_cap(void)
{
	struct kvmtest t = kvmtest_vm(1 << 20, 0);
	struct kvm_enable_cap cap = { .cap = 4095 };

	CHECK_ERRNO(ioctl(t.vm, KVM_ENABLE_CAP, &cap), EINVAL);
	cap.cap = KVM_CAP_EXCEPTION_PAYLOAD;
	cap.args[0] = 1;
	CHECK_EQ(ioctl(t.vm, KVM_ENABLE_CAP, &cap), 0);
	cap.flags = 1;
	CHECK_ERRNO(ioctl(t.vm, KVM_ENABLE_CAP, &cap), EINVAL);
	cap.flags = 0;
	cap.cap = KVM_CAP_SPLIT_IRQCHIP;
	cap.args[0] = 4097; /* reserved pins: as many as there are routes */
	CHECK_ERRNO(ioctl(t.vm, KVM_ENABLE_CAP, &cap), EINVAL);
	cap.args[0] = 24;
	CHECK_EQ(ioctl(t.vm, KVM_ENABLE_CAP, &cap), 0);
	CHECK_ERRNO(ioctl(t.vm, KVM_ENABLE_CAP, &cap), EEXIST);
	CHECK_ERRNO(ioctl(t.vm, KVM_CREATE_IRQCHIP, 0), EEXIST);
	CHECK_ERRNO(ioctl(t.vm, KVM_ENABLE_CAP, 8), EFAULT);
	kvmtest_done(&t);
}

static void test_absent(void)
{
	struct kvmtest t = kvmtest_vm(1 << 20, 1);
	struct kvm_cpuid *c = calloc(1, sizeof(*c));

	kvmtest_add_vcpu(&t, 0);
	/* What SoftKVM truthfully does not have is not an ioctl at all. */
	CHECK(ioctl(t.vcpu, KVM_GET_NESTED_STATE, 8) == -1);
	CHECK_EQ(ioctl(t.vcpu, KVM_SET_CPUID, c), 0);
	free(c);
	kvmtest_done(&t);
}

/* Threads of the library do not exist before the first KVM_RUN or device that needs one. */
static unsigned threads(void)
{
	char line[128];
	unsigned n = 0;
	FILE *f = fopen("/proc/self/status", "r");

	while (f && fgets(line, sizeof(line), f))
		sscanf(line, "Threads: %u", &n);
	if (f)
		fclose(f);
	return n;
}

static void test_lean(void)
{
	unsigned before = threads();
	struct kvmtest t = kvmtest_vm(1 << 20, 1);

	kvmtest_add_vcpu(&t, 0);
	CHECK_EQ(threads(), before);
	kvmtest_done(&t);
	CHECK_EQ(threads(), before);
}

/* Nobody who holds a descriptor can take the pages behind it away. */
static void test_sealed(void)
{
	struct kvmtest t = kvmtest_vm(1 << 20, 0);

	kvmtest_add_vcpu(&t, 0);
	CHECK(ftruncate(t.vm, 0) == -1);
	CHECK(ftruncate(t.vcpu, 0) == -1);
	t.run->immediate_exit = 1; /* still there */
	CHECK_EQ(t.run->immediate_exit, 1);
	kvmtest_done(&t);
}

/* The descriptor table is a cache: a number that was ours and is not any more is nobody's. */
static void test_reused_number(void)
{
	struct kvmtest t = kvmtest_vm(1 << 20, 0);
	int vm = ioctl(t.kvm, KVM_CREATE_VM, 0), fd;

	close(vm);
	fd = eventfd(0, 0);
	CHECK_EQ(dup2(fd, vm), vm);
	CHECK_ERRNO(ioctl(vm, KVM_CHECK_EXTENSION, KVM_CAP_USER_MEMORY), ENOTTY);
	CHECK_EQ(dup2(t.vm, vm), vm);
	CHECK_EQ(ioctl(vm, KVM_CHECK_EXTENSION, KVM_CAP_USER_MEMORY), 1);
	close(vm);
	close(fd);
	kvmtest_done(&t);
}

int main(void)
{
	test_addresses();
	test_mmu_pages();
	test_region2();
	test_pit();
	test_irq_line_status();
	test_mce();
	test_cmci();
	test_vapic();
	test_device_attributes();
	test_xsave2();
	test_cpuid_rules();
	test_msr_filter();
	test_enable_cap();
	test_absent();
	test_lean();
	test_sealed();
	test_reused_number();
	return kvmtest_summary();
}

/* SPDX-License-Identifier: MIT */
/* Ioctls of /dev/kvm: answers and every errno. */
#include <linux/kvm_para.h>
#include <sys/stat.h>

#include "api/kvmtest.h"

static void test_device(int kvm)
{
	struct stat st;

	CHECK(stat("/dev/kvm", &st) == 0 && S_ISCHR(st.st_mode));
	CHECK(access("/dev/kvm", R_OK | W_OK) == 0);
	CHECK_EQ(ioctl(kvm, KVM_GET_API_VERSION, 0), 12);
	CHECK_ERRNO(ioctl(kvm, KVM_GET_API_VERSION, 1), EINVAL);
	CHECK_EQ(ioctl(kvm, KVM_GET_VCPU_MMAP_SIZE, 0), 12288);
	CHECK_ERRNO(ioctl(kvm, KVM_GET_VCPU_MMAP_SIZE, 1), EINVAL);
	CHECK_ERRNO(ioctl(kvm, _IO(KVMIO, 0xfe), 0), EINVAL);	/* unknown */
	CHECK_ERRNO(ioctl(kvm, KVM_RUN, 0), EINVAL);		/* another fd's */
	CHECK_ERRNO(ioctl(kvm, KVM_CREATE_VCPU, 0), EINVAL);
	CHECK_ERRNO(ioctl(kvm, KVM_CREATE_VM, 77), EINVAL);
	CHECK_ERRNO(ioctl(-1, KVM_GET_API_VERSION, 0), EBADF);
	CHECK(fcntl(ioctl(kvm, KVM_CREATE_VM, 0), F_GETFD) & FD_CLOEXEC);
}

static void test_extensions(int kvm)
{
	static const struct {
		int cap, value;
	} want[] = {
		{ KVM_CAP_IRQCHIP, 1 }, { KVM_CAP_USER_MEMORY, 1 }, { KVM_CAP_NR_MEMSLOTS, 32764 },
		{ KVM_CAP_COALESCED_MMIO, 2 }, { KVM_CAP_IRQ_ROUTING, 4096 }, { KVM_CAP_MCE, 32 },
		{ KVM_CAP_IRQFD, 1 }, { KVM_CAP_PIT2, 1 }, { KVM_CAP_IOEVENTFD, 1 },
		{ KVM_CAP_GET_TSC_KHZ, 1 }, { KVM_CAP_MAX_VCPUS, 1024 }, { KVM_CAP_MAX_VCPU_ID, 4096 },
		{ KVM_CAP_SYNC_REGS, 7 }, { KVM_CAP_READONLY_MEM, 1 }, { KVM_CAP_SPLIT_IRQCHIP, 1 },
		{ KVM_CAP_IMMEDIATE_EXIT, 1 }, { KVM_CAP_MANUAL_DIRTY_LOG_PROTECT2, 3 },
		{ KVM_CAP_X86_SMM, 1 }, { KVM_CAP_MULTI_ADDRESS_SPACE, 2 }, { KVM_CAP_NESTED_STATE, 0 }, { KVM_CAP_SYNC_MMU, 1 },
		{ 4095, 0 }, { -1, 0 },
	};

	for (unsigned i = 0; i < sizeof(want) / sizeof(want[0]); i++)
		CHECK_EQ(ioctl(kvm, KVM_CHECK_EXTENSION, want[i].cap), want[i].value);
	CHECK(ioctl(kvm, KVM_CHECK_EXTENSION, KVM_CAP_XSAVE2) >= 4096);
	CHECK(ioctl(kvm, KVM_CHECK_EXTENSION, KVM_CAP_NR_VCPUS) >= 1);
}

static void test_cpuid(int kvm)
{
	struct {
		struct kvm_cpuid2 h;
		struct kvm_cpuid_entry2 e[256];
	} c = { 0 };

	c.h.nent = 0;
	CHECK_ERRNO(ioctl(kvm, KVM_GET_SUPPORTED_CPUID, &c), E2BIG);
	c.h.nent = 1;
	CHECK_ERRNO(ioctl(kvm, KVM_GET_SUPPORTED_CPUID, &c), E2BIG);
	c.h.nent = 100;
	CHECK_EQ(ioctl(kvm, KVM_GET_SUPPORTED_CPUID, &c), 0);
	CHECK(c.h.nent > 5 && c.h.nent <= 100);
	CHECK_ERRNO(ioctl(kvm, KVM_GET_SUPPORTED_CPUID, 8), EFAULT);

	unsigned kvm_leaf = 0, vmx_svm = 0, avx512 = 0, deadline = 0, features = 0;

	for (unsigned i = 0; i < c.h.nent; i++) {
		struct kvm_cpuid_entry2 *e = &c.e[i];

		if (e->function == 0x40000000)
			kvm_leaf = e->ebx == 0x4b4d564b;
		if (e->function == 0x40000001)
			features = e->eax;
		if (e->function == 1) {
			vmx_svm |= e->ecx & 1 << 5;
			deadline = e->ecx >> 24 & 1;
		}
		if (e->function == 0x80000001)
			vmx_svm |= e->ecx & 1 << 2;
		if (e->function == 7 && e->index == 0)
			avx512 = e->ebx >> 16 & 1;
	}
	CHECK(kvm_leaf);
	CHECK_EQ(vmx_svm, 0);
	CHECK_EQ(avx512, 0);
	/* Only with an in-kernel APIC, so told by a capability (until 6.14). A client's APIC need not have it. */
	CHECK_EQ(deadline, 0);
	CHECK_EQ(ioctl(kvm, KVM_CHECK_EXTENSION, KVM_CAP_TSC_DEADLINE_TIMER), 1);
	/* QEMU's named models want asynchronous page faults. */
	CHECK_EQ(features & (1 << KVM_FEATURE_ASYNC_PF | 1 << KVM_FEATURE_ASYNC_PF_INT),
		 1 << KVM_FEATURE_ASYNC_PF | 1 << KVM_FEATURE_ASYNC_PF_INT);
}

static void test_msr_lists(int kvm)
{
	static const unsigned long cmds[] = { KVM_GET_MSR_INDEX_LIST, KVM_GET_MSR_FEATURE_INDEX_LIST };

	for (int i = 0; i < 2; i++) {
		struct kvm_msr_list *list = calloc(1, sizeof(*list) + 1024 * 4);

		CHECK_ERRNO(ioctl(kvm, cmds[i], list), E2BIG);
		CHECK(list->nmsrs > 0 && list->nmsrs < 1024);
		CHECK_EQ(ioctl(kvm, cmds[i], list), 0);
		CHECK_ERRNO(ioctl(kvm, cmds[i], 8), EFAULT);
		free(list);
	}
}

static void test_feature_msrs(int kvm)
{
	struct kvm_msr_list *list = calloc(1, sizeof(*list) + 1024 * 4);
	struct {
		struct kvm_msrs h;
		struct kvm_msr_entry e[1];
	} m = { .h.nmsrs = 1 };

	list->nmsrs = 1024;
	CHECK_EQ(ioctl(kvm, KVM_GET_MSR_FEATURE_INDEX_LIST, list), 0);
	for (unsigned i = 0; i < list->nmsrs; i++) {
		m.e[0].index = list->indices[i];
		CHECK_EQ(ioctl(kvm, KVM_GET_MSRS, &m), 1);
	}
	free(list);
}

int main(void)
{
	int kvm = open("/dev/kvm", O_RDWR);

	NEED(kvm >= 0);
	test_device(kvm);
	test_extensions(kvm);
	test_cpuid(kvm);
	test_msr_lists(kvm);
	test_feature_msrs(kvm);
	return kvmtest_summary();
}

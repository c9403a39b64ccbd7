/* SPDX-License-Identifier: MIT */
/* softkvm doctor: what this machine's KVM lacks, and what SoftKVM gives instead. */
#include "cli/cli.h"

#include <cpuid.h>
#include <errno.h>
#include <grp.h>
#include <limits.h>
#include <linux/kvm.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/stat.h>
#include <unistd.h>

#include "host/syscall.h"
#include "softkvm.h"

/* Past an outer softkvm: what the kernel itself has. */
static bool exists(const char *path, struct stat *st)
{
	struct stat mine;

	/* -100: AT_FDCWD */
	return !host_syscall(SYS_newfstatat, -100, path, st ? st : &mine, 0);
}

enum cpu_vendor { VENDOR_INTEL, VENDOR_AMD, VENDOR_OTHER };

struct cpu {
	enum cpu_vendor vendor;
	bool virtualization, guest;
};

static struct cpu cpu_read(void)
{
	struct cpu cpu = { .vendor = VENDOR_OTHER };
	unsigned a, b, c, d;

	__cpuid(0, a, b, c, d);
	if (b == signature_INTEL_ebx)
		cpu.vendor = VENDOR_INTEL;
	else if (b == signature_AMD_ebx || b == 0x6f677948) /* Hygon */
		cpu.vendor = VENDOR_AMD;
	__cpuid(1, a, b, c, d);
	cpu.guest = c >> 31 & 1;
	if (cpu.vendor == VENDOR_INTEL) {
		cpu.virtualization = c >> 5 & 1;
	} else if (__get_cpuid(0x80000001, &a, &b, &c, &d)) {
		cpu.virtualization = c >> 2 & 1;
	}
	return cpu;
}

static void explain_cpu(const struct cpu *cpu)
{
	const char *name = cpu->vendor == VENDOR_INTEL ? "VMX" : "SVM";

	if (cpu->virtualization)
		return;
	if (cpu->guest)
		printf("  This machine is itself a virtual machine, and its hypervisor does not pass on %s\n"
		       "  (nested virtualization is off).\n", name);
	else
		printf("  The processor does not report %s: it has none, or the firmware switched it off.\n", name);
}

static void explain_modules(const struct cpu *cpu)
{
	const char *vendor = cpu->vendor == VENDOR_INTEL ? "kvm_intel" : "kvm_amd";
	char path[64];

	snprintf(path, sizeof(path), "/sys/module/%s", vendor);
	if (!exists("/sys/module/kvm", NULL))
		printf("  The kernel module kvm is not loaded.\n");
	else if (!exists(path, NULL))
		printf("  The kernel module %s is not loaded.\n", vendor);
	else
		return;
	if (cpu->virtualization)
		printf("  \"modprobe %s\" (as root) may be all that is missing.\n", vendor);
}

static void explain_permission(void)
{
	struct group *group;
	struct stat st;

	if (!exists("/dev/kvm", &st))
		return;
	group = getgrgid(st.st_gid);
	printf("  /dev/kvm has mode %04o and belongs to group %s", st.st_mode & 07777,
	       group ? group->gr_name : "(unknown)");
	if ((st.st_mode & 0060) == 0060 && st.st_gid)
		printf(": joining that group helps");
	printf(".\n");
}

static const char *const step_text[] = {
	[HW_OPEN] = "/dev/kvm cannot be opened",
	[HW_VERSION] = "its API version is not 12",
	[HW_CREATE_VM] = "a VM cannot be created",
	[HW_MEMORY] = "a VM cannot be given memory",
	[HW_CREATE_VCPU] = "a virtual CPU cannot be created",
	[HW_REGISTERS] = "the registers of a virtual CPU cannot be set",
	[HW_RUN] = "a virtual CPU cannot be run",
	[HW_HANG] = "running one HLT instruction takes forever",
	[HW_TRIAL] = "it could not be tried",
};

static void explain_failure(const struct hardware *hw)
{
	struct cpu cpu = cpu_read();

	if (hw->step == HW_OPEN && hw->error == ENOENT)
		printf("  There is no /dev/kvm.\n");
	else if (hw->step == HW_EXIT)
		printf("  One HLT instruction made KVM_RUN return exit reason %d instead of KVM_EXIT_HLT.\n", hw->error);
	else if (hw->error)
		printf("  %s: %s.\n", step_text[hw->step], strerror(hw->error));
	else
		printf("  %s.\n", step_text[hw->step]);
	if (hw->step == HW_OPEN && (hw->error == EACCES || hw->error == EPERM)) {
		explain_permission();
		return;
	}
	explain_cpu(&cpu);
	explain_modules(&cpu);
}

/* ---- SoftKVM's side ---------------------------------------------------------------------- */

static const struct {
	unsigned leaf, index, reg, bit;
	const char *name;
} shown[] = {
	{ 0x80000001, 0, 3, 29, "64-bit" }, { 0x80000001, 0, 3, 20, "nx" }, { 1, 0, 3, 26, "sse2" },
	{ 1, 0, 2, 20, "sse4.2" }, { 1, 0, 2, 25, "aes" }, { 1, 0, 2, 28, "avx" },
	{ 7, 0, 1, 5, "avx2" }, { 7, 0, 1, 16, "avx512f" }, { 1, 0, 2, 12, "fma" },
	{ 7, 0, 1, 8, "bmi2" }, { 7, 0, 1, 29, "sha" }, { 1, 0, 2, 30, "rdrand" },
	{ 7, 0, 1, 7, "smep" }, { 7, 0, 1, 20, "smap" }, { 1, 0, 2, 17, "pcid" },
	{ 7, 0, 2, 16, "la57" }, { 1, 0, 2, 21, "x2apic" }, { 1, 0, 2, 24, "tsc-deadline" },
	{ 0x40000001, 0, 0, 3, "kvmclock" }, { 1, 0, 2, 5, "vmx" }, { 0x80000001, 0, 2, 2, "svm" },
};

static void print_features(int kvm)
{
	enum { MAX = 256 };
	struct kvm_cpuid2 *cpuid = calloc(1, sizeof(*cpuid) + MAX * sizeof(cpuid->entries[0]));

	if (!cpuid)
		return;
	cpuid->nent = MAX;
	if (softkvm_ioctl(kvm, KVM_GET_SUPPORTED_CPUID, (unsigned long)cpuid))
		cpuid->nent = 0;
	printf("  CPU features for guests:");
	for (unsigned i = 0; i < ARRAY_SIZE(shown); i++) {
		for (unsigned k = 0; k < cpuid->nent && k < MAX; k++) {
			const struct kvm_cpuid_entry2 *e = &cpuid->entries[k];
			const unsigned regs[] = { e->eax, e->ebx, e->ecx, e->edx };

			if (e->function == shown[i].leaf && e->index == shown[i].index &&
			    (regs[shown[i].reg] >> shown[i].bit & 1))
				printf(" %s", shown[i].name);
		}
	}
	printf("\n");
	free(cpuid);
}

static int describe_softkvm(void)
{
	char preload[PATH_MAX];
	int kvm;

	printf("\nSoftKVM %s\n", softkvm_version());
	if (preload_find(preload, sizeof(preload)))
		return 1;
	kvm = softkvm_open(0);
	if (kvm < 0) {
		printf("  It does not work here: %s.\n", strerror(errno));
		return 1;
	}
	printf("  Engines: a translator, and an interpreter (SOFTKVM_ENGINE=interp). Guests: x86-64, up to %d virtual CPUs a VM.\n",
	       softkvm_ioctl(kvm, KVM_CHECK_EXTENSION, KVM_CAP_MAX_VCPUS));
	print_features(kvm);
	printf("  Preload object: %s\n", preload);
	printf("  Use it with: softkvm PROGRAM ARGUMENTS...\n");
	softkvm_close(kvm);
	return 0;
}

int doctor(void)
{
	struct hardware hw;

	fflush(stdout);
	hw = hardware_try();
	if (hw.step == HW_WORKS) {
		printf("This machine's own KVM works: /dev/kvm opens, and a virtual CPU ran an instruction.\n"
		       "  Programs that use it need no SoftKVM; \"softkvm --prefer-hardware\" leaves them to it.\n");
	} else {
		printf("This machine has no usable KVM of its own.\n");
		explain_failure(&hw);
	}
	return describe_softkvm();
}

/* SPDX-License-Identifier: MIT */
#include <cpuid.h>
#include <fcntl.h>
#include <string.h>

#include "host/host.h"
#include "host/syscall.h"

void host_cpuid(u32 leaf, u32 subleaf, u32 *eax, u32 *ebx, u32 *ecx, u32 *edx)
{
	__cpuid_count(leaf, subleaf, *eax, *ebx, *ecx, *edx);
}

enum vendor { VENDOR_UNKNOWN, VENDOR_INTEL, VENDOR_AMD, VENDOR_OTHER };

/* CPUID traps when we are a guest ourselves: ask once. */
static enum vendor host_vendor(void)
{
	static _Atomic int vendor;
	u32 a, b, c, d;

	if (vendor)
		return vendor;
	host_cpuid(0, 0, &a, &b, &c, &d);
	if (b == signature_INTEL_ebx && c == signature_INTEL_ecx && d == signature_INTEL_edx)
		vendor = VENDOR_INTEL;
	else if ((b == signature_AMD_ebx && c == signature_AMD_ecx && d == signature_AMD_edx) ||
		 (b == 0x6f677948 /* Hygo */ && d == 0x6e65476e && c == 0x656e6975))
		vendor = VENDOR_AMD;
	else
		vendor = VENDOR_OTHER;
	return vendor;
}

bool host_is_intel(void)
{
	return host_vendor() == VENDOR_INTEL;
}

bool host_is_amd(void)
{
	return host_vendor() == VENDOR_AMD;
}

/* As KVM asks it: "forceoff" and "notsupported" say no for good, everything else may change. */
bool host_smt_possible(void)
{
	char text[13] = "";
	long fd = host_syscall(SYS_open, "/sys/devices/system/cpu/smt/control", O_RDONLY | O_CLOEXEC, 0, 0);

	if (fd < 0)
		return true;
	host_syscall(SYS_read, fd, text, sizeof(text) - 1, 0);
	host_syscall(SYS_close, fd, 0, 0, 0);
	return strncmp(text, "forceoff", 8) && strncmp(text, "notsupported", 12);
}

/* ---- what the kernel says about this CPU's vulnerabilities ------------------------- */

static bool not_affected(const char *name)
{
	static const char dir[] = "/sys/devices/system/cpu/vulnerabilities/";
	static const char answer[] = "Not affected";
	char path[128], text[sizeof(answer)] = "";
	long fd;

	strcpy(path, dir);
	strncat(path, name, sizeof(path) - sizeof(dir));
	fd = host_syscall(SYS_open, path, O_RDONLY | O_CLOEXEC, 0, 0);
	if (fd < 0)
		return false;
	host_syscall(SYS_read, fd, text, sizeof(answer) - 1, 0);
	host_syscall(SYS_close, fd, 0, 0, 0);
	return !strcmp(text, answer);
}

u64 host_arch_capabilities(void)
{
	static const struct {
		const char *file;
		u64 bits;
	} rows[] = {
		{ "meltdown", BIT_ULL(0) },			/* RDCL_NO */
		{ "l1tf", BIT_ULL(3) },				/* SKIP_VMENTRY_L1DFLUSH */
		{ "spec_store_bypass", BIT_ULL(4) },		/* SSB_NO */
		{ "mds", BIT_ULL(5) },				/* MDS_NO */
		{ "itlb_multihit", BIT_ULL(6) },		/* PSCHANGE_MC_NO */
		{ "tsx_async_abort", BIT_ULL(8) },		/* TAA_NO */
		{ "mmio_stale_data", BIT_ULL(13) | BIT_ULL(14) | BIT_ULL(15) },
		{ "gather_data_sampling", BIT_ULL(26) },	/* GDS_NO */
		{ "reg_file_data_sampling", BIT_ULL(27) },	/* RFDS_NO */
	};
	static _Atomic u64 cached = ~0ull;
	u64 caps = 0;

	if (cached != ~0ull)
		return cached;
	for (unsigned i = 0; i < ARRAY_SIZE(rows); i++)
		if (not_affected(rows[i].file))
			caps |= rows[i].bits;
	cached = caps;
	return caps;
}

u32 host_mxcsr_mask(void)
{
	static _Atomic u32 cached;
	_Alignas(16) u8 area[512] = { 0 };
	u32 mask = cached;

	if (mask)
		return mask;
	asm volatile("fxsave64 %0" : "=m"(area));
	memcpy(&mask, area + 28, 4);
	cached = mask = mask ? mask : 0xffbf;
	return mask;
}

u64 host_xcr0(void)
{
	u32 a, b, c, d;

	host_cpuid(1, 0, &a, &b, &c, &d);
	if (!(c & BIT(27))) /* OSXSAVE */
		return 0;
	asm volatile("xgetbv" : "=a"(a), "=d"(d) : "c"(0));
	return (u64)d << 32 | a;
}

/* SPDX-License-Identifier: MIT */
/* The public functions: softkvm.h says what they promise. */
#include "softkvm.h"

#include <errno.h>
#include <fcntl.h>
#include <stdarg.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/mman.h>

#include "api/fd.h"
#include "api/ioctl.h"
#include "host/syscall.h"

static long answer(long r)
{
	if (r >= 0)
		return r;
	errno = -r;
	return -1;
}

softkvm_export const char *softkvm_version(void)
{
	return SOFTKVM_VERSION_STRING;
}

softkvm_export int softkvm_open(int flags)
{
	return answer(fd_create_system(flags));
}

softkvm_export int softkvm_ioctl(int fd, unsigned long request, unsigned long arg)
{
	struct kvm_file *file = fd_get(fd);

	if (!file)
		return answer(host_syscall(SYS_fcntl, fd, F_GETFD, 0, 0) < 0 ? -EBADF : -ENOTTY);
	return answer(fd_ioctl(file, request, arg));
}

softkvm_export void *softkvm_mmap(void *addr, size_t length, int prot, int flags, int fd, off_t offset)
{
	struct kvm_file *file = fd_get(fd);
	unsigned long p;

	if (!file) {
		errno = host_syscall(SYS_fcntl, fd, F_GETFD, 0, 0) < 0 ? EBADF : ENODEV;
		return MAP_FAILED;
	}
	p = fd_mmap(file, addr, length, prot, flags, fd, offset);
	fd_put(file);
	if (p <= -4096ul)
		return (void *)p;
	errno = -p;
	return MAP_FAILED;
}

softkvm_export int softkvm_close(int fd)
{
	struct kvm_file *file = fd_detach(fd);
	long r = host_syscall(SYS_close, fd, 0, 0, 0);

	fd_closed(fd);
	fd_put(file);
	return answer(r);
}

softkvm_export int softkvm_owns(int fd)
{
	struct kvm_file *file = fd_get(fd);

	fd_put(file);
	return file != NULL;
}

/* ---- capabilities as JSON ------------------------------------------------------------ */

struct json {
	int fd;
	int error;
	size_t used;
	char buf[4096];
};

static void json_flush(struct json *j)
{
	size_t done = 0;

	while (done < j->used && !j->error) {
		long n = host_syscall(SYS_write, j->fd, j->buf + done, j->used - done, 0);

		if (n < 0 && n != -EINTR)
			j->error = -n;
		else if (n > 0)
			done += n;
	}
	j->used = 0;
}

static printf_like(2, 3) void put(struct json *j, const char *fmt, ...)
{
	char text[512];
	va_list ap;
	int n;

	va_start(ap, fmt);
	n = vsnprintf(text, sizeof(text), fmt, ap);
	va_end(ap);
	if (n < 0)
		return;
	if (n >= (int)sizeof(text))
		n = sizeof(text) - 1;
	if (j->used + n > sizeof(j->buf))
		json_flush(j);
	memcpy(j->buf + j->used, text, n);
	j->used += n;
}

static void put_ioctls(struct json *j)
{
	const char *name, *kind;
	unsigned int cmd;

	put(j, "  \"ioctls\": [");
	for (unsigned i = 0; kvm_ioctl_row(i, &name, &cmd, &kind); i++)
		put(j, "%s\n    { \"name\": \"%s\", \"number\": \"0x%08x\", \"fd\": \"%s\" }",
		    i ? "," : "", name, cmd, kind);
	put(j, "\n  ],\n");
}

static void put_caps(struct json *j)
{
	const char *name;
	long number, value;

	put(j, "  \"capabilities\": [");
	for (unsigned i = 0; kvm_cap_row(i, &name, &number, &value); i++)
		put(j, "%s\n    { \"name\": \"%s\", \"number\": %ld, \"value\": %ld }",
		    i ? "," : "", name, number, value);
	put(j, "\n  ],\n");
}

enum reg { EAX, EBX, ECX, EDX };

/* Names as /proc/cpuinfo has them. */
static const struct cpu_feature {
	u32 leaf, index;
	enum reg reg;
	u8 bit;
	const char *name;
} cpu_features[] = {
	{ 0x1, 0, EDX, 0, "fpu" }, { 0x1, 0, EDX, 3, "pse" }, { 0x1, 0, EDX, 4, "tsc" },
	{ 0x1, 0, EDX, 5, "msr" }, { 0x1, 0, EDX, 6, "pae" }, { 0x1, 0, EDX, 8, "cx8" },
	{ 0x1, 0, EDX, 9, "apic" }, { 0x1, 0, EDX, 11, "sep" }, { 0x1, 0, EDX, 12, "mtrr" },
	{ 0x1, 0, EDX, 13, "pge" }, { 0x1, 0, EDX, 14, "mca" }, { 0x1, 0, EDX, 15, "cmov" },
	{ 0x1, 0, EDX, 16, "pat" }, { 0x1, 0, EDX, 17, "pse36" }, { 0x1, 0, EDX, 19, "clflush" },
	{ 0x1, 0, EDX, 23, "mmx" }, { 0x1, 0, EDX, 24, "fxsr" }, { 0x1, 0, EDX, 25, "sse" },
	{ 0x1, 0, EDX, 26, "sse2" }, { 0x1, 0, EDX, 28, "ht" },
	{ 0x1, 0, ECX, 0, "sse3" }, { 0x1, 0, ECX, 1, "pclmulqdq" }, { 0x1, 0, ECX, 3, "monitor" },
	{ 0x1, 0, ECX, 5, "vmx" }, { 0x1, 0, ECX, 9, "ssse3" }, { 0x1, 0, ECX, 12, "fma" },
	{ 0x1, 0, ECX, 13, "cx16" }, { 0x1, 0, ECX, 17, "pcid" }, { 0x1, 0, ECX, 19, "sse4_1" },
	{ 0x1, 0, ECX, 20, "sse4_2" }, { 0x1, 0, ECX, 21, "x2apic" }, { 0x1, 0, ECX, 22, "movbe" },
	{ 0x1, 0, ECX, 23, "popcnt" }, { 0x1, 0, ECX, 24, "tsc_deadline_timer" },
	{ 0x1, 0, ECX, 25, "aes" }, { 0x1, 0, ECX, 26, "xsave" }, { 0x1, 0, ECX, 28, "avx" },
	{ 0x1, 0, ECX, 29, "f16c" }, { 0x1, 0, ECX, 30, "rdrand" }, { 0x1, 0, ECX, 31, "hypervisor" },
	{ 0x7, 0, EBX, 0, "fsgsbase" }, { 0x7, 0, EBX, 1, "tsc_adjust" }, { 0x7, 0, EBX, 3, "bmi1" },
	{ 0x7, 0, EBX, 5, "avx2" }, { 0x7, 0, EBX, 7, "smep" }, { 0x7, 0, EBX, 8, "bmi2" },
	{ 0x7, 0, EBX, 9, "erms" }, { 0x7, 0, EBX, 10, "invpcid" }, { 0x7, 0, EBX, 16, "avx512f" },
	{ 0x7, 0, EBX, 18, "rdseed" }, { 0x7, 0, EBX, 19, "adx" }, { 0x7, 0, EBX, 20, "smap" },
	{ 0x7, 0, EBX, 23, "clflushopt" }, { 0x7, 0, EBX, 24, "clwb" }, { 0x7, 0, EBX, 29, "sha_ni" },
	{ 0x7, 0, ECX, 2, "umip" }, { 0x7, 0, ECX, 3, "pku" }, { 0x7, 0, ECX, 8, "gfni" },
	{ 0x7, 0, ECX, 9, "vaes" }, { 0x7, 0, ECX, 10, "vpclmulqdq" }, { 0x7, 0, ECX, 16, "la57" },
	{ 0x7, 0, ECX, 22, "rdpid" }, { 0x7, 0, EDX, 4, "fsrm" },
	{ 0xd, 1, EAX, 0, "xsaveopt" }, { 0xd, 1, EAX, 1, "xsavec" }, { 0xd, 1, EAX, 2, "xgetbv1" },
	{ 0xd, 1, EAX, 3, "xsaves" },
	{ 0x80000001, 0, EDX, 11, "syscall" }, { 0x80000001, 0, EDX, 20, "nx" },
	{ 0x80000001, 0, EDX, 26, "pdpe1gb" }, { 0x80000001, 0, EDX, 27, "rdtscp" },
	{ 0x80000001, 0, EDX, 29, "lm" }, { 0x80000001, 0, ECX, 0, "lahf_lm" },
	{ 0x80000001, 0, ECX, 2, "svm" }, { 0x80000001, 0, ECX, 4, "cr8_legacy" },
	{ 0x80000001, 0, ECX, 5, "abm" }, { 0x80000001, 0, ECX, 6, "sse4a" },
	{ 0x80000001, 0, ECX, 7, "misalignsse" }, { 0x80000001, 0, ECX, 8, "3dnowprefetch" },
	{ 0x80000001, 0, ECX, 16, "fma4" }, { 0x80000001, 0, ECX, 21, "tbm" },
	{ 0x80000007, 0, EDX, 8, "constant_tsc" }, { 0x80000008, 0, EBX, 0, "clzero" },
	{ 0x40000001, 0, EAX, 0, "kvmclock" }, { 0x40000001, 0, EAX, 3, "kvmclock2" },
	{ 0x40000001, 0, EAX, 4, "kvm_asyncpf" }, { 0x40000001, 0, EAX, 5, "kvm_steal_time" },
	{ 0x40000001, 0, EAX, 6, "kvm_pv_eoi" }, { 0x40000001, 0, EAX, 7, "kvm_pv_unhalt" },
	{ 0x40000001, 0, EAX, 9, "kvm_pv_tlb_flush" }, { 0x40000001, 0, EAX, 11, "kvm_pv_ipi" },
	{ 0x40000001, 0, EAX, 24, "kvmclock_stable" },
};

#define MAX_CPUID 256
static struct kvm_cpuid2 *supported_cpuid(void)
{
	struct kvm_file system = { .kind = KVM_FILE_SYSTEM, .refs = 1 };
	struct kvm_cpuid2 *cpuid = calloc(1, sizeof(*cpuid) + MAX_CPUID * sizeof(cpuid->entries[0]));

	if (!cpuid)
		return NULL;
	cpuid->nent = MAX_CPUID;
	if (kvm_ioctl_dispatch(&system, KVM_GET_SUPPORTED_CPUID, (unsigned long)cpuid) < 0 ||
	    cpuid->nent > MAX_CPUID)
		cpuid->nent = 0;
	return cpuid;
}

static bool has_feature(const struct kvm_cpuid2 *cpuid, const struct cpu_feature *f)
{
	for (u32 i = 0; i < cpuid->nent; i++) {
		const struct kvm_cpuid_entry2 *e = &cpuid->entries[i];
		const u32 regs[] = { e->eax, e->ebx, e->ecx, e->edx };

		if (e->function == f->leaf && e->index == f->index)
			return regs[f->reg] >> f->bit & 1;
	}
	return false;
}

static void put_cpu(struct json *j, const struct kvm_cpuid2 *cpuid)
{
	bool first = true;

	put(j, "  \"cpu\": {\n    \"features\": [");
	for (unsigned i = 0; cpuid && i < ARRAY_SIZE(cpu_features); i++) {
		if (!has_feature(cpuid, &cpu_features[i]))
			continue;
		put(j, "%s\"%s\"", first ? "" : ", ", cpu_features[i].name);
		first = false;
	}
	put(j, "],\n    \"cpuid\": [");
	for (u32 i = 0; cpuid && i < cpuid->nent; i++) {
		const struct kvm_cpuid_entry2 *e = &cpuid->entries[i];

		put(j, "%s\n      { \"leaf\": \"0x%08x\", \"index\": %u, \"eax\": \"0x%08x\", "
		    "\"ebx\": \"0x%08x\", \"ecx\": \"0x%08x\", \"edx\": \"0x%08x\" }",
		    i ? "," : "", e->function, e->index, e->eax, e->ebx, e->ecx, e->edx);
	}
	put(j, "\n    ]\n  }\n");
}

softkvm_export int softkvm_print_capabilities(int fd)
{
	struct json *j = calloc(1, sizeof(*j));
	struct kvm_cpuid2 *cpuid = supported_cpuid();
	int error;

	if (!j || !cpuid) {
		free(j);
		free(cpuid);
		errno = ENOMEM;
		return -1;
	}
	j->fd = fd;
	put(j, "{\n  \"version\": \"%s\",\n", softkvm_version());
	put(j, "  \"api_version\": %d,\n", KVM_API_VERSION);
	put(j, "  \"guest_architectures\": [\"x86_64\"],\n");
	put(j, "  \"engines\": [\"interp\", \"dbt\"],\n");
	put_ioctls(j);
	put_caps(j);
	put_cpu(j, cpuid);
	put(j, "}\n");
	json_flush(j);
	error = j->error;
	free(j);
	free(cpuid);
	if (error)
		errno = error;
	return error ? -1 : 0;
}

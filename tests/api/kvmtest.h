/* SPDX-License-Identifier: MIT */
/*
 * For tests that are ordinary KVM clients: checks that count, and a VM with one
 * vCPU on a little memory. The programs run under softkvm, or on a real KVM,
 * which is the judge.
 */
#ifndef TESTS_API_KVMTEST_H
#define TESTS_API_KVMTEST_H

#include <errno.h>
#include <fcntl.h>
#include <linux/kvm.h>
#include <stdint.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/ioctl.h>
#include <sys/mman.h>
#include <unistd.h>

#include "lib/paths.h"

static unsigned kvmtest_passed, kvmtest_failed, kvmtest_skipped;

#define CHECK(cond)                                                             \
	do {                                                                    \
		if (cond) {                                                     \
			kvmtest_passed++;                                       \
		} else {                                                        \
			kvmtest_failed++;                                       \
			printf("%s:%d: FAIL: %s (errno %d %s)\n", __FILE__,     \
			       __LINE__, #cond, errno, strerror(errno));        \
		}                                                               \
	} while (0)

#define CHECK_EQ(a, b)                                                          \
	do {                                                                    \
		long long check_a = (long long)(a), check_b = (long long)(b);   \
		if (check_a == check_b) {                                       \
			kvmtest_passed++;                                       \
		} else {                                                        \
			kvmtest_failed++;                                       \
			printf("%s:%d: FAIL: %s = %lld (0x%llx), want %lld (0x%llx)\n", \
			       __FILE__, __LINE__, #a, check_a, check_a, check_b, check_b); \
		}                                                               \
	} while (0)

/* The call fails with exactly this errno. */
#define CHECK_ERRNO(expr, want)                                                 \
	do {                                                                    \
		errno = 0;                                                      \
		long check_r = (long)(expr);                                    \
		if (check_r == -1 && errno == (want)) {                         \
			kvmtest_passed++;                                       \
		} else {                                                        \
			kvmtest_failed++;                                       \
			printf("%s:%d: FAIL: %s = %ld errno %d (%s), want %s\n", __FILE__, __LINE__, \
			       #expr, check_r, errno, strerror(errno), #want);  \
		}                                                               \
	} while (0)

#define NEED(cond)                                                              \
	do {                                                                    \
		if (!(cond)) {                                                  \
			printf("%s:%d: cannot go on: %s (errno %d %s)\n",       \
			       __FILE__, __LINE__, #cond, errno, strerror(errno)); \
			printf("%u passed, %u failed, %u skipped\n", kvmtest_passed, \
			       kvmtest_failed + 1, kvmtest_skipped);            \
			exit(1);                                                \
		}                                                               \
	} while (0)

static inline int kvmtest_summary(void)
{
	printf("%u passed, %u failed, %u skipped\n", kvmtest_passed, kvmtest_failed, kvmtest_skipped);
	return kvmtest_failed ? 1 : 0;
}

struct kvmtest {
	int kvm, vm, vcpu;
	uint8_t *mem;
	size_t mem_size;
	struct kvm_run *run;
	size_t run_size;
};

/* A VM with mem_size bytes at gpa 0 (slot 0); irqchip: with the in-kernel one. No vCPU yet. */
static inline struct kvmtest kvmtest_vm(size_t mem_size, int irqchip)
{
	struct kvmtest t = { .mem_size = mem_size, .vcpu = -1 };
	struct kvm_userspace_memory_region region = { .memory_size = mem_size };

	t.kvm = open_kvm_or_skip(O_RDWR | O_CLOEXEC);
	t.vm = ioctl(t.kvm, KVM_CREATE_VM, 0);
	NEED(t.vm >= 0);
	t.mem = mmap(NULL, mem_size, PROT_READ | PROT_WRITE, MAP_PRIVATE | MAP_ANONYMOUS, -1, 0);
	NEED(t.mem != MAP_FAILED);
	region.userspace_addr = (uintptr_t)t.mem;
	NEED(ioctl(t.vm, KVM_SET_USER_MEMORY_REGION, &region) == 0);
	if (irqchip)
		NEED(ioctl(t.vm, KVM_CREATE_IRQCHIP, 0) == 0);
	t.run_size = ioctl(t.kvm, KVM_GET_VCPU_MMAP_SIZE, 0);
	NEED((int)t.run_size >= 4096);
	return t;
}

static inline void kvmtest_add_vcpu(struct kvmtest *t, unsigned long id)
{
	t->vcpu = ioctl(t->vm, KVM_CREATE_VCPU, id);
	NEED(t->vcpu >= 0);
	t->run = mmap(NULL, t->run_size, PROT_READ | PROT_WRITE, MAP_SHARED, t->vcpu, 0);
	NEED(t->run != MAP_FAILED);
}

/* Everything KVM_GET_SUPPORTED_CPUID offers. */
static inline void kvmtest_set_cpuid(struct kvmtest *t)
{
	struct kvm_cpuid2 *c = calloc(1, sizeof(*c) + 100 * sizeof(struct kvm_cpuid_entry2));

	c->nent = 100;
	NEED(ioctl(t->kvm, KVM_GET_SUPPORTED_CPUID, c) == 0);
	NEED(ioctl(t->vcpu, KVM_SET_CPUID2, c) == 0);
	free(c);
}

union kvmtest_msr {
	struct kvm_msrs h;
	uint8_t bytes[sizeof(struct kvm_msrs) + sizeof(struct kvm_msr_entry)];
};

/* 1, or 0 if it was refused. */
static inline int kvmtest_set_msr(struct kvmtest *t, uint32_t index, uint64_t value)
{
	union kvmtest_msr m = { .h.nmsrs = 1 };

	m.h.entries[0].index = index;
	m.h.entries[0].data = value;
	return ioctl(t->vcpu, KVM_SET_MSRS, &m);
}

static inline uint64_t kvmtest_get_msr(struct kvmtest *t, uint32_t index)
{
	union kvmtest_msr m = { .h.nmsrs = 1 };

	m.h.entries[0].index = index;
	NEED(ioctl(t->vcpu, KVM_GET_MSRS, &m) == 1);
	return m.h.entries[0].data;
}

/* The vCPU will execute these bytes in real mode at 0000:addr, with rsp 0x8000. */
static inline void kvmtest_real_mode(struct kvmtest *t, uint16_t addr, const void *code, size_t len)
{
	struct kvm_sregs sregs;
	struct kvm_regs regs = { .rip = addr, .rsp = 0x8000, .rflags = 2 };

	memcpy(t->mem + addr, code, len);
	NEED(ioctl(t->vcpu, KVM_GET_SREGS, &sregs) == 0);
	sregs.cs.base = 0;
	sregs.cs.selector = 0;
	NEED(ioctl(t->vcpu, KVM_SET_SREGS, &sregs) == 0);
	NEED(ioctl(t->vcpu, KVM_SET_REGS, &regs) == 0);
}

/*
 * The vCPU will execute these bytes in 64-bit mode, CPL 0, at gpa addr (before its first KVM_RUN: sets CPUID). The first 1 GiB is
 * mapped to itself with 2 MiB pages; tables at 0x1000-0x3fff, GDT at 0x4000, stack top 0x10000.
 */
static inline void kvmtest_long_mode(struct kvmtest *t, uint64_t addr, const void *code, size_t len)
{
	struct kvm_segment cs = { .type = 11, .present = 1, .s = 1, .l = 1, .g = 1,
				  .limit = 0xffffffff, .selector = 8 };
	struct kvm_segment ds = { .type = 3, .present = 1, .s = 1, .db = 1, .g = 1,
				  .limit = 0xffffffff, .selector = 16 };
	struct kvm_regs regs = { .rip = addr, .rsp = 0x10000, .rflags = 2 };
	struct kvm_sregs sregs;
	uint64_t *pd = (uint64_t *)(t->mem + 0x3000);

	*(uint64_t *)(t->mem + 0x1000) = 0x2000 | 7;
	*(uint64_t *)(t->mem + 0x2000) = 0x3000 | 7;
	for (uint64_t i = 0; i < 512; i++)
		pd[i] = i << 21 | 0x87;
	*(uint64_t *)(t->mem + 0x4008) = 0x00af9b000000ffffull;
	*(uint64_t *)(t->mem + 0x4010) = 0x00cf93000000ffffull;
	memcpy(t->mem + addr, code, len);
	kvmtest_set_cpuid(t); /* without it there is no long mode */
	NEED(ioctl(t->vcpu, KVM_GET_SREGS, &sregs) == 0);
	sregs.cs = cs;
	sregs.ds = sregs.es = sregs.fs = sregs.gs = sregs.ss = ds;
	sregs.gdt.base = 0x4000;
	sregs.gdt.limit = 0x17;
	sregs.cr3 = 0x1000;
	sregs.cr4 = 0x20;
	sregs.cr0 = 0x80000011;
	sregs.efer = 0x500;
	NEED(ioctl(t->vcpu, KVM_SET_SREGS, &sregs) == 0);
	NEED(ioctl(t->vcpu, KVM_SET_REGS, &regs) == 0);
}

/* A gate of a long-mode IDT: an interrupt gate to code segment 8. */
static inline void kvmtest_gate(struct kvmtest *t, uint64_t idt, unsigned vector, uint64_t to)
{
	uint64_t *gate = (uint64_t *)(t->mem + idt + 16 * vector);

	gate[0] = (to & 0xffff) | 8ull << 16 | 0x8e00ull << 32 | (to >> 16 & 0xffff) << 48;
	gate[1] = to >> 32;
}

/* Where the vCPU finds its gates, all 256. */
static inline void kvmtest_idt(struct kvmtest *t, uint64_t idt)
{
	struct kvm_sregs s;

	NEED(ioctl(t->vcpu, KVM_GET_SREGS, &s) == 0);
	s.idt.base = idt;
	s.idt.limit = 0xfff;
	NEED(ioctl(t->vcpu, KVM_SET_SREGS, &s) == 0);
}

/* Is it SoftKVM that answers? */
static inline bool kvmtest_softkvm(void)
{
	FILE *maps = fopen("/proc/self/maps", "r");
	char line[512];
	bool found = false;

	NEED(maps);
	while (!found && fgets(line, sizeof(line), maps))
		found = strstr(line, "/libsoftkvm") != NULL;
	fclose(maps);
	return found;
}

/* A statistic of one value, -1 where there is none of the name (any other KVM: ours has those that are asked for). */
static inline long long kvmtest_stat(int fd, const char *name)
{
	int stats = ioctl(fd, KVM_GET_STATS_FD, NULL);
	struct kvm_stats_header h;
	long long value = -1;

	NEED(stats >= 0);
	NEED(pread(stats, &h, sizeof(h), 0) == sizeof(h));
	for (unsigned i = 0; i < h.num_desc; i++) {
		size_t size = sizeof(struct kvm_stats_desc) + h.name_size;
		struct kvm_stats_desc *d = calloc(1, size);

		NEED(pread(stats, d, size, h.desc_offset + i * size) == (ssize_t)size);
		if (!strcmp(d->name, name) && d->size == 1)
			NEED(pread(stats, &value, 8, h.data_offset + d->offset) == 8);
		free(d);
	}
	close(stats);
	NEED(value != -1 || !kvmtest_softkvm());
	return value;
}

static inline void kvmtest_done(struct kvmtest *t)
{
	if (t->vcpu >= 0) {
		munmap(t->run, t->run_size);
		close(t->vcpu);
	}
	munmap(t->mem, t->mem_size);
	close(t->vm);
	close(t->kvm);
}

#endif

/* SPDX-License-Identifier: MIT */
/*
 * VMs that do nothing cost next to nothing: HP1, HP2, HP4, HP5, HP8, HP9. What VMs report of themselves
 * (KVM_GET_STATS_FD) is checked where it is SoftKVM that reports; the rest is for any KVM.
 *
 * Seen to fail with a calloc(32768) in vm_create() (HP4, HP9), mmu_create() in arch_vcpu_create() (HP4), a leak in
 * create_slot() (HP8), a memslots_free() left out of vm_destroy() (HP9), and mmu_page_hash_bytes set at creation (HP1, HP2),
 * vm_struct_bytes of 5000 (HP5), and without the statistics (all of them).
 */
#include <malloc.h>
#include <sys/resource.h>

#include "api/kvmtest.h"

#ifndef KVM_GET_STATS_FD
#error "needs the binary statistics of Linux 5.14"
#endif

#define NR_VMS 512
#define NR_VCPUS 4

/* ---- what a VM says ------------------------------------------------------------------------ */

/* Only SoftKVM's VMs have these: elsewhere -1 is as good. */
static void check_no_table(int vm)
{
	long long bytes = kvmtest_stat(vm, "mmu_page_hash_bytes"), pages = kvmtest_stat(vm, "mmu_shadow_pages");

	CHECK(bytes == 0 || bytes == -1);
	CHECK(pages == 0 || pages == -1);
}

/* ---- VMs as HP1 has them ------------------------------------------------------------------------- */

struct small_vm {
	int vm, vcpus[NR_VCPUS];
};

static int kvm;
static uint8_t *memory;	/* one MiB for everybody */

static void create(struct small_vm *s)
{
	struct kvm_userspace_memory_region region = { .memory_size = 1 << 20, .userspace_addr = (uintptr_t)memory };

	s->vm = ioctl(kvm, KVM_CREATE_VM, 0);
	NEED(s->vm >= 0);
	NEED(ioctl(s->vm, KVM_CREATE_IRQCHIP, 0) == 0);
	NEED(ioctl(s->vm, KVM_SET_USER_MEMORY_REGION, &region) == 0);
	for (int i = 0; i < NR_VCPUS; i++) {
		s->vcpus[i] = ioctl(s->vm, KVM_CREATE_VCPU, i);
		NEED(s->vcpus[i] >= 0);
	}
}

static void destroy(struct small_vm *s)
{
	for (int i = 0; i < NR_VCPUS; i++)
		close(s->vcpus[i]);
	close(s->vm);
}

/* Run out; hlt on vCPU 0, which the in-kernel irqchip then keeps: one exit. */
static void run_real_mode(struct small_vm *s)
{
	static const uint8_t code[] = { 0xe6, 0x10, 0xe6, 0x11, 0xf4 };
	size_t size = ioctl(kvm, KVM_GET_VCPU_MMAP_SIZE, 0);
	struct kvm_run *run = mmap(NULL, size, PROT_READ | PROT_WRITE, MAP_SHARED, s->vcpus[0], 0);
	struct kvm_regs regs = { .rip = 0x7000, .rsp = 0x8000, .rflags = 2 };
	struct kvm_sregs sregs;

	NEED(run != MAP_FAILED);
	memcpy(memory + 0x7000, code, sizeof(code));
	NEED(ioctl(s->vcpus[0], KVM_GET_SREGS, &sregs) == 0);
	sregs.cs.base = 0;
	sregs.cs.selector = 0;
	NEED(ioctl(s->vcpus[0], KVM_SET_SREGS, &sregs) == 0);
	NEED(ioctl(s->vcpus[0], KVM_SET_REGS, &regs) == 0);
	for (int i = 0; i < 2; i++) {
		CHECK_EQ(ioctl(s->vcpus[0], KVM_RUN, 0), 0);
		CHECK_EQ(run->exit_reason, KVM_EXIT_IO);
	}
	munmap(run, size);
}

/* ---- what the process costs --------------------------------------------------------------------------- */

/* A line of /proc/self/status: its number. */
static long status(const char *name)
{
	FILE *f = fopen("/proc/self/status", "r");
	size_t len = strlen(name);
	char line[128];
	long n = -1;

	NEED(f);
	while (fgets(line, sizeof(line), f))
		if (!strncmp(line, name, len) && line[len] == ':')
			n = atol(line + len + 1);
	fclose(f);
	NEED(n >= 0);
	return n;
}

static unsigned count_lines(const char *path)
{
	FILE *f = fopen(path, "r");
	unsigned n = 0;
	int c;

	NEED(f);
	while ((c = getc(f)) != EOF)
		n += c == '\n';
	fclose(f);
	return n;
}

/* ---- the tests --------------------------------------------------------------------------------------------- */

static void test_hp1_hp2_hp5(void)
{
	struct small_vm s;
	long long bytes;

	create(&s);
	check_no_table(s.vm);				/* HP1 */
	bytes = kvmtest_stat(s.vm, "vm_struct_bytes");
	CHECK(bytes == -1 || (bytes > 0 && bytes <= 4096));	/* HP5: slots are not in the structure at all */
	run_real_mode(&s);
	check_no_table(s.vm);				/* HP2 */
	destroy(&s);
}

static void test_hp4(void)
{
	struct small_vm *vms = calloc(NR_VMS, sizeof(*vms));
	struct rlimit limit;
	long data, shared, threads, each;

	NEED(vms);
	NEED(getrlimit(RLIMIT_NOFILE, &limit) == 0);
	limit.rlim_cur = limit.rlim_max;
	setrlimit(RLIMIT_NOFILE, &limit);
	if (limit.rlim_cur < NR_VMS * (NR_VCPUS + 1) + 64) {
		printf("skip HP4: no more than %lu descriptors\n", (unsigned long)limit.rlim_cur);
		kvmtest_skipped++;
		free(vms);
		return;
	}
	/* The first VM of a process pays for things that are there once. */
	create(&vms[0]);
	destroy(&vms[0]);
	threads = status("Threads");
	data = status("VmData");
	shared = status("RssShmem");
	for (int i = 0; i < NR_VMS; i++)
		create(&vms[i]);
	each = (status("VmData") - data + status("RssShmem") - shared) * 1024 / NR_VMS;
	printf("HP4: %ld bytes of data and shared memory a VM of %d vCPUs (%ld of it shared)\n", each, NR_VCPUS,
	       (status("RssShmem") - shared) * 1024 / NR_VMS);
	CHECK(each < 24 * 1024);
	CHECK_EQ(status("Threads"), threads);
	for (int i = 0; i < NR_VMS; i += 37)
		check_no_table(vms[i].vm);
	for (int i = 0; i < NR_VMS; i++)
		destroy(&vms[i]);
	free(vms);
}

static void test_hp8(void)
{
	struct kvm_userspace_memory_region region = { .slot = 1, .memory_size = 1 << 16 };
	struct kvm_dirty_log log = { .slot = 1 };
	uint64_t bitmap[4];
	struct mallinfo2 before = { 0 }, after;
	struct small_vm s;

	create(&s);
	region.userspace_addr = (uintptr_t)memory;
	log.dirty_bitmap = bitmap;
	for (int i = 0; i < 200; i++) {
		if (i == 5)
			before = mallinfo2();
		region.guest_phys_addr = 0x10000000;
		region.memory_size = 1 << 16;
		region.flags = 0;
		CHECK_EQ(ioctl(s.vm, KVM_SET_USER_MEMORY_REGION, &region), 0);
		region.flags = KVM_MEM_LOG_DIRTY_PAGES;
		CHECK_EQ(ioctl(s.vm, KVM_SET_USER_MEMORY_REGION, &region), 0);
		CHECK_EQ(ioctl(s.vm, KVM_GET_DIRTY_LOG, &log), 0);
		region.flags = 0;
		CHECK_EQ(ioctl(s.vm, KVM_SET_USER_MEMORY_REGION, &region), 0);
		region.guest_phys_addr = 0x20000000;
		CHECK_EQ(ioctl(s.vm, KVM_SET_USER_MEMORY_REGION, &region), 0);
		region.memory_size = 0;
		CHECK_EQ(ioctl(s.vm, KVM_SET_USER_MEMORY_REGION, &region), 0);
		/* Zaps in a real KVM. */
		CHECK_EQ(ioctl(s.vm, KVM_SET_NR_MMU_PAGES, 64 + i), 0);
	}
	after = mallinfo2();
	check_no_table(s.vm);
	CHECK_EQ(after.uordblks + after.hblkhd, before.uordblks + before.hblkhd);
	destroy(&s);
}

static void test_hp9(int ran)
{
	struct small_vm s;
	struct mallinfo2 before = { 0 }, after;
	unsigned maps = 0, fds = 0;
	long data = 0;

	for (int i = 0; i < 60; i++) {
		create(&s);
		if (ran)
			run_real_mode(&s);
		destroy(&s);
		/* By then every cache that a process has once is warm. */
		if (i == 9) {
			count_lines("/proc/self/maps");
			status("VmData");
			maps = count_lines("/proc/self/maps");
			data = status("VmData");
			fds = dup(0);
			close(fds);
			before = mallinfo2();
		}
	}
	after = mallinfo2();
	CHECK_EQ(after.uordblks + after.hblkhd, before.uordblks + before.hblkhd);
	CHECK(status("VmData") - data < 1024);
	CHECK(count_lines("/proc/self/maps") <= maps + 2);
	CHECK_EQ(dup(0), fds);
	close(fds);
}

int main(void)
{
	struct small_vm s;

	kvm = open_kvm_or_skip(O_RDWR | O_CLOEXEC);
	memory = mmap(NULL, 1 << 20, PROT_READ | PROT_WRITE, MAP_PRIVATE | MAP_ANONYMOUS, -1, 0);
	NEED(memory != MAP_FAILED);
	create(&s);
	destroy(&s);
	test_hp1_hp2_hp5();
	test_hp4();
	test_hp8();
	test_hp9(0);
	test_hp9(1);
	return kvmtest_summary();
}

/* SPDX-License-Identifier: MIT */
/* Memory regions: the rules and errnos of KVM_SET_USER_MEMORY_REGION, and dirty logging. */
#include "api/kvmtest.h"

#define MB (1ul << 20)

static int set(int vm, unsigned slot, unsigned flags, uint64_t gpa, uint64_t size, void *hva)
{
	struct kvm_userspace_memory_region r = { .slot = slot, .flags = flags, .guest_phys_addr = gpa,
						 .memory_size = size, .userspace_addr = (uintptr_t)hva };

	return ioctl(vm, KVM_SET_USER_MEMORY_REGION, &r);
}

static void test_rules(void)
{
	struct kvmtest t = kvmtest_vm(MB, 0);
	uint8_t *m = mmap(NULL, 4 * MB, PROT_READ | PROT_WRITE, MAP_PRIVATE | MAP_ANONYMOUS, -1, 0);

	CHECK_ERRNO(set(t.vm, 1, 0, 4 * MB + 1, MB, m), EINVAL);	/* gpa alignment */
	CHECK_ERRNO(set(t.vm, 1, 0, 4 * MB, MB + 1, m), EINVAL);	/* size alignment */
	CHECK_ERRNO(set(t.vm, 1, 0, 4 * MB, MB, m + 1), EINVAL);	/* hva alignment */
	CHECK_ERRNO(set(t.vm, 1, 1 << 5, 4 * MB, MB, m), EINVAL);	/* unknown flag */
	CHECK_ERRNO(set(t.vm, 32764, 0, 4 * MB, MB, m), EINVAL);	/* slot id */
	CHECK_ERRNO(set(t.vm, 2 << 16 | 1, 0, 4 * MB, MB, m), EINVAL);	/* there are two address spaces */
	CHECK_ERRNO(set(t.vm, 1, 0, ~0xfffull, 2 * 4096, m), EINVAL);	/* wraps */
	CHECK_ERRNO(set(t.vm, 1, 0, 4 * MB, 0, m), EINVAL);		/* delete what is not there */
	CHECK_ERRNO(set(t.vm, 1, 0, 0, 4096, m), EEXIST);		/* overlap */
	CHECK_ERRNO(ioctl(t.vm, KVM_SET_USER_MEMORY_REGION, 8), EFAULT);
	CHECK_EQ(set(t.vm, 1, 0, 4 * MB, MB, m), 0);
	CHECK_EQ(set(t.vm, 1, 0, 4 * MB, MB, m), 0);			/* no change */
	CHECK_ERRNO(set(t.vm, 1, 0, 4 * MB, 2 * MB, m), EINVAL);	/* resize */
	CHECK_ERRNO(set(t.vm, 1, 0, 4 * MB, MB, m + MB), EINVAL);	/* new host address */
	CHECK_ERRNO(set(t.vm, 1, KVM_MEM_READONLY, 4 * MB, MB, m), EINVAL); /* RO may not toggle */
	CHECK_EQ(set(t.vm, 1, KVM_MEM_LOG_DIRTY_PAGES, 4 * MB, MB, m), 0);
	CHECK_EQ(set(t.vm, 1, 0, 8 * MB, MB, m), 0);			/* move */
	CHECK_ERRNO(set(t.vm, 1, 0, 0, MB, m), EEXIST);			/* move onto another */
	CHECK_EQ(set(t.vm, 2, 0, 4 * MB, MB, m), 0);			/* the old place is free, hva may be shared */
	CHECK_EQ(set(t.vm, 2, 0, 0, 0, NULL), 0);
	CHECK_ERRNO(set(t.vm, 2, 0, 0, 0, NULL), EINVAL);
	munmap(m, 4 * MB);
	kvmtest_done(&t);
}

static void test_many(void)
{
	struct kvmtest t = kvmtest_vm(MB, 0);
	int bad = 0;

	for (unsigned i = 1; i < 32764; i++)
		bad += set(t.vm, i, 0, 16 * MB + i * 8192ul, 4096, t.mem) != 0;
	CHECK_EQ(bad, 0);
	CHECK_ERRNO(set(t.vm, 32764, 0, 16 * MB, 4096, t.mem), EINVAL);
	kvmtest_done(&t);
}

static void get_log(int vm, unsigned slot, void *bitmap, int want)
{
	struct kvm_dirty_log log = { .slot = slot, .dirty_bitmap = bitmap };
	int r = ioctl(vm, KVM_GET_DIRTY_LOG, &log);

	CHECK_EQ(r < 0 ? -errno : r, want);
}

/* mov %al, [di]; add $0x1000, %di; hlt: one page dirtied a run. */
static const uint8_t writer[] = { 0x88, 0x05, 0x81, 0xc7, 0x00, 0x10, 0xf4 };

static void run_to_hlt(struct kvmtest *t)
{
	CHECK_EQ(ioctl(t->vcpu, KVM_RUN, 0), 0);
	CHECK_EQ(t->run->exit_reason, KVM_EXIT_HLT);
}

static void restart(struct kvmtest *t, unsigned di)
{
	struct kvm_regs regs = { .rip = 0x1000, .rsp = 0x8000, .rflags = 2, .rdi = di };

	CHECK_EQ(ioctl(t->vcpu, KVM_SET_REGS, &regs), 0);
}

static void test_dirty_log(void)
{
	struct kvmtest t = kvmtest_vm(MB, 0);
	uint64_t bits[4] = { 0 };

	kvmtest_add_vcpu(&t, 0);
	kvmtest_real_mode(&t, 0x1000, writer, sizeof(writer));
	get_log(t.vm, 0, bits, -ENOENT); /* not enabled */
	get_log(t.vm, 9, bits, -ENOENT);
	get_log(t.vm, 40000, bits, -EINVAL);
	CHECK_EQ(set(t.vm, 0, KVM_MEM_LOG_DIRTY_PAGES, 0, MB, t.mem), 0);
	get_log(t.vm, 0, bits, 0);
	CHECK_EQ(bits[0], 0);
	restart(&t, 0x3000);
	run_to_hlt(&t);
	get_log(t.vm, 0, bits, 0);
	CHECK_EQ(bits[0], 1 << 3);
	get_log(t.vm, 0, bits, 0);
	CHECK_EQ(bits[0], 0);
	/* The same page again: the write tag of the first time must be gone. */
	restart(&t, 0x3000);
	run_to_hlt(&t);
	get_log(t.vm, 0, bits, 0);
	CHECK_EQ(bits[0], 1 << 3);
	/* Reads and the client's own stores are not guest writes. */
	t.mem[0x5000] = 1;
	get_log(t.vm, 0, bits, 0);
	CHECK_EQ(bits[0], 0);
	CHECK_EQ(set(t.vm, 0, 0, 0, MB, t.mem), 0);
	get_log(t.vm, 0, bits, -ENOENT);
	kvmtest_done(&t);
}

static void test_manual_protect(void)
{
	struct kvmtest t = kvmtest_vm(MB, 0);
	struct kvm_enable_cap cap = { .cap = KVM_CAP_MANUAL_DIRTY_LOG_PROTECT2, .args = { 1 } };
	struct kvm_clear_dirty_log clear = { .slot = 0, .num_pages = 64 };
	uint64_t bits[4] = { 0 };

	kvmtest_add_vcpu(&t, 0);
	kvmtest_real_mode(&t, 0x1000, writer, sizeof(writer));
	clear.dirty_bitmap = bits;
	CHECK_EQ(ioctl(t.vm, KVM_ENABLE_CAP, &cap), 0);
	CHECK_EQ(set(t.vm, 0, KVM_MEM_LOG_DIRTY_PAGES, 0, MB, t.mem), 0);
	restart(&t, 0x4000);
	run_to_hlt(&t);
	get_log(t.vm, 0, bits, 0);
	CHECK_EQ(bits[0], 1 << 4);
	get_log(t.vm, 0, bits, 0); /* reading does not clear */
	CHECK_EQ(bits[0], 1 << 4);
	CHECK_EQ(ioctl(t.vm, KVM_CLEAR_DIRTY_LOG, &clear), 0);
	get_log(t.vm, 0, bits, 0);
	CHECK_EQ(bits[0], 0);
	restart(&t, 0x4000);
	run_to_hlt(&t);
	get_log(t.vm, 0, bits, 0);
	CHECK_EQ(bits[0], 1 << 4);
	clear.first_page = 1;
	CHECK_ERRNO(ioctl(t.vm, KVM_CLEAR_DIRTY_LOG, &clear), EINVAL);
	clear.first_page = 0;
	clear.num_pages = 3;
	CHECK_ERRNO(ioctl(t.vm, KVM_CLEAR_DIRTY_LOG, &clear), EINVAL);
	clear.num_pages = 64;
	clear.slot = 7;
	CHECK_ERRNO(ioctl(t.vm, KVM_CLEAR_DIRTY_LOG, &clear), ENOENT);
	cap.args[0] = 4;
	CHECK_ERRNO(ioctl(t.vm, KVM_ENABLE_CAP, &cap), EINVAL);
	kvmtest_done(&t);
}

static void test_readonly(void)
{
	struct kvmtest t = kvmtest_vm(MB, 0);

	kvmtest_add_vcpu(&t, 0);
	kvmtest_real_mode(&t, 0x1000, writer, sizeof(writer));
	CHECK_EQ(set(t.vm, 1, KVM_MEM_READONLY, 2 * MB, MB, t.mem), 0);
	CHECK_EQ(set(t.vm, 0, 0, 0, 0, NULL), 0);
	CHECK_EQ(set(t.vm, 0, KVM_MEM_READONLY, 0, MB, t.mem), 0);
	t.mem[0x3000] = 0x77;
	restart(&t, 0x3000);
	CHECK_EQ(ioctl(t.vcpu, KVM_RUN, 0), 0);
	CHECK_EQ(t.run->exit_reason, KVM_EXIT_MMIO);
	CHECK_EQ(t.run->mmio.phys_addr, 0x3000);
	CHECK_EQ(t.run->mmio.is_write, 1);
	CHECK_EQ(t.run->mmio.len, 1);
	CHECK_EQ(t.mem[0x3000], 0x77);
	run_to_hlt(&t);
	kvmtest_done(&t);
}

/* A slot deleted under the vCPU: the next store there is MMIO, not a write to old memory. */
static void test_delete_between_runs(void)
{
	struct kvmtest t = kvmtest_vm(MB, 0);
	uint8_t *m = mmap(NULL, MB, PROT_READ | PROT_WRITE, MAP_PRIVATE | MAP_ANONYMOUS, -1, 0);

	kvmtest_add_vcpu(&t, 0);
	kvmtest_real_mode(&t, 0x1000, writer, sizeof(writer));
	CHECK_EQ(set(t.vm, 0, 0, 0, 0, NULL), 0);
	CHECK_EQ(set(t.vm, 0, 0, 0, 0x2000, t.mem), 0);
	CHECK_EQ(set(t.vm, 1, 0, 0x8000, 0x1000, m), 0);
	restart(&t, 0x8000);
	run_to_hlt(&t);
	CHECK_EQ(set(t.vm, 1, 0, 0, 0, NULL), 0);
	restart(&t, 0x8000);
	CHECK_EQ(ioctl(t.vcpu, KVM_RUN, 0), 0);
	CHECK_EQ(t.run->exit_reason, KVM_EXIT_MMIO);
	munmap(m, MB);
	kvmtest_done(&t);
}

int main(void)
{
	test_rules();
	test_many();
	test_dirty_log();
	test_manual_protect();
	test_readonly();
	test_delete_between_runs();
	return kvmtest_summary();
}

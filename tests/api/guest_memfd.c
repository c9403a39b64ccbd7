/* SPDX-License-Identifier: MIT */
/*
 * guest_memfd, memory attributes, KVM_LINK_GUEST_MEMFD and moving the memory context. Functions are named
 * after the checks GM1 to GM16.
 *
 * Each can fail: with one mapping for private and shared pages gm3, gm12 and gm15 see the wrong memory; without
 * the flush in commit() gm4 (for GM15) does; without vm_stop_vcpus() and vm_drain_vcpus() gm6's counter runs on; with the source killed before the
 * comparison gm8 and gm11 find it dead; with views told apart by inode only, gm1 and gm14.
 *
 * Seen to fail as well: with the high half of fd, or reserved[], not looked at (gm2); with the map not taken, the source
 * not stopped, or one MiB of private memory shown in the place of another (gm5); with dead VMs not refused (gm7); with types
 * not compared (gm9); with the map not handed on (gm10, which never ends with vm->moving not looked at); with a closed view's
 * mapping kept (gm13); with a little memory lost by each link that fails, or a descriptor by each that does not (gm16).
 */
#include <limits.h>
#include <linux/falloc.h>
#include <linux/kvm.h>
#include <linux/kvm_para.h>
#include <malloc.h>
#include <pthread.h>
#include <signal.h>
#include <stdatomic.h>
#include <stdbool.h>
#include <sys/resource.h>
#include <sys/socket.h>
#include <sys/stat.h>
#include <sys/syscall.h>
#include <sys/wait.h>

#include "api/kvmtest.h"

#ifndef KVM_CREATE_GUEST_MEMFD
#define KVM_MEM_GUEST_MEMFD (1UL << 2)
#define KVM_MEMORY_ATTRIBUTE_PRIVATE (1ULL << 3)
#define KVM_EXIT_MEMORY_FAULT 39
struct kvm_userspace_memory_region2 {
	uint32_t slot, flags;
	uint64_t guest_phys_addr, memory_size, userspace_addr, guest_memfd_offset;
	uint32_t guest_memfd, pad1;
	uint64_t pad2[14];
};
struct kvm_memory_attributes {
	uint64_t address, size, attributes, flags;
};
struct kvm_create_guest_memfd {
	uint64_t size, flags, reserved[6];
};
#define KVM_SET_USER_MEMORY_REGION2 _IOW(KVMIO, 0x49, struct kvm_userspace_memory_region2)
#define KVM_SET_MEMORY_ATTRIBUTES _IOW(KVMIO, 0xd2, struct kvm_memory_attributes)
#define KVM_CREATE_GUEST_MEMFD _IOWR(KVMIO, 0xd4, struct kvm_create_guest_memfd)
#endif
#ifndef KVM_PRE_FAULT_MEMORY
struct kvm_pre_fault_memory {
	uint64_t gpa, size, flags, padding[5];
};
#define KVM_PRE_FAULT_MEMORY _IOWR(KVMIO, 0xd5, struct kvm_pre_fault_memory)
#endif
struct link_guest_memfd {
	uint64_t fd, flags, reserved[6];
};
#define LINK_GUEST_MEMFD _IOWR(KVMIO, 0xd6, struct link_guest_memfd)
#define MOVE_CONTEXT 206

#define MB (1ul << 20)
#define LOAD 0x8000ul		/* mov (%rdi),%rax; hlt */
#define STORE 0x8010ul		/* mov %rax,(%rdi); hlt */
#define COUNT 0x8020ul		/* 1: incq (%rdi); jmp 1b */
#define CALL 0x8030ul		/* vmcall; hlt */
#define WATCH 0x8040ul		/* 1: mov (%rdi),%rax; hlt; jmp 1b */
#define FILL 0x8050ul		/* 1: mov %rax,(%rdi); lea 1(%rax,%rax,2),%rax; add $8,%rdi; dec %rcx; jnz 1b; hlt */
#define HASH 0x8070ul		/* 1: xor (%rdi),%rax; imul $HASH_FACTOR,%rax; add $8,%rdi; dec %rcx; jnz 1b; hlt */
#define HASH_FACTOR 0x01000193
#define BASE (4ul << 30)	/* gpa of the slot with private memory */
#define SIZE (2 * MB)
#define PAGE(n) (BASE + (n) * 4096ul)

struct gvm {
	struct kvmtest t;
	uint8_t *shared;
	int gmem;
};

static int create_gmem(int vm, uint64_t size, uint64_t flags)
{
	struct kvm_create_guest_memfd c = { .size = size, .flags = flags };

	return ioctl(vm, KVM_CREATE_GUEST_MEMFD, &c);
}

static int set_slot2(int vm, unsigned slot, unsigned flags, uint64_t gpa, uint64_t size, void *hva, int gmem,
		     uint64_t offset)
{
	struct kvm_userspace_memory_region2 r = { .slot = slot, .flags = flags, .guest_phys_addr = gpa,
						  .memory_size = size, .userspace_addr = (uintptr_t)hva,
						  .guest_memfd = gmem, .guest_memfd_offset = offset };

	return ioctl(vm, KVM_SET_USER_MEMORY_REGION2, &r);
}

static int set_private(int vm, uint64_t gpa, uint64_t size, bool private)
{
	struct kvm_memory_attributes a = { .address = gpa, .size = size,
					   .attributes = private ? KVM_MEMORY_ATTRIBUTE_PRIVATE : 0 };

	return ioctl(vm, KVM_SET_MEMORY_ATTRIBUTES, &a);
}

static int link_gmem(int vm, uint64_t fd, uint64_t flags)
{
	struct link_guest_memfd l = { .fd = fd, .flags = flags };

	return ioctl(vm, LINK_GUEST_MEMFD, &l);
}

static int move_from(int dst, int src)
{
	struct kvm_enable_cap cap = { .cap = MOVE_CONTEXT, .args = { (unsigned)src } };

	return ioctl(dst, KVM_ENABLE_CAP, &cap);
}

static void *anonymous(size_t size)
{
	void *p = mmap(NULL, size, PROT_READ | PROT_WRITE, MAP_PRIVATE | MAP_ANONYMOUS, -1, 0);

	NEED(p != MAP_FAILED);
	return p;
}

/* Ordinary memory at 0 in slot 0, a vCPU; no slot with private memory yet. */
static struct gvm gvm_bare(unsigned long type)
{
	static const uint8_t code[] = {
		[0x00] = 0x48, 0x8b, 0x07, 0xf4,
		[0x10] = 0x48, 0x89, 0x07, 0xf4,
		[0x20] = 0x48, 0xff, 0x07, 0xeb, 0xfb,
		[0x30] = 0x0f, 0x01, 0xc1, 0xf4,
		[0x40] = 0x48, 0x8b, 0x07, 0xf4, 0xeb, 0xfa,
		[0x50] = 0x48, 0x89, 0x07, 0x48, 0x8d, 0x44, 0x40, 1, 0x48, 0x83, 0xc7, 8, 0x48, 0xff, 0xc9, 0x75, 0xef, 0xf4,
		[0x70] = 0x48, 0x33, 0x07, 0x48, 0x69, 0xc0, 0x93, 0x01, 0x00, 0x01, 0x48, 0x83, 0xc7, 8, 0x48, 0xff, 0xc9,
			 0x75, 0xed, 0xf4,
	};
	struct gvm g = { .t = { .mem_size = MB, .vcpu = -1 }, .gmem = -1 };

	g.t.kvm = open("/dev/kvm", O_RDWR | O_CLOEXEC);
	NEED(g.t.kvm >= 0);
	g.t.vm = ioctl(g.t.kvm, KVM_CREATE_VM, type);
	NEED(g.t.vm >= 0);
	g.t.mem = anonymous(MB);
	g.shared = anonymous(SIZE);
	NEED(set_slot2(g.t.vm, 0, 0, 0, MB, g.t.mem, 0, 0) == 0);
	g.t.run_size = ioctl(g.t.kvm, KVM_GET_VCPU_MMAP_SIZE, 0);
	kvmtest_add_vcpu(&g.t, 0);
	kvmtest_long_mode(&g.t, LOAD, code, sizeof(code));
	/* One page of tables more, for the fifth GiB. */
	*(uint64_t *)(g.t.mem + 0x2000 + 8 * (BASE >> 30)) = 0x5000 | 7;
	*(uint64_t *)(g.t.mem + 0x5000) = BASE | 0x87;
	return g;
}

static struct gvm gvm(void)
{
	struct gvm g = gvm_bare(1);

	g.gmem = create_gmem(g.t.vm, SIZE, 0);
	NEED(g.gmem >= 0);
	NEED(set_slot2(g.t.vm, 1, KVM_MEM_GUEST_MEMFD, BASE, SIZE, g.shared, g.gmem, 0) == 0);
	return g;
}

/* A VM bound to the same memory. */
static struct gvm gvm_linked(const struct gvm *src)
{
	struct gvm g = gvm_bare(1);

	g.gmem = link_gmem(g.t.vm, src->gmem, 0);
	NEED(g.gmem >= 0);
	NEED(set_slot2(g.t.vm, 1, KVM_MEM_GUEST_MEMFD, BASE, SIZE, g.shared, g.gmem, 0) == 0);
	return g;
}

static void gvm_done(struct gvm *g)
{
	if (g->gmem >= 0)
		close(g->gmem);
	munmap(g->shared, SIZE);
	kvmtest_done(&g->t);
}

static int start(struct gvm *g, uint64_t code, uint64_t gpa, uint64_t rax)
{
	struct kvm_regs regs = { .rip = code, .rsp = 0x10000, .rflags = 2, .rdi = gpa, .rax = rax };

	return ioctl(g->t.vcpu, KVM_SET_REGS, &regs);
}

static int run(struct gvm *g)
{
	int r = ioctl(g->t.vcpu, KVM_RUN, 0);

	return r ? -errno : (int)g->t.run->exit_reason;
}

static void poke(struct gvm *g, uint64_t gpa, uint64_t val)
{
	CHECK_EQ(start(g, STORE, gpa, val), 0);
	CHECK_EQ(run(g), KVM_EXIT_HLT);
}

static uint64_t peek(struct gvm *g, uint64_t gpa)
{
	struct kvm_regs regs = { .rax = ~0ull };

	CHECK_EQ(start(g, LOAD, gpa, 0x5555), 0);
	CHECK_EQ(run(g), KVM_EXIT_HLT);
	CHECK_EQ(ioctl(g->t.vcpu, KVM_GET_REGS, &regs), 0);
	return regs.rax;
}

/* The next look of a vCPU that runs WATCH, with whatever translations it has cached (setting registers may drop them). */
static uint64_t look(struct gvm *g)
{
	struct kvm_regs regs = { .rax = ~0ull };

	CHECK_EQ(run(g), KVM_EXIT_HLT);
	CHECK_EQ(ioctl(g->t.vcpu, KVM_GET_REGS, &regs), 0);
	return regs.rax;
}

/* KVM_RUN fails with EFAULT and says where. */
static void check_memory_fault(struct gvm *g, uint64_t gpa, bool private)
{
	struct fault { uint64_t flags, gpa, size; } *f = (void *)&g->t.run->hw;

	errno = 0;
	CHECK_EQ(run(g), -EFAULT);
	CHECK_EQ(g->t.run->exit_reason, KVM_EXIT_MEMORY_FAULT);
	CHECK_EQ(f->flags, private ? 8 : 0);
	CHECK_EQ(f->gpa, gpa & ~0xfffull);
	CHECK_EQ(f->size, 4096);
}

static int in_child(int (*fn)(void *), void *arg)
{
	pid_t pid;
	int status;

	fflush(stdout);
	pid = fork();
	if (!pid)
		_exit(fn(arg));
	NEED(pid > 0 && waitpid(pid, &status, 0) == pid);
	return status;
}

/* ---- files and slots --------------------------------------------------------------- */

static void test_create(void)
{
	struct gvm g = gvm_bare(1);
	int fd, flags;

	CHECK_EQ(ioctl(g.t.kvm, KVM_CHECK_EXTENSION, 235), 3);
	CHECK_EQ(ioctl(g.t.kvm, KVM_CHECK_EXTENSION, 233), 8);
	CHECK_EQ(ioctl(g.t.vm, KVM_CHECK_EXTENSION, 234), 1);
	CHECK_EQ(ioctl(g.t.vm, KVM_CHECK_EXTENSION, 206), 1);
	CHECK_ERRNO(ioctl(g.t.kvm, KVM_CREATE_VM, 2), EINVAL);
	CHECK_ERRNO(create_gmem(g.t.vm, 0, 0), EINVAL);
	CHECK_ERRNO(create_gmem(g.t.vm, 4095, 0), EINVAL);
	CHECK_ERRNO(create_gmem(g.t.vm, 1ull << 63, 0), EINVAL);
	for (int bit = 0; bit < 64; bit++)
		CHECK_ERRNO(create_gmem(g.t.vm, 4096, 1ull << bit), EINVAL);
	fd = create_gmem(g.t.vm, SIZE, 0);
	CHECK(fd >= 0);
	flags = fcntl(fd, F_GETFD);
	CHECK_EQ(flags, 0);
	CHECK_EQ(fcntl(fd, F_GETFL) & O_ACCMODE, O_RDWR);
	close(fd);
	gvm_done(&g);
}

static void test_file(void)
{
	struct gvm g = gvm();
	char buf[16] = "";
	struct stat st;
	int keep = FALLOC_FL_KEEP_SIZE, hole = FALLOC_FL_KEEP_SIZE | FALLOC_FL_PUNCH_HOLE, fd = dup(g.gmem);

	CHECK_EQ(read(g.gmem, buf, 16), -1);
	CHECK_EQ(write(g.gmem, buf, 16), -1);
	CHECK_EQ(pread(g.gmem, buf, 16, 0), -1);
	CHECK_EQ(pwrite(fd, buf, 16, 0), -1);
	CHECK(mmap(NULL, 4096, PROT_READ, MAP_SHARED, fd, 0) == MAP_FAILED && errno == ENODEV);
	CHECK_ERRNO(ftruncate(fd, 4096), EINVAL);
	CHECK_ERRNO(ftruncate(fd, 2 * SIZE), EINVAL);
	CHECK_ERRNO(fallocate(fd, 0, 0, 4096), EOPNOTSUPP);
	CHECK_ERRNO(fallocate(fd, keep | FALLOC_FL_ZERO_RANGE, 0, 4096), EOPNOTSUPP);
	CHECK_ERRNO(fallocate(fd, keep, 1, 4096), EINVAL);
	CHECK_ERRNO(fallocate(fd, keep, 0, 4095), EINVAL);
	CHECK_ERRNO(fallocate(fd, hole, 4096, 1), EINVAL);
	CHECK_ERRNO(fallocate(fd, keep, SIZE, 4096), EINVAL);
	CHECK_ERRNO(syscall(SYS_fallocate, fd, keep, SIZE, 4096), EINVAL);
	CHECK_EQ(fallocate(fd, keep, 0, 8192), 0);
	CHECK_EQ(fstat(fd, &st), 0);
	CHECK_EQ(st.st_size, SIZE);
	CHECK_EQ(st.st_blocks * 512, 8192);
	CHECK_EQ(fallocate(fd, hole, 0, 4096), 0);
	CHECK_EQ(fallocate(fd, hole, SIZE, 4096), 0);
	CHECK_EQ(fstat(fd, &st), 0);
	CHECK_EQ(st.st_blocks * 512, 4096);
	CHECK_ERRNO(ioctl(fd, KVM_RUN, 0), ENOTTY);
	close(fd);
	gvm_done(&g);
}

static void test_slots(void)
{
	const unsigned gm = KVM_MEM_GUEST_MEMFD;
	struct gvm g = gvm(), def = gvm_bare(0);
	struct kvm_userspace_memory_region old = { .slot = 5, .flags = gm, .guest_phys_addr = 64 * MB,
						   .memory_size = 4096, .userspace_addr = (uintptr_t)g.shared };
	int vm = g.t.vm, p[2], fd = create_gmem(vm, 8 * 4096, 0);

	NEED(pipe(p) == 0);
	CHECK_ERRNO(ioctl(vm, KVM_SET_USER_MEMORY_REGION, &old), EINVAL);
	CHECK_ERRNO(set_slot2(def.t.vm, 5, gm, 64 * MB, 4096, g.shared, fd, 0), EINVAL);
	CHECK_ERRNO(set_slot2(vm, 5, gm, 64 * MB, 4096, g.shared, 999, 0), EBADF);
	CHECK_ERRNO(set_slot2(vm, 5, gm, 64 * MB, 4096, g.shared, p[0], 0), EINVAL);
	CHECK_ERRNO(set_slot2(vm, 5, gm, 64 * MB, 4096, g.shared, vm, 0), EINVAL);
	CHECK_ERRNO(set_slot2(vm, 5, gm, 64 * MB, 4096, g.shared, fd, 1), EINVAL);
	CHECK_ERRNO(set_slot2(vm, 5, gm, 64 * MB, 4096, g.shared, fd, -4096), EINVAL);
	CHECK_ERRNO(set_slot2(vm, 5, gm, 64 * MB, 9 * 4096, g.shared, fd, 0), EINVAL);
	CHECK_ERRNO(set_slot2(vm, 5, gm, 64 * MB, 4096, g.shared, fd, 8 * 4096), EINVAL);
	CHECK_ERRNO(set_slot2(vm, 5, gm | KVM_MEM_READONLY, 64 * MB, 4096, g.shared, fd, 0), EINVAL);
	CHECK_ERRNO(set_slot2(vm, 5, gm | KVM_MEM_LOG_DIRTY_PAGES, 64 * MB, 4096, g.shared, fd, 0), EINVAL);
	CHECK_EQ(set_slot2(vm, 5, gm, 64 * MB, 4 * 4096, g.shared, fd, 4096), 0);
	CHECK_ERRNO(set_slot2(vm, 5, gm, 64 * MB, 4 * 4096, g.shared, fd, 4096), EINVAL); /* immutable */
	CHECK_ERRNO(set_slot2(vm, 5, 0, 64 * MB, 4 * 4096, g.shared, fd, 4096), EINVAL);
	CHECK_ERRNO(set_slot2(vm, 6, gm, 65 * MB, 4096, g.shared, fd, 4 * 4096), EINVAL); /* bound already */
	CHECK_ERRNO(set_slot2(vm, 6, gm, 64 * MB, 4096, g.shared, fd, 5 * 4096), EEXIST);
	CHECK_EQ(set_slot2(vm, 6, gm, 65 * MB, 4096, g.shared, fd, 5 * 4096), 0);
	CHECK_EQ(set_slot2(vm, 5, 0, 0, 0, NULL, 0, 0), 0);
	CHECK_EQ(set_slot2(vm, 5, gm, 64 * MB, 4096, g.shared, fd, 4 * 4096), 0); /* free again */
	close(p[0]);
	close(p[1]);
	close(fd);
	gvm_done(&def);
	gvm_done(&g);
}

static void test_attributes(void)
{
	struct gvm g = gvm(), def = gvm_bare(0);
	struct kvm_memory_attributes a = { .address = BASE, .size = 4096, .attributes = 8, .flags = 1 };

	CHECK_ERRNO(ioctl(g.t.vm, KVM_SET_MEMORY_ATTRIBUTES, &a), EINVAL);
	a.flags = 0;
	a.attributes = 1;
	CHECK_ERRNO(ioctl(g.t.vm, KVM_SET_MEMORY_ATTRIBUTES, &a), EINVAL);
	CHECK_ERRNO(set_private(g.t.vm, BASE, 0, true), EINVAL);
	CHECK_ERRNO(set_private(g.t.vm, BASE + 1, 4096, true), EINVAL);
	CHECK_ERRNO(set_private(g.t.vm, BASE, 4097, true), EINVAL);
	CHECK_ERRNO(set_private(g.t.vm, -4096, 8192, true), EINVAL);
	CHECK_ERRNO(set_private(def.t.vm, BASE, 4096, true), EINVAL);
	CHECK_EQ(set_private(def.t.vm, BASE, 4096, false), 0);

	/* Two memories behind one page, and the guest keeps its translation cached. */
	for (int i = 0; i < 8; i++)
		poke(&g, PAGE(i), 100 + i);
	CHECK_EQ(*(uint64_t *)(g.shared + 4096), 101);
	CHECK_EQ(set_private(g.t.vm, PAGE(2), 4 * 4096, true), 0);
	for (int i = 0; i < 8; i++) {
		bool private = i >= 2 && i < 6;

		CHECK_EQ(peek(&g, PAGE(i)), private ? 0 : 100 + i);
		poke(&g, PAGE(i), 200 + i);
		CHECK_EQ(*(uint64_t *)(g.shared + i * 4096), (private ? 100 : 200) + i);
	}
	/* A hole in the range, the hole's neighbours, and all of it back again. */
	CHECK_EQ(set_private(g.t.vm, PAGE(3), 4096, false), 0);
	CHECK_EQ(peek(&g, PAGE(2)), 202);
	CHECK_EQ(peek(&g, PAGE(3)), 103);
	CHECK_EQ(peek(&g, PAGE(4)), 204);
	CHECK_EQ(set_private(g.t.vm, 0, 1ull << 50, false), 0);
	CHECK_EQ(peek(&g, PAGE(4)), 104);
	CHECK_EQ(set_private(g.t.vm, PAGE(0), SIZE, true), 0);
	CHECK_EQ(peek(&g, PAGE(3)), 203);
	CHECK_EQ(start(&g, WATCH, PAGE(3), 0), 0);
	CHECK_EQ(look(&g), 203);
	CHECK_EQ(set_private(g.t.vm, PAGE(3), 4096, false), 0);
	CHECK_EQ(look(&g), 103);
	CHECK_EQ(set_private(g.t.vm, PAGE(3), 4096, true), 0);
	CHECK_EQ(look(&g), 203);
	gvm_done(&def);
	gvm_done(&g);
}

/* Random ranges against a plain array. */
static void test_attributes_property(void)
{
	enum { N = 64 };
	struct gvm g = gvm();
	bool private[N] = { 0 };

	srand(2);
	for (int i = 0; i < N; i++)
		*(uint64_t *)(g.shared + i * 4096) = 1000 + i;
	for (int round = 0; round < 200; round++) {
		unsigned first = rand() % N, n = 1 + rand() % (N - first), probe = rand() % N;
		bool on = rand() % 2;

		CHECK_EQ(set_private(g.t.vm, PAGE(first), n * 4096ul, on), 0);
		for (unsigned i = first; i < first + n; i++)
			private[i] = on;
		for (unsigned k = 0; k < 8; k++, probe = (probe + 7) % N)
			CHECK_EQ(peek(&g, PAGE(probe)), private[probe] ? 0 : 1000 + probe);
	}
	gvm_done(&g);
}

static void test_memory_fault(void)
{
	struct gvm g = gvm();

	/* Private, but the slot has no private memory; private, and no slot; the file closed. */
	CHECK_EQ(set_private(g.t.vm, 0x20000, 4096, true), 0);
	CHECK_EQ(start(&g, LOAD, 0x20008, 0), 0);
	check_memory_fault(&g, 0x20000, true);
	CHECK_EQ(set_private(g.t.vm, 0x20000, 4096, false), 0);
	CHECK_EQ(run(&g), KVM_EXIT_HLT);		/* and is then repeated */
	CHECK_EQ(set_private(g.t.vm, 256 * MB, 4096, true), 0);
	CHECK_EQ(start(&g, STORE, 256 * MB, 0), 0);
	check_memory_fault(&g, 256 * MB, true);
	CHECK_EQ(start(&g, 256 * MB, 0, 0), 0);		/* as code */
	check_memory_fault(&g, 256 * MB, true);
	CHECK_EQ(set_private(g.t.vm, BASE, SIZE, true), 0);
	poke(&g, BASE, 7);
	close(g.gmem);
	g.gmem = -1;
	CHECK_EQ(start(&g, LOAD, BASE, 0), 0);
	check_memory_fault(&g, BASE, true);
	CHECK_EQ(set_private(g.t.vm, BASE, SIZE, false), 0);
	CHECK_EQ(peek(&g, BASE), 0);
	gvm_done(&g);
}

static void test_pre_fault(void)
{
	struct gvm g = gvm();
	struct kvm_pre_fault_memory r = { .gpa = BASE, .size = 8192, .flags = 1 };
	struct stat st;

	CHECK_EQ(ioctl(g.t.vm, KVM_CHECK_EXTENSION, 236), 1);
	CHECK_ERRNO(ioctl(g.t.vcpu, KVM_PRE_FAULT_MEMORY, &r), EINVAL);
	r.flags = 0;
	r.size = 0;
	CHECK_ERRNO(ioctl(g.t.vcpu, KVM_PRE_FAULT_MEMORY, &r), EINVAL);
	r.size = 100;
	CHECK_ERRNO(ioctl(g.t.vcpu, KVM_PRE_FAULT_MEMORY, &r), EINVAL);
	r.size = 4096;
	r.gpa = 100 * MB;
	CHECK_ERRNO(ioctl(g.t.vcpu, KVM_PRE_FAULT_MEMORY, &r), ENOENT);
	CHECK_EQ(set_private(g.t.vm, BASE, SIZE / 2, true), 0);
	r.gpa = BASE;
	r.size = 4 * 4096;
	CHECK_EQ(ioctl(g.t.vcpu, KVM_PRE_FAULT_MEMORY, &r), 0);
	CHECK_EQ(r.size, 0);
	CHECK_EQ(r.gpa, PAGE(4));
	CHECK_EQ(fstat(g.gmem, &st), 0);
	CHECK_EQ(st.st_blocks * 512, 4 * 4096);
	r.gpa = BASE + SIZE - 4096;
	r.size = 3 * 4096;				/* runs off the slot: part of it is done */
	CHECK_EQ(ioctl(g.t.vcpu, KVM_PRE_FAULT_MEMORY, &r), 0);
	CHECK_EQ(r.size, 2 * 4096);
	CHECK_ERRNO(ioctl(g.t.vcpu, KVM_PRE_FAULT_MEMORY, &r), ENOENT);
	gvm_done(&g);
}

static void test_map_gpa_range(void)
{
	struct gvm g = gvm();
	struct kvm_enable_cap cap = { .cap = KVM_CAP_EXIT_HYPERCALL, .args = { 1 << KVM_HC_MAP_GPA_RANGE } };
	struct kvm_regs regs = { .rip = CALL, .rsp = 0x10000, .rflags = 2, .rax = KVM_HC_MAP_GPA_RANGE,
				 .rbx = BASE, .rcx = 2, .rdx = 1 << 4 };

	CHECK_EQ(ioctl(g.t.vm, KVM_ENABLE_CAP, &cap), 0);
	CHECK_EQ(ioctl(g.t.vcpu, KVM_SET_REGS, &regs), 0);
	CHECK_EQ(run(&g), KVM_EXIT_HYPERCALL);
	CHECK_EQ(g.t.run->hypercall.nr, KVM_HC_MAP_GPA_RANGE);
	CHECK_EQ(g.t.run->hypercall.args[0], BASE);
	CHECK_EQ(g.t.run->hypercall.args[1], 2);
	CHECK_EQ(g.t.run->hypercall.args[2], 1 << 4);
	CHECK_EQ(set_private(g.t.vm, BASE, 8192, true), 0);
	g.t.run->hypercall.ret = 0;
	CHECK_EQ(run(&g), KVM_EXIT_HLT);
	CHECK_EQ(ioctl(g.t.vcpu, KVM_GET_REGS, &regs), 0);
	CHECK_EQ(regs.rax, 0);
	gvm_done(&g);
}

/* ---- linking --------------------------------------------------------------------------- */

static void gm1_gm2_link(void)
{
	struct gvm a = gvm(), b = gvm_bare(1);
	struct link_guest_memfd l = { .fd = a.gmem };
	struct stat st1, st2;
	long same;
	int fd;

	CHECK_ERRNO(link_gmem(b.t.vm, 999, 0), EINVAL);
	CHECK_ERRNO(link_gmem(b.t.vm, 0, 0), EINVAL);
	CHECK_ERRNO(link_gmem(b.t.vm, a.t.vm, 0), EINVAL);
	CHECK_ERRNO(link_gmem(b.t.vm, a.gmem, 1), EINVAL);
	CHECK_ERRNO(link_gmem(b.t.vm, a.gmem, ~0ull), EINVAL);
	CHECK_ERRNO(link_gmem(a.t.vm, a.gmem, 0), EINVAL);
	l.fd |= 1ull << 32;
	CHECK_ERRNO(ioctl(b.t.vm, LINK_GUEST_MEMFD, &l), EINVAL);
	l.fd = a.gmem;
	l.reserved[3] = 1;
	CHECK_ERRNO(ioctl(b.t.vm, LINK_GUEST_MEMFD, &l), EINVAL);
	CHECK_ERRNO(ioctl(b.t.vm, LINK_GUEST_MEMFD, 8), EFAULT);
	/* The same number with another size is another ioctl. */
	CHECK_ERRNO(ioctl(b.t.vm, 0xc080aed6u, &l), ENOTTY);
	fd = link_gmem(b.t.vm, a.gmem, 0);
	CHECK(fd >= 0 && fd != a.gmem);
	CHECK_EQ(fcntl(fd, F_GETFD), 0);
	CHECK_EQ(fstat(a.gmem, &st1), 0);
	CHECK_EQ(fstat(fd, &st2), 0);
	CHECK_EQ(st1.st_ino, st2.st_ino);
	same = syscall(SYS_kcmp, getpid(), getpid(), 0, a.gmem, fd);
	if (same < 0)
		kvmtest_skipped++;
	else
		CHECK(same > 0);
	CHECK_ERRNO(link_gmem(b.t.vm, fd, 0), EINVAL);	/* now it is b's */
	close(fd);
	gvm_done(&b);
	gvm_done(&a);
}

static void gm14_foreign_view(void)
{
	struct gvm a = gvm(), b = gvm_linked(&a);
	int fd = dup(a.gmem), unbound = create_gmem(a.t.vm, SIZE, 0);

	CHECK_EQ(set_slot2(b.t.vm, 1, 0, 0, 0, NULL, 0, 0), 0);
	CHECK_ERRNO(set_slot2(b.t.vm, 1, KVM_MEM_GUEST_MEMFD, BASE, SIZE, b.shared, a.gmem, 0), EINVAL);
	CHECK_ERRNO(set_slot2(b.t.vm, 1, KVM_MEM_GUEST_MEMFD, BASE, SIZE, b.shared, fd, 0), EINVAL);
	CHECK_ERRNO(set_slot2(b.t.vm, 1, KVM_MEM_GUEST_MEMFD, BASE, SIZE, b.shared, unbound, 0), EINVAL);
	CHECK_EQ(set_slot2(b.t.vm, 1, KVM_MEM_GUEST_MEMFD, BASE, SIZE, b.shared, b.gmem, 0), 0);
	close(unbound);
	close(fd);
	gvm_done(&a);
	gvm_done(&b);
}

static unsigned count_mappings(void)
{
	FILE *maps = fopen("/proc/self/maps", "r");
	unsigned n = 0;
	int c;

	NEED(maps);
	while ((c = getc(maps)) != EOF)
		n += c == '\n';
	fclose(maps);
	return n;
}

static void gm16_descriptor_limit(void)
{
	struct gvm a = gvm(), b = gvm_bare(1);
	struct mallinfo2 before, after;
	unsigned mappings;
	struct rlimit old, none;
	unsigned wrong = 0;
	int fd;

	NEED(getrlimit(RLIMIT_NOFILE, &old) == 0);
	none = old;
	fd = dup(0);
	close(fd);
	none.rlim_cur = fd;
	mappings = count_mappings();
	NEED(setrlimit(RLIMIT_NOFILE, &none) == 0);
	before = mallinfo2();
	for (int i = 0; i < 100000; i++)
		wrong += !(link_gmem(b.t.vm, a.gmem, 0) == -1 && errno == EMFILE);
	after = mallinfo2();
	CHECK_EQ(wrong, 0);
	/* Threads that come and go have a little of their own. */
	CHECK(after.uordblks + after.hblkhd < before.uordblks + before.hblkhd + 100000);
	setrlimit(RLIMIT_NOFILE, &old);
	CHECK(count_mappings() <= mappings + 2);
	for (int i = 0; i < 20000; i++) {
		int n = link_gmem(b.t.vm, a.gmem, 0);

		wrong += n != fd;		/* nothing leaks a number */
		close(n);
	}
	CHECK_EQ(wrong, 0);
	gvm_done(&b);
	gvm_done(&a);
}

static void gm3_two_views(void)
{
	struct gvm a = gvm(), b;

	CHECK_EQ(set_private(a.t.vm, BASE, SIZE, true), 0);
	poke(&a, PAGE(3), 0xdeadbeef);
	b = gvm_linked(&a);
	CHECK_EQ(peek(&b, PAGE(3)), 0);
	CHECK_EQ(set_private(b.t.vm, BASE, SIZE, true), 0);
	CHECK_EQ(peek(&b, PAGE(3)), 0xdeadbeef);
	/* GM12: a hole through either view is one in both. */
	CHECK_EQ(fallocate(a.gmem, FALLOC_FL_KEEP_SIZE | FALLOC_FL_PUNCH_HOLE, 3 * 4096, 4096), 0);
	CHECK_EQ(peek(&a, PAGE(3)), 0);
	CHECK_EQ(peek(&b, PAGE(3)), 0);
	poke(&a, PAGE(4), 5);
	CHECK_EQ(peek(&b, PAGE(4)), 5);
	CHECK_EQ(fallocate(b.gmem, FALLOC_FL_KEEP_SIZE | FALLOC_FL_PUNCH_HOLE, 4 * 4096, 4096), 0);
	CHECK_EQ(peek(&a, PAGE(4)), 0);
	CHECK_EQ(peek(&b, PAGE(4)), 0);
	gvm_done(&a);
	gvm_done(&b);
}

static void gm13_lifetime(void)
{
	struct gvm a = gvm(), b;
	char path[40];
	struct stat st, inode;
	int watch;

	CHECK_EQ(set_private(a.t.vm, BASE, SIZE, true), 0);
	for (int i = 0; i < 16; i++)
		poke(&a, PAGE(i), 1 + i);
	b = gvm_linked(&a);
	snprintf(path, sizeof(path), "/proc/self/fd/%d", b.gmem);
	watch = open(path, O_RDONLY | O_CLOEXEC);	/* the inode, by no view */
	gvm_done(&a);
	CHECK_EQ(fstat(b.gmem, &st), 0);
	CHECK_EQ(st.st_blocks * 512, 16 * 4096);
	CHECK_EQ(set_private(b.t.vm, BASE, SIZE, true), 0);
	CHECK_EQ(peek(&b, PAGE(15)), 16);
	inode = st;
	gvm_done(&b);
	/* No mapping of ours has stayed behind, and no descriptor: then the kernel has the memory back. */
	if (watch >= 0) {
		FILE *maps = fopen("/proc/self/maps", "r");
		char line[512];
		unsigned left = 0;

		while (maps && fgets(line, sizeof(line), maps))
			left += strstr(line, "kvm-gmem") != NULL;
		CHECK_EQ(left, 0);
		if (maps)
			fclose(maps);
		close(watch);
		for (int fd = 0; fd < 1024; fd++)
			left += !syscall(SYS_fstat, fd, &st) && st.st_ino == inode.st_ino && st.st_dev == inode.st_dev;
		CHECK_EQ(left, 0);
	}
}

/* ---- moving -------------------------------------------------------------------------------- */

/* One ioctl of each kind, with an argument that is all zeros. */
static void check_dead(const struct gvm *g)
{
	static const unsigned long of_vm[] = {
		KVM_CHECK_EXTENSION, KVM_CREATE_VCPU, KVM_ENABLE_CAP, KVM_SET_USER_MEMORY_REGION,
		KVM_SET_USER_MEMORY_REGION2, KVM_GET_DIRTY_LOG, KVM_CLEAR_DIRTY_LOG, KVM_RESET_DIRTY_RINGS,
		KVM_SET_MEMORY_ATTRIBUTES, KVM_CREATE_GUEST_MEMFD, LINK_GUEST_MEMFD, KVM_CREATE_IRQCHIP, KVM_GET_IRQCHIP,
		KVM_SET_IRQCHIP, KVM_IRQ_LINE, KVM_SET_GSI_ROUTING, KVM_SIGNAL_MSI, KVM_IRQFD, KVM_IOEVENTFD, KVM_CREATE_PIT2,
		KVM_GET_PIT2, KVM_GET_CLOCK, KVM_SET_CLOCK, KVM_SET_TSS_ADDR, KVM_REGISTER_COALESCED_MMIO,
		KVM_X86_SET_MSR_FILTER, KVM_GET_STATS_FD, KVM_CREATE_DEVICE, KVM_HAS_DEVICE_ATTR,
	};
	static const unsigned long of_vcpu[] = {
		KVM_RUN, KVM_GET_REGS, KVM_SET_REGS, KVM_GET_SREGS, KVM_SET_SREGS, KVM_GET_FPU, KVM_SET_FPU, KVM_GET_XSAVE,
		KVM_GET_MSRS, KVM_SET_MSRS, KVM_GET_LAPIC, KVM_SET_LAPIC, KVM_GET_MP_STATE, KVM_SET_MP_STATE, KVM_GET_CPUID2,
		KVM_SET_CPUID2, KVM_GET_VCPU_EVENTS, KVM_SET_GUEST_DEBUG, KVM_TRANSLATE, KVM_INTERRUPT, KVM_NMI, KVM_SMI,
		KVM_SET_SIGNAL_MASK, KVM_ENABLE_CAP, KVM_GET_STATS_FD, KVM_PRE_FAULT_MEMORY, KVM_HAS_DEVICE_ATTR,
	};
	static uint8_t zeros[8192];

	for (unsigned i = 0; i < sizeof(of_vm) / sizeof(of_vm[0]); i++)
		CHECK_ERRNO(ioctl(g->t.vm, of_vm[i], zeros), EIO);
	for (unsigned i = 0; i < sizeof(of_vcpu) / sizeof(of_vcpu[0]); i++)
		CHECK_ERRNO(ioctl(g->t.vcpu, of_vcpu[i], zeros), EIO);
}

static void gm4_gm7_move(void)
{
	struct gvm a = gvm(), b, c = gvm_bare(1);
	struct kvm_enable_cap cap = { .cap = KVM_CAP_SPLIT_IRQCHIP };
	struct kvm_regs regs;
	uint64_t bits[8];
	struct kvm_dirty_log log = { 0 };
	int fd;

	CHECK_EQ(set_private(a.t.vm, PAGE(0), 64 * 4096, true), 0);
	CHECK_EQ(set_private(a.t.vm, PAGE(5), 4096, false), 0);
	poke(&a, PAGE(1), 0xabcd);
	b = gvm_linked(&a);
	/* GM15: b has run on shared memory and cached that. */
	*(uint64_t *)(b.shared + 4096) = 111;
	*(uint64_t *)(b.shared + 5 * 4096) = 555;
	CHECK_EQ(peek(&b, PAGE(1)), 111);
	CHECK_EQ(peek(&b, PAGE(5)), 555);
	CHECK_EQ(start(&b, WATCH, PAGE(1), 0), 0);
	CHECK_EQ(look(&b), 111);
	CHECK_EQ(move_from(b.t.vm, a.t.vm), 0);
	CHECK_EQ(look(&b), 0xabcd);
	CHECK_EQ(peek(&b, PAGE(1)), 0xabcd);
	CHECK_EQ(peek(&b, PAGE(5)), 555);
	CHECK_EQ(peek(&b, PAGE(64)), 0);
	poke(&b, PAGE(2), 2);
	CHECK_EQ(*(uint64_t *)(b.shared + 2 * 4096), 0);

	/* GM7, and DR11: the source is dead, which closing it survives. */
	log.dirty_bitmap = bits;
	CHECK_ERRNO(ioctl(a.t.vm, KVM_CHECK_EXTENSION, 0), EIO);
	CHECK_ERRNO(ioctl(a.t.vm, KVM_CREATE_VCPU, 1), EIO);
	CHECK_ERRNO(ioctl(a.t.vm, KVM_ENABLE_CAP, &cap), EIO);
	CHECK_ERRNO(ioctl(a.t.vm, KVM_RESET_DIRTY_RINGS, 0), EIO);
	CHECK_ERRNO(ioctl(a.t.vm, KVM_GET_DIRTY_LOG, &log), EIO);
	CHECK_ERRNO(ioctl(a.t.vcpu, KVM_RUN, 0), EIO);
	CHECK_ERRNO(ioctl(a.t.vcpu, KVM_GET_REGS, &regs), EIO);
	CHECK_ERRNO(set_private(a.t.vm, PAGE(0), 4096, true), EIO);
	CHECK_ERRNO(set_slot2(a.t.vm, 1, 0, 0, 0, NULL, 0, 0), EIO);
	CHECK_ERRNO(move_from(a.t.vm, b.t.vm), EIO);
	CHECK_ERRNO(move_from(b.t.vm, a.t.vm), EIO);
	CHECK_ERRNO(link_gmem(a.t.vm, b.gmem, 0), EIO);
	check_dead(&a);
	fd = link_gmem(c.t.vm, a.gmem, 0);
	CHECK(fd >= 0);
	close(fd);
	gvm_done(&a);
	CHECK_EQ(peek(&b, PAGE(1)), 0xabcd);
	gvm_done(&b);
	gvm_done(&c);
}

static void *run_thread(void *arg)
{
	return (void *)(long)run(arg);
}

static void gm6_running_source(void)
{
	for (int round = 0; round < 20; round++) {
		struct gvm a = gvm(), b = gvm_linked(&a);
		uint64_t value;
		pthread_t thread;
		void *r;

		CHECK_EQ(set_private(a.t.vm, BASE, SIZE, true), 0);
		CHECK_EQ(start(&a, COUNT, BASE, 0), 0);
		NEED(!pthread_create(&thread, NULL, run_thread, &a));
		/* Under way, as the other view shows. */
		CHECK_EQ(set_private(b.t.vm, BASE, SIZE, true), 0);
		while (!peek(&b, BASE))
			;
		usleep(round * 500);
		CHECK_EQ(move_from(b.t.vm, a.t.vm), 0);
		value = peek(&b, BASE);
		CHECK(value > 0);
		usleep(5000);
		CHECK_EQ(peek(&b, BASE), value);
		pthread_join(thread, &r);
		CHECK_EQ((long)r, -EIO);
		CHECK_EQ(peek(&b, BASE), value);
		gvm_done(&a);
		gvm_done(&b);
	}
}

static void gm8_mismatches(void)
{
	struct gvm a = gvm(), b;
	const unsigned gm = KVM_MEM_GUEST_MEMFD;
	int vm, fd, other;

	CHECK_EQ(set_private(a.t.vm, BASE, SIZE, true), 0);
	poke(&a, BASE, 77);
	b = gvm_bare(1);
	vm = b.t.vm;
	fd = link_gmem(vm, a.gmem, 0);
	other = create_gmem(vm, SIZE, 0);
	NEED(fd >= 0 && other >= 0);
#define MISMATCH(...)                                                           \
	do {                                                                    \
		CHECK_EQ(set_slot2(vm, __VA_ARGS__), 0);                        \
		CHECK_ERRNO(move_from(vm, a.t.vm), EINVAL);                     \
		CHECK_EQ(set_slot2(vm, 1, 0, 0, 0, NULL, 0, 0), 0);             \
	} while (0)
	CHECK_ERRNO(move_from(vm, a.t.vm), EINVAL);				/* one slot less */
	MISMATCH(1, gm, BASE + 4096, SIZE, b.shared, fd, 0);			/* base */
	MISMATCH(1, gm, BASE, SIZE - 4096, b.shared, fd, 0);			/* size */
	MISMATCH(1, 0, BASE, SIZE, b.shared, 0, 0);				/* flags */
	MISMATCH(1, gm, BASE, SIZE, b.shared, other, 0);			/* inode */
	CHECK_EQ(set_slot2(vm, 2, gm, BASE, SIZE, b.shared, fd, 0), 0);		/* another number is fine */
	CHECK_EQ(set_slot2(vm, 3, 0, BASE + SIZE, 4096, b.shared, 0, 0), 0);	/* one slot more */
	CHECK_ERRNO(move_from(vm, a.t.vm), EINVAL);
	CHECK_EQ(set_slot2(vm, 3, 0, 0, 0, NULL, 0, 0), 0);
	/* Offset: half of the memory, the wrong half. */
	CHECK_EQ(set_slot2(vm, 2, 0, 0, 0, NULL, 0, 0), 0);
	CHECK_EQ(set_slot2(a.t.vm, 1, 0, 0, 0, NULL, 0, 0), 0);
	CHECK_EQ(set_slot2(a.t.vm, 1, gm, BASE, SIZE / 2, a.shared, a.gmem, 0), 0);
	MISMATCH(1, gm, BASE, SIZE / 2, b.shared, fd, SIZE / 2);
	/* Both alive, the source as it was. */
	CHECK_EQ(peek(&a, BASE), 77);
	CHECK_EQ(set_slot2(vm, 9, gm, BASE, SIZE / 2, b.shared, fd, 0), 0);
	CHECK_EQ(peek(&b, BASE), 0);
	CHECK_EQ(move_from(vm, a.t.vm), 0);
	CHECK_EQ(peek(&b, BASE), 77);
	close(fd);
	close(other);
	gvm_done(&a);
	gvm_done(&b);
}

static void gm9_wrong_descriptors(void)
{
	struct gvm a = gvm(), def = gvm_bare(0), bare = gvm_bare(1);
	struct kvm_enable_cap cap = { .cap = MOVE_CONTEXT, .args = { 1ull << 32 } };
	int p[2];

	NEED(pipe(p) == 0);
	CHECK_ERRNO(move_from(a.t.vm, 999), EBADF);
	CHECK_ERRNO(move_from(a.t.vm, a.gmem), EBADF);
	CHECK_ERRNO(move_from(a.t.vm, p[0]), EBADF);
	CHECK_ERRNO(move_from(a.t.vm, a.t.vcpu), EBADF);
	CHECK_ERRNO(ioctl(a.t.vm, KVM_ENABLE_CAP, &cap), EBADF);
	CHECK_ERRNO(move_from(a.t.vm, a.t.vm), EINVAL);
	CHECK_ERRNO(move_from(a.t.vm, def.t.vm), EINVAL);
	CHECK_ERRNO(move_from(def.t.vm, a.t.vm), EINVAL);
	CHECK_ERRNO(move_from(bare.t.vm, def.t.vm), EINVAL);	/* of equal slots, but not of the same type */
	CHECK_ERRNO(move_from(def.t.vm, bare.t.vm), EINVAL);
	CHECK_EQ(ioctl(def.t.vm, KVM_CHECK_EXTENSION, MOVE_CONTEXT), 0);
	close(p[0]);
	close(p[1]);
	gvm_done(&bare);
	gvm_done(&def);
	gvm_done(&a);
}

/* Each thread moves to its VM from the next one: three in a ring. */
struct mover {
	int dst, src;
	pthread_barrier_t *barrier;
	int result;
};

static void *move_thread(void *arg)
{
	struct mover *m = arg;

	pthread_barrier_wait(m->barrier);
	m->result = move_from(m->dst, m->src) ? errno : 0;
	return NULL;
}

#define OWNED(i) (0x10000000ul + (i) * 4096ul)	/* what VM i has as private in the beginning */

/* Of which of the three VMs it has the map: it looks at what is private in each. -1: of none, or of several. */
static int map_of(int kvm, int vm)
{
	size_t size = ioctl(kvm, KVM_GET_VCPU_MMAP_SIZE, 0);
	int vcpu = ioctl(vm, KVM_CREATE_VCPU, 0), found = 0, nr = 0;
	struct kvm_run *run = mmap(NULL, size, PROT_READ | PROT_WRITE, MAP_SHARED, vcpu, 0);
	struct kvm_regs regs = { .rflags = 2 };
	struct kvm_sregs sregs;

	NEED(run != MAP_FAILED && ioctl(vcpu, KVM_GET_SREGS, &sregs) == 0);
	sregs.cs.base = sregs.cs.selector = 0;
	for (int i = 0; i < 3; i++) {
		sregs.ds.base = OWNED(i);
		NEED(ioctl(vcpu, KVM_SET_SREGS, &sregs) == 0 && ioctl(vcpu, KVM_SET_REGS, &regs) == 0);
		if (ioctl(vcpu, KVM_RUN, 0) == -1 && run->exit_reason == KVM_EXIT_MEMORY_FAULT) {
			found = i;
			nr++;
		} else if (run->exit_reason == KVM_EXIT_MMIO) {
			run->immediate_exit = 1;
			CHECK_ERRNO(ioctl(vcpu, KVM_RUN, 0), EINTR);
			run->immediate_exit = 0;
		} else {
			CHECK_EQ(run->exit_reason, KVM_EXIT_MMIO);
		}
	}
	munmap(run, size);
	close(vcpu);
	return nr == 1 ? found : -1;
}

static void gm10_three_at_once(void)
{
	int kvm = open("/dev/kvm", O_RDWR), wrong = 0, moves = 0, live_maps = 0;
	const int rounds = 10000;
	uint8_t *code = anonymous(4096);
	pthread_barrier_t barrier;

	memcpy(code, (uint8_t[]){ 0x8a, 0x07 }, 2);	/* mov (%bx),%al */
	pthread_barrier_init(&barrier, NULL, 3);
	for (int round = 0; round < rounds; round++) {
		struct mover m[3];
		pthread_t thread[3];
		int vm[3], alive = 0, done = 0;

		for (int i = 0; i < 3; i++)
			NEED((vm[i] = ioctl(kvm, KVM_CREATE_VM, 1)) >= 0);
		for (int i = 0; i < 3; i++)
			NEED(set_slot2(vm[i], 0, 0, 0, 4096, code, 0, 0) == 0 &&
			     set_private(vm[i], OWNED(i), 4096, true) == 0);
		for (int i = 0; i < 3; i++) {
			m[i] = (struct mover){ vm[i], vm[(i + 1) % 3], &barrier, -1 };
			NEED(!pthread_create(&thread[i], NULL, move_thread, &m[i]));
		}
		for (int i = 0; i < 3; i++) {
			pthread_join(thread[i], NULL);
			wrong += m[i].result && m[i].result != EBUSY && m[i].result != EIO && m[i].result != EINVAL;
			done += !m[i].result;
		}
		for (int i = 0; i < 3; i++)
			alive += ioctl(vm[i], KVM_CHECK_EXTENSION, 0) >= 0;
		wrong += alive != 3 - done || !alive;
		/* Who is alive has the map that was handed on to it, by one move or by two: one owner of each. */
		for (int i = 0; i < 3 && round % 10 == 0; i++) {
			int owned = i;

			if (ioctl(vm[i], KVM_CHECK_EXTENSION, 0) < 0)
				continue;
			while (!m[owned].result)
				owned = (owned + 1) % 3;
			wrong += map_of(kvm, vm[i]) != owned;
			live_maps++;
		}
		moves += done;
		for (int i = 0; i < 3; i++)
			close(vm[i]);
	}
	printf("gm10: %d moves in %d rounds, %d maps looked at\n", moves, rounds, live_maps);
	CHECK_EQ(wrong, 0);
	CHECK(moves >= rounds);
	munmap(code, 4096);
	pthread_barrier_destroy(&barrier);
	close(kvm);
}

/* Run again with move_ctx_stage2. */
static void gm11_failed_move(void)
{
	struct gvm a = gvm(), b = gvm_linked(&a);

	CHECK_EQ(set_private(a.t.vm, BASE, 4096, true), 0);
	poke(&a, BASE, 9);
	CHECK_ERRNO(move_from(b.t.vm, a.t.vm), ENOMEM);
	CHECK_EQ(peek(&a, BASE), 9);
	CHECK_EQ(peek(&b, BASE), 0);
	CHECK_EQ(set_private(b.t.vm, BASE, 4096, true), 0);
	CHECK_EQ(peek(&b, BASE), 9);
	gvm_done(&a);
	gvm_done(&b);
}

/* ---- two processes ------------------------------------------------------------------------------ */

static void send_fds(int sock, const int *fds, int nr)
{
	char control[CMSG_SPACE(4 * sizeof(int))] = "", byte = 'f';
	struct iovec iov = { &byte, 1 };
	struct msghdr msg = { .msg_iov = &iov, .msg_iovlen = 1, .msg_control = control,
			      .msg_controllen = CMSG_SPACE(nr * sizeof(int)) };
	struct cmsghdr *c = CMSG_FIRSTHDR(&msg);

	c->cmsg_level = SOL_SOCKET;
	c->cmsg_type = SCM_RIGHTS;
	c->cmsg_len = CMSG_LEN(nr * sizeof(int));
	memcpy(CMSG_DATA(c), fds, nr * sizeof(int));
	NEED(sendmsg(sock, &msg, 0) == 1);
}

static void receive_fds(int sock, int *fds, int nr)
{
	char control[CMSG_SPACE(4 * sizeof(int))], byte;
	struct iovec iov = { &byte, 1 };
	struct msghdr msg = { .msg_iov = &iov, .msg_iovlen = 1, .msg_control = control,
			      .msg_controllen = sizeof(control) };

	NEED(recvmsg(sock, &msg, 0) == 1 && CMSG_FIRSTHDR(&msg));
	memcpy(fds, CMSG_DATA(CMSG_FIRSTHDR(&msg)), nr * sizeof(int));
}

enum { PAGES = SIZE / 4096, COUNTED = 300 };	/* the source's vCPU counts in that page */

/* What FILL leaves in the source's memory. Page 7 was written while shared: its private half is empty, as is our shared one. */
static const uint64_t *image(void)
{
	static uint64_t words[SIZE / 8];
	uint64_t value = 1;

	for (unsigned i = 0; i < SIZE / 8; i++, value = value * 3 + 1)
		words[i] = i / 512 == 7 ? 0 : value;
	return words;
}

static uint64_t loop_over(struct gvm *g, uint64_t code, uint64_t rax, unsigned first, unsigned pages)
{
	struct kvm_regs regs = { .rip = code, .rsp = 0x10000, .rflags = 2, .rax = rax, .rdi = PAGE(first),
				 .rcx = pages * 512 };

	CHECK_EQ(ioctl(g->t.vcpu, KVM_SET_REGS, &regs), 0);
	CHECK_EQ(run(g), KVM_EXIT_HLT);
	CHECK_EQ(ioctl(g->t.vcpu, KVM_GET_REGS, &regs), 0);
	return regs.rax;
}

/* The source: private memory with known contents, but for one shared page; a vCPU that counts on. */
static int source_main(int sock)
{
	struct gvm a = gvm();
	int fds[2] = { a.gmem, a.t.vm };
	char c;

	CHECK_EQ(set_private(a.t.vm, BASE, SIZE, true), 0);
	CHECK_EQ(set_private(a.t.vm, PAGE(7), 4096, false), 0);
	loop_over(&a, FILL, 1, 0, PAGES);
	poke(&a, PAGE(COUNTED), 0);
	send_fds(sock, fds, 2);
	CHECK_EQ(start(&a, COUNT, PAGE(COUNTED), 0), 0);
	CHECK_EQ(run(&a), -EIO);			/* until it is moved away */
	CHECK_ERRNO(ioctl(a.t.vm, KVM_CHECK_EXTENSION, 0), EIO);
	CHECK_ERRNO(set_private(a.t.vm, BASE, SIZE, true), EIO);
	if (read(sock, &c, 1) != 1)
		return 1;
	return kvmtest_failed != 0;
}

static pid_t source_start(int *sock, int *fds)
{
	int pair[2];
	pid_t pid;

	NEED(socketpair(AF_UNIX, SOCK_STREAM, 0, pair) == 0);
	fflush(stdout);
	pid = fork();
	if (!pid) {
		char number[16];

		snprintf(number, sizeof(number), "%d", pair[1]);
		execl("/proc/self/exe", "guest_memfd", "source", number, NULL);
		_exit(127);
	}
	close(pair[1]);
	*sock = pair[0];
	receive_fds(pair[0], fds, 2);
	return pid;
}

/* All of it, as the guest sees it; the page that is counted in has one word of its own. */
static void check_memory(struct gvm *b)
{
	const uint64_t *words = image();
	uint64_t before = 0, after = 0;

	for (unsigned i = 0; i < COUNTED * 512; i++)
		before = (before ^ words[i]) * HASH_FACTOR;
	for (unsigned i = (COUNTED + 1) * 512; i < PAGES * 512; i++)
		after = (after ^ words[i]) * HASH_FACTOR;
	CHECK_EQ(loop_over(b, HASH, 0, 0, COUNTED), before);
	CHECK_EQ(loop_over(b, HASH, 0, COUNTED + 1, PAGES - COUNTED - 1), after);
	CHECK_EQ(peek(b, PAGE(COUNTED) + 8), words[COUNTED * 512 + 1]);
	CHECK_EQ(peek(b, PAGE(7)), 0);
}

static void gm5_two_processes(void)
{
	int fds[2], sock, status;
	struct gvm b = gvm_bare(1);
	pid_t pid = source_start(&sock, fds);
	struct kvm_regs regs;
	uint64_t count;

	/* What belongs to another process can be linked and moved from, and nothing else. */
	CHECK_ERRNO(ioctl(fds[1], KVM_CHECK_EXTENSION, 0), EIO);
	CHECK_ERRNO(set_private(fds[1], BASE, 4096, false), EIO);
	CHECK_ERRNO(set_slot2(b.t.vm, 1, KVM_MEM_GUEST_MEMFD, BASE, SIZE, b.shared, fds[0], 0), EINVAL);
	b.gmem = link_gmem(b.t.vm, fds[0], 0);
	CHECK(b.gmem >= 0);
	CHECK_ERRNO(move_from(b.t.vm, fds[0]), EBADF);
	CHECK_ERRNO(move_from(b.t.vm, fds[1]), EINVAL);		/* no slot yet */
	CHECK_EQ(set_slot2(b.t.vm, 1, KVM_MEM_GUEST_MEMFD, BASE, SIZE, b.shared, b.gmem, 0), 0);
	CHECK_EQ(set_private(b.t.vm, PAGE(COUNTED), 4096, true), 0);
	while (!peek(&b, PAGE(COUNTED)))			/* until it counts */
		;
	CHECK_EQ(start(&b, WATCH, PAGE(9), 0), 0);
	CHECK_EQ(look(&b), 0);					/* shared, before */
	CHECK_EQ(move_from(b.t.vm, fds[1]), 0);
	CHECK_EQ(look(&b), image()[9 * 512]);
	count = peek(&b, PAGE(COUNTED));
	CHECK(count > 0);
	check_memory(&b);
	CHECK_EQ(peek(&b, PAGE(COUNTED)), count);
	CHECK_ERRNO(move_from(b.t.vm, fds[1]), EIO);		/* once */
	NEED(write(sock, "x", 1) == 1);
	NEED(waitpid(pid, &status, 0) == pid);
	CHECK_EQ(status, 0);
	CHECK_EQ(ioctl(b.t.vcpu, KVM_GET_REGS, &regs), 0);
	check_memory(&b);
	close(sock);
	close(fds[0]);
	close(fds[1]);
	gvm_done(&b);
}

/* The source is killed right after the move, or right after the link. */
static void gm5_killed(bool after_move)
{
	int fds[2], sock;
	struct gvm b = gvm_bare(1);
	pid_t pid = source_start(&sock, fds);

	b.gmem = link_gmem(b.t.vm, fds[0], 0);
	CHECK(b.gmem >= 0);
	CHECK_EQ(set_slot2(b.t.vm, 1, KVM_MEM_GUEST_MEMFD, BASE, SIZE, b.shared, b.gmem, 0), 0);
	if (after_move)
		CHECK_EQ(move_from(b.t.vm, fds[1]), 0);
	kill(pid, SIGKILL);
	NEED(waitpid(pid, NULL, 0) == pid);
	if (!after_move) {
		/* Its map has died with it; the pages have not. */
		CHECK_ERRNO(move_from(b.t.vm, fds[1]), EIO);
		CHECK_EQ(peek(&b, PAGE(3)), 0);
		CHECK_EQ(set_private(b.t.vm, BASE, SIZE, true), 0);
	}
	check_memory(&b);
	poke(&b, PAGE(1), 1);
	CHECK_EQ(peek(&b, PAGE(1)), 1);
	close(sock);
	close(fds[0]);
	close(fds[1]);
	gvm_done(&b);
}

/* ---- the newer interface: SOFTKVM_API_LEVEL=6.18 ----------------------------------------------- */

static int touch(void *p)
{
	*(volatile uint32_t *)p = 1;
	return 0;
}

static void test_mmap_level(void)
{
	struct gvm g = gvm_bare(0), prot = gvm_bare(1);
	int fd, status;
	uint8_t *p;

	CHECK_EQ(ioctl(g.t.vm, KVM_CHECK_EXTENSION, 234), 1);
	CHECK_EQ(ioctl(g.t.vm, KVM_CHECK_EXTENSION, 244), 3);
	CHECK_EQ(ioctl(prot.t.vm, KVM_CHECK_EXTENSION, 244), 1);
	CHECK_ERRNO(create_gmem(prot.t.vm, SIZE, 2), EINVAL);
	CHECK_ERRNO(create_gmem(g.t.vm, SIZE, 4), EINVAL);
	fd = create_gmem(g.t.vm, SIZE, 0);
	CHECK(mmap(NULL, 4096, PROT_READ, MAP_SHARED, fd, 0) == MAP_FAILED && errno == ENODEV);
	close(fd);
	fd = create_gmem(g.t.vm, SIZE, 1);
	p = mmap(NULL, SIZE, PROT_READ | PROT_WRITE, MAP_SHARED, fd, 0);
	CHECK(p != MAP_FAILED);
	status = in_child(touch, p);		/* not shared from the beginning */
	CHECK(WIFSIGNALED(status) && WTERMSIG(status) == SIGBUS);
	munmap(p, SIZE);
	close(fd);
	fd = create_gmem(g.t.vm, SIZE, 3);
	CHECK(mmap(NULL, SIZE, PROT_READ, MAP_PRIVATE, fd, 0) == MAP_FAILED && errno == EINVAL);
	p = mmap(NULL, SIZE + 4096, PROT_READ | PROT_WRITE, MAP_SHARED, fd, 0);
	CHECK(p != MAP_FAILED);
	status = in_child(touch, p + SIZE);
	CHECK(WIFSIGNALED(status) && WTERMSIG(status) == SIGBUS);
	*(uint64_t *)(p + 4096) = 0x1234;
	CHECK_EQ(write(fd, "x", 1), -1);
	/* All of the slot's memory is in the file, whatever userspace_addr says. */
	CHECK_EQ(set_slot2(g.t.vm, 1, KVM_MEM_GUEST_MEMFD, BASE, SIZE, g.shared, fd, 0), 0);
	CHECK_EQ(peek(&g, PAGE(1)), 0x1234);
	poke(&g, PAGE(2), 0x4321);
	CHECK_EQ(*(uint64_t *)(p + 2 * 4096), 0x4321);
	CHECK_EQ(*(uint64_t *)(g.shared + 2 * 4096), 0);
	munmap(p, SIZE + 4096);
	close(fd);
	gvm_done(&prot);
	gvm_done(&g);
}

static void again(const char *name, const char *value, const char *what)
{
	pid_t pid;
	int status;

	fflush(stdout);
	pid = fork();
	if (!pid) {
		setenv(name, value, 1);
		execl("/proc/self/exe", "guest_memfd", what, NULL);
		_exit(127);
	}
	NEED(pid > 0 && waitpid(pid, &status, 0) == pid);
	CHECK_EQ(status, 0);
}

int main(int argc, char **argv)
{
	setvbuf(stdout, NULL, _IOLBF, 0);
	if (argc > 1) {
		if (!strcmp(argv[1], "source"))
			return source_main(atoi(argv[2]));
		if (!strcmp(argv[1], "mmap"))
			test_mmap_level();
		else
			gm11_failed_move();
		return kvmtest_summary();
	}
	test_create();
	test_file();
	test_slots();
	test_attributes();
	test_attributes_property();
	test_memory_fault();
	test_pre_fault();
	test_map_gpa_range();
	gm1_gm2_link();
	gm3_two_views();
	gm13_lifetime();
	gm14_foreign_view();
	gm16_descriptor_limit();
	gm4_gm7_move();
	gm6_running_source();
	gm8_mismatches();
	gm9_wrong_descriptors();
	gm10_three_at_once();
	gm5_two_processes();
	gm5_killed(true);
	gm5_killed(false);
	again("SOFTKVM_INJECT", "move_ctx_stage2", "failed move");
	again("SOFTKVM_API_LEVEL", "6.18", "mmap");
	return kvmtest_summary();
}

/* SPDX-License-Identifier: MIT */
/*
 * Dirty rings: who gets one, what is in it, and KVM_RESET_DIRTY_RINGS against clients that are
 * slow, hostile or interrupted. Functions are named after the checks DR1 to DR14.
 *
 * Each can fail: without the flush at the end of a reset dr6 and dr7 find writes unreported (with it
 * skipped on a signal only, dr6 in strict mode does); without the lap rule dr6 sees short counts;
 * without the signal check dr1 exceeds its second; with whole batches dropped for one bad offset dr9
 * misses pages; without arch_vcpu_end_block() dr13 sees stores beyond the limit.
 *
 * Seen to fail as well: with the signal not looked at while entries join a batch (dr2); with every VM's vCPUs waiting for a
 * reset to end (dr3); with a ring its client has wrecked taken for a bug of ours (dr4); with the limit counted for each ring
 * (dr5); with a second caller that does not wait for slots_lock (dr7); with batches of 65 pages, of several slots, or whose
 * pages fall off the end (dr8); with EINVAL for E2BIG, and each check in vm_enable_dirty_ring() left out (dr10); without the
 * check for a ring, or for the caller's address space (dr11); with PROT_EXEC or MAP_PRIVATE let through, or pages left behind
 * the ring's end (dr12); with SIGINT blocked during the call (dr14).
 */
#include <limits.h>
#include <linux/kvm.h>
#include <pthread.h>
#include <sched.h>
#include <signal.h>
#include <stdatomic.h>
#include <stdbool.h>
#include <sys/time.h>
#include <sys/wait.h>
#include <time.h>

#include "api/kvmtest.h"

#ifndef KVM_CAP_DIRTY_LOG_RING_ACQ_REL
#define KVM_CAP_DIRTY_LOG_RING_ACQ_REL 223
#endif
#define MB (1ul << 20)
#define RING_OFFSET (64 * 4096)
#define RESERVED 64
#define CODE 0x8000ul
#define DATA (2 * MB)		/* pages the guest dirties, in slot 0 like everything else */
#define DATA_PAGE (DATA / 4096)

struct ring {
	struct kvm_dirty_gfn *gfns;
	uint32_t size, fetch;
};

static int enable(int vm, uint64_t bytes)
{
	struct kvm_enable_cap cap = { .cap = KVM_CAP_DIRTY_LOG_RING_ACQ_REL, .args = { bytes } };

	return ioctl(vm, KVM_ENABLE_CAP, &cap);
}

static int set_slot(struct kvmtest *t, unsigned flags)
{
	struct kvm_userspace_memory_region r = { .flags = flags, .memory_size = t->mem_size,
						 .userspace_addr = (uintptr_t)t->mem };

	return ioctl(t->vm, KVM_SET_USER_MEMORY_REGION, &r);
}

static struct ring map_ring(int vcpu, uint32_t entries)
{
	struct ring r = { .size = entries };

	r.gfns = mmap(NULL, entries * sizeof(*r.gfns), PROT_READ | PROT_WRITE, MAP_SHARED, vcpu, RING_OFFSET);
	NEED(r.gfns != MAP_FAILED);
	return r;
}

/* A VM with rings and one vCPU in 64-bit mode. */
static struct kvmtest ring_vm(size_t mem, uint32_t entries, struct ring *ring, const void *code, size_t len)
{
	struct kvmtest t = kvmtest_vm(mem, 0);
	uint64_t *pd;

	NEED(enable(t.vm, entries * sizeof(struct kvm_dirty_gfn)) == 0);
	kvmtest_add_vcpu(&t, 0);
	kvmtest_long_mode(&t, CODE, code, len);
	/* Accessed and dirty already, so that page walks write nothing. */
	*(uint64_t *)(t.mem + 0x1000) |= 0x20;
	*(uint64_t *)(t.mem + 0x2000) |= 0x20;
	pd = (uint64_t *)(t.mem + 0x3000);
	for (int i = 0; i < 512; i++)
		pd[i] |= 0x60;
	*ring = map_ring(t.vcpu, entries);
	NEED(set_slot(&t, KVM_MEM_LOG_DIRTY_PAGES) == 0);
	return t;
}

static void ring_done(struct kvmtest *t, struct ring *r)
{
	munmap(r->gfns, r->size * sizeof(*r->gfns));
	kvmtest_done(t);
}

static long reset(int vm)
{
	return ioctl(vm, KVM_RESET_DIRTY_RINGS, 0);
}

/* Marks as harvested what is dirty; seen (one count a page from DATA on) may be NULL. */
static unsigned harvest(struct ring *r, unsigned *seen, unsigned pages)
{
	unsigned n = 0;

	for (;; n++) {
		struct kvm_dirty_gfn *g = &r->gfns[r->fetch % r->size];

		if (__atomic_load_n(&g->flags, __ATOMIC_ACQUIRE) != KVM_DIRTY_GFN_F_DIRTY)
			return n;
		if (seen && g->slot == 0 && g->offset - DATA_PAGE < pages)
			seen[g->offset - DATA_PAGE]++;
		__atomic_store_n(&g->flags, KVM_DIRTY_GFN_F_RESET, __ATOMIC_RELEASE);
		r->fetch++;
	}
}

/* 1: incq (%rdi); add $4096,%rdi; dec %rcx; jnz 1b; hlt; the program starts at CODE */
static const uint8_t walker[] = { 0x48, 0xff, 0x07, 0x48, 0x81, 0xc7, 0x00, 0x10, 0, 0,
				  0x48, 0xff, 0xc9, 0x75, 0xf1, 0xf4 };

static void start(struct kvmtest *t, unsigned first, unsigned pages)
{
	struct kvm_regs regs = { .rip = CODE, .rsp = 0x10000, .rflags = 2,
				 .rdi = DATA + first * 4096ul, .rcx = pages };

	CHECK_EQ(ioctl(t->vcpu, KVM_SET_REGS, &regs), 0);
}

static int run(struct kvmtest *t)
{
	int r = ioctl(t->vcpu, KVM_RUN, 0);

	return r ? -errno : (int)t->run->exit_reason;
}

static void write_pages(struct kvmtest *t, unsigned first, unsigned pages)
{
	start(t, first, pages);
	CHECK_EQ(run(t), KVM_EXIT_HLT);
}

static double read_clock(clockid_t clock)
{
	struct timespec ts;

	clock_gettime(clock, &ts);
	return ts.tv_sec + ts.tv_nsec * 1e-9;
}

static double now(void)
{
	return read_clock(CLOCK_MONOTONIC);
}

static double thread_time(void)
{
	return read_clock(CLOCK_THREAD_CPUTIME_ID);
}

/* ---- enabling, mapping, errors ------------------------------------------------------ */

static void dr10_enable(void)
{
	struct kvmtest t = kvmtest_vm(MB, 0);
	struct kvm_dirty_log log = { 0 };
	uint64_t bits[4];

	CHECK_EQ(ioctl(t.kvm, KVM_CHECK_EXTENSION, 192), MB);
	CHECK_EQ(ioctl(t.vm, KVM_CHECK_EXTENSION, 223), MB);
	CHECK_EQ(ioctl(t.vm, KVM_CHECK_EXTENSION, 225), 0);
	CHECK_ERRNO(reset(t.vm), EINVAL);			/* DR11: no ring */
	CHECK_ERRNO(enable(t.vm, 0), EINVAL);
	CHECK_ERRNO(enable(t.vm, 3 * 4096), EINVAL);
	CHECK_ERRNO(enable(t.vm, 2048), EINVAL);
	CHECK_ERRNO(enable(t.vm, 2 * MB), E2BIG);
	CHECK_EQ(enable(t.vm, 65536), 0);
	CHECK_ERRNO(enable(t.vm, 65536), EINVAL);		/* twice */
	CHECK_EQ(set_slot(&t, KVM_MEM_LOG_DIRTY_PAGES), 0);
	log.dirty_bitmap = bits;
	CHECK_ERRNO(ioctl(t.vm, KVM_GET_DIRTY_LOG, &log), ENXIO);
	CHECK_EQ(reset(t.vm), 0);
	kvmtest_done(&t);

	t = kvmtest_vm(MB, 0);
	kvmtest_add_vcpu(&t, 0);
	CHECK_ERRNO(enable(t.vm, 65536), EINVAL);		/* after a vCPU */
	kvmtest_done(&t);
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

static int reset_is_eio(void *vm)
{
	return !(reset(*(int *)vm) == -1 && errno == EIO);
}

static int touch(void *p)
{
	*(volatile uint32_t *)p = 1;
	return 0;
}

static void dr11_dr12_mappings(void)
{
	struct ring ring;
	struct kvmtest t = ring_vm(4 * MB, 256, &ring, walker, sizeof(walker));
	uint8_t *p;
	int status;

	CHECK_EQ(in_child(reset_is_eio, &t.vm), 0);		/* DR11; the dead VM is in guest_memfd.c */
	CHECK(mmap(NULL, 4096, PROT_READ | PROT_EXEC, MAP_SHARED, t.vcpu, RING_OFFSET) == MAP_FAILED &&
	      errno == EINVAL);
	CHECK(mmap(NULL, 4096, PROT_READ | PROT_WRITE, MAP_PRIVATE, t.vcpu, RING_OFFSET) == MAP_FAILED &&
	      errno == EINVAL);
	p = mmap(NULL, 8192, PROT_READ | PROT_WRITE, MAP_SHARED, t.vcpu, RING_OFFSET);
	CHECK(p != MAP_FAILED);
	if (p != MAP_FAILED) {
		CHECK_EQ(in_child(touch, p), 0);
		status = in_child(touch, p + 4096);
		CHECK(WIFSIGNALED(status) && WTERMSIG(status) == SIGBUS);
		munmap(p, 8192);
	}
	ring_done(&t, &ring);
}

/* ---- what is logged --------------------------------------------------------------------- */

static void test_log(void)
{
	struct ring ring;
	struct kvmtest t = ring_vm(8 * MB, 1024, &ring, walker, sizeof(walker));
	unsigned seen[16] = { 0 };

	write_pages(&t, 0, 8);
	write_pages(&t, 4, 8);				/* pages 4 to 7 are logged already */
	CHECK_EQ(harvest(&ring, seen, 16), 12);
	for (int i = 0; i < 12; i++)
		CHECK_EQ(seen[i], 1);
	write_pages(&t, 0, 1);				/* harvested, not reset: not again */
	CHECK_EQ(harvest(&ring, seen, 16), 0);
	CHECK_EQ(reset(t.vm), 12);
	write_pages(&t, 3, 1);
	CHECK_EQ(harvest(&ring, seen, 16), 1);
	CHECK_EQ(seen[3], 2);
	CHECK_EQ(reset(t.vm), 1);
	CHECK_EQ(reset(t.vm), 0);
	ring_done(&t, &ring);
}

static void dr13_soft_full(void)
{
	enum { SIZE = 4096, LIMIT = SIZE - RESERVED };
	struct ring ring;
	struct kvmtest t = ring_vm(32 * MB, SIZE, &ring, walker, sizeof(walker));
	struct kvm_regs regs;

	start(&t, 0, LIMIT + 100);
	CHECK_EQ(run(&t), KVM_EXIT_DIRTY_RING_FULL);
	CHECK_EQ(*(uint64_t *)(t.mem + DATA + (LIMIT - 1) * 4096), 1);
	CHECK_EQ(*(uint64_t *)(t.mem + DATA + LIMIT * 4096), 0);
	for (int i = 0; i < 3; i++)			/* nothing runs while it is full */
		CHECK_EQ(run(&t), KVM_EXIT_DIRTY_RING_FULL);
	CHECK_EQ(*(uint64_t *)(t.mem + DATA + LIMIT * 4096), 0);
	CHECK_EQ(harvest(&ring, NULL, 0), LIMIT);
	CHECK_EQ(run(&t), KVM_EXIT_DIRTY_RING_FULL);	/* harvested is not reset */
	CHECK_EQ(reset(t.vm), LIMIT);
	CHECK_EQ(run(&t), KVM_EXIT_HLT);
	CHECK_EQ(ioctl(t.vcpu, KVM_GET_REGS, &regs), 0);
	CHECK_EQ(regs.rcx, 0);
	CHECK_EQ(*(uint64_t *)(t.mem + DATA + (LIMIT + 99) * 4096), 1);
	CHECK_EQ(harvest(&ring, NULL, 0), 100);
	ring_done(&t, &ring);
}

/* The limit falls into the middle of a long basic block. */
static void dr13_in_block(void)
{
	enum { SIZE = 4096, LIMIT = SIZE - RESERVED, STORES = 100 };
	uint8_t code[STORES * 7 + 1], store[7] = { 0x48, 0x89, 0x87 }; /* mov %rax,disp32(%rdi) */
	struct kvm_regs regs = { .rip = CODE + 64, .rsp = 0x10000, .rflags = 2, .rax = 1,
				 .rdi = DATA + (LIMIT - 10) * 4096ul };
	struct ring ring;
	struct kvmtest t = ring_vm(32 * MB, SIZE, &ring, walker, sizeof(walker));

	for (uint32_t i = 0; i < STORES; i++) {
		uint32_t disp = i * 4096;

		memcpy(store + 3, &disp, 4);
		memcpy(code + i * 7, store, 7);
	}
	code[STORES * 7] = 0xf4;
	memcpy(t.mem + CODE + 64, code, sizeof(code));
	write_pages(&t, 0, LIMIT - 10);
	CHECK_EQ(ioctl(t.vcpu, KVM_SET_REGS, &regs), 0);
	CHECK_EQ(run(&t), KVM_EXIT_DIRTY_RING_FULL);
	CHECK_EQ(*(uint64_t *)(t.mem + DATA + (LIMIT - 1) * 4096), 1);
	CHECK_EQ(*(uint64_t *)(t.mem + DATA + LIMIT * 4096), 0);
	CHECK_EQ(harvest(&ring, NULL, 0), LIMIT);
	CHECK_EQ(reset(t.vm), LIMIT);
	CHECK_EQ(run(&t), KVM_EXIT_HLT);
	CHECK_EQ(harvest(&ring, NULL, 0), STORES - 10);
	ring_done(&t, &ring);
}

/* ---- resetting: which pages, how many ------------------------------------------------------ */

#define PAGES 512u

/* Pages 0.. are all logged; the client hands back entries of its own making. What must be logged again? */
static void round_trip(struct kvmtest *t, struct ring *ring, const struct kvm_dirty_gfn *entries)
{
	unsigned seen[PAGES] = { 0 }, want[PAGES] = { 0 }, wrong = 0, expected = 0;
	uint32_t first = ring->fetch;
	long long batches;

	CHECK_EQ(set_slot(t, 0), 0);
	CHECK_EQ(set_slot(t, KVM_MEM_LOG_DIRTY_PAGES), 0);
	write_pages(t, 0, PAGES);
	CHECK_EQ(harvest(ring, NULL, 0), PAGES);
	for (unsigned i = 0; i < PAGES; i++) {
		struct kvm_dirty_gfn *g = &ring->gfns[(first + i) % ring->size];

		g->slot = entries[i].slot;
		g->offset = entries[i].offset;
		if (!entries[i].slot && entries[i].offset - DATA_PAGE < PAGES)
			want[entries[i].offset - DATA_PAGE] = 1;
	}
	batches = kvmtest_stat(t->vm, "dirty_ring_batches");
	CHECK_EQ(reset(t->vm), PAGES);
	CHECK(kvmtest_stat(t->vm, "dirty_ring_batches") - batches <= PAGES);
	write_pages(t, 0, PAGES);
	for (unsigned i = 0; i < PAGES; i++)
		expected += want[i];
	CHECK_EQ(harvest(ring, seen, PAGES), expected);
	for (unsigned i = 0; i < PAGES; i++)
		wrong += seen[i] != want[i];
	CHECK_EQ(wrong, 0);
	CHECK_EQ(reset(t->vm), expected);
}

static void dr8_property(void)
{
	struct ring ring;
	struct kvmtest t = ring_vm(8 * MB, 4096, &ring, walker, sizeof(walker));
	struct kvm_dirty_gfn e[PAGES];

	long long batches;

	/* In order, they are gathered: 64 pages at a time. */
	for (unsigned i = 0; i < PAGES; i++)
		e[i] = (struct kvm_dirty_gfn){ .offset = DATA_PAGE + i };
	batches = kvmtest_stat(t.vm, "dirty_ring_batches");
	round_trip(&t, &ring, e);
	if (batches >= 0)
		CHECK_EQ(kvmtest_stat(t.vm, "dirty_ring_batches") - batches, 2 * PAGES / 64);
	srand(1);
	for (int round = 0; round < 60; round++) {
		unsigned page = rand() % PAGES;
		/* Runs: forward, backward, in place, by the edges of the batch, anywhere. */
		for (unsigned i = 0; i < PAGES;) {
			static const int steps[] = { 1, -1, 0, 63, 64, -63, -64, 65, 7, -31 };
			int step = steps[rand() % 10];

			for (unsigned n = rand() % 80; n-- && i < PAGES; i++, page += step)
				e[i] = (struct kvm_dirty_gfn){ .slot = rand() % 16 ? 0 : 7,
							       .offset = DATA_PAGE + page % PAGES };
			page = rand() % PAGES;
		}
		round_trip(&t, &ring, e);
	}
	ring_done(&t, &ring);
}

static void dr9_bad_entries(void)
{
	struct ring ring;
	struct kvmtest t = ring_vm(8 * MB, 4096, &ring, walker, sizeof(walker));
	uint64_t npages = t.mem_size / 4096;
	struct kvm_dirty_gfn e[PAGES];

	for (unsigned i = 0; i < PAGES; i++)
		e[i] = (struct kvm_dirty_gfn){ .offset = DATA_PAGE + i };
	for (unsigned i = 0; i < PAGES; i += 3) {
		static const uint32_t slots[] = { 0xffff, 2 << 16, 0xffffffff, 0, 0, 1 << 16 };

		e[i].slot = slots[i / 3 % 6];
		e[i].offset = i % 2 ? npages : ~0ull - i % 5;
	}
	round_trip(&t, &ring, e);
	ring_done(&t, &ring);

	/* Good and bad ones within one batch: the slot ends with the guest's last page. */
	t = ring_vm(DATA + PAGES * 4096, 4096, &ring, walker, sizeof(walker));
	npages = t.mem_size / 4096;
	for (unsigned i = 0; i < PAGES; i++)
		e[i] = (struct kvm_dirty_gfn){ .offset = npages - 20 + i % 40 };
	round_trip(&t, &ring, e);
	ring_done(&t, &ring);
}

/* Run again with dirty_reset_limit=1000. */
static void dr5_limit(void)
{
	struct kvmtest t = kvmtest_vm(MB, 0);
	struct ring ring[3];
	unsigned left = 0;

	NEED(enable(t.vm, 1024 * 16) == 0);
	for (int i = 0; i < 3; i++) {
		int vcpu = ioctl(t.vm, KVM_CREATE_VCPU, i);

		NEED(vcpu >= 0);
		ring[i] = map_ring(vcpu, 1024);
		for (int n = 0; n < 600; n++)
			ring[i].gfns[n] = (struct kvm_dirty_gfn){ .flags = KVM_DIRTY_GFN_F_RESET, .offset = n };
	}
	CHECK_EQ(reset(t.vm), 1000);
	for (int i = 0; i < 3; i++)
		for (int n = 0; n < 600; n++)
			left += ring[i].gfns[n].flags == KVM_DIRTY_GFN_F_RESET;
	CHECK_EQ(left, 800);
	CHECK_EQ(ring[1].gfns[399].flags, 0);
	CHECK_EQ(ring[1].gfns[400].flags, KVM_DIRTY_GFN_F_RESET);
	CHECK_EQ(reset(t.vm), 800);
	CHECK_EQ(reset(t.vm), 0);
	kvmtest_done(&t);
}

static _Atomic int racers;

static void *reset_thread(void *vm)
{
	atomic_fetch_add(&racers, 1);
	while (atomic_load(&racers) < 2)
		;
	atomic_fetch_add(&racers, 1);
	return (void *)reset(*(int *)vm);
}

static void dr7_two_callers(void)
{
	enum { SIZE = 8192, N = 4096 };
	struct ring ring;
	struct kvmtest t = ring_vm(32 * MB, SIZE, &ring, walker, sizeof(walker));
	unsigned seen[N] = { 0 }, wrong = 0;

	for (int round = 0; round < 100; round++) {
		pthread_t thread;
		void *other;
		long mine;

		write_pages(&t, 0, N);
		CHECK_EQ(harvest(&ring, seen, N), N);
		/* In an order in which no two of them make a batch: that takes longest. */
		for (uint32_t i = 0; i < N; i++)
			ring.gfns[(ring.fetch - N + i) % SIZE].offset = DATA_PAGE + i * 65 % N;
		atomic_store(&racers, 0);
		NEED(!pthread_create(&thread, NULL, reset_thread, &t.vm));
		while (!atomic_load(&racers))
			sched_yield();
		atomic_fetch_add(&racers, 1);
		/* Now this thread is the first, now the other one. */
		while (round % 2 && atomic_load(&racers) < 3)
			;
		mine = reset(t.vm);
		/* Whichever of them took the entries: from here on what is written is logged again. */
		write_pages(&t, 0, N);
		pthread_join(thread, &other);
		CHECK_EQ(mine + (long)other, N);
		CHECK_EQ(harvest(&ring, seen, N), N);
		CHECK_EQ(reset(t.vm), N);
		for (int i = 0; i < N; i++)
			wrong += seen[i] != 2 * (unsigned)round + 2;
	}
	CHECK_EQ(wrong, 0);
	ring_done(&t, &ring);
}

/* ---- a guest that never stops writing -------------------------------------------------------- */

/* 1: mov $DATA,%rdi; mov %rdx,%rcx; 2: incq (%rdi); add $4096,%rdi; dec %rcx; jnz 2b; jmp 1b */
static const uint8_t forever[] = { 0x48, 0xc7, 0xc7, 0, 0, 0x20, 0, 0x48, 0x89, 0xd1,
				   0x48, 0xff, 0x07, 0x48, 0x81, 0xc7, 0x00, 0x10, 0, 0,
				   0x48, 0xff, 0xc9, 0x75, 0xf1, 0xeb, 0xe5 };

static _Atomic int stop;
static _Atomic int vcpu_errors;

static void *run_forever(void *arg)
{
	struct kvmtest *t = arg;

	while (!atomic_load(&stop)) {
		int r = run(t);

		if (r != KVM_EXIT_DIRTY_RING_FULL && r != -EINTR && r != KVM_EXIT_INTR)
			atomic_fetch_add(&vcpu_errors, 1);
		if (r == KVM_EXIT_DIRTY_RING_FULL)
			usleep(200);
	}
	return NULL;
}

static void nothing(int sig)
{
}

static void interval(double seconds)
{
	struct itimerval it = { { 0, seconds * 1e6 }, { 0, seconds * 1e6 } };

	setitimer(ITIMER_REAL, &it, NULL);
}

/* DR6_SECONDS: for how long. */
static void dr6_rearm(bool strict)
{
	enum { SIZE = 4096, N = 3500 };
	static uint64_t armed_value[N];
	static bool armed[N];
	static unsigned seen[N];
	struct ring ring;
	struct kvmtest t = ring_vm(32 * MB, SIZE, &ring, forever, sizeof(forever));
	struct kvm_regs regs = { .rip = CODE, .rsp = 0x10000, .rflags = 2, .rdx = N };
	unsigned lost = 0, shorts = 0, rounds = 0, checked = 0;
	uint32_t reset_at = 0;
	pthread_t thread;
	const char *wish = getenv("DR6_SECONDS");
	sigset_t alarm;
	double end;

	NEED(!ioctl(t.vcpu, KVM_SET_REGS, &regs));
	signal(SIGALRM, nothing);
	signal(SIGUSR1, nothing);
	sigemptyset(&alarm);
	sigaddset(&alarm, SIGALRM);
	atomic_store(&stop, 0);
	pthread_sigmask(SIG_BLOCK, &alarm, NULL);
	NEED(!pthread_create(&thread, NULL, run_forever, &t));
	pthread_sigmask(SIG_UNBLOCK, &alarm, NULL);
	interval(strict ? 0.0002 : 0.001);
	end = now() + (wish ? atoi(wish) : strict ? 10 : 3);
	for (; now() < end && !(strict && !wish && shorts > 5 && checked > N); rounds++) {
		static uint64_t value[N];
		unsigned n, wrong_flags = 0;
		long r;

		for (int i = 0; i < N; i++)
			value[i] = *(volatile uint64_t *)(t.mem + DATA + i * 4096ul);
		memset(seen, 0, sizeof(seen));
		harvest(&ring, seen, N);
		n = ring.fetch - reset_at;
		for (int i = 0; i < N; i++) {
			if (!armed[i])
				continue;
			/* Written since it was re-armed: then it was pushed before that, and is in this harvest. */
			checked++;
			if (value[i] != armed_value[i] && !seen[i])
				lost++;
			if (seen[i])
				armed[i] = false;
		}
		r = reset(t.vm);
		CHECK(r >= 0 && r <= (long)n);
		shorts += r < (long)n;
		for (long i = 0; i < r; i++, reset_at++) {
			struct kvm_dirty_gfn *g = &ring.gfns[reset_at % SIZE];
			uint64_t page = g->offset - DATA_PAGE;

			wrong_flags += !!(g->flags & KVM_DIRTY_GFN_F_RESET);
			if (page < N) {
				armed[page] = true;
				armed_value[page] = *(volatile uint64_t *)(t.mem + g->offset * 4096ul);
			}
		}
		CHECK_EQ(wrong_flags, 0);
	}
	interval(0);
	atomic_store(&stop, 1);
	while (pthread_kill(thread, SIGUSR1) == 0 && pthread_tryjoin_np(thread, NULL))
		usleep(1000);
	printf("dr6%s: %u rounds, %u short, %u pages checked\n", strict ? " strict" : "", rounds, shorts, checked);
	CHECK(rounds > 10 && checked > N);
	CHECK_EQ(lost, 0);
	CHECK_EQ(atomic_load(&vcpu_errors), 0);
	if (strict)
		CHECK(shorts > 0);
	else
		CHECK_EQ(shorts, 0);		/* QEMU relies on it */
	ring_done(&t, &ring);
}

/* ---- a hostile client -------------------------------------------------------------------------- */

enum { BIG = 65536 };

struct hostile {
	struct kvmtest t;
	struct ring ring;
	pid_t filler;
};

/* Entries that come back as harvested for ever, from another process. */
static struct hostile hostile_start(bool same_page)
{
	pid_t parent = getpid();
	struct hostile h;
	uint64_t npages;

	h.t = ring_vm(16 * MB, BIG, &h.ring, walker, sizeof(walker));
	npages = h.t.mem_size / 4096;
	fflush(stdout);
	h.filler = fork();
	NEED(h.filler >= 0);
	if (!h.filler) {
		for (uint64_t i = 0; i < BIG; i++)
			h.ring.gfns[i].offset = same_page ? 5 : i * 64 % npages;
		while (getppid() == parent)
			for (int i = 0; i < BIG; i++)
				__atomic_store_n(&h.ring.gfns[i].flags, KVM_DIRTY_GFN_F_RESET, __ATOMIC_RELEASE);
		_exit(0);
	}
	return h;
}

static void hostile_end(struct hostile *h)
{
	kill(h->filler, SIGKILL);
	waitpid(h->filler, NULL, 0);
}

/* slow: each entry takes 200 ns more, so that the child is always ahead. */
static void dr1_dr2_dr4(bool same_page, bool slow)
{
	struct kvmtest other = kvmtest_vm(4 * MB, 0);
	struct hostile h = hostile_start(same_page);
	unsigned returns = 0;
	double longest = 0, end = now() + 2;	/* longest of the thread's own time: the machine may be busy */
	long r, most = 0;

	signal(SIGALRM, nothing);
	signal(SIGUSR1, nothing);
	interval(0.05);
	for (; now() < end || (returns < 40 && now() < end + 58) || (slow && most <= BIG && now() < end + 8); returns++) {
		double begin = thread_time();

		r = reset(h.t.vm);
		CHECK(r >= 0 && r <= INT_MAX);
		most = r > most ? r : most;
		longest = thread_time() - begin > longest ? thread_time() - begin : longest;
	}
	interval(0);
	printf("%s%s: %u calls, longest %.3f s, at most %ld entries\n", same_page ? "dr2" : "dr1",
	       slow ? " slow" : "", returns, longest, most);
	CHECK(returns >= 40);
	CHECK(longest < 1);
	if (slow && most <= BIG) {
		printf("skip: the child had no time, no call went beyond a lap\n");
		kvmtest_skipped++;
	}
	hostile_end(&h);
	for (r = 1; r > 0;)
		r = reset(h.t.vm);
	CHECK_EQ(r, 0);
	start(&h.t, 0, 10);
	r = run(&h.t);
	CHECK(r == KVM_EXIT_HLT || r == KVM_EXIT_DIRTY_RING_FULL);
	ring_done(&h.t, &h.ring);
	/* And nobody else minds. */
	kvmtest_add_vcpu(&other, 0);
	kvmtest_long_mode(&other, CODE, walker, sizeof(walker));
	write_pages(&other, 0, 10);
	CHECK_EQ(*(uint64_t *)(other.mem + DATA + 9 * 4096), 1);
	kvmtest_done(&other);
}

/* inc %rax; mov %rax,(DATA); out %al,$0x10; jmp: the other VM's progress, an exit to userspace each */
static const uint8_t counter[] = { 0x48, 0xff, 0xc0, 0x48, 0x89, 0x04, 0x25, 0, 0, 0x20, 0, 0xe6, 0x10, 0xeb, 0xf1 };

static void dr3_other_vm(void)
{
	struct kvmtest other = kvmtest_vm(4 * MB, 0);
	struct hostile h;
	volatile uint64_t *progress = (uint64_t *)(other.mem + DATA);
	unsigned long_calls = 0, moved = 0;
	uint64_t last = 0;
	pthread_t thread;

	kvmtest_add_vcpu(&other, 0);
	kvmtest_long_mode(&other, CODE, counter, sizeof(counter));
	h = hostile_start(false);
	signal(SIGALRM, nothing);
	signal(SIGUSR1, nothing);
	atomic_store(&stop, 0);
	NEED(!pthread_create(&thread, NULL, run_forever, &other));
	interval(0.05);
	for (int tenth = 0; tenth < 10; tenth++) {
		double end = now() + 0.2;

		/* Ten seconds more: on a busy machine the thread may have to wait for its turn. */
		do {
			uint64_t before = *progress;
			double begin = now();

			reset(h.t.vm);
			if (now() - begin > 0.01) {
				long_calls++;
				moved += *progress - before > 100;
			}
		} while (now() < end || (*progress == last && now() < end + 10));
		CHECK(*progress > last);
		last = *progress;
	}
	interval(0);
	printf("dr3: %u of %u calls saw the other VM move\n", moved, long_calls);
	if (long_calls >= 10)
		CHECK(moved * 4 >= long_calls);	/* no lock that the other one needs is held meanwhile */
	else
		kvmtest_skipped++;
	atomic_store(&stop, 1);
	while (pthread_kill(thread, SIGUSR1) == 0 && pthread_tryjoin_np(thread, NULL))
		usleep(1000);
	hostile_end(&h);
	ring_done(&h.t, &h.ring);
	kvmtest_done(&other);
}

/* A fatal signal ends a process that is inside the call. */
static void dr14_fatal(int sig)
{
	struct ring ring;
	struct kvmtest t = ring_vm(4 * MB, 256, &ring, walker, sizeof(walker));
	int fds[2], status;
	char c;
	pid_t pid, ended;
	double begin;

	NEED(pipe(fds) == 0);
	fflush(stdout);
	pid = fork();
	if (!pid) {
		struct hostile h = hostile_start(true);

		if (write(fds[1], "x", 1) != 1)
			_exit(1);
		for (;;)
			reset(h.t.vm);
	}
	NEED(read(fds[0], &c, 1) == 1);
	usleep(200000);
	begin = now();
	kill(pid, sig);
	while ((ended = waitpid(pid, &status, WNOHANG)) == 0 && now() - begin < 10)
		usleep(1000);
	CHECK_EQ(ended, pid);
	if (!ended) {
		kill(pid, SIGKILL);
		NEED(waitpid(pid, &status, 0) == pid);
	}
	CHECK(WIFSIGNALED(status) && WTERMSIG(status) == sig);
	CHECK(now() - begin < 1);
	/* Nobody else has to wait for a lock of the dead one. */
	write_pages(&t, 0, 8);
	CHECK_EQ(harvest(&ring, NULL, 0), 8);
	CHECK_EQ(reset(t.vm), 8);
	ring_done(&t, &ring);
	close(fds[0]);
	close(fds[1]);
}

/* This program again, with something injected. */
static void again(const char *inject, const char *what)
{
	pid_t pid;
	int status;

	fflush(stdout);
	pid = fork();
	if (!pid) {
		setenv("SOFTKVM_INJECT", inject, 1);
		execl("/proc/self/exe", "dirty_ring", what, NULL);
		_exit(127);
	}
	NEED(pid > 0 && waitpid(pid, &status, 0) == pid);
	CHECK_EQ(status, 0);
}

int main(int argc, char **argv)
{
	setvbuf(stdout, NULL, _IOLBF, 0);
	if (argc > 1) {
		if (!strcmp(argv[1], "limit")) {
			dr5_limit();
		} else if (!strcmp(argv[1], "slow")) {
			dr1_dr2_dr4(false, true);
			dr1_dr2_dr4(true, true);
			dr3_other_vm();
		} else {
			dr6_rearm(true);
		}
		return kvmtest_summary();
	}
	dr10_enable();
	dr11_dr12_mappings();
	test_log();
	dr13_soft_full();
	dr13_in_block();
	dr8_property();
	dr9_bad_entries();
	again("dirty_reset_limit=1000", "limit");
	dr7_two_callers();
	dr6_rearm(false);
	again("dirty_reset_strict", "strict");
	dr1_dr2_dr4(false, false);
	dr1_dr2_dr4(true, false);
	again("dirty_reset_slow=200", "slow");
	dr14_fatal(SIGKILL);
	dr14_fatal(SIGINT);
	return kvmtest_summary();
}

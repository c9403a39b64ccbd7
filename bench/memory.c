/* SPDX-License-Identifier: MIT */
/*
 * What memory costs: dirty logging, demand paging, memslots. An ordinary KVM client: under softkvm, with either
 * engine, or on a real /dev/kvm. Prints "NAME VALUE UNIT" lines; bench/memory.sh makes the table.
 *
 * Every figure is the best of several short rounds, in this thread's CPU time: what the machine's other work adds is
 * not ours. Where two threads take part (demand paging, "busy": a vCPU runs meanwhile) it is time on the clock.
 */
#include <fcntl.h>
#include <linux/userfaultfd.h>
#include <pthread.h>
#include <stdatomic.h>
#include <sys/syscall.h>
#include <time.h>

#include "api/kvmtest.h"

#define MB (1ul << 20)
#define CODE 0x8000ul
#define DATA (16 * MB)
#define PAGES 2048u		/* written in one pass of the guest */
#define RING_ENTRIES 16384u
#define RING_OFFSET (64 * 4096)
#define ROUNDS 15
#define STRIDE 4160u		/* another line of each page: they would all fall into one set of the cache */
#define MOST_SLOTS 32763u	/* beside slot 0 */
#define MOST_MEMORY (64 * MB + (MOST_SLOTS + 2) * 8192ul)

static clockid_t timing = CLOCK_THREAD_CPUTIME_ID;

static double now(void)
{
	struct timespec t;

	clock_gettime(timing, &t);
	return t.tv_sec + t.tv_nsec / 1e9;
}

static double best(double a, double b)
{
	return a == 0 || b < a ? b : a;
}

static void ns_each(const char *name, double seconds, double things, const char *of)
{
	printf("%s %.1f ns/%s\n", name, seconds * 1e9 / things, of);
}

/* ---- the guest ---------------------------------------------------------------------------------- */

/*
 * 0: mov %rdi,%rsi; mov %rcx,%rbp; 1: incq (%rsi); add %rdx,%rsi; dec %rbp; jnz 1b; dec %r8; jnz 0b; hlt
 */
static const uint8_t sparse[] = { 0x48, 0x89, 0xfe, 0x48, 0x89, 0xcd, 0x48, 0xff, 0x06, 0x48, 0x01, 0xd6,
				  0x48, 0xff, 0xcd, 0x75, 0xf5, 0x49, 0xff, 0xc8, 0x75, 0xea, 0xf4 };

/*
 * 0: mov %rdi,%rsi; mov %rcx,%rbp; 1: mov $512,%ebx; 2: incq (%rsi); add $8,%rsi; dec %ebx; jnz 2b;
 * dec %rbp; jnz 1b; dec %r8; jnz 0b; hlt
 */
static const uint8_t dense[] = { 0x48, 0x89, 0xfe, 0x48, 0x89, 0xcd, 0xbb, 0x00, 0x02, 0, 0,
				 0x48, 0xff, 0x06, 0x48, 0x83, 0xc6, 0x08, 0xff, 0xcb, 0x75, 0xf5,
				 0x48, 0xff, 0xcd, 0x75, 0xeb, 0x49, 0xff, 0xc8, 0x75, 0xe0, 0xf4 };

static int set_slot(struct kvmtest *t, unsigned slot, unsigned flags, uint64_t gpa, uint64_t size, const void *at)
{
	struct kvm_userspace_memory_region r = { .slot = slot, .flags = flags, .guest_phys_addr = gpa,
						 .memory_size = size, .userspace_addr = (uintptr_t)at };

	return ioctl(t->vm, KVM_SET_USER_MEMORY_REGION, &r);
}

/* All guests have the same memory, so that no difference between two is one of where it lies. */
static uint8_t *memory;

static struct kvmtest guest(size_t mem, uint32_t ring_entries, const void *code, size_t len)
{
	struct kvm_enable_cap cap = { .cap = KVM_CAP_DIRTY_LOG_RING, .args = { ring_entries * 16ul } };
	struct kvmtest t = kvmtest_vm(4096, 0);

	NEED(mem <= MOST_MEMORY);
	NEED(set_slot(&t, 0, 0, 0, 0, t.mem) == 0);
	munmap(t.mem, t.mem_size);
	t.mem = memory;
	t.mem_size = mem;
	memset(t.mem, 0, mem);
	if (ring_entries)
		NEED(ioctl(t.vm, KVM_ENABLE_CAP, &cap) == 0);
	NEED(set_slot(&t, 0, 0, 0, mem, t.mem) == 0);
	kvmtest_add_vcpu(&t, 0);
	kvmtest_long_mode(&t, CODE, code, len);
	return t;
}

static void guest_done(struct kvmtest *t)
{
	t->mem_size = 0;	/* the memory stays */
	kvmtest_done(t);
}

/* So often through count places that lie stride apart: seconds. */
static double laps(struct kvmtest *t, uint64_t from, uint64_t stride, uint64_t count, uint64_t times)
{
	struct kvm_regs regs = { .rip = CODE, .rsp = 0x10000, .rflags = 2,
				 .rdi = from, .rdx = stride, .rcx = count, .r8 = times };
	double start;

	NEED(ioctl(t->vcpu, KVM_SET_REGS, &regs) == 0);
	start = now();
	NEED(ioctl(t->vcpu, KVM_RUN, 0) == 0);
	NEED(t->run->exit_reason == KVM_EXIT_HLT);
	return now() - start;
}

static double pass(struct kvmtest *t, uint64_t from, uint64_t stride, uint64_t count)
{
	return laps(t, from, stride, count, 1);
}

/* ---- dirty logging -------------------------------------------------------------------------------- */

struct code {
	const char *name;
	const void *bytes;
	size_t len;
	unsigned stride, laps;	/* laps between two harvests */
};

static void bench_off(const struct code *c)
{
	struct kvmtest t = guest(64 * MB, 0, c->bytes, c->len);
	double run = 0;
	char name[64];

	for (int i = 0; i < ROUNDS; i++)
		run = best(run, laps(&t, DATA, c->stride, PAGES, c->laps));
	snprintf(name, sizeof(name), "%s_off", c->name);
	ns_each(name, run, PAGES * c->laps, "page");
	guest_done(&t);
}

static void bench_bitmap(const struct code *c)
{
	struct kvmtest t = guest(64 * MB, 0, c->bytes, c->len);
	static uint64_t bitmap[64 * MB / 4096 / 64];
	struct kvm_dirty_log log = { .dirty_bitmap = bitmap };
	double kept = 0, run = 0, harvest = 0, start;
	unsigned dirty = 0;
	char name[64];

	NEED(set_slot(&t, 0, KVM_MEM_LOG_DIRTY_PAGES, 0, t.mem_size, t.mem) == 0);
	for (int i = 0; i < ROUNDS; i++)
		kept = best(kept, laps(&t, DATA, c->stride, PAGES, c->laps));
	for (int i = 0; i < ROUNDS; i++) {
		NEED(ioctl(t.vm, KVM_GET_DIRTY_LOG, &log) == 0);
		run = best(run, laps(&t, DATA, c->stride, PAGES, c->laps));
		start = now();
		NEED(ioctl(t.vm, KVM_GET_DIRTY_LOG, &log) == 0);
		harvest = best(harvest, now() - start);
		dirty = 0;
		for (unsigned w = DATA / 4096 / 64; w < (DATA / 4096 + 2 * PAGES) / 64; w++)
			dirty += __builtin_popcountl(bitmap[w]);
		NEED(dirty == PAGES);
	}
	snprintf(name, sizeof(name), "%s_bitmap_left", c->name);
	ns_each(name, kept, PAGES * c->laps, "page");
	snprintf(name, sizeof(name), "%s_bitmap", c->name);
	ns_each(name, run, PAGES * c->laps, "page");
	if (c->bytes == sparse)
		ns_each("harvest_bitmap", harvest, PAGES, "page");
	guest_done(&t);
}

static unsigned collect(struct kvm_dirty_gfn *gfns, uint32_t *fetch)
{
	unsigned n = 0;

	for (;; n++, ++*fetch) {
		struct kvm_dirty_gfn *g = &gfns[*fetch % RING_ENTRIES];

		if (__atomic_load_n(&g->flags, __ATOMIC_ACQUIRE) != KVM_DIRTY_GFN_F_DIRTY)
			return n;
		__atomic_store_n(&g->flags, KVM_DIRTY_GFN_F_RESET, __ATOMIC_RELEASE);
	}
}

static void bench_ring(const struct code *c)
{
	struct kvmtest t = guest(64 * MB, RING_ENTRIES, c->bytes, c->len);
	struct kvm_dirty_gfn *gfns = mmap(NULL, RING_ENTRIES * sizeof(*gfns), PROT_READ | PROT_WRITE, MAP_SHARED,
					  t.vcpu, RING_OFFSET);
	double run = 0, harvest = 0, start;
	uint32_t fetch = 0;
	char name[64];

	NEED(gfns != MAP_FAILED);
	NEED(set_slot(&t, 0, KVM_MEM_LOG_DIRTY_PAGES, 0, t.mem_size, t.mem) == 0);
	for (int i = 0; i < ROUNDS; i++) {
		unsigned n;

		run = best(run, laps(&t, DATA, c->stride, PAGES, c->laps));
		start = now();
		n = collect(gfns, &fetch);
		NEED(ioctl(t.vm, KVM_RESET_DIRTY_RINGS, 0) == (int)n);
		NEED(n >= PAGES);
		harvest = best(harvest, (now() - start) / n * PAGES);
	}
	snprintf(name, sizeof(name), "%s_ring", c->name);
	ns_each(name, run, PAGES * c->laps, "page");
	if (c->bytes == sparse)
		ns_each("harvest_ring", harvest, PAGES, "page");
	munmap(gfns, RING_ENTRIES * sizeof(*gfns));
	guest_done(&t);
}

/* ---- demand paging ----------------------------------------------------------------------------------- */

struct server {
	int uffd;
	unsigned served;
};

static void *serve(void *arg)
{
	static uint8_t page[4096] __attribute__((aligned(4096)));
	struct server *s = arg;
	struct uffd_msg msg;

	/* The last page asked for ends it. */
	for (s->served = 0; s->served < PAGES; s->served++) {
		struct uffdio_copy copy = { .src = (uintptr_t)page, .len = 4096 };

		if (read(s->uffd, &msg, sizeof(msg)) != sizeof(msg))
			return NULL;
		copy.dst = msg.arg.pagefault.address & ~4095ull;
		if (ioctl(s->uffd, UFFDIO_COPY, &copy))
			return NULL;
	}
	return NULL;
}

static void bench_demand(void)
{
	struct kvmtest t = guest(64 * MB, 0, sparse, sizeof(sparse));
	struct server s = { .uffd = syscall(SYS_userfaultfd, O_CLOEXEC) };
	struct uffdio_api api = { .api = UFFD_API };
	double run = 0;

	if (s.uffd < 0 || ioctl(s.uffd, UFFDIO_API, &api)) {
		printf("# demand paging: no userfaultfd here (%s)\n", strerror(errno));
		guest_done(&t);
		return;
	}
	for (int i = 0; i < 5; i++) {
		struct uffdio_register reg = { .range = { (uintptr_t)t.mem + DATA, PAGES * 4096ul },
					       .mode = UFFDIO_REGISTER_MODE_MISSING };
		pthread_t thread;

		NEED(madvise(t.mem + DATA, PAGES * 4096ul, MADV_DONTNEED) == 0);
		NEED(ioctl(s.uffd, UFFDIO_REGISTER, &reg) == 0);
		NEED(!pthread_create(&thread, NULL, serve, &s));
		run = best(run, pass(&t, DATA, 4096, PAGES));
		pthread_join(thread, NULL);
		NEED(s.served == PAGES);
		NEED(ioctl(s.uffd, UFFDIO_UNREGISTER, &reg.range) == 0);
	}
	ns_each("demand_paging", run, PAGES, "page");
	close(s.uffd);
	guest_done(&t);
}

/* ---- memslots -------------------------------------------------------------------------------------------- */

static struct kvmtest *busy_vm;

static void *busy(void *arg)
{
	while (!atomic_load((_Atomic int *)arg))
		pass(busy_vm, DATA, 0, 1 << 20);
	return NULL;
}

struct slots {
	struct kvmtest t;
	uint8_t *mem;
	unsigned nr;
};

/* Slot i (from 1) is one page at 64 MiB + i * 8 KiB, so that it can move to the page behind it. */
static uint64_t slot_gpa(unsigned i)
{
	return 64 * MB + i * 8192ul;
}

static int slot(struct slots *s, unsigned i, unsigned flags, uint64_t up, uint64_t size)
{
	return set_slot(&s->t, i, flags, slot_gpa(i) + up, size, s->mem + i * 4096ul);
}

/* Two of the operations of one kind, there and back, on slots spread over all of them: seconds each. */
static double toggle(struct slots *s, unsigned kind)
{
	enum { NR = 100 };
	double all = 0, start;

	for (int round = 0; round < 5; round++) {
		start = now();
		for (unsigned n = 0; n < NR; n++) {
			unsigned i = 1 + n * 7919u % s->nr;

			switch (kind) {
			case 0:
				NEED(slot(s, i, 0, 0, 0) == 0);
				NEED(slot(s, i, 0, 0, 4096) == 0);
				break;
			case 1:
				NEED(slot(s, i, 0, 4096, 4096) == 0);
				NEED(slot(s, i, 0, 0, 4096) == 0);
				break;
			default:
				NEED(slot(s, i, KVM_MEM_LOG_DIRTY_PAGES, 0, 4096) == 0);
				NEED(slot(s, i, 0, 0, 4096) == 0);
			}
		}
		all = best(all, (now() - start) / NR / 2);
	}
	return all;
}

static void bench_toggles(struct slots *s, const char *suffix)
{
	static const char *const kinds[] = { "delete_create", "move", "flags" };
	char name[64];

	for (unsigned k = 0; k < 3; k++) {
		snprintf(name, sizeof(name), "slot_%s%s", kinds[k], suffix);
		ns_each(name, toggle(s, k), 1, "op");
	}
}

static void bench_slots(unsigned nr, const char *suffix)
{
	struct slots s = { .t = guest(32 * MB, 0, sparse, sizeof(sparse)), .nr = nr };
	_Atomic int stop = 0;
	double start, run = 0;
	pthread_t thread;
	char name[64];

	s.mem = mmap(NULL, (nr + 1) * 4096ul, PROT_READ | PROT_WRITE, MAP_PRIVATE | MAP_ANONYMOUS, -1, 0);
	NEED(s.mem != MAP_FAILED);
	memset(s.mem, 0, (nr + 1) * 4096ul);
	start = now();
	for (unsigned i = 1; i <= nr; i++)
		NEED(slot(&s, i, 0, 0, 4096) == 0);
	snprintf(name, sizeof(name), "slot_create%s", suffix);
	ns_each(name, now() - start, nr, "op");
	for (int i = 0; i < 5; i++)
		run = best(run, pass(&s.t, slot_gpa(1), 8192, nr));
	snprintf(name, sizeof(name), "slot_lookup%s", suffix);
	ns_each(name, run, nr, "page");
	bench_toggles(&s, suffix);
	if (nr == MOST_SLOTS) {
		busy_vm = &s.t;
		NEED(!pthread_create(&thread, NULL, busy, &stop));
		timing = CLOCK_MONOTONIC;
		bench_toggles(&s, "_busy");
		timing = CLOCK_THREAD_CPUTIME_ID;
		atomic_store(&stop, 1);
		pthread_join(thread, NULL);
	}
	start = now();
	for (unsigned i = 1; i <= nr; i++)
		NEED(slot(&s, i, 0, 0, 0) == 0);
	snprintf(name, sizeof(name), "slot_delete%s", suffix);
	ns_each(name, now() - start, nr, "op");
	munmap(s.mem, (nr + 1) * 4096ul);
	guest_done(&s.t);
}

/* As many pages, the same way apart, in one slot. */
static void bench_one_slot(void)
{
	struct kvmtest t = guest(MOST_MEMORY, 0, sparse, sizeof(sparse));
	double run = 0;

	for (int i = 0; i < 5; i++)
		run = best(run, pass(&t, slot_gpa(1), 8192, MOST_SLOTS));
	ns_each("slot_lookup_one", run, MOST_SLOTS, "page");
	guest_done(&t);
}

int main(void)
{
	static const struct code codes[] = {
		{ "sparse", sparse, sizeof(sparse), STRIDE, 16 },
		{ "dense", dense, sizeof(dense), 0, 1 },
	};

	setvbuf(stdout, NULL, _IOLBF, 0);
	memory = mmap(NULL, MOST_MEMORY, PROT_READ | PROT_WRITE, MAP_PRIVATE | MAP_ANONYMOUS | MAP_NORESERVE, -1, 0);
	NEED(memory != MAP_FAILED);
	for (unsigned i = 0; i < 2; i++) {
		bench_off(&codes[i]);
		bench_bitmap(&codes[i]);
		bench_ring(&codes[i]);
	}
	timing = CLOCK_MONOTONIC;
	bench_demand();
	timing = CLOCK_THREAD_CPUTIME_ID;
	bench_one_slot();
	bench_slots(100, "_100");
	bench_slots(MOST_SLOTS, "");
	return 0;
}

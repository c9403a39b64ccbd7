/* SPDX-License-Identifier: MIT */
/*
 * Many of a kind: every vCPU a VM may have, in one VM, and every one of them run; vCPUs that meet paging for the
 * first time together (HP3, HP7). 512 VMs in one process: tests/api/lean.c (HP4).
 *
 * HP6 has nothing to inject here: paging allocates no table (HP3), and that other allocations fail one by one
 * is tests/fuzz/oom.c's.
 *
 * Seen to fail with a limit of 1000 vCPUs in vcpu.c (test_all), with a vm_sync_vcpus() that waits for the first 64
 * only (test_all: a store after the slot has gone), with mmu_page_hash_bytes set in mmu_create() (HP3, HP7), and with
 * mmu_destroy() not freeing the TLBs (HP7: VmData grows).
 */
#include <pthread.h>
#include <stdatomic.h>
#include <stdbool.h>
#include <sys/resource.h>

#include "api/kvmtest.h"

#ifndef KVM_GET_STATS_FD
#error "needs the binary statistics of Linux 5.14"
#endif

#define MOST_VCPUS 1024
#define NR_THREADS 4
#define CODE 0x7000
#define COUNTER 0x2000
#define MARKS 0x3000		/* a u32 for each vCPU */
#define WINDOW 0x100000ul	/* a slot that goes while vCPUs write to it; 1 MiB is not reachable in real mode otherwise */

struct many {
	struct kvmtest t;
	int nr;
	int *fds;
	struct kvm_run **runs;
};

static struct many create(int nr, int irqchip)
{
	struct many m = { .t = kvmtest_vm(1 << 20, irqchip), .nr = nr };

	m.fds = calloc(nr, sizeof(*m.fds));
	m.runs = calloc(nr, sizeof(*m.runs));
	NEED(m.fds && m.runs);
	for (int i = 0; i < nr; i++) {
		kvmtest_add_vcpu(&m.t, i);
		m.fds[i] = m.t.vcpu;
		m.runs[i] = m.t.run;
	}
	m.t.vcpu = -1;
	return m;
}

static void destroy(struct many *m)
{
	for (int i = 0; i < m->nr; i++) {
		munmap(m->runs[i], m->t.run_size);
		close(m->fds[i]);
	}
	free(m->fds);
	free(m->runs);
	kvmtest_done(&m->t);
}

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

/* ---- every vCPU there may be ------------------------------------------------------------------ */

/* lock incl COUNTER; mov %eax,(%ebx); out %al,$0x10; 1: incl (%ecx); jmp 1b */
static const uint8_t program[] = { 0xf0, 0x66, 0xff, 0x06, COUNTER & 0xff, COUNTER >> 8, 0x67, 0x66, 0x89, 0x03,
				   0xe6, 0x10, 0x67, 0x66, 0xff, 0x01, 0xeb, 0xfa };

static void prepare(struct many *m, int i)
{
	struct kvm_mp_state runnable = { KVM_MP_STATE_RUNNABLE };
	struct kvm_regs regs = { .rip = CODE, .rflags = 2, .rax = i + 1, .rbx = MARKS + 4 * i, .rcx = 0 };
	struct kvm_sregs sregs;

	NEED(ioctl(m->fds[i], KVM_SET_MP_STATE, &runnable) == 0);
	NEED(ioctl(m->fds[i], KVM_GET_SREGS, &sregs) == 0);
	sregs.cs.base = 0;
	sregs.cs.selector = 0;
	sregs.ds.base = 0;
	NEED(ioctl(m->fds[i], KVM_SET_SREGS, &sregs) == 0);
	NEED(ioctl(m->fds[i], KVM_SET_REGS, &regs) == 0);
}

static struct many *shared;
static _Atomic int next_vcpu, wrong_exits;

static void *run_each(void *arg)
{
	int i;

	while ((i = atomic_fetch_add(&next_vcpu, 1)) < shared->nr)
		if (ioctl(shared->fds[i], KVM_RUN, 0) || shared->runs[i]->exit_reason != KVM_EXIT_IO)
			atomic_fetch_add(&wrong_exits, 1);
	return NULL;
}

/* The last vCPU writes for ever to a slot, until that has gone. */
static void *run_last(void *arg)
{
	int r = ioctl(shared->fds[shared->nr - 1], KVM_RUN, 0);

	return (void *)(long)(r ? -errno : (int)shared->runs[shared->nr - 1]->exit_reason);
}

static void slot_goes(struct many *m)
{
	struct kvm_userspace_memory_region r = { .slot = 1, .guest_phys_addr = WINDOW, .memory_size = 4096 };
	volatile uint32_t *page = mmap(NULL, 4096, PROT_READ | PROT_WRITE, MAP_PRIVATE | MAP_ANONYMOUS, -1, 0);
	int last = m->fds[m->nr - 1];
	struct kvm_sregs sregs;
	pthread_t thread;
	uint32_t count;
	void *reason;

	NEED(page != MAP_FAILED);
	r.userspace_addr = (uintptr_t)page;
	CHECK_EQ(ioctl(m->t.vm, KVM_SET_USER_MEMORY_REGION, &r), 0);
	NEED(ioctl(last, KVM_GET_SREGS, &sregs) == 0);
	sregs.ds.base = WINDOW;
	NEED(ioctl(last, KVM_SET_SREGS, &sregs) == 0);
	NEED(!pthread_create(&thread, NULL, run_last, NULL));
	while (!page[0])
		sched_yield();
	r.memory_size = 0;
	CHECK_EQ(ioctl(m->t.vm, KVM_SET_USER_MEMORY_REGION, &r), 0);
	count = page[0];
	NEED(!pthread_join(thread, &reason));
	CHECK_EQ((long)reason, KVM_EXIT_MMIO);
	CHECK_EQ(page[0], count);
	munmap((void *)page, 4096);
}

static void test_all(void)
{
	int kvm = open_kvm_or_skip(O_RDWR | O_CLOEXEC), max = ioctl(kvm, KVM_CHECK_EXTENSION, KVM_CAP_MAX_VCPUS);
	int nr = max > MOST_VCPUS ? MOST_VCPUS : max, unmarked = 0;
	pthread_t threads[NR_THREADS];
	struct rlimit limit;
	struct many m;
	long data;

	close(kvm);
	NEED(max > 0);
	NEED(getrlimit(RLIMIT_NOFILE, &limit) == 0);
	limit.rlim_cur = limit.rlim_max;
	setrlimit(RLIMIT_NOFILE, &limit);
	if (limit.rlim_cur < (rlim_t)nr + 64) {
		printf("skip: no more than %lu descriptors\n", (unsigned long)limit.rlim_cur);
		kvmtest_skipped++;
		return;
	}
	data = status("VmData");
	m = create(nr, 1);
	printf("%d vCPUs: %ld KiB of data and shared memory each before they run", nr,
	       (status("VmData") - data + status("RssShmem")) / nr);
	if (nr == max)
		CHECK_ERRNO(ioctl(m.t.vm, KVM_CREATE_VCPU, nr), EINVAL);
	memcpy(m.t.mem + CODE, program, sizeof(program));
	for (int i = 0; i < nr; i++)
		prepare(&m, i);
	shared = &m;
	for (int i = 0; i < NR_THREADS; i++)
		NEED(!pthread_create(&threads[i], NULL, run_each, NULL));
	for (int i = 0; i < NR_THREADS; i++)
		pthread_join(threads[i], NULL);
	printf(", %ld KiB after\n", (status("VmData") - data + status("RssShmem")) / nr);
	for (int i = 0; i < nr; i++)
		unmarked += ((uint32_t *)(m.t.mem + MARKS))[i] != (uint32_t)i + 1;
	CHECK_EQ(atomic_load(&wrong_exits), 0);
	CHECK_EQ(unmarked, 0);
	CHECK_EQ(*(uint32_t *)(m.t.mem + COUNTER), nr);
	slot_goes(&m);
	destroy(&m);
}

/* ---- HP3, HP7 ---------------------------------------------------------------------------------- */

/* mov %rax,(%rdi); hlt */
static const uint8_t paged[] = { 0x48, 0x89, 0x07, 0xf4 };

static void prepare_paged(struct many *m, int i)
{
	struct kvm_regs regs;

	m->t.vcpu = m->fds[i];
	kvmtest_long_mode(&m->t, 0x8000, paged, sizeof(paged));
	NEED(ioctl(m->fds[i], KVM_GET_REGS, &regs) == 0);
	regs.rax = i + 1;
	regs.rdi = 0x20000 + 8 * i;
	NEED(ioctl(m->fds[i], KVM_SET_REGS, &regs) == 0);
	m->t.vcpu = -1;
}

static pthread_barrier_t barrier;
static _Atomic bool over;
static _Atomic int wrong_runs;

/* The n-th thread runs the n-th vCPU of each round's VM. */
static void *runner(void *arg)
{
	int n = (int)(long)arg;

	for (;;) {
		pthread_barrier_wait(&barrier);
		if (over)
			return NULL;
		if (ioctl(shared->fds[n], KVM_RUN, 0) || shared->runs[n]->exit_reason != KVM_EXIT_HLT)
			atomic_fetch_add(&wrong_runs, 1);
		pthread_barrier_wait(&barrier);
	}
}

static void test_hp3_hp7(void)
{
	enum { NR = 8, WARM = 20 };
	const char *wish = getenv("ROUNDS");
	int rounds = wish ? atoi(wish) : 200;
	pthread_t threads[NR];
	long data = 0;

	pthread_barrier_init(&barrier, NULL, NR + 1);
	for (long i = 0; i < NR; i++)
		NEED(!pthread_create(&threads[i], NULL, runner, (void *)i));
	for (int round = 0; round < rounds; round++) {
		struct many m = create(NR, 0);
		long long bytes;
		int wrong = 0;

		for (int i = 0; i < NR; i++)
			prepare_paged(&m, i);
		shared = &m;
		pthread_barrier_wait(&barrier);
		pthread_barrier_wait(&barrier);
		for (int i = 0; i < NR; i++)
			wrong += ((uint64_t *)(m.t.mem + 0x20000))[i] != (uint64_t)i + 1;
		bytes = kvmtest_stat(m.t.vm, "mmu_page_hash_bytes");
		CHECK_EQ(wrong, 0);
		CHECK(bytes == 0 || bytes == -1);		/* HP3: tdp_mmu is Y */
		destroy(&m);
		if (round == WARM)
			data = status("VmData");
	}
	/* Allocators keep a few arenas; 8 vCPUs' worth a round would be megabytes. */
	if (rounds > WARM)
		CHECK(status("VmData") - data < 8 * 1024);
	over = true;
	pthread_barrier_wait(&barrier);
	for (int i = 0; i < NR; i++)
		pthread_join(threads[i], NULL);
	CHECK_EQ(atomic_load(&wrong_runs), 0);
}

int main(void)
{
	setvbuf(stdout, NULL, _IOLBF, 0);
	test_hp3_hp7();
	test_all();
	return kvmtest_summary();
}

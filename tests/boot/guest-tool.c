/* SPDX-License-Identifier: MIT */
/*
 * A small static helper inside the test guest:
 *	guest-tool cmos get|set		a CMOS byte that survives a reset (tells generations apart)
 *	guest-tool mips			millions of guest instructions per second, by kind of code
 *	guest-tool smp N		N CPUs that must agree on time, memory and wake-ups
 */
#include <pthread.h>
#include <sched.h>
#include <stdatomic.h>
#include <stdint.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/io.h>
#include <sys/mman.h>
#include <sys/syscall.h>
#include <time.h>
#include <unistd.h>

#define CMOS_BYTE 0x70
#define CMOS_MAGIC 0x5a

static int cmos(const char *what)
{
	if (ioperm(0x70, 2, 1)) {
		perror("ioperm");
		return 2;
	}
	outb(CMOS_BYTE, 0x70);
	if (!strcmp(what, "set")) {
		outb(CMOS_MAGIC, 0x71);
		return 0;
	}
	return inb(0x71) == CMOS_MAGIC ? 0 : 1;
}

static double now(void)
{
	struct timespec ts;

	clock_gettime(CLOCK_MONOTONIC, &ts);
	return ts.tv_sec + ts.tv_nsec / 1e9;
}

static uint64_t table[4096];

/* Each runs n rounds of a loop whose length in instructions is known, and returns it. */
static unsigned alu(uint64_t n)
{
	asm volatile("1: add $3, %%rax; xor %%rax, %%rcx; lea 5(%%rcx,%%rax,2), %%rdx; shr $3, %%rdx;"
		     "   sub %%rdx, %%rax; and $0xffff, %%ecx; dec %0; jnz 1b"
		     : "+r"(n) : : "rax", "rcx", "rdx", "cc");
	return 8;
}

static unsigned memory(uint64_t n)
{
	asm volatile("1: mov %0, %%rax; and $4095, %%eax; mov (%1,%%rax,8), %%rcx; add $1, %%rcx;"
		     "   mov %%rcx, (%1,%%rax,8); movzbl 3(%1,%%rax,8), %%edx; cmp %%edx, %%ecx;"
		     "   js 2f; dec %0; jnz 1b; 2:"
		     : "+r"(n) : "r"(table) : "rax", "rcx", "rdx", "cc", "memory");
	return 10;
}

static unsigned calls(uint64_t n)
{
	asm volatile("jmp 1f; 3: push %%rbx; mov %%rax, %%rbx; test %%rbx, %%rbx; pop %%rbx; ret;"
		     "1: call 3b; inc %%eax; dec %0; jnz 1b"
		     : "+r"(n) : : "rax", "rbx", "cc", "memory");
	return 9;
}

static unsigned vector(uint64_t n)
{
	asm volatile("1: movdqu (%1), %%xmm0; paddd %%xmm0, %%xmm1; pshufb %%xmm1, %%xmm0;"
		     "   mulpd %%xmm0, %%xmm2; movdqu %%xmm0, 64(%1); dec %0; jnz 1b"
		     : "+r"(n) : "r"(table) : "xmm0", "xmm1", "xmm2", "cc", "memory");
	return 7;
}

static int mips(void)
{
	static const struct {
		const char *name;
		unsigned (*fn)(uint64_t n);
	} kinds[] = { { "alu", alu }, { "memory", memory }, { "calls", calls }, { "vector", vector } };
	double total = 0, instructions = 0;

	for (unsigned i = 0; i < sizeof(kinds) / sizeof(kinds[0]); i++) {
		uint64_t n = 100000;
		double t = 0;
		unsigned length = 0;

		while (t < 0.3) { /* long enough to time */
			double start = now();

			n *= 2;
			length = kinds[i].fn(n);
			t = now() - start;
		}
		total += t;
		instructions += (double)n * length;
		printf("mips %s %.1f\n", kinds[i].name, n * length / t / 1e6);
	}
	printf("mips all %.1f\n", instructions / total / 1e6);
	return 0;
}

/*
 * smp: one thread a CPU, in step by a barrier. Each part fails if a CPU works with a stale
 * translation, reads a clock that ran ahead elsewhere, or misses an interprocessor interrupt
 * (which ends in a hang: whoever started the machine has a time limit).
 */
#define MAX_CPUS 64
#define SMP_ROUNDS 200

static unsigned nr_cpus;
static pthread_barrier_t barrier;
static _Atomic unsigned smp_errors;
static volatile uint64_t *shared_page;
static uint64_t last_time;

static void smp_error(const char *what, unsigned cpu, uint64_t got, uint64_t want)
{
	atomic_fetch_add(&smp_errors, 1);
	printf("smp error: %s, cpu %u: 0x%lx, not 0x%lx\n", what, cpu, got, want);
}

static int pin(unsigned cpu)
{
	cpu_set_t set;

	CPU_ZERO(&set);
	CPU_SET(cpu, &set);
	return sched_setaffinity(0, sizeof(set), &set);
}

static uint64_t now_ns(void)
{
	struct timespec ts;

	clock_gettime(CLOCK_MONOTONIC, &ts);
	return ts.tv_sec * 1000000000ull + ts.tv_nsec;
}

/* CPUs take turns: none may read an earlier time than the one before it. */
static void smp_clock(unsigned cpu)
{
	for (unsigned turn = 0; turn < SMP_ROUNDS; turn++) {
		if (turn % nr_cpus == cpu) {
			uint64_t t = now_ns();

			if (t < last_time)
				smp_error("time went back", cpu, t, last_time);
			last_time = t;
		}
		pthread_barrier_wait(&barrier);
	}
}

/* One CPU drops or replaces the page the others have just read: what they read next must be new. */
static void smp_shootdown(unsigned cpu)
{
	for (uint64_t round = 1; round <= SMP_ROUNDS; round++) {
		int owner = round % nr_cpus == cpu;

		if (owner && madvise((void *)shared_page, 4096, MADV_DONTNEED))
			smp_error("madvise", cpu, 0, 0);
		pthread_barrier_wait(&barrier);
		if (*shared_page)
			smp_error("dropped page still seen", cpu, *shared_page, 0);
		pthread_barrier_wait(&barrier);
		if (owner)
			*shared_page = round;
		pthread_barrier_wait(&barrier);
		if (*shared_page != round)
			smp_error("stale page", cpu, *shared_page, round);
		pthread_barrier_wait(&barrier);
	}
}

/* MEMBARRIER_CMD_PRIVATE_EXPEDITED: an interprocessor interrupt to every CPU that runs a thread of ours. */
static void smp_membarrier(unsigned cpu)
{
	if (cpu == 0 && syscall(SYS_membarrier, 16, 0, 0))
		smp_error("membarrier registration", cpu, 0, 0);
	pthread_barrier_wait(&barrier);
	for (unsigned i = 0; i < SMP_ROUNDS; i++)
		if (syscall(SYS_membarrier, 8, 0, 0))
			smp_error("membarrier", cpu, i, 0);
}

/* Visit every CPU with known register contents. */
static void smp_migrate(unsigned cpu)
{
	for (unsigned i = 0; i < SMP_ROUNDS / 4; i++) {
		uint64_t want = i * 0x0101010101010101ull + cpu, got;
		unsigned target = (cpu + i) % nr_cpus, here;

		asm volatile("movq %0, %%xmm7" : : "r"(want) : "xmm7");
		if (pin(target) || (here = sched_getcpu()) != target)
			smp_error("migration", cpu, sched_getcpu(), target);
		asm volatile("movq %%xmm7, %0" : "=r"(got));
		if (got != want)
			smp_error("xmm7 lost", cpu, got, want);
	}
	pin(cpu);
}

static void smp_sleep(unsigned cpu)
{
	for (unsigned i = 0; i < 10; i++) {
		uint64_t start = now_ns(), slept;

		usleep(2000);
		slept = now_ns() - start;
		if (slept < 2000000 || slept > 5000000000ull)
			smp_error("slept ns", cpu, slept, 2000000);
	}
}

static void *smp_thread(void *arg)
{
	unsigned cpu = (uintptr_t)arg;
	static void (*const parts[])(unsigned cpu) = { smp_clock, smp_shootdown, smp_membarrier, smp_migrate,
						       smp_sleep };

	if (pin(cpu))
		smp_error("no such cpu", cpu, 0, 0);
	for (unsigned i = 0; i < sizeof(parts) / sizeof(parts[0]); i++) {
		pthread_barrier_wait(&barrier);
		parts[i](cpu);
	}
	return NULL;
}

static int smp(unsigned want)
{
	pthread_t threads[MAX_CPUS];
	uint64_t start = now_ns();

	nr_cpus = sysconf(_SC_NPROCESSORS_ONLN);
	if (nr_cpus != want || nr_cpus > MAX_CPUS) {
		printf("smp error: %u CPUs, not %u\n", nr_cpus, want);
		return 1;
	}
	shared_page = mmap(NULL, 4096, PROT_READ | PROT_WRITE, MAP_PRIVATE | MAP_ANONYMOUS, -1, 0);
	pthread_barrier_init(&barrier, NULL, nr_cpus);
	for (uintptr_t i = 0; i < nr_cpus; i++)
		if (pthread_create(&threads[i], NULL, smp_thread, (void *)i)) {
			printf("smp error: no thread\n");
			return 1;
		}
	for (unsigned i = 0; i < nr_cpus; i++)
		pthread_join(threads[i], NULL);
	if (!smp_errors)
		printf("smp ok: %u CPUs, %lu ms\n", nr_cpus, (now_ns() - start) / 1000000);
	return !!smp_errors;
}

int main(int argc, char **argv)
{
	if (argc == 3 && !strcmp(argv[1], "cmos"))
		return cmos(argv[2]);
	if (argc == 2 && !strcmp(argv[1], "mips"))
		return mips();
	if (argc == 3 && !strcmp(argv[1], "smp"))
		return smp(atoi(argv[2]));
	fprintf(stderr, "usage: guest-tool cmos get|set | mips | smp N\n");
	return 2;
}

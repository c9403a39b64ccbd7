/* SPDX-License-Identifier: MIT */
/*
 * What the fuzzers share: numbers from a seed, and batches. A batch runs in a child
 * process; if it dies or hangs, its seed and the case it was at are printed, and
 * `FUZZ_SEED=n program` runs that batch alone. FUZZ_SECONDS bounds the whole run.
 */
#ifndef TESTS_FUZZ_FUZZ_H
#define TESTS_FUZZ_FUZZ_H

#include <errno.h>
#include <fcntl.h>
#include <pthread.h>
#include <signal.h>
#include <stdatomic.h>
#include <stdbool.h>
#include <stdint.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/mman.h>
#include <sys/syscall.h>
#include <sys/wait.h>
#include <time.h>
#include <unistd.h>

#include "kvm/kvm_abi.h"
#include "softkvm.h"

#define COUNT(a) (sizeof(a) / sizeof((a)[0]))

/* Faults in guest memory are the library's business; sizes from a hostile client may be absurd. */
__attribute__((used, visibility("default"))) const char *__asan_default_options(void)
{
	return "allow_user_segv_handler=1:handle_segv=1:handle_sigbus=0:handle_sigfpe=0:"
	       "allocator_may_return_null=1:max_allocation_size_mb=4096:detect_leaks=0:abort_on_error=0";
}

__attribute__((used, visibility("default"))) const char *__ubsan_default_options(void)
{
	return "halt_on_error=1:print_stacktrace=1";
}

static uint64_t fuzz_state;

static inline uint64_t rnd(void)
{
	uint64_t z = fuzz_state += 0x9e3779b97f4a7c15ull;

	z = (z ^ z >> 30) * 0xbf58476d1ce4e5b9ull;
	z = (z ^ z >> 27) * 0x94d049bb133111ebull;
	return z ^ z >> 31;
}

static inline uint64_t rnd_below(uint64_t n)
{
	return rnd() % n;
}

static inline bool one_in(unsigned n)
{
	return rnd_below(n) == 0;
}

/* Small, large, single bits, all ones, near a page: where mistakes live. */
static inline uint64_t rnd_edge(void)
{
	switch (rnd_below(10)) {
	case 0: return 0;
	case 1: return rnd_below(256);
	case 2: return 1ull << rnd_below(64);
	case 3: return (1ull << rnd_below(64)) - 1;
	case 4: return -rnd_below(4096);
	case 5: return rnd_below(1 << 21);
	case 6: return (rnd_below(512) << 12) - rnd_below(17);
	case 7: return 0x7ffffffff000ull + rnd_below(0x2000);
	case 8: return (uint32_t)rnd();
	default: return rnd();
	}
}

static inline void rnd_fill(void *p, size_t len)
{
	for (size_t i = 0; i < len; i++)
		((uint8_t *)p)[i] = rnd();
}

static inline double fuzz_now(void)
{
	struct timespec ts;

	clock_gettime(CLOCK_MONOTONIC, &ts);
	return ts.tv_sec + ts.tv_nsec * 1e-9;
}

struct fuzz_shared {
	_Atomic uint64_t cases, runs, unhandled, failures;
	char where[256];
};
static struct fuzz_shared *shared;

#define FUZZ_CHECK(cond, ...)                                                   \
	do {                                                                    \
		if (!(cond)) {                                                  \
			printf("%s:%d: FAIL: %s: ", __FILE__, __LINE__, #cond); \
			printf(__VA_ARGS__);                                    \
			printf(" (errno %d; %s)\n", errno, shared->where);      \
			fflush(stdout);                                         \
			shared->failures++;                                     \
		}                                                               \
	} while (0)

static inline int fuzz_batch(uint64_t seed, void (*batch)(uint64_t), unsigned limit_s)
{
	double end = fuzz_now() + limit_s;
	int status = 0;
	pid_t pid;

	fflush(stdout);
	pid = fork();
	if (!pid) {
		fuzz_state = seed;
		batch(seed);
		fflush(stdout);
		_exit(0);
	}
	while (waitpid(pid, &status, WNOHANG) == 0) {
		if (fuzz_now() > end) {
			printf("FAIL: FUZZ_SEED=%llu hangs: %s\n", (unsigned long long)seed, shared->where);
			if (getenv("FUZZ_KEEP"))
				pause();
			kill(pid, SIGKILL);
			waitpid(pid, &status, 0);
			return 1;
		}
		usleep(10000);
	}
	if (WIFEXITED(status) && WEXITSTATUS(status) == 0)
		return 0;
	printf("FAIL: FUZZ_SEED=%llu dies, %s %d: %s\n", (unsigned long long)seed,
	       WIFEXITED(status) ? "status" : "signal",
	       WIFEXITED(status) ? WEXITSTATUS(status) : WTERMSIG(status), shared->where);
	return 1;
}

/* Batches until the time is over. What the last line says is what tests/run.sh counts. */
static inline int fuzz_main(void (*batch)(uint64_t seed), unsigned limit_s)
{
	const char *seconds = getenv("FUZZ_SECONDS"), *fixed = getenv("FUZZ_SEED"), *first = getenv("FUZZ_FIRST");
	double end = fuzz_now() + (seconds ? atof(seconds) : 60);
	/* The same seeds every time unless asked otherwise: a report can be repeated. */
	uint64_t seed = first ? strtoull(first, NULL, 0) : 1;
	unsigned batches = 0, failed = 0;

	shared = mmap(NULL, sizeof(*shared), PROT_READ | PROT_WRITE, MAP_SHARED | MAP_ANONYMOUS, -1, 0);
	if (shared == MAP_FAILED)
		return 1;
	if (fixed) {
		fuzz_state = strtoull(fixed, NULL, 0);
		if (getenv("FUZZ_NOFORK"))
			batch(fuzz_state);
		else
			failed = fuzz_batch(fuzz_state, batch, limit_s);
	}
	while (!fixed && fuzz_now() < end && failed < 20) {
		failed += fuzz_batch(seed++, batch, limit_s);
		batches++;
	}
	failed += shared->failures;
	printf("%llu cases in %u batches, %llu runs, %llu instructions nobody knows\n",
	       (unsigned long long)shared->cases, batches, (unsigned long long)shared->runs,
	       (unsigned long long)shared->unhandled);
	printf("%u passed, %u failed, 0 skipped\n", batches, failed);
	return failed != 0;
}

#endif

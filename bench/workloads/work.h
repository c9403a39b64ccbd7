/* SPDX-License-Identifier: MIT */
/* What the workloads of bench/workloads.def that are ours share; main.c has the protocol. */
#ifndef BENCH_WORK_H
#define BENCH_WORK_H

#include <stddef.h>
#include <stdint.h>

struct work {
	const char *name;
	uint64_t (*run)(long n); /* returns a checksum that does not depend on where it runs */
};

/* Around what counts; what is before and after is preparation. ops: how often the thing was done. */
void work_begin(void);
void work_end(long ops);

_Noreturn void work_fail(const char *what);
void *work_alloc(size_t size);
void *work_read(const char *path, size_t *size); /* ends in a zero byte */

/* A generator whose numbers are the same everywhere. */
static inline uint64_t rnd(uint64_t *state)
{
	uint64_t x = *state;

	x ^= x << 13;
	x ^= x >> 7;
	x ^= x << 17;
	return *state = x;
}

static inline uint64_t mix(uint64_t sum, uint64_t x)
{
	sum = (sum ^ x) * 0x9e3779b97f4a7c15ull;
	return sum ^ sum >> 29;
}

static inline uint64_t mix_bytes(uint64_t sum, const void *p, size_t n)
{
	const unsigned char *b = p;

	while (n--)
		sum = (sum ^ *b++) * 0x100000001b3ull;
	return sum;
}

#endif

/* SPDX-License-Identifier: MIT */
/* Memory: chains of dependent loads through ever larger sets, and copies small and large. */
#include <string.h>

#include "work.h"

/* One cycle through all cache lines of the set, in an order no prefetcher guesses. */
static uint64_t chase(size_t size, long n)
{
	size_t lines = size / 64;
	uint64_t *set = work_alloc(size), state = 13, at = 0, sum = 0;
	uint32_t *order = work_alloc(lines * sizeof(*order));

	for (size_t i = 0; i < lines; i++)
		order[i] = i;
	for (size_t i = lines - 1; i; i--) {
		size_t j = rnd(&state) % i;
		uint32_t t = order[i];

		order[i] = order[j];
		order[j] = t;
	}
	for (size_t i = 0; i < lines; i++)
		set[order[i] * 8] = order[(i + 1) % lines] * 8ul;
	for (size_t i = 0; i < lines; i++)
		at = set[at];
	work_begin();
	for (long i = 0; i < n; i++)
		at = set[at];
	work_end(n);
	for (size_t i = 0; i < 100; i++)
		sum = mix(sum, at = set[at]);
	return sum;
}

uint64_t work_chase_24K(long n) { return chase(24ul << 10, n); }
uint64_t work_chase_512K(long n) { return chase(512ul << 10, n); }
uint64_t work_chase_8M(long n) { return chase(8ul << 20, n); }
uint64_t work_chase_64M(long n) { return chase(64ul << 20, n); }

uint64_t work_memcpy_large(long n)
{
	size_t size = 4ul << 20;
	char *a = work_alloc(size), *b = work_alloc(size);

	memset(b, 1, size);
	work_begin();
	for (long i = 0; i < n; i++) {
		memset(a, i, size);
		memcpy(b, a, size);
	}
	work_end(n);
	return b[0] + b[size - 1];
}

uint64_t work_memcpy_small(long n)
{
	static char a[16384], b[16384];
	uint64_t state = 17;
	volatile size_t one = 1;

	work_begin();
	for (long i = 0; i < n; i++) {
		uint64_t x = rnd(&state);
		size_t len = (x & 63) * one, from = x >> 8 & 8191, to = x >> 30 & 8191;

		a[from] = x;
		memcpy(b + to, a + from, len);
		memmove(a + to, a + to + 3, len);
		memset(b + from, x, len * one / 2);
	}
	work_end(n);
	return mix_bytes(mix_bytes(0, a, sizeof(a)), b, sizeof(b));
}

/* Atomic operations, which a translator must not take apart. */
uint64_t work_atomics(long n)
{
	static uint64_t x, y;
	uint64_t want = 0;

	work_begin();
	for (long i = 0; i < n; i++) {
		__atomic_fetch_add(&x, i, __ATOMIC_SEQ_CST);
		__atomic_compare_exchange_n(&y, &want, want + 3, 0, __ATOMIC_SEQ_CST, __ATOMIC_SEQ_CST);
		__atomic_fetch_or(&x, 1, __ATOMIC_SEQ_CST);
	}
	work_end(n);
	return x + y;
}

/* SPDX-License-Identifier: MIT */
/* Sorting, trees, tables, recursion, allocation: integer code with many branches. */
#include <stdlib.h>
#include <string.h>

#include "work.h"

static uint32_t *numbers(long n)
{
	uint32_t *a = work_alloc(n * sizeof(*a));
	uint64_t state = 7;

	for (long i = 0; i < n; i++)
		a[i] = rnd(&state) >> 17;
	return a;
}

static void quick(uint32_t *a, long n)
{
	while (n > 1) {
		uint32_t pivot = a[n / 2], t;
		long i = 0, j = n - 1;

		for (;; i++, j--) {
			while (a[i] < pivot)
				i++;
			while (a[j] > pivot)
				j--;
			if (i >= j)
				break;
			t = a[i];
			a[i] = a[j];
			a[j] = t;
		}
		quick(a, i);
		a += i;
		n -= i;
		if (!i)
			break;
	}
}

uint64_t work_quicksort(long n)
{
	uint32_t *a = numbers(n);

	work_begin();
	quick(a, n);
	work_end(n);
	for (long i = 1; i < n; i++)
		if (a[i - 1] > a[i])
			return 0;
	return mix_bytes(1, a, n * sizeof(*a));
}

static int compare(const void *a, const void *b)
{
	uint32_t x = *(const uint32_t *)a, y = *(const uint32_t *)b;

	return (x > y) - (x < y);
}

uint64_t work_libc_qsort(long n)
{
	uint32_t *a = numbers(n);

	work_begin();
	qsort(a, n, sizeof(*a), compare);
	work_end(n);
	return mix_bytes(1, a, n * sizeof(*a));
}

uint64_t work_hashtable(long n)
{
	size_t size = 1;
	uint64_t *key, state = 3, sum = 0;

	while (size < (size_t)n * 2)
		size *= 2;
	key = work_alloc(size * 16);
	work_begin();
	for (long i = 0; i < 3 * n; i++) {
		uint64_t k = rnd(&state) % n + 1, at = k * 0x9e3779b97f4a7c15ull >> 20;

		while (key[2 * (at &= size - 1)] && key[2 * at] != k)
			at++;
		key[2 * at] = k;
		sum += ++key[2 * at + 1];
	}
	work_end(n);
	return sum;
}

struct node {
	struct node *child[2];
	uint64_t key, count;
};

uint64_t work_tree(long n)
{
	struct node *root = NULL;
	uint64_t state = 5, sum = 0;

	work_begin();
	for (long i = 0; i < n; i++) {
		uint64_t key = rnd(&state) % (n / 2 + 1);
		struct node **link = &root;
		unsigned depth = 0;

		while (*link && (*link)->key != key) {
			link = &(*link)->child[key > (*link)->key];
			depth++;
		}
		if (!*link) {
			*link = work_alloc(sizeof(**link));
			(*link)->key = key;
		}
		(*link)->count++;
		sum = mix(sum, depth + (*link)->count);
	}
	work_end(n);
	return sum;
}

static long queens(unsigned all, unsigned columns, unsigned left, unsigned right)
{
	unsigned possible = all & ~(columns | left | right);
	long count = columns == all;

	while (possible) {
		unsigned bit = possible & -possible;

		possible ^= bit;
		count += queens(all, columns | bit, (left | bit) << 1, (right | bit) >> 1);
	}
	return count;
}

uint64_t work_queens(long n)
{
	uint64_t sum;

	work_begin();
	sum = queens((1u << n) - 1, 0, 0, 0);
	work_end(n);
	return sum;
}

uint64_t work_malloc(long n)
{
	static void *kept[4096];
	uint64_t state = 9, sum = 0;

	work_begin();
	for (long i = 0; i < n; i++) {
		uint64_t x = rnd(&state);
		size_t size = 8 + (x >> 12) % (x & 15 ? 200 : 5000);
		void **p = &kept[x >> 40 & 4095];

		if (*p)
			sum = mix(sum, *(uint64_t *)*p);
		free(*p);
		*p = malloc(size);
		memset(*p, x, 8);
	}
	work_end(n);
	return sum;
}

/* Calls through pointers, as a program of objects makes them. */
struct object {
	uint64_t (*step)(struct object *o, uint64_t x);
	uint64_t state;
};

static uint64_t step_add(struct object *o, uint64_t x) { return o->state += x; }
static uint64_t step_xor(struct object *o, uint64_t x) { return o->state ^= x >> 3; }
static uint64_t step_mul(struct object *o, uint64_t x) { return o->state = o->state * 3 + x; }
static uint64_t step_sub(struct object *o, uint64_t x) { return o->state -= x & 0xff; }

uint64_t work_calls(long n)
{
	static uint64_t (*const steps[])(struct object *o, uint64_t x) = { step_add, step_xor, step_mul, step_sub };
	static struct object objects[1000];
	uint64_t state = 11, x = 1;

	for (unsigned i = 0; i < 1000; i++)
		objects[i] = (struct object){ steps[rnd(&state) & 3], i };
	work_begin();
	for (long i = 0; i < n; i++)
		for (unsigned k = 0; k < 1000; k++)
			x = objects[k].step(&objects[k], x);
	work_end(n);
	return x;
}

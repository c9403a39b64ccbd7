/* SPDX-License-Identifier: MIT */
/* Compiled in the guest and natively: the objects must be the same, and what they print. */
#include <math.h>
#include <stdint.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

struct node {
	uint32_t key, count;
	struct node *child[2];
};

static struct node *insert(struct node *root, uint32_t key)
{
	struct node **at = &root;

	while (*at && (*at)->key != key)
		at = &(*at)->child[key > (*at)->key];
	if (!*at) {
		*at = calloc(1, sizeof(**at));
		if (!*at)
			abort();
		(*at)->key = key;
	}
	(*at)->count++;
	return root;
}

static void walk(const struct node *n, unsigned depth, unsigned *deepest, uint64_t *sum)
{
	if (!n)
		return;
	if (depth > *deepest)
		*deepest = depth;
	walk(n->child[0], depth + 1, deepest, sum);
	*sum = *sum * 31 + n->key * (uint64_t)n->count;
	walk(n->child[1], depth + 1, deepest, sum);
}

/* Words of 4 bytes counted in a tree. */
static void trees(const uint8_t *data, size_t size)
{
	struct node *root = NULL;
	unsigned deepest = 0;
	uint64_t sum = 0;

	for (size_t i = 0; i + 4 <= size; i += 64) {
		uint32_t key;

		memcpy(&key, data + i, 4);
		root = insert(root, key * 2654435761u);
	}
	walk(root, 1, &deepest, &sum);
	printf("tree %u %016llx ", deepest, (unsigned long long)sum);
}

static void numbers(void)
{
	double a = 0;
	long double b = 0;
	float c = 1;

	for (int i = 1; i < 20000; i++) {
		a += sin(i) / sqrt(i) + fmod(i, 0.7);
		b += expl(-i / 1000.0L) * logl(i);
		c = c * 1.0001f + (float)(i % 7) / 3;
	}
	printf("numbers %.17g %.20Lg %.9g %a ", a, b, c, a);
}

static int compare(const void *a, const void *b)
{
	return memcmp(a, b, 16);
}

int main(int argc, char **argv)
{
	FILE *f = argc > 1 ? fopen(argv[1], "rb") : NULL;
	static uint8_t data[4 << 20];
	size_t size = f ? fread(data, 1, sizeof(data), f) : 0;
	uint32_t crc = ~0u;

	trees(data, size);
	numbers();
	qsort(data, size / 16, 16, compare);
	for (size_t i = 0; i < size; i++) {
		crc ^= data[i];
		for (int bit = 0; bit < 8; bit++)
			crc = crc >> 1 ^ (crc & 1 ? 0xedb88320u : 0);
	}
	printf("sorted %08x\n", ~crc);
	return size == 0;
}

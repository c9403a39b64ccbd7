/* SPDX-License-Identifier: MIT */
/* For tests that make up programs: numbers that a seed decides, and a place to put bytes. */
#ifndef TESTS_API_GENERATE_H
#define TESTS_API_GENERATE_H

#include <stdarg.h>
#include <stdint.h>
#include <string.h>

static uint64_t seed;				/* not 0 */
static uint8_t *out __attribute__((unused));	/* where the next byte goes */

/* Less than n. */
static inline unsigned rnd(unsigned n)
{
	seed ^= seed << 13;
	seed ^= seed >> 7;
	seed ^= seed << 17;
	return (seed >> 16) % n;
}

/* n bytes */
static inline void put(unsigned n, ...)
{
	va_list ap;

	va_start(ap, n);
	while (n--)
		*out++ = va_arg(ap, int);
	va_end(ap);
}

static inline void put32(uint32_t v)
{
	memcpy(out, &v, 4);
	out += 4;
}

#endif

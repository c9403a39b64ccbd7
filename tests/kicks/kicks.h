/* SPDX-License-Identifier: MIT */
/*
 * Included before everything else in the objects that make most accesses to guest memory (gcc -include): any of
 * these may come to what a kick makes of it, as kicks_abort() says.
 */
#ifndef TESTS_KICKS_KICKS_H
#define TESTS_KICKS_KICKS_H

#include "host/access.h"
#include "host/host.h"

/* Is this access aborted? If so it is taken note of. */
bool kicks_abort(void);

/* Half of it is done. */
static inline size_t kicks_half_copy(void *dst, const void *src, size_t len)
{
	return len - len / 2 + host_copy(dst, src, len / 2);
}

static inline size_t kicks_half_set(void *dst, int byte, size_t len)
{
	return len - len / 2 + host_set(dst, byte, len / 2);
}

#define host_load(p, size, val) (!kicks_abort() && host_load(p, size, val))
#define host_load8(p, val) (!kicks_abort() && host_load8(p, val))
#define host_load64(p, val) (!kicks_abort() && host_load64(p, val))
#define host_store(p, size, val) (!kicks_abort() && host_store(p, size, val))
#define host_copy(dst, src, len) (kicks_abort() ? kicks_half_copy(dst, src, len) : host_copy(dst, src, len))
#define host_set(dst, byte, len) (kicks_abort() ? kicks_half_set(dst, byte, len) : host_set(dst, byte, len))
#define host_compare(a, b, len) (kicks_abort() ? -1 : host_compare(a, b, len))
#define host_cmpxchg(p, size, expected, desired) (kicks_abort() ? -1 : host_cmpxchg(p, size, expected, desired))
#define host_atomic_or32(p, bits) (kicks_abort() ? -1 : host_atomic_or32(p, bits))

#endif

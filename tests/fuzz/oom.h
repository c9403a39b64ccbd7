/* SPDX-License-Identifier: MIT */
/*
 * Included before everything else in the objects of fuzz-oom (gcc -include): raw
 * system calls that allocate ask oom_syscall() first, and fail if it says so.
 */
#ifndef TESTS_FUZZ_OOM_H
#define TESTS_FUZZ_OOM_H

#include "host/syscall.h"

long oom_syscall(long nr);

static inline long oom_syscall6(long nr, long a, long b, long c, long d, long e, long f)
{
	long r = oom_syscall(nr);

	return r ? r : host_syscall6(nr, a, b, c, d, e, f);
}

#define host_syscall6 oom_syscall6

#endif

/* SPDX-License-Identifier: MIT */
/*
 * Raw system calls. The preload object replaces libc's ioctl, close, sigaction,
 * syscall and friends; this layer must never call back into those. Returns
 * -errno, leaves errno alone, async-signal-safe.
 */
#ifndef SOFTKVM_HOST_SYSCALL_H
#define SOFTKVM_HOST_SYSCALL_H

#include <sys/syscall.h>

static inline long host_syscall6(long nr, long a, long b, long c, long d, long e, long f)
{
	register long r10 asm("r10") = d;
	register long r8 asm("r8") = e;
	register long r9 asm("r9") = f;
	long ret;

	asm volatile("syscall"
		     : "=a"(ret)
		     : "0"(nr), "D"(a), "S"(b), "d"(c), "r"(r10), "r"(r8), "r"(r9)
		     : "rcx", "r11", "memory");
	return ret;
}

#define host_syscall(nr, a, b, c, d) \
	host_syscall6((nr), (long)(a), (long)(b), (long)(c), (long)(d), 0, 0)

#endif

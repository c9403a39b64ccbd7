/* SPDX-License-Identifier: MIT */
/*
 * Futexes that a signal reliably ends. FUTEX_WAIT is always given a deadline: the
 * kernel then answers EINTR after any handler, even one installed with
 * SA_RESTART. A handler that runs between the caller's last look at its words
 * and the syscall instruction moves the PC to the EINTR exit (fault_abort_access()),
 * so no wake-up by signal is lost.
 */
#include <linux/futex.h>
#include <time.h>

#include "host/host.h"
#include "host/syscall.h"
#include "host/signal_internal.h"

long host_futex_wait_raw(_Atomic u32 *word, long op, u32 expected, const struct timespec *ts,
			 void *unused, u32 bitset, const volatile bool *stop)
	__attribute__((visibility("hidden")));

asm(".pushsection .text\n"
    ".type host_futex_wait_raw, @function\n"
    ".hidden host_futex_wait_raw\n"
    ".hidden host_futex_begin\n"
    ".hidden host_futex_syscall\n"
    ".hidden host_futex_eintr\n"
    ".globl host_futex_wait_raw, host_futex_begin, host_futex_syscall, host_futex_eintr\n"
    "host_futex_wait_raw:\n"
    "	.cfi_startproc\n"
    "	mov	%rcx, %r10\n"
    "	mov	8(%rsp), %rax\n"
    "host_futex_begin:\n"
    "	cmpb	$0, (%rax)\n"
    "	jne	host_futex_eintr\n"
    "	mov	$202, %eax\n"	/* SYS_futex */
    "host_futex_syscall:\n"
    "	syscall\n"
    "	ret\n"
    "host_futex_eintr:\n"
    "	mov	$-4, %rax\n"
    "	ret\n"
    "	.cfi_endproc\n"
    ".size host_futex_wait_raw, . - host_futex_wait_raw\n"
    ".popsection\n");

_Static_assert(SYS_futex == 202, "the assembly above names it");

void host_futex_wait(_Atomic u32 *word, u32 expected, u64 deadline_ns)
{
	static const volatile bool never;
	const struct host_guest_ctx *ctx = host_guest_current;
	struct timespec ts = {
		.tv_sec = deadline_ns / 1000000000,
		.tv_nsec = deadline_ns % 1000000000,
	};

	host_futex_wait_raw(word, FUTEX_WAIT_BITSET, expected, &ts, NULL,
			    FUTEX_BITSET_MATCH_ANY, ctx ? &ctx->signal_seen : &never);
}

void host_futex_wake(_Atomic u32 *word)
{
	host_syscall(SYS_futex, word, FUTEX_WAKE, 0x7fffffff, 0);
}

/* SPDX-License-Identifier: MIT */
/* Between host/signal.c (who gets a signal) and host/fault.c (what a fault of ours becomes). */
#ifndef SOFTKVM_HOST_SIGNAL_INTERNAL_H
#define SOFTKVM_HOST_SIGNAL_INTERNAL_H

#include "host/host.h"

/* The kick, and the ticks of host/tick.c: who has it as its value is ours. */
#define KICK_SIGNAL SIGURG
extern char host_tick_cookie __attribute__((visibility("hidden")));

/* Sort the exception table; before the first fault can happen. */
void fault_init(void);
/* The CPU raised sig at uc's PC: true if that was ours, uc then says where to go on. */
bool fault_resolve(int sig, siginfo_t *info, ucontext_t *uc);
/* A kick interrupted uc: abort the guest access it may be in. True if there was one. */
bool fault_abort_access(siginfo_t *info, ucontext_t *uc);
/* A signal interrupted uc: a futex wait about to begin must not. */
void fault_abort_wait(ucontext_t *uc);

/* True in a process that shares our memory but not our signal dispositions (vfork child). host/thread.c */
bool host_mm_borrowed(void);

/* Labels inside the futex wait of host/futex.c: from the first test to the syscall instruction. */
extern const char host_futex_begin[] __attribute__((visibility("hidden")));
extern const char host_futex_syscall[] __attribute__((visibility("hidden")));
extern const char host_futex_eintr[] __attribute__((visibility("hidden")));

#endif

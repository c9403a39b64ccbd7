/* SPDX-License-Identifier: MIT */
/* Everything SoftKVM needs from the machine and the process it lives in. */
#ifndef SOFTKVM_HOST_HOST_H
#define SOFTKVM_HOST_HOST_H

#include <pthread.h>
#include <signal.h>
#include <sys/types.h>
#include <ucontext.h>

#include "base/types.h"

/* ---- fault broker and signals: host/fault.c, host/signal.c -------------------- */

/* Install the broker once per process (idempotent, any thread). */
void host_signals_init(void);

/*
 * Per-thread record of "this thread is inside KVM_RUN" (or another ioctl that touches
 * guest memory: kick = NULL). The signal trampoline consults it.
 */
struct host_guest_ctx {
	_Atomic u64 *requests;		/* word to set a bit in when a client signal arrives, or NULL */
	u64 signal_request;		/* that bit */
	u64 tick_request;		/* the one to set when a tick is due */
	_Atomic u32 *wake;		/* bumped too (if not NULL): a futex wait about to begin must not miss the signal */
	u64 saved_mask;			/* the caller's mask, restored by host_guest_leave() */
	u64 run_mask;			/* mask while running: KVM_SET_SIGNAL_MASK or saved_mask */
	bool signal_seen;		/* a client signal was requeued: KVM_RUN must return EINTR */
	/* generated code: where to go, and with which stack, when it faults (set by the thunk entry) */
	void *thunk_rsp;
	struct host_guest_ctx *outer;
	/* private to host/signal.c */
	bool own_mask;			/* run_mask is a KVM_SET_SIGNAL_MASK mask */
	bool leaving;			/* client handlers may run again */
	u32 deferred;			/* which of deferred_info are filled */
	siginfo_t deferred_info[5];	/* client's instances of signals that must stay open while running */
};
/* kernel_mask: NULL, or a KVM_SET_SIGNAL_MASK mask to run under. */
void host_guest_enter(struct host_guest_ctx *ctx, const u64 *kernel_mask);
/* Restores the mask; pending client handlers run before this returns. True if a client signal was seen. */
bool host_guest_leave(struct host_guest_ctx *ctx);
extern _Thread_local struct host_guest_ctx *host_guest_current __attribute__((tls_model("initial-exec")));
/* An access (host/access.h) failed because of a kick, not of the client's memory: set by the kick, cleared by whoever looks. */
extern _Thread_local volatile bool host_kicked __attribute__((tls_model("initial-exec")));
/*
 * host_copy() for ioctl arguments: true if all was copied. A kick that was meant for a
 * vCPU this thread has just left is no fault of the client's.
 */
size_t host_copy(void *dst, const void *src, size_t len);
static inline bool host_copy_user(void *dst, const void *src, size_t len)
{
	host_kicked = false;
	while (host_copy(dst, src, len)) {
		if (!host_kicked)
			return false;
		host_kicked = false;
	}
	return true;
}
/* True if an unblocked, non-ignored signal of the client is pending for this thread (used while sleeping). */
bool host_signal_pending(void);
/*
 * A signal for KVM_RUN's waits: makes a syscall in thread tid return EINTR and aborts a
 * guest access it sleeps in (extable/thunk PC -> fixup with "retry"). Never visible to the client.
 */
void host_kick_thread(pid_t tid);
/* The same for a thread known by its pthread_t (pthread_cancel wrapper). */
void host_kick_pthread(pthread_t thread);
/* As libc's, on behalf of the client: keeps the trampoline installed. For the shim. */
int host_sigaction(int sig, const struct sigaction *act, struct sigaction *old);
/* KVM_SET_SIGNAL_MASK: prepare for signals open in mask whose disposition would kill or ignore. */
void host_signal_prepare_mask(u64 mask);

/*
 * Faults in generated code: registered range [start, end). Called with the
 * context; returns true after editing it (pc, rsp, registers).
 */
typedef bool (*host_code_fault_fn)(int sig, siginfo_t *info, ucontext_t *uc);
/* fn NULL withdraws the range that starts at start. Any thread; look-ups run in signal handlers. */
/* False: no memory, the range is not registered. */
bool host_register_code_fault(const void *start, const void *end, host_code_fault_fn fn);

/* Address-space identity: a token that differs in a forked child, equal in threads and CLONE_VM children. */
u64 host_mm_id(void);

/* ---- mappings: host/maps.c ------------------------------------------------------------ */

struct host_range {
	u64 start, size;
	bool read_only;		/* need not be writable */
	u64 covered;		/* 0; host_is_private() counts here */
};
/* Are these, from end to end, readable and writable memory that only this process has? False also if that cannot be found out. */
bool host_is_private(struct host_range *ranges, unsigned nr);

/* ---- large memory: host/lazy.c ---------------------------------------------------- */

/* Zeroed; taken where it is touched. NULL: none. */
void *host_map_lazy(size_t size);
void host_unmap_lazy(void *p, size_t size);

/* ---- code memory: host/codemem.c ------------------------------------------------ */

/*
 * Write-xor-execute arena: one memfd mapped twice (fallback: one RWX mapping, SOFTKVM_WX=single). Bump allocation,
 * freed as a whole.
 */
struct codemem {
	u8 *rw;
	u8 *rx;
	size_t size, used;
};
int codemem_init(struct codemem *cm, size_t size);	/* 0 or -errno */
void codemem_free(struct codemem *cm);
static inline void *codemem_rx(struct codemem *cm, void *rw)
{
	return cm->rx + ((u8 *)rw - cm->rw);
}

/* ---- clocks: host/clock.c ---------------------------------------------------------- */

u64 host_now_ns(void);		/* CLOCK_MONOTONIC */
u64 host_boot_ns(void);		/* CLOCK_BOOTTIME */
u64 host_real_ns(void);		/* CLOCK_REALTIME */
static inline u64 host_rdtsc(void)
{
	u32 lo, hi;

	asm volatile("lfence; rdtsc" : "=a"(lo), "=d"(hi));
	return (u64)hi << 32 | lo;
}
u32 host_tsc_khz(void);		/* CPUID 15h/16h/40000010h or calibrated once against CLOCK_MONOTONIC_RAW */

/* ---- threads that are ours: host/thread.c ------------------------------------------- */

/* All signals blocked, timer slack 1 ns, small stack. 0 or -errno. */
int host_thread_create(pthread_t *thread, void *(*fn)(void *), void *arg);

/*
 * The client's threads are not cancelled between these two, where they may hold locks. Disabling alone is not enough: to a thread
 * whose cancellation is asynchronous glibc may have sent its signal before, and the handler asks for the type only.
 */
struct host_cancel {
	int state, type;
};
void host_cancel_hold(struct host_cancel *c);
/* A cancellation that came meanwhile acts now, if the client's is asynchronous; else at its next cancellation point. */
void host_cancel_release(const struct host_cancel *c);
/* May it act at once? */
static inline bool host_cancel_is_async(const struct host_cancel *c)
{
	return c->state == PTHREAD_CANCEL_ENABLE && c->type == PTHREAD_CANCEL_ASYNCHRONOUS;
}

/* ---- timers: host/timer.c ------------------------------------------------------------- */

struct vm_timers;
struct vm_timer {
	u64 deadline_ns;	/* CLOCK_MONOTONIC */
	void (*fn)(struct vm_timer *t);	/* runs on the timer thread, no locks held; may re-arm */
	struct vm_timers *owner;
	u32 heap_index;		/* 0: not armed */
};
struct vm_timers *vm_timers_create(void);	/* no thread until the first arm */
void vm_timers_destroy(struct vm_timers *timers);
void vm_timer_init(struct vm_timer *t, struct vm_timers *owner, void (*fn)(struct vm_timer *));
void vm_timer_arm(struct vm_timer *t, u64 deadline_ns);
/* On return the callback is not running and will not run. Not from the callback itself, nor holding a lock it takes. */
void vm_timer_cancel(struct vm_timer *t);

/* ---- timers of a thread: host/tick.c --------------------------------------------------- */

/* All zero before the first use. */
struct host_tick {
	int id;
	u64 thread, refused;	/* whose it is, 0: there is none; who cannot have one */
	u64 mm;
	bool armed;
};
/*
 * Set the tick_request of this thread's host_guest_ctx at deadline_ns (CLOCK_MONOTONIC), between host_guest_enter() and
 * host_guest_leave(). False: there is none to be had.
 */
bool host_tick_arm(struct host_tick *t, u64 deadline_ns);
/* Before host_guest_leave(). It may have set the request, or may not. */
void host_tick_disarm(struct host_tick *t);
void host_tick_destroy(struct host_tick *t);

/* ---- futex, fds: host/futex.h inline, host/fd.c ------------------------------------------ */

void host_futex_wait(_Atomic u32 *word, u32 expected, u64 deadline_ns); /* ~0: forever; returns on signal too */
void host_futex_wake(_Atomic u32 *word);
/* memfd of size bytes, sealed against resizing; -errno. cloexec as asked. */
int host_memfd(const char *name, size_t size, bool cloexec);

/* ---- CPUID of the host: host/cpuid.c -------------------------------------------------------- */

void host_cpuid(u32 leaf, u32 subleaf, u32 *eax, u32 *ebx, u32 *ecx, u32 *edx);
bool host_is_intel(void);
bool host_is_amd(void);		/* or Hygon */
u32 host_mxcsr_mask(void);	/* bits of MXCSR that may be set */
bool host_smt_possible(void);	/* two threads may share a core, now or later */
u64 host_xcr0(void);		/* 0: the kernel has not enabled XSAVE */
/* IA32_ARCH_CAPABILITIES "not affected" bits, as far as the kernel tells programs. */
u64 host_arch_capabilities(void);

#endif

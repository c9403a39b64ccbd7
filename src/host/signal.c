/* SPDX-License-Identifier: MIT */
/*
 * One trampoline stands in for every signal handler of the client.
 *
 * A client's handler must not run in the middle of the engine: it may
 * siglongjmp out, change our locks' owner or take forever, and KVM promises that it runs
 * after KVM_RUN has returned EINTR. So while a thread is between host_guest_enter() and
 * host_guest_leave() the trampoline only sets a request, blocks the signal in the
 * interrupted context and queues the same siginfo again to this thread; leave()
 * restores the caller's mask and the kernel then delivers it for good.
 *
 * 1. The trampoline runs with every signal blocked; the kernel's saved mask (uc_sigmask) is
 *    what the interrupted code had.
 * 2. Five signals stay open while in the guest, whatever the client's mask: the four faults,
 *    because a blocked fault kills the process, and the kick. The client's own instances of these
 *    are kept in the ctx and queued again on leaving.
 * 3. From `leaving` on, handlers may run as soon as the interrupted mask is the caller's
 *    again; before that the signal is blocked and queued once more.
 * 4. The table is read and written under a spin lock whose holder has every signal blocked, so
 *    that a handler never waits for the code it interrupted. A forked child starts with it open.
 * 5. Raw system calls only: libc's names lead back to us in the preload object.
 */
#include <errno.h>
#include <stdatomic.h>
#include <string.h>

#include "host/host.h"
#include "host/signal_internal.h"
#include "host/syscall.h"

#define NR_SIGNALS 64
#define SIG_BIT(sig) (1ull << ((sig) - 1))
#define KERNEL_SA_RESTORER 0x04000000ul
/* What of the client's flags the kernel must know; the rest is emulated. */
#define PASSED_FLAGS (SA_RESTART | SA_ONSTACK | SA_NOCLDSTOP | SA_NOCLDWAIT)
#define ALL_SIGNALS (~0ull)

#define FAULT_SIGNALS \
	(SIG_BIT(SIGSEGV) | SIG_BIT(SIGBUS) | SIG_BIT(SIGFPE) | SIG_BIT(SIGILL))
#define BROKER_SIGNALS (FAULT_SIGNALS | SIG_BIT(KICK_SIGNAL))
#define LIBC_SIGNALS (3ull << 31) /* 32, 33 */
#define UNCATCHABLE (SIG_BIT(SIGKILL) | SIG_BIT(SIGSTOP))
#define DEFAULT_IGNORED \
	(SIG_BIT(SIGCHLD) | SIG_BIT(SIGURG) | SIG_BIT(SIGWINCH) | SIG_BIT(SIGCONT))

static const int broker_signals[5] = { SIGSEGV, SIGBUS, SIGFPE, SIGILL, KICK_SIGNAL };

/* rt_sigaction(2)'s own layout. */
struct kernel_action {
	void *handler;
	unsigned long flags;
	void *restorer;
	u64 mask;
};

struct client_action {
	void *handler;
	unsigned long flags;
	u64 mask;
};

_Thread_local struct host_guest_ctx *host_guest_current;

static struct client_action actions[NR_SIGNALS + 1];
static u64 emulated_default;	/* SIG_DFL of the client's behind the trampoline */
static bool initialised;
static volatile bool actions_lock;
static char kick_cookie;	/* its address marks our kicks... */
char host_tick_cookie;		/* ...and this one's the ticks */

/* Unwinders know signal frames by the bytes of the return trampoline. */
void host_sigreturn(void) __attribute__((visibility("hidden")));
asm(".pushsection .text\n"
    "	nop\n"
    ".globl host_sigreturn\n"
    ".hidden host_sigreturn\n"
    ".type host_sigreturn, @function\n"
    "host_sigreturn:\n"
    "	mov $15, %rax\n"
    "	syscall\n"
    ".size host_sigreturn, . - host_sigreturn\n"
    ".popsection\n");

/* ---- small things ------------------------------------------------------------- */

static u64 mask_swap(u64 mask)
{
	u64 old = 0;

	host_syscall(SYS_rt_sigprocmask, SIG_SETMASK, &mask, &old, 8);
	return old;
}

static u64 mask_get(void)
{
	u64 old = 0;

	host_syscall(SYS_rt_sigprocmask, SIG_BLOCK, NULL, &old, 8);
	return old;
}

static u64 *context_mask(ucontext_t *uc)
{
	return (u64 *)&uc->uc_sigmask;
}

static u64 table_lock(void)
{
	u64 old = mask_swap(ALL_SIGNALS);

	while (__atomic_test_and_set(&actions_lock, __ATOMIC_ACQUIRE))
		host_syscall(SYS_sched_yield, 0, 0, 0, 0);
	return old;
}

static void table_unlock(u64 old)
{
	__atomic_clear(&actions_lock, __ATOMIC_RELEASE);
	mask_swap(old);
}

static void table_unlock_in_child(void)
{
	__atomic_clear(&actions_lock, __ATOMIC_RELEASE);
}

static void queue_again(int sig, const siginfo_t *info)
{
	long pid = host_syscall(SYS_getpid, 0, 0, 0, 0);
	long tid = host_syscall(SYS_gettid, 0, 0, 0, 0);

	if (host_syscall(SYS_rt_tgsigqueueinfo, pid, tid, sig, info))
		host_syscall(SYS_tgkill, pid, tid, sig, 0);
}

static bool is_kick(int sig, const siginfo_t *info)
{
	return sig == KICK_SIGNAL && info->si_code == SI_QUEUE &&
	       info->si_value.sival_ptr == &kick_cookie;
}

static bool is_tick(int sig, const siginfo_t *info)
{
	return sig == KICK_SIGNAL && info->si_code == SI_TIMER && info->si_value.sival_ptr == &host_tick_cookie;
}

/* Raised by the CPU at the interrupted instruction, as opposed to sent. */
static bool is_fault(int sig, const siginfo_t *info)
{
	return (FAULT_SIGNALS & SIG_BIT(sig)) && info->si_code > 0 &&
	       !(sig == SIGBUS && info->si_code == BUS_MCEERR_AO);
}

static bool is_ignored(int sig, void *handler)
{
	return handler == (void *)SIG_IGN ||
	       (handler == (void *)SIG_DFL && (DEFAULT_IGNORED & SIG_BIT(sig)));
}

/* ---- dispositions ----------------------------------------------------------------- */

static void trampoline(int sig, siginfo_t *info, void *context);

static long kernel_set(int sig, const struct kernel_action *act)
{
	return host_syscall(SYS_rt_sigaction, sig, act, NULL, 8);
}

static long install(int sig, const struct client_action *a)
{
	bool plain = a->handler == (void *)SIG_DFL || a->handler == (void *)SIG_IGN;
	struct kernel_action k = {
		.handler = a->handler,
		.flags = a->flags | KERNEL_SA_RESTORER,
		.restorer = (void *)host_sigreturn,
		.mask = a->mask,
	};

	if (!plain || (BROKER_SIGNALS & SIG_BIT(sig)) ||
	    (a->handler == (void *)SIG_DFL && (emulated_default & SIG_BIT(sig)))) {
		k.handler = (void *)trampoline;
		k.flags = (a->flags & PASSED_FLAGS) | SA_SIGINFO | KERNEL_SA_RESTORER;
		k.mask = ALL_SIGNALS;
		/* Nobody asked for this handler: disturb the client's system calls least. */
		if (plain)
			k.flags |= SA_RESTART | SA_ONSTACK;
	}
	return kernel_set(sig, &k);
}

static void adopt(int sig)
{
	struct kernel_action k = { 0 };

	if ((SIG_BIT(sig) & (LIBC_SIGNALS | UNCATCHABLE)) ||
	    host_syscall(SYS_rt_sigaction, sig, NULL, &k, 8))
		return;
	actions[sig] = (struct client_action){ k.handler, k.flags, k.mask };
	if ((k.handler != (void *)SIG_DFL && k.handler != (void *)SIG_IGN) ||
	    (BROKER_SIGNALS & SIG_BIT(sig)))
		install(sig, &actions[sig]);
}

static void signals_init(void)
{
	u64 old;

	fault_init();
	host_mm_id();
	pthread_atfork(NULL, NULL, table_unlock_in_child);
	old = table_lock();
	for (int sig = 1; sig <= NR_SIGNALS; sig++)
		adopt(sig);
	initialised = true;
	table_unlock(old);
}

void host_signals_init(void)
{
	static pthread_once_t once = PTHREAD_ONCE_INIT;

	pthread_once(&once, signals_init);
}

static void to_libc(struct sigaction *out, const struct client_action *a)
{
	memset(out, 0, sizeof(*out));
	out->sa_sigaction = a->handler;
	memcpy(&out->sa_mask, &a->mask, sizeof(a->mask));
	out->sa_flags = a->flags;
	out->sa_restorer = a->flags & KERNEL_SA_RESTORER ? host_sigreturn : NULL;
}

/* Not ours to record: before the broker exists, or in a vfork child, whose dispositions are its own. */
static long sigaction_plain(int sig, const struct client_action *new, struct client_action *prev)
{
	struct kernel_action k, was = { 0 };
	long err;

	if (new)
		k = (struct kernel_action){ new->handler, new->flags | KERNEL_SA_RESTORER,
					    (void *)host_sigreturn, new->mask };
	err = host_syscall(SYS_rt_sigaction, sig, new ? &k : NULL, &was, 8);
	if (!err && was.handler == (void *)trampoline)
		*prev = actions[sig];
	else
		*prev = (struct client_action){ was.handler, was.flags, was.mask };
	return err;
}

int host_sigaction(int sig, const struct sigaction *act, struct sigaction *old)
{
	struct client_action new = { 0 }, prev = { 0 };
	bool borrowed;
	long err = 0;
	u64 mask;

	if (sig < 1 || sig > NR_SIGNALS || (SIG_BIT(sig) & LIBC_SIGNALS)) {
		errno = EINVAL;
		return -1;
	}
	if (act) {
		new.handler = act->sa_sigaction;
		new.flags = (unsigned int)act->sa_flags | KERNEL_SA_RESTORER;
		memcpy(&new.mask, &act->sa_mask, sizeof(new.mask));
	}
	borrowed = initialised && host_mm_borrowed();
	mask = table_lock();
	if (!initialised || borrowed || (SIG_BIT(sig) & UNCATCHABLE)) {
		err = sigaction_plain(sig, act ? &new : NULL, &prev);
	} else {
		prev = actions[sig];
		if (act) {
			err = install(sig, &new);
			if (!err)
				actions[sig] = new;
		}
	}
	table_unlock(mask);
	if (err) {
		errno = -err;
		return -1;
	}
	if (old)
		to_libc(old, &prev);
	return 0;
}

void host_signal_prepare_mask(u64 mask)
{
	/* Only what the caller blocks now and opens in KVM_RUN behaves differently there. */
	u64 opened = mask_get() & ~mask & ~(LIBC_SIGNALS | UNCATCHABLE | BROKER_SIGNALS | DEFAULT_IGNORED);
	u64 old;

	if (!opened)
		return;
	host_signals_init();
	old = table_lock();
	emulated_default |= opened;
	for (int sig = 1; sig <= NR_SIGNALS; sig++)
		if ((opened & SIG_BIT(sig)) && actions[sig].handler == (void *)SIG_DFL)
			install(sig, &actions[sig]);
	table_unlock(old);
}

/* ---- delivery ---------------------------------------------------------------------- */

/* What the kernel would have done. A fault is left to happen again, so that a core dump shows its true place. */
static void act_default(int sig, const siginfo_t *info)
{
	struct kernel_action dfl = { .handler = (void *)SIG_DFL };

	kernel_set(sig, &dfl);
	if (!is_fault(sig, info))
		queue_again(sig, info);
}

/* Look up the client's action, performing SA_RESETHAND. Every signal is blocked. */
static struct client_action take_action(int sig)
{
	u64 old = table_lock();
	struct client_action a = actions[sig];

	if ((a.flags & SA_RESETHAND) && a.handler != (void *)SIG_DFL &&
	    a.handler != (void *)SIG_IGN) {
		actions[sig].handler = (void *)SIG_DFL;
		install(sig, &actions[sig]);
	}
	table_unlock(old);
	return a;
}

static void run_client_handler(int sig, siginfo_t *info, ucontext_t *uc)
{
	struct client_action a = take_action(sig);

	if (is_ignored(sig, a.handler) && !is_fault(sig, info))
		return;
	if (a.handler == (void *)SIG_DFL || a.handler == (void *)SIG_IGN) {
		act_default(sig, info);
		return;
	}
	mask_swap(*context_mask(uc) | a.mask | (a.flags & SA_NODEFER ? 0 : SIG_BIT(sig)));
	((void (*)(int, siginfo_t *, void *))a.handler)(sig, info, uc);
}

static void block_and_queue(int sig, siginfo_t *info, ucontext_t *uc)
{
	*context_mask(uc) |= SIG_BIT(sig);
	queue_again(sig, info);
}

/* Keep a client's instance of a signal that we must not block. Like any standard signal, one is enough. */
static void keep_for_leave(struct host_guest_ctx *ctx, int sig, const siginfo_t *info)
{
	for (unsigned i = 0; i < ARRAY_SIZE(broker_signals); i++) {
		if (broker_signals[i] != sig || (ctx->deferred & BIT(i)))
			continue;
		ctx->deferred_info[i] = *info;
		ctx->deferred |= BIT(i);
	}
}

static void request_exit(struct host_guest_ctx *ctx, ucontext_t *uc)
{
	ctx->signal_seen = true;
	if (ctx->requests)
		atomic_fetch_or(ctx->requests, ctx->signal_request);
	if (ctx->wake)
		atomic_fetch_add(ctx->wake, 1);
	fault_abort_wait(uc);
}

/* A signal for the client while this thread is in the guest. False: its handler may run right now. */
static bool hold_back(struct host_guest_ctx *ctx, int sig, siginfo_t *info, ucontext_t *uc)
{
	u64 client_mask = ctx->own_mask ? ctx->run_mask : ctx->saved_mask;

	if (ctx->leaving) {
		if (*context_mask(uc) != ctx->saved_mask) {
			block_and_queue(sig, info, uc);
			return true;
		}
		/* The handler may never return here. */
		host_guest_current = ctx->outer;
		return false;
	}
	/* A real fault cannot wait, unless the access that met the poison can be aborted. */
	if (is_fault(sig, info) && !fault_abort_access(info, uc))
		return false;
	if (SIG_BIT(sig) & client_mask) {
		keep_for_leave(ctx, sig, info);
		return true;
	}
	if (is_ignored(sig, actions[sig].handler))
		return true;
	request_exit(ctx, uc);
	if (SIG_BIT(sig) & BROKER_SIGNALS)
		keep_for_leave(ctx, sig, info);
	else
		block_and_queue(sig, info, uc);
	return true;
}

static void trampoline(int sig, siginfo_t *info, void *context)
{
	struct host_guest_ctx *ctx = host_guest_current;
	ucontext_t *uc = context;

	/* What is in the middle of an access goes on: nobody waits. (A kick that found a tick pending is lost, and sent again.) */
	if (is_tick(sig, info)) {
		if (ctx && ctx->requests) {
			atomic_fetch_or(ctx->requests, ctx->tick_request);
			fault_abort_wait(uc);
		}
		return;
	}
	if (is_kick(sig, info)) {
		if (ctx) {
			fault_abort_wait(uc);
			fault_abort_access(info, uc);
		}
		return;
	}
	if ((FAULT_SIGNALS & SIG_BIT(sig)) && fault_resolve(sig, info, uc))
		return;
	if (ctx && hold_back(ctx, sig, info, uc))
		return;
	run_client_handler(sig, info, uc);
}

/* ---- KVM_RUN's side -------------------------------------------------------------------- */

void host_guest_enter(struct host_guest_ctx *ctx, const u64 *kernel_mask)
{
	ctx->outer = host_guest_current;
	ctx->signal_seen = false;
	ctx->leaving = false;
	ctx->deferred = 0;
	ctx->thunk_rsp = NULL;
	ctx->saved_mask = mask_get();
	ctx->own_mask = kernel_mask != NULL;
	ctx->run_mask = (kernel_mask ? *kernel_mask : ctx->saved_mask) &
			~(BROKER_SIGNALS | UNCATCHABLE);
	/* Before the mask opens: what was pending arrives as the next call returns. */
	__atomic_signal_fence(__ATOMIC_SEQ_CST);
	host_guest_current = ctx;
	__atomic_signal_fence(__ATOMIC_SEQ_CST);
	if (ctx->run_mask != ctx->saved_mask)
		mask_swap(ctx->run_mask);
}

bool host_guest_leave(struct host_guest_ctx *ctx)
{
	ctx->leaving = true;
	__atomic_signal_fence(__ATOMIC_SEQ_CST);
	if (*(volatile bool *)&ctx->signal_seen || ctx->run_mask != ctx->saved_mask)
		mask_swap(ctx->saved_mask);
	for (unsigned i = 0; i < ARRAY_SIZE(broker_signals); i++)
		if (*(volatile u32 *)&ctx->deferred & BIT(i))
			queue_again(broker_signals[i], &ctx->deferred_info[i]);
	host_guest_current = ctx->outer;
	return ctx->signal_seen;
}

bool host_signal_pending(void)
{
	return host_guest_current && *(volatile bool *)&host_guest_current->signal_seen;
}

void host_kick_thread(pid_t tid)
{
	siginfo_t info;

	memset(&info, 0, sizeof(info));
	info.si_signo = KICK_SIGNAL;
	info.si_code = SI_QUEUE;
	info.si_pid = host_syscall(SYS_getpid, 0, 0, 0, 0);
	info.si_uid = host_syscall(SYS_getuid, 0, 0, 0, 0);
	info.si_value.sival_ptr = &kick_cookie;
	host_syscall(SYS_rt_tgsigqueueinfo, info.si_pid, tid, KICK_SIGNAL, &info);
}

void host_kick_pthread(pthread_t thread)
{
	pthread_sigqueue(thread, KICK_SIGNAL, (union sigval){ .sival_ptr = &kick_cookie });
}

/* SPDX-License-Identifier: MIT */
/*
 * Dispositions go to the broker (host/signal.c), which keeps its trampoline in
 * front of the client's handlers. libc's signal() calls its own sigaction
 * directly, so every way to install a handler is wrapped. Waiting for signals
 * must not show our kicks, which may arrive when KVM_RUN is already over.
 */
#include "shim/shim.h"

#include <string.h>
#include <time.h>

#include "host/host.h"

#define KICK_SIGNAL SIGURG

static sigset_t interrupting; /* siginterrupt(); as in libc, unlocked */

shim_public int sigaction(int sig, const struct sigaction *act, struct sigaction *old)
{
	if (shim_config()->off)
		return real(sigaction)(sig, act, old);
	return host_sigaction(sig, act, old);
}

shim_public int __sigaction(int sig, const struct sigaction *act, struct sigaction *old)
{
	return sigaction(sig, act, old);
}

static sighandler_t set_handler(int sig, sighandler_t handler, int flags, bool block_itself)
{
	struct sigaction act = { .sa_handler = handler, .sa_flags = flags }, old;

	if (handler == SIG_ERR || sig < 1 || sig >= NSIG) {
		errno = EINVAL;
		return SIG_ERR;
	}
	sigemptyset(&act.sa_mask);
	if (block_itself)
		sigaddset(&act.sa_mask, sig);
	return sigaction(sig, &act, &old) ? SIG_ERR : old.sa_handler;
}

shim_public sighandler_t signal(int sig, sighandler_t handler)
{
	bool restart = sig < 1 || sig >= NSIG || sigismember(&interrupting, sig) != 1;

	return set_handler(sig, handler, restart ? SA_RESTART : 0, true);
}

shim_public sighandler_t bsd_signal(int sig, sighandler_t handler)
{
	return signal(sig, handler);
}

shim_public sighandler_t ssignal(int sig, sighandler_t handler)
{
	return signal(sig, handler);
}

shim_public sighandler_t sysv_signal(int sig, sighandler_t handler)
{
	return set_handler(sig, handler, SA_RESETHAND | SA_NODEFER, false);
}

shim_public sighandler_t __sysv_signal(int sig, sighandler_t handler)
{
	return sysv_signal(sig, handler);
}

shim_public int siginterrupt(int sig, int interrupt)
{
	struct sigaction act;

	if (sigaction(sig, NULL, &act))
		return -1;
	if (interrupt) {
		sigaddset(&interrupting, sig);
		act.sa_flags &= ~SA_RESTART;
	} else {
		sigdelset(&interrupting, sig);
		act.sa_flags |= SA_RESTART;
	}
	return sigaction(sig, &act, NULL);
}

shim_public sighandler_t sigset(int sig, sighandler_t disposition)
{
	sigset_t one, was;
	sighandler_t old;

	if (disposition == SIG_ERR || sig < 1 || sig >= NSIG) {
		errno = EINVAL;
		return SIG_ERR;
	}
	sigemptyset(&one);
	sigaddset(&one, sig);
	if (disposition == SIG_HOLD) {
		struct sigaction act;

		if (pthread_sigmask(SIG_BLOCK, &one, &was) || sigaction(sig, NULL, &act))
			return SIG_ERR;
		old = act.sa_handler;
	} else {
		old = set_handler(sig, disposition, 0, false);
		if (old == SIG_ERR || pthread_sigmask(SIG_UNBLOCK, &one, &was))
			return SIG_ERR;
	}
	return sigismember(&was, sig) == 1 ? SIG_HOLD : old;
}

shim_public int sigignore(int sig)
{
	return set_handler(sig, SIG_IGN, 0, false) == SIG_ERR ? -1 : 0;
}

/* ---- waiting ---------------------------------------------------------------------------- */

/* The broker marks a kick with an address of this very object; nobody else queues such values. */
static bool is_kick(const siginfo_t *info)
{
	extern char __bss_start[] __attribute__((visibility("hidden")));
	extern char _end[] __attribute__((visibility("hidden")));
	char *cookie = info->si_value.sival_ptr;

	return info->si_signo == KICK_SIGNAL && info->si_code == SI_QUEUE &&
	       cookie >= __bss_start && cookie < _end;
}

static bool has_kick(const sigset_t *set)
{
	return !shim_config()->off && sigismember(set, KICK_SIGNAL) == 1;
}

shim_public int sigtimedwait(const sigset_t *set, siginfo_t *info, const struct timespec *timeout)
{
	struct timespec left;
	siginfo_t mine;
	u64 deadline;
	int sig;

	if (likely(!has_kick(set)))
		return real(sigtimedwait)(set, info, timeout);
	if (!info)
		info = &mine;
	deadline = timeout ? host_now_ns() + timeout->tv_sec * 1000000000ull + timeout->tv_nsec : 0;
	while ((sig = real(sigtimedwait)(set, info, timeout)) > 0 && is_kick(info)) {
		if (timeout) {
			u64 t = host_now_ns(), ns = deadline > t ? deadline - t : 0;

			left = (struct timespec){ ns / 1000000000, ns % 1000000000 };
			timeout = &left;
		}
	}
	return sig;
}

shim_public int sigwaitinfo(const sigset_t *set, siginfo_t *info)
{
	return sigtimedwait(set, info, NULL);
}

shim_public int sigwait(const sigset_t *set, int *sig)
{
	int saved_errno = errno, r;

	if (likely(!has_kick(set)))
		return real(sigwait)(set, sig);
	do
		r = sigtimedwait(set, NULL, NULL);
	while (r < 0 && errno == EINTR);
	if (r > 0)
		*sig = r;
	r = r > 0 ? 0 : errno;
	errno = saved_errno;
	return r;
}

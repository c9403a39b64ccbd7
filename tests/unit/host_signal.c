/* SPDX-License-Identifier: MIT */
/* Who runs when: client handlers, faults and kicks, inside and outside KVM_RUN. */
#include <errno.h>
#include <setjmp.h>
#include <stdatomic.h>
#include <stdlib.h>
#include <string.h>
#include <sys/mman.h>
#include <sys/resource.h>
#include <sys/syscall.h>
#include <sys/wait.h>
#include <time.h>
#include <unistd.h>

#include "host/access.h"
#include "host/host.h"
#include "host_test.h"

static volatile int hits, in_guest_hits, last_value, last_code;
static volatile u64 mask_in_handler;
static volatile int *volatile null_int = (int *)16;
static u8 *volatile null_byte = (u8 *)8;
static void *volatile fault_address;

static u64 thread_mask(void)
{
	sigset_t set;
	u64 m;

	sigemptyset(&set);
	pthread_sigmask(SIG_BLOCK, NULL, &set);
	memcpy(&m, &set, sizeof(m));
	return m;
}

static void handler(int sig, siginfo_t *info, void *uc)
{
	hits++;
	in_guest_hits += host_guest_current != NULL;
	last_value = info->si_value.sival_int;
	last_code = info->si_code;
	fault_address = info->si_addr;
	mask_in_handler = thread_mask();
}

static void set_handler(int sig, int flags)
{
	struct sigaction sa = { .sa_sigaction = handler, .sa_flags = SA_SIGINFO | flags };

	sigemptyset(&sa.sa_mask);
	sigaddset(&sa.sa_mask, SIGUSR2);
	CHECK(host_sigaction(sig, &sa, NULL) == 0);
}

static void enter(struct host_guest_ctx *ctx, _Atomic u64 *requests, const u64 *mask)
{
	memset(ctx, 0, sizeof(*ctx));
	ctx->requests = requests;
	ctx->signal_request = 8;
	host_guest_enter(ctx, mask);
}

static void test_outside(void)
{
	struct sigaction old;
	union sigval v = { .sival_int = 42 };

	hits = 0;
	set_handler(SIGUSR1, 0);
	sigqueue(getpid(), SIGUSR1, v);
	CHECK(hits == 1 && last_value == 42 && last_code == SI_QUEUE);
	CHECK(mask_in_handler & BIT_ULL(SIGUSR1 - 1));
	CHECK(mask_in_handler & BIT_ULL(SIGUSR2 - 1));
	CHECK(!(mask_in_handler & BIT_ULL(SIGTERM - 1)));
	CHECK(!host_sigaction(SIGUSR1, NULL, &old) && old.sa_sigaction == handler &&
	      (old.sa_flags & SA_SIGINFO) && sigismember(&old.sa_mask, SIGUSR2));
	set_handler(SIGUSR1, SA_NODEFER | SA_RESETHAND);
	raise(SIGUSR1);
	CHECK(hits == 2 && !(mask_in_handler & BIT_ULL(SIGUSR1 - 1)));
	CHECK(!host_sigaction(SIGUSR1, NULL, &old) && old.sa_handler == SIG_DFL);
	errno = 0;
	CHECK(host_sigaction(SIGKILL, &old, NULL) == -1 && errno == EINVAL);
	CHECK(host_sigaction(0, &old, NULL) == -1);
	CHECK(host_sigaction(65, &old, NULL) == -1);
}

static void test_held_back(void)
{
	struct host_guest_ctx ctx;
	_Atomic u64 requests = 0;
	union sigval v = { .sival_int = 7 };
	u64 before = thread_mask();

	hits = in_guest_hits = 0;
	set_handler(SIGUSR1, SA_RESTART);
	enter(&ctx, &requests, NULL);
	sigqueue(getpid(), SIGUSR1, v);
	CHECK(hits == 0 && requests == 8 && host_signal_pending());
	CHECK(host_guest_leave(&ctx));
	CHECK(hits == 1 && in_guest_hits == 0 && last_value == 7 && last_code == SI_QUEUE);
	CHECK(thread_mask() == before && !host_guest_current);
	enter(&ctx, &requests, NULL);
	CHECK(!host_guest_leave(&ctx) && hits == 1);
}

/* KVM_SET_SIGNAL_MASK: blocked outside, open inside; stays pending for sigtimedwait. */
static void test_own_mask(void)
{
	struct host_guest_ctx ctx;
	_Atomic u64 requests = 0;
	struct timespec none = { 0 };
	sigset_t set;
	u64 open = 0;

	sigemptyset(&set);
	sigaddset(&set, SIGUSR1);
	pthread_sigmask(SIG_BLOCK, &set, NULL);
	hits = 0;
	raise(SIGUSR1);
	enter(&ctx, &requests, &open);
	CHECK(requests == 8);
	CHECK(host_guest_leave(&ctx) && hits == 0);
	CHECK(sigtimedwait(&set, NULL, &none) == SIGUSR1);
	/* The same for a signal that would kill. */
	CHECK(!host_sigaction(SIGUSR1, &(struct sigaction){ .sa_handler = SIG_DFL }, NULL));
	host_signal_prepare_mask(open);
	requests = 0;
	enter(&ctx, &requests, &open);
	raise(SIGUSR1);
	CHECK(requests == 8);
	CHECK(host_guest_leave(&ctx));
	CHECK(sigtimedwait(&set, NULL, &none) == SIGUSR1);
	pthread_sigmask(SIG_UNBLOCK, &set, NULL);
}

static void test_fault_signals_blocked_by_client(void)
{
	struct host_guest_ctx ctx;
	_Atomic u64 requests = 0;
	struct timespec none = { 0 };
	sigset_t set;
	u64 v;

	sigemptyset(&set);
	sigaddset(&set, SIGSEGV);
	sigaddset(&set, SIGURG);
	pthread_sigmask(SIG_BLOCK, &set, NULL);
	enter(&ctx, &requests, NULL);
	CHECK(!host_load8(null_byte, &v));
	kill(getpid(), SIGSEGV);	/* the client's, and blocked: stays pending */
	CHECK(!host_load8(null_byte, &v));
	CHECK(requests == 0);
	CHECK(!host_guest_leave(&ctx));
	CHECK(sigtimedwait(&set, NULL, &none) == SIGSEGV);
	pthread_sigmask(SIG_UNBLOCK, &set, NULL);
	/* Unblocked, with a handler: held back like any other. */
	set_handler(SIGSEGV, 0);
	hits = 0;
	enter(&ctx, &requests, NULL);
	kill(getpid(), SIGSEGV);
	CHECK(requests == 8 && hits == 0);
	CHECK(host_guest_leave(&ctx) && hits == 1 && last_code == SI_USER);
	host_sigaction(SIGSEGV, &(struct sigaction){ .sa_handler = SIG_DFL }, NULL);
}

static sigjmp_buf jump;

static void jumping(int sig, siginfo_t *info, void *uc)
{
	fault_address = info->si_addr;
	siglongjmp(jump, 1);
}

static void test_clients_own_faults(void)
{
	struct sigaction sa = { .sa_sigaction = jumping, .sa_flags = SA_SIGINFO };
	struct host_guest_ctx ctx;
	_Atomic u64 requests = 0;

	host_sigaction(SIGSEGV, &sa, NULL);
	for (volatile int i = 0; i < 3; i++) {
		if (!sigsetjmp(jump, 1)) {
			*null_int = 1;
			CHECK(0);
		}
		CHECK(fault_address == (void *)null_int);
		fault_address = NULL;
	}
	/* A handler that jumps out of leave() leaves nothing behind. */
	host_sigaction(SIGUSR1, &sa, NULL);
	if (!sigsetjmp(jump, 1)) {
		enter(&ctx, &requests, NULL);
		raise(SIGUSR1);
		host_guest_leave(&ctx);
		CHECK(0);
	}
	CHECK(!host_guest_current);
	host_sigaction(SIGSEGV, &(struct sigaction){ .sa_handler = SIG_DFL }, NULL);
}

/* The process must die as it would without us. */
static void dies_of(int sig, void (*fn)(void))
{
	int status;
	pid_t pid = fork();

	if (!pid) {
		struct rlimit none = { 0, 0 };

		setrlimit(RLIMIT_CORE, &none);
		fn();
		_exit(0);
	}
	CHECK(waitpid(pid, &status, 0) == pid && WIFSIGNALED(status) && WTERMSIG(status) == sig);
}

static void die_fault(void)
{
	*null_int = 1;
}

static void die_ignored_fault(void)
{
	host_sigaction(SIGSEGV, &(struct sigaction){ .sa_handler = SIG_IGN }, NULL);
	raise(SIGSEGV);
	*null_int = 1;
}

static void die_kill(void)
{
	kill(getpid(), SIGFPE);
}

static void die_in_guest(void)
{
	struct host_guest_ctx ctx;

	enter(&ctx, NULL, NULL);
	*null_int = 1;
}

static void die_prepared(void)
{
	sigset_t set;

	sigemptyset(&set);
	sigaddset(&set, SIGUSR2);
	pthread_sigmask(SIG_BLOCK, &set, NULL);
	host_signal_prepare_mask(0);
	pthread_sigmask(SIG_UNBLOCK, &set, NULL);
	raise(SIGUSR2);
}

static void *kicker(void *arg)
{
	pid_t tid = *(pid_t *)arg;

	usleep(50000);
	host_kick_thread(tid);
	return NULL;
}

static void *signaller(void *arg)
{
	pid_t tid = *(pid_t *)arg;

	usleep(50000);
	syscall(SYS_tgkill, getpid(), tid, SIGUSR1);
	return NULL;
}

static void test_waits_end(void *(*fn)(void *), bool seen)
{
	struct host_guest_ctx ctx;
	_Atomic u64 requests = 0;
	_Atomic u32 word = 0;
	pid_t tid = syscall(SYS_gettid);
	pthread_t thread;

	enter(&ctx, &requests, NULL);
	CHECK(!host_thread_create(&thread, fn, &tid));
	host_futex_wait(&word, 0, ~0ull);
	CHECK(host_signal_pending() == seen);
	if (seen) {
		u64 start = host_now_ns();

		host_futex_wait(&word, 0, start + 1000000000); /* must not sleep at all */
		CHECK(host_now_ns() - start < 500000000);
	}
	CHECK(host_guest_leave(&ctx) == seen);
	pthread_join(thread, NULL);
}

static void test_kick_invisible(void)
{
	hits = 0;
	set_handler(SIGURG, 0);
	host_kick_thread(syscall(SYS_gettid));
	CHECK(hits == 0);
	raise(SIGURG);
	CHECK(hits == 1);
	host_kick_pthread(pthread_self());
	CHECK(hits == 1 && !host_kicked);
}

/* Client signals in a storm: each is either seen by leave() or handled outside, none inside. */
static volatile bool storm_over;

static void *storm(void *arg)
{
	pid_t tid = *(pid_t *)arg;

	for (int i = 0; i < 10000; i++) {
		syscall(SYS_tgkill, getpid(), tid, SIGUSR1);
		if (i % 3 == 0)
			host_kick_thread(tid);
		/* Let the target run: back-to-back signals would starve it. */
		for (u64 end = host_rdtsc() + 20000; host_rdtsc() < end;)
			;
	}
	storm_over = true;
	return NULL;
}

/* In and out of guest mode until the storm is over: how often a kick was seen. */
static u64 weather(struct host_guest_ctx *ctx, _Atomic u64 *requests, u64 before)
{
	u64 v, seen = 0;

	while (!storm_over) {
		enter(ctx, requests, NULL);
		for (int i = 0; i < 2000; i++) {
			bool ok = host_load64(&before, &v);

			if (ok == host_kicked) {
				CHECK(0);
				break;
			}
			host_kicked = false;
		}
		seen += host_guest_leave(ctx);
		if (thread_mask() != before) {
			CHECK(0);
			break;
		}
	}
	return seen;
}

static void test_storm(void)
{
	struct host_guest_ctx ctx;
	_Atomic u64 requests = 0;
	pid_t tid = syscall(SYS_gettid);
	u64 before = thread_mask(), seen = 0;
	pthread_t thread;

	set_handler(SIGUSR1, 0);
	hits = in_guest_hits = 0;
	/* Where both threads share a CPU a storm may miss every entry: another one then. */
	for (int tries = 0; tries < 50 && !seen; tries++) {
		storm_over = false;
		host_thread_create(&thread, storm, &tid);
		seen += weather(&ctx, &requests, before);
		pthread_join(thread, NULL);
	}
	CHECK(in_guest_hits == 0);
	CHECK(hits > 0);
	CHECK(seen > 0);
}

static void test_fork_identity(void)
{
	u64 id = host_mm_id();
	int status;
	pid_t pid = fork();

	if (!pid) {
		/* The child's dispositions are its own and still recorded. */
		set_handler(SIGUSR1, 0);
		hits = 0;
		raise(SIGUSR1);
		_exit(host_mm_id() != id && host_mm_id() == host_mm_id() && hits == 1 ? 0 : 1);
	}
	CHECK(waitpid(pid, &status, 0) == pid && status == 0);
	CHECK(host_mm_id() == id);
	pid = vfork();
	if (!pid) {
		struct sigaction dfl = { .sa_handler = SIG_DFL };

		_exit(host_mm_id() == id && !host_sigaction(SIGUSR1, &dfl, NULL) ? 0 : 1);
	}
	CHECK(waitpid(pid, &status, 0) == pid && status == 0);
	hits = 0;
	raise(SIGUSR1);
	CHECK(hits == 1);
}

int main(void)
{
	struct sigaction early = { .sa_sigaction = handler, .sa_flags = SA_SIGINFO };

	sigaction(SIGHUP, &early, NULL);
	host_signals_init();
	host_signals_init();
	raise(SIGHUP); /* adopted */
	CHECK(hits == 1);
	test_outside();
	test_held_back();
	test_own_mask();
	test_fault_signals_blocked_by_client();
	test_clients_own_faults();
	dies_of(SIGSEGV, die_fault);
	dies_of(SIGSEGV, die_ignored_fault);
	dies_of(SIGFPE, die_kill);
	dies_of(SIGSEGV, die_in_guest);
	dies_of(SIGUSR2, die_prepared);
	set_handler(SIGUSR1, SA_RESTART);
	test_waits_end(kicker, false);
	test_waits_end(signaller, true);
	test_kick_invisible();
	test_storm();
	test_fork_identity();
	return host_test_end();
}

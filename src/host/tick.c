/* SPDX-License-Identifier: MIT */
/*
 * Deadlines of the thread that computes: a POSIX timer of its own, whose signal (signal.c) sets a request. The VM's timer thread
 * (timer.c) would sleep on a CPU that is idle, and be late by what it takes that one to wake up: hundreds of us in a virtual
 * machine. This timer is on the CPU that its thread is on.
 *
 * 1. A tick is armed by its own thread, between host_guest_enter() and host_guest_leave(), and is not when that leaves: outside, the signal
 *    would end the client's system calls.
 * 2. Who does not get one (no timers left, a filter of system calls) goes on without: the timer thread is always there.
 * 3. A forked child has not inherited the timer, and what has its number may be the client's.
 */
#include <signal.h>
#include <stdatomic.h>
#include <string.h>
#include <time.h>

#include "host/host.h"
#include "host/signal_internal.h"
#include "host/syscall.h"

/* Its number may be that of a thread that is gone. */
static u64 this_thread(void)
{
	static _Atomic u64 threads;
	static _Thread_local u64 self;

	if (!self)
		self = atomic_fetch_add(&threads, 1) + 1;
	return self;
}

static bool tick_create(struct host_tick *t)
{
	struct sigevent ev;

	memset(&ev, 0, sizeof(ev));
	ev.sigev_notify = SIGEV_THREAD_ID;
	ev.sigev_signo = KICK_SIGNAL;
	ev.sigev_value.sival_ptr = &host_tick_cookie;
	ev._sigev_un._tid = host_syscall(SYS_gettid, 0, 0, 0, 0);
	if (host_syscall(SYS_timer_create, CLOCK_MONOTONIC, &ev, &t->id, 0))
		return false;
	t->thread = this_thread();
	t->mm = host_mm_id();
	return true;
}

static bool tick_set(struct host_tick *t, u64 deadline_ns)
{
	struct itimerspec at = { .it_value = { deadline_ns / 1000000000, deadline_ns % 1000000000 } };

	return !host_syscall(SYS_timer_settime, t->id, TIMER_ABSTIME, &at, NULL);
}

bool host_tick_arm(struct host_tick *t, u64 deadline_ns)
{
	if (t->thread != this_thread()) {
		host_tick_destroy(t);
		if (t->refused == this_thread() || !tick_create(t)) {
			t->refused = this_thread();
			return false;
		}
	}
	t->armed = tick_set(t, deadline_ns);
	return t->armed;
}

void host_tick_disarm(struct host_tick *t)
{
	if (t->armed)
		tick_set(t, 0);
	t->armed = false;
}

void host_tick_destroy(struct host_tick *t)
{
	if (t->thread && t->mm == host_mm_id())
		host_syscall(SYS_timer_delete, t->id, 0, 0, 0);
	t->thread = 0;
	t->armed = false;
}

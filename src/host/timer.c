/* SPDX-License-Identifier: MIT */
/*
 * Deadlines of one VM: a binary heap and one thread, started by the first arm.
 *
 * 1. heap[1] has the earliest deadline; t->heap_index says where t is, 0: nowhere.
 * 2. A callback runs without the lock; `running` names its timer meanwhile, and
 *    vm_timer_cancel() waits on `idle` until that is no longer its timer.
 * 3. The thread sleeps until `sleeping_until`; an arm wakes it only if earlier.
 */
#include <errno.h>
#include <stdlib.h>
#include <time.h>

#include "base/log.h"
#include "host/host.h"

struct vm_timers {
	pthread_mutex_t lock;
	pthread_cond_t wake, idle;
	struct vm_timer **heap;		/* [1..nr] */
	u32 nr, capacity;
	struct vm_timer *running;
	u64 sleeping_until;
	pthread_t thread;
	bool started, stop;
};

struct vm_timers *vm_timers_create(void)
{
	struct vm_timers *ts = calloc(1, sizeof(*ts));
	pthread_condattr_t attr;

	if (!ts)
		return NULL;
	pthread_mutex_init(&ts->lock, NULL);
	pthread_condattr_init(&attr);
	pthread_condattr_setclock(&attr, CLOCK_MONOTONIC);
	pthread_cond_init(&ts->wake, &attr);
	pthread_cond_init(&ts->idle, &attr);
	pthread_condattr_destroy(&attr);
	return ts;
}

static void heap_put(struct vm_timers *ts, u32 i, struct vm_timer *t)
{
	ts->heap[i] = t;
	t->heap_index = i;
}

static void heap_up(struct vm_timers *ts, u32 i, struct vm_timer *t)
{
	for (; i > 1 && ts->heap[i / 2]->deadline_ns > t->deadline_ns; i /= 2)
		heap_put(ts, i, ts->heap[i / 2]);
	heap_put(ts, i, t);
}

static void heap_down(struct vm_timers *ts, u32 i, struct vm_timer *t)
{
	u32 child;

	for (; (child = 2 * i) <= ts->nr; i = child) {
		if (child < ts->nr && ts->heap[child + 1]->deadline_ns < ts->heap[child]->deadline_ns)
			child++;
		if (ts->heap[child]->deadline_ns >= t->deadline_ns)
			break;
		heap_put(ts, i, ts->heap[child]);
	}
	heap_put(ts, i, t);
}

static void heap_remove(struct vm_timers *ts, struct vm_timer *t)
{
	u32 i = t->heap_index;
	struct vm_timer *last;

	if (!i)
		return;
	last = ts->heap[ts->nr--];
	t->heap_index = 0;
	if (last == t)
		return;
	if (last->deadline_ns < t->deadline_ns)
		heap_up(ts, i, last);
	else
		heap_down(ts, i, last);
}

static bool heap_reserve(struct vm_timers *ts)
{
	struct vm_timer **heap;
	u32 capacity = ts->capacity ? ts->capacity * 2 : 8;

	if (ts->nr + 1 < ts->capacity)
		return true;
	heap = realloc(ts->heap, capacity * sizeof(*heap));
	if (!heap)
		return false;
	ts->heap = heap;
	ts->capacity = capacity;
	return true;
}

static void sleep_until(struct vm_timers *ts, u64 deadline)
{
	struct timespec at = { deadline / 1000000000, deadline % 1000000000 };

	ts->sleeping_until = deadline;
	if (deadline == ~0ull)
		pthread_cond_wait(&ts->wake, &ts->lock);
	else
		pthread_cond_timedwait(&ts->wake, &ts->lock, &at);
	ts->sleeping_until = 0;
}

static void run_first(struct vm_timers *ts)
{
	struct vm_timer *t = ts->heap[1];

	heap_remove(ts, t);
	ts->running = t;
	pthread_mutex_unlock(&ts->lock);
	t->fn(t);
	pthread_mutex_lock(&ts->lock);
	ts->running = NULL;
	pthread_cond_broadcast(&ts->idle);
}

static void *timers_main(void *arg)
{
	struct vm_timers *ts = arg;

	pthread_mutex_lock(&ts->lock);
	while (!ts->stop) {
		u64 deadline = ts->nr ? ts->heap[1]->deadline_ns : ~0ull;

		if (deadline != ~0ull && deadline <= host_now_ns())
			run_first(ts);
		else
			sleep_until(ts, deadline);
	}
	pthread_mutex_unlock(&ts->lock);
	return NULL;
}

void vm_timers_destroy(struct vm_timers *ts)
{
	bool started;

	if (!ts)
		return;
	pthread_mutex_lock(&ts->lock);
	ts->stop = true;
	started = ts->started;
	pthread_cond_signal(&ts->wake);
	pthread_mutex_unlock(&ts->lock);
	if (started)
		pthread_join(ts->thread, NULL);
	pthread_cond_destroy(&ts->wake);
	pthread_cond_destroy(&ts->idle);
	pthread_mutex_destroy(&ts->lock);
	free(ts->heap);
	free(ts);
}

void vm_timer_init(struct vm_timer *t, struct vm_timers *owner, void (*fn)(struct vm_timer *))
{
	*t = (struct vm_timer){ .fn = fn, .owner = owner };
}

static bool timers_start(struct vm_timers *ts)
{
	if (!ts->started && !ts->stop)
		ts->started = !host_thread_create(&ts->thread, timers_main, ts);
	return ts->started;
}

void vm_timer_arm(struct vm_timer *t, u64 deadline_ns)
{
	struct vm_timers *ts = t->owner;

	pthread_mutex_lock(&ts->lock);
	heap_remove(ts, t);
	t->deadline_ns = deadline_ns;
	if (heap_reserve(ts) && timers_start(ts)) {
		heap_up(ts, ++ts->nr, t);
		if (deadline_ns < ts->sleeping_until)
			pthread_cond_signal(&ts->wake);
	} else {
		log_error("no memory for a timer: a guest timer interrupt is lost");
	}
	pthread_mutex_unlock(&ts->lock);
}

void vm_timer_cancel(struct vm_timer *t)
{
	struct vm_timers *ts = t->owner;

	if (!ts)
		return;
	pthread_mutex_lock(&ts->lock);
	heap_remove(ts, t);
	while (ts->running == t && !pthread_equal(pthread_self(), ts->thread)) {
		pthread_cond_wait(&ts->idle, &ts->lock);
		heap_remove(ts, t); /* the callback may have re-armed itself */
	}
	pthread_mutex_unlock(&ts->lock);
}

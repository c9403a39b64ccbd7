/* SPDX-License-Identifier: MIT */
/* Timers, clocks, futexes. */
#include <stdatomic.h>
#include <stdlib.h>
#include <time.h>
#include <unistd.h>

#include "host/host.h"
#include "host_test.h"

#define MS 1000000ull

static struct vm_timers *timers;
static _Atomic u32 fired;
static u64 fired_at[64];

static void note(struct vm_timer *t)
{
	fired_at[fired++ % 64] = t->deadline_ns;
}

/* Until *word reaches n, however loaded the machine is; then a little longer, for one too many. */
static void wait_for(_Atomic u32 *word, u32 n)
{
	for (int i = 0; i < 10000 && *word < n; i++)
		usleep(1000);
	usleep(20000);
}

static void test_order(void)
{
	struct vm_timer t[32];
	u64 now = host_now_ns();

	fired = 0;
	for (unsigned i = 0; i < 32; i++) {
		vm_timer_init(&t[i], timers, note);
		vm_timer_arm(&t[i], now + 20 * MS + (i * 7 % 32) * (MS / 4));
	}
	for (unsigned i = 0; i < 32; i += 4)
		vm_timer_cancel(&t[i]);
	wait_for(&fired, 24);
	CHECK(fired == 24);
	for (unsigned i = 1; i < 24; i++)
		CHECK(fired_at[i] >= fired_at[i - 1]);
}

static _Atomic u32 started;

static void rearm(struct vm_timer *t)
{
	if (++fired < 20)
		vm_timer_arm(t, t->deadline_ns + MS);
}

static void slow(struct vm_timer *t)
{
	started++;
	usleep(30000);
	fired++;
}

static void test_rearm_and_cancel(void)
{
	struct vm_timer t;

	fired = 0;
	vm_timer_init(&t, timers, rearm);
	vm_timer_arm(&t, host_now_ns());
	wait_for(&fired, 20);
	CHECK(fired == 20 && !t.heap_index);
	fired = started = 0;
	vm_timer_init(&t, timers, slow);
	vm_timer_arm(&t, 0);
	for (int i = 0; i < 10000 && !started; i++)
		usleep(1000);
	vm_timer_cancel(&t);
	CHECK(fired == 1); /* waited for it */
	vm_timer_arm(&t, host_now_ns() + 1000 * MS);
	vm_timer_arm(&t, host_now_ns() + 5 * MS);
	wait_for(&fired, 2);
	CHECK(fired == 2);
	vm_timer_arm(&t, ~0ull);
	vm_timer_cancel(&t);
	vm_timer_cancel(&t);
}

/* Both at the same time: nobody has run in between. */
static void read_both(u64 *tsc, u64 *ns)
{
	u64 after;

	for (int i = 0; i < 1000; i++) {
		*tsc = host_rdtsc();
		*ns = host_now_ns();
		after = host_rdtsc();
		if (after - *tsc < 10000)
			break;
	}
}

static void test_clocks(void)
{
	u32 khz = host_tsc_khz();
	u64 t0, ns0, t1, ns1, seen;

	read_both(&t0, &ns0);
	usleep(50000);
	read_both(&t1, &ns1);
	seen = (t1 - t0) * 1000000 / (ns1 - ns0);
	CHECK(llabs((long long)seen - khz) * 1000 < khz);
	printf("tsc_khz %u, seen %llu\n", khz, (unsigned long long)seen);
	CHECK(host_real_ns() > 1000000000ull * 1000000000);
	CHECK(host_boot_ns() >= host_now_ns() - MS);
}

static void test_futex(void)
{
	_Atomic u32 word = 1;
	u64 start = host_now_ns();

	host_futex_wait(&word, 0, ~0ull); /* value differs */
	host_futex_wait(&word, 1, start + 10 * MS);
	CHECK(host_now_ns() - start >= 10 * MS && host_now_ns() - start < 500 * MS);
	host_futex_wait(&word, 1, 0);
	host_futex_wake(&word);
}

int main(void)
{
	host_signals_init();
	timers = vm_timers_create();
	test_order();
	test_rearm_and_cancel();
	vm_timers_destroy(timers);
	vm_timers_destroy(vm_timers_create());
	vm_timers_destroy(NULL);
	test_clocks();
	test_futex();
	return host_test_end();
}

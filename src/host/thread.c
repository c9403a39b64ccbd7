/* SPDX-License-Identifier: MIT */
/* Threads of ours, and which address space we are in. */
#include <errno.h>
#include <stdlib.h>
#include <sys/mman.h>
#include <sys/prctl.h>

#include "host/host.h"
#include "host/signal_internal.h"
#include "host/syscall.h"

#define THREAD_STACK (256 * 1024)

struct start {
	void *(*fn)(void *);
	void *arg;
};

static void *thread_main(void *p)
{
	struct start s = *(struct start *)p;

	free(p);
	host_syscall(SYS_prctl, PR_SET_TIMERSLACK, 1, 0, 0);
	host_syscall(SYS_prctl, PR_SET_NAME, "softkvm", 0, 0);
	return s.fn(s.arg);
}

int host_thread_create(pthread_t *thread, void *(*fn)(void *), void *arg)
{
	/* Not libc's own 32 and 33: setuid() waits for every thread to answer them. */
	u64 all = ~(3ull << 31), old = 0;
	struct start *s = malloc(sizeof(*s));
	pthread_attr_t attr;
	int err;

	if (!s)
		return -ENOMEM;
	*s = (struct start){ fn, arg };
	pthread_attr_init(&attr);
	pthread_attr_setstacksize(&attr, THREAD_STACK);
	host_syscall(SYS_rt_sigprocmask, SIG_SETMASK, &all, &old, 8);
	err = pthread_create(thread, &attr, thread_main, s);
	host_syscall(SYS_rt_sigprocmask, SIG_SETMASK, &old, NULL, 8);
	pthread_attr_destroy(&attr);
	if (err)
		free(s);
	return -err;
}

void host_cancel_hold(struct host_cancel *c)
{
	pthread_setcanceltype(PTHREAD_CANCEL_DEFERRED, &c->type);
	pthread_setcancelstate(PTHREAD_CANCEL_DISABLE, &c->state);
}

/* By pthread_testcancel(), since glibc's pthread_setcancelstate() forgets to make the thread's result PTHREAD_CANCELED. */
void host_cancel_release(const struct host_cancel *c)
{
	pthread_setcancelstate(c->state, NULL);
	if (unlikely(host_cancel_is_async(c)))
		pthread_testcancel();
	if (unlikely(c->type != PTHREAD_CANCEL_DEFERRED))
		pthread_setcanceltype(c->type, NULL);
}

/*
 * One page that a fork wipes: whoever finds it empty is the first in a new address
 * space. Threads and CLONE_VM children find what is there.
 */
struct mm_page {
	_Atomic u64 id;
	_Atomic u32 pid;
};

static struct mm_page *mm_page;
static struct mm_page mm_page_fallback; /* wiped by nobody: kernels before 4.14 */

static void mm_page_create(void)
{
	long p = host_syscall6(SYS_mmap, 0, PAGE_SIZE, PROT_READ | PROT_WRITE,
			       MAP_PRIVATE | MAP_ANONYMOUS, -1, 0);

	if (p < 0 && p > -4096) {
		mm_page = &mm_page_fallback;
		return;
	}
	if (host_syscall(SYS_madvise, p, PAGE_SIZE, MADV_WIPEONFORK, 0))
		mm_page = &mm_page_fallback;
	else
		mm_page = (struct mm_page *)p;
}

static u64 random_id(void)
{
	u64 id = 0;

	/* 1: GRND_NONBLOCK */
	if (host_syscall(SYS_getrandom, &id, sizeof(id), 1, 0) != sizeof(id))
		id = host_rdtsc() ^ (u64)host_syscall(SYS_getpid, 0, 0, 0, 0) << 40;
	return id | 1;
}

static struct mm_page *mm_page_get(void)
{
	static pthread_once_t once = PTHREAD_ONCE_INIT;
	u64 none = 0;

	pthread_once(&once, mm_page_create);
	if (mm_page == &mm_page_fallback &&
	    mm_page->pid != (u32)host_syscall(SYS_getpid, 0, 0, 0, 0))
		mm_page->id = 0;
	if (unlikely(!mm_page->id)) {
		mm_page->pid = host_syscall(SYS_getpid, 0, 0, 0, 0);
		__atomic_compare_exchange_n((u64 *)&mm_page->id, &none, random_id(), false,
					    __ATOMIC_SEQ_CST, __ATOMIC_SEQ_CST);
	}
	return mm_page;
}

u64 host_mm_id(void)
{
	return mm_page_get()->id;
}

bool host_mm_borrowed(void)
{
	return mm_page_get()->pid != (u32)host_syscall(SYS_getpid, 0, 0, 0, 0);
}

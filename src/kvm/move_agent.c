/* SPDX-License-Identifier: MIT */
/*
 * Moving a context between two processes. The source's process has a thread that waits on a
 * futex in the VM's file; the destination, which was sent that file's descriptor, talks to it
 * through struct move_area:
 *
 *	destination			source
 *	IDLE -> ASKED
 *					locks itself, publishes its slots: -> READY (or FAILED)
 *	compares: -> COMMIT or ABORT
 *					dies, stops its vCPUs, publishes its map: -> DONE
 *	takes the map
 *
 * 1. Every step is a compare-exchange, and each side waits with a limit: who finds the state it
 *    waited for gone has lost its turn. A destination that vanishes leaves the source as it was; a source
 *    that vanishes before COMMIT leaves the destination as it was, with EIO.
 * 2. Neither believes the other: addresses are never exchanged, and what the map says concerns the
 *    destination's guest alone.
 * 3. Both VMs are part of one move at a time (vm->moving); two that move to each other get EBUSY.
 */
#include <errno.h>
#include <stdlib.h>
#include <string.h>

#include "base/inject.h"
#include "host/host.h"
#include "host/syscall.h"
#include "kvm/move.h"

#define ANSWER_NS 2000000000ull		/* for a source to lock itself */
#define DECIDE_NS 5000000000ull		/* for a destination to compare slots */
#define STOP_NS 30000000000ull		/* for a source to stop its vCPUs */

struct move_agent {
	struct vm *vm;
	pthread_t thread;
	_Atomic u32 stop, gone;
};

static bool change_state(struct move_area *area, u32 from, u32 to)
{
	if (!atomic_compare_exchange_strong(&area->state, &from, to))
		return false;
	host_futex_wake(&area->state);
	return true;
}

/* Until the state is no longer old: the new one, or old when time is up. */
static u32 wait_state(struct move_area *area, u32 old, u64 ns)
{
	u64 deadline = host_now_ns() + ns;
	u32 state;

	while ((state = atomic_load(&area->state)) == old && host_now_ns() < deadline)
		host_futex_wait(&area->state, old, deadline);
	return state;
}

/* ---- the source --------------------------------------------------------------------- */

static int publish_slots(struct vm *vm, struct move_area *area)
{
	struct memslots *slots = atomic_load(&vm->slots);
	struct mem_attrs *attrs = atomic_load(&vm->attrs);

	if (slots->nr > ARRAY_SIZE(area->slots) || (attrs && attrs->nr > ARRAY_SIZE(area->ranges)))
		return -ENOSPC;
	for (u32 i = 0; i < slots->nr; i++)
		move_describe_slot(&area->slots[i], slots->by_gfn[i]);
	area->nr_slots = slots->nr;
	area->type = vm->type;
	return 0;
}

static void publish_attrs(struct vm *vm, struct move_area *area)
{
	struct mem_attrs *attrs = atomic_exchange(&vm->attrs, NULL);

	area->nr_ranges = attrs ? attrs->nr : 0;
	if (attrs)
		memcpy(area->ranges, attrs->ranges, attrs->nr * sizeof(attrs->ranges[0]));
	free(attrs);
}

/* lock and slots_lock held. 0: moved. */
static int give_locked(struct vm *vm, struct move_area *area)
{
	int r = atomic_load(&vm->dead) ? -EIO : publish_slots(vm, area);

	if (r)
		return r;
	if (!change_state(area, MOVE_ASKED, MOVE_READY))
		return -ECANCELED;
	if (wait_state(area, MOVE_READY, DECIDE_NS) != MOVE_COMMIT)
		return -ECANCELED;
	vm_kill(vm);
	vm_stop_vcpus(vm);
	publish_attrs(vm, area);
	return 0;
}

static int give(struct vm *vm, struct move_area *area)
{
	int r;

	if (!vm_begin_move(vm))
		return -EBUSY;
	pthread_mutex_lock(&vm->lock);
	pthread_mutex_lock(&vm->slots_lock);
	r = give_locked(vm, area);
	pthread_mutex_unlock(&vm->slots_lock);
	pthread_mutex_unlock(&vm->lock);
	if (!r)
		vm_drain_vcpus(vm);
	vm_end_move(vm);
	return r;
}

static void answer(struct vm *vm, struct move_area *area)
{
	int r = give(vm, area);

	if (!r) {
		atomic_store(&area->state, MOVE_DONE);
	} else if (r == -ECANCELED) {
		/* Aborted, or no decision in time. */
		change_state(area, MOVE_READY, MOVE_IDLE);
		change_state(area, MOVE_ABORT, MOVE_IDLE);
	} else {
		area->error = -r;
		change_state(area, MOVE_ASKED, MOVE_FAILED);
	}
	host_futex_wake(&area->state);
}

static void *agent_thread(void *arg)
{
	struct move_agent *agent = arg;
	struct move_area *area = agent->vm->move_area;

	while (!atomic_load(&agent->stop)) {
		u32 state = atomic_load(&area->state);

		if (state == MOVE_ASKED)
			answer(agent->vm, area);
		else
			host_futex_wait(&area->state, state, ~0ull);
	}
	atomic_store(&agent->gone, 1);
	return NULL;
}

int move_agent_start(struct vm *vm)
{
	struct move_agent *agent;
	int r;

	if (vm->move_agent || !vm->move_area)
		return 0;
	agent = calloc(1, sizeof(*agent));
	if (!agent)
		return -ENOMEM;
	agent->vm = vm;
	r = host_thread_create(&agent->thread, agent_thread, agent);
	if (r) {
		free(agent);
		return r;
	}
	vm->move_agent = agent;
	return 0;
}

void move_agent_stop(struct vm *vm)
{
	struct move_agent *agent = vm->move_agent;

	if (!agent)
		return;
	atomic_store(&agent->stop, 1);
	/* A wake between its look at stop and its wait is lost: again, then. */
	while (!atomic_load(&agent->gone)) {
		host_futex_wake(&vm->move_area->state);
		host_syscall(SYS_sched_yield, 0, 0, 0, 0);
	}
	pthread_join(agent->thread, NULL);
	free(agent);
	vm->move_agent = NULL;
}

/* ---- the destination ------------------------------------------------------------------- */

/* slots_lock held. */
static int compare_foreign(struct vm *dst, struct move_area *area)
{
	struct memslots *slots = atomic_load(&dst->slots);

	if (*(volatile u64 *)&area->type != dst->type || *(volatile u32 *)&area->nr_slots != slots->nr)
		return -EINVAL;
	for (u32 i = 0; i < slots->nr; i++) {
		struct move_slot ours, theirs = area->slots[i];

		move_describe_slot(&ours, slots->by_gfn[i]);
		if (!move_same_slot(&ours, &theirs))
			return -EINVAL;
	}
	return inject_value(INJECT_MOVE_CTX_STAGE2) ? -ENOMEM : 0;
}

static int take_attrs(struct vm *dst, struct move_area *area)
{
	u32 nr = *(volatile u32 *)&area->nr_ranges;
	struct mem_attrs *attrs = NULL, *old;
	int err;

	if (nr > ARRAY_SIZE(area->ranges))
		return -EIO;
	if (nr) {
		attrs = mem_attrs_create(area->ranges, nr, &err);
		if (!attrs)
			return err;
	}
	old = atomic_exchange(&dst->attrs, attrs);
	vm_sync_vcpus(dst, KVM_REQ_TLB_FLUSH);
	free(old);
	dst->stat.ctx_moves++;
	return 0;
}

static int take_locked(struct vm *dst, struct move_area *area)
{
	int r = compare_foreign(dst, area);

	if (r) {
		/* Not before the source is free for another move. */
		if (change_state(area, MOVE_READY, MOVE_ABORT))
			wait_state(area, MOVE_ABORT, ANSWER_NS);
		return r;
	}
	if (!change_state(area, MOVE_READY, MOVE_COMMIT))
		return -EIO;
	if (wait_state(area, MOVE_COMMIT, STOP_NS) != MOVE_DONE)
		return -EIO;
	return take_attrs(dst, area);
}

static int ask(struct move_area *area)
{
	s32 error;

	/* Who asked before and failed may have left its answer behind. */
	if (!change_state(area, MOVE_IDLE, MOVE_ASKED) && !change_state(area, MOVE_FAILED, MOVE_ASKED))
		return atomic_load(&area->state) == MOVE_DONE ? -EIO : -EBUSY;
	switch (wait_state(area, MOVE_ASKED, ANSWER_NS)) {
	case MOVE_READY:
		return 0;
	case MOVE_FAILED:
		error = *(volatile s32 *)&area->error;
		change_state(area, MOVE_FAILED, MOVE_IDLE);
		return error == EBUSY || error == ENOSPC ? -error : -EIO;
	default:
		change_state(area, MOVE_ASKED, MOVE_IDLE);
		return -EIO;
	}
}

int vm_move_context_foreign(struct vm *dst, struct move_area *area)
{
	int r;

	if (!vm_begin_move(dst))
		return -EBUSY;
	r = ask(area);
	if (!r) {
		pthread_mutex_lock(&dst->slots_lock);
		r = take_locked(dst, area);
		pthread_mutex_unlock(&dst->slots_lock);
	}
	vm_end_move(dst);
	return r;
}

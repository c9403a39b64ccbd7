/* SPDX-License-Identifier: MIT */
/*
 * What a fault of ours becomes. Two kinds of code of ours may fault: the
 * accessors of host/access.h, known by their rows in the section
 * softkvm_extable, and generated code, known by registered ranges. Every other
 * fault is the client's.
 *
 * 1. Look-ups run in signal handlers: the table is sorted once, before the
 *    broker is installed, and never changes; range nodes are never freed.
 * 2. A range node is published with its fn last and withdrawn with fn first, so
 *    that a reader sees either nothing or a consistent node. Nobody withdraws
 *    a range that a thread may still be executing.
 * 3. Only faults the CPU raised count (si_code > 0): a kill(2) that happens to
 *    hit an accessor is the client's business.
 */
#include <stdlib.h>

#include "host/access.h"
#include "host/host.h"
#include "host/signal_internal.h"

_Thread_local volatile bool host_kicked;

extern const struct host_extable_row __start_softkvm_extable[]
	__attribute__((visibility("hidden")));
extern const struct host_extable_row __stop_softkvm_extable[]
	__attribute__((visibility("hidden")));

struct fixup {
	u64 insn, target;
};

static struct fixup *fixups;
static size_t nr_fixups;

struct code_range {
	_Atomic(uintptr_t) start, end;
	_Atomic(host_code_fault_fn) fn;
	struct code_range *next;
};

static struct code_range *_Atomic code_ranges;
static pthread_mutex_t code_ranges_lock = PTHREAD_MUTEX_INITIALIZER;

static int fixup_cmp(const void *a, const void *b)
{
	const struct fixup *x = a, *y = b;

	return x->insn < y->insn ? -1 : x->insn > y->insn;
}

void fault_init(void)
{
	size_t n = __stop_softkvm_extable - __start_softkvm_extable;
	struct fixup *table = calloc(n + 1, sizeof(*table));

	if (!table)
		return; /* then fixup_find() goes through the rows */
	for (size_t i = 0; i < n; i++) {
		const struct host_extable_row *row = &__start_softkvm_extable[i];

		table[i].insn = (u64)&row->insn + row->insn;
		table[i].target = (u64)&row->fixup + row->fixup;
	}
	qsort(table, n, sizeof(*table), fixup_cmp);
	fixups = table;
	nr_fixups = n;
}

static u64 fixup_find(u64 pc)
{
	size_t lo = 0, hi = nr_fixups;
	const struct host_extable_row *row;

	if (unlikely(!fixups))
		for (row = __start_softkvm_extable; row < __stop_softkvm_extable; row++)
			if ((u64)&row->insn + row->insn == pc)
				return (u64)&row->fixup + row->fixup;

	while (lo < hi) {
		size_t mid = (lo + hi) / 2;

		if (fixups[mid].insn == pc)
			return fixups[mid].target;
		if (fixups[mid].insn < pc)
			lo = mid + 1;
		else
			hi = mid;
	}
	return 0;
}

bool host_register_code_fault(const void *start, const void *end, host_code_fault_fn fn)
{
	struct code_range *r, *spare = NULL;

	pthread_mutex_lock(&code_ranges_lock);
	for (r = code_ranges; r; r = r->next) {
		if (!r->fn)
			spare = r;
		else if (r->start == (uintptr_t)start)
			break;
	}
	if (r) {
		r->fn = NULL;
		spare = r;
	}
	if (fn && !spare) {
		spare = calloc(1, sizeof(*spare));
		if (spare) {
			spare->next = code_ranges;
			code_ranges = spare;
		}
	}
	if (fn && spare) {
		spare->start = (uintptr_t)start;
		spare->end = (uintptr_t)end;
		spare->fn = fn;
	}
	pthread_mutex_unlock(&code_ranges_lock);
	return !fn || spare;
}

static host_code_fault_fn code_range_find(u64 pc)
{
	for (struct code_range *r = code_ranges; r; r = r->next) {
		host_code_fault_fn fn = r->fn;

		if (fn && pc >= r->start && pc < r->end)
			return fn;
	}
	return NULL;
}

bool fault_resolve(int sig, siginfo_t *info, ucontext_t *uc)
{
	greg_t *pc = &uc->uc_mcontext.gregs[REG_RIP];
	host_code_fault_fn fn;
	u64 target;

	if (info->si_code <= 0)
		return false;
	/* Poison in the client's memory: the client decides, as it does under KVM. */
	if (sig == SIGBUS && (info->si_code == BUS_MCEERR_AR || info->si_code == BUS_MCEERR_AO))
		return false;
	target = fixup_find(*pc);
	if (target) {
		*pc = target;
		return true;
	}
	fn = code_range_find(*pc);
	return fn && fn(sig, info, uc);
}

void fault_abort_wait(ucontext_t *uc)
{
	greg_t *pc = &uc->uc_mcontext.gregs[REG_RIP];

	if (*pc >= (greg_t)host_futex_begin && *pc <= (greg_t)host_futex_syscall)
		*pc = (greg_t)host_futex_eintr;
}

bool fault_abort_access(siginfo_t *info, ucontext_t *uc)
{
	greg_t *pc = &uc->uc_mcontext.gregs[REG_RIP];
	u64 target = fixup_find(*pc);
	host_code_fault_fn fn;

	if (target) {
		*pc = target;
		host_kicked = true;
		return true;
	}
	fn = code_range_find(*pc);
	return fn && fn(SIGURG, info, uc);
}

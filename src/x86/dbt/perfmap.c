/* SPDX-License-Identifier: MIT */
/*
 * SOFTKVM_PERF_MAP=1: /tmp/perf-PID.map, where perf(1) looks for the names of generated code.
 * SOFTKVM_PERF_MAP=DIRECTORY: the same file there, to be read by other means.
 * Two lines a block: its straight path, and what lies off it. A line is for good: after a flush of the code cache its addresses are
 * named again, and perf takes one of the two; SOFTKVM_DBT_CACHE makes flushes rare.
 */
#include <limits.h>
#include <pthread.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <unistd.h>

#include "x86/dbt/watch.h"

static char path[PATH_MAX]; /* empty: not asked for. Written once, under `once`. */
static pthread_once_t once = PTHREAD_ONCE_INIT;

static void parse(void)
{
	const char *s = getenv("SOFTKVM_PERF_MAP");
	char name[PATH_MAX];

	if (!s || !*s || !strcmp(s, "0"))
		return;
	if (snprintf(name, sizeof(name), "%s/perf-%d.map", strcmp(s, "1") ? s : "/tmp", (int)getpid()) >= PATH_MAX)
		return;
	if (report_create(name, "SOFTKVM_PERF_MAP"))
		strcpy(path, name);
}

static bool wanted(void)
{
	pthread_once(&once, parse);
	return *path;
}

void perfmap_common(const struct dbt *d)
{
	char line[100];

	if (likely(!wanted()))
		return;
	report_append(path, line, snprintf(line, sizeof(line), "%lx %x softkvm_common\n", (unsigned long)d->mem.rx,
					   d->code_start));
}

static const char *context_name(const struct dbt_block *b)
{
	return b->ctx >= TLB_USER ? "guest_user" : "guest_kernel";
}

void perfmap_block(const struct dbt *d, const struct dbt_block *b)
{
	const unsigned long long va = b->page + b->va, rx = (unsigned long)d->mem.rx;
	u32 begin = dbt_block_begin(b);
	char lines[200];

	if (likely(!wanted()))
		return;
	report_append(path, lines,
		      snprintf(lines, sizeof(lines), "%llx %x %s_0x%llx\n%llx %x %s_0x%llx_cold\n", rx + begin,
			       b->code_end - begin, context_name(b), va, rx + b->cold, b->cold_end - b->cold, context_name(b), va));
}

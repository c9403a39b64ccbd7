/* SPDX-License-Identifier: MIT */
/*
 * softkvm stat: what the VMs of running processes do, from their own counters
 * (kvm/stats_page.h). The VMs do not notice. Needs the right to look into the processes: they are the same
 * user's, and kernel.yama.ptrace_scope is 0 or the looker is root.
 */
#include "cli/cli.h"

#include <ctype.h>
#include <dirent.h>
#include <errno.h>
#include <getopt.h>
#include <linux/kvm.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/uio.h>
#include <time.h>
#include <unistd.h>

#include "kvm/stats_page.h"
#include "kvm/trace_format.h"

#define MAX_VCPUS 4096
#define MAX_DESCS 512
#define MAX_ROWS 1024

struct row {
	char name[64];
	u64 value, before;	/* now, and at the last look */
	bool instant;		/* a state, not a count of events */
};

struct table {
	struct row rows[MAX_ROWS];
	unsigned nr, vms, vcpus, hidden, forbidden;
};

static bool peek(pid_t pid, u64 addr, void *buf, size_t len)
{
	struct iovec local = { buf, len }, remote = { (void *)(uintptr_t)addr, len };

	return process_vm_readv(pid, &local, 1, &remote, 1, 0) == (ssize_t)len;
}

/* ---- counting ------------------------------------------------------------------------- */

static void add(struct table *t, const char *name, u64 value, bool instant)
{
	unsigned i = 0;

	while (i < t->nr && strcmp(t->rows[i].name, name))
		i++;
	if (i == MAX_ROWS)
		return;
	if (i == t->nr) {
		t->rows[t->nr++] = (struct row){ .instant = instant };
		snprintf(t->rows[i].name, sizeof(t->rows[i].name), "%s", name);
	}
	t->rows[i].value += value;
}

/* The values of one object: count what its descriptors describe. */
static void add_object(struct table *t, const struct stats_block *b, const u8 *descs, const u8 *values)
{
	for (u32 i = 0; i < b->nr_descs; i++) {
		struct kvm_stats_desc d;
		char name[64];

		memcpy(&d, descs + (size_t)i * b->desc_size, sizeof(d));
		for (u32 k = 0; k < d.size; k++) {
			const char *reason = exit_reason_name(k);
			u64 value;

			if ((u64)d.offset + (k + 1) * 8ull > b->values_size)
				break;
			memcpy(&value, values + d.offset + k * 8, 8);
			if (!value)
				continue;
			snprintf(name, sizeof(name), "%.*s%s%s%s", (int)min(b->desc_size - sizeof(d), sizeof(name) / 2),
				 (const char *)descs + (size_t)i * b->desc_size + sizeof(d), d.size > 1 ? "(" : "",
				 d.size == 1 ? "" : reason ? reason + strlen("KVM_EXIT_") : "other", d.size > 1 ? ")" : "");
			add(t, name, value, (d.flags & KVM_STATS_TYPE_MASK) != KVM_STATS_TYPE_CUMULATIVE && d.size == 1);
		}
	}
}

/* The process's description of itself is only believed as far as it stays in bounds. */
static u8 *read_descs(pid_t pid, const struct stats_block *b)
{
	u8 *descs;

	if (b->nr_descs > MAX_DESCS || b->desc_size <= sizeof(struct kvm_stats_desc) || b->desc_size > 256 ||
	    b->values_size > 65536)
		return NULL;
	descs = calloc(b->nr_descs + 1, b->desc_size);
	if (descs && !peek(pid, b->descs, descs, (size_t)b->nr_descs * b->desc_size)) {
		free(descs);
		descs = NULL;
	}
	/* Names end. */
	for (u32 i = 0; descs && i < b->nr_descs; i++)
		descs[(size_t)(i + 1) * b->desc_size - 1] = '\0';
	return descs;
}

static void add_vm(struct table *t, pid_t pid, const struct stats_page *p, u64 vm, const u8 *vm_descs,
		   const u8 *vcpu_descs, u8 *values)
{
	u64 array, vcpu;
	u32 nr;

	if (!peek(pid, vm + p->vm.values, values, p->vm.values_size))
		return;
	add_object(t, &p->vm, vm_descs, values);
	t->vms++;
	if (!peek(pid, vm + p->vm_nr_vcpus, &nr, sizeof(nr)) || !peek(pid, vm + p->vm_vcpus, &array, sizeof(array)))
		return;
	for (u32 i = 0; i < nr && i < MAX_VCPUS; i++) {
		if (!peek(pid, array + i * 8ull, &vcpu, sizeof(vcpu)) ||
		    !peek(pid, vcpu + p->vcpu.values, values, p->vcpu.values_size))
			break;
		add_object(t, &p->vcpu, vcpu_descs, values);
		t->vcpus++;
	}
}

static void add_page(struct table *t, pid_t pid, const struct stats_page *p)
{
	u8 *vm_descs = read_descs(pid, &p->vm), *vcpu_descs = read_descs(pid, &p->vcpu);
	u8 *values = malloc(65536);

	for (unsigned i = 0; vm_descs && vcpu_descs && values && i < STATS_PAGE_VMS; i++)
		if (p->vms[i])
			add_vm(t, pid, p, p->vms[i], vm_descs, vcpu_descs, values);
	t->hidden += p->hidden;
	free(vm_descs);
	free(vcpu_descs);
	free(values);
}

/* ---- finding --------------------------------------------------------------------------- */

static void add_process(struct table *t, pid_t pid)
{
	char path[64], *line = NULL;
	size_t size = 0;
	FILE *maps;

	snprintf(path, sizeof(path), "/proc/%d/maps", (int)pid);
	maps = fopen(path, "re");
	while (maps && getline(&line, &size, maps) > 0) {
		struct stats_page p;
		u64 start;

		if (!strstr(line, "/memfd:" STATS_PAGE_NAME " "))
			continue;
		start = strtoull(line, NULL, 16);
		if (!peek(pid, start, &p, sizeof(p)))
			t->forbidden++;
		else if (p.magic == STATS_PAGE_MAGIC && p.size == sizeof(p))
			add_page(t, pid, &p);
	}
	if (maps)
		fclose(maps);
	free(line);
}

static void look(struct table *t, pid_t only)
{
	DIR *proc = only ? NULL : opendir("/proc");
	struct dirent *e;

	for (unsigned i = 0; i < t->nr; i++) {
		t->rows[i].before = t->rows[i].value;
		t->rows[i].value = 0;
	}
	t->vms = t->vcpus = t->hidden = t->forbidden = 0;
	if (only)
		add_process(t, only);
	while (proc && (e = readdir(proc)))
		if (isdigit((unsigned char)e->d_name[0]))
			add_process(t, atoi(e->d_name));
	if (proc)
		closedir(proc);
}

/* ---- showing ----------------------------------------------------------------------------- */

/* Rows of VMs that have ended count backwards: no rate. */
static double rate(const struct row *r, double seconds)
{
	return r->instant || seconds <= 0 || r->value < r->before ? 0 : (r->value - r->before) / seconds;
}

static int by_name(const void *a, const void *b)
{
	return strcmp(((const struct row *)a)->name, ((const struct row *)b)->name);
}

static void show(struct table *t, double seconds, bool clear)
{
	qsort(t->rows, t->nr, sizeof(t->rows[0]), by_name);
	if (clear)
		fputs("\033[H\033[J", stdout);
	printf("softkvm stat: %u VMs, %u vCPUs", t->vms, t->vcpus);
	if (t->hidden)
		printf(" (and %u VMs not shown)", t->hidden);
	printf("\n%-52s %16s %12s\n", "Event", "Total", "Per second");
	for (unsigned i = 0; i < t->nr; i++) {
		const struct row *r = &t->rows[i];

		if (!r->value)
			continue;
		printf("%-52s %16llu", r->name, (unsigned long long)r->value);
		if (seconds > 0 && !r->instant)
			printf(" %12.0f", rate(r, seconds));
		putchar('\n');
	}
	if (t->forbidden)
		printf("%u processes with VMs may not be looked into (kernel.yama.ptrace_scope, or another user's).\n",
		       t->forbidden);
	fflush(stdout);
}

static double now(void)
{
	struct timespec ts;

	clock_gettime(CLOCK_MONOTONIC, &ts);
	return ts.tv_sec + ts.tv_nsec / 1e9;
}

static int watch(double interval, long count, pid_t pid)
{
	struct table *t = calloc(1, sizeof(*t));
	bool clear = isatty(STDOUT_FILENO) && count != 1;
	double last = 0;
	int r = 1;

	if (!t) {
		complain("out of memory");
		return 1;
	}
	for (long i = 0; !count || i < count; i++) {
		double time;

		if (i)
			usleep(interval * 1e6);
		time = now();
		look(t, pid);
		show(t, last ? time - last : 0, clear);
		last = time;
		if (t->vms)
			r = 0;
		if (ferror(stdout))
			break;
	}
	if (r)
		complain("no running VM found%s", t->forbidden ? " that may be looked into" : "");
	free(t);
	return r;
}

static const char usage[] =
"Usage: softkvm stat [-1] [-i SECONDS] [-n COUNT] [-p PID]\n"
"       softkvm stat [--] PROGRAM [ARGUMENT]...\n"
"\n"
"Without PROGRAM: a table of what the running VMs under SoftKVM do, all together,\n"
"again and again. With PROGRAM: run it under softkvm, and print the counters of each\n"
"of its VMs when that ends.\n"
"\n"
"  -1          once\n"
"  -i SECONDS  time between two tables (default: 1)\n"
"  -n COUNT    number of tables (default: for ever)\n"
"  -p PID      only the VMs of this process\n";

static int usage_error(const char *what)
{
	if (what)
		complain("%s", what);
	fputs("Try \"softkvm stat --help\".\n", stderr);
	return EXIT_USAGE;
}

int stat_main(int argc, char **argv)
{
	static const struct option options[] = { { "help", no_argument, NULL, 'h' }, { NULL, 0, NULL, 0 } };
	double interval = 1;
	long count = 0, pid = 0;
	char *end = NULL;
	int c;

	optind = 0;
	while ((c = getopt_long(argc, argv, "+1i:n:p:h", options, NULL)) != -1) {
		switch (c) {
		case '1':
			count = 1;
			continue;
		case 'i':
			interval = strtod(optarg, &end);
			if (!(interval >= 0.01 && interval <= 86400))
				return usage_error("-i takes a number of seconds");
			break;
		case 'n':
			count = strtol(optarg, &end, 10);
			if (count < 1)
				return usage_error("-n takes a number of tables");
			break;
		case 'p':
			pid = strtol(optarg, &end, 10);
			if (pid < 1)
				return usage_error("-p takes a process number");
			break;
		case 'h':
			fputs(usage, stdout);
			return 0;
		default:
			return usage_error(NULL);
		}
		if (*end)
			return usage_error("a number was expected");
	}
	if (optind == argc)
		return watch(interval, count, pid);
	setenv("SOFTKVM_STATS", "1", 1);
	return program_run(argv + optind, false, false);
}

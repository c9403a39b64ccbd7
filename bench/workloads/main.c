/* SPDX-License-Identifier: MIT */
/*
 * work NAME N: one workload of ours. The same static binary runs on the host and in guests.
 *
 * Descriptor 3, if it is open, is the way to bench/run.py: "B" before the part that counts and
 * "E CPU-NS CHECKSUM OPS" after it, each answered by a line, so that the host can read its own
 * clocks while the guest waits. Otherwise the result goes to the terminal.
 */
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/resource.h>
#include <time.h>
#include <unistd.h>

#include "work.h"

#define WORK(name) uint64_t work_##name(long n);
#include "list.def"
#undef WORK

static const struct work list[] = {
#define WORK(name) { #name, work_##name },
#include "list.def"
#undef WORK
};

#define CHANNEL 3
static uint64_t started, spent;
static long operations;
static int channel;

static void answer(void)
{
	char c;

	while (read(CHANNEL, &c, 1) == 1)
		if (c == '\n')
			return;
	exit(3);
}

/* Of this process and of the children it has waited for. */
static uint64_t cpu_ns(void)
{
	struct rusage children;
	struct timespec ts;

	clock_gettime(CLOCK_PROCESS_CPUTIME_ID, &ts);
	getrusage(RUSAGE_CHILDREN, &children);
	return ts.tv_sec * 1000000000ull + ts.tv_nsec +
	       (children.ru_utime.tv_sec + children.ru_stime.tv_sec) * 1000000000ull +
	       (children.ru_utime.tv_usec + children.ru_stime.tv_usec) * 1000ull;
}

void work_begin(void)
{
	if (channel) {
		if (write(CHANNEL, "B\n", 2) != 2)
			work_fail("channel");
		answer();
	}
	started = cpu_ns();
}

void work_end(long ops)
{
	spent = cpu_ns() - started;
	operations = ops;
}

void work_fail(const char *what)
{
	perror(what);
	exit(1);
}

void *work_alloc(size_t size)
{
	void *p = calloc(1, size);

	if (!p)
		work_fail("memory");
	return p;
}

void *work_read(const char *path, size_t *size)
{
	FILE *f = fopen(path, "r");
	char *data;

	if (!f || fseek(f, 0, SEEK_END))
		work_fail(path);
	*size = ftell(f);
	rewind(f);
	data = work_alloc(*size + 1);
	if (fread(data, 1, *size, f) != *size)
		work_fail(path);
	fclose(f);
	return data;
}

int main(int argc, char **argv)
{
	char line[100];
	uint64_t sum;
	int n;

	channel = write(CHANNEL, "", 0) == 0;
	for (size_t i = 0; argc == 3 && i < sizeof(list) / sizeof(list[0]); i++) {
		if (strcmp(argv[1], list[i].name))
			continue;
		sum = list[i].run(atol(argv[2]));
		n = snprintf(line, sizeof(line), "E %lu %lx %ld\n", spent, sum, operations);
		if (write(channel ? CHANNEL : 1, line, n) != n)
			work_fail("channel");
		if (channel)
			answer();
		return 0;
	}
	fprintf(stderr, "usage: work NAME N, with NAME one of:");
	for (size_t i = 0; i < sizeof(list) / sizeof(list[0]); i++)
		fprintf(stderr, " %s", list[i].name);
	fprintf(stderr, "\n");
	return 2;
}

/* SPDX-License-Identifier: MIT */
/* Work that grows: memory, processes, code (bench/scale.py). */
#include <stdlib.h>
#include <string.h>
#include <sys/mman.h>
#include <sys/resource.h>
#include <sys/wait.h>
#include <unistd.h>

#include "work.h"

/* One access each in as many pages as fit into N MiB, in random order. */
uint64_t work_span(long n)
{
	const long accesses = 1000000;
	size_t size = (size_t)n << 20;
	uint64_t state = 19, sum = 0;
	char *p = mmap(NULL, size, PROT_READ | PROT_WRITE, MAP_PRIVATE | MAP_ANONYMOUS | MAP_NORESERVE, -1, 0);

	if (p == MAP_FAILED)
		work_fail("mmap");
	for (size_t at = 0; at < size; at += 4096)
		p[at] = at >> 12;
	work_begin();
	for (long i = 0; i < accesses; i++) {
		size_t page = rnd(&state) % (size >> 12);

		sum += p[page << 12]++;
	}
	work_end(accesses);
	return sum;
}

/* N processes in a ring pass a byte on; about 20000 hops in all. */
uint64_t work_ring(long n)
{
	struct rlimit files = { 4096, 4096 };
	long rounds = 20000 / n + 1;
	int first[2], in, status;
	char c = 1;

	setrlimit(RLIMIT_NOFILE, &files);
	if (pipe(first))
		work_fail("pipe");
	in = first[0];
	for (long i = 1; i < n; i++) {
		int next[2];

		if (pipe(next))
			work_fail("pipe");
		switch (fork()) {
		case -1:
			work_fail("fork");
		case 0:
			close(first[1]);
			close(next[0]);
			while (read(in, &c, 1) == 1)
				if (write(next[1], &c, 1) != 1)
					break;
			_exit(0);
		}
		close(in);
		close(next[1]);
		in = next[0];
	}
	work_begin();
	for (long i = 0; i < rounds; i++)
		if (write(first[1], &c, 1) != 1 || read(in, &c, 1) != 1)
			work_fail("ring");
	close(first[1]);
	while (wait(&status) > 0)
		;
	work_end(rounds * n);
	return c;
}

/* N KiB of functions of 64 bytes, no two alike, called in an order that is not theirs. */
#define FUNCTION 64

static unsigned char *functions(long n)
{
	size_t size = (size_t)n << 10;
	unsigned char *code = mmap(NULL, size, PROT_READ | PROT_WRITE, MAP_PRIVATE | MAP_ANONYMOUS, -1, 0);

	if (code == MAP_FAILED)
		work_fail("mmap");
	for (size_t at = 0; at < size; at += FUNCTION) {
		uint32_t x = at * 2654435761u | 1;
		unsigned char *p = code + at, head[] = {
			0x48, 0x89, 0xf8,			/* mov %rdi, %rax */
			0x48, 0x35, x, x >> 8, x >> 16, 0,	/* xor $.., %rax */
			0x48, 0x03, 0x46, (x >> 20 & 7) * 8,	/* add ..(%rsi), %rax */
			0x48, 0x89, 0x46, (x >> 23 & 7) * 8,	/* mov %rax, ..(%rsi) */
			0xa8, 0x10,				/* test $16, %al */
			0x74, 0x08,				/* je over the next two */
			0x48, 0xff, 0xc0,			/* inc %rax */
			0x48, 0xc1, 0xc0, x >> 26 | 1, 0x90,	/* rol $.., %rax; nop */
			0x48, 0x33, 0x46, (x >> 17 & 7) * 8,	/* xor ..(%rsi), %rax */
			0xc3,					/* ret */
		};

		memcpy(p, head, sizeof(head));
		memset(p + sizeof(head), 0xcc, FUNCTION - sizeof(head));
	}
	if (mprotect(code, size, PROT_READ | PROT_EXEC))
		work_fail("mprotect");
	return code;
}

static uint64_t call_all(const unsigned char *code, long n, uint64_t sum)
{
	static uint64_t data[8] = { 1, 2, 3, 4, 5, 6, 7, 8 };
	size_t count = ((size_t)n << 10) / FUNCTION, at = 0;

	/* 97 divides no power of two: every function once */
	for (size_t i = 0; i < count; i++, at = (at + 97) % count)
		sum = ((uint64_t (*)(uint64_t x, uint64_t *data))(code + at * FUNCTION))(sum, data);
	return sum;
}

#define PASSES 4

uint64_t work_code_first(long n)
{
	unsigned char *code = functions(n);
	uint64_t sum;

	work_begin();
	sum = call_all(code, n, 1);
	work_end(n * 1024 / FUNCTION);
	return sum;
}

uint64_t work_code_again(long n)
{
	unsigned char *code = functions(n);
	uint64_t sum = call_all(code, n, 1);

	work_begin();
	for (unsigned i = 0; i < PASSES; i++)
		sum = call_all(code, n, sum);
	work_end(n * 1024 / FUNCTION * PASSES);
	return sum;
}

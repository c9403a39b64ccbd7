/* SPDX-License-Identifier: MIT */
/*
 * A small static helper inside the test guest:
 *	guest-tool cmos get|set		a CMOS byte that survives a reset (tells generations apart)
 *	guest-tool mips			millions of guest instructions per second, by kind of code
 */
#include <stdint.h>
#include <stdio.h>
#include <string.h>
#include <sys/io.h>
#include <time.h>

#define CMOS_BYTE 0x70
#define CMOS_MAGIC 0x5a

static int cmos(const char *what)
{
	if (ioperm(0x70, 2, 1)) {
		perror("ioperm");
		return 2;
	}
	outb(CMOS_BYTE, 0x70);
	if (!strcmp(what, "set")) {
		outb(CMOS_MAGIC, 0x71);
		return 0;
	}
	return inb(0x71) == CMOS_MAGIC ? 0 : 1;
}

static double now(void)
{
	struct timespec ts;

	clock_gettime(CLOCK_MONOTONIC, &ts);
	return ts.tv_sec + ts.tv_nsec / 1e9;
}

static uint64_t table[4096];

/* Each runs n rounds of a loop whose length in instructions is known, and returns it. */
static unsigned alu(uint64_t n)
{
	asm volatile("1: add $3, %%rax; xor %%rax, %%rcx; lea 5(%%rcx,%%rax,2), %%rdx; shr $3, %%rdx;"
		     "   sub %%rdx, %%rax; and $0xffff, %%ecx; dec %0; jnz 1b"
		     : "+r"(n) : : "rax", "rcx", "rdx", "cc");
	return 8;
}

static unsigned memory(uint64_t n)
{
	asm volatile("1: mov %0, %%rax; and $4095, %%eax; mov (%1,%%rax,8), %%rcx; add $1, %%rcx;"
		     "   mov %%rcx, (%1,%%rax,8); movzbl 3(%1,%%rax,8), %%edx; cmp %%edx, %%ecx;"
		     "   js 2f; dec %0; jnz 1b; 2:"
		     : "+r"(n) : "r"(table) : "rax", "rcx", "rdx", "cc", "memory");
	return 10;
}

static unsigned calls(uint64_t n)
{
	asm volatile("jmp 1f; 3: push %%rbx; mov %%rax, %%rbx; test %%rbx, %%rbx; pop %%rbx; ret;"
		     "1: call 3b; inc %%eax; dec %0; jnz 1b"
		     : "+r"(n) : : "rax", "rbx", "cc", "memory");
	return 9;
}

static unsigned vector(uint64_t n)
{
	asm volatile("1: movdqu (%1), %%xmm0; paddd %%xmm0, %%xmm1; pshufb %%xmm1, %%xmm0;"
		     "   mulpd %%xmm0, %%xmm2; movdqu %%xmm0, 64(%1); dec %0; jnz 1b"
		     : "+r"(n) : "r"(table) : "xmm0", "xmm1", "xmm2", "cc", "memory");
	return 7;
}

static int mips(void)
{
	static const struct {
		const char *name;
		unsigned (*fn)(uint64_t n);
	} kinds[] = { { "alu", alu }, { "memory", memory }, { "calls", calls }, { "vector", vector } };
	double total = 0, instructions = 0;

	for (unsigned i = 0; i < sizeof(kinds) / sizeof(kinds[0]); i++) {
		uint64_t n = 100000;
		double t = 0;
		unsigned length = 0;

		while (t < 0.3) { /* long enough to time */
			double start = now();

			n *= 2;
			length = kinds[i].fn(n);
			t = now() - start;
		}
		total += t;
		instructions += (double)n * length;
		printf("mips %s %.1f\n", kinds[i].name, n * length / t / 1e6);
	}
	printf("mips all %.1f\n", instructions / total / 1e6);
	return 0;
}

int main(int argc, char **argv)
{
	if (argc == 3 && !strcmp(argv[1], "cmos"))
		return cmos(argv[2]);
	if (argc == 2 && !strcmp(argv[1], "mips"))
		return mips();
	fprintf(stderr, "usage: guest-tool cmos get|set | mips\n");
	return 2;
}

/* SPDX-License-Identifier: MIT */
/*
 * Memory ordering between vCPUs: what x86-TSO forbids must not be seen. Message passing, load buffering,
 * store buffering with fences, independent reads of independent writes, coherence, and locked increments, on 2 to 4
 * vCPUs, each round on words of its own. What TSO allows (store buffering without fences) is counted and not judged.
 */
#include <pthread.h>

#include "both.h"

#define CODE 0x100000u
#define MEM (16u << 20)
#define ROUND 0x200000u		/* a line per round: x at 0, y at 64, results of vCPU n at 128 + 16 * n */
#define LINE 256u
#define ROUNDS 10000u
#define GATE 0x1f0000u		/* how many vCPUs have come, counted up by each, each round */
#define VCPUS 4

/*
 * rdi = the round's line, ebp = what GATE must reach, r15d = number of vCPUs. After every 100 rounds all meet:
 * each adds one, with a locked increment, and waits for the others.
 */
#define PROGRAM(body)                                                                   \
	"mov $0x200000, %edi; mov $0x1f0000, %esi; xor %ebp, %ebp; mov $100, %r12d\n" \
	"1: mov $100, %r13d; add %r15d, %ebp; lock incl (%rsi)\n"                                        \
	"2: mov (%rsi), %eax; cmp %ebp, %eax; jae 3f; pause; jmp 2b\n"                  \
	"3: " body "\n"                                                                 \
	"add $256, %rdi; dec %r13d; jnz 3b; dec %r12d; jnz 1b; hlt"

GUEST_CODE(mp0, PROGRAM("movl $1, (%rdi); movl $1, 64(%rdi)"));
GUEST_CODE(mp1, PROGRAM("mov 64(%rdi), %eax; mov (%rdi), %ecx; mov %eax, 144(%rdi); mov %ecx, 148(%rdi)"));
GUEST_CODE(lb0, PROGRAM("mov (%rdi), %eax; movl $1, 64(%rdi); mov %eax, 128(%rdi)"));
GUEST_CODE(lb1, PROGRAM("mov 64(%rdi), %eax; movl $1, (%rdi); mov %eax, 144(%rdi)"));
GUEST_CODE(sb0, PROGRAM("movl $1, (%rdi); mov 64(%rdi), %eax; mov %eax, 128(%rdi)"));
GUEST_CODE(sb1, PROGRAM("movl $1, 64(%rdi); mov (%rdi), %eax; mov %eax, 144(%rdi)"));
GUEST_CODE(sbf0, PROGRAM("movl $1, (%rdi); mfence; mov 64(%rdi), %eax; mov %eax, 128(%rdi)"));
GUEST_CODE(sbf1, PROGRAM("movl $1, 64(%rdi); mfence; mov (%rdi), %eax; mov %eax, 144(%rdi)"));
GUEST_CODE(sbx0, PROGRAM("mov $1, %eax; xchg %eax, (%rdi); mov 64(%rdi), %eax; mov %eax, 128(%rdi)"));
GUEST_CODE(sbx1, PROGRAM("mov $1, %eax; lock xadd %eax, 64(%rdi); mov (%rdi), %eax; mov %eax, 144(%rdi)"));
GUEST_CODE(w0, PROGRAM("movl $1, (%rdi)"));
GUEST_CODE(w1, PROGRAM("movl $1, 64(%rdi)"));
GUEST_CODE(r2, PROGRAM("mov (%rdi), %eax; mov 64(%rdi), %ecx; mov %eax, 160(%rdi); mov %ecx, 164(%rdi)"));
GUEST_CODE(r3, PROGRAM("mov 64(%rdi), %eax; mov (%rdi), %ecx; mov %eax, 176(%rdi); mov %ecx, 180(%rdi)"));
GUEST_CODE(co0, PROGRAM("movl $1, (%rdi); movl $2, (%rdi)"));
GUEST_CODE(co1, PROGRAM("mov (%rdi), %eax; mov (%rdi), %ecx; mov %eax, 144(%rdi); mov %ecx, 148(%rdi)"));
/* Write, then read the other's, through a third: transitivity. */
GUEST_CODE(wrc1, PROGRAM("mov (%rdi), %eax; mov %eax, 64(%rdi)"));
GUEST_CODE(wrc2, PROGRAM("mov 64(%rdi), %eax; mov (%rdi), %ecx; mov %eax, 160(%rdi); mov %ecx, 164(%rdi)"));
GUEST_CODE(count, PROGRAM("lock incl 0x1f0040; lock addw $1, 0x1f0080; mov 0x1f00c0, %eax\n"
			  "4: lea 1(%rax), %ecx; lock cmpxchg %ecx, 0x1f00c0; jne 4b"));

struct program {
	const uint8_t *code, *end;
};
#define P(name) { name, name##_end }

static void *run_vcpu(void *arg)
{
	struct kvmtest *t = arg;

	CHECK_EQ(ioctl(t->vcpu, KVM_RUN, 0), 0);
	CHECK_EQ(t->run->exit_reason, KVM_EXIT_HLT);
	return NULL;
}

static uint32_t word(const struct kvmtest *t, unsigned round, unsigned at)
{
	return *(uint32_t *)(t->mem + ROUND + round * LINE + at);
}

static struct kvmtest run_all(const struct program *p, unsigned n)
{
	struct kvmtest t = kvmtest_vm(MEM, 0), each[VCPUS];
	pthread_t threads[VCPUS];

	for (unsigned i = 0; i < n; i++) {
		struct kvm_regs r = { .rip = CODE + 0x1000 * i, .rsp = 0x180000 + 0x1000 * i, .rflags = 2, .r15 = n };

		each[i] = t;
		kvmtest_add_vcpu(&each[i], i);
		kvmtest_long_mode(&each[i], CODE + 0x1000 * i, p[i].code, p[i].end - p[i].code);
		NEED(ioctl(each[i].vcpu, KVM_SET_REGS, &r) == 0);
	}
	for (unsigned i = 0; i < n; i++)
		NEED(pthread_create(&threads[i], NULL, run_vcpu, &each[i]) == 0);
	for (unsigned i = 0; i < n; i++) {
		pthread_join(threads[i], NULL);
		munmap(each[i].run, each[i].run_size);
		close(each[i].vcpu);
	}
	return t;
}

/* In how many rounds forbidden(): with what was read by whom. */
static unsigned count_rounds(const struct kvmtest *t, int (*seen)(const struct kvmtest *t, unsigned round))
{
	unsigned n = 0;

	for (unsigned i = 0; i < ROUNDS; i++)
		n += seen(t, i);
	return n;
}

static int new_then_old(const struct kvmtest *t, unsigned i) { return word(t, i, 144) && !word(t, i, 148); }
static int both_ones(const struct kvmtest *t, unsigned i) { return word(t, i, 128) && word(t, i, 144); }
static int both_zeroes(const struct kvmtest *t, unsigned i) { return !word(t, i, 128) && !word(t, i, 144); }
static int disagree(const struct kvmtest *t, unsigned i)
{
	return word(t, i, 160) && !word(t, i, 164) && word(t, i, 176) && !word(t, i, 180);
}
static int goes_back(const struct kvmtest *t, unsigned i) { return word(t, i, 144) > word(t, i, 148); }
static int not_transitive(const struct kvmtest *t, unsigned i) { return word(t, i, 160) && !word(t, i, 164); }

static void forbid(const char *name, const struct program *p, unsigned n,
		   int (*seen)(const struct kvmtest *t, unsigned round))
{
	struct kvmtest t = run_all(p, n);
	unsigned bad = count_rounds(&t, seen);

	if (bad)
		printf("%s: %u of %u rounds\n", name, bad, ROUNDS);
	CHECK_EQ(bad, 0);
	kvmtest_done(&t);
}

static void counters(unsigned n)
{
	static const struct program p[] = { P(count), P(count), P(count), P(count) };
	struct kvmtest t = run_all(p, n);

	CHECK_EQ(*(uint32_t *)(t.mem + 0x1f0040), n * ROUNDS);
	CHECK_EQ(*(uint16_t *)(t.mem + 0x1f0080), (uint16_t)(n * ROUNDS));
	CHECK_EQ(*(uint32_t *)(t.mem + 0x1f00c0), n * ROUNDS);
	kvmtest_done(&t);
}

#define FORBID(name, seen, ...)                                                 \
	do {                                                                    \
		static const struct program p[] = { __VA_ARGS__ };              \
		forbid(name, p, sizeof(p) / sizeof(p[0]), seen);                \
	} while (0)

static void all(void)
{
	static const struct program sb[] = { P(sb0), P(sb1) };
	struct kvmtest t = run_all(sb, 2);

	printf("store buffering seen in %u of %u rounds\n", count_rounds(&t, both_zeroes), ROUNDS);
	kvmtest_done(&t);
	FORBID("message passing", new_then_old, P(mp0), P(mp1));
	FORBID("load buffering", both_ones, P(lb0), P(lb1));
	FORBID("store buffering, MFENCE", both_zeroes, P(sbf0), P(sbf1));
	FORBID("store buffering, locked", both_zeroes, P(sbx0), P(sbx1));
	FORBID("coherence", goes_back, P(co0), P(co1));
	FORBID("transitivity", not_transitive, P(w0), P(wrc1), P(wrc2));
	FORBID("independent reads of independent writes", disagree, P(w0), P(w1), P(r2), P(r3));
	for (unsigned n = 2; n <= VCPUS; n++)
		counters(n);
}

int main(int argc, char **argv)
{
	return both_engines(argv[0], all);
}

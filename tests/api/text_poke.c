/* SPDX-License-Identifier: MIT */
/*
 * Code that is changed while other vCPUs execute it, as guest kernels do it: INT3 over the first byte, the tail, the first
 * byte, each followed by an interrupt to all others (text_poke_bp); NOP and JMP of five bytes (jump labels); a whole function while
 * the others wait in an interrupt handler (alternatives, stop_machine). 2 to 4 vCPUs, both engines.
 *
 * vCPU 0 pokes; the others call the function all the time. It returns VALUE[k] in its k-th version. STARTED is k from before
 * version k is written, DONE is k once all have been told; the next one is not begun before all have called this one. Who
 * reads DONE, calls, and reads STARTED must have got a value of a version in between; or have met the INT3, unless nothing was
 * under way.
 *
 * vCPUs give way to each other, by an exit, the more often if they outnumber cores: who waits for all others would wait for
 * the scheduler.
 *
 * Seen to fail with a dbt_take_code_log() (x86/dbt/cache.c) that does nothing, and with a block_matches() (x86/interp/block.c)
 * that does not compare the second page.
 */
#include <pthread.h>
#include <sched.h>

#include "both.h"

#define CODE 0x100000u
#define HANDLERS 0x108000u	/* 0x100 each */
#define IDT 0x20000u
#define MEM (8u << 20)
/* STARTED, DONE, ACK, STOP, READY, YIELD, POKES: 64 bytes each; calls, INT3s and last DONE of vCPU n at 0x400 + 64 * n */
#define WORDS 0x120000u
#define VALUE 0x130000u		/* u32 each */
#define TEXT 0x140000u		/* 64 bytes each: the versions */
#define PLACE 0x150000u		/* u64: where the function is poked */
#define MANY 1000u		/* pokes */
#define SOME 250u
#define VCPUS 4
#define HIT_INT3 0xbbbbbbbbu

#define X2APIC \
	"mov $0x1b, %ecx; rdmsr; or $0xc00, %eax; wrmsr; mov $0x80f, %ecx; mov $0x1ff, %eax; xor %edx, %edx; wrmsr\n"

/* All others take vector r14b, and have said so. r15d is how many they are, ebp how often they have. */
#define SYNC(label) \
	"mov $0x830, %ecx; mov $0xc4000, %eax; or %r14d, %eax; xor %edx, %edx; wrmsr; add %r15d, %ebp\n" \
	"mov 0x120140, %ecx; " label ": pause; cmp %ebp, 0x120080; je 7f; inc %edx; test %ecx, %edx; jnz " label "b\n" \
	"out %al, $0x11; jmp " label "b; 7:\n"

#define POKER(body)                                                             \
	X2APIC "xor %ebp, %ebp; mov 0x150000, %rdi; 1: pause; cmp %r15d, 0x120100; jne 1b\n" \
	"xor %ebx, %ebx; mov $0x140000, %esi\n"                                 \
	"2: inc %ebx; add $64, %esi; mov %ebx, 0x120000\n"                      \
	body "\n"                                                               \
	"mov %ebx, 0x120040; mov 0x120140, %ecx; mov $0x120400, %r8d; mov %r15d, %r9d\n" \
	"7: add $64, %r8d; 8: pause; cmp %ebx, 16(%r8); je 9f; inc %edx; test %ecx, %edx; jnz 8b; out %al, $0x11; jmp 8b\n" \
	"9: dec %r9d; jnz 7b; cmp 0x120180, %ebx; jne 2b\n" \
	"movl $1, 0x1200c0; out %al, $0x10"

GUEST_CODE(poke_int3, POKER("mov $0x40, %r14d; movb $0xcc, (%rdi)\n" SYNC("3")
			    "mov 1(%rsi), %eax; mov %eax, 1(%rdi)\n" SYNC("4")
			    "mov (%rsi), %al; mov %al, (%rdi)\n" SYNC("5")));
/* As a tail is written that does not fit a word: byte by byte, and the first version's tail twice. */
GUEST_CODE(poke_bytes, POKER("mov $0x40, %r14d; movb $0xcc, (%rdi)\n" SYNC("3")
			     "mov $4, %ecx; 6: mov (%rsi,%rcx), %al; mov %al, (%rdi,%rcx); loop 6b\n" SYNC("4")
			     "mov (%rsi), %al; xchg %al, (%rdi)\n" SYNC("5")));
/* The others are in the handler until DONE. */
GUEST_CODE(poke_all, POKER("mov $0x41, %r14d\n" SYNC("3")
			   "push %rsi; push %rdi; mov $64, %ecx; rep movsb; pop %rdi; pop %rsi"));

/* r9: its own words; r10: the function */
#define RUNNER(call) \
	X2APIC "lock incl 0x120100; xor %ebx, %ebx; sti\n" \
	"1: mov 0x120040, %r8d; xor %eax, %eax; " call "; mov 0x120000, %edx; incq (%r9); mov %r8d, 16(%r9)\n" \
	"cmp %r8d, %edx; jne 3f; cmp 0x130000(,%r8,4), %eax; jne 9f\n" \
	"2: mov 0x120140, %eax; test %eax, (%r9); jnz 6f; out %al, $0x11; 6: cmpl $0, 0x1200c0; je 1b; cli; out %al, $0x10\n" \
	"3: cmp $0xbbbbbbbb, %eax; je 2b\n" \
	"4: cmp 0x130000(,%r8,4), %eax; je 2b; inc %r8d; cmp %edx, %r8d; jbe 4b\n" \
	"9: test %ebx, %ebx; jnz 5f; mov %eax, %r11d; mov %r8d, %r12d; mov %edx, %r13d; 5: inc %ebx; jmp 2b"

GUEST_CODE(runner, RUNNER("call *%r10"));
/* Nobody may be in the middle of a function that is replaced as a whole. */
GUEST_CODE(runner_whole, RUNNER("cli; call *%r10; sti"));

/* Returns from the function. */
GUEST_CODE(on_int3, "incq 8(%r9); mov 24(%rsp), %rax; mov (%rax), %rax; mov %rax, (%rsp); addq $8, 24(%rsp)\n"
		    "mov $0xbbbbbbbb, %eax; iretq");
GUEST_CODE(on_sync, "push %rax; push %rcx; push %rdx; lock incl 0x120080\n"
		    "mov $0x80b, %ecx; xor %eax, %eax; xor %edx, %edx; wrmsr; pop %rdx; pop %rcx; pop %rax; iretq");
GUEST_CODE(on_park, "push %rax; push %rcx; push %rdx; mov 0x120000, %eax; lock incl 0x120080\n"
		    "mov 0x120140, %ecx; 1: pause; cmp %eax, 0x120040; je 2f; inc %edx; test %ecx, %edx; jnz 1b\n"
		    "out %al, $0x11; jmp 1b; 2:\n"
		    "mov $0x80b, %ecx; xor %eax, %eax; xor %edx, %edx; wrmsr; pop %rdx; pop %rcx; pop %rax; iretq");

struct test {
	const char *name;
	const uint8_t *poker, *end;
	uint64_t place;
	unsigned pokes;
	/* Puts version k of the function there: its bytes are what is poked; its value. */
	uint32_t (*version)(uint8_t *text, uint32_t k);
};

/* mov $n, %eax; ret: the bytes of n are the same, so that a mixture is none of the values. */
static uint32_t version_mov(uint8_t *text, uint32_t k)
{
	uint32_t value = (k % 113 + 1) * 0x01010101u;

	text[0] = 0xb8;
	memcpy(text + 1, &value, 4);
	text[5] = 0xc3;
	return value;
}

/* NOP, or JMP over the next two: add $1, %eax; ret; add $2, %eax; ret */
static uint32_t version_label(uint8_t *text, uint32_t k)
{
	static const uint8_t nop[] = { 0x0f, 0x1f, 0x44, 0, 0 }, jmp[] = { 0xe9, 4, 0, 0, 0 };
	static const uint8_t rest[] = { 0x83, 0xc0, 1, 0xc3, 0x83, 0xc0, 2, 0xc3 };

	memcpy(text, k % 2 ? jmp : nop, 5);
	memcpy(text + 5, rest, sizeof(rest));
	return k % 2 ? 2 : 1;
}

/* Some of add $n, %eax or sub $n, %eax, and RET; INT3 behind it. */
static uint32_t version_function(uint8_t *text, uint32_t k)
{
	uint32_t n = k * 0x10001u, value = 0;

	memset(text, 0xcc, 64);
	for (unsigned i = 0; i < 5 + k % 7; i++, text += 5) {
		text[0] = k % 2 ? 0x05 : 0x2d;
		memcpy(text + 1, &n, 4);
		value += k % 2 ? n : -n;
	}
	*text = 0xc3;
	return value;
}

#define POKE(code) code, code##_end
static const struct test tests[] = {
	{ "mov", POKE(poke_int3), 0x110003, MANY, version_mov },
	{ "mov, byte by byte", POKE(poke_bytes), 0x11003d, SOME, version_mov },
	{ "mov on two pages, byte by byte", POKE(poke_bytes), 0x110fff, SOME, version_mov },
	{ "jump label", POKE(poke_int3), 0x110101, MANY, version_label },
	{ "jump label on two pages", POKE(poke_bytes), 0x110ffd, SOME, version_label },
	{ "function", POKE(poke_all), 0x110200, MANY, version_function },
	{ "function on two pages", POKE(poke_all), 0x110fe1, SOME, version_function },
};

static void set_gate(struct kvmtest *t, unsigned vector, uint32_t at, const uint8_t *code, size_t len)
{
	uint64_t *gate = (uint64_t *)(t->mem + IDT + 16 * vector);

	memcpy(t->mem + at, code, len);
	gate[0] = (at & 0xffff) | 8ull << 16 | 0x8eull << 40 | (uint64_t)(at >> 16) << 48;
}

static void add_vcpu(struct kvmtest *t, unsigned id, const uint8_t *code, size_t len, uint64_t place, unsigned others)
{
	struct kvm_regs r = { .rip = CODE + 0x1000 * id, .rsp = 0x180000 + 0x1000 * id, .rflags = 2, .r9 = WORDS + 0x400 + 64 * id,
			      .r10 = place, .r15 = others };
	struct kvm_mp_state state = { .mp_state = KVM_MP_STATE_RUNNABLE };

	kvmtest_add_vcpu(t, id);
	kvmtest_long_mode(t, r.rip, code, len);
	kvmtest_idt(t, IDT);
	NEED(ioctl(t->vcpu, KVM_SET_REGS, &r) == 0);
	NEED(ioctl(t->vcpu, KVM_SET_MP_STATE, &state) == 0);
}

static void *run_vcpu(void *arg)
{
	struct kvmtest *t = arg;

	for (;;) {
		/* Without this one the others would wait for ever. */
		NEED(ioctl(t->vcpu, KVM_RUN, 0) == 0);
		NEED(t->run->exit_reason == KVM_EXIT_IO);
		if (t->run->io.port == 0x10)
			break;
		sched_yield();
	}
	return NULL;
}

static void judge(const struct test *test, const struct kvmtest *vcpu, unsigned n)
{
	for (unsigned i = 1; i < n; i++) {
		uint64_t *words = (uint64_t *)(vcpu->mem + WORDS + 0x400 + 64 * i);
		struct kvm_regs r;

		NEED(ioctl(vcpu[i].vcpu, KVM_GET_REGS, &r) == 0);
		if (r.rbx)
			printf("%s, vCPU %u: %llu of %llu calls wrong; the first: 0x%llx between versions %llu and %llu\n",
			       test->name, i, r.rbx, (unsigned long long)words[0], r.r11, r.r12, r.r13);
		CHECK_EQ(r.rbx, 0);
		if (getenv("VERBOSE"))
			printf("%s, vCPU %u of %u: %llu calls, %llu met the INT3\n", test->name, i, n, (unsigned long long)words[0],
			       (unsigned long long)words[1]);
	}
	CHECK_EQ(*(uint32_t *)(vcpu->mem + WORDS + 0x40), test->pokes);
}

static void run_test(const struct test *test, unsigned n)
{
	unsigned cores = sysconf(_SC_NPROCESSORS_ONLN);
	struct kvmtest t = kvmtest_vm(MEM, 1), vcpu[VCPUS];
	pthread_t threads[VCPUS];

	for (unsigned i = 0; i < n; i++) {
		vcpu[i] = t;
		if (i && test->version == version_function)
			add_vcpu(&vcpu[i], i, runner_whole, GUEST_LEN(runner_whole), test->place, n - 1);
		else if (i)
			add_vcpu(&vcpu[i], i, runner, GUEST_LEN(runner), test->place, n - 1);
		else
			add_vcpu(&vcpu[i], i, test->poker, test->end - test->poker, test->place, n - 1);
	}
	set_gate(&t, 3, HANDLERS, on_int3, GUEST_LEN(on_int3));
	set_gate(&t, 0x40, HANDLERS + 0x100, on_sync, GUEST_LEN(on_sync));
	set_gate(&t, 0x41, HANDLERS + 0x200, on_park, GUEST_LEN(on_park));
	for (uint32_t k = 0; k <= test->pokes; k++)
		*(uint32_t *)(t.mem + VALUE + 4 * k) = test->version(t.mem + TEXT + 64 * k, k);
	memcpy(t.mem + test->place, t.mem + TEXT, 64);
	*(uint64_t *)(t.mem + PLACE) = test->place;
	*(uint32_t *)(t.mem + WORDS + 0x180) = test->pokes;
	*(uint32_t *)(t.mem + WORDS + 0x140) = n > cores ? 0xff : 0x3fff;
	for (unsigned i = 0; i < n; i++)
		NEED(pthread_create(&threads[i], NULL, run_vcpu, &vcpu[i]) == 0);
	for (unsigned i = 0; i < n; i++)
		pthread_join(threads[i], NULL);
	judge(test, vcpu, n);
	for (unsigned i = 0; i < n; i++) {
		munmap(vcpu[i].run, vcpu[i].run_size);
		close(vcpu[i].vcpu);
	}
	kvmtest_done(&t);
}

static void all(void)
{
	for (unsigned i = 0; i < sizeof(tests) / sizeof(tests[0]); i++)
		for (unsigned n = 2; n <= VCPUS; n += i ? 2 : 1)
			run_test(&tests[i], n);
}

int main(int argc, char **argv)
{
	return both_engines(argv[0], all);
}

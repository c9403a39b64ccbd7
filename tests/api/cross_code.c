/* SPDX-License-Identifier: MIT */
/*
 * Two vCPUs under the translator: one writes into functions, the other calls them. It serialises, as
 * the architecture asks of it, and so must find what was written before it was told. There are 256
 * functions, each on a page of its own: the writer has stored to a page before the other translates it,
 * and stores to it again later.
 *
 * Seen to fail with mmu_drop_tags_for_code() (x86/mmu/shared_code.c) that drops nothing, and with
 * dbt_take_code_log() (x86/dbt/cache.c) that does nothing when there were too many stores.
 */
#include <pthread.h>

#include "api/kvmtest.h"

#define ROUNDS 4096
#define TURN 0x20000		/* u64: round, of the writer; then of the caller; u32: mistakes seen */
#define FUNCTIONS 0x100000	/* mov $round, %eax; ret */
#define TEXT_(x) #x
#define TEXT(x) TEXT_(x)

asm(".pushsection .rodata\n"
    "writer:\n"
    "	xor %ebx, %ebx\n"
    "1:	inc %ebx\n"
    "	movzbl %bl, %r9d\n"
    "	shl $12, %r9d\n"
    "	mov %ebx, " TEXT(FUNCTIONS) " + 1(%r9)\n"
    "	test %bl, %bl\n"	/* now and then all of them: more than is passed on one by one */
    "	jnz 4f\n"
    "	mov $0x100000, %r9d\n"
    "3:	sub $0x1000, %r9d\n"
    "	mov %ebx, " TEXT(FUNCTIONS) " + 1(%r9)\n"
    "	jnz 3b\n"
    "4:	mov %rbx, " TEXT(TURN) "\n"
    "2:	pause\n"
    "	cmp %rbx, " TEXT(TURN) " + 8\n"
    "	jne 2b\n"
    "	cmp $" TEXT(ROUNDS) ", %ebx\n"
    "	jne 1b\n"
    "	hlt\n"
    "writer_end:\n"
    "caller:\n"
    "	xor %ebx, %ebx\n"
    "	xor %r10d, %r10d\n"
    "1:	inc %ebx\n"
    "2:	pause\n"
    "	cmp %rbx, " TEXT(TURN) "\n"
    "	jne 2b\n"
    "	mov %rbx, %r8\n"
    "	xor %eax, %eax\n"
    "	cpuid\n"
    "	mov %r8, %rbx\n"
    "	movzbl %bl, %r9d\n"
    "	shl $12, %r9d\n"
    "	add $" TEXT(FUNCTIONS) ", %r9d\n"
    "	call *%r9\n"
    "	cmp %eax, %ebx\n"
    "	setne %al\n"
    "	movzbl %al, %eax\n"
    "	add %eax, %r10d\n"
    "	mov %r10d, " TEXT(TURN) " + 16\n"
    "	mov %rbx, " TEXT(TURN) " + 8\n"
    "	cmp $" TEXT(ROUNDS) ", %ebx\n"
    "	jne 1b\n"
    "	hlt\n"
    "caller_end:\n"
    ".popsection");
extern const uint8_t writer[], writer_end[], caller[], caller_end[];

struct runner {
	int fd;
	struct kvm_run *run;
	int result;
};

static void *run(void *arg)
{
	struct runner *r = arg;

	r->result = ioctl(r->fd, KVM_RUN, 0);
	return NULL;
}

static void add(struct kvmtest *t, struct runner *r, int id, uint64_t at, const uint8_t *code, const uint8_t *end)
{
	struct kvm_regs regs;

	kvmtest_add_vcpu(t, id);
	kvmtest_long_mode(t, at, code, end - code);
	NEED(ioctl(t->vcpu, KVM_GET_REGS, &regs) == 0);
	regs.rsp -= id * 0x1000;
	NEED(ioctl(t->vcpu, KVM_SET_REGS, &regs) == 0);
	*r = (struct runner){ .fd = t->vcpu, .run = t->run };
}

int main(int argc, char **argv)
{
	const char *engine = getenv("SOFTKVM_ENGINE");
	struct runner r[2];
	pthread_t thread;
	struct kvmtest t;

	if (!engine || strcmp(engine, "dbt")) { /* it is read once, and may have been */
		setenv("SOFTKVM_ENGINE", "dbt", 1);
		execv("/proc/self/exe", argv);
		NEED(0);
	}
	t = kvmtest_vm(4 << 20, 0);
	for (unsigned i = 0; i < 256; i++) {
		t.mem[FUNCTIONS + i * 4096] = 0xb8;
		t.mem[FUNCTIONS + i * 4096 + 5] = 0xc3;
	}
	add(&t, &r[0], 0, 0x8000, writer, writer_end);
	add(&t, &r[1], 1, 0x9000, caller, caller_end);
	NEED(pthread_create(&thread, NULL, run, &r[0]) == 0);
	run(&r[1]);
	pthread_join(thread, NULL);
	for (unsigned i = 0; i < 2; i++) {
		CHECK_EQ(r[i].result, 0);
		CHECK_EQ(r[i].run->exit_reason, KVM_EXIT_HLT);
	}
	CHECK_EQ(*(uint64_t *)(t.mem + TURN + 8), ROUNDS);
	CHECK_EQ(*(uint32_t *)(t.mem + TURN + 16), 0);
	return kvmtest_summary();
}

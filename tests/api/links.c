/* SPDX-License-Identifier: MIT */
/*
 * What calls from one page of a user's program to another cost the translator, whose links are good under one set of mappings: after
 * a load of CR3 that drops these a visit of the dispatcher to each page, not one to each target; and a link that is
 * taken for the first time is made, although a jump table has its target already. High, where code is relative, and low.
 *
 * (Shown to fail: pages that are never found in jump_pages, or entered there under another generation; links that go to what a jump table
 * has for their targets. That links are not good under other mappings is for returns.c and pcid.c.)
 */
#define TABLES 0x200000u
#define TABLES_END 0x800000u

#include "both.h"
#include "rings.h"

#define PROGRAM 0x100000u	/* two pages */
#define STACK 0xc00000u
#define STACK_VA 0x300000000000ull
#define TOP (STACK_VA + 4096 - 64)
#define TARGETS 60u
#define ROUNDS 100u

/* On BP; on 0x41: CR3 as it is, so that everything but global pages is dropped. */
GUEST_CODE(kernel, "hlt; .balign 16; mov %cr3, %rax; mov %rax, %cr3; iretq");
#define RELOAD 16u

static void put(uint8_t **at, const void *bytes, size_t n)
{
	memcpy(*at, bytes, n);
	*at += n;
}

/* Call target i of the second page: directly, or (indirect) by its address, for which rsi is that page's. */
static void put_call(uint8_t **at, const uint8_t *page, unsigned i, bool indirect)
{
	const int32_t disp = 16 * i, distance = 4096 + disp - (*at + 5 - page);

	if (indirect) {
		put(at, "\x48\x8d\xbe", 3); /* lea disp(%rsi), %rdi; call *%rdi */
		put(at, &disp, 4);
		put(at, "\xff\xd7", 2);
	} else {
		put(at, "\xe8", 1);
		put(at, &distance, 4);
	}
}

/* Each target once, indirectly, and rcx times, directly and, if asked for, with a load of CR3 after all of them. */
static void write_program(uint8_t *page, bool reload)
{
	uint8_t *at = page, *loop;
	int32_t back;

	for (unsigned i = 0; i < TARGETS; i++) {
		put_call(&at, page, i, true);
		memcpy(page + 4096 + 16 * i, "\xff\xc3\xc3", 3); /* inc %ebx; ret */
	}
	loop = at;
	for (unsigned i = 0; i < TARGETS; i++)
		put_call(&at, page, i, false);
	if (reload)
		put(&at, "\xcd\x41", 2);
	put(&at, "\xff\xc9\x0f\x85", 4); /* dec %ecx; jnz loop; int3 */
	back = loop - (at + 4);
	put(&at, &back, 4);
	put(&at, "\xcc", 1);
}

static struct kvmtest open_guest(uint64_t base)
{
	struct kvmtest t = kvmtest_vm(MEM, 0);
	struct kvm_sregs s;
	uint64_t root;

	tables_used = 0;
	kvmtest_add_vcpu(&t, 0);
	kvmtest_set_cpuid(&t);
	rings_descriptors(&t);
	rings_gate(&t, 3, KBASE + KERNEL, 3, 0);
	rings_gate(&t, 0x41, KBASE + KERNEL + RELOAD, 3, 0);
	*(uint64_t *)(t.mem + TSS + 4) = KBASE + STACK0;
	memcpy(t.mem + KERNEL, kernel, GUEST_LEN(kernel));
	root = rings_root(&t);
	rings_map(&t, root, base, PROGRAM, 0x2000, 7);
	rings_map(&t, root, STACK_VA, STACK, 0x1000, 7);
	NEED(ioctl(t.vcpu, KVM_GET_SREGS, &s) == 0);
	rings_sregs(&s, 3, root);
	s.cr0 = 0x80010033;
	s.cr4 = 0x6a0;
	NEED(ioctl(t.vcpu, KVM_SET_SREGS, &s) == 0);
	return t;
}

/* From base on in ring 3; the caller says how often. */
static void run(struct kvmtest *t, uint64_t base, unsigned rounds)
{
	struct kvm_regs r = { .rip = base, .rsp = TOP, .rflags = 0x3002, .rcx = rounds, .rsi = base + 4096 };
	struct kvm_sregs s;

	NEED(ioctl(t->vcpu, KVM_GET_SREGS, &s) == 0);
	rings_sregs(&s, 3, s.cr3);	/* the program has ended in the kernel */
	NEED(ioctl(t->vcpu, KVM_SET_SREGS, &s) == 0);
	NEED(ioctl(t->vcpu, KVM_SET_REGS, &r) == 0);
	CHECK_EQ(ioctl(t->vcpu, KVM_RUN, 0), 0);
	CHECK_EQ(t->run->exit_reason, KVM_EXIT_HLT);
	NEED(ioctl(t->vcpu, KVM_GET_REGS, &r) == 0);
	CHECK_EQ(r.rbx, (rounds + 1) * TARGETS);
}

static void test_place(uint64_t base)
{
	const char *engine = getenv("SOFTKVM_ENGINE");
	const bool linking = !strcmp(engine, "dbt") && !getenv("SOFTKVM_DBT_LINK");
	struct kvmtest t = open_guest(base);
	long long before;

	write_program(t.mem + PROGRAM, false);
	before = kvmtest_stat(t.vcpu, "dbt_links");
	run(&t, base, 2);
	/* Each call's return has one, and each direct call. */
	CHECK(kvmtest_stat(t.vcpu, "dbt_links") - before >= 3 * TARGETS || !linking);

	write_program(t.mem + PROGRAM, true);
	run(&t, base, 1);
	before = kvmtest_stat(t.vcpu, "dbt_entries");
	run(&t, base, ROUNDS);
	/* A few a round: both pages, the kernel's service. */
	CHECK(kvmtest_stat(t.vcpu, "dbt_entries") - before < ROUNDS * TARGETS / 4 || !linking);
	kvmtest_done(&t);
}

static void test(void)
{
	test_place(0x555555554000);
	test_place(0x400000);
}

int main(int argc, char **argv)
{
	(void)argc;
	return both_engines(argv[0], test);
}

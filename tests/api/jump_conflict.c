/* SPDX-License-Identifier: MIT */
/*
 * Two functions whose addresses belong to one entry of the first level of the translator's jump table, called in turn millions
 * of times: the second level must know both, or each call costs a visit to the dispatcher. (Shown to fail: with the first level's
 * factor for the second one, SECOND_FACTOR in x86/dbt/jumps.c; with a dbt_jump_add() that leaves the second level alone.)
 */
#include "kvmtest.h"
#include "both.h"

#define MEM (64u << 20)
#define CODE 0x100000u
#define STACK 0x300000u
#define A 0x400000u
#define ROUNDS 3000000

GUEST_CODE(loop, "mov $3000000, %ecx; 1: call *%rsi; call *%rdi; dec %ecx; jnz 1b; hlt");

/* jump_table_index(), and a bit more: one entry in a table of the second level's size, too, were it not for another factor there. */
static uint32_t first_index(uint32_t va)
{
	return va * 0x61c88647u >> 14;
}

int main(void)
{
	static const uint8_t add[] = { 0xff, 0xc3, 0xc3 }; /* inc %ebx; ret */
	struct kvmtest t = kvmtest_vm(MEM, 0);
	struct kvm_regs r = { .rip = CODE, .rsp = STACK, .rflags = 2, .rsi = A };
	long long before, visits;
	uint32_t b = A + 0x1000;

	while (b < MEM - 16 && first_index(b) != first_index(A))
		b += 16;
	NEED(b < MEM - 16);
	r.rdi = b;
	kvmtest_add_vcpu(&t, 0);
	kvmtest_long_mode(&t, CODE, loop, GUEST_LEN(loop));
	memcpy(t.mem + A, add, sizeof(add));
	memcpy(t.mem + b, add, sizeof(add));
	before = kvmtest_stat(t.vcpu, "dbt_entries");
	NEED(ioctl(t.vcpu, KVM_SET_REGS, &r) == 0);
	CHECK_EQ(ioctl(t.vcpu, KVM_RUN, 0), 0);
	CHECK_EQ(t.run->exit_reason, KVM_EXIT_HLT);
	NEED(ioctl(t.vcpu, KVM_GET_REGS, &r) == 0);
	CHECK_EQ(r.rbx, 2 * ROUNDS);
	visits = kvmtest_stat(t.vcpu, "dbt_entries") - before;
	/* None with the interpreter, and with SOFTKVM_DBT_LINK=0 every block is one. */
	CHECK(visits < ROUNDS / 100 || getenv("SOFTKVM_DBT_LINK"));
	kvmtest_done(&t);
	return kvmtest_summary();
}

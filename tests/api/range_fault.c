/* SPDX-License-Identifier: MIT */
/*
 * Faults of instructions that share a look-up with the ones around them (x86/dbt/ranges.c): the translator has no code for
 * these, their fault rows name the site. The instructions before have happened, once, those after it have not.
 *
 * Seen to fail (to hang) with another site in fault_handler() (x86/dbt/cache.c).
 */
#include "both.h"

#define CODE 0x20000
#define DATA 0x30000

#define BEFORE "mov (%rdi), %rax; mov 8(%rdi), %rbx; inc %rdx; add %rdx, 32(%rdi);"
#define AFTER "mov 24(%rdi), %rsi; mov $1, %r8; hlt;"

GUEST_CODE(aligned_move, BEFORE ".globl move_here; move_here: movaps 16(%rdi), %xmm0;" AFTER);
GUEST_CODE(division, BEFORE ".globl division_here; division_here: divq 16(%rdi);" AFTER);
GUEST_CODE(register_division, BEFORE ".globl register_division_here; register_division_here: div %rcx;" AFTER);
extern const uint8_t move_here[], division_here[], register_division_here[];

static void test_fault(const uint8_t *code, size_t len, const uint8_t *here)
{
	struct kvmtest t = kvmtest_vm(2 << 20, 0);
	struct kvm_regs r = { .rip = CODE, .rsp = 0x10000, .rflags = 2, .rdi = DATA + 8, .rdx = 5 };
	struct kvm_sregs sregs;

	kvmtest_add_vcpu(&t, 0);
	kvmtest_long_mode(&t, CODE, code, len);
	NEED(ioctl(t.vcpu, KVM_GET_SREGS, &sregs) == 0);
	sregs.cr4 |= 0x200; /* OSFXSR */
	NEED(ioctl(t.vcpu, KVM_SET_SREGS, &sregs) == 0);
	*(uint64_t *)(t.mem + DATA + 8) = 0x1111;
	*(uint64_t *)(t.mem + DATA + 16) = 0x2222;
	*(uint64_t *)(t.mem + DATA + 32) = 0x3333;
	/* Twice: what was not in the TLB is then. No IDT: the fault becomes a shutdown. */
	for (unsigned turn = 0; turn < 2; turn++) {
		struct kvm_regs now;

		*(uint64_t *)(t.mem + DATA + 40) = 100;
		NEED(ioctl(t.vcpu, KVM_SET_SREGS, &sregs) == 0);
		NEED(ioctl(t.vcpu, KVM_SET_REGS, &r) == 0);
		CHECK_EQ(ioctl(t.vcpu, KVM_RUN, 0), 0);
		CHECK_EQ(t.run->exit_reason, KVM_EXIT_SHUTDOWN);
		NEED(ioctl(t.vcpu, KVM_GET_REGS, &now) == 0);
		CHECK_EQ(now.rip, CODE + (here - code));
		CHECK_EQ(now.rax, 0x1111);
		CHECK_EQ(now.rbx, 0x2222);
		CHECK_EQ(now.rdx, 6);
		CHECK_EQ(now.rsi, 0);
		CHECK_EQ(now.r8, 0);
		CHECK_EQ(*(uint64_t *)(t.mem + DATA + 40), 106);
	}
	kvmtest_done(&t);
}

static void test(void)
{
	test_fault(aligned_move, GUEST_LEN(aligned_move), move_here);
	test_fault(division, GUEST_LEN(division), division_here);
	test_fault(register_division, GUEST_LEN(register_division), register_division_here);
}

int main(int argc, char **argv)
{
	return both_engines(argv[0], test);
}

/* SPDX-License-Identifier: MIT */
/*
 * Faults of instructions that share a look-up with the ones around them (x86/dbt/ranges.c): the translator has no code for
 * these, their fault rows name the site. The instructions before have happened, once, those after it have not.
 *
 * Seen to fail (to hang) with another site in fault_handler() (x86/dbt/cache.c).
 *
 * And faults of those that have AH, CH, DH or BH beside a memory operand, by memory that the client has taken away: the translator
 * exchanges these with AL to BL meanwhile. Seen to fail without the way back in put_fault_stub() (x86/dbt/cold.c).
 */
#include <sys/mman.h>

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

/* ---- AH to BH ---------------------------------------------------------------------------------- */

/* By itself, and in a range that has been looked up for writing. */
#define HIGH(name, text)                                                        \
	GUEST_CODE(name, text "; hlt");                                         \
	GUEST_CODE(name##_range, "mov 8(%rdi), %rsi; mov 8(%rbx), %rbp;" text "; mov %rsi, 24(%rdi); mov %rbp, 32(%rbx); hlt")
#define ROW(name, prot) { name, name##_end, prot }, { name##_range, name##_range_end, prot }

HIGH(store_ah, "mov %ah, (%rdi)");
HIGH(store_bh_base, "mov %bh, 7(%rbx)");
HIGH(store_ch_index, "mov %ch, (%rdi,%rcx,4)");
HIGH(add_dh, "add %dh, (%rdi)");
HIGH(sbb_ch, "sbb %ch, 16(%rdi)");
HIGH(xor_bh_base, "xor %bh, (%rbx)");
HIGH(lock_or_ah, "lock or %ah, (%rdi)");
HIGH(xchg_dh, "xchg %dh, (%rdi)");
HIGH(xchg_bh_base, "xchg %bh, (%rbx)");
GUEST_CODE(load_ah, "mov (%rdi), %ah; hlt");
GUEST_CODE(load_bh_base, "mov (%rbx), %bh; hlt");
GUEST_CODE(adc_ch_load, "adc (%rdi), %ch; hlt");
GUEST_CODE(cmp_dh, "cmp %dh, (%rdi); hlt");
GUEST_CODE(cmp_ah_load, "cmp (%rdi), %ah; hlt");
GUEST_CODE(test_bh, "test %bh, (%rdi); hlt");

static const struct {
	const uint8_t *code, *end;
	int prot;	/* with which it faults */
} highs[] = {
	ROW(store_ah, PROT_READ), ROW(store_bh_base, PROT_READ), ROW(store_ch_index, PROT_READ), ROW(add_dh, PROT_READ),
	ROW(sbb_ch, PROT_READ), ROW(xor_bh_base, PROT_READ), ROW(lock_or_ah, PROT_READ), ROW(xchg_dh, PROT_READ),
	ROW(xchg_bh_base, PROT_READ),
	{ load_ah, load_ah_end, PROT_NONE }, { load_bh_base, load_bh_base_end, PROT_NONE },
	{ adc_ch_load, adc_ch_load_end, PROT_NONE }, { cmp_dh, cmp_dh_end, PROT_NONE },
	{ cmp_ah_load, cmp_ah_load_end, PROT_NONE }, { test_bh, test_bh_end, PROT_NONE },
};

static struct kvm_regs run_high(struct kvmtest *t, const struct kvm_regs *r, int error)
{
	struct kvm_regs now;

	if (r)
		NEED(ioctl(t->vcpu, KVM_SET_REGS, r) == 0);
	if (error) {
		CHECK_ERRNO(ioctl(t->vcpu, KVM_RUN, 0), error);
	} else {
		CHECK_EQ(ioctl(t->vcpu, KVM_RUN, 0), 0);
		CHECK_EQ(t->run->exit_reason, KVM_EXIT_HLT);
	}
	NEED(ioctl(t->vcpu, KVM_GET_REGS, &now) == 0);
	return now;
}

static void test_high(const uint8_t *code, const uint8_t *end, int prot)
{
	const struct kvm_regs r = {
		.rip = CODE, .rsp = 0x10000, .rflags = 3, .rax = 0x1122334455667788, .rcx = 0x123, .rdx = 0x99aabbccddeeff77,
		.rdi = DATA + 0x100, .rbx = DATA + 0x100, .rsi = 0x5151, .rbp = 0x6161,
	};
	struct kvmtest t = kvmtest_vm(2 << 20, 0);
	struct kvm_regs good, now;
	uint8_t before[4096], after[4096];

	kvmtest_add_vcpu(&t, 0);
	kvmtest_long_mode(&t, CODE, code, end - code);
	for (unsigned i = 0; i < sizeof(before); i++)
		t.mem[DATA + i] = before[i] = 7 * i + 3;
	good = run_high(&t, &r, 0);
	memcpy(after, t.mem + DATA, sizeof(after));
	memcpy(t.mem + DATA, before, sizeof(before));
	/* In the TLB it is. */
	NEED(mprotect(t.mem + DATA, 4096, prot) == 0);
	now = run_high(&t, &r, EFAULT);
	CHECK_EQ(now.rax, r.rax);
	CHECK_EQ(now.rbx, r.rbx);
	CHECK_EQ(now.rcx, r.rcx);
	CHECK_EQ(now.rdx, r.rdx);
	CHECK_EQ(now.rdi, r.rdi);
	CHECK(now.rip < good.rip);
	NEED(mprotect(t.mem + DATA, 4096, PROT_READ | PROT_WRITE) == 0);
	CHECK(!memcmp(t.mem + DATA, before, sizeof(before)));
	now = run_high(&t, NULL, 0);
	CHECK(!memcmp(&now, &good, sizeof(now)));
	CHECK(!memcmp(t.mem + DATA, after, sizeof(after)));
	kvmtest_done(&t);
}

static void test(void)
{
	for (unsigned i = 0; i < sizeof(highs) / sizeof(highs[0]); i++)
		test_high(highs[i].code, highs[i].end, highs[i].prot);
	test_fault(aligned_move, GUEST_LEN(aligned_move), move_here);
	test_fault(division, GUEST_LEN(division), division_here);
	test_fault(register_division, GUEST_LEN(register_division), register_division_here);
}

int main(int argc, char **argv)
{
	return both_engines(argv[0], test);
}

/* SPDX-License-Identifier: MIT */
/* KVM_RUN: exits, their completion, and what a client may do in between. */
#include <sys/time.h>

#include "api/kvmtest.h"

static struct kvmtest real(const void *code, size_t len)
{
	struct kvmtest t = kvmtest_vm(1 << 20, 0);

	kvmtest_add_vcpu(&t, 0);
	kvmtest_real_mode(&t, 0x1000, code, len);
	return t;
}

static void run(struct kvmtest *t, unsigned reason)
{
	CHECK_EQ(ioctl(t->vcpu, KVM_RUN, 0), 0);
	CHECK_EQ(t->run->exit_reason, reason);
}

static struct kvm_regs get_regs(struct kvmtest *t)
{
	struct kvm_regs regs;

	CHECK_EQ(ioctl(t->vcpu, KVM_GET_REGS, &regs), 0);
	return regs;
}

static void *io_data(struct kvmtest *t)
{
	return (char *)t->run + t->run->io.data_offset;
}

static void test_pio(void)
{
	/* mov $0x42, %al; out %al, $0x55; in $0x56, %ax; hlt */
	static const uint8_t code[] = { 0xb0, 0x42, 0xe6, 0x55, 0xe5, 0x56, 0xf4 };
	struct kvmtest t = real(code, sizeof(code));

	run(&t, KVM_EXIT_IO);
	CHECK_EQ(t.run->io.direction, KVM_EXIT_IO_OUT);
	CHECK_EQ(t.run->io.port, 0x55);
	CHECK_EQ(t.run->io.size, 1);
	CHECK_EQ(t.run->io.count, 1);
	CHECK_EQ(*(uint8_t *)io_data(&t), 0x42);
	run(&t, KVM_EXIT_IO);
	CHECK_EQ(t.run->io.direction, KVM_EXIT_IO_IN);
	CHECK_EQ(t.run->io.size, 2);
	*(uint16_t *)io_data(&t) = 0xbeef;
	run(&t, KVM_EXIT_HLT);
	CHECK_EQ(get_regs(&t).rax & 0xffff, 0xbeef);
	CHECK_EQ(get_regs(&t).rip, 0x1007);
	kvmtest_done(&t);
}

static void test_rep_outs(void)
{
	/* mov $8, %cx; mov $0x2000, %si; mov $0x77, %dx; rep outsb; hlt */
	static const uint8_t code[] = { 0xb9, 8, 0, 0xbe, 0, 0x20, 0xba, 0x77, 0, 0xf3, 0x6e, 0xf4 };
	struct kvmtest t = real(code, sizeof(code));
	char got[9] = "";
	unsigned n = 0, exits = 0;

	memcpy(t.mem + 0x2000, "softkvm!", 8);
	for (; n < 8 && exits < 9; exits++) {
		run(&t, KVM_EXIT_IO);
		memcpy(got + n, io_data(&t), t.run->io.count);
		n += t.run->io.count;
	}
	CHECK(!strcmp(got, "softkvm!"));
	run(&t, KVM_EXIT_HLT);
	CHECK_EQ(get_regs(&t).rcx & 0xffff, 0);
	CHECK_EQ(get_regs(&t).rsi & 0xffff, 0x2008);
	kvmtest_done(&t);
}

static void test_rep_ins(void)
{
	/* mov $4, %cx; mov $0x2000, %di; mov $0x77, %dx; rep insw; hlt */
	static const uint8_t code[] = { 0xb9, 4, 0, 0xbf, 0, 0x20, 0xba, 0x77, 0, 0xf3, 0x6d, 0xf4 };
	struct kvmtest t = real(code, sizeof(code));
	uint16_t next = 0x1111;

	for (unsigned n = 0, exits = 0; n < 4 && exits < 5; exits++) {
		run(&t, KVM_EXIT_IO);
		for (unsigned i = 0; i < t.run->io.count; i++, n++, next += 0x1111)
			((uint16_t *)io_data(&t))[i] = next;
	}
	run(&t, KVM_EXIT_HLT);
	CHECK(!memcmp(t.mem + 0x2000, "\x11\x11\x22\x22\x33\x33\x44\x44", 8));
	kvmtest_done(&t);
}

static void test_mmio(void)
{
	/* 64-bit: mov $0x8000000, %esi; mov (%rsi), %rax; add %eax, 8(%rsi); hlt */
	static const uint8_t code[] = { 0xbe, 0, 0, 0, 8, 0x48, 0x8b, 0x06, 0x01, 0x46, 0x08, 0xf4 };
	struct kvmtest t = kvmtest_vm(1 << 20, 0);

	kvmtest_add_vcpu(&t, 0);
	kvmtest_long_mode(&t, 0x8000, code, sizeof(code));
	run(&t, KVM_EXIT_MMIO);
	CHECK_EQ(t.run->mmio.phys_addr, 0x8000000);
	CHECK_EQ(t.run->mmio.len, 8);
	CHECK_EQ(t.run->mmio.is_write, 0);
	memcpy(t.run->mmio.data, "\x01\x02\x03\x04\x05\x06\x07\x08", 8);
	run(&t, KVM_EXIT_MMIO); /* the read half of the add */
	CHECK_EQ(get_regs(&t).rax, 0x0807060504030201);
	CHECK_EQ(t.run->mmio.phys_addr, 0x8000008);
	CHECK_EQ(t.run->mmio.is_write, 0);
	CHECK_EQ(t.run->mmio.len, 4);
	memcpy(t.run->mmio.data, "\x10\x00\x00\x00", 4);
	run(&t, KVM_EXIT_MMIO); /* the write half */
	CHECK_EQ(t.run->mmio.is_write, 1);
	CHECK_EQ(*(uint32_t *)t.run->mmio.data, 0x04030211);
	run(&t, KVM_EXIT_HLT);
	kvmtest_done(&t);
}

/* A call whose stack is a device: the push is answered by userspace, then the call is taken. */
static void test_call_mmio_stack(void)
{
	/* 64-bit: mov $0x8000100, %esp; call 1f; hlt; 1: hlt */
	static const uint8_t code[] = { 0xbc, 0, 1, 0, 8, 0xe8, 1, 0, 0, 0, 0xf4, 0xf4 };
	struct kvmtest t = kvmtest_vm(1 << 20, 0);

	kvmtest_add_vcpu(&t, 0);
	kvmtest_long_mode(&t, 0x8000, code, sizeof(code));
	run(&t, KVM_EXIT_MMIO);
	CHECK_EQ(t.run->mmio.phys_addr, 0x80000f8);
	CHECK_EQ(t.run->mmio.is_write, 1);
	CHECK_EQ(*(uint64_t *)t.run->mmio.data, 0x800a);
	CHECK_EQ(get_regs(&t).rip, 0x8005);
	run(&t, KVM_EXIT_HLT);
	CHECK_EQ(get_regs(&t).rip, 0x800c);
	CHECK_EQ(get_regs(&t).rsp, 0x80000f8);
	kvmtest_done(&t);
}

/* Completion comes before immediate_exit is honoured: clients finish an instruction that way. */
static void test_complete_with_immediate_exit(void)
{
	static const uint8_t code[] = { 0xe5, 0x56, 0xf4 };
	struct kvmtest t = real(code, sizeof(code));

	run(&t, KVM_EXIT_IO);
	*(uint16_t *)io_data(&t) = 0x1234;
	t.run->immediate_exit = 1;
	CHECK_ERRNO(ioctl(t.vcpu, KVM_RUN, 0), EINTR);
	CHECK_EQ(get_regs(&t).rax & 0xffff, 0x1234);
	CHECK_EQ(get_regs(&t).rip, 0x1002);
	t.run->immediate_exit = 0;
	run(&t, KVM_EXIT_HLT);
	kvmtest_done(&t);
}

static void test_immediate_exit(void)
{
	struct kvmtest t = real("\xf4", 1);

	t.run->exit_reason = 1234;
	t.run->immediate_exit = 1;
	CHECK_ERRNO(ioctl(t.vcpu, KVM_RUN, 0), EINTR);
	CHECK_EQ(t.run->exit_reason, 1234);
	CHECK_EQ(get_regs(&t).rip, 0x1000);
	kvmtest_done(&t);
}

/* vmport style: the client changes registers during a PIO read; KVM then writes only the port's value. */
static void test_set_regs_during_pio(void)
{
	static const uint8_t code[] = { 0xed, 0xf4 }; /* in %dx, %ax */
	struct kvmtest t = real(code, sizeof(code));
	struct kvm_regs regs;

	run(&t, KVM_EXIT_IO);
	regs = get_regs(&t);
	regs.rbx = 0x5555;
	regs.rax = 0x12340000;
	CHECK_EQ(ioctl(t.vcpu, KVM_SET_REGS, &regs), 0);
	*(uint16_t *)io_data(&t) = 0xabcd;
	run(&t, KVM_EXIT_HLT);
	CHECK_EQ(get_regs(&t).rbx, 0x5555);
	CHECK_EQ(get_regs(&t).rax & 0xffff, 0xabcd);
	kvmtest_done(&t);
}

/* A client that resets the vCPU during an exit gets a fresh start, not the old instruction's completion. */
static void test_reset_during_pio(void)
{
	static const uint8_t code[] = { 0xe5, 0x56, 0xf4 };
	struct kvmtest t = real(code, sizeof(code));

	run(&t, KVM_EXIT_IO);
	kvmtest_real_mode(&t, 0x3000, "\xbb\x07\x00\xf4", 4); /* mov $7, %bx; hlt */
	run(&t, KVM_EXIT_HLT);
	CHECK_EQ(get_regs(&t).rbx, 7);
	CHECK_EQ(get_regs(&t).rip, 0x3004);
	CHECK_EQ(get_regs(&t).rax, 0);
	kvmtest_done(&t);
}

static void test_bad_ends(void)
{
	struct kvmtest t = real("\xf4", 1);
	struct kvm_sregs sregs;
	struct kvm_regs regs = { .rip = 0, .rflags = 2, .rsp = 0x8000 };

	/* Fetch from nowhere. */
	CHECK_EQ(ioctl(t.vcpu, KVM_GET_SREGS, &sregs), 0);
	sregs.cs.base = 0x40000000;
	CHECK_EQ(ioctl(t.vcpu, KVM_SET_SREGS, &sregs), 0);
	CHECK_EQ(ioctl(t.vcpu, KVM_SET_REGS, &regs), 0);
	run(&t, KVM_EXIT_INTERNAL_ERROR);
	CHECK_EQ(t.run->internal.suberror, KVM_INTERNAL_ERROR_EMULATION);

	kvmtest_done(&t);

	/* Protected mode without an IDT: ud2 ends in a triple fault. */
	t = kvmtest_vm(1 << 20, 0);
	kvmtest_add_vcpu(&t, 0);
	kvmtest_long_mode(&t, 0x8000, "\x0f\x0b", 2);
	CHECK_EQ(ioctl(t.vcpu, KVM_GET_SREGS, &sregs), 0);
	sregs.idt.limit = 0;
	CHECK_EQ(ioctl(t.vcpu, KVM_SET_SREGS, &sregs), 0);
	run(&t, KVM_EXIT_SHUTDOWN);
	kvmtest_done(&t);
}

/* The client's memory behind the slot is gone. */
static void test_efault(void)
{
	struct kvmtest t = real("\xa1\x00\x90\xf4", 4); /* mov 0x9000, %ax */

	CHECK_EQ(mprotect(t.mem + 0x9000, 0x1000, PROT_NONE), 0);
	CHECK_ERRNO(ioctl(t.vcpu, KVM_RUN, 0), EFAULT);
	CHECK_EQ(get_regs(&t).rip, 0x1000);
	CHECK_EQ(mprotect(t.mem + 0x9000, 0x1000, PROT_READ), 0);
	run(&t, KVM_EXIT_HLT);
	kvmtest_done(&t);
}

/* Code changed by the client between runs, and by the guest itself just ahead of its own rip. */
static void test_code_changes(void)
{
	/* mov $5, %bx; movb $0x43, patch; patch: dec %bx; hlt */
	static const uint8_t code[] = { 0xbb, 5, 0, 0xc6, 0x06, 0x08, 0x10, 0x43, 0x4b, 0xf4 };
	struct kvmtest t = real("\xbb\x01\x00\xf4", 4);
	struct kvm_regs regs;

	run(&t, KVM_EXIT_HLT);
	CHECK_EQ(get_regs(&t).rbx, 1);
	t.mem[0x1001] = 9;
	regs = get_regs(&t);
	regs.rip = 0x1000;
	CHECK_EQ(ioctl(t.vcpu, KVM_SET_REGS, &regs), 0);
	run(&t, KVM_EXIT_HLT);
	CHECK_EQ(get_regs(&t).rbx, 9);

	kvmtest_real_mode(&t, 0x1000, code, sizeof(code));
	run(&t, KVM_EXIT_HLT);
	CHECK_EQ(get_regs(&t).rbx, 6); /* inc, as patched */
	kvmtest_done(&t);
}

static void test_sync_regs(void)
{
	struct kvmtest t = real("\x43\xf4", 2); /* inc %bx; hlt */

	t.run->kvm_valid_regs = KVM_SYNC_X86_REGS;
	run(&t, KVM_EXIT_HLT);
	CHECK_EQ(t.run->s.regs.regs.rbx, 1);
	t.run->s.regs.regs.rbx = 41;
	t.run->s.regs.regs.rip = 0x1000;
	t.run->kvm_dirty_regs = KVM_SYNC_X86_REGS;
	run(&t, KVM_EXIT_HLT);
	CHECK_EQ(t.run->s.regs.regs.rbx, 42);
	t.run->kvm_valid_regs = 1 << 30;
	CHECK_ERRNO(ioctl(t.vcpu, KVM_RUN, 0), EINVAL);
	t.run->kvm_valid_regs = 0;
	t.run->kvm_dirty_regs = 1 << 30;
	CHECK_ERRNO(ioctl(t.vcpu, KVM_RUN, 0), EINVAL);
	kvmtest_done(&t);
}

static void test_debug(void)
{
	struct kvmtest t = real("\x43\x43\xcc\x43\xf4", 5);
	struct kvm_guest_debug dbg = { .control = KVM_GUESTDBG_ENABLE | KVM_GUESTDBG_SINGLESTEP };

	CHECK_EQ(ioctl(t.vcpu, KVM_SET_GUEST_DEBUG, &dbg), 0);
	run(&t, KVM_EXIT_DEBUG);
	CHECK_EQ(t.run->debug.arch.exception, 1);
	CHECK_EQ(t.run->debug.arch.pc, 0x1001);
	CHECK_EQ(t.run->debug.arch.dr6 & 1 << 14, 1 << 14);
	dbg.control = KVM_GUESTDBG_ENABLE | KVM_GUESTDBG_USE_SW_BP;
	CHECK_EQ(ioctl(t.vcpu, KVM_SET_GUEST_DEBUG, &dbg), 0);
	run(&t, KVM_EXIT_DEBUG);
	CHECK_EQ(t.run->debug.arch.exception, 3);
	CHECK_EQ(t.run->debug.arch.pc, 0x1002);
	/* Hardware breakpoint on the instruction after it. */
	dbg.control = KVM_GUESTDBG_ENABLE | KVM_GUESTDBG_USE_HW_BP;
	dbg.arch.debugreg[0] = 0x1003;
	dbg.arch.debugreg[7] = 0x402;
	CHECK_EQ(ioctl(t.vcpu, KVM_SET_GUEST_DEBUG, &dbg), 0);
	struct kvm_regs regs = get_regs(&t);
	regs.rip = 0x1001;
	t.mem[0x1002] = 0x90;
	CHECK_EQ(ioctl(t.vcpu, KVM_SET_REGS, &regs), 0);
	run(&t, KVM_EXIT_DEBUG);
	CHECK_EQ(t.run->debug.arch.exception, 1);
	CHECK_EQ(t.run->debug.arch.pc, 0x1003);
	CHECK_EQ(t.run->debug.arch.dr6 & 0xf, 1);
	kvmtest_done(&t);
}

static void test_interrupt_window(void)
{
	/* sti; nop; nop; hlt, with userspace as the interrupt controller; vector 0x20 at 0000:2000 */
	struct kvmtest t = real("\xfb\x90\x90\xf4", 4);
	struct kvm_interrupt irq = { .irq = 0x20 };

	memcpy(t.mem + 0x80, "\x00\x20\x00\x00", 4);
	memcpy(t.mem + 0x2000, "\xb7\x77\xcf", 3); /* mov $0x77, %bh; iret */
	t.run->request_interrupt_window = 1;
	CHECK_EQ(t.run->ready_for_interrupt_injection, 0);
	run(&t, KVM_EXIT_IRQ_WINDOW_OPEN);
	CHECK_EQ(t.run->ready_for_interrupt_injection, 1);
	CHECK_EQ(t.run->if_flag, 1);
	CHECK_EQ(ioctl(t.vcpu, KVM_INTERRUPT, &irq), 0);
	t.run->request_interrupt_window = 0;
	run(&t, KVM_EXIT_HLT);
	CHECK_EQ(get_regs(&t).rbx, 0x7700);
	irq.irq = 256;
	CHECK_ERRNO(ioctl(t.vcpu, KVM_INTERRUPT, &irq), EINVAL);
	kvmtest_done(&t);
}

int main(void)
{
	test_pio();
	test_rep_outs();
	test_rep_ins();
	test_mmio();
	test_call_mmio_stack();
	test_complete_with_immediate_exit();
	test_immediate_exit();
	test_set_regs_during_pio();
	test_reset_during_pio();
	test_bad_ends();
	test_efault();
	test_code_changes();
	test_sync_regs();
	test_debug();
	test_interrupt_window();
	return kvmtest_summary();
}

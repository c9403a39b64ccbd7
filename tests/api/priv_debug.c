/* SPDX-License-Identifier: MIT */
/* Debug registers, single-step, interrupt shadows, NMI blocking, the I/O bitmap, MSRs. */
#include "priv.h"

static uint64_t dr6(struct env *e)
{
	struct kvm_debugregs d;

	NEED(ioctl(e->t.vcpu, KVM_GET_DEBUGREGS, &d) == 0);
	return d.dr6;
}

static uint64_t dr7(struct env *e)
{
	struct kvm_debugregs d;

	NEED(ioctl(e->t.vcpu, KVM_GET_DEBUGREGS, &d) == 0);
	return d.dr7;
}

#define DR6(bits) WANT(dr6(e) & 0xf00f, bits)
#define WATCH(va, bits) "mov $" #va ", %eax\nmov %rax, %db0\nmov $" #bits ", %eax\nmov %rax, %db7\n"

/* ---- breakpoints and single-step ---------------------------------------------------------- */
T(bp_exec, L, "lea 9f(%rip), %rax\nmov %rax, %db0\nmov $2, %eax\nmov %rax, %db7\nnop\n9: nop", , DB, NOERR, DR6(1); WANT(r->flags >> 16 & 1, 0))
T(bp_exec_rf, L, "lea 9f(%rip), %rax\nmov %rax, %db0\nmov $2, %eax\nmov %rax, %db7\npush $0x10\npush $0x34000\npushf\nbtsq $16, (%rsp)\n"
  "push $0x18\nlea 9f(%rip), %rax\npush %rax\niretq\n9: nop", , OK, NOERR, DR6(0))
T(bp_exec_before_fault, L, "lea 9f(%rip), %rax\nmov %rax, %db0\nmov $2, %eax\nmov %rax, %db7\n9: ud2", , DB, NOERR, DR6(1))
T(bp_write, L, WATCH(0x20010, 0xd0002) "mov 0x20010, %ebx\nmov %ebx, 0x20010\n9: nop", , DB, NOERR, DR6(1); WANT(r->flags >> 16 & 1, 0))
T(bp_write_not_read, L, WATCH(0x20010, 0xd0002) "mov 0x20010, %ebx\n9: nop", , OK, NOERR, )
T(bp_read, L, WATCH(0x20010, 0xf0002) "mov 0x20010, %ebx\n9: nop", , DB, NOERR, DR6(1))
T(bp_overlap, L, WATCH(0x20010, 0xf0002) "mov 0x2000d, %ebx\n9: nop", , DB, NOERR, DR6(1))
T(bp_beside, L, WATCH(0x20010, 0xf0002) "mov 0x2000c, %ebx\nmov 0x20014, %ebx\n9: nop", , OK, NOERR, )
T(bp_8, L, WATCH(0x20010, 0xb0002) "movb 0x20017, %bl\n9: nop", , DB, NOERR, DR6(1))
T(bp_local, L, WATCH(0x20010, 0xf0001) "mov 0x20010, %ebx\n9: nop", , DB, NOERR, DR6(1))
T(bp_disabled, L, WATCH(0x20010, 0xf0000) "mov 0x20010, %ebx\n9: nop", , OK, NOERR, )
T(bp_push, L, WATCH(0x33ff8, 0x90002) "push %rax\n9: nop", , DB, NOERR, DR6(1))
T(bp_rep_movs, L, WATCH(0x20010, 0x10002) "mov $0x20100, %esi\nmov $0x2000e, %edi\nmov $8, %ecx\n9: rep movsb\nhlt", , DB, NOERR, DR6(1);
  WANT(r->regs.rcx, 5); WANT(r->regs.rdi, 0x20011))
T(bp_lock_xadd, L, WATCH(0x20010, 0xd0002) "lock xadd %ebx, 0x20010\n9: nop", , DB, NOERR, DR6(1))
#define IO_BP(port, bits) "mov %cr4, %rax\nor $8, %al\nmov %rax, %cr4\nmov $" #port ", %eax\nmov %rax, %db0\nmov $" #bits ", %eax\nmov %rax, %db7\n"
#define STRING_IO(port) "mov $3, %ecx\nmov $0x20000, %esi\nmov $0x20000, %edi\nmov $" #port ", %edx\n"
T(bp_io_not_memory, L, IO_BP(0x20010, 0x20002) "mov 0x20010, %ebx\n9: nop", , OK, NOERR, DR6(0))
T(bp_io_out, L, IO_BP(0x80, 0x20002) "out %al, $0x80\n9: nop", , DB, NOERR, DR6(1); WANT(r->flags >> 16 & 1, 0))
T(bp_io_in, L, IO_BP(0x80, 0x20002) "in $0x80, %al\n9: nop", , DB, NOERR, DR6(1))
T(bp_io_beside, L, IO_BP(0x80, 0x20002) "out %al, $0x81\nin $0x7f, %al\n9: nop", , OK, NOERR, DR6(0))
T(bp_io_len4, L, IO_BP(0x80, 0xe0002) "in $0x83, %al\n9: nop", , DB, NOERR, DR6(1))
T(bp_io_overlap, L, IO_BP(0x80, 0x20002) "mov $0x7d, %edx\nout %eax, %dx\n9: nop", , DB, NOERR, DR6(1))
T(bp_io_disabled, L, IO_BP(0x80, 0x20000) "out %al, $0x80\n9: nop", , OK, NOERR, DR6(0))
T(bp_io_not_exec, L, IO_BP(0x80, 0x00002) "out %al, $0x80\n9: nop", , OK, NOERR, DR6(0))
T(bp_io_rep_outs, L, IO_BP(0x80, 0x20002) STRING_IO(0x80) "9: rep outsb\nhlt", , DB, NOERR, DR6(1); WANT(r->regs.rcx, 2); WANT(r->regs.rsi, 0x20001))
T(bp_io_rep_ins, L, IO_BP(0x80, 0x20002) STRING_IO(0x80) "9: rep insb\nhlt", , DB, NOERR, DR6(1); WANT(r->regs.rcx, 2); WANT(r->regs.rdi, 0x20001))
T(bp_io_outs_last, L, IO_BP(0x80, 0x20002) STRING_IO(0x80) "outsb\n9: nop", , DB, NOERR, DR6(1))
T(step_rep_outs, L, STRING_IO(0x80) "pushf\nbtsq $8, (%rsp)\npopf\n9: rep outsb", , DB, NOERR, DR6(0x4000); WANT(r->regs.rcx, 2))
T(step_rep_ins, L, STRING_IO(0x80) "pushf\nbtsq $8, (%rsp)\npopf\n9: rep insb", , DB, NOERR, DR6(0x4000); WANT(r->regs.rcx, 2))
T(step, L, "pushf\nbtsq $8, (%rsp)\npopf\nnop\n9: nop", , DB, NOERR, DR6(0x4000); WANT(r->flags >> 8 & 1, 1); WANT(r->regs.rflags >> 8 & 1, 0))
T(step_not_the_popf, L, "pushf\nbtsq $8, (%rsp)\npopf\n.fill 3, 1, 0x66\nnop\n9: ud2", , DB, NOERR, DR6(0x4000))
T(step_fault_first, L, "pushf\nbtsq $8, (%rsp)\npopf\n9: ud2", , UD, NOERR, DR6(0); WANT(r->flags >> 8 & 1, 1))
T(step_int_no_db, L, "pushf\nbtsq $8, (%rsp)\npopf\nint $0x80\n9:", , 0x80, NOERR, DR6(0))
T(step_rep, L, "mov $3, %ecx\nmov $0x20000, %esi\nmov $0x20100, %edi\npushf\nbtsq $8, (%rsp)\npopf\n9: rep movsb", , DB, NOERR, WANT(r->regs.rcx, 2))
T(step_mov_ss, L, "mov $0x10, %ebx\npushf\nbtsq $8, (%rsp)\npopf\nmov %ebx, %ss\nnop\n9: nop", , DB, NOERR, DR6(0x4000))
T(step_user, LU, "nop\n9: nop", e->r.rflags |= 0x100, DB, NOERR, DR6(0x4000); WANT(r->cs, U64))
T(step_syscall, LU, "nop\n9: nop", e->r.rflags |= 0x100, DB, NOERR, )
T(dr6_accumulates, L, "mov $0xffff0ff2, %eax\nmov %rax, %db6\n" WATCH(0x20010, 0xf0002) "mov 0x20010, %ebx\n9: nop", , DB, NOERR, DR6(1))
T(dr7_gd, L, "mov $0x2000, %eax\nmov %rax, %db7\n9: mov %db0, %rax", , DB, NOERR, DR6(0x2000); WANT(dr7(e) & 0x2000, 0))
T(dr7_gd_write, L, "mov $0x2000, %eax\nmov %rax, %db7\n9: mov %rax, %db6", , DB, NOERR, DR6(0x2000))
T(dr7_reads, L, "mov $0xffffdfff, %eax\nmov %rax, %db7\nmov %db7, %rbx\n9: nop", , OK, NOERR, WANT(r->regs.rbx, 0xffff0fff))
T(dr_values, L, "mov $0x1234, %eax\nmov %rax, %db3\nxor %eax, %eax\nmov %db3, %rax\nmov %db7, %rbx\nmov %db6, %rcx\n9: nop", , OK, NOERR,
  WANT(r->regs.rax, 0x1234); WANT(r->regs.rbx, 0x400); WANT(r->regs.rcx, 0xffff0ff0))
T(bp_int3_not_dr, L, "int3\n9:", , BP, NOERR, DR6(0))

/* ---- shadows, interrupts, NMIs (queued in setup) ------------------------------------------------ */
static void queue_nmi(struct env *e)
{
	/* Setup is over before the state is set, which keeps an NMI that is pending. */
	struct kvm_vcpu_events v;

	NEED(ioctl(e->t.vcpu, KVM_GET_VCPU_EVENTS, &v) == 0);
	v.nmi.pending = 1;
	v.flags = KVM_VCPUEVENT_VALID_NMI_PENDING;
	NEED(ioctl(e->t.vcpu, KVM_SET_VCPU_EVENTS, &v) == 0);
}

static void run_with(struct env *e, struct result *r, int nmi, int vector)
{
	struct kvm_interrupt irq = { vector };

	if (nmi)
		queue_nmi(e);
	if (vector)
		NEED(ioctl(e->t.vcpu, KVM_INTERRUPT, &irq) == 0);
	NEED(ioctl(e->t.vcpu, KVM_RUN, 0) == 0);
	priv_result(e, r);
}

/* The first HLT ends the case itself; what follows it is run by the check. */
T(nmi, L, "9: hlt\nnop", , OK, NOERR, run_with(e, r, 1, 0); WANT(r->vector, NMI); WANT(r->rip, CODE + 1))
T(nmi_blocks_nmi, L, "9: hlt\nnop", , OK, NOERR, run_with(e, r, 1, 0); WANT(r->vector, NMI); queue_nmi(e);
  e->r = r->regs; e->r.rip = CODE + 1; NEED(ioctl(e->t.vcpu, KVM_SET_REGS, &e->r) == 0); NEED(ioctl(e->t.vcpu, KVM_RUN, 0) == 0);
  priv_result(e, r); WANT(r->vector, OK))
T(nmi_iret_unblocks, L, "9: hlt\nnop", *at16(e, HANDLERS + NMI * 16 + 1) = 0xcf48, OK, NOERR, run_with(e, r, 1, 0); WANT(r->vector, NMI); queue_nmi(e);
  NEED(ioctl(e->t.vcpu, KVM_RUN, 0) == 0); priv_result(e, r); WANT(r->vector, NMI); WANT(r->rip, CODE + 1))
T(nmi_not_if, L, "cli\n9: hlt\nnop", , OK, NOERR, run_with(e, r, 1, 0); WANT(r->vector, NMI))
T(nmi_before_irq, L, "sti\n9: hlt\nnop", , OK, NOERR, run_with(e, r, 1, 0x50); WANT(r->vector, NMI);
  WANT(r->rip, HANDLERS + 0x50 * 16))
T(irq, L, "sti\n9: hlt\nnop", , OK, NOERR, run_with(e, r, 0, 0x50); WANT(r->vector, 0x50); WANT(r->rip, CODE + 2); WANT(r->regs.rflags & 0x200, 0))

/* A window request exits only once IF is set and the shadow has passed. */
static void window(struct env *e, uint64_t rip)
{
	struct kvm_regs regs;
	int i;

	e->t.run->request_interrupt_window = 1;
	for (i = 0; i < 3; i++) {
		NEED(ioctl(e->t.vcpu, KVM_RUN, 0) == 0);
		if (e->t.run->exit_reason != KVM_EXIT_HLT)
			break;
	}
	e->t.run->request_interrupt_window = 0;
	WANT(e->t.run->exit_reason, KVM_EXIT_IRQ_WINDOW_OPEN);
	NEED(ioctl(e->t.vcpu, KVM_GET_REGS, &regs) == 0);
	WANT(regs.rip, rip);
}

T(shadow_sti, L, "9: hlt\nsti\nnop\nnop\nnop", , OK, NOERR, window(e, CODE + 3))
T(shadow_sti_twice, L, "9: hlt\nsti\nsti\nnop\nnop", , OK, NOERR, window(e, CODE + 3))
T(shadow_mov_ss, L, "mov $0x10, %ebx\n9: hlt\nsti\nmov %ebx, %ss\nnop\nnop", , OK, NOERR, window(e, CODE + 10))
T(shadow_popf_none, L, "9: hlt\npush $0x202\npopf\nnop\nnop", , OK, NOERR, window(e, CODE + 7))
T(shadow_sti_cli, L, "9: hlt\nsti\ncli\nnop\nsti\nnop\nnop", , OK, NOERR, window(e, CODE + 6))

/* ---- the I/O permission bitmap --------------------------------------------------------------------- */
#define BITMAP(port) *at8(e, TSS + 0x68 + (port) / 8) |= 1u << ((port) % 8)
T(io_denied, LU, "mov $0x3f9, %edx\n9: in %dx, %al", BITMAP(0x3f9), GP, 0, )
T(io_denied_wide, LU, "mov $0x3f8, %edx\n9: in %dx, %eax", BITMAP(0x3fb), GP, 0, )
T(io_denied_cross_byte, LU, "mov $0x3ff, %edx\n9: in %dx, %ax", BITMAP(0x400), GP, 0, )
T(io_limit, LU, "mov $0xfff0, %edx\n9: in %dx, %al", e->s.tr.limit = 0x100, GP, 0, )
T(io_base_past_limit, LU, "mov $0, %edx\n9: in %dx, %al", *at16(e, TSS + 102) = 0x3000, GP, 0, )
T(io_tss_short, LU, "mov $0, %edx\n9: in %dx, %al", e->s.tr.limit = 0x66, GP, 0, )
T(io_ins_denied, LU, "mov $0x3f9, %edx\nmov $0x20000, %edi\n9: insb", BITMAP(0x3f9), GP, 0, )
T(io_outs_denied, LU, "mov $0x3f9, %edx\nmov $0x20000, %esi\n9: outsb", BITMAP(0x3f9), GP, 0, )
T(io_tss16, P32U, "mov $0, %edx\n9: in %dx, %al", e->s.tr.type = 3;
  *at16(e, TSS + 2) = 0xe000; *at16(e, TSS + 4) = KDATA, GP, 0, )
T(io_v86, V86, "mov $0x3f9, %dx\n9: in %dx, %al", BITMAP(0x3f9), GP, 0, )

PRIV_MAIN

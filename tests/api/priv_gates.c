/* SPDX-License-Identifier: MIT */
/* Gates, changes of privilege, far transfers, tasks, vm86, and the ways between the CPU's modes. */
#include "priv.h"

#define V 0x80		/* a vector of ours */
#define USER_GATE(sel) idt_gate(e, V, sel, 0xee, 0)

/* Where a far transfer of a case goes: HLT of vector v's handler, so the vector tells the target. */
#define TARGET(v) (HANDLERS + (v) * 16)

static void task(struct env *e, uint32_t tss, uint32_t eip)
{
	memset(at8(e, tss), 0, 0x68);
	*at32(e, tss + 28) = e->s.cr3;
	*at32(e, tss + 32) = eip;
	*at32(e, tss + 36) = 2;
	*at32(e, tss + 56) = STACK3 - 0x100;
	for (unsigned i = 0; i < 6; i++)
		*at32(e, tss + 72 + i * 4) = KDATA;
	*at32(e, tss + 76) = K32;
}

/* ---- interrupt and trap gates ------------------------------------------------------------------ */
T(int_64, L, "int $0x80\n9:", , V, NOERR, WANT(r->cs, K64); WANT(r->sp, STACK0); WANT(r->ss, KDATA))
T(int_aligns, L, "sub $3, %rsp\nint $0x80\n9:", , V, NOERR, WANT(r->sp, STACK0 - 3); WANT(r->at & 15, 8))
T(int_clears_if, L, "sti\nint $0x80\n9:", , V, NOERR, WANT(r->regs.rflags >> 9 & 1, 0); WANT(r->flags >> 9 & 1, 1))
T(trap_keeps_if, L, "sti\nint $0x80\n9:", idt_gate(e, V, K64, 0x8f, 0), V, NOERR, WANT(r->regs.rflags >> 9 & 1, 1))
T(int_clears_nt, L, "pushf\nbtsq $14, (%rsp)\npopf\nint $0x80\n9:", , V, NOERR, WANT(r->regs.rflags >> 14 & 1, 0); WANT(r->flags >> 14 & 1, 1))
T(int_user_64, LU, "int $0x80\n9:", USER_GATE(K64), V, NOERR, WANT(r->cs, U64); WANT(r->ss, UDATA); WANT(r->sp, STACK3);
  WANT(r->at, STACK0 - 40); WANT(r->regs.rsp, STACK0 - 40); WANT(r->sregs.ss.selector, 0); WANT(r->sregs.ss.unusable, 1))
T(int_user_compat, CU, "int $0x80\n9:", USER_GATE(K64), V, NOERR, WANT(r->cs, U32); WANT(r->at, STACK0 - 40))
T(int_compat, C, "int $0x80\n9:", , V, NOERR, WANT(r->cs, K32); WANT(r->sp, STACK0))
T(int_user_32, P32U, "int $0x80\n9:", USER_GATE(K32), V, NOERR, WANT(r->cs, U32); WANT(r->at, STACK0 - 20); WANT(r->sregs.ss.selector, KDATA))
T(int_user_dpl, LU, "9: int $0x80", , GP, V * 8 + 2, )
T(int_32, P32, "int $0x80\n9:", , V, NOERR, WANT(r->at, STACK0 - 12))
T(int_16gate, P32, "9: int $0x80", idt_gate(e, V, K32, 0x86, 0), V, ELSEWHERE, WANT(r->at, STACK0 - 6); WANT(*at16(e, r->at), 2); WANT(*at16(e, r->at + 2), K32))
T(ist, L, "int $0x80\n9:", idt_gate(e, V, K64, 0x8e, 1), V, NOERR, WANT(r->at, IST1 - 40); WANT(r->sp, STACK0))
T(ist_user, LU, "int $0x80\n9:", idt_gate(e, V, K64, 0xee, 1), V, NOERR, WANT(r->at, IST1 - 40))
T(ist_non_canonical, L, "9: int $0x80", idt_gate(e, V, K64, 0x8e, 2); *at64(e, TSS + 0x2c) = (1ull << 47) + 0x1000, SS, 0, )
T(gate_np, L, "9: int $0x80", idt_gate(e, V, K64, 0x0e, 0), NP, V * 8 + 2, )
T(gate_dpl_before_np, LU, "9: int $0x80", idt_gate(e, V, K64, 0x0e, 0), GP, V * 8 + 2, )
T(gate_type, L, "9: int $0x80", idt_gate(e, V, K64, 0x8c, 0), GP, V * 8 + 2, )
T(gate_16_long, L, "9: int $0x80", idt_gate(e, V, K64, 0x86, 0), GP, V * 8 + 2, )
T(gate_task_long, L, "9: int $0x80", idt_gate(e, V, K64, 0x85, 0), GP, V * 8 + 2, )
T(gate_limit, L, "9: int $0x80", e->s.idt.limit = V * 16 + 14, GP, V * 8 + 2, )
T(gate_limit_fits, L, "int $0x80\n9:", e->s.idt.limit = V * 16 + 15, V, NOERR, )
T(gate_cs_null, L, "9: int $0x80", idt_gate(e, V, 0, 0x8e, 0), GP, 0, )
T(gate_cs_data, L, "9: int $0x80", idt_gate(e, V, KDATA, 0x8e, 0), GP, KDATA, )
T(gate_cs_32, L, "9: int $0x80", idt_gate(e, V, K32, 0x8e, 0), GP, K32, )
T(gate_cs_limit, L, "9: int $0x80", idt_gate(e, V, 0x1000, 0x8e, 0), GP, 0x1000, )
T(gate_cs_np, L, "9: int $0x80", gdt_set(e, FREE, 0x00af1b000000ffff); idt_gate(e, V, FREE, 0x8e, 0), NP, FREE, )
T(gate_cs_dpl3, L, "9: int $0x80", idt_gate(e, V, U64, 0x8e, 0), GP, U64 & ~3, )
T(gate_cs_np_ext, L, "9: ud2", gdt_set(e, FREE, 0x00af1b000000ffff); idt_gate(e, UD, FREE, 0x8e, 0), NP, FREE | 1, )
T(gate_rip_non_canonical, L, "9: int $0x80", *at32(e, IDT + V * 16 + 8) = 0x8000, GP, 0, )
T(gate_offset_limit_32, P32, "9: int $0x80", gdt_set(e, FREE, 0x00409b0000000fff); idt_gate(e, V, FREE, 0x8e, 0), GP, 0, )
T(gate_conforming, LU, "9: int $0x80", gdt_set(e, FREE, 0x00af9f000000ffff); idt_gate(e, V, FREE, 0xee, 0), PF, ELSEWHERE | 0x15,
  WANT(r->cs, FREE | 3); WANT(r->sp, (STACK3 & ~15) - 40))
T(tss_limit, LU, "9: int $0x80", USER_GATE(K64); e->s.tr.limit = 3; idt_gate(e, TS, K64, 0x8e, 0), SHUTDOWN, NOERR, )
T(tss_limit_32, P32U, "9: int $0x80", USER_GATE(K32); e->s.tr.limit = 3, SHUTDOWN, NOERR, )
T(tss_ss_null_32, P32U, "9: int $0x80", USER_GATE(K32); *at32(e, TSS + 8) = 0; idt_gate(e, TS, K32, 0x85, 0), SHUTDOWN, NOERR, )
T(tss_rsp_non_canonical, LU, "9: int $0x80", USER_GATE(K64); *at64(e, TSS + 4) = (1ull << 47) + 0x1000; idt_gate(e, SS, K64, 0x8e, 1), SS, 0, )
T(int_real, R, "int $0x80\n9:", , V, NOERR, WANT(r->cs, CODE >> 4))
T(int_real_limit, R, "9: int $0x80", e->s.idt.limit = 0x1ff, GP, NOERR, )
T(int_p16, P16, "9: int $0x80", , V, ELSEWHERE, WANT(r->rip, 2); WANT(r->at, (STACK0 & 0xffff) - 6))

/* ---- IRET ------------------------------------------------------------------------------------------ */
T(iret_to_user, L, "push $0x2b\npush $0x38000\npush $0x3002\npush $0x3b\npush $0x20000\niretq\n9:", *at16(e, DATA) = 0x80cd; USER_GATE(K64);
  *at8(e, CODE + 0x100) = 0, V, ELSEWHERE, WANT(r->rip, DATA + 2); WANT(r->cs, U64); WANT(r->flags & 0x3000, 0x3000))
T(iret_to_user_ds, L, "push $0x2b\npush $0x38000\npush $2\npush $0x3b\npush $0x20000\niretq\n9:", *at16(e, DATA) = 0x80cd; USER_GATE(K64),
  V, ELSEWHERE, WANT(r->sregs.ds.selector, 0); WANT(r->sregs.ds.unusable, 1))
T(iret_same, L, "mov %rsp, %rbx\npush $0x10\npush %rbx\npush $2\npush $0x18\nlea 9f(%rip), %rax\npush %rax\niretq\nud2\n9:", , OK, NOERR, )
T(iret_to_compat, L, "push $0x10\npush $0x34000\npush $2\npush $8\npush $0x20000\niretq\n9:", *at8(e, DATA) = 0xf4, OK, NOERR,
  WANT(r->regs.rip, DATA + 1); WANT(r->sregs.cs.l, 0); WANT(r->sregs.cs.selector, K32))
T(iret_nt_long, L, "pushf\nbtsq $14, (%rsp)\npopf\n9: iretq", , GP, 0, )
T(iret_null_cs, L, "push $0\npush $0\npush $2\npush $0\npush $0\n9: iretq", , GP, 0, )
T(iret_cs_rpl, LU, "push $0\npush $0\npush $2\npush $0x18\npush $0\n9: iretq", , GP, K64, )
T(iret_ss_dpl, L, "push $0x10\npush $0\npush $2\npush $0x3b\npush $0\n9: iretq", , GP, 0x10, )
T(iret_ss_null_user, L, "push $0\npush $0\npush $2\npush $0x3b\npush $0\n9: iretq", , GP, 0, )
T(iret_rip_non_canonical, L, "push $0x10\npush $0x34000\npush $2\npush $0x18\nmov $1, %eax\nshl $47, %rax\npush %rax\n9: iretq", , GP, 0, )
T(iret_stack_pf, L, "mov $0x40000000, %esp\n9: iretq", idt_gate(e, PF, K64, 0x8e, 1), PF, 0, WANT(r->sregs.cr2, 0x40000000))
T(iret_user_keeps_iopl, LU, "pushf\npop %rax\npush $0x2b\npush $0x38000\npush $0x3202\npush $0x3b\nlea 9f(%rip), %rcx\npush %rcx\niretq\n9: ud2", , UD, NOERR,
  WANT(r->flags & 0x3200, 0))
T(iret_real_vm_ignored, R, "pushl $0x20002\npushl $0x1000\npushl $(9f - 8b)\niretl\nud2\n9: nop", , OK, NOERR, )
T(iret_cs_np, P32, "push $2\npush $0x70\npush $0\n9: iret", gdt_set(e, FREE, 0x00cf1b000000ffff), NP, FREE, )

/* ---- far JMP, CALL, RET --------------------------------------------------------------------------------- */
T(jmp_far, P32, "ljmp $8, $(0x10000 + 9f - 8b)\nud2\n9: nop", , OK, NOERR, )
T(jmp_far_null, P32, "9: ljmp $0, $0x10000", , GP, 0, )
T(jmp_far_data, P32, "9: ljmp $0x10, $0x10000", , GP, KDATA, )
T(jmp_far_rpl, P32, "9: ljmp $0xb, $0x10000", , GP, K32, )
T(jmp_far_np, P32, "9: ljmp $0x70, $0x10000", gdt_set(e, FREE, 0x00cf1b000000ffff), NP, FREE, )
T(jmp_far_limit, P32, "9: ljmp $0x70, $0x10000", gdt_set(e, FREE, 0x00409b0000000fff), GP, 0, )
T(jmp_far_user_to_kernel, P32U, "9: ljmp $8, $0x10000", , GP, K32, )
T(jmp_far_conforming, P32U, "ljmp $0x70, $(0x10000 + 9f - 8b)\n9: ud2", gdt_set(e, FREE, 0x00cf9f000000ffff), UD, NOERR, WANT(r->cs, FREE | 3))
T(jmp_far_l_and_d, L, "movl $0x10000, 0x20000\nmovw $0x70, 0x20004\n9: ljmp *0x20000", gdt_set(e, FREE, 0x00ef9b000000ffff), GP, FREE, )
T(call_far, P32, "lcall $8, $(0x10000 + 1f - 8b)\n1: pop %eax\npop %ebx\n9: nop", , OK, NOERR, WANT(r->regs.rax, CODE + 7); WANT(r->regs.rbx, K32))
T(retf, P32, "push $8\npush $(0x10000 + 9f - 8b)\nlret\nud2\n9: nop", , OK, NOERR, )
T(retf_imm, P32, "push $7\npush $8\npush $(0x10000 + 9f - 8b)\nlret $4\nud2\n9: nop", , OK, NOERR, WANT(r->regs.rsp, STACK0))
T(retf_to_user, P32, "push $0x2b\npush $0x38000\npush $0x33\npush $0x20000\nlret\n9:", *at16(e, DATA) = 0x80cd; USER_GATE(K32), V, ELSEWHERE,
  WANT(r->cs, U32); WANT(r->rip, DATA + 2); WANT(r->sp, STACK3); WANT(r->sregs.ds.unusable, 1))
T(retf_inward, P32U, "push $8\npush $0x10000\n9: lret", , GP, K32, )
T(gate_call, P32, "9: lcall $0x70, $0", gdt_set(e, FREE, gate_desc(K32, TARGET(V), 0x8c, 0)), V, ELSEWHERE, WANT(r->rip, CODE + 7))
T(gate_call_user, P32U, "push $0x77\n9: lcall $0x73, $0", gdt_set(e, FREE, gate_desc(K32, TARGET(V), 0xec, 1)), V, ELSEWHERE,
  WANT(r->rip, CODE + 9); WANT(r->cs, U32); WANT(*at32(e, r->at + 8), 0x77); WANT(*at32(e, r->at + 12), STACK3 - 4);
  WANT(*at32(e, r->at + 16), UDATA); WANT(r->at, STACK0 - 20))
T(gate_call_16, P32, "9: lcall $0x70, $0", gdt_set(e, FREE, gate_desc(K32, TARGET(V), 0x84, 0)), V, ELSEWHERE, WANT(r->at, STACK0 - 4))
T(gate_call_dpl, P32U, "9: lcall $0x73, $0", gdt_set(e, FREE, gate_desc(K32, TARGET(V), 0x8c, 0)), GP, FREE, )
T(gate_call_np, P32, "9: lcall $0x70, $0", gdt_set(e, FREE, gate_desc(K32, TARGET(V), 0x0c, 0)), NP, FREE, )
T(gate_jmp_user, P32U, "9: ljmp $0x73, $0", gdt_set(e, FREE, gate_desc(K32, TARGET(V), 0xec, 0)), GP, K32, )
T(gate_call_null, P32, "9: lcall $0x70, $0", gdt_set(e, FREE, gate_desc(0, TARGET(V), 0x8c, 0)), GP, 0, )
T(gate_call_64, LU, "movw $0x73, 0x20004\n9: lcall *0x20000", gdt_set(e, FREE, gate_desc(K64, TARGET(V), 0xec, 0)); gdt_set(e, FREE + 8, 0), V, ELSEWHERE,
  WANT(r->cs, U64); WANT(r->at, STACK0 - 32))
T(gate_call_64_type, LU, "movw $0x73, 0x20004\n9: lcall *0x20000", gdt_set(e, FREE, gate_desc(K64, TARGET(V), 0xec, 0)); gdt_set(e, FREE + 8, 1ull << 40),
  GP, FREE, )
T(gate_call_64_cs32, L, "movw $0x70, 0x20004\n9: lcall *0x20000", gdt_set(e, FREE, gate_desc(K32, TARGET(V), 0x8c, 0)); gdt_set(e, FREE + 8, 0), GP, K32, )

/* ---- SYSCALL, SYSENTER ------------------------------------------------------------------------------------- */
static void set_msr(struct env *e, uint32_t index, uint64_t value)
{
	struct { uint32_t nmsrs, pad; struct kvm_msr_entry entry; } m = { /* struct kvm_msrs */
		.nmsrs = 1, .entry = { .index = index, .data = value },
	};

	NEED(ioctl(e->t.vcpu, KVM_SET_MSRS, &m) == 1);
}

#define STAR (0x0023ull << 48 | (uint64_t)K64 << 32)
T(syscall_64, LU, "syscall\n9:", set_msr(e, 0xc0000081, STAR); set_msr(e, 0xc0000082, TARGET(V)); set_msr(e, 0xc0000084, 0x200); e->r.rflags |= 0x200, V, ELSEWHERE,
  WANT(r->regs.rcx, CODE + 2); WANT(r->regs.r11 & 0x202, 0x202); WANT(r->regs.rflags & 0x200, 0); WANT(r->sregs.cs.selector, K64);
  WANT(r->sregs.ss.selector, K64 + 8); WANT(r->regs.rsp, STACK3))
T(sysret_64, L, "mov $0x20000, %ecx\nmov $0x3202, %r11d\nsysretq\n9:", set_msr(e, 0xc0000081, (uint64_t)(0x28 | 3) << 48); *at16(e, DATA) = 0x80cd; USER_GATE(K64),
  V, ELSEWHERE, WANT(r->cs, 0x3b); WANT(r->ss, 0x33); WANT(r->flags & 0x3200, 0x3200); WANT(r->rip, DATA + 2))
T(sysret_32, L, "mov $0x20000, %ecx\nmov $2, %r11d\nsysretl\n9:", set_msr(e, 0xc0000081, (uint64_t)(0x30 | 3) << 48); *at16(e, DATA) = 0x80cd; USER_GATE(K64),
  V, ELSEWHERE, WANT(r->cs, 0x33); WANT(r->rip, DATA + 2))
T(sysenter_32, P32U, "sysenter\n9:", set_msr(e, 0x174, K32); set_msr(e, 0x175, STACK0); set_msr(e, 0x176, TARGET(V)), V, ELSEWHERE,
  WANT(r->sregs.cs.selector, K32); WANT(r->sregs.ss.selector, KDATA); WANT(r->regs.rsp, STACK0))
T(sysenter_cs0, P32U, "9: sysenter", set_msr(e, 0x174, 0), GP, 0, )
T(sysexit_32, P32, "mov $0x20000, %edx\nmov $0x38000, %ecx\nsysexit\n9:", set_msr(e, 0x174, K32); gdt_set(e, 0x18, 0x00cffb000000ffff);
  gdt_set(e, 0x20, 0x00cff3000000ffff); *at16(e, DATA) = 0x80cd; USER_GATE(K32), V, ELSEWHERE, WANT(r->cs, 0x1b); WANT(r->ss, 0x23); WANT(r->sp, STACK3))
T(sysexit_cs0, P32, "9: sysexit", set_msr(e, 0x174, 0), GP, 0, )
T(swapgs, L, "swapgs\n9: nop", set_msr(e, 0xc0000102, 0x123456); e->s.gs.base = 0x777, OK, NOERR, WANT(r->sregs.gs.base, 0x123456))

/* ---- tasks ------------------------------------------------------------------------------------------------------ */
T(task_jmp, P32, "9: ljmp $0x58, $0", task(e, TSS2, TARGET(V)), V, ELSEWHERE, WANT(r->sregs.tr.selector, TSSSEL2); WANT(r->sregs.tr.base, TSS2);
  WANT(*at64(e, GDT + TSSSEL2) >> 40 & 0xff, 0x8b); WANT(*at64(e, GDT + TSSSEL) >> 40 & 0xff, 0x89); WANT(r->sregs.cr0 & 8, 8);
  WANT(*at32(e, TSS + 32), CODE + 7); WANT(r->regs.rsp, STACK3 - 0x100); WANT(r->regs.rflags & 0x4000, 0))
T(task_call, P32, "9: lcall $0x58, $0", task(e, TSS2, TARGET(V)), V, ELSEWHERE, WANT(r->regs.rflags & 0x4000, 0x4000); WANT(*at16(e, TSS2), TSSSEL);
  WANT(*at64(e, GDT + TSSSEL) >> 40 & 0xff, 0x8b))
T(task_call_iret, P32, "lcall $0x58, $0\nmov $5, %ebx\n9: nop", task(e, TSS2, DATA); *at8(e, DATA) = 0xcf, OK, NOERR, WANT(r->regs.rbx, 5);
  WANT(r->sregs.tr.selector, TSSSEL); WANT(*at64(e, GDT + TSSSEL2) >> 40 & 0xff, 0x89); WANT(*at32(e, TSS2 + 32), DATA + 1))
T(task_gate_int, P32, "9: int $0x80", task(e, TSS2, TARGET(V)); idt_gate(e, V, TSSSEL2, 0x85, 0), V, ELSEWHERE, WANT(*at32(e, TSS + 32), CODE + 2))
T(task_gate_error, P32, "9: hlt", *at8(e, CODE) = 0x0f; *at8(e, CODE + 1) = 0x0b; task(e, TSS2, TARGET(V)); idt_gate(e, UD, 0x1000, 0x8e, 0);
  idt_gate(e, GP, TSSSEL2, 0x85, 0), V, ELSEWHERE, WANT(*at32(e, r->at), 0x1001))
T(task_busy, P32, "9: ljmp $0x58, $0", task(e, TSS2, 0); gdt_set(e, TSSSEL2, seg_desc(TSS2, 0x67, 0x8b, 0)), GP, TSSSEL2, )
T(task_np, P32, "9: ljmp $0x58, $0", task(e, TSS2, 0); gdt_set(e, TSSSEL2, seg_desc(TSS2, 0x67, 0x09, 0)), NP, TSSSEL2, )
T(task_limit, P32, "9: ljmp $0x58, $0", task(e, TSS2, 0); gdt_set(e, TSSSEL2, seg_desc(TSS2, 0x66, 0x89, 0)), TS, TSSSEL2, )
T(task_dpl, P32U, "9: ljmp $0x5b, $0", task(e, TSS2, 0), GP, TSSSEL2, )
T(task_bad_cs, P32, "9: ljmp $0x58, $0", task(e, TSS2, CODE); *at32(e, TSS2 + 76) = KDATA, TS, ELSEWHERE | KDATA, WANT(r->rip, CODE))
T(task_bad_ss, P32, "9: ljmp $0x58, $0", task(e, TSS2, CODE); *at32(e, TSS2 + 80) = K32, SHUTDOWN, NOERR, )
T(task_bad_ldt, P32, "9: ljmp $0x58, $0", task(e, TSS2, CODE); *at32(e, TSS2 + 96) = KDATA;
  task(e, TSS2 + 0x100, TARGET(V)); gdt_set(e, FREE, seg_desc(TSS2 + 0x100, 0x67, 0x89, 0)); idt_gate(e, TS, FREE, 0x85, 0), V, ELSEWHERE,
  WANT(*at32(e, r->at), KDATA); WANT(*at16(e, TSS2 + 0x100), TSSSEL2))
T(task_iret_not_busy, P32, "pushf\nbtsl $14, (%esp)\npopf\n9: iret", *at16(e, TSS) = TSSSEL2; task(e, TSS2, CODE), TS, TSSSEL2, )
T(task_debug_trap, P32, "9: ljmp $0x58, $0", task(e, TSS2, DATA); *at16(e, TSS2 + 100) = 1, DB, ELSEWHERE, WANT(r->rip, DATA))
T(task_cr3, N32, "9: ljmp $0x58, $0", task(e, TSS2, TARGET(V)), V, ELSEWHERE, WANT(r->sregs.cr3, PD))

/* ---- vm86 ----------------------------------------------------------------------------------------------------------- */
T(v86_int_iopl3, V86, "int $0x80\n9:", USER_GATE(K32), V, NOERR, WANT(r->cs, CODE >> 4); WANT(*at32(e, r->at + 20), 0); WANT(*at32(e, r->at + 24), DATA >> 4);
  WANT(r->sregs.ds.unusable, 1); WANT(r->at, STACK0 - 36); WANT(r->flags >> 17 & 1, 1); WANT(r->regs.rflags >> 17 & 1, 0))
T(v86_int_dpl, V86, "9: int $0x80", , GP, V * 8 + 2, )
T(v86_int_iopl0, V86, "9: int $0x80", USER_GATE(K32); e->r.rflags &= ~0x3000ull, GP, 0, )
T(v86_int_dpl3_cs, V86, "9: int $0x80", USER_GATE(U32), GP, U32 & ~3, )
T(v86_conforming, V86, "9: int $0x80", gdt_set(e, FREE, 0x00cf9f000000ffff); USER_GATE(FREE), GP, FREE, )
T(v86_cli_iopl0, V86, "9: cli", e->r.rflags &= ~0x3000ull, GP, 0, )
T(v86_sti_iopl0, V86, "9: sti", e->r.rflags &= ~0x3000ull, GP, 0, )
T(v86_pushf_iopl0, V86, "9: pushf", e->r.rflags &= ~0x3000ull, GP, 0, )
T(v86_popf_iopl0, V86, "9: popf", e->r.rflags &= ~0x3000ull, GP, 0, )
T(v86_iret_iopl0, V86, "9: iret", e->r.rflags &= ~0x3000ull, GP, 0, )
T(v86_hlt, V86, "9: hlt", , GP, 0, )
T(v86_in_bitmap, V86, "in $0x80, %al\n9: ud2", *at8(e, TSS + 0x78) = 1, GP, ELSEWHERE, WANT(r->rip, 0))
T(v86_mov_cr, V86, "9: mov %cr0, %eax", , GP, 0, )
T(v86_iret_iopl3, V86, "pushf\npush %cs\npush $(9f - 8b)\niret\nud2\n9: ud2", , UD, NOERR, WANT(r->flags >> 17 & 1, 1); WANT(r->flags >> 12 & 3, 3))
T(v86_from_iret, P32, "push $0\npush $0\npush $0\npush $0x2000\npush $0x3400\npush $0x4000\npush $0x23002\npush $0x1000\npush $(9f - 8b)\niret\n9: .byte 0x0f, 0x0b",
  for (unsigned i = 0; i < 1; i++) (void)0, UD, ELSEWHERE, WANT(r->flags >> 17 & 1, 1); WANT(r->cs, 0x1000); WANT(r->ss, 0x3400))
/* VME: interrupts redirected to the program, a virtual IF. */
T(vme_cli, V86, "cli\n9: ud2", e->r.rflags = (e->r.rflags & ~0x3000ull) | 0x80200; e->s.cr4 |= 1, UD, NOERR, WANT(r->flags >> 19 & 1, 0);
  WANT(r->flags >> 9 & 1, 1))
T(vme_sti, V86, "sti\n9: ud2", e->r.rflags &= ~0x3000ull; e->s.cr4 |= 1, UD, NOERR, WANT(r->flags >> 19 & 1, 1); WANT(r->flags >> 9 & 1, 0))
T(vme_sti_vip, V86, "9: sti", e->r.rflags = (e->r.rflags & ~0x3000ull) | 0x100000; e->s.cr4 |= 1, GP, 0, )
T(vme_pushf, V86, "pushf\npop %ax\n9: ud2", e->r.rflags = (e->r.rflags & ~0x3000ull) | 0x80000; e->s.cr4 |= 1, UD, NOERR,
  WANT(r->regs.rax & 0x3200, 0x3200))
T(vme_popf_tf, V86, "pushw $0x100\n9: popf", e->r.rflags &= ~0x3000ull; e->s.cr4 |= 1, GP, 0, )
T(vme_int_redirected, V86, "int $0x80\n9: ud2", e->r.rflags = (e->r.rflags & ~0x3000ull) | 0x80200; e->s.cr4 |= 1; *at16(e, TSS + 102) = 0x88;
  *at32(e, V * 4) = 0x1000 << 16 | 0x100; *at16(e, CODE + 0x100) = 0x0b0f, UD, ELSEWHERE, WANT(r->rip, 0x100); WANT(r->cs, 0x1000);
  WANT(r->flags >> 19 & 1, 0); WANT(*at16(e, STACK3 - 2) & 0x3200, 0x3200); WANT(*at16(e, STACK3 - 6), 2))
T(vme_int_bitmap_set, V86, "9: int $0x80", e->r.rflags &= ~0x3000ull; e->s.cr4 |= 1; *at16(e, TSS + 102) = 0x88; *at8(e, TSS + 0x68 + V / 8) = 1, GP, 0, )
T(pvi_cli, P32U, "sti\ncli\n9: ud2", e->s.cr4 |= 2; e->r.rflags |= 0x80000, UD, NOERR, WANT(r->flags >> 19 & 1, 0))
T(pvi_sti_vip, P32U, "9: sti", e->s.cr4 |= 2; e->r.rflags |= 0x100000, GP, 0, )

/* ---- from mode to mode ------------------------------------------------------------------------------------------------- */
T(real_to_protected, R, "cli\nxor %ax, %ax\nmov %ax, %ds\nlgdtl 0xe000\nmov %cr0, %eax\nor $1, %al\nmov %eax, %cr0\nljmpl $8, $(0x10000 + 1f - 8b)\n"
  ".code32\n1: mov $0x10, %eax\nmov %eax, %ds\nmov %eax, %ss\nmovl $0x1234, 0x20000\nmov 0x20000, %ebx\n9: nop",
  *at16(e, 0xe000) = 0xff; *at32(e, 0xe002) = GDT, OK, NOERR, WANT(r->regs.rbx, 0x1234); WANT(r->sregs.cs.db, 1))
T(protected_to_real, P16, "mov %cr0, %eax\nand $0xfe, %al\nmov %eax, %cr0\nljmp $0x1000, $(1f - 8b)\n1: mov $0x2000, %ax\nmov %ax, %ds\nmov %ds:0x10, %bx\n9: nop",
  gdt_set(e, K16, seg_desc(CODE, 0xffff, 0x9b, 0)); e->s.cs.base = CODE; e->s.cs.limit = 0xffff; e->s.cs.g = 0; e->r.rip = 0; *at16(e, DATA + 0x10) = 0x4321, OK, NOERR,
  WANT(r->regs.rbx & 0xffff, 0x4321); WANT(r->sregs.cs.base, CODE); WANT(r->sregs.cr0 & 1, 0))
T(unreal, R, "mov $0x20, %ebx\nshl $12, %ebx\nmov (%ebx), %ax\n9: nop", e->s.ds.limit = 0xffffffff; e->s.ds.g = 1; e->s.ds.base = 0; e->s.ds.selector = 0;
  *at16(e, DATA) = 0x77, OK, NOERR, WANT(r->regs.rax & 0xffff, 0x77))
T(protected_to_long, P32, "mov %cr4, %eax\nbts $5, %eax\nmov %eax, %cr4\nmov $0x1000, %eax\nmov %eax, %cr3\nmov $0xc0000080, %ecx\nrdmsr\nbts $8, %eax\nwrmsr\n"
  "mov %cr0, %eax\nbts $31, %eax\nmov %eax, %cr0\nljmp $0x18, $(0x10000 + 1f - 8b)\n.code64\n1: mov $1, %ebx\nshl $40, %rbx\n9: nop",
  *at64(e, PML4) = PDPT | 3; *at64(e, PDPT) = 0x83, OK, NOERR, WANT(r->regs.rbx, 1ull << 40); WANT(r->sregs.efer & 0x500, 0x500); WANT(r->sregs.cs.l, 1))
T(pg_no_pae_lme, P32, "mov $0xc0000080, %ecx\nrdmsr\nbts $8, %eax\nwrmsr\nmov %cr0, %eax\nbts $31, %eax\n9: mov %eax, %cr0", , GP, 0, )
T(long_to_protected, C, "mov %cr0, %eax\nbtr $31, %eax\nmov %eax, %cr0\nmov $0xc0000080, %ecx\nrdmsr\n9: nop", , OK, NOERR, WANT(r->regs.rax & 0x500, 0x100);
  WANT(r->sregs.efer & 0x400, 0))
T(long_pg_off_64, L, "mov %cr0, %rax\nbtr $31, %rax\n9: mov %rax, %cr0", , GP, 0, )
T(long_to_compat_and_back, L, "movl $(0x10000 + 1f - 8b), 0x20000\nmovw $8, 0x20004\nljmp *0x20000\n.code32\n1: dec %eax\nljmp $0x18, $(0x10000 + 2f - 8b)\n"
  ".code64\n2: .byte 0x48, 0xff, 0xc3\n9: nop", e->r.rax = 1; e->r.rbx = 0xffffffff, OK, NOERR, WANT(r->regs.rax, 0); WANT(r->regs.rbx, 1ull << 32))
T(pae_paging_on, P32, "mov $0x2000, %eax\nmov %eax, %cr3\nmov %cr4, %eax\nbts $5, %eax\nmov %eax, %cr4\nmov %cr0, %eax\nbts $31, %eax\nmov %eax, %cr0\n"
  "mov 0x40010, %ebx\n9: nop", *at64(e, PDPT) = PD | 1; *at32(e, PAGE + 0x10) = 9, OK, NOERR, WANT(r->regs.rbx, 9))
T(pae_bad_pdpte, P32, "mov $0x2000, %eax\nmov %eax, %cr3\nmov %cr4, %eax\nbts $5, %eax\nmov %eax, %cr4\nmov %cr0, %eax\nbts $31, %eax\n9: mov %eax, %cr0",
  *at64(e, PDPT) = PD | 7, GP, 0, )
T(lmsw, P32, "mov $0xffff, %eax\nlmsw %ax\nmov $0, %eax\nlmsw %ax\nsmsw %ebx\n9: nop", , OK, NOERR, WANT(r->regs.rbx & 0xf, 1))
T(compat_wraps, C, "mov $0xffffffff, %eax\nmov 0x20001(%eax), %ebx\n9: nop", *at32(e, DATA) = 0x55, OK, NOERR, WANT(r->regs.rbx, 0x55))
T(cs_base_32, P32, "call 1f\n1: pop %eax\n9: nop", e->s.cs.base = 0x10000; e->r.rip = 0; e->s.ds.base = 0, OK, NOERR, WANT(r->regs.rax, 5))

PRIV_MAIN

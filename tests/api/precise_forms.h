/* SPDX-License-Identifier: MIT */
/*
 * Instructions with memory operands, for precise_fault.c. A form is code that uses one operand A, and perhaps
 * another one B: where these are is the test's choice, which sets the registers they are addressed with.
 *
 *	FORM(name, properties, A(base register, what is added to it, bytes), B(...) or NONE, "code")
 *
 * r8 to r11 and r15 belong to what the test puts around; r12d is 5. In 32-bit code eax and edx are changed before it.
 */
#ifndef TESTS_API_PRECISE_FORMS_H
#define TESTS_API_PRECISE_FORMS_H

#include "both.h"

enum { RAX, RCX, RDX, RBX, RSP, RBP, RSI, RDI, R8, R9, R10, R11, R12, R13, R14, R15, NOREG = -1 };

enum {
	RD = 1, WR = 2, RW = 3,		/* what it does to A */
	BWR = 4,			/* it writes B; otherwise reads */
	ALIGN16 = 8, ALIGN64 = 0x10,
	PARTIAL = 0x20,			/* memory may have been written in part when it faults */
	UNDEF = 0x40,			/* leaves arithmetic flags undefined that nobody need agree on */
	SETS = 0x80,			/* overwrites all arithmetic flags */
	SETS_NOT_CF = 0x100,		/* all but CF */
	SETS_SOME = 0x200,		/* some, some of them perhaps */
	CODE_A = 0x400,			/* A is executed */
	RIP = 0x800,			/* the last four bytes are A's address, relative to the end */
	FIXED = 0x1000,			/* A lies where the code says */
	GS_IS_FS = 0x2000,		/* natively with GS instead of FS, which belongs to libc */
	IMAGE = 0x4000,			/* A must hold an XSAVE image */
	MMX = 0x8000,			/* whether a fault finds MMX's state entered depends on the CPU */
	USER = 0x10000,			/* loads selectors of CPL 3 */
	NOTHING = 0x20000,		/* need not fault */
	SOME_VECTORS = 0x40000,		/* vector registers when it faults: whatever it had got to */
	SOME_REGISTERS = 0x80000,	/* the same of general registers but rsp */
	ANY_CR2 = 0x100000,		/* which of A's bytes is read first is the CPU's choice */
	W32 = 0x200000,			/* 32-bit code */
};

struct operand {
	int base, add;
	unsigned size;
};

struct form {
	const char *name;
	unsigned properties;
	struct operand a, b;
	const uint8_t *code, *end;
};

#define A(base, add, size) { base, add, size }
#define B(base, add, size) { base, add, size }
#define NONE { NOREG, 0, 0 }

#define FORM(name, properties, a, b, text)                                              \
	GUEST_CODE(code_##name, text);                                                  \
	static const struct form form_##name __attribute__((section("precise_forms"), used, aligned(8))) = \
		{ #name, properties, a, b, code_##name, code_##name##_end };

extern const struct form __start_precise_forms[], __stop_precise_forms[];

/* Most have their operand at M. */
#define M "16(%rsi)"
#define ON(name, size, properties, text) FORM(name, properties, A(RSI, 16, size), NONE, text)
#define LOAD(name, size, text) ON(name, size, RD, text)
#define STORE(name, size, text) ON(name, size, WR, text)
#define ALU(name, size, text) ON(name, size, RW | SETS, text)

/* ---- moves ---- */
LOAD(load8, 1, "mov " M ", %dl")
LOAD(load8_high, 1, "mov " M ", %ah")
FORM(load8_high_own_base, RD, A(RBX, 8, 1), NONE, "mov 8(%rbx), %bh")
LOAD(load8_new, 1, "mov " M ", %r13b")
LOAD(load16, 2, "mov " M ", %dx")
LOAD(load32, 4, "mov " M ", %edx")
LOAD(load64, 8, "mov " M ", %rdx")
LOAD(load64_base, 8, "mov " M ", %rsi")
LOAD(movzx8, 1, "movzbl " M ", %edx")
LOAD(movzx16, 2, "movzwq " M ", %rdx")
LOAD(movsx8, 1, "movsbq " M ", %rdx")
LOAD(movsx16, 2, "movswl " M ", %r14d")
LOAD(movsxd, 4, "movslq " M ", %rdx")
LOAD(movbe_load, 8, "movbe " M ", %rdx")
LOAD(cmov, 8, "cmovc " M ", %rdx")
LOAD(cmov_not, 4, "cmovnc " M ", %edx")
STORE(store8, 1, "mov %dl, " M)
STORE(store8_high, 1, "mov %dh, " M)
FORM(store8_high_own_base, WR, A(RBX, 8, 1), NONE, "mov %bh, 8(%rbx)")
FORM(store8_high_index, WR, A(RDI, 5 * 2, 1), NONE, "mov $5, %ecx; mov %ch, (%rdi,%rcx,2)")
STORE(store16, 2, "mov %dx, " M)
STORE(store32, 4, "mov %edx, " M)
STORE(store64, 8, "mov %rdx, " M)
STORE(store64_base, 8, "mov %rsi, " M)
STORE(store_imm8, 1, "movb $-3, " M)
STORE(store_imm16, 2, "movw $0x1234, " M)
STORE(store_imm32, 4, "movl $0x12345678, " M)
STORE(store_imm64, 8, "movq $-0x1234567, " M)
STORE(movbe_store, 4, "movbe %edx, " M)
STORE(movnti, 8, "movnti %rdx, " M)
STORE(setcc, 1, "seta " M)
STORE(setcc_o, 1, "seto " M)
STORE(mov_from_seg, 2, "mov %gs, " M)
ON(mov_to_seg, 2, RD, "movw $0, 16(%rsi); mov " M ", %es")

/* ---- addressing ---- */
FORM(at_index, RD, A(RSI, 16 + 5 * 4, 8), NONE, "mov 16(%rsi,%r12,4), %rdx")
FORM(at_index_store, WR, A(RDI, -8 + 5 * 8, 8), NONE, "mov %rdx, -8(%rdi,%r12,8)")
FORM(at_index_base, RD, A(R12, 0, 8), NONE, "mov $3, %ecx; mov -3(%rcx,%r12), %r12")
FORM(at_index_only, RW | SETS, A(RBX, 8, 4), NONE, "add %edx, 8(,%rbx,1)")
FORM(at_rbp, RD, A(RBP, 0, 8), NONE, "mov (%rbp), %rdx")
FORM(at_rsp, RW | SETS, A(RSP, 24, 8), NONE, "add %rdx, 24(%rsp)")
FORM(at_r13, WR, A(R13, 0, 8), NONE, "mov %rdx, (%r13)")
FORM(at_r14, RD, A(R14, 100, 4), NONE, "mov 100(%r14), %r14d")
FORM(at_r15, RD, A(R15, 0, 8), NONE, "mov (%r15), %rdx")
FORM(at_disp32, RD, A(RSI, 0x12345, 8), NONE, "mov 0x12345(%rsi), %rdx")
FORM(at_addr32, WR, A(RSI, 16, 8), NONE, "mov %rdx, 16(%esi)")
FORM(at_addr32_index, RD, A(RSI, 16 + 5, 8), NONE, "mov 16(%esi,%r12d), %rdx")
FORM(at_gs, RW | SETS, A(RSI, 16 + 0x1000, 8), NONE, "sub %rdx, %gs:16(%rsi)")
FORM(at_fs, WR | GS_IS_FS, A(RSI, 16 + 0x1000, 8), NONE, ".byte 0x64; mov %rdx, 16(%rsi)")
FORM(at_fs_load, RD | GS_IS_FS, A(RSI, 16 + 0x1000, 8), NONE, ".byte 0x64; mov 16(%rsi), %rdx")
FORM(at_absolute, RW | SETS | FIXED, A(NOREG, 0, 8), NONE, "xor %rdx, 0x20000f00")
FORM(at_absolute_across, WR | FIXED, A(NOREG, -4, 8), NONE, "mov %rdx, 0x20000ffc")
FORM(at_moffs, RD | FIXED, A(NOREG, 0, 8), NONE, "movabs 0x20000f00, %rax")
FORM(at_rip, RD | RIP | FIXED, A(NOREG, 0, 8), NONE, "mov 0(%rip), %rdx")
FORM(at_rip_store, WR | RIP | FIXED, A(NOREG, -4, 8), NONE, "mov %rdx, 0(%rip)")

/* ---- arithmetic ---- */
ALU(add8, 1, "add %dl, " M)
ALU(add16, 2, "add %dx, " M)
ALU(add32, 4, "add %edx, " M)
ALU(add64, 8, "add %rdx, " M)
ALU(adc64, 8, "adc %rdx, " M)
ALU(sbb32, 4, "sbb %edx, " M)
ALU(or_imm, 4, "orl $0x1234567, " M)
ALU(and_imm8, 8, "andq $-16, " M)
ALU(xor_high, 1, "xor %ah, " M)
ALU(sbb_high, 1, "sbb %ch, " M)
FORM(add_high_own_base, RW | SETS, A(RBX, 0, 1), NONE, "add %bh, (%rbx)")
ALU(sub64, 8, "sub %rdx, " M)
ALU(neg64, 8, "negq " M)
ON(not64, 8, RW, "notq " M)
ON(inc32, 4, RW | SETS_NOT_CF, "incl " M)
ON(dec64, 8, RW | SETS_NOT_CF, "decq " M)
ON(inc8, 1, RW | SETS_NOT_CF, "incb " M)
ON(add_load, 8, RD | SETS, "add " M ", %rdx")
ON(adc_load, 8, RD | SETS, "adc " M ", %rdx")
ON(cmp_load, 8, RD | SETS, "cmp " M ", %rdx")
ON(cmp_store, 4, RD | SETS, "cmp %edx, " M)
ON(adc_high_load, 1, RD | SETS, "adc " M ", %dh")
ON(cmp_high, 1, RD | SETS, "cmp %bh, " M)
ON(cmp_high_load, 1, RD | SETS, "cmp " M ", %ah")
ON(test_high, 1, RD | SETS, "test %dh, " M)
ON(cmp_imm, 4, RD | SETS, "cmpl $77, " M)
ON(test_load, 8, RD | SETS, "test %rdx, " M)
ON(test_imm, 1, RD | SETS, "testb $0x42, " M)
ON(imul, 8, RD | SETS | UNDEF, "imul " M ", %rdx")
ON(imul_imm, 4, RD | SETS | UNDEF, "imul $77, " M ", %edx")
ON(mul, 8, RD | SETS | UNDEF, "mulq " M)
ON(imul_one, 2, RD | SETS | UNDEF, "imulw " M)
ON(div, 4, RD | SETS | UNDEF, "mov $7, %eax; mov $0, %edx; divl " M)
ON(idiv, 8, RD | SETS | UNDEF, "mov $9, %eax; mov $0, %edx; idivq " M)
ON(mulx, 8, RD, "mulx " M ", %rcx, %rdx")
ON(rol_one, 4, RW | SETS_SOME, "roll " M)
ON(rcr_imm, 8, RW | SETS_SOME | UNDEF, "rcrq $5, " M)
ON(shl_cl, 8, RW | SETS | UNDEF, "shlq %cl, " M)
ON(shr_zero, 8, RW | SETS_SOME, "mov $0, %ecx; shrq %cl, " M)
ON(sar_one, 1, RW | SETS | UNDEF, "sarb " M)
ON(shld, 8, RW | SETS | UNDEF, "shld $9, %rdx, " M)
ON(shrd_cl, 4, RW | SETS | UNDEF, "shrd %cl, %edx, " M)
ON(shlx, 8, RD, "shlx %rcx, " M ", %rdx")
ON(rorx, 4, RD, "rorx $7, " M ", %edx")
ON(andn, 8, RD | SETS | UNDEF, "andn " M ", %rdx, %rcx")
ON(bextr, 4, RD | SETS | UNDEF, "bextr %edx, " M ", %ecx")
ON(blsr, 8, RD | SETS | UNDEF, "blsr " M ", %rcx")
ON(pdep, 8, RD, "pdep " M ", %rdx, %rcx")
ON(adcx, 8, RD | SETS_SOME, "adcx " M ", %rdx")
ON(bsf, 8, RD | SETS | UNDEF, "bsf " M ", %rdx")
ON(popcnt, 8, RD | SETS, "popcnt " M ", %rdx")
ON(tzcnt, 4, RD | SETS | UNDEF, "tzcnt " M ", %edx")
ON(crc32, 8, RD, "crc32q " M ", %rdx")
ON(bt_imm, 8, RD | SETS_SOME | UNDEF, "btq $5, " M)
ON(bts_imm, 8, RW | SETS_SOME | UNDEF, "btsq $45, " M)
FORM(bt_reg, RD | SETS_SOME | UNDEF, A(RSI, 8 * 25, 8), NONE, "mov $25 * 64 + 3, %ecx; bt %rcx, (%rsi)")
FORM(btc_reg_back, RW | SETS_SOME | UNDEF, A(RSI, -4 * 12, 4), NONE, "mov $-12 * 32 + 9, %ecx; btc %ecx, (%rsi)")
ON(xchg64, 8, RW, "xchg %rdx, " M)
ON(xchg8, 1, RW, "xchg %dh, " M)
ON(xchg_high_ah, 1, RW, "xchg %ah, " M)
ON(lock_xor_high, 1, RW | SETS, "lock xor %ch, " M)
ON(xadd, 8, RW | SETS, "xadd %rdx, " M)
ON(lock_add, 8, RW | SETS, "lock add %rdx, " M)
ON(lock_inc, 4, RW | SETS_NOT_CF, "lock incl " M)
ON(lock_xadd, 8, RW | SETS, "lock xadd %rdx, " M)
ON(lock_btr, 8, RW | SETS_SOME | UNDEF, "lock btrq $7, " M)
ON(lock_not, 1, RW, "lock notb " M)
ON(cmpxchg_fails, 8, RW | SETS, "cmpxchg %rdx, " M)
FORM(cmpxchg_works, RW | SETS, A(RSI, 0, 4), NONE, "mov $77, %eax; movl $77, (%rsi); lock cmpxchg %edx, (%rsi)")
ON(cmpxchg8b, 8, RW | SETS_SOME, "lock cmpxchg8b " M)
ON(cmpxchg16b, 16, RW | SETS_SOME | ALIGN16, "lock cmpxchg16b " M)

/* ---- stack ---- */
FORM(push, WR, A(RSP, -8, 8), NONE, "push %rdx")
FORM(push_rsp, WR, A(RSP, -8, 8), NONE, "push %rsp")
FORM(push_imm, WR, A(RSP, -8, 8), NONE, "push $0x1234567")
FORM(push16, WR, A(RSP, -2, 2), NONE, "pushw %dx")
FORM(push_fs, WR, A(RSP, -8, 8), NONE, "push %fs")
FORM(pushes, WR, A(RSP, -32, 32), NONE, "push %rdx; push %rbx; push %rcx; push %rbp")
FORM(pop, RD, A(RSP, 0, 8), NONE, "pop %rdx")
FORM(pop_rsp, RD, A(RSP, 0, 8), NONE, "pop %rsp")
FORM(pops, RD, A(RSP, 0, 32), NONE, "pop %rdx; pop %rbx; pop %rcx; pop %rbp")
FORM(push_mem, RD | BWR, A(RSI, 16, 8), B(RSP, -8, 8), "push 16(%rsi)")
FORM(push_mem_rsp, RD, A(RSP, 16, 8), NONE, "push 16(%rsp)")
FORM(pop_mem, RD | BWR, A(RSP, 0, 8), B(RDI, 8, 8), "pop 8(%rdi)")
FORM(pop_mem_rsp, RW, A(RSP, 0, 16), NONE, "pop (%rsp)")
FORM(pushf, WR, A(RSP, -8, 8), NONE, "pushfq")
FORM(call, WR, A(RSP, -8, 8), NONE, "call 1f; 1:")
FORM(call_reg, WR, A(RSP, -8, 8), NONE, "lea 1f(%rip), %rax; call *%rax; 1:")
FORM(call_mem, RD | BWR, A(RSI, 16, 8), B(RSP, -8, 8), "lea 1f(%rip), %rax; mov %rax, 16(%rsi); call *16(%rsi); 1:")
FORM(call_ret, WR, A(RSP, -8, 8), NONE, "call 1f; jmp 2f; 1: mov %rdx, %rcx; ret; 2:")
FORM(jmp_mem, RD, A(RSI, 16, 8), NONE, "lea 1f(%rip), %rax; mov %rax, 16(%rsi); jmp *16(%rsi); 1:")
FORM(ret, RD, A(RSP, 0, 8), NONE, "lea 1f(%rip), %rax; mov %rax, (%rsp); ret; 1:")
FORM(ret_imm, RD, A(RSP, 0, 8), NONE, "lea 1f(%rip), %rax; mov %rax, (%rsp); ret $24; 1:")
FORM(leave, RD, A(RBP, 0, 8), NONE, "leave")
FORM(enter, WR, A(RSP, -8, 8), NONE, "enter $32, $0")
FORM(enter_1, WR | PARTIAL, A(RSP, -16, 16), NONE, "enter $32, $1")
FORM(enter_3, WR | PARTIAL, A(RSP, -32, 32), B(RBP, -16, 16), "enter $0, $3")
FORM(iretq, RD | USER | SETS, A(RSP, 0, 40), NONE,
     "lea 1f(%rip), %rax; mov %rax, (%rsp); movq $0x33, 8(%rsp); movq $0x246, 16(%rsp); mov %rsp, 24(%rsp);"
     "movq $0x2b, 32(%rsp); iretq; 1:")
FORM(lretq, RD | USER, A(RSP, 0, 16), NONE,
     "lea 1f(%rip), %rax; mov %rax, (%rsp); movq $0x33, 8(%rsp); lretq; 1:")
FORM(popf, RD | SETS, A(RSP, 0, 8), NONE, "movq $0x246, (%rsp); popfq")

/* ---- code ---- */
FORM(jump_to, RD | CODE_A, A(RAX, 0, 1), NONE, "jmp *%rax")
FORM(call_to, RD | CODE_A, A(RAX, 0, 1), NONE, "call *%rax")
FORM(ret_to, RD | CODE_A, A(RAX, 0, 1), NONE, "push %rax; ret")

/* ---- strings ---- */
FORM(movs, RD | BWR, A(RSI, 0, 8), B(RDI, 0, 8), "movsq")
FORM(movsb, RD | BWR, A(RSI, 0, 1), B(RDI, 0, 1), "movsb")
FORM(lods, RD, A(RSI, 0, 4), NONE, "lodsl")
FORM(stos, WR, A(RDI, 0, 8), NONE, "stosq")
FORM(scas, RD | SETS, A(RDI, 0, 8), NONE, "scasq")
FORM(cmps, RD | SETS, A(RSI, 0, 4), B(RDI, 0, 4), "cmpsl")
FORM(rep_movsb, RD | BWR, A(RSI, 0, 100), B(RDI, 0, 100), "mov $100, %ecx; rep movsb")
FORM(rep_movsq, RD | BWR, A(RSI, 0, 128), B(RDI, 0, 128), "mov $16, %ecx; rep movsq")
FORM(rep_movsl_back, RD | BWR, A(RSI, -60, 64), B(RDI, -60, 64), "std; mov $16, %ecx; rep movsl; cld")
FORM(rep_movsw_overlap, RD | WR, A(RSI, 0, 66), NONE, "lea 2(%rsi), %rdi; mov $32, %ecx; rep movsw")
FORM(rep_stosb, WR, A(RDI, 0, 77), NONE, "mov $77, %ecx; rep stosb")
FORM(rep_stosq, WR, A(RDI, 0, 80), NONE, "mov $10, %ecx; rep stosq")
FORM(rep_stosl_back, WR, A(RDI, -36, 40), NONE, "std; mov $10, %ecx; rep stosl; cld")
FORM(rep_lods, RD, A(RSI, 0, 40), NONE, "mov $10, %ecx; rep lodsl")
FORM(repne_scasq, RD | SETS, A(RDI, 0, 64), NONE, "mov $8, %ecx; repne scasq")
FORM(repne_cmpsq, RD | SETS, A(RSI, 0, 64), B(RDI, 0, 64), "mov $8, %ecx; repne cmpsq")
FORM(repne_cmpsb, RD | SETS, A(RSI, 0, 9), B(RDI, 0, 9), "mov $9, %ecx; repne cmpsb")
FORM(rep_zero, RD | NOTHING, A(RSI, 0, 64), NONE, "mov $0, %ecx; rep lodsb")
FORM(xlat, RD, A(RBX, 0, 1), NONE, "mov $0, %eax; xlat")

/* ---- x87, MMX ---- */
LOAD(fld32, 4, "flds " M "; fstp %st(0)")
LOAD(fld64, 8, "fldl " M "; fstp %st(0)")
LOAD(fld80, 10, "fldt " M "; fstp %st(0)")
LOAD(fild16, 2, "filds " M "; fstp %st(0)")
LOAD(fild64, 8, "fildll " M "; fstp %st(0)")
LOAD(fbld, 10, "fbld " M "; fstp %st(0)")
LOAD(fadd, 8, "fld1; faddl " M "; fstp %st(0)")
STORE(fst32, 4, "fldpi; fsts " M "; fstp %st(0)")
STORE(fstp64, 8, "fldpi; fstpl " M)
ON(fstp80, 10, WR | PARTIAL, "fldpi; fstpt " M)
STORE(fistp16, 2, "fldpi; fistps " M)
STORE(fistp64, 8, "fldpi; fistpll " M)
STORE(fisttp32, 4, "fldpi; fisttpl " M)
ON(fbstp, 10, WR | PARTIAL, "fldpi; fbstp " M)
STORE(fnstcw, 2, "fnstcw " M)
STORE(fnstsw, 2, "fnstsw " M)
LOAD(fldcw, 2, "movw $0x27f, " M "; fldcw " M)
ON(fnstenv, 28, ANY_CR2 | WR | PARTIAL, "fninit; fnstenv " M)
ON(fnsave, 108, ANY_CR2 | WR | PARTIAL, "fninit; fnsave " M)
ON(mmx_load, 8, RD | MMX, "movq " M ", %mm1; emms")
ON(mmx_store, 8, WR | MMX, "movq %mm1, " M "; emms")
ON(mmx_add, 8, RD | MMX, "paddd " M ", %mm1; emms")
FORM(maskmovq, ANY_CR2 | WR | MMX, A(RDI, 0, 8), NONE, "pcmpeqd %mm0, %mm0; maskmovq %mm0, %mm1; emms")

/* ---- SSE, AVX ---- */
LOAD(movd, 4, "movd " M ", %xmm1")
LOAD(movq_x, 8, "movq " M ", %xmm1")
LOAD(movss, 4, "movss " M ", %xmm1")
LOAD(movsd, 8, "movsd " M ", %xmm9")
LOAD(movhps, 8, "movhps " M ", %xmm1")
LOAD(movlpd, 8, "movlpd " M ", %xmm1")
LOAD(movups, 16, "movups " M ", %xmm1")
LOAD(movdqu, 16, "movdqu " M ", %xmm15")
LOAD(lddqu, 16, "lddqu " M ", %xmm1")
ON(movaps, 16, RD | ALIGN16, "movaps " M ", %xmm1")
ON(movntdqa, 16, RD | ALIGN16, "movntdqa " M ", %xmm1")
ON(paddd, 16, RD | ALIGN16, "paddd " M ", %xmm1")
ON(pshufb, 16, RD | ALIGN16, "pshufb " M ", %xmm1")
ON(addps, 16, RD | ALIGN16, "addps " M ", %xmm1")
ON(aesenc, 16, RD | ALIGN16, "aesenc " M ", %xmm1")
ON(ptest, 16, RD | ALIGN16 | SETS, "ptest " M ", %xmm1")
LOAD(addsd, 8, "addsd " M ", %xmm1")
LOAD(sqrtss, 4, "sqrtss " M ", %xmm1")
ON(ucomisd, 8, RD | SETS, "ucomisd " M ", %xmm1")
LOAD(cvtsi2sd, 8, "cvtsi2sdq " M ", %xmm1")
LOAD(cvttsd2si, 8, "cvttsd2si " M ", %rdx")
LOAD(pinsrw, 2, "pinsrw $3, " M ", %xmm1")
LOAD(pinsrq, 8, "pinsrq $1, " M ", %xmm1")
LOAD(pmovzxbd, 4, "pmovzxbd " M ", %xmm1")
LOAD(insertps, 4, "insertps $0x10, " M ", %xmm1")
ON(pcmpestri, 16, RD | SETS, "mov $3, %eax; pcmpestri $0, " M ", %xmm1")
STORE(movd_st, 4, "movd %xmm1, " M)
STORE(movss_st, 4, "movss %xmm1, " M)
STORE(movq_st, 8, "movq %xmm1, " M)
STORE(movhpd_st, 8, "movhpd %xmm1, " M)
STORE(movdqu_st, 16, "movdqu %xmm1, " M)
STORE(movups_st, 16, "movups %xmm14, " M)
ON(movaps_st, 16, WR | ALIGN16, "movaps %xmm1, " M)
ON(movntdq, 16, WR | ALIGN16, "movntdq %xmm1, " M)
STORE(pextrb, 1, "pextrb $5, %xmm1, " M)
STORE(pextrq, 8, "pextrq $1, %xmm1, " M)
STORE(extractps, 4, "extractps $2, %xmm1, " M)
FORM(maskmovdqu, ANY_CR2 | WR, A(RDI, 0, 16), NONE, "pcmpeqd %xmm2, %xmm2; maskmovdqu %xmm2, %xmm1")
LOAD(ldmxcsr, 4, "movl $0x1f80, " M "; ldmxcsr " M)
STORE(stmxcsr, 4, "stmxcsr " M)
LOAD(vmovdqu, 32, "vmovdqu " M ", %ymm1")
LOAD(vmovups_x, 16, "vmovups " M ", %xmm1")
LOAD(vpaddd, 32, "vpaddd " M ", %ymm2, %ymm1")
LOAD(vaddpd, 32, "vaddpd " M ", %ymm2, %ymm1")
LOAD(vfmadd, 32, "vfmadd231ps " M ", %ymm2, %ymm1")
LOAD(vbroadcastss, 4, "vbroadcastss " M ", %ymm1")
LOAD(vbroadcasti128, 16, "vbroadcasti128 " M ", %ymm1")
LOAD(vinserti128, 16, "vinserti128 $1, " M ", %ymm2, %ymm1")
LOAD(vcvtph2ps, 16, "vcvtph2ps " M ", %ymm1")
STORE(vmovdqu_st, 32, "vmovdqu %ymm1, " M)
STORE(vextracti128, 16, "vextracti128 $1, %ymm1, " M)
STORE(vcvtps2ph, 16, "vxorps %ymm3, %ymm3, %ymm3; vcvtps2ph $0, %ymm3, " M)
ON(vmaskmov_load, 32, ANY_CR2 | RD, "vpcmpeqd %ymm2, %ymm2, %ymm2; vmaskmovps " M ", %ymm2, %ymm1")
ON(vpmaskmovq_load, 32, ANY_CR2 | RD, "vpcmpeqd %ymm2, %ymm2, %ymm2; vpmaskmovq " M ", %ymm2, %ymm1")
ON(vmaskmov_store, 32, ANY_CR2 | WR, "vpcmpeqd %ymm2, %ymm2, %ymm2; vmaskmovps %ymm1, %ymm2, " M)
/* Masked off: not touched. The last element counts only. */
FORM(vmaskmov_half, ANY_CR2 | WR | NOTHING, A(RSI, 16, 16), NONE,
     "vpcmpeqd %xmm2, %xmm2, %xmm2; vmaskmovps %ymm1, %ymm2, " M)
FORM(vpmaskmovd_high, ANY_CR2 | RD | NOTHING, A(RSI, 16 + 16, 16), NONE,
     "vpcmpeqd %ymm2, %ymm2, %ymm2; vpxor %xmm3, %xmm3, %xmm3; vinserti128 $0, %xmm3, %ymm2, %ymm2;"
     "vpmaskmovd " M ", %ymm2, %ymm1")
FORM(vpgatherdd, RD | SETS | SOME_VECTORS, A(RSI, 16, 4), B(RDI, 0, 4),
     "mov %rdi, %rax; sub %rsi, %rax; vpxor %ymm3, %ymm3, %ymm3; vmovd %eax, %xmm4; vpslldq $4, %xmm4, %xmm4;"
     "mov $16, %eax; vmovd %eax, %xmm5; vpor %xmm5, %xmm4, %xmm4;"
     "vpcmpeqd %xmm2, %xmm2, %xmm2; vpsrldq $8, %xmm2, %xmm2; vpgatherdd %xmm2, (%rsi,%xmm4,1), %xmm1")

/* ---- state ---- */
ON(fxsave, 512, ANY_CR2 | WR | ALIGN16 | PARTIAL, "fxsave64 " M)
ON(fxrstor, 512, ANY_CR2 | RD | ALIGN16 | IMAGE, "fxrstor64 " M)
ON(xsave, 832, ANY_CR2 | WR | ALIGN64 | PARTIAL, "mov $7, %eax; mov $0, %edx; xsave64 " M)
ON(xrstor, 832, ANY_CR2 | RD | ALIGN64 | IMAGE | SOME_VECTORS, "mov $7, %eax; mov $0, %edx; xrstor64 " M)
ON(clflush, 1, RD, "clflush " M)
ON(clwb, 1, RD, "clwb " M)
ON(prefetch, 1, RD | NOTHING, "prefetcht0 " M)
ON(nop_mem, 4, RD | NOTHING, "nopl " M)
ON(lea, 4, RD | NOTHING, "lea " M ", %rdx")

/* ---- several in a row, with flags and registers between them ---- */
FORM(row_loads, RD, A(RSI, 0, 64), NONE,
     "mov (%rsi), %rax; mov 56(%rsi), %rbx; mov 24(%rsi), %rcx; mov 40(%rsi), %rdx; mov 8(%rsi), %rbp")
FORM(row_stores, WR, A(RDI, -32, 64), NONE,
     "mov %rax, (%rdi); mov %rbx, -32(%rdi); mov %ecx, 24(%rdi); movb $1, 31(%rdi); movups %xmm1, -16(%rdi)")
FORM(row_read_then_write, RW | SETS, A(RSI, 0, 48), NONE,
     "mov (%rsi), %rax; add $3, %rax; mov 40(%rsi), %rcx; xor %rax, %rcx; mov %rcx, 16(%rsi); adc %rdx, 32(%rsi); mov 8(%rsi), %rbx")
FORM(row_stack, RW | SETS, A(RSP, -24, 32), NONE,
     "push %rax; mov 8(%rsp), %rcx; push %rdx; sub $8, %rsp; mov %rcx, (%rsp); add $8, %rsp; pop %rbx; pop %rax")
FORM(row_frame, RW | SETS, A(RSP, -64, 72), B(RSI, 0, 8),
     "push %rbp; mov %rsp, %rbp; sub $48, %rsp; mov %rdi, -24(%rbp); mov %rax, -48(%rbp); mov (%rsi), %rdx; add %rdx, -24(%rbp);"
     "mov -48(%rbp), %rcx; leave")
FORM(row_two_bases, RW | BWR | SETS, A(RSI, 0, 24), B(RDI, 0, 24),
     "mov (%rsi), %rax; mov %rax, (%rdi); mov 16(%rsi), %rcx; mov %rcx, 16(%rdi); xor 8(%rsi), %rcx; sub %rcx, 8(%rdi); add %rax, (%rsi)")
FORM(row_branch, RW | SETS, A(RSI, 0, 32), NONE,
     "cmp %rax, (%rsi); je 1f; mov 8(%rsi), %rax; 1: test %rdx, 16(%rsi); jne 2f; incl 24(%rsi); 2: mov %rdx, (%rsi)")
FORM(row_vectors, RW, A(RSI, 0, 64), NONE,
     "movdqu (%rsi), %xmm1; vmovdqu 32(%rsi), %ymm2; movdqu %xmm2, 16(%rsi); movsd %xmm1, 8(%rsi)")
FORM(row_loop, RW | SETS, A(RSI, 0, 64), NONE, "mov $8, %ecx; 1: mov -8(%rsi,%rcx,8), %rax; add %rax, (%rsi); dec %ecx; jnz 1b")

/* ---- 32-bit code ---- */
#define FORM32(name, properties, a, b, text)                                            \
	GUEST_CODE(code32_##name, ".code32\n" text "\n.code64");                        \
	static const struct form form32_##name __attribute__((section("precise_forms"), used, aligned(8))) = \
		{ #name ", 32", W32 | (properties), a, b, code32_##name, code32_##name##_end };
#define N "16(%esi)"
#define ON32(name, size, properties, text) FORM32(name, properties, A(RSI, 16, size), NONE, text)

ON32(load8, 1, RD, "mov " N ", %ch")
ON32(load16, 2, RD, "mov " N ", %cx")
ON32(load32, 4, RD, "mov " N ", %ecx")
ON32(movsx, 2, RD, "movswl " N ", %ecx")
ON32(cmov, 4, RD, "cmovs " N ", %ecx")
ON32(store8, 1, WR, "mov %dh, " N)
ON32(xor8_high, 1, RW | SETS, "xor %bh, " N)
ON32(cmp8_high, 1, RD | SETS, "cmp " N ", %ch")
ON32(store32, 4, WR, "mov %edx, " N)
ON32(store_imm, 4, WR, "movl $0x12345678, " N)
ON32(setcc, 1, WR, "setle " N)
FORM32(moffs_load, RD | FIXED, A(NOREG, 0, 4), NONE, "mov 0x20000f00, %eax")
FORM32(moffs_store, WR | FIXED, A(NOREG, -4, 8), NONE, "mov %eax, 0x20000ffd")
FORM32(absolute, RW | SETS | FIXED, A(NOREG, 0, 4), NONE, "add %edx, 0x20000f00")
FORM32(index, RD, A(RBX, 12 + 3 * 4, 4), NONE, "mov $3, %ecx; mov 12(%ebx,%ecx,4), %ecx")
FORM32(ebp, WR, A(RBP, -8, 4), NONE, "mov %edx, -8(%ebp)")
FORM32(esp, RW | SETS, A(RSP, 8, 4), NONE, "sub %edx, 8(%esp)")
ON32(add, 4, RW | SETS, "add %edx, " N)
ON32(adc16, 2, RW | SETS, "adc %dx, " N)
ON32(sub_load, 4, RD | SETS, "sub " N ", %edx")
ON32(cmp8, 1, RD | SETS, "cmpb $3, " N)
ON32(inc, 4, RW | SETS_NOT_CF, "incl " N)
ON32(shl, 4, RW | SETS | UNDEF, "shll $3, " N)
ON32(not, 4, RW, "notl " N)
ON32(mul, 4, RD | SETS | UNDEF, "mull " N)
ON32(xchg, 4, RW, "xchg %edx, " N)
ON32(xadd, 4, RW | SETS, "lock xadd %edx, " N)
ON32(cmpxchg, 4, RW | SETS, "lock cmpxchg %edx, " N)
ON32(cmpxchg8b, 8, RW | SETS_SOME, "lock cmpxchg8b " N)
ON32(arpl, 2, RW | SETS_SOME, "arpl %dx, " N)
ON32(bound, 8, RD, "movl $0x80000000, 16(%esi); movl $0x7fffffff, 20(%esi); bound %edx, " N)
FORM32(bts_reg, RW | SETS_SOME | UNDEF, A(RSI, 4 * 7, 4), NONE, "mov $7 * 32 + 3, %ecx; bts %ecx, (%esi)")
FORM32(push, WR, A(RSP, -4, 4), NONE, "push %edx")
FORM32(push_imm, WR, A(RSP, -4, 4), NONE, "push $-7")
FORM32(push16, WR, A(RSP, -2, 2), NONE, "pushw %dx")
FORM32(pop, RD, A(RSP, 0, 4), NONE, "pop %ecx")
FORM32(pop_esp, RD, A(RSP, 0, 4), NONE, "pop %esp")
FORM32(pusha, WR | PARTIAL, A(RSP, -32, 32), NONE, "pusha")
FORM32(popa, RD | SOME_REGISTERS, A(RSP, 0, 32), NONE, "popa")
FORM32(pushf, WR, A(RSP, -4, 4), NONE, "pushf")
FORM32(push_mem, RD | BWR, A(RSI, 16, 4), B(RSP, -4, 4), "push 16(%esi)")
FORM32(pop_mem, RD | BWR, A(RSP, 0, 4), B(RDI, 8, 4), "pop 8(%edi)")
FORM32(pop_mem_esp, RW, A(RSP, 0, 8), NONE, "pop (%esp)")
FORM32(call, WR, A(RSP, -4, 4), NONE, "call 1f; 1:")
FORM32(call_ret, WR, A(RSP, -4, 4), NONE, "call 1f; jmp 2f; 1: ret; 2:")
FORM32(call_get, RW | SETS, A(RSP, -4, 4), B(RSI, 16, 4),
       "call 1f; 1: pop %ecx; add $2f - 1b, %ecx; mov %ecx, 16(%esi); jmp *16(%esi); 2:")
FORM32(leave, RD, A(RBP, 0, 4), NONE, "leave")
FORM32(enter, WR, A(RSP, -4, 4), NONE, "enter $16, $0")
FORM32(movs, RD | BWR, A(RSI, 0, 4), B(RDI, 0, 4), "movsl")
FORM32(stos, WR, A(RDI, 0, 4), NONE, "stosl")
FORM32(lods, RD, A(RSI, 0, 2), NONE, "lodsw")
FORM32(cmps, RD | SETS, A(RSI, 0, 4), B(RDI, 0, 4), "cmpsl")
FORM32(rep_movsl, RD | BWR, A(RSI, 0, 64), B(RDI, 0, 64), "mov $16, %ecx; rep movsl")
FORM32(rep_stosb, WR, A(RDI, 0, 77), NONE, "mov $77, %ecx; rep stosb")
FORM32(repne_scasl, RD | SETS, A(RDI, 0, 32), NONE, "mov $8, %ecx; repne scasl")
ON32(fld, 8, RD, "fldl " N "; fstp %st(0)")
ON32(fistp, 4, WR, "fldpi; fistpl " N)
ON32(movups, 16, RD, "movups " N ", %xmm1")
ON32(movups_st, 16, WR, "movups %xmm1, " N)
ON32(paddd, 16, RD | ALIGN16, "paddd " N ", %xmm1")
ON32(movsd_st, 8, WR, "movsd %xmm1, " N)
ON32(vpaddd, 32, RD, "vpaddd " N ", %ymm2, %ymm1")
ON32(vmovdqu_st, 32, WR, "vmovdqu %ymm1, " N)
FORM32(row, RW | SETS, A(RSI, 0, 32), NONE,
       "mov (%esi), %eax; add %eax, 8(%esi); adc 16(%esi), %ecx; mov %ecx, 24(%esi); dec %edx; mov %dl, 31(%esi)")
FORM32(row_frame, RW | SETS, A(RSP, -48, 52), NONE,
       "push %ebp; mov %esp, %ebp; push %ebx; sub $32, %esp; mov %edx, -20(%ebp); add %eax, -24(%ebp); mov -24(%ebp), %ecx;"
       "add $32, %esp; pop %ebx; pop %ebp")

#endif

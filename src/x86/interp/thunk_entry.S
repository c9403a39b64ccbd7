/* SPDX-License-Identifier: MIT */
/*
 * u32 thunk_enter(struct vcpu *vcpu, void *mem, const void *code, void **resume);
 *
 * Calls generated code, which may use every register but rsp. Our stack pointer
 * goes to *resume; a fault in the code resumes at thunk_leave with that stack
 * pointer and the reason in eax. On the stack at *resume: code, vcpu.
 */
	.text
	.globl thunk_enter
	.hidden thunk_enter
	.type thunk_enter, @function
	.p2align 4
thunk_enter:
	pushq %rbx
	pushq %rbp
	pushq %r12
	pushq %r13
	pushq %r14
	pushq %r15
	pushq %rdi
	pushq %rdx
	movq %rsp, (%rcx)
	call *%rdx
	xorl %eax, %eax
	.globl thunk_leave
	.hidden thunk_leave
thunk_leave:
	addq $16, %rsp
	popq %r15
	popq %r14
	popq %r13
	popq %r12
	popq %rbp
	popq %rbx
	ret
	.size thunk_enter, . - thunk_enter

	.section .note.GNU-stack, "", @progbits

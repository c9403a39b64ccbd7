/* SPDX-License-Identifier: MIT */
/*
 * Into real mode and into vm86 with the state in `in`, and back, by whatever
 * exception comes, with the state in `out` (legacy.h). Layout of struct state:
 * eax ecx edx ebx esp ebp esi edi, es cs ss ds fs gs (words), eip, eflags, vector, error.
 */
#define EAX 0
#define ECX 4
#define EDX 8
#define EBX 12
#define ESP 16
#define EBP 20
#define ESI 24
#define EDI 28
#define ES_ 32
#define CS_ 34
#define SS_ 36
#define DS_ 38
#define FS_ 40
#define GS_ 42
#define EIP 44
#define EFL 48
#define VEC 52
#define STATE 60

#define RM_BASE 0x1000
#define RM_SEG 0x100

	.section .text.start, "ax"
	.code32
	jmp	main

	.text
	.globl rm_run, v86_run, rm_blob, rm_blob_end, rm_stubs, rm_in, rm_out, v86_stubs
/* void rm_run(void): the blob is at RM_BASE already, with rm_in filled. */
rm_run:
	pushal
	mov	%esp, saved_esp
	lidt	rm_idtr
	ljmp	$0x18, $RM_BASE + rm16 - rm_blob

rm_back:
	mov	$0x10, %eax
	mov	%eax, %ds
	mov	%eax, %es
	mov	%eax, %ss
	mov	saved_esp, %esp
	lidt	pm_idtr
	popal
	ret

	.data
saved_esp: .long 0
rm_idtr:
	.word 0x3ff
	.long 0
	.globl pm_idtr
pm_idtr:
	.word 0x7ff
	.long pm_idt

	.balign 4
	.code16
rm_blob:
rm16:
	mov	$0x20, %ax
	mov	%ax, %ds
	mov	%ax, %es
	mov	%ax, %fs
	mov	%ax, %gs
	mov	%ax, %ss
	mov	%cr0, %eax
	and	$0xfe, %al
	mov	%eax, %cr0
	ljmp	$RM_SEG, $rm_real - rm_blob
rm_real:
	mov	$0x200, %ax
	mov	%ax, %ss
	mov	$0x800, %sp
	pushl	%cs:rm_in - rm_blob + EFL
	popfl
	mov	%cs:rm_in - rm_blob + ES_, %es
	mov	%cs:rm_in - rm_blob + DS_, %ds
	mov	%cs:rm_in - rm_blob + FS_, %fs
	mov	%cs:rm_in - rm_blob + GS_, %gs
	mov	%cs:rm_in - rm_blob + SS_, %ss
	movl	%cs:rm_in - rm_blob + ESP, %esp
	movl	%cs:rm_in - rm_blob + EAX, %eax
	movl	%cs:rm_in - rm_blob + ECX, %ecx
	movl	%cs:rm_in - rm_blob + EDX, %edx
	movl	%cs:rm_in - rm_blob + EBX, %ebx
	movl	%cs:rm_in - rm_blob + EBP, %ebp
	movl	%cs:rm_in - rm_blob + ESI, %esi
	movl	%cs:rm_in - rm_blob + EDI, %edi
	ljmp	*%cs:rm_target - rm_blob

	.globl rm_target
rm_target:
	.word 0, 0
rm_in:
	.skip STATE
rm_out:
	.skip STATE

rm_common:
	movl	%eax, %cs:rm_out - rm_blob + EAX
	movl	%ecx, %cs:rm_out - rm_blob + ECX
	movl	%edx, %cs:rm_out - rm_blob + EDX
	movl	%ebx, %cs:rm_out - rm_blob + EBX
	movl	%esp, %cs:rm_out - rm_blob + ESP
	movl	%ebp, %cs:rm_out - rm_blob + EBP
	movl	%esi, %cs:rm_out - rm_blob + ESI
	movl	%edi, %cs:rm_out - rm_blob + EDI
	mov	%es, %cs:rm_out - rm_blob + ES_
	mov	%ss, %cs:rm_out - rm_blob + SS_
	mov	%ds, %cs:rm_out - rm_blob + DS_
	mov	%fs, %cs:rm_out - rm_blob + FS_
	mov	%gs, %cs:rm_out - rm_blob + GS_
	mov	%cr0, %eax
	or	$1, %al
	mov	%eax, %cr0
	ljmpl	$8, $rm_back

rm_stubs:	/* 9 bytes each */
	.set v, 0
	.rept 256
	movb	$v, %cs:rm_out - rm_blob + VEC
	.byte	0xe9
	.word	rm_common - . - 2
	.set v, v + 1
	.endr
rm_blob_end:

	.text
	.code32
/* void v86_run(void): with v86_in filled; the TSS leads back here. */
v86_run:
	pushal
	mov	%esp, saved_esp
	mov	$v86_in, %eax
	movzwl	GS_(%eax), %ecx
	push	%ecx
	movzwl	FS_(%eax), %ecx
	push	%ecx
	movzwl	DS_(%eax), %ecx
	push	%ecx
	movzwl	ES_(%eax), %ecx
	push	%ecx
	movzwl	SS_(%eax), %ecx
	push	%ecx
	push	ESP(%eax)
	push	EFL(%eax)
	movzwl	CS_(%eax), %ecx
	push	%ecx
	push	EIP(%eax)
	mov	ECX(%eax), %ecx
	mov	EDX(%eax), %edx
	mov	EBX(%eax), %ebx
	mov	EBP(%eax), %ebp
	mov	ESI(%eax), %esi
	mov	EDI(%eax), %edi
	mov	EAX(%eax), %eax
	iretl

v86_common:
	pushal
	mov	$0x10, %eax
	mov	%eax, %ds
	mov	%eax, %es
	cld
	push	%esp
	call	trap
	mov	saved_esp, %esp
	popal
	ret

	.balign 16
v86_stubs:	/* 16 bytes each */
	.set v, 0
	.rept 256
	.balign 16
	.if !(v == 8 || (v >= 10 && v <= 14) || v == 17)
	push	$0
	.endif
	.byte	0x68
	.long	v
	jmp	v86_common
	.set v, v + 1
	.endr
	.section .note.GNU-stack, "", @progbits

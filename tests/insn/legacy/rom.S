/* SPDX-License-Identifier: MIT */
/* A 64 KiB ROM: the payload, copied to 2 MiB by what the reset vector leads to. Parameters at 0xeff0. */
	.text
	.code16
rom:
	.incbin "payload.bin"
	.org 0xeff0
	.long 1, 1000, 0xffffffff, 0	/* seed, cases, the one to show: patched by check-legacy */

	.org 0xf000
start16:
	cli
	lgdtl	%cs:gdtr - rom
	mov	%cr0, %eax
	or	$1, %al
	mov	%eax, %cr0
	ljmpl	$8, $0xf0000 + start32 - rom

	.code32
start32:
	mov	$0x10, %eax
	mov	%eax, %ds
	mov	%eax, %es
	mov	%eax, %ss
	mov	$0x300000, %esp
	mov	$0xf0000, %esi
	mov	$0x200000, %edi
	mov	$0xf000, %ecx
	cld
	rep movsb
	mov	$0x200000, %eax
	jmp	*%eax

	.balign 8
gdt:
	.quad 0, 0x00cf9b000000ffff, 0x00cf93000000ffff
gdtr:
	.word 23
	.long 0xf0000 + gdt - rom

	.org 0xfff0
	.code16
	jmp	start16
	.org 0x10000

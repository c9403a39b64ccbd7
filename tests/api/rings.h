/* SPDX-License-Identifier: MIT */
/*
 * Guests with a kernel and programs in ring 3: where the kernel's things are, descriptors, gates, page tables. Whoever includes this
 * has said where page tables go: TABLES, TABLES_END.
 */
#ifndef SOFTKVM_TESTS_API_RINGS_H
#define SOFTKVM_TESTS_API_RINGS_H

#include "kvmtest.h"

#define MEM (16u << 20)
#define KBASE 0xffffffff80000000ull	/* physical memory, for the kernel only */
#define GDT 0x8000u
#define IDT 0x9000u
#define TSS 0xa000u
#define KERNEL 0x10000u
#define STACK0 0x34000u

static uint64_t tables_used;

static inline uint64_t rings_new_table(void)
{
	uint64_t table = TABLES + 0x1000 * tables_used++;

	NEED(table + 0x1000 <= TABLES_END);
	return table;
}

/* The entry of va that maps 2^last bytes; tables on the way there are made. */
static inline uint64_t *rings_entry(struct kvmtest *t, uint64_t root, uint64_t va, int last)
{
	uint64_t *table = (uint64_t *)(t->mem + root);

	for (int shift = 39; shift > last; shift -= 9) {
		uint64_t *entry = &table[va >> shift & 511];

		if (!*entry)
			*entry = rings_new_table() | 7;
		table = (uint64_t *)(t->mem + (*entry & ~0xfffull));
	}
	return &table[va >> last & 511];
}

static inline void rings_map(struct kvmtest *t, uint64_t root, uint64_t va, uint64_t pa, uint64_t size, uint64_t flags)
{
	for (uint64_t i = 0; i < size; i += 0x1000)
		*rings_entry(t, root, va + i, 12) = (pa + i) | flags;
}

/* Page tables with the kernel's half, in large global pages. */
static inline uint64_t rings_root(struct kvmtest *t)
{
	uint64_t root = rings_new_table();

	for (uint64_t i = 0; i < MEM; i += 1u << 21)
		*rings_entry(t, root, KBASE + i, 21) = i | 0x183;
	return root;
}

/* Selectors: code 8, data 0x10; in ring 3 data 0x23, code 0x2b. */
static inline void rings_descriptors(struct kvmtest *t)
{
	uint64_t *gdt = (uint64_t *)(t->mem + GDT);

	gdt[1] = 0x00af9b000000ffffull;
	gdt[2] = 0x00cf93000000ffffull;
	gdt[4] = 0x00cff3000000ffffull;
	gdt[5] = 0x00affb000000ffffull;
}

static inline void rings_gate(struct kvmtest *t, unsigned vector, uint64_t to, unsigned dpl, unsigned ist)
{
	uint64_t *gate = (uint64_t *)(t->mem + IDT) + 2 * vector;

	gate[0] = (to & 0xffff) | 8ull << 16 | (uint64_t)(0x8e00 | dpl << 13 | ist) << 32 | (to >> 16 & 0xffff) << 48;
	gate[1] = to >> 32;
}

static inline struct kvm_segment rings_code(unsigned cpl)
{
	return (struct kvm_segment){ .selector = cpl ? 0x2b : 8, .dpl = cpl, .type = 11, .present = 1, .s = 1, .l = 1, .g = 1,
				     .limit = ~0u };
}

static inline struct kvm_segment rings_data(unsigned cpl)
{
	return (struct kvm_segment){ .selector = cpl ? 0x23 : 0x10, .dpl = cpl, .type = 3, .present = 1, .s = 1, .db = 1, .g = 1,
				     .limit = ~0u };
}

/* Segments, tables of descriptors, 64-bit paging. CR0 and CR4 are the caller's. */
static inline void rings_sregs(struct kvm_sregs *s, unsigned cpl, uint64_t cr3)
{
	s->cs = rings_code(cpl);
	s->ds = s->es = s->fs = s->gs = s->ss = rings_data(cpl);
	s->tr = (struct kvm_segment){ .base = KBASE + TSS, .limit = 0x67, .selector = 0x30, .type = 11, .present = 1 };
	s->gdt.base = KBASE + GDT;
	s->gdt.limit = 0x3f;
	s->idt.base = KBASE + IDT;
	s->idt.limit = 0xfff;
	s->cr3 = cr3;
	s->efer = 0xd00;
}

#endif

/* SPDX-License-Identifier: MIT */
/*
 * Address spaces told apart by PCID: loads of CR3 that keep what is known of them, and every way to say that it is stale. What a
 * CPU may still know is never asked for: only that nobody sees another space's page, or one that has been flushed away (SDM 3A, 4.10.4).
 * A kernel in the guest executes lists of operations, in ring 0 or 3; a model says what comes of each. Both engines.
 *
 * Each space has tables of its own. Each region has, at the same addresses in all of them: code that is the same for all, a function and
 * data that are not, a stack, and the next space's function as data.
 *
 * Seen to fail with each of these changes to x86/mmu/tlb.c: loads keep what they should not, an INVPCID that names a PCID does
 * nothing, a space is known by a CR3 that it no longer has, numbers run out unnoticed; to x86/dbt: the jump table's second level is
 * asked without regard to generations, or keeps them when fetches were dropped or the client has run, refills are not noted.
 */
#include <assert.h>
#include <stddef.h>

#define TABLES 0x100000u
#define TABLES_END 0x800000u

#include "both.h"
#include "generate.h"
#include "rings.h"

static_assert(STACK0 == 0x34000, "kernel_gate knows");
#define SHARED 0x40000u			/* the common code; after it, a stack for each region */
#define OPS TABLES_END
#define NR_OPS 65536u
#define DATA 0xc00000u
#define FUNCTIONS 0xd00000u

#define FUNCTION_PAGE 0x1000u		/* + its number is what it returns at first */

#define SPACES 40u
#define PAGES (2 * SPACES + 8)		/* of data, of functions: for each space one and another, then global ones */

/* In a region. */
#define F 0x1000u
#define FUNCTION 0x1003u		/* its operand is aligned */
#define OPERAND 4u			/* in its page */
#define D 0x2000u
#define STACK 0x3000u
#define NEXT 0x4000u			/* the next space's function */

#define PRESENT 0x1u
#define WRITABLE 0x2u
#define USER 0x4u
#define ACCESSED 0x20u
#define DIRTY 0x40u
#define GLOBAL 0x100u
#define KEEP (1ull << 63)
#define CR4 (0x6b0ull | smap)		/* PSE PAE PGE and for SSE */
#define SMAP 0x200000ull
#define PGE 0x80ull
#define PCIDE 0x20000ull

/* ---- the guest's code -------------------------------------------------------------------------- */

struct op {
	uint64_t func, a, b, stack;	/* stack: in ring 3 */
	uint64_t result, error, cr2, flags;	/* flags: there */
};
_Static_assert(sizeof(struct op) == 64, "the guest's kernel knows");

#define FAULT 0x1000u	/* and the error code */

GUEST_CODE(kernel,
	"1: mov (%rbx), %rax; test %rax, %rax; jnz 2f; hlt\n"
	"2: mov 8(%rbx), %rdi; mov 16(%rbx), %rsi; cmpq $0, 24(%rbx); jnz 3f; pushq 56(%rbx); popfq; call *%rax\n"
	"kernel_next: mov %rax, 32(%rbx); add $64, %rbx; jmp 1b\n"
	"3: pushq $0x23; pushq 24(%rbx); pushq 56(%rbx); pushq $0x2b; push %rax; iretq\n"
	"kernel_fault: popq 40(%rbx); orq $0x1000, 40(%rbx); mov %cr2, %rax; mov %rax, 48(%rbx)\n"
	"kernel_gate: mov $0xffffffff80034000, %rsp; jmp kernel_next\n"
	".org kernel+0x1000, 0xcc\n"
	"k_cr3: mov %rdi, %cr3; ret\n"
	"k_cr4: mov %rdi, %cr4; ret\n"
	"k_invlpg: invlpg (%rdi); ret\n"
	/* rsi: linear address, with the PCID in its lower bits */
	"k_invpcid: mov %rsi, %rax; and $~0xfff, %rax; and $0xfff, %esi; push %rax; push %rsi; invpcid (%rsp), %rdi\n"
	"add $16, %rsp; ret\n"
	"k_read: mov (%rdi), %rax; ret\n"
	"k_write: mov %rsi, (%rdi); ret\n"
	"k_write4: mov %esi, (%rdi); ret\n"
	"k_stop: hlt; ret\n"
	/* Loads without KEEP: rsi times, rdi and rdi + 1 in turn. */
	"k_loads: test $1, %sil; jz 1f; inc %rdi; 1: mov %rsi, %rcx; 2: mov %rdi, %cr3; xor $1, %rdi; dec %rcx; jnz 2b; ret");
extern const uint8_t kernel_fault[], kernel_gate[], k_cr3[], k_cr4[], k_invlpg[], k_invpcid[], k_read[], k_write[], k_write4[], k_stop[],
	k_loads[];

/* rdi: an address; rsi: a value. Function and data are where they are in a region. */
GUEST_CODE(code,
	"j_end: int $0x80\n"
	"j_read: mov (%rdi), %rax; ret\n"
	"j_write: mov %rsi, (%rdi); mov %rsi, %rax; ret\n"
	"j_write4: mov %esi, (%rdi); mov %rsi, %rax; ret\n"
	"j_add: add %rsi, (%rdi); mov (%rdi), %rax; ret\n"
	"j_icall: call *%rdi; ret\n"
	"j_ijmp: jmp *%rdi\n"
	"j_ret: push %rdi; ret\n"
	"j_dcall: call f; ret\n"
	"j_djmp: jmp f\n"
	"j_jcc: cmp %eax, %eax; je f; ud2\n"
	"j_loop: xor %esi, %esi; mov $3, %ecx; 1: call f; add %rax, %rsi; call *%rdi; add %rax, %rsi\n"
	"add code+0x2000(%rip), %rsi; dec %ecx; jnz 1b; mov %rsi, %rax; ret\n"
	"j_back: ret\n"
	".org code+0x1003, 0xcc\n"
	"f: .byte 0xb8; .long 0; ret\n"
	/* The next instruction is the other space's. */
	"f_cr3: mov %rdi, %cr3; f_imm: .byte 0xb8; .long 0; ret\n"
	"f_data: mov code+0x2000(%rip), %rax; ret\n"
	"f_back: mov f+1(%rip), %eax; jmp j_back\n"
	/* A look-up for all three. */
	"f_range: lea code+0x2000(%rip), %rdi; mov (%rdi), %rax; mov 8(%rdi), %rcx; mov 16(%rdi), %rdx\n"
	"f_imm2: .byte 0xb8; .long 0; ret\n"
	".org code+0x2000, 0xcc");
extern const uint8_t j_end[], j_read[], j_write[], j_write4[], j_add[], j_icall[], j_ijmp[], j_ret[], j_dcall[], j_djmp[], j_jcc[],
	j_loop[], f[], f_cr3[], f_imm[], f_data[], f_back[], f_range[], f_imm2[];

/* ---- the model ------------------------------------------------------------------------------------ */

/* Code of user contexts at 4 GiB and above is translated another way. */
static const struct region {
	uint64_t base;
	bool user, global;
} regions[] = {
	{ 0x600000, false, false }, { 0x610000, true, false }, { 0x7f0000000000, true, false },
	{ 0xa00000, false, true }, { 0x7f0000200000, true, true },
};
#define REGIONS (sizeof(regions) / sizeof(regions[0]))

/* Where operations are executed. */
static const struct place {
	unsigned region;
	bool user, aligned;	/* RFLAGS.AC */
} places[] = { { 0, false, false }, { 1, false, false }, { 1, true, false }, { 2, false, false }, { 2, true, false }, { 2, true, true } },
global_places[] = { { 3, false, false }, { 4, false, false }, { 4, true, false }, { 4, true, true } };
#define PLACES 6u
#define GLOBAL_PLACES 4u

struct view {
	unsigned d, f;	/* pages */
	bool read_only;
};
static struct space {
	uint64_t root;
	unsigned pcid;
	struct view view[REGIONS];	/* of global regions: the first one's */
} spaces[SPACES];
static unsigned now;			/* the present space */
static uint64_t values[PAGES];		/* of data, */
static uint32_t results[PAGES];		/* of functions */
static struct kvmtest t;
static uint64_t smap;			/* of CR4 */

static struct view *view_of(const struct place *p)
{
	return &spaces[regions[p->region].global ? 0 : now].view[p->region];
}

/* In the table whose entries map 1 << last bytes. */
static uint64_t *entry_in(uint64_t root, uint64_t va, int last)
{
	return rings_entry(&t, root, va, last);
}

static uint64_t *entry_at(uint64_t root, uint64_t va)
{
	return entry_in(root, va, 12);
}

static uint64_t entry_for(uint64_t pa, unsigned region)
{
	return pa | PRESENT | WRITABLE | ACCESSED | DIRTY | (regions[region].user ? USER : 0) | (regions[region].global ? GLOBAL : 0);
}

static uint64_t data_entry(const struct view *v, unsigned region)
{
	return entry_for(DATA + 0x1000 * v->d, region) & ~(v->read_only ? (uint64_t)WRITABLE : 0);
}

/* ---- lists of operations ---------------------------------------------------------------------------- */

static struct want {
	const char *what;
	unsigned space;
	uint64_t result, error;
	bool any;
} wants[NR_OPS];
static unsigned nr_ops;
static const char *part;
/* What the client does in between: loads CR3, or writes. */
static struct stop {
	uint64_t cr3, gpa;
	uint32_t value;
} stops[1000];
static unsigned nr_stops;

static uint64_t kernel_va(const uint8_t *label)
{
	return KBASE + KERNEL + (label - kernel);
}

static struct op *op_new(const char *what, uint64_t func, uint64_t a, uint64_t b, uint64_t result, bool any)
{
	struct op *o = (struct op *)(t.mem + OPS) + nr_ops;

	NEED(nr_ops < NR_OPS - 1);
	*o = (struct op){ .func = func, .a = a, .b = b, .flags = 2 };
	wants[nr_ops++] = (struct want){ .what = what, .space = now, .result = result, .any = any };
	return o;
}

static void k_op(const uint8_t *func, uint64_t a, uint64_t b)
{
	op_new("kernel", kernel_va(func), a, b, 0, true);
}

static void stop(struct stop what)
{
	NEED(nr_stops < sizeof(stops) / sizeof(stops[0]));
	stops[nr_stops++] = what;
	k_op(k_stop, 0, 0);
}

static uint64_t region_va(const struct place *p, uint64_t offset)
{
	return regions[p->region].base + offset;
}

static void j_op(const struct place *p, const char *what, const uint8_t *func, uint64_t a, uint64_t b, uint64_t result)
{
	struct op *o = op_new(what, region_va(p, func - code), a, b, result, false);

	/* In ring 0, AC is leave to use what is the user's. */
	o->flags = 2 | (p->aligned || (smap && !p->user && regions[p->region].user) ? 0x40000 : 0);
	o->stack = p->user ? region_va(p, STACK + 0xff8) : 0;
}

static void begin(const char *name)
{
	part = name;
	nr_ops = nr_stops = 0;
}

static void report(unsigned i, const struct op *o)
{
	static const char *last;
	static unsigned shown;

	shown = last == part ? shown + 1 : 1;
	last = part;
	if (shown <= 3)
		printf("%s: operation %u, %s in space %u at 0x%llx: 0x%llx error 0x%llx at 0x%llx, not 0x%llx error 0x%llx\n", part, i,
		       wants[i].what, wants[i].space, (unsigned long long)o->func, (unsigned long long)o->result,
		       (unsigned long long)o->error, (unsigned long long)o->cr2, (unsigned long long)wants[i].result,
		       (unsigned long long)wants[i].error);
}

static void set_cr3(uint64_t cr3)
{
	struct kvm_sregs s;

	NEED(ioctl(t.vcpu, KVM_GET_SREGS, &s) == 0);
	s.cr3 = cr3;
	NEED(ioctl(t.vcpu, KVM_SET_SREGS, &s) == 0);
}

static void run(void)
{
	struct kvm_regs r = { .rip = KBASE + KERNEL, .rsp = KBASE + STACK0, .rbx = KBASE + OPS, .rflags = 2 };
	const struct op *o = (struct op *)(t.mem + OPS);
	unsigned bad = 0;

	memset(t.mem + OPS + sizeof(*o) * nr_ops, 0, sizeof(*o));
	NEED(ioctl(t.vcpu, KVM_SET_REGS, &r) == 0);
	for (unsigned i = 0; i <= nr_stops; i++) {
		NEED(ioctl(t.vcpu, KVM_RUN, 0) == 0);
		NEED(t.run->exit_reason == KVM_EXIT_HLT);
		if (i < nr_stops && stops[i].cr3)
			set_cr3(stops[i].cr3);
		else if (i < nr_stops)
			memcpy(t.mem + stops[i].gpa, &stops[i].value, 4);
	}
	for (unsigned i = 0; i < nr_ops; i++)
		if ((!wants[i].any && !wants[i].error && o[i].result != wants[i].result) || o[i].error != wants[i].error) {
			report(i, &o[i]);
			bad++;
		}
	CHECK_EQ(bad, 0);
}

/* ---- what a space is seen to have ---------------------------------------------------------------------- */

static uint64_t cr3_of(unsigned k)
{
	return spaces[k].root | spaces[k].pcid;
}

static void enter(unsigned k, bool keep)
{
	k_op(k_cr3, cr3_of(k) | (keep ? KEEP : 0), 0);
	now = k;
}

static void see_read(const struct place *p)
{
	j_op(p, "read", j_read, region_va(p, D), 0, values[view_of(p)->d]);
}

static void see_write(const struct place *p)
{
	const struct view *v = view_of(p);
	uint64_t value = (uint64_t)rnd(1u << 31) << 20 | rnd(1u << 20);
	bool add = rnd(2);

	if (v->read_only) {
		j_op(p, "write", add ? j_add : j_write, region_va(p, D), value, 0);
		wants[nr_ops - 1].error = FAULT | 3 | (p->user ? 4 : 0);
		return;
	}
	values[v->d] = add ? values[v->d] + value : value;
	j_op(p, "write", add ? j_add : j_write, region_va(p, D), value, values[v->d]);
}

static void see_fetch(const struct place *p)
{
	const struct view *v = view_of(p);
	const uint64_t at = region_va(p, FUNCTION);

	switch (rnd(10)) {
	case 0: j_op(p, "call *", j_icall, at, 0, results[v->f]); break;
	case 1: j_op(p, "jmp *", j_ijmp, at, 0, results[v->f]); break;
	case 2: j_op(p, "ret", j_ret, at, 0, results[v->f]); break;
	case 3: j_op(p, "call", j_dcall, 0, 0, results[v->f]); break;
	case 4: j_op(p, "jmp", j_djmp, 0, 0, results[v->f]); break;
	case 5: j_op(p, "jcc", j_jcc, 0, 0, results[v->f]); break;
	case 6: j_op(p, "data of code", f_data, 0, 0, values[v->d]); break;
	case 7: j_op(p, "jmp back", f_back, 0, 0, results[v->f]); break;
	case 8: j_op(p, "several loads", f_range, 0, 0, FUNCTION_PAGE + v->f); break;
	default: j_op(p, "loop", j_loop, at, 0, 3 * (2ull * results[v->f] + values[v->d])); break;
	}
}

static void see(const struct place *p)
{
	for (unsigned i = 0, first = rnd(3); i < 3; i++)
		switch ((first + i) % 3) {
		case 0: see_read(p); break;
		case 1: see_write(p); break;
		default: see_fetch(p); break;
		}
}

static void see_some(const struct place *p)
{
	switch (rnd(5)) {
	case 0: see(p); break;
	case 1: see_read(p); break;
	case 2: see_write(p); break;
	case 3: see_fetch(p); break;
	default: break;
	}
}

/*
 * This space and another one, three times. What one of them has accessed may have taken the place of what was known of the
 * other's pages, at the same addresses: so it often does nothing.
 */
static void see_spaces(const struct place *p, unsigned k, unsigned other)
{
	const bool silent = rnd(2);

	for (unsigned i = 0; i < 3; i++) {
		if (i || now == k)
			see(p);
		enter(other, true);
		if (!silent)
			see_some(p);
		enter(k, true);
		see(p);
	}
}

/* ---- the guest -------------------------------------------------------------------------------------------- */

static void map_region(struct space *s, unsigned i)
{
	const struct region *r = &regions[i];
	const unsigned k = s - spaces;
	struct view *v = &s->view[i];

	*v = (struct view){ .d = k, .f = k };
	if (r->global)
		v->d = v->f = 2 * SPACES + 2 * (i - 3);
	if (r->global && k) { /* one table for all */
		*entry_in(s->root, r->base, 21) = *entry_in(spaces[0].root, r->base, 21);
		return;
	}
	*entry_at(s->root, r->base) = entry_for(SHARED, i);
	*entry_at(s->root, r->base + F) = entry_for(FUNCTIONS + 0x1000 * v->f, i);
	*entry_at(s->root, r->base + D) = data_entry(v, i);
	*entry_at(s->root, r->base + STACK) = entry_for(SHARED + 0x1000 * (i + 1), i);
	*entry_at(s->root, r->base + NEXT) = entry_for(FUNCTIONS + 0x1000 * ((k + 1) % SPACES), i);
}

static void make_spaces(bool kernel_global)
{
	for (unsigned k = 0; k < SPACES; k++) {
		uint64_t *table;

		spaces[k].root = rings_new_table();
		spaces[k].pcid = k * 97 % 4096;
		table = (uint64_t *)(t.mem + spaces[k].root);
		if (k) {
			table[511] = ((uint64_t *)(t.mem + spaces[0].root))[511];
		} else {
			for (unsigned i = 0; i < MEM >> 12; i++)
				*entry_at(spaces[0].root, KBASE + 0x1000 * i) =
					(0x1000 * i) | PRESENT | WRITABLE | (kernel_global ? GLOBAL : 0);
		}
		for (unsigned i = 0; i < REGIONS; i++)
			map_region(&spaces[k], i);
	}
}

static void make_pages(void)
{
	for (unsigned i = 0; i < PAGES; i++) {
		uint8_t *page = t.mem + FUNCTIONS + 0x1000 * i;

		values[i] = 0x100000000ull * (i + 1);
		*(uint64_t *)(t.mem + DATA + 0x1000 * i) = values[i];
		results[i] = FUNCTION_PAGE + i;
		memcpy(page, code + F, 0x1000);
		memcpy(page + OPERAND, &results[i], 4);
		memcpy(page + (f_imm - code - F) + 1, &results[i], 4);
		memcpy(page + (f_imm2 - code - F) + 1, &results[i], 4);
	}
	memcpy(t.mem + SHARED, code, 0x1000);
	for (unsigned i = 0; i < REGIONS; i++)
		*(uint64_t *)(t.mem + SHARED + 0x1000 * (i + 1) + 0xff8) = regions[i].base + (j_end - code);
	memcpy(t.mem + KERNEL, kernel, GUEST_LEN(kernel));
}

static void set_state(void)
{
	struct kvm_sregs s;

	NEED(ioctl(t.vcpu, KVM_GET_SREGS, &s) == 0);
	rings_sregs(&s, 0, spaces[0].root);
	s.cr0 = 0x80050033;
	s.cr4 = CR4;
	NEED(ioctl(t.vcpu, KVM_SET_SREGS, &s) == 0);
}

/* reg: EBX is 1, ECX is 2. */
static bool offered(uint32_t leaf, unsigned reg, unsigned bit)
{
	struct kvm_cpuid2 *c = calloc(1, sizeof(*c) + 100 * sizeof(struct kvm_cpuid_entry2));
	bool found = false;

	c->nent = 100;
	NEED(ioctl(t.kvm, KVM_GET_SUPPORTED_CPUID, c) == 0);
	for (unsigned i = 0; i < c->nent; i++)
		if (c->entries[i].function == leaf && !c->entries[i].index)
			found |= (reg == 1 ? c->entries[i].ebx : c->entries[i].ecx) >> bit & 1;
	free(c);
	return found;
}

/* The guest is in the first space, with PCIDs. */
static bool open_guest(bool kernel_global, bool smp, bool use_smap)
{
	t = kvmtest_vm(MEM, 0);
	NEED(GUEST_LEN(code) == D);
	seed = 0x123456789;
	tables_used = now = 0;
	smap = 0;
	kvmtest_add_vcpu(&t, 0);
	kvmtest_set_cpuid(&t);
	if (smp) /* it never runs */
		close(ioctl(t.vm, KVM_CREATE_VCPU, 1));
	if (!offered(1, 2, 17) || !offered(7, 1, 10)) {
		kvmtest_skipped++;
		kvmtest_done(&t);
		return false;
	}
	if (use_smap && offered(7, 1, 20))
		smap = SMAP;
	rings_descriptors(&t);
	*(uint64_t *)(t.mem + TSS + 4) = KBASE + STACK0;
	rings_gate(&t, 14, kernel_va(kernel_fault), 0, 0);
	rings_gate(&t, 0x80, kernel_va(kernel_gate), 3, 0);
	make_spaces(kernel_global);
	make_pages();
	set_state();
	begin("open");
	k_op(k_cr4, CR4 | PCIDE, 0);
	run();
	return true;
}

/* ---- ways to flush ------------------------------------------------------------------------------------------ */

enum way {
	INVLPG, ADDR_HERE, ADDR_OTHER, CONTEXT_HERE, CONTEXT_OTHER, LOAD, LOAD_OTHER_FIRST, ALL_LOCAL_HERE, ALL_LOCAL_OTHER,
	GLOBAL_WAYS,	/* what follows is for global pages, too, and so is INVLPG */
	ALL_HERE = GLOBAL_WAYS, ALL_OTHER, TOGGLE_PGE_HERE, TOGGLE_PGE_OTHER, TOGGLE_PCIDE, WAYS
};

/* Nothing is to be known of va in space k any more; another one is at hand. */
static void flush(enum way way, unsigned k, unsigned other, uint64_t va)
{
	static const bool here[WAYS] = { [INVLPG] = true, [ADDR_HERE] = true, [CONTEXT_HERE] = true, [ALL_LOCAL_HERE] = true,
					 [ALL_HERE] = true, [TOGGLE_PGE_HERE] = true };

	if (way != LOAD && way != TOGGLE_PCIDE && now != (here[way] ? k : other))
		enter(here[way] ? k : other, true);
	switch (way) {
	case INVLPG: k_op(k_invlpg, va, 0); break;
	case ADDR_HERE: case ADDR_OTHER: k_op(k_invpcid, 0, va | spaces[k].pcid); break;
	case CONTEXT_HERE: case CONTEXT_OTHER: k_op(k_invpcid, 1, spaces[k].pcid); break;
	case ALL_HERE: case ALL_OTHER: k_op(k_invpcid, 2, 0); break;
	case ALL_LOCAL_HERE: case ALL_LOCAL_OTHER: k_op(k_invpcid, 3, 0); break;
	case LOAD: case LOAD_OTHER_FIRST: enter(k, false); break;
	case TOGGLE_PGE_HERE: case TOGGLE_PGE_OTHER:
		k_op(k_cr4, (CR4 & ~PGE) | PCIDE, 0);
		k_op(k_cr4, CR4 | PCIDE, 0);
		break;
	default: /* a PCID of 0 is needed to set it */
		k_op(k_cr4, CR4, 0);
		now = 0;
		k_op(k_cr3, spaces[0].root, 0);
		k_op(k_cr4, CR4 | PCIDE, 0);
	}
}

static void write_entry(unsigned k, uint64_t va, uint64_t value)
{
	k_op(k_write, KBASE + ((uint8_t *)entry_at(spaces[k].root, va) - t.mem), value);
}

/* ---- the parts ------------------------------------------------------------------------------------------------ */

static void test_alternate(void)
{
	for (unsigned n = 0; n < PLACES; n++) {
		const struct place *p = &places[n];

		begin("alternate");
		for (unsigned i = 0; i < 3000; i++) {
			enter(i % 2 ? 3 : rnd(5), true);
			see_some(p);
		}
		run();
	}
	begin("alternate, all places");
	for (unsigned i = 0; i < 6000; i++) {
		enter(rnd(10), rnd(8));
		see(&places[rnd(PLACES)]);
	}
	run();
}

/* Code that loads CR3 goes on in the other space's page. */
static void test_load_in_page(void)
{
	begin("load in a page of its own");
	for (unsigned i = 0; i < 1000; i++) {
		const struct place *p = &places[(unsigned[]){ 0, 1, 3 }[rnd(3)]];
		unsigned k = rnd(4);

		now = k;
		j_op(p, "next instruction", f_cr3, cr3_of(k) | (rnd(4) ? KEEP : 0), 0, FUNCTION_PAGE + view_of(p)->f);
		if (rnd(2))
			see(p);
	}
	run();
}

/* Which: 1 data, 2 function. */
static void change(const struct place *p, unsigned k, unsigned which)
{
	struct view *v = &spaces[k].view[p->region];
	const unsigned pair = k + k + SPACES;

	if (which & 1) {
		v->d = regions[p->region].global ? v->d ^ 1 : pair - v->d;
		write_entry(k, region_va(p, D), data_entry(v, p->region));
	}
	if (which & 2) {
		v->f = regions[p->region].global ? v->f ^ 1 : pair - v->f;
		write_entry(k, region_va(p, F), entry_for(FUNCTIONS + 0x1000 * v->f, p->region));
	}
}

static void test_changes(void)
{
	for (unsigned n = 0; n < PLACES; n++) {
		begin("changes");
		for (unsigned i = 0; i < 8 * WAYS; i++) {
			const unsigned k = 1 + i % 3, other = (1 + rnd(3) + k) % 4, which = 1 + (i & 1);

			enter(k, true);
			see_spaces(&places[n], k, other);
			if (i & 2)
				enter(other, true);
			change(&places[n], k, which);
			flush(i / 8, k, other, region_va(&places[n], which == 1 ? D : F));
			if (i & 4)
				enter(other, true);
			see_spaces(&places[n], rnd(2) ? now : k, now == k ? other : k);
		}
		run();
	}
}

/* Read-only there, then writable again. */
static void test_permissions(void)
{
	for (unsigned n = 0; n < PLACES; n++) {
		const struct place *p = &places[n];

		begin("permissions");
		for (unsigned i = 0; i < 8 * WAYS; i++) {
			const unsigned k = 1 + i / 2 % 3, other = (1 + rnd(3) + k) % 4;
			struct view *v = &spaces[k].view[p->region];

			enter(k, true);
			see_spaces(p, k, other);
			if (i & 2)
				enter(other, true);
			v->read_only = !v->read_only;
			write_entry(k, region_va(p, D), data_entry(v, p->region));
			flush(i / 8, k, other, region_va(p, D));
			see_spaces(p, rnd(2) ? now : k, now == k ? other : k);
		}
		run();
	}
}

/* Bits that the CPU sets, cleared and flushed: set by the next access. */
static void test_dirty(void)
{
	for (unsigned n = 0; n < PLACES; n++) {
		const struct place *p = &places[n];

		begin("accessed and dirty");
		for (unsigned i = 0; i < 4 * WAYS; i++) {
			const unsigned k = 1 + i % 3, other = (1 + rnd(3) + k) % 4;
			const uint64_t e = data_entry(&spaces[k].view[p->region], p->region);
			const uint64_t at = KBASE + ((uint8_t *)entry_at(spaces[k].root, region_va(p, D)) - t.mem);

			enter(k, true);
			see_spaces(p, k, other);
			k_op(k_write, at, e & ~(uint64_t)(ACCESSED | DIRTY));
			flush(i / 4, k, other, region_va(p, D));
			if (i & 2) {
				enter(other, true);
				see(p);
			}
			enter(k, true);
			if (i & 1)
				see_read(p);
			else
				see_write(p);
			op_new("entry", kernel_va(k_read), at, 0, i & 1 ? e & ~(uint64_t)DIRTY : e, false);
			see_write(p);
			op_new("entry", kernel_va(k_read), at, 0, e, false);
		}
		run();
	}
}

static void test_global(void)
{
	for (unsigned n = 0; n < GLOBAL_PLACES; n++) {
		const struct place *p = &global_places[n], *local = &places[n ? n + 2 : 0];

		begin("global pages");
		for (unsigned i = 0; i < 8 * (WAYS - GLOBAL_WAYS + 1); i++) {
			const enum way way = i / 8 ? GLOBAL_WAYS + i / 8 - 1 : INVLPG;
			const unsigned k = rnd(4), other = (1 + rnd(3) + k) % 4, which = 1 + (i & 1);

			enter(k, true);
			see_spaces(p, k, other);
			see(local);
			change(p, 0, which);
			flush(way, k, other, region_va(p, which == 1 ? D : F));
			see_spaces(p, now, now == k ? other : k);
			see(local);
		}
		run();
	}
}

/* Another result for the function of page f; by whom: the kernel, in the present space; or who has it as data, or under its own address. */
static void new_result(const struct place *p, unsigned k, unsigned by)
{
	unsigned page = spaces[k].view[p->region].f;
	uint64_t at = region_va(p, F);

	if (by == 1) {
		page = k;
		at = region_va(p, NEXT);
		enter((k + SPACES - 1) % SPACES, true);
	} else if (by == 2) {
		enter(k, true);
	}
	results[page] = rnd(1u << 30);
	if (by)
		j_op(p, "new function", j_write4, at + OPERAND, results[page], results[page]);
	else
		k_op(k_write4, KBASE + FUNCTIONS + 0x1000 * page + OPERAND, results[page]);
}

static void test_new_code(void)
{
	for (unsigned n = 0; n < PLACES; n++) {
		const struct place *p = &places[n];

		begin("new code");
		for (unsigned i = 0; i < 400; i++) {
			const unsigned k = rnd(4), other = (1 + rnd(3) + k) % 4;

			enter(k, true);
			see(p);
			if (i & 1)
				see_spaces(p, k, other);
			enter(other, true);
			/* The first store may make it a page of data, that the next ones know. */
			for (unsigned j = rnd(4); j < 4; j++)
				new_result(p, k, i % 3);
			enter(k, true);
			see_fetch(p);
			if (i & 4)
				see_spaces(p, k, other);
		}
		run();
	}
}

static void test_client_code(void)
{
	for (unsigned n = 0; n < PLACES; n++) {
		const struct place *p = &places[n];

		begin("the client's new code");
		for (unsigned i = 0; i < 160; i++) {
			const unsigned k = rnd(4), page = spaces[k].view[p->region].f;

			for (unsigned j = 0; j < 4; j++) {
				enter((k + j) % 4, true);
				if (!j || i & 2)
					see(p);
			}
			if (i & 1)
				enter(k, true);
			results[page] = rnd(1u << 30);
			stop((struct stop){ .gpa = FUNCTIONS + 0x1000 * page + OPERAND, .value = results[page] });
			for (unsigned j = 0; j < 4; j++) {
				enter((k + j) % 4, true);
				see_fetch(p);
				see_some(p);
			}
		}
		run();
	}
}

static void test_many(void)
{
	begin("many spaces");
	for (unsigned i = 0; i < 10 * SPACES; i++) {
		enter(i % SPACES, true);
		see(&places[i / SPACES % PLACES]);
	}
	run();
}

/* Numbers that an implementation gives to what it knows run out some time, at a power of two or near it. */
static void test_wrap(void)
{
	static const unsigned powers[] = { 256, 1024, 2048, 4096 };

	for (unsigned n = 0; n < PLACES; n++) {
		begin("numbers that run out");
		for (unsigned i = 0; i < 16; i++) {
			const struct place *p = &places[n];

			enter(2, true);
			see(&places[(n + 1) % PLACES]);
			enter(1, false);
			see(p);
			see(p);
			change(p, 1, 3);
			k_op(k_loads, (spaces[4].root | spaces[4].pcid) & ~1ull, powers[i / 4] - 3 + i % 4);
			enter(1, false);
			see(p);
			enter(2, true);
			see(&places[(n + 1) % PLACES]);
		}
		run();
	}
	begin("flushing loads");
	for (unsigned i = 0; i < 5000; i++) {
		const struct place *p = &places[rnd(PLACES)];
		const unsigned k = rnd(3);

		if (i % 20 == 0)
			change(p, k, 3);
		enter(k, i % 20 && i % 3 == 0);
		see_some(p);
	}
	run();
}

static void test_reuse(void)
{
	begin("a PCID for another root");
	for (unsigned i = 0; i < 2000; i++) {
		const unsigned k = rnd(8), other = (k + 1 + rnd(7)) % 8, pcid = spaces[k].pcid;

		if (i % 4 == 0) {
			spaces[k].pcid = spaces[other].pcid;
			spaces[other].pcid = pcid;
			enter(k, false);
			see(&places[i % PLACES]);
			enter(other, false);
		} else {
			enter(k, true);
		}
		see(&places[i % PLACES]);
	}
	run();
}

/* Without PCIDE, bits of a PCID mean something else: all that is known is of PCID 0. */
static void test_disabled(void)
{
	static const unsigned bits[] = { 0, 8, 0x10, 0x18 };

	for (unsigned k = 0; k < 4; k++)
		spaces[k].pcid = bits[k];
	for (unsigned n = 0; n < PLACES; n++) {
		begin("without PCIDE");
		for (unsigned i = 0; i < 20; i++) {
			const struct place *p = &places[n];

			flush(TOGGLE_PCIDE, 0, 0, 0);
			for (unsigned j = 0; j < 4; j++) {
				enter(j, true);
				see(p);
			}
			k_op(k_cr4, CR4, 0);
			for (unsigned j = 0; j < 8; j++) {
				enter(j % 4, false);
				see(p);
			}
			change(p, 2, 3);
			enter(1, false);
			see(p);
			enter(2, false);
			see(p);
			change(p, 2, 3);
			enter(0, false);
			k_op(k_cr4, CR4 | PCIDE, 0);
			for (unsigned j = 0; j < 8; j++) {
				enter(j % 4, true);
				see(p);
			}
		}
		run();
	}
}

/* The client puts the vCPU into another space. */
static void test_sregs(void)
{
	for (unsigned n = 0; n < PLACES; n++) {
		const struct place *p = &places[n];

		begin("by KVM_SET_SREGS");
		for (unsigned i = 0; i < 100; i++) {
			const unsigned k = rnd(4), other = (k + 1 + rnd(3)) % 4;
			const unsigned pcid = spaces[other].pcid;

			enter(k, true);
			if (i % 3)
				see_spaces(p, k, other);
			see(p);
			if (i % 5 == 0)	/* a PCID that is another root's */
				spaces[other].pcid = spaces[k].pcid;
			stop((struct stop){ .cr3 = cr3_of(other) });
			now = other;
			see(p);
			spaces[other].pcid = pcid;
			enter(k, i % 5);
			see(p);
			see_spaces(p, k, other);
		}
		run();
	}
}

/* Two spaces that are visited in turn and use addresses of their own: by the counters, their pages are not looked up again each time. */
static void test_visits(bool kernel_global)
{
	const char *engine = getenv("SOFTKVM_ENGINE");
	long long walks;

	begin("visits");
	for (unsigned i = 0; i < 4000; i++) {
		enter(i % 2, true);
		see_read(&places[i % 2 ? 1 : 3]);
	}
	walks = kvmtest_stat(t.vcpu, "tlb_misses");
	run();
	walks = kvmtest_stat(t.vcpu, "tlb_misses") - walks;
	if (kernel_global && kvmtest_softkvm() && !getenv("SOFTKVM_TLB") && !(engine && !strcmp(engine, "diff")))
		CHECK(walks < 1000);
}

static void test_in(bool kernel_global, bool smp, bool use_smap)
{
	if (!open_guest(kernel_global, smp, use_smap))
		return;
	test_alternate();
	test_load_in_page();
	test_changes();
	test_permissions();
	test_dirty();
	test_global();
	test_new_code();
	test_client_code();
	test_many();
	test_visits(kernel_global);
	test_wrap();
	test_reuse();
	test_sregs();
	test_disabled();
	kvmtest_done(&t);
}

static void all(void)
{
	alarm(300);	/* a guest gone astray may run forever */
	test_in(true, false, false);
	test_in(false, false, true);
	test_in(true, true, false);
}

int main(int argc, char **argv)
{
	return both_engines(argv[0], all);
}

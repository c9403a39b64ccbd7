/* SPDX-License-Identifier: MIT */
/*
 * Tiny guests that do one privileged thing. A case is a mode, some assembly, what
 * is changed in the tables beforehand, and what must come of it: an exception
 * with its error code at label 9, or a HLT at the end. Every IDT entry leads to a HLT of
 * its own, so the vector is where the guest halted, and the frame lies on its stack.
 *
 *	T(name, MODE, "assembly", setup statements, vector or OK, error code, check statements)
 *
 * In setup and check statements e is the struct env, and r the struct result.
 */
#ifndef TESTS_API_PRIV_H
#define TESTS_API_PRIV_H

#include "kvmtest.h"

enum priv_mode {
	R,			/* real */
	P16, P32,		/* protected, no paging, CPL 0 */
	P32U,			/* the same at CPL 3 */
	N32, N32U,		/* 32-bit paging */
	PAE32, PAE32U,		/* PAE paging */
	V86,			/* vm86, IOPL 3 */
	L, LU,			/* 64-bit */
	C, CU,			/* compatibility, 32-bit */
};

enum { OK = -1, SHUTDOWN = -2, MMIO = -3, NOERR = -1, ELSEWHERE = 0x10000 /* rip is not at 9 (for #PF: at CR2) */ };
enum { DE, DB, NMI, BP, OF, BR, UD, NM, DF, TS = 10, NP, SS, GP, PF, MF = 16, AC, MC, XM };

/* Guest physical, and linear: everything is mapped to itself. */
#define PML4 0x1000
#define PDPT 0x2000
#define PD 0x3000
#define PT 0x4000
#define GDT 0x8000
#define LDT 0x8800
#define IDT 0x9000
#define TSS 0xa000
#define TSS2 0xd000
#define HANDLERS 0xf000		/* 16 bytes each */
#define CODE 0x10000		/* its pages belong to the user if the case starts at CPL 3 */
#define DATA 0x20000		/* user's */
#define STACK0 0x34000
#define STACK3 0x38000		/* user's */
#define IST1 0x3a000
#define PAGE 0x40000		/* supervisor's, for cases about paging; so is all after it */

/* Selectors. */
#define K32 0x08
#define KDATA 0x10
#define K64 0x18
#define K16 0x20
#define UDATA (0x28 | 3)
#define U32 (0x30 | 3)
#define U64 (0x38 | 3)
#define KDATA16 0x40
#define TSSSEL 0x48		/* two slots in long mode */
#define TSSSEL2 0x58
#define LDTSEL 0x60
#define FREE 0x70		/* 0x70 to 0xf8: for cases */

struct env {
	struct kvmtest t;
	enum priv_mode mode;
	struct kvm_sregs s;
	struct kvm_regs r;
	const char *name;
};

struct result {
	int vector, error;
	uint32_t exit;
	uint64_t rip, cs, flags, sp, ss;	/* from the frame; sp and ss only if it has them */
	uint64_t at;				/* frame address */
	struct kvm_regs regs;
	struct kvm_sregs sregs;
};

struct priv_case {
	const char *name;
	enum priv_mode mode;
	const uint8_t *code, *end;
	const uint32_t *label;
	void (*setup)(struct env *e);
	int vector, error;
	void (*check)(struct env *e, struct result *r);
	int line;
};

static inline int mode_long(enum priv_mode m) { return m >= L; }
static inline int mode_user(enum priv_mode m)
{
	return m == P32U || m == N32U || m == PAE32U || m == LU || m == CU || m == V86;
}

static inline uint8_t *at8(struct env *e, uint32_t a) { return e->t.mem + a; }
static inline uint16_t *at16(struct env *e, uint32_t a) { return (uint16_t *)(e->t.mem + a); }
static inline uint32_t *at32(struct env *e, uint32_t a) { return (uint32_t *)(e->t.mem + a); }
static inline uint64_t *at64(struct env *e, uint32_t a) { return (uint64_t *)(e->t.mem + a); }

/* The page-table entry of a linear address below 2 MiB, in the case's own format. */
static inline uint64_t pte_get(struct env *e, uint32_t va)
{
	if (e->mode == N32 || e->mode == N32U || e->mode == V86)
		return *at32(e, PT + (va >> 12) * 4);
	return *at64(e, PT + (va >> 12) * 8);
}

static inline void pte_set(struct env *e, uint32_t va, uint64_t v)
{
	if (e->mode == N32 || e->mode == N32U || e->mode == V86)
		*at32(e, PT + (va >> 12) * 4) = v;
	else
		*at64(e, PT + (va >> 12) * 8) = v;
}

static inline void gdt_set(struct env *e, uint32_t sel, uint64_t desc)
{
	*at64(e, GDT + (sel & ~7u)) = desc;
}

static inline uint64_t seg_desc(uint32_t base, uint32_t limit, unsigned access, unsigned flags)
{
	return (limit & 0xffff) | (uint64_t)(base & 0xffffff) << 16 | (uint64_t)access << 40 |
	       (uint64_t)(limit >> 16 & 15) << 48 | (uint64_t)flags << 52 | (uint64_t)(base >> 24) << 56;
}

static inline uint64_t gate_desc(uint32_t sel, uint32_t off, unsigned access, unsigned low)
{
	return (off & 0xffff) | (uint64_t)sel << 16 | (uint64_t)low << 32 | (uint64_t)access << 40 |
	       (uint64_t)(off >> 16) << 48;
}

static inline void idt_set(struct env *e, unsigned v, uint64_t gate)
{
	*at64(e, IDT + v * (mode_long(e->mode) ? 16 : 8)) = gate;
	if (mode_long(e->mode))
		*at64(e, IDT + v * 16 + 8) = 0;
}

/* The gate every vector has to begin with, with another access byte or selector. */
static inline void idt_gate(struct env *e, unsigned v, uint32_t sel, unsigned access, unsigned ist)
{
	idt_set(e, v, gate_desc(sel, HANDLERS + v * 16, access, ist));
}

static inline uint32_t code_sel(enum priv_mode m)
{
	return mode_long(m) ? K64 : m == P16 ? K16 : K32;
}

static inline void priv_tables(struct env *e)
{
	int lm = mode_long(e->mode), user = mode_user(e->mode), n32 = e->mode == N32 || e->mode == N32U || e->mode == V86;

	memset(e->t.mem, 0, 0x80000);
	gdt_set(e, K32, 0x00cf9b000000ffff);
	gdt_set(e, KDATA, 0x00cf93000000ffff);
	gdt_set(e, K64, 0x00af9b000000ffff);
	gdt_set(e, K16, 0x000f9b000000ffff);
	gdt_set(e, UDATA, 0x00cff3000000ffff);
	gdt_set(e, U32, 0x00cffb000000ffff);
	gdt_set(e, U64, 0x00affb000000ffff);
	gdt_set(e, KDATA16, 0x000f93000000ffff);
	gdt_set(e, TSSSEL, seg_desc(TSS, 0x2068, 0x8b, 0));
	if (!lm) {
		gdt_set(e, TSSSEL2, seg_desc(TSS2, 0x67, 0x89, 0));
		gdt_set(e, LDTSEL, seg_desc(LDT, 0xff, 0x82, 0));
	} else {
		gdt_set(e, LDTSEL, seg_desc(LDT, 0xff, 0x82, 0));
	}
	for (unsigned v = 0; v < 256; v++) {
		memset(at8(e, HANDLERS + v * 16), 0xf4, 16);
		idt_gate(e, v, code_sel(e->mode), e->mode == P16 ? 0x86 : 0x8e, 0);
		if (e->mode == R)
			*at32(e, v * 4) = (HANDLERS >> 4) << 16 | v * 16;
	}
	if (lm) {
		*at64(e, TSS + 4) = STACK0;
		*at64(e, TSS + 0x24) = IST1;
	} else {
		*at32(e, TSS + 4) = STACK0;
		*at32(e, TSS + 8) = KDATA;
	}
	*at16(e, TSS + 102) = 0x68;
	*at8(e, TSS + 0x2068) = 0xff;
	for (unsigned i = 0; i < (n32 ? 1024 : 512); i++) {
		uint64_t a = (uint64_t)i << 12, pte = a | 3;

		if (e->mode == V86 || (a >= DATA && a < DATA + 0x10000) || (a >= STACK0 && a < STACK3) ||
		    (user && a >= CODE && a < CODE + 0x10000))
			pte |= 4;
		pte_set(e, a, pte);
	}
	if (n32) {
		*at32(e, PD) = PT | 7;
	} else {
		*at64(e, PD) = PT | 7;
		*at64(e, PD + 8) = 0x200000 | 0x83;
		*at64(e, PDPT) = PD | (lm ? 7 : 1);
		*at64(e, PML4) = PDPT | 7;
	}
}

static inline struct kvm_segment priv_seg(uint32_t sel, unsigned type, unsigned dpl, unsigned db, unsigned l)
{
	return (struct kvm_segment){ .selector = sel, .type = type, .s = 1, .dpl = dpl, .present = 1,
		.db = db, .l = l, .g = 1, .limit = 0xffffffff };
}

static inline void priv_state(struct env *e, const struct kvm_sregs *fresh)
{
	enum priv_mode m = e->mode;
	unsigned user = mode_user(m) ? 3 : 0, db = m != P16;
	struct kvm_segment data;

	e->s = *fresh;
	e->r = (struct kvm_regs){ .rip = CODE, .rsp = user ? STACK3 : STACK0, .rflags = 2 };
	e->s.gdt.base = GDT;
	e->s.gdt.limit = 0xff;
	e->s.idt.base = m == R ? 0 : IDT;
	e->s.idt.limit = m == R ? 0x3ff : 0xfff;
	if (m == R || m == V86) {
		data = (struct kvm_segment){ .type = 3, .s = 1, .present = 1, .limit = 0xffff, .dpl = m == V86 ? 3 : 0 };
		e->s.ds = e->s.es = e->s.fs = e->s.gs = e->s.ss = e->s.cs = data;
		e->s.cs.base = CODE;
		e->s.cs.selector = CODE >> 4;
		e->s.cs.type = m == V86 ? 3 : 11;
		e->s.ds.base = DATA;
		e->s.ds.selector = DATA >> 4;
		e->s.ss.base = STACK3 - 0x4000;
		e->s.ss.selector = e->s.ss.base >> 4;
		e->r.rip = 0;
		e->r.rsp = 0x4000;
	} else {
		uint32_t cs = m == L ? K64 : m == LU ? U64 : user ? U32 : m == P16 ? K16 : K32;

		e->s.cs = priv_seg(cs, 11, user, m != P16 && m != L && m != LU, m == L || m == LU);
		data = priv_seg(user ? UDATA : m == P16 ? KDATA16 : KDATA, 3, user, db, 0);
		e->s.ds = e->s.es = e->s.fs = e->s.gs = e->s.ss = data;
	}
	e->s.cr0 = m == R ? 0x10 : 0x31;
	if (m == R)
		return;
	e->s.tr = (struct kvm_segment){ .base = TSS, .limit = 0x2068, .selector = TSSSEL, .type = 11, .present = 1 };
	e->s.ldt = (struct kvm_segment){ .unusable = 1 };
	if (m == P16 || m == P32 || m == P32U)
		return;
	e->s.cr0 |= 0x80010000;
	e->s.cr3 = m == N32 || m == N32U || m == V86 ? PD : mode_long(m) ? PML4 : PDPT;
	e->s.cr4 = e->s.cr3 == PD ? 0x10 : 0x20;
	if (mode_long(m))
		e->s.efer = 0xd01;
	else if (e->s.cr3 == PDPT)
		e->s.efer = 0x800;
	if (m == V86)
		e->r.rflags |= 0x23000;
}

static inline int has_error_code(int v)
{
	return v == DF || (v >= TS && v <= PF) || v == AC || v == 21;
}

static inline void priv_result(struct env *e, struct result *r)
{
	unsigned wide = mode_long(e->mode), w = wide ? 8 : e->mode == R || e->mode == P16 ? 2 : 4;
	uint64_t rip, f[6] = { 0 };

	memset(r, 0, sizeof(*r));
	r->exit = e->t.run->exit_reason;
	r->vector = r->exit == KVM_EXIT_SHUTDOWN ? SHUTDOWN : r->exit == KVM_EXIT_MMIO ? MMIO : OK;
	r->error = NOERR;
	NEED(ioctl(e->t.vcpu, KVM_GET_REGS, &r->regs) == 0);
	NEED(ioctl(e->t.vcpu, KVM_GET_SREGS, &r->sregs) == 0);
	rip = r->regs.rip + (wide && r->sregs.cs.l ? 0 : r->sregs.cs.base) - 1;
	if (r->exit != KVM_EXIT_HLT || rip < HANDLERS || rip >= HANDLERS + 0x1000)
		return;
	r->vector = (rip - HANDLERS) / 16;
	r->at = r->regs.rsp + (wide ? 0 : r->sregs.ss.base);
	if (!wide && !r->sregs.ss.db)
		r->at = (r->regs.rsp & 0xffff) + r->sregs.ss.base;
	if (r->at + 6 * w > e->t.mem_size)
		return;
	for (unsigned i = 0; i < 6; i++)
		memcpy(&f[i], e->t.mem + r->at + i * w, w);
	if (e->mode != R && has_error_code(r->vector)) {
		r->error = f[0];
		memmove(f, f + 1, 5 * sizeof(f[0]));
	}
	r->rip = f[0];
	r->cs = f[1] & 0xffff;
	r->flags = f[2];
	r->sp = f[3];
	r->ss = f[4] & 0xffff;
}

static inline void priv_setup(struct env *e, const struct priv_case *c, const struct kvm_sregs *fresh)
{
	struct kvm_vcpu_events events = { .flags = KVM_VCPUEVENT_VALID_NMI_PENDING | KVM_VCPUEVENT_VALID_SHADOW };
	struct kvm_fpu fpu = { .fcw = 0x37f, .mxcsr = 0x1f80 };
	struct kvm_debugregs debug = { .dr6 = 0xffff0ff0, .dr7 = 0x400 };

	e->mode = c->mode;
	e->name = c->name;
	priv_tables(e);
	memcpy(at8(e, CODE), c->code, c->end - c->code);
	priv_state(e, fresh);
	c->setup(e);
	NEED(ioctl(e->t.vcpu, KVM_SET_VCPU_EVENTS, &events) == 0);
	NEED(ioctl(e->t.vcpu, KVM_SET_DEBUGREGS, &debug) == 0);
	NEED(ioctl(e->t.vcpu, KVM_SET_FPU, &fpu) == 0);
	CHECK(ioctl(e->t.vcpu, KVM_SET_SREGS, &e->s) == 0);
	NEED(ioctl(e->t.vcpu, KVM_SET_REGS, &e->r) == 0);
}

static inline void priv_fail(const struct priv_case *c, const struct result *r, const char *what,
			     long long got, long long want)
{
	kvmtest_failed++;
	printf("%s (line %d): FAIL: %s is %lld (0x%llx), want %lld (0x%llx); vector %d error 0x%x exit %u rip 0x%llx cr2 0x%llx\n",
	       c->name, c->line, what, got, got, want, want, r->vector, r->error, r->exit,
	       (long long)r->regs.rip, (long long)r->sregs.cr2);
}

/* Ports are answered with whatever is in the page. */
static inline int priv_run(struct env *e)
{
	int r, n = 0;

	do
		r = ioctl(e->t.vcpu, KVM_RUN, 0);
	while (!r && e->t.run->exit_reason == KVM_EXIT_IO && n++ < 16);
	return r;
}

static inline void priv_one(struct env *e, const struct priv_case *c, const struct kvm_sregs *fresh)
{
	uint64_t start = c->mode == R || c->mode == V86 ? 0 : CODE;
	uint64_t want = start + *c->label;
	struct result r;

	priv_setup(e, c, fresh);
	if (priv_run(e) != 0) {
		printf("%s: KVM_RUN: errno %d\n", c->name, errno);
		kvmtest_failed++;
		return;
	}
	priv_result(e, &r);
	if (c->error != NOERR && (c->error & ELSEWHERE))
		want = r.vector == PF ? r.sregs.cr2 : r.rip;
	if (r.vector != c->vector) {
		priv_fail(c, &r, "vector", r.vector, c->vector);
	} else if (c->error != NOERR && c->error != ELSEWHERE && r.error != (c->error & 0xffff)) {
		priv_fail(c, &r, "error code", r.error, c->error);
	} else if (c->vector >= 0 && r.rip != want) {
		priv_fail(c, &r, "pushed rip", r.rip, want);
	} else if (c->vector == OK && r.exit != KVM_EXIT_HLT) {
		priv_fail(c, &r, "exit reason", r.exit, KVM_EXIT_HLT);
	} else {
		kvmtest_passed++;
		c->check(e, &r);
	}
}

static inline struct env priv_open(struct kvm_sregs *fresh)
{
	struct env e = { .t = kvmtest_vm(8 << 20, 0) };

	kvmtest_add_vcpu(&e.t, 0);
	kvmtest_set_cpuid(&e.t);
	NEED(ioctl(e.t.vcpu, KVM_GET_SREGS, fresh) == 0);
	return e;
}

static inline int priv_main(const struct priv_case *cases, unsigned nr, int argc, char **argv)
{
	struct kvm_sregs fresh;
	struct env e = priv_open(&fresh);

	for (unsigned i = 0; i < nr; i++)
		if (argc < 2 || !strcmp(argv[1], cases[i].name))
			priv_one(&e, &cases[i], &fresh);
	kvmtest_done(&e.t);
	return kvmtest_summary();
}

/* One check inside a check statement; says which case it was. */
#define WANT(expr, value)                                                       \
	do {                                                                    \
		long long want_a = (long long)(expr), want_b = (long long)(value); \
		if (want_a == want_b) {                                         \
			kvmtest_passed++;                                       \
		} else {                                                        \
			kvmtest_failed++;                                       \
			printf("%s: FAIL: %s is 0x%llx, want 0x%llx\n", e->name, #expr, want_a, want_b); \
		}                                                               \
	} while (0)

#define CODE_R ".code16\n"
#define CODE_P16 ".code16\n"
#define CODE_V86 ".code16\n"
#define CODE_P32 ".code32\n"
#define CODE_P32U ".code32\n"
#define CODE_N32 ".code32\n"
#define CODE_N32U ".code32\n"
#define CODE_PAE32 ".code32\n"
#define CODE_PAE32U ".code32\n"
#define CODE_L ".code64\n"
#define CODE_LU ".code64\n"
#define CODE_C ".code32\n"
#define CODE_CU ".code32\n"

/* In the assembly, 8 is where the code begins: 0x10000 + 1f - 8b is the address of 1. */
#define T(name, mode, text, body, vec, err, chk)                                \
	asm(".pushsection .rodata\n.local code_" #name "\n" CODE_##mode         \
	    "8:\ncode_" #name ":\n" text "\nhlt\n.code64\n"              \
	    "end_" #name ":\n.balign 4\nat_" #name ": .long 9b - code_" #name "\n.popsection\n"); \
	extern const uint8_t code_##name[], end_##name[];                       \
	extern const uint32_t at_##name[];                                      \
	static void setup_##name(struct env *e) { (void)e; body; }              \
	static void check_##name(struct env *e, struct result *r) { (void)e; (void)r; chk; } \
	static const struct priv_case case_##name __attribute__((section("priv_cases"), used, aligned(8))) = \
		{ #name, mode, code_##name, end_##name, at_##name, setup_##name, vec, err, check_##name, __LINE__ };

extern const struct priv_case __start_priv_cases[], __stop_priv_cases[];

#define PRIV_MAIN                                                               \
	int main(int argc, char **argv)                                         \
	{                                                                       \
		return priv_main(__start_priv_cases, __stop_priv_cases - __start_priv_cases, argc, argv); \
	}

#endif

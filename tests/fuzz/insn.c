/* SPDX-License-Identifier: MIT */
/*
 * Guests of random bytes, in every mode, with random registers, descriptors and
 * page tables. Nothing such a guest does may harm its client: no report of a
 * sanitizer, no byte outside its memory changed, no vCPU that cannot be kicked out, no
 * state that cannot be read, and set again.
 */
#include "fuzz.h"

#define RAM_SIZE (1 << 20)
#define ROM_SIZE (64 << 10)
#define ROM_GPA (2 << 20)
#define GUARD (64 << 10)

#define PT_AREA 0x10000		/* page tables */
#define GDT 0x20000
#define IDT 0x21000
#define TSS 0x22000
#define STACKS 0x30000
#define CODE 0x40000

enum { REAL, PROT16, PROT32, PAE, VM86, LONG, COMPAT, NR_MODES };
static const char *const mode_names[NR_MODES] = {
	"real", "prot16", "prot32", "pae", "vm86", "long", "compat",
};

struct guest {
	int kvm, vm, vcpu;
	struct kvm_run *run;
	size_t run_size;
	uint8_t *area, *ram, *rom;	/* guard, RAM, guard, ROM, guard */
	pthread_t thread;
};

static _Atomic int running;		/* 1: in KVM_RUN, 2: the kicker may end */

#define G_IOCTL(fd, cmd, arg) softkvm_ioctl((fd), (cmd), (unsigned long)(arg))

static void on_kick(int sig)
{
	(void)sig;
}

/* Gets the vCPU's thread out of KVM_RUN every few milliseconds. */
static void *kicker(void *arg)
{
	struct guest *g = arg;
	struct timespec t = { .tv_nsec = 2000000 };

	while (running != 2) {
		nanosleep(&t, NULL);
		if (running == 1)
			pthread_kill(g->thread, SIGUSR1);
	}
	return NULL;
}

/* ---- code ------------------------------------------------------------------------ */

/* What the random bytes alone would find too seldom. */
static const struct snippet { uint8_t len, bytes[9]; } snippets[] = {
	{ 3, { 0x0f, 0x22, 0xc0 } }, { 3, { 0x0f, 0x22, 0xd8 } }, { 3, { 0x0f, 0x22, 0xe0 } },
	{ 3, { 0x0f, 0x20, 0xc0 } }, { 3, { 0x0f, 0x23, 0xf8 } }, { 3, { 0x0f, 0x21, 0xf8 } },
	{ 3, { 0x0f, 0x23, 0xc0 } }, { 2, { 0x0f, 0x30 } }, { 2, { 0x0f, 0x32 } }, { 1, { 0xf4 } },
	{ 1, { 0xcf } }, { 2, { 0x48, 0xcf } }, { 2, { 0x66, 0xcf } }, { 1, { 0xcb } }, { 3, { 0xca, 8, 0 } },
	{ 2, { 0xcd, 0x80 } }, { 1, { 0xcc } }, { 1, { 0xce } }, { 1, { 0xf1 } }, { 2, { 0x0f, 0x05 } },
	{ 2, { 0x0f, 0x07 } }, { 3, { 0x48, 0x0f, 0x07 } }, { 2, { 0x0f, 0x34 } }, { 2, { 0x0f, 0x35 } },
	{ 3, { 0x0f, 0x01, 0xd1 } }, { 3, { 0x0f, 0x01, 0xd0 } }, { 3, { 0x0f, 0x01, 0xf8 } },
	{ 3, { 0x0f, 0x01, 0xc1 } }, { 3, { 0x0f, 0x01, 0xd9 } }, { 3, { 0x0f, 0x01, 0x3e } },
	{ 3, { 0x0f, 0x01, 0x16 } }, { 3, { 0x0f, 0x01, 0x1e } }, { 3, { 0x0f, 0x00, 0xd0 } },
	{ 3, { 0x0f, 0x00, 0xd8 } }, { 2, { 0x8e, 0xd0 } }, { 2, { 0x8e, 0xd8 } }, { 2, { 0x8e, 0xe0 } },
	{ 1, { 0x17 } }, { 1, { 0xfb } }, { 1, { 0xfa } }, { 1, { 0x9c } }, { 1, { 0x9d } },
	{ 2, { 0xff, 0x1e } }, { 2, { 0xff, 0x2e } }, { 5, { 0xea, 0, 0, 0x08, 0 } },
	{ 7, { 0xea, 0, 0, 4, 0, 0x08, 0 } }, { 7, { 0x9a, 0, 0, 4, 0, 0x40, 0 } },
	{ 3, { 0x0f, 0xae, 0x06 } }, { 3, { 0x0f, 0xae, 0x0e } }, { 3, { 0x0f, 0xae, 0x26 } },
	{ 3, { 0x0f, 0xae, 0x2e } }, { 4, { 0x48, 0x0f, 0xae, 0x2e } }, { 3, { 0x0f, 0xc7, 0x26 } },
	{ 3, { 0x0f, 0xc7, 0x1e } }, { 3, { 0x0f, 0xc7, 0x0e } }, { 4, { 0x48, 0x0f, 0xc7, 0x0e } },
	{ 2, { 0xf3, 0xa4 } }, { 2, { 0xf3, 0xab } }, { 2, { 0xf2, 0xae } }, { 2, { 0xf3, 0x6c } },
	{ 2, { 0xf3, 0x6f } }, { 1, { 0xec } }, { 1, { 0xef } }, { 4, { 0xc8, 0x10, 0, 0x1f } }, { 1, { 0xc9 } },
	{ 1, { 0x60 } }, { 1, { 0x61 } }, { 2, { 0xd9, 0x36 } }, { 2, { 0xdd, 0x36 } }, { 2, { 0xdd, 0x26 } },
	{ 2, { 0xd9, 0x26 } }, { 2, { 0xdb, 0xe3 } }, { 2, { 0x0f, 0x77 } }, { 1, { 0xd7 } },
	{ 3, { 0x0f, 0x01, 0xc8 } }, { 3, { 0x0f, 0x01, 0xfc } }, { 2, { 0x0f, 0x06 } }, { 2, { 0x0f, 0x09 } },
	{ 5, { 0x66, 0x0f, 0x38, 0x82, 0x06 } }, { 3, { 0x0f, 0xa2, 0x90 } }, { 3, { 0xc4, 0xe2, 0x7d } },
	{ 2, { 0xc5, 0xfc } }, { 5, { 0xc4, 0xe2, 0x7d, 0x90, 0x04 } }, { 3, { 0x0f, 0xba, 0x2e } },
	{ 4, { 0xf0, 0x48, 0x0f, 0xab } }, { 4, { 0xf0, 0x0f, 0xc1, 0x06 } }, { 3, { 0x62, 0xf1, 0x7d } },
	{ 2, { 0xf0, 0x87 } }, { 2, { 0x0f, 0xff } }, { 2, { 0x0f, 0x0b } }, { 3, { 0x0f, 0xc7, 0xf0 } },
	{ 3, { 0xf3, 0x0f, 0xae } }, { 2, { 0xc5, 0xf8 } }, { 2, { 0x0f, 0xf7 } }, { 2, { 0x0f, 0x31 } },
};

static const uint8_t prefixes[] = {
	0x66, 0x67, 0xf0, 0xf2, 0xf3, 0x2e, 0x36, 0x3e, 0x26, 0x64, 0x65, 0x40, 0x48, 0x44, 0x41, 0x4f, 0x49,
};

static size_t random_insn(uint8_t *p)
{
	size_t n = 0;

	while (one_in(3) && n < 4)
		p[n++] = prefixes[rnd_below(sizeof(prefixes))];
	switch (rnd_below(5)) {
	case 0: {
		const struct snippet *s = &snippets[rnd_below(COUNT(snippets))];

		memcpy(p + n, s->bytes, s->len);
		n += s->len;
		break;
	}
	case 1:
		p[n++] = 0x0f;
		/* fall through */
	case 2:
		p[n++] = rnd();
		p[n++] = one_in(2) ? rnd() : 0x05 + (rnd() & 0xf8 & 0x3f);
		break;
	case 3:
		p[n++] = 0x0f;
		p[n++] = one_in(2) ? 0x38 : 0x3a;
		p[n++] = rnd();
		p[n++] = rnd();
		break;
	default:
		n += 1 + rnd_below(6);
		break;
	}
	if (one_in(2))
		n += rnd_below(5);
	return n;
}

static void random_code(uint8_t *p, size_t len)
{
	rnd_fill(p, len);
	for (size_t at = 0; at + 32 < len;)
		at += random_insn(p + at);
}

/* ---- tables ------------------------------------------------------------------------- */

static void put64(struct guest *g, uint32_t at, uint64_t v)
{
	memcpy(g->ram + at, &v, 8);
}

static uint64_t random_desc(void)
{
	static const uint64_t good[] = {
		0x00cf9b000000ffff, 0x00cf93000000ffff, 0x008f9b000000ffff, 0x00009b040000ffff,
		0x00af9b000000ffff, 0x00affb000000ffff, 0x00cffb000000ffff, 0x00cff3000000ffff,
		0x00cf9f000000ffff, 0x0000e9040000ffff, 0x000089022000ffff, 0x0000ec0400080000,
		0x0000e50000300000, 0x0000820200000fff, 0x00cf97000000ffff, 0x0040f7000000ff00,
	};

	if (one_in(4))
		return rnd();
	if (one_in(4))
		return good[rnd_below(COUNT(good))] ^ 1ull << rnd_below(64);
	return good[rnd_below(COUNT(good))];
}

static void make_tables(struct guest *g, bool idt64)
{
	/* 0x08 code32, 0x10 data, 0x18 code64, 0x20 code16, 0x2b data3, 0x33 code32/3, 0x3b code64/3, 0x40 TSS */
	static const uint64_t gdt[] = {
		0, 0x00cf9b000000ffff, 0x00cf93000000ffff, 0x00af9b000000ffff, 0x00009b040000ffff,
		0x00cff3000000ffff, 0x00cffb000000ffff, 0x00affb000000ffff, 0x00008b0220002fff, 0,
	};

	for (unsigned i = 0; i < 256; i++)
		put64(g, GDT + i * 8, i < COUNT(gdt) ? gdt[i] : random_desc());
	for (unsigned i = 0; i < 256; i++) {
		uint64_t handler = CODE + rnd_below(0x4000), sel = idt64 ? 0x18 : 0x08, type = 0x8e | (rnd() & 0x61);
		uint64_t gate = (handler & 0xffff) | sel << 16 | type << 40 | (handler & 0xffff0000) << 32;

		if (one_in(16))
			gate = rnd();
		if (idt64) {
			put64(g, IDT + i * 16, gate);
			put64(g, IDT + i * 16 + 8, one_in(30) ? rnd() : 0);
		} else {
			put64(g, IDT + i * 8, gate);
		}
	}
	rnd_fill(g->ram + TSS, 0x100);
	for (unsigned i = 0; i < 3; i++) {
		uint32_t esp = STACKS + 0x8000 + i * 0x1000, ss = 0x10 | i;

		memcpy(g->ram + TSS + 4 + i * 8, &esp, 4);
		memcpy(g->ram + TSS + 8 + i * 8, &ss, idt64 ? 0 : 4);
		if (idt64)
			memset(g->ram + TSS + 8 + i * 8, 0, 4);
	}
	memset(g->ram + TSS + 102, 0x68, 1);
	memset(g->ram + TSS + 103, 0, 1);
	/* Real mode's vectors. */
	for (unsigned i = 0; i < 256; i++) {
		uint32_t v = (rnd() & 0xff) | 0x4000u << 16;

		memcpy(g->ram + i * 4, &v, 4);
	}
}

static uint64_t leaf(uint64_t gpa, uint64_t extra)
{
	uint64_t e = gpa | 7 | extra;

	if (one_in(100))
		e ^= 1ull << rnd_below(64);
	if (one_in(200))
		e = rnd();
	return e;
}

/* 4 KiB pages for the first 2 MiB + 64 KiB, then whatever. */
static uint64_t page_tables(struct guest *g, int mode)
{
	uint8_t *p = g->ram + PT_AREA;

	memset(p, 0, 0x8000);
	if (mode == PROT32 || mode == PROT16 || mode == VM86) {
		uint32_t *pd = (uint32_t *)p, *pt = (uint32_t *)(p + 0x1000);

		for (unsigned i = 0; i < 1024; i++)
			pt[i] = leaf(i << 12, 0);
		pd[0] = (PT_AREA + 0x1000) | 7;
		for (unsigned i = 1; i < 16; i++)
			pd[i] = leaf(rnd_below(4) << 22, 0x80);
		pd[1023] = rnd();
		return PT_AREA;
	}
	for (unsigned i = 0; i < 512; i++) {
		put64(g, PT_AREA + 0x3000 + i * 8, leaf(i << 12, 0));
		put64(g, PT_AREA + 0x2000 + i * 8, i ? leaf(rnd_below(4) << 21, 0x80) :
		      (PT_AREA + 0x3000) | 7ull);
	}
	if (mode == PAE) {
		put64(g, PT_AREA, (PT_AREA + 0x2000) | 1);
		return PT_AREA;
	}
	put64(g, PT_AREA + 0x1000, (PT_AREA + 0x2000) | 7);
	put64(g, PT_AREA + 0x1008, leaf(0, 0x80));
	put64(g, PT_AREA, (PT_AREA + 0x1000) | 7);
	put64(g, PT_AREA + 511 * 8, leaf(PT_AREA + 0x1000, 0));
	return PT_AREA;
}

/* ---- vCPU state --------------------------------------------------------------------------- */

static struct kvm_segment segment(uint16_t sel, unsigned type, unsigned dpl, bool db, bool l)
{
	return (struct kvm_segment){
		.selector = sel, .type = type, .s = 1, .dpl = dpl, .present = 1, .db = db, .l = l, .g = 1,
		.limit = 0xffffffff,
	};
}

static void set_mode(struct guest *g, int mode, struct kvm_sregs *s, struct kvm_regs *r)
{
	bool wide = mode == LONG || mode == COMPAT, user = mode != REAL && one_in(2);
	unsigned dpl = user || mode == VM86 ? 3 : 0;
	struct kvm_segment data;

	make_tables(g, wide);
	s->gdt.base = GDT;
	s->gdt.limit = one_in(8) ? rnd() : 256 * 8 - 1;
	s->idt.base = mode == REAL ? 0 : IDT;
	s->idt.limit = one_in(8) ? rnd() : 0xfff;
	if (mode == REAL) {
		s->cs.base = CODE;
		s->cs.selector = CODE >> 4;
		r->rip = rnd_below(0x1000);
		return;
	}
	s->cr0 = 0x11 | (rnd() & 0x5000e) | (one_in(4) ? 0x20 : 0);
	s->cr4 = rnd() & 0x3c06df & (one_in(2) ? ~0ull : 0x6f0);
	s->cr4 &= ~0x20020ull;
	if (mode != PROT16 || one_in(2) || wide)
		s->cr0 |= 0x80000000;
	if (!wide && one_in(4) && mode != PAE)
		s->cr0 &= ~0x80000000ull;
	if (mode == PAE || wide)
		s->cr4 |= 0x20;
	s->efer = one_in(2) ? 0x801 : 1;
	if (wide)
		s->efer |= 0x500;
	s->cr3 = page_tables(g, mode);
	s->cs = segment(user ? (mode == LONG ? 0x3b : 0x33) : mode == LONG ? 0x18 : 8, 11, dpl,
			mode != LONG && mode != PROT16, mode == LONG);
	data = segment(user ? 0x2b : 0x10, 3, dpl, mode != PROT16, false);
	if (mode == VM86) {
		data = (struct kvm_segment){ .type = 3, .s = 1, .dpl = 3, .present = 1, .limit = 0xffff };
		s->cs = data;
		s->cs.base = CODE;
		s->cs.selector = CODE >> 4;
		r->rflags |= 1 << 17;
	}
	s->ds = s->es = s->fs = s->gs = s->ss = data;
	s->tr = (struct kvm_segment){
		.base = TSS, .limit = 0x2fff, .selector = 0x40, .type = 11, .present = 1,
	};
	if (wide) {
		s->fs.base = one_in(2) ? 0 : (uint64_t)((int64_t)(rnd_edge() << 16) >> 16);
		s->gs.base = one_in(2) ? 0 : rnd_below(RAM_SIZE);
	}
	r->rip = mode == VM86 ? rnd_below(0x1000) : CODE + rnd_below(0x1000);
}

static void random_regs(struct kvm_regs *r)
{
	uint64_t *regs = (uint64_t *)r;

	for (unsigned i = 0; i < 16; i++)
		regs[i] = one_in(3) ? rnd_edge() : rnd_below(RAM_SIZE);
	r->rsp = STACKS + (rnd_below(0x8000) & (one_in(4) ? ~0ull : ~7ull));
	r->rflags = 2 | (rnd() & 0x247cd5);
	if (one_in(2))
		r->rcx = rnd_below(64);
	if (one_in(8))
		r->rcx = 0xc0000080 + rnd_below(6);
}

static void random_debug(struct guest *g)
{
	struct kvm_debugregs d = { .dr6 = 0xffff0ff0, .dr7 = 0x400 };

	if (!one_in(4))
		return;
	for (unsigned i = 0; i < 4; i++)
		d.db[i] = one_in(2) ? CODE + rnd_below(0x2000) : rnd_below(RAM_SIZE);
	d.dr7 |= rnd() & 0xffff23ff;
	G_IOCTL(g->vcpu, KVM_SET_DEBUGREGS, &d);
}

static void random_fpu(struct guest *g)
{
	struct kvm_xsave x;

	if (!one_in(2) || G_IOCTL(g->vcpu, KVM_GET_XSAVE, &x))
		return;
	rnd_fill((uint8_t *)&x + 32, 480 - 32);
	if (one_in(2))
		rnd_fill(&x, 24);
	x.region[6] &= 0xffff;
	x.region[128] = 7;
	x.region[129] = 0;
	G_IOCTL(g->vcpu, KVM_SET_XSAVE, &x);
}

/* ---- one guest ---------------------------------------------------------------------------------- */

static void check_guards(struct guest *g)
{
	uint8_t *p[] = { g->area, g->ram + RAM_SIZE, g->rom + ROM_SIZE };

	for (unsigned i = 0; i < COUNT(p); i++)
		for (size_t k = 0; k < GUARD; k += 8)
			if (*(uint64_t *)(p[i] + k) != 0xa5a5a5a5a5a5a5a5ull) {
				FUZZ_CHECK(0, "guard %u changed at %zu", i, k);
				memset(p[i], 0xa5, GUARD);
			}
	for (size_t k = 0; k < ROM_SIZE; k += 8)
		if (*(uint64_t *)(g->rom + k) != 0x5a5a5a5a5a5a5a5aull) {
			FUZZ_CHECK(0, "ROM changed at %zu", k);
			memset(g->rom, 0x5a, ROM_SIZE);
		}
}

/* What can be read can be written back. */
static void check_state(struct guest *g)
{
	struct kvm_sregs s;
	struct kvm_regs r;
	struct kvm_vcpu_events e;
	struct kvm_debugregs d;
	struct kvm_xsave x;
	struct kvm_xcrs c;

	FUZZ_CHECK(!G_IOCTL(g->vcpu, KVM_GET_SREGS, &s), "get sregs");
	FUZZ_CHECK(!G_IOCTL(g->vcpu, KVM_GET_REGS, &r), "get regs");
	FUZZ_CHECK(!G_IOCTL(g->vcpu, KVM_GET_VCPU_EVENTS, &e), "get events");
	FUZZ_CHECK(!G_IOCTL(g->vcpu, KVM_GET_DEBUGREGS, &d), "get debugregs");
	FUZZ_CHECK(!G_IOCTL(g->vcpu, KVM_GET_XSAVE, &x), "get xsave");
	FUZZ_CHECK(!G_IOCTL(g->vcpu, KVM_GET_XCRS, &c), "get xcrs");
	FUZZ_CHECK(!G_IOCTL(g->vcpu, KVM_SET_XCRS, &c), "set xcrs 0x%llx", (long long)c.xcrs[0].value);
	FUZZ_CHECK(!G_IOCTL(g->vcpu, KVM_SET_XSAVE, &x), "set xsave");
	/* A code segment with L loaded outside long mode can be had, and is refused, as by KVM. */
	FUZZ_CHECK((s.cs.l && !(s.efer & 0x400)) || !G_IOCTL(g->vcpu, KVM_SET_SREGS, &s), "set sregs cr0 %llx cr4 %llx efer %llx cs.l %u db %u",
		   (long long)s.cr0, (long long)s.cr4, (long long)s.efer, s.cs.l, s.cs.db);
	FUZZ_CHECK(!G_IOCTL(g->vcpu, KVM_SET_REGS, &r), "set regs");
	FUZZ_CHECK(!G_IOCTL(g->vcpu, KVM_SET_VCPU_EVENTS, &e), "set events");
	FUZZ_CHECK(!G_IOCTL(g->vcpu, KVM_SET_DEBUGREGS, &d), "set debugregs");
	FUZZ_CHECK(!(r.rflags & ~0x3f7fd7ull) && (r.rflags & 2), "rflags %llx", (long long)r.rflags);
}

static void answer_exit(struct guest *g, unsigned *unhandled)
{
	struct kvm_run *run = g->run;

	switch (run->exit_reason) {
	case KVM_EXIT_IO:
		if (run->io.direction == KVM_EXIT_IO_IN && run->io.data_offset < g->run_size &&
		    run->io.data_offset + run->io.size * run->io.count <= g->run_size)
			rnd_fill((uint8_t *)run + run->io.data_offset, run->io.size * run->io.count);
		break;
	case KVM_EXIT_MMIO:
		rnd_fill(run->mmio.data, sizeof(run->mmio.data));
		break;
	case KVM_EXIT_INTERNAL_ERROR:
		if (run->internal.suberror == KVM_INTERNAL_ERROR_EMULATION)
			++*unhandled;
		break;
	default:
		break;
	}
}

static void run_guest(struct guest *g)
{
	unsigned unhandled = 0, interrupted = 0;

	for (unsigned i = 0; i < 30 && !unhandled && interrupted < 2; i++) {
		int r;

		errno = 0;
		running = 1;
		r = G_IOCTL(g->vcpu, KVM_RUN, 0);
		running = 0;
		shared->runs++;
		if (r < 0) {
			FUZZ_CHECK(errno == EINTR || errno == EAGAIN || errno == EFAULT, "KVM_RUN");
			interrupted++;
		} else {
			answer_exit(g, &unhandled);
			if (g->run->exit_reason == KVM_EXIT_SHUTDOWN || g->run->exit_reason == KVM_EXIT_HLT)
				break;
		}
		if (one_in(8))
			G_IOCTL(g->vcpu, KVM_NMI, 0);
		if (one_in(4))
			check_state(g);
	}
	shared->unhandled += unhandled;
}

static void one_case(struct guest *g, uint64_t seed, unsigned nr, const struct kvm_sregs *fresh)
{
	int mode = rnd_below(NR_MODES);
	struct kvm_sregs s = *fresh;
	struct kvm_regs r;
	struct kvm_vcpu_events e = { 0 };
	struct kvm_mp_state mp = { KVM_MP_STATE_RUNNABLE };
	struct kvm_guest_debug debug = { .control = one_in(16) ? KVM_GUESTDBG_ENABLE | KVM_GUESTDBG_SINGLESTEP : 0 };

	snprintf(shared->where, sizeof(shared->where), "seed %llu case %u %s", (unsigned long long)seed, nr,
		 mode_names[mode]);
	random_regs(&r);
	random_code(g->ram + CODE, 0x6000);
	set_mode(g, mode, &s, &r);
	G_IOCTL(g->vcpu, KVM_SET_MP_STATE, &mp);
	G_IOCTL(g->vcpu, KVM_SET_VCPU_EVENTS, &e);
	/* A combination that is refused is no case. */
	if (G_IOCTL(g->vcpu, KVM_SET_SREGS, &s) || G_IOCTL(g->vcpu, KVM_SET_REGS, &r))
		return;
	random_debug(g);
	random_fpu(g);
	G_IOCTL(g->vcpu, KVM_SET_GUEST_DEBUG, &debug);
	run_guest(g);
	check_guards(g);
	shared->cases++;
}

static void set_slot(struct guest *g, unsigned slot, uint64_t gpa, void *p, size_t size, unsigned flags)
{
	struct kvm_userspace_memory_region region = {
		.slot = slot, .flags = flags, .guest_phys_addr = gpa, .memory_size = size,
		.userspace_addr = (uintptr_t)p,
	};

	FUZZ_CHECK(!G_IOCTL(g->vm, KVM_SET_USER_MEMORY_REGION, &region), "slot %u", slot);
}

static bool guest_create(struct guest *g)
{
	struct kvm_cpuid2 *cpuid = calloc(1, sizeof(*cpuid) + 200 * sizeof(struct kvm_cpuid_entry2));
	size_t size = RAM_SIZE + ROM_SIZE + 3 * GUARD;

	g->kvm = softkvm_open(O_RDWR | O_CLOEXEC);
	g->vm = G_IOCTL(g->kvm, KVM_CREATE_VM, 0);
	g->area = mmap(NULL, size, PROT_READ | PROT_WRITE, MAP_PRIVATE | MAP_ANONYMOUS, -1, 0);
	if (!cpuid || g->kvm < 0 || g->vm < 0 || g->area == MAP_FAILED)
		return false;
	memset(g->area, 0xa5, size);
	g->ram = g->area + GUARD;
	g->rom = g->ram + RAM_SIZE + GUARD;
	memset(g->ram, 0, RAM_SIZE);
	memset(g->rom, 0x5a, ROM_SIZE);
	set_slot(g, 0, 0, g->ram, RAM_SIZE, one_in(2) ? KVM_MEM_LOG_DIRTY_PAGES : 0);
	set_slot(g, 1, ROM_GPA, g->rom, ROM_SIZE, KVM_MEM_READONLY);
	if (one_in(2))
		G_IOCTL(g->vm, KVM_CREATE_IRQCHIP, 0);
	g->vcpu = G_IOCTL(g->vm, KVM_CREATE_VCPU, 0);
	g->run_size = G_IOCTL(g->kvm, KVM_GET_VCPU_MMAP_SIZE, 0);
	g->run = softkvm_mmap(NULL, g->run_size, PROT_READ | PROT_WRITE, MAP_SHARED, g->vcpu, 0);
	cpuid->nent = 200;
	G_IOCTL(g->kvm, KVM_GET_SUPPORTED_CPUID, cpuid);
	G_IOCTL(g->vcpu, KVM_SET_CPUID2, cpuid);
	free(cpuid);
	return g->run != MAP_FAILED;
}

static void guest_destroy(struct guest *g)
{
	munmap(g->run, g->run_size);
	softkvm_close(g->vcpu);
	softkvm_close(g->vm);
	softkvm_close(g->kvm);
	munmap(g->area, RAM_SIZE + ROM_SIZE + 3 * GUARD);
}

static void batch(uint64_t seed)
{
	struct guest g = { .thread = pthread_self() };
	struct sigaction sa = { .sa_handler = on_kick };
	struct kvm_sregs fresh;
	pthread_t thread;

	sigaction(SIGUSR1, &sa, NULL);
	if (!guest_create(&g)) {
		FUZZ_CHECK(0, "no guest");
		return;
	}
	running = 0;
	pthread_create(&thread, NULL, kicker, &g);
	G_IOCTL(g.vcpu, KVM_GET_SREGS, &fresh);
	for (unsigned i = 0; i < 100; i++)
		one_case(&g, seed, i, &fresh);
	running = 2;
	pthread_join(thread, NULL);
	guest_destroy(&g);
}

int main(void)
{
	return fuzz_main(batch, 60);
}

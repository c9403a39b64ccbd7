/* SPDX-License-Identifier: MIT */
/*
 * The payload: random instructions in real mode and in vm86, one at a time. Each ends in an
 * exception (its own, or that of the INT3 or HLT it falls or jumps to), and what it has left is a line
 * on port 0xe9: a hash, or everything for the one case that is to be shown.
 *
 * QEMU's TCG, which check-legacy compares with, is wrong here, so these are not made:
 *  - limits of real-mode and vm86 segments are not checked: operands that cross offset 0xffff, 32-bit
 *    offsets beyond it, EIP beyond it (SDM volume 3, 21.1.1 and 5.3: #GP, or #SS for the stack);
 *  - RF in the flags an exception pushes (SDM volume 3, 18.3.1.1) is not set for every fault: masked;
 *  - TF is delivered one instruction late after POPF and IRET: not set.
 * A 32-bit PUSH of a segment register differs between vendors: not made either.
 */
typedef unsigned char u8;
typedef unsigned short u16;
typedef unsigned int u32;
typedef unsigned long long u64;

struct state {
	u32 gpr[8];
	u16 seg[6];		/* es cs ss ds fs gs */
	u32 eip, eflags, vector, error;
};
enum { AX, CX, DX, BX, SP, BP, SI, DI };
enum { ES, CS, SS, DS, FS, GS };

extern u8 rm_blob[], rm_blob_end[], rm_stubs[], rm_in[], rm_out[], rm_target[], v86_stubs[];
void rm_run(void);
void v86_run(void);
int main(void);

struct state v86_in, v86_out;
u64 pm_idt[256];

#define RM_BASE 0x1000u
#define LOW(p) ((void *)(RM_BASE + (u32)((p) - rm_blob)))
#define CODE 0x10000u
#define WINDOWS 3
static const u32 window[WINDOWS] = { 0x30000, 0x48000, 0x60000 };	/* DS:, ES:, SS: none reaches below 0x20000 */
#define WINDOW_SIZE 0x200u

static const u32 *const params = (const u32 *)0xfeff0;

/* ---- output and numbers ------------------------------------------------------------------ */

static void outb(u16 port, u8 v)
{
	asm volatile("outb %0, %1" : : "a"(v), "Nd"(port));
}

static void puts_(const char *s)
{
	while (*s)
		outb(0xe9, *s++);
}

static void hex(u32 v, int digits)
{
	while (digits--)
		outb(0xe9, "0123456789abcdef"[v >> 4 * digits & 15]);
}

static u32 seed;

static u32 rnd(void)
{
	seed ^= seed << 13;
	seed ^= seed >> 17;
	seed ^= seed << 5;
	return seed * 0x9e3779b1u >> 3;
}

static int one_in(u32 n)
{
	return rnd() % n == 0;
}

/* No C library, but compilers call these two all the same. */
void *memcpy(void *to, const void *from, u32 n);
void *memset(void *to, int v, u32 n);

void *memcpy(void *to, const void *from, u32 n)
{
	for (u32 i = 0; i < n; i++)
		((volatile u8 *)to)[i] = ((const u8 *)from)[i];
	return to;
}

void *memset(void *to, int v, u32 n)
{
	for (u32 i = 0; i < n; i++)
		((volatile u8 *)to)[i] = v;
	return to;
}

static void copy(volatile u8 *to, const u8 *from, u32 n)
{
	for (u32 i = 0; i < n; i++)
		to[i] = from[i];
}

/* ---- tables ----------------------------------------------------------------------------------- */

static struct {
	u32 link, esp0, ss0, rest[22];
	u16 trap, iomap;
	u8 redirection[32];
	u8 ports[0x100 / 8];
	u8 end;
} __attribute__((packed)) tss;

static u64 gdt[6];

static void make_tables(void)
{
	struct __attribute__((packed)) { u16 limit; u32 base; } gdtr = { sizeof(gdt) - 1, (u32)gdt };
	u64 t = (u32)&tss;

	gdt[1] = 0x00cf9b000000ffffull;
	gdt[2] = 0x00cf93000000ffffull;
	gdt[3] = 0x00009b000000ffffull;
	gdt[4] = 0x000093000000ffffull;
	gdt[5] = (sizeof(tss) - 1) | (t & 0xffffff) << 16 | 0x89ull << 40 | (t >> 24) << 56;
	tss.esp0 = 0x2f0000;
	tss.ss0 = 0x10;
	tss.iomap = (u16)((u32)tss.ports - (u32)&tss);
	for (int i = 0; i < 0x20; i++)
		tss.ports[i] = 0xff;
	tss.end = 0xff;
	/* Gates that a program may use, and that it may not: those of vectors with an error code above all. */
	for (u32 v = 0; v < 256; v++) {
		u32 at = (u32)v86_stubs + 16 * v;

		pm_idt[v] = (at & 0xffff) | 0x080000 | (u64)(v & 1 || v < 18 ? 0x8e : 0xee) << 40 | (u64)(at >> 16) << 48;
		((volatile u32 *)0)[v] = 0x100u << 16 | (u32)(rm_stubs - rm_blob + 9 * v);
	}
	asm volatile("lgdt %0\n ltr %1\n lidt pm_idtr" : : "m"(gdtr), "r"((u16)0x28));
}

/* ---- the case -------------------------------------------------------------------------------------- */

static struct state in;
static u8 code[16];
static u32 len, opsize;
static int vm86;

static void put(u8 b)
{
	code[len++] = b;
}

static void put16(u32 v)
{
	put(v);
	put(v >> 8);
}

/* seg:off for a linear address: any of many. off leaves room behind it. */
static u32 far_pointer(u32 linear)
{
	u32 k = rnd() % 0xf00;

	if (k > linear >> 4)
		k = linear >> 4;
	return ((linear >> 4) - k) << 16 | ((linear & 15) + 16 * k);
}

static u32 target(void)
{
	return far_pointer(CODE + 0x200 + rnd() % 0x400);
}

/* Selectors whose 64 KiB are RAM that nobody needs. */
static u16 selector(void)
{
	return 0x2000 + rnd() % 0x5000;
}

static void store(u32 linear, u32 v, u32 n)
{
	for (u32 i = 0; i < n; i++)
		((volatile u8 *)0)[linear + i] = v >> 8 * i;
}

static u32 linear(int seg, u32 off)
{
	return in.seg[seg] * 16u + (u16)off;
}

/* A far pointer to code, or to data, at DS:BX. */
static void pointer_at_bx(u32 p)
{
	store(linear(DS, in.gpr[BX]), p & 0xffff, opsize);
	store(linear(DS, in.gpr[BX]) + opsize, p >> 16, 2);
}

static void push_frame(int n)
{
	u32 t = target(), at = linear(SS, in.gpr[SP]);
	u32 flags = (rnd() & 0x247ed5) | 2;

	store(at, t & 0xffff, opsize);
	store(at + opsize, t >> 16, opsize);
	if (n == 3)
		store(at + 2 * opsize, flags, opsize);
}

static void size_prefix(void)
{
	opsize = 2;
	if (one_in(3)) {
		put(0x66);
		opsize = 4;
	}
}

/* [bx], [si] or [bp+0], sometimes with 32-bit addressing ([ebx], [esi], [ebp+0]). */
static void mem(int reg, int wide)
{
	static const u8 rm16[] = { 7, 4, 0x46 }, rm32[] = { 3, 6, 0x45 };
	int form = rnd() % 3;

	put((wide ? rm32 : rm16)[form] | reg << 3);
	if (form == 2)
		put(0);
}

static int addr_prefix(void)
{
	static const u8 segs[] = { 0x26, 0x36, 0x3e, 0x64, 0x65 };
	int wide = one_in(4);

	if (one_in(4))
		put(segs[rnd() % 5]);
	if (wide)
		put(0x67);
	return wide;
}

static void g_mov_sreg(void)
{
	static const u8 sregs[] = { 0, 2, 3, 4, 5 };
	u8 s = sregs[rnd() % 5];

	if (one_in(2)) {
		put(0x8e);
		put(0xc0 | s << 3 | rnd() % 3);	/* AX, CX, DX */
	} else {
		store(linear(DS, in.gpr[BX]), selector(), 2);
		put(0x8e);
		put(s << 3 | 7);
	}
}

static void g_store_sreg(void)
{
	size_prefix();
	put(0x8c);
	if (one_in(2))
		put(0xc0 | (rnd() % 6) << 3 | rnd() % 3);
	else
		put((rnd() % 6) << 3 | 7);
}

static void g_push_sreg(void)
{
	static const u8 ops[] = { 0x06, 0x0e, 0x16, 0x1e };
	u32 i = rnd() % 6;

	if (i < 4) {
		put(ops[i]);
	} else {
		put(0x0f);
		put(i == 4 ? 0xa0 : 0xa8);
	}
}

static void g_pop_sreg(void)
{
	static const u8 ops[] = { 0x07, 0x17, 0x1f };
	u32 i = rnd() % 5;

	size_prefix();
	store(linear(SS, in.gpr[SP]), selector() | rnd() << 16, 4);
	if (i < 3) {
		put(ops[i]);
	} else {
		put(0x0f);
		put(i == 3 ? 0xa1 : 0xa9);
	}
}

static void g_load_pointer(void)
{
	static const u8 ops[] = { 0xc4, 0xc5, 0xb2, 0xb4, 0xb5 };
	u32 i = rnd() % 5;

	size_prefix();
	store(linear(DS, in.gpr[BX]), rnd(), 4);
	store(linear(DS, in.gpr[BX]) + opsize, selector(), 2);
	if (i >= 2)
		put(0x0f);
	put(ops[i]);
	put((i == 2 ? 0 : rnd() % 3) << 3 | 7);
}

static void g_far_imm(void)
{
	u32 t = target();

	size_prefix();
	put(one_in(2) ? 0x9a : 0xea);
	put16(t);
	if (opsize == 4)
		put16(0);
	put16(t >> 16);
}

static void g_far_mem(void)
{
	size_prefix();
	pointer_at_bx(target());
	put(0xff);
	put((one_in(2) ? 3 : 5) << 3 | 7);
}

static void g_retf(void)
{
	size_prefix();
	push_frame(2);
	if (one_in(2)) {
		put(0xcb);
	} else {
		put(0xca);
		put16(rnd() & 30);
	}
}

static void g_iret(void)
{
	size_prefix();
	push_frame(3);
	put(0xcf);
}

static void g_int(void)
{
	u32 v = rnd();

	if (one_in(4)) {
		put(v & 1 ? 0xcc : 0xce);
		return;
	}
	put(0xcd);
	put(v);
}

static void g_flags(void)
{
	static const u8 ops[] = { 0x9c, 0x9d, 0xfa, 0xfb, 0xfc, 0xfd, 0xf5, 0xf8, 0xf9, 0x9e, 0x9f };
	u8 op = ops[one_in(2) ? rnd() & 3 : rnd() % sizeof(ops)];

	size_prefix();
	if (op == 0x9d)
		store(linear(SS, in.gpr[SP]), (rnd() & 0x247ed5) | 2, 4);
	put(op);
}

/* Is an end of the segment within 20 words of four bytes, in either direction? */
static int reaches_end(u32 offset)
{
	return (u16)(offset + 80) < 164;
}

static void g_string(void)
{
	static const u8 ops[] = { 0xa4, 0xa6, 0xaa, 0xac, 0xae };
	u8 op = ops[rnd() % 5];

	if (one_in(2))
		put(one_in(2) ? 0xf2 : 0xf3);
	if (one_in(8))
		put(0x26);
	in.gpr[CX] = (in.gpr[CX] & 0xffff0000) | rnd() % 20;
	if (one_in(3)) {
		put(op);	/* bytes: over the end of the segment too */
		if (one_in(3))
			in.gpr[SI] = 0x10000 - rnd() % 10;
		if (one_in(3))
			in.gpr[DI] = 0x10000 - rnd() % 10;
		in.gpr[SI] &= 0xffff;
		in.gpr[DI] &= 0xffff;
		return;
	}
	/* Words not: TCG lets them cross it. Nor may a repetition get there. */
	if (reaches_end(in.gpr[SI]) || reaches_end(in.gpr[DI])) {
		put(op);
		return;
	}
	if (one_in(2))
		put(0x66);
	put(op | 1);
}

static void g_alu(void)
{
	u8 op = (rnd() & 7) << 3 | (rnd() & 3);
	int wide;

	if (one_in(3))
		put(0x66);
	wide = addr_prefix();
	put(one_in(4) ? 0x88 | (op & 3) : one_in(4) ? 0x86 | (op & 1) : op);
	mem(rnd() % 3, wide);
}

static void g_near(void)
{
	static const u8 ops[] = { 0xeb, 0x70, 0xe0, 0xe1, 0xe2, 0xe3 };
	u8 op = ops[rnd() % 6];

	put(op == 0x70 ? op | (rnd() & 15) : op);
	put(rnd() & 0x3f);
}

static void g_stack(void)
{
	static const u8 ops[] = { 0x60, 0x61, 0x50, 0x58, 0xc9, 0x6a };
	u8 op = ops[rnd() % 6];

	/* LEAVE takes SP from BP; POPA loads anything. */
	if (op != 0xc9)
		size_prefix();
	put(op);
	if (op == 0x6a)
		put(rnd());
}

static void g_fault(void)
{
	static const struct { u8 n, b[4]; } ops[] = {
		{ 2, { 0x0f, 0x0b } }, { 2, { 0xf6, 0xf1 } }, { 2, { 0xf7, 0xf9 } }, { 2, { 0xd4, 0x00 } },
		{ 2, { 0x63, 0xc0 } }, { 3, { 0x0f, 0x02, 0xc0 } }, { 3, { 0x0f, 0x00, 0xe0 } },
		{ 3, { 0x0f, 0x00, 0xd0 } }, { 3, { 0x0f, 0x00, 0xc0 } }, { 2, { 0x62, 0x07 } },
	}, privileged[] = {
		{ 1, { 0xf4 } }, { 3, { 0x0f, 0x20, 0xc0 } }, { 3, { 0x0f, 0x22, 0xc0 } }, { 3, { 0x0f, 0x01, 0x17 } },
		{ 2, { 0x0f, 0x06 } }, { 2, { 0x0f, 0x08 } }, { 2, { 0x0f, 0x30 } }, { 2, { 0x0f, 0x32 } },
		{ 2, { 0xe4, 0x21 } }, { 2, { 0xe6, 0x80 } }, { 1, { 0x6e } }, { 2, { 0xf3, 0x6c } },
		{ 3, { 0x0f, 0x21, 0xc0 } }, { 3, { 0x0f, 0x01, 0x3f } },
	};

	if (vm86 && one_in(2)) {
		u32 i = rnd() % (sizeof(privileged) / sizeof(privileged[0]));

		in.gpr[DX] = (in.gpr[DX] & 0xffff0000) | 0x80;
		for (u32 k = 0; k < privileged[i].n; k++)
			put(privileged[i].b[k]);
	} else {
		u32 i = rnd() % (sizeof(ops) / sizeof(ops[0]));

		in.gpr[CX] = 0;
		for (u32 k = 0; k < ops[i].n; k++)
			put(ops[i].b[k]);
	}
}

static void (*const kinds[])(void) = {
	g_mov_sreg, g_store_sreg, g_push_sreg, g_pop_sreg, g_load_pointer, g_far_imm, g_far_mem, g_retf, g_iret,
	g_int, g_flags, g_flags, g_string, g_string, g_alu, g_alu, g_near, g_stack, g_fault,
};

static void make_case(void)
{
	u32 ds = far_pointer(window[0] + 0x80 + rnd() % 0x80), es = far_pointer(window[1] + 0x80 + rnd() % 0x80);
	u32 ss = far_pointer(window[2] + 0x80 + (rnd() % 0x40 & ~1u)), cs = far_pointer(CODE + 0x800 + rnd() % 16);

	for (int i = 0; i < 8; i++)
		in.gpr[i] = rnd() << 16 | selector();
	in.gpr[BX] = ds & 0xffff;
	in.gpr[SI] = (ds & 0xffff) + rnd() % 32;
	in.gpr[DI] = es & 0xffff;
	in.gpr[SP] = (ss & 0xffff) | rnd() << 16;
	in.gpr[BP] = (ss & 0xffff) + 8;
	in.seg[DS] = ds >> 16;
	in.seg[ES] = es >> 16;
	in.seg[SS] = ss >> 16;
	in.seg[CS] = cs >> 16;
	in.seg[FS] = selector();
	in.seg[GS] = selector();
	in.eip = cs & 0xffff;
	in.eflags = (rnd() & 0xcd5) | 2;
	if (vm86)
		in.eflags |= 0x20000 | (one_in(3) ? 0 : 0x3000);
	len = 0;
	opsize = 2;
	kinds[rnd() % (sizeof(kinds) / sizeof(kinds[0]))]();
}

/* ---- running ------------------------------------------------------------------------------------------- */

struct trap_frame {
	u32 edi, esi, ebp, esp_, ebx, edx, ecx, eax, vector, error, eip, cs, eflags, esp, ss, es, ds, fs, gs;
};
void trap(const struct trap_frame *f);
static void show_case(const struct state *out);

void trap(const struct trap_frame *f)
{
	v86_out = (struct state){
		.gpr = { f->eax, f->ecx, f->edx, f->ebx, f->esp, f->ebp, f->esi, f->edi },
		.seg = { f->es, f->cs, f->ss, f->ds, f->fs, f->gs },
		.eip = f->eip, .eflags = f->eflags & ~0x10000u, .vector = f->vector, .error = f->error,
	};
	if (f->eflags & 0x20000)
		return;
	puts_("trap in the monitor\n");
	show_case(&v86_out);
	outb(0xf4, 1);
	for (;;)
		;
}

static struct state run_case(void)
{
	struct state out;

	copy((u8 *)(in.seg[CS] * 16 + in.eip), code, len);
	if (vm86) {
		v86_in = in;
		v86_run();
		out = v86_out;
	} else {
		copy(LOW(rm_in), (const u8 *)&in, sizeof(in));
		store((u32)LOW(rm_target), in.eip, 2);
		store((u32)LOW(rm_target) + 2, in.seg[CS], 2);
		rm_run();
		copy((u8 *)&out, LOW(rm_out), sizeof(out));
		/* What INT pushed. */
		out.eip = *(volatile u16 *)(out.seg[SS] * 16 + (u16)out.gpr[SP]);
		out.seg[CS] = *(volatile u16 *)(out.seg[SS] * 16 + (u16)(out.gpr[SP] + 2));
		out.eflags = *(volatile u16 *)(out.seg[SS] * 16 + (u16)(out.gpr[SP] + 4));
		out.vector &= 0xff;
		out.error = 0;
	}
	for (u32 i = 0; i < len; i++)
		((volatile u8 *)0)[in.seg[CS] * 16 + in.eip + i] = vm86 ? 0xf4 : 0xcc;
	return out;
}

static u32 hash(u32 h, const void *p, u32 n)
{
	for (u32 i = 0; i < n / 4; i++)
		h = (h ^ ((const volatile u32 *)p)[i]) * 0x01000193u + (h >> 15);
	return h;
}

static void show(const char *name, const struct state *s)
{
	puts_(name);
	for (int i = 0; i < 8; i++, outb(0xe9, ' '))
		hex(s->gpr[i], 8);
	puts_("segments");
	for (int i = 0; i < 6; i++) {
		outb(0xe9, ' ');
		hex(s->seg[i], 4);
	}
	puts_(" ip ");
	hex(s->eip, 8);
	puts_(" flags ");
	hex(s->eflags, 8);
	puts_(" vector ");
	hex(s->vector, 2);
	puts_(" error ");
	hex(s->error, 4);
	outb(0xe9, '\n');
}

static void show_case(const struct state *out)
{
	puts_(vm86 ? "vm86, code" : "real mode, code");
	for (u32 i = 0; i < len; i++) {
		outb(0xe9, ' ');
		hex(code[i], 2);
	}
	outb(0xe9, '\n');
	show("before ", &in);
	show("after  ", out);
	for (int w = 0; w < WINDOWS; w++)
		for (u32 i = 0; i < WINDOW_SIZE; i++) {
			hex(((volatile u8 *)0)[window[w] + i], 2);
			outb(0xe9, i % 32 == 31 ? '\n' : ' ');
		}
}

static void run_all(u32 cases)
{
	for (u32 i = 0; i < 0x10000; i++)
		((volatile u8 *)0)[CODE + i] = vm86 ? 0xf4 : 0xcc;
	for (u32 i = 0; i < cases; i++) {
		struct state out;
		u32 h;

		make_case();
		out = run_case();
		h = hash(0x811c9dc5, &out, sizeof(out));
		for (int w = 0; w < WINDOWS; w++)
			h = hash(h, (void *)window[w], WINDOW_SIZE);
		if (params[2] == i + (vm86 ? cases : 0))
			show_case(&out);
		hex(h, 8);
		outb(0xe9, '\n');
	}
}

int main(void)
{
	seed = params[0] * 2 + 1;
	outb(0x21, 0xff);
	outb(0xa1, 0xff);
	copy((u8 *)RM_BASE, rm_blob, rm_blob_end - rm_blob);
	make_tables();
	for (int w = 0; w < WINDOWS; w++)
		for (u32 i = 0; i < WINDOW_SIZE; i += 4)
			*(volatile u32 *)(window[w] + i) = rnd();
	run_all(params[1]);
	vm86 = 1;
	run_all(params[1]);
	puts_("end\n");
	outb(0xf4, 0);
	for (;;)
		;
}

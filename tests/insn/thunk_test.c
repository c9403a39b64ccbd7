/* SPDX-License-Identifier: MIT */
/*
 * Thunks against the host CPU: every encoding the allow-list accepts is executed
 * natively, as it stands, and through decoder and thunk, from the same random
 * state; registers, flags, vectors, MXCSR, x87 and memory must agree.
 *
 * The memory operand ends where its page ends, with an inaccessible page
 * behind: an operand size the decoder reports too small shows as a fault.
 *
 * Decoder, thunks and ops/fpu.c are the real ones, everything around is a stub:
 * guest linear addresses are host addresses.
 */
#include <setjmp.h>
#include <signal.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/mman.h>
#include <time.h>

#include "x86/decode/decode.h"
#include "x86/interp/interp.h"

/* ---- stubs ------------------------------------------------------------------- */

static host_code_fault_fn fault_fn;
static const u8 *fault_start, *fault_end;
static int last_vector = -1;

_Thread_local struct host_guest_ctx *host_guest_current;
_Thread_local volatile bool host_kicked;

bool host_register_code_fault(const void *start, const void *end, host_code_fault_fn fn)
{
	fault_start = start;
	fault_end = end;
	fault_fn = fn;
	return true;
}

void vm_bug(struct vm *vm, const char *what, const char *file, int line)
{
	fprintf(stderr, "%s:%d: %s\n", file, line, what);
	abort();
}

bool guest_cpuid_has(struct vcpu *vcpu, u32 function, u32 index, enum cpuid_reg reg, unsigned bit)
{
	return true;
}

enum exec queue_exception(struct vcpu *vcpu, u8 vector)
{
	last_vector = vector;
	return EXEC_FAULT;
}

enum exec queue_exception_e(struct vcpu *vcpu, u8 vector, u32 error_code)
{
	last_vector = vector;
	return EXEC_FAULT;
}

enum exec seg_linear_slow(struct vcpu *vcpu, enum seg seg, u64 off, unsigned size, bool write, gva_t *va)
{
	*va = (u32)off;
	return EXEC_OK;
}

static bool bounce;	/* pretend memory is nothing a pointer may be taken of */
static bool store_exits;

void *mem_host_slow(struct vcpu *vcpu, gva_t va, unsigned len, bool write, enum exec *r)
{
	*r = EXEC_OK;
	return bounce ? NULL : (void *)va;
}

void *mem_host_atomic(struct vcpu *vcpu, gva_t va, unsigned len, enum exec *r)
{
	*r = EXEC_OK;
	return bounce ? NULL : (void *)va;
}

enum exec mem_read(struct vcpu *vcpu, gva_t va, void *buf, unsigned len, unsigned access)
{
	memcpy(buf, (void *)va, len);
	return EXEC_OK;
}

enum exec mem_write(struct vcpu *vcpu, gva_t va, const void *buf, unsigned len, unsigned access)
{
	if (store_exits)
		return EXEC_EXIT;
	memcpy((void *)va, buf, len);
	return EXEC_OK;
}

enum exec mem_probe_write(struct vcpu *vcpu, gva_t va, unsigned len, unsigned access)
{
	return EXEC_OK;
}

enum exec mem_load_slow(struct vcpu *vcpu, gva_t va, unsigned size, u64 *val)
{
	*val = 0;
	return mem_read(vcpu, va, val, size, 0);
}

enum exec mem_store_slow(struct vcpu *vcpu, gva_t va, unsigned size, u64 val)
{
	return mem_write(vcpu, va, &val, size, 0);
}

#define STUB_SELECT(name) \
	insn_fn name(const struct decode_ctx *ctx, struct insn *insn) { return NULL; }
STUB_SELECT(ops_system_select)
STUB_SELECT(ops_string_select)
STUB_SELECT(ops_flow_select)
STUB_SELECT(ops_integer_select)

/* ---- machine state and native execution ------------------------------------------ */

struct state {
	_Alignas(64) u8 fx[512];
	u8 ymm[16][32];
	u64 regs[16];
	u64 rflags;
};

/* In the low 2 GiB, so that native code reaches it with absolute addresses. */
struct low {
	struct state in, out;
	u64 host_rsp;
	_Alignas(4096) u8 code[4096];
};

static struct low *low;
static u8 *page;	/* one page, followed by one that faults */
static sigjmp_buf native_fault;
static volatile sig_atomic_t in_native;

static u8 *put32(u8 *p, u32 v)
{
	memcpy(p, &v, 4);
	return p + 4;
}

static u8 *op_abs(u8 *p, const char *opcode, unsigned n, unsigned reg, const void *addr)
{
	memcpy(p, opcode, n);
	p += n;
	*p++ = 0x04 | (reg & 7) << 3;
	*p++ = 0x25;
	return put32(p, (u32)(uintptr_t)addr);
}

static u8 *mov_abs(u8 *p, bool store, unsigned reg, const void *addr)
{
	*p++ = reg > 7 ? 0x4c : 0x48;
	return op_abs(p, store ? "\x89" : "\x8b", 1, reg, addr);
}

static u8 *ymm_abs(u8 *p, bool store, unsigned reg, const void *addr)
{
	*p++ = 0xc5;
	*p++ = reg > 7 ? 0x7e : 0xfe;
	return op_abs(p, store ? "\x7f" : "\x6f", 1, reg, addr);
}

static const u32 default_mxcsr = 0x1f80;

static void native_build(const u8 *insn, unsigned len)
{
	static const u8 push[] = { 0x53, 0x55, 0x41, 0x54, 0x41, 0x55, 0x41, 0x56, 0x41, 0x57 };
	static const u8 pop[] = { 0x41, 0x5f, 0x41, 0x5e, 0x41, 0x5d, 0x41, 0x5c, 0x5d, 0x5b, 0xc3 };
	u8 *p = low->code;

	memcpy(p, push, sizeof(push));
	p += sizeof(push);
	p = mov_abs(p, true, RSP, &low->host_rsp);
	p = op_abs(p, "\x0f\xae", 2, 1, low->in.fx);
	for (int i = 0; i < 16; i++)
		p = ymm_abs(p, false, i, low->in.ymm[i]);
	p = op_abs(p, "\xff", 1, 6, &low->in.rflags);
	*p++ = 0x9d;
	for (int i = 0; i < 16; i++)
		if (i != RSP)
			p = mov_abs(p, false, i, &low->in.regs[i]);
	p = mov_abs(p, false, RSP, &low->in.regs[RSP]);
	memcpy(p, insn, len);
	p += len;
	for (int i = 0; i < 16; i++)
		p = mov_abs(p, true, i, &low->out.regs[i]);
	p = mov_abs(p, false, RSP, &low->host_rsp);
	*p++ = 0x9c;
	p = op_abs(p, "\x8f", 1, 0, &low->out.rflags);
	for (int i = 0; i < 16; i++)
		p = ymm_abs(p, true, i, low->out.ymm[i]);
	p = op_abs(p, "\x0f\xae", 2, 0, low->out.fx);
	memcpy(p, "\xdb\xe3\xc5\xf8\x77", 5);
	p += 5;
	memcpy(p, pop, sizeof(pop));
}

static void fpu_clean(void)
{
	asm volatile("fninit; ldmxcsr %0; vzeroupper" : : "m"(default_mxcsr));
}

/* False: the host faulted. */
static bool native_run(void)
{
	volatile bool ok = false;

	if (!sigsetjmp(native_fault, 1)) {
		in_native = 1;
		((void (*)(void))low->code)();
		ok = true;
	}
	in_native = 0;
	fpu_clean();
	return ok;
}

static void on_fault(int sig, siginfo_t *info, void *context)
{
	ucontext_t *uc = context;
	const u8 *pc = (const u8 *)uc->uc_mcontext.gregs[REG_RIP];

	if (in_native)
		siglongjmp(native_fault, 1);
	if (fault_fn && pc >= fault_start && pc < fault_end && fault_fn(sig, info, uc))
		return;
	signal(sig, SIG_DFL);
}

/* ---- random states -------------------------------------------------------------------- */

static u64 rnd_state = 0x123456789abcdefull;

static u64 rnd(void)
{
	rnd_state ^= rnd_state << 13;
	rnd_state ^= rnd_state >> 7;
	rnd_state ^= rnd_state << 17;
	return rnd_state;
}

static u64 rnd_value(void)
{
	static const u64 edge[] = { 0, 1, 2, ~0ull, 0x7f, 0x80, 0x7fff, 0x8000, 0x7fffffff, 0x80000000,
				    1ull << 63, ~(1ull << 63), 0x3ff0000000000000ull, 0x7f800000,
				    0x3f8000003f800000ull, 0x7ff0000000000000ull };

	return rnd() & 1 ? rnd() : edge[rnd() % ARRAY_SIZE(edge)];
}

static void rnd_x87(u8 *fx)
{
	u16 fcw = 0x37f, fsw = (rnd() & 7) << 11;

	memset(fx, 0, 512);
	memcpy(fx, &fcw, 2);
	memcpy(fx + 2, &fsw, 2);
	fx[4] = rnd() & 1 ? 0xff : rnd();
	for (int i = 0; i < 8; i++) {
		u64 mantissa = rnd_value() | 1ull << 63;
		u16 exp = 0x3fff - 8 + rnd() % 16 + (rnd() & 0x8000);

		memcpy(fx + 32 + 16 * i, &mantissa, 8);
		memcpy(fx + 32 + 16 * i + 8, &exp, 2);
	}
	memcpy(fx + 24, &default_mxcsr, 4);
}

static void rnd_all(struct state *s)
{
	for (int i = 0; i < 16; i++)
		s->regs[i] = rnd_value();
	s->rflags = (rnd() & X86_EFLAGS_OSZAPC) | X86_EFLAGS_FIXED | X86_EFLAGS_IF;
	rnd_x87(s->fx);
	for (int i = 0; i < 16; i++)
		for (int j = 0; j < 4; j++) {
			u64 v = rnd_value();

			memcpy(&s->ymm[i][8 * j], &v, 8);
		}
}

static void rnd_memory(void)
{
	for (unsigned i = PAGE_SIZE - 128; i < PAGE_SIZE; i += 8) {
		u64 v = rnd_value();

		memcpy(page + i, &v, 8);
	}
}

/* ---- one encoding ------------------------------------------------------------------------ */

static struct vm test_vm;
static struct vcpu *vcpu;
static unsigned nr_encodings, nr_runs, nr_skipped, nr_failed;

static void set_mode(unsigned code_size)
{
	struct vcpu_arch *a = &vcpu->arch;

	a->code_size = code_size;
	a->protected_mode = true;
	a->cr0 = X86_CR0_PE | X86_CR0_NE;
	a->cr4 = X86_CR4_OSFXSR | X86_CR4_OSXMMEXCPT | X86_CR4_OSXSAVE;
	a->xcr0 = 7;
}

static void load_vcpu(const struct state *s)
{
	struct vcpu_arch *a = &vcpu->arch;

	x87_sync(vcpu);
	memcpy(a->regs, s->regs, sizeof(a->regs));
	memcpy(a->fpu.ymm, s->ymm, sizeof(s->ymm));
	memcpy(a->fpu.fx, s->fx, sizeof(a->fpu.fx));
	a->fpu.mxcsr = default_mxcsr;
	a->rflags = s->rflags;
}

static bool failed(const char *what, const u8 *bytes, unsigned len, unsigned code_size)
{
	fprintf(stderr, "not ok: %s differs, %u-bit code, bytes", what, code_size * 8);
	for (unsigned i = 0; i < len; i++)
		fprintf(stderr, " %02x", bytes[i]);
	fprintf(stderr, "\n");
	nr_failed++;
	return false;
}

static const char *compare(const u8 *want_memory)
{
	const struct vcpu_arch *a = &vcpu->arch;
	static char text[32];

	x87_sync(vcpu);
	for (int i = 0; i < 16; i++) {
		if (a->regs[i] != low->out.regs[i]) {
			snprintf(text, sizeof(text), "register %d", i);
			return text;
		}
		if (memcmp(a->fpu.ymm[i], low->out.ymm[i], 32)) {
			snprintf(text, sizeof(text), "ymm%d", i);
			return text;
		}
		if (i < 8 && memcmp(a->fpu.fx + 32 + 16 * i, low->out.fx + 32 + 16 * i, 10))
			return "an x87 register";
	}
	if ((a->rflags ^ low->out.rflags) & X86_EFLAGS_OSZAPC) {
		snprintf(text, sizeof(text), "rflags (%x, not %x)", (u32)a->rflags, (u32)low->out.rflags);
		return text;
	}
	if (memcmp(a->fpu.fx, low->out.fx, 5))
		return "x87 control, status or tags";
	if (memcmp(&a->fpu.mxcsr, low->out.fx + 24, 4))
		return "MXCSR";
	if (memcmp(want_memory, page + PAGE_SIZE - 128, 128))
		return "memory";
	return NULL;
}

static bool is_random_source(unsigned mnemonic)
{
	return mnemonic == ZYDIS_MNEMONIC_RDRAND || mnemonic == ZYDIS_MNEMONIC_RDSEED;
}

static bool is_masked_move(unsigned mnemonic)
{
	return mnemonic == ZYDIS_MNEMONIC_VMASKMOVPS || mnemonic == ZYDIS_MNEMONIC_VMASKMOVPD ||
	       mnemonic == ZYDIS_MNEMONIC_VPMASKMOVD || mnemonic == ZYDIS_MNEMONIC_VPMASKMOVQ;
}

/* Handlers of ops/fpu.c that can be compared in the same way. */
static bool is_comparable_in_c(unsigned mnemonic)
{
	return is_masked_move(mnemonic) || mnemonic == ZYDIS_MNEMONIC_VZEROUPPER ||
	       mnemonic == ZYDIS_MNEMONIC_VZEROALL || mnemonic == ZYDIS_MNEMONIC_EMMS ||
	       mnemonic == ZYDIS_MNEMONIC_FNINIT;
}

/* The guest sees guest[], the CPU native[]; they differ where a mode needs a prefix the other does not. */
static bool run_once(const struct insn *insn, const u8 *native, unsigned native_len)
{
	u8 before[128], after[128];
	const char *diff;
	enum exec r;

	rnd_all(&low->in);
	rnd_memory();
	if (insn->mnemonic == ZYDIS_MNEMONIC_DIV || insn->mnemonic == ZYDIS_MNEMONIC_IDIV)
		low->in.regs[RDX] = rnd() & 1;
	if (insn->flags & INSN_MEM)
		low->in.regs[RSI] = low->in.regs[R14] = (u64)page + PAGE_SIZE - (is_masked_move(insn->mnemonic) ? insn->opsize : insn->memsize);
	memcpy(before, page + PAGE_SIZE - 128, 128);
	native_build(native, native_len);
	if (!native_run()) {
		nr_skipped++;
		return true;
	}
	memcpy(after, page + PAGE_SIZE - 128, 128);
	memcpy(page + PAGE_SIZE - 128, before, 128);
	load_vcpu(&low->in);
	r = insn->fn(vcpu, insn);
	nr_runs++;
	if (r != EXEC_OK)
		return failed(r == EXEC_EFAULT ? "access (operand size?)" : "outcome", native, native_len,
			      vcpu->arch.code_size);
	diff = compare(after);
	return diff ? failed(diff, native, native_len, vcpu->arch.code_size) : true;
}

static void check(const u8 *guest, const u8 *native, unsigned native_len, unsigned code_size)
{
	u8 bytes[INSN_MAX_LEN] = { 0 };
	struct insn insn;

	set_mode(code_size);
	memcpy(bytes, guest, 12);
	if (!thunk_cache_has_room(&vcpu->arch.interp->thunks, 1))
		thunk_cache_reset(&vcpu->arch.interp->thunks);
	if (!decode_insn(vcpu, bytes, sizeof(bytes), &insn) || insn.fn == op_ud || is_random_source(insn.mnemonic))
		return;
	if (!insn.thunk && (code_size != 8 || !is_comparable_in_c(insn.mnemonic)))
		return;
	nr_encodings++;
	for (int i = 0; i < 3; i++)
		if (!run_once(&insn, native, native_len ? native_len : insn.len))
			return;
	bounce = true;
	run_once(&insn, native, native_len ? native_len : insn.len);
	bounce = false;
}

/* ---- all encodings ----------------------------------------------------------------------------- */

static const u8 modrms[] = {
	0x06, 0x0e, 0x16, 0x1e, 0x26, 0x2e, 0x36, 0x3e,	/* reg, (rsi) */
	0xc1, 0xc8, 0xd3, 0xdc, 0xe0, 0xec, 0xf7, 0xfb, 0xe5, 0xc4, 0xd8, 0xfe,
};

static unsigned put_opcode(u8 *b, unsigned map, unsigned opcode, u8 modrm)
{
	unsigned n = 0;

	if (map)
		b[n++] = 0x0f;
	if (map > 1)
		b[n++] = map == 2 ? 0x38 : 0x3a;
	b[n++] = opcode;
	b[n++] = modrm;
	for (int i = 0; i < 4; i++)
		b[n++] = rnd();
	return n;
}

static void check_legacy(unsigned map, unsigned opcode, u8 modrm)
{
	static const u8 prefixes[] = { 0, 0x66, 0xf2, 0xf3, 0xf0 };
	static const u8 rexes[] = { 0, 0x40, 0x48, 0x4d, 0x44 };

	for (unsigned p = 0; p < ARRAY_SIZE(prefixes); p++) {
		for (unsigned r = 0; r < ARRAY_SIZE(rexes); r++) {
			u8 b[16] = { 0 };
			unsigned n = 0;

			if (prefixes[p])
				b[n++] = prefixes[p];
			if (rexes[r])
				b[n++] = rexes[r];
			put_opcode(b + n, map, opcode, modrm);
			check(b, b, 0, 8);
			if (!rexes[r] && (map || (opcode & 0xf0) != 0x40))
				check(b, b, 0, 4);
		}
	}
}

/* 16-bit code: what 66 selects natively is the default there, and the other way round. */
static void check_16bit(unsigned map, unsigned opcode, u8 modrm)
{
	u8 guest[16] = { 0 }, native[16] = { 0x66 };
	unsigned imm = 0;
	struct insn probe;

	if ((modrm & 0xc0) != 0xc0 || (!map && (opcode & 0xf0) == 0x40))
		return;
	put_opcode(guest, map, opcode, modrm);
	set_mode(2);
	if (!decode_insn(vcpu, guest, INSN_MAX_LEN, &probe) || !probe.thunk || probe.opsize != 2)
		return;
	if (map && (opcode == 0xc7 || opcode == 0xae))
		return;
	imm = probe.len;
	memcpy(native + 1, guest, imm);
	/* Only where 66 is an operand size and no other instruction. */
	if (map > 1 || (map && (opcode < 0x40 || (opcode > 0x4f && opcode < 0xa0) || opcode > 0xc1)) ||
	    (!map && opcode >= 0xd8 && opcode <= 0xdf))
		return;
	check(guest, native, imm + 1, 2);
}

/* Outside 64-bit mode W selects nothing where it would select a 64-bit register. */
static bool ignores_w(unsigned map, unsigned opcode)
{
	static const u8 in_0f[] = { 0x2a, 0x2c, 0x2d, 0x50, 0x6e, 0x7e, 0xc4, 0xc5, 0xd7 };
	static const u8 in_0f3a[] = { 0x14, 0x15, 0x16, 0x17, 0x20, 0x22, 0x60, 0x61, 0xf0 };

	return map == 1 ? !!memchr(in_0f, opcode, sizeof(in_0f)) :
	       map == 2 ? opcode >= 0xf0 : !!memchr(in_0f3a, opcode, sizeof(in_0f3a));
}

static void check_vex(unsigned map, unsigned opcode, u8 modrm)
{
	for (unsigned c = 0; c < 64; c++) {
		u8 b[16] = { 0xc4, 0, 0, opcode, modrm };
		u8 vvvv = c & 32 ? 15 : c & 8 ? 4 : 9;

		b[1] = (c & 16 ? 0x40 : 0xe0) | (map + 0);
		b[2] = (c & 1) << 7 | (~vvvv & 15) << 3 | (c & 2) << 1 | (c >> 2 & 3);
		if (c & 32)
			b[2] = (b[2] & ~0x78) | 0x78;
		b[5] = rnd();
		check(b, b, 0, 8);
		b[5] &= 0x7f; /* might name a register */
		if (!(c & 16) && (c & 32 || c & 8) && !((c & 1) && ignores_w(map, opcode)))
			check(b, b, 0, 4);
	}
}

/* One-byte opcodes that are prefixes or escapes: the next byte would be the opcode. */
static bool is_prefix(unsigned map, unsigned opcode)
{
	static const u8 prefixes[] = { 0x0f, 0x26, 0x2e, 0x36, 0x3e, 0x62, 0x64, 0x65, 0x66, 0x67,
				       0xc4, 0xc5, 0xf0, 0xf2, 0xf3 };

	if (map)
		return map == 1 && (opcode == 0x0f || opcode == 0x38 || opcode == 0x3a);
	return (opcode & 0xf0) == 0x40 || memchr(prefixes, opcode, sizeof(prefixes));
}

static void check_everything(void)
{
	for (unsigned map = 0; map < 4; map++) {
		for (unsigned opcode = 0; opcode < 256; opcode++) {
			for (unsigned m = 0; m < ARRAY_SIZE(modrms); m++) {
				if (map)
					check_vex(map, opcode, modrms[m]);
				if (is_prefix(map, opcode))
					continue;
				check_legacy(map, opcode, modrms[m]);
				check_16bit(map, opcode, modrms[m]);
			}
		}
	}
	for (unsigned opcode = 0xd8; opcode <= 0xdf; opcode++)
		for (unsigned modrm = 0xc0; modrm <= 0xff; modrm++)
			check_legacy(0, opcode, modrm);
}

/* ---- faults and refusals ------------------------------------------------------------------------ */

static void expect(bool ok, const char *what)
{
	if (ok)
		return;
	fprintf(stderr, "not ok: %s\n", what);
	nr_failed++;
}

static bool decode(const char *bytes, unsigned len, struct insn *insn)
{
	u8 b[INSN_MAX_LEN] = { 0 };

	set_mode(8);
	memcpy(b, bytes, len);
	return decode_insn(vcpu, b, sizeof(b), insn);
}

static void expect_fault(const char *bytes, unsigned len, int vector, const char *what)
{
	struct insn insn;
	u64 regs[16];
	enum exec r;

	expect(decode(bytes, len, &insn) && insn.thunk, what);
	if (!insn.thunk)
		return;
	memcpy(regs, vcpu->arch.regs, sizeof(regs));
	last_vector = -1;
	r = insn.fn(vcpu, &insn);
	expect(vector < 0 ? r == EXEC_EFAULT : r == EXEC_FAULT && last_vector == vector, what);
	expect(!memcmp(regs, vcpu->arch.regs, sizeof(regs)), what);
}

static void check_faults(void)
{
	u32 mxcsr;

	rnd_all(&low->in);
	load_vcpu(&low->in);
	vcpu->arch.regs[RCX] = 0;
	expect_fault("\x48\xf7\xf1", 3, DE_VECTOR, "div by zero raises #DE");
	vcpu->arch.regs[RSI] = (u64)page + 8;
	expect_fault("\x0f\x28\x06", 3, GP_VECTOR, "misaligned movaps raises #GP");
	vcpu->arch.regs[RSI] = (u64)page + PAGE_SIZE;
	expect_fault("\x0f\x10\x06", 3, -1, "inaccessible client memory is EFAULT");
	expect_fault("\xf0\x48\x0f\xb1\x0e", 5, -1, "the same under LOCK");
	memset(vcpu->arch.fpu.ymm, 0, sizeof(vcpu->arch.fpu.ymm));
	vcpu->arch.fpu.ymm[0][3] = 0x3f; /* tiny over zero */
	vcpu->arch.fpu.mxcsr = 0x1d80; /* divide by zero unmasked */
	expect_fault("\x0f\x5e\xc1", 3, XM_VECTOR, "unmasked divps by zero raises #XM");
	x87_sync(vcpu);
	expect(vcpu->arch.fpu.mxcsr & 4, "and sets MXCSR.ZE");
	asm volatile("stmxcsr %0" : "=m"(mxcsr));
	expect((mxcsr & 0xffc0) == default_mxcsr, "host MXCSR is back after a fault");
	load_vcpu(&low->in);
	memset(vcpu->arch.fpu.fx, 0, 512);
	vcpu->arch.fpu.fx[0] = 0x7e; /* invalid operation unmasked, and pending */
	vcpu->arch.fpu.fx[1] = 3;
	vcpu->arch.fpu.fx[2] = 0x81;
	vcpu->arch.fpu.fx[3] = 0x80;
	expect_fault("\xd9\xfa", 2, MF_VECTOR, "a pending x87 error raises #MF");
	x87_sync(vcpu);
	expect(vcpu->arch.fpu.fx[2] == 0x81, "and stays pending");
}

static void check_refusals(void)
{
	static const struct {
		const char *bytes;
		u8 len;
		const char *what;
	} refused[] = {
		{ "\x0f\xa3\x06", 3, "bt m,r" },
		{ "\x0f\xab\x06", 3, "bts m,r" },
		{ "\x0f\x01\xfc", 3, "clzero" },
		{ "\x0f\x01\xc8", 3, "monitor" },
		{ "\x66\x0f\xf7\xc1", 4, "maskmovdqu" },
		{ "\x0f\xc7\xf8", 3, "rdseed is not rdpid" },
		{ "\xf3\x0f\xc7\xf8", 4, "rdpid" },
		{ "\x0f\x01\xee", 3, "rdpkru" },
		{ "\x0f\x01\xf9", 3, "rdtscp" },
		{ "\x0f\x31", 2, "rdtsc" },
		{ "\x0f\xa2", 2, "cpuid" },
		{ "\x0f\x05", 2, "syscall" },
		{ "\xf4", 1, "hlt" },
		{ "\x9d", 1, "popf" },
		{ "\x54", 1, "push rsp" },
		{ "\xa4", 1, "movsb" },
		{ "\x62\xf1\x7c\x48\x58\xc1", 6, "evex addps" },
		{ "\xf3\x0f\xae\xd0", 4, "wrfsbase" },
		{ "\xc4\xe2\x71\x90\x04\x06", 6, "vpgatherdd" },
		{ "\x66\x0f\x38\xf8\x06", 5, "movdir64b" },
		{ "\x0f\xae\x06", 3, "fxsave" },
		{ "\xc8\x08\x00\x00", 4, "enter" },
		{ "\xd7", 1, "xlat" },
	};

	for (unsigned i = 0; i < ARRAY_SIZE(refused); i++) {
		struct insn insn;

		if (i == 5)
			continue;
		decode(refused[i].bytes, refused[i].len, &insn);
		expect(!insn.thunk, refused[i].what);
	}
}

/* A store that needs userspace must leave the registers as they were. */
static void check_undo(void)
{
	static const struct {
		const char *bytes;
		u8 len;
	} stores[] = {
		{ "\x48\x0f\xc1\x0e", 4 }, { "\x48\x87\x0e", 3 }, { "\x48\x11\x0e", 3 }, { "\xdd\x1e", 2 },
		{ "\xf0\x48\x0f\xb1\x0e", 5 },
	};

	bounce = store_exits = true;
	for (unsigned i = 0; i < ARRAY_SIZE(stores); i++) {
		struct insn insn;

		rnd_all(&low->in);
		low->in.regs[RSI] = (u64)page + 64;
		low->in.fx[4] = 0xff;
		load_vcpu(&low->in);
		vcpu->arch.fpu.fip = 1234;
		decode(stores[i].bytes, stores[i].len, &insn);
		expect(insn.fn(vcpu, &insn) == EXEC_EXIT, "store exits");
		x87_sync(vcpu);
		expect(!memcmp(low->in.regs, vcpu->arch.regs, sizeof(low->in.regs)), "registers kept");
		expect(low->in.rflags == vcpu->arch.rflags, "flags kept");
		expect(!memcmp(low->in.fx, vcpu->arch.fpu.fx, 5), "x87 kept");
		expect(vcpu->arch.fpu.fip == 1234, "fip kept");
	}
	bounce = store_exits = false;
}

static void setup(void)
{
	static const int signals[] = { SIGFPE, SIGSEGV, SIGBUS, SIGILL };
	struct sigaction sa = { .sa_sigaction = on_fault, .sa_flags = SA_SIGINFO | SA_ONSTACK | SA_NODEFER };
	stack_t ss = { .ss_sp = malloc(65536), .ss_size = 65536 };
	static struct host_guest_ctx ctx;

	low = mmap(NULL, sizeof(*low), PROT_READ | PROT_WRITE | PROT_EXEC,
		   MAP_PRIVATE | MAP_ANONYMOUS | MAP_32BIT, -1, 0);
	page = mmap(NULL, 2 * PAGE_SIZE, PROT_READ | PROT_WRITE, MAP_PRIVATE | MAP_ANONYMOUS | MAP_32BIT, -1, 0);
	if (low == MAP_FAILED || page == MAP_FAILED || mprotect(page + PAGE_SIZE, PAGE_SIZE, PROT_NONE))
		exit(1);
	sigaltstack(&ss, NULL);
	for (unsigned i = 0; i < ARRAY_SIZE(signals); i++)
		sigaction(signals[i], &sa, NULL);
	host_guest_current = &ctx;
	vcpu = aligned_alloc(64, (sizeof(*vcpu) + 63) & ~63ul);
	memset(vcpu, 0, sizeof(*vcpu));
	vcpu->vm = &test_vm;
	vcpu->arch.mmu = calloc(1, sizeof(struct mmu));
	vcpu->arch.tlb = &vcpu->arch.mmu->tlbs[0];
	for (unsigned i = 0; i < TLB_ENTRIES; i++)
		vcpu->arch.tlb->read[i] = vcpu->arch.tlb->write[i] = TLB_INVALID;
	vcpu->arch.interp = calloc(1, sizeof(struct interp));
	if (thunk_cache_init(&vcpu->arch.interp->thunks))
		exit(1);
}

int main(void)
{
	setup();
	check_everything();
	check_faults();
	check_refusals();
	check_undo();
	printf("%u encodings, %u runs, %u skipped because the host faults, %u differences\n",
		nr_encodings, nr_runs, nr_skipped, nr_failed);
	return nr_failed ? 1 : 0;
}

/* SPDX-License-Identifier: MIT */
/*
 * The interpreter's loop and block cache by themselves: guest addresses are
 * offsets into one buffer, paging is a table of booleans.
 *	interp_test [bench]	measure instead of testing
 */
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/mman.h>
#include <time.h>

#include "x86/debug.h"
#include "x86/interp/interp.h"

#define RAM_PAGES 64ul

static u8 *ram;
static bool absent[RAM_PAGES];
static struct vm test_vm;
static struct vcpu *vcpu;
static int last_vector = -1;
static u64 last_cr2;
static unsigned nr_failed, nr_checks;

/* ---- stubs ------------------------------------------------------------------- */

_Thread_local struct host_guest_ctx *host_guest_current;
_Thread_local volatile bool host_kicked;

bool host_register_code_fault(const void *start, const void *end, host_code_fault_fn fn)
{
	return true;
}

void vm_bug(struct vm *vm, const char *what, const char *file, int line)
{
	fprintf(stderr, "%s:%d: %s\n", file, line, what);
	abort();
}

bool guest_cpuid_has(struct vcpu *v, u32 function, u32 index, enum cpuid_reg reg, unsigned bit)
{
	return true;
}

enum exec queue_exception(struct vcpu *v, u8 vector)
{
	last_vector = vector;
	return EXEC_FAULT;
}

enum exec queue_exception_e(struct vcpu *v, u8 vector, u32 error_code)
{
	return queue_exception(v, vector);
}

enum exec queue_db(struct vcpu *v, u64 dr6)
{
	return queue_exception(v, DB_VECTOR);
}

static enum exec page_fault(u64 va)
{
	last_cr2 = va;
	return queue_exception(vcpu, PF_VECTOR);
}

static bool bp_hit;

bool debug_check_code_bp(struct vcpu *v, u64 *dr6)
{
	return bp_hit;
}

enum exec seg_linear_slow(struct vcpu *v, enum seg seg, u64 off, unsigned size, bool write, gva_t *va)
{
	*va = (u32)(v->arch.seg[seg].base + off);
	return EXEC_OK;
}

static u8 *ram_at(u64 va)
{
	return va < RAM_PAGES * PAGE_SIZE && !absent[va / PAGE_SIZE] ? ram + va : NULL;
}

static void store_noticed(u64 va)
{
	if ((va & PAGE_MASK) == vcpu->arch.code_page)
		vcpu->arch.block_abort = true;
}

void *mem_host_slow(struct vcpu *v, gva_t va, unsigned len, bool write, enum exec *r)
{
	*r = ram_at(va) ? EXEC_OK : page_fault(va);
	return NULL;
}

void *mem_host_atomic(struct vcpu *v, gva_t va, unsigned len, enum exec *r)
{
	*r = ram_at(va) ? EXEC_OK : page_fault(va);
	store_noticed(va);
	return ram_at(va);
}

enum exec mem_read(struct vcpu *v, gva_t va, void *buf, unsigned len, unsigned access)
{
	if (!ram_at(va))
		return page_fault(va);
	memcpy(buf, ram + va, len);
	return EXEC_OK;
}

enum exec mem_write(struct vcpu *v, gva_t va, const void *buf, unsigned len, unsigned access)
{
	if (!ram_at(va))
		return page_fault(va);
	store_noticed(va);
	memcpy(ram + va, buf, len);
	return EXEC_OK;
}

enum exec mem_probe_write(struct vcpu *v, gva_t va, unsigned len, unsigned access)
{
	return ram_at(va) ? EXEC_OK : page_fault(va);
}

enum exec mem_load_slow(struct vcpu *v, gva_t va, unsigned size, u64 *val)
{
	*val = 0;
	return mem_read(v, va, val, size, 0);
}

enum exec mem_store_slow(struct vcpu *v, gva_t va, unsigned size, u64 val)
{
	return mem_write(v, va, &val, size, 0);
}

enum exec mmu_fetch_page(struct vcpu *v, gva_t va, gpa_t *page_gpa, u8 **host)
{
	if (!ram_at(va))
		return page_fault(va);
	*page_gpa = va & PAGE_MASK;
	*host = ram + (va & PAGE_MASK);
	return EXEC_OK;
}

void mmu_mark_code_page(struct vcpu *v, gpa_t page, enum code_user user)
{
}

void mmu_clear_code_pages(struct vcpu *v)
{
}

static enum exec op_hlt(struct vcpu *v, const struct insn *insn)
{
	return EXEC_END;
}

insn_fn ops_system_select(const struct decode_ctx *ctx, struct insn *insn)
{
	return ctx->zi->mnemonic == ZYDIS_MNEMONIC_HLT ? op_hlt : NULL;
}

/* ---- helpers --------------------------------------------------------------------- */

static void expect(bool ok, const char *what)
{
	nr_checks++;
	if (ok)
		return;
	fprintf(stderr, "not ok: %s\n", what);
	nr_failed++;
}

static void reset(unsigned code_size)
{
	struct vcpu_arch *a = &vcpu->arch;

	memset(a->regs, 0, sizeof(a->regs));
	memset(absent, 0, sizeof(absent));
	a->rflags = X86_EFLAGS_FIXED;
	a->code_size = a->stack_size = code_size;
	a->protected_mode = true;
	a->long_mode = code_size == 8;
	a->mode_key = code_size;
	a->cr0 = X86_CR0_PE | X86_CR0_NE;
	a->cr4 = X86_CR4_OSFXSR;
	a->regs[RSP] = 0x8000;
	a->seg[SEG_CS].limit = 0xffffffff;
	a->interrupt_shadow = 0;
	a->db_trap = false;
	a->db_dr6 = a->eff_dr7 = 0;
	a->mmu->tlbs[0].fetch_generation++;
	last_vector = -1;
}

static void code(u64 at, const char *bytes, unsigned len)
{
	memcpy(ram + at, bytes, len);
	vcpu->arch.rip = at;
}

/* ---- tests ---------------------------------------------------------------------------- */

static void test_loop(void)
{
	u64 before = vcpu->stat.guest_instructions;

	reset(8);
	/* mov $1000,%ecx; 1: inc %eax; dec %ecx; jnz 1b; hlt */
	code(0x1000, "\xb9\xe8\x03\x00\x00\xff\xc0\xff\xc9\x75\xfa\xf4", 12);
	expect(interp_run(vcpu, false) == EXEC_END, "loop ends at HLT");
	expect(vcpu->arch.regs[RAX] == 1000 && vcpu->arch.rip == 0x100c, "loop counted");
	expect(vcpu->stat.guest_instructions - before == 3002, "instructions counted");
}

static void test_foreign_store(void)
{
	reset(8);
	code(0x1000, "\xb8\x01\x00\x00\x00\xf4", 6);
	interp_run(vcpu, false);
	expect(vcpu->arch.regs[RAX] == 1, "first version");
	ram[0x1001] = 2; /* nobody says so */
	vcpu->arch.rip = 0x1000;
	interp_run(vcpu, false);
	expect(vcpu->arch.regs[RAX] == 2, "changed bytes are decoded again");
}

static void test_self_modifying(void)
{
	reset(8);
	/* movb $7, 2(%rip) -> the immediate of the next instruction; mov $1,%eax; hlt */
	code(0x2000, "\xc6\x05\x01\x00\x00\x00\x07\xb8\x01\x00\x00\x00\xf4", 13);
	interp_run(vcpu, false);
	expect(vcpu->arch.regs[RAX] == 7, "a store to the next instruction is seen by it");
}

static void test_crossing(void)
{
	reset(8);
	code(0x2ffe, "\xb8\x44\x33\x22\x11\xf4", 6);
	interp_run(vcpu, false);
	expect(vcpu->arch.regs[RAX] == 0x11223344, "instruction across two pages");
	ram[0x3001] = 0x55;
	vcpu->arch.rip = 0x2ffe;
	interp_run(vcpu, false);
	expect(vcpu->arch.regs[RAX] == 0x11553344, "its second page changed");
	absent[3] = true;
	vcpu->arch.mmu->tlbs[0].fetch_generation++;
	vcpu->arch.rip = 0x2ffe;
	expect(interp_run(vcpu, false) == EXEC_FAULT && last_vector == PF_VECTOR, "second page absent");
	expect(last_cr2 == 0x3000 && vcpu->arch.rip == 0x2ffe, "CR2 is the second page");
	code(0x3fff - 0x1000, "\x90", 1);
	expect(interp_run(vcpu, false) == EXEC_FAULT && vcpu->arch.rip == 0x3000, "falls off the end of a page");
}

static void test_invalid(void)
{
	reset(8);
	code(0x1000, "\x90\x06\x90", 3);
	expect(interp_run(vcpu, false) == EXEC_FAULT && last_vector == UD_VECTOR, "#UD");
	expect(vcpu->arch.rip == 0x1001, "rip at the invalid instruction");
	code(0x1100, "\x66\x66\x66\x66\x66\x66\x66\x66\x66\x66\x66\x66\x66\x66\x66\x90", 16);
	expect(interp_run(vcpu, false) == EXEC_FAULT && last_vector == GP_VECTOR, "more than 15 bytes is #GP");
	code(0x1200, "\xf0\x90", 2);
	expect(interp_run(vcpu, false) == EXEC_FAULT && last_vector == UD_VECTOR, "LOCK NOP is #UD");
	code(0x1300, "\x0f\x0b", 2);
	expect(interp_run(vcpu, false) == EXEC_FAULT && last_vector == UD_VECTOR, "UD2");
	vcpu->arch.rip = 1ull << 63;
	expect(interp_run(vcpu, false) == EXEC_FAULT && last_vector == GP_VECTOR, "non-canonical rip is #GP");
}

static void test_gates(void)
{
	reset(8);
	code(0x1000, "\x0f\x58\xc1\xf4", 4); /* addps */
	vcpu->arch.cr4 = 0;
	vcpu->arch.mode_key = 100;
	expect(interp_run(vcpu, false) == EXEC_FAULT && last_vector == UD_VECTOR, "SSE without OSFXSR");
	vcpu->arch.cr4 = X86_CR4_OSFXSR;
	vcpu->arch.cr0 |= X86_CR0_TS;
	vcpu->arch.mode_key = 101;
	expect(interp_run(vcpu, false) == EXEC_FAULT && last_vector == NM_VECTOR, "SSE with TS");
	code(0x1000, "\xd9\xe8\xf4", 3); /* fld1 */
	vcpu->arch.rip = 0x1000;
	expect(interp_run(vcpu, false) == EXEC_FAULT && last_vector == NM_VECTOR, "x87 with TS");
	vcpu->arch.cr0 &= ~X86_CR0_TS;
	vcpu->arch.mode_key = 102;
	code(0x1000, "\xc5\xf8\x58\xc1\xf4", 5); /* vaddps */
	expect(interp_run(vcpu, false) == EXEC_FAULT && last_vector == UD_VECTOR, "AVX without OSXSAVE");
	code(0x1000, "\xf3\x0f\x1e\xfa\xf3\x48\x0f\x1e\xc8\xf4", 10);
	vcpu->arch.regs[RAX] = 5;
	expect(interp_run(vcpu, false) == EXEC_END && vcpu->arch.regs[RAX] == 5, "ENDBR and RDSSP are NOPs");
}

static void test_limit(void)
{
	reset(4);
	code(0x1000, "\xb8\x01\x00\x00\x00\xf4", 6);
	vcpu->arch.seg[SEG_CS].limit = 0x1004;
	expect(interp_run(vcpu, false) == EXEC_END && vcpu->arch.rip == 0x1005, "up to the limit");
	expect(interp_run(vcpu, false) == EXEC_FAULT && last_vector == GP_VECTOR, "beyond CS.limit is #GP");
	vcpu->arch.seg[SEG_CS].limit = 0x1003;
	vcpu->arch.rip = 0x1000;
	expect(interp_run(vcpu, false) == EXEC_FAULT && vcpu->arch.rip == 0x1000, "limit inside an instruction");
}

static void test_steps(void)
{
	reset(8);
	code(0x1000, "\x90\x90\xf4", 3);
	expect(interp_run(vcpu, true) == EXEC_END && vcpu->arch.rip == 0x1001, "single: exactly one");
	vcpu->arch.rflags |= X86_EFLAGS_TF | X86_EFLAGS_RF;
	interp_run(vcpu, false);
	expect(vcpu->arch.db_trap && vcpu->arch.db_dr6 == DR6_BS && vcpu->arch.rip == 0x1002, "TF traps after one");
	expect(!(vcpu->arch.rflags & X86_EFLAGS_RF), "RF is cleared");
	reset(8);
	code(0x1000, "\x90\xf4", 2);
	vcpu->arch.interrupt_shadow = KVM_X86_SHADOW_INT_STI;
	interp_run(vcpu, false);
	expect(!vcpu->arch.interrupt_shadow && vcpu->arch.rip == 0x1001, "shadow lasts one instruction");
	vcpu->arch.rip = 0x1000;
	vcpu->arch.eff_dr7 = 1;
	bp_hit = true;
	expect(interp_run(vcpu, true) == EXEC_FAULT && last_vector == DB_VECTOR, "code breakpoint");
	bp_hit = false;
	vcpu_make_request(vcpu, KVM_REQ_EVENT);
	vcpu->arch.eff_dr7 = 0;
	expect(interp_run(vcpu, false) == EXEC_RETRY && vcpu->arch.rip == 0x1000, "requests are polled");
	atomic_store(&vcpu->requests, 0);
}

/* More code than the arenas hold: everything is dropped, and execution goes on. */
static void test_arena(void)
{
	u64 decoded = vcpu->stat.blocks_decoded;

	reset(8);
	for (unsigned i = 0; i < 150000; i++) {
		char insn[] = "\x0f\xc8\x0f\xa2\xf4";

		memcpy(ram + 0x4000, "\x48\x81\xc0", 3);
		memcpy(ram + 0x4003, &i, 4);
		memcpy(ram + 0x4007, insn, 5);
		ram[0x4008 + 1] = 0xf4;
		vcpu->arch.rip = 0x4000;
		interp_run(vcpu, false);
		if (i % 64 == 0) /* distinct thunks: imul $i */
			memcpy(ram + 0x5000, "\x48\x69\xc0", 3), memcpy(ram + 0x5003, &i, 4),
				ram[0x5007] = 0xf4, vcpu->arch.rip = 0x5000, interp_run(vcpu, false);
	}
	expect(vcpu->stat.blocks_decoded - decoded >= 150000, "each version decoded");
	expect(vcpu->arch.interp->blocks.used < (vcpu->stat.blocks_decoded - decoded) * sizeof(struct insn) * 2, "the arena was dropped on the way");
	expect(vcpu->arch.regs[RAX] != 0, "and code kept running");
}

/* ---- speed -------------------------------------------------------------------------------- */

static u64 cpu_ns(void)
{
	struct timespec ts;

	clock_gettime(CLOCK_THREAD_CPUTIME_ID, &ts);
	return ts.tv_sec * 1000000000ull + ts.tv_nsec;
}

static void bench(const char *name, const char *bytes, unsigned len)
{
	u64 start, n;
	double s;

	reset(8);
	for (unsigned i = 0; i < TLB_ENTRIES; i++) {
		vcpu->arch.tlb->read[i] = vcpu->arch.tlb->write[i] = i < RAM_PAGES ? -(i * PAGE_SIZE) : TLB_INVALID;
		vcpu->arch.tlb->delta[i] = (s64)(u64)ram;
	}
	vcpu->arch.cr4 |= X86_CR4_OSXSAVE;
	vcpu->arch.xcr0 = 7;
	vcpu->arch.fpu.mxcsr = 0x1f80;
	vcpu->arch.regs[RSI] = 0x9000;
	vcpu->arch.regs[RCX] = 20000000;
	code(0x1000, bytes, len);
	n = vcpu->stat.guest_instructions;
	start = cpu_ns();
	interp_run(vcpu, false);
	x87_sync(vcpu);
	s = (cpu_ns() - start) / 1e9;
	n = vcpu->stat.guest_instructions - n;
	printf("%-20s %7.1f M instructions, %6.1f M a second\n", name, n / 1e6, n / s / 1e6);
	for (unsigned i = 0; i < TLB_ENTRIES; i++)
		vcpu->arch.tlb->read[i] = vcpu->arch.tlb->write[i] = TLB_INVALID;
}

static void bench_all(void)
{
	bench("inc dec jnz", "\xff\xc0\xff\xc9\x75\xfa\xf4", 7);
	bench("8 alu, loop", "\x01\xd0\x31\xd8\x48\x89\xc7\x4c\x01\xc2\x83\xe2\x7f\x39\xc2\x48\x8d\x04\x38"
	      "\xff\xc9\x75\xe9\xf4", 24);
	bench("loads, stores", "\x48\x8b\x06\x48\x01\x46\x08\x48\x89\x46\x10\x8b\x5e\x18\xff\xc9\x75\xee\xf4", 19);
	bench("call, ret", "\xe8\x05\x00\x00\x00\xff\xc9\x75\xf7\xf4\xc3", 11);
	bench("imul (thunk)", "\x48\x0f\xaf\xc2\xff\xc9\x75\xf8\xf4", 9);
	bench("addps (thunk)", "\x0f\x58\xc1\xff\xc9\x75\xf9\xf4", 8);
	bench("movups load (thunk)", "\x0f\x10\x06\xff\xc9\x75\xf9\xf4", 8);
	bench("fld1 fstp (thunk)", "\xd9\xe8\xdd\xd8\xff\xc9\x75\xf8\xf4", 9);
}

static void setup(void)
{
	static struct host_guest_ctx ctx;

	ram = mmap(NULL, RAM_PAGES * PAGE_SIZE, PROT_READ | PROT_WRITE, MAP_PRIVATE | MAP_ANONYMOUS, -1, 0);
	vcpu = aligned_alloc(64, (sizeof(*vcpu) + 63) & ~63ul);
	if (ram == MAP_FAILED || !vcpu)
		exit(1);
	memset(vcpu, 0, sizeof(*vcpu));
	host_guest_current = &ctx;
	vcpu->vm = &test_vm;
	vcpu->arch.mmu = calloc(1, sizeof(struct mmu));
	for (unsigned t = 0; t < NR_TLBS; t++)
		for (unsigned i = 0; i < TLB_ENTRIES; i++)
			vcpu->arch.mmu->tlbs[t].read[i] = vcpu->arch.mmu->tlbs[t].write[i] = TLB_INVALID;
	mmu_select_tlb(vcpu);
}

int main(int argc, char **argv)
{
	setup();
	if (argc > 1) {
		bench_all();
		return 0;
	}
	test_loop();
	test_foreign_store();
	test_self_modifying();
	test_crossing();
	test_invalid();
	test_gates();
	test_limit();
	test_steps();
	test_arena();
	interp_destroy(vcpu);
	printf("%u passed, %u failed\n", nr_checks - nr_failed, nr_failed);
	return nr_failed ? 1 : 0;
}

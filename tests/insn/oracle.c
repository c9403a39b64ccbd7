/* SPDX-License-Identifier: MIT */
/*
 * Every unprivileged instruction form that guests are offered, against the host CPU.
 *
 *	oracle				the quick choice, as in `make check`
 *	oracle --long			all forms, at least ten million cases
 *	oracle --only MNEMONIC		the long run of one of them
 *	oracle --segments		only what oracle_seg.c makes
 *	oracle --seed N			other random numbers
 *	SOFTKVM_ENGINE=dbt oracle ...	the translator instead, which does 64-bit and flat 32-bit code
 *
 * What is not compared, and why: deny() and differs_by_design(). SGDT, SIDT, SLDT, STR and SMSW are unprivileged
 * without UMIP, but a host that has it lets no process execute them: the priv_* tests of tests/api have these.
 */
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

#include "host/host.h"
#include "oracle.h"

#define LONG_CASES 10000000u
#define MAX_REPORTS 400
#define SEGMENT_CASES 400000u	/* in each mode */

static struct {
	u64 cases[ORACLE_MODES][ZYDIS_MNEMONIC_MAX_VALUE + 1];
	u64 hidden[ZYDIS_MNEMONIC_MAX_VALUE + 1];
	u32 different[ZYDIS_MNEMONIC_MAX_VALUE + 1];
	u64 total, failed, faults, encodings;
} count;
static unsigned trials;
static const char *only;
static bool verbose, segments_only;

/* ---- what is not run -------------------------------------------------------------------- */

/* A system call, another CPU's or another moment's answer, or the end of this process as it was. */
static bool deny_mnemonic(ZydisMnemonic m)
{
	switch (m) {
	case ZYDIS_MNEMONIC_SYSCALL: case ZYDIS_MNEMONIC_SYSENTER: case ZYDIS_MNEMONIC_INT:
	case ZYDIS_MNEMONIC_INT1: case ZYDIS_MNEMONIC_IRET: case ZYDIS_MNEMONIC_IRETD:
	case ZYDIS_MNEMONIC_IRETQ: case ZYDIS_MNEMONIC_RDTSC: case ZYDIS_MNEMONIC_RDTSCP:
	case ZYDIS_MNEMONIC_RDPMC: case ZYDIS_MNEMONIC_RDPRU: case ZYDIS_MNEMONIC_CPUID:
	case ZYDIS_MNEMONIC_RDRAND: case ZYDIS_MNEMONIC_RDSEED: case ZYDIS_MNEMONIC_RDPID:
	case ZYDIS_MNEMONIC_XGETBV:
	/* Emulated by the kernel under UMIP. */
	case ZYDIS_MNEMONIC_SGDT: case ZYDIS_MNEMONIC_SIDT: case ZYDIS_MNEMONIC_SLDT:
	case ZYDIS_MNEMONIC_STR: case ZYDIS_MNEMONIC_SMSW:
	/* With what is in descriptor tables: oracle_seg.c. */
	case ZYDIS_MNEMONIC_LDS: case ZYDIS_MNEMONIC_LES: case ZYDIS_MNEMONIC_LFS:
	case ZYDIS_MNEMONIC_LGS: case ZYDIS_MNEMONIC_LSS: case ZYDIS_MNEMONIC_LAR:
	case ZYDIS_MNEMONIC_LSL: case ZYDIS_MNEMONIC_VERR: case ZYDIS_MNEMONIC_VERW:
	/* Hypercalls reach the hypervisor below us. */
	case ZYDIS_MNEMONIC_VMCALL: case ZYDIS_MNEMONIC_VMMCALL: case ZYDIS_MNEMONIC_VMFUNC:
	case ZYDIS_MNEMONIC_VMLAUNCH: case ZYDIS_MNEMONIC_VMRESUME: case ZYDIS_MNEMONIC_VMXOFF:
	case ZYDIS_MNEMONIC_VMRUN: case ZYDIS_MNEMONIC_VMLOAD: case ZYDIS_MNEMONIC_VMSAVE:
	case ZYDIS_MNEMONIC_STGI: case ZYDIS_MNEMONIC_CLGI: case ZYDIS_MNEMONIC_SKINIT:
	case ZYDIS_MNEMONIC_INVLPGA: case ZYDIS_MNEMONIC_VMREAD: case ZYDIS_MNEMONIC_VMWRITE:
	case ZYDIS_MNEMONIC_VMPTRLD: case ZYDIS_MNEMONIC_VMPTRST: case ZYDIS_MNEMONIC_VMCLEAR:
	case ZYDIS_MNEMONIC_VMXON: case ZYDIS_MNEMONIC_INVEPT: case ZYDIS_MNEMONIC_INVVPID:
	case ZYDIS_MNEMONIC_MONITOR: case ZYDIS_MNEMONIC_MWAIT: case ZYDIS_MNEMONIC_MONITORX:
	case ZYDIS_MNEMONIC_MWAITX: case ZYDIS_MNEMONIC_TDCALL: case ZYDIS_MNEMONIC_SEAMCALL:
	case ZYDIS_MNEMONIC_SEAMOPS: case ZYDIS_MNEMONIC_SEAMRET:
		return true;
	default:
		return false;
	}
}

static bool is_segment(const ZydisDecodedOperand *op)
{
	return op->type == ZYDIS_OPERAND_TYPE_REGISTER && ZydisRegisterGetClass(op->reg.value) == ZYDIS_REGCLASS_SEGMENT;
}

static bool deny(const struct oracle_case *c)
{
	const ZydisDecodedInstruction *zi = &c->zi;

	if (deny_mnemonic(zi->mnemonic) || zi->meta.branch_type == ZYDIS_BRANCH_TYPE_FAR)
		return true;
	if (zi->encoding != ZYDIS_INSTRUCTION_ENCODING_LEGACY && zi->encoding != ZYDIS_INSTRUCTION_ENCODING_VEX)
		return true;
	for (unsigned i = 0; i < zi->operand_count; i++) {
		const ZydisDecodedOperand *op = &c->ops[i];

		if (op->type == ZYDIS_OPERAND_TYPE_POINTER)
			return true;
		if (is_segment(op) && (op->actions & ZYDIS_OPERAND_ACTION_MASK_WRITE))
			return true;
	}
	return false;
}

/* ---- what guests are not offered ------------------------------------------------------------ */

struct feature {
	ZydisISAExt ext;
	u32 function;
	enum cpuid_reg reg;
	u8 bit;
};

#define NEVER 0xffffffffu

static const struct feature features[] = {
	{ ZYDIS_ISA_EXT_ADOX_ADCX, 7, CPUID_EBX, 19 },
	{ ZYDIS_ISA_EXT_AES, 1, CPUID_ECX, 25 },
	{ ZYDIS_ISA_EXT_AVX, 1, CPUID_ECX, 28 },
	{ ZYDIS_ISA_EXT_AVX2, 7, CPUID_EBX, 5 },
	{ ZYDIS_ISA_EXT_AVX2GATHER, 7, CPUID_EBX, 5 },
	{ ZYDIS_ISA_EXT_AVXAES, 1, CPUID_ECX, 25 },
	{ ZYDIS_ISA_EXT_BMI1, 7, CPUID_EBX, 3 },
	{ ZYDIS_ISA_EXT_BMI2, 7, CPUID_EBX, 8 },
	{ ZYDIS_ISA_EXT_CLFLUSHOPT, 7, CPUID_EBX, 23 },
	{ ZYDIS_ISA_EXT_CLWB, 7, CPUID_EBX, 24 },
	{ ZYDIS_ISA_EXT_CLZERO, 0x80000008, CPUID_EBX, 0 },
	{ ZYDIS_ISA_EXT_F16C, 1, CPUID_ECX, 29 },
	{ ZYDIS_ISA_EXT_FMA, 1, CPUID_ECX, 12 },
	{ ZYDIS_ISA_EXT_GFNI, 7, CPUID_ECX, 8 },
	{ ZYDIS_ISA_EXT_LZCNT, 0x80000001, CPUID_ECX, 5 },
	{ ZYDIS_ISA_EXT_MOVBE, 1, CPUID_ECX, 22 },
	{ ZYDIS_ISA_EXT_PCLMULQDQ, 1, CPUID_ECX, 1 },
	{ ZYDIS_ISA_EXT_RDWRFSGS, 7, CPUID_EBX, 0 },
	{ ZYDIS_ISA_EXT_SHA, 7, CPUID_EBX, 29 },
	{ ZYDIS_ISA_EXT_SSE3, 1, CPUID_ECX, 0 },
	{ ZYDIS_ISA_EXT_SSE4, 1, CPUID_ECX, 19 },
	{ ZYDIS_ISA_EXT_SSE4A, 0x80000001, CPUID_ECX, 6 },
	{ ZYDIS_ISA_EXT_SSSE3, 1, CPUID_ECX, 9 },
	{ ZYDIS_ISA_EXT_VAES, 7, CPUID_ECX, 9 },
	{ ZYDIS_ISA_EXT_VPCLMULQDQ, 7, CPUID_ECX, 10 },
	{ ZYDIS_ISA_EXT_XSAVE, 1, CPUID_ECX, 26 },
	{ ZYDIS_ISA_EXT_XSAVEC, 0xd, CPUID_EAX, 1 },
	{ ZYDIS_ISA_EXT_XSAVEOPT, 0xd, CPUID_EAX, 0 },
	{ ZYDIS_ISA_EXT_XSAVES, 0xd, CPUID_EAX, 3 },
	{ ZYDIS_ISA_EXT_AVX512VEX, NEVER, 0, 0 },
	{ ZYDIS_ISA_EXT_AVX_VNNI, NEVER, 0, 0 },
	{ ZYDIS_ISA_EXT_INVPCID, NEVER, 0, 0 },
	{ ZYDIS_ISA_EXT_AMD_INVLPGB, NEVER, 0, 0 },
	{ ZYDIS_ISA_EXT_MOVDIR, NEVER, 0, 0 },
	{ ZYDIS_ISA_EXT_ENQCMD, NEVER, 0, 0 },
	{ ZYDIS_ISA_EXT_SERIALIZE, NEVER, 0, 0 },
	{ ZYDIS_ISA_EXT_WAITPKG, NEVER, 0, 0 },
	{ ZYDIS_ISA_EXT_PKU, NEVER, 0, 0 },
	{ ZYDIS_ISA_EXT_RTM, NEVER, 0, 0 },
	{ ZYDIS_ISA_EXT_CET, NEVER, 0, 0 },
	{ ZYDIS_ISA_EXT_SMAP, NEVER, 0, 0 },
	{ ZYDIS_ISA_EXT_SNP, NEVER, 0, 0 },
	{ ZYDIS_ISA_EXT_PT, NEVER, 0, 0 },
	{ ZYDIS_ISA_EXT_TSX_LDTRK, NEVER, 0, 0 },
	{ ZYDIS_ISA_EXT_UINTR, NEVER, 0, 0 },
	{ ZYDIS_ISA_EXT_AMX_TILE, NEVER, 0, 0 },
	{ ZYDIS_ISA_EXT_AMX_INT8, NEVER, 0, 0 },
	{ ZYDIS_ISA_EXT_AMX_BF16, NEVER, 0, 0 },
	{ ZYDIS_ISA_EXT_HRESET, NEVER, 0, 0 },
	{ ZYDIS_ISA_EXT_SGX, NEVER, 0, 0 },
};

static bool is_offered(const ZydisDecodedInstruction *zi)
{
	for (unsigned i = 0; i < ARRAY_SIZE(features); i++)
		if (features[i].ext == zi->meta.isa_ext)
			return features[i].function != NEVER &&
			       guest_offers_bit(features[i].function, features[i].reg, features[i].bit);
	return true;
}

/* ---- comparison ---------------------------------------------------------------------------------- */

static char why[128];

#define DIFFERS(...) (snprintf(why, sizeof(why), __VA_ARGS__), true)

/*
 * What CPUs of one vendor do and the manuals leave open; ours is what neither forbids.
 *
 * AMD: a MASKMOVQ that faults has left the MMX state entered, a POPA some registers popped, PUSHA some stored.
 * Intel: every store of an MMX register that faults has entered the MMX state; CALL to an impossible address
 * has stored the return address, FBSTP and FSTP their first bytes; VCVTPS2PH has set flags in MXCSR. An x87 store with an
 * exception unmasked does not touch memory, so finds no fault there. BOUND reads the upper bound only if the
 * lower one does not refuse, MOVSXD with a 16-bit register two bytes. The undefined flags of the BCD instructions are other ones.
 */
static bool is_partial(const struct oracle_case *c, const struct oracle_state *n, ZydisMnemonic m)
{
	return c->zi.mnemonic == m && n->rip == c->in.rip;
}

static bool is_maskmov(ZydisMnemonic m)
{
	switch (m) {
	case ZYDIS_MNEMONIC_MASKMOVQ: case ZYDIS_MNEMONIC_MASKMOVDQU: case ZYDIS_MNEMONIC_VMASKMOVDQU:
	case ZYDIS_MNEMONIC_VMASKMOVPS: case ZYDIS_MNEMONIC_VMASKMOVPD:
	case ZYDIS_MNEMONIC_VPMASKMOVD: case ZYDIS_MNEMONIC_VPMASKMOVQ:
		return true;
	default:
		return false;
	}
}

/* Stores of MMX registers: what faults has entered the MMX state (or not). */
static bool enters_mmx(const struct oracle_case *c, const struct oracle_state *n)
{
	ZydisMnemonic m = c->zi.mnemonic;

	return n->rip == c->in.rip && (m == ZYDIS_MNEMONIC_MASKMOVQ || (host_is_intel() &&
	       (m == ZYDIS_MNEMONIC_MOVD || m == ZYDIS_MNEMONIC_MOVQ || m == ZYDIS_MNEMONIC_MOVNTQ)));
}

static bool is_bcd(ZydisMnemonic m)
{
	return m == ZYDIS_MNEMONIC_DAA || m == ZYDIS_MNEMONIC_DAS || m == ZYDIS_MNEMONIC_AAA || m == ZYDIS_MNEMONIC_AAS;
}

/* What DIV leaves in them may come from what was in them before, which the translator does not keep. */
static u64 undefined_flags(const struct oracle_case *c)
{
	if (guest_translates() && (c->zi.mnemonic == ZYDIS_MNEMONIC_DIV || c->zi.mnemonic == ZYDIS_MNEMONIC_IDIV))
		return X86_EFLAGS_OSZAPC;
	if (!host_is_intel() || !is_bcd(c->zi.mnemonic))
		return 0;
	return X86_EFLAGS_OF | (c->zi.mnemonic == ZYDIS_MNEMONIC_DAA || c->zi.mnemonic == ZYDIS_MNEMONIC_DAS ? 0 :
				X86_EFLAGS_SF | X86_EFLAGS_ZF | X86_EFLAGS_PF);
}

static bool is_partial_xrstor(const struct oracle_case *c, const struct oracle_state *n)
{
	return is_partial(c, n, ZYDIS_MNEMONIC_XRSTOR) || is_partial(c, n, ZYDIS_MNEMONIC_XRSTOR64);
}

static bool fpu_differs(const struct oracle_case *c, const struct oracle_state *n, const struct oracle_state *g)
{
	static const struct {
		const char *name;
		u8 at, len;
	} fields[] = {
		{ "FCW", 0, 2 }, { "FSW", 2, 2 }, { "x87 tags", 4, 1 }, { "FOP", 6, 2 }, { "FIP", 8, 8 },
		{ "FDP", 16, 8 }, { "MXCSR", 24, 4 },
	};

	if (is_partial_xrstor(c, n))
		return false;
	for (unsigned i = 0; i < ARRAY_SIZE(fields); i++) {
		/* The pointers mean something while an exception is pending, and on AMD's CPUs only then. */
		if (fields[i].at >= 6 && fields[i].at < 24 && !(n->fx[2] & 0x80))
			continue;
		if (enters_mmx(c, n) && (fields[i].at == 2 || fields[i].at == 4))
			continue;
		if (fields[i].at == 24 && host_is_intel() && is_partial(c, n, ZYDIS_MNEMONIC_VCVTPS2PH))
			continue;
		if (memcmp(n->fx + fields[i].at, g->fx + fields[i].at, fields[i].len)) {
			u64 want = 0, is = 0;

			memcpy(&want, n->fx + fields[i].at, fields[i].len);
			memcpy(&is, g->fx + fields[i].at, fields[i].len);
			return DIFFERS("%s is %llx, not %llx", fields[i].name, (long long)is, (long long)want);
		}
	}
	for (int i = 0; i < 8 && !enters_mmx(c, n); i++)
		if (memcmp(n->fx + 32 + 16 * i, g->fx + 32 + 16 * i, 10))
			return DIFFERS("st(%d)", i);
	for (int i = 0; i < 16; i++)
		if (memcmp(n->fx + 160 + 16 * i, g->fx + 160 + 16 * i, 16) || memcmp(n->ymmh[i], g->ymmh[i], 16))
			return DIFFERS("ymm%d", i);
	return false;
}

/* Instructions of many accesses, whose order is the model's business. */
static bool has_many_parts(ZydisMnemonic m)
{
	switch (m) {
	case ZYDIS_MNEMONIC_FNSTENV: case ZYDIS_MNEMONIC_FLDENV: case ZYDIS_MNEMONIC_FNSAVE:
	case ZYDIS_MNEMONIC_FRSTOR: case ZYDIS_MNEMONIC_FXSAVE: case ZYDIS_MNEMONIC_FXSAVE64:
	case ZYDIS_MNEMONIC_FXRSTOR: case ZYDIS_MNEMONIC_FXRSTOR64: case ZYDIS_MNEMONIC_XSAVE:
	case ZYDIS_MNEMONIC_XSAVE64: case ZYDIS_MNEMONIC_XSAVEOPT: case ZYDIS_MNEMONIC_XSAVEOPT64:
	case ZYDIS_MNEMONIC_XRSTOR: case ZYDIS_MNEMONIC_XRSTOR64: case ZYDIS_MNEMONIC_XSAVEC:
	case ZYDIS_MNEMONIC_XSAVEC64:
		return true;
	default:
		return false;
	}
}

static bool is_far(const struct oracle_case *c)
{
	return c->zi.meta.branch_type == ZYDIS_BRANCH_TYPE_FAR || c->zi.meta.category == ZYDIS_CATEGORY_RET;
}

static bool cr2_differs(const struct oracle_case *c, const struct oracle_state *n, const struct oracle_state *g)
{
	if (is_maskmov(c->zi.mnemonic) && host_is_intel())
		return (u16)(n->cr2 - g->cr2 + 32) >= 64;
	/* Which of the things on the stack is looked at first. */
	if (is_far(c))
		return n->cr2 - g->cr2 + 40 >= 80;
	return n->cr2 != g->cr2 && !(has_many_parts(c->zi.mnemonic) && n->cr2 - g->cr2 + PAGE_SIZE < 2 * PAGE_SIZE);
}

/* Nothing above the stack pointer, or in an operand that is written whole the next time. */
static bool is_partial_store(const struct oracle_case *c, const struct oracle_state *n)
{
	if (host_is_intel() && (is_partial(c, n, ZYDIS_MNEMONIC_CALL) || is_partial(c, n, ZYDIS_MNEMONIC_FBSTP) ||
				is_partial(c, n, ZYDIS_MNEMONIC_FSTP)))
		return true;
	return is_partial(c, n, ZYDIS_MNEMONIC_PUSHA) || is_partial(c, n, ZYDIS_MNEMONIC_PUSHAD);
}

/*
 * With MXCSR.MM set (AMD only) a misaligned operand of which only the lower half counts (PUNPCKL, shift
 * counts) is not read beyond that half: no fault if the rest lies in an absent page. Ours reads it all.
 */
static bool is_half_read(const struct oracle_case *c, const struct oracle_state *n, const struct oracle_state *g)
{
	return c->in.fx[26] & 2 && g->vector == PF_VECTOR && !(g->cr2 & ~PAGE_MASK) && g->rip == c->in.rip &&
	       n->rip != c->in.rip && c->zi.encoding == ZYDIS_INSTRUCTION_ENCODING_LEGACY &&
	       c->zi.meta.category != ZYDIS_CATEGORY_DATAXFER;
}

static bool is_x87_store(ZydisMnemonic m)
{
	switch (m) {
	case ZYDIS_MNEMONIC_FST: case ZYDIS_MNEMONIC_FSTP: case ZYDIS_MNEMONIC_FIST: case ZYDIS_MNEMONIC_FISTP:
	case ZYDIS_MNEMONIC_FISTTP: case ZYDIS_MNEMONIC_FBSTP:
		return true;
	default:
		return false;
	}
}

static bool is_address_fault(u32 vector)
{
	return vector == SS_VECTOR || vector == GP_VECTOR || vector == PF_VECTOR;
}

/* Does the operand go on behind offset 4 GiB - 1? */
static bool goes_round(const struct oracle_case *c)
{
	ZydisRegisterContext regs = { 0 };
	u64 va;

	if (c->mode != ORACLE_32)
		return false;
	for (unsigned i = 0; i < 8; i++)
		regs.values[ZYDIS_REGISTER_EAX + i] = (u32)c->in.gpr[i];
	for (unsigned i = 0; i < c->zi.operand_count; i++) {
		const ZydisDecodedOperand *op = &c->ops[i];

		if (op->type == ZYDIS_OPERAND_TYPE_MEMORY && op->mem.type == ZYDIS_MEMOP_TYPE_MEM &&
		    ZYAN_SUCCESS(ZydisCalcAbsoluteAddressEx(&c->zi, op, c->in.rip, &regs, &va)) &&
		    (u64)(u32)va + op->size / 8 > 1ull << 32)
			return true;
	}
	return false;
}

/* Faults of the operand that only one of the two finds, on Intel's CPUs. */
static bool is_other_order(const struct oracle_case *c, const struct oracle_state *n, const struct oracle_state *g)
{
	if (!host_is_intel())
		return false;
	/* An operand around the end of the 4 GiB: "may or may not". */
	if (c->mode != ORACLE_64 && n->vector == PF_VECTOR && (g->vector == GP_VECTOR || g->vector == SS_VECTOR) &&
	    ((u32)(n->cr2 + 64) < 128 || (u32)(c->in.gpr[RSI] + 8) < 16))
		return true;
	if (n->vector == AC_VECTOR && (g->vector == GP_VECTOR || g->vector == SS_VECTOR) && !g->error && goes_round(c))
		return true;
	/*
	 * CALL pushes before it looks at the target's offset, and into a 64-bit segment with the
	 * stack as it will be there: without a base.
	 */
	if (c->zi.mnemonic == ZYDIS_MNEMONIC_CALL && is_far(c))
		return n->vector == PF_VECTOR && n->error & 2 && n->rip == c->in.rip;
	/* IRET looks at SS, then at the target's offset. */
	if (c->zi.mnemonic >= ZYDIS_MNEMONIC_IRET && c->zi.mnemonic <= ZYDIS_MNEMONIC_IRETQ)
		return n->rip == g->rip && g->vector == GP_VECTOR && !g->error &&
		       (n->vector == GP_VECTOR || n->vector == SS_VECTOR);
	/* Conversions of half precision are not checked for alignment. */
	if (c->zi.mnemonic == ZYDIS_MNEMONIC_VCVTPH2PS)
		return g->vector == AC_VECTOR && g->rip == c->in.rip;
	if (c->zi.mnemonic == ZYDIS_MNEMONIC_VCVTPS2PH)
		return (n->vector == XM_VECTOR ? is_address_fault(g->vector) || g->vector == AC_VECTOR : g->vector == AC_VECTOR) &&
		       g->rip == c->in.rip;
	if (is_x87_store(c->zi.mnemonic))
		return n->fx[2] & 0x80 && n->rip != c->in.rip && g->rip == c->in.rip &&
		       (is_address_fault(g->vector) || g->vector == AC_VECTOR);
	if (c->zi.mnemonic == ZYDIS_MNEMONIC_BOUND)
		return n->vector == BR_VECTOR && is_address_fault(g->vector) && g->rip == c->in.rip;
	/* Reads no more than it writes. */
	if (c->zi.mnemonic == ZYDIS_MNEMONIC_MOVSXD)
		return c->zi.operand_width == 16 && (g->vector == AC_VECTOR || (g->vector == PF_VECTOR && n->rip != c->in.rip));
	/* With nothing selected where it may not be written. */
	return is_maskmov(c->zi.mnemonic) && n->rip == c->in.rip && is_address_fault(n->vector) &&
	       (g->rip != c->in.rip || (n->vector != g->vector && is_address_fault(g->vector)));
}

/*
 * The translator does not look at offsets in an FS or GS of 4 GiB, so does not refuse what goes on behind the
 * last one (docs/deviations.md). Those of oracle_seg.c's accesses through rSI, which end in a HLT's #GP.
 */
static bool goes_round_unseen(const struct oracle_case *c, const struct oracle_state *n, const struct oracle_state *g)
{
	u64 at = n->rip - c->in.rip;

	return guest_translates() && c->mode == ORACLE_32 && (u32)c->in.gpr[RSI] > 0xfffffffc && at && at < sizeof(c->bytes) &&
	       (c->bytes[at] == 0x64 || c->bytes[at] == 0x65) && n->vector == GP_VECTOR && !n->error &&
	       g->vector == GP_VECTOR && !g->error && g->rip - n->rip - 3 <= 1;
}

/* Instructions of several accesses of ours are not checked for alignment (docs/deviations.md). */
static bool is_unchecked(const struct oracle_case *c, const struct oracle_state *n)
{
	if (n->vector != AC_VECTOR)
		return false;
	switch (c->zi.mnemonic) {
	case ZYDIS_MNEMONIC_ENTER: case ZYDIS_MNEMONIC_PUSHA: case ZYDIS_MNEMONIC_PUSHAD: case ZYDIS_MNEMONIC_POPA:
	case ZYDIS_MNEMONIC_POPAD: case ZYDIS_MNEMONIC_BOUND: case ZYDIS_MNEMONIC_FLDENV: case ZYDIS_MNEMONIC_FNSTENV:
	case ZYDIS_MNEMONIC_FNSAVE: case ZYDIS_MNEMONIC_FRSTOR: case ZYDIS_MNEMONIC_FBSTP: case ZYDIS_MNEMONIC_FBLD:
	case ZYDIS_MNEMONIC_LDS: case ZYDIS_MNEMONIC_LES: case ZYDIS_MNEMONIC_LSS: case ZYDIS_MNEMONIC_LFS:
	case ZYDIS_MNEMONIC_LGS: case ZYDIS_MNEMONIC_RET: case ZYDIS_MNEMONIC_IRET: case ZYDIS_MNEMONIC_IRETD:
	case ZYDIS_MNEMONIC_IRETQ: case ZYDIS_MNEMONIC_CALL: case ZYDIS_MNEMONIC_JMP:
		return true;
	default:
		return is_maskmov(c->zi.mnemonic) || has_many_parts(c->zi.mnemonic);
	}
}

/* Whether UD0, UD1, VIA's and the other vendor's instructions have a ModRM byte, which may not be fetchable, differs from model to model. */
static bool differs_by_design(const struct oracle_case *c, const struct oracle_state *n, const struct oracle_state *g)
{
	if (is_unchecked(c, n) || is_half_read(c, n, g) || is_other_order(c, n, g) || goes_round_unseen(c, n, g))
		return true;
	return (c->zi.mnemonic == ZYDIS_MNEMONIC_UD0 || c->zi.mnemonic == ZYDIS_MNEMONIC_UD1 ||
		c->zi.meta.isa_ext == ZYDIS_ISA_EXT_PADLOCK || c->zi.meta.isa_ext == ZYDIS_ISA_EXT_SSE4A) &&
	       n->vector == UD_VECTOR && g->vector == PF_VECTOR && g->error & BIT(4);
}

/* Refused by both, for one of several reasons it may have been refused for. */
static bool refused_anyhow(const struct oracle_case *c, const struct oracle_state *n, const struct oracle_state *g)
{
	return has_many_parts(c->zi.mnemonic) && n->rip == c->in.rip && g->rip == c->in.rip &&
	       is_address_fault(n->vector) && is_address_fault(g->vector) && n->vector != g->vector;
}

static bool outcome_differs(const struct oracle_case *c, const struct oracle_state *n, const struct oracle_state *g)
{
	u32 error = n->error;

	/* The kernel says "present" of its own half, so that nobody can probe it. */
	if (n->vector == PF_VECTOR && (n->cr2 >> 47 || has_many_parts(c->zi.mnemonic) || is_maskmov(c->zi.mnemonic)))
		error = (error & ~1u) | (g->error & 1);
	if (refused_anyhow(c, n, g))
		return false;
	if (n->vector != g->vector || error != g->error)
		return DIFFERS("exception %d error %x, not %d error %x", g->vector, g->error, n->vector, n->error);
	if (n->vector == PF_VECTOR && cr2_differs(c, n, g))
		return DIFFERS("CR2 is %llx, not %llx", (long long)g->cr2, (long long)n->cr2);
	return false;
}

/* The translator does not keep flags that the instruction overwrites, also if it faults (docs/deviations.md). */
static bool may_be_stale(const struct oracle_case *c, const struct oracle_state *g)
{
	const ZydisAccessedFlags *f = c->zi.cpu_flags;

	return guest_translates() && g->rip == c->in.rip && f && (f->modified | f->undefined | f->set_0 | f->set_1);
}

static bool state_differs(const struct oracle_case *c, const struct oracle_state *n, const struct oracle_state *g)
{
	const u64 flags = X86_EFLAGS_OSZAPC | X86_EFLAGS_TF | X86_EFLAGS_IF | X86_EFLAGS_DF | X86_EFLAGS_IOPL |
			  X86_EFLAGS_NT | X86_EFLAGS_AC | X86_EFLAGS_ID;

	if (differs_by_design(c, n, g))
		return false;
	if (outcome_differs(c, n, g))
		return true;
	/* INT3 and INTO are delivered with the address behind them, which the guest's missing gate keeps. */
	if (n->rip != g->rip && n->vector != BP_VECTOR && n->vector != OF_VECTOR)
		return DIFFERS("rip is %llx, not %llx", (long long)g->rip, (long long)n->rip);
	for (int i = 0; i < 16; i++) {
		if (i != RSP && (is_partial(c, n, ZYDIS_MNEMONIC_POPA) || is_partial(c, n, ZYDIS_MNEMONIC_POPAD)))
			continue;
		/* A return to a 16-bit stack segment leaves something of the kernel's in the upper half of RSP. */
		if (i == RSP && (c->mode == ORACLE_16 || oracle_is_small_stack(n->sel[SEG_SS])) ?
			    (u16)n->gpr[i] != (u16)g->gpr[i] : n->gpr[i] != g->gpr[i])
			return DIFFERS("register %d is %llx, not %llx", i, (long long)g->gpr[i], (long long)n->gpr[i]);
	}
	if ((n->rflags ^ g->rflags) & flags & ~(may_be_stale(c, g) ? X86_EFLAGS_OSZAPC : undefined_flags(c)))
		return DIFFERS("rflags are %llx, not %llx", (long long)g->rflags, (long long)n->rflags);
	if (fpu_differs(c, n, g) || oracle_segments_differ(n, g, why, sizeof(why)))
		return true;
	for (unsigned i = 0; i < ORACLE_DATA_SIZE && !is_partial_store(c, n); i++)
		if (oracle_native.data[i] != oracle_guest.data[i])
			return DIFFERS("memory at %lx is %02x, not %02x", ORACLE_DATA + i, oracle_guest.data[i],
				       oracle_native.data[i]);
	return false;
}

static void report(const struct oracle_case *c)
{
	static unsigned nr_reports;
	ZydisFormatter f;
	char text[96];

	count.failed++;
	if (count.different[c->zi.mnemonic]++ >= (verbose ? 20 : 2) || ++nr_reports > MAX_REPORTS)
		return;
	ZydisFormatterInit(&f, ZYDIS_FORMATTER_STYLE_INTEL);
	ZydisFormatterFormatInstruction(&f, &c->zi, c->ops, c->zi.operand_count_visible, text, sizeof(text), 0, NULL);
	fprintf(stderr, "not ok: %d-bit, at %llx, %s, bytes", c->mode == ORACLE_64 ? 64 : c->mode == ORACLE_32 ? 32 : 16,
		(long long)c->in.rip, text);
	for (unsigned i = 0; i < c->zi.length; i++)
		fprintf(stderr, " %02x", c->bytes[i]);
	fprintf(stderr, ": %s\n", why);
	if (!verbose)
		return;
	for (int i = 0; i < 16; i++)
		fprintf(stderr, "%016llx%c", (long long)c->in.gpr[i], i % 4 == 3 ? '\n' : ' ');
	fprintf(stderr, "rflags %llx mxcsr %x fcw %x fsw %x\n", (long long)c->in.rflags, *(u32 *)(c->in.fx + 24),
		*(u16 *)c->in.fx, *(u16 *)(c->in.fx + 2));
	for (unsigned i = 0; i < ORACLE_DATA_SIZE; i++)
		if (oracle_native.data[i] != oracle_guest.data[i])
			fprintf(stderr, " %lx: %02x, not %02x;", ORACLE_DATA + i, oracle_guest.data[i], oracle_native.data[i]);
	fprintf(stderr, "\n");
}

/* ---- running ------------------------------------------------------------------------------------------ */

static u64 code_address(const struct oracle_case *c)
{
	return c->mode == ORACLE_16 ? c->in.rip + ORACLE_CS16_BASE : c->in.rip;
}

/* len bytes at rip on both sides, and what comes of it. */
static void run_code(struct oracle_case *c, unsigned len)
{
	static const u8 hlt[sizeof(c->bytes)] = { [0 ... sizeof(c->bytes) - 1] = 0xf4 };
	struct oracle_state n, g;

	gen_store_code(code_address(c), c->bytes, len);
	native_run(&c->in, &n);
	guest_run(&c->in, &g);
	gen_store_code(code_address(c), hlt, len);
	if (g.vector == UD_VECTOR && n.vector != UD_VECTOR && !is_offered(&c->zi)) {
		count.hidden[c->zi.mnemonic]++;
	} else {
		count.cases[c->mode][c->zi.mnemonic]++;
		count.total++;
		count.faults += n.rip == c->in.rip;
		if (state_differs(c, &n, &g))
			report(c);
	}
	if (memcmp(oracle_native.data, oracle_guest.data, ORACLE_DATA_SIZE))
		memcpy(oracle_guest.data, oracle_native.data, ORACLE_DATA_SIZE);
}

static void run_case(struct oracle_case *c)
{
	if (gen_state(c))
		run_code(c, c->zi.length);
}

static void run_segment_case(struct oracle_case *c, unsigned len)
{
	if (only && strcmp(only, ZydisMnemonicGetString(c->zi.mnemonic)))
		return;
	count.encodings++;
	run_code(c, len);
}

static bool decode(struct oracle_case *c)
{
	static ZydisDecoder decoders[ORACLE_MODES];
	static const ZydisMachineMode modes[] = {
		ZYDIS_MACHINE_MODE_LONG_64, ZYDIS_MACHINE_MODE_LEGACY_32, ZYDIS_MACHINE_MODE_LEGACY_16,
	};
	static const ZydisStackWidth stacks[] = { ZYDIS_STACK_WIDTH_64, ZYDIS_STACK_WIDTH_32, ZYDIS_STACK_WIDTH_16 };
	ZydisDecoder *d = &decoders[c->mode];

	if (!d->machine_mode) {
		ZydisDecoderInit(d, modes[c->mode], stacks[c->mode]);
		ZydisDecoderEnableMode(d, ZYDIS_DECODER_MODE_MPX, ZYAN_FALSE);
		ZydisDecoderEnableMode(d, ZYDIS_DECODER_MODE_CET, ZYAN_FALSE);
		ZydisDecoderEnableMode(d, ZYDIS_DECODER_MODE_CLDEMOTE, ZYAN_FALSE);
		ZydisDecoderEnableMode(d, ZYDIS_DECODER_MODE_AMD_BRANCHES, host_is_amd());
	}
	return ZYAN_SUCCESS(ZydisDecoderDecodeFull(d, c->bytes, ZYDIS_MAX_INSTRUCTION_LENGTH, &c->zi, c->ops));
}

static void run_encoding(enum oracle_mode mode, const u8 bytes[16])
{
	struct oracle_case c = { .mode = mode };

	memcpy(c.bytes, bytes, 16);
	if (!decode(&c) || deny(&c))
		return;
	if (only && strcmp(only, ZydisMnemonicGetString(c.zi.mnemonic)))
		return;
	count.encodings++;
	for (unsigned i = 0; i < trials; i++)
		run_case(&c);
}

static void run_all(bool thorough)
{
	for (enum oracle_mode mode = 0; mode < (guest_translates() ? ORACLE_16 : ORACLE_MODES); mode++) {
		guest_set_mode(mode);
		oracle_segments(mode, thorough ? SEGMENT_CASES : SEGMENT_CASES / 20, decode, run_segment_case);
		if (!segments_only)
			gen_encodings(mode, thorough, run_encoding);
	}
}

static void print_counts(void)
{
	printf("%-16s %10s %10s %10s\n", "mnemonic", "64-bit", "32-bit", "16-bit");
	for (unsigned m = 0; m <= ZYDIS_MNEMONIC_MAX_VALUE; m++) {
		u64 *k[ORACLE_MODES] = { &count.cases[0][m], &count.cases[1][m], &count.cases[2][m] };

		if (*k[0] + *k[1] + *k[2] + count.hidden[m] == 0)
			continue;
		printf("%-16s %10llu %10llu %10llu%s%s\n", ZydisMnemonicGetString(m), (long long)*k[0], (long long)*k[1],
		       (long long)*k[2], count.hidden[m] ? " not offered" : "", count.different[m] ? " DIFFERENT" : "");
	}
}

int main(int argc, char **argv)
{
	bool thorough = false;

	trials = 3;
	for (int i = 1; i < argc; i++) {
		if (!strcmp(argv[i], "--long"))
			thorough = true;
		else if (!strcmp(argv[i], "--only") && i + 1 < argc)
			only = argv[++i], thorough = verbose = true;
		else if (!strcmp(argv[i], "--segments"))
			segments_only = verbose = true;
		else if (!strcmp(argv[i], "--seed") && i + 1 < argc)
			oracle_seed = (oracle_seed + strtoull(argv[++i], NULL, 0) * 0x9e3779b97f4a7c15ull) | 1;
		else
			return fprintf(stderr, "usage: %s [--long] [--only MNEMONIC] [--segments] [--seed N]\n", argv[0]), 2;
	}
	guest_init(&oracle_guest);
	native_init(&oracle_native);
	memset(oracle_native.code, 0xf4, ORACLE_CODE_SIZE);
	memset(oracle_guest.code, 0xf4, ORACLE_CODE_SIZE);
	if (thorough)
		trials = 8;
	do
		run_all(thorough);
	while (thorough && !only && !segments_only && count.total < LONG_CASES);
	print_counts();
	printf("%llu encodings, %llu cases, of which %llu fault; %llu differences\n", (long long)count.encodings,
	       (long long)count.total, (long long)count.faults, (long long)count.failed);
	printf("%u passed, %llu failed\n", count.failed == 0, (long long)count.failed);
	return count.failed ? 1 : 0;
}

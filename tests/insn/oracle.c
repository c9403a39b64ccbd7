/* SPDX-License-Identifier: MIT */
/*
 * Every unprivileged instruction form that guests are offered, against the host CPU.
 *
 *	oracle				the quick choice, as in `make check`
 *	oracle --long			all forms, at least ten million cases
 *	oracle --only MNEMONIC		the long run of one of them
 *	oracle --excused N		shows N cases of each excuse, too
 *	oracle --segments		only what oracle_seg.c makes
 *	oracle --seed N			other random numbers
 *	SOFTKVM_ENGINE=dbt oracle ...	the translator instead, which does 64-bit and flat 32-bit code
 *
 * What is not run, and why: deny(). What may differ: oracle_compare.c. SGDT, SIDT, SLDT, STR and SMSW are unprivileged
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
	u64 excused[ZYDIS_MNEMONIC_MAX_VALUE + 1];
	bool seen[ZYDIS_MNEMONIC_MAX_VALUE + 1];
	u32 different[ZYDIS_MNEMONIC_MAX_VALUE + 1];
	u64 total, all_excused, failed, faults, encodings;
} count;
static unsigned trials;
static const char *only;
static bool verbose, segments_only;

/* ---- what is not run -------------------------------------------------------------------- */

/* Why a mnemonic is not run at all; NULL: it is. oracle_seg.c does some of them with descriptors of its own. */
static const char *why_denied(ZydisMnemonic m)
{
	switch (m) {
	case ZYDIS_MNEMONIC_SYSCALL: case ZYDIS_MNEMONIC_SYSENTER: case ZYDIS_MNEMONIC_SYSRET: case ZYDIS_MNEMONIC_INT:
	case ZYDIS_MNEMONIC_INT1:
		return "a system call, or the kernel's to answer: tests/api/priv_*.c";
	case ZYDIS_MNEMONIC_RDTSC: case ZYDIS_MNEMONIC_RDTSCP: case ZYDIS_MNEMONIC_RDRAND: case ZYDIS_MNEMONIC_RDSEED:
		return "another answer each time";
	case ZYDIS_MNEMONIC_RDPMC: case ZYDIS_MNEMONIC_RDPRU: case ZYDIS_MNEMONIC_CPUID: case ZYDIS_MNEMONIC_RDPID:
	case ZYDIS_MNEMONIC_XGETBV:
		return "the guest's own answer: tests/api";
	case ZYDIS_MNEMONIC_SGDT: case ZYDIS_MNEMONIC_SIDT: case ZYDIS_MNEMONIC_SLDT:
	case ZYDIS_MNEMONIC_STR: case ZYDIS_MNEMONIC_SMSW:
		return "emulated by the kernel under UMIP: tests/api/priv_faults.c";
	case ZYDIS_MNEMONIC_IRET: case ZYDIS_MNEMONIC_IRETD: case ZYDIS_MNEMONIC_IRETQ:
	case ZYDIS_MNEMONIC_LDS: case ZYDIS_MNEMONIC_LES: case ZYDIS_MNEMONIC_LFS:
	case ZYDIS_MNEMONIC_LGS: case ZYDIS_MNEMONIC_LSS: case ZYDIS_MNEMONIC_LAR:
	case ZYDIS_MNEMONIC_LSL: case ZYDIS_MNEMONIC_VERR: case ZYDIS_MNEMONIC_VERW:
		return "with what is in descriptor tables: oracle_seg.c";
	case ZYDIS_MNEMONIC_VMCALL: case ZYDIS_MNEMONIC_VMMCALL: case ZYDIS_MNEMONIC_VMFUNC:
	case ZYDIS_MNEMONIC_VMLAUNCH: case ZYDIS_MNEMONIC_VMRESUME: case ZYDIS_MNEMONIC_VMXOFF:
	case ZYDIS_MNEMONIC_VMRUN: case ZYDIS_MNEMONIC_VMLOAD: case ZYDIS_MNEMONIC_VMSAVE:
	case ZYDIS_MNEMONIC_STGI: case ZYDIS_MNEMONIC_CLGI: case ZYDIS_MNEMONIC_SKINIT:
	case ZYDIS_MNEMONIC_INVLPGA: case ZYDIS_MNEMONIC_VMREAD: case ZYDIS_MNEMONIC_VMWRITE:
	case ZYDIS_MNEMONIC_VMPTRLD: case ZYDIS_MNEMONIC_VMPTRST: case ZYDIS_MNEMONIC_VMCLEAR:
	case ZYDIS_MNEMONIC_VMXON: case ZYDIS_MNEMONIC_INVEPT: case ZYDIS_MNEMONIC_INVVPID:
	case ZYDIS_MNEMONIC_TDCALL: case ZYDIS_MNEMONIC_SEAMCALL: case ZYDIS_MNEMONIC_SEAMOPS: case ZYDIS_MNEMONIC_SEAMRET:
		return "reaches a hypervisor below us";
	case ZYDIS_MNEMONIC_MONITOR: case ZYDIS_MNEMONIC_MWAIT: case ZYDIS_MNEMONIC_MONITORX: case ZYDIS_MNEMONIC_MWAITX:
		return "waits on the host: tests/api";
	default:
		return NULL;
	}
}

static bool is_segment(const ZydisDecodedOperand *op)
{
	return op->type == ZYDIS_OPERAND_TYPE_REGISTER && ZydisRegisterGetClass(op->reg.value) == ZYDIS_REGCLASS_SEGMENT;
}

static bool deny(const struct oracle_case *c)
{
	const ZydisDecodedInstruction *zi = &c->zi;

	if (why_denied(zi->mnemonic) || zi->meta.branch_type == ZYDIS_BRANCH_TYPE_FAR)
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

void oracle_print_case(const struct oracle_case *c)
{
	ZydisFormatter f;
	char text[96];

	ZydisFormatterInit(&f, ZYDIS_FORMATTER_STYLE_INTEL);
	ZydisFormatterFormatInstruction(&f, &c->zi, c->ops, c->zi.operand_count_visible, text, sizeof(text), 0, NULL);
	fprintf(stderr, "%d-bit, at %llx, %s, bytes", c->mode == ORACLE_64 ? 64 : c->mode == ORACLE_32 ? 32 : 16,
		(long long)c->in.rip, text);
	for (unsigned i = 0; i < c->zi.length; i++)
		fprintf(stderr, " %02x", c->bytes[i]);
	fprintf(stderr, ": %s\n", oracle_why);
	if (!verbose)
		return;
	for (int i = 0; i < 16; i++)
		fprintf(stderr, "%016llx%c", (long long)c->in.gpr[i], i % 4 == 3 ? '\n' : ' ');
	fprintf(stderr, "rflags %llx mxcsr %x fcw %x fsw %x\n", (long long)c->in.rflags, *(u32 *)(c->in.fx + 24),
		*(u16 *)c->in.fx, *(u16 *)(c->in.fx + 2));
	for (unsigned i = 0, left = 64; i < ORACLE_DATA_SIZE; i++)
		if (oracle_native.data[i] != oracle_guest.data[i] && left && left--)
			fprintf(stderr, " %lx: %02x, not %02x;", ORACLE_DATA + i, oracle_guest.data[i], oracle_native.data[i]);
	fprintf(stderr, "\n");
}

static void report(const struct oracle_case *c)
{
	static unsigned nr_reports;

	count.failed++;
	if (count.different[c->zi.mnemonic]++ >= (verbose ? 20 : 2) || ++nr_reports > MAX_REPORTS)
		return;
	fprintf(stderr, "not ok: ");
	oracle_print_case(c);
}

/* A case counts as such if nothing differs: what is excused is counted by itself. */
static void judge(const struct oracle_case *c, const struct oracle_state *n, struct oracle_state *g)
{
	switch (oracle_compare(c, n, g)) {
	case ORACLE_SAME:
		count.cases[c->mode][c->zi.mnemonic]++;
		count.total++;
		count.faults += n->rip == c->in.rip;
		return;
	case ORACLE_EXCUSED:
		count.excused[c->zi.mnemonic]++;
		count.all_excused++;
		return;
	case ORACLE_DIFFERENT:
		report(c);
		return;
	}
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
	if (g.vector == UD_VECTOR && n.vector != UD_VECTOR && !is_offered(&c->zi))
		count.hidden[c->zi.mnemonic]++;
	else
		judge(c, &n, &g);
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
	if (!decode(&c))
		return;
	count.seen[c.zi.mnemonic] = true;
	if (deny(&c))
		return;
	if (only && strcmp(only, ZydisMnemonicGetString(c.zi.mnemonic)))
		return;
	count.encodings++;
	for (unsigned i = 0; i < (oracle_is_image(c.zi.mnemonic) ? 50 : 1) * trials; i++)
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
	printf("%-16s %10s %10s %10s %10s\n", "mnemonic", "64-bit", "32-bit", "16-bit", "excused");
	for (unsigned m = 0; m <= ZYDIS_MNEMONIC_MAX_VALUE; m++) {
		u64 *k[ORACLE_MODES] = { &count.cases[0][m], &count.cases[1][m], &count.cases[2][m] };

		if (*k[0] + *k[1] + *k[2] + count.excused[m] + count.hidden[m] + count.different[m] == 0)
			continue;
		printf("%-16s %10llu %10llu %10llu %10llu%s%s\n", ZydisMnemonicGetString(m), (long long)*k[0], (long long)*k[1],
		       (long long)*k[2], (long long)count.excused[m], count.hidden[m] ? " not offered" : "", count.different[m] ? " DIFFERENT" : "");
	}
}

/* What the engines may execute without a handler of their own, and what was generated: and no case of it. */
static void print_missing(void)
{
	static const bool allowed[ZYDIS_MNEMONIC_MAX_VALUE + 1] = {
#define THUNK(name, class) [ZYDIS_MNEMONIC_##name] = true,
#include "x86/interp/thunk_allow.def"
#undef THUNK
	};

	for (unsigned m = 0; m <= ZYDIS_MNEMONIC_MAX_VALUE; m++) {
		const char *why = why_denied(m);

		if (!(allowed[m] || count.seen[m]) || count.cases[0][m] + count.cases[1][m] + count.cases[2][m])
			continue;
		if (!why && count.hidden[m])
			why = "not offered, though the host has it";
		if (!why && m >= ZYDIS_MNEMONIC_ENDBR32 && m <= ZYDIS_MNEMONIC_ENDBR64)
			why = "counted as NOP";
		if (!why && m == ZYDIS_MNEMONIC_CLDEMOTE)
			why = "counted as NOP";
		if (!why)
			why = count.seen[m] ? "only in encodings that are none of an offered extension (EVEX, XOP, 3DNow)" : "NOT GENERATED";
		printf("%-16s not run: %s\n", ZydisMnemonicGetString(m), why);
	}
}

int main(int argc, char **argv)
{
	bool thorough = false;

	setenv("SOFTKVM_ENGINE", "interp", 0);
	trials = 3;
	for (int i = 1; i < argc; i++) {
		if (!strcmp(argv[i], "--long"))
			thorough = true;
		else if (!strcmp(argv[i], "--only") && i + 1 < argc)
			only = argv[++i], thorough = verbose = true;
		else if (!strcmp(argv[i], "--excused") && i + 1 < argc)
			oracle_show_excused(atoi(argv[++i]));
		else if (!strcmp(argv[i], "--segments"))
			segments_only = verbose = true;
		else if (!strcmp(argv[i], "--seed") && i + 1 < argc)
			oracle_seed = (oracle_seed + strtoull(argv[++i], NULL, 0) * 0x9e3779b97f4a7c15ull) | 1;
		else
			return fprintf(stderr, "usage: %s [--long] [--only MNEMONIC] [--segments] [--excused N] [--seed N]\n", argv[0]), 2;
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
	if (thorough && !only && !segments_only)
		print_missing();
	oracle_print_excuses();
	printf("%llu encodings, %llu cases the same, of which %llu fault; %llu excused; %llu differences\n",
	       (long long)count.encodings, (long long)count.total, (long long)count.faults, (long long)count.all_excused,
	       (long long)count.failed);
	printf("%u passed, %llu failed\n", count.failed == 0, (long long)count.failed);
	return count.failed ? 1 : 0;
}

/* SPDX-License-Identifier: MIT */
/*
 * Comparison: everything exactly, then what may differ.
 *
 *  1. A case in which nothing differs is a proven one, whatever the table below says.
 *  2. A difference is excused by a row: one deviation of ours (docs/deviations.md), or one thing the manuals leave open,
 *     described so closely that nothing else fits. Each has its count, which is printed; the case is not a proven one.
 *  3. What the host's kernel does to a state on its way to us is undone or left out before: as_delivered().
 */
#include <stdio.h>
#include <string.h>

#include "host/host.h"
#include "oracle.h"
#include "x86/interp/insn.h"

enum aspect {
	A_VECTOR = BIT(0), A_ERROR = BIT(1), A_CR2 = BIT(2), A_RIP = BIT(3), A_GPRS = BIT(4), A_RSP = BIT(5),
	A_FLAGS = BIT(6), A_X87 = BIT(7), A_POINTERS = BIT(8), A_MXCSR = BIT(9), A_VECTORS = BIT(10),
	A_SEGMENTS = BIT(11), A_MEMORY = BIT(12), A_ALL = BIT(13) - 1,
};

char oracle_why[160];
#define why oracle_why
#define DIFFERS(...) (snprintf(why, sizeof(why), __VA_ARGS__), true)

#define FLAGS (X86_EFLAGS_OSZAPC | X86_EFLAGS_TF | X86_EFLAGS_IF | X86_EFLAGS_DF | X86_EFLAGS_IOPL | X86_EFLAGS_NT | \
	       X86_EFLAGS_AC | X86_EFLAGS_ID)

static bool is_address_fault(u32 vector)
{
	return vector == SS_VECTOR || vector == GP_VECTOR || vector == PF_VECTOR;
}

/* ---- what differs ------------------------------------------------------------------------------- */

/*
 * The kernel says "present" of any address in its own half, so that nobody can probe it; INT3 and INTO it delivers with
 * the address behind them, which the guest's missing gate keeps; on the way to it a null selector becomes 0
 * (oracle_segments_differ()).
 */
static void as_delivered(const struct oracle_case *c, const struct oracle_state *n, struct oracle_state *g)
{
	if (g->vector == PF_VECTOR && g->cr2 >> 47)
		g->error |= 1;
	if ((g->vector == BP_VECTOR || g->vector == OF_VECTOR) && g->vector == n->vector)
		g->rip += c->zi.length;
}

/* A return to a 16-bit stack segment leaves something of the kernel's in the upper half of RSP. */
static u64 rsp_bits(const struct oracle_case *c, const struct oracle_state *n)
{
	return c->mode == ORACLE_16 || oracle_is_small_stack(n->sel[SEG_SS]) ? 0xffff : ~0ull;
}

static bool x87_differs(const struct oracle_state *n, const struct oracle_state *g)
{
	if (memcmp(n->fx, g->fx, 5))
		return DIFFERS("FCW FSW tags are %x %x %x, not %x %x %x", *(u16 *)g->fx, *(u16 *)(g->fx + 2), g->fx[4],
			       *(u16 *)n->fx, *(u16 *)(n->fx + 2), n->fx[4]);
	for (int i = 0; i < 8; i++)
		if (memcmp(n->fx + 32 + 16 * i, g->fx + 32 + 16 * i, 10))
			return DIFFERS("st(%d)", i);
	return false;
}

/* FOP, FIP, FDP mean something while an exception is pending, and on AMD's CPUs only then. */
static bool pointers_differ(const struct oracle_state *n, const struct oracle_state *g)
{
	return n->fx[2] & 0x80 && memcmp(n->fx + 6, g->fx + 6, 18) &&
	       DIFFERS("FOP FIP FDP are %x %llx %llx, not %x %llx %llx", *(u16 *)(g->fx + 6), *(long long *)(g->fx + 8),
		       *(long long *)(g->fx + 16), *(u16 *)(n->fx + 6), *(long long *)(n->fx + 8),
		       *(long long *)(n->fx + 16));
}

static bool vectors_differ(const struct oracle_state *n, const struct oracle_state *g)
{
	for (int i = 0; i < 16; i++)
		if (memcmp(n->fx + 160 + 16 * i, g->fx + 160 + 16 * i, 16) || memcmp(n->ymmh[i], g->ymmh[i], 16))
			return DIFFERS("ymm%d", i);
	return false;
}

static bool gprs_differ(const struct oracle_state *n, const struct oracle_state *g)
{
	for (int i = 0; i < 16; i++)
		if (i != RSP && n->gpr[i] != g->gpr[i])
			return DIFFERS("register %d is %llx, not %llx", i, (long long)g->gpr[i], (long long)n->gpr[i]);
	return false;
}

static bool memory_differs(void)
{
	for (unsigned i = 0; i < ORACLE_DATA_SIZE; i++)
		if (oracle_native.data[i] != oracle_guest.data[i])
			return DIFFERS("memory at %lx is %02x, not %02x", ORACLE_DATA + i, oracle_guest.data[i],
				       oracle_native.data[i]);
	return false;
}

static bool outcome_differs(const struct oracle_state *n, const struct oracle_state *g)
{
	return DIFFERS("exception %d error %x cr2 %llx, not %d error %x cr2 %llx", g->vector, g->error, (long long)g->cr2,
		       n->vector, n->error, (long long)n->cr2);
}

/* All that differs; oracle_why is about what comes first. */
static u32 differing(const struct oracle_case *c, const struct oracle_state *n, const struct oracle_state *g)
{
	u32 d = 0;

	if (memory_differs())
		d |= A_MEMORY;
	if (oracle_segments_differ(n, g, why, sizeof(why)))
		d |= A_SEGMENTS;
	if (vectors_differ(n, g))
		d |= A_VECTORS;
	if (memcmp(n->fx + 24, g->fx + 24, 4) &&
	    DIFFERS("MXCSR is %x, not %x", *(u32 *)(g->fx + 24), *(u32 *)(n->fx + 24)))
		d |= A_MXCSR;
	if (pointers_differ(n, g))
		d |= A_POINTERS;
	if (x87_differs(n, g))
		d |= A_X87;
	if ((n->rflags ^ g->rflags) & FLAGS &&
	    DIFFERS("rflags are %llx, not %llx", (long long)g->rflags, (long long)n->rflags))
		d |= A_FLAGS;
	if (gprs_differ(n, g))
		d |= A_GPRS;
	if ((n->gpr[RSP] ^ g->gpr[RSP]) & rsp_bits(c, n) &&
	    DIFFERS("rsp is %llx, not %llx", (long long)g->gpr[RSP], (long long)n->gpr[RSP]))
		d |= A_RSP;
	if (n->rip != g->rip && DIFFERS("rip is %llx, not %llx", (long long)g->rip, (long long)n->rip))
		d |= A_RIP;
	if (n->vector == PF_VECTOR && n->cr2 != g->cr2 && outcome_differs(n, g))
		d |= A_CR2;
	if (n->error != g->error && outcome_differs(n, g))
		d |= A_ERROR;
	if (n->vector != g->vector && outcome_differs(n, g))
		d |= A_VECTOR;
	return d;
}

/* ---- excuses -------------------------------------------------------------------------------------- */

/* One case with its two results: n the host's, g ours. */
struct pair {
	const struct oracle_case *c;
	const struct oracle_state *n, *g;
	ZydisMnemonic m;
	bool n_faults, g_faults;	/* at the instruction, not behind it */
};

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

static bool is_iret(ZydisMnemonic m)
{
	return m == ZYDIS_MNEMONIC_IRET || m == ZYDIS_MNEMONIC_IRETD || m == ZYDIS_MNEMONIC_IRETQ;
}

static bool is_far(const struct pair *p)
{
	return p->c->zi.meta.branch_type == ZYDIS_BRANCH_TYPE_FAR;
}

/* Bytes of a word of the stack. */
static unsigned word(const struct pair *p)
{
	return p->c->zi.operand_width / 8;
}

static u64 stack_linear(const struct oracle_case *c)
{
	return c->mode == ORACLE_64 ? c->in.gpr[RSP] : c->mode == ORACLE_32 ? (u32)c->in.gpr[RSP] :
	       (u16)c->in.gpr[RSP] + ORACLE_DS16_BASE;
}

/* Offset of the explicit operand in memory, if there is one. */
static const ZydisDecodedOperand *memory_operand(const struct oracle_case *c, u64 *off)
{
	u64 mask = c->zi.address_width == 64 ? ~0ull : c->zi.address_width == 32 ? 0xffffffff : 0xffff;
	bool high8;

	for (unsigned i = 0; i < c->zi.operand_count; i++) {
		const ZydisDecodedOperand *op = &c->ops[i];
		u8 base = gpr_from_zydis(op->mem.base, &high8), index = gpr_from_zydis(op->mem.index, &high8);

		if (op->type != ZYDIS_OPERAND_TYPE_MEMORY || op->mem.type != ZYDIS_MEMOP_TYPE_MEM)
			continue;
		*off = op->mem.disp.value;
		if (base != INSN_NOREG)
			*off += c->in.gpr[base];
		if (index != INSN_NOREG)
			*off += c->in.gpr[index] * op->mem.scale;
		if (op->mem.base == ZYDIS_REGISTER_RIP || op->mem.base == ZYDIS_REGISTER_EIP)
			*off += c->in.rip + c->zi.length;
		*off &= mask;
		return op;
	}
	return NULL;
}

/* Does the operand go on behind the last offset there is, outside 64-bit mode, or of 16 bits? */
static bool goes_round(const struct oracle_case *c)
{
	u64 off;
	const ZydisDecodedOperand *op = memory_operand(c, &off);
	unsigned size = !op ? 0 : oracle_is_image(c->zi.mnemonic) ? 832 : op->size / 8;

	if (!op)
		return false;
	if (c->zi.address_width == 16)
		return off + size > 0x10000;
	return c->zi.address_width == 32 && c->mode != ORACLE_64 && off + size > 1ull << 32;
}

/* All bytes of memory that differ lie in len bytes from va on. */
static bool differs_within(u64 va, unsigned len)
{
	for (u64 i = 0; i < ORACLE_DATA_SIZE; i++)
		if (oracle_native.data[i] != oracle_guest.data[i] && ORACLE_DATA + i - va >= len)
			return false;
	return true;
}

static bool flags_differ_within(const struct pair *p, u64 mask)
{
	return !((p->n->rflags ^ p->g->rflags) & FLAGS & ~mask);
}

/* Ours has left the MMX registers alone, the host's are as an MMX instruction leaves them: TOP 0, perhaps all valid. */
static bool ex_mmx_entered(const struct pair *p)
{
	const u8 *in = p->c->in.fx, *n = p->n->fx;
	unsigned top = in[3] >> 3 & 7;

	if (p->m != ZYDIS_MNEMONIC_MASKMOVQ && (!host_is_intel() || (p->m != ZYDIS_MNEMONIC_MOVD &&
	    p->m != ZYDIS_MNEMONIC_MOVQ && p->m != ZYDIS_MNEMONIC_MOVNTQ)))
		return false;
	if (!p->n_faults || !p->g_faults || x87_differs(&p->c->in, p->g) || (n[4] != 0xff && n[4] != in[4]) ||
	    (*(u16 *)n ^ *(u16 *)in) || *(u16 *)(n + 2) != (*(u16 *)(in + 2) & ~0x3800))
		return false;
	for (unsigned i = 0; i < 8; i++)
		if (memcmp(n + 32 + 16 * i, in + 32 + 16 * ((i - top) & 7), 8))
			return false;
	return true;
}

static bool ex_half_flags(const struct pair *p)
{
	u32 in = *(u32 *)(p->c->in.fx + 24), n = *(u32 *)(p->n->fx + 24), g = *(u32 *)(p->g->fx + 24);

	return host_is_intel() && p->m == ZYDIS_MNEMONIC_VCVTPS2PH && p->n_faults && is_address_fault(p->n->vector) && g == in &&
	       (n & ~0x3fu) == (in & ~0x3fu) && (in & ~n) == 0;
}

static bool ex_half_xm(const struct pair *p)
{
	return host_is_intel() && p->m == ZYDIS_MNEMONIC_VCVTPS2PH && p->n->vector == XM_VECTOR && p->n_faults &&
	       p->g_faults && is_address_fault(p->g->vector);
}

/* Both refuse the MXCSR of a compacted image. */
static bool ex_xrstor_part(const struct pair *p)
{
	return p->n_faults && p->g_faults && (p->m == ZYDIS_MNEMONIC_XRSTOR || p->m == ZYDIS_MNEMONIC_XRSTOR64) &&
	       p->n->vector == GP_VECTOR && p->g->vector == GP_VECTOR && !x87_differs(&p->c->in, p->g) &&
	       !vectors_differ(&p->c->in, p->g) && !memcmp(p->c->in.fx + 24, p->g->fx + 24, 4) &&
	       !memcmp(p->c->in.fx + 24, p->n->fx + 24, 4);
}

static bool ex_popa_part(const struct pair *p)
{
	if (!p->n_faults || !p->g_faults || (p->m != ZYDIS_MNEMONIC_POPA && p->m != ZYDIS_MNEMONIC_POPAD))
		return false;
	return !memcmp(p->c->in.gpr, p->g->gpr, sizeof(p->g->gpr));
}

static bool ex_pusha_part(const struct pair *p)
{
	return p->n_faults && p->g_faults && (p->m == ZYDIS_MNEMONIC_PUSHA || p->m == ZYDIS_MNEMONIC_PUSHAD) &&
	       differs_within(stack_linear(p->c) - 8 * word(p), 8 * word(p));
}

static bool ex_call_part(const struct pair *p)
{
	unsigned len = (is_far(p) ? 2 : 1) * (word(p) ? word(p) : 8);

	return host_is_intel() && p->m == ZYDIS_MNEMONIC_CALL && p->n_faults && p->g_faults &&
	       differs_within(stack_linear(p->c) - len, len);
}

static bool ex_x87_part(const struct pair *p)
{
	return host_is_intel() && (p->m == ZYDIS_MNEMONIC_FBSTP || p->m == ZYDIS_MNEMONIC_FSTP) && p->n_faults && p->g_faults &&
	       p->n->vector == PF_VECTOR && !(p->n->cr2 & ~PAGE_MASK) && differs_within(p->n->cr2 - 10, 10);
}

static bool ex_x87_first(const struct pair *p)
{
	return host_is_intel() && is_x87_store(p->m) && p->n->fx[2] & 0x80 && !(p->c->in.fx[2] & 0x80) && !p->n_faults &&
	       p->g_faults && (is_address_fault(p->g->vector) || p->g->vector == AC_VECTOR);
}

static bool ex_bcd_flags(const struct pair *p)
{
	bool decimal = p->m == ZYDIS_MNEMONIC_DAA || p->m == ZYDIS_MNEMONIC_DAS;
	bool ascii = p->m == ZYDIS_MNEMONIC_AAA || p->m == ZYDIS_MNEMONIC_AAS;

	return host_is_intel() && (decimal || ascii) &&
	       flags_differ_within(p, X86_EFLAGS_OF | (ascii ? X86_EFLAGS_SF | X86_EFLAGS_ZF | X86_EFLAGS_PF : 0));
}

static bool ex_div_flags(const struct pair *p)
{
	return guest_translates() && (p->m == ZYDIS_MNEMONIC_DIV || p->m == ZYDIS_MNEMONIC_IDIV) &&
	       flags_differ_within(p, X86_EFLAGS_OSZAPC);
}

static bool ex_stale_flags(const struct pair *p)
{
	const ZydisAccessedFlags *f = p->c->zi.cpu_flags;

	return guest_translates() && p->g_faults && p->n_faults && f &&
	       (f->modified | f->undefined | f->set_0 | f->set_1) && flags_differ_within(p, X86_EFLAGS_OSZAPC);
}

static bool ex_half_read(const struct pair *p)
{
	return host_is_amd() && p->c->in.fx[26] & 2 && p->g->vector == PF_VECTOR && !(p->g->cr2 & ~PAGE_MASK) && p->g_faults &&
	       !p->n_faults && p->c->zi.encoding == ZYDIS_INSTRUCTION_ENCODING_LEGACY &&
	       p->c->zi.meta.category != ZYDIS_CATEGORY_DATAXFER;
}

/* Both name a word of the frame: the host one in the middle of what is popped, or the one pushed first. */
static bool ex_frame_order(const struct pair *p)
{
	u64 ahead = p->n->cr2 - p->g->cr2;

	if (p->n->vector != PF_VECTOR || p->g->vector != PF_VECTOR || p->n->error != p->g->error)
		return false;
	return (is_iret(p->m) && ahead == 2 * word(p)) || (is_far(p) && ahead == word(p) &&
	       (p->m == ZYDIS_MNEMONIC_RET || p->m == ZYDIS_MNEMONIC_CALL));
}

/* Into a 64-bit segment with the stack as it will be there: without a base. */
static bool ex_call_order(const struct pair *p)
{
	unsigned len = 2 * word(p);

	if (!host_is_intel() || p->m != ZYDIS_MNEMONIC_CALL || !p->n_faults)
		return false;
	if (p->n->vector == AC_VECTOR)
		return p->g_faults && stack_linear(p->c) & 7;
	return is_far(p) && p->n->vector == PF_VECTOR && p->n->error & 2 &&
	       (stack_linear(p->c) - 1 - p->n->cr2 < len || (p->c->mode == ORACLE_16 && (u16)p->c->in.gpr[RSP] - 1 - p->n->cr2 < len));
}

static bool ex_iret_order(const struct pair *p)
{
	return host_is_intel() && is_iret(p->m) && p->n->rip == p->g->rip && p->g->vector == GP_VECTOR && !p->g->error &&
	       (p->n->vector == GP_VECTOR || p->n->vector == SS_VECTOR) && p->n->error;
}

static bool ex_bound_upper(const struct pair *p)
{
	return host_is_intel() && p->m == ZYDIS_MNEMONIC_BOUND && p->n->vector == BR_VECTOR &&
	       is_address_fault(p->g->vector) && p->g_faults && !(p->g->cr2 & ~PAGE_MASK);
}

static bool ex_round(const struct pair *p)
{
	return goes_round(p->c);
}

/* Of the selector's, in oracle_seg.c: through rSI, with up to four bytes. */
static bool ex_round_probe(const struct pair *p)
{
	return p->c->mode != ORACLE_64 && (u32)p->c->in.gpr[RSI] > 0xfffffffc && !p->n_faults && !p->g_faults &&
	       p->n->vector == PF_VECTOR && p->n->cr2 >= 0xfffffffc && p->g->vector != PF_VECTOR &&
	       (p->g->vector == GP_VECTOR || p->g->vector == SS_VECTOR);
}

/* The same in the translator, of FS and GS: ours goes on to a HLT's #GP. */
static bool ex_round_unseen(const struct pair *p)
{
	const struct oracle_case *c = p->c;
	u64 at = p->n->rip - c->in.rip;

	return guest_translates() && c->mode == ORACLE_32 && (u32)c->in.gpr[RSI] > 0xfffffffc && at && at < sizeof(c->bytes) &&
	       (c->bytes[at] == 0x64 || c->bytes[at] == 0x65) && p->n->vector == GP_VECTOR && !p->n->error &&
	       p->g->vector == GP_VECTOR && !p->g->error && p->g->rip - p->n->rip - 3 <= 1;
}

/* Both name a byte on the second page: ours of the first element there. */
static bool ex_mask_order(const struct pair *p)
{
	switch (p->m) {
	case ZYDIS_MNEMONIC_VMASKMOVPS: case ZYDIS_MNEMONIC_VMASKMOVPD:
	case ZYDIS_MNEMONIC_VPMASKMOVD: case ZYDIS_MNEMONIC_VPMASKMOVQ:
		return host_is_intel() && p->n->vector == PF_VECTOR && p->g->vector == PF_VECTOR &&
		       !((p->n->cr2 ^ p->g->cr2) & PAGE_MASK) && (p->n->cr2 & ~PAGE_MASK) < 32 && (p->g->cr2 & ~PAGE_MASK) < 32;
	default:
		return false;
	}
}

/* What deviations.md lists, in 64-bit mode less: there are no PUSHA, BOUND, LDS. */
static bool ex_unchecked(const struct pair *p)
{
	if (p->n->vector != AC_VECTOR || p->n->error || p->g->vector == AC_VECTOR)
		return false;
	switch (p->m) {
	case ZYDIS_MNEMONIC_ENTER: case ZYDIS_MNEMONIC_PUSHA: case ZYDIS_MNEMONIC_PUSHAD: case ZYDIS_MNEMONIC_POPA:
	case ZYDIS_MNEMONIC_POPAD: case ZYDIS_MNEMONIC_BOUND: case ZYDIS_MNEMONIC_FBSTP: case ZYDIS_MNEMONIC_FBLD:
	case ZYDIS_MNEMONIC_LDS: case ZYDIS_MNEMONIC_LES: case ZYDIS_MNEMONIC_LSS: case ZYDIS_MNEMONIC_LFS:
	case ZYDIS_MNEMONIC_LGS: case ZYDIS_MNEMONIC_VMASKMOVPS: case ZYDIS_MNEMONIC_VMASKMOVPD:
	case ZYDIS_MNEMONIC_VPMASKMOVD: case ZYDIS_MNEMONIC_VPMASKMOVQ:
		return true;
	case ZYDIS_MNEMONIC_FNSTENV: case ZYDIS_MNEMONIC_FLDENV: case ZYDIS_MNEMONIC_FNSAVE: case ZYDIS_MNEMONIC_FRSTOR:
	case ZYDIS_MNEMONIC_MASKMOVQ: case ZYDIS_MNEMONIC_MASKMOVDQU: case ZYDIS_MNEMONIC_VMASKMOVDQU:
		return !host_is_intel();
	default:
		return is_iret(p->m) || is_far(p) || oracle_is_image(p->m);
	}
}

static bool ex_no_modrm(const struct pair *p)
{
	return (p->m == ZYDIS_MNEMONIC_UD0 || p->m == ZYDIS_MNEMONIC_UD1 || p->c->zi.meta.isa_ext == ZYDIS_ISA_EXT_PADLOCK ||
		p->c->zi.meta.isa_ext == ZYDIS_ISA_EXT_SSE4A) &&
	       p->n->vector == UD_VECTOR && p->g->vector == PF_VECTOR && p->g->error & BIT(4);
}

/* "open": the manuals leave it to the model. "ours": docs/deviations.md. All were found by running this. */
static struct excuse {
	const char *name, *reason;
	u32 aspects;
	bool (*fits)(const struct pair *p);
	u64 hits, reported;
} excuses[] = {
#define EXCUSE(id, aspects, reason) { #id, reason, aspects, ex_##id, 0, 0 }
	EXCUSE(no_modrm, A_ALL, "open: does UD0, UD1 or an opcode of another vendor have a ModRM byte to fetch? (SDM 2: UD)"),
	EXCUSE(unchecked, A_ALL, "ours: no #AC of instructions of several accesses"),
	EXCUSE(half_read, A_ALL, "open: AMD with MXCSR.MM reads only the half of an operand that counts"),
	EXCUSE(round, A_ALL, "open: an operand that goes on behind the last offset wraps or faults (SDM 3 5.3.1)"),
	EXCUSE(round_probe, A_ALL, "open: the same, of an access through rSI"),
	EXCUSE(round_unseen, A_ALL, "ours: the same, not refused by the translator in FS and GS of 4 GiB"),
	EXCUSE(frame_order, A_CR2, "open: which word of a far frame is looked at first"),
	EXCUSE(mask_order, A_CR2, "open: which byte behind a page border a masked store faults on"),
	EXCUSE(call_order, A_ALL, "ours: CALL looks at the target before the stack; Intel after"),
	EXCUSE(iret_order, A_ALL, "ours: IRET looks at the target's offset before SS; Intel after"),
	EXCUSE(half_xm, A_ALL, "ours: VCVTPS2PH looks at memory before it raises #XM; Intel after"),
	EXCUSE(x87_first, A_ALL, "ours: x87 stores look at memory before an unmasked exception; Intel does not at all"),
	EXCUSE(bound_upper, A_ALL, "ours: BOUND reads both bounds; Intel the upper one if the lower one holds"),
	EXCUSE(mmx_entered, A_X87, "ours: a store of an MMX register that faults leaves the MMX state alone"),
	EXCUSE(half_flags, A_MXCSR, "ours: VCVTPS2PH that faults leaves MXCSR alone; Intel sets flags"),
	EXCUSE(xrstor_part, A_X87 | A_VECTORS | A_POINTERS, "ours: XRSTOR of a compacted image with a bad MXCSR loads nothing"),
	EXCUSE(popa_part, A_GPRS, "ours: POPA that faults loads nothing"),
	EXCUSE(pusha_part, A_MEMORY, "ours: PUSHA that faults stores nothing"),
	EXCUSE(call_part, A_MEMORY, "ours: CALL of what cannot be called stores nothing; Intel the return address"),
	EXCUSE(x87_part, A_MEMORY, "ours: FSTP and FBSTP that fault store nothing; Intel the bytes on the first page"),
	EXCUSE(bcd_flags, A_FLAGS, "ours: undefined flags of DAA, DAS, AAA, AAS are AMD's"),
	EXCUSE(div_flags, A_FLAGS, "ours: undefined flags of DIV and IDIV under the translator"),
	EXCUSE(stale_flags, A_FLAGS, "ours: flags the instruction would have written, if it faults under the translator"),
};

static unsigned max_reports;	/* of each excuse: what it is good for */

void oracle_show_excused(unsigned nr)
{
	max_reports = nr;
}

enum oracle_verdict oracle_compare(const struct oracle_case *c, const struct oracle_state *n, struct oracle_state *g)
{
	struct pair p = { .c = c, .n = n, .g = g, .m = c->zi.mnemonic };
	struct excuse *used[ARRAY_SIZE(excuses)];
	unsigned nr_used = 0;
	u32 left;

	as_delivered(c, n, g);
	p.n_faults = n->rip == c->in.rip;
	p.g_faults = g->rip == c->in.rip;
	left = differing(c, n, g);
	if (!left)
		return ORACLE_SAME;
	for (unsigned i = 0; i < ARRAY_SIZE(excuses) && left; i++) {
		if (!(left & excuses[i].aspects) || !excuses[i].fits(&p))
			continue;
		left &= ~excuses[i].aspects;
		used[nr_used++] = &excuses[i];
	}
	if (left) {
		differing(c, n, g);
		return ORACLE_DIFFERENT;
	}
	for (unsigned i = 0; i < nr_used; i++) {
		used[i]->hits++;
		if (used[i]->reported < max_reports) {
			used[i]->reported++;
			differing(c, n, g);
			fprintf(stderr, "excused by %s: ", used[i]->name);
			oracle_print_case(c);
		}
	}
	return ORACLE_EXCUSED;
}

void oracle_print_excuses(void)
{
	for (unsigned i = 0; i < ARRAY_SIZE(excuses); i++)
		if (excuses[i].hits)
			printf("%-16s %10llu excused: %s\n", excuses[i].name, (long long)excuses[i].hits, excuses[i].reason);
}

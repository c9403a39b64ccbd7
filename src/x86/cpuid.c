/* SPDX-License-Identifier: MIT */
/*
 * CPUID: what we can offer, and what the guest sees of what the client chose.
 *
 * The offer is the host's CPUID cut down by the masks below: a bit is there if the
 * host has it and the engine can do it. Same vendor, same family: the engine
 * executes most instructions on the host itself. The bits in `ours` do not depend on the
 * host, because we emulate what they stand for.
 *
 * The guest's view is the client's entries plus the bits that follow machine state
 * (OSXSAVE, APIC, XSAVE area sizes, MWAIT); those are computed when asked. The one bit
 * written into the client's entries is PV_UNHALT, which needs HLT exits.
 */
#include <string.h>

#include "host/host.h"
#include "kvm/api_level.h"
#include "kvm/kvm_host.h"
#include "kvm/trace.h"
#include "x86/cr.h"
#include "x86/hyperv.h"
#include "x86/irqchip.h"
#include "x86/x86.h"

#include <asm/kvm_para.h>

#define KVM_CPUID_TOP 0x40000001u
#define BASIC_LEAF_MAX 0x1fu
#define EXT_LEAF_MAX_INTEL 0x80000008u
#define EXT_LEAF_MAX_AMD 0x80000021u
#define SUPPORTED_XCR0 (XFEATURE_X87 | XFEATURE_SSE | XFEATURE_AVX)
#define QUIRK_MISC_ENABLE_NO_MWAIT BIT_ULL(4)
#define MISC_ENABLE_MWAIT BIT_ULL(18)

#define B(n) BIT(n)

/* ---- the offer ------------------------------------------------------------------- */

struct leaf_mask {
	u32 both;	/* kept if the host has it */
	u32 amd;	/* the same, on AMD only */
	u32 ours;	/* always offered */
};

static const struct leaf_mask mask_1_ecx = {
	/* SSE3, PCLMUL, SSSE3, FMA, CX16, PCID, SSE4.1, SSE4.2 */
	.both = B(0) | B(1) | B(9) | B(12) | B(13) | B(17) | B(19) | B(20) |
		/* MOVBE, POPCNT, AES, XSAVE, AVX, F16C, RDRAND */
		B(22) | B(23) | B(25) | B(26) | B(28) | B(29) | B(30),
	/* x2APIC, TSC deadline timer, hypervisor */
	.ours = B(21) | B(24) | B(31),
};

static const struct leaf_mask mask_1_edx = {
	/* FPU VME DE PSE TSC MSR PAE MCE CX8 APIC, SEP MTRR PGE MCA CMOV PAT PSE36 */
	.both = 0x000003ff | 0x0003f800 |
		/* CLFLUSH, MMX FXSR SSE SSE2 SS */
		B(19) | B(23) | B(24) | B(25) | B(26) | B(27),
};

static const struct leaf_mask mask_7_ebx = {
	/* FSGSBASE, BMI1, AVX2, SMEP, BMI2, ERMS, INVPCID */
	.both = B(0) | B(3) | B(5) | B(7) | B(8) | B(9) | B(10) |
		/* RDSEED, ADX, SMAP, CLFLUSHOPT, CLWB, SHA */
		B(18) | B(19) | B(20) | B(23) | B(24) | B(29),
	.ours = B(1), /* TSC_ADJUST */
};

static const struct leaf_mask mask_7_ecx = {
	/* UMIP, GFNI, VAES, VPCLMULQDQ, RDPID */
	.both = B(2) | B(8) | B(9) | B(10) | B(22),
};

static const struct leaf_mask mask_7_edx = {
	.both = B(4),	/* FSRM */
};

static const struct leaf_mask mask_7_1_eax = {
	.both = B(10) | B(11) | B(12), /* fast zero-length MOVSB, fast short STOSB, fast short CMPSB/SCASB */
};

static const struct leaf_mask mask_d_1_eax = {
	.both = B(0) | B(1) | B(2) | B(3), /* XSAVEOPT, XSAVEC, XGETBV with ECX = 1, XSAVES */
};

#define XSAVE_COMPACTS (B(1) | B(3)) /* XSAVEC, XSAVES: EBX tells the size */

static const struct leaf_mask mask_ext1_ecx = {
	.both = B(0) | B(5) | B(8),	/* LAHF, LZCNT, PREFETCHW */
	/* CMP_LEGACY, CR8_LEGACY, SSE4A, MISALIGNSSE, OSVW, TOPOEXT */
	.amd = B(1) | B(4) | B(6) | B(7) | B(9) | B(22),
};

static const struct leaf_mask mask_ext1_edx = {
	/* SYSCALL, NX, 1 GB pages, RDTSCP, LM */
	.both = B(11) | B(20) | B(26) | B(27) | B(29),
	/* what leaf 1 has in the same places; MMXEXT, FXSR_OPT */
	.amd = 0x000003ff | 0x0003f000 | B(22) | B(23) | B(24) | B(25),
};

static const struct leaf_mask mask_ext8_ebx = {
	.amd = B(0) | B(2) | B(26) | B(29), /* CLZERO, XSAVEERPTR, SSB_NO, BTC_NO */
};

static const struct leaf_mask mask_ext21_eax = {
	.amd = B(0) | B(2) | B(29), /* NO_NESTED_DATA_BP, LFENCE serializes, SRSO_NO */
};

static void apply(u32 *reg, const struct leaf_mask *m)
{
	*reg = (*reg & (m->both | (host_is_amd() ? m->amd : 0))) | m->ours;
}

struct builder {
	struct kvm_cpuid_entry2 *entries;
	u32 max, nr;
	u64 xcr0;		/* features whose state we can keep */
	struct kvm_cpuid_entry2 scratch;
};

/* The next entry to fill in; past the end a scratch one, so that the wanted number is still counted. */
static struct kvm_cpuid_entry2 *add(struct builder *b, u32 function, u32 index, bool indexed)
{
	struct kvm_cpuid_entry2 *e = b->nr < b->max ? &b->entries[b->nr] : &b->scratch;

	b->nr++;
	memset(e, 0, sizeof(*e));
	e->function = function;
	e->index = indexed ? index : 0;
	e->flags = indexed ? KVM_CPUID_FLAG_SIGNIFCANT_INDEX : 0;
	return e;
}

static struct kvm_cpuid_entry2 *add_host(struct builder *b, u32 function, u32 index, bool indexed)
{
	struct kvm_cpuid_entry2 *e = add(b, function, index, indexed);

	host_cpuid(function, index, &e->eax, &e->ebx, &e->ecx, &e->edx);
	return e;
}

/* Vector extensions need a host kernel that keeps the registers. */
#define AVX_1_ECX (B(12) | B(28) | B(29))
#define AVX_7_EBX B(5)
#define AVX_7_ECX (B(9) | B(10))

static void add_leaf_1(struct builder *b)
{
	struct kvm_cpuid_entry2 *e = add_host(b, 1, 0, false);

	apply(&e->ecx, &mask_1_ecx);
	/* It depends on an in-kernel APIC, which nobody knows of here: KVM_CAP_TSC_DEADLINE_TIMER tells instead. */
	if (kvm_api_level() < KVM_API_6_18)
		e->ecx &= ~B(24);
	apply(&e->edx, &mask_1_edx);
	if (!(b->xcr0 & XFEATURE_AVX))
		e->ecx &= ~AVX_1_ECX;
	if (!b->xcr0)
		e->ecx &= ~B(26);
}

static void add_caches(struct builder *b, u32 function)
{
	for (u32 i = 0; i < 8; i++)
		if (!(add_host(b, function, i, true)->eax & 0x1f))
			break;
}

static void add_leaf_6(struct builder *b)
{
	add(b, 6, 0, false)->eax = B(2); /* ARAT: our timer never stops */
}

static void add_leaf_7(struct builder *b)
{
	struct kvm_cpuid_entry2 *e = add_host(b, 7, 0, true);
	u32 max_sub = e->eax, a, unused;

	apply(&e->ebx, &mask_7_ebx);
	apply(&e->ecx, &mask_7_ecx);
	apply(&e->edx, &mask_7_edx);
	if (!(b->xcr0 & XFEATURE_AVX)) {
		e->ebx &= ~AVX_7_EBX;
		e->ecx &= ~AVX_7_ECX;
	}
	if (host_is_intel())
		e->edx |= B(29); /* ARCH_CAPABILITIES; AMD guests never look */
	e->eax = 0;
	if (!max_sub)
		return;
	host_cpuid(7, 1, &a, &unused, &unused, &unused);
	apply(&a, &mask_7_1_eax);
	if (!a)
		return;
	e->eax = 1;
	add(b, 7, 1, true)->eax = a;
}

static void add_leaf_d(struct builder *b)
{
	struct kvm_cpuid_entry2 *e;

	if (!b->xcr0)
		return;
	e = add(b, 0xd, 0, true);
	e->eax = b->xcr0;
	e->ebx = e->ecx = xstate_size(b->xcr0);
	e->edx = b->xcr0 >> 32;
	e = add_host(b, 0xd, 1, true);
	apply(&e->eax, &mask_d_1_eax);
	/* Compacted: no gaps in our features, and no supervisor ones. */
	e->ebx = e->eax & XSAVE_COMPACTS ? xstate_size(b->xcr0) : 0;
	e->ecx = e->edx = 0;
	if (b->xcr0 & XFEATURE_AVX) {
		e = add(b, 0xd, 2, true);
		e->eax = 256;	/* upper halves of YMM0-15 */
		e->ebx = 576;	/* behind the legacy area and the header */
	}
}

/* Topology is the client's to describe: no subleaf, only the id the client will replace. */
static void add_topology(struct builder *b, u32 function)
{
	struct kvm_cpuid_entry2 *e = add_host(b, function, 0, true);

	e->eax = e->ebx = e->ecx = 0;
}

static void add_basic(struct builder *b)
{
	struct kvm_cpuid_entry2 *e = add_host(b, 0, 0, false);
	u32 top = min(e->eax, BASIC_LEAF_MAX);

	e->eax = top;
	add_leaf_1(b);
	if (top >= 2 && host_is_intel())
		add_host(b, 2, 0, false);
	if (top >= 4 && host_is_intel())
		add_caches(b, 4);
	if (top >= 6)
		add_leaf_6(b);
	if (top >= 7)
		add_leaf_7(b);
	if (top >= 0xa)
		add(b, 0xa, 0, false);
	if (top >= 0xb)
		add_topology(b, 0xb);
	if (top >= 0xd)
		add_leaf_d(b);
	if (top >= 0x1f)
		add_topology(b, 0x1f);
}

static void add_ext_7(struct builder *b)
{
	struct kvm_cpuid_entry2 *e = add_host(b, 0x80000007, 0, false);

	e->edx &= B(8); /* invariant TSC: ours is, if the host's is */
	e->eax = e->ebx = e->ecx = 0;
}

static void add_ext_8(struct builder *b)
{
	struct kvm_cpuid_entry2 *e = add_host(b, 0x80000008, 0, false);
	u32 phys = min(e->eax & 0xff, 52u);

	e->eax = (phys ? phys : 36) | 48 << 8; /* no LA57 */
	apply(&e->ebx, &mask_ext8_ebx);
	e->ecx = e->edx = 0;
}

static void add_ext_amd(struct builder *b, u32 top)
{
	if (top >= 0x80000019)
		add_host(b, 0x80000019, 0, false);
	if (top >= 0x8000001a)
		add_host(b, 0x8000001a, 0, false);
	if (top >= 0x8000001d)
		add_caches(b, 0x8000001d);
	if (top >= 0x8000001e)
		add(b, 0x8000001e, 0, false);
	if (top >= 0x80000021) {
		struct kvm_cpuid_entry2 *e = add_host(b, 0x80000021, 0, false);

		apply(&e->eax, &mask_ext21_eax);
		e->ebx = e->ecx = e->edx = 0;
	}
}

static void add_extended(struct builder *b)
{
	struct kvm_cpuid_entry2 *e = add_host(b, 0x80000000, 0, false);
	u32 top = min(e->eax, host_is_amd() ? EXT_LEAF_MAX_AMD : EXT_LEAF_MAX_INTEL);

	e->eax = top;
	e = add_host(b, 0x80000001, 0, false);
	apply(&e->ecx, &mask_ext1_ecx);
	apply(&e->edx, &mask_ext1_edx);
	for (u32 f = 0x80000002; f <= 0x80000006 && f <= top; f++)
		add_host(b, f, 0, false);
	if (top >= 0x80000007)
		add_ext_7(b);
	if (top >= 0x80000008)
		add_ext_8(b);
	if (host_is_amd())
		add_ext_amd(b, top);
}

static void add_paravirt(struct builder *b)
{
	struct kvm_cpuid_entry2 *e = add(b, KVM_CPUID_SIGNATURE, 0, false);
	u32 sig[3];

	memcpy(sig, "KVMKVMKVM\0\0\0", sizeof(sig));
	e->eax = KVM_CPUID_TOP;
	e->ebx = sig[0];
	e->ecx = sig[1];
	e->edx = sig[2];
	add(b, KVM_CPUID_FEATURES, 0, false)->eax =
		B(KVM_FEATURE_CLOCKSOURCE) | B(KVM_FEATURE_NOP_IO_DELAY) |
		B(KVM_FEATURE_CLOCKSOURCE2) | B(KVM_FEATURE_STEAL_TIME) | B(KVM_FEATURE_PV_EOI) |
		B(KVM_FEATURE_ASYNC_PF) | B(KVM_FEATURE_ASYNC_PF_VMEXIT) | B(KVM_FEATURE_ASYNC_PF_INT) |
		B(KVM_FEATURE_PV_UNHALT) | B(KVM_FEATURE_PV_SEND_IPI) |
		B(KVM_FEATURE_POLL_CONTROL) | B(KVM_FEATURE_PV_SCHED_YIELD) |
		B(KVM_FEATURE_CLOCKSOURCE_STABLE_BIT);
}

static u64 supported_xcr0(void)
{
	u64 xcr0 = host_xcr0() & SUPPORTED_XCR0;

	return (xcr0 & XFEATURE_SSE) ? xcr0 : 0;
}

u32 cpuid_supported(struct kvm_cpuid_entry2 *entries, u32 max)
{
	struct builder b = { .entries = entries, .max = max, .xcr0 = supported_xcr0() };

	add_basic(&b);
	add_extended(&b);
	add_paravirt(&b);
	return b.nr;
}

/* ---- the guest's view ---------------------------------------------------------------- */

struct kvm_cpuid_entry2 *cpuid_find(struct vcpu *vcpu, u32 function, u32 index)
{
	struct kvm_cpuid_entry2 *e = vcpu->arch.cpuid_entries;
	struct kvm_cpuid_entry2 *end = e + vcpu->arch.cpuid_nent;

	for (; e < end; e++)
		if (e->function == function && (!(e->flags & KVM_CPUID_FLAG_SIGNIFCANT_INDEX) ||
						e->index == index))
			return e;
	return NULL;
}

bool guest_cpuid_has(struct vcpu *vcpu, u32 function, u32 index, enum cpuid_reg reg, unsigned bit)
{
	const struct kvm_cpuid_entry2 *e = cpuid_find(vcpu, function, index);

	if (!e)
		return false;
	switch (reg) {
	case CPUID_EAX: return e->eax & BIT(bit);
	case CPUID_EBX: return e->ebx & BIT(bit);
	case CPUID_ECX: return e->ecx & BIT(bit);
	default: return e->edx & BIT(bit);
	}
}

static bool amd_compatible(struct vcpu *vcpu)
{
	const struct kvm_cpuid_entry2 *e = cpuid_find(vcpu, 0, 0);

	return e && (e->ebx == 0x68747541 /* Auth */ || e->ebx == 0x6f677948 /* Hygo */);
}

/* The leaf that says how far the range of this function goes. */
static const struct kvm_cpuid_entry2 *range_leaf(struct vcpu *vcpu, u32 function)
{
	if (function >= 0x40000000 && function <= 0x4fffffff)
		return cpuid_find(vcpu, function & 0xffffff00, 0);
	if (function >= 0xc0000000)
		return cpuid_find(vcpu, 0xc0000000, 0);
	return cpuid_find(vcpu, function & 0x80000000, 0);
}

/* Intel CPUs answer a function out of range as if the highest basic one had been asked; AMD's with zeros. */
static const struct kvm_cpuid_entry2 *out_of_range(struct vcpu *vcpu, u32 *function, u32 index)
{
	const struct kvm_cpuid_entry2 *basic = cpuid_find(vcpu, 0, 0);
	const struct kvm_cpuid_entry2 *range;

	if (!basic || amd_compatible(vcpu))
		return NULL;
	range = range_leaf(vcpu, *function);
	if (range && *function <= range->eax)
		return NULL;
	*function = basic->eax;
	return cpuid_find(vcpu, basic->eax, index);
}

static u64 apic_base(struct vcpu *vcpu)
{
	return vcpu->arch.apic ? lapic_get_base(vcpu) : vcpu->arch.msr.apic_base;
}

static void change_bit(u32 *reg, unsigned bit, bool on)
{
	*reg = on ? *reg | BIT(bit) : *reg & ~BIT(bit);
}

static void apply_state_1(struct vcpu *vcpu, u32 *ecx, u32 *edx)
{
	if (*ecx & BIT(26))
		change_bit(ecx, 27, vcpu->arch.cr4 & X86_CR4_OSXSAVE);
	change_bit(edx, 9, apic_base(vcpu) & APIC_BASE_ENABLE);
	if (vcpu->vm->arch.disabled_quirks & QUIRK_MISC_ENABLE_NO_MWAIT)
		change_bit(ecx, 3, vcpu->arch.msr.misc_enable & MISC_ENABLE_MWAIT);
}

static void apply_state(struct vcpu *vcpu, u32 function, u32 index, u32 *eax, u32 *ebx, u32 *ecx,
			u32 *edx)
{
	switch (function) {
	case 1:
		apply_state_1(vcpu, ecx, edx);
		break;
	case 0xd:
		if (index == 0)
			*ebx = xstate_size(vcpu->arch.xcr0);
		else if (index == 1 && (*eax & XSAVE_COMPACTS))
			*ebx = xstate_size(vcpu->arch.xcr0 | vcpu->arch.msr.ia32_xss);
		break;
	case 0x80000007:
		if (hyperv_invtsc_suppressed(vcpu))
			*edx &= ~BIT(8);
		break;
	}
}

static bool cpuid_answer(struct vcpu *vcpu, u32 *eax, u32 *ebx, u32 *ecx, u32 *edx)
{
	u32 function = *eax, index = *ecx;
	const struct kvm_cpuid_entry2 *e = cpuid_find(vcpu, function, index);
	bool found = e;

	if (!e)
		e = out_of_range(vcpu, &function, index);
	if (e) {
		*eax = e->eax;
		*ebx = e->ebx;
		*ecx = e->ecx;
		*edx = e->edx;
		apply_state(vcpu, function, index, eax, ebx, ecx, edx);
		return found;
	}
	*eax = *ebx = *ecx = *edx = 0;
	/* Past the last topology level: the index and the x2APIC id still show. */
	if (function == 0xb || function == 0x1f) {
		e = cpuid_find(vcpu, function, 1);
		if (e) {
			*ecx = index & 0xff;
			*edx = e->edx;
		}
	}
	return false;
}

void guest_cpuid(struct vcpu *vcpu, u32 *eax, u32 *ebx, u32 *ecx, u32 *edx)
{
	u64 function = *eax, index = *ecx;
	u64 found = cpuid_answer(vcpu, eax, ebx, ecx, edx);

	trace(kvm_cpuid, vcpu->id, function << 32 | index, found << 32 | *eax, *ebx, *ecx, *edx);
}

/* ---- what follows from the client's choice -------------------------------------------- */

static u64 pv_features(struct vcpu *vcpu)
{
	struct kvm_cpuid_entry2 *e;
	u32 sig[3];

	memcpy(sig, "KVMKVMKVM\0\0\0", sizeof(sig));
	for (u32 base = KVM_CPUID_SIGNATURE; base < 0x40010000; base += 0x100) {
		e = cpuid_find(vcpu, base, 0);
		if (!e || e->ebx != sig[0] || e->ecx != sig[1] || e->edx != sig[2])
			continue;
		e = cpuid_find(vcpu, base | KVM_CPUID_FEATURES, 0);
		if (e && (vcpu->vm->arch.disabled_exits & KVM_X86_DISABLE_EXITS_HLT))
			e->eax &= ~BIT(KVM_FEATURE_PV_UNHALT);
		return e ? e->eax : 0;
	}
	return 0;
}

static u32 max_phys_bits(struct vcpu *vcpu)
{
	const struct kvm_cpuid_entry2 *e = cpuid_find(vcpu, 0x80000000, 0);
	u32 bits = 36;

	if (e && e->eax >= 0x80000008) {
		e = cpuid_find(vcpu, 0x80000008, 0);
		if (e)
			bits = e->eax & 0xff;
	}
	/* The client may write any nonsense; page tables have 52. */
	return bits < 32 ? 32 : min(bits, 52u);
}

static u64 cr4_allowed(struct vcpu *vcpu)
{
	static const struct {
		u32 cr4;
		u32 function;
		enum cpuid_reg reg;
		u8 bit;
	} rows[] = {
		{ X86_CR4_UMIP, 7, CPUID_ECX, 2 },
		{ X86_CR4_FSGSBASE, 7, CPUID_EBX, 0 },
		{ X86_CR4_SMEP, 7, CPUID_EBX, 7 },
		{ X86_CR4_SMAP, 7, CPUID_EBX, 20 },
		{ X86_CR4_PCIDE, 1, CPUID_ECX, 17 },
		{ X86_CR4_OSXSAVE, 1, CPUID_ECX, 26 },
	};
	u64 allowed = X86_CR4_VME | X86_CR4_PVI | X86_CR4_TSD | X86_CR4_DE | X86_CR4_PSE |
		      X86_CR4_PAE | X86_CR4_MCE | X86_CR4_PGE | X86_CR4_PCE | X86_CR4_OSFXSR |
		      X86_CR4_OSXMMEXCPT;

	for (unsigned i = 0; i < ARRAY_SIZE(rows); i++)
		if (guest_cpuid_has(vcpu, rows[i].function, 0, rows[i].reg, rows[i].bit))
			allowed |= rows[i].cr4;
	return allowed;
}

void cpuid_updated(struct vcpu *vcpu)
{
	const struct kvm_cpuid_entry2 *e = cpuid_find(vcpu, 0xd, 0);

	vcpu->arch.maxphyaddr = max_phys_bits(vcpu);
	vcpu->arch.cr4_reserved_bits = ~(cr4_allowed(vcpu) & cr4_supported_bits());
	vcpu->arch.guest_supported_xcr0 =
		e ? (e->eax | (u64)e->edx << 32) & supported_xcr0() : 0;
	vcpu->arch.pv_features = pv_features(vcpu);
	hyperv_cpuid_updated(vcpu);
}

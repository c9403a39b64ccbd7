/* SPDX-License-Identifier: MIT */
/*
 * RDMSR, WRMSR, KVM_GET_MSRS, KVM_SET_MSRS. msrs.def has the rows; most are a
 * field of struct x86_msrs, the rest a pair of handlers here.
 *
 * 1. What KVM_GET_MSRS returns for a listed MSR, KVM_SET_MSRS takes back: clients assert it.
 * 2. An exit to userspace restarts the instruction: msr_complete_userspace() keeps the answer, and
 *    guest_rdmsr()/guest_wrmsr() at the same rip consume it. An answer for another
 *    instruction is dropped, since the client has moved the vCPU.
 * 3. Handlers see only values their row's flags allow.
 */
#include <stdlib.h>

#include "host/host.h"
#include "kvm/kvm_host.h"
#include "kvm/trace.h"
#include "x86/cr.h"
#include "x86/hyperv.h"
#include "x86/irqchip.h"
#include "x86/msr.h"
#include "x86/msr_filter.h"
#include "x86/state.h"
#include "x86/tsc.h"
#include "x86/x86.h"
#include "x86/xen.h"

#include <asm/kvm_para.h>

#define UNSUPPORTED 2	/* as opposed to 1: exists, but not like this */

#define L BIT(0)	/* KVM_GET_MSR_INDEX_LIST */
#define F BIT(1)	/* feature MSR */
#define I BIT(2)	/* listed on Intel only */
#define A BIT(3)	/* listed on AMD only */
#define C BIT(4)	/* canonical address */

#define MSR_UCODE_REV 0x8b
#define MSR_MC0_CTL2 0x280
#define MSR_MC0_CTL 0x400
#define MSR_FS_BASE 0xc0000100
#define MSR_X2APIC_FIRST 0x800
#define MSR_X2APIC_LAST 0x8ff
#define MCG_CTL_P BIT_ULL(8)
#define MCG_CMCI_P BIT_ULL(10)
#define MCI_CTL2_THRESHOLD 0x7fffull
#define HWCR_MC_STATUS_WR BIT_ULL(18)
#define HWCR_TSC_FREQ_SEL BIT_ULL(24)
#define PLATFORM_INFO_CPUID_FAULT BIT_ULL(31)
#define MISC_ENABLE_MWAIT BIT_ULL(18)
#define MISC_ENABLE_EMON BIT_ULL(7)
#define MISC_ENABLE_PMU_RO (BIT_ULL(11) | BIT_ULL(12))
#define QUIRK_MISC_ENABLE_NO_MWAIT BIT_ULL(4)
#define FEAT_CTL_LOCKED BIT_ULL(0)
#define DE_CFG_LFENCE_SERIALIZE BIT_ULL(1)

struct msr_row;
typedef int (*msr_read_fn)(struct vcpu *vcpu, const struct msr_row *row, u32 index, u64 *v, bool host);
typedef int (*msr_write_fn)(struct vcpu *vcpu, const struct msr_row *row, u32 index, u64 v, bool host);

struct msr_row {
	u32 index;
	u16 count;
	u16 offset;	/* of the value in struct x86_msrs; MSR_KEPT rows */
	u32 flags;
	msr_read_fn read;
	msr_write_fn write;
};

static u64 *field(struct vcpu *vcpu, const struct msr_row *row)
{
	return (u64 *)((u8 *)&vcpu->arch.msr + row->offset);
}

/* ---- handlers anyone can use ------------------------------------------------------- */

#define READ(name)                                                              \
	static int read_##name(struct vcpu *vcpu, const struct msr_row *row,    \
			       u32 index, u64 *v, bool host)
#define WRITE(name)                                                             \
	static int write_##name(struct vcpu *vcpu, const struct msr_row *row,   \
				u32 index, u64 v, bool host)

READ(plain)
{
	*v = *field(vcpu, row);
	return 0;
}

WRITE(plain)
{
	*field(vcpu, row) = v;
	return 0;
}

READ(zero)
{
	*v = 0;
	return 0;
}

READ(refuse)
{
	return UNSUPPORTED;
}

WRITE(refuse)
{
	return UNSUPPORTED;
}

WRITE(ignore)
{
	return 0;
}

WRITE(host_only)
{
	if (!host)
		return 1;
	return write_plain(vcpu, row, index, v, host);
}

READ(smbase)
{
	return host ? read_plain(vcpu, row, index, v, host) : 1;
}

WRITE(zero_only)
{
	return v != 0;
}

/* ---- constants ------------------------------------------------------------------------ */

READ(ebc_frequency)
{
	*v = 1 << 24; /* ratio 1: guests divide by it */
	return 0;
}

READ(fsb_freq)
{
	*v = 3;
	return 0;
}

READ(bbl_cr_ctl3)
{
	*v = 0xbe702111; /* an enabled, configured L2 */
	return 0;
}

READ(perf_status)
{
	*v = 1000ull | 4ull << 40;
	return 0;
}

READ(clk_ctl)
{
	*v = 0x20000000;
	return 0;
}

/* ---- system ------------------------------------------------------------------------------ */

static bool amd_guest(struct vcpu *vcpu)
{
	const struct kvm_cpuid_entry2 *e = cpuid_find(vcpu, 0, 0);

	return e && (e->ebx == 0x68747541 /* Auth */ || e->ebx == 0x6f677948 /* Hygo */);
}

READ(efer)
{
	*v = vcpu->arch.efer;
	return 0;
}

WRITE(efer)
{
	return set_efer(vcpu, v, host);
}

READ(seg_base)
{
	*v = vcpu->arch.seg[index == MSR_FS_BASE ? SEG_FS : SEG_GS].base;
	return 0;
}

WRITE(seg_base)
{
	vcpu->arch.seg[index == MSR_FS_BASE ? SEG_FS : SEG_GS].base = v;
	return 0;
}

WRITE(sysenter)
{
	/* Intel faults on the address when it is used, AMD keeps 32 bits. */
	*field(vcpu, row) = amd_guest(vcpu) ? (u32)v : (u64)((s64)(v << 16) >> 16);
	return 0;
}

static bool has_tsc_aux(struct vcpu *vcpu)
{
	return guest_cpuid_has(vcpu, 0x80000001, 0, CPUID_EDX, 27) ||
	       guest_cpuid_has(vcpu, 7, 0, CPUID_ECX, 22);
}

READ(tsc_aux)
{
	if (!host && !has_tsc_aux(vcpu))
		return 1;
	return read_plain(vcpu, row, index, v, host);
}

WRITE(tsc_aux)
{
	if (!host && !has_tsc_aux(vcpu))
		return 1;
	if (!amd_guest(vcpu) && v >> 32)
		return 1;
	*field(vcpu, row) = (u32)v;
	return 0;
}

WRITE(pat)
{
	for (unsigned i = 0; i < 64; i += 8) {
		u8 type = v >> i;

		if (type > 7 || type == 2 || type == 3)
			return 1;
	}
	return write_plain(vcpu, row, index, v, host);
}

READ(mtrr)
{
	return mtrr_read(vcpu, index, v);
}

WRITE(mtrr)
{
	return mtrr_write(vcpu, index, v);
}

WRITE(misc_enable)
{
	u64 *misc = field(vcpu, row);

	if (!host) {
		if ((*misc ^ v) & MISC_ENABLE_PMU_RO)
			return 1;
		v = (v & ~MISC_ENABLE_EMON) | (*misc & MISC_ENABLE_EMON);
	}
	if ((vcpu->vm->arch.disabled_quirks & QUIRK_MISC_ENABLE_NO_MWAIT) &&
	    ((*misc ^ v) & MISC_ENABLE_MWAIT) && !guest_cpuid_has(vcpu, 1, 0, CPUID_ECX, 0))
		return 1;
	*misc = v;
	return 0;
}

READ(xss)
{
	if (!host && !guest_cpuid_has(vcpu, 0xd, 1, CPUID_EAX, 3))
		return 1;
	return read_plain(vcpu, row, index, v, host);
}

WRITE(xss)
{
	return v || (!host && !guest_cpuid_has(vcpu, 0xd, 1, CPUID_EAX, 3));
}

WRITE(debugctl)
{
	/* Last-branch records and branch stepping are dropped silently, as KVM does without hardware. */
	return host_is_intel() && (v & ~3ull);
}

READ(feat_ctl)
{
	if (!host_is_intel())
		return UNSUPPORTED;
	return read_plain(vcpu, row, index, v, host);
}

WRITE(feat_ctl)
{
	if (!host_is_intel())
		return UNSUPPORTED;
	if ((v & ~FEAT_CTL_LOCKED) || (!host && (*field(vcpu, row) & FEAT_CTL_LOCKED)))
		return 1;
	return write_plain(vcpu, row, index, v, host);
}

WRITE(ucode_rev)
{
	return host ? write_plain(vcpu, row, index, v, host) : 0;
}

/* ---- CPU identity and speculation -------------------------------------------------------- */

bool msr_cpuid_faulting(const struct vcpu *vcpu)
{
	return vcpu->arch.msr.misc_features_enables & 1;
}

READ(platform_info)
{
	if (!host && !vcpu->vm->arch.guest_can_read_platform_info)
		return 1;
	return read_plain(vcpu, row, index, v, host);
}

WRITE(platform_info)
{
	if (!host || (!(v & PLATFORM_INFO_CPUID_FAULT) && msr_cpuid_faulting(vcpu)))
		return 1;
	return write_plain(vcpu, row, index, v, host);
}

WRITE(misc_features)
{
	if ((v & ~1ull) || ((v & 1) && !(vcpu->arch.msr.platform_info & PLATFORM_INFO_CPUID_FAULT)))
		return 1;
	return write_plain(vcpu, row, index, v, host);
}

READ(arch_capabilities)
{
	if (!host && !guest_cpuid_has(vcpu, 7, 0, CPUID_EDX, 29))
		return 1;
	return read_plain(vcpu, row, index, v, host);
}

READ(perf_capabilities)
{
	if (!host && !guest_cpuid_has(vcpu, 1, 0, CPUID_ECX, 15))
		return 1;
	return read_plain(vcpu, row, index, v, host);
}

WRITE(perf_capabilities)
{
	return !host || v; /* no PMU: none of its features */
}

static bool has_spec_ctrl(struct vcpu *vcpu)
{
	return guest_cpuid_has(vcpu, 7, 0, CPUID_EDX, 26) ||
	       guest_cpuid_has(vcpu, 7, 0, CPUID_EDX, 27) ||
	       guest_cpuid_has(vcpu, 7, 0, CPUID_EDX, 31) ||
	       guest_cpuid_has(vcpu, 0x80000008, 0, CPUID_EBX, 14) ||
	       guest_cpuid_has(vcpu, 0x80000008, 0, CPUID_EBX, 15) ||
	       guest_cpuid_has(vcpu, 0x80000008, 0, CPUID_EBX, 24);
}

READ(spec_ctrl)
{
	if (!host && !has_spec_ctrl(vcpu))
		return 1;
	return read_plain(vcpu, row, index, v, host);
}

WRITE(spec_ctrl)
{
	if ((!host && !has_spec_ctrl(vcpu)) || (v & ~7ull)) /* IBRS, STIBP, SSBD */
		return 1;
	return write_plain(vcpu, row, index, v, host);
}

WRITE(pred_cmd)
{
	if (!host && !guest_cpuid_has(vcpu, 7, 0, CPUID_EDX, 26) &&
	    !guest_cpuid_has(vcpu, 0x80000008, 0, CPUID_EBX, 12))
		return 1;
	return (v & ~1ull) != 0;
}

WRITE(flush_cmd)
{
	if (!host && !guest_cpuid_has(vcpu, 7, 0, CPUID_EDX, 28))
		return 1;
	return (v & ~1ull) != 0;
}

READ(virt_spec_ctrl)
{
	if (!host && !guest_cpuid_has(vcpu, 0x80000008, 0, CPUID_EBX, 25))
		return 1;
	return read_plain(vcpu, row, index, v, host);
}

WRITE(virt_spec_ctrl)
{
	if ((!host && !guest_cpuid_has(vcpu, 0x80000008, 0, CPUID_EBX, 25)) || (v & ~4ull))
		return 1;
	return write_plain(vcpu, row, index, v, host);
}

/* ---- AMD ------------------------------------------------------------------------------------ */

WRITE(hwcr)
{
	/* Cache flush filter, IGNNE emulation, TLB cache: settings without effect here. */
	v &= ~0x148ull;
	if (v & ~(HWCR_MC_STATUS_WR | HWCR_TSC_FREQ_SEL))
		return 1;
	return write_plain(vcpu, row, index, v, host);
}

WRITE(vm_cr)
{
	return (v & ~0x1full) != 0;
}

READ(osvw)
{
	if (!guest_cpuid_has(vcpu, 0x80000001, 0, CPUID_ECX, 9))
		return 1;
	return read_plain(vcpu, row, index, v, host);
}

WRITE(osvw)
{
	if (!guest_cpuid_has(vcpu, 0x80000001, 0, CPUID_ECX, 9))
		return 1;
	return write_plain(vcpu, row, index, v, host);
}

READ(de_cfg)
{
	if (!host_is_amd())
		return UNSUPPORTED;
	return read_plain(vcpu, row, index, v, host);
}

WRITE(de_cfg)
{
	if (!host_is_amd())
		return UNSUPPORTED;
	if (v & ~DE_CFG_LFENCE_SERIALIZE)
		return 1;
	return write_plain(vcpu, row, index, v, host);
}

/* ---- machine check --------------------------------------------------------------------------- */

static u32 mce_banks(const struct vcpu *vcpu)
{
	u32 n = vcpu->arch.msr.mcg_cap & 0xff;

	return min(n, (u32)MCE_BANKS_MAX);
}

u64 *mce_banks_get(struct vcpu *vcpu)
{
	struct x86_msrs *m = &vcpu->arch.msr;

	if (!m->mce_banks)
		m->mce_banks = calloc(MCE_BANKS_MAX * 5, sizeof(*m->mce_banks));
	return m->mce_banks;
}

READ(mcg_ctl)
{
	if (!host && !(vcpu->arch.msr.mcg_cap & MCG_CTL_P))
		return 1;
	return read_plain(vcpu, row, index, v, host);
}

WRITE(mcg_ctl)
{
	if (!(vcpu->arch.msr.mcg_cap & MCG_CTL_P) && (v || !host))
		return 1;
	if (v && v != ~0ull)
		return 1;
	return write_plain(vcpu, row, index, v, host);
}

READ(mc_ctl2)
{
	if (index - MSR_MC0_CTL2 >= mce_banks(vcpu))
		return 1;
	*v = vcpu->arch.msr.mce_banks ? vcpu->arch.msr.mce_banks[MCE_CTL2 + index - MSR_MC0_CTL2] : 0;
	return !host && !(vcpu->arch.msr.mcg_cap & MCG_CMCI_P);
}

WRITE(mc_ctl2)
{
	if (index - MSR_MC0_CTL2 >= mce_banks(vcpu))
		return 1;
	if (!(vcpu->arch.msr.mcg_cap & MCG_CMCI_P) && (v || !host))
		return 1;
	if (v & ~(MCI_CTL2_CMCI_EN | MCI_CTL2_THRESHOLD))
		return 1;
	if (!v && !vcpu->arch.msr.mce_banks)
		return 0;
	if (!mce_banks_get(vcpu))
		return 1;
	vcpu->arch.msr.mce_banks[MCE_CTL2 + index - MSR_MC0_CTL2] = v;
	return 0;
}

READ(mc)
{
	u32 i = index - MSR_MC0_CTL;

	if (i >= 4 * mce_banks(vcpu))
		return 1;
	*v = vcpu->arch.msr.mce_banks ? vcpu->arch.msr.mce_banks[i] : 0;
	return 0;
}

WRITE(mc)
{
	u32 i = index - MSR_MC0_CTL;
	bool status_writable = amd_guest(vcpu) && (vcpu->arch.msr.hwcr & HWCR_MC_STATUS_WR);

	if (i >= 4 * mce_banks(vcpu))
		return 1;
	/* CTL: all or nothing, but known guests clear bit 0 (MC1) and bit 10 (MC4). */
	if ((i & 3) == 0 && v && (v | BIT(10) | BIT(0)) != ~0ull)
		return 1;
	if ((i & 3) == 1 && v && !host && !status_writable)
		return 1;
	if (!v && !vcpu->arch.msr.mce_banks)
		return 0;
	if (!mce_banks_get(vcpu))
		return 1;
	vcpu->arch.msr.mce_banks[i] = v;
	return 0;
}

/* ---- time --------------------------------------------------------------------------------------- */

READ(tsc)
{
	*v = guest_tsc(vcpu);
	return 0;
}

WRITE(tsc)
{
	tsc_write(vcpu, v, host);
	return 0;
}

WRITE(tsc_adjust)
{
	if (guest_cpuid_has(vcpu, 7, 0, CPUID_EBX, 1))
		tsc_adjust_write(vcpu, v, host);
	return 0;
}

READ(tsc_deadline)
{
	*v = vcpu->arch.apic ? lapic_get_tscdeadline(vcpu) : 0;
	return 0;
}

WRITE(tsc_deadline)
{
	if (vcpu->arch.apic)
		lapic_set_tscdeadline(vcpu, v);
	return 0;
}

/* ---- local APIC ---------------------------------------------------------------------------------- */

READ(apic_base)
{
	*v = vcpu->arch.apic ? lapic_get_base(vcpu) : vcpu->arch.msr.apic_base;
	return 0;
}

/* The client has the APIC: keep the register, with the rules of the real one. */
static int set_apic_base_alone(struct vcpu *vcpu, u64 v, bool host)
{
	const u64 mode = APIC_BASE_ENABLE | APIC_BASE_X2APIC;
	u64 old = vcpu->arch.msr.apic_base & mode, new = v & mode;
	u64 reserved = ~0ull << vcpu->arch.maxphyaddr | 0x2ff;

	if (!guest_cpuid_has(vcpu, 1, 0, CPUID_ECX, 21))
		reserved |= APIC_BASE_X2APIC;
	if ((v & reserved) || new == APIC_BASE_X2APIC)
		return 1;
	if (!host && ((old == mode && new == APIC_BASE_ENABLE) || (!old && new == mode)))
		return 1;
	vcpu->arch.msr.apic_base = v;
	return 0;
}

WRITE(apic_base)
{
	if (vcpu->arch.apic)
		return lapic_set_base(vcpu, v, host);
	return set_apic_base_alone(vcpu, v, host);
}

READ(x2apic)
{
	return vcpu->arch.apic ? lapic_x2apic_read(vcpu, index, v) : 1;
}

WRITE(x2apic)
{
	return vcpu->arch.apic ? lapic_x2apic_write(vcpu, index, v) : 1;
}

/* ---- KVM's own ------------------------------------------------------------------------------------ */

static bool pv_enabled(const struct vcpu *vcpu, u32 feature)
{
	return !vcpu->arch.pv_enforce || (vcpu->arch.pv_features & BIT_ULL(feature));
}

static bool pv_has(const struct vcpu *vcpu, u32 index)
{
	static const struct {
		u32 index;
		u32 feature;
	} rows[] = {
		{ MSR_KVM_WALL_CLOCK, KVM_FEATURE_CLOCKSOURCE },
		{ MSR_KVM_SYSTEM_TIME, KVM_FEATURE_CLOCKSOURCE },
		{ MSR_KVM_WALL_CLOCK_NEW, KVM_FEATURE_CLOCKSOURCE2 },
		{ MSR_KVM_SYSTEM_TIME_NEW, KVM_FEATURE_CLOCKSOURCE2 },
		{ MSR_KVM_ASYNC_PF_EN, KVM_FEATURE_ASYNC_PF },
		{ MSR_KVM_ASYNC_PF_INT, KVM_FEATURE_ASYNC_PF_INT },
		{ MSR_KVM_ASYNC_PF_ACK, KVM_FEATURE_ASYNC_PF_INT },
		{ MSR_KVM_STEAL_TIME, KVM_FEATURE_STEAL_TIME },
		{ MSR_KVM_PV_EOI_EN, KVM_FEATURE_PV_EOI },
		{ MSR_KVM_POLL_CONTROL, KVM_FEATURE_POLL_CONTROL },
	};

	for (unsigned i = 0; i < ARRAY_SIZE(rows); i++)
		if (rows[i].index == index)
			return pv_enabled(vcpu, rows[i].feature);
	return !vcpu->arch.pv_enforce;
}

READ(pv)
{
	if (!pv_has(vcpu, index))
		return UNSUPPORTED;
	return read_plain(vcpu, row, index, v, host);
}

READ(wall_clock)
{
	if (!pv_has(vcpu, index))
		return UNSUPPORTED;
	*v = vcpu->vm->arch.wall_clock_msr;
	return 0;
}

WRITE(wall_clock)
{
	struct guest_access ga;
	int r;

	if (!pv_has(vcpu, index))
		return UNSUPPORTED;
	vcpu->vm->arch.wall_clock_msr = v;
	if (!v)
		return 0;
	if (host)
		guest_access_begin(vcpu, &ga);
	r = pvclock_write_wall_clock(vcpu, v);
	if (host)
		guest_access_end(vcpu, &ga);
	return r;
}

WRITE(system_time)
{
	if (!pv_has(vcpu, index))
		return UNSUPPORTED;
	*field(vcpu, row) = v;
	vcpu_make_request(vcpu, KVM_REQ_CLOCK_UPDATE);
	return 0;
}

WRITE(steal_time)
{
	if (!pv_has(vcpu, index))
		return UNSUPPORTED;
	if (v & 0x3e) /* the record is 64 bytes aligned; bit 0 enables */
		return 1;
	*field(vcpu, row) = v;
	if (v & KVM_MSR_ENABLED)
		vcpu_make_request(vcpu, KVM_REQ_STEAL_UPDATE);
	return 0;
}

WRITE(pv_eoi)
{
	if (!pv_has(vcpu, index))
		return UNSUPPORTED;
	/* A client's own APIC never looks; the register is there all the same. */
	if (lapic_set_pv_eoi(vcpu, v))
		return 1;
	*field(vcpu, row) = v;
	return 0;
}

/*
 * Asynchronous page faults: the interface, as every guest may use it, and no fault that ever comes by it.
 * The client's pages are waited for by the vCPU's thread, in the engine, where there is no state to leave behind.
 */
static bool is_guest_memory(struct vcpu *vcpu, gpa_t gpa, bool host)
{
	struct guest_access ga;
	bool found;

	if (host)
		guest_access_begin(vcpu, &ga);
	found = memslots_find(vcpu->slots, gpa >> PAGE_SHIFT);
	if (host)
		guest_access_end(vcpu, &ga);
	return found;
}

WRITE(async_pf_en)
{
	if (!pv_has(vcpu, index))
		return UNSUPPORTED;
	if (v & 0x30)
		return 1;
	if ((v & KVM_ASYNC_PF_DELIVERY_AS_INT) && !pv_has(vcpu, MSR_KVM_ASYNC_PF_INT))
		return 1;
	if ((v & KVM_ASYNC_PF_DELIVERY_AS_PF_VMEXIT) && !pv_enabled(vcpu, KVM_FEATURE_ASYNC_PF_VMEXIT))
		return 1;
	if (!vcpu->arch.apic)
		return v ? 1 : 0;
	*field(vcpu, row) = v;
	/* What enables it: both bits, since deliveries as #PF are gone. */
	if ((v & KVM_ASYNC_PF_ENABLED) && (v & KVM_ASYNC_PF_DELIVERY_AS_INT))
		return is_guest_memory(vcpu, v & ~0x3full, host) ? 0 : 1;
	return 0;
}

WRITE(async_pf_int)
{
	if (!pv_has(vcpu, index))
		return UNSUPPORTED;
	if (v >> 8) /* a vector */
		return 1;
	/* KVM refuses 0 as well, from which QEMU with a local APIC of its own (and -cpu host) does not recover. */
	if (!vcpu->arch.apic && (v || !host))
		return 1;
	*field(vcpu, row) = v;
	return 0;
}

READ(async_pf_ack)
{
	*v = 0;
	return pv_has(vcpu, index) ? 0 : UNSUPPORTED;
}

WRITE(async_pf_ack)
{
	return pv_has(vcpu, index) ? 0 : UNSUPPORTED;
}

WRITE(poll_control)
{
	if (!pv_has(vcpu, index))
		return UNSUPPORTED;
	if (v & ~1ull)
		return 1;
	return write_plain(vcpu, row, index, v, host);
}

/* ---- Hyper-V's ----------------------------------------------------------------------------- */

READ(hyperv)
{
	return hyperv_msr_read(vcpu, index, v, host);
}

WRITE(hyperv)
{
	return hyperv_msr_write(vcpu, index, v, host);
}

/* ---- the table ------------------------------------------------------------------------ */

static const struct msr_row msr_rows[] = {
#define MSR(index_, count_, name_, flags_, read__, write__)                     \
	{ .index = index_, .count = count_, .flags = flags_,                    \
	  .read = read_##read__, .write = write_##write__ },
#define MSR_KEPT(index_, name_, flags_, field_, read__, write__)                \
	{ .index = index_, .count = 1, .flags = flags_,                         \
	  .offset = offsetof(struct x86_msrs, field_),                          \
	  .read = read_##read__, .write = write_##write__ },
#include "x86/msrs.def"
#undef MSR
#undef MSR_KEPT
};

static const struct msr_row *msr_find(u32 index)
{
	u32 lo = 0, hi = ARRAY_SIZE(msr_rows);

	while (lo < hi) {
		u32 mid = (lo + hi) / 2;
		const struct msr_row *row = &msr_rows[mid];

		if (index < row->index)
			hi = mid;
		else if (index - row->index >= row->count)
			lo = mid + 1;
		else
			return row;
	}
	return NULL;
}

static bool listed(const struct msr_row *row, u32 list)
{
	return (row->flags & list) && (!(row->flags & I) || host_is_intel()) &&
	       (!(row->flags & A) || host_is_amd());
}

static u32 msr_list(u32 list, u32 *out, u32 max)
{
	u32 n = 0;

	for (unsigned r = 0; r < ARRAY_SIZE(msr_rows); r++) {
		if (!listed(&msr_rows[r], list))
			continue;
		for (u32 i = 0; i < msr_rows[r].count; i++, n++)
			if (n < max)
				out[n] = msr_rows[r].index + i;
	}
	return n;
}

u32 msr_index_list(u32 *out, u32 max)
{
	return msr_list(L, out, max);
}

u32 msr_feature_list(u32 *out, u32 max)
{
	return msr_list(F, out, max);
}

/* A microcode level that makes Linux guests look no further. */
static u64 default_ucode_rev(void)
{
	return host_is_intel() ? 0x100000000ull : 0x01000065;
}

int msr_feature_read(u32 index, u64 *v)
{
	const struct msr_row *row = msr_find(index);

	if (!row || !listed(row, F))
		return 1;
	switch (row->offset) {
	case offsetof(struct x86_msrs, ucode_rev):
		*v = default_ucode_rev();
		return 0;
	case offsetof(struct x86_msrs, arch_capabilities):
		*v = host_arch_capabilities();
		return 0;
	case offsetof(struct x86_msrs, de_cfg):
		*v = DE_CFG_LFENCE_SERIALIZE;
		return 0;
	default:
		*v = 0;
		return 0;
	}
}

void msr_init(struct vcpu *vcpu)
{
	struct x86_msrs *m = &vcpu->arch.msr;

	m->pat = 0x0007040600070406ull;
	m->apic_base = APIC_DEFAULT_BASE | APIC_BASE_ENABLE |
		       (vcpu->id == vcpu->vm->arch.boot_cpu_id ? APIC_BASE_BSP : 0);
	m->misc_enable = BIT_ULL(0) | MISC_ENABLE_PMU_RO; /* fast strings; no BTS, no PEBS */
	m->arch_capabilities = host_arch_capabilities();
	m->ucode_rev = default_ucode_rev();
	m->platform_info = PLATFORM_INFO_CPUID_FAULT;
	m->de_cfg = host_is_amd() ? DE_CFG_LFENCE_SERIALIZE : 0;
	m->osvw_length = 4;
	m->mcg_cap = 32;
	m->kvm_poll_control = 1;
}

/* ---- access ------------------------------------------------------------------------------ */

static int read_any(struct vcpu *vcpu, u32 index, u64 *value, bool host)
{
	const struct msr_row *row = msr_find(index);
	int r = row ? row->read(vcpu, row, index, value, host) : UNSUPPORTED;

	if (r)
		*value = 0;
	if (r == UNSUPPORTED && row && host && listed(row, L))
		return 0;
	return r;
}

static int write_any(struct vcpu *vcpu, u32 index, u64 value, bool host)
{
	const struct msr_row *row = msr_find(index);
	u64 now;
	int r;

	if (xen_is_msr(vcpu->vm, index))
		return xen_write_msr(vcpu, value);
	if (!row)
		return UNSUPPORTED;
	/* Features are fixed once the vCPU has run: only a write of the same is allowed. */
	if (host && vcpu->arch.cpuid_frozen && listed(row, F) && index != MSR_UCODE_REV)
		return read_any(vcpu, index, &now, true) || now != value;
	if ((row->flags & C) && !is_canonical(value))
		return 1;
	r = row->write(vcpu, row, index, value, host);
	if (r == UNSUPPORTED && host && !value && listed(row, L))
		return 0;
	return r;
}

int msr_read(struct vcpu *vcpu, u32 index, u64 *value, bool host_initiated)
{
	return read_any(vcpu, index, value, host_initiated) != 0;
}

int msr_write(struct vcpu *vcpu, u32 index, u64 value, bool host_initiated)
{
	return write_any(vcpu, index, value, host_initiated) != 0;
}

/* ---- the instructions ------------------------------------------------------------------------ */

enum msr_exit { MSR_EXIT_NONE, MSR_EXIT_READ, MSR_EXIT_WRITE, MSR_ANSWERED_READ, MSR_ANSWERED_WRITE };

static bool filtered(struct vcpu *vcpu, u32 index, bool write)
{
	if (index >= MSR_X2APIC_FIRST && index <= MSR_X2APIC_LAST)
		return false;
	return !msr_filter_allows(vcpu->vm, index, write);
}

/* Userspace's answer for this very instruction, if it is here. */
static bool take_answer(struct vcpu *vcpu, u32 index, u32 kind)
{
	bool ours = vcpu->arch.msr_exit_kind == kind && vcpu->arch.msr_exit_index == index &&
		    vcpu->arch.msr_exit_rip == linear_rip(vcpu);

	vcpu->arch.msr_exit_kind = MSR_EXIT_NONE;
	return ours;
}

static enum exec exit_to_userspace(struct vcpu *vcpu, u32 kind, u32 index, u64 data, u32 reason)
{
	struct kvm_run *run = vcpu->run;

	if (!(vcpu->vm->arch.user_space_msr_mask & reason)) {
		trace(kvm_msr, vcpu->id, kind == MSR_EXIT_WRITE, index, data, true);
		return queue_gp(vcpu, 0);
	}
	vcpu->arch.msr_exit_kind = kind;
	vcpu->arch.msr_exit_index = index;
	vcpu->arch.msr_exit_rip = linear_rip(vcpu);
	run->exit_reason = kind == MSR_EXIT_READ ? named_exit(KVM_EXIT_X86_RDMSR) : named_exit(KVM_EXIT_X86_WRMSR);
	run->msr.error = 0;
	for (unsigned i = 0; i < sizeof(run->msr.pad); i++)
		run->msr.pad[i] = 0;
	run->msr.reason = reason;
	run->msr.index = index;
	run->msr.data = data;
	return EXEC_EXIT;
}

static u32 exit_reason(bool filtered_out, int r)
{
	if (filtered_out)
		return KVM_MSR_EXIT_REASON_FILTER;
	return r == UNSUPPORTED ? KVM_MSR_EXIT_REASON_UNKNOWN : KVM_MSR_EXIT_REASON_INVAL;
}

enum exec guest_rdmsr(struct vcpu *vcpu, u32 index, u64 *value)
{
	bool barred;
	int r = 0;

	if (unlikely(vcpu->arch.msr_exit_kind) && take_answer(vcpu, index, MSR_ANSWERED_READ)) {
		if (vcpu->arch.msr_exit_error)
			return queue_gp(vcpu, 0);
		*value = vcpu->arch.msr_exit_value;
		return EXEC_OK;
	}
	barred = filtered(vcpu, index, false);
	if (!barred) {
		r = read_any(vcpu, index, value, false);
		if (likely(!r)) {
			trace(kvm_msr, vcpu->id, false, index, *value);
			return EXEC_OK;
		}
	}
	return exit_to_userspace(vcpu, MSR_EXIT_READ, index, 0, exit_reason(barred, r));
}

enum exec guest_wrmsr(struct vcpu *vcpu, u32 index, u64 value)
{
	bool barred;
	int r = 0;

	if (unlikely(vcpu->arch.msr_exit_kind) && take_answer(vcpu, index, MSR_ANSWERED_WRITE))
		return vcpu->arch.msr_exit_error ? queue_gp(vcpu, 0) : EXEC_OK;
	barred = filtered(vcpu, index, true);
	if (!barred) {
		r = write_any(vcpu, index, value, false);
		if (likely(!r)) {
			trace(kvm_msr, vcpu->id, true, index, value);
			return EXEC_OK;
		}
		/* A store to guest memory on the way was aborted by a kick: nothing has happened. */
		if (unlikely(host_kicked)) {
			host_kicked = false;
			return EXEC_RETRY;
		}
	}
	return exit_to_userspace(vcpu, MSR_EXIT_WRITE, index, value, exit_reason(barred, r));
}

void msr_complete_userspace(struct vcpu *vcpu)
{
	struct vcpu_arch *a = &vcpu->arch;

	if (likely(!a->msr_exit_kind))
		return;
	if (a->msr_exit_rip != linear_rip(vcpu)) {
		a->msr_exit_kind = MSR_EXIT_NONE;
		return;
	}
	if (a->msr_exit_kind == MSR_EXIT_READ || a->msr_exit_kind == MSR_EXIT_WRITE) {
		a->msr_exit_error = vcpu->run->msr.error != 0;
		a->msr_exit_value = vcpu->run->msr.data;
		a->msr_exit_kind = a->msr_exit_kind == MSR_EXIT_READ ? MSR_ANSWERED_READ :
								       MSR_ANSWERED_WRITE;
	}
}

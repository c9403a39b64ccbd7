/* SPDX-License-Identifier: MIT */
/*
 * MOV to CR0, CR3, CR4, CR8, XSETBV and EFER.
 *
 *  1. A register changes only after every check has passed.
 *  2. EFER.LMA follows CR0.PG and EFER.LME here and in sregs_set(), nowhere else.
 *  3. The TLB knows global pages, and address spaces by PCID: whatever else changes the
 *     meaning of a linear address or of a permission empties it.
 */
#include "host/host.h"
#include "x86/cr.h"
#include "x86/irqchip.h"
#include "x86/mmu.h"

#define CR0_KNOWN                                                               \
	(X86_CR0_PE | X86_CR0_MP | X86_CR0_EM | X86_CR0_TS | X86_CR0_ET |       \
	 X86_CR0_NE | X86_CR0_WP | X86_CR0_AM | X86_CR0_NW | X86_CR0_CD | X86_CR0_PG)
#define CR0_FLUSH (X86_CR0_PG | X86_CR0_PE | X86_CR0_WP)
#define CR0_PDPTR (X86_CR0_PG | X86_CR0_CD | X86_CR0_NW)
#define CR4_FLUSH                                                               \
	(X86_CR4_PSE | X86_CR4_PAE | X86_CR4_PGE | X86_CR4_PCIDE | X86_CR4_SMEP | X86_CR4_SMAP)
#define CR4_PDPTR (X86_CR4_PSE | X86_CR4_PAE | X86_CR4_PGE | X86_CR4_SMEP)
/* Every bit some host may let us offer: no LA57, protection keys, VMX or SMX. */
#define CR4_BASE                                                                \
	(X86_CR4_VME | X86_CR4_PVI | X86_CR4_TSD | X86_CR4_DE | X86_CR4_PSE |   \
	 X86_CR4_PAE | X86_CR4_MCE | X86_CR4_PGE | X86_CR4_PCE |                \
	 X86_CR4_OSFXSR | X86_CR4_OSXMMEXCPT)
#define CR4_KNOWN                                                               \
	(CR4_BASE | X86_CR4_UMIP | X86_CR4_FSGSBASE | X86_CR4_PCIDE |           \
	 X86_CR4_OSXSAVE | X86_CR4_SMEP | X86_CR4_SMAP)

#define CR3_NOFLUSH BIT_ULL(63)

#define EFER_FFXSR BIT_ULL(14)
#define EFER_AUTOIBRS BIT_ULL(21)
#define EFER_KNOWN (EFER_SCE | EFER_LME | EFER_LMA | EFER_NX | EFER_FFXSR | EFER_AUTOIBRS)

u64 cr4_supported_bits(void)
{
	u32 eax, ebx7, ecx7, ecx1, ebx, edx;
	u64 cr4 = CR4_BASE;

	host_cpuid(1, 0, &eax, &ebx, &ecx1, &edx);
	host_cpuid(7, 0, &eax, &ebx7, &ecx7, &edx);
	if (ecx1 & BIT(17))
		cr4 |= X86_CR4_PCIDE;
	if (ecx1 & BIT(26))
		cr4 |= X86_CR4_OSXSAVE;
	if (ebx7 & BIT(0))
		cr4 |= X86_CR4_FSGSBASE;
	if (ebx7 & BIT(7))
		cr4 |= X86_CR4_SMEP;
	if (ebx7 & BIT(20))
		cr4 |= X86_CR4_SMAP;
	if (ecx7 & BIT(2))
		cr4 |= X86_CR4_UMIP;
	return cr4;
}

bool cr0_valid(u64 cr0)
{
	if (cr0 >> 32)
		return false;
	if ((cr0 & X86_CR0_NW) && !(cr0 & X86_CR0_CD))
		return false;
	return !(cr0 & X86_CR0_PG) || (cr0 & X86_CR0_PE);
}

bool cr4_valid(const struct vcpu *vcpu, u64 cr4)
{
	return !(cr4 & ~(u64)CR4_KNOWN) && !(cr4 & vcpu->arch.cr4_reserved_bits);
}

bool cr3_valid(const struct vcpu *vcpu, u64 cr3)
{
	u32 bits = vcpu->arch.maxphyaddr;

	return bits >= 64 || !(cr3 >> (bits ? bits : 36));
}

/* Reserved everywhere, whoever writes. */
static bool efer_known(u64 efer)
{
	return !(efer & ~(u64)EFER_KNOWN);
}

bool efer_valid(struct vcpu *vcpu, u64 efer)
{
	if (!efer_known(efer))
		return false;
	if ((efer & EFER_AUTOIBRS) && !guest_cpuid_has(vcpu, 0x80000021, 0, CPUID_EAX, 8))
		return false;
	if ((efer & EFER_FFXSR) && !guest_cpuid_has(vcpu, 0x80000001, 0, CPUID_EDX, 25))
		return false;
	if ((efer & (EFER_LME | EFER_LMA)) && !guest_cpuid_has(vcpu, 0x80000001, 0, CPUID_EDX, 29))
		return false;
	return !(efer & EFER_NX) || guest_cpuid_has(vcpu, 0x80000001, 0, CPUID_EDX, 20);
}

bool xcr0_valid(const struct vcpu *vcpu, u64 xcr0)
{
	if (!(xcr0 & XFEATURE_X87))
		return false;
	if ((xcr0 & XFEATURE_AVX) && !(xcr0 & XFEATURE_SSE))
		return false;
	return !(xcr0 & ~(vcpu->arch.guest_supported_xcr0 | XFEATURE_X87));
}

/* PDPTRs for a guest instruction. A kick may abort the read: then the instruction starts over. */
static enum exec load_pdptrs(struct vcpu *vcpu, u64 cr3)
{
	if (mmu_load_pdptrs(vcpu, cr3)) {
		vcpu->arch.pdptrs_from_userspace = false;
		return EXEC_OK;
	}
	if (host_kicked) {
		host_kicked = false;
		return EXEC_RETRY;
	}
	return queue_gp(vcpu, 0);
}

/* Turning paging on with EFER.LME set enters long mode; not from a 64-bit or non-PAE set-up. */
static bool long_mode_entry_ok(const struct vcpu *vcpu)
{
	return (vcpu->arch.cr4 & X86_CR4_PAE) && !(vcpu->arch.seg[SEG_CS].ar & AR_L);
}

enum exec set_cr0(struct vcpu *vcpu, u64 value)
{
	struct vcpu_arch *a = &vcpu->arch;
	u64 changed;

	if (!cr0_valid(value))
		return queue_gp(vcpu, 0);
	value = (value & CR0_KNOWN) | X86_CR0_ET;
	changed = value ^ a->cr0;

	if (value & X86_CR0_PG) {
		if (a->efer & EFER_LME) {
			if ((changed & X86_CR0_PG) && !long_mode_entry_ok(vcpu))
				return queue_gp(vcpu, 0);
		} else if ((a->cr4 & X86_CR4_PAE) && (changed & CR0_PDPTR)) {
			enum exec r = load_pdptrs(vcpu, a->cr3);

			if (r != EXEC_OK)
				return r;
		}
	} else if (in_64bit_mode(vcpu) || (a->cr4 & X86_CR4_PCIDE)) {
		return queue_gp(vcpu, 0);
	}

	a->cr0 = value;
	if ((value & X86_CR0_PG) && (a->efer & EFER_LME))
		a->efer |= EFER_LMA;
	else
		a->efer &= ~(u64)EFER_LMA;
	vcpu_update_mode(vcpu);
	if (changed & CR0_FLUSH)
		mmu_flush_all(vcpu);
	return EXEC_OK;
}

enum exec set_cr3(struct vcpu *vcpu, u64 value)
{
	struct vcpu_arch *a = &vcpu->arch;
	bool keep = false;

	if (a->cr4 & X86_CR4_PCIDE) {
		keep = value & CR3_NOFLUSH;
		value &= ~CR3_NOFLUSH;
	}
	if (!cr3_valid(vcpu, value))
		return queue_gp(vcpu, 0);
	if (pae_paging(vcpu)) {
		enum exec r = load_pdptrs(vcpu, value);

		if (r != EXEC_OK)
			return r;
	}
	if (!keep || value != a->cr3)
		mmu_load_space(vcpu, value, keep);
	a->cr3 = value;
	return EXEC_OK;
}

enum exec set_cr4(struct vcpu *vcpu, u64 value)
{
	struct vcpu_arch *a = &vcpu->arch;
	u64 changed = value ^ a->cr4;

	if (!cr4_valid(vcpu, value))
		return queue_gp(vcpu, 0);
	if (a->efer & EFER_LMA) {
		if (!(value & X86_CR4_PAE))
			return queue_gp(vcpu, 0);
	} else if ((a->cr0 & X86_CR0_PG) && (value & X86_CR4_PAE) && (changed & CR4_PDPTR)) {
		enum exec r = load_pdptrs(vcpu, a->cr3);

		if (r != EXEC_OK)
			return r;
	}
	if ((value & changed & X86_CR4_PCIDE) && ((a->cr3 & CR3_PCID_MASK) || !(a->efer & EFER_LMA)))
		return queue_gp(vcpu, 0);

	a->cr4 = value;
	vcpu_update_mode(vcpu);
	if (changed & CR4_FLUSH)
		mmu_flush_all(vcpu);
	return EXEC_OK;
}

bool cr8_write(struct vcpu *vcpu, u64 value)
{
	if (value & ~0xfull)
		return false;
	if (vcpu->arch.apic)
		lapic_set_tpr(vcpu, value);
	else
		vcpu->arch.cr8 = value;
	return true;
}

enum exec set_cr8(struct vcpu *vcpu, u64 value)
{
	return cr8_write(vcpu, value) ? EXEC_OK : queue_gp(vcpu, 0);
}

u64 get_cr8(struct vcpu *vcpu)
{
	return vcpu->arch.apic ? lapic_get_tpr(vcpu) : vcpu->arch.cr8;
}

enum exec set_xcr(struct vcpu *vcpu, u32 index, u64 value)
{
	if (vcpu->arch.cpl || index || !xcr0_valid(vcpu, value))
		return queue_gp(vcpu, 0);
	vcpu->arch.xcr0 = value;
	vcpu_update_mode(vcpu);
	return EXEC_OK;
}

int set_efer(struct vcpu *vcpu, u64 value, bool host_initiated)
{
	struct vcpu_arch *a = &vcpu->arch;
	u64 old = a->efer;

	if (!efer_known(value))
		return 1;
	if (!host_initiated) {
		if (!efer_valid(vcpu, value))
			return 1;
		if ((a->cr0 & X86_CR0_PG) && ((old ^ value) & EFER_LME))
			return 1;
	}
	a->efer = (value & ~(u64)EFER_LMA) | (old & EFER_LMA);
	vcpu_update_mode(vcpu);
	if ((old ^ a->efer) & EFER_NX)
		mmu_flush_all(vcpu);
	return 0;
}

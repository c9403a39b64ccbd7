/* SPDX-License-Identifier: MIT */
/*
 * Paravirtual EOI: one byte in guest memory that says "you need not tell me".
 *
 * After an injection, if exactly this vector is in service and nothing waits
 * behind it, bit 0 of the byte is set; the guest's EOI then clears the bit
 * instead of writing the APIC. Before the next look at the APIC the bit is
 * taken back: still set means no EOI yet, cleared means one is owed.
 *
 * All on the vCPU's thread, in guest mode; the byte has no other writer.
 */
#include "x86/hyperv.h"
#include "x86/irqchip/irqchip_internal.h"
#include "x86/irqchip/lapic.h"

#define PV_EOI_ENABLED 1ull	/* in the MSR */
#define PV_EOI_FLAG 1		/* in memory */

static gpa_t pv_eoi_addr(const struct vcpu *vcpu)
{
	return vcpu->arch.msr.kvm_pv_eoi & ~PV_EOI_ENABLED;
}

int lapic_set_pv_eoi(struct vcpu *vcpu, u64 msr)
{
	if (msr & 2)
		return 1; /* the byte's word must be aligned to 4 */
	/* Before the old byte is forgotten: the guest may have counted on it already. (Outside guest mode nothing is owed.) */
	if (vcpu->slots)
		lapic_sync_pv_eoi_from_guest(vcpu);
	vcpu->arch.msr.kvm_pv_eoi = msr;
	if (vcpu->arch.apic && !(msr & PV_EOI_ENABLED))
		vcpu->arch.apic->pv_eoi_pending = false;
	return 0;
}

void lapic_sync_pv_eoi_from_guest(struct vcpu *vcpu)
{
	struct lapic *a = vcpu->arch.apic;
	u8 flag;

	if (!a || !a->pv_eoi_pending)
		return;
	if (!(vcpu->arch.msr.kvm_pv_eoi & PV_EOI_ENABLED)) {
		a->pv_eoi_pending = false;
		return;
	}
	a->pv_eoi_pending = false;
	/* A byte that cannot be read any more counts as an EOI, as in KVM. */
	if (!vcpu_read_guest(vcpu, pv_eoi_addr(vcpu), &flag, 1) && (flag & PV_EOI_FLAG)) {
		flag = 0;
		if (!vcpu_write_guest(vcpu, pv_eoi_addr(vcpu), &flag, 1))
			return;
	}
	apic_eoi(a);
}

/* EOI of the vector in service changes nothing but ISR. */
static bool eoi_is_silent(struct lapic *a)
{
	int isr = apic_highest_vector(a, APIC_ISR);
	unsigned nr = 0;

	if (isr < 0 || apic_highest_vector(a, APIC_IRR) >= 0 || apic_eoi_is_wanted(a, isr) ||
	    hyperv_synic_has_vector(a->vcpu, isr))
		return false;
	for (unsigned i = 0; i < 8; i++)
		nr += __builtin_popcount(apic_reg(a, APIC_ISR + i * 16));
	return nr == 1;
}

void lapic_sync_pv_eoi_to_guest(struct vcpu *vcpu)
{
	struct lapic *a = vcpu->arch.apic;
	u8 flag = PV_EOI_FLAG;

	if (!a || !(vcpu->arch.msr.kvm_pv_eoi & PV_EOI_ENABLED) || !eoi_is_silent(a))
		return;
	if (!vcpu_write_guest(vcpu, pv_eoi_addr(vcpu), &flag, 1))
		a->pv_eoi_pending = true;
}

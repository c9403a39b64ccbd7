/* SPDX-License-Identifier: MIT */
/* Hyper-V's CPUID leaves: what is offered, what the client chose. */
#include <string.h>

#include "x86/hyperv/hyperv_internal.h"

/* A 12 byte signature in EBX, ECX, EDX. */
static void signature(struct kvm_cpuid_entry2 *e, u32 max_leaf)
{
	static const char text[12] = "Linux KVM Hv";

	e->eax = max_leaf;
	memcpy(&e->ebx, text, 4);
	memcpy(&e->ecx, text + 4, 4);
	memcpy(&e->edx, text + 8, 4);
}

/* The release whose interface this is: Server 2016. */
static void version(struct kvm_cpuid_entry2 *e)
{
	e->eax = 0x3839;
	e->ebx = 0xa0000;
}

static void features(struct kvm_cpuid_entry2 *e, bool apic)
{
	e->eax = HV_MSR_VP_RUNTIME | HV_MSR_TIME_REF_COUNT | HV_MSR_SYNIC | HV_MSR_SYNTIMER |
		 HV_MSR_APIC_ACCESS | HV_MSR_HYPERCALL | HV_MSR_VP_INDEX | HV_MSR_RESET |
		 HV_MSR_REFERENCE_TSC | HV_ACCESS_FREQUENCY_MSRS | HV_ACCESS_REENLIGHTENMENT |
		 HV_ACCESS_TSC_INVARIANT;
	e->ebx = HV_POST_MESSAGES | HV_SIGNAL_EVENTS | HV_EXTENDED_HYPERCALLS | HV_DEBUGGING;
	e->edx = HV_HYPERCALL_XMM_INPUT | HV_FREQUENCY_MSRS | HV_GUEST_CRASH_MSRS |
		 HV_GUEST_DEBUGGING | HV_DEBUG_MSRS | HV_EXT_GVA_RANGES_FLUSH;
	if (apic)
		e->edx |= HV_STIMER_DIRECT_MODE;
}

static void enlightenments(struct kvm_cpuid_entry2 *e, bool apic)
{
	e->eax = HV_REMOTE_TLB_FLUSH_RECOMMENDED | HV_APIC_ACCESS_RECOMMENDED |
		 HV_RELAXED_TIMING_RECOMMENDED | HV_EX_PROCESSOR_MASKS_RECOMMENDED |
		 HV_DEPRECATING_AEOI_RECOMMENDED;
	if (apic)
		e->eax |= HV_CLUSTER_IPI_RECOMMENDED;
	if (!host_smt_possible())
		e->eax |= HV_NO_NONARCH_CORESHARING;
	e->ebx = 0xfff;	/* turns of a spin lock before NOTIFY_LONG_SPIN_WAIT */
}

static void limits(struct kvm_cpuid_entry2 *e)
{
	e->eax = KVM_ABI_MAX_VCPUS;
	e->ebx = 64;
}

/* There is no nested virtualization; KVM has these bits whether or not there is. */
static void nested(struct kvm_cpuid_entry2 *e)
{
	e->eax = HV_NESTED_DIRECT_FLUSH | HV_NESTED_MSR_BITMAP;
	e->ebx = HV_NESTED_EVMCS1_PERF_GLOBAL_CTRL;
}

static void leaf_fill(struct kvm_cpuid_entry2 *e, bool apic)
{
	switch (e->function) {
	case HV_CPUID_VENDOR: signature(e, HV_CPUID_SYNDBG_CAPS); break;
	case HV_CPUID_INTERFACE: e->eax = HV_INTERFACE_SIGNATURE; break;
	case HV_CPUID_VERSION: version(e); break;
	case HV_CPUID_FEATURES: features(e, apic); break;
	case HV_CPUID_ENLIGHTENMENTS: enlightenments(e, apic); break;
	case HV_CPUID_LIMITS: limits(e); break;
	case HV_CPUID_NESTED: nested(e); break;
	case HV_CPUID_SYNDBG_VENDOR: signature(e, 0); break;
	case HV_CPUID_SYNDBG_INTERFACE: e->eax = 0x31235356; break; /* VS#1 */
	case HV_CPUID_SYNDBG_CAPS: e->eax = HV_SYNDBG_KERNEL_DEBUGGING; break;
	}
}

void hyperv_cpuid_supported(struct vcpu *vcpu, struct kvm_cpuid_entry2 entries[HYPERV_CPUID_ENTRIES])
{
	static const u32 leaves[HYPERV_CPUID_ENTRIES] = {
		HV_CPUID_VENDOR, HV_CPUID_INTERFACE, HV_CPUID_VERSION, HV_CPUID_FEATURES,
		HV_CPUID_ENLIGHTENMENTS, HV_CPUID_LIMITS, HV_CPUID_SYNDBG_VENDOR,
		HV_CPUID_SYNDBG_INTERFACE, HV_CPUID_SYNDBG_CAPS, HV_CPUID_NESTED,
	};

	memset(entries, 0, HYPERV_CPUID_ENTRIES * sizeof(*entries));
	for (unsigned i = 0; i < HYPERV_CPUID_ENTRIES; i++) {
		entries[i].function = leaves[i];
		leaf_fill(&entries[i], !vcpu || vcpu->arch.apic);
	}
}

/* ---- the client's choice ------------------------------------------------------------- */

int hyperv_prepare_cpuid(struct vcpu *vcpu, const struct kvm_cpuid_entry2 *entries, u32 nent)
{
	for (u32 i = 0; i < nent; i++)
		if (entries[i].function == HV_CPUID_INTERFACE && entries[i].eax == HV_INTERFACE_SIGNATURE)
			return hv_init(vcpu);
	return 0;
}

static struct kvm_cpuid_entry2 leaf(struct vcpu *vcpu, u32 function)
{
	const struct kvm_cpuid_entry2 *e = cpuid_find(vcpu, function, 0);

	return e ? *e : (struct kvm_cpuid_entry2){ 0 };
}

void hyperv_cpuid_updated(struct vcpu *vcpu)
{
	struct hv_vcpu *hv = hv_vcpu(vcpu);
	struct kvm_cpuid_entry2 e;

	if (!hv)
		return;
	memset(&hv->cpuid, 0, sizeof(hv->cpuid));
	hv->enabled = leaf(vcpu, HV_CPUID_INTERFACE).eax == HV_INTERFACE_SIGNATURE;
	if (!hv->enabled)
		return;
	e = leaf(vcpu, HV_CPUID_FEATURES);
	hv->cpuid.features_eax = e.eax;
	hv->cpuid.features_ebx = e.ebx;
	hv->cpuid.features_edx = e.edx;
	e = leaf(vcpu, HV_CPUID_ENLIGHTENMENTS);
	hv->cpuid.enlightenments_eax = e.eax;
	hv->cpuid.enlightenments_ebx = e.ebx;
	hv->cpuid.syndbg_eax = leaf(vcpu, HV_CPUID_SYNDBG_CAPS).eax;
}

bool hyperv_invtsc_suppressed(const struct vcpu *vcpu)
{
	const struct hv_vcpu *hv = hv_vcpu(vcpu);

	return hv && (hv->cpuid.features_eax & HV_ACCESS_TSC_INVARIANT) &&
	       !(atomic_load(&hv_vm(vcpu->vm)->invtsc_control) & HV_INVARIANT_TSC_EXPOSED);
}

/* SPDX-License-Identifier: MIT */
/*
 * vCPU ioctls of variable size: arg is the client's pointer, hostile and possibly
 * edited meanwhile. Counts are read once; everything is copied before it is looked at.
 */
#include <errno.h>
#include <stdlib.h>
#include <string.h>

#include "api/ioctl.h"
#include "host/access.h"
#include "host/host.h"
#include "x86/hyperv.h"
#include "x86/state.h"

#define MSRS_MAX 256		/* KVM_GET/SET_MSRS take fewer than this */
#define CPUID_ENTRIES_MAX 256
#define XSAVE2_SIZE sizeof(struct kvm_xsave)

/* ---- MSRs ------------------------------------------------------------------------ */

struct msr_args {
	u32 nmsrs;
	struct kvm_msr_entry entries[MSRS_MAX];
};

static long msrs_copy_in(struct msr_args *args, const struct kvm_msrs *user)
{
	if (!host_copy_user(&args->nmsrs, user_field(user, nmsrs), sizeof(args->nmsrs)))
		return -EFAULT;
	if (args->nmsrs >= MSRS_MAX)
		return -E2BIG;
	if (!host_copy_user(args->entries, user_field(user, entries), args->nmsrs * sizeof(args->entries[0])))
		return -EFAULT;
	return 0;
}

/* Both stop at the first MSR that does not exist or refuses, and return how many were done. */
long do_kvm_get_msrs(struct vcpu *vcpu, void *arg)
{
	struct kvm_msrs *user = arg;
	struct guest_access ga;
	struct msr_args args;
	long r = msrs_copy_in(&args, user);
	u32 i;

	if (r)
		return r;
	guest_access_begin(vcpu, &ga);
	for (i = 0; i < args.nmsrs; i++) {
		u64 data = 0;

		if (msr_read(vcpu, args.entries[i].index, &data, true))
			break;
		args.entries[i].data = data;
	}
	guest_access_end(vcpu, &ga);
	if (!host_copy_user(user_field(user, entries), args.entries, args.nmsrs * sizeof(args.entries[0])))
		return -EFAULT;
	return i;
}

long do_kvm_set_msrs(struct vcpu *vcpu, void *arg)
{
	struct guest_access ga;
	struct msr_args args;
	long r = msrs_copy_in(&args, arg);
	u32 i;

	if (r)
		return r;
	guest_access_begin(vcpu, &ga);
	for (i = 0; i < args.nmsrs; i++) {
		int refused;

		do {
			refused = msr_write(vcpu, args.entries[i].index, args.entries[i].data, true);
		} while (refused && guest_access_kicked(vcpu, &ga));
		if (refused)
			break;
	}
	guest_access_end(vcpu, &ga);
	return i;
}

/* ---- CPUID ----------------------------------------------------------------------- */

/*
 * Bits that follow the vCPU's state whatever the client wrote: OSXSAVE, APIC, MONITOR,
 * OSPKE, the XSAVE sizes, PV_UNHALT. They do not count when a repeated KVM_SET_CPUID2 is compared.
 */
struct cpuid_dynamic {
	u32 function, index;
	u32 eax, ebx, ecx, edx;
};
static const struct cpuid_dynamic dynamic[] = {
	{ 0x1, 0, 0, 0, BIT(27) | BIT(3), BIT(9) },
	{ 0x7, 0, 0, 0, BIT(4), 0 },
	{ 0xd, 0, 0, ~0u, 0, 0 },
	{ 0xd, 1, 0, ~0u, 0, 0 },
	{ 0x40000001, 0, BIT(7), 0, 0, 0 },
};

static const struct cpuid_dynamic *cpuid_dynamic_of(const struct kvm_cpuid_entry2 *e)
{
	for (unsigned i = 0; i < ARRAY_SIZE(dynamic); i++)
		if (e->function == dynamic[i].function && e->index == dynamic[i].index)
			return &dynamic[i];
	return NULL;
}

static bool entry_equal(const struct kvm_cpuid_entry2 *a, const struct kvm_cpuid_entry2 *b)
{
	static const struct cpuid_dynamic none;
	const struct cpuid_dynamic *d = cpuid_dynamic_of(a);

	if (!d)
		d = &none;
	return a->function == b->function && a->index == b->index && a->flags == b->flags &&
	       !((a->eax ^ b->eax) & ~d->eax) && !((a->ebx ^ b->ebx) & ~d->ebx) &&
	       !((a->ecx ^ b->ecx) & ~d->ecx) && !((a->edx ^ b->edx) & ~d->edx);
}

static bool cpuid_equal(const struct vcpu *vcpu, const struct kvm_cpuid_entry2 *e, u32 nent)
{
	if (nent != vcpu->arch.cpuid_nent)
		return false;
	for (u32 i = 0; i < nent; i++)
		if (!entry_equal(&e[i], &vcpu->arch.cpuid_entries[i]))
			return false;
	return true;
}

#define XFEATURE_TILE_DATA BIT(18)

static long cpuid_check(const struct kvm_cpuid_entry2 *e, u32 nent)
{
	for (u32 i = 0; i < nent; i++) {
		u8 va_bits = e[i].eax >> 8;

		if (e[i].function == 0x80000008 && va_bits != 48 && va_bits != 57 && va_bits)
			return -EINVAL;
		/* Features that need the host's permission first; we have none of them. */
		if (e[i].function == 0xd && !e[i].index && (e[i].eax & XFEATURE_TILE_DATA))
			return -EPERM;
	}
	return 0;
}

/* Takes entries over, also on failure. */
static long cpuid_set(struct vcpu *vcpu, struct kvm_cpuid_entry2 *entries, u32 nent)
{
	struct vcpu_arch *a = &vcpu->arch;
	long r;

	/* The model is fixed once the vCPU has run; setting the same again is how QEMU replugs vCPUs. */
	if (a->cpuid_frozen) {
		r = cpuid_equal(vcpu, entries, nent) ? 0 : -EINVAL;
		free(entries);
		return r;
	}
	r = cpuid_check(entries, nent);
	if (!r)
		r = hyperv_prepare_cpuid(vcpu, entries, nent);
	if (r) {
		free(entries);
		return r;
	}
	free(a->cpuid_entries);
	a->cpuid_entries = entries;
	a->cpuid_nent = nent;
	cpuid_updated(vcpu);
	state_changed(vcpu);
	return 0;
}

long do_kvm_set_cpuid2(struct vcpu *vcpu, void *arg)
{
	const struct kvm_cpuid2 *user = arg;
	struct kvm_cpuid_entry2 *entries;
	u32 nent;

	if (!host_copy_user(&nent, user_field(user, nent), sizeof(nent)))
		return -EFAULT;
	if (nent > CPUID_ENTRIES_MAX)
		return -E2BIG;
	entries = calloc(nent ? nent : 1, sizeof(*entries));
	if (!entries)
		return -ENOMEM;
	if (!host_copy_user(entries, user_field(user, entries), nent * sizeof(*entries))) {
		free(entries);
		return -EFAULT;
	}
	return cpuid_set(vcpu, entries, nent);
}

/* The first API's entries have neither index nor flags. */
long do_kvm_set_cpuid(struct vcpu *vcpu, void *arg)
{
	const struct kvm_cpuid *user = arg;
	struct kvm_cpuid_entry2 *entries;
	u32 nent;

	if (!host_copy_user(&nent, user_field(user, nent), sizeof(nent)))
		return -EFAULT;
	if (nent > CPUID_ENTRIES_MAX)
		return -E2BIG;
	entries = calloc(nent ? nent : 1, sizeof(*entries));
	if (!entries)
		return -ENOMEM;
	for (u32 i = 0; i < nent; i++) {
		struct kvm_cpuid_entry old;

		if (!host_copy_user(&old, user_field(user, entries[i]), sizeof(old))) {
			free(entries);
			return -EFAULT;
		}
		entries[i] = (struct kvm_cpuid_entry2){
			.function = old.function, .eax = old.eax, .ebx = old.ebx,
			.ecx = old.ecx, .edx = old.edx,
		};
	}
	return cpuid_set(vcpu, entries, nent);
}

/* An entry as the guest would see it now. */
static struct kvm_cpuid_entry2 cpuid_current(struct vcpu *vcpu, const struct kvm_cpuid_entry2 *e)
{
	const struct cpuid_dynamic *d = cpuid_dynamic_of(e);
	struct kvm_cpuid_entry2 now = *e;
	u32 eax = e->function, ebx = 0, ecx = e->index, edx = 0;

	if (!d)
		return now;
	guest_cpuid(vcpu, &eax, &ebx, &ecx, &edx);
	now.eax = (now.eax & ~d->eax) | (eax & d->eax);
	now.ebx = (now.ebx & ~d->ebx) | (ebx & d->ebx);
	now.ecx = (now.ecx & ~d->ecx) | (ecx & d->ecx);
	now.edx = (now.edx & ~d->edx) | (edx & d->edx);
	return now;
}

long do_kvm_get_cpuid2(struct vcpu *vcpu, void *arg)
{
	struct kvm_cpuid2 *user = arg;
	struct { __u32 nent, padding; } head;

	if (!host_copy_user(&head, user, sizeof(head)))
		return -EFAULT;
	if (head.nent < vcpu->arch.cpuid_nent)
		return -E2BIG;
	head.nent = vcpu->arch.cpuid_nent;
	for (u32 i = 0; i < head.nent; i++) {
		struct kvm_cpuid_entry2 now = cpuid_current(vcpu, &vcpu->arch.cpuid_entries[i]);

		if (!host_copy_user(user_field(user, entries[i]), &now, sizeof(now)))
			return -EFAULT;
	}
	return host_copy(user, &head, sizeof(head)) ? -EFAULT : 0;
}

/* What Hyper-V's leaves can offer: a list of fixed length. */
static long get_hv_cpuid(struct vcpu *vcpu, struct kvm_cpuid2 *user)
{
	struct kvm_cpuid_entry2 entries[HYPERV_CPUID_ENTRIES];
	struct { __u32 nent, padding; } head;

	if (!host_copy_user(&head, user, sizeof(head)))
		return -EFAULT;
	if (head.nent < HYPERV_CPUID_ENTRIES)
		return -E2BIG;
	head.nent = HYPERV_CPUID_ENTRIES;
	hyperv_cpuid_supported(vcpu, entries);
	if (!host_copy_user(user_field(user, entries), entries, sizeof(entries)) ||
	    !host_copy_user(user, &head, sizeof(head)))
		return -EFAULT;
	return 0;
}

long do_kvm_get_supported_hv_cpuid(struct vcpu *vcpu, void *arg)
{
	return get_hv_cpuid(vcpu, arg);
}

long do_kvm_sys_get_supported_hv_cpuid(void *arg)
{
	return get_hv_cpuid(NULL, arg);
}

/* ---- XSAVE2, signal mask --------------------------------------------------------------- */

/* As large as KVM_CAP_XSAVE2 says. */
long do_kvm_get_xsave2(struct vcpu *vcpu, void *arg)
{
	_Alignas(64) u8 area[XSAVE2_SIZE];

	fpu_to_xsave(vcpu, area, sizeof(area));
	return host_copy(arg, area, sizeof(area)) ? -EFAULT : 0;
}

#define SIGNAL_BIT(sig) BIT_ULL((sig) - 1)

long do_kvm_set_signal_mask(struct vcpu *vcpu, void *arg)
{
	const struct kvm_signal_mask *user = arg;
	u32 len;
	u64 mask;

	if (!arg) {
		vcpu->sigset_active = false;
		vcpu->sigset = 0;
		return 0;
	}
	if (!host_copy_user(&len, user_field(user, len), sizeof(len)))
		return -EFAULT;
	if (len != sizeof(mask))
		return -EINVAL;
	if (!host_copy_user(&mask, user_field(user, sigset), sizeof(mask)))
		return -EFAULT;
	mask &= ~(SIGNAL_BIT(SIGKILL) | SIGNAL_BIT(SIGSTOP));
	host_signal_prepare_mask(mask);
	vcpu->sigset = mask;
	vcpu->sigset_active = true;
	return 0;
}

/* SPDX-License-Identifier: MIT */
/*
 * vCPU ioctls of fixed size: thin, the state itself is in x86/. Every handler runs with
 * vcpu->mutex held and sees a private copy of its argument (api/ioctl.h).
 */
#include <errno.h>
#include <string.h>

#include "api/ioctl.h"
#include "host/access.h"
#include "host/host.h"
#include "kvm/guest_memfd.h"
#include "x86/cr.h"
#include "x86/hyperv.h"
#include "x86/irqchip.h"
#include "x86/mmu.h"
#include "x86/msr.h"
#include "x86/pvclock.h"
#include "x86/smm.h"
#include "x86/state.h"
#include "x86/tsc.h"
#include "x86/xen.h"

/* ---- registers -------------------------------------------------------------- */

long do_kvm_get_regs(struct vcpu *vcpu, void *arg)
{
	regs_get(vcpu, arg);
	return 0;
}

long do_kvm_set_regs(struct vcpu *vcpu, void *arg)
{
	regs_set(vcpu, arg);
	return 0;
}

long do_kvm_get_sregs(struct vcpu *vcpu, void *arg)
{
	sregs_get(vcpu, arg);
	return 0;
}

long do_kvm_set_sregs(struct vcpu *vcpu, void *arg)
{
	return sregs_set(vcpu, arg);
}

long do_kvm_get_sregs2(struct vcpu *vcpu, void *arg)
{
	sregs2_get(vcpu, arg);
	return 0;
}

long do_kvm_set_sregs2(struct vcpu *vcpu, void *arg)
{
	return sregs2_set(vcpu, arg);
}

long do_kvm_get_debugregs(struct vcpu *vcpu, void *arg)
{
	debugregs_get(vcpu, arg);
	return 0;
}

long do_kvm_set_debugregs(struct vcpu *vcpu, void *arg)
{
	return debugregs_set(vcpu, arg);
}

long do_kvm_get_vcpu_events(struct vcpu *vcpu, void *arg)
{
	vcpu_events_get(vcpu, arg);
	return 0;
}

long do_kvm_set_vcpu_events(struct vcpu *vcpu, void *arg)
{
	return vcpu_events_set(vcpu, arg);
}

/* ---- FPU ---------------------------------------------------------------------- */

/* kvm_fpu.mxcsr is neither reported nor taken: KVM's behaviour since ever. */
long do_kvm_get_fpu(struct vcpu *vcpu, void *arg)
{
	struct guest_fpu *f = &vcpu->arch.fpu;
	struct kvm_fpu *out = arg;

	x87_sync(vcpu);
	memcpy(out->fpr, f->fx + 32, sizeof(out->fpr));
	memcpy(&out->fcw, f->fx, 2);
	memcpy(&out->fsw, f->fx + 2, 2);
	out->ftwx = f->fx[4];
	out->last_opcode = f->fop;
	out->last_ip = f->fip;
	out->last_dp = f->fdp;
	for (int i = 0; i < 16; i++)
		memcpy(out->xmm[i], f->ymm[i], 16);
	return 0;
}

long do_kvm_set_fpu(struct vcpu *vcpu, void *arg)
{
	struct guest_fpu *f = &vcpu->arch.fpu;
	const struct kvm_fpu *in = arg;

	x87_sync(vcpu);
	memcpy(f->fx + 32, in->fpr, sizeof(in->fpr));
	memcpy(f->fx, &in->fcw, 2);
	memcpy(f->fx + 2, &in->fsw, 2);
	f->fx[4] = in->ftwx;
	f->fop = in->last_opcode & 0x7ff;
	f->fip = in->last_ip;
	f->fdp = in->last_dp;
	for (int i = 0; i < 16; i++)
		memcpy(f->ymm[i], in->xmm[i], 16);
	return 0;
}

long do_kvm_get_xsave(struct vcpu *vcpu, void *arg)
{
	fpu_to_xsave(vcpu, arg, sizeof(struct kvm_xsave));
	return 0;
}

long do_kvm_set_xsave(struct vcpu *vcpu, void *arg)
{
	return fpu_from_xsave(vcpu, arg, sizeof(struct kvm_xsave));
}

long do_kvm_get_xcrs(struct vcpu *vcpu, void *arg)
{
	struct kvm_xcrs *out = arg;

	out->nr_xcrs = 1;
	out->xcrs[0].xcr = 0;
	out->xcrs[0].value = vcpu->arch.xcr0;
	return 0;
}

long do_kvm_set_xcrs(struct vcpu *vcpu, void *arg)
{
	const struct kvm_xcrs *in = arg;

	if (in->nr_xcrs > KVM_MAX_XCRS || in->flags)
		return -EINVAL;
	for (unsigned i = 0; i < in->nr_xcrs; i++) {
		if (in->xcrs[i].xcr)
			continue;
		if (!xcr0_valid(vcpu, in->xcrs[i].value))
			return -EINVAL;
		vcpu->arch.xcr0 = in->xcrs[i].value;
		state_changed(vcpu);
		break;
	}
	return 0;
}

/* ---- interrupts and run state --------------------------------------------------- */

long do_kvm_get_lapic(struct vcpu *vcpu, void *arg)
{
	if (!vcpu->arch.apic)
		return -EINVAL;
	lapic_get_state(vcpu, arg);
	return 0;
}

long do_kvm_set_lapic(struct vcpu *vcpu, void *arg)
{
	return vcpu->arch.apic ? lapic_set_state(vcpu, arg) : -EINVAL;
}

long do_kvm_get_mp_state(struct vcpu *vcpu, void *arg)
{
	struct kvm_mp_state *out = arg;
	u32 state;

	vcpu_accept_apic_events(vcpu);
	state = atomic_load(&vcpu->arch.mp_state);
	if ((state == KVM_MP_STATE_HALTED || state == KVM_MP_STATE_AP_RESET_HOLD) &&
	    atomic_load(&vcpu->arch.pv_unhalted))
		state = KVM_MP_STATE_RUNNABLE;
	out->mp_state = state;
	return 0;
}

long do_kvm_set_mp_state(struct vcpu *vcpu, void *arg)
{
	u32 state = ((const struct kvm_mp_state *)arg)->mp_state;

	switch (state) {
	case KVM_MP_STATE_UNINITIALIZED:
	case KVM_MP_STATE_HALTED:
	case KVM_MP_STATE_AP_RESET_HOLD:
	case KVM_MP_STATE_INIT_RECEIVED:
	case KVM_MP_STATE_SIPI_RECEIVED:
		if (!vcpu->arch.apic)
			return -EINVAL;
		break;
	case KVM_MP_STATE_RUNNABLE:
		break;
	default:
		return -EINVAL;
	}
	/* INIT is blocked, or will be at once. */
	if ((state == KVM_MP_STATE_INIT_RECEIVED || state == KVM_MP_STATE_SIPI_RECEIVED) &&
	    (vcpu->arch.smm || atomic_load(&vcpu->arch.smi_pending)))
		return -EINVAL;
	if (state == KVM_MP_STATE_SIPI_RECEIVED) {
		state = KVM_MP_STATE_INIT_RECEIVED;
		atomic_fetch_or(&vcpu->arch.apic_pending_events, APIC_EVENT_SIPI);
	}
	atomic_store(&vcpu->arch.mp_state, state);
	state_changed(vcpu);
	return 0;
}

/*
 * Without an irqchip of ours the vector is injected as it is; with a split one it
 * is userspace's PIC speaking, one vector at a time.
 */
long do_kvm_interrupt(struct vcpu *vcpu, void *arg)
{
	u32 vector = ((const struct kvm_interrupt *)arg)->irq;

	if (vector >= KVM_NR_INTERRUPTS)
		return -EINVAL;
	if (arch_irqchip_full(vcpu->vm))
		return -ENXIO;
	if (arch_irqchip_in_kernel(vcpu->vm) && vcpu->arch.interrupt.injected)
		return -EEXIST;
	vcpu->arch.interrupt = (struct pending_interrupt){ .injected = true, .nr = vector };
	vcpu_make_request(vcpu, KVM_REQ_EVENT);
	return 0;
}

long do_kvm_nmi(struct vcpu *vcpu, void *arg)
{
	vcpu_inject_nmi(vcpu);
	return 0;
}

long do_kvm_smi(struct vcpu *vcpu, void *arg)
{
	smm_inject_smi(vcpu);
	return 0;
}

long do_kvm_tpr_access_reporting(struct vcpu *vcpu, void *arg)
{
	const struct kvm_tpr_access_ctl *ctl = arg;

	if (ctl->flags)
		return -EINVAL;
	vcpu->arch.tpr_reporting = ctl->enabled;
	return 0;
}

static bool gpa_has_slot(struct vcpu *vcpu, gpa_t gpa)
{
	struct guest_access ga;
	bool found;

	guest_access_begin(vcpu, &ga);
	found = memslots_find(vcpu->slots, gpa >> PAGE_SHIFT);
	guest_access_end(vcpu, &ga);
	return found;
}

long do_kvm_set_vapic_addr(struct vcpu *vcpu, void *arg)
{
	gpa_t gpa = ((const struct kvm_vapic_addr *)arg)->vapic_addr;

	if (!vcpu->arch.apic || (gpa && !gpa_has_slot(vcpu, gpa)))
		return -EINVAL;
	vcpu->arch.vapic_addr = gpa;
	return 0;
}

/* ---- machine checks ----------------------------------------------------------------- */

#define MCG_CTL_P BIT_ULL(8)
#define MCG_CMCI_P BIT_ULL(10)
#define MCG_SER_P BIT_ULL(24)
#define MCG_STATUS_MCIP BIT_ULL(2)
#define MCI_VAL BIT_ULL(63)
#define MCI_OVER BIT_ULL(62)
#define MCI_UC BIT_ULL(61)
#define MCI_PCC BIT_ULL(57)
#define MCI_S BIT_ULL(56)
#define MCI_AR BIT_ULL(55)
enum { MCI_CTL, MCI_STATUS, MCI_ADDR, MCI_MISC, MCI_REGS };

long do_kvm_x86_setup_mce(struct vcpu *vcpu, void *arg)
{
	struct x86_msrs *m = &vcpu->arch.msr;
	u64 cap = *(const __u64 *)arg;
	unsigned banks = cap & 0xff;

	if (!banks || banks > MCE_BANKS_MAX || (cap & ~(MCG_CTL_P | MCG_CMCI_P | MCG_SER_P | 0xff00ffull)))
		return -EINVAL;
	if (!mce_banks_get(vcpu))
		return -ENOMEM;
	m->mcg_cap = cap;
	if (cap & MCG_CTL_P)
		m->mcg_ctl = ~0ull;
	for (unsigned i = 0; i < banks; i++) {
		m->mce_banks[i * MCI_REGS + MCI_CTL] = ~0ull;
		if (cap & MCG_CMCI_P)
			m->mce_banks[MCE_CTL2 + i] = 0;
	}
	return 0;
}

static void mce_log(u64 *bank, const struct kvm_x86_mce *mce)
{
	bank[MCI_STATUS] = mce->status | (bank[MCI_STATUS] & MCI_VAL ? MCI_OVER : 0);
	bank[MCI_ADDR] = mce->addr;
	bank[MCI_MISC] = mce->misc;
}

/* Uncorrected, no action needed: logged without an exception, and an interrupt if the bank asks for one. */
static void mce_ucna(struct vcpu *vcpu, u64 *bank, const struct kvm_x86_mce *mce)
{
	struct x86_msrs *m = &vcpu->arch.msr;

	bank[MCI_STATUS] = mce->status;
	bank[MCI_ADDR] = mce->addr;
	bank[MCI_MISC] = mce->misc;
	m->mcg_status = 0;
	if (vcpu->arch.apic && (m->mcg_cap & MCG_CMCI_P) &&
	    (m->mce_banks[MCE_CTL2 + mce->bank] & MCI_CTL2_CMCI_EN))
		lapic_deliver_cmci(vcpu);
}

static void mce_raise(struct vcpu *vcpu, u64 *bank, const struct kvm_x86_mce *mce)
{
	struct x86_msrs *m = &vcpu->arch.msr;

	if ((m->mcg_status & MCG_STATUS_MCIP) || !(vcpu->arch.cr4 & X86_CR4_MCE)) {
		vcpu_make_request(vcpu, KVM_REQ_TRIPLE_FAULT);
		return;
	}
	mce_log(bank, mce);
	m->mcg_status = mce->mcg_status;
	(void)queue_exception(vcpu, MC_VECTOR);
	vcpu_make_request(vcpu, KVM_REQ_EVENT);
}

long do_kvm_x86_set_mce(struct vcpu *vcpu, void *arg)
{
	const struct kvm_x86_mce *mce = arg;
	struct x86_msrs *m = &vcpu->arch.msr;
	bool uc = mce->status & MCI_UC;
	u64 *bank;

	if (mce->bank >= (m->mcg_cap & 0xff) || mce->bank >= MCE_BANKS_MAX || !(mce->status & MCI_VAL))
		return -EINVAL;
	if (!mce_banks_get(vcpu))
		return -ENOMEM;
	bank = &m->mce_banks[mce->bank * MCI_REGS];

	if (uc && !mce->mcg_status && !(mce->status & (MCI_PCC | MCI_S | MCI_AR))) {
		mce_ucna(vcpu, bank, mce);
		return 0;
	}
	if (uc) {
		bool off = (m->mcg_cap & MCG_CTL_P) && m->mcg_ctl != ~0ull;

		if (!off && bank[MCI_CTL] == ~0ull)
			mce_raise(vcpu, bank, mce);
	} else if ((bank[MCI_STATUS] & (MCI_VAL | MCI_UC)) == (MCI_VAL | MCI_UC)) {
		bank[MCI_STATUS] |= MCI_OVER; /* the older, worse error stays */
	} else {
		mce_log(bank, mce);
	}
	return 0;
}

/* ---- time ------------------------------------------------------------------------------ */

long do_kvm_get_tsc_khz(struct vcpu *vcpu, void *arg)
{
	return vcpu->arch.tsc_khz;
}

long do_kvm_set_tsc_khz(struct vcpu *vcpu, void *arg)
{
	return tsc_set_khz(vcpu, (u32)(unsigned long)arg);
}

long do_kvm_kvmclock_ctrl(struct vcpu *vcpu, void *arg)
{
	return pvclock_set_stopped(vcpu);
}

static long tsc_attr_check(const struct kvm_device_attr *attr)
{
	return attr->group == KVM_VCPU_TSC_CTRL && attr->attr == KVM_VCPU_TSC_OFFSET ? 0 : -ENXIO;
}

long do_kvm_has_device_attr(struct vcpu *vcpu, void *arg)
{
	return tsc_attr_check(arg);
}

long do_kvm_get_device_attr(struct vcpu *vcpu, void *arg)
{
	const struct kvm_device_attr *attr = arg;
	long r = tsc_attr_check(attr);

	if (r)
		return r;
	return host_copy((void *)attr->addr, &vcpu->arch.tsc_offset, 8) ? -EFAULT : 0;
}

long do_kvm_set_device_attr(struct vcpu *vcpu, void *arg)
{
	const struct kvm_device_attr *attr = arg;
	long r = tsc_attr_check(attr);
	u64 offset;

	if (r)
		return r;
	if (host_copy(&offset, (const void *)attr->addr, 8))
		return -EFAULT;
	tsc_set_offset(vcpu, offset);
	return 0;
}

/* ---- debugging ------------------------------------------------------------------------- */

long do_kvm_set_guest_debug(struct vcpu *vcpu, void *arg)
{
	const struct kvm_guest_debug *dbg = arg;

	if (dbg->control & (KVM_GUESTDBG_INJECT_DB | KVM_GUESTDBG_INJECT_BP)) {
		if (vcpu->arch.exception.pending || triple_fault_pending(vcpu))
			return -EBUSY;
		(void)queue_exception(vcpu, dbg->control & KVM_GUESTDBG_INJECT_DB ? DB_VECTOR : BP_VECTOR);
	}
	vcpu->guest_debug = *dbg;
	if (!(dbg->control & KVM_GUESTDBG_ENABLE))
		vcpu->guest_debug.control = 0;
	update_effective_dr(vcpu);
	/* A debugger has perhaps just planted an INT3. */
	state_changed(vcpu);
	return 0;
}

long do_kvm_translate(struct vcpu *vcpu, void *arg)
{
	struct kvm_translation *tr = arg;
	struct guest_access ga;
	gpa_t gpa = ~0ull;

	guest_access_begin(vcpu, &ga);
	do {
		tr->valid = mmu_translate(vcpu, tr->linear_address, MMU_READ | MMU_NOFAULT, &gpa) == EXEC_OK;
	} while (!tr->valid && guest_access_kicked(vcpu, &ga));
	guest_access_end(vcpu, &ga);
	tr->physical_address = tr->valid ? gpa : ~0ull;
	tr->writeable = 1;
	tr->usermode = 0;
	return 0;
}

/* ---- the rest ----------------------------------------------------------------------------- */

long do_kvm_enable_cap(struct vcpu *vcpu, void *arg)
{
	const struct kvm_enable_cap *cap = arg;

	if (cap->flags)
		return -EINVAL;
	switch (cap->cap) {
	case KVM_CAP_HYPERV_SYNIC2:
		if (cap->args[0])
			return -EINVAL;
		return hyperv_enable_synic(vcpu, true);
	case KVM_CAP_HYPERV_SYNIC:
		return hyperv_enable_synic(vcpu, false);
	case KVM_CAP_HYPERV_ENFORCE_CPUID:
		return hyperv_enforce_cpuid(vcpu, cap->args[0]);
	case KVM_CAP_HYPERV_ENLIGHTENED_VMCS:	/* for nested virtualization */
	case KVM_CAP_HYPERV_DIRECT_TLBFLUSH:
		return -ENOTTY;
	case KVM_CAP_ENFORCE_PV_FEATURE_CPUID:
		vcpu->arch.pv_enforce = cap->args[0];
		if (vcpu->arch.cpuid_nent)
			cpuid_updated(vcpu);
		return 0;
	}
	return -EINVAL;
}

long do_kvm_xen_vcpu_get_attr(struct vcpu *vcpu, void *arg)
{
	return vcpu_xen_get_attr(vcpu, arg);
}

long do_kvm_xen_vcpu_set_attr(struct vcpu *vcpu, void *arg)
{
	return vcpu_xen_set_attr(vcpu, arg);
}

/* No nested virtualization. */
long do_kvm_get_nested_state(struct vcpu *vcpu, void *arg)
{
	return -EINVAL;
}

long do_kvm_set_nested_state(struct vcpu *vcpu, void *arg)
{
	return -EINVAL;
}

/* One page as the guest would touch it. 0, -ENOENT (no slot), -EFAULT. In guest mode. */
static int pre_fault_page(struct vcpu *vcpu, gpa_t gpa)
{
	struct memslot *slot = memslots_find(vcpu->slots, gpa >> PAGE_SHIFT);
	u64 value;
	u8 *host;

	if (!slot && !vm_gfn_is_private(vcpu->vm, gpa >> PAGE_SHIFT))
		return -ENOENT;
	host = slot ? vcpu_guest_host(vcpu, slot, gpa) : NULL;
	if (!host) {
		vcpu_memory_fault(vcpu, gpa);
		return -EFAULT;
	}
	/* Private pages are allocated, by a write that changes nothing. */
	if (host != (u8 *)memslot_hva(slot, gpa))
		return host_atomic_or32(host, 0) ? -EFAULT : 0;
	return host_load8(host, &value) ? 0 : -EFAULT;
}

long do_kvm_pre_fault_memory(struct vcpu *vcpu, void *arg)
{
	struct kvm_pre_fault_memory *range = arg;
	u64 full_size = range->size;
	struct guest_access ga;
	int r = 0;

	if (range->flags || ((range->gpa | range->size) & ~PAGE_MASK) ||
	    range->gpa + range->size <= range->gpa)
		return -EINVAL;
	guest_access_begin(vcpu, &ga);
	while (range->size) {
		if (host_signal_pending()) {
			r = -EINTR;
			break;
		}
		r = pre_fault_page(vcpu, range->gpa);
		if (r == -EFAULT && guest_access_kicked(vcpu, &ga))
			continue;
		if (r)
			break;
		range->gpa += PAGE_SIZE;
		range->size -= PAGE_SIZE;
		/* Slots may go at a boundary only: let whoever waits for one have it. */
		if (unlikely(vcpu_has_requests(vcpu))) {
			vcpu_leave_guest_mode(vcpu);
			vcpu_enter_guest_mode(vcpu);
		}
	}
	guest_access_end(vcpu, &ga);
	return range->size == full_size ? r : 0;
}

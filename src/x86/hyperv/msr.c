/* SPDX-License-Identifier: MIT */
/*
 * Hyper-V's MSRs: a row each, with the CPUID bit that gives it to the guest. Without
 * KVM_CAP_HYPERV_ENFORCE_CPUID the bits are advice, and "Hv#1" in CPUID opens all of them.
 *
 * Rows marked PARTITION are one register for the whole VM, and are read and written under hv_vm.lock.
 */
#include <time.h>

#include "host/syscall.h"
#include "x86/hyperv/hyperv_internal.h"
#include "x86/xen.h"

enum hv_leaf { ANY, EAX, EDX };	/* of HV_CPUID_FEATURES */
enum hv_scope { VP, PARTITION };

typedef int (*hv_read_fn)(struct vcpu *vcpu, u32 msr, u64 *v, bool host);
typedef int (*hv_write_fn)(struct vcpu *vcpu, u32 msr, u64 v, bool host);

#define READ(name) static int read_##name(struct vcpu *vcpu, u32 msr, u64 *v, bool host)
#define WRITE(name) static int write_##name(struct vcpu *vcpu, u32 msr, u64 v, bool host)

/* Read-only; the client may put back what it saved. */
WRITE(ignored)
{
	return !host;
}

/* ---- partition: identity, hypercall page -------------------------------------------------- */

READ(guest_os_id)
{
	*v = atomic_load(&hv_vm(vcpu->vm)->guest_os_id);
	return 0;
}

WRITE(guest_os_id)
{
	struct hv_vm *hv = hv_vm(vcpu->vm);

	atomic_store(&hv->guest_os_id, v);
	if (!v)
		hv->hypercall &= ~HV_PAGE_ENABLE;
	return 0;
}

READ(hypercall)
{
	*v = hv_vm(vcpu->vm)->hypercall;
	return 0;
}

/*
 * The page gets this machine's hypercall instruction, and a return. Beside Xen's hypercalls they are
 * told apart as Xen does it: `or $0x80000000, %eax` first.
 */
static bool write_hypercall_page(struct vcpu *vcpu, gpa_t gpa)
{
	const u8 code[] = { 0x0d, 0, 0, 0, 0x80, 0x0f, 0x01, host_is_amd() ? 0xd9 : 0xc1, 0xc3 };
	u32 skip = xen_hypercall_enabled(vcpu->vm) ? 0 : 5;

	return !vcpu_write_guest(vcpu, gpa, code + skip, sizeof(code) - skip);
}

WRITE(hypercall)
{
	struct hv_vm *hv = hv_vm(vcpu->vm);

	if (!atomic_load(&hv->guest_os_id))
		return 0;
	if ((v & HV_PAGE_ENABLE) && !write_hypercall_page(vcpu, v & PAGE_MASK))
		return 1;
	hv->hypercall = v;
	return 0;
}

/* ---- partition: clock ------------------------------------------------------------------------ */

READ(time_ref_count)
{
	*v = hv_reference_time_locked(vcpu->vm);
	return 0;
}

READ(reference_tsc)
{
	*v = hv_vm(vcpu->vm)->reference_tsc;
	return 0;
}

WRITE(reference_tsc)
{
	struct hv_vm *hv = hv_vm(vcpu->vm);

	hv->reference_tsc = v;
	if (!(v & HV_PAGE_ENABLE)) {
		hv->tsc_page_state = HV_TSC_PAGE_UNSET;
		return 0;
	}
	hv->tsc_page_state = host ? HV_TSC_PAGE_HOST_CHANGED : HV_TSC_PAGE_GUEST_CHANGED;
	vcpu_make_request(vcpu, KVM_REQ_CLOCK_UPDATE);
	return 0;
}

/* ---- partition: registers that are only kept ----------------------------------------------------- */

static u64 *kept(struct vcpu *vcpu, u32 msr)
{
	struct hv_vm *hv = hv_vm(vcpu->vm);

	switch (msr) {
	case HV_REENLIGHTENMENT_CONTROL: return &hv->reenlightenment_control;
	case HV_TSC_EMULATION_CONTROL: return &hv->tsc_emulation_control;
	case HV_TSC_EMULATION_STATUS: return &hv->tsc_emulation_status;
	case HV_CRASH_CTL: return &hv->crash_ctl;
	default: return &hv->crash_param[msr - HV_CRASH_P0];
	}
}

READ(kept)
{
	*v = *kept(vcpu, msr);
	return 0;
}

WRITE(kept)
{
	*kept(vcpu, msr) = v;
	return 0;
}

WRITE(emulation_status)
{
	if (v && !host)
		return 1;
	return write_kept(vcpu, msr, v, host);
}

WRITE(crash_ctl)
{
	if (host)
		return write_kept(vcpu, msr, v & HV_CRASH_CTL_NOTIFY, host);
	if (v & HV_CRASH_CTL_NOTIFY)
		hv_request_exit(vcpu, HV_EXIT_CRASH);
	return 0;
}

READ(zero)
{
	*v = 0;
	return 0;
}

WRITE(reset)
{
	if (v == 1)
		hv_request_exit(vcpu, HV_EXIT_RESET);
	return 0;
}

READ(invtsc_control)
{
	*v = atomic_load(&hv_vm(vcpu->vm)->invtsc_control);
	return 0;
}

WRITE(invtsc_control)
{
	struct hv_vm *hv = hv_vm(vcpu->vm);

	if (v & ~HV_INVARIANT_TSC_EXPOSED)
		return 1;
	/* The guest asks once and for all. */
	if (!host && atomic_load(&hv->invtsc_control) && !v)
		return 1;
	atomic_store(&hv->invtsc_control, v);
	return 0;
}

/* ---- partition: synthetic debugger ---------------------------------------------------------------- */

static u64 *syndbg_register(struct vcpu *vcpu, u32 msr)
{
	struct hv_syndbg *s = &hv_vm(vcpu->vm)->syndbg;

	switch (msr) {
	case HV_SYNDBG_CONTROL: return &s->control;
	case HV_SYNDBG_STATUS: return &s->status;
	case HV_SYNDBG_SEND: return &s->send_page;
	case HV_SYNDBG_RECV: return &s->recv_page;
	case HV_SYNDBG_PENDING: return &s->pending_page;
	default: return &s->options;
	}
}

static bool syndbg_allowed(struct vcpu *vcpu, bool host)
{
	return host || (hv_vcpu(vcpu)->cpuid.syndbg_eax & HV_SYNDBG_KERNEL_DEBUGGING);
}

READ(syndbg)
{
	if (!syndbg_allowed(vcpu, host))
		return 1;
	*v = *syndbg_register(vcpu, msr);
	return 0;
}

static void syndbg_exit(struct vcpu *vcpu, u32 msr)
{
	const struct hv_syndbg *s = &hv_vm(vcpu->vm)->syndbg;
	struct kvm_hyperv_exit *exit = &hv_vcpu(vcpu)->exit;

	*exit = (struct kvm_hyperv_exit){ .type = KVM_EXIT_HYPERV_SYNDBG };
	exit->u.syndbg.msr = msr;
	exit->u.syndbg.control = s->control;
	exit->u.syndbg.send_page = s->send_page;
	exit->u.syndbg.recv_page = s->recv_page;
	exit->u.syndbg.pending_page = s->pending_page;
	hv_request_exit(vcpu, HV_EXIT_RUN);
}

WRITE(syndbg)
{
	if (!syndbg_allowed(vcpu, host))
		return 1;
	*syndbg_register(vcpu, msr) = v;
	if (!host && (msr == HV_SYNDBG_CONTROL || msr == HV_SYNDBG_PENDING))
		syndbg_exit(vcpu, msr);
	return 0;
}

void hyperv_syndbg_complete(struct vcpu *vcpu)
{
	const struct kvm_hyperv_exit *exit = &vcpu->run->hyperv;
	struct hv_vm *hv = hv_vm(vcpu->vm);

	if (!hv || exit->u.syndbg.msr != HV_SYNDBG_CONTROL)
		return;
	pthread_mutex_lock(&hv->lock);
	hv->syndbg.status = exit->u.syndbg.status;
	pthread_mutex_unlock(&hv->lock);
}

/* ---- the virtual processor -------------------------------------------------------------------------- */

READ(vp_index)
{
	*v = hv_vp_index(vcpu);
	return 0;
}

WRITE(vp_index)
{
	if (!host || (u32)v >= KVM_ABI_MAX_VCPUS)
		return 1;
	atomic_store(&hv_vcpu(vcpu)->vp_index, (u32)v);
	return 0;
}

/* CPU time of the thread that asks, in units of 100 ns. */
static u64 thread_runtime(void)
{
	struct timespec ts = { 0 };

	host_syscall(SYS_clock_gettime, CLOCK_THREAD_CPUTIME_ID, &ts, 0, 0);
	return (u64)ts.tv_sec * 10000000 + ts.tv_nsec / 100;
}

READ(vp_runtime)
{
	*v = thread_runtime() + hv_vcpu(vcpu)->runtime_offset;
	return 0;
}

WRITE(vp_runtime)
{
	if (!host)
		return 1;
	hv_vcpu(vcpu)->runtime_offset = v - thread_runtime();
	return 0;
}

READ(frequency)
{
	*v = msr == HV_TSC_FREQUENCY ? (u64)vcpu->arch.tsc_khz * 1000 :
				       1000000000 / vcpu->vm->arch.apic_bus_ns;
	return 0;
}

/* EOI, ICR and TPR of the local APIC, in whatever mode it is. */
READ(apic)
{
	return lapic_hv_read(vcpu, msr - HV_EOI, v);
}

WRITE(apic)
{
	return lapic_hv_write(vcpu, msr - HV_EOI, v);
}

READ(vp_assist)
{
	*v = hv_vcpu(vcpu)->vp_assist;
	return 0;
}

/* The page's first word is a PV EOI flag; the rest is for nested hypervisors. */
WRITE(vp_assist)
{
	const u32 no_eoi_yet = 0;
	u64 pv_eoi = v & HV_PAGE_ENABLE ? (v & PAGE_MASK) | HV_PAGE_ENABLE : 0;

	if (pv_eoi && vcpu_write_guest(vcpu, v & PAGE_MASK, &no_eoi_yet, sizeof(no_eoi_yet)))
		return 1;
	hv_vcpu(vcpu)->vp_assist = v;
	return lapic_set_pv_eoi(vcpu, pv_eoi);
}

READ(stimer)
{
	return hv_stimer_read(vcpu, msr, v);
}

#define read_synic hv_synic_read
#define write_synic hv_synic_write
#define write_stimer hv_stimer_write

/* ---- the table ------------------------------------------------------------------------------------------ */

static const struct hv_row {
	u32 first, last;
	enum hv_scope scope;
	enum hv_leaf leaf;
	u32 bit;
	hv_read_fn read;
	hv_write_fn write;
} hv_rows[] = {
#define ROW(first_, last_, scope_, leaf_, bit_, read__, write__)                \
	{ HV_##first_, HV_##last_, scope_, leaf_, bit_, read_##read__, write_##write__ }
	ROW(GUEST_OS_ID, GUEST_OS_ID, PARTITION, EAX, HV_MSR_HYPERCALL, guest_os_id, guest_os_id),
	ROW(HYPERCALL, HYPERCALL, PARTITION, EAX, HV_MSR_HYPERCALL, hypercall, hypercall),
	ROW(VP_INDEX, VP_INDEX, VP, EAX, HV_MSR_VP_INDEX, vp_index, vp_index),
	ROW(RESET, RESET, PARTITION, EAX, HV_MSR_RESET, zero, reset),
	ROW(VP_RUNTIME, VP_RUNTIME, VP, EAX, HV_MSR_VP_RUNTIME, vp_runtime, vp_runtime),
	ROW(TIME_REF_COUNT, TIME_REF_COUNT, PARTITION, EAX, HV_MSR_TIME_REF_COUNT, time_ref_count, ignored),
	ROW(REFERENCE_TSC, REFERENCE_TSC, PARTITION, EAX, HV_MSR_REFERENCE_TSC, reference_tsc, reference_tsc),
	ROW(TSC_FREQUENCY, APIC_FREQUENCY, VP, EAX, HV_ACCESS_FREQUENCY_MSRS, frequency, ignored),
	ROW(EOI, TPR, VP, EAX, HV_MSR_APIC_ACCESS, apic, apic),
	ROW(VP_ASSIST_PAGE, VP_ASSIST_PAGE, VP, EAX, HV_MSR_APIC_ACCESS, vp_assist, vp_assist),
	ROW(SCONTROL, EOM, VP, EAX, HV_MSR_SYNIC, synic, synic),
	ROW(SINT0, SINT15, VP, EAX, HV_MSR_SYNIC, synic, synic),
	ROW(STIMER0_CONFIG, STIMER3_COUNT, VP, EAX, HV_MSR_SYNTIMER, stimer, stimer),
	ROW(SYNDBG_CONTROL, SYNDBG_PENDING, PARTITION, EDX, HV_DEBUG_MSRS, syndbg, syndbg),
	ROW(SYNDBG_OPTIONS, SYNDBG_OPTIONS, PARTITION, EDX, HV_DEBUG_MSRS, syndbg, syndbg),
	ROW(CRASH_P0, CRASH_P4, PARTITION, EDX, HV_GUEST_CRASH_MSRS, kept, kept),
	ROW(CRASH_CTL, CRASH_CTL, PARTITION, EDX, HV_GUEST_CRASH_MSRS, kept, crash_ctl),
	ROW(REENLIGHTENMENT_CONTROL, TSC_EMULATION_CONTROL, PARTITION, EAX, HV_ACCESS_REENLIGHTENMENT,
	    kept, kept),
	ROW(TSC_EMULATION_STATUS, TSC_EMULATION_STATUS, PARTITION, EAX, HV_ACCESS_REENLIGHTENMENT,
	    kept, emulation_status),
	ROW(TSC_INVARIANT_CONTROL, TSC_INVARIANT_CONTROL, PARTITION, EAX, HV_ACCESS_TSC_INVARIANT,
	    invtsc_control, invtsc_control),
#undef ROW
};

static const struct hv_row *hv_row_find(u32 msr)
{
	for (unsigned i = 0; i < ARRAY_SIZE(hv_rows); i++)
		if (msr >= hv_rows[i].first && msr <= hv_rows[i].last)
			return &hv_rows[i];
	return NULL;
}

static bool guest_may(const struct hv_vcpu *hv, const struct hv_row *row)
{
	if (!hv->enabled)
		return false;
	if (!hv->enforce_cpuid)
		return true;
	return (row->leaf == EAX ? hv->cpuid.features_eax : hv->cpuid.features_edx) & row->bit;
}

/* NULL: #GP. With a lock to give back in the other case. */
static const struct hv_row *access_begin(struct vcpu *vcpu, u32 msr, bool host)
{
	const struct hv_row *row = hv_row_find(msr);

	/* What was never used needs no memory to be refused. */
	if (!row || (!host && !hv_vcpu(vcpu)) || hv_init(vcpu))
		return NULL;
	if (!host && !guest_may(hv_vcpu(vcpu), row))
		return NULL;
	if (row->scope == PARTITION)
		pthread_mutex_lock(&hv_vm(vcpu->vm)->lock);
	return row;
}

static void access_end(struct vcpu *vcpu, const struct hv_row *row)
{
	if (row->scope == PARTITION)
		pthread_mutex_unlock(&hv_vm(vcpu->vm)->lock);
}

int hyperv_msr_read(struct vcpu *vcpu, u32 index, u64 *value, bool host)
{
	const struct hv_row *row = access_begin(vcpu, index, host);
	int r;

	if (!row)
		return 1;
	r = row->read(vcpu, index, value, host);
	access_end(vcpu, row);
	return r;
}

int hyperv_msr_write(struct vcpu *vcpu, u32 index, u64 value, bool host)
{
	const struct hv_row *row = access_begin(vcpu, index, host);
	int r;

	if (!row)
		return 1;
	r = row->write(vcpu, index, value, host);
	access_end(vcpu, row);
	return r;
}

/* SPDX-License-Identifier: MIT */
/*
 * Inside of the Hyper-V interface. Names and numbers are those of Microsoft's Top-Level
 * Functional Specification. Not for other folders.
 *
 * Who writes what:
 *  1. struct hv_vcpu belongs to the owner of vcpu->mutex. Other threads read what is _Atomic, and set bits
 *     of stimer_pending; the pointer to it appears once and stays.
 *  2. struct hv_vm is under its lock, but for what is _Atomic. The lock is a leaf; guest memory may be
 *     touched inside it, nothing else that waits.
 *  3. An access to guest memory may have been aborted by a kick (host_kicked). Then nothing has changed, and the
 *     instruction or the request is repeated after a boundary.
 */
#ifndef SOFTKVM_X86_HYPERV_INTERNAL_H
#define SOFTKVM_X86_HYPERV_INTERNAL_H

#include "host/host.h"
#include "x86/hyperv.h"
#include "x86/irqchip.h"

/* ---- CPUID ------------------------------------------------------------------------- */

#define HV_CPUID_VENDOR 0x40000000u
#define HV_CPUID_INTERFACE 0x40000001u
#define HV_CPUID_VERSION 0x40000002u
#define HV_CPUID_FEATURES 0x40000003u
#define HV_CPUID_ENLIGHTENMENTS 0x40000004u
#define HV_CPUID_LIMITS 0x40000005u
#define HV_CPUID_NESTED 0x4000000au
#define HV_CPUID_SYNDBG_VENDOR 0x40000080u
#define HV_CPUID_SYNDBG_INTERFACE 0x40000081u
#define HV_CPUID_SYNDBG_CAPS 0x40000082u
#define HV_INTERFACE_SIGNATURE 0x31237648u	/* Hv#1 */

/* HV_CPUID_FEATURES.EAX: groups of MSRs */
#define HV_MSR_VP_RUNTIME BIT(0)
#define HV_MSR_TIME_REF_COUNT BIT(1)
#define HV_MSR_SYNIC BIT(2)
#define HV_MSR_SYNTIMER BIT(3)
#define HV_MSR_APIC_ACCESS BIT(4)
#define HV_MSR_HYPERCALL BIT(5)
#define HV_MSR_VP_INDEX BIT(6)
#define HV_MSR_RESET BIT(7)
#define HV_MSR_REFERENCE_TSC BIT(9)
#define HV_ACCESS_FREQUENCY_MSRS BIT(11)
#define HV_ACCESS_REENLIGHTENMENT BIT(13)
#define HV_ACCESS_TSC_INVARIANT BIT(15)
/* .EBX */
#define HV_POST_MESSAGES BIT(4)
#define HV_SIGNAL_EVENTS BIT(5)
#define HV_DEBUGGING BIT(11)
#define HV_EXTENDED_HYPERCALLS BIT(20)
/* .EDX */
#define HV_GUEST_DEBUGGING BIT(1)
#define HV_HYPERCALL_XMM_INPUT BIT(4)
#define HV_FREQUENCY_MSRS BIT(8)
#define HV_GUEST_CRASH_MSRS BIT(10)
#define HV_DEBUG_MSRS BIT(11)
#define HV_EXT_GVA_RANGES_FLUSH BIT(14)
#define HV_STIMER_DIRECT_MODE BIT(19)
/* HV_CPUID_ENLIGHTENMENTS.EAX */
#define HV_REMOTE_TLB_FLUSH_RECOMMENDED BIT(2)
#define HV_APIC_ACCESS_RECOMMENDED BIT(3)
#define HV_RELAXED_TIMING_RECOMMENDED BIT(5)
#define HV_DEPRECATING_AEOI_RECOMMENDED BIT(9)
#define HV_CLUSTER_IPI_RECOMMENDED BIT(10)
#define HV_EX_PROCESSOR_MASKS_RECOMMENDED BIT(11)
#define HV_NO_NONARCH_CORESHARING BIT(18)
/* HV_CPUID_NESTED */
#define HV_NESTED_DIRECT_FLUSH BIT(17)
#define HV_NESTED_MSR_BITMAP BIT(19)
#define HV_NESTED_EVMCS1_PERF_GLOBAL_CTRL BIT(0)
/* HV_CPUID_SYNDBG_CAPS.EAX */
#define HV_SYNDBG_KERNEL_DEBUGGING BIT(1)

/* The guest's choice, looked up once. */
struct hv_cpuid {
	u32 features_eax, features_ebx, features_edx;
	u32 enlightenments_eax, enlightenments_ebx;
	u32 syndbg_eax;
};

/* ---- MSRs ---------------------------------------------------------------------------- */

enum hv_msr {
	HV_GUEST_OS_ID = 0x40000000, HV_HYPERCALL = 0x40000001, HV_VP_INDEX = 0x40000002,
	HV_RESET = 0x40000003, HV_VP_RUNTIME = 0x40000010,
	HV_TIME_REF_COUNT = 0x40000020, HV_REFERENCE_TSC = 0x40000021,
	HV_TSC_FREQUENCY = 0x40000022, HV_APIC_FREQUENCY = 0x40000023,
	HV_EOI = 0x40000070, HV_ICR = 0x40000071, HV_TPR = 0x40000072, HV_VP_ASSIST_PAGE = 0x40000073,
	HV_SCONTROL = 0x40000080, HV_SVERSION = 0x40000081, HV_SIEFP = 0x40000082,
	HV_SIMP = 0x40000083, HV_EOM = 0x40000084, HV_SINT0 = 0x40000090, HV_SINT15 = 0x4000009f,
	HV_STIMER0_CONFIG = 0x400000b0, HV_STIMER3_COUNT = 0x400000b7,
	HV_SYNDBG_CONTROL = 0x400000f1, HV_SYNDBG_STATUS = 0x400000f2, HV_SYNDBG_SEND = 0x400000f3,
	HV_SYNDBG_RECV = 0x400000f4, HV_SYNDBG_PENDING = 0x400000f5, HV_SYNDBG_OPTIONS = 0x400000ff,
	HV_CRASH_P0 = 0x40000100, HV_CRASH_P4 = 0x40000104, HV_CRASH_CTL = 0x40000105,
	HV_REENLIGHTENMENT_CONTROL = 0x40000106, HV_TSC_EMULATION_CONTROL = 0x40000107,
	HV_TSC_EMULATION_STATUS = 0x40000108, HV_TSC_INVARIANT_CONTROL = 0x40000118,
};

#define HV_PAGE_ENABLE 1ull		/* in every MSR that holds the address of a page */
#define HV_CRASH_CTL_NOTIFY BIT_ULL(63)
#define HV_SYNDBG_USE_HCALLS BIT_ULL(2)	/* in SYNDBG_OPTIONS */
#define HV_INVARIANT_TSC_EXPOSED 1ull

/* ---- the partition ------------------------------------------------------------------------ */

/* What the reference page holds; struct hv_vm's copy is what the guest was told last. */
struct hv_tsc_page {
	u32 sequence;		/* 0: use the MSR */
	u32 reserved;
	u64 scale;
	u64 offset;
};

enum hv_tsc_page_state {
	HV_TSC_PAGE_UNSET,	/* not enabled by the guest */
	HV_TSC_PAGE_GUEST_CHANGED, /* enabled, to be written */
	HV_TSC_PAGE_HOST_CHANGED, /* the clock has changed, to be rewritten */
	HV_TSC_PAGE_SET,	/* page and MSR agree */
	HV_TSC_PAGE_BROKEN,	/* could not be written, until the guest sets the MSR again */
};

struct hv_syndbg {
	u64 control, status, send_page, recv_page, pending_page, options;
};

#define HV_CRASH_PARAMS 5

struct hv_vm {
	pthread_mutex_t lock;
	_Atomic u64 guest_os_id;	/* 0: hypercalls are KVM's */
	u64 hypercall, reference_tsc;
	enum hv_tsc_page_state tsc_page_state;
	struct hv_tsc_page tsc_page;
	u64 crash_param[HV_CRASH_PARAMS], crash_ctl;
	u64 reenlightenment_control, tsc_emulation_control, tsc_emulation_status;
	_Atomic u64 invtsc_control;
	struct hv_syndbg syndbg;
	struct hv_conn *conns;		/* eventfd.c */
};

/* ---- the virtual processor ------------------------------------------------------------------ */

#define HV_NR_SINTS 16
#define HV_SINT_VECTOR 0xffu
#define HV_SINT_MASKED BIT_ULL(16)
#define HV_SINT_AUTO_EOI BIT_ULL(17)
#define HV_FIRST_VECTOR 16

struct hv_synic {
	_Atomic bool active;		/* KVM_CAP_HYPERV_SYNIC or _SYNIC2 */
	bool keep_pages;		/* _SYNIC2: pages are not cleared when enabled */
	u64 control, version, evt_page, msg_page;
	_Atomic u64 sint[HV_NR_SINTS];
	u64 vectors[4];			/* of unmasked SINTs */
	u64 auto_eoi[4];		/* those of them that need no EOI */
};

#define HV_NR_STIMERS 4
#define HV_STIMER_ENABLE BIT_ULL(0)
#define HV_STIMER_PERIODIC BIT_ULL(1)
#define HV_STIMER_AUTO_ENABLE BIT_ULL(3)
#define HV_STIMER_DIRECT BIT_ULL(12)
#define HV_STIMER_VECTOR(config) ((u8)((config) >> 4))
#define HV_STIMER_SINT(config) ((config) >> 16 & 15)

struct hv_stimer {
	struct vm_timer timer;		/* its callback touches stimer_pending and requests only */
	struct vcpu *vcpu;
	u8 index;
	bool msg_pending;		/* its message waits for the slot to become free */
	u64 config, count;
	u64 expires;			/* in units of 100 ns of the reference clock; 0: not started */
};

/* Bits of hv_vcpu.exits: why the vCPU returns to userspace, in this order. */
#define HV_EXIT_CRASH BIT(0)
#define HV_EXIT_RESET BIT(1)
#define HV_EXIT_RUN BIT(2)	/* KVM_EXIT_HYPERV as in hv_vcpu.exit */

struct hv_vcpu {
	bool enabled;			/* CPUID says Hv#1 */
	bool enforce_cpuid;		/* KVM_CAP_HYPERV_ENFORCE_CPUID */
	struct hv_cpuid cpuid;
	_Atomic u32 vp_index;
	u64 vp_assist;
	u64 runtime_offset;		/* of VP_RUNTIME to this thread's CPU time, 100 ns */
	u32 exits;
	struct kvm_hyperv_exit exit;
	u64 flush_mask[KVM_ABI_MAX_VCPUS / 64]; /* by index: whose flush KVM_REQ_HV_FLUSH waits for */
	struct hv_synic synic;
	struct hv_stimer stimer[HV_NR_STIMERS];
	_Atomic u32 stimer_pending;	/* bit per timer: look at it */
};

static inline struct hv_vcpu *hv_vcpu(const struct vcpu *vcpu)
{
	return atomic_load_explicit(&((struct vcpu *)vcpu)->arch.hyperv, memory_order_acquire);
}

static inline struct hv_vm *hv_vm(const struct vm *vm)
{
	return atomic_load_explicit(&((struct vm *)vm)->arch.hyperv, memory_order_acquire);
}

static inline u32 hv_vp_index(const struct vcpu *vcpu)
{
	const struct hv_vcpu *hv = hv_vcpu(vcpu);

	return hv ? atomic_load_explicit(&hv->vp_index, memory_order_relaxed) : vcpu->index;
}

/* hyperv.c: allocate both halves, 0 or -ENOMEM. */
int hv_init(struct vcpu *vcpu);
struct hv_vm *hv_vm_init(struct vm *vm);
/* The instruction is followed by an exit to userspace. */
void hv_request_exit(struct vcpu *vcpu, u32 why);
/* 4 KiB of zeros. False: no memory there, or a kick. */
bool hv_clear_page(struct vcpu *vcpu, gpa_t gpa);

/* clock.c: in units of 100 ns; hv_vm.lock held, or taken by the second. */
u64 hv_reference_time_locked(struct vm *vm);
u64 hv_reference_time(struct vm *vm);

/* synic.c: 0, or 1 for #GP */
void hv_synic_init(struct hv_synic *synic);
int hv_synic_read(struct vcpu *vcpu, u32 msr, u64 *value, bool host);
int hv_synic_write(struct vcpu *vcpu, u32 msr, u64 value, bool host);
/* A message of 24 bytes of payload into the slot of sint: 0, -EAGAIN (slot in use, or a kick), other -errno. */
int hv_synic_send(struct vcpu *vcpu, u32 sint, u32 type, const u64 payload[3], bool drop_if_busy);

/* stimer.c */
void hv_stimer_init(struct vcpu *vcpu, struct hv_vcpu *hv);
void hv_stimer_destroy(struct hv_vcpu *hv);
int hv_stimer_read(struct vcpu *vcpu, u32 msr, u64 *value);
int hv_stimer_write(struct vcpu *vcpu, u32 msr, u64 value, bool host);
/* Messages of this SINT may be sent again. */
void hv_stimer_retry(struct vcpu *vcpu, u32 sint);

/* eventfd.c: false: nobody listens. */
bool hv_conn_signal(struct vm *vm, u32 conn_id);
void hv_conns_destroy(struct hv_vm *hv);

#endif

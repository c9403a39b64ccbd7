/* SPDX-License-Identifier: MIT */
/*
 * x86 state of a vCPU and of a VM. Included by kvm/kvm_host.h; everything here is
 * private to the vCPU's thread unless a line says otherwise.
 *
 * Invariant: between two guest instructions this structure is the complete
 * architectural state, except that x87/MMX registers may be live in the host's
 * (fpu.x87_live); x87_sync() writes them back.
 */
#ifndef SOFTKVM_X86_VCPU_ARCH_H
#define SOFTKVM_X86_VCPU_ARCH_H

#include <pthread.h>
#include <stdatomic.h>

#include "base/types.h"
#include "kvm/kvm_abi.h"

enum gpr { RAX, RCX, RDX, RBX, RSP, RBP, RSI, RDI, R8, R9, R10, R11, R12, R13, R14, R15 };

enum seg { SEG_ES, SEG_CS, SEG_SS, SEG_DS, SEG_FS, SEG_GS, SEG_TR, SEG_LDTR, NR_SEGS };

/* Access rights in descriptor layout, as the second dword >> 8. */
#define AR_TYPE 0x000f
#define AR_S BIT(4)
#define AR_DPL_SHIFT 5
#define AR_DPL 0x0060
#define AR_P BIT(7)
#define AR_AVL BIT(12)
#define AR_L BIT(13)
#define AR_DB BIT(14)
#define AR_G BIT(15)
#define AR_UNUSABLE BIT(16) /* null selector loaded; kvm_segment.unusable */

struct segment {
	u64 base;
	u32 limit;	/* in bytes, granularity already applied */
	u32 ar;
	u16 selector;
};

struct desc_table {
	u64 base;
	u16 limit;
};

#define X86_EFLAGS_CF BIT(0)
#define X86_EFLAGS_FIXED BIT(1)
#define X86_EFLAGS_PF BIT(2)
#define X86_EFLAGS_AF BIT(4)
#define X86_EFLAGS_ZF BIT(6)
#define X86_EFLAGS_SF BIT(7)
#define X86_EFLAGS_TF BIT(8)
#define X86_EFLAGS_IF BIT(9)
#define X86_EFLAGS_DF BIT(10)
#define X86_EFLAGS_OF BIT(11)
#define X86_EFLAGS_IOPL 0x3000
#define X86_EFLAGS_NT BIT(14)
#define X86_EFLAGS_RF BIT(16)
#define X86_EFLAGS_VM BIT(17)
#define X86_EFLAGS_AC BIT(18)
#define X86_EFLAGS_VIF BIT(19)
#define X86_EFLAGS_VIP BIT(20)
#define X86_EFLAGS_ID BIT(21)
#define X86_EFLAGS_OSZAPC                                                        \
	(X86_EFLAGS_CF | X86_EFLAGS_PF | X86_EFLAGS_AF | X86_EFLAGS_ZF |         \
	 X86_EFLAGS_SF | X86_EFLAGS_OF)

#define X86_CR0_PE BIT(0)
#define X86_CR0_MP BIT(1)
#define X86_CR0_EM BIT(2)
#define X86_CR0_TS BIT(3)
#define X86_CR0_ET BIT(4)
#define X86_CR0_NE BIT(5)
#define X86_CR0_WP BIT(16)
#define X86_CR0_AM BIT(18)
#define X86_CR0_NW BIT(29)
#define X86_CR0_CD BIT(30)
#define X86_CR0_PG BIT(31)

#define X86_CR4_VME BIT(0)
#define X86_CR4_PVI BIT(1)
#define X86_CR4_TSD BIT(2)
#define X86_CR4_DE BIT(3)
#define X86_CR4_PSE BIT(4)
#define X86_CR4_PAE BIT(5)
#define X86_CR4_MCE BIT(6)
#define X86_CR4_PGE BIT(7)
#define X86_CR4_PCE BIT(8)
#define X86_CR4_OSFXSR BIT(9)
#define X86_CR4_OSXMMEXCPT BIT(10)
#define X86_CR4_UMIP BIT(11)
#define X86_CR4_LA57 BIT(12)
#define X86_CR4_FSGSBASE BIT(16)
#define X86_CR4_PCIDE BIT(17)
#define X86_CR4_OSXSAVE BIT(18)
#define X86_CR4_SMEP BIT(20)
#define X86_CR4_SMAP BIT(21)
#define X86_CR4_PKE BIT(22)

#define EFER_SCE BIT(0)
#define EFER_LME BIT(8)
#define EFER_LMA BIT(10)
#define EFER_NX BIT(11)

/* <asm/kvm.h> names the exception vectors clients see; the rest. */
#define NMI_VECTOR 2
#ifndef XM_VECTOR
#define XM_VECTOR 19
#endif

/*
 * x87, SSE and AVX. ymm[] is the home of vector registers at all times while C
 * runs; x87 lives in fx (FXSAVE image bytes 0..159) or, when x87_live, in the
 * host's FPU between two instructions.
 */
struct guest_fpu {
	_Alignas(64) u8 fx[160];	/* the x87 part of an FXSAVE64 image */
	_Alignas(32) u8 ymm[16][32];
	u32 mxcsr;
	bool x87_live;
	/* x87 instruction and data pointers are virtual: the host's would show our addresses. */
	u16 fop;
	u16 fcs, fds;
	u64 fip, fdp;
	u32 host_mxcsr;		/* this thread's own, while mxcsr_live */
	bool mxcsr_live;	/* the host's MXCSR holds the guest's, mxcsr is stale; x87_sync() ends that too */
	u16 host_x87_env[14];	/* this thread's own x87 control, status and tags while x87_live */
	/* The translator's last x87 instruction (lower half) and the last with a memory operand: sites + 1, 0: nothing new. */
	u64 noted, noted_fdp, noted_page;
};

#define XFEATURE_X87 BIT_ULL(0)
#define XFEATURE_SSE BIT_ULL(1)
#define XFEATURE_AVX BIT_ULL(2)

/* An exception on its way to the guest. pending: not yet delivered; injected: delivery was interrupted by an exit. */
struct pending_exception {
	bool pending, injected, has_error_code, has_payload;
	u8 vector;
	u32 error_code;
	u64 payload;		/* CR2 for #PF, DR6 bits for #DB; applied at delivery */
};

struct pending_interrupt {
	bool injected, soft;	/* KVM_INTERRUPT or an acknowledged vector not delivered yet */
	u8 nr;
};

/*
 * MMIO and PIO answered so far for the instruction at rip (x86/mmio.c): the
 * instruction is restarted from its beginning and finds its answers here.
 */
struct mmio_access {
	gpa_t gpa;		/* or port */
	u8 len;
	bool write, pio;
	u8 data[8];
};
#define MMIO_LOG_MAX 64
struct mmio_log {
	u32 nr;			/* answered */
	u32 cursor;		/* consumed by the current (re)execution */
	bool pending;		/* userspace owes an answer for accesses[nr] */
	u64 linear_rip;		/* of the instruction; a log for another rip is dropped */
	struct mmio_access *accesses;	/* MMIO_LOG_MAX of them, from the first on */
};

/* String PIO: the batch handed to userspace (kvm_run.io.count > 1); ops/io.c. */
struct pio_batch {
	u32 count;		/* 0: none */
	u16 port;
	u8 size;
	bool in;
	bool answered;		/* userspace has served it: the restarted instruction takes it */
	u64 linear_rip;		/* of that instruction */
};

struct lapic;
struct hv_vm;		/* x86/hyperv */
struct hv_vcpu;
struct xen_vm;		/* x86/xen */
struct xen_vcpu;
struct dbt;		/* x86/dbt: translated code; private to the engine */
struct interp;		/* x86/interp: block cache, arena; private to the engine */
struct tlb;		/* x86/mmu: software TLB */
struct mtrr_state {
	u64 deftype;
	u64 fixed[11];
	u64 var[16];
};

struct x86_msrs {
	u64 star, lstar, cstar, sf_mask, kernel_gs_base, tsc_aux;
	u64 sysenter_cs, sysenter_esp, sysenter_eip;
	u64 pat, apic_base, misc_enable, spec_ctrl, tsc_adjust, tsc_deadline;
	u64 ia32_xss, arch_capabilities, platform_info, misc_features_enables, hwcr;
	u64 mcg_status, mcg_ctl, mcg_cap;
	u64 *mce_banks;		/* of 4 registers each, MCE_BANKS_MAX; NULL: all zero (mce_banks_get()) */
	u64 feature_control, perf_capabilities, debugctl, ucode_rev;
	u64 de_cfg, virt_spec_ctrl;
	u64 osvw_length, osvw_status, power_ctl, smi_count, smbase;
	struct mtrr_state *mtrr;	/* NULL: all zero */
	/* KVM paravirtual */
	u64 kvm_wall_clock, kvm_system_time, kvm_steal_time, kvm_pv_eoi, kvm_async_pf_en,
		kvm_async_pf_int, kvm_async_pf_ack, kvm_poll_control, kvm_migration_control;
};

struct vcpu_arch {
	/* --- hot: used by generated code and by every instruction; keep first --- */
	u64 regs[16];
	u64 rip;
	u64 rflags;			/* exact, bit 1 set, at all times */
	struct guest_fpu fpu;
	struct segment seg[NR_SEGS];
	struct tlb *tlb;		/* the one for the current privilege, mmu_select_tlb(); NULL until first KVM_RUN */
	struct mmu *mmu;		/* all TLBs and the set of code pages; x86/mmu */
	/* derived from CS/CR0/EFER/RFLAGS by vcpu_update_mode(), never set elsewhere */
	u8 cpl;
	u8 code_size;			/* 2, 4 or 8 bytes: default operand/address class of CS */
	u8 stack_size;			/* 2, 4 or 8: width of the stack pointer */
	bool long_mode;			/* EFER.LMA */
	bool paging;
	bool protected_mode;		/* CR0.PE and not vm86 */
	bool vm86;
	bool flat32;			/* 32-bit code, and CS, SS, DS, ES are all of 0 to 4 GiB */
	bool fs_whole, gs_whole;	/* with flat32: these need no limit check */
	u32 mode_key;			/* all state a decoded block depends on, hashed into block keys */
	bool block_abort;		/* a store hit the page being executed: leave the block after this instruction */
	bool sole;			/* kvm/sole.c: programs do without LOCK... */
	bool unlocked;			/* ...and this is one (derived, part of mode_key) */
	gpa_t code_page;		/* gpa of the page being executed, or ~0 */
	u64 block_page;			/* linear address of the page that translated code is, or was last, executed on */
	u64 tsc_offset;			/* guest TSC = host TSC (scaled) + offset */
	/* --- registers --- */
	u64 cr0, cr2, cr3, cr4, efer, xcr0;
	u64 cr8;			/* task priority while there is no local APIC to hold it */
	u64 pdptrs[4];			/* PAE: loaded at CR3 load */
	bool pdptrs_from_userspace;
	u64 dr[4], dr6, dr7;
	u64 eff_dr[4], eff_dr7;		/* guest's, or KVM_SET_GUEST_DEBUG's */
	struct desc_table gdt, idt;
	struct x86_msrs msr;
	/* --- events --- */
	struct pending_exception exception;
	struct pending_interrupt interrupt;
	bool nmi_injected, nmi_masked;
	bool smm, smm_inside_nmi;	/* in SMM (smm.c); NMIs were blocked before */
	_Atomic bool smi_pending;	/* other threads send SMIs */
	bool irq_window;		/* an interrupt waits for IF or the shadow: whoever opens the window sets KVM_REQ_EVENT */
	_Atomic u32 nmi_pending;	/* other threads queue NMIs */
	u8 interrupt_shadow;		/* KVM_X86_SHADOW_INT_STI / _MOV_SS, for one instruction */
	bool triple_fault_pending;
	bool db_trap;			/* #DB trap (TF or data breakpoint) owed after this instruction; dr6 bits in db_dr6 */
	u64 db_dr6;
	_Atomic u32 mp_state;		/* KVM_MP_STATE_*; changed by its thread or under apic delivery */
	_Atomic u64 apic_pending_events;/* BIT(KVM_APIC_INIT), BIT(KVM_APIC_SIPI) */
	_Atomic u8 sipi_vector;
	_Atomic bool pv_unhalted;	/* KVM_HC_KICK_CPU seen */
	u8 pending_ioapic_eoi;
	/* --- completion of userspace exits --- */
	struct mmio_log mmio;
	struct pio_batch pio;
	u32 msr_exit_index;		/* KVM_EXIT_X86_RDMSR/WRMSR under way: valid when msr_exit_kind != 0 */
	u32 msr_exit_kind;
	bool msr_exit_error;		/* userspace's answer (msr.c): #GP, or this value, for the instruction at this rip */
	u64 msr_exit_value, msr_exit_rip;
	u8 hypercall_exit;		/* enum hypercall_exit: an exit under way that the client answers */
	u8 hypercall_len;		/* bytes of that instruction, which began at hypercall_rip */
	u64 hypercall_rip;
	u32 exit_after_insn;		/* KVM_EXIT_* to return with once the current instruction has retired, 0: none */
	/* --- devices, cpuid, PV --- */
	struct lapic *apic;		/* NULL without in-kernel irqchip */
	struct kvm_cpuid_entry2 *cpuid_entries;
	u32 cpuid_nent;
	u32 maxphyaddr;
	u64 cr4_reserved_bits;		/* from CPUID */
	u64 guest_supported_xcr0;
	u64 pv_features;		/* KVM_FEATURE_* as enforced */
	bool pv_enforce;
	bool cpuid_frozen;		/* KVM_RUN happened */
	u32 tsc_khz;			/* virtual */
	u64 tsc_scaling;		/* 48-bit fixed point ratio to host, 0: 1:1 */
	u64 last_guest_tsc;
	bool clock_update_due;		/* KVM_REQ_CLOCK_UPDATE taken while halted */
	u64 st_last_steal;		/* steal time: run_delay at last update, ns */
	u64 st_switches;		/* context switches when run_delay was last read, ... */
	u64 st_run_delay;		/* ... and what it was; own thread only */
	bool pvclock_stopped;		/* KVM_KVMCLOCK_CTRL: tell the guest it was paused */
	bool tpr_reporting;
	gpa_t vapic_addr;
	struct interp *interp;		/* allocated at first KVM_RUN */
	struct dbt *dbt;		/* the translator's, likewise; NULL: not in use */
	struct hv_vcpu *_Atomic hyperv;	/* allocated at first use; set by the owner, others look */
	struct xen_vcpu *_Atomic xen;	/* allocated at first use, by any thread */
};

struct shared_code;
struct pic;
struct ioapic;
struct pit;

enum irqchip_mode { IRQCHIP_NONE, IRQCHIP_KERNEL, IRQCHIP_SPLIT };

struct vm_arch {
	_Atomic u32 irqchip_mode;
	struct pic *pic;		/* pair */
	struct ioapic *ioapic;
	struct pit *pit;
	struct apic_maps *apic_maps;	/* destinations; irqchip/apic_map.c, NULL without in-kernel irqchip */
	u32 split_nr_reserved_pins;	/* KVM_CAP_SPLIT_IRQCHIP argument */
	u32 boot_cpu_id;
	u64 x2apic_format;		/* KVM_CAP_X2APIC_API flags in force */
	u64 apic_bus_ns;		/* default 1 */
	u64 disabled_quirks;
	u64 disabled_exits;		/* KVM_CAP_X86_DISABLE_EXITS */
	u64 user_space_msr_mask;	/* KVM_CAP_X86_USER_SPACE_MSR reasons */
	struct msr_filter *msr_filter;	/* KVM_X86_SET_MSR_FILTER; under slots_lock, freed after vm_sync_vcpus() */
	u64 hypercall_exit_enabled;	/* KVM_CAP_EXIT_HYPERCALL */
	bool exception_payload, triple_fault_event, exit_on_emulation_failure;
	bool guest_can_read_platform_info;
	u64 identity_map_addr, tss_addr;
	pthread_mutex_t clock_lock;
	s64 kvmclock_offset;		/* kvmclock at clock_base_tsc, ns; under clock_lock */
	u64 default_tsc_khz;
	u64 wall_clock_msr;
	u64 last_tsc_write, last_tsc_nsec, last_tsc_offset; /* TSC write synchronisation; under clock_lock */
	u64 last_tsc_khz, cur_tsc_offset;
	bool user_set_tsc;
	u64 clock_base_tsc;		/* host TSC at which kvmclock read kvmclock_offset; under clock_lock */
	u32 nr_mmu_pages;
	struct shared_code *_Atomic shared_code; /* mmu/shared_code.c; NULL until several vCPUs run translated code */
	struct hv_vm *_Atomic hyperv;	/* allocated at first use */
	struct xen_vm *_Atomic xen;	/* likewise */
	_Atomic u32 split_lock;		/* held around locked accesses that cross pages (interp/thunk.c) */
};

#endif

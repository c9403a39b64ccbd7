/* SPDX-License-Identifier: MIT */
/*
 * x86 guest CPU: what its parts offer each other. Who provides what is named
 * above each group. All functions run on the vCPU's thread with vcpu->mutex
 * held unless they say otherwise.
 */
#ifndef SOFTKVM_X86_X86_H
#define SOFTKVM_X86_X86_H

#include "kvm/arch.h"
#include "kvm/kvm_host.h"

/* ---- registers and mode (inline; vcpu_update_mode in x86/mode.c) ----------- */

/* Recompute cpl, code_size, ..., mode_key. After any change of CS, SS (in 32-bit code DS to GS), CR0, CR4, EFER, XCR0 or RFLAGS.VM. */
void vcpu_update_mode(struct vcpu *vcpu);

static inline u64 ip_mask(const struct vcpu *vcpu)
{
	return vcpu->arch.code_size == 8 ? ~0ull :
	       vcpu->arch.code_size == 4 ? 0xffffffffull : 0xffffull;
}

static inline u64 stack_mask(const struct vcpu *vcpu)
{
	return vcpu->arch.stack_size == 8 ? ~0ull :
	       vcpu->arch.stack_size == 4 ? 0xffffffffull : 0xffffull;
}

static inline bool in_64bit_mode(const struct vcpu *vcpu)
{
	return vcpu->arch.code_size == 8;
}

/* Where an address is an offset, or, with FS and GS, an offset and a base; and not in SMM, which has memory of its own. */
static inline bool in_flat_mode(const struct vcpu *vcpu)
{
	return (in_64bit_mode(vcpu) || vcpu->arch.flat32) && !vcpu->arch.smm;
}

/* Replace RFLAGS bits in mask; keeps bit 1; recomputes the mode if VM changes. */
void vcpu_set_rflags(struct vcpu *vcpu, u64 rflags);

static inline bool is_canonical(u64 va)
{
	return (u64)((s64)(va << 16) >> 16) == va;
}

/* CS.base + rip as the hardware would compute it. */
static inline gva_t linear_rip(const struct vcpu *vcpu)
{
	if (in_64bit_mode(vcpu))
		return vcpu->arch.rip;
	return (u32)(vcpu->arch.seg[SEG_CS].base + vcpu->arch.rip);
}

/* ---- exceptions (x86/event.c) ---------------------------------------------- */

/*
 * Queue an exception for delivery before the next instruction; merges into #DF
 * or a triple fault as the architecture says when one is being delivered.
 * Always returns EXEC_FAULT so that callers can `return queue_...()`.
 */
enum exec queue_exception(struct vcpu *vcpu, u8 vector);
enum exec queue_exception_e(struct vcpu *vcpu, u8 vector, u32 error_code);
enum exec queue_page_fault(struct vcpu *vcpu, gva_t va, u32 error_code);
enum exec queue_db(struct vcpu *vcpu, u64 dr6_bits);
static inline enum exec queue_gp(struct vcpu *vcpu, u32 error_code)
{
	return queue_exception_e(vcpu, GP_VECTOR, error_code);
}
static inline enum exec queue_ud(struct vcpu *vcpu)
{
	return queue_exception(vcpu, UD_VECTOR);
}

enum event_type { EVENT_EXCEPTION, EVENT_EXT_INTERRUPT, EVENT_NMI, EVENT_SOFT_INT, EVENT_SOFT_EXC /* INT3, INTO */ };
/*
 * Go through IVT/IDT for vector now. Soft ones (INT n) push rip as it stands in
 * arch.rip, so the op sets it past the instruction first and restores it if this
 * returns EXEC_FAULT. EXEC_BRANCH when delivered; EXEC_FAULT when delivery itself faulted (the
 * new exception is queued, already merged with vector per the double-fault rules for EVENT_EXCEPTION).
 */
enum exec deliver_event(struct vcpu *vcpu, u8 vector, enum event_type type, bool has_error, u32 error_code);
/*
 * The run loop's step before entering the engine: delivers the pending
 * exception, or NMI, or external interrupt if one is deliverable.
 * EXEC_OK: go on. EXEC_EXIT: kvm_run filled in (e.g. IRQ window, shutdown).
 */
enum exec inject_events(struct vcpu *vcpu);
/* IF is set and no interrupt shadow is in force. */
bool interrupt_allowed(const struct vcpu *vcpu);

/* ---- segments and control transfer (x86/ops/, used by API code too) --------- */

/* Load a data/stack segment register as MOV/POP/LDS do, all checks. CS, TR, LDTR have their own ops. */
enum exec load_segment(struct vcpu *vcpu, enum seg seg, u16 selector);
/* Fetch the descriptor of selector: GDT or LDT, with #GP/#NP style error_vec on limit violations. */
enum exec read_descriptor(struct vcpu *vcpu, u16 selector, u8 error_vec, u64 *desc);

/* ---- control registers, MSRs (x86/cr.c, x86/msr.c) --------------------------- */

/* Guest MOV to CRn / LMSW / CLTS / XSETBV semantics: checks, #GP, TLB and mode effects. EXEC_OK or EXEC_FAULT. */
enum exec set_cr0(struct vcpu *vcpu, u64 value);
enum exec set_cr3(struct vcpu *vcpu, u64 value);
enum exec set_cr4(struct vcpu *vcpu, u64 value);
enum exec set_cr8(struct vcpu *vcpu, u64 value);
u64 get_cr8(struct vcpu *vcpu);
enum exec set_xcr(struct vcpu *vcpu, u32 index, u64 value);
enum exec set_dr(struct vcpu *vcpu, unsigned nr, u64 value);
enum exec get_dr(struct vcpu *vcpu, unsigned nr, u64 *value);
/* Recompute eff_dr/eff_dr7 after DR or guest-debug changes. */
void update_effective_dr(struct vcpu *vcpu);

/*
 * MSR access. host_initiated: KVM_GET/SET_MSRS (no #GP, wider rules). Returns 0,
 * or 1 for "no such MSR / bad value" (guest: #GP; host: loop stops).
 */
int msr_read(struct vcpu *vcpu, u32 index, u64 *value, bool host_initiated);
int msr_write(struct vcpu *vcpu, u32 index, u64 value, bool host_initiated);
/* Guest RDMSR/WRMSR with filters and userspace exits on top. EXEC_OK/FAULT/EXIT. */
enum exec guest_rdmsr(struct vcpu *vcpu, u32 index, u64 *value);
enum exec guest_wrmsr(struct vcpu *vcpu, u32 index, u64 value);

/* ---- cpuid (x86/cpuid.c) ----------------------------------------------------- */

/* Guest CPUID instruction, fully resolved (OSXSAVE, APIC id, XSAVE sizes, out-of-range rules). */
void guest_cpuid(struct vcpu *vcpu, u32 *eax, u32 *ebx, u32 *ecx, u32 *edx);
struct kvm_cpuid_entry2 *cpuid_find(struct vcpu *vcpu, u32 function, u32 index);
/* A feature bit of the guest's CPUID. */
enum cpuid_reg { CPUID_EAX, CPUID_EBX, CPUID_ECX, CPUID_EDX };
bool guest_cpuid_has(struct vcpu *vcpu, u32 function, u32 index, enum cpuid_reg reg, unsigned bit);
/* What KVM_GET_SUPPORTED_CPUID reports; fills at most max entries, returns the number wanted. */
u32 cpuid_supported(struct kvm_cpuid_entry2 *entries, u32 max);
/* After KVM_SET_CPUID2: reserved bits, maxphyaddr, xcr0, pv features. */
void cpuid_updated(struct vcpu *vcpu);

/* ---- time (x86/tsc.c, x86/pvclock.c) ------------------------------------------ */

u64 guest_tsc(struct vcpu *vcpu);			/* now */
u64 guest_tsc_from_host(struct vcpu *vcpu, u64 host_tsc);
/* CLOCK_MONOTONIC ns at which the guest's TSC will reach tsc (now if past). */
u64 guest_tsc_to_deadline_ns(struct vcpu *vcpu, u64 tsc);
void pvclock_update(struct vcpu *vcpu);			/* KVM_REQ_CLOCK_UPDATE; in guest mode */
void steal_time_update(struct vcpu *vcpu);		/* KVM_REQ_STEAL_UPDATE; in guest mode */
/* 1: aborted by a kick (host_kicked), to be done again. Memory that is not there is no error. */
int pvclock_write_wall_clock(struct vcpu *vcpu, gpa_t gpa);
u64 vm_kvmclock_ns(struct vm *vm);			/* any thread */

/* ---- FPU (x86/fpu.c) ------------------------------------------------------------ */

void fpu_reset(struct vcpu *vcpu, bool init_not_reset);
/* Make arch.fpu complete (x87 out of the host registers). Before anything outside x86/interp or ops/fpu looks. */
void x87_sync(struct vcpu *vcpu);
void fpu_to_xsave(struct vcpu *vcpu, void *xsave, u32 size);	 /* standard format */
int fpu_from_xsave(struct vcpu *vcpu, const void *xsave, u32 size); /* 0 or -EINVAL */
u32 xstate_size(u64 xcr0);	/* standard format bytes for these features */

/* ---- hypercalls (x86/hypercall.c) ------------------------------------------------ */

enum exec emulate_hypercall(struct vcpu *vcpu);	/* VMCALL/VMMCALL; EXEC_OK sets rax */
/* KVM_RUN entry: the client answered KVM_EXIT_HYPERCALL; sets rax and steps over the instruction. */
void hypercall_complete_userspace(struct vcpu *vcpu);
/* arch.hypercall_exit: whose exit it is. KVM_EXIT_HYPERV_SYNDBG's instruction has retired, the others' wait. */
enum hypercall_exit {
	HYPERCALL_EXIT_NONE, HYPERCALL_EXIT_KVM, HYPERCALL_EXIT_HYPERV, HYPERCALL_EXIT_SYNDBG, HYPERCALL_EXIT_XEN,
};
/* kvm_run is filled in; the answer will go to the hypercall at rip. */
void hypercall_wait_for_userspace(struct vcpu *vcpu, enum hypercall_exit kind);

/* ---- PIO and MMIO (x86/mmio.c) ---------------------------------------------------- */

/*
 * One access to something that is not RAM, len 1..8, not crossing a page. Answers from the log of this
 * instruction, from an in-kernel device, or sets up KVM_EXIT_MMIO and returns EXEC_EXIT.
 */
enum exec mmio_read(struct vcpu *vcpu, gpa_t gpa, void *data, unsigned len);
enum exec mmio_write(struct vcpu *vcpu, gpa_t gpa, const void *data, unsigned len);
/* IN/OUT of one item, len 1, 2, 4. Same contract, KVM_EXIT_IO with count 1. */
enum exec pio_read(struct vcpu *vcpu, u16 port, void *data, unsigned len);
enum exec pio_write(struct vcpu *vcpu, u16 port, const void *data, unsigned len);
/* In-kernel device answers at this port/gpa? (no side effects; for string-PIO batching) */
bool pio_is_in_kernel(struct vcpu *vcpu, u16 port);
/* KVM_RUN entry: take the answer userspace left in kvm_run. */
void mmio_complete_userspace(struct vcpu *vcpu);
/* Instruction boundary: forget the log. */
static inline void mmio_boundary(struct vcpu *vcpu)
{
	if (unlikely(vcpu->arch.mmio.nr | vcpu->arch.mmio.pending))
		vcpu->arch.mmio.nr = vcpu->arch.mmio.cursor = vcpu->arch.mmio.pending = 0;
}

/* ---- run loop (x86/run.c) ----------------------------------------------------------- */

/* Fill kvm_run for KVM_EXIT_INTERNAL_ERROR/EMULATION with the bytes at rip, print the reproducer line. */
void report_unhandled(struct vcpu *vcpu);
/* Power-on / INIT state. */
void vcpu_reset(struct vcpu *vcpu, bool init_event);
/* Process latched INIT/SIPI (apic_pending_events). True if state changed. */
bool vcpu_accept_apic_events(struct vcpu *vcpu);
/* HLT retired: halt in kernel or KVM_EXIT_HLT. */
enum exec vcpu_halt(struct vcpu *vcpu);

/* The engine: x86/interp (x86/dbt later). Runs until something other than plain execution is needed. */
enum exec interp_run(struct vcpu *vcpu, bool single_instruction);
void interp_destroy(struct vcpu *vcpu);
/* Translations of code derived from state that just changed wholesale (SET_SREGS, slots): recheck bytes. */
void interp_flush(struct vcpu *vcpu);
/* How often the interpreter has dropped all its blocks and thunks. */
u32 interp_generation(struct vcpu *vcpu);
/* Decoding needs its caches: false without memory. Room for the thunks of nr instructions; may drop everything. */
bool interp_prepare(struct vcpu *vcpu);
void interp_make_room(struct vcpu *vcpu, unsigned nr);

/* Nothing but the next nr instructions, whatever is requested meanwhile; *done of them retired. */
enum exec interp_run_counted(struct vcpu *vcpu, u32 nr, u32 *done);

/* The translator: the same contract, for 64-bit mode without single steps; the run loop asks first. */
bool dbt_wanted(const struct vcpu *vcpu);
enum exec dbt_run(struct vcpu *vcpu);
void dbt_destroy(struct vcpu *vcpu);
void dbt_flush(struct vcpu *vcpu);
void dbt_recheck(struct vcpu *vcpu);
/* Decode the instruction at rip for diagnostics: bytes to buf (15 max), returns their number. */
unsigned fetch_insn_bytes(struct vcpu *vcpu, u8 *buf);

#endif

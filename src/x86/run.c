/* SPDX-License-Identifier: MIT */
/*
 * KVM_RUN: take requests, inject events, enter the engine, handle its exit.
 *
 * One word, vcpu->requests, says whether anybody wants this vCPU's attention;
 * the engine polls it between blocks. Invariants:
 *  1. Guest memory is touched only between vcpu_enter_guest_mode() and
 *     vcpu_leave_guest_mode(); a boundary is a leave followed by an enter, which
 *     takes a fresh memslots snapshot.
 *  2. The thread sleeps, and returns to userspace, only outside guest mode.
 *  3. An exit that userspace answers leaves rip at the instruction; it is executed again
 *     when KVM_RUN is next called (x86/mmio.c), before events are injected and
 *     before immediate_exit is honoured.
 */
#include <errno.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

#include "base/log.h"
#include "host/host.h"
#include "kvm/dirty_ring.h"
#include "kvm/trace.h"
#include "x86/cr.h"
#include "x86/debug.h"
#include "x86/hyperv.h"
#include "x86/irqchip.h"
#include "x86/mmu.h"
#include "x86/msr.h"
#include "x86/pvclock.h"
#include "x86/ops/io.h"
#include "x86/smm.h"
#include "x86/sync_regs.h"
#include "x86/x86.h"
#include "x86/xen.h"

/* ---- reset and multiprocessor start-up --------------------------------------- */

static void segment_reset(struct segment *s, u16 selector, u64 base, u32 ar)
{
	*s = (struct segment){ .selector = selector, .base = base, .limit = 0xffff, .ar = ar };
}

static u32 cpuid_signature(struct vcpu *vcpu)
{
	struct kvm_cpuid_entry2 *e = cpuid_find(vcpu, 1, 0);

	return e ? e->eax : 0x600;
}

void vcpu_reset(struct vcpu *vcpu, bool init_event)
{
	struct vcpu_arch *a = &vcpu->arch;
	u64 old_cr0 = a->cr0;

	memset(a->regs, 0, sizeof(a->regs));
	a->regs[RDX] = cpuid_signature(vcpu);
	a->rip = 0xfff0;
	a->rflags = X86_EFLAGS_FIXED;
	for (int i = SEG_ES; i <= SEG_GS; i++)
		segment_reset(&a->seg[i], 0, 0, 0x93);
	segment_reset(&a->seg[SEG_CS], 0xf000, 0xffff0000, 0x9b);
	segment_reset(&a->seg[SEG_TR], 0, 0, 0x8b);
	segment_reset(&a->seg[SEG_LDTR], 0, 0, 0x82);
	a->gdt = a->idt = (struct desc_table){ .limit = 0xffff };
	a->cr0 = X86_CR0_ET | (init_event ? old_cr0 & (X86_CR0_NW | X86_CR0_CD) : X86_CR0_NW | X86_CR0_CD);
	a->cr2 = a->cr3 = a->cr4 = a->efer = 0;
	memset(a->dr, 0, sizeof(a->dr));
	a->dr6 = 0xffff0ff0;
	a->dr7 = 0x400;
	update_effective_dr(vcpu);
	a->exception = (struct pending_exception){ 0 };
	a->interrupt = (struct pending_interrupt){ 0 };
	a->nmi_injected = a->nmi_masked = false;
	atomic_store(&a->smi_pending, false);
	a->msr.smi_count = 0;
	atomic_store(&a->nmi_pending, 0);
	a->interrupt_shadow = 0;
	a->triple_fault_pending = a->db_trap = false;
	a->mmio.nr = a->mmio.cursor = a->mmio.pending = 0;
	a->pio.count = 0;
	a->exit_after_insn = 0;
	a->code_page = ~0ull;
	a->msr.kvm_async_pf_en = a->msr.kvm_async_pf_int = 0;
	if (!init_event) {
		a->xcr0 = XFEATURE_X87;
		a->msr.pat = 0x0007040600070406ull;
		a->msr.smbase = SMBASE_RESET;
	}
	fpu_reset(vcpu, init_event);
	if (a->apic)
		lapic_reset(vcpu, init_event);
	vcpu_update_mode(vcpu);
	mmu_flush_all(vcpu);
}

bool vcpu_accept_apic_events(struct vcpu *vcpu)
{
	struct vcpu_arch *a = &vcpu->arch;
	u64 events = atomic_load(&a->apic_pending_events);

	if (!a->apic || !events)
		return false;
	/* SMM keeps an INIT for later, and no SIPI. */
	if (a->smm) {
		atomic_fetch_and(&a->apic_pending_events, ~APIC_EVENT_SIPI);
		return false;
	}
	if (events & APIC_EVENT_INIT) {
		atomic_fetch_and(&a->apic_pending_events, ~APIC_EVENT_INIT);
		vcpu_reset(vcpu, true);
		atomic_store(&a->mp_state, lapic_get_base(vcpu) & APIC_BASE_BSP ?
						   KVM_MP_STATE_RUNNABLE : KVM_MP_STATE_INIT_RECEIVED);
	}
	if (atomic_fetch_and(&a->apic_pending_events, ~APIC_EVENT_SIPI) & APIC_EVENT_SIPI) {
		if (atomic_load(&a->mp_state) == KVM_MP_STATE_INIT_RECEIVED) {
			u8 vector = atomic_load(&a->sipi_vector);

			segment_reset(&a->seg[SEG_CS], (u16)vector << 8, (u64)vector << 12, 0x9b);
			a->rip = 0;
			vcpu_update_mode(vcpu);
			atomic_store(&a->mp_state, KVM_MP_STATE_RUNNABLE);
		}
	}
	return true;
}

/* ---- halting ------------------------------------------------------------------------ */

enum exec vcpu_halt(struct vcpu *vcpu)
{
	vcpu->stat.halt_exits++;
	if (vcpu->arch.apic)
		atomic_store(&vcpu->arch.mp_state, KVM_MP_STATE_HALTED);
	else
		vcpu->arch.exit_after_insn = named_exit(KVM_EXIT_HLT);
	return EXEC_END;
}

static bool vcpu_has_events(struct vcpu *vcpu)
{
	struct vcpu_arch *a = &vcpu->arch;

	if (a->exception.pending || a->exception.injected || a->triple_fault_pending)
		return true;
	if ((atomic_load(&a->apic_pending_events) && !a->smm) || atomic_load(&a->pv_unhalted) ||
	    hyperv_stimer_pending(vcpu))
		return true;
	if (smm_smi_deliverable(vcpu))
		return true;
	if (a->nmi_injected || (atomic_load(&a->nmi_pending) && !a->nmi_masked))
		return true;
	return interrupt_allowed(vcpu) && (a->interrupt.injected || irqchip_has_interrupt(vcpu));
}

static bool vcpu_runnable(struct vcpu *vcpu)
{
	return atomic_load(&vcpu->arch.mp_state) == KVM_MP_STATE_RUNNABLE;
}

/* Requests that must be seen although the vCPU does not run. */
#define REQ_LEAVE_MASK (BIT_ULL(KVM_REQ_SIGNAL) | BIT_ULL(KVM_REQ_VM_DEAD) | BIT_ULL(KVM_REQ_STOP))

/* Takes both, whichever is set. */
static bool check_requests(struct vcpu *vcpu, enum vcpu_request a, enum vcpu_request b)
{
	bool has_a = vcpu_check_request(vcpu, a), has_b = vcpu_check_request(vcpu, b);

	return has_a || has_b;
}

static void take_code_page_request(struct vcpu *vcpu)
{
	if (vcpu_check_request(vcpu, KVM_REQ_CODE_PAGE))
		mmu_drop_tags_for_code(vcpu);
}

static void timer_check(struct vcpu *vcpu)
{
	bool due = vcpu_check_request(vcpu, KVM_REQ_APIC_TIMER);

	if (vcpu->arch.apic && (due || lapic_timer_deadline(vcpu) <= host_now_ns()))
		lapic_timer_fire(vcpu);
}

/* Not runnable: sleep until that changes or userspace is wanted. Outside guest mode. */
static void vcpu_block(struct vcpu *vcpu)
{
	struct vcpu_arch *a = &vcpu->arch;
	u64 begin = host_now_ns();

	vcpu->stat.blocking = 1;
	for (;;) {
		u32 state;

		timer_check(vcpu);
		vcpu_check_request(vcpu, KVM_REQ_EVENT);
		vcpu_check_request(vcpu, KVM_REQ_UNHALT);
		vcpu_accept_apic_events(vcpu);
		state = atomic_load(&a->mp_state);
		if ((state == KVM_MP_STATE_HALTED || state == KVM_MP_STATE_AP_RESET_HOLD) &&
		    (vcpu_has_events(vcpu) || xen_poll_is_over(vcpu))) {
			atomic_store(&a->pv_unhalted, false);
			atomic_store(&a->mp_state, KVM_MP_STATE_RUNNABLE);
			vcpu->stat.halt_wakeup++;
		}
		if (vcpu_runnable(vcpu) || (atomic_load(&vcpu->requests) & REQ_LEAVE_MASK))
			break;
		/* A request makes vcpu_wait() return at once, so take what needs no guest mode first. */
		vcpu_check_request(vcpu, KVM_REQ_SYNC);
		take_code_page_request(vcpu);
		if (vcpu_check_request(vcpu, KVM_REQ_TLB_FLUSH))
			mmu_flush_all(vcpu);
		if (atomic_load(&vcpu->requests) & (BIT_ULL(KVM_REQ_TRIPLE_FAULT) | BIT_ULL(KVM_REQ_HV_EXIT)))
			break;
		/* Wakes a halted vCPU; others have it made again below. */
		vcpu_check_request(vcpu, KVM_REQ_HV_STIMER);
		if (vcpu_check_request(vcpu, KVM_REQ_HV_FLUSH))
			hyperv_flush_wait(vcpu);
		if (vcpu_check_request(vcpu, KVM_REQ_CLOCK_UPDATE))
			a->clock_update_due = true;
		vcpu_check_request(vcpu, KVM_REQ_STEAL_UPDATE);
		/* A full dirty ring matters to who runs, and is looked at again then. */
		vcpu_check_request(vcpu, KVM_REQ_DIRTY_RING_SOFT_FULL);
		if (vcpu_check_request(vcpu, KVM_REQ_XEN)) {
			vcpu_enter_guest_mode(vcpu);
			xen_take_events(vcpu);
			vcpu_leave_guest_mode(vcpu);
			continue;
		}
		vcpu_wait(vcpu, min(a->apic ? lapic_timer_deadline(vcpu) : ~0ull, xen_poll_deadline(vcpu)));
	}
	xen_poll_end(vcpu);
	if (hyperv_stimer_pending(vcpu))
		vcpu_make_request(vcpu, KVM_REQ_HV_STIMER);
	vcpu->stat.blocking = 0;
	trace(kvm_vcpu_wakeup, vcpu->id, host_now_ns() - begin, true, true);
}

/* ---- exits to userspace --------------------------------------------------------------- */

unsigned fetch_insn_bytes(struct vcpu *vcpu, u8 *buf)
{
	gva_t va = linear_rip(vcpu);
	unsigned n = 0;

	for (; n < 15; n++) {
		gpa_t gpa;
		unsigned access = MMU_FETCH | MMU_NOFAULT | (vcpu->arch.cpl == 3 ? MMU_USER : 0);

		if (mmu_translate(vcpu, va + n, access, &gpa) != EXEC_OK ||
		    vcpu_read_guest(vcpu, gpa, buf + n, 1))
			break;
	}
	return n;
}

void report_unhandled(struct vcpu *vcpu)
{
	struct vcpu_arch *a = &vcpu->arch;
	struct kvm_run *run = vcpu->run;
	u8 bytes[15] = { 0 };
	unsigned n = fetch_insn_bytes(vcpu, bytes);
	char hex[48] = "";
	int len = 0;

	for (unsigned i = 0; i < n; i++)
		len += snprintf(hex + len, sizeof(hex) - len, "%02x ", bytes[i]);
	log_error("cannot emulate: vcpu %u rip 0x%llx cs 0x%x base 0x%llx cr0 0x%llx cr3 0x%llx "
		  "cr4 0x%llx efer 0x%llx rflags 0x%llx bytes %s",
		  vcpu->id, (unsigned long long)a->rip, a->seg[SEG_CS].selector,
		  (unsigned long long)a->seg[SEG_CS].base, (unsigned long long)a->cr0,
		  (unsigned long long)a->cr3, (unsigned long long)a->cr4, (unsigned long long)a->efer,
		  (unsigned long long)a->rflags, n ? hex : "(not fetchable)");
	vcpu->stat.insn_emulation_fail++;
	run->exit_reason = named_exit(KVM_EXIT_INTERNAL_ERROR);
	run->internal.suberror = KVM_INTERNAL_ERROR_EMULATION;
	run->emulation_failure.ndata = n ? 4 : 0;
	run->emulation_failure.flags = n ? KVM_INTERNAL_ERROR_EMULATION_FLAG_INSTRUCTION_BYTES : 0;
	run->emulation_failure.insn_size = n;
	memset(run->emulation_failure.insn_bytes, 0x90, sizeof(run->emulation_failure.insn_bytes));
	memcpy(run->emulation_failure.insn_bytes, bytes, n);
}

/* The guest interrupt window is open and userspace (with its own PIC) has asked for it. */
static bool ready_for_injection(struct vcpu *vcpu)
{
	struct vcpu_arch *a = &vcpu->arch;

	if (arch_irqchip_full(vcpu->vm) || !interrupt_allowed(vcpu))
		return false;
	if (a->exception.pending || a->exception.injected || a->interrupt.injected || a->nmi_injected)
		return false;
	return !a->apic || irqchip_accepts_extint(vcpu);
}

static void run_save(struct vcpu *vcpu)
{
	struct kvm_run *run = vcpu->run;

	run->if_flag = !!(vcpu->arch.rflags & X86_EFLAGS_IF);
	run->cr8 = get_cr8(vcpu);
	run->apic_base = vcpu->arch.apic ? lapic_get_base(vcpu) : vcpu->arch.msr.apic_base;
	run->ready_for_interrupt_injection = arch_irqchip_full(vcpu->vm) || ready_for_injection(vcpu);
	run->flags = vcpu->arch.smm ? KVM_RUN_X86_SMM : 0;
}

/* ---- one turn of the loop ---------------------------------------------------------------- */

enum { RUN_AGAIN = 1 }; /* otherwise 0 or -errno: what KVM_RUN returns */

void arch_vcpu_flush_tlb(struct vcpu *vcpu)
{
	mmu_flush_all(vcpu);
}

/* Mode is IN_GUEST. */
static int take_requests(struct vcpu *vcpu)
{
	struct kvm_run *run = vcpu->run;

	if (vcpu_check_request(vcpu, KVM_REQ_VM_DEAD) || atomic_load(&vcpu->vm->dead))
		return -EIO;
	if (vcpu_check_request(vcpu, KVM_REQ_DIRTY_RING_SOFT_FULL) && dirty_ring_soft_full(vcpu)) {
		trace(kvm_dirty_ring_exit, vcpu->id, 0);
		run->exit_reason = named_exit(KVM_EXIT_DIRTY_RING_FULL);
		vcpu->stat.dirty_ring_full_exits++;
		return 0;
	}
	/* Before flushes asked of this vCPU meanwhile are looked for. */
	if (vcpu_check_request(vcpu, KVM_REQ_HV_FLUSH)) {
		vcpu_leave_guest_mode(vcpu);
		hyperv_flush_wait(vcpu);
		vcpu_enter_guest_mode(vcpu);
	}
	if (check_requests(vcpu, KVM_REQ_SYNC, KVM_REQ_TLB_FLUSH)) {
		vcpu_leave_guest_mode(vcpu);
		mmu_flush_all(vcpu);
		vcpu_enter_guest_mode(vcpu);
	}
	take_code_page_request(vcpu);
	timer_check(vcpu);
	vcpu_check_request(vcpu, KVM_REQ_EVENT);
	vcpu_check_request(vcpu, KVM_REQ_UNHALT);
	if (vcpu_check_request(vcpu, KVM_REQ_CLOCK_UPDATE) || vcpu->arch.clock_update_due) {
		vcpu->arch.clock_update_due = false;
		pvclock_update(vcpu);
		hyperv_clock_update(vcpu);
		xen_clock_update(vcpu);
	}
	if (vcpu_check_request(vcpu, KVM_REQ_STEAL_UPDATE)) {
		steal_time_update(vcpu);
		xen_runstate_running(vcpu);
	}
	if (vcpu_check_request(vcpu, KVM_REQ_XEN))
		xen_take_events(vcpu);
	if (vcpu_check_request(vcpu, KVM_REQ_TRIPLE_FAULT) || vcpu->arch.triple_fault_pending) {
		vcpu->arch.triple_fault_pending = false;
		run->exit_reason = named_exit(KVM_EXIT_SHUTDOWN);
		return 0;
	}
	if (vcpu_check_request(vcpu, KVM_REQ_IOAPIC_EOI)) {
		run->exit_reason = named_exit(KVM_EXIT_IOAPIC_EOI);
		run->eoi.vector = vcpu->arch.pending_ioapic_eoi;
		return 0;
	}
	if (vcpu_check_request(vcpu, KVM_REQ_HV_EXIT) && hyperv_take_exit(vcpu))
		return 0;
	if (vcpu_check_request(vcpu, KVM_REQ_HV_STIMER))
		hyperv_stimer_run(vcpu);
	if (check_requests(vcpu, KVM_REQ_SIGNAL, KVM_REQ_STOP)) {
		run->exit_reason = named_exit(KVM_EXIT_INTR);
		vcpu->stat.signal_exits++;
		return -EINTR;
	}
	return RUN_AGAIN;
}

static bool must_single_step(const struct vcpu *vcpu)
{
	return vcpu->arch.interrupt_shadow || (vcpu->arch.rflags & X86_EFLAGS_TF) ||
	       (vcpu->guest_debug.control & KVM_GUESTDBG_SINGLESTEP) || (vcpu->arch.eff_dr7 & 0xff);
}

static int engine_exit(struct vcpu *vcpu, enum exec r)
{
	switch (r) {
	case EXEC_EXIT:
		return 0;
	case EXEC_EFAULT:
		return -EFAULT;
	case EXEC_UNHANDLED:
		report_unhandled(vcpu);
		return 0;
	case EXEC_FAULT:
		mmio_boundary(vcpu);
		break;
	default:
		break;
	}
	vcpu->arch.mmio.cursor = 0;
	if (unlikely(vcpu->arch.db_trap)) {
		vcpu->arch.db_trap = false;
		if (r != EXEC_FAULT)
			(void)queue_db(vcpu, vcpu->arch.db_dr6);
		vcpu->arch.db_dr6 = 0;
	}
	if (unlikely(vcpu->arch.exit_after_insn)) {
		vcpu->run->exit_reason = vcpu->arch.exit_after_insn;
		vcpu->arch.exit_after_insn = 0;
		return 0;
	}
	return RUN_AGAIN;
}

static int run_engine(struct vcpu *vcpu, bool single)
{
	enum exec r;

	trace(kvm_entry, vcpu->id, vcpu->arch.rip, vcpu->run->immediate_exit);
	r = !single && in_flat_mode(vcpu) && dbt_wanted(vcpu) ? dbt_run(vcpu) : interp_run(vcpu, single);
	if (unlikely(vcpu->arch.mmu->nr_code_stores) && !vcpu->arch.dbt)
		mmu_publish_code_stores(vcpu);
	trace(kvm_exit, vcpu->id, r, vcpu->arch.rip, r == EXEC_EXIT ? vcpu->run->exit_reason : 0);
	return engine_exit(vcpu, r);
}

/* About to sleep or to return to userspace: leave nothing half done in guest memory or host registers. */
static void run_pause(struct vcpu *vcpu)
{
	x87_sync(vcpu);
	if (vcpu->arch.apic)
		lapic_sync_pv_eoi_from_guest(vcpu);
	steal_time_set_preempted(vcpu);
	vcpu_leave_guest_mode(vcpu);
}

/* While the ring is full no guest code runs: take_requests() sees to it. */
static void request_ring_check(struct vcpu *vcpu)
{
	if (unlikely(dirty_ring_soft_full(vcpu)))
		vcpu_make_request(vcpu, KVM_REQ_DIRTY_RING_SOFT_FULL);
}

static int run_turn(struct vcpu *vcpu)
{
	int r;
	enum exec e;

	if (unlikely(!vcpu_runnable(vcpu))) {
		run_pause(vcpu);
		vcpu_block(vcpu);
		vcpu_enter_guest_mode(vcpu);
		request_ring_check(vcpu);
	}
	if (unlikely(vcpu_has_requests(vcpu))) {
		r = take_requests(vcpu);
		if (r != RUN_AGAIN)
			return r;
	}
	if (atomic_load_explicit(&vcpu->arch.apic_pending_events, memory_order_relaxed))
		vcpu_accept_apic_events(vcpu);
	if (unlikely(!vcpu_runnable(vcpu)))
		return RUN_AGAIN;
	e = inject_events(vcpu);
	if (unlikely(e != EXEC_OK && e != EXEC_BRANCH))
		return engine_exit(vcpu, e);
	if (vcpu->run->request_interrupt_window && ready_for_injection(vcpu)) {
		vcpu->run->exit_reason = named_exit(KVM_EXIT_IRQ_WINDOW_OPEN);
		vcpu->stat.irq_window_exits++;
		return 0;
	}
	return run_engine(vcpu, must_single_step(vcpu));
}

/* An instruction waits for userspace's answer: finish it (or exit again) before anything else. */
static bool completion_due(const struct vcpu *vcpu)
{
	return vcpu->arch.mmio.pending || vcpu->arch.pio.count || vcpu->arch.msr_exit_kind ||
	       vcpu->arch.hypercall_exit;
}

static int complete_userspace(struct vcpu *vcpu)
{
	if (!completion_due(vcpu))
		return RUN_AGAIN;
	mmio_complete_userspace(vcpu);
	pio_complete_userspace(vcpu);
	msr_complete_userspace(vcpu);
	hypercall_complete_userspace(vcpu);
	if (!vcpu->arch.mmio.nr && !vcpu->arch.pio.count && !vcpu->arch.msr_exit_kind)
		return RUN_AGAIN;
	return run_engine(vcpu, true);
}

static int run_loop(struct vcpu *vcpu)
{
	int r;

	vcpu_enter_guest_mode(vcpu);
	request_ring_check(vcpu);
	if (vcpu->arch.dbt)
		dbt_recheck(vcpu);
	r = complete_userspace(vcpu);
	if (r == RUN_AGAIN && vcpu->run->immediate_exit)
		r = -EINTR;
	/* EFAULT says more with KVM_EXIT_MEMORY_FAULT, or nothing. An immediate exit leaves the last reason alone. */
	if (r == RUN_AGAIN)
		vcpu->run->exit_reason = KVM_EXIT_UNKNOWN;
	while (r == RUN_AGAIN)
		r = run_turn(vcpu);
	run_pause(vcpu);
	return r;
}

/* An AP waiting for SIPI: KVM returns EAGAIN once it has been started. */
static int wait_for_sipi(struct vcpu *vcpu)
{
	if (vcpu->run->immediate_exit)
		return -EINTR;
	vcpu_block(vcpu);
	if (vcpu_check_request(vcpu, KVM_REQ_VM_DEAD))
		return -EIO;
	if (check_requests(vcpu, KVM_REQ_SIGNAL, KVM_REQ_STOP)) {
		vcpu->run->exit_reason = named_exit(KVM_EXIT_INTR);
		vcpu->stat.signal_exits++;
		return -EINTR;
	}
	return -EAGAIN;
}

static int run_prepare(struct vcpu *vcpu)
{
	int r;

	vcpu->arch.cpuid_frozen = true;
	if (!vcpu->arch.mmu) {
		r = mmu_create(vcpu);
		if (r)
			return r;
	}
	/* What cannot be had in the middle of an instruction. */
	if (!vcpu->arch.mmio.accesses)
		vcpu->arch.mmio.accesses = calloc(MMIO_LOG_MAX, sizeof(*vcpu->arch.mmio.accesses));
	if (!vcpu->arch.mmio.accesses || !interp_prepare(vcpu))
		return -ENOMEM;
	r = sync_regs_load(vcpu);
	if (r)
		return r;
	if (!vcpu->arch.apic && set_cr8(vcpu, vcpu->run->cr8) != EXEC_OK)
		return -EINVAL;
	if (vcpu->arch.msr.kvm_steal_time & 1)
		vcpu_make_request(vcpu, KVM_REQ_STEAL_UPDATE);
	return xen_run_prepare(vcpu);
}

/* KVM_RUN is about to return r. kvm_run is the client's to scribble on: its exit_reason is read once. */
static void run_account(struct vcpu *vcpu, int r)
{
	u32 reason = *(volatile u32 *)&vcpu->run->exit_reason;

	/* These come with EFAULT (or EHWPOISON), and are exits nevertheless. */
	if (r && reason == named_exit(KVM_EXIT_MEMORY_FAULT) && (r == -EFAULT || r == -EHWPOISON))
		r = 0;
	trace(kvm_userspace_exit, vcpu->id, reason, (s64)r);
	if (r == -EINTR)
		reason = named_exit(KVM_EXIT_INTR);
	else if (r)
		return;
	vcpu->stat.userspace_exits[min(reason, EXIT_REASON_BUCKETS - 1u)]++;
}

int arch_vcpu_run(struct vcpu *vcpu)
{
	struct host_guest_ctx ctx = {
		.requests = &vcpu->requests,
		.signal_request = BIT_ULL(KVM_REQ_SIGNAL),
		.tick_request = BIT_ULL(KVM_REQ_APIC_TIMER),
		.wake = &vcpu->wake_futex,
	};
	int r = run_prepare(vcpu);

	if (r)
		return r;
	vcpu->stat.exits++;
	host_guest_enter(&ctx, vcpu->sigset_active ? &vcpu->sigset : NULL);
	if (atomic_load(&vcpu->arch.mp_state) == KVM_MP_STATE_UNINITIALIZED)
		r = wait_for_sipi(vcpu);
	else
		r = run_loop(vcpu);
	run_save(vcpu);
	sync_regs_store(vcpu);
	run_account(vcpu, r);
	lapic_timer_leave(vcpu);
	atomic_fetch_and(&vcpu->requests, ~BIT_ULL(KVM_REQ_SIGNAL));
	/* The client's handlers run in here, on its own stack. */
	host_guest_leave(&ctx);
	return r;
}

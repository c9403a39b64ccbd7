/* SPDX-License-Identifier: MIT */
/*
 * Register state as KVM_GET/SET_REGS, SREGS(2), VCPU_EVENTS and DEBUGREGS exchange it.
 *
 *  1. A setter checks its whole argument first; on -EINVAL nothing has changed.
 *  2. Arguments are the caller's private copy: nobody edits them meanwhile.
 *  3. After a setter the derived mode, TLB and decoded code agree with the registers.
 */
#include <errno.h>
#include <string.h>

#include "host/syscall.h"
#include "x86/cr.h"
#include "x86/debug.h"
#include "x86/irqchip.h"
#include "x86/mmu.h"
#include "x86/smm.h"
#include "x86/state.h"

/* ---- guest memory from ioctls ------------------------------------------------ */

void guest_access_begin(struct vcpu *vcpu, struct guest_access *ga)
{
	memset(ga, 0, sizeof(*ga));
	ga->entered_host = !host_guest_current;
	if (ga->entered_host)
		host_guest_enter(&ga->ctx, NULL);
	ga->entered_guest = atomic_load(&vcpu->mode) == VCPU_OUTSIDE;
	if (!ga->entered_guest)
		return;
	/* Whoever waits for this vCPU kicks this thread, should it sleep in a fault of the client's memory. */
	atomic_store(&vcpu->tid, (pid_t)host_syscall(SYS_gettid, 0, 0, 0, 0));
	vcpu_enter_guest_mode(vcpu);
}

bool guest_access_kicked(struct vcpu *vcpu, struct guest_access *ga)
{
	if (!ga->entered_guest || !host_kicked)
		return false;
	host_kicked = false;
	vcpu_leave_guest_mode(vcpu);
	vcpu_enter_guest_mode(vcpu);
	return true;
}

void guest_access_end(struct vcpu *vcpu, struct guest_access *ga)
{
	if (ga->entered_guest) {
		/* The TLB and its slot cache follow the snapshot of KVM_RUN only. */
		mmu_flush_all(vcpu);
		vcpu_leave_guest_mode(vcpu);
	}
	if (ga->entered_host)
		host_guest_leave(&ga->ctx);
}

void state_changed(struct vcpu *vcpu)
{
	vcpu_update_mode(vcpu);
	mmu_flush_all(vcpu);
	if (vcpu->arch.interp)
		interp_flush(vcpu);
	if (vcpu->arch.dbt)
		dbt_flush(vcpu);
	vcpu_make_request(vcpu, KVM_REQ_EVENT);
}

/* ---- general registers --------------------------------------------------------- */

/* Members of struct kvm_regs in the order of enum gpr. */
static const u8 regs_offset[16] = {
#define R(name) offsetof(struct kvm_regs, name)
	R(rax), R(rcx), R(rdx), R(rbx), R(rsp), R(rbp), R(rsi), R(rdi),
	R(r8), R(r9), R(r10), R(r11), R(r12), R(r13), R(r14), R(r15),
#undef R
};

void regs_get(struct vcpu *vcpu, struct kvm_regs *regs)
{
	for (int i = 0; i < 16; i++)
		*(__u64 *)((char *)regs + regs_offset[i]) = vcpu->arch.regs[i];
	regs->rip = vcpu->arch.rip;
	regs->rflags = vcpu->arch.rflags;
}

void regs_set(struct vcpu *vcpu, const struct kvm_regs *regs)
{
	for (int i = 0; i < 16; i++)
		vcpu->arch.regs[i] = *(const __u64 *)((const char *)regs + regs_offset[i]);
	vcpu->arch.rip = regs->rip;
	vcpu_set_rflags(vcpu, regs->rflags);
	vcpu->arch.exception.pending = false;
	state_changed(vcpu);
}

/* ---- segments and control registers ---------------------------------------------- */

static const u16 segs_offset[NR_SEGS] = {
#define S(name) offsetof(struct kvm_sregs, name)
	[SEG_ES] = S(es), [SEG_CS] = S(cs), [SEG_SS] = S(ss), [SEG_DS] = S(ds),
	[SEG_FS] = S(fs), [SEG_GS] = S(gs), [SEG_TR] = S(tr), [SEG_LDTR] = S(ldt),
#undef S
};

/* The two layouts agree up to apic_base; the common part is handled through struct kvm_sregs. */
_Static_assert(offsetof(struct kvm_sregs, interrupt_bitmap) == offsetof(struct kvm_sregs2, flags),
	       "struct kvm_sregs2 extends the head of struct kvm_sregs");
#define SREGS_COMMON offsetof(struct kvm_sregs, interrupt_bitmap)

static void segment_to_kvm(const struct segment *s, struct kvm_segment *k)
{
	bool unusable = (s->ar & AR_UNUSABLE) || !(s->ar & AR_P);

	*k = (struct kvm_segment){
		.base = s->base,
		.limit = s->limit,
		.selector = s->selector,
		.type = s->ar & AR_TYPE,
		.present = !unusable,
		.dpl = (s->ar & AR_DPL) >> AR_DPL_SHIFT,
		.db = !!(s->ar & AR_DB),
		.s = !!(s->ar & AR_S),
		.l = !!(s->ar & AR_L),
		.g = !!(s->ar & AR_G),
		.avl = !!(s->ar & AR_AVL),
		.unusable = unusable,
	};
}

static void segment_from_kvm(const struct kvm_segment *k, struct segment *s)
{
	bool unusable = k->unusable || !k->present;

	s->base = k->base;
	s->limit = k->limit;
	s->selector = k->selector;
	s->ar = (k->type & AR_TYPE) | (k->s ? AR_S : 0) | (k->dpl & 3u) << AR_DPL_SHIFT |
		(unusable ? AR_UNUSABLE : AR_P) | (k->avl ? AR_AVL : 0) | (k->l ? AR_L : 0) |
		(k->db ? AR_DB : 0) | (k->g ? AR_G : 0);
}

static u64 apic_base_get(struct vcpu *vcpu)
{
	return vcpu->arch.apic ? lapic_get_base(vcpu) : vcpu->arch.msr.apic_base;
}

/* Without an APIC of ours the register is still checked and kept, as KVM does. */
static bool apic_base_set(struct vcpu *vcpu, u64 value)
{
	u64 reserved = 0x2ff;

	if (vcpu->arch.apic)
		return !lapic_set_base(vcpu, value, true);
	if (!guest_cpuid_has(vcpu, 1, 0, CPUID_ECX, 21))
		reserved |= APIC_BASE_X2APIC;
	if ((value & reserved) || !cr3_valid(vcpu, value))
		return false;
	if ((value & APIC_BASE_X2APIC) && !(value & APIC_BASE_ENABLE))
		return false;
	vcpu->arch.msr.apic_base = value;
	return true;
}

/* #DB and #PF carry DR6 and CR2 along until delivery; clients that do not know of payloads see them at once. */
static void deliver_payload_early(struct vcpu *vcpu)
{
	struct pending_exception *e = &vcpu->arch.exception;

	if (vcpu->vm->arch.exception_payload || !e->pending || !e->has_payload)
		return;
	if (e->vector == DB_VECTOR) {
		u64 dr6 = (vcpu->arch.dr6 & ~0xfull) | DR6_RESET | e->payload;

		/* RTM and BUS_LOCK are active low in DR6, active high in the payload. */
		vcpu->arch.dr6 = (dr6 ^ (e->payload & DR6_RESET)) & ~BIT_ULL(12);
	} else if (e->vector == PF_VECTOR) {
		vcpu->arch.cr2 = e->payload;
	}
	e->has_payload = false;
	e->payload = 0;
}

static void sregs_get_common(struct vcpu *vcpu, struct kvm_sregs *s)
{
	struct vcpu_arch *a = &vcpu->arch;

	deliver_payload_early(vcpu);
	for (int i = 0; i < NR_SEGS; i++)
		segment_to_kvm(&a->seg[i], (struct kvm_segment *)((char *)s + segs_offset[i]));
	s->gdt = (struct kvm_dtable){ .base = a->gdt.base, .limit = a->gdt.limit };
	s->idt = (struct kvm_dtable){ .base = a->idt.base, .limit = a->idt.limit };
	s->cr0 = a->cr0;
	s->cr2 = a->cr2;
	s->cr3 = a->cr3;
	s->cr4 = a->cr4;
	s->cr8 = get_cr8(vcpu);
	s->efer = a->efer;
	s->apic_base = apic_base_get(vcpu);
}

void sregs_get(struct vcpu *vcpu, struct kvm_sregs *sregs)
{
	struct pending_interrupt *irq = &vcpu->arch.interrupt;

	memset(sregs, 0, sizeof(*sregs));
	sregs_get_common(vcpu, sregs);
	if (irq->injected && !irq->soft)
		sregs->interrupt_bitmap[irq->nr / 64] |= BIT_ULL(irq->nr % 64);
}

void sregs2_get(struct vcpu *vcpu, struct kvm_sregs2 *sregs)
{
	struct kvm_sregs common;

	memset(sregs, 0, sizeof(*sregs));
	sregs_get_common(vcpu, &common);
	memcpy(sregs, &common, SREGS_COMMON);
	if (pae_paging(vcpu)) {
		memcpy(sregs->pdptrs, vcpu->arch.pdptrs, sizeof(sregs->pdptrs));
		sregs->flags = KVM_SREGS2_FLAGS_PDPTRS_VALID;
	}
}

static bool sregs_valid(struct vcpu *vcpu, const struct kvm_sregs *s)
{
	if ((s->efer & EFER_LME) && (s->cr0 & X86_CR0_PG)) {
		if (!(s->cr4 & X86_CR4_PAE) || !(s->efer & EFER_LMA) || !cr3_valid(vcpu, s->cr3))
			return false;
	} else if ((s->efer & EFER_LMA) || s->cs.l) {
		return false;
	}
	return cr4_valid(vcpu, s->cr4) && cr0_valid(s->cr0) && efer_valid(vcpu, s->efer);
}

/* Old clients reset the boot processor without KVM_SET_MP_STATE. */
static void unhalt_after_reset(struct vcpu *vcpu)
{
	struct vcpu_arch *a = &vcpu->arch;

	if (vcpu->id == vcpu->vm->arch.boot_cpu_id && a->rip == 0xfff0 &&
	    a->seg[SEG_CS].selector == 0xf000 && a->seg[SEG_CS].base == 0xffff0000 &&
	    !(a->cr0 & X86_CR0_PE))
		atomic_store(&a->mp_state, KVM_MP_STATE_RUNNABLE);
}

static void pdptrs_reload(struct vcpu *vcpu)
{
	struct guest_access ga;

	guest_access_begin(vcpu, &ga);
	do {
		/* Not checked: a bad table shows when it is used, as in KVM. */
		if (mmu_load_pdptrs(vcpu, vcpu->arch.cr3))
			vcpu->arch.pdptrs_from_userspace = false;
	} while (guest_access_kicked(vcpu, &ga));
	guest_access_end(vcpu, &ga);
}

static int sregs_set_common(struct vcpu *vcpu, const struct kvm_sregs *s, const __u64 *pdptrs)
{
	struct vcpu_arch *a = &vcpu->arch;

	if (!sregs_valid(vcpu, s) || !apic_base_set(vcpu, s->apic_base))
		return -EINVAL;

	a->gdt = (struct desc_table){ .base = s->gdt.base, .limit = s->gdt.limit };
	a->idt = (struct desc_table){ .base = s->idt.base, .limit = s->idt.limit };
	a->cr0 = s->cr0;
	a->cr2 = s->cr2;
	a->cr3 = s->cr3;
	a->cr4 = s->cr4;
	a->efer = s->efer;
	for (int i = 0; i < NR_SEGS; i++)
		segment_from_kvm((const struct kvm_segment *)((const char *)s + segs_offset[i]),
				 &a->seg[i]);
	(void)cr8_write(vcpu, s->cr8);
	if (pdptrs) {
		memcpy(a->pdptrs, pdptrs, sizeof(a->pdptrs));
		a->pdptrs_from_userspace = true;
	} else if (pae_paging(vcpu)) {
		pdptrs_reload(vcpu);
	}
	unhalt_after_reset(vcpu);
	state_changed(vcpu);
	return 0;
}

int sregs_set(struct vcpu *vcpu, const struct kvm_sregs *sregs)
{
	int r = sregs_set_common(vcpu, sregs, NULL);

	if (r)
		return r;
	for (unsigned i = 0; i < ARRAY_SIZE(sregs->interrupt_bitmap); i++) {
		if (!sregs->interrupt_bitmap[i])
			continue;
		vcpu->arch.interrupt = (struct pending_interrupt){
			.injected = true,
			.nr = i * 64 + __builtin_ctzll(sregs->interrupt_bitmap[i]),
		};
		break;
	}
	return 0;
}

int sregs2_set(struct vcpu *vcpu, const struct kvm_sregs2 *sregs)
{
	bool pae = (sregs->cr0 & X86_CR0_PG) && (sregs->cr4 & X86_CR4_PAE) &&
		   !(sregs->efer & EFER_LMA);
	bool pdptrs = sregs->flags & KVM_SREGS2_FLAGS_PDPTRS_VALID;
	struct kvm_sregs common = { 0 };

	if ((sregs->flags & ~(u64)KVM_SREGS2_FLAGS_PDPTRS_VALID) || (pdptrs && !pae))
		return -EINVAL;
	memcpy(&common, sregs, SREGS_COMMON);
	return sregs_set_common(vcpu, &common, pdptrs ? sregs->pdptrs : NULL);
}

/* ---- events ------------------------------------------------------------------------- */

static bool exception_is_soft(u8 vector)
{
	return vector == BP_VECTOR || vector == OF_VECTOR;
}

bool triple_fault_pending(struct vcpu *vcpu)
{
	return vcpu->arch.triple_fault_pending ||
	       (atomic_load(&vcpu->requests) & BIT_ULL(KVM_REQ_TRIPLE_FAULT));
}

static void exception_get(struct vcpu *vcpu, struct kvm_vcpu_events *events)
{
	const struct pending_exception *e = &vcpu->arch.exception;

	/* INT3 and INTO are not reported: rip still points at them, they happen again. */
	if (!exception_is_soft(e->vector)) {
		events->exception.injected = e->injected;
		events->exception.pending = e->pending;
		if (!vcpu->vm->arch.exception_payload)
			events->exception.injected |= e->pending;
	}
	events->exception.nr = e->vector;
	events->exception.has_error_code = e->has_error_code;
	events->exception.error_code = e->error_code;
	events->exception_has_payload = e->has_payload;
	events->exception_payload = e->payload;
}

void vcpu_events_get(struct vcpu *vcpu, struct kvm_vcpu_events *events)
{
	struct vcpu_arch *a = &vcpu->arch;

	memset(events, 0, sizeof(*events));
	deliver_payload_early(vcpu);
	exception_get(vcpu, events);

	events->interrupt.injected = a->interrupt.injected && !a->interrupt.soft;
	events->interrupt.nr = a->interrupt.nr;
	events->interrupt.shadow = a->interrupt_shadow;
	events->nmi.injected = a->nmi_injected;
	events->nmi.pending = min(atomic_load(&a->nmi_pending), 2u);
	events->nmi.masked = a->nmi_masked;
	events->smi.smm = a->smm;
	events->smi.pending = atomic_load(&a->smi_pending);
	events->smi.smm_inside_nmi = a->smm_inside_nmi;
	events->smi.latched_init = a->apic && (atomic_load(&a->apic_pending_events) & APIC_EVENT_INIT);

	events->flags = KVM_VCPUEVENT_VALID_NMI_PENDING | KVM_VCPUEVENT_VALID_SHADOW |
			KVM_VCPUEVENT_VALID_SMM;
	if (vcpu->vm->arch.exception_payload)
		events->flags |= KVM_VCPUEVENT_VALID_PAYLOAD;
	if (vcpu->vm->arch.triple_fault_event) {
		events->triple_fault.pending = triple_fault_pending(vcpu);
		events->flags |= KVM_VCPUEVENT_VALID_TRIPLE_FAULT;
	}
}

#define EVENTS_FLAGS                                                            \
	(KVM_VCPUEVENT_VALID_NMI_PENDING | KVM_VCPUEVENT_VALID_SIPI_VECTOR |    \
	 KVM_VCPUEVENT_VALID_SHADOW | KVM_VCPUEVENT_VALID_SMM |                 \
	 KVM_VCPUEVENT_VALID_PAYLOAD | KVM_VCPUEVENT_VALID_TRIPLE_FAULT)

/* Which exception the structure means, after the rules of KVM_CAP_EXCEPTION_PAYLOAD. */
static struct pending_exception exception_from_events(const struct kvm_vcpu_events *ev)
{
	bool payload = ev->flags & KVM_VCPUEVENT_VALID_PAYLOAD;
	bool pending = payload && ev->exception.pending;

	return (struct pending_exception){
		.pending = pending,
		.injected = !pending && ev->exception.injected,
		.vector = ev->exception.nr,
		.has_error_code = ev->exception.has_error_code,
		.error_code = ev->exception.error_code,
		.has_payload = pending && ev->exception_has_payload,
		.payload = ev->exception_payload,
	};
}

static bool events_valid(struct vcpu *vcpu, const struct kvm_vcpu_events *ev)
{
	struct pending_exception e = exception_from_events(ev);

	if (ev->flags & ~(u32)EVENTS_FLAGS)
		return false;
	if ((ev->flags & KVM_VCPUEVENT_VALID_PAYLOAD) && !vcpu->vm->arch.exception_payload)
		return false;
	if ((e.injected || e.pending) && (e.vector > 31 || e.vector == NMI_VECTOR))
		return false;
	/* INITs are latched while in SMM, so none can have been taken. */
	if ((ev->flags & KVM_VCPUEVENT_VALID_SMM) && (ev->smi.smm || ev->smi.pending) &&
	    atomic_load(&vcpu->arch.mp_state) == KVM_MP_STATE_INIT_RECEIVED)
		return false;
	return !(ev->flags & KVM_VCPUEVENT_VALID_TRIPLE_FAULT) || vcpu->vm->arch.triple_fault_event;
}

static void triple_fault_set(struct vcpu *vcpu, bool pending)
{
	vcpu->arch.triple_fault_pending = false;
	if (pending)
		vcpu_make_request(vcpu, KVM_REQ_TRIPLE_FAULT);
	else
		vcpu_check_request(vcpu, KVM_REQ_TRIPLE_FAULT);
}

static void smm_from_events(struct vcpu *vcpu, const struct kvm_vcpu_events *ev)
{
	struct vcpu_arch *a = &vcpu->arch;

	if (a->smm != !!ev->smi.smm) {
		smm_set(vcpu, ev->smi.smm);
		state_changed(vcpu);
	}
	atomic_store(&a->smi_pending, !!ev->smi.pending);
	if (ev->smi.smm)
		a->smm_inside_nmi = ev->smi.smm_inside_nmi;
	if (!a->apic)
		return;
	if (ev->smi.latched_init)
		atomic_fetch_or(&a->apic_pending_events, APIC_EVENT_INIT);
	else
		atomic_fetch_and(&a->apic_pending_events, ~APIC_EVENT_INIT);
}

int vcpu_events_set(struct vcpu *vcpu, const struct kvm_vcpu_events *ev)
{
	struct vcpu_arch *a = &vcpu->arch;

	if (!events_valid(vcpu, ev))
		return -EINVAL;
	a->exception = exception_from_events(ev);
	a->interrupt = (struct pending_interrupt){
		.injected = ev->interrupt.injected,
		.nr = ev->interrupt.nr,
		.soft = ev->interrupt.soft,
	};
	if (ev->flags & KVM_VCPUEVENT_VALID_SHADOW)
		a->interrupt_shadow = ev->interrupt.shadow &
				      (KVM_X86_SHADOW_INT_MOV_SS | KVM_X86_SHADOW_INT_STI);
	a->nmi_injected = ev->nmi.injected;
	if (ev->flags & KVM_VCPUEVENT_VALID_NMI_PENDING)
		atomic_store(&a->nmi_pending, min((u32)ev->nmi.pending, 2u));
	a->nmi_masked = ev->nmi.masked;
	if ((ev->flags & KVM_VCPUEVENT_VALID_SIPI_VECTOR) && a->apic)
		atomic_store(&a->sipi_vector, (u8)ev->sipi_vector);
	if (ev->flags & KVM_VCPUEVENT_VALID_SMM)
		smm_from_events(vcpu, ev);
	if (ev->flags & KVM_VCPUEVENT_VALID_TRIPLE_FAULT)
		triple_fault_set(vcpu, ev->triple_fault.pending);
	vcpu_make_request(vcpu, KVM_REQ_EVENT);
	return 0;
}

/* ---- debug registers -------------------------------------------------------------------- */

void debugregs_get(struct vcpu *vcpu, struct kvm_debugregs *regs)
{
	memset(regs, 0, sizeof(*regs));
	deliver_payload_early(vcpu);
	memcpy(regs->db, vcpu->arch.dr, sizeof(regs->db));
	regs->dr6 = vcpu->arch.dr6;
	regs->dr7 = vcpu->arch.dr7;
}

int debugregs_set(struct vcpu *vcpu, const struct kvm_debugregs *regs)
{
	if (regs->flags || regs->dr6 >> 32 || regs->dr7 >> 32)
		return -EINVAL;
	memcpy(vcpu->arch.dr, regs->db, sizeof(regs->db));
	vcpu->arch.dr6 = regs->dr6;
	vcpu->arch.dr7 = regs->dr7;
	update_effective_dr(vcpu);
	return 0;
}

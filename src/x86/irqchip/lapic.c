/* SPDX-License-Identifier: MIT */
/*
 * Local APIC: registers, interrupt acceptance, EOI, modes.
 *
 * There is no lock around the registers. A LAPIC has one owner, whoever holds
 * vcpu->mutex: the vCPU's thread inside KVM_RUN, or a thread inside one of its
 * ioctls. Everybody else is a sender and may only
 *
 *  1. read ID, LDR, DFR, SPIV, the LVT, APIC_BASE and the vector bitmaps, each
 *     a single atomic word, stale by at most the time of the message on the bus;
 *  2. set a TMR bit and then an IRR bit with atomic ORs (apic_accept());
 *  3. set bits of arch.apic_pending_events, and arch.sipi_vector before them;
 *  4. add to arch.nmi_pending, set arch.pv_unhalted;
 *  5. after each of these make KVM_REQ_EVENT and kick.
 *
 * The owner clears IRR bits by atomic AND, so a set that races is never lost:
 * either it came before and is acknowledged with it (two edges merge, as in
 * hardware), or its request makes the owner look again. TMR of a vector is
 * written before IRR (release) and read after the owner saw IRR or ISR.
 * Everything not listed is written by the owner alone.
 *
 * A KVM_SET_LAPIC that races with a sender may overwrite its IRR bit, as in
 * KVM: the client stops its devices before it restores state.
 *
 * x2APIC: ICR is kept as two registers, the form KVM_GET_LAPIC shows. ESR never
 * records errors; illegal vectors are dropped by priority (class 0 never
 * exceeds PPR), as in KVM.
 */
#include <errno.h>
#include <stdlib.h>
#include <string.h>

#include "x86/hyperv.h"
#include "x86/irqchip/irqchip_internal.h"
#include "x86/irqchip/lapic.h"
#include "x86/xen.h"

#define LVT_BASIC (APIC_LVT_MASKED | APIC_LVT_PENDING | 0xff)
#define LVT_LINT (LVT_BASIC | APIC_MODE_FIELD | APIC_LVT_POLARITY | APIC_LVT_REMOTE_IRR | APIC_LVT_LEVEL)

static const struct lvt_row {
	u16 offset;
	u32 writable;
} lvt_rows[] = {
	{ APIC_LVTT, LVT_BASIC },	/* and the timer mode the guest's CPUID allows */
	{ APIC_LVTTHMR, LVT_BASIC | APIC_MODE_FIELD },
	{ APIC_LVTPC, LVT_BASIC | APIC_MODE_FIELD },
	{ APIC_LVT0, LVT_LINT },
	{ APIC_LVT1, LVT_LINT },
	{ APIC_LVTERR, LVT_BASIC },
	{ APIC_LVTCMCI, LVT_BASIC | APIC_MODE_FIELD },	/* last: present only with MCG_CMCI_P */
};

#define MCG_CMCI_P BIT_ULL(10)

static unsigned nr_lvt(struct lapic *a)
{
	return a->vcpu->arch.msr.mcg_cap & MCG_CMCI_P ? ARRAY_SIZE(lvt_rows) : ARRAY_SIZE(lvt_rows) - 1;
}

/* Directed EOI only with a userspace IOAPIC: ours has no EOI register. */
static u32 apic_version(struct lapic *a)
{
	u32 v = 0x14 | (nr_lvt(a) - 1) << 16;

	if (guest_cpuid_has(a->vcpu, 1, 0, CPUID_ECX, 21) && !arch_irqchip_full(a->vcpu->vm))
		v |= APIC_LVR_DIRECTED_EOI;
	return v;
}

int apic_highest_vector(struct lapic *a, unsigned bitmap)
{
	for (int i = 7; i >= 0; i--) {
		u32 word = apic_reg(a, bitmap + i * 0x10);

		if (word)
			return i * 32 + 31 - __builtin_clz(word);
	}
	return -1;
}

/* ---- priorities -------------------------------------------------------------------- */

/* PPR from TPR and ISR. True if it went down. */
static bool recompute_ppr(struct lapic *a)
{
	int isr = apic_highest_vector(a, APIC_ISR);
	u32 tpr = apic_reg(a, APIC_TPR) & 0xff, old = apic_reg(a, APIC_PPR);
	u32 isrv = isr < 0 ? 0 : isr & 0xf0;
	u32 ppr = (tpr & 0xf0) >= isrv ? tpr : isrv;

	if (ppr != old)
		apic_set_reg(a, APIC_PPR, ppr);
	return ppr < old;
}

static int deliverable(struct lapic *a)
{
	int irr = apic_highest_vector(a, APIC_IRR);

	return irr >= 0 && (u32)(irr & 0xf0) > apic_reg(a, APIC_PPR) ? irr : -1;
}

static void ppr_changed(struct lapic *a)
{
	if (recompute_ppr(a) && deliverable(a) >= 0)
		vcpu_make_request(a->vcpu, KVM_REQ_EVENT);
}

static void set_tpr(struct lapic *a, u32 tpr)
{
	apic_set_reg(a, APIC_TPR, tpr);
	ppr_changed(a);
}

int lapic_highest_deliverable(struct vcpu *vcpu)
{
	struct lapic *a = vcpu->arch.apic;

	if (!a || !apic_hw_enabled(a))
		return -1;
	recompute_ppr(a);
	return deliverable(a);
}

bool lapic_enabled(struct vcpu *vcpu)
{
	struct lapic *a = vcpu->arch.apic;

	return a && apic_hw_enabled(a) && apic_sw_enabled(a);
}

void lapic_set_tpr(struct vcpu *vcpu, u64 cr8)
{
	set_tpr(vcpu->arch.apic, (cr8 & 15) << 4);
}

u64 lapic_get_tpr(struct vcpu *vcpu)
{
	return apic_reg(vcpu->arch.apic, APIC_TPR) >> 4 & 15;
}

/* ---- acceptance: any thread ---------------------------------------------------------- */

void apic_kick(struct vcpu *vcpu)
{
	struct host_guest_ctx *here = host_guest_current;

	if (!here || here->requests != &vcpu->requests)
		vcpu_kick(vcpu);
}

static void notify_event(struct vcpu *vcpu)
{
	vcpu_make_request(vcpu, KVM_REQ_EVENT);
	apic_kick(vcpu);
}

void vcpu_inject_nmi(struct vcpu *vcpu)
{
	atomic_fetch_add(&vcpu->arch.nmi_pending, 1);
	notify_event(vcpu);
}

static int accept_fixed(struct lapic *a, const struct apic_irq *irq)
{
	if ((irq->trig_level && !irq->level) || !lapic_enabled(a->vcpu))
		return 0;
	if (apic_test_vector(a, APIC_TMR, irq->vector) != irq->trig_level) {
		if (irq->trig_level)
			apic_set_vector(a, APIC_TMR, irq->vector);
		else
			apic_clear_vector(a, APIC_TMR, irq->vector);
	}
	apic_set_vector(a, APIC_IRR, irq->vector);
	notify_event(a->vcpu);
	return 1;
}

static int accept_none(struct lapic *a, const struct apic_irq *irq)
{
	return 0; /* ExtINT comes through LVT0 and the PIC's output. */
}

static int accept_remote_read(struct lapic *a, const struct apic_irq *irq)
{
	atomic_store(&a->vcpu->arch.pv_unhalted, true); /* KVM's use of this mode: PV kick */
	notify_event(a->vcpu);
	return 1;
}

static int accept_smi(struct lapic *a, const struct apic_irq *irq)
{
	atomic_store(&a->vcpu->arch.smi_pending, true);
	notify_event(a->vcpu);
	return 1;
}

static int accept_nmi(struct lapic *a, const struct apic_irq *irq)
{
	vcpu_inject_nmi(a->vcpu);
	return 1;
}

static int accept_init(struct lapic *a, const struct apic_irq *irq)
{
	if (irq->trig_level && !irq->level)
		return 0; /* INIT level de-assert */
	/* An INIT forgets a SIPI that was latched before it. */
	atomic_store(&a->vcpu->arch.apic_pending_events, APIC_EVENT_INIT);
	notify_event(a->vcpu);
	return 1;
}

static int accept_startup(struct lapic *a, const struct apic_irq *irq)
{
	atomic_store(&a->vcpu->arch.sipi_vector, irq->vector);
	atomic_fetch_or(&a->vcpu->arch.apic_pending_events, APIC_EVENT_SIPI);
	notify_event(a->vcpu);
	return 1;
}

static int (*const accept_by_mode[8])(struct lapic *a, const struct apic_irq *irq) = {
	[APIC_DM_FIXED] = accept_fixed,
	[APIC_DM_LOWEST] = accept_fixed,
	[APIC_DM_SMI] = accept_smi,
	[APIC_DM_REMRD] = accept_remote_read,
	[APIC_DM_NMI] = accept_nmi,
	[APIC_DM_INIT] = accept_init,
	[APIC_DM_STARTUP] = accept_startup,
	[APIC_DM_EXTINT] = accept_none,
};

int apic_accept(struct lapic *a, const struct apic_irq *irq)
{
	return accept_by_mode[irq->delivery_mode & 7](a, irq);
}

int lapic_deliver_fixed(struct vcpu *vcpu, u8 vector)
{
	struct apic_irq irq = { .delivery_mode = APIC_DM_FIXED, .vector = vector, .level = true };

	return apic_accept(vcpu->arch.apic, &irq);
}

int apic_local_deliver(struct lapic *a, unsigned lvt)
{
	u32 reg = apic_reg(a, lvt);
	struct apic_irq irq = {
		.delivery_mode = APIC_MODE(reg), .vector = reg & 0xff,
		.level = true, .trig_level = reg & APIC_LVT_LEVEL,
	};

	if (!apic_hw_enabled(a) || (reg & APIC_LVT_MASKED))
		return 0;
	return apic_accept(a, &irq);
}

void lapic_deliver_cmci(struct vcpu *vcpu)
{
	apic_local_deliver(vcpu->arch.apic, APIC_LVTCMCI);
}

/* ---- the CPU's side: acknowledge and EOI ---------------------------------------------- */

bool irqchip_accepts_extint(struct vcpu *vcpu)
{
	struct lapic *a = vcpu->arch.apic;
	u32 lvt0;

	if (!a)
		return false;
	lvt0 = apic_reg(a, APIC_LVT0);
	return !apic_hw_enabled(a) ||
	       (!(lvt0 & APIC_LVT_MASKED) && APIC_MODE(lvt0) == APIC_DM_EXTINT);
}

bool irqchip_has_injectable_extint(struct vcpu *vcpu)
{
	/* A userspace PIC hands its vector over with KVM_INTERRUPT, into arch.interrupt. */
	if (!vcpu->arch.apic || !arch_irqchip_full(vcpu->vm))
		return vcpu->arch.interrupt.injected;
	return pic_output(vcpu->vm) && irqchip_accepts_extint(vcpu);
}

/*
 * With a PV EOI that may be owed, ISR and so PPR may be too high, and a halted
 * vCPU cannot read the guest's byte to find out. Say yes: a spurious wake-up is
 * harmless, sleeping on top of a deliverable interrupt is not.
 */
static bool maybe_deliverable(struct lapic *a)
{
	int irr;

	if (!a || !a->pv_eoi_pending || !(a->vcpu->arch.msr.kvm_pv_eoi & 1) || !apic_hw_enabled(a))
		return false;
	irr = apic_highest_vector(a, APIC_IRR);
	return irr >= 0 && (u32)(irr & 0xf0) > (apic_reg(a, APIC_TPR) & 0xf0);
}

bool irqchip_has_interrupt(struct vcpu *vcpu)
{
	return irqchip_has_injectable_extint(vcpu) || lapic_highest_deliverable(vcpu) >= 0 ||
	       maybe_deliverable(vcpu->arch.apic) || (vcpu->arch.apic && xen_pending_vector(vcpu));
}

int irqchip_get_interrupt(struct vcpu *vcpu)
{
	struct lapic *a = vcpu->arch.apic;
	int vector = a ? xen_pending_vector(vcpu) : 0;

	if (vector)
		return vector;
	if (irqchip_has_injectable_extint(vcpu)) {
		if (!a || !arch_irqchip_full(vcpu->vm))
			return vcpu->arch.interrupt.nr;
		return pic_read_irq(vcpu->vm);
	}
	vector = lapic_highest_deliverable(vcpu);
	if (vector < 0)
		return -1;
	apic_clear_vector(a, APIC_IRR, vector);
	if (unlikely(hyperv_synic_auto_eoi(vcpu, vector))) {
		if (deliverable(a) >= 0)
			vcpu_make_request(vcpu, KVM_REQ_EVENT);
		return vector;
	}
	apic_set_vector(a, APIC_ISR, vector);
	recompute_ppr(a);
	return vector;
}

bool apic_eoi_is_wanted(struct lapic *a, u8 vector)
{
	if (arch_irqchip_full(a->vcpu->vm))
		return ioapic_handles_vector(a->vcpu->vm, vector);
	/* Userspace IOAPIC: its pins are GSIs routed as level-triggered MSIs. */
	return apic_test_vector(a, APIC_TMR, vector) && apic_split_vector(a->vcpu->vm, vector);
}

static void broadcast_eoi(struct lapic *a, u8 vector)
{
	struct vcpu *vcpu = a->vcpu;

	if (!apic_eoi_is_wanted(a, vector))
		return;
	if (arch_irqchip_full(vcpu->vm)) {
		ioapic_eoi(vcpu, vector, apic_test_vector(a, APIC_TMR, vector));
		return;
	}
	vcpu->arch.pending_ioapic_eoi = vector;
	vcpu_make_request(vcpu, KVM_REQ_IOAPIC_EOI);
}

int apic_eoi(struct lapic *a)
{
	int vector = apic_highest_vector(a, APIC_ISR);

	if (vector < 0)
		return -1; /* an EOI too many is harmless */
	apic_clear_vector(a, APIC_ISR, vector);
	ppr_changed(a);
	if (unlikely(hyperv_synic_has_vector(a->vcpu, vector)))
		hyperv_synic_eoi(a->vcpu, vector);
	broadcast_eoi(a, vector);
	return vector;
}

/* ---- register reads ---------------------------------------------------------------------- */

static bool is_readable(struct lapic *a, unsigned offset)
{
	switch (offset) {
	case APIC_ID: case APIC_LVR: case APIC_TPR: case APIC_PPR: case APIC_LDR: case APIC_SPIV:
	case APIC_ISR ... APIC_ESR:
	case APIC_ICR:
	case APIC_LVTT ... APIC_TMCCT:
	case APIC_TDCR:
		return true;
	case APIC_LVTCMCI:
		return nr_lvt(a) == ARRAY_SIZE(lvt_rows);
	case APIC_ARBPRI: case APIC_DFR: case APIC_ICR2:
		return !apic_x2apic(a);
	}
	return false;
}

static u32 reg_value(struct lapic *a, unsigned offset)
{
	switch (offset) {
	case APIC_LVR:
		return apic_version(a);
	case APIC_ARBPRI:
		return 0;
	case APIC_TMCCT:
		return apic_timer_current_count(a);
	case APIC_PPR:
		ppr_changed(a);
	}
	return apic_reg(a, offset);
}

/* 0, or 1: no such register, or an access that leaves its 32 bits. */
static int reg_read(struct lapic *a, u32 offset, unsigned len, void *data)
{
	unsigned at = offset & 15;
	u32 val;

	offset &= ~15u;
	if (at + len > 4 || offset > APIC_SELF_IPI || !is_readable(a, offset))
		return 1;
	val = reg_value(a, offset);
	memcpy(data, (u8 *)&val + at, len);
	return 0;
}

/* ---- register writes: 0, or 1 where an x2APIC write is #GP ------------------------------------ */

static void map_changed(struct lapic *a)
{
	apic_map_update(a->vcpu->vm);
}

static void lvt0_changed(struct lapic *a)
{
	u32 lvt0 = apic_reg(a, APIC_LVT0);
	bool nmi = !(lvt0 & APIC_LVT_MASKED) && APIC_MODE(lvt0) == APIC_DM_NMI;
	struct apic_maps *maps = a->vcpu->vm->arch.apic_maps;

	if (nmi == a->lvt0_nmi)
		return;
	a->lvt0_nmi = nmi;
	if (nmi)
		atomic_fetch_add(&maps->lvt0_nmi, 1);
	else
		atomic_fetch_sub(&maps->lvt0_nmi, 1);
}

static void set_xapic_id(struct lapic *a, u8 id)
{
	apic_set_reg(a, APIC_ID, (u32)id << 24);
	map_changed(a);
}

static void set_spiv(struct lapic *a, u32 val)
{
	bool toggled = (apic_reg(a, APIC_SPIV) ^ val) & APIC_SPIV_ENABLED;

	apic_set_reg(a, APIC_SPIV, val);
	if (!toggled)
		return;
	map_changed(a);
	if (val & APIC_SPIV_ENABLED)
		xen_apic_enabled(a->vcpu);
}

static int write_id(struct lapic *a, u32 offset, u32 val)
{
	if (apic_x2apic(a))
		return 1;
	set_xapic_id(a, val >> 24);
	return 0;
}

static int write_tpr(struct lapic *a, u32 offset, u32 val)
{
	set_tpr(a, val & 0xff);
	return 0;
}

static int write_eoi(struct lapic *a, u32 offset, u32 val)
{
	apic_eoi(a);
	return 0;
}

static int write_ldr(struct lapic *a, u32 offset, u32 val)
{
	if (apic_x2apic(a))
		return 1;
	apic_set_reg(a, APIC_LDR, val & 0xff000000);
	map_changed(a);
	return 0;
}

static int write_dfr(struct lapic *a, u32 offset, u32 val)
{
	if (apic_x2apic(a))
		return 1;
	apic_set_reg(a, APIC_DFR, val | 0x0fffffff);
	map_changed(a);
	return 0;
}

static int write_spiv(struct lapic *a, u32 offset, u32 val)
{
	u32 mask = 0x3ff;

	if (apic_version(a) & APIC_LVR_DIRECTED_EOI)
		mask |= APIC_SPIV_DIRECTED_EOI;
	set_spiv(a, val & mask);
	if (val & APIC_SPIV_ENABLED)
		return 0;
	for (unsigned i = 0; i < nr_lvt(a); i++)
		apic_set_reg(a, lvt_rows[i].offset, apic_reg(a, lvt_rows[i].offset) | APIC_LVT_MASKED);
	lvt0_changed(a);
	apic_timer_lvtt_changed(a);
	return 0;
}

static int write_esr(struct lapic *a, u32 offset, u32 val)
{
	return apic_x2apic(a) && val;
}

static void send_ipi(struct lapic *a, u32 low, u32 high)
{
	struct apic_irq irq = {
		.vector = low & 0xff,
		.delivery_mode = APIC_MODE(low),
		.dest_mode = low >> 11 & 1,
		.level = low & BIT(14),
		.trig_level = low & BIT(15),
		.shorthand = low >> 18 & 3,
		.dest = apic_x2apic(a) ? high : high >> 24,
	};

	apic_deliver(a->vcpu->vm, a, &irq);
}

static int write_icr(struct lapic *a, u32 offset, u32 val)
{
	val &= ~APIC_ICR_BUSY;
	send_ipi(a, val, apic_reg(a, APIC_ICR2));
	apic_set_reg(a, APIC_ICR, val);
	return 0;
}

static int write_icr2(struct lapic *a, u32 offset, u32 val)
{
	if (apic_x2apic(a))
		return 1;
	apic_set_reg(a, APIC_ICR2, val & 0xff000000);
	return 0;
}

static int write_lvt(struct lapic *a, u32 offset, u32 val)
{
	unsigned i = offset == APIC_LVTCMCI ? ARRAY_SIZE(lvt_rows) - 1 : (offset - APIC_LVTT) / 16;
	u32 writable = lvt_rows[i].writable;

	if (i >= nr_lvt(a))
		return 1;
	if (offset == APIC_LVTT)
		writable |= apic_timer_mode_mask(a);
	if (!apic_sw_enabled(a))
		val |= APIC_LVT_MASKED;
	apic_set_reg(a, offset, val & writable);
	if (offset == APIC_LVT0) {
		lvt0_changed(a);
		vcpu_make_request(a->vcpu, KVM_REQ_EVENT); /* the PIC's output may count now */
	}
	if (offset == APIC_LVTT)
		apic_timer_lvtt_changed(a);
	return 0;
}

static int write_tmict(struct lapic *a, u32 offset, u32 val)
{
	apic_timer_write_count(a, val);
	return 0;
}

static int write_tdcr(struct lapic *a, u32 offset, u32 val)
{
	apic_timer_write_divide(a, val & 0xb);
	return 0;
}

static int write_self_ipi(struct lapic *a, u32 offset, u32 val)
{
	if (!apic_x2apic(a) || val > 0xff)
		return 1;
	send_ipi(a, 1u << 18 | val, 0);
	return 0;
}

static int (*const reg_writers[KVM_APIC_REG_SIZE / 16])(struct lapic *a, u32 offset, u32 val) = {
	[APIC_ID / 16] = write_id,
	[APIC_TPR / 16] = write_tpr,
	[APIC_EOI / 16] = write_eoi,
	[APIC_LDR / 16] = write_ldr,
	[APIC_DFR / 16] = write_dfr,
	[APIC_SPIV / 16] = write_spiv,
	[APIC_ESR / 16] = write_esr,
	[APIC_LVTCMCI / 16] = write_lvt,
	[APIC_ICR / 16] = write_icr,
	[APIC_ICR2 / 16] = write_icr2,
	[APIC_LVTT / 16 ... APIC_LVTERR / 16] = write_lvt,
	[APIC_TMICT / 16] = write_tmict,
	[APIC_TDCR / 16] = write_tdcr,
	[APIC_SELF_IPI / 16] = write_self_ipi,
};

static int reg_write(struct lapic *a, u32 offset, u32 val)
{
	unsigned i = offset / 16;

	if (i >= ARRAY_SIZE(reg_writers) || !reg_writers[i])
		return 1;
	return reg_writers[i](a, offset, val);
}

/* ---- xAPIC page ------------------------------------------------------------------------------ */

static bool mmio_is_hole(struct lapic *a)
{
	return !apic_hw_enabled(a) || apic_x2apic(a);
}

bool lapic_mmio_match(struct vcpu *vcpu, gpa_t gpa)
{
	struct lapic *a = vcpu->arch.apic;

	if (!a || (gpa & PAGE_MASK) != (apic_base(a) & PAGE_MASK))
		return false;
	/* KVM's quirk: a page whose APIC is off or in x2APIC mode swallows accesses. */
	return !mmio_is_hole(a) || !(vcpu->vm->arch.disabled_quirks & KVM_X86_QUIRK_LAPIC_MMIO_HOLE);
}

void lapic_mmio_read(struct vcpu *vcpu, gpa_t gpa, void *data, unsigned len)
{
	struct lapic *a = vcpu->arch.apic;

	if (mmio_is_hole(a)) {
		memset(data, 0xff, len);
		return;
	}
	memset(data, 0, len);
	reg_read(a, gpa & 0xfff, len, data);
}

void lapic_mmio_write(struct vcpu *vcpu, gpa_t gpa, const void *data, unsigned len)
{
	struct lapic *a = vcpu->arch.apic;
	u32 val;

	if (mmio_is_hole(a) || len != 4 || (gpa & 15))
		return;
	memcpy(&val, data, 4);
	reg_write(a, gpa & 0xff0, val);
}

/* ---- x2APIC MSRs ------------------------------------------------------------------------------ */

#define X2APIC_MSR_BASE 0x800u
#define X2APIC_ICR_RESERVED 0xfff32000u

static bool x2apic_msr(struct lapic *a, u32 msr, u32 *offset)
{
	if (!a || !apic_x2apic(a) || msr - X2APIC_MSR_BASE >= 0x100)
		return false;
	*offset = (msr - X2APIC_MSR_BASE) << 4;
	return true;
}

static int msr_reg_read(struct lapic *a, u32 offset, u64 *value)
{
	u32 low;

	if (reg_read(a, offset, 4, &low))
		return 1;
	*value = low;
	if (offset == APIC_ICR)
		*value |= (u64)apic_reg(a, APIC_ICR2) << 32;
	return 0;
}

int lapic_x2apic_read(struct vcpu *vcpu, u32 msr, u64 *value)
{
	u32 offset;

	return x2apic_msr(vcpu->arch.apic, msr, &offset) ? msr_reg_read(vcpu->arch.apic, offset, value) : 1;
}

static int write_x2apic_icr(struct lapic *a, u64 value)
{
	if (value & X2APIC_ICR_RESERVED)
		return 1;
	value &= ~(u64)APIC_ICR_BUSY;
	send_ipi(a, value, value >> 32);
	apic_set_reg(a, APIC_ICR, value);
	apic_set_reg(a, APIC_ICR2, value >> 32);
	return 0;
}

static int msr_reg_write(struct lapic *a, u32 offset, u64 value)
{
	if (offset == APIC_ICR)
		return write_x2apic_icr(a, value);
	return value >> 32 ? 1 : reg_write(a, offset, value);
}

int lapic_x2apic_write(struct vcpu *vcpu, u32 msr, u64 value)
{
	u32 offset;

	return x2apic_msr(vcpu->arch.apic, msr, &offset) ? msr_reg_write(vcpu->arch.apic, offset, value) : 1;
}

static const u16 hv_offsets[] = { APIC_EOI, APIC_ICR, APIC_TPR };

int lapic_hv_read(struct vcpu *vcpu, unsigned reg, u64 *value)
{
	return vcpu->arch.apic ? msr_reg_read(vcpu->arch.apic, hv_offsets[reg], value) : 1;
}

int lapic_hv_write(struct vcpu *vcpu, unsigned reg, u64 value)
{
	return vcpu->arch.apic ? msr_reg_write(vcpu->arch.apic, hv_offsets[reg], value) : 1;
}

/* ---- APIC_BASE ----------------------------------------------------------------------------------- */

#define BASE_MODE (APIC_BASE_ENABLE | APIC_BASE_X2APIC)

static void set_base(struct vcpu *vcpu, u64 value)
{
	struct lapic *a = vcpu->arch.apic;
	u64 changed = vcpu->arch.msr.apic_base ^ value;

	__atomic_store_n(&vcpu->arch.msr.apic_base, value, __ATOMIC_RELAXED);
	if (!a || !(changed & BASE_MODE))
		return;
	if (value & APIC_BASE_X2APIC) {
		apic_set_reg(a, APIC_ID, vcpu->id);
		apic_set_reg(a, APIC_LDR, apic_x2apic_ldr(vcpu->id));
	} else if (value & APIC_BASE_ENABLE) {
		apic_set_reg(a, APIC_ID, vcpu->id << 24);
	}
	map_changed(a);
	vcpu_make_request(vcpu, KVM_REQ_EVENT);
}

int lapic_set_base(struct vcpu *vcpu, u64 value, bool host_initiated)
{
	u64 old = vcpu->arch.msr.apic_base & BASE_MODE, mode = value & BASE_MODE;
	unsigned maxphyaddr = vcpu->arch.maxphyaddr ? vcpu->arch.maxphyaddr : 36;
	u64 reserved = ~0ull << min(maxphyaddr, 63u) | 0x2ff;

	if (!guest_cpuid_has(vcpu, 1, 0, CPUID_ECX, 21))
		reserved |= APIC_BASE_X2APIC;
	if ((value & reserved) || mode == APIC_BASE_X2APIC)
		return 1;
	/* Leaving x2APIC, or entering it, takes the way through "disabled" or xAPIC. */
	if (!host_initiated && ((old == BASE_MODE && mode == APIC_BASE_ENABLE) ||
				(!old && mode == BASE_MODE)))
		return 1;
	set_base(vcpu, value);
	return 0;
}

u64 lapic_get_base(struct vcpu *vcpu)
{
	return vcpu->arch.msr.apic_base;
}

/* ---- life ------------------------------------------------------------------------------------------ */

int lapic_create(struct vcpu *vcpu)
{
	struct lapic *a = aligned_alloc(_Alignof(struct lapic), sizeof(*a));

	if (!a)
		return -ENOMEM;
	memset(a, 0, sizeof(*a));
	a->vcpu = vcpu;
	a->divide = 1;
	if (!irqchip_timers(vcpu->vm)) {
		free(a);
		return -ENOMEM;
	}
	apic_timer_init(a);
	vcpu->arch.msr.apic_base = APIC_BASE_ENABLE;
	vcpu->arch.apic = a;
	return 0;
}

void lapic_destroy(struct vcpu *vcpu)
{
	struct lapic *a = vcpu->arch.apic;

	if (!a)
		return;
	vm_timer_cancel(&a->timer);
	host_tick_destroy(&a->tick);
	vcpu->arch.apic = NULL;
	free(a);
}

static void reset_registers(struct lapic *a)
{
	for (unsigned i = 0; i < ARRAY_SIZE(lvt_rows); i++)
		apic_set_reg(a, lvt_rows[i].offset, APIC_LVT_MASKED);
	apic_timer_lvtt_changed(a);
	for (unsigned i = 0; i < 8; i++) {
		apic_set_reg(a, APIC_IRR + i * 16, 0);
		apic_set_reg(a, APIC_ISR + i * 16, 0);
		apic_set_reg(a, APIC_TMR + i * 16, 0);
	}
	apic_set_reg(a, APIC_DFR, APIC_DFR_FLAT);
	apic_set_reg(a, APIC_SPIV, 0xff);
	apic_set_reg(a, APIC_TPR, 0);
	apic_set_reg(a, APIC_PPR, 0);
	apic_set_reg(a, APIC_ESR, 0);
	apic_set_reg(a, APIC_ICR, 0);
	apic_set_reg(a, APIC_ICR2, 0);
	if (!apic_x2apic(a))
		apic_set_reg(a, APIC_LDR, 0);
	apic_timer_write_divide(a, 0);
}

void lapic_reset(struct vcpu *vcpu, bool init_event)
{
	struct lapic *a = vcpu->arch.apic;
	bool bsp = vcpu->id == vcpu->vm->arch.boot_cpu_id;

	if (!init_event)
		set_base(vcpu, APIC_DEFAULT_BASE | APIC_BASE_ENABLE | (bsp ? APIC_BASE_BSP : 0));
	if (!a)
		return;
	apic_timer_stop(a);
	apic_set_reg(a, APIC_TMICT, 0);
	if (!init_event)
		apic_set_reg(a, APIC_ID, vcpu->id << 24);
	reset_registers(a);
	/* KVM starts the boot CPU with LINT0 open to the PIC: clients without a BIOS rely on it. */
	if (bsp && !(vcpu->vm->arch.disabled_quirks & KVM_X86_QUIRK_LINT0_REENABLED))
		apic_set_reg(a, APIC_LVT0, APIC_DM_EXTINT << 8);
	lvt0_changed(a);
	vcpu->arch.msr.kvm_pv_eoi = 0;
	a->pv_eoi_pending = false;
	map_changed(a);
}

/* ---- KVM_GET/SET_LAPIC ---------------------------------------------------------------------------------- */

static u32 state_reg(const struct kvm_lapic_state *s, unsigned offset)
{
	u32 val;

	memcpy(&val, s->regs + offset, 4);
	return val;
}

static void set_state_reg(struct kvm_lapic_state *s, unsigned offset, u32 val)
{
	memcpy(s->regs + offset, &val, 4);
}

void lapic_get_state(struct vcpu *vcpu, struct kvm_lapic_state *s)
{
	struct lapic *a = vcpu->arch.apic;

	for (unsigned i = 0; i < KVM_APIC_REG_SIZE; i += 4)
		set_state_reg(s, i, apic_reg(a, i));
	set_state_reg(s, APIC_LVR, apic_version(a));
	set_state_reg(s, APIC_TMCCT, apic_timer_current_count(a));
	/* Without 32-bit ids in force the id is shown in xAPIC format always. */
	if (apic_x2apic(a) && !(vcpu->vm->arch.x2apic_format & X2APIC_API_32BIT_IDS))
		set_state_reg(s, APIC_ID, vcpu->id << 24);
}

int lapic_set_state(struct vcpu *vcpu, const struct kvm_lapic_state *s)
{
	struct lapic *a = vcpu->arch.apic;
	bool x2apic = apic_x2apic(a);

	if (x2apic && (vcpu->vm->arch.x2apic_format & X2APIC_API_32BIT_IDS) &&
	    state_reg(s, APIC_ID) != vcpu->id)
		return -EINVAL;
	for (unsigned i = 0; i < KVM_APIC_REG_SIZE; i += 4)
		apic_set_reg(a, i, state_reg(s, i));
	if (x2apic) { /* id and LDR are read-only there */
		apic_set_reg(a, APIC_ID, vcpu->id);
		apic_set_reg(a, APIC_LDR, apic_x2apic_ldr(vcpu->id));
	}
	map_changed(a);
	ppr_changed(a);
	lvt0_changed(a);
	apic_timer_restore(a);
	vcpu_make_request(vcpu, KVM_REQ_EVENT);
	return 0;
}

/* SPDX-License-Identifier: MIT */
/*
 * PIC pair, IOAPIC, local APIC, PIT: the interrupt hardware KVM emulates.
 *
 * Models reach vCPUs only by request + kick. Locking: PIC, IOAPIC and PIT state under vm->irq_lock (PIT
 * has its own lock for its timer); LAPIC registers under apic->lock or atomics as lapic.c explains. Any
 * thread may deliver an interrupt; only the vCPU's thread acknowledges.
 */
#ifndef SOFTKVM_X86_IRQCHIP_H
#define SOFTKVM_X86_IRQCHIP_H

#include "x86/x86.h"

#define APIC_DEFAULT_BASE 0xfee00000ull
#define IOAPIC_DEFAULT_BASE 0xfec00000ull
#define APIC_BASE_BSP BIT_ULL(8)
#define APIC_BASE_X2APIC BIT_ULL(10)
#define APIC_BASE_ENABLE BIT_ULL(11)

enum apic_delivery_mode {
	APIC_DM_FIXED, APIC_DM_LOWEST, APIC_DM_SMI, APIC_DM_REMRD,
	APIC_DM_NMI, APIC_DM_INIT, APIC_DM_STARTUP, APIC_DM_EXTINT,
};
/* bits of arch.apic_pending_events */
#define APIC_EVENT_INIT BIT_ULL(0)
#define APIC_EVENT_SIPI BIT_ULL(1)

/* ---- lapic.c ------------------------------------------------------------------- */
int lapic_create(struct vcpu *vcpu);			/* vm->lock held; arch.apic set. 0/-ENOMEM */
void lapic_destroy(struct vcpu *vcpu);
void lapic_reset(struct vcpu *vcpu, bool init_event);
bool lapic_enabled(struct vcpu *vcpu);			/* hardware (APIC_BASE) and software (SVR) enabled */
/* Highest deliverable vector given PPR, or -1. vCPU thread. */
int lapic_highest_deliverable(struct vcpu *vcpu);
/* Interrupt source of the CPU: LAPIC, or PIC through ExtINT (LVT0 or disabled APIC). vCPU thread. */
bool irqchip_has_interrupt(struct vcpu *vcpu);
bool irqchip_accepts_extint(struct vcpu *vcpu);	/* LAPIC lets a PIC (here or in userspace) through: LVT0 ExtINT or APIC off */
int irqchip_get_interrupt(struct vcpu *vcpu);		/* acknowledges; vector or -1 */
bool irqchip_has_injectable_extint(struct vcpu *vcpu);
/* MMIO at gpa inside the vCPU's xAPIC page (lapic_mmio_match) */
bool lapic_mmio_match(struct vcpu *vcpu, gpa_t gpa);
void lapic_mmio_read(struct vcpu *vcpu, gpa_t gpa, void *data, unsigned len);
void lapic_mmio_write(struct vcpu *vcpu, gpa_t gpa, const void *data, unsigned len);
int lapic_x2apic_read(struct vcpu *vcpu, u32 msr, u64 *value);	/* 0, 1 = #GP */
int lapic_x2apic_write(struct vcpu *vcpu, u32 msr, u64 value);
/* Hyper-V's MSRs for EOI, ICR, TPR (reg 0, 1, 2), which work in either mode: 0, 1 = #GP */
int lapic_hv_read(struct vcpu *vcpu, unsigned reg, u64 *value);
int lapic_hv_write(struct vcpu *vcpu, unsigned reg, u64 value);
int lapic_set_base(struct vcpu *vcpu, u64 value, bool host_initiated);	/* 0, 1 = #GP */
u64 lapic_get_base(struct vcpu *vcpu);
void lapic_set_tpr(struct vcpu *vcpu, u64 cr8);
u64 lapic_get_tpr(struct vcpu *vcpu);			/* CR8 view */
void lapic_set_tscdeadline(struct vcpu *vcpu, u64 value);
u64 lapic_get_tscdeadline(struct vcpu *vcpu);
/* Deadline (CLOCK_MONOTONIC ns) of the armed APIC timer, ~0 if none; a halted vCPU sleeps until then itself. */
u64 lapic_timer_deadline(struct vcpu *vcpu);
/* KVM_REQ_APIC_TIMER, or own deadline passed: raise LVTT, re-arm periodic. vCPU thread. */
void lapic_timer_fire(struct vcpu *vcpu);
/* KVM_RUN is about to return: whatever is armed must not need its thread any more. */
void lapic_timer_leave(struct vcpu *vcpu);
void lapic_get_state(struct vcpu *vcpu, struct kvm_lapic_state *s);
int lapic_set_state(struct vcpu *vcpu, const struct kvm_lapic_state *s);	/* 0 or -EINVAL */
/* PV EOI: MSR written; boundaries where the guest may have cleared its bit. */
int lapic_set_pv_eoi(struct vcpu *vcpu, u64 msr);
void lapic_sync_pv_eoi_from_guest(struct vcpu *vcpu);	/* before injecting; in guest mode */
void lapic_sync_pv_eoi_to_guest(struct vcpu *vcpu);	/* after injecting; in guest mode */
/* The paravirt MSR-visible local NMI (KVM_NMI) and LINT1 */
void vcpu_inject_nmi(struct vcpu *vcpu);		/* any thread */
/* Recompute destination maps after id/LDR/DFR/enable changes. Any thread. */
void apic_map_update(struct vm *vm);
/* Hypercall KICK_CPU / SEND_IPI. */
int lapic_send_pv_ipi(struct vm *vm, u64 bitmap_lo, u64 bitmap_hi, u32 min, u64 icr, bool op_64bit);
void lapic_pv_kick(struct vm *vm, u32 apic_id);

struct apic_irq {
	u32 dest;		/* xAPIC 8-bit or x2APIC 32-bit */
	u8 dest_mode;		/* 0 physical, 1 logical */
	u8 delivery_mode;
	u8 vector;
	bool level, trig_level;
	u8 shorthand;		/* 0 none, 1 self, 2 all, 3 all but self */
	bool msi_redir_hint;
};
/* An edge-triggered vector for this vCPU: 1 accepted, 0 dropped. Any thread; only with an in-kernel APIC. */
int lapic_deliver_fixed(struct vcpu *vcpu, u8 vector);
/* A corrected machine check's interrupt, as LVTCMCI says. */
void lapic_deliver_cmci(struct vcpu *vcpu);
/* Returns number of vCPUs that took it (>0), 0 coalesced, -1 nobody. Any thread. src may be NULL. */
int apic_deliver(struct vm *vm, struct lapic *src, const struct apic_irq *irq);

/* ---- pic.c, ioapic.c, pit.c ---------------------------------------------------------- */
int pic_create(struct vm *vm);
void pic_destroy(struct vm *vm);
int pic_set_irq(struct vm *vm, int source, unsigned irq, int level);	/* irq_lock held; as vm_set_irq */
int pic_read_irq(struct vm *vm);			/* INTA: vector; any thread, takes irq_lock */
bool pic_output(struct vm *vm);				/* INT line high */
void pic_get(struct vm *vm, unsigned chip, struct kvm_pic_state *s);
int pic_set(struct vm *vm, unsigned chip, const struct kvm_pic_state *s);
int ioapic_create(struct vm *vm);
void ioapic_destroy(struct vm *vm);
int ioapic_set_irq(struct vm *vm, int source, unsigned pin, int level);	/* irq_lock held */
void ioapic_eoi(struct vcpu *vcpu, u8 vector, bool level_triggered);	/* EOI broadcast; no lock held */
bool ioapic_mmio_match(struct vm *vm, gpa_t gpa);
void ioapic_mmio_read(struct vm *vm, gpa_t gpa, void *data, unsigned len);
void ioapic_mmio_write(struct vm *vm, gpa_t gpa, const void *data, unsigned len);
void ioapic_get(struct vm *vm, struct kvm_ioapic_state *s);
int ioapic_set(struct vm *vm, const struct kvm_ioapic_state *s);
int pit_create(struct vm *vm, const struct kvm_pit_config *cfg);	/* 0, -EEXIST, -ENOENT (no irqchip) */
void pit_destroy(struct vm *vm);
void pit_get(struct vm *vm, struct kvm_pit_state2 *s);
int pit_set(struct vm *vm, const struct kvm_pit_state2 *s);
int pit_reinject_control(struct vm *vm, bool reinject);
/* Port I/O of PIC (20,21,a0,a1,4d0,4d1) and PIT (40-43, 61 with the speaker): true if one of them answered. */
bool irqchip_pio_read(struct vm *vm, u16 port, void *data, unsigned len);
bool irqchip_pio_write(struct vm *vm, u16 port, const void *data, unsigned len);
bool irqchip_pio_match(struct vm *vm, u16 port);
/* KVM_CREATE_IRQCHIP / split / teardown: vm->lock held. */
int irqchip_create(struct vm *vm);
int irqchip_create_split(struct vm *vm, u32 reserved_pins);
void irqchip_destroy(struct vm *vm);
/* ioctl payloads */
int irqchip_get_state(struct vm *vm, struct kvm_irqchip *chip);
int irqchip_set_state(struct vm *vm, const struct kvm_irqchip *chip);

#endif

/* SPDX-License-Identifier: MIT */
/* Between pic.c, ioapic.c, pit.c and irqchip.c. Not for other folders. */
#ifndef SOFTKVM_X86_IRQCHIP_INTERNAL_H
#define SOFTKVM_X86_IRQCHIP_INTERNAL_H

#include "host/host.h"
#include "x86/irqchip.h"

struct pic {
	struct vm *vm;
	struct kvm_pic_state chip[2];	/* all under vm->irq_lock but for output */
	u64 lines[16];			/* per pin: one bit a source */
	_Atomic bool output;		/* INT pin; read without the lock */
};

struct ioapic {
	struct vm *vm;
	struct kvm_ioapic_state s;	/* all under vm->irq_lock but for handled */
	u64 lines[KVM_IOAPIC_NUM_PINS];
	u32 irr_delivered;		/* edges sent although still in s.irr */
	u32 successive[KVM_IOAPIC_NUM_PINS]; /* EOIs that found the line still high */
	_Atomic u64 handled[4];		/* vectors named by some redirection entry */
	struct vm_timer storm;		/* delayed re-injection */
};

/* An input is the OR of its sources. Returns the new level. */
static inline bool irq_line_level(u64 *line, int source, int level)
{
	u64 bit = BIT_ULL(source & 63);

	*line = level ? *line | bit : *line & ~bit;
	return *line != 0;
}

/* EOI or mask change of an input pin (PIC: 0-7 of either chip). No lock held / irq_lock held. */
void irqchip_acked(struct vm *vm, unsigned chip, unsigned pin);
void pit_pin_acked(struct vm *vm, unsigned chip, unsigned pin);
void pit_pin_unmasked(struct vm *vm, unsigned chip, unsigned pin);
/* The PIT's interrupt is routed to this pin. */
void pit_note_pin(struct vm *vm, unsigned chip, unsigned pin);
/* 8254 ports and port 61h */
bool pit_port_match(struct vm *vm, u16 port);
void pit_port_read(struct vm *vm, u16 port, void *data, unsigned len);
void pit_port_write(struct vm *vm, u16 port, u8 val);
bool pic_port_match(u16 port, unsigned len);
u8 pic_port_read(struct vm *vm, u16 port);
void pic_port_write(struct vm *vm, u16 port, u8 val);
bool ioapic_handles_vector(struct vm *vm, u8 vector);
struct vm_timers *irqchip_timers(struct vm *vm);	/* vm->lock held (or the vCPU not yet visible) */
int msi_deliver(struct vm *vm, u32 address_lo, u32 address_hi, u32 data);

#endif

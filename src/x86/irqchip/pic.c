/* SPDX-License-Identifier: MIT */
/*
 * The PIC pair: two 8259A, the second on input 2 of the first.
 *
 * Everything is under vm->irq_lock, except that `output` is read by vCPUs
 * deciding whether to acknowledge; the one that acknowledges first gets the
 * vector, a second one the spurious IRQ 7, as on a real bus.
 *
 * An EOI drops irq_lock to tell ack notifiers (a resampler may call back and
 * lower the line), before the output is recomputed: an acknowledged level line
 * must not raise INT once more in between.
 *
 * Special mask mode takes masked in-service inputs out of the priority
 * comparison, as the data sheet says; KVM stores the bit only.
 */
#include <errno.h>
#include <stdlib.h>
#include <string.h>

#include "x86/irqchip/irqchip_internal.h"

#define CASCADE 2
#define ICW1 0x10
#define OCW3 0x08

static struct pic *pic_of(struct vm *vm)
{
	return vm->arch.pic;
}

int pic_create(struct vm *vm)
{
	struct pic *pic = calloc(1, sizeof(*pic));

	if (!pic)
		return -ENOMEM;
	pic->vm = vm;
	pic->chip[0].elcr_mask = 0xf8; /* IRQ 0-2 are always edge-triggered */
	pic->chip[1].elcr_mask = 0xde; /* so are 8 and 13 */
	vm->arch.pic = pic;
	return 0;
}

void pic_destroy(struct vm *vm)
{
	free(vm->arch.pic);
	vm->arch.pic = NULL;
}

/* ---- priorities and the output ------------------------------------------------------- */

/* Rank of the highest-priority input in mask, 0 (highest) to 7; 8: none. */
static unsigned rank(const struct kvm_pic_state *c, u8 mask)
{
	for (unsigned r = 0; r < 8; r++)
		if (mask & BIT((r + c->priority_add) & 7))
			return r;
	return 8;
}

/* The input that should interrupt now, or -1. */
static int pending_input(const struct pic *pic, const struct kvm_pic_state *c)
{
	unsigned r = rank(c, c->irr & ~c->imr);
	u8 busy = c->isr;

	if (r == 8)
		return -1;
	if (c->special_mask)
		busy &= ~c->imr;
	/* Fully nested across the cascade: the slave may interrupt its own service. */
	if (c->special_fully_nested_mode && c == &pic->chip[0])
		busy &= ~BIT(CASCADE);
	return r < rank(c, busy) ? (int)((r + c->priority_add) & 7) : -1;
}

static void wake_acceptor(struct vm *vm)
{
	struct vcpu *vcpu;
	u32 i;

	vm_for_each_vcpu(vm, vcpu, i) {
		if (!irqchip_accepts_extint(vcpu))
			continue;
		vcpu_make_request(vcpu, KVM_REQ_EVENT);
		vcpu_kick(vcpu);
		return;
	}
}

/* As vm_set_irq() counts: 1 new, 0 coalesced, -1 masked. */
static int set_input(struct kvm_pic_state *c, unsigned input, bool level)
{
	u8 bit = BIT(input);
	int r = 1;

	if (c->elcr & bit) {
		if (level) {
			r = !(c->irr & bit);
			c->irr |= bit;
			c->last_irr |= bit;
		} else {
			c->irr &= ~bit;
			c->last_irr &= ~bit;
		}
	} else if (!level) {
		c->last_irr &= ~bit;
	} else {
		if (!(c->last_irr & bit)) {
			r = !(c->irr & bit);
			c->irr |= bit;
		}
		c->last_irr |= bit;
	}
	return c->imr & bit ? -1 : r;
}

static void update_output(struct pic *pic)
{
	bool now, before = atomic_load_explicit(&pic->output, memory_order_relaxed);

	if (pending_input(pic, &pic->chip[1]) >= 0) {
		set_input(&pic->chip[0], CASCADE, true);
		set_input(&pic->chip[0], CASCADE, false);
	}
	now = pending_input(pic, &pic->chip[0]) >= 0;
	atomic_store(&pic->output, now);
	if (now && !before)
		wake_acceptor(pic->vm);
}

int pic_set_irq(struct vm *vm, int source, unsigned irq, int level)
{
	struct pic *pic = pic_of(vm);
	int r;

	if (VM_BUG_ON(irq >= 16, vm))
		return -1;
	r = set_input(&pic->chip[irq >> 3], irq & 7, irq_line_level(&pic->lines[irq], source, level));
	update_output(pic);
	return r;
}

bool pic_output(struct vm *vm)
{
	struct pic *pic = pic_of(vm);

	return pic && atomic_load(&pic->output);
}

/* ---- acknowledge and EOI ----------------------------------------------------------------- */

/* Takes irq_lock away and back. */
static void end_of_interrupt(struct pic *pic, struct kvm_pic_state *c, unsigned input)
{
	unsigned chip = c == &pic->chip[0] ? KVM_IRQCHIP_PIC_MASTER : KVM_IRQCHIP_PIC_SLAVE;

	c->isr &= ~BIT(input);
	pthread_mutex_unlock(&pic->vm->irq_lock);
	irqchip_acked(pic->vm, chip, input);
	pthread_mutex_lock(&pic->vm->irq_lock);
}

static void acknowledge(struct pic *pic, struct kvm_pic_state *c, unsigned input)
{
	c->isr |= BIT(input);
	if (!(c->elcr & BIT(input)))
		c->irr &= ~BIT(input);
	if (!c->auto_eoi)
		return;
	if (c->rotate_on_auto_eoi)
		c->priority_add = (input + 1) & 7;
	end_of_interrupt(pic, c, input);
}

static u8 read_vector(struct pic *pic)
{
	int input = pending_input(pic, &pic->chip[0]), slave;

	if (input < 0)
		return pic->chip[0].irq_base + 7; /* spurious */
	acknowledge(pic, &pic->chip[0], input);
	if (input != CASCADE)
		return pic->chip[0].irq_base + input;
	slave = pending_input(pic, &pic->chip[1]);
	if (slave < 0)
		return pic->chip[1].irq_base + 7;
	acknowledge(pic, &pic->chip[1], slave);
	return pic->chip[1].irq_base + slave;
}

int pic_read_irq(struct vm *vm)
{
	struct pic *pic = pic_of(vm);
	u8 vector;

	pthread_mutex_lock(&vm->irq_lock);
	atomic_store(&pic->output, false);
	vector = read_vector(pic);
	update_output(pic);
	pthread_mutex_unlock(&vm->irq_lock);
	return vector;
}

/* ---- command words -------------------------------------------------------------------------- */

static bool somebody_accepts(struct vm *vm)
{
	struct vcpu *vcpu;
	u32 i;

	vm_for_each_vcpu(vm, vcpu, i)
		if (irqchip_accepts_extint(vcpu))
			return true;
	return false;
}

/* ICW1: back to the start; edges that were latched count as acknowledged. */
static void initialize(struct pic *pic, struct kvm_pic_state *c, u8 val)
{
	u8 lost = c->irr & ~c->elcr;

	c->init4 = val & 1;
	c->last_irr = 0;
	c->irr &= c->elcr;
	c->imr = 0;
	c->priority_add = 0;
	c->special_mask = 0;
	c->read_reg_select = 0;
	if (!c->init4) {
		c->special_fully_nested_mode = 0;
		c->auto_eoi = 0;
	}
	c->init_state = 1;
	if (!lost || !somebody_accepts(pic->vm))
		return;
	for (unsigned i = 0; i < 8; i++)
		if (lost & BIT(i))
			end_of_interrupt(pic, c, i);
}

static void write_ocw2(struct pic *pic, struct kvm_pic_state *c, u8 val)
{
	unsigned command = val >> 5, input = val & 7, r;
	bool rotate = command & 4;

	switch (command) {
	case 0: case 4:
		c->rotate_on_auto_eoi = rotate;
		return;
	case 1: case 5: /* EOI of the highest in service */
		r = rank(c, c->isr);
		if (r == 8)
			return;
		input = (r + c->priority_add) & 7;
		break;
	case 3: case 7: /* of the one named */
		break;
	case 6: /* set priority */
		c->priority_add = (input + 1) & 7;
		update_output(pic);
		return;
	default:
		return;
	}
	if (rotate)
		c->priority_add = (input + 1) & 7;
	end_of_interrupt(pic, c, input);
	update_output(pic);
}

static void write_ocw3(struct pic *pic, struct kvm_pic_state *c, u8 val)
{
	if (val & 4)
		c->poll = 1;
	if (val & 2)
		c->read_reg_select = val & 1;
	if (val & 0x40) {
		c->special_mask = val >> 5 & 1;
		update_output(pic);
	}
}

static void write_mask(struct pic *pic, struct kvm_pic_state *c, u8 val)
{
	u8 opened = c->imr & ~val;
	unsigned chip = c == &pic->chip[0] ? KVM_IRQCHIP_PIC_MASTER : KVM_IRQCHIP_PIC_SLAVE;

	c->imr = val;
	for (unsigned i = 0; i < 8; i++)
		if (opened & BIT(i))
			pit_pin_unmasked(pic->vm, chip, i);
	update_output(pic);
}

static void write_data(struct pic *pic, struct kvm_pic_state *c, u8 val)
{
	switch (c->init_state) {
	case 0:
		write_mask(pic, c, val);
		break;
	case 1: /* ICW2 */
		c->irq_base = val & 0xf8;
		c->init_state = 2;
		break;
	case 2: /* ICW3: the cascade is wired as it is */
		c->init_state = c->init4 ? 3 : 0;
		break;
	case 3: /* ICW4 */
		c->special_fully_nested_mode = val >> 4 & 1;
		c->auto_eoi = val >> 1 & 1;
		c->init_state = 0;
		break;
	}
}

static void write_command(struct pic *pic, struct kvm_pic_state *c, u8 val)
{
	if (val & ICW1)
		initialize(pic, c, val);
	else if (val & OCW3)
		write_ocw3(pic, c, val);
	else
		write_ocw2(pic, c, val);
}

/* A read in poll mode acknowledges and ends the interrupt at once. */
static u8 poll_read(struct pic *pic, struct kvm_pic_state *c)
{
	bool slave = c == &pic->chip[1];
	int input = pending_input(pic, c);

	if (input < 0) {
		update_output(pic);
		return 7;
	}
	if (slave) {
		pic->chip[0].isr &= ~BIT(CASCADE);
		pic->chip[0].irr &= ~BIT(CASCADE);
	}
	c->irr &= ~BIT(input);
	end_of_interrupt(pic, c, input);
	if (slave || input != CASCADE)
		update_output(pic);
	return 0x80 | input;
}

static u8 read_port(struct pic *pic, struct kvm_pic_state *c, bool data)
{
	if (c->poll) {
		c->poll = 0;
		return poll_read(pic, c);
	}
	if (data)
		return c->imr;
	return c->read_reg_select ? c->isr : c->irr;
}

/* ---- ports -------------------------------------------------------------------------------------- */

bool pic_port_match(u16 port, unsigned len)
{
	u16 first = port & ~1;

	return (first == 0x20 || first == 0xa0 || first == 0x4d0) && port + len <= first + 2u;
}

u8 pic_port_read(struct vm *vm, u16 port)
{
	struct pic *pic = pic_of(vm);
	u8 val;

	pthread_mutex_lock(&vm->irq_lock);
	if (port >= 0x4d0)
		val = pic->chip[port & 1].elcr;
	else
		val = read_port(pic, &pic->chip[port >> 7], port & 1);
	pthread_mutex_unlock(&vm->irq_lock);
	return val;
}

void pic_port_write(struct vm *vm, u16 port, u8 val)
{
	struct pic *pic = pic_of(vm);
	struct kvm_pic_state *c = &pic->chip[port >= 0x4d0 ? port & 1 : port >> 7];

	pthread_mutex_lock(&vm->irq_lock);
	if (port >= 0x4d0)
		c->elcr = val & c->elcr_mask;
	else if (port & 1)
		write_data(pic, c, val);
	else
		write_command(pic, c, val);
	pthread_mutex_unlock(&vm->irq_lock);
}

/* ---- state ------------------------------------------------------------------------------------------ */

void pic_get(struct vm *vm, unsigned chip, struct kvm_pic_state *s)
{
	pthread_mutex_lock(&vm->irq_lock);
	*s = pic_of(vm)->chip[chip & 1];
	pthread_mutex_unlock(&vm->irq_lock);
}

int pic_set(struct vm *vm, unsigned chip, const struct kvm_pic_state *s)
{
	struct pic *pic = pic_of(vm);

	pthread_mutex_lock(&vm->irq_lock);
	pic->chip[chip & 1] = *s;
	update_output(pic);
	pthread_mutex_unlock(&vm->irq_lock);
	return 0;
}

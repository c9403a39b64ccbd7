/* SPDX-License-Identifier: MIT */
/*
 * Event channels with two levels of bits: a port is pending in the shared info page, the word it is in is
 * selected in its vCPU's vcpu_info, and a byte there says that there is something. From 0 to 1 each
 * of them goes by compare-exchange, and whoever does the last of these steps raises the interrupt.
 *
 * Inbound events come from the client (KVM_XEN_HVM_EVTCHN_SEND), from GSIs, from timers and from ports of other
 * vCPUs. Outbound ones (EVTCHNOP_send) go to a port of the same guest or to an eventfd.
 */
#include <errno.h>
#include <stdlib.h>

#include "kvm/io_bus.h"
#include "x86/state.h"
#include "x86/xen/xen_internal.h"

/* ---- bits in guest memory --------------------------------------------------------- */

static int not_there(void)
{
	if (!host_kicked)
		return -EFAULT;
	host_kicked = false;
	return -EAGAIN;
}

/* 1 it was set, 0 it is now, -EFAULT, -EAGAIN */
static int bit_set(u8 *bitmap, u32 bit)
{
	u8 *word = bitmap + bit / 32 * 4;
	u64 old, mask = BIT(bit % 32);

	if (!host_load32(word, &old))
		return not_there();
	for (;;) {
		int r;

		if (old & mask)
			return 1;
		r = host_cmpxchg(word, 4, &old, old | mask);
		if (r < 0)
			return not_there();
		if (r)
			return 0;
	}
}

static int bit_test(const u8 *bitmap, u32 bit)
{
	u64 word;

	if (!host_load32(bitmap + bit / 32 * 4, &word))
		return not_there();
	return word >> bit % 32 & 1;
}

/* ---- delivery ------------------------------------------------------------------------ */

static void wake(struct vcpu *target)
{
	struct xen_vcpu *xv = xen_vcpu(target);

	atomic_store(&xv->polling, false);
	vcpu_make_request(target, KVM_REQ_EVENT);
	vcpu_kick(target);
}

static void interrupt(struct vcpu *target)
{
	u8 vector = atomic_load(&xen_vcpu(target)->upcall_vector);

	if (vector && target->arch.apic)
		lapic_deliver_fixed(target, vector);
	wake(target);
}

/* The selector bits, and the byte. 0, -EFAULT, -EAGAIN. xen_vm.lock held. */
static int select_words(struct vcpu *self, struct vcpu *target, u64 sel)
{
	struct xen_vm *x = xen_vm(self->vm);
	bool wide = atomic_load(&x->wide), fresh = false;
	u8 *info = xen_host(self->slots, &xen_vcpu(target)->info, 0);

	if (!info)
		return -EFAULT;
	for (; sel; sel &= sel - 1) {
		int r = bit_set(info + XEN_VCPU_INFO_SEL(wide), __builtin_ctzll(sel));

		if (r < 0)
			return r;
		fresh |= !r;
	}
	if (!fresh)
		return 0;
	if (!host_store8(info + XEN_VCPU_INFO_UPCALL, 1))
		return not_there();
	interrupt(target);
	return 0;
}

/* The port is pending; now its word. What finds no vcpu_info waits for one. */
static void select_word(struct vcpu *self, struct vcpu *target, u32 port)
{
	u64 sel = BIT_ULL(port / (atomic_load(&xen_vm(self->vm)->wide) ? 64 : 32));

	if (!select_words(self, target, sel))
		return;
	atomic_fetch_or(&xen_vcpu(target)->lost_sel, sel);
	vcpu_make_request(target, KVM_REQ_XEN);
	vcpu_kick(target);
}

static void check_poller(struct vcpu *target, u32 port)
{
	struct xen_vcpu *xv = xen_vcpu(target);
	u32 polled = __atomic_load_n(&xv->poll_port, __ATOMIC_RELAXED);

	if ((polled == port || polled == ~0u) && atomic_exchange(&xv->polling, false))
		wake(target);
}

static int deliver_locked(struct vcpu *self, struct vcpu *target, u32 port)
{
	struct xen_vm *x = xen_vm(self->vm);
	u8 *page = xen_host(self->slots, &x->shinfo, 0);
	int r, masked;

	if (port >= xen_max_port(x) || !page)
		return -EINVAL;
	/* Looked at first, so that nothing has happened should the look fail. */
	masked = bit_test(page + XEN_SHINFO_MASK(atomic_load(&x->wide)), port);
	if (masked < 0)
		return masked;
	r = bit_set(page + XEN_SHINFO_PENDING, port);
	if (r)
		return r < 0 ? r : 0;
	masked = bit_test(page + XEN_SHINFO_MASK(atomic_load(&x->wide)), port);
	if (masked > 0) {
		check_poller(target, port);
		return -ENOTCONN;
	}
	select_word(self, target, port);
	return 1;
}

int xen_deliver(struct vcpu *self, struct vcpu *target, u32 port)
{
	struct xen_vm *x = xen_vm(self->vm);
	int r;

	if (!xen_vcpu_init(target))
		return -ENOMEM;
	pthread_mutex_lock(&x->lock);
	r = deliver_locked(self, target, port);
	pthread_mutex_unlock(&x->lock);
	return r;
}

bool xen_any_pending(struct vcpu *vcpu, const u32 *ports, u32 nr)
{
	struct xen_vm *x = xen_vm(vcpu->vm);
	bool any = false;
	u8 *page;

	pthread_mutex_lock(&x->lock);
	page = xen_host(vcpu->slots, &x->shinfo, 0);
	for (u32 i = 0; page && !any && i < nr; i++)
		any = bit_test(page + XEN_SHINFO_PENDING, ports[i]);
	pthread_mutex_unlock(&x->lock);
	return any || !page;
}

/* ---- what others have sent -------------------------------------------------------------- */

int xen_queue_event(struct vm *vm, u32 vcpu_id, u32 port)
{
	struct xen_vm *x = xen_vm(vm);
	struct vcpu *target = vm_vcpu_by_id(vm, vcpu_id);
	struct xen_vcpu *xv;

	if (!x || !target || port >= xen_max_port(x))
		return -EINVAL;
	xv = xen_vcpu_init(target);
	if (!xv)
		return -EINVAL;
	atomic_fetch_or(&xv->queued[port / 64], BIT_ULL(port % 64));
	vcpu_make_request(target, KVM_REQ_XEN);
	vcpu_kick(target);
	return 1;
}

static void take_word(struct vcpu *vcpu, u32 word)
{
	struct xen_vcpu *xv = xen_vcpu(vcpu);
	u64 bits = atomic_load(&xv->queued[word]) ? atomic_exchange(&xv->queued[word], 0) : 0;

	for (; bits; bits &= bits - 1) {
		u32 port = word * 64 + __builtin_ctzll(bits);

		if (xen_deliver(vcpu, vcpu, port) == -EAGAIN)
			xen_queue_event(vcpu->vm, vcpu->id, port);
	}
}

static void take_timer(struct vcpu *vcpu)
{
	struct xen_vcpu *xv = xen_vcpu(vcpu);

	if (!atomic_exchange(&xv->timer_pending, false))
		return;
	if (xen_deliver(vcpu, vcpu, xv->timer_port) == -EAGAIN) {
		atomic_store(&xv->timer_pending, true);
		vcpu_make_request(vcpu, KVM_REQ_XEN);
		return;
	}
	xv->timer_expires = 0;
}

static void take_lost(struct vcpu *vcpu)
{
	struct xen_vcpu *xv = xen_vcpu(vcpu);
	struct xen_vm *x = xen_vm(vcpu->vm);
	u64 sel = atomic_exchange(&xv->lost_sel, 0);
	int r;

	if (!sel)
		return;
	pthread_mutex_lock(&x->lock);
	r = select_words(vcpu, vcpu, sel);
	pthread_mutex_unlock(&x->lock);
	if (!r)
		return;
	atomic_fetch_or(&xv->lost_sel, sel);
	if (r == -EAGAIN)
		vcpu_make_request(vcpu, KVM_REQ_XEN);
}

void xen_take_events(struct vcpu *vcpu)
{
	if (!xen_vcpu(vcpu))
		return;
	/* A poll ends also by an event that finds no place: it may have been the one waited for. */
	atomic_store(&xen_vcpu(vcpu)->polling, false);
	take_timer(vcpu);
	for (u32 i = 0; i < XEN_EVENTS / 64; i++)
		take_word(vcpu, i);
	take_lost(vcpu);
}

/* ---- the client sends ------------------------------------------------------------------------ */

/* A vCPU that runs is asked to do it; for one that does not this thread does, so that the client finds it done. */
static int send_to(struct vm *vm, struct vcpu *target, u32 port)
{
	struct guest_access ga;
	int r;

	if (pthread_mutex_trylock(&target->mutex))
		return xen_queue_event(vm, target->id, port);
	guest_access_begin(target, &ga);
	do {
		r = xen_deliver(target, target, port);
		if (r == -EAGAIN)
			host_kicked = true; /* taken note of by xen_deliver() */
	} while (r == -EAGAIN && guest_access_kicked(target, &ga));
	guest_access_end(target, &ga);
	pthread_mutex_unlock(&target->mutex);
	return r;
}

int vm_xen_evtchn_send(struct vm *vm, const struct kvm_irq_routing_xen_evtchn *event)
{
	struct xen_vm *x = xen_vm_init(vm);
	struct vcpu *target = vm_vcpu_by_id(vm, event->vcpu);
	int r;

	if (!x)
		return -ENOMEM;
	if (!event->port || event->port >= xen_max_port(x) ||
	    event->priority != KVM_IRQ_ROUTING_XEN_EVTCHN_PRIO_2LEVEL || !target)
		return -EINVAL;
	r = send_to(vm, target, event->port);
	return r > 0 || r == -ENOTCONN ? 0 : r;
}

/* ---- interrupts --------------------------------------------------------------------------------- */

/* In guest mode or not: a halted vCPU asks as well. A look that a kick ended says yes, to be looked at again. */
static bool upcall_pending(struct vcpu *vcpu)
{
	struct xen_vm *x = xen_vm(vcpu->vm);
	bool outside = atomic_load(&vcpu->mode) == VCPU_OUTSIDE;
	u64 pending = 0;
	u8 *info;

	if (outside)
		vcpu_enter_guest_mode(vcpu);
	pthread_mutex_lock(&x->lock);
	info = xen_host(vcpu->slots, &xen_vcpu(vcpu)->info, XEN_VCPU_INFO_UPCALL);
	if (info && !host_load8(info, &pending))
		pending = not_there() == -EAGAIN;
	pthread_mutex_unlock(&x->lock);
	if (outside)
		vcpu_leave_guest_mode(vcpu);
	return pending;
}

u8 xen_pending_vector(struct vcpu *vcpu)
{
	struct xen_vm *x = xen_vm(vcpu->vm);
	u8 vector;

	if (likely(!x) || !xen_vcpu(vcpu) || !atomic_load(&x->msr))
		return 0;
	vector = atomic_load(&x->upcall_vector);
	return vector && xen_vcpu(vcpu)->info.kind && upcall_pending(vcpu) ? vector : 0;
}

void xen_apic_enabled(struct vcpu *vcpu)
{
	struct xen_vcpu *xv = xen_vcpu(vcpu);

	if (xv && xen_msr_enabled(vcpu->vm) && atomic_load(&xv->upcall_vector) && upcall_pending(vcpu))
		lapic_deliver_fixed(vcpu, atomic_load(&xv->upcall_vector));
}

/* ---- outbound ports --------------------------------------------------------------------------------- */

enum { XEN_PORT_INTERDOMAIN = 2, XEN_PORT_IPI = 5 };

struct xen_port {
	struct xen_port *next;
	u32 send_port, type;
	u32 port, vcpu_id;		/* to that one of the guest; port 0: to eventfd */
	struct eventfd_ref eventfd;
};

static struct xen_port **port_find(struct xen_vm *x, u32 send_port)
{
	struct xen_port **p = &x->ports;

	while (*p && (*p)->send_port != send_port)
		p = &(*p)->next;
	return p;
}

static void port_free(struct xen_port *port)
{
	if (!port->port)
		eventfd_ref_put(&port->eventfd);
	free(port);
}

void xen_ports_destroy(struct xen_vm *x)
{
	struct xen_port *next;

	for (struct xen_port *port = x->ports; port; port = next) {
		next = port->next;
		port_free(port);
	}
	x->ports = NULL;
}

/* 0, -EINVAL, -EBADF: what the client wants is sensible. */
static int port_fill(struct xen_vm *x, struct xen_port *port, const struct kvm_xen_hvm_attr *attr)
{
	port->send_port = attr->u.evtchn.send_port;
	port->type = attr->u.evtchn.type;
	port->port = attr->u.evtchn.deliver.port.port;
	port->vcpu_id = attr->u.evtchn.deliver.port.vcpu;
	if (port->type == XEN_PORT_INTERDOMAIN && !port->port)
		return eventfd_ref_get(attr->u.evtchn.deliver.eventfd.fd, &port->eventfd);
	if (port->type == XEN_PORT_IPI ? port->port != port->send_port :
					 port->type != XEN_PORT_INTERDOMAIN || port->port >= xen_max_port(x))
		return -EINVAL;
	return attr->u.evtchn.deliver.port.priority == KVM_IRQ_ROUTING_XEN_EVTCHN_PRIO_2LEVEL ? 0 : -EINVAL;
}

static int port_assign(struct xen_vm *x, const struct kvm_xen_hvm_attr *attr)
{
	struct xen_port *port = calloc(1, sizeof(*port)), **link;
	int r;

	if (!port)
		return -ENOMEM;
	r = port_fill(x, port, attr);
	if (r) {
		free(port);
		return r;
	}
	pthread_mutex_lock(&x->lock);
	link = port_find(x, port->send_port);
	if (*link)
		r = -EEXIST;
	else
		*link = port;
	pthread_mutex_unlock(&x->lock);
	if (r)
		port_free(port);
	return r;
}

static int port_deassign(struct xen_vm *x, u32 send_port)
{
	struct xen_port **link, *port;

	pthread_mutex_lock(&x->lock);
	link = port_find(x, send_port);
	port = *link;
	if (port)
		*link = port->next;
	pthread_mutex_unlock(&x->lock);
	if (!port)
		return -ENOENT;
	port_free(port);
	return 0;
}

/* Only the vCPU may change. xen_vm.lock held. */
static int port_update(struct xen_vm *x, const struct kvm_xen_hvm_attr *attr)
{
	struct xen_port *port = *port_find(x, attr->u.evtchn.send_port);

	if (!port)
		return -ENOENT;
	if (port->type != attr->u.evtchn.type || !port->port ||
	    port->port != attr->u.evtchn.deliver.port.port ||
	    attr->u.evtchn.deliver.port.priority != KVM_IRQ_ROUTING_XEN_EVTCHN_PRIO_2LEVEL)
		return -EINVAL;
	port->vcpu_id = attr->u.evtchn.deliver.port.vcpu;
	return 0;
}

int xen_port_set(struct vm *vm, const struct kvm_xen_hvm_attr *attr)
{
	struct xen_vm *x = xen_vm(vm);
	u32 send_port = attr->u.evtchn.send_port;
	int r = 0;

	if (attr->u.evtchn.flags != KVM_XEN_EVTCHN_RESET && (!send_port || send_port >= xen_max_port(x)))
		return -EINVAL;
	switch (attr->u.evtchn.flags) {
	case 0:
		return port_assign(x, attr);
	case KVM_XEN_EVTCHN_DEASSIGN:
		return port_deassign(x, send_port);
	case KVM_XEN_EVTCHN_UPDATE:
	case KVM_XEN_EVTCHN_RESET:
		pthread_mutex_lock(&x->lock);
		if (attr->u.evtchn.flags == KVM_XEN_EVTCHN_RESET)
			xen_ports_destroy(x);
		else
			r = port_update(x, attr);
		pthread_mutex_unlock(&x->lock);
		return r;
	}
	return -EINVAL;
}

int xen_port_send(struct vcpu *vcpu, u32 send_port)
{
	struct xen_vm *x = xen_vm(vcpu->vm);
	struct xen_port *port;
	struct vcpu *target;
	int r = -ENOENT;

	pthread_mutex_lock(&x->lock);
	port = *port_find(x, send_port);
	if (port && !port->port) {
		eventfd_ref_signal(&port->eventfd);
		r = 0;
	} else if (port) {
		target = vm_vcpu_by_id(vcpu->vm, port->vcpu_id);
		if (target && xen_vcpu_init(target))
			r = deliver_locked(vcpu, target, port->port);
	}
	pthread_mutex_unlock(&x->lock);
	if (r == -EAGAIN)
		return r;
	return r >= 0 || r == -ENOTCONN ? 0 : -ENOENT;
}

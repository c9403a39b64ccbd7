/* SPDX-License-Identifier: MIT */
/*
 * irqfd: an eventfd that raises a GSI. One thread a VM polls them all.
 *
 * Invariants
 *  1. The thread looks at an irqfd only under irq_lock and only if it is active; deassign makes it
 *     inactive under irq_lock. So when deassign returns, nothing is in flight.
 *  2. An event the thread has already fetched may point to an irqfd that was
 *     deassigned since. Those are freed by the thread itself, after
 *     the batch it fetched before, never by deassign.
 *  3. The count is taken without blocking: the client may read its eventfd too.
 *
 * Level irqfds (resamplefd): the eventfd raises the line, the EOI lowers it once
 * for all of the GSI and signals every resamplefd, whose owners raise it again if need be.
 *
 * That the client has closed its last descriptor of an eventfd cannot be seen
 * through ours; such an irqfd stays, silent, until it is deassigned or the VM ends.
 */
#include <errno.h>
#include <stdlib.h>
#include <sys/epoll.h>
#include <sys/eventfd.h>

#include "host/host.h"
#include "host/syscall.h"
#include "kvm/arch.h"
#include "kvm/io_bus.h"
#include "kvm/irq_routing.h"

struct irqfd {
	struct list_head link;		/* vm->irqfds, or poller->retired */
	u32 gsi;
	bool active, resample;
	struct eventfd_ref eventfd, resamplefd;
};

struct eventfd_poller {
	struct vm *vm;
	pthread_t thread;
	int epoll_fd, wake_fd;
	_Atomic u32 stop;
	struct list_head retired;	/* under irq_lock */
};

static void irqfd_free(struct irqfd *p)
{
	eventfd_ref_put(&p->eventfd);
	eventfd_ref_put(&p->resamplefd);
	free(p);
}

/* ---- the thread ------------------------------------------------------------------ */

static void irqfd_raise(struct vm *vm, struct irqfd *p)
{
	vm_note_client(vm);
	if (p->resample) {
		vm_set_irq_locked(vm, KVM_IRQ_SOURCE_RESAMPLER, p->gsi, 1);
		return;
	}
	vm_set_irq_locked(vm, KVM_IRQ_SOURCE_USERSPACE, p->gsi, 1);
	vm_set_irq_locked(vm, KVM_IRQ_SOURCE_USERSPACE, p->gsi, 0);
}

static void irqfd_event(struct vm *vm, struct irqfd *p)
{
	pthread_mutex_lock(&vm->irq_lock);
	if (p->active && eventfd_ref_consume(&p->eventfd))
		irqfd_raise(vm, p);
	pthread_mutex_unlock(&vm->irq_lock);
}

static void free_retired(struct eventfd_poller *poller)
{
	struct irqfd *p, *tmp;

	list_for_each_safe(p, tmp, &poller->retired, link) {
		list_del(&p->link);
		irqfd_free(p);
	}
}

static void *poller_main(void *arg)
{
	struct eventfd_poller *poller = arg;
	struct epoll_event events[32];

	while (!atomic_load(&poller->stop)) {
		int n = epoll_wait(poller->epoll_fd, events, ARRAY_SIZE(events), -1);

		for (int i = 0; i < n; i++) {
			if (events[i].data.ptr)
				irqfd_event(poller->vm, events[i].data.ptr);
			else
				eventfd_ref_consume(&(struct eventfd_ref){ .fd = poller->wake_fd });
		}
		pthread_mutex_lock(&poller->vm->irq_lock);
		free_retired(poller);
		pthread_mutex_unlock(&poller->vm->irq_lock);
	}
	return NULL;
}

static void poller_close(struct eventfd_poller *poller)
{
	if (poller->epoll_fd >= 0)
		host_syscall(SYS_close, poller->epoll_fd, 0, 0, 0);
	if (poller->wake_fd >= 0)
		host_syscall(SYS_close, poller->wake_fd, 0, 0, 0);
	free(poller);
}

static struct eventfd_poller *poller_create(struct vm *vm, int *err)
{
	struct eventfd_poller *poller = calloc(1, sizeof(*poller));
	struct epoll_event ev = { .events = EPOLLIN };

	*err = -ENOMEM;
	if (!poller)
		return NULL;
	poller->vm = vm;
	list_init(&poller->retired);
	poller->epoll_fd = epoll_create1(EPOLL_CLOEXEC);
	poller->wake_fd = eventfd(0, EFD_CLOEXEC | EFD_NONBLOCK);
	if (poller->epoll_fd < 0 || poller->wake_fd < 0 ||
	    epoll_ctl(poller->epoll_fd, EPOLL_CTL_ADD, poller->wake_fd, &ev))
		*err = -errno;
	else
		*err = host_thread_create(&poller->thread, poller_main, poller);
	if (*err) {
		poller_close(poller);
		return NULL;
	}
	return poller;
}

static void poller_wake(struct eventfd_poller *poller)
{
	struct eventfd_ref ref = { .fd = poller->wake_fd };

	eventfd_ref_signal(&ref);
}

/* vm->lock held. */
static int poller_start(struct vm *vm)
{
	int err = 0;

	if (!vm->poller)
		vm->poller = poller_create(vm, &err);
	return vm->poller ? 0 : err;
}

/* ---- assign, deassign --------------------------------------------------------------- */

static int irqfd_insert(struct vm *vm, struct irqfd *new)
{
	struct epoll_event ev = { .events = EPOLLIN, .data.ptr = new };
	struct irqfd *p;
	int r = 0;

	pthread_mutex_lock(&vm->irq_lock);
	list_for_each(p, &vm->irqfds, link)
		if (eventfd_ref_same(&p->eventfd, &new->eventfd))
			r = -EBUSY;
	/* A count that is there already is reported by epoll at once. */
	if (!r && epoll_ctl(vm->poller->epoll_fd, EPOLL_CTL_ADD, new->eventfd.fd, &ev))
		r = -errno;
	if (!r) {
		new->active = true;
		list_add_tail(&new->link, &vm->irqfds);
		if (new->resample)
			irq_notifiers_changed(vm);
	}
	pthread_mutex_unlock(&vm->irq_lock);
	if (!r && new->resample)
		arch_routing_updated(vm);
	return r;
}

static int irqfd_assign(struct vm *vm, const struct kvm_irqfd *args)
{
	bool resample = args->flags & KVM_IRQFD_FLAG_RESAMPLE;
	struct irqfd *p;
	int r;

	/* With a split irqchip no EOI of a pin is ours to see. */
	if (resample ? !arch_irqchip_full(vm) : !arch_irqchip_in_kernel(vm))
		return -EINVAL;
	p = calloc(1, sizeof(*p));
	if (!p)
		return -ENOMEM;
	p->gsi = args->gsi;
	p->resample = resample;
	p->eventfd.fd = p->resamplefd.fd = -1;
	r = eventfd_ref_get(args->fd, &p->eventfd);
	if (!r && resample)
		r = eventfd_ref_get(args->resamplefd, &p->resamplefd);
	if (!r) {
		pthread_mutex_lock(&vm->lock);
		r = poller_start(vm);
		pthread_mutex_unlock(&vm->lock);
	}
	if (!r)
		r = irqfd_insert(vm, p);
	if (r)
		irqfd_free(p);
	return r;
}

/* irq_lock held. */
static void irqfd_retire(struct vm *vm, struct irqfd *p)
{
	struct eventfd_poller *poller = vm->poller;

	p->active = false;
	epoll_ctl(poller->epoll_fd, EPOLL_CTL_DEL, p->eventfd.fd, NULL);
	list_del(&p->link);
	list_add_tail(&p->link, &poller->retired);
	/* The last resampler takes its level with it. */
	if (p->resample && !irqfd_has_resampler(vm, p->gsi))
		vm_set_irq_locked(vm, KVM_IRQ_SOURCE_RESAMPLER, p->gsi, 0);
	eventfd_ref_put(&p->eventfd);
	eventfd_ref_put(&p->resamplefd);
}

static int irqfd_deassign(struct vm *vm, const struct kvm_irqfd *args)
{
	struct eventfd_ref eventfd;
	struct irqfd *p, *tmp;
	bool any = false;
	int r = eventfd_ref_get(args->fd, &eventfd);

	if (r)
		return r;
	pthread_mutex_lock(&vm->irq_lock);
	list_for_each_safe(p, tmp, &vm->irqfds, link)
		if (p->gsi == args->gsi && eventfd_ref_same(&p->eventfd, &eventfd)) {
			irqfd_retire(vm, p);
			any = true;
		}
	if (any) {
		irq_notifiers_changed(vm);
		poller_wake(vm->poller);
	}
	pthread_mutex_unlock(&vm->irq_lock);
	eventfd_ref_put(&eventfd);
	return 0;
}

int vm_irqfd(struct vm *vm, const struct kvm_irqfd *args)
{
	if (args->flags & ~(KVM_IRQFD_FLAG_DEASSIGN | KVM_IRQFD_FLAG_RESAMPLE))
		return -EINVAL;
	if (args->flags & KVM_IRQFD_FLAG_DEASSIGN)
		return irqfd_deassign(vm, args);
	return irqfd_assign(vm, args);
}

/* ---- EOI ------------------------------------------------------------------------------- */

bool irqfd_has_resampler(struct vm *vm, u32 gsi)
{
	struct irqfd *p;

	list_for_each(p, &vm->irqfds, link)
		if (p->resample && p->gsi == gsi)
			return true;
	return false;
}

void irqfd_resample(struct vm *vm, u32 gsi)
{
	struct irqfd *p;

	if (!irqfd_has_resampler(vm, gsi))
		return;
	vm_set_irq_locked(vm, KVM_IRQ_SOURCE_RESAMPLER, gsi, 0);
	list_for_each(p, &vm->irqfds, link)
		if (p->resample && p->gsi == gsi)
			eventfd_ref_signal(&p->resamplefd);
}

void irqfds_destroy(struct vm *vm)
{
	struct eventfd_poller *poller = vm->poller;
	struct irqfd *p, *tmp;

	if (!poller)
		return;
	atomic_store(&poller->stop, 1);
	poller_wake(poller);
	pthread_join(poller->thread, NULL);
	list_for_each_safe(p, tmp, &vm->irqfds, link) {
		list_del(&p->link);
		irqfd_free(p);
	}
	free_retired(poller);
	poller_close(poller);
	vm->poller = NULL;
}

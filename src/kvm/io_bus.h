/* SPDX-License-Identifier: MIT */
/*
 * Guest addresses that something in the library consumes: ioeventfds and
 * coalesced zones. Private to src/kvm, but for eventfd_ref.
 *
 * A bus is an immutable sorted array, replaced as a whole under slots_lock.
 * Readers are vCPU threads in guest mode, which take no lock; what they may
 * still be looking at is freed after vm_sync_vcpus(vm, KVM_REQ_SYNC).
 */
#ifndef SOFTKVM_KVM_IO_BUS_H
#define SOFTKVM_KVM_IO_BUS_H

#include "kvm/kvm_host.h"

struct io_device {
	/* A write inside the device's range: true if consumed. In guest mode, no locks held. */
	bool (*write)(struct vm *vm, struct io_device *dev, gpa_t addr, unsigned len, const void *data);
	bool is_ioeventfd;	/* not counted against NR_IOBUS_DEVS */
};

#define NR_IOBUS_DEVS 1000

enum io_bus_kind { IO_BUS_MMIO, IO_BUS_PIO };

/* slots_lock held. len 0: the exact address, any access size. 0, -ENOMEM or -ENOSPC. */
int io_bus_register(struct vm *vm, enum io_bus_kind kind, gpa_t addr, u64 len, struct io_device *dev);
/* slots_lock held. On return no vCPU is inside dev->write(). */
void io_bus_unregister(struct vm *vm, enum io_bus_kind kind, struct io_device *dev);

void io_buses_destroy(struct vm *vm);		/* with all zones and ioeventfds */
void ioeventfds_destroy(struct vm *vm);
void coalesced_destroy(struct vm *vm);
void irqfds_destroy(struct vm *vm);
void vcpu_array_free(struct vm *vm);

/*
 * A reference of ours to an eventfd of the client: a duplicate descriptor, which
 * outlives the client's, and the kernel's number of the object behind it.
 */
struct eventfd_ref {
	int fd;		/* -1: none */
	u64 id;		/* 0: unknown, compare with kcmp(2) */
};
/* 0, -EBADF, -EINVAL (no eventfd), -EMFILE */
int eventfd_ref_get(int client_fd, struct eventfd_ref *ref);
void eventfd_ref_put(struct eventfd_ref *ref);
bool eventfd_ref_same(const struct eventfd_ref *a, const struct eventfd_ref *b);
void eventfd_ref_signal(const struct eventfd_ref *ref);
/* Take the count without ever blocking: false if there was none. */
bool eventfd_ref_consume(const struct eventfd_ref *ref);

#endif

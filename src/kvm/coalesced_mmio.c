/* SPDX-License-Identifier: MIT */
/*
 * Coalesced MMIO and PIO: writes to registered zones are collected in a ring
 * that the client empties at the next exit.
 *
 * One ring a VM, one page, mapped by the client next to every vCPU's kvm_run.
 * Its indices are the client's to write: only one checked copy of each is used.
 */
#include <errno.h>
#include <stdlib.h>
#include <string.h>
#include <sys/mman.h>

#include "host/host.h"
#include "host/syscall.h"
#include "kvm/io_bus.h"

struct coalesced_zone {
	struct io_device dev;
	struct list_head link;
	struct kvm_coalesced_mmio_zone zone;
};

static bool zone_contains(const struct kvm_coalesced_mmio_zone *z, gpa_t addr, u64 len)
{
	if (addr + len < addr || addr < z->addr)
		return false;
	return addr + len <= z->addr + z->size;
}

static bool coalesced_write(struct vm *vm, struct io_device *dev, gpa_t addr, unsigned len, const void *data)
{
	struct coalesced_zone *z = container_of(dev, struct coalesced_zone, dev);
	struct kvm_coalesced_mmio_ring *ring = vm->coalesced_ring;
	struct kvm_coalesced_mmio *entry;
	u32 last, next;
	bool room;

	if (!zone_contains(&z->zone, addr, len) || len > sizeof(entry->data))
		return false;
	pthread_mutex_lock(&vm->coalesced_lock);
	last = __atomic_load_n(&ring->last, __ATOMIC_RELAXED);
	next = (last + 1) % KVM_COALESCED_MMIO_MAX;
	/* One entry stays free: full and empty must differ. Acquire: the client has read what it released. */
	room = last < KVM_COALESCED_MMIO_MAX && next != __atomic_load_n(&ring->first, __ATOMIC_ACQUIRE);
	if (room) {
		entry = &ring->coalesced_mmio[last];
		entry->phys_addr = addr;
		entry->len = len;
		entry->pio = z->zone.pio;
		memcpy(entry->data, data, len);
		__atomic_store_n(&ring->last, next, __ATOMIC_RELEASE);
	}
	pthread_mutex_unlock(&vm->coalesced_lock);
	return room;
}

static int ring_create(struct vm *vm)
{
	void *p;
	int fd;

	if (vm->coalesced_fd >= 0)
		return 0;
	fd = host_memfd("kvm-coalesced", PAGE_SIZE, true);
	if (fd < 0)
		return fd;
	p = mmap(NULL, PAGE_SIZE, PROT_READ | PROT_WRITE, MAP_SHARED, fd, 0);
	if (p == MAP_FAILED) {
		host_syscall(SYS_close, fd, 0, 0, 0);
		return -ENOMEM;
	}
	vm->coalesced_ring = p;
	vm->coalesced_fd = fd;
	return 0;
}

int vm_coalesced_fd(struct vm *vm)
{
	int r;

	/* Not slots_lock: its holder may wait for vCPUs, and a mapping is no business of theirs. */
	pthread_mutex_lock(&vm->coalesced_lock);
	r = ring_create(vm);
	pthread_mutex_unlock(&vm->coalesced_lock);
	return r ? r : vm->coalesced_fd;
}

static enum io_bus_kind zone_bus(const struct kvm_coalesced_mmio_zone *z)
{
	return z->pio ? IO_BUS_PIO : IO_BUS_MMIO;
}

int vm_register_coalesced(struct vm *vm, const struct kvm_coalesced_mmio_zone *zone)
{
	struct coalesced_zone *z;
	int r;

	if (zone->pio > 1)
		return -EINVAL;
	r = vm_coalesced_fd(vm);
	if (r < 0)
		return r;
	z = calloc(1, sizeof(*z));
	if (!z)
		return -ENOMEM;
	z->dev.write = coalesced_write;
	z->zone = *zone;
	pthread_mutex_lock(&vm->slots_lock);
	r = io_bus_register(vm, zone_bus(zone), zone->addr, zone->size, &z->dev);
	if (!r)
		list_add_tail(&z->link, &vm->coalesced_zones);
	pthread_mutex_unlock(&vm->slots_lock);
	if (r)
		free(z);
	return r;
}

/* Every zone that contains the given range goes; none is no error. */
int vm_unregister_coalesced(struct vm *vm, const struct kvm_coalesced_mmio_zone *zone)
{
	struct coalesced_zone *z, *tmp;

	if (zone->pio > 1)
		return -EINVAL;
	pthread_mutex_lock(&vm->slots_lock);
	list_for_each_safe(z, tmp, &vm->coalesced_zones, link) {
		if (z->zone.pio != zone->pio || !zone_contains(&z->zone, zone->addr, zone->size))
			continue;
		io_bus_unregister(vm, zone_bus(zone), &z->dev);
		list_del(&z->link);
		free(z);
	}
	pthread_mutex_unlock(&vm->slots_lock);
	return 0;
}

void coalesced_destroy(struct vm *vm)
{
	struct coalesced_zone *z, *tmp;

	list_for_each_safe(z, tmp, &vm->coalesced_zones, link) {
		list_del(&z->link);
		free(z);
	}
	if (vm->coalesced_ring)
		munmap(vm->coalesced_ring, PAGE_SIZE);
	if (vm->coalesced_fd >= 0)
		host_syscall(SYS_close, vm->coalesced_fd, 0, 0, 0);
	vm->coalesced_ring = NULL;
	vm->coalesced_fd = -1;
}

/* SPDX-License-Identifier: MIT */
/* In-library consumers of guest MMIO and PIO writes; io_bus.h has the rules. */
#include <errno.h>
#include <stdlib.h>
#include <string.h>

#include "kvm/io_bus.h"

struct io_range {
	gpa_t addr, end;	/* end is exclusive */
	gpa_t max_end;		/* of this and all ranges before it: where a search backwards may stop */
	bool any_len;
	struct io_device *dev;
};

struct io_bus {
	u32 nr;
	u32 nr_ioeventfds;
	struct io_range ranges[];	/* ascending addr */
};

static struct io_bus **bus_of(struct vm *vm, enum io_bus_kind kind)
{
	return kind == IO_BUS_PIO ? &vm->pio_bus : &vm->mmio_bus;
}

static gpa_t range_end(gpa_t addr, u64 len)
{
	gpa_t end = addr + (len ? len : 8);

	return end < addr ? ~0ull : end;
}

static void update_max_end(struct io_bus *bus)
{
	gpa_t max_end = 0;

	for (u32 i = 0; i < bus->nr; i++) {
		max_end = max(max_end, bus->ranges[i].end);
		bus->ranges[i].max_end = max_end;
	}
}

static void bus_replace(struct vm *vm, enum io_bus_kind kind, struct io_bus *bus)
{
	struct io_bus **p = bus_of(vm, kind);
	struct io_bus *old = *p;

	/* Pairs with the acquire in bus_write(). */
	__atomic_store_n(p, bus, __ATOMIC_SEQ_CST);
	vm_sync_vcpus(vm, KVM_REQ_SYNC);
	free(old);
}

int io_bus_register(struct vm *vm, enum io_bus_kind kind, gpa_t addr, u64 len, struct io_device *dev)
{
	struct io_bus *old = *bus_of(vm, kind), *bus;
	u32 nr = old ? old->nr : 0, i = 0;

	if (!dev->is_ioeventfd && old && old->nr - old->nr_ioeventfds > NR_IOBUS_DEVS - 1)
		return -ENOSPC;
	bus = calloc(1, sizeof(*bus) + (nr + 1) * sizeof(bus->ranges[0]));
	if (!bus)
		return -ENOMEM;
	while (i < nr && old->ranges[i].addr <= addr)
		i++;
	if (nr) {
		memcpy(bus->ranges, old->ranges, i * sizeof(bus->ranges[0]));
		memcpy(bus->ranges + i + 1, old->ranges + i, (nr - i) * sizeof(bus->ranges[0]));
	}
	bus->ranges[i] = (struct io_range){
		.addr = addr, .end = range_end(addr, len), .any_len = !len, .dev = dev,
	};
	bus->nr = nr + 1;
	bus->nr_ioeventfds = (old ? old->nr_ioeventfds : 0) + dev->is_ioeventfd;
	update_max_end(bus);
	bus_replace(vm, kind, bus);
	return 0;
}

/*
 * Removing must not fail for want of memory. If it does, the range is
 * overwritten in place by one that never matches; vCPUs see either version.
 */
void io_bus_unregister(struct vm *vm, enum io_bus_kind kind, struct io_device *dev)
{
	struct io_bus *old = *bus_of(vm, kind), *bus;
	u32 i = 0;

	while (i < old->nr && old->ranges[i].dev != dev)
		i++;
	if (VM_BUG_ON(i == old->nr, vm))
		return;
	bus = calloc(1, sizeof(*bus) + old->nr * sizeof(bus->ranges[0]));
	if (!bus) {
		__atomic_store_n(&old->ranges[i].dev, NULL, __ATOMIC_SEQ_CST);
		vm_sync_vcpus(vm, KVM_REQ_SYNC);
		return;
	}
	memcpy(bus->ranges, old->ranges, i * sizeof(bus->ranges[0]));
	memcpy(bus->ranges + i, old->ranges + i + 1, (old->nr - i - 1) * sizeof(bus->ranges[0]));
	bus->nr = old->nr - 1;
	bus->nr_ioeventfds = old->nr_ioeventfds - dev->is_ioeventfd;
	update_max_end(bus);
	bus_replace(vm, kind, bus);
}

static bool range_matches(const struct io_range *r, gpa_t addr, unsigned len)
{
	if (r->any_len)
		return r->addr == addr;
	return addr >= r->addr && addr + len <= r->end && addr + len > addr;
}

/* First range that could contain addr: nothing before it reaches so far. */
static u32 first_candidate(const struct io_bus *bus, gpa_t addr)
{
	u32 lo = 0, hi = bus->nr;

	while (lo < hi) {
		u32 mid = (lo + hi) / 2;

		if (bus->ranges[mid].max_end > addr)
			hi = mid;
		else
			lo = mid + 1;
	}
	return lo;
}

static bool bus_write(struct vm *vm, enum io_bus_kind kind, gpa_t addr, unsigned len, const void *data)
{
	struct io_bus *bus = __atomic_load_n(bus_of(vm, kind), __ATOMIC_ACQUIRE);

	if (!bus)
		return false;
	for (u32 i = first_candidate(bus, addr); i < bus->nr && bus->ranges[i].addr <= addr; i++) {
		struct io_device *dev = __atomic_load_n(&bus->ranges[i].dev, __ATOMIC_RELAXED);

		if (dev && range_matches(&bus->ranges[i], addr, len) && dev->write(vm, dev, addr, len, data))
			return true;
	}
	return false;
}

bool vm_mmio_write(struct vm *vm, gpa_t gpa, unsigned len, const void *data)
{
	return bus_write(vm, IO_BUS_MMIO, gpa, len, data);
}

bool vm_pio_write(struct vm *vm, u16 port, unsigned len, const void *data)
{
	return bus_write(vm, IO_BUS_PIO, port, len, data);
}

void io_buses_destroy(struct vm *vm)
{
	ioeventfds_destroy(vm);
	coalesced_destroy(vm);
	free(vm->mmio_bus);
	free(vm->pio_bus);
	vm->mmio_bus = vm->pio_bus = NULL;
}

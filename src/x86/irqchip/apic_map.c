/* SPDX-License-Identifier: MIT */
/*
 * Who is meant: from an interrupt message's destination to LAPICs.
 *
 * The map answers the usual cases by index: physical ids, flat and clustered
 * logical ids, x2APIC clusters. Broadcasts, aliased ids and mixed logical modes
 * take the scan over all vCPUs, which is the definition.
 *
 * 1. Maps are immutable once published and made lazily: whoever changes an id,
 *    LDR, DFR or enable bit marks the map dirty (after the change); the next
 *    delivery rebuilds it. A sender that finds the state not CLEAN takes the
 *    lock, so it never uses a map older than its own changes.
 * 2. A vCPU creation is noticed by built_for != nr_vcpus.
 * 3. Readers count themselves in maps->readers around their look at a map and
 *    copy the LAPIC pointers out (LAPICs live as long as the VM). A replaced map
 *    is freed when the count is seen at zero after its replacement: the counter
 *    and the pointer are sequentially consistent, so a later reader can only
 *    find the new one.
 * 4. The lock is a leaf; deliveries happen outside of it.
 */
#include <errno.h>
#include <sched.h>
#include <stdlib.h>

#include "x86/irqchip/irqchip_internal.h"
#include "x86/irqchip/lapic.h"

enum logical_mode { LOGICAL_NONE, LOGICAL_FLAT, LOGICAL_CLUSTER, LOGICAL_X2APIC, LOGICAL_MIXED };

#define MAX_RETIRED 16
#define MAX_DESTS 16

struct apic_map {
	struct apic_map *next_retired;
	u32 max_id;			/* phys[] has max_id + 1 entries, at least 256 */
	enum logical_mode logical;
	bool aliased;			/* two LAPICs answer to one physical id: scan instead */
	struct lapic *flat[8];
	struct lapic *cluster[16][4];
	struct lapic *phys[];
};

int apic_maps_create(struct vm *vm)
{
	struct apic_maps *maps = calloc(1, sizeof(*maps));

	if (!maps)
		return -ENOMEM;
	pthread_mutex_init(&maps->lock, NULL);
	atomic_store(&maps->state, APIC_MAP_DIRTY);
	vm->arch.apic_maps = maps;
	return 0;
}

static void free_retired(struct apic_maps *maps)
{
	while (maps->retired) {
		struct apic_map *map = maps->retired;

		maps->retired = map->next_retired;
		free(map);
	}
}

void apic_maps_destroy(struct vm *vm)
{
	struct apic_maps *maps = vm->arch.apic_maps;

	if (!maps)
		return;
	vm->arch.apic_maps = NULL;
	free_retired(maps);
	free(atomic_load(&maps->current));
	pthread_mutex_destroy(&maps->lock);
	free(maps);
}

void apic_map_update(struct vm *vm)
{
	struct apic_maps *maps = vm->arch.apic_maps;

	if (maps)
		atomic_store(&maps->state, APIC_MAP_DIRTY);
}

/* ---- building ----------------------------------------------------------------------- */

static void map_physical(struct apic_map *map, struct lapic *a)
{
	bool x2apic = apic_x2apic(a), wide = a->vcpu->vm->arch.x2apic_format & X2APIC_API_32BIT_IDS;
	u32 id = a->vcpu->id;
	u8 xapic_id = apic_xapic_id(a);

	if (!wide) {
		u32 slot = x2apic ? id : xapic_id;

		if (map->phys[slot])
			map->aliased = true;
		map->phys[slot] = a;
		return;
	}
	/* With 32-bit ids a vCPU whose id xAPIC cannot express is reachable by its x2APIC id at once. */
	if (x2apic || id > 0xff)
		map->phys[id] = a;
	if (!x2apic && !map->phys[xapic_id])
		map->phys[xapic_id] = a;
}

static void map_logical_slot(struct apic_map *map, struct lapic **slots, u32 mask, struct lapic *a)
{
	struct lapic **slot = &slots[mask ? __builtin_ctz(mask) : 0];

	if (!mask)
		return;
	if ((mask & (mask - 1)) || *slot)
		map->logical = LOGICAL_MIXED; /* several bits, or a bit shared */
	else
		*slot = a;
}

static void map_logical(struct apic_map *map, struct lapic *a)
{
	u32 ldr = apic_reg(a, APIC_LDR);
	enum logical_mode mode;

	if (map->logical == LOGICAL_MIXED || !apic_sw_enabled(a) || !ldr)
		return;
	mode = apic_x2apic(a) ? LOGICAL_X2APIC :
	       apic_reg(a, APIC_DFR) == APIC_DFR_FLAT ? LOGICAL_FLAT : LOGICAL_CLUSTER;
	if (map->logical == LOGICAL_NONE)
		map->logical = mode;
	if (map->logical != mode) {
		map->logical = LOGICAL_MIXED;
		return;
	}
	if (mode == LOGICAL_FLAT)
		map_logical_slot(map, map->flat, ldr >> 24, a);
	else if (mode == LOGICAL_CLUSTER)
		map_logical_slot(map, map->cluster[ldr >> 28], ldr >> 24 & 15, a);
}

static struct apic_map *build_map(struct vm *vm, u32 nr)
{
	struct apic_map *map;
	u32 max_id = 255;

	/* Every vCPU counts, enabled or not: one that is enabled meanwhile must still fit. */
	for (u32 i = 0; i < nr; i++)
		max_id = max(max_id, vm->vcpus[i]->id);
	map = calloc(1, sizeof(*map) + sizeof(map->phys[0]) * ((size_t)max_id + 1));
	if (!map)
		return NULL;
	map->max_id = max_id;
	for (u32 i = 0; i < nr; i++) {
		struct lapic *a = vm->vcpus[i]->arch.apic;

		if (!a || !apic_hw_enabled(a))
			continue;
		map_physical(map, a);
		map_logical(map, a);
	}
	return map;
}

static void publish(struct apic_maps *maps, struct apic_map *map)
{
	struct apic_map *old = atomic_exchange(&maps->current, map);
	unsigned n = 0;

	if (old) {
		old->next_retired = maps->retired;
		maps->retired = old;
	}
	for (struct apic_map *m = maps->retired; m; m = m->next_retired)
		n++;
	while (n > MAX_RETIRED && atomic_load(&maps->readers))
		sched_yield(); /* readers only copy pointers: this is short */
	if (!atomic_load(&maps->readers))
		free_retired(maps);
}

static coldpath void rebuild(struct vm *vm)
{
	struct apic_maps *maps = vm->arch.apic_maps;
	u32 nr, expected = APIC_MAP_DIRTY;

	pthread_mutex_lock(&maps->lock);
	nr = atomic_load_explicit(&vm->nr_vcpus, memory_order_acquire);
	if (atomic_compare_exchange_strong(&maps->state, &expected, APIC_MAP_UPDATING) ||
	    atomic_load(&maps->built_for) != nr) {
		publish(maps, build_map(vm, nr));
		atomic_store(&maps->built_for, nr);
		expected = APIC_MAP_UPDATING;
		/* Dirtied while we built: it stays dirty, for the next delivery. */
		atomic_compare_exchange_strong(&maps->state, &expected, APIC_MAP_CLEAN);
	}
	pthread_mutex_unlock(&maps->lock);
}

/* NULL: no memory for a map, scan. map_put() in any case. */
static struct apic_map *map_get(struct vm *vm)
{
	struct apic_maps *maps = vm->arch.apic_maps;

	if (unlikely(atomic_load(&maps->state) != APIC_MAP_CLEAN ||
		     atomic_load(&maps->built_for) != atomic_load(&vm->nr_vcpus)))
		rebuild(vm);
	atomic_fetch_add(&maps->readers, 1);
	return atomic_load(&maps->current);
}

static void map_put(struct vm *vm)
{
	atomic_fetch_sub(&vm->arch.apic_maps->readers, 1);
}

/* ---- matching one LAPIC ------------------------------------------------------------------ */

static bool match_physical(struct lapic *a, u32 dest)
{
	if (apic_x2apic(a) || dest > 0xff)
		return dest == a->vcpu->id;
	return dest == apic_xapic_id(a);
}

static bool match_logical(struct lapic *a, u32 dest)
{
	u32 ldr = apic_reg(a, APIC_LDR);

	if (apic_x2apic(a))
		return ldr >> 16 == dest >> 16 && (ldr & dest & 0xffff);
	ldr >>= 24;
	switch (apic_reg(a, APIC_DFR)) {
	case APIC_DFR_FLAT:
		return ldr & dest;
	case APIC_DFR_CLUSTER:
		return ldr >> 4 == dest >> 4 && (ldr & dest & 15);
	}
	return false;
}

bool apic_match_dest(struct lapic *target, struct lapic *src, u8 shorthand, u32 dest, u8 dest_mode)
{
	bool x2apic = apic_x2apic(target);
	u64 api = target->vcpu->vm->arch.x2apic_format;

	if (shorthand)
		return shorthand == 2 || (shorthand == 1 ? target == src : target != src);
	/* Devices know 8-bit ids only: for them 0xff means everybody, unless the client says otherwise. */
	if (x2apic && !src && dest == XAPIC_BROADCAST && !(api & X2APIC_API_NO_BROADCAST_QUIRK))
		dest = X2APIC_BROADCAST;
	if (dest == (x2apic ? X2APIC_BROADCAST : XAPIC_BROADCAST))
		return true;
	return dest_mode ? match_logical(target, dest) : match_physical(target, dest);
}

/* ---- delivery ------------------------------------------------------------------------------- */

static bool is_lowest_priority(const struct apic_irq *irq)
{
	return irq->delivery_mode == APIC_DM_LOWEST || irq->msi_redir_hint;
}

static bool is_broadcast(struct vm *vm, struct lapic *src, u32 dest, const struct apic_map *map)
{
	if (vm->arch.x2apic_format & X2APIC_API_NO_BROADCAST_QUIRK)
		return dest == X2APIC_BROADCAST ||
		       (dest == XAPIC_BROADCAST && map->logical != LOGICAL_X2APIC);
	return dest == (src && apic_x2apic(src) ? X2APIC_BROADCAST : XAPIC_BROADCAST);
}

static bool logical_slots(struct apic_map *map, u32 dest, struct lapic ***slots, u32 *mask)
{
	u32 first;

	*slots = map->flat;
	*mask = 0;
	switch (map->logical) {
	case LOGICAL_NONE:
		return true;
	case LOGICAL_FLAT:
		*mask = dest & 0xff;
		return true;
	case LOGICAL_CLUSTER:
		*slots = map->cluster[dest >> 4 & 15];
		*mask = dest & 15;
		return true;
	case LOGICAL_X2APIC:
		first = (dest >> 16) * 16;
		if (first <= map->max_id) {
			*slots = &map->phys[first];
			*mask = dest & (0xffff >> (16 - min(map->max_id - first + 1, 16u)));
		}
		return true;
	case LOGICAL_MIXED:
		break;
	}
	return false;
}

/* One of the addressed, chosen by vector as KVM does: spread without state. */
static u32 pick_by_vector(u32 mask, u8 vector)
{
	for (u32 skip = mask ? vector % __builtin_popcount(mask) : 0; skip; skip--)
		mask &= mask - 1;
	return mask & -mask;
}

/* The LAPICs meant, at most MAX_DESTS; -1: the map cannot tell. */
static int map_lookup(struct vm *vm, struct lapic *src, const struct apic_irq *irq,
		      struct apic_map *map, struct lapic **dests)
{
	struct lapic **slots;
	u32 mask;
	int n = 0;

	if (!map || map->aliased || irq->shorthand || is_broadcast(vm, src, irq->dest, map))
		return -1;
	if (!irq->dest_mode) {
		if (irq->dest <= map->max_id && map->phys[irq->dest])
			dests[n++] = map->phys[irq->dest];
		return n;
	}
	if (!logical_slots(map, irq->dest, &slots, &mask))
		return -1;
	if (is_lowest_priority(irq))
		mask = pick_by_vector(mask, irq->vector);
	for (; mask; mask &= mask - 1)
		if (slots[__builtin_ctz(mask)])
			dests[n++] = slots[__builtin_ctz(mask)];
	return n;
}

static struct lapic *candidate(struct vcpu *vcpu, struct lapic *src, const struct apic_irq *irq)
{
	struct lapic *a = vcpu->arch.apic;

	if (!a || !apic_hw_enabled(a) ||
	    !apic_match_dest(a, src, irq->shorthand, irq->dest, irq->dest_mode))
		return NULL;
	return a;
}

static int scan_lowest(struct vm *vm, struct lapic *src, const struct apic_irq *irq)
{
	struct lapic *a, *chosen = NULL;
	struct vcpu *vcpu;
	u32 i, n = 0, want;

	vm_for_each_vcpu(vm, vcpu, i)
		if ((a = candidate(vcpu, src, irq)) && apic_sw_enabled(a))
			n++;
	if (!n)
		return -1;
	want = irq->vector % n;
	vm_for_each_vcpu(vm, vcpu, i) {
		if (!(a = candidate(vcpu, src, irq)) || !apic_sw_enabled(a))
			continue;
		chosen = a;
		if (!want--)
			break;
	}
	return chosen ? apic_accept(chosen, irq) : -1;
}

static int scan_all(struct vm *vm, struct lapic *src, const struct apic_irq *irq)
{
	struct vcpu *vcpu;
	int r = -1;
	u32 i;

	vm_for_each_vcpu(vm, vcpu, i) {
		struct lapic *a = candidate(vcpu, src, irq);

		if (a)
			r = max(r, 0) + apic_accept(a, irq);
	}
	return r;
}

int apic_deliver(struct vm *vm, struct lapic *src, const struct apic_irq *irq)
{
	struct lapic *dests[MAX_DESTS];
	struct apic_irq fixed;
	int n, r = 0;

	if (irq->shorthand == 1)
		return src ? apic_accept(src, irq) : 0;
	n = map_lookup(vm, src, irq, map_get(vm), dests);
	map_put(vm);
	for (int i = 0; i < n; i++)
		r += apic_accept(dests[i], irq);
	if (n >= 0)
		return r;
	if (!is_lowest_priority(irq))
		return scan_all(vm, src, irq);
	if (irq->dest_mode || irq->dest != XAPIC_BROADCAST)
		return scan_lowest(vm, src, irq);
	fixed = *irq; /* lowest priority to everybody: everybody gets it */
	fixed.delivery_mode = APIC_DM_FIXED;
	fixed.msi_redir_hint = false;
	return scan_all(vm, src, &fixed);
}

/* ---- MSI ---------------------------------------------------------------------------------------- */

int msi_deliver(struct vm *vm, u32 address_lo, u32 address_hi, u32 data)
{
	struct apic_irq irq = {
		.dest = address_lo >> 12 & 0xff,
		.dest_mode = address_lo >> 2 & 1,
		.msi_redir_hint = address_lo & BIT(3),
		.vector = data & 0xff,
		.delivery_mode = APIC_MODE(data),
		.trig_level = data & BIT(15),
		.level = true,
	};

	if (vm->arch.x2apic_format & X2APIC_API_32BIT_IDS) {
		if (address_hi & 0xff)
			return -EINVAL;
		irq.dest |= address_hi;
	}
	return apic_deliver(vm, NULL, &irq);
}

/* ---- paravirtual IPIs and kicks ------------------------------------------------------------------- */

static int pv_ipi_word(struct vm *vm, u64 bitmap, u32 min_id, const struct apic_irq *irq)
{
	int count = 0;

	for (; bitmap; bitmap &= bitmap - 1) {
		u64 id = (u64)min_id + __builtin_ctzll(bitmap);
		struct apic_map *map = map_get(vm);
		struct lapic *a = map && id <= map->max_id ? map->phys[id] : NULL;

		map_put(vm);
		if (a)
			count += apic_accept(a, irq);
	}
	return count;
}

#define ICR_DEST_LOGICAL BIT_ULL(11)
#define ICR_SHORTHAND (3ull << 18)
#define PV_EINVAL 22

int lapic_send_pv_ipi(struct vm *vm, u64 bitmap_lo, u64 bitmap_hi, u32 min, u64 icr, bool op_64bit)
{
	struct apic_irq irq = {
		.vector = icr & 0xff,
		.delivery_mode = APIC_MODE(icr),
		.level = icr & BIT(14),
		.trig_level = icr & BIT(15),
	};
	struct apic_map *map;
	bool usable;
	u32 width = op_64bit ? 64 : 32;

	if (icr & (ICR_DEST_LOGICAL | ICR_SHORTHAND))
		return -PV_EINVAL;
	map = map_get(vm);
	usable = map && !map->aliased;
	map_put(vm);
	if (!usable)
		return -EOPNOTSUPP;
	return pv_ipi_word(vm, bitmap_lo, min, &irq) + pv_ipi_word(vm, bitmap_hi, min + width, &irq);
}

void lapic_pv_kick(struct vm *vm, u32 apic_id)
{
	struct apic_irq irq = { .delivery_mode = APIC_DM_REMRD, .dest = apic_id };

	apic_deliver(vm, NULL, &irq);
}

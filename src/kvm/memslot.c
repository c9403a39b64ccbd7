/* SPDX-License-Identifier: MIT */
/*
 * Memory slots and the dirty log.
 *
 * The table is an immutable snapshot (two arrays of pointers, by address and
 * by number), replaced under slots_lock and freed once every vCPU has passed a
 * boundary (request.c). A struct memslot never changes while published, but for
 * the contents of its dirty bitmap, which successive versions of a slot share.
 *
 * Dirty log. vCPUs store through write tags in their TLBs without looking at
 * the log; a tag is only made after memslot_mark_dirty() (x86/mmu.h). So:
 *
 *  1. A write tag for a page implies that its bit has been set since the bit was
 *     last cleared, or that a flush is owed.
 *  2. Clearing comes first, the flush second, the return to the client third. A store through an old tag then
 *     happens before the client looks at the page, and the page is among those
 *     just reported; a store after the flush sets the bit anew. The other way
 *     round, a vCPU could mark and tag a page between flush and clear, and write to
 *     it unlogged ever after.
 *  3. Where nothing was cleared no tag is stale and nobody is disturbed.
 *
 * KVM_GET_DIRTY_LOG under MANUAL_DIRTY_LOG_PROTECT2 clears nothing; there the
 * same holds for KVM_CLEAR_DIRTY_LOG, after which the client copies the pages.
 */
#include <errno.h>
#include <stdlib.h>
#include <string.h>

#include "host/access.h"
#include "host/host.h"
#include "kvm/api_level.h"
#include "kvm/arch.h"
#include "kvm/dirty_ring.h"
#include "kvm/guest_memfd.h"
#include "kvm/kvm_host.h"

#define MAX_PAGES_PER_SLOT ((1ull << 31) - 1)
#define USER_ADDRESS_MAX 0x7ffffffff000ull
#define GUEST_ADDRESS_BITS 52

/* ---- look-up ------------------------------------------------------------------- */

/* Index of the first slot with base_gfn > gfn. */
static u32 upper_bound_gfn(const struct memslots *slots, gfn_t gfn)
{
	u32 lo = 0, hi = slots->nr;

	while (lo < hi) {
		u32 mid = (lo + hi) / 2;

		if (slots->by_gfn[mid]->base_gfn <= gfn)
			lo = mid + 1;
		else
			hi = mid;
	}
	return lo;
}

struct memslot *memslots_find(const struct memslots *slots, gfn_t gfn)
{
	u32 i = upper_bound_gfn(slots, gfn);
	struct memslot *slot;

	if (!i)
		return NULL;
	slot = slots->by_gfn[i - 1];
	return gfn - slot->base_gfn < slot->npages ? slot : NULL;
}

/* Index of the first slot with an id >= id. */
static u32 lower_bound_id(const struct memslots *slots, u16 id)
{
	u32 lo = 0, hi = slots->nr;

	while (lo < hi) {
		u32 mid = (lo + hi) / 2;

		if (slots->by_id[mid]->id < id)
			lo = mid + 1;
		else
			hi = mid;
	}
	return lo;
}

struct memslot *memslots_find_id(const struct memslots *slots, u16 id)
{
	u32 i = lower_bound_id(slots, id);

	return i < slots->nr && slots->by_id[i]->id == id ? slots->by_id[i] : NULL;
}

/* ---- snapshots ------------------------------------------------------------------- */

/* Two snapshots' memory alternates: with many slots, getting it from the system is what costs. slots_lock held. */
static struct memslots *memslots_alloc(struct vm *vm, u32 nr)
{
	struct memslots *s = vm->spare_slots;
	u32 capacity = nr + nr / 8 + 4;

	if (s && s->capacity >= nr) {
		vm->spare_slots = NULL;
	} else {
		s = malloc(sizeof(*s) + 2ul * capacity * sizeof(struct memslot *));
		if (!s)
			return NULL;
		s->capacity = capacity;
		s->by_gfn = (struct memslot **)(s + 1);
		s->by_id = s->by_gfn + capacity;
	}
	s->nr = nr;
	return s;
}

static void memslots_retire(struct vm *vm, struct memslots *s)
{
	free(vm->spare_slots);
	vm->spare_slots = s;
}

static void copy_slots(struct memslot **out, struct memslot **in, u32 nr)
{
	if (nr)
		memcpy(out, in, nr * sizeof(*out));
}

#define NO_INDEX ~0u

/* out = in without in[del], and with new before in[ins]. Either index may be NO_INDEX. */
static void array_edit(struct memslot **out, struct memslot **in, u32 nr, u32 del, u32 ins, struct memslot *new)
{
	u32 kept = nr;

	if (del == NO_INDEX) {
		copy_slots(out, in, nr);
	} else {
		copy_slots(out, in, del);
		copy_slots(out + del, in + del + 1, nr - del - 1);
		kept--;
	}
	if (ins == NO_INDEX)
		return;
	if (del != NO_INDEX && ins > del)
		ins--;
	memmove(out + ins + 1, out + ins, (kept - ins) * sizeof(*out));
	out[ins] = new;
}

/* The table with old (may be NULL) replaced by new (may be NULL). */
static struct memslots *memslots_edit(struct vm *vm, const struct memslots *cur, struct memslot *old,
				      struct memslot *new)
{
	struct memslots *s = memslots_alloc(vm, cur->nr - !!old + !!new);

	if (!s)
		return NULL;
	s->generation = cur->generation + 1;
	array_edit(s->by_gfn, cur->by_gfn, cur->nr,
		   old ? upper_bound_gfn(cur, old->base_gfn) - 1 : NO_INDEX,
		   new ? upper_bound_gfn(cur, new->base_gfn) : NO_INDEX, new);
	array_edit(s->by_id, cur->by_id, cur->nr, old ? lower_bound_id(cur, old->id) : NO_INDEX,
		   new ? lower_bound_id(cur, new->id) : NO_INDEX, new);
	return s;
}

/* All of it, when the VM goes. */
void memslots_free(struct memslots *slots)
{
	if (!slots)
		return;
	for (u32 i = 0; i < slots->nr; i++) {
		free(slots->by_gfn[i]->dirty_bitmap);
		free(slots->by_gfn[i]);
	}
	free(slots);
}

/* ---- dirty bitmaps ------------------------------------------------------------------ */

static u64 bitmap_words(const struct memslot *slot)
{
	return (slot->npages + 63) / 64;
}

/* new gets the bitmap it should have; 0 or -ENOMEM. */
static int prepare_bitmap(struct vm *vm, const struct memslot *old, struct memslot *new)
{
	if (!(new->flags & KVM_MEM_LOG_DIRTY_PAGES))
		return 0;
	if (old && old->dirty_bitmap) {
		new->dirty_bitmap = old->dirty_bitmap;
		return 0;
	}
	new->dirty_bitmap = calloc(bitmap_words(new), sizeof(u64));
	if (!new->dirty_bitmap)
		return -ENOMEM;
	if ((vm->manual_dirty_log_protect & KVM_DIRTY_LOG_INITIALLY_SET) && !vm->dirty_ring_entries) {
		u64 words = bitmap_words(new);

		memset((void *)new->dirty_bitmap, 0xff, words * sizeof(u64));
		if (new->npages & 63)
			new->dirty_bitmap[words - 1] = BIT_ULL(new->npages & 63) - 1;
	}
	return 0;
}

void memslot_mark_dirty(struct vcpu *vcpu, struct memslot *slot, gfn_t gfn)
{
	u64 rel = gfn - slot->base_gfn, bit = BIT_ULL(rel & 63);
	_Atomic u64 *word;

	if (likely(!slot->dirty_bitmap) || VM_BUG_ON(rel >= slot->npages, vcpu->vm))
		return;
	word = &slot->dirty_bitmap[rel / 64];
	if (atomic_load_explicit(word, memory_order_relaxed) & bit)
		return;
	/* With a ring, who sets the bit reports the page; the bit says that it is reported. */
	if (!(atomic_fetch_or(word, bit) & bit) && vcpu->dirty_ring)
		dirty_ring_push(vcpu, slot, rel);
}

/* ---- KVM_SET_USER_MEMORY_REGION(2) ----------------------------------------------------- */

/* Private memory can be neither logged nor read-only. */
static u32 valid_flags(const struct vm *vm, const struct kvm_userspace_memory_region2 *mem)
{
	if (!(mem->flags & KVM_MEM_GUEST_MEMFD))
		return KVM_MEM_LOG_DIRTY_PAGES | KVM_MEM_READONLY;
	return vm->private_mem || kvm_api_level() >= KVM_API_6_18 ? KVM_MEM_GUEST_MEMFD : 0;
}

static int check_region(const struct vm *vm, const struct kvm_userspace_memory_region2 *mem)
{
	if (mem->flags & ~valid_flags(vm, mem))
		return -EINVAL;
	if ((mem->flags & KVM_MEM_GUEST_MEMFD) &&
	    ((mem->guest_memfd_offset & ~PAGE_MASK) ||
	     mem->guest_memfd_offset + mem->memory_size < mem->guest_memfd_offset))
		return -EINVAL;
	if ((mem->memory_size | mem->guest_phys_addr | mem->userspace_addr) & ~PAGE_MASK)
		return -EINVAL;
	if (mem->userspace_addr > USER_ADDRESS_MAX ||
	    mem->memory_size > USER_ADDRESS_MAX - mem->userspace_addr)
		return -EINVAL;
	/* Upper half: address space, lower: number. */
	if (mem->slot >> 16 >= vm_nr_address_spaces(vm) || (u16)mem->slot >= KVM_ABI_USER_MEM_SLOTS)
		return -EINVAL;
	if (mem->guest_phys_addr + mem->memory_size < mem->guest_phys_addr)
		return -EINVAL;
	return mem->memory_size >> PAGE_SHIFT > MAX_PAGES_PER_SLOT ? -EINVAL : 0;
}

/* Does [base, base + npages) meet a slot other than self? */
static bool overlaps(const struct memslots *slots, const struct memslot *self, gfn_t base, u64 npages)
{
	u32 i = upper_bound_gfn(slots, base + npages - 1);

	/* Slots are disjoint, so only the last two that start in time can reach us (one may be self). */
	for (u32 n = 0; i && n < 2; n++) {
		struct memslot *slot = slots->by_gfn[--i];

		if (slot != self && slot->base_gfn + slot->npages > base)
			return true;
		if (slot != self)
			break;
	}
	return false;
}

/* Publish; on return nobody uses old any more. Takes over new on success. */
static int replace_slot(struct vm *vm, unsigned as_id, struct memslot *old, struct memslot *new)
{
	struct memslots *cur = atomic_load(vm_slots(vm, as_id));
	struct memslots *next = memslots_edit(vm, cur, old, new);

	if (!next)
		return -ENOMEM;
	atomic_store(vm_slots(vm, as_id), next); /* request.c, (a) */
	vm_sync_vcpus(vm, KVM_REQ_TLB_FLUSH);
	if (old) {
		if (!new || old->dirty_bitmap != new->dirty_bitmap)
			free(old->dirty_bitmap);
		free(old);
	}
	memslots_retire(vm, cur);
	return 0;
}

struct gmem_ref {
	struct gmem *gmem;
	int err;	/* why there is none */
};

static int bind_gmem(struct vm *vm, struct memslot *slot, const struct gmem_ref *ref, u64 offset)
{
	if (!(slot->flags & KVM_MEM_GUEST_MEMFD))
		return 0;
	if (!ref->gmem)
		return ref->err;
	return ref->gmem->vm == vm ? gmem_bind(slot, ref->gmem, offset) : -EINVAL;
}

static int create_slot(struct vm *vm, struct memslot *old, const struct kvm_userspace_memory_region2 *mem,
		       const struct gmem_ref *ref)
{
	struct memslot *new = calloc(1, sizeof(*new));
	int r;

	if (!new)
		return -ENOMEM;
	new->base_gfn = mem->guest_phys_addr >> PAGE_SHIFT;
	new->npages = mem->memory_size >> PAGE_SHIFT;
	new->userspace_addr = mem->userspace_addr;
	new->flags = mem->flags;
	new->id = (u16)mem->slot;
	new->as_id = mem->slot >> 16;
	r = bind_gmem(vm, new, ref, mem->guest_memfd_offset);
	if (!r)
		r = prepare_bitmap(vm, old, new);
	if (!r)
		r = replace_slot(vm, new->as_id, old, new);
	if (r) {
		if (!old || new->dirty_bitmap != old->dirty_bitmap)
			free(new->dirty_bitmap);
		free(new);
	}
	return r;
}

static int set_region_locked(struct vm *vm, const struct kvm_userspace_memory_region2 *mem,
			     const struct gmem_ref *ref)
{
	unsigned as_id = mem->slot >> 16;
	struct memslots *slots = atomic_load(vm_slots(vm, as_id));
	struct memslot *old = memslots_find_id(slots, (u16)mem->slot);
	gfn_t base = mem->guest_phys_addr >> PAGE_SHIFT;
	u64 npages = mem->memory_size >> PAGE_SHIFT;

	if (!npages)
		return old ? replace_slot(vm, as_id, old, NULL) : -EINVAL;
	if (old) {
		/* An existing slot can be moved, and its logging toggled; nothing else. One with a guest_memfd not even that. */
		if (((mem->flags | old->flags) & KVM_MEM_GUEST_MEMFD) ||
		    mem->userspace_addr != old->userspace_addr || npages != old->npages ||
		    ((mem->flags ^ old->flags) & KVM_MEM_READONLY))
			return -EINVAL;
		if (base == old->base_gfn && mem->flags == old->flags)
			return 0;
	}
	if (!old || base != old->base_gfn) {
		if (overlaps(slots, old, base, npages))
			return -EEXIST;
		if (base + npages - 1 >= BIT_ULL(GUEST_ADDRESS_BITS - PAGE_SHIFT))
			return -EINVAL;
	}
	return create_slot(vm, old, mem, ref);
}

int vm_set_memory_region2(struct vm *vm, const struct kvm_userspace_memory_region2 *mem,
			  struct gmem *gmem, int gmem_err)
{
	struct gmem_ref ref = { gmem, gmem_err };
	int r = check_region(vm, mem);

	if (r)
		return r;
	pthread_mutex_lock(&vm->slots_lock);
	r = set_region_locked(vm, mem, &ref);
	pthread_mutex_unlock(&vm->slots_lock);
	return r;
}

int vm_set_memory_region(struct vm *vm, const struct kvm_userspace_memory_region2 *mem)
{
	return vm_set_memory_region2(vm, mem, NULL, -EBADF);
}

/* ---- KVM_GET_DIRTY_LOG, KVM_CLEAR_DIRTY_LOG ----------------------------------------------- */

/* 0 and the logged slot, or the errno. slots_lock held. */
static int logged_slot(struct vm *vm, u32 id, struct memslot **slot)
{
	if (id >> 16 >= vm_nr_address_spaces(vm) || (u16)id >= KVM_ABI_USER_MEM_SLOTS)
		return -EINVAL;
	*slot = memslots_find_id(atomic_load(vm_slots(vm, id >> 16)), (u16)id);
	return *slot && (*slot)->dirty_bitmap ? 0 : -ENOENT;
}

/* Move the bits to buf. True if there were any. */
static bool harvest(struct memslot *slot, u64 *buf)
{
	bool any = false;

	for (u64 i = 0; i < bitmap_words(slot); i++) {
		if (!atomic_load_explicit(&slot->dirty_bitmap[i], memory_order_relaxed))
			continue;
		buf[i] = atomic_exchange(&slot->dirty_bitmap[i], 0);
		any = true;
	}
	return any;
}

static int get_and_clear(struct vm *vm, struct memslot *slot, void *user)
{
	u64 words = bitmap_words(slot);
	u64 *buf = calloc(words, sizeof(u64));
	int r = 0;

	if (!buf)
		return -ENOMEM;
	if (harvest(slot, buf))
		vm_sync_vcpus(vm, KVM_REQ_TLB_FLUSH);
	if (!host_copy_user(user, buf, words * sizeof(u64))) {
		/* The client has not seen them, so they stay dirty. */
		for (u64 i = 0; i < words; i++)
			if (buf[i])
				atomic_fetch_or(&slot->dirty_bitmap[i], buf[i]);
		r = -EFAULT;
	}
	free(buf);
	return r;
}

int vm_get_dirty_log(struct vm *vm, const struct kvm_dirty_log *log)
{
	struct memslot *slot;
	int r;

	if (vm->dirty_ring_entries)
		return -ENXIO;
	pthread_mutex_lock(&vm->slots_lock);
	r = logged_slot(vm, log->slot, &slot);
	if (r)
		goto out;
	if (!vm->manual_dirty_log_protect)
		r = get_and_clear(vm, slot, log->dirty_bitmap);
	else if (!host_copy_user(log->dirty_bitmap, (void *)slot->dirty_bitmap, bitmap_words(slot) * sizeof(u64)))
		r = -EFAULT;
out:
	pthread_mutex_unlock(&vm->slots_lock);
	return r;
}

static int check_clear_range(const struct memslot *slot, u64 first, u64 num)
{
	if (first > slot->npages || num > slot->npages - first)
		return -EINVAL;
	/* A partial last word only at the end of the slot. */
	return num < slot->npages - first && (num & 63) ? -EINVAL : 0;
}

static int clear_bits(struct vm *vm, struct memslot *slot, const struct kvm_clear_dirty_log *log)
{
	u64 words = ((u64)log->num_pages + 63) / 64, first = log->first_page / 64;
	u64 *mask;
	bool any = false;

	if (!words)
		return 0;
	mask = malloc(words * sizeof(u64));
	if (!mask)
		return -ENOMEM;
	if (!host_copy_user(mask, log->dirty_bitmap, words * sizeof(u64))) {
		free(mask);
		return -EFAULT;
	}
	for (u64 i = 0; i < words; i++)
		if (mask[i])
			any |= (atomic_fetch_and(&slot->dirty_bitmap[first + i], ~mask[i]) & mask[i]) != 0;
	free(mask);
	if (any)
		vm_sync_vcpus(vm, KVM_REQ_TLB_FLUSH);
	return 0;
}

int vm_clear_dirty_log(struct vm *vm, const struct kvm_clear_dirty_log *log)
{
	struct memslot *slot;
	int r;

	if (vm->dirty_ring_entries)
		return -ENXIO;
	pthread_mutex_lock(&vm->slots_lock);
	r = log->first_page & 63 ? -EINVAL : logged_slot(vm, log->slot, &slot);
	if (!r)
		r = check_clear_range(slot, log->first_page, log->num_pages);
	if (!r)
		r = clear_bits(vm, slot, log);
	pthread_mutex_unlock(&vm->slots_lock);
	return r;
}

/* SPDX-License-Identifier: MIT */
/*
 * guest_memfd and private pages.
 *
 * The memory is a memfd; a struct gmem is one VM's view of it, with one mapping
 * for all its slots. That the pages hang on the inode gives the rest for free: every
 * view, in whichever process, sees the same pages, a hole punched through one is
 * a hole in all (no translation has to be flushed, since ours end at mappings and not
 * at pages), and the memory lives as long as any view.
 *
 * 1. Which of a slot's two memories an access reaches is decided by the attribute
 *    map alone, when a TLB entry is made; changing the map flushes (vm_sync_vcpus()).
 * 2. slot->gmem_host becomes NULL when the view's last descriptor is closed; a flush
 *    follows before the mapping goes. The slot stays, its private pages are then
 *    faults to userspace.
 * 3. What the kernel's own C code reads for the guest (kvmclock and the like,
 *    vcpu_read_guest()) goes to the shared memory, as in KVM.
 */
#include "kvm/guest_memfd.h"

#include <errno.h>
#include <stdlib.h>
#include <string.h>
#include <sys/mman.h>
#include <sys/stat.h>

#include "host/host.h"
#include "host/syscall.h"
#include "kvm/api_level.h"

u64 gmem_supported_flags(struct vm *vm)
{
	if (kvm_api_level() < KVM_API_6_18)
		return 0;
	return GUEST_MEMFD_FLAG_MMAP | (vm && vm->private_mem ? 0 : GUEST_MEMFD_FLAG_INIT_SHARED);
}

struct gmem *gmem_create(struct vm *vm, int fd, u64 size, u32 flags, int *err)
{
	struct gmem *gmem = calloc(1, sizeof(*gmem));
	struct stat st;
	long p;

	*err = -ENOMEM;
	if (!gmem)
		return NULL;
	p = host_syscall(SYS_fstat, fd, &st, 0, 0);
	if (!p)
		p = host_syscall6(SYS_mmap, 0, size, PROT_READ | PROT_WRITE, MAP_SHARED | MAP_NORESERVE, fd, 0);
	if (p < 0 && p > -4096) {
		*err = p;
		free(gmem);
		return NULL;
	}
	/* Nobody's child needs it, and dumps should not have it. */
	host_syscall(SYS_madvise, p, size, MADV_DONTFORK, 0);
	host_syscall(SYS_madvise, p, size, MADV_DONTDUMP, 0);
	*gmem = (struct gmem){ .vm = vm, .host = (u8 *)p, .size = size, .dev = st.st_dev, .ino = st.st_ino,
			       .flags = flags };
	return gmem;
}

static bool unbind_slots(const struct memslots *slots, const struct gmem *gmem)
{
	bool bound = false;

	for (u32 i = 0; i < slots->nr; i++)
		if (slots->by_id[i]->gmem == gmem) {
			atomic_store(&slots->by_id[i]->gmem_host, NULL);
			slots->by_id[i]->gmem = NULL;
			bound = true;
		}
	return bound;
}

void gmem_release(struct gmem *gmem)
{
	struct vm *vm = gmem->vm;
	bool bound = false;

	pthread_mutex_lock(&vm->slots_lock);
	for (unsigned as_id = 0; as_id < KVM_ABI_ADDRESS_SPACES; as_id++)
		bound |= unbind_slots(atomic_load(vm_slots(vm, as_id)), gmem);
	if (bound)
		vm_sync_vcpus(vm, KVM_REQ_TLB_FLUSH);
	pthread_mutex_unlock(&vm->slots_lock);
	host_syscall(SYS_munmap, gmem->host, gmem->size, 0, 0);
	free(gmem);
}

static bool range_is_bound(const struct memslots *slots, const struct gmem *gmem, u64 offset, u64 size)
{
	for (u32 i = 0; i < slots->nr; i++) {
		const struct memslot *s = slots->by_id[i];

		if (s->gmem == gmem && s->gmem_offset < offset + size &&
		    offset < s->gmem_offset + (s->npages << PAGE_SHIFT))
			return true;
	}
	return false;
}

int gmem_bind(struct memslot *slot, struct gmem *gmem, u64 offset)
{
	u64 size = slot->npages << PAGE_SHIFT;

	if ((offset & ~PAGE_MASK) || offset > gmem->size || size > gmem->size - offset)
		return -EINVAL;
	for (unsigned as_id = 0; as_id < KVM_ABI_ADDRESS_SPACES; as_id++)
		if (range_is_bound(atomic_load(vm_slots(gmem->vm, as_id)), gmem, offset, size))
			return -EINVAL;
	slot->gmem = gmem;
	slot->gmem_offset = offset;
	slot->gmem_only = gmem->flags & GUEST_MEMFD_FLAG_MMAP;
	atomic_store(&slot->gmem_host, gmem->host + offset);
	return 0;
}

/* ---- the attribute map ------------------------------------------------------------- */

/* Index of the first range that ends after gfn. */
static u32 range_index(const struct mem_attrs *attrs, gfn_t gfn)
{
	u32 lo = 0, hi = attrs->nr;

	while (lo < hi) {
		u32 mid = (lo + hi) / 2;

		if (attrs->ranges[mid].end <= gfn)
			lo = mid + 1;
		else
			hi = mid;
	}
	return lo;
}

bool vm_gfn_is_private(struct vm *vm, gfn_t gfn)
{
	const struct mem_attrs *attrs = atomic_load(&vm->attrs);
	u32 i;

	if (!attrs)
		return false;
	i = range_index(attrs, gfn);
	return i < attrs->nr && attrs->ranges[i].start <= gfn;
}

static struct mem_attrs *attrs_alloc(u32 nr)
{
	struct mem_attrs *attrs;

	if (nr > MEM_ATTRS_MAX_RANGES)
		return NULL;
	attrs = malloc(sizeof(*attrs) + nr * sizeof(attrs->ranges[0]));
	if (attrs)
		attrs->nr = 0;
	return attrs;
}

/* To the end of a map in the making, joined with what it touches. */
static void attrs_append(struct mem_attrs *attrs, gfn_t start, gfn_t end)
{
	if (start >= end)
		return;
	if (attrs->nr && attrs->ranges[attrs->nr - 1].end >= start) {
		attrs->ranges[attrs->nr - 1].end = max(attrs->ranges[attrs->nr - 1].end, end);
		return;
	}
	attrs->ranges[attrs->nr++] = (struct gfn_range){ start, end };
}

/* The map old (may be NULL) with [start, end) private or not. NULL: no memory. */
static struct mem_attrs *attrs_edit(const struct mem_attrs *old, gfn_t start, gfn_t end, bool private)
{
	struct mem_attrs *new = attrs_alloc((old ? old->nr : 0) + 1);
	u32 i = 0, nr = old ? old->nr : 0;

	if (!new)
		return NULL;
	for (; i < nr && old->ranges[i].start < start; i++)
		attrs_append(new, old->ranges[i].start, min(old->ranges[i].end, start));
	if (private)
		attrs_append(new, start, end);
	/* The range before may reach beyond. */
	if (i && old->ranges[i - 1].end > end)
		attrs_append(new, end, old->ranges[i - 1].end);
	for (; i < nr; i++)
		attrs_append(new, max(old->ranges[i].start, end), old->ranges[i].end);
	return new;
}

struct mem_attrs *mem_attrs_create(const struct gfn_range *ranges, u32 nr, int *err)
{
	struct mem_attrs *attrs = attrs_alloc(nr);
	gfn_t last = 0;

	*err = -ENOMEM;
	if (!attrs)
		return NULL;
	*err = -EINVAL;
	for (u32 i = 0; i < nr; i++) {
		struct gfn_range r = { *(volatile gfn_t *)&ranges[i].start, *(volatile gfn_t *)&ranges[i].end };

		if (r.start >= r.end || r.start < last || r.end > BIT_ULL(64 - PAGE_SHIFT)) {
			free(attrs);
			return NULL;
		}
		attrs_append(attrs, r.start, r.end);
		last = r.end;
	}
	return attrs;
}

/* slots_lock held. */
static int set_range(struct vm *vm, gfn_t start, gfn_t end, bool private)
{
	struct mem_attrs *old = atomic_load(&vm->attrs), *new;

	if (!old && !private)
		return 0;
	new = attrs_edit(old, start, end, private);
	if (!new)
		return -ENOMEM;
	if (!new->nr) {
		free(new);
		new = NULL;
	}
	atomic_store(&vm->attrs, new); /* request.c, (a) */
	vm_sync_vcpus(vm, KVM_REQ_TLB_FLUSH);
	free(old);
	return 0;
}

int vm_set_memory_attributes(struct vm *vm, const struct kvm_memory_attributes *attrs)
{
	int r;

	if (attrs->flags || (attrs->attributes & ~(vm->private_mem ? KVM_MEMORY_ATTRIBUTE_PRIVATE : 0)))
		return -EINVAL;
	if (!attrs->size || attrs->address + attrs->size < attrs->address)
		return -EINVAL;
	if ((attrs->address | attrs->size) & ~PAGE_MASK)
		return -EINVAL;
	pthread_mutex_lock(&vm->slots_lock);
	r = set_range(vm, attrs->address >> PAGE_SHIFT, (attrs->address + attrs->size) >> PAGE_SHIFT,
		      attrs->attributes & KVM_MEMORY_ATTRIBUTE_PRIVATE);
	pthread_mutex_unlock(&vm->slots_lock);
	return r;
}

/* ---- accesses ------------------------------------------------------------------------ */

u8 *vcpu_guest_host_slow(struct vcpu *vcpu, const struct memslot *slot, gpa_t gpa)
{
	u8 *host;

	if (!slot->gmem_only && !vm_gfn_is_private(vcpu->vm, gpa >> PAGE_SHIFT))
		return (u8 *)memslot_hva(slot, gpa);
	host = atomic_load(&((struct memslot *)slot)->gmem_host);
	return host ? host + (gpa - (slot->base_gfn << PAGE_SHIFT)) : NULL;
}

void vcpu_memory_fault(struct vcpu *vcpu, gpa_t gpa)
{
	/* A member of kvm_run's union that older headers lack. */
	struct kvm_memory_fault_exit *exit = (void *)&vcpu->run->hw;

	vcpu->run->exit_reason = named_exit(KVM_EXIT_MEMORY_FAULT);
	exit->flags = vm_gfn_is_private(vcpu->vm, gpa >> PAGE_SHIFT) ? KVM_MEMORY_EXIT_FLAG_PRIVATE : 0;
	exit->gpa = gpa & PAGE_MASK;
	exit->size = PAGE_SIZE;
}

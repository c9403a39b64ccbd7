/* SPDX-License-Identifier: MIT */
/*
 * Data accesses of the CPU: the slow half of mem_load() and mem_store(), block
 * transfers, and host pointers for code that executes on the client's memory.
 *
 * A failed access of the client's memory is EXEC_EFAULT, unless the thread was
 * kicked while it slept in the fault (host_kicked): then nothing is wrong, and the
 * instruction starts again once requests are handled.
 */
#include <string.h>

#include "host/host.h"
#include "kvm/trace.h"
#include "x86/debug.h"
#include "x86/mmu/mmu_internal.h"

/* Where len bytes that do not cross a page are: RAM, or (host == NULL) something at gpa. */
struct mem_ref {
	u8 *host;
	gpa_t gpa;
};

static bool data_bp_on_page(const struct vcpu *vcpu, gva_t va)
{
	u64 dr7 = vcpu->arch.eff_dr7;

	if (likely(!(dr7 & 0xff)))
		return false;
	for (int i = 0; i < 4; i++)
		if ((dr7 >> (i * 2) & 3) && (dr7 >> (16 + i * 4) & 3) &&
		    (vcpu->arch.eff_dr[i] & PAGE_MASK) == (va & PAGE_MASK))
			return true;
	return false;
}

static void check_data_bp(struct vcpu *vcpu, gva_t va, unsigned len, unsigned access)
{
	if (unlikely(vcpu->arch.eff_dr7 & 0xff) && !(access & MMU_IMPLICIT))
		debug_check_data_bp(vcpu, va, len, access & MMU_WRITE);
}

/* As a hardware page fault would report the access. */
static u64 trace_error_code(unsigned access)
{
	return (access & (MMU_WRITE | MMU_RMW) ? BIT(1) : 0) | (access & MMU_USER ? BIT(2) : 0) |
	       (access & MMU_FETCH ? BIT(4) : 0);
}

/* Before len bytes at host (NULL: not RAM) are stored, or (len 0) something that is not RAM is read. */
static enum exec journal_store(struct store_journal *j, u8 *host, unsigned len)
{
	if (!host || j->nr == ARRAY_SIZE(j->stores) || j->used + len > sizeof(j->old)) {
		j->refused = true;
		return EXEC_RETRY;
	}
	if (host_copy(j->old + j->used, host, len))
		return mem_access_failed();
	j->stores[j->nr].host = host;
	j->stores[j->nr].len = len;
	j->stores[j->nr++].at = j->used;
	j->used += len;
	return EXEC_OK;
}

static enum exec mem_resolve(struct vcpu *vcpu, gva_t va, unsigned access, struct mem_ref *ref)
{
	struct tlb *tlb = tlb_for(vcpu, access);
	unsigned i = tlb_index(va);
	bool write = access & MMU_WRITE;
	struct memslot *slot;
	struct walk walk;
	bool write_ok;
	enum exec r;

	if (!(access & MMU_RMW) && ((write ? tlb->write[i] : tlb->read[i]) + va < PAGE_SIZE || tlb_refill(vcpu, tlb, va, write))) {
		ref->host = (u8 *)(va + tlb->delta[i]);
		ref->gpa = ~0ull;
		return EXEC_OK;
	}
	vcpu->stat.tlb_misses++;
	r = mmu_walk(vcpu, va, access, &walk);
	if (r != EXEC_OK)
		return r;
	ref->gpa = walk.gpa;
	trace(kvm_page_fault, vcpu->id, vcpu->arch.rip, walk.gpa, trace_error_code(access));
	slot = mmu_find_slot(vcpu, walk.gpa);
	if (!slot || (write && (slot->flags & KVM_MEM_READONLY))) {
		/* There is no private MMIO. */
		if (unlikely(!slot && vm_gfn_is_private(vcpu->vm, walk.gpa >> PAGE_SHIFT)))
			return mmu_memory_fault(vcpu, walk.gpa, access);
		ref->host = NULL;
		return unlikely(vcpu->arch.mmu->journal) ? journal_store(vcpu->arch.mmu->journal, NULL, 0) : EXEC_OK;
	}
	ref->host = vcpu_guest_host(vcpu, slot, walk.gpa);
	if (unlikely(!ref->host))
		return mmu_memory_fault(vcpu, walk.gpa, access);
	if (write) {
		memslot_mark_dirty(vcpu, slot, walk.gpa >> PAGE_SHIFT);
		if ((walk.gpa & PAGE_MASK) == vcpu->arch.code_page)
			vcpu->arch.block_abort = true;
	}
	if (data_bp_on_page(vcpu, va))
		return EXEC_OK;
	write_ok = walk.writable && walk.dirty && !(slot->flags & KVM_MEM_READONLY) &&
		   (write || !(slot->flags & KVM_MEM_LOG_DIRTY_PAGES)) &&
		   !(write ? mmu_code_page_store(vcpu, walk.gpa & PAGE_MASK) : mmu_is_code_page(vcpu, walk.gpa & PAGE_MASK));
	tlb_fill(vcpu, tlb, va, ref->host, write_ok, &walk);
	return EXEC_OK;
}

/* gpa ~0: the page had a write tag, so holds no code. */
static void note_code_store(struct vcpu *vcpu, gpa_t gpa, unsigned len)
{
	struct mmu *mmu = vcpu->arch.mmu;
	struct code_store *last;

	if (likely(!mmu->note_code_stores && !vcpu->vm->arch.shared_code) || gpa == ~0ull ||
	    !mmu_is_code_page(vcpu, gpa & PAGE_MASK))
		return;
	last = mmu->nr_code_stores ? &mmu->code_stores[mmu->nr_code_stores - 1] : NULL;
	/* A repeated instruction, mostly. */
	if (last && mmu->nr_code_stores <= CODE_STORES_MAX && last->gpa + last->len == gpa && (gpa & ~PAGE_MASK)) {
		last->len += len;
		return;
	}
	if (mmu->nr_code_stores < CODE_STORES_MAX)
		mmu->code_stores[mmu->nr_code_stores] = (struct code_store){ gpa, len };
	if (mmu->nr_code_stores <= CODE_STORES_MAX)
		mmu->nr_code_stores++;
}

static gva_t va_wrap(const struct vcpu *vcpu, gva_t va)
{
	return vcpu->arch.long_mode ? va : (u32)va;
}

/* One page's part of a transfer. MMIO goes out in naturally sized pieces of at most 8 bytes. */
static enum exec piece_read(struct vcpu *vcpu, const struct mem_ref *ref, void *buf, unsigned len)
{
	u64 val;

	if (ref->host) {
		if (len == 1 || len == 2 || len == 4 || len == 8) {
			if (!host_load(ref->host, len, &val))
				return mem_access_failed();
			memcpy(buf, &val, len);
			return EXEC_OK;
		}
		return host_copy(buf, ref->host, len) ? mem_access_failed() : EXEC_OK;
	}
	for (unsigned done = 0; done < len;) {
		unsigned n = min(len - done, 8u);
		enum exec r = mmio_read(vcpu, ref->gpa + done, (u8 *)buf + done, n);

		if (r != EXEC_OK)
			return r;
		done += n;
	}
	return EXEC_OK;
}

static enum exec piece_write(struct vcpu *vcpu, const struct mem_ref *ref, const void *buf, unsigned len)
{
	u64 val = 0;

	if (ref->host) {
		if (len == 1 || len == 2 || len == 4 || len == 8) {
			memcpy(&val, buf, len);
			return host_store(ref->host, len, val) ? EXEC_OK : mem_access_failed();
		}
		return host_copy(ref->host, buf, len) ? mem_access_failed() : EXEC_OK;
	}
	for (unsigned done = 0; done < len;) {
		unsigned n = min(len - done, 8u);
		enum exec r = mmio_write(vcpu, ref->gpa + done, (const u8 *)buf + done, n);

		if (r != EXEC_OK)
			return r;
		done += n;
	}
	return EXEC_OK;
}

static unsigned first_part(gva_t va, unsigned len)
{
	return min(len, (unsigned)(PAGE_SIZE - (va & ~PAGE_MASK)));
}

/* #AC at CPL 3 for operands of 2, 4, 8 and (by 8) 10 bytes. On AMD's CPUs a page fault comes first. */
static enum exec check_alignment(struct vcpu *vcpu, gva_t va, unsigned size, unsigned access)
{
	unsigned align = size == 10 ? 8 : size;
	gpa_t gpa;
	enum exec r;

	if (likely(vcpu->arch.tlb != &vcpu->arch.mmu->tlbs[TLB_USER_AC]) || align > 8 ||
	    (align & (align - 1)) || !(va & (align - 1)))
		return EXEC_OK;
	if (!host_is_amd())
		return queue_exception_e(vcpu, AC_VECTOR, 0);
	r = mmu_translate(vcpu, va, access, &gpa);
	if (r == EXEC_OK)
		r = mmu_translate(vcpu, va_wrap(vcpu, va + size - 1), access, &gpa);
	return r == EXEC_OK ? queue_exception_e(vcpu, AC_VECTOR, 0) : r;
}

enum exec mem_read(struct vcpu *vcpu, gva_t va, void *buf, unsigned len, unsigned access)
{
	struct mem_ref ref[2];
	gva_t start = va;
	unsigned total = len;
	enum exec r = unlikely(access & MMU_RMW) ? check_alignment(vcpu, va, len, access) : EXEC_OK;

	if (unlikely(r != EXEC_OK))
		return r;
	while (len) {
		unsigned n = first_part(va, len);
		unsigned n2 = min(len - n, (unsigned)PAGE_SIZE);

		r = mem_resolve(vcpu, va, access, &ref[0]);
		if (r == EXEC_OK && n2)
			r = mem_resolve(vcpu, va_wrap(vcpu, va + n), access, &ref[1]);
		if (r != EXEC_OK)
			return r;
		r = piece_read(vcpu, &ref[0], buf, n);
		if (r == EXEC_OK && n2)
			r = piece_read(vcpu, &ref[1], (u8 *)buf + n, n2);
		if (r != EXEC_OK)
			return r;
		n += n2;
		va = va_wrap(vcpu, va + n);
		buf = (u8 *)buf + n;
		len -= n;
	}
	check_data_bp(vcpu, start, total, access);
	return EXEC_OK;
}

enum exec mem_probe_write(struct vcpu *vcpu, gva_t va, unsigned len, unsigned access)
{
	while (len) {
		unsigned n = first_part(va, len);
		struct mem_ref ref;
		enum exec r = mem_resolve(vcpu, va, access | MMU_WRITE, &ref);

		if (r != EXEC_OK)
			return r;
		va = va_wrap(vcpu, va + n);
		len -= n;
	}
	return EXEC_OK;
}

enum exec mem_write(struct vcpu *vcpu, gva_t va, const void *buf, unsigned len, unsigned access)
{
	gva_t start = va;
	unsigned total = len;
	enum exec r;

	access |= MMU_WRITE;
	if (first_part(va, len) < len) {
		r = mem_probe_write(vcpu, va, len, access);
		if (r != EXEC_OK)
			return r;
	}
	while (len) {
		unsigned n = first_part(va, len);
		struct mem_ref ref;

		r = mem_resolve(vcpu, va, access, &ref);
		if (r == EXEC_OK && ref.host)
			note_code_store(vcpu, ref.gpa, n);
		if (r == EXEC_OK && unlikely(vcpu->arch.mmu->journal))
			r = journal_store(vcpu->arch.mmu->journal, ref.host, n);
		if (r == EXEC_OK)
			r = piece_write(vcpu, &ref, buf, n);
		if (r != EXEC_OK)
			return r;
		va = va_wrap(vcpu, va + n);
		buf = (const u8 *)buf + n;
		len -= n;
	}
	check_data_bp(vcpu, start, total, access);
	return EXEC_OK;
}

enum exec mem_load_slow(struct vcpu *vcpu, gva_t va, unsigned size, u64 *val)
{
	enum exec r = check_alignment(vcpu, va, size, mmu_data_access(vcpu, MMU_READ));

	*val = 0;
	if (unlikely(r != EXEC_OK))
		return r;
	return mem_read(vcpu, va, val, size, mmu_data_access(vcpu, MMU_READ));
}

enum exec mem_store_slow(struct vcpu *vcpu, gva_t va, unsigned size, u64 val)
{
	enum exec r = check_alignment(vcpu, va, size, mmu_data_access(vcpu, MMU_WRITE));

	if (unlikely(r != EXEC_OK))
		return r;
	return mem_write(vcpu, va, &val, size, mmu_data_access(vcpu, MMU_WRITE));
}

void *mem_host_slow(struct vcpu *vcpu, gva_t va, unsigned len, bool write, enum exec *r)
{
	unsigned access = mmu_data_access(vcpu, write ? MMU_WRITE : MMU_READ);
	struct tlb *tlb = vcpu->arch.tlb;
	struct mem_ref ref;
	u64 tag;

	*r = check_alignment(vcpu, va, len, access);
	if (*r != EXEC_OK || first_part(va, len) < len)
		return NULL;
	*r = mem_resolve(vcpu, va, access, &ref);
	if (*r != EXEC_OK || !ref.host)
		return NULL;
	/* Untagged: stores there (or breakpoints) must be noticed one by one. */
	tag = write ? tlb->write[tlb_index(va)] : tlb->read[tlb_index(va)];
	return va + tag < PAGE_SIZE ? ref.host : NULL;
}

void *mem_host_atomic(struct vcpu *vcpu, gva_t va, unsigned len, enum exec *r)
{
	struct mem_ref ref;

	*r = check_alignment(vcpu, va, len, mmu_data_access(vcpu, MMU_WRITE));
	if (*r != EXEC_OK || first_part(va, len) < len)
		return NULL;
	*r = mem_resolve(vcpu, va, mmu_data_access(vcpu, MMU_WRITE), &ref);
	if (*r != EXEC_OK)
		return NULL;
	if (ref.host) {
		note_code_store(vcpu, ref.gpa, len);
		check_data_bp(vcpu, va, len, MMU_WRITE);
		if (unlikely(vcpu->arch.mmu->journal))
			*r = journal_store(vcpu->arch.mmu->journal, ref.host, len);
	}
	return *r == EXEC_OK ? ref.host : NULL;
}

/* Outside 64-bit mode: what the segment's type and limit allow; in it, canonical form only. */
static bool segment_permits(const struct vcpu *vcpu, enum seg seg, u64 off, unsigned size, bool write)
{
	const struct segment *s = &vcpu->arch.seg[seg];
	u64 last = off + size - 1;

	if (vcpu->arch.protected_mode) {
		bool code = s->ar & BIT(3);

		if ((s->ar & AR_UNUSABLE) || !(s->ar & AR_P))
			return false;
		if (write && (code || !(s->ar & BIT(1))))
			return false;
		if (!write && code && !(s->ar & BIT(1)))
			return false;
		if (!code && (s->ar & BIT(2))) { /* expand-down */
			u64 top = s->ar & AR_DB ? 0xffffffffull : 0xffffull;

			return off > s->limit && last <= top;
		}
	}
	return last <= s->limit;
}

enum exec seg_linear_slow(struct vcpu *vcpu, enum seg seg, u64 off, unsigned size, bool write, gva_t *va)
{
	if (in_64bit_mode(vcpu))
		return queue_exception_e(vcpu, seg == SEG_SS ? SS_VECTOR : GP_VECTOR, 0);
	if (!segment_permits(vcpu, seg, off, size, write))
		return queue_exception_e(vcpu, seg == SEG_SS ? SS_VECTOR : GP_VECTOR, 0);
	*va = (u32)(vcpu->arch.seg[seg].base + off);
	return EXEC_OK;
}

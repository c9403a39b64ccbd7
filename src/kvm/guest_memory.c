/* SPDX-License-Identifier: MIT */
/* Guest physical memory for code that is not an instruction: kvmclock, steal time, descriptors of PV features. */
#include <errno.h>

#include "host/access.h"
#include "kvm/kvm_host.h"

static size_t part_in_page(gpa_t gpa, size_t len)
{
	return min(len, (size_t)(PAGE_SIZE - (gpa & ~PAGE_MASK)));
}

/*
 * A kick that aborts the copy looks like a fault here (host_kicked stays set
 * for callers that want to try again after the next boundary).
 */
int vcpu_read_guest(struct vcpu *vcpu, gpa_t gpa, void *buf, size_t len)
{
	while (len) {
		size_t n = part_in_page(gpa, len);
		struct memslot *slot = memslots_find(vcpu->slots, gpa >> PAGE_SHIFT);

		if (!slot || host_copy(buf, (const void *)memslot_hva(slot, gpa), n))
			return -EFAULT;
		gpa += n;
		buf = (u8 *)buf + n;
		len -= n;
	}
	return 0;
}

int vcpu_write_guest(struct vcpu *vcpu, gpa_t gpa, const void *buf, size_t len)
{
	while (len) {
		size_t n = part_in_page(gpa, len);
		struct memslot *slot = memslots_find(vcpu->slots, gpa >> PAGE_SHIFT);

		if (!slot || (slot->flags & KVM_MEM_READONLY))
			return -EFAULT;
		/* Before the store: a harvest in between finds the bit set, and waits for us. */
		memslot_mark_dirty(vcpu, slot, gpa >> PAGE_SHIFT);
		if (host_copy((void *)memslot_hva(slot, gpa), buf, n))
			return -EFAULT;
		gpa += n;
		buf = (const u8 *)buf + n;
		len -= n;
	}
	return 0;
}

/* SPDX-License-Identifier: MIT */
/*
 * KVM_CAP_SYNC_REGS.
 *
 * Other threads may scribble over kvm_run at any time: every field is read once,
 * into a private copy, and only the copy is checked and used.
 */
#include <errno.h>
#include <string.h>

#include "x86/state.h"
#include "x86/sync_regs.h"

#define SYNC_FIELDS ((u64)KVM_SYNC_X86_VALID_FIELDS)

static u64 read_once(const __u64 *p)
{
	return *(const volatile __u64 *)p;
}

static void dirty_clear(struct kvm_run *run, u64 bit)
{
	__atomic_fetch_and(&run->kvm_dirty_regs, ~bit, __ATOMIC_RELAXED);
}

/* The compiler must not read the source again after the copy was checked. */
#define snapshot(dst, src)                                                      \
	do {                                                                    \
		memcpy((dst), (src), sizeof(*(dst)));                           \
		asm volatile("" : : "r"(dst) : "memory");                       \
	} while (0)

int sync_regs_load(struct vcpu *vcpu)
{
	struct kvm_run *run = vcpu->run;
	u64 valid = read_once(&run->kvm_valid_regs), dirty = read_once(&run->kvm_dirty_regs);

	if ((valid | dirty) & ~SYNC_FIELDS)
		return -EINVAL;
	if (likely(!dirty))
		return 0;
	if (dirty & KVM_SYNC_X86_REGS) {
		struct kvm_regs regs;

		snapshot(&regs, &run->s.regs.regs);
		regs_set(vcpu, &regs);
		dirty_clear(run, KVM_SYNC_X86_REGS);
	}
	if (dirty & KVM_SYNC_X86_SREGS) {
		struct kvm_sregs sregs;

		snapshot(&sregs, &run->s.regs.sregs);
		if (sregs_set(vcpu, &sregs))
			return -EINVAL;
		dirty_clear(run, KVM_SYNC_X86_SREGS);
	}
	if (dirty & KVM_SYNC_X86_EVENTS) {
		struct kvm_vcpu_events events;

		snapshot(&events, &run->s.regs.events);
		if (vcpu_events_set(vcpu, &events))
			return -EINVAL;
		dirty_clear(run, KVM_SYNC_X86_EVENTS);
	}
	return 0;
}

void sync_regs_store(struct vcpu *vcpu)
{
	struct kvm_run *run = vcpu->run;
	u64 valid = read_once(&run->kvm_valid_regs);

	if (likely(!valid))
		return;
	if (valid & KVM_SYNC_X86_REGS)
		regs_get(vcpu, &run->s.regs.regs);
	if (valid & KVM_SYNC_X86_SREGS) {
		struct kvm_sregs sregs;

		sregs_get(vcpu, &sregs);
		run->s.regs.sregs = sregs;
	}
	if (valid & KVM_SYNC_X86_EVENTS) {
		struct kvm_vcpu_events events;

		vcpu_events_get(vcpu, &events);
		run->s.regs.events = events;
	}
}

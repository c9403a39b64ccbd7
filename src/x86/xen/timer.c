/* SPDX-License-Identifier: MIT */
/* Xen's one-shot timer of a vCPU, in kvmclock's nanoseconds, which ends in an event channel. */
#include "x86/xen/xen_internal.h"

void xen_timer_stop(struct vcpu *vcpu)
{
	struct xen_vcpu *xv = xen_vcpu(vcpu);

	if (xv->timer.owner)
		vm_timer_cancel(&xv->timer);
	xv->timer_expires = 0;
	atomic_store(&xv->timer_pending, false);
}

/* Times before 0 and more than 13 days ahead come from overflows in old kernels: soon, and they ask again. */
static bool is_overflow(u64 expires, s64 delta)
{
	return (s64)expires < 0 || (delta > 0 && delta >> 50);
}

void xen_timer_start(struct vcpu *vcpu, u64 expires, bool linux_workaround)
{
	struct xen_vcpu *xv = xen_vcpu(vcpu);
	u64 now = vm_kvmclock_ns(vcpu->vm);
	s64 delta = expires - now;

	if (linux_workaround && is_overflow(expires, delta)) {
		delta = 100000000;
		expires = now + delta;
	}
	xen_timer_stop(vcpu);
	xv->timer_expires = expires;
	if (delta > 0) {
		vm_timer_arm(&xv->timer, host_now_ns() + delta);
		return;
	}
	atomic_store(&xv->timer_pending, true);
	vcpu_make_request(vcpu, KVM_REQ_XEN);
}

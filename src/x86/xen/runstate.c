/* SPDX-License-Identifier: MIT */
/*
 * How long a vCPU has been running, runnable, blocked, offline. Running is what it is from a KVM_RUN on, and
 * stays outside of it; the time its thread waited for a CPU meanwhile counts as runnable. The other
 * states are the client's to set. The sum of the times is always the time of the last change.
 */
#include <errno.h>
#include <string.h>

#include "x86/xen/xen_internal.h"

#define UPDATE_FLAG BIT_ULL(63)		/* in state_entry_time: being written */

/* After the state: entry time, four times. The 64-bit layout has padding before them. */
struct runstate_times {
	u64 entry, times[NR_XEN_RUNSTATES];
};

static u32 times_offset(const struct vm *vm)
{
	return atomic_load(&xen_vm(vm)->wide) ? 8 : 4;
}

static void wrote(struct vcpu *vcpu, int r)
{
	if (r && host_kicked) {
		host_kicked = false;
		vcpu_make_request(vcpu, KVM_REQ_STEAL_UPDATE);
	}
}

static int write_record(struct vcpu *vcpu)
{
	const struct xen_vcpu *xv = xen_vcpu(vcpu);
	bool flagged = atomic_load(&xen_vm(vcpu->vm)->runstate_update_flag);
	gpa_t gpa = xv->runstate_addr, times = gpa + times_offset(vcpu->vm), flag = times + 7;
	struct runstate_times t = { .entry = xv->runstate_entry | (flagged ? UPDATE_FLAG : 0) };
	u8 top = t.entry >> 56;
	int r = 0;

	memcpy(t.times, xv->runstate_times, sizeof(t.times));
	if (flagged)
		r = vcpu_write_guest(vcpu, flag, &top, 1);
	atomic_signal_fence(memory_order_seq_cst);
	if (!r)
		r = vcpu_write_guest(vcpu, gpa, &xv->runstate, sizeof(xv->runstate));
	if (!r)
		r = vcpu_write_guest(vcpu, times, &t, sizeof(t));
	atomic_signal_fence(memory_order_seq_cst);
	top &= 0x7f;
	if (!r && flagged)
		r = vcpu_write_guest(vcpu, flag, &top, 1);
	return r;
}

static void write_guest_record(struct vcpu *vcpu)
{
	if (xen_vcpu(vcpu)->runstate_addr != KVM_XEN_INVALID_GPA)
		wrote(vcpu, write_record(vcpu));
}

int xen_runstate_set_addr(struct vcpu *vcpu, gpa_t gpa)
{
	struct xen_vcpu *xv = xen_vcpu(vcpu);
	int r;

	xv->runstate_addr = gpa;
	if (gpa == KVM_XEN_INVALID_GPA)
		return 0;
	r = write_record(vcpu);
	if (r)
		xv->runstate_addr = KVM_XEN_INVALID_GPA;
	return r;
}

void xen_runstate_update(struct vcpu *vcpu, u32 state)
{
	struct xen_vcpu *xv = xen_vcpu(vcpu);
	u64 now = vm_kvmclock_ns(vcpu->vm), delta = now - xv->runstate_entry;
	u64 delay = thread_run_delay(vcpu), stolen;

	if (!xv->runstate_entry)
		xv->runstate = XEN_OFFLINE;
	/* On another thread than last time the delay starts anew. */
	stolen = delay > xv->last_run_delay ? min(delay - xv->last_run_delay, delta) : 0;
	xv->last_run_delay = delay;
	if (xv->runstate == XEN_RUNNING) {
		xv->runstate_times[XEN_RUNNABLE] += stolen;
		delta -= stolen;
	}
	xv->runstate_times[xv->runstate] += delta;
	xv->runstate = state;
	xv->runstate_entry = now;
	write_guest_record(vcpu);
}

void xen_runstate_running(struct vcpu *vcpu)
{
	if (xen_vcpu(vcpu) && xen_msr_enabled(vcpu->vm))
		xen_runstate_update(vcpu, XEN_RUNNING);
}

/* ---- KVM_XEN_VCPU_ATTR_TYPE_RUNSTATE_* ------------------------------------------------- */

static u64 sum(const struct kvm_xen_vcpu_attr *attr)
{
	return attr->u.runstate.time_running + attr->u.runstate.time_runnable +
	       attr->u.runstate.time_blocked + attr->u.runstate.time_offline;
}

/* Replace, or add to, what is known. */
static int set_times(struct vcpu *vcpu, const struct kvm_xen_vcpu_attr *attr, bool add)
{
	const u64 times[NR_XEN_RUNSTATES] = {
		attr->u.runstate.time_running, attr->u.runstate.time_runnable,
		attr->u.runstate.time_blocked, attr->u.runstate.time_offline,
	};
	struct xen_vcpu *xv = xen_vcpu(vcpu);
	u64 entry = attr->u.runstate.state_entry_time + (add ? xv->runstate_entry : 0);

	if (attr->u.runstate.state_entry_time != sum(attr) || vm_kvmclock_ns(vcpu->vm) < entry)
		return -EINVAL;
	xv->runstate_entry = entry;
	for (unsigned i = 0; i < NR_XEN_RUNSTATES; i++)
		xv->runstate_times[i] = times[i] + (add ? xv->runstate_times[i] : 0);
	return 0;
}

static int adjust(struct vcpu *vcpu, const struct kvm_xen_vcpu_attr *attr)
{
	u64 state = attr->u.runstate.state;
	int r;

	if (state > XEN_OFFLINE && state != ~0ull)
		return -EINVAL;
	r = set_times(vcpu, attr, true);
	if (r)
		return r;
	if (state == ~0ull)
		write_guest_record(vcpu);
	else
		xen_runstate_update(vcpu, state);
	return 0;
}

int xen_runstate_set(struct vcpu *vcpu, const struct kvm_xen_vcpu_attr *attr)
{
	struct xen_vcpu *xv = xen_vcpu(vcpu);
	int r;

	if (attr->type == KVM_XEN_VCPU_ATTR_TYPE_RUNSTATE_ADJUST)
		return adjust(vcpu, attr);
	if (attr->u.runstate.state > XEN_OFFLINE)
		return -EINVAL;
	if (attr->type == KVM_XEN_VCPU_ATTR_TYPE_RUNSTATE_CURRENT) {
		xen_runstate_update(vcpu, attr->u.runstate.state);
		return 0;
	}
	r = set_times(vcpu, attr, false);
	if (r)
		return r;
	xv->runstate = attr->u.runstate.state;
	xv->last_run_delay = thread_run_delay(vcpu);
	return 0;
}

void xen_runstate_get(struct vcpu *vcpu, struct kvm_xen_vcpu_attr *attr)
{
	const struct xen_vcpu *xv = xen_vcpu(vcpu);

	attr->u.runstate.state = xv->runstate;
	if (attr->type == KVM_XEN_VCPU_ATTR_TYPE_RUNSTATE_CURRENT)
		return;
	attr->u.runstate.state_entry_time = xv->runstate_entry;
	attr->u.runstate.time_running = xv->runstate_times[XEN_RUNNING];
	attr->u.runstate.time_runnable = xv->runstate_times[XEN_RUNNABLE];
	attr->u.runstate.time_blocked = xv->runstate_times[XEN_BLOCKED];
	attr->u.runstate.time_offline = xv->runstate_times[XEN_OFFLINE];
}

/* SPDX-License-Identifier: MIT */
/*
 * Synthetic timers: four a vCPU, counting the reference clock, ending in a message to a SINT or, in direct
 * mode, in an interrupt.
 *
 *  1. The timer thread only sets a bit of stimer_pending and makes KVM_REQ_HV_STIMER; everything
 *     else happens when the vCPU takes that request, in guest mode. A stale callback does nothing.
 *  2. msg_pending: it has expired, and its message has no room yet. It is not started again before the
 *     message is out; EOI and EOM try again.
 *  3. Periods that pass unserved are dropped: one message however late, the next on the old grid.
 */
#include <errno.h>

#include "x86/hyperv/hyperv_internal.h"

#define MESSAGE_TIMER_EXPIRED 0x80000010u
#define TICK_NS 100		/* of the reference clock */
#define NS_FOREVER (~0ull >> 2)

/* Look at it before the next guest instruction. Any thread. */
static void mark_pending(struct hv_stimer *t)
{
	atomic_fetch_or(&hv_vcpu(t->vcpu)->stimer_pending, BIT(t->index));
	vcpu_make_request(t->vcpu, KVM_REQ_HV_STIMER);
}

static void timer_expired(struct vm_timer *timer)
{
	struct hv_stimer *t = container_of(timer, struct hv_stimer, timer);

	mark_pending(t);
	vcpu_kick(t->vcpu);
}

bool hyperv_stimer_pending(const struct vcpu *vcpu)
{
	struct hv_vcpu *hv = hv_vcpu(vcpu);

	return hv && atomic_load_explicit(&hv->stimer_pending, memory_order_relaxed);
}

/* ---- life ------------------------------------------------------------------------ */

void hv_stimer_init(struct vcpu *vcpu, struct hv_vcpu *hv)
{
	for (unsigned i = 0; i < HV_NR_STIMERS; i++) {
		hv->stimer[i].vcpu = vcpu;
		hv->stimer[i].index = i;
		/* Without an in-kernel APIC there is no heap of timers, and no SynIC to enable them. */
		if (vcpu->vm->timers)
			vm_timer_init(&hv->stimer[i].timer, vcpu->vm->timers, timer_expired);
	}
}

static void stop(struct hv_stimer *t)
{
	if (t->timer.owner)
		vm_timer_cancel(&t->timer);
	atomic_fetch_and(&hv_vcpu(t->vcpu)->stimer_pending, ~BIT(t->index));
	t->msg_pending = false;
	t->expires = 0;
}

void hv_stimer_destroy(struct hv_vcpu *hv)
{
	for (unsigned i = 0; i < HV_NR_STIMERS; i++)
		stop(&hv->stimer[i]);
}

/* ---- running ------------------------------------------------------------------------ */

static void arm(struct hv_stimer *t, u64 ticks)
{
	u64 ns = ticks < NS_FOREVER / TICK_NS ? ticks * TICK_NS : NS_FOREVER;

	vm_timer_arm(&t->timer, host_now_ns() + ns);
}

/* Enabled, with a count. */
static void start(struct hv_stimer *t)
{
	u64 now = hv_reference_time(t->vcpu->vm);

	if (t->config & HV_STIMER_PERIODIC) {
		if (!t->expires)
			t->expires = now + t->count;
		else if (now >= t->expires)
			t->expires = now + t->count - (now - t->expires) % t->count;
		arm(t, t->expires - now);
		return;
	}
	t->expires = t->count;
	if (now >= t->count)
		mark_pending(t);
	else
		arm(t, t->count - now);
}

static int send_message(struct hv_stimer *t)
{
	u64 payload[3] = { t->index, t->expires, hv_reference_time(t->vcpu->vm) };

	return hv_synic_send(t->vcpu, HV_STIMER_SINT(t->config), MESSAGE_TIMER_EXPIRED, payload,
			     t->config & HV_STIMER_PERIODIC);
}

static int interrupt(struct hv_stimer *t)
{
	if (t->vcpu->arch.apic && !lapic_deliver_fixed(t->vcpu, HV_STIMER_VECTOR(t->config)))
		return -EFAULT;
	return 0;
}

static void expire(struct hv_stimer *t)
{
	int r = t->config & HV_STIMER_DIRECT ? interrupt(t) : send_message(t);

	t->msg_pending = r;
	if (!r && !(t->config & HV_STIMER_PERIODIC))
		t->config &= ~HV_STIMER_ENABLE;
	if (r == -EAGAIN)
		mark_pending(t);
}

static void look_at(struct hv_stimer *t)
{
	if (!(t->config & HV_STIMER_ENABLE))
		return;
	if (t->expires && hv_reference_time(t->vcpu->vm) >= t->expires)
		expire(t);
	if (!(t->config & HV_STIMER_ENABLE) || !t->count)
		stop(t);
	else if (!t->msg_pending)
		start(t);
}

void hyperv_stimer_run(struct vcpu *vcpu)
{
	struct hv_vcpu *hv = hv_vcpu(vcpu);
	u32 pending = hv ? atomic_exchange(&hv->stimer_pending, 0) : 0;

	for (unsigned i = 0; i < HV_NR_STIMERS; i++)
		if (pending & BIT(i))
			look_at(&hv->stimer[i]);
}

void hv_stimer_retry(struct vcpu *vcpu, u32 sint)
{
	struct hv_vcpu *hv = hv_vcpu(vcpu);

	for (unsigned i = 0; i < HV_NR_STIMERS; i++) {
		struct hv_stimer *t = &hv->stimer[i];

		if (t->msg_pending && (t->config & HV_STIMER_ENABLE) && !(t->config & HV_STIMER_DIRECT) &&
		    HV_STIMER_SINT(t->config) == sint)
			mark_pending(t);
	}
}

/* ---- registers --------------------------------------------------------------------------- */

static struct hv_stimer *timer_of(struct vcpu *vcpu, u32 msr)
{
	return &hv_vcpu(vcpu)->stimer[(msr - HV_STIMER0_CONFIG) / 2];
}

static bool is_count(u32 msr)
{
	return (msr - HV_STIMER0_CONFIG) & 1;
}

int hv_stimer_read(struct vcpu *vcpu, u32 msr, u64 *value)
{
	const struct hv_stimer *t = timer_of(vcpu, msr);

	*value = is_count(msr) ? t->count : t->config;
	return 0;
}

static int config_write(struct hv_stimer *t, u64 value, bool host)
{
	const struct hv_vcpu *hv = hv_vcpu(t->vcpu);

	if (!host && hv->enforce_cpuid && (value & HV_STIMER_DIRECT) &&
	    !(hv->cpuid.features_edx & HV_STIMER_DIRECT_MODE))
		return 1;
	stop(t);
	/* One that runs cannot be sent to SINT 0, which is not for timers. */
	if ((t->config & HV_STIMER_ENABLE) && !(value & HV_STIMER_DIRECT) && !HV_STIMER_SINT(value))
		value &= ~HV_STIMER_ENABLE;
	t->config = value;
	return 0;
}

static void count_write(struct hv_stimer *t, u64 value, bool host)
{
	stop(t);
	t->count = value;
	if (host)
		return;
	if (!value)
		t->config &= ~HV_STIMER_ENABLE;
	else if (t->config & HV_STIMER_AUTO_ENABLE)
		t->config |= HV_STIMER_ENABLE;
}

int hv_stimer_write(struct vcpu *vcpu, u32 msr, u64 value, bool host)
{
	struct hv_stimer *t = timer_of(vcpu, msr);

	if (!atomic_load(&hv_vcpu(vcpu)->synic.active) && (!host || value))
		return 1;
	if (is_count(msr))
		count_write(t, value, host);
	else if (config_write(t, value, host))
		return 1;
	if (t->config & HV_STIMER_ENABLE)
		mark_pending(t);
	return 0;
}

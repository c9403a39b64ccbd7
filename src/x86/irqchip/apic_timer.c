/* SPDX-License-Identifier: MIT */
/*
 * The LAPIC's timer: one-shot, periodic, TSC deadline.
 *
 * 1. All state belongs to the owner of the vCPU. The vm_timer's callback only
 *    makes KVM_REQ_APIC_TIMER and kicks; whether something is due is decided
 *    here, from armed and deadline_ns, so a stale callback does nothing and
 *    stopping never has to wait for one.
 * 2. armed <=> lapic_timer_fire() will have work at deadline_ns. A halted vCPU
 *    sleeps until then by itself.
 * 3. While its owner is in KVM_RUN a tick of that thread stands in for the vm_timer, which is armed instead if the owner leaves before.
 * 4. A period that passed unserved is dropped, not queued: one interrupt
 *    however late, then the next one on the old grid.
 */
#include "x86/irqchip/lapic.h"

#define NS_FOREVER (~0ull >> 2)		/* a century: nothing is later, and adding two cannot wrap */
#define MIN_PERIOD_NS 200000		/* KVM's floor for periodic timers */
#define SPIN_NS 2000			/* TSC deadlines closer than this are waited for */

static void timer_expired(struct vm_timer *t)
{
	struct lapic *a = container_of(t, struct lapic, timer);

	vcpu_make_request(a->vcpu, KVM_REQ_APIC_TIMER);
	vcpu_kick(a->vcpu);
}

void apic_timer_init(struct lapic *a)
{
	vm_timer_init(&a->timer, a->vcpu->vm->timers, timer_expired);
}

u32 apic_timer_mode_mask(struct lapic *a)
{
	bool tsc_deadline = guest_cpuid_has(a->vcpu, 1, 0, CPUID_ECX, 24);

	return tsc_deadline ? APIC_LVT_PERIODIC | APIC_LVT_TSCDEADLINE : APIC_LVT_PERIODIC;
}

static bool is_tsc_mode(const struct lapic *a)
{
	return a->timer_mode == APIC_LVT_TSCDEADLINE;
}

static bool is_periodic(const struct lapic *a)
{
	return a->timer_mode == APIC_LVT_PERIODIC;
}

static u64 bus_ns(const struct lapic *a)
{
	u64 ns = a->vcpu->vm->arch.apic_bus_ns;

	return ns ? ns : 1;
}

static u64 count_to_ns(const struct lapic *a, u32 count)
{
	unsigned __int128 ns = (unsigned __int128)count * bus_ns(a) * a->divide;

	return ns < NS_FOREVER ? (u64)ns : NS_FOREVER;
}

/* Is this the owner's thread, in KVM_RUN? */
static bool in_kvm_run(const struct vcpu *vcpu)
{
	return host_guest_current && host_guest_current->requests == &vcpu->requests;
}

static void arm(struct lapic *a, u64 deadline_ns)
{
	a->armed = true;
	a->deadline_ns = deadline_ns;
	if (deadline_ns <= host_now_ns())
		vcpu_make_request(a->vcpu, KVM_REQ_APIC_TIMER); /* the owner is us */
	else if (deadline_ns < NS_FOREVER && !(in_kvm_run(a->vcpu) && host_tick_arm(&a->tick, deadline_ns)))
		vm_timer_arm(&a->timer, deadline_ns);
}

void lapic_timer_leave(struct vcpu *vcpu)
{
	struct lapic *a = vcpu->arch.apic;

	if (!a || !a->tick.armed)
		return;
	host_tick_disarm(&a->tick);
	if (a->armed)
		vm_timer_arm(&a->timer, a->deadline_ns);
}

void apic_timer_stop(struct lapic *a)
{
	a->armed = false;
	a->period_ns = 0;
	a->tsc_deadline = 0;
}

static void set_period(struct lapic *a)
{
	a->period_ns = count_to_ns(a, apic_reg(a, APIC_TMICT));
	if (is_periodic(a) && a->period_ns && a->period_ns < MIN_PERIOD_NS)
		a->period_ns = MIN_PERIOD_NS;
}

/* Start counting with first_ns to go; the period follows from TMICT. */
static void start_count(struct lapic *a, u64 first_ns)
{
	a->target_ns = host_now_ns() + first_ns;
	arm(a, a->target_ns);
}

static void start_tsc(struct lapic *a)
{
	if (a->tsc_deadline)
		arm(a, guest_tsc_to_deadline_ns(a->vcpu, a->tsc_deadline));
}

u32 apic_timer_current_count(struct lapic *a)
{
	u64 now, left;

	if (is_tsc_mode(a) || !a->period_ns || !a->armed || !apic_reg(a, APIC_TMICT))
		return 0;
	now = host_now_ns();
	if (now < a->target_ns)
		left = a->target_ns - now;
	else if (is_periodic(a)) /* expired, and the interrupt is on its way */
		left = a->period_ns - (now - a->target_ns) % a->period_ns;
	else
		left = 0;
	return left / (bus_ns(a) * a->divide);
}

void apic_timer_write_count(struct lapic *a, u32 count)
{
	if (is_tsc_mode(a))
		return;
	apic_timer_stop(a);
	apic_set_reg(a, APIC_TMICT, count);
	set_period(a);
	if (a->period_ns && (is_periodic(a) || !a->timer_mode))
		start_count(a, a->period_ns);
}

void apic_timer_write_divide(struct lapic *a, u32 tdcr)
{
	u32 old = a->divide;
	unsigned shift = ((tdcr & 3) | (tdcr & 8) >> 1) + 1;
	u64 now, left;

	apic_set_reg(a, APIC_TDCR, tdcr);
	a->divide = BIT(shift & 7);
	if (a->divide == old || !a->period_ns)
		return;
	set_period(a);
	if (!a->armed || is_tsc_mode(a))
		return;
	now = host_now_ns();
	left = a->target_ns > now ? a->target_ns - now : 0;
	start_count(a, (unsigned __int128)left * a->divide / old);
}

void apic_timer_lvtt_changed(struct lapic *a)
{
	u32 mode = apic_reg(a, APIC_LVTT) & apic_timer_mode_mask(a);

	if (mode == a->timer_mode)
		return;
	if (is_tsc_mode(a) || mode == APIC_LVT_TSCDEADLINE) {
		apic_timer_stop(a);
		apic_set_reg(a, APIC_TMICT, 0);
	}
	a->timer_mode = mode;
	if (a->period_ns)
		set_period(a);
}

void apic_timer_restore(struct lapic *a)
{
	u64 deadline = a->tsc_deadline; /* not part of the state: a deadline set before survives */
	u32 left_count = apic_reg(a, APIC_TMCCT), initial = apic_reg(a, APIC_TMICT);
	u64 left;

	apic_timer_stop(a);
	a->tsc_deadline = deadline;
	apic_set_reg(a, APIC_TMCCT, 0);
	a->divide = BIT((((apic_reg(a, APIC_TDCR) & 3) | (apic_reg(a, APIC_TDCR) & 8) >> 1) + 1) & 7);
	apic_timer_lvtt_changed(a);
	if (is_tsc_mode(a)) {
		start_tsc(a);
		return;
	}
	apic_set_reg(a, APIC_TMICT, initial); /* which a change of mode clears */
	set_period(a);
	if (!a->period_ns)
		return;
	left = count_to_ns(a, left_count);
	if (!left && is_periodic(a))
		left = a->period_ns;
	start_count(a, min(left, a->period_ns));
}

/* ---- TSC deadline MSR ------------------------------------------------------------------ */

void lapic_set_tscdeadline(struct vcpu *vcpu, u64 value)
{
	struct lapic *a = vcpu->arch.apic;

	if (!a || !apic_hw_enabled(a) || !is_tsc_mode(a))
		return;
	a->armed = false;
	a->tsc_deadline = value;
	start_tsc(a);
}

u64 lapic_get_tscdeadline(struct vcpu *vcpu)
{
	struct lapic *a = vcpu->arch.apic;

	if (!a || !apic_hw_enabled(a) || !is_tsc_mode(a))
		return 0;
	return a->tsc_deadline;
}

/* ---- expiry ------------------------------------------------------------------------------ */

u64 lapic_timer_deadline(struct vcpu *vcpu)
{
	struct lapic *a = vcpu->arch.apic;

	return a && a->armed ? a->deadline_ns : ~0ull;
}

/* The host's clock may say "now" while the guest's TSC is still short: never interrupt early. */
static bool tsc_is_early(struct lapic *a)
{
	while (guest_tsc(a->vcpu) < a->tsc_deadline) {
		u64 deadline = guest_tsc_to_deadline_ns(a->vcpu, a->tsc_deadline);

		if (deadline > host_now_ns() + SPIN_NS) {
			arm(a, deadline);
			return true;
		}
	}
	return false;
}

static void next_period(struct lapic *a)
{
	u64 now = host_now_ns();

	a->target_ns += a->period_ns;
	if (a->target_ns <= now)
		a->target_ns += ((now - a->target_ns) / a->period_ns + 1) * a->period_ns;
	arm(a, a->target_ns);
}

void lapic_timer_fire(struct vcpu *vcpu)
{
	struct lapic *a = vcpu->arch.apic;

	if (!a || !a->armed || host_now_ns() < a->deadline_ns)
		return;
	if (is_tsc_mode(a) && tsc_is_early(a))
		return;
	a->armed = false;
	a->tsc_deadline = 0;
	if (is_periodic(a) && a->period_ns)
		next_period(a);
	apic_local_deliver(a, APIC_LVTT);
}

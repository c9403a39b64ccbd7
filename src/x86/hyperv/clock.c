/* SPDX-License-Identifier: MIT */
/*
 * The reference clock: kvmclock in units of 100 ns, by MSR or, without an exit, by a page in guest memory
 * that says reference time = (TSC * scale >> 64) + offset.
 *
 *  1. While the page is in force (HV_TSC_PAGE_SET) the MSR is computed from what the page says, with the
 *     TSC of the first vCPU, so that both agree to the tick.
 *  2. The page changes only when kvmclock is set or the first vCPU's TSC moves; its sequence
 *     is 0 meanwhile, which sends readers to the MSR.
 *  3. A guest that has asked for TSC emulation (after a migration) wants the page to stay as it is.
 */
#include "x86/hyperv/hyperv_internal.h"
#include "x86/pvclock.h"
#include "x86/tsc.h"

#define barrier() asm volatile("" : : : "memory")

static u64 mul_high(u64 a, u64 b)
{
	return (unsigned __int128)a * b >> 64;
}

/* ---- reading --------------------------------------------------------------------------- */

u64 hv_reference_time_locked(struct vm *vm)
{
	const struct hv_vm *hv = hv_vm(vm);

	if (hv->tsc_page_state != HV_TSC_PAGE_SET)
		return vm_kvmclock_ns(vm) / 100;
	return mul_high(guest_tsc(vm->vcpus[0]), hv->tsc_page.scale) + hv->tsc_page.offset;
}

u64 hv_reference_time(struct vm *vm)
{
	struct hv_vm *hv = hv_vm(vm);
	u64 now;

	pthread_mutex_lock(&hv->lock);
	now = hv_reference_time_locked(vm);
	pthread_mutex_unlock(&hv->lock);
	return now;
}

/* ---- the page ----------------------------------------------------------------------------- */

/* False: so slow a TSC that the scale does not fit. */
static bool compute(struct vcpu *vcpu, struct hv_tsc_page *page)
{
	struct time_scale ts = time_scale_of(tsc_effective_khz(vcpu));
	struct clock_base base = pvclock_base(vcpu->vm);
	s64 at_base;

	if (ts.mul >= 100ull << (32 - ts.shift))
		return false;
	page->scale = ((unsigned __int128)1 << (32 + ts.shift)) * ts.mul / 100;
	/* The guest's TSC may have begun after kvmclock: less than 0 there. */
	at_base = guest_tsc_from_host(vcpu, base.host_tsc);
	page->offset = base.ns / 100 - (u64)((__int128)at_base * page->scale >> 64);
	return true;
}

static bool guest_wants_it_constant(const struct hv_vm *hv)
{
	return hv->tsc_page_state != HV_TSC_PAGE_GUEST_CHANGED && hv->tsc_emulation_control;
}

static bool page_read(struct vcpu *vcpu, void *to, size_t len)
{
	gpa_t gpa = hv_vm(vcpu->vm)->reference_tsc & PAGE_MASK;

	return !vcpu_read_guest(vcpu, gpa, to, len);
}

static bool page_write(struct vcpu *vcpu, size_t len)
{
	struct hv_vm *hv = hv_vm(vcpu->vm);
	bool ok = !vcpu_write_guest(vcpu, hv->reference_tsc & PAGE_MASK, &hv->tsc_page, len);

	barrier(); /* the sequence's writes are ordered against the rest */
	return ok;
}

/* Neither 0 nor all ones: both have meant "invalid". */
static u32 next_sequence(u32 sequence)
{
	sequence++;
	return !sequence || sequence == ~0u ? 1 : sequence;
}

static bool page_rewrite(struct vcpu *vcpu)
{
	struct hv_vm *hv = hv_vm(vcpu->vm);
	u32 sequence;

	if (!page_read(vcpu, &sequence, sizeof(sequence)))
		return false;
	if (sequence && guest_wants_it_constant(hv))
		return page_read(vcpu, &hv->tsc_page, sizeof(hv->tsc_page));
	hv->tsc_page.sequence = 0;
	if (!page_write(vcpu, sizeof(sequence)) || !compute(vcpu, &hv->tsc_page) ||
	    !page_write(vcpu, sizeof(hv->tsc_page)))
		return false;
	hv->tsc_page.sequence = next_sequence(sequence);
	return page_write(vcpu, sizeof(sequence));
}

/* The first vCPU's TSC is the clock: has it moved? */
static bool tsc_moved(struct vcpu *vcpu)
{
	struct hv_vm *hv = hv_vm(vcpu->vm);
	struct hv_tsc_page now;

	return !vcpu->index && hv->tsc_page_state == HV_TSC_PAGE_SET && !guest_wants_it_constant(hv) &&
	       compute(vcpu, &now) &&
	       (now.scale != hv->tsc_page.scale || now.offset != hv->tsc_page.offset);
}

static void update_locked(struct vcpu *vcpu)
{
	struct hv_vm *hv = hv_vm(vcpu->vm);

	if (tsc_moved(vcpu))
		hv->tsc_page_state = HV_TSC_PAGE_HOST_CHANGED;
	if (hv->tsc_page_state != HV_TSC_PAGE_GUEST_CHANGED && hv->tsc_page_state != HV_TSC_PAGE_HOST_CHANGED)
		return;
	if (page_rewrite(vcpu)) {
		hv->tsc_page_state = HV_TSC_PAGE_SET;
	} else if (host_kicked) {
		host_kicked = false;
		vcpu_make_request(vcpu, KVM_REQ_CLOCK_UPDATE);
	} else {
		hv->tsc_page_state = HV_TSC_PAGE_BROKEN;
	}
}

void hyperv_clock_update(struct vcpu *vcpu)
{
	struct hv_vm *hv = hv_vm(vcpu->vm);

	if (!hv)
		return;
	pthread_mutex_lock(&hv->lock);
	if (hv->reference_tsc & HV_PAGE_ENABLE)
		update_locked(vcpu);
	pthread_mutex_unlock(&hv->lock);
}

void hyperv_clock_changed(struct vm *vm)
{
	struct hv_vm *hv = hv_vm(vm);

	if (!hv)
		return;
	pthread_mutex_lock(&hv->lock);
	if (hv->tsc_page_state == HV_TSC_PAGE_SET && !guest_wants_it_constant(hv))
		hv->tsc_page_state = HV_TSC_PAGE_HOST_CHANGED;
	pthread_mutex_unlock(&hv->lock);
}

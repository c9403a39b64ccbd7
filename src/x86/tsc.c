/* SPDX-License-Identifier: MIT */
/*
 * The guest's time stamp counter: the host's, scaled if the client asked for
 * another frequency, plus an offset.
 *
 * Writes by the client are an old API problem: a client that restores N vCPUs
 * writes N slightly different values although it means one instant. KVM's answer,
 * followed here: a write of 0, and a write that is within one second of where the
 * last written counter stands now, gives the vCPU the offset of the current
 * generation instead of the value asked for. The first write ever by the client is taken
 * as it is, since it can only be close to a creation value by accident.
 *
 * All VM-wide fields are under vm->arch.clock_lock.
 */
#include <errno.h>

#include "host/host.h"
#include "x86/tsc.h"

#define SCALE_BITS 48
#define TOLERANCE_PPM 250	/* a requested frequency this close to the host's is the host's */

static u64 mul_shift(u64 a, u64 b, unsigned shift)
{
	return (u64)((unsigned __int128)a * b >> shift);
}

u64 tsc_scale(const struct vcpu *vcpu, u64 host_tsc)
{
	u64 ratio = vcpu->arch.tsc_scaling;

	return likely(!ratio) ? host_tsc : mul_shift(host_tsc, ratio, SCALE_BITS);
}

u64 guest_tsc_from_host(struct vcpu *vcpu, u64 host_tsc)
{
	return tsc_scale(vcpu, host_tsc) + vcpu->arch.tsc_offset;
}

u64 guest_tsc(struct vcpu *vcpu)
{
	return guest_tsc_from_host(vcpu, host_rdtsc());
}

u32 tsc_effective_khz(const struct vcpu *vcpu)
{
	u32 host = host_tsc_khz();

	return vcpu->arch.tsc_scaling ? mul_shift(host, vcpu->arch.tsc_scaling, SCALE_BITS) : host;
}

u64 guest_tsc_to_deadline_ns(struct vcpu *vcpu, u64 tsc)
{
	u64 now = host_now_ns(), left = tsc - guest_tsc(vcpu);
	unsigned __int128 ns;
	u32 khz;

	if ((s64)left <= 0)
		return now;
	khz = tsc_effective_khz(vcpu);
	ns = (unsigned __int128)left * 1000000 / (khz ? khz : 1) + now + 1;
	/* ~0 means "never" to those who sleep: stay below. */
	return ns >= ~0ull ? ~0ull - 1 : (u64)ns;
}

static u32 with_ppm(u32 khz, s32 ppm)
{
	return (u64)khz * (1000000 + ppm) / 1000000;
}

int tsc_set_khz(struct vcpu *vcpu, u32 khz)
{
	u32 host = host_tsc_khz();
	u64 ratio = 0;

	if (khz >= TSC_KHZ_LIMIT)
		return -EINVAL;
	if (!khz)
		khz = host;
	if (!host)
		return -EINVAL;
	if (khz < with_ppm(host, -TOLERANCE_PPM) || khz > with_ppm(host, TOLERANCE_PPM)) {
		ratio = (u64)(((unsigned __int128)khz << SCALE_BITS) / host);
		if (!ratio)
			return -EINVAL;
	}
	vcpu->arch.tsc_khz = khz;
	vcpu->arch.tsc_scaling = ratio;
	vcpu_make_request(vcpu, KVM_REQ_CLOCK_UPDATE);
	return 0;
}

static u64 offset_for(const struct vcpu *vcpu, u64 target)
{
	return target - tsc_scale(vcpu, host_rdtsc());
}

static u64 ns_to_cycles(const struct vcpu *vcpu, u64 ns)
{
	return (u64)((unsigned __int128)ns * vcpu->arch.tsc_khz / 1000000);
}

/* clock_lock held. */
static void note_write(struct vcpu *vcpu, u64 offset, u64 tsc, u64 ns, bool matched)
{
	struct vm_arch *va = &vcpu->vm->arch;

	va->last_tsc_nsec = ns;
	va->last_tsc_write = tsc;
	va->last_tsc_khz = vcpu->arch.tsc_khz;
	va->last_tsc_offset = offset;
	if (!matched)
		va->cur_tsc_offset = offset;
	vcpu->arch.last_guest_tsc = tsc;
	vcpu->arch.tsc_offset = offset;
	vcpu_make_request(vcpu, KVM_REQ_CLOCK_UPDATE);
}

/* Did the client mean "the same instant as the last write"? clock_lock held. */
static bool means_sync(struct vcpu *vcpu, u64 value, u64 now_ns)
{
	struct vm_arch *va = &vcpu->vm->arch;
	u64 expected, second = (u64)vcpu->arch.tsc_khz * 1000;

	if (!vcpu->arch.tsc_khz)
		return false;
	if (!value)
		return true;
	if (!va->user_set_tsc)
		return false;
	expected = va->last_tsc_write + ns_to_cycles(vcpu, now_ns - va->last_tsc_nsec);
	return value < expected + second && value + second > expected;
}

static void synchronize(struct vcpu *vcpu, u64 value, bool by_client)
{
	struct vm_arch *va = &vcpu->vm->arch;
	u64 ns, offset;
	bool matched;

	pthread_mutex_lock(&va->clock_lock);
	ns = host_boot_ns();
	offset = offset_for(vcpu, value);
	matched = means_sync(vcpu, value, ns) && va->last_tsc_khz == vcpu->arch.tsc_khz;
	if (matched)
		offset = va->cur_tsc_offset;
	if (by_client)
		va->user_set_tsc = true;
	note_write(vcpu, offset, value, ns, matched);
	pthread_mutex_unlock(&va->clock_lock);
}

void tsc_init(struct vcpu *vcpu)
{
	synchronize(vcpu, 0, false);
}

void tsc_set_offset(struct vcpu *vcpu, u64 offset)
{
	struct vm_arch *va = &vcpu->vm->arch;
	bool matched;

	pthread_mutex_lock(&va->clock_lock);
	matched = vcpu->arch.tsc_khz && va->last_tsc_khz == vcpu->arch.tsc_khz &&
		  va->last_tsc_offset == offset;
	va->user_set_tsc = true;
	note_write(vcpu, offset, tsc_scale(vcpu, host_rdtsc()) + offset, host_boot_ns(), matched);
	pthread_mutex_unlock(&va->clock_lock);
}

void tsc_write(struct vcpu *vcpu, u64 value, bool host_initiated)
{
	u64 moved;

	if (host_initiated) {
		synchronize(vcpu, value, true);
		return;
	}
	moved = offset_for(vcpu, value) - vcpu->arch.tsc_offset;
	vcpu->arch.tsc_offset += moved;
	vcpu->arch.msr.tsc_adjust += moved;
	vcpu_make_request(vcpu, KVM_REQ_CLOCK_UPDATE);
}

void tsc_adjust_write(struct vcpu *vcpu, u64 value, bool host_initiated)
{
	if (!host_initiated) {
		vcpu->arch.tsc_offset += value - vcpu->arch.msr.tsc_adjust;
		vcpu_make_request(vcpu, KVM_REQ_CLOCK_UPDATE);
	}
	vcpu->arch.msr.tsc_adjust = value;
}

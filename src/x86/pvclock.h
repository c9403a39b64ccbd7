/* SPDX-License-Identifier: MIT */
/* kvmclock and steal time; the per-vCPU entry points are in x86.h. */
#ifndef SOFTKVM_X86_PVCLOCK_H
#define SOFTKVM_X86_PVCLOCK_H

#include "x86/x86.h"

/* Factors so that ns = ((ticks << shift) * mul) >> 32, with a right shift if negative. */
struct time_scale {
	u32 mul;
	s8 shift;
};
struct time_scale time_scale_of(u32 khz);
u64 time_scale_ns(struct time_scale ts, u64 ticks);

/* A point of the line: kvmclock read ns when the host's TSC read host_tsc. Any thread. */
struct clock_base {
	u64 host_tsc, ns;
};
struct clock_base pvclock_base(struct vm *vm);
/* CLOCK_REALTIME, ns, at the instant kvmclock was zero. Any thread. */
u64 vm_wall_clock_epoch(struct vm *vm);

/* The record MSR_KVM_SYSTEM_TIME points at, and Xen's. */
struct time_record {
	u32 version;
	u32 pad0;
	u64 tsc_timestamp;
	u64 system_time;
	u32 tsc_to_system_mul;
	s8 tsc_shift;
	u8 flags;
	u8 pad[2];
};
_Static_assert(sizeof(struct time_record) == 32, "ABI");
/* Everything but the version. */
void time_record_fill(struct vcpu *vcpu, struct time_record *rec);

/* Does the host tell how long threads wait for a CPU; how long this one has, ns. */
bool steal_time_available(void);
u64 thread_run_delay(struct vcpu *vcpu);

void pvclock_vm_init(struct vm *vm);	/* kvmclock reads 0 now */
int vm_get_clock(struct vm *vm, struct kvm_clock_data *data);		/* 0 */
int vm_set_clock(struct vm *vm, const struct kvm_clock_data *data);	/* 0 or -EINVAL */
/* KVM_KVMCLOCK_CTRL: 0, or -EINVAL when the guest has no kvmclock. */
int pvclock_set_stopped(struct vcpu *vcpu);
/* The vCPU stops running for a while: in guest mode, before leaving it. */
void steal_time_set_preempted(struct vcpu *vcpu);

struct realtime_pair {
	u64 realtime_ns;
	u64 host_tsc;
};
/* CLOCK_REALTIME and the host's TSC, read as close together as possible. */
struct realtime_pair realtime_and_tsc(void);

#endif

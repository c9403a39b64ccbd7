/* SPDX-License-Identifier: MIT */
/*
 * kvmclock and steal time.
 *
 * kvmclock is a straight line over the host's TSC: it read kvmclock_offset ns at
 * clock_base_tsc and advances at the host's TSC frequency. Every vCPU's page carries
 * that same point, expressed in its own TSC, so all of them compute the same time
 * and PVCLOCK_TSC_STABLE_BIT is true. Invariants:
 *
 *  1. The line changes only in vm_set_clock(), which has every vCPU rewrite its page.
 *  2. vm_get_clock() computes with the guest's own arithmetic (multiplier, shift), so that
 *     what the client reads lies between two readings by the guest around it.
 *  3. version is odd while a record is being changed; readers retry. Its two writes are
 *     ordered against the record's by compiler barriers (stores stay in order on x86).
 *
 * A guest TSC that is ahead of or behind the base by any amount is fine: the guest takes the
 * difference modulo 2^64.
 *
 * Steal time is the thread's run-queue delay, read from /proc. No descriptor is kept:
 * it would show in the client's table and outlive its thread. The delay changes only when
 * the thread loses its CPU, so a cheap count of that saves most of the reads.
 */
#include <errno.h>
#include <fcntl.h>
#include <stdlib.h>
#include <string.h>
#include <sys/resource.h>
#include <unistd.h>

#include <linux/kvm_para.h>

#include "host/host.h"
#include "host/syscall.h"
#include "x86/hyperv.h"
#include "x86/pvclock.h"
#include "x86/tsc.h"

#define PVCLOCK_TSC_STABLE BIT(0)
#define PVCLOCK_GUEST_STOPPED BIT(1)
#define NSEC_PER_SEC 1000000000ull

#define barrier() asm volatile("" : : : "memory")

struct wall_record {
	u32 version;
	u32 sec;
	u32 nsec;
};

/* ---- the line ----------------------------------------------------------------- */

struct time_scale time_scale_of(u32 khz)
{
	u64 hz = (u64)(khz ? khz : 1) * 1000;
	struct time_scale ts = { .shift = 0 };

	/* Bring the frequency into (1 GHz, 2 GHz], so that mul has its top bit or nearly so. */
	while (hz >> -ts.shift > 2 * NSEC_PER_SEC)
		ts.shift--;
	if (!ts.shift)
		while (hz << ts.shift <= NSEC_PER_SEC)
			ts.shift++;
	if (ts.shift < 0)
		ts.mul = (u32)(((unsigned __int128)NSEC_PER_SEC << (32 - ts.shift)) / hz);
	else
		ts.mul = (u32)(((unsigned __int128)NSEC_PER_SEC << 32) / (hz << ts.shift));
	return ts;
}

u64 time_scale_ns(struct time_scale ts, u64 ticks)
{
	ticks = ts.shift < 0 ? ticks >> -ts.shift : ticks << ts.shift;
	return (u64)((unsigned __int128)ticks * ts.mul >> 32);
}

/* clock_lock held. A TSC a little behind the base (other core) reads as the base. */
static u64 clock_at(const struct vm *vm, u64 host_tsc)
{
	u64 ticks = host_tsc - vm->arch.clock_base_tsc;

	if ((s64)ticks < 0)
		ticks = 0;
	return vm->arch.kvmclock_offset + time_scale_ns(time_scale_of(host_tsc_khz()), ticks);
}

static u64 clock_at_locking(struct vm *vm, u64 host_tsc)
{
	u64 ns;

	pthread_mutex_lock(&vm->arch.clock_lock);
	ns = clock_at(vm, host_tsc);
	pthread_mutex_unlock(&vm->arch.clock_lock);
	return ns;
}

u64 vm_kvmclock_ns(struct vm *vm)
{
	return clock_at_locking(vm, host_rdtsc());
}

void pvclock_vm_init(struct vm *vm)
{
	vm->arch.clock_base_tsc = host_rdtsc();
	vm->arch.kvmclock_offset = 0;
}

struct realtime_pair realtime_and_tsc(void)
{
	struct realtime_pair best = { 0, 0 };
	u64 best_gap = ~0ull;

	for (int i = 0; i < 3; i++) {
		u64 before = host_rdtsc(), real = host_real_ns(), after = host_rdtsc();

		if (after - before >= best_gap)
			continue;
		best_gap = after - before;
		best = (struct realtime_pair){ real, before + best_gap / 2 };
	}
	return best;
}

int vm_get_clock(struct vm *vm, struct kvm_clock_data *data)
{
	struct realtime_pair now = realtime_and_tsc();

	memset(data, 0, sizeof(*data));
	data->clock = clock_at_locking(vm, now.host_tsc);
	data->realtime = now.realtime_ns;
	data->host_tsc = now.host_tsc;
	data->flags = KVM_CLOCK_TSC_STABLE | KVM_CLOCK_REALTIME | KVM_CLOCK_HOST_TSC;
	return 0;
}

int vm_set_clock(struct vm *vm, const struct kvm_clock_data *data)
{
	u64 clock = data->clock, real;

	if (data->flags & ~(u32)(KVM_CLOCK_TSC_STABLE | KVM_CLOCK_REALTIME | KVM_CLOCK_HOST_TSC))
		return -EINVAL;
	pthread_mutex_lock(&vm->arch.clock_lock);
	if (data->flags & KVM_CLOCK_REALTIME) {
		real = host_real_ns();
		if (real > data->realtime)
			clock += real - data->realtime;
	}
	vm->arch.clock_base_tsc = host_rdtsc();
	vm->arch.kvmclock_offset = clock;
	pthread_mutex_unlock(&vm->arch.clock_lock);
	hyperv_clock_changed(vm);
	vm_make_all_request(vm, KVM_REQ_CLOCK_UPDATE);
	return 0;
}

/* ---- records in guest memory ------------------------------------------------------ */

/*
 * A kick may abort any access. The record is then left as it is (version odd:
 * readers wait) and req asks for another attempt.
 */
static bool wrote(struct vcpu *vcpu, gpa_t gpa, const void *p, size_t len, enum vcpu_request req)
{
	if (!vcpu_write_guest(vcpu, gpa, p, len))
		return true;
	if (host_kicked) {
		host_kicked = false;
		vcpu_make_request(vcpu, req);
	}
	return false;
}

static bool was_read(struct vcpu *vcpu, gpa_t gpa, void *p, size_t len, enum vcpu_request req)
{
	if (!vcpu_read_guest(vcpu, gpa, p, len))
		return true;
	if (host_kicked) {
		host_kicked = false;
		vcpu_make_request(vcpu, req);
	}
	return false;
}

struct clock_base pvclock_base(struct vm *vm)
{
	struct clock_base base;

	pthread_mutex_lock(&vm->arch.clock_lock);
	base = (struct clock_base){ vm->arch.clock_base_tsc, vm->arch.kvmclock_offset };
	pthread_mutex_unlock(&vm->arch.clock_lock);
	return base;
}

void time_record_fill(struct vcpu *vcpu, struct time_record *rec)
{
	struct time_scale ts = time_scale_of(tsc_effective_khz(vcpu));
	struct clock_base base = pvclock_base(vcpu->vm);

	rec->system_time = base.ns;
	rec->tsc_timestamp = guest_tsc_from_host(vcpu, base.host_tsc);
	rec->tsc_to_system_mul = ts.mul;
	rec->tsc_shift = ts.shift;
	rec->flags = PVCLOCK_TSC_STABLE | (rec->flags & PVCLOCK_GUEST_STOPPED);
	if (vcpu->arch.pvclock_stopped)
		rec->flags |= PVCLOCK_GUEST_STOPPED;
}

void pvclock_update(struct vcpu *vcpu)
{
	u64 msr = vcpu->arch.msr.kvm_system_time;
	gpa_t gpa = msr & ~1ull;
	struct time_record rec;

	if (!(msr & KVM_MSR_ENABLED))
		return;
	if (!was_read(vcpu, gpa, &rec, sizeof(rec), KVM_REQ_CLOCK_UPDATE))
		return;
	rec.version = (rec.version + 1) | 1;
	if (!wrote(vcpu, gpa, &rec.version, 4, KVM_REQ_CLOCK_UPDATE))
		return;
	barrier();
	time_record_fill(vcpu, &rec);
	if (!wrote(vcpu, gpa + 4, (u8 *)&rec + 4, sizeof(rec) - 4, KVM_REQ_CLOCK_UPDATE))
		return;
	barrier();
	rec.version++;
	if (wrote(vcpu, gpa, &rec.version, 4, KVM_REQ_CLOCK_UPDATE))
		vcpu->arch.pvclock_stopped = false;
}

int pvclock_set_stopped(struct vcpu *vcpu)
{
	if (!(vcpu->arch.msr.kvm_system_time & KVM_MSR_ENABLED))
		return -EINVAL;
	vcpu->arch.pvclock_stopped = true;
	vcpu_make_request(vcpu, KVM_REQ_CLOCK_UPDATE);
	return 0;
}

u64 vm_wall_clock_epoch(struct vm *vm)
{
	struct realtime_pair now = realtime_and_tsc();

	return now.realtime_ns - clock_at_locking(vm, now.host_tsc);
}

/* Readers wait while version is odd. 0, or -EFAULT. */
static int write_wall_record(struct vcpu *vcpu, gpa_t gpa, u64 epoch)
{
	struct wall_record rec;

	if (vcpu_read_guest(vcpu, gpa, &rec.version, 4))
		return -EFAULT;
	rec.version = (rec.version + 1) | 1;
	rec.sec = epoch / NSEC_PER_SEC;
	rec.nsec = epoch % NSEC_PER_SEC;
	if (vcpu_write_guest(vcpu, gpa, &rec.version, 4))
		return -EFAULT;
	barrier();
	if (vcpu_write_guest(vcpu, gpa + 4, &rec.sec, 8))
		return -EFAULT;
	barrier();
	rec.version++;
	return vcpu_write_guest(vcpu, gpa, &rec.version, 4);
}

int pvclock_write_wall_clock(struct vcpu *vcpu, gpa_t gpa)
{
	host_kicked = false;
	return gpa && write_wall_record(vcpu, gpa, vm_wall_clock_epoch(vcpu->vm)) && host_kicked;
}

/* ---- steal time ------------------------------------------------------------------------ */

#define STEAL_OFFSET(field) offsetof(struct kvm_steal_time, field)

/* Second number of schedstat: ns spent runnable but waiting for a CPU. */
static u64 read_run_delay(void)
{
	char buf[96];
	char *p;
	/* Raw calls: libc's names may lead back to us. */
	long fd = host_syscall(SYS_openat, AT_FDCWD, "/proc/thread-self/schedstat", O_RDONLY | O_CLOEXEC, 0);
	long n;

	if (fd < 0)
		return 0;
	n = host_syscall(SYS_read, fd, buf, sizeof(buf) - 1, 0);
	host_syscall(SYS_close, fd, 0, 0, 0);
	if (n <= 0)
		return 0;
	buf[n] = 0;
	p = strchr(buf, ' ');
	return p ? strtoull(p + 1, NULL, 10) : 0;
}

/* How often which thread has lost its CPU: while that stands, so does its run delay. */
static u64 context_switches(struct vcpu *vcpu)
{
	u64 tid = (u32)atomic_load_explicit(&vcpu->tid, memory_order_relaxed);
	struct rusage usage;

	if (host_syscall(SYS_getrusage, RUSAGE_THREAD, &usage, 0, 0))
		return 0;
	return tid << 32 | (u32)(usage.ru_nvcsw + usage.ru_nivcsw);
}

bool steal_time_available(void)
{
	return host_syscall(SYS_access, "/proc/self/schedstat", R_OK, 0, 0) == 0;
}

u64 thread_run_delay(struct vcpu *vcpu)
{
	u64 switches = context_switches(vcpu);

	if (!switches || switches != vcpu->arch.st_switches) {
		vcpu->arch.st_run_delay = read_run_delay();
		vcpu->arch.st_switches = switches;
	}
	return vcpu->arch.st_run_delay;
}

void steal_time_update(struct vcpu *vcpu)
{
	u64 msr = vcpu->arch.msr.kvm_steal_time;
	gpa_t gpa = msr & KVM_STEAL_VALID_BITS;
	struct kvm_steal_time st;
	u64 delay;

	if (!(msr & KVM_MSR_ENABLED))
		return;
	if (!was_read(vcpu, gpa, &st, sizeof(st), KVM_REQ_STEAL_UPDATE))
		return;
	st.preempted = 0;
	if (!wrote(vcpu, gpa + STEAL_OFFSET(preempted), &st.preempted, 1, KVM_REQ_STEAL_UPDATE))
		return;
	st.version = (st.version + 1) | 1;
	if (!wrote(vcpu, gpa + STEAL_OFFSET(version), &st.version, 4, KVM_REQ_STEAL_UPDATE))
		return;
	barrier();
	delay = thread_run_delay(vcpu);
	/* Another thread runs this vCPU now: its own delay starts anew. */
	if (delay < vcpu->arch.st_last_steal)
		vcpu->arch.st_last_steal = delay;
	st.steal += delay - vcpu->arch.st_last_steal;
	if (!wrote(vcpu, gpa + STEAL_OFFSET(steal), &st.steal, 8, KVM_REQ_STEAL_UPDATE))
		return;
	vcpu->arch.st_last_steal = delay;
	barrier();
	st.version++;
	(void)wrote(vcpu, gpa + STEAL_OFFSET(version), &st.version, 4, KVM_REQ_STEAL_UPDATE);
}

void steal_time_set_preempted(struct vcpu *vcpu)
{
	u64 msr = vcpu->arch.msr.kvm_steal_time;
	u8 preempted = KVM_VCPU_PREEMPTED;

	if (!(msr & KVM_MSR_ENABLED))
		return;
	if (vcpu_write_guest(vcpu, (msr & KVM_STEAL_VALID_BITS) + STEAL_OFFSET(preempted), &preempted, 1))
		host_kicked = false;
}

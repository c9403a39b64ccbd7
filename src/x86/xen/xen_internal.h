/* SPDX-License-Identifier: MIT */
/*
 * Inside of the Xen interface. Not for other folders.
 *
 *  1. Guest memory is touched by vCPUs' threads in guest mode, and by vCPU ioctls, which are the same to
 *     it; only the wall clock is also written by a VM ioctl, under slots_lock. Threads of ours never touch it: they
 *     set bits in struct xen_vcpu, make KVM_REQ_XEN and kick.
 *  2. Pages, ports and the mode of the guest are under xen_vm.lock, inside slots_lock. It is held while
 *     the shared pages are accessed, so that a client that has taken its page back may free it.
 *  3. A delivery that a kick aborted is -EAGAIN, with nothing done, and is repeated after a boundary.
 *  4. As in KVM, stores to the shared pages are not in the dirty log, those of clocks and run states are.
 */
#ifndef SOFTKVM_X86_XEN_INTERNAL_H
#define SOFTKVM_X86_XEN_INTERNAL_H

#include "host/access.h"
#include "host/host.h"
#include "x86/irqchip.h"
#include "x86/pvclock.h"
#include "x86/xen.h"

enum xen_page_kind { XEN_PAGE_NONE, XEN_PAGE_GPA, XEN_PAGE_HVA };

struct xen_page {
	enum xen_page_kind kind;
	u64 addr;
};

#define XEN_EVENTS 4096			/* event channels of a 64-bit guest */
#define XEN_EVENTS_COMPAT 1024		/* ... of a 32-bit one */

/* struct shared_info, struct vcpu_info: offsets of what is used here. */
#define XEN_SHINFO_PENDING 0x800
#define XEN_SHINFO_MASK(wide) ((wide) ? 0xa00 : 0x880)
#define XEN_SHINFO_WALL_CLOCK(wide) ((wide) ? 0xc00 : 0x900)
#define XEN_SHINFO_WALL_SEC_HI(wide) ((wide) ? 0xc0c : 0x924)
#define XEN_VCPU_INFO_SIZE 64
#define XEN_VCPU_INFO_UPCALL 0
#define XEN_VCPU_INFO_SEL(wide) ((wide) ? 8 : 4)
#define XEN_VCPU_INFO_TIME 32

struct xen_port;

struct xen_vm {
	pthread_mutex_t lock;
	struct kvm_xen_hvm_config config;	/* but for these two copies: under lock */
	_Atomic u32 msr, flags;
	_Atomic bool wide;			/* a 64-bit guest: layouts */
	_Atomic bool runstate_update_flag;
	_Atomic u8 upcall_vector;
	_Atomic u32 version;
	struct xen_page shinfo;
	struct xen_port *ports;			/* outbound; evtchn.c */
};

enum xen_runstate { XEN_RUNNING, XEN_RUNNABLE, XEN_BLOCKED, XEN_OFFLINE, NR_XEN_RUNSTATES };

struct xen_vcpu {
	struct xen_page info;			/* under xen_vm.lock */
	_Atomic u8 upcall_vector;
	_Atomic u64 lost_sel;			/* selector bits that had no vcpu_info to go to */
	_Atomic u64 queued[XEN_EVENTS / 64];	/* ports that KVM_REQ_XEN will raise */
	/* owner only, but for what is _Atomic */
	u32 id;					/* Xen's number of this vCPU */
	gpa_t time_info, runstate_addr;		/* KVM_XEN_INVALID_GPA: none */
	struct vm_timer timer;			/* its callback touches timer_pending and requests only */
	struct vcpu *vcpu;
	u32 timer_port;
	u64 timer_expires;			/* kvmclock ns; 0: not running */
	_Atomic bool timer_pending;
	u64 poll_deadline;			/* host ns, ~0: none; 0: not polling */
	u32 poll_port;				/* ~0: several */
	_Atomic bool polling;			/* cleared by who wakes it */
	u32 runstate;
	u64 runstate_entry, runstate_times[NR_XEN_RUNSTATES];
	u64 last_run_delay;
};

static inline struct xen_vm *xen_vm(const struct vm *vm)
{
	return atomic_load_explicit(&((struct vm *)vm)->arch.xen, memory_order_acquire);
}

static inline struct xen_vcpu *xen_vcpu(const struct vcpu *vcpu)
{
	return atomic_load_explicit(&((struct vcpu *)vcpu)->arch.xen, memory_order_acquire);
}

static inline bool xen_msr_enabled(const struct vm *vm)
{
	const struct xen_vm *x = xen_vm(vm);

	return x && atomic_load_explicit(&x->msr, memory_order_relaxed);
}

static inline u32 xen_max_port(const struct xen_vm *x)
{
	return atomic_load(&x->wide) ? XEN_EVENTS : XEN_EVENTS_COMPAT;
}

/* xen.c: NULL: no memory. Any thread. */
struct xen_vm *xen_vm_init(struct vm *vm);
struct xen_vcpu *xen_vcpu_init(struct vcpu *vcpu);
/* Where len bytes at off of the page are, or NULL. */
void *xen_host(const struct memslots *slots, const struct xen_page *page, u32 off);
/* The guest is 64-bit now, or is not: 0 or -EFAULT. xen_vm.lock held, slots stable. */
int xen_set_wide(struct vm *vm, const struct memslots *slots, bool wide);

/* evtchn.c */
/* >0 delivered, 0 pending already, -ENOTCONN masked, -EINVAL, -EFAULT, -EAGAIN. In guest mode. */
int xen_deliver(struct vcpu *self, struct vcpu *target, u32 port);
/* KVM_XEN_ATTR_TYPE_EVTCHN. Any thread. */
int xen_port_set(struct vm *vm, const struct kvm_xen_hvm_attr *attr);
void xen_ports_destroy(struct xen_vm *x);
/* EVTCHNOP_send: 0, -ENOENT (the client's business), -EAGAIN. */
int xen_port_send(struct vcpu *vcpu, u32 port);
/* Is one of these pending, or is there nowhere to look? In guest mode. */
bool xen_any_pending(struct vcpu *vcpu, const u32 *ports, u32 nr);

/* timer.c */
void xen_timer_start(struct vcpu *vcpu, u64 expires, bool linux_workaround);
void xen_timer_stop(struct vcpu *vcpu);

/* runstate.c; in guest mode */
int xen_runstate_set_addr(struct vcpu *vcpu, gpa_t gpa);
void xen_runstate_update(struct vcpu *vcpu, u32 state);
int xen_runstate_set(struct vcpu *vcpu, const struct kvm_xen_vcpu_attr *attr);
void xen_runstate_get(struct vcpu *vcpu, struct kvm_xen_vcpu_attr *attr);

#endif

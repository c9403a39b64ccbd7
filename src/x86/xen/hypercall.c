/* SPDX-License-Identifier: MIT */
/*
 * Xen's hypercalls: those that KVM answers itself, when the client has set up what they need; the others are
 * the client's (KVM_EXIT_XEN).
 *
 * A handler returns what is to happen: HANDLED with a result, NOT_OURS, or AGAIN: an access to guest memory
 * was aborted by a kick before anything was done.
 */
#include <errno.h>
#include <sched.h>
#include <string.h>

#include "kvm/trace.h"
#include "x86/hyperv.h"
#include "x86/mmu.h"
#include "x86/xen/xen_internal.h"

enum xen_call {
	XEN_SET_TIMER_OP = 15, XEN_VERSION = 17, XEN_VCPU_OP = 24, XEN_SCHED_OP = 29, XEN_EVENT_CHANNEL_OP = 32,
};
enum { XENVER_VERSION = 0, EVTCHNOP_SEND = 4, SCHEDOP_YIELD = 0, SCHEDOP_POLL = 3 };
enum { VCPUOP_SET_SINGLESHOT_TIMER = 8, VCPUOP_STOP_SINGLESHOT_TIMER = 9 };
#define POLL_PORTS_MAX 128
#define HV_CALL BIT(31)		/* in EAX: by Hyper-V's hypercall page */

struct hcall {
	u64 nr, a[6];
	bool wide;
	u64 ret;
};

enum outcome { NOT_OURS, HANDLED, AGAIN, POLLING };

bool xen_hypercall_enabled(const struct vm *vm)
{
	return xen_msr_enabled(vm) &&
	       (atomic_load_explicit(&xen_vm(vm)->flags, memory_order_relaxed) & KVM_XEN_HVM_CONFIG_INTERCEPT_HCALL);
}

/* ---- guest memory by linear address ----------------------------------------------- */

/* HANDLED, or with -EFAULT as the result; AGAIN. The guest is in ring 0. */
static enum outcome read_linear(struct vcpu *vcpu, gva_t va, void *to, u32 len, struct hcall *hc)
{
	while (len) {
		u32 n = min(len, (u32)(PAGE_SIZE - (va & ~PAGE_MASK)));
		gpa_t gpa;

		if (mmu_translate(vcpu, va, MMU_READ | MMU_NOFAULT, &gpa) != EXEC_OK ||
		    vcpu_read_guest(vcpu, gpa, to, n)) {
			if (host_kicked)
				return AGAIN;
			hc->ret = -EFAULT;
			return HANDLED;
		}
		va += n;
		to = (u8 *)to + n;
		len -= n;
	}
	hc->ret = 0;
	return HANDLED;
}

#define READ_OR_RETURN(vcpu, va, to, len, hc)                                   \
	do {                                                                    \
		enum outcome read_outcome = read_linear(vcpu, va, to, len, hc); \
		if (read_outcome != HANDLED || (hc)->ret)                       \
			return read_outcome;                                    \
	} while (0)

/* ---- calls -------------------------------------------------------------------------- */

static enum outcome call_version(struct vcpu *vcpu, struct hcall *hc)
{
	u32 version = atomic_load(&xen_vm(vcpu->vm)->version);

	if (hc->a[0] != XENVER_VERSION || !version)
		return NOT_OURS;
	hc->ret = version;
	return HANDLED;
}

static enum outcome call_event_channel(struct vcpu *vcpu, struct hcall *hc)
{
	u32 port;

	if (hc->a[0] != EVTCHNOP_SEND)
		return NOT_OURS;
	READ_OR_RETURN(vcpu, hc->a[1], &port, sizeof(port), hc);
	switch (xen_port_send(vcpu, port)) {
	case 0:
		return HANDLED;
	case -EAGAIN:
		host_kicked = true;
		return AGAIN;
	}
	return NOT_OURS;
}

static bool timer_enabled(const struct vcpu *vcpu)
{
	return xen_vcpu(vcpu)->timer_port;
}

static enum outcome call_set_timer(struct vcpu *vcpu, struct hcall *hc)
{
	u64 timeout = hc->wide ? hc->a[0] : hc->a[0] | hc->a[1] << 32;

	if (!timer_enabled(vcpu))
		return NOT_OURS;
	if (timeout)
		xen_timer_start(vcpu, timeout, true);
	else
		xen_timer_stop(vcpu);
	hc->ret = 0;
	return HANDLED;
}

static enum outcome call_vcpu(struct vcpu *vcpu, struct hcall *hc)
{
	u8 arg[16];
	u64 timeout;

	if (!timer_enabled(vcpu) ||
	    (hc->a[0] != VCPUOP_SET_SINGLESHOT_TIMER && hc->a[0] != VCPUOP_STOP_SINGLESHOT_TIMER))
		return NOT_OURS;
	if ((u32)hc->a[1] != xen_vcpu(vcpu)->id) {
		hc->ret = -EINVAL;
		return HANDLED;
	}
	if (hc->a[0] == VCPUOP_STOP_SINGLESHOT_TIMER) {
		xen_timer_stop(vcpu);
		hc->ret = 0;
		return HANDLED;
	}
	/* The padding has to be there, too. */
	READ_OR_RETURN(vcpu, hc->a[2], arg, hc->wide ? 16 : 12, hc);
	memcpy(&timeout, arg, sizeof(timeout));
	xen_timer_start(vcpu, timeout, false);
	return HANDLED;
}

/* struct sched_poll */
struct poll_args {
	u64 ports;
	u32 nr;
	u64 timeout;
};

static enum outcome read_poll_args(struct vcpu *vcpu, struct hcall *hc, struct poll_args *args)
{
	u32 narrow[4];
	u64 wide[3];

	if (hc->wide) {
		READ_OR_RETURN(vcpu, hc->a[1], wide, sizeof(wide), hc);
		*args = (struct poll_args){ wide[0], wide[1], wide[2] };
	} else {
		READ_OR_RETURN(vcpu, hc->a[1], narrow, sizeof(narrow), hc);
		*args = (struct poll_args){ narrow[0], narrow[1], narrow[2] | (u64)narrow[3] << 32 };
	}
	return HANDLED;
}

/* Sleep until one of the ports is pending, an interrupt comes, or the time is over: whatever wakes it will do. */
static enum outcome poll_ports(struct vcpu *vcpu, const u32 *ports, const struct poll_args *args)
{
	struct xen_vcpu *xv = xen_vcpu(vcpu);

	__atomic_store_n(&xv->poll_port, args->nr == 1 ? ports[0] : ~0u, __ATOMIC_RELAXED);
	atomic_store(&xv->polling, true); /* before the look: who makes one pending after it wakes us */
	if (xen_any_pending(vcpu, ports, args->nr)) {
		atomic_store(&xv->polling, false);
		return HANDLED;
	}
	xv->poll_deadline = args->timeout ? host_now_ns() + min(args->timeout, ~0ull >> 2) : ~0ull;
	return POLLING;
}

static enum outcome call_poll(struct vcpu *vcpu, struct hcall *hc)
{
	u32 ports[POLL_PORTS_MAX];
	struct poll_args args;
	enum outcome r;

	r = read_poll_args(vcpu, hc, &args);
	if (r != HANDLED || hc->ret)
		return r;
	hc->ret = -EINVAL;
	if (args.nr > POLL_PORTS_MAX)
		return HANDLED;
	READ_OR_RETURN(vcpu, args.ports, ports, args.nr * sizeof(ports[0]), hc);
	for (u32 i = 0; i < args.nr; i++)
		if (ports[i] >= xen_max_port(xen_vm(vcpu->vm))) {
			hc->ret = -EINVAL;
			return HANDLED;
		}
	return poll_ports(vcpu, ports, &args);
}

static enum outcome call_sched(struct vcpu *vcpu, struct hcall *hc)
{
	bool sends_all = atomic_load(&xen_vm(vcpu->vm)->flags) & KVM_XEN_HVM_CONFIG_EVTCHN_SEND;

	if (hc->a[0] == SCHEDOP_POLL && vcpu->arch.apic && sends_all)
		return call_poll(vcpu, hc);
	if (hc->a[0] != SCHEDOP_POLL && hc->a[0] != SCHEDOP_YIELD)
		return NOT_OURS;
	sched_yield();
	hc->ret = 0;
	return HANDLED;
}

static const struct {
	u64 nr;
	enum outcome (*fn)(struct vcpu *vcpu, struct hcall *hc);
} calls[] = {
	{ XEN_SET_TIMER_OP, call_set_timer },
	{ XEN_VERSION, call_version },
	{ XEN_VCPU_OP, call_vcpu },
	{ XEN_SCHED_OP, call_sched },
	{ XEN_EVENT_CHANNEL_OP, call_event_channel },
};

/* ---- the instruction --------------------------------------------------------------------- */

static void hcall_fetch(struct vcpu *vcpu, struct hcall *hc)
{
	static const u8 wide[6] = { RDI, RSI, RDX, R10, R8, R9 }, narrow[6] = { RBX, RCX, RDX, RSI, RDI, RBP };

	hc->wide = in_64bit_mode(vcpu);
	hc->nr = hc->wide ? vcpu->arch.regs[RAX] : (u32)vcpu->arch.regs[RAX];
	hc->ret = -ENOSYS;
	for (unsigned i = 0; i < 6; i++)
		hc->a[i] = hc->wide ? vcpu->arch.regs[wide[i]] : (u32)vcpu->arch.regs[narrow[i]];
}

static enum exec exit_to_userspace(struct vcpu *vcpu, const struct hcall *hc)
{
	struct kvm_run *run = vcpu->run;

	run->exit_reason = named_exit(KVM_EXIT_XEN);
	memset(&run->xen, 0, sizeof(run->xen));
	run->xen.type = KVM_EXIT_XEN_HCALL;
	run->xen.u.hcall.longmode = hc->wide;
	run->xen.u.hcall.cpl = vcpu->arch.cpl;
	run->xen.u.hcall.input = hc->nr;
	memcpy(run->xen.u.hcall.params, hc->a, sizeof(hc->a));
	hypercall_wait_for_userspace(vcpu, HYPERCALL_EXIT_XEN);
	return EXEC_EXIT;
}

enum exec xen_hypercall(struct vcpu *vcpu)
{
	enum outcome r = NOT_OURS;
	struct hcall hc;

	hcall_fetch(vcpu, &hc);
	if ((hc.nr & HV_CALL) && hyperv_hypercall_enabled(vcpu))
		return hyperv_hypercall(vcpu);
	trace(kvm_hypercall, vcpu->id, hc.nr, hc.a[0], hc.a[1], hc.a[2], hc.a[3]);
	for (unsigned i = 0; !vcpu->arch.cpl && i < ARRAY_SIZE(calls); i++)
		if (calls[i].nr == hc.nr)
			r = calls[i].fn(vcpu, &hc);
	if (r == AGAIN) {
		host_kicked = false;
		return EXEC_RETRY;
	}
	if (r == NOT_OURS)
		return exit_to_userspace(vcpu, &hc);
	vcpu->arch.regs[RAX] = hc.ret;
	if (r == POLLING)
		atomic_store(&vcpu->arch.mp_state, KVM_MP_STATE_HALTED);
	return EXEC_END;
}

/* ---- SCHEDOP_poll under way ----------------------------------------------------------------- */

u64 xen_poll_deadline(const struct vcpu *vcpu)
{
	const struct xen_vcpu *xv = xen_vcpu(vcpu);

	return xv && xv->poll_deadline ? xv->poll_deadline : ~0ull;
}

bool xen_poll_is_over(const struct vcpu *vcpu)
{
	const struct xen_vcpu *xv = xen_vcpu(vcpu);

	return xv && xv->poll_deadline && (!atomic_load(&xv->polling) || host_now_ns() >= xv->poll_deadline);
}

void xen_poll_end(struct vcpu *vcpu)
{
	struct xen_vcpu *xv = xen_vcpu(vcpu);

	if (!xv || !xv->poll_deadline)
		return;
	xv->poll_deadline = 0;
	atomic_store(&xv->polling, false);
	atomic_store(&vcpu->arch.mp_state, KVM_MP_STATE_RUNNABLE);
}

/* ---- the hypercall page --------------------------------------------------------------------- */

bool xen_is_msr(const struct vm *vm, u32 index)
{
	const struct xen_vm *x = xen_vm(vm);

	return unlikely(x) && index && atomic_load_explicit(&x->msr, memory_order_relaxed) == index;
}

#define PAGE_ENTRY 32		/* bytes per hypercall */

/* `mov $number, %eax; vmcall; ret`, or AMD's instruction */
static int write_own_page(struct vcpu *vcpu, gpa_t gpa)
{
	u8 entry[PAGE_ENTRY] = { 0xb8, 0, 0, 0, 0, 0x0f, 0x01, host_is_amd() ? 0xd9 : 0xc1, 0xc3 };

	memset(entry + 9, 0xcc, sizeof(entry) - 9);
	for (u32 i = 0; i < PAGE_SIZE / PAGE_ENTRY; i++) {
		memcpy(entry + 1, &i, sizeof(i));
		if (vcpu_write_guest(vcpu, gpa + i * PAGE_ENTRY, entry, sizeof(entry)))
			return 1;
	}
	return 0;
}

static int write_client_page(struct vcpu *vcpu, gpa_t gpa, u32 nr)
{
	struct xen_vm *x = xen_vm(vcpu->vm);
	bool wide = vcpu->arch.long_mode;
	u8 page[PAGE_SIZE];
	u64 blob;
	u8 size;

	pthread_mutex_lock(&x->lock);
	blob = wide ? x->config.blob_addr_64 : x->config.blob_addr_32;
	size = wide ? x->config.blob_size_64 : x->config.blob_size_32;
	pthread_mutex_unlock(&x->lock);
	if (nr >= size || host_copy(page, (const void *)(blob + nr * PAGE_SIZE), PAGE_SIZE))
		return 1;
	return vcpu_write_guest(vcpu, gpa, page, PAGE_SIZE) != 0;
}

/* The write also tells how wide the guest is. */
int xen_write_msr(struct vcpu *vcpu, u64 value)
{
	struct xen_vm *x = xen_vm(vcpu->vm);
	u32 nr = value & ~PAGE_MASK;
	int r = 0;

	pthread_mutex_lock(&x->lock);
	if (atomic_load(&x->wide) != vcpu->arch.long_mode)
		r = xen_set_wide(vcpu->vm, vcpu->slots, vcpu->arch.long_mode);
	pthread_mutex_unlock(&x->lock);
	if (r)
		return 1;
	if (!xen_hypercall_enabled(vcpu->vm))
		return write_client_page(vcpu, value & PAGE_MASK, nr);
	return nr ? 1 : write_own_page(vcpu, value & PAGE_MASK);
}

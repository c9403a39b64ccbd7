/* SPDX-License-Identifier: MIT */
/* Life of the Xen state, attributes, clocks. */
#include <errno.h>
#include <stdlib.h>
#include <string.h>

#include "x86/state.h"
#include "x86/tsc.h"
#include "x86/xen/xen_internal.h"

/* ---- life ---------------------------------------------------------------------------- */

/* Several may be first: one object stays. */
struct xen_vm *xen_vm_init(struct vm *vm)
{
	struct xen_vm *x = xen_vm(vm), *none = NULL;

	if (x)
		return x;
	x = calloc(1, sizeof(*x));
	if (!x)
		return NULL;
	pthread_mutex_init(&x->lock, NULL);
	if (atomic_compare_exchange_strong(&vm->arch.xen, &none, x))
		return x;
	pthread_mutex_destroy(&x->lock);
	free(x);
	return none;
}

void xen_vm_destroy(struct vm *vm)
{
	struct xen_vm *x = xen_vm(vm);

	if (!x)
		return;
	xen_ports_destroy(x);
	pthread_mutex_destroy(&x->lock);
	free(x);
}

static void timer_expired(struct vm_timer *timer)
{
	struct xen_vcpu *xv = container_of(timer, struct xen_vcpu, timer);

	atomic_store(&xv->timer_pending, true);
	vcpu_make_request(xv->vcpu, KVM_REQ_XEN);
	vcpu_kick(xv->vcpu);
}

struct xen_vcpu *xen_vcpu_init(struct vcpu *vcpu)
{
	struct xen_vcpu *xv = xen_vcpu(vcpu), *none = NULL;

	if (xv)
		return xv;
	if (!xen_vm_init(vcpu->vm))
		return NULL;
	xv = calloc(1, sizeof(*xv));
	if (!xv)
		return NULL;
	xv->vcpu = vcpu;
	xv->id = vcpu->index;
	xv->time_info = xv->runstate_addr = KVM_XEN_INVALID_GPA;
	if (atomic_compare_exchange_strong(&vcpu->arch.xen, &none, xv))
		return xv;
	free(xv);
	return none;
}

void xen_vcpu_destroy(struct vcpu *vcpu)
{
	struct xen_vcpu *xv = xen_vcpu(vcpu);

	if (!xv)
		return;
	xen_timer_stop(vcpu);
	free(xv);
	atomic_store(&vcpu->arch.xen, NULL);
}

int xen_run_prepare(struct vcpu *vcpu)
{
	if (likely(!xen_msr_enabled(vcpu->vm)))
		return 0;
	if (!xen_vcpu_init(vcpu))
		return -ENOMEM;
	vcpu_make_request(vcpu, KVM_REQ_STEAL_UPDATE); /* the run state */
	return 0;
}

/* ---- configuration --------------------------------------------------------------------- */

#define CONFIG_SETTABLE                                                         \
	(KVM_XEN_HVM_CONFIG_INTERCEPT_HCALL | KVM_XEN_HVM_CONFIG_EVTCHN_SEND |  \
	 KVM_XEN_HVM_CONFIG_PVCLOCK_TSC_UNSTABLE)

long xen_features(void)
{
	long flags = KVM_XEN_HVM_CONFIG_HYPERCALL_MSR | KVM_XEN_HVM_CONFIG_SHARED_INFO |
		     KVM_XEN_HVM_CONFIG_EVTCHN_2LEVEL | KVM_XEN_HVM_CONFIG_SHARED_INFO_HVA | CONFIG_SETTABLE;

	if (steal_time_available())
		flags |= KVM_XEN_HVM_CONFIG_RUNSTATE | KVM_XEN_HVM_CONFIG_RUNSTATE_UPDATE_FLAG;
	return flags;
}

/* For one-shot timers, also without an in-kernel APIC. */
static bool have_timers(struct vm *vm)
{
	bool have;

	pthread_mutex_lock(&vm->lock);
	if (!vm->timers)
		vm->timers = vm_timers_create();
	have = vm->timers;
	pthread_mutex_unlock(&vm->lock);
	return have;
}

int vm_xen_config(struct vm *vm, const struct kvm_xen_hvm_config *config)
{
	struct xen_vm *x;
	u32 old;

	if (config->flags & ~CONFIG_SETTABLE)
		return -EINVAL;
	/* Who intercepts hypercalls gets our hypercall page, not its own. */
	if ((config->flags & KVM_XEN_HVM_CONFIG_INTERCEPT_HCALL) &&
	    (config->blob_addr_32 || config->blob_addr_64 || config->blob_size_32 || config->blob_size_64))
		return -EINVAL;
	x = have_timers(vm) ? xen_vm_init(vm) : NULL;
	if (!x)
		return -ENOMEM;
	pthread_mutex_lock(&x->lock);
	x->config = *config;
	old = atomic_exchange(&x->flags, config->flags);
	atomic_store(&x->msr, config->msr);
	pthread_mutex_unlock(&x->lock);
	if ((old ^ config->flags) & KVM_XEN_HVM_CONFIG_PVCLOCK_TSC_UNSTABLE)
		vm_make_all_request(vm, KVM_REQ_CLOCK_UPDATE);
	return 0;
}

/* ---- pages -------------------------------------------------------------------------------- */

void *xen_host(const struct memslots *slots, const struct xen_page *page, u32 off)
{
	const struct memslot *slot;

	if (page->kind == XEN_PAGE_NONE)
		return NULL;
	if (page->kind == XEN_PAGE_HVA)
		return (void *)(page->addr + off);
	slot = memslots_find(slots, page->addr >> PAGE_SHIFT);
	if (!slot || (slot->flags & KVM_MEM_READONLY))
		return NULL;
	return (void *)(memslot_hva(slot, page->addr) + off);
}

/* Can it be written to? */
static int page_check(const struct memslots *slots, const struct xen_page *page)
{
	void *host = xen_host(slots, page, 0);
	u64 value;

	if (page->kind == XEN_PAGE_NONE)
		return 0;
	if (!host || !host_load32(host, &value))
		return -EFAULT;
	return host_cmpxchg(host, 4, &value, value) < 0 ? -EFAULT : 0;
}

/* The time of day when kvmclock was 0. xen_vm.lock held. */
static int write_wall_clock(struct vm *vm, const struct memslots *slots)
{
	struct xen_vm *x = xen_vm(vm);
	bool wide = atomic_load(&x->wide);
	u8 *page = xen_host(slots, &x->shinfo, 0);
	u64 epoch = vm_wall_clock_epoch(vm);
	u32 rec[3] = { 0, epoch / 1000000000, epoch % 1000000000 }, hi = epoch / 1000000000 >> 32;
	u8 *at = page + XEN_SHINFO_WALL_CLOCK(wide);

	if (!page || host_copy(rec, at, 4))
		return -EFAULT;
	rec[0] = (rec[0] + 1) | 1;
	if (host_copy(at, rec, 4))
		return -EFAULT;
	atomic_signal_fence(memory_order_seq_cst);
	if (host_copy(at + 4, rec + 1, 8) || host_copy(page + XEN_SHINFO_WALL_SEC_HI(wide), &hi, 4))
		return -EFAULT;
	atomic_signal_fence(memory_order_seq_cst);
	rec[0]++;
	if (host_copy(at, rec, 4))
		return -EFAULT;
	vm_make_all_request(vm, KVM_REQ_CLOCK_UPDATE);
	return 0;
}

int xen_set_wide(struct vm *vm, const struct memslots *slots, bool wide)
{
	struct xen_vm *x = xen_vm(vm);

	atomic_store(&x->wide, wide);
	return x->shinfo.kind ? write_wall_clock(vm, slots) : 0;
}

static int set_shared_info(struct vm *vm, const struct memslots *slots, struct xen_page page)
{
	int r;

	xen_vm(vm)->shinfo = page;
	r = page_check(slots, &page);
	return r || !page.kind ? r : write_wall_clock(vm, slots);
}

/* ---- attributes of the VM --------------------------------------------------------------------- */

static struct xen_page page_by_gpa(u64 gpa)
{
	if (gpa == KVM_XEN_INVALID_GPA)
		return (struct xen_page){ XEN_PAGE_NONE, 0 };
	return (struct xen_page){ XEN_PAGE_GPA, gpa };
}

static struct xen_page page_by_hva(u64 hva)
{
	return (struct xen_page){ hva ? XEN_PAGE_HVA : XEN_PAGE_NONE, hva };
}

static bool vector_valid(u8 vector)
{
	return !vector || vector >= 16;
}

/* slots_lock and xen_vm.lock held. */
static int vm_set_attr_locked(struct vm *vm, const struct kvm_xen_hvm_attr *attr)
{
	const struct memslots *slots = atomic_load(&vm->slots);
	struct xen_vm *x = xen_vm(vm);
	u64 gfn = attr->u.shared_info.gfn;

	switch (attr->type) {
	case KVM_XEN_ATTR_TYPE_LONG_MODE:
		return xen_set_wide(vm, slots, attr->u.long_mode);
	case KVM_XEN_ATTR_TYPE_SHARED_INFO:
		return set_shared_info(vm, slots, page_by_gpa(gfn == KVM_XEN_INVALID_GFN ? gfn : gfn << PAGE_SHIFT));
	case KVM_XEN_ATTR_TYPE_SHARED_INFO_HVA:
		if (attr->u.shared_info.gfn & ~PAGE_MASK) /* the same place as hva */
			return -EINVAL;
		return set_shared_info(vm, slots, page_by_hva(attr->u.shared_info.gfn));
	case KVM_XEN_ATTR_TYPE_UPCALL_VECTOR:
		if (!vector_valid(attr->u.vector))
			return -EINVAL;
		atomic_store(&x->upcall_vector, attr->u.vector);
		return 0;
	case KVM_XEN_ATTR_TYPE_XEN_VERSION:
		atomic_store(&x->version, attr->u.xen_version);
		return 0;
	case KVM_XEN_ATTR_TYPE_RUNSTATE_UPDATE_FLAG:
		if (!steal_time_available())
			return -EOPNOTSUPP;
		atomic_store(&x->runstate_update_flag, attr->u.long_mode);
		return 0;
	}
	return -ENOENT;
}

int vm_xen_set_attr(struct vm *vm, const struct kvm_xen_hvm_attr *attr)
{
	struct xen_vm *x = xen_vm_init(vm);
	int r;

	if (!x)
		return -ENOMEM;
	if (attr->type == KVM_XEN_ATTR_TYPE_EVTCHN)
		return xen_port_set(vm, attr);
	pthread_mutex_lock(&vm->slots_lock);
	pthread_mutex_lock(&x->lock);
	/* A kick meant for a vCPU this thread has just left is no fault of the client's. */
	do {
		host_kicked = false;
		r = vm_set_attr_locked(vm, attr);
	} while (r == -EFAULT && host_kicked);
	pthread_mutex_unlock(&x->lock);
	pthread_mutex_unlock(&vm->slots_lock);
	return r;
}

static int vm_get_attr_locked(struct xen_vm *x, struct kvm_xen_hvm_attr *attr)
{
	switch (attr->type) {
	case KVM_XEN_ATTR_TYPE_LONG_MODE:
		attr->u.long_mode = atomic_load(&x->wide);
		return 0;
	case KVM_XEN_ATTR_TYPE_SHARED_INFO:
		attr->u.shared_info.gfn = x->shinfo.kind == XEN_PAGE_GPA ? x->shinfo.addr >> PAGE_SHIFT :
									    KVM_XEN_INVALID_GFN;
		return 0;
	case KVM_XEN_ATTR_TYPE_SHARED_INFO_HVA:
		attr->u.shared_info.gfn = x->shinfo.kind == XEN_PAGE_HVA ? x->shinfo.addr : 0;
		return 0;
	case KVM_XEN_ATTR_TYPE_UPCALL_VECTOR:
		attr->u.vector = atomic_load(&x->upcall_vector);
		return 0;
	case KVM_XEN_ATTR_TYPE_XEN_VERSION:
		attr->u.xen_version = atomic_load(&x->version);
		return 0;
	case KVM_XEN_ATTR_TYPE_RUNSTATE_UPDATE_FLAG:
		if (!steal_time_available())
			return -EOPNOTSUPP;
		attr->u.long_mode = atomic_load(&x->runstate_update_flag);
		return 0;
	}
	return -ENOENT;
}

int vm_xen_get_attr(struct vm *vm, struct kvm_xen_hvm_attr *attr)
{
	struct xen_vm *x = xen_vm_init(vm);
	int r;

	if (!x)
		return -ENOMEM;
	pthread_mutex_lock(&x->lock);
	r = vm_get_attr_locked(x, attr);
	pthread_mutex_unlock(&x->lock);
	return r;
}

/* ---- attributes of a vCPU ------------------------------------------------------------------------ */

static int set_vcpu_info(struct vcpu *vcpu, struct xen_page page)
{
	struct xen_vm *x = xen_vm(vcpu->vm);
	int r;

	if (page.addr & 3)
		return -ENXIO;
	if ((page.addr & ~PAGE_MASK) + XEN_VCPU_INFO_SIZE > PAGE_SIZE)
		return -EINVAL;
	pthread_mutex_lock(&x->lock);
	xen_vcpu(vcpu)->info = page;
	r = page_check(vcpu->slots, &page);
	pthread_mutex_unlock(&x->lock);
	if (!r && page.kind) {
		vcpu_make_request(vcpu, KVM_REQ_CLOCK_UPDATE);
		vcpu_make_request(vcpu, KVM_REQ_XEN); /* selectors that had no place before */
	}
	return r;
}

static int set_time_info(struct vcpu *vcpu, gpa_t gpa)
{
	struct xen_page page = page_by_gpa(gpa);

	if (page.kind && (gpa & ~PAGE_MASK) + sizeof(struct time_record) > PAGE_SIZE)
		return -EINVAL;
	xen_vcpu(vcpu)->time_info = gpa;
	if (!page.kind)
		return 0;
	vcpu_make_request(vcpu, KVM_REQ_CLOCK_UPDATE);
	return page_check(vcpu->slots, &page);
}

static int set_timer(struct vcpu *vcpu, const struct kvm_xen_vcpu_attr *attr)
{
	struct xen_vcpu *xv = xen_vcpu(vcpu);

	if (attr->u.timer.port && attr->u.timer.priority != KVM_IRQ_ROUTING_XEN_EVTCHN_PRIO_2LEVEL)
		return -EINVAL;
	if (!xv->timer.owner && vcpu->vm->timers)
		vm_timer_init(&xv->timer, vcpu->vm->timers, timer_expired);
	if (!xv->timer.owner) /* no KVM_XEN_HVM_CONFIG before */
		return attr->u.timer.port ? -EINVAL : 0;
	xen_timer_stop(vcpu);
	xv->timer_port = attr->u.timer.port;
	if (attr->u.timer.port && attr->u.timer.expires_ns)
		xen_timer_start(vcpu, attr->u.timer.expires_ns, false);
	return 0;
}

static int vcpu_set_attr(struct vcpu *vcpu, const struct kvm_xen_vcpu_attr *attr)
{
	struct xen_vcpu *xv = xen_vcpu(vcpu);

	switch (attr->type) {
	case KVM_XEN_VCPU_ATTR_TYPE_VCPU_INFO:
		return set_vcpu_info(vcpu, page_by_gpa(attr->u.gpa));
	case KVM_XEN_VCPU_ATTR_TYPE_VCPU_INFO_HVA:
		return set_vcpu_info(vcpu, page_by_hva(attr->u.gpa));
	case KVM_XEN_VCPU_ATTR_TYPE_VCPU_TIME_INFO:
		return set_time_info(vcpu, attr->u.gpa);
	case KVM_XEN_VCPU_ATTR_TYPE_RUNSTATE_ADDR:
		return steal_time_available() ? xen_runstate_set_addr(vcpu, attr->u.gpa) : -EOPNOTSUPP;
	case KVM_XEN_VCPU_ATTR_TYPE_RUNSTATE_CURRENT:
	case KVM_XEN_VCPU_ATTR_TYPE_RUNSTATE_DATA:
	case KVM_XEN_VCPU_ATTR_TYPE_RUNSTATE_ADJUST:
		return steal_time_available() ? xen_runstate_set(vcpu, attr) : -EOPNOTSUPP;
	case KVM_XEN_VCPU_ATTR_TYPE_VCPU_ID:
		if (attr->u.vcpu_id >= KVM_ABI_MAX_VCPUS)
			return -EINVAL;
		xv->id = attr->u.vcpu_id;
		return 0;
	case KVM_XEN_VCPU_ATTR_TYPE_TIMER:
		return set_timer(vcpu, attr);
	case KVM_XEN_VCPU_ATTR_TYPE_UPCALL_VECTOR:
		if (!vector_valid(attr->u.vector))
			return -EINVAL;
		atomic_store(&xv->upcall_vector, attr->u.vector);
		return 0;
	}
	return -ENOENT;
}

static int vcpu_get_runstate(struct vcpu *vcpu, struct kvm_xen_vcpu_attr *attr)
{
	struct xen_vcpu *xv = xen_vcpu(vcpu);

	if (!steal_time_available())
		return -EOPNOTSUPP;
	if (attr->type != KVM_XEN_VCPU_ATTR_TYPE_RUNSTATE_ADDR) {
		xen_runstate_get(vcpu, attr);
		return 0;
	}
	if (xv->runstate_addr == KVM_XEN_INVALID_GPA)
		return -ENOENT;
	attr->u.gpa = xv->runstate_addr;
	return 0;
}

static int vcpu_get_attr(struct vcpu *vcpu, struct kvm_xen_vcpu_attr *attr)
{
	struct xen_vcpu *xv = xen_vcpu(vcpu);

	switch (attr->type) {
	case KVM_XEN_VCPU_ATTR_TYPE_VCPU_INFO:
		attr->u.gpa = xv->info.kind == XEN_PAGE_GPA ? xv->info.addr : KVM_XEN_INVALID_GPA;
		return 0;
	case KVM_XEN_VCPU_ATTR_TYPE_VCPU_INFO_HVA:
		attr->u.gpa = xv->info.kind == XEN_PAGE_HVA ? xv->info.addr : 0;
		return 0;
	case KVM_XEN_VCPU_ATTR_TYPE_VCPU_TIME_INFO:
		attr->u.gpa = xv->time_info;
		return 0;
	case KVM_XEN_VCPU_ATTR_TYPE_RUNSTATE_ADDR:
	case KVM_XEN_VCPU_ATTR_TYPE_RUNSTATE_CURRENT:
	case KVM_XEN_VCPU_ATTR_TYPE_RUNSTATE_DATA:
		return vcpu_get_runstate(vcpu, attr);
	case KVM_XEN_VCPU_ATTR_TYPE_RUNSTATE_ADJUST:
		return -EINVAL;
	case KVM_XEN_VCPU_ATTR_TYPE_VCPU_ID:
		attr->u.vcpu_id = xv->id;
		return 0;
	case KVM_XEN_VCPU_ATTR_TYPE_TIMER:
		attr->u.timer.port = xv->timer_port;
		attr->u.timer.priority = KVM_IRQ_ROUTING_XEN_EVTCHN_PRIO_2LEVEL;
		attr->u.timer.expires_ns = xv->timer_expires;
		return 0;
	case KVM_XEN_VCPU_ATTR_TYPE_UPCALL_VECTOR:
		attr->u.vector = atomic_load(&xv->upcall_vector);
		return 0;
	}
	return -ENOENT;
}

int vcpu_xen_set_attr(struct vcpu *vcpu, const struct kvm_xen_vcpu_attr *attr)
{
	struct guest_access ga;
	int r;

	if (!xen_vcpu_init(vcpu))
		return -ENOMEM;
	guest_access_begin(vcpu, &ga);
	do {
		r = vcpu_set_attr(vcpu, attr);
	} while (r == -EFAULT && guest_access_kicked(vcpu, &ga));
	guest_access_end(vcpu, &ga);
	return r;
}

int vcpu_xen_get_attr(struct vcpu *vcpu, struct kvm_xen_vcpu_attr *attr)
{
	struct guest_access ga;
	int r;

	if (!xen_vcpu_init(vcpu))
		return -ENOMEM;
	/* A snapshot shows an event either as a timer that runs, or in the shared page. */
	guest_access_begin(vcpu, &ga);
	xen_take_events(vcpu);
	r = vcpu_get_attr(vcpu, attr);
	guest_access_end(vcpu, &ga);
	return r;
}

/* ---- clocks ------------------------------------------------------------------------------------------ */

/* The record at off in the page, under the usual protocol of versions. False: not accessible. */
static bool write_time_record(struct vcpu *vcpu, const struct xen_page *page, u32 off)
{
	u8 *host = xen_host(vcpu->slots, page, off);
	bool unstable = atomic_load(&xen_vm(vcpu->vm)->flags) & KVM_XEN_HVM_CONFIG_PVCLOCK_TSC_UNSTABLE;
	struct time_record rec;

	if (!host || host_copy(&rec, host, sizeof(rec)))
		return false;
	if (page->kind == XEN_PAGE_GPA)
		memslot_mark_dirty(vcpu, memslots_find(vcpu->slots, page->addr >> PAGE_SHIFT), page->addr >> PAGE_SHIFT);
	rec.version = (rec.version + 1) | 1;
	if (host_copy(host, &rec.version, 4))
		return false;
	atomic_signal_fence(memory_order_seq_cst);
	time_record_fill(vcpu, &rec);
	if (unstable)
		rec.flags &= ~1;
	if (host_copy(host + 4, (u8 *)&rec + 4, sizeof(rec) - 4))
		return false;
	atomic_signal_fence(memory_order_seq_cst);
	rec.version++;
	return !host_copy(host, &rec.version, 4);
}

/* Xen tells the TSC's scale in CPUID as well. */
static void update_cpuid(struct vcpu *vcpu)
{
	struct time_scale ts = time_scale_of(tsc_effective_khz(vcpu));
	struct kvm_cpuid_entry2 *e;

	for (u32 base = 0x40000000; base < 0x40010000; base += 0x100) {
		e = cpuid_find(vcpu, base, 0);
		if (!e || e->ebx != 0x566e6558 || e->ecx != 0x65584d4d || e->edx != 0x4d4d566e)
			continue;
		if (e->eax < base + 3)
			return;
		e = cpuid_find(vcpu, base + 3, 1);
		if (e && e->index == 1) {
			e->ecx = ts.mul;
			e->edx = ts.shift;
		}
		e = cpuid_find(vcpu, base + 3, 2);
		if (e && e->index == 2)
			e->eax = tsc_effective_khz(vcpu);
		return;
	}
}

void xen_clock_update(struct vcpu *vcpu)
{
	struct xen_vcpu *xv = xen_vcpu(vcpu);
	struct xen_page time = { XEN_PAGE_GPA, 0 };
	struct xen_vm *x = xen_vm(vcpu->vm);
	bool ok = true;

	if (!xv)
		return;
	update_cpuid(vcpu);
	pthread_mutex_lock(&x->lock);
	if (xv->info.kind)
		ok = write_time_record(vcpu, &xv->info, XEN_VCPU_INFO_TIME);
	pthread_mutex_unlock(&x->lock);
	time.addr = xv->time_info;
	if (ok && xv->time_info != KVM_XEN_INVALID_GPA)
		ok = write_time_record(vcpu, &time, 0);
	if (!ok && host_kicked) {
		host_kicked = false;
		vcpu_make_request(vcpu, KVM_REQ_CLOCK_UPDATE);
	}
}

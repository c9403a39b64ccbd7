/* SPDX-License-Identifier: MIT */
/* Handlers of a VM descriptor's ioctls: checks, locks, and the call of whoever does the work. */
#include <errno.h>
#include <fcntl.h>
#include <limits.h>
#include <stdlib.h>
#include <string.h>

#include "api/fd.h"
#include "api/ioctl.h"
#include "host/host.h"
#include "host/syscall.h"
#include "kvm/arch.h"
#include "kvm/dirty_ring.h"
#include "kvm/guest_memfd.h"
#include "kvm/move.h"
#include "kvm/sole.h"
#include "x86/hyperv.h"
#include "x86/irqchip.h"
#include "x86/msr_filter.h"
#include "x86/pvclock.h"
#include "x86/tsc.h"
#include "x86/xen.h"

static bool has_vcpus(struct vm *vm)
{
	return atomic_load(&vm->nr_vcpus) != 0;
}

/* ---- generic ----------------------------------------------------------------------- */

long do_kvm_vm_check_extension(struct vm *vm, void *arg)
{
	return kvm_check_extension(vm, (long)arg);
}

long do_kvm_vm_enable_cap(struct vm *vm, void *arg)
{
	return vm_enable_cap(vm, arg);
}

/* The descriptor is made before the vCPU can be seen, so that a failure leaves no trace. */
static long create_vcpu_locked(struct vm *vm, u32 id)
{
	struct vcpu *vcpu;
	int r = vcpu_create(vm, id, &vcpu);
	int fd;

	if (r)
		return r;
	r = vcpu_reserve(vm);
	if (!r)
		r = dirty_ring_create(vcpu);
	/* Before anybody can execute anything on this one. */
	if (!r && vcpu->index)
		sole_end(vm);
	fd = r ? r : fd_create_vcpu(vcpu);
	if (fd < 0) {
		vcpu_destroy(vcpu);
		return fd;
	}
	vcpu_publish(vcpu);
	if (arch_irqchip_in_kernel(vm))
		apic_map_update(vm);
	return fd;
}

long do_kvm_create_vcpu(struct vm *vm, void *arg)
{
	unsigned long id = (unsigned long)arg;
	long r;

	/* The whole argument counts, not its lower half. */
	if (id >= KVM_ABI_MAX_VCPU_IDS)
		return -EINVAL;
	pthread_mutex_lock(&vm->lock);
	r = create_vcpu_locked(vm, id);
	pthread_mutex_unlock(&vm->lock);
	return r;
}

long do_kvm_set_user_memory_region(struct vm *vm, void *arg)
{
	struct kvm_userspace_memory_region2 mem = { 0 };

	_Static_assert(offsetof(struct kvm_userspace_memory_region2, userspace_addr) ==
		       offsetof(struct kvm_userspace_memory_region, userspace_addr), "same head");
	memcpy(&mem, arg, sizeof(struct kvm_userspace_memory_region));
	if (mem.flags & KVM_MEM_GUEST_MEMFD)
		return -EINVAL;
	return vm_set_memory_region(vm, &mem);
}

long do_kvm_set_user_memory_region2(struct vm *vm, void *arg)
{
	const struct kvm_userspace_memory_region2 *mem = arg;
	struct kvm_file *file = NULL;
	struct gmem *gmem = NULL;
	int err = -EBADF;
	long r;

	if (mem->flags & KVM_MEM_GUEST_MEMFD) {
		file = fd_get(mem->guest_memfd);
		if (file && file->kind == KVM_FILE_GMEM)
			gmem = file->private; /* another process's has none */
		if (file || host_syscall(SYS_fcntl, mem->guest_memfd, F_GETFD, 0, 0) >= 0)
			err = -EINVAL;
	}
	r = vm_set_memory_region2(vm, mem, gmem, err);
	fd_put(file);
	return r;
}

long do_kvm_set_memory_attributes(struct vm *vm, void *arg)
{
	return vm_set_memory_attributes(vm, arg);
}

/* From now on there is something that another process may want to move. Without memory for that, it cannot. */
static long note_gmem(struct vm *vm, long fd)
{
	if (fd >= 0) {
		pthread_mutex_lock(&vm->lock);
		(void)move_agent_start(vm);
		pthread_mutex_unlock(&vm->lock);
	}
	return fd;
}

long do_kvm_create_guest_memfd(struct vm *vm, void *arg)
{
	const struct kvm_create_guest_memfd *create = arg;

	if (create->flags & ~gmem_supported_flags(vm))
		return -EINVAL;
	if ((s64)create->size <= 0 || (create->size & ~PAGE_MASK))
		return -EINVAL;
	return note_gmem(vm, fd_create_gmem(vm, create->size, create->flags));
}

long do_kvm_link_guest_memfd(struct vm *vm, void *arg)
{
	const struct kvm_link_guest_memfd *link = arg;
	int fd;

	if (link->flags || link->fd > INT_MAX)
		return -EINVAL;
	for (unsigned i = 0; i < ARRAY_SIZE(link->reserved); i++)
		if (link->reserved[i])
			return -EINVAL;
	fd = fd_link_gmem(vm, link->fd);
	if (fd >= 0)
		__atomic_add_fetch(&vm->stat.gmem_links, 1, __ATOMIC_RELAXED);
	return note_gmem(vm, fd);
}

long do_kvm_get_dirty_log(struct vm *vm, void *arg)
{
	return vm_get_dirty_log(vm, arg);
}

long do_kvm_clear_dirty_log(struct vm *vm, void *arg)
{
	return vm_clear_dirty_log(vm, arg);
}

long do_kvm_reset_dirty_rings(struct vm *vm, void *arg)
{
	return vm_reset_dirty_rings(vm);
}

long do_kvm_register_coalesced_mmio(struct vm *vm, void *arg)
{
	return vm_register_coalesced(vm, arg);
}

long do_kvm_unregister_coalesced_mmio(struct vm *vm, void *arg)
{
	return vm_unregister_coalesced(vm, arg);
}

long do_kvm_ioeventfd(struct vm *vm, void *arg)
{
	return vm_ioeventfd(vm, arg);
}

long do_kvm_irqfd(struct vm *vm, void *arg)
{
	return vm_irqfd(vm, arg);
}

long do_kvm_hyperv_eventfd(struct vm *vm, void *arg)
{
	return vm_hyperv_eventfd(vm, arg);
}

long do_kvm_xen_hvm_config(struct vm *vm, void *arg)
{
	return vm_xen_config(vm, arg);
}

long do_kvm_xen_hvm_get_attr(struct vm *vm, void *arg)
{
	return vm_xen_get_attr(vm, arg);
}

long do_kvm_xen_hvm_set_attr(struct vm *vm, void *arg)
{
	return vm_xen_set_attr(vm, arg);
}

long do_kvm_xen_hvm_evtchn_send(struct vm *vm, void *arg)
{
	return vm_xen_evtchn_send(vm, arg);
}

/* No device type is registered; so also under KVM_CREATE_DEVICE_TEST. */
long do_kvm_create_device(struct vm *vm, void *arg)
{
	return -ENODEV;
}

long do_kvm_vm_get_stats_fd(struct vm *vm, void *arg)
{
	return fd_create_stats(vm, NULL);
}

long do_kvm_vcpu_get_stats_fd(struct vcpu *vcpu, void *arg)
{
	return fd_create_stats(vcpu->vm, vcpu);
}

/* ---- interrupts ---------------------------------------------------------------------- */

long do_kvm_create_irqchip(struct vm *vm, void *arg)
{
	long r;

	pthread_mutex_lock(&vm->lock);
	r = irqchip_create(vm);
	pthread_mutex_unlock(&vm->lock);
	return r;
}

long do_kvm_get_irqchip(struct vm *vm, void *arg)
{
	return arch_irqchip_full(vm) ? irqchip_get_state(vm, arg) : -ENXIO;
}

long do_kvm_set_irqchip(struct vm *vm, void *arg)
{
	return arch_irqchip_full(vm) ? irqchip_set_state(vm, arg) : -ENXIO;
}

long do_kvm_irq_line(struct vm *vm, void *arg)
{
	struct kvm_irq_level *irq = arg;

	if (!arch_irqchip_in_kernel(vm))
		return -ENXIO;
	irq->status = vm_set_irq(vm, KVM_IRQ_SOURCE_USERSPACE, irq->irq, !!irq->level);
	return 0;
}

long do_kvm_set_gsi_routing(struct vm *vm, void *arg)
{
	struct kvm_irq_routing *u = arg, head;
	struct kvm_irq_routing_entry *entries;
	long r = -EFAULT;

	if (!host_copy_user(&head, u, sizeof(head)))
		return -EFAULT;
	if (!arch_irqchip_in_kernel(vm) || head.nr > KVM_ABI_MAX_IRQ_ROUTES || head.flags)
		return -EINVAL;
	entries = malloc((head.nr + 1) * sizeof(*entries));
	if (!entries)
		return -ENOMEM;
	if (host_copy_user(entries, user_field(u, entries), head.nr * sizeof(*entries))) {
		pthread_mutex_lock(&vm->lock); /* one replacement at a time */
		r = vm_set_gsi_routing(vm, entries, head.nr, head.flags);
		pthread_mutex_unlock(&vm->lock);
	}
	free(entries);
	return r;
}

long do_kvm_signal_msi(struct vm *vm, void *arg)
{
	return vm_send_msi(vm, arg);
}

/* ---- PIT ------------------------------------------------------------------------------- */

static long create_pit(struct vm *vm, const struct kvm_pit_config *cfg)
{
	long r;

	pthread_mutex_lock(&vm->lock);
	if (vm->arch.pit)
		r = -EEXIST;
	else if (!arch_irqchip_full(vm))
		r = -ENOENT;
	else
		r = pit_create(vm, cfg);
	pthread_mutex_unlock(&vm->lock);
	return r;
}

long do_kvm_create_pit(struct vm *vm, void *arg)
{
	struct kvm_pit_config cfg = { .flags = KVM_PIT_SPEAKER_DUMMY };

	return create_pit(vm, &cfg);
}

long do_kvm_create_pit2(struct vm *vm, void *arg)
{
	return create_pit(vm, arg);
}

static bool has_pit(struct vm *vm)
{
	bool r;

	pthread_mutex_lock(&vm->lock);
	r = vm->arch.pit != NULL;
	pthread_mutex_unlock(&vm->lock);
	return r;
}

long do_kvm_get_pit2(struct vm *vm, void *arg)
{
	if (!has_pit(vm))
		return -ENXIO;
	pit_get(vm, arg);
	return 0;
}

static long set_pit_locked(struct vm *vm, const struct kvm_pit_state2 *s)
{
	return vm->arch.pit ? pit_set(vm, s) : -ENXIO;
}

long do_kvm_set_pit2(struct vm *vm, void *arg)
{
	long r;

	pthread_mutex_lock(&vm->lock);
	r = set_pit_locked(vm, arg);
	pthread_mutex_unlock(&vm->lock);
	return r;
}

/* The old calls know the channels only; the flags stay as they are. */
long do_kvm_get_pit(struct vm *vm, void *arg)
{
	struct kvm_pit_state2 s;

	if (!has_pit(vm))
		return -ENXIO;
	pit_get(vm, &s);
	_Static_assert(sizeof(s.channels) == sizeof(struct kvm_pit_state), "the same channels");
	memcpy(arg, s.channels, sizeof(s.channels));
	return 0;
}

long do_kvm_set_pit(struct vm *vm, void *arg)
{
	struct kvm_pit_state2 s;
	long r = -ENXIO;

	pthread_mutex_lock(&vm->lock);
	if (vm->arch.pit) {
		pit_get(vm, &s);
		memcpy(s.channels, arg, sizeof(s.channels));
		r = set_pit_locked(vm, &s);
	}
	pthread_mutex_unlock(&vm->lock);
	return r;
}

long do_kvm_reinject_control(struct vm *vm, void *arg)
{
	struct kvm_reinject_control control;

	if (!host_copy_user(&control, arg, sizeof(control)))
		return -EFAULT;
	return has_pit(vm) ? pit_reinject_control(vm, control.pit_reinject) : -ENXIO;
}

/* ---- settings ---------------------------------------------------------------------------- */

long do_kvm_set_tss_addr(struct vm *vm, void *arg)
{
	unsigned long addr = (unsigned long)arg;

	/* Three pages below 4 GiB that we have no use for. */
	if (addr > (u32)(-3 * PAGE_SIZE))
		return -EINVAL;
	vm->arch.tss_addr = addr;
	return 0;
}

long do_kvm_set_identity_map_addr(struct vm *vm, void *arg)
{
	long r = -EINVAL;

	pthread_mutex_lock(&vm->lock);
	if (!has_vcpus(vm)) {
		memcpy(&vm->arch.identity_map_addr, arg, sizeof(vm->arch.identity_map_addr));
		r = 0;
	}
	pthread_mutex_unlock(&vm->lock);
	return r;
}

#define MIN_MMU_PAGES 64

long do_kvm_set_nr_mmu_pages(struct vm *vm, void *arg)
{
	unsigned long nr = (unsigned long)arg;

	if (nr < MIN_MMU_PAGES)
		return -EINVAL;
	vm->arch.nr_mmu_pages = min(nr, 0xfffffffful);
	return 0;
}

long do_kvm_set_boot_cpu_id(struct vm *vm, void *arg)
{
	unsigned long id = (unsigned long)arg;
	long r = 0;

	pthread_mutex_lock(&vm->lock);
	if (has_vcpus(vm))
		r = -EBUSY;
	else if (id > KVM_ABI_MAX_VCPU_IDS || (vm->max_vcpu_ids && id > vm->max_vcpu_ids))
		r = -EINVAL;
	else
		vm->arch.boot_cpu_id = id;
	pthread_mutex_unlock(&vm->lock);
	return r;
}

long do_kvm_get_clock(struct vm *vm, void *arg)
{
	return vm_get_clock(vm, arg);
}

long do_kvm_set_clock(struct vm *vm, void *arg)
{
	return vm_set_clock(vm, arg);
}

long do_kvm_vm_get_tsc_khz(struct vm *vm, void *arg)
{
	return (u32)vm->arch.default_tsc_khz;
}

long do_kvm_vm_set_tsc_khz(struct vm *vm, void *arg)
{
	u32 khz = (u32)(unsigned long)arg;

	if (khz >= TSC_KHZ_LIMIT)
		return -EINVAL;
	vm->arch.default_tsc_khz = khz ? khz : host_tsc_khz();
	return 0;
}

long do_kvm_x86_set_msr_filter(struct vm *vm, void *arg)
{
	return msr_filter_set(vm, arg);
}

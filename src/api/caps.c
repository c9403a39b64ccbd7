/* SPDX-License-Identifier: MIT */
/* Capabilities: what KVM_CHECK_EXTENSION answers and what KVM_ENABLE_CAP on a VM does. */
#include <errno.h>
#include <fcntl.h>
#include <limits.h>
#include <linux/capability.h>
#include <linux/kvm_para.h>
#include <stdlib.h>
#include <string.h>
#include <unistd.h>

#include "api/fd.h"
#include "api/ioctl.h"
#include "host/host.h"
#include "host/syscall.h"
#include "kvm/api_level.h"
#include "kvm/arch.h"
#include "kvm/dirty_ring.h"
#include "kvm/guest_memfd.h"
#include "x86/irqchip.h"
#include "x86/xen.h"

#define X2APIC_API_FLAGS (KVM_X2APIC_API_USE_32BIT_IDS | KVM_X2APIC_API_DISABLE_BROADCAST_QUIRK)
#define DIRTY_LOG_FLAGS (KVM_DIRTY_LOG_MANUAL_PROTECT_ENABLE | KVM_DIRTY_LOG_INITIALLY_SET)
#define DISABLE_EXITS_VALID                                                     \
	(KVM_X86_DISABLE_EXITS_MWAIT | KVM_X86_DISABLE_EXITS_HLT |              \
	 KVM_X86_DISABLE_EXITS_PAUSE | KVM_X86_DISABLE_EXITS_CSTATE)
#define DISABLE_EXITS_SUPPORTED (DISABLE_EXITS_VALID & ~KVM_X86_DISABLE_EXITS_MWAIT)
#define GUESTDBG_FLAGS                                                          \
	(KVM_GUESTDBG_ENABLE | KVM_GUESTDBG_SINGLESTEP | KVM_GUESTDBG_USE_HW_BP | \
	 KVM_GUESTDBG_USE_SW_BP | KVM_GUESTDBG_INJECT_BP | KVM_GUESTDBG_INJECT_DB | \
	 KVM_GUESTDBG_BLOCKIRQ)
/* LINT0_REENABLED .. MWAIT_NEVER_UD_FAULTS, and SLOT_ZAP_ALL, which has nothing to zap here. */
#define QUIRKS_SUPPORTED 0xff
#define DIRTY_RING_MAX_BYTES ((long)(KVM_ABI_DIRTY_RING_MAX_ENTRIES * sizeof(struct kvm_dirty_gfn)))
#define USER_SPACE_MSR_FLAGS                                                    \
	(KVM_MSR_EXIT_REASON_INVAL | KVM_MSR_EXIT_REASON_UNKNOWN | KVM_MSR_EXIT_REASON_FILTER)

static long online_cpus(void)
{
	long n = sysconf(_SC_NPROCESSORS_ONLN);

	return n < 1 ? 1 : min(n, (long)KVM_ABI_MAX_VCPUS);
}

static long steal_time_known(void)
{
	return host_syscall(SYS_access, "/proc/self/schedstat", R_OK, 0, 0) == 0;
}

/* Whether such a VM may have private memory, or memory in a guest_memfd. */
static bool has_gmem(struct vm *vm)
{
	return !vm || vm->private_mem || kvm_api_level() >= KVM_API_6_18;
}

static long xsave2_size(void)
{
	return max((long)xstate_size(supported_xcr0()), 4096l);
}

/* One function a row, so that an answer is computed only when asked for. */
#define CAP(cap, value) static long answer_##cap(struct vm *vm) { return value; }
#include "api/caps.def"
#undef CAP

static const struct cap_row {
	const char *name;
	long number;
	long (*answer)(struct vm *vm);
} rows[] = {
#define CAP(cap, value) { #cap, cap, answer_##cap },
#include "api/caps.def"
#undef CAP
};

long kvm_check_extension(struct vm *vm, long cap)
{
	for (unsigned i = 0; i < ARRAY_SIZE(rows); i++)
		if (rows[i].number == cap)
			return rows[i].answer(vm);
	return 0;
}

bool kvm_cap_row(unsigned i, const char **name, long *number, long *value)
{
	if (i >= ARRAY_SIZE(rows))
		return false;
	*name = rows[i].name;
	*number = rows[i].number;
	*value = rows[i].answer(NULL);
	return true;
}

/* ---- KVM_ENABLE_CAP, VM ---------------------------------------------------------- */

static bool has_vcpus(struct vm *vm)
{
	return atomic_load(&vm->nr_vcpus) != 0;
}

static int enable_manual_dirty_log(struct vm *vm, const u64 *args)
{
	/* INITIALLY_SET means nothing by itself. */
	u64 allowed = args[0] & KVM_DIRTY_LOG_MANUAL_PROTECT_ENABLE ?
		      DIRTY_LOG_FLAGS : KVM_DIRTY_LOG_MANUAL_PROTECT_ENABLE;

	if (args[0] & ~allowed)
		return -EINVAL;
	pthread_mutex_lock(&vm->slots_lock);
	vm->manual_dirty_log_protect = args[0];
	pthread_mutex_unlock(&vm->slots_lock);
	return 0;
}

static int enable_dirty_ring(struct vm *vm, const u64 *args)
{
	return vm_enable_dirty_ring(vm, args[0]);
}

static int enable_halt_poll(struct vm *vm, const u64 *args)
{
	if (args[0] != (u32)args[0])
		return -EINVAL;
	vm->max_halt_poll_ns = args[0];
	return 0;
}

static int enable_quirks(struct vm *vm, const u64 *args)
{
	vm->arch.disabled_quirks |= args[0] & QUIRKS_SUPPORTED;
	return 0;
}

static int enable_quirks2(struct vm *vm, const u64 *args)
{
	return args[0] & ~(u64)QUIRKS_SUPPORTED ? -EINVAL : enable_quirks(vm, args);
}

static int enable_split_irqchip(struct vm *vm, const u64 *args)
{
	/* The reserved pins are GSIs, hence no more than those. */
	if (args[0] > KVM_ABI_MAX_IRQ_ROUTES)
		return -EINVAL;
	return irqchip_create_split(vm, args[0]);
}

static int enable_x2apic_api(struct vm *vm, const u64 *args)
{
	if (args[0] & ~(u64)X2APIC_API_FLAGS)
		return -EINVAL;
	vm->arch.x2apic_format |= args[0];
	return 0;
}

static int enable_disable_exits(struct vm *vm, const u64 *args)
{
	if (args[0] & ~(u64)DISABLE_EXITS_VALID)
		return -EINVAL;
	vm->arch.disabled_exits |= args[0] & DISABLE_EXITS_SUPPORTED;
	return 0;
}

static int enable_platform_info(struct vm *vm, const u64 *args)
{
	vm->arch.guest_can_read_platform_info = args[0];
	return 0;
}

static int enable_exception_payload(struct vm *vm, const u64 *args)
{
	vm->arch.exception_payload = args[0];
	return 0;
}

static int enable_triple_fault_event(struct vm *vm, const u64 *args)
{
	vm->arch.triple_fault_event = args[0];
	return 0;
}

static int enable_user_space_msr(struct vm *vm, const u64 *args)
{
	if (args[0] & ~(u64)USER_SPACE_MSR_FLAGS)
		return -EINVAL;
	vm->arch.user_space_msr_mask = args[0];
	return 0;
}

static int enable_bus_lock_exit(struct vm *vm, const u64 *args)
{
	u64 both = KVM_BUS_LOCK_DETECTION_OFF | KVM_BUS_LOCK_DETECTION_EXIT;

	/* Without the feature the choice is accepted and has no effect, as in KVM. */
	return (args[0] & ~both) || (args[0] & both) == both ? -EINVAL : 0;
}

static int enable_exit_hypercall(struct vm *vm, const u64 *args)
{
	if (args[0] & ~BIT_ULL(KVM_HC_MAP_GPA_RANGE))
		return -EINVAL;
	vm->arch.hypercall_exit_enabled = args[0];
	return 0;
}

static int enable_exit_on_emulation_failure(struct vm *vm, const u64 *args)
{
	if (args[0] & ~1ull)
		return -EINVAL;
	vm->arch.exit_on_emulation_failure = args[0];
	return 0;
}

static int enable_max_vcpu_id(struct vm *vm, const u64 *args)
{
	if (args[0] > KVM_ABI_MAX_VCPU_IDS || vm->arch.boot_cpu_id > args[0])
		return -EINVAL;
	if (vm->max_vcpu_ids == args[0])
		return 0;
	/* Once only, and not after a vCPU has settled it. */
	if (vm->max_vcpu_ids)
		return -EINVAL;
	vm->max_vcpu_ids = args[0];
	return 0;
}

/* Whether this thread may reboot the machine: CAP_SYS_BOOT, as KVM asks. */
static bool may_reboot(void)
{
	struct __user_cap_header_struct header = { .version = _LINUX_CAPABILITY_VERSION_3 };
	struct __user_cap_data_struct data[2] = { 0 };

	if (host_syscall(SYS_capget, &header, data, 0, 0))
		return false;
	return data[CAP_TO_INDEX(CAP_SYS_BOOT)].effective & CAP_TO_MASK(CAP_SYS_BOOT);
}

static int enable_no_nx_huge_pages(struct vm *vm, const u64 *args)
{
	if (!may_reboot())
		return -EPERM;
	return args[0] || has_vcpus(vm) ? -EINVAL : 0;
}

static int enable_apic_bus_cycles(struct vm *vm, const u64 *args)
{
	u64 longest;

	/* The longest timer: all counts, times the largest divisor. */
	if (!args[0] || __builtin_mul_overflow(0xffffffffull * 128, args[0], &longest))
		return -EINVAL;
	if (!arch_irqchip_in_kernel(vm))
		return -ENXIO;
	if (has_vcpus(vm))
		return -EINVAL;
	vm->arch.apic_bus_ns = args[0];
	return 0;
}

static int enable_move_context(struct vm *vm, const u64 *args)
{
	struct kvm_file *file = args[0] <= INT_MAX ? fd_get(args[0]) : NULL;
	int r = -EBADF;

	if (file && file->kind == KVM_FILE_VM) {
		if (!has_gmem(vm))
			r = -EINVAL;
		else if (file->vm && file->mm == host_mm_id())
			r = vm_move_context(vm, file->vm);
		else
			r = fd_move_foreign(vm, args[0]);
	}
	fd_put(file);
	return r;
}

/* vm->lock held; flags are 0. */
static const struct {
	u32 cap;
	int (*enable)(struct vm *vm, const u64 *args);
} enables[] = {
	{ KVM_CAP_MANUAL_DIRTY_LOG_PROTECT2, enable_manual_dirty_log },
	{ KVM_CAP_DIRTY_LOG_RING, enable_dirty_ring },
	{ KVM_CAP_DIRTY_LOG_RING_ACQ_REL, enable_dirty_ring },
	{ KVM_CAP_HALT_POLL, enable_halt_poll },
	{ KVM_CAP_DISABLE_QUIRKS, enable_quirks },
	{ KVM_CAP_DISABLE_QUIRKS2, enable_quirks2 },
	{ KVM_CAP_SPLIT_IRQCHIP, enable_split_irqchip },
	{ KVM_CAP_X2APIC_API, enable_x2apic_api },
	{ KVM_CAP_X86_DISABLE_EXITS, enable_disable_exits },
	{ KVM_CAP_MSR_PLATFORM_INFO, enable_platform_info },
	{ KVM_CAP_EXCEPTION_PAYLOAD, enable_exception_payload },
	{ KVM_CAP_X86_TRIPLE_FAULT_EVENT, enable_triple_fault_event },
	{ KVM_CAP_X86_USER_SPACE_MSR, enable_user_space_msr },
	{ KVM_CAP_X86_BUS_LOCK_EXIT, enable_bus_lock_exit },
	{ KVM_CAP_EXIT_HYPERCALL, enable_exit_hypercall },
	{ KVM_CAP_EXIT_ON_EMULATION_FAILURE, enable_exit_on_emulation_failure },
	{ KVM_CAP_MAX_VCPU_ID, enable_max_vcpu_id },
	{ KVM_CAP_VM_MOVE_ENC_CONTEXT_FROM, enable_move_context },
	{ KVM_CAP_VM_DISABLE_NX_HUGE_PAGES, enable_no_nx_huge_pages },
	{ KVM_CAP_X86_APIC_BUS_CYCLES_NS, enable_apic_bus_cycles },
};

long vm_enable_cap(struct vm *vm, const struct kvm_enable_cap *cap)
{
	long r = -EINVAL;

	if (cap->flags)
		return -EINVAL;
	for (unsigned i = 0; i < ARRAY_SIZE(enables); i++)
		if (enables[i].cap == cap->cap) {
			pthread_mutex_lock(&vm->lock);
			r = enables[i].enable(vm, (const u64 *)cap->args);
			pthread_mutex_unlock(&vm->lock);
			break;
		}
	return r;
}

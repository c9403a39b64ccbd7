/* SPDX-License-Identifier: MIT */
/* What a VM and a vCPU own on x86: creation with KVM's defaults, destruction. */
#include <errno.h>
#include <stdlib.h>

#include "host/host.h"
#include "x86/cr.h"
#include "x86/hyperv.h"
#include "x86/irqchip.h"
#include "x86/mmu.h"
#include "x86/msr.h"
#include "x86/pvclock.h"
#include "x86/tsc.h"
#include "x86/xen.h"

#define DEFAULT_MAXPHYADDR 36		/* of a CPU without leaf 0x80000008 */

bool arch_vm_type_supported(unsigned long type)
{
	return type == KVM_X86_DEFAULT_VM || type == KVM_X86_SW_PROTECTED_VM;
}

int arch_vm_create(struct vm *vm, unsigned long type)
{
	struct vm_arch *va = &vm->arch;

	if (pthread_mutex_init(&va->clock_lock, NULL))
		return -ENOMEM;
	vm->private_mem = type == KVM_X86_SW_PROTECTED_VM;
	va->apic_bus_ns = 1;
	va->guest_can_read_platform_info = true;
	va->default_tsc_khz = host_tsc_khz();
	pvclock_vm_init(vm);
	return 0;
}

void arch_vm_destroy(struct vm *vm)
{
	pthread_mutex_lock(&vm->lock);
	irqchip_destroy(vm);
	mmu_shared_code_destroy(vm);
	pthread_mutex_unlock(&vm->lock);
	hyperv_vm_destroy(vm);
	xen_vm_destroy(vm);
	pthread_mutex_destroy(&vm->arch.clock_lock);
}

int arch_vcpu_create(struct vcpu *vcpu)
{
	struct vcpu_arch *a = &vcpu->arch;
	bool in_kernel = arch_irqchip_in_kernel(vcpu->vm);
	bool bsp = vcpu->id == vcpu->vm->arch.boot_cpu_id;
	int r;

	a->maxphyaddr = DEFAULT_MAXPHYADDR;
	/* Until the client describes the CPU, whatever we can do is allowed. */
	a->cr4_reserved_bits = ~cr4_supported_bits();
	a->code_page = ~0ull;
	msr_init(vcpu);
	atomic_store(&a->mp_state, in_kernel && !bsp ? KVM_MP_STATE_UNINITIALIZED : KVM_MP_STATE_RUNNABLE);
	if (in_kernel) {
		r = lapic_create(vcpu);
		if (r)
			return r;
	}
	vcpu_reset(vcpu, false);
	(void)tsc_set_khz(vcpu, vcpu->vm->arch.default_tsc_khz);
	tsc_init(vcpu);
	return 0;
}

void arch_vcpu_end_block(struct vcpu *vcpu)
{
	vcpu->arch.block_abort = true;
}

void arch_vcpu_destroy(struct vcpu *vcpu)
{
	struct vcpu_arch *a = &vcpu->arch;

	if (a->dbt)
		dbt_destroy(vcpu);
	if (a->interp)
		interp_destroy(vcpu);
	if (a->mmu)
		mmu_destroy(vcpu);
	hyperv_vcpu_destroy(vcpu);
	xen_vcpu_destroy(vcpu);
	if (a->apic)
		lapic_destroy(vcpu);
	free(a->mmio.accesses);
	free(a->msr.mce_banks);
	free(a->msr.mtrr);
	free(a->cpuid_entries);
	a->cpuid_entries = NULL;
	a->cpuid_nent = 0;
}

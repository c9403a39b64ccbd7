/* SPDX-License-Identifier: MIT */
/* Life of the Hyper-V state, capabilities, and what the run loop asks for. */
#include <errno.h>
#include <stdlib.h>
#include <string.h>

#include "x86/hyperv/hyperv_internal.h"

/* ---- life ------------------------------------------------------------------------- */

/* Two vCPUs may be first: one of the two objects stays. */
struct hv_vm *hv_vm_init(struct vm *vm)
{
	struct hv_vm *hv = hv_vm(vm), *none = NULL;

	if (hv)
		return hv;
	hv = calloc(1, sizeof(*hv));
	if (!hv)
		return NULL;
	pthread_mutex_init(&hv->lock, NULL);
	if (atomic_compare_exchange_strong(&vm->arch.hyperv, &none, hv))
		return hv;
	pthread_mutex_destroy(&hv->lock);
	free(hv);
	return none;
}

void hyperv_vm_destroy(struct vm *vm)
{
	struct hv_vm *hv = hv_vm(vm);

	if (!hv)
		return;
	hv_conns_destroy(hv);
	pthread_mutex_destroy(&hv->lock);
	free(hv);
}

int hv_init(struct vcpu *vcpu)
{
	struct hv_vcpu *hv;

	if (hv_vcpu(vcpu))
		return 0;
	if (!hv_vm_init(vcpu->vm))
		return -ENOMEM;
	hv = calloc(1, sizeof(*hv));
	if (!hv)
		return -ENOMEM;
	atomic_store(&hv->vp_index, vcpu->index);
	hv_synic_init(&hv->synic);
	hv_stimer_init(vcpu, hv);
	atomic_store_explicit(&vcpu->arch.hyperv, hv, memory_order_release);
	return 0;
}

void hyperv_vcpu_destroy(struct vcpu *vcpu)
{
	struct hv_vcpu *hv = hv_vcpu(vcpu);

	if (!hv)
		return;
	hv_stimer_destroy(hv);
	free(hv);
	atomic_store(&vcpu->arch.hyperv, NULL);
}

/* ---- capabilities ------------------------------------------------------------------- */

int hyperv_enable_synic(struct vcpu *vcpu, bool keep_pages)
{
	struct hv_synic *synic;

	if (!arch_irqchip_in_kernel(vcpu->vm))
		return -EINVAL;
	if (hv_init(vcpu))
		return -ENOMEM;
	synic = &hv_vcpu(vcpu)->synic;
	synic->keep_pages = keep_pages;
	synic->control = 1;
	atomic_store(&synic->active, true);
	return 0;
}

int hyperv_enforce_cpuid(struct vcpu *vcpu, bool enforce)
{
	if (!hv_vcpu(vcpu) && !enforce)
		return 0;
	if (hv_init(vcpu))
		return -ENOMEM;
	hv_vcpu(vcpu)->enforce_cpuid = enforce;
	return 0;
}

/* ---- run loop ------------------------------------------------------------------------ */

void hv_request_exit(struct vcpu *vcpu, u32 why)
{
	hv_vcpu(vcpu)->exits |= why;
	vcpu_make_request(vcpu, KVM_REQ_HV_EXIT);
}

static bool system_event(struct kvm_run *run, u32 type)
{
	run->exit_reason = named_exit(KVM_EXIT_SYSTEM_EVENT);
	run->system_event.type = type;
	run->system_event.ndata = 0;
	return true;
}

static bool take_one(struct hv_vcpu *hv, u32 bit)
{
	bool set = hv->exits & bit;

	hv->exits &= ~bit;
	return set;
}

/* One at a time; the rest has its turn at the next KVM_RUN. */
bool hyperv_take_exit(struct vcpu *vcpu)
{
	struct hv_vcpu *hv = hv_vcpu(vcpu);
	struct kvm_run *run = vcpu->run;
	bool found = false;

	if (!hv)
		return false;
	if (take_one(hv, HV_EXIT_CRASH)) {
		found = system_event(run, KVM_SYSTEM_EVENT_CRASH);
	} else if (take_one(hv, HV_EXIT_RESET)) {
		found = system_event(run, KVM_SYSTEM_EVENT_RESET);
	} else if (take_one(hv, HV_EXIT_RUN)) {
		run->exit_reason = named_exit(KVM_EXIT_HYPERV);
		run->hyperv = hv->exit;
		if (hv->exit.type == KVM_EXIT_HYPERV_SYNDBG)
			vcpu->arch.hypercall_exit = HYPERCALL_EXIT_SYNDBG;
		found = true;
	}
	if (hv->exits)
		vcpu_make_request(vcpu, KVM_REQ_HV_EXIT);
	return found;
}

void hyperv_flush_wait(struct vcpu *vcpu)
{
	struct hv_vcpu *hv = hv_vcpu(vcpu);

	if (!hv)
		return;
	vcpu_sync_others(vcpu, hv->flush_mask, KVM_REQ_TLB_FLUSH);
	memset(hv->flush_mask, 0, sizeof(hv->flush_mask));
}

/* ---- memory ----------------------------------------------------------------------------- */

bool hv_clear_page(struct vcpu *vcpu, gpa_t gpa)
{
	static const u8 zeros[PAGE_SIZE];

	return !vcpu_write_guest(vcpu, gpa & PAGE_MASK, zeros, sizeof(zeros));
}

/* SPDX-License-Identifier: MIT */
/* System management mode: entry, RSM. Own thread, in guest mode, unless a line says otherwise. */
#ifndef SOFTKVM_X86_SMM_H
#define SOFTKVM_X86_SMM_H

#include "x86/x86.h"

#define SMBASE_RESET 0x30000
enum { ADDRESS_SPACE_NORMAL, ADDRESS_SPACE_SMM };

/* An SMI arrives; a second one that has not been taken yet is the same. Any thread. */
void smm_inject_smi(struct vcpu *vcpu);
static inline bool smm_smi_deliverable(const struct vcpu *vcpu)
{
	return atomic_load_explicit(&((struct vcpu *)vcpu)->arch.smi_pending, memory_order_relaxed) &&
	       !vcpu->arch.smm;
}
/* Take the pending SMI. EXEC_OK: the handler is next; EXEC_RETRY: try again; EXEC_END: the VM is dead. */
enum exec smm_enter(struct vcpu *vcpu);
/* RSM. EXEC_BRANCH, EXEC_RETRY, or EXEC_FAULT with a triple fault on its way. */
enum exec smm_leave(struct vcpu *vcpu);
/* KVM_SET_VCPU_EVENTS: in or out of SMM without any of that. */
void smm_set(struct vcpu *vcpu, bool smm);

#endif

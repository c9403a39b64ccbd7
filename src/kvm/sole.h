/* SPDX-License-Identifier: MIT */
/* Is a vCPU alone with its guest's programs? sole.c has the conditions. */
#ifndef SOFTKVM_KVM_SOLE_H
#define SOFTKVM_KVM_SOLE_H

#include "kvm/kvm_host.h"

/* Counts whatever may have made an answer wrong, of any VM; an answer is good as long as neither this nor the memslots change. */
extern _Atomic u32 sole_turns;

static inline u32 sole_turn(void)
{
	return atomic_load_explicit(&sole_turns, memory_order_acquire);
}

/* vm.c */
void sole_vm_created(struct vm *vm);
void sole_vm_destroyed(struct vm *vm);
/* Never again, and no vCPU of vm is in code that counts on it when this returns. Neither slots_lock nor a vcpu->mutex is held. */
void sole_end(struct vm *vm);
/* A program has accessed a device. In guest mode; the vCPU's code is left after this instruction. */
void sole_device_used(struct vcpu *vcpu);
/* The client has mapped memory that it shares with others. Any thread, also in a signal handler. */
void sole_mapped(u64 start, u64 size);
/* In guest mode. False is always a good answer. */
bool sole_ask(struct vcpu *vcpu);

#endif

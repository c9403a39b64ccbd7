/* SPDX-License-Identifier: MIT */
/* Debug registers and breakpoints; set_dr(), get_dr() and update_effective_dr() are in x86.h. */
#ifndef SOFTKVM_X86_DEBUG_H
#define SOFTKVM_X86_DEBUG_H

#include "x86/x86.h"

#define DR6_BD BIT_ULL(13)
#define DR6_BS BIT_ULL(14)
#define DR6_BT BIT_ULL(15)
#define DR6_RTM BIT_ULL(16)
#define DR6_BUS_LOCK BIT_ULL(11)
#define DR6_TRAP_BITS (0xfull | DR6_BD | DR6_BS | DR6_BT)
#define DR6_RESET 0xffff0ff0ull	/* every bit that is fixed at 1 or active low */
#define DR7_GD BIT_ULL(13)
#define DR7_RESET 0x400ull

/* An instruction breakpoint at the current rip, not suppressed by RFLAGS.RF: adds its bits to *dr6. */
bool debug_check_code_bp(struct vcpu *vcpu, u64 *dr6);
/* A data access hits a breakpoint: #DB becomes due after this instruction (arch.db_trap). */
bool debug_check_data_bp(struct vcpu *vcpu, gva_t va, unsigned len, bool write);
/* Single-step, the guest's or a debugger's: every iteration of a string instruction is a step. */
static inline bool debug_is_stepped(const struct vcpu *vcpu)
{
	const u32 debugger = KVM_GUESTDBG_ENABLE | KVM_GUESTDBG_SINGLESTEP;

	return (vcpu->arch.rflags & X86_EFLAGS_TF) || (vcpu->guest_debug.control & debugger) == debugger;
}

static inline void debug_step_trap(struct vcpu *vcpu)
{
	vcpu->arch.db_trap = true;
	vcpu->arch.db_dr6 |= DR6_BS;
}

/* The same for I/O ports (CR4.DE). */
bool debug_check_io_bp(struct vcpu *vcpu, u16 port, unsigned len);

#endif

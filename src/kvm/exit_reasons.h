/* SPDX-License-Identifier: MIT */
/*
 * Exit reasons have names. Code that sets one writes
 *	run->exit_reason = named_exit(KVM_EXIT_IO);
 * which compiles only for a reason that has a row in exit_reasons.def.
 */
#ifndef SOFTKVM_KVM_EXIT_REASONS_H
#define SOFTKVM_KVM_EXIT_REASONS_H

enum kvm_exit_reason {
#define EXIT_REASON(name, number) NAMED_KVM_EXIT_##name = (number),
#include "kvm/exit_reasons.def"
#undef EXIT_REASON
	NR_EXIT_REASONS
};

#define named_exit(reason) NAMED_##reason

/* Buckets of vcpu_stat.userspace_exits; a reason beyond the last counts there. */
#define EXIT_REASON_BUCKETS 48

#endif

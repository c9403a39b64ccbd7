/* SPDX-License-Identifier: MIT */
/*
 * What executing (part of) a guest instruction came to. Never mixed with errno.
 */
#ifndef SOFTKVM_BASE_EXEC_H
#define SOFTKVM_BASE_EXEC_H

enum exec {
	EXEC_OK = 0,	/* done; the caller advances rip past the instruction */
	EXEC_END,	/* done, advance rip, but leave the block: mode, mapping or event state changed */
	EXEC_BRANCH,	/* done; rip already holds the next instruction */
	EXEC_FAULT,	/* an exception is queued in the vcpu; rip is still the faulting instruction's */
	EXEC_EXIT,	/* kvm_run is filled in: return to userspace, restart this instruction afterwards */
	EXEC_RETRY,	/* nothing (or a resumable part) done: handle requests, then execute again */
	EXEC_EFAULT,	/* the client's memory behind a memslot is not accessible: KVM_RUN fails with EFAULT */
	EXEC_UNHANDLED,	/* we cannot emulate this: KVM_EXIT_INTERNAL_ERROR with the bytes */
};

#endif

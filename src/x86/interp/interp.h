/* SPDX-License-Identifier: MIT */
/* Private state of the interpreter, one per vCPU from its first KVM_RUN. */
#ifndef SOFTKVM_X86_INTERP_H
#define SOFTKVM_X86_INTERP_H

#include "x86/interp/block.h"
#include "x86/interp/thunk.h"

struct interp {
	struct block_cache blocks;
	struct thunk_cache thunks;
	u32 generation;		/* resets so far */
	u32 pauses;		/* PAUSE retired: every so often the thread yields */
};

#endif

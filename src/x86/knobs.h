/* SPDX-License-Identifier: MIT */
/*
 * Numbers from the environment, read once per process: sizes of the engines' tables, and
 * switches for tests. Nothing a guest sees depends on them.
 */
#ifndef SOFTKVM_X86_KNOBS_H
#define SOFTKVM_X86_KNOBS_H

#include "base/types.h"

enum knob {
	KNOB_TLB,		/* entries of the software TLB in use */
	KNOB_DBT_CACHE,		/* KiB of translated code */
	KNOB_DBT_LINK,		/* blocks lead to one another */
	KNOB_DBT_UNLOCK,	/* programs do without LOCK where nobody can tell */
	KNOB_DBT_VERIFY,	/* every translated block is verified */
	NR_KNOBS,
};

u64 knob(enum knob k);	/* any thread */

#endif

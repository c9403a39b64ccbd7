/* SPDX-License-Identifier: MIT */
/*
 * Named places where a test makes something fail or behave otherwise:
 * SOFTKVM_INJECT=site,site=number,... read once per process.
 */
#ifndef SOFTKVM_BASE_INJECT_H
#define SOFTKVM_BASE_INJECT_H

#include "base/types.h"

enum inject_site {
	INJECT_DIRTY_RESET_LIMIT,	/* dirty_reset_limit=N: entries one KVM_RESET_DIRTY_RINGS consumes at most */
	INJECT_DIRTY_RESET_SLOW,	/* dirty_reset_slow=N: each entry takes it N nanoseconds more */
	INJECT_DIRTY_RESET_STRICT,	/* dirty_reset_strict: any signal ends it, as in KVM */
	INJECT_GMEM_LINK_FD,		/* gmem_link_fd: no descriptor for a link */
	INJECT_MOVE_CTX_STAGE2,		/* move_ctx_stage2: a context move fails after its checks */
	NR_INJECT_SITES
};

/* 0: not asked for. A site without a number has the value 1. */
u64 inject_value(enum inject_site site);

#endif

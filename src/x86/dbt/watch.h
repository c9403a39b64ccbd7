/* SPDX-License-Identifier: MIT */
/*
 * Looking at translated code from outside, when the environment asks for it: SOFTKVM_DBT_DUMP
 * (dump.c) and SOFTKVM_PERF_MAP (perfmap.c). Files are opened for each write: what is
 * written is rare, and no descriptor stays open in the client.
 */
#ifndef SOFTKVM_X86_DBT_WATCH_H
#define SOFTKVM_X86_DBT_WATCH_H

#include "x86/dbt/dbt.h"

/* Does a block with these bytes have to be dumped? */
bool dump_wanted(u64 va, u32 len);
/* starts: code offsets at which the nr instructions of the block begin, and where the last ends. bytes: the guest's. */
void dump_block(struct vcpu *vcpu, const struct dbt_block *b, const u8 *bytes, const u32 *starts, unsigned nr);

/* The code before the first block; a block. */
void perfmap_common(const struct dbt *d);
void perfmap_block(const struct dbt *d, const struct dbt_block *b);

/* A new file of this user's, in place of an old one; false after saying why not. */
bool report_create(const char *path, const char *why);
void report_append(const char *path, const char *text, size_t len);

#endif

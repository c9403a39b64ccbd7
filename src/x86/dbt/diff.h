/* SPDX-License-Identifier: MIT */
/* SOFTKVM_ENGINE=diff: both engines, compared after every block (diff.c). */
#ifndef SOFTKVM_X86_DBT_DIFF_H
#define SOFTKVM_X86_DBT_DIFF_H

#include "x86/dbt/dbt.h"

/* Read once: is this the engine asked for? */
bool diff_wanted(void);
int diff_create(struct vcpu *vcpu, struct dbt *d);	/* 0 or -1; sets d->diff */
void diff_destroy(struct dbt *d);
void diff_emit_common(struct dbt *d);
/* Cannot be executed twice: ends a block before it, and is a block by itself. */
bool diff_excludes(const ZydisDecodedInstruction *zi, const ZydisDecodedOperand *ops);
/* A block has been translated from these bytes. */
void diff_note_block(struct vcpu *vcpu, struct dbt_block *b, const u8 *bytes, unsigned total);
/* In place of d->enter(): what the block says about its exit. */
u32 diff_enter(struct vcpu *vcpu, struct dbt_block *b);

#endif

/* SPDX-License-Identifier: MIT */
/* SOFTKVM_DBT_VERIFY=1: every block is looked at before it is executed (verify.c). */
#ifndef SOFTKVM_X86_DBT_VERIFY_H
#define SOFTKVM_X86_DBT_VERIFY_H

#include "x86/dbt/dbt.h"

int dbt_verifier_create(struct vcpu *vcpu, struct dbt *d);	/* vcpu->arch.dbt is d; 0 or -1; sets d->verifier */
void dbt_verifier_destroy(struct dbt *d);
void dbt_verifier_reset(struct dbt *d);
/* The block whose code begins at offset begin. False: *why, and where is in the verifier. */
bool dbt_verify(struct vcpu *vcpu, struct dbt *d, const struct dbt_block *b, u32 begin, const char **why);
/* The same for one just emitted; a refusal ends the VM. */
bool dbt_verify_new(struct vcpu *vcpu, const struct dbt_block *b, u32 begin);

#endif

/* SPDX-License-Identifier: MIT */
/* MTRRs: kept for the guest to read back; memory types have no effect on us. */
#include <stdlib.h>

#include "x86/msr.h"

#define MSR_MTRRCAP 0xfe
#define MSR_MTRR_VAR_FIRST 0x200
#define MSR_MTRR_FIX_64K 0x250
#define MSR_MTRR_DEFTYPE 0x2ff
#define MTRR_VAR_PAIRS 8

static const u16 fixed_index[11] = {
	MSR_MTRR_FIX_64K, 0x258, 0x259,
	0x268, 0x269, 0x26a, 0x26b, 0x26c, 0x26d, 0x26e, 0x26f,
};

/* In a vCPU whose MTRRs were never written, a zero for reading. */
static u64 *mtrr_slot(struct vcpu *vcpu, u32 index)
{
	static struct mtrr_state zero;
	struct mtrr_state *m = vcpu->arch.msr.mtrr ? vcpu->arch.msr.mtrr : &zero;

	_Static_assert(ARRAY_SIZE(fixed_index) == ARRAY_SIZE(m->fixed), "one slot each");
	_Static_assert(2 * MTRR_VAR_PAIRS == ARRAY_SIZE(m->var), "base and mask");
	if (index == MSR_MTRR_DEFTYPE)
		return &m->deftype;
	if (index >= MSR_MTRR_VAR_FIRST && index < MSR_MTRR_VAR_FIRST + ARRAY_SIZE(m->var))
		return &m->var[index - MSR_MTRR_VAR_FIRST];
	for (unsigned i = 0; i < ARRAY_SIZE(fixed_index); i++)
		if (fixed_index[i] == index)
			return &m->fixed[i];
	return NULL;
}

/* UC, WC, WT, WP, WB */
static bool type_valid(u8 type)
{
	return type < 8 && (BIT(type) & 0x73);
}

static bool fixed_valid(u64 value)
{
	for (unsigned i = 0; i < 64; i += 8)
		if (!type_valid(value >> i))
			return false;
	return true;
}

static bool variable_valid(struct vcpu *vcpu, u32 index, u64 value)
{
	u64 reserved = vcpu->arch.maxphyaddr < 64 ? ~0ull << vcpu->arch.maxphyaddr : 0;

	if (index & 1)
		return !(value & (reserved | 0x7ff));
	return !(value & (reserved | 0xf00)) && type_valid(value);
}

static bool mtrr_valid(struct vcpu *vcpu, u32 index, u64 value)
{
	if (index == MSR_MTRR_DEFTYPE)
		return !(value & ~0xcffull) && type_valid(value);
	if (index >= MSR_MTRR_FIX_64K)
		return fixed_valid(value);
	return variable_valid(vcpu, index, value);
}

int mtrr_read(struct vcpu *vcpu, u32 index, u64 *value)
{
	const u64 *slot = mtrr_slot(vcpu, index);

	if (index == MSR_MTRRCAP) {
		*value = 0x500 | MTRR_VAR_PAIRS; /* fixed ranges, write combining */
		return 0;
	}
	if (!slot)
		return 1;
	*value = *slot;
	return 0;
}

int mtrr_write(struct vcpu *vcpu, u32 index, u64 value)
{
	struct mtrr_state **m = &vcpu->arch.msr.mtrr;

	if (!mtrr_slot(vcpu, index) || !mtrr_valid(vcpu, index, value))
		return 1;
	if (!*m && value)
		*m = calloc(1, sizeof(**m));
	if (!*m)
		return value != 0;
	*mtrr_slot(vcpu, index) = value;
	return 0;
}

/* SPDX-License-Identifier: MIT */
/*
 * Debug registers. The effective set (eff_dr, eff_dr7) is what the engine watches:
 * the guest's own, or a debugger's while KVM_GUESTDBG_USE_HW_BP is in force; the
 * guest then keeps reading and writing its own, without effect.
 */
#include <string.h>

#include "x86/debug.h"
#include "x86/mmu.h"

/* R/W field of breakpoint i in DR7 */
enum { BP_EXEC, BP_WRITE, BP_IO, BP_RW };

static bool hw_bp_by_debugger(const struct vcpu *vcpu)
{
	return vcpu->guest_debug.control & KVM_GUESTDBG_USE_HW_BP;
}

void update_effective_dr(struct vcpu *vcpu)
{
	struct vcpu_arch *a = &vcpu->arch;
	bool debugger = hw_bp_by_debugger(vcpu);
	u64 old_dr[4], old_dr7 = a->eff_dr7;

	memcpy(old_dr, a->eff_dr, sizeof(old_dr));
	for (int i = 0; i < 4; i++)
		a->eff_dr[i] = debugger ? vcpu->guest_debug.arch.debugreg[i] : a->dr[i];
	a->eff_dr7 = debugger ? vcpu->guest_debug.arch.debugreg[7] : a->dr7;
	/* Watched pages have no TLB entries: those filled before must go. */
	if (((old_dr7 | a->eff_dr7) & 0xff) &&
	    (old_dr7 != a->eff_dr7 || memcmp(old_dr, a->eff_dr, sizeof(old_dr))))
		mmu_flush_all(vcpu);
}

static u64 dr6_fixed(struct vcpu *vcpu)
{
	u64 fixed = DR6_RESET & ~(DR6_RTM | DR6_BUS_LOCK);

	if (!guest_cpuid_has(vcpu, 7, 0, CPUID_EBX, 11))
		fixed |= DR6_RTM;
	if (!guest_cpuid_has(vcpu, 7, 0, CPUID_ECX, 24))
		fixed |= DR6_BUS_LOCK;
	return fixed;
}

/* What MOV DR checks before it looks at the value: existence, privilege, general detect. */
static enum exec dr_access(struct vcpu *vcpu, unsigned nr)
{
	if (nr > 7 || ((nr == 4 || nr == 5) && (vcpu->arch.cr4 & X86_CR4_DE)))
		return queue_ud(vcpu);
	if (vcpu->arch.cpl)
		return queue_gp(vcpu, 0);
	if (vcpu->arch.eff_dr7 & DR7_GD)
		return queue_db(vcpu, DR6_BD);
	return EXEC_OK;
}

enum exec set_dr(struct vcpu *vcpu, unsigned nr, u64 value)
{
	struct vcpu_arch *a = &vcpu->arch;
	enum exec r = dr_access(vcpu, nr);

	if (r != EXEC_OK)
		return r;
	if (nr >= 4 && value >> 32)
		return queue_gp(vcpu, 0);
	switch (nr) {
	case 0: case 1: case 2: case 3:
		a->dr[nr] = value;
		break;
	case 4: case 6:
		a->dr6 = (value & (DR6_TRAP_BITS | DR6_RTM | DR6_BUS_LOCK)) | dr6_fixed(vcpu);
		break;
	default:
		a->dr7 = (value & 0xffff2bff) | DR7_RESET;
		break;
	}
	update_effective_dr(vcpu);
	return EXEC_OK;
}

enum exec get_dr(struct vcpu *vcpu, unsigned nr, u64 *value)
{
	enum exec r = dr_access(vcpu, nr);

	if (r != EXEC_OK)
		return r;
	if (nr < 4)
		*value = vcpu->arch.dr[nr];
	else
		*value = nr & 1 ? vcpu->arch.dr7 : vcpu->arch.dr6;
	return EXEC_OK;
}

static bool bp_enabled(u64 dr7, int i)
{
	return dr7 >> (2 * i) & 3;
}

static unsigned bp_kind(u64 dr7, int i)
{
	return dr7 >> (16 + 4 * i) & 3;
}

static unsigned bp_len(u64 dr7, int i)
{
	static const u8 len[4] = { 1, 2, 8, 4 };

	return len[dr7 >> (18 + 4 * i) & 3];
}

bool debug_check_code_bp(struct vcpu *vcpu, u64 *dr6)
{
	u64 dr7 = vcpu->arch.eff_dr7, hit = 0;
	gva_t rip;

	if (likely(!(dr7 & 0xff)) || (vcpu->arch.rflags & X86_EFLAGS_RF))
		return false;
	rip = linear_rip(vcpu);
	for (int i = 0; i < 4; i++)
		if (bp_enabled(dr7, i) && bp_kind(dr7, i) == BP_EXEC && vcpu->arch.eff_dr[i] == rip)
			hit |= BIT_ULL(i);
	*dr6 |= hit;
	return hit;
}

/* Bits of the breakpoints that [start, start + len) touches and whose kind is in kinds (a mask). */
static u64 bp_overlap(const struct vcpu *vcpu, u64 start, unsigned len, unsigned kinds)
{
	u64 dr7 = vcpu->arch.eff_dr7, hit = 0;

	for (int i = 0; i < 4; i++) {
		unsigned n = bp_len(dr7, i);
		u64 bp = vcpu->arch.eff_dr[i] & ~(u64)(n - 1);

		if (bp_enabled(dr7, i) && (kinds & BIT(bp_kind(dr7, i))) &&
		    (start - bp < n || bp - start < len))
			hit |= BIT_ULL(i);
	}
	return hit;
}

static bool trap_due(struct vcpu *vcpu, u64 hit)
{
	if (!hit)
		return false;
	vcpu->arch.db_trap = true;
	vcpu->arch.db_dr6 |= hit;
	return true;
}

bool debug_check_data_bp(struct vcpu *vcpu, gva_t va, unsigned len, bool write)
{
	if (likely(!(vcpu->arch.eff_dr7 & 0xff)) || !len)
		return false;
	return trap_due(vcpu, bp_overlap(vcpu, va, len, BIT(BP_RW) | (write ? BIT(BP_WRITE) : 0)));
}

bool debug_check_io_bp(struct vcpu *vcpu, u16 port, unsigned len)
{
	if (likely(!(vcpu->arch.eff_dr7 & 0xff)) || !(vcpu->arch.cr4 & X86_CR4_DE))
		return false;
	return trap_due(vcpu, bp_overlap(vcpu, port, len, BIT(BP_IO)));
}

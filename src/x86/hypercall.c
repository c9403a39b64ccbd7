/* SPDX-License-Identifier: MIT */
/*
 * KVM's own hypercalls: number in RAX, arguments in RBX, RCX, RDX, RSI, result in RAX.
 * Outside 64-bit mode all of them are 32 bits wide.
 */
#include <errno.h>
#include <sched.h>
#include <string.h>

#include <linux/kvm_para.h>

#include "host/host.h"
#include "kvm/trace.h"
#include "x86/hyperv.h"
#include "x86/irqchip.h"
#include "x86/pvclock.h"
#include "x86/xen.h"

#define HYPERCALL_BYTES 3	/* 0F 01 C1, 0F 01 D9 without prefixes */

struct hypercall {
	u64 nr, a[4];
	bool wide;		/* 64-bit mode */
	s64 ret;
};

static bool pv_has(const struct vcpu *vcpu, unsigned feature)
{
	return !vcpu->arch.pv_enforce || (vcpu->arch.pv_features & BIT_ULL(feature));
}

static enum exec hc_vapic_poll_irq(struct vcpu *vcpu, struct hypercall *hc)
{
	hc->ret = 0;
	return EXEC_OK;
}

/* A spinning or polling vCPU gives its host CPU away; the scheduler picks the heir. */
static void yield_to(struct vcpu *vcpu, u64 apic_id)
{
	sched_yield();
}

static enum exec hc_kick_cpu(struct vcpu *vcpu, struct hypercall *hc)
{
	if (!pv_has(vcpu, KVM_FEATURE_PV_UNHALT))
		return EXEC_OK;
	if (arch_irqchip_in_kernel(vcpu->vm))
		lapic_pv_kick(vcpu->vm, (u32)hc->a[1]);
	yield_to(vcpu, hc->a[1]);
	hc->ret = 0;
	return EXEC_OK;
}

static enum exec hc_clock_pairing(struct vcpu *vcpu, struct hypercall *hc)
{
	struct kvm_clock_pairing pair;
	struct realtime_pair now;

	if (hc->a[1] != KVM_CLOCK_PAIRING_WALLCLOCK) {
		hc->ret = -KVM_EOPNOTSUPP;
		return EXEC_OK;
	}
	now = realtime_and_tsc();
	memset(&pair, 0, sizeof(pair));
	pair.sec = now.realtime_ns / 1000000000;
	pair.nsec = now.realtime_ns % 1000000000;
	pair.tsc = guest_tsc_from_host(vcpu, now.host_tsc);
	hc->ret = 0;
	if (vcpu_write_guest(vcpu, hc->a[0], &pair, sizeof(pair))) {
		if (host_kicked) {
			host_kicked = false;
			return EXEC_RETRY;
		}
		hc->ret = -KVM_EFAULT;
	}
	return EXEC_OK;
}

static enum exec hc_send_ipi(struct vcpu *vcpu, struct hypercall *hc)
{
	if (!pv_has(vcpu, KVM_FEATURE_PV_SEND_IPI))
		return EXEC_OK;
	if (!arch_irqchip_in_kernel(vcpu->vm))
		hc->ret = -KVM_EOPNOTSUPP;
	else
		hc->ret = lapic_send_pv_ipi(vcpu->vm, hc->a[0], hc->a[1], (u32)hc->a[2], hc->a[3],
					    hc->wide);
	return EXEC_OK;
}

static enum exec hc_sched_yield(struct vcpu *vcpu, struct hypercall *hc)
{
	if (!pv_has(vcpu, KVM_FEATURE_PV_SCHED_YIELD))
		return EXEC_OK;
	yield_to(vcpu, hc->a[0]);
	hc->ret = 0;
	return EXEC_OK;
}

/* How long the instruction at rip is, so that the client's answer can step over it. */
static unsigned hypercall_length(struct vcpu *vcpu)
{
	u8 bytes[15];
	unsigned n = fetch_insn_bytes(vcpu, bytes), i = 0;

	while (i < n && bytes[i] != 0x0f)
		i++;
	return i < n && i + HYPERCALL_BYTES <= 15 ? i + HYPERCALL_BYTES : HYPERCALL_BYTES;
}

void hypercall_wait_for_userspace(struct vcpu *vcpu, enum hypercall_exit kind)
{
	vcpu->arch.hypercall_exit = kind;
	vcpu->arch.hypercall_rip = linear_rip(vcpu);
	vcpu->arch.hypercall_len = hypercall_length(vcpu);
}

static enum exec hc_map_gpa_range(struct vcpu *vcpu, struct hypercall *hc)
{
	struct kvm_run *run = vcpu->run;
	u64 gpa = hc->a[0], pages = hc->a[1], gfn = gpa >> PAGE_SHIFT;

	if (!(vcpu->vm->arch.hypercall_exit_enabled & BIT_ULL(KVM_HC_MAP_GPA_RANGE)))
		return EXEC_OK;
	if ((gpa & ~PAGE_MASK) || !pages || gfn + pages <= gfn) {
		hc->ret = -KVM_EINVAL;
		return EXEC_OK;
	}
	run->exit_reason = named_exit(KVM_EXIT_HYPERCALL);
	memset(&run->hypercall, 0, sizeof(run->hypercall));
	run->hypercall.nr = KVM_HC_MAP_GPA_RANGE;
	run->hypercall.args[0] = gpa;
	run->hypercall.args[1] = pages;
	run->hypercall.args[2] = hc->a[2];
	run->hypercall.longmode = hc->wide;
	hypercall_wait_for_userspace(vcpu, HYPERCALL_EXIT_KVM);
	return EXEC_EXIT;
}

/* A handler that leaves ret alone answers -KVM_ENOSYS. */
static enum exec (*const hypercalls[])(struct vcpu *, struct hypercall *) = {
	[KVM_HC_VAPIC_POLL_IRQ] = hc_vapic_poll_irq,
	[KVM_HC_KICK_CPU] = hc_kick_cpu,
	[KVM_HC_CLOCK_PAIRING] = hc_clock_pairing,
	[KVM_HC_SEND_IPI] = hc_send_ipi,
	[KVM_HC_SCHED_YIELD] = hc_sched_yield,
	[KVM_HC_MAP_GPA_RANGE] = hc_map_gpa_range,
};

static void hypercall_fetch(struct vcpu *vcpu, struct hypercall *hc)
{
	const u64 *r = vcpu->arch.regs;
	u64 mask;

	hc->wide = in_64bit_mode(vcpu);
	mask = hc->wide ? ~0ull : 0xffffffffull;
	hc->nr = r[RAX] & mask;
	hc->a[0] = r[RBX] & mask;
	hc->a[1] = r[RCX] & mask;
	hc->a[2] = r[RDX] & mask;
	hc->a[3] = r[RSI] & mask;
	hc->ret = -KVM_ENOSYS;
}

static void hypercall_result(struct vcpu *vcpu, u64 ret)
{
	vcpu->stat.hypercalls++;
	vcpu->arch.regs[RAX] = in_64bit_mode(vcpu) ? ret : (u32)ret;
}

enum exec emulate_hypercall(struct vcpu *vcpu)
{
	struct hypercall hc;
	enum exec r = EXEC_OK;

	if (xen_hypercall_enabled(vcpu->vm))
		return xen_hypercall(vcpu);
	if (hyperv_hypercall_enabled(vcpu))
		return hyperv_hypercall(vcpu);
	hypercall_fetch(vcpu, &hc);
	trace(kvm_hypercall, vcpu->id, hc.nr, hc.a[0], hc.a[1], hc.a[2], hc.a[3]);
	if (vcpu->arch.cpl)
		hc.ret = -KVM_EPERM;
	else if (hc.nr < ARRAY_SIZE(hypercalls) && hypercalls[hc.nr])
		r = hypercalls[hc.nr](vcpu, &hc);
	if (r != EXEC_OK)
		return r;
	hypercall_result(vcpu, hc.ret);
	return EXEC_OK;
}

void hypercall_complete_userspace(struct vcpu *vcpu)
{
	struct vcpu_arch *a = &vcpu->arch;
	enum hypercall_exit kind = a->hypercall_exit;

	if (!kind)
		return;
	a->hypercall_exit = HYPERCALL_EXIT_NONE;
	if (kind == HYPERCALL_EXIT_SYNDBG) {
		hyperv_syndbg_complete(vcpu);
		return;
	}
	/* The client moved the vCPU elsewhere (reset, debugger): nothing to finish. */
	if (linear_rip(vcpu) != a->hypercall_rip)
		return;
	if (kind == HYPERCALL_EXIT_HYPERV)
		hyperv_hypercall_result(vcpu, vcpu->run->hyperv.u.hcall.result);
	else if (kind == HYPERCALL_EXIT_XEN)
		a->regs[RAX] = vcpu->run->xen.u.hcall.result;
	else
		hypercall_result(vcpu, vcpu->run->hypercall.ret);
	a->rip = (a->rip + a->hypercall_len) & ip_mask(vcpu);
	a->interrupt_shadow = 0;
	vcpu_set_rflags(vcpu, a->rflags & ~(u64)X86_EFLAGS_RF);
}

/* SPDX-License-Identifier: MIT */
/*
 * Hyper-V's hypercalls. The control word names the call; its input lies in guest memory ("slow") or in registers
 * ("fast": two of them, and for some calls XMM0-5, twelve halves more).
 *
 *  1. Input is read completely before anything is done: an access aborted by a kick repeats the
 *     instruction.
 *  2. A flush of other vCPUs' TLBs has happened when the guest goes on: targets get KVM_REQ_TLB_FLUSH at once, and
 *     the caller's KVM_REQ_HV_FLUSH, taken before its next instruction, waits outside guest mode until each
 *     target has passed a boundary. So two callers can wait for each other.
 *  3. Whose TLB it is, is all that is looked at: ranges and address spaces are flushed as a whole.
 */
#include <sched.h>
#include <string.h>

#include "kvm/trace.h"
#include "x86/hyperv/hyperv_internal.h"

enum hv_status {
	HV_SUCCESS = 0, HV_INVALID_CODE = 2, HV_INVALID_INPUT = 3, HV_INVALID_ALIGNMENT = 4,
	HV_INVALID_PARAMETER = 5, HV_ACCESS_DENIED = 6, HV_OPERATION_DENIED = 8, HV_INVALID_PORT_ID = 17,
	/* none of theirs */
	HV_TO_USERSPACE = 0x10000,	/* the client shall answer */
	HV_RAISE_UD = 0x20000,
};

enum hv_code {
	HV_FLUSH_SPACE = 0x02, HV_FLUSH_LIST = 0x03, HV_LONG_SPIN_WAIT = 0x08, HV_SEND_IPI = 0x0b,
	HV_FLUSH_SPACE_EX = 0x13, HV_FLUSH_LIST_EX = 0x14, HV_SEND_IPI_EX = 0x15,
	HV_POST_MESSAGE = 0x5c, HV_SIGNAL_EVENT = 0x5d,
	HV_POST_DEBUG_DATA = 0x69, HV_RETRIEVE_DEBUG_DATA = 0x6a, HV_RESET_DEBUG_SESSION = 0x6b,
	HV_EXT_FIRST = 0x8001, HV_EXT_LAST = 0x8041,
};

/* The control word */
#define HV_FAST BIT(16)
#define HV_VAR_COUNT(c) ((c) >> 17 & 0x3ff)
#define HV_REP_COUNT(c) ((c) >> 32 & 0xfff)
#define HV_REP_START(c) ((c) >> 48 & 0xfff)
#define HV_REP_DONE_SHIFT 32
#define HV_CONTROL_RESERVED 0xf000f000f8000000ull

#define HV_XMM_HALVES 12
#define HV_BANKS 64			/* of 64 virtual processors each, in a sparse set */
#define HV_FLUSH_ALL_PROCESSORS BIT(0)
#define HV_SET_SPARSE 0			/* formats of a set; the other is "all" */
#define HV_SET_ALL 1
#define HV_FLUSH_ENTRIES_READ 15	/* a longer list is not looked at */

struct hcall {
	u64 control, in, out;		/* in, out: addresses, or the first two words of input */
	u16 code, var_count, rep_count, rep_start;
	bool fast;
	bool unread;			/* input could not be read */
	u32 used;			/* input consumed: bytes at in, or XMM halves */
	u64 xmm[HV_XMM_HALVES];
};

/* Virtual processors by index. */
struct vp_set {
	bool all;
	u64 valid;			/* bit per bank present */
	u64 bank[HV_BANKS];		/* those present, in order */
};

/* ---- input ------------------------------------------------------------------------ */

static bool read_memory(struct vcpu *vcpu, struct hcall *hc, gpa_t gpa, void *to, size_t len)
{
	hc->unread = vcpu_read_guest(vcpu, gpa, to, len);
	return !hc->unread;
}

/* The next nr words of input. False: not there. */
static bool next_words(struct vcpu *vcpu, struct hcall *hc, u64 *words, u32 nr)
{
	if (!hc->fast) {
		if (!read_memory(vcpu, hc, hc->in + hc->used, words, nr * sizeof(*words)))
			return false;
		hc->used += nr * sizeof(*words);
		return true;
	}
	if (nr > HV_XMM_HALVES - min(hc->used, (u32)HV_XMM_HALVES))
		return false;
	memcpy(words, hc->xmm + hc->used, nr * sizeof(*words));
	hc->used += nr;
	return true;
}

/* The first words: of a fast call, in and out precede the XMM registers. */
static bool first_words(struct vcpu *vcpu, struct hcall *hc, u64 *words, u32 nr)
{
	if (!hc->fast)
		return next_words(vcpu, hc, words, nr);
	words[0] = hc->in;
	words[1] = hc->out;
	return next_words(vcpu, hc, words + 2, nr - 2);
}

static bool read_banks(struct vcpu *vcpu, struct hcall *hc, struct vp_set *set)
{
	return hc->var_count <= HV_BANKS && next_words(vcpu, hc, set->bank, hc->var_count);
}

static bool vp_set_has(const struct vp_set *set, u32 vp)
{
	u32 bank = vp / 64;
	unsigned i;

	if (set->all)
		return true;
	if (bank >= HV_BANKS || !(set->valid & BIT_ULL(bank)))
		return false;
	i = __builtin_popcountll(set->valid & (BIT_ULL(bank) - 1));
	return set->bank[i] & BIT_ULL(vp % 64);
}

/* ---- TLB flush ----------------------------------------------------------------------- */

static void flush_set(struct vcpu *vcpu, const struct vp_set *set)
{
	u64 *mask = hv_vcpu(vcpu)->flush_mask;
	struct vcpu *target;
	bool wait = false;
	u32 i;

	vm_for_each_vcpu(vcpu->vm, target, i) {
		if (!vp_set_has(set, hv_vp_index(target)))
			continue;
		vcpu_make_request(target, KVM_REQ_TLB_FLUSH);
		if (target == vcpu || i >= KVM_ABI_MAX_VCPUS)
			continue;
		mask[i / 64] |= BIT_ULL(i % 64);
		wait = true;
	}
	if (wait)
		vcpu_make_request(vcpu, KVM_REQ_HV_FLUSH);
}

/* Their contents do not matter, but whether they are there. */
static bool read_ranges(struct vcpu *vcpu, struct hcall *hc)
{
	u64 ranges[HV_FLUSH_ENTRIES_READ];

	if (hc->rep_count > HV_FLUSH_ENTRIES_READ)
		return true;
	return next_words(vcpu, hc, ranges, hc->rep_count);
}

static u64 flush_done(const struct hcall *hc)
{
	return HV_SUCCESS | (u64)hc->rep_count << HV_REP_DONE_SHIFT;
}

static u64 hc_flush(struct vcpu *vcpu, struct hcall *hc)
{
	u64 in[3];	/* address space, flags, processors */
	struct vp_set set = { .valid = 1 };

	if (!first_words(vcpu, hc, in, 3) || !read_ranges(vcpu, hc))
		return HV_INVALID_INPUT;
	/* Windows Server 2012 is known to name nobody and to mean everybody. */
	set.all = (in[1] & HV_FLUSH_ALL_PROCESSORS) || !in[2];
	set.bank[0] = in[2];
	flush_set(vcpu, &set);
	return flush_done(hc);
}

static u64 hc_flush_ex(struct vcpu *vcpu, struct hcall *hc)
{
	u64 in[4];	/* address space, flags, format of the set, its valid banks */
	struct vp_set set;

	if (!first_words(vcpu, hc, in, 4))
		return HV_INVALID_INPUT;
	set.valid = in[3];
	set.all = in[2] != HV_SET_SPARSE;
	if (hc->var_count != __builtin_popcountll(set.valid))
		return HV_INVALID_INPUT;
	if (!set.all && !hc->var_count)
		return flush_done(hc);
	if (set.all)
		hc->used += hc->var_count * (hc->fast ? 1 : sizeof(u64));
	else if (!read_banks(vcpu, hc, &set))
		return HV_INVALID_INPUT;
	if (!read_ranges(vcpu, hc))
		return HV_INVALID_INPUT;
	flush_set(vcpu, &set);
	return flush_done(hc);
}

/* ---- interrupts ------------------------------------------------------------------------- */

static u64 send_ipi(struct vcpu *vcpu, u32 vector, const struct vp_set *set)
{
	struct vcpu *target;
	u32 i;

	if (vector < HV_FIRST_VECTOR || vector > 0xff)
		return HV_INVALID_INPUT;
	vm_for_each_vcpu(vcpu->vm, target, i)
		if (vp_set_has(set, hv_vp_index(target)))
			lapic_deliver_fixed(target, vector);
	return HV_SUCCESS;
}

static u64 hc_send_ipi(struct vcpu *vcpu, struct hcall *hc)
{
	u64 in[2];	/* vector, processors */
	struct vp_set set = { .valid = 1 };

	if (!vcpu->arch.apic || !first_words(vcpu, hc, in, 2))
		return HV_INVALID_INPUT;
	/* Only in registers are the reserved bits looked at. */
	if (hc->fast && in[0] >> 32)
		return HV_INVALID_INPUT;
	set.bank[0] = in[1];
	return send_ipi(vcpu, in[0], &set);
}

static u64 hc_send_ipi_ex(struct vcpu *vcpu, struct hcall *hc)
{
	u64 in[3];	/* vector, format of the set, its valid banks */
	struct vp_set set;

	if (!vcpu->arch.apic || !first_words(vcpu, hc, in, 3))
		return HV_INVALID_INPUT;
	set.all = in[1] == HV_SET_ALL;
	set.valid = in[2];
	if (hc->var_count != __builtin_popcountll(set.valid))
		return HV_INVALID_INPUT;
	if (!set.all && !hc->var_count)
		return HV_SUCCESS;
	if (!set.all && !read_banks(vcpu, hc, &set))
		return HV_INVALID_INPUT;
	return send_ipi(vcpu, in[0], &set);
}

/* ---- the rest ----------------------------------------------------------------------------- */

static u64 hc_spin_wait(struct vcpu *vcpu, struct hcall *hc)
{
	sched_yield();
	return HV_SUCCESS;
}

static u64 hc_post_message(struct vcpu *vcpu, struct hcall *hc)
{
	return atomic_load(&hv_vcpu(vcpu)->synic.active) ? HV_TO_USERSPACE : HV_INVALID_INPUT;
}

static u64 hc_signal_event(struct vcpu *vcpu, struct hcall *hc)
{
	u64 id = hc->in;

	if (!hc->fast && ((hc->in & 7) || !read_memory(vcpu, hc, hc->in, &id, sizeof(id))))
		return HV_INVALID_ALIGNMENT;
	/* Bits 32-47: a flag number, which nobody has. */
	if (!(id & 0xffff00000000ull)) {
		if (id & ~(u64)KVM_HYPERV_CONN_ID_MASK)
			return HV_INVALID_INPUT;
		if (hv_conn_signal(vcpu->vm, id))
			return HV_SUCCESS;
	}
	/* The client may know that connection; what it gets is the number, not the address. */
	hc->in = id;
	return hc_post_message(vcpu, hc);
}

static bool syndbg_enabled(struct vcpu *vcpu)
{
	return hv_vcpu(vcpu)->cpuid.syndbg_eax & HV_SYNDBG_KERNEL_DEBUGGING;
}

static u64 hc_debug(struct vcpu *vcpu, struct hcall *hc)
{
	struct hv_vm *hv = hv_vm(vcpu->vm);
	u64 options;

	if (hc->fast && hc->code != HV_RESET_DEBUG_SESSION)
		return HV_INVALID_PARAMETER;
	if (!syndbg_enabled(vcpu))
		return HV_INVALID_CODE;
	pthread_mutex_lock(&hv->lock);
	options = hv->syndbg.options;
	pthread_mutex_unlock(&hv->lock);
	return options & HV_SYNDBG_USE_HCALLS ? HV_TO_USERSPACE : HV_OPERATION_DENIED;
}

static u64 hc_extended(struct vcpu *vcpu, struct hcall *hc)
{
	return hc->fast ? HV_INVALID_PARAMETER : HV_TO_USERSPACE;
}

/* ---- the table ------------------------------------------------------------------------------ */

/* What a call may carry. */
#define VAR BIT(0)	/* a variable header */
#define REP BIT(1)	/* repetitions: it must, from 0 on */
#define ANY BIT(2)	/* whatever; the client will look */
#define XMM BIT(3)	/* input in XMM registers, if fast */

static const struct hcall_row {
	u16 first, last;
	u32 flags;
	u32 ebx;		/* of HV_CPUID_FEATURES that give it to the guest; 0: see enlightenments */
	u32 eax;		/* of HV_CPUID_ENLIGHTENMENTS, all of them */
	u64 (*fn)(struct vcpu *vcpu, struct hcall *hc);
} rows[] = {
#define FLUSH HV_REMOTE_TLB_FLUSH_RECOMMENDED
#define IPI HV_CLUSTER_IPI_RECOMMENDED
#define EX HV_EX_PROCESSOR_MASKS_RECOMMENDED
	{ HV_FLUSH_SPACE, HV_FLUSH_SPACE, XMM, 0, FLUSH, hc_flush },
	{ HV_FLUSH_LIST, HV_FLUSH_LIST, REP | XMM, 0, FLUSH, hc_flush },
	{ HV_LONG_SPIN_WAIT, HV_LONG_SPIN_WAIT, 0, 0, 0, hc_spin_wait },
	{ HV_SEND_IPI, HV_SEND_IPI, 0, 0, IPI, hc_send_ipi },
	{ HV_FLUSH_SPACE_EX, HV_FLUSH_SPACE_EX, VAR | XMM, 0, FLUSH | EX, hc_flush_ex },
	{ HV_FLUSH_LIST_EX, HV_FLUSH_LIST_EX, VAR | REP | XMM, 0, FLUSH | EX, hc_flush_ex },
	{ HV_SEND_IPI_EX, HV_SEND_IPI_EX, VAR | XMM, 0, IPI | EX, hc_send_ipi_ex },
	{ HV_POST_MESSAGE, HV_POST_MESSAGE, 0, HV_POST_MESSAGES, 0, hc_post_message },
	{ HV_SIGNAL_EVENT, HV_SIGNAL_EVENT, 0, HV_SIGNAL_EVENTS, 0, hc_signal_event },
	{ HV_POST_DEBUG_DATA, HV_RESET_DEBUG_SESSION, ANY, HV_DEBUGGING, 0, hc_debug },
	{ HV_EXT_FIRST, HV_EXT_LAST, ANY, HV_EXTENDED_HYPERCALLS, 0, hc_extended },
};

static const struct hcall_row *row_find(u16 code)
{
	for (unsigned i = 0; i < ARRAY_SIZE(rows); i++)
		if (code >= rows[i].first && code <= rows[i].last)
			return &rows[i];
	return NULL;
}

static bool guest_may(struct vcpu *vcpu, const struct hcall_row *row)
{
	const struct hv_vcpu *hv = hv_vcpu(vcpu);

	if (!hv->enforce_cpuid)
		return true;
	if (row->fn == hc_spin_wait)
		return hv->cpuid.enlightenments_ebx && hv->cpuid.enlightenments_ebx != ~0u;
	/* Without a debugger there are no such calls, rather than no right to them. */
	if (row->fn == hc_debug && !syndbg_enabled(vcpu))
		return true;
	return (hv->cpuid.features_ebx & row->ebx) == row->ebx &&
	       (hv->cpuid.enlightenments_eax & row->eax) == row->eax;
}

static bool shape_fits(const struct hcall_row *row, const struct hcall *hc)
{
	if (row->flags & ANY)
		return true;
	if (hc->var_count && !(row->flags & VAR))
		return false;
	if (row->flags & REP)
		return hc->rep_count && !hc->rep_start;
	return !hc->rep_count && !hc->rep_start;
}

static bool xmm_denied(struct vcpu *vcpu)
{
	const struct hv_vcpu *hv = hv_vcpu(vcpu);

	return hv->enforce_cpuid && !(hv->cpuid.features_edx & HV_HYPERCALL_XMM_INPUT);
}

static void hcall_fetch(struct vcpu *vcpu, struct hcall *hc)
{
	const u64 *r = vcpu->arch.regs;

	if (in_64bit_mode(vcpu)) {
		hc->control = r[RCX];
		hc->in = r[RDX];
		hc->out = r[R8];
	} else {
		hc->control = r[RDX] << 32 | (u32)r[RAX];
		hc->in = r[RBX] << 32 | (u32)r[RCX];
		hc->out = r[RDI] << 32 | (u32)r[RSI];
	}
	hc->code = hc->control;
	hc->var_count = HV_VAR_COUNT(hc->control);
	hc->rep_count = HV_REP_COUNT(hc->control);
	hc->rep_start = HV_REP_START(hc->control);
	hc->fast = hc->control & HV_FAST;
	hc->used = 0;
	hc->unread = false;
	for (unsigned i = 0; i < HV_XMM_HALVES; i++)
		memcpy(&hc->xmm[i], vcpu->arch.fpu.ymm[i / 2] + i % 2 * 8, 8);
}

void hyperv_hypercall_result(struct vcpu *vcpu, u64 result)
{
	u64 *r = vcpu->arch.regs;

	vcpu->stat.hypercalls++;
	if (in_64bit_mode(vcpu)) {
		r[RAX] = result;
		return;
	}
	r[RDX] = result >> 32;
	r[RAX] = (u32)result;
}

static enum exec exit_to_userspace(struct vcpu *vcpu, const struct hcall *hc)
{
	struct kvm_run *run = vcpu->run;

	run->exit_reason = named_exit(KVM_EXIT_HYPERV);
	memset(&run->hyperv, 0, sizeof(run->hyperv));
	run->hyperv.type = KVM_EXIT_HYPERV_HCALL;
	run->hyperv.u.hcall.input = hc->control;
	run->hyperv.u.hcall.params[0] = hc->in;
	run->hyperv.u.hcall.params[1] = hc->out;
	hypercall_wait_for_userspace(vcpu, HYPERCALL_EXIT_HYPERV);
	return EXEC_EXIT;
}

static u64 hcall_run(struct vcpu *vcpu, const struct hcall_row *row, struct hcall *hc)
{
	if (row && !guest_may(vcpu, row))
		return HV_ACCESS_DENIED;
	if (hc->control & HV_CONTROL_RESERVED)
		return HV_INVALID_INPUT;
	if (!row)
		return HV_INVALID_CODE;
	if (hc->fast && (row->flags & XMM) && xmm_denied(vcpu))
		return HV_RAISE_UD;
	return shape_fits(row, hc) ? row->fn(vcpu, hc) : HV_INVALID_INPUT;
}

bool hyperv_hypercall_enabled(const struct vcpu *vcpu)
{
	const struct hv_vcpu *hv = hv_vcpu(vcpu);

	return hv && hv->enabled && atomic_load(&hv_vm(vcpu->vm)->guest_os_id);
}

enum exec hyperv_hypercall(struct vcpu *vcpu)
{
	struct hcall hc;
	u64 result;

	if (vcpu->arch.cpl || !vcpu->arch.protected_mode)
		return queue_ud(vcpu);
	hcall_fetch(vcpu, &hc);
	trace(kvm_hypercall, vcpu->id, hc.code, hc.control, hc.in, hc.out, 0);
	result = hcall_run(vcpu, row_find(hc.code), &hc);
	if (unlikely(hc.unread && host_kicked)) {
		host_kicked = false;
		return EXEC_RETRY;
	}
	if (result == HV_RAISE_UD)
		return queue_ud(vcpu);
	if (result == HV_TO_USERSPACE)
		return exit_to_userspace(vcpu, &hc);
	hyperv_hypercall_result(vcpu, result);
	return EXEC_OK;
}

/* SPDX-License-Identifier: MIT */
/*
 * Exceptions, interrupts, NMIs: queueing, merging, delivery through the IVT or IDT.
 *
 * A fault inside an instruction queues an exception (exception.pending); the run
 * loop delivers it before the next instruction. While it is being delivered
 * it is `injected`, and a fault met meanwhile merges with it.
 *
 *  1. Delivery is all or nothing: everything that can fault (gate, segments, TSS,
 *     the frame, accessed bits) comes before the first register changes.
 *  2. When delivery cannot go on for a reason that is not the guest's (EXEC_RETRY,
 *     EXEC_EFAULT), the event stays injected and is delivered again later.
 *  3. CR2 and DR6 change when the exception is delivered, not when it is queued.
 *  4. arch.irq_window: an interrupt waits for IF, and whoever sets IF tells the run loop.
 */
#include <string.h>

#include "kvm/trace.h"
#include "x86/irqchip.h"
#include "x86/ops/descriptor.h"
#include "x86/smm.h"

#define DR6_FIXED_1 0xfffe0ff0ull
#define DR6_ACTIVE_LOW_RTM 0x00010000ull
#define DR6_TRAPS 0xfull
#define DR7_GD_BIT BIT(13)

/* ---- queueing ------------------------------------------------------------------ */

enum exception_class { CLASS_BENIGN, CLASS_CONTRIBUTORY, CLASS_PAGE_FAULT };

static enum exception_class exception_class(u8 vector)
{
	switch (vector) {
	case PF_VECTOR:
		return CLASS_PAGE_FAULT;
	case DE_VECTOR: case TS_VECTOR: case NP_VECTOR: case SS_VECTOR: case GP_VECTOR:
		return CLASS_CONTRIBUTORY;
	default:
		return CLASS_BENIGN;
	}
}

static bool makes_double_fault(u8 first, u8 second)
{
	enum exception_class c1 = exception_class(first), c2 = exception_class(second);

	return (c1 == CLASS_CONTRIBUTORY && c2 == CLASS_CONTRIBUTORY) ||
	       (c1 == CLASS_PAGE_FAULT && c2 != CLASS_BENIGN);
}

static enum exec queue_triple_fault(struct vcpu *vcpu)
{
	vcpu->arch.exception = (struct pending_exception){ 0 };
	vcpu_make_request(vcpu, KVM_REQ_TRIPLE_FAULT);
	return EXEC_FAULT;
}

static enum exec queue(struct vcpu *vcpu, struct pending_exception new)
{
	struct pending_exception *e = &vcpu->arch.exception;

	new.pending = true;
	if (e->pending || e->injected) {
		if (e->vector == DF_VECTOR)
			return queue_triple_fault(vcpu);
		if (makes_double_fault(e->vector, new.vector)) {
			/* The second page fault has left its address behind. */
			if (new.vector == PF_VECTOR)
				vcpu->arch.cr2 = new.payload;
			new = (struct pending_exception){
				.pending = true, .vector = DF_VECTOR, .has_error_code = true,
			};
		}
	}
	*e = new;
	return EXEC_FAULT;
}

enum exec queue_exception(struct vcpu *vcpu, u8 vector)
{
	return queue(vcpu, (struct pending_exception){ .vector = vector });
}

enum exec queue_exception_e(struct vcpu *vcpu, u8 vector, u32 error_code)
{
	return queue(vcpu, (struct pending_exception){
		.vector = vector, .has_error_code = true, .error_code = error_code,
	});
}

enum exec queue_page_fault(struct vcpu *vcpu, gva_t va, u32 error_code)
{
	return queue(vcpu, (struct pending_exception){
		.vector = PF_VECTOR, .has_error_code = true, .error_code = error_code,
		.has_payload = true, .payload = va,
	});
}

enum exec queue_db(struct vcpu *vcpu, u64 dr6_bits)
{
	return queue(vcpu, (struct pending_exception){
		.vector = DB_VECTOR, .has_payload = true, .payload = dr6_bits,
	});
}

/* ---- window ---------------------------------------------------------------------- */

bool interrupt_allowed(const struct vcpu *vcpu)
{
	return (vcpu->arch.rflags & X86_EFLAGS_IF) && !vcpu->arch.interrupt_shadow;
}

enum exec rflags_written(struct vcpu *vcpu, u64 old)
{
	u64 new = vcpu->arch.rflags, changed = old ^ new;

	if (!(changed & (X86_EFLAGS_IF | X86_EFLAGS_TF | X86_EFLAGS_AC)) && !(new & X86_EFLAGS_TF))
		return EXEC_OK;
	if ((new & X86_EFLAGS_TF) || ((new & X86_EFLAGS_IF) && vcpu->arch.irq_window))
		vcpu_make_request(vcpu, KVM_REQ_EVENT);
	return EXEC_END;
}

void nmi_unblock(struct vcpu *vcpu)
{
	if (!vcpu->arch.nmi_masked)
		return;
	vcpu->arch.nmi_masked = false;
	if (atomic_load(&vcpu->arch.nmi_pending))
		vcpu_make_request(vcpu, KVM_REQ_EVENT);
}

/* ---- real mode ------------------------------------------------------------------------ */

/* Also vm86 with a redirected INT n: then paging and a linear base of 0. */
enum exec deliver_real(struct vcpu *vcpu, u8 vector, u64 flags_image, u64 clear)
{
	struct vcpu_arch *a = &vcpu->arch;
	u64 base = a->vm86 ? 0 : a->idt.base, sp;
	u64 vals[3] = { flags_image, a->seg[SEG_CS].selector, a->rip };
	struct stack_ref st = stack_current(vcpu);
	u16 entry[2];
	enum exec r;

	if (!a->vm86 && vector * 4u + 3 > a->idt.limit)
		return queue_gp(vcpu, vector * 8u + 2);
	r = mem_read(vcpu, (u32)(base + vector * 4), entry, 4,
		     a->vm86 ? mmu_data_access(vcpu, MMU_READ) : MMU_READ | MMU_IMPLICIT);
	if (r == EXEC_OK)
		r = stack_frame_push(vcpu, &st, 2, vals, 3, &sp);
	if (r != EXEC_OK)
		return r;
	stack_set_sp(vcpu, sp, st.mask);
	a->seg[SEG_CS] = segment_real(vcpu, &a->seg[SEG_CS], entry[1]);
	a->rip = entry[0];
	a->rflags &= ~clear;
	vcpu_update_mode(vcpu);
	return EXEC_BRANCH;
}

/* ---- IDT ----------------------------------------------------------------------------------- */

/* One delivery on its way. */
struct delivery {
	u8 vector;
	enum event_type type;
	bool has_error;
	u32 error_code;
	u32 ext;
	/* gate */
	u8 gate_type, ist;
	u16 selector;
	u64 offset;
	/* where it goes */
	struct segment cs;
	unsigned cpl;		/* of the handler */
	bool inner;		/* to a more privileged ring */
	unsigned width;		/* of the pushed values */
	u64 flags;		/* image pushed */
};

static bool is_soft(const struct delivery *d)
{
	return d->type == EVENT_SOFT_INT || d->type == EVENT_SOFT_EXC;
}

static enum exec gate_fault(struct vcpu *vcpu, const struct delivery *d, u8 vector)
{
	return queue_exception_e(vcpu, vector, d->vector * 8u + 2 + d->ext);
}

static bool gate_type_valid(const struct vcpu *vcpu, unsigned type)
{
	u32 legacy = BIT(DESC_TASK_GATE) | BIT(DESC_INT16) | BIT(DESC_TRAP16);
	u32 any = BIT(DESC_INT32) | BIT(DESC_TRAP32);

	return (any | (vcpu->arch.long_mode ? 0 : legacy)) >> type & 1;
}

static enum exec read_gate(struct vcpu *vcpu, struct delivery *d)
{
	unsigned size = vcpu->arch.long_mode ? 16 : 8;
	u64 gate[2] = { 0, 0 };
	enum exec r;

	if (d->vector * size + size - 1 > vcpu->arch.idt.limit)
		return gate_fault(vcpu, d, GP_VECTOR);
	r = mem_read(vcpu, vcpu->arch.idt.base + d->vector * size, gate, size, MMU_READ | MMU_IMPLICIT);
	if (r != EXEC_OK)
		return r;
	if (desc_s(gate[0]) || !gate_type_valid(vcpu, desc_type(gate[0])))
		return gate_fault(vcpu, d, GP_VECTOR);
	if (is_soft(d) && desc_dpl(gate[0]) < vcpu->arch.cpl)
		return gate_fault(vcpu, d, GP_VECTOR);
	if (!desc_present(gate[0]))
		return gate_fault(vcpu, d, NP_VECTOR);
	d->gate_type = desc_type(gate[0]);
	d->selector = gate[0] >> 16;
	d->offset = (gate[0] & 0xffff) | (gate[0] >> 32 & 0xffff0000) | gate[1] << 32;
	d->ist = size == 16 ? gate[0] >> 32 & 7 : 0;
	d->width = size == 16 ? 8 : d->gate_type & 8 ? 4 : 2;
	if (d->width == 2)
		d->offset &= 0xffff;
	return EXEC_OK;
}

/* The handler's code segment and the ring it runs in. */
static enum exec check_handler_cs(struct vcpu *vcpu, struct delivery *d)
{
	u32 error = (d->selector & ~3u) | d->ext;
	unsigned cpl = vcpu->arch.cpl, dpl;
	u64 desc;
	enum exec r;

	if (SEL_NULL(d->selector))
		return queue_gp(vcpu, d->ext);
	r = descriptor_fetch(vcpu, d->selector, GP_VECTOR, d->ext, &desc, NULL);
	if (r != EXEC_OK)
		return r;
	dpl = desc_dpl(desc);
	if (!desc_code(desc) || dpl > cpl)
		return queue_gp(vcpu, error);
	if (vcpu->arch.long_mode && (!desc_l(desc) || desc_db(desc)))
		return queue_gp(vcpu, error);
	if (!desc_present(desc))
		return queue_exception_e(vcpu, NP_VECTOR, error);
	d->inner = !desc_conforming(desc) && dpl < cpl;
	d->cpl = d->inner ? dpl : cpl;
	if (vcpu->arch.vm86 && (!d->inner || dpl))
		return queue_gp(vcpu, error);
	d->cs = segment_from_desc((d->selector & ~3u) | d->cpl, desc);
	if (!code_target_valid(vcpu, &d->cs, d->offset))
		return queue_gp(vcpu, d->ext);
	r = descriptor_accessed(vcpu, d->selector, &desc);
	d->cs.ar |= 1;
	return r;
}

/* The stack the handler starts on. */
static enum exec choose_stack(struct vcpu *vcpu, const struct delivery *d, struct stack_ref *st)
{
	u16 sel = 0;
	u64 sp;
	enum exec r;

	*st = stack_current(vcpu);
	st->flat64 = vcpu->arch.long_mode;
	st->error = d->ext;
	st->access = d->cpl == 3 ? MMU_USER : 0;
	if (st->flat64) {
		st->mask = ~0ull;
		if (d->inner || d->ist) {
			r = tss_stack(vcpu, d->cpl, d->ist, d->ext, NULL, &st->sp);
			if (r != EXEC_OK)
				return r;
		}
		if (d->inner) {
			st->ss = segment_null(d->cpl);
			st->ss.ar |= d->cpl << AR_DPL_SHIFT;
		}
		st->sp &= ~15ull;
		return EXEC_OK;
	}
	if (!d->inner)
		return EXEC_OK;
	r = tss_stack(vcpu, d->cpl, 0, d->ext, &sel, &sp);
	if (r == EXEC_OK)
		r = check_inner_ss(vcpu, sel, d->cpl, d->ext, &st->ss);
	if (r != EXEC_OK)
		return r;
	st->sp = sp;
	st->mask = st->ss.ar & AR_DB ? 0xffffffffull : 0xffffull;
	st->error = (sel & ~3u) | d->ext;
	return EXEC_OK;
}

static unsigned build_frame(struct vcpu *vcpu, const struct delivery *d, u64 *vals)
{
	static const u8 vm86_segs[] = { SEG_GS, SEG_FS, SEG_DS, SEG_ES };
	struct vcpu_arch *a = &vcpu->arch;
	unsigned n = 0;

	if (a->vm86)
		for (unsigned i = 0; i < ARRAY_SIZE(vm86_segs); i++)
			vals[n++] = a->seg[vm86_segs[i]].selector;
	if (d->inner || a->long_mode) {
		vals[n++] = a->seg[SEG_SS].selector;
		vals[n++] = a->regs[RSP];
	}
	vals[n++] = d->flags;
	vals[n++] = a->seg[SEG_CS].selector;
	vals[n++] = a->rip;
	if (d->has_error)
		vals[n++] = d->error_code;
	return n;
}

static void enter_handler(struct vcpu *vcpu, const struct delivery *d, const struct stack_ref *st, u64 sp)
{
	static const u8 data_segs[] = { SEG_ES, SEG_DS, SEG_FS, SEG_GS };
	struct vcpu_arch *a = &vcpu->arch;
	u64 clear = X86_EFLAGS_TF | X86_EFLAGS_NT | X86_EFLAGS_RF | X86_EFLAGS_VM;

	if (!(d->gate_type & 1))
		clear |= X86_EFLAGS_IF;
	if (a->vm86)
		for (unsigned i = 0; i < ARRAY_SIZE(data_segs); i++)
			a->seg[data_segs[i]] = segment_null(0);
	if (d->inner)
		a->seg[SEG_SS] = st->ss;
	stack_set_sp(vcpu, sp, st->mask);
	a->rip = d->offset;
	a->rflags &= ~clear;
	/* Leaving vm86 makes it protected mode, which commit_cs() asks about. */
	vcpu_update_mode(vcpu);
	commit_cs(vcpu, d->cs, d->cpl);
}

static enum exec deliver_idt(struct vcpu *vcpu, struct delivery *d)
{
	struct stack_ref st;
	u64 vals[10], sp;
	unsigned n;
	enum exec r = read_gate(vcpu, d);

	if (r != EXEC_OK)
		return r;
	if (d->gate_type == DESC_TASK_GATE)
		return task_switch_ext(vcpu, d->selector, TASK_GATE, d->has_error, d->error_code, d->ext);
	r = check_handler_cs(vcpu, d);
	if (r == EXEC_OK)
		r = choose_stack(vcpu, d, &st);
	if (r != EXEC_OK)
		return r;
	n = build_frame(vcpu, d, vals);
	r = stack_frame_push(vcpu, &st, d->width, vals, n, &sp);
	if (r != EXEC_OK)
		return r;
	enter_handler(vcpu, d, &st, sp);
	return EXEC_BRANCH;
}

/* Faults push RF = 1, so that an instruction breakpoint does not hit twice. */
static bool pushes_rf(const struct delivery *d)
{
	switch (d->vector) {
	case DB_VECTOR: case NMI_VECTOR: case BP_VECTOR: case OF_VECTOR: case DF_VECTOR: case MC_VECTOR:
		return false;
	default:
		return d->type == EVENT_EXCEPTION;
	}
}

enum exec deliver_event(struct vcpu *vcpu, u8 vector, enum event_type type, bool has_error, u32 error_code)
{
	struct pending_exception *e = &vcpu->arch.exception;
	bool protected = vcpu->arch.cr0 & X86_CR0_PE;
	struct delivery d = {
		.vector = vector, .type = type, .error_code = error_code,
		.has_error = has_error && protected,
		.ext = !(type == EVENT_SOFT_INT || type == EVENT_SOFT_EXC),
	};
	enum exec r;

	/* From here on a fault merges with this exception. */
	if (type == EVENT_EXCEPTION && !e->injected)
		*e = (struct pending_exception){ .injected = true, .vector = vector,
			.has_error_code = has_error, .error_code = error_code };
	d.flags = vcpu->arch.rflags;
	if (pushes_rf(&d))
		d.flags |= X86_EFLAGS_RF;
	else if (is_soft(&d)) /* the instruction has completed */
		d.flags &= ~(u64)X86_EFLAGS_RF;
	if (protected)
		r = deliver_idt(vcpu, &d);
	else
		r = deliver_real(vcpu, vector, vcpu->arch.rflags,
				 X86_EFLAGS_IF | X86_EFLAGS_TF | X86_EFLAGS_AC | X86_EFLAGS_RF);
	if (r == EXEC_BRANCH && type == EVENT_EXCEPTION)
		e->injected = false;
	if (r == EXEC_BRANCH)
		vcpu->arch.interrupt_shadow = 0;
	return r;
}

/* ---- the run loop's step ---------------------------------------------------------------------- */

static bool debugger_wants_db(const struct vcpu *vcpu)
{
	u32 c = vcpu->guest_debug.control;

	return (c & KVM_GUESTDBG_ENABLE) && (c & (KVM_GUESTDBG_SINGLESTEP | KVM_GUESTDBG_USE_HW_BP));
}

/* A #DB that belongs to the debugger outside. One without payload was injected by it: the guest's. */
static enum exec exit_debug(struct vcpu *vcpu)
{
	struct kvm_debug_exit_arch *arch = &vcpu->run->debug.arch;

	vcpu->run->exit_reason = named_exit(KVM_EXIT_DEBUG);
	arch->exception = DB_VECTOR;
	arch->pc = linear_rip(vcpu);
	arch->dr6 = vcpu->arch.exception.payload | DR6_FIXED_1 | DR6_ACTIVE_LOW_RTM;
	arch->dr7 = vcpu->arch.eff_dr7;
	vcpu->arch.exception.pending = false;
	return EXEC_EXIT;
}

static void apply_payload(struct vcpu *vcpu, struct pending_exception *e)
{
	struct vcpu_arch *a = &vcpu->arch;

	if (e->has_payload && e->vector == PF_VECTOR)
		a->cr2 = e->payload;
	if (e->has_payload && e->vector == DB_VECTOR) {
		a->dr6 = (a->dr6 & ~DR6_TRAPS) | DR6_ACTIVE_LOW_RTM;
		a->dr6 &= ~(e->payload & DR6_ACTIVE_LOW_RTM);
		a->dr6 |= e->payload & ~DR6_ACTIVE_LOW_RTM;
		a->dr6 = (a->dr6 & ~(u64)BIT(12)) | DR6_FIXED_1;
	}
	if (e->vector == DB_VECTOR && (a->dr7 & DR7_GD_BIT)) {
		a->dr7 &= ~(u64)DR7_GD_BIT;
		update_effective_dr(vcpu);
	}
	e->has_payload = false;
	e->payload = 0;
}

/* #BP injected by a debugger at the guest's own INT3: the pushed rip is the one after it. */
static u64 soft_exception_skip(struct vcpu *vcpu, u8 vector)
{
	u8 bytes[15];

	if (vector != BP_VECTOR && vector != OF_VECTOR)
		return 0;
	if (!fetch_insn_bytes(vcpu, bytes))
		return 0;
	return bytes[0] == (vector == BP_VECTOR ? 0xcc : 0xce);
}

/* The stack or a table lies in MMIO: as KVM, an internal error and not an exit that could be completed. */
static enum exec delivery_in_mmio(struct vcpu *vcpu, u8 vector)
{
	struct kvm_run *run = vcpu->run;

	vcpu->arch.mmio.pending = false;
	vcpu->arch.mmio.nr = vcpu->arch.mmio.cursor = 0;
	run->exit_reason = named_exit(KVM_EXIT_INTERNAL_ERROR);
	run->internal.suberror = KVM_INTERNAL_ERROR_DELIVERY_EV;
	run->internal.ndata = 1;
	run->internal.data[0] = vector;
	return EXEC_EXIT;
}

static enum exec delivered(struct vcpu *vcpu, u8 vector, enum exec r)
{
	if (likely(r == EXEC_BRANCH))
		return EXEC_OK;
	if (r == EXEC_EXIT && vcpu->arch.mmio.pending)
		return delivery_in_mmio(vcpu, vector);
	return r;
}

static enum exec inject_exception(struct vcpu *vcpu)
{
	struct pending_exception *e = &vcpu->arch.exception;
	struct rip_mark mark = rip_mark(vcpu);
	u64 skip;
	u8 vector = e->vector;
	enum exec r;

	trace(kvm_inj_exception, vcpu->id, vector, e->has_error_code, e->error_code, e->injected);
	apply_payload(vcpu, e);
	e->pending = false;
	e->injected = true;
	skip = soft_exception_skip(vcpu, vector);
	vcpu->arch.rip = (mark.rip + skip) & ip_mask(vcpu);
	r = deliver_event(vcpu, vector, skip ? EVENT_SOFT_EXC : EVENT_EXCEPTION, e->has_error_code,
			  e->error_code);
	rip_restore(vcpu, mark, r);
	if (r == EXEC_BRANCH)
		e->injected = false;
	return delivered(vcpu, vector, r);
}

static enum exec inject_nmi(struct vcpu *vcpu)
{
	enum exec r = deliver_event(vcpu, NMI_VECTOR, EVENT_NMI, false, 0);

	if (r == EXEC_BRANCH || r == EXEC_FAULT) {
		vcpu->arch.nmi_injected = false;
		vcpu->stat.nmi_injections++;
	}
	return delivered(vcpu, NMI_VECTOR, r);
}

static enum exec inject_interrupt(struct vcpu *vcpu)
{
	struct pending_interrupt *irq = &vcpu->arch.interrupt;
	enum exec r;

	trace(kvm_inj_virq, vcpu->id, irq->nr, irq->soft);
	/* Perhaps the end of a DMA. */
	if (vcpu->arch.dbt)
		dbt_recheck(vcpu);
	r = deliver_event(vcpu, irq->nr, irq->soft ? EVENT_SOFT_INT : EVENT_EXT_INTERRUPT, false, 0);
	if (r == EXEC_BRANCH || r == EXEC_FAULT) {
		irq->injected = false;
		vcpu->stat.irq_injections++;
	}
	return delivered(vcpu, irq->nr, r);
}

/* Collapse NMIs: one in service allows one more, none in service two. True if one can go in now. */
static bool nmi_take(struct vcpu *vcpu)
{
	struct vcpu_arch *a = &vcpu->arch;
	u32 limit = a->nmi_masked || a->nmi_injected ? 1 : 2;
	u32 n = atomic_load(&a->nmi_pending), want;
	bool take;

	do {
		take = n && !a->nmi_masked && !a->interrupt_shadow;
		want = min(n, limit) - take;
		if (want == n)
			break;
	} while (!atomic_compare_exchange_weak(&a->nmi_pending, &n, want));
	return take;
}

/* Events that were under way when the last KVM_RUN returned, and the pending exception. */
static enum exec inject_unfinished(struct vcpu *vcpu)
{
	struct vcpu_arch *a = &vcpu->arch;

	if (a->exception.injected)
		return inject_exception(vcpu);
	if (a->exception.pending) {
		if (a->exception.vector == DB_VECTOR && a->exception.has_payload && debugger_wants_db(vcpu))
			return exit_debug(vcpu);
		return inject_exception(vcpu);
	}
	if (a->nmi_injected)
		return inject_nmi(vcpu);
	/* With a local APIC, userspace's PIC only offers the vector: it waits for the window. */
	if (a->apic && !interrupt_allowed(vcpu)) {
		a->irq_window = true;
		return EXEC_OK;
	}
	return inject_interrupt(vcpu);
}

static enum exec inject_new_interrupt(struct vcpu *vcpu)
{
	struct vcpu_arch *a = &vcpu->arch;
	bool pv_eoi = a->apic && (a->msr.kvm_pv_eoi & 1);
	enum exec r = EXEC_OK;
	int vector;

	/* One is queued already: it waits for the window, or for the exception that went first. */
	if (unlikely(a->interrupt.injected)) {
		a->irq_window = true;
		if (interrupt_allowed(vcpu))
			vcpu_make_request(vcpu, KVM_REQ_EVENT);
		return EXEC_OK;
	}
	if (pv_eoi)
		lapic_sync_pv_eoi_from_guest(vcpu);
	if (irqchip_has_interrupt(vcpu)) {
		if (!interrupt_allowed(vcpu)) {
			a->irq_window = true;
		} else {
			vector = irqchip_get_interrupt(vcpu);
			if (vector >= 0) {
				a->interrupt = (struct pending_interrupt){ .injected = true, .nr = vector };
				r = inject_interrupt(vcpu);
				a->irq_window = irqchip_has_interrupt(vcpu);
			}
		}
	}
	if (pv_eoi)
		lapic_sync_pv_eoi_to_guest(vcpu);
	return r;
}

enum exec inject_events(struct vcpu *vcpu)
{
	struct vcpu_arch *a = &vcpu->arch;
	enum exec r = EXEC_OK;

	a->irq_window = vcpu->run->request_interrupt_window;
	if (unlikely(a->exception.pending || a->exception.injected || a->nmi_injected ||
		     a->interrupt.injected)) {
		r = inject_unfinished(vcpu);
		if (r != EXEC_OK)
			return r;
	}
	if (unlikely(vcpu->guest_debug.control & KVM_GUESTDBG_BLOCKIRQ) &&
	    (vcpu->guest_debug.control & KVM_GUESTDBG_ENABLE))
		return EXEC_OK;
	if (unlikely(smm_smi_deliverable(vcpu))) {
		r = smm_enter(vcpu);
		if (r != EXEC_OK)
			return r;
	}
	if (unlikely(atomic_load_explicit(&a->nmi_pending, memory_order_relaxed)) && nmi_take(vcpu)) {
		a->nmi_masked = true;
		a->nmi_injected = true;
		r = inject_nmi(vcpu);
		if (r != EXEC_OK)
			return r;
	}
	return inject_new_interrupt(vcpu);
}

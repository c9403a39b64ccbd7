/* SPDX-License-Identifier: MIT */
/*
 * Hardware task switches, in legacy mode only.
 *
 *  1. Until commit_task() everything may fault, in the context of the old task.
 *  2. From there on the new task runs: faults carry its rip, and nothing is undone.
 */
#include <string.h>

#include "x86/ops/descriptor.h"

#define DR6_BT 0x8000
#define TSS16_MIN_LIMIT 0x2b
#define TSS32_MIN_LIMIT 0x67

/* A TSS's dynamic part, whatever its width. */
struct task_image {
	u32 cr3, rip, flags, gpr[8];
	u16 seg[6];	/* ES CS SS DS FS GS, the order of enum seg */
	u16 ldt;
	bool trap;
};

struct task_switch {
	u16 selector;
	int reason;
	u32 ext;
	u64 desc;
	struct segment tss;	/* the new one */
	bool tss32;
	struct task_image image;
};

static u32 get(const u8 *p, unsigned size)
{
	u32 v = 0;

	memcpy(&v, p, size);
	return v;
}

static enum exec check_tss(struct vcpu *vcpu, struct task_switch *t)
{
	u8 vec = t->reason == TASK_IRET ? TS_VECTOR : GP_VECTOR;
	u32 error = (t->selector & ~3u) | t->ext;
	unsigned type, busy = t->reason == TASK_IRET ? 2 : 0;
	enum exec r;

	if (SEL_NULL(t->selector) || (t->selector & 4) || vcpu->arch.long_mode)
		return queue_exception_e(vcpu, vec, error);
	r = descriptor_fetch(vcpu, t->selector, vec, t->ext, &t->desc, NULL);
	if (r != EXEC_OK)
		return r;
	type = desc_type(t->desc);
	if (desc_s(t->desc) || (type & ~8u) != (DESC_TSS16 | busy))
		return queue_exception_e(vcpu, vec, error);
	if (!desc_present(t->desc))
		return queue_exception_e(vcpu, NP_VECTOR, error);
	t->tss32 = type & 8;
	if (desc_limit(t->desc) < (t->tss32 ? TSS32_MIN_LIMIT : TSS16_MIN_LIMIT))
		return queue_exception_e(vcpu, TS_VECTOR, error);
	t->tss = segment_from_desc(t->selector & ~3u, t->desc | 2ull << 40);
	return EXEC_OK;
}

static enum exec read_task(struct vcpu *vcpu, struct task_switch *t)
{
	struct task_image *im = &t->image;
	unsigned w = t->tss32 ? 4 : 2, at = t->tss32 ? 0x20 : 0x0e, nseg = t->tss32 ? 6 : 4;
	u8 buf[TSS32_MIN_LIMIT + 1];
	enum exec r = mem_read(vcpu, t->tss.base, buf,
			       (t->tss32 ? TSS32_MIN_LIMIT : TSS16_MIN_LIMIT) + 1, MMU_READ | MMU_IMPLICIT);

	if (r != EXEC_OK)
		return r;
	memset(im, 0, sizeof(*im));
	im->rip = get(buf + at, w);
	im->flags = get(buf + at + w, w);
	for (unsigned i = 0; i < 8; i++)
		im->gpr[i] = get(buf + at + (2 + i) * w, w) | (t->tss32 ? 0 : 0xffff0000);
	for (unsigned i = 0; i < nseg; i++)
		im->seg[i] = get(buf + at + (10 + i) * w, 2);
	im->ldt = get(buf + at + (10 + nseg) * w, 2);
	if (t->tss32) {
		im->cr3 = get(buf + 0x1c, 4);
		im->trap = buf[0x64] & 1;
	}
	return EXEC_OK;
}

/* The old task's registers go to the TSS that TR names. */
static enum exec save_task(struct vcpu *vcpu, const struct task_switch *t)
{
	struct vcpu_arch *a = &vcpu->arch;
	bool tss32 = a->seg[SEG_TR].ar & 8;
	unsigned w = tss32 ? 4 : 2, at = tss32 ? 0x20 : 0x0e, nseg = tss32 ? 6 : 4;
	u32 flags = a->rflags & (t->reason == TASK_IRET ? ~X86_EFLAGS_NT : ~0u);
	u32 rip = a->rip;
	u8 buf[16 * 4] = { 0 };

	memcpy(buf, &rip, w);
	memcpy(buf + w, &flags, w);
	for (unsigned i = 0; i < 8; i++)
		memcpy(buf + (2 + i) * w, &a->regs[i], w);
	for (unsigned i = 0; i < nseg; i++)
		memcpy(buf + (10 + i) * w, &a->seg[i].selector, 2);
	return mem_write(vcpu, a->seg[SEG_TR].base + at, buf, (10 + nseg) * w, MMU_WRITE | MMU_IMPLICIT);
}

static enum exec clear_old_busy(struct vcpu *vcpu)
{
	gva_t va = vcpu->arch.gdt.base + (vcpu->arch.seg[SEG_TR].selector & ~7u) + 4;
	u32 dword;
	enum exec r = mem_read(vcpu, va, &dword, 4, MMU_READ | MMU_IMPLICIT);

	if (r != EXEC_OK)
		return r;
	dword &= ~BIT(9);
	return mem_write(vcpu, va, &dword, 4, MMU_WRITE | MMU_IMPLICIT);
}

/* Everything in memory, in the old address space. */
static enum exec leave_old_task(struct vcpu *vcpu, const struct task_switch *t)
{
	u16 link = vcpu->arch.seg[SEG_TR].selector;
	bool nests = t->reason == TASK_CALL || t->reason == TASK_GATE;
	enum exec r = EXEC_OK;

	if (nests)
		r = mem_probe_write(vcpu, t->tss.base, 2, MMU_WRITE | MMU_IMPLICIT);
	if (r == EXEC_OK)
		r = save_task(vcpu, t);
	if (r == EXEC_OK && !nests)
		r = clear_old_busy(vcpu);
	if (r == EXEC_OK && nests)
		r = mem_write(vcpu, t->tss.base, &link, 2, MMU_WRITE | MMU_IMPLICIT);
	if (r == EXEC_OK && t->reason != TASK_IRET)
		r = descriptor_set_bits(vcpu, t->selector, BIT(9));
	return r;
}

/* Registers, and segment registers as bare selectors: their descriptors are looked at next. */
static void commit_task(struct vcpu *vcpu, const struct task_switch *t)
{
	struct vcpu_arch *a = &vcpu->arch;
	const struct task_image *im = &t->image;
	u64 flags = im->flags;

	if (!t->tss32)
		flags = (flags & 0xffff);
	if (t->reason == TASK_CALL || t->reason == TASK_GATE)
		flags |= X86_EFLAGS_NT;
	a->seg[SEG_TR] = t->tss;
	a->cr0 |= X86_CR0_TS;
	a->dr7 &= ~0x155ull;
	update_effective_dr(vcpu);
	a->rip = im->rip;
	for (unsigned i = 0; i < 8; i++)
		a->regs[i] = im->gpr[i];
	a->seg[SEG_LDTR] = segment_null(im->ldt);
	a->seg[SEG_LDTR].ar |= DESC_LDT;
	for (unsigned i = 0; i < 6; i++)
		a->seg[i] = segment_null(im->seg[i]);
	a->seg[SEG_SS].ar |= SEL_RPL(im->seg[SEG_CS]) << AR_DPL_SHIFT;
	/* Should CS turn out bad, the frame of that fault still shows all of EIP. */
	if (t->tss32)
		a->seg[SEG_CS].ar |= AR_DB;
	vcpu_set_rflags(vcpu, flags);
	vcpu_update_mode(vcpu);
	if (a->mmu)
		mmu_select_tlb(vcpu);
}

static enum exec ts_fault(struct vcpu *vcpu, u16 selector, u32 ext)
{
	return queue_exception_e(vcpu, TS_VECTOR, (selector & ~3u) | ext);
}

static enum exec load_task_ldt(struct vcpu *vcpu, u16 selector, u32 ext)
{
	u64 desc;
	enum exec r;

	if (SEL_NULL(selector))
		return EXEC_OK;
	if (selector & 4)
		return ts_fault(vcpu, selector, ext);
	r = descriptor_fetch(vcpu, selector, TS_VECTOR, ext, &desc, NULL);
	if (r != EXEC_OK)
		return r;
	if (desc_s(desc) || desc_type(desc) != DESC_LDT || !desc_present(desc))
		return ts_fault(vcpu, selector, ext);
	vcpu->arch.seg[SEG_LDTR] = segment_from_desc(selector, desc);
	return EXEC_OK;
}

/* May segment register seg hold desc in a task of this cpl? */
static bool task_segment_valid(enum seg seg, u16 selector, u64 desc, unsigned cpl)
{
	unsigned rpl = SEL_RPL(selector), dpl = desc_dpl(desc);

	switch (seg) {
	case SEG_CS:
		return desc_code(desc) && (desc_conforming(desc) ? dpl <= rpl : dpl == rpl);
	case SEG_SS:
		return desc_writable_data(desc) && dpl == cpl && rpl == cpl;
	default:
		return desc_readable(desc) && (desc_conforming(desc) || (dpl >= cpl && dpl >= rpl));
	}
}

static enum exec load_task_segment(struct vcpu *vcpu, enum seg seg, u32 ext)
{
	struct segment *s = &vcpu->arch.seg[seg];
	unsigned cpl = SEL_RPL(vcpu->arch.seg[SEG_CS].selector);
	u16 selector = s->selector;
	u64 desc;
	enum exec r;

	if (vcpu->arch.vm86) {
		*s = segment_real(vcpu, s, selector);
		return EXEC_OK;
	}
	if (SEL_NULL(selector))
		return seg == SEG_CS || seg == SEG_SS ? ts_fault(vcpu, selector, ext) : EXEC_OK;
	r = descriptor_fetch(vcpu, selector, TS_VECTOR, ext, &desc, NULL);
	if (r != EXEC_OK)
		return r;
	if (!task_segment_valid(seg, selector, desc, cpl))
		return ts_fault(vcpu, selector, ext);
	if (!desc_present(desc))
		return queue_exception_e(vcpu, seg == SEG_SS ? SS_VECTOR : NP_VECTOR, (selector & ~3u) | ext);
	r = descriptor_accessed(vcpu, selector, &desc);
	if (r == EXEC_OK)
		*s = segment_from_desc(selector, desc);
	return r;
}

static enum exec load_task_segments(struct vcpu *vcpu, const struct task_switch *t)
{
	static const u8 order[] = { SEG_SS, SEG_CS, SEG_ES, SEG_DS, SEG_FS, SEG_GS };
	enum exec r = load_task_ldt(vcpu, t->image.ldt, t->ext);

	for (unsigned i = 0; i < ARRAY_SIZE(order) && r == EXEC_OK; i++)
		r = load_task_segment(vcpu, order[i], t->ext);
	vcpu_update_mode(vcpu);
	if (vcpu->arch.mmu)
		mmu_select_tlb(vcpu);
	return r;
}

static enum exec push_error(struct vcpu *vcpu, const struct task_switch *t, u32 error_code)
{
	struct stack_ref st = stack_current(vcpu);
	u64 val = error_code, sp;
	enum exec r;

	st.error = t->ext;
	r = stack_frame_push(vcpu, &st, t->tss32 ? 4 : 2, &val, 1, &sp);
	if (r == EXEC_OK)
		stack_set_sp(vcpu, sp, st.mask);
	return r;
}

enum exec task_switch_ext(struct vcpu *vcpu, u16 selector, int reason, bool has_error_code,
			  u32 error_code, u32 ext)
{
	struct task_switch t = { .selector = selector, .reason = reason, .ext = ext };
	enum exec r = check_tss(vcpu, &t);

	if (r == EXEC_OK)
		r = read_task(vcpu, &t);
	if (r == EXEC_OK)
		r = leave_old_task(vcpu, &t);
	if (r != EXEC_OK)
		return r;
	commit_task(vcpu, &t);
	if (t.tss32 && vcpu->arch.paging && t.image.cr3 != vcpu->arch.cr3)
		r = set_cr3(vcpu, t.image.cr3);
	if (r == EXEC_OK || r == EXEC_END)
		r = load_task_segments(vcpu, &t);
	if (r == EXEC_OK && has_error_code)
		r = push_error(vcpu, &t, error_code);
	if (r != EXEC_OK)
		return r;
	if (!code_target_valid(vcpu, &vcpu->arch.seg[SEG_CS], vcpu->arch.rip))
		return queue_gp(vcpu, ext);
	if (t.image.trap) {
		/* The switch itself is done: an event delivered through it must not merge with this one. */
		vcpu->arch.exception.injected = false;
		return queue_db(vcpu, DR6_BT);
	}
	return EXEC_BRANCH;
}

enum exec task_switch(struct vcpu *vcpu, u16 selector, int reason, bool has_error_code, u32 error_code)
{
	return task_switch_ext(vcpu, selector, reason, has_error_code, error_code, 0);
}

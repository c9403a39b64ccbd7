/* SPDX-License-Identifier: MIT */
/*
 * Descriptor tables, segment registers, stack frames.
 *
 *  1. Tables and TSS are read as supervisor whatever the CPL (MMU_IMPLICIT).
 *  2. A function that checks changes nothing; a function that commits cannot
 *     fail. Accessed bits are in between: set last among the things that may fault.
 *  3. The CPL lives in SS.DPL (x86/mode.c), for unusable segments too.
 */
#include <string.h>

#include "host/host.h"
#include "kvm/guest_memfd.h"
#include "x86/interp/operand.h"
#include "x86/ops/descriptor.h"

bool guest_is_intel(struct vcpu *vcpu)
{
	struct kvm_cpuid_entry2 *e = cpuid_find(vcpu, 0, 0);

	if (!e)
		return host_is_intel();
	/* "Auth"enticAMD and "Hygo"nGenuine follow AMD, everybody else Intel. */
	return e->ebx != 0x68747541 && e->ebx != 0x6f677948;
}

/* ---- segments -------------------------------------------------------------- */

struct segment segment_from_desc(u16 selector, u64 desc)
{
	return (struct segment){
		.base = desc_base(desc),
		.limit = desc_limit(desc),
		.ar = desc >> 40 & 0xf0ff,
		.selector = selector,
	};
}

struct segment segment_null(u16 selector)
{
	return (struct segment){ .selector = selector, .ar = AR_UNUSABLE };
}

struct segment segment_real(const struct vcpu *vcpu, const struct segment *old, u16 selector)
{
	struct segment s = *old;

	s.selector = selector;
	s.base = (u32)selector << 4;
	if (vcpu->arch.vm86) {
		s.limit = 0xffff;
		s.ar = 0xf3;
	} else if (s.ar & AR_UNUSABLE) {
		s.limit = 0xffff;
		s.ar = 0x93;
	}
	return s;
}

/* ---- tables -------------------------------------------------------------------- */

static bool descriptor_address(const struct vcpu *vcpu, u16 selector, unsigned size, gva_t *va)
{
	const struct vcpu_arch *a = &vcpu->arch;
	const struct segment *ldt = &a->seg[SEG_LDTR];
	u32 off = selector & ~7u;
	u64 base = a->gdt.base;
	u32 limit = a->gdt.limit;

	if (selector & 4) {
		if ((ldt->ar & AR_UNUSABLE) || !(ldt->ar & AR_P))
			return false;
		base = ldt->base;
		limit = ldt->limit;
	}
	if (off + size - 1 > limit)
		return false;
	*va = a->long_mode ? base + off : (u32)(base + off);
	return true;
}

/* In long mode LDT, TSS and call gate descriptors are 16 bytes; nothing else reads hi. */
static enum exec descriptor_read(struct vcpu *vcpu, u16 selector, bool *found, u64 *desc, u64 *hi)
{
	gva_t va;
	enum exec r;

	*found = descriptor_address(vcpu, selector, 8, &va);
	if (!*found)
		return EXEC_OK;
	r = mem_read(vcpu, va, desc, 8, MMU_READ | MMU_IMPLICIT);
	if (r != EXEC_OK || !hi)
		return r;
	*hi = 0;
	if (!vcpu->arch.long_mode || desc_s(*desc))
		return EXEC_OK;
	*found = descriptor_address(vcpu, selector, 16, &va);
	return *found ? mem_read(vcpu, va + 8, hi, 8, MMU_READ | MMU_IMPLICIT) : EXEC_OK;
}

enum exec descriptor_peek(struct vcpu *vcpu, u16 selector, bool *found, u64 *desc, u64 *hi)
{
	*found = false;
	if (SEL_NULL(selector))
		return EXEC_OK;
	return descriptor_read(vcpu, selector, found, desc, hi);
}

enum exec descriptor_fetch(struct vcpu *vcpu, u16 selector, u8 error_vec, u32 ext, u64 *desc, u64 *hi)
{
	bool found;
	enum exec r = descriptor_read(vcpu, selector, &found, desc, hi);

	if (r == EXEC_OK && !found)
		return queue_exception_e(vcpu, error_vec, (selector & ~3u) | ext);
	return r;
}

enum exec read_descriptor(struct vcpu *vcpu, u16 selector, u8 error_vec, u64 *desc)
{
	return descriptor_fetch(vcpu, selector, error_vec, 0, desc, NULL);
}

/* RAM: one locked OR. Anything else (ROM, MMIO): an ordinary read and write. */
static enum exec or_dword(struct vcpu *vcpu, gva_t va, u32 bits)
{
	enum exec r = mem_probe_write(vcpu, va, 4, MMU_WRITE | MMU_IMPLICIT);
	struct memslot *slot;
	gpa_t gpa;
	u8 *host;
	u32 old;

	if (r == EXEC_OK)
		r = mmu_translate(vcpu, va, MMU_WRITE | MMU_IMPLICIT, &gpa);
	if (r != EXEC_OK)
		return r;
	slot = mmu_find_slot(vcpu, gpa);
	host = slot && !(slot->flags & KVM_MEM_READONLY) ? vcpu_guest_host(vcpu, slot, gpa) : NULL;
	if (host && (va & ~PAGE_MASK) <= PAGE_SIZE - 4) {
		memslot_mark_dirty(vcpu, slot, gpa >> PAGE_SHIFT);
		return host_atomic_or32(host, bits) ? mem_access_failed() : EXEC_OK;
	}
	r = mem_read(vcpu, va, &old, 4, MMU_READ | MMU_IMPLICIT);
	if (r != EXEC_OK)
		return r;
	old |= bits;
	return mem_write(vcpu, va, &old, 4, MMU_WRITE | MMU_IMPLICIT);
}

enum exec descriptor_set_bits(struct vcpu *vcpu, u16 selector, u32 bits)
{
	gva_t va;

	if (!descriptor_address(vcpu, selector, 8, &va))
		return queue_gp(vcpu, selector & ~3u);
	return or_dword(vcpu, va + 4, bits);
}

enum exec descriptor_accessed(struct vcpu *vcpu, u16 selector, u64 *desc)
{
	if (likely(*desc >> 40 & 1))
		return EXEC_OK;
	*desc |= 1ull << 40;
	return descriptor_set_bits(vcpu, selector, BIT(8));
}

/* ---- data segment registers ---------------------------------------------------------- */

static enum exec check_ss(struct vcpu *vcpu, u16 selector, u64 desc)
{
	unsigned cpl = vcpu->arch.cpl;

	if (SEL_RPL(selector) != cpl || !desc_writable_data(desc) || desc_dpl(desc) != cpl)
		return queue_gp(vcpu, selector & ~3u);
	if (!desc_present(desc))
		return queue_exception_e(vcpu, SS_VECTOR, selector & ~3u);
	return EXEC_OK;
}

static enum exec check_data(struct vcpu *vcpu, u16 selector, u64 desc)
{
	unsigned dpl = desc_dpl(desc);

	if (!desc_readable(desc))
		return queue_gp(vcpu, selector & ~3u);
	if (!desc_conforming(desc) && (SEL_RPL(selector) > dpl || vcpu->arch.cpl > dpl))
		return queue_gp(vcpu, selector & ~3u);
	if (!desc_present(desc))
		return queue_exception_e(vcpu, NP_VECTOR, selector & ~3u);
	return EXEC_OK;
}

static void segment_loaded(struct vcpu *vcpu, enum seg seg)
{
	if (seg == SEG_SS || vcpu->arch.code_size == 4)
		vcpu_update_mode(vcpu);
}

static enum exec load_null(struct vcpu *vcpu, enum seg seg, u16 selector)
{
	unsigned cpl = vcpu->arch.cpl;

	if (seg == SEG_SS && (!in_64bit_mode(vcpu) || cpl == 3 || SEL_RPL(selector) != cpl))
		return queue_gp(vcpu, 0);
	vcpu->arch.seg[seg] = segment_null(selector);
	if (seg == SEG_SS)
		vcpu->arch.seg[seg].ar |= cpl << AR_DPL_SHIFT;
	segment_loaded(vcpu, seg);
	return EXEC_OK;
}

enum exec load_segment(struct vcpu *vcpu, enum seg seg, u16 selector)
{
	struct segment *s = &vcpu->arch.seg[seg];
	u64 desc;
	enum exec r;

	if (!vcpu->arch.protected_mode) {
		*s = segment_real(vcpu, s, selector);
		return EXEC_OK;
	}
	if (SEL_NULL(selector))
		return load_null(vcpu, seg, selector);
	r = read_descriptor(vcpu, selector, GP_VECTOR, &desc);
	if (r == EXEC_OK)
		r = seg == SEG_SS ? check_ss(vcpu, selector, desc) : check_data(vcpu, selector, desc);
	if (r == EXEC_OK)
		r = descriptor_accessed(vcpu, selector, &desc);
	if (r != EXEC_OK)
		return r;
	*s = segment_from_desc(selector, desc);
	segment_loaded(vcpu, seg);
	return EXEC_OK;
}

void drop_inner_segments(struct vcpu *vcpu)
{
	static const u8 segs[] = { SEG_ES, SEG_DS, SEG_FS, SEG_GS };

	for (unsigned i = 0; i < ARRAY_SIZE(segs); i++) {
		struct segment *s = &vcpu->arch.seg[segs[i]];
		bool conforming = (s->ar & 0xc) == 0xc;

		if (s->ar & AR_UNUSABLE)
			continue;
		if (!conforming && (s->ar & AR_DPL) >> AR_DPL_SHIFT < vcpu->arch.cpl)
			*s = segment_null(0);
	}
	vcpu_update_mode(vcpu);
}

/* ---- code segment register --------------------------------------------------------------- */

void commit_cs(struct vcpu *vcpu, struct segment cs, unsigned cpl)
{
	struct segment *ss = &vcpu->arch.seg[SEG_SS];

	vcpu->arch.seg[SEG_CS] = cs;
	if (vcpu->arch.protected_mode)
		ss->ar = (ss->ar & ~AR_DPL) | cpl << AR_DPL_SHIFT;
	vcpu_update_mode(vcpu);
	if (vcpu->arch.mmu)
		mmu_select_tlb(vcpu);
}

bool code_target_valid(const struct vcpu *vcpu, const struct segment *cs, u64 rip)
{
	if (vcpu->arch.long_mode && (cs->ar & AR_L))
		return is_canonical(rip);
	return code_target(vcpu, cs, rip) <= cs->limit;
}

/* ---- stack frames ---------------------------------------------------------------------------- */

struct stack_ref stack_current(const struct vcpu *vcpu)
{
	return (struct stack_ref){
		.ss = vcpu->arch.seg[SEG_SS],
		.sp = vcpu->arch.regs[RSP],
		.mask = stack_mask(vcpu),
		.access = vcpu->arch.cpl == 3 ? MMU_USER : 0,
		.flat64 = in_64bit_mode(vcpu),
	};
}

void stack_set_sp(struct vcpu *vcpu, u64 sp, u64 mask)
{
	u64 *rsp = &vcpu->arch.regs[RSP];

	*rsp = mask == 0xffff ? (*rsp & ~0xffffull) | (sp & 0xffff) : sp & mask;
}

/* Linear address of len bytes at off in the stack segment; false: #SS. */
static bool stack_linear(const struct vcpu *vcpu, const struct stack_ref *st, u64 off, unsigned len, gva_t *va)
{
	u64 last = off + len - 1;

	if (st->flat64) {
		*va = off;
		return is_canonical(off) && is_canonical(last);
	}
	*va = (u32)(st->ss.base + off);
	if (vcpu->arch.cr0 & X86_CR0_PE) {
		if ((st->ss.ar & AR_UNUSABLE) || !(st->ss.ar & AR_P))
			return false;
		if ((st->ss.ar & 0xc) == 0x4)
			return off > st->ss.limit && last <= (st->ss.ar & AR_DB ? 0xffffffffull : 0xffffull);
	}
	return last <= st->ss.limit;
}

static enum exec stack_fault(struct vcpu *vcpu, const struct stack_ref *st)
{
	return queue_exception_e(vcpu, SS_VECTOR, st->error);
}

/* A frame that wraps around the top of a 16-bit (or 32-bit) stack goes value by value. */
static enum exec frame_push_wrapped(struct vcpu *vcpu, const struct stack_ref *st, unsigned size,
				    const u64 *vals, unsigned n)
{
	for (unsigned pass = 0; pass < 2; pass++) {
		for (unsigned i = 0; i < n; i++) {
			gva_t va;
			enum exec r;

			if (!stack_linear(vcpu, st, (st->sp - (i + 1) * size) & st->mask, size, &va))
				return stack_fault(vcpu, st);
			if (!pass)
				r = mem_probe_write(vcpu, va, size, st->access | MMU_WRITE);
			else
				r = mem_write(vcpu, va, &vals[i], size, st->access | MMU_WRITE);
			if (r != EXEC_OK)
				return r;
		}
	}
	return EXEC_OK;
}

#define FRAME_MAX 40 /* call gates copy up to 31 parameters */

enum exec stack_frame_push(struct vcpu *vcpu, const struct stack_ref *st, unsigned size,
			   const u64 *vals, unsigned n, u64 *sp)
{
	u8 image[FRAME_MAX * 8];
	unsigned len = n * size;
	u64 low = (st->sp - len) & st->mask;
	gva_t va;

	*sp = low;
	if (VM_BUG_ON(n > FRAME_MAX, vcpu->vm))
		return EXEC_UNHANDLED;
	if (low + len - 1 > st->mask && !st->flat64)
		return frame_push_wrapped(vcpu, st, size, vals, n);
	for (unsigned i = 0; i < n; i++)
		memcpy(image + (n - 1 - i) * size, &vals[i], size);
	if (!stack_linear(vcpu, st, low, len, &va))
		return stack_fault(vcpu, st);
	return mem_write(vcpu, va, image, len, st->access | MMU_WRITE);
}

enum exec stack_frame_read(struct vcpu *vcpu, const struct stack_ref *st, unsigned size,
			   unsigned skip, u64 *vals, unsigned n)
{
	for (unsigned i = 0; i < n; i++) {
		gva_t va;
		enum exec r;

		vals[i] = 0;
		if (!stack_linear(vcpu, st, (st->sp + skip + i * size) & st->mask, size, &va))
			return stack_fault(vcpu, st);
		r = mem_read(vcpu, va, &vals[i], size, st->access | MMU_READ);
		if (r != EXEC_OK)
			return r;
	}
	return EXEC_OK;
}

/* ---- stacks in the TSS ---------------------------------------------------------------------------- */

static enum exec tss_read(struct vcpu *vcpu, u32 off, void *buf, unsigned len, u32 ext)
{
	const struct segment *tr = &vcpu->arch.seg[SEG_TR];

	if (off + len - 1 > tr->limit)
		return queue_exception_e(vcpu, TS_VECTOR, (tr->selector & ~3u) | ext);
	return mem_read(vcpu, tr->base + off, buf, len, MMU_READ | MMU_IMPLICIT);
}

enum exec tss_stack(struct vcpu *vcpu, unsigned dpl, unsigned ist, u32 ext, u16 *ss_sel, u64 *sp)
{
	bool tss32 = vcpu->arch.seg[SEG_TR].ar & 8;
	u8 buf[8] = { 0 };
	enum exec r;

	*sp = 0;
	if (vcpu->arch.long_mode)
		return tss_read(vcpu, ist ? 0x24 + (ist - 1) * 8 : 4 + dpl * 8, sp, 8, ext);
	r = tss32 ? tss_read(vcpu, 4 + dpl * 8, buf, 6, ext) : tss_read(vcpu, 2 + dpl * 4, buf, 4, ext);
	memcpy(sp, buf, tss32 ? 4 : 2);
	memcpy(ss_sel, buf + (tss32 ? 4 : 2), 2);
	return r;
}

enum exec check_inner_ss(struct vcpu *vcpu, u16 selector, unsigned dpl, u32 ext, struct segment *ss)
{
	u32 error = (selector & ~3u) | ext;
	u64 desc;
	enum exec r;

	if (SEL_NULL(selector))
		return queue_exception_e(vcpu, TS_VECTOR, ext);
	r = descriptor_fetch(vcpu, selector, TS_VECTOR, ext, &desc, NULL);
	if (r != EXEC_OK)
		return r;
	if (SEL_RPL(selector) != dpl || desc_dpl(desc) != dpl || !desc_writable_data(desc))
		return queue_exception_e(vcpu, TS_VECTOR, error);
	if (!desc_present(desc))
		return queue_exception_e(vcpu, SS_VECTOR, error);
	r = descriptor_accessed(vcpu, selector, &desc);
	*ss = segment_from_desc(selector, desc);
	return r;
}

/* ---- MOV, PUSH, POP, Lxx of segment registers -------------------------------------------------------- */

enum exec rm_store_small(struct vcpu *vcpu, const struct insn *insn, u64 val)
{
	gva_t va;
	enum exec r;

	if (insn->rm != INSN_NOREG) {
		gpr_write(vcpu, insn->rm, insn->opsize, false, val);
		return EXEC_OK;
	}
	r = insn_linear(vcpu, insn, 2, true, &va);
	return r == EXEC_OK ? mem_store(vcpu, va, 2, (u16)val) : r;
}

enum exec rm_load_small(struct vcpu *vcpu, const struct insn *insn, u64 *val)
{
	gva_t va;
	enum exec r;

	if (insn->rm != INSN_NOREG) {
		*val = gpr_read(vcpu, insn->rm, 2, false);
		return EXEC_OK;
	}
	r = insn_linear(vcpu, insn, 2, false, &va);
	return r == EXEC_OK ? mem_load(vcpu, va, 2, val) : r;
}

/* insn->cc holds the segment register. */
static enum exec op_mov_rm_seg(struct vcpu *vcpu, const struct insn *insn)
{
	return rm_store_small(vcpu, insn, vcpu->arch.seg[insn->cc].selector);
}

/* Loading SS changes the stack width and holds off events until after the next instruction. */
static enum exec seg_loaded(struct vcpu *vcpu, const struct insn *insn, bool shadow)
{
	if (insn->cc != SEG_SS)
		return EXEC_OK;
	if (shadow)
		vcpu->arch.interrupt_shadow = KVM_X86_SHADOW_INT_MOV_SS;
	return EXEC_END;
}

static enum exec op_mov_seg_rm(struct vcpu *vcpu, const struct insn *insn)
{
	u64 val;
	enum exec r = rm_load_small(vcpu, insn, &val);

	if (r == EXEC_OK)
		r = load_segment(vcpu, insn->cc, val);
	return r == EXEC_OK ? seg_loaded(vcpu, insn, true) : r;
}

/* Intel's CPUs store two bytes only where there is room for four. */
static enum exec push_selector_small(struct vcpu *vcpu, u16 selector)
{
	u64 sp = (vcpu->arch.regs[RSP] - 4) & stack_mask(vcpu);
	gva_t va;
	enum exec r = seg_linear(vcpu, SEG_SS, sp, 2, true, &va);

	if (r == EXEC_OK)
		r = mem_store(vcpu, va, 2, selector);
	if (r == EXEC_OK)
		stack_set_sp(vcpu, sp, stack_mask(vcpu));
	return r;
}

static enum exec op_push_seg(struct vcpu *vcpu, const struct insn *insn)
{
	u16 selector = vcpu->arch.seg[insn->cc].selector;

	if (insn->opsize == 4 && !host_is_amd())
		return push_selector_small(vcpu, selector);
	return stack_push(vcpu, insn->opsize, selector);
}

static enum exec op_pop_seg(struct vcpu *vcpu, const struct insn *insn)
{
	u64 rsp = vcpu->arch.regs[RSP], val;
	enum exec r = stack_pop(vcpu, insn->opsize, &val);

	if (r != EXEC_OK)
		return r;
	r = load_segment(vcpu, insn->cc, val);
	if (r == EXEC_OK)
		return seg_loaded(vcpu, insn, true);
	vcpu->arch.regs[RSP] = rsp;
	return r;
}

static enum exec op_load_far_pointer(struct vcpu *vcpu, const struct insn *insn)
{
	u64 off = 0;
	u8 buf[10];
	u16 selector;
	gva_t va;
	enum exec r = insn_linear(vcpu, insn, insn->opsize + 2, false, &va);

	if (r == EXEC_OK)
		r = mem_read(vcpu, va, buf, insn->opsize + 2, mmu_data_access(vcpu, MMU_READ));
	if (r != EXEC_OK)
		return r;
	memcpy(&off, buf, insn->opsize);
	memcpy(&selector, buf + insn->opsize, 2);
	r = load_segment(vcpu, insn->cc, selector);
	if (r != EXEC_OK)
		return r;
	gpr_write(vcpu, insn->reg, insn->opsize, false, off);
	return seg_loaded(vcpu, insn, false);
}

/* ---- GDT, IDT, LDT, TR --------------------------------------------------------------------------------- */

static bool umip_blocks(const struct vcpu *vcpu)
{
	return (vcpu->arch.cr4 & X86_CR4_UMIP) && vcpu->arch.cpl;
}

static enum exec op_store_table(struct vcpu *vcpu, const struct insn *insn)
{
	const struct desc_table *t = insn->cc ? &vcpu->arch.idt : &vcpu->arch.gdt;
	unsigned len = in_64bit_mode(vcpu) ? 10 : 6;
	u8 buf[10];
	gva_t va;
	enum exec r;

	if (umip_blocks(vcpu))
		return queue_gp(vcpu, 0);
	memcpy(buf, &t->limit, 2);
	memcpy(buf + 2, &t->base, 8);
	r = insn_linear(vcpu, insn, len, true, &va);
	return r == EXEC_OK ? mem_write(vcpu, va, buf, len, mmu_data_access(vcpu, MMU_WRITE)) : r;
}

static enum exec op_load_table(struct vcpu *vcpu, const struct insn *insn)
{
	struct desc_table *t = insn->cc ? &vcpu->arch.idt : &vcpu->arch.gdt;
	unsigned len = in_64bit_mode(vcpu) ? 10 : 6;
	u8 buf[10] = { 0 };
	u64 base;
	gva_t va;
	enum exec r;

	if (vcpu->arch.cpl)
		return queue_gp(vcpu, 0);
	r = insn_linear(vcpu, insn, len, false, &va);
	if (r == EXEC_OK)
		r = mem_read(vcpu, va, buf, len, mmu_data_access(vcpu, MMU_READ));
	if (r != EXEC_OK)
		return r;
	memcpy(&base, buf + 2, 8);
	if (len == 10 && !is_canonical(base))
		return queue_gp(vcpu, 0);
	if (len == 6 && insn->opsize == 2)
		base &= 0xffffff;
	t->base = base;
	memcpy(&t->limit, buf, 2);
	return EXEC_END;
}

static enum exec op_store_selector(struct vcpu *vcpu, const struct insn *insn)
{
	if (!vcpu->arch.protected_mode)
		return queue_ud(vcpu);
	if (umip_blocks(vcpu))
		return queue_gp(vcpu, 0);
	return rm_store_small(vcpu, insn, vcpu->arch.seg[insn->cc].selector);
}

static enum exec load_ldtr(struct vcpu *vcpu, u16 selector)
{
	u64 desc, hi;
	enum exec r;

	if (SEL_NULL(selector)) {
		vcpu->arch.seg[SEG_LDTR] = segment_null(selector);
		vcpu->arch.seg[SEG_LDTR].ar |= DESC_LDT;
		return EXEC_OK;
	}
	if (selector & 4)
		return queue_gp(vcpu, selector & ~3u);
	r = descriptor_fetch(vcpu, selector, GP_VECTOR, 0, &desc, &hi);
	if (r != EXEC_OK)
		return r;
	if (desc_s(desc) || desc_type(desc) != DESC_LDT)
		return queue_gp(vcpu, selector & ~3u);
	if (!desc_present(desc))
		return queue_exception_e(vcpu, NP_VECTOR, selector & ~3u);
	if (!is_canonical(hi << 32 | desc_base(desc)))
		return queue_gp(vcpu, selector & ~3u);
	vcpu->arch.seg[SEG_LDTR] = segment_from_desc(selector, desc);
	vcpu->arch.seg[SEG_LDTR].base |= hi << 32;
	return EXEC_OK;
}

static enum exec load_tr(struct vcpu *vcpu, u16 selector)
{
	u64 desc, hi;
	unsigned type;
	enum exec r;

	if (SEL_NULL(selector))
		return queue_gp(vcpu, 0);
	if (selector & 4)
		return queue_gp(vcpu, selector & ~3u);
	r = descriptor_fetch(vcpu, selector, GP_VECTOR, 0, &desc, &hi);
	if (r != EXEC_OK)
		return r;
	type = desc_type(desc);
	if (desc_s(desc) || !(type == DESC_TSS32 || (type == DESC_TSS16 && !vcpu->arch.long_mode)))
		return queue_gp(vcpu, selector & ~3u);
	if (!desc_present(desc))
		return queue_exception_e(vcpu, NP_VECTOR, selector & ~3u);
	if (!is_canonical(hi << 32 | desc_base(desc)))
		return queue_gp(vcpu, selector & ~3u);
	r = descriptor_set_bits(vcpu, selector, BIT(9));
	if (r != EXEC_OK)
		return r;
	vcpu->arch.seg[SEG_TR] = segment_from_desc(selector, desc | 2ull << 40);
	vcpu->arch.seg[SEG_TR].base |= hi << 32;
	return EXEC_OK;
}

static enum exec op_load_selector(struct vcpu *vcpu, const struct insn *insn)
{
	u64 val;
	enum exec r;

	if (!vcpu->arch.protected_mode)
		return queue_ud(vcpu);
	if (vcpu->arch.cpl)
		return queue_gp(vcpu, 0);
	r = rm_load_small(vcpu, insn, &val);
	if (r != EXEC_OK)
		return r;
	return insn->cc == SEG_TR ? load_tr(vcpu, val) : load_ldtr(vcpu, val);
}

/* ---- LAR, LSL, VERR, VERW, ARPL --------------------------------------------------------------------------- */

static void set_zf(struct vcpu *vcpu, bool zf)
{
	vcpu->arch.rflags = (vcpu->arch.rflags & ~(u64)X86_EFLAGS_ZF) | (zf ? X86_EFLAGS_ZF : 0);
}

/* System types each of them knows, in legacy and in long mode. */
#define LAR_TYPES 0x1a3e	/* 1-5, 9, 11, 12 */
#define LAR_TYPES_LONG 0x1a04	/* 2, 9, 11, 12 */
#define LSL_TYPES 0x0a0e	/* 1-3, 9, 11 */
#define LSL_TYPES_LONG 0x0a04	/* 2, 9, 11 */

static bool visible(const struct vcpu *vcpu, u16 selector, u64 desc)
{
	unsigned dpl = desc_dpl(desc);

	return desc_conforming(desc) || (vcpu->arch.cpl <= dpl && SEL_RPL(selector) <= dpl);
}

/* insn->cc: 0 LAR, 1 LSL */
static enum exec op_lar_lsl(struct vcpu *vcpu, const struct insn *insn)
{
	bool lsl = insn->cc, lm = vcpu->arch.long_mode, found;
	u32 types = lsl ? (lm ? LSL_TYPES_LONG : LSL_TYPES) : (lm ? LAR_TYPES_LONG : LAR_TYPES);
	u64 selector, desc, hi;
	enum exec r;

	if (!vcpu->arch.protected_mode)
		return queue_ud(vcpu);
	r = rm_load_small(vcpu, insn, &selector);
	if (r == EXEC_OK)
		r = descriptor_peek(vcpu, selector, &found, &desc, &hi);
	if (r != EXEC_OK)
		return r;
	if (found && !desc_s(desc) && !(types >> desc_type(desc) & 1))
		found = false;
	if (found && !visible(vcpu, selector, desc))
		found = false;
	if (found)
		gpr_write(vcpu, insn->reg, insn->opsize, false,
			  lsl ? desc_limit(desc) : desc >> 32 & 0xffff00);
	set_zf(vcpu, found);
	return EXEC_OK;
}

/* insn->cc: 0 VERR, 1 VERW */
static enum exec op_verify(struct vcpu *vcpu, const struct insn *insn)
{
	u64 selector, desc;
	bool found;
	enum exec r;

	if (!vcpu->arch.protected_mode)
		return queue_ud(vcpu);
	r = rm_load_small(vcpu, insn, &selector);
	if (r == EXEC_OK)
		r = descriptor_peek(vcpu, selector, &found, &desc, NULL);
	if (r != EXEC_OK)
		return r;
	set_zf(vcpu, found && visible(vcpu, selector, desc) &&
			     (insn->cc ? desc_writable_data(desc) : desc_readable(desc)));
	return EXEC_OK;
}

static enum exec op_arpl(struct vcpu *vcpu, const struct insn *insn)
{
	u64 dst, rpl = gpr_read(vcpu, insn->reg, 2, false) & 3;
	gva_t va = 0;
	enum exec r = EXEC_OK;

	if (!vcpu->arch.protected_mode)
		return queue_ud(vcpu);
	if (insn->rm == INSN_NOREG) {
		r = insn_linear(vcpu, insn, 2, false, &va);
		if (r == EXEC_OK)
			r = mem_load(vcpu, va, 2, &dst);
	} else {
		dst = gpr_read(vcpu, insn->rm, 2, false);
	}
	if (r != EXEC_OK)
		return r;
	if ((dst & 3) >= rpl) {
		set_zf(vcpu, false);
		return EXEC_OK;
	}
	dst = (dst & ~3ull) | rpl;
	if (insn->rm == INSN_NOREG) {
		r = insn_linear(vcpu, insn, 2, true, &va);
		if (r == EXEC_OK)
			r = mem_store(vcpu, va, 2, dst);
	} else {
		gpr_write(vcpu, insn->rm, 2, false, dst);
	}
	if (r == EXEC_OK)
		set_zf(vcpu, true);
	return r;
}

/* ---- selection ---------------------------------------------------------------------------------------------- */

static bool operand_seg(const struct decode_ctx *ctx, unsigned n, struct insn *insn)
{
	ZydisRegister reg = ctx->ops[n].reg.value;

	if (n >= ctx->zi->operand_count_visible || ctx->ops[n].type != ZYDIS_OPERAND_TYPE_REGISTER)
		return false;
	if (reg < ZYDIS_REGISTER_ES || reg > ZYDIS_REGISTER_GS)
		return false;
	insn->cc = seg_from_zydis(reg);
	return true;
}

static void operand_rm(const struct decode_ctx *ctx, unsigned n, struct insn *insn)
{
	if (operand_kind(ctx, n) == OPERAND_GPR)
		operand_to_rm(ctx, n, insn);
	else
		insn->rm = INSN_NOREG;
}

static insn_fn select_mov(const struct decode_ctx *ctx, struct insn *insn)
{
	if (operand_seg(ctx, 0, insn)) {
		if (insn->cc == SEG_CS)
			return op_ud;
		operand_rm(ctx, 1, insn);
		if (insn->cc == SEG_SS)
			insn->flags |= INSN_END_BLOCK;
		return op_mov_seg_rm;
	}
	if (operand_seg(ctx, 1, insn)) {
		operand_rm(ctx, 0, insn);
		insn->opsize = operand_bytes(ctx, 0);
		return op_mov_rm_seg;
	}
	return NULL;
}

static insn_fn select_stack(const struct decode_ctx *ctx, struct insn *insn, bool pop)
{
	if (!operand_seg(ctx, 0, insn))
		return NULL;
	insn->opsize = ctx->zi->operand_width / 8;
	if (in_64bit_mode(ctx->vcpu) && insn->opsize == 4)
		insn->opsize = 8;
	if (pop && insn->cc == SEG_SS)
		insn->flags |= INSN_END_BLOCK;
	return pop ? op_pop_seg : op_push_seg;
}

static insn_fn select_far_pointer(const struct decode_ctx *ctx, struct insn *insn, enum seg seg)
{
	operand_to_reg(ctx, 0, insn);
	insn->opsize = operand_bytes(ctx, 0);
	insn->cc = seg;
	if (seg == SEG_SS)
		insn->flags |= INSN_END_BLOCK;
	return op_load_far_pointer;
}

static insn_fn select_rm(const struct decode_ctx *ctx, struct insn *insn, u8 cc, insn_fn fn)
{
	operand_rm(ctx, 0, insn);
	insn->opsize = operand_bytes(ctx, 0);
	insn->cc = cc;
	return fn;
}

static insn_fn select_reg_rm(const struct decode_ctx *ctx, struct insn *insn, u8 cc, insn_fn fn)
{
	operand_to_reg(ctx, 0, insn);
	operand_rm(ctx, 1, insn);
	insn->opsize = operand_bytes(ctx, 0);
	insn->cc = cc;
	return fn;
}

static insn_fn select_table(const struct decode_ctx *ctx, struct insn *insn, u8 cc, insn_fn fn)
{
	insn->opsize = ctx->zi->operand_width / 8;
	insn->cc = cc;
	if (fn == op_load_table)
		insn->flags |= INSN_END_BLOCK;
	return fn;
}

insn_fn descriptor_select(const struct decode_ctx *ctx, struct insn *insn)
{
	switch (ctx->zi->mnemonic) {
	case ZYDIS_MNEMONIC_MOV: return select_mov(ctx, insn);
	case ZYDIS_MNEMONIC_PUSH: return select_stack(ctx, insn, false);
	case ZYDIS_MNEMONIC_POP: return select_stack(ctx, insn, true);
	case ZYDIS_MNEMONIC_LDS: return select_far_pointer(ctx, insn, SEG_DS);
	case ZYDIS_MNEMONIC_LES: return select_far_pointer(ctx, insn, SEG_ES);
	case ZYDIS_MNEMONIC_LFS: return select_far_pointer(ctx, insn, SEG_FS);
	case ZYDIS_MNEMONIC_LGS: return select_far_pointer(ctx, insn, SEG_GS);
	case ZYDIS_MNEMONIC_LSS: return select_far_pointer(ctx, insn, SEG_SS);
	case ZYDIS_MNEMONIC_SGDT: return select_table(ctx, insn, 0, op_store_table);
	case ZYDIS_MNEMONIC_SIDT: return select_table(ctx, insn, 1, op_store_table);
	case ZYDIS_MNEMONIC_LGDT: return select_table(ctx, insn, 0, op_load_table);
	case ZYDIS_MNEMONIC_LIDT: return select_table(ctx, insn, 1, op_load_table);
	case ZYDIS_MNEMONIC_SLDT: return select_rm(ctx, insn, SEG_LDTR, op_store_selector);
	case ZYDIS_MNEMONIC_STR: return select_rm(ctx, insn, SEG_TR, op_store_selector);
	case ZYDIS_MNEMONIC_LLDT: return select_rm(ctx, insn, SEG_LDTR, op_load_selector);
	case ZYDIS_MNEMONIC_LTR: return select_rm(ctx, insn, SEG_TR, op_load_selector);
	case ZYDIS_MNEMONIC_LAR: return select_reg_rm(ctx, insn, 0, op_lar_lsl);
	case ZYDIS_MNEMONIC_LSL: return select_reg_rm(ctx, insn, 1, op_lar_lsl);
	case ZYDIS_MNEMONIC_VERR: return select_rm(ctx, insn, 0, op_verify);
	case ZYDIS_MNEMONIC_VERW: return select_rm(ctx, insn, 1, op_verify);
	case ZYDIS_MNEMONIC_ARPL:
		operand_rm(ctx, 0, insn);
		operand_to_reg(ctx, 1, insn);
		return op_arpl;
	default: return NULL;
	}
}

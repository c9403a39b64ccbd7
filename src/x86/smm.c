/* SPDX-License-Identifier: MIT */
/*
 * System management mode, as KVM has it: the state goes to SMRAM at SMBASE + 0xfe00, in AMD's 64-bit layout if
 * the guest's CPUID has long mode, in the P6's otherwise. I/O restart and auto-halt restart do not exist.
 *
 *  1. arch.smm and vcpu->as_id change together (smm_set()), and with them every cached translation goes:
 *     SMM code sees address space 1.
 *  2. SMRAM is written, or read, in address space 1; what RSM's state refers to (PDPTRs) is read in address space 0.
 *  3. A host page fault that a kick aborts leaves everything as it was: entry or RSM starts over.
 *  4. What RSM would not load ends in a triple fault, as in KVM; an SMRAM that is not there at entry kills the VM.
 *  5. The translator takes no part (in_flat_mode()).
 */
#include <string.h>

#include "host/host.h"
#include "kvm/trace.h"
#include "x86/cr.h"
#include "x86/debug.h"
#include "x86/irqchip.h"
#include "x86/mmu.h"
#include "x86/ops/descriptor.h"
#include "x86/smm.h"

#define SMRAM_STATE 0xfe00
#define SMRAM_STATE_SIZE 512
#define SMM_REVISION_32 0x00020000
#define SMM_REVISION_64 0x00020064
#define SMM_ENTRY 0x8000
#define AR_SAVED 0xf0ffu

/* One segment in SMRAM; tables have base and limit only. */
struct smram_seg64 {
	u16 selector, ar;
	u32 limit;
	u64 base;
};

struct smram64 {
	struct smram_seg64 es, cs, ss, ds, fs, gs, gdtr, ldtr, idtr, tr;
	u64 io_restart[4];
	u32 io_restart_dword, reserved1;
	u8 io_restart_flag, auto_halt_restart, nmi_mask, int_shadow;
	u32 reserved2;
	u64 efer;
	u64 svm[3];
	u32 reserved3[3];
	u32 revision, smbase;
	u32 reserved4[5];
	u64 ssp, svm_host[5];
	u64 cr4, cr3, cr0, dr7, dr6, rflags, rip;
	u64 gprs[16];	/* R15 first */
};
_Static_assert(offsetof(struct smram64, efer) == 0xd0, "AMD's layout");
_Static_assert(offsetof(struct smram64, smbase) == 0x100, "AMD's layout");
_Static_assert(offsetof(struct smram64, cr4) == 0x148, "AMD's layout");
_Static_assert(sizeof(struct smram64) == SMRAM_STATE_SIZE, "AMD's layout");

struct smram_seg32 {
	u32 ar, limit, base;
};

struct smram32 {
	u32 reserved1[62];
	u32 smbase, revision;
	u16 io_restart_flag, auto_halt_restart;
	u32 io_restart[4];
	u32 cr4;
	u16 reserved2;
	u8 int_shadow;	/* KVM's addition */
	u8 reserved3[17];
	struct smram_seg32 ds, fs, gs, idtr, tr;
	u32 reserved4;
	struct smram_seg32 gdtr, ldtr, es, cs, ss;
	u32 es_sel, cs_sel, ss_sel, ds_sel, fs_sel, gs_sel, ldtr_sel, tr_sel;
	u32 dr7, dr6;
	u32 gprs[8];	/* EAX first */
	u32 eip, eflags, cr3, cr0;
};
_Static_assert(offsetof(struct smram32, ds) == 0x12c, "the P6's layout");
_Static_assert(offsetof(struct smram32, dr7) == 0x1c8, "the P6's layout");
_Static_assert(sizeof(struct smram32) == SMRAM_STATE_SIZE, "the P6's layout");

union smram {
	struct smram64 s64;
	struct smram32 s32;
};

/* What either layout holds. */
struct smm_state {
	u64 regs[16], rip, rflags, cr0, cr3, cr4, efer, dr6, dr7;
	struct segment seg[NR_SEGS];
	struct desc_table gdt, idt;
	u32 smbase;
	u8 int_shadow;
};

static const u16 seg64_offset[NR_SEGS] = {
#define S(name) offsetof(struct smram64, name)
	[SEG_ES] = S(es), [SEG_CS] = S(cs), [SEG_SS] = S(ss), [SEG_DS] = S(ds),
	[SEG_FS] = S(fs), [SEG_GS] = S(gs), [SEG_TR] = S(tr), [SEG_LDTR] = S(ldtr),
#undef S
};

static const struct {
	u16 seg, sel;
} seg32_offset[NR_SEGS] = {
#define S(name) { offsetof(struct smram32, name), offsetof(struct smram32, name##_sel) }
	[SEG_ES] = S(es), [SEG_CS] = S(cs), [SEG_SS] = S(ss), [SEG_DS] = S(ds),
	[SEG_FS] = S(fs), [SEG_GS] = S(gs), [SEG_TR] = S(tr), [SEG_LDTR] = S(ldtr),
#undef S
};

static bool has_long_mode(struct vcpu *vcpu)
{
	return guest_cpuid_has(vcpu, 0x80000001, 0, CPUID_EDX, 29);
}

/* ---- SMRAM ---------------------------------------------------------------------- */

static u16 ar_saved(const struct segment *s)
{
	return s->ar & AR_SAVED & (s->ar & AR_UNUSABLE ? ~(u32)AR_P : ~0u);
}

static u32 ar_loaded(u32 saved)
{
	return (saved & AR_SAVED) | (saved & AR_P ? 0 : AR_UNUSABLE);
}

static void pack64(const struct smm_state *st, struct smram64 *m)
{
	for (int i = 0; i < 16; i++)
		m->gprs[15 - i] = st->regs[i];
	for (int i = 0; i < NR_SEGS; i++)
		*(struct smram_seg64 *)((u8 *)m + seg64_offset[i]) = (struct smram_seg64){
			.selector = st->seg[i].selector, .ar = ar_saved(&st->seg[i]),
			.limit = st->seg[i].limit, .base = st->seg[i].base,
		};
	m->gdtr = (struct smram_seg64){ .limit = st->gdt.limit, .base = st->gdt.base };
	m->idtr = (struct smram_seg64){ .limit = st->idt.limit, .base = st->idt.base };
	m->rip = st->rip;
	m->rflags = st->rflags;
	m->dr6 = st->dr6;
	m->dr7 = st->dr7;
	m->cr0 = st->cr0;
	m->cr3 = st->cr3;
	m->cr4 = st->cr4;
	m->efer = st->efer;
	m->smbase = st->smbase;
	m->revision = SMM_REVISION_64;
	m->int_shadow = st->int_shadow;
}

static void unpack64(const struct smram64 *m, struct smm_state *st)
{
	for (int i = 0; i < 16; i++)
		st->regs[i] = m->gprs[15 - i];
	for (int i = 0; i < NR_SEGS; i++) {
		const struct smram_seg64 *s = (const void *)((const u8 *)m + seg64_offset[i]);

		st->seg[i] = (struct segment){
			.selector = s->selector, .ar = ar_loaded(s->ar), .limit = s->limit, .base = s->base,
		};
	}
	st->gdt = (struct desc_table){ .limit = m->gdtr.limit, .base = m->gdtr.base };
	st->idt = (struct desc_table){ .limit = m->idtr.limit, .base = m->idtr.base };
	st->rip = m->rip;
	st->rflags = m->rflags;
	st->dr6 = m->dr6;
	st->dr7 = m->dr7;
	st->cr0 = m->cr0;
	st->cr3 = m->cr3;
	st->cr4 = m->cr4;
	st->efer = m->efer & ~(u64)EFER_LMA;
	st->smbase = m->smbase;
	st->int_shadow = m->int_shadow;
}

static void pack32(const struct smm_state *st, struct smram32 *m)
{
	for (int i = 0; i < 8; i++)
		m->gprs[i] = st->regs[i];
	for (int i = 0; i < NR_SEGS; i++) {
		*(struct smram_seg32 *)((u8 *)m + seg32_offset[i].seg) = (struct smram_seg32){
			.ar = (u32)ar_saved(&st->seg[i]) << 8, .limit = st->seg[i].limit, .base = st->seg[i].base,
		};
		*(u32 *)((u8 *)m + seg32_offset[i].sel) = st->seg[i].selector;
	}
	m->gdtr = (struct smram_seg32){ .limit = st->gdt.limit, .base = st->gdt.base };
	m->idtr = (struct smram_seg32){ .limit = st->idt.limit, .base = st->idt.base };
	m->eip = st->rip;
	m->eflags = st->rflags;
	m->dr6 = st->dr6;
	m->dr7 = st->dr7;
	m->cr0 = st->cr0;
	m->cr3 = st->cr3;
	m->cr4 = st->cr4;
	m->smbase = st->smbase;
	m->revision = SMM_REVISION_32;
	m->int_shadow = st->int_shadow;
}

static void unpack32(const struct smram32 *m, struct smm_state *st)
{
	memset(st, 0, sizeof(*st));
	for (int i = 0; i < 8; i++)
		st->regs[i] = m->gprs[i];
	for (int i = 0; i < NR_SEGS; i++) {
		const struct smram_seg32 *s = (const void *)((const u8 *)m + seg32_offset[i].seg);

		st->seg[i] = (struct segment){
			.selector = *(const u32 *)((const u8 *)m + seg32_offset[i].sel),
			.ar = ar_loaded(s->ar >> 8), .limit = s->limit, .base = s->base,
		};
	}
	st->gdt = (struct desc_table){ .limit = m->gdtr.limit, .base = m->gdtr.base };
	st->idt = (struct desc_table){ .limit = m->idtr.limit, .base = m->idtr.base };
	st->rip = m->eip;
	st->rflags = m->eflags;
	st->dr6 = m->dr6;
	st->dr7 = m->dr7;
	st->cr0 = m->cr0;
	st->cr3 = m->cr3;
	st->cr4 = m->cr4;
	st->smbase = m->smbase;
	st->int_shadow = m->int_shadow;
}

static void state_capture(const struct vcpu *vcpu, struct smm_state *st)
{
	const struct vcpu_arch *a = &vcpu->arch;

	*st = (struct smm_state){
		.rip = a->rip, .rflags = a->rflags, .cr0 = a->cr0, .cr3 = a->cr3, .cr4 = a->cr4,
		.efer = a->efer, .dr6 = a->dr6, .dr7 = a->dr7, .gdt = a->gdt, .idt = a->idt,
		.smbase = a->msr.smbase, .int_shadow = a->interrupt_shadow,
	};
	memcpy(st->regs, a->regs, sizeof(st->regs));
	memcpy(st->seg, a->seg, sizeof(st->seg));
}

/* ---- in ------------------------------------------------------------------------------- */

void smm_inject_smi(struct vcpu *vcpu)
{
	atomic_store(&vcpu->arch.smi_pending, true);
	vcpu_make_request(vcpu, KVM_REQ_EVENT);
}

void smm_set(struct vcpu *vcpu, bool smm)
{
	trace(kvm_smm_transition, vcpu->id, smm, vcpu->arch.msr.smbase);
	vcpu->arch.smm = smm;
	if (!smm) {
		vcpu->arch.smm_inside_nmi = false;
		vcpu->arch.pdptrs_from_userspace = false;
		vcpu_make_request(vcpu, KVM_REQ_EVENT); /* a latched INIT or SMI */
	}
	vcpu_set_address_space(vcpu, smm ? ADDRESS_SPACE_SMM : ADDRESS_SPACE_NORMAL);
	mmu_flush_all(vcpu);
}

/* SMRAM could not be reached. True: only because of a kick. */
static bool kicked(void)
{
	bool was = host_kicked;

	host_kicked = false;
	return was;
}

/* Real mode with limits of 4 GiB, and an IDT limit that nobody documents. */
static void load_entry_state(struct vcpu *vcpu)
{
	static const u8 data_segs[] = { SEG_ES, SEG_SS, SEG_DS, SEG_FS, SEG_GS };
	const struct segment flat = { .limit = 0xffffffff, .ar = AR_G | AR_P | AR_S | 3 };
	struct vcpu_arch *a = &vcpu->arch;

	a->rflags = X86_EFLAGS_FIXED;
	a->rip = SMM_ENTRY;
	a->interrupt_shadow = 0;
	a->cr0 &= ~(u64)(X86_CR0_PE | X86_CR0_EM | X86_CR0_TS | X86_CR0_PG);
	a->cr4 = 0;
	a->efer = 0;
	a->idt = (struct desc_table){ 0 };
	a->dr7 = 0x400;
	update_effective_dr(vcpu);
	for (unsigned i = 0; i < ARRAY_SIZE(data_segs); i++)
		a->seg[data_segs[i]] = flat;
	a->seg[SEG_CS] = flat;
	a->seg[SEG_CS].base = a->msr.smbase;
	a->seg[SEG_CS].selector = a->msr.smbase >> 4;
	vcpu_update_mode(vcpu);
}

enum exec smm_enter(struct vcpu *vcpu)
{
	struct vcpu_arch *a = &vcpu->arch;
	union smram smram;
	struct smm_state st;

	memset(&smram, 0, sizeof(smram));
	state_capture(vcpu, &st);
	if (has_long_mode(vcpu))
		pack64(&st, &smram.s64);
	else
		pack32(&st, &smram.s32);
	smm_set(vcpu, true);
	if (vcpu_write_guest(vcpu, a->msr.smbase + SMRAM_STATE, &smram, sizeof(smram))) {
		if (!kicked()) {
			vm_kill(vcpu->vm);
			return EXEC_END;
		}
		smm_set(vcpu, false);
		return EXEC_RETRY;
	}
	atomic_store(&a->smi_pending, false);
	a->msr.smi_count++;
	a->smm_inside_nmi = a->nmi_masked;
	a->nmi_masked = true;
	load_entry_state(vcpu);
	mmu_flush_all(vcpu);
	return EXEC_OK;
}

/* ---- out ---------------------------------------------------------------------------------- */

static bool state_valid(struct vcpu *vcpu, const struct smm_state *st)
{
	bool paging = st->cr0 & X86_CR0_PG, long_mode = paging && (st->efer & EFER_LME);

	if (st->dr6 >> 32 || st->dr7 >> 32 || !efer_valid(vcpu, st->efer))
		return false;
	if (!cr0_valid(st->cr0) || !cr4_valid(vcpu, st->cr4) || !cr3_valid(vcpu, st->cr3))
		return false;
	if (long_mode && !(st->cr4 & X86_CR4_PAE))
		return false;
	return long_mode || !(st->cr4 & X86_CR4_PCIDE);
}

static void state_load(struct vcpu *vcpu, const struct smm_state *st)
{
	struct vcpu_arch *a = &vcpu->arch;

	memcpy(a->regs, st->regs, sizeof(a->regs));
	memcpy(a->seg, st->seg, sizeof(a->seg));
	a->rip = st->rip;
	a->cr0 = st->cr0 | X86_CR0_ET;
	a->cr3 = st->cr3;
	a->cr4 = st->cr4;
	a->efer = st->efer | ((st->cr0 & X86_CR0_PG) && (st->efer & EFER_LME) ? EFER_LMA : 0);
	a->dr6 = st->dr6;
	a->dr7 = st->dr7;
	a->gdt = st->gdt;
	a->idt = st->idt;
	a->msr.smbase = st->smbase;
	vcpu_set_rflags(vcpu, st->rflags);
	a->interrupt_shadow = st->int_shadow & (KVM_X86_SHADOW_INT_MOV_SS | KVM_X86_SHADOW_INT_STI);
	update_effective_dr(vcpu);
	vcpu_update_mode(vcpu);
	mmu_flush_all(vcpu);
}

static bool needs_pdptrs(const struct smm_state *st)
{
	return (st->cr0 & X86_CR0_PG) && (st->cr4 & X86_CR4_PAE) && !(st->efer & EFER_LME);
}

static enum exec shutdown(struct vcpu *vcpu)
{
	vcpu_make_request(vcpu, KVM_REQ_TRIPLE_FAULT);
	return EXEC_FAULT;
}

enum exec smm_leave(struct vcpu *vcpu)
{
	struct vcpu_arch *a = &vcpu->arch;
	bool inside_nmi = a->smm_inside_nmi;
	union smram smram;
	struct smm_state st;

	if (vcpu_read_guest(vcpu, a->msr.smbase + SMRAM_STATE, &smram, sizeof(smram)))
		return kicked() ? EXEC_RETRY : shutdown(vcpu);
	if (has_long_mode(vcpu))
		unpack64(&smram.s64, &st);
	else
		unpack32(&smram.s32, &st);
	smm_set(vcpu, false);
	if (!state_valid(vcpu, &st))
		return shutdown(vcpu);
	if (needs_pdptrs(&st) && !mmu_load_pdptrs(vcpu, st.cr3)) {
		if (!kicked())
			return shutdown(vcpu);
		smm_set(vcpu, true);
		a->smm_inside_nmi = inside_nmi;
		return EXEC_RETRY;
	}
	if (!inside_nmi)
		nmi_unblock(vcpu);
	state_load(vcpu, &st);
	return EXEC_BRANCH;
}

/* SPDX-License-Identifier: MIT */
/*
 * Descriptors, stack frames and control transfers: shared by x86/event.c and the
 * system half of x86/ops.
 *
 * "ext" is the EXT bit of an error code: 1 while an event from outside the
 * program is being delivered, else 0.
 */
#ifndef SOFTKVM_X86_OPS_DESCRIPTOR_H
#define SOFTKVM_X86_OPS_DESCRIPTOR_H

#include "x86/interp/insn.h"
#include "x86/mmu.h"
#include "x86/x86.h"

/* System descriptor types (S = 0). */
enum {
	DESC_TSS16 = 1, DESC_LDT = 2, DESC_TSS16_BUSY = 3, DESC_CALL16 = 4, DESC_TASK_GATE = 5,
	DESC_INT16 = 6, DESC_TRAP16 = 7, DESC_TSS32 = 9, DESC_TSS32_BUSY = 11, DESC_CALL32 = 12,
	DESC_INT32 = 14, DESC_TRAP32 = 15,
};

#define SEL_RPL(sel) ((sel) & 3u)
#define SEL_NULL(sel) (((sel) & 0xfffc) == 0)

static inline unsigned desc_type(u64 d) { return d >> 40 & 15; }
static inline bool desc_s(u64 d) { return d >> 44 & 1; }
static inline unsigned desc_dpl(u64 d) { return d >> 45 & 3; }
static inline bool desc_present(u64 d) { return d >> 47 & 1; }
static inline bool desc_l(u64 d) { return d >> 53 & 1; }
static inline bool desc_db(u64 d) { return d >> 54 & 1; }
static inline bool desc_code(u64 d) { return desc_s(d) && (d >> 43 & 1); }
static inline bool desc_conforming(u64 d) { return desc_code(d) && (d >> 42 & 1); }
static inline bool desc_writable_data(u64 d) { return desc_s(d) && !(d >> 43 & 1) && (d >> 41 & 1); }
static inline bool desc_readable(u64 d) { return desc_s(d) && (!(d >> 43 & 1) || (d >> 41 & 1)); }

static inline u32 desc_limit(u64 d)
{
	u32 limit = (d & 0xffff) | (d >> 32 & 0xf0000);

	return d >> 55 & 1 ? limit << 12 | 0xfff : limit;
}

static inline u32 desc_base(u64 d)
{
	return (d >> 16 & 0xffffff) | (d >> 32 & 0xff000000);
}

struct segment segment_from_desc(u16 selector, u64 desc);
/* A segment register after a null selector was loaded. */
struct segment segment_null(u16 selector);
/* What real mode (base only) or vm86 loads; old is the register's present content. */
struct segment segment_real(const struct vcpu *vcpu, const struct segment *old, u16 selector);

/* read_descriptor() with the EXT bit; hi may be NULL, else receives the second half of a 16-byte one. */
enum exec descriptor_fetch(struct vcpu *vcpu, u16 selector, u8 error_vec, u32 ext, u64 *desc, u64 *hi);
/* LAR and friends: *found false instead of an exception when the selector names nothing. */
enum exec descriptor_peek(struct vcpu *vcpu, u16 selector, bool *found, u64 *desc, u64 *hi);
/* Set bits of the second dword in memory, atomically where it is RAM. */
enum exec descriptor_set_bits(struct vcpu *vcpu, u16 selector, u32 bits);
/* Set the accessed bit of a code or data descriptor in memory and in *desc, unless it is set already. */
enum exec descriptor_accessed(struct vcpu *vcpu, u16 selector, u64 *desc);

/* Null DS, ES, FS, GS that the new (outer) CPL may not use. */
void drop_inner_segments(struct vcpu *vcpu);
/* Load CS, and the privilege with it: SS.DPL is where the CPL lives. Calls vcpu_update_mode(). */
void commit_cs(struct vcpu *vcpu, struct segment cs, unsigned cpl);

/* What is left of a 64-bit offset on the way into a compatibility segment. */
static inline u64 code_target(const struct vcpu *vcpu, const struct segment *cs, u64 rip)
{
	return vcpu->arch.long_mode && !(cs->ar & AR_L) ? (u32)rip : rip;
}

/* Is rip a valid target in code segment cs (limit, or canonical form)? */
bool code_target_valid(const struct vcpu *vcpu, const struct segment *cs, u64 rip);

/* Where a frame goes. */
struct stack_ref {
	struct segment ss;
	u64 sp;
	u64 mask;	/* of the stack pointer */
	unsigned access;/* MMU_* for the pushes */
	u32 error;	/* of the #SS */
	bool flat64;	/* canonical check instead of limits */
};
struct stack_ref stack_current(const struct vcpu *vcpu);
/*
 * Push n values (vals[0] first, so at the highest address), all or nothing;
 * *sp is the new stack pointer. Nothing but memory changes.
 */
enum exec stack_frame_push(struct vcpu *vcpu, const struct stack_ref *st, unsigned size,
			   const u64 *vals, unsigned n, u64 *sp);
/* Read n values upwards from st->sp + skip. */
enum exec stack_frame_read(struct vcpu *vcpu, const struct stack_ref *st, unsigned size,
			   unsigned skip, u64 *vals, unsigned n);
/* RSP := sp, keeping what a narrower stack pointer does not reach. */
void stack_set_sp(struct vcpu *vcpu, u64 sp, u64 mask);
/* Ring dpl's stack out of the TSS; legacy: *ss_sel too. #TS on a short TSS. ist 0: RSPn. */
enum exec tss_stack(struct vcpu *vcpu, unsigned dpl, unsigned ist, u32 ext, u16 *ss_sel, u64 *sp);
/* Checks of an inner stack segment from a TSS (#TS, #SS). */
enum exec check_inner_ss(struct vcpu *vcpu, u16 selector, unsigned dpl, u32 ext, struct segment *ss);

/* ops/far.c: what RETF and IRET check of the segments they return to. */
enum exec check_return_cs(struct vcpu *vcpu, u16 selector, u64 rip, struct segment *cs);
enum exec check_outer_ss(struct vcpu *vcpu, u16 selector, unsigned cpl, u32 cs_ar, struct segment *ss);

/* ops/task.c */
enum task_switch_reason { TASK_JMP, TASK_CALL, TASK_IRET, TASK_GATE };
/* rip is already past the instruction that asks for it (or at the interrupted one). EXEC_BRANCH or a failure. */
enum exec task_switch(struct vcpu *vcpu, u16 selector, int reason, bool has_error_code, u32 error_code);
/* Event delivery only: EXT goes into error codes. */
enum exec task_switch_ext(struct vcpu *vcpu, u16 selector, int reason, bool has_error_code,
			  u32 error_code, u32 ext);

/*
 * rip moved past an instruction on trial. A failure in the old task takes it back; one in a new task
 * (the TR has changed) belongs there.
 */
struct rip_mark {
	u64 rip;
	u16 tr;
};

static inline struct rip_mark rip_mark(const struct vcpu *vcpu)
{
	return (struct rip_mark){ vcpu->arch.rip, vcpu->arch.seg[SEG_TR].selector };
}

static inline void rip_restore(struct vcpu *vcpu, struct rip_mark mark, enum exec r)
{
	if (r != EXEC_BRANCH && vcpu->arch.seg[SEG_TR].selector == mark.tr)
		vcpu->arch.rip = mark.rip;
}

/* x86/event.c: IF, TF or AC may have changed. EXEC_END if the engine must look, else EXEC_OK. */
enum exec rflags_written(struct vcpu *vcpu, u64 old);
/* Real-mode style delivery through the table at ivt_base (INT n redirected in vm86). */
enum exec deliver_real(struct vcpu *vcpu, u8 vector, u64 flags_image, u64 clear);
/* NMIs are open again (IRET). */
void nmi_unblock(struct vcpu *vcpu);

static inline unsigned iopl(const struct vcpu *vcpu)
{
	return vcpu->arch.rflags >> 12 & 3;
}

bool guest_is_intel(struct vcpu *vcpu);

/* Operands such as SMSW's: a register of opsize, or 16 bits of memory. */
enum exec rm_store_small(struct vcpu *vcpu, const struct insn *insn, u64 val);
enum exec rm_load_small(struct vcpu *vcpu, const struct insn *insn, u64 *val);

/* Selection by file; each returns NULL for what is not its own. */
insn_fn far_select(const struct decode_ctx *ctx, struct insn *insn);
insn_fn iret_select(const struct decode_ctx *ctx, struct insn *insn);
insn_fn syscall_select(const struct decode_ctx *ctx, struct insn *insn);
insn_fn io_select(const struct decode_ctx *ctx, struct insn *insn);
insn_fn descriptor_select(const struct decode_ctx *ctx, struct insn *insn);

#endif

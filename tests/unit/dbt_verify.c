/* SPDX-License-Identifier: MIT */
/*
 * What the verifier of translated code lets pass and what it does not: short blocks, written as the
 * translator would write them, and the same with one thing wrong each.
 */
#include <setjmp.h>
#include <stdarg.h>
#include <stddef.h>
#include <stdint.h>
#include <stdlib.h>
#include <cmocka.h>

#include "x86/dbt/verify.h"

#define NR_SITES 10u
#define NR_EXITS 10u
#define BEGIN 1024u
#define COLD 65536u
#define EXIT_SLOT 64u
#define EXIT_HOST 128u
#define EXIT_INDIRECT 192u
#define SLOW 256u
#define LOAD_VEC 320u
#define LOAD_X87 384u
#define REFILL(ctx, kind) (448u + 80 * (ctx) + 16 * (kind))
#define STUB_BAD 70u
#define NR_LINKS 10u
#define JUMP_LINKED(relative) (704u + 16 * (relative))
#define JUMP(ctx, indirect) (768u + 32 * (ctx) + 16 * (indirect))

static struct vcpu *vcpu;
static struct dbt *d;
static struct emit *e;
static u32 cold_fields[4], nr_cold;	/* distances that are to lead to the slow path */
static u32 row_stub;	/* where faults lead to; 0: the slow path */
static u32 cold_at;	/* where the slow path begins */
static bool no_end;	/* the straight path has none */

static s32 tag(bool write)
{
	return write ? offsetof(struct mmu, tlbs[0].write) : offsetof(struct mmu, tlbs[0].read);
}

static s32 delta(unsigned ctx)
{
	return offsetof(struct mmu, tlbs[0].delta) + ctx * sizeof(struct tlb);
}

static void row(void)
{
	d->faults[d->nr_faults++].at = e->at;
}

/* T0 = offset of base + disp in its page, T1 = entry */
static void look_up_by(u8 base, s32 disp, bool write)
{
	put_lea(e, T0, MEM_BASE(base, disp));
	put_mov(e, T1, T0);
	put_shift_imm(e, W8, 5, T1, PAGE_SHIFT - 3);
	put_alu_imm(e, W4, 4, T1, (TLB_ENTRIES - 1) * 8);
	put_rm(e, W8, 0x03, T0, MEM_GS(T1, tag(write)));
}

static void look_up(s32 disp, bool write)
{
	look_up_by(RAX, disp, write);
}

/* The distance of the branch that is taken if cc. */
static void to_cold(u32 field)
{
	cold_fields[nr_cold++] = field;
}

static u32 compare_branch(unsigned size, u8 cc)
{
	put_alu_imm(e, W8, 7, T0, PAGE_SIZE - size);
	return put_jcc_later(e, cc);
}

static void compare(unsigned size)
{
	to_cold(compare_branch(size, CC_A));
}

static void check(s32 disp, unsigned size, bool write)
{
	look_up(disp, write);
	compare(size);
	put_load(e, T1, MEM_GS(T1, delta(0)));
}

static struct hmem operand(s32 disp)
{
	return MEM_SIB(RAX, T1, 0, disp);
}

/* ---- blocks that are right ----------------------------------------------------------------- */

static void empty(void)
{
}

static void load(void)
{
	check(8, 8, false);
	row();
	put_load(e, RCX, operand(8));
}

static void row_of_site(void)
{
	load();
	row_stub = FAULT_HOST_FLAGS | FAULT_SITE | (NR_SITES - 1);
}

static void store(void)
{
	check(8, 8, true);
	row();
	put_store(e, operand(8), RCX);
}

/* XCHG without LOCK, with a register that is its own, or one that is in the frame. */
static void exchange_by_moves(bool checked_for_writing, unsigned checked, u8 free, bool second_row)
{
	check(8, checked, checked_for_writing);
	row();
	put_load(e, free, operand(8));
	if (second_row)
		row();
	put_store(e, operand(8), RCX);
	put_mov(e, RCX, free);
}

static void moves(void)
{
	exchange_by_moves(true, 8, T0, true);
}

static void moves_of_home(void)
{
	check(8, 8, true);
	row();
	put_load(e, T0, operand(8));
	put_store(e, SLOT(FRAME_TMP0), T0);
	put_load(e, T0, SLOT(FRAME_R9));
	row();
	put_store(e, operand(8), T0);
	put_load(e, T0, SLOT(FRAME_TMP0));
	put_store(e, SLOT(FRAME_R9), T0);
}

static void moves_of_read_only(void)
{
	exchange_by_moves(false, 8, T0, true);
}

static void moves_of_half(void)
{
	exchange_by_moves(true, 4, T0, true);
}

static void moves_without_row(void)
{
	exchange_by_moves(true, 8, T0, false);
}

static void moves_losing_operand(void)
{
	exchange_by_moves(true, 8, T1, true);
}

static void moves_losing_base(void)
{
	exchange_by_moves(true, 8, RAX, true);
}

/* The same with RORX, dst = src by n. */
static void load_by_rorx(u8 dst, u8 src, u8 n)
{
	put_lea(e, T0, MEM_BASE(RAX, 8));
	put_rorx(e, dst, src, n);
	put_alu_imm(e, W4, 4, T1, (TLB_ENTRIES - 1) * 8);
	put_rm(e, W8, 0x03, T0, MEM_GS(T1, tag(false)));
	compare(8);
	put_load(e, T1, MEM_GS(T1, delta(0)));
	row();
	put_load(e, RCX, operand(8));
}

static void rotated(void)
{
	load_by_rorx(T1, T0, PAGE_SHIFT - 3);
}

static void rotated_by_less(void)
{
	load_by_rorx(T1, T0, PAGE_SHIFT - 4);
}

static void rotated_other(void)
{
	load_by_rorx(T1, RAX, PAGE_SHIFT - 3);
}

static void rotated_elsewhere(void)
{
	load_by_rorx(T0, T1, PAGE_SHIFT - 3);
}

static void load_under_write_tag(void)
{
	check(8, 8, true);
	row();
	put_load(e, RCX, operand(8));
}

/* One look-up for three accesses. */
static void coalesced(void)
{
	check(16, 24, true);
	row();
	put_load(e, RCX, operand(16));
	row();
	put_store(e, operand(24), RCX);
	row();
	put_store(e, operand(32), RCX);
}

/* The base once more, in another register. */
static void access_copy(s32 disp)
{
	row();
	put_load(e, RCX, MEM_SIB(RBX, T1, 0, disp));
}

static void copied_base(void)
{
	check(16, 24, false);
	put_mov(e, RBX, RAX);
	access_copy(32);
	put_lea(e, RBX, MEM_BASE(RBX, 32));
	put_alu_imm(e, W8, 5, RBX, 8);
	put_mov_imm(e, RAX, 0);
	access_copy(0);
}

static void copied_base_beyond(void)
{
	check(16, 24, false);
	put_lea(e, RBX, MEM_BASE(RAX, 8));
	access_copy(32);
}

static void copied_base_narrow(void)
{
	check(16, 24, false);
	put_rr(e, W4, 0x89, RAX, RBX);
	access_copy(16);
}

/* xchg %al, %ah: nobody knows that it is as before after two of them. */
static void put_exchanged(u8 base)
{
	put8(e, 0x86), put8(e, 0xe0);
	row();
	put_rm(e, W4, 0x88, RAX, MEM_SIB(base, T1, 0, 8));
	put8(e, 0x86), put8(e, 0xe0);
}

static void exchanged(void)
{
	look_up_by(RSI, 8, true);
	compare(1);
	put_load(e, T1, MEM_GS(T1, delta(0)));
	put_exchanged(RSI);
}

static void exchanged_base(void)
{
	check(8, 1, true);
	put_exchanged(RAX);
}

/* As pushes would do: the base moves, the delta stays. */
static void moving_base(void)
{
	check(-16, 16, true);
	put_lea(e, RAX, MEM_BASE(RAX, -8));
	row();
	put_store(e, operand(0), RCX);
	put_lea(e, RAX, MEM_BASE(RAX, -8));
	row();
	put_store(e, operand(0), RCX);
}

/* The delta is kept in the frame meanwhile. */
static void kept_delta(void)
{
	check(8, 8, false);
	put_store(e, SLOT(FRAME_TMP0), T1);
	put_mov(e, T1, RDX);
	put_load(e, T1, SLOT(FRAME_TMP0));
	row();
	put_load(e, RCX, operand(8));
}

static void by_pointer(void)
{
	look_up(8, false);
	compare(8);
	put_rm(e, W8, 0x2b, T0, MEM_GS(T1, tag(false)));
	put_rm(e, W8, 0x03, T0, MEM_GS(T1, delta(0)));
	row();
	put_load(e, RCX, MEM_BASE(T0, 0));
}

static void constant_address(void)
{
	u32 at = tlb_index(0x7654321000) * 8;

	put_mov_imm(e, T0, 0x7654321000);
	put_rm(e, W8, 0x03, T0, MEM_GS(NOREG, tag(false) + at));
	compare(8);
	put_mov_imm(e, T0, 0x7654321000);
	put_rm(e, W8, 0x03, T0, MEM_GS(NOREG, delta(0) + at));
	row();
	put_load(e, RCX, MEM_BASE(T0, 0));
}

static void frame(void)
{
	put_load(e, RAX, SLOT(FRAME_R9));
	put_store(e, SLOT(FRAME_R9 + 16), RAX);
}

/* The base is a register that lives in the frame: 24 bytes from it + 16 are looked up. */
static void check_by_home(void)
{
	put_load(e, RBX, SLOT(FRAME_R9));
	look_up_by(RBX, 16, false);
	compare(24);
	put_load(e, T1, MEM_GS(T1, delta(0)));
}

/* It has moved meanwhile. */
static void access_by_home(s32 disp)
{
	put_load(e, RBX, SLOT(FRAME_R9));
	access_copy(disp);
}

static void home_moved(void)
{
	check_by_home();
	put_alu_mem_imm(e, W8, 0, SLOT(FRAME_R9), 24);
	access_by_home(0);
	put_alu_mem_imm(e, W8, 5, SLOT(FRAME_R9), 16);
	access_by_home(24);
	put_rm(e, W8, 0xff, 0, SLOT(FRAME_R9));
	access_by_home(23);
	put_rm(e, W8, 0xff, 1, SLOT(FRAME_R9));
	access_by_home(8);
}

static void home_moved_too_far(void)
{
	check_by_home();
	put_alu_mem_imm(e, W8, 0, SLOT(FRAME_R9), 32);
	access_by_home(16);
}

static void home_moved_narrow(void)
{
	check_by_home();
	put_alu_mem_imm(e, W4, 0, SLOT(FRAME_R9), 8);
	access_by_home(16);
}

static void home_moved_by_register(void)
{
	check_by_home();
	put_rm(e, W8, 0x01, RCX, SLOT(FRAME_R9));
	access_by_home(16);
}

/* What a scratch register was does not get into the guest's. */
static void home_cleared(void)
{
	check(8, 8, false);
	put_rr(e, W4, 0x31, T1, T1);
	put_store(e, SLOT(FRAME_R9), T1);
}

static void home_not_cleared(void)
{
	check(8, 8, false);
	put_rr(e, W8, 0x31, RCX, T1);
	put_store(e, SLOT(FRAME_R9), T1);
}

static void home_extended(void)
{
	check(8, 8, false);
	put_rr(e, W8, 0x63, T1, RCX);	/* movsxd %ecx, T1 */
	put_store(e, SLOT(FRAME_R9), T1);
}

static void home_extended_secret(void)
{
	check(8, 8, false);
	put_rr(e, W8, 0x63, RCX, T1);
}

static void home_added_secret(void)
{
	check(8, 8, false);
	put_rm(e, W8, 0x01, T1, SLOT(FRAME_R9));
}

static void vcpu_fields(void)
{
	put_load(e, T1, SLOT(FRAME_VCPU));
	put_alu_mem_imm(e, W4, 1, MEM_BASE(T1, offsetof(struct vcpu, arch.rflags)), X86_EFLAGS_IF);
	put_mov_imm(e, T0, (u64)&vcpu->arch.mmu->tlbs[TLB_KERNEL_AC]);
	put_store(e, MEM_BASE(T1, offsetof(struct vcpu, arch.tlb)), T0);
}

static void call_slow(void)
{
	put_mov_imm(e, T0, NR_SITES - 1);
	put_call(e, SLOW);
}

/* The delta is looked up again after a handler: the ways meet with different names. moved: not by as much. */
static void meet(s32 moved)
{
	u32 slow, join;

	check(8, 16, true);
	slow = cold_fields[--nr_cold];
	put_lea(e, RAX, MEM_BASE(RAX, 8));
	put_jmp(e, 0);
	join = e->at - 4;
	patch_rel32(e, slow, e->at);
	call_slow();
	check(8 - moved, 16, true);
	patch_rel32(e, join, e->at);
	row();
	put_load(e, RCX, operand(0));
}

static void ways_meet(void)
{
	meet(8);
}

/* The same, and the slow path lies off the straight one. */
static void meet_from_cold(s32 moved)
{
	u32 slow, join;

	check(8, 16, true);
	slow = cold_fields[--nr_cold];
	put_lea(e, RAX, MEM_BASE(RAX, 8));
	join = e->at;
	row();
	put_load(e, RCX, operand(0));
	patch_rel32(e, slow, COLD);
	slow = e->at;
	e->at = COLD;
	call_slow();
	check(8 - moved, 16, true);
	put_jmp(e, join);
	cold_at = e->at;
	e->at = slow;
}

static void way_back_from_cold(void)
{
	meet_from_cold(8);
}

/* T0 = address of rax + rcx * 2^scale + disp, T1 its delta; the address is computed twice */
static void check_index(u8 scale, s32 disp, u8 again_base, u8 again_index, u8 again_scale, s32 again_disp)
{
	put_lea(e, T0, MEM_SIB(RAX, RCX, scale, disp));
	put_mov(e, T1, T0);
	put_shift_imm(e, W8, 5, T1, PAGE_SHIFT - 3);
	put_alu_imm(e, W4, 4, T1, (TLB_ENTRIES - 1) * 8);
	put_rm(e, W8, 0x03, T0, MEM_GS(T1, tag(false)));
	compare(8);
	put_lea(e, T0, MEM_SIB(again_base, again_index, again_scale, again_disp));
	put_load(e, T1, MEM_GS(T1, delta(0)));
	row();
	put_load(e, RDX, MEM_SIB(T0, T1, 0, 0));
}

static void indexed(void)
{
	check_index(3, 16, RAX, RCX, 3, 16);
}

static void indexed_by_one(void)
{
	check_index(0, 16, RAX, RCX, 0, 16);
}

/* What is known of the bits of a base does not keep it from moving. */
static void masked_base(u32 by, s32 disp)
{
	put_alu_imm(e, W8, 4, RAX, -16);
	check(-16, 32, true);
	row();
	put_store(e, MEM_SIB(RAX, T1, 0, -8), RCX);
	if (by == 1)
		put_rr(e, W8, 0xff, 1, RAX);	/* dec */
	else
		put_alu_imm(e, W8, 5, RAX, by);
	row();
	put_store(e, MEM_SIB(RAX, T1, 0, disp), RCX);
}

static void masked_base_moved(void)
{
	masked_base(16, 0);
}

static void masked_base_decremented(void)
{
	masked_base(1, -15);
}

static void masked_base_moved_too_far(void)
{
	masked_base(17, 0);
}

/* No base: the delta is. The index moves by a constant. */
static void moving_index(bool by_constant)
{
	put_lea(e, T0, MEM_SIB(NOREG, RCX, 3, 0x1000));
	put_mov(e, T1, T0);
	put_shift_imm(e, W8, 5, T1, PAGE_SHIFT - 3);
	put_alu_imm(e, W4, 4, T1, (TLB_ENTRIES - 1) * 8);
	put_rm(e, W8, 0x03, T0, MEM_GS(T1, tag(false)));
	compare(16);
	put_load(e, T1, MEM_GS(T1, delta(0)));
	row();
	put_load(e, RDX, MEM_SIB(T1, RCX, 3, 0x1000));
	if (by_constant)
		put_rr(e, W8, 0xff, 0, RCX);	/* inc */
	else
		put_rr(e, W8, 0x01, RDX, RCX);
	row();
	put_load(e, RDX, MEM_SIB(T1, RCX, 3, 0x1000));
}

static void index_incremented(void)
{
	moving_index(true);
}

/* The host's address in a slot serves wherever the registers are now. */
static void kept_pointer_at(s32 disp)
{
	check_index(3, 16, RAX, RCX, 3, 16);
	put_lea(e, T1, MEM_SIB(T0, T1, 0, 0));
	put_store(e, SLOT(FRAME_DELTA), T1);
	put_rr(e, W8, 0x01, RDX, RAX);
	put_load(e, T1, SLOT(FRAME_DELTA));
	row();
	put_rm(e, W4, 0x8b, RDX, MEM_BASE(T1, disp));
}

static void kept_pointer(void)
{
	kept_pointer_at(4);
}

static void decremented_at(unsigned w)
{
	check(0, 16, true);
	put_lea(e, RAX, MEM_BASE(RAX, 9));
	put_rr(e, w, 0xff, 1, RAX);	/* dec */
	row();
	put_store(e, operand(0), RCX);
}

static void decremented(void)
{
	decremented_at(W8);
}

/* ---- and what is wrong with these ------------------------------------------------------------------ */

static void no_check(void)
{
	look_up(8, false);
	put_load(e, T1, MEM_GS(T1, delta(0)));
	row();
	put_load(e, RCX, operand(8));
}

static void check_after(void)
{
	look_up(8, false);
	put_load(e, T1, MEM_GS(T1, delta(0)));
	row();
	put_load(e, RCX, operand(8));
	compare(8);
}

static void too_small(void)
{
	check(8, 4, false);
	row();
	put_load(e, RCX, operand(8));
}

static void beyond(void)
{
	check(8, 8, false);
	row();
	put_load(e, RCX, operand(9));
}

static void before(void)
{
	check(8, 8, false);
	row();
	put_load(e, RCX, operand(7));
}

static void wrong_condition(void)
{
	look_up(8, false);
	put_alu_imm(e, W8, 7, T0, PAGE_SIZE - 8);
	put_jcc(e, CC_BE, 0);
	to_cold(e->at - 4);
	put_load(e, T1, MEM_GS(T1, delta(0)));
	row();
	put_load(e, RCX, operand(8));
}

static void narrow_compare(void)
{
	look_up(8, false);
	put_alu_imm(e, W4, 7, T0, PAGE_SIZE - 8);
	put_jcc(e, CC_A, 0);
	to_cold(e->at - 4);
	put_load(e, T1, MEM_GS(T1, delta(0)));
	row();
	put_load(e, RCX, operand(8));
}

static void store_under_read_tag(void)
{
	check(8, 8, false);
	row();
	put_store(e, operand(8), RCX);
}

static void other_context(void)
{
	look_up(8, false);
	compare(8);
	put_load(e, T1, MEM_GS(T1, delta(TLB_USER)));
	row();
	put_load(e, RCX, operand(8));
}

static void base_changed(void)
{
	check(8, 8, false);
	put_rr(e, W8, 0x01, RCX, RAX);
	row();
	put_load(e, RCX, operand(8));
}

static void index_changed(void)
{
	look_up(8, false);
	compare(8);
	put_alu_imm(e, W8, 0, T1, 8);
	put_load(e, T1, MEM_GS(T1, delta(0)));
	row();
	put_load(e, RCX, operand(8));
}

static void unmasked_index(void)
{
	put_lea(e, T0, MEM_BASE(RAX, 8));
	put_mov(e, T1, T0);
	put_shift_imm(e, W8, 5, T1, PAGE_SHIFT - 3);
	put_rm(e, W8, 0x03, T0, MEM_GS(T1, tag(false)));
}

/* A handler may have changed registers and TLB. */
static void checked_before_call(void)
{
	check(8, 8, false);
	call_slow();
	row();
	put_load(e, RCX, operand(8));
}

/* There is a way around the check. */
static void around(void)
{
	u32 over;

	put_rr(e, W8, 0x85, RCX, RCX);
	put_jcc(e, CC_E, 0);
	over = e->at - 4;
	check(8, 8, false);
	patch_rel32(e, over, e->at);
	row();
	put_load(e, RCX, operand(8));
}

static void ways_meet_apart(void)
{
	meet(16);
}

static void way_back_from_cold_apart(void)
{
	meet_from_cold(16);
}

static void other_index(void)
{
	check_index(3, 16, RAX, RDX, 3, 16);
}

static void other_base(void)
{
	check_index(3, 16, RBX, RCX, 3, 16);
}

static void other_scale(void)
{
	check_index(3, 16, RAX, RCX, 2, 16);
}

static void other_place(void)
{
	check_index(3, 16, RAX, RCX, 3, 17);
}

static void index_added_to(void)
{
	moving_index(false);
}

static void kept_pointer_beyond(void)
{
	kept_pointer_at(5);
}

/* A sum of 32 bits wraps. */
static void decremented_narrow(void)
{
	decremented_at(W4);
}

static void scaled_delta(void)
{
	check(8, 8, false);
	row();
	put_load(e, RCX, MEM_SIB(RAX, T1, 1, 8));
}

/* The index is another one the second time it comes along here. */
static void index_changes_in_loop(void)
{
	u32 head;

	put_lea(e, T0, MEM_SIB(RAX, RCX, 3, 16));
	put_mov(e, T1, T0);
	put_shift_imm(e, W8, 5, T1, PAGE_SHIFT - 3);
	put_alu_imm(e, W4, 4, T1, (TLB_ENTRIES - 1) * 8);
	put_rm(e, W8, 0x03, T0, MEM_GS(T1, tag(false)));
	compare(8);
	put_load(e, T1, MEM_GS(T1, delta(0)));
	put_store(e, SLOT(FRAME_DELTA), T1);
	head = e->at;
	put_load(e, T1, SLOT(FRAME_DELTA));
	put_lea(e, T0, MEM_SIB(RAX, RCX, 3, 16));
	row();
	put_load(e, RDX, MEM_SIB(T0, T1, 0, 0));
	put_rr(e, W8, 0x01, RDX, RCX);
	put_jcc(e, CC_E, head);
}

static void no_row(void)
{
	check(8, 8, false);
	put_load(e, RCX, operand(8));
}

static void plain_pointer(void)
{
	row();
	put_load(e, RCX, MEM_BASE(RAX, 0));
}

static void absolute(void)
{
	row();
	put_load(e, RCX, (struct hmem){ .base = NOREG, .index = NOREG, .disp = 0x1000 });
}

static void client_gs(void)
{
	put_load(e, RCX, MEM_GS(NOREG, offsetof(struct mmu, last_slot)));
}

static void store_tag(void)
{
	put_store(e, MEM_GS(NOREG, tag(true)), RCX);
}

static void outside_frame(void)
{
	put_load(e, RCX, SLOT(FRAME_SIZE));
}

static void frame_vcpu(void)
{
	put_store(e, SLOT(FRAME_VCPU), RCX);
}

static void host_stack(void)
{
	put_alu_imm(e, W8, 5, RSP, 8);
}

static void push(void)
{
	put8(e, 0x50);
}

static void vcpu_other_field(void)
{
	put_load(e, T1, SLOT(FRAME_VCPU));
	put_load(e, RCX, MEM_BASE(T1, offsetof(struct vcpu, run)));
}

static void vcpu_other_tlb(void)
{
	put_load(e, T1, SLOT(FRAME_VCPU));
	put_mov_imm(e, T0, (u64)&vcpu->arch.mmu->tlbs[1] + 8);
	put_store(e, MEM_BASE(T1, offsetof(struct vcpu, arch.tlb)), T0);
}

static void leaked_register(void)
{
	put_load(e, RDX, SLOT(FRAME_VCPU));
}

static void row_of_no_site(void)
{
	load();
	row_stub = FAULT_SITE | NR_SITES;
}

static void leaked_by_row_of_site(void)
{
	check(8, 8, false);
	put_load(e, RDX, SLOT(FRAME_VCPU));
	row();
	put_load(e, RCX, operand(8));
	put_mov_imm(e, RDX, 0);
	row_stub = FAULT_SITE;
}

static void leaked_slot(void)
{
	check(8, 8, false);
	put_store(e, SLOT(FRAME_R9), T1);
}

static void leaked_memory(void)
{
	check(8, 8, true);
	row();
	put_store(e, operand(8), T1);
}

static void site_out_of_bounds(void)
{
	put_mov_imm(e, T0, NR_SITES);
	put_call(e, SLOW);
}

static void site_from_guest(void)
{
	put_mov(e, T0, RAX);
	put_call(e, SLOW);
}

static void call_unknown(void)
{
	put_call(e, STUB_BAD);
}

static void jump_register(void)
{
	put_rr(e, W4, 0xff, 4, RAX);
}

static void jump_entry_not_compared(void)
{
	put_rm(e, W4, 0xff, 4, MEM_GS(NOREG, offsetof(struct mmu, jumps) + 16));
}

static void faddp(void)
{
	put8(e, 0xde);
	put8(e, 0xc1);
}

static void x87_check(u8 cc)
{
	put_rm(e, W4, 0x80, 7, SLOT(FRAME_X87));
	put8(e, 0);
	put_jcc(e, cc, 0);
	to_cold(e->at - 4);
}

static void x87_checked(void)
{
	x87_check(CC_E);
	faddp();
}

static void x87_loaded(void)
{
	put_call(e, LOAD_X87);
	faddp();
}

static void x87_unchecked(void)
{
	faddp();
}

static void mmx_unchecked(void)
{
	put8(e, 0x0f);
	put8(e, 0x77);	/* emms */
}

static void x87_check_inverted(void)
{
	x87_check(CC_NE);
	faddp();
}

static void x87_after_handler(void)
{
	x87_check(CC_E);
	call_slow();
	faddp();
}

static void x87_on_one_way(void)
{
	u32 over;

	put_rr(e, W8, 0x85, RAX, RAX);
	put_jcc(e, CC_E, 0);
	over = e->at - 4;
	put_call(e, LOAD_X87);
	patch_rel32(e, over, e->at);
	faddp();
}

static void x87_pretended(void)
{
	put_rm(e, W4, 0xc6, 0, SLOT(FRAME_X87));
	put8(e, 1);
}

static void nothing(void)
{
}

/* Look up, refill, look up again; before the refill something is done. */
static void refill(u32 stub, void (*before)(void))
{
	const u32 begin = e->at;
	u32 matched;

	look_up(8, false);
	matched = compare_branch(8, CC_BE);
	before();
	put_call(e, stub);
	put_jmp(e, begin);
	put_mov_imm(e, T0, 0);
	put_jmp(e, EXIT_SLOT);
	patch_rel32(e, matched, e->at);
	put_load(e, T1, MEM_GS(T1, delta(0)));
	row();
	put_load(e, RCX, operand(8));
}

static void refilled(void)
{
	refill(REFILL(0, REFILL_READ), nothing);
}

static void refilled_for_writing(void)
{
	refill(REFILL(0, REFILL_WRITE), nothing);
}

static void refilled_in_other_context(void)
{
	refill(REFILL(1, REFILL_READ), nothing);
}

static void other_refill_address(void)
{
	put_mov(e, T0, RCX);
}

static void refilled_by_other_address(void)
{
	refill(REFILL(0, REFILL_READ), other_refill_address);
}

static void other_refill_place(void)
{
	put_mov_imm(e, T1, 8);
}

static void refilled_at_other_place(void)
{
	refill(REFILL(0, REFILL_READ), other_refill_place);
}

/* Two look-ups that fail into one: of which address does not matter, but it must be one. */
static void meet_at_refill(void (*before)(void))
{
	const u32 begin = e->at;
	u32 first;

	look_up(8, false);
	first = compare_branch(8, CC_A);
	look_up_by(RDX, 24, false);
	put_alu_imm(e, W8, 7, T0, PAGE_SIZE - 8);
	before();
	patch_rel32(e, first, e->at);
	put_call(e, REFILL(0, REFILL_READ));
	put_jmp(e, begin);
}

static void refills_meet(void)
{
	meet_at_refill(nothing);
}

static void refills_meet_apart(void)
{
	meet_at_refill(other_refill_place);
}

/* ---- the stack's entry ---------------------------------------------------------------------- */

static s32 stack_tag(unsigned ctx)
{
	return offsetof(struct mmu, tlbs[0].stack_tag) + ctx * sizeof(struct tlb);
}

static s32 stack_delta(unsigned ctx)
{
	return offsetof(struct mmu, tlbs[0].stack_delta) + ctx * sizeof(struct tlb);
}

/* T0 = offset in the stack's page */
static void look_up_stack(u8 base, s32 disp)
{
	put_lea(e, T0, MEM_BASE(base, disp));
	put_rm(e, W8, 0x03, T0, MEM_GS(NOREG, stack_tag(0)));
}

static void check_stack(s32 disp, unsigned size)
{
	look_up_stack(GUEST_RSP, disp);
	compare(size);
}

static void store_stack(s32 disp)
{
	row();
	put_store(e, MEM_SIB(GUEST_RSP, T1, 0, disp), RCX);
}

static void stack_pushed_ctx(unsigned ctx)
{
	check_stack(-16, 16);
	put_load(e, T1, MEM_GS(NOREG, stack_delta(ctx)));
	store_stack(-8);
	put_lea(e, GUEST_RSP, MEM_BASE(GUEST_RSP, -8));
	store_stack(-8);
}

static void stack_pushed(void)
{
	stack_pushed_ctx(0);
}

static void stack_of_other_context(void)
{
	stack_pushed_ctx(1);
}

static void stack_by_pointer(void)
{
	check_stack(16, 8);
	put_load(e, T1, MEM_GS(NOREG, stack_delta(0)));
	put_lea(e, T1, MEM_SIB(GUEST_RSP, T1, 0, 16));
	row();
	put_store(e, MEM_BASE(T1, 0), RCX);
}

static void stack_beyond(void)
{
	check_stack(0, 8);
	put_load(e, T1, MEM_GS(NOREG, stack_delta(0)));
	store_stack(1);
}

static void stack_unchecked(void)
{
	put_load(e, T1, MEM_GS(NOREG, stack_delta(0)));
	store_stack(0);
}

static void stack_delta_before_check(void)
{
	put_load(e, T1, MEM_GS(NOREG, stack_delta(0)));
	check_stack(0, 8);
	store_stack(0);
}

/* The delta is another page's. */
static void stack_other_address(void)
{
	check_stack(0, 8);
	put_load(e, T1, MEM_GS(NOREG, stack_delta(0)));
	row();
	put_store(e, MEM_SIB(RAX, T1, 0, 0), RCX);
}

static void stack_delta_of_latest(void)
{
	check_stack(0, 8);
	look_up_stack(RAX, 0);
	compare(8);
	put_load(e, T1, MEM_GS(NOREG, stack_delta(0)));
	store_stack(0);
}

/* Other entries do not say anything about the stack's, nor it about them. */
static void stack_delta_for_tag(void)
{
	look_up_by(GUEST_RSP, 0, true);
	compare(8);
	put_load(e, T1, MEM_GS(NOREG, stack_delta(0)));
	store_stack(0);
}

static void stack_tag_for_delta(void)
{
	check_stack(0, 8);
	put_lea(e, T0, MEM_BASE(GUEST_RSP, 0));
	put_tlb_place(e);
	put_load(e, T1, MEM_GS(T1, delta(0)));
	store_stack(0);
}

static void stack_tag_kept(void)
{
	put_load(e, T1, MEM_GS(NOREG, stack_tag(0)));
	put_mov(e, T0, GUEST_RSP);
	put_rr(e, W8, 0x01, T1, T0);
	compare(8);
	put_load(e, T1, MEM_GS(NOREG, stack_delta(0)));
	store_stack(0);
}

static void stack_indexed(void)
{
	look_up_stack(GUEST_RSP, 0);
	compare(8);
	put_mov_imm(e, T1, 8);
	put_load(e, T1, MEM_GS(T1, stack_delta(0)));
	store_stack(0);
}

static void stack_entry_written(void)
{
	put_store(e, MEM_GS(NOREG, stack_tag(0)), RCX);
}

static void stack_delta_leaked(void)
{
	check_stack(0, 8);
	put_load(e, RAX, MEM_GS(NOREG, stack_delta(0)));
}

/* Look up, refill, look up again. called: something is, before the delta is read. */
static void stack_refill(u32 stub, bool called)
{
	const u32 begin = e->at;
	u32 matched;

	look_up_stack(GUEST_RSP, -8);
	matched = compare_branch(8, CC_BE);
	put_call(e, stub);
	put_jmp(e, begin);
	put_mov_imm(e, T0, 0);
	put_jmp(e, EXIT_SLOT);
	patch_rel32(e, matched, e->at);
	if (called)
		put_call(e, LOAD_VEC);
	put_load(e, T1, MEM_GS(NOREG, stack_delta(0)));
	store_stack(-8);
}

static void stack_refilled(void)
{
	stack_refill(REFILL(0, REFILL_STACK), false);
}

static void stack_refilled_as_plain(void)
{
	stack_refill(REFILL(0, REFILL_WRITE), false);
}

static void stack_refilled_in_other_context(void)
{
	stack_refill(REFILL(1, REFILL_STACK), false);
}

static void stack_delta_after_call(void)
{
	stack_refill(REFILL(0, REFILL_STACK), true);
}

static void refilled_as_stack(void)
{
	refill(REFILL(0, REFILL_STACK), nothing);
}

/* A delta that is kept is still its page's when the entry has become another's. */
static void stack_delta_kept(void)
{
	check_stack(0, 8);
	put_load(e, T1, MEM_GS(NOREG, stack_delta(0)));
	put_store(e, SLOT(FRAME_DELTA), T1);
	stack_refill(REFILL(0, REFILL_STACK), false);
	put_load(e, T1, SLOT(FRAME_DELTA));
	store_stack(0);
}

/* Nor is an offset what it was. */
static void stack_offset_kept(void)
{
	look_up_stack(GUEST_RSP, -8);
	put_store(e, SLOT(FRAME_TMP0), T0);
	put_call(e, LOAD_VEC);
	put_load(e, T0, SLOT(FRAME_TMP0));
	compare(8);
	put_load(e, T1, MEM_GS(NOREG, stack_delta(0)));
	store_stack(-8);
}

/* ---- fixed entries ---------------------------------------------------------------------------------- */

/* Those for writes come last. */
static struct hmem fixed_tag(unsigned ctx, unsigned n)
{
	return MEM_GS(NOREG, offsetof(struct mmu, tlbs[0].fixed_tag) + ctx * sizeof(struct tlb) + 8 * n);
}

static struct hmem fixed_page(unsigned ctx, unsigned n)
{
	return MEM_GS(NOREG, offsetof(struct mmu, tlbs[0].fixed_page) + ctx * sizeof(struct tlb) + 8 * n);
}

/* T0 = offset of rsi + 16 in the page of entry n */
static void look_up_fixed(unsigned n)
{
	put_lea(e, T0, MEM_BASE(RSI, 16));
	put_rm(e, W8, 0x03, T0, fixed_tag(0, n));
}

/* T0 = host address */
static void add_fixed_page(unsigned ctx, unsigned n)
{
	put_rm(e, W8, 0x03, T0, fixed_page(ctx, n));
}

static void check_fixed(unsigned n)
{
	look_up_fixed(n);
	compare(8);
	add_fixed_page(0, n);
}

static void read_by(u8 base, s32 disp)
{
	row();
	put_load(e, RCX, MEM_BASE(base, disp));
}

static void write_by(u8 base)
{
	row();
	put_store(e, MEM_BASE(base, 0), RCX);
}

static void fixed_read(void)
{
	check_fixed(3);
	read_by(T0, 0);
}

static void fixed_written(void)
{
	check_fixed(TLB_FIXED + 3);
	write_by(T0);
}

static void fixed_read_is_written(void)
{
	check_fixed(3);
	write_by(T0);
}

static void fixed_beyond(void)
{
	check_fixed(3);
	read_by(T0, 1);
}

static void fixed_pointer_kept(void)
{
	check_fixed(TLB_FIXED + 3);
	put_mov(e, T1, T0);
	put_store(e, SLOT(FRAME_DELTA), T1);
	write_by(T1);
	check_fixed(5);
	read_by(T0, 0);
	put_load(e, T1, SLOT(FRAME_DELTA));
	write_by(T1);
}

static void fixed_page_of_other_entry(void)
{
	look_up_fixed(3);
	compare(8);
	add_fixed_page(0, 4);
	read_by(T0, 0);
}

static void fixed_page_of_other_array(void)
{
	look_up_fixed(3);
	compare(8);
	add_fixed_page(0, TLB_FIXED + 3);
	read_by(T0, 0);
}

static void fixed_page_of_other_context(void)
{
	look_up_fixed(3);
	compare(8);
	add_fixed_page(1, 3);
	read_by(T0, 0);
}

static void fixed_unchecked(void)
{
	look_up_fixed(3);
	add_fixed_page(0, 3);
	read_by(T0, 0);
}

static void fixed_page_before_check(void)
{
	put_load(e, T1, fixed_page(0, 3));
	look_up_fixed(3);
	compare(8);
	put_rr(e, W8, 0x01, T1, T0);
	read_by(T0, 0);
}

/* The page is no difference: it belongs to the offset. */
static void fixed_page_and_address(void)
{
	look_up_fixed(3);
	compare(8);
	put_load(e, T1, fixed_page(0, 3));
	row();
	put_load(e, RCX, MEM_SIB(RSI, T1, 0, 16));
}

static void fixed_page_of_latest(void)
{
	look_up_fixed(3);
	compare(8);
	put_store(e, SLOT(FRAME_TMP0), T0);
	look_up_fixed(4);
	compare(8);
	put_load(e, T0, SLOT(FRAME_TMP0));
	add_fixed_page(0, 3);
	read_by(T0, 0);
}

static void fixed_offset_kept(void)
{
	look_up_fixed(3);
	compare(8);
	put_store(e, SLOT(FRAME_TMP0), T0);
	put_call(e, LOAD_VEC);
	put_load(e, T0, SLOT(FRAME_TMP0));
	add_fixed_page(0, 3);
	read_by(T0, 0);
}

static void fixed_page_leaked(void)
{
	look_up_fixed(3);
	compare(8);
	put_load(e, RAX, fixed_page(0, 3));
}

static void fixed_past_the_last(void)
{
	check_fixed(2 * TLB_FIXED);
	read_by(T0, 0);
}

static void fixed_entry_written(void)
{
	put_store(e, fixed_page(0, 3), RCX);
}

/* Look up, refill, look up again. */
static void fixed_refill(unsigned n, u32 stub, u64 place)
{
	const u32 begin = e->at;
	u32 matched;

	look_up_fixed(n);
	matched = compare_branch(8, CC_BE);
	put_mov_imm(e, T1, place);
	put_call(e, stub);
	put_jmp(e, begin);
	put_mov_imm(e, T0, 0);
	put_jmp(e, EXIT_SLOT);
	patch_rel32(e, matched, e->at);
	add_fixed_page(0, n);
	read_by(T0, 0);
}

static void fixed_refilled(void)
{
	fixed_refill(3, REFILL(0, REFILL_FIXED_READ), 24);
	fixed_refill(TLB_FIXED + 3, REFILL(0, REFILL_FIXED_WRITE), 24);
}

static void fixed_refilled_for_writing(void)
{
	fixed_refill(3, REFILL(0, REFILL_FIXED_WRITE), 24);
}

static void fixed_refilled_for_reading(void)
{
	fixed_refill(TLB_FIXED + 3, REFILL(0, REFILL_FIXED_READ), 24);
}

static void fixed_refilled_elsewhere(void)
{
	fixed_refill(3, REFILL(0, REFILL_FIXED_READ), 32);
}

static void fixed_refilled_as_plain(void)
{
	fixed_refill(3, REFILL(0, REFILL_READ), 24);
}

static void fixed_refilled_as_stack(void)
{
	fixed_refill(TLB_FIXED + 3, REFILL(0, REFILL_STACK), 24);
}

static void fixed_refilled_in_other_context(void)
{
	fixed_refill(3, REFILL(1, REFILL_FIXED_READ), 24);
}

static void middle_of_instruction(void)
{
	put_jcc(e, CC_E, e->at + 8);
	put_mov_imm(e, RCX, 0x1122334455667788);
}

/* What follows is another block's. */
static void runs_off(void)
{
	load();
	no_end = true;
}

static void jump_between_parts(void)
{
	put_jmp(e, COLD - 16);
}

static void jump_behind_parts(void)
{
	put_jmp(e, COLD + 256);
}

#define BYTES(name, ...)                                        \
	static void name(void)                                  \
	{                                                       \
		static const u8 bytes[] = { __VA_ARGS__ };      \
		for (unsigned i = 0; i < sizeof(bytes); i++)    \
			put8(e, bytes[i]);                      \
	}
BYTES(insn_syscall, 0x0f, 0x05)
BYTES(insn_int, 0xcd, 0x80)
BYTES(insn_ud2, 0x0f, 0x0b)
BYTES(insn_wrfsbase, 0xf3, 0x48, 0x0f, 0xae, 0xd0)
BYTES(insn_mov_fs, 0x8e, 0xe0)
BYTES(insn_xrstor, 0x0f, 0xae, 0x2c, 0x24)
BYTES(insn_movsb, 0xf3, 0xa4)
BYTES(insn_std, 0xfd)
BYTES(insn_fs_operand, 0x64, 0x48, 0x8b, 0x04, 0x24)
BYTES(insn_rip_relative, 0x48, 0x8b, 0x05, 0, 0, 0, 0)
BYTES(insn_clzero, 0x0f, 0x01, 0xfc)
BYTES(insn_evex, 0x62, 0xf1, 0x7c, 0x48, 0x10, 0x04, 0x24)
BYTES(insn_gather, 0xc4, 0xe2, 0xf1, 0x90, 0x04, 0x04)
BYTES(insn_bts_frame, 0x48, 0x0f, 0xab, 0x44, 0x24, 0x38)
BYTES(insn_pop_rsp, 0x5c)
BYTES(insn_ret, 0xc3)
BYTES(insn_not_one, 0x06)

/* ---- returns and links ------------------------------------------------------------------------------- */

static void return_place_in(u32 mask)
{
	put_rm(e, W4, 0x8d, T1, MEM_BASE(GUEST_RSP, -8));
	put_alu_imm(e, W4, 4, T1, mask);
}

static void return_place(void)
{
	return_place_in((RETURN_CACHE - 1) * 8);
}

/* An entry of mmu.returns: T1's, a constant one. */
static struct hmem returns_at(unsigned ctx, size_t field)
{
	struct hmem m = MEM_GS(T1, offsetof(struct mmu, returns[0]) + ctx * sizeof(((struct mmu *)0)->returns[0]) + field);

	m.scale = 1;
	return m;
}

static struct hmem returns_entry(unsigned i, size_t field)
{
	return MEM_GS(NOREG, offsetof(struct mmu, returns[0]) + i * sizeof(struct jump_entry_host) + field);
}

static struct hmem jumps_entry(unsigned i, size_t field)
{
	return MEM_GS(NOREG, offsetof(struct mmu, jumps[0]) + i * sizeof(struct jump_entry_host) + field);
}

#define VA offsetof(struct jump_entry_host, va)
#define CODE offsetof(struct jump_entry_host, code)

/* T0 = address of the slow path */
static void lea_cold(void)
{
	put_lea_code(e, T0, 0);
	to_cold(e->at - 4);
}

static void note_at(struct hmem va, struct hmem at)
{
	put_mov_imm(e, T0, 0x123456789);
	put_store(e, va, T0);
	lea_cold();
	put_store(e, at, T0);
}

static void return_noted(void)
{
	return_place();
	note_at(returns_at(0, VA), returns_at(0, CODE));
}

static void return_noted_constant(void)
{
	note_at(returns_entry(RETURN_CACHE - 1, VA), returns_entry(RETURN_CACHE - 1, CODE));
}

static void return_noted_behind(void)
{
	const u32 i = NR_TLBS * RETURN_CACHE;

	note_at(returns_entry(i, VA), returns_entry(i, CODE));
}

static void return_noted_entry(void)
{
	return_place();
	put_lea_code(e, T0, BEGIN);
	put_store(e, returns_at(0, CODE), T0);
}

static void note_value(u8 reg)
{
	return_place();
	put_store(e, returns_at(0, CODE), reg);
}

static void return_noted_guest(void)
{
	note_value(RCX);
}

static void return_noted_number(void)
{
	put_mov_imm(e, T0, (u64)d->mem.rx + BEGIN);
	note_value(T0);
}

static void return_noted_vcpu(void)
{
	put_load(e, T0, SLOT(FRAME_VCPU));
	note_value(T0);
}

/* Code and something. */
static void return_noted_sum(void)
{
	lea_cold();
	put_alu_imm(e, W8, 0, T0, 1);
	note_value(T0);
}

/* A handler may come in between: what T0 was is gone. */
static void return_noted_after_call(void)
{
	lea_cold();
	call_slow();
	note_value(T0);
}

/* On one way it is the guest's. */
static void return_noted_on_one_way(void)
{
	u32 over;

	put_mov(e, T0, RCX);
	put_rr(e, W8, 0x85, RAX, RAX);
	put_jcc(e, CC_E, 0);
	over = e->at - 4;
	lea_cold();
	patch_rel32(e, over, e->at);
	note_value(T0);
}

static void return_code_as_address(void)
{
	return_place();
	note_at(returns_at(0, VA), returns_at(0, VA));
}

static void return_noted_between(void)
{
	return_place();
	note_at(returns_at(0, VA), returns_at(0, CODE + 4));
}

static void return_noted_next(void)
{
	return_place();
	note_at(returns_at(0, VA), returns_at(0, CODE + sizeof(struct jump_entry_host)));
}

static void return_noted_half(void)
{
	return_place();
	lea_cold();
	put_rm(e, W4, 0x89, T0, returns_at(0, CODE));
}

static void return_code_added_to(void)
{
	return_place();
	lea_cold();
	put_rm(e, W8, 0x01, T0, returns_at(0, CODE));
}

static void return_unmasked(void)
{
	put_rm(e, W4, 0x8d, T1, MEM_BASE(GUEST_RSP, -8));
	note_at(returns_at(0, VA), returns_at(0, CODE));
}

static void return_mask_wide(void)
{
	return_place_in((2 * RETURN_CACHE - 1) * 8);
	note_at(returns_at(0, VA), returns_at(0, CODE));
}

static void return_mask_fine(void)
{
	return_place_in((RETURN_CACHE - 1) * 8 + 4);
	note_at(returns_at(0, VA), returns_at(0, CODE));
}

static void return_scaled(void)
{
	struct hmem m = returns_at(0, CODE);

	m.scale = 2;
	return_place();
	note_at(returns_at(0, VA), m);
}

static void jump_table_written(void)
{
	note_at(returns_entry(1, VA), jumps_entry(1, CODE));
}

static void jump_address_written(void)
{
	put_store(e, jumps_entry(1, VA), RCX);
}

static void lea_stub(void)
{
	put_lea_code(e, T0, STUB_BAD);
}

static void lea_unverified(void)
{
	put_lea_code(e, T0, BEGIN + DBT_BLOCK_CODE + 64);
}

static void lea_middle(void)
{
	put_lea_code(e, T0, e->at + 7 + 3);
	put_mov_imm(e, RCX, 0x1122334455667788);
}

static void code_in_register(void)
{
	put_lea_code(e, RDX, BEGIN);
}

static void code_in_slot(void)
{
	lea_cold();
	put_store(e, SLOT(FRAME_R9), T0);
}

static void code_in_memory(void)
{
	check(8, 8, true);
	put_lea_code(e, T0, BEGIN);
	row();
	put_store(e, operand(8), T0);
}

/* Code that lets the guest see something, which is only reached by its address. */
static void lea_of_bad_code(void)
{
	u32 over;

	return_place();
	put_jmp(e, 0);
	over = e->at - 4;
	put_load(e, RDX, SLOT(FRAME_VCPU));
	put_mov_imm(e, T0, NR_EXITS - 1);
	put_jmp(e, EXIT_SLOT);
	patch_rel32(e, over, e->at);
	put_lea_code(e, T0, over + 4);
	put_store(e, returns_at(0, CODE), T0);
}

/* Nothing is known where an address leads: not that something has been checked. */
static void lea_of_unchecked(void)
{
	u32 at;

	check(8, 8, false);
	at = e->at;
	row();
	put_load(e, RCX, operand(8));
	put_lea_code(e, T0, at);
}

static void compare_jump(struct hmem va, u8 cc, struct hmem code)
{
	put_rm(e, W8, 0x3b, T0, va);
	put_jcc(e, cc, 0);
	to_cold(e->at - 4);
	put_rm(e, W4, 0xff, 4, code);
}

static void return_by(struct hmem va, u8 cc, struct hmem code)
{
	put_mov(e, T0, RCX);
	return_place();
	compare_jump(va, cc, code);
}

static void returned(void)
{
	return_by(returns_at(0, VA), CC_NE, returns_at(0, CODE));
}

static void returned_constant(void)
{
	return_by(returns_entry(5, VA), CC_NE, returns_entry(5, CODE));
}

static void jumped_constant(void)
{
	return_by(jumps_entry(5, VA), CC_NE, jumps_entry(5, CODE));
}

static void returned_not_compared(void)
{
	return_place();
	put_rm(e, W4, 0xff, 4, returns_at(0, CODE));
}

static void returned_if_not_equal(void)
{
	return_by(returns_at(0, VA), CC_E, returns_at(0, CODE));
}

static void returned_by_code(void)
{
	return_by(returns_at(0, CODE), CC_NE, returns_at(0, CODE));
}

static void returned_to_address(void)
{
	return_by(returns_at(0, VA), CC_NE, returns_at(0, VA));
}

static void returned_by_other_entry(void)
{
	return_by(returns_entry(5, VA), CC_NE, returns_entry(6, CODE));
}

static void returned_by_constant_entry(void)
{
	return_by(returns_entry(5, VA), CC_NE, returns_at(0, CODE));
}

static void returned_in_other_context(void)
{
	return_by(returns_at(0, VA), CC_NE, returns_at(TLB_USER, CODE));
}

static void returned_through_jump_table(void)
{
	return_by(returns_entry(5, VA), CC_NE, jumps_entry(5, CODE));
}

static void jumped_through_returns(void)
{
	return_by(jumps_entry(5, VA), CC_NE, returns_entry(5, CODE));
}

static void returned_place_changed(void)
{
	put_mov(e, T0, RCX);
	return_place();
	put_rm(e, W8, 0x3b, T0, returns_at(0, VA));
	put_jcc(e, CC_NE, 0);
	to_cold(e->at - 4);
	put_rm(e, W4, 0x8d, T1, MEM_BASE(GUEST_RSP, 8));
	put_alu_imm(e, W4, 4, T1, (RETURN_CACHE - 1) * 8);
	put_rm(e, W4, 0xff, 4, returns_at(0, CODE));
}

static void returned_leaking(void)
{
	put_load(e, RDX, SLOT(FRAME_VCPU));
	returned();
}

static void link_by(u32 link, bool relative)
{
	put_mov_imm(e, T0, 0x123456789);
	put_mov_imm(e, T1, link);
	put_jmp(e, JUMP_LINKED(relative));
}

static void linked(void)
{
	link_by((NR_LINKS - 1) * sizeof(struct jump_link), false);
}

static void linked_relative(void)
{
	link_by(0, true);
}

static void linked_out_of_range(void)
{
	link_by(NR_LINKS * sizeof(struct jump_link), true);
}

static void linked_between(void)
{
	link_by(8, false);
}

static void linked_by_guest(void)
{
	put_mov(e, T1, RAX);
	put_jmp(e, JUMP_LINKED(true));
}

static void linked_to_secret(void)
{
	put_mov_imm(e, T1, 0);
	put_load(e, T0, SLOT(FRAME_VCPU));
	put_jmp(e, JUMP_LINKED(false));
}

static void linked_leaking(void)
{
	put_load(e, RDX, SLOT(FRAME_VCPU));
	linked();
}

static void jump_on(u32 index, bool indirect)
{
	put_mov(e, T0, RCX);
	put_mov_imm(e, T1, index);
	put_jmp(e, JUMP(TLB_USER, indirect));
}

static void jumped_on(void)
{
	jump_on(NR_EXITS - 1, false);
}

static void jumped_on_indirect(void)
{
	jump_on(NR_SITES - 1, true);
}

static void jumped_on_out_of_range(void)
{
	jump_on(NR_EXITS, false);
}

static void jumped_on_no_site(void)
{
	jump_on(NR_SITES, true);
}

static void jumped_on_to_secret(void)
{
	put_mov_imm(e, T1, 0);
	put_load(e, T0, SLOT(FRAME_VCPU));
	put_jmp(e, JUMP(0, true));
}

#define LINKS offsetof(struct mmu, jump_links)

static void compare_link(s32 at)
{
	put_load(e, T1, MEM_GS(NOREG, offsetof(struct mmu, jump_key)));
	put_rm(e, W8, 0x3b, T1, MEM_GS(NOREG, at));
	put_jcc(e, CC_NE, 0);
	to_cold(e->at - 4);
}

static void link_compared(void)
{
	compare_link(LINKS + 3 * sizeof(struct jump_link));
}

static void link_compared_half(void)
{
	compare_link(LINKS + 4);
}

static void link_code_compared(void)
{
	compare_link(LINKS + 3 * sizeof(struct jump_link) + offsetof(struct jump_link, code));
}

static void link_before(void)
{
	compare_link(LINKS - sizeof(struct jump_link));
}

static void link_behind(void)
{
	compare_link(LINKS + JUMP_LINKS * sizeof(struct jump_link));
}

static void link_indexed(void)
{
	put_mov_imm(e, T0, 0);
	put_load(e, RCX, MEM_GS(T0, LINKS));
}

static void link_narrow(void)
{
	put_rm(e, W4, 0x8b, RCX, MEM_GS(NOREG, LINKS));
}

static void link_written(void)
{
	put_store(e, MEM_GS(NOREG, LINKS), RCX);
}

static void link_code_written(void)
{
	lea_cold();
	put_store(e, MEM_GS(NOREG, LINKS + offsetof(struct jump_link, code)), T0);
}

static void link_key_written(void)
{
	put_store(e, MEM_GS(NOREG, offsetof(struct mmu, jump_key)), RCX);
}

static void link_jumped_through(void)
{
	compare_link(LINKS);
	put_rm(e, W4, 0xff, 4, MEM_GS(NOREG, LINKS + offsetof(struct jump_link, code)));
}

/* A key is no address of code. */
static void link_key_noted(void)
{
	put_load(e, T0, MEM_GS(NOREG, offsetof(struct mmu, jump_key)));
	note_value(T0);
}

BYTES(insn_lea_code_narrow, 0x8d, 0x0d, 0, 0, 0, 0)
BYTES(insn_lea_code_word, 0x66, 0x8d, 0x0d, 0, 0, 0, 0)

#undef VA
#undef CODE
#undef LINKS

/* ---- the table --------------------------------------------------------------------------------------- */

static const struct {
	const char *name;
	void (*body)(void);
	bool ok;
} cases[] = {
#define GOOD(f) { #f, f, true }
#define BAD(f) { #f, f, false }
	GOOD(empty), GOOD(load), GOOD(row_of_site), GOOD(store), GOOD(load_under_write_tag), GOOD(coalesced), GOOD(moving_base),
	GOOD(moves), GOOD(moves_of_home), BAD(moves_of_read_only), BAD(moves_of_half), BAD(moves_without_row), BAD(moves_losing_operand),
	BAD(moves_losing_base),
	GOOD(rotated), BAD(rotated_by_less), BAD(rotated_other), BAD(rotated_elsewhere),
	GOOD(copied_base), BAD(copied_base_beyond), BAD(copied_base_narrow), GOOD(exchanged), BAD(exchanged_base),
	GOOD(kept_delta), GOOD(by_pointer), GOOD(constant_address), GOOD(frame), GOOD(home_moved), BAD(home_moved_too_far),
	BAD(home_moved_narrow), BAD(home_moved_by_register), GOOD(home_cleared), BAD(home_not_cleared), GOOD(home_extended),
	BAD(home_extended_secret), BAD(home_added_secret), GOOD(vcpu_fields), GOOD(call_slow),
	GOOD(ways_meet), BAD(ways_meet_apart), GOOD(way_back_from_cold), BAD(way_back_from_cold_apart),
	BAD(runs_off), BAD(jump_between_parts), BAD(jump_behind_parts),
	GOOD(x87_checked), GOOD(x87_loaded), BAD(x87_unchecked), BAD(mmx_unchecked), BAD(x87_check_inverted),
	BAD(x87_after_handler), BAD(x87_on_one_way), BAD(x87_pretended),
	GOOD(masked_base_moved), GOOD(masked_base_decremented), BAD(masked_base_moved_too_far),
	GOOD(indexed), GOOD(indexed_by_one), GOOD(index_incremented), GOOD(kept_pointer), GOOD(decremented),
	BAD(other_index), BAD(other_base), BAD(other_scale), BAD(other_place), BAD(index_added_to), BAD(kept_pointer_beyond),
	BAD(decremented_narrow), BAD(scaled_delta), BAD(index_changes_in_loop),
	BAD(no_check), BAD(check_after), BAD(too_small), BAD(beyond), BAD(before), BAD(wrong_condition),
	BAD(narrow_compare), BAD(store_under_read_tag), BAD(other_context), BAD(base_changed), BAD(index_changed),
	BAD(unmasked_index), BAD(checked_before_call), BAD(around), BAD(no_row), BAD(plain_pointer), BAD(absolute),
	BAD(client_gs), BAD(store_tag), BAD(outside_frame), BAD(frame_vcpu), BAD(host_stack), BAD(push),
	BAD(vcpu_other_field), BAD(vcpu_other_tlb), BAD(leaked_register), BAD(leaked_slot), BAD(row_of_no_site), BAD(leaked_by_row_of_site), BAD(leaked_memory),
	BAD(site_out_of_bounds), BAD(site_from_guest), BAD(call_unknown), BAD(jump_register),
	BAD(jump_entry_not_compared), BAD(middle_of_instruction),
	GOOD(refilled), BAD(refilled_for_writing), BAD(refilled_in_other_context), BAD(refilled_by_other_address),
	BAD(refilled_at_other_place), GOOD(refills_meet), BAD(refills_meet_apart),
	GOOD(fixed_read), GOOD(fixed_written), BAD(fixed_read_is_written), BAD(fixed_beyond), GOOD(fixed_pointer_kept),
	BAD(fixed_page_of_other_entry), BAD(fixed_page_of_other_array), BAD(fixed_page_of_other_context), BAD(fixed_unchecked),
	BAD(fixed_page_before_check), BAD(fixed_page_and_address), BAD(fixed_page_of_latest), BAD(fixed_offset_kept),
	BAD(fixed_page_leaked), BAD(fixed_past_the_last), BAD(fixed_entry_written), GOOD(fixed_refilled), BAD(fixed_refilled_for_writing),
	BAD(fixed_refilled_for_reading), BAD(fixed_refilled_elsewhere), BAD(fixed_refilled_as_plain), BAD(fixed_refilled_as_stack),
	BAD(fixed_refilled_in_other_context),
	GOOD(stack_pushed), BAD(stack_of_other_context), GOOD(stack_by_pointer), BAD(stack_beyond), BAD(stack_unchecked),
	BAD(stack_delta_before_check), BAD(stack_other_address), BAD(stack_delta_of_latest), BAD(stack_delta_for_tag),
	BAD(stack_tag_for_delta), BAD(stack_tag_kept), BAD(stack_indexed), BAD(stack_entry_written), BAD(stack_delta_leaked),
	GOOD(stack_refilled), BAD(stack_refilled_as_plain), BAD(stack_refilled_in_other_context), BAD(stack_delta_after_call),
	BAD(refilled_as_stack), GOOD(stack_delta_kept), BAD(stack_offset_kept),
	BAD(insn_syscall), BAD(insn_int), BAD(insn_ud2), BAD(insn_wrfsbase), BAD(insn_mov_fs), BAD(insn_xrstor),
	BAD(insn_movsb), BAD(insn_std), BAD(insn_fs_operand), BAD(insn_rip_relative), BAD(insn_clzero), BAD(insn_evex),
	BAD(insn_gather), BAD(insn_bts_frame), BAD(insn_pop_rsp), BAD(insn_ret), BAD(insn_not_one),
	/* Returns and links */
	GOOD(return_noted), GOOD(return_noted_constant), GOOD(return_noted_entry), BAD(return_noted_behind),
	BAD(return_noted_guest), BAD(return_noted_number), BAD(return_noted_vcpu), BAD(return_noted_sum),
	BAD(return_noted_after_call), BAD(return_noted_on_one_way), BAD(return_code_as_address),
	BAD(return_noted_between), BAD(return_noted_next), BAD(return_noted_half), BAD(return_code_added_to),
	BAD(return_unmasked), BAD(return_mask_wide), BAD(return_mask_fine), BAD(return_scaled), BAD(jump_table_written),
	BAD(jump_address_written), BAD(lea_stub), BAD(lea_unverified), BAD(lea_middle), BAD(insn_lea_code_narrow),
	BAD(insn_lea_code_word), BAD(code_in_register), BAD(code_in_slot), BAD(code_in_memory), BAD(lea_of_bad_code),
	BAD(lea_of_unchecked), GOOD(returned), GOOD(returned_constant), GOOD(jumped_constant), BAD(returned_not_compared),
	BAD(returned_if_not_equal), BAD(returned_by_code), BAD(returned_to_address), BAD(returned_by_other_entry),
	BAD(returned_by_constant_entry), BAD(returned_in_other_context), BAD(returned_through_jump_table),
	BAD(jumped_through_returns), BAD(returned_place_changed), BAD(returned_leaking),
	GOOD(linked), GOOD(linked_relative), BAD(linked_out_of_range), BAD(linked_between), BAD(linked_by_guest),
	BAD(linked_to_secret), BAD(linked_leaking), GOOD(jumped_on), GOOD(jumped_on_indirect), BAD(jumped_on_out_of_range),
	BAD(jumped_on_no_site), BAD(jumped_on_to_secret), GOOD(link_compared), BAD(link_compared_half), BAD(link_code_compared),
	BAD(link_before), BAD(link_behind), BAD(link_indexed), BAD(link_narrow), BAD(link_written), BAD(link_code_written),
	BAD(link_key_written), BAD(link_jumped_through), BAD(link_key_noted),
};

/* body, exit, slow path */
static bool verify(void (*body)(void), const char **why)
{
	struct dbt_block b;
	u32 end;

	d->nr_faults = 0;
	nr_cold = row_stub = 0;
	cold_at = COLD;
	no_end = false;
	e->at = BEGIN;
	body();
	if (!no_end) {
		put_mov_imm(e, T0, NR_EXITS - 1);
		put_jmp(e, EXIT_SLOT);
	}
	end = e->at;
	e->at = cold_at;
	for (u32 i = 0; i < nr_cold; i++)
		patch_rel32(e, cold_fields[i], e->at);
	for (u32 i = 0; i < d->nr_faults; i++)
		d->faults[i].stub = row_stub ? row_stub : e->at;
	b = (struct dbt_block){ .main = BEGIN, .slot = BEGIN, .slot_poll = BEGIN, .host = BEGIN, .host_poll = BEGIN,
				.leave = e->at, .code_end = end, .cold = COLD };
	put_mov_imm(e, T0, 0);
	put_call(e, SLOW);
	put_mov_imm(e, T0, 0);
	put_jmp(e, EXIT_HOST);
	b.cold_end = e->at;
	return dbt_verify(vcpu, d, &b, BEGIN, why);
}

static void test_cases(void **state)
{
	for (unsigned i = 0; i < ARRAY_SIZE(cases); i++) {
		const char *why = NULL;
		bool ok = verify(cases[i].body, &why);

		if (ok != cases[i].ok)
			print_error("%s: %s\n", cases[i].name, ok ? "accepted" : why);
		assert_int_equal(ok, cases[i].ok);
	}
}

static int setup(void **state)
{
	vcpu = calloc(1, (sizeof(*vcpu) + 63) & ~63ul);
	d = calloc(1, sizeof(*d));
	assert_int_equal(mmu_create(vcpu), 0);
	d->faults = calloc(64, sizeof(*d->faults));
	d->pages = calloc(DBT_PAGE_HASH_SIZE, sizeof(*d->pages));
	d->sites = calloc(NR_SITES, sizeof(*d->sites));
	assert_int_equal(codemem_init(&d->mem, 128 << 10), 0);
	d->emit = (struct emit){ .base = d->mem.rw, .at = BEGIN, .end = d->mem.size };
	e = &d->emit;
	d->nr_sites = NR_SITES;
	d->nr_exits = NR_EXITS;
	d->code_start = BEGIN;
	d->exit_slot = EXIT_SLOT;
	d->exit_host = EXIT_HOST;
	d->exit_indirect = EXIT_INDIRECT;
	d->slow = SLOW;
	d->load_vec = LOAD_VEC;
	d->load_x87 = LOAD_X87;
	for (unsigned i = 0; i < NR_REFILLS * DBT_REFILL_CTXS; i++)
		d->refill[i / NR_REFILLS][i % NR_REFILLS] = REFILL(i / NR_REFILLS, i % NR_REFILLS);
	for (unsigned i = 0; i < 2 * DBT_REFILL_CTXS; i++)
		d->jump[i / 2][i % 2] = JUMP(i / 2, i % 2);
	d->jump_linked[false] = JUMP_LINKED(false);
	d->jump_linked[true] = JUMP_LINKED(true);
	d->nr_links = NR_LINKS;
	vcpu->arch.dbt = d;
	assert_int_equal(dbt_verifier_create(vcpu, d), 0);
	return 0;
}

static int teardown(void **state)
{
	dbt_verifier_destroy(d);
	codemem_free(&d->mem);
	free(d->faults);
	free(d->pages);
	free(d->sites);
	free(d);
	mmu_destroy(vcpu);
	free(vcpu);
	return 0;
}

int main(void)
{
	const struct CMUnitTest tests[] = {
		cmocka_unit_test(test_cases),
	};

	return cmocka_run_group_tests(tests, setup, teardown);
}

/* SPDX-License-Identifier: MIT */
/*
 * Ways out of a block, and the instructions that take them.
 *
 * An exit to the same page, or from kernel code to kernel code, may be linked to its target's block; the others go
 * through the jump table of the context. While there is neither, the block is left and the dispatcher finds the target.
 */
#include "x86/dbt/translate.h"

/* ---- exits ------------------------------------------------------------------------------------- */

u32 exit_new(struct trans *tr, u64 target, bool host_flags)
{
	struct dbt_exit *x = &tr->d->exits[tr->d->nr_exits];

	*x = (struct dbt_exit){
		.target = target,
		.relative = tr->relative,
		.host_flags = host_flags,
		.retired = tr->retired,
		.ctx = tr->ctx,
		.mode_key = tr->vcpu->arch.mode_key,
	};
	return tr->d->nr_exits++;
}

void put_leave(struct trans *tr, u32 exit, bool host_flags)
{
	put_mov_imm(tr->e, T0, exit);
	put_jmp(tr->e, host_flags ? tr->d->exit_host : tr->d->exit_slot);
}

void put_code_address(struct trans *tr, u8 reg, u64 va)
{
	if (tr->relative && va == (u64)(s64)(s32)va) {
		put_load(tr->e, reg, SLOT(FRAME_PAGE));
		put_lea(tr->e, reg, MEM_BASE(reg, va));
		return;
	}
	put_mov_imm(tr->e, reg, va);
	if (tr->relative)
		put_rm(tr->e, W8, 0x03, reg, SLOT(FRAME_PAGE));
}

/* A block that is left for the address in T0, which is lost: the next one may be relative. */
static void put_page(struct trans *tr)
{
	if (tr->ctx < TLB_USER || tr->width != W8)
		return;
	put_alu_imm(tr->e, W8, 4, T0, (s32)PAGE_MASK);
	put_store(tr->e, SLOT(FRAME_PAGE), T0);
}

/* Jump to the guest address in T0, or else to c. Flags are in the slot. */
static void put_jump_table(struct trans *tr, struct cold *c)
{
	struct hmem m = MEM_GS(T1, jump_entry(tr->ctx, 0, JUMP_VA));
	struct emit *e = tr->e;

	put_rr(e, W4, 0x69, T1, T0); /* imul: jump_table_index() */
	put32(e, JUMP_FACTOR);
	put_shift_imm(e, W4, 5, T1, 32 - JUMP_TABLE_SHIFT);
	put_rr(e, W4, 0x01, T1, T1);
	m.scale = 3;
	put_rm(e, W8, 0x3b, T0, m);
	put_jcc_cold(tr, CC_NE, c);
	put_page(tr);
	m.disp = jump_entry(tr->ctx, 0, JUMP_CODE);
	put_rm(e, W4, 0xff, 4, m);
}

/*
 * To another page by a link, if there may be one: from user code to what is known in the same way, relative or not. The page's address moves along.
 * Flags are in the slot.
 */
static bool put_jump_linked(struct trans *tr, u64 target)
{
	const s64 pages = (s64)(target & PAGE_MASK);
	struct emit *e = tr->e;
	struct cold *c;
	u32 exit = tr->d->nr_exits, link;

	if (tr->ctx != TLB_USER || tr->width != W8 || tr->d->diff || dbt_near_end(target) ||
	    (tr->relative ? pages != (s32)pages : dbt_is_relative(tr->vcpu, tr->ctx, target)) ||
	    !dbt_link_new(tr->vcpu, exit, &link))
		return false;
	exit_new(tr, target, false);
	c = cold_new(tr, COLD_LINK);
	c->index = link;
	c->target = target;
	if (tr->relative) {
		put_load(e, T1, SLOT(FRAME_PAGE));
		put_rm(e, W8, 0x33, T1, MEM_GS(NOREG, offsetof(struct mmu, jump_key)));
	} else {
		put_load(e, T1, MEM_GS(NOREG, offsetof(struct mmu, jump_key)));
	}
	put_rm(e, W8, 0x3b, T1, MEM_GS(NOREG, offsetof(struct mmu, jump_links) + link * sizeof(struct jump_link)));
	static_assert(!offsetof(struct jump_link, key), "compared");
	put_jcc_cold(tr, CC_NE, c);
	if (tr->relative && pages)
		put_alu_mem_imm(e, W8, 0, SLOT(FRAME_PAGE), pages);
	put_jmp(e, 0);
	c->fields[c->nr_fields++] = e->at - 4;
	tr->d->exits[exit].field = e->at - 4;
	tr->d->exits[exit].local = true;
	tr->d->exits[exit].stub = link;
	return true;
}

/* The link is not good now: the tables may know better. */
void put_cold_link(struct trans *tr, struct cold *c)
{
	put_code_address(tr, T0, c->target);
	put_mov_imm(tr->e, T1, c->index * sizeof(struct jump_link));
	put_jmp(tr->e, tr->d->jump_linked[tr->relative]);
}

/* Through the jump table to a known address. Flags are in the slot. */
void put_jump_known(struct trans *tr, u64 target)
{
	u64 i = jump_table_index(target);
	struct cold *c;

	if (put_jump_linked(tr, target))
		return;
	c = cold_new(tr, COLD_EXIT);
	c->index = exit_new(tr, target, false);
	put_code_address(tr, T0, target);
	if (tr->relative) {
		put_jump_table(tr, c);
		return;
	}
	put_rm(tr->e, W8, 0x3b, T0, MEM_GS(NOREG, jump_entry(tr->ctx, i, JUMP_VA)));
	put_jcc_cold(tr, CC_NE, c);
	if (dbt_is_relative(tr->vcpu, tr->ctx, target))
		put_page(tr);
	put_rm(tr->e, W4, 0xff, 4, MEM_GS(NOREG, jump_entry(tr->ctx, i, JUMP_CODE)));
}

/* The kernel's code is mapped globally, as a rule, and the rest of the kernel with it. */
static bool far_link_wanted(const struct trans *tr, u64 target)
{
	return tr->ctx < TLB_USER && (s64)target < 0;
}

/* Some block's first instruction goes on on the next page: it is found through the jump table only. */
static bool same_page(const struct trans *tr, u64 target)
{
	if (unlikely(dbt_near_end(target)))
		return false;
	return !((tr->va ^ target) & PAGE_MASK);
}

/* The distance just written may be patched. */
static void exit_set_link(struct trans *tr, u32 exit, bool far)
{
	struct dbt_exit *x = &tr->d->exits[exit];

	x->field = tr->e->at - 4;
	x->linkable = !far;
	x->far = far;
}

/* Unconditionally to target: the end of the straight path. */
void put_exit(struct trans *tr, u64 target)
{
	bool far = !same_page(tr, target);
	struct cold *c;

	if (far && !far_link_wanted(tr, target)) {
		flags_to_slot(tr, FLAGS_ALL);
		put_jump_known(tr, target);
		return;
	}
	c = cold_new(tr, COLD_EXIT);
	c->index = exit_new(tr, target, tr->host);
	c->host_flags = tr->host;
	put_jmp(tr->e, 0);
	c->fields[c->nr_fields++] = tr->e->at - 4;
	exit_set_link(tr, c->index, far);
}

static void put_exit_if(struct trans *tr, u8 cc, u64 target)
{
	bool far = !same_page(tr, target);
	bool link = !far || far_link_wanted(tr, target);
	struct cold *c = cold_new(tr, link ? COLD_EXIT : COLD_JUMP);

	c->host_flags = true;
	c->target = target;
	put_jcc_cold(tr, cc, c);
	if (!link)
		return;
	c->index = exit_new(tr, target, true);
	exit_set_link(tr, c->index, far);
}

/* The first level of the jump table does not have the target, in T0: on by common code. index: of an exit or (indirect) a site. */
void put_jump_second(struct trans *tr, u32 index, bool indirect)
{
	if (tr->ctx < DBT_REFILL_CTXS) {
		put_mov_imm(tr->e, T1, index);
		put_jmp(tr->e, tr->d->jump[tr->ctx][indirect]);
		return;
	}
	put_store(tr->e, SLOT(FRAME_TMP1), T0);
	put_mov_imm(tr->e, T0, index);
	put_jmp(tr->e, indirect ? tr->d->exit_indirect : tr->d->exit_slot);
}

/* While there is no link to another page, the jump table may have it. */
void put_cold_exit(struct trans *tr, struct cold *c)
{
	struct dbt_exit *x = &tr->d->exits[c->index];
	u64 i = jump_table_index(x->target);
	u32 miss;

	if (!x->far && !x->linkable) {
		put_jump_second(tr, c->index, false);
		return;
	}
	if (!x->far) {
		put_leave(tr, c->index, c->host_flags);
		return;
	}
	x->stub = tr->e->at;
	if (c->host_flags)
		flags_save(tr->e);
	put_mov_imm(tr->e, T0, x->target);
	put_rm(tr->e, W8, 0x3b, T0, MEM_GS(NOREG, jump_entry(x->ctx, i, JUMP_VA)));
	miss = put_jcc_later(tr->e, CC_NE);
	put_rm(tr->e, W4, 0xff, 4, MEM_GS(NOREG, jump_entry(x->ctx, i, JUMP_CODE)));
	patch_rel32(tr->e, miss, tr->e->at);
	put_leave(tr, c->index, false);
}

/* If cc, to an instruction of this block in the translation without ranges, flags in the slot: the exit, to leave by while there is no link. */
u32 put_narrow_exit_if(struct trans *tr, u8 cc, u64 target)
{
	u32 i = exit_new(tr, target, false);

	tr->d->exits[i].narrow = true;
	put_jcc(tr->e, cc, 0);
	/* What turns out to go on on the next page is not linked (dispatch()). */
	if (!((tr->va ^ target) & PAGE_MASK))
		exit_set_link(tr, i, false);
	return i;
}

void put_jump_indirect(struct trans *tr, u32 site)
{
	struct cold *c = cold_new(tr, COLD_INDIRECT);

	c->index = site;
	put_jump_table(tr, c);
}

/* The operand of an entry of mmu.returns; T1 is its place. */
static struct hmem return_entry(const struct trans *tr, size_t field)
{
	struct hmem m = MEM_GS(T1, offsetof(struct mmu, returns[tr->ctx]) + field);

	m.scale = 1;
	return m;
}

/* T1 = place in mmu.returns, for return_entry(). The return address is popped bytes below the stack pointer. */
static void put_return_place(struct trans *tr, s32 popped)
{
	put_rm(tr->e, W4, 0x8d, T1, MEM_BASE(GUEST_RSP, -popped));
	static_assert(sizeof(struct jump_entry_host) == 16, "scaled");
	put_alu_imm(tr->e, W4, 4, T1, (RETURN_CACHE - 1) * 8);
}

static bool returns_wanted(const struct trans *tr)
{
	return tr->ctx < DBT_REFILL_CTXS && tr->width == W8 && !tr->d->diff;
}

/* Is it noted where a call's return address, ret, will go on? */
static bool return_wanted(const struct trans *tr, u64 ret)
{
	return returns_wanted(tr) && same_page(tr, ret);
}

/* A call has pushed its return address, ret, which is in T0: where that will go on. Flags are in the slot. */
static void put_return_note(struct trans *tr, u64 ret)
{
	struct emit *e = tr->e;
	struct cold *c = cold_new(tr, COLD_EXIT);

	c->index = exit_new(tr, ret, false);
	tr->d->exits[c->index].returned_to = true;
	put_return_place(tr, 0);
	put_store(e, return_entry(tr, JUMP_VA), T0);
	put_lea_code(e, T0, 0);
	c->fields[c->nr_fields++] = e->at - 4;
	exit_set_link(tr, c->index, false);
	put_store(e, return_entry(tr, JUMP_CODE), T0);
}

/* Return to the guest address in T0. Flags are in the slot. */
static void put_return(struct trans *tr, s32 popped, u32 site)
{
	struct cold *c;

	if (!returns_wanted(tr)) {
		put_jump_indirect(tr, site);
		return;
	}
	c = cold_new(tr, COLD_RETURN);
	c->index = site;
	put_return_place(tr, popped);
	put_rm(tr->e, W8, 0x3b, T0, return_entry(tr, JUMP_VA));
	put_jcc_cold(tr, CC_NE, c);
	put_page(tr);
	put_rm(tr->e, W4, 0xff, 4, return_entry(tr, JUMP_CODE));
}

/* ---- instructions ------------------------------------------------------------------------------ */

/* T0 = target of an indirect jump or call */
static void put_target(struct trans *tr, struct tinsn *t, struct cold *c)
{
	struct hmem m;

	if (t->mem) {
		struct ea ea = ea_of(t);

		put_check(tr, &ea, word(tr), false, &m, c);
		put_fault_row(tr, c);
		put_rm(tr->e, tr->width, 0x8b, T0, m);
	} else {
		u8 r = gpr_to_host(tr->e, t->gpr, T0);

		if (r != T0)
			put_rr(tr->e, tr->width, 0x89, r, T0);
	}
}

/* Pushes it, and notes it. */
static void put_return_address(struct trans *tr, struct tinsn *t, struct cold *c)
{
	u64 ret = next_rip(tr, t);
	bool noted = return_wanted(tr, ret), imm = !noted && !tr->relative && fits_imm(tr, ret);
	struct hmem m;

	if (noted)
		flags_clobber(tr, FLAGS_ALL);
	put_stack_word(tr, t, true, &m, c);
	if (!imm)
		put_code_address(tr, T0, ret);
	put_fault_row(tr, c);
	if (imm)
		store_imm(tr, m, ret);
	else
		put_store(tr->e, m, T0);
	put_add_rsp(tr, -(s32)word(tr));
	slow_end(tr, c, 0);
	if (!noted)
		return;
	c->target = ret;
	put_return_note(tr, ret);
}

void emit_jump(struct trans *tr, struct tinsn *t)
{
	u64 next = next_rip(tr, t), target = wrap_rip(tr, next + t->insn.imm);
	struct cold *c;

	switch (t->kind) {
	case K_JCC:
		flags_to_host(tr);
		if (t->inverted) {
			put_exit_if(tr, t->cc ^ 1, next);
			break;
		}
		put_exit_if(tr, t->cc, target);
		if (t == &tr->insns[tr->nr - 1])
			put_exit(tr, next);
		break;
	case K_JMP:
		put_exit(tr, target);
		break;
	case K_CALL:
		put_return_address(tr, t, slow_new(tr, t));
		put_exit(tr, target);
		break;
	case K_CALL_IND:
		flags_clobber(tr, FLAGS_ALL);
		c = slow_new(tr, t);
		put_target(tr, t, c);
		put_store(tr->e, SLOT(FRAME_TMP0), T0);
		put_return_address(tr, t, c);
		put_load(tr->e, T0, SLOT(FRAME_TMP0));
		put_jump_indirect(tr, c->index);
		break;
	case K_JMP_IND:
		flags_clobber(tr, FLAGS_ALL);
		c = slow_new(tr, t);
		put_target(tr, t, c);
		slow_end(tr, c, 0);
		put_jump_indirect(tr, c->index);
		break;
	default:
		break;
	}
}

void emit_ret(struct trans *tr, struct tinsn *t)
{
	s32 popped = word(tr) + (u16)t->insn.imm;
	struct cold *c = slow_new(tr, t);
	struct hmem m;

	flags_clobber(tr, FLAGS_ALL);
	put_stack_word(tr, t, false, &m, c);
	put_fault_row(tr, c);
	put_rm(tr->e, tr->width, 0x8b, T0, m);
	put_add_rsp(tr, popped);
	slow_end(tr, c, 0);
	put_return(tr, popped, c->index);
}

/* LOOP and JRCXZ, without flags. */
void emit_count_branch(struct trans *tr, struct tinsn *t)
{
	u64 next = next_rip(tr, t), target = wrap_rip(tr, next + t->insn.imm);
	bool ecx = t->insn.addrsize == 4;
	struct emit *e = tr->e;
	bool loop = t->kind == K_LOOP, host = tr->host, slot = tr->slot;
	u32 near, far;

	if (loop)
		put_rm(e, ecx ? W4 : W8, 0x8d, RCX, MEM_BASE(RCX, -1));
	if (ecx)
		put8(e, 0x67);
	put8(e, 0xe3); /* jrcxz over the next */
	put8(e, 5);
	put_jmp(e, 0);
	near = e->at - 4;
	put_jmp(e, 0);
	far = e->at - 4;
	patch_rel32(e, loop ? near : far, e->at);
	put_exit(tr, target);
	tr->host = host;
	tr->slot = slot;
	patch_rel32(e, loop ? far : near, e->at);
	put_exit(tr, next);
}

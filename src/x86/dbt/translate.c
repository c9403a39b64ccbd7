/* SPDX-License-Identifier: MIT */
/*
 * One block: decode, find out where flags are live, emit.
 *
 *  1. Only what the interpreter's allow-list permits is copied, in forms whose
 *     every operand native_form() understands; a few frequent instructions have
 *     emitters of their own; everything else calls its C handler.
 *  2. A memory access is preceded by a look-up in the TLB's tags. If the tag
 *     does not match, or the page ends in between, the handler does the whole
 *     instruction instead; nothing of the guest has changed before.
 *  3. An instruction that faults on the host has changed nothing: its handler
 *     repeats it (fault rows) and raises what is due.
 *  4. Flags are known to be in the host's flags, in the frame's slot, both, or
 *     dead. Look-ups destroy the host's: live ones are put into the slot first.
 *     Dead flags may be stale when an exception is delivered in between.
 *  5. What a range's look-up has found is good until an instruction that is its handler's. A
 *     slow path within a range does not come back, but goes on with another block.
 *  6. T1 keeps a range's difference from one instruction to the next only past those of keeps_t1().
 */
#include <stdlib.h>

#include "x86/decode/decode.h"
#include "x86/dbt/diff.h"
#include "x86/dbt/translate.h"
#include "x86/dbt/verify.h"
#include "x86/dbt/watch.h"

enum thunk_class { NONE, INT, VEC, X87, NOP };

static const u8 allowed[ZYDIS_MNEMONIC_MAX_VALUE + 1] = {
#define THUNK(mnemonic, class) [ZYDIS_MNEMONIC_##mnemonic] = class,
#include "x86/interp/thunk_allow.def"
#undef THUNK
};

int dbt_scratch_create(struct dbt *d)
{
	d->scratch = malloc(sizeof(*d->scratch));
	return d->scratch ? 0 : -1;
}

/* ---- classification ----------------------------------------------------------------- */

static bool note_gpr(struct tinsn *t, const ZydisDecodedOperand *op, u8 r)
{
	if (r == RSP && op->encoding == ZYDIS_OPERAND_ENCODING_NONE)
		return false;
	if (r < R13)
		return true;
	for (unsigned i = 0; i < t->nr_homed; i++) {
		if (t->homed[i] == r) {
			t->homed_written[i] |= !!(op->actions & ZYDIS_OPERAND_ACTION_MASK_WRITE);
			return true;
		}
	}
	t->homed[t->nr_homed] = r;
	t->homed_written[t->nr_homed++] = op->actions & ZYDIS_OPERAND_ACTION_MASK_WRITE;
	return true;
}

static bool note_register(struct tinsn *t, const ZydisDecodedOperand *op, bool *high8)
{
	ZydisRegister reg = op->reg.value;
	bool high;
	u8 r = gpr_from_zydis(reg, &high);

	*high8 |= high;
	if (r != INSN_NOREG)
		return note_gpr(t, op, r);
	switch (ZydisRegisterGetClass(reg)) {
	case ZYDIS_REGCLASS_YMM:
		t->vec = true;
		return reg <= ZYDIS_REGISTER_YMM15;
	case ZYDIS_REGCLASS_XMM:
		t->vec = true;
		return reg <= ZYDIS_REGISTER_XMM15;
	case ZYDIS_REGCLASS_FLAGS:
		return true;
	default:
		return reg == ZYDIS_REGISTER_MXCSR;
	}
}

static bool code32(const struct tinsn *t)
{
	return t->zi.machine_mode != ZYDIS_MACHINE_MODE_LONG_64;
}

/* 32-bit code, which is flat: FS and GS may still have limits, and nobody writes through CS. */
static bool segment_ok(const struct trans *tr, const ZydisDecodedOperand *op)
{
	switch (seg_from_zydis(op->mem.segment)) {
	case SEG_CS:
		return !(op->actions & ZYDIS_OPERAND_ACTION_MASK_WRITE);
	case SEG_FS:
		return tr->vcpu->arch.fs_whole;
	case SEG_GS:
		return tr->vcpu->arch.gs_whole;
	default:
		return true;
	}
}

static bool note_memory(const struct trans *tr, struct tinsn *t, const ZydisDecodedOperand *op)
{
	unsigned size = op->size / 8;

	if (t->mem || op->mem.type != ZYDIS_MEMOP_TYPE_MEM || !size || size > 64 ||
	    op->visibility != ZYDIS_OPERAND_VISIBILITY_EXPLICIT ||
	    (op->encoding != ZYDIS_OPERAND_ENCODING_MODRM_RM && !(code32(t) && is_moffs(&t->zi))) ||
	    op->mem.base == ZYDIS_REGISTER_EIP)
		return false;
	if (code32(t) && (t->zi.address_width != 32 || !segment_ok(tr, op)))
		return false;
	t->mem = op;
	return true;
}

/* Of the stack and of pointers. */
static unsigned word_size(const struct tinsn *t)
{
	return code32(t) ? 4 : 8;
}

static bool is_bit_string(const struct tinsn *t)
{
	switch (t->zi.mnemonic) {
	case ZYDIS_MNEMONIC_BT:
	case ZYDIS_MNEMONIC_BTS:
	case ZYDIS_MNEMONIC_BTR:
	case ZYDIS_MNEMONIC_BTC:
		return t->mem && t->ops[1].type != ZYDIS_OPERAND_TYPE_IMMEDIATE;
	default:
		return false;
	}
}

/* May the host execute this very instruction? */
static bool native_form(const struct trans *tr, struct tinsn *t)
{
	const ZydisDecodedInstruction *zi = &t->zi;
	u8 class = allowed[zi->mnemonic];
	bool high8 = false;

	if ((class != INT && class != VEC) || zi->meta.category == ZYDIS_CATEGORY_STRINGOP)
		return false;
	if (zi->encoding != ZYDIS_INSTRUCTION_ENCODING_LEGACY && zi->encoding != ZYDIS_INSTRUCTION_ENCODING_VEX)
		return false;
	for (unsigned i = 0; i < zi->operand_count; i++) {
		const ZydisDecodedOperand *op = &t->ops[i];
		bool ok = op->type == ZYDIS_OPERAND_TYPE_IMMEDIATE;

		if (op->type == ZYDIS_OPERAND_TYPE_REGISTER)
			ok = note_register(t, op, &high8);
		else if (op->type == ZYDIS_OPERAND_TYPE_MEMORY)
			ok = note_memory(tr, t, op);
		if (!ok)
			return false;
	}
	if (code32(t) && !dbt_encodable32(zi, t->ops, t->bytes))
		return false;
	if (is_bit_string(t) || t->nr_homed > (t->mem ? 1 : 2))
		return false;
	/* AH to DH cannot be named beside registers that need a prefix. */
	if (high8 && (t->mem || t->nr_homed || (zi->attributes & ZYDIS_ATTRIB_HAS_REX)))
		return false;
	for (unsigned i = 0; high8 && i < zi->operand_count; i++)
		if (t->ops[i].type == ZYDIS_OPERAND_TYPE_REGISTER &&
		    ZydisRegisterGetLargestEnclosing(ZYDIS_MACHINE_MODE_LONG_64, t->ops[i].reg.value) == ZYDIS_REGISTER_RSP)
			return false;
	t->int_class = class == INT;
	t->vec |= class == VEC && decode_uses_mxcsr(zi);
	t->may_fault = t->mem || (class == VEC && decode_uses_mxcsr(zi)) || zi->mnemonic == ZYDIS_MNEMONIC_DIV ||
		       zi->mnemonic == ZYDIS_MNEMONIC_IDIV;
	return true;
}

/* A shift by a count that may be zero leaves all flags alone. */
static bool may_keep_flags(const struct tinsn *t)
{
	const ZydisDecodedOperand *count;

	if (t->zi.meta.category != ZYDIS_CATEGORY_SHIFT && t->zi.meta.category != ZYDIS_CATEGORY_ROTATE)
		return false;
	count = &t->ops[t->zi.operand_count_visible - 1];
	return count->type != ZYDIS_OPERAND_TYPE_IMMEDIATE || t->zi.operand_count_visible < 2 ||
	       !(count->imm.value.u & (t->zi.operand_width == 64 ? 63 : 31));
}

static void native_flags(struct tinsn *t)
{
	const ZydisAccessedFlags *f = t->zi.cpu_flags;

	if (!f)
		return;
	t->reads = f->tested & FLAGS_ALL;
	t->writes = (f->modified | f->set_0 | f->set_1 | f->undefined) & FLAGS_ALL;
	if (t->writes && may_keep_flags(t))
		t->reads = FLAGS_ALL;
}

static bool is_jcc(const ZydisDecodedInstruction *zi)
{
	return (zi->opcode_map == ZYDIS_OPCODE_MAP_DEFAULT && (zi->opcode & 0xf0) == 0x70) ||
	       (zi->opcode_map == ZYDIS_OPCODE_MAP_0F && (zi->opcode & 0xf0) == 0x80);
}

static enum kind classify_branch(struct trans *tr, struct tinsn *t)
{
	bool near = t->zi.meta.branch_type != ZYDIS_BRANCH_TYPE_FAR;
	u64 target = t->rip + t->insn.len + t->insn.imm;
	bool reg = t->ops[0].type == ZYDIS_OPERAND_TYPE_REGISTER;
	bool imm = t->ops[0].type == ZYDIS_OPERAND_TYPE_IMMEDIATE;

	/* VEX ones (JKZD) are nobody's. */
	if (!near || t->zi.encoding != ZYDIS_INSTRUCTION_ENCODING_LEGACY)
		return K_HANDLER;
	if (imm && t->zi.mnemonic != ZYDIS_MNEMONIC_RET && !code32(t) && !is_canonical(target))
		return K_HANDLER;
	if (code32(t) && t->insn.opsize != 4)
		return K_HANDLER;
	switch (t->zi.mnemonic) {
	case ZYDIS_MNEMONIC_JMP:
		if (imm)
			return K_JMP;
		return reg || note_memory(tr, t, &t->ops[0]) ? K_JMP_IND : K_HANDLER;
	case ZYDIS_MNEMONIC_CALL:
		if (imm)
			return K_CALL;
		return reg || note_memory(tr, t, &t->ops[0]) ? K_CALL_IND : K_HANDLER;
	case ZYDIS_MNEMONIC_RET:
		return K_RET;
	case ZYDIS_MNEMONIC_LOOP:
		return t->zi.address_width >= 32 ? K_LOOP : K_HANDLER;
	case ZYDIS_MNEMONIC_JRCXZ:
	case ZYDIS_MNEMONIC_JECXZ:
		return K_JRCXZ;
	case ZYDIS_MNEMONIC_LOOPE:
	case ZYDIS_MNEMONIC_LOOPNE:
	case ZYDIS_MNEMONIC_JCXZ:
		return K_HANDLER;
	default:
		return is_jcc(&t->zi) ? K_JCC : K_HANDLER;
	}
}

static enum kind classify_stack(const struct trans *tr, struct tinsn *t)
{
	const ZydisDecodedOperand *op = &t->ops[0];
	bool high8;

	if (t->insn.opsize != word_size(t) || (t->insn.flags & INSN_LOCK))
		return K_HANDLER;
	switch (t->zi.mnemonic) {
	case ZYDIS_MNEMONIC_LEAVE:
		return K_LEAVE;
	case ZYDIS_MNEMONIC_PUSH:
		if (op->type == ZYDIS_OPERAND_TYPE_MEMORY)
			return note_memory(tr, t, op) ? K_PUSH : K_HANDLER;
		if (op->type == ZYDIS_OPERAND_TYPE_REGISTER && gpr_from_zydis(op->reg.value, &high8) == INSN_NOREG)
			return K_HANDLER;
		return K_PUSH;
	default:
		return op->type == ZYDIS_OPERAND_TYPE_REGISTER &&
		       gpr_from_zydis(op->reg.value, &high8) != INSN_NOREG ? K_POP : K_HANDLER;
	}
}

static enum kind classify(struct trans *tr, struct tinsn *t)
{
	bool kernel = !tr->vcpu->arch.cpl;

	switch (t->zi.meta.category) {
	case ZYDIS_CATEGORY_COND_BR:
	case ZYDIS_CATEGORY_UNCOND_BR:
	case ZYDIS_CATEGORY_CALL:
	case ZYDIS_CATEGORY_RET:
		return classify_branch(tr, t);
	default:
		break;
	}
	switch (t->zi.mnemonic) {
	case ZYDIS_MNEMONIC_STI: return kernel ? K_STI : K_HANDLER;
	case ZYDIS_MNEMONIC_CLI: return kernel ? K_CLI : K_HANDLER;
	case ZYDIS_MNEMONIC_PUSHFQ: return K_PUSHF;
	default: break;
	}
	/* #UD, #NM, and what changes the mode. */
	if (t->insn.flags & INSN_END_BLOCK)
		return K_HANDLER;
	switch (t->zi.mnemonic) {
	case ZYDIS_MNEMONIC_STAC: return kernel ? K_STAC : K_HANDLER;
	case ZYDIS_MNEMONIC_CLAC: return kernel ? K_CLAC : K_HANDLER;
	case ZYDIS_MNEMONIC_PUSH:
	case ZYDIS_MNEMONIC_POP:
	case ZYDIS_MNEMONIC_LEAVE:
		return classify_stack(tr, t);
	case ZYDIS_MNEMONIC_LEA:
		if (t->ops[1].mem.base == ZYDIS_REGISTER_EIP || t->insn.opsize < 4 || t->zi.address_width < 32)
			return K_HANDLER;
		return K_LEA;
	default:
		break;
	}
	/* CLFLUSH and its kin do nothing, but may fault. */
	if (allowed[t->zi.mnemonic] == NOP)
		return t->zi.mnemonic == ZYDIS_MNEMONIC_CLFLUSH || t->zi.mnemonic == ZYDIS_MNEMONIC_CLFLUSHOPT ||
		       t->zi.mnemonic == ZYDIS_MNEMONIC_CLWB ? K_HANDLER : K_NOP;
	return native_form(tr, t) ? K_NATIVE : K_HANDLER;
}

/* ---- decoding and liveness ------------------------------------------------------------- */

#define BLOCK_BRANCHES 3

/* A conditional branch forward is not taken, mostly: what follows it belongs to the block, within reason. */
static bool goes_on_after(struct trans *tr, const struct tinsn *t)
{
	if (t->kind != K_JCC || (s64)t->insn.imm < 0 || tr->nr > DBT_BLOCK_INSNS / 2)
		return false;
	return ++tr->branches <= BLOCK_BRANCHES;
}

static void tinsn_init(struct trans *tr, struct tinsn *t)
{
	t->vec = t->may_fault = t->int_class = t->end = false;
	t->nr_homed = 0;
	t->mem = NULL;
	t->reads = t->writes = 0;
	t->kind = classify(tr, t);
	if (t->kind == K_HANDLER) {
		t->mem = NULL;
		t->nr_homed = 0;
		t->vec = false;
	}
	switch (t->kind) {
	case K_NATIVE:
		native_flags(t);
		break;
	case K_HANDLER:
	case K_PUSHF:
		t->reads = FLAGS_ALL;
		break;
	case K_JCC:
		t->reads = FLAGS_ALL; /* nobody knows what it leads to */
		break;
	default:
		break;
	}
	t->end = (t->kind >= K_JCC && !goes_on_after(tr, t)) ||
		 (t->kind == K_HANDLER && ((t->insn.flags & INSN_END_BLOCK) ||
					   t->zi.mnemonic == ZYDIS_MNEMONIC_POPFQ ||
					   t->zi.mnemonic == ZYDIS_MNEMONIC_POPFD));
}

static void make_handler(struct tinsn *t)
{
	t->kind = K_HANDLER;
	t->mem = NULL;
	t->nr_homed = 0;
	t->vec = t->may_fault = false;
	t->reads = FLAGS_ALL;
	t->writes = 0;
	t->end = true;
}

static void decode_block(struct trans *tr, const struct dbt_page *page)
{
	unsigned off = tr->va & ~PAGE_MASK;

	tr->nr = 0;
	while (tr->nr < DBT_BLOCK_INSNS && off < PAGE_SIZE) {
		struct tinsn *t = &tr->insns[tr->nr];
		unsigned left = min((unsigned)(PAGE_SIZE - off), (unsigned)INSN_MAX_LEN);

		t->bytes = page->bytes + off;
		t->rip = (tr->va & PAGE_MASK) + off;
		if (!decode_insn_full(tr->vcpu, t->bytes, left, &t->insn, &t->zi, t->ops))
			break;
		if (unlikely(tr->d->diff) && tr->nr && diff_excludes(&t->zi, t->ops))
			break;
		tinsn_init(tr, t);
		t->end |= unlikely(tr->d->diff) && diff_excludes(&t->zi, t->ops);
		tr->nr++;
		off += t->insn.len;
		if (t->end)
			break;
	}
	/* What follows STI runs before an interrupt is taken: both or none. */
	while (tr->nr && tr->insns[tr->nr - 1].kind == K_STI) {
		if (tr->nr == 1) {
			make_handler(&tr->insns[0]);
			break;
		}
		tr->nr--;
	}
}

/*
 * An instruction that goes on on the next page is a block of its own, and its handler's: nobody watches that page
 * for it, so its bytes there are looked at each time (dbt_call_insn()).
 */
static void decode_across(struct trans *tr, const struct dbt_page *page)
{
	unsigned head = PAGE_SIZE - (tr->va & ~PAGE_MASK);
	u8 *bytes = tr->d->scratch->bytes;
	struct tinsn *t = &tr->insns[0];
	const u8 *host = mmu_fetched_page(tr->vcpu, dbt_next_page(tr->vcpu, tr->va));

	if (head >= INSN_MAX_LEN || tr->d->diff || !host)
		return;
	memcpy(bytes, page->bytes + PAGE_SIZE - head, head);
	if (host_copy(bytes + head, host, INSN_MAX_LEN - head))
		return;
	t->bytes = bytes;
	t->rip = tr->va;
	if (!decode_insn_full(tr->vcpu, bytes, INSN_MAX_LEN, &t->insn, &t->zi, t->ops) || t->insn.len <= head)
		return;
	tinsn_init(tr, t);
	make_handler(t);
	tr->head = head;
	tr->nr = 1;
}

static void find_live_flags(struct trans *tr)
{
	u32 live = FLAGS_ALL;

	for (unsigned i = tr->nr; i-- > 0;) {
		struct tinsn *t = &tr->insns[i];

		t->live_after = live;
		t->needs = t->reads | (t->writes ? live & ~t->writes : 0);
		live = (live & ~t->writes) | t->reads;
		t->live_before = live;
	}
}

/* ---- flags -------------------------------------------------------------------------------- */

/* T0 is lost. */
static void flags_save(struct emit *e)
{
	put_mov(e, T0, RAX);
	put8(e, 0x9f); /* lahf */
	put_rr(e, W4, OPC_0F | 0x90, 0, RAX); /* seto %al */
	put_rm(e, W4, OPC_66 | 0x89, RAX, SLOT(FRAME_FLAGS));
	put_mov(e, RAX, T0);
}

static void flags_restore(struct emit *e)
{
	put_store(e, SLOT(FRAME_TMP0), RAX);
	put_rm(e, W4, OPC_0F | 0xb7, RAX, SLOT(FRAME_FLAGS)); /* movzwl */
	put8(e, 0x04);
	put8(e, 0x7f); /* add $0x7f, %al: overflows if it was 1 */
	put8(e, 0x9e); /* sahf */
	put_load(e, RAX, SLOT(FRAME_TMP0));
}

static void flags_to_slot(struct trans *tr, u32 live)
{
	if (live && !tr->slot) {
		flags_save(tr->e);
		tr->slot = true;
	}
}

static void flags_to_host(struct trans *tr)
{
	if (!tr->host) {
		flags_restore(tr->e);
		tr->host = true;
	}
}

/* The host's flags are about to be destroyed. */
static void flags_clobber(struct trans *tr, u32 live)
{
	flags_to_slot(tr, live);
	tr->host = false;
}

/* ---- cold code ------------------------------------------------------------------------------- */

static struct cold *cold_new(struct trans *tr, int type)
{
	struct cold *c = &tr->cold[tr->nr_cold++];

	*c = (struct cold){ .type = type, .retired = tr->retired, .ctx = tr->ctx };
	return c;
}

/* jcc to be led to c */
static void put_jcc_cold(struct trans *tr, u8 cc, struct cold *c)
{
	put_jcc(tr->e, cc, 0);
	c->fields[c->nr_fields++] = tr->e->at - 4;
}

static u32 site_new(struct trans *tr, const struct tinsn *t)
{
	struct dbt_site *s = &tr->d->sites[tr->d->nr_sites];

	s->insn = t->insn;
	s->rip = t->rip;
	s->tlb = &tr->vcpu->arch.mmu->tlbs[tr->ctx];
	s->head = tr->head;
	if (tr->head)
		memcpy(s->tail, t->bytes + tr->head, t->insn.len - tr->head);
	return tr->d->nr_sites++;
}

static struct cold *slow_new(struct trans *tr, const struct tinsn *t)
{
	struct cold *c = cold_new(tr, COLD_SLOW);

	c->index = site_new(tr, t);
	c->row = tr->d->nr_faults;
	if (t->in_range)
		c->insn = t;
	return c;
}

/* The next host instruction may fault. */
static void put_fault_row(struct trans *tr, struct cold *c)
{
	struct dbt_fault_row *row = &tr->d->faults[tr->d->nr_faults++];

	row->at = tr->e->at;
	row->stub = tr->host ? FAULT_HOST_FLAGS : 0;
	c->nr_rows++;
}

/* The instruction is complete: where its handler's way joins again. */
static void slow_end(struct trans *tr, struct cold *c, u32 live)
{
	c->resume = tr->e->at;
	c->host_flags = live && tr->host;
}

static u32 exit_new(struct trans *tr, u64 target, bool host_flags)
{
	struct dbt_exit *x = &tr->d->exits[tr->d->nr_exits];

	*x = (struct dbt_exit){
		.target = target,
		.host_flags = host_flags,
		.retired = tr->retired,
		.ctx = tr->ctx,
		.mode_key = tr->vcpu->arch.mode_key,
	};
	return tr->d->nr_exits++;
}

static void put_leave(struct trans *tr, u32 exit, bool host_flags)
{
	put_mov_imm(tr->e, T0, exit);
	put_jmp(tr->e, host_flags ? tr->d->exit_host : tr->d->exit_slot);
}

static s32 jump_entry(unsigned ctx, u64 i, size_t field)
{
	return offsetof(struct mmu, jumps) + ctx * sizeof(struct jump_table) + sizeof(struct jump_entry_host) * i +
	       field;
}

#define JUMP_VA offsetof(struct jump_entry_host, va)
#define JUMP_CODE offsetof(struct jump_entry_host, code)

/* Through the jump table to a known address. Flags are in the slot. */
static void put_jump_known(struct trans *tr, u64 target)
{
	struct cold *c = cold_new(tr, COLD_EXIT);
	u64 i = target & (JUMP_TABLE_SIZE - 1);

	c->index = exit_new(tr, target, false);
	put_mov_imm(tr->e, T0, target);
	put_rm(tr->e, W8, 0x3b, T0, MEM_GS(NOREG, jump_entry(tr->ctx, i, JUMP_VA)));
	put_jcc_cold(tr, CC_NE, c);
	put_rm(tr->e, W4, 0xff, 4, MEM_GS(NOREG, jump_entry(tr->ctx, i, JUMP_CODE)));
}

/* The kernel's code is mapped globally, as a rule, and the rest of the kernel with it. */
static bool far_link_wanted(const struct trans *tr, u64 target)
{
	return tr->ctx < TLB_USER && (s64)target < 0;
}

static bool same_page(const struct trans *tr, u64 target)
{
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
static void put_exit(struct trans *tr, u64 target)
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

/* While there is no link to another page, the jump table may have it. */
static void put_cold_exit(struct trans *tr, struct cold *c)
{
	struct dbt_exit *x = &tr->d->exits[c->index];
	u64 i = x->target & (JUMP_TABLE_SIZE - 1);
	u32 miss;

	if (!x->far) {
		put_leave(tr, c->index, c->host_flags);
		return;
	}
	x->stub = tr->e->at;
	if (c->host_flags)
		flags_save(tr->e);
	put_mov_imm(tr->e, T0, x->target);
	put_rm(tr->e, W8, 0x3b, T0, MEM_GS(NOREG, jump_entry(x->ctx, i, JUMP_VA)));
	put_jcc(tr->e, CC_NE, 0);
	miss = tr->e->at - 4;
	put_rm(tr->e, W4, 0xff, 4, MEM_GS(NOREG, jump_entry(x->ctx, i, JUMP_CODE)));
	patch_rel32(tr->e, miss, tr->e->at);
	put_leave(tr, c->index, false);
}

static u8 gpr_to_host(struct emit *e, u8 guest, u8 tmp);
static u64 next_rip(const struct trans *tr, const struct tinsn *t);

/* To an instruction in the middle of this block, flags in the slot. */
static void put_cold_exit_to(struct trans *tr, u64 target, bool narrow)
{
	u32 i = exit_new(tr, target, false);

	tr->d->exits[i].narrow = narrow;
	if (same_page(tr, target)) {
		put_jmp(tr->e, tr->e->at + 5);
		exit_set_link(tr, i, false);
	}
	put_leave(tr, i, false);
}

/*
 * A range could not be had. If it crosses pages, on without ranges. Otherwise the TLB lacks it, probably:
 * its first instruction's handler fills it, and what follows is a block with ranges of its own.
 */
static void put_cold_range(struct trans *tr, struct cold *c)
{
	const struct range *r = &tr->ranges[c->insn->range];
	struct emit *e = tr->e;
	u8 base = gpr_to_host(e, r->base, T0);
	u32 crosses;

	put_lea(e, T1, MEM_BASE(base, r->lo));
	put_lea(e, T0, MEM_BASE(base, r->hi - 1));
	put_rr(e, W8, 0x31, T1, T0);
	put_shift_imm(e, W8, 5, T0, PAGE_SHIFT);
	put_jcc(e, CC_NE, 0);
	crosses = e->at - 4;
	put_mov_imm(e, T0, c->index);
	put_call(e, tr->d->slow);
	put_cold_exit_to(tr, next_rip(tr, c->insn), false);
	patch_rel32(e, crosses, e->at);
	tr->retired = c->retired - 1;
	put_cold_exit_to(tr, c->insn->rip, true);
}

static void put_cold(struct trans *tr, struct cold *c)
{
	struct emit *e = tr->e;
	u32 at = e->at;

	tr->retired = c->retired;
	tr->ctx = c->ctx;
	for (u32 i = 0; i < c->nr_fields; i++)
		patch_rel32(e, c->fields[i], at);
	switch (c->type) {
	case COLD_SLOW:
		for (u32 i = 0; i < c->nr_rows; i++)
			tr->d->faults[c->row + i].stub |= at;
		put_mov_imm(e, T0, c->index);
		put_call(e, tr->d->slow);
		if (c->insn) {
			put_cold_exit_to(tr, next_rip(tr, c->insn), false);
			break;
		}
		if (c->host_flags)
			flags_restore(e);
		put_jmp(e, c->resume);
		break;
	case COLD_RANGE:
		put_cold_range(tr, c);
		break;
	case COLD_EXIT:
		put_cold_exit(tr, c);
		break;
	case COLD_JUMP:
		flags_save(e);
		put_jump_known(tr, c->target);
		break;
	case COLD_INDIRECT:
		put_store(e, SLOT(FRAME_TMP1), T0);
		put_mov_imm(e, T0, c->index);
		put_jmp(e, tr->d->exit_indirect);
		break;
	case COLD_VEC:
		put_call(e, tr->d->load_vec);
		put_jmp(e, c->resume);
		break;
	}
}

/* ---- memory --------------------------------------------------------------------------------------- */

/* An address: guest registers, constant, base of a segment. */
struct ea {
	u8 base, index, scale;
	u8 seg;
	bool addr32;
	bool flat32;	/* so is the linear address, including the base of FS or GS */
	s64 disp;
};

static struct ea ea_of(const struct tinsn *t)
{
	const ZydisDecodedOperandMem *m = &t->mem->mem;
	struct ea ea = { .disp = t->insn.disp, .seg = seg_from_zydis(m->segment) };

	ea.addr32 = t->zi.address_width == 32;
	ea.flat32 = code32(t);
	ea.scale = m->scale == 8 ? 3 : m->scale == 4 ? 2 : m->scale == 2 ? 1 : 0;
	ea.base = t->insn.base;
	ea.index = t->insn.index;
	if (m->base == ZYDIS_REGISTER_RIP) {
		ea.base = NOREG;
		ea.disp += t->rip + t->insn.len;
	}
	return ea;
}

static bool is_homed(u8 guest)
{
	return guest != NOREG && guest >= R13;
}

/* A guest register's value in a host register: its own, or tmp. */
static u8 gpr_to_host(struct emit *e, u8 guest, u8 tmp)
{
	if (!is_homed(guest))
		return guest == RSP ? GUEST_RSP : guest;
	put_load(e, tmp, SLOT(FRAME_R13 + 8 * (guest - R13)));
	return tmp;
}

/* T0 = address. T1 is lost. */
static void put_ea(struct trans *tr, const struct ea *ea)
{
	struct emit *e = tr->e;
	unsigned w = ea->addr32 ? W4 : W8;

	if (ea->base == NOREG && ea->index == NOREG) {
		put_mov_imm(e, T0, ea->addr32 ? (u32)ea->disp : (u64)ea->disp);
	} else {
		struct hmem m = { .base = NOREG, .index = NOREG, .scale = ea->scale, .disp = ea->disp };

		if (ea->base != NOREG)
			m.base = gpr_to_host(e, ea->base, T0);
		if (ea->index != NOREG)
			m.index = gpr_to_host(e, ea->index, T1);
		put_rm(e, w, 0x8d, T0, m);
	}
	if (ea->seg >= SEG_FS)
		put_rm(e, ea->flat32 ? W4 : W8, 0x03, T0, SLOT(ea->seg == SEG_FS ? FRAME_FS : FRAME_GS));
}

static s32 tlb_disp(const struct trans *tr, size_t field)
{
	return offsetof(struct mmu, tlbs) + tr->ctx * sizeof(struct tlb) + field;
}

/*
 * Look up size bytes at ea. Afterwards the operand is *m, and the register
 * returned is free: T1 if m is (T0), T0 if it is base and T1. The host's flags are lost.
 */
static u8 put_check(struct trans *tr, const struct ea *ea, unsigned size, bool write, struct hmem *m, struct cold *c)
{
	struct emit *e = tr->e;
	s32 tag = tlb_disp(tr, write ? offsetof(struct tlb, write) : offsetof(struct tlb, read));
	s32 delta = tlb_disp(tr, offsetof(struct tlb, delta));
	bool plain = ea->seg < SEG_FS && !ea->addr32;
	bool simple = plain && ea->index == NOREG && ea->base != NOREG && !is_homed(ea->base);

	put_ea(tr, ea);
	if (plain && ea->base == NOREG && ea->index == NOREG) {
		s32 at = tlb_index(ea->disp) * 8;

		put_rm(e, W8, 0x03, T0, MEM_GS(NOREG, tag + at));
		put_alu_imm(e, W8, 7, T0, PAGE_SIZE - size);
		put_jcc_cold(tr, CC_A, c);
		put_mov_imm(e, T0, ea->disp);
		put_rm(e, W8, 0x03, T0, MEM_GS(NOREG, delta + at));
		*m = MEM_BASE(T0, 0);
		return T1;
	}
	put_mov(e, T1, T0);
	put_shift_imm(e, W8, 5, T1, PAGE_SHIFT - 3);
	put_alu_imm(e, W4, 4, T1, (TLB_ENTRIES - 1) * 8);
	put_rm(e, W8, 0x03, T0, MEM_GS(T1, tag));
	put_alu_imm(e, W8, 7, T0, PAGE_SIZE - size);
	put_jcc_cold(tr, CC_A, c);
	if (simple) {
		put_load(e, T1, MEM_GS(T1, delta));
		*m = MEM_SIB(ea->base == RSP ? GUEST_RSP : ea->base, T1, 0, ea->disp);
		return T0;
	}
	put_rm(e, W8, 0x2b, T0, MEM_GS(T1, tag));
	put_rm(e, W8, 0x03, T0, MEM_GS(T1, delta));
	*m = MEM_BASE(T0, 0);
	return T1;
}

static unsigned word(const struct trans *tr)
{
	return tr->width == W8 ? 8 : 4;
}

static struct ea ea_stack(const struct trans *tr, u8 base, s32 disp)
{
	return (struct ea){
		.base = base, .index = NOREG, .seg = SEG_SS, .disp = disp,
		.addr32 = tr->width == W4, .flat32 = tr->width == W4,
	};
}

/* Look up the word that a push (disp -word) or a pop (0) touches. As put_check(). */
static u8 put_check_stack(struct trans *tr, s32 disp, bool write, struct hmem *m, struct cold *c)
{
	struct ea ea = ea_stack(tr, RSP, disp);

	return put_check(tr, &ea, word(tr), write, m, c);
}

static void put_add_rsp(struct trans *tr, s32 n)
{
	put_rm(tr->e, tr->width, 0x8d, GUEST_RSP, MEM_BASE(GUEST_RSP, n));
}

/* ---- ranges ------------------------------------------------------------------------------------------ */

/* T1 and the slot = host - guest address of all of r. The host's flags are lost. */
static void put_range(struct trans *tr, const struct range *r, struct cold *c)
{
	s32 tag = tlb_disp(tr, r->write ? offsetof(struct tlb, write) : offsetof(struct tlb, read));
	struct emit *e = tr->e;
	u8 base = gpr_to_host(e, r->base, T0);

	put_lea(e, T0, MEM_BASE(base, r->lo));
	put_mov(e, T1, T0);
	put_shift_imm(e, W8, 5, T1, PAGE_SHIFT - 3);
	put_alu_imm(e, W4, 4, T1, (TLB_ENTRIES - 1) * 8);
	put_rm(e, W8, 0x03, T0, MEM_GS(T1, tag));
	put_alu_imm(e, W8, 7, T0, PAGE_SIZE - (r->hi - r->lo));
	put_jcc_cold(tr, CC_A, c);
	put_load(e, T1, MEM_GS(T1, tlb_disp(tr, offsetof(struct tlb, delta))));
	put_store(e, SLOT(r->slot), T1);
}

/*
 * The operand of a member of a range, at disp from the range's register: T0 is free, unless the register
 * is homed. c is for its faults.
 */
static void put_member(struct trans *tr, struct tinsn *t, s64 disp, struct hmem *m, struct cold *c)
{
	const struct range *r = &tr->ranges[t->range];

	if (t == &tr->insns[r->first]) {
		struct cold *miss = cold_new(tr, COLD_RANGE);

		flags_clobber(tr, t->live_before);
		miss->insn = t;
		miss->index = c->index;
		put_range(tr, r, miss);
	} else if (tr->t1_range != t->range) {
		put_load(tr->e, T1, SLOT(r->slot));
	}
	tr->t1_range = t->range;
	*m = MEM_SIB(gpr_to_host(tr->e, r->base, T0), T1, 0, disp);
}

/* ---- instructions ------------------------------------------------------------------------------------ */

static void emit_handler(struct trans *tr, struct tinsn *t)
{
	flags_clobber(tr, FLAGS_ALL);
	put_mov_imm(tr->e, T0, site_new(tr, t));
	put_call(tr->e, tr->d->slow);
}

static void emit_vec_check(struct trans *tr, struct tinsn *t)
{
	struct cold *c;

	if (!t->vec || tr->vec_live)
		return;
	flags_clobber(tr, t->live_before);
	c = cold_new(tr, COLD_VEC);
	put_alu_mem_imm(tr->e, W4, 7, SLOT(FRAME_VEC), 0);
	put_jcc_cold(tr, CC_E, c);
	c->resume = tr->e->at;
	tr->vec_live = true;
	tr->t1_range = -1;
}

static void emit_native(struct trans *tr, struct tinsn *t)
{
	struct hins h = {
		.zi = &t->zi, .ops = t->ops, .bytes = t->bytes,
		.int_class = t->int_class,
	};
	static const u8 temps[2] = { T0, T1 };
	struct cold *c = NULL;
	u8 tmp = T0;

	emit_vec_check(tr, t);
	if (t->may_fault)
		c = slow_new(tr, t);
	if (t->range >= 0) {
		put_member(tr, t, t->mem->mem.disp.value, &h.mem, c);
		h.has_mem = true;
	} else if (t->mem) {
		struct ea ea = ea_of(t);

		flags_clobber(tr, t->live_before);
		tmp = put_check(tr, &ea, t->mem->size / 8, t->mem->actions & ZYDIS_OPERAND_ACTION_MASK_WRITE,
				&h.mem, c);
		h.has_mem = true;
	}
	if (t->needs)
		flags_to_host(tr);
	for (unsigned i = 0; i < t->nr_homed; i++) {
		h.home[t->homed[i] - R13] = t->mem ? tmp : temps[i];
		put_load(tr->e, h.home[t->homed[i] - R13], SLOT(FRAME_R13 + 8 * (t->homed[i] - R13)));
	}
	if (c)
		put_fault_row(tr, c);
	if (VM_BUG_ON(!dbt_encode(tr->e, &h), tr->vcpu->vm))
		return;
	for (unsigned i = 0; i < t->nr_homed; i++)
		if (t->homed_written[i])
			put_store(tr->e, SLOT(FRAME_R13 + 8 * (t->homed[i] - R13)), h.home[t->homed[i] - R13]);
	if (t->writes) {
		tr->host = true;
		tr->slot = false;
	}
	if (c)
		slow_end(tr, c, t->live_after);
}

static void emit_lea(struct trans *tr, struct tinsn *t)
{
	struct emit *e = tr->e;
	bool high8;
	u8 dst = gpr_from_zydis(t->ops[0].reg.value, &high8);
	u8 host = is_homed(dst) ? T0 : dst == RSP ? GUEST_RSP : dst;
	bool narrow = t->insn.opsize == 4 || t->zi.address_width == 32;
	struct ea ea;

	t->mem = &t->ops[1];
	ea = ea_of(t);
	if (ea.base == NOREG && ea.index == NOREG) {
		put_mov_imm(e, host, narrow ? (u32)ea.disp : (u64)ea.disp);
	} else {
		struct hmem m = { .base = NOREG, .index = NOREG, .scale = ea.scale, .disp = ea.disp };

		if (ea.base != NOREG)
			m.base = gpr_to_host(e, ea.base, T0);
		if (ea.index != NOREG)
			m.index = gpr_to_host(e, ea.index, T1);
		put_rm(e, narrow ? W4 : W8, 0x8d, host, m);
	}
	if (is_homed(dst))
		put_store(e, SLOT(FRAME_R13 + 8 * (dst - R13)), T0);
}

static void store_imm(struct trans *tr, struct hmem m, u64 v)
{
	if (tr->width == W4 || v == (u64)(s64)(s32)v) {
		put_rm(tr->e, tr->width, 0xc7, 0, m);
		put32(tr->e, v);
	} else {
		put_store(tr->e, m, T0);
	}
}

/* Push the value in FRAME_TMP0, a register or a constant. */
static void emit_push(struct trans *tr, struct tinsn *t)
{
	const ZydisDecodedOperand *op = &t->ops[0];
	struct cold *c = slow_new(tr, t);
	struct emit *e = tr->e;
	struct hmem m;
	bool high8;
	u8 tmp;

	if (t->mem) {
		struct ea ea = ea_of(t);

		flags_clobber(tr, t->live_before);
		put_check(tr, &ea, word(tr), false, &m, c);
		put_fault_row(tr, c);
		put_rm(e, tr->width, 0x8b, T0, m);
		put_store(e, SLOT(FRAME_TMP0), T0);
	}
	if (t->range >= 0) {
		put_member(tr, t, -8, &m, c);
		tmp = T0;
	} else {
		flags_clobber(tr, t->live_before);
		tmp = put_check_stack(tr, -(s32)word(tr), true, &m, c);
	}
	if (op->type == ZYDIS_OPERAND_TYPE_IMMEDIATE) {
		put_fault_row(tr, c);
		store_imm(tr, m, t->insn.imm);
	} else {
		u8 r = tmp;

		if (t->mem)
			put_load(e, tmp, SLOT(FRAME_TMP0));
		else
			r = gpr_to_host(e, gpr_from_zydis(op->reg.value, &high8), tmp);
		put_fault_row(tr, c);
		put_rm(e, tr->width, 0x89, r, m);
	}
	put_add_rsp(tr, -(s32)word(tr));
	slow_end(tr, c, t->live_after);
}

static void emit_pop(struct trans *tr, struct tinsn *t)
{
	struct cold *c = slow_new(tr, t);
	struct emit *e = tr->e;
	struct hmem m;
	bool high8;
	u8 r = gpr_from_zydis(t->ops[0].reg.value, &high8);
	u8 host = is_homed(r) ? T0 : r == RSP ? GUEST_RSP : r;

	if (t->range >= 0) {
		put_member(tr, t, 0, &m, c);
	} else {
		flags_clobber(tr, t->live_before);
		put_check_stack(tr, 0, false, &m, c);
	}
	put_fault_row(tr, c);
	put_rm(e, tr->width, 0x8b, host, m);
	if (r != RSP)
		put_add_rsp(tr, word(tr));
	if (is_homed(r))
		put_store(e, SLOT(FRAME_R13 + 8 * (r - R13)), T0);
	slow_end(tr, c, t->live_after);
}

static void emit_leave(struct trans *tr, struct tinsn *t)
{
	struct ea ea = ea_stack(tr, RBP, 0);
	struct cold *c = slow_new(tr, t);
	struct hmem m;

	flags_clobber(tr, t->live_before);
	put_check(tr, &ea, word(tr), false, &m, c);
	put_fault_row(tr, c);
	put_rm(tr->e, tr->width, 0x8b, T0, m);
	put_rm(tr->e, tr->width, 0x8d, GUEST_RSP, MEM_BASE(RBP, word(tr)));
	put_mov(tr->e, RBP, T0);
	slow_end(tr, c, t->live_after);
}

#define VCPU(field) ((s32)offsetof(struct vcpu, arch.field))

static void emit_pushf(struct trans *tr, struct tinsn *t)
{
	struct cold *c = slow_new(tr, t);
	struct emit *e = tr->e;
	struct hmem m;
	u8 tmp;

	flags_clobber(tr, FLAGS_ALL);
	put_rm(e, W4, OPC_0F | 0xb6, T0, SLOT(FRAME_FLAGS + 1));
	put_rm(e, W4, OPC_0F | 0xb6, T1, SLOT(FRAME_FLAGS));
	put_alu_imm(e, W4, 4, T0, 0xd5);
	put_shift_imm(e, W4, 4, T1, 11);
	put_rr(e, W4, 0x09, T1, T0);
	put_load(e, T1, SLOT(FRAME_VCPU));
	put_load(e, T1, MEM_BASE(T1, VCPU(rflags)));
	put_alu_imm(e, W8, 4, T1, ~(s32)(X86_EFLAGS_OSZAPC | X86_EFLAGS_VM | X86_EFLAGS_RF));
	put_rr(e, W8, 0x09, T0, T1);
	put_store(e, SLOT(FRAME_TMP0), T1);
	tmp = put_check_stack(tr, -(s32)word(tr), true, &m, c);
	put_load(e, tmp, SLOT(FRAME_TMP0));
	put_fault_row(tr, c);
	put_store(e, m, tmp);
	put_add_rsp(tr, -8);
	slow_end(tr, c, t->live_after);
}

static void put_rflags_bits(struct trans *tr, u32 set, u32 clear)
{
	put_load(tr->e, T1, SLOT(FRAME_VCPU));
	if (set)
		put_alu_mem_imm(tr->e, W4, 1, MEM_BASE(T1, VCPU(rflags)), set);
	else
		put_alu_mem_imm(tr->e, W4, 4, MEM_BASE(T1, VCPU(rflags)), ~clear);
}

static void emit_ac(struct trans *tr, struct tinsn *t)
{
	bool set = t->kind == K_STAC;

	flags_clobber(tr, t->live_before);
	put_rflags_bits(tr, set ? X86_EFLAGS_AC : 0, X86_EFLAGS_AC);
	tr->ctx = set ? TLB_KERNEL_AC : TLB_KERNEL;
	put_mov_imm(tr->e, T0, (u64)&tr->vcpu->arch.mmu->tlbs[tr->ctx]);
	put_store(tr->e, MEM_BASE(T1, VCPU(tlb)), T0);
}

static void emit_if(struct trans *tr, struct tinsn *t)
{
	struct cold *c;

	flags_clobber(tr, t->live_before);
	if (t->kind == K_CLI) {
		put_rflags_bits(tr, 0, X86_EFLAGS_IF);
		return;
	}
	/* Somebody waits for the window: the handler sees to it. */
	c = slow_new(tr, t);
	put_load(tr->e, T1, SLOT(FRAME_VCPU));
	put_rm(tr->e, W4, 0x80, 7, MEM_BASE(T1, VCPU(irq_window)));
	put8(tr->e, 0);
	put_jcc_cold(tr, CC_NE, c);
	put_rflags_bits(tr, X86_EFLAGS_IF, 0);
	slow_end(tr, c, t->live_after);
}

/* Jump to the guest address in T0. Flags are in the slot. */
static void put_jump_indirect(struct trans *tr, u32 site)
{
	struct cold *c = cold_new(tr, COLD_INDIRECT);
	struct emit *e = tr->e;
	struct hmem m = MEM_GS(T1, jump_entry(tr->ctx, 0, JUMP_VA));

	c->index = site;
	put_rr(e, W4, 0x89, T0, T1);
	put_alu_imm(e, W4, 4, T1, JUMP_TABLE_SIZE - 1);
	put_rr(e, W4, 0x01, T1, T1);
	m.scale = 3;
	put_rm(e, W8, 0x3b, T0, m);
	put_jcc_cold(tr, CC_NE, c);
	m.disp = jump_entry(tr->ctx, 0, JUMP_CODE);
	put_rm(e, W4, 0xff, 4, m);
}

static u64 wrap_rip(const struct trans *tr, u64 rip)
{
	return tr->width == W8 ? rip : (u32)rip;
}

static u64 next_rip(const struct trans *tr, const struct tinsn *t)
{
	return wrap_rip(tr, t->rip + t->insn.len);
}

/* T0 = target of an indirect jump or call */
static void put_target(struct trans *tr, struct tinsn *t, struct cold *c)
{
	bool high8;
	struct hmem m;

	if (t->mem) {
		struct ea ea = ea_of(t);

		put_check(tr, &ea, word(tr), false, &m, c);
		put_fault_row(tr, c);
		put_rm(tr->e, tr->width, 0x8b, T0, m);
	} else {
		u8 r = gpr_to_host(tr->e, gpr_from_zydis(t->ops[0].reg.value, &high8), T0);

		if (r != T0)
			put_rr(tr->e, tr->width, 0x89, r, T0);
	}
}

static void put_return_address(struct trans *tr, struct tinsn *t, struct cold *c)
{
	u64 ret = next_rip(tr, t);
	struct hmem m;

	if (t->range >= 0)
		put_member(tr, t, -8, &m, c);
	else
		put_check_stack(tr, -(s32)word(tr), true, &m, c);
	if (tr->width == W8 && ret != (u64)(s64)(s32)ret)
		put_mov_imm(tr->e, T0, ret);
	put_fault_row(tr, c);
	store_imm(tr, m, ret);
	put_add_rsp(tr, -(s32)word(tr));
}

static void emit_jump(struct trans *tr, struct tinsn *t)
{
	u64 next = next_rip(tr, t), target = wrap_rip(tr, next + t->insn.imm);
	struct cold *c;

	switch (t->kind) {
	case K_JCC:
		flags_to_host(tr);
		put_exit_if(tr, t->zi.opcode & 15, target);
		if (t == &tr->insns[tr->nr - 1])
			put_exit(tr, next);
		break;
	case K_JMP:
		put_exit(tr, target);
		break;
	case K_CALL:
		if (t->range < 0)
			flags_clobber(tr, FLAGS_ALL);
		c = slow_new(tr, t);
		put_return_address(tr, t, c);
		slow_end(tr, c, 0);
		put_exit(tr, target);
		break;
	case K_CALL_IND:
		flags_clobber(tr, FLAGS_ALL);
		c = slow_new(tr, t);
		put_target(tr, t, c);
		put_store(tr->e, SLOT(FRAME_TMP0), T0);
		put_return_address(tr, t, c);
		slow_end(tr, c, 0);
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

static void emit_ret(struct trans *tr, struct tinsn *t)
{
	struct cold *c = slow_new(tr, t);
	struct hmem m;

	flags_clobber(tr, FLAGS_ALL);
	if (t->range >= 0)
		put_member(tr, t, 0, &m, c);
	else
		put_check_stack(tr, 0, false, &m, c);
	put_fault_row(tr, c);
	put_rm(tr->e, tr->width, 0x8b, T0, m);
	put_add_rsp(tr, word(tr) + (u16)t->insn.imm);
	slow_end(tr, c, 0);
	put_jump_indirect(tr, c->index);
}

/* LOOP and JRCXZ, without flags. */
static void emit_count_branch(struct trans *tr, struct tinsn *t)
{
	u64 next = next_rip(tr, t), target = wrap_rip(tr, next + t->insn.imm);
	bool ecx = t->zi.address_width == 32;
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

/* T1 is as before after t, or what its range has left there. */
static bool keeps_t1(const struct tinsn *t)
{
	return t->range >= 0 || t->kind == K_NOP || t->kind == K_JCC || (t->kind == K_NATIVE && !t->may_fault && t->nr_homed < 2);
}

static void emit_insn(struct trans *tr, struct tinsn *t)
{
	if (!keeps_t1(t))
		tr->t1_range = -1;
	switch (t->kind) {
	case K_HANDLER:
		emit_handler(tr, t);
		tr->slot = true;
		tr->host = false;
		break;
	case K_NATIVE: emit_native(tr, t); break;
	case K_NOP: break;
	case K_LEA: emit_lea(tr, t); break;
	case K_PUSH: emit_push(tr, t); break;
	case K_POP: emit_pop(tr, t); break;
	case K_LEAVE: emit_leave(tr, t); break;
	case K_PUSHF: emit_pushf(tr, t); break;
	case K_STAC:
	case K_CLAC: emit_ac(tr, t); break;
	case K_CLI:
	case K_STI: emit_if(tr, t); break;
	case K_RET: emit_ret(tr, t); break;
	case K_LOOP:
	case K_JRCXZ: emit_count_branch(tr, t); break;
	default: emit_jump(tr, t); break;
	}
}

/* ---- the block --------------------------------------------------------------------------------------- */

/* Flags are live at the beginning: where does the first instruction that cares want them? */
static bool wants_host_flags(const struct trans *tr)
{
	for (unsigned i = 0; i < tr->nr; i++) {
		const struct tinsn *t = &tr->insns[i];

		switch (t->kind) {
		case K_NOP:
		case K_LEA:
			continue;
		case K_NATIVE:
			if (t->mem || t->vec)
				return false;
			if (t->needs)
				return true;
			continue;
		case K_JCC:
			return true;
		default:
			return false;
		}
	}
	return false;
}

/* Requests? Flags are dead or in the slot. */
static void put_poll(struct trans *tr, u32 leave_field[1])
{
	put_load(tr->e, T0, SLOT(FRAME_VCPU));
	put_alu_mem_imm(tr->e, W8, 7, MEM_BASE(T0, offsetof(struct vcpu, requests)), 0);
	put_jcc(tr->e, CC_NE, 0);
	*leave_field = tr->e->at - 4;
}

/* The entries that are not on the straight path, and the way out that stands for the block itself. */
static void put_entries(struct trans *tr, struct dbt_block *b, bool live_in, u32 leave_field)
{
	struct emit *e = tr->e;
	u32 self = exit_new(tr, b->va, b->main_host);

	b->self = self;
	tr->d->exits[self].ctx = b->ctx;
	tr->d->exits[self].narrow = b->narrow;
	b->leave = e->at;
	put_leave(tr, self, b->main_host);
	if (!live_in) {
		patch_rel32(e, leave_field, b->leave);
		b->host = b->main;
		b->self_host = exit_new(tr, b->va, true);
		tr->d->exits[b->self_host].ctx = b->ctx;
		tr->d->exits[b->self_host].narrow = b->narrow;
		b->leave_host = e->at;
		put_leave(tr, b->self_host, true);
		return;
	}
	if (!b->main_host) {
		patch_rel32(e, leave_field, b->leave);
		b->slot = b->main;
		b->host_poll = e->at;
		flags_save(e);
		put_jmp(e, b->slot_poll);
		b->host = e->at;
		flags_save(e);
		put_jmp(e, b->main);
		return;
	}
	b->host = b->main;
	b->host_poll = e->at;
	flags_save(e);
	b->slot_poll = e->at;
	put_poll(tr, &leave_field);
	b->slot = e->at;
	flags_restore(e);
	put_jmp(e, b->main);
	patch_rel32(e, leave_field, e->at);
	self = exit_new(tr, b->va, false);
	tr->d->exits[self].ctx = b->ctx;
	tr->d->exits[self].narrow = b->narrow;
	put_leave(tr, self, false);
}

/* Room for a jump. */
static void put_filler(struct emit *e)
{
	put_mov_imm(e, T0, 0);
}

static void emit_block(struct trans *tr, struct dbt_block *b)
{
	const struct tinsn *last = &tr->insns[tr->nr - 1];
	bool live_in = tr->insns[0].live_before;
	u32 leave_field = 0;

	tr->e->at = (tr->e->at + 15) & ~15u;
	b->main_host = live_in && wants_host_flags(tr);
	tr->host = b->main_host;
	tr->slot = live_in && !b->main_host;
	if (!live_in) {
		b->host_poll = tr->e->at;
		put_filler(tr->e);
	}
	if (!b->main_host) {
		b->slot_poll = tr->e->at;
		put_poll(tr, &leave_field);
	}
	if (!live_in) {
		b->slot = tr->e->at;
		put_filler(tr->e);
	}
	b->main = tr->e->at;
	for (unsigned i = 0; i < tr->nr; i++) {
		tr->d->scratch->starts[i] = tr->e->at;
		tr->retired = i + 1;
		emit_insn(tr, &tr->insns[i]);
	}
	if (last->kind < K_JCC)
		put_exit(tr, next_rip(tr, last));
	tr->d->scratch->starts[tr->nr] = tr->e->at;
	for (unsigned i = 0; i < tr->nr_cold; i++)
		put_cold(tr, &tr->cold[i]);
	tr->retired = 0;
	put_entries(tr, b, live_in, leave_field);
	b->code_end = tr->e->at;
}

struct dbt_block *dbt_translate(struct vcpu *vcpu, u64 va, struct dbt_page *page, unsigned ctx, bool narrow)
{
	struct dbt *d = vcpu->arch.dbt;
	struct trans tr = {
		.vcpu = vcpu, .d = d, .e = &d->emit,
		.insns = d->scratch->insns, .cold = d->scratch->cold,
		.ctx = ctx, .va = va, .width = in_64bit_mode(vcpu) ? W8 : W4, .narrow = narrow, .t1_range = -1,
	};
	const u32 begin = (d->emit.at + 15) & ~15u;
	const struct tinsn *last;
	struct dbt_block *b;

	decode_block(&tr, page);
	if (!tr.nr)
		decode_across(&tr, page);
	if (!tr.nr)
		return NULL;
	find_live_flags(&tr);
	plan_ranges(&tr);
	last = &tr.insns[tr.nr - 1];
	b = dbt_arena_alloc(d, sizeof(*b));
	*b = (struct dbt_block){
		.va = va,
		.gpa = page->gpa | (va & ~PAGE_MASK),
		.mode_key = vcpu->arch.mode_key,
		.ctx = ctx,
		.narrow = narrow,
		.len = tr.head ? tr.head : last->rip + last->insn.len - va,
	};
	b->first_exit = d->nr_exits;
	emit_block(&tr, b);
	b->end_exit = d->nr_exits;
	/* One that is refused may be worth a look. */
	if (dump_wanted(va, b->len))
		dump_block(vcpu, b, tr.insns[0].bytes, d->scratch->starts, tr.nr);
	if (unlikely(d->verifier) && !dbt_verify_new(vcpu, b, begin))
		return NULL;
	if (unlikely(d->diff))
		diff_note_block(vcpu, b, page->bytes + (va & ~PAGE_MASK));
	perfmap_block(d, b);
	dbt_block_add(d, page, b);
	vcpu->stat.dbt_blocks++;
	return b;
}

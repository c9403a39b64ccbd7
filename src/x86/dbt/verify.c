/* SPDX-License-Identifier: MIT */
/*
 * Is a block safe to execute? It is decoded and executed on abstract values. Nothing is known
 * about how the translator works, only what may be touched:
 *
 *  1. The frame: rsp with a displacement inside it; rsp itself and the vCPU's pointer at its
 *     beginning never change.
 *  2. struct mmu through gs, reading only: an entry of a table of tags, deltas,
 *     jumps or returns, by a constant or an index whose possible bits stay within the table. Entries for returns may be
 *     written: with addresses of code that 5 allows to be led to, knowing nothing.
 *  3. struct vcpu through that pointer: the fields of vcpu_fields[].
 *  4. Guest memory at A + delta(A) + c, where A is an address, its delta was read from the TLB
 *     entry that A selects, and a branch has established A + tag(A) <= 4096 - size for the same context, so that [A, A + size)
 *     is in the page; the access is within that range, and within a write tag's if it stores. A fault row stands
 *     for the instruction. The stack's entry of a TLB does as well, whatever A is, with its delta read before anything else
 *     is called.
 *  5. Branches lead to instructions of the block, to entries of verified blocks, to the common code (with an index in
 *     bounds where it takes one), or through a jump table's entry whose address has just
 *     compared equal.
 *  6. Instructions are on the list, and write no register that belongs to the host.
 *  7. x87 and MMX registers only where they are known to be the guest's: FRAME_X87, or a call, has said so.
 *  8. No address of the host's is in a register or slot of the guest's when a block is left, nor stored in guest memory.
 *
 * verify_state.c: values and where ways meet. verify_insn.c, verify_mem.c: plain instructions and their operands.
 * verify_flow.c: branches and calls. Here: the block.
 */
#include <stdio.h>
#include <stdlib.h>

#include "base/log.h"
#include "x86/dbt/verify_internal.h"

/* ---- the instructions -------------------------------------------------------------------------- */

static bool decode(struct dbt_verifier *v)
{
	const u8 *code = v->d->mem.rw + v->pc;
	u32 end = v->pc < v->end ? v->end : v->cold_end;

	return ZYAN_SUCCESS(ZydisDecoderDecodeFull(&v->decoder, code, end - v->pc, &v->zi, v->ops)) || refuse(v, "not an instruction");
}

static void mark(struct dbt_verifier *v, u32 at)
{
	if (in_block(v, at))
		v->kinds[bytes_before(v, at)] |= 2;
}

/* Where instructions of one of the block's parts begin, and what is branched to. */
static bool mark_part(struct dbt_verifier *v, u32 from, u32 to)
{
	enum refill_kind kind;
	u32 stub;
	u8 ctx;

	for (v->pc = from; v->pc < to; v->pc += v->zi.length) {
		if (!decode(v))
			return false;
		v->kinds[bytes_before(v, v->pc)] |= 1;
		if (v->zi.meta.branch_type != ZYDIS_BRANCH_TYPE_NONE && v->ops[0].type == ZYDIS_OPERAND_TYPE_IMMEDIATE)
			mark(v, branch_target(v));
		if (v->zi.mnemonic == ZYDIS_MNEMONIC_LEA && v->ops[1].mem.base == ZYDIS_REGISTER_RIP)
			mark(v, v->pc + v->zi.length + (u32)v->ops[1].mem.disp.value);
		if (v->zi.mnemonic == ZYDIS_MNEMONIC_CALL && v->ops[0].type == ZYDIS_OPERAND_TYPE_IMMEDIATE &&
		    dbt_is_refill(v->d, branch_target(v), &ctx, &kind))
			mark(v, v->pc + v->zi.length + DBT_REFILL_SKIP);
		if (has_fault_row(v->d, v->pc, &stub))
			mark(v, stub);
	}
	return true;
}

static bool find_labels(struct dbt_verifier *v, const struct dbt_block *b)
{
	const u32 straight = v->end - v->start, all = straight + v->cold_end - v->cold;

	memset(v->kinds, 0, all);
	if (!mark_part(v, v->start, v->end) || !mark_part(v, v->cold, v->cold_end))
		return false;
	mark(v, b->main), mark(v, b->slot), mark(v, b->slot_poll), mark(v, b->host), mark(v, b->host_poll), mark(v, b->leave);
	v->nr_labels = v->nr_expressions = 0;
	for (u32 i = 0; i < all; i++) {
		if (!(v->kinds[i] & 2))
			continue;
		if (!(v->kinds[i] & 1))
			return refuse(v, "branch into the middle of an instruction");
		if (v->nr_labels == LABELS_MAX)
			return refuse(v, "too many labels");
		v->labels[v->nr_labels].at = i < straight ? v->start + i : v->cold + (i - straight);
		v->labels[v->nr_labels].seen = v->labels[v->nr_labels].pending = false;
		v->nr_labels++;
	}
	return true;
}

/* ---- the ways through it ----------------------------------------------------------------------- */

/* From a label to the next, or to a jump. */
static bool run(struct dbt_verifier *v, struct label *l)
{
	l->pending = false;
	v->now = l->in;
	for (v->pc = l->at; in_block(v, v->pc);) {
		if (v->pc != l->at && (v->kinds[bytes_before(v, v->pc)] & 2))
			return flow_to(v, v->pc, &v->now);
		if (!decode(v))
			return false;
		switch (verify_step(v)) {
		case STEP_NEXT: break;
		case STEP_END: return true;
		default: return false;
		}
		v->pc += v->zi.length;
	}
	return refuse(v, "runs off the end");
}

/* The last label first: what lies off the straight path is behind it, and joins it again with less known. */
static bool run_all(struct dbt_verifier *v)
{
	for (u32 turns = 0, i = v->nr_labels; i-- > 0;) {
		if (!v->labels[i].pending)
			continue;
		if (++turns > 64 * LABELS_MAX)
			return refuse(v, "does not end");
		if (!run(v, &v->labels[i]))
			return false;
		i = v->nr_labels;
	}
	return true;
}

static bool start(struct dbt_verifier *v, u32 at)
{
	struct label *l = label_at(v, at);

	if (!l)
		return refuse(v, "an entry is not in the block");
	state_forget(&v->now);
	state_meet(v, l, &v->now);
	return true;
}

static void note_entry(struct dbt_verifier *v, u32 at)
{
	v->entries[at / 8] |= BIT(at % 8);
}

/* Each entry by itself is the beginning of an execution about which nothing is known. */
static bool verify(struct dbt_verifier *v, const struct dbt_block *b)
{
	if (v->start > v->end || v->end - v->start > DBT_BLOCK_PART || v->cold > v->cold_end || v->cold_end - v->cold > DBT_BLOCK_PART ||
	    v->end > v->cold || v->cold_end > v->d->mem.size)
		return refuse(v, "too long, or its parts are not where they should be");
	if (!find_labels(v, b) || !start(v, b->main) || !start(v, b->slot) || !start(v, b->slot_poll) ||
	    !start(v, b->host) || !start(v, b->host_poll) || !start(v, b->leave) || !run_all(v))
		return false;
	note_entry(v, b->slot);
	note_entry(v, b->slot_poll);
	note_entry(v, b->host);
	note_entry(v, b->host_poll);
	return true;
}

/* ---- the verifier ------------------------------------------------------------------------------ */

bool dbt_verify(struct vcpu *vcpu, struct dbt *d, const struct dbt_block *b, u32 begin, const char **why)
{
	struct dbt_verifier *v = d->verifier;

	v->vcpu = vcpu;
	v->d = d;
	v->b = b;
	v->start = begin;
	v->end = b->code_end;
	v->cold = b->cold;
	v->cold_end = b->cold_end;
	v->why = NULL;
	v->pc = begin;
	if (verify(v, b))
		return true;
	*why = v->why;
	return false;
}

static void dump(const struct dbt_verifier *v)
{
	char line[3 * 48 + 1] = "";
	bool cold = v->pc >= v->cold;
	u32 n = 0, from = v->pc - min(v->pc - (cold ? v->cold : v->start), 24u);

	for (u32 i = from; i < (cold ? v->cold_end : v->end) && i < from + 48; i++)
		n += snprintf(line + n, sizeof(line) - n, "%02x%s", v->d->mem.rw[i], i + 1 == v->pc ? "|" : " ");
	log_error("translated code around it: %s", line);
}

bool dbt_verify_new(struct vcpu *vcpu, const struct dbt_block *b, u32 begin)
{
	struct dbt *d = vcpu->arch.dbt;
	const char *why;

	vcpu->stat.dbt_verified++;
	if (likely(dbt_verify(vcpu, d, b, begin, &why)))
		return true;
	log_error("translation of 0x%llx refused at byte %u of %u + %u: %s", (unsigned long long)(b->page + b->va),
		  bytes_before(d->verifier, d->verifier->pc), b->code_end - begin, b->cold_end - b->cold, why);
	dump(d->verifier);
	vm_bug(vcpu->vm, "unsafe translation", __FILE__, __LINE__);
	return false;
}

/* The vCPU's dbt is complete but for this. */
int dbt_verifier_create(struct vcpu *vcpu, struct dbt *d)
{
	struct dbt_verifier *v = calloc(1, sizeof(*v));

	if (!v)
		return -1;
	v->entries = calloc(1, d->mem.size / 8 + 1);
	v->kinds = malloc(DBT_BLOCK_CODE);
	d->verifier = v;
	ZydisDecoderInit(&v->decoder, ZYDIS_MACHINE_MODE_LONG_64, ZYDIS_STACK_WIDTH_64);
	ZydisDecoderInit(&v->decoder32, ZYDIS_MACHINE_MODE_LEGACY_32, ZYDIS_STACK_WIDTH_32);
	return v->entries && v->kinds && learn_jump_tables(v, vcpu, d) ? 0 : -1;
}

void dbt_verifier_destroy(struct dbt *d)
{
	if (!d->verifier)
		return;
	free(d->verifier->entries);
	free(d->verifier->kinds);
	free(d->verifier);
	d->verifier = NULL;
}

/* All code has been dropped. */
void dbt_verifier_reset(struct dbt *d)
{
	if (d->verifier)
		memset(d->verifier->entries, 0, d->mem.size / 8 + 1);
}

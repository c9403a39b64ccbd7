/* SPDX-License-Identifier: MIT */
/*
 * Both engines in lockstep. A unit is one block:
 *
 *  1. The interpreter executes its instructions on a TLB of its own that has no
 *     write tags: each store comes through mmu/mem.c, which records what it overwrites.
 *  2. Result and stored bytes are noted, then everything is undone.
 *  3. The translated block runs on the translator's own TLB. Its result is what
 *     counts, and must equal the noted one: registers, flags, vectors, MXCSR, x87, the exception raised,
 *     and every byte the interpreter has stored.
 *  4. If it leaves early (a request, a store into its own code), the interpreter's
 *     turn is taken again for as many instructions.
 *  5. A block that is several turns of a loop has its instructions as many times.
 *
 * What cannot be executed twice (I/O, system instructions, images of the FPU, the time) is a block
 * of its own and not compared; both engines call the same handler for it. Accesses
 * that turn out to be MMIO have the unit run uncompared.
 *
 * Blocks do not lead to each other here, but are entered in turn through all four entries.
 * A store by the translated block to a place the interpreter has not written would go
 * unnoticed. One vCPU, and a client that does not write guest memory meanwhile.
 *
 * A kick may abort any access to guest memory (vm_sync_vcpus()). In either engine's turn the instruction is then as if it had
 * not begun, or a repetition ends early, and so do those that see a request: the unit is not compared, and counted
 * (diff_interrupted). What we do to guest memory in between is gone on with: a store that is not undone would be executed twice.
 */
#include <stdio.h>
#include <stdlib.h>

#include "base/log.h"
#include "host/access.h"
#include "x86/dbt/diff.h"
#include "x86/decode/decode.h"

struct snapshot {
	u64 regs[16], rip, rflags;
	u8 ymm[16][32];
	u32 mxcsr;
	struct x87_state {
		u8 fx[160];
		u16 fop, fcs, fds;
		u64 fip, fdp;
	} x87;
	u8 interrupt_shadow;
	bool db_trap, triple_fault_pending, irq_window;
	u64 db_dr6;
	struct pending_exception exception;
};

struct diff {
	struct mmu *own, *ref;		/* the translator's, the interpreter's */
	u64 flushes;			/* of own, as far as ref has followed */
	u32 enter_host;			/* stub: as d->enter, with the flags in the host's */
	const void *host_entry;		/* where that goes on */
	u32 turn;
	struct snapshot start, want, got;
	struct store_journal journal, first;
	u8 after[sizeof(((struct store_journal *)0)->old)];
	u8 theirs[sizeof(((struct store_journal *)0)->old)];
	enum exec result;		/* of the interpreter */
	u32 done;
};

bool diff_wanted(void)
{
	static _Atomic int wanted; /* 0: not asked yet */
	int w = atomic_load_explicit(&wanted, memory_order_relaxed);

	if (unlikely(!w)) {
		const char *engine = getenv("SOFTKVM_ENGINE");

		w = engine && !strcmp(engine, "diff") ? 1 : -1;
		atomic_store(&wanted, w);
	}
	return w > 0;
}

/* A second MMU. Its fetch generation begins elsewhere: the interpreter's jump cache serves both. */
int diff_create(struct vcpu *vcpu, struct dbt *d)
{
	struct diff *x = calloc(1, sizeof(*x));

	if (!x)
		return -1;
	x->own = vcpu->arch.mmu;
	if (mmu_create(vcpu)) {
		free(x);
		return -1;
	}
	x->ref = vcpu->arch.mmu;
	x->ref->journal = &x->journal;
	x->ref->tlbs[0].fetch_generation += BIT(31);
	vcpu->arch.mmu = x->own;
	mmu_select_tlb(vcpu);
	d->diff = x;
	return 0;
}

void diff_destroy(struct dbt *d)
{
	if (!d->diff)
		return;
	free(d->diff->ref->code_gfns);
	host_unmap_lazy(d->diff->ref, sizeof(*d->diff->ref));
	free(d->diff);
	d->diff = NULL;
}

/* Entered as by a linked exit that has the flags in the host's. */
void diff_emit_common(struct dbt *d)
{
	struct emit *e = &d->emit;

	d->diff->enter_host = e->at;
	put_mov_imm(e, RAX, (u64)&d->diff->host_entry);
	put_load(e, RAX, MEM_BASE(RAX, 0));
	put_store(e, SLOT(FRAME_TMP1), RAX);
	put_rm(e, W4, OPC_0F | 0xb7, RAX, SLOT(FRAME_FLAGS));
	put8(e, 0x04);
	put8(e, 0x7f); /* add $0x7f, %al */
	put8(e, 0x9e); /* sahf */
	put_load(e, RAX, SLOT(FRAME_VCPU));
	put_load(e, RAX, MEM_BASE(RAX, offsetof(struct vcpu, arch.regs)));
	put_rm(e, W4, 0xff, 4, SLOT(FRAME_TMP1));
}

/* ---- blocks ------------------------------------------------------------------------- */

static bool operand_excluded(const ZydisDecodedOperand *op)
{
	if (op->type != ZYDIS_OPERAND_TYPE_REGISTER)
		return false;
	switch (ZydisRegisterGetClass(op->reg.value)) {
	case ZYDIS_REGCLASS_SEGMENT:
	case ZYDIS_REGCLASS_CONTROL:
	case ZYDIS_REGCLASS_DEBUG:
	case ZYDIS_REGCLASS_TABLE:
		return true;
	default:
		return false;
	}
}

static bool mnemonic_excluded(ZydisMnemonic m)
{
	switch (m) {
	case ZYDIS_MNEMONIC_FXSAVE: case ZYDIS_MNEMONIC_FXSAVE64:
	case ZYDIS_MNEMONIC_FXRSTOR: case ZYDIS_MNEMONIC_FXRSTOR64:
	case ZYDIS_MNEMONIC_IRET: case ZYDIS_MNEMONIC_IRETD: case ZYDIS_MNEMONIC_IRETQ:
	case ZYDIS_MNEMONIC_HLT: case ZYDIS_MNEMONIC_MWAIT: case ZYDIS_MNEMONIC_MWAITX:
	case ZYDIS_MNEMONIC_RDPID: case ZYDIS_MNEMONIC_RDTSC: case ZYDIS_MNEMONIC_RDTSCP:
	case ZYDIS_MNEMONIC_RDPRU: case ZYDIS_MNEMONIC_CPUID: case ZYDIS_MNEMONIC_PAUSE:
		return true;
	default:
		return false;
	}
}

bool diff_excludes(const ZydisDecodedInstruction *zi, const ZydisDecodedOperand *ops)
{
	switch (zi->meta.category) {
	case ZYDIS_CATEGORY_SYSTEM:
	case ZYDIS_CATEGORY_SYSCALL:
	case ZYDIS_CATEGORY_SYSRET:
	case ZYDIS_CATEGORY_INTERRUPT:
	case ZYDIS_CATEGORY_IO:
	case ZYDIS_CATEGORY_IOSTRINGOP:
	case ZYDIS_CATEGORY_XSAVE:
	case ZYDIS_CATEGORY_XSAVEOPT:
	case ZYDIS_CATEGORY_RDRAND:
	case ZYDIS_CATEGORY_RDSEED:
	case ZYDIS_CATEGORY_RDWRFSGS:
	case ZYDIS_CATEGORY_SEGOP:
	case ZYDIS_CATEGORY_VTX:
		return true;
	default:
		break;
	}
	if (zi->meta.branch_type == ZYDIS_BRANCH_TYPE_FAR || mnemonic_excluded(zi->mnemonic))
		return true;
	for (unsigned i = 0; i < zi->operand_count; i++)
		if (operand_excluded(&ops[i]) &&
		    !(zi->meta.branch_type != ZYDIS_BRANCH_TYPE_NONE && ops[i].visibility == ZYDIS_OPERAND_VISIBILITY_HIDDEN))
			return true;
	return false;
}

/* Flags that the last instruction to touch them has left undefined. */
static u16 undefined_flags(u16 before, const ZydisDecodedInstruction *zi)
{
	const ZydisAccessedFlags *f = zi->cpu_flags;

	return f ? (before & ~(f->modified | f->set_0 | f->set_1)) | (f->undefined & X86_EFLAGS_OSZAPC) : before;
}

static void note_dead_flags(struct dbt_block *b, const u16 *reads, const u16 *writes)
{
	u16 dead = 0;

	for (unsigned i = b->nr_insns; i-- > 0;) {
		b->insns[i].dead = dead;
		dead = (dead | writes[i]) & ~reads[i];
	}
}

/* total: instructions, which are those of bytes and, in a loop, the same again. */
void diff_note_block(struct vcpu *vcpu, struct dbt_block *b, const u8 *bytes, unsigned total)
{
	ZydisDecodedOperand ops[ZYDIS_MAX_OPERAND_COUNT];
	ZydisDecodedInstruction zi;
	struct insn insn;
	u16 undefined = 0, reads[DBT_BLOCK_INSNS] = { 0 }, writes[DBT_BLOCK_INSNS] = { 0 };
	unsigned off = 0;

	b->comparable = true;
	b->body = total;
	b->insns = dbt_arena_alloc(vcpu->arch.dbt, DBT_BLOCK_INSNS * sizeof(*b->insns));
	while (b->nr_insns < total) {
		if (off == b->len) {
			b->body = min(b->nr_insns, b->body);
			off = 0;
		}
		if (!decode_insn_full(vcpu, bytes + off, min((unsigned)INSN_MAX_LEN, b->len - off), &insn, &zi, ops))
			break;
		b->comparable &= !diff_excludes(&zi, ops);
		undefined = undefined_flags(undefined, &zi);
		if (zi.cpu_flags) {
			reads[b->nr_insns] = zi.cpu_flags->tested;
			if (!decode_may_keep_flags(&zi, ops))
				writes[b->nr_insns] = (zi.cpu_flags->modified | zi.cpu_flags->set_0 | zi.cpu_flags->set_1 |
						       zi.cpu_flags->undefined) & X86_EFLAGS_OSZAPC;
		}
		b->insns[b->nr_insns++] = (struct diff_insn){ .undefined = undefined, .len = insn.len };
		off += insn.len;
	}
	note_dead_flags(b, reads, writes);
	b->comparable &= off == b->len;
}

/* ---- state --------------------------------------------------------------------------- */

static void snapshot_take(struct vcpu *vcpu, struct snapshot *s)
{
	struct vcpu_arch *a = &vcpu->arch;

	x87_sync(vcpu);
	memcpy(s->regs, a->regs, sizeof(s->regs));
	s->rip = a->rip;
	s->rflags = a->rflags;
	memcpy(s->ymm, a->fpu.ymm, sizeof(s->ymm));
	s->mxcsr = a->fpu.mxcsr;
	memcpy(s->x87.fx, a->fpu.fx, sizeof(s->x87.fx));
	s->x87.fop = a->fpu.fop;
	s->x87.fcs = a->fpu.fcs;
	s->x87.fds = a->fpu.fds;
	s->x87.fip = a->fpu.fip;
	s->x87.fdp = a->fpu.fdp;
	s->interrupt_shadow = a->interrupt_shadow;
	s->db_trap = a->db_trap;
	s->db_dr6 = a->db_dr6;
	s->triple_fault_pending = a->triple_fault_pending;
	s->irq_window = a->irq_window;
	s->exception = a->exception;
}

static void snapshot_restore(struct vcpu *vcpu, const struct snapshot *s)
{
	struct vcpu_arch *a = &vcpu->arch;

	memcpy(a->regs, s->regs, sizeof(s->regs));
	a->rip = s->rip;
	a->rflags = s->rflags;
	memcpy(a->fpu.ymm, s->ymm, sizeof(s->ymm));
	a->fpu.mxcsr = s->mxcsr;
	memcpy(a->fpu.fx, s->x87.fx, sizeof(s->x87.fx));
	a->fpu.fop = s->x87.fop;
	a->fpu.fcs = s->x87.fcs;
	a->fpu.fds = s->x87.fds;
	a->fpu.fip = s->x87.fip;
	a->fpu.fdp = s->x87.fdp;
	a->interrupt_shadow = s->interrupt_shadow;
	a->db_trap = s->db_trap;
	a->db_dr6 = s->db_dr6;
	a->triple_fault_pending = s->triple_fault_pending;
	a->irq_window = s->irq_window;
	a->exception = s->exception;
}

/* So many in one copy are none: poisoned memory, or a fault that is waiting for whoever kicks. */
#define KICKS_MAX 1000u

/* host_copy() and host_compare(), whatever kicks. */
static bool copy_all(u8 *dst, const u8 *src, u32 len)
{
	u32 left, kicks = 0;

	while ((left = host_copy(dst, src, len))) {
		if (!host_kicked || ++kicks > KICKS_MAX)
			return false;
		host_kicked = false;
		dst += len - left;
		src += len - left;
		len = left;
	}
	return true;
}

static int compare_all(const u8 *a, const u8 *b, u32 len)
{
	u32 kicks = 0;
	int r;

	while ((r = host_compare(a, b, len)) < 0 && host_kicked && ++kicks <= KICKS_MAX)
		host_kicked = false;
	return r;
}

/* What is at the recorded places now. */
static bool journal_read(const struct store_journal *j, u8 *bytes)
{
	bool ok = true;

	for (u32 i = 0; i < j->nr; i++)
		ok &= copy_all(bytes + j->stores[i].at, j->stores[i].host, j->stores[i].len);
	return ok;
}

static bool journal_undo(const struct store_journal *j)
{
	bool ok = true;

	for (u32 i = j->nr; i-- > 0;)
		ok &= copy_all(j->stores[i].host, j->old + j->stores[i].at, j->stores[i].len);
	return ok;
}

static bool journal_redo(const struct store_journal *j, const u8 *bytes)
{
	bool ok = true;

	for (u32 i = 0; i < j->nr; i++)
		ok &= copy_all(j->stores[i].host, bytes + j->stores[i].at, j->stores[i].len);
	return ok;
}

/* The client has withdrawn memory in the middle of a unit. Nobody can say what the guest would find. */
static void check_restored(struct vcpu *vcpu, bool restored)
{
	if (unlikely(!restored))
		vm_bug(vcpu->vm, "the memory of a store that is to be undone is gone", __FILE__, __LINE__);
}

static u64 flushes(const struct vcpu *vcpu)
{
	return vcpu->stat.tlb_flush + vcpu->stat.invlpg;
}

/* nr instructions of the block. A loop is left where a turn does not lead to its beginning. */
static void interpret(struct vcpu *vcpu, const struct dbt_block *b, u32 nr)
{
	struct diff *x = vcpu->arch.dbt->diff;
	const u64 begin = vcpu->arch.rip;
	u32 want, done;

	x->done = 0;
	do {
		want = min(nr - x->done, (u32)b->body);
		x->result = interp_run_counted(vcpu, want, &done);
		x->done += done;
	} while (x->done < nr && x->result == EXEC_OK && done == want && vcpu->arch.rip == begin);
}

/* The interpreter's turn: want and after are filled, and nothing has happened. False: cannot be compared. */
static bool reference_run(struct vcpu *vcpu, const struct dbt_block *b, u32 nr)
{
	struct diff *x = vcpu->arch.dbt->diff;
	bool restored;

	x->journal.nr = x->journal.used = 0;
	x->journal.refused = false;
	vcpu->arch.mmu = x->ref;
	if (x->flushes != flushes(vcpu))
		mmu_flush_all(vcpu);
	x->flushes = flushes(vcpu);
	mmu_select_tlb(vcpu);
	interpret(vcpu, b, nr);
	snapshot_take(vcpu, &x->want);
	restored = journal_read(&x->journal, x->after);
	restored &= journal_undo(&x->journal);
	check_restored(vcpu, restored);
	snapshot_restore(vcpu, &x->start);
	vcpu->arch.mmu = x->own;
	mmu_select_tlb(vcpu);
	return !x->journal.refused && (x->result == EXEC_OK || x->result == EXEC_FAULT);
}

/* ---- the translator's turn ------------------------------------------------------------------ */

typedef u32 (*enter_fn)(struct vcpu *vcpu, const void *code);

static u32 translated_run(struct vcpu *vcpu, struct dbt_block *b)
{
	struct dbt *d = vcpu->arch.dbt;
	enter_fn enter = (enter_fn)(d->mem.rx + d->enter);
	const void *code = d->mem.rx + d->diff->enter_host;
	u32 why;

	switch (d->diff->turn++ % 4) {
	case 0: code = d->mem.rx + b->slot; break;
	case 1: code = d->mem.rx + b->slot_poll; break;
	case 2: d->diff->host_entry = d->mem.rx + b->host; break;
	default: d->diff->host_entry = d->mem.rx + b->host_poll; break;
	}
	why = enter(vcpu, code);
	dbt_take_x87_notes(vcpu);
	return why;
}

/* How many instructions have retired. */
static u32 retired(struct vcpu *vcpu, const struct dbt_block *b, u32 why)
{
	const struct dbt_site *left;

	if (why >> 28 == DBT_DIRECT)
		return vcpu->arch.dbt->exits[why].retired;
	if (why >> 28 != DBT_LEAVE || vcpu->arch.dbt->result == EXEC_BRANCH)
		return b->nr_insns;
	left = &vcpu->arch.dbt->sites[vcpu->arch.dbt->left];
	return left->retired - (vcpu->arch.rip == dbt_absolute(vcpu, left->relative, left->rip));
}

/* ---- comparison --------------------------------------------------------------------------------- */

static void complain(struct vcpu *vcpu, const struct dbt_block *b, const char *what, u64 want, u64 got)
{
	log_error("engines differ in the block at 0x%llx (%u instructions, %u bytes): %s is 0x%llx, not 0x%llx as "
		  "in the interpreter", (unsigned long long)(b->page + b->va), b->nr_insns, b->len, what,
		  (unsigned long long)got, (unsigned long long)want);
}

static void dump_unit(struct vcpu *vcpu, const struct dbt_block *b)
{
	const struct dbt *d = vcpu->arch.dbt;
	const struct dbt_page *page = dbt_page_find(vcpu->arch.dbt, b->gpa & PAGE_MASK);
	char line[3 * 960 + 1];
	u32 off = b->gpa & ~PAGE_MASK, n = 0;

	line[0] = 0;
	for (u32 i = 0; page && i < b->len && i < 960; i++)
		n += sprintf(line + n, "%02x ", page->bytes[off + i]);
	log_error("guest code: %s", line);
	log_error("CPL %u, mode 0x%x, the block's 0x%x in context %u", vcpu->arch.cpl, vcpu->arch.mode_key,
		  b->mode_key, b->ctx);
	log_error("interpreter: %u instructions, result %d, exception %d of vector %u, error code 0x%x, payload 0x%llx",
		  d->diff->done, d->diff->result, d->diff->want.exception.pending, d->diff->want.exception.vector,
		  d->diff->want.exception.error_code, (unsigned long long)d->diff->want.exception.payload);
	for (unsigned i = 0; i < 16; i++)
		log_error("r%u: before 0x%llx, interpreter 0x%llx, translator 0x%llx", i,
			  (unsigned long long)d->diff->start.regs[i], (unsigned long long)d->diff->want.regs[i],
			  (unsigned long long)d->diff->got.regs[i]);
}

static bool same_exception(const struct pending_exception *a, const struct pending_exception *b)
{
	return a->pending == b->pending && a->vector == b->vector && a->has_error_code == b->has_error_code &&
	       a->error_code == b->error_code && a->has_payload == b->has_payload && a->payload == b->payload;
}

static bool same_memory(struct vcpu *vcpu, const struct dbt_block *b)
{
	const struct diff *x = vcpu->arch.dbt->diff;

	for (u32 i = 0; i < x->journal.nr; i++) {
		u64 got = 0, want = 0;
		u32 len = x->journal.stores[i].len, n = min(len, 8u);

		/* < 0: the client has withdrawn it. */
		if (compare_all(x->journal.stores[i].host, x->after + x->journal.stores[i].at, len) <= 0)
			continue;
		(void)host_copy(&got, x->journal.stores[i].host, n);
		memcpy(&want, x->after + x->journal.stores[i].at, n);
		complain(vcpu, b, "memory", want, got);
		return false;
	}
	return true;
}

/* Flags that may differ after n instructions and an exception, if there was one. */
static u64 dont_care(const struct dbt_block *b, u32 n, bool fault)
{
	return fault ? X86_EFLAGS_OSZAPC : n ? b->insns[n - 1].undefined | b->insns[n - 1].dead : 0;
}

static u64 bytes_at(const u8 *p, unsigned n)
{
	u64 v = 0;

	memcpy(&v, p, n);
	return v;
}

static bool same_x87(struct vcpu *vcpu, const struct dbt_block *b)
{
	enum { FX_STATE = 6, FX_REGS = 32 };
	const struct x87_state *want = &vcpu->arch.dbt->diff->want.x87, *got = &vcpu->arch.dbt->diff->got.x87;

	if (memcmp(want->fx, got->fx, FX_STATE))
		complain(vcpu, b, "x87 tags, status, control", bytes_at(want->fx, FX_STATE), bytes_at(got->fx, FX_STATE));
	else if (want->fip != got->fip || want->fcs != got->fcs)
		complain(vcpu, b, "the last x87 instruction", want->fip, got->fip);
	else if (want->fdp != got->fdp || want->fds != got->fds)
		complain(vcpu, b, "the last x87 operand", want->fdp, got->fdp);
	else if (want->fop != got->fop)
		complain(vcpu, b, "the last x87 opcode", want->fop, got->fop);
	else {
		for (unsigned i = FX_REGS; i < sizeof(want->fx); i += 16) {
			if (!memcmp(want->fx + i, got->fx + i, 10))
				continue;
			complain(vcpu, b, "an x87 register", bytes_at(want->fx + i, 8), bytes_at(got->fx + i, 8));
			return false;
		}
		return true;
	}
	return false;
}

static bool same_state(struct vcpu *vcpu, const struct dbt_block *b, u64 flags)
{
	const struct diff *x = vcpu->arch.dbt->diff;

	if (x->want.rip != x->got.rip)
		complain(vcpu, b, "rip", x->want.rip, x->got.rip);
	else if ((x->want.rflags ^ x->got.rflags) & ~flags)
		complain(vcpu, b, "rflags", x->want.rflags, x->got.rflags);
	else if (x->want.mxcsr != x->got.mxcsr)
		complain(vcpu, b, "mxcsr", x->want.mxcsr, x->got.mxcsr);
	else if (!same_exception(&x->want.exception, &x->got.exception))
		complain(vcpu, b, "exception", x->want.exception.vector, x->got.exception.vector);
	else if (memcmp(x->want.ymm, x->got.ymm, sizeof(x->want.ymm)))
		complain(vcpu, b, "a vector", 0, 0);
	else if (x->want.interrupt_shadow != x->got.interrupt_shadow)
		complain(vcpu, b, "interrupt_shadow", x->want.interrupt_shadow, x->got.interrupt_shadow);
	else {
		for (unsigned i = 0; i < 16; i++) {
			if (x->want.regs[i] == x->got.regs[i])
				continue;
			complain(vcpu, b, "a register", x->want.regs[i], x->got.regs[i]);
			return false;
		}
		return same_x87(vcpu, b) && same_memory(vcpu, b);
	}
	return false;
}

/* The block has left early: what does the interpreter say after as many instructions? */
static bool reference_again(struct vcpu *vcpu, const struct dbt_block *b, u32 nr)
{
	struct diff *x = vcpu->arch.dbt->diff;
	bool ok, restored;

	x->first = x->journal;
	restored = journal_read(&x->first, x->theirs);
	restored &= journal_undo(&x->first);
	snapshot_restore(vcpu, &x->start);
	ok = reference_run(vcpu, b, nr);
	restored &= journal_redo(&x->first, x->theirs);
	check_restored(vcpu, restored);
	snapshot_restore(vcpu, &x->got);
	return ok;
}

/* This unit is not compared. interrupted: since a kick or a request came in the middle of one of its instructions. */
static void count_skipped(struct vcpu *vcpu, bool interrupted)
{
	if (interrupted)
		vcpu->stat.diff_interrupted++;
	else
		vcpu->stat.diff_skipped++;
}

/* MMIO is to be executed again, too, but refused before. */
static bool is_interrupted(const struct diff *x, enum exec r)
{
	return r == EXEC_RETRY && !x->journal.refused;
}

static bool compare(struct vcpu *vcpu, const struct dbt_block *b, u32 why)
{
	struct dbt *d = vcpu->arch.dbt;
	struct diff *x = d->diff;
	bool fault = why >> 28 == DBT_LEAVE && d->result == EXEC_FAULT;
	u32 n = retired(vcpu, b, why);

	if ((n != x->done || fault != (x->result == EXEC_FAULT)) && !reference_again(vcpu, b, n + fault)) {
		count_skipped(vcpu, is_interrupted(x, x->result));
		return true;
	}
	vcpu->stat.diff_instructions += n;
	vcpu->stat.diff_units++;
	return same_state(vcpu, b, dont_care(b, n, fault));
}

/* rip is where the block has left for; struct vcpu is complete but for that. */
static void take_rip(struct vcpu *vcpu, u32 why)
{
	const struct dbt_exit *x = &vcpu->arch.dbt->exits[why];

	if (why >> 28 == DBT_DIRECT)
		vcpu->arch.rip = dbt_absolute(vcpu, x->relative, x->target);
}

u32 diff_enter(struct vcpu *vcpu, struct dbt_block *b)
{
	struct dbt *d = vcpu->arch.dbt;
	struct diff *x = d->diff;
	bool ok = b->comparable, interrupted;
	u32 why;

	if (ok) {
		snapshot_take(vcpu, &x->start);
		ok = reference_run(vcpu, b, b->nr_insns);
	}
	/* The interpreter has dropped its thunks, which the block may use: as if it had not been entered. */
	if (unlikely(d->engine_generation != interp_generation(vcpu))) {
		d->result = EXEC_OK;
		return DBT_LEAVE << 28;
	}
	why = translated_run(vcpu, b);
	if (why >> 28 == DBT_LEAVE && d->result != EXEC_OK && d->result != EXEC_END && d->result != EXEC_BRANCH &&
	    d->result != EXEC_FAULT)
		ok = false;
	/* A branch to an impossible address: the dispatcher has it executed again. */
	if (why >> 28 == DBT_INDIRECT && !is_canonical(vcpu->arch.rip))
		ok = false;
	if (!ok) {
		interrupted = is_interrupted(x, x->result) || (why >> 28 == DBT_LEAVE && is_interrupted(x, d->result));
		count_skipped(vcpu, b->comparable && interrupted);
		return why;
	}
	take_rip(vcpu, why);
	snapshot_take(vcpu, &x->got);
	if (!compare(vcpu, b, why)) {
		dump_unit(vcpu, b);
		vm_bug(vcpu->vm, "engines differ", __FILE__, __LINE__);
	}
	return why;
}

/* SPDX-License-Identifier: MIT */
/*
 * IN, OUT, INS, OUTS.
 *
 * String forms for a port that userspace serves go out in batches: one
 * KVM_EXIT_IO with count > 1, of at most one page of guest memory.
 *  1. Nothing of the guest changes before userspace has answered. The restarted
 *     instruction takes the batch from arch.pio, moves the data (INS) and retires
 *     the iterations; EXEC_RETRY then lets events in before the next batch.
 *  2. What the data moves to or from is probed before the port sees anything.
 *  3. Ports of in-kernel devices are served one item at a time; an item is
 *     retired, and the log of answered accesses emptied, before the next.
 *  4. A batch belongs to the instruction at linear_rip; if userspace moved rip, it is dropped.
 */
#include <string.h>

#include "kvm/sole.h"
#include "kvm/trace.h"
#include "x86/debug.h"
#include "x86/interp/operand.h"
#include "x86/ops/descriptor.h"
#include "x86/ops/io.h"

#define KERNEL_ITEMS_MAX 256	/* in-kernel items before requests are looked at */

void pio_complete_userspace(struct vcpu *vcpu)
{
	struct pio_batch *pio = &vcpu->arch.pio;

	if (!pio->count)
		return;
	if (linear_rip(vcpu) != pio->linear_rip) {
		pio->count = 0;
		return;
	}
	pio->answered = true;
	if (pio->in)
		trace(kvm_pio, vcpu->id, false, pio->port, pio->size, pio->count, trace_value(vcpu->pio_data, pio->size));
}

/* ---- permission ------------------------------------------------------------------ */

static enum exec io_bitmap_check(struct vcpu *vcpu, u16 port, unsigned size)
{
	const struct segment *tr = &vcpu->arch.seg[SEG_TR];
	u16 base, bits;
	u32 at;
	enum exec r;

	if (!(tr->ar & AR_P) || !(tr->ar & 8) || tr->limit < 103)
		return queue_gp(vcpu, 0);
	r = mem_read(vcpu, tr->base + 102, &base, 2, MMU_READ | MMU_IMPLICIT);
	if (r != EXEC_OK)
		return r;
	at = base + port / 8u;
	if (at + 1 > tr->limit)
		return queue_gp(vcpu, 0);
	r = mem_read(vcpu, tr->base + at, &bits, 2, MMU_READ | MMU_IMPLICIT);
	if (r != EXEC_OK)
		return r;
	return bits >> (port & 7) & ((1u << size) - 1) ? queue_gp(vcpu, 0) : EXEC_OK;
}

static inline enum exec io_permitted(struct vcpu *vcpu, u16 port, unsigned size)
{
	enum exec r = EXEC_OK;

	if (unlikely(vcpu->arch.vm86 || vcpu->arch.cpl > iopl(vcpu)))
		r = io_bitmap_check(vcpu, port, size);
	if (unlikely(vcpu->arch.cpl == 3) && r == EXEC_OK)
		sole_device_used(vcpu);
	return r;
}

/* ---- IN, OUT --------------------------------------------------------------------------- */

static u16 port_of(const struct vcpu *vcpu, const struct insn *insn)
{
	return insn->cc ? (u16)vcpu->arch.regs[RDX] : (u16)insn->imm;
}

static enum exec op_in(struct vcpu *vcpu, const struct insn *insn)
{
	u16 port = port_of(vcpu, insn);
	u64 val = 0;
	enum exec r = io_permitted(vcpu, port, insn->opsize);

	if (r == EXEC_OK)
		r = pio_read(vcpu, port, &val, insn->opsize);
	if (r != EXEC_OK)
		return r;
	gpr_write(vcpu, RAX, insn->opsize, false, val);
	debug_check_io_bp(vcpu, port, insn->opsize);
	return EXEC_OK;
}

static enum exec op_out(struct vcpu *vcpu, const struct insn *insn)
{
	u16 port = port_of(vcpu, insn);
	enum exec r = io_permitted(vcpu, port, insn->opsize);

	if (r == EXEC_OK)
		r = pio_write(vcpu, port, &vcpu->arch.regs[RAX], insn->opsize);
	if (r == EXEC_OK)
		debug_check_io_bp(vcpu, port, insn->opsize);
	/* Clients look at rip when port 0x7e is written, and expect the next instruction's. */
	if (r == EXEC_EXIT && port == 0x7e &&
	    !(vcpu->vm->arch.disabled_quirks & KVM_X86_QUIRK_OUT_7E_INC_RIP)) {
		vcpu->arch.rip = (vcpu->arch.rip + insn->len) & ip_mask(vcpu);
		vcpu->arch.mmio.pending = false;
		vcpu->arch.mmio.nr = vcpu->arch.mmio.cursor = 0;
	}
	return r;
}

/* ---- INS, OUTS ------------------------------------------------------------------------------- */

/* The string side of one execution. */
struct string_io {
	bool in, rep;
	unsigned size;
	u16 port;
	enum seg seg;
	u8 index;	/* RSI or RDI */
	u64 mask;	/* address size */
	u64 count;	/* items left */
};

static struct string_io string_io(const struct vcpu *vcpu, const struct insn *insn, bool in)
{
	struct string_io s = {
		.in = in, .size = insn->opsize, .port = vcpu->arch.regs[RDX],
		.rep = insn->flags & (INSN_REP | INSN_REPNE),
		.seg = in ? SEG_ES : insn->seg, .index = in ? RDI : RSI,
		.mask = insn->addrsize == 8 ? ~0ull : insn->addrsize == 4 ? 0xffffffffull : 0xffffull,
	};

	s.count = s.rep ? vcpu->arch.regs[RCX] & s.mask : 1;
	return s;
}

static void set_masked(u64 *reg, u64 val, u64 mask)
{
	*reg = mask == 0xffff ? (*reg & ~0xffffull) | (val & 0xffff) : val & mask;
}

static void retire(struct vcpu *vcpu, const struct string_io *s, u64 n)
{
	u64 step = n * s->size, *index = &vcpu->arch.regs[s->index];

	set_masked(index, vcpu->arch.rflags & X86_EFLAGS_DF ? *index - step : *index + step, s->mask);
	if (s->rep)
		set_masked(&vcpu->arch.regs[RCX], vcpu->arch.regs[RCX] - n, s->mask);
}

/* Linear address of the lowest byte of n items, or the exception of the first. */
static enum exec string_linear(struct vcpu *vcpu, const struct string_io *s, u64 n, gva_t *va)
{
	u64 off = vcpu->arch.regs[s->index] & s->mask;

	if (vcpu->arch.rflags & X86_EFLAGS_DF)
		off -= (n - 1) * s->size;
	return seg_linear(vcpu, s->seg, off, n * s->size, s->in, va);
}

/* seg_linear() without its exception: do n items from here lie in the segment? */
static bool range_in_segment(const struct vcpu *vcpu, const struct string_io *s, u64 n)
{
	const struct segment *g = &vcpu->arch.seg[s->seg];
	u64 off = vcpu->arch.regs[s->index] & s->mask, len = n * s->size;

	if (vcpu->arch.rflags & X86_EFLAGS_DF) {
		if (off < len - s->size)
			return false;
		off -= len - s->size;
	}
	if (off + len - 1 < off || off + len - 1 > s->mask)
		return false;
	if (in_64bit_mode(vcpu))
		return true;
	/* Expand-down segments are not worth a batch. */
	return (g->ar & 0xc) != 0x4 && off + len - 1 <= g->limit;
}

/* Stepped through, or with a breakpoint on a port: one item at a time. */
static bool is_watched(const struct vcpu *vcpu)
{
	return debug_is_stepped(vcpu) || (vcpu->arch.eff_dr7 & 0xff);
}

/* An item is done and retired: what comes between it and the next. */
static enum exec after_item(struct vcpu *vcpu, const struct string_io *s, bool more)
{
	debug_check_io_bp(vcpu, s->port, s->size);
	if (!more)
		return EXEC_OK;
	if (debug_is_stepped(vcpu))
		debug_step_trap(vcpu);
	return vcpu->arch.db_trap ? EXEC_RETRY : EXEC_OK;
}

/* Items for one exit: all in the page of the first one, no address wraps. va is the first's. */
static u64 batch_items(const struct vcpu *vcpu, const struct string_io *s, gva_t va)
{
	u64 off = va & ~PAGE_MASK, room, n;

	if (!s->rep || is_watched(vcpu))
		return 1;
	room = vcpu->arch.rflags & X86_EFLAGS_DF ? off + s->size : PAGE_SIZE - off;
	n = min(s->count, room / s->size);
	if (off + s->size > PAGE_SIZE || n < 2 || !range_in_segment(vcpu, s, n))
		return 1;
	return n;
}

/* Guest memory order and port order differ when DF is set. */
static void reverse_items(u8 *dst, const u8 *src, u64 n, unsigned size)
{
	for (u64 i = 0; i < n; i++)
		memcpy(dst + i * size, src + (n - 1 - i) * size, size);
}

static enum exec string_move(struct vcpu *vcpu, const struct string_io *s, gva_t va, u64 n, u8 *port_order)
{
	u8 buf[PAGE_SIZE];
	bool down = vcpu->arch.rflags & X86_EFLAGS_DF;
	unsigned len = n * s->size;
	enum exec r;

	if (s->in) {
		if (down)
			reverse_items(buf, port_order, n, s->size);
		else
			memcpy(buf, port_order, len);
		return mem_write(vcpu, va, buf, len, mmu_data_access(vcpu, MMU_WRITE));
	}
	r = mem_read(vcpu, va, buf, len, mmu_data_access(vcpu, MMU_READ));
	if (r != EXEC_OK)
		return r;
	if (down)
		reverse_items(port_order, buf, n, s->size);
	else
		memcpy(port_order, buf, len);
	return EXEC_OK;
}

/* Userspace has answered: retire its batch. */
static enum exec take_batch(struct vcpu *vcpu, const struct string_io *s)
{
	u64 n = vcpu->arch.pio.count;
	gva_t va;
	enum exec r = EXEC_OK;

	if (s->in) {
		r = string_linear(vcpu, s, n, &va);
		if (r == EXEC_OK)
			r = string_move(vcpu, s, va, n, vcpu->pio_data);
	}
	if (r != EXEC_OK && r != EXEC_FAULT)
		return r;
	vcpu->arch.pio.count = 0;
	if (r != EXEC_OK)
		return r;
	retire(vcpu, s, n);
	if (is_watched(vcpu))
		(void)after_item(vcpu, s, s->count > n);
	return s->count > n ? EXEC_RETRY : EXEC_OK;
}

static bool batch_is_mine(const struct vcpu *vcpu, const struct string_io *s)
{
	const struct pio_batch *pio = &vcpu->arch.pio;

	return pio->answered && pio->in == s->in && pio->port == s->port && pio->size == s->size &&
	       pio->count <= s->count && pio->linear_rip == linear_rip(vcpu) &&
	       (pio->count == 1 || range_in_segment(vcpu, s, pio->count));
}

static enum exec exit_batch(struct vcpu *vcpu, const struct string_io *s, gva_t first)
{
	struct kvm_run *run = vcpu->run;
	u64 n = batch_items(vcpu, s, first);
	gva_t va = vcpu->arch.rflags & X86_EFLAGS_DF ? first - (n - 1) * s->size : first;
	enum exec r;

	if (s->in)
		r = mem_probe_write(vcpu, va, n * s->size, mmu_data_access(vcpu, MMU_WRITE));
	else
		r = string_move(vcpu, s, va, n, vcpu->pio_data);
	if (r != EXEC_OK)
		return r;
	if (!s->in)
		trace(kvm_pio, vcpu->id, true, s->port, s->size, n, trace_value(vcpu->pio_data, s->size));
	run->exit_reason = named_exit(KVM_EXIT_IO);
	run->io.direction = s->in ? KVM_EXIT_IO_IN : KVM_EXIT_IO_OUT;
	run->io.size = s->size;
	run->io.port = s->port;
	run->io.count = n;
	run->io.data_offset = PAGE_SIZE;
	vcpu->arch.pio = (struct pio_batch){
		.count = n, .port = s->port, .size = s->size, .in = s->in,
		.linear_rip = linear_rip(vcpu),
	};
	vcpu->stat.io_exits++;
	return EXEC_EXIT;
}

/* One item for or from something in the kernel. *swallowed false: nobody, userspace has to. */
static enum exec kernel_item(struct vcpu *vcpu, const struct string_io *s, gva_t va, bool *swallowed)
{
	bool irqchip = pio_is_in_kernel(vcpu, s->port);
	u64 val = 0;
	enum exec r;

	*swallowed = irqchip;
	if (s->in) {
		if (!irqchip)
			return EXEC_OK;
		r = mem_probe_write(vcpu, va, s->size, mmu_data_access(vcpu, MMU_WRITE));
		if (r == EXEC_OK)
			r = pio_read(vcpu, s->port, &val, s->size);
		return r == EXEC_OK ? mem_store(vcpu, va, s->size, val) : r;
	}
	r = mem_load(vcpu, va, s->size, &val);
	if (r != EXEC_OK)
		return r;
	if (irqchip)
		return pio_write(vcpu, s->port, &val, s->size);
	*swallowed = vm_pio_write(vcpu->vm, s->port, s->size, &val);
	return EXEC_OK;
}

static enum exec string_loop(struct vcpu *vcpu, struct string_io *s)
{
	enum exec r = io_permitted(vcpu, s->port, s->size); /* even to do nothing */
	bool swallowed;
	gva_t va;

	if (r != EXEC_OK)
		return r;
	for (unsigned i = 0; s->count; i++) {
		if (i && (i == KERNEL_ITEMS_MAX || vcpu_has_requests(vcpu)))
			return EXEC_RETRY;
		if (r == EXEC_OK)
			r = string_linear(vcpu, s, 1, &va);
		if (r == EXEC_OK)
			r = kernel_item(vcpu, s, va, &swallowed);
		if (r != EXEC_OK)
			return r;
		if (!swallowed)
			return exit_batch(vcpu, s, va);
		retire(vcpu, s, 1);
		mmio_boundary(vcpu);
		s->count--;
		if (is_watched(vcpu))
			r = after_item(vcpu, s, s->count);
		if (r != EXEC_OK)
			return r;
	}
	return EXEC_OK;
}

static enum exec op_string_io(struct vcpu *vcpu, const struct insn *insn, bool in)
{
	struct string_io s = string_io(vcpu, insn, in);

	if (vcpu->arch.pio.count) {
		if (batch_is_mine(vcpu, &s))
			return take_batch(vcpu, &s);
		vcpu->arch.pio.count = 0;
	}
	return string_loop(vcpu, &s);
}

static enum exec op_ins(struct vcpu *vcpu, const struct insn *insn)
{
	return op_string_io(vcpu, insn, true);
}

static enum exec op_outs(struct vcpu *vcpu, const struct insn *insn)
{
	return op_string_io(vcpu, insn, false);
}

/* ---- selection ----------------------------------------------------------------------------------- */

static enum seg override_or_ds(const struct decode_ctx *ctx)
{
	static const struct {
		ZydisInstructionAttributes attr;
		u8 seg;
	} map[] = {
		{ ZYDIS_ATTRIB_HAS_SEGMENT_ES, SEG_ES }, { ZYDIS_ATTRIB_HAS_SEGMENT_CS, SEG_CS },
		{ ZYDIS_ATTRIB_HAS_SEGMENT_SS, SEG_SS }, { ZYDIS_ATTRIB_HAS_SEGMENT_DS, SEG_DS },
		{ ZYDIS_ATTRIB_HAS_SEGMENT_FS, SEG_FS }, { ZYDIS_ATTRIB_HAS_SEGMENT_GS, SEG_GS },
	};

	for (unsigned i = 0; i < ARRAY_SIZE(map); i++)
		if (ctx->zi->attributes & map[i].attr)
			return map[i].seg;
	return SEG_DS;
}

/* insn->cc: the port is in DX */
static insn_fn select_port(const struct decode_ctx *ctx, struct insn *insn, unsigned data, unsigned port, insn_fn fn)
{
	insn->opsize = operand_bytes(ctx, data);
	insn->cc = operand_kind(ctx, port) != OPERAND_IMM;
	if (!insn->cc)
		insn->imm = operand_imm(ctx, port) & 0xff;
	return fn;
}

static insn_fn select_string(const struct decode_ctx *ctx, struct insn *insn, unsigned size, insn_fn fn)
{
	insn->opsize = size;
	insn->addrsize = ctx->zi->address_width / 8;
	insn->seg = override_or_ds(ctx);
	insn->flags |= fn == op_ins ? INSN_WRITES_MEM : INSN_READS_MEM;
	/* F2 repeats as F3 does. */
	for (unsigned i = 0; i < ctx->zi->raw.prefix_count; i++)
		if (ctx->zi->raw.prefixes[i].value == 0xf2 || ctx->zi->raw.prefixes[i].value == 0xf3)
			insn->flags |= INSN_REP;
	return fn;
}

insn_fn io_select(const struct decode_ctx *ctx, struct insn *insn)
{
	switch (ctx->zi->mnemonic) {
	case ZYDIS_MNEMONIC_IN: return select_port(ctx, insn, 0, 1, op_in);
	case ZYDIS_MNEMONIC_OUT: return select_port(ctx, insn, 1, 0, op_out);
	case ZYDIS_MNEMONIC_INSB: return select_string(ctx, insn, 1, op_ins);
	case ZYDIS_MNEMONIC_INSW: return select_string(ctx, insn, 2, op_ins);
	case ZYDIS_MNEMONIC_INSD: return select_string(ctx, insn, 4, op_ins);
	case ZYDIS_MNEMONIC_OUTSB: return select_string(ctx, insn, 1, op_outs);
	case ZYDIS_MNEMONIC_OUTSW: return select_string(ctx, insn, 2, op_outs);
	case ZYDIS_MNEMONIC_OUTSD: return select_string(ctx, insn, 4, op_outs);
	default: return NULL;
	}
}

/* SPDX-License-Identifier: MIT */
/*
 * Accesses that are not RAM: in-kernel devices, and exits to userspace.
 *
 * Restart instead of continuation: an instruction that needs userspace is
 * abandoned with its state untouched, and executed again from its beginning once
 * the answer is there. arch.mmio logs every access answered so far, in order, so that the
 * repetition finds the same answers and touches no device twice. Rules:
 *  1. The log belongs to the instruction at linear_rip. If userspace moved rip
 *     meanwhile (reset, debugger), the log is dropped.
 *  2. Accesses consume the log strictly in order; one that differs from its entry
 *     (userspace changed registers) drops the rest.
 *  3. The log is emptied when the instruction retires or faults.
 *  4. In-kernel devices answer at once, but are logged like the others.
 */
#include <stdlib.h>
#include <string.h>

#include "kvm/sole.h"
#include "kvm/trace.h"
#include "x86/irqchip.h"
#include "x86/x86.h"

/* An answer for this access from an earlier execution of the instruction. */
static struct mmio_access *log_consume(struct vcpu *vcpu, gpa_t gpa, unsigned len, bool write, bool pio)
{
	struct mmio_log *log = &vcpu->arch.mmio;
	struct mmio_access *a;

	if (likely(log->cursor >= log->nr))
		return NULL;
	a = &log->accesses[log->cursor];
	if (a->gpa != gpa || a->len != len || a->write != write || a->pio != pio) {
		log->nr = log->cursor;
		return NULL;
	}
	log->cursor++;
	return a;
}

/* Where the next access goes, or NULL when one instruction makes absurdly many (or there is no memory). */
static struct mmio_access *log_new(struct vcpu *vcpu, gpa_t gpa, const void *data, unsigned len,
				   bool write, bool pio)
{
	struct mmio_log *log = &vcpu->arch.mmio;
	struct mmio_access *a;

	if (log->nr >= MMIO_LOG_MAX)
		return NULL;
	if (unlikely(!log->accesses)) {
		log->accesses = calloc(MMIO_LOG_MAX, sizeof(*log->accesses));
		if (!log->accesses)
			return NULL;
	}
	a = &log->accesses[log->nr];
	*a = (struct mmio_access){ .gpa = gpa, .len = len, .write = write, .pio = pio };
	if (data)
		memcpy(a->data, data, len);
	return a;
}

/* An access with its data: written, or answered. */
static void trace_access(struct vcpu *vcpu, const struct mmio_access *a)
{
	if (a->pio)
		trace(kvm_pio, vcpu->id, a->write, a->gpa, a->len, 1, trace_value(a->data, a->len));
	else
		trace(kvm_mmio, vcpu->id, a->write ? 2 : 1, a->len, a->gpa, trace_value(a->data, a->len));
}

static void log_answered(struct vcpu *vcpu, const struct mmio_access *a)
{
	trace_access(vcpu, a);
	vcpu->arch.mmio.nr++;
	vcpu->arch.mmio.cursor++;
}

static enum exec exit_mmio(struct vcpu *vcpu, const struct mmio_access *a)
{
	struct kvm_run *run = vcpu->run;

	if (a->write)
		trace_access(vcpu, a);
	else
		trace(kvm_mmio, vcpu->id, 0, a->len, a->gpa);
	run->exit_reason = named_exit(KVM_EXIT_MMIO);
	run->mmio.phys_addr = a->gpa;
	run->mmio.len = a->len;
	run->mmio.is_write = a->write;
	memset(run->mmio.data, 0, sizeof(run->mmio.data));
	if (a->write)
		memcpy(run->mmio.data, a->data, a->len);
	vcpu->arch.mmio.pending = true;
	vcpu->arch.mmio.linear_rip = linear_rip(vcpu);
	vcpu->stat.mmio_exits++;
	return EXEC_EXIT;
}

static enum exec exit_pio(struct vcpu *vcpu, const struct mmio_access *a)
{
	struct kvm_run *run = vcpu->run;

	if (a->write)
		trace_access(vcpu, a);
	run->exit_reason = named_exit(KVM_EXIT_IO);
	run->io.direction = a->write ? KVM_EXIT_IO_OUT : KVM_EXIT_IO_IN;
	run->io.size = a->len;
	run->io.port = a->gpa;
	run->io.count = 1;
	run->io.data_offset = PAGE_SIZE;
	if (a->write)
		memcpy(vcpu->pio_data, a->data, a->len);
	vcpu->arch.mmio.pending = true;
	vcpu->arch.mmio.linear_rip = linear_rip(vcpu);
	vcpu->stat.io_exits++;
	return EXEC_EXIT;
}

static bool device_read(struct vcpu *vcpu, gpa_t gpa, void *data, unsigned len)
{
	if (vcpu->arch.apic && lapic_mmio_match(vcpu, gpa)) {
		lapic_mmio_read(vcpu, gpa, data, len);
		return true;
	}
	if (ioapic_mmio_match(vcpu->vm, gpa)) {
		ioapic_mmio_read(vcpu->vm, gpa, data, len);
		return true;
	}
	return false;
}

static bool device_write(struct vcpu *vcpu, gpa_t gpa, const void *data, unsigned len)
{
	if (vcpu->arch.apic && lapic_mmio_match(vcpu, gpa)) {
		lapic_mmio_write(vcpu, gpa, data, len);
		return true;
	}
	if (ioapic_mmio_match(vcpu->vm, gpa)) {
		ioapic_mmio_write(vcpu->vm, gpa, data, len);
		return true;
	}
	return vm_mmio_write(vcpu->vm, gpa, len, data);
}

enum exec mmio_read(struct vcpu *vcpu, gpa_t gpa, void *data, unsigned len)
{
	struct mmio_access *a = log_consume(vcpu, gpa, len, false, false);

	if (unlikely(vcpu->arch.cpl == 3))
		sole_device_used(vcpu);
	if (a) {
		memcpy(data, a->data, len);
		return EXEC_OK;
	}
	a = log_new(vcpu, gpa, NULL, len, false, false);
	if (!a)
		return EXEC_UNHANDLED;
	if (!device_read(vcpu, gpa, a->data, len))
		return exit_mmio(vcpu, a);
	memcpy(data, a->data, len);
	log_answered(vcpu, a);
	return EXEC_OK;
}

enum exec mmio_write(struct vcpu *vcpu, gpa_t gpa, const void *data, unsigned len)
{
	struct mmio_access *a = log_consume(vcpu, gpa, len, true, false);

	if (unlikely(vcpu->arch.cpl == 3))
		sole_device_used(vcpu);
	if (a)
		return EXEC_OK;
	a = log_new(vcpu, gpa, data, len, true, false);
	if (!a)
		return EXEC_UNHANDLED;
	if (!device_write(vcpu, gpa, data, len))
		return exit_mmio(vcpu, a);
	log_answered(vcpu, a);
	return EXEC_OK;
}

bool pio_is_in_kernel(struct vcpu *vcpu, u16 port)
{
	return irqchip_pio_match(vcpu->vm, port);
}

enum exec pio_read(struct vcpu *vcpu, u16 port, void *data, unsigned len)
{
	struct mmio_access *a = log_consume(vcpu, port, len, false, true);

	if (a) {
		memcpy(data, a->data, len);
		return EXEC_OK;
	}
	a = log_new(vcpu, port, NULL, len, false, true);
	if (!a)
		return EXEC_UNHANDLED;
	if (!irqchip_pio_read(vcpu->vm, port, a->data, len))
		return exit_pio(vcpu, a);
	memcpy(data, a->data, len);
	log_answered(vcpu, a);
	return EXEC_OK;
}

enum exec pio_write(struct vcpu *vcpu, u16 port, const void *data, unsigned len)
{
	struct mmio_access *a = log_consume(vcpu, port, len, true, true);

	if (a)
		return EXEC_OK;
	a = log_new(vcpu, port, data, len, true, true);
	if (!a)
		return EXEC_UNHANDLED;
	if (!irqchip_pio_write(vcpu->vm, port, data, len) && !vm_pio_write(vcpu->vm, port, len, data))
		return exit_pio(vcpu, a);
	log_answered(vcpu, a);
	return EXEC_OK;
}

void mmio_complete_userspace(struct vcpu *vcpu)
{
	struct mmio_log *log = &vcpu->arch.mmio;
	struct mmio_access *a;

	log->cursor = 0;
	if (!log->pending)
		return;
	a = &log->accesses[log->nr];
	log->pending = false;
	if (linear_rip(vcpu) != log->linear_rip) {
		log->nr = 0;
		return;
	}
	if (!a->write) {
		memcpy(a->data, a->pio ? vcpu->pio_data : vcpu->run->mmio.data, a->len);
		trace_access(vcpu, a);
	}
	log->nr++;
}

/* SPDX-License-Identifier: MIT */
/*
 * The synthetic interrupt controller: 16 sources (SINTs) beside the local APIC, each with a vector, and
 * a page of message slots, one a source.
 *
 * sint[] is read by whoever raises an interrupt, on any thread; the vector bitmaps follow from it and
 * are the owner's alone. That a vector was ended reaches the timers, which may have a message to
 * repeat, and the resamplers of its GSI.
 */
#include <errno.h>
#include <string.h>

#include "x86/hyperv/hyperv_internal.h"

static u64 sint_read(const struct hv_synic *synic, u32 sint)
{
	return atomic_load_explicit(&((struct hv_synic *)synic)->sint[sint], memory_order_acquire);
}

/* -1: masked */
static int sint_vector(u64 sint)
{
	return sint & HV_SINT_MASKED ? -1 : (int)(sint & HV_SINT_VECTOR);
}

void hv_synic_init(struct hv_synic *synic)
{
	synic->version = 1;
	for (unsigned i = 0; i < HV_NR_SINTS; i++)
		atomic_store(&synic->sint[i], HV_SINT_MASKED);
}

/* ---- vectors --------------------------------------------------------------------- */

static void bitmaps_update(struct hv_synic *synic)
{
	memset(synic->vectors, 0, sizeof(synic->vectors));
	memset(synic->auto_eoi, 0, sizeof(synic->auto_eoi));
	for (unsigned i = 0; i < HV_NR_SINTS; i++) {
		u64 sint = sint_read(synic, i);
		int vector = sint_vector(sint);

		if (vector < HV_FIRST_VECTOR)
			continue;
		synic->vectors[vector >> 6] |= BIT_ULL(vector & 63);
		if (sint & HV_SINT_AUTO_EOI)
			synic->auto_eoi[vector >> 6] |= BIT_ULL(vector & 63);
	}
}

bool hyperv_synic_has_vector(const struct vcpu *vcpu, u8 vector)
{
	const struct hv_vcpu *hv = hv_vcpu(vcpu);

	return hv && (hv->synic.vectors[vector >> 6] & BIT_ULL(vector & 63));
}

bool hyperv_synic_auto_eoi(const struct vcpu *vcpu, u8 vector)
{
	const struct hv_vcpu *hv = hv_vcpu(vcpu);

	return hv && (hv->synic.auto_eoi[vector >> 6] & BIT_ULL(vector & 63));
}

static int sint_write(struct hv_synic *synic, u32 sint, u64 value, bool host)
{
	/* Some guests write the masked reset value, with vector 0. */
	if ((value & HV_SINT_VECTOR) < HV_FIRST_VECTOR && !host && !(value & HV_SINT_MASKED))
		return 1;
	atomic_store_explicit(&synic->sint[sint], value, memory_order_release);
	bitmaps_update(synic);
	return 0;
}

/* ---- raising and ending ------------------------------------------------------------ */

static int raise_sint(struct vcpu *vcpu, const struct hv_synic *synic, u32 sint)
{
	int vector;

	if (sint >= HV_NR_SINTS)
		return -EINVAL;
	vector = sint_vector(sint_read(synic, sint));
	return vector < 0 ? -ENOENT : lapic_deliver_fixed(vcpu, vector);
}

int hyperv_synic_set_irq(struct vm *vm, u32 vp_index, u32 sint)
{
	struct vcpu *vcpu;
	u32 i;

	vm_for_each_vcpu(vm, vcpu, i) {
		struct hv_vcpu *hv = hv_vcpu(vcpu);

		if (hv_vp_index(vcpu) == vp_index)
			return hv && atomic_load(&hv->synic.active) ?
				       raise_sint(vcpu, &hv->synic, sint) : -EINVAL;
	}
	return -EINVAL;
}

static void sint_acked(struct vcpu *vcpu, u32 sint)
{
	hv_stimer_retry(vcpu, sint);
	vm_notify_acked_sint(vcpu->vm, hv_vp_index(vcpu), sint);
}

void hyperv_synic_eoi(struct vcpu *vcpu, u8 vector)
{
	struct hv_synic *synic = &hv_vcpu(vcpu)->synic;

	for (u32 i = 0; i < HV_NR_SINTS; i++)
		if (sint_vector(sint_read(synic, i)) == vector)
			sint_acked(vcpu, i);
}

/* ---- messages ---------------------------------------------------------------------------- */

struct hv_message {
	u32 type;		/* 0: the slot is free */
	u8 payload_size;
	u8 flags;
#define HV_MESSAGE_PENDING BIT(0)
	u8 reserved[2];
	u64 sender;
	u64 payload[3];		/* of 240 bytes */
};
#define HV_MESSAGE_SLOT 256

static int message_error(void)
{
	if (!host_kicked)
		return -EFAULT;
	host_kicked = false;
	return -EAGAIN;
}

int hv_synic_send(struct vcpu *vcpu, u32 sint, u32 type, const u64 payload[3], bool drop_if_busy)
{
	struct hv_synic *synic = &hv_vcpu(vcpu)->synic;
	gpa_t slot = (synic->msg_page & PAGE_MASK) + sint * HV_MESSAGE_SLOT;
	struct hv_message msg = { .type = type, .payload_size = sizeof(msg.payload) };
	u8 flags = HV_MESSAGE_PENDING;
	u32 there;
	int r;

	if (!(synic->msg_page & HV_PAGE_ENABLE))
		return -ENOENT;
	if (vcpu_read_guest(vcpu, slot, &there, sizeof(there)))
		return message_error();
	if (there && drop_if_busy)
		return 0;
	/* A guest that frees the slot sees the flag, and ends the interrupt (or writes EOM). */
	if (there) {
		if (vcpu_write_guest(vcpu, slot + offsetof(struct hv_message, flags), &flags, 1))
			return message_error();
		return -EBUSY;
	}
	memcpy(msg.payload, payload, sizeof(msg.payload));
	if (vcpu_write_guest(vcpu, slot, &msg, sizeof(msg)))
		return message_error();
	r = raise_sint(vcpu, synic, sint);
	return r < 0 ? r : r ? 0 : -EFAULT;
}

/* ---- registers ------------------------------------------------------------------------------ */

/* The guest has moved a page: the client, where the other ends of the messages are, hears of it. */
static void synic_exit(struct vcpu *vcpu, u32 msr)
{
	struct hv_vcpu *hv = hv_vcpu(vcpu);

	hv->exit = (struct kvm_hyperv_exit){ .type = KVM_EXIT_HYPERV_SYNIC };
	hv->exit.u.synic.msr = msr;
	hv->exit.u.synic.control = hv->synic.control;
	hv->exit.u.synic.evt_page = hv->synic.evt_page;
	hv->exit.u.synic.msg_page = hv->synic.msg_page;
	hv_request_exit(vcpu, HV_EXIT_RUN);
}

static int page_register_write(struct vcpu *vcpu, u32 msr, u64 *reg, u64 value, bool host)
{
	struct hv_synic *synic = &hv_vcpu(vcpu)->synic;
	bool page = msr != HV_SCONTROL && (value & HV_PAGE_ENABLE);

	if (page && !host && !synic->keep_pages && !hv_clear_page(vcpu, value))
		return 1;
	*reg = value;
	if (!host)
		synic_exit(vcpu, msr);
	return 0;
}

int hv_synic_write(struct vcpu *vcpu, u32 msr, u64 value, bool host)
{
	struct hv_synic *synic = &hv_vcpu(vcpu)->synic;

	/* A client may clear what it never had. */
	if (!atomic_load(&synic->active) && (!host || value))
		return 1;
	switch (msr) {
	case HV_SCONTROL:
		return page_register_write(vcpu, msr, &synic->control, value, host);
	case HV_SIEFP:
		return page_register_write(vcpu, msr, &synic->evt_page, value, host);
	case HV_SIMP:
		return page_register_write(vcpu, msr, &synic->msg_page, value, host);
	case HV_SVERSION:
		if (!host)
			return 1;
		synic->version = value;
		return 0;
	case HV_EOM:
		for (u32 i = 0; atomic_load(&synic->active) && i < HV_NR_SINTS; i++)
			sint_acked(vcpu, i);
		return 0;
	case HV_SINT0 ... HV_SINT15:
		return sint_write(synic, msr - HV_SINT0, value, host);
	}
	return 1;
}

int hv_synic_read(struct vcpu *vcpu, u32 msr, u64 *value, bool host)
{
	struct hv_synic *synic = &hv_vcpu(vcpu)->synic;

	if (!atomic_load(&synic->active) && !host)
		return 1;
	switch (msr) {
	case HV_SCONTROL: *value = synic->control; return 0;
	case HV_SVERSION: *value = synic->version; return 0;
	case HV_SIEFP: *value = synic->evt_page; return 0;
	case HV_SIMP: *value = synic->msg_page; return 0;
	case HV_EOM: *value = 0; return 0;
	case HV_SINT0 ... HV_SINT15: *value = sint_read(synic, msr - HV_SINT0); return 0;
	}
	return 1;
}

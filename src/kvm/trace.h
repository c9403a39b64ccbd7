/* SPDX-License-Identifier: MIT */
/*
 * The trace stream: KVM's tracepoints, off unless SOFTKVM_TRACE or
 * SOFTKVM_TRACE_FILE asks for them. An event that is off costs a load and a branch
 * that is never taken, in C code only: what the engines generate does not depend on tracing.
 *
 *	trace(kvm_pio, vcpu->id, write, port, size, count, value);
 *
 * Up to five numbers; trace_format.c says what they are. -DSOFTKVM_NO_TRACE builds without.
 */
#ifndef SOFTKVM_KVM_TRACE_H
#define SOFTKVM_KVM_TRACE_H

#include "kvm/trace_format.h"

/* Bit per event. Set once, before the first VM exists; cleared when the trace cannot be written. */
extern u64 trace_mask;

/* Read the environment, once; any thread. */
void trace_init(void);
/* Write out what is buffered: a VM goes. */
void trace_flush(void);
/* Any thread, any locks held; not from a signal handler. Leaves errno alone. */
void trace_emit(enum trace_event event, u32 vcpu, const u64 arg[5]) coldpath;

static inline bool trace_enabled(enum trace_event event)
{
#ifdef SOFTKVM_NO_TRACE
	return false;
#else
	return unlikely(__atomic_load_n(&trace_mask, __ATOMIC_RELAXED) & BIT_ULL(event));
#endif
}

#define trace(event, vcpu, ...)                                                 \
	do {                                                                    \
		if (trace_enabled(TRACE_##event))                               \
			trace_emit(TRACE_##event, (vcpu), (const u64[5]){ __VA_ARGS__ }); \
	} while (0)

/* The first bytes of an access, as a number. */
static inline u64 trace_value(const void *data, unsigned len)
{
	u64 value = 0;

	__builtin_memcpy(&value, data, len < 8 ? len : 8);
	return value;
}

#endif

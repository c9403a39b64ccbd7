/* SPDX-License-Identifier: MIT */
/*
 * A trace event as a record, and its text. Shared by the library, which writes
 * both, and softkvm trace decode, which makes text of recorded records.
 *
 * The binary form of a trace is a sequence of these records and nothing else, in the host's byte order.
 */
#ifndef SOFTKVM_KVM_TRACE_FORMAT_H
#define SOFTKVM_KVM_TRACE_FORMAT_H

#include "base/exec.h"
#include "base/types.h"
#include "kvm/exit_reasons.h"

enum trace_event {
#define TRACE_EVENT(name, category) TRACE_##name,
#include "kvm/trace_events.def"
#undef TRACE_EVENT
	NR_TRACE_EVENTS,
	/* Not events: */
	TRACE_HEADER = 0xfffe,	/* a process begins: arg[0] is TRACE_MAGIC, arg[1] the version */
	TRACE_COMM = 0xffff,	/* before a thread's first event: arg[0..1] is its name */
};

#define TRACE_MAGIC 0x3145434152544b53ull /* "SKTRACE1" */
#define TRACE_VERSION 1

struct trace_record {
	u64 ns;			/* CLOCK_MONOTONIC */
	u32 pid, tid;
	u16 event;		/* enum trace_event */
	u16 cpu;
	u32 vcpu;
	u64 arg[5];
};
_Static_assert(sizeof(struct trace_record) == 64, "the format of files");

/* "KVM_EXIT_IO"; NULL for a number without a name. */
const char *exit_reason_name(u64 reason);
/* "EXEC_EXIT": why the engine stopped. */
const char *exec_name(enum exec r);
/* "kvm_entry"; NULL for no event. */
const char *trace_event_name(unsigned event);
const char *trace_event_category(unsigned event);	/* "exit" */
/* What stands after the event's name. The length, as snprintf(). */
int trace_event_text(const struct trace_record *r, char *buf, size_t size);
/* A whole line in ftrace's form, with its newline; comm: the thread's name. At most TRACE_LINE_MAX. */
#define TRACE_LINE_MAX 512
int trace_line(const struct trace_record *r, const char *comm, char *buf);

#endif

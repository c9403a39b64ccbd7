/* SPDX-License-Identifier: MIT */
/* Names and texts of trace events, as KVM's own tracepoints print them. */
#include "kvm/trace_format.h"

#include <ctype.h>
#include <errno.h>
#include <stdio.h>
#include <string.h>

#include "kvm/kvm_abi.h"

/* A value without a name is an error, not a number in somebody's trace. */
#pragma GCC diagnostic error "-Wswitch"

#define EXIT_REASON(name, number) _Static_assert(sizeof(#name) > 1, "exit reason " #number " needs a name");
#include "kvm/exit_reasons.def"
#undef EXIT_REASON

enum exit_reason_order {
#define EXIT_REASON(name, number) ORDER_##name,
#include "kvm/exit_reasons.def"
#undef EXIT_REASON
};
#define EXIT_REASON(name, number) _Static_assert((int)ORDER_##name == (number), "a gap before " #name);
#include "kvm/exit_reasons.def"
#undef EXIT_REASON
_Static_assert(NR_EXIT_REASONS <= EXIT_REASON_BUCKETS, "a bucket for every reason");
/* The system's header and the list agree where both have a value; the newest stands for those before it. */
_Static_assert(NAMED_KVM_EXIT_NOTIFY == KVM_EXIT_NOTIFY && NAMED_KVM_EXIT_X86_WRMSR == KVM_EXIT_X86_WRMSR &&
	       NAMED_KVM_EXIT_MEMORY_FAULT == KVM_EXIT_MEMORY_FAULT, "the ABI's numbers");

const char *exit_reason_name(u64 reason)
{
	if (reason >= NR_EXIT_REASONS)
		return NULL;
	switch ((enum kvm_exit_reason)reason) {
#define EXIT_REASON(name, number) case NAMED_KVM_EXIT_##name: return "KVM_EXIT_" #name;
#include "kvm/exit_reasons.def"
#undef EXIT_REASON
	case NR_EXIT_REASONS:
		break;
	}
	return NULL;
}

const char *exec_name(enum exec r)
{
	switch (r) {
#define NAME(value) case value: return #value;
	NAME(EXEC_OK)
	NAME(EXEC_END)
	NAME(EXEC_BRANCH)
	NAME(EXEC_FAULT)
	NAME(EXEC_EXIT)
	NAME(EXEC_RETRY)
	NAME(EXEC_EFAULT)
	NAME(EXEC_UNHANDLED)
#undef NAME
	}
	return NULL;
}

static const char *const event_names[] = {
#define TRACE_EVENT(name, category) #name,
#include "kvm/trace_events.def"
#undef TRACE_EVENT
};

const char *trace_event_name(unsigned event)
{
	return event < NR_TRACE_EVENTS ? event_names[event] : NULL;
}

#define CATEGORY_EXIT "exit"
#define CATEGORY_IO "io"
#define CATEGORY_CPU "cpu"
#define CATEGORY_EVENT "event"
#define CATEGORY_MMU "mmu"
#define CATEGORY_RING "ring"

static const char *const event_categories[] = {
#define TRACE_EVENT(name, category) CATEGORY_##category,
#include "kvm/trace_events.def"
#undef TRACE_EVENT
};

const char *trace_event_category(unsigned event)
{
	return event < NR_TRACE_EVENTS ? event_categories[event] : NULL;
}

/* A name, or the number in hex: a record may come from a newer SoftKVM, or be damaged. */
static const char *named(const char *name, u64 number, char *buf, size_t size)
{
	if (name)
		return name;
	snprintf(buf, size, "0x%llx", (unsigned long long)number);
	return buf;
}

static const char *exception_name(u64 vector, char *buf, size_t size)
{
	static const char *const names[] = {
		"#DE", "#DB", NULL, "#BP", "#OF", "#BR", "#UD", "#NM", "#DF", NULL, "#TS", "#NP",
		"#SS", "#GP", "#PF", NULL, "#MF", "#AC", "#MC", "#XM", "#VE", "#CP",
	};

	return named(vector < ARRAY_SIZE(names) ? names[vector] : NULL, vector, buf, size);
}

static int userspace_exit_text(const struct trace_record *r, char *buf, size_t size)
{
	s64 err = -(s64)r->arg[1];
	char number[24];

	if (err)
		return snprintf(buf, size, "reason %s (%lld)", err == EINTR ? "restart" : "error", (long long)err);
	return snprintf(buf, size, "reason %s (%llu)",
			named(exit_reason_name(r->arg[0]), r->arg[0], number, sizeof(number)),
			(unsigned long long)r->arg[0]);
}

int trace_event_text(const struct trace_record *r, char *buf, size_t size)
{
	static const char *const mmio[] = { "unsatisfied-read", "read", "write" };
	char number[24], error[24] = "";
	unsigned long long a[5];

	for (unsigned i = 0; i < ARRAY_SIZE(a); i++)
		a[i] = r->arg[i];
	if (r->event >= NR_TRACE_EVENTS)
		return snprintf(buf, size, "%llx %llx %llx %llx %llx", a[0], a[1], a[2], a[3], a[4]);
	switch ((enum trace_event)r->event) {
	case TRACE_kvm_entry: /* rip, immediate exit */
		return snprintf(buf, size, "vcpu %u, rip 0x%llx%s", r->vcpu, a[0], a[1] ? "[immediate exit]" : "");
	case TRACE_kvm_exit: /* enum exec, rip, info1, info2, interrupt << 32 | error code */
		return snprintf(buf, size, "vcpu %u reason %s rip 0x%llx info1 0x%016llx info2 0x%016llx "
				"intr_info 0x%08x error_code 0x%08x", r->vcpu,
				named(a[0] <= EXEC_UNHANDLED ? exec_name((enum exec)a[0]) : NULL, a[0], number,
				      sizeof(number)),
				a[1], a[2], a[3], (u32)(a[4] >> 32), (u32)a[4]);
	case TRACE_kvm_userspace_exit: /* reason, 0 or -errno */
		return userspace_exit_text(r, buf, size);
	case TRACE_kvm_pio: /* write, port, size, count, value */
		return snprintf(buf, size, "pio_%s at 0x%llx size %llu count %llu val 0x%llx %s",
				a[0] ? "write" : "read", a[1], a[2], a[3], a[4], a[3] > 1 ? "(...)" : "");
	case TRACE_kvm_mmio: /* kind, length, gpa, value */
		return snprintf(buf, size, "mmio %s len %llu gpa 0x%llx val 0x%llx",
				named(a[0] < ARRAY_SIZE(mmio) ? mmio[a[0]] : NULL, a[0], number, sizeof(number)),
				a[1], a[2], a[3]);
	case TRACE_kvm_msr: /* write, index, value, #GP */
		return snprintf(buf, size, "msr_%s %llx = 0x%llx%s", a[0] ? "write" : "read", a[1], a[2],
				a[3] ? " (#GP)" : "");
	case TRACE_kvm_cpuid: /* function << 32 | index, eax, ebx, ecx, edx */
		return snprintf(buf, size, "func %llx idx %llx rax %llx rbx %llx rcx %llx rdx %llx, cpuid entry %s",
				a[0] >> 32, a[0] & 0xffffffff, a[1] & 0xffffffff, a[2], a[3], a[4],
				a[1] >> 32 ? "found" : "not found");
	case TRACE_kvm_hypercall: /* nr, four arguments */
		return snprintf(buf, size, "nr 0x%llx a0 0x%llx a1 0x%llx a2 0x%llx a3 0x%llx", a[0], a[1], a[2],
				a[3], a[4]);
	case TRACE_kvm_inj_virq: /* vector, soft, reinjected */
		return snprintf(buf, size, "%s 0x%llx%s", a[1] ? "Soft/INTn" : "IRQ", a[0],
				a[2] ? " [reinjected]" : "");
	case TRACE_kvm_inj_exception: /* vector, has error code, error code, reinjected */
		if (a[1])
			snprintf(error, sizeof(error), " (0x%llx)", a[2]);
		return snprintf(buf, size, "%s%s%s", exception_name(a[0], number, sizeof(number)), error,
				a[3] ? " [reinjected]" : "");
	case TRACE_kvm_set_irq: /* gsi, level, source */
		return snprintf(buf, size, "gsi %llu level %llu source %llu", a[0], a[1], a[2]);
	case TRACE_kvm_vcpu_wakeup: /* ns, waited, valid */
		return snprintf(buf, size, "%s time %llu ns, polling %s", a[1] ? "wait" : "poll", a[0],
				a[2] ? "valid" : "invalid");
	case TRACE_kvm_smm_transition: /* entering, SMBASE */
		return snprintf(buf, size, "vcpu %u: %s SMM, smbase 0x%llx", r->vcpu, a[0] ? "entering" : "leaving", a[1]);
	case TRACE_kvm_page_fault: /* rip, address, error code */
		return snprintf(buf, size, "vcpu %u rip 0x%llx address 0x%016llx error_code 0x%llx", r->vcpu, a[0],
				a[1], a[2]);
	case TRACE_kvm_dirty_ring_push: /* dirty index, reset index, slot, offset */
		return snprintf(buf, size, "ring %u: dirty 0x%llx reset 0x%llx slot %llu offset 0x%llx (used %u)",
				r->vcpu, a[0], a[1], a[2], a[3], (u32)(a[0] - a[1]));
	case TRACE_kvm_dirty_ring_reset: /* dirty index, reset index */
		return snprintf(buf, size, "ring %u: dirty 0x%llx reset 0x%llx (used %u)", r->vcpu, a[0], a[1],
				(u32)(a[0] - a[1]));
	case TRACE_kvm_dirty_ring_exit:
		return snprintf(buf, size, "vcpu %u", r->vcpu);
	case NR_TRACE_EVENTS:
	case TRACE_HEADER:
	case TRACE_COMM:
		break;
	}
	return snprintf(buf, size, "?");
}

int trace_line(const struct trace_record *r, const char *comm, char *buf)
{
	const char *name = trace_event_name(r->event);
	char clean[17], number[24];
	int i, n;

	/* ftrace: names are 16 columns, right-aligned; nothing in them may break the line. */
	for (i = 0; i < 16 && comm[i]; i++)
		clean[i] = isgraph((unsigned char)comm[i]) || comm[i] == ' ' ? comm[i] : '.';
	clean[i] = '\0';
	n = snprintf(buf, TRACE_LINE_MAX, "%16s-%-7u [%03u] ..... %5llu.%06llu: %s: ", clean, r->tid, r->cpu,
		     (unsigned long long)r->ns / 1000000000, (unsigned long long)r->ns / 1000 % 1000000,
		     named(name, r->event, number, sizeof(number)));
	n += trace_event_text(r, buf + n, TRACE_LINE_MAX - n - 1);
	if (n > TRACE_LINE_MAX - 2)
		n = TRACE_LINE_MAX - 2;
	buf[n++] = '\n';
	return n;
}

/* SPDX-License-Identifier: MIT */
/*
 * SOFTKVM_DBT_DUMP=DIRECTORY[,ADDRESS[:LENGTH]]: every translation of a block with bytes in
 * [ADDRESS, ADDRESS + LENGTH) (default: 1 byte; without an address: every block) is appended to
 * DIRECTORY/softkvm-PID.blocks, each guest instruction beside the host instructions it became. Out of
 * line follows what the straight path rarely needs: look-ups that missed, ways out.
 */
#include <limits.h>
#include <pthread.h>
#include <stdarg.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <unistd.h>

#include "base/log.h"
#include "x86/dbt/watch.h"

#define GUEST_WIDTH 48
#define TEXT_SIZE (1u << 20)	/* more than the longest block's */

/* Written once, under `once`. */
static struct {
	char path[PATH_MAX];	/* empty: not asked for */
	u64 start, end;		/* of the addresses of interest */
} dump;
static pthread_once_t once = PTHREAD_ONCE_INIT;

struct text {
	char *buf;
	size_t used;
};

static void put(struct text *t, const char *fmt, ...)
{
	va_list ap;
	int n;

	va_start(ap, fmt);
	n = vsnprintf(t->buf + t->used, TEXT_SIZE - t->used, fmt, ap);
	va_end(ap);
	if (n > 0 && t->used + n < TEXT_SIZE)
		t->used += n;
}

/* ---- the environment ---------------------------------------------------------------------- */

/* ",ADDRESS[:LENGTH]" or nothing */
static bool parse_range(const char *s)
{
	u64 length = 1;
	char *end;

	dump.end = ~0ull;
	if (!*s)
		return true;
	dump.start = strtoull(s + 1, &end, 0);
	if (end == s + 1 || (*end && *end != ':'))
		return false;
	if (*end) {
		s = end;
		length = strtoull(s + 1, &end, 0);
		if (end == s + 1 || *end || !length)
			return false;
	}
	if (dump.start + length > dump.start)
		dump.end = dump.start + length;
	return true;
}

static void parse(void)
{
	const char *s = getenv("SOFTKVM_DBT_DUMP");
	char name[PATH_MAX];
	int len;

	if (!s || !*s)
		return;
	len = strcspn(s, ",");
	if (!parse_range(s + len)) {
		log_error("SOFTKVM_DBT_DUMP=%s is not DIRECTORY[,ADDRESS[:LENGTH]]; nothing is dumped", s);
		return;
	}
	if (snprintf(name, sizeof(name), "%.*s/softkvm-%d.blocks", len, s, (int)getpid()) < PATH_MAX &&
	    report_create(name, "SOFTKVM_DBT_DUMP"))
		strcpy(dump.path, name);
}

bool dump_wanted(u64 va, u32 len)
{
	pthread_once(&once, parse);
	return unlikely(*dump.path) && va + len > dump.start && va < dump.end;
}

/* ---- the text ----------------------------------------------------------------------------------- */

struct disassembler {
	ZydisDecoder decoder;
	ZydisFormatter formatter;
};

/* The instruction at code, as text; its length, at least 1. */
static unsigned disassemble(const struct disassembler *d, const u8 *code, size_t len, u64 at, char *buf, size_t size)
{
	ZydisDecodedOperand ops[ZYDIS_MAX_OPERAND_COUNT];
	ZydisDecodedInstruction zi;

	if (ZYAN_FAILED(ZydisDecoderDecodeFull(&d->decoder, code, len, &zi, ops)) ||
	    ZYAN_FAILED(ZydisFormatterFormatInstruction(&d->formatter, &zi, ops, zi.operand_count_visible, buf, size, at,
							NULL))) {
		snprintf(buf, size, "(0x%02x)", *code);
		return 1;
	}
	return zi.length;
}

/* Host code in [from, to) beside one line of the guest's. */
static void put_host(struct text *t, const struct disassembler *d, const struct dbt *dbt, u32 from, u32 to, const char *guest)
{
	char host[200];

	if (from >= to && *guest)
		put(t, "%s\n", guest);
	while (from < to) {
		unsigned n = disassemble(d, dbt->mem.rw + from, to - from, from, host, sizeof(host));

		put(t, "%-*s | +%05x  %s\n", GUEST_WIDTH, guest, from, host);
		guest = "";
		from += n;
	}
}

static void put_block(struct text *t, const struct vcpu *vcpu, const struct dbt_block *b, const u8 *bytes,
		      const u32 *starts, unsigned nr)
{
	const struct dbt *dbt = vcpu->arch.dbt;
	u32 begin = dbt_block_begin(b), off = 0;
	char guest[200], line[260];
	struct disassembler d;

	ZydisDecoderInit(&d.decoder, ZYDIS_MACHINE_MODE_LONG_64, ZYDIS_STACK_WIDTH_64);
	ZydisFormatterInit(&d.formatter, ZYDIS_FORMATTER_STYLE_INTEL);
	put(t, "block 0x%llx, guest-physical 0x%llx, context %u, vCPU %u: %u instructions, %u bytes -> %u + %u bytes at 0x%lx + 0x%x\n",
	    (unsigned long long)(b->page + b->va), (unsigned long long)b->gpa, b->ctx, vcpu->id, nr, b->len,
	    b->code_end - begin, b->cold_end - b->cold, (unsigned long)dbt->mem.rx, begin);
	put(t, "entries: flags saved +%05x (+%05x looks at requests), flags in the host's +%05x (+%05x)\n", b->slot,
	    b->slot_poll, b->host, b->host_poll);
	if (begin < b->main)
		put_host(t, &d, dbt, begin, b->main, "");
	for (unsigned i = 0; i < nr; i++, off %= b->len) {
		unsigned n = disassemble(&d, bytes + off, b->len - off, b->page + b->va + off, guest, sizeof(guest));

		snprintf(line, sizeof(line), "%llx  %s", (unsigned long long)(b->page + b->va + off), guest);
		put_host(t, &d, dbt, starts[i], starts[i + 1], line);
		off += n;
	}
	put_host(t, &d, dbt, starts[nr], b->code_end, starts[nr] < b->code_end ? "to other pages" : "");
	put_host(t, &d, dbt, b->cold, b->cold_end, "out of line");
	put(t, "\n");
}

void dump_block(struct vcpu *vcpu, const struct dbt_block *b, const u8 *bytes, const u32 *starts, unsigned nr)
{
	struct text t = { .buf = malloc(TEXT_SIZE) };

	if (!t.buf)
		return;
	put_block(&t, vcpu, b, bytes, starts, nr);
	report_append(dump.path, t.buf, t.used);
	free(t.buf);
}

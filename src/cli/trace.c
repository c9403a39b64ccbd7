/* SPDX-License-Identifier: MIT */
/*
 * softkvm trace: record what a program's VMs do, and give names to the numbers in
 * recorded traces, of SoftKVM or of a kernel's KVM.
 *
 * Decoding replaces a number by a name where the kernel would have printed the name, had it known
 * it, and changes nothing else: lines it does not understand pass byte for byte.
 */
#include "cli/cli.h"

#include <ctype.h>
#include <errno.h>
#include <getopt.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

#include "kvm/trace_format.h"

struct exit_code {
	u64 value;
	const char *name;
};

#define EXIT_NAME(value, name) { value, name },
static const struct exit_code vmx_codes[] = {
#include "cli/vmx_exits.def"
};
static const struct exit_code svm_codes[] = {
#include "cli/svm_exits.def"
};
static const struct exit_code riscv_codes[] = {
#include "cli/riscv_causes.def"
};
static const struct exit_code ppc_codes[] = {
#include "cli/ppc_book3s_traps.def"
};
#undef EXIT_NAME
static const struct exit_code userspace_codes[] = {
#define EXIT_REASON(name, number) { number, "KVM_EXIT_" #name },
#include "kvm/exit_reasons.def"
#undef EXIT_REASON
};

#define VMX_FAILED_VMENTRY 0x80000000u

/* A number to name: after a line has had "event", behind "key". No event: anywhere. */
static const struct isa {
	const char *name;
	const struct exit_code *codes;
	unsigned nr;
	bool vmx;
	struct {
		const char *event, *key;
	} places[3];
} isas[] = {
	{ "vmx", vmx_codes, ARRAY_SIZE(vmx_codes), true,
	  { { "kvm_exit:", " reason " }, { "kvm_nested_vmexit:", " reason " } } },
	{ "svm", svm_codes, ARRAY_SIZE(svm_codes), false,
	  { { "kvm_exit:", " reason " }, { "kvm_nested_vmexit:", " reason " } } },
	{ "userspace", userspace_codes, ARRAY_SIZE(userspace_codes), false, { { "kvm_userspace_exit:", " reason " } } },
	{ "riscv", riscv_codes, ARRAY_SIZE(riscv_codes), false,
	  { { "", "SCAUSE:" }, { "", "SCAUSE: " } } },
	{ "ppc-book3s", ppc_codes, ARRAY_SIZE(ppc_codes), false,
	  { { "", "trap=" }, { "kvm_exit:", "exit=" } } },
};
static const struct isa *const userspace = &isas[2];

static const struct isa *isa_find(const char *name)
{
	for (unsigned i = 0; i < ARRAY_SIZE(isas); i++)
		if (!strcmp(isas[i].name, name))
			return &isas[i];
	return NULL;
}

static const char *code_name(const struct isa *isa, u64 value)
{
	for (unsigned i = 0; i < isa->nr; i++)
		if (isa->codes[i].value == value)
			return isa->codes[i].name;
	return NULL;
}

/* "0x1f" at s, and nothing that makes it part of something else behind it: its length, or 0. */
static size_t hex_number(const char *s, u64 *value)
{
	char *end;

	if (s[0] != '0' || s[1] != 'x' || !isxdigit((unsigned char)s[2]))
		return 0;
	errno = 0;
	*value = strtoull(s, &end, 16);
	return errno || isalnum((unsigned char)*end) || *end == '_' ? 0 : end - s;
}

/*
 * The line up to its NUL with one number replaced. Returns what follows the number, and prints
 * what precedes it and the name; or NULL, having printed nothing.
 */
static const char *replace(const struct isa *isa, const char *event, const char *key, const char *line)
{
	const char *at = strstr(line, event), *name, *flags = "";
	u64 value;
	size_t len;

	/* The key may begin with the blank that ends the event's name. */
	at = at ? strstr(at, key) : NULL;
	if (!at)
		return NULL;
	at += strlen(key);
	len = hex_number(at, &value);
	if (!len)
		return NULL;
	name = code_name(isa, value);
	if (!name && isa->vmx && (value & VMX_FAILED_VMENTRY)) {
		name = code_name(isa, value & 0xffff);
		flags = " FAILED_VMENTRY";
	}
	if (!name)
		return NULL;
	fwrite(line, 1, at - line, stdout);
	printf("%s%s", name, flags);
	return at + len;
}

/* At most one number of a line is a reason. */
static const char *decode_line(const struct isa *isa, const char *line)
{
	const char *rest = NULL;

	for (unsigned i = 0; isa && i < ARRAY_SIZE(isa->places) && !rest && isa->places[i].key; i++)
		rest = replace(isa, isa->places[i].event, isa->places[i].key, line);
	if (!rest && isa != userspace)
		rest = replace(userspace, userspace->places[0].event, userspace->places[0].key, line);
	return rest ? rest : line;
}

/*
 * A stream whose first bytes have been looked at. No seeking: it may be a pipe.
 */
struct input {
	FILE *file;
	char head[sizeof(struct trace_record)];
	size_t head_len, head_pos;
	char *line;
	size_t line_size;
};

/* The next line, with its newline if it has one, NUL-terminated; its length, 0 at the end. */
static size_t next_line(struct input *in)
{
	char part[sizeof(in->head)];
	size_t n = 0;
	ssize_t more = 0;
	char *longer;

	while (in->head_pos < in->head_len) {
		part[n++] = in->head[in->head_pos++];
		if (part[n - 1] == '\n')
			break;
	}
	if (!n || part[n - 1] != '\n')
		more = getline(&in->line, &in->line_size, in->file);
	if (more < 0)
		more = 0;
	if (!n)
		return more;
	longer = malloc(n + more + 1);
	if (!longer)
		return 0;
	memcpy(longer, part, n);
	if (more)
		memcpy(longer + n, in->line, more);
	longer[n + more] = '\0';
	free(in->line);
	in->line = longer;
	in->line_size = n + more + 1;
	return n + more;
}

static void decode_text(const struct isa *isa, struct input *in)
{
	size_t n;

	while ((n = next_line(in))) {
		const char *rest = decode_line(isa, in->line);

		fwrite(rest, 1, in->line + n - rest, stdout);
	}
}

/* ---- our own binary form ----------------------------------------------------------------- */

#define MAX_THREADS 4096

struct thread {
	u32 tid;
	char comm[17];
};

static bool is_binary(const struct input *in)
{
	struct trace_record r;

	memcpy(&r, in->head, sizeof(r));
	return in->head_len == sizeof(r) && r.event == TRACE_HEADER && r.arg[0] == TRACE_MAGIC;
}

static void decode_binary(FILE *file)
{
	struct thread *threads = calloc(MAX_THREADS, sizeof(*threads));
	struct trace_record r;
	char line[TRACE_LINE_MAX];

	if (!threads)
		return;
	printf("# tracer: nop\n#\n");
	while (fread(&r, sizeof(r), 1, file) == 1) {
		struct thread *t = &threads[r.tid % MAX_THREADS];

		if (r.event == TRACE_COMM) {
			t->tid = r.tid;
			memcpy(t->comm, r.arg, 16);
		} else if (r.event != TRACE_HEADER) {
			fwrite(line, 1, trace_line(&r, t->tid == r.tid ? t->comm : "<...>", line), stdout);
		}
	}
	free(threads);
}

/* 0, or 1 after saying why. */
static int decode(const struct isa *isa, const char *path)
{
	struct input in = { .file = strcmp(path, "-") ? fopen(path, "re") : stdin };
	int err;

	if (!in.file) {
		complain("cannot read %s: %s", path, strerror(errno));
		return 1;
	}
	errno = 0;
	in.head_len = fread(in.head, 1, sizeof(in.head), in.file);
	if (is_binary(&in))
		decode_binary(in.file);
	else
		decode_text(isa, &in);
	err = ferror(in.file) ? errno : 0;
	free(in.line);
	if (in.file != stdin)
		fclose(in.file);
	if (err)
		complain("cannot read %s: %s", path, strerror(err));
	return err != 0;
}

/* ---- the command ----------------------------------------------------------------------------- */

static const char usage[] =
"Usage: softkvm trace record [-e LIST] [-o FILE] [-b] [--] PROGRAM [ARGUMENT]...\n"
"       softkvm trace decode [--isa=ISA] [FILE]...\n"
"\n"
"record: run PROGRAM under softkvm and trace its VMs.\n"
"  -e LIST    events or categories: all, exit, io, cpu, event, mmu, ring (default: all)\n"
"  -o FILE    where to (default: standard error); \"%p\" becomes the process\n"
"  -b         records instead of lines, for decode\n"
"\n"
"decode: print traces with names for numeric exit reasons. Recorded records become lines.\n"
"  --isa=ISA  whose kvm_exit reasons: vmx, svm, userspace, riscv, ppc-book3s.\n"
"             Those of kvm_userspace_exit are named in any case.\n";

static int usage_error(void)
{
	fputs("Try \"softkvm trace --help\".\n", stderr);
	return EXIT_USAGE;
}

static int unknown_isa(const char *name)
{
	fprintf(stderr, "softkvm: unknown --isa=%s; it is one of", name);
	for (unsigned i = 0; i < ARRAY_SIZE(isas); i++)
		fprintf(stderr, "%s %s", i ? "," : "", isas[i].name);
	fputc('\n', stderr);
	return EXIT_USAGE;
}

static int main_decode(int argc, char **argv)
{
	static const struct option options[] = {
		{ "isa", required_argument, NULL, 'i' },
		{ "help", no_argument, NULL, 'h' },
		{ NULL, 0, NULL, 0 },
	};
	const struct isa *isa = NULL;
	int c, r = 0;

	optind = 0;
	while ((c = getopt_long(argc, argv, "h", options, NULL)) != -1) {
		switch (c) {
		case 'i':
			isa = isa_find(optarg);
			if (!isa)
				return unknown_isa(optarg);
			break;
		case 'h':
			fputs(usage, stdout);
			return 0;
		default:
			return usage_error();
		}
	}
	if (optind >= argc)
		return decode(isa, "-");
	for (; optind < argc; optind++)
		r |= decode(isa, argv[optind]);
	return r;
}

static int main_record(int argc, char **argv)
{
	const char *list = "all", *file = NULL;
	bool binary = false;
	int c;

	optind = 0;
	while ((c = getopt(argc, argv, "+e:o:bh")) != -1) {
		switch (c) {
		case 'e':
			list = optarg;
			break;
		case 'o':
			file = optarg;
			break;
		case 'b':
			binary = true;
			break;
		case 'h':
			fputs(usage, stdout);
			return 0;
		default:
			return usage_error();
		}
	}
	if (optind >= argc || (binary && !file)) {
		complain(optind >= argc ? "no program given" : "-b needs -o FILE");
		return usage_error();
	}
	setenv("SOFTKVM_TRACE", list, 1);
	setenv("SOFTKVM_TRACE_FORMAT", binary ? "binary" : "text", 1);
	if (file)
		setenv("SOFTKVM_TRACE_FILE", file, 1);
	else
		unsetenv("SOFTKVM_TRACE_FILE");
	return program_run(argv + optind, false, false);
}

int trace_main(int argc, char **argv)
{
	if (argc > 1 && !strcmp(argv[1], "decode"))
		return main_decode(argc - 1, argv + 1);
	if (argc > 1 && !strcmp(argv[1], "record"))
		return main_record(argc - 1, argv + 1);
	if (argc > 1 && (!strcmp(argv[1], "--help") || !strcmp(argv[1], "-h"))) {
		fputs(usage, stdout);
		return 0;
	}
	complain("trace is followed by record or decode");
	return usage_error();
}

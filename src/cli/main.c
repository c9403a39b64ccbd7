/* SPDX-License-Identifier: MIT */
#include "cli/cli.h"

#include <errno.h>
#include <getopt.h>
#include <limits.h>
#include <stdarg.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <unistd.h>

#include "softkvm.h"

static const char usage[] =
"Usage: softkvm [OPTION]... [run] [--] PROGRAM [ARGUMENT]...\n"
"       softkvm doctor\n"
"       softkvm check [FILE]...\n"
"       softkvm stat [OPTION]... [PROGRAM [ARGUMENT]...]\n"
"       softkvm trace record|decode [OPTION]... ...\n"
"\n"
"Run PROGRAM with KVM in software: it finds a /dev/kvm that needs no hardware\n"
"virtualization. \"doctor\" tells what this machine has, \"check\" whether a program\n"
"finds what it needs, \"stat\" what running VMs do, \"trace\" every step of them.\n"
"\n"
"  -H, --prefer-hardware     use the machine's own KVM if it really works\n"
"  -v, --verbose             tell what happens (SOFTKVM_LOG=1)\n"
"      --print-capabilities  describe this SoftKVM as JSON\n"
"  -h, --help                show this\n"
"  -V, --version             show the version\n"
"\n"
"softkvm(1) has the environment variables.\n";

enum { OPT_CAPABILITIES = 256 };

static const struct option options[] = {
	{ "prefer-hardware", no_argument, NULL, 'H' },
	{ "verbose", no_argument, NULL, 'v' },
	{ "print-capabilities", no_argument, NULL, OPT_CAPABILITIES },
	{ "help", no_argument, NULL, 'h' },
	{ "version", no_argument, NULL, 'V' },
	{ NULL, 0, NULL, 0 },
};

void complain(const char *fmt, ...)
{
	va_list ap;

	fputs("softkvm: ", stderr);
	va_start(ap, fmt);
	vfprintf(stderr, fmt, ap);
	va_end(ap);
	fputc('\n', stderr);
}

int program_run(char **argv, bool prefer_hardware, bool verbose)
{
	char path[PATH_MAX], preload[PATH_MAX];
	int r = program_find(argv[0], path, sizeof(path));

	if (r)
		return r;
	if (prefer_hardware && hardware_try().step == HW_WORKS) {
		if (verbose)
			complain("using this machine's own KVM");
	} else {
		r = program_check(path);
		if (!r)
			r = preload_find(preload, sizeof(preload));
		if (r)
			return r;
		if (preload_install(preload)) {
			complain("cannot set LD_PRELOAD: %s", strerror(errno));
			return EXIT_NOT_EXECUTABLE;
		}
	}
	if (verbose)
		setenv("SOFTKVM_LOG", "1", 0);
	/* execvp(): files without a header are left to the shell. */
	execvp(path, argv);
	r = errno == ENOENT ? EXIT_NOT_FOUND : EXIT_NOT_EXECUTABLE;
	complain("cannot run %s: %s", path, strerror(errno));
	return r;
}

static int print_capabilities(void)
{
	if (!softkvm_print_capabilities(STDOUT_FILENO))
		return 0;
	complain("cannot write: %s", strerror(errno));
	return 1;
}

/* Output that did not arrive is a failure (softkvm --help >/dev/full). */
static int finish(int status)
{
	if (fflush(stdout) || ferror(stdout)) {
		complain("cannot write: %s", strerror(errno));
		return 1;
	}
	return status;
}

static int usage_error(const char *what)
{
	if (what)
		complain("%s", what);
	fputs("Try \"softkvm --help\".\n", stderr);
	return EXIT_USAGE;
}

int main(int argc, char **argv)
{
	bool prefer_hardware = false, verbose = false, dashes;
	int c;

	while ((c = getopt_long(argc, argv, "+HvhV", options, NULL)) != -1) {
		switch (c) {
		case 'H':
			prefer_hardware = true;
			break;
		case 'v':
			verbose = true;
			break;
		case OPT_CAPABILITIES:
			return print_capabilities();
		case 'h':
			fputs(usage, stdout);
			return finish(0);
		case 'V':
			printf("softkvm %s\n", softkvm_version());
			return finish(0);
		default:
			return usage_error(NULL);
		}
	}
	/* After "--" everything is the program's. */
	dashes = optind > 1 && !strcmp(argv[optind - 1], "--");
	if (!dashes && optind < argc && !strcmp(argv[optind], "doctor")) {
		if (optind + 1 < argc)
			return usage_error("doctor takes no arguments");
		return finish(doctor());
	}
	if (!dashes && optind < argc && !strcmp(argv[optind], "check"))
		return finish(check_main(argc - optind, argv + optind, prefer_hardware, verbose));
	if (!dashes && optind < argc && !strcmp(argv[optind], "trace"))
		return finish(trace_main(argc - optind, argv + optind));
	if (!dashes && optind < argc && !strcmp(argv[optind], "stat"))
		return finish(stat_main(argc - optind, argv + optind));
	if (!dashes && optind < argc && !strcmp(argv[optind], "run")) {
		optind++;
		if (optind < argc && !strcmp(argv[optind], "--"))
			optind++;
	}
	if (optind >= argc)
		return usage_error("no program given");
	return program_run(argv + optind, prefer_hardware, verbose);
}

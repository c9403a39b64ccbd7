/* SPDX-License-Identifier: MIT */
/* softkvm(1): run a program on SoftKVM, or tell what this machine has. */
#ifndef SOFTKVM_CLI_CLI_H
#define SOFTKVM_CLI_CLI_H

#include <stddef.h>

#include "base/types.h"

#ifndef SOFTKVM_LIBDIR
#define SOFTKVM_LIBDIR "/usr/local/lib/softkvm"
#endif

/* Exit statuses besides the program's own, as env(1) and sh(1) have them. */
#define EXIT_USAGE 2		/* bad usage, or a program that cannot be run under SoftKVM */
#define EXIT_NOT_EXECUTABLE 126
#define EXIT_NOT_FOUND 127

/* "softkvm: ..." on standard error. */
void complain(const char *fmt, ...) printf_like(1, 2);

/* program.c: find name as execvp() would. 0, EXIT_NOT_FOUND or EXIT_NOT_EXECUTABLE, after saying so. */
int program_find(const char *name, char *path, size_t size);
/* 0 if the dynamic linker of path will load the preload object, else EXIT_*, after saying why not. */
int program_check(const char *path);

/* preload.c: the preload object's absolute path. 0 or EXIT_USAGE, after saying why. */
int preload_find(char *path, size_t size);
/* Put it first in LD_PRELOAD. */
int preload_install(const char *path);

/* hardware.c: where a trial of the machine's own KVM ended. */
enum hardware_step {
	HW_WORKS,
	HW_OPEN,
	HW_VERSION,
	HW_CREATE_VM,
	HW_MEMORY,
	HW_CREATE_VCPU,
	HW_REGISTERS,
	HW_RUN,
	HW_EXIT,	/* KVM_RUN returned, but not as HLT makes it; error holds the exit reason */
	HW_HANG,
	HW_TRIAL,	/* the trial itself failed */
};
struct hardware {
	enum hardware_step step;
	int error;	/* errno of that step */
};
struct hardware hardware_try(void);

/* main.c: become the program. An exit status, after saying why, if that fails. */
int program_run(char **argv, bool prefer_hardware, bool verbose);

/* doctor.c */
int doctor(void);

/* check.c: argv[0] is "check". */
int check_main(int argc, char **argv, bool prefer_hardware, bool verbose);

/* trace.c, stat.c: argv[0] is the command's word. */
int trace_main(int argc, char **argv);
int stat_main(int argc, char **argv);

#endif

/* SPDX-License-Identifier: MIT */
/*
 * How our tests and tools open files that a machine may lack, and say so. One rule, for all of them:
 *
 *	it opens	go on
 *	ENOENT		skip:	"1..0 # SKIP - Cannot open 'PATH': No such file or directory.  HELP"
 *	EACCES		skip:	"1..0 # SKIP - Cannot open 'PATH': Permission denied.  Root required?"
 *	anything else	fail:	"Failed to open 'PATH'", with errno, on standard error
 *
 * Once a plan or a result has been printed, a skip is "ok N # SKIP ..." instead. Exit status: 0 pass,
 * 4 skip, 254 failure. A parameter of a module is looked for only after /dev/kvm has been opened, so that a missing KVM is
 * never reported as a missing parameter.
 */
#ifndef TESTS_LIB_PATHS_H
#define TESTS_LIB_PATHS_H

#include <errno.h>
#include <fcntl.h>
#include <stdarg.h>
#include <stdbool.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <unistd.h>

#define TEST_SKIP 4
#define TEST_FAILURE 254
#define KVM_HELP "Is KVM loaded and enabled?"

static unsigned test_results;	/* printed so far */
static bool test_planned;

/* "1..n", "ok n name", "not ok n name" */
static inline void test_plan(unsigned n)
{
	printf("1..%u\n", n);
	test_planned = true;
}

static inline void test_result(bool pass, const char *name)
{
	printf("%sok %u %s\n", pass ? "" : "not ", ++test_results, name);
}

__attribute__((noreturn, format(printf, 1, 2))) static inline void test_skip(const char *fmt, ...)
{
	va_list ap;

	if (test_results || test_planned)
		printf("ok %u # SKIP - ", ++test_results);
	else
		printf("1..0 # SKIP - ");
	va_start(ap, fmt);
	vprintf(fmt, ap);
	va_end(ap);
	printf("\n");
	fflush(stdout);
	exit(TEST_SKIP);
}

#define TEST_REQUIRE(cond, ...)                                                 \
	do {                                                                    \
		if (!(cond))                                                    \
			test_fail(__FILE__, __LINE__, #cond, errno, __VA_ARGS__); \
	} while (0)

__attribute__((noreturn, format(printf, 5, 6))) static inline void
test_fail(const char *file, int line, const char *cond, int err, const char *fmt, ...)
{
	va_list ap;

	fflush(stdout);
	fprintf(stderr, "%s:%d: failure: %s\n  pid=%d errno=%d - %s\n  ", file, line, cond, (int)getpid(), err,
		strerror(err));
	va_start(ap, fmt);
	vfprintf(stderr, fmt, ap);
	va_end(ap);
	fprintf(stderr, "\n");
	exit(TEST_FAILURE);
}

/* enoent_help: what to do about a file that is not there; NULL or "": nothing to say. */
static inline int open_path_or_skip(const char *path, int flags, const char *enoent_help)
{
	int fd = open(path, flags), err = errno;

	if (fd >= 0)
		return fd;
	if (err == ENOENT)
		test_skip("Cannot open '%s': %s.  %s", path, strerror(err), enoent_help ? enoent_help : "");
	if (err == EACCES)
		test_skip("Cannot open '%s': %s.  %s", path, strerror(err), "Root required?");
	errno = err;
	TEST_REQUIRE(fd >= 0, "Failed to open '%s'", path);
	return -1;
}

static inline int open_kvm_or_skip(int flags)
{
	return open_path_or_skip("/dev/kvm", flags, KVM_HELP);
}

static inline int open_page_idle_or_skip(void)
{
	return open_path_or_skip("/sys/kernel/mm/page_idle/bitmap", O_RDWR, "Is CONFIG_IDLE_PAGE_TRACKING enabled?");
}

/* At most size - 1 bytes of a parameter, NUL-terminated: their number. */
static inline size_t read_param(const char *module, const char *param, char *buf, size_t size)
{
	char path[128];
	ssize_t n;
	int fd;

	close(open_kvm_or_skip(O_RDONLY));
	n = snprintf(path, sizeof(path), "/sys/module/%s/parameters/%s", module, param);
	TEST_REQUIRE(n < (ssize_t)sizeof(path), "The path of parameter %s of %s is longer than %zu bytes", param, module,
		     sizeof(path) - 1);
	fd = open_path_or_skip(path, O_RDONLY, "");
	n = read(fd, buf, size - 1);
	TEST_REQUIRE(n > 0, "Failed to read '%s'", path);
	close(fd);
	buf[n] = '\0';
	return n;
}

static inline bool read_param_bool(const char *module, const char *param)
{
	char value[2];

	read_param(module, param, value, sizeof(value));
	TEST_REQUIRE(value[0] == 'Y' || value[0] == 'N', "Parameter %s of %s is '%s', neither Y nor N", param, module,
		     value);
	return value[0] == 'Y';
}

static inline long read_param_int(const char *module, const char *param)
{
	char value[18], *end;
	size_t n = read_param(module, param, value, sizeof(value));
	long r;

	TEST_REQUIRE(value[n - 1] == '\n', "Parameter %s of %s does not end in a newline: '%s'", param, module, value);
	errno = 0;
	r = strtol(value, &end, 10);
	TEST_REQUIRE(!errno && end == value + n - 1 && end > value, "Parameter %s of %s is no number: '%s'", param, module,
		     value);
	return r;
}

#endif

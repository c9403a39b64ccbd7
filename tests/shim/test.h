/* SPDX-License-Identifier: MIT */
/* One line a case: "ok NAME", "FAIL NAME: where", "skip NAME: why". */
#ifndef TESTS_SHIM_TEST_H
#define TESTS_SHIM_TEST_H

#include <errno.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

static int failures, skipped;
static const char *current;

#define CHECK(cond)                                                             \
	do {                                                                    \
		if (!(cond)) {                                                  \
			printf("FAIL %s: line %d: %s (errno %d)\n", current,    \
			       __LINE__, #cond, errno);                         \
			failures++;                                             \
			return;                                                 \
		}                                                               \
	} while (0)
/* The call fails, and so. */
#define CHECK_ERRNO(call, err)                                                  \
	do {                                                                    \
		errno = 0;                                                      \
		long r_ = (long)(call);                                         \
		if (r_ != -1 || errno != (err)) {                               \
			printf("FAIL %s: line %d: %s = %ld, errno %d, not %s\n", \
			       current, __LINE__, #call, r_, errno, #err);      \
			failures++;                                             \
			return;                                                 \
		}                                                               \
	} while (0)
#define SKIP(why)                                                               \
	do {                                                                    \
		printf("skip %s: %s\n", current, why);                          \
		skipped++;                                                      \
		return;                                                         \
	} while (0)

struct test {
	const char *name;
	void (*fn)(void);
};

static inline int run_tests(const struct test *tests, unsigned nr)
{
	for (unsigned i = 0; i < nr; i++) {
		int before = failures + skipped;

		current = tests[i].name;
		tests[i].fn();
		if (failures + skipped == before)
			printf("ok %s\n", current);
		fflush(stdout);
	}
	return failures != 0;
}
#define RUN_TESTS(tests) run_tests(tests, sizeof(tests) / sizeof((tests)[0]))

#endif

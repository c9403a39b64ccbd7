/* SPDX-License-Identifier: MIT */
/* The smallest test harness: one process a file, one line a failure, exit status 1 if any. */
#ifndef SOFTKVM_TESTS_HOST_TEST_H
#define SOFTKVM_TESTS_HOST_TEST_H

#include <stdio.h>

/* volatile: counted on the right side of a fault that jumps away */
static volatile int host_test_failed, host_test_passed;

#define CHECK(cond)                                                             \
	do {                                                                    \
		if (cond) {                                                     \
			host_test_passed++;                                     \
		} else {                                                        \
			host_test_failed++;                                     \
			fprintf(stderr, "%s:%d: failed: %s\n", __FILE__, __LINE__, #cond); \
		}                                                               \
	} while (0)

static inline int host_test_end(void)
{
	printf("%d passed, %d failed, 0 skipped\n", host_test_passed, host_test_failed);
	return host_test_failed != 0;
}

#endif

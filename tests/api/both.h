/* SPDX-License-Identifier: MIT */
/*
 * For tests of the engine: the program runs itself once with each, and sums up. An engine that
 * is asked for by SOFTKVM_ENGINE is the only one.
 */
#ifndef TESTS_API_BOTH_H
#define TESTS_API_BOTH_H

#include "kvmtest.h"

static inline void both_one(const char *self, const char *engine)
{
	unsigned p, f, s;
	char line[512];
	FILE *out;

	snprintf(line, sizeof(line), "SOFTKVM_ENGINE=%s '%s'", engine, self);
	out = popen(line, "r");
	NEED(out);
	while (fgets(line, sizeof(line), out)) {
		if (sscanf(line, "%u passed, %u failed, %u skipped", &p, &f, &s) == 3) {
			kvmtest_passed += p;
			kvmtest_failed += f;
			kvmtest_skipped += s;
		} else {
			printf("%s: %s", engine, line);
		}
	}
	if (pclose(out) && !kvmtest_failed)
		kvmtest_failed++;
}

static inline int both_engines(const char *self, void (*test)(void))
{
	if (getenv("SOFTKVM_ENGINE")) {
		test();
		return kvmtest_summary();
	}
	both_one(self, "interp");
	both_one(self, "dbt");
	return kvmtest_summary();
}

/* Bytes between two labels of the test program: position-independent guest code. */
#define GUEST_CODE(name, text)                                          \
	extern const uint8_t name[], name##_end[];                      \
	asm(".pushsection .rodata\n" #name ":\n" text "\n" #name "_end:\n.popsection")
#define GUEST_LEN(name) ((size_t)(name##_end - name))

#endif

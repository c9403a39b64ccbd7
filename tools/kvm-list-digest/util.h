/* SPDX-License-Identifier: MIT */
/* One-line messages on stderr; fail() is the only way the program gives up. */
#ifndef KLD_UTIL_H
#define KLD_UTIL_H

#include <stdbool.h>
#include <stddef.h>

#define EXIT_BAD	2

void fail(const char *fmt, ...) __attribute__((noreturn, format(printf, 1, 2)));
void warning(const char *fmt, ...) __attribute__((format(printf, 1, 2)));

/* Progress on stderr: only when it is a terminal, only after the first second. */
void progress_start(const char *what, size_t total, bool quiet);
void progress_at(size_t done);
void progress_end(void);

#endif

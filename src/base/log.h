/* SPDX-License-Identifier: MIT */
/*
 * Messages to the person at the terminal: standard error only, one line each,
 * prefixed "softkvm: ". Safe from any thread, preserves errno; not
 * async-signal-safe unless noted.
 */
#ifndef SOFTKVM_BASE_LOG_H
#define SOFTKVM_BASE_LOG_H

#include "base/types.h"

/* Something the user must know (a VM was killed, a feature cannot work). */
void log_error(const char *fmt, ...) printf_like(1, 2);
/* Shown only with SOFTKVM_LOG=1 or higher. */
void log_info(const char *fmt, ...) printf_like(1, 2);

#endif

/* SPDX-License-Identifier: MIT */
#include <errno.h>
#include <stdarg.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <unistd.h>

#include "base/log.h"

static int log_level(void)
{
	static int level = -1;

	if (level < 0) {
		const char *s = getenv("SOFTKVM_LOG");

		level = s ? atoi(s) : 0;
	}
	return level;
}

static void log_line(const char *fmt, va_list ap)
{
	int saved = errno;
	char line[1024];
	int n = snprintf(line, sizeof(line), "softkvm: ");

	n += vsnprintf(line + n, sizeof(line) - n - 1, fmt, ap);
	if (n > (int)sizeof(line) - 2)
		n = sizeof(line) - 2;
	line[n++] = '\n';
	/* If this fails there is nobody left to tell. */
	n = write(STDERR_FILENO, line, n);
	errno = saved;
}

void log_error(const char *fmt, ...)
{
	va_list ap;

	va_start(ap, fmt);
	log_line(fmt, ap);
	va_end(ap);
}

void log_info(const char *fmt, ...)
{
	va_list ap;

	if (!log_level())
		return;
	va_start(ap, fmt);
	log_line(fmt, ap);
	va_end(ap);
}

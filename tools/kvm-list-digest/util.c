/* SPDX-License-Identifier: MIT */
#include "util.h"

#include <glib.h>
#include <stdarg.h>
#include <stdio.h>
#include <stdlib.h>
#include <unistd.h>

static struct {
	const char *what;
	size_t total;
	gint64 begun, shown;		/* microseconds, monotonic */
	bool on, drawn;
} progress;

/* Names of commits and files come from outside: whatever they hold, one line. */
static void say(const char *prefix, const char *fmt, va_list ap)
{
	char *text = g_strdup_vprintf(fmt, ap);

	progress_end();
	for (char *p = text; *p; p++)
		if ((unsigned char)*p < 0x20 || *p == 0x7f || (unsigned char)*p >= 0x80)
			*p = '?';
	fprintf(stderr, "kvm-list-digest: %s%s\n", prefix, text);
	g_free(text);
}

void fail(const char *fmt, ...)
{
	va_list ap;

	va_start(ap, fmt);
	say("", fmt, ap);
	va_end(ap);
	exit(EXIT_BAD);
}

void warning(const char *fmt, ...)
{
	va_list ap;

	va_start(ap, fmt);
	say("warning: ", fmt, ap);
	va_end(ap);
}

void progress_start(const char *what, size_t total, bool quiet)
{
	progress.what = what;
	progress.total = total;
	progress.begun = g_get_monotonic_time();
	progress.shown = progress.begun + 800 * 1000;
	progress.on = !quiet && total && isatty(STDERR_FILENO);
	progress.drawn = false;
}

void progress_at(size_t done)
{
	gint64 now;

	if (!progress.on)
		return;
	now = g_get_monotonic_time();
	if (now < progress.shown + 200 * 1000)
		return;
	progress.shown = now;
	progress.drawn = true;
	fprintf(stderr, "\r%s: %zu of %zu (%zu%%)\033[K", progress.what, done, progress.total,
		done * 100 / progress.total);
	fflush(stderr);
}

void progress_end(void)
{
	if (progress.on && progress.drawn)
		fputs("\r\033[K", stderr);
	progress.on = false;
}

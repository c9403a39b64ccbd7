/* SPDX-License-Identifier: MIT */
#include "out.h"

#include <errno.h>
#include <fcntl.h>
#include <stdarg.h>
#include <stdio.h>
#include <string.h>
#include <sys/stat.h>
#include <unistd.h>

#include "mime.h"
#include "util.h"

#define CHUNK	(256u << 10)

struct out {
	int fd;
	bool tty;
	GString *buf;
	char *path, *temp;		/* NULL: standard output */
};

struct out *out_open(const char *path)
{
	struct out *o = g_new0(struct out, 1);

	o->fd = STDOUT_FILENO;
	o->buf = g_string_sized_new(CHUNK + 4096);
	if (path) {
		o->path = g_strdup(path);
		o->temp = g_strconcat(path, ".tmp", NULL);
		o->fd = open(o->temp, O_WRONLY | O_CREAT | O_TRUNC | O_NOFOLLOW | O_CLOEXEC, 0666);
		if (o->fd < 0)
			fail("%s: cannot be written: %s", o->temp, strerror(errno));
	}
	o->tty = isatty(o->fd);
	return o;
}

static void out_flush(struct out *o)
{
	const char *p = o->buf->str;
	gsize left = o->buf->len;

	while (left) {
		ssize_t n = write(o->fd, p, left);

		if (n < 0 && errno == EINTR)
			continue;
		if (n < 0)
			fail("%s: cannot be written: %s", o->path ? o->temp : "standard output",
			     strerror(errno));
		p += n;
		left -= n;
	}
	g_string_truncate(o->buf, 0);
}

/* C0, DEL, C1, and the marks that make text run backwards or hide it. */
static bool unsafe(gunichar c)
{
	if (c == '\n' || c == '\t')
		return false;
	return c < 0x20 || (c >= 0x7f && c < 0xa0) || (c >= 0x200b && c <= 0x200f) ||
	       (c >= 0x2028 && c <= 0x202e) || (c >= 0x2060 && c <= 0x2069) || c == 0xfeff;
}

static void append_safe(GString *to, const char *s)
{
	while (*s) {
		const char *next = g_utf8_next_char(s);

		if ((unsigned char)*s >= 0x20 && (unsigned char)*s < 0x7f)
			g_string_append_c(to, *s);
		else if (!unsafe(g_utf8_get_char(s)))
			g_string_append_len(to, s, next - s);
		s = next;
	}
}

static void grown(struct out *o)
{
	if (o->buf->len >= CHUNK)
		out_flush(o);
}

/* On a terminal every byte takes this way, so nothing can slip past a format. */
void out_raw(struct out *o, const char *p, gsize len)
{
	if (o->tty) {
		GString *clean = text_clean(p, len);

		append_safe(o->buf, clean->str);
		g_string_free(clean, TRUE);
	} else {
		g_string_append_len(o->buf, p, len);
	}
	grown(o);
}

void out_str(struct out *o, const char *s)
{
	out_raw(o, s, strlen(s));
}

void out_fmt(struct out *o, const char *fmt, ...)
{
	va_list ap;
	char *s;

	va_start(ap, fmt);
	s = g_strdup_vprintf(fmt, ap);
	va_end(ap);
	out_str(o, s);
	g_free(s);
}

void out_text(struct out *o, const char *s)
{
	append_safe(o->buf, s);
	grown(o);
}

void out_html(struct out *o, const char *s)
{
	GString *t = g_string_new(NULL);

	append_safe(t, s);
	for (const char *p = t->str; *p; p++) {
		switch (*p) {
		case '&':	g_string_append(o->buf, "&amp;"); break;
		case '<':	g_string_append(o->buf, "&lt;"); break;
		case '>':	g_string_append(o->buf, "&gt;"); break;
		case '"':	g_string_append(o->buf, "&quot;"); break;
		case '\'':	g_string_append(o->buf, "&#39;"); break;
		default:	g_string_append_c(o->buf, *p);
		}
	}
	g_string_free(t, TRUE);
	grown(o);
}

void out_json(struct out *o, const char *s)
{
	if (!s) {
		out_str(o, "null");
		return;
	}
	g_string_append_c(o->buf, '"');
	while (*s) {
		const char *next = g_utf8_next_char(s);
		gunichar c = g_utf8_get_char(s);

		if (c == '"' || c == '\\')
			g_string_append_printf(o->buf, "\\%c", (char)c);
		else if (c == '\n')
			g_string_append(o->buf, "\\n");
		else if (c == '\t' || unsafe(c))
			g_string_append_printf(o->buf, "\\u%04x", c);
		else
			g_string_append_len(o->buf, s, next - s);
		s = next;
	}
	g_string_append_c(o->buf, '"');
	grown(o);
}

void out_complete(struct out *o)
{
	out_flush(o);
	/* A pipe or a terminal cannot be synced; EINVAL and EROFS say so. */
	if (fsync(o->fd) < 0 && errno != EINVAL && errno != EROFS && errno != ENOTSUP)
		fail("%s: cannot be written: %s", o->path ? o->temp : "standard output",
		     strerror(errno));
	if (o->path && close(o->fd) < 0)
		fail("%s: cannot be written: %s", o->temp, strerror(errno));
}

/* A rename is on the disk when its folder is. */
static void dir_sync(const char *path)
{
	char *dir = g_path_get_dirname(path);
	int fd = open(dir, O_RDONLY | O_DIRECTORY | O_CLOEXEC);

	if (fd < 0 || fsync(fd) < 0)
		fail("%s: cannot be written: %s", dir, strerror(errno));
	close(fd);
	g_free(dir);
}

void out_publish(struct out *o)
{
	if (!o->path)
		return;
	if (rename(o->temp, o->path) < 0)
		fail("%s: cannot be written: %s", o->path, strerror(errno));
	dir_sync(o->path);
}

void out_publish_left(const char *path)
{
	char *temp = g_strconcat(path, ".tmp", NULL);

	if (rename(temp, path) < 0 && errno != ENOENT)
		fail("%s: cannot be written: %s", path, strerror(errno));
	dir_sync(path);
	g_free(temp);
}

void out_close(struct out *o)
{
	g_free(o->path);
	g_free(o->temp);
	g_string_free(o->buf, TRUE);
	g_free(o);
}

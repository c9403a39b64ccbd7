/* SPDX-License-Identifier: MIT */
/*
 * Series are built from the whole range, then picked: a series that began
 * before --since is complete when one of its mails is inside. A mail is counted
 * when its own date and its own author fit and, with --path, its series does.
 */
#include "digest.h"

#include <fnmatch.h>
#include <string.h>

#include "options.h"

static bool holds(const char *text, const char *part)
{
	char *a = g_utf8_casefold(text, -1), *b = g_utf8_casefold(part, -1);
	bool yes = strstr(a, b) != NULL;

	g_free(a);
	g_free(b);
	return yes;
}

static bool path_fits(const char *file, const char *path)
{
	gsize n = strlen(path);

	if (strpbrk(path, "*?["))
		return !fnmatch(path, file, 0);
	while (n && path[n - 1] == '/')
		n--;
	return !strncmp(file, path, n) && (!file[n] || file[n] == '/');
}

static bool msg_touches(const struct msg *m, const char *path)
{
	for (guint i = 0; i < m->nfiles; i++)
		if (path_fits(m->files[i], path))
			return true;
	return false;
}

static bool series_touches(const struct series *s, const char *path)
{
	if (s->cover && msg_touches(s->cover, path))
		return true;
	for (guint i = 0; i < s->patches->len; i++)
		if (msg_touches(s->patches->pdata[i], path))
			return true;
	return false;
}

static bool msg_fits(const struct msg *m, const struct options *o)
{
	return m->date >= o->since && m->date < o->until &&
	       (!o->author || holds(m->author, o->author) || holds(m->from, o->author));
}

void filter_apply(struct digest *d, const struct options *o)
{
	bool *touches = g_new(bool, d->series->len + 1);

	for (guint i = 0; i < d->series->len; i++)
		touches[i] = !o->path || series_touches(d->series->pdata[i], o->path);
	for (guint i = 0; i < d->msgs->len; i++) {
		struct msg *m = d->msgs->pdata[i];

		m->picked = msg_fits(m, o) && (!o->path || (m->series && touches[m->series->number]));
		if (m->picked && m->patch)
			m->series->picked = true;
	}
	g_free(touches);
}

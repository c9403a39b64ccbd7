/* SPDX-License-Identifier: MIT */
/*
 * The mails of the picked series as they were sent, in mboxrd: a "From " line
 * in front of each, and every line that begins with "From ", quoted or not,
 * quoted once more. Bytes are copied; on a terminal out.c makes them safe.
 */
#include "output.h"

#include <string.h>

#include "util.h"

static bool needs_quote(const char *p, gsize len)
{
	while (len && *p == '>') {
		p++;
		len--;
	}
	return len >= 5 && !memcmp(p, "From ", 5);
}

static void print_mail(struct out *o, const char *p, gsize len)
{
	const char *end = p + len;

	if (needs_quote(p, len)) {		/* a separator that was imported */
		const char *nl = memchr(p, '\n', len);

		p = nl ? nl + 1 : end;
	}
	while (p < end) {
		const char *nl = memchr(p, '\n', end - p);
		gsize n = (nl ? nl + 1 : end) - p;

		if (needs_quote(p, n))
			out_str(o, ">");
		out_raw(o, p, n);
		if (!nl)
			out_str(o, "\n");
		p += n;
	}
	out_str(o, "\n");
}

static void print_msg(struct out *o, const struct digest *d, const struct msg *m)
{
	git_odb_object *obj = archive_read(d->archive, m->entry);

	if (!obj)
		fail("blob %s: changed while it was read", git_oid_tostr_s(&m->entry->blob));
	out_fmt(o, "From %s Mon Sep 17 00:00:00 2001\n", git_oid_tostr_s(&m->entry->commit));
	print_mail(o, git_odb_object_data(obj), git_odb_object_size(obj));
	git_odb_object_free(obj);
}

void output_mbox(struct out *o, const struct digest *d, const struct options *opt)
{
	(void)opt;
	for (guint i = 0; i < d->series->len; i++) {
		const struct series *s = d->series->pdata[i];

		if (!s->picked)
			continue;
		if (s->cover)
			print_msg(o, d, s->cover);
		for (guint k = 0; k < s->patches->len; k++)
			print_msg(o, d, s->patches->pdata[k]);
	}
}

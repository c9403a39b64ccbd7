/* SPDX-License-Identifier: MIT */
/* One object; the field names are in the man page. */
#include "output.h"

#include <string.h>

#include "subject.h"

static void key(struct out *o, const char *name)
{
	out_fmt(o, "\"%s\":", name);
}

static void put_str(struct out *o, const char *name, const char *value)
{
	key(o, name);
	out_json(o, value);
	out_str(o, ",");
}

static void put_owned(struct out *o, const char *name, char *value)
{
	put_str(o, name, value);
	g_free(value);
}

static void put_num(struct out *o, const char *name, gint64 n)
{
	out_fmt(o, "\"%s\":%" G_GINT64_FORMAT ",", name, n);
}

static void put_counts(struct out *o, const char *name, const GArray *list)
{
	key(o, name);
	out_str(o, "[");
	for (guint i = 0; i < list->len; i++) {
		const struct count *c = &g_array_index(list, struct count, i);

		out_str(o, i ? ",\n{" : "\n{");
		put_num(o, "count", c->n);
		key(o, "name");
		out_json(o, c->name);
		out_str(o, "}");
	}
	out_str(o, "],\n");
}

static void put_strings(struct out *o, const char *name, gpointer *list, guint n)
{
	key(o, name);
	out_str(o, "[");
	for (guint i = 0; i < n; i++) {
		if (i)
			out_str(o, ",");
		out_json(o, list[i]);
	}
	out_str(o, "],");
}

static void put_msg(struct out *o, const struct digest *d, const struct msg *m,
		    const struct options *opt)
{
	out_str(o, "{");
	put_str(o, "subject", m->subject);
	put_str(o, "title", m->title);
	put_str(o, "author", m->author);
	put_str(o, "sender", m->from);
	put_owned(o, "date", time_text(m->date));
	put_num(o, "time", m->date);
	if (m->index >= 0)
		put_num(o, "index", m->index);
	if (m->changed >= 0) {
		put_num(o, "files_changed", m->changed);
		put_num(o, "insertions", m->added);
		put_num(o, "deletions", m->removed);
	}
	put_strings(o, "files", (gpointer *)m->files, m->nfiles);
	put_owned(o, "url", msg_url(d, m, opt));
	put_str(o, "commit", git_oid_tostr_s(&m->entry->commit));
	key(o, "message_id");
	out_json(o, m->id ? msg_id(d, m) : NULL);
	out_str(o, "}");
}

static void put_titles(struct out *o, const char *name, const GPtrArray *msgs, const char *end)
{
	key(o, name);
	out_str(o, "[");
	for (guint i = 0; i < msgs->len; i++) {
		const struct msg *m = msgs->pdata[i];

		if (i)
			out_str(o, ",");
		out_json(o, m->title);
	}
	out_fmt(o, "]%s", end);
}

static void put_reroll(struct out *o, const struct series *s)
{
	struct reroll *r = reroll_compare(s);

	key(o, "since_previous");
	if (!r) {
		out_str(o, "null,");
		return;
	}
	out_str(o, "{");
	put_num(o, "series", s->older->number);
	put_strings(o, "files_added", r->files_added->pdata, r->files_added->len);
	put_strings(o, "files_dropped", r->files_dropped->pdata, r->files_dropped->len);
	put_titles(o, "same", r->same, ",");
	put_titles(o, "changed", r->changed, ",");
	put_titles(o, "renamed", r->renamed, ",");
	put_titles(o, "added", r->added, ",");
	put_titles(o, "dropped", r->dropped, "},");
	reroll_free(r);
}

static void put_applied(struct out *o, const struct digest *d, const struct series *s)
{
	const struct msg *m = s->applied;

	key(o, "applied");
	if (!m) {
		out_str(o, "null,");
		return;
	}
	out_str(o, "{");
	put_str(o, "by", m->from);
	put_str(o, "text", m->applied);
	out_fmt(o, "\"part\":%s,", m->applied_part ? "true" : "false");
	if (m->answers && m->answers->index >= 0)
		put_num(o, "answering", m->answers->index);
	key(o, "message_id");
	out_json(o, m->id ? msg_id(d, m) : NULL);
	out_str(o, "},");
}

static void put_text(struct out *o, const struct digest *d, const struct msg *m)
{
	GString *text = msg_text(d, m);

	put_str(o, "text", text->str);
	g_string_free(text, TRUE);
}

static void put_series(struct out *o, const struct digest *d, const struct series *s,
		       const struct options *opt)
{
	GPtrArray *trailers = series_trailers(s);
	char v[16];

	out_str(o, "{");
	put_num(o, "number", s->number);
	put_str(o, "title", s->title);
	put_str(o, "author", s->author);
	put_owned(o, "tag", series_tag(s));
	put_str(o, "version", version_text(s->version, v));
	out_fmt(o, "\"rfc\":%s,\"resend\":%s,", s->rfc ? "true" : "false",
		s->resend ? "true" : "false");
	put_num(o, "total", s->total);
	put_num(o, "received", s->patches->len);
	put_owned(o, "missing", series_missing(s));
	put_owned(o, "updated", reroll_text(s));
	put_reroll(o, s);
	put_num(o, "replies", s->replies->len);
	put_applied(o, d, s);
	put_strings(o, "trailers", trailers->pdata, trailers->len);
	put_text(o, d, series_head(s));
	key(o, "cover");
	if (s->cover)
		put_msg(o, d, s->cover, opt);
	else
		out_str(o, "null");
	out_str(o, ",\n \"patches\":[");
	for (guint i = 0; i < s->patches->len; i++) {
		out_str(o, i ? ",\n  " : "\n  ");
		put_msg(o, d, s->patches->pdata[i], opt);
	}
	out_str(o, "]}");
	g_ptr_array_free(trailers, TRUE);
}

void output_json(struct out *o, const struct digest *d, const struct options *opt)
{
	bool first = true;
	struct counts c;

	counts_make(d, false, &c);
	out_str(o, "{");
	put_str(o, "from", git_oid_tostr_s(&d->range->from));
	put_str(o, "to", git_oid_tostr_s(&d->range->to));
	out_str(o, "\n");
	put_num(o, "mails", c.mails);
	put_num(o, "patches", c.patches);
	put_num(o, "covers", c.covers);
	put_num(o, "replies", c.replies);
	put_num(o, "others", c.others);
	put_num(o, "removed", d->range->deleted);
	put_num(o, "duplicates", d->duplicates);
	put_num(o, "oversize", d->oversize);
	out_str(o, "\n");
	put_counts(o, "domains", c.domains);
	put_counts(o, "contributors", c.people);
	out_str(o, "\"series\":[");
	for (guint i = 0; i < d->series->len; i++) {
		const struct series *s = d->series->pdata[i];

		if (!s->picked)
			continue;
		out_str(o, first ? "\n" : ",\n");
		first = false;
		put_series(o, d, s, opt);
	}
	out_str(o, "]}\n");
	counts_clear(&c);
}

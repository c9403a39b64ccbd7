/* SPDX-License-Identifier: MIT */
#include "output.h"

#include <stdio.h>
#include <string.h>

#include "body.h"
#include "mail.h"
#include "subject.h"
#include "util.h"

const char *oid8(const git_oid *oid, char buf[9])
{
	git_oid_tostr(buf, 9, oid);
	return buf;
}

void print_heading(struct out *o, const struct digest *d)
{
	char a[9], b[9];

	oid8(&d->range->from, a);
	oid8(&d->range->to, b);
	out_fmt(o, "From %s to %s\n", a, b);
	out_fmt(o, "KVM mailing list update from %s to %s\n\n", a, b);
}

static void print_table(struct out *o, const char *title, const GArray *list)
{
	out_fmt(o, "%s\n\n", title);
	for (guint i = 0; i < list->len && i < TOP; i++) {
		const struct count *c = &g_array_index(list, struct count, i);

		out_fmt(o, "%7u ", c->n);
		out_str(o, c->name);
		out_str(o, "\n");
	}
	out_str(o, "\n");
}

void print_tables(struct out *o, const struct counts *c)
{
	print_table(o, "Top 15 contributor Email domains (Based on Email Body)", c->domains);
	print_table(o, "Top 15 contributors (Based on Email Body)", c->people);
}

char *series_tag(const struct series *s)
{
	GString *t = g_string_new("[");
	char v[16];

	if (s->resend)
		g_string_append(t, "RESEND ");
	g_string_append(t, s->prefix);
	if (s->version)
		g_string_append_printf(t, " %s", version_text(s->version, v));
	g_string_append_c(t, ']');
	return g_string_free(t, FALSE);
}

static char *time_format(gint64 t, const char *fmt)
{
	GDateTime *d = g_date_time_new_from_unix_utc(t);
	char *s = d ? g_date_time_format(d, fmt) : NULL;

	if (d)
		g_date_time_unref(d);
	return s ? s : g_strdup("0000-00-00");
}

char *date_text(gint64 t)
{
	return time_format(t, "%Y-%m-%d");
}

char *time_text(gint64 t)
{
	return time_format(t, "%Y-%m-%d %H:%M:%S UTC");
}

const char *series_applied_word(const struct series *s)
{
	const struct msg *m = s->applied;

	if (!m)
		return NULL;
	return m->applied_part ? "applied in part" : "applied";
}

char *series_applied(const struct series *s)
{
	const struct msg *m = s->applied;
	GString *t;

	if (!m)
		return NULL;
	t = g_string_new(series_applied_word(s));
	g_string_append_printf(t, " by %s", m->from);
	if (m->answers && m->answers->index > 0 && s->total > 1)
		g_string_append_printf(t, " (answering %d/%d)", m->answers->index, s->total);
	g_string_append_printf(t, ": %s", m->applied);
	return g_string_free(t, FALSE);
}

GPtrArray *series_trailers(const struct series *s)
{
	GHashTable *seen = g_hash_table_new(g_str_hash, g_str_equal);
	GPtrArray *all = g_ptr_array_new();

	for (guint i = 0; i < s->replies->len; i++) {
		const struct msg *m = s->replies->pdata[i];

		for (guint k = 0; k < m->ntrailers; k++)
			if (g_hash_table_add(seen, (gpointer)m->trailers[k]))
				g_ptr_array_add(all, (gpointer)m->trailers[k]);
	}
	g_hash_table_destroy(seen);
	return all;
}

char *msg_url(const struct digest *d, const struct msg *m, const struct options *opt)
{
	char *id, *url;

	if (!opt->url || !m->id)
		return NULL;
	id = g_uri_escape_string(msg_id(d, m), "@", FALSE);
	url = g_strdup_printf("%s%s%s/", opt->url, g_str_has_suffix(opt->url, "/") ? "" : "/", id);
	g_free(id);
	return url;
}

GString *msg_text(const struct digest *d, const struct msg *m)
{
	git_odb_object *obj = archive_read(d->archive, m->entry);
	struct mail mail;
	GString *text;

	if (!obj)
		fail("blob %s: changed while it was read", git_oid_tostr_s(&m->entry->blob));
	mail_parse(git_odb_object_data(obj), git_odb_object_size(obj), &mail);
	text = body_shown(mail.text->str, mail.text->len);
	mail_clear(&mail);
	git_odb_object_free(obj);
	return text;
}

guint series_shown(const struct series *s, const struct msg *shown[2])
{
	guint n = 0;

	if (s->cover)
		shown[n++] = s->cover;
	if (s->patches->len)
		shown[n++] = s->patches->pdata[0];
	return n;
}

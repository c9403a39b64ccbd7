/* SPDX-License-Identifier: MIT */
#include "mail.h"

#include <gmime/gmime.h>
#include <string.h>

#define ID_MAX	998			/* a line of a mail is no longer */

static char *first_line(struct span v)
{
	const char *nl = v.p ? memchr(v.p, '\n', v.len) : NULL;
	GString *s;

	if (!v.p)
		return g_strdup("");
	s = text_clean(v.p, nl ? (gsize)(nl - v.p) : v.len);
	return g_string_free(s, FALSE);
}

/* Every <...> of a field, last first. */
static void ids_add(GPtrArray *ids, const char *v)
{
	const char *end = v ? v + strlen(v) : NULL;

	while (end && end > v && ids->len < REFS_MAX) {
		const char *close = g_strrstr_len(v, end - v, ">");
		const char *open = close ? g_strrstr_len(v, close - v, "<") : NULL;

		if (!open)
			return;
		if (close - open > 1 && close - open <= ID_MAX) {
			char *id = g_strndup(open + 1, close - open - 1);
			GString *s = text_clean(id, strlen(id));

			g_free(id);
			text_squeeze(s->str);
			g_ptr_array_add(ids, g_string_free(s, FALSE));
		}
		end = open;
	}
}

static void ids_parse(struct span head, struct mail *m)
{
	char *id = header_unfolded(head, "Message-ID");
	char *reply = header_unfolded(head, "In-Reply-To");
	char *refs = header_unfolded(head, "References");
	GPtrArray *own = g_ptr_array_new_with_free_func(g_free);

	ids_add(own, id);
	m->id = own->len ? g_strdup(own->pdata[own->len - 1]) : NULL;
	m->refs = g_ptr_array_new_with_free_func(g_free);
	ids_add(m->refs, reply);
	ids_add(m->refs, refs);
	g_ptr_array_free(own, TRUE);
	g_free(id);
	g_free(reply);
	g_free(refs);
}

static gint64 date_parse(struct span head)
{
	char *v = header_unfolded(head, "Date");
	GDateTime *d = v && strlen(v) < 200 ? g_mime_utils_header_decode_date(v) : NULL;
	gint64 t = d ? g_date_time_to_unix(d) : 0;

	if (d)
		g_date_time_unref(d);
	g_free(v);
	return t;
}

void mail_parse(const char *raw, gsize len, struct mail *m)
{
	struct span head;
	char *from;

	mime_split(raw, len, &head, &m->raw_body);
	m->raw_subject = first_line(header_raw(head, "Subject"));
	if (m->raw_subject[0] == ' ')
		memmove(m->raw_subject, m->raw_subject + 1, strlen(m->raw_subject));
	m->raw_from = first_line(header_raw(head, "From"));
	m->subject = header_decoded(head, "Subject");
	if (!m->subject)
		m->subject = g_strdup("");
	from = header_unfolded(head, "From");
	m->from = address_decoded(from ? from : "");
	g_free(from);
	m->date = date_parse(head);
	ids_parse(head, m);
	m->text = mime_text(head, m->raw_body);
}

void mail_clear(struct mail *m)
{
	g_free(m->raw_subject);
	g_free(m->raw_from);
	g_free(m->subject);
	g_free(m->from);
	g_free(m->id);
	g_ptr_array_free(m->refs, TRUE);
	g_string_free(m->text, TRUE);
}

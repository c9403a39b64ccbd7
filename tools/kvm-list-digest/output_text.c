/* SPDX-License-Identifier: MIT */
/* The default: for people, in the order of arrival. */
#include "output.h"

#include <string.h>

#include "subject.h"

#define DASHES	"----------------------------------------------------------------------"

static const char *plural(guint n)
{
	return n == 1 ? "" : "s";
}

/* One line: date, author, tag, title, facts, Message-ID. */
static void print_line(struct out *o, const struct digest *d, const struct series *s,
		       const struct options *opt)
{
	const struct msg *head = series_head(s);
	char *date = date_text(head->date), *tag = series_tag(s), *roll = reroll_text(s);
	char *missing = series_missing(s), *url = msg_url(d, head, opt);
	GString *line = g_string_new(NULL);

	g_string_append_printf(line, "%s  %s  %s %s (%u patch%s", date, s->author, tag, s->title,
			       s->patches->len, s->patches->len == 1 ? "" : "es");
	if (roll)
		g_string_append_printf(line, "; Updated: %s", roll);
	if (missing)
		g_string_append_printf(line, "; missing: %s", missing);
	if (s->applied)
		g_string_append_printf(line, "; %s", series_applied_word(s));
	if (s->replies->len)
		g_string_append_printf(line, "; %u repl%s", s->replies->len,
				       s->replies->len == 1 ? "y" : "ies");
	g_string_append_c(line, ')');
	if (url)
		g_string_append_printf(line, " %s", url);
	else if (head->id)
		g_string_append_printf(line, " <%s>", msg_id(d, head));
	g_string_append_c(line, '\n');
	out_text(o, line->str);
	g_string_free(line, TRUE);
	g_free(date);
	g_free(tag);
	g_free(roll);
	g_free(missing);
	g_free(url);
}

static void print_field(struct out *o, const char *name, const char *value)
{
	if (!value)
		return;
	out_text(o, name);
	out_text(o, value);
	out_str(o, "\n");
}

static void print_patches(struct out *o, const struct series *s)
{
	if (!s->indexed)
		return;
	out_fmt(o, "Patches: %u of %d\n", s->patches->len, s->total);
	for (guint i = 0; i < s->patches->len; i++) {
		const struct msg *m = s->patches->pdata[i];

		out_fmt(o, "  %d/%d ", m->index, s->total);
		out_text(o, m->title);
		if (strcmp(m->author, s->author)) {
			out_str(o, " (");
			out_text(o, m->author);
			out_str(o, ")");
		}
		out_str(o, "\n");
	}
}

static void print_titles(struct out *o, const char *what, const GPtrArray *msgs)
{
	for (guint i = 0; i < msgs->len; i++) {
		const struct msg *m = msgs->pdata[i];

		out_fmt(o, "  %s ", what);
		out_text(o, m->title);
		out_str(o, "\n");
	}
}

static void print_files(struct out *o, const char *what, const GPtrArray *files)
{
	for (guint i = 0; i < files->len; i++) {
		out_fmt(o, "  %s ", what);
		out_text(o, files->pdata[i]);
		out_str(o, "\n");
	}
}

static void print_reroll(struct out *o, const struct series *s)
{
	struct reroll *r = reroll_compare(s);
	char v[16];

	if (!r)
		return;
	out_fmt(o, "Since %s: %u same, %u changed, %u renamed, %u added, %u dropped\n",
		version_text(s->older->version, v), r->same->len, r->changed->len,
		r->renamed->len, r->added->len, r->dropped->len);
	print_titles(o, "changed:", r->changed);
	print_titles(o, "renamed:", r->renamed);
	print_titles(o, "added:  ", r->added);
	print_titles(o, "dropped:", r->dropped);
	print_files(o, "file added:  ", r->files_added);
	print_files(o, "file dropped:", r->files_dropped);
	reroll_free(r);
}

static void print_status(struct out *o, const struct series *s)
{
	char *applied = series_applied(s);
	GPtrArray *trailers = series_trailers(s);

	if (applied || s->replies->len) {
		out_fmt(o, "Status: %u repl%s", s->replies->len, s->replies->len == 1 ? "y" : "ies");
		if (applied) {
			out_str(o, "; ");
			out_text(o, applied);
		}
		out_str(o, "\n");
	}
	for (guint i = 0; i < trailers->len; i++)
		print_field(o, "  ", trailers->pdata[i]);
	g_ptr_array_free(trailers, TRUE);
	g_free(applied);
}

static void print_head(struct out *o, const struct digest *d, const struct series *s,
		       const struct options *opt)
{
	const struct msg *head = series_head(s);
	char *roll = reroll_text(s), *when = time_text(head->date), *missing = series_missing(s);
	char *url = msg_url(d, head, opt);

	if (roll) {
		out_str(o, "Updated: ");
		out_text(o, roll);
		out_str(o, ": ");
	} else {
		out_str(o, "New: ");
	}
	out_text(o, s->title);
	out_str(o, "\n");
	print_field(o, "", head->subject);
	print_field(o, "Author: ", s->author);
	if (strcmp(head->from, s->author))
		print_field(o, "Sender: ", head->from);
	print_field(o, "Date: ", when);
	if (head->id)
		print_field(o, "Message-ID: ", msg_id(d, head));
	print_field(o, "URL: ", url);
	print_patches(o, s);
	print_field(o, "Missing: ", missing);
	print_reroll(o, s);
	print_status(o, s);
	g_free(roll);
	g_free(when);
	g_free(missing);
	g_free(url);
}

static void print_series(struct out *o, const struct digest *d, const struct series *s,
			 const struct options *opt)
{
	const struct msg *shown[2];
	guint n = series_shown(s, shown);

	print_head(o, d, s, opt);
	for (guint i = 0; i < n; i++) {
		GString *text = msg_text(d, shown[i]);

		out_str(o, "\n");
		if (i) {
			print_field(o, "", shown[i]->subject);
			print_field(o, "Author: ", shown[i]->author);
			out_str(o, "\n");
		}
		out_text(o, text->str);
		g_string_free(text, TRUE);
	}
	out_str(o, "\n" DASHES "\n\n");
}

void output_text(struct out *o, const struct digest *d, const struct options *opt)
{
	struct counts c;
	guint shown = 0;

	counts_make(d, false, &c);
	print_heading(o, d);
	print_tables(o, &c);
	out_str(o, "===== Patch list in this time period =====\n\n");
	for (guint i = 0; i < d->series->len; i++) {
		const struct series *s = d->series->pdata[i];

		if (!s->picked)
			continue;
		shown++;
		print_line(o, d, s, opt);
	}
	out_fmt(o, "%s%u mail%s: %u series; %u patch%s, %u cover letter%s, %u repl%s, %u other%s; "
		"%u removed, %u duplicate%s left out\n\n",
		shown ? "\n" : "", c.mails, plural(c.mails), shown, c.patches,
		c.patches == 1 ? "" : "es", c.covers, plural(c.covers), c.replies,
		c.replies == 1 ? "y" : "ies", c.others, plural(c.others), d->range->deleted,
		d->duplicates, plural(d->duplicates));
	out_str(o, "===== Patch Commit Messages ====\n\n");
	for (guint i = 0; i < d->series->len; i++) {
		const struct series *s = d->series->pdata[i];

		if (s->picked)
			print_series(o, d, s, opt);
	}
	counts_clear(&c);
}

/* SPDX-License-Identifier: MIT */
/* One page, nothing loaded, no script. Everything from a mail goes through out_html(). */
#include "output.h"

#include <string.h>

#include "subject.h"

static const char page_head[] =
"<!DOCTYPE html>\n"
"<html lang=\"en\">\n<head>\n<meta charset=\"utf-8\">\n"
"<meta http-equiv=\"Content-Security-Policy\"\n"
"  content=\"default-src 'none'; style-src 'unsafe-inline'\">\n"
"<meta name=\"viewport\" content=\"width=device-width, initial-scale=1\">\n";

static const char page_style[] =
"<style>\n"
":root { color-scheme: light dark; }\n"
"body { font: 16px/1.45 system-ui, sans-serif; max-width: 68rem; margin: 2rem auto;\n"
"  padding: 0 1rem; }\n"
"h1 { font-size: 1.5rem; } h2 { font-size: 1.2rem; margin-top: 2.2rem; }\n"
"h3 { font-size: 1.05rem; margin: 0 0 .3rem; overflow-wrap: anywhere; }\n"
"table { border-collapse: collapse; }\n"
"td, th { padding: .15rem .7rem .15rem 0; text-align: left; vertical-align: top; }\n"
"td.n, th.n { text-align: right; font-variant-numeric: tabular-nums; white-space: nowrap; }\n"
"td { overflow-wrap: anywhere; } .list tr { border-top: 1px solid #8884; }\n"
".list { width: 100%; } .list td:first-child { white-space: nowrap; }\n"
".tables { display: flex; flex-wrap: wrap; gap: 0 4rem; }\n"
"section { border-top: 2px solid #8886; padding: 1rem 0; }\n"
"pre { font: 13px/1.4 ui-monospace, monospace; white-space: pre-wrap; overflow-wrap: anywhere;\n"
"  background: #8881; padding: .7rem; margin: .5rem 0; }\n"
".meta { color: #777; font-size: .9rem; overflow-wrap: anywhere; }\n"
".mark { border: 1px solid #8888; border-radius: .6rem; padding: 0 .45rem; font-size: .8rem;\n"
"  white-space: nowrap; }\n"
".applied { border-color: #2a2; } .missing { border-color: #c40; white-space: normal; }\n"
"ol, ul { margin: .3rem 0 .3rem 1.4rem; padding: 0; } li { overflow-wrap: anywhere; }\n"
"@media (max-width: 40rem) {\n"
"  .list tr { display: block; padding: .4rem 0; } .list td { display: block; padding: 0; }\n"
"  .list th, .list td.n { display: none; }\n"
"}\n"
"</style>\n";

static void element(struct out *o, const char *open, const char *text, const char *close)
{
	out_str(o, open);
	out_html(o, text);
	out_str(o, close);
}

static void print_counts(struct out *o, const char *title, const GArray *list)
{
	out_str(o, "<div>");
	element(o, "<h2>", title, "</h2>\n<table>\n");
	for (guint i = 0; i < list->len && i < TOP; i++) {
		const struct count *c = &g_array_index(list, struct count, i);

		out_fmt(o, "<tr><td class=\"n\">%u</td>", c->n);
		element(o, "<td>", c->name, "</td></tr>\n");
	}
	out_str(o, "</table></div>\n");
}

static void print_marks(struct out *o, const struct series *s)
{
	char *roll = reroll_text(s), *missing = series_missing(s);

	if (roll)
		element(o, " <span class=\"mark\">Updated: ", roll, "</span>");
	if (missing)
		element(o, " <span class=\"mark missing\">missing: ", missing, "</span>");
	if (s->applied)
		element(o, " <span class=\"mark applied\">", series_applied_word(s), "</span>");
	if (s->replies->len)
		out_fmt(o, " <span class=\"mark\">%u repl%s</span>", s->replies->len,
			s->replies->len == 1 ? "y" : "ies");
	g_free(roll);
	g_free(missing);
}

static void print_row(struct out *o, const struct series *s)
{
	const struct msg *head = series_head(s);
	char *date = date_text(head->date), *tag = series_tag(s);

	element(o, "<tr><td>", date, "</td>");
	element(o, "<td>", s->author, "</td><td>");
	out_fmt(o, "<a href=\"#s%u\">", s->number);
	out_html(o, tag);
	out_str(o, " ");
	out_html(o, s->title);
	out_str(o, "</a>");
	print_marks(o, s);
	out_fmt(o, "</td><td class=\"n\">%u</td></tr>\n", s->patches->len);
	g_free(date);
	g_free(tag);
}

/* Only an address that is http or https becomes a link. */
static void print_id(struct out *o, const struct digest *d, const struct msg *m,
		     const struct options *opt)
{
	char *url = msg_url(d, m, opt);
	bool link = url && (g_str_has_prefix(url, "https://") || g_str_has_prefix(url, "http://"));

	if (!m->id)
		goto out;
	out_str(o, " · ");
	if (link) {
		out_str(o, "<a rel=\"noreferrer\" href=\"");
		out_html(o, url);
		out_str(o, "\">");
	}
	out_html(o, msg_id(d, m));
	if (link)
		out_str(o, "</a>");
out:
	g_free(url);
}

static void print_patches(struct out *o, const struct series *s)
{
	if (!s->indexed)
		return;
	out_str(o, "<ol>\n");
	for (guint i = 0; i < s->patches->len; i++) {
		const struct msg *m = s->patches->pdata[i];

		out_fmt(o, "<li value=\"%d\">", m->index);
		out_html(o, m->title);
		if (strcmp(m->author, s->author))
			element(o, " <span class=\"meta\">(", m->author, ")</span>");
		out_str(o, "</li>\n");
	}
	out_str(o, "</ol>\n");
}

static void print_items(struct out *o, const char *what, const GPtrArray *list, bool msgs)
{
	for (guint i = 0; i < list->len; i++) {
		out_fmt(o, "<li>%s: ", what);
		out_html(o, msgs ? ((const struct msg *)list->pdata[i])->title : list->pdata[i]);
		out_str(o, "</li>\n");
	}
}

static void print_reroll(struct out *o, const struct series *s)
{
	struct reroll *r = reroll_compare(s);
	char v[16];

	if (!r)
		return;
	out_fmt(o, "<details><summary>Since <a href=\"#s%u\">%s</a>: %u same, %u changed, "
		"%u renamed, %u added, %u dropped</summary>\n<ul>\n", s->older->number,
		version_text(s->older->version, v), r->same->len, r->changed->len,
		r->renamed->len, r->added->len, r->dropped->len);
	print_items(o, "changed", r->changed, true);
	print_items(o, "renamed", r->renamed, true);
	print_items(o, "added", r->added, true);
	print_items(o, "dropped", r->dropped, true);
	print_items(o, "file added", r->files_added, false);
	print_items(o, "file dropped", r->files_dropped, false);
	out_str(o, "</ul></details>\n");
	reroll_free(r);
}

static void print_status(struct out *o, const struct series *s)
{
	char *applied = series_applied(s);
	GPtrArray *trailers = series_trailers(s);

	if (applied)
		element(o, "<div class=\"meta\">", applied, "</div>\n");
	for (guint i = 0; i < trailers->len; i++)
		element(o, "<div class=\"meta\">", trailers->pdata[i], "</div>\n");
	g_ptr_array_free(trailers, TRUE);
	g_free(applied);
}

static void print_series(struct out *o, const struct digest *d, const struct series *s,
			 const struct options *opt)
{
	const struct msg *head = series_head(s), *shown[2];
	char *when = time_text(head->date), *tag = series_tag(s);
	guint n = series_shown(s, shown);

	out_fmt(o, "<section id=\"s%u\">\n<h3>", s->number);
	out_html(o, tag);
	out_str(o, " ");
	out_html(o, s->title);
	print_marks(o, s);
	element(o, "</h3>\n<div class=\"meta\">", s->author, " · ");
	out_html(o, when);
	print_id(o, d, head, opt);
	out_str(o, "</div>\n");
	print_patches(o, s);
	print_reroll(o, s);
	print_status(o, s);
	for (guint i = 0; i < n; i++) {
		GString *text = msg_text(d, shown[i]);

		element(o, i ? "<details><summary>" : "<details open><summary>", shown[i]->subject,
			"</summary>\n<pre>");
		out_html(o, text->str);
		out_str(o, "</pre></details>\n");
		g_string_free(text, TRUE);
	}
	out_str(o, "</section>\n");
	g_free(when);
	g_free(tag);
}

void output_html(struct out *o, const struct digest *d, const struct options *opt)
{
	struct counts c;
	char a[9], b[9];

	oid8(&d->range->from, a);
	oid8(&d->range->to, b);
	counts_make(d, false, &c);
	out_str(o, page_head);
	out_fmt(o, "<title>KVM mailing list update from %s to %s</title>\n", a, b);
	out_str(o, page_style);
	out_fmt(o, "</head>\n<body>\n<h1>KVM mailing list update from %s to %s</h1>\n", a, b);
	out_fmt(o, "<p>%u mails: %u patches, %u cover letters, %u replies, %u others; "
		"%u removed, %u duplicates left out.</p>\n<div class=\"tables\">\n", c.mails,
		c.patches, c.covers, c.replies, c.others, d->range->deleted, d->duplicates);
	print_counts(o, "Top 15 contributor email domains", c.domains);
	print_counts(o, "Top 15 contributors", c.people);
	out_str(o, "</div>\n<h2>Patch list in this time period</h2>\n<table class=\"list\">\n"
		"<tr><th>Date</th><th>Author</th><th>Series</th><th class=\"n\">Patches</th></tr>\n");
	for (guint i = 0; i < d->series->len; i++) {
		const struct series *s = d->series->pdata[i];

		if (s->picked)
			print_row(o, s);
	}
	out_str(o, "</table>\n<h2>Patch commit messages</h2>\n");
	for (guint i = 0; i < d->series->len; i++) {
		const struct series *s = d->series->pdata[i];

		if (s->picked)
			print_series(o, d, s, opt);
	}
	out_str(o, "</body>\n</html>\n");
	counts_clear(&c);
}

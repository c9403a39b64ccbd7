/* SPDX-License-Identifier: MIT */
/*
 * libFuzzer: the mail path. The input is one or several mails, divided by
 * lines of "=====". Each is parsed and looked at in every way the outputs look
 * at it; together they are grouped, threaded and compared. What must hold for
 * any bytes is asserted: valid UTF-8, one line where one line is promised,
 * nothing of a mail unescaped in HTML.
 */
#include <fcntl.h>
#include <stdint.h>
#include <stdlib.h>
#include <string.h>
#include <unistd.h>

#include "body.h"
#include "count.h"
#include "digest.h"
#include "mail.h"
#include "options.h"
#include "out.h"
#include "subject.h"

#define MAILS_MAX	64
#define MUST(x)		do { if (!(x)) abort(); } while (0)

int LLVMFuzzerTestOneInput(const uint8_t *data, size_t len);

static struct out *out;

static void must_be_text(const char *s)
{
	MUST(g_utf8_validate(s, -1, NULL));
}

static void must_be_line(const char *s)
{
	must_be_text(s);
	for (; *s; s++)
		MUST((unsigned char)*s >= ' ' && *s != 0x7f);
}

static void try_text(const GString *s)
{
	must_be_text(s->str);
	MUST(strlen(s->str) == s->len);
	out_html(out, s->str);
	out_json(out, s->str);
	out_text(out, s->str);
}

static void try_body(const char *p, gsize len)
{
	GString *compat = body_compat(p, len);

	try_text(compat);
	g_string_free(compat, TRUE);
}

static void try_mail(const char *p, gsize len)
{
	struct mail m;
	struct tag t;
	GString *shown;
	char v[16];

	mail_parse(p, len, &m);
	must_be_line(m.subject);
	must_be_line(m.from);
	must_be_text(m.raw_subject);
	must_be_text(m.raw_from);
	MUST(!strchr(m.raw_subject, '\n') && !strchr(m.raw_from, '\n'));
	if (m.id)
		must_be_line(m.id);
	for (guint i = 0; i < m.refs->len; i++)
		must_be_line(m.refs->pdata[i]);
	try_text(m.text);
	MUST(!memchr(m.text->str, '\r', m.text->len));
	tag_parse(m.subject, &t);
	must_be_text(t.prefix);
	must_be_text(t.title);
	version_text(t.version, v);
	try_body(m.raw_body.p, m.raw_body.len);
	shown = body_shown(m.text->str, m.text->len);
	try_text(shown);
	g_string_free(shown, TRUE);
	mail_clear(&m);
}

static void try_series(const struct series *s)
{
	struct reroll *r = reroll_compare(s);
	char *missing = series_missing(s), *roll = reroll_text(s);

	if (missing)
		must_be_line(missing);
	must_be_line(s->title);
	must_be_line(s->author);
	MUST(s->cover || s->patches->len);
	reroll_free(r);
	g_free(missing);
	g_free(roll);
}

static void try_all(char **p, size_t *len, unsigned n)
{
	struct options o = { .since = G_MININT64, .until = G_MAXINT64, .count_inline = true,
			     .author = "a", .path = "arch/*" };
	struct entry e = { .written = 1 };
	struct range r = { .commits = n };
	struct digest *d = digest_new(NULL, &r);
	guint patches = 0;
	struct counts c;

	for (unsigned i = 0; i < n; i++)
		digest_add(d, &e, &o, p[i], len[i]);
	digest_link(d, &o);
	for (guint i = 0; i < d->series->len; i++) {
		const struct series *s = d->series->pdata[i];

		try_series(s);
		patches += s->patches->len + !!s->cover;
	}
	for (guint i = 0; i < d->msgs->len; i++)
		patches -= ((struct msg *)d->msgs->pdata[i])->patch;
	MUST(!patches);
	counts_make(d, n & 1, &c);
	counts_clear(&c);
	digest_free(d);
}

int LLVMFuzzerTestOneInput(const uint8_t *data, size_t size)
{
	char *p[MAILS_MAX];
	size_t len[MAILS_MAX];
	const uint8_t *at = data, *end = data + size;
	unsigned n = 0;

	if (!out) {
		mime_init();
		dup2(open("/dev/null", O_WRONLY), STDOUT_FILENO);	/* libFuzzer talks on stderr */
		out = out_open(NULL);
	}
	while (at < end && n < MAILS_MAX) {
		const uint8_t *cut = memmem(at, end - at, "\n=====\n", 7);
		size_t take = (cut ? cut : end) - at;

		/* Its own allocation, so that ASan sees a byte read behind it. */
		p[n] = malloc(take ? take : 1);
		memcpy(p[n], at, take);
		len[n++] = take;
		at = cut ? cut + 7 : end;
	}
	for (unsigned i = 0; i < n; i++)
		try_mail(p[i], len[i]);
	try_all(p, len, n);
	for (unsigned i = 0; i < n; i++)
		free(p[i]);
	return 0;
}

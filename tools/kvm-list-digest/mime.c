/* SPDX-License-Identifier: MIT */
/*
 * Mail is hostile. What is done about it:
 *
 * 1. The structure (header fields, multipart nesting) is walked here, with
 *    hard limits: NEST_MAX levels, PARTS_MAX parts, HEADER_MAX bytes of one
 *    field. GMime is given single values and single bodies to decode, never a
 *    whole mail, so no recursion of its parser depends on the mail.
 * 2. Every walk goes forward through the bytes once per level.
 * 3. Everything that leaves this file is valid UTF-8 without NUL.
 * 4. A charset is looked up only when it is on the list; any other text is
 *    taken as UTF-8 where it is valid, else as ISO-8859-1.
 */
#include "mime.h"

#include <errno.h>
#include <gmime/gmime.h>
#include <iconv.h>
#include <stdio.h>
#include <string.h>
#include <strings.h>

#define NEST_MAX	16
#define PARTS_MAX	256
#define BOUNDARY_MAX	200

void mime_init(void)
{
	g_mime_init();
}

/* ---- lines ---- */

/* Takes the next line, without its end, off *rest. False at the end. */
static bool line_next(struct span *rest, struct span *line)
{
	const char *nl;

	if (!rest->len)
		return false;
	nl = memchr(rest->p, '\n', rest->len);
	line->p = rest->p;
	line->len = nl ? (gsize)(nl - rest->p) : rest->len;
	rest->p += line->len + !!nl;
	rest->len -= line->len + !!nl;
	if (line->len && line->p[line->len - 1] == '\r')
		line->len--;
	return true;
}

void mime_split(const char *raw, gsize len, struct span *head, struct span *body)
{
	struct span rest = { raw, len }, line;

	/* An mbox separator in front is not a header. */
	if (len >= 5 && !memcmp(raw, "From ", 5))
		line_next(&rest, &line);
	head->p = rest.p;
	while (line_next(&rest, &line) && line.len)
		;
	head->len = rest.p - head->p;
	*body = rest;
}

struct span header_raw(struct span head, const char *name)
{
	struct span rest = head, line, found = { NULL, 0 };
	gsize n = strlen(name);

	while (line_next(&rest, &line)) {
		if (line.len <= n || line.p[n] != ':' || strncasecmp(line.p, name, n))
			continue;
		found.p = line.p + n + 1;
		while (rest.len && (*rest.p == ' ' || *rest.p == '\t'))
			line_next(&rest, &line);
		found.len = line.p + line.len - found.p;
		found.len = MIN(found.len, HEADER_MAX);
		break;
	}
	return found;
}

/* RFC 5322: unfolding removes the line end and keeps the blank after it. */
char *header_unfolded(struct span head, const char *name)
{
	struct span v = header_raw(head, name);
	GString *s;

	if (!v.p)
		return NULL;
	s = g_string_sized_new(v.len);
	for (gsize i = 0; i < v.len; i++)
		if (v.p[i] != '\r' && v.p[i] != '\n' && v.p[i])
			g_string_append_c(s, v.p[i]);
	return g_string_free(s, FALSE);
}

/* ---- text ---- */

/* Controls become blanks, runs of blanks one, none at either end. */
void text_squeeze(char *s)
{
	char *to = s;
	bool gap = false;

	for (char *p = s; *p; p++) {
		if ((unsigned char)*p <= ' ' || *p == 0x7f) {
			gap = true;
			continue;
		}
		if (gap && to != s)
			*to++ = ' ';
		gap = false;
		*to++ = *p;
	}
	*to = '\0';
}

GString *text_clean(const char *p, gsize len)
{
	GString *s = g_string_sized_new(len + 1);
	const char *end = p + len;

	while (p < end) {
		const char *bad;
		gsize run;

		g_utf8_validate_len(p, end - p, &bad);
		run = bad - p;
		while (run) {
			gsize n = 0;

			while (n < run && p[n] != '\r')
				n++;
			g_string_append_len(s, p, n);
			p += n + (n < run);
			run -= n + (n < run);
		}
		if (p >= end)
			break;
		if (*p)
			g_string_append(s, "\xef\xbf\xbd");
		p++;
	}
	return s;
}

static bool charset_known(const char *name)
{
	static const char *const known[] = {
		"utf-8", "utf8", "us-ascii", "ascii", "iso-8859-", "iso8859-", "latin1",
		"windows-125", "cp125", "koi8-r", "koi8-u", "gb2312", "gbk", "gb18030", "big5",
		"euc-jp", "euc-kr", "euc-cn", "iso-2022-jp", "iso-2022-kr", "shift_jis",
		"shift-jis", "utf-16le", "utf-16be", "utf-16",
	};

	if (strlen(name) > 16 || strchr(name, '/'))
		return false;
	for (gsize i = 0; i < G_N_ELEMENTS(known); i++)
		if (!strncasecmp(name, known[i], strlen(known[i])))
			return true;
	return false;
}

static bool charset_utf8(const char *name)
{
	return !strcasecmp(name, "utf-8") || !strcasecmp(name, "utf8") ||
	       !strcasecmp(name, "us-ascii") || !strcasecmp(name, "ascii");
}

/* Bytes that no charset explains: one each, as ISO-8859-1 (C1 controls become U+FFFD). */
static GString *text_latin1(const char *p, gsize len)
{
	GString *s = g_string_sized_new(len + len / 8 + 1);

	for (gsize i = 0; i < len; i++) {
		unsigned char c = p[i];

		if (c >= 0xa0)
			g_string_append_unichar(s, c);
		else if (c >= 0x80)
			g_string_append(s, "\xef\xbf\xbd");
		else if (c && c != '\r')
			g_string_append_c(s, c);
	}
	return s;
}

static GString *text_iconv(iconv_t cd, const char *p, gsize len)
{
	GString *s = g_string_sized_new(len + 1);
	char *in = (char *)p;
	gsize left = len;
	char chunk[4096];

	while (left) {
		char *out = chunk;
		gsize room = sizeof(chunk);
		size_t rc = iconv(cd, &in, &left, &out, &room);
		int why = errno;

		g_string_append_len(s, chunk, out - chunk);
		if (rc != (size_t)-1 || why == E2BIG)
			continue;
		g_string_append(s, "\xef\xbf\xbd");
		in++;
		left--;
	}
	return s;
}

/* @charset may be NULL: none was said. */
static GString *text_decode(const char *p, gsize len, const char *charset)
{
	GString *s, *clean;
	iconv_t cd;

	if (!charset || charset_utf8(charset) || !charset_known(charset)) {
		if (g_utf8_validate_len(p, len, NULL) || (charset && charset_utf8(charset)))
			return text_clean(p, len);
		clean = text_clean(p, len);	/* NUL bytes alone do not make it latin-1 */
		if (!strstr(clean->str, "\xef\xbf\xbd"))
			return clean;
		g_string_free(clean, TRUE);
		return text_latin1(p, len);
	}
	cd = g_mime_iconv_open("UTF-8", charset);
	if (cd == (iconv_t)-1)
		return text_latin1(p, len);
	s = text_iconv(cd, p, len);
	g_mime_iconv_close(cd);
	clean = text_clean(s->str, s->len);
	g_string_free(s, TRUE);
	return clean;
}

/* ---- values of header fields ---- */

static char *words_decode(const char *v, bool phrase)
{
	GString *clean;
	char *s, *t;

	if (g_utf8_validate(v, -1, NULL) && !strstr(v, "=?")) {
		s = g_strdup(v);
	} else {
		t = phrase ? g_mime_utils_header_decode_phrase(NULL, v)
			   : g_mime_utils_header_decode_text(NULL, v);
		clean = text_decode(t ? t : "", t ? strlen(t) : 0, NULL);
		g_free(t);
		s = g_string_free(clean, FALSE);
	}
	text_squeeze(s);
	return s;
}

char *header_decoded(struct span head, const char *name)
{
	char *raw = header_unfolded(head, name);
	char *s;

	if (!raw)
		return NULL;
	s = words_decode(raw, false);
	g_free(raw);
	return s;
}

static void unquote(char *s)
{
	char *to = s;

	for (char *p = s; *p; p++) {
		if (*p == '"')
			continue;
		if (*p == '\\' && p[1])
			p++;
		*to++ = *p;
	}
	*to = '\0';
}

/* "A, B" and such in a header: only the first mailbox is the author. */
char *address_decoded(const char *value)
{
	const char *open = strrchr(value, '<'), *close = open ? strchr(open, '>') : NULL;
	char *name, *addr, *phrase, *s;

	if (!close) {
		s = words_decode(value, true);
		return s;
	}
	phrase = g_strndup(value, open - value);
	unquote(phrase);
	name = words_decode(phrase, true);
	unquote(name);
	text_squeeze(name);
	s = g_strndup(open + 1, close - open - 1);
	addr = words_decode(s, false);
	g_free(s);
	for (char *p = addr; *p; p++)	/* an address holds no blanks or brackets */
		if (*p == ' ' || *p == '<')
			*p = '_';
	s = *name ? g_strdup_printf("%s <%s>", name, addr) : g_strdup_printf("<%s>", addr);
	g_free(phrase);
	g_free(name);
	g_free(addr);
	return s;
}

/* ---- structure ---- */

struct kind {
	char type[32];			/* "text", "multipart", ... */
	char subtype[64];
	char charset[64];
	char boundary[BOUNDARY_MAX + 1];
	GMimeContentEncoding encoding;
};

/* name=value of a Content-Type; quoted or not. */
static void param_get(const char *v, const char *name, char *out, gsize size)
{
	gsize n = strlen(name);
	const char *p = v;

	*out = '\0';
	while ((p = strchr(p, ';'))) {
		const char *q;
		gsize len = 0;

		p++;
		while (*p == ' ' || *p == '\t')
			p++;
		if (strncasecmp(p, name, n))
			continue;
		q = p + n;
		while (*q == ' ')
			q++;
		if (*q++ != '=')
			continue;
		while (*q == ' ')
			q++;
		if (*q == '"') {
			for (q++; *q && *q != '"' && len < size - 1; q++) {
				if (*q == '\\' && q[1])
					q++;
				out[len++] = *q;
			}
		} else {
			while (*q && !strchr("; \t", *q) && len < size - 1)
				out[len++] = *q++;
		}
		out[len] = '\0';
		return;
	}
}

static void kind_get(struct span head, struct kind *k)
{
	char *v = header_unfolded(head, "Content-Type");
	char *enc = header_unfolded(head, "Content-Transfer-Encoding");

	memset(k, 0, sizeof(*k));
	strcpy(k->type, "text");
	strcpy(k->subtype, "plain");
	if (v) {
		char type[sizeof(k->type)], subtype[sizeof(k->subtype)];

		if (sscanf(v, " %31[^/; \t]/%63[^; \t]", type, subtype) == 2) {
			strcpy(k->type, type);
			strcpy(k->subtype, subtype);
		}
		param_get(v, "charset", k->charset, sizeof(k->charset));
		param_get(v, "boundary", k->boundary, sizeof(k->boundary));
	}
	if (enc) {
		g_strstrip(enc);
		k->encoding = g_mime_content_encoding_from_string(enc);
	}
	g_free(v);
	g_free(enc);
}

static GString *leaf_decode(const struct kind *k, struct span body)
{
	const char *charset = k->charset[0] ? k->charset : NULL;
	GMimeEncoding state;
	GString *s;
	char *buf;
	gsize n;

	if (k->encoding != GMIME_CONTENT_ENCODING_BASE64 &&
	    k->encoding != GMIME_CONTENT_ENCODING_QUOTEDPRINTABLE)
		return text_decode(body.p, body.len, charset);
	g_mime_encoding_init_decode(&state, k->encoding);
	buf = g_malloc(g_mime_encoding_outlen(&state, body.len) + 16);
	n = g_mime_encoding_flush(&state, body.p, body.len, buf);
	s = text_decode(buf, n, charset);
	g_free(buf);
	return s;
}

/* 0: not this boundary, 1: a part begins, 2: the last part is over. */
static int boundary_is(struct span line, const char *boundary, gsize n)
{
	if (line.len < n + 2 || line.p[0] != '-' || line.p[1] != '-' ||
	    memcmp(line.p + 2, boundary, n))
		return 0;
	return line.len >= n + 4 && line.p[n + 2] == '-' && line.p[n + 3] == '-' ? 2 : 1;
}

/* Takes the next part of a multipart off *rest. */
static bool part_next(struct span *rest, const char *boundary, struct span *part, bool *inside)
{
	gsize n = strlen(boundary);
	struct span line;

	part->p = rest->p;
	while (line_next(rest, &line)) {
		int b = boundary_is(line, boundary, n);

		if (!b)
			continue;
		part->len = line.p - part->p;
		if (*inside) {
			if (b == 2)
				rest->len = 0;
			return true;
		}
		if (b == 2)
			return false;
		*inside = true;
		part->p = rest->p;
	}
	part->len = rest->p - part->p;	/* the closing boundary is missing */
	return *inside && part->len;
}

/*
 * Depth first, without recursion: the first text/plain leaf; with @any, the
 * first text leaf of whatever subtype.
 */
static bool leaf_find(struct span head, struct span body, bool any, struct kind *kind,
		      struct span *leaf)
{
	struct level {
		struct span rest;
		char boundary[BOUNDARY_MAX + 1];
		bool inside;
	} stack[NEST_MAX];
	unsigned depth = 0, parts = 0;

	for (;;) {
		struct span part;

		kind_get(head, kind);
		if (!strcasecmp(kind->type, "multipart") && kind->boundary[0]) {
			if (depth < NEST_MAX) {
				stack[depth].rest = body;
				stack[depth].inside = false;
				strcpy(stack[depth].boundary, kind->boundary);
				depth++;
			}
		} else if (!strcasecmp(kind->type, "text") &&
			   (any || !strcasecmp(kind->subtype, "plain"))) {
			*leaf = body;
			return true;
		}
		for (;;) {
			struct level *l;

			if (!depth || parts++ >= PARTS_MAX)
				return false;
			l = &stack[depth - 1];
			if (part_next(&l->rest, l->boundary, &part, &l->inside))
				break;
			depth--;
		}
		/* A part that begins with an empty line has no header fields. */
		mime_split(part.p, part.len, &head, &body);
	}
}

GString *mime_text(struct span head, struct span body)
{
	struct kind kind;
	struct span leaf;

	if (leaf_find(head, body, false, &kind, &leaf) || leaf_find(head, body, true, &kind, &leaf))
		return leaf_decode(&kind, leaf);
	return g_string_new(NULL);
}

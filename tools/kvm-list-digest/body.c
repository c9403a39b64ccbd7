/* SPDX-License-Identifier: MIT */
#include "body.h"

#include <ctype.h>
#include <stdio.h>
#include <string.h>
#include <strings.h>

#include "mime.h"

#define FILES_MAX	4096
#define PATH_MAX_SHOWN	1024

struct lines {
	const char *p, *end;
};

/* The next line without its end; false when there is none. */
static bool line_take(struct lines *l, struct span *line)
{
	const char *nl;

	if (l->p >= l->end)
		return false;
	nl = memchr(l->p, '\n', l->end - l->p);
	line->p = l->p;
	line->len = (nl ? nl : l->end) - l->p;
	l->p = nl ? nl + 1 : l->end;
	return true;
}

static bool starts(struct span line, const char *with)
{
	gsize n = strlen(with);

	return line.len >= n && !memcmp(line.p, with, n);
}

static bool is_from(struct span line)
{
	return starts(line, "From: ") && memchr(line.p, '@', line.len);
}

static bool is_blank(struct span line)
{
	for (gsize i = 0; i < line.len; i++)
		if (line.p[i] != ' ' && line.p[i] != '\t' && line.p[i] != '\r')
			return false;
	return true;
}

static bool eat(struct span *s, const char *what)
{
	gsize n = strlen(what);

	if (s->len < n || memcmp(s->p, what, n))
		return false;
	s->p += n;
	s->len -= n;
	return true;
}

static bool eat_number(struct span *s, int *n)
{
	gsize i = 0;

	*n = 0;
	while (i < s->len && i < 9 && isdigit((unsigned char)s->p[i]))
		*n = *n * 10 + (s->p[i++] - '0');
	s->p += i;
	s->len -= i;
	return i > 0;
}

/* " 7 files changed, 102 insertions(+), 10 deletions(-)"; the counts are optional. */
static bool diffstat_summary(struct span s, struct patch_facts *f)
{
	int files, n;

	while (eat(&s, " "))
		;
	if (!eat_number(&s, &files) || !(eat(&s, " files changed") || eat(&s, " file changed")))
		return false;
	if (!is_blank(s) && s.p[0] != ',')
		return false;
	if (!f)
		return true;
	f->changed = files;
	f->added = f->removed = 0;
	while (eat(&s, ", ") && eat_number(&s, &n)) {
		if (eat(&s, " insertion")) {
			f->added = n;
		} else if (eat(&s, " deletion")) {
			f->removed = n;
		}
		eat(&s, "s");
		eat(&s, "(+)");
		eat(&s, "(-)");
	}
	return true;
}

/* Where a text without a diffstat ends for the reader. */
static bool is_tail(struct span line)
{
	return starts(line, "diff --git ") || starts(line, "base-commit: ") ||
	       (line.len == 3 && starts(line, "-- ")) || starts(line, "Index: ");
}

char *body_author(const char *text, bool lenient)
{
	struct lines l = { text, text + strlen(text) };
	struct span line;

	while (line_take(&l, &line)) {
		if (is_from(line))
			return g_strndup(line.p + 5, line.len - 5);
		if (!lenient || !is_blank(line))
			return NULL;
	}
	return NULL;
}

static void append_line(GString *s, struct span line)
{
	g_string_append_len(s, line.p, line.len);
	g_string_append_c(s, '\n');
}

static void trim_end(GString *s)
{
	while (s->len && (s->str[s->len - 1] == '\n' || s->str[s->len - 1] == ' '))
		g_string_truncate(s, s->len - 1);
	if (s->len)
		g_string_append_c(s, '\n');
}

GString *body_compat(const char *raw, gsize len)
{
	GString *clean = text_clean(raw, len);
	GString *s = g_string_sized_new(MIN(clean->len, 64 * 1024));
	struct lines l = { clean->str, clean->str + clean->len };
	struct span line;
	bool front = true, done = false;

	while (!done && line_take(&l, &line)) {
		if (front && is_from(line))
			continue;
		front = false;
		if (is_tail(line))
			break;
		append_line(s, line);
		done = diffstat_summary(line, NULL);
	}
	if (!done)
		trim_end(s);
	g_string_free(clean, TRUE);
	return s;
}

/* From:, Subject: and Date: in front of the text, and the blank lines around them. */
static const char *front_skip(const char *text, gsize len)
{
	struct lines l = { text, text + len }, before;
	struct span line;

	do {
		before = l;
	} while (line_take(&l, &line) &&
		 (is_blank(line) || is_from(line) || starts(line, "Subject: ") ||
		  starts(line, "Date: ")));
	return before.p;
}

GString *body_shown(const char *text, gsize len)
{
	const char *p = front_skip(text, len);
	GString *s = g_string_new(NULL);
	struct lines l = { p, text + len };
	struct span line;
	bool done = false;

	while (!done && line_take(&l, &line)) {
		if (is_tail(line))
			break;
		if (s->len + line.len > BODY_SHOWN_MAX) {
			g_string_append(s, "[the rest of this text is not shown]\n");
			break;
		}
		append_line(s, line);
		done = diffstat_summary(line, NULL);
	}
	trim_end(s);
	return s;
}

/* ---- patches ---- */

struct facts_state {
	struct patch_facts *f;
	GHashTable *seen;
	bool in_diff;
};

static void file_add(struct facts_state *st, const char *p, gsize len)
{
	char *name;

	if (!len || len > PATH_MAX_SHOWN || g_hash_table_size(st->seen) >= FILES_MAX)
		return;
	name = g_strndup(p, len);
	if (g_hash_table_contains(st->seen, name)) {
		g_free(name);
		return;
	}
	g_hash_table_add(st->seen, name);
	g_ptr_array_add(st->f->files, name);
}

/* " path/to/file.c | 12 ++--": abbreviated ("...") and renaming ("=>") rows say no path. */
static void diffstat_row(struct facts_state *st, struct span line)
{
	const char *bar = line.len > 3 && line.p[0] == ' ' ? memchr(line.p, '|', line.len) : NULL;
	struct span name = { line.p + 1, bar ? (gsize)(bar - line.p - 1) : 0 };

	if (!bar || bar + 2 >= line.p + line.len || bar[1] != ' ')
		return;
	while (name.len && name.p[name.len - 1] == ' ')
		name.len--;
	while (name.len && name.p[0] == ' ') {
		name.p++;
		name.len--;
	}
	if (!name.len || memchr(name.p, ' ', name.len) || starts(name, "..."))
		return;
	for (bar++; bar < line.p + line.len; bar++)
		if (!strchr(" 0123456789+-", *bar) && !g_str_has_prefix(bar, "Bin"))
			return;
		else if (*bar == 'B')
			break;
	file_add(st, name.p, name.len);
}

/* "diff --git a/x b/x": the second name, and the first when they differ. */
static void diff_head(struct facts_state *st, struct span line)
{
	struct span rest = { line.p + 11, line.len - 11 };
	const char *mid;

	if (!starts(rest, "a/"))
		return;
	mid = g_strrstr_len(rest.p, rest.len, " b/");
	if (!mid)
		return;
	file_add(st, rest.p + 2, mid - rest.p - 2);
	file_add(st, mid + 3, rest.p + rest.len - mid - 3);
}

static guint64 hash_line(guint64 h, struct span line)
{
	for (gsize i = 0; i < line.len; i++) {
		if (line.p[i] == ' ' || line.p[i] == '\t')
			continue;
		h = (h ^ (unsigned char)line.p[i]) * 0x100000001b3ull;
	}
	return (h ^ '\n') * 0x100000001b3ull;
}

static void facts_line(struct facts_state *st, struct span line)
{
	struct patch_facts *f = st->f;

	if (starts(line, "diff --git ")) {
		st->in_diff = true;
		diff_head(st, line);
		f->hash = hash_line(f->hash ? f->hash : 0xcbf29ce484222325ull, line);
	} else if (st->in_diff) {
		if ((line.len == 3 && starts(line, "-- ")))
			st->in_diff = false;
		else if (line.len && (line.p[0] == '+' || line.p[0] == '-') &&
			 !starts(line, "+++ ") && !starts(line, "--- "))
			f->hash = hash_line(f->hash, line);
	} else if (f->changed < 0 && !diffstat_summary(line, f)) {
		diffstat_row(st, line);
	}
	if (!f->change_id && line.len < 200 && line.len > 11 && !strncasecmp(line.p, "change-id: ", 11)) {
		f->change_id = g_strndup(line.p + 11, line.len - 11);
		text_squeeze(f->change_id);
	}
}

static int by_name(const void *a, const void *b)
{
	return strcmp(*(const char *const *)a, *(const char *const *)b);
}

void patch_facts_get(const char *text, gsize len, struct patch_facts *f)
{
	struct facts_state st = { .f = f, .seen = g_hash_table_new(g_str_hash, g_str_equal) };
	struct lines l = { text, text + len };
	struct span line;

	memset(f, 0, sizeof(*f));
	f->changed = -1;
	f->files = g_ptr_array_new_with_free_func(g_free);
	while (line_take(&l, &line))
		facts_line(&st, line);
	g_ptr_array_sort(f->files, by_name);
	g_hash_table_destroy(st.seen);
}

void patch_facts_clear(struct patch_facts *f)
{
	g_ptr_array_free(f->files, TRUE);
	g_free(f->change_id);
}

/* ---- replies ---- */

static bool word_at(const char *s, const char *words)
{
	gsize n = strlen(words);

	return !strncasecmp(s, words, n) && !isalpha((unsigned char)s[n]);
}

/* "Applied to next, thanks!" and its relatives; @s is one unquoted line, blanks squeezed. */
static bool says_applied(const char *s)
{
	static const char *const verbs[] = { "applied", "queued", "pushed", "merged" };
	static const char *const after[] = {
		"", ",", ".", "!", " to ", " for ", " in ", " into ", " up", " first ", " patch",
		" all", " both", " as ", " with ", ":", " the series", " thanks", ", thanks",
	};
	static const char *const before[] = {
		"thanks, ", "thanks. ", "thanks! ", "thank you, ", "great, ", "now ", "both ",
		"all ", "i have ", "i've ", "i've now ", "and ", "gone ahead and ", "both now ",
		"series has been ", "series was ", "patch has been ", "patches have been ",
	};

	for (gsize v = 0; v < G_N_ELEMENTS(verbs); v++) {
		gsize n = strlen(verbs[v]);

		if (word_at(s, verbs[v])) {
			for (gsize i = 0; i < G_N_ELEMENTS(after); i++)
				if (*after[i] ? !strncasecmp(s + n, after[i], strlen(after[i]))
					      : !s[n])
					return true;
			if (isdigit((unsigned char)s[n + !!s[n]]))
				return true;
		}
		for (gsize i = 0; i < G_N_ELEMENTS(before); i++) {
			const char *at = strcasestr(s, before[i]);
			bool first = at == s;

			/* "now", "both", "all", "and" count only where the sentence begins. */
			if (!at || (!first && !strpbrk(before[i], "'")
				    && strncasecmp(before[i], "series ", 7)
				    && strncasecmp(before[i], "patch", 5)
				    && strncasecmp(before[i], "i have", 6)
				    && strncasecmp(before[i], "gone", 4)))
				continue;
			if (word_at(at + strlen(before[i]), verbs[v]))
				return true;
		}
	}
	return false;
}

/* A question or a condition is not a statement. */
static bool hedged(const char *s)
{
	static const char *const words[] = { " if ", "should", "once ", "when ", "could", "can ",
					     "not ", "don't", "haven't", "?", "until", "with the patch" };

	for (gsize i = 0; i < G_N_ELEMENTS(words); i++)
		if (strcasestr(s, words[i]))
			return true;
	return false;
}

/* "Applied first two", "Queued 3+5", "applied patches 1-11": not the whole series. */
static bool names_part(const char *s)
{
	static const char *const words[] = { "first ", "patch ", "patches ", "part " };

	for (gsize i = 0; i < G_N_ELEMENTS(words); i++)
		if (strcasestr(s, words[i]))
			return true;
	for (; *s; s++)
		if (isdigit((unsigned char)*s) && strchr("+-,&", s[1]) && s[1] &&
		    isdigit((unsigned char)s[2]))
			return true;
	return false;
}

static bool is_trailer(const char *s)
{
	static const char *const names[] = { "Reviewed-by: ", "Acked-by: ", "Tested-by: " };

	for (gsize i = 0; i < G_N_ELEMENTS(names); i++)
		if (!strncasecmp(s, names[i], strlen(names[i])) && strchr(s, '@'))
			return true;
	return false;
}

void reply_facts_get(const char *text, gsize len, struct reply_facts *f)
{
	struct lines l = { text, text + len };
	struct span line;

	memset(f, 0, sizeof(*f));
	f->trailers = g_ptr_array_new_with_free_func(g_free);
	while (line_take(&l, &line)) {
		char *s;

		if (starts(line, "diff --git "))
			break;
		if (!line.len || line.p[0] == '>' || line.len > 300 || line.p[0] == '+' ||
		    line.p[0] == '-')
			continue;
		s = g_strndup(line.p, line.len);
		text_squeeze(s);
		if (is_trailer(s) && f->trailers->len < TRAILERS_MAX) {
			g_ptr_array_add(f->trailers, g_strdup(s));
		} else if (!f->applied && says_applied(s) && !hedged(s)) {
			f->applied = g_strdup(s);
			f->part = names_part(s);
		}
		g_free(s);
	}
}

void reply_facts_clear(struct reply_facts *f)
{
	g_free(f->applied);
	g_ptr_array_free(f->trailers, TRUE);
}

/*
 * A patch inside a reply: an unquoted "From: A <b>" and below it an unquoted
 * "diff --git". A From: with Sent: or To: in the next four lines is the head
 * of a quotation (the way some mailers write it), not of a patch.
 */
GPtrArray *body_inline_authors(const char *text, gsize len)
{
	GPtrArray *found = g_ptr_array_new_with_free_func(g_free);
	struct lines l = { text, text + len };
	struct span line;
	char *pending = NULL;
	int age = 0;

	while (line_take(&l, &line)) {
		if (is_from(line)) {
			g_free(pending);
			pending = g_strndup(line.p + 5, line.len - 5);
			age = 0;
		} else if (pending && ++age <= 4 &&
			   (starts(line, "Sent: ") || starts(line, "To: "))) {
			g_clear_pointer(&pending, g_free);
		} else if (pending && starts(line, "diff --git ")) {
			g_ptr_array_add(found, g_steal_pointer(&pending));
		}
	}
	g_free(pending);
	return found;
}

/* SPDX-License-Identifier: MIT */
/*
 * Which patches were posted together.
 *
 * Mails of one series have the same sender, prefix, version and total (the
 * key). Among the open series of a key a mail joins, in this order:
 *
 * 1. one that has a mail this one answers, or answers this one, or answers the
 *    same mail (git send-email threads everything under the cover; the cover
 *    may arrive last or not at all);
 * 2. if neither side says what it answers: one whose place for this index is
 *    free and whose last mail is less than an hour away.
 *
 * A place that is taken is never taken twice: the same index again begins a
 * new series (a series that was posted twice).
 */
#include "digest.h"

#include <string.h>

#define OPEN_MAX	64		/* series of one key that are looked at */
#define NEAR		3600		/* seconds */

struct grouper {
	struct digest *d;
	GHashTable *keys;		/* char * -> GPtrArray of series, newest last */
	GHashTable *places;		/* struct place -> msg */
};

struct place {
	guint series;
	int index;
};

static guint place_hash(gconstpointer p)
{
	const struct place *x = p;

	return x->series * 2654435761u + (guint)x->index;
}

static gboolean place_same(gconstpointer a, gconstpointer b)
{
	const struct place *x = a, *y = b;

	return x->series == y->series && x->index == y->index;
}

static bool place_taken(struct grouper *g, const struct series *s, int index)
{
	struct place p = { s->number, index };

	return g_hash_table_contains(g->places, &p);
}

static char *key_make(const struct msg *m)
{
	const char *addr = strrchr(m->from, '<');
	char *low = g_ascii_strdown(addr ? addr : m->from, -1);
	char *key = g_strdup_printf("%s|%s|%d|%d|%d", low, m->prefix, m->version, m->total,
				    m->resend);

	g_free(low);
	return key;
}

static struct series *series_new(struct grouper *g, const struct msg *m)
{
	struct series *s = g_new0(struct series, 1);

	s->number = g->d->series->len;
	s->patches = g_ptr_array_new();
	s->replies = g_ptr_array_new();
	s->version = m->version;
	s->rfc = m->rfc;
	s->resend = m->resend;
	s->indexed = m->index >= 0;
	s->total = s->indexed ? m->total : 1;
	s->prefix = m->prefix;
	g_ptr_array_add(g->d->series, s);
	return s;
}

static void series_add(struct grouper *g, struct series *s, struct msg *m)
{
	struct place *p = g_new(struct place, 1);

	*p = (struct place){ s->number, m->index };
	g_hash_table_insert(g->places, p, m);
	m->series = s;
	if (m->index == 0 && s->indexed)
		s->cover = m;
	else
		g_ptr_array_add(s->patches, m);
	if (!s->root && m->nrefs && m->index != 0)
		s->root = m->refs[0];
}

static struct msg *series_last(const struct series *s)
{
	return s->patches->len ? s->patches->pdata[s->patches->len - 1] : s->cover;
}

/* Rule 1. */
static bool series_linked(struct digest *d, const struct series *s, const struct msg *m)
{
	if (s->root && m->id == s->root)
		return true;
	for (guint i = 0; i < m->nrefs; i++) {
		const struct msg *o = d->by_id->pdata[m->refs[i]];

		if (o && o->series == s)
			return true;
	}
	return m->nrefs && m->index != 0 && s->root == m->refs[0];
}

/* Rule 2. A cover may answer the older version while its patches answer it. */
static bool series_near(const struct series *s, const struct msg *m)
{
	const struct msg *last = series_last(s);
	gint64 gap = last->date > m->date ? last->date - m->date : m->date - last->date;

	return gap < NEAR && !s->root && !(m->nrefs && m->index != 0);
}

static struct series *series_find(struct grouper *g, GPtrArray *open, const struct msg *m)
{
	guint first = open->len > OPEN_MAX ? open->len - OPEN_MAX : 0;

	for (guint i = open->len; i-- > first;) {
		struct series *s = open->pdata[i];

		if (!place_taken(g, s, m->index) && series_linked(g->d, s, m))
			return s;
	}
	for (guint i = open->len; i-- > first;) {
		struct series *s = open->pdata[i];

		if (!place_taken(g, s, m->index) && series_near(s, m))
			return s;
	}
	return NULL;
}

static void group_one(struct grouper *g, struct msg *m)
{
	struct series *s = NULL;
	GPtrArray *open;
	char *key;

	if (m->index < 0) {		/* a patch on its own */
		series_add(g, series_new(g, m), m);
		return;
	}
	key = key_make(m);
	open = g_hash_table_lookup(g->keys, key);
	if (open) {
		g_free(key);
		s = series_find(g, open, m);
	} else {
		open = g_ptr_array_new();
		g_hash_table_insert(g->keys, key, open);
	}
	if (!s) {
		s = series_new(g, m);
		g_ptr_array_add(open, s);
	}
	series_add(g, s, m);
}

static int by_index(const void *a, const void *b)
{
	const struct msg *x = *(struct msg *const *)a, *y = *(struct msg *const *)b;

	return x->index - y->index;
}

static void array_free(gpointer p)
{
	g_ptr_array_free(p, TRUE);
}

void series_group(struct digest *d)
{
	struct grouper g = {
		.d = d,
		.keys = g_hash_table_new_full(g_str_hash, g_str_equal, g_free, array_free),
		.places = g_hash_table_new_full(place_hash, place_same, g_free, NULL),
	};

	for (guint i = 0; i < d->msgs->len; i++) {
		struct msg *m = d->msgs->pdata[i];

		if (m->patch)
			group_one(&g, m);
	}
	for (guint i = 0; i < d->series->len; i++) {
		struct series *s = d->series->pdata[i];
		const struct msg *head;

		g_ptr_array_sort(s->patches, by_index);
		head = series_head(s);
		s->title = head->title;
		s->author = head->author;
	}
	g_hash_table_destroy(g.keys);
	g_hash_table_destroy(g.places);
}

static void missing_run(GString *out, int from, int to, int total)
{
	if (from > to)
		return;
	if (out->len)
		g_string_append(out, ", ");
	if (from == to)
		g_string_append_printf(out, "%d/%d", from, total);
	else
		g_string_append_printf(out, "%d-%d/%d", from, to, total);
}

char *series_missing(const struct series *s)
{
	GString *out = g_string_new(NULL);
	int next = 1;

	for (guint i = 0; s->indexed && i < s->patches->len; i++) {
		const struct msg *m = s->patches->pdata[i];

		missing_run(out, next, m->index - 1, s->total);
		next = m->index + 1;
	}
	if (s->indexed)
		missing_run(out, next, s->total, s->total);
	return g_string_free(out, !out->len);
}

/* SPDX-License-Identifier: MIT */
#include "count.h"

#include <string.h>

#include "mime.h"

struct tally {
	GHashTable *domains, *people;	/* char * -> n */
};

static void bump(GHashTable *t, char *name)
{
	guint n = GPOINTER_TO_UINT(g_hash_table_lookup(t, name));

	g_hash_table_insert(t, name, GUINT_TO_POINTER(n + 1));
}

/* What follows the last '@', without '>'. */
static char *domain_of(const char *author, bool compat)
{
	const char *at = strrchr(author, '@');
	char *s = g_strdup(at ? at + 1 : author), *to = s;

	for (char *p = s; *p; p++)
		if (*p != '>')
			*to++ = *p;
	*to = '\0';
	if (!compat) {
		char *low = g_ascii_strdown(at ? s : "(none)", -1);

		g_free(s);
		return low;
	}
	return s;
}

static void tally_author(struct tally *t, const char *author, bool compat)
{
	bump(t->people, g_strdup(author));
	bump(t->domains, domain_of(author, compat));
}

/* The order of `sort -rn` in the C locale on lines of `uniq -c`. */
static int by_count(const void *a, const void *b)
{
	const struct count *x = a, *y = b;

	if (x->n != y->n)
		return x->n < y->n ? 1 : -1;
	return strcmp(y->name, x->name);
}

static GArray *ranked(GHashTable *t)
{
	GArray *out = g_array_new(FALSE, FALSE, sizeof(struct count));
	GHashTableIter it;
	gpointer name, n;

	g_hash_table_iter_init(&it, t);
	while (g_hash_table_iter_next(&it, &name, &n)) {
		struct count c = { g_strdup(name), GPOINTER_TO_UINT(n) };

		g_array_append_val(out, c);
	}
	g_array_sort(out, by_count);
	return out;
}

static void count_msg(const struct msg *m, bool compat, struct tally *t, struct counts *c)
{
	const char *author = compat ? m->raw_author : m->patch ? m->author : NULL;

	c->mails++;
	if (m->patch && m->index == 0)
		c->covers++;
	else if (m->patch)
		c->patches++;
	else if (m->series)
		c->replies++;
	else
		c->others++;
	if (author)
		tally_author(t, author, compat);
	for (guint i = 0; i < m->ninline; i++) {
		char *s = compat ? g_strdup(m->inline_authors[i])
				 : address_decoded(m->inline_authors[i]);

		tally_author(t, s, compat);
		g_free(s);
	}
}

void counts_make(const struct digest *d, bool compat, struct counts *c)
{
	struct tally t = {
		g_hash_table_new_full(g_str_hash, g_str_equal, g_free, NULL),
		g_hash_table_new_full(g_str_hash, g_str_equal, g_free, NULL),
	};

	memset(c, 0, sizeof(*c));
	for (guint i = 0; i < d->msgs->len; i++) {
		const struct msg *m = d->msgs->pdata[i];

		if (m->picked)
			count_msg(m, compat, &t, c);
	}
	c->domains = ranked(t.domains);
	c->people = ranked(t.people);
	g_hash_table_destroy(t.domains);
	g_hash_table_destroy(t.people);
}

static void list_clear(GArray *list)
{
	for (guint i = 0; i < list->len; i++)
		g_free((char *)g_array_index(list, struct count, i).name);
	g_array_free(list, TRUE);
}

void counts_clear(struct counts *c)
{
	list_clear(c->domains);
	list_clear(c->people);
}

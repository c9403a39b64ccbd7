/* SPDX-License-Identifier: MIT */
/*
 * Versions of the same work. A series is a re-roll of an earlier one in the
 * range when it says a higher version (or left RFC behind, or says RESEND) and
 * one of these holds, tried in this order:
 *
 * 1. they carry the same change-id;
 * 2. the titles are equal (case and blanks apart) and the sender is the same,
 *    or the title is long enough not to be an accident;
 * 3. the same sender, and at least half of the patch titles of the smaller one
 *    are in the other (the series was renamed or grew a cover).
 */
#include "digest.h"

#include <string.h>

#include "subject.h"

#define CANDIDATES_MAX	64
#define LONG_TITLE	24		/* bytes */

struct linker {
	GHashTable *by_change;		/* change-id -> GPtrArray of series */
	GHashTable *by_title;		/* folded title of the series */
	GHashTable *by_patch;		/* sender + folded title of a patch */
};

static char *fold(const char *title)
{
	return g_ascii_strdown(title, -1);
}

static const char *sender(const struct series *s)
{
	const char *from = series_head(s)->from, *addr = strrchr(from, '<');

	return addr ? addr : from;
}

static char *patch_key(const struct series *s, const struct msg *m)
{
	char *who = fold(sender(s)), *title = fold(m->title);
	char *key = g_strconcat(who, "|", title, NULL);

	g_free(who);
	g_free(title);
	return key;
}

static void put(GHashTable *t, char *key, struct series *s)
{
	GPtrArray *list = g_hash_table_lookup(t, key);

	if (!list) {
		list = g_ptr_array_new();
		g_hash_table_insert(t, key, list);
	} else {
		g_free(key);
	}
	if (!list->len || list->pdata[list->len - 1] != s)
		g_ptr_array_add(list, s);
}

static int version_of(const struct series *s)
{
	return s->version ? s->version : VERSION(1);
}

static bool may_follow(const struct series *s, const struct series *old)
{
	if (old == s || old->newer)
		return false;
	if (version_of(s) > version_of(old))
		return true;
	if (old->rfc && !s->rfc)
		return true;
	return s->resend && version_of(s) == version_of(old);
}

static const char *change_of(const struct series *s)
{
	const struct msg *head = series_head(s);

	return head->change_id;
}

/* Of those that may be older: the one with the highest version, the latest of them. */
static struct series *best(GPtrArray *list, const struct series *s, bool same_sender)
{
	struct series *found = NULL;
	guint first = list && list->len > CANDIDATES_MAX ? list->len - CANDIDATES_MAX : 0;

	for (guint i = list ? list->len : 0; i-- > first;) {
		struct series *o = list->pdata[i];

		if (!may_follow(s, o) || (same_sender && g_ascii_strcasecmp(sender(o), sender(s))))
			continue;
		if (!found || version_of(o) > version_of(found))
			found = o;
	}
	return found;
}

/* Rule 3: which older series shares the most patch titles. */
static struct series *best_by_patches(struct linker *l, const struct series *s)
{
	GHashTable *votes = g_hash_table_new(NULL, NULL);
	struct series *found = NULL;
	guint most = 0;

	for (guint i = 0; i < s->patches->len; i++) {
		char *key = patch_key(s, s->patches->pdata[i]);
		struct series *o = best(g_hash_table_lookup(l->by_patch, key), s, false);

		g_free(key);
		if (o) {
			guint n = GPOINTER_TO_UINT(g_hash_table_lookup(votes, o)) + 1;

			g_hash_table_insert(votes, o, GUINT_TO_POINTER(n));
			if (n > most) {
				most = n;
				found = o;
			}
		}
	}
	g_hash_table_destroy(votes);
	if (found && most * 2 < MIN(s->patches->len, found->patches->len))
		found = NULL;
	return found;
}

static struct series *older_of(struct linker *l, const struct series *s)
{
	struct series *o = NULL;
	char *title;

	if (change_of(s))
		o = best(g_hash_table_lookup(l->by_change, change_of(s)), s, false);
	if (!o) {
		title = fold(s->title);
		o = best(g_hash_table_lookup(l->by_title, title), s,
			 strlen(title) < LONG_TITLE);
		g_free(title);
	}
	return o ? o : best_by_patches(l, s);
}

static void array_free(gpointer p)
{
	g_ptr_array_free(p, TRUE);
}

static GHashTable *index_new(void)
{
	return g_hash_table_new_full(g_str_hash, g_str_equal, g_free, array_free);
}

void reroll_link(struct digest *d)
{
	struct linker l = { index_new(), index_new(), index_new() };

	for (guint i = 0; i < d->series->len; i++) {
		struct series *s = d->series->pdata[i];
		struct series *o = older_of(&l, s);

		if (o) {
			s->older = o;
			o->newer = s;
		}
		if (change_of(s))
			put(l.by_change, g_strdup(change_of(s)), s);
		put(l.by_title, fold(s->title), s);
		for (guint k = 0; k < s->patches->len; k++)
			put(l.by_patch, patch_key(s, s->patches->pdata[k]), s);
	}
	g_hash_table_destroy(l.by_change);
	g_hash_table_destroy(l.by_title);
	g_hash_table_destroy(l.by_patch);
}

/* ---- comparing two versions ---- */

static GHashTable *titles_of(const struct series *s)
{
	GHashTable *t = g_hash_table_new_full(g_str_hash, g_str_equal, g_free, NULL);

	for (guint i = 0; i < s->patches->len; i++) {
		struct msg *m = s->patches->pdata[i];

		g_hash_table_insert(t, fold(m->title), m);
	}
	return t;
}

/* Both lists sorted: what of @a is not in @b. */
static void files_minus(GPtrArray *a, GPtrArray *b, GPtrArray *out)
{
	guint k = 0;

	for (guint i = 0; i < a->len; i++) {
		int c = -1;

		while (k < b->len && (c = strcmp(b->pdata[k], a->pdata[i])) < 0)
			k++;
		if (k >= b->len || c)
			g_ptr_array_add(out, a->pdata[i]);
	}
}

static int by_name(const void *a, const void *b)
{
	return strcmp(*(const char *const *)a, *(const char *const *)b);
}

static GPtrArray *files_of(const struct series *s)
{
	GPtrArray *all = g_ptr_array_new();
	guint kept = 0;

	for (guint i = 0; i < s->patches->len; i++) {
		const struct msg *m = s->patches->pdata[i];

		for (guint k = 0; k < m->nfiles; k++)
			g_ptr_array_add(all, (gpointer)m->files[k]);
	}
	g_ptr_array_sort(all, by_name);
	for (guint i = 0; i < all->len; i++)
		if (!kept || strcmp(all->pdata[kept - 1], all->pdata[i]))
			all->pdata[kept++] = all->pdata[i];
	g_ptr_array_set_size(all, kept);
	return all;
}

static struct msg *by_hash(const struct series *s, guint64 hash)
{
	for (guint i = 0; hash && i < s->patches->len; i++) {
		struct msg *m = s->patches->pdata[i];

		if (m->hash == hash)
			return m;
	}
	return NULL;
}

static void compare_patches(const struct series *s, const struct series *o, struct reroll *r)
{
	GHashTable *old = titles_of(o), *now = titles_of(s);
	GHashTable *renamed = g_hash_table_new(NULL, NULL);

	for (guint i = 0; i < s->patches->len; i++) {
		struct msg *m = s->patches->pdata[i], *was;
		char *title = fold(m->title);

		was = g_hash_table_lookup(old, title);
		g_free(title);
		if (was) {
			g_ptr_array_add(was->hash == m->hash ? r->same : r->changed, m);
		} else if ((was = by_hash(o, m->hash))) {
			g_ptr_array_add(r->renamed, m);
			g_hash_table_add(renamed, was);
		} else {
			g_ptr_array_add(r->added, m);
		}
	}
	for (guint i = 0; i < o->patches->len; i++) {
		struct msg *m = o->patches->pdata[i];
		char *title = fold(m->title);

		if (!g_hash_table_contains(now, title) && !g_hash_table_contains(renamed, m))
			g_ptr_array_add(r->dropped, m);
		g_free(title);
	}
	g_hash_table_destroy(old);
	g_hash_table_destroy(now);
	g_hash_table_destroy(renamed);
}

struct reroll *reroll_compare(const struct series *s)
{
	GPtrArray *now, *old;
	struct reroll *r;

	if (!s->older)
		return NULL;
	r = g_new0(struct reroll, 1);
	r->added = g_ptr_array_new();
	r->dropped = g_ptr_array_new();
	r->changed = g_ptr_array_new();
	r->same = g_ptr_array_new();
	r->renamed = g_ptr_array_new();
	r->files_added = g_ptr_array_new();
	r->files_dropped = g_ptr_array_new();
	compare_patches(s, s->older, r);
	now = files_of(s);
	old = files_of(s->older);
	files_minus(now, old, r->files_added);
	files_minus(old, now, r->files_dropped);
	g_ptr_array_free(now, TRUE);
	g_ptr_array_free(old, TRUE);
	return r;
}

void reroll_free(struct reroll *r)
{
	if (!r)
		return;
	g_ptr_array_free(r->added, TRUE);
	g_ptr_array_free(r->dropped, TRUE);
	g_ptr_array_free(r->changed, TRUE);
	g_ptr_array_free(r->same, TRUE);
	g_ptr_array_free(r->renamed, TRUE);
	g_ptr_array_free(r->files_added, TRUE);
	g_ptr_array_free(r->files_dropped, TRUE);
	g_free(r);
}

static char *stage(const struct series *s, bool say_rfc)
{
	char v[16];

	version_text(s->version, v);
	return g_strdup_printf("%s%s", say_rfc && s->rfc ? "RFC " : "", v);
}

char *reroll_text(const struct series *s)
{
	char *now, *was, *text;
	bool rfc = s->older && s->older->rfc != s->rfc;

	if (!s->older && version_of(s) <= VERSION(1))
		return NULL;
	now = stage(s, rfc);
	if (!s->older) {
		text = g_strdup_printf("%s (no older version in this range)", now);
	} else {
		was = stage(s->older, rfc);
		text = g_strdup_printf("%s -> %s%s", was, now, s->resend ? " (resent)" : "");
		g_free(was);
	}
	g_free(now);
	return text;
}

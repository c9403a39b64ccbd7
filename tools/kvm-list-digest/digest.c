/* SPDX-License-Identifier: MIT */
#include "digest.h"

#include <string.h>

#include "body.h"
#include "mail.h"
#include "options.h"
#include "subject.h"
#include "util.h"

/* 0 is "none"; numbers begin at 1. */
static guint32 id_number(struct digest *d, const char *id)
{
	gpointer n = g_hash_table_lookup(d->id_numbers, id);
	char *kept;

	if (n)
		return GPOINTER_TO_UINT(n);
	kept = g_string_chunk_insert(d->text, id);
	g_ptr_array_add(d->ids, kept);
	g_ptr_array_add(d->by_id, NULL);
	g_hash_table_insert(d->id_numbers, kept, GUINT_TO_POINTER(d->ids->len - 1));
	return d->ids->len - 1;
}

static const char *keep(struct digest *d, const char *s)
{
	return g_string_chunk_insert(d->text, s);
}

/* For what repeats: names, prefixes, files. */
static const char *keep_one(struct digest *d, const char *s)
{
	return g_string_chunk_insert_const(d->text, s);
}

static const char **keep_all(struct digest *d, GPtrArray *from, guint *n)
{
	const char **list;

	*n = from->len;
	if (!from->len)
		return NULL;
	list = g_new(const char *, from->len);
	for (guint i = 0; i < from->len; i++)
		list[i] = keep_one(d, from->pdata[i]);
	return list;
}

/* 10.3: [PATCH] alone, or an index that is the number 0 or 1. */
static bool compat_shown(const char *group, const struct tag *t)
{
	return !strcmp(group, "[PATCH]") || t->index == 0 || t->index == 1;
}

static void load_compat(struct digest *d, const struct mail *mail, struct msg *m)
{
	const char *close = strchr(mail->raw_subject, ']');
	char *group, *author;
	struct tag t;

	if (mail->raw_subject[0] != '[' || !close)
		return;
	group = g_strndup(mail->raw_subject, close + 1 - mail->raw_subject);
	tag_parse(group, &t);
	if (strstr(group, "PATCH")) {
		/* An in-body From is in the first line; 1000 bytes hold a line of a mail. */
		char *front = g_strndup(mail->raw_body.p, MIN(mail->raw_body.len, 1000));

		author = body_author(front, false);
		m->raw_subject = keep(d, mail->raw_subject);
		m->raw_from = keep_one(d, mail->raw_from);
		if (author) {
			GString *clean = text_clean(author, strlen(author));

			m->raw_author = keep_one(d, clean->str);
			g_string_free(clean, TRUE);
		} else {
			m->raw_author = m->raw_from;
		}
		m->shown_compat = compat_shown(group, &t);
		g_free(author);
		g_free(front);
	}
	g_free(group);
}

static void load_patch(struct digest *d, const struct mail *mail, const struct tag *t,
		       struct msg *m)
{
	char *author = body_author(mail->text->str, true);
	struct patch_facts f;

	m->patch = true;
	m->rfc = t->rfc;
	m->resend = t->resend;
	m->version = t->version;
	m->index = t->index;
	m->total = t->total;
	m->subject = keep(d, mail->subject);
	m->title = m->subject + (t->title - mail->subject);
	m->prefix = keep_one(d, t->prefix);
	if (author) {
		char *s = address_decoded(author);

		m->author = keep_one(d, s);
		g_free(s);
	}
	patch_facts_get(mail->text->str, mail->text->len, &f);
	m->files = keep_all(d, f.files, &m->nfiles);
	m->changed = f.changed;
	m->added = f.added;
	m->removed = f.removed;
	m->hash = f.hash;
	if (f.change_id)
		m->change_id = keep_one(d, f.change_id);
	patch_facts_clear(&f);
	g_free(author);
}

static void load_reply(struct digest *d, const struct mail *mail, const struct options *o,
		       struct msg *m)
{
	struct reply_facts f;

	reply_facts_get(mail->text->str, mail->text->len, &f);
	if (f.applied) {
		m->applied = keep(d, f.applied);
		m->applied_part = f.part || strstr(mail->subject, "(subset)");
	}
	m->trailers = keep_all(d, f.trailers, &m->ntrailers);
	reply_facts_clear(&f);
	if (o->count_inline) {
		GPtrArray *a = body_inline_authors(mail->text->str, mail->text->len);

		m->inline_authors = keep_all(d, a, &m->ninline);
		g_ptr_array_free(a, TRUE);
	}
}

/* False when the mail is one that was seen before. */
static bool load_ids(struct digest *d, const struct mail *mail, struct msg *m)
{
	if (mail->id) {
		m->id = id_number(d, mail->id);
		if (d->by_id->pdata[m->id])
			return false;
		d->by_id->pdata[m->id] = m;
	}
	m->nrefs = mail->refs->len;
	m->refs = m->nrefs ? g_new(guint32, m->nrefs) : NULL;
	for (guint i = 0; i < m->nrefs; i++)
		m->refs[i] = id_number(d, mail->refs->pdata[i]);
	return true;
}

void digest_add(struct digest *d, const struct entry *e, const struct options *o,
		const char *raw, gsize len)
{
	struct msg *m = g_new0(struct msg, 1);
	struct mail mail;
	struct tag t;

	mail_parse(raw, len, &mail);
	if (!load_ids(d, &mail, m)) {
		d->duplicates++;
		g_free(m);
		goto out;
	}
	m->entry = e;
	m->date = mail.date ? mail.date : e->written;
	m->index = m->total = m->changed = -1;
	m->from = m->author = keep_one(d, mail.from);
	load_compat(d, &mail, m);
	tag_parse(mail.subject, &t);
	if (t.patch_any)
		load_patch(d, &mail, &t, m);
	else
		load_reply(d, &mail, o, m);
	g_ptr_array_add(d->msgs, m);
out:
	mail_clear(&mail);
}

static void msg_free(gpointer p)
{
	struct msg *m = p;

	g_free(m->refs);
	g_free(m->files);
	g_free(m->trailers);
	g_free(m->inline_authors);
	g_free(m);
}

static void series_free(gpointer p)
{
	struct series *s = p;

	g_ptr_array_free(s->patches, TRUE);
	g_ptr_array_free(s->replies, TRUE);
	g_free(s);
}

struct digest *digest_new(struct archive *a, struct range *r)
{
	struct digest *d = g_new0(struct digest, 1);

	d->archive = a;
	d->range = r;
	d->msgs = g_ptr_array_new_with_free_func(msg_free);
	d->series = g_ptr_array_new_with_free_func(series_free);
	d->ids = g_ptr_array_new();
	d->by_id = g_ptr_array_new();
	g_ptr_array_add(d->ids, "");
	g_ptr_array_add(d->by_id, NULL);
	d->id_numbers = g_hash_table_new(g_str_hash, g_str_equal);
	d->text = g_string_chunk_new(64 * 1024);
	return d;
}

void digest_link(struct digest *d, const struct options *o)
{
	series_group(d);
	thread_link(d);
	reroll_link(d);
	filter_apply(d, o);
}

struct digest *digest_load(struct archive *a, struct range *r, const struct options *o)
{
	struct digest *d = digest_new(a, r);

	progress_start("reading mails", r->entries->len, o->quiet);
	for (guint i = 0; i < r->entries->len; i++) {
		const struct entry *e = &g_array_index(r->entries, struct entry, i);
		git_odb_object *obj = archive_read(a, e);

		if (obj) {
			digest_add(d, e, o, git_odb_object_data(obj), git_odb_object_size(obj));
			git_odb_object_free(obj);
		} else {
			d->oversize++;
			warning("blob %s: a mail of more than %u MiB, left out",
				git_oid_tostr_s(&e->blob), MAIL_MAX >> 20);
		}
		progress_at(i + 1);
	}
	progress_end();
	digest_link(d, o);
	return d;
}

void digest_free(struct digest *d)
{
	g_ptr_array_free(d->series, TRUE);
	g_ptr_array_free(d->msgs, TRUE);
	g_ptr_array_free(d->ids, TRUE);
	g_ptr_array_free(d->by_id, TRUE);
	g_hash_table_destroy(d->id_numbers);
	g_string_chunk_free(d->text);
	g_free(d);
}

const char *msg_id(const struct digest *d, const struct msg *m)
{
	return d->ids->pdata[m->id];
}

const struct msg *series_head(const struct series *s)
{
	return s->cover ? s->cover : s->patches->pdata[0];
}

/* SPDX-License-Identifier: MIT */
/*
 * What is kept of a range: one struct msg per mail, one struct series per
 * posting of patches. Bodies are not kept; the output reads again those it
 * prints, so memory does not grow with their size.
 */
#ifndef KLD_DIGEST_H
#define KLD_DIGEST_H

#include <glib.h>
#include <stdbool.h>

#include "archive.h"

struct options;
struct series;

struct msg {
	const struct entry *entry;
	guint32 id;			/* number of its Message-ID, 0 for none */
	guint32 *refs;			/* numbers of the ids it answers, nearest first */
	guint nrefs;
	gint64 date;			/* Date header, else the commit's author time */

	/* --compat */
	const char *raw_subject;	/* NULL unless counted there */
	const char *raw_from;
	const char *raw_author;		/* in-body From, else raw_from; leading blank kept */
	bool shown_compat;

	/* decoded */
	const char *from;		/* header From: Name <addr> */
	const char *author;		/* in-body From, else from */
	bool patch;
	bool rfc, resend;
	int version, index, total;	/* as in struct tag; index -1: the only one */
	const char *subject, *title, *prefix;
	const char **files;
	guint nfiles;
	int changed, added, removed;
	guint64 hash;
	const char *change_id;

	/* replies */
	const char *applied;
	bool applied_part;		/* it says so of some of the patches */
	const char **trailers;
	guint ntrailers;
	const char **inline_authors;	/* --count-inline */
	guint ninline;

	struct series *series;		/* own for a patch, of the patch answered for a reply */
	struct msg *answers;		/* the patch a reply leads to */
	bool picked;			/* passes the filters */
};

struct series {
	guint number;			/* by arrival of its first mail, from 0 */
	struct msg *cover;		/* NULL when there is none in the range */
	GPtrArray *patches;		/* struct msg, by index */
	GPtrArray *replies;		/* struct msg, by arrival */
	int version, total;		/* total is 1 for a mail without an index */
	bool rfc, resend, indexed;
	const char *prefix;
	const char *title;		/* of the cover, else of the first patch */
	const char *author;		/* of the cover, else of the first patch */
	guint32 root;			/* the id the mails of it answer, 0 for none */
	struct series *older, *newer;	/* re-rolls in the range */
	struct msg *applied;		/* the reply that says so */
	bool picked;
};

struct digest {
	struct range *range;
	struct archive *archive;
	GPtrArray *msgs;		/* struct msg, by arrival, no duplicates */
	GPtrArray *series;		/* struct series, by arrival */
	GPtrArray *ids;			/* number -> Message-ID */
	guint duplicates;		/* mails dropped: their Message-ID was seen */
	guint oversize;			/* mails larger than MAIL_MAX, not looked at */
	GHashTable *id_numbers;
	GPtrArray *by_id;		/* number -> struct msg or NULL */
	GStringChunk *text;
};

struct digest *digest_new(struct archive *a, struct range *r);
void digest_add(struct digest *d, const struct entry *e, const struct options *o,
		const char *raw, gsize len);
/* After the last mail: series, threads, re-rolls, filters. */
void digest_link(struct digest *d, const struct options *o);
/* All of the above for a range of an archive. */
struct digest *digest_load(struct archive *a, struct range *r, const struct options *o);
void digest_free(struct digest *d);
const char *msg_id(const struct digest *d, const struct msg *m);
/* The mail that stands for the series: the cover, else its first patch. */
const struct msg *series_head(const struct series *s);

/* series.c: every patch into its series. */
void series_group(struct digest *d);
/* Indexes 1..total without a mail, as "2/7, 5/7"; NULL when none is missing. */
char *series_missing(const struct series *s);

/* thread.c: every reply to its patch; what the replies say. */
void thread_link(struct digest *d);

/* reroll.c: older and newer versions. */
void reroll_link(struct digest *d);

struct reroll {
	GPtrArray *added, *dropped, *changed, *same, *renamed;	/* struct msg */
	GPtrArray *files_added, *files_dropped;			/* const char * */
};

/* NULL when no older version is in the range. */
struct reroll *reroll_compare(const struct series *s);
void reroll_free(struct reroll *r);
/* "v3 -> v4", "RFC -> v1", "v4 (no older version in this range)"; NULL for a first version. */
char *reroll_text(const struct series *s);

/* filter.c: sets picked. */
void filter_apply(struct digest *d, const struct options *o);

#endif

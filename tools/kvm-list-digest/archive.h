/* SPDX-License-Identifier: MIT */
/* A public-inbox v2 archive: epochs, ranges of commits, the mails in them. */
#ifndef KLD_ARCHIVE_H
#define KLD_ARCHIVE_H

#include <git2.h>
#include <glib.h>

struct archive;

struct entry {
	git_oid blob;
	git_oid commit;
	gint64 written;			/* author time: the Date header, as imported */
	gint64 arrived;			/* committer time */
	unsigned epoch;			/* index into the archive, not the number N of N.git */
};

struct range {
	GArray *entries;		/* struct entry, oldest first, deletions applied */
	git_oid from, to;		/* from is all zero: the beginning of the archive */
	guint commits;			/* commits walked */
	guint deletions;		/* "d" commits among them */
	guint deleted;			/* mails dropped because of them */
};

struct archive *archive_open_repo(const char *path);
struct archive *archive_open_inbox(const char *dir);
void archive_close(struct archive *a);
unsigned archive_epochs(const struct archive *a);

/*
 * The commits after @from up to and with @to. NULL or "" for @from means the
 * beginning of the archive, for @to its newest commit. Does not return when a
 * name is unknown, when @from is not an ancestor of @to, or when a commit on
 * the way is not what a v2 archive holds.
 */
struct range *archive_range(struct archive *a, const char *from, const char *to);
void range_free(struct range *r);

/* NULL when the mail is larger than MAIL_MAX; does not return when it cannot be read. */
#define MAIL_MAX	(64u << 20)
git_odb_object *archive_read(struct archive *a, const struct entry *e);

#endif

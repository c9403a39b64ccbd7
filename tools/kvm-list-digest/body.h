/* SPDX-License-Identifier: MIT */
/* What the text of a mail says: who wrote the patch, what it touches, what a reply grants. */
#ifndef KLD_BODY_H
#define KLD_BODY_H

#include <glib.h>
#include <stdbool.h>

/* Value of a "From: " in the first line (blank lines before it allowed with @lenient), or NULL. */
char *body_author(const char *text, bool lenient);

/* Raw text for --compat: in-body From lines removed, up to and with the diffstat summary. */
GString *body_compat(const char *raw, gsize len);

/* Text for people: in-body header removed, up to and with the diffstat summary. */
#define BODY_SHOWN_MAX	(1u << 20)
GString *body_shown(const char *text, gsize len);

struct patch_facts {
	GPtrArray *files;		/* char *, each once, sorted */
	int changed, added, removed;	/* from the diffstat summary; changed is -1 without one */
	guint64 hash;			/* of the changed lines, blanks ignored; 0 without a diff */
	char *change_id;		/* NULL when there is none */
};

void patch_facts_get(const char *text, gsize len, struct patch_facts *f);
void patch_facts_clear(struct patch_facts *f);

struct reply_facts {
	char *applied;			/* the line that says so, or NULL */
	bool part;			/* the line names some of the patches */
	GPtrArray *trailers;		/* "Reviewed-by: A <b>", at most TRAILERS_MAX */
};

#define TRAILERS_MAX	16
void reply_facts_get(const char *text, gsize len, struct reply_facts *f);
void reply_facts_clear(struct reply_facts *f);

/* Authors of patches that stand unquoted inside a reply (--count-inline). */
GPtrArray *body_inline_authors(const char *text, gsize len);

#endif

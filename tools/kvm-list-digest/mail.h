/* SPDX-License-Identifier: MIT */
/* One mail, parsed; lives only as long as it is looked at. */
#ifndef KLD_MAIL_H
#define KLD_MAIL_H

#include "mime.h"

#define REFS_MAX	24

struct mail {
	/* As the bytes stand, for --compat: first physical line of each, UTF-8, no CR. */
	char *raw_subject;		/* what follows "Subject: " */
	char *raw_from;			/* what follows "From:", its leading blank included */
	struct span raw_body;

	/* Decoded: valid UTF-8, one line, never NULL. */
	char *subject;
	char *from;			/* Name <addr> */
	GString *text;
	gint64 date;			/* seconds since 1970; 0 when the field cannot be read */
	char *id;			/* without <>; NULL when there is none */
	GPtrArray *refs;		/* message ids, nearest first, at most REFS_MAX */
};

void mail_parse(const char *raw, gsize len, struct mail *m);
void mail_clear(struct mail *m);

#endif

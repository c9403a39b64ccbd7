/* SPDX-License-Identifier: MIT */
/* Who sent how much. */
#ifndef KLD_COUNT_H
#define KLD_COUNT_H

#include "digest.h"

#define TOP	15

struct count {
	const char *name;
	guint n;
};

struct counts {
	GArray *domains, *people;	/* struct count: most first, equal ones by descending bytes */
	guint mails, patches, covers, replies, others;
};

/* @compat: authors as the bytes stand, and only subjects spelled PATCH. */
void counts_make(const struct digest *d, bool compat, struct counts *c);
void counts_clear(struct counts *c);

#endif

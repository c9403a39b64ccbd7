/* SPDX-License-Identifier: MIT */
/* From the bytes of a mail to headers and to the text of its first text/plain part. */
#ifndef KLD_MIME_H
#define KLD_MIME_H

#include <glib.h>
#include <stdbool.h>

struct span {
	const char *p;
	gsize len;
};

/* The header block (with the last line end) and what comes after the empty line. */
void mime_split(const char *raw, gsize len, struct span *head, struct span *body);

/* First field of that name, as it stands, up to HEADER_MAX bytes. NULL p when absent. */
#define HEADER_MAX	(64u << 10)
struct span header_raw(struct span head, const char *name);
/* The same without its line breaks; NULL when absent. Free with g_free(). */
char *header_unfolded(struct span head, const char *name);
/* Unfolded, RFC 2047 words decoded, valid UTF-8, single blanks, no controls. */
char *header_decoded(struct span head, const char *name);
/* A mailbox in a header: "Name <addr>", decoded as above. */
char *address_decoded(const char *value);

/* Valid UTF-8 without NUL and CR; invalid bytes become U+FFFD. */
GString *text_clean(const char *p, gsize len);
void text_squeeze(char *s);

/* First text/plain part, decoded: valid UTF-8, no CR, no NUL. Never NULL. */
GString *mime_text(struct span head, struct span body);

void mime_init(void);

#endif

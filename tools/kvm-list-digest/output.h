/* SPDX-License-Identifier: MIT */
/* The formats. Each prints one digest. */
#ifndef KLD_OUTPUT_H
#define KLD_OUTPUT_H

#include "count.h"
#include "digest.h"
#include "options.h"
#include "out.h"

void output_compat(struct out *o, const struct digest *d, const struct options *opt);
void output_text(struct out *o, const struct digest *d, const struct options *opt);
void output_json(struct out *o, const struct digest *d, const struct options *opt);
void output_html(struct out *o, const struct digest *d, const struct options *opt);
void output_mbox(struct out *o, const struct digest *d, const struct options *opt);

/* ---- what they share (output.c) ---- */

/* "From A8 to B8" and the two tables; the same bytes in compat and text. */
void print_heading(struct out *o, const struct digest *d);
void print_tables(struct out *o, const struct counts *c);

/* "[RFC PATCH v3]", "2022-12-30", "2022-12-30 18:05:11 UTC". Free with g_free(). */
char *series_tag(const struct series *s);
char *date_text(gint64 t);
char *time_text(gint64 t);
/* "applied by Marc Zyngier <...>: Applied to next, thanks!"; NULL when nobody said so. */
char *series_applied(const struct series *s);
/* "applied", "applied in part" when the reply names some of the patches, or NULL. */
const char *series_applied_word(const struct series *s);
/* What the replies grant, each once, in order: char *. */
GPtrArray *series_trailers(const struct series *s);
/* <PREFIX>Message-ID, escaped for an address; NULL without --url or without an id. */
char *msg_url(const struct digest *d, const struct msg *m, const struct options *opt);
/* What the reader sees of a mail's text. The blob is read again. */
GString *msg_text(const struct digest *d, const struct msg *m);
/* The mails whose text is shown: the cover and the first patch there is. */
guint series_shown(const struct series *s, const struct msg *shown[2]);
/* First 8 digits. */
const char *oid8(const git_oid *oid, char buf[9]);

#endif

/* SPDX-License-Identifier: MIT */
/* Where the digest goes: buffered, checked, and made safe for its reader. */
#ifndef KLD_OUT_H
#define KLD_OUT_H

#include <glib.h>
#include <stdbool.h>

struct out;

/*
 * @path NULL: standard output. Else a temporary file beside @path that takes
 * its name in out_publish(). When the output is a terminal every control
 * character but tab and newline is removed, whatever the format.
 */
struct out *out_open(const char *path);
/* Everything is on the disk (under the temporary name), or the program ends with exit 2. */
void out_complete(struct out *o);
/* The temporary file takes its name. */
void out_publish(struct out *o);
/* The same for the file of a run that died: nothing to do when it has its name already. */
void out_publish_left(const char *path);
void out_close(struct out *o);

void out_raw(struct out *o, const char *p, gsize len);
void out_str(struct out *o, const char *s);
void out_fmt(struct out *o, const char *fmt, ...) __attribute__((format(printf, 2, 3)));
/* Without control characters (tab and newline stay) and without marks that reorder text. */
void out_text(struct out *o, const char *s);
/* The same with & < > " ' as entities. */
void out_html(struct out *o, const char *s);
/* A JSON string with its quotes; NULL is null. */
void out_json(struct out *o, const char *s);

#endif

/* SPDX-License-Identifier: MIT */
/* Section by section what the old script printed; nothing is decoded. */
#include "output.h"

#include <string.h>

#include "body.h"
#include "mime.h"
#include "util.h"

#define DASHES	"----------------------------------------------------------------------"

static void print_body(struct out *o, const struct digest *d, const struct msg *m)
{
	git_odb_object *obj = archive_read(d->archive, m->entry);
	struct span head, body;
	GString *text;

	if (!obj)
		fail("blob %s: changed while it was read", git_oid_tostr_s(&m->entry->blob));
	mime_split(git_odb_object_data(obj), git_odb_object_size(obj), &head, &body);
	text = body_compat(body.p, body.len);
	out_raw(o, text->str, text->len);
	g_string_free(text, TRUE);
	git_odb_object_free(obj);
}

static void print_msg(struct out *o, const struct digest *d, const struct msg *m)
{
	const char *from = m->raw_from;

	if (*from == ' ')
		from++;
	out_str(o, "New: ");
	out_str(o, strchr(m->raw_subject, ']') + 1);
	out_str(o, "\n");
	out_str(o, m->raw_subject);
	out_str(o, "\nAuthor: ");
	out_str(o, from);
	out_str(o, "\n\n");
	print_body(o, d, m);
	out_str(o, "\n" DASHES "\n\n");
}

void output_compat(struct out *o, const struct digest *d, const struct options *opt)
{
	struct counts c;

	(void)opt;
	counts_make(d, true, &c);
	print_heading(o, d);
	print_tables(o, &c);
	out_str(o, "===== Patch list in this time period =====\n\n\n");
	out_str(o, "===== Patch Commit Messages ====\n\n");
	for (guint i = d->msgs->len; i-- > 0;) {
		const struct msg *m = d->msgs->pdata[i];

		if (m->shown_compat && m->picked)
			print_msg(o, d, m);
	}
	counts_clear(&c);
}

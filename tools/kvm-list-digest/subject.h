/* SPDX-License-Identifier: MIT */
/* The tag in front of a subject: [RFC PATCH kvmtool v3.1 02/13]. */
#ifndef KLD_SUBJECT_H
#define KLD_SUBJECT_H

#include <stdbool.h>

struct tag {
	bool patch;			/* says PATCH, spelled so */
	bool patch_any;			/* says PATCH, Patch, patch */
	bool rfc;
	bool resend;
	int version;			/* v3 is 3000, v3.1 is 3001; 0 when not said */
	int index, total;		/* -1 when not said */
	char prefix[64];		/* what else the tag says: "RFC PATCH kvmtool" */
	const char *title;		/* into the subject: after the tag */
};

#define VERSION(major)	((major) * 1000)

/* Never fails: a subject without a tag gives patch == false and the whole as title. */
void tag_parse(const char *subject, struct tag *t);
/* "v3" or "v3.1"; "v1" for none said. */
const char *version_text(int version, char buf[16]);

#endif

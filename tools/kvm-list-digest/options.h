/* SPDX-License-Identifier: MIT */
/* The command line. */
#ifndef KLD_OPTIONS_H
#define KLD_OPTIONS_H

#include <glib.h>
#include <stdbool.h>

enum format { FORMAT_TEXT, FORMAT_COMPAT, FORMAT_JSON, FORMAT_HTML, FORMAT_MBOX };

struct options {
	const char *repo, *inbox;
	const char *from, *to;		/* NULL: beginning, newest */
	enum format format;
	gint64 since, until;		/* seconds; G_MININT64 and G_MAXINT64 for none */
	const char *author, *path;
	const char *state, *output;
	const char *url;
	bool count_inline, quiet;
};

/* Ends the program for --help, --version and a wrong command line. */
void options_parse(int argc, char **argv, struct options *o);

#endif

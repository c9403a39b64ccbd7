/* SPDX-License-Identifier: MIT */
#include "options.h"

#include <getopt.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

#include "util.h"

#ifndef KLD_VERSION
#define KLD_VERSION "1.0"
#endif

static const char help[] =
"usage: kvm-list-digest [options] (--repo EPOCH.git | --inbox DIR) [A B | A..B | A]\n"
"\n"
"Prints who sent what to a mailing list between the commits A (not included)\n"
"and B (included) of its public-inbox v2 archive. Without B: up to the newest\n"
"commit; without A: from the first.\n"
"\n"
"      --repo EPOCH.git   one epoch of the archive (default: the current folder)\n"
"      --inbox DIR        the archive: all epochs DIR/git/N.git, joined\n"
"      --format FORMAT    text (default), json, html or mbox\n"
"      --compat           the format of the old script, byte for byte\n"
"      --since DATE       mails dated DATE or later: YYYY-MM-DD[THH:MM[:SS]] in UTC,\n"
"                         or @seconds\n"
"      --until DATE       mails dated before DATE\n"
"      --author TEXT      series and mails of authors whose name or address holds TEXT\n"
"      --path PATH        series touching PATH: a file, a folder, or a pattern with *\n"
"      --count-inline     count the authors of patches inside replies too\n"
"      --url PREFIX       print PREFIX and the Message-ID as address of every mail\n"
"      --state FILE       begin where the last run ended; FILE remembers\n"
"  -o, --output FILE      write to FILE, which appears complete or not at all\n"
"  -q, --quiet            no progress\n"
"      --help             this text\n"
"      --version          the version\n"
"\n"
"Exit status: 0, or 2 with one line on stderr and nothing on stdout.\n";

enum { OPT_REPO = 256, OPT_INBOX, OPT_FORMAT, OPT_COMPAT, OPT_SINCE, OPT_UNTIL, OPT_AUTHOR,
       OPT_PATH, OPT_INLINE, OPT_URL, OPT_STATE, OPT_HELP, OPT_VERSION };

static const struct option longs[] = {
	{ "repo", required_argument, NULL, OPT_REPO },
	{ "inbox", required_argument, NULL, OPT_INBOX },
	{ "format", required_argument, NULL, OPT_FORMAT },
	{ "compat", no_argument, NULL, OPT_COMPAT },
	{ "since", required_argument, NULL, OPT_SINCE },
	{ "until", required_argument, NULL, OPT_UNTIL },
	{ "author", required_argument, NULL, OPT_AUTHOR },
	{ "path", required_argument, NULL, OPT_PATH },
	{ "count-inline", no_argument, NULL, OPT_INLINE },
	{ "url", required_argument, NULL, OPT_URL },
	{ "state", required_argument, NULL, OPT_STATE },
	{ "output", required_argument, NULL, 'o' },
	{ "quiet", no_argument, NULL, 'q' },
	{ "help", no_argument, NULL, OPT_HELP },
	{ "version", no_argument, NULL, OPT_VERSION },
	{ NULL, 0, NULL, 0 },
};

static enum format format_parse(const char *name)
{
	static const struct { const char *name; enum format f; } all[] = {
		{ "text", FORMAT_TEXT }, { "json", FORMAT_JSON },
		{ "html", FORMAT_HTML }, { "mbox", FORMAT_MBOX },
	};

	for (size_t i = 0; i < G_N_ELEMENTS(all); i++)
		if (!strcmp(all[i].name, name))
			return all[i].f;
	fail("--format %s: not text, json, html or mbox", name);
}

static gint64 date_parse(const char *opt, const char *s)
{
	int y, mo, d, h = 0, mi = 0, sec = 0, used = 0;
	char *end;
	GDateTime *t;
	gint64 v;

	if (*s == '@') {
		v = g_ascii_strtoll(s + 1, &end, 10);
		if (end == s + 1 || *end)
			fail("%s %s: not a number of seconds", opt, s);
		return v;
	}
	if ((sscanf(s, "%4d-%2d-%2d%n", &y, &mo, &d, &used) != 3 || s[used]) &&
	    (sscanf(s, "%4d-%2d-%2dT%2d:%2d%n", &y, &mo, &d, &h, &mi, &used) != 5 ||
	     (s[used] && strcmp(s + used, "Z"))) &&
	    (sscanf(s, "%4d-%2d-%2dT%2d:%2d:%2d%n", &y, &mo, &d, &h, &mi, &sec, &used) != 6 ||
	     (s[used] && strcmp(s + used, "Z"))))
		fail("%s %s: not a date (YYYY-MM-DD[THH:MM[:SS]] or @seconds)", opt, s);
	t = y >= 1 ? g_date_time_new_utc(y, mo, d, h, mi, sec) : NULL;
	if (!t)
		fail("%s %s: no such day or time", opt, s);
	v = g_date_time_to_unix(t);
	g_date_time_unref(t);
	return v;
}

static void option_take(int c, struct options *o)
{
	switch (c) {
	case OPT_REPO:		o->repo = optarg; break;
	case OPT_INBOX:		o->inbox = optarg; break;
	case OPT_FORMAT:	o->format = format_parse(optarg); break;
	case OPT_COMPAT:	o->format = FORMAT_COMPAT; break;
	case OPT_SINCE:		o->since = date_parse("--since", optarg); break;
	case OPT_UNTIL:		o->until = date_parse("--until", optarg); break;
	case OPT_AUTHOR:	o->author = optarg; break;
	case OPT_PATH:		o->path = optarg; break;
	case OPT_INLINE:	o->count_inline = true; break;
	case OPT_URL:		o->url = optarg; break;
	case OPT_STATE:		o->state = optarg; break;
	case 'o':		o->output = optarg; break;
	case 'q':		o->quiet = true; break;
	case OPT_HELP:
		fputs(help, stdout);
		exit(fflush(stdout) ? EXIT_BAD : 0);
	case OPT_VERSION:
		puts("kvm-list-digest " KLD_VERSION);
		exit(fflush(stdout) ? EXIT_BAD : 0);
	default:
		fail("the command line cannot be read; see --help");
	}
}

static void range_parse(int n, char **args, struct options *o)
{
	char *dots;

	if (n > 2)
		fail("%s: one name too many; see --help", args[2]);
	if (n == 2) {
		o->from = args[0];
		o->to = args[1];
	} else if (n == 1 && (dots = strstr(args[0], ".."))) {
		o->from = g_strndup(args[0], dots - args[0]);
		o->to = dots + 2;
	} else if (n == 1) {
		o->from = args[0];
	}
}

void options_parse(int argc, char **argv, struct options *o)
{
	int c, index = 0;

	*o = (struct options){ .since = G_MININT64, .until = G_MAXINT64 };
	opterr = 0;
	while ((c = getopt_long(argc, argv, "o:q", longs, &index)) != -1) {
		if (c == '?')
			fail("%s: no such option, or it needs a value; see --help",
			     argv[optind - 1]);
		option_take(c, o);
	}
	range_parse(argc - optind, argv + optind, o);
	if (o->repo && o->inbox)
		fail("--repo and --inbox exclude each other");
	if (!o->repo && !o->inbox)
		o->repo = ".";
}

/* SPDX-License-Identifier: MIT */
/*
 * kvm-list-digest: who sent what to a mailing list, from its public-inbox v2
 * archive. Two passes: the first reads and checks the whole range, so that
 * every error ends the program before a byte of output; the second prints,
 * reading again the mails whose text is shown.
 */
#include <locale.h>
#include <signal.h>
#include <stdlib.h>
#include <string.h>

#include "mime.h"
#include "options.h"
#include "output.h"
#include "state.h"
#include "util.h"

static void print(struct out *out, const struct digest *d, const struct options *o)
{
	static void (*const formats[])(struct out *, const struct digest *,
				       const struct options *) = {
		[FORMAT_TEXT] = output_text,
		[FORMAT_COMPAT] = output_compat,
		[FORMAT_JSON] = output_json,
		[FORMAT_HTML] = output_html,
		[FORMAT_MBOX] = output_mbox,
	};

	formats[o->format](out, d, o);
}

/* With a state: from where it stands, up to where a broken run was going. */
static struct range *range_open(struct archive *a, const struct options *o,
				const struct state *s)
{
	const char *from = o->from, *to = o->to;

	if (s && state_done(s))
		from = state_done(s);
	if (s && state_pending(s))
		to = state_pending(s);
	return archive_range(a, from, to);
}

int main(int argc, char **argv)
{
	struct state *state = NULL;
	struct archive *archive;
	struct options o;
	struct range *range;
	struct digest *d;
	struct out *out;
	char to[41];

	setlocale(LC_ALL, "C");
	signal(SIGPIPE, SIG_IGN);	/* a reader that went away is an error like any other */
	options_parse(argc, argv, &o);
	mime_init();
	if (o.output && strchr(o.output, '\n'))
		fail("--output: a name with a line break");
	if (o.state)
		state = state_open(o.state);
	if (state && state_left(state)) {
		char *pending = g_strdup(state_pending(state));

		out_publish_left(state_left(state));
		state_end(state, pending);
		state_close(state);
		g_free(pending);
		return 0;
	}
	archive = o.inbox ? archive_open_inbox(o.inbox) : archive_open_repo(o.repo);
	range = range_open(archive, &o, state);
	git_oid_tostr(to, sizeof(to), &range->to);
	if (state && !range->commits && !state_pending(state))
		goto out;		/* nothing new: nothing printed */
	d = digest_load(archive, range, &o);
	if (state)
		state_begin(state, to);
	out = out_open(o.output);
	print(out, d, &o);
	out_complete(out);
	if (state && o.output)
		state_ready(state, to, o.output);
	out_publish(out);
	if (state)
		state_end(state, to);
	out_close(out);
	digest_free(d);
out:
	range_free(range);
	archive_close(archive);
	if (state)
		state_close(state);
	return 0;
}

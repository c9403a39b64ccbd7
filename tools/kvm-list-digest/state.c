/* SPDX-License-Identifier: MIT */
/*
 * A crash must neither skip a mail nor print it in two digests.
 *
 * 1. Before the first byte of output the end of the range is written down as
 *    "pending". From then on the range is fixed: a run that finds it prints
 *    exactly that range again, byte for byte, whatever has arrived since.
 * 2. With --output the complete temporary file is written down as "ready"
 *    before it takes its name. A run that finds that gives it its name, if it
 *    has not got it, and does nothing else: the file appears exactly once.
 * 3. Then the range is "done". Only then does the next one begin.
 * 4. The state is replaced as a whole: temporary file, fsync, rename, fsync of
 *    the folder.
 *
 * On standard output 2 is not possible: a digest whose last byte went out just
 * before the crash is printed again, the same A to B, the same bytes.
 */
#include "state.h"

#include <errno.h>
#include <fcntl.h>
#include <glib.h>
#include <stdio.h>
#include <string.h>
#include <sys/file.h>
#include <unistd.h>

#include "util.h"

#define MAGIC	"kvm-list-digest state 1"

struct state {
	char *path, *temp;
	int dir;			/* locked while the program runs */
	char *done, *pending;
	char *left;			/* absolute; NULL unless ready */
};

static bool is_id(const char *s)
{
	return strlen(s) == 40 && strspn(s, "0123456789abcdef") == 40;
}

static void state_parse(struct state *s, char *text)
{
	char **lines = g_strsplit(text, "\n", -1);
	guint n = g_strv_length(lines);
	bool good = n >= 3 && !strcmp(lines[0], MAGIC) && !*lines[n - 1];

	for (guint i = 1; good && i + 1 < n; i++) {
		if (!s->done && g_str_has_prefix(lines[i], "done ") && is_id(lines[i] + 5))
			s->done = g_strdup(lines[i] + 5);
		else if (!s->pending && g_str_has_prefix(lines[i], "pending ") &&
			 is_id(lines[i] + 8))
			s->pending = g_strdup(lines[i] + 8);
		else if (!s->left && s->pending && g_str_has_prefix(lines[i], "ready /"))
			s->left = g_strdup(lines[i] + 6);
		else
			good = false;
	}
	g_strfreev(lines);
	if (!good)
		fail("%s: not a state file of kvm-list-digest", s->path);
}

struct state *state_open(const char *path)
{
	struct state *s = g_new0(struct state, 1);
	char *dir = g_path_get_dirname(path);
	GError *e = NULL;
	char *text;

	s->path = g_strdup(path);
	s->temp = g_strconcat(path, ".tmp", NULL);
	s->dir = open(dir, O_RDONLY | O_DIRECTORY | O_CLOEXEC);
	if (s->dir < 0 || flock(s->dir, LOCK_EX) < 0)
		fail("%s: the folder of the state file: %s", dir, strerror(errno));
	if (g_file_get_contents(path, &text, NULL, &e)) {
		state_parse(s, text);
		g_free(text);
	} else if (!g_error_matches(e, G_FILE_ERROR, G_FILE_ERROR_NOENT)) {
		fail("%s: cannot be read: %s", path, e->message);
	}
	g_clear_error(&e);
	g_free(dir);
	return s;
}

const char *state_done(const struct state *s)
{
	return s->done;
}

const char *state_pending(const struct state *s)
{
	return s->pending;
}

static bool write_all(int fd, const char *p, gsize left)
{
	while (left) {
		ssize_t n = write(fd, p, left);

		if (n < 0 && errno == EINTR)
			continue;
		if (n < 0)
			return false;
		p += n;
		left -= n;
	}
	return true;
}

static void state_write(struct state *s)
{
	GString *text = g_string_new(MAGIC "\n");
	int fd;

	if (s->done)
		g_string_append_printf(text, "done %s\n", s->done);
	if (s->pending)
		g_string_append_printf(text, "pending %s\n", s->pending);
	if (s->left)
		g_string_append_printf(text, "ready %s\n", s->left);
	fd = open(s->temp, O_WRONLY | O_CREAT | O_TRUNC | O_NOFOLLOW | O_CLOEXEC, 0666);
	if (fd < 0 || !write_all(fd, text->str, text->len) || fsync(fd) < 0 || close(fd) < 0 ||
	    rename(s->temp, s->path) < 0 || fsync(s->dir) < 0)
		fail("%s: the state cannot be written: %s", s->path, strerror(errno));
	g_string_free(text, TRUE);
}

void state_begin(struct state *s, const char *to)
{
	if (s->pending && !strcmp(s->pending, to))
		return;
	g_free(s->pending);
	s->pending = g_strdup(to);
	state_write(s);
}

void state_ready(struct state *s, const char *to, const char *path)
{
	state_begin(s, to);
	s->left = g_canonicalize_filename(path, NULL);
	state_write(s);
}

const char *state_left(const struct state *s)
{
	return s->left;
}

void state_end(struct state *s, const char *to)
{
	g_free(s->done);
	s->done = g_strdup(to);
	g_clear_pointer(&s->pending, g_free);
	g_clear_pointer(&s->left, g_free);
	state_write(s);
}

void state_close(struct state *s)
{
	close(s->dir);
	g_free(s->path);
	g_free(s->temp);
	g_free(s->done);
	g_free(s->pending);
	g_free(s->left);
	g_free(s);
}

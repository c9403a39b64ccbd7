/* SPDX-License-Identifier: MIT */
/*
 * Walking a public-inbox v2 archive.
 *
 * 1. History is linear: one parent each. A merge is an error, not a choice.
 * 2. The tree of every commit in the range holds one blob, named "m" (a mail)
 *    or "d" (the mail that is taken back). Anything else is an error.
 * 3. A mail is dropped when its blob is the "d" of any commit in the range,
 *    earlier or later.
 * 4. A shallow clone ends where its "shallow" file says. libgit2 before 1.7
 *    does not know that file, so its revision walker is not used.
 *
 * Nothing in the environment and no configuration of the user takes part:
 * the search paths of libgit2 are emptied before the first repository is
 * opened. Its ownership check guards against configuration that starts
 * programs; nothing here starts programs, so it is turned off, and archives of
 * other users can be read.
 */
#include "archive.h"

#include <string.h>

#include "util.h"

struct epoch {
	git_repository *repo;
	git_odb *odb;
	char *path;
	guint64 number;			/* N of N.git */
	GHashTable *shallow;		/* char[41] of commits whose parents were not cloned */
};

struct archive {
	GArray *epochs;			/* struct epoch, oldest first */
};

static const char *git_why(void)
{
	const git_error *e = git_error_last();

	return e && e->message ? e->message : "unknown error";
}

static struct epoch *epoch_at(const struct archive *a, unsigned i)
{
	return &g_array_index(a->epochs, struct epoch, i);
}

static void library_setup(void)
{
	static const int levels[] = {
		GIT_CONFIG_LEVEL_PROGRAMDATA, GIT_CONFIG_LEVEL_SYSTEM,
		GIT_CONFIG_LEVEL_XDG, GIT_CONFIG_LEVEL_GLOBAL,
	};

	if (git_libgit2_init() < 0)
		fail("libgit2 does not start: %s", git_why());
	for (size_t i = 0; i < G_N_ELEMENTS(levels); i++)
		git_libgit2_opts(GIT_OPT_SET_SEARCH_PATH, levels[i], "");
	git_libgit2_opts(GIT_OPT_SET_OWNER_VALIDATION, 0);
	/* A pack of 1 GB must not become 1 GB of resident memory. */
	git_libgit2_opts(GIT_OPT_SET_MWINDOW_SIZE, (size_t)4 << 20);
	git_libgit2_opts(GIT_OPT_SET_MWINDOW_MAPPED_LIMIT, (size_t)32 << 20);
	git_libgit2_opts(GIT_OPT_ENABLE_CACHING, 0);	/* nothing is read twice in one walk */
}

static GHashTable *shallow_read(git_repository *repo)
{
	GHashTable *set = g_hash_table_new_full(g_str_hash, g_str_equal, g_free, NULL);
	char *name = g_build_filename(git_repository_path(repo), "shallow", NULL);
	char *text = NULL;

	if (g_file_get_contents(name, &text, NULL, NULL)) {
		char **lines = g_strsplit(text, "\n", -1);

		for (char **l = lines; *l; l++)
			if (strlen(*l) >= GIT_OID_HEXSZ)
				g_hash_table_add(set, g_strndup(*l, GIT_OID_HEXSZ));
		g_strfreev(lines);
		g_free(text);
	}
	g_free(name);
	return set;
}

static void epoch_add(struct archive *a, const char *path, guint64 number)
{
	struct epoch e = { .number = number };

	if (git_repository_open_ext(&e.repo, path, GIT_REPOSITORY_OPEN_NO_SEARCH, NULL) < 0)
		fail("%s: not a git repository that can be read: %s", path, git_why());
	if (git_repository_odb(&e.odb, e.repo) < 0)
		fail("%s: no object database: %s", path, git_why());
	e.path = g_strdup(path);
	e.shallow = shallow_read(e.repo);
	g_array_append_val(a->epochs, e);
}

static struct archive *archive_new(void)
{
	struct archive *a = g_new0(struct archive, 1);

	library_setup();
	a->epochs = g_array_new(FALSE, TRUE, sizeof(struct epoch));
	return a;
}

struct archive *archive_open_repo(const char *path)
{
	struct archive *a = archive_new();

	epoch_add(a, path, 0);
	return a;
}

static int by_number(const void *x, const void *y)
{
	guint64 a = *(const guint64 *)x, b = *(const guint64 *)y;

	return a < b ? -1 : a > b;
}

/* "17.git" is 17; anything else, and any other spelling of 17, is not an epoch. */
static bool epoch_number(const char *name, guint64 *number)
{
	size_t digits = strspn(name, "0123456789");

	if (!digits || digits > 9 || strcmp(name + digits, ".git"))
		return false;
	if (name[0] == '0' && digits > 1)
		return false;
	*number = g_ascii_strtoull(name, NULL, 10);
	return true;
}

struct archive *archive_open_inbox(const char *dir)
{
	struct archive *a = archive_new();
	GArray *numbers = g_array_new(FALSE, FALSE, sizeof(guint64));
	char *git = g_build_filename(dir, "git", NULL);
	GDir *d = g_dir_open(git, 0, NULL);
	const char *name;
	guint64 n;

	if (!d)
		fail("%s: not an inbox: no folder \"git\" that can be read in it", dir);
	while ((name = g_dir_read_name(d)))
		if (epoch_number(name, &n))
			g_array_append_val(numbers, n);
	g_dir_close(d);
	g_array_sort(numbers, by_number);
	if (!numbers->len)
		fail("%s: not an inbox: no git/N.git in it", dir);
	for (guint i = 0; i < numbers->len; i++) {
		char *path;

		n = g_array_index(numbers, guint64, i);
		path = g_strdup_printf("%s/%" G_GUINT64_FORMAT ".git", git, n);
		epoch_add(a, path, n);
		g_free(path);
	}
	g_array_free(numbers, TRUE);
	g_free(git);
	return a;
}

void archive_close(struct archive *a)
{
	for (guint i = 0; i < a->epochs->len; i++) {
		struct epoch *e = epoch_at(a, i);

		git_odb_free(e->odb);
		git_repository_free(e->repo);
		g_hash_table_destroy(e->shallow);
		g_free(e->path);
	}
	g_array_free(a->epochs, TRUE);
	g_free(a);
	git_libgit2_shutdown();
}

unsigned archive_epochs(const struct archive *a)
{
	return a->epochs->len;
}

/* False for an epoch without a commit (public-inbox makes them ahead of time). */
static bool epoch_tip(struct epoch *e, git_oid *tip)
{
	git_reference *head = NULL;
	git_object *commit = NULL;
	int rc = git_repository_head(&head, e->repo);

	if (rc == GIT_EUNBORNBRANCH || rc == GIT_ENOTFOUND)
		return false;
	if (rc < 0)
		fail("%s: HEAD cannot be read: %s", e->path, git_why());
	if (git_reference_peel(&commit, head, GIT_OBJECT_COMMIT) < 0)
		fail("%s: HEAD is not a commit: %s", e->path, git_why());
	git_oid_cpy(tip, git_object_id(commit));
	git_object_free(commit);
	git_reference_free(head);
	return true;
}

static bool name_resolve(struct archive *a, const char *name, git_oid *oid, unsigned *epoch)
{
	for (unsigned i = a->epochs->len; i-- > 0;) {
		git_object *obj = NULL, *commit = NULL;
		int rc = git_revparse_single(&obj, epoch_at(a, i)->repo, name);

		if (rc == GIT_EAMBIGUOUS)
			fail("%s: ambiguous: more than one object begins with it", name);
		if (rc < 0)
			continue;
		if (git_object_peel(&commit, obj, GIT_OBJECT_COMMIT) < 0)
			fail("%s: not a commit", name);
		git_oid_cpy(oid, git_object_id(commit));
		*epoch = i;
		git_object_free(commit);
		git_object_free(obj);
		return true;
	}
	return false;
}

struct walk {
	struct range *range;
	GHashTable *gone;		/* git_oid of removed blobs */
};

/* The one blob of a commit's tree: 'm' or 'd'. */
static char commit_blob(struct epoch *e, git_commit *c, git_oid *blob)
{
	const char *id = git_oid_tostr_s(git_commit_id(c));
	const git_tree_entry *te;
	const char *name;
	git_tree *tree = NULL;
	char kind;

	if (git_tree_lookup(&tree, e->repo, git_commit_tree_id(c)) < 0)
		fail("commit %s: its tree cannot be read: %s", id, git_why());
	if (git_tree_entrycount(tree) != 1)
		fail("commit %s: its tree has %zu entries, not one \"m\" or \"d\"", id,
		     git_tree_entrycount(tree));
	te = git_tree_entry_byindex(tree, 0);
	name = git_tree_entry_name(te);
	if ((strcmp(name, "m") && strcmp(name, "d")) ||
	    git_tree_entry_type(te) != GIT_OBJECT_BLOB)
		fail("commit %s: its tree has neither a mail \"m\" nor a removal \"d\"", id);
	git_oid_cpy(blob, git_tree_entry_id(te));
	kind = name[0];
	git_tree_free(tree);
	return kind;
}

static guint oid_hash(gconstpointer p)
{
	guint h;

	memcpy(&h, ((const git_oid *)p)->id, sizeof(h));
	return h;
}

static gboolean oid_same(gconstpointer a, gconstpointer b)
{
	return git_oid_equal(a, b);
}

static void walk_commit(struct walk *w, struct archive *a, unsigned epoch, git_commit *c)
{
	struct entry en = { .epoch = epoch };
	char kind = commit_blob(epoch_at(a, epoch), c, &en.blob);

	w->range->commits++;
	if (kind == 'd') {
		git_oid *key = g_memdup2(&en.blob, sizeof(en.blob));

		w->range->deletions++;
		g_hash_table_add(w->gone, key);
		return;
	}
	git_oid_cpy(&en.commit, git_commit_id(c));
	en.written = git_commit_author(c)->when.time;
	en.arrived = git_commit_committer(c)->when.time;
	g_array_append_val(w->range->entries, en);
}

/* From @tip back to @stop (not included) or to the root. True when @stop was met. */
static bool walk_epoch(struct walk *w, struct archive *a, unsigned epoch, const git_oid *tip,
		       const git_oid *stop)
{
	struct epoch *e = epoch_at(a, epoch);
	git_oid at = *tip;

	for (;;) {
		git_commit *c = NULL;
		unsigned parents;

		if (stop && git_oid_equal(&at, stop))
			return true;
		if (git_commit_lookup(&c, e->repo, &at) < 0)
			fail("commit %s: cannot be read: %s", git_oid_tostr_s(&at), git_why());
		walk_commit(w, a, epoch, c);
		parents = git_commit_parentcount(c);
		if (parents > 1)
			fail("commit %s: a merge; an archive has none", git_oid_tostr_s(&at));
		if (parents && g_hash_table_contains(e->shallow, git_oid_tostr_s(&at)))
			parents = 0;
		if (parents)
			at = *git_commit_parent_id(c, 0);
		git_commit_free(c);
		if (!parents)
			return false;
	}
}

static void entries_reverse(GArray *entries)
{
	for (guint i = 0, j = entries->len; i + 1 < j; i++) {
		struct entry *x = &g_array_index(entries, struct entry, i);
		struct entry *y = &g_array_index(entries, struct entry, --j);
		struct entry t = *x;

		*x = *y;
		*y = t;
	}
}

static void entries_drop(struct range *r, GHashTable *gone)
{
	guint kept = 0;

	for (guint i = 0; i < r->entries->len; i++) {
		struct entry *e = &g_array_index(r->entries, struct entry, i);

		if (g_hash_table_contains(gone, &e->blob))
			r->deleted++;
		else
			g_array_index(r->entries, struct entry, kept++) = *e;
	}
	g_array_set_size(r->entries, kept);
}

/* Newest epoch that has a commit; false when none has. */
static bool newest(struct archive *a, git_oid *oid, unsigned *epoch)
{
	for (*epoch = a->epochs->len; (*epoch)-- > 0;)
		if (epoch_tip(epoch_at(a, *epoch), oid))
			return true;
	return false;
}

static void gap_check(struct archive *a, unsigned first, unsigned last)
{
	for (unsigned i = first; i < last; i++)
		if (epoch_at(a, i)->number + 1 != epoch_at(a, i + 1)->number)
			fail("epoch %" G_GUINT64_FORMAT ".git is missing between A and B",
			     epoch_at(a, i)->number + 1);
}

struct range *archive_range(struct archive *a, const char *from, const char *to)
{
	struct range *r = g_new0(struct range, 1);
	struct walk w = { .range = r };
	bool has_from = from && *from, met = false;
	unsigned first = 0, last = 0;
	git_oid tip;

	r->entries = g_array_new(FALSE, FALSE, sizeof(struct entry));
	w.gone = g_hash_table_new_full(oid_hash, oid_same, g_free, NULL);
	if (has_from && !name_resolve(a, from, &r->from, &first))
		fail("%s: no such commit in the archive", from);
	if (to && *to) {
		if (!name_resolve(a, to, &r->to, &last))
			fail("%s: no such commit in the archive", to);
	} else if (!newest(a, &r->to, &last)) {
		fail("%s: no commit in it", epoch_at(a, 0)->path);
	}
	if (first > last)
		fail("%s is not an ancestor of %s: it is in a later epoch", from,
		     git_oid_tostr_s(&r->to));
	gap_check(a, first, last);
	for (unsigned i = last + 1; i-- > first;) {
		if (i == last)
			tip = r->to;
		else if (!epoch_tip(epoch_at(a, i), &tip))
			continue;
		met = walk_epoch(&w, a, i, &tip, has_from && i == first ? &r->from : NULL);
	}
	if (has_from && !met)
		fail("%s is not an ancestor of %s", from, to && *to ? to : "the newest commit");
	entries_reverse(r->entries);
	entries_drop(r, w.gone);
	g_hash_table_destroy(w.gone);
	return r;
}

void range_free(struct range *r)
{
	g_array_free(r->entries, TRUE);
	g_free(r);
}

git_odb_object *archive_read(struct archive *a, const struct entry *e)
{
	struct epoch *ep = epoch_at(a, e->epoch);
	git_odb_object *obj = NULL;
	git_object_t type;
	size_t len;

	if (git_odb_read_header(&len, &type, ep->odb, &e->blob) < 0)
		fail("blob %s: cannot be read: %s", git_oid_tostr_s(&e->blob), git_why());
	if (type != GIT_OBJECT_BLOB)
		fail("object %s: not a blob", git_oid_tostr_s(&e->blob));
	if (len > MAIL_MAX)
		return NULL;
	if (git_odb_read(&obj, ep->odb, &e->blob) < 0)
		fail("blob %s: cannot be read: %s", git_oid_tostr_s(&e->blob), git_why());
	return obj;
}

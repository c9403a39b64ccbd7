/* SPDX-License-Identifier: MIT */
#include "cli/cli.h"

#include <limits.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <unistd.h>

#define OBJECT "libsoftkvm-preload.so"

/* Relative to the directory of this command: the build tree, an installation, a Debian one. */
static const char *const places[] = { "", "../lib/softkvm/", "../lib/" };

static bool try_place(const char *dir, const char *place, char *path, size_t size)
{
	char candidate[2 * PATH_MAX], resolved[PATH_MAX];

	snprintf(candidate, sizeof(candidate), "%s/%s" OBJECT, dir, place);
	if (!realpath(candidate, resolved) || strlen(resolved) >= size)
		return false;
	strcpy(path, resolved);
	return true;
}

int preload_find(char *path, size_t size)
{
	char self[PATH_MAX], *slash;
	ssize_t n = readlink("/proc/self/exe", self, sizeof(self) - 1);
	bool found = false;

	self[n > 0 ? n : 0] = '\0';
	slash = strrchr(self, '/');
	if (slash) {
		*slash = '\0';
		for (unsigned i = 0; i < ARRAY_SIZE(places) && !found; i++)
			found = try_place(self, places[i], path, size);
	}
	if (!found && !try_place(SOFTKVM_LIBDIR, "", path, size)) {
		complain("cannot find " OBJECT " beside this command, in ../lib/softkvm or in " SOFTKVM_LIBDIR);
		return EXIT_USAGE;
	}
	if (strpbrk(path, " :\t\n")) {
		complain("the dynamic linker splits LD_PRELOAD at blanks and colons, and \"%s\" has one: "
			 "install SoftKVM in another directory", path);
		return EXIT_USAGE;
	}
	return 0;
}

static bool listed(const char *list, const char *path)
{
	size_t len = strlen(path);

	for (const char *p = list; (p = strstr(p, path)); p += len)
		if ((p == list || strchr(" :", p[-1])) && (!p[len] || strchr(" :", p[len])))
			return true;
	return false;
}

int preload_install(const char *path)
{
	const char *old = getenv("LD_PRELOAD");
	size_t size = strlen(path) + (old ? strlen(old) : 0) + 2;
	char *value;
	int r;

	if (old && listed(old, path))
		return 0;
	value = malloc(size);
	if (!value)
		return -1;
	snprintf(value, size, "%s%s%s", path, old && *old ? ":" : "", old ? old : "");
	r = setenv("LD_PRELOAD", value, 1);
	free(value);
	return r;
}

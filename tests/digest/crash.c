/* SPDX-License-Identifier: MIT */
/*
 * Preloaded by check-digest-state: the process ends, as by a power cut, at the n-th
 * call that changes a file (CRASH_AT=n, counted from 1). A write() that is hit
 * writes half of its bytes first; a rename() or fsync() that is hit is done
 * when CRASH_AFTER is set, and not done otherwise.
 */
#include <dlfcn.h>
#include <stdio.h>
#include <stdlib.h>
#include <unistd.h>

static int hit(void)
{
	static int calls;
	const char *at = getenv("CRASH_AT");

	return at && ++calls == atoi(at);
}

static int after(void)
{
	return getenv("CRASH_AFTER") != NULL;
}

ssize_t write(int fd, const void *p, size_t n)
{
	ssize_t (*real)(int, const void *, size_t) = dlsym(RTLD_NEXT, "write");

	if (fd != STDERR_FILENO && hit()) {
		real(fd, p, after() ? n : n / 2);
		_exit(137);
	}
	return real(fd, p, n);
}

int fsync(int fd)
{
	int (*real)(int) = dlsym(RTLD_NEXT, "fsync");

	if (hit()) {
		if (after())
			real(fd);
		_exit(137);
	}
	return real(fd);
}

int rename(const char *from, const char *to)
{
	int (*real)(const char *, const char *) = dlsym(RTLD_NEXT, "rename");

	if (hit()) {
		if (after())
			real(from, to);
		_exit(137);
	}
	return real(from, to);
}

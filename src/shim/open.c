/* SPDX-License-Identifier: MIT */
/* open(2) and its relatives. */
#include "shim/shim.h"

#include <stdarg.h>
#include <string.h>

#define MODE(flags, last)                                                       \
	({                                                                      \
		mode_t mode_ = 0;                                               \
		if ((flags) & (O_CREAT | (O_TMPFILE & ~O_DIRECTORY))) {         \
			va_list ap_;                                            \
			va_start(ap_, last);                                    \
			mode_ = va_arg(ap_, mode_t);                            \
			va_end(ap_);                                            \
		}                                                               \
		mode_;                                                          \
	})

/* True when the path is ours, *r then answers. */
static bool open_fake(int dirfd, const char *path, int flags, int *r)
{
	struct fake fake = fake_lookup(dirfd, path);

	if (likely(!fake_is_file(&fake)))
		return false;
	*r = answer(fake_open(&fake, flags));
	return true;
}

#define OPEN(name)                                                              \
shim_public int name(const char *path, int flags, ...)                          \
{                                                                               \
	mode_t mode = MODE(flags, flags);                                       \
	int r;                                                                  \
                                                                                \
	return open_fake(AT_FDCWD, path, flags, &r) ? r : real(name)(path, flags, mode); \
}
OPEN(open)
OPEN(open64)

#define OPENAT(name)                                                            \
shim_public int name(int dirfd, const char *path, int flags, ...)               \
{                                                                               \
	mode_t mode = MODE(flags, flags);                                       \
	int r;                                                                  \
                                                                                \
	return open_fake(dirfd, path, flags, &r) ? r : real(name)(dirfd, path, flags, mode); \
}
OPENAT(openat)
OPENAT(openat64)

shim_public int creat(const char *path, mode_t mode)
{
	int r;

	return open_fake(AT_FDCWD, path, O_WRONLY | O_CREAT | O_TRUNC, &r) ? r : real(creat)(path, mode);
}

shim_public int creat64(const char *path, mode_t mode)
{
	int r;

	return open_fake(AT_FDCWD, path, O_WRONLY | O_CREAT | O_TRUNC, &r) ? r : real(creat64)(path, mode);
}

/* What fortified programs call; libc's own also refuse O_CREAT, which the compiler has seen to. */
shim_public int __open_2(const char *path, int flags)
{
	return open(path, flags);
}

shim_public int __open64_2(const char *path, int flags)
{
	return open64(path, flags);
}

shim_public int __openat_2(int dirfd, const char *path, int flags)
{
	return openat(dirfd, path, flags);
}

shim_public int __openat64_2(int dirfd, const char *path, int flags)
{
	return openat64(dirfd, path, flags);
}

/* ---- streams ------------------------------------------------------------------------ */

static int mode_flags(const char *mode)
{
	int flags = strchr(mode, '+') ? O_RDWR : mode[0] == 'r' ? O_RDONLY : O_WRONLY;

	if (mode[0] == 'w')
		flags |= O_CREAT | O_TRUNC;
	if (mode[0] == 'a')
		flags |= O_CREAT | O_APPEND;
	if (strchr(mode, 'e'))
		flags |= O_CLOEXEC;
	if (strchr(mode, 'x'))
		flags |= O_EXCL;
	return flags;
}

static FILE *fopen_fake(const struct fake *fake, const char *mode)
{
	int fd = fake_open(fake, mode_flags(mode));
	FILE *f;

	if (fd < 0) {
		errno = -fd;
		return NULL;
	}
	f = fdopen(fd, mode);
	if (!f)
		shim_close(fd);
	return f;
}

#define FOPEN(name)                                                             \
shim_public FILE *name(const char *path, const char *mode)                      \
{                                                                               \
	struct fake fake = fake_lookup(AT_FDCWD, path);                         \
                                                                                \
	return fake_is_file(&fake) ? fopen_fake(&fake, mode) : real(name)(path, mode); \
}
FOPEN(fopen)
FOPEN(fopen64)

/* The stream keeps its identity: reopen it on the descriptor's own name. */
static FILE *freopen_fake(const struct fake *fake, const char *mode, FILE *stream)
{
	int fd = fake_open(fake, mode_flags(mode) | O_CLOEXEC);
	char path[40];
	FILE *f;

	if (fd < 0) {
		fclose(stream);
		errno = -fd;
		return NULL;
	}
	snprintf(path, sizeof(path), "/proc/self/fd/%d", fd);
	f = real(freopen)(path, mode, stream);
	shim_close(fd);
	return f;
}

#define FREOPEN(name)                                                           \
shim_public FILE *name(const char *path, const char *mode, FILE *stream)        \
{                                                                               \
	struct fake fake = fake_lookup(AT_FDCWD, path);                         \
                                                                                \
	return fake_is_file(&fake) ? freopen_fake(&fake, mode, stream)          \
				   : real(name)(path, mode, stream);            \
}
FREOPEN(freopen)
FREOPEN(freopen64)

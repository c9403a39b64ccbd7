/* SPDX-License-Identifier: MIT */
/* Questions about paths: access, stat, readlink and their relatives. */
#include "shim/shim.h"

#include <string.h>
#include <sys/sysmacros.h>

#include "host/syscall.h"

_Static_assert(sizeof(struct stat) == sizeof(struct stat64), "one layout on 64-bit");

/* ---- access ------------------------------------------------------------------------ */

/* A directory of a module that this kernel does not have exists for the client all the same. */
static int access_answer(const struct fake *fake, int kernel, int mode, bool effective)
{
	if (kernel == 0 || errno != ENOENT)
		return kernel;
	return answer(fake_access(fake, mode, effective));
}

shim_public int access(const char *path, int mode)
{
	struct fake fake = fake_lookup(AT_FDCWD, path);

	if (likely(fake.kind == FAKE_NONE))
		return real(access)(path, mode);
	if (fake.kind == FAKE_DIR)
		return access_answer(&fake, real(access)(path, mode), mode, false);
	return answer(fake_access(&fake, mode, false));
}

shim_public int faccessat(int dirfd, const char *path, int mode, int flags)
{
	struct fake fake = fake_lookup(dirfd, path);
	bool effective = flags & AT_EACCESS;

	if (likely(fake.kind == FAKE_NONE))
		return real(faccessat)(dirfd, path, mode, flags);
	if (fake.kind == FAKE_DIR)
		return access_answer(&fake, real(faccessat)(dirfd, path, mode, flags), mode, effective);
	return answer(fake_access(&fake, mode, effective));
}

shim_public int euidaccess(const char *path, int mode)
{
	struct fake fake = fake_lookup(AT_FDCWD, path);

	if (likely(fake.kind == FAKE_NONE))
		return real(euidaccess)(path, mode);
	return faccessat(AT_FDCWD, path, mode, AT_EACCESS);
}

shim_public int eaccess(const char *path, int mode)
{
	return euidaccess(path, mode);
}

/* ---- stat ---------------------------------------------------------------------------- */

/* Before glibc 2.33 these were no functions of the library. */
static int kernel_stat(int dirfd, const char *path, struct stat *st, int flags)
{
	if (dirfd == AT_FDCWD && !flags && real(stat))
		return real(stat)(path, st);
	if (dirfd == AT_FDCWD && flags == AT_SYMLINK_NOFOLLOW && real(lstat))
		return real(lstat)(path, st);
	if (real(fstatat))
		return real(fstatat)(dirfd, path, st, flags);
	return answer(host_syscall(SYS_newfstatat, dirfd, path, st, flags));
}

static int stat_at(int dirfd, const char *path, void *st, int flags)
{
	struct fake fake = fake_lookup(dirfd, path);
	int r;

	if (likely(fake.kind == FAKE_NONE))
		return kernel_stat(dirfd, path, st, flags);
	if (fake.kind == FAKE_DIR) {
		r = kernel_stat(dirfd, path, st, flags);
		if (!r || errno != ENOENT)
			return r;
	}
	return answer(fake_stat(&fake, st));
}

shim_public int stat(const char *path, struct stat *st)
{
	return stat_at(AT_FDCWD, path, st, 0);
}

shim_public int stat64(const char *path, struct stat64 *st)
{
	return stat_at(AT_FDCWD, path, st, 0);
}

shim_public int lstat(const char *path, struct stat *st)
{
	return stat_at(AT_FDCWD, path, st, AT_SYMLINK_NOFOLLOW);
}

shim_public int lstat64(const char *path, struct stat64 *st)
{
	return stat_at(AT_FDCWD, path, st, AT_SYMLINK_NOFOLLOW);
}

shim_public int fstatat(int dirfd, const char *path, struct stat *st, int flags)
{
	return stat_at(dirfd, path, st, flags);
}

shim_public int fstatat64(int dirfd, const char *path, struct stat64 *st, int flags)
{
	return stat_at(dirfd, path, st, flags);
}

/* The version argument: 1 is the kernel's layout, and the only one on x86-64 besides 0. */
#define XSTAT(name, type, dirfd, flags, ...)                                    \
shim_public int name(int ver, ##__VA_ARGS__)                                    \
{                                                                               \
	if (ver != 0 && ver != 1)                                               \
		return answer(-EINVAL);                                         \
	return stat_at(dirfd, path, st, flags);                                 \
}
XSTAT(__xstat, struct stat, AT_FDCWD, 0, const char *path, struct stat *st)
XSTAT(__xstat64, struct stat64, AT_FDCWD, 0, const char *path, struct stat64 *st)
XSTAT(__lxstat, struct stat, AT_FDCWD, AT_SYMLINK_NOFOLLOW, const char *path, struct stat *st)
XSTAT(__lxstat64, struct stat64, AT_FDCWD, AT_SYMLINK_NOFOLLOW, const char *path, struct stat64 *st)
XSTAT(__fxstatat, struct stat, dirfd, flags, int dirfd, const char *path, struct stat *st, int flags)
XSTAT(__fxstatat64, struct stat64, dirfd, flags, int dirfd, const char *path, struct stat64 *st, int flags)

static void to_statx(struct statx *out, const struct stat *st)
{
	memset(out, 0, sizeof(*out));
	out->stx_mask = STATX_BASIC_STATS;
	out->stx_blksize = st->st_blksize;
	out->stx_nlink = st->st_nlink;
	out->stx_uid = st->st_uid;
	out->stx_gid = st->st_gid;
	out->stx_mode = st->st_mode;
	out->stx_ino = st->st_ino;
	out->stx_size = st->st_size;
	out->stx_rdev_major = major(st->st_rdev);
	out->stx_rdev_minor = minor(st->st_rdev);
}

static int kernel_statx(int dirfd, const char *path, int flags, unsigned mask, struct statx *buf)
{
	if (real(statx))
		return real(statx)(dirfd, path, flags, mask, buf);
	return answer(host_syscall6(SYS_statx, dirfd, (long)path, flags, mask, (long)buf, 0));
}

shim_public int statx(int dirfd, const char *restrict path, int flags, unsigned mask,
		      struct statx *restrict buf)
{
	struct fake fake = fake_lookup(dirfd, path);
	struct stat st;
	int r;

	if (likely(fake.kind == FAKE_NONE))
		return kernel_statx(dirfd, path, flags, mask, buf);
	if (fake.kind == FAKE_DIR) {
		r = kernel_statx(dirfd, path, flags, mask, buf);
		if (!r || errno != ENOENT)
			return r;
	}
	r = fake_stat(&fake, &st);
	if (!r)
		to_statx(buf, &st);
	return answer(r);
}

/* ---- readlink --------------------------------------------------------------------------- */

static bool starts(const char *s, long len, const char *with)
{
	long n = strlen(with);

	return len >= n && !memcmp(s, with, n);
}

long shim_fix_link(char *link, long len)
{
	static const char memfd[] = "/memfd:", deleted[] = " (deleted)";
	const long head = sizeof(memfd) - 1, tail = sizeof(deleted) - 1;

	if (shim_config()->off || !starts(link, len, memfd))
		return len;
	if (!starts(link + head, len - head, "/dev/kvm (deleted)") &&
	    !starts(link + head, len - head, "/sys/module/kvm") &&
	    !starts(link + head, len - head, "anon_inode:kvm-"))
		return len;
	len -= head;
	/* Not memmove(): instrumented by UBSan, GCC takes link for possibly NULL, and warns. */
	for (long i = 0; i < len; i++)
		link[i] = link[i + head];
	if (len > tail && !memcmp(link + len - tail, deleted, tail))
		len -= tail;
	return len;
}

static ssize_t readlink_at(int dirfd, const char *path, char *buf, size_t size, bool at)
{
	struct fake fake = fake_lookup(dirfd, path);
	char link[4096];
	ssize_t n;

	if (unlikely(fake_is_file(&fake)))
		return answer(fake.kind == FAKE_MISSING ? -ENOENT : -EINVAL);
	n = at ? real(readlinkat)(dirfd, path, link, sizeof(link)) : real(readlink)(path, link, sizeof(link));
	if (n < 0 || !size) /* the kernel has a word for size 0 */
		return n < 0 ? n : answer(-EINVAL);
	n = shim_fix_link(link, n);
	n = min((size_t)n, size);
	memcpy(buf, link, n);
	return n;
}

shim_public ssize_t readlink(const char *path, char *buf, size_t size)
{
	return readlink_at(AT_FDCWD, path, buf, size, false);
}

shim_public ssize_t readlinkat(int dirfd, const char *path, char *buf, size_t size)
{
	return readlink_at(dirfd, path, buf, size, true);
}

shim_public ssize_t __readlink_chk(const char *path, char *buf, size_t len, size_t size)
{
	if (len > size)
		__builtin_trap();
	return readlink(path, buf, len);
}

shim_public ssize_t __readlinkat_chk(int dirfd, const char *path, char *buf, size_t len, size_t size)
{
	if (len > size)
		__builtin_trap();
	return readlinkat(dirfd, path, buf, len);
}

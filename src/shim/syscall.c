/* SPDX-License-Identifier: MIT */
/*
 * syscall(2): clients reach wrapped calls through it, too. A row per call that
 * could be about us; a handler says whether it was, and everything else goes on
 * with all six arguments.
 */
#include "shim/shim.h"

#include <stdarg.h>
#include <string.h>
#include <sys/syscall.h>

#include "host/host.h"

#ifndef SYS_openat2
#define SYS_openat2 437
#endif
#ifndef SYS_faccessat2
#define SYS_faccessat2 439
#endif

/* a: the six arguments. True: *r is the answer, -errno or not. */
typedef bool (*handler_t)(const long *a, long *r);

static bool open_at(int dirfd, const char *path, int flags, long *r)
{
	struct fake fake = fake_lookup(dirfd, path);

	if (!fake_is_file(&fake))
		return false;
	*r = fake_open(&fake, flags);
	return true;
}

static bool sys_open(const long *a, long *r)
{
	return open_at(AT_FDCWD, (char *)a[0], a[1], r);
}

static bool sys_creat(const long *a, long *r)
{
	return open_at(AT_FDCWD, (char *)a[0], O_CREAT | O_WRONLY | O_TRUNC, r);
}

static bool sys_openat(const long *a, long *r)
{
	return open_at(a[0], (char *)a[1], a[2], r);
}

static bool sys_openat2(const long *a, long *r)
{
	/* struct open_how begins with the flags, 64 bits of them */
	return a[2] && open_at(a[0], (char *)a[1], *(u64 *)a[2], r);
}

static bool access_at(int dirfd, const char *path, int mode, bool effective, long *r)
{
	struct fake fake = fake_lookup(dirfd, path);

	if (!fake_is_file(&fake))
		return false;
	*r = fake_access(&fake, mode, effective);
	return true;
}

static bool sys_access(const long *a, long *r)
{
	return access_at(AT_FDCWD, (char *)a[0], a[1], false, r);
}

static bool sys_faccessat(const long *a, long *r)
{
	return access_at(a[0], (char *)a[1], a[2], false, r);
}

static bool sys_faccessat2(const long *a, long *r)
{
	return access_at(a[0], (char *)a[1], a[2], a[3] & AT_EACCESS, r);
}

static bool stat_at(int dirfd, const char *path, void *st, long *r)
{
	struct fake fake = fake_lookup(dirfd, path);

	if (!fake_is_file(&fake))
		return false;
	*r = fake_stat(&fake, st);
	return true;
}

static bool sys_stat(const long *a, long *r)
{
	return stat_at(AT_FDCWD, (char *)a[0], (void *)a[1], r);
}

static bool sys_newfstatat(const long *a, long *r)
{
	return stat_at(a[0], (char *)a[1], (void *)a[2], r);
}

static bool sys_statx(const long *a, long *r)
{
	struct fake fake = fake_lookup(a[0], (char *)a[1]);

	if (!fake_is_file(&fake))
		return false;
	*r = statx(a[0], (char *)a[1], a[2], a[3], (void *)a[4]) ? -errno : 0;
	return true;
}

static bool sys_readlink(const long *a, long *r)
{
	*r = readlink((char *)a[0], (char *)a[1], a[2]);
	if (*r < 0)
		*r = -errno;
	return true;
}

static bool sys_readlinkat(const long *a, long *r)
{
	*r = readlinkat(a[0], (char *)a[1], (char *)a[2], a[3]);
	if (*r < 0)
		*r = -errno;
	return true;
}

static bool sys_ioctl(const long *a, long *r)
{
	return shim_ioctl(a[0], (unsigned int)a[1], a[2], r);
}

static bool sys_mmap(const long *a, long *r)
{
	return shim_mmap((void *)a[0], a[1], a[2], a[3], a[4], a[5], (unsigned long *)r);
}

static bool sys_close(const long *a, long *r)
{
	*r = shim_close(a[0]);
	return true;
}

static bool sys_close_range(const long *a, long *r)
{
	*r = shim_close_range(a[0], a[1], a[2]);
	return true;
}

static bool sys_dup(const long *a, long *r)
{
	*r = shim_dup(a[0]);
	return true;
}

static bool sys_dup2(const long *a, long *r)
{
	*r = shim_dup3(a[0], a[1], 0, true);
	return true;
}

static bool sys_dup3(const long *a, long *r)
{
	*r = shim_dup3(a[0], a[1], a[2], false);
	return true;
}

static bool sys_fcntl(const long *a, long *r)
{
	if (a[1] != F_DUPFD && a[1] != F_DUPFD_CLOEXEC && a[1] != F_GETFL)
		return false;
	*r = fcntl(a[0], a[1], a[2]);
	if (*r < 0)
		*r = -errno;
	return true;
}

static bool sys_read(const long *a, long *r)
{
	return shim_read(a[0], (void *)a[1], a[2], NULL, r);
}

static bool sys_pread64(const long *a, long *r)
{
	off_t off = a[3];

	return shim_read(a[0], (void *)a[1], a[2], &off, r);
}

static bool sys_write(const long *a, long *r)
{
	return shim_write(a[0], NULL, r);
}

static bool sys_pwrite64(const long *a, long *r)
{
	off_t off = a[3];

	return shim_write(a[0], &off, r);
}

static bool sys_fallocate(const long *a, long *r)
{
	return shim_fallocate(a[0], a[1], a[2], a[3], r);
}

static bool sys_ftruncate(const long *a, long *r)
{
	return shim_ftruncate(a[0], r);
}

static bool sys_lseek(const long *a, long *r)
{
	return shim_lseek(a[0], a[1], a[2], r);
}

/* rt_sigaction(2)'s structure; a handler must not get past the broker this way either. */
struct kernel_sigaction {
	void *handler;
	unsigned long flags;
	void *restorer;
	u64 mask;
};

static bool sys_rt_sigaction(const long *a, long *r)
{
	const struct kernel_sigaction *new = (void *)a[1];
	struct kernel_sigaction *old = (void *)a[2];
	struct sigaction act = { 0 }, was;

	/* 32 and 33: libc's own */
	if (shim_config()->off || a[3] != 8 || a[0] == 32 || a[0] == 33)
		return false;
	if (new) {
		act.sa_handler = new->handler;
		act.sa_flags = new->flags;
		memcpy(&act.sa_mask, &new->mask, sizeof(new->mask));
	}
	if (sigaction(a[0], new ? &act : NULL, &was)) {
		*r = -errno;
		return true;
	}
	if (old) {
		old->handler = was.sa_handler;
		old->flags = (unsigned int)was.sa_flags;
		old->restorer = was.sa_restorer;
		memcpy(&old->mask, &was.sa_mask, sizeof(old->mask));
	}
	*r = 0;
	return true;
}

static const handler_t handlers[] = {
	[SYS_open] = sys_open,
	[SYS_creat] = sys_creat,
	[SYS_openat] = sys_openat,
	[SYS_openat2] = sys_openat2,
	[SYS_access] = sys_access,
	[SYS_faccessat] = sys_faccessat,
	[SYS_faccessat2] = sys_faccessat2,
	[SYS_stat] = sys_stat,
	[SYS_lstat] = sys_stat,
	[SYS_newfstatat] = sys_newfstatat,
	[SYS_statx] = sys_statx,
	[SYS_readlink] = sys_readlink,
	[SYS_readlinkat] = sys_readlinkat,
	[SYS_ioctl] = sys_ioctl,
	[SYS_mmap] = sys_mmap,
	[SYS_close] = sys_close,
	[SYS_close_range] = sys_close_range,
	[SYS_dup] = sys_dup,
	[SYS_dup2] = sys_dup2,
	[SYS_dup3] = sys_dup3,
	[SYS_fcntl] = sys_fcntl,
	[SYS_read] = sys_read,
	[SYS_pread64] = sys_pread64,
	[SYS_write] = sys_write,
	[SYS_pwrite64] = sys_pwrite64,
	[SYS_fallocate] = sys_fallocate,
	[SYS_ftruncate] = sys_ftruncate,
	[SYS_lseek] = sys_lseek,
	[SYS_rt_sigaction] = sys_rt_sigaction,
};

shim_public long syscall(long number, ...)
{
	int saved_errno = errno;
	long a[6], r;
	va_list ap;

	va_start(ap, number);
	for (int i = 0; i < 6; i++)
		a[i] = va_arg(ap, long);
	va_end(ap);
	if (number >= 0 && number < (long)ARRAY_SIZE(handlers) && handlers[number] &&
	    handlers[number](a, &r)) {
		/* A handler may have gone through libc's convention. */
		errno = saved_errno;
		return unlikely((unsigned long)r > -4096ul) ? answer(r) : r;
	}
	return real(syscall)(number, a[0], a[1], a[2], a[3], a[4], a[5]);
}

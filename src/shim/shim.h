/* SPDX-License-Identifier: MIT */
/*
 * The preload object: libc's names, wrapped.
 *
 * A wrapper decides with one or two loads that a call is not about us and
 * passes it on unchanged, errno and cancellation included. It never takes a lock nor
 * allocates on that path: clients call close() and read() from signal handlers.
 */
#ifndef SOFTKVM_SHIM_SHIM_H
#define SOFTKVM_SHIM_SHIM_H

#undef _FORTIFY_SOURCE

#include <errno.h>
#include <fcntl.h>
#include <signal.h>
#include <stdio.h>
#include <sys/ioctl.h>
#include <sys/stat.h>
#include <unistd.h>

#include "base/types.h"

/* In libc, but in no header. */
int __open_2(const char *path, int flags);
int __open64_2(const char *path, int flags);
int __openat_2(int dirfd, const char *path, int flags);
int __openat64_2(int dirfd, const char *path, int flags);
ssize_t __read_chk(int fd, void *buf, size_t count, size_t size);
ssize_t __pread_chk(int fd, void *buf, size_t count, off_t off, size_t size);
ssize_t __pread64_chk(int fd, void *buf, size_t count, off64_t off, size_t size);
ssize_t __readlink_chk(const char *path, char *buf, size_t len, size_t size);
ssize_t __readlinkat_chk(int dirfd, const char *path, char *buf, size_t len, size_t size);
int __xstat(int ver, const char *path, struct stat *st);
int __xstat64(int ver, const char *path, struct stat64 *st);
int __lxstat(int ver, const char *path, struct stat *st);
int __lxstat64(int ver, const char *path, struct stat64 *st);
int __fxstatat(int ver, int dirfd, const char *path, struct stat *st, int flags);
int __fxstatat64(int ver, int dirfd, const char *path, struct stat64 *st, int flags);
int __sigaction(int sig, const struct sigaction *act, struct sigaction *old);
sighandler_t __sysv_signal(int sig, sighandler_t handler);
sighandler_t bsd_signal(int sig, sighandler_t handler);
#if !__GLIBC_PREREQ(2, 34)
void closefrom(int low);
int close_range(unsigned int first, unsigned int last, int flags);
#endif

/* ---- the functions behind us: real.c --------------------------------------------- */

enum real_index {
#define REAL(name) REAL_##name,
#include "shim/reals.def"
#undef REAL
	NR_REALS
};
void *real_get(enum real_index i); /* NULL: this libc has none */
#define real(name) ((__typeof__(&name))real_get(REAL_##name))

/* libc's way to report: r >= 0, or -1 and errno. */
static inline long answer(long r)
{
	if (r >= 0)
		return r;
	errno = -r;
	return -1;
}

/* ---- what the environment asked for: config.c --------------------------------------- */

enum device_state { DEVICE_PRESENT, DEVICE_ABSENT, DEVICE_DENIED };

struct shim_config {
	bool off;			/* SOFTKVM=off */
	enum device_state device;	/* SOFTKVM_DEVICE */
	char denied_file[512];		/* SOFTKVM_DENIED_FILE */
	char param_dir[512];		/* SOFTKVM_PARAM_DIR: MODULE/NAME in it stand for parameters */
};
const struct shim_config *shim_config(void);

/* ---- paths that are not what they seem: fake.c ---------------------------------------- */

enum fake_kind { FAKE_NONE, FAKE_DEVICE, FAKE_PARAM, FAKE_DIR, FAKE_MISSING };
struct param;
struct fake {
	enum fake_kind kind;
	const struct param *param;
};
struct fake fake_lookup(int dirfd, const char *path);
/* -errno. A FAKE_DIR is left to the kernel. */
int fake_open(const struct fake *fake, int flags);
int fake_access(const struct fake *fake, int mode, bool effective);
int fake_stat(const struct fake *fake, struct stat *st);
static inline bool fake_is_file(const struct fake *fake)
{
	return fake->kind != FAKE_NONE && fake->kind != FAKE_DIR;
}

/* ---- shared by libc's names and syscall(2); -errno ------------------------------------- */

long shim_close(int fd);
long shim_dup(int fd);
long shim_dup3(int old_fd, int new_fd, int flags, bool is_dup2);
long shim_close_range(unsigned first, unsigned last, unsigned flags);
bool shim_ioctl(int fd, unsigned long request, unsigned long arg, long *r);	/* true: handled */
bool shim_read(int fd, void *buf, size_t count, const off_t *off, long *r);
bool shim_write(int fd, const off_t *off, long *r);
bool shim_lseek(int fd, off_t off, int whence, long *r);
bool shim_mmap(void *addr, size_t len, int prot, int flags, int fd, off_t off, unsigned long *r);
bool shim_fallocate(int fd, int mode, off_t off, off_t len, long *r);
bool shim_ftruncate(int fd, long *r);
bool shim_getfl(int fd, long *r);
/* The kernel's name of a file of ours, as the client should see it. */
long shim_fix_link(char *link, long len);

#define shim_public __attribute__((visibility("default")))

#endif

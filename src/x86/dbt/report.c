/* SPDX-License-Identifier: MIT */
/*
 * Files that a user asked for by a variable of the environment. They may be in /tmp under a name
 * that others can guess: they are made anew, never followed, and nobody else's is written to.
 */
#include <fcntl.h>
#include <string.h>

#include "base/log.h"
#include "host/syscall.h"
#include "x86/dbt/watch.h"

bool report_create(const char *path, const char *why)
{
	long fd;

	host_syscall(SYS_unlink, path, 0, 0, 0);
	fd = host_syscall(SYS_openat, AT_FDCWD, path, O_WRONLY | O_CREAT | O_EXCL | O_NOFOLLOW | O_CLOEXEC, 0600);
	if (fd < 0) {
		log_error("%s: cannot make %s: %s", why, path, strerror(-fd));
		return false;
	}
	host_syscall(SYS_close, fd, 0, 0, 0);
	return true;
}

void report_append(const char *path, const char *text, size_t len)
{
	long fd = host_syscall(SYS_openat, AT_FDCWD, path, O_WRONLY | O_APPEND | O_NOFOLLOW | O_CLOEXEC, 0);

	if (fd < 0)
		return;
	host_syscall(SYS_write, fd, text, len, 0);
	host_syscall(SYS_close, fd, 0, 0, 0);
}

/* SPDX-License-Identifier: MIT */
#include <fcntl.h>
#include <sys/mman.h>

#include "host/host.h"
#include "host/syscall.h"

int host_memfd(const char *name, size_t size, bool cloexec)
{
	long fd = host_syscall(SYS_memfd_create, name,
			       MFD_ALLOW_SEALING | (cloexec ? MFD_CLOEXEC : 0), 0, 0);
	long err;

	if (fd < 0)
		return fd;
	err = host_syscall(SYS_ftruncate, fd, size, 0, 0);
	/* Whoever holds the file could otherwise shrink it under our mappings: SIGBUS. */
	if (!err)
		err = host_syscall(SYS_fcntl, fd, F_ADD_SEALS,
				   F_SEAL_SHRINK | F_SEAL_GROW | F_SEAL_SEAL, 0);
	if (!err)
		return fd;
	host_syscall(SYS_close, fd, 0, 0, 0);
	return err;
}

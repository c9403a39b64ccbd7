/* SPDX-License-Identifier: MIT */
/*
 * Memory for generated code: written through one mapping, executed through
 * another, so that no page is ever both. Where a policy forbids executable
 * memfds, or SOFTKVM_WX=single asks for it, one mapping is both.
 */
#include <errno.h>
#include <stdlib.h>
#include <string.h>
#include <sys/mman.h>

#include "host/host.h"
#include "host/syscall.h"

#ifndef MFD_EXEC
#define MFD_EXEC 0x10u
#endif

static void *map(size_t size, int prot, int flags, long fd)
{
	long p = host_syscall6(SYS_mmap, 0, size, prot, flags, fd, 0);

	return p < 0 && p > -4096 ? NULL : (void *)p;
}

static void unmap(void *p, size_t size)
{
	if (p)
		host_syscall(SYS_munmap, p, size, 0, 0);
}

static bool map_dual(struct codemem *cm, size_t size)
{
	long fd = host_syscall(SYS_memfd_create, "softkvm-code", MFD_CLOEXEC | MFD_EXEC, 0, 0);

	if (fd == -EINVAL) /* before Linux 6.3 every memfd is executable */
		fd = host_syscall(SYS_memfd_create, "softkvm-code", MFD_CLOEXEC, 0, 0);
	if (fd < 0)
		return false;
	if (!host_syscall(SYS_ftruncate, fd, size, 0, 0)) {
		cm->rw = map(size, PROT_READ | PROT_WRITE, MAP_SHARED, fd);
		cm->rx = map(size, PROT_READ | PROT_EXEC, MAP_SHARED, fd);
	}
	host_syscall(SYS_close, fd, 0, 0, 0);
	if (cm->rw && cm->rx)
		return true;
	unmap(cm->rw, size);
	unmap(cm->rx, size);
	return false;
}

int codemem_init(struct codemem *cm, size_t size)
{
	const char *wx = getenv("SOFTKVM_WX");

	size = (size + PAGE_SIZE - 1) & PAGE_MASK;
	*cm = (struct codemem){ .size = size };
	if (!size)
		return -EINVAL;
	if (!(wx && !strcmp(wx, "single")) && map_dual(cm, size))
		return 0;
	cm->rw = cm->rx = map(size, PROT_READ | PROT_WRITE | PROT_EXEC,
			      MAP_PRIVATE | MAP_ANONYMOUS | MAP_NORESERVE, -1);
	return cm->rw ? 0 : -ENOMEM;
}

void codemem_free(struct codemem *cm)
{
	if (cm->rx != cm->rw)
		unmap(cm->rx, cm->size);
	unmap(cm->rw, cm->size);
	*cm = (struct codemem){ 0 };
}

/* SPDX-License-Identifier: MIT */
/*
 * Large zeroed memory of which little may ever be used. Not from malloc(): once a block of such a size was freed,
 * that takes the next from its heap and clears all of it. In small pages: in a virtual machine a large one may not be backed
 * by memory yet, and clearing it is many times as slow as clearing pages that were somebody's just now.
 */
#include <sys/mman.h>

#include "host/host.h"

void *host_map_lazy(size_t size)
{
	void *p = mmap(NULL, size, PROT_READ | PROT_WRITE, MAP_PRIVATE | MAP_ANONYMOUS | MAP_NORESERVE, -1, 0);

	return p == MAP_FAILED ? NULL : p;
}

void host_unmap_lazy(void *p, size_t size)
{
	if (p)
		munmap(p, size);
}

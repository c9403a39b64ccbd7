/* SPDX-License-Identifier: MIT */
/*
 * Large zeroed memory of which little may ever be used. Not from malloc(): once a block of such a size was freed,
 * that takes the next from its heap and clears all of it.
 */
#include <sys/mman.h>

#include "host/host.h"

void *host_map_lazy(size_t size, size_t huge_from)
{
	void *p = mmap(NULL, size, PROT_READ | PROT_WRITE, MAP_PRIVATE | MAP_ANONYMOUS | MAP_NORESERVE, -1, 0);

	if (p == MAP_FAILED)
		return NULL;
	if (huge_from && size > huge_from)
		madvise((char *)p + huge_from, size - huge_from, MADV_HUGEPAGE);
	return p;
}

void host_unmap_lazy(void *p, size_t size)
{
	if (p)
		munmap(p, size);
}

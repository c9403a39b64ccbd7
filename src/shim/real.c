/* SPDX-License-Identifier: MIT */
#include <dlfcn.h>

#include "shim/shim.h"

static const char *const names[NR_REALS] = {
#define REAL(name) #name,
#include "shim/reals.def"
#undef REAL
};

/* Function pointers, or &absent once looked for in vain. */
static void *functions[NR_REALS];
static char absent;

static coldpath void *look_up(enum real_index i)
{
	int saved_errno = errno;
	void *p = dlsym(RTLD_NEXT, names[i]);

	__atomic_store_n(&functions[i], p ? p : &absent, __ATOMIC_RELEASE);
	errno = saved_errno;
	return p;
}

void *real_get(enum real_index i)
{
	void *p = __atomic_load_n(&functions[i], __ATOMIC_ACQUIRE);

	if (unlikely(!p))
		return look_up(i);
	return likely(p != &absent) ? p : NULL;
}

/* All of them before main(): dlsym() is no function for signal handlers and vfork children. */
__attribute__((constructor)) static void resolve_all(void)
{
	for (int i = 0; i < NR_REALS; i++)
		real_get(i);
	shim_config();
}

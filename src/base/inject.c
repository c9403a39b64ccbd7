/* SPDX-License-Identifier: MIT */
#include "base/inject.h"

#include <pthread.h>
#include <stdlib.h>
#include <string.h>

#include "base/log.h"

static const char *const names[NR_INJECT_SITES] = {
	[INJECT_DIRTY_RESET_LIMIT] = "dirty_reset_limit",
	[INJECT_DIRTY_RESET_SLOW] = "dirty_reset_slow",
	[INJECT_DIRTY_RESET_STRICT] = "dirty_reset_strict",
	[INJECT_GMEM_LINK_FD] = "gmem_link_fd",
	[INJECT_MOVE_CTX_STAGE2] = "move_ctx_stage2",
};

static u64 values[NR_INJECT_SITES];
static pthread_once_t once = PTHREAD_ONCE_INIT;

static void parse_one(const char *s, size_t len)
{
	size_t name_len = strcspn(s, "=,");

	for (unsigned i = 0; i < NR_INJECT_SITES; i++) {
		if (strlen(names[i]) != name_len || strncmp(names[i], s, name_len))
			continue;
		values[i] = name_len < len ? strtoull(s + name_len + 1, NULL, 0) : 1;
		return;
	}
	if (len)
		log_error("SOFTKVM_INJECT: there is no site \"%.*s\"", (int)name_len, s);
}

static void parse(void)
{
	const char *s = getenv("SOFTKVM_INJECT");

	while (s && *s) {
		size_t len = strcspn(s, ",");

		parse_one(s, len);
		s += len + !!s[len];
	}
}

u64 inject_value(enum inject_site site)
{
	pthread_once(&once, parse);
	return values[site];
}

/* SPDX-License-Identifier: MIT */
#include "x86/knobs.h"

#include <pthread.h>
#include <stdlib.h>

#include "base/log.h"

static struct {
	const char *name;
	u64 min, max, value;
} knobs[NR_KNOBS] = {
	[KNOB_TLB] = { "SOFTKVM_TLB", 4, 4096, 4096 },
	[KNOB_DBT_CACHE] = { "SOFTKVM_DBT_CACHE", 128, 1 << 20, 128 << 10 },
	[KNOB_DBT_LINK] = { "SOFTKVM_DBT_LINK", 0, 1, 1 },
	[KNOB_DBT_UNLOCK] = { "SOFTKVM_DBT_UNLOCK", 0, 1, 1 },
	[KNOB_DBT_VERIFY] = { "SOFTKVM_DBT_VERIFY", 0, 1, 0 },
};

static pthread_once_t once = PTHREAD_ONCE_INIT;

static void parse(void)
{
	for (unsigned i = 0; i < NR_KNOBS; i++) {
		const char *s = getenv(knobs[i].name);
		char *end;
		u64 v;

		if (!s || !*s)
			continue;
		v = strtoull(s, &end, 0);
		if (*end || v < knobs[i].min || v > knobs[i].max)
			log_error("%s=%s is not a number from %llu to %llu; taken as %llu", knobs[i].name, s,
				  (unsigned long long)knobs[i].min, (unsigned long long)knobs[i].max,
				  (unsigned long long)knobs[i].value);
		else
			knobs[i].value = v;
	}
}

u64 knob(enum knob k)
{
	pthread_once(&once, parse);
	return knobs[k].value;
}

/* SPDX-License-Identifier: MIT */
#include "kvm/api_level.h"

#include <pthread.h>
#include <stdlib.h>
#include <string.h>

#include "base/log.h"

static u32 level = KVM_API_6_12;
static pthread_once_t once = PTHREAD_ONCE_INIT;

static void parse(void)
{
	const char *s = getenv("SOFTKVM_API_LEVEL");

	if (!s || !*s || !strcmp(s, "6.12"))
		return;
	if (!strcmp(s, "6.18"))
		level = KVM_API_6_18;
	else
		log_error("SOFTKVM_API_LEVEL=%s is neither 6.12 nor 6.18; taken as 6.12", s);
}

u32 kvm_api_level(void)
{
	pthread_once(&once, parse);
	return level;
}

/* SPDX-License-Identifier: MIT */
#include <stdatomic.h>
#include <stdlib.h>
#include <string.h>

#include "base/log.h"
#include "shim/shim.h"

static struct shim_config config;
static _Atomic int config_state; /* 0 unread, 1 being read, 2 valid */

static void config_read(void)
{
	const char *off = getenv("SOFTKVM"), *device = getenv("SOFTKVM_DEVICE");
	const char *file = getenv("SOFTKVM_DENIED_FILE"), *dir = getenv("SOFTKVM_PARAM_DIR");

	config.off = off && (!strcmp(off, "off") || !strcmp(off, "0"));
	if (device && !strcmp(device, "absent"))
		config.device = DEVICE_ABSENT;
	else if (device && !strcmp(device, "denied"))
		config.device = DEVICE_DENIED;
	else if (device && *device && strcmp(device, "present"))
		log_error("SOFTKVM_DEVICE=%s is none of present, absent, denied; taken as present", device);
	if (file && strlen(file) < sizeof(config.denied_file))
		strcpy(config.denied_file, file);
	else if (file)
		log_error("SOFTKVM_DENIED_FILE is too long and ignored");
	if (dir && strlen(dir) < sizeof(config.param_dir))
		strcpy(config.param_dir, dir);
	else if (dir)
		log_error("SOFTKVM_PARAM_DIR is too long and ignored");
}

/* Usually the constructor's work; constructors of other objects may be here before. */
const struct shim_config *shim_config(void)
{
	int unread = 0, saved_errno = errno;

	if (likely(atomic_load_explicit(&config_state, memory_order_acquire) == 2))
		return &config;
	if (atomic_compare_exchange_strong(&config_state, &unread, 1)) {
		config_read();
		atomic_store_explicit(&config_state, 2, memory_order_release);
	}
	errno = saved_errno;
	return &config;
}

/* SPDX-License-Identifier: MIT */
/*
 * Clocks, and the frequency of the TSC. No source of that number can be trusted
 * everywhere: CPUID 15h may lack the crystal, 16h is a marketing number (not used), hypervisors
 * differ. What CPUID says is believed only if a short measurement agrees within 1 %;
 * otherwise the TSC is measured against CLOCK_MONOTONIC_RAW.
 */
#include <stdlib.h>
#include <string.h>
#include <time.h>

#include "host/host.h"

static u64 clock_ns(clockid_t id)
{
	struct timespec ts;

	clock_gettime(id, &ts);
	return (u64)ts.tv_sec * 1000000000 + ts.tv_nsec;
}

u64 host_now_ns(void)
{
	return clock_ns(CLOCK_MONOTONIC);
}

u64 host_boot_ns(void)
{
	return clock_ns(CLOCK_BOOTTIME);
}

u64 host_real_ns(void)
{
	return clock_ns(CLOCK_REALTIME);
}

struct sample {
	u64 tsc, ns;
};

/* One instant on both clocks: of some attempts the one that was interrupted least. */
static struct sample sample_clocks(void)
{
	struct sample best = { 0 };
	u64 width = ~0ull;

	for (int i = 0; i < 16; i++) {
		u64 t0 = host_rdtsc();
		u64 ns = clock_ns(CLOCK_MONOTONIC_RAW);
		u64 t1 = host_rdtsc();

		if (t1 - t0 < width) {
			width = t1 - t0;
			best = (struct sample){ t0 + width / 2, ns };
		}
	}
	return best;
}

static u32 measure_khz(long window_ns)
{
	struct timespec nap = { 0, window_ns };
	struct sample a = sample_clocks(), b;

	while (nanosleep(&nap, &nap))
		;
	b = sample_clocks();
	return (b.tsc - a.tsc) * 1000000 / (b.ns - a.ns);
}

static int u32_cmp(const void *a, const void *b)
{
	u32 x = *(const u32 *)a, y = *(const u32 *)b;

	return x < y ? -1 : x > y;
}

static u32 calibrate(void)
{
	u32 khz[5];

	for (unsigned i = 0; i < ARRAY_SIZE(khz); i++)
		khz[i] = measure_khz(12 * 1000 * 1000);
	qsort(khz, ARRAY_SIZE(khz), sizeof(khz[0]), u32_cmp);
	return khz[ARRAY_SIZE(khz) / 2];
}

static u32 khz_from_hypervisor(void)
{
	char sig[13] = "";
	u32 a, b, c, d, max;

	host_cpuid(1, 0, &a, &b, &c, &d);
	if (!(c & BIT(31)))
		return 0;
	host_cpuid(0x40000000, 0, &max, &b, &c, &d);
	memcpy(sig, &b, 4);
	memcpy(sig + 4, &c, 4);
	memcpy(sig + 8, &d, 4);
	if (max < 0x40000010 || (strcmp(sig, "VMwareVMware") && strcmp(sig, "KVMKVMKVM")))
		return 0;
	host_cpuid(0x40000010, 0, &a, &b, &c, &d);
	return a;
}

static u32 khz_from_cpuid(void)
{
	u32 a, b, c, d;

	host_cpuid(0, 0, &a, &b, &c, &d);
	if (a < 0x15)
		return 0;
	host_cpuid(0x15, 0, &a, &b, &c, &d);
	if (!a || !b || !c)
		return 0;
	return (u64)c * b / a / 1000;
}

static u32 tsc_khz;

static void find_tsc_khz(void)
{
	u32 said = khz_from_hypervisor(), seen;

	if (!said)
		said = khz_from_cpuid();
	if (said) {
		seen = measure_khz(2 * 1000 * 1000);
		if ((u64)llabs((long long)seen - said) * 100 < said) {
			tsc_khz = said;
			return;
		}
	}
	tsc_khz = calibrate();
}

u32 host_tsc_khz(void)
{
	static pthread_once_t once = PTHREAD_ONCE_INIT;

	pthread_once(&once, find_tsc_khz);
	return tsc_khz;
}

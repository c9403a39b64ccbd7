/* SPDX-License-Identifier: MIT */
/* argv[1] OUTs, each an exit to userspace; with argv[2], then sleep that many seconds with the VM open. */
#include <time.h>

#include "api/kvmtest.h"

static double now(void)
{
	struct timespec ts;

	clock_gettime(CLOCK_MONOTONIC, &ts);
	return ts.tv_sec + ts.tv_nsec / 1e9;
}

int main(int argc, char **argv)
{
	static const uint8_t code[] = { 0xe6, 0x10, 0xeb, 0xfc }; /* out %al, $0x10; jmp */
	long n = argc > 1 ? atol(argv[1]) : 1000;
	struct kvmtest t = kvmtest_vm(1 << 20, 0);
	double begin;

	kvmtest_add_vcpu(&t, 0);
	kvmtest_real_mode(&t, 0x7000, code, sizeof(code));
	begin = now();
	for (long i = 0; i < n; i++)
		NEED(ioctl(t.vcpu, KVM_RUN, 0) == 0 && t.run->exit_reason == KVM_EXIT_IO);
	printf("%.0f ns an exit\n", (now() - begin) / n * 1e9);
	fflush(stdout);
	if (argc > 2)
		sleep(atoi(argv[2]));
	kvmtest_done(&t);
	return 0;
}

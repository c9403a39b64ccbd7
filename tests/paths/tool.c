/* SPDX-License-Identifier: MIT */
/* The library of tests/lib/paths.h, one call a run: check-paths looks at what it says. */
#include <sys/resource.h>

#include "lib/paths.h"

static int usage(void)
{
	fprintf(stderr, "usage: tool kvm | nofile | open PATH [HELP] | null PATH | idle | bool MODULE PARAM | "
		"int MODULE PARAM | results N PATH | plan PATH\n");
	return 2;
}

int main(int argc, char **argv)
{
	const char *what = argc > 1 ? argv[1] : "";
	struct rlimit none = { 0, 0 };

	if (!strcmp(what, "kvm")) {
		close(open_kvm_or_skip(O_RDWR));
	} else if (!strcmp(what, "nofile")) {
		/* No descriptor is to be had any more, of whatever file. */
		none.rlim_max = 4096;
		setrlimit(RLIMIT_NOFILE, &none);
		open_kvm_or_skip(O_RDWR);
	} else if (!strcmp(what, "idle")) {
		close(open_page_idle_or_skip());
	} else if (!strcmp(what, "open") && argc > 2) {
		close(open_path_or_skip(argv[2], O_RDONLY, argc > 3 ? argv[3] : ""));
	} else if (!strcmp(what, "null") && argc > 2) {
		close(open_path_or_skip(argv[2], O_RDONLY, NULL));
	} else if (!strcmp(what, "bool") && argc > 3) {
		printf("%s\n", read_param_bool(argv[2], argv[3]) ? "true" : "false");
	} else if (!strcmp(what, "int") && argc > 3) {
		printf("%ld\n", read_param_int(argv[2], argv[3]));
	} else if (!strcmp(what, "results") && argc > 3) {
		for (int i = 0; i < atoi(argv[2]); i++)
			test_result(true, "something");
		close(open_path_or_skip(argv[3], O_RDONLY, ""));
	} else if (!strcmp(what, "plan") && argc > 2) {
		test_plan(2);
		close(open_path_or_skip(argv[2], O_RDONLY, ""));
	} else {
		return usage();
	}
	printf("opened\n");
	return 0;
}

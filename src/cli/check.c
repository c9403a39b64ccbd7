/* SPDX-License-Identifier: MIT */
/*
 * softkvm check: would a program find here what it needs? Answers in TAP, with the exit statuses and the
 * words of the kernel's KVM selftests, so that a script or a test runner can ask first and skip:
 *
 *	0	everything is there and works
 *	4	a file is not there (ENOENT, with what to do about it) or may not be opened (EACCES)
 *	254	any other trouble, which is never called a missing file
 *
 * /dev/kvm comes first: that it is missing is never reported as a missing parameter. The command runs itself again
 * as `softkvm check --inside` under the preload object, so that it sees what programs see.
 */
#include "cli/cli.h"

#include <errno.h>
#include <fcntl.h>
#include <limits.h>
#include <linux/kvm.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/ioctl.h>
#include <sys/mman.h>
#include <unistd.h>

#define STATUS_SKIP 4
#define STATUS_FAILURE 254
#define INSIDE "--inside"
#define KVM_HELP "Is KVM loaded and enabled?"

static const char usage[] =
"Usage: softkvm check [FILE]...\n"
"\n"
"Try what a program needs: /dev/kvm, module parameters, a virtual CPU that runs; then each\n"
"FILE: pagemap, page_idle, hugepages, sev. Prints TAP.\n"
"Exit status: 0 all there, 4 missing or not permitted, 254 broken.\n";

struct file {
	const char *word, *path;
	int flags;
	const char *enoent_help;
};

static const struct file files[] = {
	{ "pagemap", "/proc/self/pagemap", O_RDONLY, "Is CONFIG_PROC_PAGE_MONITOR enabled?" },
	{ "page_idle", "/sys/kernel/mm/page_idle/bitmap", O_RDWR, "Is CONFIG_IDLE_PAGE_TRACKING enabled?" },
	{ "hugepages", "/sys/kernel/mm/hugepages/hugepages-2048kB/nr_hugepages", O_RDONLY,
	  "Is CONFIG_HUGETLBFS enabled?" },
	{ "sev", "/dev/sev", O_RDWR, "Is the ccp module loaded?" },
};

static unsigned results;

static void passed(const char *what)
{
	printf("ok %u %s\n", ++results, what);
}

static int failed(const char *what, const char *path, int error)
{
	printf("not ok %u %s\n", ++results, what);
	fflush(stdout);
	if (error)
		complain("%s '%s': errno=%d - %s", what, path, error, strerror(error));
	else
		complain("%s '%s'", what, path);
	return STATUS_FAILURE;
}

/* 0 and *fd, or the status to exit with, after saying why. */
static int open_file(const char *path, int flags, const char *enoent_help, int *fd)
{
	int error;

	*fd = open(path, flags | O_CLOEXEC);
	if (*fd >= 0)
		return 0;
	error = errno;
	if (error != ENOENT && error != EACCES)
		return failed("Failed to open", path, error);
	if (results)
		printf("ok %u # SKIP - ", ++results);
	else
		printf("1..0 # SKIP - ");
	printf("Cannot open '%s': %s.  %s\n", path, strerror(error), error == EACCES ? "Root required?" : enoent_help);
	return STATUS_SKIP;
}

static int check_file(const char *path, int flags, const char *enoent_help)
{
	char what[PATH_MAX];
	int fd, r = open_file(path, flags, enoent_help, &fd);

	if (r)
		return r;
	close(fd);
	snprintf(what, sizeof(what), "%s opens", path);
	passed(what);
	return 0;
}

/* A bool, read as clients do: its first byte. */
static int check_parameter(const char *path)
{
	char value = 0;
	ssize_t n;
	int fd, r = open_file(path, O_RDONLY, "", &fd);

	if (r)
		return r;
	n = read(fd, &value, 1);
	r = n < 0 ? errno : 0;
	close(fd);
	if (n != 1)
		return failed("Failed to read", path, r);
	if (value != 'Y' && value != 'N')
		return failed("Neither Y nor N is in", path, 0);
	passed("module parameters can be read");
	return 0;
}

/* ---- one instruction ---------------------------------------------------------------------------- */

/* HLT at 0; 0, or the errno of what did not work (-1: another exit). */
static int run_hlt(int vcpu, size_t size)
{
	struct kvm_run *run = mmap(NULL, size, PROT_READ | PROT_WRITE, MAP_SHARED, vcpu, 0);
	struct kvm_regs regs = { .rflags = 2 };
	struct kvm_sregs sregs;
	int r = 0;

	if (run == MAP_FAILED)
		return errno;
	if (ioctl(vcpu, KVM_GET_SREGS, &sregs))
		r = errno;
	sregs.cs.base = 0;
	sregs.cs.selector = 0;
	if (!r && (ioctl(vcpu, KVM_SET_SREGS, &sregs) || ioctl(vcpu, KVM_SET_REGS, &regs) || ioctl(vcpu, KVM_RUN, 0)))
		r = errno;
	if (!r && run->exit_reason != KVM_EXIT_HLT)
		r = -1;
	munmap(run, size);
	return r;
}

static int run_vm(int kvm, int vm, void *page)
{
	struct kvm_userspace_memory_region region = { .memory_size = 4096, .userspace_addr = (uintptr_t)page };
	int vcpu, r, size = ioctl(kvm, KVM_GET_VCPU_MMAP_SIZE, 0);

	if (size < 0 || ioctl(vm, KVM_SET_USER_MEMORY_REGION, &region))
		return errno;
	vcpu = ioctl(vm, KVM_CREATE_VCPU, 0);
	if (vcpu < 0)
		return errno;
	r = run_hlt(vcpu, size);
	close(vcpu);
	return r;
}

static int try_instruction(int kvm)
{
	unsigned char *page = mmap(NULL, 4096, PROT_READ | PROT_WRITE, MAP_PRIVATE | MAP_ANONYMOUS, -1, 0);
	int vm, r;

	if (page == MAP_FAILED)
		return errno;
	page[0] = 0xf4;
	vm = ioctl(kvm, KVM_CREATE_VM, 0);
	r = vm < 0 ? errno : run_vm(kvm, vm, page);
	if (vm >= 0)
		close(vm);
	munmap(page, 4096);
	return r;
}

static int check_instruction(void)
{
	int kvm, r = open_file("/dev/kvm", O_RDWR, KVM_HELP, &kvm);

	if (r)
		return r;
	r = try_instruction(kvm);
	close(kvm);
	if (r)
		return failed("Failed to run an instruction on", "/dev/kvm", r > 0 ? r : 0);
	passed("a virtual CPU runs an instruction");
	return 0;
}

/* ---- the command ----------------------------------------------------------------------------------- */

static const struct file *file_find(const char *word)
{
	for (unsigned i = 0; i < ARRAY_SIZE(files); i++)
		if (!strcmp(files[i].word, word))
			return &files[i];
	return NULL;
}

static int check_inside(int argc, char **argv)
{
	int r = check_file("/dev/kvm", O_RDONLY, KVM_HELP);

	if (!r)
		r = check_parameter("/sys/module/kvm/parameters/tdp_mmu");
	if (!r)
		r = check_instruction();
	for (int i = 0; i < argc && !r; i++) {
		const struct file *f = file_find(argv[i]);

		r = check_file(f->path, f->flags, f->enoent_help);
	}
	if (results)
		printf("1..%u\n", results);
	return r;
}

int check_main(int argc, char **argv, bool prefer_hardware, bool verbose)
{
	bool inside = argc > 1 && !strcmp(argv[1], INSIDE);
	char self[PATH_MAX], **again;
	ssize_t n;
	int r;

	if (argc > 1 && (!strcmp(argv[1], "--help") || !strcmp(argv[1], "-h"))) {
		fputs(usage, stdout);
		return 0;
	}
	for (int i = 1 + inside; i < argc; i++) {
		if (file_find(argv[i]))
			continue;
		complain("there is no file \"%s\" to check", argv[i]);
		fputs("Try \"softkvm check --help\".\n", stderr);
		return EXIT_USAGE;
	}
	if (inside)
		return check_inside(argc - 2, argv + 2);
	n = readlink("/proc/self/exe", self, sizeof(self) - 1);
	again = calloc(argc + 3, sizeof(*again));
	if (n < 0 || !again) {
		complain("cannot find this command again: %s", strerror(errno));
		free(again);
		return STATUS_FAILURE;
	}
	self[n] = '\0';
	again[0] = self;
	again[1] = argv[0];
	again[2] = INSIDE;
	for (int i = 1; i < argc; i++)
		again[i + 2] = argv[i];
	r = program_run(again, prefer_hardware, verbose);
	free(again);
	return r;
}

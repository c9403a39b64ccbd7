/* SPDX-License-Identifier: MIT */
/* Every way to ask for /dev/kvm and the module parameters gives the same answer. */
#include <cpuid.h>
#include <fcntl.h>
#include <linux/kvm.h>
#include <sys/ioctl.h>
#include <sys/stat.h>
#include <sys/syscall.h>
#include <sys/sysmacros.h>
#include <unistd.h>

#include "test.h"

#define PARAMS "/sys/module/kvm/parameters/"

/* What fortified programs call. */
int __open_2(const char *path, int flags);
int __open64_2(const char *path, int flags);
int __openat_2(int dirfd, const char *path, int flags);
int __openat64_2(int dirfd, const char *path, int flags);
int __xstat(int ver, const char *path, struct stat *st);

static int kind; /* 0 present, else the errno of open("/dev/kvm") */

static int good(int fd)
{
	int saved = errno, version = fd < 0 ? -1 : ioctl(fd, KVM_GET_API_VERSION, 0);

	if (fd >= 0)
		close(fd);
	errno = saved;
	return kind ? fd == -1 && errno == kind : version == 12;
}

static void device_open(void)
{
	int dir = open("/dev", O_RDONLY | O_DIRECTORY);
	const char *volatile null = NULL;

	CHECK(good(open("/dev/kvm", O_RDONLY)));
	CHECK(good(open("/dev/kvm", O_RDWR)));
	CHECK(good(open64("/dev/kvm", O_RDWR)));
	CHECK(good(openat(AT_FDCWD, "/dev/kvm", O_RDWR)));
	CHECK(good(openat64(dir, "kvm", O_RDWR)));
	CHECK(good(openat(dir, "../dev//./kvm", O_RDWR)));
	CHECK(good(__open_2("/dev/kvm", O_RDWR)));
	CHECK(good(__open64_2("//dev/kvm", O_RDWR)));
	CHECK(good(__openat_2(dir, "kvm", O_RDWR)));
	CHECK(good(__openat64_2(dir, "kvm", O_RDWR)));
	CHECK(good(syscall(SYS_open, "/dev/kvm", O_RDWR)));
	CHECK(good(syscall(SYS_openat, dir, "kvm", O_RDWR)));
	CHECK(chdir("/dev") == 0);
	CHECK(good(open("kvm", O_RDWR)));
	CHECK(chdir("/") == 0);
	CHECK(good(open("dev/kvm", O_RDWR)));
	close(dir);
	if (!kind) {
		CHECK_ERRNO(open("/dev/kvm", O_RDWR | O_DIRECTORY), ENOTDIR);
		CHECK_ERRNO(open("/dev/kvm", O_RDWR | O_CREAT | O_EXCL, 0600), EEXIST);
	}
	CHECK_ERRNO(open("/dev/kvm0", O_RDWR), ENOENT);
	CHECK_ERRNO(open(null, O_RDWR), EFAULT);
}

static void device_stream(void)
{
	FILE *f = fopen("/dev/kvm", "re");

	if (kind) {
		CHECK(!f && errno == kind);
		return;
	}
	CHECK(f && ioctl(fileno(f), KVM_GET_API_VERSION, 0) == 12);
	CHECK(fcntl(fileno(f), F_GETFD) == FD_CLOEXEC);
	fclose(f);
}

static void device_questions(void)
{
	struct stat st = { 0 };
	struct stat64 st64;
	struct statx stx;
	char link[8];

	if (kind == ENOENT) {
		CHECK_ERRNO(access("/dev/kvm", F_OK), ENOENT);
		CHECK_ERRNO(stat("/dev/kvm", &st), ENOENT);
		CHECK_ERRNO(readlink("/dev/kvm", link, sizeof(link)), ENOENT);
		return;
	}
	CHECK(access("/dev/kvm", F_OK) == 0);
	if (kind) {
		CHECK_ERRNO(access("/dev/kvm", R_OK), kind);
		CHECK_ERRNO(faccessat(AT_FDCWD, "/dev/kvm", R_OK | W_OK, AT_EACCESS), kind);
	} else {
		CHECK(access("/dev/kvm", R_OK | W_OK) == 0);
		CHECK(eaccess("/dev/kvm", R_OK | W_OK) == 0);
	}
	CHECK_ERRNO(access("/dev/kvm", X_OK), EACCES);
	CHECK(stat("/dev/kvm", &st) == 0 && S_ISCHR(st.st_mode) && st.st_rdev == makedev(10, 232));
	CHECK(lstat64("/dev/kvm", &st64) == 0 && S_ISCHR(st64.st_mode));
	CHECK(fstatat(AT_FDCWD, "/dev/kvm", &st, 0) == 0 && S_ISCHR(st.st_mode));
	CHECK(__xstat(1, "/dev/kvm", &st) == 0 && S_ISCHR(st.st_mode));
	CHECK(statx(AT_FDCWD, "/dev/kvm", 0, STATX_ALL, &stx) == 0 && stx.stx_rdev_major == 10 &&
	      stx.stx_rdev_minor == 232);
	CHECK_ERRNO(readlink("/dev/kvm", link, sizeof(link)), EINVAL);
}

static const char *vendor(void)
{
	unsigned a, b, c, d;

	__cpuid(0, a, b, c, d);
	return b == signature_INTEL_ebx ? "kvm_intel" : "kvm_amd";
}

/* Y, N or a number of at most 16 digits, then a newline. */
static int well_formed(const char *path)
{
	char text[64];
	int fd = open(path, O_RDONLY);
	ssize_t n = read(fd, text, sizeof(text));
	int ok = n >= 2 && n <= 17 && text[n - 1] == '\n';

	if (ok && (text[0] == 'Y' || text[0] == 'N'))
		ok = n == 2;
	else
		for (int i = 0; ok && i < n - 1; i++)
			ok = text[i] >= '0' && text[i] <= '9';
	close(fd);
	return ok;
}

static void parameters(void)
{
	static const char *const common[] = {
		"tdp_mmu", "eager_page_split", "enable_pmu", "force_emulation_prefix", "nx_huge_pages",
		"nx_huge_pages_recovery_ratio", "nx_huge_pages_recovery_period_ms", "ignore_msrs",
		"report_ignored_msrs", "halt_poll_ns", "halt_poll_ns_grow", "halt_poll_ns_grow_start",
		"halt_poll_ns_shrink", "kvmclock_periodic_sync", "min_timer_period_us",
		"tsc_tolerance_ppm", "enable_vmware_backdoor",
	};
	static const char *const intel[] = { "unrestricted_guest", "ept", "nested", "vpid", "pml",
		"flexpriority", "enable_apicv", "allow_smaller_maxphyaddr" };
	static const char *const amd[] = { "npt", "nested", "sev", "sev_es", "sev_snp", "avic", "vgif", "nrips" };
	char path[128];

	if (kind == ENOENT)
		SKIP("the modules are absent");
	for (unsigned i = 0; i < sizeof(common) / sizeof(*common); i++) {
		snprintf(path, sizeof(path), PARAMS "%s", common[i]);
		CHECK(well_formed(path));
	}
	for (int i = 0; i < 8; i++) {
		snprintf(path, sizeof(path), "/sys/module/%s/parameters/%s", vendor(),
			 !strcmp(vendor(), "kvm_intel") ? intel[i] : amd[i]);
		CHECK(well_formed(path));
	}
}

static void parameter_questions(void)
{
	const char *other = strcmp(vendor(), "kvm_intel") ? "/sys/module/kvm_intel" : "/sys/module/kvm_amd";
	char buf[64] = "", path[128];
	struct stat st;
	FILE *f;

	snprintf(path, sizeof(path), "%s/parameters/nested", other);
	CHECK_ERRNO(open(path, O_RDONLY), ENOENT);
	CHECK_ERRNO(access(other, F_OK), ENOENT);
	CHECK_ERRNO(open(PARAMS "no_such_param", O_RDONLY), ENOENT);
	if (kind == ENOENT) {
		CHECK_ERRNO(open(PARAMS "tdp_mmu", O_RDONLY), ENOENT);
		CHECK_ERRNO(access("/sys/module/kvm", F_OK), ENOENT);
		CHECK_ERRNO(stat(PARAMS "tdp_mmu", &st), ENOENT);
		return;
	}
	CHECK_ERRNO(open(PARAMS "tdp_mmu", O_RDWR), EACCES);
	CHECK(access(PARAMS "tdp_mmu", R_OK) == 0);
	CHECK_ERRNO(access(PARAMS "no_such_param", F_OK), ENOENT);
	CHECK(stat(PARAMS "tdp_mmu", &st) == 0 && S_ISREG(st.st_mode) && (st.st_mode & 0777) == 0444);
	CHECK(stat("/sys/module/kvm/parameters", &st) == 0 && S_ISDIR(st.st_mode));
	CHECK(access("/sys/module/kvm", F_OK) == 0);
	CHECK_ERRNO(readlink(PARAMS "tdp_mmu", buf, sizeof(buf)), EINVAL);
	f = fopen(PARAMS "halt_poll_ns", "r");
	CHECK(f && fgets(buf, sizeof(buf), f) && !strcmp(buf, "0\n"));
	f = freopen(PARAMS "tdp_mmu", "r", f);
	CHECK(f && fgets(buf, sizeof(buf), f) && !strcmp(buf, "Y\n"));
	f = freopen(PARAMS "no_such_param", "r", f);
	CHECK(!f && errno == ENOENT);
}

/* Other files are left alone. */
static void bystanders(void)
{
	struct stat st;
	char name[] = "/tmp/softkvm-test-kvm-XXXXXX";
	int fd = mkstemp(name), mode;

	CHECK(fd >= 0);
	close(fd);
	CHECK(unlink(name) == 0);
	fd = open(name, O_CREAT | O_WRONLY, 0640);
	CHECK(fd >= 0 && stat(name, &st) == 0);
	mode = st.st_mode & 0777;
	close(fd);
	unlink(name);
	CHECK((mode & ~0640) == 0 && (mode & 0600) == 0600);
	CHECK(readlink("/proc/self/exe", name, sizeof(name)) > 0);
	CHECK_ERRNO(readlink("/proc/self/exe", name, 0), EINVAL);
	CHECK_ERRNO(stat("", &st), ENOENT);
}

int main(int argc, char **argv)
{
	static const struct test tests[] = {
		{ "device_open", device_open },
		{ "device_stream", device_stream },
		{ "device_questions", device_questions },
		{ "parameters", parameters },
		{ "parameter_questions", parameter_questions },
		{ "bystanders", bystanders },
	};

	if (argc > 1)
		kind = !strcmp(argv[1], "absent") ? ENOENT : !strcmp(argv[1], "denied") ? EACCES : 0;
	return RUN_TESTS(tests);
}

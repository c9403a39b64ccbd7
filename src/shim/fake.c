/* SPDX-License-Identifier: MIT */
/*
 * /dev/kvm and the parameters of the kvm modules.
 *
 * Three states (SOFTKVM_DEVICE): present; absent, as if no module were loaded;
 * denied, where a real open(2) of a real file (SOFTKVM_DENIED_FILE) decides, so
 * that the error is the kernel's own. All calls that take a path ask
 * fake_lookup(), so that open, access, stat and readlink agree.
 */
#include <string.h>
#include <sys/mman.h>
#include <sys/sysmacros.h>

#include "host/host.h"
#include "host/syscall.h"
#include "shim/shim.h"
#include "softkvm.h"

enum module { MODULE_KVM, MODULE_INTEL, MODULE_AMD };

static const char *const module_names[] = {
	[MODULE_KVM] = "kvm",
	[MODULE_INTEL] = "kvm_intel",
	[MODULE_AMD] = "kvm_amd",
};

struct param {
	enum module module;
	const char *name;
	const char *text;
};

static const struct param params[] = {
#define PARAM(module, name, text) { module, #name, text "\n" },
#include "shim/params.def"
#undef PARAM
};

/* ---- from a path to what it names ------------------------------------------------ */

#define PATH_SIZE 4096

static bool directory_of(int dirfd, char *buf)
{
	char link[40];
	long n;

	if (dirfd == AT_FDCWD)
		return host_syscall(SYS_getcwd, buf, PATH_SIZE, 0, 0) > 0;
	snprintf(link, sizeof(link), "/proc/self/fd/%d", dirfd);
	n = host_syscall(SYS_readlink, link, buf, PATH_SIZE - 1, 0);
	if (n <= 0)
		return false;
	buf[n] = '\0';
	return true;
}

/* Fold "//", "/./" and "/../" of an absolute path, in place. */
static void fold(char *path)
{
	char *out = path;
	const char *in = path;

	while (*in) {
		size_t len;

		while (*in == '/')
			in++;
		len = strcspn(in, "/");
		if (len == 2 && in[0] == '.' && in[1] == '.') {
			while (out > path && *--out != '/')
				;
		} else if (len && !(len == 1 && in[0] == '.')) {
			*out++ = '/';
			memmove(out, in, len);
			out += len;
		}
		in += len;
	}
	*out = '\0';
}

static bool absolute(int dirfd, const char *path, char *buf)
{
	size_t used = 0, len = strlen(path);

	if (path[0] != '/') {
		if (!directory_of(dirfd, buf))
			return false;
		used = strlen(buf);
	}
	if (used + 1 + len >= PATH_SIZE)
		return false;
	buf[used] = '/';
	memcpy(buf + used + 1, path, len + 1);
	fold(buf);
	return true;
}

static bool module_here(enum module m)
{
	return m == MODULE_KVM || (m == MODULE_INTEL && host_is_intel()) ||
	       (m == MODULE_AMD && host_is_amd());
}

static const struct param *find_param(enum module m, const char *name)
{
	for (unsigned i = 0; i < ARRAY_SIZE(params); i++)
		if (params[i].module == m && !strcmp(params[i].name, name))
			return &params[i];
	return NULL;
}

/* rest: what follows /sys/module/NAME, with its slash. */
static struct fake classify_module(enum module m, const char *rest)
{
	struct fake fake = { FAKE_MISSING, NULL };

	if (shim_config()->device == DEVICE_ABSENT || !module_here(m))
		return fake;
	if (!*rest || !strcmp(rest, "/parameters")) {
		fake.kind = FAKE_DIR;
	} else if (!strncmp(rest, "/parameters/", 12)) {
		fake.param = find_param(m, rest + 12);
		if (fake.param)
			fake.kind = FAKE_PARAM;
	} else {
		fake.kind = FAKE_NONE;
	}
	return fake;
}

static struct fake classify(const char *path)
{
	static const char sys[] = "/sys/module/";
	struct fake fake = { FAKE_NONE, NULL };

	if (!strcmp(path, "/dev/kvm")) {
		fake.kind = shim_config()->device == DEVICE_ABSENT ? FAKE_MISSING : FAKE_DEVICE;
		return fake;
	}
	if (strncmp(path, sys, sizeof(sys) - 1))
		return fake;
	path += sizeof(sys) - 1;
	for (unsigned m = 0; m < ARRAY_SIZE(module_names); m++) {
		size_t len = strlen(module_names[m]);

		if (!strncmp(path, module_names[m], len) && (!path[len] || path[len] == '/'))
			return classify_module(m, path + len);
	}
	return fake;
}

static coldpath struct fake lookup_slow(int dirfd, const char *path)
{
	struct fake fake = { FAKE_NONE, NULL };
	int saved_errno = errno;
	char buf[PATH_SIZE];

	if (absolute(dirfd, path, buf))
		fake = classify(buf);
	errno = saved_errno;
	return fake;
}

struct fake fake_lookup(int dirfd, const char *path)
{
	const struct fake none = { FAKE_NONE, NULL };

	if (!path || shim_config()->off || likely(!strstr(path, "kvm")))
		return none;
	return lookup_slow(dirfd, path);
}

/* ---- what can be done with it ------------------------------------------------------- */

/* The real permission check of the denied state. 0 or -errno. */
static int denied_open(int flags)
{
	const char *file = shim_config()->denied_file;
	long fd;

	if (shim_config()->device != DEVICE_DENIED)
		return 0;
	if (!*file)
		return -EACCES;
	fd = host_syscall(SYS_openat, AT_FDCWD, file, (flags & O_ACCMODE) | O_CLOEXEC | O_NONBLOCK, 0);
	if (fd < 0)
		return fd;
	host_syscall(SYS_close, fd, 0, 0, 0);
	return 0;
}

static int open_device(int flags)
{
	int err = denied_open(flags);
	int fd;

	if (err)
		return err;
	fd = softkvm_open(flags);
	return fd < 0 ? -errno : fd;
}

/*
 * SOFTKVM_PARAM_DIR: a real file that stands for the parameter, with its own permissions. False: there
 * is none, the parameter is what params.def says.
 */
static bool param_file(const struct param *p, char *path, size_t size, struct stat *st)
{
	const char *dir = shim_config()->param_dir;

	if (likely(!*dir) || snprintf(path, size, "%s/%s/%s", dir, module_names[p->module], p->name) >= (int)size)
		return false;
	return host_syscall(SYS_newfstatat, AT_FDCWD, path, st, 0) == 0;
}

/* A fresh memfd: the reader has a file position of its own. */
static int open_param(const struct param *p, int flags)
{
	char name[128], path[PATH_SIZE];
	struct stat st;
	long fd;

	if (param_file(p, path, sizeof(path), &st))
		return host_syscall(SYS_openat, AT_FDCWD, path, flags & ~(O_CREAT | O_TRUNC), 0);
	if ((flags & O_ACCMODE) != O_RDONLY)
		return -EACCES;
	snprintf(name, sizeof(name), "/sys/module/%s/parameters/%s", module_names[p->module], p->name);
	fd = host_syscall(SYS_memfd_create, name,
			  MFD_ALLOW_SEALING | (flags & O_CLOEXEC ? MFD_CLOEXEC : 0), 0, 0);
	if (fd < 0)
		return fd;
	host_syscall(SYS_pwrite64, fd, p->text, strlen(p->text), 0);
	host_syscall(SYS_fcntl, fd, F_ADD_SEALS,
		     F_SEAL_SHRINK | F_SEAL_GROW | F_SEAL_WRITE | F_SEAL_SEAL, 0);
	return fd;
}

int fake_open(const struct fake *fake, int flags)
{
	int saved_errno = errno, r;

	if (fake->kind == FAKE_MISSING)
		return flags & O_CREAT ? -EACCES : -ENOENT;
	if ((flags & (O_CREAT | O_EXCL)) == (O_CREAT | O_EXCL))
		return -EEXIST;
	if (flags & O_DIRECTORY)
		return -ENOTDIR;
	r = fake->kind == FAKE_DEVICE ? open_device(flags) : open_param(fake->param, flags);
	errno = saved_errno;
	return r;
}

static int access_device(int mode, bool effective)
{
	const char *file = shim_config()->denied_file;

	if (shim_config()->device != DEVICE_DENIED)
		return mode & X_OK ? -EACCES : 0;
	if (!*file)
		return mode == F_OK ? 0 : -EACCES;
	/* 439: faccessat2 */
	if (effective)
		return host_syscall(439, AT_FDCWD, file, mode, AT_EACCESS);
	return host_syscall(SYS_faccessat, AT_FDCWD, file, mode, 0);
}

int fake_access(const struct fake *fake, int mode, bool effective)
{
	char path[PATH_SIZE];
	struct stat st;
	uid_t uid;

	switch (fake->kind) {
	case FAKE_DEVICE:
		return access_device(mode, effective);
	case FAKE_PARAM:
		if (param_file(fake->param, path, sizeof(path), &st))
			return effective ? host_syscall(439, AT_FDCWD, path, mode, AT_EACCESS) :
					   host_syscall(SYS_faccessat, AT_FDCWD, path, mode, 0);
		uid = host_syscall(effective ? SYS_geteuid : SYS_getuid, 0, 0, 0, 0);
		return (mode & X_OK) || ((mode & W_OK) && uid) ? -EACCES : 0;
	case FAKE_DIR:
		return mode & W_OK ? -EACCES : 0;
	default:
		return -ENOENT;
	}
}

static void stat_device(struct stat *st)
{
	const char *file = shim_config()->denied_file;
	struct stat denied;

	st->st_mode = S_IFCHR | 0666;
	st->st_rdev = makedev(10, 232);
	st->st_ino = 232;
	if (shim_config()->device != DEVICE_DENIED)
		return;
	st->st_mode = S_IFCHR | 0600;
	if (!*file || host_syscall(SYS_newfstatat, AT_FDCWD, file, &denied, 0))
		return;
	st->st_mode = S_IFCHR | (denied.st_mode & 0777);
	st->st_uid = denied.st_uid;
	st->st_gid = denied.st_gid;
}

int fake_stat(const struct fake *fake, struct stat *st)
{
	char path[PATH_SIZE];

	memset(st, 0, sizeof(*st));
	st->st_nlink = 1;
	st->st_blksize = PAGE_SIZE;
	switch (fake->kind) {
	case FAKE_DEVICE:
		stat_device(st);
		return 0;
	case FAKE_PARAM:
		if (param_file(fake->param, path, sizeof(path), st))
			return 0;
		st->st_mode = S_IFREG | 0444;
		st->st_size = PAGE_SIZE;
		st->st_ino = 1000 + (fake->param - params);
		return 0;
	case FAKE_DIR:
		st->st_mode = S_IFDIR | 0755;
		st->st_nlink = 2;
		return 0;
	default:
		return -ENOENT;
	}
}

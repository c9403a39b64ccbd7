/* SPDX-License-Identifier: MIT */
/*
 * SOFTKVM_DBT_DUMP and SOFTKVM_PERF_MAP: files appear when asked for, say what was translated, are this
 * user's only, and nothing that lies in their place is followed.
 *
 * Seen to fail without O_EXCL and unlink() in report_create() (what the link leads to is overwritten), and with
 * dump_wanted() always true.
 */
#include <limits.h>
#include <sys/stat.h>
#include <sys/wait.h>

#include "api/kvmtest.h"

#define CODE 0x8000
static const uint8_t code[] = {
	0xb9, 0x05, 0, 0, 0,		/* mov $5, %ecx */
	0x48, 0x01, 0xcb,		/* 1: add %rcx, %rbx */
	0xff, 0xc9,			/* dec %ecx */
	0x75, 0xf9,			/* jnz 1b */
	0xf4,				/* hlt */
};

static char dir[] = "/tmp/softkvm-watch-XXXXXX";

static void path_of(char *path, const char *form, int pid)
{
	char name[100];

	snprintf(name, sizeof(name), form, pid);
	snprintf(path, PATH_MAX, "%s/%s", dir, name);
}

static int child(void)
{
	struct kvmtest t = kvmtest_vm(1 << 20, 0);
	struct kvm_regs regs;

	kvmtest_add_vcpu(&t, 0);
	kvmtest_long_mode(&t, CODE, code, sizeof(code));
	NEED(ioctl(t.vcpu, KVM_RUN, 0) == 0);
	NEED(ioctl(t.vcpu, KVM_GET_REGS, &regs) == 0);
	NEED(regs.rbx == 15);
	kvmtest_done(&t);
	return 0;
}

/* Runs the child with these variables; a link named perf-PID.map leads to `kept`. */
static int run(const char *dump, const char *map, const char *kept)
{
	char path[PATH_MAX], *argv[] = { "watch", "child", NULL };
	int status, pid = fork();

	if (!pid) {
		path_of(path, "perf-%d.map", getpid());
		if (symlink(kept, path))
			_exit(2);
		setenv("SOFTKVM_ENGINE", "dbt", 1);
		setenv("SOFTKVM_DBT_DUMP", dump, 1);
		setenv("SOFTKVM_PERF_MAP", map, 1);
		execv("/proc/self/exe", argv);
		_exit(2);
	}
	CHECK(waitpid(pid, &status, 0) == pid && status == 0);
	return pid;
}

static char *contents(const char *path)
{
	static char text[1 << 16];
	FILE *f = fopen(path, "r");
	size_t n = f ? fread(text, 1, sizeof(text) - 1, f) : 0;

	text[n] = 0;
	if (f)
		fclose(f);
	return text;
}

static void asked_for(const char *kept)
{
	char dump[PATH_MAX + 40], path[PATH_MAX];
	struct stat st;
	int pid;

	snprintf(dump, sizeof(dump), "%s,0x8005:2", dir);
	pid = run(dump, dir, kept);
	path_of(path, "perf-%d.map", pid);
	CHECK(lstat(path, &st) == 0 && S_ISREG(st.st_mode) && (st.st_mode & 0777) == 0600);
	CHECK(strstr(contents(path), " softkvm_common\n"));
	CHECK(strstr(contents(path), " guest_kernel_0x8000\n"));
	CHECK(!strcmp(contents(kept), "keep"));
	path_of(path, "softkvm-%d.blocks", pid);
	CHECK(lstat(path, &st) == 0 && S_ISREG(st.st_mode) && (st.st_mode & 0777) == 0600);
	CHECK(strstr(contents(path), "block 0x8000, guest-physical 0x8000, "));
	CHECK(strstr(contents(path), "\n8000  mov ecx, 0x05 "));
	CHECK(strstr(contents(path), "\n8005  add rbx, rcx "));
	/* HLT's block has no byte in the range. */
	CHECK(!strstr(contents(path), "block 0x800c"));
}

static void not_asked_for(const char *dump, const char *kept)
{
	char path[PATH_MAX];
	struct stat st;
	int pid = run(dump, "0", kept);

	path_of(path, "perf-%d.map", pid);
	CHECK(lstat(path, &st) == 0 && S_ISLNK(st.st_mode));
	path_of(path, "softkvm-%d.blocks", pid);
	CHECK(lstat(path, &st) == -1);
}

int main(int argc, char **argv)
{
	char kept[PATH_MAX], bad[PATH_MAX], command[PATH_MAX + 20];
	FILE *f;

	if (argc == 2)
		return child();
	close(open_kvm_or_skip(O_RDWR | O_CLOEXEC));
	NEED(mkdtemp(dir));
	snprintf(kept, sizeof(kept), "%s/kept", dir);
	f = fopen(kept, "w");
	NEED(f && fputs("keep", f) >= 0 && fclose(f) == 0);
	asked_for(kept);
	not_asked_for("", kept);
	snprintf(bad, sizeof(bad), "%s,where", dir);
	not_asked_for(bad, kept);
	snprintf(bad, sizeof(bad), "%s,0x8000:", dir);
	not_asked_for(bad, kept);
	snprintf(command, sizeof(command), "rm -rf %s", dir);
	CHECK(system(command) == 0);
	return kvmtest_summary();
}

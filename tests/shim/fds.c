/* SPDX-License-Identifier: MIT */
/* Descriptors as KVM has them: copies, close, fork, mmap, names. A plain KVM client. */
#include <fcntl.h>
#include <linux/kvm.h>
#include <pthread.h>
#include <sched.h>
#include <signal.h>
#include <sys/ioctl.h>
#include <sys/mman.h>
#include <sys/resource.h>
#include <sys/socket.h>
#include <sys/stat.h>
#include <sys/syscall.h>
#include <sys/wait.h>
#include <unistd.h>

#include "test.h"

static int kvm_open(void)
{
	return open("/dev/kvm", O_RDWR | O_CLOEXEC);
}

static int vm_new(void)
{
	int kvm = kvm_open();
	int vm = ioctl(kvm, KVM_CREATE_VM, 0);

	close(kvm);
	return vm;
}

static long check_vm(int vm)
{
	return ioctl(vm, KVM_CHECK_EXTENSION, KVM_CAP_USER_MEMORY);
}

static int raw_close(int fd)
{
	long r;

	asm volatile("syscall" : "=a"(r) : "0"(SYS_close), "D"((long)fd) : "rcx", "r11", "memory");
	return r;
}

/* VMs alive in this process: each maps its control page. */
static int vms_alive(void)
{
	FILE *f = fopen("/proc/self/maps", "r");
	char line[512];
	int n = 0;

	while (fgets(line, sizeof(line), f))
		n += strstr(line, "anon_inode:kvm-vm ") != NULL;
	fclose(f);
	return n;
}

static void system_fd(void)
{
	int kvm = open("/dev/kvm", O_RDONLY);

	CHECK(kvm >= 0);
	CHECK(ioctl(kvm, KVM_GET_API_VERSION, 0) == 12);
	CHECK_ERRNO(ioctl(kvm, KVM_GET_API_VERSION, 1), EINVAL);
	CHECK_ERRNO(ioctl(kvm, _IO(KVMIO, 0xff), 0), EINVAL);
	CHECK((fcntl(kvm, F_GETFL) & O_ACCMODE) == O_RDONLY);
	CHECK(fcntl(kvm, F_GETFD) == 0);
	CHECK(ioctl(kvm, FIOCLEX) == 0 && fcntl(kvm, F_GETFD) == FD_CLOEXEC);
	CHECK_ERRNO(mmap(NULL, 4096, PROT_READ, MAP_SHARED, kvm, 0), ENODEV);
	CHECK(close(kvm) == 0);
	CHECK_ERRNO(ioctl(kvm, KVM_GET_API_VERSION, 0), EBADF);
}

static void not_ours(void)
{
	int fd = open("/dev/null", O_RDWR);

	CHECK_ERRNO(ioctl(fd, KVM_GET_API_VERSION, 0), ENOTTY);
	CHECK_ERRNO(ioctl(-1, KVM_GET_API_VERSION, 0), EBADF);
	CHECK_ERRNO(close(-1), EBADF);
	CHECK_ERRNO(dup(-1), EBADF);
	CHECK_ERRNO(dup3(fd, fd, 0), EINVAL);
	CHECK(dup2(fd, fd) == fd);
	close(fd);
}

static void copies(void)
{
	int before = vms_alive(), vm = vm_new(), copy[5];

	CHECK(vm >= 0 && vms_alive() == before + 1);
	CHECK(fcntl(vm, F_GETFD) == FD_CLOEXEC);
	copy[0] = dup(vm);
	copy[1] = dup2(vm, 200);
	copy[2] = dup3(vm, 201, O_CLOEXEC);
	copy[3] = fcntl(vm, F_DUPFD, 210);
	copy[4] = fcntl(vm, F_DUPFD_CLOEXEC, 220);
	close(vm);
	for (int i = 0; i < 5; i++) {
		CHECK(copy[i] >= 0 && check_vm(copy[i]) == 1);
		CHECK(vms_alive() == before + 1);
		CHECK(close(copy[i]) == 0);
		CHECK_ERRNO(check_vm(copy[i]), EBADF);
	}
	CHECK(vms_alive() == before);
}

static void dup2_over(void)
{
	int before = vms_alive(), a = vm_new(), b = vm_new();

	CHECK(vms_alive() == before + 2);
	CHECK(dup2(a, b) == b);
	CHECK(vms_alive() == before + 1);
	CHECK_ERRNO(dup2(-1, a), EBADF);
	CHECK(check_vm(a) == 1 && check_vm(b) == 1);
	close(a);
	CHECK(check_vm(b) == 1);
	close(b);
	CHECK(vms_alive() == before);
}

static void vcpu_keeps_vm(void)
{
	int before = vms_alive(), vm = vm_new(), vcpu = ioctl(vm, KVM_CREATE_VCPU, 0);
	struct kvm_regs regs;

	CHECK(vcpu >= 0);
	CHECK_ERRNO(ioctl(vm, KVM_CREATE_VCPU, 0), EEXIST);
	CHECK_ERRNO(ioctl(vcpu, _IO(KVMIO, 0xff), 0), EINVAL);
	CHECK_ERRNO(ioctl(vm, _IO(KVMIO, 0xff), 0), ENOTTY);
	close(vm);
	CHECK(ioctl(vcpu, KVM_GET_REGS, &regs) == 0);
	CHECK_ERRNO(ioctl(vcpu, KVM_GET_REGS, (void *)8), EFAULT);
	close(vcpu);
	CHECK(vms_alive() == before);
}

static void ranges(void)
{
	int before = vms_alive(), vm = vm_new(), vm2;

	CHECK(dup2(vm, 300) == 300);
	close(vm);
	vm2 = dup2(vm_new(), 310);
	CHECK(close_range(299, 305, 0) == 0);
	CHECK_ERRNO(check_vm(300), EBADF);
	CHECK(check_vm(vm2) == 1);
	CHECK(close_range(310, 310, 4 /* CLOEXEC */) == 0);
	CHECK(check_vm(vm2) == 1);
	closefrom(3);
	CHECK(vms_alive() == before);
}

static void behind_our_back(void)
{
	int vm = fcntl(vm_new(), F_DUPFD, 500), before = vms_alive(), other;

	close_range(3, vm - 1, 0);
	raw_close(vm);
	other = fcntl(STDOUT_FILENO, F_DUPFD, vm);
	CHECK(other == vm);
	CHECK_ERRNO(check_vm(other), ENOTTY);
	CHECK(vms_alive() == before - 1);
	close(other);
}

static void raw_dup(void)
{
	int vm = vm_new();
	long copy;

	asm volatile("syscall" : "=a"(copy) : "0"(SYS_dup), "D"((long)vm) : "rcx", "r11", "memory");
	CHECK(check_vm(copy) == 1);
	close(vm);
	CHECK(check_vm(copy) == 1);
	close(copy);
}

static void by_syscall(void)
{
	int kvm = syscall(SYS_openat, AT_FDCWD, "/dev/kvm", O_RDWR), vm;

	CHECK(kvm >= 0);
	vm = syscall(SYS_ioctl, kvm, KVM_CREATE_VM, 0);
	CHECK(vm >= 0 && check_vm(vm) == 1);
	CHECK(syscall(SYS_close, vm) == 0 && syscall(SYS_close, kvm) == 0);
	CHECK_ERRNO(syscall(SYS_ioctl, vm, KVM_CHECK_EXTENSION, 1), EBADF);
	CHECK(syscall(SYS_getpid) == getpid());
}

static void reading(void)
{
	int kvm = kvm_open(), vm = vm_new(), vcpu = ioctl(vm, KVM_CREATE_VCPU, 0);
	char c;

	CHECK_ERRNO(read(vcpu, &c, 1), EINVAL);
	CHECK_ERRNO(read(vm, &c, 1), EINVAL);
	CHECK_ERRNO(read(kvm, &c, 1), EINVAL);
	CHECK_ERRNO(write(vm, "", 1), EINVAL);
	CHECK(lseek(vcpu, 5, SEEK_SET) == 0);
	close(vcpu);
	close(vm);
	close(kvm);
}

static void stats(void)
{
	int vm = vm_new(), fd = ioctl(vm, KVM_GET_STATS_FD, 0), before = vms_alive();
	struct kvm_stats_header h, again;
	char name[64], *volatile bad = (char *)8;

	CHECK(fd >= 0);
	close(vm);
	CHECK(vms_alive() == before);
	CHECK(read(fd, &h, sizeof(h)) == sizeof(h));
	CHECK(pread(fd, &again, sizeof(again), 0) == sizeof(again));
	CHECK(!memcmp(&h, &again, sizeof(h)) && h.num_desc);
	CHECK(read(fd, name, h.name_size) == (ssize_t)h.name_size);
	CHECK(!strncmp(name, "kvm-", 4));
	CHECK(pread(fd, name, 1, 1 << 20) == 0);
	CHECK_ERRNO(pread(fd, name, 1, -1), EINVAL);
	CHECK_ERRNO(read(fd, bad, 16), EFAULT);
	CHECK_ERRNO(write(fd, "", 1), EBADF);
	CHECK((fcntl(fd, F_GETFL) & O_ACCMODE) == O_RDONLY);
	close(fd);
	CHECK(vms_alive() == before - 1);
}

static void mapping(void)
{
	int kvm = kvm_open(), vm = ioctl(kvm, KVM_CREATE_VM, 0);
	int a = ioctl(vm, KVM_CREATE_VCPU, 0), b = ioctl(vm, KVM_CREATE_VCPU, 1);
	int size = ioctl(kvm, KVM_GET_VCPU_MMAP_SIZE, 0);
	int ring = ioctl(vm, KVM_CHECK_EXTENSION, KVM_CAP_COALESCED_MMIO) * 4096;
	char *pa, *pb, *pa2, *private, *only;

	CHECK(size == 12288 && ring == 8192);
	CHECK_ERRNO(mmap(NULL, 4096, PROT_READ, MAP_SHARED, vm, 0), ENODEV);
	CHECK_ERRNO(mmap(NULL, 0, PROT_READ, MAP_SHARED, a, 0), EINVAL);
	CHECK_ERRNO(mmap(NULL, 4096, PROT_READ, MAP_SHARED, a, 1), EINVAL);
	pa = mmap(NULL, size, PROT_READ | PROT_WRITE, MAP_SHARED, a, 0);
	pb = mmap(NULL, size, PROT_READ | PROT_WRITE, MAP_SHARED, b, 0);
	pa2 = mmap64(NULL, size, PROT_READ, MAP_SHARED, a, 0);
	CHECK(pa != MAP_FAILED && pb != MAP_FAILED && pa2 != MAP_FAILED);
	pa[100] = 42;
	pa[ring + 8] = 7;
	CHECK(pa2[100] == 42 && pb[100] == 0);
	CHECK(pb[ring + 8] == 7 && pa2[ring + 8] == 7);
	pa[ring + 8] = 0;
	private = mmap(NULL, 4096, PROT_READ | PROT_WRITE, MAP_PRIVATE, a, 0);
	CHECK(private != MAP_FAILED);
	only = mmap(NULL, 4096, PROT_READ | PROT_WRITE, MAP_SHARED, b, ring);
	CHECK(only != MAP_FAILED);
	only[9] = 3;
	CHECK(pa[ring + 9] == 3);
	only[9] = 0;
	munmap(pa, size);
	munmap(pb, size);
	close(a);
	close(b);
	close(vm);
	close(kvm);
	CHECK(pa2[100] == 42);
}

static void names(void)
{
	int kvm = kvm_open(), vm = vm_new(), vcpu = ioctl(vm, KVM_CREATE_VCPU, 3);
	char path[64], link[64] = "";

	snprintf(path, sizeof(path), "/proc/self/fd/%d", kvm);
	CHECK(readlink(path, link, sizeof(link)) == 8 && !strncmp(link, "/dev/kvm", 8));
	snprintf(path, sizeof(path), "/proc/self/fd/%d", vm);
	CHECK(readlink(path, link, sizeof(link)) == 17 && !strncmp(link, "anon_inode:kvm-vm", 17));
	CHECK(readlink(path, link, 4) == 4);
	snprintf(path, sizeof(path), "/proc/self/fd/%d", vcpu);
	CHECK(readlink(path, link, sizeof(link)) == 21 && !strncmp(link, "anon_inode:kvm-vcpu:3", 21));
	close(vcpu);
	close(vm);
	close(kvm);
}

static int child_status(pid_t pid)
{
	int status = -1;

	waitpid(pid, &status, 0);
	return WIFEXITED(status) ? WEXITSTATUS(status) : -1;
}

static int in_child(int kvm, int vm, int vcpu)
{
	struct kvm_regs regs;
	int own;

	if (check_vm(vm) != -1 || errno != EIO)
		return 1;
	if (ioctl(vcpu, KVM_GET_REGS, &regs) != -1 || errno != EIO)
		return 2;
	if (ioctl(kvm, KVM_GET_API_VERSION, 0) != 12)
		return 3;
	own = ioctl(kvm, KVM_CREATE_VM, 0);
	if (own < 0 || check_vm(own) != 1)
		return 4;
	close(vm);
	close(vcpu);
	close(kvm);
	if (check_vm(own) != 1)
		return 5;
	/* The numbers of the parent's descriptors, with other contents. */
	if (dup2(own, vm) != vm || check_vm(vm) != 1)
		return 6;
	close(own);
	if (check_vm(vm) != 1)
		return 7;
	close(vm);
	if (check_vm(vm) != -1 || errno != EBADF)
		return 8;
	return 0;
}

static void forked(void)
{
	int kvm = kvm_open(), vm = vm_new(), vcpu = ioctl(vm, KVM_CREATE_VCPU, 0);
	pid_t pid = fork();
	struct kvm_regs regs;

	if (!pid)
		_exit(in_child(kvm, vm, vcpu));
	CHECK(child_status(pid) == 0);
	CHECK(check_vm(vm) == 1);
	CHECK(ioctl(vcpu, KVM_GET_REGS, &regs) == 0);
	close(vm);
	close(vcpu);
	close(kvm);
}

static void vforked(void)
{
	int before = vms_alive();
	volatile int vm = vm_new();
	pid_t pid = vfork();

	if (!pid) {
		int ok = check_vm(vm) == 1;

		dup2(vm, 400);
		close(vm);
		close(400);
		_exit(ok ? 0 : 1);
	}
	CHECK(child_status(pid) == 0);
	CHECK(check_vm(vm) == 1);
	CHECK_ERRNO(check_vm(400), EBADF);
	close(vm);
	CHECK(vms_alive() == before);
}

static void passed_to_ourselves(void)
{
	int vm = vm_new(), sv[2], received;
	char byte = 0, control[CMSG_SPACE(sizeof(int))] = { 0 };
	struct iovec iov = { &byte, 1 };
	struct msghdr msg = { .msg_iov = &iov, .msg_iovlen = 1, .msg_control = control,
			      .msg_controllen = sizeof(control) };
	struct cmsghdr *c = CMSG_FIRSTHDR(&msg);

	CHECK(socketpair(AF_UNIX, SOCK_STREAM, 0, sv) == 0);
	c->cmsg_level = SOL_SOCKET;
	c->cmsg_type = SCM_RIGHTS;
	c->cmsg_len = CMSG_LEN(sizeof(int));
	memcpy(CMSG_DATA(c), &vm, sizeof(int));
	CHECK(sendmsg(sv[0], &msg, 0) == 1);
	CHECK(recvmsg(sv[1], &msg, 0) == 1);
	memcpy(&received, CMSG_DATA(CMSG_FIRSTHDR(&msg)), sizeof(int));
	CHECK(received != vm && check_vm(received) == 1);
	close(vm);
	CHECK(check_vm(received) == 1);
	close(received);
	close(sv[0]);
	close(sv[1]);
}

static void no_descriptors(void)
{
	struct rlimit old, limit;
	int kvm = kvm_open(), probe = dup(kvm);

	close(probe);
	getrlimit(RLIMIT_NOFILE, &old);
	limit = old;
	limit.rlim_cur = probe;
	setrlimit(RLIMIT_NOFILE, &limit);
	errno = 0;
	probe = open("/dev/kvm", O_RDWR);
	limit.rlim_cur = errno;
	errno = 0;
	probe = probe == -1 && ioctl(kvm, KVM_CREATE_VM, 0) == -1 ? errno : 0;
	setrlimit(RLIMIT_NOFILE, &old);
	CHECK(limit.rlim_cur == EMFILE);
	CHECK(probe == EMFILE);
	close(kvm);
}

static void *churn(void *arg)
{
	int kvm = kvm_open();

	for (int i = 0; i < 200; i++) {
		int vm = ioctl(kvm, KVM_CREATE_VM, 0), copy = dup(vm);

		close(vm);
		if (check_vm(copy) != 1)
			return "lost";
		close(copy);
	}
	close(kvm);
	return NULL;
}

static void threads(void)
{
	int before = vms_alive();
	pthread_t t[4];
	void *lost = NULL, *r;

	for (int i = 0; i < 4; i++)
		CHECK(!pthread_create(&t[i], NULL, churn, NULL));
	for (int i = 0; i < 4; i++) {
		pthread_join(t[i], &r);
		lost = r ? r : lost;
	}
	CHECK(!lost);
	CHECK(vms_alive() == before);
}

static void through_exec(void)
{
	int kvm = open("/dev/kvm", O_RDWR);
	char self[512], number[16];
	ssize_t n = readlink("/proc/self/exe", self, sizeof(self) - 1);
	pid_t pid;

	CHECK(n > 0);
	self[n] = '\0';
	snprintf(number, sizeof(number), "%d", kvm);
	pid = fork();
	if (!pid) {
		execl(self, self, "--inherited", number, NULL);
		_exit(99);
	}
	CHECK(child_status(pid) == 0);
	close(kvm);
}

int main(int argc, char **argv)
{
	static const struct test tests[] = {
		{ "system_fd", system_fd },
		{ "not_ours", not_ours },
		{ "copies", copies },
		{ "dup2_over", dup2_over },
		{ "vcpu_keeps_vm", vcpu_keeps_vm },
		{ "ranges", ranges },
		{ "behind_our_back", behind_our_back },
		{ "raw_dup", raw_dup },
		{ "by_syscall", by_syscall },
		{ "reading", reading },
		{ "stats", stats },
		{ "mapping", mapping },
		{ "names", names },
		{ "forked", forked },
		{ "vforked", vforked },
		{ "passed_to_ourselves", passed_to_ourselves },
		{ "no_descriptors", no_descriptors },
		{ "threads", threads },
		{ "through_exec", through_exec },
	};

	if (argc == 3 && !strcmp(argv[1], "--inherited"))
		return check_vm(ioctl(atoi(argv[2]), KVM_CREATE_VM, 0)) == 1 ? 0 : 1;
	return RUN_TESTS(tests);
}

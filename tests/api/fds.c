/* SPDX-License-Identifier: MIT */
/* Descriptors are real: dup, fork, SCM_RIGHTS, exec, read, mmap, and life times. */
#include <dirent.h>
#include <poll.h>
#include <pthread.h>
#include <sched.h>
#include <stdatomic.h>
#include <stdbool.h>
#include <sys/socket.h>
#include <sys/stat.h>
#include <sys/wait.h>

#include "api/kvmtest.h"

static void test_dup(void)
{
	struct kvmtest t = kvmtest_vm(1 << 20, 0);
	struct kvm_regs regs;
	int d, e;

	kvmtest_add_vcpu(&t, 0);
	d = dup(t.vcpu);
	e = fcntl(t.vm, F_DUPFD_CLOEXEC, 100);
	CHECK(d >= 0 && e >= 100);
	CHECK_EQ(ioctl(d, KVM_GET_REGS, &regs), 0);
	CHECK_EQ(ioctl(e, KVM_CHECK_EXTENSION, KVM_CAP_USER_MEMORY), 1);
	/* The VM outlives its own descriptor while a vCPU is open. */
	close(t.vm);
	close(e);
	CHECK_EQ(ioctl(d, KVM_GET_REGS, &regs), 0);
	close(t.vcpu);
	CHECK_EQ(ioctl(d, KVM_GET_REGS, &regs), 0);
	close(d);
	CHECK_ERRNO(ioctl(d, KVM_GET_REGS, &regs), EBADF);
	munmap(t.run, t.run_size);
	close(t.kvm);
}

static void test_fork(void)
{
	struct kvmtest t = kvmtest_vm(1 << 20, 0);
	int status;
	pid_t pid;

	kvmtest_add_vcpu(&t, 0);
	pid = fork();
	if (!pid) {
		struct kvm_regs regs;
		int ok = ioctl(t.vcpu, KVM_GET_REGS, &regs) == -1 && errno == EIO;

		ok &= ioctl(t.vm, KVM_CREATE_VCPU, 1) == -1 && errno == EIO;
		ok &= ioctl(t.vm, KVM_CHECK_EXTENSION, 0) == -1 && errno == EIO;
		ok &= ioctl(t.kvm, KVM_GET_API_VERSION, 0) == 12;
		ok &= ioctl(t.kvm, KVM_CREATE_VM, 0) >= 0;	/* a VM of the child's own works */
		t.run->immediate_exit = 1;			/* shared with the parent */
		_exit(ok ? 0 : 1);
	}
	CHECK(waitpid(pid, &status, 0) == pid && WIFEXITED(status));
	CHECK_EQ(WEXITSTATUS(status), 0);
	CHECK_EQ(t.run->immediate_exit, 1);
	t.run->immediate_exit = 0;
	/* The child's exit has not harmed the parent's VM. */
	kvmtest_real_mode(&t, 0x1000, "\xf4", 1);
	CHECK_EQ(ioctl(t.vcpu, KVM_RUN, 0), 0);
	CHECK_EQ(t.run->exit_reason, KVM_EXIT_HLT);
	kvmtest_done(&t);
}

static int pass_fd(int fd)
{
	int sv[2], got = -1;
	char c = 'x', ctl[CMSG_SPACE(sizeof(int))];
	struct iovec iov = { &c, 1 };
	struct msghdr m = { .msg_iov = &iov, .msg_iovlen = 1, .msg_control = ctl, .msg_controllen = sizeof(ctl) };

	NEED(socketpair(AF_UNIX, SOCK_STREAM, 0, sv) == 0);
	CMSG_FIRSTHDR(&m)->cmsg_level = SOL_SOCKET;
	CMSG_FIRSTHDR(&m)->cmsg_type = SCM_RIGHTS;
	CMSG_FIRSTHDR(&m)->cmsg_len = CMSG_LEN(sizeof(int));
	memcpy(CMSG_DATA(CMSG_FIRSTHDR(&m)), &fd, sizeof(fd));
	NEED(sendmsg(sv[0], &m, 0) == 1);
	NEED(recvmsg(sv[1], &m, 0) == 1);
	memcpy(&got, CMSG_DATA(CMSG_FIRSTHDR(&m)), sizeof(got));
	close(sv[0]);
	close(sv[1]);
	return got;
}

static void test_scm_rights(void)
{
	struct kvmtest t = kvmtest_vm(1 << 20, 0);
	struct kvm_regs regs;
	int got;

	kvmtest_add_vcpu(&t, 0);
	got = pass_fd(t.vcpu);
	CHECK(got >= 0 && got != t.vcpu);
	CHECK_EQ(ioctl(got, KVM_GET_REGS, &regs), 0);
	close(got);
	got = pass_fd(t.kvm);
	CHECK_EQ(ioctl(got, KVM_GET_API_VERSION, 0), 12);
	close(got);
	kvmtest_done(&t);
}

static void test_file_operations(void)
{
	struct kvmtest t = kvmtest_vm(1 << 20, 0);
	struct stat st;
	char c, link[64], path[64];
	struct pollfd p;
	void *m;

	kvmtest_add_vcpu(&t, 0);
	CHECK(fcntl(t.vm, F_GETFD) & FD_CLOEXEC);
	CHECK(fcntl(t.vcpu, F_GETFD) & FD_CLOEXEC);
	CHECK_EQ(fstat(t.vcpu, &st), 0);
	CHECK_ERRNO(read(t.vcpu, &c, 1), EINVAL);
	CHECK(mmap(NULL, 4096, PROT_READ, MAP_SHARED, t.vm, 0) == MAP_FAILED && errno == ENODEV);
	m = mmap(NULL, 4096, PROT_READ | PROT_WRITE, MAP_SHARED, t.vcpu, 0);
	CHECK(m != MAP_FAILED);
	t.run->request_interrupt_window = 1;
	CHECK_EQ(((struct kvm_run *)m)->request_interrupt_window, 1);
	t.run->request_interrupt_window = 0;
	munmap(m, 4096);
	p = (struct pollfd){ .fd = t.vcpu, .events = POLLIN };
	CHECK(poll(&p, 1, 0) >= 0);
	snprintf(path, sizeof(path), "/proc/self/fd/%d", t.vm);
	CHECK(readlink(path, link, sizeof(link)) > 0 && !strncmp(link, "anon_inode:kvm-vm", 17));
	kvmtest_done(&t);
}

/* One coalesced ring a VM, whichever vCPU's mapping shows it. */
static void test_ring_page_is_shared(void)
{
	struct kvmtest t = kvmtest_vm(1 << 20, 0);
	int second;
	uint8_t *a, *b;

	kvmtest_add_vcpu(&t, 0);
	second = ioctl(t.vm, KVM_CREATE_VCPU, 1);
	CHECK(second >= 0);
	a = (uint8_t *)t.run;
	b = mmap(NULL, t.run_size, PROT_READ | PROT_WRITE, MAP_SHARED, second, 0);
	CHECK(b != MAP_FAILED);
	a[2 * 4096 + 100] = 0x5a;
	CHECK_EQ(b[2 * 4096 + 100], 0x5a);
	CHECK(a[0] != 0x5a);
	munmap(b, t.run_size);
	close(second);
	kvmtest_done(&t);
}

static void test_many_vms(void)
{
	int kvm = open("/dev/kvm", O_RDWR), bad = 0;

	/* Descriptors are freed with the VM: this does not run out of them. */
	for (int i = 0; i < 3000; i++) {
		int vm = ioctl(kvm, KVM_CREATE_VM, 0);
		int vcpu = ioctl(vm, KVM_CREATE_VCPU, 0);

		bad += vm < 0 || vcpu < 0;
		close(vm);
		close(vcpu);
	}
	CHECK_EQ(bad, 0);
	close(kvm);
}

static void test_vcpu_ids(void)
{
	struct kvmtest t = kvmtest_vm(1 << 20, 0);

	kvmtest_add_vcpu(&t, 0);
	CHECK_ERRNO(ioctl(t.vm, KVM_CREATE_VCPU, 0), EEXIST);
	CHECK_ERRNO(ioctl(t.vm, KVM_CREATE_VCPU, 4096), EINVAL);
	CHECK_ERRNO(ioctl(t.vm, KVM_CREATE_VCPU, 1ul << 32), EINVAL);
	CHECK_ERRNO(ioctl(t.vm, _IO(KVMIO, 0xfe), 0), ENOTTY);
	CHECK_ERRNO(ioctl(t.vcpu, _IO(KVMIO, 0xfe), 0), EINVAL);
	CHECK_ERRNO(ioctl(t.vcpu, KVM_RUN, 1), EINVAL);
	CHECK_ERRNO(ioctl(t.vcpu, KVM_GET_REGS, 8), EFAULT);
	CHECK_ERRNO(ioctl(t.vcpu, KVM_SET_REGS, 8), EFAULT);
	kvmtest_done(&t);
}

/* ---- a close() that meets another thread's ioctl() -------------------------------------- */

static _Atomic int raced_fd = -1;
static _Atomic unsigned raced_calls;
static _Atomic bool race_over;

static void *use_raced_fd(void *arg)
{
	while (!race_over) {
		int fd = raced_fd;

		if (fd >= 0)
			ioctl(fd, KVM_CHECK_EXTENSION, KVM_CAP_USER_MEMORY);
		raced_calls++;
	}
	return NULL;
}

static void wait_for_calls(unsigned n)
{
	for (unsigned from = raced_calls; raced_calls - from < n;)
		sched_yield();
}

static unsigned count_fds(void)
{
	DIR *d = opendir("/proc/self/fd");
	unsigned n = 0;

	while (d && readdir(d))
		n++;
	closedir(d);
	return n;
}

/* Whatever it met, the VM goes with its last descriptor: the page of its ring is the one that tells. */
static void test_close_race(void)
{
	struct kvm_coalesced_mmio_zone zone = { .addr = 0x1000, .size = 0x1000 };
	int kvm = open("/dev/kvm", O_RDWR | O_CLOEXEC);
	unsigned before = count_fds(), left = 0;
	pthread_t thread;

	NEED(pthread_create(&thread, NULL, use_raced_fd, NULL) == 0);
	for (int i = 0; i < 400; i++) {
		int vm = ioctl(kvm, KVM_CREATE_VM, 0);

		NEED(vm >= 0 && ioctl(vm, KVM_REGISTER_COALESCED_MMIO, &zone) == 0);
		raced_fd = vm;
		wait_for_calls(2);
		close(vm);
		raced_fd = -1;
		wait_for_calls(2);
		left += count_fds() != before;
	}
	race_over = true;
	pthread_join(thread, NULL);
	CHECK_EQ(left, 0);
	close(kvm);
}

int main(void)
{
	test_dup();
	test_close_race();
	test_fork();
	test_scm_rights();
	test_file_operations();
	test_ring_page_is_shared();
	test_many_vms();
	test_vcpu_ids();
	return kvmtest_summary();
}

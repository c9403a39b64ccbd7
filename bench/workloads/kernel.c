/* SPDX-License-Identifier: MIT */
/* What programs ask of their kernel: N times each. */
#include <fcntl.h>
#include <pthread.h>
#include <sched.h>
#include <signal.h>
#include <stdlib.h>
#include <string.h>
#include <sys/epoll.h>
#include <sys/mman.h>
#include <sys/socket.h>
#include <sys/stat.h>
#include <sys/syscall.h>
#include <sys/wait.h>
#include <time.h>
#include <unistd.h>

#include "work.h"

uint64_t work_getppid(long n)
{
	work_begin();
	for (long i = 0; i < n; i++)
		syscall(SYS_getppid);
	work_end(n);
	return 0;
}

static uint64_t read_zero(size_t size, long n)
{
	int fd = open("/dev/zero", O_RDONLY);
	char *buffer = work_alloc(size);

	work_begin();
	for (long i = 0; i < n; i++)
		if (read(fd, buffer, size) != (ssize_t)size)
			work_fail("/dev/zero");
	work_end(n);
	return 0;
}

uint64_t work_read_1(long n) { return read_zero(1, n); }
uint64_t work_read_64K(long n) { return read_zero(65536, n); }

static void handler(int sig)
{
	(void)sig;
}

uint64_t work_signal(long n)
{
	signal(SIGUSR1, handler);
	work_begin();
	for (long i = 0; i < n; i++)
		raise(SIGUSR1);
	work_end(n);
	return 0;
}

uint64_t work_fork(long n)
{
	int status;

	work_begin();
	for (long i = 0; i < n; i++) {
		pid_t pid = fork();

		if (!pid)
			_exit(0);
		if (waitpid(pid, &status, 0) != pid || status)
			work_fail("fork");
	}
	work_end(n);
	return 0;
}

uint64_t work_exec(long n)
{
	char *const argv[] = { "./nothing", NULL };
	int status;

	work_begin();
	for (long i = 0; i < n; i++) {
		pid_t pid = fork();

		if (!pid) {
			execv(argv[0], argv);
			_exit(1);
		}
		if (waitpid(pid, &status, 0) != pid || status)
			work_fail("exec");
	}
	work_end(n);
	return 0;
}

/* A byte goes to another process and back. */
uint64_t work_pipe(long n)
{
	int to[2], from[2], status;
	char c = 0;
	pid_t pid;

	if (pipe(to) || pipe(from))
		work_fail("pipe");
	work_begin();
	pid = fork();
	if (!pid) {
		for (long i = 0; i < n; i++)
			if (read(to[0], &c, 1) != 1 || write(from[1], &c, 1) != 1)
				_exit(1);
		_exit(0);
	}
	for (long i = 0; i < n; i++)
		if (write(to[1], &c, 1) != 1 || read(from[0], &c, 1) != 1)
			work_fail("pipe");
	if (waitpid(pid, &status, 0) != pid || status)
		work_fail("pipe");
	work_end(n);
	return 0;
}

/* First touch of anonymous memory. */
uint64_t work_page_fault(long n)
{
	size_t size = 32ul << 20;

	work_begin();
	for (long i = 0; i < n; i += size / 4096) {
		char *p = mmap(NULL, size, PROT_READ | PROT_WRITE, MAP_PRIVATE | MAP_ANONYMOUS, -1, 0);

		if (p == MAP_FAILED)
			work_fail("mmap");
		madvise(p, size, MADV_NOHUGEPAGE);
		for (size_t at = 0; at < size; at += 4096)
			p[at] = 1;
		munmap(p, size);
	}
	work_end((n + size / 4096 - 1) / (size / 4096) * (size / 4096));
	return 0;
}

uint64_t work_mmap(long n)
{
	work_begin();
	for (long i = 0; i < n; i++) {
		char *p = mmap(NULL, 4096, PROT_READ | PROT_WRITE, MAP_PRIVATE | MAP_ANONYMOUS, -1, 0);

		*p = 1;
		munmap(p, 4096);
	}
	work_end(n);
	return 0;
}

uint64_t work_stat(long n)
{
	struct stat st;

	work_begin();
	for (long i = 0; i < n; i++)
		if (stat("./text", &st))
			work_fail("stat");
	work_end(n);
	return 0;
}

static void *yielder(void *arg)
{
	for (long i = 0; i < (long)arg; i++)
		sched_yield();
	return NULL;
}

/* Two threads give way to each other. */
uint64_t work_yield(long n)
{
	pthread_t t;

	work_begin();
	if (pthread_create(&t, NULL, yielder, (void *)n))
		work_fail("thread");
	yielder((void *)n);
	pthread_join(t, NULL);
	work_end(n);
	return 0;
}

uint64_t work_clock(long n)
{
	struct timespec ts;

	work_begin();
	for (long i = 0; i < n; i++)
		clock_gettime(CLOCK_MONOTONIC, &ts);
	work_end(n);
	return 0;
}

/* A stream between two ends of a socket pair, and an epoll before each read. */
uint64_t work_socket(long n)
{
	struct epoll_event ev = { .events = EPOLLIN };
	int s[2], ep = epoll_create1(0);
	static char buffer[16384];

	if (socketpair(AF_UNIX, SOCK_STREAM, 0, s) || epoll_ctl(ep, EPOLL_CTL_ADD, s[1], &ev))
		work_fail("socket");
	work_begin();
	for (long i = 0; i < n; i++)
		if (write(s[0], buffer, sizeof(buffer)) != sizeof(buffer) || epoll_wait(ep, &ev, 1, -1) != 1 ||
		    read(s[1], buffer, sizeof(buffer)) != sizeof(buffer))
			work_fail("socket");
	work_end(n);
	return 0;
}

/* SPDX-License-Identifier: MIT */
/*
 * agent: runs what it is told to, on the host and as the first process of a guest, which then
 * needs neither shell nor init. One command a line, on standard input (in a guest, the second
 * serial port):
 *	S PROGRAM ARGUMENTS	a program that measures itself (workloads/main.c)
 *	P PROGRAM ARGUMENTS	any other; its time is its own and its children's, all of it;
 *				"<FILE" as an argument is its input
 *	N COUNT PROGRAM ...	COUNT copies of it at once, each with its own time; all in all is what counts
 *	Q			the end (a guest powers off)
 * Answers: "B" before the part that counts, "E CPU-NS CHECKSUM OPS WALL-NS" after it, each waiting
 * for a line, then "D STATUS".
 */
#include <dirent.h>
#include <errno.h>
#include <fcntl.h>
#include <sched.h>
#include <stdint.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/mount.h>
#include <sys/reboot.h>
#include <sys/resource.h>
#include <sys/stat.h>
#include <sys/syscall.h>
#include <sys/wait.h>
#include <termios.h>
#include <time.h>
#include <unistd.h>

#define CHANNEL 3 /* what workloads/main.c expects */
#define MAX_WORDS 64

static void say(const char *line)
{
	if (write(CHANNEL, line, strlen(line)) < 0)
		exit(1);
}

static int hear(char *line, size_t size)
{
	size_t n = 0;
	char c;

	while (read(CHANNEL, &c, 1) == 1) {
		if (c == '\n') {
			line[n] = 0;
			return 1;
		}
		if (n + 1 < size)
			line[n++] = c;
	}
	return 0;
}

static uint64_t now_ns(void)
{
	struct timespec ts;

	clock_gettime(CLOCK_MONOTONIC, &ts);
	return ts.tv_sec * 1000000000ull + ts.tv_nsec;
}

static uint64_t usage_ns(const struct rusage *u)
{
	return (u->ru_utime.tv_sec + u->ru_stime.tv_sec) * 1000000000ull +
	       (u->ru_utime.tv_usec + u->ru_stime.tv_usec) * 1000ull;
}

static void take_input(char **argv)
{
	for (; *argv; argv++)
		if (**argv == '<') {
			int fd = open(*argv + 1, O_RDONLY);

			if (fd < 0 || dup2(fd, 0) < 0)
				_exit(126);
			memmove(argv, argv + 1, sizeof(*argv) * MAX_WORDS / 2);
			return;
		}
}

static pid_t start(char **argv, int out, int channel)
{
	pid_t pid = fork();

	if (pid)
		return pid;
	dup2(open("/dev/null", O_RDWR), 0);
	dup2(out, 1);
	if (!channel)
		close(CHANNEL);
	take_input(argv);
	execvp(argv[0], argv);
	fprintf(stderr, "%s: %s\n", argv[0], strerror(errno));
	_exit(127);
}

/* All of a program's output, as one number. */
static uint64_t drain(int fd)
{
	static uint64_t buffer[8192];
	uint64_t sum = 0;
	size_t have = 0;
	ssize_t n;

	while ((n = read(fd, (char *)buffer + have, sizeof(buffer) - have)) > 0) {
		have += n;
		if (have < sizeof(buffer))
			continue;
		for (size_t i = 0; i < have / 8; i++)
			sum = (sum ^ buffer[i]) * 0x9e3779b97f4a7c15ull, sum ^= sum >> 31;
		have = 0;
	}
	for (size_t i = 0; i < have; i++)
		sum = (sum ^ ((unsigned char *)buffer)[i]) * 0x100000001b3ull;
	return sum;
}

static int finish(uint64_t cpu, uint64_t sum, unsigned long ops, uint64_t wall)
{
	char line[120];

	snprintf(line, sizeof(line), "E %lu %lx %lu %lu\n", cpu, sum, ops, wall);
	say(line);
	return hear(line, sizeof(line));
}

static int begin(void)
{
	char line[10];

	say("B\n");
	return hear(line, sizeof(line));
}

static int run_program(char **argv)
{
	struct rusage usage;
	uint64_t sum, wall;
	int out[2], status;
	pid_t pid;

	if (pipe(out) || !begin())
		exit(1);
	wall = now_ns();
	pid = start(argv, out[1], 0);
	close(out[1]);
	sum = drain(out[0]);
	close(out[0]);
	if (wait4(pid, &status, 0, &usage) != pid)
		exit(1);
	finish(usage_ns(&usage), sum, 1, now_ns() - wall);
	return status;
}

static int run_copies(unsigned copies, char **argv)
{
	int status, worst = 0, null = open("/dev/null", O_RDWR);
	struct rusage usage;
	uint64_t cpu = 0, wall;

	if (!begin())
		exit(1);
	wall = now_ns();
	for (unsigned i = 0; i < copies; i++)
		start(argv, null, 0);
	while (wait4(-1, &status, 0, &usage) > 0) {
		cpu += usage_ns(&usage);
		worst |= status;
	}
	close(null);
	finish(cpu, 0, copies, now_ns() - wall);
	return worst;
}

static int run_self(char **argv)
{
	int status;
	pid_t pid = start(argv, 2, 1);

	return waitpid(pid, &status, 0) == pid ? status : -1;
}

static void serve(void)
{
	char line[1000], answer[40], *argv[MAX_WORDS + 1], *word;
	int status;

	while (hear(line, sizeof(line)) && line[0] != 'Q') {
		unsigned n = 0;

		memset(argv, 0, sizeof(argv));
		for (word = strtok(line, " "); word && n < MAX_WORDS / 2; word = strtok(NULL, " "))
			argv[n++] = word;
		if (n < 2)
			continue;
		switch (argv[0][0]) {
		case 'S': status = run_self(argv + 1); break;
		case 'P': status = run_program(argv + 1); break;
		case 'N': status = run_copies(atoi(argv[1]), argv + 2); break;
		default: status = -1; break;
		}
		snprintf(answer, sizeof(answer), "D %d\n", status);
		say(answer);
	}
}

/* ---- as the first process ------------------------------------------------------------------ */

static void insert_modules(void)
{
	struct dirent **names;
	int n = scandir("/modules", &names, NULL, alphasort);

	for (int i = 0; i < n; i++) {
		char path[300];
		int fd;

		if (names[i]->d_name[0] == '.')
			continue;
		snprintf(path, sizeof(path), "/modules/%s", names[i]->d_name);
		fd = open(path, O_RDONLY);
		if (fd < 0 || syscall(SYS_finit_module, fd, "", 0))
			perror(path);
		close(fd);
	}
}

static void become_init(void)
{
	struct termios tio;
	int fd;

	mount("proc", "/proc", "proc", 0, NULL);
	mount("sysfs", "/sys", "sysfs", 0, NULL);
	mount("dev", "/dev", "devtmpfs", 0, NULL);
	mount("tmp", "/tmp", "tmpfs", 0, NULL);
	fd = open("/dev/console", O_RDWR);
	dup2(fd, 0);
	dup2(fd, 1);
	dup2(fd, 2);
	insert_modules();
	fd = open("/dev/ttyS1", O_RDWR | O_NOCTTY);
	if (fd < 0 || tcgetattr(fd, &tio)) {
		perror("/dev/ttyS1");
		exit(1);
	}
	cfmakeraw(&tio);
	cfsetspeed(&tio, B115200);
	tcsetattr(fd, TCSANOW, &tio);
	if (fd != CHANNEL) {
		dup2(fd, CHANNEL);
		close(fd);
	}
	if (chdir("/bench"))
		perror("/bench");
}

int main(int argc, char **argv)
{
	static char *const environment[] = { "PATH=/usr/bin:/bin", "LC_ALL=C", "PYTHONHASHSEED=0", "HOME=/", NULL };
	struct rlimit stack = { 8 << 20, RLIM_INFINITY };
	int first = getpid() == 1;
	cpu_set_t set;

	environ = (char **)environment;
	setrlimit(RLIMIT_STACK, &stack);
	if (first) {
		become_init();
	} else {
		dup2(0, CHANNEL);
		if (argc == 2) { /* the CPU to stay on */
			CPU_ZERO(&set);
			CPU_SET(atoi(argv[1]), &set);
			sched_setaffinity(0, sizeof(set), &set);
		}
	}
	say("agent: ready\n");
	serve();
	if (first) {
		sync();
		reboot(RB_POWER_OFF);
	}
	return 0;
}

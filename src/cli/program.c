/* SPDX-License-Identifier: MIT */
/*
 * Will the dynamic linker of this program load the preload object? It will not
 * for static programs, in secure mode (setuid and friends), for another
 * architecture or another libc; each gets one clear sentence instead of a silent
 * failure to open /dev/kvm later. Scripts are followed to their interpreter.
 */
#include "cli/cli.h"

#include <elf.h>
#include <errno.h>
#include <fcntl.h>
#include <limits.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/stat.h>
#include <sys/xattr.h>
#include <unistd.h>

#define MAX_SCRIPTS 5

/* ---- finding ------------------------------------------------------------------------- */

static int usable(const char *path)
{
	struct stat st;

	if (stat(path, &st))
		return errno == ENOENT || errno == ENOTDIR ? EXIT_NOT_FOUND : EXIT_NOT_EXECUTABLE;
	if (S_ISDIR(st.st_mode))
		errno = EISDIR;
	else if (!access(path, X_OK))
		return 0;
	return EXIT_NOT_EXECUTABLE;
}

static int search_path(const char *name, char *path, size_t size)
{
	const char *dir = getenv("PATH");
	int worst = EXIT_NOT_FOUND, error = ENOENT;

	if (!dir)
		dir = "/bin:/usr/bin";
	for (;;) {
		size_t len = strcspn(dir, ":");
		int r;

		if (snprintf(path, size, "%.*s%s%s", (int)len, dir, len ? "/" : "", name) < (int)size) {
			r = usable(path);
			if (!r)
				return 0;
			if (r == EXIT_NOT_EXECUTABLE) {
				worst = r;
				error = errno;
			}
		}
		if (!dir[len])
			break;
		dir += len + 1;
	}
	errno = error;
	return worst;
}

static int find(const char *name, char *path, size_t size)
{
	if (!strchr(name, '/'))
		return *name ? search_path(name, path, size) : EXIT_NOT_FOUND;
	if (strlen(name) >= size) {
		errno = ENAMETOOLONG;
		return EXIT_NOT_EXECUTABLE;
	}
	strcpy(path, name);
	return usable(path);
}

int program_find(const char *name, char *path, size_t size)
{
	int r = find(name, path, size);

	if (r == EXIT_NOT_FOUND)
		complain("%s: program not found", name);
	else if (r)
		complain("%s: cannot be executed: %s", name, strerror(errno));
	return r;
}

/* ---- checking -------------------------------------------------------------------------- */

static int refuse(const char *path, const char *why)
{
	complain("%s %s", path, why);
	return EXIT_USAGE;
}

static bool is_secure(const char *path)
{
	struct stat st;

	if (stat(path, &st))
		return false;
	if ((st.st_mode & S_ISUID) && st.st_uid != geteuid())
		return true;
	if ((st.st_mode & (S_ISGID | S_IXGRP)) == (S_ISGID | S_IXGRP) && st.st_gid != getegid())
		return true;
	return geteuid() && getxattr(path, "security.capability", NULL, 0) > 0;
}

/* The dynamic linker that the program asks for; "" if it asks for none. False: unreadable. */
static bool elf_interpreter(int fd, const Elf64_Ehdr *eh, char *interp, size_t size)
{
	interp[0] = '\0';
	for (unsigned i = 0; i < eh->e_phnum; i++) {
		Elf64_Phdr ph;
		off_t off = eh->e_phoff + (off_t)i * eh->e_phentsize;
		ssize_t n;

		if (pread(fd, &ph, sizeof(ph), off) != sizeof(ph))
			return false;
		if (ph.p_type != PT_INTERP)
			continue;
		n = pread(fd, interp, ph.p_filesz < size ? ph.p_filesz : size - 1, ph.p_offset);
		interp[n > 0 ? n : 0] = '\0';
		return n > 0;
	}
	return true;
}

static int check_elf(const char *path, int fd, const Elf64_Ehdr *eh, size_t len)
{
	char interp[PATH_MAX];

	if (len < sizeof(*eh) || eh->e_ident[EI_CLASS] != ELFCLASS64)
		return refuse(path, "is not a 64-bit program: SoftKVM runs 64-bit x86 programs only");
	if (eh->e_machine != EM_X86_64)
		return refuse(path, "is a program for another processor: SoftKVM runs 64-bit x86 programs only");
	if (!elf_interpreter(fd, eh, interp, sizeof(interp)))
		return refuse(path, "has damaged program headers");
	if (!interp[0])
		return refuse(path, "is statically linked: SoftKVM is loaded by the dynamic linker, "
			      "so it works with dynamically linked programs only");
	if (strstr(interp, "ld-musl"))
		return refuse(path, "is linked with musl libc: this SoftKVM was built for programs that use glibc");
	if (is_secure(path))
		return refuse(path, "is setuid, setgid or has file capabilities: the dynamic linker does not load "
			      "SoftKVM into such programs (run it with these rights already, or a copy without the bits)");
	return 0;
}

static int check_depth(const char *path, int depth);

/* line: what follows "#!", terminated. env(1) is looked through, since everybody uses it. */
static int check_script(char *line, int depth)
{
	char *save = NULL, *interp = strtok_r(line, " \t", &save), *word;
	char path[PATH_MAX];
	const char *base;
	int r;

	if (!interp || access(interp, X_OK))
		return 0; /* execve() will say it better */
	r = check_depth(interp, depth + 1);
	base = strrchr(interp, '/');
	if (r || strcmp(base ? base + 1 : interp, "env"))
		return r;
	while ((word = strtok_r(NULL, " \t", &save)))
		if (*word != '-' && !strchr(word, '='))
			break;
	if (!word || find(word, path, sizeof(path)))
		return 0;
	return check_depth(path, depth + 1);
}

static int check_depth(const char *path, int depth)
{
	union {
		Elf64_Ehdr elf;
		char text[256];
	} head;
	int fd, r = 0;
	ssize_t n;

	if (depth > MAX_SCRIPTS)
		return 0;
	fd = open(path, O_RDONLY | O_CLOEXEC);
	if (fd < 0) {
		/* Executable but not readable: then the linker does not preload either. */
		if (errno == EACCES)
			return refuse(path, "may be executed but not read, so SoftKVM cannot tell whether it is "
				      "dynamically linked");
		return 0;
	}
	n = read(fd, &head, sizeof(head));
	if (n >= SELFMAG && !memcmp(head.elf.e_ident, ELFMAG, SELFMAG)) {
		r = check_elf(path, fd, &head.elf, n);
	} else if (n > 2 && head.text[0] == '#' && head.text[1] == '!') {
		char *end = memchr(head.text, '\n', n);

		*(end ? end : &head.text[n < (ssize_t)sizeof(head) ? n : n - 1]) = '\0';
		r = check_script(head.text + 2, depth);
	}
	close(fd);
	return r;
}

int program_check(const char *path)
{
	return check_depth(path, 0);
}

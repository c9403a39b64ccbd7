/* SPDX-License-Identifier: MIT */
/* What is mapped in this process, as the kernel lists it. */
#include <errno.h>
#include <fcntl.h>

#include "host/host.h"
#include "host/syscall.h"

/* A line "start-end perms ...", byte by byte. */
struct maps_parser {
	enum { MAPS_START, MAPS_END, MAPS_PERMS, MAPS_REST } at;
	u64 start, end;
	u64 seen;		/* addresses below have been taken: a mapping that changes meanwhile may be listed twice */
	char perms[4];
	unsigned nr_perms;
	bool bad;
};

/* Of an address, which ends with last. */
static void parse_address(struct maps_parser *p, u64 *value, char last, char c)
{
	unsigned digit = c >= '0' && c <= '9' ? c - '0' : c >= 'a' && c <= 'f' ? c - 'a' + 10 : 16;

	if (c == last) {
		p->at++;
		return;
	}
	p->bad |= digit > 15;
	*value = *value << 4 | digit;
}

/* True: that was the last of a mapping's address and permissions. */
static bool parse(struct maps_parser *p, char c)
{
	switch (p->at) {
	case MAPS_START:
		parse_address(p, &p->start, '-', c);
		return false;
	case MAPS_END:
		parse_address(p, &p->end, ' ', c);
		return false;
	case MAPS_PERMS:
		p->perms[p->nr_perms++] = c;
		if (p->nr_perms < sizeof(p->perms))
			return false;
		p->at = MAPS_REST;
		return true;
	default:
		if (c == '\n')
			*p = (struct maps_parser){ .seen = p->seen, .bad = p->bad };
		return false;
	}
}

static void take_mapping(struct maps_parser *p, struct host_range *ranges, unsigned nr)
{
	const bool read = p->perms[0] == 'r', write = p->perms[1] == 'w', private = p->perms[3] == 'p';

	for (unsigned i = 0; i < nr; i++) {
		struct host_range *r = &ranges[i];
		u64 from = max(max(p->start, p->seen), r->start), to = min(p->end, r->start + r->size);

		if (from < to && private && read && (write || r->read_only))
			r->covered += to - from;
	}
	p->seen = max(p->seen, p->end);
}

bool host_is_private(struct host_range *ranges, unsigned nr)
{
	/* Not self: that is the first thread's, which may have ended. */
	long fd = host_syscall(SYS_openat, AT_FDCWD, "/proc/thread-self/maps", O_RDONLY | O_CLOEXEC, 0), n;
	struct maps_parser p = { 0 };
	char buf[4096];

	if (fd < 0)
		return false;
	do {
		n = host_syscall(SYS_read, fd, buf, sizeof(buf), 0);
		for (long i = 0; i < n && !p.bad; i++)
			if (parse(&p, buf[i]))
				take_mapping(&p, ranges, nr);
	} while (n > 0 || n == -EINTR);
	host_syscall(SYS_close, fd, 0, 0, 0);
	for (unsigned i = 0; i < nr; i++)
		p.bad |= ranges[i].covered != ranges[i].size;
	return !n && !p.bad;
}

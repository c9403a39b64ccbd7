/* SPDX-License-Identifier: MIT */
/*
 * Where trace events go: one buffer a process, written to SOFTKVM_TRACE_FILE (or
 * standard error), as lines or as records.
 *
 * 1. The lock is a leaf; nothing is called under it but write(2), open(2) and fstat(2).
 * 2. Several processes may share a file: it is only appended to, whole lines or
 *    records at a time.
 * 3. The descriptor is the client's neighbour: if the client has closed or replaced it
 *    (closefrom, dup2), fstat() shows another file, and it is opened again.
 * 4. What a process that is killed had buffered is lost: at most what came since the
 *    last event FLUSH_NS after a write.
 */
#include "kvm/trace.h"

#include <errno.h>
#include <fcntl.h>
#include <pthread.h>
#include <sched.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/prctl.h>
#include <sys/stat.h>
#include <unistd.h>

#include "base/log.h"
#include "host/host.h"
#include "host/syscall.h"

#define BUFFER_SIZE 65536u
#define FLUSH_NS 10000000ull
#define HIGH_FD 400	/* out of the way of clients that count descriptors */

u64 trace_mask;

static struct {
	pthread_mutex_t lock;
	char path[1024];	/* empty: standard error */
	bool binary;
	int fd;			/* -1: not open */
	u64 dev, ino;
	u64 written_ns;
	size_t used;
	bool header_done;
	char *buf;
} sink = { .lock = PTHREAD_MUTEX_INITIALIZER, .fd = -1 };

/* Of this thread, and whether its name is in this process's trace. */
static _Thread_local __attribute__((tls_model("initial-exec"))) struct {
	u32 pid, tid;
	char comm[16];
} self;

/* ---- what the environment asks for -------------------------------------------------- */

static u64 events_of(const char *word, size_t len)
{
	u64 mask = 0;

	for (unsigned i = 0; i < NR_TRACE_EVENTS; i++) {
		const char *name = trace_event_name(i), *category = trace_event_category(i);

		if ((len == 3 && !memcmp(word, "all", 3)) ||
		    (strlen(name) == len && !memcmp(word, name, len)) ||
		    (strlen(category) == len && !memcmp(word, category, len)))
			mask |= BIT_ULL(i);
	}
	if (!mask && len)
		log_error("SOFTKVM_TRACE: \"%.*s\" is no event and none of all, exit, io, cpu, event, mmu, ring",
			  (int)len, word);
	return mask;
}

static u64 parse_events(const char *list)
{
	u64 mask = 0;

	while (*list) {
		size_t len = strcspn(list, ",");

		mask |= events_of(list, len);
		list += len + !!list[len];
	}
	return mask;
}

/* "%p" in a path is the process. */
static bool set_path(const char *file)
{
	size_t n = 0;

	for (; *file && n < sizeof(sink.path) - 12; file++) {
		if (file[0] == '%' && file[1] == 'p') {
			n += snprintf(sink.path + n, 12, "%d", (int)getpid());
			file++;
		} else {
			sink.path[n++] = *file;
		}
	}
	sink.path[n] = '\0';
	return !*file;
}

static void lock_for_fork(void)
{
	pthread_mutex_lock(&sink.lock);
}

static void unlock_in_parent(void)
{
	pthread_mutex_unlock(&sink.lock);
}

static void unlock_in_child(void)
{
	sink.used = 0; /* the parent will write it */
	sink.header_done = false;
	self.tid = 0;
	pthread_mutex_unlock(&sink.lock);
}

static void read_environment(void)
{
	const char *what = getenv("SOFTKVM_TRACE"), *file = getenv("SOFTKVM_TRACE_FILE");
	const char *format = getenv("SOFTKVM_TRACE_FORMAT");
	u64 mask;

	if (!(what && *what) && !(file && *file))
		return;
	if (what && strchr(what, '/')) {
		file = what;
		what = NULL;
	}
	mask = what && *what ? parse_events(what) : ~0ull;
	if (format && !strcmp(format, "binary"))
		sink.binary = true;
	else if (format && *format && strcmp(format, "text"))
		log_error("SOFTKVM_TRACE_FORMAT=%s is neither text nor binary; taken as text", format);
	if (file && *file && !set_path(file)) {
		log_error("SOFTKVM_TRACE_FILE is too long; nothing is traced");
		return;
	}
	if (sink.binary && !*sink.path) {
		log_error("a binary trace needs SOFTKVM_TRACE_FILE; nothing is traced");
		return;
	}
	sink.buf = malloc(BUFFER_SIZE);
	if (!sink.buf)
		return;
	pthread_atfork(lock_for_fork, unlock_in_parent, unlock_in_child);
	__atomic_store_n(&trace_mask, mask, __ATOMIC_RELEASE);
}

void trace_init(void)
{
	static pthread_once_t once = PTHREAD_ONCE_INIT;

	pthread_once(&once, read_environment);
}

/* ---- writing ------------------------------------------------------------------------- */

static bool still_open(void)
{
	struct stat st;

	return sink.fd >= 0 && !host_syscall(SYS_fstat, sink.fd, &st, 0, 0) && st.st_dev == sink.dev &&
	       st.st_ino == sink.ino;
}

/* The file's descriptor, or -1 after saying why: then tracing ends. */
static int sink_fd(void)
{
	struct stat st;
	long fd, high;

	if (!*sink.path)
		return STDERR_FILENO;
	if (still_open())
		return sink.fd;
	fd = host_syscall6(SYS_openat, AT_FDCWD, (long)sink.path, O_WRONLY | O_CREAT | O_APPEND | O_CLOEXEC | O_NOCTTY,
			   0666, 0, 0);
	if (fd < 0) {
		log_error("cannot write the trace to %s: %s", sink.path, strerror(-fd));
		__atomic_store_n(&trace_mask, 0, __ATOMIC_RELAXED);
		return -1;
	}
	high = host_syscall(SYS_fcntl, fd, F_DUPFD_CLOEXEC, HIGH_FD, 0);
	if (high >= 0) {
		host_syscall(SYS_close, fd, 0, 0, 0);
		fd = high;
	}
	if (!host_syscall(SYS_fstat, fd, &st, 0, 0)) {
		sink.dev = st.st_dev;
		sink.ino = st.st_ino;
	}
	sink.fd = fd;
	return fd;
}

static void write_out(void)
{
	size_t done = 0;
	int fd = sink.used ? sink_fd() : -1;

	while (fd >= 0 && done < sink.used) {
		long n = host_syscall(SYS_write, fd, sink.buf + done, sink.used - done, 0);

		if (n < 0 && n != -EINTR && n != -EAGAIN) {
			log_error("cannot write the trace: %s", strerror(-n));
			__atomic_store_n(&trace_mask, 0, __ATOMIC_RELAXED);
			break;
		}
		if (n > 0)
			done += n;
	}
	sink.used = 0;
	sink.written_ns = host_now_ns();
}

static void put(const struct trace_record *r)
{
	if (sink.used + TRACE_LINE_MAX > BUFFER_SIZE)
		write_out();
	if (!sink.binary) {
		sink.used += trace_line(r, self.comm, sink.buf + sink.used);
		return;
	}
	memcpy(sink.buf + sink.used, r, sizeof(*r));
	sink.used += sizeof(*r);
}

static void put_header(const struct trace_record *like)
{
	struct trace_record r = { .ns = like->ns, .pid = like->pid, .tid = like->tid, .event = TRACE_HEADER,
				  .arg = { TRACE_MAGIC, TRACE_VERSION } };

	if (!sink.header_done && sink.binary)
		put(&r);
	else if (!sink.header_done && *sink.path)
		sink.used += snprintf(sink.buf + sink.used, TRACE_LINE_MAX, "# tracer: nop\n#\n");
	sink.header_done = true;
}

static void introduce(struct trace_record *r)
{
	struct trace_record comm;

	self.pid = host_syscall(SYS_getpid, 0, 0, 0, 0);
	self.tid = host_syscall(SYS_gettid, 0, 0, 0, 0);
	r->pid = self.pid;
	r->tid = self.tid;
	host_syscall(SYS_prctl, PR_GET_NAME, self.comm, 0, 0);
	put_header(r);
	if (!sink.binary)
		return;
	comm = *r;
	comm.event = TRACE_COMM;
	memset(comm.arg, 0, sizeof(comm.arg));
	memcpy(comm.arg, self.comm, sizeof(self.comm));
	put(&comm);
}

void trace_emit(enum trace_event event, u32 vcpu, const u64 arg[5])
{
	struct trace_record r = { .event = event, .vcpu = vcpu };
	int saved_errno = errno;

	memcpy(r.arg, arg, sizeof(r.arg));
	r.cpu = sched_getcpu();
	pthread_mutex_lock(&sink.lock);
	/* Under the lock: the stream is in order. */
	r.ns = host_now_ns();
	r.pid = self.pid;
	r.tid = self.tid;
	if (unlikely(!self.tid))
		introduce(&r);
	put(&r);
	if (!*sink.path || r.ns - sink.written_ns > FLUSH_NS)
		write_out();
	pthread_mutex_unlock(&sink.lock);
	errno = saved_errno;
}

__attribute__((destructor)) void trace_flush(void)
{
	if (!sink.buf)
		return;
	pthread_mutex_lock(&sink.lock);
	write_out();
	pthread_mutex_unlock(&sink.lock);
}

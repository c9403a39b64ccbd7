/* SPDX-License-Identifier: MIT */
/*
 * Descriptors: real memfds, and a table that remembers what they are.
 *
 * A descriptor's identity is its inode. Inode numbers of memfds are not reused
 * within any realistic life, so (dev, ino) finds the struct kvm_file, whichever
 * way the descriptor came about: dup, SCM_RIGHTS to ourselves, /proc/self/fd, a
 * raw system call. On top of that `slots` caches number -> file, so that close()
 * and mmap() of other people's descriptors cost one load.
 *
 * 1. file->refs counts the slots that point to it and the calls under way. Who
 *    drops the last reference releases the object; a VM goes with its last
 *    file (VM, vCPU, stats, device).
 * 2. Slots are written only by the process that owns the table (owned()): a
 *    vfork child has our memory but its own descriptors. It finds files by inode.
 * 3. A forked child has copies. Files of another address space (file->mm)
 *    are never released there; their ioctls answer EIO.
 * 4. A slot may be stale (closed behind our back): every use checks fstat().
 *    What a stale slot held is dropped then.
 * 5. files are type-stable: taken from the free list, never returned to malloc,
 *    so a reader may touch a file it just found in a slot; get_unless_zero() and a
 *    second look at the slot make it a reference.
 * 6. table_lock is held with all signals blocked, so that close() from a signal
 *    handler cannot meet its own thread. Nothing is released under it.
 * 7. A guest_memfd's inode has one open file per view (KVM_LINK_GUEST_MEMFD). What tells them apart is the
 *    file position, which nothing else uses, which duplicates share, and which travels with
 *    the descriptor into other processes: a random number, and the memory's flags.
 *
 * A file whose table entry is not here (another process's, or kept through
 * exec) is known by the name of its memfd: the system works, all else is EIO.
 */
#include "api/fd_internal.h"

#include <errno.h>
#include <fcntl.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/mman.h>
#include <sys/stat.h>

#include "host/host.h"
#include "host/syscall.h"
#include "kvm/guest_memfd.h"
#include "kvm/move.h"

#define CHUNK_BITS 10
#define CHUNK_SIZE (1u << CHUNK_BITS)
#define NR_CHUNKS 1024u
#define HASH_SIZE 1024u

typedef _Atomic(struct kvm_file *) slot_t;

static _Atomic(slot_t *) chunks[NR_CHUNKS];
static struct kvm_file *hash[HASH_SIZE];
static struct kvm_file *free_files;
static _Atomic u64 table_mm;
static _Atomic pid_t table_pid;
static pthread_mutex_t table_lock = PTHREAD_MUTEX_INITIALIZER;

/* Stand-ins for files made in another process, or before an exec. */
static struct kvm_file foreign_system = { .kind = KVM_FILE_SYSTEM, .open_flags = O_RDWR, .refs = 1 };
static struct kvm_file foreign_vm = { .kind = KVM_FILE_VM, .open_flags = O_RDWR, .refs = 1 };
static struct kvm_file foreign_gmem = { .kind = KVM_FILE_GMEM, .open_flags = O_RDWR, .refs = 1 };

struct identity {
	u64 dev, ino;
};

/* ---- small things -------------------------------------------------------------- */

static bool identify(int fd, struct identity *id)
{
	struct stat st; /* the kernel's layout on x86-64 */

	if (host_syscall(SYS_fstat, fd, &st, 0, 0))
		return false;
	if (!S_ISREG(st.st_mode) || st.st_nlink)
		return false;
	id->dev = st.st_dev;
	id->ino = st.st_ino;
	return true;
}

static void lock_in_child(void)
{
	pthread_mutex_init(&table_lock, NULL);
}

static void table_init(void)
{
	atomic_store(&table_mm, host_mm_id());
	atomic_store(&table_pid, fd_process_id());
	/* A fork while another thread holds the lock: the child's copy starts open; its hash may miss a file. */
	pthread_atfork(NULL, NULL, lock_in_child);
}

/* Whether this process may write slots; adopts the table in a forked child. */
static bool owned(void)
{
	static pthread_once_t once = PTHREAD_ONCE_INIT;
	u64 mm = host_mm_id();

	pthread_once(&once, table_init);
	if (unlikely(atomic_load(&table_mm) != mm)) {
		atomic_store(&table_pid, fd_process_id());
		atomic_store(&table_mm, mm);
	}
	return atomic_load(&table_pid) == fd_process_id();
}

static u64 lock_table(void)
{
	u64 all = ~0ull, old = 0;

	host_syscall6(SYS_rt_sigprocmask, SIG_SETMASK, (long)&all, (long)&old, 8, 0, 0);
	pthread_mutex_lock(&table_lock);
	return old;
}

static void unlock_table(u64 old)
{
	pthread_mutex_unlock(&table_lock);
	host_syscall6(SYS_rt_sigprocmask, SIG_SETMASK, (long)&old, 0, 8, 0, 0);
}

static struct kvm_file **bucket(const struct identity *id)
{
	return &hash[(id->ino ^ id->ino >> 10) % HASH_SIZE];
}

static bool same(const struct kvm_file *file, const struct identity *id, int fd)
{
	return file->ino == id->ino && file->dev == id->dev &&
	       (file->kind != KVM_FILE_GMEM || file_position(fd) == file->view);
}

/* ---- slots ------------------------------------------------------------------------- */

static slot_t *slot(int fd)
{
	slot_t *chunk;

	if (fd < 0 || (unsigned)fd >= NR_CHUNKS * CHUNK_SIZE)
		return NULL;
	chunk = atomic_load_explicit(&chunks[fd >> CHUNK_BITS], memory_order_acquire);
	return chunk ? &chunk[fd & (CHUNK_SIZE - 1)] : NULL;
}

static slot_t *slot_make(int fd)
{
	slot_t *s = slot(fd), *chunk, *none = NULL;

	if (s || fd < 0 || (unsigned)fd >= NR_CHUNKS * CHUNK_SIZE)
		return s;
	chunk = calloc(CHUNK_SIZE, sizeof(*chunk));
	if (!chunk)
		return NULL;
	if (!atomic_compare_exchange_strong(&chunks[fd >> CHUNK_BITS], &none, chunk))
		free(chunk);
	return slot(fd);
}

bool fd_maybe_ours(int fd)
{
	slot_t *s = slot(fd);

	return s && atomic_load_explicit(s, memory_order_relaxed);
}

static bool get_unless_zero(struct kvm_file *file)
{
	u32 refs = atomic_load(&file->refs);

	while (refs)
		if (atomic_compare_exchange_weak(&file->refs, &refs, refs + 1))
			return true;
	return false;
}

static struct kvm_file *slot_get(int fd)
{
	slot_t *s = slot(fd);
	struct kvm_file *file;

	while (s && (file = atomic_load(s))) {
		if (!get_unless_zero(file)) {
			if (atomic_load(s) == file)
				return NULL;
			continue;
		}
		if (atomic_load(s) == file)
			return file;
		fd_put(file);
	}
	return NULL;
}

/* The slot takes over the caller's reference. False (no memory, not owned): it is still the caller's. */
static bool slot_set(int fd, struct kvm_file *file)
{
	slot_t *s = owned() ? slot_make(fd) : NULL;
	struct kvm_file *old;

	if (!s)
		return false;
	old = atomic_exchange(s, file);
	if (old && old->mm == host_mm_id())
		fd_put(old);
	return true;
}

struct kvm_file *fd_detach(int fd)
{
	slot_t *s = slot(fd);
	struct kvm_file *file;

	if (!s || !atomic_load(s) || !owned())
		return NULL;
	file = atomic_exchange(s, NULL);
	/* An inherited file's count is the parent's business. */
	return file && file->mm == host_mm_id() ? file : NULL;
}

void fd_reattach(int fd, struct kvm_file *file)
{
	if (file && !slot_set(fd, file))
		fd_put(file);
}

void fd_detach_range(unsigned first, unsigned last)
{
	for (unsigned c = first >> CHUNK_BITS; c < NR_CHUNKS && c <= last >> CHUNK_BITS; c++) {
		if (!atomic_load(&chunks[c]))
			continue;
		for (unsigned i = 0; i < CHUNK_SIZE; i++) {
			unsigned fd = c << CHUNK_BITS | i;

			if (fd >= first && fd <= last)
				fd_put(fd_detach(fd));
		}
	}
}

/* ---- files -------------------------------------------------------------------------- */

struct kvm_file *file_alloc(enum kvm_file_kind kind, struct vm *vm, struct vcpu *vcpu)
{
	u64 old = lock_table();
	struct kvm_file *file = free_files;

	if (file)
		free_files = file->hash_next;
	unlock_table(old);
	if (!file)
		file = calloc(1, sizeof(*file));
	if (!file)
		return NULL;
	file->kind = kind;
	file->vm = vm;
	file->vcpu = vcpu;
	file->private = NULL;
	file->view = 0;
	file->open_flags = O_RDWR;
	file->mm = host_mm_id();
	atomic_store(&file->pos, 0);
	atomic_store(&file->run_thread, 0);
	return file;
}

void file_free(struct kvm_file *file)
{
	u64 old = lock_table();

	file->hash_next = free_files;
	free_files = file;
	unlock_table(old);
}

static void hash_remove(struct kvm_file *file)
{
	struct identity id = { file->dev, file->ino };
	u64 old = lock_table();
	struct kvm_file **p = bucket(&id);

	while (*p && *p != file)
		p = &(*p)->hash_next;
	if (*p)
		*p = file->hash_next;
	unlock_table(old);
}

/* The vCPUs' pages must outlive vm_destroy(), and the vCPUs do not. */
static void vm_last_put(struct vm *vm)
{
	struct vm_control *control = vm->control;
	size_t control_size = vm->move_area ? VM_FILE_SIZE : PAGE_SIZE;
	u32 nr = atomic_load(&vm->nr_vcpus);
	void **runs = calloc(nr + 1, sizeof(*runs));

	for (u32 i = 0; runs && i < nr; i++)
		runs[i] = vm->vcpus[i]->run;
	if (control)
		atomic_store(&control->state, VM_CONTROL_DEAD);
	vm_destroy(vm);
	if (control)
		host_syscall(SYS_munmap, control, control_size, 0, 0);
	for (u32 i = 0; runs && i < nr; i++)
		if (runs[i])
			host_syscall(SYS_munmap, runs[i], VCPU_FILE_SIZE, 0, 0);
	free(runs);
}

static coldpath void file_release(struct kvm_file *file)
{
	struct vm *vm = file->vm;
	struct host_cancel cancel;
	int saved_errno = errno;

	host_cancel_hold(&cancel);
	hash_remove(file);
	if (file->kind == KVM_FILE_GMEM)
		gmem_release(file->private);
	file_free(file);
	if (vm && __atomic_sub_fetch(&vm->refs, 1, __ATOMIC_ACQ_REL) == 0)
		vm_last_put(vm);
	host_cancel_release(&cancel);
	errno = saved_errno;
}

void fd_put(struct kvm_file *file)
{
	if (file && atomic_fetch_sub(&file->refs, 1) == 1)
		file_release(file);
}

int file_install(struct kvm_file *file, int fd)
{
	struct identity id;
	u64 old;

	/* From here on bad pointers in arguments are EFAULT. */
	host_signals_init();
	if (!identify(fd, &id)) {
		host_syscall(SYS_close, fd, 0, 0, 0);
		file_free(file);
		return -EBADF;
	}
	file->dev = id.dev;
	file->ino = id.ino;
	atomic_store(&file->refs, 1);
	if (file->vm)
		__atomic_add_fetch(&file->vm->refs, 1, __ATOMIC_ACQ_REL);
	old = lock_table();
	file->hash_next = *bucket(&id);
	*bucket(&id) = file;
	unlock_table(old);
	slot_set(fd, file);
	return fd;
}

/* ---- look-up ---------------------------------------------------------------------------- */

/* Not in the table: perhaps a sibling's, which only its name can tell. */
static coldpath struct kvm_file *foreign_file(int fd)
{
	static const char prefix[] = "/memfd:";
	char path[40], link[80];
	struct kvm_file *file;
	const char *name;
	long n;

	snprintf(path, sizeof(path), "/proc/self/fd/%d", fd);
	n = host_syscall(SYS_readlink, path, link, sizeof(link) - 1, 0);
	if (n <= 0 || strncmp(link, prefix, sizeof(prefix) - 1))
		return NULL;
	link[n] = '\0';
	host_signals_init();
	name = link + sizeof(prefix) - 1;
	if (!strcmp(name, "/dev/kvm (deleted)"))
		file = &foreign_system;
	else if (!strcmp(name, GMEM_NAME " (deleted)"))
		file = &foreign_gmem;
	else if (!strncmp(name, "anon_inode:kvm-", 15))
		file = &foreign_vm;
	else
		return NULL;
	atomic_fetch_add(&file->refs, 1);
	return file;
}

static struct kvm_file *hash_get(const struct identity *id, int fd)
{
	u64 old = lock_table();
	struct kvm_file *file = *bucket(id);

	while (file && !(same(file, id, fd) && get_unless_zero(file)))
		file = file->hash_next;
	unlock_table(old);
	return file;
}

/* fd is no longer what its slot says. Takes over the caller's reference. */
static coldpath void drop_stale(int fd, struct kvm_file *file)
{
	struct kvm_file *expected = file;

	if (owned() && atomic_compare_exchange_strong(slot(fd), &expected, NULL) &&
	    file->mm == host_mm_id())
		fd_put(file);
	fd_put(file);
}

/* The slot's reference goes if fd is not what the slot says. */
static void drop_if_closed(int fd, struct kvm_file *file)
{
	struct identity id;

	if (identify(fd, &id) && same(file, &id, fd))
		return;
	atomic_fetch_add(&file->refs, 1);
	drop_stale(fd, file);
}

/* Whoever enters a number after close() has detached it is seen here, or sees that it is closed: never neither. */
void fd_closed(int fd)
{
	struct kvm_file *file = slot_get(fd);

	if (unlikely(file)) {
		drop_if_closed(fd, file);
		fd_put(file);
	}
}

void fd_closed_range(unsigned first, unsigned last)
{
	for (unsigned c = first >> CHUNK_BITS; c < NR_CHUNKS && c <= last >> CHUNK_BITS; c++)
		for (unsigned fd = c << CHUNK_BITS; atomic_load(&chunks[c]) && fd < (c + 1) << CHUNK_BITS; fd++)
			if (fd >= first && fd <= last)
				fd_closed(fd);
}

static coldpath struct kvm_file *fd_get_slow(int fd, const struct identity *id)
{
	struct kvm_file *file = hash_get(id, fd);

	if (!file)
		return foreign_file(fd);
	/* Known by another number: from now on by this one too. */
	if (file->mm == host_mm_id() && owned()) {
		atomic_fetch_add(&file->refs, 1);
		if (!slot_set(fd, file))
			fd_put(file);
		else
			drop_if_closed(fd, file);
	}
	return file;
}

struct kvm_file *fd_get(int fd)
{
	struct kvm_file *file = slot_get(fd);
	struct identity id = { 0 };
	bool valid = identify(fd, &id);

	if (likely(file && valid && same(file, &id, fd)))
		return file;
	if (file)
		drop_stale(fd, file);
	return valid ? fd_get_slow(fd, &id) : NULL;
}

void fd_note_dup(int old_fd, int new_fd)
{
	struct kvm_file *file = fd_maybe_ours(old_fd) ? fd_get(old_fd) : NULL;

	/* fd_get() on the new number enters it. */
	if (file)
		fd_put(fd_get(new_fd));
	fd_put(file);
}

int fd_check_alive(const struct kvm_file *file)
{
	if (file->kind == KVM_FILE_SYSTEM || file->kind == KVM_FILE_GMEM)
		return 0;
	if (file->mm != host_mm_id() || !file->vm || atomic_load(&file->vm->dead))
		return -EIO;
	return 0;
}

struct kvm_file *fd_running(unsigned long thread)
{
	u64 old = lock_table();
	struct kvm_file *file = NULL;

	for (unsigned i = 0; i < HASH_SIZE && !file; i++) {
		file = hash[i];
		while (file && !(atomic_load(&file->run_thread) == thread && get_unless_zero(file)))
			file = file->hash_next;
	}
	unlock_table(old);
	return file;
}

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
 *
 * 7. A guest_memfd's inode has one open file per view (KVM_LINK_GUEST_MEMFD). What tells them apart is the
 *    file position, which nothing else uses, which duplicates share, and which travels with
 *    the descriptor into other processes: a random number, and the memory's flags.
 *
 * A file whose table entry is not here (another process's, or kept through
 * exec) is known by the name of its memfd: the system works, all else is EIO.
 */
#include "api/fd.h"

#include <errno.h>
#include <fcntl.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/mman.h>
#include <sys/stat.h>

#include "api/ioctl.h"
#include "base/inject.h"
#include "host/access.h"
#include "host/host.h"
#include "host/syscall.h"
#include "kvm/api_level.h"
#include "kvm/dirty_ring.h"
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

#define GMEM_NAME "anon_inode:[kvm-gmem]"
#define GMEM_VIEW_FLAGS 3ull	/* of the position: GUEST_MEMFD_FLAG_* */

struct identity {
	u64 dev, ino;
};

/* ---- small things -------------------------------------------------------------- */

static pid_t process_id(void)
{
	return host_syscall(SYS_getpid, 0, 0, 0, 0);
}

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
	atomic_store(&table_pid, process_id());
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
		atomic_store(&table_pid, process_id());
		atomic_store(&table_mm, mm);
	}
	return atomic_load(&table_pid) == process_id();
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

static u64 file_position(int fd)
{
	return host_syscall(SYS_lseek, fd, 0, SEEK_CUR, 0);
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

static struct kvm_file *file_alloc(enum kvm_file_kind kind, struct vm *vm, struct vcpu *vcpu)
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

static void file_free(struct kvm_file *file)
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
	int saved_errno = errno, cancel_state;
	struct vm *vm = file->vm;

	pthread_setcancelstate(PTHREAD_CANCEL_DISABLE, &cancel_state);
	hash_remove(file);
	if (file->kind == KVM_FILE_GMEM)
		gmem_release(file->private);
	file_free(file);
	if (vm && __atomic_sub_fetch(&vm->refs, 1, __ATOMIC_ACQ_REL) == 0)
		vm_last_put(vm);
	pthread_setcancelstate(cancel_state, NULL);
	errno = saved_errno;
}

void fd_put(struct kvm_file *file)
{
	if (file && atomic_fetch_sub(&file->refs, 1) == 1)
		file_release(file);
}

/*
 * The new file's descriptor is fd: enter it. The one reference belongs to the
 * slot; where there can be none it is never dropped (a vfork child's descriptors are out of our sight).
 */
static int file_install(struct kvm_file *file, int fd)
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

/* ---- creation ------------------------------------------------------------------------ */

static int create(enum kvm_file_kind kind, struct vm *vm, struct vcpu *vcpu, const char *name,
		  bool cloexec, int open_flags)
{
	struct kvm_file *file = file_alloc(kind, vm, vcpu);
	int fd;

	if (!file)
		return -ENOMEM;
	file->open_flags = open_flags;
	fd = host_memfd(name, PAGE_SIZE, cloexec);
	if (fd < 0) {
		file_free(file);
		return fd;
	}
	return file_install(file, fd);
}

int fd_create_system(int flags)
{
	return create(KVM_FILE_SYSTEM, NULL, NULL, "/dev/kvm", flags & O_CLOEXEC,
		      flags & ~(O_CLOEXEC | O_CREAT | O_EXCL | O_NOCTTY | O_TRUNC | O_NOFOLLOW));
}

static void *map_file(int fd, size_t size)
{
	long p = host_syscall6(SYS_mmap, 0, size, PROT_READ | PROT_WRITE, MAP_SHARED, fd, 0);

	return p < 0 && p > -4096 ? NULL : (void *)p;
}

int fd_create_vm(struct vm *vm)
{
	struct kvm_file *file = file_alloc(KVM_FILE_VM, vm, NULL);
	size_t size = vm->private_mem || kvm_api_level() >= KVM_API_6_18 ? VM_FILE_SIZE : PAGE_SIZE;
	struct vm_control *control;
	int fd;

	if (!file)
		return -ENOMEM;
	fd = host_memfd("anon_inode:kvm-vm", size, true);
	if (fd < 0) {
		file_free(file);
		return fd;
	}
	control = map_file(fd, size);
	if (!control) {
		host_syscall(SYS_close, fd, 0, 0, 0);
		file_free(file);
		return -ENOMEM;
	}
	memcpy(control->magic, VM_CONTROL_MAGIC, sizeof(control->magic));
	control->version = 1;
	atomic_store(&control->state, VM_CONTROL_ALIVE);
	vm->control = control;
	if (size == VM_FILE_SIZE)
		vm->move_area = (void *)((u8 *)control + PAGE_SIZE);
	return file_install(file, fd);
}

int fd_create_vcpu(struct vcpu *vcpu)
{
	struct kvm_file *file = file_alloc(KVM_FILE_VCPU, vcpu->vm, vcpu);
	char name[40];
	void *pages;
	int fd;

	if (!file)
		return -ENOMEM;
	snprintf(name, sizeof(name), "anon_inode:kvm-vcpu:%u", vcpu->id);
	fd = host_memfd(name, VCPU_FILE_SIZE, true);
	if (fd < 0) {
		file_free(file);
		return fd;
	}
	pages = map_file(fd, VCPU_FILE_SIZE);
	if (!pages) {
		host_syscall(SYS_close, fd, 0, 0, 0);
		file_free(file);
		return -ENOMEM;
	}
	vcpu->run = pages;
	vcpu->pio_data = (u8 *)pages + PAGE_SIZE;
	if (vcpu->dirty_ring)
		vcpu->dirty_ring->gfns = (void *)((u8 *)pages + VCPU_FILE_RING_PAGE * PAGE_SIZE);
	vcpu->fd = fd;
	return file_install(file, fd);
}

int fd_create_stats(struct vm *vm, struct vcpu *vcpu)
{
	char name[48] = "anon_inode:kvm-vm-stats";

	if (vcpu)
		snprintf(name, sizeof(name), "anon_inode:kvm-vcpu-stats:%u", vcpu->id);
	return create(KVM_FILE_STATS, vm, vcpu, name, true, O_RDONLY);
}

int fd_create_device(struct vm *vm, const char *name, void *private)
{
	char link[64];
	int fd;

	snprintf(link, sizeof(link), "anon_inode:%s", name);
	fd = create(KVM_FILE_DEVICE, vm, NULL, link, true, O_RDWR);
	if (fd >= 0) {
		struct kvm_file *file = fd_get(fd);

		if (file)
			file->private = private;
		fd_put(file);
	}
	return fd;
}

static u64 new_view(u64 flags)
{
	u64 id = 0;

	/* 1: GRND_NONBLOCK */
	if (host_syscall(SYS_getrandom, &id, sizeof(id), 1, 0) != sizeof(id))
		id = host_rdtsc() ^ (u64)process_id() << 32;
	return ((id & ~(1ull << 63)) & ~GMEM_VIEW_FLAGS) | flags;
}

/* fd, a memfd, becomes a view of vm's. Closes fd on failure. */
static int gmem_install(struct vm *vm, int fd, u64 size, u64 flags)
{
	struct kvm_file *file = file_alloc(KVM_FILE_GMEM, vm, NULL);
	struct gmem *gmem = NULL;
	int err = -ENOMEM;

	if (file)
		gmem = gmem_create(vm, fd, size, flags, &err);
	if (gmem) {
		file->private = gmem;
		file->view = new_view(flags);
		err = host_syscall(SYS_lseek, fd, file->view, SEEK_SET, 0) < 0 ? -EINVAL : 0;
	}
	if (!err)
		return file_install(file, fd);
	host_syscall(SYS_close, fd, 0, 0, 0);
	if (gmem)
		gmem_release(gmem);
	if (file)
		file_free(file);
	return err;
}

int fd_create_gmem(struct vm *vm, u64 size, u64 flags)
{
	int fd = host_memfd(GMEM_NAME, size, false);

	return fd < 0 ? fd : gmem_install(vm, fd, size, flags);
}

/* A second open file on fd's inode; its flags are in fd's position. */
static int gmem_reopen(int fd, u64 *size)
{
	char path[40];
	struct stat st, st2;
	long new;

	if (inject_value(INJECT_GMEM_LINK_FD))
		return -EMFILE;
	snprintf(path, sizeof(path), "/proc/self/fd/%d", fd);
	new = host_syscall(SYS_openat, AT_FDCWD, path, O_RDWR, 0);
	if (new < 0)
		return new;
	/* The number may have been somebody else's by then. */
	if (host_syscall(SYS_fstat, fd, &st, 0, 0) || host_syscall(SYS_fstat, new, &st2, 0, 0) ||
	    st.st_ino != st2.st_ino || st.st_dev != st2.st_dev ||
	    (host_syscall(SYS_fcntl, new, F_GET_SEALS, 0, 0) & F_SEAL_SHRINK) == 0) {
		host_syscall(SYS_close, new, 0, 0, 0);
		return -EINVAL;
	}
	*size = st2.st_size;
	return new;
}

int fd_link_gmem(struct vm *vm, int fd)
{
	struct timespec times[2] = { { .tv_nsec = UTIME_NOW }, { .tv_nsec = UTIME_OMIT } };
	struct kvm_file *file = fd_get(fd);
	u64 size = 0;
	int r = -EINVAL;

	if (file && file->kind == KVM_FILE_GMEM && file->vm != vm) {
		u64 flags = file_position(fd) & GMEM_VIEW_FLAGS;

		r = gmem_reopen(fd, &size);
		if (r >= 0) {
			host_syscall(SYS_utimensat, r, NULL, times, 0);
			r = gmem_install(vm, r, size, flags);
		}
	}
	fd_put(file);
	return r;
}

/* -EBADF: not a VM's. -EINVAL: of one that cannot be moved from. */
int fd_move_foreign(struct vm *dst, int fd)
{
	struct vm_control *control;
	struct stat st;
	int r = -EBADF;

	if (host_syscall(SYS_fstat, fd, &st, 0, 0) || st.st_size < (off_t)PAGE_SIZE ||
	    !(host_syscall(SYS_fcntl, fd, F_GET_SEALS, 0, 0) & F_SEAL_SHRINK))
		return -EBADF;
	control = map_file(fd, st.st_size);
	if (!control)
		return -ENOMEM;
	if (!memcmp(control->magic, VM_CONTROL_MAGIC, sizeof(control->magic)))
		r = st.st_size == (off_t)VM_FILE_SIZE ?
			    vm_move_context_foreign(dst, (void *)((u8 *)control + PAGE_SIZE)) : -EINVAL;
	host_syscall(SYS_munmap, control, st.st_size, 0, 0);
	return r;
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
	}
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

/* ---- ioctl ---------------------------------------------------------------------------------- */

static struct kvm_file *running_get(unsigned long thread)
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

void fd_cancel_thread(pthread_t thread)
{
	struct kvm_file *file = running_get((unsigned long)thread);

	if (file) {
		vcpu_make_request(file->vcpu, KVM_REQ_STOP);
		vcpu_kick(file->vcpu);
	}
	fd_put(file);
}

static void run_forget(void *p)
{
	struct kvm_file *file = p;

	atomic_store(&file->run_thread, 0);
	fd_put(file);
}

/*
 * An asynchronous cancellation that came meanwhile acts now. By pthread_testcancel(), since glibc's
 * pthread_setcancelstate() forgets to make the thread's result PTHREAD_CANCELED.
 */
static void cancel_enable(int state)
{
	int type;

	if (state != PTHREAD_CANCEL_ENABLE)
		return;
	pthread_setcanceltype(PTHREAD_CANCEL_DEFERRED, &type);
	pthread_setcancelstate(PTHREAD_CANCEL_ENABLE, NULL);
	if (likely(type != PTHREAD_CANCEL_ASYNCHRONOUS))
		return;
	pthread_testcancel();
	pthread_setcanceltype(PTHREAD_CANCEL_ASYNCHRONOUS, NULL);
}

/*
 * KVM_RUN is where a thread may be cancelled asynchronously while it sleeps. It runs
 * with cancellation disabled; fd_cancel_thread() gets it out. A cancellation from before
 * we could be found acts in the window between the two calls.
 */
static long run_cancellable(struct kvm_file *file, unsigned int cmd, unsigned long arg)
{
	long r;

	atomic_store(&file->run_thread, (unsigned long)pthread_self());
	pthread_cleanup_push(run_forget, file);
	cancel_enable(PTHREAD_CANCEL_ENABLE);
	pthread_setcancelstate(PTHREAD_CANCEL_DISABLE, NULL);
	pthread_cleanup_pop(0);
	r = kvm_ioctl_dispatch(file, cmd, arg);
	atomic_store(&file->run_thread, 0);
	return r;
}

/* Takes over the reference: a cancelled thread does not come back. */
long fd_ioctl(struct kvm_file *file, unsigned int cmd, unsigned long arg)
{
	int cancel_state;
	long r = fd_check_alive(file);

	pthread_setcancelstate(PTHREAD_CANCEL_DISABLE, &cancel_state);
	if (!r) {
		if (cmd == KVM_RUN && file->kind == KVM_FILE_VCPU &&
		    cancel_state == PTHREAD_CANCEL_ENABLE)
			r = run_cancellable(file, cmd, arg);
		else
			r = kvm_ioctl_dispatch(file, cmd, arg);
	}
	fd_put(file);
	cancel_enable(cancel_state);
	return r;
}

/* ---- mmap ------------------------------------------------------------------------------------- */

static u64 ring_pages(const struct vm *vm)
{
	return (u64)vm->dirty_ring_entries * sizeof(struct kvm_dirty_gfn) / PAGE_SIZE;
}

static bool in_dirty_ring(struct vm *vm, u64 page)
{
	return page >= VCPU_FILE_RING_PAGE && page < VCPU_FILE_RING_PAGE + ring_pages(vm);
}

/* All vCPUs of a VM show the same page; clients read only the first vCPU's. */
static int lay_coalesced(struct vm *vm, u8 *at, int prot)
{
	int fd = vm_coalesced_fd(vm);
	long p;

	if (fd < 0)
		return fd;
	/* By the page rather than by the descriptor, which a closefrom() of the client may have hit. */
	p = host_syscall6(SYS_mremap, (long)vm->coalesced_ring, 0, PAGE_SIZE,
			  MREMAP_MAYMOVE | MREMAP_FIXED, (long)at, 0);
	if (p < 0 && p > -4096)
		p = host_syscall6(SYS_mmap, (long)at, PAGE_SIZE, prot, MAP_SHARED | MAP_FIXED, fd, 0);
	else if (prot != (PROT_READ | PROT_WRITE))
		host_syscall(SYS_mprotect, at, PAGE_SIZE, prot, 0);
	return p < 0 && p > -4096 ? (int)p : 0;
}

/* Pages that a vCPU's file has but KVM does not show fault as they do there: what lies past the file's end is SIGBUS. */
static void lay_nothing(u8 *map, u64 first, u64 end, u64 from, u64 to, int prot, int fd)
{
	from = max(from, first);
	to = min(to, end);
	if (from < to)
		host_syscall6(SYS_mmap, (long)(map + ((from - first) << PAGE_SHIFT)), (to - from) << PAGE_SHIFT,
			      prot, MAP_SHARED | MAP_FIXED, fd, VCPU_FILE_SIZE);
}

static unsigned long mmap_vcpu(struct kvm_file *file, void *addr, size_t len, int prot, int flags,
			       int fd, off_t offset)
{
	u64 first = (u64)offset >> PAGE_SHIFT;
	u64 end = first + ((len + PAGE_SIZE - 1) >> PAGE_SHIFT);
	struct vm *vm = file->vm;
	long p;
	int err;

	if (vm && (in_dirty_ring(vm, first) || in_dirty_ring(vm, end - 1)) &&
	    ((prot & PROT_EXEC) || (flags & MAP_TYPE) == MAP_PRIVATE))
		return -EINVAL;
	p = host_syscall6(SYS_mmap, (long)addr, len, prot, flags, fd, offset);
	if ((p < 0 && p > -4096) || !vm || file->mm != host_mm_id())
		return p;
	lay_nothing((u8 *)p, first, end, KVM_ABI_RUN_MMAP_PAGES, VCPU_FILE_RING_PAGE, prot, fd);
	lay_nothing((u8 *)p, first, end, VCPU_FILE_RING_PAGE + ring_pages(vm),
		    VCPU_FILE_RING_PAGE + VCPU_FILE_RING_PAGES, prot, fd);
	if (first > KVM_COALESCED_MMIO_PAGE_OFFSET || end <= KVM_COALESCED_MMIO_PAGE_OFFSET)
		return p;
	err = lay_coalesced(vm, (u8 *)p + ((KVM_COALESCED_MMIO_PAGE_OFFSET - first) << PAGE_SHIFT), prot);
	if (err) {
		host_syscall(SYS_munmap, p, len, 0, 0);
		return err;
	}
	return p;
}

static unsigned long mmap_gmem(void *addr, size_t len, int prot, int flags, int fd, off_t offset)
{
	u64 gmem_flags = file_position(fd) & GMEM_VIEW_FLAGS;
	struct stat st;

	if (!(gmem_flags & GUEST_MEMFD_FLAG_MMAP))
		return -ENODEV;
	if ((flags & MAP_TYPE) == MAP_PRIVATE)
		return -EINVAL;
	/* Memory that begins as the guest's own cannot be touched: as what lies past the end, SIGBUS. */
	if (!(gmem_flags & GUEST_MEMFD_FLAG_INIT_SHARED) && !host_syscall(SYS_fstat, fd, &st, 0, 0))
		offset = (st.st_size + PAGE_SIZE - 1) & PAGE_MASK;
	return host_syscall6(SYS_mmap, (long)addr, len, prot, flags, fd, offset);
}

unsigned long fd_mmap(struct kvm_file *file, void *addr, size_t len, int prot, int flags, int fd,
		      off_t offset)
{
	if (!len || (offset & ~PAGE_MASK) || len > (size_t)-PAGE_SIZE)
		return len > (size_t)-PAGE_SIZE ? -ENOMEM : -EINVAL;
	if (file->kind == KVM_FILE_GMEM)
		return mmap_gmem(addr, len, prot, flags, fd, offset);
	if (file->kind != KVM_FILE_VCPU)
		return -ENODEV;
	return mmap_vcpu(file, addr, len, prot, flags, fd, offset);
}

/* ---- the size of guest memory ------------------------------------------------------------------ */

#define GMEM_FALLOC (FALLOC_FL_KEEP_SIZE | FALLOC_FL_PUNCH_HOLE)

long fd_fallocate(struct kvm_file *file, int fd, int mode, off_t off, off_t len)
{
	struct stat st;
	long r;

	if (file->kind != KVM_FILE_GMEM)
		return -ENODEV;
	if (off < 0 || len <= 0)
		return -EINVAL;
	if (!(mode & FALLOC_FL_KEEP_SIZE) || (mode & ~GMEM_FALLOC))
		return -EOPNOTSUPP;
	if ((off | len) & ~PAGE_MASK)
		return -EINVAL;
	r = host_syscall(SYS_fstat, fd, &st, 0, 0);
	if (r)
		return r;
	if (!(mode & FALLOC_FL_PUNCH_HOLE) && (off > st.st_size || len > st.st_size - off))
		return -EINVAL;
	return host_syscall(SYS_fallocate, fd, mode, off, len);
}

long fd_ftruncate(struct kvm_file *file)
{
	return -EINVAL;
}

/* ---- reading statistics ------------------------------------------------------------------------- */

static ssize_t stats_copy(struct kvm_file *file, u8 *buf, size_t count, u64 off)
{
	u8 bounce[1024];
	size_t done = 0;

	while (done < count) {
		size_t want = min(count - done, sizeof(bounce)), n, left;

		n = vm_stats_read(file->vm, file->vcpu, bounce, want, off + done);
		if (!n)
			break;
		left = host_copy(buf + done, bounce, n);
		done += n - left;
		if (left)
			return done ? (ssize_t)done : -EFAULT;
		if (n < want)
			break;
	}
	return done;
}

ssize_t fd_stats_read(struct kvm_file *file, void *buf, size_t count, const off_t *off)
{
	ssize_t n;

	if (off && *off < 0)
		return -EINVAL;
	/* A forked child sees what was counted before the fork. */
	if (!file->vm)
		return 0;
	n = stats_copy(file, buf, min(count, (size_t)1 << 20), off ? (u64)*off : atomic_load(&file->pos));
	if (n > 0 && !off)
		atomic_fetch_add(&file->pos, n);
	return n;
}

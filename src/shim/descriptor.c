/* SPDX-License-Identifier: MIT */
/*
 * Calls on descriptors. The bookkeeping of the ones that end or copy a
 * descriptor goes around the real call: detached before, since the number may
 * be another thread's a moment later.
 */
#include "shim/shim.h"

#include <linux/kvm.h>
#include <pthread.h>
#include <stdarg.h>
#include <sys/mman.h>

#include "api/fd.h"
#include "host/syscall.h"
#include "kvm/sole.h"

/* ---- ioctl, mmap -------------------------------------------------------------------- */

static bool is_vfs_ioctl(unsigned int request)
{
	return request == FIOCLEX || request == FIONCLEX || request == FIONBIO || request == FIOASYNC;
}

bool shim_ioctl(int fd, unsigned long request, unsigned long arg, long *r)
{
	struct kvm_file *file;

	if (!fd_maybe_ours(fd) && (_IOC_TYPE(request) != KVMIO || shim_config()->off))
		return false;
	if (is_vfs_ioctl(request))
		return false;
	file = fd_get(fd);
	if (!file)
		return false;
	*r = fd_ioctl(file, request, arg);
	return true;
}

shim_public int ioctl(int fd, unsigned long request, ...)
{
	unsigned long arg;
	va_list ap;
	long r;

	va_start(ap, request);
	arg = va_arg(ap, unsigned long);
	va_end(ap);
	if (shim_ioctl(fd, request, arg, &r))
		return answer(r);
	return real(ioctl)(fd, request, arg);
}

bool shim_mmap(void *addr, size_t len, int prot, int flags, int fd, off_t off, unsigned long *r)
{
	struct kvm_file *file = NULL;

	if (unlikely(!(flags & MAP_ANONYMOUS) && fd_maybe_ours(fd)))
		file = fd_get(fd);
	if (likely(!file)) {
		/* MAP_SHARED_VALIDATE has this bit, too. */
		if (likely(!(flags & MAP_SHARED)))
			return false;
		*r = host_syscall6(SYS_mmap, (long)addr, len, prot, flags, fd, off);
		if (*r <= -4096ul)
			sole_mapped(*r, len);
		return true;
	}
	*r = fd_mmap(file, addr, len, prot, flags, fd, off);
	fd_put(file);
	return true;
}

/* Raw: allocators call mmap() before anything can be looked up. */
static void *mmap_any(void *addr, size_t len, int prot, int flags, int fd, off_t off)
{
	unsigned long r;

	if (!shim_mmap(addr, len, prot, flags, fd, off, &r))
		r = host_syscall6(SYS_mmap, (long)addr, len, prot, flags, fd, off);
	if (r <= -4096ul)
		return (void *)r;
	errno = -r;
	return MAP_FAILED;
}

shim_public void *mmap(void *addr, size_t len, int prot, int flags, int fd, off_t off)
{
	return mmap_any(addr, len, prot, flags, fd, off);
}

shim_public void *mmap64(void *addr, size_t len, int prot, int flags, int fd, off64_t off)
{
	return mmap_any(addr, len, prot, flags, fd, off);
}

/* ---- close --------------------------------------------------------------------------- */

long shim_close(int fd)
{
	struct kvm_file *file = fd_detach(fd);
	long r = host_syscall(SYS_close, fd, 0, 0, 0);

	fd_closed(fd);
	fd_put(file);
	return r;
}

shim_public int close(int fd)
{
	if (unlikely(fd_maybe_ours(fd)))
		return answer(shim_close(fd));
	return real(close)(fd);
}

long shim_close_range(unsigned first, unsigned last, unsigned flags)
{
	bool closes = !flags && first <= last && !host_syscall(SYS_close_range, ~0u, ~0u, 0, 0);
	long r;

	/*
	 * Setting close-on-exec closes nothing; an unshared table leaves the others' descriptors open; a
	 * kernel before 5.9, which the second call finds out about, does nothing either.
	 */
	if (closes)
		fd_detach_range(first, last);
	r = host_syscall(SYS_close_range, first, last, flags, 0);
	if (closes)
		fd_closed_range(first, last);
	return r;
}

shim_public int close_range(unsigned int first, unsigned int last, int flags)
{
	return answer(shim_close_range(first, last, flags));
}

shim_public void closefrom(int low)
{
	fd_detach_range(low < 0 ? 0 : low, ~0u);
	if (real(closefrom))
		real(closefrom)(low);
	else
		host_syscall(SYS_close_range, low < 0 ? 0 : low, ~0u, 0, 0);
}

/* ---- dup ------------------------------------------------------------------------------- */

long shim_dup(int fd)
{
	long r = host_syscall(SYS_dup, fd, 0, 0, 0);

	if (r >= 0)
		fd_note_dup(fd, r);
	return r;
}

long shim_dup3(int old_fd, int new_fd, int flags, bool is_dup2)
{
	struct kvm_file *displaced;
	long r;

	if (old_fd == new_fd)
		return host_syscall(is_dup2 ? SYS_dup2 : SYS_dup3, old_fd, new_fd, flags, 0);
	displaced = fd_detach(new_fd);
	r = host_syscall(SYS_dup3, old_fd, new_fd, flags, 0);
	if (r < 0) {
		fd_reattach(new_fd, displaced);
		return r;
	}
	fd_put(displaced);
	fd_note_dup(old_fd, new_fd);
	return r;
}

shim_public int dup(int fd)
{
	return answer(shim_dup(fd));
}

shim_public int dup2(int old_fd, int new_fd)
{
	return answer(shim_dup3(old_fd, new_fd, 0, true));
}

shim_public int dup3(int old_fd, int new_fd, int flags)
{
	return answer(shim_dup3(old_fd, new_fd, flags, false));
}

bool shim_getfl(int fd, long *r)
{
	struct kvm_file *file = fd_maybe_ours(fd) ? fd_get(fd) : NULL;

	if (!file)
		return false;
	*r = host_syscall(SYS_fcntl, fd, F_GETFL, 0, 0);
	if (*r >= 0)
		*r = (*r & ~(O_ACCMODE | 0100000L)) | file->open_flags; /* 0100000: O_LARGEFILE */
	fd_put(file);
	return true;
}

static int fcntl_any(int fd, int cmd, unsigned long arg)
{
	long r;

	if (cmd == F_DUPFD || cmd == F_DUPFD_CLOEXEC) {
		r = host_syscall(SYS_fcntl, fd, cmd, arg, 0);
		if (r >= 0)
			fd_note_dup(fd, r);
		return answer(r);
	}
	if (cmd == F_GETFL && shim_getfl(fd, &r))
		return answer(r);
	return real(fcntl)(fd, cmd, arg);
}

shim_public int fcntl(int fd, int cmd, ...)
{
	unsigned long arg;
	va_list ap;

	va_start(ap, cmd);
	arg = va_arg(ap, unsigned long);
	va_end(ap);
	return fcntl_any(fd, cmd, arg);
}

/* The same function: a file offset has 64 bits anyway. */
shim_public int fcntl64(int fd, int cmd, ...)
{
	unsigned long arg;
	va_list ap;

	va_start(ap, cmd);
	arg = va_arg(ap, unsigned long);
	va_end(ap);
	return fcntl_any(fd, cmd, arg);
}

/* ---- read and its relatives --------------------------------------------------------------- */

/* What KVM's files answer: only statistics can be read; the rest has neither read nor write. */
bool shim_read(int fd, void *buf, size_t count, const off_t *off, long *r)
{
	struct kvm_file *file;

	if (likely(!fd_maybe_ours(fd)))
		return false;
	file = fd_get(fd);
	if (!file)
		return false;
	if (file->kind == KVM_FILE_STATS)
		*r = fd_stats_read(file, buf, count, off);
	else if ((file->open_flags & O_ACCMODE) == O_WRONLY)
		*r = -EBADF;
	else
		*r = off && file->kind != KVM_FILE_SYSTEM ? -ESPIPE : -EINVAL;
	fd_put(file);
	return true;
}

bool shim_write(int fd, const off_t *off, long *r)
{
	struct kvm_file *file;

	if (likely(!fd_maybe_ours(fd)))
		return false;
	file = fd_get(fd);
	if (!file)
		return false;
	*r = (file->open_flags & O_ACCMODE) == O_RDONLY ? -EBADF : -EINVAL;
	fd_put(file);
	return true;
}

/* noop_llseek: the position stays, whatever is asked. */
bool shim_lseek(int fd, off_t off, int whence, long *r)
{
	struct kvm_file *file;

	if (likely(!fd_maybe_ours(fd)))
		return false;
	file = fd_get(fd);
	if (!file)
		return false;
	*r = atomic_load(&file->pos);
	fd_put(file);
	return true;
}

shim_public ssize_t read(int fd, void *buf, size_t count)
{
	long r;

	return shim_read(fd, buf, count, NULL, &r) ? answer(r) : real(read)(fd, buf, count);
}

shim_public ssize_t write(int fd, const void *buf, size_t count)
{
	long r;

	return shim_write(fd, NULL, &r) ? answer(r) : real(write)(fd, buf, count);
}

shim_public ssize_t pread(int fd, void *buf, size_t count, off_t off)
{
	long r;

	return shim_read(fd, buf, count, &off, &r) ? answer(r) : real(pread)(fd, buf, count, off);
}

shim_public ssize_t pread64(int fd, void *buf, size_t count, off64_t off)
{
	return pread(fd, buf, count, off);
}

shim_public ssize_t __read_chk(int fd, void *buf, size_t count, size_t size)
{
	if (count > size)
		__builtin_trap();
	return read(fd, buf, count);
}

shim_public ssize_t __pread_chk(int fd, void *buf, size_t count, off_t off, size_t size)
{
	if (count > size)
		__builtin_trap();
	return pread(fd, buf, count, off);
}

shim_public ssize_t __pread64_chk(int fd, void *buf, size_t count, off64_t off, size_t size)
{
	if (count > size)
		__builtin_trap();
	return pread(fd, buf, count, off);
}

shim_public ssize_t pwrite(int fd, const void *buf, size_t count, off_t off)
{
	long r;

	return shim_write(fd, &off, &r) ? answer(r) : real(pwrite)(fd, buf, count, off);
}

shim_public ssize_t pwrite64(int fd, const void *buf, size_t count, off64_t off)
{
	return pwrite(fd, buf, count, off);
}

/* ---- size ---------------------------------------------------------------------------------- */

bool shim_fallocate(int fd, int mode, off_t off, off_t len, long *r)
{
	struct kvm_file *file = fd_maybe_ours(fd) ? fd_get(fd) : NULL;

	if (!file)
		return false;
	*r = fd_fallocate(file, fd, mode, off, len);
	fd_put(file);
	return true;
}

bool shim_ftruncate(int fd, long *r)
{
	struct kvm_file *file = fd_maybe_ours(fd) ? fd_get(fd) : NULL;

	if (!file)
		return false;
	*r = fd_ftruncate(file);
	fd_put(file);
	return true;
}

shim_public int fallocate(int fd, int mode, off_t off, off_t len)
{
	long r;

	return shim_fallocate(fd, mode, off, len, &r) ? answer(r) : real(fallocate)(fd, mode, off, len);
}

shim_public int fallocate64(int fd, int mode, off64_t off, off64_t len)
{
	return fallocate(fd, mode, off, len);
}

shim_public int ftruncate(int fd, off_t len)
{
	long r;

	return shim_ftruncate(fd, &r) ? answer(r) : real(ftruncate)(fd, len);
}

shim_public int ftruncate64(int fd, off64_t len)
{
	return ftruncate(fd, len);
}

shim_public off_t lseek(int fd, off_t off, int whence)
{
	long r;

	return shim_lseek(fd, off, whence, &r) ? answer(r) : real(lseek)(fd, off, whence);
}

shim_public off64_t lseek64(int fd, off64_t off, int whence)
{
	return lseek(fd, off, whence);
}

/* ---- cancellation ----------------------------------------------------------------------------- */

/* A thread in KVM_RUN has cancellation disabled: it is asked to leave, and acts on the cancellation then. */
shim_public int pthread_cancel(pthread_t thread)
{
	int r = real(pthread_cancel)(thread);

	if (!r)
		fd_cancel_thread(thread);
	return r;
}

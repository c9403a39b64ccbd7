/* SPDX-License-Identifier: MIT */
/**
 * softkvm.h - the Linux KVM API as a library
 *
 * Everything <linux/kvm.h> describes works on the descriptors these functions
 * return: open the system, then issue KVM ioctls and map vCPUs with the calls
 * below instead of open(2), ioctl(2), mmap(2) and close(2). Programs that are
 * run under softkvm(1) need none of this: their libc calls arrive here.
 *
 * All functions follow the libc convention: -1 and errno on failure, and are
 * thread-safe. Descriptors are real kernel files: dup(2), poll(2), fork(2) and
 * SCM_RIGHTS work; VM and vCPU ioctls from a forked child fail with EIO.
 */
#ifndef SOFTKVM_H
#define SOFTKVM_H

#include <stddef.h>
#include <sys/types.h>

#ifdef __cplusplus
extern "C" {
#endif

#define SOFTKVM_VERSION_MAJOR 0
#define SOFTKVM_VERSION_MINOR 1
#define SOFTKVM_VERSION_STRING "0.1.0"

/**
 * softkvm_version - version of the library that is running
 *
 * Returns a static string such as "0.1.0".
 */
const char *softkvm_version(void);

/**
 * softkvm_open - open the system descriptor, as open("/dev/kvm", flags)
 * @flags: O_RDONLY, O_RDWR, optionally O_CLOEXEC
 *
 * Returns a descriptor for the system ioctls (KVM_CREATE_VM,
 * KVM_CHECK_EXTENSION, ...), or -1 with errno EMFILE, ENFILE or ENOMEM.
 */
int softkvm_open(int flags);

/**
 * softkvm_ioctl - perform a KVM ioctl
 * @fd: system, VM, vCPU or device descriptor
 * @request: KVM_...
 * @arg: the ioctl's argument: a pointer or an integer, as KVM defines it
 *
 * Returns what ioctl(2) on KVM returns; errno is the one KVM gives. ENOTTY if
 * @fd is not one of ours.
 */
int softkvm_ioctl(int fd, unsigned long request, unsigned long arg);

/**
 * softkvm_mmap - map a vCPU's kvm_run area, as mmap(2) on the vCPU descriptor
 *
 * The mapping shows kvm_run (page 0), PIO data (page 1), the VM's coalesced
 * ring (page 2) and, from page 64, the dirty ring. Returns MAP_FAILED with
 * errno ENODEV for a VM or system descriptor.
 */
void *softkvm_mmap(void *addr, size_t length, int prot, int flags, int fd, off_t offset);

/**
 * softkvm_close - close a descriptor
 *
 * The VM lives until its last descriptor of any kind is closed.
 */
int softkvm_close(int fd);

/**
 * softkvm_owns - whether @fd is one of ours
 *
 * Returns 1 or 0; preserves errno.
 */
int softkvm_owns(int fd);

/**
 * softkvm_print_capabilities - JSON description for tools that probe
 * @fd: file descriptor to write to
 *
 * Version, guest architectures, ioctls, capabilities with their values, CPU
 * features. Returns 0, or -1 with errno from write(2).
 */
int softkvm_print_capabilities(int fd);

#ifdef __cplusplus
}
#endif

#endif

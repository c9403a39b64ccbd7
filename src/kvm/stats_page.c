/* SPDX-License-Identifier: MIT */
/*
 * The counters of this process's VMs, for people: the page that softkvm stat reads
 * (stats_page.h), and with SOFTKVM_STATS=1 a table on standard error when a VM ends.
 */
#include "kvm/stats_page.h"

#include <pthread.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/mman.h>

#include "host/host.h"
#include "host/syscall.h"
#include "kvm/stats.h"

static _Atomic(struct stats_page *) page;
static _Atomic u64 page_mm;	/* whose it is: a forked child does not have the mapping */
static bool wanted;		/* SOFTKVM_STATS */

static struct stats_page *page_map(void)
{
	int fd = host_memfd(STATS_PAGE_NAME, PAGE_SIZE, true);
	struct stats_page *p;
	long addr;

	if (fd < 0)
		return NULL;
	addr = host_syscall6(SYS_mmap, 0, PAGE_SIZE, PROT_READ | PROT_WRITE, MAP_SHARED, fd, 0);
	host_syscall(SYS_close, fd, 0, 0, 0);
	if (addr < 0 && addr > -4096)
		return NULL;
	host_syscall(SYS_madvise, addr, PAGE_SIZE, MADV_DONTFORK, 0);
	p = (struct stats_page *)addr;
	p->size = sizeof(*p);
	p->vm = vm_stats_block();
	p->vcpu = vcpu_stats_block();
	p->vm_name = offsetof(struct vm, name);
	p->vm_name_size = sizeof(((struct vm *)0)->name);
	p->vm_nr_vcpus = offsetof(struct vm, nr_vcpus);
	p->vm_vcpus = offsetof(struct vm, vcpus);
	p->vcpu_id = offsetof(struct vcpu, id);
	/* Last: a page with this is complete. */
	__atomic_store_n(&p->magic, STATS_PAGE_MAGIC, __ATOMIC_RELEASE);
	return p;
}

/* NULL: there is none, and softkvm stat sees nothing of this process. */
static struct stats_page *page_get(void)
{
	static pthread_mutex_t lock = PTHREAD_MUTEX_INITIALIZER;
	u64 mm = host_mm_id();

	if (atomic_load(&page_mm) == mm)
		return atomic_load(&page);
	pthread_mutex_lock(&lock);
	if (atomic_load(&page_mm) != mm) {
		const char *s = getenv("SOFTKVM_STATS");

		wanted = s && *s && strcmp(s, "0");
		atomic_store(&page, page_map());
		atomic_store(&page_mm, mm);
	}
	pthread_mutex_unlock(&lock);
	return atomic_load(&page);
}

void stats_vm_created(struct vm *vm)
{
	struct stats_page *p = page_get();

	for (unsigned i = 0; p && i < STATS_PAGE_VMS; i++) {
		u64 none = 0;

		if (atomic_compare_exchange_strong(&p->vms[i], &none, (u64)(uintptr_t)vm))
			return;
	}
	if (p)
		__atomic_fetch_add(&p->hidden, 1, __ATOMIC_RELAXED);
}

/* Of descriptor d, all vCPUs together; bucket of a histogram. */
static u64 total(struct vm *vm, const struct stats_block *b, const struct kvm_stats_desc *d, bool of_vm, u32 bucket)
{
	size_t at = b->values + d->offset + bucket * sizeof(u64);
	struct vcpu *vcpu;
	u64 sum = 0, value;
	u32 i;

	if (of_vm) {
		memcpy(&value, (char *)vm + at, sizeof(value));
		return value;
	}
	vm_for_each_vcpu(vm, vcpu, i) {
		memcpy(&value, (char *)vcpu + at, sizeof(value));
		sum += value;
	}
	return sum;
}

static void print_block(struct vm *vm, const struct stats_block *b, bool of_vm)
{
	for (u32 i = 0; i < b->nr_descs; i++) {
		const struct kvm_stats_desc *d = (void *)(uintptr_t)(b->descs + (u64)i * b->desc_size);

		for (u32 k = 0; k < d->size; k++) {
			u64 value = total(vm, b, d, of_vm, k);
			const char *reason = d->size > 1 ? exit_reason_name(k) : "";

			if (value)
				fprintf(stderr, "  %-28s %-26s %14llu\n", d->name, reason ? reason : "(other)",
					(unsigned long long)value);
		}
	}
}

static void print_vm(struct vm *vm)
{
	struct stats_block b = vm_stats_block(), v = vcpu_stats_block();

	flockfile(stderr);
	fprintf(stderr, "softkvm: counters of %s, %u vCPUs:\n", vm->name, atomic_load(&vm->nr_vcpus));
	print_block(vm, &v, false);
	print_block(vm, &b, true);
	funlockfile(stderr);
}

void stats_vm_destroyed(struct vm *vm)
{
	struct stats_page *p = page_get();

	if (wanted)
		print_vm(vm);
	for (unsigned i = 0; p && i < STATS_PAGE_VMS; i++) {
		u64 mine = (u64)(uintptr_t)vm;

		if (atomic_compare_exchange_strong(&p->vms[i], &mine, 0))
			return;
	}
	if (p)
		__atomic_fetch_sub(&p->hidden, 1, __ATOMIC_RELAXED);
}

/* VMs that the process never closed. */
__attribute__((destructor)) static void stats_exit(void)
{
	struct stats_page *p = atomic_load(&page);

	if (!wanted || !p || atomic_load(&page_mm) != host_mm_id())
		return;
	for (unsigned i = 0; i < STATS_PAGE_VMS; i++) {
		u64 vm = atomic_load(&p->vms[i]);

		if (vm)
			print_vm((struct vm *)(uintptr_t)vm);
	}
}

/* SPDX-License-Identifier: MIT */
/*
 * Where softkvm stat finds the counters of another process's VMs: a page that
 * says at which addresses they are, to be read with process_vm_readv(2). The page is a mapping that
 * /proc/PID/maps shows under STATS_PAGE_NAME; it costs its process no descriptor, and counting costs nothing more.
 *
 * Written by its process (stats_page.c). The reader believes none of it: whatever it
 * names is memory of that process, which the reader may read anyway.
 */
#ifndef SOFTKVM_KVM_STATS_PAGE_H
#define SOFTKVM_KVM_STATS_PAGE_H

#include <stdatomic.h>

#include "base/types.h"

#define STATS_PAGE_NAME "softkvm-stats"	/* in maps: "/memfd:softkvm-stats (deleted)" */
#define STATS_PAGE_MAGIC 0x3153544154534b53ull /* "SKSTATS1" */
#define STATS_PAGE_VMS 480

/* One kind of object: its descriptors (struct kvm_stats_desc, then a name of name_size) and its values. */
struct stats_block {
	u64 descs;
	u32 nr_descs, desc_size;
	u32 values, values_size;	/* offset in the object */
};

struct stats_page {
	u64 magic;
	u32 size;			/* of this structure */
	u32 hidden;			/* VMs for which there was no room */
	struct stats_block vm, vcpu;
	u32 vm_name, vm_name_size;	/* offsets in the VM ... */
	u32 vm_nr_vcpus, vm_vcpus;	/* u32; address of an array of addresses */
	u32 vcpu_id, unused;		/* u32, in the vCPU */
	_Atomic u64 vms[STATS_PAGE_VMS];	/* 0: free */
};
_Static_assert(sizeof(struct stats_page) <= PAGE_SIZE, "one page");

#endif

/* SPDX-License-Identifier: MIT */
/*
 * The heart: struct vm, struct vcpu, memslots, requests. Architecture-neutral;
 * the guest architecture is reached through kvm/arch.h alone.
 *
 * Locking (outer to inner; docs/locking.md has the reasons):
 *	vm->lock		vcpu creation, irqchip/pit creation, VM-wide settings
 *	vcpu->mutex		one vCPU ioctl at a time; held across KVM_RUN
 *	vm->slots_lock		changes to memslots, dirty logging, I/O buses, routing
 *	vm->irq_lock		PIC, IOAPIC, routing use, irqfds (leaf but for apic->lock)
 *	apic->lock		per-vCPU local APIC registers (leaf)
 * A holder of vcpu->mutex that is in guest mode or READING never takes
 * slots_lock: whoever holds slots_lock may be waiting for it to leave.
 */
#ifndef SOFTKVM_KVM_HOST_H
#define SOFTKVM_KVM_HOST_H

#include <pthread.h>
#include <stdatomic.h>
#include <sys/types.h>

#include "base/exec.h"
#include "base/list.h"
#include "base/types.h"
#include "kvm/exit_reasons.h"
#include "kvm/kvm_abi.h"

struct vm;
struct vcpu;
struct gmem;
struct mem_attrs;

#include "x86/vcpu_arch.h" /* struct vcpu_arch, struct vm_arch: chosen by the guest arch */

/* ---- memslots ------------------------------------------------------------ */

struct memslot {
	gfn_t base_gfn;
	u64 npages;
	hva_t userspace_addr;
	u32 flags;		/* KVM_MEM_* */
	u16 id;
	u16 as_id;
	/*
	 * One bit a page, allocated when LOG_DIRTY is on. Set with atomic OR by vCPU
	 * threads, harvested under slots_lock. With rings: the page is in one (dirty_ring.c).
	 */
	_Atomic u64 *dirty_bitmap;
	/* KVM_MEM_GUEST_MEMFD: where the private pages are. Both NULL once its descriptors are closed; under slots_lock. */
	struct gmem *gmem;
	u8 *_Atomic gmem_host;
	u64 gmem_offset;
	bool gmem_only;		/* its shared pages are there, too */
};

/*
 * An immutable snapshot: sorted by base_gfn for look-up and by id for ioctls.
 * Replaced as a whole under slots_lock; a vCPU may keep using the old one only
 * until it passes a boundary (vm_sync_vcpus()).
 */
struct memslots {
	u64 generation;
	u32 nr, capacity;
	struct memslot **by_gfn;	/* nr entries, ascending base_gfn */
	struct memslot **by_id;		/* nr entries, ascending id */
};

/* Slot that holds gfn, or NULL. O(log n). Any thread that keeps the snapshot alive. */
struct memslot *memslots_find(const struct memslots *slots, gfn_t gfn);
struct memslot *memslots_find_id(const struct memslots *slots, u16 id);

static inline hva_t memslot_hva(const struct memslot *slot, gpa_t gpa)
{
	return slot->userspace_addr + (gpa - (slot->base_gfn << PAGE_SHIFT));
}

/* ---- requests -------------------------------------------------------------- */

/* Bits of vcpu->requests. Anyone sets one with vcpu_make_request(), then vcpu_kick(). */
enum vcpu_request {
	KVM_REQ_TLB_FLUSH,	/* drop all cached translations (memslots or dirty log changed) */
	KVM_REQ_EVENT,		/* an interrupt, NMI, INIT/SIPI may be deliverable: re-evaluate */
	KVM_REQ_UNHALT,		/* wake from a halted state and look again */
	KVM_REQ_SIGNAL,		/* a signal for the client arrived: KVM_RUN returns EINTR */
	KVM_REQ_VM_DEAD,	/* KVM_RUN returns EIO */
	KVM_REQ_CLOCK_UPDATE,	/* rewrite this vCPU's pvclock page */
	KVM_REQ_STEAL_UPDATE,	/* rewrite the steal-time record */
	KVM_REQ_TRIPLE_FAULT,	/* KVM_EXIT_SHUTDOWN */
	KVM_REQ_IOAPIC_EOI,	/* split irqchip: KVM_EXIT_IOAPIC_EOI for arch.pending_ioapic_eoi */
	KVM_REQ_DIRTY_RING_SOFT_FULL, /* KVM_EXIT_DIRTY_RING_FULL at the next entry */
	KVM_REQ_APIC_TIMER,	/* the vCPU's own APIC timer expired */
	KVM_REQ_SYNC,		/* acknowledge a vm_sync_vcpus() boundary, nothing else */
	KVM_REQ_CODE_PAGE,	/* drop write tags: a page now holds code of another vCPU, or that code was written */
	KVM_REQ_STOP,		/* another thread wants this vCPU out of KVM_RUN: EINTR */
	KVM_REQ_HV_EXIT,	/* x86/hyperv: an MSR write that the client is to hear of has retired */
	KVM_REQ_HV_STIMER,	/* x86/hyperv: a synthetic timer wants to be looked at */
	KVM_REQ_HV_FLUSH,	/* x86/hyperv: wait until other vCPUs have flushed their TLBs */
	KVM_REQ_XEN,		/* x86/xen: event channels to raise */
};

/* Where a vCPU's thread is; written by that thread, read by vm_sync_vcpus(). */
enum vcpu_mode {
	VCPU_OUTSIDE,	/* touches no guest memory, holds no snapshot */
	VCPU_IN_GUEST,	/* may hold TLB entries in use and a memslots snapshot */
};

struct vcpu_stat {
#define VCPU_STAT(name, kind, unit) u64 name;
#define VCPU_STAT_BUCKETS(name, buckets) u64 name[buckets];
#include "kvm/vcpu_stats.def"
#undef VCPU_STAT_BUCKETS
#undef VCPU_STAT
};

struct vm_stat {
#define VM_STAT(name, kind, unit) u64 name;
#include "kvm/vm_stats.def"
#undef VM_STAT
};

struct vcpu {
	struct vcpu_arch arch;		/* first: the engine's slots have small offsets */
	_Atomic u64 requests;
	_Atomic u32 mode;		/* enum vcpu_mode */
	_Atomic u32 wake_futex;		/* bumped by every kick; halted vCPUs sleep on it */
	_Atomic u64 boundary_seq;	/* counts boundaries passed while syncs were wanted */
	_Atomic u32 sleeping;		/* in vcpu_wait(): a kick needs a futex wake */
	u64 slots_generation;		/* of the snapshot the cached translations come from */
	u8 as_id;			/* address space of this vCPU's accesses; vcpu_set_address_space() */
	struct vm *vm;
	u32 id;				/* KVM_CREATE_VCPU argument, the APIC id */
	u32 index;			/* position in vm->vcpus */
	pthread_mutex_t mutex;		/* held by the ioctl being executed, KVM_RUN included */
	struct kvm_run *run;		/* page 0 of the vCPU's memfd */
	void *pio_data;			/* page 1 */
	struct memslots *slots;		/* snapshot in use while mode != OUTSIDE */
	_Atomic pid_t tid;		/* thread now (or last) in KVM_RUN, for kicks by signal */
	int fd;				/* descriptor handed to the client (never used by us) */
	bool sigset_active;		/* KVM_SET_SIGNAL_MASK in force */
	u64 sigset;			/* its kernel-format mask */
	struct vcpu_stat stat;		/* written by the vCPU's thread */
	struct dirty_ring *dirty_ring;	/* NULL unless KVM_CAP_DIRTY_LOG_RING is enabled */
	struct kvm_guest_debug guest_debug;
};

struct vm {
	struct vm_arch arch;
	_Atomic u32 dead;		/* every ioctl answers EIO */
	pthread_mutex_t lock;
	pthread_mutex_t slots_lock;
	pthread_mutex_t irq_lock;
	struct memslots *_Atomic slots;	/* current snapshot, address space 0 */
	struct memslots *_Atomic smm_slots; /* the same of address space 1 */
	struct mem_attrs *_Atomic attrs; /* private pages, NULL: none; kvm/guest_memfd.c, replaced under slots_lock */
	bool private_mem;		/* of a type with private memory */
	_Atomic bool not_sole;		/* programs need LOCK for ever; kvm/sole.c */
	_Atomic u32 moving;		/* part of a context move; kvm/move.c */
	struct memslots *spare_slots;	/* an old snapshot's memory, for the next one; under slots_lock */
	struct vcpu **vcpus;		/* created_vcpus entries, grows; read under lock or after acquire of nr_vcpus */
	_Atomic u32 nr_vcpus;
	_Atomic u32 client_turns;	/* ioctls and irqfd events: occasions on which the client tells of what it did to memory */
	u32 refs;			/* descriptors of any kind that keep the VM alive; api/fd.c */
	u32 max_vcpu_ids;		/* KVM_CAP_MAX_VCPU_ID */
	u64 manual_dirty_log_protect;	/* KVM_CAP_MANUAL_DIRTY_LOG_PROTECT2 argument */
	u32 dirty_ring_entries;
	struct io_bus *mmio_bus, *pio_bus, *fast_mmio_bus; /* ioeventfd + coalesced zones; kvm/io_bus.h */
	struct kvm_coalesced_mmio_ring *coalesced_ring;	/* one page a VM, or NULL until first used */
	int coalesced_fd;		/* memfd of that page, -1 until first used */
	pthread_mutex_t coalesced_lock;	/* producers of the ring; leaf */
	struct list_head coalesced_zones, ioeventfds, irqfds;
	_Atomic u32 notifier_pins[3];	/* per KVM_IRQCHIP_*: pins whose EOI somebody wants; written under irq_lock */
	_Atomic bool notifier_sints;	/* the same of synthetic interrupts: any at all */
	_Atomic u32 sync_waiters, sync_futex; /* vm_sync_vcpus() asleep; bumped when a vCPU passes a boundary */
	u32 vcpus_capacity;
	u32 max_halt_poll_ns;		/* KVM_CAP_HALT_POLL, stored only */
	struct irq_routing *_Atomic routing; /* kvm/irq_routing.c; replaced under irq_lock */
	struct vm_timers *timers;	/* host/timer.h thread, started at first use */
	struct eventfd_poller *poller;	/* irqfd thread, started at first KVM_IRQFD */
	struct vm_stat stat;
	unsigned long type;
	pid_t owner;			/* process that created it */
	char name[32];
	struct vm_control *control;	/* first page of the VM's file; api/fd.c */
	struct move_area *move_area;	/* the rest of it, if others may move from this VM; kvm/move_agent.c */
	struct move_agent *move_agent;	/* thread that answers them; under lock */
};

static inline struct memslots *_Atomic *vm_slots(struct vm *vm, unsigned as_id)
{
	return as_id ? &vm->smm_slots : &vm->slots;
}

/* Private memory is in one only, as in KVM. */
static inline unsigned vm_nr_address_spaces(const struct vm *vm)
{
	return vm->private_mem ? 1 : KVM_ABI_ADDRESS_SPACES;
}

/* What the client has written by now is to be seen by whoever takes an interrupt from here on. */
static inline void vm_note_client(struct vm *vm)
{
	atomic_fetch_add_explicit(&vm->client_turns, 1, memory_order_release);
}

/* kvm/vm.c */
struct vm *vm_create(unsigned long type, int *err);
void vm_destroy(struct vm *vm);
/* EIO for every call from now on; vCPUs are not waited for. */
void vm_kill(struct vm *vm);
/* Ours went wrong, not the guest's and not the client's: one line on stderr, VM dead (EIO from now on). */
void vm_bug(struct vm *vm, const char *what, const char *file, int line) coldpath;
#define VM_BUG_ON(cond, vm)                                                     \
	({                                                                      \
		bool vm_bug_hit = unlikely(!!(cond));                           \
		if (vm_bug_hit)                                                 \
			vm_bug((vm), #cond, __FILE__, __LINE__);                \
		vm_bug_hit;                                                     \
	})
struct vcpu *vm_vcpu_by_id(struct vm *vm, u32 id);
#define vm_for_each_vcpu(vm, vcpu, i)                                           \
	for ((i) = 0; (i) < atomic_load_explicit(&(vm)->nr_vcpus, memory_order_acquire) && \
		      ((vcpu) = (vm)->vcpus[i], 1); (i)++)

/* kvm/vcpu.c */
int vcpu_create(struct vm *vm, u32 id, struct vcpu **out); /* vm->lock held; arch_vcpu_create() inside */
void vcpu_destroy(struct vcpu *vcpu);
/* Make a created vCPU visible to vm_for_each_vcpu(), after room for it was reserved (0 or -ENOMEM). vm->lock held. */
int vcpu_reserve(struct vm *vm);
void vcpu_publish(struct vcpu *vcpu);

/* kvm/request.c */
static inline void vcpu_make_request(struct vcpu *vcpu, enum vcpu_request req)
{
	/* Release pairs with the acquire in vcpu_check_request(). */
	atomic_fetch_or_explicit(&vcpu->requests, BIT_ULL(req), memory_order_release);
}

/* Test and clear; the vCPU's own thread only. */
static inline bool vcpu_check_request(struct vcpu *vcpu, enum vcpu_request req)
{
	if (likely(!(atomic_load_explicit(&vcpu->requests, memory_order_relaxed) & BIT_ULL(req))))
		return false;
	/* Release: what this vCPU read before is done with, for vm_sync_vcpus(). */
	atomic_fetch_and_explicit(&vcpu->requests, ~BIT_ULL(req), memory_order_acq_rel);
	return true;
}

static inline bool vcpu_has_requests(const struct vcpu *vcpu)
{
	return atomic_load_explicit(&((struct vcpu *)vcpu)->requests, memory_order_relaxed) != 0;
}

/* Make a vCPU notice its requests: wakes it if it sleeps; running engines poll the word. Any thread, async-signal-safe. */
void vcpu_kick(struct vcpu *vcpu);
/* Sleep until kicked, a request is set or deadline_ns (CLOCK_MONOTONIC, U64_MAX: none) passes. mode must be OUTSIDE. */
void vcpu_wait(struct vcpu *vcpu, u64 deadline_ns);
void vm_make_all_request(struct vm *vm, enum vcpu_request req);
/*
 * Returns when every vCPU that was in guest code has passed an instruction
 * boundary with req taken. Caller holds slots_lock and no vcpu->mutex. Interrupts vCPUs asleep
 * in a host page fault with a signal rather than waiting for them (docs/hazards).
 */
void vm_sync_vcpus(struct vm *vm, enum vcpu_request req);
/*
 * The same for those of mask (a bit per index), by a vCPU's thread on behalf of its guest: self is outside guest mode, and the
 * request has been made. Two may wait for each other. No locks but vcpu->mutex.
 */
void vcpu_sync_others(struct vcpu *self, const u64 *mask, enum vcpu_request req);
/* The vCPU's thread: enter/leave the region in which it may touch guest memory. */
void vcpu_enter_guest_mode(struct vcpu *vcpu);
void vcpu_leave_guest_mode(struct vcpu *vcpu);
/* From now on it sees another address space: a boundary, if in guest mode; translations are dropped at the latest at entry. */
void vcpu_set_address_space(struct vcpu *vcpu, unsigned as_id);

/* kvm/memslot.c */
int vm_set_memory_region(struct vm *vm, const struct kvm_userspace_memory_region2 *mem);
/* The same with the result of looking up mem->guest_memfd: a view, or NULL and the errno. */
int vm_set_memory_region2(struct vm *vm, const struct kvm_userspace_memory_region2 *mem,
			  struct gmem *gmem, int gmem_err);
int vm_get_dirty_log(struct vm *vm, const struct kvm_dirty_log *log);
int vm_clear_dirty_log(struct vm *vm, const struct kvm_clear_dirty_log *log);
/* A guest write to gfn is about to happen (or has happened): log it. vCPU thread, in guest mode. */
void memslot_mark_dirty(struct vcpu *vcpu, struct memslot *slot, gfn_t gfn);
void memslots_free(struct memslots *slots);

/*
 * Guest physical memory through the memslots, any length, page by page.
 * vcpu in guest mode. 0, or -EFAULT when no slot, READONLY (write) or the
 * client's memory is not accessible.
 */
int vcpu_read_guest(struct vcpu *vcpu, gpa_t gpa, void *buf, size_t len);
int vcpu_write_guest(struct vcpu *vcpu, gpa_t gpa, const void *buf, size_t len);

/* kvm/io_bus.c + coalesced_mmio.c + ioeventfd.c: in-kernel consumers of a guest write. True when swallowed. */
bool vm_mmio_write(struct vm *vm, gpa_t gpa, unsigned len, const void *data);
bool vm_pio_write(struct vm *vm, u16 port, unsigned len, const void *data);

int vm_register_coalesced(struct vm *vm, const struct kvm_coalesced_mmio_zone *zone);
int vm_unregister_coalesced(struct vm *vm, const struct kvm_coalesced_mmio_zone *zone);
/* The ring's memfd, created at first need (one page, sealed): fd or -errno. vCPU mappings show it as page 2. */
int vm_coalesced_fd(struct vm *vm);
int vm_ioeventfd(struct vm *vm, const struct kvm_ioeventfd *args);
int vm_irqfd(struct vm *vm, const struct kvm_irqfd *args);

/* kvm/irq_routing.c */
int vm_set_gsi_routing(struct vm *vm, const struct kvm_irq_routing_entry *entries, u32 nr, u32 flags);
int vm_set_default_routing(struct vm *vm);	/* KVM_CREATE_IRQCHIP: PIC 0-15, IOAPIC 0-23 */
/*
 * Drive a GSI. source: KVM_IRQ_SOURCE_USERSPACE, _RESAMPLER or the PIT's.
 * Returns <0 ignored (masked or not routed), 0 coalesced, >0 delivered: KVM_IRQ_LINE_STATUS.
 */
int vm_set_irq(struct vm *vm, int source, u32 gsi, int level);
int vm_send_msi(struct vm *vm, const struct kvm_msi *msi);
#define KVM_IRQ_SOURCE_USERSPACE 0
#define KVM_IRQ_SOURCE_RESAMPLER 1
#define KVM_IRQ_SOURCE_PIT 2
/* An EOI reached pin of irqchip (KVM_IRQCHIP_*): fires resamplefds and ack notifiers. irq_lock not held. */
void vm_notify_acked_irq(struct vm *vm, unsigned irqchip, unsigned pin);
/* The same for a synthetic interrupt of the vCPU with this index. */
void vm_notify_acked_sint(struct vm *vm, u32 vp_index, u32 sint);
/* True if some resampler wants EOIs of that pin. */
bool vm_irq_has_notifier(struct vm *vm, unsigned irqchip, unsigned pin);	/* lock-free */

/* kvm/stats.c: bytes of the binary statistics from off; vcpu NULL: the VM's. Less than count at the end. */
size_t vm_stats_read(struct vm *vm, struct vcpu *vcpu, void *buf, size_t count, off_t off);

#endif

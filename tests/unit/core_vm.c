/* SPDX-License-Identifier: MIT */
/* Memslots, dirty log, buses, eventfds, routing, statistics: src/kvm without a CPU. */
#include "core_rename.h"

#include <setjmp.h>
#include <stdarg.h>
#include <stddef.h>
#include <cmocka.h>
#include <errno.h>
#include <signal.h>
#include <stdlib.h>
#include <string.h>
#include <sys/eventfd.h>
#include <sys/mman.h>
#include <unistd.h>

#include "../../src/kvm/coalesced_mmio.c"
#include "../../src/kvm/guest_memory.c"
#include "../../src/kvm/io_bus.c"
#include "../../src/kvm/ioeventfd.c"
#include "../../src/kvm/irq_routing.c"
#include "../../src/kvm/irqfd.c"
#include "../../src/kvm/memslot.c"
#include "../../src/kvm/request.c"
#include "../../src/kvm/stats.c"
#include "../../src/kvm/vcpu.c"
#include "../../src/kvm/vm.c"
#include "../../src/x86/msr_filter.c"

/* ---- the architecture, played by us -------------------------------------------------- */

static bool has_irqchip = true;
static _Atomic u32 nr_msi, nr_flushes;
static _Atomic u32 msi_data;
static _Atomic int line[32];

int arch_vm_create(struct vm *vm, unsigned long type) { return 0; }
void arch_vm_destroy(struct vm *vm) { }
int arch_vcpu_create(struct vcpu *vcpu) { return 0; }
void arch_vcpu_destroy(struct vcpu *vcpu) { }
void arch_vcpu_flush_tlb(struct vcpu *vcpu) { atomic_fetch_add(&nr_flushes, 1); }
void arch_routing_updated(struct vm *vm) { }
bool arch_irqchip_in_kernel(struct vm *vm) { return has_irqchip; }
bool arch_irqchip_full(struct vm *vm) { return has_irqchip; }
int arch_check_routing_entry(struct vm *vm, const struct kvm_irq_routing_entry *e) { return 0; }

int arch_set_routed_irq(struct vm *vm, const struct kvm_irq_routing_entry *e, int source, int level)
{
	if (e->u.irqchip.irqchip == KVM_IRQCHIP_IOAPIC)
		line[e->u.irqchip.pin] = level;
	return 1;
}

int arch_send_msi(struct vm *vm, u32 lo, u32 hi, u32 data)
{
	atomic_store(&msi_data, data);
	atomic_fetch_add(&nr_msi, 1);
	return 1;
}

static struct vm *vm;
static u8 *ram;
#define RAM_PAGES 256

static struct vcpu *add_vcpu(u32 id)
{
	struct vcpu *vcpu;

	assert_int_equal(vcpu_create(vm, id, &vcpu), 0);
	assert_int_equal(vcpu_reserve(vm), 0);
	vcpu_publish(vcpu);
	return vcpu;
}

/* The test framework catches SIGSEGV around every test; in this one faults are expected. */
static struct sigaction broker;

static void expect_faults(void)
{
	sigaction(SIGSEGV, &broker, NULL);
}

static int setup(void **state)
{
	int err;

	vm = vm_create(0, &err);
	assert_non_null(vm);
	ram = mmap(NULL, RAM_PAGES * PAGE_SIZE, PROT_READ | PROT_WRITE, MAP_PRIVATE | MAP_ANONYMOUS, -1, 0);
	return 0;
}

static int teardown(void **state)
{
	vm_destroy(vm);
	munmap(ram, RAM_PAGES * PAGE_SIZE);
	return 0;
}

static int slot(u32 id, u64 gpa, u64 pages, void *at, u32 flags)
{
	struct kvm_userspace_memory_region2 mem = {
		.slot = id, .flags = flags, .guest_phys_addr = gpa,
		.memory_size = pages * PAGE_SIZE, .userspace_addr = (u64)at,
	};

	return vm_set_memory_region(vm, &mem);
}

/* ---- memslots ------------------------------------------------------------------------------ */

static void slot_rules(void **state)
{
	assert_int_equal(slot(0, 0, 0, NULL, 0), -EINVAL);	/* delete nothing */
	assert_int_equal(slot(0, 0, 16, ram, 0), 0);
	assert_int_equal(slot(0, 0, 16, ram, 0), 0);
	assert_int_equal(slot(0, 0, 17, ram, 0), -EINVAL);
	assert_int_equal(slot(0, 0, 16, ram + PAGE_SIZE, 0), -EINVAL);
	assert_int_equal(slot(0, 0, 16, ram, KVM_MEM_READONLY), -EINVAL);
	assert_int_equal(slot(1, 15 * PAGE_SIZE, 4, ram, 0), -EEXIST);
	assert_int_equal(slot(1, 16 * PAGE_SIZE, 4, ram, KVM_MEM_READONLY), 0);
	assert_int_equal(slot(2, 18 * PAGE_SIZE, 1, ram, 0), -EEXIST);
	assert_int_equal(slot(2, 12 * PAGE_SIZE, 100, ram, 0), -EEXIST);
	assert_int_equal(slot(2, 1, 1, ram, 0), -EINVAL);
	assert_int_equal(slot(2, 1ull << 52, 1, ram, 0), -EINVAL);
	assert_int_equal(slot(2, -PAGE_SIZE, 1, ram, 0), -EINVAL);
	assert_int_equal(slot(2, 1ull << 30, 1, (void *)(~0ul & PAGE_MASK), 0), -EINVAL);
	assert_int_equal(slot(2, 1ull << 30, 1, ram, 4), -EINVAL);
	assert_int_equal(slot(32764, 1ull << 30, 1, ram, 0), -EINVAL);
	assert_int_equal(slot(2u << 16, 1ull << 30, 1, ram, 0), -EINVAL);
	assert_int_equal(slot(32763, 1ull << 30, 1, ram, 0), 0);
	/* move: onto itself in part, into another, free */
	assert_int_equal(slot(0, 1ull << 30, 16, ram, 0), -EEXIST);
	assert_int_equal(slot(0, 64 * PAGE_SIZE, 16, ram, 0), 0);
	assert_int_equal(slot(0, 72 * PAGE_SIZE, 16, ram, 0), 0);
	assert_null(memslots_find(vm->slots, 71));
	assert_int_equal(memslots_find(vm->slots, 72)->id, 0);
	assert_int_equal(memslots_find(vm->slots, 87)->id, 0);
	assert_null(memslots_find(vm->slots, 88));
	assert_int_equal(memslots_find(vm->slots, 19)->id, 1);
	assert_null(memslots_find(vm->slots, 20));
	assert_int_equal(slot(1, 0, 0, NULL, 0), 0);
	assert_null(memslots_find(vm->slots, 16));
	assert_null(memslots_find_id(vm->slots, 1));
	assert_non_null(memslots_find_id(vm->slots, 32763));
	assert_int_equal(vm->slots->nr, 2);
}

static void slot_random(void **state)
{
	u16 owner[512] = { 0 };	/* id + 1 of each page */

	srand(1);
	for (int n = 0; n < 20000; n++) {
		u32 id = rand() % 40, base = rand() % 500, len = rand() % 12, old_base = 0, old_len = 0;
		bool clash = false;
		int want, r;

		for (u32 i = 0; i < 512; i++)
			if (owner[i] == id + 1 && !old_len++)
				old_base = i;
		if (!len)
			want = old_len ? 0 : -EINVAL;
		else {
			if (old_len)
				len = old_len;
			for (u32 i = base; i < base + len; i++)
				clash |= i < 512 && owner[i] && owner[i] != id + 1;
			want = clash ? -EEXIST : base + len > 512 ? 1 : 0;
		}
		if (want == 1)
			continue;
		r = slot(id, (u64)base * PAGE_SIZE, len, ram, 0);
		assert_int_equal(r, want);
		if (r)
			continue;
		for (u32 i = old_base; i < old_base + old_len; i++)
			owner[i] = 0;
		for (u32 i = base; i < base + len; i++)
			owner[i] = id + 1;
		for (u32 i = 0; i < 512; i++) {
			struct memslot *s = memslots_find(vm->slots, i);

			assert_int_equal(s ? s->id + 1 : 0, owner[i]);
		}
	}
}

static void guest_memory(void **state)
{
	struct vcpu *vcpu = add_vcpu(0);
	u64 val = 0x1122334455667788, back = 0;

	expect_faults();
	assert_int_equal(slot(0, 0, 2, ram, 0), 0);
	assert_int_equal(slot(1, 2 * PAGE_SIZE, 1, ram + 5 * PAGE_SIZE, KVM_MEM_READONLY), 0);
	vcpu_enter_guest_mode(vcpu);
	assert_int_equal(vcpu_write_guest(vcpu, PAGE_SIZE - 3, &val, 8), 0);
	assert_int_equal(vcpu_read_guest(vcpu, PAGE_SIZE - 3, &back, 8), 0);
	assert_true(val == back);
	assert_int_equal(vcpu_read_guest(vcpu, 2 * PAGE_SIZE - 4, &back, 8), 0);
	assert_int_equal(vcpu_write_guest(vcpu, 2 * PAGE_SIZE - 4, &back, 8), -EFAULT);
	assert_int_equal(vcpu_read_guest(vcpu, 3 * PAGE_SIZE - 4, &back, 8), -EFAULT);
	munmap(ram + PAGE_SIZE, PAGE_SIZE);
	assert_int_equal(vcpu_read_guest(vcpu, PAGE_SIZE, &back, 8), -EFAULT);
	vcpu_leave_guest_mode(vcpu);
}

/* ---- dirty log --------------------------------------------------------------------------------- */

static int get_log(u32 id, void *bitmap)
{
	struct kvm_dirty_log log = { .slot = id, .dirty_bitmap = bitmap };

	return vm_get_dirty_log(vm, &log);
}

static int clear_log(u32 id, u64 first, u32 num, void *bitmap)
{
	struct kvm_clear_dirty_log log = {
		.slot = id, .first_page = first, .num_pages = num, .dirty_bitmap = bitmap,
	};

	return vm_clear_dirty_log(vm, &log);
}

static void dirty(struct vcpu *vcpu, gfn_t gfn)
{
	u8 byte = 1;

	vcpu_enter_guest_mode(vcpu);
	assert_int_equal(vcpu_write_guest(vcpu, gfn << PAGE_SHIFT, &byte, 1), 0);
	vcpu_leave_guest_mode(vcpu);
}

static void dirty_log(void **state)
{
	struct vcpu *vcpu = add_vcpu(0);
	u64 bits[3] = { 0 };

	expect_faults();
	assert_int_equal(slot(0, 0, 130, ram, 0), 0);
	assert_int_equal(get_log(0, bits), -ENOENT);
	assert_int_equal(get_log(7, bits), -ENOENT);
	assert_int_equal(get_log(40000, bits), -EINVAL);
	dirty(vcpu, 1);
	assert_int_equal(slot(0, 0, 130, ram, KVM_MEM_LOG_DIRTY_PAGES), 0);
	dirty(vcpu, 3);
	dirty(vcpu, 129);
	assert_int_equal(get_log(0, NULL), -EFAULT);
	assert_int_equal(get_log(0, bits), 0);
	assert_true(bits[0] == 8 && bits[1] == 0 && bits[2] == 2);
	assert_int_equal(get_log(0, bits), 0);
	assert_true(!bits[0] && !bits[2]);
	/* moving keeps the log */
	dirty(vcpu, 5);
	assert_int_equal(slot(0, 200 * PAGE_SIZE, 130, ram, KVM_MEM_LOG_DIRTY_PAGES), 0);
	assert_int_equal(get_log(0, bits), 0);
	assert_true(bits[0] == 1 << 5);
	assert_int_equal(slot(0, 200 * PAGE_SIZE, 130, ram, 0), 0);
	assert_int_equal(get_log(0, bits), -ENOENT);
}

static void dirty_log_manual(void **state)
{
	struct vcpu *vcpu = add_vcpu(0);
	u64 bits[3] = { 0 }, mask[3] = { 1ull << 5, 0, ~0ull };

	expect_faults();
	vm->manual_dirty_log_protect = KVM_DIRTY_LOG_MANUAL_PROTECT_ENABLE | KVM_DIRTY_LOG_INITIALLY_SET;
	assert_int_equal(slot(0, 0, 130, ram, KVM_MEM_LOG_DIRTY_PAGES), 0);
	assert_int_equal(get_log(0, bits), 0);
	assert_true(bits[0] == ~0ull && bits[1] == ~0ull && bits[2] == 3);
	assert_int_equal(clear_log(0, 1, 64, mask), -EINVAL);
	assert_int_equal(clear_log(0, 0, 63, mask), -EINVAL);
	assert_int_equal(clear_log(0, 192, 0, mask), -EINVAL);
	assert_int_equal(clear_log(0, 128, 3, mask), -EINVAL);
	assert_int_equal(clear_log(0, 64, 66, NULL), -EFAULT);
	assert_int_equal(clear_log(0, 0, 130, mask), 0);
	assert_int_equal(get_log(0, bits), 0);
	assert_true(bits[0] == ~(1ull << 5) && bits[1] == ~0ull && bits[2] == 0);
	dirty(vcpu, 5);
	assert_int_equal(get_log(0, bits), 0);
	assert_true(bits[0] == ~0ull);
}

/* ---- a running vCPU -------------------------------------------------------------------------------- */

static _Atomic bool stop_running;

/* Behaves as the run loop does: a boundary whenever a request is there. */
static void *run_thread(void *arg)
{
	struct vcpu *vcpu = arg;

	atomic_store(&vcpu->tid, gettid());
	vcpu_enter_guest_mode(vcpu);
	while (!atomic_load(&stop_running)) {
		struct memslot *s = memslots_find(vcpu->slots, 3);

		/* A freed slot would show (and asan would say so). */
		if (s && s->npages != 4 && s->npages != 8)
			abort();
		if (!vcpu_has_requests(vcpu))
			continue;
		vcpu_check_request(vcpu, KVM_REQ_SYNC);
		vcpu_check_request(vcpu, KVM_REQ_TLB_FLUSH);
		vcpu_leave_guest_mode(vcpu);
		vcpu_enter_guest_mode(vcpu);
	}
	vcpu_leave_guest_mode(vcpu);
	return NULL;
}

static void slots_change_under_vcpus(void **state)
{
	pthread_t thread[2];

	atomic_store(&stop_running, false);
	for (int i = 0; i < 2; i++)
		pthread_create(&thread[i], NULL, run_thread, add_vcpu(i));
	for (int i = 0; i < 300; i++) {
		assert_int_equal(slot(i & 1, 0, i & 1 ? 8 : 4, ram, 0), 0);
		assert_int_equal(slot(i & 1, 0, 0, NULL, 0), 0);
	}
	atomic_store(&stop_running, true);
	for (int i = 0; i < 2; i++)
		pthread_join(thread[i], NULL);
}

/* Stores as the engine does: once logged, a page is written through its tag until the next flush. */
static void *store_thread(void *arg)
{
	bool tag[64] = { false };
	struct vcpu *vcpu = arg;
	unsigned seed = vcpu->id;

	atomic_store(&vcpu->tid, gettid());
	vcpu_enter_guest_mode(vcpu);
	for (u32 n = 1; !atomic_load(&stop_running); n++) {
		u32 page = rand_r(&seed) % 64;

		if (!tag[page])
			memslot_mark_dirty(vcpu, memslots_find(vcpu->slots, page), page);
		tag[page] = true;
		atomic_store_explicit((_Atomic u32 *)(ram + page * PAGE_SIZE) + vcpu->id, n, memory_order_relaxed);
		if (!vcpu_has_requests(vcpu))
			continue;
		if (vcpu_check_request(vcpu, KVM_REQ_TLB_FLUSH))
			memset(tag, 0, sizeof(tag));
		vcpu_leave_guest_mode(vcpu);
		vcpu_enter_guest_mode(vcpu);
	}
	vcpu_leave_guest_mode(vcpu);
	return NULL;
}

static u32 *word_of(void *base, u32 page, u32 id)
{
	return (u32 *)((u8 *)base + page * PAGE_SIZE) + id;
}

static void copy_dirty(u8 *copy, bool manual)
{
	u64 bits = 0;

	assert_int_equal(get_log(0, &bits), 0);
	if (manual)
		assert_int_equal(clear_log(0, 0, 64, &bits), 0);
	for (u32 page = 0; page < 64; page++)
		for (u32 id = 0; id < 2 && (bits >> page & 1); id++)
			*word_of(copy, page, id) = __atomic_load_n(word_of(ram, page, id), __ATOMIC_RELAXED);
}

/* Live migration in small: after the last round the copy is the original. */
static void dirty_log_loses_nothing(void **state)
{
	u8 *copy = calloc(64, PAGE_SIZE);
	pthread_t thread[2];

	for (int round = 0; round < 40; round++) {
		bool manual = round & 1;

		vm->manual_dirty_log_protect = manual;
		assert_int_equal(slot(0, 0, 64, ram, KVM_MEM_LOG_DIRTY_PAGES), 0);
		atomic_store(&stop_running, false);
		for (u32 i = 0; i < 2; i++)
			pthread_create(&thread[i], NULL, store_thread, round ? vm->vcpus[i] : add_vcpu(i));
		for (int i = 0; i < 50; i++)
			copy_dirty(copy, manual);
		atomic_store(&stop_running, true);
		for (int i = 0; i < 2; i++)
			pthread_join(thread[i], NULL);
		copy_dirty(copy, manual);
		for (u32 page = 0; page < 64; page++)
			for (u32 id = 0; id < 2; id++)
				assert_int_equal(*word_of(copy, page, id), *word_of(ram, page, id));
	}
	free(copy);
}

static void *wait_thread(void *arg)
{
	struct vcpu *vcpu = arg;

	while (!vcpu_check_request(vcpu, KVM_REQ_EVENT))
		vcpu_wait(vcpu, ~0ull);
	return NULL;
}

static void kick_wakes(void **state)
{
	struct vcpu *vcpu = add_vcpu(0);
	u64 start = host_now_ns();

	vcpu_wait(vcpu, start + 5000000);
	assert_true(host_now_ns() - start >= 5000000);
	for (int i = 0; i < 200; i++) {
		pthread_t thread;

		pthread_create(&thread, NULL, wait_thread, vcpu);
		if (i & 1)
			usleep(200);
		vcpu_make_request(vcpu, KVM_REQ_EVENT);
		vcpu_kick(vcpu);
		pthread_join(thread, NULL);
	}
}

static void vcpu_ids(void **state)
{
	struct vcpu *vcpu;

	assert_int_equal(vcpu_create(vm, 4096, &vcpu), -EINVAL);
	for (u32 i = 0; i < 1024; i++)
		add_vcpu(4095 - i);
	assert_int_equal(vcpu_create(vm, 0, &vcpu), -EINVAL);
	assert_ptr_equal(vm_vcpu_by_id(vm, 4000), vm->vcpus[95]);
	assert_null(vm_vcpu_by_id(vm, 5));
}

/* ---- buses -------------------------------------------------------------------------------------------- */

static int ioevent(int fd, u64 addr, u32 len, u64 match, u32 flags)
{
	struct kvm_ioeventfd args = { .fd = fd, .addr = addr, .len = len, .datamatch = match, .flags = flags };

	return vm_ioeventfd(vm, &args);
}

static u64 drain(int fd)
{
	u64 count = 0;

	return read(fd, &count, 8) == 8 ? count : 0;
}

static void ioeventfds(void **state)
{
	const u32 match = KVM_IOEVENTFD_FLAG_DATAMATCH, pio = KVM_IOEVENTFD_FLAG_PIO,
		  off = KVM_IOEVENTFD_FLAG_DEASSIGN;
	int a = eventfd(0, EFD_NONBLOCK), b = eventfd(0, EFD_NONBLOCK);
	u32 data = 7;

	assert_int_equal(ioevent(-1, 0x1000, 4, 0, 0), -EBADF);
	assert_int_equal(ioevent(1, 0x1000, 4, 0, 0), -EINVAL);
	assert_int_equal(ioevent(a, 0x1000, 3, 0, 0), -EINVAL);
	assert_int_equal(ioevent(a, 0x1000, 0, 0, match), -EINVAL);
	assert_int_equal(ioevent(a, ~0ull, 4, 0, 0), -EINVAL);
	assert_int_equal(ioevent(a, 0x1000, 4, 7, match), 0);
	assert_int_equal(ioevent(b, 0x1000, 4, 8, match), 0);
	assert_int_equal(ioevent(b, 0x1000, 4, 8, match), -EEXIST);
	assert_int_equal(ioevent(b, 0x1000, 4, 0, 0), -EEXIST);
	assert_int_equal(ioevent(b, 0x1000, 0, 0, 0), -EEXIST);
	assert_int_equal(ioevent(b, 0x1000, 0, 0, pio), 0);
	assert_true(vm_mmio_write(vm, 0x1000, 4, &data));
	assert_true(drain(a) == 1 && drain(b) == 0);
	data = 8;
	assert_true(vm_mmio_write(vm, 0x1000, 4, &data));
	assert_true(drain(a) == 0 && drain(b) == 1);
	data = 9;
	assert_false(vm_mmio_write(vm, 0x1000, 4, &data));
	assert_false(vm_mmio_write(vm, 0x1000, 2, &data));
	assert_true(vm_pio_write(vm, 0x1000, 2, &data));
	assert_true(vm_pio_write(vm, 0x1000, 1, &data));
	assert_false(vm_pio_write(vm, 0x1001, 1, &data));
	assert_true(drain(b) == 2);
	assert_int_equal(ioevent(a, 0x1000, 4, 8, match | off), -ENOENT);
	assert_int_equal(ioevent(a, 0x1000, 4, 7, match | off), 0);
	data = 7;
	assert_false(vm_mmio_write(vm, 0x1000, 4, &data));
	close(a);
	close(b);
}

static void coalesced(void **state)
{
	struct kvm_coalesced_mmio_zone z = { .addr = 0xa0000, .size = 0x1000 }, bad = { .pio = 2 };
	struct kvm_coalesced_mmio_ring *ring;
	u32 data = 0x12345678;

	assert_int_equal(vm_register_coalesced(vm, &bad), -EINVAL);
	assert_int_equal(vm_register_coalesced(vm, &z), 0);
	ring = vm->coalesced_ring;
	assert_true(vm_mmio_write(vm, 0xa0ffc, 4, &data));
	assert_false(vm_mmio_write(vm, 0xa0ffd, 4, &data));
	assert_false(vm_mmio_write(vm, 0x9ffff, 4, &data));
	assert_int_equal(ring->last, 1);
	assert_int_equal(ring->coalesced_mmio[0].len, 4);
	assert_memory_equal(ring->coalesced_mmio[0].data, &data, 4);
	for (u32 i = 1; i < KVM_COALESCED_MMIO_MAX - 1; i++)
		assert_true(vm_mmio_write(vm, 0xa0000, 4, &data));
	assert_false(vm_mmio_write(vm, 0xa0000, 4, &data));
	ring->first = 5;
	assert_true(vm_mmio_write(vm, 0xa0000, 4, &data));
	ring->last = 0x80000000;
	assert_false(vm_mmio_write(vm, 0xa0000, 4, &data));
	ring->last = 0;
	assert_int_equal(vm_unregister_coalesced(vm, &z), 0);
	assert_false(vm_mmio_write(vm, 0xa0000, 4, &data));
	for (u32 i = 0; i < 1000; i++) {
		z.addr = i * 0x1000;
		assert_int_equal(vm_register_coalesced(vm, &z), 0);
	}
	assert_int_equal(vm_register_coalesced(vm, &z), -ENOSPC);
	z.pio = 1;
	assert_int_equal(vm_register_coalesced(vm, &z), 0);
	assert_true(vm_mmio_write(vm, 999 * 0x1000, 4, &data));
}

/* ---- interrupts ---------------------------------------------------------------------------------------- */

static int irqfd(int fd, u32 gsi, u32 flags, int resamplefd)
{
	struct kvm_irqfd args = { .fd = fd, .gsi = gsi, .flags = flags, .resamplefd = resamplefd };

	return vm_irqfd(vm, &args);
}

static struct kvm_irq_routing_entry msi_route(u32 gsi, u32 data)
{
	return (struct kvm_irq_routing_entry){
		.gsi = gsi, .type = KVM_IRQ_ROUTING_MSI, .u.msi.data = data,
	};
}

static bool wait_for(_Atomic u32 *word, u32 value)
{
	for (int i = 0; i < 2000 && atomic_load(word) != value; i++)
		usleep(500);
	return atomic_load(word) == value;
}

static void irqfds(void **state)
{
	struct kvm_irq_routing_entry e[2] = { msi_route(5, 55), msi_route(6, 66) };
	int a = eventfd(3, EFD_NONBLOCK), b = eventfd(0, EFD_NONBLOCK), dup_a = dup(a);
	u64 one = 1;

	atomic_store(&nr_msi, 0);
	assert_int_equal(vm_set_gsi_routing(vm, e, 2, 0), 0);
	has_irqchip = false;
	assert_int_equal(irqfd(a, 5, 0, 0), -EINVAL);
	has_irqchip = true;
	assert_int_equal(irqfd(a, 5, 8, 0), -EINVAL);
	assert_int_equal(irqfd(-1, 5, 0, 0), -EBADF);
	assert_int_equal(irqfd(a, 5, 0, 0), 0);		/* signalled already */
	assert_int_equal(irqfd(dup_a, 6, 0, 0), -EBUSY);
	assert_true(wait_for(&nr_msi, 1));
	assert_int_equal(atomic_load(&msi_data), 55);
	assert_int_equal(irqfd(b, 6, 0, 0), 0);
	assert_int_equal(write(b, &one, 8), 8);
	assert_true(wait_for(&nr_msi, 2));
	assert_int_equal(atomic_load(&msi_data), 66);
	close(a);	/* ours lives on */
	assert_int_equal(write(dup_a, &one, 8), 8);
	assert_true(wait_for(&nr_msi, 3));
	assert_int_equal(irqfd(b, 5, KVM_IRQFD_FLAG_DEASSIGN, 0), 0);	/* other GSI: nothing */
	assert_int_equal(irqfd(b, 6, KVM_IRQFD_FLAG_DEASSIGN, 0), 0);
	assert_int_equal(write(b, &one, 8), 8);
	usleep(3000);
	assert_int_equal(atomic_load(&nr_msi), 3);
	assert_int_equal(drain(b), 1);
	close(b);
	close(dup_a);
}

static void resample(void **state)
{
	int a = eventfd(0, EFD_NONBLOCK), r = eventfd(0, EFD_NONBLOCK);
	u64 one = 1;

	assert_int_equal(vm_set_default_routing(vm), 0);
	assert_false(vm_irq_has_notifier(vm, KVM_IRQCHIP_IOAPIC, 10));
	assert_int_equal(irqfd(a, 10, KVM_IRQFD_FLAG_RESAMPLE, r), 0);
	assert_true(vm_irq_has_notifier(vm, KVM_IRQCHIP_IOAPIC, 10));
	assert_true(vm_irq_has_notifier(vm, KVM_IRQCHIP_PIC_SLAVE, 2));
	assert_true(vm_irq_has_notifier(vm, KVM_IRQCHIP_PIC_SLAVE, 10));
	assert_false(vm_irq_has_notifier(vm, KVM_IRQCHIP_PIC_MASTER, 2));
	assert_int_equal(write(a, &one, 8), 8);
	for (int i = 0; i < 2000 && !line[10]; i++)
		usleep(500);
	assert_int_equal(line[10], 1);
	vm_notify_acked_irq(vm, KVM_IRQCHIP_IOAPIC, 10);
	assert_int_equal(line[10], 0);
	assert_int_equal(drain(r), 1);
	line[10] = 1;
	assert_int_equal(irqfd(a, 10, KVM_IRQFD_FLAG_DEASSIGN, 0), 0);
	assert_int_equal(line[10], 0);
	assert_false(vm_irq_has_notifier(vm, KVM_IRQCHIP_IOAPIC, 10));
	close(a);
	close(r);
}

static void routing(void **state)
{
	struct kvm_irq_routing_entry e[4] = { msi_route(4095, 1), msi_route(3, 2), msi_route(3, 3) };

	assert_int_equal(vm_set_gsi_routing(vm, e, 3, 0), -EINVAL);
	assert_int_equal(vm_set_gsi_routing(vm, e, 2, 1), -EINVAL);
	assert_int_equal(vm_set_gsi_routing(vm, e, 2, 0), 0);
	assert_int_equal(vm_set_irq(vm, 0, 4095, 1), 1);
	assert_int_equal(atomic_load(&msi_data), 1);
	assert_int_equal(vm_set_irq(vm, 0, 4095, 0), -1);
	assert_int_equal(vm_set_irq(vm, 0, 4096, 1), -1);
	assert_int_equal(vm_set_irq(vm, 0, ~0u, 1), -1);
	assert_int_equal(vm_set_irq(vm, 0, 7, 1), -1);
	e[0].gsi = 4096;
	assert_int_equal(vm_set_gsi_routing(vm, e, 1, 0), -EINVAL);
	e[0].gsi = 1;
	e[0].type = 9;
	assert_int_equal(vm_set_gsi_routing(vm, e, 1, 0), -EINVAL);
	e[0] = (struct kvm_irq_routing_entry){ .gsi = 2, .type = KVM_IRQ_ROUTING_IRQCHIP };
	e[1] = e[0];
	assert_int_equal(vm_set_gsi_routing(vm, e, 2, 0), -EINVAL);	/* twice the same chip */
	e[1].u.irqchip.irqchip = KVM_IRQCHIP_IOAPIC;
	assert_int_equal(vm_set_gsi_routing(vm, e, 2, 0), 0);
	assert_int_equal(vm_set_irq(vm, 0, 2, 1), 2);
	assert_int_equal(vm_set_gsi_routing(vm, NULL, 0, 0), 0);
	assert_int_equal(vm_set_irq(vm, 0, 2, 1), -1);
}

/* ---- statistics, MSR filter ----------------------------------------------------------------------------- */

static void stats(void **state)
{
	struct vcpu *vcpu = add_vcpu(3);
	struct kvm_stats_header h;
	char all[8192], one[8192];
	size_t n, done = 0, values = 0;

	vcpu->stat.exits = 42;
	n = vm_stats_read(vm, vcpu, all, sizeof(all), 0);
	memcpy(&h, all, sizeof(h));
	assert_int_equal(memcmp(all + h.id_offset, "kvm-", 4), 0);
	assert_non_null(strstr(all + h.id_offset, "/vcpu-3"));
	for (u32 i = 0; i < h.num_desc; i++)
		values += ((struct kvm_stats_desc *)(all + h.desc_offset + i * (sizeof(struct kvm_stats_desc) +
										h.name_size)))->size;
	assert_true(values > h.num_desc); /* a histogram has several */
	assert_int_equal(n, h.data_offset + values * 8);
	while (vm_stats_read(vm, vcpu, one + done, 5, done))
		done += min(n - done, (size_t)5);
	assert_int_equal(done, n);
	assert_memory_equal(all, one, n);
	assert_int_equal(vm_stats_read(vm, vcpu, one, 5, n), 0);
	for (u32 i = 0; i < h.num_desc; i++) {
		struct kvm_stats_desc *d = (void *)(all + h.desc_offset + i * (sizeof(*d) + h.name_size));

		if (!strcmp(d->name, "exits"))
			assert_int_equal(*(u64 *)(all + h.data_offset + d->offset), 42);
	}
}

static void msr_filters(void **state)
{
	u64 bits[2] = { 5, 0 };
	struct kvm_msr_filter f = { .flags = KVM_MSR_FILTER_DEFAULT_DENY };

	expect_faults();
	assert_true(msr_filter_allows(vm, 0x10, false));
	assert_int_equal(msr_filter_set(vm, &f), -EINVAL);
	f.ranges[3] = (struct kvm_msr_filter_range){
		.flags = KVM_MSR_FILTER_READ, .nmsrs = 70, .base = 0x100, .bitmap = (void *)bits,
	};
	assert_int_equal(msr_filter_set(vm, &f), 0);
	assert_true(msr_filter_allows(vm, 0x100, false));
	assert_false(msr_filter_allows(vm, 0x101, false));
	assert_true(msr_filter_allows(vm, 0x102, false));
	assert_false(msr_filter_allows(vm, 0x102, true));
	assert_false(msr_filter_allows(vm, 0xff, false));
	assert_true(msr_filter_allows(vm, 0x830, true));
	f.ranges[3].nmsrs = 0x600 * 8 + 1;
	assert_int_equal(msr_filter_set(vm, &f), -EINVAL);
	f.ranges[3].nmsrs = 64;
	f.ranges[3].flags = 0;
	assert_int_equal(msr_filter_set(vm, &f), -EINVAL);
	f.ranges[3].flags = 1;
	f.ranges[3].bitmap = NULL;
	assert_int_equal(msr_filter_set(vm, &f), -EFAULT);
	memset(&f, 0, sizeof(f));
	assert_int_equal(msr_filter_set(vm, &f), 0);
	assert_true(msr_filter_allows(vm, 0x101, true));
}

#define TEST(fn) cmocka_unit_test_setup_teardown(fn, setup, teardown)

int main(void)
{
	const struct CMUnitTest tests[] = {
		TEST(slot_rules), TEST(slot_random), TEST(guest_memory), TEST(dirty_log),
		TEST(dirty_log_manual), TEST(slots_change_under_vcpus),
		TEST(dirty_log_loses_nothing), TEST(kick_wakes),
		TEST(vcpu_ids), TEST(ioeventfds), TEST(coalesced), TEST(irqfds), TEST(resample),
		TEST(routing), TEST(stats), TEST(msr_filters),
	};

	host_signals_init();
	sigaction(SIGSEGV, NULL, &broker);
	return cmocka_run_group_tests(tests, NULL, NULL);
}

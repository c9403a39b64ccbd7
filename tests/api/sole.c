/* SPDX-License-Identifier: MIT */
/*
 * LOCK, which programs of a guest do without where nobody can tell (kvm/sole.c): that they do, that they no longer do as soon as somebody
 * could, by each of the conditions, and that the instructions mean the same, here, natively and where they fault.
 * The statistic dbt_unlocked counts instructions that were translated without LOCK.
 *
 * Seen to fail with each of these changes: a second vCPU does not end it, or its creation does not wait; a second VM does not, for the first
 * or for itself; a program's access to MMIO or a port does not, or its vCPU goes on with what it is in; ports that are denied do; shared memory, a window
 * without access rights, a hole or a guest_memfd in a slot pass, a read-only slot does not; shared mappings made later are not
 * counted, or only outside what was asked about; the dispatcher does not ask again after a turn, or with other slots; the mode key lacks the bit; code of any CPL is meant; fences
 * go (also AND $-1); AH is exchanged by moves; XCHG's store has no fault row, its register is written with another size, that in the frame
 * is not, or its upper half stays; the operand's second register is taken as the free one.
 */
#include <pthread.h>
#include <sched.h>
#include <stddef.h>
#include <stdatomic.h>

#define TABLES 0x100000u
#define TABLES_END 0x200000u

#include "both.h"
#include "rings.h"

/* Guest-physical, and at the same addresses for programs. */
#define CODE 0x400000u
#define CODE_SIZE 0x40000u
#define DATA 0x500000u		/* two pages; nothing after them... */
#define ABSENT (DATA + 0x2000)
#define READ_ONLY 0x510000u	/* ...a page that cannot be written */
#define STACK 0x600000u
#define LOW 0x800000u		/* a word that real mode reaches, too */
#define LOW_PA 0x2000u
#define MMIO_VA 0x700000u
#define MMIO_PA 0x80000000u
#define SLOT_AT 0x4000000u	/* of what tests add */
#define SLOT_SIZE 0x10000u
#define END_VECTOR 0x40
#define KERNEL_IST (STACK0 + 0x1000)

/* ---- the guest --------------------------------------------------------------------------------- */

static uint64_t root;
static uint64_t place;	/* of the next program */

static bool is_dbt(void)
{
	const char *engine = getenv("SOFTKVM_ENGINE");

	return kvmtest_softkvm() && engine && !strcmp(engine, "dbt");
}

static void make_tables(struct kvmtest *t)
{
	tables_used = 0;
	root = rings_root(t);
	rings_map(t, root, CODE, CODE, CODE_SIZE, 7);
	rings_map(t, root, DATA, DATA, 0x2000, 7);
	rings_map(t, root, READ_ONLY, READ_ONLY, 0x1000, 5);
	rings_map(t, root, STACK - 0x4000, STACK - 0x4000, 0x4000, 7);
	rings_map(t, root, LOW, LOW_PA, 0x1000, 7);
	rings_map(t, root, MMIO_VA, MMIO_PA, 0x1000, 7);
	rings_map(t, root, SLOT_AT, SLOT_AT, SLOT_SIZE, 7);
}

static void vcpu_state(struct kvmtest *t, unsigned cpl)
{
	struct kvm_sregs s;

	NEED(ioctl(t->vcpu, KVM_GET_SREGS, &s) == 0);
	rings_sregs(&s, cpl, root);
	s.cr0 = 0x80010033;
	s.cr4 = 0x620;
	NEED(ioctl(t->vcpu, KVM_SET_SREGS, &s) == 0);
}

static void add_vcpu(struct kvmtest *t, unsigned id)
{
	kvmtest_add_vcpu(t, id);
	kvmtest_set_cpuid(t);
}

static struct kvmtest open_guest_without_vcpu(void)
{
	struct kvmtest t = kvmtest_vm(MEM, 0);

	make_tables(&t);
	rings_descriptors(&t);
	*(uint64_t *)(t.mem + TSS + 36) = KBASE + KERNEL_IST; /* IST1 */
	memset(t.mem + KERNEL, 0xf4, 0x1000); /* HLT */
	for (unsigned v = 0; v < 32; v++)
		rings_gate(&t, v, KBASE + KERNEL + 16 * v, 3, 1);
	rings_gate(&t, END_VECTOR, KBASE + KERNEL + 16 * END_VECTOR, 3, 1);
	place = CODE;
	return t;
}

static struct kvmtest open_guest(void)
{
	struct kvmtest t = open_guest_without_vcpu();

	add_vcpu(&t, 0);
	return t;
}

/* Where it is. It ends with INT 0x40. */
static uint64_t put_program(struct kvmtest *t, const uint8_t *code, size_t len)
{
	uint64_t at = place;

	NEED(at + len + 2 <= CODE + CODE_SIZE);
	memcpy(t->mem + at, code, len);
	memcpy(t->mem + at + len, "\xcd\x40", 2);
	place = (at + len + 2 + 63) & ~63ull;
	return at;
}

static struct kvm_regs begin(uint64_t at)
{
	return (struct kvm_regs){ .rip = at, .rsp = STACK, .rflags = 0x3002, .rdi = DATA };
}

static void set_regs(struct kvmtest *t, unsigned cpl, const struct kvm_regs *r)
{
	vcpu_state(t, cpl);
	NEED(ioctl(t->vcpu, KVM_SET_REGS, r) == 0);
}

/* The vector it ended with. */
static unsigned go_on(struct kvmtest *t, struct kvm_regs *r)
{
	struct kvm_regs at_end;
	uint64_t *frame;

	NEED(ioctl(t->vcpu, KVM_RUN, 0) == 0);
	NEED(t->run->exit_reason == KVM_EXIT_HLT);
	NEED(ioctl(t->vcpu, KVM_GET_REGS, &at_end) == 0);
	frame = (uint64_t *)(t->mem + (at_end.rsp - KBASE));
	*r = at_end;
	r->rip = at_end.rip - 1 - KBASE - KERNEL;
	/* An error code, if there is one, is in front. */
	if ((r->rip / 16) == 14 || (r->rip / 16) == 13)
		frame++;
	r->rsp = frame[3];
	r->rflags = frame[2];
	return r->rip / 16;
}

static unsigned run(struct kvmtest *t, unsigned cpl, struct kvm_regs *r)
{
	set_regs(t, cpl, r);
	return go_on(t, r);
}

static long long unlocked(struct kvmtest *t)
{
	return kvmtest_stat(t->vm, "dbt_unlocked");
}

GUEST_CODE(two, "lock incl (%rdi); mov $7, %eax; xchg %eax, 8(%rdi)");

/* Does LOCK go when a program is executed for the first time? */
static bool dropped_at(struct kvmtest *t, unsigned cpl)
{
	struct kvm_regs r = begin(put_program(t, two, GUEST_LEN(two)));
	long long before = unlocked(t);
	uint32_t *data = (uint32_t *)(t->mem + DATA);

	data[0] = 5, data[2] = 9;
	CHECK_EQ(run(t, cpl, &r), END_VECTOR);
	CHECK_EQ(data[0], 6);
	CHECK_EQ(data[2], 7);
	CHECK_EQ(r.rax, 9);
	return unlocked(t) != before;
}

#define CHECK_DROPPED(t, want)                                          \
	do {                                                            \
		bool dropped = dropped_at(t, 3);                        \
		if (is_dbt())                                           \
			CHECK_EQ(dropped, want);                        \
	} while (0)

/* A slot for programs. size 0 takes it away. */
static void set_slot(struct kvmtest *t, unsigned slot, void *mem, size_t size, unsigned flags)
{
	struct kvm_userspace_memory_region region = {
		.slot = slot, .guest_phys_addr = SLOT_AT, .memory_size = size, .userspace_addr = (uintptr_t)mem, .flags = flags,
	};

	NEED(ioctl(t->vm, KVM_SET_USER_MEMORY_REGION, &region) == 0);
}

static void *map_slot(int prot, int flags)
{
	void *mem = mmap(NULL, SLOT_SIZE, prot, flags | MAP_ANONYMOUS, -1, 0);

	NEED(mem != MAP_FAILED);
	return mem;
}

/* ---- where nobody can tell --------------------------------------------------------------------- */

GUEST_CODE(fences, "lock orq $0, (%rsp); lock addl $0, -64(%rsp); lock orb $0, (%rdi); lock andw $-1, (%rdi); lock xorl $0, 8(%rdi)\n"
	   "lock subl $0, (%rdi); lock andq $-1, (%rdi); lock andl $0xffffffff, (%rdi); mfence");
GUEST_CODE(no_fences, "lock orq $1, (%rsp); lock addl $256, (%rdi); lock andb $0x7f, (%rdi); lock xadd %eax, (%rdi)");

static void where_nobody_can_tell(void)
{
	struct kvmtest t = open_guest();
	struct kvm_regs r;
	long long before;

	CHECK_DROPPED(&t, true);
	CHECK_DROPPED(&t, true);
	before = unlocked(&t);
	r = begin(put_program(&t, fences, GUEST_LEN(fences)));
	r.rsp -= 128;
	CHECK_EQ(run(&t, 3, &r), END_VECTOR);
	CHECK_EQ(unlocked(&t), before);
	r = begin(put_program(&t, no_fences, GUEST_LEN(no_fences)));
	r.rsp -= 128;
	CHECK_EQ(run(&t, 3, &r), END_VECTOR);
	if (is_dbt())
		CHECK(unlocked(&t) >= before + 4);
	kvmtest_done(&t);
}

static void kernels_keep_it(void)
{
	struct kvmtest t = open_guest();

	CHECK(!dropped_at(&t, 0));
	CHECK_DROPPED(&t, true);
	CHECK(!dropped_at(&t, 0));
	kvmtest_done(&t);
}

/* ---- several vCPUs, several VMs ------------------------------------------------------------------ */

/* Adds to (rdi) until (rsi), rcx times at most. rax: how often. */
GUEST_CODE(hot, "xor %eax, %eax; 1: lock incq (%rdi); inc %rax; cmpq $0, (%rsi); jne 2f; cmp %rcx, %rax; jne 1b; 2:");
#define STOP (DATA + 0x1000)

static cpu_set_t all_cpus;	/* of the process */

/* The thread on the n-th of the CPUs there are; -1: on all. Two that add to a word must not take turns on one. */
static void pin(int n)
{
	cpu_set_t set = all_cpus;

	if (CPU_COUNT(&all_cpus) < 2)
		return;
	for (int cpu = 0; cpu < CPU_SETSIZE && n >= 0; cpu++) {
		if (!CPU_ISSET(cpu, &all_cpus) || n--)
			continue;
		CPU_ZERO(&set);
		CPU_SET(cpu, &set);
	}
	NEED(sched_setaffinity(0, sizeof(set), &set) == 0);
}

struct runner {
	struct kvmtest *t;
	struct kvm_regs r;
	pthread_t thread;
};

static void *run_thread(void *arg)
{
	struct runner *x = arg;

	pin(1);
	CHECK_EQ(go_on(x->t, &x->r), END_VECTOR);
	return NULL;
}

static _Atomic uint64_t *word(struct kvmtest *t, uint64_t at)
{
	return (_Atomic uint64_t *)(t->mem + at);
}

#define MANY 3000000u

/* The other one adds in real mode: the interpreter asks nobody for anything. */
GUEST_CODE(real_mode, ".code16; mov $3000000, %ecx; 1: lock incl 0x2000; dec %ecx; jnz 1b; hlt; .code64");

static void add_in_real_mode(struct kvmtest *t)
{
	kvmtest_real_mode(t, 0x3000, real_mode, GUEST_LEN(real_mode));
	CHECK_EQ(ioctl(t->vcpu, KVM_RUN, 0), 0);
	CHECK_EQ(t->run->exit_reason, KVM_EXIT_HLT);
}

/* t's vCPU adds until it is told to stop. */
static void start_adding(struct runner *x, struct kvmtest *t)
{
	uint64_t at = put_program(t, hot, GUEST_LEN(hot));
	struct kvm_regs r = begin(at);

	/* Translated before. */
	r.rdi = LOW;
	r.rsi = STOP;
	r.rcx = 1000;
	CHECK_EQ(run(t, 3, &r), END_VECTOR);
	CHECK_EQ(r.rax, 1000);
	if (is_dbt())
		CHECK(unlocked(t) > 0);
	*word(t, LOW_PA) = 0;
	*word(t, STOP) = 0;
	x->t = t;
	x->r = begin(at);
	x->r.rdi = LOW;
	x->r.rsi = STOP;
	set_regs(t, 3, &x->r);
	NEED(pthread_create(&x->thread, NULL, run_thread, x) == 0);
	while (*word(t, LOW_PA) < 100000)
		;
}

/* Others have added MANY. */
static void end_adding(struct runner *x)
{
	*word(x->t, STOP) = 1;
	pthread_join(x->thread, NULL);
	CHECK_EQ(*word(x->t, LOW_PA), x->r.rax + MANY);
}

static void a_vcpu_more_while_one_runs(void)
{
	struct kvmtest t = open_guest(), second = t;
	struct runner x;

	start_adding(&x, &t);
	pin(0);
	add_vcpu(&second, 1);
	add_in_real_mode(&second);
	end_adding(&x);
	pin(-1);
	CHECK_DROPPED(&t, false);
	munmap(second.run, second.run_size);
	close(second.vcpu);
	kvmtest_done(&t);
}

/* By the thread that runs the first one, and without ever running. */
static void a_vcpu_more(void)
{
	struct kvmtest t = open_guest(), second = t;

	CHECK_DROPPED(&t, true);
	add_vcpu(&second, 1);
	CHECK_DROPPED(&t, false);
	CHECK_DROPPED(&second, false);
	munmap(second.run, second.run_size);
	close(second.vcpu);
	CHECK_DROPPED(&t, false);
	kvmtest_done(&t);
}

static void a_vm_more(void)
{
	struct kvmtest t = open_guest(), second;

	CHECK_DROPPED(&t, true);
	second = open_guest();
	place = CODE + CODE_SIZE / 2;
	CHECK_DROPPED(&second, false);
	CHECK_DROPPED(&t, false);
	kvmtest_done(&second);
	CHECK_DROPPED(&t, false);
	kvmtest_done(&t);
	t = open_guest();
	CHECK_DROPPED(&t, true);
	kvmtest_done(&t);
}

/* Two VMs on the same memory. */
static void a_vm_more_while_one_runs(void)
{
	struct kvmtest t = open_guest(), second = t;
	struct kvm_userspace_memory_region region = { .memory_size = MEM, .userspace_addr = (uintptr_t)t.mem };
	struct runner x;

	start_adding(&x, &t);
	pin(0);
	second.vm = ioctl(t.kvm, KVM_CREATE_VM, 0);
	NEED(second.vm >= 0);
	NEED(ioctl(second.vm, KVM_SET_USER_MEMORY_REGION, &region) == 0);
	add_vcpu(&second, 0);
	add_in_real_mode(&second);
	end_adding(&x);
	pin(-1);
	munmap(second.run, second.run_size);
	close(second.vcpu);
	close(second.vm);
	kvmtest_done(&t);
}

/* ---- memory ---------------------------------------------------------------------------------------- */

#define MORE 10000000u	/* long enough for the host to run both at once, whatever else it has to do */

struct adder {
	_Atomic uint64_t *at;
	_Atomic bool stop;
	uint64_t n;
	pthread_t thread;
};

static void *add_thread(void *arg)
{
	struct adder *a = arg;

	pin(1);
	do {
		atomic_fetch_add(a->at, 1);
		a->n++;
	} while (!atomic_load(&a->stop));
	return NULL;
}

/* The client and a program add to a word of the slot. */
static void add_both(struct kvmtest *t, void *mem)
{
	struct kvm_regs r = begin(put_program(t, hot, GUEST_LEN(hot)));
	struct adder a = { .at = mem };

	pin(0);
	*a.at = 0;
	*word(t, STOP) = 0;
	NEED(pthread_create(&a.thread, NULL, add_thread, &a) == 0);
	while (*a.at < 1000)
		;
	r.rdi = SLOT_AT;
	r.rsi = STOP;
	r.rcx = MORE;
	CHECK_EQ(run(t, 3, &r), END_VECTOR);
	atomic_store(&a.stop, true);
	pthread_join(a.thread, NULL);
	CHECK_EQ(*a.at, a.n + MORE);
	pin(-1);
}

static void shared_memory(void)
{
	struct kvmtest t = open_guest();
	void *shared = map_slot(PROT_READ | PROT_WRITE, MAP_SHARED), *private = map_slot(PROT_READ | PROT_WRITE, MAP_PRIVATE);

	CHECK_DROPPED(&t, true);
	set_slot(&t, 1, shared, SLOT_SIZE, 0);
	CHECK_DROPPED(&t, false);
	add_both(&t, shared);
	set_slot(&t, 1, shared, 0, 0);
	CHECK_DROPPED(&t, true);
	set_slot(&t, 1, private, SLOT_SIZE, 0);
	CHECK_DROPPED(&t, true);
	/* A page of it. */
	NEED(mmap((char *)private + 0x1000, 0x1000, PROT_READ | PROT_WRITE, MAP_SHARED | MAP_ANONYMOUS | MAP_FIXED, -1, 0) != MAP_FAILED);
	CHECK_DROPPED(&t, false);
	NEED(mmap((char *)private + 0x1000, 0x1000, PROT_READ | PROT_WRITE, MAP_PRIVATE | MAP_ANONYMOUS | MAP_FIXED, -1, 0) != MAP_FAILED);
	/* Looked at again with other slots. */
	set_slot(&t, 1, private, 0, 0);
	set_slot(&t, 1, private, SLOT_SIZE, 0);
	CHECK_DROPPED(&t, true);
	NEED(syscall(9 /* mmap */, (char *)private + 0x2000, 0x1000L, (long)(PROT_READ | PROT_WRITE),
		     (long)(MAP_SHARED | MAP_ANONYMOUS | MAP_FIXED), -1L, 0L) > 0);
	CHECK_DROPPED(&t, false);
	add_both(&t, (char *)private);
	kvmtest_done(&t);
	munmap(shared, SLOT_SIZE);
	munmap(private, SLOT_SIZE);
}

static void windows(void)
{
	struct kvmtest t = open_guest();
	void *window = map_slot(PROT_NONE, MAP_PRIVATE), *rom = map_slot(PROT_READ, MAP_PRIVATE);

	CHECK_DROPPED(&t, true);
	set_slot(&t, 1, window, SLOT_SIZE, 0);
	CHECK_DROPPED(&t, false);
	set_slot(&t, 1, window, 0, 0);
	set_slot(&t, 2, rom, SLOT_SIZE, KVM_MEM_READONLY);
	CHECK_DROPPED(&t, true);
	set_slot(&t, 2, rom, 0, 0);
	set_slot(&t, 1, rom, SLOT_SIZE, 0);
	CHECK_DROPPED(&t, false);
	set_slot(&t, 1, rom, 0, 0);
	/* Its second half is nobody's. */
	NEED(mprotect(rom, SLOT_SIZE, PROT_READ | PROT_WRITE) == 0);
	NEED(munmap((char *)rom + SLOT_SIZE / 2, SLOT_SIZE / 2) == 0);
	set_slot(&t, 1, rom, SLOT_SIZE, 0);
	CHECK_DROPPED(&t, false);
	kvmtest_done(&t);
	munmap(window, SLOT_SIZE);
	munmap(rom, SLOT_SIZE / 2);
}

#ifndef KVM_CREATE_GUEST_MEMFD
struct kvm_create_guest_memfd {
	uint64_t size, flags, reserved[6];
};
#define KVM_MEM_GUEST_MEMFD (1UL << 2)
struct kvm_userspace_memory_region2 {
	uint32_t slot, flags;
	uint64_t guest_phys_addr, memory_size, userspace_addr, guest_memfd_offset;
	uint32_t guest_memfd, pad1;
	uint64_t pad2[14];
};
#define KVM_SET_USER_MEMORY_REGION2 _IOW(KVMIO, 0x49, struct kvm_userspace_memory_region2)
#define KVM_CREATE_GUEST_MEMFD _IOWR(KVMIO, 0xd4, struct kvm_create_guest_memfd)
#endif
#define PROTECTED_VM 1

/* Who has its descriptor can map it. */
static void guest_memfd(void)
{
	struct kvmtest t = open_guest_without_vcpu();
	struct kvm_userspace_memory_region region = { .memory_size = MEM, .userspace_addr = (uintptr_t)t.mem };
	void *shared_part = map_slot(PROT_READ | PROT_WRITE, MAP_PRIVATE);
	struct kvm_userspace_memory_region2 slot = {
		.slot = 1, .guest_phys_addr = SLOT_AT, .memory_size = SLOT_SIZE, .userspace_addr = (uintptr_t)shared_part,
	};
	struct kvm_create_guest_memfd create = { .size = SLOT_SIZE };
	int fd;

	close(t.vm);
	t.vm = ioctl(t.kvm, KVM_CREATE_VM, PROTECTED_VM);
	if (t.vm < 0) {
		kvmtest_skipped++;
		return;
	}
	NEED(ioctl(t.vm, KVM_SET_USER_MEMORY_REGION, &region) == 0);
	add_vcpu(&t, 0);
	CHECK_DROPPED(&t, true);
	fd = ioctl(t.vm, KVM_CREATE_GUEST_MEMFD, &create);
	NEED(fd >= 0);
	slot.flags = KVM_MEM_GUEST_MEMFD;
	slot.guest_memfd = fd;
	NEED(ioctl(t.vm, KVM_SET_USER_MEMORY_REGION2, &slot) == 0);
	CHECK_DROPPED(&t, false);
	slot.memory_size = 0;
	slot.flags = 0;
	NEED(ioctl(t.vm, KVM_SET_USER_MEMORY_REGION2, &slot) == 0);
	CHECK_DROPPED(&t, true);
	close(fd);
	kvmtest_done(&t);
	munmap(shared_part, SLOT_SIZE);
}

/* ---- devices ----------------------------------------------------------------------------------------- */

GUEST_CODE(mmio_load, "mov 0x700000, %eax");
GUEST_CODE(mmio_store, "mov %eax, 0x700000");
GUEST_CODE(port_in, "in $0x10, %al");
GUEST_CODE(port_out, "out %al, $0x10");
GUEST_CODE(port_outs, "mov $0x10, %edx; mov $2, %ecx; mov %rdi, %rsi; rep outsb");

/* Until something happens. True: it has not ended. */
static bool run_to_exit(struct kvmtest *t)
{
	NEED(ioctl(t->vcpu, KVM_RUN, 0) == 0);
	return t->run->exit_reason != KVM_EXIT_HLT;
}

static void device(const uint8_t *code, size_t len)
{
	struct kvmtest t = open_guest();
	unsigned exits = 0;

	CHECK_DROPPED(&t, true);
	for (unsigned cpl = 0; cpl <= 3; cpl += 3) {
		struct kvm_regs r = begin(put_program(&t, code, len));

		set_regs(&t, cpl, &r);
		while (run_to_exit(&t))
			exits++;
		CHECK_DROPPED(&t, !cpl);
	}
	CHECK(exits >= 2);
	CHECK_DROPPED(&t, false);
	kvmtest_done(&t);
}

/* Nobody is asked, and the program goes on: with LOCK, as it shares its word with a thread of the client now. */
GUEST_CODE(store_and_add, "mov %eax, (%rbx); xor %eax, %eax; 1: lock incq (%rdi); inc %rax; cmp %rcx, %rax; jne 1b");

static void device_without_exit(void)
{
	struct kvmtest t = open_guest();
	struct kvm_coalesced_mmio_zone zone = { .addr = MMIO_PA, .size = 0x1000 };
	uint64_t at = put_program(&t, store_and_add, GUEST_LEN(store_and_add));
	struct adder a = { .at = word(&t, DATA) };
	struct kvm_regs r = begin(at);

	NEED(ioctl(t.vm, KVM_REGISTER_COALESCED_MMIO, &zone) == 0);
	r.rbx = DATA + 0x800;
	r.rcx = 1000;
	CHECK_EQ(run(&t, 3, &r), END_VECTOR);
	if (is_dbt())
		CHECK(unlocked(&t) > 0);
	pin(0);
	*a.at = 0;
	NEED(pthread_create(&a.thread, NULL, add_thread, &a) == 0);
	while (*a.at < 1000)
		;
	r = begin(at);
	r.rbx = MMIO_VA;
	r.rcx = MORE;
	CHECK_EQ(run(&t, 3, &r), END_VECTOR);
	atomic_store(&a.stop, true);
	pthread_join(a.thread, NULL);
	CHECK_EQ(*a.at, a.n + MORE);
	pin(-1);
	kvmtest_done(&t);
}

/* An access that does not come about. */
static void ports_denied(void)
{
	struct kvmtest t = open_guest();
	struct kvm_regs r = begin(put_program(&t, port_out, GUEST_LEN(port_out)));

	r.rflags = 2;
	*(uint16_t *)(t.mem + TSS + 102) = 0xffff; /* no bitmap */
	CHECK_DROPPED(&t, true);
	CHECK_EQ(run(&t, 3, &r), 13);
	CHECK_DROPPED(&t, true);
	kvmtest_done(&t);
}

static void devices(void)
{
	device(mmio_load, GUEST_LEN(mmio_load));
	device(mmio_store, GUEST_LEN(mmio_store));
	device(port_in, GUEST_LEN(port_in));
	device(port_out, GUEST_LEN(port_out));
	device(port_outs, GUEST_LEN(port_outs));
}

/* ---- what the instructions do ---------------------------------------------------------------------- */

/* Length, kind, bytes. ONE: a single instruction, whose operand is (%rdi), for writing. */
#define FORM(kind, text) ".byte 3f-2f, " #kind "\n2: " text "\n3:\n"
#define ONE(text) FORM(1, text)
#define SEQ(text) FORM(0, text)
#define LOCKED(op, b, w, l, q) ONE("lock " op "b " b "(%rdi)") ONE("lock " op "w " w "(%rdi)") ONE("lock " op "l " l "(%rdi)") \
	ONE("lock " op "q " q "(%rdi)")
#define LOCKED_ONE(op) LOCKED(op, "", "", "", "")
#define LOCKED_REG(op) LOCKED(op, "%al,", "%cx,", "%ebx,", "%rbp,") LOCKED(op, "%r9b,", "%r10w,", "%r11d,", "%r9,") \
	LOCKED(op, "%sil,", "%r8w,", "%r15d,", "%r12,")
#define LOCKED_ALU(op) LOCKED_REG(op) LOCKED(op, "$0x55,", "$0x1234,", "$0x12345678,", "$0x12345678,") LOCKED(op, "$-1,", "$-2,", "$-3,", "$-4,") \
	ONE("lock " op " %ah, (%rdi)")
#define LOCKED_BIT(op) ONE("lock " op "w $13, (%rdi)") ONE("lock " op "l $7, (%rdi)") ONE("lock " op "q $45, (%rdi)")
#define EXCHANGE(b, w, l, q) ONE("xchg " b ", (%rdi)") ONE("xchg " w ", (%rdi)") ONE("xchg " l ", (%rdi)") ONE("xchg " q ", (%rdi)")

extern const uint8_t forms[];
asm(".pushsection .rodata\nforms:\n"
	LOCKED_ALU("add") LOCKED_ALU("or") LOCKED_ALU("adc") LOCKED_ALU("sbb") LOCKED_ALU("and") LOCKED_ALU("sub") LOCKED_ALU("xor")
	LOCKED_ONE("inc") LOCKED_ONE("dec") LOCKED_ONE("neg") LOCKED_ONE("not")
	LOCKED_BIT("bts") LOCKED_BIT("btr") LOCKED_BIT("btc")
	LOCKED_REG("xadd") LOCKED_REG("cmpxchg")
	ONE("lock cmpxchg8b (%rdi)") ONE("lock cmpxchg16b (%rdi)")
	SEQ("mov (%rdi), %eax; mov 4(%rdi), %edx; lock cmpxchg8b (%rdi)")
	SEQ("mov (%rdi), %rax; lock cmpxchg %rcx, (%rdi); sete %dl")
	EXCHANGE("%al", "%ax", "%eax", "%rax") EXCHANGE("%cl", "%dx", "%ebx", "%rbp") EXCHANGE("%sil", "%si", "%esi", "%rsi")
	EXCHANGE("%bpl", "%bp", "%ebp", "%r13") EXCHANGE("%dil", "%di", "%edi", "%rdi") EXCHANGE("%r8b", "%r12w", "%r14d", "%r15")
	EXCHANGE("%r9b", "%r9w", "%r9d", "%r9") EXCHANGE("%r10b", "%r10w", "%r10d", "%r10") EXCHANGE("%r11b", "%r11w", "%r11d", "%r11")
	ONE("xchg %ah, (%rdi)") ONE("xchg %bh, (%rdi)") ONE("lock xchg %ecx, (%rdi)") ONE("lock xchg %r10, (%rdi)")
	SEQ("xchg %rsp, (%rdi); mov %rsp, %rax; xchg %rsp, (%rdi)")
	SEQ("push %rbx; xchg %rcx, (%rsp); pop %rbx") SEQ("push %rbx; xchg %r10, (%rsp); lock addq $3, (%rsp); pop %rbx")
	/* Registers in the frame, as addresses. */
	SEQ("mov %rdi, %r10; xchg %eax, (%r10)") SEQ("mov %rdi, %r10; xchg %r10, (%r10)") SEQ("mov %rdi, %r9; mov $0, %r11d; xchg %cl, (%r9,%r11)")
	SEQ("mov %rdi, %r9; mov $0, %r11d; xchg %r10, (%r9,%r11,2)") SEQ("mov $2, %ebx; lea -4(%rdi), %rcx; xchg %r9w, (%rcx,%rbx,2)")
	SEQ("mov $2, %ebx; lea -4(%rdi), %rcx; xchg %edx, (%rcx,%rbx,2)") SEQ("mov $2, %ebx; lea -4(%rdi), %rcx; xchg %rbx, (%rcx,%rbx,2)")
	SEQ("xchg %eax, (%edi)") SEQ("xchg %r11, 5(%edi)") SEQ("lock incl (%edi)")
	/* At constant addresses. */
	SEQ("xchg %eax, 0x500104; lock incl 0x500108; xchg %r9, 0x500110; xchg %cl, 0x500fff")
	/* Sharing a look-up, first, last and in between. */
	SEQ("xchg %eax, (%rdi); mov 8(%rdi), %rbx; xchg %r10, 16(%rdi); mov %r10, 24(%rdi); lock xadd %ecx, 8(%rdi); xchg %dl, 31(%rdi)")
	SEQ("mov 8(%rdi), %rbx; add %rbx, %rcx; xchg %rcx, 8(%rdi); adc $0, %rdx; lock sbb %edx, 4(%rdi); xchg %r9d, (%rdi); setc %al")
	/* Flags pass by. */
	SEQ("cmp %rax, %rcx; xchg %ebx, (%rdi); setb %dl; xchg %r9, 8(%rdi); adc $0, %rbp")
	SEQ("mov $9, %ecx; 9: lock incl (%rdi); xchg %eax, 4(%rdi); lock add %eax, 8(%rdi); add $3, %rdi; dec %ecx; jnz 9b")
	".byte 0\n.popsection");

/* rax rcx rdx rbx (rsp) rbp rsi rdi r8 to r15, flags */
void native_run(uint64_t *regs, const void *code);
asm(".pushsection .text\nnative_run:\n"
	"push %rbx; push %rbp; push %r12; push %r13; push %r14; push %r15; push %rdi; push %rsi; mov %rdi, %rax\n"
	"pushq 128(%rax); popfq; mov 8(%rax), %rcx; mov 16(%rax), %rdx; mov 24(%rax), %rbx; mov 40(%rax), %rbp\n"
	"mov 48(%rax), %rsi; mov 56(%rax), %rdi; mov 64(%rax), %r8; mov 72(%rax), %r9; mov 80(%rax), %r10; mov 88(%rax), %r11\n"
	"mov 96(%rax), %r12; mov 104(%rax), %r13; mov 112(%rax), %r14; mov 120(%rax), %r15; mov (%rax), %rax; call *(%rsp)\n"
	"push %rax; pushfq; mov 24(%rsp), %rax; mov %rcx, 8(%rax); mov %rdx, 16(%rax); mov %rbx, 24(%rax); mov %rbp, 40(%rax)\n"
	"mov %rsi, 48(%rax); mov %rdi, 56(%rax); mov %r8, 64(%rax); mov %r9, 72(%rax); mov %r10, 80(%rax); mov %r11, 88(%rax)\n"
	"mov %r12, 96(%rax); mov %r13, 104(%rax); mov %r14, 112(%rax); mov %r15, 120(%rax); popq 128(%rax); popq (%rax)\n"
	"add $16, %rsp; pop %r15; pop %r14; pop %r13; pop %r12; pop %rbp; pop %rbx; ret\n.popsection");

/* First, so that no form is the first to look for its page: pages are found by what is executed itself. */
GUEST_CODE(warm, "push %rax; mov 0x500000, %al; mov %al, 0x500000; mov 0x501000, %al; mov %al, 0x501000; pop %rax; jmp 1f; 1:");

static uint64_t put_form(struct kvmtest *t, const uint8_t *form)
{
	uint8_t code[256];

	NEED(GUEST_LEN(warm) + form[0] <= sizeof(code));
	memcpy(code, warm, GUEST_LEN(warm));
	memcpy(code + GUEST_LEN(warm), form + 2, form[0]);
	return put_program(t, code, GUEST_LEN(warm) + form[0]);
}

#define FLAGS 0x8d5u

static void to_array(uint64_t *a, const struct kvm_regs *r)
{
	const uint64_t all[] = { r->rax, r->rcx, r->rdx, r->rbx, 0, r->rbp, r->rsi, r->rdi, r->r8, r->r9, r->r10, r->r11, r->r12, r->r13,
				 r->r14, r->r15, (r->rflags & FLAGS) | 2 };

	memcpy(a, all, sizeof(all));
}

static struct kvm_regs some_regs(uint64_t at, uint64_t operand, unsigned n)
{
	return (struct kvm_regs){
		.rax = 0x1122334455667788, .rcx = 0x99aabbccddeeff01, .rdx = 0x0123456789abcdef, .rbx = 0x8000000000000001, .rbp = 0x77777777fffffffe,
		.rsi = 0xa5a5a5a55a5a5a5a, .rdi = operand, .r8 = 0x8888, .r9 = 0x9999999999999999, .r10 = 0x1010101010101010,
		.r11 = 0xfefefefefefefefe, .r12 = 12, .r13 = 0x1313131313131313, .r14 = ~0ull, .r15 = 0x1515151515151515,
		.rip = at, .rsp = STACK - 256, .rflags = 0x3002 | (n & 1 ? FLAGS : 0),
	};
}

static uint8_t *native_data, *native_code;	/* the former where the guest has it */

static void fill(uint8_t *at)
{
	for (unsigned i = 0; i < 0x2000; i++)
		at[i] = i * 7 + (i >> 8) * 31;
}

static void complain(const uint8_t *form, uint64_t operand, const char *what, uint64_t got, uint64_t want)
{
	kvmtest_failed++;
	printf("FAIL: form");
	for (unsigned i = 0; i < form[0]; i++)
		printf(" %02x", form[2 + i]);
	printf(" at 0x%llx: %s is 0x%llx, not 0x%llx\n", (unsigned long long)operand, what, (unsigned long long)got, (unsigned long long)want);
}

static void compare(const uint8_t *form, uint64_t operand, const struct kvm_regs *r, const uint64_t *want, struct kvmtest *t)
{
	uint64_t got[17];
	char name[8];

	to_array(got, r);
	for (unsigned i = 0; i < 17; i++) {
		snprintf(name, sizeof(name), i < 16 ? "r%u" : "flags", i);
		if (i != 4 && got[i] != want[i]) {
			complain(form, operand, name, got[i], want[i]);
			return;
		}
	}
	for (unsigned i = 0; i < 0x2000; i++) {
		if (t->mem[DATA + i] != native_data[i]) {
			complain(form, operand, "memory", t->mem[DATA + i], native_data[i]);
			return;
		}
	}
	kvmtest_passed++;
}

static bool needs_alignment(const uint8_t *form)
{
	return form[0] == 5 && form[3] == 0x48 && form[4] == 0x0f && form[5] == 0xc7; /* lock cmpxchg16b */
}

static void as_natively(struct kvmtest *t, const uint8_t *form, uint64_t at, uint64_t operand, unsigned n)
{
	struct kvm_regs r = some_regs(at, operand, n);
	uint64_t want[17];

	to_array(want, &r);
	memcpy(native_code, form + 2, form[0]);
	native_code[form[0]] = 0xc3;
	fill(native_data);
	native_run(want, native_code);
	want[16] = (want[16] & FLAGS) | 2;
	fill(t->mem + DATA);
	CHECK_EQ(run(t, 3, &r), END_VECTOR);
	compare(form, operand, &r, want, t);
	CHECK_EQ(r.rsp, STACK - 256);
}

/* #PF, and nothing else has happened. */
static void faults(struct kvmtest *t, const uint8_t *form, uint64_t at, uint64_t operand, uint64_t cr2, unsigned error)
{
	struct kvm_regs r = some_regs(at, operand, 0);
	struct kvm_sregs s;
	uint64_t want[17];
	const uint64_t *frame = (uint64_t *)(t->mem + KERNEL_IST - 48);

	to_array(want, &r);
	fill(native_data);
	fill(t->mem + DATA);
	CHECK_EQ(run(t, 3, &r), 14);
	r.rflags = 0x3002;
	compare(form, operand, &r, want, t);
	NEED(ioctl(t->vcpu, KVM_GET_SREGS, &s) == 0);
	CHECK_EQ(s.cr2, cr2);
	CHECK_EQ(frame[0], error);
	CHECK_EQ(frame[1], at + GUEST_LEN(warm));
}

static void all_forms(void)
{
	static const unsigned operands[] = { 0x100, 0x101, 0x200, 0x1000 - 1, 0x1000 - 2, 0x1000 - 3, 0x1000 - 5, 0x1000 - 7, 0x1000 - 12 };
	struct kvmtest t = open_guest();
	unsigned n = 0;

	native_data = mmap((void *)(uintptr_t)DATA, 0x2000, PROT_READ | PROT_WRITE, MAP_PRIVATE | MAP_ANONYMOUS | MAP_FIXED_NOREPLACE, -1, 0);
	NEED(native_data == (void *)(uintptr_t)DATA);
	native_code = mmap(NULL, 0x1000, PROT_READ | PROT_WRITE | PROT_EXEC, MAP_PRIVATE | MAP_ANONYMOUS, -1, 0);
	NEED(native_code != MAP_FAILED);
	for (const uint8_t *form = forms; *form; form += form[0] + 2) {
		uint64_t at = put_form(&t, form);
		bool aligned = needs_alignment(form);

		for (unsigned i = 0; i < sizeof(operands) / sizeof(operands[0]); i++)
			if (!aligned || operands[i] % 16 == 0)
				as_natively(&t, form, at, DATA + operands[i], n++);
		if (!form[1])
			continue;
		faults(&t, form, at, ABSENT, ABSENT, 6);
		faults(&t, form, at, READ_ONLY, READ_ONLY, 7);
	}
	if (is_dbt())
		CHECK(unlocked(&t) > 200);
	munmap(native_data, 0x2000);
	munmap(native_code, 0x1000);
	kvmtest_done(&t);
}

/* ---- 32-bit programs ----------------------------------------------------------------------------------- */

/* Its data is at edi, its registers are what this says. */
GUEST_CODE(program32, ".code32; mov $0x11223344, %eax; mov $0x55667788, %ecx; mov $0x99aabbcc, %edx; mov $0xddeeff00, %ebx\n"
	   "mov (%edi), %esi; mov %esi, (%edi); jmp 1f\n"
	   "1: lock incl (%edi); xchg %eax, 4(%edi); xchg %cl, 8(%edi); xchg %dh, 9(%edi); xchg %bx, 10(%edi)\n"
	   "lock add %ecx, 12(%edi); lock xadd %edx, 16(%edi); lock incw 0x500014; xchg %ebp, 0x500018\n"
	   "2: lock decl 28(%edi); jnz 2b; .code64");

static void in_32_bits(void)
{
	static const uint32_t before[] = { 1, 2, 0x06050403, 0x10, 0x20, 0xffff, 7, 5 };
	static const uint32_t after[] = { 2, 0x11223344, 0xff00bb88, 0x55667713, 0x99aa04ec, 0, 0x12345678, 0 };
	struct kvmtest t = open_guest();
	struct kvm_regs r = begin(put_program(&t, program32, GUEST_LEN(program32)));
	struct kvm_sregs s;

	memcpy(t.mem + DATA, before, sizeof(before));
	r.rbp = 0x12345678;
	set_regs(&t, 3, &r);
	NEED(ioctl(t.vcpu, KVM_GET_SREGS, &s) == 0);
	s.cs.l = 0;
	s.cs.db = 1;
	NEED(ioctl(t.vcpu, KVM_SET_SREGS, &s) == 0);
	CHECK_EQ(go_on(&t, &r), END_VECTOR);
	for (unsigned i = 0; i < sizeof(after) / sizeof(after[0]); i++)
		CHECK_EQ(*(uint32_t *)(t.mem + DATA + 4 * i), after[i]);
	CHECK_EQ(r.rax, 2);
	CHECK_EQ(r.rcx, 0x55667703);
	CHECK_EQ(r.rdx, 0x20);
	CHECK_EQ(r.rbx, 0xddee0605);
	CHECK_EQ(r.rbp, 7);
	if (is_dbt())
		CHECK(unlocked(&t) >= 8);
	kvmtest_done(&t);
}

/* The client's memory cannot be written for a while: nothing happens before it can. */
GUEST_CODE(exchange, "mov 0x500000, %bl; mov %bl, 0x500000; int $0x41\n"
	   "exchange_1: xchg %eax, (%rdi)\n"
	   "mov 0x500000, %bl; mov %bl, 0x500000; int $0x41\n"
	   "exchange_2: xchg %r10, (%rdi)");
extern const uint8_t exchange_1[], exchange_2[];

static void stop_writing(struct kvmtest *t, struct kvm_regs *r, uint64_t want_rip)
{
	const uint64_t *data = (uint64_t *)(t->mem + DATA);
	uint64_t was;

	NEED(ioctl(t->vcpu, KVM_RUN, 0) == 0);
	NEED(t->run->exit_reason == KVM_EXIT_HLT);
	was = *data;
	NEED(mprotect(t->mem + DATA, 0x1000, PROT_READ) == 0);
	CHECK_ERRNO(ioctl(t->vcpu, KVM_RUN, 0), EFAULT);
	NEED(ioctl(t->vcpu, KVM_GET_REGS, r) == 0);
	CHECK_EQ(r->rip, want_rip);
	CHECK_EQ(*data, was);
	NEED(mprotect(t->mem + DATA, 0x1000, PROT_READ | PROT_WRITE) == 0);
}

static void host_fault(void)
{
	struct kvmtest t = open_guest();
	uint64_t at = put_program(&t, exchange, GUEST_LEN(exchange)), *data = (uint64_t *)(t.mem + DATA);
	struct kvm_regs r = begin(at);

	/* On from there. */
	memcpy(t.mem + KERNEL + 16 * (END_VECTOR + 1), "\xf4\x48\xcf", 3);
	rings_gate(&t, END_VECTOR + 1, KBASE + KERNEL + 16 * (END_VECTOR + 1), 3, 1);
	r.rax = 1, r.r10 = 2;
	*data = 10;
	set_regs(&t, 3, &r);
	stop_writing(&t, &r, at + (exchange_1 - exchange));
	CHECK_EQ(r.rax, 1);
	stop_writing(&t, &r, at + (exchange_2 - exchange));
	CHECK_EQ(r.rax, 10);
	CHECK_EQ(r.r10, 2);
	CHECK_EQ(go_on(&t, &r), END_VECTOR);
	CHECK_EQ(r.rax, 10);
	CHECK_EQ(r.r10, 1);
	CHECK_EQ(*data, 2);
	kvmtest_done(&t);
}

static void all(void)
{
	const char *unlock = getenv("SOFTKVM_DBT_UNLOCK");

	NEED(sched_getaffinity(0, sizeof(all_cpus), &all_cpus) == 0);
	if (unlock && !strcmp(unlock, "0")) {
		struct kvmtest t = open_guest();

		CHECK_DROPPED(&t, false);
		kvmtest_done(&t);
		return;
	}
	where_nobody_can_tell();
	kernels_keep_it();
	a_vcpu_more();
	a_vcpu_more_while_one_runs();
	a_vm_more();
	a_vm_more_while_one_runs();
	shared_memory();
	windows();
	guest_memfd();
	devices();
	device_without_exit();
	ports_denied();
	all_forms();
	in_32_bits();
	host_fault();
}

int main(int argc, char **argv)
{
	(void)argc;
	/* Once more, asked to keep them all. */
	if (!getenv("SOFTKVM_ENGINE") && !getenv("SOFTKVM_DBT_UNLOCK")) {
		setenv("SOFTKVM_DBT_UNLOCK", "0", 1);
		both_one(argv[0], "dbt");
		unsetenv("SOFTKVM_DBT_UNLOCK");
	}
	return both_engines(argv[0], all);
}

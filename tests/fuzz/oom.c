/* SPDX-License-Identifier: MIT */
/*
 * Every allocation of the library fails once: heap, mappings, memory files, threads,
 * eventfds. A scenario of a few dozen calls runs with the n-th allocation failing, for every n.
 * The call it hits may fail, but says so with an errno that fits, and works when it is made
 * again; the rest of the scenario works; nothing leaks a descriptor; nobody dies.
 */
#include "fuzz.h"

#include <sys/eventfd.h>

#include "oom.h"

#define RAM_SIZE (1 << 20)

/* ---- failing the n-th ------------------------------------------------------------------ */

static _Atomic long countdown;	/* 0: not armed */
static _Atomic bool failed;
static _Atomic unsigned allocations;

static bool fail_now(void)
{
	allocations++;
	if (!countdown || --countdown)
		return false;
	failed = true;
	return true;
}

void *__real_malloc(size_t size);
void *__real_calloc(size_t n, size_t size);
void *__real_realloc(void *p, size_t size);
void *__real_aligned_alloc(size_t align, size_t size);
void *__real_mmap(void *addr, size_t len, int prot, int flags, int fd, off_t off);
int __real_pthread_create(pthread_t *t, const pthread_attr_t *attr, void *(*fn)(void *), void *arg);
int __real_eventfd(unsigned count, int flags);

void *__wrap_malloc(size_t size)
{
	if (fail_now()) {
		errno = ENOMEM;
		return NULL;
	}
	return __real_malloc(size);
}

void *__wrap_calloc(size_t n, size_t size)
{
	if (fail_now()) {
		errno = ENOMEM;
		return NULL;
	}
	return __real_calloc(n, size);
}

void *__wrap_realloc(void *p, size_t size)
{
	if (fail_now()) {
		errno = ENOMEM;
		return NULL;
	}
	return __real_realloc(p, size);
}

void *__wrap_aligned_alloc(size_t align, size_t size)
{
	if (fail_now()) {
		errno = ENOMEM;
		return NULL;
	}
	return __real_aligned_alloc(align, size);
}

void *__wrap_mmap(void *addr, size_t len, int prot, int flags, int fd, off_t off)
{
	if (fail_now()) {
		errno = ENOMEM;
		return MAP_FAILED;
	}
	return __real_mmap(addr, len, prot, flags, fd, off);
}

int __wrap_pthread_create(pthread_t *t, const pthread_attr_t *attr, void *(*fn)(void *), void *arg)
{
	return fail_now() ? EAGAIN : __real_pthread_create(t, attr, fn, arg);
}

int __wrap_eventfd(unsigned count, int flags)
{
	if (fail_now()) {
		errno = EMFILE;
		return -1;
	}
	return __real_eventfd(count, flags);
}

/* The library's raw system calls (oom.h sends them here). */
long oom_syscall(long nr)
{
	if (nr != SYS_mmap && nr != SYS_memfd_create && nr != SYS_eventfd2)
		return 0;
	return fail_now() ? nr == SYS_mmap ? -ENOMEM : -EMFILE : 0;
}

/* ---- the scenario -------------------------------------------------------------------------- */

static bool errno_fits(int e)
{
	return e == ENOMEM || e == EMFILE || e == ENFILE || e == EAGAIN;
}

/* A call that may be the one that fails; made again it works. */
#define STEP(expr)                                                              \
	({                                                                      \
		long step_r;                                                    \
		bool step_before = failed;                                      \
		errno = 0;                                                      \
		step_r = (long)(expr);                                          \
		if (step_r == -1 && failed && !step_before) {                   \
			FUZZ_CHECK(errno_fits(errno), "%s", #expr);             \
			errno = 0;                                              \
			step_r = (long)(expr);                                  \
		}                                                               \
		FUZZ_CHECK(step_r != -1, "%s", #expr);                          \
		step_r;                                                         \
	})
#define IOCTL(fd, cmd, arg) STEP(softkvm_ioctl((fd), (cmd), (unsigned long)(arg)))

static uint8_t *ram;

/* Makes the engine allocate what it allocates at first use. */
static const uint8_t guest_code[] = {
	0xb8, 0x00, 0x20, 0x8e, 0xd8,	/* mov $0x2000, %ax; mov %ax, %ds */
	0xa2, 0x00, 0x10,		/* mov %al, 0x1000 */
	0xd9, 0xe8, 0xd9, 0xee,		/* fld1; fldz */
	0xdb, 0xe3,			/* fninit */
	0xe6, 0x99,			/* out %al, $0x99 */
	0xf4,
};

static void run_vcpu(int vcpu, struct kvm_run *run)
{
	struct kvm_regs regs = { .rip = 0x8000, .rsp = 0x7000, .rflags = 2 };
	struct kvm_sregs s;

	IOCTL(vcpu, KVM_GET_SREGS, &s);
	s.cs.base = s.cs.selector = 0;
	IOCTL(vcpu, KVM_SET_SREGS, &s);
	IOCTL(vcpu, KVM_SET_REGS, &regs);
	memcpy(ram + 0x8000, guest_code, sizeof(guest_code));
	for (unsigned i = 0; i < 4; i++) {
		IOCTL(vcpu, KVM_RUN, 0);
		if (run->exit_reason != KVM_EXIT_IO)
			break;
	}
	FUZZ_CHECK(run->exit_reason == KVM_EXIT_HLT, "exit %u", run->exit_reason);
}

static void eventfds(int vm)
{
	int e = eventfd(0, EFD_NONBLOCK | EFD_CLOEXEC), e2;
	struct kvm_irqfd irq = { .gsi = 4 };
	struct kvm_ioeventfd io = { .addr = 0x30000000, .len = 4 };
	struct kvm_coalesced_mmio_zone zone = { .addr = 0x21000, .size = 0x1000 };
	uint64_t one = 1;

	if (e < 0)
		e = eventfd(0, EFD_NONBLOCK | EFD_CLOEXEC);
	e2 = eventfd(0, EFD_NONBLOCK | EFD_CLOEXEC);
	if (e2 < 0)
		e2 = eventfd(0, EFD_NONBLOCK | EFD_CLOEXEC);
	irq.fd = e;
	IOCTL(vm, KVM_IRQFD, &irq);
	FUZZ_CHECK(write(e, &one, 8) == 8, "eventfd");
	io.fd = e2;
	IOCTL(vm, KVM_IOEVENTFD, &io);
	IOCTL(vm, KVM_REGISTER_COALESCED_MMIO, &zone);
	irq.flags = KVM_IRQFD_FLAG_DEASSIGN;
	IOCTL(vm, KVM_IRQFD, &irq);
	io.flags = KVM_IOEVENTFD_FLAG_DEASSIGN;
	IOCTL(vm, KVM_IOEVENTFD, &io);
	IOCTL(vm, KVM_UNREGISTER_COALESCED_MMIO, &zone);
	close(e);
	close(e2);
}

static void routing(int vm)
{
	struct { uint32_t nr, flags; struct kvm_irq_routing_entry e[2]; } r = { /* struct kvm_irq_routing */
		.nr = 2,
		.e = { { .gsi = 0, .type = KVM_IRQ_ROUTING_IRQCHIP, .u.irqchip = { 2, 2 } },
		       { .gsi = 5, .type = KVM_IRQ_ROUTING_MSI, .u.msi = { .address_lo = 0xfee00000, .data = 0x40 } } },
	};
	struct kvm_enable_cap cap = { .cap = KVM_CAP_X86_USER_SPACE_MSR, .args = { KVM_MSR_EXIT_REASON_FILTER } };
	uint64_t bits[4] = { 0 };
	struct kvm_msr_filter filter = {
		.ranges[0] = { .flags = KVM_MSR_FILTER_READ, .base = 0xc0000200, .nmsrs = 64, .bitmap = (void *)bits },
	};

	IOCTL(vm, KVM_SET_GSI_ROUTING, &r);
	IOCTL(vm, KVM_ENABLE_CAP, &cap);
	IOCTL(vm, KVM_X86_SET_MSR_FILTER, &filter);
}

static void dirty_log(int vm, struct kvm_userspace_memory_region *m)
{
	static uint64_t bitmap[RAM_SIZE / 4096 / 64 + 1];
	struct kvm_dirty_log log = { .dirty_bitmap = bitmap };
	struct kvm_clear_dirty_log clear = { .num_pages = 64, .dirty_bitmap = bitmap };
	struct kvm_enable_cap cap = { .cap = KVM_CAP_MANUAL_DIRTY_LOG_PROTECT2, .args = { 1 } };

	IOCTL(vm, KVM_ENABLE_CAP, &cap);
	m->flags = KVM_MEM_LOG_DIRTY_PAGES;
	IOCTL(vm, KVM_SET_USER_MEMORY_REGION, m);
	IOCTL(vm, KVM_GET_DIRTY_LOG, &log);
	IOCTL(vm, KVM_CLEAR_DIRTY_LOG, &clear);
}

static void timers(int vm, int vcpu)
{
	struct kvm_pit_config pit = { 0 };
	struct kvm_pit_state2 p = { .channels[0] = { .count = 1000, .mode = 2, .gate = 1, .rw_mode = 3 } };
	struct kvm_lapic_state l;

	IOCTL(vm, KVM_CREATE_PIT2, &pit);
	IOCTL(vm, KVM_SET_PIT2, &p);
	IOCTL(vcpu, KVM_GET_LAPIC, &l);
	IOCTL(vcpu, KVM_SET_LAPIC, &l);
}

static void scenario(void)
{
	struct kvm_userspace_memory_region m = { .memory_size = RAM_SIZE, .userspace_addr = (uintptr_t)ram };
	struct kvm_cpuid2 *cpuid = __real_calloc(1, sizeof(*cpuid) + 200 * sizeof(struct kvm_cpuid_entry2));
	int kvm = STEP(softkvm_open(O_RDWR | O_CLOEXEC)), vm = IOCTL(kvm, KVM_CREATE_VM, 0), vcpu, second, stats;
	size_t run_size = IOCTL(kvm, KVM_GET_VCPU_MMAP_SIZE, 0);
	struct kvm_run *run;

	IOCTL(vm, KVM_SET_USER_MEMORY_REGION, &m);
	IOCTL(vm, KVM_CREATE_IRQCHIP, 0);
	vcpu = IOCTL(vm, KVM_CREATE_VCPU, 0);
	second = IOCTL(vm, KVM_CREATE_VCPU, 3);
	run = (void *)STEP(softkvm_mmap(NULL, run_size, PROT_READ | PROT_WRITE, MAP_SHARED, vcpu, 0));
	cpuid->nent = 200;
	IOCTL(kvm, KVM_GET_SUPPORTED_CPUID, cpuid);
	IOCTL(vcpu, KVM_SET_CPUID2, cpuid);
	free(cpuid);
	timers(vm, vcpu);
	routing(vm);
	eventfds(vm);
	dirty_log(vm, &m);
	stats = IOCTL(vcpu, KVM_GET_STATS_FD, 0);
	softkvm_close(stats);
	/* With the irqchip in the library a HLT would wait: run in a VM without. */
	softkvm_close(second);
	munmap(run, run_size);
	softkvm_close(vcpu);
	softkvm_close(vm);
	vm = IOCTL(kvm, KVM_CREATE_VM, 0);
	m.flags = 0;
	IOCTL(vm, KVM_SET_USER_MEMORY_REGION, &m);
	vcpu = IOCTL(vm, KVM_CREATE_VCPU, 0);
	run = (void *)STEP(softkvm_mmap(NULL, run_size, PROT_READ | PROT_WRITE, MAP_SHARED, vcpu, 0));
	run_vcpu(vcpu, run);
	munmap(run, run_size);
	softkvm_close(vcpu);
	softkvm_close(vm);
	softkvm_close(kvm);
}

static unsigned open_fds(void)
{
	unsigned n = 0;

	for (int fd = 0; fd < 256; fd++)
		n += fcntl(fd, F_GETFD) >= 0;
	return n;
}

static bool reached;

static void batch(uint64_t n)
{
	unsigned before = open_fds(), after;

	snprintf(shared->where, sizeof(shared->where), "allocation %llu fails", (unsigned long long)n);
	ram = __real_mmap(NULL, RAM_SIZE, PROT_READ | PROT_WRITE, MAP_PRIVATE | MAP_ANONYMOUS, -1, 0);
	countdown = n;
	scenario();
	countdown = 0;
	if (failed)
		shared->cases++;
	after = open_fds();
	FUZZ_CHECK(after == before, "%u descriptors before, %u after", before, after);
	/* And once more, with nothing failing. */
	failed = false;
	scenario();
	shared->runs++;
}

int main(void)
{
	const char *one = getenv("FUZZ_SEED");
	unsigned failures = 0, n;

	shared = mmap(NULL, sizeof(*shared), PROT_READ | PROT_WRITE, MAP_SHARED | MAP_ANONYMOUS, -1, 0);
	if (shared == MAP_FAILED)
		return 1;
	reached = true;
	for (n = one ? atoi(one) : 1; reached && n < 2000; n++) {
		uint64_t cases = shared->cases;

		if (one && getenv("FUZZ_NOFORK"))
			batch(n);
		else
			failures += fuzz_batch(n, batch, 15);
		/* A run in which nothing failed was past the last allocation. */
		reached = shared->cases != cases || failures;
		if (one || failures > 20)
			break;
	}
	failures += shared->failures;
	printf("%llu allocations failed, one at a time\n", (unsigned long long)shared->cases);
	if (!shared->cases)
		failures++;
	printf("%u passed, %u failed, 0 skipped\n", (unsigned)shared->cases, failures);
	return failures != 0;
}

/* SPDX-License-Identifier: MIT */
/*
 * Random sequences of ioctls on two VMs from three threads, with arguments that are
 * almost right, altered copies of what the library itself returned, noise, and pointers
 * to nowhere. The client's own mistakes are its own: memory regions, bitmaps and buffers
 * lie in memory set aside for them. No report, no crash, no hang, no descriptor left over.
 */
#include "fuzz.h"

#include <dirent.h>
#include <sys/eventfd.h>

#include "api/ioctl.h"

#define RAM_SIZE (2ul << 20)
#define ARGS_SIZE (1ul << 20)
#define NOWHERE_SIZE (4ul << 30)
#define MAX_FDS 24
#define WORKERS 3
#define OPS 150

enum kind { SYS, VM, VCPU, NR_KINDS };

static struct {
	uint8_t *ram;		/* what memory regions show */
	uint8_t *nowhere;	/* PROT_NONE */
	pthread_mutex_t lock;
	int fds[NR_KINDS][MAX_FDS];
	unsigned nr[NR_KINDS];
	int eventfds[4];
	_Atomic bool done;
	_Atomic unsigned finished;
	pthread_t workers[WORKERS];
	void *runs[MAX_FDS];	/* mapped kvm_run pages, never unmapped before the end */
	unsigned nr_runs;
	size_t run_size;
} f = { .lock = PTHREAD_MUTEX_INITIALIZER };

/* Each worker has its own numbers. */
static _Thread_local uint64_t thread_state;
static _Thread_local uint8_t *args;	/* ARGS_SIZE, a PROT_NONE page behind it */

static uint64_t r64(void)
{
	uint64_t z = thread_state += 0x9e3779b97f4a7c15ull;

	z = (z ^ z >> 30) * 0xbf58476d1ce4e5b9ull;
	z = (z ^ z >> 27) * 0x94d049bb133111ebull;
	return z ^ z >> 31;
}

#define below(n) (r64() % (n))
#define chance(n) (below(n) == 0)

static uint64_t edge(void)
{
	switch (below(8)) {
	case 0: return 0;
	case 1: return below(64);
	case 2: return 1ull << below(64);
	case 3: return (1ull << below(64)) - 1;
	case 4: return -below(4096);
	case 5: return below(512) << 12;
	case 6: return (uint32_t)r64();
	default: return r64();
	}
}

/* ---- descriptors ------------------------------------------------------------------------ */

static void pool_add(enum kind kind, int fd)
{
	bool kept = false;

	if (fd < 0)
		return;
	pthread_mutex_lock(&f.lock);
	if (f.nr[kind] < MAX_FDS) {
		f.fds[kind][f.nr[kind]++] = fd;
		kept = true;
	}
	pthread_mutex_unlock(&f.lock);
	if (!kept)
		softkvm_close(fd);
}

static int pool_pick(enum kind kind)
{
	int fd = -1;

	pthread_mutex_lock(&f.lock);
	if (f.nr[kind])
		fd = f.fds[kind][below(f.nr[kind])];
	pthread_mutex_unlock(&f.lock);
	return fd;
}

static void pool_close_one(enum kind kind)
{
	int fd = -1;

	pthread_mutex_lock(&f.lock);
	if (f.nr[kind]) {
		unsigned i = below(f.nr[kind]);

		fd = f.fds[kind][i];
		f.fds[kind][i] = f.fds[kind][--f.nr[kind]];
	}
	pthread_mutex_unlock(&f.lock);
	if (fd >= 0)
		softkvm_close(fd);
}

/* ---- arguments ------------------------------------------------------------------------------ */

/* Memory the library may write to, or which faults. */
static uint64_t buffer(void)
{
	switch (below(8)) {
	case 0: return 0;
	case 1: return (uintptr_t)f.nowhere;
	case 2: return (uintptr_t)args + ARGS_SIZE - below(64);
	default: return (uintptr_t)args + ARGS_SIZE / 2 + below(4096);
	}
}

static int any_eventfd(void)
{
	return chance(8) ? -1 : chance(8) ? pool_pick(VM) : f.eventfds[below(COUNT(f.eventfds))];
}

static void gen_memory_region(struct kvm_userspace_memory_region2 *m)
{
	*m = (struct kvm_userspace_memory_region2){ .slot = chance(16) ? edge() : below(6) };
	m->slot |= chance(4) ? 1u << 16 : 0; /* what SMM sees */
	m->flags = chance(8) ? edge() : below(4);
	m->guest_phys_addr = chance(8) ? edge() : below(64) << 15;
	m->memory_size = chance(3) ? 0 : (1 + below(128)) << 12;
	m->userspace_addr = (uintptr_t)f.ram + (below(RAM_SIZE - m->memory_size) & -4096ul);
	if (chance(16)) {
		m->memory_size = chance(2) ? below(NOWHERE_SIZE) : edge();
		m->userspace_addr = (uintptr_t)f.nowhere;
	}
	if (chance(16))
		m->userspace_addr |= 1ull << (48 + below(16));
	/* A huge region that begins in memory and ends in somebody else's would be the client's fault. */
	if (m->memory_size > NOWHERE_SIZE)
		m->userspace_addr |= 1ull << 63;
}

static void gen_dirty_log(struct kvm_clear_dirty_log *log)
{
	log->slot = chance(16) ? edge() : below(6) | (chance(4) ? 1u << 16 : 0);
	log->num_pages = chance(4) ? edge() : below(3) * 64;
	if (chance(2))
		log->first_page = below(3) * 64;
	log->dirty_bitmap = (void *)(chance(8) ? (uintptr_t)f.nowhere : (uintptr_t)args + ARGS_SIZE / 2);
}

static void gen_msrs(struct kvm_msrs *m)
{
	static const uint32_t some[] = {
		0x10, 0x1b, 0x3a, 0x3b, 0x8b, 0xfe, 0x10a, 0x174, 0x175, 0x176, 0x179, 0x1a0, 0x1d9, 0x200, 0x250,
		0x277, 0x2ff, 0x400, 0x401, 0x6e0, 0x802, 0x808, 0x80b, 0x80f, 0x830, 0x832, 0x838, 0x83e, 0x83f,
		0x11, 0x12, 0x4b564d00, 0x4b564d01, 0x4b564d02, 0x4b564d03, 0x4b564d04, 0x4b564d05, 0x4b564d06,
		0xc0000080, 0xc0000081, 0xc0000082, 0xc0000100, 0xc0000101, 0xc0000102, 0xc0000103, 0xc0010015,
		0x48, 0x49, 0x122, 0x140, 0xd90, 0xda0, 0xc001001f, 0xc0010140,
	};

	m->nmsrs = chance(16) ? edge() : below(20);
	for (unsigned i = 0; i < 20; i++) {
		m->entries[i].index = chance(16) ? edge() : some[below(COUNT(some))];
		m->entries[i].data = chance(2) ? edge() : below(RAM_SIZE) | 1;
	}
}

static void gen_routing(struct kvm_irq_routing *r)
{
	r->nr = chance(16) ? edge() : below(30);
	r->flags = chance(16);
	for (unsigned i = 0; i < 30; i++) {
		struct kvm_irq_routing_entry *e = &r->entries[i];

		e->gsi = chance(16) ? edge() : below(32);
		e->type = 1 + below(4);
		e->flags = chance(16);
		if (e->type == KVM_IRQ_ROUTING_MSI) {
			e->u.msi.address_lo = 0xfee00000 | (r64() & 0xff0fc);
			e->u.msi.data = r64() & 0x87ff;
		} else {
			e->u.irqchip.irqchip = below(4);
			e->u.irqchip.pin = below(26);
		}
	}
}

static void gen_msr_filter(struct kvm_msr_filter *m)
{
	m->flags = below(3);
	for (unsigned i = 0; i < KVM_MSR_FILTER_MAX_RANGES; i++) {
		m->ranges[i].flags = below(4);
		m->ranges[i].base = chance(2) ? edge() : 0xc0000000;
		m->ranges[i].nmsrs = chance(2) ? 0 : chance(8) ? edge() : below(2000);
		m->ranges[i].bitmap = (void *)buffer();
	}
}

static void gen_cpuid(struct kvm_cpuid2 *c)
{
	int fd = pool_pick(SYS);

	c->nent = 100;
	softkvm_ioctl(fd, KVM_GET_SUPPORTED_CPUID, (unsigned long)c);
	if (chance(2))
		for (unsigned i = 0; i < 4; i++)
			((uint32_t *)&c->entries[below(40)])[below(7)] ^= 1u << below(32);
	if (chance(8))
		c->nent = edge();
}

/* The same state's GET, so that what is set is nearly valid. */
static const struct pair { unsigned long set, get; } pairs[] = {
	{ KVM_SET_REGS, KVM_GET_REGS }, { KVM_SET_SREGS, KVM_GET_SREGS }, { KVM_SET_SREGS2, KVM_GET_SREGS2 },
	{ KVM_SET_FPU, KVM_GET_FPU }, { KVM_SET_XSAVE, KVM_GET_XSAVE }, { KVM_SET_XCRS, KVM_GET_XCRS },
	{ KVM_SET_DEBUGREGS, KVM_GET_DEBUGREGS }, { KVM_SET_LAPIC, KVM_GET_LAPIC },
	{ KVM_SET_MP_STATE, KVM_GET_MP_STATE }, { KVM_SET_VCPU_EVENTS, KVM_GET_VCPU_EVENTS },
	{ KVM_SET_PIT2, KVM_GET_PIT2 }, { KVM_SET_CLOCK, KVM_GET_CLOCK }, { KVM_SET_PIT, KVM_GET_PIT },
	{ KVM_SET_IRQCHIP, KVM_GET_IRQCHIP },
};

static bool gen_from_get(int fd, unsigned long cmd, uint8_t *buf)
{
	for (unsigned i = 0; i < COUNT(pairs); i++) {
		if (pairs[i].set != cmd)
			continue;
		if (cmd == KVM_SET_IRQCHIP)
			((struct kvm_irqchip *)buf)->chip_id = below(4);
		if (softkvm_ioctl(fd, pairs[i].get, (unsigned long)buf))
			return false;
		for (unsigned n = below(4); n; n--)
			buf[below(_IOC_SIZE(cmd))] ^= chance(2) ? 1u << below(8) : r64();
		return true;
	}
	return false;
}

static unsigned long argument(int fd, unsigned long cmd)
{
	uint8_t *buf = args;
	size_t size = _IOC_SIZE(cmd);

	memset(buf, 0, 8192);
	if (chance(64))
		return buffer();
	if (!gen_from_get(fd, cmd, buf))
		for (unsigned i = 0; chance(2) && i < size; i += 4)
			*(uint32_t *)(buf + i) = edge();
	switch (cmd) {
	case KVM_SET_USER_MEMORY_REGION: case KVM_SET_USER_MEMORY_REGION2:
		gen_memory_region((void *)buf);
		break;
	case KVM_GET_DIRTY_LOG: case KVM_CLEAR_DIRTY_LOG: {
		struct kvm_clear_dirty_log log = { 0 };

		gen_dirty_log(&log);
		memcpy(buf, &log, sizeof(log));
		if (cmd == KVM_GET_DIRTY_LOG)
			*(struct kvm_dirty_log *)buf = (struct kvm_dirty_log){
				.slot = log.slot, .dirty_bitmap = log.dirty_bitmap };
		break;
	}
	case KVM_GET_MSRS: case KVM_SET_MSRS:
		gen_msrs((void *)buf);
		break;
	case KVM_SET_GSI_ROUTING:
		gen_routing((void *)buf);
		break;
	case KVM_X86_SET_MSR_FILTER:
		gen_msr_filter((void *)buf);
		break;
	case KVM_SET_CPUID2:
		gen_cpuid((void *)buf);
		break;
	case KVM_GET_CPUID2: case KVM_GET_SUPPORTED_CPUID: case KVM_GET_EMULATED_CPUID:
	case KVM_SET_CPUID: case KVM_GET_MSR_INDEX_LIST: case KVM_GET_MSR_FEATURE_INDEX_LIST:
		*(uint32_t *)buf = chance(4) ? edge() : 100;
		break;
	case KVM_SET_SIGNAL_MASK: {
		struct kvm_signal_mask *m = (void *)buf;
		uint64_t set = r64() & ~(1ull << (SIGUSR1 - 1));

		/* What gets a thread out of KVM_RUN here stays open. */
		m->len = chance(8) ? edge() : 8;
		memcpy(m->sigset, &set, 8);
		return chance(4) ? 0 : (unsigned long)buf;
	}
	case KVM_IRQFD: {
		struct kvm_irqfd *i = (void *)buf;

		*i = (struct kvm_irqfd){ .fd = any_eventfd(), .gsi = chance(16) ? edge() : below(32),
			.flags = chance(16) ? edge() : below(4), .resamplefd = any_eventfd() };
		break;
	}
	case KVM_IOEVENTFD: {
		struct kvm_ioeventfd *i = (void *)buf;

		*i = (struct kvm_ioeventfd){ .fd = any_eventfd(), .addr = chance(4) ? edge() : below(64) * 0x1000,
			.len = chance(8) ? edge() : 1u << below(4), .flags = chance(16) ? edge() : below(8),
			.datamatch = below(2) };
		break;
	}
	case KVM_REGISTER_COALESCED_MMIO: case KVM_UNREGISTER_COALESCED_MMIO:
		*(struct kvm_coalesced_mmio_zone *)buf = (struct kvm_coalesced_mmio_zone){
			.addr = chance(4) ? edge() : below(64) * 0x1000, .size = chance(4) ? edge() : 0x1000,
			.pio = chance(4) };
		break;
	case KVM_ENABLE_CAP: {
		struct kvm_enable_cap *c = (void *)buf;
		const char *name;
		long number = 0, value;

		kvm_cap_row(below(120), &name, &number, &value);
		*c = (struct kvm_enable_cap){ .cap = number, .flags = chance(16),
			.args = { chance(4) ? edge() : below(16), chance(4) ? buffer() : 0 } };
		break;
	}
	case KVM_GET_DEVICE_ATTR: case KVM_HAS_DEVICE_ATTR: case KVM_SET_DEVICE_ATTR:
		((struct kvm_device_attr *)buf)->addr = buffer();
		break;
	case KVM_CREATE_VM:
		return chance(8) ? edge() : 0;
	case KVM_CREATE_VCPU:
		return chance(8) ? edge() : below(6);
	case KVM_RUN:
		return 0;
	default:
		if (!size || chance(64))
			return chance(2) ? 0 : edge();
		break;
	}
	return (unsigned long)buf;
}

/* ---- operations ------------------------------------------------------------------------------------- */

static void scribble_on_run(void)
{
	struct kvm_run *run = NULL;

	pthread_mutex_lock(&f.lock);
	if (f.nr_runs)
		run = f.runs[below(f.nr_runs)];
	pthread_mutex_unlock(&f.lock);
	if (!run)
		return;
	for (unsigned i = below(16); i; i--)
		((uint8_t *)run)[below(4) ? below(256) : below(f.run_size < 8192 ? f.run_size : 8192)] = r64();
	run->immediate_exit = chance(16);
	if (chance(4))
		run->kvm_dirty_regs = below(8);
	if (chance(4))
		run->kvm_valid_regs = below(8);
}

static void map_vcpu(int fd)
{
	void *p = softkvm_mmap(NULL, f.run_size, PROT_READ | PROT_WRITE, MAP_SHARED, fd, 0);
	bool kept = false;

	if (p == MAP_FAILED)
		return;
	pthread_mutex_lock(&f.lock);
	if (f.nr_runs < MAX_FDS) {
		f.runs[f.nr_runs++] = p;
		kept = true;
	}
	pthread_mutex_unlock(&f.lock);
	if (!kept)
		munmap(p, f.run_size);
}

static void do_ioctl(enum kind kind)
{
	static const char *const kinds[] = { "system", "vm", "vcpu" };
	const char *name, *k;
	unsigned int cmd;
	int fd = pool_pick(chance(64) ? below(NR_KINDS) : kind), r;

	do {
		name = NULL;
	} while (!kvm_ioctl_row(below(128), &name, &cmd, &k) || strncasecmp(k, kinds[kind], 3));
	if (chance(50))
		cmd ^= 1u << below(32);
	if (kind == VCPU && chance(3))
		cmd = KVM_RUN;
	r = softkvm_ioctl(fd, cmd, argument(fd, cmd));
	shared->runs++;
	if (r < 0)
		return;
	if (cmd == KVM_CREATE_VM) {
		pool_add(VM, r);
	} else if (cmd == KVM_CREATE_VCPU) {
		pool_add(VCPU, r);
		map_vcpu(r);
	} else if (cmd == KVM_GET_STATS_FD || _IOC_NR(cmd) == 0xd4 /* KVM_CREATE_GUEST_MEMFD */) {
		softkvm_close(r);
	}
}

static void poke_memory(void)
{
	uint8_t *p = f.ram + (below(RAM_SIZE) & -4096ul);

	switch (below(4)) {
	case 0:
		mprotect(p, 4096, chance(2) ? PROT_NONE : PROT_READ);
		break;
	case 1:
		mprotect(f.ram, RAM_SIZE, PROT_READ | PROT_WRITE);
		break;
	case 2:
		mmap(p, 4096, PROT_READ | PROT_WRITE, MAP_PRIVATE | MAP_ANONYMOUS | MAP_FIXED, -1, 0);
		break;
	default:
		madvise(p, 4096, MADV_DONTNEED);
		break;
	}
}

static void one_op(void)
{
	uint64_t one = 1;

	switch (below(32)) {
	case 0: poke_memory(); break;
	case 1: pool_close_one(chance(4) ? VM : VCPU); break;
	case 2: case 3: scribble_on_run(); break;
	case 4: (void)!write(f.eventfds[below(COUNT(f.eventfds))], &one, 8); break;
	case 5: do_ioctl(SYS); break;
	default: do_ioctl(chance(3) ? VM : VCPU); break;
	}
}

/* A VM that can run, so that the rest of the sequence meets something. */
static void good_vm(void)
{
	int vm = softkvm_ioctl(pool_pick(SYS), KVM_CREATE_VM, 0), vcpu;
	struct kvm_userspace_memory_region m = {
		.memory_size = RAM_SIZE, .userspace_addr = (uintptr_t)f.ram, .flags = chance(2),
	};
	struct kvm_sregs s;
	struct kvm_regs r = { .rflags = 2, .rsp = 0x8000 };

	if (vm < 0)
		return;
	softkvm_ioctl(vm, KVM_SET_USER_MEMORY_REGION, (unsigned long)&m);
	if (chance(2))
		softkvm_ioctl(vm, KVM_CREATE_IRQCHIP, 0);
	pool_add(VM, vm);
	for (unsigned i = 0; i < 2; i++) {
		vcpu = softkvm_ioctl(vm, KVM_CREATE_VCPU, i);
		if (vcpu < 0)
			continue;
		gen_cpuid((void *)args);
		softkvm_ioctl(vcpu, KVM_SET_CPUID2, (unsigned long)args);
		softkvm_ioctl(vcpu, KVM_GET_SREGS, (unsigned long)&s);
		s.cs.base = s.cs.selector = 0;
		softkvm_ioctl(vcpu, KVM_SET_SREGS, (unsigned long)&s);
		softkvm_ioctl(vcpu, KVM_SET_REGS, (unsigned long)&r);
		map_vcpu(vcpu);
		pool_add(VCPU, vcpu);
	}
}

static void *worker(void *arg)
{
	size_t size = ARGS_SIZE + 4096;

	thread_state = (uintptr_t)arg;
	args = mmap(NULL, size, PROT_READ | PROT_WRITE, MAP_PRIVATE | MAP_ANONYMOUS, -1, 0);
	if (args == MAP_FAILED)
		abort();
	mprotect(args + ARGS_SIZE, 4096, PROT_NONE);
	good_vm();
	for (unsigned i = 0; i < OPS; i++)
		one_op();
	shared->cases += OPS;
	munmap(args, size);
	/* The kicker must not meet a thread that has ended. */
	f.finished++;
	while (!f.done)
		usleep(1000);
	return NULL;
}

static void on_kick(int sig)
{
	(void)sig;
}

static void *kicker(void *arg)
{
	(void)arg;
	while (!f.done) {
		usleep(3000);
		for (unsigned i = 0; i < WORKERS && !f.done; i++)
			pthread_kill(f.workers[i], SIGUSR1);
	}
	return NULL;
}

static unsigned open_fds(void)
{
	DIR *d = opendir("/proc/self/fd");
	unsigned n = 0;

	while (d && readdir(d))
		n++;
	if (d)
		closedir(d);
	return n;
}

static void show_fds(void)
{
	for (int fd = 0; fd < 4096; fd++) {
		char path[32], target[128];
		ssize_t n;

		snprintf(path, sizeof(path), "/proc/self/fd/%d", fd);
		n = readlink(path, target, sizeof(target) - 1);
		if (n > 0)
			printf("descriptor %d: %.*s\n", fd, (int)n, target);
	}
}

static void batch(uint64_t seed)
{
	struct sigaction sa = { .sa_handler = on_kick, .sa_flags = SA_RESTART };
	unsigned before = open_fds(), after;
	pthread_t kick;

	snprintf(shared->where, sizeof(shared->where), "seed %llu", (unsigned long long)seed);
	sigaction(SIGUSR1, &sa, NULL);
	f.ram = mmap(NULL, RAM_SIZE, PROT_READ | PROT_WRITE, MAP_PRIVATE | MAP_ANONYMOUS, -1, 0);
	f.nowhere = mmap(NULL, NOWHERE_SIZE, PROT_NONE, MAP_PRIVATE | MAP_ANONYMOUS | MAP_NORESERVE, -1, 0);
	if (f.ram == MAP_FAILED || f.nowhere == MAP_FAILED)
		return;
	rnd_fill(f.ram, RAM_SIZE);
	for (unsigned i = 0; i < COUNT(f.eventfds); i++)
		f.eventfds[i] = eventfd(0, EFD_NONBLOCK | EFD_CLOEXEC);
	pool_add(SYS, softkvm_open(O_RDWR | O_CLOEXEC));
	f.run_size = softkvm_ioctl(pool_pick(SYS), KVM_GET_VCPU_MMAP_SIZE, 0);
	for (unsigned i = 0; i < WORKERS; i++)
		pthread_create(&f.workers[i], NULL, worker, (void *)(uintptr_t)(seed * WORKERS + i + 1));
	pthread_create(&kick, NULL, kicker, NULL);
	while (f.finished < WORKERS)
		usleep(1000);
	f.done = true;
	pthread_join(kick, NULL);
	for (unsigned i = 0; i < WORKERS; i++)
		pthread_join(f.workers[i], NULL);
	for (unsigned k = 0; k < NR_KINDS; k++)
		while (f.nr[k])
			pool_close_one(k);
	for (unsigned i = 0; i < f.nr_runs; i++)
		munmap(f.runs[i], f.run_size);
	for (unsigned i = 0; i < COUNT(f.eventfds); i++)
		close(f.eventfds[i]);
	after = open_fds();
	if (after != before)
		show_fds();
	FUZZ_CHECK(after == before, "%u descriptors before, %u after", before, after);
}

int main(void)
{
	return fuzz_main(batch, 60);
}

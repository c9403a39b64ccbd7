/* SPDX-License-Identifier: MIT */
/*
 * How late interrupts are while a vCPU computes: the LAPIC's timer (one-shot, TSC deadline) with one and with two vCPUs at
 * work, and IPIs from one vCPU to another. An ordinary KVM client with the in-kernel irqchip: under softkvm, with either
 * engine, or on a real /dev/kvm. bench/latency.sh makes the table.
 *	latency [samples]
 * prints "NAME samples min median p99 max undisturbed min median p99 max", in microseconds.
 *
 * Both ends are the guest's TSC: when the interrupt is due, or sent, and when its handler begins. What interrupts wait for here is
 * a loop: `tight` (two instructions), `chain` (400 blocks without a branch back), `string` (REP MOVSQ of 64 KiB).
 *
 * A sample is undisturbed if no thread of this process, vCPU, timer or other, has waited for a CPU for more than
 * WAIT_NS since it was begun, by /proc/self/task/N/schedstat. On a machine with other work those are what says something about us.
 * It is not the whole truth: that our own threads get into each other's way is a disturbance as well, so on a quiet machine
 * the first columns count.
 */
#include <dirent.h>
#include <pthread.h>
#include <sched.h>
#include <signal.h>

#include "api/both.h"

#define MEM (8u << 20)
#define CODE 0x100000u
#define LOOPS 0x180000u
#define HANDLER 0x108000u
#define IDT 0x20000u
#define WORDS 0x120000u		/* u64 each: due or sent at 0, taken at 8, acknowledged at 16 */
#define VECTOR 0x40u
#define WAIT_NS 20000u
#define MAX_SAMPLES 100000u

#define X2APIC \
	"mov $0x1b, %ecx; rdmsr; or $0xc00, %eax; wrmsr; mov $0x80f, %ecx; mov $0x1ff, %eax; xor %edx, %edx; wrmsr\n"
#define TSC(reg) "rdtsc; shl $32, %rdx; or %rdx, %rax; mov %rax, " reg "\n"
#define WRITE(msr, value) "mov $" msr ", %ecx; mov " value ", %eax; xor %edx, %edx; wrmsr\n"

/* r10: the loop; r11: first values of LVTT; r8d: count, r9: the same in TSC ticks. Before each sample userspace sets both. */
#define TIMER_BEGIN \
	X2APIC WRITE("0x83e", "$0xb") WRITE("0x832", "%r11d") "mfence\n"
GUEST_CODE(oneshot, TIMER_BEGIN TSC("%rbx") WRITE("0x838", "%r8d") "add %r9, %rbx; mov %rbx, 0x120000; sti; jmp *%r10");
GUEST_CODE(oneshot_taken, TSC("0x120008") WRITE("0x80b", "$0") "out %al, $0x10\n"
			  TSC("%rbx") WRITE("0x838", "%r8d") "add %r9, %rbx; mov %rbx, 0x120000; iretq");
#define DEADLINE "add %r9, %rbx; mov %rbx, 0x120000; mov $0x6e0, %ecx; mov %ebx, %eax; mov %rbx, %rdx; shr $32, %rdx; wrmsr\n"
GUEST_CODE(deadline, TIMER_BEGIN TSC("%rbx") DEADLINE "sti; jmp *%r10");
GUEST_CODE(deadline_taken, TSC("0x120008") WRITE("0x80b", "$0") "out %al, $0x10\n" TSC("%rbx") DEADLINE "iretq");

/* r9: how long to wait before one is sent */
GUEST_CODE(sender, X2APIC "1: " TSC("%rbx") "add %r9, %rbx; 2: pause\n" TSC("%rsi") "cmp %rbx, %rsi; jb 2b\n"
		   "movq $0, 0x120010\n" TSC("0x120000")
		   "mov $0x830, %ecx; mov $0x40, %eax; mov $1, %edx; wrmsr\n"
		   "3: pause; cmpq $0, 0x120010; je 3b; out %al, $0x10; jmp 1b");
GUEST_CODE(receiver, X2APIC "movq $1, 0x120010; sti; jmp *%r10");
GUEST_CODE(ipi_taken, TSC("0x120008") WRITE("0x80b", "$0") "movq $1, 0x120010; iretq");

/* They leave rbx, r8 to r11 alone; the handlers do not care for what loops have in the others. */
GUEST_CODE(tight, "1: dec %r12; jmp 1b");
GUEST_CODE(chain, "1:\n.rept 400\nadd $3, %r12; xor %r12, %r13; imul %r13, %r14; lea 7(%r14), %r15; rol $3, %r15\n"
		  "jmp 2f; .byte 0xcc; 2:\n.endr\njmp 1b");
GUEST_CODE(string, "1: mov $0x200000, %esi; mov $0x300000, %edi; mov $8192, %ecx; rep movsq; jmp 1b");

struct loop {
	const char *name;
	const uint8_t *code, *end;
};
#define CODE_OF(name) { #name, name, name##_end }
static const struct loop loops[] = { CODE_OF(tight), CODE_OF(chain), CODE_OF(string) };

struct vcpu {
	struct kvmtest t;
	pthread_t thread;
	volatile int stop;
};

static unsigned samples = 1000;
static double us_per_tick, ticks_per_ns;
static uint64_t seed = 1;

static uint64_t rnd(uint64_t n)
{
	seed ^= seed << 13;
	seed ^= seed >> 7;
	seed ^= seed << 17;
	return seed % n;
}

/* What all threads of this process have waited for a CPU. */
static uint64_t waited_ns(void)
{
	uint64_t sum = 0;
	struct dirent *e;
	DIR *d = opendir("/proc/self/task");

	while (d && (e = readdir(d))) {
		unsigned long long ran, waited;
		char path[300];
		FILE *f;

		snprintf(path, sizeof(path), "/proc/self/task/%s/schedstat", e->d_name);
		f = e->d_name[0] == '.' ? NULL : fopen(path, "r");
		if (f && fscanf(f, "%llu %llu", &ran, &waited) == 2)
			sum += waited;
		if (f)
			fclose(f);
	}
	if (d)
		closedir(d);
	return sum;
}

/* ---- guests ------------------------------------------------------------------------------------------ */

static struct kvmtest open_vm(const struct loop *loop, const uint8_t *taken, size_t len)
{
	struct kvmtest t = kvmtest_vm(MEM, 1);
	uint64_t *gate = (uint64_t *)(t.mem + IDT + 16 * VECTOR);

	memcpy(t.mem + LOOPS, loop->code, loop->end - loop->code);
	memcpy(t.mem + HANDLER, taken, len);
	gate[0] = (HANDLER & 0xffff) | 8ull << 16 | 0x8eull << 40 | (uint64_t)(HANDLER >> 16) << 48;
	return t;
}

/* KVM_CAP_TSC_DEADLINE_TIMER says it works; the CPUID bit is the client's to set. */
static void offer_deadline(struct kvmtest *t)
{
	struct kvm_cpuid2 *c = calloc(1, sizeof(*c) + 100 * sizeof(struct kvm_cpuid_entry2));

	c->nent = 100;
	NEED(ioctl(t->kvm, KVM_GET_SUPPORTED_CPUID, c) == 0);
	for (unsigned i = 0; i < c->nent; i++)
		if (c->entries[i].function == 1)
			c->entries[i].ecx |= 1 << 24;
	NEED(ioctl(t->vcpu, KVM_SET_CPUID2, c) == 0);
	free(c);
}

static void add_vcpu(struct vcpu *v, const struct kvmtest *vm, unsigned id, const uint8_t *code, size_t len, uint32_t lvtt)
{
	struct kvm_regs r = { .rip = CODE + 0x1000 * id, .rsp = 0x170000 + 0x1000 * id, .rflags = 2, .r10 = LOOPS, .r11 = lvtt };
	struct kvm_mp_state state = { .mp_state = KVM_MP_STATE_RUNNABLE };
	struct kvm_sregs s;

	v->t = *vm;
	v->stop = 0;
	kvmtest_add_vcpu(&v->t, id);
	kvmtest_long_mode(&v->t, r.rip, code, len);
	offer_deadline(&v->t);
	NEED(ioctl(v->t.vcpu, KVM_GET_SREGS, &s) == 0);
	s.idt.base = IDT;
	s.idt.limit = 0xfff;
	NEED(ioctl(v->t.vcpu, KVM_SET_SREGS, &s) == 0);
	NEED(ioctl(v->t.vcpu, KVM_SET_REGS, &r) == 0);
	NEED(ioctl(v->t.vcpu, KVM_SET_MP_STATE, &state) == 0);
	us_per_tick = 1e3 / ioctl(v->t.vcpu, KVM_GET_TSC_KHZ, 0);
	ticks_per_ns = 1e-3 / us_per_tick;
}

/* From 200 us to 1.2 ms on. */
static void choose_delay(struct vcpu *v)
{
	struct kvm_regs r;

	NEED(ioctl(v->t.vcpu, KVM_GET_REGS, &r) == 0);
	r.r8 = 200000 + rnd(1000000);
	r.r9 = r.r8 * ticks_per_ns;
	NEED(ioctl(v->t.vcpu, KVM_SET_REGS, &r) == 0);
}

static void *run_until_stopped(void *arg)
{
	struct vcpu *v = arg;

	while (!v->stop)
		if (ioctl(v->t.vcpu, KVM_RUN, 0) && errno != EINTR)
			NEED(!"KVM_RUN");
	return NULL;
}

static void on_signal(int sig)
{
}

static void start(struct vcpu *v)
{
	NEED(pthread_create(&v->thread, NULL, run_until_stopped, v) == 0);
}

static void stop(struct vcpu *v)
{
	v->stop = 1;
	v->t.run->immediate_exit = 1;
	pthread_kill(v->thread, SIGUSR1);
	pthread_join(v->thread, NULL);
}

static void close_vcpu(struct vcpu *v)
{
	munmap(v->t.run, v->t.run_size);
	close(v->t.vcpu);
}

/* ---- samples ------------------------------------------------------------------------------------------ */

static int compare(const void *a, const void *b)
{
	double x = *(const double *)a, y = *(const double *)b;

	return x < y ? -1 : x > y;
}

static void print_quantiles(double *v, unsigned n)
{
	qsort(v, n, sizeof(*v), compare);
	if (n)
		printf(" %u %.1f %.1f %.1f %.1f", n, v[0], v[n / 2], v[n - 1 - n / 100], v[n - 1]);
	else
		printf(" 0 - - - -");
}

/* Runs v, which exits once a sample. */
static void measure(const char *name, const char *loop, struct vcpu *v)
{
	static double all[MAX_SAMPLES], quiet[MAX_SAMPLES];
	const volatile uint64_t *words = (uint64_t *)(v->t.mem + WORDS);
	unsigned nr_quiet = 0, warm = 20;

	for (unsigned i = 0; i < samples + warm; i++) {
		uint64_t waited;
		double late;

		choose_delay(v);
		waited = waited_ns();
		NEED(ioctl(v->t.vcpu, KVM_RUN, 0) == 0);
		NEED(v->t.run->exit_reason == KVM_EXIT_IO);
		waited = waited_ns() - waited;
		late = (double)(int64_t)(words[1] - words[0]) * us_per_tick;
		if (i < warm)
			continue;
		all[i - warm] = late;
		if (waited <= WAIT_NS)
			quiet[nr_quiet++] = late;
	}
	printf("%s_%s", name, loop);
	print_quantiles(all, samples);
	print_quantiles(quiet, nr_quiet);
	printf("\n");
}

/* The other vCPU computes too, if there is one. */
static void bench_timer(const char *name, const struct loop *loop, int is_deadline, int two)
{
	struct kvmtest vm = is_deadline ? open_vm(loop, deadline_taken, GUEST_LEN(deadline_taken)) :
					  open_vm(loop, oneshot_taken, GUEST_LEN(oneshot_taken));
	struct vcpu v, other;

	if (is_deadline)
		add_vcpu(&v, &vm, 0, deadline, GUEST_LEN(deadline), VECTOR | 0x40000);
	else
		add_vcpu(&v, &vm, 0, oneshot, GUEST_LEN(oneshot), VECTOR);
	if (two) {
		add_vcpu(&other, &vm, 1, receiver, GUEST_LEN(receiver), 0);
		start(&other);
	}
	measure(name, loop->name, &v);
	if (two) {
		stop(&other);
		close_vcpu(&other);
	}
	close_vcpu(&v);
	kvmtest_done(&vm);
}

static void bench_ipi(const struct loop *loop)
{
	struct kvmtest vm = open_vm(loop, ipi_taken, GUEST_LEN(ipi_taken));
	volatile uint64_t *ready = (uint64_t *)(vm.mem + WORDS + 16);
	struct vcpu v, other;

	add_vcpu(&v, &vm, 0, sender, GUEST_LEN(sender), 0);
	add_vcpu(&other, &vm, 1, receiver, GUEST_LEN(receiver), 0);
	start(&other);
	while (!*ready)
		sched_yield();
	measure("ipi", loop->name, &v);
	stop(&other);
	close_vcpu(&other);
	close_vcpu(&v);
	kvmtest_done(&vm);
}

int main(int argc, char **argv)
{
	struct sigaction act = { .sa_handler = on_signal };

	if (argc > 1)
		samples = atoi(argv[1]);
	if (samples < 1 || samples > MAX_SAMPLES)
		samples = MAX_SAMPLES;
	setvbuf(stdout, NULL, _IOLBF, 0);
	NEED(sigaction(SIGUSR1, &act, NULL) == 0);
	for (unsigned i = 0; i < sizeof(loops) / sizeof(loops[0]); i++) {
		bench_timer("oneshot", &loops[i], 0, 0);
		bench_timer("deadline", &loops[i], 1, 0);
		bench_timer("deadline_two", &loops[i], 1, 1);
		bench_ipi(&loops[i]);
	}
	return 0;
}

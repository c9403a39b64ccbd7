/* SPDX-License-Identifier: MIT */
/*
 * Page faults at every operand, and what the guest finds of them: error code, CR2, RIP, every register, flags, vectors, and the
 * memory as it is then. The handler maps the page, the instruction goes on, and must have happened once.
 *
 *	precise_fault [form [case]]
 *
 * The judge is this machine's CPU: a child that knows nothing of KVM has the same pages at the same linear addresses
 * and executes the same bytes with the same registers; its signal frames say what the CPU reports. So a case is any piece
 * of code (precise_forms.h), and nothing needs to be worked out.
 *
 * Each case runs in these ways:
 *  1. cold, and after having run 20 times with everything mapped: then the handler of the loop takes the pages
 *     away, with INVLPG;
 *  2. alone; behind instructions that change registers and flags; and between accesses with the same base register, which
 *     share one look-up of the translator (a "range");
 *  3. operands in the middle, at the end and at the beginning of a page, and across two; pages absent and read-only, for each
 *     operand and for both; the code itself across two pages, of which the second is absent or not executable;
 *  4. 64-bit and, on a flat 4 GiB, 32-bit code;
 *  5. in the guest at CPL 3 and CPL 0; and, which the child cannot do, with what the absent page of the child is here: a
 *     supervisor's page, a user's page under SMAP, one with a reserved bit; and with CR0.WP clear.
 *
 * Flags that an instruction overwrites are not compared in the frame of its fault under the translator (docs/deviations.md).
 *
 * Seen to fail with ranges that ask for less than their last member needs (r->hi in join_range(), x86/dbt/ranges.c, without
 * the verifier, which refuses them), a PUSH that moves rsp although its store has failed (stack_push(), x86/ops/flow.c), an
 * INVLPG that leaves the TLB alone (mmu_flush_page(), x86/mmu/tlb.c), and an interpreter that wants the second page of an
 * instruction that stood there once and crossed (block_matches(), x86/interp/block.c; found by this test).
 */
#include <asm/prctl.h>
#include <signal.h>
#include <sys/prctl.h>
#include <sys/syscall.h>
#include <sys/wait.h>
#include <ucontext.h>

#include "precise_forms.h"

/* The linear pages of a case; guest physical at PHYS. */
#define PAGES_AT 0x20000000ul
#define PHYS 0x200000u
enum { A0, A1, B0, B1, STACK, HOLE, C0, C1, NR_PAGES };
#define LINEAR(page) (PAGES_AT + (page) * 4096ul)
#define GS_BASE 0x1000ul

#define FAULTS 8
#define WARM 20
#define FLAGS_ARITH 0x8d5u

/* What is on one side of each border: 1 KiB before, 1 KiB after. */
#define ZONE 0x800
#define XSTATE 832		/* x87, SSE, AVX in the standard format */

/* The guest's handlers know where everything is. */
struct state {
	uint64_t gpr[16];	/* 0x00 */
	uint64_t rip, flags;	/* 0x80 */
	uint64_t error, cr2;	/* 0x90 */
	uint64_t vector, cs;	/* 0xa0 */
	uint8_t pad[0x50];
	uint8_t xstate[0x700];	/* 0x100 */
	uint8_t zones[2][ZONE];	/* 0x800: at A1 and at B1 */
	uint8_t stack[ZONE];	/* the second half of STACK */
};
_Static_assert(sizeof(struct state) == 0x2000, "see record in the guest");

enum page { MAPPED, ABSENT, READ_ONLY, NO_EXEC };

struct layout {
	uint64_t gpr[16], rip, flags;
	uint64_t cs, warm;
	uint8_t pages[NR_PAGES];	/* enum page, from after the last warm run */
	uint8_t xstate[XSTATE] __attribute__((aligned(64)));
};

/* Between parent and child; the case's pages behind it, in a file of their own. */
struct shared {
	struct layout in;
	uint32_t nr;
	struct state out[FAULTS + 1] __attribute__((aligned(64)));
};

static struct shared *shared;
static uint8_t *pages;		/* the child's, at another address */

/* ---- the CPU itself -------------------------------------------------------------------------- */

static ucontext_t parked;
static uint8_t parked_xstate[XSTATE];
static int busy;
static uint64_t warm;
static uint8_t now[NR_PAGES];

static const int greg_of[16] = { REG_RAX, REG_RCX, REG_RDX, REG_RBX, REG_RSP, REG_RBP, REG_RSI, REG_RDI,
				 REG_R8, REG_R9, REG_R10, REG_R11, REG_R12, REG_R13, REG_R14, REG_R15 };

static void protect(unsigned page, unsigned how)
{
	static const int prot[] = { PROT_READ | PROT_WRITE | PROT_EXEC, PROT_NONE, PROT_READ | PROT_EXEC,
				    PROT_READ | PROT_WRITE };

	if (now[page] != how)
		mprotect((void *)LINEAR(page), 4096, prot[how]);
	now[page] = how;
}

static void load_xstate(ucontext_t *u, const uint8_t *from)
{
	uint8_t *x = (uint8_t *)u->uc_mcontext.fpregs;

	memcpy(x, from, 464);		/* what follows is the kernel's */
	memcpy(x + 576, from + 576, 256);
	*(uint64_t *)(x + 512) |= 7;
}

static void native_start(ucontext_t *u)
{
	greg_t *g = u->uc_mcontext.gregs;

	if (!warm)
		for (unsigned i = 0; i < NR_PAGES; i++)
			protect(i, shared->in.pages[i]);
	for (unsigned i = 0; i < 16; i++)
		g[greg_of[i]] = shared->in.gpr[i];
	g[REG_RIP] = shared->in.rip;
	g[REG_EFL] = shared->in.flags;
	g[REG_CSGSFS] = (g[REG_CSGSFS] & ~0xffffll) | shared->in.cs;
}

static void native_record(const ucontext_t *u)
{
	const greg_t *g = u->uc_mcontext.gregs;
	struct state *s = &shared->out[shared->nr++];

	for (unsigned i = 0; i < 16; i++)
		s->gpr[i] = g[greg_of[i]];
	s->rip = g[REG_RIP];
	s->flags = g[REG_EFL];
	s->error = g[REG_ERR];
	s->cr2 = g[REG_CR2];
	s->vector = g[REG_TRAPNO];
	s->cs = g[REG_CSGSFS] & 0xffff;
	memcpy(s->xstate, u->uc_mcontext.fpregs, XSTATE);
	memcpy(s->zones[0], pages + 0xc00, ZONE);
	memcpy(s->zones[1], pages + 0x2c00, ZONE);
	memcpy(s->stack, pages + 0x4800, ZONE);
}

static void native_signal(int sig, siginfo_t *info, void *context)
{
	ucontext_t *u = context;
	greg_t *g = u->uc_mcontext.gregs;
	unsigned page = (g[REG_CR2] - PAGES_AT) >> 12;

	if (!busy) {
		busy = 1;
		parked = *u;
		memcpy(parked_xstate, u->uc_mcontext.fpregs, XSTATE);
		load_xstate(u, shared->in.xstate);
		native_start(u);
		return;
	}
	if (g[REG_TRAPNO] == 3 && warm--) {
		native_start(u);
		return;
	}
	native_record(u);
	if (g[REG_TRAPNO] == 14 && page < NR_PAGES && shared->nr < FAULTS) {
		protect(page, MAPPED);
		return;
	}
	busy = 0;
	memcpy(g, parked.uc_mcontext.gregs, sizeof(parked.uc_mcontext.gregs));
	load_xstate(u, parked_xstate);
}

static int native_main(int in, int out)
{
	static uint8_t stack[65536];
	stack_t alternate = { .ss_sp = stack, .ss_size = sizeof(stack) };
	struct sigaction act = { .sa_sigaction = native_signal, .sa_flags = SA_SIGINFO | SA_ONSTACK | SA_NODEFER };
	char c;

	NEED(sigaltstack(&alternate, NULL) == 0);
	for (unsigned i = 0; i < 5; i++)
		NEED(sigaction((const int[]){ SIGTRAP, SIGSEGV, SIGBUS, SIGILL, SIGFPE }[i], &act, NULL) == 0);
	NEED(syscall(SYS_arch_prctl, ARCH_SET_GS, GS_BASE) == 0);
	asm volatile("mov %0, %%ds; mov %0, %%es" :: "r"(0x2b));	/* for 32-bit code; nobody else minds */
	while (read(in, &c, 1) == 1) {
		for (unsigned i = 0; i < NR_PAGES; i++)
			protect(i, MAPPED);
		shared->nr = 0;
		warm = shared->in.warm;
		asm volatile("int3" ::: "memory");
		NEED(write(out, &c, 1) == 1);
	}
	return 0;
}

/* Both processes: what they share. */
static void map_shared(int fd)
{
	shared = mmap(NULL, sizeof(*shared), PROT_READ | PROT_WRITE, MAP_SHARED, fd, 0);
	pages = mmap(NULL, NR_PAGES * 4096, PROT_READ | PROT_WRITE, MAP_SHARED, fd, 0x40000);
	NEED(shared != MAP_FAILED && pages != MAP_FAILED);
}

static int to_child, from_child;

static void start_child(void)
{
	int down[2], up[2], fd = memfd_create("precise_fault", 0);
	char args[3][16];

	_Static_assert(sizeof(*shared) < 0x40000, "the pages come after it");
	NEED(fd >= 0 && ftruncate(fd, 0x40000 + NR_PAGES * 4096) == 0);
	NEED(pipe(down) == 0 && pipe(up) == 0);
	snprintf(args[0], 16, "%d", fd);
	snprintf(args[1], 16, "%d", down[0]);
	snprintf(args[2], 16, "%d", up[1]);
	if (fork() == 0) {
		close(down[1]);
		unsetenv("LD_PRELOAD");
		execl("/proc/self/exe", "precise_fault", "native", args[0], args[1], args[2], NULL);
		_exit(1);
	}
	close(down[0]);
	close(up[1]);
	to_child = down[1];
	from_child = up[0];
	map_shared(fd);
}

static int child_main(char **argv)
{
	int fd = atoi(argv[2]);
	void *p;

	map_shared(fd);
	p = mmap((void *)PAGES_AT, NR_PAGES * 4096, PROT_READ | PROT_WRITE | PROT_EXEC,
		 MAP_SHARED | MAP_FIXED_NOREPLACE | MAP_POPULATE, fd, 0x40000);
	NEED(p == (void *)PAGES_AT);
	mlock(p, NR_PAGES * 4096);
	return native_main(atoi(argv[3]), atoi(argv[4]));
}

/* ---- the guest's kernel ------------------------------------------------------------------------ */

#define PT 0x4000u		/* of PAGES_AT */
#define GDT 0x5000u
#define TSS 0x5800u
#define IDT 0x6000u
#define KERNEL 0x8000u
#define VARS 0x9000u		/* see below */
#define IST 0xb000u
#define STUBS 0xc000u		/* 16 bytes each: push 0 (where the CPU pushes nothing), push vector, jmp */
#define LOG 0x100000u
#define MEM (4u << 20)

struct vars {
	uint64_t scratch, log, count, warm;	/* 0x9000 */
	uint64_t init[16];			/* 0x9020: registers */
	uint64_t rip, cs, flags, rsp, ss;	/* 0x90a0: as IRETQ wants them */
	uint64_t ptes[NR_PAGES];		/* 0x90c8: from after the last warm run */
	uint64_t fixed[NR_PAGES];		/* 0x9108: once they have faulted */
};

#define EACH_REG(op) op(1, rcx) op(2, rdx) op(3, rbx) op(5, rbp) op(6, rsi) op(7, rdi) op(8, r8) op(9, r9) op(10, r10) \
	op(11, r11) op(12, r12) op(13, r13) op(14, r14) op(15, r15)
#define SAVE(n, r) "mov %" #r ", 8*" #n "(%rax)\n"
#define RESTORE(n, r) "mov 8*" #n "(%rax), %" #r "\n"
#define INIT(n, r) "mov 0x9020+8*" #n ", %" #r "\n"
#define FLUSH "invlpg 0x20000000; invlpg 0x20001000; invlpg 0x20002000; invlpg 0x20003000;" \
	      "invlpg 0x20004000; invlpg 0x20005000; invlpg 0x20006000; invlpg 0x20007000\n"

/* At 0: begin. At 16: the stack has vector, error code, rip, cs, flags, rsp, ss; r15 and rax are what they were. */
GUEST_CODE(kernel,
	"0: jmp again; .skip 16 - (. - 0b)\n"
	"cmpl $3, (%rsp); jne record; decq 0x9018; js record\n"
	"again: cld; cmpq $0, 0x9018; jne 1f\n"
	"mov $0x90c8, %esi; mov $0x4000, %edi; mov $8, %ecx; rep movsq\n"
	FLUSH
	"1: mov $0xafd8, %esp; mov $0x90a0, %esi; mov %rsp, %rdi; mov $5, %ecx; rep movsq\n"
	EACH_REG(INIT) "mov 0x9020, %rax; iretq\n"
	"record: mov %rax, 0x9000; mov 0x9008, %rax\n"
	EACH_REG(SAVE)
	"cld; mov 0x9000, %rcx; mov %rcx, (%rax); mov 40(%rsp), %rcx; mov %rcx, 32(%rax)\n"
	"mov 16(%rsp), %rcx; mov %rcx, 0x80(%rax); mov 32(%rsp), %rcx; mov %rcx, 0x88(%rax)\n"
	"mov 8(%rsp), %rcx; mov %rcx, 0x90(%rax); mov %cr2, %rcx; mov %rcx, 0x98(%rax)\n"
	"mov (%rsp), %rcx; mov %rcx, 0xa0(%rax); mov 24(%rsp), %rcx; mov %rcx, 0xa8(%rax)\n"
	"mov %rax, %rbx; mov $7, %eax; xor %edx, %edx; xsave64 0x100(%rbx); mov %rbx, %rax\n"
	"lea 0x800(%rax), %rdi; mov $0x200c00, %esi; mov $256, %ecx; rep movsq\n"
	"mov $0x202c00, %esi; mov $256, %ecx; rep movsq; mov $0x204800, %esi; mov $256, %ecx; rep movsq\n"
	"addq $0x2000, 0x9008; incq 0x9010\n"
	"cmpl $14, (%rsp); jne stop; cmpq $8, 0x9010; jae stop\n"
	"mov %cr2, %rcx; sub $0x20000000, %rcx; shr $12, %rcx; cmp $8, %rcx; jae stop\n"
	"mov 0x9108(,%rcx,8), %rdx; mov %rdx, 0x4000(,%rcx,8); mov %cr2, %rcx; invlpg (%rcx)\n"
	EACH_REG(RESTORE) "mov (%rax), %rax; add $16, %rsp; iretq\n"
	"stop: hlt");

enum variant { USER_MODE, KERNEL_MODE, SUPERVISOR_PAGE, SMAP, RESERVED, NO_WP, NR_VARIANTS };
static const char *const variant_names[] = { "cpl 3", "cpl 0", "supervisor page", "smap", "reserved bit", "wp 0" };

static struct kvmtest t;
static struct kvm_sregs sregs;
static struct vars *vars;
static uint64_t *pt;

static void set_gate(unsigned v)
{
	int has_code = v == 8 || (v >= 10 && v <= 14) || v == 17;
	uint32_t to = STUBS + 16 * v;
	uint8_t *p = t.mem + to;
	uint64_t *gate = (uint64_t *)(t.mem + IDT + 16 * v);

	if (!has_code) {
		*p++ = 0x6a;
		*p++ = 0;
	}
	*p++ = 0x6a;
	*p++ = v;
	*p++ = 0xe9;
	*(int32_t *)p = KERNEL + 16 - (p + 4 - t.mem);
	gate[0] = (to & 0xffff) | 0x10ull << 16 | 1ull << 32 | 0xeeull << 40 | (uint64_t)(to >> 16) << 48;
	gate[1] = 0;
}

static void open_guest(void)
{
	struct kvm_segment cs = { .type = 11, .present = 1, .s = 1, .l = 1, .g = 1, .limit = ~0u, .selector = 0x10 };
	struct kvm_segment ss = { .type = 3, .present = 1, .s = 1, .db = 1, .g = 1, .limit = ~0u, .selector = 0x18 };
	struct kvm_xcrs xcrs = { .nr_xcrs = 1, .xcrs[0] = { .xcr = 0, .value = 7 } };
	uint64_t *gdt;

	t = kvmtest_vm(MEM, 0);
	kvmtest_add_vcpu(&t, 0);
	kvmtest_set_cpuid(&t);
	vars = (struct vars *)(t.mem + VARS);
	pt = (uint64_t *)(t.mem + PT);
	gdt = (uint64_t *)(t.mem + GDT);
	*(uint64_t *)(t.mem + 0x1000) = 0x2000 | 7;
	*(uint64_t *)(t.mem + 0x2000) = 0x3000 | 7;
	for (unsigned i = 0; i < MEM >> 21; i++)
		((uint64_t *)(t.mem + 0x3000))[i] = (uint64_t)i << 21 | 0x83;
	((uint64_t *)(t.mem + 0x3000))[PAGES_AT >> 21] = PT | 7;
	gdt[1] = 0x00cf9b000000ffffull;	/* 32-bit */
	gdt[2] = 0x00af9b000000ffffull;
	gdt[3] = 0x00cf93000000ffffull;
	gdt[4] = 0x00cffb000000ffffull;	/* 0x23, 0x2b, 0x33: as Linux has them */
	gdt[5] = 0x00cff3000000ffffull;
	gdt[6] = 0x00affb000000ffffull;
	*(uint64_t *)(t.mem + TSS + 0x24) = IST;
	for (unsigned v = 0; v < 32; v++)
		set_gate(v);
	memcpy(t.mem + KERNEL, kernel, GUEST_LEN(kernel));
	NEED(ioctl(t.vcpu, KVM_GET_SREGS, &sregs) == 0);
	sregs.cs = cs;
	sregs.ss = ss;
	sregs.fs = sregs.gs = (struct kvm_segment){ .unusable = 1 };
	sregs.ds = sregs.es = ss;
	sregs.ds.selector = sregs.es.selector = 0x2b;
	sregs.ds.dpl = sregs.es.dpl = 3;
	sregs.fs.base = sregs.gs.base = GS_BASE;
	sregs.tr = (struct kvm_segment){ .base = TSS, .limit = 0x67, .type = 11, .present = 1, .selector = 0x40 };
	sregs.gdt.base = GDT;
	sregs.gdt.limit = 0x4f;
	sregs.idt.base = IDT;
	sregs.idt.limit = 32 * 16 - 1;
	sregs.cr3 = 0x1000;
	sregs.cr4 = 0x40620;
	sregs.cr0 = 0x80010033;
	sregs.efer = 0xd01;
	NEED(ioctl(t.vcpu, KVM_SET_SREGS, &sregs) == 0);
	NEED(ioctl(t.vcpu, KVM_SET_XCRS, &xcrs) == 0);
}

static int is_user(enum variant v)
{
	return v == USER_MODE || v == SUPERVISOR_PAGE || v == RESERVED;
}

static uint64_t mapped_pte(unsigned page, enum variant v)
{
	return (PHYS + page * 4096) | (is_user(v) ? 7 : 3);
}

static uint64_t pte(unsigned page, unsigned how, enum variant v)
{
	uint64_t whole = mapped_pte(page, v);

	switch (how) {
	case READ_ONLY: return whole & ~2ull;
	case NO_EXEC: return whole | 1ull << 63;
	case ABSENT:
		switch (v) {
		case SUPERVISOR_PAGE: return whole & ~4ull;
		case SMAP: return whole | 4;
		case RESERVED: return whole | 1ull << 51;
		default: return whole & ~1ull;
		}
	}
	return whole;
}

/* Only what changes is set: it is the case's own pages that the engines should have to notice. */
static void set_mode(enum variant v)
{
	static enum variant last = NR_VARIANTS;

	if (v == last)
		return;
	last = v;
	sregs.cr0 = v == NO_WP ? 0x80000033 : 0x80010033;
	sregs.cr4 = v == SMAP ? 0x340620 : 0x40620;
	NEED(ioctl(t.vcpu, KVM_SET_SREGS, &sregs) == 0);
}

/* Of the case's code, which natively has cs. */
static uint64_t guest_cs(uint64_t cs, enum variant v)
{
	return is_user(v) ? cs : cs == 0x23 ? 8 : 0x10;
}

static struct state *guest_run(const struct layout *l, const uint8_t *memory, enum variant v)
{
	struct kvm_regs r = { .rip = KERNEL, .rsp = IST, .rflags = 2 };
	static struct kvm_xsave x;

	set_mode(v);
	memcpy(t.mem + PHYS, memory, NR_PAGES * 4096);
	for (unsigned i = 0; i < NR_PAGES; i++) {
		pt[i] = mapped_pte(i, v);
		vars->ptes[i] = pte(i, l->pages[i], v);
		vars->fixed[i] = mapped_pte(i, v);
	}
	memset(t.mem + LOG, 0, sizeof(struct state) * (FAULTS + 1));
	vars->log = LOG;
	vars->count = 0;
	vars->warm = l->warm;
	memcpy(vars->init, l->gpr, sizeof(vars->init));
	vars->rip = l->rip;
	vars->rsp = l->gpr[RSP];
	vars->flags = l->flags;
	vars->cs = guest_cs(l->cs, v);
	vars->ss = is_user(v) ? 0x2b : 0x18;
	memcpy(&x, l->xstate, XSTATE);
	NEED(ioctl(t.vcpu, KVM_SET_XSAVE, &x) == 0);
	NEED(ioctl(t.vcpu, KVM_SET_REGS, &r) == 0);
	/* Should it run in circles: what it has recorded by then is compared. */
	alarm(20);
	NEED(ioctl(t.vcpu, KVM_RUN, 0) == 0 || errno == EINTR);
	alarm(0);
	return (struct state *)(t.mem + LOG);
}

/* ---- comparison ----------------------------------------------------------------------------------- */

static int interpreted;
static char what[160];

static int differ(const char *name, uint64_t got, uint64_t want)
{
	snprintf(what, sizeof(what), "%s is 0x%llx, want 0x%llx", name, (unsigned long long)got, (unsigned long long)want);
	return 1;
}

static int bytes_differ(const char *name, const uint8_t *got, const uint8_t *want, unsigned n)
{
	for (unsigned i = 0; i < n; i++)
		if (got[i] != want[i])
			return snprintf(what, sizeof(what), "%s + 0x%x is 0x%x, want 0x%x", name, i, got[i], want[i]);
	return 0;
}

static int vectors_differ(const uint8_t *got, const uint8_t *want, unsigned properties)
{
	int x87 = !(properties & MMX);

	/* Not the opcode and addresses of the last x87 instruction, which are nobody's business. */
	if (x87 && (bytes_differ("fcw, fsw, ftw", got, want, 5) || bytes_differ("mxcsr", got + 24, want + 24, 4)))
		return 1;
	for (unsigned i = 0; x87 && i < 8; i++)
		if (bytes_differ("st or mm", got + 32 + 16 * i, want + 32 + 16 * i, 10))
			return 1;
	return bytes_differ("xmm", got + 160, want + 160, 256) || bytes_differ("ymm", got + 576, want + 576, 256);
}

/* What the CPU says of an absent page, for other reasons. */
static uint64_t error_of(uint64_t native, enum variant v)
{
	uint64_t e = is_user(v) ? native : native & ~4ull;

	if (native & 1)		/* not the absent one */
		return e;
	return e | (v == RESERVED ? 9 : v == SUPERVISOR_PAGE || v == SMAP ? 1 : 0);
}

static uint64_t flags_mask(const struct form *f, int fault)
{
	uint64_t mask = 0xffffffff;

	if (fault && !interpreted)
		mask &= ~(uint64_t)(f->properties & SETS ? FLAGS_ARITH : f->properties & SETS_NOT_CF ? FLAGS_ARITH & ~1u :
				    f->properties & SETS_SOME ? FLAGS_ARITH : 0);
	if (!fault && (f->properties & UNDEF))
		mask &= ~(uint64_t)FLAGS_ARITH;
	return mask;
}

static int state_differs(const struct form *f, const struct state *got, const struct state *want, enum variant v)
{
	static const char *const names[16] = { "rax", "rcx", "rdx", "rbx", "rsp", "rbp", "rsi", "rdi",
					       "r8", "r9", "r10", "r11", "r12", "r13", "r14", "r15" };
	int fault = want->vector == 14;
	uint64_t mask = flags_mask(f, fault);

	if (got->vector != want->vector)
		return differ("vector", got->vector, want->vector);
	if (fault && (f->properties & ANY_CR2 ? (got->cr2 ^ want->cr2) >> 12 : got->cr2 != want->cr2))
		return differ("cr2", got->cr2, want->cr2);
	if (fault && got->error != error_of(want->error, v))
		return differ("error code", got->error, error_of(want->error, v));
	if (got->rip != want->rip)
		return differ("rip", got->rip, want->rip);
	for (unsigned i = 0; i < 16; i++)
		if (got->gpr[i] != want->gpr[i] && !(fault && i != RSP && (f->properties & SOME_REGISTERS)))
			return differ(names[i], got->gpr[i], want->gpr[i]);
	if ((got->flags ^ want->flags) & mask)
		return differ("flags", got->flags, want->flags);
	if (got->cs != guest_cs(want->cs, v))
		return differ("cs", got->cs, guest_cs(want->cs, v));
	if (!(fault && (f->properties & SOME_VECTORS)) && vectors_differ(got->xstate, want->xstate, f->properties))
		return 1;
	if (fault && (f->properties & PARTIAL))
		return 0;
	return bytes_differ("memory at A", got->zones[0], want->zones[0], ZONE) ||
	       bytes_differ("memory at B", got->zones[1], want->zones[1], ZONE) ||
	       bytes_differ("stack", got->stack, want->stack, ZONE);
}

static int differs(const struct form *f, const struct state *got, enum variant v)
{
	if (t.run->exit_reason != KVM_EXIT_HLT)
		return differ("exit", t.run->exit_reason, KVM_EXIT_HLT);
	for (unsigned i = 0; i < shared->nr && i < vars->count; i++)
		if (state_differs(f, &got[i], &shared->out[i], v)) {
			size_t n = strlen(what);

			snprintf(what + n, sizeof(what) - n, " (%u of %u)", i, shared->nr);
			return 1;
		}
	if (vars->count != shared->nr)
		return differ("number of exceptions", vars->count, shared->nr);
	return bytes_differ("pages", t.mem + PHYS, pages, (STACK + 1) * 4096);
}

/* ---- cases ---------------------------------------------------------------------------------------- */

enum around { ALONE, BEHIND, RANGE, NR_AROUND };
static const char *const around_names[] = { "alone", "behind others", "in a range" };

struct place {
	long a, b;		/* where the operands begin, counted from A1 and B1 */
	uint8_t pages[NR_PAGES];
	int code;		/* where the code begins, counted from C1; 0: far from it */
};

static uint8_t memory[NR_PAGES * 4096];
static uint64_t seed = 88172645463325252ull;
static unsigned nr_case, wanted_case = ~0u, faults_seen, shown, runs;
static const char *wanted_form;

static uint64_t rnd(void)
{
	seed ^= seed << 13;
	seed ^= seed >> 7;
	return seed ^= seed << 17;
}

/* mov disp8(base), r9, or the other way round; ecx in 32-bit code */
static uint8_t *put_move(uint8_t *p, int base, int disp, int store, int narrow)
{
	if (!narrow)
		*p++ = 0x4c | base >> 3;
	*p++ = store ? 0x89 : 0x8b;
	*p++ = 0x48 | (base & 7);
	if ((base & 7) == RSP)
		*p++ = 0x24;
	*p++ = disp;
	return p;
}

static uint8_t *put_bytes(uint8_t *p, const uint8_t *from, unsigned n)
{
	memcpy(p, from, n);
	return p + n;
}

/* add r8,r9; xor r9,r10; lea 5(r10),r11; inc r8; sub r11,r15 */
GUEST_CODE(before, "add %r8, %r9; xor %r9, %r10; lea 5(%r10), %r11; inc %r8; sub %r11, %r15");
GUEST_CODE(after, "mov %r9, %r10; lea 1(%r10), %r11; int3");
GUEST_CODE(before32, ".code32\nadd %ecx, %edx; xor %edx, %eax; lea 5(%edx), %eax; inc %edx; sub %eax, %edx\n.code64");
GUEST_CODE(after32, ".code32\nlea 1(%eax), %edx; int3\n.code64");

static int can_be_ranged(const struct form *f)
{
	return f->a.base >= 0 && !(f->properties & CODE_A) && f->a.add >= -64 && f->a.add <= 64 &&
	       f->a.base < R8 && f->a.base != RAX;
}

/* The code at C, in the child's form; returns its length before the first byte of the form. */
static unsigned put_code(uint8_t *at, const struct form *f, enum around around, int native)
{
	int narrow = !!(f->properties & W32);
	uint8_t *p = at, *form;

	if (around != ALONE)
		p = narrow ? put_bytes(p, before32, GUEST_LEN(before32)) : put_bytes(p, before, GUEST_LEN(before));
	if (around == RANGE) {
		p = put_move(p, f->a.base, f->a.add - 16, 0, narrow);
		p = put_move(p, f->a.base, f->a.add - 8, 0, narrow);
	}
	form = p;
	p = put_bytes(p, f->code, f->end - f->code);
	if (native && (f->properties & GS_IS_FS))
		*form = 0x65;
	if (around == RANGE)
		p = put_move(p, f->a.base, f->a.add - 24, 1, narrow);
	if (narrow)
		put_bytes(p, after32, GUEST_LEN(after32));
	else
		put_bytes(p, after, GUEST_LEN(after));
	return form - at;
}

static void point_rip(uint8_t *form, const struct form *f, uint64_t linear)
{
	unsigned len = f->end - f->code;

	*(uint32_t *)(form + len - 4) = (f->a.add ? LINEAR(A1) - 4 : LINEAR(A1) - 0x100) - (linear + len);
}

static void point_operand(struct layout *l, const struct operand *o, uint64_t at)
{
	if (o->base >= 0)
		l->gpr[o->base] = at - o->add;
}

static uint64_t put_all_code(uint8_t *to, const struct form *f, const struct place *p, enum around around, int native)
{
	unsigned offset = p->code ? 4096 + p->code : 0x100;
	uint8_t *at = to + C0 * 4096 + offset;
	unsigned n = put_code(at, f, around, native);

	if (f->properties & RIP)
		point_rip(at + n, f, LINEAR(C0) + offset + n);
	return LINEAR(C0) + offset;
}

/* An image that XRSTOR and FXRSTOR take. */
static void put_image(uint8_t *at, const struct layout *l)
{
	memcpy(at, l->xstate, XSTATE);
	at[160] ^= 0x55;
	at[576] ^= 0x55;
	memset(at + 28, 0, 4);
}

static void lay_out(struct layout *l, const struct form *f, const struct place *p, enum around around)
{
	uint64_t a = LINEAR(A1) + p->a, b = LINEAR(B1) + p->b;

	memset(l, 0, sizeof(*l));
	for (unsigned i = 0; i < 16; i++)
		l->gpr[i] = f->properties & W32 ? (uint32_t)rnd() : rnd();
	l->cs = f->properties & W32 ? 0x23 : 0x33;
	l->gpr[RCX] = (l->gpr[RCX] & ~0xffull) | 3;
	l->gpr[RSP] = LINEAR(STACK) + 0xe00;
	l->gpr[R12] = 5;
	point_operand(l, &f->a, a);
	point_operand(l, &f->b, b);
	l->flags = 0x202 | (rnd() & FLAGS_ARITH);
	memcpy(l->pages, p->pages, sizeof(l->pages));
	for (unsigned i = 160; i < 416; i++)
		l->xstate[i] = i % 8 == 7 ? 0x3f : rnd();
	for (unsigned i = 576; i < XSTATE; i++)
		l->xstate[i] = rnd();
	*(uint16_t *)l->xstate = 0x27f; /* so that it is in use */
	*(uint32_t *)(l->xstate + 24) = 0x1f80;
	*(uint64_t *)(l->xstate + 512) = 7;
	for (unsigned i = 0; i < sizeof(memory) / 8; i++)
		((uint64_t *)memory)[i] = rnd();
	memset(memory + C0 * 4096, 0xcc, 8192);
	if (f->properties & CODE_A)
		memset(memory, 0xcc, 8192);
	if (f->properties & IMAGE)
		put_image(memory + 4096 + p->a, l);
	l->rip = put_all_code(memory, f, p, around, 0);
}

static void native_run(const struct layout *l, const struct form *f, const struct place *p, enum around around)
{
	char c = 0;

	shared->in = *l;
	memcpy(pages, memory, sizeof(memory));
	put_all_code(pages, f, p, around, 1);
	NEED(write(to_child, &c, 1) == 1 && read(from_child, &c, 1) == 1);
}

static void judge(const struct form *f, const struct layout *l, const struct place *p, enum around around, enum variant v)
{
	struct state *got = guest_run(l, memory, v);
	int bad = differs(f, got, v);

	runs++;
	if (bad && shown++ < 3) {
		printf("%s %u: %s, %s, %s, A%+ld B%+ld C%+d, pages", f->name, nr_case, around_names[around], variant_names[v],
		       l->warm ? "warm" : "cold", p->a, p->b, p->code);
		for (unsigned i = 0; i < NR_PAGES; i++)
			printf(" %s", (const char *[]){ "-", "absent", "ro", "nx" }[l->pages[i]]);
		printf(": %s\n", what);
	}
	if (bad)
		kvmtest_failed++;
	else
		kvmtest_passed++;
}

static int has_page(const struct place *p, enum page how)
{
	for (unsigned i = 0; i < NR_PAGES; i++)
		if (p->pages[i] == how)
			return 1;
	return 0;
}

static void one_case(const struct form *f, const struct place *p, enum around around, int is_warm)
{
	struct layout l;
	struct place all = *p;

	if (++nr_case, wanted_case != ~0u && wanted_case != nr_case)
		return;
	lay_out(&l, f, p, around);
	l.warm = is_warm ? WARM : 0;
	native_run(&l, f, p, around);
	for (unsigned i = 0; i < shared->nr; i++)
		faults_seen += shared->out[i].vector == 14;
	judge(f, &l, p, around, USER_MODE);
	if (f->properties & USER) /* what is left cannot be at CPL 0 */
		return;
	judge(f, &l, p, around, KERNEL_MODE);
	if (around == BEHIND && !p->code && has_page(p, ABSENT) && !(f->properties & CODE_A)) {
		judge(f, &l, p, around, SUPERVISOR_PAGE);
		judge(f, &l, p, around, SMAP);
		judge(f, &l, p, around, RESERVED);
	}
	if (around == BEHIND && has_page(p, READ_ONLY)) {
		memset(all.pages, MAPPED, sizeof(all.pages));
		memcpy(shared->in.pages, all.pages, sizeof(all.pages));
		memcpy(l.pages, all.pages, sizeof(all.pages));
		native_run(&l, f, &all, around);
		memcpy(l.pages, p->pages, sizeof(l.pages));
		judge(f, &l, p, around, NO_WP);
	}
}

static void each_way(const struct form *f, const struct place *p)
{
	for (enum around around = 0; around < NR_AROUND; around++) {
		if (around == RANGE && !can_be_ranged(f))
			continue;
		one_case(f, p, around, 0);
		one_case(f, p, around, 1);
	}
}

/* One operand in all its places, the other in a harmless one. first: A0 or B0 */
static void place_operand(const struct form *f, const struct operand *o, int first, int writes)
{
	unsigned align = f->properties & ALIGN64 ? 64 : f->properties & ALIGN16 ? 16 : 1;
	long size = o->size, inside = -0x200 - (size > 0x180 ? 0x200 : 0);
	long at[] = { inside, -size, 0, -1, 1 - size, -size / 2 };
	static const uint8_t states[][2] = { { ABSENT, 0 }, { 0, ABSENT }, { ABSENT, ABSENT }, { READ_ONLY, 0 },
					     { 0, READ_ONLY }, { READ_ONLY, READ_ONLY } };

	for (unsigned i = 0; i < sizeof(at) / sizeof(at[0]); i++) {
		long where = at[i] & -(long)align;
		int across = where > -size && where < 0;

		if (f->properties & FIXED)
			where = o->add ? o->add : -0x100;
		if (f->properties & FIXED ? i > 0 : i > 2 && !across)
			continue;
		/* Where that would be the place before again. */
		if ((i == 5 && size < 4) || (i == 3 && align > 1 && size < 65))
			continue;
		for (unsigned s = 0; s < sizeof(states) / sizeof(states[0]); s++) {
			struct place p = { .a = inside, .b = inside };

			if (s >= 3 && !writes)
				break;
			/* Which of two comes first is the CPU's choice for what is done in many steps. */
			if (states[s][0] && states[s][1] && (size > 32 || (f->properties & (PARTIAL | ANY_CR2))))
				continue;
			*(first == A0 ? &p.a : &p.b) = where;
			p.pages[first] = states[s][0];
			p.pages[first + 1] = states[s][1];
			if ((f->properties & (ALIGN16 | ALIGN64)) && first != A0)
				p.a &= -64;
			each_way(f, &p);
		}
	}
}

/* The second page of the code is absent, from each of its bytes on. */
static void place_code(const struct form *f)
{
	unsigned n = f->properties & W32 ? GUEST_LEN(before32) : GUEST_LEN(before), len = f->end - f->code;
	struct place p = { .a = f->properties & FIXED ? (f->a.add ? f->a.add : -0x100) : -0x400, .b = -0x400 };

	for (unsigned k = 0; k < len && k < 16; k++)
		for (unsigned how = 0; how < 2; how++) {
			p.code = -(int)(n + k);
			p.pages[C1] = how ? NO_EXEC : ABSENT;
			one_case(f, &p, BEHIND, 0);
			one_case(f, &p, BEHIND, 1);
		}
}

static void place_target(const struct form *f)
{
	struct place p = { .a = 0, .b = -0x200, .pages[A1] = NO_EXEC };

	each_way(f, &p);
}

static void test_form(const struct form *f)
{
	nr_case = faults_seen = shown = 0;
	place_operand(f, &f->a, A0, f->properties & WR);
	if (f->b.base >= 0) {
		struct place both = { .a = -0x200, .b = -0x200, .pages[A0] = ABSENT, .pages[B0] = ABSENT };

		place_operand(f, &f->b, B0, f->properties & BWR);
		each_way(f, &both);
	}
	if (f->properties & CODE_A)
		place_target(f);
	place_code(f);
	/* A form of which this CPU knows nothing has been tested for #UD only. */
	if (wanted_case == ~0u && shared->out[0].vector == 6 && !faults_seen) {
		printf("%s: not on this CPU\n", f->name);
		kvmtest_skipped++;
	} else if (wanted_case == ~0u) {
		CHECK(faults_seen > 0);
	}
}

static void on_alarm(int sig)
{
}

static void all(void)
{
	const char *engine = getenv("SOFTKVM_ENGINE");

	NEED(sigaction(SIGALRM, &(struct sigaction){ .sa_handler = on_alarm }, NULL) == 0);

	interpreted = engine && !strcmp(engine, "interp");
	start_child();
	open_guest();
	for (const struct form *f = __start_precise_forms; f < __stop_precise_forms; f++)
		if (!wanted_form || !strcmp(wanted_form, f->name))
			test_form(f);
	close(to_child);
	wait(NULL);
	kvmtest_done(&t);
}

int main(int argc, char **argv)
{
	if (argc == 5 && !strcmp(argv[1], "native"))
		return child_main(argv);
	if (argc > 1) {
		wanted_form = argv[1];
		wanted_case = argc > 2 ? (unsigned)atoi(argv[2]) : ~0u;
		all();
		return kvmtest_summary();
	}
	return both_engines(argv[0], all);
}

/* SPDX-License-Identifier: MIT */
/*
 * The native side. rt_sigreturn loads the whole state at once, code segment
 * included: 64-bit, compatibility, or 16-bit out of the LDT. The fault that ends every
 * case brings the state back as a signal frame.
 *
 * 1. The handler clears AC before C runs: the kernel leaves it set.
 * 2. FS is the C library's, and so while C runs: the last thing loaded before a case, the first put back after it.
 */
#include <asm/ldt.h>
#include <asm/prctl.h>
#include <signal.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/mman.h>
#include <sys/syscall.h>
#include <sys/time.h>
#include <ucontext.h>
#include <unistd.h>

#include "host/host.h"
#include "host/signal_internal.h"
#include "oracle.h"

#define XSTATE_MAGIC1 0x46505853u
#define XSTATE_MAGIC2 0x46505845u
#define XSTATE_SIZE 832		/* x87, SSE, AVX */
#define XSTATE_BV 512
#define XSTATE_YMMH 576

/* What the kernel keeps in the software-reserved bytes of a frame. */
struct xstate_note {
	u32 magic1, extended_size;
	u64 xfeatures;
	u32 xstate_size;
};

static const int greg_of[16] = {
	REG_RAX, REG_RCX, REG_RDX, REG_RBX, REG_RSP, REG_RBP, REG_RSI, REG_RDI,
	REG_R8, REG_R9, REG_R10, REG_R11, REG_R12, REG_R13, REG_R14, REG_R15,
};

/* What the assembly below loads and finds, in this order. */
struct native_segments {
	u64 es, ds, fs, gs;
	u64 fs_base;
};

struct native_segments native_seg_in __attribute__((visibility("hidden")));
struct native_segments native_seg_out __attribute__((visibility("hidden")));
u64 native_host_fs __attribute__((visibility("hidden")));	/* the C library's */

static struct {
	ucontext_t uc;
	_Alignas(64) u8 xstate[XSTATE_SIZE + 64];
} frame;

static volatile bool in_native;
static volatile bool have_template;
static volatile u64 nr_runs, last_tick_runs;
static struct oracle_state *result;

u64 native_saved_rsp __attribute__((visibility("hidden")));
void native_enter(void *uc) __attribute__((visibility("hidden")));
void native_leave(void) __attribute__((visibility("hidden"), noreturn));
void native_handler(int sig, siginfo_t *info, void *context) __attribute__((visibility("hidden")));
void native_signal(int sig, siginfo_t *info, void *context) __attribute__((visibility("hidden")));

#define SET_FS(base)	"	mov $158, %eax\n	mov $0x1002, %edi\n	mov " base ", %rsi\n	syscall\n"

asm(".pushsection .text\n"
    "native_enter:\n"
    "	push %rbx\n	push %rbp\n	push %r12\n	push %r13\n	push %r14\n	push %r15\n"
    "	mov %rsp, native_saved_rsp(%rip)\n"
    "	mov %rdi, %r12\n"
    "	mov 0+native_seg_in(%rip), %es\n"
    "	mov 8+native_seg_in(%rip), %ds\n"
    "	mov 16+native_seg_in(%rip), %ebx\n"
    "	cmp $3, %ebx\n"
    "	jbe 1f\n"
    "	mov %ebx, %fs\n"
    "	jmp 2f\n"
    "1:\n"
    SET_FS("32+native_seg_in(%rip)")
    "2:	pushq $0x202\n	popfq\n" /* sigreturn would leave NT and ID as they are */
    "	mov %r12, %rsp\n"
    "	mov $15, %eax\n"
    "	syscall\n"
    "	ud2\n"
    "native_leave:\n"
    "	mov native_saved_rsp(%rip), %rsp\n"
    "	pop %r15\n	pop %r14\n	pop %r13\n	pop %r12\n	pop %rbp\n	pop %rbx\n"
    "	ret\n"
    "native_handler:\n"
    "	pushfq\n"
    "	andq $0xfffffffffffbffff, (%rsp)\n"
    "	popfq\n"
    "	push %rdi\n	push %rsi\n	push %rdx\n	push %rbx\n	push %r12\n"
    "	mov %es, 0+native_seg_out(%rip)\n"
    "	mov %ds, 8+native_seg_out(%rip)\n"
    "	mov %fs, %ebx\n"
    "	mov %rbx, 16+native_seg_out(%rip)\n"
    "	mov %gs, 24+native_seg_out(%rip)\n"
    "	mov $158, %eax\n	mov $0x1003, %edi\n	lea 32+native_seg_out(%rip), %rsi\n	syscall\n"
    "	mov 32+native_seg_out(%rip), %r12\n"
    SET_FS("native_host_fs(%rip)")
    "	mov 16(%rsp), %rdx\n	mov 24(%rsp), %rsi\n	mov 32(%rsp), %rdi\n"
    "	call native_signal\n"
    /* Only a tick comes back to a case. */
    "	cmp $3, %ebx\n"
    "	jbe 3f\n"
    "	mov %ebx, %fs\n"
    "	jmp 4f\n"
    "3:\n"
    SET_FS("%r12")
    "4:	pop %r12\n	pop %rbx\n	add $24, %rsp\n"
    "	ret\n"
    ".popsection\n");

static void take_result(const ucontext_t *uc)
{
	const u8 *xstate = (const u8 *)uc->uc_mcontext.fpregs;
	const greg_t *g = uc->uc_mcontext.gregs;
	u64 bv;

	for (int i = 0; i < 16; i++)
		result->gpr[i] = g[greg_of[i]];
	result->rip = g[REG_RIP];
	result->rflags = g[REG_EFL];
	result->vector = g[REG_TRAPNO];
	result->error = g[REG_ERR];
	result->cr2 = g[REG_CR2];
	result->sel[SEG_CS] = g[REG_CSGSFS];
	result->sel[SEG_SS] = (u64)g[REG_CSGSFS] >> 48;
	result->sel[SEG_ES] = native_seg_out.es;
	result->sel[SEG_DS] = native_seg_out.ds;
	result->sel[SEG_FS] = native_seg_out.fs;
	result->sel[SEG_GS] = native_seg_out.gs;
	result->fs_base = native_seg_out.fs_base;
	syscall(SYS_arch_prctl, ARCH_GET_GS, &result->gs_base);
	memcpy(result->fx, xstate, 512);
	memcpy(&bv, xstate + XSTATE_BV, 8);
	memset(result->ymmh, 0, sizeof(result->ymmh));
	if (bv & XFEATURE_AVX)
		memcpy(result->ymmh, xstate + XSTATE_YMMH, sizeof(result->ymmh));
}

static void on_tick(void)
{
	if (in_native && last_tick_runs == nr_runs) {
		static const char text[] = "not ok: an instruction does not come back from the host CPU\n";

		if (write(2, text, sizeof(text) - 1) < 0)
			_exit(2);
		_exit(1);
	}
	last_tick_runs = nr_runs;
}

void native_signal(int sig, siginfo_t *info, void *context)
{
	ucontext_t *uc = context;

	if (sig == SIGALRM) {
		on_tick();
		return;
	}
	if (!have_template) {
		frame.uc = *uc;
		have_template = true;
		uc->uc_mcontext.gregs[REG_RIP] += 2;
		return;
	}
	if (in_native) {
		in_native = false;
		take_result(uc);
		native_leave();
	}
	if (!fault_resolve(sig, info, uc))
		signal(sig, SIG_DFL);
}

static void fail(const char *what)
{
	perror(what);
	exit(1);
}

/* len bytes at va, prot each page, and a second view that is always writable. */
static u8 *map_twice(u64 va, size_t len, int prot)
{
	int fd = memfd_create("oracle", 0);
	u8 *alias;

	if (fd < 0 || ftruncate(fd, len))
		fail("memfd");
	alias = mmap(NULL, len, PROT_READ | PROT_WRITE, MAP_SHARED | MAP_POPULATE, fd, 0);
	if (alias == MAP_FAILED || mmap((void *)va, len, prot, MAP_SHARED | MAP_POPULATE | MAP_FIXED_NOREPLACE,
					fd, 0) != (void *)va)
		fail("mmap");
	close(fd);
	return alias;
}

bool native_set_ldt(const struct user_desc *d)
{
	return !syscall(SYS_modify_ldt, 0x11, d, sizeof(*d));
}

static void ldt_entry(unsigned nr, u32 base, u32 limit, unsigned contents, bool is32)
{
	struct user_desc d = {
		.entry_number = nr, .base_addr = base, .limit = limit, .seg_32bit = is32, .contents = contents,
	};

	if (!native_set_ldt(&d))
		fail("modify_ldt");
}

static void install_handlers(void)
{
	static const int signals[] = { SIGFPE, SIGSEGV, SIGBUS, SIGILL, SIGTRAP, SIGALRM };
	struct sigaction sa = { .sa_sigaction = native_handler, .sa_flags = SA_SIGINFO | SA_ONSTACK | SA_NODEFER };
	stack_t ss = { .ss_size = 256 << 10 };

	ss.ss_sp = mmap(NULL, ss.ss_size, PROT_READ | PROT_WRITE, MAP_PRIVATE | MAP_ANONYMOUS, -1, 0);
	if (ss.ss_sp == MAP_FAILED || sigaltstack(&ss, NULL))
		fail("sigaltstack");
	/* A tick in the middle of a handler would find the C library's FS, and leave it in native_seg_out. */
	sigaddset(&sa.sa_mask, SIGALRM);
	for (unsigned i = 0; i < ARRAY_SIZE(signals); i++)
		if (sigaction(signals[i], &sa, NULL))
			fail("sigaction");
}

void native_init(struct oracle_memory *mem)
{
	struct itimerval tick = { .it_interval = { .tv_sec = 5 }, .it_value = { .tv_sec = 5 } };
	struct xstate_note note = {
		.magic1 = XSTATE_MAGIC1, .extended_size = XSTATE_SIZE + 4, .xfeatures = 7, .xstate_size = XSTATE_SIZE,
	};
	u32 magic2 = XSTATE_MAGIC2;
	u64 bv = 7;

	mem->code = map_twice(ORACLE_CODE, ORACLE_CODE_SIZE, PROT_READ | PROT_EXEC);
	mem->data = map_twice(ORACLE_DATA, ORACLE_DATA_SIZE, PROT_READ | PROT_WRITE);
	if (mprotect((void *)(ORACLE_DATA + ORACLE_DATA_RW), ORACLE_DATA_SIZE - ORACLE_DATA_RW, PROT_READ))
		fail("mprotect");
	ldt_entry(0, ORACLE_CS16_BASE, 0xffff, MODIFY_LDT_CONTENTS_CODE, false);
	ldt_entry(1, ORACLE_DS16_BASE, ORACLE_DS16_LIMIT, MODIFY_LDT_CONTENTS_DATA, false);
	ldt_entry(2, ORACLE_DATA, ORACLE_SMALL_LIMIT, MODIFY_LDT_CONTENTS_DATA, true);
	ldt_entry(3, ORACLE_DATA, ORACLE_DOWN_LIMIT, MODIFY_LDT_CONTENTS_STACK, true);
	ldt_entry(ORACLE_LDT_ENTRIES - 1, 0, 0xfff, MODIFY_LDT_CONTENTS_DATA, true);	/* the table's limit */
	syscall(SYS_arch_prctl, ARCH_GET_FS, &native_host_fs);
	install_handlers();
	asm volatile("ud2");
	frame.uc.uc_mcontext.fpregs = (void *)frame.xstate;
	memcpy(frame.xstate + 464, &note, sizeof(note));
	memcpy(frame.xstate + XSTATE_SIZE, &magic2, 4);
	memcpy(frame.xstate + XSTATE_BV, &bv, 8);
	setitimer(ITIMER_REAL, &tick, NULL);
}

/* GS is nobody's here, and can be set from C. */
static void load_gs(u16 selector, u64 base)
{
	if (selector > 3) {
		asm volatile("mov %0, %%gs" : : "r"((u32)selector));
	} else {
		asm volatile("mov %0, %%gs" : : "r"(0));
		if (syscall(SYS_arch_prctl, ARCH_SET_GS, base))
			fail("arch_prctl");
	}
}

void native_run(const struct oracle_state *in, struct oracle_state *out)
{
	greg_t *g = frame.uc.uc_mcontext.gregs;

	for (int i = 0; i < 16; i++)
		g[greg_of[i]] = in->gpr[i];
	g[REG_RIP] = in->rip;
	g[REG_EFL] = in->rflags;
	g[REG_CSGSFS] = in->sel[SEG_CS] | (u64)in->sel[SEG_SS] << 48;
	native_seg_in = (struct native_segments){
		.es = in->sel[SEG_ES], .ds = in->sel[SEG_DS], .fs = in->sel[SEG_FS], .fs_base = in->fs_base,
	};
	load_gs(in->sel[SEG_GS], in->gs_base);
	memcpy(frame.xstate, in->fx, 464);
	memcpy(frame.xstate + XSTATE_YMMH, in->ymmh, sizeof(in->ymmh));
	result = out;
	nr_runs++;
	in_native = true;
	native_enter(&frame.uc);
}

/* SPDX-License-Identifier: MIT */
/*
 * A guest that tries every kind of operand on every kind of address: beyond its memory, at its edges, not
 * canonical, with the page of another one, and the client's own addresses, with and without the
 * distance between guest and host added. The client's memory around the guest's is full of a word that the guest
 * must neither change nor ever get to see. Both engines.
 */
#include <signal.h>

#include "both.h"

#define MEM (8u << 20)
#define GUARD (4u << 20)
#define WORD 0x5afe5afec0dec0deull
#define CODE 0x100000u
#define DATA 0x200000u		/* a valid page: what its TLB entry says must not help others */
#define PATTERNS 0x300000u
#define RESULTS 0x340000u
#define NR_PATTERNS 512u
#define STACK 0x3f0000u
#define TSS 0x5000u
#define IST 0x18000u
#define IDT 0x20000u
#define HANDLERS 0x30000u

/*
 * rax: the address; rdx, xmm0: what is stored, and where loads go; r8: where to go on after an exception; r10, r11: count
 * and place of the address. What came of it goes to RESULTS.
 */
#define FORM(name, insn)                                                                \
	GUEST_CODE(name, "mov $0x300000, %r11d; mov $512, %r10d\n"                      \
		   "1: mov (%r11), %rax; lea 2f(%rip), %r8; mov $0x1111, %edx; xor %ebx, %ebx\n" \
		   "mov 0x200010, %rcx; mov %rcx, 0x200018; movq %rdx, %xmm0; xor %r9d, %r9d\n" \
		   insn "\n2: mov $0x3f0000, %esp; cld; mov $0x200000, %ebp\n"          \
		   "mov %rdx, 0x40000(%r11); movups %xmm0, 0x200100\n"                  \
		   "add $8, %r11; dec %r10d; jnz 1b; hlt")

FORM(f_load8, "movb (%rax), %dl");
FORM(f_load16, "movw (%rax), %dx");
FORM(f_load32, "movl (%rax), %edx");
FORM(f_load64, "movq (%rax), %rdx");
FORM(f_store8, "movb %dl, (%rax)");
FORM(f_store16, "movw %dx, (%rax)");
FORM(f_store32, "movl %edx, (%rax)");
FORM(f_store64, "movq %rdx, (%rax)");
FORM(f_store_imm, "movq $-1, 7(%rax)");
FORM(f_disp8, "movq -128(%rax), %rdx; movq %rdx, 127(%rax)");
FORM(f_disp32, "movq 0x7ffffff8(%rax), %rdx; movq %rdx, -0x80000000(%rax)");
FORM(f_index, "movq (%rbx,%rax,1), %rdx; movq %rdx, (%rbx,%rax,1)");
FORM(f_index8, "movq (%rbx,%rax,8), %rdx; movq %rdx, 8(,%rax,8)");
FORM(f_two, "movq (%rax,%rax,2), %rdx; movq %rdx, (%rax,%rax,4)");
FORM(f_high, "mov %rax, %r13; mov %rax, %r14; mov %rax, %r15; movq (%r13), %rdx; movq %rdx, 8(%r14); movq (%r15,%rbx,8), %rdx");
FORM(f_homed, "mov %rax, %r9; mov %rax, %r10; mov %rax, %r11; movq (%r9), %rdx; movq %rdx, 8(%r10); movq (%r11,%rbx,8), %rdx");
FORM(f_homed2, "mov %rax, %r9; mov %rbx, %r10; mov %rdx, %r11; movq (%r9,%r10), %r11; movq %r11, 8(%r9,%r10,8)");
FORM(f_rsp, "mov %rax, %rsp; movq (%rsp), %rdx; movq %rdx, 8(%rsp)");
FORM(f_rbp, "mov %rax, %rbp; movq (%rbp), %rdx; movq %rdx, -8(%rbp)");
FORM(f_addr32, "movq (%eax), %rdx; movq %rdx, 4(%eax,%ebx,4)");
FORM(f_abs, "movq 0x7ffffff8, %rdx; movq %rdx, 0xffffffff80000000");
FORM(f_rip, "movq 0x7ff00000(%rip), %rdx; movq %rdx, -0x7ff00000(%rip)");
FORM(f_fs, "movq %fs:(%rax), %rdx; movq %rdx, %gs:(%rax)");
FORM(f_push, "mov %rax, %rsp; push %rdx");
FORM(f_push_mem, "push (%rax); mov %rax, %rsp; push 0x200010");
FORM(f_pop, "mov %rax, %rsp; pop %rdx");
FORM(f_pop_mem, "mov %rax, %rsp; pop 0x200020; pop (%rax)");
FORM(f_pushf, "mov %rax, %rsp; pushfq; popfq");
FORM(f_leave, "mov %rax, %rbp; leave; mov %rbp, %rdx");
FORM(f_enter, "mov %rax, %rsp; enter $16, $2");
FORM(f_call, "mov %rax, %rsp; call 3f; 3: ");
FORM(f_ret, "mov %rax, %rsp; ret");
FORM(f_jump, "jmp *%rax");
FORM(f_jump_mem, "jmp *(%rax)");
FORM(f_call_mem, "call *(%rax)");
FORM(f_rmw, "addq %rdx, (%rax); incl (%rax); notb (%rax); shlw $3, (%rax); negq (%rax)");
FORM(f_locked, "lock addq %rdx, (%rax); lock xaddq %rdx, (%rax); xchg %rdx, (%rax)");
FORM(f_cmpxchg, "mov %rax, %rsi; lock cmpxchg %rdx, (%rsi); cmpxchg8b (%rsi)");
FORM(f_bits, "mov %rax, %rcx; btsq %rcx, 0x200010; btq %rcx, (%rax); btcl $5, (%rax)");
FORM(f_string, "mov %rax, %rsi; mov $0x200020, %edi; mov $64, %ecx; rep movsb");
FORM(f_string_back, "std; mov %rax, %rdi; mov $0x200080, %esi; mov $16, %ecx; rep movsq");
FORM(f_stos, "mov %rax, %rdi; mov $4096, %ecx; mov $0x33, %eax; rep stosb");
FORM(f_scas, "mov %rax, %rdi; mov $512, %ecx; repne scasq; mov %rcx, %rdx");
FORM(f_xlat, "mov %rax, %rbx; mov $255, %eax; xlat; mov %rax, %rdx");
FORM(f_vector, "movdqu (%rax), %xmm0; movdqu %xmm0, 16(%rax); movntdq %xmm0, (%rax)");
FORM(f_vector_aligned, "movaps (%rax), %xmm0; movaps %xmm0, (%rax)");
FORM(f_scalar, "movsd (%rax), %xmm0; addss 4(%rax), %xmm0; movhps %xmm0, (%rax); cvtsi2sdq (%rax), %xmm0");
FORM(f_maskmov, "mov %rax, %rdi; pcmpeqd %xmm1, %xmm1; maskmovdqu %xmm1, %xmm0");
FORM(f_fxsave, "fxsave (%rax); fxrstor (%rax)");
FORM(f_x87, "fldl (%rax); fstpt (%rax); fnstcw (%rax)");
FORM(f_tables, "sidt (%rax); lidt 0x1f0000; sgdt (%rax)");
FORM(f_prefetch, "prefetcht0 (%rax); clflush (%rax)");
FORM(f_invlpg, "invlpg (%rax); movq (%rax), %rdx");

static const struct {
	const char *name;
	const uint8_t *code, *end;
} forms[] = {
#define F(name) { #name, name, name##_end }
	F(f_load8), F(f_load16), F(f_load32), F(f_load64), F(f_store8), F(f_store16), F(f_store32), F(f_store64),
	F(f_store_imm), F(f_disp8), F(f_disp32), F(f_index), F(f_index8), F(f_two), F(f_high), F(f_homed), F(f_homed2), F(f_rsp), F(f_rbp),
	F(f_addr32), F(f_abs), F(f_rip), F(f_fs), F(f_push), F(f_push_mem), F(f_pop), F(f_pop_mem), F(f_pushf),
	F(f_leave), F(f_enter), F(f_call), F(f_ret), F(f_jump), F(f_jump_mem), F(f_call_mem), F(f_rmw), F(f_locked),
	F(f_cmpxchg), F(f_bits), F(f_string), F(f_string_back), F(f_stos), F(f_scas), F(f_xlat), F(f_vector),
	F(f_vector_aligned), F(f_scalar), F(f_maskmov), F(f_fxsave), F(f_x87), F(f_tables), F(f_prefetch), F(f_invlpg),
};

static uint64_t *guards[2];

static void fill_guards(struct kvmtest *t)
{
	struct kvm_userspace_memory_region region = { .memory_size = MEM };
	uint8_t *area = mmap(NULL, MEM + 2 * GUARD, PROT_READ | PROT_WRITE, MAP_PRIVATE | MAP_ANONYMOUS, -1, 0);

	NEED(area != MAP_FAILED);
	guards[0] = (uint64_t *)area;
	guards[1] = (uint64_t *)(area + GUARD + MEM);
	for (unsigned i = 0; i < GUARD / 8; i++)
		guards[0][i] = guards[1][i] = WORD;
	/* In place of what kvmtest_vm() has made. */
	NEED(ioctl(t->vm, KVM_SET_USER_MEMORY_REGION, &(struct kvm_userspace_memory_region){ 0 }) == 0);
	munmap(t->mem, t->mem_size);
	t->mem = area + GUARD;
	region.userspace_addr = (uintptr_t)t->mem;
	NEED(ioctl(t->vm, KVM_SET_USER_MEMORY_REGION, &region) == 0);
}

static int guards_whole(void)
{
	for (unsigned i = 0; i < GUARD / 8; i++)
		if (guards[0][i] != WORD || guards[1][i] != WORD)
			return 0;
	return 1;
}

static int word_seen(const struct kvmtest *t)
{
	return memmem(t->mem, MEM, &(uint64_t){ WORD }, 4) != NULL;
}

static void fill_patterns(struct kvmtest *t)
{
	uint64_t *p = (uint64_t *)(t->mem + PATTERNS), host = (uintptr_t)t->mem;
	const uint64_t bases[] = {
		0, MEM, DATA, DATA + 0x1000, 0x40000000, 0x80000000, 0x100000000, 0x7ffffffff000, 0x800000000000,
		0xffff7ffffffff000, 0xffff800000000000, 0x8000000000000000, 0x7fffffffffffffff, ~0ull, ~0xfffull,
		DATA + (16ull << 20), DATA + (1ull << 32), DATA | 1ull << 47, DATA | 1ull << 63, DATA - (16ull << 20),
		host, host - GUARD, host + MEM, (uintptr_t)guards[1], (uintptr_t)&t, (uintptr_t)fill_patterns,
		DATA + MEM, DATA - DATA - GUARD, (uintptr_t)guards[1] - host, (uintptr_t)guards[0] - host,
		(uintptr_t)t->run, (uintptr_t)&errno,
	};
	const int64_t offsets[] = { 0, 1, -1, 8, -8, 4095, -4096, 4089, 4092, 16, -16, 2048, 64, 4080, 4096, -2 };
	unsigned n = 0;

	for (unsigned i = 0; i < sizeof(bases) / 8; i++)
		for (unsigned j = 0; j < sizeof(offsets) / 8; j++)
			p[n++] = bases[i] + offsets[j];
	NEED(n == NR_PATTERNS);
}

/* An exception goes on at r8, from a stack of its own. */
static void setup(struct kvmtest *t)
{
	static const uint8_t plain[] = { 0x4c, 0x89, 0x04, 0x24, 0x48, 0xcf };
	static const uint8_t with_code[] = { 0x48, 0x83, 0xc4, 0x08, 0x4c, 0x89, 0x04, 0x24, 0x48, 0xcf };
	struct kvm_sregs s;

	for (unsigned v = 0; v < 32; v++) {
		uint64_t *gate = (uint64_t *)(t->mem + IDT + 16 * v), to = HANDLERS + 16 * v;
		int code = v == 8 || (v >= 10 && v <= 14) || v == 17;

		gate[0] = (to & 0xffff) | 8ull << 16 | 1ull << 32 | 0x8eull << 40 | (to >> 16) << 48;
		gate[1] = 0;
		memcpy(t->mem + to, code ? with_code : plain, code ? sizeof(with_code) : sizeof(plain));
	}
	*(uint64_t *)(t->mem + TSS + 0x24) = IST;
	/* Only what is there is mapped: no exits for MMIO. */
	memset(t->mem + 0x3000 + (MEM >> 21) * 8, 0, 4096 - (MEM >> 21) * 8);
	NEED(ioctl(t->vcpu, KVM_GET_SREGS, &s) == 0);
	s.idt.base = IDT;
	s.idt.limit = 32 * 16 - 1;
	s.tr = (struct kvm_segment){ .base = TSS, .limit = 0x67, .type = 11, .present = 1, .selector = 24 };
	s.fs.base = 0x7fffffffe000;
	s.gs.base = 0xffffffffffff0000;
	s.cr4 |= 0x600;
	NEED(ioctl(t->vcpu, KVM_SET_SREGS, &s) == 0);
	*(uint16_t *)(t->mem + 0x1f0000) = 32 * 16 - 1;
	*(uint64_t *)(t->mem + 0x1f0002) = IDT;
}

/* It may have written over anything of its own. */
static void hammer(struct kvmtest *t, unsigned form)
{
	struct kvm_regs r = { .rip = CODE, .rsp = STACK, .rflags = 2 };
	size_t len = forms[form].end - forms[form].code;

	/* INT3, for jumps that find something to execute; zeroes for tables. */
	memset(t->mem, 0xcc, MEM);
	memset(t->mem, 0, 0x6000);
	kvmtest_long_mode(t, CODE, forms[form].code, len);
	setup(t);
	fill_patterns(t);
	NEED(ioctl(t->vcpu, KVM_SET_REGS, &r) == 0);
	/* However it ends: a guest may well run into a triple fault, or in circles. */
	alarm(1);
	CHECK(ioctl(t->vcpu, KVM_RUN, 0) == 0 || errno == EINTR);
	alarm(0);
	if (!guards_whole() || word_seen(t))
		printf("%s: %s\n", forms[form].name, guards_whole() ? "seen" : "changed");
	CHECK(guards_whole());
	CHECK(!word_seen(t));
}

static void on_alarm(int sig)
{
}

static void all(void)
{
	struct sigaction act = { .sa_handler = on_alarm };

	NEED(sigaction(SIGALRM, &act, NULL) == 0);
	for (unsigned i = 0; i < sizeof(forms) / sizeof(forms[0]); i++) {
		struct kvmtest t = kvmtest_vm(MEM, 0);

		fill_guards(&t);
		kvmtest_add_vcpu(&t, 0);
		hammer(&t, i);
		munmap(guards[0], 2 * GUARD + MEM);
		munmap(t.run, t.run_size);
		close(t.vcpu);
		close(t.vm);
		close(t.kvm);
	}
}

int main(int argc, char **argv)
{
	return both_engines(argv[0], all);
}

/* SPDX-License-Identifier: MIT */
/*
 * minivm: a virtual machine monitor in about a hundred lines of plain KVM.
 *
 * It starts one 64-bit vCPU on flat, identity-mapped memory. The guest writes a
 * greeting to port 0xe9, computes a sum, reports it to port 0x10 and halts. Nothing in
 * here knows about SoftKVM: the same binary runs on a real /dev/kvm and under
 * softkvm(1). Built with -DWITH_SOFTKVM_H it is linked to the library instead
 * and needs neither.
 */
#include <err.h>
#include <fcntl.h>
#include <linux/kvm.h>
#include <stdint.h>
#include <stdio.h>
#include <string.h>
#include <sys/ioctl.h>
#include <sys/mman.h>
#include <unistd.h>

#ifdef WITH_SOFTKVM_H
#include <softkvm.h>
#define kvm_open() softkvm_open(O_RDWR | O_CLOEXEC)
#define kvm_ioctl(fd, cmd, arg) softkvm_ioctl(fd, cmd, (unsigned long)(arg))
#define kvm_mmap(len, fd) softkvm_mmap(NULL, len, PROT_READ | PROT_WRITE, MAP_SHARED, fd, 0)
#else
#define kvm_open() open("/dev/kvm", O_RDWR | O_CLOEXEC)
#define kvm_ioctl(fd, cmd, arg) ioctl(fd, cmd, arg)
#define kvm_mmap(len, fd) mmap(NULL, len, PROT_READ | PROT_WRITE, MAP_SHARED, fd, 0)
#endif

#define MEM_SIZE (2ul << 20)
#define CODE 0x10000
#define PML4 0x1000 /* page tables at 0x1000, 0x2000: the first 2 MiB, identity */
#define PDPT 0x2000
#define PD 0x3000

static const uint8_t guest_code[] = {
	0x48, 0x8d, 0x35, 0x20, 0x00, 0x00, 0x00,	/* lea greeting(%rip), %rsi */
	0xac,						/* 1: lodsb */
	0x84, 0xc0,					/* test %al, %al */
	0x74, 0x04,					/* je 2f */
	0xe6, 0xe9,					/* out %al, $0xe9 */
	0xeb, 0xf7,					/* jmp 1b */
	0x31, 0xc0,					/* 2: xor %eax, %eax */
	0xb9, 0x40, 0x42, 0x0f, 0x00,			/* mov $1000000, %ecx */
	0x01, 0xc8,					/* 3: add %ecx, %eax */
	0xff, 0xc9,					/* dec %ecx */
	0x75, 0xfa,					/* jne 3b */
	0xe7, 0x10,					/* out %eax, $0x10 */
	0xf4,						/* hlt */
	0x90, 0x90, 0x90, 0x90, 0x90, 0x90, 0x90,
	'h', 'e', 'l', 'l', 'o', ' ', 'f', 'r', 'o', 'm', ' ', 't', 'h', 'e', ' ',
	'g', 'u', 'e', 's', 't', '\n', 0,
};

static int try_ioctl(int fd, unsigned long cmd, void *arg, const char *name)
{
	int r = kvm_ioctl(fd, cmd, arg);

	if (r < 0)
		err(1, "%s", name);
	return r;
}
#define KVM(fd, cmd, arg) try_ioctl(fd, cmd, (void *)(uintptr_t)(arg), #cmd)

/* The guest's CPU is everything KVM can offer here. */
static void set_cpuid(int kvm, int vcpu)
{
	struct {
		struct kvm_cpuid2 head;
		struct kvm_cpuid_entry2 entries[100];
	} cpuid = { .head.nent = 100 };

	KVM(kvm, KVM_GET_SUPPORTED_CPUID, &cpuid);
	KVM(vcpu, KVM_SET_CPUID2, &cpuid);
}

static void enter_long_mode(int vcpu)
{
	struct kvm_segment code = { .type = 11, .present = 1, .s = 1, .l = 1, .g = 1,
				    .limit = 0xffffffff, .selector = 8 };
	struct kvm_segment data = { .type = 3, .present = 1, .s = 1, .db = 1, .g = 1,
				    .limit = 0xffffffff, .selector = 16 };
	struct kvm_regs regs = { .rip = CODE, .rsp = MEM_SIZE, .rflags = 2 };
	struct kvm_sregs sregs;

	KVM(vcpu, KVM_GET_SREGS, &sregs);
	sregs.cs = code;
	sregs.ds = sregs.es = sregs.fs = sregs.gs = sregs.ss = data;
	sregs.cr3 = PML4;
	sregs.cr4 = 1 << 5;			/* PAE */
	sregs.cr0 = 0x80000011;			/* PG, ET, PE */
	sregs.efer = 0x500;			/* LMA, LME */
	KVM(vcpu, KVM_SET_SREGS, &sregs);
	KVM(vcpu, KVM_SET_REGS, &regs);
}

int main(void)
{
	int kvm = kvm_open(), vm, vcpu;
	uint8_t *mem = mmap(NULL, MEM_SIZE, PROT_READ | PROT_WRITE, MAP_SHARED | MAP_ANONYMOUS, -1, 0);
	struct kvm_userspace_memory_region region = { .memory_size = MEM_SIZE,
						      .userspace_addr = (uintptr_t)mem };
	struct kvm_run *run;

	if (kvm < 0)
		err(1, "/dev/kvm");
	if (mem == MAP_FAILED)
		err(1, "guest memory");
	if (KVM(kvm, KVM_GET_API_VERSION, 0) != 12)
		errx(1, "KVM API version is not 12");
	*(uint64_t *)(mem + PML4) = PDPT | 3;
	*(uint64_t *)(mem + PDPT) = PD | 3;
	*(uint64_t *)(mem + PD) = 0x83;		/* one 2 MiB page */
	memcpy(mem + CODE, guest_code, sizeof(guest_code));

	vm = KVM(kvm, KVM_CREATE_VM, 0);
	KVM(vm, KVM_SET_USER_MEMORY_REGION, &region);
	vcpu = KVM(vm, KVM_CREATE_VCPU, 0);
	run = kvm_mmap(KVM(kvm, KVM_GET_VCPU_MMAP_SIZE, 0), vcpu);
	if (run == MAP_FAILED)
		err(1, "mmap of the vCPU");
	set_cpuid(kvm, vcpu);
	enter_long_mode(vcpu);

	for (;;) {
		KVM(vcpu, KVM_RUN, 0);
		void *data = (char *)run + run->io.data_offset;

		if (run->exit_reason == KVM_EXIT_IO && run->io.port == 0xe9)
			putchar(*(char *)data);
		else if (run->exit_reason == KVM_EXIT_IO && run->io.port == 0x10)
			printf("sum of 1..1000000 modulo 2^32: %u\n", *(uint32_t *)data);
		else if (run->exit_reason == KVM_EXIT_HLT)
			return 0;
		else
			errx(1, "unexpected exit reason %u", run->exit_reason);
	}
}

/* SPDX-License-Identifier: MIT */
/*
 * The guest side: a VM made through the public API, one vCPU at CPL 3 with the
 * segments and pages of the process, and interp_run() called on it directly, so that
 * an exception can be looked at where it arises instead of in a handler.
 */
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/mman.h>
#include <linux/kvm.h>

#include "api/fd.h"
#include "host/host.h"
#include "oracle.h"
#include "softkvm.h"
#include "x86/ops/descriptor.h"

/* Guest physical layout. */
enum {
	GPA_PML4 = 0x1000, GPA_PDPT = 0x2000, GPA_PD = 0x3000, GPA_PT_CODE = 0x4000, GPA_PT_DATA = 0x5000,
	GPA_PDPT_HIGH = 0x6000, GPA_PD_HIGH = 0x7000, GPA_PT_HIGH = 0x8000, GPA_GDT = 0x9000, GPA_LDT = 0xa000,
	GPA_CODE = 0x10000, GPA_DATA = 0x20000, GPA_SIZE = 0x30000,
};

/* Where Linux has such things too: the supervisor's. */
#define GDT_VA 0xffff800000000000ull
#define LDT_VA (GDT_VA + PAGE_SIZE)
#define GDT_ENTRIES 16

#define PTE_P 1ull
#define PTE_W 2ull
#define PTE_U 4ull
#define PTE_AD 0x60ull
#define PTE_NX (1ull << 63)
#define TABLE (PTE_P | PTE_W | PTE_U | PTE_AD)

static u8 *ram;
static int vcpu_fd;
static struct vcpu *vcpu;
static struct host_guest_ctx ctx;
static struct kvm_cpuid2 *cpuid;

static long must(long r, const char *what)
{
	if (r < 0) {
		perror(what);
		exit(1);
	}
	return r;
}

static void set_entry(u64 table, unsigned nr, u64 value)
{
	memcpy(ram + table + 8 * nr, &value, 8);
}

static bool segments_stale;

void guest_set_ldt(unsigned nr, u64 desc)
{
	set_entry(GPA_LDT, nr, desc);
	segments_stale = true;
}

static u64 descriptor_base(u32 base)
{
	return (u64)(base & 0xffffff) << 16 | (u64)(base >> 24) << 56;
}

static void make_page_tables(void)
{
	set_entry(GPA_PML4, 0, GPA_PDPT | TABLE);
	set_entry(GPA_PDPT, 0, GPA_PD | TABLE);
	set_entry(GPA_PD, ORACLE_CODE >> 21, GPA_PT_CODE | TABLE);
	set_entry(GPA_PD, ORACLE_DATA >> 21, GPA_PT_DATA | TABLE);
	for (unsigned i = 0; i < ORACLE_CODE_SIZE / PAGE_SIZE; i++)
		set_entry(GPA_PT_CODE, i, (GPA_CODE + i * PAGE_SIZE) | PTE_P | PTE_U | PTE_AD);
	for (unsigned i = 0; i < ORACLE_DATA_SIZE / PAGE_SIZE; i++)
		set_entry(GPA_PT_DATA, i, (GPA_DATA + i * PAGE_SIZE) | PTE_P | PTE_U | PTE_AD | PTE_NX |
						  (i < ORACLE_DATA_RW / PAGE_SIZE ? PTE_W : 0));
}

/* The process's GDT as Linux has it, as far as CPL 3 can tell. */
static void make_gdt(void)
{
	static const u64 gdt[GDT_ENTRIES] = {
		[1] = 0x00cf9b000000ffff, [2] = 0x00af9b000000ffff, [3] = 0x00cf93000000ffff,
		[4] = 0x00cffb000000ffff, [5] = 0x00cff3000000ffff, [6] = 0x00affb000000ffff,
		[8] = 0x00008b0000000067, [10] = 0x0000820000000fff,
	};

	set_entry(GPA_PML4, 256, GPA_PDPT_HIGH | TABLE);
	set_entry(GPA_PDPT_HIGH, 0, GPA_PD_HIGH | TABLE);
	set_entry(GPA_PD_HIGH, 0, GPA_PT_HIGH | TABLE);
	set_entry(GPA_PT_HIGH, 0, GPA_GDT | PTE_P | PTE_W | PTE_AD);
	set_entry(GPA_PT_HIGH, 1, GPA_LDT | PTE_P | PTE_W | PTE_AD);
	memcpy(ram + GPA_GDT, gdt, sizeof(gdt));
	guest_set_ldt(0, 0x0000fb000000ffff | descriptor_base(ORACLE_CS16_BASE));
	guest_set_ldt(1, 0x0000f30000000000 | descriptor_base(ORACLE_DS16_BASE) | ORACLE_DS16_LIMIT);
	guest_set_ldt(2, 0x0040f30000000000 | descriptor_base(ORACLE_DATA) | ORACLE_SMALL_LIMIT);
	guest_set_ldt(3, 0x0040f70000000000 | descriptor_base(ORACLE_DATA) | ORACLE_DOWN_LIMIT);
	guest_set_ldt(ORACLE_LDT_ENTRIES - 1, 0x0040f30000000fff);
}

static void set_cpuid(int sys)
{
	cpuid = calloc(1, sizeof(*cpuid) + 100 * sizeof(cpuid->entries[0]));
	cpuid->nent = 100;
	must(softkvm_ioctl(sys, KVM_GET_SUPPORTED_CPUID, (unsigned long)cpuid), "KVM_GET_SUPPORTED_CPUID");
	must(softkvm_ioctl(vcpu_fd, KVM_SET_CPUID2, (unsigned long)cpuid), "KVM_SET_CPUID2");
}

bool guest_translates(void)
{
	return dbt_wanted(vcpu);
}

bool guest_offers_bit(u32 function, enum cpuid_reg reg, unsigned bit)
{
	return guest_cpuid_has(vcpu, function, function == 0xd ? 1 : 0, reg, bit);
}

void guest_init(struct oracle_memory *mem)
{
	struct kvm_userspace_memory_region region = { .memory_size = GPA_SIZE };
	struct kvm_xcrs xcrs = { .nr_xcrs = 1, .xcrs[0] = { .xcr = 0, .value = 7 } };
	int sys = must(softkvm_open(2), "softkvm_open");
	int vm = must(softkvm_ioctl(sys, KVM_CREATE_VM, 0), "KVM_CREATE_VM");
	struct kvm_run *run;

	ram = mmap(NULL, GPA_SIZE, PROT_READ | PROT_WRITE, MAP_PRIVATE | MAP_ANONYMOUS, -1, 0);
	region.userspace_addr = (u64)ram;
	make_page_tables();
	make_gdt();
	must(softkvm_ioctl(vm, KVM_SET_USER_MEMORY_REGION, (unsigned long)&region), "memory");
	vcpu_fd = must(softkvm_ioctl(vm, KVM_CREATE_VCPU, 0), "KVM_CREATE_VCPU");
	vcpu = fd_get(vcpu_fd)->vcpu;
	set_cpuid(sys);
	must(softkvm_ioctl(vcpu_fd, KVM_SET_XCRS, (unsigned long)&xcrs), "KVM_SET_XCRS");
	/* Once for all that the first KVM_RUN allocates. */
	run = softkvm_mmap(NULL, 4096, PROT_READ | PROT_WRITE, MAP_SHARED, vcpu_fd, 0);
	run->immediate_exit = 1;
	softkvm_ioctl(vcpu_fd, KVM_RUN, 0);
	mem->code = ram + GPA_CODE;
	mem->data = ram + GPA_DATA;
}

static u64 descriptor(u16 selector)
{
	u64 d;

	memcpy(&d, ram + (selector & 4 ? GPA_LDT : GPA_GDT) + (selector & ~7u), 8);
	return d;
}

static struct segment segment(u16 selector, u64 base)
{
	struct segment s = segment_null(selector);

	if (selector > 3)
		return segment_from_desc(selector, descriptor(selector));
	s.base = base;
	return s;
}

/* Each mode's own selectors are loaded here; a case may have others, but only they are sure to be valid. */
static void load_segments(const struct oracle_state *in)
{
	struct segment *seg = vcpu->arch.seg;
	bool same = !segments_stale && seg[SEG_FS].base == in->fs_base && seg[SEG_GS].base == in->gs_base;

	for (unsigned i = 0; i < 6; i++)
		same &= seg[i].selector == in->sel[i];
	if (same)
		return;
	for (unsigned i = 0; i < 6; i++)
		seg[i] = segment(in->sel[i], i == SEG_FS ? in->fs_base : i == SEG_GS ? in->gs_base : 0);
	vcpu_update_mode(vcpu);
	segments_stale = false;
}

void guest_set_mode(enum oracle_mode mode)
{
	struct kvm_sregs s;

	if (host_guest_current)
		vcpu_leave_guest_mode(vcpu);
	must(softkvm_ioctl(vcpu_fd, KVM_GET_SREGS, (unsigned long)&s), "KVM_GET_SREGS");
	s.cr0 = X86_CR0_PE | X86_CR0_MP | X86_CR0_ET | X86_CR0_NE | X86_CR0_WP | X86_CR0_AM | X86_CR0_PG;
	s.cr3 = GPA_PML4;
	s.cr4 = X86_CR4_PAE | X86_CR4_OSFXSR | X86_CR4_OSXMMEXCPT | X86_CR4_OSXSAVE | X86_CR4_FSGSBASE;
	s.efer = EFER_SCE | EFER_LME | EFER_LMA | EFER_NX;
	s.gdt.base = GDT_VA;
	s.gdt.limit = GDT_ENTRIES * 8 - 1;
	s.idt.limit = 0;
	s.tr = (struct kvm_segment){ .selector = 0x40, .limit = 0x40, .type = 11, .present = 1 };
	s.ldt = (struct kvm_segment){
		.selector = 0x50, .base = LDT_VA, .limit = ORACLE_LDT_ENTRIES * 8 - 1, .type = 2, .present = 1,
	};
	/* CPL 3 comes with SS; the rest is load_segments()'. */
	s.ss = (struct kvm_segment){
		.selector = ORACLE_DS, .limit = ~0u, .type = 3, .present = 1, .dpl = 3, .s = 1, .db = 1, .g = 1,
	};
	s.cs = s.ss;
	s.cs.selector = ORACLE_CS64;
	s.cs.type = 11;
	s.cs.db = 0;
	s.cs.l = 1;
	must(softkvm_ioctl(vcpu_fd, KVM_SET_SREGS, (unsigned long)&s), "KVM_SET_SREGS");
	segments_stale = true;
	ctx.requests = &vcpu->requests;
	host_guest_current = &ctx;
	vcpu_enter_guest_mode(vcpu);
}

static void load_fpu(const struct oracle_state *in)
{
	struct guest_fpu *f = &vcpu->arch.fpu;

	x87_sync(vcpu);
	memcpy(f->fx, in->fx, 160);
	memcpy(&f->fop, in->fx + 6, 2);
	memcpy(&f->fip, in->fx + 8, 8);
	memcpy(&f->fdp, in->fx + 16, 8);
	f->fcs = f->fds = 0;
	memcpy(&f->mxcsr, in->fx + 24, 4);
	for (int i = 0; i < 16; i++) {
		memcpy(f->ymm[i], in->fx + 160 + 16 * i, 16);
		memcpy(f->ymm[i] + 16, in->ymmh[i], 16);
	}
}

static void store_fpu(struct oracle_state *out)
{
	struct guest_fpu *f = &vcpu->arch.fpu;

	x87_sync(vcpu);
	memset(out->fx, 0, sizeof(out->fx));
	memcpy(out->fx, f->fx, 160);
	memcpy(out->fx + 6, &f->fop, 2);
	memcpy(out->fx + 8, &f->fip, 8);
	memcpy(out->fx + 16, &f->fdp, 8);
	memcpy(out->fx + 24, &f->mxcsr, 4);
	for (int i = 0; i < 16; i++) {
		memcpy(out->fx + 160 + 16 * i, f->ymm[i], 16);
		memcpy(out->ymmh[i], f->ymm[i] + 16, 16);
	}
}

/* There is no IDT: INT3 and INTO end in the #GP of the missing gate, which names it. */
static void soft_exception(struct oracle_state *out)
{
	u32 gate = out->error >> 3;

	if (out->vector != GP_VECTOR || (out->error & 7) != 2 || (gate != BP_VECTOR && gate != OF_VECTOR))
		return;
	out->vector = gate;
	out->error = 0;
}

static void take_exception(struct oracle_state *out)
{
	struct pending_exception *e = &vcpu->arch.exception;

	out->vector = e->vector;
	out->error = e->has_error_code ? e->error_code : 0;
	out->cr2 = e->vector == PF_VECTOR ? e->payload : 0;
	memset(e, 0, sizeof(*e));
	soft_exception(out);
}

/* The translator's part is what the run loop gives it; the code has just been written: it must look at its pages again. */
static enum exec run_engine(void)
{
	if (!guest_translates() || !in_flat_mode(vcpu) || vcpu->arch.rflags & (X86_EFLAGS_TF | X86_EFLAGS_RF) || vcpu->arch.interrupt_shadow)
		return interp_run(vcpu, false);
	if (vcpu->arch.dbt)
		dbt_flush(vcpu);
	return dbt_run(vcpu);
}

void guest_run(const struct oracle_state *in, struct oracle_state *out)
{
	struct vcpu_arch *a = &vcpu->arch;
	enum exec r = EXEC_OK;

	memcpy(a->regs, in->gpr, sizeof(a->regs));
	a->rip = in->rip;
	a->rflags = in->rflags;
	load_segments(in);
	load_fpu(in);
	for (int turns = 0; turns < 64 && (r == EXEC_OK || r == EXEC_END || r == EXEC_BRANCH || r == EXEC_RETRY);
	     turns++) {
		if (vcpu_has_requests(vcpu))
			atomic_store(&vcpu->requests, 0);
		r = run_engine();
	}
	memcpy(out->gpr, a->regs, sizeof(a->regs));
	out->rip = a->rip;
	out->rflags = a->rflags;
	for (unsigned i = 0; i < 6; i++)
		out->sel[i] = a->seg[i].selector;
	out->fs_base = a->seg[SEG_FS].base;
	out->gs_base = a->seg[SEG_GS].base;
	store_fpu(out);
	out->vector = out->error = 0x1000 + r;	/* no exception of the guest's */
	out->cr2 = 0;
	a->db_trap = false;
	a->db_dr6 = 0;
	a->interrupt_shadow = 0;
	if (r == EXEC_FAULT)
		take_exception(out);
}

/* SPDX-License-Identifier: MIT */
/*
 * System management mode in tiny guests: what an SMI saves and loads, RSM, what is blocked meanwhile,
 * the second address space. The handler lies in memory that only SMM sees, at guest address 0x38000, where the
 * guest proper has other bytes; it asks for a byte at port 0x12, reads 0x31000, and returns.
 */
#include <pthread.h>
#include <stdatomic.h>

#include "kvmtest.h"

#define SMBASE 0x30000
#define SMM_SLOT (1u << 16 | 3)
#define SMM_SIZE 0x10000
#define CODE 0x5000
enum { PORT_BEGIN = 0x10, PORT_END, PORT_SMM, PORT_NMI };

/* 64-bit and 16-bit guests run the same bytes: no operand depends on the mode. */
static const uint8_t guest_code[] = {
	0xe6, PORT_BEGIN, 0x90, 0xe6, PORT_END, 0xf4,
};
static const uint8_t handler[] = {
	0xe4, PORT_SMM,				/* in $PORT_SMM, %al */
	0x67, 0x66, 0x8b, 0x1d, 0x00, 0x10, 0x03, 0x00, /* mov 0x31000, %ebx */
	0xe6, PORT_SMM,				/* out %al, $PORT_SMM */
	0x0f, 0xaa,				/* rsm */
};
static const uint8_t nmi_handler[] = { 0xe6, PORT_NMI, 0xcf }; /* out, iret */

static uint8_t *smram;

static uint64_t smram64(unsigned offset)
{
	uint64_t v;

	memcpy(&v, smram + offset, 8);
	return v;
}

static uint32_t smram32(unsigned offset)
{
	return smram64(offset);
}

static void smram_put(unsigned offset, uint64_t v, unsigned size)
{
	memcpy(smram + offset, &v, size);
}

static int set_smm_slot(struct kvmtest *t, uint32_t flags)
{
	struct kvm_userspace_memory_region region = {
		.slot = SMM_SLOT, .guest_phys_addr = SMBASE, .memory_size = SMM_SIZE, .flags = flags,
		.userspace_addr = (uintptr_t)smram,
	};

	return ioctl(t->vm, KVM_SET_USER_MEMORY_REGION, &region);
}

static struct kvmtest smm_vm(int irqchip)
{
	struct kvmtest t = kvmtest_vm(1 << 20, irqchip);

	kvmtest_add_vcpu(&t, 0);
	smram = mmap(NULL, SMM_SIZE, PROT_READ | PROT_WRITE, MAP_PRIVATE | MAP_ANONYMOUS, -1, 0);
	NEED(smram != MAP_FAILED);
	memcpy(smram + 0x8000, handler, sizeof(handler));
	smram_put(0x1000, 0x5a5a5a5a, 4);
	memcpy(t.mem + 0x31000, "ABCD", 4);
	memset(t.mem + 0x38000, 0xf4, 16);
	NEED(set_smm_slot(&t, 0) == 0);
	return t;
}

static void smm_done(struct kvmtest *t)
{
	kvmtest_done(t);
	munmap(smram, SMM_SIZE);
}

static void set_rbx(struct kvmtest *t, uint64_t rbx)
{
	struct kvm_regs r;

	NEED(ioctl(t->vcpu, KVM_GET_REGS, &r) == 0);
	r.rbx = rbx;
	NEED(ioctl(t->vcpu, KVM_SET_REGS, &r) == 0);
}

static uint64_t get_rbx(struct kvmtest *t)
{
	struct kvm_regs r;

	NEED(ioctl(t->vcpu, KVM_GET_REGS, &r) == 0);
	return r.rbx;
}

static struct kvm_vcpu_events events(struct kvmtest *t)
{
	struct kvm_vcpu_events e;

	NEED(ioctl(t->vcpu, KVM_GET_VCPU_EVENTS, &e) == 0);
	return e;
}

/* Run to the next access of a port: which, and is the vCPU in SMM? */
static void expect_io(struct kvmtest *t, int port, int smm, int line)
{
	NEED(ioctl(t->vcpu, KVM_RUN, 0) == 0);
	if (t->run->exit_reason == KVM_EXIT_IO && t->run->io.port == port &&
	    !!(t->run->flags & KVM_RUN_X86_SMM) == smm) {
		kvmtest_passed++;
		return;
	}
	kvmtest_failed++;
	printf("line %d: exit %u port 0x%x flags %x, want an access of port 0x%x, smm %d\n", line,
	       t->run->exit_reason, t->run->io.port, t->run->flags, port, smm);
}
#define EXPECT_IO(port, smm) expect_io(&t, port, smm, __LINE__)

/* ---- there and back ---------------------------------------------------------------- */

/* From port BEGIN on: one SMI, whose handler sees its own memory, and everything as it was afterwards. */
static void one_smi(struct kvmtest *pt)
{
	struct kvmtest t = *pt;
	struct kvm_sregs before, inside, after;
	struct kvm_regs r0, r1;

	set_rbx(&t, 0x1122334455667788);
	NEED(ioctl(t.vcpu, KVM_GET_SREGS, &before) == 0);
	NEED(ioctl(t.vcpu, KVM_GET_REGS, &r0) == 0);
	CHECK_EQ(ioctl(t.vcpu, KVM_SMI, 0), 0);
	CHECK_EQ(events(&t).smi.pending, 1);
	CHECK_EQ(events(&t).smi.smm, 0);
	EXPECT_IO(PORT_SMM, 1);
	CHECK_EQ(events(&t).smi.pending, 0);
	CHECK_EQ(events(&t).smi.smm, 1);
	CHECK_EQ(events(&t).smi.smm_inside_nmi, 0);
	CHECK_EQ(events(&t).nmi.masked, 1);
	NEED(ioctl(t.vcpu, KVM_GET_SREGS, &inside) == 0);
	CHECK_EQ(inside.cs.base, SMBASE);
	CHECK_EQ(inside.cs.selector, SMBASE >> 4);
	CHECK_EQ(inside.cs.limit, 0xffffffff);
	CHECK_EQ(inside.ds.base, 0);
	CHECK_EQ(inside.ds.limit, 0xffffffff);
	CHECK_EQ(inside.cr0 & 0x80000001, 0);
	CHECK_EQ(inside.cr4, 0);
	CHECK_EQ(inside.efer, 0);
	CHECK_EQ(inside.idt.limit, 0);
	EXPECT_IO(PORT_SMM, 1);
	CHECK_EQ(get_rbx(&t) & 0xffffffff, 0x5a5a5a5a);
	EXPECT_IO(PORT_END, 0);
	NEED(ioctl(t.vcpu, KVM_GET_SREGS, &after) == 0);
	NEED(ioctl(t.vcpu, KVM_GET_REGS, &r1) == 0);
	CHECK(memcmp(&before, &after, sizeof(before)) == 0);
	r0.rip = r1.rip;
	CHECK(memcmp(&r0, &r1, sizeof(r0)) == 0);
	CHECK_EQ(events(&t).nmi.masked, 0);
	CHECK_EQ(kvmtest_get_msr(&t, 0x34), 1);
	CHECK(memcmp(t.mem + 0x31000, "ABCD", 4) == 0);
}

static void test_real_mode(void)
{
	struct kvmtest t = smm_vm(0);

	kvmtest_real_mode(&t, CODE, guest_code, sizeof(guest_code));
	CHECK_EQ(kvmtest_get_msr(&t, 0x9e), SMBASE);
	EXPECT_IO(PORT_BEGIN, 0);
	set_rbx(&t, 0x55667788);
	CHECK_EQ(ioctl(t.vcpu, KVM_SMI, 0), 0);
	EXPECT_IO(PORT_SMM, 1);
	/* Without long mode in CPUID, the layout of the P6. */
	CHECK_EQ(smram32(0xfefc), 0x20000);
	CHECK_EQ(smram32(0xfef8), SMBASE);
	CHECK_EQ(smram32(0xfff0), CODE + 2);
	CHECK_EQ(smram32(0xffdc), 0x55667788);
	CHECK_EQ(smram32(0xffa8 + 4) & 0xffff, 0); /* CS */
	CHECK_EQ(smram32(0xff94), 0xffff);
	smram_put(0xffd0, 0xa1, 4);
	EXPECT_IO(PORT_SMM, 1);
	EXPECT_IO(PORT_END, 0);
	CHECK_EQ(get_rbx(&t), 0x55667788);
	CHECK_EQ(((uint8_t *)t.run)[t.run->io.data_offset], 0xa1);
	smm_done(&t);
}

static void test_long_mode(void)
{
	struct kvmtest t = smm_vm(0);

	kvmtest_long_mode(&t, CODE, guest_code, sizeof(guest_code));
	EXPECT_IO(PORT_BEGIN, 0);
	one_smi(&t);
	CHECK_EQ(smram32(0xfefc), 0x20064);
	CHECK_EQ(smram32(0xff00), SMBASE);
	CHECK_EQ(smram64(0xff78), CODE + 2);
	CHECK_EQ(smram64(0xfff8 - 8 * 3), 0x1122334455667788);
	CHECK_EQ(smram64(0xff58), 0x80000011);
	CHECK_EQ(smram64(0xff50), 0x1000);
	CHECK_EQ(smram64(0xff48), 0x20);
	CHECK_EQ(smram64(0xfed0), 0x500);
	CHECK_EQ(smram64(0xfe10), 0xffffffffa09b0008); /* CS: 64-bit, limit 4 GiB */
	smm_done(&t);
}

/* ---- what waits ---------------------------------------------------------------------- */

static void test_smi_in_smm(void)
{
	struct kvmtest t = smm_vm(0);

	kvmtest_long_mode(&t, CODE, guest_code, sizeof(guest_code));
	EXPECT_IO(PORT_BEGIN, 0);
	CHECK_EQ(ioctl(t.vcpu, KVM_SMI, 0), 0);
	EXPECT_IO(PORT_SMM, 1);
	CHECK_EQ(ioctl(t.vcpu, KVM_SMI, 0), 0);
	CHECK_EQ(ioctl(t.vcpu, KVM_SMI, 0), 0); /* the same */
	EXPECT_IO(PORT_SMM, 1);
	CHECK_EQ(events(&t).smi.pending, 1);
	EXPECT_IO(PORT_SMM, 1); /* the second, before any instruction of the guest */
	CHECK_EQ(events(&t).smi.pending, 0);
	CHECK_EQ(smram64(0xff78), CODE + 2);
	EXPECT_IO(PORT_SMM, 1);
	EXPECT_IO(PORT_END, 0);
	CHECK_EQ(kvmtest_get_msr(&t, 0x34), 2);
	smm_done(&t);
}

static void real_mode_with_nmi(struct kvmtest *t)
{
	const uint16_t vector[2] = { 0x6000, 0 };

	kvmtest_real_mode(t, CODE, guest_code, sizeof(guest_code));
	memcpy(t->mem + 2 * 4, vector, 4);
	memcpy(t->mem + 0x6000, nmi_handler, sizeof(nmi_handler));
}

static void test_nmi(void)
{
	struct kvmtest t = smm_vm(0);

	real_mode_with_nmi(&t);
	EXPECT_IO(PORT_BEGIN, 0);
	CHECK_EQ(ioctl(t.vcpu, KVM_SMI, 0), 0);
	EXPECT_IO(PORT_SMM, 1);
	CHECK_EQ(ioctl(t.vcpu, KVM_NMI, 0), 0);
	EXPECT_IO(PORT_SMM, 1);
	EXPECT_IO(PORT_NMI, 0); /* only now */
	/* An SMI inside the NMI's handler: RSM does not unblock NMIs. */
	CHECK_EQ(ioctl(t.vcpu, KVM_SMI, 0), 0);
	EXPECT_IO(PORT_SMM, 1);
	CHECK_EQ(events(&t).smi.smm_inside_nmi, 1);
	CHECK_EQ(ioctl(t.vcpu, KVM_NMI, 0), 0);
	EXPECT_IO(PORT_SMM, 1);
	EXPECT_IO(PORT_NMI, 0); /* after the first one's IRET */
	CHECK_EQ(events(&t).nmi.masked, 1);
	CHECK_EQ(events(&t).smi.smm_inside_nmi, 0);
	EXPECT_IO(PORT_END, 0);
	smm_done(&t);
}

static void test_init(void)
{
	struct kvmtest t = smm_vm(1);
	struct kvm_mp_state mp = { .mp_state = KVM_MP_STATE_INIT_RECEIVED };
	struct kvm_msi msi = { .address_lo = 0xfee00000, .data = 5 << 8 };
	struct kvm_userspace_memory_region rom = { .slot = 7, .guest_phys_addr = 0xfffff000, .memory_size = 0x1000,
		.userspace_addr = (uintptr_t)t.mem + 0xf000 };
	struct kvm_sregs s;

	kvmtest_real_mode(&t, CODE, guest_code, sizeof(guest_code));
	EXPECT_IO(PORT_BEGIN, 0);
	CHECK_EQ(ioctl(t.vcpu, KVM_SMI, 0), 0);
	CHECK_ERRNO(ioctl(t.vcpu, KVM_SET_MP_STATE, &mp), EINVAL); /* pending is enough */
	EXPECT_IO(PORT_SMM, 1);
	CHECK_ERRNO(ioctl(t.vcpu, KVM_SET_MP_STATE, &mp), EINVAL);
	CHECK_EQ(ioctl(t.vm, KVM_SIGNAL_MSI, &msi), 1);
	CHECK_EQ(events(&t).smi.latched_init, 1);
	EXPECT_IO(PORT_SMM, 1);
	CHECK_EQ(events(&t).smi.latched_init, 1);
	/* After RSM the processor starts over, at the end of the first 4 GiB. */
	memcpy(t.mem + 0xfff0, guest_code + 3, 2);
	CHECK_EQ(ioctl(t.vm, KVM_SET_USER_MEMORY_REGION, &rom), 0);
	EXPECT_IO(PORT_END, 0);
	CHECK_EQ(events(&t).smi.latched_init, 0);
	CHECK_EQ(events(&t).smi.smm, 0);
	CHECK_EQ(ioctl(t.vcpu, KVM_GET_SREGS, &s), 0);
	CHECK_EQ(s.cs.base, 0xffff0000);
	smm_done(&t);
}

static _Atomic int stopped;

static void *run_to_the_end(void *arg)
{
	struct kvmtest *t = arg;

	ioctl(t->vcpu, KVM_RUN, 0);
	stopped = 1;
	return NULL;
}

/* An SMI by way of the local APIC wakes from HLT, which is then over. */
static void test_halted(void)
{
	static const uint8_t code[] = { 0xf4, 0xe6, PORT_END };
	struct kvmtest t = smm_vm(1);
	struct kvm_msi msi = { .address_lo = 0xfee00000, .data = 2 << 8 };
	pthread_t thread;

	kvmtest_real_mode(&t, CODE, code, sizeof(code));
	memcpy(smram + 0x8000, "\x0f\xaa", 2);
	stopped = 0;
	NEED(pthread_create(&thread, NULL, run_to_the_end, &t) == 0);
	/* Those that come before HLT change nothing. */
	while (!stopped) {
		ioctl(t.vm, KVM_SIGNAL_MSI, &msi);
		usleep(1000);
	}
	pthread_join(thread, NULL);
	CHECK_EQ(t.run->exit_reason, KVM_EXIT_IO);
	CHECK_EQ(t.run->io.port, PORT_END);
	smm_done(&t);
}

/* ---- SMRAM as the handler leaves it ------------------------------------------------------ */

static void test_relocate(void)
{
	struct kvmtest t = smm_vm(0);

	kvmtest_long_mode(&t, CODE, guest_code, sizeof(guest_code));
	EXPECT_IO(PORT_BEGIN, 0);
	CHECK_EQ(ioctl(t.vcpu, KVM_SMI, 0), 0);
	EXPECT_IO(PORT_SMM, 1);
	smram_put(0xff00, SMBASE - 0x1000, 4);
	smram_put(0xffe0, 0x77, 8); /* RBX */
	EXPECT_IO(PORT_SMM, 1);
	EXPECT_IO(PORT_END, 0);
	CHECK_EQ(kvmtest_get_msr(&t, 0x9e), SMBASE - 0x1000);
	CHECK_EQ(get_rbx(&t), 0x77);
	CHECK_EQ(kvmtest_set_msr(&t, 0x9e, SMBASE), 1);
	CHECK_EQ(kvmtest_get_msr(&t, 0x9e), SMBASE);
	smm_done(&t);
}

static void bad_rsm(unsigned offset, uint64_t value, unsigned size)
{
	struct kvmtest t = smm_vm(0);

	kvmtest_long_mode(&t, CODE, guest_code, sizeof(guest_code));
	EXPECT_IO(PORT_BEGIN, 0);
	CHECK_EQ(ioctl(t.vcpu, KVM_SMI, 0), 0);
	EXPECT_IO(PORT_SMM, 1);
	smram_put(offset, value, size);
	EXPECT_IO(PORT_SMM, 1);
	CHECK_EQ(ioctl(t.vcpu, KVM_RUN, 0), 0);
	CHECK_EQ(t.run->exit_reason, KVM_EXIT_SHUTDOWN);
	smm_done(&t);
}

static void test_no_smram(void)
{
	struct kvmtest t = smm_vm(0);

	kvmtest_long_mode(&t, CODE, guest_code, sizeof(guest_code));
	EXPECT_IO(PORT_BEGIN, 0);
	CHECK_EQ(kvmtest_set_msr(&t, 0x9e, 0x200000), 1);
	CHECK_EQ(ioctl(t.vcpu, KVM_SMI, 0), 0);
	CHECK_ERRNO(ioctl(t.vcpu, KVM_RUN, 0), EIO);
	smm_done(&t);
}

/* ---- the interface ------------------------------------------------------------------------- */

static void test_events(void)
{
	struct kvmtest t = smm_vm(0);
	struct kvm_vcpu_events e;

	kvmtest_real_mode(&t, CODE, guest_code, sizeof(guest_code));
	EXPECT_IO(PORT_BEGIN, 0);
	e = events(&t);
	CHECK(e.flags & KVM_VCPUEVENT_VALID_SMM);
	e.flags = KVM_VCPUEVENT_VALID_SMM;
	e.smi.pending = 1;
	CHECK_EQ(ioctl(t.vcpu, KVM_SET_VCPU_EVENTS, &e), 0);
	EXPECT_IO(PORT_SMM, 1);
	/* As a destination of a migration does: out of it and in again, in the middle of the handler. */
	e = events(&t);
	e.flags = KVM_VCPUEVENT_VALID_SMM;
	e.smi.smm = 0;
	CHECK_EQ(ioctl(t.vcpu, KVM_SET_VCPU_EVENTS, &e), 0);
	CHECK_EQ(events(&t).smi.smm, 0);
	e.smi.smm = e.smi.smm_inside_nmi = 1;
	CHECK_EQ(ioctl(t.vcpu, KVM_SET_VCPU_EVENTS, &e), 0);
	CHECK_EQ(events(&t).smi.smm, 1);
	CHECK_EQ(events(&t).smi.smm_inside_nmi, 1);
	EXPECT_IO(PORT_SMM, 1);
	CHECK_EQ(get_rbx(&t) & 0xffffffff, 0x5a5a5a5a);
	EXPECT_IO(PORT_END, 0);
	smm_done(&t);
}

static void test_address_spaces(void)
{
	struct kvmtest t = smm_vm(0);
	uint64_t bits[2] = { 0 };
	struct kvm_dirty_log log = { .slot = SMM_SLOT, .dirty_bitmap = bits };
	struct kvm_userspace_memory_region region = { .slot = 2u << 16, .memory_size = 4096,
		.guest_phys_addr = 0x200000, .userspace_addr = (uintptr_t)smram };

	CHECK_EQ(ioctl(t.kvm, KVM_CHECK_EXTENSION, KVM_CAP_X86_SMM), 1);
	CHECK_EQ(ioctl(t.kvm, KVM_CHECK_EXTENSION, KVM_CAP_MULTI_ADDRESS_SPACE), 2);
	CHECK_EQ(ioctl(t.vm, KVM_CHECK_EXTENSION, KVM_CAP_MULTI_ADDRESS_SPACE), 2);
	CHECK_ERRNO(ioctl(t.vm, KVM_SET_USER_MEMORY_REGION, &region), EINVAL);
	/* The same number in both, over the same addresses. */
	region.slot = 3;
	CHECK_EQ(ioctl(t.vm, KVM_SET_USER_MEMORY_REGION, &region), 0);
	region.slot = 1u << 16 | 4;
	region.guest_phys_addr = SMBASE + 0x1000;
	CHECK_ERRNO(ioctl(t.vm, KVM_SET_USER_MEMORY_REGION, &region), EEXIST);

	CHECK_ERRNO(ioctl(t.vm, KVM_GET_DIRTY_LOG, &log), ENOENT);
	CHECK_EQ(set_smm_slot(&t, KVM_MEM_LOG_DIRTY_PAGES), 0);
	kvmtest_real_mode(&t, CODE, guest_code, sizeof(guest_code));
	EXPECT_IO(PORT_BEGIN, 0);
	CHECK_EQ(ioctl(t.vcpu, KVM_SMI, 0), 0);
	EXPECT_IO(PORT_SMM, 1);
	CHECK_EQ(ioctl(t.vm, KVM_GET_DIRTY_LOG, &log), 0);
	CHECK_EQ(bits[0], 1u << 15); /* the page with the state */
	log.slot = 3;
	CHECK_ERRNO(ioctl(t.vm, KVM_GET_DIRTY_LOG, &log), ENOENT);
	log.slot = 2u << 16 | 3;
	CHECK_ERRNO(ioctl(t.vm, KVM_GET_DIRTY_LOG, &log), EINVAL);
	EXPECT_IO(PORT_SMM, 1);
	EXPECT_IO(PORT_END, 0);
	smm_done(&t);
}

int main(void)
{
	alarm(120); /* what never comes would be waited for */
	test_real_mode();
	test_long_mode();
	test_smi_in_smm();
	test_nmi();
	test_init();
	test_halted();
	test_relocate();
	bad_rsm(0xff68, 1ull << 40, 8);		/* DR6 */
	bad_rsm(0xff48, 0, 8);			/* CR4 without PAE */
	bad_rsm(0xff50, 1ull << 60, 8);		/* CR3 */
	bad_rsm(0xfed0, 1ull << 3, 8);		/* EFER */
	test_no_smram();
	test_events();
	test_address_spaces();
	return kvmtest_summary();
}

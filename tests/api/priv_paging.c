/* SPDX-License-Identifier: MIT */
/* Page faults and their error codes, in every kind of paging; accessed and dirty bits; TLBs. */
#include "priv.h"

#define NX (1ull << 63)
#define CR2(v) WANT(r->sregs.cr2, v)
#define P_ 1
#define W_ 2
#define U_ 4
#define RSVD_ 8
#define I_ 16

static uint64_t cpuid_bits(struct env *e, unsigned leaf, unsigned reg)
{
	struct kvm_cpuid2 *c = calloc(1, sizeof(*c) + 200 * sizeof(struct kvm_cpuid_entry2));
	uint32_t v = 0;

	c->nent = 200;
	NEED(ioctl(e->t.kvm, KVM_GET_SUPPORTED_CPUID, c) == 0);
	for (unsigned i = 0; i < c->nent; i++)
		if (c->entries[i].function == leaf && c->entries[i].index == 0)
			v = (&c->entries[i].eax)[reg];
	free(c);
	return v;
}

static unsigned phys_bits(struct env *e)
{
	return cpuid_bits(e, 0x80000008, 0) & 0xff;
}

/* ---- not present ----------------------------------------------------------------------- */
T(np_read, L, "9: mov 0x40010, %eax", pte_set(e, PAGE, 0), PF, 0, CR2(PAGE + 0x10))
T(np_write, L, "9: mov %eax, 0x40010", pte_set(e, PAGE, 0), PF, W_, CR2(PAGE + 0x10))
T(np_read_user, LU, "9: mov 0x40010, %eax", pte_set(e, PAGE, 0), PF, U_, CR2(PAGE + 0x10))
T(np_write_user, LU, "9: mov %eax, 0x40010", pte_set(e, PAGE, 0), PF, U_ | W_, CR2(PAGE + 0x10))
T(np_rmw, L, "9: incl 0x40010", pte_set(e, PAGE, 0), PF, W_, CR2(PAGE + 0x10))
T(np_cmpxchg, L, "9: lock cmpxchg %ecx, 0x40010", pte_set(e, PAGE, 0), PF, W_, CR2(PAGE + 0x10))
T(np_test, L, "9: testl $1, 0x40010", pte_set(e, PAGE, 0), PF, 0, CR2(PAGE + 0x10))
T(np_fetch, L, "mov $0x40010, %eax\njmp *%rax\n9:", pte_set(e, PAGE, 0), PF, ELSEWHERE | I_, CR2(PAGE + 0x10))
T(np_n32, N32, "9: mov 0x40010, %eax", pte_set(e, PAGE, 0), PF, 0, CR2(PAGE + 0x10))
T(np_n32_user, N32U, "9: mov %eax, 0x40010", pte_set(e, PAGE, 0), PF, U_ | W_, CR2(PAGE + 0x10))
T(np_pae, PAE32, "9: mov 0x40010, %eax", pte_set(e, PAGE, 0), PF, 0, CR2(PAGE + 0x10))
T(np_pde, L, "9: mov 0x400010, %eax", , PF, 0, CR2(0x400010))
T(np_pdpte, L, "9: mov 0x40000010, %eax", , PF, 0, CR2(0x40000010))
T(np_pdpte_pae, PAE32, "9: mov 0x40000010, %eax", , PF, 0, CR2(0x40000010))
T(np_pml4e, L, "mov $1, %eax\nshl $39, %rax\n9: mov (%rax), %ecx", , PF, 0, CR2(1ull << 39))
T(np_ignores_other_bits, L, "9: mov 0x40010, %eax", pte_set(e, PAGE, ~1ull), PF, 0, )
T(cross_second, L, "9: mov 0x40ffe, %eax", pte_set(e, PAGE + 0x1000, 0), PF, 0, CR2(PAGE + 0x1000))
T(cross_first, L, "9: mov 0x40ffe, %eax", pte_set(e, PAGE, 0); pte_set(e, PAGE + 0x1000, 0), PF, 0, CR2(PAGE + 0xffe))
T(cross_write_stores_nothing, L, "movl $-1, %eax\n9: mov %eax, 0x40ffe", pte_set(e, PAGE + 0x1000, 0), PF, W_,
  CR2(PAGE + 0x1000); WANT(*at16(e, PAGE + 0xffe), 0))
T(cross_fetch, L, "jmp 9f\n.fill 0xffa, 1, 0x90\n9: .byte 0x0f, 0xa2", pte_set(e, CODE + 0x1000, 0), PF, I_, CR2(CODE + 0x1000))

/* ---- protection -------------------------------------------------------------------------- */
T(prot_super, LU, "9: mov 0x40010, %eax", , PF, P_ | U_, CR2(PAGE + 0x10))
T(prot_super_write, LU, "9: mov %eax, 0x40010", , PF, P_ | U_ | W_, )
T(prot_ro_user, LU, "9: mov %eax, 0x40010", pte_set(e, PAGE, PAGE | 5), PF, P_ | U_ | W_, )
T(prot_ro_user_read, LU, "mov 0x40010, %eax\n9: ud2", pte_set(e, PAGE, PAGE | 5), UD, NOERR, )
T(prot_wp, L, "9: mov %eax, 0x40010", pte_set(e, PAGE, PAGE | 1), PF, P_ | W_, )
T(prot_no_wp, L, "9: mov %eax, 0x40010", pte_set(e, PAGE, PAGE | 1); e->s.cr0 &= ~0x10000ull, OK, NOERR, )
T(prot_no_wp_user_page, L, "9: mov %eax, 0x40010", pte_set(e, PAGE, PAGE | 5); e->s.cr0 &= ~0x10000ull, OK, NOERR, )
T(prot_no_wp_user, LU, "9: mov %eax, 0x40010", pte_set(e, PAGE, PAGE | 5); e->s.cr0 &= ~0x10000ull, PF, P_ | U_ | W_, )
T(prot_pde_ro, LU, "9: mov %eax, 0x20010", *at64(e, PD) = PT | 5; e->s.cr0 &= ~0x10000ull, PF, P_ | U_ | W_, )
T(prot_pml4e_super, LU, "9: mov 0x20010, %eax", *at64(e, PML4) = PDPT | 3, PF, P_ | U_ | I_, )
T(prot_wp_n32, N32, "9: mov %eax, 0x40010", pte_set(e, PAGE, PAGE | 1), PF, P_ | W_, )
T(prot_super_n32, N32U, "9: mov 0x40010, %eax", , PF, P_ | U_, )
T(prot_super_pae, PAE32U, "9: mov 0x40010, %eax", , PF, P_ | U_, )
T(prot_fetch_super, LU, "mov $0x40000, %eax\njmp *%rax\n9:", , PF, ELSEWHERE | P_ | U_ | I_, WANT(r->rip, PAGE))
T(implicit_super, LU, "mov $0x10, %eax\nlsl %eax, %ebx\n9: ud2", , UD, NOERR, )
T(nx, L, "mov $0x40000, %eax\njmp *%rax\n9:", pte_set(e, PAGE, PAGE | 3 | NX), PF, ELSEWHERE | P_ | I_, CR2(PAGE))
T(nx_user, LU, "mov $0x20000, %eax\njmp *%rax\n9:", pte_set(e, DATA, DATA | 7 | NX), PF, ELSEWHERE | P_ | U_ | I_, )
T(nx_read, L, "9: mov 0x40000, %eax", pte_set(e, PAGE, PAGE | 3 | NX), OK, NOERR, )
T(nx_pde, L, "mov $0x200000, %eax\njmp *%rax\n9:", *at64(e, PD + 8) |= NX, PF, ELSEWHERE | P_ | I_, )
T(nx_pae, PAE32, "mov $0x40000, %eax\njmp *%eax\n9:", pte_set(e, PAGE, PAGE | 3 | NX), PF, ELSEWHERE | P_ | I_, )
T(nx_off_is_rsvd, L, "9: mov 0x40000, %eax", pte_set(e, PAGE, PAGE | 3 | NX); e->s.efer &= ~0x800ull, PF, P_ | RSVD_, )
T(nx_off_fetch, L, "mov $0x40000, %eax\njmp *%rax\n9:", pte_set(e, PAGE, 0); e->s.efer &= ~0x800ull, PF, ELSEWHERE | 0, )
T(smep, L, "mov $0x20000, %eax\njmp *%rax\n9:", e->s.cr4 |= 1 << 20, PF, ELSEWHERE | P_ | I_, CR2(DATA))
T(smep_user_ok, LU, "9: ud2", e->s.cr4 |= 1 << 20, UD, NOERR, )
T(smep_no_nx_fetch_bit, L, "mov $0x40000, %eax\njmp *%rax\n9:", e->s.cr4 |= 1 << 20; e->s.efer &= ~0x800ull; pte_set(e, PAGE, 0),
  PF, ELSEWHERE | I_, )
T(smap_read, L, "9: mov 0x20010, %eax", e->s.cr4 |= 1 << 21, PF, P_, CR2(DATA + 0x10))
T(smap_write, L, "9: mov %eax, 0x20010", e->s.cr4 |= 1 << 21, PF, P_ | W_, )
T(smap_stac, L, "stac\nmov 0x20010, %eax\nclac\n9: mov 0x20010, %eax", e->s.cr4 |= 1 << 21, PF, P_, )
T(smap_stac_super, L, "stac\n9: mov 0x40010, %eax", e->s.cr4 |= 1 << 21, OK, NOERR, )
T(smap_implicit, L, "stac\nmov $0xc, %eax\n9: mov %eax, %ds", e->s.cr4 |= 1 << 21; e->s.ldt = e->s.tr; e->s.ldt.type = 2; e->s.ldt.base = DATA,
  PF, P_, CR2(DATA + 8))
T(smap_implicit_user, LU, "mov $0xf, %eax\n9: mov %eax, %ds", e->s.cr4 |= 1 << 21; e->s.ldt = e->s.tr; e->s.ldt.type = 2; e->s.ldt.base = DATA,
  PF, P_, CR2(DATA + 8))
T(smap_fetch, L, "mov $0x20000, %eax\njmp *%rax\n9:", e->s.cr4 |= 1 << 21; *at8(e, DATA) = 0xf4, OK, NOERR, WANT(r->regs.rip, DATA + 1))

/* ---- reserved bits --------------------------------------------------------------------------- */
T(rsvd_pte, L, "9: mov 0x40010, %eax", pte_set(e, PAGE, PAGE | 3 | (phys_bits(e) < 52 ? 1ull << 51 : 0) | (phys_bits(e) < 52 ? 0 : NX));
  if (phys_bits(e) == 52) e->s.efer &= ~0x800ull, PF, P_ | RSVD_, )
T(rsvd_user_write, LU, "9: mov %eax, 0x20010", *at64(e, PD) |= NX; e->s.efer &= ~0x800ull, SHUTDOWN, NOERR, )
T(rsvd_pml4e_ps, L, "mov $1, %eax\nshl $39, %rax\n9: mov (%rax), %ecx", *at64(e, PML4 + 8) = PDPT | 0x83, PF, P_ | RSVD_, )
T(rsvd_2m_low, L, "9: mov 0x200010, %eax", *at64(e, PD + 8) |= 0x2000, PF, P_ | RSVD_, )
T(rsvd_1g_low, L, "9: mov 0x40000010, %eax", *at64(e, PDPT + 8) = 0x2083, PF, P_ | RSVD_, )
T(rsvd_write, L, "9: mov %eax, 0x200010", *at64(e, PD + 8) |= 0x2000, PF, P_ | RSVD_ | W_, )
T(rsvd_before_prot, L, "9: mov %eax, 0x200010", *at64(e, PD + 8) = 0x202081, PF, P_ | RSVD_ | W_, )
T(pat_2m, L, "9: mov 0x200010, %eax", *at64(e, PD + 8) |= 0x1000, OK, NOERR, )
T(page_1g, L, "9: mov 0x40020010, %eax", *at64(e, PDPT + 8) = 0x83; *at32(e, DATA + 0x10) = 0x1234567, OK, NOERR,
  WANT(r->regs.rax, 0x1234567))
T(page_2m, L, "9: mov 0x400010, %eax", *at64(e, PD + 16) = 0x83; *at32(e, 0x10) = 0x1234567, OK, NOERR, WANT(r->regs.rax, 0x1234567))
T(page_2m_pae, PAE32, "9: mov 0x420010, %eax", *at64(e, PD + 16) = 0x83; *at32(e, DATA + 0x10) = 0x1234567, OK, NOERR,
  WANT(r->regs.rax, 0x1234567))
T(page_4m, N32, "9: mov 0x420010, %eax", *at32(e, PD + 4) = 0x83; *at32(e, DATA + 0x10) = 0x1234567, OK, NOERR,
  WANT(r->regs.rax, 0x1234567))
T(page_4m_no_pse, N32, "9: mov 0x420010, %eax", *at32(e, PD + 4) = PT | 0x83; e->s.cr4 &= ~0x10ull; *at32(e, DATA + 0x10) = 77,
  OK, NOERR, WANT(r->regs.rax, 77))
T(rsvd_4m, N32, "9: mov 0x420010, %eax", *at32(e, PD + 4) = 0x200083, PF, P_ | RSVD_, )
T(pse36, N32, "9: mov 0x420010, %eax", *at32(e, PD + 4) = 0x2083, MMIO, NOERR,
  WANT(e->t.run->mmio.phys_addr, 0x100020010))
T(rsvd_pae_pdpte, PAE32, "mov %cr3, %eax\nmovl $0x3003, 0x2008\n9: mov %eax, %cr3", , GP, 0, )
T(pae_pdpte_cached, PAE32, "movl $0x1001, 0x2000\n9: mov 0x40010, %eax", , OK, NOERR, )
T(pae_pdpte_reload, PAE32, "movl $0x3001, 0x2008\nmov %cr3, %eax\nmov %eax, %cr3\n9: mov 0x40040010, %eax", , OK, NOERR, )

/* ---- accessed, dirty ---------------------------------------------------------------------------- */
T(ad_read, L, "9: mov 0x40010, %eax", , OK, NOERR, WANT(pte_get(e, PAGE) & 0x60, 0x20); WANT(*at64(e, PD) & 0x60, 0x20);
  WANT(*at64(e, PDPT) & 0x20, 0x20); WANT(*at64(e, PML4) & 0x20, 0x20))
T(ad_write, L, "9: mov %eax, 0x40010", , OK, NOERR, WANT(pte_get(e, PAGE) & 0x60, 0x60); WANT(*at64(e, PD) & 0x60, 0x20))
T(ad_read_then_write, L, "mov 0x40010, %eax\n9: mov %eax, 0x40010", , OK, NOERR, WANT(pte_get(e, PAGE) & 0x60, 0x60))
T(ad_untouched, L, "9: nop", , OK, NOERR, WANT(pte_get(e, PAGE) & 0x60, 0))
T(ad_fault_no_dirty, L, "9: mov %eax, 0x40010", pte_set(e, PAGE, PAGE | 1), PF, P_ | W_, WANT(pte_get(e, PAGE) & 0x40, 0))
T(ad_2m, L, "9: mov %eax, 0x200010", , OK, NOERR, WANT(*at64(e, PD + 8) & 0x60, 0x60))
T(ad_fetch, L, "mov $0x40000, %eax\njmp *%rax\n9:", *at8(e, PAGE) = 0xf4, OK, NOERR, WANT(pte_get(e, PAGE) & 0x60, 0x20))
T(ad_n32, N32, "9: mov %eax, 0x40010", , OK, NOERR, WANT(pte_get(e, PAGE) & 0x60, 0x60); WANT(*at32(e, PD) & 0x60, 0x20))
T(ad_pae, PAE32, "9: mov %eax, 0x40010", , OK, NOERR, WANT(pte_get(e, PAGE) & 0x60, 0x60); WANT(*at64(e, PDPT) & 0x60, 0))
T(ad_cleared_again, L, "mov %eax, 0x40010\nandl $~0x60, 0x4200\ninvlpg 0x40000\n9: mov %eax, 0x40010", , OK, NOERR,
  WANT(pte_get(e, PAGE) & 0x60, 0x60))
T(ad_dirty_after_invlpg, L, "mov %eax, 0x40010\nandl $~0x60, 0x4200\ninvlpg 0x40000\n9: mov 0x40010, %eax", , OK, NOERR,
  WANT(pte_get(e, PAGE) & 0x60, 0x20))

/* ---- TLB ------------------------------------------------------------------------------------------ */
T(tlb_invlpg, L, "mov 0x40010, %eax\nmovl $0x20003, 0x4200\ninvlpg 0x40000\n9: mov 0x40010, %eax", *at32(e, DATA + 0x10) = 5, OK, NOERR,
  WANT(r->regs.rax, 5))
T(tlb_cr3, L, "mov 0x40010, %eax\nmovl $0x20003, 0x4200\nmov %cr3, %rax\nmov %rax, %cr3\n9: mov 0x40010, %eax",
  *at32(e, DATA + 0x10) = 5, OK, NOERR, WANT(r->regs.rax, 5))
T(tlb_cr4_pge, L, "mov 0x40010, %eax\nmovl $0x20103, 0x4200\nmov %cr4, %rax\nxor $0x80, %rax\nmov %rax, %cr4\n9: mov 0x40010, %eax",
  pte_set(e, PAGE, PAGE | 0x103); e->s.cr4 |= 0x80; *at32(e, DATA + 0x10) = 5, OK, NOERR, WANT(r->regs.rax, 5))
T(tlb_wp_set, L, "mov %eax, 0x40010\nmov %cr0, %rax\nbts $16, %rax\nmov %rax, %cr0\n9: mov %eax, 0x40010",
  pte_set(e, PAGE, PAGE | 1); e->s.cr0 &= ~0x10000ull, PF, P_ | W_, )
T(tlb_invlpg_large, L, "mov 0x200010, %eax\nmovl $0x83, 0x3008\ninvlpg 0x300000\n9: mov 0x220010, %eax",
  *at32(e, DATA + 0x10) = 5, OK, NOERR, WANT(r->regs.rax, 5))
T(tlb_user_kernel_apart, LU, "mov 0x20010, %eax\nint $0x80\n9:", idt_gate(e, 0x80, K64, 0xee, 0), 0x80, NOERR, )
T(tlb_smap_toggle, L, "mov 0x20010, %eax\nmov %cr4, %rax\nbts $21, %rax\nmov %rax, %cr4\n9: mov 0x20010, %eax", , PF, P_, )
T(tlb_nxe_toggle, L, "mov 0x40010, %eax\nmov $0xc0000080, %ecx\nrdmsr\nbtr $11, %eax\nwrmsr\n9: mov 0x40010, %eax",
  pte_set(e, PAGE, PAGE | 3 | NX), PF, P_ | RSVD_, )
T(pcid_noflush, L, "mov %cr4, %rax\nbts $17, %rax\nmov %rax, %cr4\nmov %cr3, %rax\nor $1, %rax\nbts $63, %rax\nmov %rax, %cr3\n"
  "9: mov %cr3, %rax", if (!(cpuid_bits(e, 1, 2) >> 17 & 1)) *at8(e, CODE) = 0xf4, OK, NOERR,
  if (cpuid_bits(e, 1, 2) >> 17 & 1) WANT(r->regs.rax, PML4 | 1))
T(invlpg_non_canonical, L, "mov $1, %eax\nshl $47, %rax\n9: invlpg (%rax)", , OK, NOERR, )

PRIV_MAIN

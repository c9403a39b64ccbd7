/* SPDX-License-Identifier: MIT */
/* XSAVES, XRSTORS, XSAVEC and XGETBV(1) in guests: format, #GP rules, who may. tests/insn/oracle does XSAVEC. */
#include "priv.h"

#define XON e->s.cr4 |= 0x40600
#define AREA_BV *at64(e, DATA + 512)
#define AREA_COMP *at64(e, DATA + 520)
#define COMPACT 0x8000000000000000ull
#define ENABLE "xor %ecx, %ecx\nxor %edx, %edx\nmov $7, %eax\nxsetbv\nmov $0x20000, %ebx\nmovl $0x1f80, 0x21f00\nldmxcsr 0x21f00\n"
#define ONES "vpcmpeqd %ymm3, %ymm3, %ymm3\n"

/* ---- saving ------------------------------------------------------------------------- */
T(xsaves_all, L, ENABLE "fninit\nfld1\n" ONES "9: xsaves64 (%rbx)", XON, OK, NOERR,
  WANT(AREA_BV, 7); WANT(AREA_COMP, COMPACT | 7); WANT(*at64(e, DATA + 160 + 48), ~0ull); WANT(*at64(e, DATA + 576 + 48), ~0ull);
  WANT(*at16(e, DATA + 38 + 2), 0x3fff); WANT(*at32(e, DATA + 24), 0x1f80))
T(xsaves_some, L, ENABLE "fninit\n" ONES "mov $5, %eax\n9: xsaves64 (%rbx)", XON; *at64(e, DATA + 160 + 48) = 0x77; AREA_BV = 0xff; *at64(e, DATA + 528) = 0x55, OK, NOERR,
  WANT(AREA_BV & ~1ull, 4); WANT(AREA_COMP, COMPACT | 5); WANT(*at64(e, DATA + 160 + 48), 0x77);
  WANT(*at64(e, DATA + 576 + 48), ~0ull); WANT(*at64(e, DATA + 528), 0x55))
T(xsaves_initial, L, ENABLE "vzeroall\nmov $6, %eax\n9: xsaves64 (%rbx)", XON; *at64(e, DATA + 160) = 0x77; *at32(e, DATA + 24) = 0x99, OK, NOERR,
  WANT(AREA_BV, 0); WANT(AREA_COMP, COMPACT | 6); WANT(*at64(e, DATA + 160), 0x77); WANT(*at32(e, DATA + 24), 0x99))
T(xsaves_mxcsr, L, ENABLE "vzeroall\nmovl $0x1fa0, 0x1000(%rbx)\nldmxcsr 0x1000(%rbx)\nmov $6, %eax\n9: xsaves64 (%rbx)", XON, OK, NOERR,
  WANT(AREA_BV, 2); WANT(*at32(e, DATA + 24), 0x1fa0))
T(xsaves_mxcsr_not_avx, L, ENABLE "vzeroall\nmovl $0x1fa0, 0x1000(%rbx)\nldmxcsr 0x1000(%rbx)\nmov $4, %eax\n9: xsaves64 (%rbx)", XON; *at32(e, DATA + 24) = 0x99, OK, NOERR,
  WANT(AREA_BV, 0); WANT(*at32(e, DATA + 24), 0x99))
T(xsaves_32, P32, ENABLE "fninit\nfld1\n9: xsaves (%ebx)", XON, OK, NOERR,
  WANT(AREA_COMP, COMPACT | 7); WANT(*at16(e, DATA + 38 + 2), 0x3fff))
T(xsavec_user, LU, "mov $0x20000, %ebx\nmov $1, %eax\nxor %edx, %edx\nxsavec64 (%rbx)\n9: hlt", XON, GP, 0, WANT(AREA_COMP, COMPACT | 1))
T(gp_xsaves_user, LU, "mov $0x20000, %ebx\nmov $3, %eax\nxor %edx, %edx\n9: xsaves64 (%rbx)", XON, GP, 0, WANT(AREA_COMP, 0))
T(gp_xsaves_align, L, ENABLE "9: xsaves64 16(%rbx)", XON, GP, 0, )
T(nm_xsaves, L, ENABLE "mov %cr0, %rcx\nor $8, %ecx\nmov %rcx, %cr0\n9: xsaves64 (%rbx)", XON, NM, NOERR, WANT(AREA_COMP, 0))
T(ud_xsaves_no_osxsave, L, "mov $0x20000, %ebx\n9: xsaves64 (%rbx)", , UD, NOERR, )
T(ud_xsaves_66, L, ENABLE "9: .byte 0x66, 0x0f, 0xc7, 0x2b", XON, UD, NOERR, )
T(pf_xsaves, L, ENABLE "mov $0x24000, %ebx\n9: xsaves64 (%rbx)", XON; pte_set(e, 0x24000, 0), PF, 2, WANT(r->sregs.cr2 & ~0xfffull, 0x24000))
/* The upper halves' place is on an absent page: it is touched when they are in use. */
T(xsavec_unused_absent, L, ENABLE "vzeroall\nmov $6, %eax\nmov $0x23dc0, %ebx\n9: xsavec64 (%rbx)", XON; pte_set(e, 0x24000, 0), OK, NOERR,
  WANT(*at64(e, 0x23dc0 + 520), COMPACT | 6))
T(pf_xsavec_used_absent, L, ENABLE "vzeroall\n" ONES "mov $6, %eax\nmov $0x23dc0, %ebx\n9: xsavec64 (%rbx)", XON; pte_set(e, 0x24000, 0), PF, 2,
  WANT(r->sregs.cr2 & ~0xfffull, 0x24000))

/* And so is the legacy part: by what lies there, or by MXCSR, which in the standard format is SSE's and AVX's. */
T(xsavec_legacy_absent, L, ENABLE "xor %eax, %eax\nmov $0x23e00, %ebx\n9: xsavec64 (%rbx)", XON; pte_set(e, 0x23000, 0), OK, NOERR,
  WANT(*at64(e, 0x24000), 0); WANT(*at64(e, 0x24008), COMPACT))
T(xsavec_avx_legacy_absent, L, ENABLE ONES "mov $4, %eax\nmov $0x23e00, %ebx\n9: xsavec64 (%rbx)", XON; pte_set(e, 0x23000, 0), OK, NOERR,
  WANT(*at64(e, 0x24000), 4); WANT(*at64(e, 0x24040 + 48), ~0ull))
T(xsave_nothing_legacy_absent, L, ENABLE "xor %eax, %eax\nmov $0x23e00, %ebx\n9: xsave64 (%rbx)", XON; pte_set(e, 0x23000, 0); *at64(e, 0x24000) = 0x55, OK, NOERR,
  WANT(*at64(e, 0x24000), 0x55))
T(pf_xsave_avx_legacy_absent, L, ENABLE "mov $4, %eax\nmov $0x23e00, %ebx\n9: xsave64 (%rbx)", XON; pte_set(e, 0x23000, 0), PF, 2,
  WANT(r->sregs.cr2 & ~0xfffull, 0x23000))
T(pf_xsavec_x87_legacy_absent, L, ENABLE "fninit\nfld1\nmov $1, %eax\nmov $0x23e00, %ebx\n9: xsavec64 (%rbx)", XON; pte_set(e, 0x23000, 0), PF, 2,
  WANT(r->sregs.cr2 & ~0xfffull, 0x23000); WANT(*at64(e, 0x24008), 0))
T(xrstor_nothing_legacy_absent, L, ENABLE "xor %eax, %eax\nmov $0x23e00, %ebx\n9: xrstor64 (%rbx)", XON; pte_set(e, 0x23000, 0); *at64(e, 0x24000) = 7, OK, NOERR, )
T(pf_xrstor_avx_legacy_absent, L, ENABLE "mov $4, %eax\nmov $0x23e00, %ebx\n9: xrstor64 (%rbx)", XON; pte_set(e, 0x23000, 0), PF, 0,
  WANT(r->sregs.cr2 & ~0xfffull, 0x23000))
/* FXSAVE's 512 bytes have to be writable, though the last ones are not written. */
T(pf_fxsave_tail, L, ENABLE "mov $0x23e50, %ebx\n9: fxsave64 (%rbx)", XON; pte_set(e, 0x24000, 0), PF, 2,
  WANT(r->sregs.cr2 & ~0xfffull, 0x24000); WANT(*at16(e, 0x23e50), 0))

/* ---- restoring ---------------------------------------------------------------------- */
#define IMAGE(bv, comp) XON; AREA_BV = bv; AREA_COMP = comp; *at32(e, DATA + 24) = 0x1f80
#define KEEP "vmovdqa %ymm3, 0x1000(%rbx)\n"
T(xrstors_all, L, ENABLE "xrstors64 (%rbx)\n9: " KEEP, IMAGE(6, COMPACT | 7); *at64(e, DATA + 208) = 0x1234; *at64(e, DATA + 576 + 56) = 0x5678, OK, NOERR,
  WANT(*at64(e, DATA + 0x1000), 0x1234); WANT(*at64(e, DATA + 0x1018), 0x5678))
T(xrstors_init, L, ENABLE ONES "xrstors64 (%rbx)\n9: " KEEP, IMAGE(0, COMPACT | 7); *at64(e, DATA + 208) = 0x1234, OK, NOERR,
  WANT(*at64(e, DATA + 0x1000), 0); WANT(*at64(e, DATA + 0x1018), 0))
T(xrstors_some, L, ENABLE ONES "mov $2, %eax\nxrstors64 (%rbx)\n9: " KEEP, IMAGE(2, COMPACT | 2); *at64(e, DATA + 208) = 0x1234, OK, NOERR,
  WANT(*at64(e, DATA + 0x1000), 0x1234); WANT(*at64(e, DATA + 0x1018), ~0ull))
T(xrstors_mxcsr_init, L, ENABLE "movl $0x1fa0, 0x1000(%rbx)\nldmxcsr 0x1000(%rbx)\nxrstors64 (%rbx)\n9: stmxcsr 0x1000(%rbx)", IMAGE(0, COMPACT | 7); *at32(e, DATA + 24) = 0xffffffff, OK, NOERR,
  WANT(*at32(e, DATA + 0x1000), 0x1f80))
T(xrstors_mxcsr_kept, L, ENABLE "movl $0x1fa0, 0x1000(%rbx)\nldmxcsr 0x1000(%rbx)\nmov $4, %eax\nxrstors64 (%rbx)\n9: stmxcsr 0x1000(%rbx)", IMAGE(4, COMPACT | 7), OK, NOERR,
  WANT(*at32(e, DATA + 0x1000), 0x1fa0))
T(gp_xrstors_mxcsr, L, ENABLE "9: xrstors64 (%rbx)", IMAGE(2, COMPACT | 7); *at32(e, DATA + 24) = 0x80000000, GP, 0, )
T(gp_xrstors_standard, L, ENABLE "9: xrstors64 (%rbx)", IMAGE(7, 0), GP, 0, )
T(gp_xrstors_bv, L, ENABLE "9: xrstors64 (%rbx)", IMAGE(7, COMPACT | 3), GP, 0, )
T(gp_xrstors_comp, L, ENABLE "9: xrstors64 (%rbx)", IMAGE(7, COMPACT | 15), GP, 0, )
T(gp_xrstors_supervisor, L, ENABLE "9: xrstors64 (%rbx)", IMAGE(7, COMPACT | 0x807), GP, 0, )
T(gp_xrstors_bv63, L, ENABLE "9: xrstors64 (%rbx)", IMAGE(COMPACT | 7, COMPACT | 7), GP, 0, )
T(gp_xrstors_reserved, L, ENABLE "9: xrstors64 (%rbx)", IMAGE(7, COMPACT | 7); *at8(e, DATA + 575) = 1, GP, 0, )
T(gp_xrstors_user, LU, "mov $0x20000, %ebx\nmov $1, %eax\nxor %edx, %edx\n9: xrstors64 (%rbx)", IMAGE(1, COMPACT | 1), GP, 0, )
T(gp_xrstor_compact_reserved, L, ENABLE "9: xrstor64 (%rbx)", IMAGE(7, COMPACT | 7); *at8(e, DATA + 560) = 1, GP, 0, )
T(xrstor_standard_ignores, L, ENABLE "9: xrstor64 (%rbx)", IMAGE(6, 0); *at8(e, DATA + 560) = 1, OK, NOERR, )
T(xrstor_compact, L, ENABLE "xrstor64 (%rbx)\n9: " KEEP, IMAGE(6, COMPACT | 7); *at64(e, DATA + 208) = 0x1234, OK, NOERR, WANT(*at64(e, DATA + 0x1000), 0x1234))
T(xrstors_round_trip, L, ENABLE "fninit\nfldpi\n" ONES "mov $7, %eax\nxsaves64 (%rbx)\nfninit\nvzeroall\nxrstors64 (%rbx)\n9: fstpl 0x1100(%rbx)\n" KEEP, XON, OK, NOERR,
  WANT(*at64(e, DATA + 0x1100), 0x400921fb54442d18ull); WANT(*at64(e, DATA + 0x1018), ~0ull))

/* ---- XGETBV, IA32_XSS, CPUID ---------------------------------------------------------- */
T(xgetbv_used, L, ENABLE "vzeroall\nmov $1, %ecx\n9: xgetbv", XON, OK, NOERR, WANT(r->regs.rax & 6, 0))
T(xgetbv_xmm, L, ENABLE "vzeroall\npcmpeqd %xmm5, %xmm5\nmov $1, %ecx\n9: xgetbv", XON, OK, NOERR, WANT(r->regs.rax & 6, 2))
T(xgetbv_ymm, L, ENABLE "vzeroall\n" ONES "mov $1, %ecx\n9: xgetbv", XON, OK, NOERR, WANT(r->regs.rax & 6, 6))
T(xgetbv_mxcsr, L, ENABLE "vzeroall\nmovl $0x1fa0, (%rbx)\nldmxcsr (%rbx)\nmov $1, %ecx\n9: xgetbv", XON, OK, NOERR, WANT(r->regs.rax & 6, 2))
T(gp_xgetbv_2, L, ENABLE "mov $2, %ecx\n9: xgetbv", XON, GP, 0, )
T(xss_zero, L, "mov $0xda0, %ecx\nrdmsr\nmov %eax, %esi\nxor %eax, %eax\nxor %edx, %edx\nwrmsr\n9:", , OK, NOERR, WANT(r->regs.rsi, 0))
T(gp_xss, L, "mov $0xda0, %ecx\nmov $0x800, %eax\nxor %edx, %edx\n9: wrmsr", , GP, 0, )
T(cpuid_size, L, ENABLE "mov $0xd, %eax\nmov $1, %ecx\ncpuid\nmov %ebx, %esi\nxor %ecx, %ecx\nxor %edx, %edx\nmov $3, %eax\nxsetbv\n"
  "mov $0xd, %eax\nmov $1, %ecx\ncpuid\n9:", XON, OK, NOERR, WANT(r->regs.rsi, 832); WANT(r->regs.rbx, 576); WANT(r->regs.rcx, 0))

static int has_all_forms(void)
{
	uint32_t a = 0xd, b, c = 1, d;

	asm volatile("cpuid" : "+a"(a), "=b"(b), "+c"(c), "=d"(d));
	return (a & 15) == 15;
}

int main(int argc, char **argv)
{
	if (!has_all_forms()) {
		printf("this CPU lacks XSAVES: skipped\n0 passed, 0 failed, 1 skipped\n");
		return 0;
	}
	return priv_main(__start_priv_cases, __stop_priv_cases - __start_priv_cases, argc, argv);
}

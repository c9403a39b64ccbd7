/* SPDX-License-Identifier: MIT */
/*
 * The only loads and stores C code makes to guest memory. Each instruction that
 * may fault has a row in the section softkvm_extable; the fault broker
 * (host/fault.c) turns SIGSEGV and SIGBUS there into a jump to its fixup. A row is
 * also where a kick may abort an access (see vm_sync_vcpus()).
 */
#ifndef SOFTKVM_HOST_ACCESS_H
#define SOFTKVM_HOST_ACCESS_H

#include "base/types.h"

#define HOST_EXTABLE(insn, fixup)                                               \
	".pushsection softkvm_extable,\"a\",@progbits\n\t"                      \
	".balign 8\n\t"                                                         \
	".quad " insn " - .\n\t"                                                \
	".quad " fixup " - .\n\t"                                               \
	".popsection\n\t"

struct host_extable_row {
	s64 insn;	/* self-relative */
	s64 fixup;	/* self-relative */
};

#define HOST_LOAD(bits, mnemonic, constraint_type)                              \
static inline bool host_load##bits(const void *p, u64 *val)                     \
{                                                                               \
	constraint_type v;                                                      \
	asm goto volatile("1: " mnemonic "\n\t" HOST_EXTABLE("1b", "%l[fault]") \
			  : "=r"(v) : "m"(*(const u##bits *)p) : : fault);      \
	*val = v;                                                               \
	return true;                                                            \
fault:                                                                          \
	return false;                                                           \
}
HOST_LOAD(8, "movzbl %1, %k0", u32)
HOST_LOAD(16, "movzwl %1, %k0", u32)
HOST_LOAD(32, "movl %1, %k0", u32)
HOST_LOAD(64, "movq %1, %0", u64)

#define HOST_STORE(bits, mnemonic)                                              \
static inline bool host_store##bits(void *p, u64 val)                           \
{                                                                               \
	asm goto volatile("1: " mnemonic "\n\t" HOST_EXTABLE("1b", "%l[fault]") \
			  : : "m"(*(u##bits *)p), "r"(val) : "memory" : fault); \
	return true;                                                            \
fault:                                                                          \
	return false;                                                           \
}
HOST_STORE(8, "movb %b1, %0")
HOST_STORE(16, "movw %w1, %0")
HOST_STORE(32, "movl %k1, %0")
HOST_STORE(64, "movq %1, %0")

/* size 1, 2, 4, 8; false when the client's memory is not accessible. */
static inline bool host_load(const void *p, unsigned size, u64 *val)
{
	switch (size) {
	case 1: return host_load8(p, val);
	case 2: return host_load16(p, val);
	case 4: return host_load32(p, val);
	default: return host_load64(p, val);
	}
}

static inline bool host_store(void *p, unsigned size, u64 val)
{
	switch (size) {
	case 1: return host_store8(p, val);
	case 2: return host_store16(p, val);
	case 4: return host_store32(p, val);
	default: return host_store64(p, val);
	}
}

/* Bytes not copied (0: all). Either side may be guest memory. host/access.c */
size_t host_copy(void *dst, const void *src, size_t len);
size_t host_set(void *dst, int byte, size_t len);
/* 0 equal, 1 different, -1 not accessible. */
int host_compare(const void *a, const void *b, size_t len);
/* Compare-exchange on guest memory, size 4 or 8. 1 done, 0 lost (*expected updated), -1 not accessible. */
int host_cmpxchg(void *p, unsigned size, u64 *expected, u64 desired);
/* Atomic OR. 0 or -1. */
int host_atomic_or32(void *p, u32 bits);

#endif

/* SPDX-License-Identifier: MIT */
/* Block operations on memory that may be the guest's: access.h has the rules. */
#include <string.h>

#include "host/access.h"

#define SHORT_COPY 64	/* below this REP's start-up costs more than a loop */

size_t host_copy(void *dst, const void *src, size_t len)
{
	u8 *d = dst;
	const u8 *s = src;
	u64 v;

	if (len <= SHORT_COPY) {
		for (; len >= 8; len -= 8, d += 8, s += 8)
			if (!host_load64(s, &v) || !host_store64(d, v))
				break;
		for (; len; len--, d++, s++)
			if (!host_load8(s, &v) || !host_store8(d, v))
				break;
		return len;
	}
	asm volatile("1: rep movsb\n"
		     "2:\n\t"
		     HOST_EXTABLE("1b", "2b")
		     : "+D"(d), "+S"(s), "+c"(len) : : "memory");
	return len;
}

size_t host_set(void *dst, int byte, size_t len)
{
	asm volatile("1: rep stosb\n"
		     "2:\n\t"
		     HOST_EXTABLE("1b", "2b")
		     : "+D"(dst), "+c"(len) : "a"(byte) : "memory");
	return len;
}

/* 64 bytes: 0 equal, 1 different, -1 not accessible. */
static inline int compare64(const u8 *x, const u8 *y)
{
	int mask;

	asm goto volatile("1: movdqu (%1), %%xmm0\n\t"
			  "2: movdqu 16(%1), %%xmm1\n\t"
			  "3: movdqu 32(%1), %%xmm2\n\t"
			  "4: movdqu 48(%1), %%xmm3\n\t"
			  "5: movdqu (%2), %%xmm4\n\t"
			  "pcmpeqb %%xmm4, %%xmm0\n\t"
			  "6: movdqu 16(%2), %%xmm4\n\t"
			  "pcmpeqb %%xmm4, %%xmm1\n\t"
			  "7: movdqu 32(%2), %%xmm4\n\t"
			  "pcmpeqb %%xmm4, %%xmm2\n\t"
			  "8: movdqu 48(%2), %%xmm4\n\t"
			  "pcmpeqb %%xmm4, %%xmm3\n\t"
			  "pand %%xmm1, %%xmm0\n\t"
			  "pand %%xmm3, %%xmm2\n\t"
			  "pand %%xmm2, %%xmm0\n\t"
			  "pmovmskb %%xmm0, %0\n\t"
			  HOST_EXTABLE("1b", "%l[fault]") HOST_EXTABLE("2b", "%l[fault]")
			  HOST_EXTABLE("3b", "%l[fault]") HOST_EXTABLE("4b", "%l[fault]")
			  HOST_EXTABLE("5b", "%l[fault]") HOST_EXTABLE("6b", "%l[fault]")
			  HOST_EXTABLE("7b", "%l[fault]") HOST_EXTABLE("8b", "%l[fault]")
			  : "=r"(mask) : "r"(x), "r"(y)
			  : "xmm0", "xmm1", "xmm2", "xmm3", "xmm4", "memory" : fault);
	return mask != 0xffff;
fault:
	return -1;
}

int host_compare(const void *a, const void *b, size_t len)
{
	const u8 *x = a, *y = b;
	u64 v, w;

	for (; len >= 64; len -= 64, x += 64, y += 64) {
		int r = compare64(x, y);

		if (r)
			return r;
	}
	for (; len >= 8; len -= 8, x += 8, y += 8) {
		if (!host_load64(x, &v) || !host_load64(y, &w))
			return -1;
		if (v != w)
			return 1;
	}
	for (; len; len--, x++, y++) {
		if (!host_load8(x, &v) || !host_load8(y, &w))
			return -1;
		if (v != w)
			return 1;
	}
	return 0;
}

/* r: 1 exchanged, 0 lost, -1 fault; SETcc leaves the upper bits of the zero in r alone. */
#define HOST_CMPXCHG(bits, mnemonic, size)                                      \
static int cmpxchg##bits(u##bits *p, u##bits *old, u##bits new)                 \
{                                                                               \
	int r = 0;                                                              \
	u##bits v = *old;                                                       \
	asm volatile("1: lock " mnemonic " %" size "[new], %[mem]\n\t"          \
		     "sete %b[r]\n"                                             \
		     "2:\n\t"                                                   \
		     ".pushsection .text.unlikely\n"                            \
		     "3: movl $-1, %k[r]\n\t"                                   \
		     "jmp 2b\n\t"                                               \
		     ".popsection\n\t"                                          \
		     HOST_EXTABLE("1b", "3b")                                   \
		     : [r] "+&q"(r), "+a"(v), [mem] "+m"(*p)                    \
		     : [new] "r"(new) : "memory", "cc");                        \
	*old = v;                                                               \
	return r;                                                               \
}
HOST_CMPXCHG(32, "cmpxchgl", "k")
HOST_CMPXCHG(64, "cmpxchgq", "q")

int host_cmpxchg(void *p, unsigned size, u64 *expected, u64 desired)
{
	u32 v;
	int r;

	if (size == 8)
		return cmpxchg64(p, expected, desired);
	v = *expected;
	r = cmpxchg32(p, &v, desired);
	*expected = v;
	return r;
}

int host_atomic_or32(void *p, u32 bits)
{
	int r = 0;

	asm volatile("1: lock orl %[bits], %[mem]\n"
		     "2:\n\t"
		     ".pushsection .text.unlikely\n"
		     "3: movl $-1, %k[r]\n\t"
		     "jmp 2b\n\t"
		     ".popsection\n\t"
		     HOST_EXTABLE("1b", "3b")
		     : [r] "+&r"(r), [mem] "+m"(*(u32 *)p)
		     : [bits] "r"(bits) : "memory", "cc");
	return r;
}

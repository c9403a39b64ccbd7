/* SPDX-License-Identifier: MIT */
/* Scalar types, address kinds and the handful of macros everything uses. */
#ifndef SOFTKVM_BASE_TYPES_H
#define SOFTKVM_BASE_TYPES_H

#include <stdbool.h>
#include <stddef.h>
#include <stdint.h>

typedef uint8_t u8;
typedef uint16_t u16;
typedef uint32_t u32;
typedef uint64_t u64;
typedef int8_t s8;
typedef int16_t s16;
typedef int32_t s32;
typedef int64_t s64;

typedef u64 gva_t; /* guest linear (virtual) address */
typedef u64 gpa_t; /* guest physical address */
typedef u64 gfn_t; /* guest page frame number: gpa >> 12 */
typedef u64 hva_t; /* address in the client's own address space */

#define PAGE_SHIFT 12
#define PAGE_SIZE 4096ul
#define PAGE_MASK (~(PAGE_SIZE - 1))

#define likely(x) __builtin_expect(!!(x), 1)
#define unlikely(x) __builtin_expect(!!(x), 0)
#define coldpath __attribute__((__cold__, __noinline__))
#define never_inline __attribute__((__noinline__))
#define must_check __attribute__((warn_unused_result))
#define printf_like(f, a) __attribute__((format(printf, f, a)))
#define softkvm_export __attribute__((visibility("default")))

#define ARRAY_SIZE(a) (sizeof(a) / sizeof((a)[0]))
#define container_of(p, type, member) ((type *)((char *)(p) - offsetof(type, member)))

#define BIT(n) (1u << (n))
#define BIT_ULL(n) (1ull << (n))

#define min(a, b)                          \
	({                                 \
		__typeof__(a) min_a = (a); \
		__typeof__(b) min_b = (b); \
		min_a < min_b ? min_a : min_b; \
	})
#define max(a, b)                          \
	({                                 \
		__typeof__(a) max_a = (a); \
		__typeof__(b) max_b = (b); \
		max_a > max_b ? max_a : max_b; \
	})

#endif

/* SPDX-License-Identifier: MIT */
/* The cache of decoded instructions (x86/dbt/decoded.c): what it finds must be what decoding says. */
#include <setjmp.h>
#include <stdarg.h>
#include <stddef.h>
#include <stdint.h>
#include <stdlib.h>
#include <cmocka.h>

#include "x86/dbt/decoded.h"
#include "x86/interp/interp.h"

static struct vcpu *vcpu;
static struct dbt *d;
static struct trans tr;

static void set_mode(unsigned code_size, u32 mode_key)
{
	vcpu->arch.code_size = vcpu->arch.stack_size = code_size;
	vcpu->arch.flat32 = vcpu->arch.fs_whole = vcpu->arch.gs_whole = code_size == 4;
	vcpu->arch.mode_key = mode_key;
}

static u64 next_random(void)
{
	static u64 x = 88172645463325252ull;

	x ^= x << 13;
	x ^= x >> 7;
	return x ^= x << 17;
}

static void make_room(void)
{
	interp_make_room(vcpu, DBT_BLOCK_INSNS);
	if (!decode_cache_has_room(d) || d->engine_generation != interp_generation(vcpu)) {
		d->engine_generation = interp_generation(vcpu);
		decode_cache_flush(vcpu);
	}
	assert_true(decode_cache_has_room(d));
}

static const struct decoded *get(const u8 *bytes, unsigned avail)
{
	make_room();
	return decoded_get(&tr, bytes, avail);
}

#define GET(...) get((const u8[INSN_MAX_LEN]){ __VA_ARGS__ }, INSN_MAX_LEN)

static u64 disp_of(const struct decoded *r, const u8 *bytes)
{
	struct tinsn t;

	decoded_copy(d, r, bytes, &t);
	return t.insn.disp;
}

static u64 imm_of(const struct decoded *r, const u8 *bytes)
{
	struct tinsn t;

	decoded_copy(d, r, bytes, &t);
	return t.insn.imm;
}

/* Anything at all, mostly of the frequent kinds, each a second time with other values in its last bytes. */
static void test_random(void **state)
{
	static const u8 prefixes[] = { 0x66, 0x67, 0xf2, 0xf3, 0xf0, 0x64, 0x65, 0x2e };
	unsigned again = 0;

	for (unsigned n = 0; n < 300000; n++) {
		const struct decoded *r, *same;
		u8 b[INSN_MAX_LEN];
		unsigned at = 0;

		set_mode(n & 1 ? 8 : 4, n & 1);
		for (unsigned i = 0; i < sizeof(b); i++)
			b[i] = next_random();
		while (!(next_random() & 3) && at < 3)
			b[at++] = prefixes[next_random() % sizeof(prefixes)];
		if (n & 1 && next_random() & 1)
			b[at++] = 0x40 | (next_random() & 15);
		if (!(next_random() & 3))
			b[at++] = 0x0f;
		r = get(b, sizeof(b));
		assert_non_null(r);
		assert_true(decoded_check(vcpu, r, b));
		same = get(b, sizeof(b));
		assert_true(same == r || !r->insn.mnemonic || !same->insn.mnemonic || decoded_check(vcpu, same, b));
		if (r->insn.mnemonic == ZYDIS_MNEMONIC_INVALID)
			continue;
		for (unsigned i = 1; i <= 1 + next_random() % 5 && i < r->insn.len; i++)
			b[r->insn.len - i] = next_random();
		same = get(b, sizeof(b));
		assert_true(decoded_check(vcpu, same, b));
		again += same == r;
	}
	assert_true(again > 10000);
}

static void test_shared(void **state)
{
	static const u8 a[] = { 0x48, 0x8b, 0x84, 0x24, 0x10, 0, 0, 0 }, b[] = { 0x48, 0x8b, 0x84, 0x24, 0xf8, 0xff, 0xff, 0xff };
	static const u8 c[] = { 0x83, 0xc0, 5 }, e[] = { 0x83, 0xc0, 0xfb };
	static const u8 j[] = { 0xe8, 1, 2, 3, 4 }, k[] = { 0xe8, 0, 0, 0, 0x80 };
	const struct decoded *r;

	set_mode(8, 1);
	r = get(a, sizeof(a));
	assert_ptr_equal(get(b, sizeof(b)), r);
	assert_int_equal(disp_of(r, a), 0x10);
	assert_int_equal(disp_of(r, b), -8);
	r = get(c, sizeof(c));
	assert_ptr_equal(get(e, sizeof(e)), r);
	assert_int_equal(imm_of(r, c), 5);
	assert_int_equal(imm_of(r, e), -5);
	r = get(j, sizeof(j));
	assert_ptr_equal(get(k, sizeof(k)), r);
	assert_int_equal(imm_of(r, j), 0x04030201);
	assert_int_equal(imm_of(r, k), 0xffffffff80000000);
	/* What a shift's count is decides what becomes of the flags. */
	assert_ptr_not_equal(GET(0xc1, 0xe0, 0), GET(0xc1, 0xe0, 1));
	/* Comparisons of an SSE register, which a thunk has in its code. */
	assert_ptr_not_equal(GET(0x0f, 0xc2, 0xc1, 0), GET(0x0f, 0xc2, 0xc1, 1));
	/* Neighbours: another register, another prefix, another length. */
	assert_ptr_not_equal(GET(0x48, 0x8b, 0xc1), GET(0x48, 0x8b, 0xc2));
	assert_ptr_not_equal(GET(0x48, 0x8b, 0xc1), GET(0x8b, 0xc1));
	assert_ptr_not_equal(GET(0x8b, 0x41, 1), GET(0x8b, 0x81, 1, 0, 0, 0));
}

/* Of an instruction that is not all there nothing is said, known or not. */
static void test_short(void **state)
{
	static const u8 b[] = { 0x48, 0x81, 0x80, 1, 0, 0, 0, 2, 0, 0, 0 };
	const struct decoded *r;

	set_mode(8, 1);
	for (unsigned known = 0; known < 2; known++) {
		for (unsigned avail = 1; avail < sizeof(b); avail++)
			assert_null(get(b, avail));
		r = get(b, sizeof(b));
		assert_non_null(r);
		assert_int_equal(r->insn.len, sizeof(b));
	}
}

static void test_mode_key(void **state)
{
	const struct decoded *wide, *narrow;

	set_mode(8, 1);
	wide = GET(0x48, 0x89, 0xc8);
	assert_int_equal(wide->insn.len, 3);
	set_mode(4, 0);
	narrow = GET(0x48, 0x89, 0xc8);
	assert_int_equal(narrow->insn.len, 1);
	set_mode(8, 1);
	assert_ptr_equal(GET(0x48, 0x89, 0xc8), wide);
	set_mode(4, 0);
	assert_ptr_equal(GET(0x48, 0x89, 0xc8), narrow);
	/* Many of them: there is an end to it, which is told in time. */
	for (u32 key = 0; key < 1000; key++) {
		set_mode(8, 100 + key);
		assert_int_equal(GET(0x48, 0x89, 0xc8)->insn.len, 3);
	}
}

/* Thunks that were dropped are not used any more; for lack of room elsewhere records stay. */
static void test_generation(void **state)
{
	const u8 mulps[] = { 0x0f, 0x59, 0xc1 };
	const struct decoded *r;
	const void *thunk;

	set_mode(8, 1);
	r = get(mulps, sizeof(mulps));
	thunk = r->insn.thunk;
	assert_non_null(thunk);
	decode_cache_flush(vcpu);
	assert_ptr_equal(get(mulps, sizeof(mulps)), r);
	block_cache_reset(vcpu);
	GET(0x0f, 0x58, 0xc1);
	r = get(mulps, sizeof(mulps));
	assert_non_null(r->insn.thunk);
	assert_ptr_not_equal(r->insn.thunk, thunk); /* another one lies where it was */
	assert_true(decoded_check(vcpu, r, mulps));
}

/* More different instructions than there is room for. */
static void test_full(void **state)
{
	u8 b[] = { 0xc4, 0xe3, 0x79, 0x0f, 0, 0 }; /* VPALIGNR */
	u32 generation = interp_generation(vcpu);
	unsigned full = 0;

	set_mode(8, 1);
	for (u32 n = 0; n < 1u << 17; n++) {
		const struct decoded *r;

		b[2] = (n >> 14 & 15) << 3 | 1;
		b[4] = 0xc0 | (n >> 8 & 63);
		b[5] = n;
		full += !decode_cache_has_room(d);
		r = get(b, sizeof(b));
		assert_int_equal(r->insn.len, sizeof(b));
		if (!(n & 63))
			assert_true(decoded_check(vcpu, r, b));
	}
	assert_true(full || interp_generation(vcpu) != generation);
}

static int setup(void **state)
{
	vcpu = calloc(1, (sizeof(*vcpu) + 63) & ~63ul);
	d = calloc(1, sizeof(*d));
	assert_int_equal(mmu_create(vcpu), 0);
	vcpu->arch.dbt = d;
	vcpu->arch.protected_mode = true;
	vcpu->arch.cr4 = X86_CR4_OSFXSR | X86_CR4_OSXSAVE;
	vcpu->arch.xcr0 = 1 | XFEATURE_SSE | XFEATURE_AVX;
	assert_true(interp_prepare(vcpu));
	assert_int_equal(decode_cache_create(d), 0);
	d->engine_generation = ~0u;
	tr = (struct trans){ .vcpu = vcpu, .d = d };
	make_room();
	return 0;
}

static int teardown(void **state)
{
	decode_cache_destroy(d);
	interp_destroy(vcpu);
	free(d);
	mmu_destroy(vcpu);
	free(vcpu);
	return 0;
}

int main(void)
{
	const struct CMUnitTest tests[] = {
		cmocka_unit_test(test_shared), cmocka_unit_test(test_short), cmocka_unit_test(test_mode_key),
		cmocka_unit_test(test_generation), cmocka_unit_test(test_random), cmocka_unit_test(test_full),
	};

	return cmocka_run_group_tests(tests, setup, teardown);
}

/* SPDX-License-Identifier: MIT */
/* Which entry of a block a link leads to: every cycle of links has to look at requests somewhere. */
#include <setjmp.h>
#include <stdarg.h>
#include <stddef.h>
#include <stdint.h>
#include <stdlib.h>
#include <cmocka.h>

#include "x86/dbt/dbt.h"

#define SIZE 4096u
#define COLD 2048u

static u8 code[SIZE];
static struct dbt *d;

/* Where the field at offset field leads to once it is linked to b. */
static u32 linked(const struct dbt_block *b, u32 field, bool host_flags)
{
	const struct dbt_exit x = { .field = field, .host_flags = host_flags };
	s32 distance;

	memset(code, 0, sizeof(code));
	dbt_link(d, &x, b);
	memcpy(&distance, code + field, 4);
	return field + 4 + distance;
}

/* Its straight path begins at main; all entries differ. */
static struct dbt_block block(u32 main)
{
	return (struct dbt_block){ .main = main, .slot = main, .slot_poll = main - 20, .host = main - 4, .host_poll = COLD + main };
}

static void test_straight(void **state)
{
	const struct dbt_block b = block(1024);

	assert_int_equal(linked(&b, 512, false), b.slot);
	assert_int_equal(linked(&b, 512, true), b.host);
	assert_int_equal(linked(&b, 1040, false), b.slot_poll); /* a loop */
	assert_int_equal(linked(&b, 1536, false), b.slot_poll);
	assert_int_equal(linked(&b, 1536, true), b.host_poll);
}

/* Off the straight path: of a block that is before this one, or after it. */
static void test_cold(void **state)
{
	const struct dbt_block first = block(64), last = block(COLD - 64);

	for (u32 field = COLD; field + 4 <= SIZE; field += 4) {
		assert_int_equal(linked(&first, field, false), first.slot_poll);
		assert_int_equal(linked(&last, field, false), last.slot_poll);
		assert_int_equal(linked(&last, field, true), last.host_poll);
	}
}

static int setup(void **state)
{
	d = calloc(1, sizeof(*d));
	d->emit = (struct emit){ .base = code, .end = COLD };
	d->cold = (struct emit){ .base = code, .at = COLD, .end = SIZE };
	return d ? 0 : -1;
}

static int teardown(void **state)
{
	free(d);
	return 0;
}

int main(void)
{
	const struct CMUnitTest tests[] = {
		cmocka_unit_test(test_straight),
		cmocka_unit_test(test_cold),
	};

	return cmocka_run_group_tests(tests, setup, teardown);
}

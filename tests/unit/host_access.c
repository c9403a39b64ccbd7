/* SPDX-License-Identifier: MIT */
/* Accessors on memory that is there, half there and not there; code memory; memfds. */
#include <stdlib.h>
#include <string.h>
#include <sys/mman.h>
#include <sys/stat.h>
#include <unistd.h>

#include "host/access.h"
#include "host/host.h"
#include "host_test.h"

static u8 *edge; /* two pages, the second inaccessible */

static void test_loads_and_stores(void)
{
	u64 v = 0;

	for (unsigned size = 1; size <= 8; size *= 2) {
		CHECK(host_store(edge + PAGE_SIZE - size, size, 0x8877665544332211ull));
		CHECK(host_load(edge + PAGE_SIZE - size, size, &v));
		CHECK(v == (size == 8 ? 0x8877665544332211ull : 0x8877665544332211ull & (BIT_ULL(size * 8) - 1)));
		CHECK(!host_load(edge + PAGE_SIZE, size, &v));
		CHECK(!host_store(edge + PAGE_SIZE, size, 1));
	}
	CHECK(!host_load64(edge + PAGE_SIZE - 4, &v));
	CHECK(!host_load64((void *)0x8000000000000000ull, &v)); /* #GP on the host */
}

static void test_blocks(void)
{
	u8 buf[2 * PAGE_SIZE], copy[2 * PAGE_SIZE];

	for (unsigned i = 0; i < sizeof(buf); i++)
		buf[i] = i * 7;
	for (size_t len = 0; len < 300; len++) {
		memset(copy, 0, sizeof(copy));
		CHECK(host_copy(copy, buf, len) == 0 && !memcmp(copy, buf, len) && !copy[len]);
	}
	CHECK(host_copy(edge, buf, PAGE_SIZE) == 0);
	CHECK(host_compare(edge, buf, PAGE_SIZE) == 0);
	CHECK(host_copy(edge + 100, buf, PAGE_SIZE) == 100);
	CHECK(host_copy(buf, edge + PAGE_SIZE - 10, 20) == 10);
	CHECK(host_set(edge, 0x5a, PAGE_SIZE) == 0 && edge[0] == 0x5a && edge[PAGE_SIZE - 1] == 0x5a);
	CHECK(host_set(edge + PAGE_SIZE - 3, 1, 10) == 7);
	CHECK(host_compare(edge, buf, 16) == 1);
	CHECK(host_compare(edge, edge, PAGE_SIZE + 1) == -1);
}

static void test_atomics(void)
{
	u64 *p = (u64 *)edge, old = 5;
	u32 *q = (u32 *)edge;

	*p = 5;
	CHECK(host_cmpxchg(p, 8, &old, 6) == 1 && *p == 6);
	CHECK(host_cmpxchg(p, 8, &old, 7) == 0 && old == 6 && *p == 6);
	*p = 0xaaaaaaaa00000001ull;
	old = 1;
	CHECK(host_cmpxchg(q, 4, &old, 2) == 1 && *p == 0xaaaaaaaa00000002ull);
	CHECK(host_cmpxchg(edge + PAGE_SIZE, 8, &old, 1) == -1);
	CHECK(host_cmpxchg(edge + PAGE_SIZE, 4, &old, 1) == -1);
	CHECK(host_atomic_or32(q, 0x10) == 0 && *q == 0x12);
	CHECK(host_atomic_or32(edge + PAGE_SIZE, 1) == -1);
}

static bool skip_ud2(int sig, siginfo_t *info, ucontext_t *uc)
{
	uc->uc_mcontext.gregs[REG_RIP] += 2;
	uc->uc_mcontext.gregs[REG_RAX] = sig;
	return true;
}

static void test_code(const char *wx)
{
	static const u8 code[] = { 0x0f, 0x0b, 0xc3 }; /* ud2; ret */
	struct codemem cm;

	if (wx)
		setenv("SOFTKVM_WX", wx, 1);
	else
		unsetenv("SOFTKVM_WX");
	CHECK(codemem_init(&cm, 10000) == 0 && cm.size >= 10000);
	CHECK(wx ? cm.rw == cm.rx : cm.rw != cm.rx);
	memcpy(cm.rw, code, sizeof(code));
	host_register_code_fault(cm.rx, cm.rx + cm.size, skip_ud2);
	CHECK(((int (*)(void))codemem_rx(&cm, cm.rw))() == SIGILL);
	host_register_code_fault(cm.rx, NULL, NULL);
	codemem_free(&cm);
	CHECK(!cm.rw);
}

static void test_memfd(void)
{
	int fd = host_memfd("test", 8192, true);
	struct stat st;

	CHECK(fd >= 0 && !fstat(fd, &st) && st.st_size == 8192);
	CHECK(ftruncate(fd, 0) == -1);
	close(fd);
}

int main(void)
{
	edge = mmap(NULL, 2 * PAGE_SIZE, PROT_READ | PROT_WRITE, MAP_PRIVATE | MAP_ANONYMOUS, -1, 0);
	mprotect(edge + PAGE_SIZE, PAGE_SIZE, PROT_NONE);
	host_signals_init();
	test_loads_and_stores();
	test_blocks();
	test_atomics();
	test_code(NULL);
	test_code("single");
	test_memfd();
	return host_test_end();
}

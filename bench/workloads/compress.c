/* SPDX-License-Identifier: MIT */
/* zlib both ways. */
#include <zlib.h>

#include "work.h"

#define PART (512u << 10)

static unsigned char *text(void)
{
	size_t size;
	unsigned char *p = work_read("text", &size);

	if (size < PART)
		work_fail("text is too short");
	return p;
}

uint64_t work_deflate(long n)
{
	unsigned char *in = text(), *out = work_alloc(compressBound(PART));
	uLongf len = 0;

	work_begin();
	for (long i = 0; i < n; i++) {
		len = compressBound(PART);
		if (compress2(out, &len, in, PART, 6) != Z_OK)
			work_fail("compress2");
	}
	work_end(n);
	return mix_bytes(len, out, len);
}

uint64_t work_inflate(long n)
{
	unsigned char *in = text(), *out = work_alloc(compressBound(PART));
	uLongf len = compressBound(PART), back = PART;

	if (compress2(out, &len, in, PART, 6) != Z_OK)
		work_fail("compress2");
	work_begin();
	for (long i = 0; i < n; i++)
		if (uncompress(in, &back, out, len) != Z_OK)
			work_fail("uncompress");
	work_end(n);
	return mix_bytes(back, in, PART);
}

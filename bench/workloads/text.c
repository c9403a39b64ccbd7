/* SPDX-License-Identifier: MIT */
/* Text: regular expressions of two libraries, substring search, splitting into lines, number formatting. */
#define PCRE2_CODE_UNIT_WIDTH 8
#include <pcre2.h>
#include <regex.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

#include "work.h"

uint64_t work_pcre(long n)
{
	static const char *patterns[] = { "\\b(\\w+)ing\\b", "([aeiou])\\w\\1", "[0-9]+(\\.[0-9]+)?", "^.*(foo|bar|ion).*$" };
	size_t size;
	char *text = work_read("text", &size);
	uint64_t sum = 0;

	size = size < (size_t)n * 1024 ? size : (size_t)n * 1024;
	work_begin();
	for (unsigned i = 0; i < sizeof(patterns) / sizeof(patterns[0]); i++) {
		PCRE2_SIZE *at, from = 0, where;
		int error;
		pcre2_code *re = pcre2_compile((PCRE2_SPTR)patterns[i], PCRE2_ZERO_TERMINATED, PCRE2_MULTILINE, &error,
					       &where, NULL);
		pcre2_match_data *md = pcre2_match_data_create_from_pattern(re, NULL);

		while (from < size && pcre2_match(re, (PCRE2_SPTR)text, size, from, 0, md, NULL) > 0) {
			at = pcre2_get_ovector_pointer(md);
			sum = mix(sum, at[0] * 31 + at[1]);
			from = at[1] > from ? at[1] : from + 1;
		}
		pcre2_match_data_free(md);
		pcre2_code_free(re);
	}
	work_end(n);
	return sum;
}

uint64_t work_regex(long n)
{
	size_t size;
	char *text = work_read("text", &size), *line = text;
	regex_t re;
	regmatch_t m[3];
	uint64_t sum = 0;

	if (regcomp(&re, "([a-f]+)[^ ]*([0-9]|ing|tion)( |$)", REG_EXTENDED))
		work_fail("regcomp");
	work_begin();
	for (long i = 0; i < n && line; i++) {
		char *end = strchr(line, '\n');

		if (end)
			*end = 0;
		if (!regexec(&re, line, 3, m, 0))
			sum = mix(sum, m[0].rm_so * 1000 + m[0].rm_eo * 10 + m[1].rm_so);
		line = end ? end + 1 : NULL;
	}
	work_end(n);
	return sum;
}

uint64_t work_strstr(long n)
{
	static const char *needles[] = { "zzyzx", "the end", "ation of", "qu", "xxxxxxxxxxxxxxxx" };
	size_t size;
	char *text = work_read("text", &size);
	uint64_t sum = 0;

	work_begin();
	for (long i = 0; i < n; i++)
		for (unsigned k = 0; k < sizeof(needles) / sizeof(needles[0]); k++)
			for (char *p = text; (p = strstr(p, needles[k])); p++)
				sum = mix(sum, p - text);
	work_end(n);
	return sum;
}

uint64_t work_lines(long n)
{
	size_t size;
	char *text = work_read("text", &size), buffer[4096];
	uint64_t sum = 0;

	work_begin();
	for (long i = 0; i < n; i++)
		for (char *p = text, *end; (end = memchr(p, '\n', text + size - p)); p = end + 1) {
			size_t len = end - p < 4095 ? end - p : 4095;

			memcpy(buffer, p, len);
			buffer[len] = 0;
			sum += strlen(buffer) + (strncmp(buffer, "the", 3) == 0) + (strrchr(buffer, ' ') - buffer);
		}
	work_end(n);
	return sum;
}

uint64_t work_format(long n)
{
	uint64_t sum = 0, state = 1;
	char line[200];

	work_begin();
	for (long i = 0; i < n; i++) {
		uint64_t x = rnd(&state);
		long a;
		double b;
		int len = snprintf(line, sizeof(line), "%ld %.6g %08x %s", (long)(x >> 20), (double)(x & 0xfffff) / 77,
				   (unsigned)x, "text");

		if (sscanf(line, "%ld %lf", &a, &b) != 2)
			work_fail("sscanf");
		sum = mix(sum, a + (long)(b * 100) + len);
	}
	work_end(n);
	return sum;
}

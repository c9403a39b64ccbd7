/* SPDX-License-Identifier: MIT */
#include "subject.h"

#include <ctype.h>
#include <glib.h>
#include <stdio.h>
#include <string.h>
#include <strings.h>

/* At most five digits: what is longer is not an index. */
static bool number(const char **p, int *n)
{
	const char *s = *p;
	int v = 0;

	while (isdigit((unsigned char)*s) && s - *p < 5)
		v = v * 10 + (*s++ - '0');
	if (s == *p || isdigit((unsigned char)*s))
		return false;
	*p = s;
	*n = v;
	return true;
}

/* 02/13, nothing before or after. */
static bool word_index(const char *w, struct tag *t)
{
	int i, n;

	if (!number(&w, &i) || *w++ != '/' || !number(&w, &n) || *w)
		return false;
	t->index = i;
	t->total = n;
	return true;
}

/* v3, V3, v3.1, and the tail of PATCHv3. */
static bool word_version(const char *w, struct tag *t)
{
	int major, minor = 0;

	if (*w != 'v' && *w != 'V')
		return false;
	w++;
	if (!number(&w, &major))
		return false;
	if (*w == '.') {
		w++;
		if (!number(&w, &minor))
			return false;
	}
	if (*w)
		return false;
	t->version = VERSION(MIN(major, 9999)) + MIN(minor, 999);
	return true;
}

static void word_take(char *w, struct tag *t)
{
	if (word_index(w, t) || word_version(w, t))
		return;
	if (strstr(w, "PATCH"))
		t->patch = true;
	if (strcasestr(w, "patch"))
		t->patch_any = true;
	if (!strncasecmp(w, "PATCHv", 6) && word_version(w + 5, t))
		w[5] = '\0';
	if (!strcasecmp(w, "RFC"))
		t->rfc = true;
	if (!strcasecmp(w, "RESEND") || !strcasecmp(w, "REPOST")) {
		t->resend = true;
		return;
	}
	if (t->prefix[0])
		g_strlcat(t->prefix, " ", sizeof(t->prefix));
	g_strlcat(t->prefix, w, sizeof(t->prefix));
}

static void group_take(const char *p, const char *end, struct tag *t)
{
	char *text = g_strndup(p, end - p);
	char *save = NULL;

	for (char *w = strtok_r(text, " \t,", &save); w; w = strtok_r(NULL, " \t,", &save))
		word_take(w, t);
	g_free(text);
}

void tag_parse(const char *subject, struct tag *t)
{
	const char *p = subject, *close;

	memset(t, 0, sizeof(*t));
	t->index = t->total = -1;
	while (*p == '[' && (close = strchr(p, ']'))) {
		/* [PATCH 1/2] [foo] title: what follows the patch tag is title. */
		if (t->patch_any && t->index >= 0)
			break;
		group_take(p + 1, close, t);
		p = close + 1;
		while (*p == ' ' || *p == '\t')
			p++;
	}
	t->title = p;
	if (t->prefix[0] && !g_utf8_validate(t->prefix, -1, NULL)) {
		const char *bad;

		g_utf8_validate(t->prefix, -1, &bad);
		t->prefix[bad - t->prefix] = '\0';
	}
}

const char *version_text(int version, char buf[16])
{
	int major = version / 1000, minor = version % 1000;

	if (!version)
		major = 1;
	if (minor)
		snprintf(buf, 16, "v%d.%d", major, minor);
	else
		snprintf(buf, 16, "v%d", major);
	return buf;
}

/* SPDX-License-Identifier: MIT */
/*
 * Which patch a reply leads to. In-Reply-To and References are claims of the
 * sender: they may form circles, and they may name mails outside the range.
 * A walk therefore ends after DEPTH_MAX steps, and every reply on it keeps what
 * the walk found, so that the whole is linear.
 */
#include "digest.h"

#define DEPTH_MAX	1000

static struct msg *parent_of(struct digest *d, const struct msg *m)
{
	for (guint i = 0; i < m->nrefs; i++) {
		struct msg *p = d->by_id->pdata[m->refs[i]];

		if (p && p != m)
			return p;
	}
	return NULL;
}

static void link_one(struct digest *d, struct msg *m)
{
	struct msg *p = m, *found;
	guint n = 0;

	while (p && !p->patch && !p->answers && n++ < DEPTH_MAX)
		p = parent_of(d, p);
	if (!p)
		return;
	found = p->patch ? p : p->answers;
	if (!found)
		return;
	for (p = m; p && !p->patch && !p->answers && n--; p = parent_of(d, p)) {
		p->answers = found;
		p->series = found->series;
	}
}

void thread_link(struct digest *d)
{
	for (guint i = 0; i < d->msgs->len; i++) {
		struct msg *m = d->msgs->pdata[i];

		if (!m->patch)
			link_one(d, m);
		if (m->patch || !m->series)
			continue;
		g_ptr_array_add(m->series->replies, m);
		if (m->applied && !(m->applied_part && m->series->applied))
			m->series->applied = m;
	}
}

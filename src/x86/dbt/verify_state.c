/* SPDX-License-Identifier: MIT */
/*
 * Abstract values, what is known about them, and what remains of both where two ways meet.
 *
 * A value has a name while somebody may add to it or compare it: the place that first asked (pc and register), or, for
 * sums, the names that it is the sum of: what is computed twice has the same name twice.
 * At a label values and facts from all ways there are merged: what is not the same is anything. What is
 * established about a name cannot survive the name's next definition, because that is in a loop, and at its head nobody has
 * both.
 */
#include "x86/dbt/verify_internal.h"

/* ---- values ------------------------------------------------------------------------------------ */

/* An address, or its offset, and what was read from a TLB entry, if x and y are that in this order. */
static bool add_entry(const struct value *x, const struct value *y, struct value *r)
{
	*r = *y;
	if (x->kind == OFFSET && y->kind == PAGE && same_address(x, y) && x->ctx == y->ctx) {
		r->kind = HOST;
		return true;
	}
	if (!is_address(x))
		return false;
	if (y->kind == TAG && same_address(x, y)) {
		r->kind = OFFSET;
		return true;
	}
	/* Any address of this name will do: the fact has to cover both. */
	if (y->kind == DELTA && x->name == y->name) {
		r->kind = HOST;
		r->c = x->a - y->a;
		return true;
	}
	return false;
}

struct value add_constant(const struct value *x, u64 n)
{
	struct value r = *x;

	switch (x->kind) {
	case CONST:
	case SYM:
		r.a += n;
		return r;
	case HOST:
	case VCPU:
		r.c += n;
		return r;
	default:
		return !n ? r : is_secret(x) ? secret : any;
	}
}

/* The name of x + y * scale: one and the same for the same names. 0: there are too many. */
static u32 expression_name(struct dbt_verifier *v, struct expression e)
{
	u32 i;

	for (i = 0; i < v->nr_expressions; i++)
		if (v->expressions[i].x == e.x && v->expressions[i].y == e.y && v->expressions[i].scale == e.scale)
			return EXPRESSION | i;
	if (i == EXPRESSIONS_MAX)
		return 0;
	v->expressions[v->nr_expressions++] = e;
	return EXPRESSION | i;
}

/* x + y * scale */
struct value value_scaled(struct dbt_verifier *v, const struct value *x, const struct value *y, u32 scale)
{
	const struct value p = as_address(x), q = as_address(y);
	struct value r;

	if (is_secret(x) || is_secret(y))
		return secret;
	if (!is_address(&p) || !is_address(&q))
		return any;
	r = add_constant(&p, q.a * scale);
	if (!q.name)
		return r;
	if (!p.name && scale == 1)
		return add_constant(&q, p.a);
	r = (struct value){ .kind = SYM, .a = r.a, .name = expression_name(v, (struct expression){ p.name, q.name, scale }) };
	return r.name ? r : any;
}

struct value value_add(struct dbt_verifier *v, const struct value *x, const struct value *y)
{
	const struct value p = as_address(x), q = as_address(y);
	struct value r;

	if (add_entry(&p, &q, &r) || add_entry(&q, &p, &r))
		return r;
	if (y->kind == CONST)
		return add_constant(&p, y->a);
	if (x->kind == CONST)
		return add_constant(&q, x->a);
	return value_scaled(v, x, y, 1);
}

struct value value_sub(const struct value *x, const struct value *y)
{
	struct value r = as_address(x);

	if (y->kind == CONST && is_address(&r))
		r.a -= y->a;
	else if (y->kind == CONST && (x->kind == HOST || x->kind == VCPU))
		r.c -= y->a;
	else if (x->kind == OFFSET && y->kind == TAG && same_address(x, y) && x->ctx == y->ctx && x->write == y->write)
		r = (struct value){ .kind = x->name ? SYM : CONST, .name = x->name, .a = x->a };
	else
		r = is_secret(x) || is_secret(y) ? secret : any;
	return r;
}

/* ---- facts ------------------------------------------------------------------------------------- */

static bool fact_equal(const struct fact *x, const struct fact *y)
{
	return x->kind == y->kind && x->ctx == y->ctx && x->write == y->write && x->name == y->name &&
	       x->a == y->a && x->size == y->size;
}

void fact_add(struct state *s, struct fact f)
{
	for (u32 i = 0; i < s->nr_facts; i++)
		if (fact_equal(&s->facts[i], &f))
			return;
	/* The oldest goes. */
	if (s->nr_facts == FACTS_MAX)
		memmove(s->facts, s->facts + 1, --s->nr_facts * sizeof(f));
	s->facts[s->nr_facts++] = f;
}

void entries_forget(struct state *s)
{
	u32 n = 0;

	for (u32 i = 0; i < s->nr_facts; i++)
		if (s->facts[i].kind != FACT_ENTRY)
			s->facts[n++] = s->facts[i];
	s->nr_facts = n;
	for (unsigned i = 0; i < NR_SLOTS; i++)
		if (s->slot[i].kind == OFFSET && of_own_entry(&s->slot[i]))
			s->slot[i] = any;
}

/* Is [A + c, A + c + size) permitted, with A's delta of this context? */
bool is_checked(const struct state *s, const struct value *host, u32 size, bool write)
{
	for (u32 i = 0; i < s->nr_facts; i++) {
		const struct fact *f = &s->facts[i];
		u64 at = host->a + host->c - f->a;

		if (f->kind == FACT_CHECKED && f->name == host->name && f->ctx == host->ctx && (f->write || !write) &&
		    host->a - f->a < f->size && at < f->size && at + size <= f->size)
			return true;
	}
	return false;
}

/* ---- states ------------------------------------------------------------------------------------ */

void state_forget(struct state *s)
{
	for (unsigned r = 0; r < 16; r++)
		s->reg[r] = any;
	s->reg[T1] = secret;
	for (unsigned i = 0; i < NR_SLOTS; i++)
		s->slot[i] = any;
	s->slot[FRAME_VCPU / 8] = (struct value){ .kind = VCPU };
	s->slot[FRAME_PAGE / 8] = sym(PAGE_NAME); /* as long as one stays in the block */
	s->nr_facts = 0;
	s->x87 = false;
	s->flags = FLAGS_NONE;
}

/*
 * Where two ways meet: a register that holds one address on one way and another on the other is an
 * unknown of its own from here on, and what was known of either relative to it remains if it is the
 * same. `in` is what the label has got so far.
 */
struct anchor {
	struct value in, other;	/* addresses */
	struct value out;
};

struct meeting {
	struct anchor anchors[16 + 3 + 1];
	u32 nr;
	struct label *label;
	const struct dbt_verifier *v;
};

static void anchor_add(struct meeting *m, const struct value *in, const struct value *other, u32 what)
{
	struct anchor *a = &m->anchors[m->nr];

	a->in = as_address(in);
	a->other = as_address(other);
	if (!is_address(&a->in) || !is_address(&a->other))
		return;
	a->out = same_address(&a->in, &a->other) ? a->in : sym(name_at(m->v, m->label->at, what));
	m->nr++;
}

/* A look-up that has failed: it does not matter of which address T0 and T1 are, as long as it is the same. */
static void anchor_add_failed(struct meeting *m, const struct value *in, const struct value *other)
{
	const struct value a = derived(SYM, in), b = derived(SYM, other);

	if (in->kind == OFFSET && other->kind == OFFSET && in->name && other->name)
		anchor_add(m, &a, &b, T0);
}

/* x on one way and y on the other, made of the addresses of an anchor in the same manner. */
static bool meet_at(const struct anchor *a, u32 *name, u64 *at, u32 other_name, u64 other_at)
{
	if (*name != a->in.name || other_name != a->other.name || *at - a->in.a != other_at - a->other.a)
		return false;
	*at = a->out.a + (*at - a->in.a);
	*name = a->out.name;
	return true;
}

static void value_meet(const struct meeting *m, struct value *x, const struct value *y, bool *changed)
{
	struct value r = *x;
	bool alike = x->kind == y->kind && x->ctx == y->ctx && x->write == y->write && x->c == y->c && x->kind != BITS;

	if (value_equal(x, y))
		return;
	/* A constant address is as good as an unknown one. */
	if ((x->kind == CONST || x->kind == SYM) && is_address(y)) {
		r.kind = SYM;
		alike = true;
	}
	for (u32 i = 0; alike && i < m->nr; i++) {
		if (meet_at(&m->anchors[i], &r.name, &r.a, y->name, y->a) && (r.kind != SYM || r.name)) {
			*changed |= !value_equal(x, &r);
			*x = r;
			return;
		}
	}
	r = is_secret(x) || is_secret(y) ? secret : any;
	*changed |= !value_equal(x, &r);
	*x = r;
}

static void facts_meet(const struct meeting *m, struct state *in, const struct state *s, bool *changed)
{
	struct fact old[FACTS_MAX];
	u32 n = in->nr_facts;
	bool same = true;

	memcpy(old, in->facts, n * sizeof(*old));
	in->nr_facts = 0;
	for (u32 i = 0; i < n; i++) {
		for (u32 j = 0; j < s->nr_facts; j++) {
			struct fact f = s->facts[j];

			f.name = old[i].name;
			f.a = old[i].a;
			if (!fact_equal(&f, &old[i]))
				continue;
			if (f.name == s->facts[j].name && f.a == s->facts[j].a)
				fact_add(in, f);
			for (u32 k = 0; k < m->nr; k++) {
				f = old[i];
				if (meet_at(&m->anchors[k], &f.name, &f.a, s->facts[j].name, s->facts[j].a))
					fact_add(in, f);
			}
		}
	}
	for (u32 i = 0; i < n && n == in->nr_facts; i++)
		same &= fact_equal(&old[i], &in->facts[i]);
	*changed |= !same || n != in->nr_facts;
}

void state_meet(struct dbt_verifier *v, struct label *l, const struct state *s)
{
	struct meeting m = { .label = l, .v = v };
	struct state *in = &l->in;
	bool changed = false;

	if (!l->seen) {
		*in = *s;
		l->seen = l->pending = true;
		return;
	}
	for (unsigned r = 0; r < 16; r++)
		if (r != T0 && r != T1)
			anchor_add(&m, &in->reg[r], &s->reg[r], r);
	for (unsigned i = 0; i < 3; i++)
		anchor_add(&m, &in->slot[FRAME_R9 / 8 + i], &s->slot[FRAME_R9 / 8 + i], IN_SLOT + FRAME_R9 / 8 + i);
	anchor_add_failed(&m, &in->reg[T0], &s->reg[T0]);
	for (unsigned r = 0; r < 16; r++)
		value_meet(&m, &in->reg[r], &s->reg[r], &changed);
	for (unsigned i = 0; i < NR_SLOTS; i++)
		value_meet(&m, &in->slot[i], &s->slot[i], &changed);
	facts_meet(&m, in, s, &changed);
	changed |= in->x87 && !s->x87;
	in->x87 &= s->x87;
	if (in->flags != FLAGS_NONE && (in->flags != s->flags || in->limit != s->limit || !value_equal(&in->compared, &s->compared))) {
		in->flags = FLAGS_NONE;
		changed = true;
	}
	l->pending |= changed;
}

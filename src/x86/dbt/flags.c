/* SPDX-License-Identifier: MIT */
/*
 * The guest's flags: where they are live, and how they move between the host's flags and the frame.
 *
 * They are known to be in the host's flags, in the frame's slot, both, or dead. Look-ups destroy the host's: live ones
 * are put into the slot first. Dead flags may be stale when an exception is delivered in between.
 */
#include "x86/decode/decode.h"
#include "x86/dbt/translate.h"

void native_flags(struct tinsn *t)
{
	const ZydisAccessedFlags *f = t->zi->cpu_flags;

	if (!f)
		return;
	t->reads = f->tested & FLAGS_ALL;
	t->writes = (f->modified | f->set_0 | f->set_1 | f->undefined) & FLAGS_ALL;
	if (t->writes && decode_may_keep_flags(t->zi, t->ops))
		t->reads = FLAGS_ALL;
}

void find_live_flags(struct trans *tr)
{
	u32 live = FLAGS_ALL;

	for (unsigned i = tr->nr; i-- > 0;) {
		struct tinsn *t = &tr->insns[i];

		t->live_after = live;
		t->needs = t->reads | (t->writes ? live & ~t->writes : 0);
		live = (live & ~t->writes) | t->reads;
		t->live_before = live;
	}
}

/* T0 is lost. */
void flags_save(struct emit *e)
{
	put_mov(e, T0, RAX);
	put8(e, 0x9f); /* lahf */
	put_rr(e, W4, OPC_0F | 0x90, 0, RAX); /* seto %al */
	put_rm(e, W4, OPC_66 | 0x89, RAX, SLOT(FRAME_FLAGS));
	put_mov(e, RAX, T0);
}

void flags_restore(struct emit *e)
{
	put_store(e, SLOT(FRAME_TMP0), RAX);
	put_rm(e, W4, OPC_0F | 0xb7, RAX, SLOT(FRAME_FLAGS)); /* movzwl */
	put8(e, 0x04);
	put8(e, 0x7f); /* add $0x7f, %al: overflows if it was 1 */
	put8(e, 0x9e); /* sahf */
	put_load(e, RAX, SLOT(FRAME_TMP0));
}

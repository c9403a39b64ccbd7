/* SPDX-License-Identifier: MIT */
/* What a cron job has printed so far. */
#ifndef KLD_STATE_H
#define KLD_STATE_H

struct state;

/* Waits until no other run uses the folder of @path, then reads it. */
struct state *state_open(const char *path);
/* The last commit that was printed, NULL when nothing was. */
const char *state_done(const struct state *s);
/* The end of a range whose printing began and may not have ended, or NULL. */
const char *state_pending(const struct state *s);
/* Before the first byte of the output. */
void state_begin(struct state *s, const char *to);
/* The output is complete on the disk and has not yet its name @path. */
void state_ready(struct state *s, const char *to, const char *path);
/* The name of the file that such a run was to publish, or NULL. */
const char *state_left(const struct state *s);
/* After the output is out. */
void state_end(struct state *s, const char *to);
void state_close(struct state *s);

#endif

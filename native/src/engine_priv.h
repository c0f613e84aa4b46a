/* SPDX-License-Identifier: BSD-3-Clause
 *
 * engine_priv.h: what the reactor side uses of engine.c.
 */
#pragma once

#include "pool.h"
#include "qpair.h"

struct reactor *engine_reactor(unsigned index);
unsigned engine_reactors(void);
void engine_post(void (*fn)(void *arg), void *arg); /* runs fn(arg) on the control thread */
const struct dp_events *engine_events(void);

/* ctrlr.c, control thread. Copies of a view for each reactor; acked when all have it and nobody uses what it lacks. */
struct ns_config {
	uint32_t nsid, anagrpid;
	uint8_t ana_state;
	bool write_protected;
	char *bdev_name;
	struct bdev *bdev;
	char *pool_name[POOL_USES]; /* NULL: host memory */
	struct pool *pool[POOL_USES]; /* NULL: it does not exist now */
	bool strict;
};

struct ctrlr {
	LIST_ENTRY(ctrlr) link;
	uint64_t key;
	uint32_t mdts_bytes, copy_formats, n;
	uint32_t owner; /* of bytes in pools: its host */
	struct ns_config *ns; /* by ascending nsid */
};

/* fan: one message for each reactor; done(arg) on the control thread when all of them are acknowledged. */
struct fan;
int ctrlr_push(const struct ctrlr *ctrlr, void (*done)(void *arg), void *arg); /* the view to all reactors; 0 or -ENOMEM */
int ctrlr_drop(uint64_t key, void (*done)(void *arg), void *arg);

/* engine.c */
void *engine_step_new(dp_done_fn done, void *arg);
void engine_step(void *arg); /* calls done(arg, 0) of engine_step_new */
struct ctrlr *engine_ctrlr(uint64_t key);
volatile uint64_t *engine_activity(uint32_t slot);

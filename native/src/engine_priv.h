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

/* engine_pool.c: somebody who has to know of each pool: there, from its creation on; not there any more, when nothing of it
 * is in use, just before its memory is given back. One at most; told of those that exist already. */
void engine_pools_tell(void (*changed)(struct pool *pool, bool there));

/* engine.c */
void *engine_step_new(dp_done_fn done, void *arg);
void engine_step(void *arg); /* calls done(arg, 0) of engine_step_new */
struct ctrlr *engine_ctrlr(uint64_t key);
struct bdev *engine_bdev(const char *name); /* NULL: none, or it is being deleted */
struct bdev *engine_first_bdev(void);       /* the rest by LIST_NEXT(link); also those that are being deleted */
/* Ties every namespace that names the pool to it (or to nothing). done: once for each controller; returns their number. */
unsigned engine_retie_pool(const char *name, struct pool *pool, dp_done_fn done, void *arg);

/* engine_pool.c */
int engine_pools_watch(void); /* before the first pool, also one of a bdev's own; 0 or -errno */
void engine_pools_stop(void);
bool engine_is_probed(const struct bdev *bdev); /* its medium is being written to by a calibration */
/* True: calibrations are running; they end early, and then over(arg, 0) comes. */
bool engine_calibrations_stop(dp_done_fn over, void *arg);

volatile uint64_t *engine_activity(uint32_t slot);

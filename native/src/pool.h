/* SPDX-License-Identifier: BSD-3-Clause
 *
 * pool.h: memory for payload that drives reach peer to peer: a drive's CMB (p2pmem) or, where there is none, an emulation of
 * one. Shared by all reactors. Host memory is no pool: it is each reactor's struct staging, and index 0 wherever pools are
 * counted.
 *
 * A buffer is a scatter list of whole granules, contiguous where a run is free. Its bytes are undefined, but never another
 * host's where pool_want.wipe asks for that. The memory can go away at any moment (hot unplug, reset): the CPU then finds
 * zeroes, never a signal; whoever used it asks pool_check before anything that depends on its bytes is told as success.
 */
#pragma once

#include <stdatomic.h>
#include <stdbool.h>
#include <stddef.h>
#include <stdint.h>
#include <sys/queue.h>
#include <sys/uio.h>

#include "engine.h"
#include "reactor.h"

#define POOLS_MAX 64u /* index 1 to 64 */
#define POOL_GRANULE 4096u
#define POOL_PIECES_MAX 32u
#define POOL_OWNER_NONE 0u /* of no host: our own data */

struct pool;

enum pool_use { POOL_READ, POOL_WRITE, POOL_COPY, POOL_USES };

/* One for each I/O queue (zeroed at first): what it holds of each pool, so that a small pool is shared fairly. Members are
 * pool.c's own, each under the lock of its pool. Every buffer has been put before it goes away. */
struct pool_user {
	struct {
		uint32_t granules, epoch;
	} of[POOLS_MAX + 1];
};

struct pool_want {
	uint32_t bytes; /* > 0 */
	uint32_t owner; /* whose data will lie in it: ctrlr.owner */
	/* Someone may read of it what was not written before (Read, Copy): what another owner left is wiped first. A Write,
	 * of which nothing is read before all bytes have arrived, does without. */
	bool wipe;
	struct pool_user *user; /* NULL: not accounted to a queue */
};

struct pool_buf {
	struct pool *pool;
	uint32_t bytes;    /* as asked for: the sum of iov_len */
	uint32_t n;        /* pieces, 1 to POOL_PIECES_MAX; each begins at a granule, all but the last are whole granules */
	uint32_t granules; /* what it takes of the pool */
	uint32_t owner;
	struct pool_user *user;
	struct pool_buf *next;
	struct iovec iov[POOL_PIECES_MAX];
};

struct pool_waiter {
	struct pool_want want;
	/* On the reactor that waits, exactly once unless pool_unwait said true. NULL: the pool was lost or is being removed:
	 * take host memory. */
	void (*granted)(struct reactor *r, struct pool_waiter *waiter, struct pool_buf *buf);

	/* pool.c's own */
	TAILQ_ENTRY(pool_waiter) link;
	struct pool *pool;
	struct reactor *reactor;
	struct pool_buf *buf;
	struct rmsg msg;
	bool queued;
};

/* -- any thread ---------------------------------------------------------------------------------------------------- */

/* NULL at once: exhausted, others wait already, more than the queue's fair share, lost or being removed. No allocation. */
struct pool_buf *pool_get(struct pool *pool, const struct pool_want *want);
void pool_put(struct pool_buf *buf);
/* A Write's bytes have all arrived: what lies in it is its owner's alone now (spares a later wipe; never required). */
void pool_filled(struct pool_buf *buf);

/* False: no buffer of that size can ever be had of it (too small, lost, being removed). */
bool pool_possible(const struct pool *pool, uint32_t bytes);

/* First come, first served. A pool that is lost (already or later) grants NULL. Waiting counts in pool statistics. */
void pool_wait(struct pool *pool, struct pool_waiter *waiter, struct reactor *r);
/* On the waiter's reactor. True: granted() does not come any more. False: it is on its way; the waiter must live until it
 * has come, and puts the buffer that it may get. */
bool pool_unwait(struct pool_waiter *waiter);

/* Reads the canary; a pool in which it is not found is lost. False: lost (now or before). About 1 us on a real CMB. */
bool pool_check(struct pool *pool);
/* Replaces its memory by zeroes that belong to nobody; waiters get NULL. Any number of times; what is in flight goes on in
 * that memory and comes to nothing. why: a string constant. */
void pool_lose(struct pool *pool, const char *why);
bool pool_is_lost(const struct pool *pool);

unsigned pool_index(const struct pool *pool); /* 1 to POOLS_MAX */
const char *pool_name(const struct pool *pool);

/* Of a byte in memory; NULL: none. O(log n), async-signal-safe. */
struct pool *pool_of(const void *addr);

/* An I/O went to host memory that should have gone here (counted). */
void pool_count_fallback(struct pool *pool);

/* -- control thread ------------------------------------------------------------------------------------------------ */

struct pool *pool_find(const char *name); /* live or lost, not one that is being removed */

/* A host's number, the same as long as somebody holds it. Never 0. */
uint32_t pool_owner_get(const char *hostnqn);
void pool_owner_put(uint32_t owner);

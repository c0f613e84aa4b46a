/* SPDX-License-Identifier: BSD-3-Clause
 *
 * pool_priv.h: the inside of a pool, for pool*.c, calibrate.c, bdev_cmb.c, the engine and tests.
 */
#pragma once

#include <pthread.h>

#include "pool.h"
#include "pool_space.h"

TAILQ_HEAD(pool_waiters, pool_waiter);

/* FREE -> LIVE -> CLOSING -> FREE. Lost is apart from that: memory may go away at any time. */
enum pool_state { POOL_FREE, POOL_LIVE, POOL_CLOSING };
enum pool_loss { POOL_THERE, POOL_GOING, POOL_LOST };

struct pool {
	/* written on the control thread before anybody knows the pool */
	char name[DP_NAME_MAX + 1]; /* stays after its end */
	unsigned index;
	enum dp_pool_kind kind;
	uint8_t *base;
	size_t bytes;
	uint32_t granules; /* without the canary's */
	int fd;            /* of an emulated one's memory, else -1 */
	struct pool_device *device; /* of DP_POOL_SPDK_CMB */
	uint64_t nonce;
	bool wipe_always;
	bool hidden;  /* a bdev's own: pool_find does not know it */
	bool renamed; /* the slot was another pool's before */
	uint64_t born; /* of creations */

	_Atomic unsigned loss; /* enum pool_loss */
	_Atomic(const char *) why;
	bool told; /* control thread: dp_events.pool_lost was called */
	bool calibrating; /* control thread */
	_Atomic unsigned state; /* enum pool_state; written under lock */
	_Atomic uint64_t fallbacks, wiped_bytes, waits;

	/* Protects what follows. Held for a few hundred instructions, never while the memory itself is touched. */
	pthread_mutex_t lock __attribute__((aligned(64)));
	struct space space; /* granule i of it lies at base + (i + 1) * POOL_GRANULE */
	struct pool_buf *bufs, *free_bufs;
	uint32_t max_bufs, fresh; /* bufs[fresh] and later were never used */
	uint32_t in_use;          /* buffers */
	struct pool_waiters waiters;
	uint32_t waiting;
	/* Who has asked of late: the pool's memory is handed out EPOCH_TURNS times over in an epoch. */
	uint32_t epoch, asked_now, asked_before;
	uint64_t granted;
	void (*idle)(void *arg); /* closing: when the last buffer has come back; any thread */
	void *idle_arg;

	/* Whose data lies in a granule. An entry belongs to who holds the granule, or to the lock. */
	uint32_t *tags;
};

/* -- control thread */

/* NULL with *rc and err. The signal handler for lost memory is installed with the first pool. */
struct pool *pool_open(const struct dp_pool_config *config, bool hidden, int *rc, char err[DP_ERR_MAX]);
/* Nothing is given any more, waiters get NULL; idle(arg), on any thread, maybe at once, when nothing is in use. */
void pool_close(struct pool *pool, void (*idle)(void *arg), void *arg);
void pool_destroy(struct pool *pool); /* closed and idle */
struct pool *pool_at(unsigned index); /* any state; NULL: no such index */

/* A thread that calls lost(), on itself, after pools were lost; at most one. Before the first pool, after the last. */
int pool_watch_start(void (*lost)(void));
void pool_watch_stop(void);

/* -- any thread */

/* As pool_of, and how many comparisons of addresses it took. */
struct pool *pool_of_counted(const void *addr, unsigned *comparisons);
/* To and from pool memory, as wide as the CPU can at any alignment of a granule; length a multiple of 16. */
void pool_copy(void *to, const void *from, size_t length);
void pool_zero(void *to, size_t length);

#ifdef DP_TEST_HOOKS
extern bool pool_test_no_wipe; /* also by the environment: NVMET_P2P_TEST_NO_WIPE=1 when a pool is opened */
#endif

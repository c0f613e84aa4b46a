/* SPDX-License-Identifier: BSD-3-Clause
 *
 * staging.h: a reactor's bounded pool of host memory for payload on its way. A buddy allocator over one mapping, so a
 * buffer is contiguous and page aligned (O_DIRECT). Used by its reactor's thread alone.
 *
 * What a buffer holds when it is handed out is undefined: data of another host. Whoever sends from one must have
 * overwritten all that is sent (request.filled says how much; qpair_tx asserts it).
 */
#pragma once

#include <stdbool.h>
#include <stddef.h>
#include <stdint.h>
#include <sys/queue.h>

#define STAGING_UNIT 4096u
#define STAGING_ORDERS 16

struct staging_waiter {
	TAILQ_ENTRY(staging_waiter) link;
	uint32_t bytes;
	bool waiting;
	void (*granted)(struct staging_waiter *waiter, void *buf); /* not called from inside staging_alloc */
};

TAILQ_HEAD(staging_waiters, staging_waiter);

struct staging_free {
	struct staging_free *next, *prev;
};

struct staging {
	uint8_t *base;
	size_t units;
	uint8_t *order; /* a unit: order of the block that begins there | STAGING_IS_FREE; 0xFF inside a block */
	struct staging_free heads[STAGING_ORDERS];
	unsigned max_order;
	size_t free_bytes;
	uint64_t waits;
	struct staging_waiters waiters;
	bool granting;
	bool huge;
	bool poison; /* tests: fill what is handed out with PA5h */
};

int staging_init(struct staging *pool, size_t bytes, bool hugepages); /* 0 or -errno */
void staging_fini(struct staging *pool);

/* NULL: none is free, or others wait already. Rounded up to a power of two of units. */
void *staging_alloc(struct staging *pool, uint32_t bytes);
void staging_free(struct staging *pool, void *buf);

/* First come, first served; granted() is called from a later staging_free. */
void staging_wait(struct staging *pool, struct staging_waiter *waiter);
void staging_unwait(struct staging *pool, struct staging_waiter *waiter);

/* False: no buffer of that size can ever be had. */
bool staging_possible(const struct staging *pool, uint32_t bytes);
size_t staging_size(uint32_t bytes); /* what a buffer of that many bytes takes */

/* SPDX-License-Identifier: BSD-3-Clause
 *
 * pool_rig.h: emulated pools and two reactors without a thread, for tests of pools.
 */
#pragma once

#include <errno.h>
#include <fcntl.h>
#include <pthread.h>
#include <setjmp.h>
#include <signal.h>
#include <stdarg.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/mman.h>
#include <sys/socket.h>
#include <sys/wait.h>
#include <unistd.h>

#include <cmocka.h>

#include "common.h"
#include "pool_priv.h"

#define G POOL_GRANULE

/* -- help */

static uint64_t random_state;

static inline uint32_t rnd(uint32_t below)
{
	random_state = random_state * 6364136223846793005u + 1442695040888963407u;
	return (uint32_t)((random_state >> 33) % below);
}

static struct reactor reactors[2];

static int setup(void **state)
{
	memset(reactors, 0, sizeof(reactors));
	for (unsigned i = 0; i < 2; i++) {
		reactors[i].id = i;
		reactors[i].efd = -1;
	}
	pool_test_no_wipe = false;
	random_state = 1;
	return 0;
}

static inline struct pool *open_pool(const char *name, uint32_t granules)
{
	struct dp_pool_config config = {
		.name = name, .kind = DP_POOL_EMULATED, .bytes = (granules + 1ull) * G
	};
	char err[DP_ERR_MAX];
	int rc;
	struct pool *pool = pool_open(&config, false, &rc, err);

	if (!pool)
		fail_msg("%s", err);
	assert_int_equal(pool->granules, granules);
	return pool;
}

static void count_call(void *arg)
{
	++*(unsigned *)arg;
}

static inline void close_pool(struct pool *pool)
{
	unsigned idle = 0;

	pool_close(pool, count_call, &idle);
	assert_int_equal(idle, 1);
	assert_true(space_sound(&pool->space));
	assert_int_equal(space_largest(&pool->space) > pool->granules * 7ull / 8, 1);
	pool_destroy(pool);
}

static inline struct pool_buf *get(struct pool *pool, uint32_t granules, struct pool_user *user)
{
	return pool_get(pool, &(struct pool_want){ .bytes = granules * G, .user = user });
}

struct wait {
	struct pool_waiter waiter;
	struct pool_buf *buf;
	unsigned calls, order;
	struct reactor *r;
};

static unsigned calls;

static void on_granted(struct reactor *r, struct pool_waiter *waiter, struct pool_buf *buf)
{
	struct wait *wait = dp_container_of(waiter, struct wait, waiter);

	wait->buf = buf;
	wait->calls++;
	wait->order = ++calls;
	wait->r = r;
}

static inline void wait_for(struct pool *pool, struct wait *wait, uint32_t granules, struct reactor *r)
{
	memset(wait, 0, sizeof(*wait));
	wait->waiter.want = (struct pool_want){ .bytes = granules * G, .owner = 7, .wipe = true };
	wait->waiter.granted = on_granted;
	pool_wait(pool, &wait->waiter, r);
}

static inline void run_inboxes(void)
{
	for (unsigned i = 0; i < 2; i++)
		reactor_run_inbox(&reactors[i]);
}

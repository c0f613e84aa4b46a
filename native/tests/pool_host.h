/* SPDX-License-Identifier: BSD-3-Clause
 *
 * pool_host.h: what tests of payload in a pool do with the pool: look, take its memory, take it away.
 */
#pragma once

#include <errno.h>
#include <unistd.h>

#include "pool_priv.h"
#include "pool_registry.h"
#include "queue_host.h"

#define G POOL_GRANULE
#define STAGED (rig.bdevs[3]->r[0].staging)

static const struct rig_options pooled __attribute__((unused)) = { .flow_control = true, .peer_bytes = 65 * G };
static const struct rig_options small __attribute__((unused)) = { .flow_control = true, .peer_bytes = 9 * G };
static const struct rig_options strictly __attribute__((unused)) = { .flow_control = true, .peer_bytes = 9 * G, .strict = true };
static const struct rig_options success __attribute__((unused)) = { .c2h_success = true, .peer_bytes = 65 * G };
static const struct rig_options digests __attribute__((unused)) = { .hdgst = true, .ddgst = true, .flow_control = true, .hpda = 7, .cpda = 3, .peer_bytes = 65 * G };

static struct dp_staging staging;

static inline const struct dp_staging *sums(unsigned nsid)
{
	bdev_staging_sum(rig.bdevs[nsid - 1], &staging);
	return &staging;
}

static inline uint64_t in_pool(unsigned nsid, enum pool_use use)
{
	return sums(nsid)->pool[pool_index(rig.pool)].bytes[use];
}

static inline void expect_data(uint16_t cid, const uint8_t *bytes, uint32_t len)
{
	const uint8_t *p = next_pdu(PDU_C2H_DATA);

	assert_int_equal(get16(p + 8), cid);
	assert_int_equal(get32(p + 16), len);
	assert_memory_equal(p + p[3], bytes, len);
}

/* -- memory of the pool that somebody else has */

static struct pool_buf *hogged[256];
static unsigned hogs;

static inline void hog(uint32_t granules)
{
	struct pool_want want = { .bytes = granules * G, .owner = 99 };

	hogged[hogs] = pool_get(rig.pool, &want);
	assert_non_null(hogged[hogs]);
	for (unsigned i = 0; i < hogged[hogs]->n; i++)
		memset(hogged[hogs]->iov[i].iov_base, 0xA5, hogged[hogs]->iov[i].iov_len);
	hogs++;
}

static inline void unhog(void)
{
	while (hogs)
		pool_put(hogged[--hogs]);
	rig_turn();
}

static inline int give_back(void **state)
{
	unhog();
	return teardown(state);
}

/* Only single granules are free, and somebody's bytes lie in them. */
static inline void fragment(void)
{
	unsigned keep = 0;

	while (rig.pool->space.free)
		hog(1);
	for (unsigned i = 0; i < hogs; i++)
		if (hogged[i]->iov[0].iov_base && ((uintptr_t)hogged[i]->iov[0].iov_base - (uintptr_t)rig.pool->base) / G & 1)
			pool_put(hogged[i]);
		else
			hogged[keep++] = hogged[i];
	hogs = keep;
}

/* The device behind it is reset, or pulled out: what the emulation of one can do. */
static inline void reset_memory(void)
{
	memset(rig.pool->base, 0, rig.pool->bytes);
}

static inline void take_memory_away(void)
{
	assert_int_equal(pool_catch_sigbus(), 0); /* cmocka has put its own handler in the place of ours */
	assert_int_equal(ftruncate(rig.pool->fd, 0), 0);
}

static inline void lose(void)
{
	pool_lose(rig.pool, "the test wants it so");
}

#define WITH(f, options) cmocka_unit_test_prestate_setup_teardown(f, setup, give_back, (void *)(uintptr_t)&options)
#define P(f) WITH(f, pooled)

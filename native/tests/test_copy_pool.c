/* SPDX-License-Identifier: BSD-3-Clause
 *
 * test_copy_pool.c: Copy by way of a pool, and whose bytes come out of one.
 */
#include "pool_host.h"

/* -- whose bytes */

static void secret(uint16_t cid)
{
	memset(data, 0x5E, 32768);
	command(OPC_WRITE, cid, 4, 0, 63, 0);
	answer_r2t(true);
	assert_int_equal(next_status(cid), 0);
	memset(data, 0x5E, 32768);
	memset(rig_medium(5), 0, 32768);
}

/* A drive that says it has read and has moved nothing. */
static bool other_host_sees_it(uint16_t cid)
{
	const uint8_t *p;
	bool seen;

	rig.owner = 2;
	rig_view(0x1F, 1);
	bdev_error_inject(rig.bdevs[4], "read", "not_transferred", 1, 0, 0);
	command(OPC_READ, cid, 5, 0, 63, 0);
	p = next_pdu(PDU_C2H_DATA);
	seen = memchr(p + p[3], 0x5E, 32768) != NULL;
	assert_int_equal(next_status(cid), 0);
	return seen;
}

static void test_other_host_sees_nothing(void **state)
{
	secret(1);
	assert_false(other_host_sees_it(2));
	/* nor what another's Read has left there */
	rig.owner = 1;
	rig_view(0x1F, 1);
	command(OPC_READ, 3, 4, 0, 63, 0);
	expect_data(3, data, 32768);
	assert_int_equal(next_status(3), 0);
	assert_false(other_host_sees_it(4));
	assert_int_equal(in_pool(5, POOL_READ), 65536);
}

#ifdef DP_TEST_HOOKS
/* The test above is worth something. */
static void test_without_wiping_it_would(void **state)
{
	secret(1);
	pool_test_no_wipe = true;
	assert_true(other_host_sees_it(2));
	pool_test_no_wipe = false;
}
#endif

/* Nor by Copy: to a place that it can read. */
static void copy(uint16_t cid, uint32_t nsid, uint64_t sdlba, uint32_t n, const uint32_t sources[][3], bool fua)
{
	uint8_t sqe[64];

	memset(data, 0, n * 32);
	for (uint32_t i = 0; i < n; i++) {
		put32(data + i * 32, sources[i][0]);
		put32(data + i * 32 + 8, sources[i][1]);
		put16(data + i * 32 + 16, (uint16_t)sources[i][2]);
	}
	rig_sqe(sqe, OPC_COPY, cid, nsid, sdlba, 0, n * 32, 0x01);
	put32(sqe + 48, (n - 1) | 2u << 8 | (fua ? 1u << 30 : 0));
	rig_feed(pdu, rig_capsule(pdu, sqe, data, n * 32));
}

static void test_copy_shows_nothing(void **state)
{
	secret(1);
	rig.owner = 2;
	rig_view(0x1F, 1);
	memset(rig_medium(4), 0, 32768);
	bdev_error_inject(rig.bdevs[4], "read", "not_transferred", 9, 0, 0);
	copy(2, 4, 0, 1, (const uint32_t[][3]){ { 5, 0, 63 } }, false);
	assert_int_equal(next_status(2), 0);
	assert_null(memchr(rig_medium(4), 0x5E, 32768));
	assert_int_equal(in_pool(4, POOL_COPY), 32768);
}

/* -- Copy */

static void test_copy(void **state)
{
	const uint32_t sources[][3] = { { 5, 8, 999 }, { 4, 2048, 3 }, { 5, 1500, 0 } };
	uint8_t *to = rig_medium(4), *from = rig_medium(5);

	pattern(14);
	for (uint32_t i = 0; i < RIG_BLOCKS * 512; i++)
		from[i] = (uint8_t)(i * 7 + (i >> 10));
	memcpy(to + 2048 * 512, data, 4 * 512);
	copy(1, 4, 100, 3, sources, true);
	assert_int_equal(next_status(1), 0);
	assert_memory_equal(to + 100 * 512, from + 8 * 512, 1000 * 512);
	pattern(14);
	assert_memory_equal(to + 1100 * 512, data, 4 * 512);
	assert_memory_equal(to + 1104 * 512, from + 1500 * 512, 512);
	assert_int_equal(in_pool(4, POOL_COPY), 1005 * 512);
	assert_int_equal(staging.copy_bytes[DP_COPY_POOL], 1005 * 512);
	assert_int_equal(staging.copy_bytes[DP_COPY_HOST] + staging.pool[0].bytes[POOL_COPY], 0);
	assert_int_equal(rig.pool->in_use, 0);
}

/* One piece is written while the next is read. */
static void test_copy_is_pipelined(void **state)
{
	rig.hold = true;
	copy(1, 4, 0, 1, (const uint32_t[][3]){ { 5, 0, 999 } }, false);
	assert_int_equal(rig.n_held, 2);
	rig_drive(0); /* the first piece is read, and being written */
	assert_int_equal(rig.n_held, 2);
	assert_int_equal(TAILQ_FIRST(&rig.held)->op, BDEV_READ);
	assert_int_equal(TAILQ_NEXT(TAILQ_FIRST(&rig.held), link)->op, BDEV_WRITE);
	while (rig.n_held)
		rig_drive(0);
	rig_turn();
	assert_int_equal(next_status(1), 0);
	/* the same by way of host memory */
	lose();
	copy(1, 4, 0, 1, (const uint32_t[][3]){ { 5, 0, 999 } }, false);
	assert_int_equal(rig.n_held, 2);
	while (rig.n_held)
		rig_drive(0);
	rig_turn();
	assert_int_equal(next_status(1), 0);
	assert_int_equal(sums(4)->copy_bytes[DP_COPY_HOST], 512000);
	assert_int_equal(staging.fallbacks, 1);
}

static void copy_losing(void (*what)(void), unsigned when, int rc)
{
	uint8_t *to = rig_medium(4), *from = rig_medium(5);

	for (uint32_t i = 0; i < 512000; i++)
		from[i] = (uint8_t)(i * 11 + (i >> 9));
	rig.hold = true;
	copy(1, 4, 0, 1, (const uint32_t[][3]){ { 5, 0, 999 } }, false);
	for (unsigned i = 0; rig.n_held; i++) {
		if (i == when) {
			what();
			rig_drive(rc);
		} else {
			rig_drive(0);
		}
	}
	rig_turn();
	assert_int_equal(next_status(1), 0);
	assert_memory_equal(to, from, 512000);
	assert_int_equal(sums(4)->interrupted, 0);
	assert_true(staging.fallbacks > 0);
	assert_int_equal(in_pool(4, POOL_COPY) + staging.pool[0].bytes[POOL_COPY], 512000);
	rig.hold = false;
}

/* Whatever is lost when, a Copy has its sources and goes on in host memory. */
static void test_copy_loses_pool(void **state)
{
	static const struct {
		void (*what)(void);
		int rc;
	} ways[] = { { lose, 0 }, { reset_memory, 0 }, { take_memory_away, -EFAULT }, { take_memory_away, -EIO } };

	for (unsigned way = 0; way < DP_ARRAY_LEN(ways); way++)
		for (unsigned when = 0; when < 8; when++) {
			copy_losing(ways[way].what, when, ways[way].rc);
			rig_close();
			rig_open(&pooled);
		}
}

static void test_copy_fails(void **state)
{
	const uint32_t sources[][3] = { { 5, 0, 99 }, { 5, 200, 299 }, { 5, 600, 9 } };
	const uint8_t *p;

	rig.hold = true;
	copy(1, 4, 0, 3, sources, false);
	rig_drive(0); /* the first range is read */
	rig_drive(-EIO); /* the second is not */
	while (rig.n_held)
		rig_drive(0);
	rig_turn();
	p = next_pdu(PDU_CAPSULE_RESP);
	assert_int_equal(get16(p + 22) >> 1, ST_READ_ERROR);
	assert_int_equal(get32(p + 8), 1);
	copy(2, 4, 0, 3, sources, false);
	rig_drive(0);
	rig_drive(0);
	rig_drive(-EIO); /* writing the first */
	while (rig.n_held)
		rig_drive(-EIO);
	rig_turn();
	p = next_pdu(PDU_CAPSULE_RESP);
	assert_int_equal(get16(p + 22) >> 1, ST_WRITE_FAULT);
	assert_int_equal(get32(p + 8), 0);
	assert_false(pool_is_lost(rig.pool));
}

/* Of the destination's pool and the source's, one that both drives may use. */
static void test_copy_chooses(void **state)
{
	atomic_store(&rig.bdevs[6]->pools_allowed, 0);
	copy(1, 4, 0, 1, (const uint32_t[][3]){ { 5, 0, 63 } }, false);
	assert_int_equal(next_status(1), 0);
	assert_int_equal(sums(4)->copy_bytes[DP_COPY_HOST], 32768);
	assert_int_equal(staging.fallbacks, 1);
	copy(2, 3, 0, 1, (const uint32_t[][3]){ { 3, 64, 63 } }, false); /* no pool is named */
	assert_int_equal(next_status(2), 0);
	assert_int_equal(sums(3)->fallbacks, 0);
	atomic_store(&rig.bdevs[6]->pools_allowed, atomic_load(&rig.bdevs[3]->pools_allowed));
	view_find(rig.q->c->view, 4)->pool[POOL_COPY] = NULL;
	copy(3, 4, 0, 1, (const uint32_t[][3]){ { 5, 0, 63 } }, false); /* the source's */
	assert_int_equal(next_status(3), 0);
	assert_int_equal(sums(4)->copy_bytes[DP_COPY_POOL], 32768);
}

static void test_copy_waits(void **state)
{
	hog(8);
	copy(1, 4, 0, 1, (const uint32_t[][3]){ { 5, 0, 63 } }, false);
	copy(2, 4, 64, 1, (const uint32_t[][3]){ { 5, 0, 63 } }, false);
	assert_int_equal(rig.out_len, 0);
	assert_true(io_cancel(io_find(rig.q, 2), ST_ABORT_REQUESTED));
	rig_turn();
	assert_int_equal(next_status(2), ST_ABORT_REQUESTED);
	unhog();
	assert_int_equal(next_status(1), 0);
	assert_int_equal(sums(4)->copy_bytes[DP_COPY_POOL], 32768);
	hog(8);
	copy(3, 4, 0, 1, (const uint32_t[][3]){ { 5, 0, 63 } }, false);
	lose();
	rig_turn();
	assert_int_equal(next_status(3), 0);
	assert_int_equal(sums(4)->copy_bytes[DP_COPY_HOST], 32768);
	unhog();
}

static void test_copy_in_one_piece_at_a_time(void **state)
{
	for (uint32_t i = 0; i < 512000; i++)
		rig_medium(5)[i] = (uint8_t)(i * 13 + (i >> 9));
	hog(33); /* of 64: one piece of 31 is left */
	copy(1, 4, 0, 1, (const uint32_t[][3]){ { 5, 0, 999 } }, false);
	assert_int_equal(next_status(1), 0);
	assert_memory_equal(rig_medium(4), rig_medium(5), 512000);
	assert_int_equal(in_pool(4, POOL_COPY), 512000);
	unhog();
}

static void test_copy_overlapping(void **state)
{
	uint8_t sqe[64];

	pattern(15);
	memcpy(rig_medium(4), data, 65536);
	uint8_t expected[32768];
	memcpy(expected, data, 32768);
	memset(data, 0, 32);
	put16(data + 16, 63);
	rig_sqe(sqe, OPC_COPY, 1, 4, 1, 0, 32, 0x01);
	put32(sqe + 48, 0);
	rig_feed(pdu, rig_capsule(pdu, sqe, data, 32));
	assert_int_equal(next_status(1), 0);
	assert_memory_equal(rig_medium(4) + 512, expected, 32768);
	assert_int_equal(sums(4)->copy_bytes[DP_COPY_HOST], 32768);
}

int main(void)
{
	const struct CMUnitTest tests[] = {
		P(test_other_host_sees_nothing),
#ifdef DP_TEST_HOOKS
		P(test_without_wiping_it_would),
#endif
		P(test_copy_shows_nothing), P(test_copy), P(test_copy_is_pipelined), P(test_copy_loses_pool),
		P(test_copy_fails), P(test_copy_chooses), WITH(test_copy_waits, strictly),
		P(test_copy_in_one_piece_at_a_time), P(test_copy_overlapping),
	};

	return cmocka_run_group_tests(tests, NULL, NULL);
}

/* SPDX-License-Identifier: BSD-3-Clause
 *
 * NVMe/RDMA whose payload rests in the memory of a drive on vfio-pci: the device reads and writes it by itself, through a
 * region of its dma-buf, and host memory is used where there is none.
 */
#include <errno.h>
#include <setjmp.h>
#include <stdarg.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <time.h>

#include <cmocka.h>

#include "engine_priv.h"
#include "fake_disk.h"
#include "fake_drive.h"
#include "fake_verbs.h"
#include "io.h"
#include "log.h"
#include "loop.h"
#include "pool_priv.h"
#include "rdma.h"

#define KEY 7u
#define BDEV "Nvme0n1"

static struct {
	unsigned connected, capsules, adopted, dones, queue_closed, pool_lost;
	struct dp_rdma_connected last;
	int rc;
} seen;
static char err[DP_ERR_MAX];

static void on_connected(const struct dp_rdma_connected *connected)
{
	seen.last = *connected;
	seen.connected++;
}

static void on_capsule(uint64_t conn, const uint8_t sqe[64], const void *icd, uint32_t icd_len)
{
	seen.capsules++;
}

static void on_data(uint64_t conn, uint16_t cid, int rc, const void *data, uint32_t len)
{
}

static void on_closed(uint64_t conn, const char *reason)
{
}

static void on_queue_closed(struct dp_queue_key key, const char *reason)
{
	seen.queue_closed++;
}

static void on_pool_lost(const char *name, const char *why)
{
	seen.pool_lost++;
}

static void on_adopted(uint64_t token, int rc, const char *text)
{
	seen.rc = rc;
	seen.adopted++;
}

static void done(void *arg, int rc)
{
	seen.dones++;
}

static const struct dp_rdma_events rdma_events = { on_connected, on_capsule, on_data, on_closed };
static const struct dp_events events = { .queue_closed = on_queue_closed, .pool_lost = on_pool_lost };

static uint64_t now_s(void)
{
	struct timespec ts;

	clock_gettime(CLOCK_MONOTONIC, &ts);
	return (uint64_t)ts.tv_sec;
}

#define AWAIT(condition)                                                                                               \
	do {                                                                                                           \
		uint64_t until = now_s() + 20;                                                                         \
		while (!(condition)) {                                                                                 \
			loop_step(1);                                                                                  \
			if (now_s() > until)                                                                           \
				fail_msg("waited in vain for " #condition);                                            \
		}                                                                                                      \
	} while (0)

static void set_view(bool strict)
{
	struct dp_ns_view ns = { .nsid = 1, .bdev = BDEV, .anagrpid = 1, .ana_state = 1, .strict = strict,
				 .read_pool = FAKE_BDF, .write_pool = FAKE_BDF, .copy_pool = FAKE_BDF };
	struct dp_ctrlr_view view = { .key = KEY, .mdts_bytes = 512 << 10, .num_ns = 1, .ns = &ns, .host = "h" };
	unsigned before = seen.dones;

	assert_int_equal(dp_ctrlr_set(&view, done, NULL), 0);
	AWAIT(seen.dones == before + 1);
}

static int start(void **state)
{
	struct dp_options engine = { .cpumask = "0x1", .spin_us = 5, .pool_bytes = 8u << 20, .post = loop_post, .events = &events };
	struct dp_bdev_config bdev = { .kind = DP_BDEV_SPDK, .name = BDEV, .ctrlr = "Nvme0", .nsid = 1 };
	struct dp_pool_config pool = { .name = FAKE_BDF, .kind = DP_POOL_SPDK_CMB };
	struct dp_rdma_listen listen = { .traddr = "10.0.0.1", .trsvcid = "4420", .adrfam = "IPv4", .max_queue_depth = 32,
					 .max_aq_depth = 32, .in_capsule_data_size = 4096, .backlog = 10 };
	struct dp_bdev_facts facts;
	struct dp_pool_facts mapped;

	log_configure("off", "console");
	memset(&seen, 0, sizeof(seen));
	fake_verbs_reset();
	fake_reset();
	fake.bdev_open = fake_disk_open;
	fake.dmabuf = fv.dmabuf = true;
	if (*state)
		fv.dmabuf = false;
	assert_int_equal(loop_open(), 0);
	if (dp_start(&engine, err) < 0)
		fail_msg("%s", err);
	assert_int_equal(dp_bdev_create(&bdev, &facts, err), 0);
	assert_int_equal(dp_pool_create(&pool, &mapped, err), 0);
	assert_int_equal(dp_pool_allow(FAKE_BDF, BDEV, true, err), 0);
	set_view(false);
	dp_rdma_init(&rdma_events);
	assert_int_equal(dp_rdma_listen(&listen, err), 0);
	for (size_t i = 0; i < HOST_BYTES; i++)
		fv.host[i] = (uint8_t)(i * 7 + (i >> 8));
	return 0;
}

static int stop(void **state)
{
	unsigned before = seen.dones;
	struct pool *pool = pool_find(FAKE_BDF);

	fv.hold = false;
	fake_carry_out(UINT32_MAX);
	dp_rdma_reset();
	dp_ctrlr_remove(KEY, done, NULL);
	AWAIT(seen.dones == before + 1);
	if (pool)
		assert_int_equal(pool->in_use, 0);
	dp_stop(done, NULL);
	AWAIT(seen.dones == before + 2);
	loop_close();
	dp_rdma_fini();
	assert_int_equal(fv.live, 0); /* nothing of verbs is left */
	assert_int_equal(fake.open, 0);
	return 0;
}

/* -- a host */

static void make_sqe(uint8_t *sqe, uint8_t opc, uint16_t cid, uint32_t bytes, uint64_t at)
{
	uint64_t address = htole64(HOST_ADDRESS + at);

	memset(sqe, 0, 64);
	sqe[0] = opc;
	sqe[1] = 0x40;
	put16(sqe + 2, cid);
	put32(sqe + 4, 1);
	memcpy(sqe + 24, &address, 8);
	put32(sqe + 32, bytes);
	put32(sqe + 35, HOST_KEY);
	sqe[39] = 0x40;
}

static void io(struct fake_peer *peer, uint8_t opc, uint16_t cid, uint64_t slba, uint32_t bytes, uint64_t at)
{
	uint8_t sqe[64];

	make_sqe(sqe, opc, cid, bytes, at);
	put32(sqe + 40, (uint32_t)slba);
	put32(sqe + 48, bytes / FAKE_DISK_BLOCK - 1);
	assert_true(fake_capsule(peer, sqe, sizeof(sqe)));
}

static uint16_t status_of(struct fake_peer *peer, uint16_t cid)
{
	struct fake_capsule capsule;

	AWAIT(fake_inbox(peer));
	capsule = fake_take(peer);
	assert_int_equal(get16(capsule.cqe + 12), cid);
	return get16(capsule.cqe + 14) >> 1;
}

static struct fake_peer *queue(uint16_t qid)
{
	struct dp_queue config = { .key = { KEY, qid }, .sqsize = 15, .sq_flow_control = true, .icd_max = 4096, .peer = "p" };
	uint8_t data[56] = { 0 }, sqe[64 + 1024] = { 0 }, cqe[16] = { 0 };
	struct fake_peer *peer;

	put16(data + 2, qid);
	put16(data + 4, 16);
	put16(data + 6, 15);
	peer = fake_connect(data, sizeof(data), 4);
	AWAIT(seen.connected == qid && peer->accepted);
	make_sqe(sqe, OPC_FABRICS, 1, 1024, 0);
	sqe[39] = 0x01;
	memset(sqe + 24, 0, 8);
	assert_true(fake_capsule(peer, sqe, sizeof(sqe)));
	AWAIT(seen.capsules == qid);
	put16(cqe + 12, 1);
	dp_rdma_adopt(seen.last.conn, &config, cqe, 5, on_adopted);
	AWAIT(seen.adopted == qid);
	assert_int_equal(seen.rc, 0);
	assert_int_equal(status_of(peer, 1), 0);
	return peer;
}

static struct dp_staging staged(void)
{
	static struct dp_staging staging;

	assert_int_equal(dp_bdev_staging(BDEV, &staging), 0);
	return staging;
}

static unsigned index_of(void)
{
	return pool_index(pool_find(FAKE_BDF));
}

/* -- */

static void payload_goes_from_device_to_device(void **state)
{
	struct fake_peer *peer = queue(1);
	struct dp_staging staging;
	json_t *rows = dp_rdma_pool(FAKE_BDF);

	assert_true(json_is_true(json_object_get(json_array_get(rows, 0), "registered")));
	json_decref(rows);
	io(peer, OPC_WRITE, 2, 64, 256 << 10, 1000);
	assert_int_equal(status_of(peer, 2), 0);
	assert_memory_equal(fake_disk->bytes + 64 * FAKE_DISK_BLOCK, fv.host + 1000, 256 << 10);
	memset(fv.host, 0, HOST_BYTES);
	io(peer, OPC_READ, 3, 64, 256 << 10, 8);
	assert_int_equal(status_of(peer, 3), 0);
	assert_memory_equal(fv.host + 8, fake_disk->bytes + 64 * FAKE_DISK_BLOCK, 256 << 10);
	staging = staged();
	assert_int_equal(staging.pool[index_of()].bytes[POOL_READ], 256 << 10);
	assert_int_equal(staging.pool[index_of()].bytes[POOL_WRITE], 256 << 10);
	assert_int_equal(staging.pool[0].bytes[POOL_READ] + staging.pool[0].bytes[POOL_WRITE] + staging.fallbacks, 0);
	assert_int_equal(pool_find(FAKE_BDF)->in_use, 0);
}

/* The pool is in pieces: each is a work request of its own. */
static void scatter_lists(void **state)
{
	struct pool *pool = pool_find(FAKE_BDF);
	static struct pool_buf *bufs[4096];
	struct fake_peer *peer = queue(1);
	unsigned n = 0;

	while ((bufs[n] = pool_get(pool, &(struct pool_want){ .bytes = POOL_GRANULE })))
		n++;
	for (unsigned i = 0; i < 64; i += 2) /* every other granule is free: 32 pieces, no more */
		pool_put(bufs[i]);
	io(peer, OPC_WRITE, 2, 0, 64 << 10, 512);
	assert_int_equal(status_of(peer, 2), 0);
	assert_int_equal(peer->reads, 16);
	assert_memory_equal(fake_disk->bytes, fv.host + 512, 64 << 10);
	io(peer, OPC_READ, 3, 0, 64 << 10, 128 << 10);
	assert_int_equal(status_of(peer, 3), 0);
	assert_int_equal(peer->writes, 16);
	assert_memory_equal(fv.host + (128 << 10), fake_disk->bytes, 64 << 10);
	assert_int_equal(staged().fallbacks, 0);
	for (unsigned i = 0; i < n; i++)
		if (i >= 64 || i % 2)
			pool_put(bufs[i]);
}

/* Its driver makes no region: host memory, also for strict, counted. */
static void a_device_that_takes_no_dmabuf(void **state)
{
	struct fake_peer *peer = queue(1);
	json_t *rows = dp_rdma_pool(FAKE_BDF), *row = json_array_get(rows, 0);

	assert_false(json_is_true(json_object_get(row, "registered")));
	assert_non_null(strstr(json_string_value(json_object_get(row, "reason")), "not supported"));
	json_decref(rows);
	set_view(true);
	io(peer, OPC_WRITE, 2, 0, 4096, 512);
	assert_int_equal(status_of(peer, 2), 0);
	io(peer, OPC_READ, 3, 0, 4096, 8192);
	assert_int_equal(status_of(peer, 3), 0);
	assert_memory_equal(fv.host + 8192, fv.host + 512, 4096);
	assert_int_equal(staged().fallbacks, 2);
	assert_int_equal(staged().pool[index_of()].bytes[POOL_WRITE], 0);
}

/* The response of a Read waits for its data, and for the pool being alive then. */
static void lost_while_a_read_s_data_leaves(void **state)
{
	struct fake_peer *peer = queue(1);

	fv.hold = true;
	io(peer, OPC_READ, 2, 0, 8192, 0);
	AWAIT(fake_held() == 1);
	pool_lose(pool_find(FAKE_BDF), "test");
	fv.hold = false;
	fake_carry_out(UINT32_MAX);
	assert_int_equal(status_of(peer, 2), ST_INTERRUPTED & 0x7FFF);
	io(peer, OPC_READ, 3, 0, 8192, 0); /* the host's second try */
	assert_int_equal(status_of(peer, 3), 0);
	assert_memory_equal(fv.host, fake_disk->bytes, 8192);
}

static void lost_before_a_write_s_data_is_here(void **state)
{
	struct fake_peer *peer = queue(1);

	fv.hold = true;
	io(peer, OPC_WRITE, 2, 0, 8192, 0);
	AWAIT(fake_held() == 1);
	pool_lose(pool_find(FAKE_BDF), "test");
	fv.hold = false;
	fake_carry_out(UINT32_MAX);
	assert_int_equal(status_of(peer, 2), ST_INTERRUPTED & 0x7FFF);
	assert_int_equal(staged().interrupted, 1);
}

static void aborted_while_data_is_on_its_way(void **state)
{
	struct fake_peer *peer = queue(1);
	struct pool *pool = pool_find(FAKE_BDF);
	unsigned before = seen.dones;

	fv.hold = true;
	io(peer, OPC_WRITE, 2, 0, 8192, 0);
	AWAIT(fake_held() == 1);
	dp_queue_abort((struct dp_queue_key){ KEY, 1 }, 2, done, NULL);
	AWAIT(seen.dones == before + 1);
	assert_int_equal(pool->in_use, 1); /* data may still come */
	fv.hold = false;
	fake_carry_out(UINT32_MAX);
	assert_int_equal(status_of(peer, 2), 0x07);
	AWAIT(pool->in_use == 0);
}

static void the_queue_ends_while_data_is_on_its_way(void **state)
{
	struct fake_peer *peer = queue(1);
	unsigned before = seen.dones;

	fv.hold = true;
	io(peer, OPC_WRITE, 2, 0, 8192, 0);
	io(peer, OPC_READ, 3, 64, 8192, 8192);
	AWAIT(fake_held() == 2);
	dp_queue_close((struct dp_queue_key){ KEY, 1 }, done, NULL);
	fv.hold = false;
	fake_carry_out(UINT32_MAX);
	AWAIT(seen.dones == before + 1);
	assert_int_equal(pool_find(FAKE_BDF)->in_use, 0);
}

/* A pool that goes and comes is registered with devices that are in use. */
static void a_pool_that_comes_later(void **state)
{
	struct dp_pool_config config = { .name = FAKE_BDF, .kind = DP_POOL_SPDK_CMB };
	struct fake_peer *peer = queue(1);
	struct dp_pool_facts facts;
	unsigned before = seen.dones;
	int live = fv.live;
	json_t *rows;

	assert_int_equal(dp_pool_delete(FAKE_BDF, done, NULL, err), 0);
	AWAIT(seen.dones == before + 1);
	assert_int_equal(fv.live, live - 1);
	io(peer, OPC_READ, 2, 0, 8192, 0);
	assert_int_equal(status_of(peer, 2), 0);
	assert_int_equal(dp_pool_create(&config, &facts, err), 0);
	assert_int_equal(fv.live, live);
	rows = dp_rdma_pool(FAKE_BDF);
	assert_true(json_is_true(json_object_get(json_array_get(rows, 0), "registered")));
	json_decref(rows);
}

#define TEST(name) cmocka_unit_test_setup_teardown(name, start, stop)

int main(void)
{
	static bool yes = true;
	const struct CMUnitTest tests[] = {
		TEST(payload_goes_from_device_to_device),
		TEST(scatter_lists),
		cmocka_unit_test_prestate_setup_teardown(a_device_that_takes_no_dmabuf, start, stop, &yes),
		TEST(lost_while_a_read_s_data_leaves),
		TEST(lost_before_a_write_s_data_is_here),
		TEST(aborted_while_data_is_on_its_way),
		TEST(the_queue_ends_while_data_is_on_its_way),
		TEST(a_pool_that_comes_later),
	};

	return cmocka_run_group_tests(tests, NULL, NULL);
}

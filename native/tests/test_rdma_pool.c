/* SPDX-License-Identifier: BSD-3-Clause
 *
 * NVMe/RDMA whose payload rests in the memory of a drive on vfio-pci: the device reads and writes it by itself, through a
 * region of its dma-buf, and host memory is used where there is none.
 */
#include "fake_disk.h"
#include "fake_drive.h"
#include "log.h"
#include "pool_priv.h"
#include "rdma_host.h"

#define BDEV "Nvme0n1"

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
	struct dp_rdma_listen listen = listener();
	struct dp_bdev_facts facts;
	struct dp_pool_facts mapped;

	log_configure("off", "console");
	open_host();
	fake_reset();
	fake.bdev_open = fake_disk_open;
	fake.dmabuf = fv.dmabuf = true;
	if (*state)
		fv.dmabuf = false;
	if (dp_start(&engine, err) < 0)
		fail_msg("%s", err);
	assert_int_equal(dp_bdev_create(&bdev, &facts, err), 0);
	assert_int_equal(dp_pool_create(&pool, &mapped, err), 0);
	assert_int_equal(dp_pool_allow(FAKE_BDF, BDEV, true, err), 0);
	set_view(false);
	dp_rdma_init(&rdma_events);
	assert_int_equal(dp_rdma_listen(&listen, err), 0);
	return 0;
}

static int stop(void **state)
{
	struct pool *pool = pool_find(FAKE_BDF);

	end_controller();
	if (pool)
		assert_int_equal(pool->in_use, 0);
	close_host();
	assert_int_equal(fake.open, 0);
	return 0;
}

static void io(struct fake_peer *peer, uint8_t opc, uint16_t cid, uint64_t slba, uint32_t bytes, uint32_t at)
{
	transfer(peer, opc, cid, slba, bytes, FAKE_DISK_BLOCK, at, SGL_KEYED);
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

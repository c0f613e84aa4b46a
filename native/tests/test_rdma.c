/* SPDX-License-Identifier: BSD-3-Clause
 *
 * NVMe/RDMA on a device that is not there: the whole engine with its reactor, the test being host and control plane.
 */
#include <errno.h>

#include "log.h"
#include "rdma_host.h"

#define BLOCKS 2048u
#define DNR 0x4000u

static struct dp_rdma_listen options;

static int start(void **state)
{
	struct dp_options engine = {.spin_us = 5, .pool_bytes = 8u << 20, .post = loop_post, .events = &events};
	struct dp_bdev_config malloc_bdev = {.kind = DP_BDEV_MALLOC, .name = "m", .block_size = 512, .num_blocks = BLOCKS};
	struct dp_bdev_facts facts;
	struct dp_ns_view ns = {.nsid = 1, .bdev = "m", .anagrpid = 1, .ana_state = 1};
	struct dp_ctrlr_view view = {.key = KEY, .mdts_bytes = 128 << 10, .num_ns = 1, .ns = &ns};

	log_configure("off", "console");
	open_host();
	options = listener();
	options.max_srq_depth = *state ? 64 : 0;
	assert_int_equal(dp_start(&engine, err), 0);
	assert_int_equal(dp_bdev_create(&malloc_bdev, &facts, err), 0);
	assert_int_equal(dp_ctrlr_set(&view, done, NULL), 0);
	AWAIT(seen.dones == 1);
	dp_rdma_init(&rdma_events);
	assert_int_equal(dp_rdma_listen(&options, err), 0);
	return 0;
}

static int stop(void **state)
{
	const struct staging *pool = &engine_reactor(0)->pool;

	end_controller();
	assert_int_equal(pool->free_bytes, pool->units * STAGING_UNIT);
	close_host();
	assert_int_equal(fv.listening, 0);
	return 0;
}

static void io(struct fake_peer *peer, uint8_t opc, uint16_t cid, uint64_t slba, uint32_t bytes, uint32_t at, uint8_t type)
{
	transfer(peer, opc, cid, slba, bytes, 512, at, type);
}

/* -- the connection manager */

static void test_refusals(void **state)
{
	static const struct {
		uint8_t at, len, ird;
		uint16_t value, status;
	} cases[] = {
		{0, 31, 4, 0, 1},       {0, 0, 4, 0, 1},        {0, 56, 4, 1, 2},       {2, 56, 4, 0xFFFF, 3}, {6, 56, 4, 0, 4},
		{6, 56, 4, 32, 4},      {6, 56, 4, 0xFFFF, 4},  {4, 56, 4, 0, 5},       {4, 56, 4, 3, 5},      {2, 56, 0, 1, 7},
		{8, 56, 4, 0xFFF0, 9},
	};
	uint8_t data[56];

	for (size_t i = 0; i < sizeof(cases) / sizeof(*cases); i++) {
		struct fake_peer *peer;

		memset(data, 0, sizeof(data));
		put16(data + 2, 1);
		put16(data + 4, 16);
		put16(data + 6, 15);
		put16(data + cases[i].at, cases[i].value);
		peer = fake_connect(data, cases[i].len, cases[i].ird);
		AWAIT(peer->gone);
		assert_true(peer->rejected && !peer->accepted);
		assert_int_equal(peer->answer_len, 4);
		assert_int_equal(get16(peer->answer), 0);
		assert_int_equal(get16(peer->answer + 2), cases[i].status);
	}
	assert_int_equal(seen.connected, 0);
}

static void test_accepted(void **state)
{
	struct fake_peer *peer = connected(0);

	assert_int_equal(peer->answer_len, 32);
	assert_int_equal(get16(peer->answer + 2), 16); /* CRQSIZE */
	assert_int_equal(peer->initiator_depth, 4);
	assert_int_equal(seen.last.qid, 0);
	assert_int_equal(seen.last.hsqsize, 15);
	assert_int_equal(seen.last.local_port, 4420);
	fake_disconnected(peer);
	AWAIT(peer->gone);
	assert_int_equal(seen.closed, 1);
}

static void test_initiator_depth_is_the_device_s_at_most(void **state)
{
	fv.rd_atom = 2;
	assert_int_equal(connected(0)->initiator_depth, 2);
}

static void test_too_many_connections(void **state)
{
	struct fake_peer *peer = NULL;

	for (int i = 0; i < 257; i++) {
		peer = request(1, 2);
		AWAIT(peer->accepted || peer->rejected);
	}
	assert_true(peer->rejected);
	assert_int_equal(get16(peer->answer + 2), 6);
}

static void test_device_with_messages_that_are_too_small(void **state)
{
	struct fake_peer *peer;

	fv.max_msg = 4096;
	peer = request(0, 16);
	AWAIT(peer->gone);
	assert_int_equal(get16(peer->answer + 2), 6);
}

static void test_listening(void **state)
{
	assert_int_equal(dp_rdma_listen(&options, err), -EEXIST);
	options.trsvcid = "4421";
	fv.absent = true;
	assert_int_equal(dp_rdma_listen(&options, err), -ENODEV);
	assert_non_null(strstr(err, "no RDMA device"));
	fv.absent = false;
	options.traddr = "nonsense";
	assert_int_equal(dp_rdma_listen(&options, err), -EINVAL);
	assert_int_equal(dp_rdma_unlisten("10.0.0.1", "4420", "ipv4"), 0);
	assert_int_equal(dp_rdma_unlisten("10.0.0.1", "4420", "ipv4"), -ENOENT);
}

static void test_device_that_goes_and_comes_back(void **state)
{
	struct fake_peer *admin = connected(0), *peer = queue(1);

	fv.absent = true;
	fake_removal();
	AWAIT(admin->gone && peer->gone);
	AWAIT(fv.listening == 0);
	assert_int_equal(seen.closed, 1);
	assert_int_equal(seen.queue_closed, 1);
	assert_false(fake_is_open()); /* or the kernel would wait for it */
	fake_return();
	AWAIT(fv.listening == 1);
	queue(1);
}

/* A listener of all addresses is bound to no device: what tells of the removal is the device's own anchor. */
static void test_device_that_goes_without_a_connection(void **state)
{
	struct fake_peer *admin;

	assert_int_equal(dp_rdma_unlisten("10.0.0.1", "4420", "IPv4"), 0);
	options.traddr = "0.0.0.0";
	assert_int_equal(dp_rdma_listen(&options, err), 0);
	admin = connected(0);
	fake_disconnected(admin);
	AWAIT(admin->gone);
	assert_true(fake_is_open());
	fv.absent = true;
	fake_removal();
	AWAIT(!fake_is_open());
	assert_int_equal(fv.listening, 1);
	assert_int_equal(fv.live, 2); /* the event channel and the listener */
}

static void test_device_that_goes_after_a_refusal(void **state)
{
	struct fake_peer *refused;

	assert_int_equal(dp_rdma_unlisten("10.0.0.1", "4420", "IPv4"), 0);
	options.traddr = "0.0.0.0";
	assert_int_equal(dp_rdma_listen(&options, err), 0);
	refused = request(0xFFFF, 16);
	AWAIT(refused->rejected);
	fv.absent = true;
	fake_removal();
	AWAIT(!fake_is_open());
	assert_int_equal(fv.live, 2);
}

/* Its connections end, those of I/O queues as well, and the descriptors stay: the device may have been reset only. */
static void test_device_that_fails(void **state)
{
	struct fake_peer *admin = connected(0), *peer = queue(1);

	fake_fatal();
	AWAIT(admin->gone && peer->gone);
	assert_int_equal(seen.closed, 1);
	assert_int_equal(seen.queue_closed, 1);
	assert_int_equal(fv.listening, 1);
	assert_true(fake_is_open());
	queue(1);
}

/* -- before Connect, and admin queues */

static void test_capsules_of_the_control_plane(void **state)
{
	struct fake_peer *peer = connected(0);
	uint8_t bytes[64 + 100], cqe[16] = {0}, page[64];
	struct fake_capsule capsule;

	make_sqe(bytes, 0x06, 9, 4096, 0x4F);
	memset(bytes + 64, 0x5A, 100);
	assert_true(fake_capsule(peer, bytes, sizeof(bytes)));
	AWAIT(seen.capsules == 1);
	assert_memory_equal(seen.sqe, bytes, 64);
	assert_int_equal(seen.icd_len, 100);
	assert_memory_equal(seen.icd, bytes + 64, 100);

	dp_rdma_fetch(seen.conn, 9, 4096);
	AWAIT(seen.datas == 1);
	assert_int_equal(seen.rc, 0);
	assert_int_equal(seen.data_len, 4096);
	assert_memory_equal(seen.data, fv.host, 4096);
	dp_rdma_fetch(seen.conn, 9, 4097); /* more than its SGL describes */
	assert_int_equal(seen.rc, -EINVAL);
	dp_rdma_fetch(seen.conn, 8, 10); /* no such command */
	assert_int_equal(seen.rc, -EINVAL);

	memset(page, 0xC3, sizeof(page));
	put16(cqe + 12, 9);
	dp_rdma_reply(seen.conn, cqe, 0, 0, page, sizeof(page));
	dp_rdma_reply(seen.conn, cqe, DP_RDMA_REPLY_LAST, 4096 - 64, page, sizeof(page));
	capsule = answer_to(peer, 9);
	assert_true(capsule.invalidate);
	assert_int_equal(capsule.key, HOST_KEY);
	assert_memory_equal(fv.host, page, 64);
	assert_memory_equal(fv.host + 4096 - 64, page, 64);
	assert_int_equal(peer->writes, 2);
}

static void test_reply_beyond_the_sgl_ends_the_connection(void **state)
{
	struct fake_peer *peer = connected(0);
	uint8_t sqe[64], cqe[16] = {0}, page[64] = {0};

	make_sqe(sqe, 0x06, 9, 100, 0x40);
	assert_true(fake_capsule(peer, sqe, sizeof(sqe)));
	AWAIT(seen.capsules == 1);
	put16(cqe + 12, 9);
	dp_rdma_reply(seen.conn, cqe, DP_RDMA_REPLY_LAST, 37, page, 64);
	AWAIT(peer->gone);
	assert_int_equal(peer->writes, 0);
}

static void test_drop_and_close(void **state)
{
	struct fake_peer *peer = connected(0);
	uint8_t sqe[64], cqe[16] = {0};
	uint64_t conn;

	for (uint16_t cid = 1; cid <= 2; cid++) {
		make_sqe(sqe, 0x0C, cid, 0, 0x40);
		assert_true(fake_capsule(peer, sqe, sizeof(sqe)));
	}
	AWAIT(seen.capsules == 2);
	conn = seen.conn;
	put16(cqe + 12, 1);
	dp_rdma_reply(conn, cqe, DP_RDMA_REPLY_DROP, 0, NULL, 0);
	put16(cqe + 12, 2);
	dp_rdma_reply(conn, cqe, DP_RDMA_REPLY_LAST | DP_RDMA_REPLY_CLOSE, 0, NULL, 0);
	answer_to(peer, 2);
	AWAIT(peer->gone);
	assert_int_equal(seen.closed, 1);
	dp_rdma_close(conn);
	dp_rdma_fetch(conn, 1, 1);
	assert_int_equal(seen.datas, 0);
}

static void test_command_twice_in_flight(void **state)
{
	struct fake_peer *peer = connected(0);
	uint8_t sqe[64], cqe[16] = {0};

	make_sqe(sqe, 0x02, 3, 64, 0x40);
	assert_true(fake_capsule(peer, sqe, sizeof(sqe)));
	make_sqe(sqe, 0x06, 3, 0, 0x40);
	assert_true(fake_capsule(peer, sqe, sizeof(sqe)));
	AWAIT(seen.capsules == 2);
	put16(cqe + 12, 3);
	dp_rdma_reply(seen.conn, cqe, DP_RDMA_REPLY_LAST, 0, NULL, 0); /* of the second */
	dp_rdma_fetch(seen.conn, 3, 64);                               /* of the first */
	AWAIT(seen.datas == 1);
	assert_int_equal(seen.rc, 0);
	dp_rdma_reply(seen.conn, cqe, DP_RDMA_REPLY_LAST, 0, NULL, 0);
	answer_to(peer, 3);
	answer_to(peer, 3);
}

static void test_short_capsule(void **state)
{
	struct fake_peer *other = connected(0), *peer = connected(1);
	uint8_t sqe[64] = {0};
	unsigned before = seen.capsules;

	assert_true(fake_capsule(peer, sqe, 63));
	AWAIT(peer->gone);
	assert_int_equal(seen.closed, 1);
	assert_int_equal(seen.capsules, before);
	assert_true(fake_capsule(other, sqe, 64));
	AWAIT(seen.capsules == before + 1);
}

static void test_bad_key_of_an_admin_command(void **state)
{
	struct fake_peer *peer = connected(0);
	uint8_t sqe[64];

	make_sqe(sqe, 0x06, 9, 4096, 0x40);
	put32(sqe + 35, 0x66666666);
	sqe[39] = 0x40;
	assert_true(fake_capsule(peer, sqe, sizeof(sqe)));
	AWAIT(seen.capsules == 1);
	dp_rdma_fetch(seen.conn, 9, 4096);
	AWAIT(peer->gone);
	assert_int_equal(seen.datas, 0);
}

static void test_more_commands_than_the_queue_has(void **state)
{
	struct fake_peer *peer = connected(0);
	uint8_t sqe[64];

	for (uint16_t cid = 0; cid < 17; cid++) {
		make_sqe(sqe, 0x0C, cid, 0, 0x40);
		if (!fake_capsule(peer, sqe, sizeof(sqe)))
			break;
	}
	AWAIT(peer->gone);
	assert_int_equal(seen.capsules, 16);
}

static void test_adoption_is_refused(void **state)
{
	struct fake_peer *peer = connected(1);
	struct dp_queue config = {.key = {KEY, 1}, .sqsize = 15, .icd_max = ICD, .peer = "p"};
	uint8_t sqe[64], cqe[16] = {0};

	dp_rdma_adopt(seen.last.conn + 100, &config, cqe, 5, on_adopted);
	assert_int_equal(seen.rc, -ENOTCONN);
	dp_rdma_adopt(seen.last.conn, &config, cqe, 5, on_adopted); /* no Connect */
	assert_int_equal(seen.rc, -EBUSY);
	make_sqe(sqe, OPC_FABRICS, 1, 0, 0x40);
	assert_true(fake_capsule(peer, sqe, sizeof(sqe)));
	AWAIT(seen.capsules == 1);
	config.sqsize = 16;
	dp_rdma_adopt(seen.last.conn, &config, cqe, 5, on_adopted);
	assert_int_equal(seen.rc, -EINVAL);
	config.sqsize = 15;
	config.key.ctrlr = KEY + 1; /* no such controller */
	dp_rdma_adopt(seen.last.conn, &config, cqe, 5, on_adopted);
	assert_int_equal(seen.rc, -ENODEV);
	config.key.ctrlr = KEY;
	dp_rdma_adopt(seen.last.conn, &config, cqe, 5, on_adopted);
	assert_int_equal(seen.rc, 0);
}

/* -- I/O queues */

static void test_read_and_write(void **state)
{
	struct fake_peer *peer = queue(1);
	struct fake_capsule capsule;
	static uint8_t copy[65536];
	uint8_t sqe[64];

	memcpy(copy, fv.host, sizeof(copy));
	io(peer, OPC_WRITE, 2, 8, 65536, 0, 0x4F);
	capsule = answer_to(peer, 2);
	assert_int_equal(get16(capsule.cqe + 14), 0);
	assert_int_equal(get16(capsule.cqe + 8), 1); /* SQHD was 0 at adoption */
	assert_true(capsule.invalidate);
	memset(fv.host, 0, 65536);
	io(peer, OPC_READ, 3, 8, 65536, 0, 0x40);
	capsule = answer_to(peer, 3);
	assert_int_equal(get16(capsule.cqe + 14), 0);
	assert_false(capsule.invalidate);
	assert_memory_equal(fv.host, copy, 65536);
	make_sqe(sqe, OPC_FLUSH, 4, 0, 0x40);
	assert_true(fake_capsule(peer, sqe, 64));
	assert_int_equal(status_of(peer, 4), 0);
}

static void in_capsule(struct fake_peer *peer, uint16_t cid, uint32_t offset, uint32_t length, uint32_t there)
{
	uint8_t bytes[64 + ICD];
	uint64_t address = htole64(offset);

	make_sqe(bytes, OPC_WRITE, cid, length, 0x01);
	memcpy(bytes + 24, &address, 8);
	put32(bytes + 48, length / 512 - 1);
	memset(bytes + 64, 0x77, there);
	assert_true(fake_capsule(peer, bytes, 64 + there));
}

static void test_in_capsule_data(void **state)
{
	struct fake_peer *peer = queue(1);

	in_capsule(peer, 2, 0, 4096, 4096);
	assert_int_equal(status_of(peer, 2), 0);
	assert_int_equal(peer->reads, 0);
	io(peer, OPC_READ, 3, 0, 4096, 0, 0x40);
	assert_int_equal(status_of(peer, 3), 0);
	assert_int_equal(fv.host[4095], 0x77);
	in_capsule(peer, 4, 64, 4096, 4096); /* offset and length beyond what there is */
	assert_int_equal(status_of(peer, 4), ST_SGL_OFFSET | DNR);
	in_capsule(peer, 5, 0, 4096, 2048);
	assert_int_equal(status_of(peer, 5), ST_SGL_LENGTH | DNR);
	in_capsule(peer, 6, 0xFFFFFFFF, 512, 512);
	assert_int_equal(status_of(peer, 6), ST_SGL_OFFSET | DNR);
	assert_int_equal(seen.queue_closed, 0);
}

static void test_sgls_that_do_not_fit(void **state)
{
	struct fake_peer *peer = queue(1);
	uint8_t sqe[64];

	io(peer, OPC_READ, 2, 0, 512, 0, 0x5A); /* NVMe/TCP's */
	assert_int_equal(status_of(peer, 2), ST_SGL_TYPE | DNR);
	make_sqe(sqe, OPC_READ, 3, 1024, 0x40); /* one block, two blocks of memory */
	assert_true(fake_capsule(peer, sqe, 64));
	assert_int_equal(status_of(peer, 3), ST_SGL_LENGTH | DNR);
	make_sqe(sqe, OPC_READ, 4, 0, 0x40);
	assert_true(fake_capsule(peer, sqe, 64));
	assert_int_equal(status_of(peer, 4), ST_SGL_LENGTH | DNR);
	make_sqe(sqe, OPC_READ, 5, 512, 0x40);
	sqe[1] = 0; /* PRP */
	assert_true(fake_capsule(peer, sqe, 64));
	assert_int_equal(status_of(peer, 5), ST_INVALID_FIELD | DNR);
	io(peer, OPC_READ, 6, BLOCKS, 512, 0, 0x4F); /* a bad LBA: its key is invalidated all the same */
	assert_true(answer_to(peer, 6).invalidate);
	assert_int_equal(peer->writes, 0);
}

static void test_bad_key_ends_its_queue_only(void **state)
{
	struct fake_peer *peer = queue(1), *other = queue(2);
	uint8_t sqe[64];

	make_sqe(sqe, OPC_WRITE, 2, 512, 0x40);
	put32(sqe + 35, 0x66666666);
	sqe[39] = 0x40;
	assert_true(fake_capsule(peer, sqe, 64));
	AWAIT(peer->gone);
	assert_int_equal(seen.queue_closed, 1);
	assert_non_null(strstr(seen.reason, "remote access"));
	io(other, OPC_READ, 3, 0, 512, 0, 0x40);
	assert_int_equal(status_of(other, 3), 0);
}

static void test_bad_key_of_a_read(void **state)
{
	struct fake_peer *peer = queue(1);

	io(peer, OPC_READ, 2, 0, 8192, HOST_BYTES - 4096, 0x40);
	AWAIT(peer->gone);
	assert_int_equal(seen.queue_closed, 1);
}

static void test_short_capsule_ends_an_io_queue(void **state)
{
	struct fake_peer *peer = queue(1);
	uint8_t sqe[64] = {0};

	assert_true(fake_capsule(peer, sqe, 10));
	AWAIT(peer->gone);
	assert_int_equal(seen.queue_closed, 1);
}

static void test_reads_keep_to_the_initiator_depth(void **state)
{
	struct fake_peer *peer = queue(1);

	fv.hold = true;
	for (uint16_t cid = 2; cid < 12; cid++)
		io(peer, OPC_WRITE, cid, 8, 8192, 0, 0x40);
	AWAIT(fake_held() == 4);
	fv.hold = false;
	fake_carry_out(UINT32_MAX);
	for (unsigned i = 0; i < 10; i++) {
		AWAIT(fake_inbox(peer));
		fake_take(peer);
	}
	assert_int_equal(peer->reads, 10);
	assert_int_equal(peer->reads_most, 4);
}

static void test_split_to_the_device_s_messages(void **state)
{
	struct fake_peer *peer;
	static uint8_t copy[131072];

	fv.max_msg = 36864;
	peer = queue(1);
	memcpy(copy, fv.host, sizeof(copy));
	io(peer, OPC_WRITE, 2, 0, 131072, 0, 0x40);
	assert_int_equal(status_of(peer, 2), 0);
	assert_int_equal(peer->reads, 4);
	memset(fv.host, 0, 131072);
	io(peer, OPC_READ, 3, 0, 131072, 0, 0x40);
	assert_int_equal(status_of(peer, 3), 0);
	assert_int_equal(peer->writes, 4);
	assert_memory_equal(fv.host, copy, 131072);
}

static void test_abort_while_data_is_on_its_way(void **state)
{
	struct fake_peer *peer = queue(1);

	fv.hold = true;
	io(peer, OPC_WRITE, 2, 0, 4096, 0, 0x40);
	AWAIT(fake_held() == 1);
	dp_queue_abort((struct dp_queue_key){KEY, 1}, 2, done, NULL);
	AWAIT(seen.dones == 2);
	assert_int_equal(seen.done_rc, 1);
	AWAIT(fake_held() == 2); /* the response is behind the read */
	fv.hold = false;
	fake_carry_out(UINT32_MAX);
	assert_int_equal(status_of(peer, 2), ST_ABORT_REQUESTED);
	io(peer, OPC_WRITE, 2, 0, 4096, 0, 0x40);
	assert_int_equal(status_of(peer, 2), 0);
}

static void test_end_while_data_is_on_its_way(void **state)
{
	struct fake_peer *peer = queue(1);

	fv.hold = true;
	io(peer, OPC_WRITE, 2, 0, 65536, 0, 0x40);
	io(peer, OPC_READ, 3, 0, 65536, 0, 0x40);
	AWAIT(fake_held() >= 3);
	fake_disconnected(peer);
	AWAIT(peer->gone);
	assert_int_equal(seen.queue_closed, 1);
}

static void test_send_queue_that_refuses(void **state)
{
	struct fake_peer *peer = queue(1);

	fv.post_fails = 1;
	io(peer, OPC_READ, 2, 0, 512, 0, 0x40);
	AWAIT(peer->gone);
	assert_int_equal(seen.queue_closed, 1);
}

static void test_io_queue_with_too_many_commands(void **state)
{
	struct fake_peer *peer = queue(1);

	fv.hold = true;
	for (uint16_t cid = 2; cid < 2 + 17; cid++) {
		uint8_t sqe[64];

		make_sqe(sqe, OPC_WRITE, cid, 512, 0x40);
		if (!fake_capsule(peer, sqe, 64))
			break;
	}
	AWAIT(seen.queue_closed == 1);
	fv.hold = false;
	AWAIT(peer->gone);
}

static void test_disconnect_command(void **state)
{
	struct fake_peer *peer = queue(1);
	uint8_t sqe[64];

	make_sqe(sqe, OPC_FABRICS, 2, 0, 0x40);
	sqe[4] = FCTYPE_DISCONNECT;
	assert_true(fake_capsule(peer, sqe, 64));
	assert_int_equal(status_of(peer, 2), 0);
	AWAIT(peer->gone);
}

static void test_close_by_the_control_plane(void **state)
{
	struct fake_peer *peer = queue(1);

	dp_queue_close((struct dp_queue_key){KEY, 1}, done, NULL);
	AWAIT(seen.dones == 2);
	AWAIT(peer->gone);
	assert_int_equal(seen.queue_closed, 0);
}

static void test_many_commands(void **state)
{
	struct fake_peer *peer = queue(1);

	for (uint16_t round = 0; round < 50; round++) {
		for (uint16_t cid = 0; cid < 16; cid++)
			io(peer, cid & 1 ? OPC_READ : OPC_WRITE, cid, cid * 16u, 4096, cid * 4096u, 0x4F);
		for (unsigned i = 0; i < 16; i++) {
			AWAIT(fake_inbox(peer));
			assert_int_equal(get16(fake_take(peer).cqe + 14), 0);
		}
	}
}

static void test_shared_receive_queue(void **state)
{
	struct fake_peer *peers[3];

	for (uint16_t round = 0; round < 10; round++) { /* 64 slots: lost ones would be missed soon */
		uint8_t sqe[64] = {0};

		for (uint16_t i = 0; i < 3; i++)
			peers[i] = queue((uint16_t)(i + 1));
		for (uint16_t cid = 2; cid < 14; cid++)
			for (uint16_t i = 0; i < 3; i++)
				io(peers[i], OPC_WRITE, cid, 0, 512, 0, 0x40);
		for (uint16_t i = 0; i < 3; i++)
			AWAIT(fake_inbox(peers[i]) == 12);
		assert_true(fake_capsule(peers[0], sqe, 10));
		fake_disconnected(peers[1]);
		dp_queue_close((struct dp_queue_key){KEY, 3}, done, NULL);
		AWAIT(peers[0]->gone && peers[1]->gone && peers[2]->gone);
	}
}

static void test_device_without_inlining_and_invalidation(void **state)
{
	struct fake_peer *peer;

	fv.no_inline = fv.no_invalidate = true;
	peer = queue(1);
	io(peer, OPC_READ, 2, 0, 4096, 0, 0x4F);
	assert_false(answer_to(peer, 2).invalidate);
}

static void test_what_can_be_read_back(void **state)
{
	struct fake_peer *peer = queue(1);
	json_t *devices, *row, *info = dp_rdma_info();
	struct dp_queue_stat *stats;

	io(peer, OPC_READ, 2, 0, 4096, 0, 0x4F);
	assert_int_equal(status_of(peer, 2), 0);
	devices = dp_rdma_devices();
	row = json_array_get(json_object_get(devices, "devices"), 0);
	assert_string_equal(json_string_value(json_object_get(row, "name")), "fake0");
	assert_int_equal(json_array_size(json_object_get(row, "addresses")), 1);
	assert_string_equal(json_string_value(json_array_get(json_object_get(row, "addresses"), 0)), "10.0.0.1");
	assert_int_equal(json_integer_value(json_object_get(row, "rdma_writes")), 1);
	assert_int_equal(json_integer_value(json_object_get(row, "connections")), 1);
	assert_true(json_integer_value(json_object_get(row, "requests")) >= 2);
	assert_true(json_is_true(json_object_get(info, "built")));
	assert_int_equal(dp_queue_stats(&stats), 1);
	assert_true(stats[0].rdma);
	free(stats);
	json_decref(devices);
	json_decref(info);
}

int main(void)
{
#define TEST(name) cmocka_unit_test_setup_teardown(name, start, stop)
#define SRQ(name) {#name " (shared)", name, start, stop, &options}
	const struct CMUnitTest tests[] = {
		TEST(test_refusals),
		TEST(test_accepted),
		TEST(test_initiator_depth_is_the_device_s_at_most),
		TEST(test_too_many_connections),
		TEST(test_device_with_messages_that_are_too_small),
		TEST(test_listening),
		TEST(test_device_that_goes_and_comes_back),
		TEST(test_device_that_goes_without_a_connection),
		TEST(test_device_that_goes_after_a_refusal),
		TEST(test_device_that_fails),
		TEST(test_capsules_of_the_control_plane),
		TEST(test_reply_beyond_the_sgl_ends_the_connection),
		TEST(test_drop_and_close),
		TEST(test_command_twice_in_flight),
		TEST(test_short_capsule),
		TEST(test_bad_key_of_an_admin_command),
		TEST(test_more_commands_than_the_queue_has),
		TEST(test_adoption_is_refused),
		TEST(test_read_and_write),
		TEST(test_in_capsule_data),
		TEST(test_sgls_that_do_not_fit),
		TEST(test_bad_key_ends_its_queue_only),
		TEST(test_bad_key_of_a_read),
		TEST(test_short_capsule_ends_an_io_queue),
		TEST(test_reads_keep_to_the_initiator_depth),
		TEST(test_split_to_the_device_s_messages),
		TEST(test_abort_while_data_is_on_its_way),
		TEST(test_end_while_data_is_on_its_way),
		TEST(test_send_queue_that_refuses),
		TEST(test_io_queue_with_too_many_commands),
		TEST(test_disconnect_command),
		TEST(test_close_by_the_control_plane),
		TEST(test_many_commands),
		TEST(test_device_without_inlining_and_invalidation),
		TEST(test_what_can_be_read_back),
		SRQ(test_shared_receive_queue),
		SRQ(test_many_commands),
		SRQ(test_bad_key_ends_its_queue_only),
		SRQ(test_end_while_data_is_on_its_way),
		SRQ(test_io_queue_with_too_many_commands),
		SRQ(test_device_that_goes_and_comes_back),
	};

	return cmocka_run_group_tests(tests, NULL, NULL);
}

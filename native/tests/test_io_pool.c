/* SPDX-License-Identifier: BSD-3-Clause
 *
 * test_io_pool.c: payload in a pool of peer memory: where it rests, who waits, and what is said when the memory goes away,
 * at each moment of a command's life. rig_close checks that everything was given back exactly once.
 */
#include "crc32c.h"
#include "pool_host.h"

/* -- where it rests */

static void test_write_and_read(void **state)
{
	pattern(1);
	command(OPC_WRITE, 1, 4, 8, 63, 0);
	answer_r2t(true);
	assert_int_equal(next_status(1), 0);
	assert_memory_equal(rig_medium(4) + 8 * 512, data, 32768);
	command(OPC_WRITE, 2, 4, 72, 7, 4096); /* in the capsule */
	assert_int_equal(next_status(2), 0);
	assert_memory_equal(rig_medium(4) + 72 * 512, data, 4096);
	command(OPC_READ, 3, 4, 8, 63, 0);
	expect_data(3, data, 32768);
	assert_int_equal(next_status(3), 0);
	assert_int_equal(in_pool(4, POOL_WRITE), 32768 + 4096);
	assert_int_equal(in_pool(4, POOL_READ), 32768);
	assert_int_equal(sums(4)->pool[0].bytes[POOL_READ], 0);
	assert_int_equal(sums(4)->pool[0].bytes[POOL_WRITE], 0);
	assert_int_equal(sums(4)->pool[pool_index(rig.pool)].ops[POOL_WRITE], 2);
	assert_int_equal(staging.fallbacks, 0);
	/* and what does not go there */
	command(OPC_COMPARE, 4, 4, 72, 7, 4096);
	assert_int_equal(next_status(4), 0);
	no_data(OPC_WRITE_ZEROES, 5, 4, 0, 7);
	assert_int_equal(next_status(5), 0);
	assert_int_equal(sums(4)->pool[0].bytes[POOL_READ], 4096);
	assert_int_equal(staging.pool[0].bytes[POOL_WRITE], 0);
}

static void test_pieces(void **state)
{
	pattern(2);
	fragment();
	for (uint32_t nsid = 4; nsid <= 5; nsid++) {
		command(OPC_WRITE, 1, nsid, 0, 255, 0);
		answer_r2t(true);
		assert_int_equal(next_status(1), 0);
		assert_memory_equal(rig_medium(nsid), data, 128 * 1024);
		command(OPC_READ, 2, nsid, 0, 255, 0);
		expect_data(2, data, 128 * 1024);
		assert_int_equal(next_status(2), 0);
		command(OPC_READ, 3, nsid, 3, 20, 0); /* whole blocks, not whole granules */
		expect_data(3, data + 3 * 512, 21 * 512);
		assert_int_equal(next_status(3), 0);
		assert_int_equal(in_pool(nsid, POOL_WRITE), 128 * 1024);
		assert_int_equal(in_pool(nsid, POOL_READ), 128 * 1024 + 21 * 512);
	}
	/* damage by an error bdev finds the byte, wherever it is */
	bdev_error_inject(rig.bdevs[4], "read", "corrupt_data", 1, 70000, 0x77);
	command(OPC_READ, 4, 5, 0, 255, 0);
	data[70000] ^= 0x77;
	expect_data(4, data, 128 * 1024);
	assert_int_equal(next_status(4), 0);
	unhog();
}

static void test_any_chunking(void **state)
{
	uint8_t sqe[64];
	size_t n;

	pattern(3);
	rig.send_most = 1000;
	command(OPC_WRITE, 1, 4, 0, 31, 0);
	const uint8_t *p = next_pdu(PDU_R2T);
	n = rig_h2c(pdu, 1, get16(p + 10), 0, data, 16384, true);
	for (size_t i = 0; i < n; i += 333)
		rig_feed(pdu + i, n - i < 333 ? n - i : 333);
	assert_int_equal(next_status(1), 0);
	rig_sqe(sqe, OPC_READ, 2, 4, 0, 31, 16384, 0x5A);
	n = rig_capsule(pdu, sqe, NULL, 0);
	for (size_t i = 0; i < n; i++)
		rig_feed(pdu + i, 1);
	expect_data(2, data, 16384);
	assert_int_equal(next_status(2), 0);
	assert_int_equal(in_pool(4, POOL_READ), 16384);
}

static void test_no_success_flag(void **state)
{
	command(OPC_READ, 1, 4, 0, 7, 0);
	assert_int_equal(next_pdu(PDU_C2H_DATA)[1] & PDU_F_SUCCESS, 0);
	assert_int_equal(next_status(1), 0);
	command(OPC_READ, 1, 3, 0, 7, 0); /* from host memory */
	assert_int_equal(next_pdu(PDU_C2H_DATA)[1] & PDU_F_SUCCESS, PDU_F_SUCCESS);
	assert_int_equal(rig.out_len, 0);
}

static void test_data_digest(void **state)
{
	uint8_t sqe[64];
	size_t n;

	pattern(4);
	fragment();
	rig_sqe(sqe, OPC_WRITE, 1, 4, 0, 7, 4096, 0x01);
	n = rig_capsule(pdu, sqe, data, 4096);
	pdu[n - 1] ^= 1;
	rig_feed(pdu, n);
	assert_int_equal(next_status(1), ST_TRANSIENT_TRANSPORT);
	command(OPC_WRITE, 2, 4, 0, 63, 0);
	const uint8_t *p = next_pdu(PDU_R2T);
	n = rig_h2c(pdu, 2, get16(p + 10), 0, data, 32768, true);
	pdu[n - 1] ^= 1;
	rig_feed(pdu, n);
	assert_int_equal(next_status(2), ST_TRANSIENT_TRANSPORT);
	for (unsigned i = 0; i < 32768; i++)
		assert_int_equal(rig_medium(4)[i], 0);
	command(OPC_WRITE, 3, 4, 0, 63, 0);
	answer_r2t(true);
	assert_int_equal(next_status(3), 0);
	command(OPC_READ, 4, 4, 0, 63, 0);
	p = next_pdu(PDU_C2H_DATA);
	assert_memory_equal(p + p[3], data, 32768);
	assert_int_equal(get32(p + p[3] + 32768), crc32c(0, data, 32768));
	assert_int_equal(next_status(4), 0);
	assert_int_equal(in_pool(4, POOL_READ), 32768);
	unhog();
}

/* -- no room */

static void test_falls_back(void **state)
{
	pattern(5);
	hog(8);
	command(OPC_WRITE, 1, 4, 0, 7, 4096);
	assert_int_equal(next_status(1), 0);
	command(OPC_WRITE, 2, 4, 8, 63, 0);
	answer_r2t(true);
	assert_int_equal(next_status(2), 0);
	command(OPC_READ, 3, 4, 8, 63, 0);
	expect_data(3, data, 32768);
	assert_int_equal(next_status(3), 0);
	assert_int_equal(sums(4)->fallbacks, 3);
	assert_int_equal(staging.pool[0].bytes[POOL_WRITE], 4096 + 32768);
	assert_int_equal(staging.pool[0].bytes[POOL_READ], 32768);
	unhog();
	command(OPC_READ, 4, 4, 8, 63, 0); /* 32 KiB are all there is */
	expect_data(4, data, 32768);
	assert_int_equal(next_status(4), 0);
	assert_int_equal(in_pool(4, POOL_READ), 32768);
	command(OPC_READ, 5, 4, 0, 127, 0); /* never fits */
	next_pdu(PDU_C2H_DATA);
	assert_int_equal(next_status(5), 0);
	assert_int_equal(sums(4)->fallbacks, 4);
}

static void test_waits(void **state)
{
	pattern(6);
	hog(8);
	command(OPC_WRITE, 1, 4, 0, 7, 4096); /* waits in host memory: what comes behind it is not held up */
	command(OPC_WRITE, 2, 4, 8, 63, 0);
	command(OPC_READ, 3, 4, 0, 7, 0);
	assert_int_equal(rig.out_len, 0);
	command(OPC_READ, 4, 1, 0, 0, 0);
	next_pdu(PDU_C2H_DATA);
	assert_int_equal(next_status(4), 0);
	assert_int_equal(rig.q->at_work, 3);
	unhog();
	assert_int_equal(next_status(1), 0);
	answer_r2t(true); /* of the one that needs all of the pool: the read behind it does not go first */
	assert_int_equal(next_status(2), 0);
	expect_data(3, data, 4096);
	assert_int_equal(next_status(3), 0);
	assert_int_equal(in_pool(4, POOL_WRITE), 4096 + 32768);
	assert_int_equal(in_pool(4, POOL_READ), 4096);
	assert_int_equal(staging.fallbacks, 0);
	assert_int_equal(rig.q->at_work, 0);
	command(OPC_READ, 5, 4, 0, 127, 0); /* never fits, so it does not wait */
	next_pdu(PDU_C2H_DATA);
	assert_int_equal(next_status(5), 0);
	assert_int_equal(sums(4)->fallbacks, 1);
}

static void test_abort_while_waiting(void **state)
{
	hog(8);
	command(OPC_READ, 1, 4, 0, 7, 0);
	command(OPC_WRITE, 2, 4, 0, 7, 4096);
	command(OPC_WRITE, 3, 4, 8, 63, 0);
	for (uint16_t cid = 1; cid <= 3; cid++) {
		assert_true(io_cancel(io_find(rig.q, cid), ST_ABORT_REQUESTED));
		rig_turn();
		assert_int_equal(next_status(cid), ST_ABORT_REQUESTED);
	}
	unhog();
	assert_int_equal(rig.out_len, 0);
	/* the answer is on its way: too late */
	hog(8);
	command(OPC_READ, 4, 4, 0, 7, 0);
	while (hogs)
		pool_put(hogged[--hogs]);
	assert_false(io_cancel(io_find(rig.q, 4), ST_ABORT_REQUESTED));
	rig_turn();
	next_pdu(PDU_C2H_DATA);
	assert_int_equal(next_status(4), 0);
}

static void test_end_while_waiting(void **state)
{
	hog(8);
	command(OPC_READ, 1, 4, 0, 63, 0);
	command(OPC_WRITE, 2, 4, 0, 7, 4096);
	command(OPC_WRITE, 3, 4, 0, 63, 0);
	while (hogs)
		pool_put(hogged[--hogs]); /* for the first; its answer is on its way */
	qpair_end(rig.q, END_ORDERED, "test");
	assert_int_equal(rig.ended, 0);
	rig_turn();
	assert_int_equal(rig.ended, 1);
}

static void test_lost_while_waiting(void **state)
{
	pattern(7);
	hog(8);
	command(OPC_WRITE, 1, 4, 0, 7, 4096);
	command(OPC_READ, 2, 4, 0, 7, 0);
	command(OPC_WRITE, 3, 4, 8, 63, 0);
	lose();
	rig_turn();
	answer_r2t(true);
	assert_int_equal(next_status(1), 0);
	expect_data(2, data, 4096);
	assert_int_equal(next_status(2), 0);
	assert_int_equal(next_status(3), 0);
	assert_memory_equal(rig_medium(4), data, 4096);
	assert_memory_equal(rig_medium(4) + 4096, data, 32768);
	assert_int_equal(sums(4)->fallbacks, 3);
	assert_int_equal(staging.interrupted, 0);
	command(OPC_READ, 4, 4, 0, 7, 0); /* strict or not: there is no pool to wait for */
	expect_data(4, data, 4096);
	assert_int_equal(next_status(4), 0);
	unhog();
}

/* -- the memory goes away. Writes */

static void test_write_lost_before_data(void **state)
{
	pattern(8);
	memset(rig_medium(4), 0x11, 32768);
	command(OPC_WRITE, 1, 4, 0, 63, 0);
	lose();
	answer_r2t(true);
	assert_int_equal(next_status(1), ST_INTERRUPTED);
	for (unsigned i = 0; i < 32768; i++)
		assert_int_equal(rig_medium(4)[i], 0x11); /* nothing of it reached the medium */
	assert_int_equal(sums(4)->interrupted, 1);
	command(OPC_WRITE, 1, 4, 0, 63, 0); /* as the host does */
	answer_r2t(true);
	assert_int_equal(next_status(1), 0);
	assert_memory_equal(rig_medium(4), data, 32768);
	assert_int_equal(sums(4)->fallbacks, 1);
}

static void half_a_write(void (*what)(void))
{
	pattern(9);
	memset(rig_medium(4), 0x11, 65536);
	command(OPC_WRITE, 1, 4, 0, 63, 0);
	uint16_t tag = get16(next_pdu(PDU_R2T) + 10);
	rig_feed(pdu, rig_h2c(pdu, 1, tag, 0, data, 16384, false));
	what();
	rig_feed(pdu, rig_h2c(pdu, 1, tag, 16384, data + 16384, 16384, true));
	assert_int_equal(next_status(1), ST_INTERRUPTED);
	assert_true(pool_is_lost(rig.pool));
	for (unsigned i = 0; i < 32768; i++)
		assert_int_equal(rig_medium(4)[i], 0x11);
}

static void test_write_lost_in_receive(void **state)
{
	half_a_write(lose);
}

static void test_write_reset_in_receive(void **state)
{
	half_a_write(reset_memory);
}

static void test_write_unplugged_in_receive(void **state)
{
	half_a_write(take_memory_away); /* the CPU gets SIGBUS */
}

static void write_at_drive(void (*what)(void), int rc, uint16_t status)
{
	pattern(10);
	rig.hold = true;
	command(OPC_WRITE, 1, 4, 0, 7, 4096);
	assert_int_equal(rig.n_held, 1);
	if (what)
		what();
	rig_drive(rc);
	rig_turn();
	assert_int_equal(next_status(1), status);
	rig.hold = false;
}

static void test_write_lost_at_drive(void **state)
{
	write_at_drive(lose, 0, ST_INTERRUPTED);
	assert_int_equal(sums(4)->interrupted, 1);
}

static void test_write_reset_at_drive(void **state)
{
	write_at_drive(reset_memory, 0, ST_INTERRUPTED);
	assert_true(pool_is_lost(rig.pool));
}

static void test_write_unplugged_at_drive(void **state)
{
	write_at_drive(take_memory_away, -EFAULT, ST_INTERRUPTED);
	assert_true(pool_is_lost(rig.pool));
	write_at_drive(NULL, 0, 0);
	assert_memory_equal(rig_medium(4), data, 4096);
}

static void test_write_error_with_lost_pool(void **state)
{
	write_at_drive(take_memory_away, -EIO, ST_INTERRUPTED);
	assert_true(pool_is_lost(rig.pool));
}

static void test_write_error_is_the_drives(void **state)
{
	write_at_drive(NULL, -EIO, ST_WRITE_FAULT);
	assert_false(pool_is_lost(rig.pool));
	assert_int_equal(sums(4)->interrupted, 0);
}

/* The kernel finds no way between the two devices: not that drive's pool any more, whatever was allowed. */
static void test_refused_by_kernel(void **state)
{
	for (unsigned i = 0; i < 2; i++) {
		write_at_drive(NULL, -EREMOTEIO, ST_INTERRUPTED);
		write_at_drive(NULL, -EREMOTEIO, ST_INTERRUPTED);
		assert_true(bdev_pool_allowed(rig.bdevs[3], rig.pool));
		if (i == 0)
			write_at_drive(NULL, 0, 0); /* so it was something else */
	}
	write_at_drive(NULL, -EREMOTEIO, ST_INTERRUPTED);
	assert_false(pool_is_lost(rig.pool));
	assert_false(bdev_pool_allowed(rig.bdevs[3], rig.pool));
	assert_true(bdev_pool_allowed(rig.bdevs[4], rig.pool));
	assert_int_equal(sums(4)->withdrawn, 1ull << (pool_index(rig.pool) - 1)); /* and that is told */
	assert_int_equal(sums(5)->withdrawn, 0);
	write_at_drive(NULL, 0, 0);
	assert_int_equal(sums(4)->fallbacks, 1);
	assert_memory_equal(rig_medium(4), data, 4096);
}

/* -- Reads */

static void read_at_drive(void (*what)(void), int rc)
{
	pattern(11);
	memcpy(rig_medium(4), data, 32768);
	rig.hold = true;
	command(OPC_READ, 1, 4, 0, 63, 0);
	rig.hold = false;
	if (what)
		what();
	rig_drive(rc);
	rig_turn();
}

static void expect_good_read(void)
{
	expect_data(1, data, 32768);
	assert_int_equal(next_status(1), 0);
	assert_int_equal(rig.out_len, 0);
	assert_int_equal(sums(4)->fallbacks, 1);
	assert_int_equal(staging.interrupted, 0);
	assert_int_equal(staging.pool[0].bytes[POOL_READ], 32768);
}

static void test_read_lost_at_drive(void **state)
{
	read_at_drive(lose, 0);
	expect_good_read();
}

static void test_read_unplugged_at_drive(void **state)
{
	read_at_drive(take_memory_away, -EFAULT);
	assert_true(pool_is_lost(rig.pool));
	expect_good_read();
}

static void test_read_error_with_lost_pool(void **state)
{
	read_at_drive(take_memory_away, -EIO);
	assert_true(pool_is_lost(rig.pool));
	expect_good_read();
}

static void test_read_refused_by_kernel(void **state)
{
	read_at_drive(NULL, -EINVAL);
	assert_false(pool_is_lost(rig.pool));
	expect_good_read();
	assert_true(bdev_pool_allowed(rig.bdevs[3], rig.pool));
}

static void test_read_error_is_the_drives(void **state)
{
	read_at_drive(NULL, -EIO);
	assert_int_equal(next_status(1), ST_READ_ERROR);
	assert_int_equal(sums(4)->fallbacks, 0);
}

/* The answer is queued, nothing of it has left. */
static void test_read_lost_before_sent(void **state)
{
	rig.hold = true;
	pattern(12);
	memcpy(rig_medium(4), data, 32768);
	command(OPC_READ, 1, 4, 0, 63, 0);
	rig.hold = false;
	rig_drive(0);
	assert_int_equal(io_find(rig.q, 1) == NULL, 1);
	lose();
	rig_turn();
	expect_good_read();
}

/* The same where there is no host memory at once, and an abort finds it waiting. */
static void test_read_lost_waits_for_host_memory(void **state)
{
	struct reactor *r = &rig.r;
	void *all[64];
	unsigned n = 0;

	rig.hold = true;
	pattern(12);
	memcpy(rig_medium(4), data, 32768);
	command(OPC_READ, 1, 4, 0, 63, 0);
	command(OPC_READ, 2, 4, 0, 63, 0);
	rig.hold = false;
	while ((all[n] = staging_alloc(&r->pool, 128 * 1024)))
		n++;
	lose();
	rig_drive(0);
	rig_drive(0);
	rig_turn();
	assert_int_equal(rig.out_len, 0);
	assert_true(io_cancel(io_find(rig.q, 2), ST_ABORT_REQUESTED));
	rig_turn();
	assert_int_equal(next_status(2), ST_ABORT_REQUESTED);
	while (n)
		staging_free(&r->pool, all[--n]);
	rig_turn();
	expect_data(1, data, 32768);
	assert_int_equal(next_status(1), 0);
}

static unsigned sends;
static void (*at_send)(void);
static unsigned at_which;

static void on_send(void)
{
	if (++sends == at_which)
		at_send();
}

static void lost_while_sending(void (*what)(void), unsigned which, size_t most)
{
	pattern(13);
	memcpy(rig_medium(4), data, 32768);
	sends = 0;
	at_send = what;
	at_which = which;
	rig.on_send = on_send;
	rig.send_most = most;
	command(OPC_READ, 1, 4, 0, 63, 0);
	const uint8_t *p = next_pdu(PDU_C2H_DATA);
	assert_int_equal(get32(p + 16), 32768); /* what was announced comes, whatever it is */
	assert_memory_equal(p + p[3], data, 4000);
	assert_int_equal(next_status(1), ST_INTERRUPTED);
	assert_true(pool_is_lost(rig.pool));
	assert_int_equal(sums(4)->interrupted, 1);
	rig.on_send = NULL;
	command(OPC_READ, 1, 4, 0, 63, 0);
	expect_data(1, data, 32768);
	assert_int_equal(next_status(1), 0);
}

static void test_read_lost_in_mid_send(void **state)
{
	lost_while_sending(lose, 3, 4096);
}

static void test_read_reset_in_mid_send(void **state)
{
	lost_while_sending(reset_memory, 3, 4096);
}

static void test_read_unplugged_in_mid_send(void **state)
{
	lost_while_sending(take_memory_away, 3, 4096);
}

static void fault(void)
{
	if (sends == 3)
		rig.send_error = -EFAULT;
}

/* What the kernel says when it cannot read the memory: the send goes on, in zeroes. */
static void test_send_faults(void **state)
{
	lost_while_sending(fault, 3, 4096);
}

static void fault_and_go(void)
{
	take_memory_away();
	rig.send_error = -EFAULT;
}

static void test_send_faults_unplugged(void **state)
{
	lost_while_sending(fault_and_go, 3, 4096);
}

static void reset_canary(void)
{
	memset(rig.pool->base, 0xFF, 8);
}

/* All of the data has left; only the canary tells that it may have been something else. */
static void test_read_lost_before_response(void **state)
{
	lost_while_sending(reset_canary, 1, 0);
}

/* A fault that is not a pool's ends the queue; so does one that does not end. */
static void test_send_faults_without_pool(void **state)
{
	rig.send_error = -EFAULT;
	command(OPC_READ, 1, 3, 0, 7, 0);
	assert_int_equal(rig.ended, 1);
}

static void always_fault(void)
{
	rig.send_error = -EFAULT;
}

static void test_send_faults_for_ever(void **state)
{
	rig.on_send = always_fault;
	command(OPC_READ, 1, 4, 0, 7, 0);
	assert_int_equal(rig.ended, 1);
}

/* -- the end of a command or a queue while it has memory of the pool */

static void test_abort_in_transfer(void **state)
{
	command(OPC_WRITE, 1, 4, 0, 63, 0);
	uint16_t tag = get16(next_pdu(PDU_R2T) + 10);
	rig_feed(pdu, rig_h2c(pdu, 1, tag, 0, data, 16384, false));
	assert_true(io_cancel(io_find(rig.q, 1), ST_ABORT_REQUESTED));
	rig_turn();
	assert_int_equal(next_status(1), ST_ABORT_REQUESTED);
	assert_int_equal(rig.pool->in_use, 0);
	rig_feed(pdu, rig_h2c(pdu, 1, tag, 16384, data, 16384, true));
	command(OPC_READ, 2, 4, 0, 0, 0);
	next_pdu(PDU_C2H_DATA);
	assert_int_equal(next_status(2), 0);
}

static void test_end_at_each_state(void **state)
{
	command(OPC_WRITE, 1, 4, 0, 63, 0); /* waits for data */
	rig.hold = true;
	command(OPC_READ, 2, 4, 0, 7, 0); /* at the drive */
	command(OPC_WRITE, 3, 4, 0, 7, 4096);
	assert_int_equal(rig.pool->in_use, 3);
	qpair_end(rig.q, END_LOST, "test");
	rig_turn();
	assert_int_equal(rig.ended, 0);
	assert_int_equal(rig.pool->in_use, 2);
	rig_drive(0);
	lose();
	rig_drive(0);
	rig_turn();
	assert_int_equal(rig.ended, 1);
}

static void test_read_lost_at_drive_of_ended_queue(void **state)
{
	rig.hold = true;
	command(OPC_READ, 1, 4, 0, 7, 0);
	qpair_end(rig.q, END_ORDERED, "test");
	lose();
	rig_drive(0);
	rig_turn();
	assert_int_equal(rig.ended, 1);
}

/* A protocol error: what is at work comes to its end, nothing of it is answered. */
static void test_term_with_pool(void **state)
{
	rig.hold = true;
	command(OPC_READ, 1, 4, 0, 7, 0);
	memset(pdu, 0x55, 72);
	rig_feed(pdu, 72);
	rig_drive(0);
	rig_turn();
	assert_int_equal(rig.out[0], PDU_C2H_TERM);
	assert_int_equal(rig.ended, 1);
}

/* -- the stream is never held up by what waits for its own end */

static void test_capsule_behind_open_transfers(void **state)
{
	pattern(16);
	for (uint16_t cid = 1; cid <= 4; cid++) /* all host memory that the queue may have */
		command(OPC_WRITE, cid, 3, cid * 256u, 255, 0);
	command(OPC_WRITE, 9, 3, 0, 7, 4096); /* sent before the host saw the R2Ts */
	for (uint16_t cid = 1; cid <= 4; cid++) {
		while (rig.out[0] == PDU_CAPSULE_RESP)
			next_pdu(PDU_CAPSULE_RESP);
		answer_r2t(true);
	}
	unsigned answers = 0;
	while (rig.out_len) {
		assert_int_equal(get16(next_pdu(PDU_CAPSULE_RESP) + 22) >> 1, 0);
		answers++;
	}
	assert_in_range(answers, 1, 5);
	assert_int_equal(rig.q->in_flight, 0);
	command(OPC_READ, 1, 3, 0, 7, 0);
	expect_data(1, data, 4096);
	assert_int_equal(next_status(1), 0);
}

int main(void)
{
	const struct CMUnitTest tests[] = {
		P(test_write_and_read), WITH(test_write_and_read, digests), P(test_pieces),
		WITH(test_pieces, digests), P(test_any_chunking), WITH(test_any_chunking, digests),
		WITH(test_no_success_flag, success), WITH(test_data_digest, digests), WITH(test_falls_back, small),
		WITH(test_waits, strictly), WITH(test_abort_while_waiting, strictly),
		WITH(test_end_while_waiting, strictly), WITH(test_lost_while_waiting, strictly),
		P(test_write_lost_before_data), P(test_write_lost_in_receive), P(test_write_reset_in_receive),
		P(test_write_unplugged_in_receive), P(test_write_lost_at_drive), P(test_write_reset_at_drive),
		P(test_write_unplugged_at_drive), P(test_write_error_with_lost_pool),
		P(test_write_error_is_the_drives), P(test_refused_by_kernel), P(test_read_lost_at_drive),
		P(test_read_unplugged_at_drive), P(test_read_error_with_lost_pool), P(test_read_refused_by_kernel),
		P(test_read_error_is_the_drives), P(test_read_lost_before_sent),
		P(test_read_lost_waits_for_host_memory), P(test_read_lost_in_mid_send),
		P(test_read_reset_in_mid_send), P(test_read_unplugged_in_mid_send), P(test_send_faults),
		P(test_send_faults_unplugged), P(test_read_lost_before_response), P(test_send_faults_without_pool),
		P(test_send_faults_for_ever), P(test_abort_in_transfer), P(test_end_at_each_state),
		P(test_read_lost_at_drive_of_ended_queue), P(test_term_with_pool),
		P(test_capsule_behind_open_transfers),
	};

	return cmocka_run_group_tests(tests, NULL, NULL);
}

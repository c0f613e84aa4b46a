/* SPDX-License-Identifier: BSD-3-Clause
 *
 * test_qpair.c: a queue on the rig: statuses, data, the faults that end a connection, memory that is given back.
 */
#include "crc32c.h"
#include "queue_host.h"

static void test_write_read_in_capsule(void **state)
{
	for (uint32_t nsid = 1; nsid <= 3; nsid += 2) {
		pattern(nsid);
		command(OPC_WRITE, 5, nsid, 8, 7, 4096);
		assert_int_equal(next_status(5), 0);
		command(OPC_READ, 6, nsid, 8, 7, 0);
		const uint8_t *p = next_pdu(PDU_C2H_DATA);
		assert_int_equal(get32(p + 16), 4096);
		assert_memory_equal(p + p[3], data, 4096);
		assert_int_equal(next_status(6), 0);
	}
}

static void test_write_by_r2t(void **state)
{
	for (uint32_t nsid = 1; nsid <= 3; nsid += 2) {
		pattern(nsid + 10);
		command(OPC_WRITE, 1, nsid, 0, 63, 0);
		answer_r2t(true);
		assert_int_equal(next_status(1), 0);
		command(OPC_READ, 2, nsid, 0, 63, 0);
		const uint8_t *p = next_pdu(PDU_C2H_DATA);
		assert_memory_equal(p + p[3], data, 32768);
		assert_int_equal(next_status(2), 0);
	}
}

/* Whole, and byte by byte, with a socket that takes little: the same answers. */
static void test_any_chunking(void **state)
{
	uint8_t sqe[64];
	size_t n;

	rig.send_most = 7;
	rig_sqe(sqe, OPC_WRITE, 1, 3, 0, 0, 512, 0x01);
	n = rig_capsule(pdu, sqe, data, 512);
	for (size_t i = 0; i < n; i++)
		rig_feed(pdu + i, 1);
	assert_int_equal(next_status(1), 0);
	rig_sqe(sqe, OPC_READ, 2, 3, 0, 0, 512, 0x5A);
	n = rig_capsule(pdu, sqe, NULL, 0);
	for (size_t i = 0; i < n; i++)
		rig_feed(pdu + i, 1);
	const uint8_t *p = next_pdu(PDU_C2H_DATA);
	assert_memory_equal(p + p[3], data, 512);
	assert_int_equal(next_status(2), 0);
}

static void test_null_reads_zeroes(void **state)
{
	command(OPC_READ, 1, 2, 0, 255, 0);
	const uint8_t *p = next_pdu(PDU_C2H_DATA);
	for (uint32_t i = 0; i < 128 * 1024; i++)
		assert_int_equal(p[p[3] + i], 0);
	assert_int_equal(next_status(1), 0);
}

static void test_statuses(void **state)
{
	command(OPC_READ, 1, 9, 0, 0, 0);
	assert_int_equal(next_status(1), ST_INVALID_NS | DNR);
	command(OPC_READ, 1, 1, RIG_BLOCKS, 0, 0);
	assert_int_equal(next_status(1), ST_LBA_RANGE | DNR);
	command(OPC_READ, 1, 1, UINT64_MAX, 0, 0);
	assert_int_equal(next_status(1), ST_LBA_RANGE | DNR);
	command(OPC_READ, 1, 1, 0, 256, 0);
	assert_int_equal(next_status(1), ST_INVALID_FIELD | DNR); /* MDTS */
	command(OPC_WRITE, 1, 1, 0, 1, 512);
	assert_int_equal(next_status(1), ST_SGL_LENGTH | DNR);
	rig_view(7, 3);
	command(OPC_READ, 1, 1, 0, 0, 0);
	assert_int_equal(next_status(1), ST_ANA_INACCESSIBLE);
	rig_view(7, 1);
	no_data(OPC_FLUSH, 1, NSID_ALL, 0, 0);
	assert_int_equal(next_status(1), 0);
}

static void test_duplicate_cid(void **state)
{
	command(OPC_WRITE, 1, 1, 0, 63, 0);
	next_pdu(PDU_R2T);
	command(OPC_READ, 1, 1, 0, 0, 0);
	assert_int_equal(next_status(1), ST_CID_CONFLICT | DNR);
	assert_int_equal(rig.q->in_flight, 1);
}

static void test_compare_and_zeroes(void **state)
{
	pattern(3);
	command(OPC_WRITE, 1, 1, 0, 7, 4096);
	assert_int_equal(next_status(1), 0);
	command(OPC_COMPARE, 2, 1, 0, 7, 4096);
	assert_int_equal(next_status(2), 0);
	no_data(OPC_WRITE_ZEROES, 3, 1, 0, 7);
	assert_int_equal(next_status(3), 0);
	command(OPC_COMPARE, 4, 1, 0, 7, 4096);
	assert_int_equal(next_status(4), ST_COMPARE_FAILURE | DNR);
	no_data(OPC_VERIFY, 5, 1, 0, 1000);
	assert_int_equal(next_status(5), 0);
}

static void fused(uint8_t opc, uint16_t cid, uint8_t fuse)
{
	uint8_t sqe[64];

	rig_sqe(sqe, opc, cid, 1, 0, 0, 512, 0x01);
	sqe[1] |= fuse;
	rig_feed(pdu, rig_capsule(pdu, sqe, data, 512));
}

static void test_fused(void **state)
{
	memset(data, 0, 512);
	fused(OPC_COMPARE, 1, FUSE_FIRST);
	assert_int_equal(rig.out_len, 0);
	data[0] = 1;
	fused(OPC_WRITE, 2, FUSE_SECOND);
	assert_int_equal(next_status(1), 0);
	assert_int_equal(next_status(2), 0);
	fused(OPC_COMPARE, 3, FUSE_FIRST);
	data[0] = 2;
	fused(OPC_WRITE, 4, FUSE_SECOND);
	assert_int_equal(next_status(3), 0);
	assert_int_equal(next_status(4), 0);
	fused(OPC_COMPARE, 5, FUSE_FIRST);
	fused(OPC_COMPARE, 6, FUSE_NORMAL);
	assert_int_equal(next_status(5), ST_MISSING_FUSED | DNR);
	assert_int_equal(next_status(6), 0);
	fused(OPC_WRITE, 7, FUSE_SECOND);
	assert_int_equal(next_status(7), ST_MISSING_FUSED | DNR);
	data[0] = 9; /* differs from the medium: the pair fails */
	fused(OPC_COMPARE, 8, FUSE_FIRST);
	fused(OPC_WRITE, 9, FUSE_SECOND);
	assert_int_equal(next_status(8), ST_COMPARE_FAILURE | DNR);
	assert_int_equal(next_status(9), ST_FAILED_FUSED);
}

static void test_abort(void **state)
{
	command(OPC_WRITE, 1, 1, 0, 63, 0);
	next_pdu(PDU_R2T);
	assert_true(io_cancel(io_find(rig.q, 1), ST_ABORT_REQUESTED));
	rig_turn();
	assert_int_equal(next_status(1), ST_ABORT_REQUESTED);
	assert_null(io_find(rig.q, 1));
}

/* What an aborted command's host still sends is swallowed. */
static void test_abort_swallows(void **state)
{
	const uint8_t *p;
	uint16_t tag;

	command(OPC_WRITE, 1, 1, 0, 63, 0);
	p = next_pdu(PDU_R2T);
	tag = get16(p + 10);
	io_cancel(io_find(rig.q, 1), ST_ABORT_REQUESTED);
	rig_turn();
	assert_int_equal(next_status(1), ST_ABORT_REQUESTED);
	rig_feed(pdu, rig_h2c(pdu, 1, tag, 0, data, 32768, true));
	command(OPC_READ, 2, 1, 0, 0, 0);
	next_pdu(PDU_C2H_DATA);
	assert_int_equal(next_status(2), 0);
}

static void expect_term(uint16_t fes, uint32_t fei)
{
	const uint8_t *p = next_pdu(PDU_C2H_TERM);

	assert_int_equal(get16(p + 8), fes);
	assert_int_equal(get32(p + 10), fei);
	assert_int_equal(rig.ended, 1);
}

static void bad_header(size_t at, uint8_t value, uint16_t fes, uint32_t fei)
{
	uint8_t sqe[64];

	rig_sqe(sqe, OPC_READ, 1, 1, 0, 0, 512, 0x5A);
	rig_capsule(pdu, sqe, NULL, 0);
	pdu[at] = value;
	rig_feed(pdu, 72);
	expect_term(fes, fei);
}

static void test_type(void **state)
{
	bad_header(0, 0x55, FES_HEADER_FIELD, FEI_TYPE);
}

static void test_second_ic(void **state)
{
	bad_header(0, PDU_ICREQ, FES_SEQUENCE, 0);
}

static void test_flags(void **state)
{
	bad_header(1, 0x10, FES_HEADER_FIELD, FEI_FLAGS);
}

static void test_hlen(void **state)
{
	bad_header(2, 71, FES_HEADER_FIELD, FEI_HLEN);
}

static void test_pdo(void **state)
{
	bad_header(3, 73, FES_HEADER_FIELD, FEI_PDO);
}

static void test_plen(void **state)
{
	bad_header(4, 71, FES_HEADER_FIELD, FEI_PLEN);
}

static void test_unknown_tag(void **state)
{
	rig_feed(pdu, rig_h2c(pdu, 1, 77, 0, data, 512, true));
	expect_term(FES_HEADER_FIELD, FEI_TTAG);
}

static void test_h2c_outside(void **state)
{
	uint16_t tag;

	command(OPC_WRITE, 1, 1, 0, 63, 0);
	tag = get16(next_pdu(PDU_R2T) + 10);
	rig_feed(pdu, rig_h2c(pdu, 1, tag, 32768 - 512, data, 1024, true));
	expect_term(FES_OUT_OF_RANGE, 0);
}

static void test_last_missing(void **state)
{
	command(OPC_WRITE, 1, 1, 0, 63, 0);
	answer_r2t(false);
	expect_term(FES_SEQUENCE, 0);
}

static void test_header_digest(void **state)
{
	uint8_t sqe[64];

	rig_sqe(sqe, OPC_READ, 1, 1, 0, 0, 512, 0x5A);
	size_t n = rig_capsule(pdu, sqe, NULL, 0);
	pdu[72] ^= 1;
	rig_feed(pdu, n);
	const uint8_t *p = next_pdu(PDU_C2H_TERM);
	assert_int_equal(get16(p + 8), FES_HDGST);
	assert_int_equal(get32(p + 10), get32(pdu + 72));
}

static void test_data_digest(void **state)
{
	uint8_t sqe[64];

	pattern(1);
	rig_sqe(sqe, OPC_WRITE, 1, 1, 0, 0, 512, 0x01);
	size_t n = rig_capsule(pdu, sqe, data, 512);
	pdu[n - 1] ^= 1;
	rig_feed(pdu, n);
	assert_int_equal(next_status(1), ST_TRANSIENT_TRANSPORT);
	command(OPC_READ, 2, 1, 0, 0, 0);
	const uint8_t *p = next_pdu(PDU_C2H_DATA);
	assert_int_equal(crc32c(0, p + p[3], 512), get32(p + p[3] + 512));
	for (int i = 0; i < 512; i++)
		assert_int_equal(p[p[3] + i], 0); /* never reached the medium */
}

/* A pool of one buffer: commands wait, in order, and all are answered. */
static void test_pool_exhausted(void **state)
{
	for (uint16_t cid = 0; cid < 30; cid++)
		command(OPC_READ, cid, 3, 0, 255, 0);
	for (uint16_t cid = 0; cid < 30; cid++) {
		next_pdu(PDU_C2H_DATA);
		assert_int_equal(next_status(cid), 0);
	}
}

static void test_namespace_gone(void **state)
{
	command(OPC_WRITE, 1, 1, 0, 63, 0);
	rig_view(6, 1);
	answer_r2t(true);
	assert_int_equal(next_status(1), ST_INVALID_NS | DNR);
}

static void test_error_bdev(void **state)
{
	bdev_error_inject(rig.bdevs[2], "read", "failure", 1, 0, 0);
	command(OPC_READ, 1, 3, 0, 0, 0);
	assert_int_equal(next_status(1), ST_READ_ERROR);
	bdev_error_inject(rig.bdevs[2], "write", "pending", 1, 0, 0);
	command(OPC_WRITE, 2, 3, 0, 0, 512);
	assert_int_equal(rig.out_len, 0);
	assert_false(io_cancel(io_find(rig.q, 2), ST_ABORT_REQUESTED)); /* the back end has it */
}

static void test_upcall(void **state)
{
	no_data(0x0D, 4, 1, 0, 0);
	assert_int_equal(rig.upcalls, 1);
	dp_upcall_complete(rig.token, ST_INVALID_OPCODE, true, 0, false);
	rig_turn();
	assert_int_equal(next_status(4), ST_INVALID_OPCODE | DNR);
	dp_upcall_complete(rig.token, 0, false, 0, false); /* a second answer finds nothing */
	rig_turn();
	assert_int_equal(rig.out_len, 0);
}

static void test_crc32c(void **state)
{
	assert_int_equal(crc32c(0, "123456789", 9), 0xE3069283u);
	assert_int_equal(crc32c(crc32c(0, "1234", 4), "56789", 5), 0xE3069283u);
}

static struct rig_options digests = { .hdgst = true, .ddgst = true, .flow_control = true, .hpda = 7, .cpda = 3 };

#define T(f) cmocka_unit_test_setup_teardown(f, setup, teardown)
#define TD(f) cmocka_unit_test_prestate_setup_teardown(f, setup, teardown, &digests)

int main(void)
{
	const struct CMUnitTest tests[] = {
		T(test_write_read_in_capsule), TD(test_write_read_in_capsule), T(test_write_by_r2t), TD(test_write_by_r2t),
		T(test_any_chunking), TD(test_any_chunking), T(test_null_reads_zeroes), T(test_statuses), T(test_duplicate_cid),
		T(test_compare_and_zeroes), T(test_fused), T(test_abort), T(test_abort_swallows), T(test_type), T(test_second_ic),
		T(test_flags), T(test_hlen), T(test_pdo), T(test_plen), T(test_unknown_tag), T(test_h2c_outside),
		T(test_last_missing), TD(test_header_digest), TD(test_data_digest), T(test_pool_exhausted),
		T(test_namespace_gone), T(test_error_bdev), T(test_upcall), T(test_crc32c),
	};

	return cmocka_run_group_tests(tests, NULL, NULL);
}

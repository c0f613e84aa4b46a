/* SPDX-License-Identifier: BSD-3-Clause
 *
 * test_pool_ring.c: the engine as it is, with a reactor's thread, its ring, a socket and files, and a pool whose memory can
 * be taken away: what the kernel says then (EFAULT) is the kernel's own.
 */
#include <errno.h>
#include <fcntl.h>
#include <sched.h>
#include <setjmp.h>
#include <stdarg.h>
#include <stdio.h>
#include <stdlib.h>
#include <sys/socket.h>
#include <unistd.h>

#include <cmocka.h>

#include "common.h"
#include "crc32c.h"
#include "pool_priv.h"
#include "pool_registry.h"
#include "spec.h"

#define FILE_BYTES (4u << 20)
#define BLOCK 4096u
#define BIG (128u << 10)

/* -- the control thread is the test's: what is posted runs while it waits */

struct posted {
	struct posted *next;
	void (*fn)(void *arg);
	void *arg;
};

static pthread_mutex_t lock = PTHREAD_MUTEX_INITIALIZER;
static pthread_cond_t there = PTHREAD_COND_INITIALIZER;
static struct posted *first, **last = &first;
static unsigned dones, closed;
static int done_rc;

static void post(void (*fn)(void *arg), void *arg)
{
	struct posted *p = malloc(sizeof(*p));

	if (!p)
		abort();
	*p = (struct posted){ NULL, fn, arg };
	pthread_mutex_lock(&lock);
	*last = p;
	last = &p->next;
	pthread_cond_signal(&there);
	pthread_mutex_unlock(&lock);
}

static void run_until(const unsigned *counter, unsigned value)
{
	while (*counter < value) {
		struct posted *p;

		pthread_mutex_lock(&lock);
		while (!first)
			pthread_cond_wait(&there, &lock);
		p = first;
		first = p->next;
		if (!first)
			last = &first;
		pthread_mutex_unlock(&lock);
		p->fn(p->arg);
		free(p);
	}
}

static void done(void *arg, int rc)
{
	done_rc = rc;
	dones++;
}

static void finish(void)
{
	run_until(&dones, 1);
	dones = 0;
}

static void on_closed(struct dp_queue_key key, const char *reason)
{
	closed++;
}

static void on_lost(const char *name, const char *why)
{
}

static const struct dp_events events = { .queue_closed = on_closed, .pool_lost = on_lost };

/* -- two drives, a pool, a queue */

static char files[2][32];
static int fds[2], sock;
static bool hdgst, ddgst;
static uint8_t *want, *got;

static void make_drive(unsigned i)
{
	struct dp_bdev_config config = { .kind = DP_BDEV_URING, .block_size = BLOCK, .direct = true };
	struct dp_bdev_facts facts;
	char err[DP_ERR_MAX], name[2] = { (char)('a' + i), 0 };

	snprintf(files[i], sizeof(files[i]), "pool_ring_%u.XXXXXX", i);
	fds[i] = mkstemp(files[i]);
	assert_true(fds[i] >= 0);
	assert_int_equal(ftruncate(fds[i], FILE_BYTES), 0);
	config.name = name;
	config.filename = files[i];
	assert_int_equal(dp_bdev_create(&config, &facts, err), 0);
}

static void make_pool(void)
{
	struct dp_pool_config config = { .name = "p", .kind = DP_POOL_EMULATED, .bytes = 129 * POOL_GRANULE };
	struct dp_pool_facts facts;
	char err[DP_ERR_MAX];

	assert_int_equal(dp_pool_create(&config, &facts, err), 0);
	assert_int_equal(dp_pool_allow("p", "a", true, err), 0);
	assert_int_equal(dp_pool_allow("p", "b", true, err), 0);
}

static void make_queue(void)
{
	struct dp_ns_view ns[2] = { { .nsid = 1, .bdev = "a", .ana_state = 1 }, { .nsid = 2, .bdev = "b", .ana_state = 1 } };
	struct dp_ctrlr_view view = { .key = 1, .mdts_bytes = 1 << 20, .copy_formats = 0xF, .host = "host", .num_ns = 2, .ns = ns };
	struct dp_queue queue = { .key = { 1, 1 },
				  .sqsize = 31,
				  .sq_flow_control = true,
				  .hdgst = hdgst,
				  .ddgst = ddgst,
				  .maxh2cdata = BIG,
				  .icd_max = 8192,
				  .peer = "test" };
	char err[DP_ERR_MAX];
	int pair[2], small = 8192;

	for (unsigned i = 0; i < 2; i++)
		ns[i].read_pool = ns[i].write_pool = ns[i].copy_pool = "p";
	assert_int_equal(dp_ctrlr_set(&view, done, NULL), 0);
	finish();
	assert_int_equal(socketpair(AF_UNIX, SOCK_STREAM | SOCK_CLOEXEC, 0, pair), 0);
	setsockopt(pair[1], SOL_SOCKET, SO_SNDBUF, &small, sizeof(small)); /* so that a Read's data stays on its way */
	queue.fd = pair[1];
	assert_int_equal(dp_queue_adopt(&queue, err), 0);
	sock = pair[0];
}

static int setup(void **state)
{
	struct dp_options options = { .pool_bytes = 16 << 20, .post = post, .events = &events };
	char err[DP_ERR_MAX];

	hdgst = ddgst = *state != NULL;
	closed = dones = 0;
	assert_int_equal(dp_start(&options, err), 0);
	for (unsigned i = 0; i < 2; i++)
		make_drive(i);
	make_pool();
	make_queue();
	for (uint32_t i = 0; i < FILE_BYTES; i++)
		want[i] = (uint8_t)(i * 13 + (i >> 8) + (i >> 16));
	return 0;
}

static void expect_all_free(void)
{
	struct dp_pool_stat *stats;
	size_t n = dp_pool_stats(&stats);

	assert_int_equal(n, 1);
	assert_int_equal(stats[0].buffers, 0);
	dp_pool_stats_free(stats, n);
}

static int teardown(void **state)
{
	close(sock);
	dp_stop(done, NULL);
	finish();
	while (first) {
		struct posted *p = first;

		first = p->next;
		if (!first)
			last = &first;
		p->fn(p->arg);
		free(p);
	}
	for (unsigned i = 0; i < 2; i++) {
		close(fds[i]);
		unlink(files[i]);
	}
	return 0;
}

static void take_memory_away(void)
{
	struct pool *pool = pool_find("p");

	assert_int_equal(pool_catch_sigbus(), 0); /* cmocka has put its own handler in the place of ours */
	assert_int_equal(ftruncate(pool->fd, 0), 0);
}

static bool is_lost(void)
{
	return pool_is_lost(pool_find("p"));
}

/* -- a host */

static uint8_t pdu[BIG + 4096];

static void put(const void *bytes, size_t len)
{
	const uint8_t *p = bytes;

	while (len) {
		ssize_t n = send(sock, p, len, MSG_NOSIGNAL);

		assert_true(n > 0);
		p += n;
		len -= (size_t)n;
	}
}

static void take(void *bytes, size_t len)
{
	assert_int_equal(recv(sock, bytes, len, MSG_WAITALL), len);
}

static void put_pdu(uint8_t type, uint8_t flags, uint32_t hlen, const void *bytes, uint32_t len)
{
	uint32_t hd = hdgst ? 4 : 0, dd = ddgst && len ? 4 : 0, crc;

	pdu[0] = type;
	pdu[1] = (uint8_t)(flags | (hd ? PDU_F_HDGST : 0) | (dd ? PDU_F_DDGST : 0));
	pdu[2] = (uint8_t)hlen;
	pdu[3] = (uint8_t)(len ? hlen + hd : 0);
	put32(pdu + 4, hlen + hd + len + dd);
	if (hd)
		put32(pdu + hlen, crc32c(0, pdu, hlen));
	put(pdu, hlen + hd);
	if (len)
		put(bytes, len);
	crc = htole32(len ? crc32c(0, bytes, len) : 0);
	if (dd)
		put(&crc, 4);
}

static void command(uint8_t opc, uint16_t cid, uint32_t nsid, uint64_t slba, uint32_t len)
{
	memset(pdu, 0, 72);
	pdu[8] = opc;
	pdu[9] = 0x40;
	put16(pdu + 10, cid);
	put32(pdu + 12, nsid);
	put32(pdu + 8 + 32, len);
	pdu[8 + 39] = 0x5A;
	put32(pdu + 8 + 40, (uint32_t)slba);
	put32(pdu + 8 + 48, len / BLOCK - 1);
	put_pdu(PDU_CAPSULE_CMD, 0, CMD_HLEN, NULL, 0);
}

static uint8_t header[64];

static uint32_t take_header(uint8_t type)
{
	uint32_t hd = hdgst ? 4 : 0;

	take(header, 24 + hd);
	assert_int_equal(header[0], type);
	if (hd)
		assert_int_equal(get32(header + 24), crc32c(0, header, 24));
	return get32(header + 16);
}

static uint16_t status_of(uint16_t cid)
{
	take_header(PDU_CAPSULE_RESP);
	assert_int_equal(get16(header + 20), cid);
	return get16(header + 22) >> 1;
}

static void take_data(uint32_t len)
{
	uint32_t crc;

	assert_int_equal(take_header(PDU_C2H_DATA), len);
	take(got, len);
	if (!ddgst)
		return;
	take(&crc, 4);
	assert_int_equal(le32toh(crc), crc32c(0, got, len));
}

static void h2c_header(uint32_t at, uint32_t len, bool final)
{
	uint16_t cid = get16(header + 8), tag = get16(header + 10);

	memset(pdu, 0, 24);
	put16(pdu + 8, cid);
	put16(pdu + 10, tag);
	put32(pdu + 12, at);
	put32(pdu + 16, len);
	put_pdu(PDU_H2C_DATA, final ? PDU_F_LAST : 0, DATA_HLEN, want + at, len);
}

static void answer_r2t(uint32_t len)
{
	take_header(PDU_R2T);
	for (uint32_t at = 0; at < len; at += min_u32(BIG, len - at))
		h2c_header(at, min_u32(BIG, len - at), at + BIG >= len);
}

static void expect_file(unsigned drive, uint64_t slba, uint32_t len)
{
	assert_int_equal(pread(fds[drive], got, len, (off_t)(slba * BLOCK)), len);
	assert_memory_equal(got, want, len);
}

static void staged(const char *bdev, struct dp_staging *staging)
{
	assert_int_equal(dp_bdev_staging(bdev, staging), 0);
}

/* -- tests */

static void test_write_and_read(void **state)
{
	struct dp_staging s;

	command(OPC_WRITE, 1, 1, 8, 3 * BIG);
	answer_r2t(3 * BIG);
	assert_int_equal(status_of(1), 0);
	expect_file(0, 8, 3 * BIG);
	command(OPC_READ, 2, 1, 8, 3 * BIG);
	take_data(3 * BIG);
	assert_memory_equal(got, want, 3 * BIG);
	assert_int_equal(status_of(2), 0);
	staged("a", &s);
	assert_int_equal(s.pool[pool_index(pool_find("p"))].bytes[POOL_READ], 3 * BIG);
	assert_int_equal(s.pool[pool_index(pool_find("p"))].bytes[POOL_WRITE], 3 * BIG);
	assert_int_equal(s.pool[0].bytes[POOL_READ] + s.pool[0].bytes[POOL_WRITE] + s.fallbacks, 0);
	expect_all_free();
}

/* Every second granule is somebody's: READV, WRITEV and recvmsg with many pieces. */
static void test_pieces(void **state)
{
	struct pool *pool = pool_find("p");
	struct pool_buf *held[129];
	struct pool_want one = { .bytes = POOL_GRANULE, .owner = 99 };
	struct dp_staging s;
	unsigned n = 0, kept = 0;

	while ((held[n] = pool_get(pool, &one)))
		n++;
	assert_int_equal(n, 128);
	for (unsigned i = 0; i < n; i++)
		if (((uintptr_t)held[i]->iov[0].iov_base - (uintptr_t)pool->base) / POOL_GRANULE & 1)
			pool_put(held[i]);
		else
			held[kept++] = held[i];
	command(OPC_WRITE, 1, 1, 8, BIG);
	answer_r2t(BIG);
	assert_int_equal(status_of(1), 0);
	expect_file(0, 8, BIG);
	command(OPC_READ, 2, 1, 8, BIG);
	take_data(BIG);
	assert_memory_equal(got, want, BIG);
	assert_int_equal(status_of(2), 0);
	staged("a", &s);
	assert_int_equal(s.pool[pool_index(pool)].bytes[POOL_READ], BIG);
	assert_int_equal(s.fallbacks, 0);
	while (kept)
		pool_put(held[--kept]);
	expect_all_free();
}

/* Every place at which the kernel meets memory that is gone. */
static void test_unplugged_before_data(void **state)
{
	struct dp_staging s;

	command(OPC_WRITE, 1, 1, 0, BIG);
	take_header(PDU_R2T);
	take_memory_away();
	h2c_header(0, BIG, true);
	assert_int_equal(status_of(1), ST_INTERRUPTED);
	assert_true(is_lost());
	command(OPC_WRITE, 1, 1, 0, BIG);
	answer_r2t(BIG);
	assert_int_equal(status_of(1), 0);
	expect_file(0, 0, BIG);
	staged("a", &s);
	assert_int_equal(s.interrupted, 1);
	expect_all_free();
}

static void test_unplugged_in_receive(void **state)
{
	command(OPC_WRITE, 1, 1, 0, BIG);
	take_header(PDU_R2T);
	uint8_t save[64];
	memcpy(save, header, sizeof(save));
	h2c_header(0, BIG / 2, false);
	command(OPC_READ, 2, 1, 0, BLOCK); /* when it is answered, the data before has arrived */
	take_data(BLOCK);
	assert_int_equal(status_of(2), 0);
	take_memory_away();
	memcpy(header, save, sizeof(save));
	h2c_header(BIG / 2, BIG / 2, true);
	assert_int_equal(status_of(1), ST_INTERRUPTED);
	assert_true(is_lost());
	expect_all_free();
}

static void test_unplugged_before_read(void **state)
{
	struct dp_staging s;

	assert_int_equal(pwrite(fds[0], want, BIG, 0), BIG);
	take_memory_away();
	command(OPC_READ, 1, 1, 0, BIG); /* it still has the pool: nobody knows yet */
	take_data(BIG);
	assert_memory_equal(got, want, BIG);
	assert_int_equal(status_of(1), 0);
	staged("a", &s);
	assert_int_equal(s.fallbacks, 1);
	assert_int_equal(s.interrupted, 0);
	assert_int_equal(s.pool[0].bytes[POOL_READ], BIG);
	expect_all_free();
}

static void test_unplugged_in_mid_send(void **state)
{
	assert_int_equal(pwrite(fds[0], want, 4 * BIG, 0), 4 * BIG);
	command(OPC_READ, 1, 1, 0, 4 * BIG);
	assert_int_equal(take_header(PDU_C2H_DATA), 4 * BIG);
	take(got, BIG);
	assert_memory_equal(got, want, BIG);
	take_memory_away();
	take(got, 3 * BIG);
	if (ddgst)
		take(got, 4);
	assert_int_equal(status_of(1), ST_INTERRUPTED);
	assert_true(is_lost());
	command(OPC_READ, 1, 1, 0, 4 * BIG);
	take_data(4 * BIG);
	assert_memory_equal(got, want, 4 * BIG);
	assert_int_equal(status_of(1), 0);
	expect_all_free();
}

/* The queue has taken so many bytes off its socket. */
static void wait_for_bytes(uint64_t bytes)
{
	uint64_t taken = 0;

	while (taken < bytes) {
		struct dp_queue_stat *stats;

		assert_int_equal(dp_queue_stats(&stats), 1);
		taken = stats[0].bytes_in;
		free(stats);
		sched_yield();
	}
	assert_int_equal(taken, bytes);
}

static void disconnect(uint16_t cid)
{
	memset(pdu, 0, 72);
	pdu[8] = OPC_FABRICS;
	pdu[9] = 0x40;
	put16(pdu + 10, cid);
	pdu[12] = FCTYPE_DISCONNECT;
	pdu[8 + 39] = 0x5A;
	put_pdu(PDU_CAPSULE_CMD, 0, CMD_HLEN, NULL, 0);
}

/* The Disconnect's response is the last, also behind a Read whose response has to wait for its data. */
static void test_disconnect_behind_read(void **state)
{
	assert_int_equal(pwrite(fds[0], want, 4 * BIG, 0), 4 * BIG);
	command(OPC_READ, 1, 1, 0, 4 * BIG);
	assert_int_equal(take_header(PDU_C2H_DATA), 4 * BIG);
	disconnect(2);
	wait_for_bytes(2 * (hdgst ? 76 : 72));
	take(got, 4 * BIG);
	assert_memory_equal(got, want, 4 * BIG);
	if (ddgst)
		take(got, 4);
	assert_int_equal(status_of(1), 0);
	assert_int_equal(status_of(2), 0);
	run_until(&closed, 1);
	expect_all_free();
}

/* The host does not read on: the queue can be closed all the same. */
static void test_close_in_mid_send(void **state)
{
	command(OPC_READ, 1, 1, 0, 4 * BIG);
	take_header(PDU_C2H_DATA);
	dp_queue_close((struct dp_queue_key){ .ctrlr = 1 }, done, NULL);
	finish();
	expect_all_free();
}

static void test_host_gone_in_receive(void **state)
{
	command(OPC_WRITE, 1, 1, 0, BIG);
	take_header(PDU_R2T);
	h2c_header(0, BIG / 2, false);
	close(sock);
	sock = -1;
	run_until(&closed, 1);
	expect_all_free();
}

/* A receive into memory of the pool is in progress when its command is aborted: it keeps the memory until it is over. */
static void test_abort_in_receive(void **state)
{
	struct pool_want one = { .bytes = POOL_GRANULE, .owner = 99 };
	struct pool_buf *held[129];
	uint8_t save[64];
	unsigned n = 0;

	command(OPC_WRITE, 1, 1, 0, BIG);
	take_header(PDU_R2T);
	memcpy(save, header, sizeof(save));
	memset(pdu, 0, 24);
	put16(pdu + 8, 1);
	put16(pdu + 10, get16(save + 10));
	put32(pdu + 16, BIG);
	pdu[0] = PDU_H2C_DATA;
	pdu[1] = PDU_F_LAST;
	pdu[2] = pdu[3] = DATA_HLEN;
	put32(pdu + 4, DATA_HLEN + BIG);
	if (hdgst) {
		pdu[1] |= PDU_F_HDGST | PDU_F_DDGST;
		pdu[3] += 4;
		put32(pdu + 4, DATA_HLEN + 8 + BIG);
		put32(pdu + 24, crc32c(0, pdu, 24));
	}
	put(pdu, hdgst ? 28 : 24);
	put(want, 50000);
	wait_for_bytes(hdgst ? 76 + 28 + 50000 : 72 + 24 + 50000);
	dp_queue_abort((struct dp_queue_key){ 1, 1 }, 1, done, NULL);
	finish();
	assert_int_equal(done_rc, 1);
	assert_int_equal(status_of(1), ST_ABORT_REQUESTED);
	while ((held[n] = pool_get(pool_find("p"), &one)))
		memset(held[n++]->iov[0].iov_base, 0x77, POOL_GRANULE); /* all that is free is somebody else's now */
	assert_int_equal(n, ddgst ? 128 : 96); /* with digests nothing is received there directly */
	put(want + 50000, BIG - 50000);
	if (ddgst) {
		uint32_t crc = htole32(crc32c(0, want, BIG));

		put(&crc, 4);
	}
	command(OPC_READ, 2, 1, 0, BLOCK);
	take_data(BLOCK);
	assert_int_equal(status_of(2), 0);
	while (n) {
		for (unsigned i = 0; i < POOL_GRANULE; i++)
			assert_int_equal(((uint8_t *)held[n - 1]->iov[0].iov_base)[i], 0x77);
		pool_put(held[--n]);
	}
	expect_all_free();
}

static void test_copy(void **state)
{
	uint8_t entry[64] = { 0 };
	struct dp_staging s;

	assert_int_equal(pwrite(fds[1], want, FILE_BYTES, 0), FILE_BYTES);
	for (unsigned round = 0; round < 2; round++) {
		put32(entry, 2);
		put32(entry + 8, 16);
		put16(entry + 16, 255);
		memset(pdu, 0, 72);
		pdu[8] = OPC_COPY;
		pdu[9] = 0x40;
		put16(pdu + 10, 1);
		put32(pdu + 12, 1);
		put32(pdu + 8 + 32, 32);
		pdu[8 + 39] = 0x01;
		put32(pdu + 8 + 40, 100);
		put32(pdu + 8 + 48, 2u << 8);
		put_pdu(PDU_CAPSULE_CMD, 0, CMD_HLEN, entry, 32);
		if (round == 1)
			take_memory_away(); /* in its midst, or before, or after */
		assert_int_equal(status_of(1), 0);
		assert_int_equal(pread(fds[0], got, 1 << 20, 100 * BLOCK), 1 << 20);
		assert_memory_equal(got, want + 16 * BLOCK, 1 << 20);
	}
	staged("a", &s);
	assert_int_equal(s.copy_bytes[DP_COPY_POOL] + s.copy_bytes[DP_COPY_HOST] + s.copy_bytes[DP_COPY_REFLINK], 2 << 20);
	expect_all_free();
}

#define T(f) cmocka_unit_test_setup_teardown(f, setup, teardown)
#define TD(f) cmocka_unit_test_prestate_setup_teardown(f, setup, teardown, (void *)1)

int main(void)
{
	const struct CMUnitTest tests[] = {
		T(test_write_and_read), TD(test_write_and_read), T(test_pieces), TD(test_pieces), T(test_unplugged_before_data),
		TD(test_unplugged_before_data), T(test_unplugged_in_receive), T(test_unplugged_before_read),
		TD(test_unplugged_before_read), T(test_unplugged_in_mid_send), TD(test_unplugged_in_mid_send),
		T(test_disconnect_behind_read), TD(test_disconnect_behind_read), T(test_close_in_mid_send),
		T(test_host_gone_in_receive), TD(test_host_gone_in_receive), T(test_abort_in_receive), TD(test_abort_in_receive),
		T(test_copy),
	};
	int rc;

	want = malloc(FILE_BYTES);
	got = malloc(FILE_BYTES);
	rc = want && got ? cmocka_run_group_tests(tests, NULL, NULL) : 1;
	free(want);
	free(got);
	return rc;
}

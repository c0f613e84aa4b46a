/* SPDX-License-Identifier: BSD-3-Clause
 *
 * test_zc.c: zero-copy sends. The test is the kernel: it keeps what a send points to, and looks again and again that not a
 * byte of it has changed, until it tells the queue that it is done with it.
 */
#include <errno.h>

#include "queue_host.h"

#include "qpair_zc.h"

#define BIG (128u << 10)
#define BLOCKS(bytes) ((uint16_t)((bytes) / 512 - 1))
#define SENDS 512u

/* What the "kernel" has. */
static struct sent {
	struct uop *op;
	unsigned n;
	struct iovec *iov;
	uint8_t *copy;
	size_t bytes;
} sent[SENDS];
static unsigned n_sent, n_zc, n_plain;
static bool no_more; /* sends end without a notification to come */
static ssize_t (*rig_sink)(struct qpair *q, const struct iovec *iov, unsigned n);

static ssize_t sink(struct qpair *q, const struct iovec *iov, unsigned n)
{
	bool zc = zc_used(q);
	ssize_t count = rig_sink(q, iov, n);
	size_t at = 0;
	struct sent *s;

	rig.r.cqe_flags = 0;
	if (!zc) {
		n_plain++;
		return count;
	}
	n_zc++;
	if (no_more)
		return count;
	assert_true(n_sent < SENDS);
	s = &sent[n_sent++];
	*s = (struct sent){ .op = zc_op(q), .iov = malloc(n * sizeof(*iov)), .bytes = count > 0 ? (size_t)count : 0 };
	s->copy = malloc(s->bytes + 1);
	for (unsigned i = 0; i < n && at < s->bytes; i++) {
		size_t len = iov[i].iov_len < s->bytes - at ? iov[i].iov_len : s->bytes - at;

		s->iov[s->n++] = (struct iovec){ iov[i].iov_base, len };
		memcpy(s->copy + at, iov[i].iov_base, len);
		at += len;
	}
	rig.r.cqe_flags = IORING_CQE_F_MORE;
	return count;
}

static void untouched(void)
{
	for (unsigned i = 0; i < n_sent; i++)
		for (size_t at = 0, k = 0; k < sent[i].n; at += sent[i].iov[k++].iov_len)
			assert_memory_equal(sent[i].iov[k].iov_base, sent[i].copy + at, sent[i].iov[k].iov_len);
}

static void notify(unsigned i, uint32_t res)
{
	struct sent s;

	untouched();
	assert_true(i < n_sent);
	s = sent[i];
	sent[i] = sent[--n_sent];
	free(s.iov);
	free(s.copy);
	rig.r.cqe_flags = IORING_CQE_F_NOTIF;
	s.op->fn(&rig.r, s.op, (int)res);
	rig_turn();
}

static void notify_all(void)
{
	while (n_sent)
		notify(0, 0);
}

static int zc_setup_mode(void **state, enum dp_zero_copy mode)
{
	setup(state);
	n_sent = n_zc = n_plain = 0;
	no_more = false;
	reactor_features.send_zc = true;
	zc_config = (struct zc_config){ mode, 16u << 10 };
	assert_true(zc_create(rig.q));
	rig_sink = rig.r.sink;
	rig.r.sink = sink;
	return 0;
}

static int zc_setup(void **state)
{
	return zc_setup_mode(state, DP_ZERO_COPY_AUTO);
}

static int zc_setup_always(void **state)
{
	return zc_setup_mode(state, DP_ZERO_COPY_ALWAYS);
}

static int zc_teardown(void **state)
{
	notify_all();
	return teardown(state);
}

/* Namespace 3 is read by way of staging memory; what is on it. */
static uint8_t *medium(void)
{
	uint32_t len = 1;

	return (uint8_t *)(uintptr_t)rig.bdevs[5]->ops->map(rig.bdevs[5], 0, &len);
}

static void fill(unsigned seed)
{
	for (size_t i = 0; i < RIG_BLOCKS * 512u; i++)
		medium()[i] = (uint8_t)(i * 7 + (i >> 9) + seed);
}

static void got(uint16_t cid, uint64_t at, uint32_t bytes)
{
	const uint8_t *p = next_pdu(PDU_C2H_DATA);

	assert_int_equal(get16(p + 8), cid);
	assert_int_equal(get32(p + 16), bytes);
	assert_memory_equal(p + p[3], medium() + at, bytes);
}

static size_t in_use(void)
{
	return rig.r.pool.units * STAGING_UNIT - rig.r.pool.free_bytes;
}

static void kept_until_notified(void **state)
{
	fill(1);
	command(OPC_READ, 1, 3, 0, BLOCKS(BIG), 0);
	got(1, 0, BIG);
	assert_int_equal(next_status(1), 0);
	assert_int_equal(n_zc, 1);
	assert_int_equal(in_use(), BIG);
	assert_int_equal(rig.q->staged, BIG);
	assert_int_equal(atomic_load(&rig.q->in_flight), 0); /* to the host it is over */
	fill(2);
	command(OPC_READ, 1, 3, 256, BLOCKS(BIG), 0);
	got(1, 256 * 512, BIG);
	assert_int_equal(next_status(1), 0);
	assert_int_equal(n_zc, 2);
	assert_int_equal(in_use(), 2 * BIG);
	notify(1, 0); /* the later one first */
	assert_int_equal(in_use(), BIG);
	notify(0, 0);
	assert_int_equal(in_use(), 0);
	assert_int_equal(rig.q->staged, 0);
	assert_int_equal(atomic_load(&rig.q->zc_bytes), 2 * (BIG + rig.q->c2h_pdo + RESP_HLEN));
	assert_int_equal(atomic_load(&rig.q->zc_copied), 0);
}

static void digests(void **state)
{
	fill(3);
	command(OPC_READ, 1, 3, 8, BLOCKS(BIG), 0);
	got(1, 8 * 512, BIG);
	assert_int_equal(next_status(1), 0);
	assert_int_equal(n_zc, 1);
	command(OPC_FLUSH, 2, 3, 0, 0, 0); /* headers and digests of the next answer lie elsewhere */
	untouched();
}

static void only_where_nobody_writes(void **state)
{
	uint8_t *disk;
	uint32_t len = BIG;

	command(OPC_READ, 1, 1, 0, 15, 0); /* malloc's own memory */
	next_pdu(PDU_C2H_DATA);
	assert_int_equal(next_status(1), 0);
	command(OPC_READ, 2, 3, 0, 15, 0); /* small */
	next_pdu(PDU_C2H_DATA);
	assert_int_equal(next_status(2), 0);
	assert_int_equal(n_zc, 0);
	assert_int_equal(n_plain, 2);
	command(OPC_READ, 3, 2, 0, BLOCKS(BIG), 0); /* null's zeroes never change */
	next_pdu(PDU_C2H_DATA);
	assert_int_equal(next_status(3), 0);
	assert_int_equal(n_zc, 1);
	assert_int_equal(rig.bdevs[1]->r[0].pins, 0);
	assert_int_equal(in_use(), 0);
	disk = (uint8_t *)(uintptr_t)rig.bdevs[0]->ops->map(rig.bdevs[0], 0, &len);
	memset(disk, 1, BIG);
	command(OPC_READ, 4, 1, 0, BLOCKS(BIG), 0); /* a copy of malloc's */
	memset(disk, 2, BIG);
	untouched();
	assert_int_equal(next_pdu(PDU_C2H_DATA)[rig.q->c2h_pdo], 1);
	assert_int_equal(next_status(4), 0);
	assert_int_equal(n_zc, 2);
	assert_int_equal(in_use(), BIG);
	notify(1, IORING_NOTIF_USAGE_ZC_COPIED); /* then it is of no use */
	command(OPC_READ, 5, 1, 0, BLOCKS(BIG), 0);
	next_pdu(PDU_C2H_DATA);
	assert_int_equal(next_status(5), 0);
	assert_int_equal(n_plain, 3);
	assert_int_equal(in_use(), 0);
}

/* Answers of all kinds that come in one round: those without a copy leave in sends of their own. */
static void in_one_round(void **state)
{
	static const struct {
		uint32_t nsid, bytes;
	} reads[] = { { 1, BIG }, { 3, BIG }, { 3, 512 }, { 3, BIG }, { 1, 512 }, { 2, BIG }, { 3, BIG } };
	size_t len = 0;

	fill(4);
	rig.q->staged_max = 2u << 20;
	for (uint16_t i = 0; i < DP_ARRAY_LEN(reads); i++) {
		uint8_t sqe[64];

		rig_sqe(sqe, OPC_READ, i, reads[i].nsid, 8u * i, BLOCKS(reads[i].bytes), reads[i].bytes, 0x5A);
		len += rig_capsule(pdu + len, sqe, NULL, 0);
	}
	rig_feed(pdu, len);
	for (uint16_t i = 0; i < DP_ARRAY_LEN(reads); i++) {
		if (reads[i].nsid == 3)
			got(i, 8u * i * 512, reads[i].bytes);
		else
			next_pdu(PDU_C2H_DATA);
		assert_int_equal(next_status(i), 0);
	}
	assert_int_equal(n_zc, 2);    /* those before the small one of malloc, and those after it */
	assert_int_equal(n_plain, 1);
	assert_int_equal(in_use(), 4 * BIG + 4096);
}

static void off_where_it_is_copied(void **state)
{
	bool always = zc_config.mode == DP_ZERO_COPY_ALWAYS;

	for (uint16_t i = 0; i < 3; i++) {
		command(OPC_READ, i, 3, 0, BLOCKS(BIG), 0);
		next_pdu(PDU_C2H_DATA);
		assert_int_equal(next_status(i), 0);
		if (n_sent)
			notify(0, IORING_NOTIF_USAGE_ZC_COPIED);
	}
	assert_int_equal(n_zc, always ? 3 : 1);
	assert_int_equal(atomic_load(&rig.q->zc_copied), (always ? 3u : 1u) * (BIG + rig.q->c2h_pdo + RESP_HLEN));
	assert_int_equal(atomic_load(&rig.r.zc_copied), atomic_load(&rig.q->zc_copied));
	assert_int_equal(atomic_load(&rig.q->zc_bytes), 0);
}

/* A socket that cannot; no memory that may be pinned. The notification of nothing may come, or not. */
static void refused(void **state)
{
	static const int errors[] = { -EOPNOTSUPP, -ENOMEM, -EINVAL };

	fill(5);
	for (uint16_t i = 0; i < DP_ARRAY_LEN(errors); i++) {
		no_more = i != 1;
		rig.send_error = errors[i];
		command(OPC_READ, i, 3, i, BLOCKS(BIG), 0);
		got(i, i * 512, BIG);
		assert_int_equal(next_status(i), 0);
		assert_int_equal(zc_on(rig.q), errors[i] == -ENOMEM);
		rig.q->direct_max = zc_config.min_bytes - 1;
		assert_int_equal(n_zc, i + 1);
		assert_int_equal(n_plain, i + 1);
		notify_all();
		assert_int_equal(in_use(), 0);
	}
	assert_int_equal(atomic_load(&rig.q->zc_bytes) + atomic_load(&rig.q->zc_copied), 0);
}

/* The socket takes a part; the rest goes on, copied if that has turned out meanwhile. */
static void in_parts(void **state)
{
	fill(6);
	rig.send_most = 50000;
	command(OPC_READ, 1, 3, 0, BLOCKS(BIG), 0);
	got(1, 0, BIG);
	assert_int_equal(next_status(1), 0);
	assert_int_equal(n_zc, 3);
	assert_int_equal(n_sent, 3);
	notify(2, 0);
	notify(0, IORING_NOTIF_USAGE_ZC_COPIED);
	assert_int_equal(in_use(), BIG);
	assert_true(zc_on(rig.q));
	notify(0, 0);
	assert_int_equal(in_use(), 0);
	assert_false(zc_on(rig.q));
	assert_int_equal(atomic_load(&rig.q->zc_copied), BIG + rig.q->c2h_pdo + RESP_HLEN);
}

/* The kernel is done with the first part before the rest is sent. */
static void notify_between(void)
{
	if (n_sent)
		notify(0, 0);
}

static void notified_in_between(void **state)
{
	fill(7);
	rig.q->staged_max = 2u << 20;
	rig.send_most = 50000;
	rig.on_send = notify_between;
	command(OPC_READ, 1, 3, 0, BLOCKS(BIG), 0);
	rig.on_send = NULL;
	got(1, 0, BIG);
	assert_int_equal(next_status(1), 0);
	assert_int_equal(n_sent, 1);
	assert_int_equal(in_use(), BIG);
	assert_int_equal(atomic_load(&rig.q->zc_bytes), 0); /* not before all of it is known */
	rig.send_most = 0;
	for (uint16_t i = 2; i < 5; i++) {
		command(OPC_READ, i, i & 1 ? 2 : 3, 8, BLOCKS(BIG), 0);
		next_pdu(PDU_C2H_DATA);
		assert_int_equal(next_status(i), 0);
		untouched();
	}
	notify_all();
	assert_int_equal(in_use(), 0);
	assert_int_equal(atomic_load(&rig.q->zc_bytes), 4 * (BIG + rig.q->c2h_pdo + RESP_HLEN));
}

/* A host that reads but whose acknowledgements do not come: half of the queue's share, and the rest is copied. */
static void never_notified(void **state)
{
	fill(8);
	rig.q->staged_max = 4 * BIG;
	for (uint16_t i = 0; i < 200; i++) {
		command(OPC_READ, i, 3, i, BLOCKS(BIG), 0);
		got(i, i * 512, BIG);
		assert_int_equal(next_status(i), 0);
		untouched();
	}
	assert_int_equal(n_zc, 2);
	assert_int_equal(in_use(), 2 * BIG);
	notify(0, 0);
	command(OPC_READ, 0, 3, 0, BLOCKS(BIG), 0);
	got(0, 0, BIG);
	assert_int_equal(next_status(0), 0);
	assert_int_equal(n_zc, 3);
}

static void more_sends_than_batches(void **state)
{
	for (uint16_t i = 0; i < 2 * ZC_BATCHES; i++) {
		command(OPC_READ, i, 2, 0, BLOCKS(BIG), 0);
		next_pdu(PDU_C2H_DATA);
		assert_int_equal(next_status(i), 0);
	}
	assert_int_equal(n_zc, ZC_BATCHES);
	notify(5, 0);
	command(OPC_READ, 0, 2, 0, BLOCKS(BIG), 0);
	next_pdu(PDU_C2H_DATA);
	assert_int_equal(next_status(0), 0);
	assert_int_equal(n_zc, ZC_BATCHES + 1);
}

static void ends_when_notified(void **state)
{
	enum ending how = (enum ending)(uintptr_t)*state;

	*state = NULL;
	zc_setup(state);
	fill(9);
	rig.q->staged_max = 2u << 20;
	for (uint16_t i = 0; i < 3; i++)
		command(OPC_READ, i, 3, i, BLOCKS(BIG), 0);
	rig.q->hurry = true; /* TERM: nobody waits for the peer to close */
	qpair_end(rig.q, how, "the test");
	rig_turn();
	assert_int_equal(rig.ended, 0);
	notify(1, 0);
	assert_int_equal(rig.ended, 0);
	rig.q->ops->closing(rig.q); /* the time is over: the rig has no timer */
	assert_true(rig.q->zc->aborted);
	assert_int_equal(rig.ended, 0);
	notify(0, 0);
	assert_int_equal(rig.ended, 0);
	notify(0, IORING_NOTIF_USAGE_ZC_COPIED);
	assert_int_equal(rig.ended, 1);
	zc_teardown(state);
}

/* The connection breaks in the middle of a send, of which a part is the kernel's still. */
static void breaks(void **state)
{
	fill(10);
	rig.send_most = 50000;
	rig.send_error = 0;
	command(OPC_READ, 1, 3, 0, BLOCKS(BIG), 0);
	rig.send_error = -ECONNRESET;
	command(OPC_READ, 2, 3, 0, BLOCKS(BIG), 0);
	assert_int_equal(rig.ended, 0);
	assert_string_equal(rig.q->reason, "Connection reset by peer");
	untouched();
	notify_all();
	assert_int_equal(rig.ended, 1);
	assert_int_equal(in_use(), 0);
}

static uint32_t seed;

static uint32_t rnd(uint32_t n)
{
	seed = seed * 1664525u + 1013904223u;
	return (seed >> 8) % n;
}

/* Everything at once: sizes, namespaces, parts, and notifications in any order. */
static void at_random(void **state)
{
	static const uint32_t sizes[] = { 512, 4096, 16384, 65536, BIG };

	for (seed = 1; rig.q->ending == END_NONE;) {
		uint32_t bytes = sizes[rnd(DP_ARRAY_LEN(sizes))], nsid = 1 + rnd(3), at = rnd(RIG_BLOCKS - 256);

		rig.send_most = rnd(3) ? 0 : 1000 + rnd(100000);
		if (rnd(4) == 0)
			fill(rnd(256));
		command(OPC_READ, (uint16_t)rnd(65536), nsid, at, BLOCKS(bytes), 0);
		if (nsid == 3)
			got(get16(rig.out + 8), at * 512ull, bytes);
		else
			next_pdu(PDU_C2H_DATA);
		next_pdu(PDU_CAPSULE_RESP);
		untouched();
		while (n_sent && (rnd(3) == 0 || n_sent > SENDS - 300))
			notify(rnd(n_sent), 0);
		if (n_zc > 300)
			qpair_end(rig.q, END_LOST, "enough");
	}
	assert_true(n_plain > 200);
	rig_turn();
	assert_int_equal(rig.ended, n_sent == 0);
	notify_all();
	assert_int_equal(rig.ended, 1);
}

#define ZC(name) cmocka_unit_test_setup_teardown(name, zc_setup, zc_teardown)

int main(void)
{
	static struct rig_options both = { .hdgst = true, .ddgst = true, .flow_control = true, .hpda = 3 };
	const struct CMUnitTest tests[] = {
		ZC(kept_until_notified),
		cmocka_unit_test_prestate_setup_teardown(digests, zc_setup, zc_teardown, &both),
		ZC(only_where_nobody_writes),
		ZC(in_one_round),
		ZC(off_where_it_is_copied),
		cmocka_unit_test_setup_teardown(off_where_it_is_copied, zc_setup_always, zc_teardown),
		ZC(refused),
		ZC(in_parts),
		ZC(notified_in_between),
		ZC(never_notified),
		ZC(more_sends_than_batches),
		cmocka_unit_test_prestate(ends_when_notified, (void *)END_ORDERED),
		cmocka_unit_test_prestate(ends_when_notified, (void *)END_LOST),
		cmocka_unit_test_prestate(ends_when_notified, (void *)END_TERM),
		ZC(breaks),
		ZC(at_random),
	};

	return cmocka_run_group_tests(tests, NULL, NULL);
}

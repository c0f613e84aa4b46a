/* SPDX-License-Identifier: BSD-3-Clause
 *
 * test_reactor.c: a reactor's thread with its ring, and queues that exchange one command at a time ("hot"): they are
 * served whatever the ring says, give way when there are too many, and can end at any moment.
 */
#include <errno.h>
#include <sched.h>
#include <setjmp.h>
#include <stdarg.h>
#include <stdio.h>
#include <stdlib.h>
#include <sys/socket.h>
#include <sys/time.h>
#include <time.h>
#include <unistd.h>

#include <cmocka.h>

#include "common.h"
#include "engine_priv.h"
#include "spec.h"

#define BLOCK 512u
#define QUEUES 5u
#define ROUNDS 3000
#define PATIENCE_S 20

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
	assert_int_equal(rc, 0);
	dones++;
}

static void on_closed(struct dp_queue_key key, const char *reason)
{
	closed++;
}

static const struct dp_events events = { .queue_closed = on_closed };

/* -- a target with a null bdev, and hosts */

static int socks[QUEUES];

static void adopt(unsigned i)
{
	struct dp_queue queue = { .key = { 1, (uint16_t)(i + 1) },
				  .sqsize = 31,
				  .sq_flow_control = true,
				  .maxh2cdata = 128u << 10,
				  .icd_max = 8192,
				  .slot = i,
				  .peer = "test" };
	const struct timeval patience = { .tv_sec = PATIENCE_S };
	char err[DP_ERR_MAX];
	int pair[2];

	assert_int_equal(socketpair(AF_UNIX, SOCK_STREAM | SOCK_CLOEXEC, 0, pair), 0);
	assert_int_equal(setsockopt(pair[0], SOL_SOCKET, SO_RCVTIMEO, &patience, sizeof(patience)), 0);
	queue.fd = pair[1];
	assert_int_equal(dp_queue_adopt(&queue, err), 0);
	socks[i] = pair[0];
}

static int setup(void **state)
{
	const unsigned *spin_us = *state;
	struct dp_options options = { .pool_bytes = 2 << 20, .spin_us = *spin_us, .post = post, .events = &events };
	struct dp_bdev_config bdev = { .kind = DP_BDEV_NULL, .name = "n", .block_size = BLOCK, .num_blocks = 1000 };
	struct dp_ns_view ns = { .nsid = 1, .bdev = "n", .ana_state = 1 };
	struct dp_ctrlr_view view = { .key = 1, .mdts_bytes = 1 << 20, .copy_formats = 0xF, .host = "h", .num_ns = 1, .ns = &ns };
	struct dp_bdev_facts facts;
	char err[DP_ERR_MAX];

	closed = dones = 0;
	assert_int_equal(dp_start(&options, err), 0);
	assert_int_equal(dp_bdev_create(&bdev, &facts, err), 0);
	assert_int_equal(dp_ctrlr_set(&view, done, NULL), 0);
	run_until(&dones, 1);
	for (unsigned i = 0; i < QUEUES; i++)
		adopt(i);
	return 0;
}

static int teardown(void **state)
{
	for (unsigned i = 0; i < QUEUES; i++)
		close(socks[i]);
	dones = 0;
	dp_stop(done, NULL);
	run_until(&dones, 1);
	while (first) {
		struct posted *p = first;

		first = p->next;
		if (!first)
			last = &first;
		p->fn(p->arg);
		free(p);
	}
	return 0;
}

static void ask(unsigned queue, uint16_t cid)
{
	uint8_t pdu[CMD_HLEN] = { PDU_CAPSULE_CMD, 0, CMD_HLEN };

	put32(pdu + 4, CMD_HLEN);
	pdu[8] = OPC_READ;
	pdu[9] = 0x40;
	put16(pdu + 10, cid);
	put32(pdu + 12, 1);
	put32(pdu + 40, BLOCK);
	pdu[47] = 0x5A;
	put32(pdu + 48, cid % 1000);
	assert_int_equal(send(socks[queue], pdu, sizeof(pdu), MSG_NOSIGNAL), sizeof(pdu));
}

static void answer(unsigned queue, uint16_t cid)
{
	uint8_t got[DATA_HLEN + BLOCK + RESP_HLEN];

	assert_int_equal(recv(socks[queue], got, sizeof(got), MSG_WAITALL), sizeof(got));
	assert_int_equal(got[0], PDU_C2H_DATA);
	assert_int_equal(got[DATA_HLEN + BLOCK], PDU_CAPSULE_RESP);
	assert_int_equal(get16(got + DATA_HLEN + BLOCK + 20), cid);
	assert_int_equal(get16(got + DATA_HLEN + BLOCK + 22), 0);
}

/* As the kernel leaves it when it is late: set, and nothing to do. */
static void leave_a_stale_flag(void)
{
	struct reactor *r = engine_reactor(0);

	__atomic_fetch_or((unsigned *)r->ring.sq.kflags, IORING_SQ_TASKRUN, __ATOMIC_SEQ_CST);
}

/* -- tests */

static void one_at_a_time(void **state)
{
	for (int i = 0; i < ROUNDS; i++) {
		ask(0, (uint16_t)i);
		answer(0, (uint16_t)i);
	}
}

static void a_stale_flag_stops_nobody(void **state)
{
	for (int i = 0; i < ROUNDS; i++) {
		if (i % 3 == 0)
			leave_a_stale_flag();
		ask(0, (uint16_t)i);
		if (i % 5 == 0)
			leave_a_stale_flag();
		answer(0, (uint16_t)i);
		if (i % 7 == 0)
			leave_a_stale_flag();
	}
}

static void a_stale_flag_lets_it_sleep(void **state)
{
	struct reactor *r = engine_reactor(0);
	time_t end = time(NULL) + PATIENCE_S;

	ask(0, 1);
	answer(0, 1);
	leave_a_stale_flag();
	while (!atomic_load(&r->asleep)) {
		assert_true(time(NULL) < end);
		sched_yield();
	}
	ask(0, 2); /* and wakes */
	answer(0, 2);
}

static void more_than_can_be_hot(void **state)
{
	for (unsigned active = 1; active <= QUEUES; active++)
		for (int i = 0; i < ROUNDS / 4; i++) {
			for (unsigned q = 0; q < active; q++)
				ask(q, (uint16_t)i);
			if (i % 16 == 0)
				leave_a_stale_flag();
			for (unsigned q = 0; q < active; q++)
				answer(q, (uint16_t)i);
		}
}

/* By the host and by the control plane, right after an answer: while the reactor asks its socket. */
static void a_hot_queue_ends(void **state)
{
	for (int i = 0; i < ROUNDS / 10; i++) {
		unsigned queue = (unsigned)i % 2;

		ask(2, (uint16_t)i);
		ask(queue, (uint16_t)i);
		answer(queue, (uint16_t)i);
		if (i % 4 < 2) {
			unsigned before = closed;

			close(socks[queue]);
			run_until(&closed, before + 1);
		} else {
			dones = 0;
			dp_queue_close((struct dp_queue_key){ 1, (uint16_t)(queue + 1) }, done, NULL);
			run_until(&dones, 1);
			close(socks[queue]);
		}
		answer(2, (uint16_t)i);
		adopt(queue);
	}
}

#define TEST(name, spin) cmocka_unit_test_prestate_setup_teardown(name, setup, teardown, spin)

int main(void)
{
	static unsigned no_spin = 0, usual = 20, forever = 1000000;
	const struct CMUnitTest tests[] = {
		TEST(one_at_a_time, &no_spin),
		TEST(one_at_a_time, &usual),
		TEST(one_at_a_time, &forever),
		TEST(a_stale_flag_stops_nobody, &no_spin),
		TEST(a_stale_flag_stops_nobody, &usual),
		TEST(a_stale_flag_stops_nobody, &forever),
		TEST(a_stale_flag_lets_it_sleep, &usual),
		TEST(more_than_can_be_hot, &no_spin),
		TEST(more_than_can_be_hot, &usual),
		TEST(a_hot_queue_ends, &usual),
		TEST(a_hot_queue_ends, &forever),
	};

	return cmocka_run_group_tests(tests, NULL, NULL);
}

/* SPDX-License-Identifier: BSD-3-Clause
 *
 * test_watch.c: a file that is lost, comes back or changes its size; a Flush that failed. On the real engine and a real
 * ring; completions of fdatasync are made up, as no file fails it on demand.
 */
#include <errno.h>
#include <fcntl.h>
#include <linux/magic.h>
#include <setjmp.h>
#include <stdarg.h>
#include <stdio.h>
#include <stdlib.h>
#include <sys/vfs.h>
#include <unistd.h>

#include <cmocka.h>

#include "bdev.h"
#include "engine.h"

#define BLOCKS 64u

static struct {
	char path[32], names[8][32];
	bool lost[8];
	struct dp_bdev_facts facts;
	unsigned n;
	pthread_mutex_t lock;
	struct {
		void (*fn)(void *arg);
		void *arg;
	} posted[64];
	unsigned n_posted;
} t = { .lock = PTHREAD_MUTEX_INITIALIZER };

/* -- the control thread is the test */

static void post(void (*fn)(void *arg), void *arg)
{
	pthread_mutex_lock(&t.lock);
	assert_true(t.n_posted < 64);
	t.posted[t.n_posted].fn = fn;
	t.posted[t.n_posted++].arg = arg;
	pthread_mutex_unlock(&t.lock);
}

static void serve(void)
{
	for (unsigned i = 0;; i++) {
		void (*fn)(void *arg) = NULL;
		void *arg = NULL;

		pthread_mutex_lock(&t.lock);
		if (i < t.n_posted) {
			fn = t.posted[i].fn;
			arg = t.posted[i].arg;
		} else {
			t.n_posted = 0;
		}
		pthread_mutex_unlock(&t.lock);
		if (!fn)
			return;
		fn(arg);
	}
}

static void on_changed(const char *name, const struct dp_bdev_facts *facts)
{
	assert_true(t.n < 8);
	snprintf(t.names[t.n], sizeof(t.names[t.n]), "%s", name);
	t.lost[t.n++] = !facts;
	if (facts)
		t.facts = *facts;
}

static bool is_over;

static void over(void *arg, int rc)
{
	is_over = true;
}

static void make(const char *name, enum dp_bdev_kind kind, const char *base)
{
	const struct dp_bdev_config config = { .kind = kind,
					       .name = name,
					       .block_size = base ? 0 : 512,
					       .filename = t.path,
					       .fallocate = true,
					       .base = base };
	struct dp_bdev_facts facts;
	char err[DP_ERR_MAX];

	assert_int_equal(dp_bdev_create(&config, &facts, err), 0);
}

static int setup(void **state)
{
	static const struct dp_events events = { .bdev_changed = on_changed };
	const struct dp_options options = { .pool_bytes = 4u << 20, .post = post, .events = &events };
	char err[DP_ERR_MAX];
	int fd;

	t.n = 0;
	snprintf(t.path, sizeof(t.path), "/tmp/test_watch.XXXXXX");
	fd = mkstemp(t.path);
	assert_true(fd >= 0);
	assert_int_equal(ftruncate(fd, BLOCKS * 512), 0);
	close(fd);
	assert_int_equal(dp_start(&options, err), 0);
	make("f", DP_BDEV_URING, NULL);
	return 0;
}

static int teardown(void **state)
{
	is_over = false;
	dp_stop(over, NULL);
	while (!is_over)
		serve();
	unlink(t.path);
	return 0;
}

static void expect(const char *name, bool lost)
{
	assert_true(t.n > 0);
	assert_string_equal(t.names[0], name);
	assert_int_equal(t.lost[0], lost);
	t.n--;
	memmove(t.names, t.names + 1, sizeof(t.names) - sizeof(t.names[0]));
	memmove(t.lost, t.lost + 1, sizeof(t.lost) - sizeof(t.lost[0]));
}

static void test_size(void **state)
{
	struct dp_bdev_facts facts;
	char err[DP_ERR_MAX];

	dp_bdev_check();
	assert_int_equal(t.n, 0);
	assert_int_equal(truncate(t.path, 100 * 512 + 511), 0);
	dp_bdev_check();
	expect("f", false);
	assert_int_equal(t.facts.num_blocks, 100);
	dp_bdev_check();
	assert_int_equal(t.n, 0); /* once */
	assert_int_equal(truncate(t.path, 10 * 512), 0);
	dp_bdev_check();
	expect("f", false);
	assert_int_equal(t.facts.num_blocks, 10);
	/* who has asked for it is not told again */
	assert_int_equal(truncate(t.path, 20 * 512), 0);
	assert_int_equal(dp_bdev_resize("f", 0, &facts, err), 0);
	assert_int_equal(facts.num_blocks, 20);
	dp_bdev_check();
	assert_int_equal(t.n, 0);
}

/* What lies on it goes and comes with it, the uppermost first. */
static void test_lost_with_layers(void **state)
{
	make("d", DP_BDEV_DELAY, "f");
	make("e", DP_BDEV_ERROR, "d");
	assert_int_equal(truncate(t.path, 0), 0);
	dp_bdev_check();
	expect("e", true);
	expect("d", true);
	expect("f", true);
	dp_bdev_check();
	assert_int_equal(t.n, 0);
	assert_int_equal(truncate(t.path, 7 * 512), 0);
	dp_bdev_check();
	expect("e", false);
	expect("d", false);
	expect("f", false);
	assert_int_equal(t.facts.num_blocks, 7);
}

/* -- operations: of a bdev of its own, on a ring that is never submitted; the test makes the completions up */

static struct {
	struct reactor r;
	struct bdev *bdev;
	struct bdev_io io;
	int rc, second;
	bool direct, in_memory; /* in_memory: a tmpfs needs no ring */
} d;

static void io_over(struct bdev_io *io, int rc)
{
	d.rc = rc;
}

static void second_over(struct bdev_io *io, int rc)
{
	d.second = rc;
}

static int setup_ring(void **state)
{
	const bool direct = *state;
	const struct dp_bdev_config config = {
		.kind = DP_BDEV_URING, .name = "g", .block_size = 512, .filename = t.path, .direct = direct
	};
	char err[DP_ERR_MAX];
	struct statfs fs;
	int rc;

	setup(state);
	memset(&d, 0, sizeof(d));
	d.direct = direct;
	d.in_memory = statfs(t.path, &fs) == 0 && fs.f_type == TMPFS_MAGIC;
	d.r.efd = -1;
	assert_int_equal(io_uring_queue_init(8, &d.r.ring, 0), 0);
	d.bdev = bdev_open(&config, NULL, 1, &rc, err);
	assert_non_null(d.bdev);
	return 0;
}

static int teardown_ring(void **state)
{
	bdev_destroy(d.bdev);
	io_uring_queue_exit(&d.r.ring);
	return teardown(state);
}

/* Its result, with those of the operations in the ring given. */
static int run(enum bdev_op op, bool fua, const int *results, unsigned n)
{
	static uint8_t buf[4096] __attribute__((aligned(4096)));
	int rc;

	d.io = (struct bdev_io){ .bdev = d.bdev, .op = op, .fua = fua, .length = op == BDEV_FLUSH ? 0 : 4096, .buf = buf, .done = io_over };
	d.rc = 1;
	rc = bdev_submit(&d.r, &d.io);
	if (rc != BDEV_PENDING)
		return rc;
	for (unsigned i = 0; i < n; i++) {
		assert_int_equal(d.rc, 1);
		d.io.uop.fn(&d.r, &d.io.uop, results[i]);
	}
	assert_int_not_equal(d.rc, 1);
	/* what was prepared is not wanted by the kernel */
	d.r.ring.sq.sqe_tail = d.r.ring.sq.sqe_head;
	return d.rc;
}

#define RUN(op, fua, ...) run(op, fua, (const int[]){ __VA_ARGS__ }, sizeof((const int[]){ __VA_ARGS__ }) / sizeof(int))

/* The kernel tells one caller. The next one, another host, must not be told that all is well. */
static void test_failed_flush_is_remembered(void **state)
{
	struct bdev *bdev = d.bdev;

	if (d.in_memory)
		skip();
	assert_int_equal(RUN(BDEV_WRITE, false, 4096), 0);
	assert_int_equal(RUN(BDEV_FLUSH, false, -EIO), -EIO);
	assert_true(atomic_load(&bdev->flush_failed));
	assert_int_equal(RUN(BDEV_FLUSH, false, 0), -EIO);
	assert_int_equal(RUN(BDEV_WRITE, true, 4096), -EIO);
	assert_int_equal(RUN(BDEV_ZERO, true, 0, 0), -EIO);
	assert_int_equal(RUN(BDEV_WRITE, false, 4096), 0); /* promises nothing */
	assert_int_equal(RUN(BDEV_READ, false, 4096), 0);
	assert_int_equal(RUN(BDEV_FLUSH, false, 0), -EIO);
	/* rescan: somebody has looked */
	assert_int_equal(bdev->ops->resize(bdev, 0), 0);
	assert_int_equal(RUN(BDEV_FLUSH, false, 0), 0);
	assert_int_equal(RUN(BDEV_WRITE, true, 4096), 0);
}

/* However it comes to light: FUA as RWF_DSYNC, as fdatasync behind the write, behind zeroes. */
static void test_failed_fua_is_remembered(void **state)
{
	static const int errors[] = { -EIO, -EREMOTEIO, -ETIMEDOUT };
	struct bdev *bdev = d.bdev;

	if (!d.direct || d.in_memory)
		skip();
	for (unsigned i = 0; i < sizeof(errors) / sizeof(errors[0]); i++) {
		assert_int_equal(RUN(BDEV_WRITE, true, errors[i]), errors[i]);
		assert_int_equal(RUN(BDEV_FLUSH, false, 0), -EIO);
		assert_int_equal(bdev->ops->resize(bdev, 0), 0);
	}
	assert_int_equal(RUN(BDEV_WRITE, true, -EOPNOTSUPP, 4096, -EIO), -EIO); /* no RWF_DSYNC here: fdatasync */
	assert_int_equal(RUN(BDEV_FLUSH, false, 0), -EIO);
	assert_int_equal(bdev->ops->resize(bdev, 0), 0);
	assert_int_equal(RUN(BDEV_ZERO, true, 4096, -EIO), -EIO);
	assert_int_equal(RUN(BDEV_FLUSH, false, 0), -EIO);
}

/* One after the other, or the one that overlaps the failed one would be told that all is well. */
static void test_syncs_take_turns(void **state)
{
	struct bdev_io second = { .bdev = d.bdev, .op = BDEV_FLUSH, .done = second_over };

	if (d.in_memory)
		skip();
	for (int rc = 0; rc >= -EIO; rc -= EIO) {
		unsigned before = d.r.ring.sq.sqe_tail;

		d.second = d.rc = 1;
		d.io = (struct bdev_io){ .bdev = d.bdev, .op = BDEV_FLUSH, .done = io_over };
		assert_int_equal(bdev_submit(&d.r, &d.io), BDEV_PENDING);
		assert_int_equal(bdev_submit(&d.r, &second), BDEV_PENDING);
		assert_int_equal(d.r.ring.sq.sqe_tail - before, 1);
		d.io.uop.fn(&d.r, &d.io.uop, rc);
		assert_int_equal(d.rc, rc);
		assert_int_equal(d.second, 1);
		reactor_run_inbox(&d.r);
		if (rc == 0) {
			assert_int_equal(d.r.ring.sq.sqe_tail - before, 2);
			second.uop.fn(&d.r, &second.uop, 0);
		}
		assert_int_equal(d.second, rc);
	}
	/* what is written through the page cache is made durable by fdatasync, whose error is ours alone */
	assert_int_equal(d.bdev->ops->resize(d.bdev, 0), 0);
	assert_int_equal(RUN(BDEV_WRITE, true, 4096, 0), 0);
	assert_int_equal(RUN(BDEV_WRITE, true, -ENOSPC), -ENOSPC);
	assert_int_equal(RUN(BDEV_WRITE, true, -EIO), -EIO);
	assert_false(atomic_load(&d.bdev->flush_failed));
	assert_int_equal(RUN(BDEV_WRITE, true, 4096, -ENOSPC), -ENOSPC);
	assert_true(atomic_load(&d.bdev->flush_failed));
}

static void test_what_loses_nothing(void **state)
{
	static const int errors[] = { -EAGAIN, -ENOMEM, -ECANCELED };

	if (d.in_memory)
		skip();
	assert_int_equal(RUN(BDEV_WRITE, false, -EIO), -EIO); /* its host knows */
	assert_int_equal(RUN(BDEV_READ, false, -EIO), -EIO);
	assert_int_equal(RUN(BDEV_WRITE, true, -ENOSPC), -ENOSPC);
	for (unsigned i = 0; i < sizeof(errors) / sizeof(errors[0]); i++)
		assert_int_equal(RUN(BDEV_FLUSH, false, errors[i]), errors[i]);
	assert_int_equal(RUN(BDEV_FLUSH, false, -EINTR, 0), 0);
	assert_false(atomic_load(&d.bdev->flush_failed));
}

/* A failed I/O makes the engine look at once. */
static void test_error_is_looked_into(void **state)
{
	if (d.in_memory)
		skip();
	assert_int_equal(truncate(t.path, 32 * 512), 0);
	assert_int_equal(RUN(BDEV_READ, false, 0), -EIO); /* the file ends before */
	assert_int_equal(t.n, 0);
	serve();
	expect("f", false);
	assert_int_equal(t.facts.num_blocks, 32);
}

int main(void)
{
#define RING(f) cmocka_unit_test_prestate_setup_teardown(f, setup_ring, teardown_ring, t.path) /* O_DIRECT */
#define CACHED(f) cmocka_unit_test_setup_teardown(f, setup_ring, teardown_ring)
	const struct CMUnitTest tests[] = {
		cmocka_unit_test_setup_teardown(test_size, setup, teardown),
		cmocka_unit_test_setup_teardown(test_lost_with_layers, setup, teardown),
		RING(test_error_is_looked_into),
		RING(test_failed_flush_is_remembered),
		RING(test_failed_fua_is_remembered),
		RING(test_what_loses_nothing),
		CACHED(test_syncs_take_turns),
	};

	return cmocka_run_group_tests(tests, NULL, NULL);
}

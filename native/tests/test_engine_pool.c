/* SPDX-License-Identifier: BSD-3-Clause
 *
 * Pools in the whole engine: two reactors, views that name pools, calibration under I/O, namespaces in a CMB, loss.
 */
#include <errno.h>
#include <fcntl.h>
#include <setjmp.h>
#include <stdarg.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/stat.h>
#include <unistd.h>

#include <cmocka.h>

#include "engine_priv.h"
#include "loop.h"
#include "pool_priv.h"

#define G POOL_GRANULE
#define FILE_BYTES (2u << 20)
#define BLOCK 4096u

static struct {
	unsigned pool_lost, bdev_lost;
	char pool[64], why[128], bdev[64];
} seen;

static void on_pool_lost(const char *name, const char *why)
{
	seen.pool_lost++;
	snprintf(seen.pool, sizeof(seen.pool), "%s", name);
	snprintf(seen.why, sizeof(seen.why), "%s", why);
}

static void on_bdev_changed(const char *name, const struct dp_bdev_facts *facts)
{
	seen.bdev_lost += facts == NULL;
	snprintf(seen.bdev, sizeof(seen.bdev), "%s", name);
}

static const struct dp_events events = { .pool_lost = on_pool_lost, .bdev_changed = on_bdev_changed };

static char folder[32], file[64], journal[64], err[DP_ERR_MAX];

static void await(const unsigned *count, unsigned until)
{
	while (*count < until)
		loop_step(-1);
}

static unsigned dones;
static int last_rc;

static void done(void *arg, int rc)
{
	last_rc = rc;
	dones++;
}

static int start(void **state)
{
	struct dp_options options = { .cpumask = "0x1", .spin_us = 0, .pool_bytes = 8u << 20, .post = loop_post, .events = &events };

	if (sysconf(_SC_NPROCESSORS_ONLN) > 1)
		options.cpumask = "0x3";
	memset(&seen, 0, sizeof(seen));
	strcpy(folder, "/tmp/test_engine_pool.XXXXXX");
	assert_non_null(mkdtemp(folder));
	snprintf(file, sizeof(file), "%s/drive", folder);
	snprintf(journal, sizeof(journal), "%s/journal", folder);
	int fd = open(file, O_RDWR | O_CREAT, 0600);

	assert_int_equal(ftruncate(fd, FILE_BYTES), 0);
	close(fd);
	assert_int_equal(loop_open(), 0);
	if (dp_start(&options, err) < 0)
		fail_msg("%s", err);
	return 0;
}

static int stop(void **state)
{
	unsigned before = dones;

	dp_stop(done, NULL);
	await(&dones, before + 1);
	loop_close();
	unlink(file);
	assert_int_equal(rmdir(folder), 0); /* no journal is left */
	for (unsigned i = 1; i <= POOLS_MAX; i++)
		assert_int_equal(atomic_load(&pool_at(i)->state), POOL_FREE);
	return 0;
}

static struct pool *create_pool(const char *name, uint32_t granules)
{
	struct dp_pool_config config = { .name = name, .kind = DP_POOL_EMULATED, .bytes = (granules + 1ull) * G };
	struct dp_pool_facts facts;

	if (dp_pool_create(&config, &facts, err) < 0)
		fail_msg("%s", err);
	assert_int_equal(facts.bytes, config.bytes);
	return pool_find(name);
}

static void delete_pool(const char *name)
{
	unsigned before = dones;

	if (dp_pool_delete(name, done, NULL, err) < 0)
		fail_msg("%s", err);
	await(&dones, before + 1);
	assert_null(pool_find(name));
}

static void create_drive(const char *name)
{
	struct dp_bdev_config config = { .kind = DP_BDEV_URING, .name = name, .block_size = BLOCK, .filename = file, .direct = true };
	struct dp_bdev_facts facts;

	if (dp_bdev_create(&config, &facts, err) < 0)
		fail_msg("%s", err);
}

static void delete_bdev(const char *name)
{
	unsigned before = dones;

	assert_int_equal(dp_bdev_delete(name, done, NULL), 0);
	await(&dones, before + 1);
}

/* -- views */

static void set_view(const char *host, const char *read_pool, const char *write_pool)
{
	struct dp_ns_view ns = { .nsid = 1, .bdev = "Drive0", .ana_state = 1, .read_pool = read_pool, .write_pool = write_pool,
				 .strict = true };
	struct dp_ctrlr_view view = { .key = 7, .mdts_bytes = 131072, .host = host, .num_ns = 1, .ns = &ns };
	unsigned before = dones;

	assert_int_equal(dp_ctrlr_set(&view, done, NULL), 0);
	await(&dones, before + 1);
}

static const struct ns_entry *on_reactor(unsigned index, uint32_t *owner)
{
	struct ctrlr_r *c = ctrlr_find(engine_reactor(index), 7); /* nothing runs there now */

	*owner = c->view->owner;
	return view_find(c->view, 1);
}

static void views_follow_pools_that_come_and_go(void **state)
{
	struct pool *pool;
	uint32_t owner, other;

	create_drive("Drive0");
	set_view("nqn.host:a", "0000:03:00.0", NULL);
	for (unsigned i = 0; i < engine_reactors(); i++) {
		assert_null(on_reactor(i, &owner)->pool[POOL_READ]);
		assert_true(on_reactor(i, &owner)->strict);
		assert_int_not_equal(owner, POOL_OWNER_NONE);
	}
	pool = create_pool("0000:03:00.0", 100);
	set_view("nqn.host:a", "0000:03:00.0", NULL); /* and so waits until all reactors have it */
	for (unsigned i = 0; i < engine_reactors(); i++) {
		assert_ptr_equal(on_reactor(i, &other)->pool[POOL_READ], pool);
		assert_null(on_reactor(i, &other)->pool[POOL_WRITE]);
		assert_int_equal(owner, other);
	}
	assert_int_equal(dp_pool_allow("0000:03:00.0", "Drive0", true, err), 0);
	assert_true(bdev_pool_allowed(engine_bdev("Drive0"), pool));
	delete_pool("0000:03:00.0");
	assert_int_equal(atomic_load(&engine_bdev("Drive0")->pools_allowed), 0);
	for (unsigned i = 0; i < engine_reactors(); i++)
		assert_null(on_reactor(i, &other)->pool[POOL_READ]);
	/* One that comes back is tied again, by name, and has to be allowed again. */
	pool = create_pool("0000:03:00.0", 100);
	set_view("nqn.host:b", "0000:03:00.0", "0000:03:00.0");
	assert_ptr_equal(on_reactor(0, &other)->pool[POOL_WRITE], pool);
	assert_int_not_equal(owner, other);
	assert_false(bdev_pool_allowed(engine_bdev("Drive0"), pool));
	assert_string_equal(dp_pool_name(pool_index(pool)), "0000:03:00.0");
}

static void a_pool_in_use_goes_when_it_is_not(void **state)
{
	struct pool *pool = create_pool("p", 10);
	struct pool_buf *buf = pool_get(pool, &(struct pool_want){ .bytes = G });
	unsigned before = dones;
	struct dp_pool_stat *stats;

	assert_int_equal(dp_pool_stats(&stats), 1);
	assert_int_equal(stats[0].free_bytes, 9 * G);
	assert_int_equal(stats[0].buffers, 1);
	assert_int_equal(stats[0].num_allowed, 0);
	dp_pool_stats_free(stats, 1);
	assert_int_equal(dp_pool_delete("p", done, NULL, err), 0);
	assert_int_equal(dp_pool_delete("p", done, NULL, err), -ENODEV);
	for (int i = 0; i < 5; i++)
		loop_step(0);
	assert_int_equal(dones, before);
	assert_null(pool_get(pool, &(struct pool_want){ .bytes = G }));
	pool_put(buf);
	await(&dones, before + 1);
	assert_int_equal(dp_pool_stats(&stats), 0);
	dp_pool_stats_free(stats, 0);
}

static void only_drives_use_pools(void **state)
{
	struct dp_bdev_config ram = { .kind = DP_BDEV_MALLOC, .name = "m", .block_size = 512, .num_blocks = 8 };
	struct dp_bdev_config layer = { .kind = DP_BDEV_DELAY, .name = "d", .base = "Drive0" };
	struct dp_bdev_facts facts;
	struct dp_pool_stat *stats;
	struct pool *pool = create_pool("p", 10);

	create_drive("Drive0");
	assert_int_equal(dp_bdev_create(&ram, &facts, err), 0);
	assert_int_equal(dp_bdev_create(&layer, &facts, err), 0);
	assert_int_equal(dp_pool_allow("p", "m", true, err), -EINVAL);
	assert_int_equal(dp_pool_allow("p", "x", true, err), -ENODEV);
	assert_int_equal(dp_pool_allow("x", "Drive0", true, err), -ENODEV);
	assert_int_equal(dp_pool_allow("p", "d", true, err), 0); /* what is below, with all layers */
	assert_true(bdev_pool_allowed(engine_bdev("d"), pool));
	assert_true(bdev_pool_allowed(engine_bdev("Drive0"), pool));
	assert_int_equal(dp_pool_stats(&stats), 1);
	assert_int_equal(stats[0].num_allowed, 1);
	assert_string_equal(stats[0].allowed[0], "Drive0");
	dp_pool_stats_free(stats, 1);
	assert_int_equal(dp_pool_allow("p", "Drive0", false, err), 0);
	assert_false(bdev_pool_allowed(engine_bdev("d"), pool));
	pool_lose(pool, "test");
	assert_int_equal(dp_pool_allow("p", "Drive0", true, err), -ENODEV);
}

static void a_lost_pool_is_told_once(void **state)
{
	struct pool *pool = create_pool("p", 10);
	struct dp_pool_stat *stats;

	assert_int_equal(ftruncate(pool->fd, 0), 0);
	assert_false(pool_check(pool)); /* by SIGBUS */
	await(&seen.pool_lost, 1);
	pool_lose(pool, "again");
	for (int i = 0; i < 5; i++)
		loop_step(0);
	assert_int_equal(seen.pool_lost, 1);
	assert_string_equal(seen.pool, "p");
	assert_non_null(strstr(seen.why, "SIGBUS"));
	assert_int_equal(dp_pool_stats(&stats), 1);
	assert_true(stats[0].lost);
	assert_string_equal(stats[0].why, seen.why);
	dp_pool_stats_free(stats, 1);
	delete_pool("p");
	pool = create_pool("p", 10); /* the provider is back */
	assert_true(pool_check(pool));
}

/* -- calibration while a host writes and reads what the probe overwrites */

#define SPAN (16 * BLOCK)

struct host {
	struct rmsg msg;
	struct bdev_io io;
	struct bdev *bdev;
	uint64_t base;
	uint8_t *buf;
	uint32_t turn;
	atomic_uint turns;
	atomic_bool stop, stopped, bad;
};

static void host_next(struct host *h);

static void host_done(struct bdev_io *io, int rc)
{
	struct host *h = dp_container_of(io, struct host, io);

	if (rc < 0)
		atomic_store(&h->bad, true);
	if (io->op == BDEV_READ)
		for (uint32_t i = 0; i < SPAN; i += 512)
			if (get32(h->buf + i) != h->turn)
				atomic_store(&h->bad, true);
	host_next(h);
}

static void host_submit(struct host *h)
{
	int rc;

	h->io.bdev = h->bdev;
	h->io.offset = h->base;
	h->io.length = SPAN;
	h->io.buf = h->buf;
	h->io.done = host_done;
	rc = bdev_submit(h->io.r, &h->io);
	if (rc != BDEV_PENDING)
		host_done(&h->io, rc);
}

static void host_run(struct reactor *r, struct rmsg *msg)
{
	struct host *h = dp_container_of(msg, struct host, msg);

	h->io.r = r;
	host_submit(h);
}

/* Not deeper and deeper where the file is served in place. */
static void host_next(struct host *h)
{
	if (h->io.op == BDEV_READ) {
		atomic_fetch_add(&h->turns, 1);
		if (atomic_load(&h->stop)) {
			atomic_store(&h->stopped, true);
			return;
		}
		h->turn++;
		for (uint32_t i = 0; i < SPAN; i += 512)
			put32(h->buf + i, h->turn);
		h->io.op = BDEV_WRITE;
	} else {
		h->io.op = BDEV_READ;
		memset(h->buf, 0, SPAN);
	}
	h->msg.fn = host_run;
	reactor_send(h->io.r, &h->msg);
}

static unsigned calibrated;
static struct dp_calibration result;

static void on_calibrated(void *arg, int rc, const struct dp_calibration *found)
{
	calibrated++;
	last_rc = rc;
	result = *found;
}

static void begin_calibration(const char *bdev)
{
	struct dp_calibrate_config config = { .pool = "p", .bdev = bdev, .journal = journal };

	if (dp_pool_calibrate(&config, on_calibrated, NULL, err) < 0)
		fail_msg("%s", err);
}

/* The region in the middle of the drive is written by hosts on both reactors, through a layer and through another bdev on
 * the same file. They wait for the probe, and neither sees a byte of it nor loses one of its own. */
static void hosts_do_not_notice_a_probe(void **state)
{
	struct dp_bdev_config layer = { .kind = DP_BDEV_DELAY, .name = "d", .base = "Drive0" };
	struct dp_bdev_facts facts;
	static struct host hosts[3];
	const char *const through[3] = { "d", "Drive0", "Twin" };
	unsigned before = calibrated;

	create_pool("p", 600);
	create_drive("Drive0");
	create_drive("Twin");
	assert_int_equal(dp_bdev_create(&layer, &facts, err), 0);
	memset(hosts, 0, sizeof(hosts));
	for (unsigned i = 0; i < 3; i++) {
		struct host *h = &hosts[i];

		h->bdev = engine_bdev(through[i]);
		h->base = FILE_BYTES / 2 - 2 * SPAN + i * SPAN;
		h->buf = aligned_alloc(4096, SPAN);
		h->io.op = BDEV_WRITE;
		h->turn = 1;
		for (uint32_t k = 0; k < SPAN; k += 512)
			put32(h->buf + k, h->turn);
		h->msg.fn = host_run;
		reactor_send(engine_reactor(i % engine_reactors()), &h->msg);
	}
	for (int round = 0; round < 3; round++) {
		begin_calibration(round == 1 ? "d" : "Drive0");
		assert_int_equal(dp_bdev_delete("Twin", done, NULL), -EBUSY);
		await(&calibrated, before + 1 + (unsigned)round);
		assert_int_equal(last_rc, 0);
		assert_string_equal(result.reason, "");
		assert_true(result.verified);
		assert_true(result.drive_to_pool_mib_s > 0 && result.cpu_read_mib_s > 0);
	}
	for (unsigned i = 0; i < 3; i++) {
		uint32_t now = atomic_load(&hosts[i].turns);

		while (atomic_load(&hosts[i].turns) < now + 2) /* they go on */
			sched_yield();
		atomic_store(&hosts[i].stop, true);
		while (!atomic_load(&hosts[i].stopped))
			sched_yield();
		assert_false(atomic_load(&hosts[i].bad));
		free(hosts[i].buf);
	}
}

static void what_cannot_be_calibrated_says_so(void **state)
{
	struct dp_calibrate_config config = { .pool = "p", .bdev = "Drive0", .journal = journal };
	struct dp_bdev_config ro = { .kind = DP_BDEV_URING, .name = "ro", .block_size = BLOCK, .filename = file, .readonly = true };
	struct dp_bdev_facts facts;
	unsigned before = calibrated;

	assert_int_equal(dp_pool_calibrate(&config, on_calibrated, NULL, err), -ENODEV);
	create_pool("p", 64);
	assert_int_equal(dp_pool_calibrate(&config, on_calibrated, NULL, err), -ENODEV);
	assert_non_null(strstr(err, "Drive0"));
	create_drive("Drive0");
	assert_int_equal(dp_bdev_create(&ro, &facts, err), 0);
	config.bdev = "ro";
	assert_int_equal(dp_pool_calibrate(&config, on_calibrated, NULL, err), -EROFS);
	config.bdev = "Drive0";
	config.journal = NULL;
	assert_int_equal(dp_pool_calibrate(&config, on_calibrated, NULL, err), -EINVAL);
	/* the CPU's part alone needs neither */
	config.bdev = NULL;
	assert_int_equal(dp_pool_calibrate(&config, on_calibrated, NULL, err), 0);
	assert_int_equal(dp_pool_calibrate(&config, on_calibrated, NULL, err), -EBUSY);
	assert_int_equal(dp_pool_delete("p", done, NULL, err), -EBUSY);
	await(&calibrated, before + 1);
	assert_string_equal(result.reason, "");
	assert_false(result.verified);
	assert_true(result.cpu_write_mib_s > 0);
}

static void the_end_of_the_engine_does_not_leave_a_probe_half_done(void **state)
{
	create_pool("p", 600);
	create_drive("Drive0");
	begin_calibration("Drive0");
	/* stop() follows at once; it sees that the journal has gone */
}

/* -- a namespace in a CMB */

struct one_io {
	struct rmsg msg;
	struct bdev_io io;
	int rc;
	atomic_bool over;
};

static void one_done(struct bdev_io *io, int rc)
{
	struct one_io *one = dp_container_of(io, struct one_io, io);

	one->rc = rc;
	atomic_store(&one->over, true);
}

static void one_run(struct reactor *r, struct rmsg *msg)
{
	struct one_io *one = dp_container_of(msg, struct one_io, msg);
	int rc = bdev_submit(r, &one->io);

	if (rc != BDEV_PENDING)
		one_done(&one->io, rc);
}

static int bdev_rw(const char *name, enum bdev_op op, uint64_t offset, void *buf, uint64_t length)
{
	struct one_io one = { .msg.fn = one_run,
			      .io = { .bdev = engine_bdev(name), .op = op, .offset = offset, .length = length, .buf = buf,
				      .done = one_done } };

	reactor_send(engine_reactor(0), &one.msg);
	while (!atomic_load(&one.over))
		sched_yield();
	return one.rc;
}

static int create_cmb(const char *pool, bool pmr, uint64_t blocks)
{
	struct dp_bdev_config config = { .kind = DP_BDEV_CMB, .name = "c", .block_size = 512, .num_blocks = blocks, .pool = pool,
					 .emulated = pool == NULL, .pmr = pmr };
	struct dp_bdev_facts facts;
	int rc = dp_bdev_create(&config, &facts, err);

	if (rc == 0) {
		assert_int_equal(facts.num_blocks, blocks);
		assert_false(facts.write_cache);
	}
	return rc;
}

static void write_read_lose(struct pool *pool)
{
	static uint8_t data[64 * 512], back[64 * 512];

	memset(back, 1, sizeof(back));
	assert_int_equal(bdev_rw("c", BDEV_READ, 0, back, sizeof(back)), 0);
	for (size_t i = 0; i < sizeof(back); i++)
		assert_int_equal(back[i], 0); /* a new disk is empty */
	for (size_t i = 0; i < sizeof(data); i++)
		data[i] = (uint8_t)(i * 7 + i / 512);
	assert_int_equal(bdev_rw("c", BDEV_WRITE, 512, data, 20 * 512), 0);
	assert_int_equal(bdev_rw("c", BDEV_FLUSH, 0, NULL, 0), 0);
	assert_int_equal(bdev_rw("c", BDEV_READ, 0, back, 64 * 512), 0);
	assert_memory_equal(back + 512, data, 20 * 512);
	assert_int_equal(back[0] | back[21 * 512], 0);
	assert_int_equal(bdev_rw("c", BDEV_ZERO, 1024, NULL, 512), 0);
	assert_int_equal(bdev_rw("c", BDEV_READ, 1024, back, 512), 0);
	assert_int_equal(back[0] | back[511], 0);
	assert_int_equal(bdev_rw("c", BDEV_READ, 64 * 512, back, 512), -EIO); /* beyond the end, made smaller meanwhile */
	assert_int_equal(ftruncate(pool->fd, 0), 0);
	memset(back, 1, sizeof(back));
	/* not one byte of zeroes is told as success */
	assert_int_equal(bdev_rw("c", BDEV_READ, 0, back, 512), -ENODEV);
	assert_int_equal(bdev_rw("c", BDEV_WRITE, 0, data, 512), -ENODEV);
	assert_int_equal(bdev_rw("c", BDEV_FLUSH, 0, NULL, 0), -ENODEV);
	await(&seen.bdev_lost, 1);
	assert_string_equal(seen.bdev, "c");
}

static void a_namespace_in_memory_of_its_own(void **state)
{
	struct dp_pool_stat *stats;

	assert_int_equal(create_cmb(NULL, true, 64), -ENOTSUP);
	assert_non_null(strstr(err, "PMR"));
	assert_int_equal(create_cmb(NULL, false, 0), -EINVAL);
	assert_int_equal(create_cmb(NULL, false, 64), 0);
	assert_int_equal(dp_pool_stats(&stats), 0); /* nobody stages in it */
	dp_pool_stats_free(stats, 0);
	write_read_lose(bdev_cmb_pool(engine_bdev("c")));
	assert_int_equal(seen.pool_lost, 0);
	delete_bdev("c");
	assert_int_equal(create_cmb(NULL, false, 64), 0);
	write_read_lose(bdev_cmb_pool(engine_bdev("c")));
}

static void a_namespace_in_a_pool(void **state)
{
	struct pool *pool = create_pool("p", 60);
	struct pool_buf *buf = pool_get(pool, &(struct pool_want){ .bytes = 60 * G, .owner = 9 });
	unsigned before;

	assert_int_equal(create_cmb("q", false, 64), -ENODEV);
	assert_int_equal(create_cmb("p", false, 64), -ENOSPC);
	memset(buf->iov[0].iov_base, 0xA5, 60 * G); /* a host's, before */
	pool_put(buf);
	assert_int_equal(create_cmb("p", false, 64), 0);
	assert_int_equal(dp_pool_delete("p", done, NULL, err), -EBUSY);
	assert_non_null(strstr(err, "bdev c"));
	write_read_lose(pool);
	/* What is left of a lost pool can go, and come back, while the disk that was in it is still there. */
	await(&seen.pool_lost, 1);
	delete_pool("p");
	before = pool_index(pool);
	pool = create_pool("p", 60);
	assert_int_not_equal(pool_index(pool), before);
	assert_int_equal(bdev_rw("c", BDEV_FLUSH, 0, NULL, 0), -ENODEV);
	delete_bdev("c");
	/* One that is not lost goes as soon as the disk's deletion is answered. */
	assert_int_equal(create_cmb("p", false, 64), 0);
	delete_bdev("c");
	delete_pool("p");
	pool = create_pool("p", 60);
	assert_int_equal(create_cmb("p", false, 64), 0);
	memset(&seen, 0, sizeof(seen));
	write_read_lose(pool);
}

int main(void)
{
	const struct CMUnitTest tests[] = {
		cmocka_unit_test_setup_teardown(views_follow_pools_that_come_and_go, start, stop),
		cmocka_unit_test_setup_teardown(a_pool_in_use_goes_when_it_is_not, start, stop),
		cmocka_unit_test_setup_teardown(only_drives_use_pools, start, stop),
		cmocka_unit_test_setup_teardown(a_lost_pool_is_told_once, start, stop),
		cmocka_unit_test_setup_teardown(hosts_do_not_notice_a_probe, start, stop),
		cmocka_unit_test_setup_teardown(what_cannot_be_calibrated_says_so, start, stop),
		cmocka_unit_test_setup_teardown(the_end_of_the_engine_does_not_leave_a_probe_half_done, start, stop),
		cmocka_unit_test_setup_teardown(a_namespace_in_memory_of_its_own, start, stop),
		cmocka_unit_test_setup_teardown(a_namespace_in_a_pool, start, stop),
	};

	return cmocka_run_group_tests(tests, NULL, NULL);
}

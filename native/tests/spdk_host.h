/* SPDX-License-Identifier: BSD-3-Clause
 *
 * spdk_host.h: the whole engine with fake_spdk.c in place of SPDK, for tests of controllers: begin and end, drives that come
 * and go, I/O.
 */
#pragma once

#include <errno.h>
#include <pthread.h>
#include <setjmp.h>
#include <stdarg.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/stat.h>
#include <unistd.h>

#include <cmocka.h>

#include "fake_spdk.h"
#include "loop.h"
#include "nvme_pass.h"
#include "spdk_priv.h"

#define MANY 64u
#define BDF "0000:05:00.0"

static struct {
	unsigned lost, changed, told;
} seen;

static inline void on_bdev_changed(const char *name, const struct dp_bdev_facts *facts)
{
	seen.lost += facts == NULL;
	seen.changed += facts != NULL;
}

static inline void on_changed(const char *name)
{
	seen.told++;
}

static inline void on_pool_lost(const char *name, const char *why)
{
}

static const struct dp_events events = { .bdev_changed = on_bdev_changed, .pool_lost = on_pool_lost };
static char err[DP_ERR_MAX], folder[48], path[128];
static unsigned dones;
static int last_rc;

static inline void await(const unsigned *count, unsigned until)
{
	while (*count < until)
		loop_step(-1);
}

static inline void done(void *arg, int rc)
{
	last_rc = rc;
	dones++;
}

static inline void said(void *arg, int rc, const char *text)
{
	snprintf(err, sizeof(err), "%s", text);
	done(arg, rc);
}

static inline int start(void **state)
{
	struct dp_options options = { .cpumask = "0x1", .spin_us = 20, .pool_bytes = 8u << 20, .post = loop_post, .events = &events };

	if (sysconf(_SC_NPROCESSORS_ONLN) > 1)
		options.cpumask = "0x3";
	memset(&seen, 0, sizeof(seen));
	fake_reset();
	strcpy(folder, "/tmp/test_spdk.XXXXXX");
	assert_non_null(mkdtemp(folder));
	spdk_sysfs = folder;
	assert_int_equal(loop_open(), 0);
	dp_spdk_watch(on_changed);
	if (dp_start(&options, err) < 0)
		fail_msg("%s", err);
	return 0;
}

static inline int stop(void **state)
{
	unsigned before = dones;

	fake.hold = false;
	dp_stop(done, NULL);
	await(&dones, before + 1);
	loop_close();
	assert_int_equal(fake.qpairs, 0);
	assert_int_equal(fake.in_drive, 0);
	snprintf(path, sizeof(path), "%s/%s/driver", folder, BDF);
	unlink(path);
	snprintf(path, sizeof(path), "%s/%s", folder, BDF);
	rmdir(path);
	rmdir(folder);
	return 0;
}

static inline void plug(void)
{
	snprintf(path, sizeof(path), "%s/%s", folder, BDF);
	assert_int_equal(mkdir(path, 0700), 0);
	snprintf(path, sizeof(path), "%s/%s/driver", folder, BDF);
	assert_int_equal(symlink("../../../bus/pci/drivers/vfio-pci", path), 0);
}

static inline void unplug(void)
{
	snprintf(path, sizeof(path), "%s/%s/driver", folder, BDF);
	assert_int_equal(unlink(path), 0);
	snprintf(path, sizeof(path), "%s/%s", folder, BDF);
	assert_int_equal(rmdir(path), 0);
}

static inline int attach_with(const struct dp_spdk_attach *attach)
{
	unsigned before = dones;

	dp_spdk_attach(attach, said, NULL);
	await(&dones, before + 1);
	return last_rc;
}

static inline struct dp_spdk_attach tcp(void)
{
	return (struct dp_spdk_attach){ .name = "N", .trtype = "TCP", .traddr = "192.0.2.1", .trsvcid = "4420", .subnqn = "nqn.x" };
}

static inline struct bdev *bdev_create(const char *name, uint32_t nsid)
{
	const struct dp_bdev_config config = { .kind = DP_BDEV_SPDK, .name = name, .ctrlr = "N", .nsid = nsid };
	struct dp_bdev_facts facts;

	if (dp_bdev_create(&config, &facts, err) < 0)
		fail_msg("%s", err);
	return engine_bdev(name);
}

static inline void bdev_delete(const char *name)
{
	unsigned before = dones;

	assert_int_equal(dp_bdev_delete(name, done, NULL), 0);
	await(&dones, before + 1);
	assert_int_equal(last_rc, 0);
}

static inline int detach(void)
{
	unsigned before = dones;

	dp_spdk_detach("N", said, NULL);
	await(&dones, before + 1);
	return last_rc;
}

static inline void attach_one(bool pcie, struct bdev **first)
{
	struct dp_spdk_attach attach = tcp();

	if (pcie) {
		plug();
		attach.trtype = "PCIe";
		attach.traddr = BDF;
	}
	if (attach_with(&attach) < 0)
		fail_msg("%s", err);
	*first = bdev_create("Nn1", 1);
}

/* -- I/O from a test */

struct ask {
	struct bdev_io io;
	struct rmsg msg;
	unsigned *over;
	int rc;
	uint8_t *data;
};

static inline void ask_over(void *arg)
{
	struct ask *ask = arg;

	++*ask->over;
}

static inline void ask_done(struct bdev_io *io, int rc)
{
	struct ask *ask = dp_container_of(io, struct ask, io);

	ask->rc = rc;
	loop_post(ask_over, ask);
}

static inline void ask_submit(struct reactor *r, struct rmsg *msg)
{
	struct ask *ask = dp_container_of(msg, struct ask, msg);
	int rc = bdev_submit(r, &ask->io);

	if (rc != BDEV_PENDING)
		ask_done(&ask->io, rc);
}

static inline void ask_send(struct ask *ask, struct bdev *bdev, enum bdev_op op, uint64_t offset, uint64_t length, unsigned reactor,
		     unsigned *over)
{
	ask->io.bdev = bdev;
	ask->io.op = op;
	ask->io.offset = offset;
	ask->io.length = length;
	ask->io.buf = ask->data;
	ask->io.done = ask_done;
	ask->over = over;
	ask->msg.fn = ask_submit;
	reactor_send(engine_reactor(reactor % engine_reactors()), &ask->msg);
}

static inline int ask_once(struct ask *ask, struct bdev *bdev, enum bdev_op op, uint64_t offset, uint64_t length)
{
	unsigned over = 0;

	ask_send(ask, bdev, op, offset, length, 0, &over);
	await(&over, 1);
	return ask->rc;
}

static struct ask many[MANY];

static inline void many_send(struct bdev *bdev, enum bdev_op op, unsigned *over)
{
	*over = 0;
	for (unsigned i = 0; i < MANY; i++) {
		many[i] = (struct ask){ .data = malloc(4096) };
		memset(many[i].data, (int)i + 1, 4096);
		ask_send(&many[i], bdev, op, i * 4096ull, 4096, i, over);
	}
}

static inline void many_over(struct bdev *bdev, const unsigned *over, int rc, bool written)
{
	await(over, MANY);
	for (unsigned i = 0; i < MANY; i++) {
		assert_int_equal(many[i].rc, rc);
		if (written)
			assert_memory_equal(fake.disk[1] + i * 4096, many[i].data, 4096);
		free(many[i].data);
	}
}

static inline void in_drive(unsigned n)
{
	while (fake.in_drive < n)
		loop_step(1);
}

static inline void reset_now(int rc)
{
	unsigned before = dones;

	dp_spdk_reset("N", said, NULL);
	await(&dones, before + 1);
	assert_int_equal(last_rc, rc);
}

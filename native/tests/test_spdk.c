/* SPDX-License-Identifier: BSD-3-Clause
 *
 * Controllers in user space in the whole engine, on two reactors, with a fake of SPDK (fake_spdk.h) that watches who touches
 * what: attach, I/O, resets and losses under I/O, removal and return of a drive, commands of a drive's own.
 */
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

static void on_bdev_changed(const char *name, const struct dp_bdev_facts *facts)
{
	seen.lost += facts == NULL;
	seen.changed += facts != NULL;
}

static void on_changed(const char *name)
{
	seen.told++;
}

static void on_pool_lost(const char *name, const char *why)
{
}

static const struct dp_events events = { .bdev_changed = on_bdev_changed, .pool_lost = on_pool_lost };
static char err[DP_ERR_MAX], folder[48], path[128];
static unsigned dones;
static int last_rc;

static void await(const unsigned *count, unsigned until)
{
	while (*count < until)
		loop_step(-1);
}

static void done(void *arg, int rc)
{
	last_rc = rc;
	dones++;
}

static void said(void *arg, int rc, const char *text)
{
	snprintf(err, sizeof(err), "%s", text);
	done(arg, rc);
}

static int start(void **state)
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

static int stop(void **state)
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

static void plug(void)
{
	snprintf(path, sizeof(path), "%s/%s", folder, BDF);
	assert_int_equal(mkdir(path, 0700), 0);
	snprintf(path, sizeof(path), "%s/%s/driver", folder, BDF);
	assert_int_equal(symlink("../../../bus/pci/drivers/vfio-pci", path), 0);
}

static void unplug(void)
{
	snprintf(path, sizeof(path), "%s/%s/driver", folder, BDF);
	assert_int_equal(unlink(path), 0);
	snprintf(path, sizeof(path), "%s/%s", folder, BDF);
	assert_int_equal(rmdir(path), 0);
}

static int attach_with(const struct dp_spdk_attach *attach)
{
	unsigned before = dones;

	dp_spdk_attach(attach, said, NULL);
	await(&dones, before + 1);
	return last_rc;
}

static struct dp_spdk_attach tcp(void)
{
	return (struct dp_spdk_attach){ .name = "N", .trtype = "TCP", .traddr = "192.0.2.1", .trsvcid = "4420", .subnqn = "nqn.x" };
}

static struct bdev *bdev_create(const char *name, uint32_t nsid)
{
	const struct dp_bdev_config config = { .kind = DP_BDEV_SPDK, .name = name, .ctrlr = "N", .nsid = nsid };
	struct dp_bdev_facts facts;

	if (dp_bdev_create(&config, &facts, err) < 0)
		fail_msg("%s", err);
	return engine_bdev(name);
}

static void bdev_delete(const char *name)
{
	unsigned before = dones;

	assert_int_equal(dp_bdev_delete(name, done, NULL), 0);
	await(&dones, before + 1);
	assert_int_equal(last_rc, 0);
}

static int detach(void)
{
	unsigned before = dones;

	dp_spdk_detach("N", said, NULL);
	await(&dones, before + 1);
	return last_rc;
}

static void attach_one(bool pcie, struct bdev **first)
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

static void ask_over(void *arg)
{
	struct ask *ask = arg;

	++*ask->over;
}

static void ask_done(struct bdev_io *io, int rc)
{
	struct ask *ask = dp_container_of(io, struct ask, io);

	ask->rc = rc;
	loop_post(ask_over, ask);
}

static void ask_submit(struct reactor *r, struct rmsg *msg)
{
	struct ask *ask = dp_container_of(msg, struct ask, msg);
	int rc = bdev_submit(r, &ask->io);

	if (rc != BDEV_PENDING)
		ask_done(&ask->io, rc);
}

static void ask_send(struct ask *ask, struct bdev *bdev, enum bdev_op op, uint64_t offset, uint64_t length, unsigned reactor,
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

static int ask_once(struct ask *ask, struct bdev *bdev, enum bdev_op op, uint64_t offset, uint64_t length)
{
	unsigned over = 0;

	ask_send(ask, bdev, op, offset, length, 0, &over);
	await(&over, 1);
	return ask->rc;
}

static struct ask many[MANY];

static void many_send(struct bdev *bdev, enum bdev_op op, unsigned *over)
{
	*over = 0;
	for (unsigned i = 0; i < MANY; i++) {
		many[i] = (struct ask){ .data = malloc(4096) };
		memset(many[i].data, (int)i + 1, 4096);
		ask_send(&many[i], bdev, op, i * 4096ull, 4096, i, over);
	}
}

static void many_over(struct bdev *bdev, const unsigned *over, int rc, bool written)
{
	await(over, MANY);
	for (unsigned i = 0; i < MANY; i++) {
		assert_int_equal(many[i].rc, rc);
		if (written)
			assert_memory_equal(fake.disk[1] + i * 4096, many[i].data, 4096);
		free(many[i].data);
	}
}

static void in_drive(unsigned n)
{
	while (fake.in_drive < n)
		loop_step(1);
}

/* -- tests */

static void test_attach(void **state)
{
	struct dp_spdk_attach attach = tcp(), wrong = tcp();
	const struct dp_bdev_config third = { .kind = DP_BDEV_SPDK, .name = "Nn3", .ctrlr = "N", .nsid = 3 };
	struct dp_spdk_ctrlr *shown;
	struct dp_bdev_facts facts;
	struct bdev *bdev;

	wrong.trtype = "RDMA";
	assert_int_equal(attach_with(&wrong), -EINVAL);
	wrong = tcp();
	wrong.subnqn = NULL;
	assert_int_equal(attach_with(&wrong), -EINVAL);
	wrong = tcp();
	wrong.own_times = true;
	wrong.reconnect_delay_sec = 1;
	assert_int_equal(attach_with(&wrong), -EINVAL);
	fake.absent = true;
	assert_int_equal(attach_with(&attach), -ENODEV);
	fake.absent = false;
	fake.io_queues = 0;
	assert_int_equal(attach_with(&attach), -ENODEV);
	assert_non_null(strstr(err, "I/O queues"));
	fake.io_queues = 64;
	fake.no_dma = true; /* of no concern to TCP */
	wrong = tcp();
	wrong.trtype = "PCIe";
	wrong.traddr = BDF;
	assert_int_equal(attach_with(&wrong), -ENOMEM);
	assert_non_null(strstr(err, "huge pages"));
	assert_int_equal(attach_with(&attach), 0);
	assert_int_equal(attach_with(&attach), -EEXIST);
	attach.name = "M";
	assert_int_equal(attach_with(&attach), -EEXIST); /* the same place */
	assert_int_equal(dp_spdk_ctrlrs("N", &shown), 1);
	assert_string_equal(shown->serial, "FAKE0001");
	assert_int_equal(shown->num_ns, 3);
	assert_string_equal(shown->ns[1].bdev, "Nn2");
	assert_int_equal(shown->ns[1].facts.block_size, 4096);
	assert_string_equal(shown->ns[0].uuid, "");
	assert_string_equal(shown->ns[1].uuid, "ab000000-0000-0000-0000-000000000001");
	assert_non_null(strstr(shown->ns[2].refused, "metadata"));
	dp_spdk_ctrlrs_free(shown, 1);
	assert_int_equal(dp_bdev_create(&third, &facts, err), -EOPNOTSUPP);
	assert_non_null(strstr(err, "metadata"));
	bdev = bdev_create("Nn2", 2);
	assert_true(bdev->write_cache && bdev->unmap && bdev->nvme);
	bdev_delete("Nn2");
	assert_int_equal(detach(), 0);
	assert_int_equal(detach(), -ENODEV);
}

static void test_io(void **state)
{
	struct ask ask = { .data = malloc(64 << 10) };
	struct iovec iov[2];
	struct bdev *bdev;
	unsigned over;

	attach_one(false, &bdev);
	many_send(bdev, BDEV_WRITE, &over);
	many_over(bdev, &over, 0, true);
	assert_int_equal(ask_once(&ask, bdev, BDEV_READ, 4096, 8192), 0);
	assert_int_equal(ask.data[0], 2);
	assert_int_equal(ask.data[8191], 3);
	ask.io.fua = true;
	assert_int_equal(ask_once(&ask, bdev, BDEV_WRITE, 0, 512), 0);
	assert_int_equal(fake.fua, 1);
	ask.io.fua = false;
	iov[0] = (struct iovec){ ask.data, 4096 };
	iov[1] = (struct iovec){ ask.data + 8192, 4096 };
	ask.io.iov = iov;
	ask.io.iovcnt = 2;
	assert_int_equal(ask_once(&ask, bdev, BDEV_READ, 4096, 8192), 0);
	assert_int_equal(ask.data[4095], 2);
	assert_int_equal(ask.data[8192], 3);
	assert_int_equal(fake.sgls, 1);
	ask.io.iovcnt = 0;
	assert_int_equal(ask_once(&ask, bdev, BDEV_FLUSH, 0, 0), 0);
	assert_int_equal(fake.flushes, 1);
	assert_int_equal(ask_once(&ask, bdev, BDEV_UNMAP, 0, 8192), 0);
	assert_int_equal(fake.unmaps, 1);
	ask.io.unmap = true;
	assert_int_equal(ask_once(&ask, bdev, BDEV_ZERO, 512, 1024), 0);
	assert_int_equal(fake.deac, 1);
	assert_int_equal(fake.disk[1][512] | fake.disk[1][1535], 0);
	fake.refuse_zeroes = true;
	assert_int_equal(ask_once(&ask, bdev, BDEV_ZERO, 8192, 512u << 10), 0); /* written instead, in pieces */
	assert_int_equal(fake.disk[1][8192] | fake.disk[1][8192 + (512 << 10) - 1], 0);
	assert_int_not_equal(fake.disk[1][8192 + (512 << 10)], 0);
	bdev_delete("Nn1");
	assert_int_equal(detach(), 0);
	free(ask.data);
}

static void test_statuses(void **state)
{
	struct ask ask = { .data = malloc(4096) };
	struct bdev *bdev;

	attach_one(false, &bdev);
	fake.status = 0x281 | 1 << 16;
	fake.statuses = 1;
	assert_int_equal(status_of_errno(ask_once(&ask, bdev, BDEV_READ, 0, 512), false), 0x281 | 1 << 16);
	fake.status = 0x280;
	fake.statuses = 1;
	assert_int_equal(status_of_errno(ask_once(&ask, bdev, BDEV_WRITE, 0, 512), true), 0x280);
	fake.status = 0x002 | 1 << 16; /* our fault, not the host's */
	fake.statuses = 1;
	assert_int_equal(status_of_errno(ask_once(&ask, bdev, BDEV_WRITE, 0, 512), true), 0x006 | 1 << 16);
	fake.status = 0x004; /* Data Transfer Error: io_pool.c takes other memory */
	fake.statuses = 1;
	assert_int_equal(ask_once(&ask, bdev, BDEV_READ, 0, 512), -EREMOTEIO);
	fake.status = 0x007; /* undecided: tried again */
	fake.statuses = 3;
	assert_int_equal(ask_once(&ask, bdev, BDEV_WRITE, 0, 512), 0);
	fake.statuses = 4;
	assert_int_equal(status_of_errno(ask_once(&ask, bdev, BDEV_WRITE, 0, 512), true), 0x006);
	assert_int_equal(fake.statuses, 0);
	bdev_delete("Nn1");
	assert_int_equal(detach(), 0);
	free(ask.data);
}

static void test_no_room(void **state)
{
	struct bdev *bdev;
	unsigned over;

	attach_one(false, &bdev);
	fake.room = 3;
	fake.allocs_fail = 2; /* and the queue pair comes late */
	many_send(bdev, BDEV_WRITE, &over);
	many_over(bdev, &over, 0, true);
	bdev_delete("Nn1");
	assert_int_equal(detach(), 0);
}

static void reset_now(int rc)
{
	unsigned before = dones;

	dp_spdk_reset("N", said, NULL);
	await(&dones, before + 1);
	assert_int_equal(last_rc, rc);
}

static void test_reset(void **state)
{
	struct bdev *bdev;
	unsigned over, before;

	attach_one(false, &bdev);
	fake.hold = true;
	many_send(bdev, BDEV_WRITE, &over);
	in_drive(MANY);
	reset_now(0);
	in_drive(MANY); /* sent again, through new queue pairs */
	assert_int_equal(over, 0);
	fake.hold = false;
	many_over(bdev, &over, 0, true);
	assert_int_equal(seen.lost, 0);
	/* more often than a command may be sent */
	fake.hold = true;
	many_send(bdev, BDEV_WRITE, &over);
	for (unsigned i = 0; i < 4; i++) {
		in_drive(MANY);
		before = fake.resets;
		reset_now(0);
		assert_int_equal(fake.resets, before + 1);
	}
	many_over(bdev, &over, -(BDEV_NVME | 0x006), false);
	fake.hold = false;
	bdev_delete("Nn1");
	assert_int_equal(detach(), 0);
}

static void test_broken(void **state)
{
	struct bdev *bdev;
	unsigned over;

	attach_one(false, &bdev);
	many_send(bdev, BDEV_WRITE, &over);
	many_over(bdev, &over, 0, true);
	fake.broken = true; /* what is idle finds out with the next I/O */
	many_send(bdev, BDEV_WRITE, &over);
	many_over(bdev, &over, 0, true);
	assert_int_equal(fake.resets, 1);
	fake.admin_broken = true;
	while (fake.resets < 2)
		loop_step(1);
	many_send(bdev, BDEV_WRITE, &over);
	many_over(bdev, &over, 0, true);
	bdev_delete("Nn1");
	assert_int_equal(detach(), 0);
}

static void test_failed(void **state)
{
	struct ask ask = { .data = malloc(4096) };
	struct dp_spdk_ctrlr *shown;
	struct bdev *bdev;
	unsigned over;

	attach_one(false, &bdev);
	fake.hold = true;
	many_send(bdev, BDEV_WRITE, &over);
	in_drive(MANY);
	fake.reconnects_fail = 1;
	reset_now(-EIO);
	many_over(bdev, &over, -ENXIO, false);
	await(&seen.lost, 1);
	assert_int_equal(ask_once(&ask, bdev, BDEV_READ, 0, 512), -ENXIO);
	assert_int_equal(dp_spdk_ctrlrs("N", &shown), 1);
	assert_int_equal(shown->state, DP_SPDK_FAILED);
	dp_spdk_ctrlrs_free(shown, 1);
	fake.hold = false;
	reset_now(0);
	await(&seen.changed, 1);
	assert_int_equal(ask_once(&ask, bdev, BDEV_READ, 0, 512), 0);
	fake.reconnects_fail = 1;
	reset_now(-EIO);
	bdev_delete("Nn1"); /* also of one that does not work */
	assert_int_equal(detach(), 0);
	free(ask.data);
}

static void test_reconnect(void **state)
{
	struct dp_spdk_attach attach = tcp();
	struct bdev *bdev;
	unsigned over;

	attach.own_times = true;
	attach.ctrlr_loss_timeout_sec = 60;
	attach.reconnect_delay_sec = 1;
	assert_int_equal(attach_with(&attach), 0);
	bdev = bdev_create("Nn1", 1);
	fake.hold = true;
	many_send(bdev, BDEV_WRITE, &over);
	in_drive(MANY);
	fake.reconnects_fail = 1;
	fake.broken = true; /* found out by the reactors */
	while (fake.resets < 1) {
		loop_step(1);
		assert_int_equal(over, 0); /* I/O waits for the second attempt */
	}
	fake.hold = false;
	many_over(bdev, &over, 0, true);
	assert_int_equal(seen.lost, 0);
	bdev_delete("Nn1");
	assert_int_equal(detach(), 0);
}

/* Times of the controller's own, zeros among them, count in place of those of the options. */
static void test_own_times(void **state)
{
	struct dp_spdk_attach attach = tcp();
	struct dp_spdk_options options, usual;
	struct bdev *bdev;
	unsigned over;

	dp_spdk_get_options(&usual);
	options = usual;
	options.ctrlr_loss_timeout_sec = -1;
	options.reconnect_delay_sec = 1;
	assert_int_equal(dp_spdk_set_options(&options, err), 0);
	attach.own_times = true;
	assert_int_equal(attach_with(&attach), 0);
	bdev = bdev_create("Nn1", 1);
	fake.hold = true;
	many_send(bdev, BDEV_WRITE, &over);
	in_drive(MANY);
	fake.reconnects_fail = 1;
	reset_now(-EIO);
	many_over(bdev, &over, -ENXIO, false);
	await(&seen.lost, 1);
	fake.hold = false;
	bdev_delete("Nn1");
	assert_int_equal(detach(), 0);
	assert_int_equal(dp_spdk_set_options(&usual, err), 0);
}

/* Its commands stay in the drive for too long; when something has been done about it, they go well. */
static void time_out(struct bdev *bdev, const _Atomic unsigned *done)
{
	const unsigned before = *done;
	unsigned over;

	fake.hold = true;
	many_send(bdev, BDEV_WRITE, &over);
	in_drive(MANY);
	fake.time_out = true;
	while (*done == before)
		loop_step(1);
	fake.hold = false;
	many_over(bdev, &over, 0, true);
	bdev_delete("Nn1");
	assert_int_equal(detach(), 0);
}

static void test_timeout(void **state)
{
	struct dp_spdk_options options, usual;
	struct bdev *bdev;

	dp_spdk_get_options(&usual);
	options = usual;
	options.timeout_us = 1000;
	options.action_on_timeout = DP_SPDK_ACTION_ABORT;
	assert_int_equal(dp_spdk_set_options(&options, err), 0);
	attach_one(false, &bdev);
	time_out(bdev, &fake.aborts);
	assert_int_equal(fake.resets, 0);
	fake.refuse_aborts = true;
	attach_one(false, &bdev);
	time_out(bdev, &fake.resets);
	options.action_on_timeout = DP_SPDK_ACTION_RESET;
	assert_int_equal(dp_spdk_set_options(&options, err), 0);
	assert_int_equal(attach_with(&(struct dp_spdk_attach){ .name = "N", .trtype = "TCP", .traddr = "::1", .trsvcid = "4420",
							       .adrfam = "IPv6", .subnqn = "nqn.x" }), 0);
	time_out(bdev_create("Nn1", 1), &fake.resets);
	assert_int_equal(dp_spdk_set_options(&usual, err), 0);
}

static void test_bounce(void **state)
{
	uint32_t bytes = 400u << 10;
	struct ask ask = { .data = malloc(bytes) };
	struct dp_spdk_ctrlr *shown;
	struct bdev *bdev;
	uint8_t *back = malloc(bytes);

	attach_one(true, &bdev);
	for (uint32_t i = 0; i < bytes; i++)
		ask.data[i] = back[i] = (uint8_t)(i * 7 + i / 4096);
	assert_false(dp_spdk_mem_reaches(ask.data, bytes));
	assert_true(dp_spdk_mem_reaches(engine_reactor(0)->pool.base, 8192));
	assert_int_equal(ask_once(&ask, bdev, BDEV_WRITE, 0, bytes), 0); /* the fake aborts if the drive were given that memory */
	assert_memory_equal(fake.disk[1], back, bytes);
	memset(ask.data, 0, bytes);
	assert_int_equal(ask_once(&ask, bdev, BDEV_READ, 0, bytes), 0);
	assert_memory_equal(ask.data, back, bytes);
	assert_int_equal(dp_spdk_ctrlrs(NULL, &shown), 1);
	assert_int_equal(shown->bounced_ops, 8);
	assert_int_equal(shown->bounced_bytes, 2 * bytes);
	dp_spdk_ctrlrs_free(shown, 1);
	bdev_delete("Nn1");
	assert_int_equal(detach(), 0);
	free(ask.data);
	free(back);
}

static _Atomic unsigned gone;

static void on_gone(void *arg, const char *why)
{
	gone++;
}

static void test_removal(void **state)
{
	struct ask ask = { .data = malloc(4096) };
	struct dp_spdk_hold *hold;
	uint64_t phys, size;
	struct bdev *bdev;
	void *mapped;
	unsigned over;

	attach_one(true, &bdev);
	gone = 0;
	assert_null(dp_spdk_hold("0000:06:00.0", on_gone, NULL));
	hold = dp_spdk_hold(BDF, on_gone, NULL);
	assert_non_null(hold);
	assert_non_null(dp_spdk_registers(hold));
	assert_int_equal(dp_spdk_map_bar(hold, 2, &mapped, &phys, &size), 0);
	assert_int_equal(detach(), -EBUSY);
	fake.hold = true;
	many_send(bdev, BDEV_WRITE, &over);
	in_drive(BOUNCES); /* the others wait for one of those: the memory is not reached */
	unplug();
	many_over(bdev, &over, -ENXIO, false);
	await(&seen.lost, 1);
	assert_int_equal(gone, 1);
	assert_int_equal(fake.detaches, 0); /* what is mapped stays */
	dp_spdk_unmap_bar(hold, 2, mapped);
	dp_spdk_let_go(hold);
	while (!fake.detaches)
		loop_step(1);
	assert_int_equal(ask_once(&ask, bdev, BDEV_READ, 0, 512), -ENXIO);
	fake.hold = false;
	dp_spdk_set_hotplug(true, 10000);
	plug();
	await(&seen.changed, 1);
	assert_int_equal(ask_once(&ask, bdev, BDEV_READ, 0, 512), 0);
	dp_spdk_set_hotplug(false, 0);
	fake.fatal = true;
	while (fake.resets < 1)
		loop_step(1);
	assert_int_equal(ask_once(&ask, bdev, BDEV_READ, 0, 512), 0);
	bdev_delete("Nn1");
	assert_int_equal(detach(), 0);
	free(ask.data);
}

/* The first bdev of a drive that was attached and has left. */
static struct bdev *pulled(void)
{
	struct bdev *bdev;

	attach_one(true, &bdev);
	unplug();
	await(&seen.lost, 1);
	while (fake.detaches < 1)
		loop_step(1);
	return bdev;
}

/* A drive that comes back with too few queues is refused each time; it can be detached all the same. */
static void test_back_with_too_few_queues(void **state)
{
	pulled();
	fake.io_queues = 0;
	dp_spdk_set_hotplug(true, 10000);
	plug();
	while (fake.detaches < 3)
		loop_step(1);
	dp_spdk_set_hotplug(false, 0);
	bdev_delete("Nn1");
	assert_int_equal(detach(), 0);
}

static void is_another(const char *identity)
{
	struct dp_spdk_ctrlr *shown;

	assert_int_equal(dp_spdk_ctrlrs("N", &shown), 1);
	assert_int_equal(shown->num_ns, 3);
	assert_string_equal(shown->ns[0].identity, identity);
	assert_int_equal(shown->ns[0].facts.num_blocks, 0);
	assert_non_null(strstr(shown->ns[0].refused, "another one than before"));
	dp_spdk_ctrlrs_free(shown, 1);
}

/* A drive in the place of another: its bytes are not those that the hosts know. The right one is welcome again. */
static void test_another_drive(void **state)
{
	const struct dp_bdev_config second = { .kind = DP_BDEV_SPDK, .name = "Nn2", .ctrlr = "N", .nsid = 2 };
	struct ask ask = { .data = malloc(4096) };
	struct dp_bdev_facts facts;
	struct bdev *bdev;

	bdev = pulled();
	fake.drive = '2';
	dp_spdk_set_hotplug(true, 10000);
	plug();
	await(&seen.told, 2);
	assert_int_equal(ask_once(&ask, bdev, BDEV_READ, 0, 512), -ENODEV);
	assert_int_equal(ask_once(&ask, bdev, BDEV_WRITE, 0, 512), -ENODEV);
	assert_int_equal(seen.changed, 0);
	is_another("0000.FAKE0001");
	assert_int_equal(dp_bdev_create(&second, &facts, err), -ENODEV); /* though its NGUID is the same */
	assert_non_null(strstr(err, "0000.FAKE0002/ab000000-0000-0000-0000-000000000001"));
	unplug();
	while (fake.detaches < 2)
		loop_step(1);
	fake.drive = '1';
	plug();
	await(&seen.changed, 1);
	dp_spdk_set_hotplug(false, 0);
	assert_int_equal(ask_once(&ask, bdev, BDEV_READ, 0, 512), 0);
	assert_int_equal(ask.data[0], 0x11);
	bdev = bdev_create("Nn2", 2);
	bdev_delete("Nn2");
	bdev_delete("Nn1");
	assert_int_equal(detach(), 0);
	free(ask.data);
}

/* Which namespaces there were before this process, or this attachment, is said with it. */
static void test_known_before(void **state)
{
	static const struct dp_spdk_identity known[] = {{ 1, "0000.FAKE0001" },
							{ 2, "ab000000-0000-0000-0000-000000000001" },
							{ 7, "nobody" }};
	const struct dp_bdev_config one = { .kind = DP_BDEV_SPDK, .name = "Nn1", .ctrlr = "N", .nsid = 1 };
	struct ask ask = { .data = malloc(4096) };
	struct dp_spdk_attach attach = tcp();
	struct dp_bdev_facts facts;
	struct bdev *bdev;

	attach.known = known;
	attach.num_known = DP_ARRAY_LEN(known);
	fake.drive = '2';
	assert_int_equal(attach_with(&attach), 0);
	is_another("0000.FAKE0001");
	assert_int_equal(dp_bdev_create(&one, &facts, err), -ENODEV);
	assert_non_null(strstr(err, "0000.FAKE0002"));
	bdev = bdev_create("Nn2", 2);
	bdev_delete("Nn2");
	for (int i = 0; i < 2; i++) {
		fake.drive = '1';
		fake.event = true;
		await(&seen.told, 2 * (unsigned)i + 1);
		bdev = bdev_create("Nn1", 1);
		assert_true(nvme_pass_can(bdev->nvme, NVME_PASS_COMPARE)); /* what it can was found out of the right one */
		assert_int_equal(ask_once(&ask, bdev, BDEV_READ, 0, 512), 0);
		bdev_delete("Nn1");
		fake.drive = '2';
		fake.event = true;
		await(&seen.told, 2 * (unsigned)i + 2);
		is_another("0000.FAKE0001");
	}
	assert_int_equal(detach(), 0);
	free(ask.data);
}

/* A target may have another serial number after each start; what namespaces are called themselves counts, if they are. */
static void test_another_target(void **state)
{
	struct ask first = { .data = malloc(4096) }, second = { .data = malloc(4096) };
	struct bdev *bdev, *named;

	attach_one(false, &bdev);
	named = bdev_create("Nn2", 2);
	fake.drive = '2';
	reset_now(0);
	await(&seen.told, 1);
	assert_int_equal(ask_once(&first, bdev, BDEV_WRITE, 0, 512), -ENODEV);
	is_another("0000.FAKE0001");
	assert_int_equal(ask_once(&second, named, BDEV_READ, 0, 4096), 0);
	fake.drive = '1';
	fake.volume = 0xAC;
	fake.event = true;
	await(&seen.told, 2);
	assert_int_equal(ask_once(&first, bdev, BDEV_READ, 0, 512), 0);
	assert_int_equal(ask_once(&second, named, BDEV_READ, 0, 4096), -ENODEV);
	fake.eui64 = 0x5A; /* one that had no name of its own has one now */
	fake.event = true;
	await(&seen.told, 3);
	assert_int_equal(ask_once(&first, bdev, BDEV_READ, 0, 512), -ENODEV);
	bdev_delete("Nn1");
	bdev_delete("Nn2");
	assert_int_equal(detach(), 0);
	free(first.data);
	free(second.data);
}

static void test_namespaces_change(void **state)
{
	struct dp_spdk_ctrlr *shown;
	struct bdev *bdev;
	struct ask ask = { .data = malloc(4096) };

	attach_one(false, &bdev);
	fake.active = 1 << 2 | 1 << 4;
	fake.event = true;
	await(&seen.lost, 1);
	await(&seen.told, 1);
	assert_int_equal(ask_once(&ask, bdev, BDEV_READ, 0, 512), -ENODEV);
	assert_int_equal(dp_spdk_ctrlrs("N", &shown), 1);
	assert_int_equal(shown->num_ns, 2);
	assert_string_equal(shown->ns[1].bdev, "Nn4");
	dp_spdk_ctrlrs_free(shown, 1);
	bdev_delete("Nn1");
	bdev = bdev_create("Nn4", 4);
	assert_int_equal(ask_once(&ask, bdev, BDEV_READ, 0, 4096), 0);
	assert_int_equal(ask.data[0], 0x44);
	bdev_delete("Nn4");
	assert_int_equal(detach(), 0);
	free(ask.data);
}

static struct {
	struct nvme_pass *pass;
	uint8_t data[4096];
	int equal, unequal, verified, copied;
} own;

static void *own_commands(void *arg)
{
	struct nvme_copy copy = { .to = own.pass, .offset = 8192 };

	own.equal = nvme_pass_compare(own.pass, 0, own.data, 4096, false);
	own.data[77] ^= 1;
	own.unequal = nvme_pass_compare(own.pass, 0, own.data, 4096, false);
	own.verified = nvme_pass_verify(own.pass, 0, 65536, false);
	nvme_copy_add(&copy, own.pass, 0, 4096);
	own.copied = nvme_copy_send(&copy);
	return NULL;
}

static void test_own_commands(void **state)
{
	struct bdev *bdev;
	pthread_t worker;

	attach_one(true, &bdev);
	own.pass = bdev->nvme;
	assert_true(nvme_pass_can(own.pass, NVME_PASS_COPY) && nvme_pass_can(own.pass, NVME_PASS_COMPARE) &&
		    nvme_pass_can(own.pass, NVME_PASS_VERIFY));
	memset(fake.disk[1], 0x5A, 4096);
	memset(own.data, 0x5A, 4096);
	assert_int_equal(pthread_create(&worker, NULL, own_commands, NULL), 0);
	pthread_join(worker, NULL);
	assert_int_equal(own.equal, 0);
	assert_int_equal(own.unequal, 0x285);
	assert_int_equal(own.verified, 0);
	assert_int_equal(own.copied, 0);
	assert_memory_equal(fake.disk[1] + 8192, fake.disk[1], 4096);
	assert_int_equal(fake.raws, 4);
	bdev_delete("Nn1");
	assert_int_equal(detach(), 0);
}

static unsigned healths;

static void on_health(void *arg, int rc, const char *text, const uint8_t page[512])
{
	assert_int_equal(rc, arg ? 0 : -ENODEV);
	if (arg)
		assert_int_equal(page[1] | page[2] << 8, 300);
	healths++;
}

static void test_health(void **state)
{
	struct bdev *bdev;

	healths = 0;
	dp_spdk_health("N", on_health, NULL);
	await(&healths, 1);
	attach_one(false, &bdev);
	dp_spdk_health("N", on_health, &bdev);
	await(&healths, 2);
	/* left to dp_stop, with its bdev */
}

/* The admin queue is lost while a namespace is looked at; its command ends when nobody waits for it any more. */
static void test_answer_after_all(void **state)
{
	struct bdev *bdev;

	fake.admin_lost = 1;
	attach_one(false, &bdev);
	assert_int_equal(fake.admin_lost, 0);
	bdev_delete("Nn1");
	assert_int_equal(detach(), 0);
}

int main(void)
{
	const struct CMUnitTest tests[] = {
		cmocka_unit_test_setup_teardown(test_attach, start, stop),
		cmocka_unit_test_setup_teardown(test_answer_after_all, start, stop),
		cmocka_unit_test_setup_teardown(test_io, start, stop),
		cmocka_unit_test_setup_teardown(test_statuses, start, stop),
		cmocka_unit_test_setup_teardown(test_no_room, start, stop),
		cmocka_unit_test_setup_teardown(test_reset, start, stop),
		cmocka_unit_test_setup_teardown(test_broken, start, stop),
		cmocka_unit_test_setup_teardown(test_failed, start, stop),
		cmocka_unit_test_setup_teardown(test_reconnect, start, stop),
		cmocka_unit_test_setup_teardown(test_own_times, start, stop),
		cmocka_unit_test_setup_teardown(test_timeout, start, stop),
		cmocka_unit_test_setup_teardown(test_bounce, start, stop),
		cmocka_unit_test_setup_teardown(test_removal, start, stop),
		cmocka_unit_test_setup_teardown(test_back_with_too_few_queues, start, stop),
		cmocka_unit_test_setup_teardown(test_another_drive, start, stop),
		cmocka_unit_test_setup_teardown(test_another_target, start, stop),
		cmocka_unit_test_setup_teardown(test_known_before, start, stop),
		cmocka_unit_test_setup_teardown(test_namespaces_change, start, stop),
		cmocka_unit_test_setup_teardown(test_own_commands, start, stop),
		cmocka_unit_test_setup_teardown(test_health, start, stop),
	};

	return cmocka_run_group_tests(tests, NULL, NULL);
}

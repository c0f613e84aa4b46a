/* SPDX-License-Identifier: BSD-3-Clause
 *
 * Controllers in user space in the whole engine, on two reactors, with a fake of SPDK (fake_spdk.h) that watches who touches
 * what: attach, I/O, resets and timeouts under I/O, commands of a drive's own.
 */
#include "spdk_host.h"

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
		cmocka_unit_test_setup_teardown(test_own_commands, start, stop),
		cmocka_unit_test_setup_teardown(test_health, start, stop),
	};

	return cmocka_run_group_tests(tests, NULL, NULL);
}

/* SPDX-License-Identifier: BSD-3-Clause
 *
 * Drives and namespaces that go, come back, or are others then: what is told, what hosts get, what is refused.
 */
#include "spdk_host.h"

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

int main(void)
{
	const struct CMUnitTest tests[] = {
		cmocka_unit_test_setup_teardown(test_removal, start, stop),
		cmocka_unit_test_setup_teardown(test_back_with_too_few_queues, start, stop),
		cmocka_unit_test_setup_teardown(test_another_drive, start, stop),
		cmocka_unit_test_setup_teardown(test_another_target, start, stop),
		cmocka_unit_test_setup_teardown(test_known_before, start, stop),
		cmocka_unit_test_setup_teardown(test_namespaces_change, start, stop),
	};

	return cmocka_run_group_tests(tests, NULL, NULL);
}

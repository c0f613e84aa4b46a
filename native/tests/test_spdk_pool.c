/* SPDX-License-Identifier: BSD-3-Clause
 *
 * Pools in the memory of drives on vfio-pci, in the whole engine: which bdevs may use them, calibration where no file leads
 * to the drive, and what becomes of what a probe has left behind.
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
#include "fake_disk.h"
#include "fake_drive.h"
#include "loop.h"
#include "pool_priv.h"
#include "spdk.h"

#define G POOL_GRANULE

static char folder[32], journal[64], file[64], err[DP_ERR_MAX];
static const char *serial;

size_t dp_spdk_ctrlrs(const char *name, struct dp_spdk_ctrlr **ctrlrs)
{
	struct dp_spdk_ctrlr *c = *ctrlrs = calloc(1, sizeof(*c));

	c->ns = calloc(1, sizeof(*c->ns));
	c->num_ns = 1;
	c->ns->nsid = 1;
	snprintf(c->serial, sizeof(c->serial), "%s", serial);
	snprintf(c->model, sizeof(c->model), "a model");
	snprintf(c->ns->bdev, sizeof(c->ns->bdev), "Nvme0n1");
	return 1;
}

void dp_spdk_ctrlrs_free(struct dp_spdk_ctrlr *ctrlrs, size_t count)
{
	free(ctrlrs->ns);
	free(ctrlrs);
}

static void assert_unchanged(void)
{
	for (uint32_t i = 0; i < FAKE_DISK_BYTES; i++)
		if (fake_disk->bytes[i] != (uint8_t)(i * 7 + i / 4096))
			fail_msg("byte %u of the drive has changed", i);
}

/* -- the engine */

static unsigned dones;
static int last_rc;
static char last_text[DP_ERR_MAX];

static void await(unsigned until)
{
	while (dones < until)
		loop_step(-1);
}

static void done(void *arg, int rc)
{
	last_rc = rc;
	dones++;
}

static void on_calibrated(void *arg, int rc, const struct dp_calibration *result)
{
	*(struct dp_calibration *)arg = *result;
	done(NULL, rc);
}

static void on_restored(void *arg, int rc, const char *text)
{
	snprintf(last_text, sizeof(last_text), "%s", text);
	done(NULL, rc);
}

static void on_pool_lost(const char *name, const char *why)
{
}

static void on_bdev_changed(const char *name, const struct dp_bdev_facts *facts)
{
}

static const struct dp_events events = { .pool_lost = on_pool_lost, .bdev_changed = on_bdev_changed };

static void create_bdev(enum dp_bdev_kind kind, const char *name)
{
	struct dp_bdev_config config = { .kind = kind, .name = name, .filename = file, .block_size = kind == DP_BDEV_URING ? 4096 : 0,
					 .ctrlr = "Nvme0", .nsid = 1 };
	struct dp_bdev_facts facts;

	if (dp_bdev_create(&config, &facts, err) < 0)
		fail_msg("%s", err);
}

static int start(void **state)
{
	struct dp_options options = { .cpumask = "0x1", .pool_bytes = 8u << 20, .post = loop_post, .events = &events };

	fake_reset();
	fake.bdev_open = fake_disk_open;
	serial = "S1";
	strcpy(folder, "/tmp/test_spdk_pool.XXXXXX");
	assert_non_null(mkdtemp(folder));
	snprintf(journal, sizeof(journal), "%s/journal", folder);
	snprintf(file, sizeof(file), "%s/file", folder);
	close(open(file, O_CREAT | O_RDWR, 0600));
	assert_int_equal(truncate(file, 2 << 20), 0);
	assert_int_equal(loop_open(), 0);
	if (dp_start(&options, err) < 0)
		fail_msg("%s", err);
	create_bdev(DP_BDEV_SPDK, "Nvme0n1");
	return 0;
}

static int stop(void **state)
{
	unsigned before = dones;

	dp_stop(done, NULL);
	await(before + 1);
	loop_close();
	unlink(file);
	assert_int_equal(rmdir(folder), 0); /* no journal is left */
	assert_int_equal(fake.open, 0);
	assert_null(fake.shared);
	return 0;
}

static int create_pool(const char *name, enum dp_pool_kind kind, const char *path, uint64_t bytes)
{
	struct dp_pool_config config = { .name = name, .kind = kind, .path = path, .bytes = bytes };
	struct dp_pool_facts facts;

	return dp_pool_create(&config, &facts, err);
}

static struct dp_calibration calibrate(const char *pool)
{
	struct dp_calibrate_config config = { .pool = pool, .bdev = "Nvme0n1", .journal = journal };
	struct dp_calibration result;
	unsigned before = dones;

	if (dp_pool_calibrate(&config, on_calibrated, &result, err) < 0)
		fail_msg("%s", err);
	await(before + 1);
	return result;
}

static void restore(int want)
{
	unsigned before = dones;

	assert_int_equal(dp_pool_restore("Nvme0n1", journal, on_restored, NULL, err), 0);
	await(before + 1);
	assert_int_equal(last_rc, want);
}

/* -- */

static void a_drive_without_a_file_is_calibrated(void **state)
{
	struct dp_calibration result;
	struct dp_pool_stat *stats;

	assert_int_equal(create_pool(FAKE_BDF, DP_POOL_SPDK_CMB, NULL, 0), 0);
	result = calibrate(FAKE_BDF);
	assert_int_equal(last_rc, 0);
	assert_string_equal(result.reason, "");
	assert_true(result.verified);
	assert_true(result.drive_to_pool_mib_s > 0 && result.drive_to_host_mib_s > 0 && result.cpu_read_mib_s > 0);
	assert_true(fake_disk->in_pool > 8);
	assert_unchanged();
	assert_int_not_equal(access(journal, F_OK), 0);
	assert_int_equal(dp_pool_allow(FAKE_BDF, "Nvme0n1", true, err), 0);
	assert_int_equal(dp_pool_stats(&stats), 1);
	assert_string_equal(stats->device.region, "cmb");
	assert_true(stats->device.spdk);
	assert_string_equal(stats->allowed[0], "Nvme0n1");
	dp_pool_stats_free(stats, 1);
}

static void a_pool_that_lies_is_found_out(void **state)
{
	struct dp_calibration result;

	assert_int_equal(create_pool(FAKE_BDF, DP_POOL_SPDK_CMB, NULL, 0), 0);
	fake_bar_fill(2, 0xFF); /* it is gone, and nobody has told */
	result = calibrate(FAKE_BDF);
	assert_false(result.verified);
	assert_non_null(strstr(result.reason, "lost"));
	assert_unchanged();
}

static void who_cannot_reach_it_is_refused(void **state)
{
	struct dp_calibrate_config config = { .pool = FAKE_BDF, .bdev = "File", .journal = journal };

	create_bdev(DP_BDEV_URING, "File");
	assert_int_equal(create_pool(FAKE_BDF, DP_POOL_SPDK_CMB, NULL, 0), 0);
	assert_int_equal(create_pool("0000:04:00.0", DP_POOL_P2PMEM, file, 1 << 20), 0);
	assert_int_equal(dp_pool_allow(FAKE_BDF, "File", true, err), -EINVAL);
	assert_non_null(strstr(err, "memory of a drive on vfio-pci"));
	assert_int_equal(dp_pool_calibrate(&config, on_calibrated, NULL, err), -EINVAL);
	assert_int_equal(dp_pool_allow("0000:04:00.0", "Nvme0n1", true, err), -EINVAL);
	assert_non_null(strstr(err, "bind the provider to vfio-pci"));
	assert_int_equal(dp_pool_allow("0000:04:00.0", "File", true, err), 0);
}

static void memory_that_spdk_does_not_map_is_refused(void **state)
{
	fake.share_rc = -EFAULT;
	assert_int_equal(create_pool(FAKE_BDF, DP_POOL_SPDK_CMB, NULL, 0), 0);
	assert_int_equal(dp_pool_allow(FAKE_BDF, "Nvme0n1", true, err), -EINVAL);
	assert_non_null(strstr(err, "not mapped for SPDK's drives"));
}

static void damage(long at)
{
	int fd = open(journal, O_RDWR);
	uint8_t byte;

	assert_int_equal(pread(fd, &byte, 1, at), 1);
	byte ^= 1;
	assert_int_equal(pwrite(fd, &byte, 1, at), 1);
	close(fd);
}

static void what_a_probe_left_is_put_back(void **state)
{
	struct dp_calibration result;

	assert_int_equal(dp_pool_restore("Nvme0n1", journal, on_restored, NULL, err), 0);
	await(dones + 1);
	assert_int_equal(last_rc, -ENOENT);
	assert_int_equal(create_pool(FAKE_BDF, DP_POOL_SPDK_CMB, NULL, 0), 0);
	fake_disk->writes_left = 1; /* the pattern; then the drive takes no more */
	result = calibrate(FAKE_BDF);
	assert_int_equal(last_rc, -EIO);
	assert_non_null(strstr(result.reason, "NVMe status 280h"));
	assert_false(result.verified);
	assert_int_equal(access(journal, F_OK), 0);
	restore(-EIO);
	assert_non_null(strstr(last_text, "NVMe status 280h"));
	fake_disk->writes_left = UINT32_MAX;
	damage(5000);
	restore(-EUCLEAN);
	assert_non_null(strstr(last_text, "damaged"));
	damage(5000);
	serial = "S2"; /* another drive in its place */
	restore(-EUCLEAN);
	assert_non_null(strstr(last_text, "another drive"));
	serial = "S1";
	restore(0);
	assert_unchanged();
	assert_int_not_equal(access(journal, F_OK), 0);
	create_bdev(DP_BDEV_URING, "File");
	assert_int_equal(dp_pool_restore("File", journal, on_restored, NULL, err), -EINVAL);
	assert_int_equal(dp_pool_restore("x", journal, on_restored, NULL, err), -ENODEV);
}

int main(void)
{
	const struct CMUnitTest tests[] = {
		cmocka_unit_test_setup_teardown(a_drive_without_a_file_is_calibrated, start, stop),
		cmocka_unit_test_setup_teardown(a_pool_that_lies_is_found_out, start, stop),
		cmocka_unit_test_setup_teardown(who_cannot_reach_it_is_refused, start, stop),
		cmocka_unit_test_setup_teardown(memory_that_spdk_does_not_map_is_refused, start, stop),
		cmocka_unit_test_setup_teardown(what_a_probe_left_is_put_back, start, stop),
	};

	return cmocka_run_group_tests(tests, NULL, NULL);
}

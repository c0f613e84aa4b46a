/* SPDX-License-Identifier: BSD-3-Clause
 *
 * Calibration on a file, with an emulated pool and a fabric that a test can make lie.
 */
#include "pool_rig.h"

#include "calibrate.h"
#include "crc32c.h"

#define FILE_BYTES (3u << 20)

enum lie {
	TRUTH,
	FLIP_TO_DRIVE,  /* a bit changes on the way */
	FLIP_TO_POOL,
	NOWHERE,        /* what the drive writes arrives nowhere */
	BESIDE,         /* one granule too far */
	REFUSED,        /* as the kernel does */
	LOST,           /* the provider goes away */
	NOT_PUT_BACK,   /* the drive takes no writes from host memory */
	CRASH,          /* the process dies after the first write */
};

static struct rig_drive {
	struct calibrate_drive drive;
	enum lie lie;
	struct pool *pool;
	unsigned from_pool, to_pool, writes;
	uint8_t before[FILE_BYTES], now[FILE_BYTES];
	bool journal_right;
	char folder[32], file[64], journal[64];
} rig;

static bool in_pool(const struct iovec *iov)
{
	return pool_of(iov[0].iov_base) == rig.pool;
}

/* What somebody who finds the journal knows. */
static bool journal_is_right(struct calibrate_journal *header, uint8_t *data, size_t room)
{
	int fd = open(rig.journal, O_RDONLY);
	ssize_t n;
	uint32_t crc;

	if (fd < 0)
		return false;
	n = read(fd, header, sizeof(*header));
	if (n == (ssize_t)sizeof(*header) && header->length <= room)
		n = read(fd, data, room);
	close(fd);
	crc = header->crc;
	header->crc = 0;
	return n == (ssize_t)header->length && memcmp(header->magic, "nvmet-p2p probe\n", 16) == 0 && header->version == 1 &&
	       header->drive_bytes == FILE_BYTES && strcmp(header->bdev, "Drive0") == 0 && strcmp(header->pool, "p") == 0 &&
	       strcmp(header->path, rig.file) == 0 &&
	       crc32c(crc32c(0, header, sizeof(*header)), data, (size_t)n) == crc &&
	       memcmp(data, rig.before + header->offset, (size_t)n) == 0;
}

static ssize_t (*honest_read)(struct calibrate_drive *, const struct iovec *, int, uint64_t);
static ssize_t (*honest_write)(struct calibrate_drive *, const struct iovec *, int, uint64_t);

static ssize_t rig_read(struct calibrate_drive *drive, const struct iovec *iov, int n, uint64_t offset)
{
	struct iovec moved;
	static uint8_t drop[2u << 20];

	if (!in_pool(iov))
		return honest_read(drive, iov, n, offset);
	rig.to_pool++;
	switch (rig.lie) {
	case FLIP_TO_POOL:
		honest_read(drive, iov, n, offset);
		((uint8_t *)iov[0].iov_base)[4097] ^= 1;
		return (ssize_t)iov[0].iov_len;
	case NOWHERE:
		moved = (struct iovec){ drop, iov[0].iov_len };
		return honest_read(drive, &moved, 1, offset);
	case BESIDE:
		moved = (struct iovec){ (uint8_t *)iov[0].iov_base + G, iov[0].iov_len };
		return honest_read(drive, &moved, 1, offset);
	default:
		/* short ones are allowed */
		moved = (struct iovec){ iov[0].iov_base, iov[0].iov_len > 3 * G ? 3 * G : iov[0].iov_len };
		return honest_read(drive, &moved, 1, offset);
	}
}

static ssize_t rig_write(struct calibrate_drive *drive, const struct iovec *iov, int n, uint64_t offset)
{
	static uint8_t changed[2u << 20];
	struct calibrate_journal header;
	struct iovec moved;
	ssize_t rc;

	if (rig.writes++ == 0)
		rig.journal_right = journal_is_right(&header, changed, sizeof(changed)) && header.offset <= offset &&
				    offset < header.offset + header.length;
	if (!in_pool(iov))
		return rig.lie == NOT_PUT_BACK && rig.from_pool ? -ENOSPC : honest_write(drive, iov, n, offset);
	rig.from_pool++;
	switch (rig.lie) {
	case FLIP_TO_DRIVE:
		memcpy(changed, iov[0].iov_base, iov[0].iov_len);
		changed[513] ^= 0x80;
		moved = (struct iovec){ changed, iov[0].iov_len };
		return honest_write(drive, &moved, 1, offset);
	case REFUSED:
		return -EINVAL;
	case LOST:
		if (ftruncate(rig.pool->fd, 0) < 0)
			return -EIO;
		return honest_write(drive, iov, n, offset);
	case CRASH:
		rc = honest_write(drive, iov, n, offset);
		_exit(rc > 0 ? 42 : 1);
	default:
		return honest_write(drive, iov, n, offset);
	}
}

static void begin(enum lie lie, uint32_t granules, uint32_t block_size)
{
	memset(&rig, 0, sizeof(rig));
	strcpy(rig.folder, "/tmp/test_calibrate.XXXXXX");
	assert_non_null(mkdtemp(rig.folder));
	snprintf(rig.file, sizeof(rig.file), "%s/drive", rig.folder);
	snprintf(rig.journal, sizeof(rig.journal), "%s/journal", rig.folder);
	for (size_t i = 0; i < FILE_BYTES; i++)
		rig.before[i] = (uint8_t)rnd(256);
	int fd = open(rig.file, O_RDWR | O_CREAT, 0600);

	assert_true(fd >= 0);
	assert_int_equal(write(fd, rig.before, FILE_BYTES), FILE_BYTES);
	calibrate_drive_init(&rig.drive, fd);
	honest_read = rig.drive.readv;
	honest_write = rig.drive.writev;
	rig.drive.readv = rig_read;
	rig.drive.writev = rig_write;
	rig.drive.block_size = block_size;
	rig.drive.bytes = FILE_BYTES;
	rig.drive.name = "Drive0";
	rig.drive.journal = rig.journal;
	rig.lie = lie;
	rig.pool = open_pool("p", granules);
}

static bool unchanged(void)
{
	assert_int_equal(pread(rig.drive.fd, rig.now, FILE_BYTES, 0), FILE_BYTES);
	return memcmp(rig.before, rig.now, FILE_BYTES) == 0;
}

static void end(bool journal_left)
{
	assert_int_equal(access(rig.journal, F_OK), journal_left ? 0 : -1);
	assert_int_equal(rig.pool->in_use, 0);
	close_pool(rig.pool);
	close(rig.drive.fd);
	unlink(rig.file);
	unlink(rig.journal);
	assert_int_equal(rmdir(rig.folder), 0);
}

static void verify(struct dp_calibration *result, int rc)
{
	memset(result, 0, sizeof(*result));
	assert_int_equal(calibrate_verify(rig.pool, &rig.drive, result), rc);
	assert_int_equal(result->verified, result->reason[0] == 0);
	assert_int_equal(pool_is_lost(rig.pool), rig.lie == LOST);
}

static void a_drive_that_reaches_the_pool_is_verified(void **state)
{
	static const struct {
		uint32_t granules, block_size;
	} shapes[] = { { 4096, 512 }, { 600, 4096 }, { 64, 512 }, { 5, 4096 }, { 3, 512 }, { 1, 512 }, { 33, 16384 }, { 2000, 1u << 20 } };
	struct dp_calibration result;

	for (size_t i = 0; i < DP_ARRAY_LEN(shapes); i++) {
		begin(TRUTH, shapes[i].granules, shapes[i].block_size);
		verify(&result, 0);
		if (!result.verified)
			fail_msg("%u granules: %s", shapes[i].granules, result.reason);
		assert_true(rig.journal_right);
		assert_true(rig.from_pool > 0 && rig.to_pool > 0);
		if (shapes[i].granules == 4096)
			assert_int_equal(rig.from_pool, 4); /* four places of it */
		assert_true(unchanged());
		end(false);
	}
}

static void a_bit_that_changes_is_found(void **state)
{
	struct dp_calibration result;

	begin(FLIP_TO_DRIVE, 600, 512);
	verify(&result, 0);
	assert_non_null(strstr(result.reason, "pool to drive: 1 of"));
	assert_int_equal(rig.to_pool, 0); /* the other way is not even tried */
	assert_true(unchanged());
	end(false);
	begin(FLIP_TO_POOL, 600, 512);
	verify(&result, 0);
	assert_non_null(strstr(result.reason, "drive to pool: 1 of"));
	assert_true(unchanged());
	end(false);
}

static void bytes_that_go_astray_are_missed(void **state)
{
	struct dp_calibration result;

	for (enum lie lie = NOWHERE; lie <= BESIDE; lie++) {
		begin(lie, 600, 512);
		verify(&result, 0);
		assert_non_null(strstr(result.reason, "drive to pool: "));
		assert_true(unchanged());
		end(false);
	}
}

static void what_the_kernel_refuses_is_refused(void **state)
{
	struct dp_calibration result;

	begin(REFUSED, 600, 512);
	verify(&result, 0);
	assert_non_null(strstr(result.reason, "the kernel refuses it"));
	assert_true(unchanged());
	end(false);
}

static void a_pool_lost_on_the_way_leaves_the_drive_as_it_was(void **state)
{
	struct dp_calibration result;

	begin(LOST, 600, 512);
	verify(&result, 0);
	assert_non_null(strstr(result.reason, "lost"));
	assert_true(unchanged());
	memset(&result, 0, sizeof(result));
	calibrate_cpu(rig.pool, &result);
	assert_non_null(strstr(result.reason, "lost"));
	end(false);
}

static void blocks_that_cannot_be_put_back_stay_in_the_journal(void **state)
{
	struct calibrate_journal header;
	static uint8_t data[2u << 20];
	struct dp_calibration result;

	begin(NOT_PUT_BACK, 600, 512);
	verify(&result, -EIO);
	assert_non_null(strstr(result.reason, rig.journal));
	assert_false(unchanged());
	assert_true(journal_is_right(&header, data, sizeof(data)));
	/* And no other probe overwrites that. */
	rig.lie = TRUTH;
	verify(&result, 0);
	assert_non_null(strstr(result.reason, "earlier probe"));
	assert_true(journal_is_right(&header, data, sizeof(data)));
	end(true);
}

static void after_a_crash_the_journal_has_all_that_is_needed(void **state)
{
	struct calibrate_journal header;
	static uint8_t data[2u << 20];
	struct dp_calibration result;
	int status;

	begin(CRASH, 600, 512);
	pid_t child = fork();

	if (child == 0) {
		verify(&result, 0);
		_exit(0);
	}
	assert_int_equal(waitpid(child, &status, 0), child);
	assert_true(WIFEXITED(status) && WEXITSTATUS(status) == 42);
	assert_false(unchanged());
	assert_true(journal_is_right(&header, data, sizeof(data)));
	assert_int_equal(pwrite(rig.drive.fd, data, header.length, (off_t)header.offset), (ssize_t)header.length);
	assert_true(unchanged());
	end(true);
}

static void without_a_journal_nothing_is_written(void **state)
{
	struct dp_calibration result;

	begin(TRUTH, 600, 512);
	rig.drive.journal = "/nowhere/at/all";
	verify(&result, 0);
	assert_non_null(strstr(result.reason, "journal"));
	assert_int_equal(rig.writes, 0);
	assert_true(unchanged());
	end(false);
}

static void a_full_pool_is_not_waited_for(void **state)
{
	struct dp_calibration result;
	struct pool_buf *all;

	begin(TRUTH, 60, 512);
	all = get(rig.pool, 60, NULL);
	verify(&result, 0);
	assert_non_null(strstr(result.reason, "room"));
	pool_put(all);
	assert_true(unchanged());
	end(false);
}

static void speeds_are_measured(void **state)
{
	struct dp_calibration result = { 0 };

	begin(TRUTH, 600, 512);
	calibrate_cpu(rig.pool, &result);
	calibrate_bandwidth(rig.pool, &rig.drive, &result);
	assert_string_equal(result.reason, "");
	assert_true(result.cpu_write_mib_s > 1 && result.cpu_read_mib_s > 1);
	assert_true(result.host_write_mib_s > 1 && result.host_read_mib_s > 1);
	assert_true(result.drive_to_pool_mib_s > 0 && result.drive_to_host_mib_s > 0);
	assert_true(unchanged());
	end(false);
}

static void a_cancelled_probe_puts_everything_back(void **state)
{
	struct dp_calibration result;
	atomic_bool cancel = true;

	begin(TRUTH, 600, 512);
	rig.drive.cancel = &cancel;
	verify(&result, 0);
	assert_string_equal(result.reason, "cancelled");
	assert_true(unchanged());
	end(false);
}

int main(void)
{
	const struct CMUnitTest tests[] = {
		cmocka_unit_test_setup(a_drive_that_reaches_the_pool_is_verified, setup),
		cmocka_unit_test_setup(a_bit_that_changes_is_found, setup),
		cmocka_unit_test_setup(bytes_that_go_astray_are_missed, setup),
		cmocka_unit_test_setup(what_the_kernel_refuses_is_refused, setup),
		cmocka_unit_test_setup(a_pool_lost_on_the_way_leaves_the_drive_as_it_was, setup),
		cmocka_unit_test_setup(blocks_that_cannot_be_put_back_stay_in_the_journal, setup),
		cmocka_unit_test_setup(after_a_crash_the_journal_has_all_that_is_needed, setup),
		cmocka_unit_test_setup(without_a_journal_nothing_is_written, setup),
		cmocka_unit_test_setup(a_full_pool_is_not_waited_for, setup),
		cmocka_unit_test_setup(speeds_are_measured, setup),
		cmocka_unit_test_setup(a_cancelled_probe_puts_everything_back, setup),
	};

	return cmocka_run_group_tests(tests, NULL, NULL);
}

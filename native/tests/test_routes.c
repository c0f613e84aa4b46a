/* SPDX-License-Identifier: BSD-3-Clause
 *
 * test_routes.c: Copy by the drive and by shared extents, Compare and Verify by the drive, against a drive that is made
 * of files; worker threads.
 */
#include <errno.h>
#include <linux/fs.h>
#include <setjmp.h>
#include <stdarg.h>
#include <stdlib.h>
#include <sys/stat.h>
#include <unistd.h>

#include <cmocka.h>

#include "reflink.h"
#include "route_rig.h"

#define DNR 0x4000u
#define N(a) (sizeof(a) / sizeof((a)[0]))

static int defaults(void **state)
{
	rr_defaults();
	return 0;
}

static int closed(void **state)
{
	rr_close();
	return 0;
}

static void open_filled(void)
{
	rr_open();
	for (unsigned ns = 1; ns <= RR_NS; ns++)
		rr_fill(ns, ns);
}

/* -- worker threads */

#define JOBS 64

struct counted {
	struct offload_job job;
	_Atomic unsigned *running, *most;
	unsigned runs, dones;
	pthread_t by;
};

static void count_work(struct offload_job *job)
{
	struct counted *c = dp_container_of(job, struct counted, job);
	unsigned now = atomic_fetch_add(c->running, 1) + 1, most = atomic_load(c->most);

	while (now > most && !atomic_compare_exchange_weak(c->most, &most, now))
		;
	for (volatile int i = 0; i < 20000; i++)
		;
	c->runs++;
	c->by = pthread_self();
	atomic_fetch_sub(c->running, 1);
}

static void count_done(struct reactor *r, struct offload_job *job)
{
	dp_container_of(job, struct counted, job)->dones++;
}

static void test_offload(void **state)
{
	static struct counted jobs[JOBS];
	_Atomic unsigned running = 0, most = 0;
	struct reactor r = { .efd = -1 };

	for (unsigned round = 0; round < 3; round++) {
		for (unsigned i = 0; i < JOBS; i++) {
			jobs[i] = (struct counted){ .job = { .work = count_work, .done = count_done }, &running, &most };
			assert_true(offload_submit(&r, &jobs[i].job));
		}
		offload_drain();
		for (unsigned i = 0; i < JOBS; i++) {
			assert_int_equal(jobs[i].runs, 1);
			assert_int_equal(jobs[i].dones, 0); /* not on the worker */
			assert_false(pthread_equal(jobs[i].by, pthread_self()));
		}
		reactor_run_inbox(&r);
		for (unsigned i = 0; i < JOBS; i++)
			assert_int_equal(jobs[i].dones, 1);
		if (round)
			offload_stop(); /* and they come again */
	}
	assert_true(most <= OFFLOAD_WORKERS);
}

static sem_t gate, entered;

static void gated_work(struct offload_job *job)
{
	sem_post(&entered);
	sem_wait(&gate);
	dp_container_of(job, struct counted, job)->runs++;
}

static void test_offload_cancel(void **state)
{
	static struct counted jobs[OFFLOAD_WORKERS + 3];
	struct reactor r = { .efd = -1 };
	unsigned n = (unsigned)N(jobs);

	sem_init(&gate, 0, 0);
	sem_init(&entered, 0, 0);
	for (unsigned i = 0; i < n; i++) {
		jobs[i] = (struct counted){ .job = { .work = gated_work, .done = count_done } };
		assert_true(offload_submit(&r, &jobs[i].job));
	}
	for (unsigned i = 0; i < OFFLOAD_WORKERS; i++)
		sem_wait(&entered);
	assert_false(offload_cancel(&jobs[0].job)); /* at work */
	assert_true(offload_cancel(&jobs[n - 1].job));
	assert_true(offload_cancel(&jobs[n - 3].job));
	assert_false(offload_cancel(&jobs[n - 1].job)); /* no more */
	for (unsigned i = 0; i < n; i++)
		sem_post(&gate);
	offload_stop();
	reactor_run_inbox(&r);
	for (unsigned i = 0; i < n; i++)
		assert_int_equal(jobs[i].dones, i == n - 1 || i == n - 3 ? 0 : 1);
	assert_false(offload_cancel(&jobs[0].job)); /* over */
}

/* -- what a drive is */

static void test_open(void **state)
{
	rr.drive[0].mcl = 1000000;
	rr.drive[0].mssrl = 0xFFFF;
	rr.drive[0].msrc = 255;
	rr.drive[0].lbads = 12;
	rr.drive[1].none = true;
	rr.drive[2].metadata = true;
	rr_open();
	assert_null(rr.bdev[0]->nvme); /* the drive's block is larger than ours */
	assert_null(rr.bdev[1]->nvme);
	assert_null(rr.bdev[2]->nvme);
	rr_close();

	rr_defaults();
	rr.drive[0].mcl = 1000000;
	rr.drive[0].mssrl = 0xFFFF;
	rr.drive[0].msrc = 255;
	rr.drive[1].oncs = 0x80;
	rr.drive[2].oncs = 0;
	rr_open();
	assert_int_equal(rr.bdev[0]->nvme->copy_total, (8u << 20) / 512); /* far from the driver's timeout */
	assert_int_equal(rr.bdev[0]->nvme->copy_range, 0xFFFF);
	assert_int_equal(rr.bdev[0]->nvme->copy_ranges, NVME_COPY_RANGES);
	assert_int_equal(rr.bdev[0]->nvme->compare_bytes, 256u << 10);
	assert_int_equal(rr.bdev[0]->nvme->verify_bytes, 512u << 10);
	assert_int_equal(atomic_load(&rr.bdev[0]->nvme->can), 15);
	assert_int_equal(atomic_load(&rr.bdev[1]->nvme->can), NVME_PASS_VERIFY);
	assert_null(rr.bdev[2]->nvme); /* nothing that could be used */
	assert_int_equal(rr.behavior[4], 4); /* format 2 was enabled */
}

/* -- Copy by the drive */

static void test_copy_one_namespace(void **state)
{
	static const uint32_t ranges[][3] = { { 0, 10, 300 }, { 0, 1000, 1 }, { 0, 700, 128 }, { 0, 5, 7 } };
	uint64_t to = 2000;

	open_filled();
	assert_int_equal(rr_copy(1, 2000, 0, ranges, N(ranges), false), 0);
	rr_fill(2, 1); /* the same again, to compare with */
	for (unsigned i = 0; i < N(ranges); i++) {
		assert_memory_equal(rr_bytes(1, to, ranges[i][2]), rr_bytes(2, ranges[i][1], ranges[i][2]), ranges[i][2] * 512);
		to += ranges[i][2];
	}
	assert_memory_equal(rr_bytes(1, to, 8), rr_bytes(2, to, 8), 8 * 512);
	assert_memory_equal(rr_bytes(1, 1992, 8), rr_bytes(2, 1992, 8), 8 * 512);
	assert_int_equal(rr.copied, 436);
	assert_int_equal(rr.copies, 4); /* MCL of 128 blocks: filled as far as it goes */
	assert_int_equal(rr_route(1, DP_COPY_DEVICE), 436 * 512);
	assert_int_equal(rr_route(1, DP_COPY_HOST), 0);
}

static void test_copy_few_ranges(void **state)
{
	static const uint32_t ranges[][3] = { { 0, 10, 3 }, { 0, 20, 3 }, { 0, 30, 3 }, { 0, 40, 3 }, { 0, 50, 3 } };

	rr.drive[0].msrc = 1; /* two */
	rr.drive[0].mssrl = 2;
	open_filled();
	assert_int_equal(rr_copy(1, 100, 0, ranges, N(ranges), false), 0);
	rr_fill(2, 1);
	for (unsigned i = 0; i < N(ranges); i++)
		assert_memory_equal(rr_bytes(1, 100 + 3 * i, 3), rr_bytes(2, ranges[i][1], 3), 3 * 512);
	assert_int_equal(rr.copies, 5);
	assert_int_equal(rr.ranges, 10);
	assert_int_equal(rr_route(1, DP_COPY_DEVICE), 15 * 512);
}

static void test_copy_two_namespaces(void **state)
{
	static const uint32_t ranges[][3] = { { 2, 10, 100 }, { 3, 20, 30 }, { 1, 30, 40 } };

	open_filled();
	assert_int_equal(rr_copy(1, 1000, 2, ranges, 2, false), 0);
	assert_memory_equal(rr_bytes(1, 1000, 100), rr_bytes(2, 10, 100), 100 * 512);
	assert_memory_equal(rr_bytes(1, 1100, 30), rr_bytes(3, 20, 30), 30 * 512);
	assert_int_equal(rr.copies, 2);
	assert_int_equal(rr_copy(1, 2000, 2, ranges, 3, false), 0); /* the own namespace too, in format 0 */
	assert_memory_equal(rr_bytes(1, 2130, 40), rr_bytes(1, 30, 40), 40 * 512);
	assert_int_equal(rr_route(1, DP_COPY_DEVICE), (130 + 170) * 512);
	assert_int_equal(rr_route(1, DP_COPY_HOST), 0);
}

/* Each of these must not be given to the drive, and is copied nevertheless. */
static void test_copy_not_by_the_drive(void **state)
{
	static const uint32_t ranges[][3] = { { 2, 10, 100 }, { 3, 20, 30 } };

	for (unsigned how = 0; how < 6; how++) {
		rr_defaults();
		for (unsigned i = 1; i < RR_NS; i++) {
			struct drive *d = &rr.drive[i];

			if (how == 0)
				d->serial = "S2"; /* another drive */
			else if (how == 1)
				d->cntlid = 2; /* NSIDs of private namespaces mean something on their own controller only */
			else if (how == 2)
				d->shared = true;
			else if (how == 3)
				rr.drive[0].ocfs = 1; /* no format 2 */
			else if (how == 4)
				rr.no_features = true; /* it cannot be enabled */
			else
				d->none = true;
		}
		open_filled();
		assert_int_equal(rr_copy(1, 1000, 2, ranges, 2, false), 0);
		assert_memory_equal(rr_bytes(1, 1000, 100), rr_bytes(2, 10, 100), 100 * 512);
		assert_memory_equal(rr_bytes(1, 1100, 30), rr_bytes(3, 20, 30), 30 * 512);
		assert_int_equal(rr.copies, 0);
		assert_int_equal(rr_route(1, DP_COPY_DEVICE), 0);
		if (how < 5)
			rr_close();
	}
}

static void test_copy_shared_namespaces_of_two_controllers(void **state)
{
	static const uint32_t ranges[][3] = { { 2, 10, 100 } };

	for (unsigned i = 0; i < RR_NS; i++) {
		rr.drive[i].shared = true;
		rr.drive[i].cntlid = (uint16_t)i;
	}
	open_filled();
	assert_int_equal(rr_copy(1, 1000, 2, ranges, 1, false), 0);
	assert_int_equal(rr_route(1, DP_COPY_DEVICE), 100 * 512);
}

/* Some ranges by the drive, the others by memory: all of them arrive where they belong. */
static void test_copy_mixed(void **state)
{
	static const uint32_t ranges[][3] = { { 3, 1, 20 }, { 2, 10, 100 }, { 3, 20, 300 }, { 1, 30, 40 }, { 3, 9, 9 } };
	uint64_t to = 2000;

	rr.drive[2].serial = "S2";
	open_filled();
	assert_int_equal(rr_copy(1, to, 2, ranges, N(ranges), false), 0);
	for (unsigned i = 0; i < N(ranges); i++) {
		assert_memory_equal(rr_bytes(1, to, ranges[i][2]), rr_bytes(ranges[i][0], ranges[i][1], ranges[i][2]),
				    ranges[i][2] * 512);
		to += ranges[i][2];
	}
	assert_int_equal(rr_route(1, DP_COPY_DEVICE), 140 * 512);
	assert_int_equal(rr_route(1, DP_COPY_HOST), 329 * 512);
}

/* A partition: addresses of the namespace, and never beyond the partition's end. */
static void test_copy_partition(void **state)
{
	static const uint32_t ranges[][3] = { { 0, 10, 100 } };

	rr.drive[0].start = 1u << 20;
	open_filled();
	assert_int_equal(rr_copy(1, 1000, 0, ranges, 1, false), 0);
	assert_memory_equal(rr_bytes(1, 1000, 100), rr_bytes(1, 10, 100), 100 * 512);
	assert_int_equal(rr_route(1, DP_COPY_DEVICE), 100 * 512);
	rr.drive[0].size = 2099 * 512; /* it is smaller now; nobody has told us */
	assert_int_equal(rr_copy(1, 2000, 0, ranges, 1, false), 0); /* through the block layer, which would know */
	assert_int_equal(rr.copies, 1);
	rr.drive[0].size = 2100 * 512;
	assert_int_equal(rr_copy(1, 2000, 0, ranges, 1, false), 0);
	assert_int_equal(rr.copies, 2);
}

/* Two bdevs on one namespace (or its partitions): where source and destination meet, the drive's order is not ours. */
static void test_copy_one_namespace_twice(void **state)
{
	static const uint32_t meets[][3] = { { 2, 1050, 100 } }, apart[][3] = { { 2, 2000, 100 } };

	rr.drive[1].nsid = 1;
	open_filled();
	assert_int_equal(rr_copy(1, 1000, 2, meets, 1, false), 0);
	assert_int_equal(rr.copies, 0);
	assert_int_equal(rr_copy(1, 1000, 2, apart, 1, false), 0);
	assert_int_equal(rr.copies, 1);
}

static void test_copy_overlapping_is_not_for_the_drive(void **state)
{
	static const uint32_t ranges[][3] = { { 0, 1050, 100 } };

	open_filled();
	assert_int_equal(rr_copy(1, 1000, 0, ranges, 1, false), 0);
	rr_fill(2, 1);
	assert_memory_equal(rr_bytes(1, 1000, 100), rr_bytes(2, 1050, 100), 100 * 512);
	assert_int_equal(rr.copies, 0);
}

/* The drive fails at each of its commands in turn, in whatever way: the result is the same. */
static void test_copy_drive_fails(void **state)
{
	static const uint32_t ranges[][3] = { { 0, 10, 300 }, { 0, 1000, 1 }, { 0, 700, 128 }, { 0, 5, 7 } };
	static const int ways[] = { 0x281, 0x280, 0x006, -EIO, -ETIMEDOUT, ST_SIZE_LIMIT | 0x4000 };

	for (unsigned way = 0; way < N(ways); way++)
		for (unsigned at = 1; at <= 5; at++) {
			uint64_t to = 2000;

			rr_defaults();
			open_filled();
			rr.fail_at = at;
			rr.fail_with = ways[way];
			assert_int_equal(rr_copy(1, to, 0, ranges, N(ranges), at & 1), 0);
			rr_fill(2, 1);
			for (unsigned i = 0; i < N(ranges); i++) {
				assert_memory_equal(rr_bytes(1, to, ranges[i][2]), rr_bytes(2, ranges[i][1], ranges[i][2]),
						    ranges[i][2] * 512);
				to += ranges[i][2];
			}
			assert_int_equal(rr_route(1, DP_COPY_DEVICE) + rr_route(1, DP_COPY_HOST), 436 * 512);
			assert_true(nvme_pass_can(rr.bdev[0]->nvme, NVME_PASS_COPY)); /* it may work the next time */
			if (way < N(ways) - 1 || at < 5)
				rr_close();
		}
}

static void test_copy_refused_for_good(void **state)
{
	static const uint32_t ranges[][3] = { { 0, 10, 300 } };
	static const int ways[] = { ST_INVALID_OPCODE | 0x4000, ST_INVALID_FIELD | 0x4000, -EACCES, -EPERM };

	for (unsigned way = 0; way < N(ways); way++) {
		rr_defaults();
		open_filled();
		rr.fail_at = 1;
		rr.fail_with = ways[way];
		for (unsigned i = 0; i < 3; i++)
			assert_int_equal(rr_copy(1, 2000, 0, ranges, 1, false), 0);
		assert_false(nvme_pass_can(rr.bdev[0]->nvme, NVME_PASS_COPY));
		assert_int_equal(rr_route(1, DP_COPY_HOST), 3 * 300 * 512);
		if (way < N(ways) - 1)
			rr_close();
	}
}

/* Neither the drive nor we can read a range: the answer names it, what is before it is copied. */
static void test_copy_names_the_range(void **state)
{
	static const uint32_t ranges[][3] = { { 0, 10, 200 }, { 0, 300, 20 }, { 0, 3990, 50 }, { 0, 400, 20 } };

	open_filled();
	assert_int_equal(ftruncate(rr.fd[0], 4000 * 512), 0);
	assert_int_equal(rr_copy(1, 2000, 0, ranges, N(ranges), false), 0x281);
	assert_int_equal(rr_dw0, 2);
	assert_memory_equal(rr_bytes(1, 2000, 200), rr_bytes(1, 10, 200), 200 * 512);
	assert_memory_equal(rr_bytes(1, 2200, 20), rr_bytes(1, 300, 20), 20 * 512);
}

/* A rate limit, or a probe of the drive, holds for what moves by itself too. */
static void test_copy_limited(void **state)
{
	static const uint32_t ranges[][3] = { { 2, 10, 100 } };
	static const uint64_t limit[4] = { 1u << 30, 0, 0, 0 };

	open_filled();
	bdev_qos_set(rr.bdev[1], limit);
	assert_int_equal(rr_copy(1, 1000, 2, ranges, 1, false), 0);
	assert_int_equal(rr.copies, 0);
}

/* -- Compare and Verify by the drive */

static void test_compare(void **state)
{
	static uint8_t data[128 * 1024];

	rr.drive[0].mdts = 3; /* 32 KiB */
	open_filled();
	memcpy(data, rr_bytes(1, 16, 256), sizeof(data));
	assert_int_equal(rr_compare(1, 16, data, 256, false), 0);
	assert_int_equal(rr.compares, 4);
	assert_false(rr.fua);
	assert_int_equal(rr_compare(1, 16, data, 8, true), 0);
	assert_true(rr.fua);
	data[100000] ^= 1;
	rr.compares = 0;
	assert_int_equal(rr_compare(1, 16, data, 256, false), ST_COMPARE_FAILURE | DNR);
	assert_int_equal(rr.compares, 4);
	assert_int_equal(atomic_load(&rr.bdev[0]->r[0].stat.errors[5]), 1);
	/* the drive cannot say: we read */
	rr.fail_at = 3;
	rr.fail_with = 0x006;
	assert_int_equal(rr_compare(1, 16, data, 256, false), ST_COMPARE_FAILURE | DNR);
	data[100000] ^= 1;
	assert_int_equal(rr_compare(1, 16, data, 256, true), 0);
	rr.fail_with = ST_INVALID_OPCODE | 0x4000;
	assert_int_equal(rr_compare(1, 16, data, 256, false), 0);
	assert_false(nvme_pass_can(rr.bdev[0]->nvme, NVME_PASS_COMPARE));
	assert_true(nvme_pass_can(rr.bdev[0]->nvme, NVME_PASS_COPY));
	data[0] ^= 1;
	assert_int_equal(rr_compare(1, 16, data, 256, false), ST_COMPARE_FAILURE | DNR);
}

static void test_compare_partition(void **state)
{
	rr.drive[0].start = 1u << 20;
	open_filled();
	assert_int_equal(rr_compare(1, 100, rr_bytes(1, 100, 8), 8, false), 0);
	assert_int_equal(rr.compares, 1);
}

static void test_verify(void **state)
{
	rr.drive[0].vsl = 4; /* 64 KiB */
	open_filled();
	assert_int_equal(rr_verify(1, 0, 300, true), 0);
	assert_int_equal(rr.verifies, 3);
	assert_true(rr.fua);
	assert_int_equal(atomic_load(&rr.bdev[0]->r[0].stat.bytes[0]), 300 * 512);
	rr.drive[0].oncs = 0;
	assert_int_equal(rr_verify(1, 0, 300, false), 0); /* by reading */
	assert_false(nvme_pass_can(rr.bdev[0]->nvme, NVME_PASS_VERIFY));
	assert_int_equal(atomic_load(&rr.bdev[0]->r[0].stat.bytes[0]), 600 * 512);
	assert_int_equal(rr_verify(1, 0, 300, false), 0);
	assert_int_equal(rr.verifies, 4);
}

static void test_verify_in_the_effects_log_alone(void **state)
{
	rr.drive[0].oncs = 0;
	rr.drive[0].effects_verify = true;
	rr.drive[1].oncs = 0x101;
	open_filled();
	assert_int_equal(atomic_load(&rr.bdev[0]->nvme->can), NVME_PASS_VERIFY);
	assert_int_equal(atomic_load(&rr.bdev[1]->nvme->can), NVME_PASS_COMPARE | NVME_PASS_COPY | NVME_PASS_COPY_NS);
	assert_int_equal(rr_verify(1, 0, 300, false), 0);
	assert_int_equal(rr.verifies, 1);
}

/* The drive says that it cannot read: so do we, as the medium cannot be read. */
static void test_verify_bad_block(void **state)
{
	open_filled();
	rr.fail_at = 1;
	rr.fail_with = 0x281;
	assert_int_equal(ftruncate(rr.fd[0], 100 * 512), 0);
	assert_int_equal(rr_verify(1, 90, 20, false), 0x281);
}

/* A queue that ends while the drive is at work waits for it. */
static void test_queue_ends(void **state)
{
	static const uint32_t ranges[][3] = { { 0, 10, 300 } };
	uint8_t pdu[256], sqe[64], entry[32] = { 0 };

	open_filled();
	put32(entry + 8, ranges[0][1]);
	put16(entry + 16, 299);
	rig_sqe(sqe, OPC_COPY, 1, 1, 2000, 0, 32, 0x01);
	put32(sqe + 48, 0);
	rig_feed(pdu, rig_capsule(pdu, sqe, entry, 32));
	qpair_end(rig.q, END_LOST, "the host is gone");
	rig_turn();
	rr_settle();
	assert_int_equal(rig.ended, 1);
	assert_int_equal(rr.copied, 300);
}

/* -- reflink, through a clone that copies and refuses what the kernel refuses */

static struct {
	unsigned calls;
	uint64_t bytes;
	int error;
} cloned;

static int fake_clone(int fd, struct file_clone_range *range)
{
	static uint8_t buf[4u << 20];
	size_t n = range->src_length;

	cloned.calls++;
	if (cloned.error)
		return cloned.error;
	if ((range->src_offset | range->src_length | range->dest_offset) & 4095)
		return -EINVAL;
	if (pread((int)range->src_fd, buf, n, (off_t)range->src_offset) != (ssize_t)n)
		return -EINVAL;
	cloned.bytes += n;
	return pwrite(fd, buf, n, (off_t)range->dest_offset) == (ssize_t)n ? 0 : -ENOSPC;
}

static int (*real_clone)(int fd, struct file_clone_range *range);

static int reflinks(void **state)
{
	rr_defaults();
	for (unsigned i = 0; i < RR_NS; i++)
		rr.drive[i].none = true;
	memset(&cloned, 0, sizeof(cloned));
	if (!real_clone)
		real_clone = reflink_clone;
	reflink_clone = fake_clone;
	return 0;
}

static int reflinks_closed(void **state)
{
	reflink_clone = real_clone;
	return closed(state);
}

static void test_reflink(void **state)
{
	/* aligned; too small; both ends odd, by the same; not by the same; another file */
	static const uint32_t ranges[][3] = { { 0, 0, 256 }, { 0, 256, 8 }, { 0, 270, 300 }, { 0, 800, 300 } };
	static const uint32_t other[][3] = { { 2, 7, 1025 } };
	uint64_t to = 2000;

	open_filled();
	if (rr.bdev[0]->reflink->block != 4096)
		skip();
	/* 270 and 2264 are 6 and 0 blocks behind a block of the file system: not alike */
	assert_int_equal(rr_copy(1, to, 0, ranges, N(ranges), true), 0);
	rr_fill(2, 1);
	for (unsigned i = 0; i < N(ranges); i++) {
		assert_memory_equal(rr_bytes(1, to, ranges[i][2]), rr_bytes(2, ranges[i][1], ranges[i][2]), ranges[i][2] * 512);
		to += ranges[i][2];
	}
	assert_int_equal(cloned.calls, 1);
	assert_int_equal(cloned.bytes, 256 * 512);
	assert_int_equal(rr_route(1, DP_COPY_REFLINK), 256 * 512);
	assert_int_equal(rr_route(1, DP_COPY_HOST), 608 * 512);

	assert_int_equal(rr_copy(1, 1007, 2, other, 1, false), 0); /* 7 blocks behind both, one odd block at the end */
	assert_memory_equal(rr_bytes(1, 1007, 1025), rr_bytes(2, 7, 1025), 1025 * 512);
	assert_memory_equal(rr_bytes(1, 1006, 1), rr_bytes(1, 1006, 1), 512);
	assert_int_equal(cloned.calls, 2);
	assert_int_equal(cloned.bytes, 256 * 512 + 1024 * 512);
	assert_int_equal(rr_route(1, DP_COPY_REFLINK), (256 + 1025) * 512);
}

static void test_reflink_not_possible(void **state)
{
	static const uint32_t ranges[][3] = { { 2, 0, 256 }, { 3, 0, 256 } };
	static const int errors[] = { -EOPNOTSUPP, -EXDEV, -EINVAL, -ENOSPC, -ETXTBSY };

	for (unsigned i = 0; i < N(errors); i++) {
		cloned.calls = 0;
		cloned.error = errors[i];
		open_filled();
		for (unsigned n = 0; n < 3; n++)
			assert_int_equal(rr_copy(1, 1024, 2, ranges, 2, false), 0);
		assert_memory_equal(rr_bytes(1, 1024, 256), rr_bytes(2, 0, 256), 256 * 512);
		assert_memory_equal(rr_bytes(1, 1280, 256), rr_bytes(3, 0, 256), 256 * 512);
		assert_int_equal(cloned.calls, errors[i] == -EOPNOTSUPP ? 1 : 3);
		assert_int_equal(rr_route(1, DP_COPY_REFLINK), 0);
		assert_int_equal(rr_route(1, DP_COPY_HOST), 3 * 512 * 512);
		if (i < N(errors) - 1)
			rr_close();
	}
}

int main(void)
{
#define DRIVE(f) cmocka_unit_test_setup_teardown(f, defaults, closed)
#define REFLINK(f) cmocka_unit_test_setup_teardown(f, reflinks, reflinks_closed)
	const struct CMUnitTest tests[] = {
		cmocka_unit_test(test_offload),
		cmocka_unit_test(test_offload_cancel),
		DRIVE(test_open),
		DRIVE(test_copy_one_namespace),
		DRIVE(test_copy_few_ranges),
		DRIVE(test_copy_two_namespaces),
		DRIVE(test_copy_not_by_the_drive),
		DRIVE(test_copy_shared_namespaces_of_two_controllers),
		DRIVE(test_copy_mixed),
		DRIVE(test_copy_partition),
		DRIVE(test_copy_one_namespace_twice),
		DRIVE(test_copy_overlapping_is_not_for_the_drive),
		DRIVE(test_copy_drive_fails),
		DRIVE(test_copy_refused_for_good),
		DRIVE(test_copy_names_the_range),
		DRIVE(test_copy_limited),
		DRIVE(test_compare),
		DRIVE(test_compare_partition),
		DRIVE(test_verify),
		DRIVE(test_verify_in_the_effects_log_alone),
		DRIVE(test_verify_bad_block),
		DRIVE(test_queue_ends),
		REFLINK(test_reflink),
		REFLINK(test_reflink_not_possible),
	};

	return cmocka_run_group_tests(tests, NULL, NULL);
}

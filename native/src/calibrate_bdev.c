/* SPDX-License-Identifier: BSD-3-Clause
 *
 * calibrate_bdev.c: a drive that no file leads to, as calibrate.c wants one: each call is an operation of its bdev on a
 * reactor, for which the calling thread waits. Not by bdev_submit: hosts' I/O may be kept waiting meanwhile, this is not.
 */
#include <errno.h>
#include <semaphore.h>
#include <stdio.h>

#include "bdev.h"
#include "calibrate.h"
#include "engine_priv.h"
#include "spdk.h"

struct call {
	struct rmsg msg;
	struct bdev_io io;
	int rc;
	sem_t over;
};

static void call_done(struct bdev_io *io, int rc)
{
	struct call *call = dp_container_of(io, struct call, io);

	call->rc = rc;
	sem_post(&call->over);
}

static void call_submit(struct reactor *r, struct rmsg *msg)
{
	struct call *call = dp_container_of(msg, struct call, msg);
	struct bdev *bdev = call->io.bdev;
	int rc;

	call->io.r = r;
	call->io.start_ns = dp_now_ns();
	bdev->r[r->id].in_flight++;
	rc = bdev->ops->submit(&call->io);
	if (rc != BDEV_PENDING)
		bdev_done(&call->io, rc);
}

static int run(struct bdev *bdev, enum bdev_op op, const struct iovec *iov, int n, uint64_t offset, uint64_t length)
{
	struct call call = { .msg.fn = call_submit,
			     .io = { .bdev = bdev,
				     .top = bdev,
				     .op = op,
				     .quiet = true,
				     .offset = offset,
				     .length = length,
				     .buf = n ? iov->iov_base : NULL,
				     .iov = iov,
				     .iovcnt = n > 1 ? (uint8_t)n : 0,
				     .done = call_done } };

	sem_init(&call.over, 0, 0);
	reactor_send(engine_reactor(0), &call.msg);
	while (sem_wait(&call.over) < 0)
		;
	sem_destroy(&call.over);
	return call.rc;
}

static ssize_t move(struct calibrate_drive *drive, enum bdev_op op, const struct iovec *iov, int n, uint64_t offset)
{
	uint64_t length = 0;
	int rc;

	for (int i = 0; i < n; i++)
		length += iov[i].iov_len;
	rc = run(drive->bdev, op, iov, n, offset, length);
	return rc < 0 ? rc : (ssize_t)length;
}

static ssize_t bdev_readv(struct calibrate_drive *drive, const struct iovec *iov, int n, uint64_t offset)
{
	return move(drive, BDEV_READ, iov, n, offset);
}

static ssize_t bdev_writev(struct calibrate_drive *drive, const struct iovec *iov, int n, uint64_t offset)
{
	return move(drive, BDEV_WRITE, iov, n, offset);
}

static int bdev_flush(struct calibrate_drive *drive)
{
	return run(drive->bdev, BDEV_FLUSH, NULL, 0, 0, 0);
}

/* By what the drive says of itself: another one in its place has another name. */
static void name_medium(const struct bdev *bdev, char medium[CALIBRATE_MEDIUM_MAX])
{
	struct dp_spdk_ctrlr *ctrlrs;
	size_t count = dp_spdk_ctrlrs(NULL, &ctrlrs);

	snprintf(medium, CALIBRATE_MEDIUM_MAX, "bdev %s", bdev->name);
	for (size_t i = 0; i < count; i++)
		for (size_t k = 0; k < ctrlrs[i].num_ns; k++)
			if (strcmp(ctrlrs[i].ns[k].bdev, bdev->name) == 0)
				snprintf(medium, CALIBRATE_MEDIUM_MAX, "nvme %s %s %s namespace %u", ctrlrs[i].subnqn,
					 ctrlrs[i].model, ctrlrs[i].serial, ctrlrs[i].ns[k].nsid);
	dp_spdk_ctrlrs_free(ctrlrs, count);
}

void calibrate_drive_of_bdev(struct calibrate_drive *drive, struct bdev *bdev)
{
	*drive = (struct calibrate_drive){ .readv = bdev_readv, .writev = bdev_writev, .flush = bdev_flush, .fd = -1, .bdev = bdev };
	name_medium(bdev, drive->medium);
}

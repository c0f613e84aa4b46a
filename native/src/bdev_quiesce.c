/* SPDX-License-Identifier: BSD-3-Clause
 *
 * bdev_quiesce.c: a bdev stands still for a moment: hosts' I/O waits on its reactors, none is refused.
 */
#include <stdlib.h>

#include "bdev.h"
#include "fan.h"

static void quiet(struct reactor *r, struct rmsg *msg)
{
	fan_ack(dp_container_of(msg, struct fan_part, msg));
}

static void quiesce(struct reactor *r, struct rmsg *msg)
{
	struct fan_part *part = dp_container_of(msg, struct fan_part, msg);
	struct bdev *bdev = part->data;
	struct bdev_reactor *br = &bdev->r[r->id];

	br->quiesced = true;
	if (br->in_flight == 0) {
		fan_ack(part);
		return;
	}
	msg->fn = quiet;
	br->on_quiet = msg;
}

static void resume(struct reactor *r, struct rmsg *msg)
{
	struct fan_part *part = dp_container_of(msg, struct fan_part, msg);
	struct bdev *bdev = part->data;
	struct bdev_reactor *br = &bdev->r[r->id];
	struct bdev_io *io;

	br->quiesced = false;
	if (br->on_quiet) { /* it was never quiet: who asked has given up */
		struct rmsg *waiting = br->on_quiet;

		br->on_quiet = NULL;
		waiting->fn(r, waiting);
	}
	while ((io = TAILQ_FIRST(&br->stopped))) {
		int rc;

		TAILQ_REMOVE(&br->stopped, io, link);
		rc = bdev_start(io);
		if (rc != BDEV_PENDING)
			bdev_done(io, rc);
	}
	fan_ack(part);
}

static void tell(struct bdev *bdev, void (*fn)(struct reactor *r, struct rmsg *msg), void (*done)(void *arg), void *arg)
{
	struct fan *fan = fan_new(fn, done, arg);

	if (!fan)
		abort(); /* a few bytes for each reactor; nobody could be told */
	for (unsigned i = 0; i < bdev->n_reactors; i++)
		fan->parts[i].data = bdev;
	fan_send(fan);
}

void bdev_quiesce(struct bdev *bdev, void (*done)(void *arg), void *arg)
{
	tell(bdev, quiesce, done, arg);
}

void bdev_resume(struct bdev *bdev, void (*done)(void *arg), void *arg)
{
	tell(bdev, resume, done, arg);
}

/* SPDX-License-Identifier: BSD-3-Clause
 *
 * io_locks.c: from when on writes to a bdev take range locks.
 */
#include <stdlib.h>

#include "engine_priv.h"
#include "io.h"

struct excl_msg {
	struct rmsg msg;
	struct bdev *bdev;
};

static void excl_ack(struct reactor *r, struct rmsg *msg)
{
	struct excl_msg *m = dp_container_of(msg, struct excl_msg, msg);
	struct bdev *bdev = m->bdev;

	free(m);
	if (atomic_fetch_sub(&bdev->excl_acks, 1) == 1) {
		atomic_store(&bdev->excl_ready, true);
		rangelock_open(&bdev->locks);
	}
}

static void excl_barrier(struct reactor *r, struct rmsg *msg)
{
	struct excl_msg *m = dp_container_of(msg, struct excl_msg, msg);
	struct bdev_reactor *br = &m->bdev->r[r->id];

	if (br->unlocked == 0) {
		excl_ack(r, msg);
		return;
	}
	msg->fn = excl_ack;
	br->on_unlocked = msg;
}

/* The first fused pair on a bdev: from now on its writes take range locks; those without one must drain first. */
void io_need_locks(struct bdev *bdev)
{
	if (atomic_exchange(&bdev->excl, true))
		return;
	atomic_store(&bdev->excl_acks, bdev->n_reactors);
	for (unsigned i = 0; i < bdev->n_reactors; i++) {
		struct excl_msg *m = calloc(1, sizeof(*m));

		if (!m)
			abort(); /* a few bytes, once in the life of a bdev */
		m->bdev = bdev;
		m->msg.fn = excl_barrier;
		reactor_send(engine_reactor(i), &m->msg);
	}
}

/* SPDX-License-Identifier: BSD-3-Clause
 *
 * io_pool.c: payload of Read and Write that rests in peer memory (pool.h) instead of host memory.
 *
 * Such memory may go away at any moment, and then holds zeroes. So a Read's data is sent without its response, which follows
 * when the data has left and pool_check has found the memory alive; a Write is told as success only after pool_check, too.
 * Where the memory was lost, a Read of which nothing has been sent goes on in host memory, anything else is answered Command
 * Interrupted: the host repeats it, and it goes to host memory.
 */
#include <errno.h>

#include "io.h"

#define REFUSALS_MAX 3u /* fewer than a host repeats a command */

static struct pool *pool_of_ns(const struct request *rq)
{
	return rq->ns->pool[rq->opc == OPC_READ ? POOL_READ : POOL_WRITE];
}

struct pool_want io_pool_want(struct request *rq, uint32_t bytes)
{
	return (struct pool_want){ .bytes = bytes,
				   .owner = rq->q->c->view->owner,
				   .wipe = rq->opc != OPC_WRITE,
				   .user = &rq->q->pool_user };
}

/* -- counters. The namespace as it is now: rq->ns may be of a view that is gone. */

static struct bdev_staging_r *counters(const struct request *rq)
{
	struct ns_entry *ns = view_find(rq->q->c->view, rq->nsid);

	return ns && ns->bdev ? &ns->bdev->r[rq->q->r->id].staging : NULL;
}

void io_pool_count_fallback(const struct request *rq, struct pool *pool)
{
	struct bdev_staging_r *staging = counters(rq);

	if (staging)
		counter_add(&staging->fallbacks, 1);
	if (pool)
		pool_count_fallback(pool);
}

static uint32_t interrupted(const struct request *rq)
{
	struct bdev_staging_r *staging = counters(rq);

	if (staging)
		counter_add(&staging->interrupted, 1);
	return ST_INTERRUPTED;
}

/* -- memory */

unsigned io_pool_pieces(const struct pool_buf *buf, uint32_t at, uint32_t bytes, struct iovec *iov)
{
	const struct iovec *piece = buf->iov;
	unsigned n = 0;

	while (at >= piece->iov_len)
		at -= (uint32_t)piece++->iov_len;
	while (bytes) {
		uint32_t count = min_u32(bytes, (uint32_t)piece->iov_len - at);

		iov[n++] = (struct iovec){ (uint8_t *)piece->iov_base + at, count };
		bytes -= count;
		at = 0;
		piece++;
	}
	return n;
}

void io_pool_fill(const struct pool_buf *buf, uint32_t at, const uint8_t *from, uint32_t bytes)
{
	struct iovec iov[POOL_PIECES_MAX];
	unsigned n = bytes ? io_pool_pieces(buf, at, bytes, iov) : 0;

	for (unsigned i = 0; i < n; i++) {
		memcpy(iov[i].iov_base, from, iov[i].iov_len);
		from += iov[i].iov_len;
	}
}

void io_pool_put(struct request *rq)
{
	struct pool_buf *buf = rq->pbuf, *buf2 = rq->pbuf2;

	rq->pbuf = rq->pbuf2 = NULL;
	rq->io.iovcnt = 0;
	rq->filled = 0;
	if (buf)
		pool_put(buf);
	if (buf2)
		pool_put(buf2);
}

void io_pool_place(struct bdev_io *io, const struct pool_buf *buf)
{
	io->buf = buf->iov[0].iov_base;
	io->iov = buf->iov;
	io->iovcnt = buf->n > 1 ? (uint8_t)buf->n : 0;
}

/* -- getting it */

/* In-capsule data that had to wait in host memory moves on. */
static void move_in(struct request *rq)
{
	struct pool_buf *buf = rq->pbuf;

	if (rq->opc != OPC_WRITE || !rq->buf)
		return;
	io_pool_fill(buf, 0, rq->buf, rq->length);
	rq->pbuf = NULL;
	io_unstage(rq);
	rq->pbuf = buf;
	rq->filled = rq->length;
}

bool io_pool_now(struct request *rq)
{
	struct pool_want want = io_pool_want(rq, rq->length);
	struct pool *pool = pool_of_ns(rq);

	rq->pbuf = bdev_pool_allowed(rq->ns->bdev, pool) ? pool_get(pool, &want) : NULL;
	return rq->pbuf != NULL;
}

bool io_pool_room(struct request *rq)
{
	struct pool_want want = io_pool_want(rq, rq->length);
	struct pool *pool = pool_of_ns(rq);
	bool wait = rq->ns->strict && bdev_pool_allowed(rq->ns->bdev, pool) && pool_possible(pool, rq->length);

	/* in-capsule data in host memory: there was no room in the pool a moment ago */
	if ((!rq->buf || wait) && io_pool_now(rq)) {
		move_in(rq);
		io_has_room(rq);
		return true;
	}
	if (wait) {
		io_pool_wait(rq, pool, &want);
		return true;
	}
	io_pool_count_fallback(rq, pool);
	return false;
}

static void granted(struct reactor *r, struct pool_waiter *waiter, struct pool_buf *buf)
{
	struct request *rq = dp_container_of(waiter, struct request, pool_waiter);
	struct qpair *q = rq->q;

	rq->pool_waiting = false;
	rq->state = REQ_NEW;
	rq->pbuf = buf;
	q->at_work--;
	if (q->ending != END_NONE) {
		io_fail(rq, ST_SQ_DELETION);
		qpair_want_flush(q);
		return;
	}
	if (buf) {
		move_in(rq);
	} else {
		io_pool_count_fallback(rq, NULL);
		rq->host_only = true;
	}
	if (buf || rq->buf)
		io_has_room(rq);
	else
		io_host_room(rq);
}

/* The queue cannot go before the answer has come, or was prevented. */
void io_pool_wait(struct request *rq, struct pool *pool, const struct pool_want *want)
{
	rq->state = REQ_ROOM;
	rq->pool_waiting = true;
	rq->pool_waiter.want = *want;
	rq->pool_waiter.granted = granted;
	rq->q->at_work++;
	pool_wait(pool, &rq->pool_waiter, rq->q->r);
}

bool io_pool_unwait(struct request *rq)
{
	if (!pool_unwait(&rq->pool_waiter))
		return false;
	rq->pool_waiting = false;
	rq->state = REQ_NEW;
	rq->q->at_work--;
	return true;
}

/* -- what becomes of it */

bool io_pool_ready(struct request *rq)
{
	struct pool *pool = rq->pbuf->pool;
	/* The read of pool_check also brings to the device what the CPU has written to it: the drive must not be there first. */
	bool alive = rq->opc == OPC_WRITE ? pool_check(pool) : !pool_is_lost(pool);

	if (DP_LIKELY(alive && bdev_pool_allowed(rq->ns->bdev, pool))) {
		if (rq->opc == OPC_WRITE)
			pool_filled(rq->pbuf);
		return true;
	}
	if (rq->opc == OPC_READ) {
		io_pool_count_fallback(rq, pool);
		io_again(rq);
	} else {
		io_respond(rq, interrupted(rq));
	}
	return false;
}

/* What the kernel says where a device cannot reach the memory of another, but a drive may have other reasons, for a moment.
 * Again and again: the pool is nothing for this drive, whatever was found when it was tried out. */
static void refused(struct bdev *bdev, const struct pool *pool)
{
	while (bdev->base)
		bdev = bdev->base;
	if (atomic_fetch_add(&bdev->pool_refusals, 1) + 1 < REFUSALS_MAX)
		return;
	atomic_fetch_or(&bdev->pools_withdrawn, 1ull << (pool_index(pool) - 1)); /* first: it is never without a reason */
	atomic_fetch_and(&bdev->pools_allowed, ~(1ull << (pool_index(pool) - 1)));
	atomic_store(&bdev->pool_refusals, 0);
}

void io_pool_served(struct bdev *bdev, const struct reactor *r, enum pool_use use, const struct pool *pool, uint64_t bytes)
{
	bdev_count_staged(bdev, r, use, pool_index(pool), bytes);
	while (bdev->base)
		bdev = bdev->base;
	if (DP_UNLIKELY(atomic_load_explicit(&bdev->pool_refusals, memory_order_relaxed)))
		atomic_store(&bdev->pool_refusals, 0);
}

bool io_pool_at_fault(struct bdev *bdev, struct pool *pool, int rc)
{
	if (rc == -EFAULT) {
		pool_lose(pool, "the drive's access to it faulted");
		return true;
	}
	if (rc == -EREMOTEIO || rc == -EINVAL) {
		refused(bdev, pool);
		return true;
	}
	return !pool_check(pool);
}

enum io_next io_pool_read_over(struct request *rq, int rc)
{
	struct bdev *bdev = rq->ns->bdev;
	struct pool *pool = rq->pbuf->pool;

	if (rc < 0 && !io_pool_at_fault(bdev, pool, rc)) {
		rq->status = status_of_errno(rc, false);
		return IO_DONE;
	}
	if (rc == 0)
		io_pool_served(bdev, rq->q->r, POOL_READ, pool, rq->length);
	if (rc < 0 || pool_is_lost(pool)) {
		io_pool_count_fallback(rq, pool);
		return IO_AGAIN;
	}
	rq->filled = rq->length;
	rq->tx_data = rq->pbuf->iov[0].iov_base;
	rq->tx_len = rq->length;
	return IO_DONE;
}

enum io_next io_pool_write_over(struct request *rq, int rc)
{
	struct bdev *bdev = rq->ns->bdev;
	struct pool *pool = rq->pbuf->pool;

	if (rc == 0)
		io_pool_served(bdev, rq->q->r, POOL_WRITE, pool, rq->length);
	if (rc == 0 ? !pool_check(pool) : io_pool_at_fault(bdev, pool, rc))
		rq->status = interrupted(rq);
	else if (rc < 0)
		rq->status = status_of_errno(rc, true);
	return IO_DONE;
}

void io_pool_sent(struct request *rq, struct pool **good)
{
	struct pool *pool = rq->pbuf->pool;

	if (rq->q->mute || pool == *good || pool_check(pool)) {
		*good = pool;
		rq->status = 0;
	} else {
		rq->status = interrupted(rq);
	}
	rq->tx_len = 0;
	rq->tx_data = NULL;
	io_unstage(rq);
	qpair_answer(rq);
}

bool io_pool_unsendable(struct request *rq)
{
	struct pool *pool = rq->pbuf->pool, *none = NULL;

	if (!pool_is_lost(pool))
		return false;
	if (rq->q->ending != END_NONE) {
		io_pool_sent(rq, &none);
	} else {
		io_pool_count_fallback(rq, pool);
		io_again(rq);
	}
	return true;
}

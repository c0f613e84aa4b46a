/* SPDX-License-Identifier: BSD-3-Clause */
#include "qpair_zc.h"

#include <errno.h>
#include <stdlib.h>
#include <sys/socket.h>
#include <unistd.h>

#define LOOK_AHEAD 8u /* answers without data before the first that has some */

struct zc_config zc_config;

static void zc_done(struct reactor *r, struct uop *op, int res);

/* Memory of a malloc bdev may not be sent so, but a copy of it: that is cheaper than the kernel's own. */
static void set_on(struct qpair *q, bool on)
{
	q->direct_max = !on ? UINT32_MAX : zc_config.min_bytes ? zc_config.min_bytes - 1 : 0;
}

bool zc_create(struct qpair *q)
{
	const size_t bufs = ZC_BUFS * sizeof(struct zc_buf), each = bufs + ((q->arena_max + 63u) & ~(size_t)63);
	struct zc *zc;
	uint8_t *p;

	if (zc_config.mode == DP_ZERO_COPY_OFF || !reactor_features.send_zc)
		return false;
	zc = calloc(1, sizeof(*zc));
	if (!zc)
		return false;
	zc->memory = p = malloc(ZC_BATCHES * each);
	if (!p) {
		free(zc);
		return false;
	}
	STAILQ_INIT(&zc->free);
	for (unsigned i = 0; i < ZC_BATCHES; i++, p += each) {
		struct zc_batch *batch = &zc->batches[i];

		batch->q = q;
		batch->op.fn = zc_done;
		batch->bufs = (struct zc_buf *)p;
		batch->arena = p + bufs;
		STAILQ_INSERT_TAIL(&zc->free, batch, link);
	}
	zc->own_arena = q->arena;
	q->zc = zc;
	set_on(q, true);
	return true;
}

void zc_free(struct qpair *q)
{
	if (!q->zc)
		return;
	q->arena = q->zc->own_arena;
	free(q->zc->memory);
	free(q->zc);
	q->zc = NULL;
}

/* -- what may be sent so */

static bool unchanging(const struct request *rq)
{
	if (rq->buf)
		return !rq->own_buf;
	return !rq->pbuf && rq->pinned && rq->io.bdev->ops->constant;
}

static bool worth_it(const struct request *rq)
{
	return rq->tx_len >= zc_config.min_bytes && unchanging(rq);
}

/* What waits for the peer must leave enough of the queue's share for others to be sent, copied, in the meantime. */
static bool possible(const struct qpair *q)
{
	return zc_on(q) && !STAILQ_EMPTY(&q->zc->free) && q->zc->held < q->staged_max / 2;
}

void zc_begin(struct qpair *q)
{
	const struct request *rq;
	struct zc *zc = q->zc;
	unsigned n = 0;

	if (zc->now || !possible(q))
		return;
	STAILQ_FOREACH(rq, &q->answers, link)
		if (rq->tx_len || ++n == LOOK_AHEAD)
			break;
	if (!rq || !rq->tx_len || !worth_it(rq))
		return;
	zc->now = STAILQ_FIRST(&zc->free);
	STAILQ_REMOVE_HEAD(&zc->free, link);
	zc->now->bytes = zc->now->n_bufs = 0;
	zc->now->copied = false;
	zc->now_bufs = zc->now_bytes = 0;
}

bool zc_takes(struct qpair *q, const struct request *rq)
{
	struct zc *zc = q->zc;

	if (!rq->tx_len)
		return true;
	if (!zc->now)
		return q->iov_n == 0 || !possible(q) || !worth_it(rq);
	if (!unchanging(rq) || zc->now_bufs == ZC_BUFS || (zc->now_bytes && zc->now_bytes + rq->tx_len > ZC_BATCH_BYTES))
		return false;
	zc->now_bufs++;
	zc->now_bytes += rq->tx_len;
	return true;
}

/* -- sending */

bool zc_used(const struct qpair *q)
{
	return q->zc->now && zc_on(q) && q->zc->now_bytes;
}

struct uop *zc_op(struct qpair *q)
{
	return &q->zc->now->op;
}

void zc_prep(struct qpair *q, struct io_uring_sqe *sqe)
{
	/* All of it or an error: one notification for the whole. */
	io_uring_prep_sendmsg_zc(sqe, q->fd, &q->tx_msg, MSG_NOSIGNAL | MSG_WAITALL);
	sqe->ioprio |= IORING_SEND_ZC_REPORT_USAGE;
}

static void give_back(struct zc_batch *batch)
{
	struct qpair *q = batch->q;

	for (uint32_t i = 0; i < batch->n_bufs; i++) {
		size_t size = staging_size(batch->bufs[i].bytes);

		q->staged -= size;
		q->zc->held -= size;
		staging_free(&q->r->pool, batch->bufs[i].buf);
	}
	batch->n_bufs = 0;
	STAILQ_INSERT_HEAD(&q->zc->free, batch, link);
}

/* All that is to be known of it is known. */
static void settle(struct zc_batch *batch)
{
	struct qpair *q = batch->q;

	if (!batch->bytes)
		return;
	counter_add(batch->copied ? &q->zc_copied : &q->zc_bytes, batch->bytes);
	counter_add(batch->copied ? &q->r->zc_copied : &q->r->zc_bytes, batch->bytes);
	if (batch->copied && zc_config.mode == DP_ZERO_COPY_AUTO)
		set_on(q, false);
}

void zc_sent(struct qpair *q)
{
	struct zc_batch *batch = q->zc->now;
	uint8_t *arena = q->arena;
	struct request *rq;

	q->zc->now = NULL;
	if (!batch->pending) { /* the kernel is as quick as that, or it was not sent so */
		settle(batch);
		STAILQ_INSERT_HEAD(&q->zc->free, batch, link);
		return;
	}
	q->arena = batch->arena;
	batch->arena = arena;
	STAILQ_FOREACH(rq, &q->sending, link)
		if (rq->buf) {
			batch->bufs[batch->n_bufs++] = (struct zc_buf){ rq->buf, rq->stage_bytes };
			q->zc->held += staging_size(rq->stage_bytes);
			rq->buf = NULL;
			rq->filled = 0;
		}
}

/* The kernel needs it no more. */
static void notified(struct zc_batch *batch, int res)
{
	struct qpair *q = batch->q;
	struct zc *zc = q->zc;

	batch->copied |= (uint32_t)res & IORING_NOTIF_USAGE_ZC_COPIED;
	zc->pending--;
	if (--batch->pending || batch == zc->now)
		return;
	settle(batch);
	give_back(batch);
	if (!STAILQ_EMPTY(&q->room) || q->rx_paused || q->ending != END_NONE)
		qpair_want_flush(q);
}

/* Not the connection's fault. A socket that cannot is not asked again. */
static bool refused(struct qpair *q, int res)
{
	switch (res) {
	case -EOPNOTSUPP:
	case -EINVAL:
	case -EFAULT:
	case -EMSGSIZE:
		set_on(q, false);
		break;
	case -ENOMEM: /* more than may be pinned at a time (RLIMIT_MEMLOCK) */
	case -ENOBUFS:
		break;
	default:
		return false;
	}
	q->zc->now_bytes = 0; /* this one goes as ever */
	return true;
}

static void zc_done(struct reactor *r, struct uop *op, int res)
{
	struct zc_batch *batch = dp_container_of(op, struct zc_batch, op);
	struct qpair *q = batch->q;

	if (r->cqe_flags & IORING_CQE_F_NOTIF) {
		notified(batch, res);
		return;
	}
	if (r->cqe_flags & IORING_CQE_F_MORE) {
		batch->pending++;
		q->zc->pending++;
	}
	if (res > 0)
		batch->bytes += (uint64_t)res;
	qpair_tx_done(r, &q->tx_op, refused(q, res) ? 0 : res);
}

/* -- the end */

bool zc_over(struct qpair *q)
{
	static const struct linger reset = { .l_onoff = 1 };
	struct zc *zc = q->zc;

	if (!zc->pending) {
		if (!q->timer_armed)
			return true;
		if (!zc->stopped)
			qpair_timer_stop(q);
		zc->stopped = true;
	} else if (!zc->waiting) {
		zc->waiting = true;
		qpair_timer_arm(q);
	} else if (!q->timer_armed && !zc->aborted) {
		/* A peer that acknowledges nothing: the connection is reset, which frees what the kernel has of us. */
		zc->aborted = true;
		if (q->fd >= 0) {
			setsockopt(q->fd, SOL_SOCKET, SO_LINGER, &reset, sizeof(reset));
			close(q->fd);
			q->fd = -1;
		}
	}
	return false;
}

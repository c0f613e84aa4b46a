/* SPDX-License-Identifier: BSD-3-Clause
 *
 * qpair_tx.c: what a queue sends. Answers and R2Ts that one round of the reactor has produced leave in one sendmsg:
 * headers and digests are written one after another into the queue's arena, data stays where it is.
 *
 * Data of a back end in memory is sent from its own memory, which is pinned until it has left. Only without data
 * digests: the digest must be that of the bytes sent, and those may change until the kernel has copied them; with
 * digests a copy is made first. Without, the kernel copies a block in one go, so a Write on this reactor cannot tear it;
 * where the socket took a part of a block only, the rest of that block is saved at once (save_rest). A Write on another
 * core in that very moment can, as in any target that copies from shared memory without a lock for each block.
 */
#include <assert.h>
#include <errno.h>

#include "crc32c.h"
#include "qpair_zc.h"

static void tx_submit(struct qpair *q, bool alone);

void qpair_want_flush(struct qpair *q)
{
	if (q->flush_queued)
		return;
	q->flush_queued = true;
	STAILQ_INSERT_TAIL(&q->r->flush, q, flush_link);
}

/* -- encoding */

static uint8_t *arena_take(struct qpair *q, uint32_t bytes)
{
	uint8_t *p = q->arena + q->arena_n;
	struct iovec *last = q->iov_n ? &q->iov[q->iov_n - 1] : NULL;

	assert(q->arena_n + bytes <= q->arena_max);
	q->arena_n += bytes;
	if (last && (uint8_t *)last->iov_base + last->iov_len == p) {
		last->iov_len += bytes;
	} else {
		assert(q->iov_n < q->iov_max);
		q->iov[q->iov_n++] = (struct iovec){ p, bytes };
	}
	return p;
}

static void header(uint8_t *p, uint8_t type, uint8_t flags, uint8_t hlen, uint8_t pdo, uint32_t plen)
{
	p[0] = type;
	p[1] = flags;
	p[2] = hlen;
	p[3] = pdo;
	put32(p + 4, plen);
}

static void put_hdgst(struct qpair *q, uint8_t *p, uint32_t hlen)
{
	if (q->hdgst)
		put32(p + hlen, crc32c(0, p, hlen));
}

static void encode_response(struct qpair *q, const struct request *rq)
{
	uint32_t hd = q->hdgst ? DIGEST_LEN : 0;
	uint8_t *p = arena_take(q, RESP_HLEN + hd);

	header(p, PDU_CAPSULE_RESP, q->hdgst ? PDU_F_HDGST : 0, RESP_HLEN, 0, RESP_HLEN + hd);
	put32(p + 8, rq->dw0);
	put32(p + 12, 0);
	put16(p + 16, rq->sqhd);
	put16(p + 18, q->key.qid);
	put16(p + 20, rq->cid);
	put16(p + 22, (uint16_t)((rq->status & 0xFFFF) << 1 | (rq->status & ST_DNR ? 0x8000 : 0)));
	put_hdgst(q, p, RESP_HLEN);
}

static void put_pieces(struct qpair *q, const struct request *rq, uint32_t *crc)
{
	const struct pool_buf *buf = rq->pbuf;

	assert(rq->filled >= rq->tx_len && buf->bytes == rq->tx_len && q->iov_n + buf->n <= q->iov_max);
	for (unsigned i = 0; i < buf->n; i++) {
		q->iov[q->iov_n++] = buf->iov[i];
		if (q->ddgst)
			*crc = crc32c(*crc, buf->iov[i].iov_base, buf->iov[i].iov_len);
	}
}

/* The data itself: one piece of memory, or (null) one piece again and again. */
static void put_data(struct qpair *q, struct request *rq, uint32_t *crc)
{
	uint32_t left = rq->tx_len;

	if (rq->buf) {
		assert(rq->filled >= rq->tx_len); /* no byte that was there before us is ever sent */
		q->iov[q->iov_n++] = (struct iovec){ (void *)(uintptr_t)rq->tx_data, left };
		if (q->ddgst)
			*crc = crc32c(0, rq->tx_data, left);
		return;
	}
	if (DP_UNLIKELY(rq->pbuf != NULL)) {
		put_pieces(q, rq, crc);
		return;
	}
	for (uint64_t at = 0; left;) {
		uint32_t count = left;
		const uint8_t *p = rq->io.bdev->ops->map(rq->io.bdev, rq->io.offset + at, &count);

		assert(p && count && q->iov_n < q->iov_max);
		q->iov[q->iov_n++] = (struct iovec){ (void *)(uintptr_t)p, count };
		at += count;
		left -= count;
	}
}

static bool success_of(const struct qpair *q, const struct request *rq)
{
	return q->success && rq->dw0 == 0 && !rq->pbuf;
}

static void encode_data(struct qpair *q, struct request *rq)
{
	uint32_t dd = q->ddgst ? DIGEST_LEN : 0, crc = 0;
	uint8_t flags = PDU_F_LAST;
	uint8_t *p = arena_take(q, q->c2h_pdo);

	flags |= (q->hdgst ? PDU_F_HDGST : 0) | (q->ddgst ? PDU_F_DDGST : 0) | (success_of(q, rq) ? PDU_F_SUCCESS : 0);
	header(p, PDU_C2H_DATA, flags, DATA_HLEN, (uint8_t)q->c2h_pdo, q->c2h_pdo + rq->tx_len + dd);
	put16(p + 8, rq->cid);
	put16(p + 10, 0);
	put32(p + 12, 0);
	put32(p + 16, rq->tx_len);
	put32(p + 20, 0);
	memset(p + DATA_HLEN, 0, q->c2h_pdo - DATA_HLEN);
	put_hdgst(q, p, DATA_HLEN);
	put_data(q, rq, &crc);
	if (dd)
		put32(arena_take(q, DIGEST_LEN), crc);
}

void qpair_tx_encode_r2t(struct qpair *q, const struct r2t *r2t, uint16_t tag)
{
	uint32_t hd = q->hdgst ? DIGEST_LEN : 0;
	uint8_t *p = arena_take(q, DATA_HLEN + hd);

	header(p, PDU_R2T, q->hdgst ? PDU_F_HDGST : 0, DATA_HLEN, 0, DATA_HLEN + hd);
	put16(p + 8, r2t->x->cid);
	put16(p + 10, tag);
	put32(p + 12, r2t->start);
	put32(p + 16, r2t->end - r2t->start);
	put32(p + 20, 0);
	put_hdgst(q, p, DATA_HLEN);
}

/* Tags go round, so that one which has served its time is known as late, not as unknown, for long. */
static struct r2t *take_tag(struct qpair *q, uint16_t *tag)
{
	struct r2t *r2t;

	do {
		*tag = q->next_tag;
		r2t = &q->r2t[*tag & q->r2t_mask];
		if (q->next_tag == 0xFFFE) {
			q->next_tag = 1;
			q->tags_went_round = true;
		} else {
			q->next_tag++;
		}
	} while (r2t->tag);
	return r2t;
}

static bool has_room(const struct qpair *q, uint32_t iovs, uint32_t bytes)
{
	return q->iov_n + iovs <= q->iov_max && q->arena_n + bytes <= q->arena_max;
}

static void encode_r2ts(struct qpair *q)
{
	struct xfer *x;

	while ((x = STAILQ_FIRST(&q->r2ts_due))) {
		while (x->requested < x->length && x->open < q->window) {
			struct r2t *r2t;
			uint16_t tag;

			if (q->r2ts_open > q->r2t_mask / 2 || !has_room(q, 1, DATA_HLEN + DIGEST_LEN))
				return;
			r2t = take_tag(q, &tag);
			*r2t = (struct r2t){ .tag = tag, .x = x, .start = x->requested };
			r2t->end = x->requested + min_u32(TRANSFER_BYTES_MAX, x->length - x->requested);
			x->requested = r2t->end;
			x->open++;
			q->r2ts_open++;
			qpair_tx_encode_r2t(q, r2t, tag);
		}
		STAILQ_REMOVE_HEAD(&q->r2ts_due, link);
		x->listed = false;
	}
}

static uint32_t iovs_of(const struct request *rq)
{
	if (!rq->tx_len)
		return 1;
	/* header, data, what follows; null's zeroes come in pieces of 128 KiB */
	return 3 + (rq->buf ? 0 : rq->pbuf ? rq->pbuf->n : rq->tx_len >> 17);
}

static void encode_answers(struct qpair *q)
{
	bool zc = q->zc && q->zc->now;
	struct request *rq;

	while ((rq = STAILQ_FIRST(&q->answers))) {
		if (!has_room(q, iovs_of(rq), q->c2h_pdo + RESP_HLEN + 2 * DIGEST_LEN))
			return;
		if (DP_UNLIKELY(zc || rq->tx_len > q->direct_max) && !zc_takes(q, rq))
			return;
		STAILQ_REMOVE_HEAD(&q->answers, link);
		if (DP_UNLIKELY(rq->pbuf != NULL) && io_pool_unsendable(rq))
			continue;
		if (rq->tx_len) {
			encode_data(q, rq);
			if (!success_of(q, rq) && DP_LIKELY(!rq->pbuf)) /* a pool's data is told when it has left: tx_finished */
				encode_response(q, rq);
			STAILQ_INSERT_TAIL(&q->sending, rq, link);
		} else {
			encode_response(q, rq);
			qpair_release(rq);
		}
	}
}

static void encode_raw(struct qpair *q)
{
	if (!q->raw_len || !has_room(q, 1, q->raw_len))
		return;
	memcpy(arena_take(q, q->raw_len), q->raw, q->raw_len);
	q->raw_len = 0;
}

/* -- sending */

static void tx_finished(struct qpair *q)
{
	struct pool *good = NULL;
	struct request *rq;

	q->iov_n = q->iov_at = q->arena_n = 0;
	if (q->zc && q->zc->now)
		zc_sent(q);
	while ((rq = STAILQ_FIRST(&q->sending))) {
		STAILQ_REMOVE_HEAD(&q->sending, link);
		if (DP_UNLIKELY(rq->pbuf != NULL))
			io_pool_sent(rq, &good);
		else
			qpair_release(rq);
	}
}

/* A send could not read memory: of a pool? Then that is zeroes now, and the send can go on. */
static bool tx_faulted(struct qpair *q)
{
	bool lost = false, any = false;
	struct request *rq;

	if (++q->tx_faults > POOL_FAULTS_MAX)
		return false;
	STAILQ_FOREACH(rq, &q->sending, link)
		if (rq->pbuf) {
			any = true;
			lost |= !pool_check(rq->pbuf->pool);
		}
	if (!lost)
		STAILQ_FOREACH(rq, &q->sending, link)
			if (rq->pbuf)
				pool_lose(rq->pbuf->pool, "sending from it faulted");
	return any;
}

/* Takes count sent bytes off the list; true: all has left. */
static bool tx_advance(struct qpair *q, size_t count)
{
	while (q->iov_at < q->iov_n && count >= q->iov[q->iov_at].iov_len)
		count -= q->iov[q->iov_at++].iov_len;
	if (q->iov_at == q->iov_n)
		return true;
	q->iov[q->iov_at].iov_base = (uint8_t *)q->iov[q->iov_at].iov_base + count;
	q->iov[q->iov_at].iov_len -= count;
	return false;
}

/* The answer being sent whose data, in its back end's own memory, holds p. */
static const struct request *data_at(const struct qpair *q, const uint8_t *p)
{
	const struct request *rq;

	STAILQ_FOREACH(rq, &q->sending, link)
		if (rq->pinned && p > rq->tx_data && p < rq->tx_data + rq->tx_len)
			return rq;
	return NULL;
}

/* Part of a block has left: a Write must not change the rest of it before that leaves too (AWUN is one block). */
static void save_rest(struct qpair *q)
{
	struct iovec *iov = &q->iov[q->iov_at];
	const struct request *rq = data_at(q, iov->iov_base);
	size_t done, rest;

	if (!rq)
		return;
	done = (size_t)((uint8_t *)iov->iov_base - rq->tx_data) & (rq->io.bdev->block_size - 1);
	rest = rq->io.bdev->block_size - done;
	if (!done || rest > sizeof(q->rest) || rest > iov->iov_len)
		return;
	assert(q->iov_at > 0); /* a header came before */
	memcpy(q->rest, iov->iov_base, rest);
	iov->iov_base = (uint8_t *)iov->iov_base + rest;
	iov->iov_len -= rest;
	q->iov[--q->iov_at] = (struct iovec){ q->rest, rest };
}

void qpair_tx_done(struct reactor *r, struct uop *op, int res)
{
	struct qpair *q = dp_container_of(op, struct qpair, tx_op);

	q->tx_armed = false;
	if (res < 0 && (res == -EINTR || res == -EAGAIN || (res == -EFAULT && tx_faulted(q))))
		res = 0;
	if (res < 0) {
		q->mute = true;
		tx_finished(q);
		if (q->ending != END_NONE)
			qpair_closing(q);
		else
			qpair_end(q, END_LOST, strerror(-res));
		return;
	}
	counter_add(&q->bytes_out, (uint64_t)res);
	if (DP_UNLIKELY(q->tx_faults) && res > 0)
		q->tx_faults = 0;
	if (!tx_advance(q, (size_t)res)) {
		if (!q->mute) {
			if (!q->zc || !q->zc->now)
				save_rest(q);
			tx_submit(q, false);
			return;
		}
	}
	tx_finished(q);
	if (q->ending != END_NONE)
		qpair_closing(q);
	else if (!STAILQ_EMPTY(&q->answers) || !STAILQ_EMPTY(&q->r2ts_due) || q->rx_paused)
		qpair_want_flush(q);
}

/* What this round has for one queue alone: no other send to share a system call with, so the ring only costs. */
static bool sent_at_once(struct qpair *q, uint32_t n)
{
	ssize_t count;

	q->tx_msg = (struct msghdr){ .msg_iov = q->iov + q->iov_at, .msg_iovlen = n };
	counter_add(&q->r->syscalls, 1);
	count = sendmsg(q->fd, &q->tx_msg, MSG_NOSIGNAL | MSG_DONTWAIT);
	if (count <= 0)
		return false; /* the ring waits for room, or says what is wrong */
	q->tx_armed = true;
	qpair_tx_done(q->r, &q->tx_op, (int)count);
	return true;
}

static void tx_submit(struct qpair *q, bool alone)
{
	struct io_uring_sqe *sqe;
	uint32_t n = q->iov_n - q->iov_at;
	bool zc = q->zc && zc_used(q);
	struct uop *op = zc ? zc_op(q) : &q->tx_op;

	q->tx_op.fn = qpair_tx_done;
	if (q->r->sink) {
		ssize_t count = q->r->sink(q, q->iov + q->iov_at, n);

		q->tx_armed = true;
		op->fn(q->r, op, (int)count);
		return;
	}
	if (alone && !zc && sent_at_once(q, n))
		return;
	sqe = reactor_sqe(q->r);
	if (n == 1 && !zc) {
		io_uring_prep_send(sqe, q->fd, q->iov[q->iov_at].iov_base, q->iov[q->iov_at].iov_len, MSG_NOSIGNAL);
	} else {
		q->tx_msg = (struct msghdr){ .msg_iov = q->iov + q->iov_at, .msg_iovlen = n };
		if (zc)
			zc_prep(q, sqe);
		else
			io_uring_prep_sendmsg(sqe, q->fd, &q->tx_msg, MSG_NOSIGNAL);
	}
	io_uring_sqe_set_data(sqe, op);
	q->tx_armed = true;
}

void qpair_flush(struct qpair *q)
{
	bool term = q->ending == END_TERM;

	if (!STAILQ_EMPTY(&q->room) && q->ending == END_NONE)
		io_room(q);
	if (q->rx_paused)
		qpair_rx_resume(q);
	if (q->mute && q->ending != END_NONE && !q->finished) {
		qpair_closing(q);
		return;
	}
	if (q->tx_armed || q->mute || q->finished)
		return;
	if (zc_on(q))
		zc_begin(q);
	if (!term)
		encode_raw(q);
	if (q->ending == END_NONE)
		encode_r2ts(q);
	encode_answers(q);
	if (term && STAILQ_EMPTY(&q->answers))
		encode_raw(q);
	if (q->iov_n)
		tx_submit(q, STAILQ_EMPTY(&q->r->flush));
	else if (q->ending != END_NONE)
		qpair_closing(q);
	else if (q->zc && q->zc->now)
		zc_sent(q);
}

/* -- the end of a request */

void qpair_answer(struct request *rq)
{
	struct qpair *q = rq->q;

	rq->state = REQ_DONE;
	rq->sqhd = q->flow_control ? q->sqhd : 0xFFFF;
	if (q->mute || q->ending == END_TERM) {
		qpair_release(rq);
		return;
	}
	STAILQ_INSERT_TAIL(&q->answers, rq, link);
	qpair_want_flush(q);
}

void qpair_release(struct request *rq)
{
	struct qpair *q = rq->q;

	io_unstage(rq);
	if (rq->pinned) {
		rq->pinned = false;
		bdev_unpin(rq->io.bdev, q->r);
	}
	rq->tx_data = NULL;
	rq->tx_len = 0;
	rq->state = REQ_FREE;
	STAILQ_INSERT_HEAD(&q->free, rq, link);
}

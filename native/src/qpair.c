/* SPDX-License-Identifier: BSD-3-Clause
 *
 * qpair.c: the beginning and the end of a queue.
 *
 * All memory of a queue is allocated before it begins. It ends once: no more is read, commands that have not reached a
 * back end are taken back, those that have are awaited; TERM then sends its TermReq, closes its direction and waits a
 * bounded time for the peer to close, DISCONNECT sends every answer, the Disconnect's last.
 */
#include <assert.h>
#include <netinet/in.h>
#include <netinet/tcp.h>
#include <stdio.h>
#include <stdlib.h>
#include <unistd.h>

#include "crc32c.h"
#include "qpair_zc.h"

#define SPARE_REQS 8u
#define STAGED_MAX (8u << 20)

static uint32_t align_up(uint32_t value, uint32_t align)
{
	return (value + align - 1) / align * align;
}

static bool alloc_requests(struct qpair *q)
{
	uint32_t buckets = pow2_up(2u * q->entries);

	q->n_reqs = q->entries + SPARE_REQS;
	q->hash_mask = buckets - 1;
	q->reqs = calloc(q->n_reqs, sizeof(*q->reqs));
	q->hash = malloc(buckets * sizeof(*q->hash));
	if (!q->reqs || !q->hash)
		return false;
	memset(q->hash, 0xFF, buckets * sizeof(*q->hash));
	for (uint32_t i = q->n_reqs; i-- > 0;) {
		q->reqs[i].q = q;
		STAILQ_INSERT_HEAD(&q->free, &q->reqs[i], link);
	}
	return true;
}

static bool alloc_stream(struct qpair *q)
{
	uint32_t n_r2t = pow2_up(4u * q->entries), n_x = 2u * q->entries;

	q->r2t_mask = n_r2t - 1;
	/* a read answered: header, data, what follows; a long one of null has more; R2Ts and responses lie together */
	q->iov_max = min_u32(1024, 2u * q->n_reqs + 16);
	q->arena_max = q->n_reqs * (q->c2h_pdo + RESP_HLEN + 2 * DIGEST_LEN) + TERM_PDU_MAX;
	q->rx_size = RX_BYTES;
	if (q->rx_size < q->icd_max + 4096)
		q->rx_size = q->icd_max + 4096;
	q->xfers = calloc(n_x, sizeof(*q->xfers));
	q->r2t = calloc(n_r2t, sizeof(*q->r2t));
	q->iov = malloc(q->iov_max * sizeof(*q->iov));
	q->arena = malloc(q->arena_max);
	q->rx = aligned_alloc(4096, align_up(q->rx_size, 4096));
	if (!q->xfers || !q->r2t || !q->iov || !q->arena || !q->rx)
		return false;
	for (uint32_t i = n_x; i-- > 0;)
		STAILQ_INSERT_HEAD(&q->xfers_free, &q->xfers[i], link);
	return true;
}

struct qpair *qpair_new(const struct dp_queue *config)
{
	struct qpair *q = calloc(1, sizeof(*q));

	if (!q || config->response_len > sizeof(q->raw)) {
		free(q);
		return NULL;
	}
	q->key = config->key;
	q->ops = config->ops ? config->ops : &qpair_tcp_ops;
	q->transport = config->transport;
	q->no_direct = config->ddgst || config->ops;
	q->direct_max = UINT32_MAX;
	q->keyed = config->ops != NULL;
	q->fd = config->fd;
	q->hdgst = config->hdgst;
	q->ddgst = config->ddgst;
	q->flow_control = config->sq_flow_control;
	q->success = config->c2h_success && !config->sq_flow_control;
	q->entries = (uint16_t)(config->sqsize + 1);
	q->sqhd = config->sqhd;
	q->rx_align = ((uint32_t)config->cpda + 1) * 4;
	q->c2h_pdo = (uint16_t)align_up(DATA_HLEN + (q->hdgst ? DIGEST_LEN : 0), ((uint32_t)config->hpda + 1) * 4);
	q->window = config->maxr2t == UINT32_MAX ? UINT32_MAX : config->maxr2t + 1;
	q->maxh2cdata = config->maxh2cdata;
	q->icd_max = config->icd_max;
	q->next_tag = 1;
	q->staged_max = STAGED_MAX;
	STAILQ_INIT(&q->answers);
	STAILQ_INIT(&q->sending);
	STAILQ_INIT(&q->r2ts_due);
	STAILQ_INIT(&q->free);
	STAILQ_INIT(&q->room);
	STAILQ_INIT(&q->xfers_free);
	if (!alloc_requests(q) || (!config->ops && !alloc_stream(q))) {
		q->ops = &qpair_tcp_ops; /* the connection stays the caller's */
		qpair_free(q);
		return NULL;
	}
	q->raw_len = (uint32_t)config->response_len;
	if (q->raw_len)
		memcpy(q->raw, config->response, q->raw_len);
	return q;
}

void qpair_free(struct qpair *q)
{
	if (q->ops->free)
		q->ops->free(q);
	zc_free(q);
	free(q->reqs);
	free(q->hash);
	free(q->xfers);
	free(q->r2t);
	free(q->iov);
	free(q->arena);
	free(q->rx);
	free(q);
}

static void tcp_begin(struct qpair *q)
{
	int one = 1;

	if (q->fd >= 0)
		setsockopt(q->fd, IPPROTO_TCP, TCP_NODELAY, &one, sizeof(one)); /* fails on Unix sockets, no harm */
	qpair_want_flush(q);
	qpair_rx_arm(q);
}

void qpair_begin(struct reactor *r, struct ctrlr_r *c, struct qpair *q)
{
	q->r = r;
	q->c = c;
	LIST_INSERT_HEAD(&r->queues, q, link);
	atomic_fetch_add_explicit(&r->n_queues, 1, memory_order_relaxed);
	q->ops->begin(q);
}

/* -- the end */

static void timer_done(struct reactor *r, struct uop *op, int res)
{
	struct qpair *q = dp_container_of(op, struct qpair, timer_op);

	q->timer_armed = false;
	q->hurry = true;
	q->ops->closing(q);
}

void qpair_timer_arm(struct qpair *q)
{
	struct io_uring_sqe *sqe;

	if (q->r->sink)
		return;
	sqe = reactor_sqe(q->r);
	q->timeout = (struct __kernel_timespec){ .tv_sec = TERM_CLOSE_TIMEOUT_S };
	io_uring_prep_timeout(sqe, &q->timeout, 0, 0);
	q->timer_op.fn = timer_done;
	io_uring_sqe_set_data(sqe, &q->timer_op);
	q->timer_armed = true;
}

void qpair_timer_stop(struct qpair *q)
{
	struct io_uring_sqe *sqe;

	if (!q->timer_armed)
		return;
	sqe = reactor_sqe(q->r);
	io_uring_prep_timeout_remove(sqe, (uintptr_t)&q->timer_op, 0);
	io_uring_sqe_set_data(sqe, NULL);
}

void qpair_drop_answers(struct qpair *q)
{
	struct request *rq;

	while ((rq = STAILQ_FIRST(&q->answers))) {
		STAILQ_REMOVE_HEAD(&q->answers, link);
		qpair_release(rq);
	}
}

static void take_back(struct qpair *q)
{
	for (uint32_t i = 0; i < q->n_reqs; i++) {
		struct request *rq = &q->reqs[i];

		if (rq->state != REQ_FREE && rq->state != REQ_DONE && rq != q->disconnect)
			io_cancel(rq, ST_SQ_DELETION);
	}
}

static void unpause(struct qpair *q)
{
	staging_unwait(&q->r->pool, &q->icd_waiter);
	if (q->icd_buf)
		staging_free(&q->r->pool, q->icd_buf);
	q->icd_buf = NULL;
	q->rx_paused = false;
}

void qpair_end(struct qpair *q, enum ending how, const char *reason)
{
	if (q->ending != END_NONE) {
		if (how == END_ORDERED) {
			q->hurry = true;
			qpair_want_flush(q);
		}
		return;
	}
	q->ending = how;
	if (q->hot)
		reactor_cool(q->r, q);
	snprintf(q->reason, sizeof(q->reason), "%s", reason);
	if (how == END_ORDERED || how == END_LOST)
		q->mute = true;
	unpause(q);
	q->h2c_data = false;
	q->h2c_left = 0;
	take_back(q);
	if (q->mute)
		qpair_drop_answers(q);
	else
		qpair_timer_arm(q);
	/* What is left of the end is done from the flush: the caller may be deep inside of what must go. */
	qpair_want_flush(q);
}

void qpair_fatal(struct qpair *q, uint16_t fes, uint32_t fei, const char *reason)
{
	uint32_t n = q->pdu.stage == 0 ? CH_LEN : q->pdu.hlen;
	uint8_t *p = q->raw;

	if (q->ending != END_NONE)
		return;
	if (n > q->tail - q->head)
		n = q->tail - q->head;
	p[0] = PDU_C2H_TERM;
	p[1] = 0;
	p[2] = TERM_HLEN;
	p[3] = 0;
	put32(p + 4, TERM_HLEN + n);
	memset(p + 8, 0, TERM_HLEN - 8);
	put16(p + 8, fes);
	put32(p + 10, fei);
	memcpy(p + TERM_HLEN, q->rx + q->head, n);
	q->raw_len = TERM_HLEN + n;
	qpair_end(q, END_TERM, reason);
}

static void shut(struct qpair *q)
{
	if (q->shut)
		return;
	q->shut = q->rx_dead = true;
	if (q->fd >= 0)
		shutdown(q->fd, SHUT_RDWR); /* completes what is in the ring */
	qpair_timer_stop(q);
}

/* True: the last words are said, or nobody waits for them. */
static bool said(struct qpair *q)
{
	if (q->mute || q->hurry || q->rx_dead)
		return true;
	if (q->tx_armed || q->raw_len || !STAILQ_EMPTY(&q->answers)) {
		if (!q->tx_armed)
			qpair_want_flush(q);
		return false;
	}
	if (q->ending != END_TERM)
		return true;
	if (!q->half_closed) {
		q->half_closed = true;
		if (q->fd >= 0)
			shutdown(q->fd, SHUT_WR);
	}
	if (q->r->sink)
		return true;
	q->head = q->tail = 0;
	qpair_rx_arm(q); /* until the peer closes */
	return false;
}

void qpair_finish(struct qpair *q)
{
	q->finished = true;
	if (q->fd >= 0)
		close(q->fd);
	q->fd = -1;
	if (q->flush_queued)
		STAILQ_REMOVE(&q->r->flush, q, qpair, flush_link);
	q->flush_queued = false;
	LIST_REMOVE(q, link);
	atomic_fetch_sub_explicit(&q->r->n_queues, 1, memory_order_relaxed);
	if (q->ended)
		q->ended(q);
}

void qpair_closing(struct qpair *q)
{
	if (q->finished || q->at_work)
		return;
	if (q->disconnect) {
		struct request *rq = q->disconnect;

		q->disconnect = NULL;
		io_forget(rq);
		rq->status = ST_OK;
		qpair_answer(rq);
	}
	if (!said(q))
		return;
	q->mute = true;
	qpair_drop_answers(q);
	if (q->rx_armed || q->tx_armed || (q->timer_armed && !(q->zc && q->zc->waiting))) {
		shut(q);
		if (q->rx_armed || q->tx_armed || q->timer_armed)
			return;
	}
	if (q->zc && q->zc->now)
		zc_sent(q);
	if (!STAILQ_EMPTY(&q->sending)) /* partly sent, its send has failed or was given up */
		while (!STAILQ_EMPTY(&q->sending)) {
			struct request *rq = STAILQ_FIRST(&q->sending);

			STAILQ_REMOVE_HEAD(&q->sending, link);
			qpair_release(rq);
		}
	if (q->zc && q->zc->pending)
		shut(q);
	if (q->zc && !zc_over(q))
		return;
	qpair_finish(q);
}

const struct qpair_ops qpair_tcp_ops = {
	.begin = tcp_begin,
	.fetch = xfer_start,
	.unfetch = xfer_cancel,
	.flush = qpair_flush,
	.closing = qpair_closing,
};

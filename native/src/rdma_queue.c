/* SPDX-License-Identifier: BSD-3-Clause
 *
 * rdma_queue.c: an I/O queue over NVMe/RDMA on its reactor. Data of a Read goes by RDMA WRITE from staging memory to
 * where the keyed SGL says, its response follows in the same list of work requests; data of a Write is fetched by RDMA
 * READ, as many at a time as the host allows. Where the device has a region of a pool's memory (a dma-buf), payload of that
 * pool goes from and to it without host memory in between.
 *
 * The completion queue is looked at in each round of the reactor while there is something in it, and for the time that a
 * reactor spins; then the queue is armed and the reactor sleeps until the completion channel becomes readable.
 */
#include "io.h"
#include "rdma_priv.h"

#include <assert.h>
#include <errno.h>
#include <poll.h>
#include <stdio.h>
#include <stdlib.h>

/* H2C data of one command on its way; outlives its request when that is aborted. */
struct rdma_read {
	STAILQ_ENTRY(rdma_read) link; /* due, or free */
	struct request *rq;           /* NULL: cancelled */
	uint8_t *orphan;              /* memory of a cancelled one, into which data may still come; or in a pool: */
	struct pool_buf *orphan_pbuf;
	uint32_t at;                  /* bytes asked for */
	unsigned open;                /* work requests */
	bool due;
};

STAILQ_HEAD(rdma_read_list, rdma_read);

struct rdma_io {
	LIST_ENTRY(rdma_io) hot_link;
	struct rdma_conn *c;
	struct qpair *q;
	bool hot, begun;
	struct uop poll_op, unpoll_op;
	bool poll_armed, unpoll;

	struct {
		uint32_t slot, bytes;
	} *ready; /* ring of capsules that are not taken yet */
	uint32_t ready_size, ready_at, ready_n;

	struct rdma_read *reads;
	struct rdma_read_list reads_free, reads_due;
	uint32_t n_reads, reads_open; /* open: work requests */

	uint8_t *send_wrs; /* of each request: work requests of its response, 0: none is on its way */
	uint32_t sends;
	bool raw_due; /* the answer to Connect */
	uint8_t raw[16];

	struct ibv_send_wr wrs[RDMA_BATCH];
	struct ibv_sge sges[RDMA_BATCH];
	uint32_t n_wrs;

	bool error, draining, over, stuck;
	struct rmsg lost, wake;
	bool lost_sent, wake_sent;
	char lost_why[128];
};

static struct rdma_io *io_of(const struct qpair *q)
{
	return ((struct rdma_conn *)q->transport)->io;
}

/* Responses have an index: that of their request; the last one is the answer to Connect. */
static uint8_t *cqe_of(const struct rdma_io *io, uint32_t index)
{
	return io->c->cqes + (size_t)index * 16;
}

static void heat(struct rdma_io *io)
{
	if (io->hot)
		return;
	io->hot = true;
	LIST_INSERT_HEAD(&io->q->r->rdma_hot, io, hot_link);
}

static void cool(struct rdma_io *io)
{
	if (!io->hot)
		return;
	io->hot = false;
	LIST_REMOVE(io, hot_link);
}

/* -- posting */

static void post(struct rdma_io *io)
{
	struct ibv_send_wr *bad = NULL;

	if (!io->n_wrs)
		return;
	for (uint32_t i = 0; i + 1 < io->n_wrs; i++)
		io->wrs[i].next = &io->wrs[i + 1];
	io->wrs[io->n_wrs - 1].next = NULL;
	io->n_wrs = 0;
	counter_add(&io->c->count->doorbells, 1);
	if (ibv_post_send(io->c->qp, io->wrs, &bad)) {
		io->stuck = true; /* some of it was not taken and never completes */
		qpair_end(io->q, END_LOST, "the send queue has failed");
	}
}

static struct ibv_send_wr *next_wr(struct rdma_io *io, uint64_t ident, enum ibv_wr_opcode opcode)
{
	struct ibv_send_wr *wr = &io->wrs[io->n_wrs];
	struct ibv_sge *sge = &io->sges[io->n_wrs++];

	assert(io->n_wrs <= RDMA_BATCH);
	*wr = (struct ibv_send_wr){ .wr_id = ident, .sg_list = sge, .num_sge = 1, .opcode = opcode };
	io->c->sq_used++;
	return wr;
}

static void data_wr(struct rdma_io *io, struct ibv_send_wr *wr, const struct request *rq, const uint8_t *data, uint32_t at,
		    uint32_t bytes)
{
	const struct reactor *r = io->q->r;
	const struct ibv_mr *mr = io->c->dev->pool_mr[r->id];

	if (DP_UNLIKELY(rq->pbuf != NULL)) /* rdma_reaches was asked before it was taken, and the region lives as long */
		mr = atomic_load_explicit(&io->c->dev->peer_mr[pool_index(rq->pbuf->pool)], memory_order_acquire);
	else
		assert(data >= r->pool.base && data + bytes <= r->pool.base + r->pool.units * STAGING_UNIT);
	*wr->sg_list = (struct ibv_sge){ (uintptr_t)data, bytes, mr->lkey };
	wr->wr.rdma.remote_addr = rq->remote.address + at;
	wr->wr.rdma.rkey = rq->remote.key;
}

/* What lies in one piece from byte `at` of the payload on, of at most *bytes, which are reduced to it. */
static const uint8_t *piece_at(const struct request *rq, const uint8_t *host, uint32_t at, uint32_t *bytes)
{
	const struct iovec *piece;

	if (DP_LIKELY(!rq->pbuf))
		return host + at;
	for (piece = rq->pbuf->iov; at >= piece->iov_len; piece++)
		at -= (uint32_t)piece->iov_len;
	*bytes = min_u32(*bytes, (uint32_t)piece->iov_len - at);
	return (const uint8_t *)piece->iov_base + at;
}

/* -- answers */

static void encode_cqe(uint8_t *p, const struct qpair *q, const struct request *rq)
{
	put32(p, rq->dw0);
	put32(p + 4, 0);
	put16(p + 8, rq->sqhd);
	put16(p + 10, q->key.qid);
	put16(p + 12, rq->cid);
	put16(p + 14, (uint16_t)((rq->status & 0xFFFF) << 1 | (rq->status & ST_DNR ? 0x8000 : 0)));
}

static void queue_send(struct rdma_io *io, uint32_t index, const struct remote *remote)
{
	struct ibv_send_wr *wr = next_wr(io, RDMA_WR(RDMA_WR_SEND, index), IBV_WR_SEND);

	*wr->sg_list = (struct ibv_sge){ (uintptr_t)cqe_of(io, index), 16, io->c->cqes_lkey };
	wr->send_flags = IBV_SEND_SIGNALED | (io->c->inline_cqe ? IBV_SEND_INLINE : 0);
	if (remote && remote->invalidate && io->c->can_invalidate) {
		wr->opcode = IBV_WR_SEND_WITH_INV;
		wr->invalidate_rkey = remote->key;
		counter_add(&io->c->count->invalidates, 1);
	}
	counter_add(&io->c->count->sends, 1);
	io->sends++;
}

static uint32_t pieces(const struct rdma_conn *c, uint32_t bytes)
{
	return (uint32_t)(((uint64_t)bytes + c->max_message - 1) / c->max_message);
}

/* Data in a pool, whose memory may go away on the way: its response follows when it has left and the pool is still there. */
static bool answer_data(struct rdma_io *io, struct request *rq)
{
	uint32_t index = (uint32_t)(rq - io->q->reqs), n = 0, bytes;
	struct ibv_send_wr *wr = NULL;

	assert(!io->send_wrs[index]);
	if (io->q->ending == END_NONE && io_pool_unsendable(rq))
		return true;
	for (uint32_t at = 0; at < rq->tx_len; at += bytes, n++) {
		bytes = min_u32(io->c->max_message, rq->tx_len - at);
		piece_at(rq, NULL, at, &bytes);
	}
	if (n > RDMA_BATCH || n > io->c->sq_max) { /* in too many pieces for such a device */
		io_pool_count_fallback(rq, rq->pbuf->pool);
		io_again(rq);
		return true;
	}
	if (io->c->sq_used + n > io->c->sq_max) {
		counter_add(&io->c->count->pending_write, 1);
		return false;
	}
	if (io->n_wrs + n > RDMA_BATCH)
		post(io);
	for (uint32_t at = 0; at < rq->tx_len; at += bytes) {
		bytes = min_u32(io->c->max_message, rq->tx_len - at);
		const uint8_t *data = piece_at(rq, NULL, at, &bytes);

		wr = next_wr(io, RDMA_WR(RDMA_WR_WRITE, index), IBV_WR_RDMA_WRITE);
		data_wr(io, wr, rq, data, at, bytes);
		counter_add(&io->c->count->writes, 1);
	}
	wr->wr_id = RDMA_WR(RDMA_WR_DATA, index);
	wr->send_flags = IBV_SEND_SIGNALED;
	counter_add(&io->q->bytes_out, rq->tx_len);
	io->send_wrs[index] = (uint8_t)n;
	io->sends++;
	return true;
}

/* True: it is among what will be posted, or goes another way; false: not now. */
static bool answer(struct rdma_io *io, struct request *rq)
{
	struct qpair *q = io->q;

	if (DP_UNLIKELY(rq->pbuf != NULL) && rq->tx_len)
		return answer_data(io, rq);

	uint32_t index = (uint32_t)(rq - q->reqs), n = pieces(io->c, rq->tx_len) + 1;

	assert(n <= RDMA_BATCH && !io->send_wrs[index]);
	if (io->c->sq_used + n > io->c->sq_max) {
		counter_add(&io->c->count->pending_write, 1);
		return false;
	}
	if (io->n_wrs + n > RDMA_BATCH)
		post(io);
	assert(rq->filled >= rq->tx_len);
	for (uint32_t at = 0; at < rq->tx_len; at += io->c->max_message) {
		uint32_t bytes = min_u32(io->c->max_message, rq->tx_len - at);

		data_wr(io, next_wr(io, RDMA_WR(RDMA_WR_WRITE, index), IBV_WR_RDMA_WRITE), rq, rq->tx_data + at, at, bytes);
		counter_add(&io->c->count->writes, 1);
	}
	counter_add(&q->bytes_out, rq->tx_len + 16);
	encode_cqe(cqe_of(io, index), q, rq);
	io->send_wrs[index] = (uint8_t)n;
	queue_send(io, index, &rq->remote);
	return true;
}

static void answers(struct rdma_io *io)
{
	struct qpair *q = io->q;
	struct request *rq;

	if (io->raw_due && io->c->sq_used < io->c->sq_max) {
		io->raw_due = false;
		memcpy(cqe_of(io, q->n_reqs), io->raw, 16);
		io->send_wrs[q->n_reqs] = 1;
		queue_send(io, q->n_reqs, NULL);
	}
	while ((rq = STAILQ_FIRST(&q->answers))) {
		STAILQ_REMOVE_HEAD(&q->answers, link); /* first: one that goes another way may come again */
		if (!answer(io, rq)) {
			STAILQ_INSERT_HEAD(&q->answers, rq, link);
			break;
		}
	}
}

/* A response has left, or never will. */
static void send_ended(struct rdma_io *io, uint32_t index)
{
	struct qpair *q = io->q;

	assert(index <= q->n_reqs && io->send_wrs[index]);
	io->c->sq_used -= io->send_wrs[index];
	io->send_wrs[index] = 0;
	io->sends--;
	if (index < q->n_reqs)
		qpair_release(&q->reqs[index]);
}

/* The data of a Read has left its pool, or never will. */
static void data_ended(struct rdma_io *io, uint32_t index)
{
	struct pool *none = NULL;

	assert(index < io->q->n_reqs && io->send_wrs[index]);
	io->c->sq_used -= io->send_wrs[index];
	io->send_wrs[index] = 0;
	io->sends--;
	io_pool_sent(&io->q->reqs[index], &none);
}

/* -- data of Writes */

static void rdma_fetch(struct request *rq)
{
	struct rdma_io *io = io_of(rq->q);
	struct rdma_read *read = STAILQ_FIRST(&io->reads_free);

	/* There are twice as many as commands; only aborted ones whose data never came can use them up. */
	if (!read) {
		qpair_end(rq->q, END_LOST, "too many aborted transfers");
		return;
	}
	STAILQ_REMOVE_HEAD(&io->reads_free, link);
	*read = (struct rdma_read){ .rq = rq, .due = true };
	rq->fetching = read;
	rq->filled = 0;
	STAILQ_INSERT_TAIL(&io->reads_due, read, link);
	qpair_want_flush(rq->q);
}

static void read_free(struct rdma_io *io, struct rdma_read *read)
{
	if (read->orphan)
		staging_free(&io->q->r->pool, read->orphan);
	if (read->orphan_pbuf)
		pool_put(read->orphan_pbuf);
	read->orphan = NULL;
	read->orphan_pbuf = NULL;
	STAILQ_INSERT_HEAD(&io->reads_free, read, link);
}

static void rdma_unfetch(struct request *rq)
{
	struct rdma_read *read = rq->fetching;
	struct rdma_io *io;

	if (!read)
		return;
	io = io_of(rq->q);
	rq->fetching = NULL;
	read->rq = NULL;
	if (read->due)
		STAILQ_REMOVE(&io->reads_due, read, rdma_read, link);
	read->due = false;
	if (read->open) { /* the device may be writing there */
		read->orphan = rq->buf;
		read->orphan_pbuf = rq->pbuf;
		if (rq->buf)
			rq->q->staged -= staging_size(rq->stage_bytes);
		rq->buf = NULL;
		rq->pbuf = NULL;
	} else {
		read_free(io, read);
	}
}

static void fetches(struct rdma_io *io)
{
	struct rdma_conn *c = io->c;
	struct rdma_read *read;

	while ((read = STAILQ_FIRST(&io->reads_due))) {
		struct request *rq = read->rq;
		uint32_t bytes = min_u32(c->max_message, rq->length - read->at);

		if (io->reads_open >= c->ord || c->sq_used >= c->sq_max) {
			counter_add(&c->count->pending_read, 1);
			return;
		}
		if (io->n_wrs == RDMA_BATCH)
			post(io);
		if (io->q->ending != END_NONE)
			return;
		struct ibv_send_wr *wr =
			next_wr(io, RDMA_WR(RDMA_WR_READ, (uint32_t)(read - io->reads)), IBV_WR_RDMA_READ);

		const uint8_t *data = piece_at(rq, rq->buf, read->at, &bytes);

		data_wr(io, wr, rq, data, read->at, bytes);
		wr->send_flags = IBV_SEND_SIGNALED;
		counter_add(&c->count->reads, 1);
		read->open++;
		io->reads_open++;
		read->at += bytes;
		if (read->at == rq->length) {
			STAILQ_REMOVE_HEAD(&io->reads_due, link);
			read->due = false;
		}
	}
}

static void read_ended(struct rdma_io *io, uint32_t index, bool ok)
{
	struct rdma_read *read = &io->reads[index];
	struct request *rq = read->rq;

	assert(index < io->n_reads && read->open);
	read->open--;
	io->reads_open--;
	io->c->sq_used--;
	if (read->open)
		return;
	if (!rq) {
		read_free(io, read);
	} else if (ok && !read->due) {
		rq->fetching = NULL;
		rq->filled = rq->length;
		read_free(io, read);
		counter_add(&io->q->bytes_in, rq->length);
		io_data(rq, false);
	} /* else: the end of the queue takes it back */
}

/* -- commands in */

static void take(struct rdma_io *io)
{
	struct qpair *q = io->q;

	while (io->ready_n && !q->rx_paused && q->ending == END_NONE) {
		uint32_t slot = io->ready[io->ready_at].slot, bytes = io->ready[io->ready_at].bytes;
		const uint8_t *p = rdma_rx_slot(io->c, slot);

		if (atomic_load_explicit(&q->in_flight, memory_order_relaxed) >= q->entries) {
			qpair_end(q, END_LOST, "more commands in flight than the queue has entries");
			return;
		}
		if (!io_command(q, p, bytes > 64 ? p + 64 : NULL, bytes - 64, false)) {
			q->rx_paused = true;
			return;
		}
		io->ready_at = (io->ready_at + 1) % io->ready_size;
		io->ready_n--;
		counter_add(&io->c->count->receives, 1);
		if (rdma_rx_post(io->c, slot) < 0)
			qpair_end(q, END_LOST, "the receive queue has failed");
	}
}

static void received(struct rdma_io *io, uint32_t slot, uint32_t bytes)
{
	struct qpair *q = io->q;
	uint32_t at = (io->ready_at + io->ready_n) % io->ready_size;

	counter_add(&io->c->count->requests, 1);
	counter_add(&q->bytes_in, bytes);
	if (bytes < 64)
		qpair_end(q, END_LOST, "a capsule that is shorter than a command");
	else if (bytes > 64 + q->icd_max)
		qpair_end(q, END_LOST, "a capsule with more data than was agreed");
	else if (io->ready_n == io->ready_size)
		qpair_end(q, END_LOST, "more commands than the queue has entries");
	if (q->ending != END_NONE) {
		if (io->c->rx->srq)
			rdma_rx_post(io->c, slot);
		return;
	}
	io->ready[at].slot = slot;
	io->ready[at].bytes = bytes;
	io->ready_n++;
	take(io);
}

/* -- completions */

static void failed(struct rdma_io *io, const struct ibv_wc *wc)
{
	char why[128];

	if (io->q->ending != END_NONE)
		return;
	snprintf(why, sizeof(why), "RDMA: %s", ibv_wc_status_str(wc->status));
	qpair_end(io->q, END_LOST, why);
}

static void on_wc(struct rdma_conn *c, const struct ibv_wc *wc)
{
	struct rdma_io *io = c->io;
	uint32_t index = RDMA_WR_INDEX(wc->wr_id);
	bool ok = wc->status == IBV_WC_SUCCESS;

	switch (RDMA_WR_KIND(wc->wr_id)) {
	case RDMA_WR_RECV:
		if (ok)
			received(io, index, wc->byte_len);
		else if (c->rx->srq)
			rdma_rx_post(c, index);
		break;
	case RDMA_WR_SEND:
		send_ended(io, index);
		break;
	case RDMA_WR_READ:
		read_ended(io, index, ok);
		break;
	case RDMA_WR_DATA:
		if (!ok)
			failed(io, wc); /* before: nothing is told as success */
		data_ended(io, index);
		break;
	default:
		break; /* RDMA WRITE: tells only of errors, its response too */
	}
	if (!ok)
		failed(io, wc);
	if (io->q->ending != END_NONE || io->q->rx_paused || !STAILQ_EMPTY(&io->reads_due) || !STAILQ_EMPTY(&io->q->answers))
		qpair_want_flush(io->q);
}

static bool poll_all(struct reactor *r)
{
	struct rdma_io *io, *next;
	bool any = false;

	for (io = LIST_FIRST(&r->rdma_hot); io; io = next) {
		next = LIST_NEXT(io, hot_link);
		if (rdma_conn_poll(io->c, on_wc))
			any = true;
	}
	return any;
}

/* Before the reactor sleeps. */
static bool rest_all(struct reactor *r)
{
	struct rdma_io *io, *next;
	bool any = false;

	for (io = LIST_FIRST(&r->rdma_hot); io; io = next) {
		next = LIST_NEXT(io, hot_link);
		ibv_req_notify_cq(io->c->cq, 0);
		if (rdma_conn_poll(io->c, on_wc)) /* came before it was armed */
			any = true;
		else
			cool(io);
	}
	return any || !STAILQ_EMPTY(&r->flush);
}

static void poll_arm(struct rdma_io *io);

static void poll_done(struct reactor *r, struct uop *op, int res)
{
	struct rdma_io *io = dp_container_of(op, struct rdma_io, poll_op);

	io->poll_armed = false;
	counter_add(&io->c->count->events, 1);
	rdma_conn_ack(io->c);
	if (io->unpoll) {
		qpair_want_flush(io->q);
		return;
	}
	heat(io);
	poll_arm(io);
}

static void poll_arm(struct rdma_io *io)
{
	struct io_uring_sqe *sqe;

	if (io->q->r->sink)
		return;
	sqe = reactor_sqe(io->q->r);
	io_uring_prep_poll_add(sqe, io->c->channel->fd, POLLIN);
	io_uring_sqe_set_data(sqe, &io->poll_op);
	io->poll_op.fn = poll_done;
	io->poll_armed = true;
}

/* -- the end */

/* The device does not give back what was posted: without the queue pair it cannot touch any of it. */
static void force(struct rdma_io *io)
{
	struct rdma_conn *c = io->c;
	struct qpair *q = io->q;

	rdma_destroy_qp(c->id);
	c->qp = NULL;
	for (uint32_t i = 0; i <= q->n_reqs; i++)
		if (io->send_wrs[i])
			send_ended(io, i);
	for (uint32_t i = 0; i < io->n_reads; i++)
		while (io->reads[i].open)
			read_ended(io, i, false);
}

/* True: nothing is with the device. */
static bool drained(struct rdma_io *io)
{
	struct qpair *q = io->q;

	if (!io->error) {
		io->error = true;
		rdma_conn_error(io->c);
		heat(io);
	}
	rdma_conn_poll(io->c, on_wc);
	if (!io->sends && !io->reads_open && (!io->c->rx->srq || atomic_load(&io->c->last_wqe) || q->hurry))
		return true;
	if (!io->draining && !io->stuck) {
		io->draining = true;
		q->hurry = false;
		if (!q->timer_armed)
			qpair_timer_arm(q);
		return false;
	}
	if (!q->hurry && !io->stuck)
		return false;
	force(io);
	return true;
}

static void rdma_closing(struct qpair *q)
{
	struct rdma_io *io = io_of(q);

	if (q->finished || q->at_work)
		return;
	if (q->disconnect) {
		struct request *rq = q->disconnect;

		q->disconnect = NULL;
		io_forget(rq);
		rq->status = ST_OK;
		qpair_answer(rq);
	}
	if (!q->mute && !q->hurry && (!STAILQ_EMPTY(&q->answers) || io->sends)) {
		if (!STAILQ_EMPTY(&q->answers))
			qpair_want_flush(q);
		return;
	}
	q->mute = true;
	qpair_drop_answers(q);
	if (!drained(io))
		return;
	while (io->ready_n && io->c->rx->srq) { /* capsules that nobody will take */
		rdma_rx_post(io->c, io->ready[io->ready_at].slot);
		io->ready_at = (io->ready_at + 1) % io->ready_size;
		io->ready_n--;
	}
	if (q->timer_armed) {
		qpair_timer_stop(q);
		return;
	}
	if (io->poll_armed) {
		if (!io->unpoll) {
			struct io_uring_sqe *sqe = reactor_sqe(q->r);

			io->unpoll = true;
			io_uring_prep_poll_remove(sqe, (uintptr_t)&io->poll_op);
			io_uring_sqe_set_data(sqe, NULL);
		}
		return;
	}
	cool(io);
	qpair_finish(q);
}

static void rdma_flush(struct qpair *q)
{
	struct rdma_io *io = io_of(q);

	if (q->finished)
		return;
	if (!STAILQ_EMPTY(&q->room) && q->ending == END_NONE)
		io_room(q);
	if (q->rx_paused && q->ending == END_NONE) {
		q->rx_paused = false;
		take(io);
	}
	if (!q->mute) {
		if (q->ending == END_NONE)
			fetches(io);
		answers(io);
		post(io);
		if (io->sends || io->reads_open)
			heat(io); /* it completes soon */
	}
	if (q->ending != END_NONE)
		rdma_closing(q);
}

static void on_lost(struct reactor *r, struct rmsg *msg)
{
	struct rdma_io *io = dp_container_of(msg, struct rdma_io, lost);

	if (!io->q->finished)
		qpair_end(io->q, END_LOST, io->lost_why);
}

void rdma_queue_lost(struct rdma_conn *c, const char *reason)
{
	struct rdma_io *io = c->io;

	if (!io->q || io->over || io->lost_sent)
		return;
	io->lost_sent = true;
	snprintf(io->lost_why, sizeof(io->lost_why), "%s", reason);
	io->lost.fn = on_lost;
	reactor_send(io->q->r, &io->lost);
}

static void on_wake(struct reactor *r, struct rmsg *msg)
{
	struct rdma_io *io = dp_container_of(msg, struct rdma_io, wake);

	if (!io->q->finished)
		qpair_want_flush(io->q);
}

void rdma_queue_wake(struct rdma_conn *c)
{
	struct rdma_io *io = c->io;

	if (!io || !io->q || io->over || io->wake_sent)
		return;
	io->wake_sent = true;
	io->wake.fn = on_wake;
	reactor_send(io->q->r, &io->wake);
}

/* -- the beginning */

static void rdma_placed(struct qpair *q)
{
	io_of(q)->q = q;
}

static void rdma_begin(struct qpair *q)
{
	struct rdma_conn *c = q->transport;
	struct rdma_io *io = c->io;

	io->begun = true;
	c->count = rdma_count(c->dev, q->r);
	reactor_poller(q->r, poll_all, rest_all);
	poll_arm(io);
	io->raw_due = true;
	heat(io);
	qpair_want_flush(q);
}

static bool rdma_reaches(const struct qpair *q, const struct pool *pool)
{
	const struct rdma_conn *c = q->transport;

	return atomic_load_explicit(&c->dev->peer_mr[pool_index(pool)], memory_order_acquire) != NULL;
}

static void rdma_over(struct qpair *q)
{
	io_of(q)->over = true;
}

static void rdma_free(struct qpair *q)
{
	struct rdma_conn *c = q->transport;

	c->count = rdma_count(c->dev, NULL);
	rdma_disconnect(c->id);
	rdma_conn_free(c);
}

const struct qpair_ops rdma_queue_ops = {
	.placed = rdma_placed,
	.begin = rdma_begin,
	.fetch = rdma_fetch,
	.unfetch = rdma_unfetch,
	.flush = rdma_flush,
	.closing = rdma_closing,
	.over = rdma_over,
	.free = rdma_free,
	.reaches = rdma_reaches,
};

int rdma_queue_new(struct rdma_conn *c, const uint8_t cqe[16])
{
	struct rdma_io *io = calloc(1, sizeof(*io));

	if (!io)
		return -ENOMEM;
	c->io = io;
	io->c = c;
	memcpy(io->raw, cqe, 16);
	io->ready_size = c->entries + 2u;
	io->n_reads = 2u * c->entries;
	io->ready = calloc(io->ready_size, sizeof(*io->ready));
	io->reads = calloc(io->n_reads, sizeof(*io->reads));
	io->send_wrs = calloc(c->entries + 64u, 1);
	if (!io->ready || !io->reads || !io->send_wrs) {
		rdma_queue_delete(c);
		return -ENOMEM;
	}
	STAILQ_INIT(&io->reads_free);
	STAILQ_INIT(&io->reads_due);
	for (uint32_t i = 0; i < io->n_reads; i++)
		STAILQ_INSERT_TAIL(&io->reads_free, &io->reads[i], link);
	return 0;
}

void rdma_queue_delete(struct rdma_conn *c)
{
	struct rdma_io *io = c->io;

	if (!io)
		return;
	free(io->ready);
	free(io->reads);
	free(io->send_wrs);
	free(io);
	c->io = NULL;
}

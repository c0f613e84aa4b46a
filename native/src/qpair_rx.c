/* SPDX-License-Identifier: BSD-3-Clause
 *
 * qpair_rx.c: cutting the byte stream into PDUs and judging them, as nvmet_p2p/protocol/tcp_common.py does.
 *
 * All bytes arrive in rx[] (but for the bulk of H2C data, which goes where it belongs). A PDU is looked at in three
 * steps: common header, whole header, whole PDU; nothing is believed before it is checked, and every length and offset
 * of the peer is checked in check_common, check_lengths, capsule_header or h2c_header and nowhere else. Capsules are
 * parsed in place: a PDU that is there in part is moved to the front of rx[] and completed behind itself.
 */
#include <assert.h>
#include <errno.h>
#include <stdio.h>
#include <unistd.h>

#include "crc32c.h"
#include "qpair.h"

/* Below this H2C data takes the way through rx[]: one receive brings more than it. */
#define RX_DIRECT_MIN 2048u

/* A receive that brought no more than this: the host waits for each command before it sends the next. */
#define RX_SHALLOW 256u

/* -- checks: false when the connection has failed */

static bool fail(struct qpair *q, uint16_t fes, uint32_t fei, const char *reason)
{
	qpair_fatal(q, fes, fei, reason);
	return false;
}

static bool field(struct qpair *q, uint32_t fei, const char *reason)
{
	return fail(q, FES_HEADER_FIELD, fei, reason);
}

/* PDO and PLEN against FLAGS and each other; what they leave for padding, data and DDGST. */
static bool check_lengths(struct qpair *q, struct pdu *pdu)
{
	uint32_t full = (uint32_t)pdu->hlen + pdu->hd;

	pdu->data_len = pdu->dd = 0;
	if (pdu->plen <= full) {
		if (pdu->pdo != 0 && pdu->pdo != full && (pdu->pdo < full || pdu->pdo % q->rx_align))
			return field(q, FEI_PDO, "PDO of a PDU without data");
		if (pdu->plen != full)
			return field(q, FEI_PLEN, "PLEN is shorter than the header");
		return true;
	}
	if (q->ddgst && !(pdu->flags & PDU_F_DDGST))
		return field(q, FEI_FLAGS, "no data digest where it was agreed");
	if (pdu->pdo < full || pdu->pdo % q->rx_align || pdu->pdo >= pdu->plen)
		return field(q, FEI_PDO, "PDO");
	pdu->dd = q->ddgst ? DIGEST_LEN : 0;
	if (pdu->plen <= pdu->pdo + pdu->dd)
		return field(q, FEI_PLEN, "PLEN leaves no room for data");
	pdu->data_len = pdu->plen - pdu->pdo - pdu->dd;
	return true;
}

/* A well-formed or malformed H2CTermReq ends the connection at once, without an answer (TCP 3.5). */
static bool terminated(struct qpair *q, uint16_t fes, uint32_t fei)
{
	char reason[64];

	snprintf(reason, sizeof(reason), "terminated by the host (FES %u, FEI %u)", fes, fei);
	qpair_end(q, END_LOST, reason);
	return false;
}

static bool check_common(struct qpair *q, const uint8_t *p)
{
	struct pdu *pdu = &q->pdu;
	uint8_t known = PDU_F_HDGST | PDU_F_DDGST;

	pdu->type = p[0];
	pdu->flags = p[1];
	pdu->pdo = p[3];
	pdu->plen = get32(p + 4);
	switch (pdu->type) {
	case PDU_CAPSULE_CMD:
		pdu->hlen = CMD_HLEN;
		break;
	case PDU_H2C_DATA:
		pdu->hlen = DATA_HLEN;
		known |= PDU_F_LAST;
		break;
	case PDU_H2C_TERM:
		if (p[2] != TERM_HLEN || pdu->plen < TERM_HLEN || pdu->plen > TERM_HLEN + TERM_DATA_MAX)
			return terminated(q, 0, 0);
		pdu->hlen = TERM_HLEN;
		pdu->hd = 0;
		pdu->data_len = pdu->dd = 0;
		return true;
	case PDU_ICREQ:
		return fail(q, FES_SEQUENCE, 0, "a second ICReq");
	default:
		return field(q, FEI_TYPE, "PDU type");
	}
	if (pdu->flags & ~known || !(pdu->flags & PDU_F_HDGST) != !q->hdgst)
		return field(q, FEI_FLAGS, "flags");
	if (pdu->flags & PDU_F_DDGST && !q->ddgst)
		return field(q, FEI_FLAGS, "a data digest that was not agreed");
	if (p[2] != pdu->hlen)
		return field(q, FEI_HLEN, "HLEN");
	pdu->hd = q->hdgst ? DIGEST_LEN : 0;
	if (!q->hdgst)
		return check_lengths(q, pdu);
	if (pdu->plen < (uint32_t)pdu->hlen + DIGEST_LEN)
		return field(q, FEI_PLEN, "PLEN is shorter than the header");
	return true;
}

static bool capsule_header(struct qpair *q, const uint8_t *p)
{
	uint32_t most = q->icd_max;

	if (p[CH_LEN] == OPC_FABRICS && most < FABRICS_ICD_BYTES)
		most = FABRICS_ICD_BYTES;
	if (q->pdu.data_len > most)
		return field(q, FEI_PLEN, "more in-capsule data than allowed");
	if (atomic_load_explicit(&q->in_flight, memory_order_relaxed) >= q->entries)
		return fail(q, FES_SEQUENCE, 0, "more commands in flight than the queue has entries");
	return true;
}

static bool tag_was_given_out(const struct qpair *q, uint16_t tag)
{
	return tag >= 1 && tag <= 0xFFFE && (tag < q->next_tag || q->tags_went_round);
}

static bool h2c_header(struct qpair *q, const uint8_t *p)
{
	uint16_t cccid = get16(p + 8), tag = get16(p + 10);
	uint32_t datao = get32(p + 12), datal = get32(p + 16), data_len = q->pdu.data_len;
	struct r2t *r2t = &q->r2t[tag & q->r2t_mask];
	uint64_t end = (uint64_t)datao + datal;

	if (tag == 0 || r2t->tag != tag) {
		if (tag_was_given_out(q, tag))
			return fail(q, FES_SEQUENCE, 0, "H2CData after its last");
		return field(q, FEI_TTAG, "H2CData with an unknown TTAG");
	}
	if (cccid != r2t->x->cid)
		return fail(q, FES_SEQUENCE, 0, "H2CData with the TTAG of another command");
	if (datal == 0)
		return field(q, FEI_DATAL, "H2CData without data");
	if (datal > q->maxh2cdata)
		return fail(q, FES_LIMIT, 0, "H2CData longer than MAXH2CDATA");
	if (datal != data_len)
		return field(q, data_len > q->maxh2cdata ? FEI_PLEN : FEI_DATAL, "DATAL is not what the PDU holds");
	if (datao < r2t->start || end > r2t->end)
		return fail(q, FES_OUT_OF_RANGE, 0, "H2CData outside its R2T");
	if (datao != r2t->x->received)
		return fail(q, FES_SEQUENCE, 0, "H2CData out of order");
	if (!(q->pdu.flags & PDU_F_LAST) != (end != r2t->end))
		return fail(q, FES_SEQUENCE, 0, "LAST_PDU not on the R2T's last H2CData, or on another");
	q->h2c = r2t;
	return true;
}

static bool check_header(struct qpair *q, const uint8_t *p)
{
	struct pdu *pdu = &q->pdu;

	if (pdu->hd) {
		uint32_t received = get32(p + pdu->hlen);

		if (crc32c(0, p, pdu->hlen) != received)
			return fail(q, FES_HDGST, received, "header digest");
		if (!check_lengths(q, pdu))
			return false;
	}
	if (pdu->type == PDU_CAPSULE_CMD)
		return capsule_header(q, p);
	if (pdu->type == PDU_H2C_DATA)
		return h2c_header(q, p);
	return true;
}

/* -- whole PDUs */

static void consume(struct qpair *q, uint32_t bytes)
{
	assert(bytes <= q->tail - q->head);
	q->head += bytes;
}

static bool take_capsule(struct qpair *q, const uint8_t *p)
{
	const struct pdu *pdu = &q->pdu;
	const uint8_t *icd = pdu->data_len ? p + pdu->pdo : NULL;
	bool bad = pdu->dd && crc32c(0, icd, pdu->data_len) != get32(icd + pdu->data_len);

	if (!io_command(q, p + CH_LEN, icd, pdu->data_len, bad)) {
		q->rx_paused = true;
		return false;
	}
	return true;
}

static void r2t_complete(struct qpair *q, struct r2t *r2t)
{
	struct xfer *x = r2t->x;
	struct request *rq = x->rq;

	r2t->tag = 0;
	r2t->x = NULL;
	q->r2ts_open--;
	x->open--;
	if (rq && x->received == x->length) {
		bool bad = x->ddgst_error;

		rq->xfer = NULL;
		x->rq = NULL;
		STAILQ_INSERT_HEAD(&q->xfers_free, x, link);
		io_data(rq, bad);
	} else if (rq) {
		if (!x->listed && x->requested < x->length) {
			x->listed = true;
			STAILQ_INSERT_TAIL(&q->r2ts_due, x, link);
		}
	} else if (x->open == 0 && !x->listed) {
		STAILQ_INSERT_HEAD(&q->xfers_free, x, link);
	}
	if (!STAILQ_EMPTY(&q->r2ts_due))
		qpair_want_flush(q);
}

/* The data of the H2CData in progress is here, and its digest too. */
static void h2c_complete(struct qpair *q, uint32_t digest)
{
	struct r2t *r2t = q->h2c;

	if (q->pdu.dd && digest != q->h2c_crc)
		r2t->x->ddgst_error = true;
	q->h2c = NULL;
	q->h2c_data = false;
	if (r2t->x->received == r2t->end)
		r2t_complete(q, r2t);
}

/* count bytes of the H2CData in progress have come; from: where they lie now, or NULL when in place already. */
static void h2c_bytes(struct qpair *q, const uint8_t *from, uint32_t count)
{
	struct xfer *x = q->h2c->x;
	uint8_t *to = x->rq && x->rq->buf ? x->rq->buf + x->received : NULL;

	assert(count <= q->h2c_left && x->received + count <= x->length);
	if (x->rq && x->rq->stream)
		io_stream(x->rq, x->received, from, count);
	else if (from && x->rq && DP_UNLIKELY(x->rq->pbuf != NULL))
		io_pool_fill(x->rq->pbuf, x->received, from, count);
	else if (to && from)
		memcpy(to, from, count);
	if (q->pdu.dd && (from || to))
		q->h2c_crc = crc32c(q->h2c_crc, from ? from : to, count);
	x->received += count;
	if (x->rq)
		x->rq->filled = x->received;
	q->h2c_left -= count;
}

/* Goes on with H2C data; false: more must arrive. */
static bool take_h2c(struct qpair *q)
{
	uint32_t there = min_u32(q->tail - q->head, q->h2c_left), digest = 0;
	const struct xfer *x = q->h2c->x;

	/* A block reaches the medium whole: what there is of the next one waits in rx[] for the rest. */
	if (there < q->h2c_left && x->rq && x->rq->stream) {
		uint32_t part = (x->received + there) & x->rq->block_mask;

		there -= min_u32(there, part);
	}
	if (there) {
		h2c_bytes(q, q->rx + q->head, there);
		consume(q, there);
	}
	if (q->h2c_left)
		return false;
	if (q->pdu.dd) {
		if (q->tail - q->head < DIGEST_LEN)
			return false;
		digest = get32(q->rx + q->head);
		consume(q, DIGEST_LEN);
	}
	h2c_complete(q, digest);
	q->pdu.stage = 0;
	return true;
}

/* One PDU, or one step of it; false: more must arrive, or nothing may be taken now. */
static bool parse_one(struct qpair *q)
{
	struct pdu *pdu = &q->pdu;
	uint32_t there = q->tail - q->head;
	const uint8_t *p = q->rx + q->head;

	if (q->h2c_data)
		return take_h2c(q);
	if (pdu->stage == 0) {
		if (there < CH_LEN || !check_common(q, p))
			return false;
		pdu->stage = 1;
	}
	if (pdu->stage == 1) {
		if (there < (uint32_t)pdu->hlen + pdu->hd || !check_header(q, p))
			return false;
		pdu->stage = 2;
	}
	if (pdu->type == PDU_H2C_DATA) {
		if (there < pdu->pdo)
			return false;
		consume(q, pdu->pdo);
		q->h2c_data = true;
		q->h2c_left = pdu->data_len;
		q->h2c_crc = 0;
		return true;
	}
	if (there < pdu->plen)
		return false;
	if (pdu->type == PDU_H2C_TERM)
		return terminated(q, get16(p + 8), get32(p + 10));
	if (!take_capsule(q, p))
		return false;
	consume(q, pdu->plen);
	pdu->stage = 0;
	return true;
}

void qpair_rx_parse(struct qpair *q)
{
	while (q->ending == END_NONE && !q->rx_paused && (q->head < q->tail || (q->h2c_data && q->h2c_left == 0)))
		if (!parse_one(q))
			break;
	if (q->ending != END_NONE) {
		q->head = q->tail = 0;
		return;
	}
	if (q->head == q->tail) {
		q->head = q->tail = 0;
	} else if (q->head && !q->rx_paused) {
		memmove(q->rx, q->rx + q->head, q->tail - q->head);
		q->tail -= q->head;
		q->head = 0;
	}
}

/* -- receiving */

uint8_t *qpair_rx_room(struct qpair *q, uint32_t *bytes)
{
	*bytes = q->rx_size - q->tail;
	return q->rx + q->tail;
}

void qpair_rx_bytes(struct qpair *q, uint32_t count)
{
	counter_add(&q->bytes_in, count);
	if (q->rx_direct) {
		uint32_t data = min_u32(count, q->h2c_left);

		q->rx_direct = false;
		h2c_bytes(q, NULL, data);
		count -= data;
	}
	q->tail += count;
	assert(q->tail <= q->rx_size);
	qpair_rx_parse(q);
}

static void free_orphan(struct qpair *q)
{
	if (q->orphan)
		staging_free(&q->r->pool, q->orphan);
	if (q->orphan_pbuf)
		pool_put(q->orphan_pbuf);
	q->orphan = NULL;
	q->orphan_pbuf = NULL;
}

/* Was it memory of a pool that the kernel could not write to? It has been replaced then. */
static bool rx_faulted(struct qpair *q)
{
	struct pool_buf *buf = q->orphan_pbuf;

	if (!buf && q->rx_direct && q->h2c && q->h2c->x->rq)
		buf = q->h2c->x->rq->pbuf;
	if (!buf || ++q->rx_faults > POOL_FAULTS_MAX)
		return false;
	if (pool_check(buf->pool))
		pool_lose(buf->pool, "receiving into it faulted");
	return true;
}

static bool may_arm(const struct qpair *q)
{
	return !q->rx_armed && !q->rx_paused && !q->rx_dead && !q->r->sink && !q->hot &&
	       (q->ending == END_NONE || q->ending == END_TERM);
}

static bool may_heat(const struct qpair *q)
{
	return may_arm(q) && q->ending == END_NONE && !q->h2c_data;
}

static void rx_done(struct reactor *r, struct uop *op, int res)
{
	struct qpair *q = dp_container_of(op, struct qpair, rx_op);

	q->rx_armed = false;
	if (DP_UNLIKELY(res == -EFAULT) && rx_faulted(q))
		res = -EAGAIN; /* nothing was taken off the socket */
	free_orphan(q);
	if (q->ending != END_NONE) {
		q->rx_direct = false;
		if (res <= 0)
			q->rx_dead = true;
		qpair_closing(q);
		return;
	}
	if (res <= 0) {
		if (res == -EINTR || res == -EAGAIN) {
			q->rx_direct = false;
			qpair_rx_arm(q);
			return;
		}
		q->rx_dead = true;
		qpair_end(q, END_LOST, res == 0 ? "closed by the host" : strerror(-res));
		return;
	}
	q->rx_faults = 0;
	q->rx_full = !q->rx_direct && (uint32_t)res == q->rx_asked;
	qpair_rx_bytes(q, (uint32_t)res);
	if (res > (int)RX_SHALLOW || !may_heat(q) || !reactor_heat(r, q))
		qpair_rx_arm(q);
}

/* With a data digest the CPU must read what came: from rx[], as reading a drive's memory is slow. */
static bool has_place(const struct qpair *q, const struct request *rq)
{
	return rq && (rq->buf || (rq->pbuf && !q->ddgst));
}

/* The bulk of H2C data goes straight to its place, what follows it to rx[]. */
static void prep_direct(struct qpair *q, struct io_uring_sqe *sqe)
{
	struct xfer *x = q->h2c->x;
	unsigned n = 1;

	if (DP_UNLIKELY(x->rq->pbuf != NULL))
		n = io_pool_pieces(x->rq->pbuf, x->received, q->h2c_left, q->rx_iov);
	else
		q->rx_iov[0] = (struct iovec){ x->rq->buf + x->received, q->h2c_left };
	q->rx_iov[n++] = (struct iovec){ q->rx, q->rx_size };
	q->rx_msg = (struct msghdr){ .msg_iov = q->rx_iov, .msg_iovlen = n };
	q->rx_direct = true;
	io_uring_prep_recvmsg(sqe, q->fd, &q->rx_msg, 0);
}

bool qpair_rx_poll(struct qpair *q)
{
	ssize_t res;

	q->rx_asked = q->rx_size - q->tail;
	res = recv(q->fd, q->rx + q->tail, q->rx_asked, MSG_DONTWAIT);
	if (res < 0 && errno == EAGAIN)
		return false;
	reactor_cool(q->r, q);
	rx_done(q->r, &q->rx_op, res < 0 ? -errno : (int)res);
	return true;
}

void qpair_rx_arm(struct qpair *q)
{
	if (may_arm(q))
		qpair_rx_arm_ring(q);
}

void qpair_rx_arm_ring(struct qpair *q)
{
	struct io_uring_sqe *sqe = reactor_sqe(q->r);

	q->rx_asked = q->rx_size - q->tail;
	if (q->ending == END_NONE && q->h2c_data && q->h2c_left >= RX_DIRECT_MIN && q->tail == 0 && has_place(q, q->h2c->x->rq))
		prep_direct(q, sqe);
	else
		io_uring_prep_recv(sqe, q->fd, q->rx + q->tail, q->rx_asked, 0);
	if (q->r->poll_first && !q->rx_full && !q->rx_direct)
		sqe->ioprio |= IORING_RECVSEND_POLL_FIRST;
	io_uring_sqe_set_data(sqe, &q->rx_op);
	q->rx_op.fn = rx_done;
	q->rx_armed = true;
}

void qpair_rx_resume(struct qpair *q)
{
	if (!q->rx_paused)
		return;
	q->rx_paused = false;
	qpair_rx_parse(q);
	qpair_rx_arm(q);
}

/* -- transfers */

void xfer_start(struct request *rq)
{
	struct qpair *q = rq->q;
	struct xfer *x = STAILQ_FIRST(&q->xfers_free);

	/* There are twice as many as commands; only aborted transfers whose data never came can use them up. */
	if (!x) {
		qpair_fatal(q, FES_SEQUENCE, 0, "too many aborted transfers");
		return;
	}
	STAILQ_REMOVE_HEAD(&q->xfers_free, link);
	*x = (struct xfer){ .rq = rq, .cid = rq->cid, .length = rq->length, .listed = true };
	rq->xfer = x;
	rq->filled = 0;
	STAILQ_INSERT_TAIL(&q->r2ts_due, x, link);
	qpair_want_flush(q);
}

void xfer_cancel(struct request *rq)
{
	struct qpair *q = rq->q;
	struct xfer *x = rq->xfer;

	if (!x)
		return;
	rq->xfer = NULL;
	x->rq = NULL;
	if (q->rx_armed && q->rx_direct && q->h2c->x == x) { /* the kernel may be writing there */
		q->orphan = rq->buf;
		q->orphan_pbuf = rq->pbuf;
		if (rq->buf)
			q->staged -= staging_size(rq->stage_bytes);
		rq->buf = NULL;
		rq->pbuf = NULL;
	}
	if (x->listed) {
		STAILQ_REMOVE(&q->r2ts_due, x, xfer, link);
		x->listed = false;
	}
	if (x->open == 0)
		STAILQ_INSERT_HEAD(&q->xfers_free, x, link);
}

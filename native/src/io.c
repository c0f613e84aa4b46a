/* SPDX-License-Identifier: BSD-3-Clause
 *
 * io.c: the path of every command from its capsule to its answer. See qpair.h for the states and
 * nvmet_p2p/dataplane/inprocess/queue.py for the same in Python, whose decisions these are.
 */
#include "io.h"
#include "engine_priv.h"

#include <assert.h>
#include <errno.h>
#include <stdlib.h>

#define PREFETCH_MAX 8192u

/* In-capsule data of one queue that is kept in memory from malloc, see stage_icd. */
#define RESCUED_MAX (1u << 20)

static void start(struct request *rq, struct request *second);

/* -- commands by CID */

static uint16_t *bucket(struct qpair *q, uint16_t cid)
{
	return &q->hash[(cid * 0x9E37u >> 4 ^ cid) & q->hash_mask];
}

struct request *io_find(struct qpair *q, uint16_t cid)
{
	for (uint16_t i = *bucket(q, cid); i != NO_REQ; i = q->reqs[i].hash_next)
		if (q->reqs[i].cid == cid)
			return &q->reqs[i];
	return NULL;
}

/* One writer; the control thread reads it for statistics. */
static void count_in_flight(struct qpair *q, int by)
{
	uint32_t now = atomic_load_explicit(&q->in_flight, memory_order_relaxed);

	atomic_store_explicit(&q->in_flight, now + (uint32_t)by, memory_order_relaxed);
}

static void remember(struct request *rq)
{
	uint16_t *head = bucket(rq->q, rq->cid);

	rq->hash_next = *head;
	*head = (uint16_t)(rq - rq->q->reqs);
	rq->in_hash = true;
	count_in_flight(rq->q, 1);
}

void io_forget(struct request *rq)
{
	struct qpair *q = rq->q;
	uint16_t *at = bucket(q, rq->cid), index = (uint16_t)(rq - q->reqs);

	if (!rq->in_hash)
		return;
	while (*at != index)
		at = &q->reqs[*at].hash_next;
	*at = rq->hash_next;
	rq->in_hash = false;
	count_in_flight(q, -1);
}

/* -- completion: the one place where commands complete */

void io_respond(struct request *rq, uint32_t status)
{
	struct qpair *q = rq->q;

	rq->status = status;
	io_forget(rq);
	q->ops->unfetch(rq);
	if (q->half == rq) {
		q->half = NULL;
		q->half_state = HALF_DEAD;
	}
	if (status) {
		rq->tx_len = 0;
		rq->tx_data = NULL;
	}
	/* data to be sent stays until it has left; anything else can go now */
	if (!rq->tx_len)
		io_unstage(rq);
	qpair_answer(rq);
}

/* Completes a command that has not been started, and settles its fused partner. */
void io_fail(struct request *rq, uint32_t status)
{
	struct request *first = rq->first, *second = rq->second;

	if (rq->state == REQ_DONE || rq->state == REQ_FREE)
		return;
	rq->first = rq->second = NULL;
	if (rq->state == REQ_ROOM) {
		STAILQ_REMOVE(&rq->q->room, rq, request, link);
		staging_unwait(&rq->q->r->pool, &rq->waiter);
	}
	io_respond(rq, status);
	if (second) {
		second->first = NULL;
		io_fail(second, ST_FAILED_FUSED);
	}
	if (first) {
		first->second = NULL;
		if (first->state == REQ_SECOND)
			start(first, NULL);
	}
}

/* -- staging memory */

void io_unstage(struct request *rq)
{
	struct qpair *q = rq->q;

	if (DP_UNLIKELY(rq->pbuf != NULL))
		io_pool_put(rq);
	free(rq->heap);
	rq->heap = NULL;
	if (!rq->buf)
		return;
	if (DP_UNLIKELY(rq->own_buf)) {
		rq->own_buf = false;
		q->rescued -= rq->stage_bytes;
		free(rq->buf);
	} else {
		q->staged -= staging_size(rq->stage_bytes);
		staging_free(&q->r->pool, rq->buf);
	}
	rq->buf = NULL;
	rq->filled = 0;
	if (!STAILQ_EMPTY(&q->room) || q->rx_paused)
		qpair_want_flush(q);
}

static void room_granted(struct staging_waiter *waiter, void *buf)
{
	struct request *rq = dp_container_of(waiter, struct request, waiter);
	struct qpair *q = rq->q;

	STAILQ_REMOVE(&q->room, rq, request, link);
	rq->buf = buf;
	q->staged += staging_size(rq->stage_bytes);
	io_has_room(rq);
}

static bool may_stage(const struct qpair *q, uint32_t bytes)
{
	return q->staged == 0 || q->staged + staging_size(bytes) <= q->staged_max;
}

/* Those of the queue that wait for its share, oldest first. */
void io_room(struct qpair *q)
{
	struct request *rq = STAILQ_FIRST(&q->room);

	while (rq) {
		struct request *next = STAILQ_NEXT(rq, link);
		void *buf;

		if (rq->waiter.waiting) { /* in the pool's queue already */
			rq = next;
			continue;
		}
		if (!may_stage(q, rq->stage_bytes))
			return;
		buf = staging_alloc(&q->r->pool, rq->stage_bytes);
		if (buf)
			room_granted(&rq->waiter, buf);
		else
			staging_wait(&q->r->pool, &rq->waiter);
		rq = next;
	}
}

void io_host_room(struct request *rq)
{
	struct qpair *q = rq->q;
	void *buf = NULL;

	if (!staging_possible(&q->r->pool, rq->stage_bytes)) {
		io_fail(rq, ST_INTERNAL);
		return;
	}
	rq->state = REQ_ROOM;
	rq->waiter.bytes = rq->stage_bytes;
	rq->waiter.granted = room_granted;
	if (STAILQ_EMPTY(&q->room) && may_stage(q, rq->stage_bytes))
		buf = staging_alloc(&q->r->pool, rq->stage_bytes);
	STAILQ_INSERT_TAIL(&q->room, rq, link);
	if (buf)
		room_granted(&rq->waiter, buf);
	else
		io_room(q);
}

/* Payload that is not here yet must have a place before it may come, from either side. */
static void make_room(struct request *rq)
{
	if (DP_UNLIKELY(rq->q->keyed) && io_pool_of(rq) && !io_pooled(rq)) /* its device does not reach it */
		io_pool_count_fallback(rq, io_pool_of(rq));
	if (!rq->stage_bytes || rq->pbuf)
		io_has_room(rq);
	else if (DP_UNLIKELY(io_pooled(rq)) && io_pool_room(rq))
		return;
	else if (rq->buf)
		io_has_room(rq);
	else
		io_host_room(rq);
}

void io_again(struct request *rq)
{
	io_unstage(rq);
	rq->tx_len = rq->filled = 0;
	rq->tx_data = NULL;
	rq->host_only = true;
	if (!rq->in_hash)
		remember(rq);
	rq->state = REQ_NEW;
	io_host_room(rq);
}

/* -- fused pairs (base 3.4.2, NVM 2.1.3.1) */

/* FUSE against what came before; 0 or a status. half: the command before, if it was a first half that still lives. */
static uint32_t check_fused(struct request *rq, struct request *half, bool half_was)
{
	struct qpair *q = rq->q;

	if (rq->fuse == FUSE_FIRST) {
		q->half = rq;
		q->half_state = HALF_LIVE;
		return rq->opc == OPC_COMPARE ? 0 : ST_INVALID_FIELD | ST_DNR;
	}
	if (rq->fuse != FUSE_SECOND)
		return 0;
	if (!half_was)
		return ST_MISSING_FUSED | ST_DNR;
	if (rq->opc != OPC_WRITE) {
		if (half)
			io_fail(half, ST_MISSING_FUSED | ST_DNR);
		return ST_INVALID_FIELD | ST_DNR;
	}
	if (!half)
		return ST_FAILED_FUSED;
	if (rq->nsid != half->nsid || rq_slba(rq) != rq_slba(half) || rq_blocks(rq) != rq_blocks(half)) {
		io_fail(half, ST_INVALID_FIELD | ST_DNR);
		return ST_INVALID_FIELD | ST_DNR;
	}
	return 0;
}

/* All data is here. */
static void ready(struct request *rq)
{
	if (rq->first) {
		struct request *first = rq->first;

		rq->state = REQ_SECOND;
		if (first->state == REQ_SECOND)
			start(first, rq);
	} else if (rq->second || rq->q->half == rq) {
		rq->state = REQ_SECOND;
		if (rq->second && rq->second->state == REQ_SECOND)
			start(rq, rq->second);
	} else {
		start(rq, NULL);
	}
}

void io_has_room(struct request *rq)
{
	if (rq->cmd->dir == DIR_H2C && rq->length && rq->filled < rq->length) {
		rq->state = REQ_DATA;
		rq->q->ops->fetch(rq);
	} else {
		ready(rq);
	}
}

void io_data(struct request *rq, bool bad_digest)
{
	if (bad_digest) {
		io_fail(rq, ST_TRANSIENT_TRANSPORT);
	} else if (rq->stream) {
		if (!rq->status)
			bdev_count(rq->ns->bdev, rq->q->r->id, 1, rq->length, 0);
		io_respond(rq, rq->status);
	} else {
		ready(rq);
	}
}

/* -- direct: a back end in memory, nothing in the way */

static bool is_direct(const struct request *rq)
{
	const struct bdev *bdev = rq->ns ? rq->ns->bdev : NULL;

	if (!bdev || rq->fuse || !atomic_load_explicit(&bdev->direct, memory_order_relaxed))
		return false;
	if (rq->opc == OPC_WRITE)
		return !atomic_load_explicit(&bdev->excl, memory_order_relaxed);
	return rq->opc == OPC_READ && !rq->q->no_direct && (DP_LIKELY(rq->length <= rq->q->direct_max) || bdev->ops->constant);
}

/* The kernel copies small pieces of memory that is not in a cache slowly; ask for them while others are being parsed. */
static void prefetch(const uint8_t *p, uint32_t bytes)
{
	for (uint32_t at = 0; at < bytes; at += 64)
		__builtin_prefetch(p + at, 0, 2);
}

static void direct_read(struct request *rq)
{
	struct bdev *bdev = rq->ns->bdev;
	uint32_t length = rq->length;

	rq->io.bdev = bdev;
	rq->io.offset = rq_slba(rq) << bdev->block_shift;
	rq->tx_data = bdev->ops->map(bdev, rq->io.offset, &length);
	if (DP_UNLIKELY(!rq->tx_data)) {
		io_fail(rq, status_of_errno(EIO, false));
		return;
	}
	if (rq->length <= PREFETCH_MAX)
		prefetch(rq->tx_data, rq->length);
	rq->tx_len = rq->length;
	rq->pinned = true;
	bdev_pin(bdev, rq->q->r);
	bdev_count(bdev, rq->q->r->id, 0, rq->length, 0);
	io_respond(rq, 0);
}

static void direct_write(struct request *rq, const uint8_t *data)
{
	struct bdev *bdev = rq->ns->bdev;
	struct bdev_io *io = &rq->io;
	int rc;

	io->bdev = bdev;
	io->op = BDEV_WRITE;
	io->offset = rq_slba(rq) << bdev->block_shift;
	io->length = rq->length;
	io->buf = (uint8_t *)(uintptr_t)data; /* a write only reads it */
	rc = bdev->ops->submit(io);
	if (DP_LIKELY(rc == 0))
		bdev_count(bdev, rq->q->r->id, 1, rq->length, 0);
	io_respond(rq, rc ? status_of_errno(rc, true) : 0);
}

/*
 * Data of a Write that streams: checked again each time, as the host may take long to send it. Nothing is held between
 * two calls, so nobody has to wait for the host either. When the way to the medium is no longer straight (a fused pair, a
 * rate limit has come) the command is interrupted: the host repeats it.
 */
void io_stream(struct request *rq, uint32_t at, const uint8_t *data, uint32_t bytes)
{
	struct bdev_io *io = &rq->io;
	uint32_t length = rq->length;
	int rc;

	if (rq->status)
		return; /* the rest is swallowed */
	if (DP_UNLIKELY(rq->view_gen != rq->q->c->view->gen)) {
		rq->status = io_admit(rq, rq->q->c->view);
		if (!rq->status && rq->length != length)
			rq->status = ST_NS_NOT_READY;
		rq->length = length;
	}
	if (!rq->status)
		rq->status = io_check_range(rq_slba(rq), rq_blocks(rq), rq->ns->bdev);
	if (!rq->status && !is_direct(rq))
		rq->status = ST_INTERRUPTED;
	if (rq->status)
		return;
	io->bdev = rq->ns->bdev;
	io->op = BDEV_WRITE;
	io->offset = (rq_slba(rq) << io->bdev->block_shift) + at;
	io->length = bytes;
	io->buf = (uint8_t *)(uintptr_t)data; /* a write only reads it */
	rc = io->bdev->ops->submit(io);
	if (rc < 0)
		rq->status = status_of_errno(rc, true);
}

/* -- commands in */

static void init_request(struct request *rq, const uint8_t sqe[64])
{
	rq->state = REQ_NEW;
	rq->opc = sqe[0];
	rq->fuse = sqe[1] & 3;
	rq->cid = get16(sqe + 2);
	rq->nsid = get32(sqe + 4);
	rq->cdw10 = get32(sqe + 40);
	rq->cdw11 = get32(sqe + 44);
	rq->cdw12 = get32(sqe + 48);
	rq->dw0 = 0;
	rq->tx_len = 0;
	rq->filled = 0;
	rq->stage_bytes = 0;
	rq->step = 0;
	rq->first = rq->second = NULL;
	rq->locked = rq->unlocked_counted = rq->entered = rq->stream = false;
	rq->host_only = false;
	rq->remote.invalidate = false;
	rq->status = 0;
}

static void icd_granted(struct staging_waiter *waiter, void *buf)
{
	struct qpair *q = dp_container_of(waiter, struct qpair, icd_waiter);

	q->icd_buf = buf;
	q->icd_buf_bytes = waiter->bytes;
	qpair_want_flush(q);
}

/* There is no staging memory, and the memory that is in use may wait for data behind this capsule. */
static bool rescue_icd(struct qpair *q, struct request *rq)
{
	uint32_t bytes = (rq->stage_bytes + STAGING_UNIT - 1) & ~(STAGING_UNIT - 1);

	if (!q->r2ts_open && STAILQ_EMPTY(&q->r2ts_due))
		return false;
	rq->buf = q->rescued + bytes <= RESCUED_MAX ? aligned_alloc(STAGING_UNIT, bytes) : NULL;
	if (!rq->buf) {
		rq->status = ST_INTERRUPTED;
		return true;
	}
	rq->own_buf = true;
	rq->stage_bytes = bytes;
	q->rescued += bytes;
	staging_unwait(&q->r->pool, &q->icd_waiter);
	return true;
}

/* In-capsule data that cannot be used where it lies needs staging memory now; false: wait. */
static bool stage_icd(struct qpair *q, struct request *rq)
{
	uint32_t bytes = rq->stage_bytes;

	if (q->icd_buf) {
		if (q->icd_buf_bytes >= bytes) {
			rq->buf = q->icd_buf;
			rq->stage_bytes = q->icd_buf_bytes;
		} else { /* the namespace has changed since */
			staging_free(&q->r->pool, q->icd_buf);
		}
		q->icd_buf = NULL;
	}
	if (DP_UNLIKELY(io_pooled(rq)) && !rq->buf && io_pool_now(rq)) {
		staging_unwait(&q->r->pool, &q->icd_waiter);
		return true;
	}
	if (!rq->buf && may_stage(q, bytes))
		rq->buf = staging_alloc(&q->r->pool, bytes);
	if (rq->buf) {
		q->staged += staging_size(rq->stage_bytes);
		return true;
	}
	if (rescue_icd(q, rq))
		return true;
	if (may_stage(q, bytes) && !q->icd_waiter.waiting) {
		q->icd_waiter.bytes = bytes;
		q->icd_waiter.granted = icd_granted;
		staging_wait(&q->r->pool, &q->icd_waiter);
	}
	return false; /* else: when the queue gives memory back, io_unstage looks again */
}

static bool may_stream(const struct request *rq)
{
	return rq->opc == OPC_WRITE && !rq->q->no_direct && is_direct(rq) && rq->ns->bdev->block_size <= 4096;
}

static bool is_unknown(const struct request *rq)
{
	return rq->opc == OPC_FABRICS || !io_cmd_of(rq->opc);
}

/* The half before this command, if any, which this one may leave alone. */
static struct request *settle_half(struct qpair *q, const struct request *rq, bool duplicate, bool *was)
{
	struct request *half = q->half;

	*was = q->half_state != HALF_NONE;
	q->half = NULL;
	q->half_state = HALF_NONE;
	if (half && (rq->fuse != FUSE_SECOND || rq->opc == OPC_FABRICS || duplicate)) {
		io_fail(half, ST_MISSING_FUSED | ST_DNR);
		half = NULL;
	}
	return half;
}

static void fabrics(struct request *rq, const uint8_t sqe[64], const uint8_t *icd, uint32_t icd_len)
{
	struct qpair *q = rq->q;

	if (sqe[4] != FCTYPE_DISCONNECT || rq->fuse) { /* a fused one is Invalid Field, which the control plane says */
		rq->state = REQ_UPCALL;
		upcall_send(rq, sqe, icd, icd_len);
	} else if (get16(sqe + 40) != 0) {
		io_fail(rq, ST_INCOMPATIBLE_FORMAT | ST_DNR);
	} else {
		q->disconnect = rq;
		qpair_end(q, END_DISCONNECT, "disconnected by the host");
	}
}

static void join(struct request *rq, struct request *half)
{
	if (half) {
		rq->first = half;
		half->second = rq;
	}
	make_room(rq);
}

/* The admitted (or not: status) command goes its way. */
static void dispatch(struct request *rq, struct request *half, uint32_t status, const struct plan *plan,
		     const uint8_t *icd)
{
	if (status) {
		io_fail(rq, status);
		/* the second of a pair is out: the Compare goes on alone, its status is its own */
		if (half && half->state == REQ_SECOND)
			start(half, NULL);
		return;
	}
	if (plan->in_capsule) {
		if (!rq->stage_bytes) {
			direct_write(rq, icd + plan->offset);
			return;
		}
		if (DP_UNLIKELY(rq->pbuf != NULL))
			io_pool_fill(rq->pbuf, 0, icd + plan->offset, rq->length);
		else
			memcpy(rq->buf, icd + plan->offset, rq->length);
		rq->filled = rq->length;
	} else if (!rq->stage_bytes && rq->opc == OPC_READ && is_direct(rq)) {
		direct_read(rq);
		return;
	}
	join(rq, half);
}

bool io_command(struct qpair *q, const uint8_t sqe[64], const uint8_t *icd, uint32_t icd_len, bool bad_digest)
{
	struct request *rq = STAILQ_FIRST(&q->free), *half;
	bool duplicate, half_was, unknown;
	struct plan plan = { 0 };
	uint32_t status = 0, fused;

	if (DP_UNLIKELY(!rq))
		return false;
	init_request(rq, sqe);
	duplicate = io_find(q, rq->cid) != NULL;
	unknown = is_unknown(rq);
	if (!duplicate && !unknown) {
		status = io_admit(rq, q->c->view);
		if (!status)
			status = io_plan(sqe, rq, icd_len, &plan);
		if (!status && q->keyed)
			rq->remote = plan.remote;
		if (!status && bad_digest)
			status = ST_TRANSIENT_TRANSPORT;
		if (!status)
			status = io_validate(rq);
		/* a read needs no memory when it is sent from the medium, a write only when its data has to wait */
		if (!status && (!is_direct(rq) || plan.transport) && !(rq->opc == OPC_READ && is_direct(rq)))
			rq->stage_bytes = rq->cmd->stage ? rq->cmd->stage(rq) : rq->length;
		if (!status && plan.transport && may_stream(rq)) {
			rq->stream = true;
			rq->block_mask = rq->ns->bdev->block_size - 1;
			rq->stage_bytes = 0;
		}
		if (!status && plan.in_capsule && rq->stage_bytes && !stage_icd(q, rq)) {
			rq->state = REQ_FREE;
			return false;
		}
		if (!status)
			status = rq->status; /* of rescue_icd */
	}
	/* From here on it has happened. */
	STAILQ_REMOVE_HEAD(&q->free, link);
	counter_add(&q->commands, 1);
	counter_add(&q->r->commands, 1);
	if (q->activity)
		*q->activity = *q->activity + 1;
	if (++q->sqhd >= q->entries)
		q->sqhd = 0;
	half = settle_half(q, rq, duplicate, &half_was);
	if (duplicate) {
		io_respond(rq, ST_CID_CONFLICT | ST_DNR);
		return true;
	}
	remember(rq);
	if (rq->opc == OPC_FABRICS) {
		fabrics(rq, sqe, icd, icd_len);
		return true;
	}
	fused = check_fused(rq, half, half_was);
	if (!fused && unknown && rq->fuse != 3) {
		rq->state = REQ_UPCALL;
		upcall_send(rq, sqe, icd, icd_len);
		return true;
	}
	if (half && half->state == REQ_DONE)
		half = NULL;
	if (unknown)
		status = ST_INVALID_OPCODE | ST_DNR;
	dispatch(rq, half, fused ? fused : status, &plan, icd);
	return true;
}

/* -- execution */

/* The command as checked against the view of this moment; 0 or a status. */
static uint32_t current(struct request *rq)
{
	uint32_t length = rq->length, status;

	if (DP_LIKELY(rq->view_gen == rq->q->c->view->gen && rq->ns))
		/* the bdev may have been made smaller */
		return rq->cmd->range ? io_check_range(rq_slba(rq), rq_blocks(rq), rq->ns->bdev) : 0;
	status = io_admit(rq, rq->q->c->view);
	if (!status && rq->length != length)
		status = ST_NS_NOT_READY; /* the block size has changed under the data */
	return status ? status : io_validate(rq);
}

static void enter(struct request *rq)
{
	struct ns_entry *ns = rq->opc == OPC_COPY ? NULL : rq->ns;

	ctrlr_enter(rq->q->c, ns);
	rq->view = rq->q->c->view;
	rq->entered = true;
	rq->q->at_work++;
}

static void leave(struct request *rq)
{
	struct ns_entry *ns = rq->opc == OPC_COPY ? NULL : rq->ns;

	rq->entered = false;
	rq->q->at_work--;
	ctrlr_leave(rq->q->c, rq->view, ns);
}

static void unlock(struct request *rq)
{
	struct bdev *bdev = rq->ns ? rq->ns->bdev : NULL;

	if (rq->locked) {
		rq->locked = false;
		rangelock_release(&bdev->locks, &rq->hold);
	}
	if (rq->unlocked_counted) {
		struct bdev_reactor *br = &bdev->r[rq->q->r->id];

		rq->unlocked_counted = false;
		if (--br->unlocked == 0 && br->on_unlocked) {
			struct rmsg *msg = br->on_unlocked;

			br->on_unlocked = NULL;
			msg->fn(rq->q->r, msg);
		}
	}
}

static void run(struct request *rq, int rc);

static void complete(struct request *rq, uint32_t second_status)
{
	struct request *second = rq->second;
	struct qpair *q = rq->q;

	unlock(rq);
	leave(rq);
	rq->second = NULL;
	io_respond(rq, rq->status);
	if (second)
		io_respond(second, second_status);
	if (q->ending != END_NONE)
		qpair_want_flush(q);
}

/* The command, or one half of a fused pair, is over; rq->status says how. */
static void finished(struct request *rq)
{
	struct request *first = rq->first, *second = rq->second;

	if (first) { /* the Write of a pair */
		rq->first = NULL;
		complete(first, rq->status);
	} else if (second && !rq->status) { /* Compare has succeeded: the Write runs under the same hold */
		second->status = 0;
		second->view = rq->view;
		second->ns = rq->ns;
		second->first = rq;
		run(second, 0);
	} else {
		complete(rq, ST_FAILED_FUSED);
	}
}

static void io_done(struct bdev_io *io, int rc)
{
	struct request *rq = dp_container_of(io, struct request, io);

	run(rq, rc);
}

/* A Read, which holds nothing but its namespace. */
static void again(struct request *rq)
{
	struct qpair *q = rq->q;

	leave(rq);
	if (q->ending == END_NONE) {
		io_again(rq);
		return;
	}
	rq->tx_len = 0;
	io_respond(rq, ST_INTERRUPTED);
	qpair_want_flush(q);
}

static void run(struct request *rq, int rc)
{
	enum io_next next;

	rq->io.done = io_done;
	while ((next = rq->cmd->run(rq, rc)) == IO_SUBMIT) {
		rc = bdev_submit(rq->q->r, &rq->io);
		if (rc == BDEV_PENDING)
			return;
	}
	if (next == IO_DONE)
		finished(rq);
	else if (DP_UNLIKELY(next == IO_AGAIN))
		again(rq);
}

static void go(struct request *rq)
{
	rq->state = REQ_BACKEND;
	if (rq->second)
		rq->second->state = REQ_BACKEND;
	rq->status = 0;
	rq->step = 0;
	rq->start_ns = rq->q->r->now_ns;
	run(rq, 0);
}

static void lock_granted(struct reactor *r, struct rmsg *msg)
{
	struct request *rq = dp_container_of(dp_container_of(msg, struct range_hold, msg), struct request, hold);

	rq->locked = true;
	go(rq);
}

static bool acquire(struct request *rq)
{
	struct bdev *bdev = rq->ns ? rq->ns->bdev : NULL;
	struct range_hold *hold = &rq->hold;

	if (!bdev || (!rq->second && (!rq->cmd->to_medium || rq->opc == OPC_FLUSH)))
		return true;
	if (rq->second)
		io_need_locks(bdev);
	if (!atomic_load_explicit(&bdev->excl, memory_order_acquire)) {
		rq->unlocked_counted = true;
		bdev->r[rq->q->r->id].unlocked++;
		return true;
	}
	hold->r = rq->q->r;
	hold->msg.fn = lock_granted;
	hold->exclusive = rq->second != NULL;
	hold->start = 0;
	hold->end = UINT64_MAX; /* of DSM and Copy, whose ranges are in their data */
	if (rq->cmd->range) {
		hold->start = rq_slba(rq) << bdev->block_shift;
		hold->end = hold->start + ((uint64_t)rq_blocks(rq) << bdev->block_shift);
	}
	rq->locked = rangelock_acquire(&bdev->locks, hold);
	return rq->locked;
}

static void start(struct request *rq, struct request *second)
{
	uint32_t status = current(rq);

	if (!status && second)
		status = current(second);
	rq->second = second;
	if (status) {
		rq->second = NULL;
		if (second)
			second->first = NULL;
		io_respond(rq, status);
		if (second)
			io_respond(second, ST_FAILED_FUSED);
		return;
	}
	if (second)
		second->first = NULL;
	if (DP_UNLIKELY(rq->pbuf != NULL) && rq->opc != OPC_COPY && !io_pool_ready(rq))
		return;
	if (rq->opc == OPC_COPY && !copy_room(rq))
		return;
	if (rq->opc == OPC_WRITE && is_direct(rq)) {
		direct_write(rq, rq->buf);
		return;
	}
	rq->state = REQ_LOCKED;
	if (second)
		second->state = REQ_LOCKED;
	enter(rq);
	if (acquire(rq))
		go(rq);
}

bool io_cancel(struct request *rq, uint32_t status)
{
	switch (rq->state) {
	case REQ_ROOM:
		if (rq->pool_waiting && !io_pool_unwait(rq))
			return false;
		io_fail(rq, status);
		return true;
	case REQ_NEW:
	case REQ_DATA:
	case REQ_SECOND:
		io_fail(rq, status);
		return true;
	case REQ_UPCALL:
		if (rq->q->ending == END_NONE)
			return false; /* the control plane has it */
		upcall_drop(rq);
		io_fail(rq, status);
		return true;
	case REQ_LOCKED:
		if (rq->second || rq->fuse || !rangelock_cancel(&rq->ns->bdev->locks, &rq->hold))
			return false;
		leave(rq);
		io_fail(rq, status);
		return true;
	default:
		return false;
	}
}

void io_upcall_done(struct request *rq, uint32_t status, uint32_t dw0, bool close)
{
	struct qpair *q = rq->q;

	rq->dw0 = dw0;
	if (close && q->ending == END_NONE) {
		q->disconnect = rq;
		qpair_end(q, END_DISCONNECT, "closed by the control plane");
		return;
	}
	io_fail(rq, status);
}

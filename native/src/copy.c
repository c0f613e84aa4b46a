/* SPDX-License-Identifier: BSD-3-Clause
 *
 * copy.c: the Copy command (NVM 3.3.2), descriptor formats 0 to 3, as nvmet_p2p/dataplane/inprocess/copy.py.
 *
 * The staging buffer holds the source range entries and struct copy in its first COPY_STAGE_DESC bytes, and behind them a
 * chunk for each of COPY_OPS pieces that are on their way at the same time: one is read while another is written. With a
 * pool the pieces rest there instead, and take their place in host memory when the pool is lost.
 * Where a source overlaps the destination (formats 0 and 1), all is read into memory first; only one such copy runs on
 * a reactor at a time, others are answered Command Interrupted, which asks the host to retry.
 */
#include <stdlib.h>

#include "copy_route.h"

static uint32_t format_of(const struct request *rq)
{
	return rq->cdw12 >> 8 & 0xF;
}

static uint32_t entry_bytes(uint32_t format)
{
	return format & 1 ? 40 : 32;
}

uint32_t copy_length(const struct request *rq, uint32_t *bytes)
{
	uint32_t format = format_of(rq);

	if (format > 3 || !(rq->q->c->view->copy_formats >> format & 1))
		return ST_INVALID_FIELD | ST_DNR;
	*bytes = ((rq->cdw12 & 0xFF) + 1) * entry_bytes(format);
	return 0;
}

uint32_t copy_check(const struct request *rq)
{
	return (rq->cdw12 & 0xFF) + 1 > COPY_RANGES_MAX ? ST_SIZE_LIMIT | ST_DNR : 0;
}

uint32_t copy_stage(const struct request *rq)
{
	uint32_t block = rq->ns->bdev->block_size;

	return COPY_STAGE_DESC + COPY_OPS * (block > COPY_CHUNK ? block : COPY_CHUNK);
}

/* Bytes of a piece: what the memory is for, in whole blocks. 0: the blocks have become larger since. */
static uint32_t chunk_of(const struct request *rq)
{
	return (rq->stage_bytes - COPY_STAGE_DESC) / COPY_OPS & ~(rq->ns->bdev->block_size - 1);
}

static const uint8_t *entry_of(const struct request *rq, uint32_t index)
{
	return rq->buf + index * entry_bytes(format_of(rq));
}

/* The namespace of an entry: 0 or a status. */
uint32_t copy_source(const struct request *rq, uint32_t index, struct copy_source *source)
{
	const uint8_t *entry = entry_of(rq, index);
	unsigned shift = rq->ns->bdev->block_shift;
	struct bdev *bdev = rq->ns->bdev;
	uint32_t snsid = get32(entry), status;

	if (format_of(rq) >= 2 && snsid != rq->nsid) {
		struct ns_entry *ns;

		if (snsid == 0 || snsid == NSID_ALL)
			return ST_INVALID_NS | ST_DNR;
		ns = view_find(rq->view, snsid);
		if (!ns)
			return ST_INVALID_FIELD | ST_DNR;
		status = io_path_status(ns);
		if (status)
			return status;
		bdev = ns->bdev;
	}
	if (bdev->block_shift != shift)
		return ST_INCOMPATIBLE_NS | ST_DNR;
	status = io_check_range(get64(entry + 8), (uint32_t)get16(entry + 16) + 1, bdev);
	*source = (struct copy_source){ bdev, get64(entry + 8) << shift, ((uint64_t)get16(entry + 16) + 1) << shift };
	return status;
}

/* All entries against all limits; nothing is copied when any of them is at fault. Sets rq->overlapping. */
static uint32_t check_entries(struct request *rq)
{
	uint32_t n = rq->length / entry_bytes(format_of(rq)), status;
	struct bdev *home = rq->ns->bdev;
	uint64_t total = 0, start, end;
	struct copy_source source;

	for (uint32_t i = 0; i < n; i++) {
		uint32_t blocks = (uint32_t)get16(entry_of(rq, i) + 16) + 1;

		if (blocks > COPY_RANGE_BLOCKS_MAX)
			return ST_SIZE_LIMIT | ST_DNR;
		total += blocks;
	}
	if (total > COPY_BYTES_MAX >> home->block_shift)
		return ST_SIZE_LIMIT | ST_DNR;
	status = io_check_range(rq_slba(rq), total, home);
	if (status)
		return status;
	start = rq_slba(rq) << home->block_shift;
	end = start + (total << home->block_shift);
	rq->overlapping = false;
	rq->done_bytes = 0;
	for (uint32_t i = 0; i < n; i++) {
		status = copy_source(rq, i, &source);
		if (status)
			return status;
		if (source.bdev == home && source.start < end && start < source.start + source.length)
			rq->overlapping = true;
	}
	rq->at = end - start;
	return rq->overlapping && format_of(rq) >= 2 ? ST_OVERLAPPING | ST_DNR : 0;
}

/* What rq->step says: what is being done, by what comes after it. */
enum { CHECK, ROUTE, MOVE, READ_ALL, WRITE_ALL, FLUSH, OVER };

static enum io_next transfer(struct request *rq, struct bdev *bdev, enum bdev_op op, uint64_t offset, uint64_t length,
			     uint8_t *buf)
{
	struct bdev_io *io = &rq->io;

	io->bdev = bdev;
	io->op = op;
	io->offset = offset;
	io->length = length;
	io->buf = buf;
	io->fua = io->unmap = false;
	io->quiet = true;
	return IO_SUBMIT;
}

static enum io_next over(struct request *rq, uint32_t status)
{
	if (rq->overlapping && rq->heap) {
		free(rq->heap);
		rq->heap = NULL;
		rq->q->r->copying = false;
	}
	if (!status)
		bdev_count(rq->ns->bdev, rq->q->r->id, 3, rq->at, dp_now_ns() - rq->start_ns);
	rq->status = status;
	rq->step = OVER;
	return IO_DONE;
}

static enum io_next copy_end(struct request *rq)
{
	if (!rq_fua(rq))
		return over(rq, 0);
	rq->step = FLUSH;
	return transfer(rq, rq->ns->bdev, BDEV_FLUSH, 0, 0, NULL);
}

static void count_moved(struct request *rq, const struct pool *pool, uint64_t bytes)
{
	struct bdev *home = rq->ns->bdev;

	if (pool)
		io_pool_served(home, rq->q->r, POOL_COPY, pool, bytes);
	else
		bdev_count_staged(home, rq->q->r, POOL_COPY, 0, bytes);
	counter_add(&home->r[rq->q->r->id].staging.copy_bytes[pool ? DP_COPY_POOL : DP_COPY_HOST], bytes);
}

/* -- a pool: of the destination, or else of a source, and for all the drives that take part */

static bool allowed_for_all(const struct request *rq, const struct pool *pool, uint32_t ranges)
{
	struct copy_source source;

	if (!pool || !bdev_pool_allowed(rq->ns->bdev, pool))
		return false;
	for (uint32_t i = 0; i < ranges; i++)
		if (copy_source(rq, i, &source) != 0 || !bdev_pool_allowed(source.bdev, pool))
			return false;
	return true;
}

static struct pool *pool_for(const struct request *rq, uint32_t ranges, bool *named)
{
	struct pool *pool = rq->ns->pool[POOL_COPY];

	*named = pool != NULL;
	if (allowed_for_all(rq, pool, ranges))
		return pool;
	for (uint32_t i = 0; i < ranges && format_of(rq) >= 2; i++) {
		struct ns_entry *ns = view_find(rq->q->c->view, get32(entry_of(rq, i)));

		pool = ns ? ns->pool[POOL_COPY] : NULL;
		*named |= pool != NULL;
		if (allowed_for_all(rq, pool, ranges))
			return pool;
	}
	return NULL;
}

bool copy_room(struct request *rq)
{
	uint32_t ranges = rq->length / entry_bytes(format_of(rq));
	uint64_t total = 0;
	struct pool_want want;
	struct pool *pool;
	bool named;

	if (rq->pbuf || rq->host_only)
		return true;
	rq->host_only = true;
	for (uint32_t i = 0; i < ranges; i++)
		total += ((uint64_t)get16(entry_of(rq, i) + 16) + 1) << rq->ns->bdev->block_shift;
	pool = pool_for(rq, ranges, &named);
	if (!named || !chunk_of(rq))
		return true;
	want = io_pool_want(rq, (uint32_t)min_u64(chunk_of(rq), total));
	if (pool && (rq->pbuf = pool_get(pool, &want)))
		return true;
	if (!pool || !rq->ns->strict || !pool_possible(pool, want.bytes)) {
		io_pool_count_fallback(rq, pool);
		return true;
	}
	io_pool_wait(rq, pool, &want);
	return false;
}

/* -- pieces on their way */

enum op_state { OP_IDLE, OP_READING, OP_WRITING };

struct copy_op {
	struct bdev_io io;
	struct request *rq;
	enum op_state state;
	uint8_t *host;         /* its place in host memory */
	struct pool_buf *pbuf; /* or in a pool */
	struct copy_source source; /* the piece */
	uint64_t to;
	uint32_t index;
	struct iovec iov[POOL_PIECES_MAX];
};

struct copy {
	struct copy_op ops[COPY_OPS];
	unsigned n, busy;
	uint32_t chunk;
	uint32_t status, index; /* of the lowest range that has failed; busy ones are awaited */
};

_Static_assert(COPY_RANGES_MAX * 40 + sizeof(struct copy) <= COPY_STAGE_DESC, "no room behind the entries");

static struct copy *copy_of(const struct request *rq)
{
	return (struct copy *)(rq->buf + COPY_RANGES_MAX * 40);
}

static void piece_failed(struct copy *c, uint32_t status, uint32_t index)
{
	if (c->status && c->index <= index)
		return;
	c->status = status;
	c->index = index;
}

/* The next piece, of a range that no other route has copied. */
static bool next_piece(struct request *rq, struct copy_op *op)
{
	struct copy *c = copy_of(rq);
	struct copy_source source;
	uint32_t status;

	while (!c->status && rq->done_bytes < rq->at) {
		uint64_t bytes;

		status = copy_source(rq, rq->index, &source);
		if (status) {
			piece_failed(c, status, rq->index);
			return false;
		}
		op->index = rq->index;
		op->to = rq->done_bytes;
		bytes = copy_routed(rq, rq->index) ? source.length : min_u64(c->chunk, source.length - rq->chunk_at);
		op->source = (struct copy_source){ source.bdev, source.start + rq->chunk_at, bytes };
		rq->done_bytes += bytes;
		rq->chunk_at += bytes;
		if (rq->chunk_at == source.length) {
			rq->chunk_at = 0;
			rq->index++;
		}
		if (!copy_routed(rq, op->index))
			return true;
	}
	return false;
}

static void op_done(struct bdev_io *io, int rc);

static int op_submit(struct copy_op *op, enum op_state state)
{
	struct bdev *home = op->rq->ns->bdev;
	struct bdev_io *io = &op->io;

	op->state = state;
	io->op = state == OP_READING ? BDEV_READ : BDEV_WRITE;
	io->bdev = state == OP_READING ? op->source.bdev : home;
	io->offset = state == OP_READING ? op->source.start : (rq_slba(op->rq) << home->block_shift) + op->to;
	io->length = op->source.length;
	io->quiet = true;
	io->done = op_done;
	io->buf = op->host;
	io->iovcnt = 0;
	if (op->pbuf) {
		unsigned n = io_pool_pieces(op->pbuf, 0, (uint32_t)op->source.length, op->iov);

		io->buf = op->iov[0].iov_base;
		io->iov = op->iov;
		io->iovcnt = n > 1 ? (uint8_t)n : 0;
	}
	return bdev_submit(op->rq->q->r, io);
}

/* The pool is no good (any more): the piece is read again, by way of host memory. */
static int op_again(struct copy_op *op)
{
	io_pool_count_fallback(op->rq, op->pbuf->pool);
	op->pbuf = NULL;
	return op_submit(op, OP_READING);
}

/* rc: of what its state says. Goes on until it waits or has nothing to do. */
static void op_go(struct copy_op *op, int rc)
{
	struct request *rq = op->rq;
	struct copy *c = copy_of(rq);

	for (;;) {
		struct bdev *at = op->state == OP_READING ? op->source.bdev : rq->ns->bdev;

		if (op->state == OP_IDLE) {
			if (!next_piece(rq, op))
				return;
			c->busy++;
			rc = op_submit(op, OP_READING);
		} else if (op->pbuf && (rc < 0 ? io_pool_at_fault(at, op->pbuf->pool, rc) :
						 op->state == OP_WRITING && !pool_check(op->pbuf->pool))) {
			rc = op_again(op);
		} else if (op->pbuf && rc == 0 && op->state == OP_READING && pool_is_lost(op->pbuf->pool)) {
			rc = op_again(op);
		} else if (rc == 0 && op->state == OP_READING) {
			rc = op_submit(op, OP_WRITING);
		} else {
			if (rc < 0)
				piece_failed(c, status_of_errno(rc, op->state == OP_WRITING), op->index);
			else
				count_moved(rq, op->pbuf ? op->pbuf->pool : NULL, op->source.length);
			op->state = OP_IDLE;
			c->busy--;
			continue;
		}
		if (rc == BDEV_PENDING)
			return;
	}
}

static void op_done(struct bdev_io *io, int rc)
{
	struct copy_op *op = dp_container_of(io, struct copy_op, io);
	struct request *rq = op->rq;

	op_go(op, rc);
	if (!copy_of(rq)->busy)
		rq->io.done(&rq->io, 0);
}

static enum io_next moved(struct request *rq)
{
	const struct copy *c = copy_of(rq);

	if (!c->status)
		return copy_end(rq);
	rq->dw0 = c->index; /* the lowest range that was not wholly copied */
	return over(rq, c->status);
}

static enum io_next move(struct request *rq)
{
	struct copy *c = copy_of(rq);

	memset(c, 0, sizeof(*c));
	rq->step = MOVE;
	rq->index = 0;
	rq->chunk_at = rq->done_bytes = 0;
	c->chunk = chunk_of(rq);
	if (!c->chunk)
		return over(rq, ST_NS_NOT_READY);
	c->n = rq->pbuf ? 1 : COPY_OPS;
	if (rq->pbuf) {
		struct pool_want want = io_pool_want(rq, rq->pbuf->bytes);

		c->chunk = min_u32(c->chunk, rq->pbuf->bytes);
		rq->pbuf2 = rq->at > c->chunk ? pool_get(rq->pbuf->pool, &want) : NULL;
		c->n += rq->pbuf2 != NULL;
	}
	for (unsigned i = 0; i < c->n; i++) {
		c->ops[i].rq = rq;
		c->ops[i].host = rq->buf + COPY_STAGE_DESC + i * chunk_of(rq);
		c->ops[i].pbuf = i == 0 ? rq->pbuf : rq->pbuf2;
	}
	c->busy++; /* what completes at once does not end it under our feet */
	for (unsigned i = 0; i < c->n; i++)
		op_go(&c->ops[i], 0);
	return --c->busy ? IO_WAIT : moved(rq);
}

/* -- a source overlaps the destination: all is read first */

static enum io_next read_all(struct request *rq)
{
	struct copy_source source;
	uint32_t status = copy_source(rq, rq->index, &source);

	if (status)
		return over(rq, status);
	rq->chunk = (uint32_t)min_u64(source.length - rq->chunk_at, TRANSFER_BYTES_MAX);
	return transfer(rq, source.bdev, BDEV_READ, source.start + rq->chunk_at, rq->chunk, rq->heap + rq->done_bytes);
}

static void advance(struct request *rq)
{
	struct copy_source source;

	rq->chunk_at += rq->chunk;
	rq->done_bytes += rq->chunk;
	rq->chunk = 0;
	if (copy_source(rq, rq->index, &source) == 0 && rq->chunk_at == source.length) {
		rq->chunk_at = 0;
		rq->index++;
	}
}

static enum io_next write_all(struct request *rq)
{
	uint64_t home = rq_slba(rq) << rq->ns->bdev->block_shift;

	rq->done_bytes += rq->chunk;
	rq->chunk = (uint32_t)min_u64(TRANSFER_BYTES_MAX, rq->at - rq->done_bytes);
	if (!rq->chunk) {
		count_moved(rq, NULL, rq->at);
		return copy_end(rq);
	}
	return transfer(rq, rq->ns->bdev, BDEV_WRITE, home + rq->done_bytes, rq->chunk, rq->heap + rq->done_bytes);
}

static enum io_next begin(struct request *rq)
{
	uint32_t status = check_entries(rq);

	memset(rq->routed, 0, sizeof(rq->routed));
	rq->index = rq->chunk = 0;
	rq->chunk_at = 0;
	if (status)
		return over(rq, status);
	if (rq->overlapping) {
		if (rq->q->r->copying || !(rq->heap = aligned_alloc(4096, (rq->at + 4095) & ~4095ull))) {
			rq->overlapping = false;
			return over(rq, ST_INTERRUPTED);
		}
		rq->q->r->copying = true;
		rq->step = READ_ALL;
		return read_all(rq);
	}
	if (copy_route_start(rq, rq->length / entry_bytes(format_of(rq)))) {
		rq->step = ROUTE;
		return IO_WAIT;
	}
	return move(rq);
}

enum io_next copy_run(struct request *rq, int rc)
{
	if (rc < 0) { /* of an overlapping copy, or its flush */
		rq->dw0 = rq->step == READ_ALL ? rq->index : 0;
		return over(rq, status_of_errno(rc, rq->step != READ_ALL));
	}
	switch (rq->step) {
	case CHECK:
		return begin(rq);
	case ROUTE:
		return move(rq);
	case MOVE:
		return moved(rq);
	case READ_ALL:
		advance(rq);
		if (rq->done_bytes < rq->at)
			return read_all(rq);
		rq->step = WRITE_ALL;
		rq->done_bytes = 0;
		return write_all(rq);
	case WRITE_ALL:
		return write_all(rq);
	default:
		return over(rq, 0);
	}
}

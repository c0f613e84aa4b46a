/* SPDX-License-Identifier: BSD-3-Clause
 *
 * copy.c: the Copy command (NVM 3.3.2), descriptor formats 0 to 3, as nvmet_p2p/dataplane/inprocess/copy.py.
 *
 * The staging buffer holds the source range entries in its first COPY_STAGE_DESC bytes and a chunk on its way behind.
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
	return COPY_STAGE_DESC + COPY_CHUNK;
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

/* What rq->step says: the operation that was just submitted, by what comes after it. */
enum { CHECK, ROUTE, READ, WRITE, WRITE_ALL, FLUSH, OVER };

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

static enum io_next begin(struct request *rq)
{
	uint32_t status = check_entries(rq);

	rq->index = 0;
	if (!status && rq->overlapping) {
		if (rq->q->r->copying || !(rq->heap = aligned_alloc(4096, (rq->at + 4095) & ~4095ull))) {
			rq->overlapping = false;
			return over(rq, ST_INTERRUPTED);
		}
		rq->q->r->copying = true;
	}
	rq->step = READ;
	rq->chunk_at = 0;
	return status ? over(rq, status) : IO_SUBMIT;
}

static enum io_next copy_end(struct request *rq);

/* The next piece of the first source that no other route has copied: reads it. */
static enum io_next read_piece(struct request *rq)
{
	struct copy_source source;
	uint32_t status = copy_source(rq, rq->index, &source);
	uint64_t left;

	while (!status && copy_routed(rq, rq->index)) {
		rq->done_bytes += source.length;
		if (rq->done_bytes == rq->at)
			return copy_end(rq);
		status = copy_source(rq, ++rq->index, &source);
	}
	if (status)
		return over(rq, status);
	left = source.length - rq->chunk_at;
	rq->chunk = (uint32_t)min_u64(left, rq->overlapping ? TRANSFER_BYTES_MAX : COPY_CHUNK);
	rq->step = rq->overlapping ? READ : WRITE;
	return transfer(rq, source.bdev, BDEV_READ, source.start + rq->chunk_at, rq->chunk,
			rq->overlapping ? rq->heap + rq->done_bytes : rq->buf + COPY_STAGE_DESC);
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

static enum io_next copy_end(struct request *rq)
{
	if (!rq_fua(rq))
		return over(rq, 0);
	rq->step = FLUSH;
	return transfer(rq, rq->ns->bdev, BDEV_FLUSH, 0, 0, NULL);
}

static enum io_next write_all(struct request *rq)
{
	uint64_t home = rq_slba(rq) << rq->ns->bdev->block_shift;

	rq->done_bytes += rq->chunk;
	rq->chunk = (uint32_t)min_u64(TRANSFER_BYTES_MAX, rq->at - rq->done_bytes);
	if (!rq->chunk)
		return copy_end(rq);
	return transfer(rq, rq->ns->bdev, BDEV_WRITE, home + rq->done_bytes, rq->chunk, rq->heap + rq->done_bytes);
}

enum io_next copy_run(struct request *rq, int rc)
{
	if (rc < 0) { /* dword 0: the lowest range that was not wholly copied */
		rq->dw0 = rq->step == FLUSH || rq->step == WRITE_ALL ? 0 : rq->index;
		return over(rq, status_of_errno(rc, rq->step == WRITE_ALL || rq->io.op != BDEV_READ));
	}
	if (rq->step == CHECK) {
		rq->chunk = 0;
		memset(rq->routed, 0, sizeof(rq->routed));
		if (begin(rq) == IO_DONE)
			return IO_DONE;
		if (!rq->overlapping && copy_route_start(rq, rq->length / entry_bytes(format_of(rq)))) {
			rq->step = ROUTE;
			return IO_WAIT;
		}
		return read_piece(rq);
	}
	switch (rq->step) {
	case ROUTE:
		return read_piece(rq);
	case READ: /* a piece of an overlapping copy, or of any copy the write before, is over */
		advance(rq);
		if (rq->done_bytes < rq->at)
			return read_piece(rq);
		if (!rq->overlapping)
			return copy_end(rq);
		rq->step = WRITE_ALL;
		rq->done_bytes = 0;
		return write_all(rq);
	case WRITE:
		rq->step = READ;
		return transfer(rq, rq->ns->bdev, BDEV_WRITE, (rq_slba(rq) << rq->ns->bdev->block_shift) + rq->done_bytes,
				rq->chunk, rq->buf + COPY_STAGE_DESC);
	case WRITE_ALL:
		return write_all(rq);
	default:
		return over(rq, 0);
	}
}

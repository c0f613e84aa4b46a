/* SPDX-License-Identifier: BSD-3-Clause
 *
 * io_run.c: the I/O commands carried out, as steps between operations of the back end, and their table. The command
 * holds what it needs (staging memory, range lock, namespace) before its first step.
 */
#include <assert.h>

#include "io_pass.h"

#define VERIFY_CHUNK (128u << 10)
#define DSM_RANGE_BYTES 16u
#define DSM_DEALLOCATE 0x4u
#define STEP_PASS UINT32_MAX /* the drive does it by itself (io_pass.h) */

static uint32_t rw_length(const struct request *rq, uint32_t *bytes)
{
	*bytes = rq_blocks(rq) << rq->ns->bdev->block_shift;
	return 0;
}

static uint32_t dsm_length(const struct request *rq, uint32_t *bytes)
{
	*bytes = ((rq->cdw10 & 0xFF) + 1) * DSM_RANGE_BYTES;
	return 0;
}

static uint64_t start_of(const struct request *rq)
{
	return rq_slba(rq) << rq->ns->bdev->block_shift;
}

static enum io_next fail_with(struct request *rq, int rc)
{
	rq->status = status_of_errno(rc, rq->cmd->to_medium);
	return IO_DONE;
}

static enum io_next submit(struct request *rq, enum bdev_op op, uint64_t offset, uint64_t length, uint8_t *buf)
{
	struct bdev_io *io = &rq->io;

	io->bdev = rq->ns->bdev;
	io->op = op;
	io->offset = offset;
	io->length = length;
	io->buf = buf;
	io->fua = io->unmap = io->quiet = false;
	rq->step++;
	return IO_SUBMIT;
}

/* The payload, wherever it is. */
static enum io_next submit_data(struct request *rq, enum bdev_op op)
{
	submit(rq, op, start_of(rq), rq->length, rq->buf);
	if (DP_UNLIKELY(rq->pbuf != NULL))
		io_pool_place(&rq->io, rq->pbuf);
	return IO_SUBMIT;
}

/* Commit what is cached, then read it from the medium (NVM 3.3.4, FUA). True: the flush is the next operation. */
static bool flush_first(struct request *rq, int rc)
{
	if (rq->step == 0 && rq_fua(rq)) {
		submit(rq, BDEV_FLUSH, 0, 0, NULL);
		return true;
	}
	if (rq->step == 0)
		rq->step = 1;
	return false;
}

static enum io_next read_run(struct request *rq, int rc)
{
	if (DP_UNLIKELY(rq->pbuf != NULL) && rq->step == 2)
		return io_pool_read_over(rq, rc);
	if (rc < 0)
		return fail_with(rq, rc);
	if (flush_first(rq, rc))
		return IO_SUBMIT;
	if (rq->step == 1)
		return submit_data(rq, BDEV_READ);
	rq->filled = rq->length; /* all of it or an error: the back end's contract */
	rq->tx_data = rq->buf;
	rq->tx_len = rq->length;
	return IO_DONE;
}

static enum io_next write_run(struct request *rq, int rc)
{
	if (DP_UNLIKELY(rq->pbuf != NULL) && rq->step == 1)
		return io_pool_write_over(rq, rc);
	if (rc < 0)
		return fail_with(rq, rc);
	if (rq->step == 0) {
		submit_data(rq, BDEV_WRITE);
		rq->io.fua = rq_fua(rq);
		return IO_SUBMIT;
	}
	return IO_DONE;
}

/* Before anything is read: can the drive do it? */
static bool by_drive(struct request *rq)
{
	if (rq->step != 1 || !io_pass_start(rq))
		return false;
	rq->step = STEP_PASS;
	return true;
}

/* The host's data in the first half of the buffer, the medium's in the second. */
static uint32_t compare_stage(const struct request *rq)
{
	return 2 * rq->length;
}

static enum io_next compare_run(struct request *rq, int rc)
{
	if (rc < 0)
		return fail_with(rq, rc);
	if (flush_first(rq, rc))
		return IO_SUBMIT;
	if (by_drive(rq))
		return IO_WAIT;
	if (rq->step == STEP_PASS && rq->passed)
		return IO_DONE;
	if (rq->step == 1 || rq->step == STEP_PASS) {
		rq->step = 1;
		return submit(rq, BDEV_READ, start_of(rq), rq->length, rq->buf + rq->length);
	}
	if (memcmp(rq->buf, rq->buf + rq->length, rq->length) != 0) {
		counter_add(&rq->ns->bdev->r[rq->q->r->id].stat.errors[5], 1);
		rq->status = ST_COMPARE_FAILURE | ST_DNR;
	}
	return IO_DONE;
}

static uint32_t verify_stage(const struct request *rq)
{
	return min_u32(VERIFY_CHUNK, rq_blocks(rq) << rq->ns->bdev->block_shift);
}

static enum io_next verify_run(struct request *rq, int rc)
{
	uint64_t total = (uint64_t)rq_blocks(rq) << rq->ns->bdev->block_shift, chunk;

	if (rc < 0)
		return fail_with(rq, rc);
	if (flush_first(rq, rc))
		return IO_SUBMIT;
	if (by_drive(rq))
		return IO_WAIT;
	if (rq->step == STEP_PASS && rq->passed)
		return IO_DONE;
	if (rq->step == 1 || rq->step == STEP_PASS) {
		rq->step = 1;
		rq->done_bytes = 0;
	}
	if (rq->done_bytes == total)
		return IO_DONE;
	chunk = min_u64(VERIFY_CHUNK, total - rq->done_bytes);
	rq->done_bytes += chunk;
	return submit(rq, BDEV_READ, start_of(rq) + rq->done_bytes - chunk, chunk, rq->buf);
}

static enum io_next zeroes_run(struct request *rq, int rc)
{
	if (rc < 0)
		return fail_with(rq, rc);
	if (rq->step == 0) {
		submit(rq, BDEV_ZERO, start_of(rq), (uint64_t)rq_blocks(rq) << rq->ns->bdev->block_shift, NULL);
		rq->io.fua = rq_fua(rq);
		rq->io.unmap = rq->cdw12 >> 25 & 1;
		return IO_SUBMIT;
	}
	counter_add(&rq->ns->bdev->r[rq->q->r->id].staging.zeroed_bytes, rq->io.length);
	counter_add(&rq->ns->bdev->r[rq->q->r->id].staging.zeroed_ops, 1);
	return IO_DONE;
}

/* One namespace, or all that this path can reach (base 7.2: NSID FFFFFFFFh). */
static enum io_next flush_run(struct request *rq, int rc)
{
	struct view *view = rq->view;

	if (rc < 0)
		return fail_with(rq, rc);
	if (rq->ns)
		return rq->step == 0 ? submit(rq, BDEV_FLUSH, 0, 0, NULL) : IO_DONE;
	if (rq->step == 0) {
		rq->index = 0;
		for (uint32_t i = 0; i < view->n; i++)
			if (view->ns[i].ana_state <= 2 && !view->ns[i].bdev) {
				rq->status = ST_NS_NOT_READY;
				return IO_DONE;
			}
	}
	while (rq->index < view->n && view->ns[rq->index].ana_state > 2)
		rq->index++;
	if (rq->index == view->n)
		return IO_DONE;
	rq->io.bdev = view->ns[rq->index++].bdev;
	rq->io.op = BDEV_FLUSH;
	rq->io.offset = rq->io.length = 0;
	rq->step++;
	return IO_SUBMIT;
}

/* All ranges must lie in the namespace before any is deallocated. */
static uint32_t dsm_check(struct request *rq)
{
	struct ns_entry *ns = rq->ns;
	uint32_t status;

	if (rq->cdw11 & DSM_DEALLOCATE && (ns->write_protected || ns->bdev->readonly))
		return ST_WRITE_PROTECTED | ST_DNR;
	for (uint32_t at = 0; at < rq->length; at += DSM_RANGE_BYTES) {
		status = io_check_range(get64(rq->buf + at + 8), get32(rq->buf + at + 4), ns->bdev);
		if (status)
			return status;
	}
	return 0;
}

static enum io_next dsm_run(struct request *rq, int rc)
{
	unsigned shift = rq->ns->bdev->block_shift;

	if (rc < 0)
		return fail_with(rq, rc);
	if (rq->step == 0) {
		rq->index = 0;
		rq->status = dsm_check(rq);
		if (rq->status || !(rq->cdw11 & DSM_DEALLOCATE)) /* other attributes are advice that we do not need */
			return IO_DONE;
	}
	while (rq->index < rq->length) {
		const uint8_t *range = rq->buf + rq->index;
		uint64_t blocks = get32(range + 4);

		rq->index += DSM_RANGE_BYTES;
		if (blocks)
			return submit(rq, BDEV_UNMAP, get64(range + 8) << shift, blocks << shift, NULL);
	}
	return IO_DONE;
}

static const struct io_cmd commands[256] = {
	[OPC_FLUSH] = { .dir = DIR_NONE, .to_medium = true, .run = flush_run },
	[OPC_WRITE] = { .dir = DIR_H2C,
			.writes = true,
			.to_medium = true,
			.user_data = true,
			.prinfo = true,
			.range = true,
			.length = rw_length,
			.run = write_run },
	[OPC_READ] = { .dir = DIR_C2H, .user_data = true, .prinfo = true, .range = true, .length = rw_length, .run = read_run },
	[OPC_COMPARE] = { .dir = DIR_H2C,
			  .user_data = true,
			  .prinfo = true,
			  .range = true,
			  .length = rw_length,
			  .stage = compare_stage,
			  .run = compare_run },
	[OPC_WRITE_ZEROES] = { .dir = DIR_NONE,
			       .writes = true,
			       .to_medium = true,
			       .prinfo = true,
			       .range = true,
			       .run = zeroes_run },
	[OPC_DSM] = { .dir = DIR_H2C, .to_medium = true, .at_least = true, .length = dsm_length, .run = dsm_run },
	[OPC_VERIFY] = { .dir = DIR_NONE, .prinfo = true, .range = true, .stage = verify_stage, .run = verify_run },
	[OPC_COPY] = { .dir = DIR_H2C,
		       .writes = true,
		       .to_medium = true,
		       .length = copy_length,
		       .check = copy_check,
		       .stage = copy_stage,
		       .run = copy_run },
};

const struct io_cmd *io_cmd_of(uint8_t opc)
{
	return commands[opc].run ? &commands[opc] : NULL;
}

/* SPDX-License-Identifier: BSD-3-Clause */
#include "io_pass.h"

#include "nvme_pass.h"

static enum nvme_pass_what what_of(const struct request *rq)
{
	return rq->opc == OPC_COMPARE ? NVME_PASS_COMPARE : NVME_PASS_VERIFY;
}

static uint64_t bytes_of(const struct request *rq)
{
	return (uint64_t)rq_blocks(rq) << rq->ns->bdev->block_shift;
}

static void work(struct offload_job *job)
{
	struct request *rq = dp_container_of(job, struct request, job);
	struct nvme_pass *pass = rq->ns->bdev->nvme;
	uint64_t offset = rq_slba(rq) << rq->ns->bdev->block_shift;

	if (rq->opc == OPC_COMPARE)
		rq->io.rc = nvme_pass_compare(pass, offset, rq->buf, bytes_of(rq), rq_fua(rq));
	else
		rq->io.rc = nvme_pass_verify(pass, offset, bytes_of(rq), rq_fua(rq));
}

static void done(struct reactor *r, struct offload_job *job)
{
	struct request *rq = dp_container_of(job, struct request, job);
	struct bdev *bdev = rq->ns->bdev;

	bdev_bypass_end(bdev, r);
	rq->passed = rq->io.rc == 0 || (rq->opc == OPC_COMPARE && rq->io.rc == ST_COMPARE_FAILURE);
	if (rq->passed) /* counted as when it is done by reading */
		bdev_count(bdev, r->id, 0, bytes_of(rq), dp_now_ns() - rq->io.start_ns);
	if (rq->passed && rq->io.rc) {
		counter_add(&bdev->r[r->id].stat.errors[5], 1);
		rq->status = ST_COMPARE_FAILURE | ST_DNR;
	}
	rq->io.done(&rq->io, 0);
}

bool io_pass_start(struct request *rq)
{
	struct bdev *bdev = rq->ns->bdev;

	rq->passed = false;
	if (!nvme_pass_can(bdev->nvme, what_of(rq)) || atomic_load_explicit(&bdev->limited, memory_order_relaxed) ||
	    !bdev_bypass_begin(bdev, rq->q->r))
		return false;
	rq->job.work = work;
	rq->job.done = done;
	rq->io.start_ns = dp_now_ns();
	if (offload_submit(rq->q->r, &rq->job))
		return true;
	bdev_bypass_end(bdev, rq->q->r);
	return false;
}

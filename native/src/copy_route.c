/* SPDX-License-Identifier: BSD-3-Clause */
#include "copy_route.h"

#include "nvme_pass.h"
#include "reflink.h"

#define SLICE_BYTES (16u << 20) /* one turn at a worker, ended at the next range: then others' jobs */
#define NO_ROUTE (-1)

/* Where a route has come to: request.index is the range, request.done_bytes where in the destination it goes. */

static uint64_t end_of(const struct bdev *bdev)
{
	return atomic_load_explicit(&bdev->num_blocks, memory_order_relaxed) << bdev->block_shift;
}

/* Two bdevs with one file or one drive: a range of the one lies in what is written through the other. */
static bool meets(const struct request *rq, const struct copy_source *source, uint64_t to_base, uint64_t from_base)
{
	const struct bdev *home = rq->ns->bdev;
	uint64_t to = to_base + (rq_slba(rq) << home->block_shift), from = from_base + source->start;

	return from < to + rq->at && to < from + source->length;
}

/* enum dp_copy_route, or NO_ROUTE. */
static int route_of(const struct request *rq, const struct copy_source *source)
{
	const struct bdev *to = rq->ns->bdev, *from = source->bdev;
	uint64_t offset = (rq_slba(rq) << to->block_shift) + rq->done_bytes;
	int format;

	if (offset + source->length > end_of(to) || source->start + source->length > end_of(from))
		return NO_ROUTE; /* made smaller meanwhile */
	if (to->nvme) {
		format = nvme_pass_copy_format(to->nvme, from->nvme);
		if (format < 0 || (format == 0 && meets(rq, source, to->nvme->start, from->nvme->start)))
			return NO_ROUTE;
		return DP_COPY_DEVICE;
	}
	if (!reflink_suits(to->reflink, offset, from->reflink, source->start, source->length))
		return NO_ROUTE;
	if (to->reflink->device == from->reflink->device && to->reflink->inode == from->reflink->inode &&
	    meets(rq, source, 0, 0))
		return NO_ROUTE;
	return DP_COPY_REFLINK;
}

/* -- on a worker */

static void mark(struct request *rq, uint32_t first, uint32_t end)
{
	for (uint32_t i = first; i < end; i++)
		rq->routed[i / 64] |= 1ull << i % 64;
}

/* As many ranges as follow each other and the drive's limits allow in commands of its own. False: give up. */
static bool by_device(struct request *rq, struct copy_source *source, uint32_t ranges, uint64_t *budget)
{
	struct nvme_pass *to = rq->ns->bdev->nvme;
	uint32_t first = rq->index; /* what is not yet sent begins in this range */
	uint64_t at = 0;
	struct nvme_copy copy;

	copy.to = to;
	copy.format = nvme_pass_copy_format(to, source->bdev->nvme);
	copy.offset = (rq_slba(rq) << rq->ns->bdev->block_shift) + rq->done_bytes;
	copy.n = 0;
	copy.blocks = 0;
	for (;;) {
		uint64_t took = nvme_copy_add(&copy, source->bdev->nvme, source->start + at, source->length - at);

		if (!took) {
			if (nvme_copy_send(&copy) != 0)
				return false;
			mark(rq, first, rq->index);
			first = rq->index;
			continue;
		}
		at += took;
		if (at < source->length)
			continue;
		at = 0;
		rq->done_bytes += source->length;
		rq->index++;
		*budget -= min_u64(*budget, source->length);
		if (!*budget || rq->index == ranges || copy_source(rq, rq->index, source) != 0 ||
		    route_of(rq, source) != DP_COPY_DEVICE ||
		    nvme_pass_copy_format(to, source->bdev->nvme) != copy.format)
			break;
	}
	if (nvme_copy_send(&copy) != 0)
		return false;
	mark(rq, first, rq->index);
	return true;
}

static bool by_reflink(struct request *rq, const struct copy_source *source, uint64_t *budget)
{
	const struct bdev *to = rq->ns->bdev;

	if (reflink_copy(to->reflink, (rq_slba(rq) << to->block_shift) + rq->done_bytes, source->bdev->reflink, source->start,
			 source->length) != 0)
		return false;
	mark(rq, rq->index, rq->index + 1);
	rq->done_bytes += source->length;
	rq->index++;
	*budget -= min_u64(*budget, source->length);
	return true;
}

static void work(struct offload_job *job)
{
	struct request *rq = dp_container_of(job, struct request, job);
	uint64_t budget = SLICE_BYTES;
	struct copy_source source;

	while (budget && rq->index < rq->route_end) {
		bool ok = copy_source(rq, rq->index, &source) == 0;
		int route = ok ? route_of(rq, &source) : NO_ROUTE;

		if (route == DP_COPY_DEVICE) {
			ok = by_device(rq, &source, rq->route_end, &budget);
		} else if (route == DP_COPY_REFLINK) {
			ok = by_reflink(rq, &source, &budget);
		} else if (ok) {
			rq->done_bytes += source.length;
			rq->index++;
		}
		if (!ok) {
			rq->route_end = rq->index; /* copy.c will meet the same trouble and say what it is */
			return;
		}
	}
}

/* -- on the reactor */

/* Of a range that copy_source has found once; the bdev that is written to for index `ranges`. */
static struct bdev *bdev_of(const struct request *rq, uint32_t index)
{
	struct copy_source source = { 0 };

	if (index == rq->ranges)
		return rq->ns->bdev;
	copy_source(rq, index, &source); /* fails when it was made smaller; its bdev is the same */
	return source.bdev;
}

static void let_go(struct request *rq, uint32_t held)
{
	while (held-- > 0)
		bdev_bypass_end(bdev_of(rq, held), rq->q->r);
}

/* While a route is at work nobody may be probing the drives (bdev_quiesce). False: somebody is; nothing is held. */
static bool hold_all(struct request *rq)
{
	for (uint32_t i = 0; i <= rq->ranges; i++)
		if (!bdev_bypass_begin(bdev_of(rq, i), rq->q->r)) {
			let_go(rq, i);
			return false;
		}
	return true;
}

/* What each range went by: all of it counts there, with the few odd blocks that a reflink leaves. */
static void count(struct request *rq)
{
	struct bdev *to = rq->ns->bdev;
	struct copy_source source = { 0 };
	uint64_t bytes = 0;

	for (uint32_t i = 0; i < rq->ranges; i++) {
		copy_source(rq, i, &source);
		if (copy_routed(rq, i))
			bytes += source.length;
	}
	counter_add(&to->r[rq->q->r->id].staging.copy_bytes[to->nvme ? DP_COPY_DEVICE : DP_COPY_REFLINK], bytes);
}

static void done(struct reactor *r, struct offload_job *job)
{
	struct request *rq = dp_container_of(job, struct request, job);

	if (rq->index < rq->route_end && offload_submit(r, job))
		return;
	count(rq);
	let_go(rq, rq->ranges + 1u);
	rq->index = 0;
	rq->done_bytes = 0;
	rq->io.done(&rq->io, 0);
}

bool copy_route_start(struct request *rq, uint32_t ranges)
{
	struct bdev *to = rq->ns->bdev;
	struct copy_source source;
	bool any = false;

	if ((!to->nvme && !to->reflink) || atomic_load_explicit(&to->limited, memory_order_relaxed))
		return false;
	rq->done_bytes = 0;
	for (uint32_t i = 0; i < ranges; i++) {
		if (copy_source(rq, i, &source) != 0 || atomic_load_explicit(&source.bdev->limited, memory_order_relaxed))
			return false; /* a rate limit holds for what moves by itself too */
		any |= route_of(rq, &source) != NO_ROUTE;
		rq->done_bytes += source.length;
	}
	rq->index = 0;
	rq->done_bytes = 0;
	rq->ranges = rq->route_end = (uint16_t)ranges;
	rq->job.work = work;
	rq->job.done = done;
	if (!any || !hold_all(rq))
		return false;
	if (offload_submit(rq->q->r, &rq->job))
		return true;
	let_go(rq, rq->ranges + 1u);
	return false;
}

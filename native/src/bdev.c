/* SPDX-License-Identifier: BSD-3-Clause
 *
 * bdev.c: what all back ends share: opening, counters, latency histogram, rate limits.
 */
#include "bdev.h"

#include <errno.h>
#include <stdio.h>
#include <stdlib.h>

#include "common.h"
#include "spdk.h"

#define HIST_SHIFT 7u
#define HIST_RANGES (64u - HIST_SHIFT + 1u)
#define HIST_BUCKETS (HIST_RANGES << HIST_SHIFT)
#define QOS_RETRY_NS 500000
#define QOS_BURST_DIV 1000 /* tokens of one millisecond may be saved up, as SPDK's time slices */

enum { STAT_READ, STAT_WRITE, STAT_UNMAP, STAT_COPY };

static const uint8_t stat_of[BDEV_OPS] = { [BDEV_READ] = STAT_READ,
					   [BDEV_WRITE] = STAT_WRITE,
					   [BDEV_FLUSH] = 0xFF,
					   [BDEV_UNMAP] = STAT_UNMAP,
					   [BDEV_ZERO] = STAT_WRITE };
static const uint8_t error_of[BDEV_OPS] = { [BDEV_READ] = 0, [BDEV_WRITE] = 1, [BDEV_FLUSH] = 2, [BDEV_UNMAP] = 3,
					    [BDEV_ZERO] = 4 };

/* -- control thread */

static struct bdev *open_kind(const struct dp_bdev_config *config, struct bdev *base, int *rc, char err[DP_ERR_MAX])
{
	switch (config->kind) {
	case DP_BDEV_MALLOC:
		return bdev_malloc_open(config, rc, err);
	case DP_BDEV_NULL:
		return bdev_null_open(config, rc, err);
	case DP_BDEV_URING:
		return bdev_uring_open(config, rc, err);
	case DP_BDEV_CMB:
		return bdev_cmb_open(config, rc, err);
	case DP_BDEV_SPDK:
		return dp_spdk_bdev_open(config, rc, err);
	case DP_BDEV_DELAY:
		return bdev_delay_open(config, base, rc, err);
	case DP_BDEV_ERROR:
		return bdev_error_open(config, base, rc, err);
	}
	*rc = -EINVAL;
	return NULL;
}

static int check_blocks(const struct dp_bdev_config *config, char err[DP_ERR_MAX])
{
	uint32_t size = config->block_size;

	if (size && (size < 512 || size & (size - 1) || size > 1u << 20)) {
		snprintf(err, DP_ERR_MAX, "bdev %.80s: block size %u is no power of two of at least 512", config->name, size);
		return -EINVAL;
	}
	return 0;
}

struct bdev *bdev_open(const struct dp_bdev_config *config, struct bdev *base, unsigned n_reactors, int *rc,
		       char err[DP_ERR_MAX])
{
	struct bdev *bdev;

	*rc = check_blocks(config, err);
	if (*rc < 0)
		return NULL;
	bdev = open_kind(config, base, rc, err);
	if (!bdev)
		return NULL;
	snprintf(bdev->name, sizeof(bdev->name), "%s", config->name);
	bdev->kind = config->kind;
	bdev->block_shift = (unsigned)__builtin_ctz(bdev->block_size);
	if (config->physical_block_size)
		bdev->physical_block_size = config->physical_block_size;
	rangelock_init(&bdev->locks);
	pthread_mutex_init(&bdev->qos.lock, NULL);
	bdev->n_reactors = n_reactors;
	bdev->r = aligned_alloc(128, n_reactors * sizeof(*bdev->r));
	if (!bdev->r) {
		bdev->ops->destroy(bdev);
		*rc = -ENOMEM;
		return NULL;
	}
	memset(bdev->r, 0, n_reactors * sizeof(*bdev->r));
	for (unsigned i = 0; i < n_reactors; i++) {
		TAILQ_INIT(&bdev->r[i].held);
		TAILQ_INIT(&bdev->r[i].stopped);
		bdev->r[i].qos_timer.fn = bdev_qos_expired;
	}
	bdev_update_direct(bdev);
	return bdev;
}

void bdev_destroy(struct bdev *bdev)
{
	for (unsigned i = 0; i < bdev->n_reactors; i++)
		free(bdev->r[i].histogram);
	free(bdev->r);
	pthread_mutex_destroy(&bdev->qos.lock);
	pthread_mutex_destroy(&bdev->locks.mutex);
	bdev->ops->destroy(bdev);
}

void bdev_update_direct(struct bdev *bdev)
{
	bool direct = bdev->ops->map && !atomic_load(&bdev->limited) && !atomic_load(&bdev->histogram);

	atomic_store(&bdev->direct, direct);
}

void bdev_facts(const struct bdev *bdev, struct dp_bdev_facts *facts)
{
	const struct bdev *lowest = bdev;

	while (lowest->base)
		lowest = lowest->base;
	*facts = (struct dp_bdev_facts){ .block_size = bdev->block_size,
					 .num_blocks = atomic_load(&bdev->num_blocks),
					 .readonly = bdev->readonly,
					 .write_cache = bdev->write_cache,
					 .unmap = bdev->unmap,
					 .write_zeroes = true,
					 .physical_block_size = bdev->physical_block_size,
					 .flush_failed = atomic_load(&lowest->flush_failed) };
}

static uint64_t sum(struct bdev *bdev, size_t offset)
{
	uint64_t total = 0;

	for (unsigned i = 0; i < bdev->n_reactors; i++)
		total += atomic_load_explicit((_Atomic uint64_t *)((char *)&bdev->r[i].stat + offset), memory_order_relaxed);
	return total;
}

void bdev_stat_sum(struct bdev *bdev, struct dp_iostat *stat)
{
	uint64_t v[12];

	for (size_t i = 0; i < 12; i++)
		v[i] = sum(bdev, i * sizeof(uint64_t));
	*stat = (struct dp_iostat){ .bytes_read = v[0],      .num_read_ops = v[4],     .bytes_written = v[1],
				    .num_write_ops = v[5],   .bytes_unmapped = v[2],   .num_unmap_ops = v[6],
				    .bytes_copied = v[3],    .num_copy_ops = v[7],     .read_latency_ns = v[8],
				    .write_latency_ns = v[9], .unmap_latency_ns = v[10], .copy_latency_ns = v[11] };
	for (size_t i = 0; i < 8; i++)
		stat->errors[i] = sum(bdev, offsetof(struct bdev_stat_r, errors) + i * sizeof(uint64_t));
}

static uint64_t load(const _Atomic uint64_t *counter)
{
	return atomic_load_explicit(counter, memory_order_relaxed);
}

void bdev_staging_sum(struct bdev *bdev, struct dp_staging *staging)
{
	uint64_t bytes[POOL_USES] = { 0 }, ops[POOL_USES] = { 0 };
	struct dp_iostat all;

	memset(staging, 0, sizeof(*staging));
	staging->withdrawn = atomic_load(&bdev->pools_withdrawn);
	for (unsigned i = 0; i < bdev->n_reactors; i++) {
		const struct bdev_staging_r *from = &bdev->r[i].staging;

		for (size_t p = 0; p <= POOLS_MAX; p++)
			for (size_t use = 0; use < POOL_USES; use++) {
				staging->pool[p].bytes[use] += load(&from->pool[p].bytes[use]);
				staging->pool[p].ops[use] += load(&from->pool[p].ops[use]);
			}
		for (size_t route = 0; route < DP_COPY_ROUTES; route++)
			staging->copy_bytes[route] += load(&from->copy_bytes[route]);
		staging->fallbacks += load(&from->fallbacks);
		staging->interrupted += load(&from->interrupted);
		bytes[POOL_WRITE] += load(&from->zeroed_bytes);
		ops[POOL_WRITE] += load(&from->zeroed_ops);
	}
	/* After the pools: what is counted there is counted in the totals before. */
	bdev_stat_sum(bdev, &all);
	for (size_t p = 1; p <= POOLS_MAX; p++)
		for (size_t use = POOL_READ; use <= POOL_WRITE; use++) {
			bytes[use] += staging->pool[p].bytes[use];
			ops[use] += staging->pool[p].ops[use];
		}
	staging->pool[0].bytes[POOL_READ] = all.bytes_read - min_u64(all.bytes_read, bytes[POOL_READ]);
	staging->pool[0].ops[POOL_READ] = all.num_read_ops - min_u64(all.num_read_ops, ops[POOL_READ]);
	staging->pool[0].bytes[POOL_WRITE] = all.bytes_written - min_u64(all.bytes_written, bytes[POOL_WRITE]);
	staging->pool[0].ops[POOL_WRITE] = all.num_write_ops - min_u64(all.num_write_ops, ops[POOL_WRITE]);
}

/* -- counting, on a reactor */

static void histogram_count(_Atomic uint64_t *buckets, uint64_t ns)
{
	unsigned clz = ns ? (unsigned)__builtin_clzll(ns) : 64u;
	unsigned range = clz > 64 - HIST_SHIFT ? 0 : 64 - HIST_SHIFT - clz;
	uint64_t index = (ns >> (range ? range - 1 : 0)) & ((1u << HIST_SHIFT) - 1);

	counter_add(&buckets[(range << HIST_SHIFT) + index], 1);
}

void bdev_count(struct bdev *bdev, unsigned reactor, unsigned what, uint64_t bytes, uint64_t ns)
{
	struct bdev_stat_r *stat = &bdev->r[reactor].stat;

	counter_add(&stat->bytes[what], bytes);
	counter_add(&stat->ops[what], 1);
	counter_add(&stat->latency[what], ns);
}

static void account(struct bdev_io *io, int rc)
{
	struct bdev *bdev = io->top;
	struct bdev_reactor *br = &bdev->r[io->r->id];
	uint64_t ns;

	if (rc < 0) {
		counter_add(&br->stat.errors[error_of[io->op]], 1);
		bdev_watch_error(rc);
		return;
	}
	ns = dp_now_ns() - io->start_ns;
	if (!io->quiet && stat_of[io->op] != 0xFF)
		bdev_count(bdev, io->r->id, stat_of[io->op], io->length, ns);
	if (DP_UNLIKELY(atomic_load_explicit(&bdev->histogram, memory_order_acquire)))
		histogram_count(br->histogram, ns);
}

void bdev_done(struct bdev_io *io, int rc)
{
	if (DP_UNLIKELY(io->hook) && rc == 0)
		bdev_error_hook(io);
	account(io, rc);
	io->bdev = io->top;
	bdev_leave(io->top, io->r);
	io->done(io, rc);
}

int bdev_forward(struct bdev_io *io, struct bdev *base)
{
	io->bdev = base;
	return base->ops->submit(io);
}

/* -- rate limits */

static void qos_fill(struct bdev_qos *qos, uint64_t now)
{
	uint64_t passed = now - qos->filled_ns;

	qos->filled_ns = now;
	if (passed > 1000000000u)
		passed = 1000000000u;
	for (size_t i = 0; i < 4; i++) {
		int64_t most = (int64_t)(qos->limit[i] / QOS_BURST_DIV) + 1;

		/* at most 2^63 / 10^9 a second, so no overflow for limits below 9 GB/s per term; split to be safe */
		qos->tokens[i] += (int64_t)((double)qos->limit[i] * (double)passed / 1e9);
		if (qos->tokens[i] > most)
			qos->tokens[i] = most;
	}
}

static bool qos_take(struct bdev *bdev, const struct bdev_io *io)
{
	struct bdev_qos *qos = &bdev->qos;
	bool reads = io->op == BDEV_READ, ok = true;
	const bool counts[4] = { true, true, reads, !reads };

	if (io->op != BDEV_READ && io->op != BDEV_WRITE)
		return true;
	pthread_mutex_lock(&qos->lock);
	if (dp_now_ns() - qos->filled_ns > QOS_RETRY_NS / 4)
		qos_fill(qos, dp_now_ns());
	/* A debt is allowed: an I/O larger than what a millisecond gives must pass too. */
	for (size_t i = 0; i < 4; i++)
		ok &= !counts[i] || !qos->limit[i] || qos->tokens[i] > 0;
	for (size_t i = 0; ok && i < 4; i++)
		if (counts[i] && qos->limit[i])
			qos->tokens[i] -= i == 0 ? 1 : (int64_t)io->length;
	pthread_mutex_unlock(&qos->lock);
	return ok;
}

static void qos_arm(struct reactor *r, struct bdev_reactor *br)
{
	struct io_uring_sqe *sqe = reactor_sqe(r);

	br->qos_armed = true;
	br->qos_timeout = (struct __kernel_timespec){ .tv_nsec = QOS_RETRY_NS };
	io_uring_prep_timeout(sqe, &br->qos_timeout, 0, 0);
	io_uring_sqe_set_data(sqe, &br->qos_timer);
}

void bdev_qos_expired(struct reactor *r, struct uop *op, int res)
{
	struct bdev_reactor *br = dp_container_of(op, struct bdev_reactor, qos_timer);
	struct bdev_io *io;

	br->qos_armed = false;
	while ((io = TAILQ_FIRST(&br->held))) {
		int rc;

		if (!qos_take(io->bdev, io)) {
			qos_arm(r, br);
			return;
		}
		TAILQ_REMOVE(&br->held, io, link);
		rc = io->bdev->ops->submit(io);
		if (rc != BDEV_PENDING)
			bdev_done(io, rc);
	}
}

static int qos_hold(struct reactor *r, struct bdev_io *io)
{
	struct bdev_reactor *br = &io->bdev->r[r->id];

	TAILQ_INSERT_TAIL(&br->held, io, link);
	if (!br->qos_armed)
		qos_arm(r, br);
	return BDEV_PENDING;
}

/* Passed by what waited for bdev_resume, too. */
int bdev_start(struct bdev_io *io)
{
	struct bdev *bdev = io->bdev;
	struct bdev_reactor *br = &bdev->r[io->r->id];

	br->in_flight++;
	if (DP_UNLIKELY(atomic_load_explicit(&bdev->limited, memory_order_relaxed)) &&
	    (!TAILQ_EMPTY(&br->held) || !qos_take(bdev, io)))
		return qos_hold(io->r, io);
	return bdev->ops->submit(io);
}

int bdev_submit(struct reactor *r, struct bdev_io *io)
{
	struct bdev *bdev = io->bdev;
	int rc;

	io->r = r;
	io->top = bdev;
	io->step = 0;
	io->hook = NULL;
	io->progress = 0;
	io->start_ns = dp_now_ns();
	if (DP_UNLIKELY(bdev->r[r->id].quiesced)) {
		TAILQ_INSERT_TAIL(&bdev->r[r->id].stopped, io, link);
		return BDEV_PENDING;
	}
	rc = bdev_start(io);
	if (rc != BDEV_PENDING) {
		account(io, rc);
		bdev_leave(bdev, r);
		io->bdev = bdev;
	}
	return rc;
}

int bdev_qos_set(struct bdev *bdev, const uint64_t limit[4])
{
	bool any = false;

	pthread_mutex_lock(&bdev->qos.lock);
	for (size_t i = 0; i < 4; i++) {
		bdev->qos.limit[i] = limit[i];
		bdev->qos.tokens[i] = (int64_t)(limit[i] / QOS_BURST_DIV) + 1;
		any |= limit[i] != 0;
	}
	bdev->qos.filled_ns = dp_now_ns();
	pthread_mutex_unlock(&bdev->qos.lock);
	/* Once limited, always through the slow path: reactors may hold I/O that waits for tokens. */
	if (any)
		atomic_store(&bdev->limited, true);
	bdev_update_direct(bdev);
	return 0;
}

/* -- histogram, control thread */

int bdev_histogram_enable(struct bdev *bdev, bool enable)
{
	for (unsigned i = 0; i < bdev->n_reactors && enable; i++) {
		if (!bdev->r[i].histogram)
			bdev->r[i].histogram = calloc(HIST_BUCKETS, sizeof(*bdev->r[i].histogram));
		if (!bdev->r[i].histogram)
			return -ENOMEM;
	}
	if (enable && !atomic_load(&bdev->histogram))
		for (unsigned i = 0; i < bdev->n_reactors; i++)
			for (size_t j = 0; j < HIST_BUCKETS; j++)
				atomic_store_explicit(&bdev->r[i].histogram[j], 0, memory_order_relaxed);
	atomic_store_explicit(&bdev->histogram, enable, memory_order_release);
	bdev_update_direct(bdev);
	return 0;
}

int bdev_histogram_get(struct bdev *bdev, uint64_t **buckets, size_t *count, unsigned *shift)
{
	uint64_t *all;

	if (!atomic_load(&bdev->histogram))
		return -ENOENT;
	all = calloc(HIST_BUCKETS, sizeof(*all));
	if (!all)
		return -ENOMEM;
	for (unsigned i = 0; i < bdev->n_reactors; i++)
		for (size_t j = 0; j < HIST_BUCKETS; j++)
			all[j] += atomic_load_explicit(&bdev->r[i].histogram[j], memory_order_relaxed);
	*buckets = all;
	*count = HIST_BUCKETS;
	*shift = HIST_SHIFT;
	return 0;
}

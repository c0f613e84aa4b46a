/* SPDX-License-Identifier: BSD-3-Clause
 *
 * bdev.h: back ends: arrays of blocks behind one vtable. Created, changed and destroyed on the control thread; I/O on
 * reactors. What differs by reactor (counters, I/O in flight) lies in bdev_reactor, one cache line group each.
 */
#pragma once

#include <pthread.h>
#include <stdatomic.h>
#include <sys/queue.h>

#include "common.h"
#include "engine.h"
#include "pool.h"
#include "rangelock.h"
#include "reactor.h"

struct bdev;
struct bdev_io;

enum bdev_op { BDEV_READ, BDEV_WRITE, BDEV_FLUSH, BDEV_UNMAP, BDEV_ZERO, BDEV_OPS };

#define BDEV_PENDING 1 /* bdev_submit: done() comes later; else 0 or -errno, and done() does not come */

/* One operation. The caller fills the first part; offset and length are bytes, whole blocks, inside the bdev. */
struct bdev_io {
	struct bdev *bdev;
	enum bdev_op op;
	bool fua;   /* write, zero: on stable storage before done */
	bool unmap; /* zero: space may be given back */
	bool quiet; /* not counted: part of another command (Copy, Compare, Verify) */
	uint8_t iovcnt; /* pieces of iov, which is where the data is; 0: in buf. Only for a bdev that bdev_scatters */
	uint64_t offset, length;
	uint8_t *buf; /* read: filled completely or the operation fails; write: unchanged until done */
	const struct iovec *iov; /* length bytes in all, unchanged until done; a pool_buf's */
	void (*done)(struct bdev_io *io, int rc);

	/* the bdev's own */
	struct reactor *r;
	struct bdev *top; /* where the operation was submitted; differs from bdev below layers */
	struct uop uop;
	uint64_t progress;
	uint64_t start_ns;
	uint8_t step;
	struct bdev *hook; /* an error bdev that wants to see the result */
	int rc;
	struct __kernel_timespec timeout;
	union {
		struct range_hold sync; /* uring: its turn to call fdatasync */
		struct {                /* spdk */
			struct sns *ns;
			void *bounce;
			uint64_t chunk; /* bytes of the command in the drive */
			uint32_t piece, at; /* of iov: where the driver is in it */
			unsigned retries;
			void *cmd;  /* not one of enum bdev_op, see spdk_bdev.c */
			void (*over)(struct bdev_io *io, int rc); /* of that */
		} spdk;
	};
	TAILQ_ENTRY(bdev_io) link;
};

TAILQ_HEAD(bdev_io_list, bdev_io);

/* Every member is called on a reactor unless it says otherwise. */
struct bdev_ops {
	/* Required. BDEV_PENDING (then bdev_done), 0 or -errno. */
	int (*submit)(struct bdev_io *io);
	/* Optional: the bytes themselves, at most *length of them (reduced to what is contiguous), for reads without a
	 * copy; valid while the bdev is pinned. A bdev that has it never returns BDEV_PENDING. */
	const uint8_t *(*map)(struct bdev *bdev, uint64_t offset, uint32_t *length);
	/* Optional, control thread: 0 or -errno. */
	int (*resize)(struct bdev *bdev, uint64_t num_blocks);
	/* Optional, control thread: how many blocks there are now, without using it; -errno, 0: the medium is gone. */
	int64_t (*look)(struct bdev *bdev);
	/* Optional: fails what is held for ever (error bdev "pending"), so that the bdev can drain. */
	void (*drain)(struct bdev *bdev, struct reactor *r);
	/* Required, control thread: nothing is in flight. */
	void (*destroy)(struct bdev *bdev);
	bool constant; /* what map gives is never written to, and never goes: nobody needs to pin it */
	bool scatters; /* data may lie in bdev_io.iov, and in peer memory; layers have it of what they lie on */
};

struct bdev_stat_r {
	_Atomic uint64_t bytes[4], ops[4], latency[4]; /* read, write, unmap, copy */
	_Atomic uint64_t errors[8];
};

/* Where payload rested on its way. What is not in a pool is in host memory; of Read and Write that is the difference to
 * bdev_stat_r, so that I/O which uses no pool counts nothing here. Index 0 is used by Copy alone. */
struct bdev_staging_r {
	struct {
		_Atomic uint64_t bytes[POOL_USES], ops[POOL_USES];
	} pool[POOLS_MAX + 1];
	_Atomic uint64_t zeroed_bytes, zeroed_ops; /* in bdev_stat_r's writes, but nothing was staged */
	_Atomic uint64_t fallbacks, interrupted;
	_Atomic uint64_t copy_bytes[DP_COPY_ROUTES];
};

struct bdev_reactor {
	struct bdev_stat_r stat;
	uint32_t unlocked;  /* operations in flight that hold no range lock */
	uint32_t pins;      /* stretches of the bdev's memory on their way to a socket */
	struct rmsg *on_unpinned, *on_unlocked;
	uint32_t in_flight; /* submitted here, not done; and what goes round bdev_submit (bdev_bypass_begin) */
	bool quiesced;
	struct bdev_io_list stopped; /* submitted while it was quiesced */
	struct rmsg *on_quiet;
	struct bdev_io_list held; /* error bdev: pending for ever; QoS: waiting for tokens */
	struct uop qos_timer;
	struct __kernel_timespec qos_timeout;
	bool qos_armed;
	_Atomic uint64_t *histogram; /* the control thread allocates, this reactor counts */
	struct bdev_staging_r staging;
} __attribute__((aligned(128)));

struct bdev_qos {
	pthread_mutex_t lock;
	uint64_t limit[4]; /* I/Os, bytes of both, bytes read, bytes written; a second */
	int64_t tokens[4];
	uint64_t filled_ns;
};

struct bdev {
	char name[DP_NAME_MAX + 1];
	enum dp_bdev_kind kind;
	const struct bdev_ops *ops;
	uint32_t block_size, physical_block_size;
	unsigned block_shift;
	_Atomic uint64_t num_blocks;
	bool readonly, write_cache, unmap;
	_Atomic bool direct;    /* served at once, in the caller's buffer: has map(), no limit, no histogram */
	_Atomic bool excl;      /* a fused pair was seen: writes take range locks from now on */
	_Atomic bool excl_ready; /* ... and none without one is in flight any more */
	_Atomic bool limited, histogram;
	bool lost; /* said so; control thread */
	/* What was cached could not be made durable, and the kernel tells that once: from then on nobody is told that his
	 * data is safe, until somebody has looked (rescan, or a new bdev). */
	_Atomic bool flush_failed;
	bool flush_told; /* control thread */
	_Atomic unsigned excl_acks;
	struct rangelock locks;
	struct bdev_qos qos;
	struct bdev *base; /* below a layer */
	unsigned layers;   /* above it; control thread */
	bool deleting;
	bool calibrating; /* its drive is being probed; control thread */
	bool told_lost;   /* cmb: dp_events.bdev_changed was called; control thread */
	struct nvme_pass *nvme;   /* uring: the drive's own commands may be used; NULL: not */
	struct reflink *reflink;  /* uring: a file whose file system may share extents */
	_Atomic uint64_t pools_allowed; /* bit i: pool of index i + 1; of the lowest bdev of a stack */
	_Atomic uint64_t pools_withdrawn; /* the same: those that it may use no more because of such refusals, until it is said anew */
	_Atomic unsigned pool_refusals; /* I/O with a pool that failed as where no way leads there, in a row; the same bdev's */
	struct bdev_reactor *r; /* one for each reactor */
	unsigned n_reactors;
	LIST_ENTRY(bdev) link;
	struct dp_iostat zero; /* the sums at the last dp_bdev_iostat_reset */
};

/* -- control thread */
struct bdev *bdev_open(const struct dp_bdev_config *config, struct bdev *base, unsigned n_reactors, int *rc,
		       char err[DP_ERR_MAX]);
void bdev_destroy(struct bdev *bdev);
void bdev_facts(const struct bdev *bdev, struct dp_bdev_facts *facts);
void bdev_stat_sum(struct bdev *bdev, struct dp_iostat *stat);
void bdev_staging_sum(struct bdev *bdev, struct dp_staging *staging); /* since it was opened; dp_iostat_reset is no matter */
void bdev_update_direct(struct bdev *bdev);
void bdev_watch_start(void (*check)(void)); /* bdev_watch.c */
/* bdev_quiesce.c: what is submitted to this very bdev waits from now on (the layers above have to be quiesced too); done
 * when nothing of it is in flight. bdev_resume may come before that. Not for memory (bdev.direct), whose I/O asks nobody. */
void bdev_quiesce(struct bdev *bdev, void (*done)(void *arg), void *arg);
void bdev_resume(struct bdev *bdev, void (*done)(void *arg), void *arg);

struct bdev *bdev_malloc_open(const struct dp_bdev_config *config, int *rc, char err[DP_ERR_MAX]);
struct bdev *bdev_null_open(const struct dp_bdev_config *config, int *rc, char err[DP_ERR_MAX]);
struct bdev *bdev_uring_open(const struct dp_bdev_config *config, int *rc, char err[DP_ERR_MAX]);
struct bdev *bdev_cmb_open(const struct dp_bdev_config *config, int *rc, char err[DP_ERR_MAX]);
struct pool *bdev_cmb_pool(const struct bdev *bdev); /* where it lies */
int bdev_uring_fd(const struct bdev *bdev);          /* of its file; the bdev's own */
struct bdev *bdev_delay_open(const struct dp_bdev_config *config, struct bdev *base, int *rc, char err[DP_ERR_MAX]);
struct bdev *bdev_error_open(const struct dp_bdev_config *config, struct bdev *base, int *rc, char err[DP_ERR_MAX]);
int bdev_error_inject(struct bdev *bdev, const char *io_type, const char *error_type, uint32_t num, uint32_t offset,
		      uint8_t value);
int bdev_delay_update(struct bdev *bdev, const char *latency_type, uint64_t us);
void bdev_error_hook(struct bdev_io *io); /* damages a read that came later */
int bdev_qos_set(struct bdev *bdev, const uint64_t limit[4]);
int bdev_histogram_enable(struct bdev *bdev, bool enable);
int bdev_histogram_get(struct bdev *bdev, uint64_t **buckets, size_t *count, unsigned *shift);

/* -- reactors */
int bdev_submit(struct reactor *r, struct bdev_io *io);
int bdev_start(struct bdev_io *io); /* bdev_quiesce.c */
void bdev_done(struct bdev_io *io, int rc); /* by back ends, for what was BDEV_PENDING */
int bdev_forward(struct bdev_io *io, struct bdev *base); /* a layer hands it down */
void bdev_count(struct bdev *bdev, unsigned reactor, unsigned what, uint64_t bytes, uint64_t ns);
void bdev_qos_expired(struct reactor *r, struct uop *op, int res);
void bdev_watch_error(int rc); /* an operation has failed: is the medium still there? */
void bdev_watch_now(void);

/* An operation of that use went to or from the medium; pool 0: host memory (Copy only). */
static inline void bdev_count_staged(struct bdev *bdev, const struct reactor *r, enum pool_use use, unsigned pool,
				     uint64_t bytes)
{
	struct bdev_staging_r *staging = &bdev->r[r->id].staging;

	counter_add(&staging->pool[pool].bytes[use], bytes);
	counter_add(&staging->pool[pool].ops[use], 1);
}

/* An operation is over that was counted in flight. */
static inline void bdev_leave(struct bdev *bdev, struct reactor *r)
{
	struct bdev_reactor *br = &bdev->r[r->id];

	if (--br->in_flight == 0 && DP_UNLIKELY(br->on_quiet)) {
		struct rmsg *msg = br->on_quiet;

		br->on_quiet = NULL;
		msg->fn(r, msg);
	}
}

/* For an operation on the file or device behind the bdev that does not go through bdev_submit (the drive's own Copy, a
 * reflink). False: the bdev is quiesced; take the way through bdev_submit, which waits. */
static inline bool bdev_bypass_begin(struct bdev *bdev, struct reactor *r)
{
	struct bdev_reactor *br = &bdev->r[r->id];

	if (br->quiesced)
		return false;
	br->in_flight++;
	return true;
}

static inline void bdev_bypass_end(struct bdev *bdev, struct reactor *r)
{
	bdev_leave(bdev, r);
}

static inline void bdev_pin(struct bdev *bdev, struct reactor *r)
{
	bdev->r[r->id].pins++;
}

static inline void bdev_unpin(struct bdev *bdev, struct reactor *r)
{
	struct bdev_reactor *br = &bdev->r[r->id];

	if (--br->pins == 0 && br->on_unpinned) {
		struct rmsg *msg = br->on_unpinned;

		br->on_unpinned = NULL;
		msg->fn(r, msg);
	}
}

static inline const struct bdev *bdev_bottom(const struct bdev *bdev)
{
	while (bdev->base)
		bdev = bdev->base;
	return bdev;
}

/* May it have data in pools at all? */
static inline bool bdev_scatters(const struct bdev *bdev)
{
	return bdev_bottom(bdev)->ops->scatters;
}

static inline bool bdev_pool_allowed(const struct bdev *bdev, const struct pool *pool)
{
	bdev = bdev_bottom(bdev);
	return atomic_load_explicit(&bdev->pools_allowed, memory_order_relaxed) >> (pool_index(pool) - 1) & 1;
}

/* An error that is a status of NVMe already: -(BDEV_NVME | status). */
#define BDEV_NVME 0x1000000

/* Statuses: the one place where an errno becomes one. write: the data went to the medium. */
uint32_t status_of_errno(int error, bool write);

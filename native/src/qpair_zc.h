/* SPDX-License-Identifier: BSD-3-Clause
 *
 * qpair_zc.h: zero-copy sends of a queue (NVMe/TCP). A send that the kernel need not copy points into our memory until the
 * peer has acknowledged it; a second completion of the same operation says so. Until then its headers and data belong to it: a
 * "batch" holds them, and counts against the queue's share of staging memory as before.
 *
 * Only memory that nobody writes to is sent so: staging memory of Reads, and what a back end declares constant. The medium
 * of a malloc bdev is not, since a Write could tear a block between a transmission and its repetition: large Reads of it are
 * copied to staging memory on such a queue.
 */
#pragma once

#include "qpair.h"

#define ZC_BATCHES 16u
#define ZC_BUFS 64u
#define ZC_BATCH_BYTES (1u << 20) /* of data, unless one command has more */

struct zc_buf {
	uint8_t *buf;
	uint32_t bytes;
};

/* What one send, continued where the socket took a part of it, points to. */
struct zc_batch {
	STAILQ_ENTRY(zc_batch) link; /* while it is free */
	struct uop op;
	struct qpair *q;
	uint8_t *arena;   /* the queue's next; what was sent from once it is on its way */
	uint64_t bytes;   /* sent, with headers */
	uint32_t pending; /* notifications that are to come */
	bool copied;      /* one of them said so */
	uint32_t n_bufs;
	struct zc_buf *bufs; /* ZC_BUFS */
};

STAILQ_HEAD(zc_batch_list, zc_batch);

struct zc {
	bool waiting, stopped, aborted; /* the queue ends: a time is set, is taken back, has expired */
	uint32_t pending;               /* of all batches */
	size_t held;                    /* staging memory of batches */
	struct zc_batch *now;           /* of what is being put together or sent */
	uint32_t now_bufs, now_bytes;
	struct zc_batch_list free;
	uint8_t *own_arena; /* the queue's at first */
	void *memory;       /* of arenas and bufs; not touched before it is needed */
	struct zc_batch batches[ZC_BATCHES];
};

/* As dp_start was told; zc_create makes nothing where it says off, or the kernel cannot. */
struct zc_config {
	enum dp_zero_copy mode;
	uint32_t min_bytes; /* of a command's data */
};

extern struct zc_config zc_config;

static inline bool zc_on(const struct qpair *q)
{
	return q->direct_max != UINT32_MAX;
}

bool zc_create(struct qpair *q); /* control thread, before the queue begins; false: it does without */
void zc_free(struct qpair *q);

/* Of a queue whose zc is not NULL. */
void zc_begin(struct qpair *q);                          /* a send will be put together: shall it be one without a copy? */
bool zc_takes(struct qpair *q, const struct request *rq); /* the answer may be in that send; false: it is for the next */
bool zc_used(const struct qpair *q);                     /* the send in progress, or about to be, is without a copy */
struct uop *zc_op(struct qpair *q);                      /* of that send; completes like qpair.tx_op, and once more */
void zc_prep(struct qpair *q, struct io_uring_sqe *sqe); /* of q->tx_msg */
void zc_sent(struct qpair *q);                           /* the send is over: what is the kernel's still is kept */
bool zc_over(struct qpair *q);                           /* the queue ends: nothing is the kernel's any more */

/* SPDX-License-Identifier: BSD-3-Clause
 *
 * io.h: between io.c (the path of every command), io_check.c (what is judged before data moves), io_run.c and copy.c
 * (the commands themselves).
 */
#pragma once

#include "qpair.h"

enum direction { DIR_NONE, DIR_H2C, DIR_C2H };

/* IO_SUBMIT: rq->io is filled; IO_WAIT: rq->io.done will be called; IO_AGAIN: see io_again. */
enum io_next { IO_DONE, IO_SUBMIT, IO_WAIT, IO_AGAIN };

/* One row of the command table; the fields mean what those of nvm.NvmCommand mean in the in-process engine. */
struct io_cmd {
	enum direction dir;
	bool writes, to_medium, user_data, at_least, prinfo, range;
	uint32_t (*length)(const struct request *rq, uint32_t *bytes); /* NULL: no data. 0 or a status */
	uint32_t (*check)(const struct request *rq);
	/* Bytes of staging memory that it needs before it starts; NULL: rq->length. */
	uint32_t (*stage)(const struct request *rq);
	/* rc: of the operation before; 0 at first. Sets rq->status when it fails. */
	enum io_next (*run)(struct request *rq, int rc);
};

const struct io_cmd *io_cmd_of(uint8_t opc); /* NULL: unknown */

/* io_check.c. 0 or a status. */
struct plan {
	bool in_capsule, transport;
	uint32_t offset;
	struct remote remote; /* of transport, where SGLs are keyed */
};

uint32_t io_admit(struct request *rq, struct view *view); /* sets cmd, view, ns, length */
uint32_t io_plan(const uint8_t sqe[64], const struct request *rq, uint32_t icd_len, struct plan *plan);
uint32_t io_validate(const struct request *rq);
uint32_t io_path_status(const struct ns_entry *ns); /* 0, or why it serves no I/O here and now */
uint32_t io_check_range(uint64_t slba, uint64_t blocks, const struct bdev *bdev);

static inline uint64_t rq_slba(const struct request *rq)
{
	return (uint64_t)rq->cdw11 << 32 | rq->cdw10;
}

static inline uint32_t rq_blocks(const struct request *rq)
{
	return (rq->cdw12 & 0xFFFF) + 1;
}

static inline bool rq_fua(const struct request *rq)
{
	return rq->cdw12 >> 30 & 1;
}

/* io.c, for io_pool.c and copy.c */
void io_has_room(struct request *rq);  /* payload that is not here yet has its place */
void io_host_room(struct request *rq); /* gets, or waits for, host memory */
void io_fail(struct request *rq, uint32_t status);
void io_respond(struct request *rq, uint32_t status);

void io_need_locks(struct bdev *bdev); /* io_locks.c: a fused pair has come */

/* io_pool.c: payload in pools */
static inline struct pool *io_pool_of(const struct request *rq)
{
	if (!rq->ns || rq->fuse)
		return NULL;
	return rq->opc == OPC_READ ? rq->ns->pool[POOL_READ] : rq->opc == OPC_WRITE ? rq->ns->pool[POOL_WRITE] : NULL;
}

static inline bool io_pooled(const struct request *rq)
{
	const struct pool *pool = io_pool_of(rq);

	if (!pool || rq->host_only)
		return false;
	return !rq->q->keyed || (rq->q->ops->reaches && rq->q->ops->reaches(rq->q, pool));
}

/* Of a request that io_pooled is true of. now: a buffer at once? room: it has one, or waits for one, and goes on by itself;
 * false: host memory. ready, of one with a buffer that is about to start: false: it has gone another way. */
bool io_pool_now(struct request *rq);
bool io_pool_room(struct request *rq);
bool io_pool_ready(struct request *rq);

void io_pool_wait(struct request *rq, struct pool *pool, const struct pool_want *want);
bool io_pool_unwait(struct request *rq); /* false: an answer is on its way */
struct pool_want io_pool_want(struct request *rq, uint32_t bytes);
void io_pool_count_fallback(const struct request *rq, struct pool *pool); /* pool NULL: it may be gone */
void io_pool_place(struct bdev_io *io, const struct pool_buf *buf);
/* An operation on memory of the pool has gone well. */
void io_pool_served(struct bdev *bdev, const struct reactor *r, enum pool_use use, const struct pool *pool, uint64_t bytes);
/* ... has failed: because of the memory? Then host memory may do better. */
bool io_pool_at_fault(struct bdev *bdev, struct pool *pool, int rc);
/* The back end is done with the data of a request in a pool. */
enum io_next io_pool_read_over(struct request *rq, int rc);
enum io_next io_pool_write_over(struct request *rq, int rc);

/* copy.c */
bool copy_room(struct request *rq); /* false: it waits for memory of a pool */
#define COPY_STAGE_DESC 8192u
#define COPY_OPS 2u
#define COPY_CHUNK (124u << 10) /* so that a buddy of 256 KiB holds it all, and a pool's scatter list does */
uint32_t copy_length(const struct request *rq, uint32_t *bytes);
uint32_t copy_check(const struct request *rq);
uint32_t copy_stage(const struct request *rq);
struct copy_source {
	struct bdev *bdev;
	uint64_t start, length; /* bytes */
};
uint32_t copy_source(const struct request *rq, uint32_t index, struct copy_source *source); /* of an entry: 0 or a status */
enum io_next copy_run(struct request *rq, int rc);

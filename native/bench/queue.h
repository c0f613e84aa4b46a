/* SPDX-License-Identifier: BSD-3-Clause
 *
 * queue.h: an I/O queue under load. A thread owns it. It keeps `depth` commands outstanding for as long as the
 * workload (workload.c) has some to give.
 */
#pragma once

#include <sys/uio.h>

#include "bench.h"

#define TX_IOVS 512
#define TX_ARENA (48u << 10) /* bytes of headers and digests of what is being sent */
#define RECENT_UNITS 256     /* --verify reads one of the units written last */

struct slot {
	uint64_t unit, sent_ns;
	uint8_t *data;        /* --verify: opt.bs bytes */
	uint32_t generation;
	uint32_t received;    /* bytes of C2HData */
	uint32_t granted;     /* bytes that R2Ts asked for */
	uint16_t r2ts_open;   /* of which H2CData is not all built yet */
	uint8_t op;
	bool busy, sent;
	bool last_seen;       /* the last C2HData; RDMA: the response */
	bool left;            /* RDMA: the capsule has been sent */
};

/* Something to send: the command capsule, or the H2CData that answer an R2T. */
struct job {
	uint16_t cid, ttag;
	bool h2c;
	uint32_t offset, left;
};

enum phase { PHASE_RUN, PHASE_READ_BACK, PHASE_DONE };

/* Where the commands of a queue go, and in --verify what is there. */
struct workload {
	uint64_t first, units; /* this queue's units, for sequential and verified I/O; random I/O uses all of them */
	uint64_t cursor, rng;
	uint64_t quota;        /* I/Os left; UINT64_MAX when the run is bounded by time */
	enum phase phase;
	uint32_t *generation;  /* --verify, by unit - first: 0 is never written */
	uint8_t *locked;       /* --verify: a command is outstanding there */
	uint64_t recent[RECENT_UNITS];
	uint64_t written;
};

enum rx_state { RX_HEADER, RX_DATA, RX_DIGEST };

struct queue {
	struct conn conn;
	uint16_t qid;
	uint32_t depth, inflight;
	struct slot *slots;
	uint8_t *memory;     /* depth * opt.bs bytes: with --verify, and where the target puts the data itself */
	uint16_t *free_cids; /* depth - inflight of them */
	struct workload load;
	struct stats *stats;
	uint64_t rx_ns;      /* when something was received last */
	bool want_out;       /* the socket takes no more for now */

	enum rx_state rx;
	uint8_t head[PDU_PDO_MAX + 4];
	uint32_t head_have;
	uint32_t data_left, digest_have;
	uint32_t crc;
	uint8_t digest[4];
	struct slot *data_slot;
	uint8_t data_flags;

	struct job *jobs; /* a ring of job_mask + 1 */
	uint32_t job_head, job_tail, job_mask;
	struct iovec iov[TX_IOVS];
	unsigned iov_at, iov_count;
	uint8_t *arena;
	uint32_t arena_used;
	uint32_t payload_crc; /* of all of bench.payload */
};

int queue_init(struct queue *queue, uint16_t qid, unsigned index, struct stats *stats);
void queue_free(struct queue *queue);
int queue_submit(struct queue *queue, uint64_t now); /* fills the queue and sends */
int queue_flush(struct queue *queue, uint64_t now);  /* sends what is waiting */
/* Takes in bytes of the stream; `now` is when they had come. */
int queue_receive(struct queue *queue, const uint8_t *data, size_t len, uint64_t now);
int queue_check_timeouts(const struct queue *queue, uint64_t now);
/* Bytes of data, if at least `least` come next, that nobody looks at; queue_skipped() counts them as received. */
static inline uint32_t queue_skippable(const struct queue *queue, uint32_t least)
{
	return queue->rx == RX_DATA && queue->data_left >= least ? queue->data_left : 0;
}
int queue_skipped(struct queue *queue, uint32_t len, uint64_t now);


/* For both transports. */
void queue_sqe(struct queue *queue, uint16_t cid, uint8_t sqe[64], uint64_t now); /* all but the SGL */
bool queue_in_capsule(const struct slot *slot);
struct slot *queue_slot(struct queue *queue, uint16_t cid); /* NULL: no such command is outstanding */
int queue_status(const struct queue *queue, const struct slot *slot, const uint8_t cqe[16]);
int queue_complete(struct queue *queue, struct slot *slot, uint64_t now);

/* workload.c */
int workload_init(struct workload *load, unsigned index);
void workload_free(struct workload *load);
/* Chooses the next command and fills unit, op, generation (and data of a write); false: none for now. */
bool workload_next(struct workload *load, struct slot *slot, uint32_t inflight, uint64_t now);
/* The command succeeded. Checks what was read. */
int workload_completed(struct workload *load, struct slot *slot, struct stats *stats);

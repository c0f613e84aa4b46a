/* SPDX-License-Identifier: BSD-3-Clause
 *
 * rdma_priv.h: between the files of NVMe/RDMA.
 *
 *     rdma_cm.c     listeners, connection requests and their refusal, events of the connection manager and of devices
 *     rdma_dev.c    a device: protection domain, registered memory, shared receive queue
 *     rdma_conn.c   a queue pair and its memory; what both of the following need of verbs
 *     rdma_ctl.c    control thread: capsules go up to the control plane, data and responses come down
 *     rdma_queue.c  reactor: an I/O queue (qpair_ops)
 *
 * A connection belongs to the control thread until it is adopted, then to its reactor, and to the control thread again
 * when the queue has ended; only then is anything of it freed.
 */
#pragma once

#include <infiniband/verbs.h>
#include <rdma/rdma_cma.h>

#include "engine_priv.h"
#include "log.h"
#include "loop.h"
#include "rdma.h"

/* Counters of a device: one writer each, the last is the control thread's. */
struct rdma_counters {
	_Atomic uint64_t polls, idle_polls, completions, requests, reads, writes, sends, doorbells, receives, pending_read,
		pending_write, invalidates, events;
};

/* Memory for capsules: of one connection, or shared by all of a device. */
struct rdma_rx {
	uint8_t *mem;
	struct ibv_mr *mr;
	struct ibv_srq *srq; /* NULL: a connection's own */
	uint32_t slots, slot_bytes;
	size_t bytes;
	uint8_t *tail; /* what is left of mem behind the slots: responses */
};

struct rdma_conn;

struct rdma_dev {
	LIST_ENTRY(rdma_dev) link;
	struct ibv_context *verbs;
	struct ibv_pd *pd;
	struct ibv_device_attr attr;
	struct ibv_mr *pool_mr[REACTORS_MAX]; /* staging memory of each reactor */
	struct ibv_mr *ctl_mr;                /* that of the control thread */
	/* Of pools that are exported as a dma-buf, by their index; the control thread writes, before the first and after the
	 * last buffer of a pool. */
	_Atomic(struct ibv_mr *) peer_mr[POOLS_MAX + 1];
	char no_peer_mr[POOLS_MAX + 1][80]; /* why not; control thread */
	struct rdma_rx *srq;
	uint32_t srq_icd; /* in-capsule data that its slots hold */
	struct loop_source async;
	LIST_HEAD(, rdma_conn) conns;
	unsigned users; /* connections */
	bool removed;
	uint64_t accepted, rejected, srq_limits;
	struct rdma_counters count[REACTORS_MAX + 1];
};

#define RDMA_WR_ORDER 0u /* the rest is a pointer */
#define RDMA_WR_RECV 1u
#define RDMA_WR_SEND 2u
#define RDMA_WR_READ 3u
#define RDMA_WR_WRITE 4u
#define RDMA_WR_DATA 5u /* the last RDMA WRITE of data whose response comes later */
#define RDMA_WR_KIND(id) ((unsigned)((id) & 7))
#define RDMA_WR_INDEX(id) ((uint32_t)((id) >> 3))
#define RDMA_WR(kind, index) ((uint64_t)(index) << 3 | (kind))

#define RDMA_BATCH 32u /* work requests that are posted together */

struct rdma_ctl; /* rdma_ctl.c */
struct rdma_io;  /* rdma_queue.c */

struct rdma_conn {
	LIST_ENTRY(rdma_conn) link; /* of those that are not adopted */
	LIST_ENTRY(rdma_conn) dev_link;
	uint64_t ident;
	struct rdma_cm_id *id;
	struct rdma_dev *dev;
	struct rdma_counters *count; /* those of the thread that it belongs to */
	struct ibv_comp_channel *channel;
	struct ibv_cq *cq;
	struct ibv_qp *qp;
	struct rdma_rx *rx, own_rx;
	uint8_t *cqes; /* responses on their way, 16 bytes each */
	uint32_t cqes_lkey;
	uint32_t icd_max;
	uint16_t qid, entries;
	uint32_t ord;                /* RDMA READs at a time */
	uint32_t sq_max, sq_used;    /* work requests */
	uint32_t max_message;
	bool inline_cqe, can_invalidate;
	_Atomic bool last_wqe; /* nothing of the shared receive queue is in the queue pair any more */
	struct rdma_ctl *ctl;
	struct rdma_io *io;
};

struct rdma_conn_params {
	uint16_t qid, entries;
	uint32_t icd_max, ord;
	uint32_t srq_depth; /* 0: receive queues of their own */
};

/* rdma_dev.c */
struct rdma_dev *rdma_dev_get(struct ibv_context *verbs, int *rc); /* counts a user */
void rdma_dev_put(struct rdma_dev *dev);
struct rdma_rx *rdma_dev_srq(struct rdma_dev *dev, uint32_t depth, uint32_t icd_max); /* NULL: there is none */
json_t *rdma_dev_list(void);
json_t *rdma_dev_pool(const char *name); /* the devices in use: whether each has a pool's memory, or why not */
void rdma_dev_pool_changed(struct pool *pool, bool there);
void rdma_dev_removed(struct ibv_context *verbs);
void rdma_dev_settle(void);
void rdma_dev_fini(void);
extern struct staging rdma_ctl_pool; /* memory of the control thread, registered with each device */
struct rdma_counters *rdma_count(struct rdma_dev *dev, const struct reactor *r);

/* rdma_conn.c */
struct rdma_conn *rdma_conn_new(struct rdma_cm_id *id, const struct rdma_conn_params *params, int *rc);
void rdma_conn_free(struct rdma_conn *c); /* control thread */
int rdma_rx_init(struct rdma_rx *rx, struct rdma_dev *dev, uint32_t slots, uint32_t icd_max, size_t tail);
void rdma_rx_fini(struct rdma_rx *rx);
int rdma_rx_post(struct rdma_conn *c, uint32_t slot); /* 0 or -errno */
static inline uint8_t *rdma_rx_slot(const struct rdma_conn *c, uint32_t slot)
{
	return c->rx->mem + (size_t)slot * c->rx->slot_bytes;
}
typedef void (*rdma_wc_fn)(struct rdma_conn *c, const struct ibv_wc *wc);
unsigned rdma_conn_poll(struct rdma_conn *c, rdma_wc_fn fn); /* what is there now; number of completions */
void rdma_conn_ack(struct rdma_conn *c);                      /* takes the events of its channel */
void rdma_conn_error(struct rdma_conn *c);                    /* everything posted comes back */

/* rdma_ctl.c */
int rdma_ctl_begin(struct rdma_conn *c); /* its capsules go up from now on */
void rdma_ctl_undo(struct rdma_conn *c); /* it was not accepted */
void rdma_ctl_delete(struct rdma_conn *c);
void rdma_ctl_end(struct rdma_conn *c, const char *reason);
void rdma_ctl_end_all(const char *reason);
bool rdma_ctl_tick(void); /* once a second while it returns true */
unsigned rdma_ctl_count(bool io); /* connections; io: those that will be I/O queues */
void rdma_ctl_init(const struct dp_rdma_events *events);
const struct dp_rdma_events *rdma_ctl_events(void);

/* rdma_queue.c */
extern const struct qpair_ops rdma_queue_ops;
int rdma_queue_new(struct rdma_conn *c, const uint8_t cqe[16]); /* its memory; control thread */
void rdma_queue_delete(struct rdma_conn *c);
void rdma_queue_wake(struct rdma_conn *c); /* control thread */
void rdma_queue_lost(struct rdma_conn *c, const char *reason); /* control thread */

/* rdma_cm.c */
void rdma_cm_want_tick(void);
void rdma_cm_lost(struct rdma_conn *c, const char *why);
bool rdma_cm_uses(const struct ibv_context *verbs); /* for a listener, or an anchor */

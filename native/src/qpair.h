/* SPDX-License-Identifier: BSD-3-Clause
 *
 * qpair.h: one NVMe/TCP I/O queue and its commands, on one reactor.
 *
 * The life of a request (the same as in nvmet_p2p/dataplane/inprocess/queue.py):
 *
 *     NEW -> ROOM -> DATA -> (SECOND) -> LOCKED -> BACKEND -> DONE -> FREE
 *            |       |       |           |                    its answer is queued or being sent
 *            |       |       |           waits for a fused pair on the same blocks
 *            |       |       half of a fused pair: waits for the other
 *            |       its H2C data is on the way (R2T)
 *            waits for staging memory, in host memory or in a pool
 *
 * Read and Write on a back end in memory go from NEW to DONE at once ("direct"). UPCALL: the control plane decides.
 */
#pragma once

#include <sys/socket.h>
#include <sys/uio.h>

#include "bdev.h"
#include "common.h"
#include "offload.h"
#include "pool.h"
#include "reactor.h"
#include "spec.h"

/* -- what a reactor knows of a controller -------------------------------------------------------------------------- */

struct ns_entry {
	uint32_t nsid, anagrpid;
	uint8_t ana_state;
	bool write_protected;
	uint32_t users;    /* commands past the last check */
	struct bdev *bdev; /* NULL: absent */
	struct pool *pool[POOL_USES]; /* NULL: host memory. Used where bdev_pool_allowed says so */
	bool strict;                  /* wait for room in it */
};

/* One reactor's copy of a controller's view; replaced as a whole, freed when its last user is gone. */
struct view {
	struct view *next; /* in ctrlr_r.old */
	uint64_t gen;      /* unique: an address may come again */
	uint32_t mdts_bytes, copy_formats;
	uint32_t owner; /* its host, of bytes in pools */
	uint32_t users; /* sum of ns[].users, and of `whole` */
	uint32_t whole; /* commands that use more than one namespace */
	uint32_t n;
	struct ns_entry ns[]; /* by ascending nsid */
};

struct view_msg; /* ctrlr.c */

struct ctrlr_r {
	LIST_ENTRY(ctrlr_r) link;
	uint64_t key;
	struct view *view, *old;
	struct view_msg *waiting; /* for namespaces that are gone to be unused */
};

struct ns_entry *view_find(struct view *view, uint32_t nsid);
void ctrlr_enter(struct ctrlr_r *c, struct ns_entry *ns); /* ns NULL: the whole view */
void ctrlr_leave(struct ctrlr_r *c, struct view *view, struct ns_entry *ns);
struct ctrlr_r *ctrlr_find(struct reactor *r, uint64_t key);

/* -- requests ------------------------------------------------------------------------------------------------------ */

enum req_state { REQ_FREE, REQ_NEW, REQ_ROOM, REQ_DATA, REQ_SECOND, REQ_LOCKED, REQ_BACKEND, REQ_UPCALL, REQ_DONE };

#define NO_REQ 0xFFFFu

/* Memory of the host, of a keyed SGL. */
struct remote {
	uint64_t address;
	uint32_t key;
	bool invalidate; /* the response shall invalidate the key */
};

struct io_cmd;

/* stream: a Write by R2T to a back end in memory; its data goes there block by block as it arrives, no staging. */
struct request {
	STAILQ_ENTRY(request) link; /* free list, or queue of answers */
	struct qpair *q;
	uint16_t cid, hash_next, sqhd;
	uint8_t state; /* enum req_state */
	uint8_t opc, fuse;
	bool in_hash, locked, unlocked_counted, pinned, entered, overlapping, stream;
	bool host_only;    /* whatever the view says: no pool */
	bool pool_waiting; /* REQ_ROOM, in the queue of a pool */
	bool own_buf;      /* buf is from malloc */
	uint32_t nsid, cdw10, cdw11, cdw12;
	struct remote remote; /* NVMe/RDMA: where its data is, or goes */
	void *fetching;       /* NVMe/RDMA: the transfer in progress */
	uint32_t length; /* bytes of data that travel */
	uint32_t status; /* with ST_DNR */
	uint32_t dw0;
	const struct io_cmd *cmd;
	struct view *view; /* that it is using */
	uint64_t view_gen; /* that it was checked against */
	struct ns_entry *ns;
	struct request *first, *second; /* of a fused pair, while both are in flight */
	struct xfer *xfer;

	const uint8_t *tx_data; /* C2H: sent from here ... */
	uint32_t tx_len;        /* ... this many bytes, all of them filled */
	uint32_t filled;
	uint8_t *buf; /* staging */
	struct pool_buf *pbuf, *pbuf2; /* or staging in peer memory (io_pool.c); the second is Copy's */
	uint32_t stage_bytes;
	uint8_t *heap; /* overlapping Copy */
	struct offload_job job;
	uint64_t routed[COPY_RANGES_MAX / 64]; /* Copy: ranges that are copied already, by another route */
	uint16_t ranges, route_end;
	bool passed; /* Compare, Verify: the drive has answered */

	/* the command at work */
	uint32_t step, index;
	uint64_t at, done_bytes, start_ns, chunk_at;
	uint32_t chunk, block_mask;
	struct staging_waiter waiter;
	struct range_hold hold;
	struct bdev_io io;
	struct pool_waiter pool_waiter;
};

STAILQ_HEAD(request_list, request);

/* H2C data of one command on its way: outlives its request when that is aborted. */
struct xfer {
	STAILQ_ENTRY(xfer) link; /* R2Ts are due, or free */
	struct request *rq;      /* NULL: cancelled, the data is thrown away */
	uint16_t cid;
	uint16_t open; /* R2Ts outstanding */
	uint32_t length, requested, received;
	bool listed, ddgst_error;
};

STAILQ_HEAD(xfer_list, xfer);

struct r2t {
	uint16_t tag; /* 0: free */
	uint32_t start, end;
	struct xfer *x;
};

enum ending { END_NONE, END_ORDERED, END_LOST, END_TERM, END_DISCONNECT };

/* The PDU in progress, as its checked header says. */
struct pdu {
	uint8_t stage; /* 0: nothing checked, 1: common header, 2: whole header */
	uint8_t type, flags, hlen, hd; /* hd: 4 with a header digest */
	uint16_t pdo;
	uint32_t plen, data_len, dd;
};

/*
 * What a transport does for a queue; everything else of a queue and its commands is the same. qpair_tcp_ops is NVMe/TCP,
 * rdma_queue.c NVMe/RDMA.
 */
struct qpair_ops {
	void (*placed)(struct qpair *q); /* control thread: q->r is known. May be NULL, as over and free may be */
	void (*begin)(struct qpair *q);
	void (*fetch)(struct request *rq);   /* brings rq->length bytes of the host to rq->buf, then calls io_data */
	void (*unfetch)(struct request *rq); /* the command ends; if bytes are on their way, they go nowhere */
	void (*flush)(struct qpair *q);      /* sends what there is: answers and what fetch needs */
	void (*closing)(struct qpair *q);    /* takes the next step of the end, if any is possible */
	void (*over)(struct qpair *q);       /* control thread: it has ended, its reactor may hear nothing more of it */
	void (*free)(struct qpair *q);       /* control thread: all that the transport has of it */
	/* Where SGLs are keyed: its device moves data to and from that pool by itself. NULL: of no pool. */
	bool (*reaches)(const struct qpair *q, const struct pool *pool);
};

extern const struct qpair_ops qpair_tcp_ops;

#define RX_BYTES (128u << 10)
#define TERM_PDU_MAX (TERM_HLEN + TERM_DATA_MAX)

struct qpair {
	STAILQ_ENTRY(qpair) flush_link;
	LIST_ENTRY(qpair) link;
	struct reactor *r;
	struct ctrlr_r *c;
	struct dp_queue_key key;
	const struct qpair_ops *ops;
	void *transport; /* NVMe/RDMA: its connection */
	int fd;
	bool flush_queued, hot;
	struct zc *zc;  /* zero-copy sends, qpair_zc.h; NULL: never */
	uint32_t direct_max; /* a longer Read has its data in staging memory and leaves without a copy; UINT32_MAX: none does */
	bool no_direct; /* data must not be sent from a back end's own memory, nor go there as it arrives */
	bool keyed;     /* data is described by keyed SGLs */

	/* negotiated */
	bool hdgst, ddgst, flow_control, success;
	uint16_t entries;
	uint16_t c2h_pdo; /* where the data of a C2HData begins */
	uint32_t rx_align, window, maxh2cdata, icd_max;

	/* receiving: rx[head, tail) is not parsed yet */
	uint8_t *rx;
	uint32_t rx_size, rx_asked, head, tail;
	struct pdu pdu;
	struct r2t *h2c;     /* H2CData whose data is arriving */
	uint32_t h2c_left;   /* bytes of data still to come */
	bool h2c_data, rx_armed, rx_paused, rx_full, rx_direct, rx_dead;
	uint32_t h2c_crc;
	uint8_t *orphan; /* staging memory of a cancelled transfer into which a receive is in progress */
	struct pool_buf *orphan_pbuf;
	unsigned rx_faults; /* in a row */
	struct uop rx_op;
	struct msghdr rx_msg;

	/* sending */
	struct request_list answers; /* to be encoded */
	struct request_list sending; /* their data is in the send in progress */
	struct xfer_list r2ts_due;
	uint8_t raw[TERM_PDU_MAX]; /* the Connect response at first, TermReq at the end */
	uint32_t raw_len;
	bool tx_armed, mute;
	unsigned tx_faults; /* in a row */
	struct uop tx_op;
	struct msghdr tx_msg;
	struct iovec *iov;
	uint32_t iov_max, iov_n, iov_at;
	uint8_t *arena; /* headers and digests of one send */
	uint32_t arena_max, arena_n;
	uint8_t rest[4096]; /* of a block of which a part has been sent */

	/* commands */
	struct request *reqs;
	uint16_t *hash; /* by CID; values are indexes of reqs */
	uint32_t hash_mask, n_reqs;
	struct request_list free;
	_Atomic uint32_t in_flight; /* received, not answered */
	uint32_t at_work;   /* LOCKED, BACKEND, UPCALL: must come back before the queue can go */
	uint16_t sqhd;
	enum { HALF_NONE, HALF_LIVE, HALF_DEAD } half_state;
	struct request *half; /* the last command was the first half of a fused pair */
	struct staging_waiter icd_waiter;
	uint8_t *icd_buf; /* granted for the capsule at rx[head] */
	uint32_t icd_buf_bytes;
	size_t staged, staged_max;
	size_t rescued; /* bytes of own_buf */
	struct request_list room; /* wait for the queue's own share of staging memory */

	/* transfers */
	struct xfer *xfers;
	struct r2t *r2t;
	uint32_t r2t_mask, r2ts_open;
	struct xfer_list xfers_free;
	uint16_t next_tag;
	bool tags_went_round;

	/* the end */
	enum ending ending;
	bool hurry, half_closed, shut, finished;
	struct request *disconnect;
	struct uop timer_op;
	struct __kernel_timespec timeout;
	bool timer_armed;
	char reason[128];
	void (*ended)(struct qpair *q); /* on the reactor, once, when nothing is left but memory */
	void *owner;

	volatile uint64_t *activity;
	_Atomic uint64_t commands, bytes_in, bytes_out, zc_bytes, zc_copied; /* sent without a copy, and copied after all */
	struct pool_user pool_user;
	struct iovec rx_iov[POOL_PIECES_MAX + 1];
};

/* qpair.c: life */
struct qpair *qpair_new(const struct dp_queue *config); /* control thread: all memory, no socket activity */
void qpair_free(struct qpair *q);
void qpair_begin(struct reactor *r, struct ctrlr_r *c, struct qpair *q); /* on the reactor */
void qpair_end(struct qpair *q, enum ending how, const char *reason);
void qpair_closing(struct qpair *q); /* qpair_ops.closing of NVMe/TCP */
void qpair_finish(struct qpair *q);  /* the last step on the reactor */
void qpair_timer_arm(struct qpair *q); /* bounds the end: q->hurry is set when it expires */
void qpair_timer_stop(struct qpair *q);
void qpair_drop_answers(struct qpair *q);
void qpair_fatal(struct qpair *q, uint16_t fes, uint32_t fei, const char *reason);

/* qpair_rx.c */
void qpair_rx_parse(struct qpair *q); /* all that lies in rx[head, tail) */
void qpair_rx_arm(struct qpair *q);
void qpair_rx_arm_ring(struct qpair *q);
bool qpair_rx_poll(struct qpair *q); /* a hot queue: false: nothing has come */
void qpair_rx_resume(struct qpair *q);
void qpair_rx_bytes(struct qpair *q, uint32_t count); /* count bytes have arrived where rx_arm or rx_room said */
uint8_t *qpair_rx_room(struct qpair *q, uint32_t *bytes); /* tests and fuzzers: where bytes may be put */
void xfer_start(struct request *rq);
void xfer_cancel(struct request *rq);

/* qpair_tx.c */
void qpair_flush(struct qpair *q); /* qpair_ops.flush of NVMe/TCP */
void qpair_want_flush(struct qpair *q);
void qpair_tx_done(struct reactor *r, struct uop *op, int res); /* q->tx_op; res: bytes sent, or -errno */
void qpair_answer(struct request *rq); /* encode and send it; rq->status, dw0, tx_data */
void qpair_release(struct request *rq); /* the last step of a request */
void qpair_tx_encode_r2t(struct qpair *q, const struct r2t *r2t, uint16_t tag);

/* io.c: commands. io_command: false: no room now, nothing has happened, come again (qpair_rx_resume). */
bool io_command(struct qpair *q, const uint8_t sqe[64], const uint8_t *icd, uint32_t icd_len, bool bad_digest);
void io_data(struct request *rq, bool bad_digest); /* all of a transfer is here */
void io_stream(struct request *rq, uint32_t at, const uint8_t *data, uint32_t bytes); /* see request.stream */
bool io_cancel(struct request *rq, uint32_t status);
struct request *io_find(struct qpair *q, uint16_t cid);
void io_upcall_done(struct request *rq, uint32_t status, uint32_t dw0, bool close);
void io_unstage(struct request *rq);
void io_room(struct qpair *q); /* lets those go on that waited for the queue's share of staging memory */
void io_forget(struct request *rq); /* takes it out of the hash */
void io_again(struct request *rq);  /* a Read of which nothing has been sent: once more, by way of host memory */

/* io_pool.c */
#define POOL_FAULTS_MAX 8u /* in a row: a fault in a pool replaces its memory, so the next one is of another */
void io_pool_put(struct request *rq); /* gives back what it has of pools */
bool io_pool_unsendable(struct request *rq); /* its data is lost, and nothing of it was sent: it has gone another way */
/* Its data has left: now its response can be told. *good: a pool that was found alive since. */
void io_pool_sent(struct request *rq, struct pool **good);
void io_pool_fill(const struct pool_buf *buf, uint32_t at, const uint8_t *from, uint32_t bytes);
/* The memory from byte `at` on, `bytes` of it: number of entries written to iov, POOL_PIECES_MAX at most. */
unsigned io_pool_pieces(const struct pool_buf *buf, uint32_t at, uint32_t bytes, struct iovec *iov);

/* upcall.c */
struct upcall {
	LIST_ENTRY(upcall) link;
	uint64_t token;
	struct request *rq;
};
void upcall_send(struct request *rq, const uint8_t sqe[64], const uint8_t *data, uint32_t len);
void upcall_drop(struct request *rq); /* the answer, if it comes, finds nothing */

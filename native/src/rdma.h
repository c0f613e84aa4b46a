/* SPDX-License-Identifier: BSD-3-Clause
 *
 * rdma.h: the border of NVMe/RDMA for the control thread: listeners, and connections until they are I/O queues. Capsules
 * of a connection go up as events until the control plane has accepted its Connect and calls dp_rdma_adopt; those of an
 * admin queue always do. Built without librdmacm (rdma_absent.c) everything is refused with -EOPNOTSUPP.
 *
 * A connection has an identifier that is never used again; calls that name one which has ended do nothing.
 */
#pragma once

#include <jansson.h>

#include "engine.h"

#define RDMA_FETCH_MAX (60u << 10) /* bytes of one dp_rdma_fetch or piece of a dp_rdma_reply, a message's limit */
#define RDMA_REPLY_MAX 65488u

struct dp_rdma_connected {
	uint64_t conn;
	uint8_t adrfam; /* as in the specification: 1 IPv4, 2 IPv6 */
	uint8_t local[16], peer[16];
	uint16_t local_port, peer_port;
	uint16_t qid, hsqsize, hrqsize, cntlid; /* as the host's private data says */
};

struct dp_rdma_events {
	void (*connected)(const struct dp_rdma_connected *connected);
	void (*capsule)(uint64_t conn, const uint8_t sqe[64], const void *icd, uint32_t icd_len);
	void (*data)(uint64_t conn, uint16_t cid, int rc, const void *data, uint32_t len);
	void (*closed)(uint64_t conn, const char *reason);
};

struct dp_rdma_listen {
	const char *traddr, *trsvcid, *adrfam;
	uint32_t max_queue_depth, max_aq_depth; /* entries */
	uint32_t in_capsule_data_size;          /* bytes */
	uint32_t max_srq_depth;                 /* entries of a device's shared receive queue */
	bool no_srq;
	uint32_t backlog;
};

void dp_rdma_init(const struct dp_rdma_events *events);
bool dp_rdma_built(void);
/* -EOPNOTSUPP, -ENODEV: no RDMA device has the address, -EADDRINUSE, -EEXIST ... */
int dp_rdma_listen(const struct dp_rdma_listen *listen, char err[DP_ERR_MAX]);
int dp_rdma_unlisten(const char *traddr, const char *trsvcid, const char *adrfam); /* -ENOENT; connections go on */
json_t *dp_rdma_devices(void);
json_t *dp_rdma_info(void);
json_t *dp_rdma_pool(const char *name); /* of each device in use: does it reach that pool's memory, or why not */

/* H2C data of the newest unanswered capsule with that CID: events.data follows. */
void dp_rdma_fetch(uint64_t conn, uint16_t cid, uint32_t length);

#define DP_RDMA_REPLY_CLOSE 1u /* the connection ends when the response has left */
#define DP_RDMA_REPLY_LAST 2u  /* the response follows the data; without: more data comes */
#define DP_RDMA_REPLY_DROP 4u  /* no response; the oldest capsule with that CID, the others mean the newest */
void dp_rdma_reply(uint64_t conn, const uint8_t cqe[16], uint32_t flags, uint32_t offset, const void *data, uint32_t len);
void dp_rdma_close(uint64_t conn);

/* The connection becomes the I/O queue `queue` (ops, transport, fd are set here); cqe: the answer to its Connect. */
typedef void (*dp_rdma_adopted_fn)(uint64_t token, int rc, const char *err);
void dp_rdma_adopt(uint64_t conn, const struct dp_queue *queue, const uint8_t cqe[16], uint64_t token,
		   dp_rdma_adopted_fn done);

void dp_rdma_reset(void); /* no listener and no connection that is not an I/O queue is left */
void dp_rdma_fini(void);  /* after everything has ended */

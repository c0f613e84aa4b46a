/* SPDX-License-Identifier: BSD-3-Clause
 *
 * channel_frame.h: the messages of the capsule channel as they are on the socket (docs/capsule-channel.md), and the one
 * place where a received message is checked. One message is one SOCK_SEQPACKET packet; integers are little endian.
 */
#pragma once

#include <assert.h>
#include <stddef.h>
#include <stdint.h>

#define CHANNEL_MAGIC 0x4332504Eu /* "NP2C" */
#define CHANNEL_VERSION 1
#define CHANNEL_BYTES_MAX 65536
#define CHANNEL_RESPONSE_MAX 4096 /* the Connect response PDU has at most 28 bytes */

_Static_assert(__BYTE_ORDER__ == __ORDER_LITTLE_ENDIAN__, "the structures below are used as they are");

enum channel_type {
	CHANNEL_HELLO = 1,
	CHANNEL_ADOPT = 2,
	CHANNEL_ADOPTED = 3,
	CHANNEL_QUEUE_CLOSED = 4,
	CHANNEL_UPCALL = 5,
	CHANNEL_UPCALL_DONE = 6,
	CHANNEL_BDEV_CHANGED = 7,
	CHANNEL_POOL_LOST = 8, /* no fixed part: the pool's name, a zero byte, and why */
	CHANNEL_RDMA_CONNECTED = 16,
	CHANNEL_RDMA_CAPSULE = 17,
	CHANNEL_RDMA_FETCH = 18,
	CHANNEL_RDMA_DATA = 19,
	CHANNEL_RDMA_REPLY = 20,
	CHANNEL_RDMA_ADOPT = 21,
	CHANNEL_RDMA_CLOSE = 22,
	CHANNEL_RDMA_CLOSED = 23,
};

struct channel_header {
	uint32_t magic;
	uint16_t version;
	uint16_t type;
	uint32_t length; /* of the whole message */
	uint32_t reserved;
} __attribute__((packed));

#define CHANNEL_FEATURE_RESET 1u /* from the control plane: forget all controllers before you answer */

struct channel_hello { /* then, from the data plane: the path of its JSON-RPC socket */
	uint32_t features;
	uint32_t pid;
} __attribute__((packed));

#define CHANNEL_ADOPT_SQ_FLOW_CONTROL 1u
#define CHANNEL_ADOPT_C2H_SUCCESS 2u
#define CHANNEL_ADOPT_HDGST 4u
#define CHANNEL_ADOPT_DDGST 8u

struct channel_adopt { /* then response_len bytes; with one descriptor */
	uint64_t token;
	uint64_t key;
	uint16_t qid;
	uint16_t sqsize;
	uint16_t sqhd;
	uint16_t flags;
	uint8_t hpda;
	uint8_t cpda;
	uint16_t reserved;
	uint32_t maxr2t;
	uint32_t maxh2cdata;
	uint32_t icd_max;
	uint32_t slot;
	char peer[64]; /* zero terminated */
	uint32_t response_len;
} __attribute__((packed));

struct channel_adopted { /* then a text */
	uint64_t token;
	int32_t rc;
} __attribute__((packed));

struct channel_queue_closed { /* then a text */
	uint64_t key;
	uint16_t qid;
	uint16_t reserved;
} __attribute__((packed));

struct channel_upcall { /* then data_len bytes */
	uint64_t token;
	uint64_t key;
	uint16_t qid;
	uint16_t reserved;
	uint32_t data_len;
	uint8_t sqe[64];
} __attribute__((packed));

#define CHANNEL_DONE_DNR 1u
#define CHANNEL_DONE_CLOSE 2u

struct channel_upcall_done {
	uint64_t token;
	uint16_t status;
	uint16_t flags;
	uint32_t dw0;
} __attribute__((packed));

struct channel_bdev_changed { /* then the name */
	uint32_t present;
} __attribute__((packed));

/* NVMe/RDMA: connections until they are I/O queues. conn: chosen by the data plane, never used again. */
struct channel_rdma_connected {
	uint64_t conn;
	uint16_t port; /* the listener's */
	uint8_t adrfam;
	uint8_t reserved;
	uint8_t local[16];
	uint8_t peer[16];
	uint16_t peer_port;
	uint16_t qid, hsqsize, hrqsize, cntlid; /* of the host's private data */
} __attribute__((packed));

struct channel_rdma_capsule { /* then icd_len bytes */
	uint64_t conn;
	uint8_t sqe[64];
	uint32_t icd_len;
} __attribute__((packed));

struct channel_rdma_fetch { /* of the newest unanswered capsule with that CID */
	uint64_t conn;
	uint16_t cid;
	uint16_t reserved;
	uint32_t length;
} __attribute__((packed));

struct channel_rdma_data { /* then the data, with rc 0 */
	uint64_t conn;
	uint16_t cid;
	int16_t rc;
} __attribute__((packed));

#define CHANNEL_RDMA_REPLY_FLAGS 7u /* DP_RDMA_REPLY_* */

struct channel_rdma_reply { /* then data for the host at offset of its SGL */
	uint64_t conn;
	uint8_t cqe[16];
	uint16_t flags;
	uint16_t reserved;
	uint32_t offset;
} __attribute__((packed));

struct channel_rdma_adopt { /* answered by ADOPTED */
	uint64_t token;
	uint64_t key;
	uint64_t conn;
	uint16_t qid;
	uint16_t sqsize;
	uint16_t sqhd;
	uint16_t flags; /* CHANNEL_ADOPT_SQ_FLOW_CONTROL */
	uint32_t icd_max;
	uint32_t slot;
	uint8_t cqe[16]; /* the answer to Connect */
	char peer[64];   /* zero terminated */
} __attribute__((packed));

struct channel_rdma_conn { /* CLOSE; CLOSED: then a text */
	uint64_t conn;
} __attribute__((packed));

_Static_assert(sizeof(struct channel_rdma_connected) == 54, "");
_Static_assert(sizeof(struct channel_rdma_capsule) == 76, "");
_Static_assert(sizeof(struct channel_rdma_fetch) == 16, "");
_Static_assert(sizeof(struct channel_rdma_data) == 12, "");
_Static_assert(sizeof(struct channel_rdma_reply) == 32, "");
_Static_assert(sizeof(struct channel_rdma_adopt) == 120, "");
_Static_assert(sizeof(struct channel_header) == 16, "");
_Static_assert(sizeof(struct channel_hello) == 8, "");
_Static_assert(sizeof(struct channel_adopt) == 112, "");
_Static_assert(sizeof(struct channel_adopted) == 12, "");
_Static_assert(sizeof(struct channel_queue_closed) == 12, "");
_Static_assert(sizeof(struct channel_upcall) == 88, "");
_Static_assert(sizeof(struct channel_upcall_done) == 16, "");

/* A message from the control plane that has passed every check. Pointers are into the packet. */
struct channel_message {
	enum channel_type type;
	union {
		struct channel_hello hello;
		struct channel_adopt adopt;
		struct channel_upcall_done done;
		struct channel_rdma_fetch fetch;
		struct channel_rdma_reply reply;
		struct channel_rdma_adopt rdma_adopt;
		struct channel_rdma_conn close;
	} u;
	const void *tail;
	size_t tail_len;
};

/*
 * Checks a packet that came with nfds descriptors. 0, -EPROTONOSUPPORT (another version: answer with HELLO, then close)
 * or -EPROTO; *why says what is wrong, and *message is only valid with 0.
 */
int channel_check(const void *packet, size_t len, unsigned nfds, struct channel_message *message, const char **why);

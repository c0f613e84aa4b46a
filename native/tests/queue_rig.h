/* SPDX-License-Identifier: BSD-3-Clause
 *
 * queue_rig.h: one queue on one reactor without ring, socket or thread: bytes go in, bytes come out. Namespaces: 1 malloc,
 * 2 null, 3 malloc behind an error bdev (so through staging), all of 512 byte blocks. With a pool also 4, a drive that does
 * its work when it is told to, and 5, another one behind an error bdev; their payload rests in the pool.
 */
#pragma once

#include "qpair.h"

#define RIG_BLOCKS 4096u
#define RIG_NS 5u
#define RIG_BDEVS 7u

struct rig_options {
	bool hdgst, ddgst, flow_control, c2h_success;
	uint8_t hpda, cpda;
	uint32_t maxr2t, maxh2cdata;
	uint16_t sqsize;
	size_t pool_bytes; /* host memory; 0: 2 MiB */
	size_t peer_bytes; /* of the pool; 0: none */
	bool strict;
};

struct rig {
	struct reactor r;
	struct qpair *q;
	struct bdev *bdevs[RIG_BDEVS]; /* as namespaces 1 to 5; the sixth is below the third, the last below the fifth */
	struct pool *pool;
	uint32_t owner;           /* of the views to come */
	bool strict;              /* the same */
	bool hold;                /* drives keep reads and writes until rig_drive() */
	struct bdev_io_list held;
	unsigned n_held;
	void (*on_send)(void);    /* before each */
	int send_error;           /* of the next send, once */
	uint8_t out[8u << 20];
	size_t out_len;
	size_t send_most; /* the "socket" takes so many bytes at a time; 0: all */
	unsigned posted, upcalls, ended;
	uint64_t token; /* of the last upcall */
};

extern struct rig rig;

void rig_open(const struct rig_options *options);
void rig_close(void); /* ends the queue; aborts unless everything has been given back */
void rig_view(unsigned namespaces, uint8_t ana_state); /* bit i: namespace i + 1 */
void rig_feed(const void *bytes, size_t len);           /* in one piece, as far as there is room */
void rig_turn(void);                                    /* what a reactor does after events */
void rig_drive(int rc); /* the oldest operation that is held: done (0), or failed without having moved anything */

uint8_t *rig_medium(unsigned nsid); /* what is on drive 4 or 5 */

/* PDUs of a host; they return their length. sqe: 64 bytes. */
size_t rig_capsule(uint8_t *pdu, const uint8_t *sqe, const void *icd, uint32_t icd_len);
size_t rig_h2c(uint8_t *pdu, uint16_t cid, uint16_t tag, uint32_t offset, const void *data, uint32_t len, bool last);
void rig_sqe(uint8_t *sqe, uint8_t opc, uint16_t cid, uint32_t nsid, uint64_t slba, uint16_t nlb0, uint32_t sgl_len,
	     uint8_t sgl_type);

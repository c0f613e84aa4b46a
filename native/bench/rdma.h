/* SPDX-License-Identifier: BSD-3-Clause
 *
 * rdma.h: NVMe/RDMA for the load generator (NVM Express RDMA Transport 1.1). Built without librdmacm (rdma_absent.c),
 * --trtype rdma is refused. The first three are the twins of conn.c's, and block; the others serve an I/O queue.
 */
#pragma once

#include "bench.h"

struct queue;
struct rdma;

bool rdma_built(void);
int rdma_open(struct conn *conn, uint16_t qid, uint16_t sqsize);
int rdma_command(struct conn *conn, uint8_t sqe[64], const void *out, uint32_t out_len, void *in, uint32_t in_len,
		 uint8_t cqe[16], const char *what);
void rdma_close(struct conn *conn);

int rdma_register(struct queue *queue);              /* the memory of its data */
int rdma_send(struct queue *queue, uint16_t cid);    /* a command, with the next rdma_flush at the latest */
int rdma_flush(struct queue *queue);
int rdma_receive(struct queue *queue, uint64_t now); /* what has completed; 1: something had, 0: nothing, -1: over */
int rdma_arm(struct queue *queue);                   /* rdma_fd() becomes readable with the next completion */
int rdma_fd(const struct conn *conn);
void rdma_woken(struct queue *queue);                /* it is readable */

/* SPDX-License-Identifier: BSD-3-Clause
 *
 * rdma_absent.c: rdma.h without librdmacm and libibverbs: options.c refuses --trtype rdma, so nothing else is called.
 */
#include "rdma.h"

bool rdma_built(void)
{
	return false;
}

int rdma_open(struct conn *conn, uint16_t qid, uint16_t sqsize)
{
	return -1;
}

int rdma_command(struct conn *conn, uint8_t sqe[64], const void *out, uint32_t out_len, void *in, uint32_t in_len,
		 uint8_t cqe[16], const char *what)
{
	return -1;
}

void rdma_close(struct conn *conn)
{
}

int rdma_register(struct queue *queue)
{
	return -1;
}

int rdma_send(struct queue *queue, uint16_t cid)
{
	return -1;
}

int rdma_flush(struct queue *queue)
{
	return -1;
}

int rdma_receive(struct queue *queue, uint64_t now)
{
	return -1;
}

int rdma_arm(struct queue *queue)
{
	return -1;
}

int rdma_fd(const struct conn *conn)
{
	return -1;
}

void rdma_woken(struct queue *queue)
{
}

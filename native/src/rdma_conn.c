/* SPDX-License-Identifier: BSD-3-Clause
 *
 * rdma_conn.c: a queue pair, its completion queue and its memory for capsules. No decision about NVMe is made here.
 */
#include "rdma_priv.h"

#include <errno.h>
#include <fcntl.h>
#include <stdlib.h>
#include <unistd.h>

#define CQE_BYTES 16u
#define WC_BATCH 32
#define SPARE_REQS 8u /* as qpair.c's */

/* -- memory for capsules */

int rdma_rx_init(struct rdma_rx *rx, struct rdma_dev *dev, uint32_t slots, uint32_t icd_max, size_t tail)
{
	rx->slots = slots;
	rx->slot_bytes = (64 + icd_max + 63) & ~63u;
	rx->bytes = ((size_t)slots * rx->slot_bytes + tail + 4095) & ~(size_t)4095;
	rx->mem = aligned_alloc(4096, rx->bytes);
	if (!rx->mem)
		return -ENOMEM;
	memset(rx->mem, 0, rx->bytes);
	rx->tail = rx->mem + (size_t)slots * rx->slot_bytes;
	rx->mr = ibv_reg_mr(dev->pd, rx->mem, rx->bytes, IBV_ACCESS_LOCAL_WRITE);
	if (rx->mr)
		return 0;
	free(rx->mem);
	rx->mem = NULL;
	return -(errno ? errno : ENOMEM);
}

void rdma_rx_fini(struct rdma_rx *rx)
{
	if (rx->mr)
		ibv_dereg_mr(rx->mr);
	free(rx->mem);
	rx->mr = NULL;
	rx->mem = NULL;
}

int rdma_rx_post(struct rdma_conn *c, uint32_t slot)
{
	struct ibv_sge sge = { (uintptr_t)rdma_rx_slot(c, slot), 64 + c->icd_max, c->rx->mr->lkey };
	struct ibv_recv_wr wr = { .wr_id = RDMA_WR(RDMA_WR_RECV, slot), .sg_list = &sge, .num_sge = 1 }, *bad;

	if (c->rx->srq)
		sge.length = c->rx->slot_bytes;
	return -(c->rx->srq ? ibv_post_srq_recv(c->rx->srq, &wr, &bad) : ibv_post_recv(c->qp, &wr, &bad));
}

/* -- life */

static int make_qp(struct rdma_conn *c, uint32_t slots)
{
	struct ibv_qp_init_attr attr = { .qp_context = c,
					 .send_cq = c->cq,
					 .recv_cq = c->cq,
					 .srq = c->rx->srq,
					 .qp_type = IBV_QPT_RC,
					 .cap = { .max_send_wr = c->sq_max,
						  .max_recv_wr = c->rx->srq ? 0 : slots,
						  .max_send_sge = 1,
						  .max_recv_sge = 1,
						  .max_inline_data = CQE_BYTES } };

	if (rdma_create_qp(c->id, c->dev->pd, &attr) < 0) {
		attr.cap.max_inline_data = 0;
		attr.cap.max_send_wr = c->sq_max;
		attr.cap.max_recv_wr = c->rx->srq ? 0 : slots;
		if (rdma_create_qp(c->id, c->dev->pd, &attr) < 0)
			return -(errno ? errno : ENOMEM);
	}
	c->qp = c->id->qp;
	c->inline_cqe = attr.cap.max_inline_data >= CQE_BYTES;
	return 0;
}

static int make_cq(struct rdma_conn *c, uint32_t slots)
{
	uint32_t cqes = c->sq_max + slots + 1;

	c->channel = ibv_create_comp_channel(c->dev->verbs);
	if (!c->channel)
		return -errno;
	if (fcntl(c->channel->fd, F_SETFL, O_NONBLOCK) < 0)
		return -errno;
	c->cq = ibv_create_cq(c->dev->verbs, (int)cqes, c, c->channel, 0);
	if (!c->cq || ibv_req_notify_cq(c->cq, 0))
		return -(errno ? errno : ENOMEM);
	return 0;
}

static int make_memory(struct rdma_conn *c, const struct rdma_conn_params *params, uint32_t slots)
{
	size_t cqes = (size_t)CQE_BYTES * (c->entries + SPARE_REQS + 1u);
	int rc;

	c->rx = params->srq_depth ? rdma_dev_srq(c->dev, params->srq_depth, params->icd_max) : NULL;
	/* even with shared receive memory the responses are our own */
	rc = rdma_rx_init(&c->own_rx, c->dev, c->rx ? 0 : slots, params->icd_max, cqes);
	if (rc < 0)
		return rc;
	if (!c->rx)
		c->rx = &c->own_rx;
	c->cqes = c->own_rx.tail;
	c->cqes_lkey = c->own_rx.mr->lkey;
	return 0;
}

static int build(struct rdma_conn *c, const struct rdma_conn_params *params)
{
	const struct ibv_device_attr *attr = &c->dev->attr;
	uint32_t slots = c->entries + 2u;
	int rc;

	c->sq_max = 3u * (c->entries + SPARE_REQS);
	if (c->sq_max < 2 * RDMA_BATCH)
		c->sq_max = 2 * RDMA_BATCH;
	c->sq_max = min_u32(c->sq_max, (uint32_t)attr->max_qp_wr);
	if (c->sq_max < RDMA_BATCH || (uint64_t)c->max_message * (RDMA_BATCH - 1) < TRANSFER_BYTES_MAX)
		return -EOPNOTSUPP; /* a command's data and response are posted together */
	if (slots > (uint32_t)attr->max_qp_wr || c->sq_max + slots + 1 > (uint32_t)attr->max_cqe)
		return -E2BIG;
	rc = make_memory(c, params, slots);
	if (rc == 0)
		rc = make_cq(c, c->rx->srq ? c->entries + 2u : slots);
	if (rc == 0)
		rc = make_qp(c, slots);
	for (uint32_t i = 0; rc == 0 && !c->rx->srq && i < slots; i++)
		rc = rdma_rx_post(c, i);
	return rc;
}

struct rdma_conn *rdma_conn_new(struct rdma_cm_id *id, const struct rdma_conn_params *params, int *rc)
{
	static uint64_t counter;
	struct rdma_conn *c = calloc(1, sizeof(*c));
	struct ibv_port_attr port = { 0 };

	*rc = -ENOMEM;
	if (!c)
		return NULL;
	c->dev = rdma_dev_get(id->verbs, rc);
	if (!c->dev) {
		free(c);
		return NULL;
	}
	LIST_INSERT_HEAD(&c->dev->conns, c, dev_link);
	c->count = rdma_count(c->dev, NULL);
	c->id = id;
	c->ident = ++counter;
	c->qid = params->qid;
	c->entries = params->entries;
	c->icd_max = params->icd_max;
	c->ord = params->ord;
	c->can_invalidate = c->dev->attr.device_cap_flags & IBV_DEVICE_MEM_MGT_EXTENSIONS;
	c->max_message = 1u << 30;
	if (ibv_query_port(id->verbs, id->port_num, &port) == 0 && port.max_msg_sz)
		c->max_message = port.max_msg_sz & ~511u;
	*rc = build(c, params);
	if (*rc == 0)
		*rc = rdma_ctl_begin(c);
	if (*rc < 0) {
		c->id = NULL; /* the caller's */
		if (c->qp)
			rdma_destroy_qp(id);
		c->qp = NULL;
		rdma_conn_free(c);
		return NULL;
	}
	id->context = c;
	return c;
}

/* Slots of a shared queue that have been filled for us go back to it. */
static void give_back(struct rdma_conn *c, const struct ibv_wc *wc)
{
	if (RDMA_WR_KIND(wc->wr_id) == RDMA_WR_RECV && c->rx->srq)
		rdma_rx_post(c, RDMA_WR_INDEX(wc->wr_id));
}

void rdma_conn_free(struct rdma_conn *c)
{
	if (c->cq && c->rx && c->rx->srq)
		rdma_conn_poll(c, give_back);
	if (c->qp)
		rdma_destroy_qp(c->id);
	if (c->cq) {
		rdma_conn_ack(c);
		ibv_destroy_cq(c->cq);
	}
	if (c->channel)
		ibv_destroy_comp_channel(c->channel);
	rdma_rx_fini(&c->own_rx);
	rdma_ctl_delete(c);
	rdma_queue_delete(c);
	LIST_REMOVE(c, dev_link);
	rdma_dev_put(c->dev);
	if (c->id)
		rdma_destroy_id(c->id);
	rdma_dev_settle();
	free(c);
}

/* -- completions */

unsigned rdma_conn_poll(struct rdma_conn *c, rdma_wc_fn fn)
{
	struct rdma_counters *count = c->count;
	struct ibv_wc wc[WC_BATCH];
	unsigned total = 0;
	int n;

	do {
		n = ibv_poll_cq(c->cq, WC_BATCH, wc);
		for (int i = 0; i < n; i++)
			fn(c, &wc[i]);
		total += n > 0 ? (unsigned)n : 0;
	} while (n == WC_BATCH);
	counter_add(&count->polls, 1);
	counter_add(total ? &count->completions : &count->idle_polls, total ? total : 1);
	return total;
}

void rdma_conn_ack(struct rdma_conn *c)
{
	struct ibv_cq *cq;
	unsigned events = 0;
	void *context;

	while (ibv_get_cq_event(c->channel, &cq, &context) == 0)
		events++;
	if (events)
		ibv_ack_cq_events(c->cq, events);
}

void rdma_conn_error(struct rdma_conn *c)
{
	struct ibv_qp_attr attr = { .qp_state = IBV_QPS_ERR };

	if (c->qp)
		ibv_modify_qp(c->qp, &attr, IBV_QP_STATE);
}

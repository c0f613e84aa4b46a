/* SPDX-License-Identifier: BSD-3-Clause
 *
 * rdma.c: a queue over NVMe/RDMA, which is a reliable connection of its own with its completion queue. Data has keyed SGLs
 * into memory that is registered once; Writes that fit go in the capsule. The target is not asked to invalidate keys.
 */
#include "rdma.h"

#include <errno.h>
#include <fcntl.h>
#include <poll.h>
#include <rdma/rdma_cma.h>
#include <stdio.h>
#include <stdlib.h>

#include "queue.h"

#define CQE_LEN 16u
#define SQE_LEN 64u
#define BOUNCE_LEN 4096u /* of a blocking command */
#define REQUEST_LEN 32u
#define BATCH 32u
#define KEYED 0x40u /* SGL identifier: keyed data block, address; without invalidation */
#define WR_SEND (1ull << 32)
#define WR_RECV (2ull << 32)
#define MSEC 1000000u
#define CM_INVALID_SERVICE 8 /* InfiniBand 12.6.7.2 */

struct rdma {
	struct rdma_event_channel *events;
	struct rdma_cm_id *id;
	struct ibv_comp_channel *channel;
	struct ibv_cq *cq;
	struct ibv_mr *own_mr, *data_mr, *payload_mr;
	uint8_t *own; /* SQEs, then CQEs, then the bounce buffer */
	uint32_t entries;
	uint16_t qid;
	bool connected;
	struct ibv_send_wr wrs[BATCH]; /* not posted yet */
	struct ibv_sge sges[BATCH][2];
	uint32_t waiting;
};

bool rdma_built(void)
{
	return true;
}

static uint8_t *sqe_of(const struct rdma *r, uint32_t slot)
{
	return r->own + (size_t)slot * SQE_LEN;
}

static uint8_t *cqe_of(const struct rdma *r, uint32_t slot)
{
	return r->own + (size_t)r->entries * SQE_LEN + (size_t)slot * CQE_LEN;
}

static uint8_t *bounce_of(const struct rdma *r)
{
	return r->own + (size_t)r->entries * (SQE_LEN + CQE_LEN);
}

static void keyed(uint8_t *sqe, const void *data, uint32_t len, uint32_t key)
{
	put64(sqe + 24, (uintptr_t)data);
	put32(sqe + 32, len);
	put32(sqe + 35, key);
	sqe[39] = KEYED;
}

/* -- connection ---------------------------------------------------------------------------------------------------- */

static const char *refusal(const struct rdma_cm_event *event)
{
	static const char *const NAMES[] = {"", "Invalid Private Data Length", "Invalid RECFMT", "Invalid QID", "Invalid HSQSIZE",
					    "Invalid HRQSIZE", "No Resources", "Invalid IRD", "Invalid ORD", "Invalid CNTLID"};
	const uint8_t *data = event->param.conn.private_data;
	if (event->status == CM_INVALID_SERVICE)
		return "nobody listens there";
	uint16_t status = data != NULL && event->param.conn.private_data_len >= 4 ? get16(data + 2) : 0;
	return status > 0 && status < sizeof(NAMES) / sizeof(NAMES[0]) ? NAMES[status] : "no reason that NVMe/RDMA has";
}

/* Waits for that event of the connection manager; `answer`: the first bytes of its private data. */
static int wait_event(struct rdma *r, enum rdma_cm_event_type wanted, uint8_t answer[4])
{
	struct pollfd fd = {.fd = r->events->fd, .events = POLLIN};
	struct rdma_cm_event *event;
	int rc = 0;
	if (poll(&fd, 1, (int)(bench.opt.timeout_ns / MSEC)) != 1)
		return bench_fail(EXIT_RUN_FAILED, "connect to %s:%s: no answer in time", bench.opt.traddr, bench.opt.trsvcid);
	if (rdma_get_cm_event(r->events, &event))
		return bench_fail(EXIT_RUN_FAILED, "rdma_get_cm_event: %m");
	if (event->event == RDMA_CM_EVENT_REJECTED)
		rc = bench_fail(EXIT_RUN_FAILED, "connect to %s:%s, queue %u: rejected, reason %d: %s", bench.opt.traddr,
				bench.opt.trsvcid, r->qid, event->status, refusal(event));
	else if (event->event != wanted)
		rc = bench_fail(EXIT_RUN_FAILED, "connect to %s:%s: %s (%d)", bench.opt.traddr, bench.opt.trsvcid,
				rdma_event_str(event->event), event->status);
	else if (answer != NULL && event->param.conn.private_data_len >= 4)
		memcpy(answer, event->param.conn.private_data, 4);
	rdma_ack_cm_event(event);
	return rc;
}

static int resolve(struct rdma *r)
{
	struct rdma_addrinfo hints = {.ai_port_space = RDMA_PS_TCP}, *found = NULL;
	int limit = (int)(bench.opt.timeout_ns / MSEC);
	if (rdma_getaddrinfo(bench.opt.traddr, bench.opt.trsvcid, &hints, &found) || found == NULL)
		return bench_fail(EXIT_RUN_FAILED, "%s:%s: %m", bench.opt.traddr, bench.opt.trsvcid);
	int rc = rdma_resolve_addr(r->id, NULL, found->ai_dst_addr, limit);
	rdma_freeaddrinfo(found);
	if (rc)
		return bench_fail(EXIT_RUN_FAILED, "%s: %m", bench.opt.traddr);
	if (wait_event(r, RDMA_CM_EVENT_ADDR_RESOLVED, NULL))
		return -1;
	if (rdma_resolve_route(r->id, limit))
		return bench_fail(EXIT_RUN_FAILED, "route to %s: %m", bench.opt.traddr);
	return wait_event(r, RDMA_CM_EVENT_ROUTE_RESOLVED, NULL);
}

static int post_recv(struct rdma *r, uint32_t slot)
{
	struct ibv_sge sge = {(uintptr_t)cqe_of(r, slot), CQE_LEN, r->own_mr->lkey};
	struct ibv_recv_wr wr = {.wr_id = WR_RECV | slot, .sg_list = &sge, .num_sge = 1}, *bad;
	if (ibv_post_recv(r->id->qp, &wr, &bad))
		return bench_fail(EXIT_RUN_FAILED, "queue %u: ibv_post_recv: %m", r->qid);
	return 0;
}

static int make_queue(struct rdma *r)
{
	size_t bytes = (size_t)r->entries * (SQE_LEN + CQE_LEN) + BOUNCE_LEN;
	struct ibv_qp_init_attr attr = {.qp_type = IBV_QPT_RC};
	r->own = aligned_alloc(4096, (bytes + 4095) & ~(size_t)4095);
	r->channel = ibv_create_comp_channel(r->id->verbs);
	if (r->own == NULL || r->channel == NULL || fcntl(r->channel->fd, F_SETFL, O_NONBLOCK))
		return bench_fail(EXIT_RUN_FAILED, "queue %u: %m", r->qid);
	memset(r->own, 0, bytes);
	r->cq = ibv_create_cq(r->id->verbs, (int)(2 * r->entries), NULL, r->channel, 0);
	if (r->cq == NULL)
		return bench_fail(EXIT_RUN_FAILED, "queue %u: a completion queue of %u entries: %m", r->qid, 2 * r->entries);
	attr.send_cq = attr.recv_cq = r->cq;
	attr.cap = (struct ibv_qp_cap){
		.max_send_wr = r->entries, .max_recv_wr = r->entries, .max_send_sge = 2, .max_recv_sge = 1};
	if (rdma_create_qp(r->id, NULL, &attr))
		return bench_fail(EXIT_RUN_FAILED, "queue %u: a queue pair of %u entries: %m", r->qid, r->entries);
	r->own_mr = ibv_reg_mr(r->id->pd, r->own, bytes,
			       IBV_ACCESS_LOCAL_WRITE | IBV_ACCESS_REMOTE_READ | IBV_ACCESS_REMOTE_WRITE);
	if (r->own_mr == NULL)
		return bench_fail(EXIT_RUN_FAILED, "queue %u: ibv_reg_mr: %m (is the limit of locked memory too low?)", r->qid);
	for (uint32_t i = 0; i < r->entries; i++)
		if (post_recv(r, i))
			return -1;
	return 0;
}

static int request(struct rdma *r, uint16_t sqsize)
{
	uint8_t data[REQUEST_LEN] = {0}, answer[4] = {0xFF, 0xFF};
	struct ibv_device_attr attr;
	struct rdma_conn_param param = {.private_data = data, .private_data_len = REQUEST_LEN, .flow_control = 1,
					.retry_count = 7, .rnr_retry_count = 7};
	if (ibv_query_device(r->id->verbs, &attr))
		return bench_fail(EXIT_RUN_FAILED, "ibv_query_device: %m");
	param.responder_resources = attr.max_qp_rd_atom > 255 ? 255 : (uint8_t)attr.max_qp_rd_atom;
	put16(data + 2, r->qid);
	put16(data + 4, (uint16_t)r->entries);
	put16(data + 6, sqsize);
	put16(data + 8, r->qid ? bench.target.cntlid : 0);
	if (rdma_connect(r->id, &param))
		return bench_fail(EXIT_RUN_FAILED, "connect to %s:%s: %m", bench.opt.traddr, bench.opt.trsvcid);
	if (wait_event(r, RDMA_CM_EVENT_ESTABLISHED, answer))
		return -1;
	r->connected = true;
	if (get16(answer) != 0 || get16(answer + 2) < sqsize)
		return bench_fail(EXIT_RUN_FAILED, "queue %u of %u entries accepted with RECFMT %u, CRQSIZE %u", r->qid,
				  r->entries, get16(answer), get16(answer + 2));
	return 0;
}

int rdma_open(struct conn *conn, uint16_t qid, uint16_t sqsize)
{
	struct rdma *r = calloc(1, sizeof(*r));
	*conn = (struct conn){.fd = -1, .rdma = r};
	if (r == NULL)
		return bench_fail(EXIT_RUN_FAILED, "no memory");
	r->qid = qid;
	r->entries = sqsize + 1u;
	r->events = rdma_create_event_channel();
	if (r->events == NULL || rdma_create_id(r->events, &r->id, NULL, RDMA_PS_TCP))
		bench_fail(EXIT_RUN_FAILED, "no RDMA device, or the kernel's rdma_ucm is not loaded: %m");
	else if (resolve(r) == 0 && make_queue(r) == 0 && request(r, sqsize) == 0)
		conn->fd = r->events->fd;
	if (conn->fd >= 0)
		return 0;
	rdma_close(conn);
	return -1;
}

static void forget(struct ibv_mr *mr)
{
	if (mr != NULL)
		ibv_dereg_mr(mr);
}

void rdma_close(struct conn *conn)
{
	struct rdma *r = conn->rdma;
	if (r == NULL)
		return;
	if (r->connected)
		rdma_disconnect(r->id);
	if (r->id != NULL && r->id->qp != NULL)
		rdma_destroy_qp(r->id);
	forget(r->own_mr);
	forget(r->data_mr);
	forget(r->payload_mr);
	if (r->cq != NULL)
		ibv_destroy_cq(r->cq);
	if (r->channel != NULL)
		ibv_destroy_comp_channel(r->channel);
	if (r->id != NULL)
		rdma_destroy_id(r->id);
	if (r->events != NULL)
		rdma_destroy_event_channel(r->events);
	free(r->own);
	free(r);
	*conn = (struct conn){.fd = -1};
}

/* -- one command at a time ----------------------------------------------------------------------------------------- */

static void take_events(struct rdma *r)
{
	struct ibv_cq *cq;
	void *context;
	unsigned events = 0;
	while (ibv_get_cq_event(r->channel, &cq, &context) == 0)
		events++;
	if (events)
		ibv_ack_cq_events(r->cq, events);
}

static int failed(const struct rdma *r, const struct ibv_wc *wc)
{
	if (wc->status == IBV_WC_WR_FLUSH_ERR)
		return bench_fail(EXIT_RUN_FAILED, "queue %u: the target ended the connection", r->qid);
	return bench_fail(EXIT_RUN_FAILED, "queue %u: %s: %s", r->qid, wc->wr_id & WR_RECV ? "receive" : "send",
			  ibv_wc_status_str(wc->status));
}

/* The next completion, waited for until `until`. */
static int next_completion(struct rdma *r, struct ibv_wc *wc, uint64_t until, const char *what)
{
	for (bool armed = false;;) {
		if (ibv_poll_cq(r->cq, 1, wc) == 1)
			return wc->status == IBV_WC_SUCCESS ? 0 : failed(r, wc);
		struct pollfd fds[] = {{.fd = r->channel->fd, .events = POLLIN}, {.fd = r->events->fd, .events = POLLIN}};
		uint64_t now = now_ns();
		if (!armed && ibv_req_notify_cq(r->cq, 0))
			return bench_fail(EXIT_RUN_FAILED, "ibv_req_notify_cq: %m");
		if (!armed) {
			armed = true;
			continue;
		}
		if (now >= until || bench.interrupted)
			return bench_fail(EXIT_RUN_FAILED, "%s: the target did not answer in time", what);
		poll(fds, 2, (int)((until - now) / MSEC + 1));
		if (fds[1].revents)
			return bench_fail(EXIT_RUN_FAILED, "%s: the target closed the connection", what);
		take_events(r);
		armed = false;
	}
}

static int post_send(struct rdma *r, struct ibv_send_wr *wr)
{
	struct ibv_send_wr *bad;
	if (ibv_post_send(r->id->qp, wr, &bad))
		return bench_fail(EXIT_RUN_FAILED, "queue %u: ibv_post_send: %m", r->qid);
	return 0;
}

int rdma_command(struct conn *conn, uint8_t sqe[64], const void *out, uint32_t out_len, void *in, uint32_t in_len,
		 uint8_t cqe[16], const char *what)
{
	struct rdma *r = conn->rdma;
	struct ibv_sge sge = {(uintptr_t)r->own, SQE_LEN, r->own_mr->lkey};
	struct ibv_send_wr wr = {
		.wr_id = WR_SEND, .sg_list = &sge, .num_sge = 1, .opcode = IBV_WR_SEND, .send_flags = IBV_SEND_SIGNALED};
	uint8_t *bounce = bounce_of(r);
	uint16_t cid = conn->next_cid++;
	uint64_t until = now_ns() + bench.opt.timeout_ns;
	bool sent = false, answered = false;
	memset(bounce, 0, BOUNCE_LEN);
	if (out_len)
		memcpy(bounce, out, out_len);
	put16(sqe + 2, cid);
	sqe[1] = 0x40; /* PSDT: SGL */
	keyed(sqe, out_len || in_len ? bounce : NULL, out_len + in_len, out_len || in_len ? r->own_mr->rkey : 0);
	memcpy(r->own, sqe, SQE_LEN);
	if (post_send(r, &wr))
		return -1;
	while (!sent || !answered) {
		struct ibv_wc wc;
		if (next_completion(r, &wc, until, what))
			return -1;
		if (!(wc.wr_id & WR_RECV)) {
			sent = true;
			continue;
		}
		if (wc.byte_len != CQE_LEN || answered)
			return bench_fail(EXIT_RUN_FAILED, "%s: a response of %u bytes", what, wc.byte_len);
		memcpy(cqe, cqe_of(r, (uint32_t)wc.wr_id), CQE_LEN);
		answered = true;
		if (post_recv(r, (uint32_t)wc.wr_id))
			return -1;
	}
	if (get16(cqe + 12) != cid)
		return bench_fail(EXIT_RUN_FAILED, "%s: response for CID %u, sent was %u", what, get16(cqe + 12), cid);
	if (in_len)
		memcpy(in, bounce, in_len);
	return 0;
}

/* -- an I/O queue -------------------------------------------------------------------------------------------------- */

int rdma_register(struct queue *queue)
{
	struct rdma *r = queue->conn.rdma;
	int access = IBV_ACCESS_LOCAL_WRITE | IBV_ACCESS_REMOTE_READ | IBV_ACCESS_REMOTE_WRITE;
	r->data_mr = ibv_reg_mr(r->id->pd, queue->memory, (size_t)queue->depth * bench.opt.bs, access);
	r->payload_mr = ibv_reg_mr(r->id->pd, bench.payload, bench.opt.bs, access);
	if (r->data_mr == NULL || r->payload_mr == NULL)
		return bench_fail(EXIT_RUN_FAILED, "queue %u: %u buffers of %u bytes cannot be registered: %m", queue->qid,
				  queue->depth, bench.opt.bs);
	return 0;
}

int rdma_send(struct queue *queue, uint16_t cid)
{
	struct rdma *r = queue->conn.rdma;
	bool plain_write = queue->slots[cid].op == OP_WRITE && !bench.opt.verify;
	const struct ibv_mr *mr = plain_write ? r->payload_mr : r->data_mr;
	uint8_t *data = plain_write ? bench.payload : queue->memory + (size_t)cid * bench.opt.bs;
	struct ibv_sge *sge = r->sges[r->waiting];
	struct ibv_send_wr *wr = &r->wrs[r->waiting++];
	uint8_t *sqe = sqe_of(r, cid);
	queue_sqe(queue, cid, sqe, now_ns());
	sge[0] = (struct ibv_sge){(uintptr_t)sqe, SQE_LEN, r->own_mr->lkey};
	*wr = (struct ibv_send_wr){.wr_id = WR_SEND | cid, .sg_list = sge, .num_sge = 1, .opcode = IBV_WR_SEND,
				   .send_flags = IBV_SEND_SIGNALED};
	if (queue_in_capsule(&queue->slots[cid])) {
		sge[1] = (struct ibv_sge){(uintptr_t)data, bench.opt.bs, mr->lkey};
		wr->num_sge = 2;
		sgl_set(sqe, bench.opt.bs, true);
	} else {
		keyed(sqe, data, bench.opt.bs, mr->rkey);
	}
	return r->waiting == BATCH ? rdma_flush(queue) : 0;
}

int rdma_flush(struct queue *queue)
{
	struct rdma *r = queue->conn.rdma;
	if (r->waiting == 0)
		return 0;
	for (uint32_t i = 0; i + 1 < r->waiting; i++)
		r->wrs[i].next = &r->wrs[i + 1];
	r->waiting = 0;
	queue->stats->sends++;
	return post_send(r, r->wrs);
}

static int taken(struct queue *queue, const struct ibv_wc *wc, uint64_t now)
{
	struct rdma *r = queue->conn.rdma;
	uint32_t index = (uint32_t)wc->wr_id;
	if (wc->status != IBV_WC_SUCCESS)
		return failed(r, wc);
	if (!(wc->wr_id & WR_RECV)) {
		queue->slots[index].left = true;
		return queue->slots[index].last_seen ? queue_complete(queue, &queue->slots[index], now) : 0;
	}
	uint8_t cqe[CQE_LEN];
	memcpy(cqe, cqe_of(r, index), CQE_LEN);
	struct slot *slot = queue_slot(queue, get16(cqe + 12));
	if (wc->byte_len != CQE_LEN || wc->wc_flags & IBV_WC_WITH_INV || slot == NULL || slot->last_seen)
		return bench_fail(EXIT_RUN_FAILED, "queue %u: a response of %u bytes for CID %u%s", queue->qid, wc->byte_len,
				  get16(cqe + 12), wc->wc_flags & IBV_WC_WITH_INV ? ", with an invalidation" : "");
	slot->last_seen = true;
	if (queue_status(queue, slot, cqe) || post_recv(r, index))
		return -1;
	return slot->left ? queue_complete(queue, slot, now) : 0;
}

int rdma_receive(struct queue *queue, uint64_t now)
{
	struct ibv_wc wc[BATCH];
	int got = ibv_poll_cq(queue->conn.rdma->cq, BATCH, wc);
	queue->stats->recvs++;
	if (got < 0)
		return bench_fail(EXIT_RUN_FAILED, "queue %u: ibv_poll_cq", queue->qid);
	for (int i = 0; i < got; i++)
		if (taken(queue, &wc[i], now))
			return -1;
	return got > 0;
}

int rdma_arm(struct queue *queue)
{
	if (ibv_req_notify_cq(queue->conn.rdma->cq, 0))
		return bench_fail(EXIT_RUN_FAILED, "queue %u: ibv_req_notify_cq: %m", queue->qid);
	return 0;
}

int rdma_fd(const struct conn *conn)
{
	return conn->rdma->channel->fd;
}

void rdma_woken(struct queue *queue)
{
	take_events(queue->conn.rdma);
}

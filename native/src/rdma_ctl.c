/* SPDX-License-Identifier: BSD-3-Clause
 *
 * rdma_ctl.c: connections on the control thread: admin queues for life, others up to their Connect. Capsules go up as
 * they come; what the control plane orders (read data, write data, respond) is done in the order in which it asks,
 * each as soon as there is memory and room in the send queue for it.
 */
#include "rdma_priv.h"

#include <errno.h>
#include <stdio.h>
#include <stdlib.h>
#include <sys/epoll.h>

#define CLOSE_TICKS 5         /* seconds that what was ordered before a close may take */
#define ORDERS_MAX (4u << 20) /* bytes of one connection that wait */

enum order_kind { ORDER_FETCH, ORDER_REPLY };

struct order {
	struct order *next;
	enum order_kind kind;
	struct rdma_conn *c;
	struct remote remote; /* of the data */
	uint32_t length;      /* of the data */
	uint32_t flags;
	uint16_t cid;
	bool failed;
	unsigned left; /* completions */
	uint8_t *buf;  /* of rdma_ctl_pool */
	uint8_t cqe[16];
	uint8_t data[]; /* until buf is there */
};

/* A capsule that is with the control plane. */
struct capsule {
	bool used;
	uint16_t cid;
	uint64_t number;
	uint32_t length;
	struct remote remote;
};

struct rdma_ctl {
	struct loop_source source;
	struct capsule *capsules;
	uint32_t unanswered;
	uint64_t number;
	struct order *first, **last; /* not begun */
	size_t waiting_bytes;
	struct order *begun; /* with the device */
	bool ended, ending;
	unsigned ticks;
	char reason[128];

	bool adopting;
	struct dp_queue queue;
	char peer[64];
	uint8_t cqe[16];
	uint64_t token;
	dp_rdma_adopted_fn adopted;
};

static LIST_HEAD(, rdma_conn) conns = LIST_HEAD_INITIALIZER(conns);
static unsigned count_all, count_io;
static const struct dp_rdma_events *events;

static void carry_on(struct rdma_conn *c);

void rdma_ctl_init(const struct dp_rdma_events *given)
{
	events = given;
}

const struct dp_rdma_events *rdma_ctl_events(void)
{
	return events;
}

unsigned rdma_ctl_count(bool io)
{
	return io ? count_io : count_all;
}

static struct rdma_conn *find(uint64_t ident)
{
	struct rdma_conn *c;

	LIST_FOREACH(c, &conns, link)
		if (c->ident == ident)
			return c->ctl->ended ? NULL : c;
	return NULL;
}

/* -- the end */

static void order_free(struct order *order)
{
	if (order->buf)
		staging_free(&rdma_ctl_pool, order->buf);
	free(order);
}

static void unlist(struct rdma_conn *c)
{
	LIST_REMOVE(c, link);
	count_all--;
	count_io -= c->qid != 0;
}

void rdma_ctl_delete(struct rdma_conn *c)
{
	struct rdma_ctl *ctl = c->ctl;

	if (!ctl)
		return;
	while (ctl->first) {
		struct order *order = ctl->first;

		ctl->first = order->next;
		order_free(order);
	}
	while (ctl->begun) { /* the queue pair is gone: nobody writes there any more */
		struct order *order = ctl->begun;

		ctl->begun = order->next;
		order_free(order);
	}
	free(ctl->capsules);
	free(ctl);
	c->ctl = NULL;
}

/* Nothing of the connection is in use on the stack. */
static void finish(void *arg)
{
	struct rdma_conn *c = arg;

	unlist(c);
	rdma_disconnect(c->id);
	rdma_conn_free(c);
}

void rdma_ctl_end(struct rdma_conn *c, const char *reason)
{
	struct rdma_ctl *ctl = c->ctl;

	if (ctl->ended)
		return;
	ctl->ended = true;
	loop_remove(&ctl->source);
	log_info("rdma.closed", "connection %llu (queue %u): %s", (unsigned long long)c->ident, c->qid, reason);
	if (ctl->adopting)
		ctl->adopted(ctl->token, -ENOTCONN, reason);
	events->closed(c->ident, reason);
	loop_post(finish, c);
}

void rdma_ctl_end_all(const char *reason)
{
	struct rdma_conn *c;

	LIST_FOREACH(c, &conns, link)
		rdma_ctl_end(c, reason);
}

/* Once what is ordered has been done. */
static void end_soon(struct rdma_conn *c, const char *reason)
{
	struct rdma_ctl *ctl = c->ctl;

	if (ctl->ending)
		return;
	ctl->ending = true;
	ctl->ticks = CLOSE_TICKS;
	snprintf(ctl->reason, sizeof(ctl->reason), "%s", reason);
	rdma_cm_want_tick();
	carry_on(c);
}

bool rdma_ctl_tick(void)
{
	struct rdma_conn *c;
	bool any = false;

	LIST_FOREACH(c, &conns, link) {
		if (!c->ctl->ending || c->ctl->ended)
			continue;
		if (c->ctl->ticks-- == 0)
			rdma_ctl_end(c, c->ctl->reason);
		any = true;
	}
	return any;
}

/* -- capsules in */

/* Of unanswered ones with a CID that is in flight twice, the one that was answered with Command ID Conflict is the newest. */
static struct capsule *capsule_of(struct rdma_conn *c, uint16_t cid, bool newest)
{
	struct capsule *found = NULL;

	for (uint32_t i = 0; i < c->entries; i++) {
		struct capsule *capsule = &c->ctl->capsules[i];

		if (capsule->used && capsule->cid == cid && (!found || (capsule->number > found->number) == newest))
			found = capsule;
	}
	return found;
}

static void capsule_in(struct rdma_conn *c, const struct ibv_wc *wc)
{
	struct rdma_ctl *ctl = c->ctl;
	uint32_t slot = RDMA_WR_INDEX(wc->wr_id), bytes = wc->byte_len, i = 0;
	const uint8_t *sqe = rdma_rx_slot(c, slot);

	counter_add(&c->count->requests, 1);
	if (bytes < 64) {
		rdma_ctl_end(c, "a capsule that is shorter than a command");
		return;
	}
	if (bytes > 64 + c->icd_max) {
		rdma_ctl_end(c, "a capsule with more data than was agreed");
		return;
	}
	while (i < c->entries && ctl->capsules[i].used)
		i++;
	if (i == c->entries || ctl->ending || ctl->adopting) {
		rdma_ctl_end(c, ctl->ending ? ctl->reason : "more commands than the queue has entries");
		return;
	}
	ctl->capsules[i] = (struct capsule){ .used = true,
					     .cid = get16(sqe + 2),
					     .number = ctl->number++ };
	if (sqe[39] == 0x40 || sqe[39] == 0x4F) {
		ctl->capsules[i].length = get32(sqe + 32) & 0xFFFFFF;
		ctl->capsules[i].remote = (struct remote){ .address = get64(sqe + 24),
							   .key = get32(sqe + 35),
							   .invalidate = sqe[39] == 0x4F && ctl->capsules[i].length };
	}
	ctl->unanswered++;
	events->capsule(c->ident, sqe, sqe + 64, bytes - 64);
}

/* -- orders out */

static void post_failed(struct rdma_conn *c)
{
	rdma_ctl_end(c, "the send queue has failed");
}

static void link_begun(struct rdma_conn *c, struct order *order, unsigned wrs)
{
	order->left = wrs;
	c->sq_used += wrs;
	order->next = c->ctl->begun;
	c->ctl->begun = order;
}

static bool post(struct rdma_conn *c, struct ibv_send_wr *wr)
{
	struct ibv_send_wr *bad;

	counter_add(&c->count->doorbells, 1);
	return ibv_post_send(c->qp, wr, &bad) == 0;
}

static bool begin_fetch(struct rdma_conn *c, struct order *order)
{
	struct ibv_sge sge = { (uintptr_t)order->buf, order->length, c->dev->ctl_mr->lkey };
	struct ibv_send_wr wr = { .wr_id = (uintptr_t)order,
				  .sg_list = &sge,
				  .num_sge = 1,
				  .opcode = IBV_WR_RDMA_READ,
				  .send_flags = IBV_SEND_SIGNALED };

	wr.wr.rdma.remote_addr = order->remote.address;
	wr.wr.rdma.rkey = order->remote.key;
	link_begun(c, order, 1);
	counter_add(&c->count->reads, 1);
	return post(c, &wr);
}

static bool begin_reply(struct rdma_conn *c, struct order *order)
{
	struct ibv_sge data = { (uintptr_t)order->buf, order->length, c->dev->ctl_mr->lkey };
	struct ibv_sge cqe = { (uintptr_t)order->buf, 16, c->dev->ctl_mr->lkey };
	struct ibv_send_wr send = { .wr_id = (uintptr_t)order,
				    .sg_list = &cqe,
				    .num_sge = 1,
				    .opcode = IBV_WR_SEND,
				    .send_flags = IBV_SEND_SIGNALED | (c->inline_cqe ? IBV_SEND_INLINE : 0) };
	struct ibv_send_wr write = { .wr_id = (uintptr_t)order,
				     .sg_list = &data,
				     .num_sge = 1,
				     .opcode = IBV_WR_RDMA_WRITE,
				     .send_flags = IBV_SEND_SIGNALED };
	bool last = order->flags & DP_RDMA_REPLY_LAST;

	write.wr.rdma.remote_addr = order->remote.address;
	write.wr.rdma.rkey = order->remote.key;
	write.next = last ? &send : NULL;
	cqe.addr += order->length; /* it lies behind the data */
	memcpy(order->buf, order->data, order->length);
	memcpy(order->buf + order->length, order->cqe, 16);
	if (last && order->remote.invalidate && c->can_invalidate) {
		send.opcode = IBV_WR_SEND_WITH_INV;
		send.invalidate_rkey = order->remote.key;
		counter_add(&c->count->invalidates, 1);
	}
	link_begun(c, order, (order->length ? 1 : 0) + last);
	counter_add(&c->count->writes, order->length ? 1 : 0);
	counter_add(&c->count->sends, last);
	return post(c, order->length ? &write : &send);
}

/* Begins what can be begun now. */
static void carry_on(struct rdma_conn *c)
{
	struct rdma_ctl *ctl = c->ctl;

	while (ctl->first && !ctl->ended) {
		struct order *order = ctl->first;

		if (c->sq_used + 2 > c->sq_max || (order->kind == ORDER_FETCH && ctl->begun))
			return; /* one RDMA READ at a time: any initiator depth will do */
		order->buf = staging_alloc(&rdma_ctl_pool, order->length + 16);
		if (!order->buf) {
			counter_add(&c->count->pending_read, order->kind == ORDER_FETCH);
			counter_add(&c->count->pending_write, order->kind != ORDER_FETCH);
			return;
		}
		ctl->first = order->next;
		if (!ctl->first)
			ctl->last = &ctl->first;
		ctl->waiting_bytes -= sizeof(*order) + order->length;
		if (!(order->kind == ORDER_FETCH ? begin_fetch(c, order) : begin_reply(c, order)))
			post_failed(c);
	}
	if (ctl->ending && !ctl->first && !ctl->begun)
		rdma_ctl_end(c, ctl->reason);
}

/* Memory has come back: others may have waited for it. */
static void carry_on_all(void)
{
	struct rdma_conn *c;

	LIST_FOREACH(c, &conns, link)
		if (c->ctl->first)
			carry_on(c);
}

static void put_order(struct rdma_conn *c, struct order *order)
{
	struct rdma_ctl *ctl = c->ctl;

	ctl->waiting_bytes += sizeof(*order) + order->length;
	order->next = NULL;
	*ctl->last = order;
	ctl->last = &order->next;
	if (ctl->waiting_bytes > ORDERS_MAX)
		rdma_ctl_end(c, "the host does not take its data");
	else
		carry_on(c);
}

static void unlink_begun(struct rdma_ctl *ctl, struct order *order)
{
	struct order **at = &ctl->begun;

	while (*at != order)
		at = &(*at)->next;
	*at = order->next;
}

static void order_done(struct rdma_conn *c, struct order *order, const struct ibv_wc *wc)
{
	struct rdma_ctl *ctl = c->ctl;
	char why[128];

	c->sq_used--;
	if (wc->status != IBV_WC_SUCCESS && !order->failed) {
		order->failed = true;
		snprintf(why, sizeof(why), "data or a response could not be sent: %s", ibv_wc_status_str(wc->status));
		rdma_ctl_end(c, why);
	}
	if (--order->left)
		return;
	unlink_begun(ctl, order);
	if (!ctl->ended && order->kind == ORDER_FETCH)
		events->data(c->ident, order->cid, 0, order->buf, order->length);
	if (!ctl->ended && order->flags & DP_RDMA_REPLY_CLOSE)
		end_soon(c, "closed by the control plane");
	order_free(order);
	if (!ctl->ended)
		carry_on(c);
	carry_on_all();
}

static void adopt_now(struct rdma_conn *c);

static void on_wc(struct rdma_conn *c, const struct ibv_wc *wc)
{
	char why[128];

	if (RDMA_WR_KIND(wc->wr_id) == RDMA_WR_ORDER) {
		order_done(c, (struct order *)(uintptr_t)wc->wr_id, wc);
		return;
	}
	if (wc->status != IBV_WC_SUCCESS) {
		snprintf(why, sizeof(why), "receiving has failed: %s", ibv_wc_status_str(wc->status));
		rdma_ctl_end(c, why);
	}
	if (!c->ctl->ended)
		capsule_in(c, wc);
	if (rdma_rx_post(c, RDMA_WR_INDEX(wc->wr_id)) < 0 && !c->ctl->ended)
		rdma_ctl_end(c, "the receive queue has failed");
	else
		counter_add(&c->count->receives, 1);
}

static void on_ready(struct loop_source *source, uint32_t ready)
{
	struct rdma_ctl *ctl = dp_container_of(source, struct rdma_ctl, source);
	struct rdma_conn *c = (struct rdma_conn *)ctl->queue.transport;

	counter_add(&c->count->events, 1);
	rdma_conn_ack(c);
	ibv_req_notify_cq(c->cq, 0);
	rdma_conn_poll(c, on_wc);
	if (!ctl->ended && ctl->adopting && !ctl->first && !ctl->begun)
		adopt_now(c);
}

/* -- the beginning */

int rdma_ctl_begin(struct rdma_conn *c)
{
	struct rdma_ctl *ctl = calloc(1, sizeof(*ctl));
	int rc;

	if (!ctl)
		return -ENOMEM;
	c->ctl = ctl;
	ctl->last = &ctl->first;
	ctl->capsules = calloc(c->entries, sizeof(*ctl->capsules));
	if (!ctl->capsules)
		return -ENOMEM;
	ctl->queue.transport = c;
	ctl->source = (struct loop_source){ .fd = c->channel->fd, .ready = on_ready };
	rc = loop_add(&ctl->source, EPOLLIN);
	if (rc < 0)
		return rc;
	LIST_INSERT_HEAD(&conns, c, link);
	count_all++;
	count_io += c->qid != 0;
	return 0;
}

/* Not accepted after all; the connection manager's identifier is the caller's. */
void rdma_ctl_undo(struct rdma_conn *c)
{
	loop_remove(&c->ctl->source);
	unlist(c);
}

/* -- what the control plane wants */

void dp_rdma_fetch(uint64_t conn, uint16_t cid, uint32_t length)
{
	struct rdma_conn *c = find(conn);
	struct capsule *capsule = c ? capsule_of(c, cid, true) : NULL;
	struct order *order;

	if (!c || c->ctl->ending)
		return;
	if (!capsule || length == 0 || length > capsule->length || length > RDMA_FETCH_MAX) {
		events->data(conn, cid, -EINVAL, NULL, 0);
		return;
	}
	order = calloc(1, sizeof(*order));
	if (!order) {
		events->data(conn, cid, -ENOMEM, NULL, 0);
		return;
	}
	order->kind = ORDER_FETCH;
	order->cid = cid;
	order->remote = capsule->remote;
	order->length = length;
	put_order(c, order);
}

static void answered(struct rdma_conn *c, struct capsule *capsule)
{
	capsule->used = false;
	c->ctl->unanswered--;
}

void dp_rdma_reply(uint64_t conn, const uint8_t cqe[16], uint32_t flags, uint32_t offset, const void *data, uint32_t len)
{
	struct rdma_conn *c = find(conn);
	struct capsule *capsule = c ? capsule_of(c, get16(cqe + 12), !(flags & DP_RDMA_REPLY_DROP)) : NULL;
	struct order *order;

	if (!c || c->ctl->ending)
		return;
	if (!capsule || len > RDMA_REPLY_MAX || (len && (uint64_t)offset + len > capsule->length) ||
	    (!len && !(flags & (DP_RDMA_REPLY_LAST | DP_RDMA_REPLY_DROP)))) {
		rdma_ctl_end(c, "the control plane has answered what was not asked");
		return;
	}
	if (flags & DP_RDMA_REPLY_DROP) {
		answered(c, capsule);
		return;
	}
	order = malloc(sizeof(*order) + len);
	if (!order) {
		rdma_ctl_end(c, "no memory for a response");
		return;
	}
	memset(order, 0, sizeof(*order));
	order->kind = ORDER_REPLY;
	order->remote = capsule->remote;
	order->remote.address += offset;
	order->length = len;
	order->flags = flags;
	memcpy(order->cqe, cqe, 16);
	if (len)
		memcpy(order->data, data, len);
	if (flags & DP_RDMA_REPLY_LAST)
		answered(c, capsule);
	put_order(c, order);
}

void dp_rdma_close(uint64_t conn)
{
	struct rdma_conn *c = find(conn);

	if (c)
		end_soon(c, "closed by the control plane");
}

/* -- it becomes an I/O queue */

static void adopt_now(struct rdma_conn *c)
{
	struct rdma_ctl *ctl = c->ctl;
	struct dp_queue queue = ctl->queue;
	char err[DP_ERR_MAX] = "";
	uint64_t token = ctl->token;
	int rc = rdma_queue_new(c, ctl->cqe);

	ctl->adopting = false;
	loop_remove(&ctl->source);
	queue.ops = &rdma_queue_ops;
	queue.fd = -1;
	queue.peer = ctl->peer;
	if (rc == 0)
		rc = dp_queue_adopt(&queue, err); /* from now on another thread works with it */
	if (rc < 0) {
		rdma_queue_delete(c);
		if (loop_add(&ctl->source, EPOLLIN) < 0)
			rdma_ctl_end(c, "it cannot be watched");
		ctl->adopted(token, rc, err[0] ? err : strerror(-rc));
		return;
	}
	ctl->adopted(token, 0, "");
	unlist(c);
	rdma_ctl_delete(c);
}

void dp_rdma_adopt(uint64_t conn, const struct dp_queue *queue, const uint8_t cqe[16], uint64_t token,
		   dp_rdma_adopted_fn done)
{
	struct rdma_conn *c = find(conn);
	struct rdma_ctl *ctl = c ? c->ctl : NULL;

	if (!c || ctl->ending || ctl->adopting) {
		done(token, -ENOTCONN, "the connection has ended");
		return;
	}
	if (queue->sqsize + 1u > c->entries || queue->icd_max > c->icd_max) {
		done(token, -EINVAL, "the connection was made for fewer commands or less data");
		return;
	}
	if (ctl->unanswered != 1) {
		done(token, -EBUSY, "there are commands beside Connect");
		return;
	}
	ctl->queue = *queue;
	ctl->queue.transport = c;
	snprintf(ctl->peer, sizeof(ctl->peer), "%s", queue->peer ? queue->peer : "");
	memcpy(ctl->cqe, cqe, 16);
	ctl->token = token;
	ctl->adopted = done;
	ctl->adopting = true;
	if (!ctl->first && !ctl->begun)
		adopt_now(c);
}

/* SPDX-License-Identifier: BSD-3-Clause */
#include "fake_verbs.h"

#include <assert.h>
#include <errno.h>
#include <fcntl.h>
#include <netinet/in.h>
#include <pthread.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/eventfd.h>
#include <sys/stat.h>
#include <unistd.h>

#undef ibv_reg_mr
#undef ibv_query_port

#define RING 4096
#define MRS 512
#define PENDING 1024
#define BOUND 64

struct fake_cq {
	struct ibv_cq cq;
	struct ibv_wc wc[RING];
	unsigned first, n, unacked;
	bool armed;
};

struct fake_rq {
	uint64_t wr_id[RING];
	struct ibv_sge sge[RING];
	unsigned first, n;
};

struct fake_srq {
	struct ibv_srq srq;
	struct fake_rq rq;
};

struct fake_qp {
	struct ibv_qp qp;
	struct fake_cq *cq;
	struct fake_rq rq, *from;
	struct fake_peer *peer;
	bool error;
};

struct pending {
	struct fake_qp *qp;
	struct ibv_send_wr wr;
	struct ibv_sge sge;
	uint8_t inlined[16];
};

struct fake_event {
	struct rdma_cm_event event;
	uint8_t data[64];
	struct fake_event *next;
};

struct fake_verbs fv;
static pthread_mutex_t lock = PTHREAD_MUTEX_INITIALIZER;
static struct ibv_device device = { .name = "fake0" };
static struct ibv_context context;
static struct rdma_event_channel *cm;
static struct fake_event *events;
static struct rdma_cm_id *listen_id;
static struct rdma_cm_id *bound[BOUND]; /* to the device: listeners, and others that wait for its removal */
static unsigned n_bound;
static struct ibv_mr *mrs[MRS];
static struct pending pending[PENDING];
static unsigned n_pending;
static struct fake_peer *peers[512];
static unsigned n_peers;
static struct { /* asynchronous events */
	struct ibv_async_event event;
} async_queue[64];
static unsigned n_async;

static void ring(int fd)
{
	uint64_t one = 1;
	ssize_t rc = write(fd, &one, sizeof(one));

	(void)rc;
}

static bool heard(int fd)
{
	uint64_t count;

	return read(fd, &count, sizeof(count)) == (ssize_t)sizeof(count);
}

/* -- completions; the lock is held */

static void complete(struct fake_cq *cq, const struct ibv_wc *wc)
{
	assert(cq->n < (unsigned)cq->cq.cqe);
	cq->wc[(cq->first + cq->n++) % RING] = *wc;
	if (!cq->armed)
		return;
	cq->armed = false;
	ring(cq->cq.channel->fd);
}

static int poll_cq(struct ibv_cq *of, int most, struct ibv_wc *wc)
{
	struct fake_cq *cq = (struct fake_cq *)of;
	int n = 0;

	pthread_mutex_lock(&lock);
	for (; n < most && cq->n; n++, cq->n--) {
		wc[n] = cq->wc[cq->first];
		cq->first = (cq->first + 1) % RING;
	}
	pthread_mutex_unlock(&lock);
	return n;
}

static int req_notify_cq(struct ibv_cq *of, int solicited)
{
	(void)solicited;
	pthread_mutex_lock(&lock);
	((struct fake_cq *)of)->armed = true;
	pthread_mutex_unlock(&lock);
	return 0;
}

static void put_async(enum ibv_event_type type, struct ibv_qp *qp)
{
	assert(n_async < 64);
	async_queue[n_async].event.event_type = type;
	async_queue[n_async++].event.element.qp = qp;
	ring(context.async_fd);
}

/* Everything that is posted comes back. */
static void to_error(struct fake_qp *qp)
{
	struct ibv_wc wc = { .status = IBV_WC_WR_FLUSH_ERR, .qp_num = qp->qp.qp_num };

	if (qp->error)
		return;
	qp->error = true;
	for (unsigned i = 0, kept = 0, all = n_pending; i < all; i++) {
		if (pending[i].qp != qp) {
			pending[kept++] = pending[i];
			continue;
		}
		wc.wr_id = pending[i].wr.wr_id;
		if (pending[i].wr.opcode == IBV_WR_RDMA_READ)
			qp->peer->reads_open--;
		complete(qp->cq, &wc);
		n_pending--;
	}
	if (qp->from != &qp->rq) {
		put_async(IBV_EVENT_QP_LAST_WQE_REACHED, &qp->qp);
		return;
	}
	for (; qp->rq.n; qp->rq.n--) {
		wc.wr_id = qp->rq.wr_id[qp->rq.first];
		qp->rq.first = (qp->rq.first + 1) % RING;
		complete(qp->cq, &wc);
	}
}

static bool registered(const struct ibv_sge *sge)
{
	for (unsigned i = 0; i < MRS; i++)
		if (mrs[i] && mrs[i]->lkey == sge->lkey)
			return sge->addr >= (uintptr_t)mrs[i]->addr &&
			       sge->addr + sge->length <= (uintptr_t)mrs[i]->addr + mrs[i]->length;
	return false;
}

static uint8_t *remote(const struct ibv_send_wr *wr, uint32_t bytes)
{
	uint64_t at = wr->wr.rdma.remote_addr - HOST_ADDRESS;

	if (wr->wr.rdma.rkey != HOST_KEY || at > HOST_BYTES || bytes > HOST_BYTES - at)
		return NULL;
	return fv.host + at;
}

static enum ibv_wc_status deliver(struct fake_peer *peer, const struct pending *p)
{
	struct fake_capsule *capsule = &peer->inbox[peer->n];

	if (p->sge.length != 16 || peer->n == HOST_INBOX)
		return IBV_WC_REM_INV_REQ_ERR;
	memcpy(capsule->cqe, p->wr.send_flags & IBV_SEND_INLINE ? (void *)p->inlined : (void *)(uintptr_t)p->sge.addr, 16);
	capsule->invalidate = p->wr.opcode == IBV_WR_SEND_WITH_INV;
	capsule->key = capsule->invalidate ? p->wr.invalidate_rkey : 0;
	peer->n++;
	peer->sends++;
	return IBV_WC_SUCCESS;
}

static void carry_out(const struct pending *p)
{
	struct fake_qp *qp = p->qp;
	struct ibv_wc wc = { .wr_id = p->wr.wr_id, .status = IBV_WC_SUCCESS };
	uint8_t *at = NULL;

	if (p->wr.opcode == IBV_WR_RDMA_READ)
		qp->peer->reads_open--;
	if (p->wr.opcode == IBV_WR_RDMA_READ || p->wr.opcode == IBV_WR_RDMA_WRITE) {
		at = remote(&p->wr, p->sge.length);
		if (!at)
			wc.status = IBV_WC_REM_ACCESS_ERR;
	}
	if (!(p->wr.send_flags & IBV_SEND_INLINE) && !registered(&p->sge))
		wc.status = IBV_WC_LOC_PROT_ERR;
	if (wc.status == IBV_WC_SUCCESS) {
		if (p->wr.opcode == IBV_WR_RDMA_READ)
			memcpy((void *)(uintptr_t)p->sge.addr, at, p->sge.length);
		else if (p->wr.opcode == IBV_WR_RDMA_WRITE)
			memcpy(at, (void *)(uintptr_t)p->sge.addr, p->sge.length);
		else
			wc.status = deliver(qp->peer, p);
	}
	if (wc.status != IBV_WC_SUCCESS || p->wr.send_flags & IBV_SEND_SIGNALED)
		complete(qp->cq, &wc);
	if (wc.status != IBV_WC_SUCCESS)
		to_error(qp);
}

void fake_carry_out(unsigned count)
{
	pthread_mutex_lock(&lock);
	while (count-- && n_pending) {
		struct pending p = pending[0];

		memmove(pending, pending + 1, --n_pending * sizeof(*pending));
		carry_out(&p);
	}
	pthread_mutex_unlock(&lock);
}

unsigned fake_held(void)
{
	unsigned n;

	pthread_mutex_lock(&lock);
	n = n_pending;
	pthread_mutex_unlock(&lock);
	return n;
}

static int post_send(struct ibv_qp *of, struct ibv_send_wr *wr, struct ibv_send_wr **bad)
{
	struct fake_qp *qp = (struct fake_qp *)of;
	int rc = 0;

	pthread_mutex_lock(&lock);
	if (fv.post_fails) {
		fv.post_fails--;
		*bad = wr;
		rc = ENOMEM;
	}
	for (; rc == 0 && wr; wr = wr->next) {
		struct pending *p = &pending[n_pending++];

		assert(n_pending <= PENDING && wr->num_sge == 1);
		*p = (struct pending){ .qp = qp, .wr = *wr, .sge = *wr->sg_list };
		if (wr->send_flags & IBV_SEND_INLINE)
			memcpy(p->inlined, (void *)(uintptr_t)p->sge.addr, 16);
		qp->peer->reads += wr->opcode == IBV_WR_RDMA_READ;
		qp->peer->writes += wr->opcode == IBV_WR_RDMA_WRITE;
		if (wr->opcode == IBV_WR_RDMA_READ && ++qp->peer->reads_open > qp->peer->reads_most)
			qp->peer->reads_most = qp->peer->reads_open;
		if (qp->error) {
			qp->error = false;
			to_error(qp);
		}
	}
	pthread_mutex_unlock(&lock);
	if (rc == 0 && !fv.hold)
		fake_carry_out(UINT32_MAX);
	return rc;
}

static int put_recv(struct fake_rq *rq, const struct ibv_recv_wr *wr)
{
	pthread_mutex_lock(&lock);
	assert(rq->n < RING);
	rq->wr_id[(rq->first + rq->n) % RING] = wr->wr_id;
	rq->sge[(rq->first + rq->n++) % RING] = *wr->sg_list;
	pthread_mutex_unlock(&lock);
	return 0;
}

static int post_recv(struct ibv_qp *of, struct ibv_recv_wr *wr, struct ibv_recv_wr **bad)
{
	struct fake_qp *qp = (struct fake_qp *)of;
	struct ibv_wc wc = { .wr_id = wr->wr_id, .status = IBV_WC_WR_FLUSH_ERR };

	(void)bad;
	if (!qp->error)
		return put_recv(&qp->rq, wr);
	pthread_mutex_lock(&lock);
	complete(qp->cq, &wc);
	pthread_mutex_unlock(&lock);
	return 0;
}

static int post_srq_recv(struct ibv_srq *of, struct ibv_recv_wr *wr, struct ibv_recv_wr **bad)
{
	(void)bad;
	return put_recv(&((struct fake_srq *)of)->rq, wr);
}

bool fake_capsule(struct fake_peer *peer, const void *bytes, uint32_t len)
{
	struct fake_qp *qp = (struct fake_qp *)peer->id->qp;
	struct ibv_wc wc = { .status = IBV_WC_SUCCESS, .byte_len = len };
	bool there;

	pthread_mutex_lock(&lock);
	there = !qp->error && qp->from->n > 0;
	if (there) {
		const struct ibv_sge *sge = &qp->from->sge[qp->from->first];

		wc.wr_id = qp->from->wr_id[qp->from->first];
		qp->from->first = (qp->from->first + 1) % RING;
		qp->from->n--;
		if (len > sge->length || !registered(sge)) {
			wc.status = IBV_WC_LOC_LEN_ERR;
			complete(qp->cq, &wc);
			to_error(qp);
		} else {
			memcpy((void *)(uintptr_t)sge->addr, bytes, len);
			complete(qp->cq, &wc);
		}
	}
	pthread_mutex_unlock(&lock);
	return there;
}

unsigned fake_inbox(struct fake_peer *peer)
{
	unsigned n;

	pthread_mutex_lock(&lock);
	n = peer->n - peer->read;
	pthread_mutex_unlock(&lock);
	return n;
}

struct fake_capsule fake_take(struct fake_peer *peer)
{
	struct fake_capsule capsule;

	pthread_mutex_lock(&lock);
	assert(peer->read < peer->n);
	capsule = peer->inbox[peer->read++];
	if (peer->read == peer->n)
		peer->read = peer->n = 0;
	pthread_mutex_unlock(&lock);
	return capsule;
}

/* -- libibverbs */

static void *made(size_t size)
{
	void *object = calloc(1, size);

	assert(object);
	pthread_mutex_lock(&lock);
	fv.live++;
	pthread_mutex_unlock(&lock);
	return object;
}

static int gone(void *object)
{
	pthread_mutex_lock(&lock);
	fv.live--;
	pthread_mutex_unlock(&lock);
	free(object);
	return 0;
}

struct ibv_device **ibv_get_device_list(int *count)
{
	struct ibv_device **list = calloc(2, sizeof(*list));

	assert(list);
	list[0] = &device;
	if (count)
		*count = 1;
	return list;
}

void ibv_free_device_list(struct ibv_device **list)
{
	free(list);
}

const char *ibv_get_device_name(struct ibv_device *of)
{
	return of->name;
}

struct ibv_context *ibv_open_device(struct ibv_device *of)
{
	(void)of;
	return &context;
}

int ibv_query_gid(struct ibv_context *of, uint8_t port, int index, union ibv_gid *gid)
{
	static const union ibv_gid v4 = {.raw = {[10] = 0xFF, [11] = 0xFF, [12] = 10, [15] = 1}};

	(void)of;
	(void)port;
	*gid = v4;
	return index < 2 ? 0 : -1;
}

int ibv_close_device(struct ibv_context *of)
{
	(void)of;
	return 0;
}

int ibv_query_device(struct ibv_context *of, struct ibv_device_attr *attr)
{
	(void)of;
	*attr = (struct ibv_device_attr){ .max_qp_wr = 2048,
					  .max_cqe = RING,
					  .max_srq = fv.no_srq ? 0 : 4,
					  .max_srq_wr = 1024,
					  .max_sge = 4,
					  .max_qp = 64,
					  .max_qp_init_rd_atom = (int)fv.rd_atom,
					  .device_cap_flags = fv.no_invalidate ? 0 : IBV_DEVICE_MEM_MGT_EXTENSIONS };
	return 0;
}

int ibv_query_port(struct ibv_context *of, uint8_t port, struct _compat_ibv_port_attr *attr)
{
	(void)of;
	(void)port;
	((struct ibv_port_attr *)(void *)attr)->max_msg_sz = fv.max_msg;
	return 0;
}

struct ibv_pd *ibv_alloc_pd(struct ibv_context *of)
{
	struct ibv_pd *pd = made(sizeof(*pd));

	pd->context = of;
	return pd;
}

int ibv_dealloc_pd(struct ibv_pd *pd)
{
	return gone(pd);
}

struct ibv_mr *ibv_reg_mr(struct ibv_pd *pd, void *addr, size_t length, int access)
{
	static uint32_t key;
	struct ibv_mr *mr = made(sizeof(*mr));
	unsigned i = 0;

	(void)access;
	*mr = (struct ibv_mr){ .context = pd->context, .pd = pd, .addr = addr, .length = length, .lkey = ++key };
	pthread_mutex_lock(&lock);
	while (mrs[i])
		assert(++i < MRS);
	mrs[i] = mr;
	pthread_mutex_unlock(&lock);
	return mr;
}

struct ibv_mr *ibv_reg_mr_iova2(struct ibv_pd *pd, void *addr, size_t length, uint64_t iova, unsigned int access)
{
	(void)iova;
	return ibv_reg_mr(pd, addr, length, (int)access);
}

struct ibv_mr *ibv_reg_dmabuf_mr(struct ibv_pd *pd, uint64_t offset, size_t length, uint64_t iova, int fd, int access)
{
	if (fv.dmabuf && fd >= 0 && offset == 0)
		return ibv_reg_mr(pd, (void *)(uintptr_t)iova, length, access);
	errno = EOPNOTSUPP;
	return NULL;
}

int ibv_dereg_mr(struct ibv_mr *mr)
{
	pthread_mutex_lock(&lock);
	for (unsigned i = 0; i < MRS; i++)
		if (mrs[i] == mr)
			mrs[i] = NULL;
	pthread_mutex_unlock(&lock);
	return gone(mr);
}

struct ibv_comp_channel *ibv_create_comp_channel(struct ibv_context *of)
{
	struct ibv_comp_channel *channel = made(sizeof(*channel));

	channel->context = of;
	channel->fd = eventfd(0, EFD_SEMAPHORE | EFD_CLOEXEC);
	return channel;
}

int ibv_destroy_comp_channel(struct ibv_comp_channel *channel)
{
	close(channel->fd);
	return gone(channel);
}

struct ibv_cq *ibv_create_cq(struct ibv_context *of, int cqe, void *cq_context, struct ibv_comp_channel *channel, int vector)
{
	struct fake_cq *cq = made(sizeof(*cq));

	(void)vector;
	cq->cq = (struct ibv_cq){ .context = of, .channel = channel, .cq_context = cq_context, .cqe = cqe };
	channel->refcnt = (int)(intptr_t)0;
	return &cq->cq;
}

int ibv_destroy_cq(struct ibv_cq *of)
{
	assert(((struct fake_cq *)of)->unacked == 0);
	return gone(of);
}

int ibv_get_cq_event(struct ibv_comp_channel *channel, struct ibv_cq **cq, void **cq_context)
{
	(void)cq;
	(void)cq_context;
	return heard(channel->fd) ? 0 : -1;
}

void ibv_ack_cq_events(struct ibv_cq *cq, unsigned int count)
{
	(void)cq;
	(void)count;
}

struct ibv_srq *ibv_create_srq(struct ibv_pd *pd, struct ibv_srq_init_attr *attr)
{
	struct fake_srq *srq = made(sizeof(*srq));

	(void)attr;
	srq->srq.context = pd->context;
	return &srq->srq;
}

int ibv_destroy_srq(struct ibv_srq *srq)
{
	return gone(srq);
}

int ibv_modify_qp(struct ibv_qp *of, struct ibv_qp_attr *attr, int mask)
{
	assert(mask == IBV_QP_STATE && attr->qp_state == IBV_QPS_ERR);
	pthread_mutex_lock(&lock);
	to_error((struct fake_qp *)of);
	pthread_mutex_unlock(&lock);
	return 0;
}

int ibv_get_async_event(struct ibv_context *of, struct ibv_async_event *event)
{
	pthread_mutex_lock(&lock);
	if (!heard(of->async_fd)) {
		pthread_mutex_unlock(&lock);
		return -1;
	}
	*event = async_queue[0].event;
	memmove(async_queue, async_queue + 1, --n_async * sizeof(*async_queue));
	pthread_mutex_unlock(&lock);
	return 0;
}

void ibv_ack_async_event(struct ibv_async_event *event)
{
	(void)event;
}

const char *ibv_wc_status_str(enum ibv_wc_status status)
{
	return status == IBV_WC_REM_ACCESS_ERR ? "remote access error" : "an error";
}

const char *ibv_event_type_str(enum ibv_event_type type)
{
	(void)type;
	return "an event";
}

/* -- librdmacm */

struct rdma_event_channel *rdma_create_event_channel(void)
{
	cm = made(sizeof(*cm));
	cm->fd = eventfd(0, EFD_SEMAPHORE | EFD_CLOEXEC);
	return cm;
}

void rdma_destroy_event_channel(struct rdma_event_channel *channel)
{
	close(channel->fd);
	gone(channel);
	cm = NULL;
}

int rdma_create_id(struct rdma_event_channel *channel, struct rdma_cm_id **id, void *of, enum rdma_port_space ps)
{
	(void)ps;
	*id = made(sizeof(**id));
	(*id)->channel = channel;
	(*id)->context = of;
	return 0;
}

/* Events that nobody has taken go with their identifier. */
static void drop_events(const struct rdma_cm_id *id)
{
	for (struct fake_event **at = &events; *at;) {
		struct fake_event *event = *at;

		if (event->event.id != id) {
			at = &event->next;
			continue;
		}
		*at = event->next;
		free(event);
		heard(cm->fd);
	}
}

int rdma_destroy_id(struct rdma_cm_id *id)
{
	assert(!id->qp);
	drop_events(id);
	if (id == listen_id) {
		listen_id = NULL;
		fv.listening--;
	}
	for (unsigned i = 0; i < n_peers; i++)
		if (peers[i] && peers[i]->id == id) {
			peers[i]->id = NULL;
			peers[i]->gone = true;
		}
	for (unsigned i = 0; i < n_bound; i++)
		if (bound[i] == id)
			bound[i--] = bound[--n_bound];
	return gone(id);
}

int rdma_set_option(struct rdma_cm_id *id, int level, int name, void *value, size_t len)
{
	(void)id;
	(void)level;
	(void)name;
	(void)value;
	(void)len;
	return 0;
}

int rdma_bind_addr(struct rdma_cm_id *id, struct sockaddr *addr)
{
	errno = ENODEV;
	if (fv.absent)
		return -1;
	if (addr->sa_family == AF_INET && ((struct sockaddr_in *)addr)->sin_addr.s_addr == INADDR_ANY)
		return 0; /* bound to no device */
	id->verbs = &context;
	assert(n_bound < BOUND);
	bound[n_bound++] = id;
	return 0;
}

int rdma_listen(struct rdma_cm_id *id, int backlog)
{
	(void)backlog;
	listen_id = id;
	fv.listening++;
	return 0;
}

static void put_event(enum rdma_cm_event_type type, struct rdma_cm_id *id, const void *data, uint8_t len, uint8_t depth)
{
	struct fake_event *event = calloc(1, sizeof(*event)), **at = &events;

	assert(event);
	event->event.event = type;
	event->event.id = id;
	event->event.listen_id = type == RDMA_CM_EVENT_CONNECT_REQUEST ? listen_id : NULL;
	if (len)
		memcpy(event->data, data, len);
	event->event.param.conn.private_data = len ? event->data : NULL;
	event->event.param.conn.private_data_len = len;
	event->event.param.conn.initiator_depth = depth;
	while (*at)
		at = &(*at)->next;
	*at = event;
	ring(cm->fd);
}

int rdma_get_cm_event(struct rdma_event_channel *channel, struct rdma_cm_event **event)
{
	if (!heard(channel->fd))
		return -1;
	*event = &events->event;
	events = events->next;
	return 0;
}

int rdma_ack_cm_event(struct rdma_cm_event *event)
{
	free(event);
	return 0;
}

const char *rdma_event_str(enum rdma_cm_event_type type)
{
	(void)type;
	return "an event";
}

static struct fake_peer *peer_of(const struct rdma_cm_id *id)
{
	for (unsigned i = 0; i < n_peers; i++)
		if (peers[i] && peers[i]->id == id)
			return peers[i];
	abort();
}

int rdma_create_qp(struct rdma_cm_id *id, struct ibv_pd *pd, struct ibv_qp_init_attr *attr)
{
	struct fake_qp *qp;

	if (fv.no_inline && attr->cap.max_inline_data) {
		errno = EINVAL;
		return -1;
	}
	qp = made(sizeof(*qp));
	qp->qp = (struct ibv_qp){ .context = pd->context, .qp_context = attr->qp_context, .pd = pd };
	qp->cq = (struct fake_cq *)attr->send_cq;
	qp->from = attr->srq ? &((struct fake_srq *)attr->srq)->rq : &qp->rq;
	qp->peer = peer_of(id);
	id->qp = &qp->qp;
	return 0;
}

void rdma_destroy_qp(struct rdma_cm_id *id)
{
	struct fake_qp *qp = (struct fake_qp *)id->qp;
	unsigned kept = 0;

	pthread_mutex_lock(&lock);
	for (unsigned i = 0; i < n_pending; i++)
		if (pending[i].qp != qp)
			pending[kept++] = pending[i];
	n_pending = kept;
	kept = 0;
	for (unsigned i = 0; i < n_async; i++) /* as the kernel does */
		if (async_queue[i].event.element.qp == &qp->qp)
			heard(context.async_fd);
		else
			async_queue[kept++] = async_queue[i];
	n_async = kept;
	pthread_mutex_unlock(&lock);
	gone(qp);
	id->qp = NULL;
}

int rdma_accept(struct rdma_cm_id *id, struct rdma_conn_param *param)
{
	struct fake_peer *peer = peer_of(id);

	peer->accepted = true;
	peer->answer_len = param->private_data_len;
	peer->initiator_depth = param->initiator_depth;
	memcpy(peer->answer, param->private_data, param->private_data_len);
	return 0;
}

int rdma_reject(struct rdma_cm_id *id, const void *data, uint8_t len)
{
	struct fake_peer *peer = peer_of(id);

	peer->rejected = true;
	peer->answer_len = len;
	memcpy(peer->answer, data, len);
	return 0;
}

int rdma_disconnect(struct rdma_cm_id *id)
{
	pthread_mutex_lock(&lock);
	if (id->qp)
		to_error((struct fake_qp *)id->qp);
	pthread_mutex_unlock(&lock);
	return 0;
}

/* -- the test's side */

static void close_device(void)
{
	if (!context.device)
		return;
	close(context.async_fd);
	close(context.cmd_fd);
}

static void open_device(void)
{
	context.async_fd = eventfd(0, EFD_SEMAPHORE | EFD_CLOEXEC | EFD_NONBLOCK);
	context.cmd_fd = open("/dev/zero", O_RDWR | O_CLOEXEC); /* a character device, as the real one */
	n_async = 0;
}

void fake_verbs_reset(void)
{
	for (unsigned i = 0; i < n_peers; i++)
		free(peers[i]);
	n_peers = 0;
	memset(&fv, 0, sizeof(fv));
	fv.max_msg = 1u << 30;
	fv.rd_atom = 16;
	n_bound = 0;
	close_device();
	context = (struct ibv_context){ .device = &device,
					.ops = { .poll_cq = poll_cq,
						 .req_notify_cq = req_notify_cq,
						 .post_send = post_send,
						 .post_recv = post_recv,
						 .post_srq_recv = post_srq_recv } };
	open_device();
}

struct fake_peer *fake_connect(const void *data, uint8_t len, uint8_t ird)
{
	struct fake_peer *peer = calloc(1, sizeof(*peer));
	struct sockaddr_in *address;

	assert(peer && n_peers < sizeof(peers) / sizeof(*peers));
	rdma_create_id(cm, &peer->id, NULL, RDMA_PS_TCP);
	peer->id->verbs = &context;
	address = (struct sockaddr_in *)&peer->id->route.addr.src_addr;
	address->sin_family = AF_INET;
	address->sin_port = htons(4420);
	address->sin_addr.s_addr = htonl(0x0A000001);
	address = (struct sockaddr_in *)&peer->id->route.addr.dst_addr;
	address->sin_family = AF_INET;
	peers[n_peers++] = peer;
	put_event(RDMA_CM_EVENT_CONNECT_REQUEST, peer->id, data, len, ird);
	return peer;
}

void fake_disconnected(struct fake_peer *peer)
{
	rdma_disconnect(peer->id);
	put_event(RDMA_CM_EVENT_DISCONNECTED, peer->id, NULL, 0, 0);
}

void fake_removal(void)
{
	for (unsigned i = 0; i < n_peers; i++)
		if (peers[i]->id)
			put_event(RDMA_CM_EVENT_DEVICE_REMOVAL, peers[i]->id, NULL, 0, 0);
	for (unsigned i = 0; i < n_bound; i++)
		put_event(RDMA_CM_EVENT_DEVICE_REMOVAL, bound[i], NULL, 0, 0);
}

void fake_return(void)
{
	close_device();
	open_device();
	fv.absent = false;
}

void fake_fatal(void)
{
	pthread_mutex_lock(&lock);
	put_async(IBV_EVENT_DEVICE_FATAL, NULL);
	pthread_mutex_unlock(&lock);
}

bool fake_is_open(void)
{
	struct stat st, zero;

	assert(fstat(context.cmd_fd, &st) == 0 && stat("/dev/zero", &zero) == 0);
	return st.st_rdev == zero.st_rdev;
}

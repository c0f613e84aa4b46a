/* SPDX-License-Identifier: BSD-3-Clause
 *
 * engine_queue.c: I/O queues as the control thread sees them: adoption, closing, aborts, statistics. A queue's memory
 * is freed only after its reactor has said that it ended and has then taken a last message: nothing that names the queue
 * can be on its way any more.
 */
#include <errno.h>
#include <stdio.h>
#include <stdlib.h>
#include <sys/socket.h>

#include "engine_priv.h"
#include "qpair_zc.h"

struct closing {
	unsigned left;
	dp_done_fn done;
	void *arg;
};

struct waiter {
	struct waiter *next;
	struct closing *closing;
};

/* A queue in the registry. */
struct handle {
	LIST_ENTRY(handle) link;
	struct dp_queue_key key;
	struct qpair *q;
	struct reactor *r;
	bool ordered; /* closed from here: no event */
	struct waiter *waiters;
	char peer[64];
	struct rmsg begin, close, last;
};

static LIST_HEAD(, handle) handles = LIST_HEAD_INITIALIZER(handles);
static unsigned placed[REACTORS_MAX]; /* queues on each reactor */

/* -- the end, in four steps: reactor, control thread, reactor, control thread */

static void handle_free(void *arg)
{
	struct handle *h = arg;

	qpair_free(h->q);
	free(h);
}

static void last_message(struct reactor *r, struct rmsg *msg)
{
	engine_post(handle_free, dp_container_of(msg, struct handle, last));
}

static void closing_step(struct closing *closing)
{
	if (--closing->left)
		return;
	closing->done(closing->arg, 0);
	free(closing);
}

static void queue_over(void *arg)
{
	struct handle *h = arg;
	struct waiter *w;

	LIST_REMOVE(h, link);
	placed[h->r->id]--;
	if (!h->ordered)
		engine_events()->queue_closed(h->key, h->q->reason);
	while ((w = h->waiters)) {
		h->waiters = w->next;
		closing_step(w->closing);
		free(w);
	}
	if (h->q->ops->over)
		h->q->ops->over(h->q);
	h->last.fn = last_message;
	reactor_send(h->r, &h->last);
}

static void queue_ended(struct qpair *q)
{
	engine_post(queue_over, q->owner);
}

/* -- adoption */

static struct reactor *place(int fd)
{
	unsigned best = 0;
	int cpu = -1;
	socklen_t len = sizeof(cpu);

	for (unsigned i = 1; i < engine_reactors(); i++)
		if (placed[i] < placed[best])
			best = i;
	/* Of those with the least to do, the core where the NIC delivers. */
	if (getsockopt(fd, SOL_SOCKET, SO_INCOMING_CPU, &cpu, &len) == 0 && cpu >= 0)
		for (unsigned i = 0; i < engine_reactors(); i++)
			if (engine_reactor(i)->cpu == cpu && placed[i] == placed[best])
				best = i;
	return engine_reactor(best);
}

static void begin(struct reactor *r, struct rmsg *msg)
{
	struct handle *h = dp_container_of(msg, struct handle, begin);

	/* The controller's view came before, on the same list of messages. */
	qpair_begin(r, ctrlr_find(r, h->key.ctrlr), h->q);
}

static struct handle *find_handle(struct dp_queue_key key)
{
	struct handle *h;

	LIST_FOREACH(h, &handles, link)
		if (h->key.ctrlr == key.ctrlr && h->key.qid == key.qid)
			return h;
	return NULL;
}

static int check(const struct dp_queue *queue, char err[DP_ERR_MAX])
{
	if (!engine_ctrlr(queue->key.ctrlr)) {
		snprintf(err, DP_ERR_MAX, "controller %llu is not known", (unsigned long long)queue->key.ctrlr);
		return -ENODEV;
	}
	if (find_handle(queue->key)) {
		snprintf(err, DP_ERR_MAX, "I/O queue %u of controller %llu exists already", queue->key.qid,
			 (unsigned long long)queue->key.ctrlr);
		return -EEXIST;
	}
	if (queue->sqsize == 0 || queue->sqsize >= 0x4000 || queue->hpda > 31 || queue->cpda > 31 ||
	    (!queue->ops && queue->maxh2cdata < 4096) || queue->icd_max > 1u << 20) {
		snprintf(err, DP_ERR_MAX, "a queue of size %u (0's based) with such parameters cannot be", queue->sqsize);
		return -EINVAL;
	}
	return 0;
}

int dp_queue_adopt(const struct dp_queue *queue, char err[DP_ERR_MAX])
{
	struct handle *h;
	int rc;

	err[0] = 0;
	rc = check(queue, err);
	if (rc < 0)
		return rc;
	h = calloc(1, sizeof(*h));
	if (!h)
		return -ENOMEM;
	h->q = qpair_new(queue);
	if (!h->q) {
		free(h);
		return -ENOMEM;
	}
	h->key = queue->key;
	h->r = place(queue->fd);
	h->q->r = h->r;
	h->q->owner = h;
	h->q->ended = queue_ended;
	h->q->activity = engine_activity(queue->slot);
	h->q->staged_max = h->r->pool.units * STAGING_UNIT / 4;
	if (!queue->ops)
		zc_create(h->q); /* or without */
	snprintf(h->peer, sizeof(h->peer), "%s", queue->peer ? queue->peer : "");
	if (h->q->ops->placed)
		h->q->ops->placed(h->q);
	h->begin.fn = begin;
	LIST_INSERT_HEAD(&handles, h, link);
	placed[h->r->id]++;
	reactor_send(h->r, &h->begin);
	return 0;
}

/* -- closing */

static void close_on_reactor(struct reactor *r, struct rmsg *msg)
{
	struct handle *h = dp_container_of(msg, struct handle, close);

	if (!h->q->finished)
		qpair_end(h->q, END_ORDERED, "closed by the control plane");
}

static void close_one(struct handle *h, struct closing *closing)
{
	struct waiter *w = malloc(sizeof(*w));

	if (!w)
		abort();
	w->closing = closing;
	w->next = h->waiters;
	h->waiters = w;
	closing->left++;
	if (h->ordered)
		return;
	h->ordered = true;
	h->close.fn = close_on_reactor;
	reactor_send(h->r, &h->close);
}

static void closing_begin(void *arg)
{
	closing_step(arg);
}

void dp_queue_close(struct dp_queue_key key, dp_done_fn done, void *arg)
{
	struct closing *closing = malloc(sizeof(*closing));
	struct handle *h;

	if (!closing)
		abort();
	*closing = (struct closing){ 1, done, arg };
	LIST_FOREACH(h, &handles, link)
		if (h->key.ctrlr == key.ctrlr && (key.qid == 0 || h->key.qid == key.qid))
			close_one(h, closing);
	engine_post(closing_begin, closing); /* done is never called from in here */
}

/* -- aborts */

struct abort_msg {
	struct rmsg msg;
	struct handle *h;
	uint16_t cid;
	int rc;
	dp_done_fn done;
	void *arg;
};

static void abort_done(void *arg)
{
	struct abort_msg *m = arg;

	m->done(m->arg, m->rc);
	free(m);
}

static void abort_on_reactor(struct reactor *r, struct rmsg *msg)
{
	struct abort_msg *m = dp_container_of(msg, struct abort_msg, msg);
	struct qpair *q = m->h->q;
	struct request *rq = q->ending == END_NONE ? io_find(q, m->cid) : NULL;

	m->rc = rq && io_cancel(rq, ST_ABORT_REQUESTED);
	engine_post(abort_done, m);
}

void dp_queue_abort(struct dp_queue_key key, uint16_t cid, dp_done_fn done, void *arg)
{
	struct abort_msg *m = calloc(1, sizeof(*m));

	if (!m)
		abort();
	m->h = find_handle(key);
	m->cid = cid;
	m->done = done;
	m->arg = arg;
	m->msg.fn = abort_on_reactor;
	if (m->h)
		reactor_send(m->h->r, &m->msg);
	else
		engine_post(abort_done, m);
}

/* -- statistics */

size_t dp_queue_stats(struct dp_queue_stat **stats)
{
	size_t n = 0, i = 0;
	struct handle *h;

	LIST_FOREACH(h, &handles, link)
		n++;
	*stats = calloc(n ? n : 1, sizeof(**stats));
	if (!*stats)
		return 0;
	LIST_FOREACH(h, &handles, link) {
		struct dp_queue_stat *stat = &(*stats)[i++];

		stat->key = h->key;
		stat->reactor = h->r->id;
		stat->commands = atomic_load_explicit(&h->q->commands, memory_order_relaxed);
		stat->bytes_in = atomic_load_explicit(&h->q->bytes_in, memory_order_relaxed);
		stat->bytes_out = atomic_load_explicit(&h->q->bytes_out, memory_order_relaxed);
		stat->zc_bytes = atomic_load_explicit(&h->q->zc_bytes, memory_order_relaxed);
		stat->zc_copied = atomic_load_explicit(&h->q->zc_copied, memory_order_relaxed);
		stat->rdma = h->q->ops != &qpair_tcp_ops;
		stat->outstanding = atomic_load_explicit(&h->q->in_flight, memory_order_relaxed);
		memcpy(stat->peer, h->peer, sizeof(stat->peer));
	}
	return n;
}

size_t dp_reactor_stats(struct dp_reactor_stat **stats)
{
	unsigned n = engine_reactors();

	*stats = calloc(n ? n : 1, sizeof(**stats));
	if (!*stats)
		return 0;
	for (unsigned i = 0; i < n; i++) {
		struct reactor *r = engine_reactor(i);

		(*stats)[i] = (struct dp_reactor_stat){ .id = i,
							.cpu = r->cpu,
							.busy_ns = atomic_load(&r->busy_ns),
							.idle_ns = atomic_load(&r->idle_ns),
							.wakeups = atomic_load(&r->wakeups),
							.syscalls = atomic_load(&r->syscalls),
							.commands = atomic_load(&r->commands),
							.zc_bytes = atomic_load(&r->zc_bytes),
							.zc_copied = atomic_load(&r->zc_copied),
							.pool_free_bytes = atomic_load(&r->pool_free),
							.pool_waits = atomic_load(&r->pool_waits),
							.queues = atomic_load(&r->n_queues) };
	}
	return n;
}

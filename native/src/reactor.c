/* SPDX-License-Identifier: BSD-3-Clause */
#include "reactor.h"

#include <assert.h>
#include <errno.h>
#include <poll.h>
#include <sched.h>
#include <stdlib.h>
#include <sys/eventfd.h>
#include <unistd.h>

#include "common.h"
#include "qpair.h"
#include "spdk.h"

#define RING_ENTRIES 1024u
#define CQ_ENTRIES 8192u
#define HOT_PAUSE_NS 1000000u /* that no queue is hot after too many wanted to be */

struct reactor_features reactor_features;

/* From the most that the kernel may have to the least that is needed (5.15). */
static const unsigned setup_flags[] = {
	IORING_SETUP_SINGLE_ISSUER | IORING_SETUP_DEFER_TASKRUN | IORING_SETUP_COOP_TASKRUN | IORING_SETUP_TASKRUN_FLAG,
	IORING_SETUP_COOP_TASKRUN | IORING_SETUP_TASKRUN_FLAG,
	0,
};

/* Zero-copy sends that say whether they were (6.2). A kernel that knows less refuses before it looks at the descriptor. */
static bool can_send_zc(struct reactor *r)
{
	struct io_uring_sqe *sqe = io_uring_get_sqe(&r->ring);
	const struct msghdr msg = { 0 };
	struct io_uring_cqe *cqe;
	bool can = false, more = true;

	io_uring_prep_sendmsg_zc(sqe, -1, &msg, 0);
	sqe->ioprio |= IORING_SEND_ZC_REPORT_USAGE;
	io_uring_sqe_set_data(sqe, NULL);
	while (more) {
		int rc = io_uring_submit_and_wait(&r->ring, 1);

		if (rc == -EINTR)
			continue;
		if (rc < 0 || io_uring_peek_cqe(&r->ring, &cqe) < 0)
			return false;
		can |= cqe->res == -EBADF;
		more = cqe->flags & IORING_CQE_F_MORE;
		io_uring_cqe_seen(&r->ring, cqe);
	}
	return can;
}

static int ring_init(struct reactor *r)
{
	int rc = -EINVAL;

	for (size_t i = 0; i < DP_ARRAY_LEN(setup_flags) && rc < 0; i++) {
		struct io_uring_params params = { .flags = setup_flags[i] | IORING_SETUP_CQSIZE | IORING_SETUP_CLAMP,
						  .cq_entries = CQ_ENTRIES };

		rc = io_uring_queue_init_params(RING_ENTRIES, &r->ring, &params);
		if (rc < 0)
			continue;
		r->defer_taskrun = setup_flags[i] & IORING_SETUP_DEFER_TASKRUN;
		r->taskrun_flag = setup_flags[i] & IORING_SETUP_TASKRUN_FLAG;
		r->poll_first = setup_flags[i] & IORING_SETUP_TASKRUN_FLAG; /* both are of 5.19 */
	}
	if (rc < 0)
		return rc;
	reactor_features = (struct reactor_features){ .probed = true,
						      .single_issuer = r->defer_taskrun,
						      .defer_taskrun = r->defer_taskrun,
						      .coop_taskrun = r->taskrun_flag,
						      .taskrun_flag = r->taskrun_flag,
						      .poll_first = r->poll_first,
						      .hugepages = r->pool.huge,
						      .send_zc = can_send_zc(r) };
	io_uring_register_ring_fd(&r->ring); /* saves a look-up a call; older kernels refuse, no harm */
	return 0;
}

static int ring_submit(struct reactor *r, unsigned wait)
{
	int rc;

	counter_add(&r->syscalls, 1);
	if (wait)
		rc = io_uring_submit_and_wait(&r->ring, wait);
	else
		rc = io_uring_submit_and_get_events(&r->ring);
	return rc;
}

struct io_uring_sqe *reactor_sqe(struct reactor *r)
{
	struct io_uring_sqe *sqe = io_uring_get_sqe(&r->ring);

	while (DP_UNLIKELY(!sqe)) {
		ring_submit(r, 0);
		sqe = io_uring_get_sqe(&r->ring);
	}
	return sqe;
}

void reactor_send(struct reactor *r, struct rmsg *msg)
{
	struct rmsg *head = atomic_load_explicit(&r->inbox, memory_order_relaxed);

	do {
		msg->next = head;
	} while (!atomic_compare_exchange_weak_explicit(&r->inbox, &head, msg, memory_order_seq_cst, memory_order_relaxed));
	if (r->efd >= 0 && atomic_load_explicit(&r->asleep, memory_order_seq_cst)) {
		uint64_t one = 1;
		ssize_t rc = write(r->efd, &one, sizeof(one));

		(void)rc; /* full means that it is awake already */
	}
}

void reactor_run_inbox(struct reactor *r)
{
	struct rmsg *msg = atomic_exchange_explicit(&r->inbox, NULL, memory_order_acquire), *fifo = NULL;

	while (msg) { /* the list is newest first */
		struct rmsg *next = msg->next;

		msg->next = fifo;
		fifo = msg;
		msg = next;
	}
	while (fifo) {
		msg = fifo;
		fifo = msg->next;
		msg->fn(r, msg);
	}
}

static void efd_arm(struct reactor *r)
{
	struct io_uring_sqe *sqe = reactor_sqe(r);

	io_uring_prep_read(sqe, r->efd, &r->efd_value, sizeof(r->efd_value), 0);
	io_uring_sqe_set_data(sqe, &r->efd_op);
}

static void efd_done(struct reactor *r, struct uop *op, int res)
{
	if (!r->stopping && res != -ECANCELED)
		efd_arm(r);
}

static unsigned reap(struct reactor *r)
{
	struct io_uring_cqe *cqe;
	unsigned head, n = 0, total = 0;

	do {
		n = 0;
		io_uring_for_each_cqe(&r->ring, head, cqe) {
			struct uop *op = (struct uop *)(uintptr_t)cqe->user_data;

			n++;
			r->cqe_flags = cqe->flags;
			if (op)
				op->fn(r, op, cqe->res);
		}
		io_uring_cq_advance(&r->ring, n);
		total += n;
	} while (n);
	return total;
}

void reactor_flush(struct reactor *r)
{
	struct qpair *q;

	while ((q = STAILQ_FIRST(&r->flush))) {
		STAILQ_REMOVE_HEAD(&r->flush, flush_link);
		q->flush_queued = false;
		q->ops->flush(q);
	}
}

void reactor_cool(struct reactor *r, struct qpair *q)
{
	unsigned i = 0;

	while (r->hot[i] != q)
		i++;
	assert(i < r->n_hot);
	r->hot[i] = r->hot[--r->n_hot];
	q->hot = false;
}

static void cool_all(struct reactor *r)
{
	while (r->n_hot) {
		struct qpair *q = r->hot[0];

		reactor_cool(r, q);
		qpair_rx_arm_ring(q);
	}
}

bool reactor_heat(struct reactor *r, struct qpair *q)
{
	if (!r->spin_ns || r->now_ns < r->hot_from)
		return false;
	if (r->n_hot == HOT_MAX) {
		r->hot_from = r->now_ns + HOT_PAUSE_NS;
		cool_all(r);
		return false;
	}
	r->hot[r->n_hot++] = q;
	q->hot = true;
	return true;
}

/* Once around; one that had something has left hot[], and may be back at its end. */
static bool poll_hot(struct reactor *r)
{
	bool any = false;

	for (unsigned i = 0, left = r->n_hot; left && i < r->n_hot; left--) {
		counter_add(&r->syscalls, 1);
		if (qpair_rx_poll(r->hot[i]))
			any = true;
		else
			i++;
	}
	return any;
}

bool reactor_poller(struct reactor *r, bool (*poll)(struct reactor *r), bool (*rest)(struct reactor *r))
{
	for (unsigned i = 0; i < r->n_pollers; i++)
		if (r->pollers[i].poll == poll)
			return false;
	assert(r->n_pollers < POLLERS_MAX);
	r->pollers[r->n_pollers++] = (struct reactor_poller){ poll, rest };
	return true;
}

static bool poll_all(struct reactor *r)
{
	bool any = false;

	for (unsigned i = 0; i < r->n_pollers; i++)
		any |= r->pollers[i].poll(r);
	return any;
}

static bool rest_all(struct reactor *r)
{
	bool any = false;

	for (unsigned i = 0; i < r->n_pollers; i++)
		any |= r->pollers[i].rest(r);
	return any;
}

/*
 * A hint: the kernel can set IORING_SQ_TASKRUN after another CPU's work has been run already, and then it stays set until
 * there is work again. So it is never waited for to go away.
 */
static bool flagged(struct reactor *r)
{
	return IO_URING_READ_ONCE(*r->ring.sq.kflags) & (IORING_SQ_TASKRUN | IORING_SQ_CQ_OVERFLOW);
}

static bool kernel_has_work(struct reactor *r)
{
	return io_uring_cq_ready(&r->ring) || flagged(r);
}

static void cpu_relax(void)
{
#if defined(__x86_64__) || defined(__i386__)
	__builtin_ia32_pause();
#elif defined(__aarch64__)
	__asm__ volatile("yield");
#endif
}

/* Waits for something to do: a bounded time in user space, then in the kernel. */
static void reactor_idle(struct reactor *r)
{
	uint64_t start = dp_now_ns();

	if (r->spin_ns && !flagged(r)) { /* a flag that is still set says nothing, and the sleep below runs what there is */
		uint64_t now = start;

		while (now - r->now_ns < r->spin_ns || now < r->spin_until_ns) {
			for (int i = 0; i < 16; i++) {
				if (kernel_has_work(r) || atomic_load_explicit(&r->inbox, memory_order_relaxed) ||
				    poll_all(r))
					return;
				if (r->n_hot)
					break;
				cpu_relax();
			}
			now = dp_now_ns();
			if (r->n_hot && poll_hot(r)) {
				r->now_ns = now;
				return;
			}
		}
	}
	if (r->n_hot) {
		cool_all(r);
		return;
	}
	if (rest_all(r))
		return;
	atomic_store_explicit(&r->asleep, true, memory_order_seq_cst);
	if (!atomic_load_explicit(&r->inbox, memory_order_seq_cst)) {
		ring_submit(r, 1);
		counter_add(&r->wakeups, 1);
	}
	atomic_store_explicit(&r->asleep, false, memory_order_relaxed);
	counter_add(&r->idle_ns, dp_now_ns() - start);
}

static void reactor_loop(struct reactor *r)
{
	uint64_t busy_from = dp_now_ns();

	r->now_ns = busy_from;
	while (!r->stopping) {
		bool worked = false;

		if (io_uring_cq_ready(&r->ring)) {
			r->now_ns = dp_now_ns();
			worked = reap(r) > 0;
		}
		if (atomic_load_explicit(&r->inbox, memory_order_relaxed)) {
			r->now_ns = dp_now_ns();
			reactor_run_inbox(r);
			worked = true;
		}
		if (worked && r->n_hot)
			poll_hot(r);
		if (r->n_pollers) {
			uint64_t before = r->now_ns;

			r->now_ns = dp_now_ns();
			if (poll_all(r))
				worked = true;
			else
				r->now_ns = before;
		}
		reactor_flush(r);
		if (io_uring_sq_ready(&r->ring) || flagged(r)) {
			ring_submit(r, 0);
			if (io_uring_cq_ready(&r->ring))
				continue;
		}
		if (!worked) {
			uint64_t idle = atomic_load_explicit(&r->idle_ns, memory_order_relaxed);

			atomic_store_explicit(&r->pool_free, r->pool.free_bytes, memory_order_relaxed);
			atomic_store_explicit(&r->pool_waits, r->pool.waits, memory_order_relaxed);
			reactor_idle(r);
			atomic_store_explicit(&r->busy_ns, dp_now_ns() - busy_from - idle, memory_order_relaxed);
		}
	}
}

static void *reactor_main(void *arg)
{
	struct reactor *r = arg;

	r->start_rc = ring_init(r);
	sem_post(&r->started);
	if (r->start_rc < 0)
		return NULL;
	r->efd_op.fn = efd_done;
	efd_arm(r);
	reactor_loop(r);
	io_uring_queue_exit(&r->ring);
	return NULL;
}

static void name_thread(struct reactor *r)
{
	char name[16] = "reactor ";
	unsigned n = r->id;

	name[8] = (char)('0' + n / 10 % 10);
	name[9] = (char)('0' + n % 10);
	name[10] = 0;
	pthread_setname_np(r->thread, name);
}

static void pin(struct reactor *r)
{
	cpu_set_t set;

	if (r->cpu < 0)
		return;
	CPU_ZERO(&set);
	CPU_SET((size_t)r->cpu, &set);
	pthread_setaffinity_np(r->thread, sizeof(set), &set);
}

int reactor_start(struct reactor *r, const struct reactor_options *options)
{
	int rc;

	r->id = options->id;
	r->cpu = options->cpu;
	r->spin_ns = (uint64_t)options->spin_us * 1000;
	STAILQ_INIT(&r->flush);
	LIST_INIT(&r->queues);
	LIST_INIT(&r->ctrlrs);
	LIST_INIT(&r->upcalls);
	rc = staging_init(&r->pool, options->pool_bytes, options->hugepages);
	if (rc < 0)
		return rc;
	rc = dp_spdk_mem_add(r->pool.base, r->pool.units * STAGING_UNIT);
	if (rc < 0)
		goto no_efd;
	r->efd = eventfd(0, EFD_CLOEXEC);
	if (r->efd < 0) {
		rc = -errno;
		goto no_efd;
	}
	sem_init(&r->started, 0, 0);
	rc = -pthread_create(&r->thread, NULL, reactor_main, r);
	if (rc < 0)
		goto no_thread;
	pin(r);
	name_thread(r);
	while (sem_wait(&r->started) < 0 && errno == EINTR)
		;
	if (r->start_rc == 0)
		return 0;
	rc = r->start_rc;
	pthread_join(r->thread, NULL);
no_thread:
	close(r->efd);
no_efd:
	dp_spdk_mem_remove(r->pool.base, r->pool.units * STAGING_UNIT);
	staging_fini(&r->pool);
	return rc;
}

struct stop_msg {
	struct rmsg msg;
};

static void stop_fn(struct reactor *r, struct rmsg *msg)
{
	r->stopping = true;
	free(dp_container_of(msg, struct stop_msg, msg));
}

void reactor_stop(struct reactor *r)
{
	struct stop_msg *stop = calloc(1, sizeof(*stop));

	if (!stop)
		abort();
	stop->msg.fn = stop_fn;
	reactor_send(r, &stop->msg);
	pthread_join(r->thread, NULL);
	close(r->efd);
	dp_spdk_mem_remove(r->pool.base, r->pool.units * STAGING_UNIT);
	staging_fini(&r->pool);
	sem_destroy(&r->started);
}

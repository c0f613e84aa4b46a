/* SPDX-License-Identifier: BSD-3-Clause
 *
 * worker.c: the threads. Each serves its queues from one receive buffer, so that what the kernel copies stays in the
 * core's cache. A thread with one queue waits in recv(2) itself; one with more, in epoll_wait(2).
 */
#include <errno.h>
#include <poll.h>
#include <pthread.h>
#include <sched.h>
#include <stdio.h>
#include <stdlib.h>
#include <sys/epoll.h>
#include <sys/eventfd.h>
#include <sys/resource.h>
#include <sys/socket.h>
#include <sys/time.h>
#include <unistd.h>

#include "queue.h"
#include "rdma.h"

#define RX_SIZE (128u << 10)
#define RX_SIZE_DISCARD 4096u /* --discard: little data beside the headers */
#define SKIP_MIN 16384u
#define TICK_MS 100
#define EVENTS 64

struct worker {
	pthread_t thread;
	bool started;
	unsigned index, count;
	struct queue *queues;
	struct stats *stats;
	uint8_t *rx;
	int epoll;
};

static struct worker *workers;
static unsigned worker_count;
static int done_fd = -1;
static _Atomic unsigned ended;
static pthread_barrier_t gate;

static bool finished(const struct worker *worker)
{
	for (unsigned i = 0; i < worker->count; i++)
		if (worker->queues[i].load.phase != PHASE_DONE || worker->queues[i].inflight > 0)
			return false;
	return true;
}

/* Receives once and answers. 1: there was something; 0: nothing for now; -1: over. */
static int serve(struct worker *worker, struct queue *queue, int flags)
{
	bool discard = bench.opt.discard && !bench.opt.verify && !bench.opt.ddgst;
	uint32_t skip = discard ? queue_skippable(queue, SKIP_MIN) : 0;
	size_t size = discard ? RX_SIZE_DISCARD : RX_SIZE;
	if (skip > 0)
		size = skip < RX_SIZE ? skip : RX_SIZE;
	ssize_t got = recv(queue->conn.fd, worker->rx, size, flags | (skip ? MSG_TRUNC : 0));
	worker->stats->recvs++;
	if (got < 0 && (errno == EAGAIN || errno == EWOULDBLOCK || errno == EINTR))
		return 0;
	if (got < 0)
		return bench_fail(EXIT_RUN_FAILED, "queue %u: receive: %m", queue->qid);
	if (got == 0)
		return bench_fail(EXIT_RUN_FAILED, "queue %u: the target closed the connection with %u commands "
				  "outstanding", queue->qid, queue->inflight);
	uint64_t now = now_ns();
	int rc = skip ? queue_skipped(queue, (uint32_t)got, now) : queue_receive(queue, worker->rx, (size_t)got, now);
	return rc || queue_submit(queue, now_ns()) ? -1 : 1;
}

/* Between receptions. -1: over. */
static int tick(struct worker *worker, uint64_t *next_ns)
{
	uint64_t now = now_ns();
	if (bench_failed())
		return -1;
	if (now < *next_ns)
		return 0;
	*next_ns = now + TICK_MS * 1000000ull;
	for (unsigned i = 0; i < worker->count; i++)
		if (queue_check_timeouts(&worker->queues[i], now))
			return -1;
	return 0;
}

static int run_one(struct worker *worker)
{
	struct queue *queue = worker->queues;
	uint64_t spin_ns = bench.opt.spin_us * 1000ull, busy_ns = now_ns(), next_ns = 0;
	struct timeval limit = {.tv_usec = TICK_MS * 1000};
	setsockopt(queue->conn.fd, SOL_SOCKET, SO_RCVTIMEO, &limit, sizeof(limit));
	while (!finished(worker)) {
		bool spin = bench.opt.poll || (spin_ns && now_ns() - busy_ns < spin_ns);
		if (queue->want_out && !spin) {
			struct pollfd fd = {.fd = queue->conn.fd, .events = POLLIN | POLLOUT};
			worker->stats->waits++;
			poll(&fd, 1, TICK_MS);
		}
		if (queue->want_out && queue_flush(queue, now_ns()))
			return -1;
		int rc = serve(worker, queue, spin || queue->want_out ? MSG_DONTWAIT : 0);
		if (rc < 0 || tick(worker, &next_ns))
			return -1;
		if (rc > 0 && spin_ns)
			busy_ns = now_ns();
	}
	return 0;
}

static int watch(const struct worker *worker, struct queue *queue, int how)
{
	struct epoll_event event = {.events = EPOLLIN | (queue->want_out ? EPOLLOUT : 0u), .data.ptr = queue};
	if (epoll_ctl(worker->epoll, how, queue->conn.fd, &event) == 0)
		return 0;
	return bench_fail(EXIT_RUN_FAILED, "epoll_ctl: %m");
}

static int run_event(struct worker *worker, const struct epoll_event *event)
{
	struct queue *queue = event->data.ptr;
	bool wanted = queue->want_out;
	if (event->events & EPOLLOUT && queue_flush(queue, now_ns()))
		return -1;
	if (event->events & ~(uint32_t)EPOLLOUT && serve(worker, queue, MSG_DONTWAIT) < 0)
		return -1;
	return wanted != queue->want_out ? watch(worker, queue, EPOLL_CTL_MOD) : 0;
}

static int run_many(struct worker *worker)
{
	struct epoll_event events[EVENTS];
	uint64_t spin_ns = bench.opt.spin_us * 1000ull, busy_ns = now_ns(), next_ns = 0;
	for (unsigned i = 0; i < worker->count; i++)
		if (watch(worker, &worker->queues[i], EPOLL_CTL_ADD))
			return -1;
	while (!finished(worker)) {
		bool spin = bench.opt.poll || (spin_ns && now_ns() - busy_ns < spin_ns);
		int count = epoll_wait(worker->epoll, events, EVENTS, spin ? 0 : TICK_MS);
		worker->stats->waits++;
		if (count < 0 && errno != EINTR)
			return bench_fail(EXIT_RUN_FAILED, "epoll_wait: %m");
		for (int i = 0; i < count; i++)
			if (run_event(worker, &events[i]))
				return -1;
		if (tick(worker, &next_ns))
			return -1;
		if (count > 0 && spin_ns)
			busy_ns = now_ns();
	}
	return 0;
}

static int watch_rdma(const struct worker *worker)
{
	for (unsigned i = 0; i < worker->count; i++) {
		struct queue *queue = &worker->queues[i];
		struct epoll_event completions = {.events = EPOLLIN, .data.ptr = queue}, end = {.events = EPOLLIN};
		if (epoll_ctl(worker->epoll, EPOLL_CTL_ADD, rdma_fd(&queue->conn), &completions) ||
		    epoll_ctl(worker->epoll, EPOLL_CTL_ADD, queue->conn.fd, &end))
			return bench_fail(EXIT_RUN_FAILED, "epoll_ctl: %m");
	}
	return 0;
}

/* Takes what has completed on all queues. 1: there was something; 0: nothing for now; -1: over. */
static int serve_rdma(struct worker *worker)
{
	int any = 0;
	for (unsigned i = 0; i < worker->count; i++) {
		struct queue *queue = &worker->queues[i];
		int rc = rdma_receive(queue, now_ns());
		if (rc < 0 || (rc > 0 && queue_submit(queue, now_ns())))
			return -1;
		any |= rc;
	}
	return any;
}

/* Every queue is armed: waits until something completes. */
static int wait_rdma(struct worker *worker)
{
	struct epoll_event events[EVENTS];
	int count = epoll_wait(worker->epoll, events, EVENTS, TICK_MS);
	worker->stats->waits++;
	if (count < 0 && errno != EINTR)
		return bench_fail(EXIT_RUN_FAILED, "epoll_wait: %m");
	for (int i = 0; i < count; i++) {
		if (events[i].data.ptr == NULL)
			return bench_fail(EXIT_RUN_FAILED, "the target closed the connection of an I/O queue");
		rdma_woken(events[i].data.ptr);
	}
	return 0;
}

static int run_rdma(struct worker *worker)
{
	uint64_t spin_ns = bench.opt.spin_us * 1000ull, busy_ns = now_ns(), next_ns = 0;
	bool armed = false;
	if (watch_rdma(worker))
		return -1;
	while (!finished(worker)) {
		int rc = serve_rdma(worker);
		if (rc < 0 || tick(worker, &next_ns))
			return -1;
		if (rc > 0) {
			busy_ns = spin_ns ? now_ns() : 0;
			armed = false;
			continue;
		}
		if (bench.opt.poll || (spin_ns && now_ns() - busy_ns < spin_ns))
			continue;
		if (armed && wait_rdma(worker))
			return -1;
		armed = !armed; /* what completes before a queue is armed tells nobody: it is looked for once more */
		for (unsigned i = 0; armed && i < worker->count; i++)
			if (rdma_arm(&worker->queues[i]))
				return -1;
	}
	return 0;
}

static void pin(unsigned index)
{
	cpu_set_t set;
	if (index >= bench.opt.cpu_count)
		return;
	CPU_ZERO(&set);
	CPU_SET((size_t)bench.opt.cpus[index], &set);
	if (pthread_setaffinity_np(pthread_self(), sizeof(set), &set))
		bench_fail(EXIT_USAGE, "cannot run on CPU %d", bench.opt.cpus[index]);
}

static uint64_t usec(const struct timeval *time)
{
	return (uint64_t)time->tv_sec * 1000000ull + (uint64_t)time->tv_usec;
}

static void *thread_main(void *arg)
{
	struct worker *worker = arg;
	struct rusage before, after;
	pin(worker->index);
	pthread_barrier_wait(&gate); /* main sets the times in between */
	pthread_barrier_wait(&gate);
	getrusage(RUSAGE_THREAD, &before);
	int rc = bench_failed() ? -1 : 0;
	for (unsigned i = 0; i < worker->count && rc == 0; i++)
		rc = queue_submit(&worker->queues[i], now_ns());
	if (rc == 0 && bench.opt.rdma)
		rc = run_rdma(worker);
	else if (rc == 0)
		rc = worker->count == 1 ? run_one(worker) : run_many(worker);
	getrusage(RUSAGE_THREAD, &after);
	worker->stats->cpu_user_us = usec(&after.ru_utime) - usec(&before.ru_utime);
	worker->stats->cpu_system_us = usec(&after.ru_stime) - usec(&before.ru_stime);
	if (atomic_fetch_add(&ended, 1) + 1 == worker_count) {
		uint64_t one = 1;
		if (write(done_fd, &one, sizeof(one)) < 0)
			abort();
	}
	return NULL;
}

static int prepare(struct worker *worker, unsigned index)
{
	const struct options *opt = &bench.opt;
	unsigned first = opt->queues * index / worker_count, end = opt->queues * (index + 1) / worker_count;
	worker->index = index;
	worker->epoll = epoll_create1(EPOLL_CLOEXEC);
	worker->queues = calloc(end - first, sizeof(*worker->queues));
	worker->stats = calloc(1, sizeof(*worker->stats));
	worker->rx = malloc(RX_SIZE);
	if (worker->epoll < 0 || !worker->queues || !worker->stats || !worker->rx)
		return bench_fail(EXIT_RUN_FAILED, "no memory for %u queues", end - first);
	for (int op = 0; op < OP_COUNT; op++)
		hist_init(&worker->stats->op[op].latency);
	for (unsigned i = first; i < end; i++) {
		struct queue *queue = &worker->queues[worker->count++];
		uint16_t sqsize = (uint16_t)((opt->queue_size ? opt->queue_size : opt->depth + 1) - 1);
		if (queue_init(queue, (uint16_t)(i + 1), i, worker->stats) ||
		    host_connect_queue(&queue->conn, queue->qid, sqsize) || (opt->rdma && rdma_register(queue)))
			return -1;
	}
	return 0;
}

static void set_times(void)
{
	uint64_t now = now_ns();
	bench.start_ns = now;
	bench.measure_ns = now + bench.opt.warmup_ns;
	bench.end_ns = bench.opt.count ? UINT64_MAX : bench.measure_ns + bench.opt.time_ns;
}

int workers_start(void)
{
	worker_count = bench.opt.threads;
	workers = calloc(worker_count, sizeof(*workers));
	done_fd = eventfd(0, EFD_CLOEXEC | EFD_NONBLOCK);
	if (workers == NULL || done_fd < 0)
		return bench_fail(EXIT_RUN_FAILED, "no memory for %u threads", worker_count);
	for (unsigned i = 0; i < worker_count; i++)
		if (prepare(&workers[i], i))
			return -1;
	pthread_barrier_init(&gate, NULL, worker_count + 1);
	for (unsigned i = 0; i < worker_count; i++) {
		if (pthread_create(&workers[i].thread, NULL, thread_main, &workers[i])) {
			fprintf(stderr, "nvmet-p2p-bench: no thread\n");
			_exit(EXIT_RUN_FAILED); /* those before it wait at the gate */
		}
		workers[i].started = true;
	}
	pthread_barrier_wait(&gate);
	set_times();
	pthread_barrier_wait(&gate);
	return 0;
}

int workers_done_fd(void)
{
	return done_fd;
}

static void add(struct stats *total, const struct stats *stats)
{
	for (int op = 0; op < OP_COUNT; op++) {
		total->op[op].ios += stats->op[op].ios;
		hist_merge(&total->op[op].latency, &stats->op[op].latency);
	}
	if (stats->last_ns > total->last_ns)
		total->last_ns = stats->last_ns;
	total->recvs += stats->recvs;
	total->sends += stats->sends;
	total->waits += stats->waits;
	total->success_flags += stats->success_flags;
	total->r2ts += stats->r2ts;
	total->verified += stats->verified;
	total->cpu_user_us += stats->cpu_user_us;
	total->cpu_system_us += stats->cpu_system_us;
}

void workers_join(struct stats *total)
{
	for (int op = 0; op < OP_COUNT; op++)
		hist_init(&total->op[op].latency);
	for (unsigned i = 0; workers != NULL && i < worker_count; i++) {
		struct worker *worker = &workers[i];
		if (worker->started)
			pthread_join(worker->thread, NULL);
		if (worker->stats != NULL)
			add(total, worker->stats);
		for (unsigned q = 0; q < worker->count; q++)
			queue_free(&worker->queues[q]);
		if (worker->epoll > 0)
			close(worker->epoll);
		free(worker->queues);
		free(worker->stats);
		free(worker->rx);
	}
	free(workers);
	if (done_fd >= 0)
		close(done_fd);
}

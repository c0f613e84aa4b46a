/* SPDX-License-Identifier: BSD-3-Clause
 *
 * reactor.h: one thread and one io_uring on one core. Everything that a reactor owns is touched by its thread alone;
 * others talk to it by messages.
 */
#pragma once

#include <liburing.h>
#include <pthread.h>
#include <semaphore.h>
#include <stdatomic.h>
#include <sys/queue.h>

#include "engine.h"
#include "staging.h"

#define REACTORS_MAX 64u
#define POLLERS_MAX 2u
#define HOT_MAX 2u /* queues that are read without the ring; each costs a system call a round */

#ifndef IORING_SEND_ZC_REPORT_USAGE /* liburing 2.4 */
#define IORING_SEND_ZC_REPORT_USAGE (1U << 3)
#define IORING_NOTIF_USAGE_ZC_COPIED (1U << 31)
#endif

struct reactor;
struct qpair;

/* An operation in the ring: its address is the user_data. Embedded in whatever waits for it. */
struct uop {
	void (*fn)(struct reactor *r, struct uop *op, int res);
};

/* A message to a reactor; fn runs on its thread and owns the message. */
struct rmsg {
	struct rmsg *next;
	void (*fn)(struct reactor *r, struct rmsg *msg);
};

STAILQ_HEAD(qpair_flush_list, qpair);
LIST_HEAD(qpair_list, qpair);
LIST_HEAD(ctrlr_r_list, ctrlr_r);
LIST_HEAD(upcall_list, upcall);
LIST_HEAD(rdma_hot_list, rdma_io);

/* What has no descriptor in the ring: RDMA's completion queues, drives in user space. */
struct reactor_poller {
	bool (*poll)(struct reactor *r); /* true: there was something */
	bool (*rest)(struct reactor *r); /* before it sleeps: asks to be woken; true: there was something, do not sleep */
};

struct reactor {
	struct io_uring ring;
	unsigned id;
	int cpu; /* -1: not pinned */
	uint64_t now_ns; /* as of the last round of the loop */
	uint64_t spin_ns;
	uint32_t cqe_flags; /* of the completion whose uop is being called */
	struct qpair_flush_list flush; /* queues with something to send */
	struct qpair *hot[HOT_MAX]; /* see reactor_heat */
	unsigned n_hot;
	uint64_t hot_from; /* not before */
	struct staging pool;
	struct qpair_list queues;
	struct ctrlr_r_list ctrlrs;
	struct upcall_list upcalls;
	bool defer_taskrun, taskrun_flag, poll_first;
	bool stopping;
	bool copying; /* an overlapping Copy has its memory */
	struct reactor_poller pollers[POLLERS_MAX];
	unsigned n_pollers;
	uint64_t spin_until_ns; /* a poller waits for something that nothing wakes it for */
	struct rdma_hot_list rdma_hot;
	/* Without a ring (tests, fuzzers): takes what a queue sends; returns how much of it "the socket took". */
	ssize_t (*sink)(struct qpair *q, const struct iovec *iov, unsigned n);

	_Atomic(struct rmsg *) inbox __attribute__((aligned(64)));
	atomic_bool asleep;
	int efd;
	uint64_t efd_value;
	struct uop efd_op;
	pthread_t thread;
	sem_t started;
	int start_rc;

	/* counters; written here, read by the control thread */
	_Atomic uint64_t busy_ns, idle_ns, wakeups, syscalls, commands, zc_bytes, zc_copied;
	_Atomic uint32_t n_queues;
	_Atomic uint64_t pool_free, pool_waits;
};

struct reactor_options {
	unsigned id;
	int cpu;
	uint32_t spin_us;
	size_t pool_bytes;
	bool hugepages;
};

int reactor_start(struct reactor *r, const struct reactor_options *options); /* 0 or -errno */
void reactor_stop(struct reactor *r);                                         /* joins; its queues are gone already */
void reactor_send(struct reactor *r, struct rmsg *msg);                       /* any thread */
void reactor_run_inbox(struct reactor *r);                                    /* tests without a thread */
void reactor_flush(struct reactor *r);
/* False: it is one already. */
bool reactor_poller(struct reactor *r, bool (*poll)(struct reactor *r), bool (*rest)(struct reactor *r));

/*
 * While one or two queues exchange a command at a time, the ring only costs: arming a poll, waking it, running its task
 * work. Such a queue is "hot": the reactor asks its socket again and again while it spins, and gives it back to the ring
 * before it sleeps, or when more queues want the same. False: not now. A queue that ends calls reactor_cool.
 */
bool reactor_heat(struct reactor *r, struct qpair *q);
void reactor_cool(struct reactor *r, struct qpair *q); /* one that is hot; it is not read any more */

/* Never NULL: submits what is there when the ring is full. liburing's prep functions clear user_data: set it after. */
struct io_uring_sqe *reactor_sqe(struct reactor *r);

static inline void counter_add(_Atomic uint64_t *counter, uint64_t n)
{
	/* One writer: no need for a locked instruction. */
	atomic_store_explicit(counter, atomic_load_explicit(counter, memory_order_relaxed) + n, memory_order_relaxed);
}

/* What the kernel offers; filled by the first reactor that starts. */
struct reactor_features {
	bool probed, single_issuer, defer_taskrun, coop_taskrun, taskrun_flag, poll_first, hugepages, send_zc;
};

extern struct reactor_features reactor_features;

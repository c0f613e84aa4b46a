/* SPDX-License-Identifier: BSD-3-Clause
 *
 * bench.h: nvmet-p2p-bench, an NVMe/TCP and NVMe/RDMA load generator. One association with a target; its I/O queues are spread over
 * threads. main.c -> options.c, host.c (admin queue, blocking), worker.c (threads), queue.c (an I/O queue, never
 * blocks), report.c; below them conn.c, rdma.c, pdu.h, pattern.c, hist.c.
 *
 * The first failure wins: bench_fail() keeps its text and exit status and makes every thread stop. Functions return 0,
 * or -1 after bench_fail().
 */
#pragma once

#include <stdatomic.h>
#include <stdbool.h>
#include <stddef.h>
#include <stdint.h>

#include "hist.h"
#include "pdu.h"

#ifndef DP_VERSION
#define DP_VERSION "unknown" /* meson gives it */
#endif
#define NQN_MAX 223 /* bytes, terminating zero not included (Base 4.7) */
#define CPUS_MAX 256
#define QUEUES_MAX 1024
#define WATCH_MAX 64
#define DEPTH_MAX 4096
#define BS_MAX (16u << 20)
#define VERIFY_UNITS_MAX (1ull << 28)
#define NSEC 1000000000ull

enum exit_status { EXIT_RUN_FAILED = 1, EXIT_USAGE = 2, EXIT_MISMATCH = 3, EXIT_INTERRUPTED = 4 };
enum op { OP_READ, OP_WRITE, OP_COUNT };

struct options {
	const char *traddr, *trsvcid, *subnqn, *hostnqn, *json;
	const char *congestion; /* NULL: the system's */
	uint8_t hostid[16];
	uint32_t nsid; /* 0: the first active one */
	unsigned read_percent;
	bool rdma, random, verify, hdgst, ddgst, no_icd, disable_sqflow, discard, poll, quiet;
	uint8_t hpda; /* dwords, 0's based */
	uint32_t maxr2t; /* 0's based */
	uint32_t bs; /* bytes */
	uint32_t depth, queues, threads;
	uint32_t queue_size; /* entries; 0: depth + 1 */
	uint64_t lba_start, lba_count; /* count 0: up to the end */
	uint64_t count; /* I/Os; 0: by time */
	uint64_t time_ns, warmup_ns, timeout_ns;
	uint32_t spin_us, kato_ms;
	uint64_t seed;
	int cpus[CPUS_MAX];
	unsigned cpu_count;
	int watch[WATCH_MAX]; /* processes */
	unsigned watch_count;
};

/* What was negotiated on one connection. */
struct params {
	bool hdgst, ddgst;
	uint32_t data_align; /* bytes, of PDO in what the host sends */
	uint32_t maxh2cdata; /* bytes */
	uint32_t maxr2t;     /* R2Ts outstanding for one command, 1's based */
};

struct conn {
	int fd;            /* a socket, or that of the connection manager's events */
	struct rdma *rdma; /* NULL: TCP */
	struct params params;
	uint16_t next_cid;
};

/* What the target said of itself; constant once the I/O queues are connected. */
struct target {
	uint16_t cntlid;
	char model[41], serial[21], firmware[9];
	uint32_t nsid, lba_size;
	uint64_t blocks;
	uint32_t icd_max;      /* bytes of in-capsule data on I/O queues */
	uint64_t transfer_max; /* bytes; 0: no limit */
	uint32_t entries_max;  /* of an I/O queue */
};

/* CPU time that other processes took between two moments. */
struct watch {
	uint64_t begun_ns, ended_ns, begun_cpu_ns, cpu_ns;
};

struct run {
	struct options opt;
	struct target target;
	struct conn admin;
	uint64_t units;      /* of opt.bs bytes in the LBA range */
	uint32_t unit_blocks;
	uint8_t *payload;    /* what plain writes send: opt.bs bytes */
	uint64_t start_ns, measure_ns, end_ns; /* end_ns: UINT64_MAX when counting */
	_Atomic uint64_t stopped_ns;           /* when a run that was stopped early ended; 0: it was not */
	struct watch watch;
	_Atomic bool stop;
	_Atomic bool interrupted;
};

struct op_stats {
	uint64_t ios;
	struct hist latency; /* ns */
};

struct stats {
	struct op_stats op[OP_COUNT];
	uint64_t last_ns;          /* of the last I/O counted */
	uint64_t recvs, sends, waits;
	uint64_t success_flags;    /* reads that ended by the SUCCESS flag */
	uint64_t r2ts;
	uint64_t verified;         /* units compared, the final pass included */
	uint64_t cpu_user_us, cpu_system_us; /* of this thread */
};

extern struct run bench;

/* main.c */
int bench_fail(int status, const char *format, ...) __attribute__((format(printf, 2, 3), cold));
bool bench_failed(void);
const char *bench_failure(void);
uint64_t now_ns(void);

/* options.c: exits by itself on a wrong option. */
void options_parse(struct options *opt, int argc, char **argv);

/* conn.c: blocking, each call ends within opt.timeout_ns. */
int conn_open(struct conn *conn, uint16_t qid, uint16_t sqsize); /* sqsize is 0's based */
int conn_command(struct conn *conn, uint8_t sqe[64], const void *out, uint32_t out_len, void *in, uint32_t in_len,
		 uint8_t cqe[16], const char *what);
void conn_close(struct conn *conn);
const char *status_text(uint16_t status);

/* host.c */
int host_start(void);
int host_connect_queue(struct conn *conn, uint16_t qid, uint16_t sqsize);
int host_keep_alive(void);
void host_stop(void);

/* worker.c */
struct worker;
int workers_start(void);
int workers_done_fd(void); /* readable once every thread has ended */
void workers_join(struct stats *total);

/* watch.c */
uint64_t watch_step(uint64_t now); /* when it wants to be called next */
void watch_end(void);

/* report.c */
void report(const struct stats *stats);

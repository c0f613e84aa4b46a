/* SPDX-License-Identifier: BSD-3-Clause
 *
 * engine.h: the border inside the data plane. Above it the control thread (main.c, channel.c, rpc*.c): the capsule
 * channel and JSON-RPC, no I/O. Below it the reactors (reactor.c, qpair_tcp.c, io.c, copy.c, bdev_*.c, staging*.c).
 *
 * Every function here is called on the control thread. One that takes a callback returns at once and calls it later
 * on the control thread (through engine_options.post), exactly once. Errors are negated errno values; `err`, where
 * there is one, receives a message for the operator. Strings given in are copied.
 */
#pragma once

#include <stdbool.h>
#include <stddef.h>
#include <stdint.h>
#include <sys/types.h>

#define DP_NAME_MAX 255      /* bytes of a bdev's name */
#define DP_ERR_MAX 256       /* bytes of an error message, terminating zero included */
#define DP_NS_PER_CTRLR 1024 /* namespaces that a controller can see */

typedef void (*dp_done_fn)(void *arg, int rc);
typedef void (*dp_post_fn)(void (*fn)(void *arg), void *arg); /* runs fn(arg) on the control thread; any thread */

struct dp_queue_key {
	uint64_t ctrlr; /* ControllerKey of the control plane */
	uint16_t qid;
};

/* -- life ---------------------------------------------------------------------------------------------------------- */

struct dp_bdev_facts {
	uint32_t block_size;
	uint64_t num_blocks;
	bool readonly, write_cache, unmap, write_zeroes;
	uint32_t physical_block_size;
	bool flush_failed; /* writes may have been lost: Flush and FUA fail until a rescan */
};

struct dp_events {
	/* An I/O queue ended by itself (peer gone, protocol error). Not for queues that were closed from here. */
	void (*queue_closed)(struct dp_queue_key key, const char *reason);
	/* A capsule that the engine does not decide: answer with dp_upcall_complete(token, ...), exactly once. */
	void (*upcall)(struct dp_queue_key key, uint64_t token, const uint8_t sqe[64], const void *data, size_t len);
	/* A back end changed its size or another fact, or was lost (facts NULL); layers on it before it. Not what
	 * dp_bdev_resize has answered. */
	void (*bdev_changed)(const char *name, const struct dp_bdev_facts *facts);
	/* The memory of a pool is gone (once for each pool). Its I/O goes on in host memory; delete it, and create it again
	 * when its provider has returned. */
	void (*pool_lost)(const char *name, const char *why);
};

/* Sends of NVMe/TCP that the kernel need not copy. AUTO: a connection whose device copies after all goes back to plain ones. */
enum dp_zero_copy { DP_ZERO_COPY_AUTO, DP_ZERO_COPY_OFF, DP_ZERO_COPY_ALWAYS };

struct dp_options {
	const char *cpumask;       /* as SPDK's -m: "0x3", "[0,2-3]"; NULL: one reactor on any CPU */
	uint32_t spin_us;          /* how long a reactor spins after work before it sleeps; 0: never */
	uint64_t pool_bytes;       /* host staging memory for all reactors together */
	bool hugepages;            /* try them */
	enum dp_zero_copy zero_copy;
	uint32_t zero_copy_min;    /* bytes of a Read's data */
	dp_post_fn post;
	const struct dp_events *events;
	volatile uint64_t *activity; /* shared with the control plane: commands received, one slot a queue (dp_queue.slot) */
	uint32_t activity_slots;
};

int dp_start(const struct dp_options *options, char err[DP_ERR_MAX]);
void dp_stop(dp_done_fn done, void *arg); /* ends every queue, drains every back end, joins the reactors */

/* What the kernel offers and what is in use, for p2p_get_info; a JSON object as text, to be freed by the caller. */
char *dp_describe(void);

/* -- back ends ----------------------------------------------------------------------------------------------------- */

enum dp_bdev_kind { DP_BDEV_MALLOC, DP_BDEV_NULL, DP_BDEV_URING, DP_BDEV_DELAY, DP_BDEV_ERROR, DP_BDEV_CMB, DP_BDEV_SPDK };

struct dp_bdev_config {
	enum dp_bdev_kind kind;
	const char *name;
	const char *uuid;
	uint32_t block_size;          /* bytes; 0: the device's own (uring) */
	uint32_t physical_block_size; /* bytes, 0: as block_size */
	uint64_t num_blocks;          /* malloc, null, cmb */
	const char *filename;         /* uring; cmb: a provider's p2pmem/allocate, for memory of its own */
	bool readonly;
	bool direct;                  /* O_DIRECT where the file system can */
	bool fallocate;               /* unmap by hole punching on regular files */
	const char *base;             /* delay, error: the bdev below */
	const char *pool;             /* cmb: lies in that pool */
	bool emulated, pmr;           /* cmb: memory of its own that emulates one; asked for a PMR (refused, with the reason) */
	const char *ctrlr;            /* spdk: of an attached controller (spdk.h) */
	uint32_t nsid;                /* the same */
	uint64_t delay_us[4];         /* delay: average read, p99 read, average write, p99 write */
};

int dp_bdev_create(const struct dp_bdev_config *config, struct dp_bdev_facts *facts, char err[DP_ERR_MAX]);
/* Waits for the I/O in flight on it. -ENODEV. The caller has taken it out of every view, or its I/O fails. */
int dp_bdev_delete(const char *name, dp_done_fn done, void *arg);
/* num_blocks 0: read the size of the file or device again. */
int dp_bdev_resize(const char *name, uint64_t num_blocks, struct dp_bdev_facts *facts, char err[DP_ERR_MAX]);
/* Looks whether files and devices are there and as large as they were; what has changed is told (bdev_changed). To be called
 * every few seconds; the engine does so itself when an I/O fails. */
void dp_bdev_check(void);

struct dp_iostat {
	uint64_t bytes_read, num_read_ops, bytes_written, num_write_ops, bytes_unmapped, num_unmap_ops, bytes_copied,
		num_copy_ops, read_latency_ns, write_latency_ns, unmap_latency_ns, copy_latency_ns;
	uint64_t errors[8]; /* by class: read, write, flush, unmap, write zeroes, compare, verify, copy */
};

int dp_bdev_iostat(const char *name, struct dp_iostat *stat); /* sums over reactors; a little stale is allowed */
int dp_bdev_iostat_reset(const char *name);
int dp_bdev_set_qos(const char *name, uint64_t rw_ios_per_sec, uint64_t rw_mbytes_per_sec, uint64_t r_mbytes_per_sec,
		    uint64_t w_mbytes_per_sec, char err[DP_ERR_MAX]); /* 0: no limit */
int dp_bdev_histogram_enable(const char *name, bool enable);
/* SPDK's histogram: buckets of 2^bucket_shift sub-buckets for each power of two of nanoseconds. Caller frees. */
int dp_bdev_histogram_get(const char *name, uint64_t **buckets, size_t *count, unsigned *bucket_shift);
/* error bdev: type "read|write|flush|unmap|all", how "failure|pending|corrupt_data|nomem|not_transferred", num times (0:
 * stop). not_transferred: a read succeeds and leaves the buffer as it was. */
int dp_bdev_error_inject(const char *name, const char *io_type, const char *error_type, uint32_t num,
			 uint32_t corrupt_offset, uint8_t corrupt_value);
int dp_bdev_delay_update(const char *name, const char *latency_type, uint64_t us);

/* -- pools of peer memory ------------------------------------------------------------------------------------------- */

/* A drive's memory as the kernel's nvme driver gives it out; host memory in its place; that of a drive on vfio-pci. */
enum dp_pool_kind { DP_POOL_P2PMEM, DP_POOL_EMULATED, DP_POOL_SPDK_CMB };

struct dp_pool_config {
	const char *name; /* the provider's BDF (0000:03:00.0); an emulated one: any */
	enum dp_pool_kind kind;
	const char *path;     /* p2pmem: the file to map, /sys/bus/pci/devices/<bdf>/p2pmem/allocate */
	uint64_t bytes;       /* whole granules of 4096; the first one is the canary's */
	bool wipe_always;     /* at each change of owner, even where a Write overwrites it anyway */
};

struct dp_pool_facts {
	uint64_t bytes; /* mapped */
};

int dp_pool_create(const struct dp_pool_config *config, struct dp_pool_facts *facts, char err[DP_ERR_MAX]);
/* No view uses it any more from now on, nor is it allowed for any bdev; done when nothing of it is in flight and the memory
 * is given back. -ENODEV, -EBUSY (a bdev lies in it, or it is being calibrated). */
int dp_pool_delete(const char *name, dp_done_fn done, void *arg, char err[DP_ERR_MAX]);

/* The memory of a drive on vfio-pci. */
struct dp_pool_device {
	const char *region;    /* "cmb", "legacy cmb" (before NVMe 1.4) or "pmr"; NULL: of another kind of pool */
	const char *via;       /* "spdk": of an attached controller; "vfio": opened by ourselves */
	unsigned bar;
	uint64_t bytes;        /* the device's, not what a pool takes of it */
	bool write_combining;  /* so mapped for the CPU; else uncached */
	bool spdk;             /* SPDK's drives can reach it now */
	bool dma_buf;
	char no_dma_buf[DP_ERR_MAX]; /* why there is none */
};

/* What the drive with that BDF, bound to vfio-pci, has for a pool. attached: it is to be a controller of SPDK's, so it is not
 * opened, which would be in the way of that: -ENOTCONN if it is none now. -ENODEV, -EPERM (not bound to vfio-pci), -ENOENT (nothing),
 * -ENOTSUP (nothing that takes data, or no IOMMU), -EBUSY (in other hands). */
int dp_pool_probe(const char *bdf, bool attached, struct dp_pool_device *found, char err[DP_ERR_MAX]);

struct dp_pool_stat {
	char name[DP_NAME_MAX + 1];
	enum dp_pool_kind kind;
	uint64_t bytes, free_bytes, largest_free_bytes, waits, waiting, fallbacks, wiped_bytes, buffers;
	bool lost;
	char why[DP_ERR_MAX]; /* it was lost */
	struct dp_pool_device device;
	size_t num_allowed;
	char (*allowed)[DP_NAME_MAX + 1]; /* bdevs */
};

/* A snapshot of all; freed with dp_pool_stats_free. Returns the number. */
size_t dp_pool_stats(struct dp_pool_stat **stats);
void dp_pool_stats_free(struct dp_pool_stat *stats, size_t count);

struct dp_calibrate_config {
	const char *pool;
	const char *bdev;    /* NULL: the CPU's part alone */
	const char *journal; /* file that is made for the time of the probe; needed with bdev */
};

struct dp_calibration {
	double cpu_write_mib_s, cpu_read_mib_s, host_write_mib_s, host_read_mib_s, drive_to_pool_mib_s, drive_to_host_mib_s;
	bool verified;            /* both directions carried every byte; only with a bdev */
	char reason[DP_ERR_MAX];  /* why not */
};

/* From time to time: whether the memory of each pool is still there, also of those that nobody uses now. */
void dp_pool_check(void);

typedef void (*dp_calibrated_fn)(void *arg, int rc, const struct dp_calibration *result); /* result with rc 0 */

/* Hosts' I/O on the bdev, if there is any, waits while the drive is probed. -ENODEV, -EBUSY (pool or bdev is being
 * calibrated already), -EINVAL (no drive). */
int dp_pool_calibrate(const struct dp_calibrate_config *config, dp_calibrated_fn done, void *arg, char err[DP_ERR_MAX]);
/* Puts back what an interrupted probe has left in its journal, on a bdev that is no file (where it is, whoever starts this
 * process can do it before). -EUCLEAN: the journal is damaged, or another drive's; -EBUSY, -ENODEV, -EINVAL. */
typedef void (*dp_restored_fn)(void *arg, int rc, const char *err);
int dp_pool_restore(const char *bdev, const char *journal, dp_restored_fn done, void *arg, char err[DP_ERR_MAX]);
/* A bdev (and the layers above it) may use the pool, or not. -EINVAL: its drive cannot reach such memory. */
int dp_pool_allow(const char *name, const char *bdev, bool allow, char err[DP_ERR_MAX]);

enum dp_copy_route { DP_COPY_DEVICE, DP_COPY_REFLINK, DP_COPY_POOL, DP_COPY_HOST, DP_COPY_ROUTES };

#define DP_POOLS 65 /* index 0: host memory */

struct dp_staging {
	struct {
		uint64_t bytes[3], ops[3]; /* read, write, copy */
	} pool[DP_POOLS];
	uint64_t fallbacks;   /* operations that took host memory though they had a pool */
	uint64_t interrupted; /* commands that hosts had to send again as a pool was lost */
	uint64_t copy_bytes[DP_COPY_ROUTES];
	uint64_t withdrawn; /* bit i: pool of index i + 1, which was allowed until the drive had refused it several times in a row */
};

int dp_bdev_staging(const char *name, struct dp_staging *staging); /* sums over reactors */
/* NULL: that index was never used. A pool that is gone keeps its index, and its name, until another needs it. */
const char *dp_pool_name(unsigned index);

/* -- controllers --------------------------------------------------------------------------------------------------- */

struct dp_ns_view {
	uint32_t nsid;
	const char *bdev;
	uint32_t anagrpid;
	uint8_t ana_state; /* 1 optimized, 2 non-optimized, 3 inaccessible, 4 persistent loss, 15 change */
	bool write_protected;
	const char *read_pool, *write_pool, *copy_pool; /* where payload rests; NULL: host memory. Used where it is allowed */
	bool strict; /* wait for room in the pool instead of taking host memory */
};

struct dp_ctrlr_view {
	uint64_t key;
	uint32_t mdts_bytes;
	uint32_t copy_formats; /* bit mask of Copy descriptor formats that the host may use */
	const char *host;      /* hostnqn; NULL: a host of its own */
	uint32_t num_ns;
	const struct dp_ns_view *ns;
};

/* Whether every pool that it names exists and may be used by its namespace's bdev (one that is absent may come to): 0,
 * -ENODEV or -EPERM. dp_ctrlr_set takes it either way: what is not allowed is not used. */
int dp_ctrlr_check(const struct dp_ctrlr_view *view, char err[DP_ERR_MAX]);
/* New or replaced as a whole; done when no command runs any more on a namespace that the new view lacks, closes or protects. */
int dp_ctrlr_set(const struct dp_ctrlr_view *view, dp_done_fn done, void *arg);
/* Closes its queues and forgets it; done when none of its commands is in flight. Unknown: done(0). */
void dp_ctrlr_remove(uint64_t key, dp_done_fn done, void *arg);

/* -- queues -------------------------------------------------------------------------------------------------------- */

struct qpair_ops;

struct dp_queue {
	struct dp_queue_key key;
	int fd;               /* connected stream socket; owned by the engine from a successful call on */
	uint16_t sqsize;      /* 0's based */
	uint16_t sqhd;
	bool sq_flow_control; /* off: SQHD is FFFFh in every CQE */
	bool c2h_success;
	bool hdgst, ddgst;
	uint8_t hpda, cpda;   /* dwords, 0's based */
	uint32_t maxr2t;      /* 0's based, a command */
	uint32_t maxh2cdata;  /* bytes */
	uint32_t icd_max;     /* bytes of in-capsule data */
	uint32_t slot;        /* in dp_options.activity */
	const void *response; /* the Connect response PDU, sent first */
	size_t response_len;
	const char *peer;
	const struct qpair_ops *ops; /* NULL: NVMe/TCP on fd. Else fd is -1 and hdgst to maxh2cdata mean nothing */
	void *transport;
};

int dp_queue_adopt(const struct dp_queue *queue, char err[DP_ERR_MAX]);
/* qid 0: all of the controller's. done when no command of them is in flight; sockets are closed then. */
void dp_queue_close(struct dp_queue_key key, dp_done_fn done, void *arg);
/* done(1): the command was found and completed Command Abort Requested; done(0): not found or too late. */
void dp_queue_abort(struct dp_queue_key key, uint16_t cid, dp_done_fn done, void *arg);
/* status as sct << 8 | sc; with close the queue ends once the response is sent (Disconnect). */
void dp_upcall_complete(uint64_t token, uint16_t status, bool dnr, uint32_t dw0, bool close);

struct dp_queue_stat {
	struct dp_queue_key key;
	unsigned reactor;
	uint64_t commands, bytes_in, bytes_out, zc_bytes, zc_copied; /* sent without a copy; copied by the kernel after all */
	uint32_t outstanding;
	char peer[64];
	bool rdma;
};

/* A snapshot of all queues; caller frees. Returns the number. */
size_t dp_queue_stats(struct dp_queue_stat **stats);

struct dp_reactor_stat {
	unsigned id;
	int cpu;
	uint64_t busy_ns, idle_ns, wakeups, syscalls, commands, pool_free_bytes, pool_waits, zc_bytes, zc_copied;
	uint32_t queues;
};

size_t dp_reactor_stats(struct dp_reactor_stat **stats);

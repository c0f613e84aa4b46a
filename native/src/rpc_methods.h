/* SPDX-License-Identifier: BSD-3-Clause
 *
 * rpc_methods.h: what the JSON-RPC server can do: rpc_bdev.c back ends, rpc_view.c controllers and queues, rpc_pool.c pools of
 * peer memory, rpc_spdk.c controllers in user space.
 */
#pragma once

#include "rpc.h"

extern const struct rpc_method rpc_methods[];

struct rpc_no_params {
	char nothing;
};

/* -- rpc_bdev.c: the back ends by name, with what they were made from ------------------------------------------------ */

struct rpc_bdev_create {
	const char *name, *uuid, *filename, *base_bdev_name, *base_name, *pool, *path, *memory;
	uint64_t num_blocks;
	uint32_t block_size, physical_block_size, optimal_io_boundary;
	bool readonly, fallocate, nowait, emulated;
	uint64_t avg_read_latency, p99_read_latency, avg_write_latency, p99_write_latency;
};
struct rpc_bdev_name {
	const char *name;
};
struct rpc_bdev_resize {
	const char *name;
	uint64_t new_size, num_blocks;
};
struct rpc_bdev_qos {
	const char *name;
	uint64_t rw_ios_per_sec, rw_mbytes_per_sec, r_mbytes_per_sec, w_mbytes_per_sec;
};
struct rpc_bdev_inject {
	const char *name, *io_type, *error_type;
	uint32_t num, corrupt_offset;
	uint64_t queue_depth;
	uint8_t corrupt_value;
};
struct rpc_bdev_latency {
	const char *delay_bdev_name, *latency_type;
	uint64_t latency_us;
};
struct rpc_bdev_histogram {
	const char *name;
	bool enable;
};
struct rpc_bdev_iostat {
	const json_t *names;
	const char *name, *mode;
};

void rpc_bdev_malloc_create(struct rpc_request *request, const void *params);
void rpc_bdev_null_create(struct rpc_request *request, const void *params);
void rpc_bdev_uring_create(struct rpc_request *request, const void *params);
void rpc_bdev_aio_create(struct rpc_request *request, const void *params);
void rpc_bdev_delay_create(struct rpc_request *request, const void *params);
void rpc_bdev_error_create(struct rpc_request *request, const void *params);
void rpc_bdev_cmb_create(struct rpc_request *request, const void *params);
void rpc_bdev_delete(struct rpc_request *request, const void *params);
void rpc_bdev_resize(struct rpc_request *request, const void *params);
void rpc_bdev_rescan(struct rpc_request *request, const void *params);
void rpc_bdev_set_qos_limit(struct rpc_request *request, const void *params);
void rpc_bdev_inject_error(struct rpc_request *request, const void *params);
void rpc_bdev_update_latency(struct rpc_request *request, const void *params);
void rpc_bdev_enable_histogram(struct rpc_request *request, const void *params);
void rpc_bdev_get_histogram(struct rpc_request *request, const void *params);
void rpc_bdev_get_bdevs(struct rpc_request *request, const void *params);
void rpc_bdev_get_iostat(struct rpc_request *request, const void *params);
void rpc_bdev_reset_iostat(struct rpc_request *request, const void *params);
void rpc_bdev_changed(const char *name, const struct dp_bdev_facts *facts); /* dp_events.bdev_changed */
void rpc_bdev_forget_all(void);
/* Of struct rpc_bdev_name: each for that bdev, or for all. False, answered already, when it does not exist. */
bool rpc_bdev_each(struct rpc_request *request, const void *params, void (*each)(const char *name, void *arg), void *arg);

/* One that another method has made: as if it had been created. params: what it was made from, taken over. */
int rpc_bdev_add(const struct dp_bdev_config *config, const char *method, json_t *params, char err[DP_ERR_MAX]);
json_t *rpc_bdev_show(const char *name); /* its facts; NULL: there is none */
void rpc_bdev_remove(const char *name, dp_done_fn done, void *arg); /* -ENODEV, -EBUSY */
/* The same for all that were added with these very params; *left is raised by one for each, before done can come. */
void rpc_bdev_remove_made_from(const json_t *params, dp_done_fn done, void *arg, unsigned *left);

/* -- rpc_spdk.c: controllers in user space ---------------------------------------------------------------------------- */

struct rpc_nvme_attach {
	const char *name, *trtype, *traddr, *adrfam, *trsvcid, *subnqn, *hostnqn, *hostaddr, *hostsvcid;
	bool hdgst, ddgst;
	int32_t ctrlr_loss_timeout_sec;
	uint32_t reconnect_delay_sec, fast_io_fail_timeout_sec;
	const json_t *namespaces;
};
struct rpc_nvme_options {
	const char *action_on_timeout;
	uint64_t timeout_us, timeout_admin_us, keep_alive_timeout_ms;
	int32_t bdev_retry_count, ctrlr_loss_timeout_sec;
	uint32_t reconnect_delay_sec, fast_io_fail_timeout_sec;
};
struct rpc_nvme_hotplug {
	bool enable;
	uint64_t period_us;
};

void rpc_nvme_attach(struct rpc_request *request, const void *params);
void rpc_nvme_detach(struct rpc_request *request, const void *params);
void rpc_nvme_get_controllers(struct rpc_request *request, const void *params);
void rpc_nvme_reset(struct rpc_request *request, const void *params);
void rpc_nvme_health(struct rpc_request *request, const void *params);
void rpc_nvme_set_options(struct rpc_request *request, const void *params);
void rpc_nvme_set_hotplug(struct rpc_request *request, const void *params);
json_t *rpc_spdk_info(void);
void rpc_spdk_forget_all(void);

/* -- rpc_pool.c: pools of peer memory -------------------------------------------------------------------------------- */

struct rpc_pool_create {
	const char *name, *kind, *path, *wipe;
	uint64_t bytes;
};
struct rpc_pool_name {
	const char *name;
};
struct rpc_pool_allow {
	const char *name, *bdev;
	bool allow;
};
struct rpc_pool_probe {
	const char *name;
	bool attached;
};
struct rpc_pool_restore {
	const char *bdev, *journal;
};

struct rpc_pool_calibrate {
	const char *name, *bdev, *journal;
};

void rpc_pool_create(struct rpc_request *request, const void *params);
void rpc_pool_delete(struct rpc_request *request, const void *params);
void rpc_pool_allow(struct rpc_request *request, const void *params);
void rpc_pool_calibrate(struct rpc_request *request, const void *params);
void rpc_get_pools(struct rpc_request *request, const void *params);
void rpc_pool_restore(struct rpc_request *request, const void *params);
void rpc_pool_probe(struct rpc_request *request, const void *params);
void rpc_get_staging(struct rpc_request *request, const void *params);

/* -- rpc_view.c: controllers and queues ------------------------------------------------------------------------------ */

struct rpc_controller {
	uint64_t key;
	uint32_t mdts_bytes, copy_formats;
	const char *host;
	const json_t *namespaces;
};
struct rpc_queue {
	uint64_t key;
	uint16_t qid, cid;
};

/* -- rpc_rdma.c: NVMe/RDMA */
struct rpc_rdma_listen {
	const char *traddr, *trsvcid, *adrfam;
	uint32_t max_queue_depth, max_aq_depth, in_capsule_data_size, max_io_size, max_srq_depth, acceptor_backlog;
	bool no_srq;
};

void rpc_rdma_listen(struct rpc_request *request, const void *params);
void rpc_rdma_unlisten(struct rpc_request *request, const void *params);
void rpc_rdma_get_devices(struct rpc_request *request, const void *params);

void rpc_controller_set(struct rpc_request *request, const void *params);
void rpc_controller_remove(struct rpc_request *request, const void *params);
void rpc_queue_close(struct rpc_request *request, const void *params);
void rpc_queue_abort(struct rpc_request *request, const void *params);
void rpc_get_queues(struct rpc_request *request, const void *params);
void rpc_get_reactors(struct rpc_request *request, const void *params);
/* Removes every controller that was set; done when none of their commands is in flight. */
void rpc_view_reset(dp_done_fn done, void *arg);

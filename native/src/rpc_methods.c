/* SPDX-License-Identifier: BSD-3-Clause */
#include "rpc_methods.h"

#include "rdma.h"

#include <stdlib.h>
#include <unistd.h>

#define AT(type, member) .name = #member, .offset = offsetof(struct type, member)
#define FITS(type) _Static_assert(sizeof(struct type) <= RPC_PARAMS_SIZE_MAX, "")
FITS(rpc_bdev_create);
FITS(rpc_bdev_inject);
FITS(rpc_nvme_attach);

/* SPDK's parameters; of a back end that is shared by aio and uring, the union of both. */
static const struct rpc_param ram_params[] = {
	{AT(rpc_bdev_create, name), .type = RPC_STRING, .required = true},
	{AT(rpc_bdev_create, num_blocks), .type = RPC_U64, .required = true},
	{AT(rpc_bdev_create, block_size), .type = RPC_U32, .required = true},
	{AT(rpc_bdev_create, physical_block_size), .type = RPC_U32},
	{AT(rpc_bdev_create, optimal_io_boundary), .type = RPC_U32},
	{AT(rpc_bdev_create, uuid), .type = RPC_STRING},
	{0},
};
static const struct rpc_param file_params[] = {
	{AT(rpc_bdev_create, name), .type = RPC_STRING, .required = true},
	{AT(rpc_bdev_create, filename), .type = RPC_STRING, .required = true},
	{AT(rpc_bdev_create, block_size), .type = RPC_U32},
	{AT(rpc_bdev_create, uuid), .type = RPC_STRING},
	{AT(rpc_bdev_create, readonly), .type = RPC_BOOL},
	{AT(rpc_bdev_create, fallocate), .type = RPC_BOOL},
	{AT(rpc_bdev_create, nowait), .type = RPC_BOOL},
	{0},
};
static const struct rpc_param cmb_params[] = {
	{AT(rpc_bdev_create, name), .type = RPC_STRING, .required = true},
	{AT(rpc_bdev_create, num_blocks), .type = RPC_U64, .required = true},
	{AT(rpc_bdev_create, block_size), .type = RPC_U32, .required = true},
	{AT(rpc_bdev_create, pool), .type = RPC_STRING},
	{AT(rpc_bdev_create, path), .type = RPC_STRING},
	{AT(rpc_bdev_create, emulated), .type = RPC_BOOL},
	{AT(rpc_bdev_create, memory), .type = RPC_STRING},
	{AT(rpc_bdev_create, uuid), .type = RPC_STRING},
	{0},
};
static const struct rpc_param delay_params[] = {
	{AT(rpc_bdev_create, name), .type = RPC_STRING, .required = true},
	{AT(rpc_bdev_create, base_bdev_name), .type = RPC_STRING, .required = true},
	{AT(rpc_bdev_create, avg_read_latency), .type = RPC_U64, .required = true},
	{AT(rpc_bdev_create, p99_read_latency), .type = RPC_U64, .required = true},
	{AT(rpc_bdev_create, avg_write_latency), .type = RPC_U64, .required = true},
	{AT(rpc_bdev_create, p99_write_latency), .type = RPC_U64, .required = true},
	{AT(rpc_bdev_create, uuid), .type = RPC_STRING},
	{0},
};
static const struct rpc_param error_params[] = {
	{AT(rpc_bdev_create, base_name), .type = RPC_STRING, .required = true},
	{AT(rpc_bdev_create, uuid), .type = RPC_STRING},
	{0},
};
static const struct rpc_param name_params[] = {{AT(rpc_bdev_name, name), .type = RPC_STRING, .required = true}, {0}};
static const struct rpc_param any_name_params[] = {{AT(rpc_bdev_name, name), .type = RPC_STRING}, {0}};
static const struct rpc_param resize_params[] = {
	{AT(rpc_bdev_resize, name), .type = RPC_STRING, .required = true},
	{AT(rpc_bdev_resize, new_size), .type = RPC_U64}, /* MiB */
	{AT(rpc_bdev_resize, num_blocks), .type = RPC_U64}, /* ours: sizes that are not whole MiB */
	{0},
};
static const struct rpc_param qos_params[] = {
	{AT(rpc_bdev_qos, name), .type = RPC_STRING, .required = true},
	{AT(rpc_bdev_qos, rw_ios_per_sec), .type = RPC_U64, .preset = UINT64_MAX},
	{AT(rpc_bdev_qos, rw_mbytes_per_sec), .type = RPC_U64, .preset = UINT64_MAX},
	{AT(rpc_bdev_qos, r_mbytes_per_sec), .type = RPC_U64, .preset = UINT64_MAX},
	{AT(rpc_bdev_qos, w_mbytes_per_sec), .type = RPC_U64, .preset = UINT64_MAX},
	{0},
};
static const struct rpc_param inject_params[] = {
	{AT(rpc_bdev_inject, name), .type = RPC_STRING, .required = true},
	{AT(rpc_bdev_inject, io_type), .type = RPC_STRING, .required = true},
	{AT(rpc_bdev_inject, error_type), .type = RPC_STRING, .required = true},
	{AT(rpc_bdev_inject, num), .type = RPC_U32, .preset = 1},
	{AT(rpc_bdev_inject, queue_depth), .type = RPC_U64},
	{AT(rpc_bdev_inject, corrupt_offset), .type = RPC_U32},
	{AT(rpc_bdev_inject, corrupt_value), .type = RPC_U8},
	{0},
};
static const struct rpc_param latency_params[] = {
	{AT(rpc_bdev_latency, delay_bdev_name), .type = RPC_STRING, .required = true},
	{AT(rpc_bdev_latency, latency_type), .type = RPC_STRING, .required = true},
	{AT(rpc_bdev_latency, latency_us), .type = RPC_U64, .required = true},
	{0},
};
static const struct rpc_param histogram_params[] = {
	{AT(rpc_bdev_histogram, name), .type = RPC_STRING, .required = true},
	{AT(rpc_bdev_histogram, enable), .type = RPC_BOOL, .required = true},
	{0},
};
static const struct rpc_param iostat_params[] = {
	{AT(rpc_bdev_iostat, names), .type = RPC_ARRAY},
	{AT(rpc_bdev_iostat, name), .type = RPC_STRING},
	{AT(rpc_bdev_iostat, mode), .type = RPC_STRING},
	{0},
};
static const struct rpc_param controller_params[] = {
	{AT(rpc_controller, key), .type = RPC_U64, .required = true},
	{AT(rpc_controller, mdts_bytes), .type = RPC_U32, .required = true},
	{AT(rpc_controller, copy_formats), .type = RPC_U32, .required = true},
	{AT(rpc_controller, namespaces), .type = RPC_ARRAY, .required = true},
	{AT(rpc_controller, host), .type = RPC_STRING},
	{0},
};
static const struct rpc_param key_params[] = {{AT(rpc_controller, key), .type = RPC_U64, .required = true}, {0}};
static const struct rpc_param close_params[] = {
	{AT(rpc_queue, key), .type = RPC_U64, .required = true},
	{AT(rpc_queue, qid), .type = RPC_U16},
	{0},
};
static const struct rpc_param abort_params[] = {
	{AT(rpc_queue, key), .type = RPC_U64, .required = true},
	{AT(rpc_queue, qid), .type = RPC_U16, .required = true},
	{AT(rpc_queue, cid), .type = RPC_U16, .required = true},
	{0},
};
static const struct rpc_param rdma_listen_params[] = {
	{AT(rpc_rdma_listen, traddr), .type = RPC_STRING, .required = true},
	{AT(rpc_rdma_listen, trsvcid), .type = RPC_STRING, .required = true},
	{AT(rpc_rdma_listen, adrfam), .type = RPC_STRING, .required = true},
	{AT(rpc_rdma_listen, max_queue_depth), .type = RPC_U32, .preset = 128},
	{AT(rpc_rdma_listen, max_aq_depth), .type = RPC_U32, .preset = 128},
	{AT(rpc_rdma_listen, in_capsule_data_size), .type = RPC_U32, .preset = 4096},
	{AT(rpc_rdma_listen, max_io_size), .type = RPC_U32},
	{AT(rpc_rdma_listen, max_srq_depth), .type = RPC_U32},
	{AT(rpc_rdma_listen, no_srq), .type = RPC_BOOL},
	{AT(rpc_rdma_listen, acceptor_backlog), .type = RPC_U32, .preset = 100},
	{0},
};
static const struct rpc_param rdma_address_params[] = {
	{AT(rpc_rdma_listen, traddr), .type = RPC_STRING, .required = true},
	{AT(rpc_rdma_listen, trsvcid), .type = RPC_STRING, .required = true},
	{AT(rpc_rdma_listen, adrfam), .type = RPC_STRING, .required = true},
	{0},
};
static const struct rpc_param pool_params[] = {
	{AT(rpc_pool_create, name), .type = RPC_STRING, .required = true},
	{AT(rpc_pool_create, kind), .type = RPC_STRING, .required = true},
	{AT(rpc_pool_create, path), .type = RPC_STRING},
	{AT(rpc_pool_create, bytes), .type = RPC_U64},
	{AT(rpc_pool_create, wipe), .type = RPC_STRING},
	{0},
};
static const struct rpc_param probe_params[] = {
	{AT(rpc_pool_probe, name), .type = RPC_STRING, .required = true},
	{AT(rpc_pool_probe, attached), .type = RPC_BOOL},
	{0},
};
static const struct rpc_param restore_params[] = {
	{AT(rpc_pool_restore, bdev), .type = RPC_STRING, .required = true},
	{AT(rpc_pool_restore, journal), .type = RPC_STRING, .required = true},
	{0},
};
static const struct rpc_param pool_name_params[] = {{AT(rpc_pool_name, name), .type = RPC_STRING, .required = true}, {0}};
static const struct rpc_param allow_params[] = {
	{AT(rpc_pool_allow, name), .type = RPC_STRING, .required = true},
	{AT(rpc_pool_allow, bdev), .type = RPC_STRING, .required = true},
	{AT(rpc_pool_allow, allow), .type = RPC_BOOL, .required = true},
	{0},
};
static const struct rpc_param calibrate_params[] = {
	{AT(rpc_pool_calibrate, name), .type = RPC_STRING, .required = true},
	{AT(rpc_pool_calibrate, bdev), .type = RPC_STRING},
	{AT(rpc_pool_calibrate, journal), .type = RPC_STRING},
	{0},
};
static const struct rpc_param nvme_attach_params[] = {
	{AT(rpc_nvme_attach, name), .type = RPC_STRING, .required = true},
	{AT(rpc_nvme_attach, trtype), .type = RPC_STRING, .required = true},
	{AT(rpc_nvme_attach, traddr), .type = RPC_STRING, .required = true},
	{AT(rpc_nvme_attach, adrfam), .type = RPC_STRING},
	{AT(rpc_nvme_attach, trsvcid), .type = RPC_STRING},
	{AT(rpc_nvme_attach, subnqn), .type = RPC_STRING},
	{AT(rpc_nvme_attach, hostnqn), .type = RPC_STRING},
	{AT(rpc_nvme_attach, hostaddr), .type = RPC_STRING},
	{AT(rpc_nvme_attach, hostsvcid), .type = RPC_STRING},
	{AT(rpc_nvme_attach, hdgst), .type = RPC_BOOL},
	{AT(rpc_nvme_attach, ddgst), .type = RPC_BOOL},
	{AT(rpc_nvme_attach, ctrlr_loss_timeout_sec), .type = RPC_I32, .preset = (uint64_t)INT32_MIN},
	{AT(rpc_nvme_attach, reconnect_delay_sec), .type = RPC_U32, .preset = UINT32_MAX},
	{AT(rpc_nvme_attach, fast_io_fail_timeout_sec), .type = RPC_U32, .preset = UINT32_MAX},
	{AT(rpc_nvme_attach, namespaces), .type = RPC_ARRAY},
	{0},
};
#define AS_IT_IS UINT64_MAX /* of what is left out */
static const struct rpc_param nvme_options_params[] = {
	{AT(rpc_nvme_options, action_on_timeout), .type = RPC_STRING},
	{AT(rpc_nvme_options, timeout_us), .type = RPC_U64, .preset = AS_IT_IS},
	{AT(rpc_nvme_options, timeout_admin_us), .type = RPC_U64, .preset = AS_IT_IS},
	{AT(rpc_nvme_options, keep_alive_timeout_ms), .type = RPC_U64, .preset = AS_IT_IS},
	{AT(rpc_nvme_options, bdev_retry_count), .type = RPC_I32, .preset = (uint64_t)INT32_MIN},
	{AT(rpc_nvme_options, ctrlr_loss_timeout_sec), .type = RPC_I32, .preset = (uint64_t)INT32_MIN},
	{AT(rpc_nvme_options, reconnect_delay_sec), .type = RPC_U32, .preset = UINT32_MAX},
	{AT(rpc_nvme_options, fast_io_fail_timeout_sec), .type = RPC_U32, .preset = UINT32_MAX},
	{0},
};
static const struct rpc_param nvme_hotplug_params[] = {
	{AT(rpc_nvme_hotplug, enable), .type = RPC_BOOL, .required = true},
	{AT(rpc_nvme_hotplug, period_us), .type = RPC_U64},
	{0},
};
struct methods_params {
	bool current, include_aliases;
};
static const struct rpc_param methods_params[] = {
	{AT(methods_params, current), .type = RPC_BOOL},
	{AT(methods_params, include_aliases), .type = RPC_BOOL},
	{0},
};

static void get_methods(struct rpc_request *request, const void *params)
{
	json_t *names = json_array();

	(void)params;
	for (const struct rpc_method *method = rpc_methods; method->name; method++)
		json_array_append_new(names, json_string(method->name));
	rpc_reply(request, names);
}

static void get_version(struct rpc_request *request, const void *params)
{
	(void)params;
	rpc_reply(request, json_pack("{s:s, s:{s:i, s:i, s:i, s:s}}", "version", "nvmet-p2p-dataplane " DP_VERSION, "fields",
				     "major", 26, "minor", 9, "patch", 0, "suffix", ""));
}

static void get_info(struct rpc_request *request, const void *params)
{
	char *text = dp_describe();
	json_error_t error;
	json_t *engine = text ? json_loads(text, 0, &error) : NULL;

	(void)params;
	free(text);
	rpc_reply(request, json_pack("{s:s, s:i, s:o?, s:o, s:o}", "version", DP_VERSION, "pid", (int)getpid(), "engine", engine,
				     "rdma", dp_rdma_info(), "spdk", rpc_spdk_info()));
}

const struct rpc_method rpc_methods[] = {
	{"bdev_malloc_create", ram_params, rpc_bdev_malloc_create},
	{"bdev_malloc_delete", name_params, rpc_bdev_delete},
	{"bdev_null_create", ram_params, rpc_bdev_null_create},
	{"bdev_null_delete", name_params, rpc_bdev_delete},
	{"bdev_null_resize", resize_params, rpc_bdev_resize},
	{"bdev_uring_create", file_params, rpc_bdev_uring_create},
	{"bdev_uring_delete", name_params, rpc_bdev_delete},
	{"bdev_uring_rescan", name_params, rpc_bdev_rescan},
	{"bdev_aio_create", file_params, rpc_bdev_aio_create},
	{"bdev_aio_delete", name_params, rpc_bdev_delete},
	{"bdev_aio_rescan", name_params, rpc_bdev_rescan},
	{"bdev_cmb_create", cmb_params, rpc_bdev_cmb_create},
	{"bdev_cmb_delete", name_params, rpc_bdev_delete},
	{"bdev_delay_create", delay_params, rpc_bdev_delay_create},
	{"bdev_delay_delete", name_params, rpc_bdev_delete},
	{"bdev_delay_update_latency", latency_params, rpc_bdev_update_latency},
	{"bdev_error_create", error_params, rpc_bdev_error_create},
	{"bdev_error_delete", name_params, rpc_bdev_delete},
	{"bdev_error_inject_error", inject_params, rpc_bdev_inject_error},
	{"bdev_nvme_attach_controller", nvme_attach_params, rpc_nvme_attach},
	{"bdev_nvme_detach_controller", name_params, rpc_nvme_detach},
	{"bdev_nvme_get_controllers", any_name_params, rpc_nvme_get_controllers},
	{"bdev_nvme_reset_controller", name_params, rpc_nvme_reset},
	{"bdev_nvme_get_controller_health_info", name_params, rpc_nvme_health},
	{"bdev_nvme_set_options", nvme_options_params, rpc_nvme_set_options},
	{"bdev_nvme_set_hotplug", nvme_hotplug_params, rpc_nvme_set_hotplug},
	{"bdev_set_qos_limit", qos_params, rpc_bdev_set_qos_limit},
	{"bdev_enable_histogram", histogram_params, rpc_bdev_enable_histogram},
	{"bdev_get_histogram", name_params, rpc_bdev_get_histogram},
	{"bdev_get_bdevs", any_name_params, rpc_bdev_get_bdevs},
	{"bdev_get_iostat", iostat_params, rpc_bdev_get_iostat},
	{"bdev_reset_iostat", iostat_params, rpc_bdev_reset_iostat},
	{"rpc_get_methods", methods_params, get_methods},
	{"spdk_get_version", NULL, get_version},
	{"p2p_controller_set", controller_params, rpc_controller_set},
	{"p2p_controller_remove", key_params, rpc_controller_remove},
	{"p2p_queue_close", close_params, rpc_queue_close},
	{"p2p_queue_abort", abort_params, rpc_queue_abort},
	{"p2p_pool_create", pool_params, rpc_pool_create},
	{"p2p_pool_delete", pool_name_params, rpc_pool_delete},
	{"p2p_pool_allow", allow_params, rpc_pool_allow},
	{"p2p_pool_calibrate", calibrate_params, rpc_pool_calibrate},
	{"p2p_pool_restore", restore_params, rpc_pool_restore},
	{"p2p_get_pools", NULL, rpc_get_pools},
	{"p2p_pool_probe", probe_params, rpc_pool_probe},
	{"p2p_get_staging", any_name_params, rpc_get_staging},
	{"p2p_get_queues", NULL, rpc_get_queues},
	{"p2p_get_reactors", NULL, rpc_get_reactors},
	{"p2p_get_info", NULL, get_info},
	{"p2p_rdma_listen", rdma_listen_params, rpc_rdma_listen},
	{"p2p_rdma_unlisten", rdma_address_params, rpc_rdma_unlisten},
	{"p2p_rdma_get_devices", NULL, rpc_rdma_get_devices},
	{0},
};

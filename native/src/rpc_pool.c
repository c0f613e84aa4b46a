/* SPDX-License-Identifier: BSD-3-Clause
 *
 * rpc_pool.c: pools of peer memory, their calibration, and where payload rested.
 */
#include <errno.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

#include "log.h"
#include "rdma.h"
#include "rpc_methods.h"

static const char *const kinds[] = {
	[DP_POOL_P2PMEM] = "p2pmem", [DP_POOL_EMULATED] = "emulated", [DP_POOL_SPDK_CMB] = "spdk_cmb"};

void rpc_pool_create(struct rpc_request *request, const void *params)
{
	const struct rpc_pool_create *p = params;
	struct dp_pool_config config = {.name = p->name, .path = p->path, .bytes = p->bytes};
	struct dp_pool_facts facts = {0};
	char err[DP_ERR_MAX] = "", allocate[DP_NAME_MAX + 64];
	int rc;

	if (p->wipe && strcmp(p->wipe, "change") != 0 && strcmp(p->wipe, "always") != 0) {
		rpc_fail(request, RPC_INVALID_PARAMS, "params: wipe: expected change or always");
		return;
	}
	config.wipe_always = p->wipe && strcmp(p->wipe, "always") == 0;
	if (strcmp(p->kind, kinds[DP_POOL_EMULATED]) == 0) {
		config.kind = DP_POOL_EMULATED;
	} else if (strcmp(p->kind, kinds[DP_POOL_P2PMEM]) == 0) {
		config.kind = DP_POOL_P2PMEM;
		snprintf(allocate, sizeof(allocate), "/sys/bus/pci/devices/%.*s/p2pmem/allocate", DP_NAME_MAX, p->name);
		if (!config.path)
			config.path = allocate;
	} else if (strcmp(p->kind, kinds[DP_POOL_SPDK_CMB]) == 0 && !p->path) {
		config.kind = DP_POOL_SPDK_CMB;
	} else {
		rpc_fail(request, RPC_INVALID_PARAMS,
			 "params: kind: expected p2pmem, emulated or (without a path) spdk_cmb");
		return;
	}
	rc = dp_pool_create(&config, &facts, err);
	if (rc < 0) {
		rpc_finish(request, rc, err);
		return;
	}
	log_info("pool.created", "%s: %s, %llu bytes", p->name, p->kind, (unsigned long long)facts.bytes);
	rpc_reply(request, json_pack("{s:s, s:s, s:I}", "name", p->name, "kind", p->kind, "bytes", (json_int_t)facts.bytes));
}

void rpc_pool_delete(struct rpc_request *request, const void *params)
{
	const struct rpc_pool_name *p = params;
	char err[DP_ERR_MAX] = "";
	int rc = dp_pool_delete(p->name, rpc_finished, request, err);

	if (rc < 0)
		rpc_finish(request, rc, err);
}

void rpc_pool_allow(struct rpc_request *request, const void *params)
{
	const struct rpc_pool_allow *p = params;
	char err[DP_ERR_MAX] = "";

	rpc_finish(request, dp_pool_allow(p->name, p->bdev, p->allow, err), err);
}

static json_t *show_device(const struct dp_pool_device *device)
{
	return json_pack("{s:s, s:s, s:i, s:I, s:s, s:b, s:b, s:s}", "region", device->region, "via", device->via, "bar",
			 (int)device->bar, "bytes", (json_int_t)device->bytes, "mapping",
			 device->write_combining ? "write-combining" : "uncached", "spdk", device->spdk, "dma_buf",
			 device->dma_buf, "no_dma_buf", device->no_dma_buf);
}

void rpc_pool_probe(struct rpc_request *request, const void *params)
{
	const struct rpc_pool_probe *p = params;
	struct dp_pool_device found;
	char err[DP_ERR_MAX] = "";
	int rc = dp_pool_probe(p->name, p->attached, &found, err);

	if (rc < 0)
		rpc_finish(request, rc, err);
	else
		rpc_reply(request, show_device(&found));
}

static json_t *show_pool(const struct dp_pool_stat *stat)
{
	json_t *allowed = json_array(), *shown;

	for (size_t i = 0; i < stat->num_allowed; i++)
		json_array_append_new(allowed, json_string(stat->allowed[i]));
	shown = json_pack("{s:s, s:s, s:I, s:I, s:I, s:I, s:I, s:I, s:I, s:I, s:b, s:s, s:o}", "name", stat->name, "kind",
			  kinds[stat->kind], "bytes", (json_int_t)stat->bytes, "free", (json_int_t)stat->free_bytes,
			  "largest_free", (json_int_t)stat->largest_free_bytes, "buffers", (json_int_t)stat->buffers, "waits",
			  (json_int_t)stat->waits, "waiting", (json_int_t)stat->waiting, "fallbacks",
			  (json_int_t)stat->fallbacks, "wiped_bytes", (json_int_t)stat->wiped_bytes, "lost", stat->lost, "why",
			  stat->why, "allowed", allowed);
	if (stat->device.region) {
		json_t *device = show_device(&stat->device);

		json_object_set_new(device, "rdma", dp_rdma_pool(stat->name));
		json_object_set_new(shown, "device", device);
	}
	return shown;
}

void rpc_get_pools(struct rpc_request *request, const void *params)
{
	struct dp_pool_stat *stats = NULL;
	const size_t count = dp_pool_stats(&stats);
	json_t *shown = json_array();

	(void)params;
	for (size_t i = 0; i < count; i++)
		json_array_append_new(shown, show_pool(&stats[i]));
	dp_pool_stats_free(stats, count);
	rpc_reply(request, shown);
}

/* -- calibration ----------------------------------------------------------------------------------------------------- */

static void calibrated(void *arg, int rc, const struct dp_calibration *result)
{
	struct rpc_request *request = arg;

	if (rc < 0) {
		log_error("pool.not_put_back", "%s", result->reason);
		rpc_finish(request, rc, result->reason);
		return;
	}
	rpc_reply(request,
		  json_pack("{s:f, s:f, s:f, s:f, s:f, s:f, s:b, s:s}", "cpu_write_mib_s", result->cpu_write_mib_s,
			    "cpu_read_mib_s", result->cpu_read_mib_s, "host_write_mib_s", result->host_write_mib_s,
			    "host_read_mib_s", result->host_read_mib_s, "drive_to_pool_mib_s", result->drive_to_pool_mib_s,
			    "drive_to_host_mib_s", result->drive_to_host_mib_s, "verified", result->verified, "reason",
			    result->reason));
}

void rpc_pool_calibrate(struct rpc_request *request, const void *params)
{
	const struct rpc_pool_calibrate *p = params;
	const struct dp_calibrate_config config = {.pool = p->name, .bdev = p->bdev, .journal = p->journal};
	char err[DP_ERR_MAX] = "";
	int rc;

	if (p->bdev && !p->journal) {
		rpc_fail(request, RPC_INVALID_PARAMS, "params: journal: required with bdev, and missing");
		return;
	}
	rc = dp_pool_calibrate(&config, calibrated, request, err);
	if (rc < 0)
		rpc_finish(request, rc, err);
}

static void restored(void *arg, int rc, const char *err)
{
	if (rc < 0)
		log_error("pool.not_put_back", "%s", err);
	rpc_finish(arg, rc, err);
}

void rpc_pool_restore(struct rpc_request *request, const void *params)
{
	const struct rpc_pool_restore *p = params;
	char err[DP_ERR_MAX] = "";
	int rc = dp_pool_restore(p->bdev, p->journal, restored, request, err);

	if (rc < 0)
		rpc_finish(request, rc, err);
}

/* -- where payload rested -------------------------------------------------------------------------------------------- */

static json_t *show_use(const char *pool, const struct dp_staging *staging, unsigned index)
{
	const uint64_t *bytes = staging->pool[index].bytes, *ops = staging->pool[index].ops;

	return json_pack("{s:s, s:I, s:I, s:I, s:I, s:I, s:I}", "pool", pool, "read_bytes", (json_int_t)bytes[0], "read_ops",
			 (json_int_t)ops[0], "write_bytes", (json_int_t)bytes[1], "write_ops", (json_int_t)ops[1],
			 "copy_bytes", (json_int_t)bytes[2], "copy_ops", (json_int_t)ops[2]);
}

static void show_staging(const char *name, void *arg)
{
	struct dp_staging *staging = calloc(1, sizeof(*staging));
	json_t *pools = json_array(), *withdrawn = json_array();
	uint64_t ops;

	if (!staging || dp_bdev_staging(name, staging) < 0) {
		free(staging);
		json_decref(pools);
		json_decref(withdrawn);
		return;
	}
	json_array_append_new(pools, show_use("host", staging, 0));
	for (unsigned i = 1; i < DP_POOLS; i++) {
		ops = staging->pool[i].ops[0] + staging->pool[i].ops[1] + staging->pool[i].ops[2];
		if (ops && dp_pool_name(i))
			json_array_append_new(pools, show_use(dp_pool_name(i), staging, i));
		if (staging->withdrawn >> (i - 1) & 1 && dp_pool_name(i))
			json_array_append_new(withdrawn, json_string(dp_pool_name(i)));
	}
	json_array_append_new(
		arg, json_pack("{s:s, s:o, s:o, s:I, s:I, s:{s:I, s:I, s:I, s:I}}", "bdev", name, "pools", pools, "withdrawn",
			       withdrawn, "fallbacks", (json_int_t)staging->fallbacks, "interrupted",
			       (json_int_t)staging->interrupted, "copy_routes",
			       "device", (json_int_t)staging->copy_bytes[DP_COPY_DEVICE], "reflink",
			       (json_int_t)staging->copy_bytes[DP_COPY_REFLINK], "pool",
			       (json_int_t)staging->copy_bytes[DP_COPY_POOL], "host",
			       (json_int_t)staging->copy_bytes[DP_COPY_HOST]));
	free(staging);
}

void rpc_get_staging(struct rpc_request *request, const void *params)
{
	json_t *shown = json_array();

	if (rpc_bdev_each(request, params, show_staging, shown))
		rpc_reply(request, json_incref(shown));
	json_decref(shown);
}

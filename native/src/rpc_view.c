/* SPDX-License-Identifier: BSD-3-Clause */
#include <errno.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

#include "rpc_methods.h"

/* Keys of the controllers that were set and not removed, so that all can be forgotten for a new control plane. */
static uint64_t *keys;
static size_t key_count, key_size;

static void forget_key(uint64_t key)
{
	for (size_t i = 0; i < key_count; i++)
		if (keys[i] == key)
			keys[i--] = keys[--key_count];
}

static bool remember_key(uint64_t key)
{
	forget_key(key);
	if (key_count == key_size) {
		size_t larger = key_size ? 2 * key_size : 64;
		uint64_t *moved = realloc(keys, larger * sizeof(*keys));

		if (!moved)
			return false;
		keys = moved;
		key_size = larger;
	}
	keys[key_count++] = key;
	return true;
}

/* A pool's name; missing or null: host memory. */
static bool decode_pool(const json_t *value, const char **name)
{
	*name = json_string_value(value);
	return !value || json_is_null(value) || (*name && strlen(*name) <= DP_NAME_MAX);
}

/* Of the namespaces array; false with a message where one is wrong. */
static bool decode_namespaces(const json_t *array, struct dp_ns_view *views, char err[DP_ERR_MAX])
{
	json_error_t error;
	json_t *object;
	size_t index;

	json_array_foreach (array, index, object) {
		struct dp_ns_view *view = &views[index];
		const json_t *read_pool = NULL, *write_pool = NULL, *copy_pool = NULL;
		json_int_t nsid, anagrpid, ana_state;
		int protect, strict = 0;

		if (json_unpack_ex(object, &error, JSON_STRICT, "{s:I, s:s, s:I, s:I, s:b, s?o, s?o, s?o, s?b}", "nsid", &nsid,
				   "bdev", &view->bdev, "anagrpid", &anagrpid, "ana_state", &ana_state, "write_protected",
				   &protect, "read_pool", &read_pool, "write_pool", &write_pool, "copy_pool", &copy_pool,
				   "strict", &strict) < 0) {
			snprintf(err, DP_ERR_MAX, "namespaces[%zu]: %.160s", index, error.text);
			return false;
		}
		if (nsid < 1 || nsid > 0xfffffffe || anagrpid < 0 || anagrpid > UINT32_MAX || ana_state < 1 ||
		    ana_state > 15 || strlen(view->bdev) > DP_NAME_MAX) {
			snprintf(err, DP_ERR_MAX, "namespaces[%zu]: a value out of range", index);
			return false;
		}
		view->nsid = (uint32_t)nsid;
		view->anagrpid = (uint32_t)anagrpid;
		view->ana_state = (uint8_t)ana_state;
		view->write_protected = protect != 0;
		view->strict = strict != 0;
		if (!decode_pool(read_pool, &view->read_pool) || !decode_pool(write_pool, &view->write_pool) ||
		    !decode_pool(copy_pool, &view->copy_pool)) {
			snprintf(err, DP_ERR_MAX, "namespaces[%zu]: read_pool, write_pool, copy_pool: expected names of pools",
				 index);
			return false;
		}
	}
	return true;
}

void rpc_controller_set(struct rpc_request *request, const void *params)
{
	const struct rpc_controller *given = params;
	struct dp_ctrlr_view view = {
		.key = given->key,
		.mdts_bytes = given->mdts_bytes,
		.copy_formats = given->copy_formats,
		.host = given->host,
		.num_ns = (uint32_t)json_array_size(given->namespaces),
	};
	struct dp_ns_view *namespaces;
	char err[DP_ERR_MAX] = "";
	int rc;

	if (json_array_size(given->namespaces) > DP_NS_PER_CTRLR) {
		rpc_fail(request, RPC_INVALID_PARAMS, "params: namespaces: at most %d", DP_NS_PER_CTRLR);
		return;
	}
	namespaces = calloc(view.num_ns + 1, sizeof(*namespaces));
	if (!namespaces || !remember_key(given->key)) {
		free(namespaces);
		rpc_finish(request, -ENOMEM, NULL);
		return;
	}
	view.ns = namespaces;
	if (!decode_namespaces(given->namespaces, namespaces, err)) {
		rpc_fail(request, RPC_INVALID_PARAMS, "params: %s", err);
	} else if ((rc = dp_ctrlr_check(&view, err)) < 0) {
		rpc_fail(request, rc, "%s", err);
	} else {
		rc = dp_ctrlr_set(&view, rpc_finished, request);
		if (rc < 0)
			rpc_finish(request, rc, NULL);
	}
	free(namespaces);
}

void rpc_controller_remove(struct rpc_request *request, const void *params)
{
	const struct rpc_controller *given = params;

	forget_key(given->key);
	dp_ctrlr_remove(given->key, rpc_finished, request);
}

void rpc_queue_close(struct rpc_request *request, const void *params)
{
	const struct rpc_queue *given = params;

	dp_queue_close((struct dp_queue_key){.ctrlr = given->key, .qid = given->qid}, rpc_finished, request);
}

static void abort_done(void *request, int rc)
{
	if (rc < 0)
		rpc_finish(request, rc, NULL);
	else
		rpc_reply(request, json_boolean(rc));
}

void rpc_queue_abort(struct rpc_request *request, const void *params)
{
	const struct rpc_queue *given = params;

	dp_queue_abort((struct dp_queue_key){.ctrlr = given->key, .qid = given->qid}, given->cid, abort_done, request);
}

void rpc_get_queues(struct rpc_request *request, const void *params)
{
	struct dp_queue_stat *stats = NULL;
	const size_t count = dp_queue_stats(&stats);
	json_t *shown = json_array();

	(void)params;
	for (size_t i = 0; i < count; i++) {
		const struct dp_queue_stat *stat = &stats[i];

		json_array_append_new(
			shown, json_pack("{s:I, s:i, s:i, s:I, s:I, s:I, s:I, s:I, s:i, s:s, s:s}", "key", (json_int_t)stat->key.ctrlr, "qid",
					 stat->key.qid, "reactor", (int)stat->reactor, "commands",
					 (json_int_t)stat->commands, "bytes_in", (json_int_t)stat->bytes_in, "bytes_out",
					 (json_int_t)stat->bytes_out, "zero_copy_bytes", (json_int_t)stat->zc_bytes,
					 "copied_after_all_bytes", (json_int_t)stat->zc_copied, "outstanding", (int)stat->outstanding, "peer",
					 stat->peer, "trtype", stat->rdma ? "RDMA" : "TCP"));
	}
	free(stats);
	rpc_reply(request, shown);
}

void rpc_get_reactors(struct rpc_request *request, const void *params)
{
	struct dp_reactor_stat *stats = NULL;
	const size_t count = dp_reactor_stats(&stats);
	json_t *shown = json_array();

	(void)params;
	for (size_t i = 0; i < count; i++) {
		const struct dp_reactor_stat *stat = &stats[i];

		json_array_append_new(
			shown, json_pack("{s:i, s:i, s:I, s:I, s:I, s:I, s:I, s:I, s:I, s:I, s:I, s:i}", "id", (int)stat->id, "cpu",
					 stat->cpu, "busy_ns", (json_int_t)stat->busy_ns, "idle_ns",
					 (json_int_t)stat->idle_ns, "wakeups", (json_int_t)stat->wakeups, "syscalls",
					 (json_int_t)stat->syscalls, "commands", (json_int_t)stat->commands,
					 "pool_free_bytes", (json_int_t)stat->pool_free_bytes, "pool_waits",
					 (json_int_t)stat->pool_waits, "zero_copy_bytes", (json_int_t)stat->zc_bytes,
					 "copied_after_all_bytes", (json_int_t)stat->zc_copied, "queues", (int)stat->queues));
	}
	free(stats);
	rpc_reply(request, shown);
}

/* -- a new control plane --------------------------------------------------------------------------------------------- */

struct reset {
	dp_done_fn done;
	void *arg;
	size_t pending;
};

static void one_removed(void *arg, int rc)
{
	struct reset *reset = arg;

	(void)rc;
	if (--reset->pending > 0)
		return;
	reset->done(reset->arg, 0);
	free(reset);
}

void rpc_view_reset(dp_done_fn done, void *arg)
{
	struct reset *reset = malloc(sizeof(*reset));

	if (!reset) {
		done(arg, -ENOMEM);
		return;
	}
	*reset = (struct reset){.done = done, .arg = arg, .pending = 1}; /* one for ourselves */
	while (key_count > 0) {
		reset->pending++;
		dp_ctrlr_remove(keys[--key_count], one_removed, reset);
	}
	free(keys);
	keys = NULL;
	key_size = 0;
	one_removed(reset, 0);
}

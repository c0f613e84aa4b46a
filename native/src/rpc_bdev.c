/* SPDX-License-Identifier: BSD-3-Clause */
#include <errno.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <time.h>

#include "rpc_methods.h"

#define MIB (1024 * 1024)
#define NS_PER_S 1000000000

/* A back end as it was asked for: what a control plane that finds it running compares with its own configuration. */
struct entry {
	struct entry *next;
	char *name;
	json_t *config; /* {"method", "params"} */
	struct dp_bdev_facts facts;
	bool present;
	bool deleting;
	uint64_t qos[4]; /* rw_ios, rw_mbytes, r_mbytes, w_mbytes */
};

static struct entry *entries, **entries_last = &entries;

static struct entry *find(const char *name)
{
	struct entry *entry = entries;

	while (entry && strcmp(entry->name, name) != 0)
		entry = entry->next;
	return entry;
}

static struct entry *require(struct rpc_request *request, const char *name)
{
	struct entry *entry = find(name);

	if (!entry || entry->deleting) {
		rpc_fail(request, -ENODEV, "there is no bdev '%.100s'", name);
		return NULL;
	}
	return entry;
}

static void forget(struct entry *gone)
{
	for (struct entry **at = &entries; *at; at = &(*at)->next) {
		if (*at != gone)
			continue;
		*at = gone->next;
		if (!gone->next)
			entries_last = at;
		json_decref(gone->config);
		free(gone->name);
		free(gone);
		return;
	}
}

void rpc_bdev_forget_all(void)
{
	while (entries)
		forget(entries);
}

static json_t *facts_json(const struct entry *entry)
{
	const struct dp_bdev_facts *facts = &entry->facts;

	return json_pack("{s:s, s:i, s:I, s:b, s:b, s:b, s:b, s:i, s:b}", "name", entry->name, "block_size",
			 (int)facts->block_size, "num_blocks", (json_int_t)facts->num_blocks, "readonly", facts->readonly,
			 "write_cache", facts->write_cache, "unmap", facts->unmap, "write_zeroes", facts->write_zeroes,
			 "physical_block_size", (int)facts->physical_block_size, "flush_failed", facts->flush_failed);
}

/* -- create ---------------------------------------------------------------------------------------------------------- */

static struct entry *remember(const char *name, json_t *config, const struct dp_bdev_facts *facts)
{
	struct entry *entry = calloc(1, sizeof(*entry));
	char *copy = strdup(name);

	if (!entry || !copy || !config) {
		free(entry);
		free(copy);
		json_decref(config);
		return NULL;
	}
	*entry = (struct entry){.name = copy, .config = config, .facts = *facts, .present = true};
	*entries_last = entry;
	entries_last = &entry->next;
	return entry;
}

static void create(struct rpc_request *request, const char *method, const struct dp_bdev_config *config, json_t *params)
{
	struct dp_bdev_facts facts = {0};
	char err[DP_ERR_MAX] = "";
	json_t *made_from = json_pack("{s:s, s:o}", "method", method, "params", params);
	struct entry *entry;
	int rc;

	if (!*config->name || strlen(config->name) > DP_NAME_MAX) {
		rc = -EINVAL;
		snprintf(err, sizeof(err), "a bdev's name has 1 to %d bytes", DP_NAME_MAX);
	} else if (find(config->name)) {
		rc = -EEXIST;
		snprintf(err, sizeof(err), "bdev '%.100s' exists already", config->name);
	} else {
		rc = dp_bdev_create(config, &facts, err);
	}
	if (rc < 0) {
		json_decref(made_from);
		rpc_finish(request, rc, err);
		return;
	}
	entry = remember(config->name, made_from, &facts);
	if (entry)
		rpc_reply(request, facts_json(entry));
	else
		rpc_finish(request, -ENOMEM, NULL); /* the engine keeps it: the caller has to be restarted anyway */
}

static void create_ram(struct rpc_request *request, const char *method, enum dp_bdev_kind kind,
		       const struct rpc_bdev_create *p)
{
	const struct dp_bdev_config config = {
		.kind = kind,
		.name = p->name,
		.uuid = p->uuid,
		.block_size = p->block_size,
		.physical_block_size = p->physical_block_size,
		.num_blocks = p->num_blocks,
	};

	create(request, method, &config,
	       json_pack("{s:s, s:s?, s:i, s:i, s:I}", "name", p->name, "uuid", p->uuid, "block_size", (int)p->block_size,
			 "physical_block_size", (int)p->physical_block_size, "num_blocks", (json_int_t)p->num_blocks));
}

void rpc_bdev_malloc_create(struct rpc_request *request, const void *params)
{
	create_ram(request, "bdev_malloc_create", DP_BDEV_MALLOC, params);
}

void rpc_bdev_null_create(struct rpc_request *request, const void *params)
{
	create_ram(request, "bdev_null_create", DP_BDEV_NULL, params);
}

static void create_file(struct rpc_request *request, const char *method, const struct rpc_bdev_create *p, bool fallocate)
{
	const struct dp_bdev_config config = {
		.kind = DP_BDEV_URING,
		.name = p->name,
		.uuid = p->uuid,
		.block_size = p->block_size,
		.filename = p->filename,
		.readonly = p->readonly,
		.direct = true,
		.fallocate = fallocate,
	};

	create(request, method, &config,
	       json_pack("{s:s, s:s?, s:i, s:s, s:b, s:b, s:b}", "name", p->name, "uuid", p->uuid, "block_size",
			 (int)p->block_size, "filename", p->filename, "readonly", p->readonly, "fallocate", p->fallocate,
			 "nowait", p->nowait));
}

void rpc_bdev_uring_create(struct rpc_request *request, const void *params)
{
	create_file(request, "bdev_uring_create", params, true); /* this method has no such parameter: always */
}

void rpc_bdev_aio_create(struct rpc_request *request, const void *params)
{
	const struct rpc_bdev_create *p = params;

	create_file(request, "bdev_aio_create", p, p->fallocate);
}

/* What was given, and no more: a control plane compares with what it would ask for. */
void rpc_bdev_cmb_create(struct rpc_request *request, const void *params)
{
	const struct rpc_bdev_create *p = params;
	const struct dp_bdev_config config = {
		.kind = DP_BDEV_CMB,
		.name = p->name,
		.uuid = p->uuid,
		.block_size = p->block_size,
		.num_blocks = p->num_blocks,
		.pool = p->pool,
		.filename = p->path,
		.emulated = p->emulated,
		.pmr = p->memory && strcmp(p->memory, "pmr") == 0,
	};
	json_t *given;

	if (p->memory && !config.pmr && strcmp(p->memory, "cmb") != 0) {
		rpc_fail(request, RPC_INVALID_PARAMS, "params: memory: expected cmb or pmr");
		return;
	}
	given = json_pack("{s:s, s:s?, s:i, s:I}", "name", p->name, "uuid", p->uuid, "block_size", (int)p->block_size,
			  "num_blocks", (json_int_t)p->num_blocks);
	if (p->pool)
		json_object_set_new(given, "pool", json_string(p->pool));
	if (p->path)
		json_object_set_new(given, "path", json_string(p->path));
	if (p->emulated)
		json_object_set_new(given, "emulated", json_true());
	create(request, "bdev_cmb_create", &config, given);
}

void rpc_bdev_delay_create(struct rpc_request *request, const void *params)
{
	const struct rpc_bdev_create *p = params;
	const struct dp_bdev_config config = {
		.kind = DP_BDEV_DELAY,
		.name = p->name,
		.uuid = p->uuid,
		.base = p->base_bdev_name,
		.delay_us = {p->avg_read_latency, p->p99_read_latency, p->avg_write_latency, p->p99_write_latency},
	};

	create(request, "bdev_delay_create", &config,
	       json_pack("{s:s, s:s?, s:s, s:I, s:I, s:I, s:I}", "name", p->name, "uuid", p->uuid, "base_bdev_name",
			 p->base_bdev_name, "avg_read_latency", (json_int_t)p->avg_read_latency, "p99_read_latency",
			 (json_int_t)p->p99_read_latency, "avg_write_latency", (json_int_t)p->avg_write_latency,
			 "p99_write_latency", (json_int_t)p->p99_write_latency));
}

/* As in SPDK, an error bdev is named after its base: EE_<base>. */
void rpc_bdev_error_create(struct rpc_request *request, const void *params)
{
	const struct rpc_bdev_create *p = params;
	char name[DP_NAME_MAX + 2];
	const struct dp_bdev_config config = {.kind = DP_BDEV_ERROR, .name = name, .uuid = p->uuid, .base = p->base_name};

	snprintf(name, sizeof(name), "EE_%s", p->base_name);
	create(request, "bdev_error_create", &config,
	       json_pack("{s:s, s:s?}", "base_name", p->base_name, "uuid", p->uuid));
}

int rpc_bdev_add(const struct dp_bdev_config *config, const char *method, json_t *params, char err[DP_ERR_MAX])
{
	struct dp_bdev_facts facts = {0};
	json_t *made_from = json_pack("{s:s, s:o}", "method", method, "params", params);
	int rc = -EEXIST;

	if (find(config->name))
		snprintf(err, DP_ERR_MAX, "bdev '%.100s' exists already", config->name);
	else
		rc = dp_bdev_create(config, &facts, err);
	if (rc < 0) {
		json_decref(made_from);
		return rc;
	}
	return remember(config->name, made_from, &facts) ? 0 : -ENOMEM;
}

json_t *rpc_bdev_show(const char *name)
{
	const struct entry *entry = find(name);

	return entry && !entry->deleting ? facts_json(entry) : NULL;
}

/* -- change ---------------------------------------------------------------------------------------------------------- */

struct deletion {
	dp_done_fn done;
	void *arg;
	struct entry *entry;
};

static void deleted(void *arg, int rc)
{
	struct deletion *deletion = arg;

	if (rc < 0)
		deletion->entry->deleting = false;
	else
		forget(deletion->entry);
	deletion->done(deletion->arg, rc);
	free(deletion);
}

void rpc_bdev_remove(const char *name, dp_done_fn done, void *arg)
{
	struct entry *entry = find(name);
	struct deletion *deletion = entry && !entry->deleting ? malloc(sizeof(*deletion)) : NULL;
	int rc;

	if (!deletion) {
		done(arg, entry ? -EBUSY : -ENODEV);
		return;
	}
	*deletion = (struct deletion){.done = done, .arg = arg, .entry = entry};
	entry->deleting = true;
	rc = dp_bdev_delete(entry->name, deleted, deletion);
	if (rc < 0)
		deleted(deletion, rc);
}

void rpc_bdev_remove_made_from(const json_t *params, dp_done_fn done, void *arg, unsigned *left)
{
	struct entry *next;

	for (struct entry *entry = entries; entry; entry = next) {
		next = entry->next;
		if (entry->deleting || json_object_get(entry->config, "params") != params)
			continue;
		++*left;
		rpc_bdev_remove(entry->name, done, arg);
	}
}

void rpc_bdev_delete(struct rpc_request *request, const void *params)
{
	const struct rpc_bdev_name *p = params;
	if (require(request, p->name))
		rpc_bdev_remove(p->name, rpc_finished, request);
}

static void resize(struct rpc_request *request, struct entry *entry, uint64_t num_blocks)
{
	struct dp_bdev_facts facts = entry->facts;
	char err[DP_ERR_MAX] = "";
	int rc = dp_bdev_resize(entry->name, num_blocks, &facts, err);

	if (rc < 0) {
		rpc_finish(request, rc, err);
		return;
	}
	entry->facts = facts;
	if (num_blocks) {
		json_t *params = json_object_get(entry->config, "params");

		json_object_set_new(params, "num_blocks", json_integer((json_int_t)num_blocks));
	}
	rpc_reply(request, facts_json(entry));
}

void rpc_bdev_resize(struct rpc_request *request, const void *params)
{
	const struct rpc_bdev_resize *p = params;
	struct entry *entry = require(request, p->name);

	if (!entry)
		return;
	if ((p->new_size == 0) == (p->num_blocks == 0) || p->new_size > INT64_MAX / MIB) {
		rpc_fail(request, RPC_INVALID_PARAMS, "params: either new_size (MiB) or num_blocks");
		return;
	}
	resize(request, entry, p->num_blocks ? p->num_blocks : p->new_size * MIB / entry->facts.block_size);
}

void rpc_bdev_rescan(struct rpc_request *request, const void *params)
{
	const struct rpc_bdev_name *p = params;
	struct entry *entry = require(request, p->name);

	if (entry)
		resize(request, entry, 0);
}

void rpc_bdev_set_qos_limit(struct rpc_request *request, const void *params)
{
	const struct rpc_bdev_qos *p = params;
	struct entry *entry = require(request, p->name);
	const uint64_t given[4] = {p->rw_ios_per_sec, p->rw_mbytes_per_sec, p->r_mbytes_per_sec, p->w_mbytes_per_sec};
	uint64_t limits[4];
	char err[DP_ERR_MAX] = "";
	int rc;

	if (!entry)
		return;
	for (int i = 0; i < 4; i++)
		limits[i] = given[i] == UINT64_MAX ? entry->qos[i] : given[i]; /* one that is left out stays */
	rc = dp_bdev_set_qos(entry->name, limits[0], limits[1], limits[2], limits[3], err);
	if (rc == 0)
		memcpy(entry->qos, limits, sizeof(limits));
	rpc_finish(request, rc, err);
}

void rpc_bdev_inject_error(struct rpc_request *request, const void *params)
{
	const struct rpc_bdev_inject *p = params;
	char err[DP_ERR_MAX] = "";

	if (p->queue_depth)
		rpc_fail(request, -ENOTSUP, "params: queue_depth: errors do not depend on the queue's depth here");
	else if (require(request, p->name)) {
		const int rc = dp_bdev_error_inject(p->name, p->io_type, p->error_type, p->num, p->corrupt_offset,
						    p->corrupt_value);

		snprintf(err, sizeof(err), "bdev '%.60s': inject %.40s on %.40s: %s", p->name, p->error_type, p->io_type,
			 rc < 0 ? strerror(-rc) : "");
		rpc_finish(request, rc, err);
	}
}

void rpc_bdev_update_latency(struct rpc_request *request, const void *params)
{
	const struct rpc_bdev_latency *p = params;
	struct entry *entry = require(request, p->delay_bdev_name);
	char key[64];
	int rc;

	if (!entry)
		return;
	rc = dp_bdev_delay_update(p->delay_bdev_name, p->latency_type, p->latency_us);
	if (rc == 0) {
		snprintf(key, sizeof(key), "%.40s_latency", p->latency_type);
		json_object_set_new(json_object_get(entry->config, "params"), key, json_integer((json_int_t)p->latency_us));
	}
	rpc_finish(request, rc, rc == -EINVAL ? "no delay bdev, or a latency_type that there is not" : NULL);
}

/* -- look ------------------------------------------------------------------------------------------------------------ */

void rpc_bdev_enable_histogram(struct rpc_request *request, const void *params)
{
	const struct rpc_bdev_histogram *p = params;

	if (require(request, p->name))
		rpc_finish(request, dp_bdev_histogram_enable(p->name, p->enable), NULL);
}

static char *base64(const uint8_t *data, size_t len)
{
	static const char digits[] = "ABCDEFGHIJKLMNOPQRSTUVWXYZabcdefghijklmnopqrstuvwxyz0123456789+/";
	char *text = malloc((len + 2) / 3 * 4 + 1), *at = text;

	for (size_t i = 0; text && i < len; i += 3) {
		const uint32_t group = (uint32_t)data[i] << 16 | (i + 1 < len ? (uint32_t)data[i + 1] << 8 : 0) |
				       (i + 2 < len ? data[i + 2] : 0u);

		*at++ = digits[group >> 18];
		*at++ = digits[group >> 12 & 63];
		*at++ = i + 1 < len ? digits[group >> 6 & 63] : '=';
		*at++ = i + 2 < len ? digits[group & 63] : '=';
	}
	if (text)
		*at = 0;
	return text;
}

/* As SPDK shows it: ranges of 2^granularity buckets, each range twice as wide as the one before, little endian, base64. */
void rpc_bdev_get_histogram(struct rpc_request *request, const void *params)
{
	const struct rpc_bdev_name *p = params;
	uint64_t *buckets = NULL;
	size_t count = 0;
	unsigned shift = 0;
	char *text;
	int rc;

	if (!require(request, p->name))
		return;
	rc = dp_bdev_histogram_get(p->name, &buckets, &count, &shift);
	if (rc < 0) {
		rpc_finish(request, rc, NULL);
		return;
	}
	text = base64((const uint8_t *)buckets, count * sizeof(*buckets));
	free(buckets);
	rpc_reply(request, json_pack("{s:s, s:i, s:i, s:i, s:I}", "histogram", text, "granularity", (int)shift, "min_range",
				     0, "max_range", (int)(count >> shift) - 1, "tsc_rate", (json_int_t)NS_PER_S));
	free(text);
}

static json_t *describe(const struct entry *entry)
{
	json_t *shown = facts_json(entry);

	json_object_set_new(shown, "present", json_boolean(entry->present));
	json_object_set_new(shown, "assigned_rate_limits",
			    json_pack("{s:I, s:I, s:I, s:I}", "rw_ios_per_sec", (json_int_t)entry->qos[0],
				      "rw_mbytes_per_sec", (json_int_t)entry->qos[1], "r_mbytes_per_sec",
				      (json_int_t)entry->qos[2], "w_mbytes_per_sec", (json_int_t)entry->qos[3]));
	json_object_set_new(shown, "driver_specific", json_pack("{s:O}", "config", entry->config));
	return shown;
}

void rpc_bdev_get_bdevs(struct rpc_request *request, const void *params)
{
	const struct rpc_bdev_name *p = params;
	json_t *shown;

	if (p->name && !require(request, p->name))
		return;
	shown = json_array();
	for (const struct entry *entry = entries; entry; entry = entry->next)
		if (!entry->deleting && (!p->name || strcmp(entry->name, p->name) == 0))
			json_array_append_new(shown, describe(entry));
	rpc_reply(request, shown);
}

static json_t *iostat(const struct entry *entry)
{
	static const char *const classes[] = {"read", "write", "flush", "unmap", "write_zeroes", "compare", "verify", "copy"};
	struct dp_iostat s = {0};
	json_t *errors = json_object();

	if (dp_bdev_iostat(entry->name, &s) < 0) {
		json_decref(errors);
		return NULL;
	}
	for (int i = 0; i < 8; i++)
		if (s.errors[i])
			json_object_set_new(errors, classes[i], json_integer((json_int_t)s.errors[i]));
	return json_pack("{s:s, s:I, s:I, s:I, s:I, s:I, s:I, s:I, s:I, s:I, s:I, s:I, s:I, s:o}", "name", entry->name,
			 "bytes_read", (json_int_t)s.bytes_read, "num_read_ops", (json_int_t)s.num_read_ops,
			 "bytes_written", (json_int_t)s.bytes_written, "num_write_ops", (json_int_t)s.num_write_ops,
			 "bytes_unmapped", (json_int_t)s.bytes_unmapped, "num_unmap_ops", (json_int_t)s.num_unmap_ops,
			 "bytes_copied", (json_int_t)s.bytes_copied, "num_copy_ops", (json_int_t)s.num_copy_ops,
			 "read_latency_ticks", (json_int_t)s.read_latency_ns, "write_latency_ticks",
			 (json_int_t)s.write_latency_ns, "unmap_latency_ticks", (json_int_t)s.unmap_latency_ns,
			 "copy_latency_ticks", (json_int_t)s.copy_latency_ns, "io_error", errors);
}

/* Calls each for every bdev that is asked for. False, answered already, when one of them does not exist. */
static bool for_each(struct rpc_request *request, const struct rpc_bdev_iostat *p,
		     void (*each)(const struct entry *entry, void *arg), void *arg)
{
	json_t *name;
	size_t index;

	json_array_foreach (p->names, index, name) {
		if (!json_is_string(name)) {
			rpc_fail(request, RPC_INVALID_PARAMS, "params: names[%zu]: expected a string", index);
			return false;
		}
		if (!require(request, json_string_value(name)))
			return false;
	}
	if (p->name && !require(request, p->name))
		return false;
	json_array_foreach (p->names, index, name)
		each(find(json_string_value(name)), arg);
	if (p->name)
		each(find(p->name), arg);
	for (const struct entry *entry = entries; !p->name && !p->names && entry; entry = entry->next)
		if (!entry->deleting)
			each(entry, arg);
	return true;
}

static void show_iostat(const struct entry *entry, void *arg)
{
	json_t *stat = iostat(entry);

	if (stat)
		json_array_append_new(arg, stat);
}

static void reset_iostat(const struct entry *entry, void *arg)
{
	(void)arg;
	dp_bdev_iostat_reset(entry->name);
}

void rpc_bdev_get_iostat(struct rpc_request *request, const void *params)
{
	json_t *shown = json_array();
	struct timespec now;

	clock_gettime(CLOCK_MONOTONIC, &now);
	if (for_each(request, params, show_iostat, shown))
		rpc_reply(request, json_pack("{s:I, s:I, s:O}", "tick_rate", (json_int_t)NS_PER_S, "ticks",
					     (json_int_t)now.tv_sec * NS_PER_S + now.tv_nsec, "bdevs", shown));
	json_decref(shown);
}

void rpc_bdev_reset_iostat(struct rpc_request *request, const void *params)
{
	if (for_each(request, params, reset_iostat, NULL))
		rpc_reply(request, json_true());
}

bool rpc_bdev_each(struct rpc_request *request, const void *params, void (*each)(const char *name, void *arg), void *arg)
{
	const struct rpc_bdev_name *p = params;

	if (p->name && !require(request, p->name))
		return false;
	for (const struct entry *entry = entries; entry; entry = entry->next)
		if (!entry->deleting && (!p->name || strcmp(entry->name, p->name) == 0))
			each(entry->name, arg);
	return true;
}

void rpc_bdev_changed(const char *name, const struct dp_bdev_facts *facts)
{
	struct entry *entry = find(name);

	if (!entry)
		return;
	entry->present = facts != NULL;
	if (facts)
		entry->facts = *facts;
}

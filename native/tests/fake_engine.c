/* SPDX-License-Identifier: BSD-3-Clause */
#include "fake_engine.h"

#include <errno.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <unistd.h>

#include "loop.h"

#define HELD_MAX 4096
#define FAKE_BDEVS_MAX 64

struct fake_engine fake;

struct call {
	dp_done_fn done;
	void *arg;
	int rc;
};

static struct call held[HELD_MAX];
static char bdev_names[FAKE_BDEVS_MAX][DP_NAME_MAX + 1];

void fake_reset(void)
{
	fake_release();
	memset(&fake, 0, sizeof(fake));
	memset(&fake_rdma, 0, sizeof(fake_rdma));
	fake.adopted.fd = -1;
	memset(bdev_names, 0, sizeof(bdev_names));
}

static void run_call(void *arg)
{
	struct call *call = arg;

	call->done(call->arg, call->rc);
	free(call);
}

static void later(dp_done_fn done, void *arg, int rc)
{
	if (fake.hold && fake.held < HELD_MAX) {
		held[fake.held++] = (struct call){done, arg, rc};
		return;
	}
	struct call *call = malloc(sizeof(*call));

	if (!call)
		abort();
	*call = (struct call){done, arg, rc};
	loop_post(run_call, call);
}

void fake_release(void)
{
	const unsigned count = fake.held;

	fake.held = 0;
	fake.hold = false;
	for (unsigned i = 0; i < count; i++)
		later(held[i].done, held[i].arg, held[i].rc);
}

static int take(int *rc)
{
	const int now = *rc;

	*rc = 0;
	return now;
}

int dp_start(const struct dp_options *options, char err[DP_ERR_MAX])
{
	(void)options;
	(void)err;
	fake.adopted.fd = -1;
	return 0;
}

void dp_stop(dp_done_fn done, void *arg)
{
	later(done, arg, 0);
}

char *dp_describe(void)
{
	return strdup("{\"fake\": true}");
}

static char *find(const char *name)
{
	for (int i = 0; i < FAKE_BDEVS_MAX; i++)
		if (strcmp(bdev_names[i], name) == 0)
			return bdev_names[i];
	return NULL;
}

int dp_bdev_create(const struct dp_bdev_config *config, struct dp_bdev_facts *facts, char err[DP_ERR_MAX])
{
	const int rc = take(&fake.create_rc);
	char *slot = find("");

	if (rc < 0 || !slot) {
		snprintf(err, DP_ERR_MAX, "refused by the fake");
		return rc < 0 ? rc : -ENOSPC;
	}
	snprintf(slot, DP_NAME_MAX + 1, "%s", config->name);
	fake.bdev = *config;
	fake.bdevs++;
	*facts = (struct dp_bdev_facts){.block_size = config->block_size ? config->block_size : 512,
					.num_blocks = config->num_blocks ? config->num_blocks : 8,
					.physical_block_size = 512};
	return 0;
}

int dp_bdev_delete(const char *name, dp_done_fn done, void *arg)
{
	char *slot = find(name);

	if (!slot)
		return -ENODEV;
	*slot = 0;
	fake.bdevs--;
	later(done, arg, 0);
	return 0;
}

void dp_bdev_check(void)
{
}

int dp_bdev_resize(const char *name, uint64_t num_blocks, struct dp_bdev_facts *facts, char err[DP_ERR_MAX])
{
	(void)err;
	if (num_blocks)
		facts->num_blocks = num_blocks;
	return find(name) ? 0 : -ENODEV;
}

int dp_bdev_iostat(const char *name, struct dp_iostat *stat)
{
	*stat = (struct dp_iostat){.bytes_read = 4096, .num_read_ops = 1, .errors = {[1] = 2}};
	return find(name) ? 0 : -ENODEV;
}

int dp_bdev_iostat_reset(const char *name)
{
	return find(name) ? 0 : -ENODEV;
}

int dp_bdev_set_qos(const char *name, uint64_t rw_ios_per_sec, uint64_t rw_mbytes_per_sec, uint64_t r_mbytes_per_sec,
		    uint64_t w_mbytes_per_sec, char err[DP_ERR_MAX])
{
	(void)err;
	fake.qos[0] = rw_ios_per_sec;
	fake.qos[1] = rw_mbytes_per_sec;
	fake.qos[2] = r_mbytes_per_sec;
	fake.qos[3] = w_mbytes_per_sec;
	return find(name) ? 0 : -ENODEV;
}

int dp_bdev_histogram_enable(const char *name, bool enable)
{
	(void)enable;
	return find(name) ? 0 : -ENODEV;
}

int dp_bdev_histogram_get(const char *name, uint64_t **buckets, size_t *count, unsigned *bucket_shift)
{
	if (!find(name))
		return -ENODEV;
	*count = 4;
	*bucket_shift = 1;
	*buckets = calloc(*count, sizeof(**buckets));
	return *buckets ? 0 : -ENOMEM;
}

int dp_bdev_error_inject(const char *name, const char *io_type, const char *error_type, uint32_t num,
			 uint32_t corrupt_offset, uint8_t corrupt_value)
{
	(void)io_type;
	(void)num;
	(void)corrupt_offset;
	(void)corrupt_value;
	return !find(name) ? -ENODEV : strcmp(error_type, "failure") == 0 ? 0 : -EINVAL;
}

int dp_bdev_delay_update(const char *name, const char *latency_type, uint64_t us)
{
	(void)us;
	return !find(name) ? -ENODEV : strcmp(latency_type, "avg_read") == 0 ? 0 : -EINVAL;
}

int dp_ctrlr_check(const struct dp_ctrlr_view *view, char err[DP_ERR_MAX])
{
	(void)view;
	snprintf(err, DP_ERR_MAX, "a pool");
	return take(&fake.check_rc);
}

int dp_ctrlr_set(const struct dp_ctrlr_view *view, dp_done_fn done, void *arg)
{
	const int rc = take(&fake.set_rc);

	if (rc < 0)
		return rc;
	for (uint32_t i = 0; i < view->num_ns; i++)
		if (!view->ns[i].nsid || !view->ns[i].bdev)
			abort();
	fake.view = *view;
	fake.view.ns = NULL;
	fake.view.host = NULL;
	snprintf(fake.host, sizeof(fake.host), "%s", view->host ? view->host : "");
	for (size_t i = 0; i < 3 && view->num_ns; i++) {
		const char *pools[3] = {view->ns->read_pool, view->ns->write_pool, view->ns->copy_pool};

		snprintf(fake.pools[i], sizeof(fake.pools[i]), "%s", pools[i] ? pools[i] : "");
	}
	fake.strict = view->num_ns && view->ns->strict;
	fake.controllers++;
	later(done, arg, 0);
	return 0;
}

void dp_ctrlr_remove(uint64_t key, dp_done_fn done, void *arg)
{
	(void)key;
	fake.controllers--;
	later(done, arg, 0);
}

int dp_queue_adopt(const struct dp_queue *queue, char err[DP_ERR_MAX])
{
	const int rc = take(&fake.adopt_rc);

	if (rc < 0) {
		snprintf(err, DP_ERR_MAX, "refused by the fake");
		return rc;
	}
	if (fake.adopted.fd >= 0)
		close(fake.adopted.fd);
	fake.adopted = *queue;
	fake.adopted_response_len = queue->response_len;
	snprintf(fake.adopted_peer, sizeof(fake.adopted_peer), "%s", queue->peer);
	fake.adoptions++;
	return 0;
}

void dp_queue_close(struct dp_queue_key key, dp_done_fn done, void *arg)
{
	fake.closed = key;
	fake.queue_closes++;
	later(done, arg, 0);
}

void dp_queue_abort(struct dp_queue_key key, uint16_t cid, dp_done_fn done, void *arg)
{
	(void)key;
	later(done, arg, cid == 7);
}

void dp_upcall_complete(uint64_t token, uint16_t status, bool dnr, uint32_t dw0, bool close)
{
	fake.upcall.token = token;
	fake.upcall.status = status;
	fake.upcall.dnr = dnr;
	fake.upcall.dw0 = dw0;
	fake.upcall.close = close;
	fake.upcall.count++;
}

size_t dp_queue_stats(struct dp_queue_stat **stats)
{
	*stats = calloc(1, sizeof(**stats));
	if (!*stats)
		return 0;
	**stats = (struct dp_queue_stat){.key = {1, 2}, .commands = 3, .peer = "192.0.2.1:4"};
	return 1;
}

size_t dp_reactor_stats(struct dp_reactor_stat **stats)
{
	*stats = calloc(1, sizeof(**stats));
	return *stats ? 1 : 0;
}

/* -- pools: one at most */

int dp_pool_create(const struct dp_pool_config *config, struct dp_pool_facts *facts, char err[DP_ERR_MAX])
{
	const int rc = take(&fake.pool_rc);

	if (rc < 0) {
		snprintf(err, DP_ERR_MAX, "refused by the fake");
		return rc;
	}
	fake.pool = *config;
	snprintf(fake.pool_name, sizeof(fake.pool_name), "%s", config->name);
	snprintf(fake.pool_path, sizeof(fake.pool_path), "%s", config->path ? config->path : "");
	facts->bytes = config->bytes ? config->bytes : 1 << 20;
	return 0;
}

static bool is_pool(const char *name, char err[DP_ERR_MAX])
{
	snprintf(err, DP_ERR_MAX, "there is no pool '%.100s'", name);
	return strcmp(name, fake.pool_name) == 0;
}

int dp_pool_delete(const char *name, dp_done_fn done, void *arg, char err[DP_ERR_MAX])
{
	if (!is_pool(name, err))
		return -ENODEV;
	fake.pool_name[0] = 0;
	later(done, arg, 0);
	return 0;
}

int dp_pool_restore(const char *bdev, const char *journal, dp_restored_fn done, void *arg, char err[DP_ERR_MAX])
{
	if (strcmp(bdev, "Nvme0n1") != 0)
		return -ENODEV;
	done(arg, take(&fake.pool_rc), journal);
	return 0;
}

int dp_pool_probe(const char *bdf, bool attached, struct dp_pool_device *found, char err[DP_ERR_MAX])
{
	*found = (struct dp_pool_device){.region = "pmr", .via = attached ? "spdk" : "vfio", .bar = 4, .bytes = 1 << 24, .no_dma_buf = "a test"};
	snprintf(err, DP_ERR_MAX, "no memory in %.60s", bdf);
	return take(&fake.pool_rc);
}

size_t dp_pool_stats(struct dp_pool_stat **stats)
{
	*stats = calloc(1, sizeof(**stats));
	if (!*stats || !fake.pool_name[0])
		return 0;
	**stats = (struct dp_pool_stat){.kind = fake.pool.kind, .bytes = 1 << 20, .free_bytes = 4096, .lost = true, .why = "test"};
	snprintf((*stats)->name, sizeof((*stats)->name), "%s", fake.pool_name);
	(*stats)->allowed = calloc(1, sizeof(*(*stats)->allowed));
	if (fake.pool_allow && (*stats)->allowed) {
		snprintf((*stats)->allowed[0], sizeof((*stats)->allowed[0]), "%s", fake.pool_bdev);
		(*stats)->num_allowed = 1;
	}
	return 1;
}

void dp_pool_stats_free(struct dp_pool_stat *stats, size_t count)
{
	for (size_t i = 0; i < count; i++)
		free(stats[i].allowed);
	free(stats);
}

void dp_pool_check(void)
{
}

int dp_pool_calibrate(const struct dp_calibrate_config *config, dp_calibrated_fn done, void *arg, char err[DP_ERR_MAX])
{
	struct dp_calibration result = {.cpu_write_mib_s = 1.5, .verified = config->bdev != NULL};

	if (!is_pool(config->pool, err))
		return -ENODEV;
	if (fake.calibration_fails)
		snprintf(result.reason, sizeof(result.reason), "it could not be put back");
	done(arg, fake.calibration_fails ? -EIO : 0, &result);
	return 0;
}

int dp_pool_allow(const char *name, const char *bdev, bool allow, char err[DP_ERR_MAX])
{
	if (!is_pool(name, err) || !find(bdev))
		return -ENODEV;
	fake.pool_allow = allow;
	snprintf(fake.pool_bdev, sizeof(fake.pool_bdev), "%s", bdev);
	return 0;
}

int dp_bdev_staging(const char *name, struct dp_staging *staging)
{
	*staging = (struct dp_staging){.fallbacks = 3, .interrupted = 4, .copy_bytes = {5, 6, 7, 8}, .withdrawn = 1 << 1};
	staging->pool[0].bytes[0] = 10;
	staging->pool[2].bytes[1] = 4096;
	staging->pool[2].ops[1] = 1;
	return find(name) ? 0 : -ENODEV;
}

const char *dp_pool_name(unsigned index)
{
	return index == 2 ? "0000:03:00.0" : NULL;
}

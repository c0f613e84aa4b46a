/* SPDX-License-Identifier: BSD-3-Clause
 *
 * spdk_none.c: spdk.h where the process is built without SPDK.
 */
#include <errno.h>
#include <stdio.h>

#include "spdk.h"

bool dp_spdk_built(void)
{
	return false;
}

const char *dp_spdk_version(void)
{
	return NULL;
}

bool dp_spdk_active(void)
{
	return false;
}

void dp_spdk_early(bool hugepages)
{
}

void dp_spdk_start(dp_spdk_done_fn done, void *arg)
{
	done(arg, -EOPNOTSUPP, DP_SPDK_BUILT_WITHOUT);
}

void dp_spdk_stop(void (*done)(void *arg), void *arg)
{
	done(arg);
}

void dp_spdk_attach(const struct dp_spdk_attach *attach, dp_spdk_done_fn done, void *arg)
{
	done(arg, -EOPNOTSUPP, DP_SPDK_BUILT_WITHOUT);
}

void dp_spdk_detach(const char *name, dp_spdk_done_fn done, void *arg)
{
	done(arg, -ENODEV, DP_SPDK_BUILT_WITHOUT);
}

void dp_spdk_reset(const char *name, dp_spdk_done_fn done, void *arg)
{
	done(arg, -ENODEV, DP_SPDK_BUILT_WITHOUT);
}

void dp_spdk_health(const char *name, dp_spdk_health_fn done, void *arg)
{
	done(arg, -ENODEV, DP_SPDK_BUILT_WITHOUT, NULL);
}

size_t dp_spdk_ctrlrs(const char *name, struct dp_spdk_ctrlr **ctrlrs)
{
	*ctrlrs = NULL;
	return 0;
}

void dp_spdk_ctrlrs_free(struct dp_spdk_ctrlr *ctrlrs, size_t count)
{
}

void dp_spdk_watch(void (*changed)(const char *name))
{
}

void dp_spdk_get_options(struct dp_spdk_options *options)
{
	*options = (struct dp_spdk_options){ 0 };
}

int dp_spdk_set_options(const struct dp_spdk_options *options, char err[DP_ERR_MAX])
{
	snprintf(err, DP_ERR_MAX, DP_SPDK_BUILT_WITHOUT);
	return -EOPNOTSUPP;
}

void dp_spdk_set_hotplug(bool enable, uint64_t period_us)
{
}

int dp_spdk_mem_add(void *addr, size_t bytes)
{
	return 0; /* nobody is there who would have to reach it */
}

void dp_spdk_mem_remove(void *addr, size_t bytes)
{
}

bool dp_spdk_mem_reaches(const void *addr, size_t bytes)
{
	return false;
}

struct dp_spdk_hold *dp_spdk_hold(const char *bdf, void (*gone)(void *arg, const char *why), void *arg)
{
	return NULL;
}

void dp_spdk_let_go(struct dp_spdk_hold *hold)
{
}

volatile void *dp_spdk_registers(struct dp_spdk_hold *hold)
{
	return NULL;
}

int dp_spdk_map_bar(struct dp_spdk_hold *hold, unsigned bar, void **addr, uint64_t *phys, uint64_t *size)
{
	return -EOPNOTSUPP;
}

void dp_spdk_unmap_bar(struct dp_spdk_hold *hold, unsigned bar, void *addr)
{
}

struct bdev *dp_spdk_bdev_open(const struct dp_bdev_config *config, int *rc, char err[DP_ERR_MAX])
{
	snprintf(err, DP_ERR_MAX, "bdev %.60s: " DP_SPDK_BUILT_WITHOUT, config->name);
	*rc = -EOPNOTSUPP;
	return NULL;
}

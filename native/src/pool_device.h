/* SPDX-License-Identifier: BSD-3-Clause
 *
 * pool_device.h: the memory of a pool of kind DP_POOL_SPDK_CMB: the CMB (or PMR) of a drive that is bound to vfio-pci. Either
 * SPDK has the drive, as an attached controller, or nobody, and we open it ourselves (vfio.h). Control thread.
 */
#pragma once

#include "pool.h"

struct pool_device;

/* Its memory is mapped and enabled. bytes 0: all there is. NULL with *rc and err. */
struct pool_device *pool_device_open(const char *bdf, uint64_t bytes, int *rc, char err[DP_ERR_MAX]);
void pool_device_close(struct pool_device *device);

/* lost: it has to be given back, or what lay in it is gone; on any thread, maybe at once. why: a string constant. */
void pool_device_watch(struct pool_device *device, void (*lost)(void *arg, const char *why), void *arg);
void pool_device_unwatch(struct pool_device *device); /* lost is not called any more, nor is it running */

uint8_t *pool_device_base(const struct pool_device *device);
size_t pool_device_bytes(const struct pool_device *device);
void pool_device_facts(const struct pool_device *device, struct dp_pool_device *facts);
/* Of all its memory, which begins at pool_device_base; -1: there is none, see facts. The device's own. */
int pool_device_dmabuf(const struct pool_device *device);
/* What a drive offers, without making a pool of it: 0, or -errno with the reason. attached: see dp_pool_probe. */
int pool_device_probe(const char *bdf, bool attached, struct dp_pool_device *facts, char err[DP_ERR_MAX]);

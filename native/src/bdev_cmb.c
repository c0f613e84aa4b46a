/* SPDX-License-Identifier: BSD-3-Clause
 *
 * bdev_cmb.c: a namespace that lies in a drive's CMB: small, fast, volatile. Its memory is a buffer of a pool, which is a
 * staging pool that others use too, or one of its own (straight from p2pmem/allocate, or emulated).
 *
 * There is no map(): what goes to a socket is copied out first, and only then is it sure that the memory was still there.
 * Once the provider is lost every operation fails with Namespace Not Ready; what comes back later is another, empty, disk.
 */
#include <errno.h>
#include <stdio.h>
#include <stdlib.h>

#include "bdev.h"
#include "pool_priv.h"

struct cmb_bdev {
	struct bdev bdev;
	struct pool *pool;
	struct pool_buf *buf;
	bool own; /* pool is nobody else's */
};

static uint8_t *locate(const struct pool_buf *buf, uint64_t offset, uint64_t *length)
{
	for (uint32_t i = 0; i < buf->n; i++) {
		const struct iovec *piece = &buf->iov[i];

		if (offset < piece->iov_len) {
			*length = min_u64(*length, piece->iov_len - offset);
			return (uint8_t *)piece->iov_base + offset;
		}
		offset -= piece->iov_len;
	}
	return NULL;
}

static int cmb_submit(struct bdev_io *io)
{
	struct cmb_bdev *c = dp_container_of(io->bdev, struct cmb_bdev, bdev);

	if (pool_is_lost(c->pool))
		return -ENODEV;
	for (uint64_t at = 0; at < io->length && io->op != BDEV_FLUSH;) {
		uint64_t length = io->length - at;
		uint8_t *memory = locate(c->buf, io->offset + at, &length);

		if (!memory)
			return -EIO;
		if (io->op == BDEV_READ)
			pool_copy(io->buf + at, memory, length);
		else if (io->op == BDEV_WRITE)
			pool_copy(memory, io->buf + at, length);
		else
			pool_zero(memory, length);
		at += length;
	}
	return pool_check(c->pool) ? 0 : -ENODEV;
}

static void destroyed(void *arg)
{
	pool_destroy(arg);
}

static void cmb_destroy(struct bdev *bdev)
{
	struct cmb_bdev *c = dp_container_of(bdev, struct cmb_bdev, bdev);

	if (c->buf)
		pool_put(c->buf);
	if (c->own)
		pool_close(c->pool, destroyed, c->pool);
	free(c);
}

static const struct bdev_ops cmb_ops = { .submit = cmb_submit, .destroy = cmb_destroy };

static int check(const struct dp_bdev_config *config, uint64_t bytes, char err[DP_ERR_MAX])
{
	if (config->pmr) {
		snprintf(err, DP_ERR_MAX,
			 "bdev %.80s: the kernel's NVMe driver offers no persistent memory region (PMR) to others, only the CMB",
			 config->name);
		return -ENOTSUP;
	}
	if ((config->pool != NULL) + (config->filename != NULL) + config->emulated != 1) {
		snprintf(err, DP_ERR_MAX, "bdev %.80s: exactly one of a pool, a path and emulated", config->name);
		return -EINVAL;
	}
	if (config->block_size < 512 || config->num_blocks == 0 || bytes > UINT32_MAX - POOL_GRANULE ||
	    bytes / config->block_size != config->num_blocks) {
		snprintf(err, DP_ERR_MAX, "bdev %.80s: it has 1 block of at least 512 bytes up to 4 GiB", config->name);
		return -EINVAL;
	}
	return 0;
}

static int find_memory(struct cmb_bdev *c, const struct dp_bdev_config *config, uint64_t bytes, char err[DP_ERR_MAX])
{
	struct dp_pool_config own = { .name = config->name,
				      .kind = config->emulated ? DP_POOL_EMULATED : DP_POOL_P2PMEM,
				      .path = config->filename,
				      .bytes = (bytes + POOL_GRANULE - 1) / POOL_GRANULE * POOL_GRANULE + POOL_GRANULE };
	int rc;

	if (config->pool) {
		c->pool = pool_find(config->pool);
		if (!c->pool) {
			snprintf(err, DP_ERR_MAX, "bdev %.60s: there is no pool %.100s", config->name, config->pool);
			return -ENODEV;
		}
	} else {
		c->pool = pool_open(&own, true, &rc, err);
		if (!c->pool)
			return rc;
		c->own = true;
	}
	/* wiped: a new disk is zeroes, and nobody's leavings are on it */
	c->buf = pool_get(c->pool, &(struct pool_want){ .bytes = (uint32_t)bytes, .wipe = true });
	if (c->buf)
		return 0;
	snprintf(err, DP_ERR_MAX, "bdev %.60s: pool %.100s has no room for %llu bytes now, or was lost", config->name,
		 pool_name(c->pool), (unsigned long long)bytes);
	return -ENOSPC;
}

struct bdev *bdev_cmb_open(const struct dp_bdev_config *config, int *rc, char err[DP_ERR_MAX])
{
	uint64_t bytes = config->num_blocks * config->block_size;
	struct cmb_bdev *c;

	*rc = check(config, bytes, err);
	if (*rc < 0)
		return NULL;
	c = calloc(1, sizeof(*c));
	*rc = c ? find_memory(c, config, bytes, err) : -ENOMEM;
	if (*rc < 0) {
		if (c)
			cmb_destroy(&c->bdev);
		return NULL;
	}
	c->bdev.ops = &cmb_ops;
	c->bdev.block_size = config->block_size;
	atomic_init(&c->bdev.num_blocks, config->num_blocks);
	c->bdev.readonly = config->readonly;
	c->bdev.unmap = true;
	return &c->bdev;
}

struct pool *bdev_cmb_pool(const struct bdev *bdev)
{
	return dp_container_of(bdev, const struct cmb_bdev, bdev)->pool;
}

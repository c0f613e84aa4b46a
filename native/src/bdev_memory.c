/* SPDX-License-Identifier: BSD-3-Clause
 *
 * bdev_memory.c: the two back ends in memory. malloc: a RAM disk of private anonymous pages, which the kernel fills
 * with zeroes. null: keeps nothing; writes succeed, reads give zeroes (SPDK leaves the buffer as it was, we never do).
 */
#include <errno.h>
#include <stdio.h>
#include <stdlib.h>
#include <sys/mman.h>

#include "bdev.h"
#include "common.h"

#define ZEROES_BYTES (128u << 10)

struct memory_bdev {
	struct bdev bdev;
	uint8_t *mem;
	size_t bytes; /* of the mapping */
};

static const uint8_t zeroes[ZEROES_BYTES] __attribute__((aligned(4096)));

#ifdef __SANITIZE_THREAD__
/* Hosts that write and read the same blocks at the same time race by their own choice, on a disk as here. */
const char *__tsan_default_suppressions(void);

const char *__tsan_default_suppressions(void)
{
	return "race:malloc_submit\nrace:malloc_zero\n";
}
#endif

static int malloc_zero(struct memory_bdev *m, uint64_t offset, uint64_t length)
{
	const uint64_t page = 4096;
	uint64_t end = offset + length, first = (offset + page - 1) / page * page, last = end / page * page;

	if (first >= last || length < 64 * 1024) {
		memset(m->mem + offset, 0, length);
		return 0;
	}
	memset(m->mem + offset, 0, first - offset);
	memset(m->mem + last, 0, end - last);
	if (madvise(m->mem + first, last - first, MADV_DONTNEED) < 0) /* anonymous pages come back as zeroes */
		memset(m->mem + first, 0, last - first);
	return 0;
}

static int malloc_submit(struct bdev_io *io)
{
	struct memory_bdev *m = dp_container_of(io->bdev, struct memory_bdev, bdev);

	if (io->op == BDEV_FLUSH)
		return 0;
	if (io->offset + io->length > m->bytes) /* made smaller after the command was checked */
		return -EIO;
	switch (io->op) {
	case BDEV_READ:
		memcpy(io->buf, m->mem + io->offset, io->length);
		return 0;
	case BDEV_WRITE:
		memcpy(m->mem + io->offset, io->buf, io->length);
		return 0;
	default:
		return malloc_zero(m, io->offset, io->length);
	}
}

static const uint8_t *malloc_map(struct bdev *bdev, uint64_t offset, uint32_t *length)
{
	struct memory_bdev *m = dp_container_of(bdev, struct memory_bdev, bdev);

	return offset + *length <= m->bytes ? m->mem + offset : NULL;
}

static int memory_resize(struct bdev *bdev, uint64_t num_blocks)
{
	struct memory_bdev *m = dp_container_of(bdev, struct memory_bdev, bdev);

	/* A mapping that other threads read cannot move, so malloc grows no further than it was made. */
	if (num_blocks > UINT64_MAX >> bdev->block_shift)
		return -EINVAL;
	if (m->mem && num_blocks << bdev->block_shift > m->bytes)
		return -ENOMEM;
	return 0;
}

static void memory_destroy(struct bdev *bdev)
{
	struct memory_bdev *m = dp_container_of(bdev, struct memory_bdev, bdev);

	if (m->mem)
		munmap(m->mem, m->bytes);
	free(m);
}

static const struct bdev_ops malloc_ops = {
	.submit = malloc_submit,
	.map = malloc_map,
	.resize = memory_resize,
	.destroy = memory_destroy,
};

static int null_submit(struct bdev_io *io)
{
	if (io->op == BDEV_READ)
		memset(io->buf, 0, io->length);
	return 0;
}

static const uint8_t *null_map(struct bdev *bdev, uint64_t offset, uint32_t *length)
{
	*length = min_u32(*length, ZEROES_BYTES);
	return zeroes;
}

static const struct bdev_ops null_ops = {
	.submit = null_submit,
	.map = null_map,
	.constant = true,
	.resize = memory_resize,
	.destroy = memory_destroy,
};

static struct memory_bdev *memory_open(const struct dp_bdev_config *config, int *rc, char err[DP_ERR_MAX])
{
	struct memory_bdev *m;

	*rc = -EINVAL;
	if (config->num_blocks == 0) {
		snprintf(err, DP_ERR_MAX, "bdev %.80s: the number of blocks must be greater than 0", config->name);
		return NULL;
	}
	if (config->block_size < 512 || config->num_blocks > (1ull << 62) / config->block_size) {
		snprintf(err, DP_ERR_MAX, "bdev %.80s: wrong block size or number of blocks", config->name);
		return NULL;
	}
	m = calloc(1, sizeof(*m));
	if (!m) {
		*rc = -ENOMEM;
		return NULL;
	}
	m->bdev.block_size = config->block_size;
	atomic_init(&m->bdev.num_blocks, config->num_blocks);
	m->bdev.readonly = config->readonly;
	m->bdev.unmap = true;
	*rc = 0;
	return m;
}

struct bdev *bdev_malloc_open(const struct dp_bdev_config *config, int *rc, char err[DP_ERR_MAX])
{
	struct memory_bdev *m = memory_open(config, rc, err);

	if (!m)
		return NULL;
	m->bytes = (size_t)config->num_blocks * config->block_size;
	m->mem = mmap(NULL, m->bytes, PROT_READ | PROT_WRITE, MAP_PRIVATE | MAP_ANONYMOUS | MAP_NORESERVE, -1, 0);
	if (m->mem == MAP_FAILED) {
		*rc = -ENOMEM;
		snprintf(err, DP_ERR_MAX, "bdev %.80s: no memory", config->name);
		free(m);
		return NULL;
	}
	madvise(m->mem, m->bytes, MADV_HUGEPAGE); /* fewer page faults and TLB misses; no harm where refused */
	m->bdev.ops = &malloc_ops;
	return &m->bdev;
}

struct bdev *bdev_null_open(const struct dp_bdev_config *config, int *rc, char err[DP_ERR_MAX])
{
	struct memory_bdev *m = memory_open(config, rc, err);

	if (m)
		m->bdev.ops = &null_ops;
	return m ? &m->bdev : NULL;
}

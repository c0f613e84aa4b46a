/* SPDX-License-Identifier: BSD-3-Clause
 *
 * bdev_layers.c: test back ends over another: delay (bdev_delay_create) and error (bdev_error_create).
 */
#include <errno.h>
#include <stdio.h>
#include <stdlib.h>

#include "bdev.h"
#include "common.h"

static void below(struct bdev *bdev, const struct bdev *base)
{
	bdev->block_size = base->block_size;
	bdev->physical_block_size = base->physical_block_size;
	atomic_init(&bdev->num_blocks, atomic_load(&base->num_blocks));
	bdev->readonly = base->readonly;
	bdev->write_cache = base->write_cache;
	bdev->unmap = base->unmap;
}

/* -- delay: an operation waits before it goes down */

struct delay_bdev {
	struct bdev bdev;
	struct bdev *base;
	_Atomic uint64_t us[4]; /* average read, p99 read, average write, p99 write */
	_Atomic unsigned turn;
};

static void delay_over(struct reactor *r, struct uop *op, int res)
{
	struct bdev_io *io = dp_container_of(op, struct bdev_io, uop);
	struct delay_bdev *d = dp_container_of(io->bdev, struct delay_bdev, bdev);
	int rc = bdev_forward(io, d->base);

	if (rc != BDEV_PENDING)
		bdev_done(io, rc);
}

static int delay_submit(struct bdev_io *io)
{
	struct delay_bdev *d = dp_container_of(io->bdev, struct delay_bdev, bdev);
	bool slow = atomic_fetch_add(&d->turn, 1) % 100 == 99; /* one of a hundred has the p99 latency */
	uint64_t us;
	struct io_uring_sqe *sqe;

	if (io->op != BDEV_READ && io->op != BDEV_WRITE)
		return bdev_forward(io, d->base);
	us = atomic_load(&d->us[(io->op == BDEV_WRITE ? 2 : 0) + slow]);
	if (!us || io->r->sink)
		return bdev_forward(io, d->base);
	io->timeout = (struct __kernel_timespec){ .tv_sec = (long long)(us / 1000000),
						  .tv_nsec = (long long)(us % 1000000 * 1000) };
	io->uop.fn = delay_over;
	sqe = reactor_sqe(io->r);
	io_uring_prep_timeout(sqe, &io->timeout, 0, 0);
	io_uring_sqe_set_data(sqe, &io->uop);
	return BDEV_PENDING;
}

static void delay_destroy(struct bdev *bdev)
{
	free(dp_container_of(bdev, struct delay_bdev, bdev));
}

static const struct bdev_ops delay_ops = { .submit = delay_submit, .destroy = delay_destroy };

struct bdev *bdev_delay_open(const struct dp_bdev_config *config, struct bdev *base, int *rc, char err[DP_ERR_MAX])
{
	struct delay_bdev *d = calloc(1, sizeof(*d));

	*rc = d ? 0 : -ENOMEM;
	if (!d)
		return NULL;
	d->base = base;
	d->bdev.ops = &delay_ops;
	below(&d->bdev, base);
	for (size_t i = 0; i < 4; i++)
		atomic_init(&d->us[i], config->delay_us[i]);
	return &d->bdev;
}

int bdev_delay_update(struct bdev *bdev, const char *latency_type, uint64_t us)
{
	static const char *const names[4] = { "avg_read", "p99_read", "avg_write", "p99_write" };
	struct delay_bdev *d = dp_container_of(bdev, struct delay_bdev, bdev);

	for (size_t i = 0; i < 4; i++)
		if (strcmp(latency_type, names[i]) == 0) {
			atomic_store(&d->us[i], us);
			return 0;
		}
	return -EINVAL;
}

/* -- error: fails, holds or damages a number of operations */

enum error_how { ERROR_FAILURE = 1, ERROR_PENDING, ERROR_CORRUPT, ERROR_NOMEM, ERROR_NOT_TRANSFERRED };

struct injection {
	_Atomic uint32_t left;
	_Atomic uint32_t how, offset;
	_Atomic uint8_t value;
};

struct error_bdev {
	struct bdev bdev;
	struct bdev *base;
	struct injection inject[BDEV_OPS];
};

static uint32_t error_take(struct injection *inject)
{
	uint32_t left = atomic_load(&inject->left);

	while (left && !atomic_compare_exchange_weak(&inject->left, &left, left - 1))
		;
	return left ? atomic_load(&inject->how) : 0;
}

static void damage(const struct injection *inject, struct bdev_io *io)
{
	uint64_t offset = atomic_load(&inject->offset);
	const struct iovec *piece = io->iov;

	if (offset >= io->length)
		return;
	if (!io->iovcnt) {
		io->buf[offset] ^= atomic_load(&inject->value);
		return;
	}
	while (offset >= piece->iov_len)
		offset -= piece++->iov_len;
	((uint8_t *)piece->iov_base)[offset] ^= atomic_load(&inject->value);
}

/* A read that the base answers later is damaged when it comes (bdev_error_hook). */
static int error_read_corrupt(struct error_bdev *e, struct bdev_io *io)
{
	int rc = bdev_forward(io, e->base);

	if (rc == 0)
		damage(&e->inject[BDEV_READ], io);
	else if (rc == BDEV_PENDING)
		io->hook = &e->bdev;
	return rc;
}

static int error_submit(struct bdev_io *io)
{
	struct error_bdev *e = dp_container_of(io->bdev, struct error_bdev, bdev);

	switch (error_take(&e->inject[io->op])) {
	case ERROR_FAILURE:
		return -EIO;
	case ERROR_NOMEM:
		return -ENOMEM;
	case ERROR_PENDING:
		TAILQ_INSERT_TAIL(&e->bdev.r[io->r->id].held, io, link);
		return BDEV_PENDING;
	case ERROR_CORRUPT:
		if (io->op == BDEV_READ)
			return error_read_corrupt(e, io);
		if (io->op == BDEV_WRITE)
			damage(&e->inject[BDEV_WRITE], io);
		break;
	case ERROR_NOT_TRANSFERRED:
		return 0; /* a drive that says that it has read and moved nothing */
	default:
		break;
	}
	return bdev_forward(io, e->base);
}

void bdev_error_hook(struct bdev_io *io)
{
	damage(&dp_container_of(io->hook, struct error_bdev, bdev)->inject[BDEV_READ], io);
}

static void error_drain(struct bdev *bdev, struct reactor *r)
{
	struct bdev_io *io;

	while ((io = TAILQ_FIRST(&bdev->r[r->id].held))) {
		TAILQ_REMOVE(&bdev->r[r->id].held, io, link);
		bdev_done(io, -EIO);
	}
}

static void error_destroy(struct bdev *bdev)
{
	free(dp_container_of(bdev, struct error_bdev, bdev));
}

static const struct bdev_ops error_ops = { .submit = error_submit, .drain = error_drain, .destroy = error_destroy };

struct bdev *bdev_error_open(const struct dp_bdev_config *config, struct bdev *base, int *rc, char err[DP_ERR_MAX])
{
	struct error_bdev *e = calloc(1, sizeof(*e));

	*rc = e ? 0 : -ENOMEM;
	if (!e)
		return NULL;
	e->base = base;
	e->bdev.ops = &error_ops;
	below(&e->bdev, base);
	return &e->bdev;
}

int bdev_error_inject(struct bdev *bdev, const char *io_type, const char *error_type, uint32_t num, uint32_t offset,
		      uint8_t value)
{
	static const char *const types[] = { "read", "write", "flush", "unmap", "write_zeroes" };
	static const char *const hows[] = { "", "failure", "pending", "corrupt_data", "nomem", "not_transferred" };
	struct error_bdev *e = dp_container_of(bdev, struct error_bdev, bdev);
	bool all = strcmp(io_type, "all") == 0, clear = strcmp(io_type, "clear") == 0, found = false;
	uint32_t how = 0;

	for (uint32_t i = 1; i < DP_ARRAY_LEN(hows); i++)
		if (strcmp(error_type, hows[i]) == 0)
			how = i;
	if ((!how && !clear) || (how == ERROR_NOT_TRANSFERRED && !clear && strcmp(io_type, "read") != 0))
		return -EINVAL;
	for (size_t i = 0; i < DP_ARRAY_LEN(types); i++) {
		struct injection *inject = &e->inject[i];

		if (!all && !clear && strcmp(io_type, types[i]) != 0)
			continue;
		found = true;
		atomic_store(&inject->left, 0);
		atomic_store(&inject->how, how);
		atomic_store(&inject->offset, offset);
		atomic_store(&inject->value, value);
		atomic_store(&inject->left, clear ? 0 : num);
	}
	return found ? 0 : -EINVAL;
}

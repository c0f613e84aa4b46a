/* SPDX-License-Identifier: BSD-3-Clause */
#include "fake_disk.h"

#include <errno.h>
#include <stdlib.h>
#include <string.h>

struct later {
	struct rmsg msg;
	struct bdev_io *io;
};

struct fake_disk *fake_disk;

static void later(struct reactor *r, struct rmsg *msg)
{
	struct later *l = dp_container_of(msg, struct later, msg);
	struct bdev_io *io = l->io;
	struct iovec one = { io->buf, io->length };
	const struct iovec *iov = io->iovcnt ? io->iov : &one;
	uint8_t *at = fake_disk->bytes + io->offset;
	int rc = 0;

	free(l);
	if (io->op == BDEV_WRITE && fake_disk->writes_left-- == 0) {
		fake_disk->writes_left = 0;
		rc = -(BDEV_NVME | 0x280); /* Write Fault */
	}
	for (unsigned i = 0; rc == 0 && io->op <= BDEV_WRITE && i < (io->iovcnt ? io->iovcnt : 1u); i++) {
		fake_disk->in_pool += pool_of(iov[i].iov_base) != NULL;
		if (io->op == BDEV_READ)
			memcpy(iov[i].iov_base, at, iov[i].iov_len);
		else
			memcpy(at, iov[i].iov_base, iov[i].iov_len);
		at += iov[i].iov_len;
	}
	bdev_done(io, rc);
}

static int disk_submit(struct bdev_io *io)
{
	struct later *l = malloc(sizeof(*l));

	*l = (struct later){ .msg.fn = later, .io = io };
	reactor_send(io->r, &l->msg);
	return BDEV_PENDING;
}

static void disk_destroy(struct bdev *bdev)
{
	free(fake_disk->bytes);
	free(fake_disk);
	fake_disk = NULL;
}

static const struct bdev_ops disk_ops = { .submit = disk_submit, .destroy = disk_destroy, .scatters = true };

struct bdev *fake_disk_open(const struct dp_bdev_config *config, int *rc)
{
	fake_disk = calloc(1, sizeof(*fake_disk));
	fake_disk->bytes = malloc(FAKE_DISK_BYTES);
	for (uint32_t i = 0; i < FAKE_DISK_BYTES; i++)
		fake_disk->bytes[i] = (uint8_t)(i * 7 + i / 4096);
	fake_disk->writes_left = UINT32_MAX;
	fake_disk->bdev.ops = &disk_ops;
	fake_disk->bdev.block_size = FAKE_DISK_BLOCK;
	atomic_init(&fake_disk->bdev.num_blocks, FAKE_DISK_BYTES / FAKE_DISK_BLOCK);
	*rc = 0;
	return &fake_disk->bdev;
}

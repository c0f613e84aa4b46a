/* SPDX-License-Identifier: BSD-3-Clause
 *
 * bdev_uring.c: a regular file or a block device, through the reactor's own ring.
 *
 * O_DIRECT where the file system can and its alignment allows single blocks (tried at open), else the page cache; FUA is
 * RWF_DSYNC or a following fdatasync, Flush is fdatasync. tmpfs never waits for a device, and io_uring would hand its
 * I/O to worker threads: there pread and pwrite are called in place.
 */
#include <errno.h>
#include <fcntl.h>
#include <linux/falloc.h>
#include <linux/fs.h>
#include <linux/magic.h>
#include <stdio.h>
#include <stdlib.h>
#include <sys/ioctl.h>
#include <sys/stat.h>
#include <sys/uio.h>
#include <sys/vfs.h>
#include <unistd.h>

#include "bdev.h"
#include "common.h"
#include "nvme_pass.h"
#include "reflink.h"

#define ZERO_CHUNK (128u << 10)

struct uring_bdev {
	struct bdev bdev;
	int fd;
	bool in_place;
	/* Through the page cache, a failed write-back is reported to whichever fdatasync comes first: one at a time then, so
	 * that none which overlaps that one takes its own 0 for good news. */
	bool cached;
	struct rangelock syncs;
	_Atomic bool no_fallocate, no_dsync;
};

/* What bdev_io.step says: the operation in the ring. */
enum { RW, SYNC, FALLOCATE, ZERO_WRITE };

static const uint8_t zeroes[ZERO_CHUNK] __attribute__((aligned(4096)));

static void uring_done(struct reactor *r, struct uop *op, int res);

static bool unsupported(int error)
{
	return error == -EOPNOTSUPP || error == -ENOSYS || error == -EINVAL;
}

static int fallocate_mode(const struct bdev_io *io)
{
	bool punch = io->op == BDEV_UNMAP || io->unmap;

	return (punch ? FALLOC_FL_PUNCH_HOLE : FALLOC_FL_ZERO_RANGE) | FALLOC_FL_KEEP_SIZE;
}

/* What is still to be moved, as far as it lies in one piece. */
static uint8_t *rest_of(const struct bdev_io *io, size_t *bytes)
{
	uint64_t at = io->progress;
	const struct iovec *piece = io->iov;

	if (!io->iovcnt) {
		*bytes = io->length - at;
		return io->buf + at;
	}
	while (at >= piece->iov_len)
		at -= piece++->iov_len;
	*bytes = piece->iov_len - at;
	return (uint8_t *)piece->iov_base + at;
}

/* -- in place */

static int rw_in_place(struct uring_bdev *u, struct bdev_io *io)
{
	while (io->progress < io->length) {
		size_t left = io->length - io->progress;
		off_t at = (off_t)(io->offset + io->progress);
		uint8_t *p = io->op == BDEV_ZERO || io->op == BDEV_UNMAP ? NULL : rest_of(io, &left);
		ssize_t n;

		if (io->op == BDEV_READ)
			n = pread(u->fd, p, left, at);
		else if (io->op == BDEV_WRITE)
			n = pwrite(u->fd, p, left, at);
		else
			n = pwrite(u->fd, zeroes, left < ZERO_CHUNK ? left : ZERO_CHUNK, at);
		if (n < 0 && errno == EINTR)
			continue;
		if (n < 0)
			return -errno;
		if (n == 0)
			return -EIO; /* the file ends before: it has shrunk under us */
		io->progress += (size_t)n;
	}
	return 0;
}

static int in_place(struct uring_bdev *u, struct bdev_io *io)
{
	if (io->op == BDEV_READ || io->op == BDEV_WRITE)
		return rw_in_place(u, io);
	if (io->op == BDEV_FLUSH)
		return 0;
	if (!atomic_load(&u->no_fallocate)) {
		/* tmpfs knows no ZERO_RANGE; a hole reads as zeroes too */
		int mode = FALLOC_FL_PUNCH_HOLE | FALLOC_FL_KEEP_SIZE;

		if (fallocate(u->fd, mode, (off_t)io->offset, (off_t)io->length) == 0)
			return 0;
		if (!unsupported(-errno))
			return -errno;
		atomic_store(&u->no_fallocate, true);
	}
	return io->op == BDEV_UNMAP ? 0 : rw_in_place(u, io);
}

/* -- through the ring */

static void prep_rw(const struct uring_bdev *u, const struct bdev_io *io, struct io_uring_sqe *sqe)
{
	bool whole = io->iovcnt && io->progress == 0;
	uint64_t at = io->offset + io->progress;
	size_t left = 0;
	uint8_t *p = whole ? NULL : rest_of(io, &left);

	if (io->op == BDEV_READ && whole)
		io_uring_prep_readv(sqe, u->fd, io->iov, io->iovcnt, at);
	else if (io->op == BDEV_READ)
		io_uring_prep_read(sqe, u->fd, p, (unsigned)left, at);
	else if (whole)
		io_uring_prep_writev(sqe, u->fd, io->iov, io->iovcnt, at);
	else
		io_uring_prep_write(sqe, u->fd, p, (unsigned)left, at);
}

static void sync_turn(struct reactor *r, struct rmsg *msg);

/* False: others are at it; it goes on when they are done. */
static bool sync_begin(struct uring_bdev *u, struct bdev_io *io)
{
	if (!u->cached)
		return true;
	io->sync = (struct range_hold){ .end = 1, .exclusive = true, .r = io->r, .msg.fn = sync_turn };
	return rangelock_acquire(&u->syncs, &io->sync);
}

static void submit_step(struct bdev_io *io)
{
	struct uring_bdev *u = dp_container_of(io->bdev, struct uring_bdev, bdev);
	struct io_uring_sqe *sqe = reactor_sqe(io->r);
	uint64_t at = io->offset + io->progress, left = io->length - io->progress;

	switch (io->step) {
	case RW:
		prep_rw(u, io, sqe);
		if (io->fua && !atomic_load(&u->no_dsync))
			sqe->rw_flags = RWF_DSYNC;
		break;
	case SYNC:
		io_uring_prep_fsync(sqe, u->fd, IORING_FSYNC_DATASYNC);
		break;
	case FALLOCATE:
		io_uring_prep_rw(IORING_OP_FALLOCATE, sqe, u->fd, NULL, (unsigned)fallocate_mode(io), io->offset);
		sqe->addr = io->length; /* liburing 2.3 takes an off_t and mixes the two up on 32 bits */
		break;
	default:
		io_uring_prep_write(sqe, u->fd, zeroes, (unsigned)min_u64(left, ZERO_CHUNK), at);
	}
	io->uop.fn = uring_done;
	io_uring_sqe_set_data(sqe, &io->uop);
}

/* After an operation that succeeded or was refused as unsupported: true if another was submitted. */
static bool next_step(struct uring_bdev *u, struct bdev_io *io, int *res)
{
	switch (io->step) {
	case RW:
		if (unsupported(*res) && io->fua && !atomic_exchange(&u->no_dsync, true))
			break;
		if (*res < 0)
			return false;
		io->progress += (unsigned)*res;
		if (io->progress < io->length)
			break;
		if (io->op == BDEV_READ || !io->fua || !atomic_load(&u->no_dsync))
			return false;
		io->step = SYNC;
		break;
	case FALLOCATE:
		if (unsupported(*res)) {
			atomic_store(&u->no_fallocate, true);
			*res = 0;
			if (io->op == BDEV_UNMAP) /* advisory: where it cannot be done the data stays (NVM 3.3.3) */
				return false;
			io->step = ZERO_WRITE;
			break;
		}
		if (*res < 0 || !io->fua)
			return false;
		io->step = SYNC;
		break;
	case ZERO_WRITE:
		if (*res < 0)
			return false;
		io->progress += (unsigned)*res;
		if (io->progress < io->length)
			break;
		if (!io->fua)
			return false;
		io->step = SYNC;
		break;
	default:
		return false;
	}
	if (io->step != SYNC || sync_begin(u, io))
		submit_step(io);
	return true;
}

/*
 * Data that was written before, by whomever, could not be made durable. Linux tells one caller and then takes the pages for
 * clean, a drive may report what it could not destage once; the next Flush, perhaps another host's, would succeed.
 */
static bool loses_data(const struct uring_bdev *u, const struct bdev_io *io, int error)
{
	bool dsync = io->step == RW && io->op == BDEV_WRITE && io->fua && !atomic_load(&u->no_dsync);

	if (io->step != SYNC && !dsync)
		return false;
	switch (error) {
	case -ENOSPC:
	case -EDQUOT:
	case -EFBIG:
		return !dsync; /* no room for the write itself, which its host is told */
	case -EAGAIN: /* nothing was tried */
	case -ENOMEM:
	case -ECANCELED:
	case -EBADF:
	case -EFAULT:
		return false;
	default:
		return true;
	}
}

static void uring_done(struct reactor *r, struct uop *op, int res)
{
	struct bdev_io *io = dp_container_of(op, struct bdev_io, uop);
	struct uring_bdev *u = dp_container_of(io->bdev, struct uring_bdev, bdev);

	if (res == -EINTR) {
		submit_step(io);
		return;
	}
	if (res == 0 && (io->step == RW || io->step == ZERO_WRITE))
		res = -EIO; /* nothing more there: never a byte that the medium did not give */
	if (next_step(u, io, &res))
		return;
	if (DP_UNLIKELY(res < 0) && loses_data(u, io, res) && !atomic_exchange(&u->bdev.flush_failed, true))
		bdev_watch_now(); /* which tells it */
	if (io->step == SYNC && u->cached)
		rangelock_release(&u->syncs, &io->sync);
	bdev_done(io, res < 0 ? res : 0);
}

static void sync_turn(struct reactor *r, struct rmsg *msg)
{
	struct bdev_io *io = dp_container_of(dp_container_of(msg, struct range_hold, msg), struct bdev_io, sync);
	struct uring_bdev *u = dp_container_of(io->bdev, struct uring_bdev, bdev);

	if (atomic_load(&u->bdev.flush_failed)) {
		rangelock_release(&u->syncs, &io->sync);
		bdev_done(io, -EIO);
	} else {
		submit_step(io);
	}
}

static int uring_submit(struct bdev_io *io)
{
	struct uring_bdev *u = dp_container_of(io->bdev, struct uring_bdev, bdev);

	io->progress = 0;
	if (DP_UNLIKELY((io->op == BDEV_FLUSH || io->fua) && atomic_load_explicit(&io->bdev->flush_failed, memory_order_relaxed)))
		return -EIO;
	if (u->in_place || io->r->sink)
		return in_place(u, io);
	switch (io->op) {
	case BDEV_READ:
	case BDEV_WRITE:
		io->step = RW;
		break;
	case BDEV_FLUSH:
		io->step = SYNC;
		break;
	case BDEV_UNMAP:
		if (atomic_load(&u->no_fallocate))
			return 0;
		io->step = FALLOCATE;
		break;
	default:
		/* fallocate's length is a whole word, a write's is not */
		io->step = atomic_load(&u->no_fallocate) ? ZERO_WRITE : FALLOCATE;
	}
	if (io->step != SYNC || sync_begin(u, io))
		submit_step(io);
	return BDEV_PENDING;
}

/* -- control thread */

static int size_of(int fd, uint64_t *bytes)
{
	struct stat st;

	if (fstat(fd, &st) < 0)
		return -errno;
	if (S_ISREG(st.st_mode)) {
		*bytes = (uint64_t)st.st_size;
		return 0;
	}
	if (S_ISBLK(st.st_mode))
		return ioctl(fd, BLKGETSIZE64, bytes) < 0 ? -errno : 0;
	return -EINVAL;
}

static int64_t uring_look(struct bdev *bdev)
{
	struct uring_bdev *u = dp_container_of(bdev, struct uring_bdev, bdev);
	uint64_t bytes;
	int rc = size_of(u->fd, &bytes);

	return rc < 0 ? rc : (int64_t)(bytes >> bdev->block_shift);
}

static int uring_resize(struct bdev *bdev, uint64_t num_blocks)
{
	struct uring_bdev *u = dp_container_of(bdev, struct uring_bdev, bdev);
	uint64_t bytes;
	int rc;

	if (num_blocks)
		return -EINVAL; /* it has the size of its file */
	rc = size_of(u->fd, &bytes);
	if (rc < 0)
		return rc;
	if (bytes >> bdev->block_shift == 0)
		return -ENODEV;
	atomic_store(&bdev->num_blocks, bytes >> bdev->block_shift);
	atomic_store(&bdev->flush_failed, false);
	return 0;
}

int bdev_uring_fd(const struct bdev *bdev)
{
	return dp_container_of(bdev, const struct uring_bdev, bdev)->fd;
}

static void uring_destroy(struct bdev *bdev)
{
	struct uring_bdev *u = dp_container_of(bdev, struct uring_bdev, bdev);

	nvme_pass_close(bdev->nvme);
	reflink_close(bdev->reflink);
	pthread_mutex_destroy(&u->syncs.mutex);
	close(u->fd);
	free(u);
}

static const struct bdev_ops uring_ops = {
	.submit = uring_submit,
	.resize = uring_resize,
	.look = uring_look,
	.destroy = uring_destroy,
	.scatters = true,
};

/* Can single blocks be read past the cache, into memory that is aligned to a block? */
static bool direct_works(int fd, uint32_t block_size)
{
	uint8_t *buf = aligned_alloc(4096, 2 * (size_t)(block_size < 4096 ? 4096 : block_size));
	bool ok = buf && pread(fd, buf + block_size, block_size, block_size) >= 0;

	free(buf);
	return ok;
}

static int open_file(const struct dp_bdev_config *config, bool direct)
{
	int mode = config->readonly ? O_RDONLY : O_RDWR;
	int fd = open(config->filename, mode | O_CLOEXEC | O_NONBLOCK | (direct ? O_DIRECT : 0));

	return fd < 0 ? -errno : fd;
}

static int probe(const struct dp_bdev_config *config, struct uring_bdev *u, char err[DP_ERR_MAX])
{
	uint32_t logical = 0, physical = 0, block_size;
	struct stat st;
	uint64_t bytes;
	int flag = 0, rc = size_of(u->fd, &bytes);

	if (rc < 0 || fstat(u->fd, &st) < 0) {
		snprintf(err, DP_ERR_MAX, "bdev %.60s: %.120s is neither a file nor a block device", config->name,
			 config->filename);
		return rc < 0 ? rc : -errno;
	}
	if (S_ISBLK(st.st_mode)) {
		if (ioctl(u->fd, BLKSSZGET, &flag) == 0)
			logical = (uint32_t)flag;
		if (ioctl(u->fd, BLKPBSZGET, &flag) == 0)
			physical = (uint32_t)flag;
		flag = 0;
		u->bdev.readonly = ioctl(u->fd, BLKROGET, &flag) == 0 && flag;
	}
	u->bdev.readonly |= config->readonly;
	block_size = config->block_size ? config->block_size : logical;
	if (!block_size) {
		snprintf(err, DP_ERR_MAX, "bdev %.60s: %.120s is a file and needs a block size", config->name, config->filename);
		return -EINVAL;
	}
	if (block_size < logical || block_size < 512 || block_size & (block_size - 1)) {
		snprintf(err, DP_ERR_MAX, "bdev %.60s: block size %u is smaller than the device's %u", config->name, block_size,
			 logical);
		return -EINVAL;
	}
	if (bytes == 0 || bytes % block_size) {
		snprintf(err, DP_ERR_MAX, "bdev %.60s: size %llu of %.100s is not whole blocks of %u", config->name,
			 (unsigned long long)bytes, config->filename, block_size);
		return -EINVAL;
	}
	u->bdev.block_size = block_size;
	u->bdev.physical_block_size = physical;
	atomic_init(&u->bdev.num_blocks, bytes / block_size);
	return 0;
}

static void choose_way(const struct dp_bdev_config *config, struct uring_bdev *u)
{
	struct statfs fs;
	struct stat st;

	/* Through /dev a block device's statfs is that of devtmpfs: only regular files may be taken for tmpfs. */
	if (fstat(u->fd, &st) == 0 && S_ISREG(st.st_mode) && fstatfs(u->fd, &fs) == 0 && fs.f_type == TMPFS_MAGIC) {
		u->in_place = true;
		return;
	}
	if (config->direct) {
		int fd = open_file(config, true);

		if (fd >= 0 && direct_works(fd, u->bdev.block_size)) {
			close(u->fd);
			u->fd = fd;
			u->cached = false;
			u->bdev.nvme = nvme_pass_open(fd, (unsigned)__builtin_ctz(u->bdev.block_size));
		} else if (fd >= 0) {
			close(fd);
		}
	}
}

struct bdev *bdev_uring_open(const struct dp_bdev_config *config, int *rc, char err[DP_ERR_MAX])
{
	struct uring_bdev *u = calloc(1, sizeof(*u));

	*rc = -ENOMEM;
	if (!u)
		return NULL;
	u->fd = open_file(config, false);
	*rc = u->fd;
	if (u->fd < 0) {
		snprintf(err, DP_ERR_MAX, "bdev %.60s: cannot open %.120s: %s", config->name, config->filename, strerror(-u->fd));
		free(u);
		return NULL;
	}
	*rc = probe(config, u, err);
	if (*rc < 0) {
		close(u->fd);
		free(u);
		return NULL;
	}
	rangelock_init(&u->syncs);
	rangelock_open(&u->syncs);
	u->cached = true;
	choose_way(config, u);
	atomic_init(&u->no_dsync, u->cached); /* an error of RWF_DSYNC could be another write's */
	u->bdev.reflink = reflink_open(u->fd);
	u->bdev.ops = &uring_ops;
	u->bdev.write_cache = true;
	u->bdev.unmap = !u->bdev.readonly && config->fallocate;
	atomic_init(&u->no_fallocate, !u->bdev.unmap);
	return &u->bdev;
}

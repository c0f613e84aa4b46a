/* SPDX-License-Identifier: BSD-3-Clause */
#include "reflink.h"

#include <errno.h>
#include <linux/fs.h>
#include <linux/magic.h>
#include <stdlib.h>
#include <sys/ioctl.h>
#include <sys/stat.h>
#include <sys/vfs.h>
#include <unistd.h>

#include "common.h"

#define SHARE_MIN (64u << 10) /* below, a copy costs less than an extent more in both files */
#define BLOCK_MAX (64u << 10)

static int real_clone(int fd, struct file_clone_range *range)
{
	return ioctl(fd, FICLONERANGE, range) < 0 ? -errno : 0;
}

int (*reflink_clone)(int fd, struct file_clone_range *range) = real_clone;

struct reflink *reflink_open(int fd)
{
	struct reflink *reflink;
	struct statfs fs;
	struct stat st;

	if (fstat(fd, &st) < 0 || !S_ISREG(st.st_mode) || fstatfs(fd, &fs) < 0 || fs.f_bsize < 512 ||
	    fs.f_bsize > BLOCK_MAX || fs.f_bsize & (fs.f_bsize - 1))
		return NULL;
	reflink = calloc(1, sizeof(*reflink));
	if (!reflink)
		return NULL;
	reflink->fd = fd;
	reflink->device = st.st_dev;
	reflink->inode = st.st_ino;
	reflink->btrfs = fs.f_type == BTRFS_SUPER_MAGIC;
	reflink->block = (uint32_t)fs.f_bsize;
	atomic_init(&reflink->off, false);
	return reflink;
}

void reflink_close(struct reflink *reflink)
{
	free(reflink);
}

/* Bytes from offset to the next block. */
static uint64_t head_of(const struct reflink *to, uint64_t offset)
{
	return -offset & (to->block - 1);
}

bool reflink_suits(const struct reflink *to, uint64_t offset, const struct reflink *from, uint64_t from_offset,
		   uint64_t bytes)
{
	if (!to || !from || atomic_load(&to->off) || to->block != from->block)
		return false;
	if (to->device != from->device && !(to->btrfs && from->btrfs))
		return false;
	if ((offset ^ from_offset) & (to->block - 1))
		return false;
	return bytes >= SHARE_MIN + 2ull * to->block;
}

/* At most BLOCK_MAX bytes, through memory. */
static int by_hand(int to, uint64_t offset, int from, uint64_t from_offset, size_t bytes)
{
	uint8_t buf[BLOCK_MAX] __attribute__((aligned(4096)));
	ssize_t n;

	do
		n = pread(from, buf, bytes, (off_t)from_offset);
	while (n < 0 && errno == EINTR);
	if (n >= 0 && (size_t)n == bytes)
		do
			n = pwrite(to, buf, bytes, (off_t)offset);
		while (n < 0 && errno == EINTR);
	if (n < 0)
		return -errno;
	return (size_t)n == bytes ? 0 : -EIO;
}

int reflink_copy(struct reflink *to, uint64_t offset, const struct reflink *from, uint64_t from_offset, uint64_t bytes)
{
	uint64_t head = head_of(to, offset), body = (bytes - head) & ~(uint64_t)(to->block - 1), tail = bytes - head - body;
	struct file_clone_range range = { .src_fd = from->fd,
					  .src_offset = from_offset + head,
					  .src_length = body,
					  .dest_offset = offset + head };
	int rc = reflink_clone(to->fd, &range);

	if (rc == -EOPNOTSUPP || rc == -ENOTTY || rc == -ENOSYS)
		atomic_store(&to->off, true);
	if (rc == 0 && head)
		rc = by_hand(to->fd, offset, from->fd, from_offset, head);
	if (rc == 0 && tail)
		rc = by_hand(to->fd, offset + head + body, from->fd, from_offset + head + body, tail);
	return rc;
}

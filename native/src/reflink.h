/* SPDX-License-Identifier: BSD-3-Clause
 *
 * reflink.h: Copy between files of one file system by sharing extents (FICLONERANGE: btrfs, XFS and others). The kernel
 * waits for direct I/O in flight and writes back what is cached, of both ranges; fdatasync of the destination makes it
 * last, as it does a write.
 */
#pragma once

#include <stdatomic.h>
#include <stdbool.h>
#include <stdint.h>
#include <sys/types.h>

struct reflink {
	int fd; /* the bdev's own */
	dev_t device;
	ino_t inode;
	bool btrfs;     /* subvolumes have devices of their own */
	uint32_t block; /* bytes; both ends of what is shared are multiples of it */
	_Atomic bool off;
};

struct reflink *reflink_open(int fd); /* NULL: no regular file, or no memory */
void reflink_close(struct reflink *reflink);

/* Is it worth a try? Offsets in bytes. */
bool reflink_suits(const struct reflink *to, uint64_t offset, const struct reflink *from, uint64_t from_offset,
		   uint64_t bytes);

/*
 * Blocking. 0: the whole range; -errno: perhaps a part of it. What is before the file system's first block and behind its
 * last is copied by hand.
 */
int reflink_copy(struct reflink *to, uint64_t offset, const struct reflink *from, uint64_t from_offset, uint64_t bytes);

/* What unit tests replace: ioctl(FICLONERANGE), 0 or -errno. */
struct file_clone_range;
extern int (*reflink_clone)(int fd, struct file_clone_range *range);

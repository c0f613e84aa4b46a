/* SPDX-License-Identifier: BSD-3-Clause
 *
 * nvme_pass.h: commands of an NVMe namespace that the block layer has no name for (Copy, Compare, Verify), by the kernel
 * driver's ioctl on the namespace's block device: a controller's own one, a multipath head, or a partition.
 *
 * Only for a bdev that goes past the page cache, whose namespace has no metadata. Offsets are bytes in the bdev and never
 * leave it. Nothing here ever fails a host's command: what the drive, the driver or our rights do not allow is left to
 * the caller, who reads and writes instead.
 */
#pragma once

#include <stdatomic.h>
#include <stdbool.h>
#include <stdint.h>

#define NVME_ID_BYTES 320u /* serial number, model, NQN of the subsystem */
#define NVME_COPY_RANGES 128u

enum nvme_pass_what { NVME_PASS_COPY = 1, NVME_PASS_COPY_NS = 2, NVME_PASS_COMPARE = 4, NVME_PASS_VERIFY = 8 };

/* limits: blocks of the drive unless said; all at least 1 */
struct nvme_pass {
	int fd; /* the bdev's own */
	uint32_t nsid;
	uint64_t start; /* of the partition in the namespace, bytes */
	unsigned shift; /* the drive's block */
	bool shared;    /* NMIC: other controllers may have the namespace too */
	uint16_t cntlid;
	uint8_t id[NVME_ID_BYTES];
	uint32_t copy_range, copy_total, copy_ranges; /* MSSRL; MCL; MSRC + 1 entries */
	uint32_t compare_bytes, verify_bytes;         /* a command */
	_Atomic unsigned can;                         /* enum nvme_pass_what */
	/* Instead of ioctls, for a namespace that the kernel does not have: requests NVME_IOCTL_*_CMD. */
	int (*call)(void *arg, unsigned long request, void *cmd);
	void *arg;
};

/* What a file is, at open. NULL: no NVMe namespace, or nothing that could be used of it. */
struct nvme_pass *nvme_pass_open(int fd, unsigned block_shift);
/* The same without a file. Calls call() at once, for admin commands. */
struct nvme_pass *nvme_pass_open_call(int (*call)(void *arg, unsigned long request, void *cmd), void *arg, uint32_t nsid,
				      unsigned block_shift);
void nvme_pass_close(struct nvme_pass *pass);

static inline bool nvme_pass_can(struct nvme_pass *pass, enum nvme_pass_what what)
{
	return pass && atomic_load_explicit(&pass->can, memory_order_relaxed) & what;
}

/* Source and destination of a Copy that the drive can do: 0 (one namespace), 2 (two of one subsystem), -1: not. */
int nvme_pass_copy_format(struct nvme_pass *to, struct nvme_pass *from);

/* -- blocking: on a worker -- */

struct nvme_copy {
	struct nvme_pass *to;
	int format;
	uint64_t offset; /* where the next byte goes */
	/* collected so far */
	uint32_t n;
	uint64_t blocks;
	uint8_t entries[NVME_COPY_RANGES * 32] __attribute__((aligned(4096)));
};

/* Adds as much of a source as still fits into the command: bytes taken, 0 when it is full. */
uint64_t nvme_copy_add(struct nvme_copy *copy, const struct nvme_pass *from, uint64_t offset, uint64_t bytes);
/* Sends it: 0, and copy is empty again with offset advanced; or what went wrong, as below. */
int nvme_copy_send(struct nvme_copy *copy);

/* 0; a status of NVMe (sct << 8 | sc); or -errno. A command that is not supported is remembered as such. */
int nvme_pass_compare(struct nvme_pass *pass, uint64_t offset, const void *data, uint64_t bytes, bool fua);
int nvme_pass_verify(struct nvme_pass *pass, uint64_t offset, uint64_t bytes, bool fua);

/* What unit tests replace. */
struct nvme_pass_env {
	int (*call)(int fd, unsigned long request, void *arg); /* ioctl: its result, or -errno */
	bool (*is_namespace)(int fd); /* not a device mapper that hands ioctls on to a drive below, at other addresses */
};

extern struct nvme_pass_env nvme_pass_env;

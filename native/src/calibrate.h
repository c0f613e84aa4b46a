/* SPDX-License-Identifier: BSD-3-Clause
 *
 * calibrate.h: how fast a pool is, and whether a drive and the pool can exchange bytes at all. A fabric may carry them to
 * another place, or change them, and say that all went well; so nothing is believed that was not read back.
 *
 * Called on a thread of their own: they block. The drive's hosts are kept waiting by the caller during calibrate_verify,
 * which leaves the medium as it was: what it overwrites is in a journal file, on stable storage, before the first write.
 */
#pragma once

#include "pool_priv.h"

#define CALIBRATE_MEDIUM_MAX 1024
#define CALIBRATE_REGION (1u << 20) /* bytes of the drive that are written, in its middle; less on a small one */

/* The file or block device behind a bdev, or what a test puts in its place. readv and writev: bytes or -errno, may be short. */
struct calibrate_drive {
	ssize_t (*readv)(struct calibrate_drive *drive, const struct iovec *iov, int n, uint64_t offset);
	ssize_t (*writev)(struct calibrate_drive *drive, const struct iovec *iov, int n, uint64_t offset);
	int (*flush)(struct calibrate_drive *drive); /* 0 or -errno */
	int fd;            /* -1: none, it is */
	struct bdev *bdev; /* that bdev, and */
	char medium[CALIBRATE_MEDIUM_MAX]; /* this names what is behind it */
	uint32_t block_size;
	uint64_t bytes;
	const char *name;    /* of the bdev */
	const char *journal; /* path */
	const atomic_bool *cancel;
};

void calibrate_drive_init(struct calibrate_drive *drive, int fd); /* with the three calls on fd */
void calibrate_drive_of_bdev(struct calibrate_drive *drive, struct bdev *bdev); /* calibrate_bdev.c; on the control thread */

/* The journal: this header, 4096 bytes, little endian, and then `length` bytes that belong to `offset` of the drive. It is
 * whole from the moment in which it has its name; the CRC32C is of the header with crc 0 and of the data. */
struct calibrate_journal {
	char magic[16]; /* "nvmet-p2p probe\n" */
	uint32_t version; /* 1 */
	uint32_t crc;
	uint64_t offset, length;
	uint64_t drive_bytes;
	char bdev[256], pool[256]; /* zero terminated */
	char path[CALIBRATE_MEDIUM_MAX]; /* of the drive, as it was opened; or its medium */
	char zero[2512];
};
_Static_assert(sizeof(struct calibrate_journal) == 4096, "");

/* Each fills in its part of *result; with an empty result->reason it went well. */
void calibrate_cpu(struct pool *pool, struct dp_calibration *result);
/* result->verified, or the reason. -EIO: the medium could not be put back, the journal is still there; else 0. */
int calibrate_verify(struct pool *pool, struct calibrate_drive *drive, struct dp_calibration *result);
void calibrate_bandwidth(struct pool *pool, struct calibrate_drive *drive, struct dp_calibration *result);

/* Puts back what drive->journal holds, which a probe of the drive has left, and removes it. -EUCLEAN: the journal is damaged
 * or another drive's. */
int calibrate_restore(struct calibrate_drive *drive, char err[DP_ERR_MAX]);

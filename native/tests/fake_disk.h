/* SPDX-License-Identifier: BSD-3-Clause
 *
 * fake_disk.h: a bdev of SPDK's: memory, served by a message to the reactor, as a queue pair that is polled would.
 */
#pragma once

#include "bdev.h"

#define FAKE_DISK_BLOCK 512u
#define FAKE_DISK_BYTES (8u << 20)

struct fake_disk {
	struct bdev bdev;
	uint8_t *bytes;
	unsigned in_pool;     /* operations whose data lay in a pool */
	unsigned writes_left; /* before they fail */
};

extern struct fake_disk *fake_disk; /* the one that was opened last */

struct bdev *fake_disk_open(const struct dp_bdev_config *config, int *rc); /* for fake_drive's bdev_open */

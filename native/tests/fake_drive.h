/* SPDX-License-Identifier: BSD-3-Clause
 *
 * fake_drive.h: a drive with memory of its own, on vfio-pci, in the place of the system that vfio.c asks (vfio_sys.h); or
 * in SPDK's hands (spdk.h).
 */
#pragma once

#include <stdbool.h>
#include <stdint.h>

#include "bdev.h"

#define FAKE_BDF "0000:03:00.0"

struct fake_drive {
	/* the machine */
	const char *driver; /* NULL: none */
	bool grouped, cdev; /* it is in an IOMMU group; it has a node of its own */
	int group_rc;       /* of opening the group */
	bool not_viable, combining, dmabuf;
	bool sparse;        /* of BAR 2 only what lies behind the first MiB may be mapped */
	bool held;          /* by SPDK */
	uint64_t bus;       /* address of BAR 2, as its configuration space has it */
	/* the drive */
	bool gone;
	uint32_t cap[2], cmbloc, cmbsz, pmrcap;
	uint64_t address_max; /* of CBA */
	unsigned slow_reads;  /* so often the PMR is not ready */
	uint64_t bar_bytes[6];

	/* what became of it */
	uint32_t cmbmsc[2], cmbsts, pmrctl, pmrsts, pmrmsc[2];
	uint16_t command;
	int request; /* eventfd */
	unsigned open; /* descriptors */
	unsigned opened; /* ever */
	bool bound, with_iommu;
	void *bar;       /* held: where it is mapped */
	const void *shared; /* with SPDK */
	uint64_t shared_bytes;
	int share_rc;
	unsigned holds;
	void (*gone_fn)(void *arg, const char *why);
	void *gone_arg;
	struct bdev *(*bdev_open)(const struct dp_bdev_config *config, int *rc); /* NULL: refused */
};

extern struct fake_drive fake;

void fake_reset(void); /* NVMe 1.4, 4 MiB CMB for data in BAR 2 at 1 MiB, bound to vfio-pci, in a group */
uint32_t fake_read(void *arg, uint32_t at);
void fake_write(void *arg, uint32_t at, uint32_t value);
void fake_bar_truncate(unsigned bar, uint64_t bytes); /* its pages are taken away, as at a hot unplug */
void fake_bar_fill(unsigned bar, uint8_t byte);

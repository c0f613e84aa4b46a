/* SPDX-License-Identifier: BSD-3-Clause
 *
 * vfio.h: a PCI device that is bound to vfio-pci, opened by ourselves: for the memory of a drive that no driver of ours runs.
 * Source: Documentation/driver-api/vfio.rst and include/uapi/linux/vfio.h of Linux.
 *
 * Two ways lead to it. Through /dev/vfio/devices and /dev/iommu where the kernel has them: the device is bound to an iommufd
 * and attached to no address space, so it can do no DMA. Else through its group and a container of type 1 that maps nothing,
 * which comes to the same.
 */
#pragma once

#include <stdbool.h>
#include <stddef.h>
#include <stdint.h>

#include "engine.h"

struct vfio_dev {
	char bdf[32];
	int fd;        /* of the device */
	int group, container, iommufd; /* -1: of the other way */
};

struct vfio_area {
	void *base;   /* at a multiple of 2 MiB */
	size_t bytes; /* whole pages */
	bool write_combining;
};

/* -ENODEV: there is none. -EPERM: it has another driver. -ENOTSUP: no IOMMU. -EBUSY: somebody has its group. */
int vfio_open(struct vfio_dev *dev, const char *bdf, char err[DP_ERR_MAX]);
void vfio_close(struct vfio_dev *dev); /* what was mapped of it must be unmapped first */

int vfio_bar_bytes(const struct vfio_dev *dev, unsigned bar, uint64_t *bytes); /* 0: it has none; -errno */
int vfio_bar_map(const struct vfio_dev *dev, unsigned bar, uint64_t offset, size_t bytes, struct vfio_area *area,
		 char err[DP_ERR_MAX]);
void vfio_area_unmap(struct vfio_area *area);

/* Registers of BAR 0; all ones when the device is gone. As nvme_regs has them, arg a struct vfio_dev. */
uint32_t vfio_read32(void *arg, uint32_t at);
void vfio_write32(void *arg, uint32_t at, uint32_t value);

/* The eventfd is written when the kernel wants the device back: from then on its removal waits for vfio_close. */
int vfio_on_request(const struct vfio_dev *dev, int eventfd);

/* The device's descriptor, in somebody else's hands in this process: told from others by where its BAR is. -ENOENT: none. */
int vfio_find_fd(const char *bdf, unsigned bar);

/* A dma-buf of a part of a BAR: its descriptor, or -errno with the reason. fd: of any vfio device. */
int vfio_dmabuf(int fd, unsigned bar, uint64_t offset, uint64_t bytes, char err[DP_ERR_MAX]);

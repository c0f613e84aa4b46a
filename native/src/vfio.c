/* SPDX-License-Identifier: BSD-3-Clause */
#include "vfio.h"

#include <errno.h>
#include <fcntl.h>
#include <linux/pci_regs.h>
#include <linux/vfio.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/mman.h>

#include "common.h"
#include "vfio_sys.h"

#define PCI "/sys/bus/pci/devices"
#define HUGE_PAGE ((size_t)2 << 20)
#define PAGE 4096u
#define FDS_MAX 256u

/* -- of newer kernels than the headers may be of: include/uapi/linux/vfio.h */

#define BIND_IOMMUFD _IO(VFIO_TYPE, VFIO_BASE + 18)
#define FEATURE _IO(VFIO_TYPE, VFIO_BASE + 17)
#define FEATURE_GET (1u << 16)
#define FEATURE_DMA_BUF 11u

struct bind_iommufd {
	uint32_t argsz, flags;
	int32_t iommufd;
	uint32_t devid;
};

struct feature_dma_buf {
	uint32_t argsz, flags; /* struct vfio_device_feature */
	uint32_t region, open_flags, unused, ranges;
	uint64_t offset, length;
};

/* -- opening */

static void failed(char err[DP_ERR_MAX], const char *what, int rc)
{
	snprintf(err, DP_ERR_MAX, "%.160s: %s", what, strerror(-rc));
}

static int check_driver(const char *bdf, char err[DP_ERR_MAX])
{
	char path[128], driver[64];
	int rc;

	snprintf(path, sizeof(path), PCI "/%.31s", bdf);
	rc = vfio_sys_entry(path, "vendor", driver, sizeof(driver));
	if (rc < 0) {
		snprintf(err, DP_ERR_MAX, "there is no PCI device %.31s", bdf);
		return -ENODEV;
	}
	snprintf(path, sizeof(path), PCI "/%.31s/driver", bdf);
	rc = vfio_sys_link(path, driver, sizeof(driver));
	if (rc == 0 && strstr(driver, "vfio"))
		return 0;
	snprintf(err, DP_ERR_MAX, "%s%s has it, not vfio-pci: nvmet-p2p setup bind %.31s", rc < 0 ? "no driver" : "driver ",
		 rc < 0 ? "" : driver, bdf);
	return -EPERM;
}

/* The device's own node, with no group: 0, -ENOENT where the kernel has none, or what went wrong. */
static int open_cdev(struct vfio_dev *dev, char err[DP_ERR_MAX])
{
	struct bind_iommufd bind = { .argsz = sizeof(bind) };
	char path[128], name[64];
	int rc;

	snprintf(path, sizeof(path), PCI "/%s/vfio-dev", dev->bdf);
	rc = vfio_sys_entry(path, "vfio", name, sizeof(name));
	if (rc < 0)
		return -ENOENT;
	dev->iommufd = vfio_sys_open("/dev/iommu", O_RDWR);
	if (dev->iommufd < 0)
		return -ENOENT; /* such a kernel may have groups alone */
	snprintf(path, sizeof(path), "/dev/vfio/devices/%s", name);
	dev->fd = vfio_sys_open(path, O_RDWR);
	if (dev->fd < 0) {
		failed(err, path, dev->fd);
		return dev->fd == -ENOENT ? -ENOENT : dev->fd;
	}
	bind.iommufd = dev->iommufd;
	rc = vfio_sys_ioctl(dev->fd, BIND_IOMMUFD, &bind);
	if (rc < 0)
		snprintf(err, DP_ERR_MAX, "%s: it cannot be bound to an iommufd: %s%s", path, strerror(-rc),
			 rc == -EBUSY ? " (somebody else has it, or a device of its IOMMU group)" : "");
	return rc;
}

static int find_group(struct vfio_dev *dev, char err[DP_ERR_MAX])
{
	char path[128], group[32];
	int rc;

	snprintf(path, sizeof(path), PCI "/%s/iommu_group", dev->bdf);
	rc = vfio_sys_link(path, group, sizeof(group));
	if (rc < 0) {
		snprintf(err, DP_ERR_MAX, "it is in no IOMMU group: switch the IOMMU on (firmware; intel_iommu=on)");
		return -ENOTSUP;
	}
	snprintf(path, sizeof(path), "/dev/vfio/%s", group);
	dev->group = vfio_sys_open(path, O_RDWR);
	if (dev->group >= 0)
		return 0;
	if (dev->group == -EBUSY)
		snprintf(err, DP_ERR_MAX, "%s is in use: somebody else has this device, or another one of its IOMMU group", path);
	else if (dev->group == -ENOENT)
		snprintf(err, DP_ERR_MAX, "%s is not there: its IOMMU group is not for programs (without an IOMMU it is refused)",
			 path);
	else
		failed(err, path, dev->group);
	return dev->group;
}

static int open_group(struct vfio_dev *dev, char err[DP_ERR_MAX])
{
	struct vfio_group_status status = { .argsz = sizeof(status) };
	int rc = find_group(dev, err);

	if (rc < 0)
		return rc;
	rc = vfio_sys_ioctl(dev->group, VFIO_GROUP_GET_STATUS, &status);
	if (rc == 0 && !(status.flags & VFIO_GROUP_FLAGS_VIABLE)) {
		snprintf(err, DP_ERR_MAX, "its IOMMU group has devices that other drivers have: bind them to vfio-pci, too");
		return -EPERM;
	}
	dev->container = rc < 0 ? rc : vfio_sys_open("/dev/vfio/vfio", O_RDWR);
	rc = dev->container < 0 ? dev->container : vfio_sys_ioctl(dev->container, VFIO_GET_API_VERSION, NULL);
	if (rc >= 0 && (rc != VFIO_API_VERSION || vfio_sys_ioctl(dev->container, VFIO_CHECK_EXTENSION,
								 (void *)VFIO_TYPE1v2_IOMMU) <= 0)) {
		snprintf(err, DP_ERR_MAX, "/dev/vfio/vfio: no IOMMU of type 1");
		return -ENOTSUP;
	}
	if (rc >= 0)
		rc = vfio_sys_ioctl(dev->group, VFIO_GROUP_SET_CONTAINER, &dev->container);
	if (rc >= 0)
		rc = vfio_sys_ioctl(dev->container, VFIO_SET_IOMMU, (void *)VFIO_TYPE1v2_IOMMU);
	dev->fd = rc < 0 ? rc : vfio_sys_ioctl(dev->group, VFIO_GROUP_GET_DEVICE_FD, dev->bdf);
	if (dev->fd < 0)
		failed(err, "VFIO does not give the device", dev->fd);
	return dev->fd < 0 ? dev->fd : 0;
}

static int region_info(const struct vfio_dev *dev, unsigned index, struct vfio_region_info *info, size_t room)
{
	memset(info, 0, room);
	info->argsz = (uint32_t)room;
	info->index = index;
	return vfio_sys_ioctl(dev->fd, VFIO_DEVICE_GET_REGION_INFO, info);
}

/* Its BARs answer, and it asks nobody for anything. */
static int settle_command(const struct vfio_dev *dev)
{
	struct vfio_region_info info;
	uint16_t command;
	int rc = region_info(dev, VFIO_PCI_CONFIG_REGION_INDEX, &info, sizeof(info));

	if (rc < 0)
		return rc;
	if (vfio_sys_pread(dev->fd, &command, sizeof(command), info.offset + PCI_COMMAND) != sizeof(command))
		return -EIO;
	command = htole16((uint16_t)((le16toh(command) | PCI_COMMAND_MEMORY) & ~PCI_COMMAND_MASTER));
	return vfio_sys_pwrite(dev->fd, &command, sizeof(command), info.offset + PCI_COMMAND) == sizeof(command) ? 0 : -EIO;
}

int vfio_open(struct vfio_dev *dev, const char *bdf, char err[DP_ERR_MAX])
{
	int rc;

	*dev = (struct vfio_dev){ .fd = -1, .group = -1, .container = -1, .iommufd = -1 };
	if (snprintf(dev->bdf, sizeof(dev->bdf), "%s", bdf) >= (int)sizeof(dev->bdf) || strchr(bdf, '/')) {
		snprintf(err, DP_ERR_MAX, "'%.60s' is no PCI address", bdf);
		return -EINVAL;
	}
	rc = check_driver(bdf, err);
	if (rc < 0)
		return rc;
	rc = open_cdev(dev, err);
	if (rc == -ENOENT) {
		vfio_close(dev);
		rc = open_group(dev, err);
	}
	if (rc == 0) {
		rc = settle_command(dev);
		if (rc < 0)
			failed(err, "its configuration space", rc);
	}
	if (rc < 0)
		vfio_close(dev);
	return rc;
}

static void end(int *fd)
{
	if (*fd >= 0)
		vfio_sys_close(*fd);
	*fd = -1;
}

void vfio_close(struct vfio_dev *dev)
{
	end(&dev->fd);
	end(&dev->group);
	end(&dev->container);
	end(&dev->iommufd);
}

/* -- BARs */

int vfio_bar_bytes(const struct vfio_dev *dev, unsigned bar, uint64_t *bytes)
{
	struct vfio_region_info info;
	int rc = region_info(dev, VFIO_PCI_BAR0_REGION_INDEX + bar, &info, sizeof(info));

	*bytes = rc < 0 ? 0 : info.size;
	return rc < 0 ? rc : 0;
}

/* Older kernels leave out the pages of a BAR that hold its MSI-X table. */
static bool may_map(const struct vfio_dev *dev, unsigned bar, uint64_t offset, size_t bytes)
{
	union {
		struct vfio_region_info info;
		uint8_t room[1024];
	} r;
	const struct vfio_info_cap_header *cap;
	uint32_t next;

	if (region_info(dev, bar, &r.info, sizeof(r)) < 0 || !(r.info.flags & VFIO_REGION_INFO_FLAG_MMAP))
		return false;
	next = r.info.flags & VFIO_REGION_INFO_FLAG_CAPS && r.info.argsz <= sizeof(r) ? r.info.cap_offset : 0;
	for (; next && next + sizeof(*cap) <= sizeof(r); next = cap->next) {
		const struct vfio_region_info_cap_sparse_mmap *sparse = (const void *)(r.room + next);
		bool inside = false;

		cap = &sparse->header;
		if (cap->id != VFIO_REGION_INFO_CAP_SPARSE_MMAP)
			continue;
		for (uint32_t i = 0; i < sparse->nr_areas && (const uint8_t *)&sparse->areas[i + 1] <= r.room + sizeof(r); i++)
			inside |= offset >= sparse->areas[i].offset &&
				  offset + bytes <= sparse->areas[i].offset + sparse->areas[i].size;
		return inside;
	}
	return true;
}

/* PCI's own file of a prefetchable BAR, mapped write combining. A kernel with CONFIG_IO_STRICT_DEVMEM refuses it for a BAR
 * that its driver has claimed, and others have no such file. */
static bool map_combining(const struct vfio_dev *dev, unsigned bar, uint64_t offset, void *at, size_t bytes)
{
	char path[128];
	bool mapped;
	int fd;

	snprintf(path, sizeof(path), PCI "/%s/resource%u_wc", dev->bdf, bar);
	fd = vfio_sys_open(path, O_RDWR);
	if (fd < 0)
		return false;
	mapped = vfio_sys_map(at, bytes, fd, offset) != MAP_FAILED;
	vfio_sys_close(fd);
	return mapped;
}

int vfio_bar_map(const struct vfio_dev *dev, unsigned bar, uint64_t offset, size_t bytes, struct vfio_area *area,
		 char err[DP_ERR_MAX])
{
	struct vfio_region_info info;
	uint8_t *room, *at;
	int rc = region_info(dev, bar, &info, sizeof(info));

	if (rc < 0 || offset % PAGE || bytes % PAGE || offset > info.size || bytes > info.size - offset ||
	    !may_map(dev, bar, offset, bytes)) {
		snprintf(err, DP_ERR_MAX, "VFIO lets nobody map %zu bytes at %#llx of BAR %u", bytes, (unsigned long long)offset,
			 bar);
		return rc < 0 ? rc : -ENOTSUP;
	}
	room = mmap(NULL, bytes + HUGE_PAGE, PROT_NONE, MAP_PRIVATE | MAP_ANONYMOUS | MAP_NORESERVE, -1, 0);
	if (room == MAP_FAILED) {
		failed(err, "no addresses", -errno);
		return -ENOMEM;
	}
	at = (uint8_t *)(((uintptr_t)room + HUGE_PAGE - 1) / HUGE_PAGE * HUGE_PAGE);
	if (at > room)
		munmap(room, (size_t)(at - room));
	if (at - room < (ptrdiff_t)HUGE_PAGE)
		munmap(at + bytes, HUGE_PAGE - (size_t)(at - room));
	*area = (struct vfio_area){ .base = at, .bytes = bytes };
	area->write_combining = map_combining(dev, bar, offset, at, bytes);
	if (area->write_combining || vfio_sys_map(at, bytes, dev->fd, info.offset + offset) != MAP_FAILED)
		return 0;
	rc = -errno;
	failed(err, "the memory cannot be mapped", rc);
	vfio_area_unmap(area);
	return rc;
}

void vfio_area_unmap(struct vfio_area *area)
{
	if (area->base)
		munmap(area->base, area->bytes);
	area->base = NULL;
}

uint32_t vfio_read32(void *arg, uint32_t at)
{
	const struct vfio_dev *dev = arg;
	struct vfio_region_info info;
	uint32_t value;

	if (region_info(dev, VFIO_PCI_BAR0_REGION_INDEX, &info, sizeof(info)) < 0 ||
	    vfio_sys_pread(dev->fd, &value, sizeof(value), info.offset + at) != sizeof(value))
		return UINT32_MAX;
	return le32toh(value);
}

void vfio_write32(void *arg, uint32_t at, uint32_t value)
{
	const struct vfio_dev *dev = arg;
	struct vfio_region_info info;

	value = htole32(value);
	/* one that does not arrive is found by who reads back */
	if (region_info(dev, VFIO_PCI_BAR0_REGION_INDEX, &info, sizeof(info)) == 0)
		(void)vfio_sys_pwrite(dev->fd, &value, sizeof(value), info.offset + at);
}

/* -- the rest */

int vfio_on_request(const struct vfio_dev *dev, int eventfd)
{
	union {
		struct vfio_irq_set set;
		uint8_t room[sizeof(struct vfio_irq_set) + sizeof(int32_t)];
	} irq = { .set = { .argsz = sizeof(irq.room),
			   .flags = VFIO_IRQ_SET_DATA_EVENTFD | VFIO_IRQ_SET_ACTION_TRIGGER,
			   .index = VFIO_PCI_REQ_IRQ_INDEX,
			   .count = 1 } };
	const int32_t fd = eventfd;

	memcpy(irq.room + sizeof(irq.set), &fd, sizeof(fd));
	return vfio_sys_ioctl(dev->fd, VFIO_DEVICE_SET_IRQS, &irq);
}

static bool has_bar_at(int fd, unsigned bar, uint64_t address)
{
	const struct vfio_dev dev = { .fd = fd };
	struct vfio_region_info info;
	uint32_t found[2] = { 0 };
	const ssize_t bytes = bar < 5 ? 8 : 4; /* the last one has no upper half */

	if (region_info(&dev, VFIO_PCI_CONFIG_REGION_INDEX, &info, sizeof(info)) < 0 ||
	    vfio_sys_pread(fd, found, (size_t)bytes, info.offset + PCI_BASE_ADDRESS_0 + 4ull * bar) != bytes)
		return false;
	found[0] = le32toh(found[0]);
	if ((found[0] & PCI_BASE_ADDRESS_MEM_TYPE_MASK) != PCI_BASE_ADDRESS_MEM_TYPE_64)
		found[1] = 0;
	return ((uint64_t)le32toh(found[1]) << 32 | (found[0] & (uint32_t)PCI_BASE_ADDRESS_MEM_MASK)) == address;
}

/* A line of `resource` for each BAR: first and last address, flags. 0: not known. */
static uint64_t address_of(const char *bdf, unsigned bar)
{
	char path[128], text[1024];
	const char *line = text;

	snprintf(path, sizeof(path), PCI "/%.31s/resource", bdf);
	if (vfio_sys_text(path, text, sizeof(text)) < 0)
		return 0;
	for (; bar > 0 && line; bar--) {
		line = strchr(line, '\n');
		line = line ? line + 1 : NULL;
	}
	return line ? strtoull(line, NULL, 16) : 0;
}

int vfio_find_fd(const char *bdf, unsigned bar)
{
	const uint64_t address = address_of(bdf, bar);
	int fds[FDS_MAX];
	size_t n = address ? vfio_sys_devices(fds, FDS_MAX) : 0;

	for (size_t i = 0; i < n; i++)
		if (has_bar_at(fds[i], bar, address))
			return fds[i];
	return -ENOENT;
}

int vfio_dmabuf(int fd, unsigned bar, uint64_t offset, uint64_t bytes, char err[DP_ERR_MAX])
{
	struct feature_dma_buf feature = { .argsz = sizeof(feature),
					   .flags = FEATURE_GET | FEATURE_DMA_BUF,
					   .region = bar,
					   .open_flags = O_RDWR | O_CLOEXEC,
					   .ranges = 1,
					   .offset = offset,
					   .length = bytes };
	int rc = vfio_sys_ioctl(fd, FEATURE, &feature);

	if (rc == -ENOTTY)
		snprintf(err, DP_ERR_MAX, "this kernel's VFIO exports no dma-buf (Linux 6.19 and later do)");
	else if (rc < 0)
		failed(err, "VFIO exports no dma-buf of it", rc);
	return rc;
}

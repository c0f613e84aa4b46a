/* SPDX-License-Identifier: BSD-3-Clause */
#include "fake_drive.h"

#include <errno.h>
#include <fcntl.h>
#include <linux/vfio.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/mman.h>
#include <unistd.h>

#include "common.h"
#include "spdk.h"
#include "vfio_sys.h"

#define MIB (1ull << 20)
#define CONFIG VFIO_PCI_CONFIG_REGION_INDEX
#define PAST 40 /* bits of a region's offset */

enum { FD_DEVICE = 5000, FD_GROUP, FD_CONTAINER, FD_IOMMU, FD_COMBINING, FD_DMABUF };

struct fake_drive fake;
static const uint8_t *mapped; /* the drive's memory */
static uint64_t mapped_bytes;
static int bars[6] = { -1, -1, -1, -1, -1, -1 };

void fake_reset(void)
{
	fake = (struct fake_drive){ .driver = "vfio-pci",
				    .grouped = true,
				    .cap = { 0x0F0107FF, 1u << 25 | 0x20 },
				    .cmbloc = 2 | 256u << 12, /* of 4 KiB */
				    .cmbsz = 1 | 1u << 3 | 1u << 4 | 1024u << 12,
				    .address_max = UINT64_MAX,
				    .bar_bytes = { 16384, 0, 8 * MIB, 0, 16 * MIB },
				    .command = 4,
				    .request = -1 };
	mapped = NULL;
	mapped_bytes = 0;
	for (unsigned i = 0; i < 6; i++) {
		if (bars[i] >= 0)
			close(bars[i]);
		bars[i] = memfd_create("bar", MFD_CLOEXEC);
		if (ftruncate(bars[i], (off_t)fake.bar_bytes[i]) < 0)
			abort();
	}
}

void fake_bar_truncate(unsigned bar, uint64_t bytes)
{
	if (ftruncate(bars[bar], (off_t)bytes) < 0)
		abort();
}

void fake_bar_fill(unsigned bar, uint8_t byte)
{
	uint8_t *p = mmap(NULL, fake.bar_bytes[bar], PROT_READ | PROT_WRITE, MAP_SHARED, bars[bar], 0);

	memset(p, byte, fake.bar_bytes[bar]);
	munmap(p, fake.bar_bytes[bar]);
}

/* -- registers, as the specification has them */

uint32_t fake_read(void *arg, uint32_t at)
{
	const bool shown = !(fake.cap[1] & 1u << 25) || fake.cmbmsc[0] & 1;

	if (fake.gone)
		return UINT32_MAX;
	switch (at) {
	case 0x00:
	case 0x04:
		return fake.cap[at / 4];
	case 0x38:
		return shown ? fake.cmbloc : 0;
	case 0x3C:
		return shown ? fake.cmbsz : 0;
	case 0x50:
	case 0x54:
		return fake.cmbmsc[(at - 0x50) / 4];
	case 0x58:
		return fake.cmbsts;
	case 0xE00:
		return fake.pmrcap;
	case 0xE04:
		return fake.pmrctl;
	case 0xE08:
		if (fake.slow_reads) {
			fake.slow_reads--;
			return 1u << 8;
		}
		return fake.pmrsts;
	case 0xE14:
	case 0xE18:
		return fake.pmrmsc[(at - 0xE14) / 4];
	default:
		return 0;
	}
}

/* CBA counts when the lower half is written, as QEMU does it too. */
void fake_write(void *arg, uint32_t at, uint32_t value)
{
	if (at == 0x54)
		fake.cmbmsc[1] = value;
	if (at == 0x50 && fake.cap[1] & 1u << 25) {
		fake.cmbmsc[0] = value;
		fake.cmbsts = value & 2 && ((uint64_t)fake.cmbmsc[1] << 32 | (value & ~0xFFFu)) > fake.address_max;
	}
	if (at == 0xE04)
		fake.pmrctl = value;
	if (at == 0xE18)
		fake.pmrmsc[1] = value;
	if (at == 0xE14) {
		fake.pmrmsc[0] = value;
		fake.pmrsts = value & 2 && ((uint64_t)fake.pmrmsc[1] << 32 | (value & ~0xFFFu)) > fake.address_max ? 1u << 12 : 0;
	}
}

/* -- the system */

static int opened(int fd)
{
	fake.open++;
	fake.opened++;
	return fd;
}

int vfio_sys_open(const char *path, int flags)
{
	if (strcmp(path, "/dev/vfio/7") == 0)
		return fake.group_rc ? fake.group_rc : opened(FD_GROUP);
	if (strcmp(path, "/dev/vfio/vfio") == 0)
		return opened(FD_CONTAINER);
	if (strcmp(path, "/dev/iommu") == 0)
		return fake.cdev ? opened(FD_IOMMU) : -ENOENT;
	if (strcmp(path, "/dev/vfio/devices/vfio3") == 0)
		return fake.cdev ? opened(FD_DEVICE) : -ENOENT;
	if (strcmp(path, "/sys/bus/pci/devices/" FAKE_BDF "/resource2_wc") == 0)
		return fake.combining ? opened(FD_COMBINING) : -ENOENT;
	return -ENOENT;
}

void vfio_sys_close(int fd)
{
	fake.open--;
}

static int region(struct vfio_region_info *info)
{
	struct vfio_region_info_cap_sparse_mmap *cap = (void *)(info + 1);

	if (fake.gone)
		return -ENODEV;
	info->offset = (uint64_t)info->index << PAST;
	info->size = info->index < 6 ? fake.bar_bytes[info->index] : 4096;
	info->flags = info->index < 6 && info->size ? VFIO_REGION_INFO_FLAG_MMAP : 0;
	if (!fake.sparse || info->index != 2)
		return 0;
	info->flags |= VFIO_REGION_INFO_FLAG_CAPS;
	if (info->argsz < sizeof(*info) + sizeof(*cap) + 16) {
		info->argsz = sizeof(*info) + sizeof(*cap) + 16;
		return 0;
	}
	info->cap_offset = sizeof(*info);
	*cap = (struct vfio_region_info_cap_sparse_mmap){ .header = { .id = VFIO_REGION_INFO_CAP_SPARSE_MMAP }, .nr_areas = 1 };
	cap->areas[0].offset = MIB;
	cap->areas[0].size = 7 * MIB;
	return 0;
}

static int set_irqs(const struct vfio_irq_set *set)
{
	if (set->index != VFIO_PCI_REQ_IRQ_INDEX || set->count != 1)
		return -EINVAL;
	memcpy(&fake.request, set->data, sizeof(fake.request));
	return 0;
}

/* VFIO_DEVICE_FEATURE with VFIO_DEVICE_FEATURE_DMA_BUF of the newest kernels. */
static int feature(const uint32_t *p)
{
	uint64_t range[2];

	if (!fake.dmabuf)
		return -ENOTTY;
	memcpy(range, p + 6, sizeof(range));
	if (p[0] != 40 || p[1] != (1u << 16 | 11u) || p[2] > 5 || p[4] || p[5] != 1 || range[0] % 4096 || range[1] % 4096 ||
	    range[0] + range[1] > fake.bar_bytes[p[2]])
		return -EINVAL;
	return opened(FD_DMABUF);
}

static int device_ioctl(unsigned long request, void *arg)
{
	switch (request) {
	case VFIO_DEVICE_GET_REGION_INFO:
		return region(arg);
	case VFIO_DEVICE_SET_IRQS:
		return set_irqs(arg);
	case _IO(VFIO_TYPE, VFIO_BASE + 17):
		return feature(arg);
	case _IO(VFIO_TYPE, VFIO_BASE + 18):
		if (((uint32_t *)arg)[0] != 16 || ((int32_t *)arg)[2] != FD_IOMMU)
			return -EINVAL;
		fake.bound = true;
		return fake.group_rc;
	default:
		return -ENOTTY;
	}
}

int vfio_sys_ioctl(int fd, unsigned long request, void *arg)
{
	if (fd == FD_DEVICE)
		return device_ioctl(request, arg);
	switch (request) {
	case VFIO_GROUP_GET_STATUS:
		((struct vfio_group_status *)arg)->flags = fake.not_viable ? 0 : VFIO_GROUP_FLAGS_VIABLE;
		return 0;
	case VFIO_GET_API_VERSION:
		return VFIO_API_VERSION;
	case VFIO_CHECK_EXTENSION:
		return (uintptr_t)arg == VFIO_TYPE1v2_IOMMU;
	case VFIO_GROUP_SET_CONTAINER:
		return *(int *)arg == FD_CONTAINER ? 0 : -EBADF;
	case VFIO_SET_IOMMU:
		fake.with_iommu = true;
		return 0;
	case VFIO_GROUP_GET_DEVICE_FD:
		return !fake.with_iommu ? -EINVAL : strcmp(arg, FAKE_BDF) == 0 ? opened(FD_DEVICE) : -ENODEV;
	default:
		return -ENOTTY;
	}
}

void *vfio_sys_map(void *at, size_t bytes, int fd, uint64_t offset)
{
	const unsigned bar = fd == FD_COMBINING ? 2 : (unsigned)(offset >> PAST);

	offset &= (1ull << PAST) - 1;
	mapped = at;
	mapped_bytes = bytes;
	return mmap(at, bytes, PROT_READ | PROT_WRITE, MAP_SHARED | MAP_FIXED, bars[bar], (off_t)offset);
}

static uint32_t at_of(uint64_t offset)
{
	return (uint32_t)(offset & ((1ull << PAST) - 1));
}

ssize_t vfio_sys_pread(int fd, void *to, size_t bytes, uint64_t offset)
{
	if (offset >> PAST == CONFIG && at_of(offset) == 0x18) { /* 64 bits, prefetchable */
		const uint64_t value = fake.bus | 0xC;

		memcpy(to, &value, 8);
	} else if (offset >> PAST == CONFIG) {
		memcpy(to, &fake.command, 2);
	} else {
		uint32_t value = fake_read(NULL, at_of(offset));

		memcpy(to, &value, 4);
	}
	return (ssize_t)bytes;
}

ssize_t vfio_sys_pwrite(int fd, const void *from, size_t bytes, uint64_t offset)
{
	uint32_t value = 0;

	memcpy(&value, from, bytes);
	if (offset >> PAST == CONFIG)
		fake.command = (uint16_t)value;
	else
		fake_write(NULL, at_of(offset), value);
	return (ssize_t)bytes;
}

int vfio_sys_text(const char *path, char *text, size_t size)
{
	if (strcmp(path, "/sys/bus/pci/devices/" FAKE_BDF "/resource") != 0)
		return -ENOENT;
	snprintf(text, size, "0xfe800000 0xfe803fff 0x140204\n0x0 0x0 0x0\n0x00000038f0000000 0x00000038f07fffff 0x14220c\n");
	return 0;
}

size_t vfio_sys_devices(int *fds, size_t most)
{
	fds[0] = FD_DEVICE;
	return fake.held && fake.bus;
}

int vfio_sys_link(const char *path, char *name, size_t size)
{
	const char *value = NULL;

	if (strcmp(path, "/sys/bus/pci/devices/" FAKE_BDF "/driver") == 0)
		value = fake.driver;
	else if (strcmp(path, "/sys/bus/pci/devices/" FAKE_BDF "/iommu_group") == 0)
		value = fake.grouped ? "7" : NULL;
	snprintf(name, size, "%s", value ? value : "");
	return value ? 0 : -ENOENT;
}

int vfio_sys_entry(const char *folder, const char *prefix, char *name, size_t size)
{
	if (strcmp(folder, "/sys/bus/pci/devices/" FAKE_BDF) == 0 && strcmp(prefix, "vendor") == 0)
		return 0;
	if (!fake.cdev || strcmp(folder, "/sys/bus/pci/devices/" FAKE_BDF "/vfio-dev") != 0)
		return -ENOENT;
	snprintf(name, size, "vfio3");
	return 0;
}

/* -- SPDK */

struct dp_spdk_hold {
	int unused;
};

static struct dp_spdk_hold the_hold;
static uint32_t registers[0xE20 / 4]; /* plain memory: a legacy CMB, or what a test writes there */

struct dp_spdk_hold *dp_spdk_hold(const char *bdf, void (*gone)(void *arg, const char *why), void *arg)
{
	if (!fake.held || strcmp(bdf, FAKE_BDF) != 0)
		return NULL;
	for (uint32_t at = 0; at < sizeof(registers); at += 4)
		registers[at / 4] = fake_read(NULL, at);
	fake.holds++;
	fake.gone_fn = gone;
	fake.gone_arg = arg;
	return &the_hold;
}

void dp_spdk_let_go(struct dp_spdk_hold *hold)
{
	fake.holds--;
	fake.gone_fn = NULL;
}

volatile void *dp_spdk_registers(struct dp_spdk_hold *hold)
{
	return fake.gone ? NULL : registers;
}

/* Half a huge page past one, as SPDK's mappings are nowhere in particular. */
int dp_spdk_map_bar(struct dp_spdk_hold *hold, unsigned bar, void **addr, uint64_t *phys, uint64_t *size)
{
	uint8_t *room = mmap(NULL, fake.bar_bytes[bar] + 4 * MIB, PROT_NONE, MAP_PRIVATE | MAP_ANONYMOUS, -1, 0);
	uint8_t *at = (uint8_t *)(((uintptr_t)room + 2 * MIB - 1) / (2 * MIB) * (2 * MIB)) + MIB;

	*addr = fake.bar = mmap(at, fake.bar_bytes[bar], PROT_READ | PROT_WRITE, MAP_SHARED | MAP_FIXED, bars[bar], 0);
	mapped = fake.bar;
	mapped_bytes = fake.bar_bytes[bar];
	*phys = (uintptr_t)fake.bar; /* as SPDK does where an IOMMU is */
	*size = fake.bar_bytes[bar];
	return 0;
}

void dp_spdk_unmap_bar(struct dp_spdk_hold *hold, unsigned bar, void *addr)
{
	munmap(addr, fake.bar_bytes[bar]);
	fake.bar = NULL;
}

static bool is_drives(const void *addr)
{
	return mapped && (const uint8_t *)addr >= mapped && (const uint8_t *)addr < mapped + mapped_bytes;
}

int dp_spdk_mem_add(void *addr, size_t bytes)
{
	if (!is_drives(addr))
		return 0; /* staging memory of a reactor */
	if (fake.share_rc < 0 || (uintptr_t)addr % (2 * MIB) || bytes % (2 * MIB))
		return fake.share_rc < 0 ? fake.share_rc : -EINVAL;
	fake.shared = addr;
	fake.shared_bytes = bytes;
	return 0;
}

void dp_spdk_mem_remove(void *addr, size_t bytes)
{
	if (!is_drives(addr))
		return;
	if (fake.shared != addr || fake.shared_bytes != bytes)
		abort();
	fake.shared = NULL;
}

bool dp_spdk_mem_reaches(const void *addr, size_t bytes)
{
	return fake.shared && (const uint8_t *)addr >= (const uint8_t *)fake.shared &&
	       (const uint8_t *)addr + bytes <= (const uint8_t *)fake.shared + fake.shared_bytes;
}

struct bdev *dp_spdk_bdev_open(const struct dp_bdev_config *config, int *rc, char err[DP_ERR_MAX])
{
	*rc = -EOPNOTSUPP;
	return fake.bdev_open ? fake.bdev_open(config, rc) : NULL;
}

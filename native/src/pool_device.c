/* SPDX-License-Identifier: BSD-3-Clause */
#include "pool_device.h"

#include <errno.h>
#include <poll.h>
#include <pthread.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/eventfd.h>
#include <unistd.h>

#include "common.h"
#include "nvme_cmb.h"
#include "spdk.h"
#include "vfio.h"
#include "vfio_sys.h"

#define HUGE_PAGE ((uint64_t)2 << 20)

struct pool_device {
	struct dp_spdk_hold *hold; /* SPDK has the drive; NULL: vfio */
	struct vfio_dev vfio;
	struct nvme_regs regs;
	struct nvme_memory memory;
	bool found;

	struct vfio_area area;
	void *bar; /* hold: where all of it is mapped */
	uint64_t dma; /* hold: what SPDK's drives name it by */
	char bdf[32];
	uint8_t *base;
	uint64_t bytes, mapped; /* given out; all that others may reach */
	bool shared;            /* SPDK was told of it */

	int dmabuf;
	char no_dmabuf[DP_ERR_MAX];

	pthread_mutex_t lock; /* of what follows */
	void (*lost)(void *arg, const char *why); /* NULL: nobody wants to know, now */
	void *arg;
	const char *why; /* it was lost */
	pthread_t watcher;
	bool watching;
	int request, stop; /* eventfds: the kernel wants it back; we have no use for it */
};

/* -- registers of a drive that SPDK has */

static uint32_t hold_read(void *arg, uint32_t at)
{
	volatile uint8_t *registers = dp_spdk_registers(arg);

	return registers ? le32toh(*(volatile uint32_t *)(registers + at)) : UINT32_MAX;
}

static void hold_write(void *arg, uint32_t at, uint32_t value)
{
	volatile uint8_t *registers = dp_spdk_registers(arg);

	if (registers)
		*(volatile uint32_t *)(registers + at) = htole32(value);
}

/* -- which memory */

static bool for_data(const struct nvme_memory *memory, const char *what, char err[DP_ERR_MAX])
{
	if (memory->reads && memory->writes)
		return true;
	snprintf(err, DP_ERR_MAX, "its %s does not take data: %s%s%s", what, memory->reads ? "" : "RDS is 0",
		 memory->reads || memory->writes ? "" : ", ", memory->writes ? "" : "WDS is 0");
	return false;
}

/* The CMB if it takes data in both directions, else the PMR. */
static int find(struct pool_device *device, char err[DP_ERR_MAX])
{
	struct nvme_memory *memory = &device->memory;
	char cmb[DP_ERR_MAX / 2 - 16], pmr[DP_ERR_MAX / 2 - 16], why[DP_ERR_MAX] = "";
	int rc = nvme_cmb_find(&device->regs, memory, why);

	if (rc == -ENODEV) {
		memcpy(err, why, DP_ERR_MAX);
		return rc;
	}
	if (rc == 0 && for_data(memory, "CMB", why)) {
		device->found = true;
		return 0;
	}
	if (rc == 0)
		nvme_memory_disable(&device->regs, memory);
	snprintf(cmb, sizeof(cmb), "%.*s", (int)sizeof(cmb) - 1, why);
	rc = nvme_pmr_find(&device->regs, memory, why);
	if (rc == 0 && for_data(memory, "PMR", why)) {
		device->found = true;
		return 0;
	}
	snprintf(pmr, sizeof(pmr), "%.*s", (int)sizeof(pmr) - 1, why);
	snprintf(err, DP_ERR_MAX, "%s; %s", cmb, pmr);
	return rc < 0 ? rc : -ENOTSUP;
}

static int bar_bytes(struct pool_device *device, uint64_t *bytes, char err[DP_ERR_MAX])
{
	int rc = device->hold ? dp_spdk_map_bar(device->hold, device->memory.bar, &device->bar, &device->dma, bytes) :
				vfio_bar_bytes(&device->vfio, device->memory.bar, bytes);

	if (rc < 0)
		snprintf(err, DP_ERR_MAX, "BAR %u, which holds its memory: %s", device->memory.bar, strerror(-rc));
	return rc;
}

/* What of it can be mapped: whole pages inside the BAR. */
static int measure(struct pool_device *device, char err[DP_ERR_MAX])
{
	struct nvme_memory *memory = &device->memory;
	uint64_t bytes;
	int rc = bar_bytes(device, &bytes, err);

	if (rc < 0)
		return rc;
	if (memory->kind == NVME_PMR)
		memory->bytes = bytes;
	if (memory->offset >= bytes || memory->offset % POOL_GRANULE) {
		snprintf(err, DP_ERR_MAX, "its memory is said to begin at %#llx of BAR %u, which has %llu bytes",
			 (unsigned long long)memory->offset, memory->bar, (unsigned long long)bytes);
		return -EPROTO;
	}
	memory->bytes = min_u64(memory->bytes, bytes - memory->offset) / POOL_GRANULE * POOL_GRANULE;
	return 0;
}

static int reach(struct pool_device *device, const char *bdf, bool attached, char err[DP_ERR_MAX])
{
	int rc;

	if (device->hold) {
		device->regs = (struct nvme_regs){ hold_read, hold_write, device->hold };
		return 0;
	}
	if (attached) {
		snprintf(err, DP_ERR_MAX, "its controller is not attached now");
		return -ENOTCONN;
	}
	rc = vfio_open(&device->vfio, bdf, err);
	device->regs = (struct nvme_regs){ vfio_read32, vfio_write32, &device->vfio };
	return rc;
}

/* -- where it is mapped */

static int map_own(struct pool_device *device, char err[DP_ERR_MAX])
{
	const struct nvme_memory *memory = &device->memory;
	int rc;

	device->mapped = memory->bytes < HUGE_PAGE ? memory->bytes : memory->bytes / HUGE_PAGE * HUGE_PAGE;
	/* First, as with it the kernel claims the BAR, and takes mappings away that are not VFIO's. */
	device->dmabuf = vfio_dmabuf(device->vfio.fd, memory->bar, memory->offset, device->mapped, device->no_dmabuf);
	rc = vfio_bar_map(&device->vfio, memory->bar, memory->offset, device->mapped, &device->area, err);
	device->base = device->area.base;
	return rc;
}

/* SPDK opened the device and shows nobody its descriptor; it is one of this process's all the same. */
static void export_held(struct pool_device *device, uint64_t offset, uint64_t bytes)
{
	int fd = vfio_find_fd(device->bdf, device->memory.bar);

	if (fd < 0)
		snprintf(device->no_dmabuf, sizeof(device->no_dmabuf), "SPDK has the device, and not by VFIO");
	else
		device->dmabuf = vfio_dmabuf(fd, device->memory.bar, offset, bytes, device->no_dmabuf);
}

/* SPDK's mapping begins anywhere, and huge pages alone are told to its drives. */
static int map_held(struct pool_device *device, char err[DP_ERR_MAX])
{
	const uintptr_t begin = (uintptr_t)device->bar + device->memory.offset, end = begin + device->memory.bytes;
	const uintptr_t base = (begin + HUGE_PAGE - 1) / HUGE_PAGE * HUGE_PAGE;

	if (base + HUGE_PAGE > end) {
		snprintf(err, DP_ERR_MAX, "of its %llu bytes no 2 MiB lie in one huge page of addresses, which SPDK needs",
			 (unsigned long long)device->memory.bytes);
		return -ENOTSUP;
	}
	device->base = (uint8_t *)base;
	device->mapped = (end - base) / HUGE_PAGE * HUGE_PAGE;
	export_held(device, device->memory.offset + (base - begin), device->mapped);
	return 0;
}

/* Commands name the memory by the address that it has for all drives' DMA, so no other memory of theirs can be there: where
 * SPDK says, or where we have it, as that is what SPDK makes of it. */
static int enable(struct pool_device *device, char err[DP_ERR_MAX])
{
	const uint64_t address = device->hold ? device->dma + device->memory.offset : (uintptr_t)device->base;

	return nvme_memory_enable(&device->regs, &device->memory, address, err);
}

static int choose_bytes(struct pool_device *device, uint64_t bytes, char err[DP_ERR_MAX])
{
	device->bytes = bytes ? bytes : device->mapped;
	if (device->bytes <= device->mapped && device->bytes >= 2 * POOL_GRANULE)
		return 0;
	snprintf(err, DP_ERR_MAX, "%llu bytes of it can be had, not %llu", (unsigned long long)device->mapped,
		 (unsigned long long)device->bytes);
	return -ENOMEM;
}

/* -- its loss */

/* Any thread. */
static void on_lost(void *arg, const char *why)
{
	struct pool_device *device = arg;

	pthread_mutex_lock(&device->lock);
	if (!device->why) {
		device->why = why;
		if (device->lost)
			device->lost(device->arg, why);
	}
	pthread_mutex_unlock(&device->lock);
}

void pool_device_watch(struct pool_device *device, void (*lost)(void *arg, const char *why), void *arg)
{
	pthread_mutex_lock(&device->lock);
	device->lost = lost;
	device->arg = arg;
	if (device->why)
		lost(arg, device->why);
	pthread_mutex_unlock(&device->lock);
}

void pool_device_unwatch(struct pool_device *device)
{
	pthread_mutex_lock(&device->lock);
	device->lost = NULL;
	pthread_mutex_unlock(&device->lock);
}

static void *watch(void *arg)
{
	struct pool_device *device = arg;
	struct pollfd fds[2] = { { .fd = device->request, .events = POLLIN }, { .fd = device->stop, .events = POLLIN } };

	while (poll(fds, 2, -1) < 0)
		;
	if (!fds[1].revents)
		on_lost(device, "its device is to be removed, or bound to another driver");
	return NULL;
}

static int watch_start(struct pool_device *device, char err[DP_ERR_MAX])
{
	int rc;

	if (device->hold)
		return 0;
	device->request = eventfd(0, EFD_CLOEXEC);
	device->stop = eventfd(0, EFD_CLOEXEC);
	rc = device->request < 0 || device->stop < 0 ? -errno : vfio_on_request(&device->vfio, device->request);
	if (rc >= 0)
		rc = -pthread_create(&device->watcher, NULL, watch, device);
	device->watching = rc == 0;
	if (rc < 0)
		snprintf(err, DP_ERR_MAX, "nobody would tell that it has to be given back: %s", strerror(-rc));
	else
		pthread_setname_np(device->watcher, "pool device");
	return rc;
}

static void watch_stop(struct pool_device *device)
{
	if (device->watching) {
		eventfd_write(device->stop, 1);
		pthread_join(device->watcher, NULL);
	}
	if (device->request >= 0)
		close(device->request);
	if (device->stop >= 0)
		close(device->stop);
}

/* -- life */

void pool_device_close(struct pool_device *device)
{
	watch_stop(device);
	if (device->shared)
		dp_spdk_mem_remove(device->base, device->mapped);
	if (device->found)
		nvme_memory_disable(&device->regs, &device->memory);
	if (device->dmabuf >= 0)
		vfio_sys_close(device->dmabuf);
	vfio_area_unmap(&device->area);
	if (device->bar)
		dp_spdk_unmap_bar(device->hold, device->memory.bar, device->bar);
	if (device->hold)
		dp_spdk_let_go(device->hold);
	vfio_close(&device->vfio);
	pthread_mutex_destroy(&device->lock);
	free(device);
}

/* As far as can be told without using it. */
static struct pool_device *look(const char *bdf, bool attached, int *rc, char err[DP_ERR_MAX])
{
	struct pool_device *device = calloc(1, sizeof(*device));

	*rc = device ? 0 : -ENOMEM;
	if (!device)
		return NULL;
	*device = (struct pool_device){ .vfio = { .fd = -1, .group = -1, .container = -1, .iommufd = -1 },
					.dmabuf = -1,
					.request = -1,
					.stop = -1 };
	pthread_mutex_init(&device->lock, NULL);
	snprintf(device->bdf, sizeof(device->bdf), "%.31s", bdf);
	device->hold = dp_spdk_hold(bdf, on_lost, device);
	*rc = reach(device, bdf, attached, err);
	if (*rc == 0)
		*rc = find(device, err);
	if (*rc == 0)
		*rc = measure(device, err);
	if (*rc == 0)
		return device;
	pool_device_close(device);
	return NULL;
}

struct pool_device *pool_device_open(const char *bdf, uint64_t bytes, int *rc, char err[DP_ERR_MAX])
{
	struct pool_device *device;

	err[0] = 0;
	device = look(bdf, false, rc, err);
	if (!device)
		return NULL;
	*rc = device->hold ? map_held(device, err) : map_own(device, err);
	if (*rc == 0)
		*rc = choose_bytes(device, bytes, err);
	if (*rc == 0)
		*rc = enable(device, err);
	if (*rc == 0)
		*rc = watch_start(device, err);
	if (*rc < 0) {
		pool_device_close(device);
		return NULL;
	}
	device->shared = device->mapped % HUGE_PAGE == 0 && dp_spdk_mem_add(device->base, device->mapped) == 0;
	return device;
}

uint8_t *pool_device_base(const struct pool_device *device)
{
	return device->base;
}

size_t pool_device_bytes(const struct pool_device *device)
{
	return device->bytes;
}

int pool_device_dmabuf(const struct pool_device *device)
{
	return device->dmabuf;
}

void pool_device_facts(const struct pool_device *device, struct dp_pool_device *facts)
{
	static const char *const regions[] = {
		[NVME_CMB] = "cmb", [NVME_CMB_LEGACY] = "legacy cmb", [NVME_PMR] = "pmr"
	};

	*facts = (struct dp_pool_device){ .region = regions[device->memory.kind],
					  .via = device->hold ? "spdk" : "vfio",
					  .bar = device->memory.bar,
					  .bytes = device->memory.bytes,
					  .write_combining = device->area.write_combining,
					  .dma_buf = device->dmabuf >= 0 };
	if (device->base)
		facts->spdk = dp_spdk_mem_reaches(device->base, device->mapped);
	snprintf(facts->no_dma_buf, sizeof(facts->no_dma_buf), "%s", device->no_dmabuf);
}

int pool_device_probe(const char *bdf, bool attached, struct dp_pool_device *facts, char err[DP_ERR_MAX])
{
	struct pool_device *device;
	int rc;

	err[0] = 0;
	device = look(bdf, attached, &rc, err);
	if (!device)
		return rc;
	if (!device->hold)
		device->dmabuf = vfio_dmabuf(device->vfio.fd, device->memory.bar, device->memory.offset,
					     device->memory.bytes, device->no_dmabuf);
	else
		export_held(device, device->memory.offset, device->memory.bytes);
	pool_device_facts(device, facts);
	pool_device_close(device);
	return 0;
}

/* SPDX-License-Identifier: BSD-3-Clause
 *
 * What this project uses of SPDK's header of that name, for tests where SPDK is not. fake_spdk.c is behind it.
 */
#pragma once

#include <stdbool.h>
#include <stddef.h>
#include <stdint.h>

struct spdk_pci_device;

struct spdk_pci_addr {
	uint32_t domain;
	uint8_t bus, dev, func;
};

struct spdk_env_opts {
	const char *name, *core_mask, *iova_mode;
	int shm_id, mem_size;
	bool unlink_hugepage;
	void *env_context;
	size_t num_pci_addr;
	struct spdk_pci_addr *pci_allowed;
};

void spdk_env_opts_init(struct spdk_env_opts *opts);
int spdk_env_init(const struct spdk_env_opts *opts);
void *spdk_dma_malloc(size_t size, size_t align, uint64_t *unused);
void *spdk_dma_zmalloc(size_t size, size_t align, uint64_t *unused);
void spdk_dma_free(void *buf);
#define SPDK_VTOPHYS_ERROR UINT64_MAX
uint64_t spdk_vtophys(const void *buf, uint64_t *size);
int spdk_mem_register(void *vaddr, size_t len);
int spdk_mem_unregister(void *vaddr, size_t len);
int spdk_pci_addr_parse(struct spdk_pci_addr *addr, const char *bdf);
int spdk_pci_addr_fmt(char *bdf, size_t size, const struct spdk_pci_addr *addr);
bool spdk_pci_device_is_removed(struct spdk_pci_device *device);
int spdk_pci_device_map_bar(struct spdk_pci_device *device, uint32_t bar, void **addr, uint64_t *phys, uint64_t *size);
int spdk_pci_device_unmap_bar(struct spdk_pci_device *device, uint32_t bar, void *addr);

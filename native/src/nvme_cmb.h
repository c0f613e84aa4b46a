/* SPDX-License-Identifier: BSD-3-Clause
 *
 * nvme_cmb.h: the registers by which an NVMe controller offers memory of its own: the Controller Memory Buffer and the
 * Persistent Memory Region (NVM Express base specification 1.4 and later, properties CMBLOC, CMBSZ, CMBMSC, CMBSTS and PMR*).
 */
#pragma once

#include <stdbool.h>
#include <stdint.h>

#include "engine.h"

/* Dwords of BAR 0. A device that is gone reads as all ones. */
struct nvme_regs {
	uint32_t (*read)(void *arg, uint32_t at);
	void (*write)(void *arg, uint32_t at, uint32_t value);
	void *arg;
};

enum nvme_memory_kind { NVME_CMB, NVME_CMB_LEGACY, NVME_PMR };

struct nvme_memory {
	enum nvme_memory_kind kind;
	unsigned bar;
	uint64_t offset, bytes; /* within the BAR; a PMR's bytes are 0: all of its BAR */
	bool reads, writes;     /* data of Write commands (RDS: the controller reads it) and of Read commands (WDS) */
	bool movable;           /* it has an address of its own in the controller's view (CBA) */
	uint32_t before[2];     /* of the register that was changed, for nvme_memory_disable */
};

/* What there is. From NVMe 1.4 on CMBLOC and CMBSZ are zero until somebody asks for them (CMBMSC.CRE), which this does.
 * -ENODEV: the device is gone. -ENOENT: no such memory. */
int nvme_cmb_find(const struct nvme_regs *regs, struct nvme_memory *memory, char err[DP_ERR_MAX]);
int nvme_pmr_find(const struct nvme_regs *regs, struct nvme_memory *memory, char err[DP_ERR_MAX]);

/* The controller answers for `address` (a multiple of 4096: where commands will name the memory) from now on. A legacy CMB
 * has no such address, and is there already. -EADDRNOTAVAIL: the controller does not take that address. */
int nvme_memory_enable(const struct nvme_regs *regs, struct nvme_memory *memory, uint64_t address, char err[DP_ERR_MAX]);
/* As it was before nvme_*_find. */
void nvme_memory_disable(const struct nvme_regs *regs, const struct nvme_memory *memory);

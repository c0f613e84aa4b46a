/* SPDX-License-Identifier: BSD-3-Clause */
#include "nvme_cmb.h"

#include <errno.h>
#include <stdio.h>
#include <string.h>
#include <time.h>

#define REG_CAP 0x00u
#define REG_CMBLOC 0x38u
#define REG_CMBSZ 0x3Cu
#define REG_CMBMSC 0x50u
#define REG_CMBSTS 0x58u
#define REG_PMRCAP 0xE00u
#define REG_PMRCTL 0xE04u
#define REG_PMRSTS 0xE08u
#define REG_PMRMSCL 0xE14u
#define REG_PMRMSCU 0xE18u

#define CAP_PMRS (1u << 24) /* of the upper half: bits 56 and 57 */
#define CAP_CMBS (1u << 25)
#define CMBSZ_RDS (1u << 3)
#define CMBSZ_WDS (1u << 4)
#define CMBMSC_CRE 1u
#define CMBMSC_CMSE 2u
#define CMBSTS_CBAI 1u
#define PMRCAP_RDS (1u << 3)
#define PMRCAP_WDS (1u << 4)
#define PMRCAP_CMSS (1u << 24)
#define PMRCTL_EN 1u
#define PMRSTS_NRDY (1u << 8)
#define PMRSTS_CBAI (1u << 12)
#define PMRMSCL_CMSE 2u

#define BARS 6u
#define UNITS 7u /* of CMBSZ.SZU: 4 KiB, and 16 times as much for each */
#define PMR_WAIT_MS 2000u /* at most: the control thread has other things to do */

static uint32_t reg(const struct nvme_regs *regs, uint32_t at)
{
	return regs->read(regs->arg, at);
}

/* False: all ones, which no CAP can be. */
static bool is_there(const struct nvme_regs *regs, uint32_t *cap_high, char err[DP_ERR_MAX])
{
	uint32_t low = reg(regs, REG_CAP);

	*cap_high = reg(regs, REG_CAP + 4);
	if (low != UINT32_MAX || *cap_high != UINT32_MAX)
		return true;
	snprintf(err, DP_ERR_MAX, "its registers read as all ones: the device is gone");
	return false;
}

/* Upper half first: the lower one has the bit by which the controller takes the address over. */
static void write_halves(const struct nvme_regs *regs, uint32_t at, const uint32_t halves[2])
{
	regs->write(regs->arg, at + 4, halves[1]);
	regs->write(regs->arg, at, halves[0]);
}

/* What the drive says is not to be used as an index before this. */
static int check_bar(const struct nvme_memory *memory, const char *what, char err[DP_ERR_MAX])
{
	if (memory->bar < BARS)
		return 0;
	snprintf(err, DP_ERR_MAX, "its %s is said to be in BAR %u, and there are %u", what, memory->bar, BARS);
	return -EPROTO;
}

static int decode(uint32_t loc, uint32_t size, struct nvme_memory *memory, char err[DP_ERR_MAX])
{
	const uint32_t code = size >> 8 & 0xF;
	const uint64_t unit = 4096ull << 4 * code;

	if (code >= UNITS) {
		snprintf(err, DP_ERR_MAX, "its CMBSZ (%08xh) has a reserved unit of size", size);
		return -EPROTO;
	}
	memory->bar = loc & 7;
	memory->offset = (loc >> 12) * unit;
	memory->bytes = (size >> 12) * unit;
	memory->reads = size & CMBSZ_RDS;
	memory->writes = size & CMBSZ_WDS;
	return check_bar(memory, "CMB", err);
}

int nvme_cmb_find(const struct nvme_regs *regs, struct nvme_memory *memory, char err[DP_ERR_MAX])
{
	uint32_t cap, size;
	int rc;

	*memory = (struct nvme_memory){ .kind = NVME_CMB_LEGACY };
	if (!is_there(regs, &cap, err))
		return -ENODEV;
	if (cap & CAP_CMBS) {
		memory->kind = NVME_CMB;
		memory->movable = true;
		memory->before[0] = reg(regs, REG_CMBMSC);
		memory->before[1] = reg(regs, REG_CMBMSC + 4);
		regs->write(regs->arg, REG_CMBMSC, memory->before[0] | CMBMSC_CRE);
	}
	size = reg(regs, REG_CMBSZ);
	if (size == 0) {
		snprintf(err, DP_ERR_MAX, "it has no Controller Memory Buffer (CMBSZ is 0)");
		rc = -ENOENT;
	} else {
		rc = decode(reg(regs, REG_CMBLOC), size, memory, err);
	}
	if (rc < 0)
		nvme_memory_disable(regs, memory);
	return rc;
}

int nvme_pmr_find(const struct nvme_regs *regs, struct nvme_memory *memory, char err[DP_ERR_MAX])
{
	uint32_t cap, pmrcap;

	*memory = (struct nvme_memory){ .kind = NVME_PMR };
	if (!is_there(regs, &cap, err))
		return -ENODEV;
	if (!(cap & CAP_PMRS)) {
		snprintf(err, DP_ERR_MAX, "it has no Persistent Memory Region (CAP.PMRS is 0)");
		return -ENOENT;
	}
	pmrcap = reg(regs, REG_PMRCAP);
	memory->bar = pmrcap >> 5 & 7;
	memory->reads = pmrcap & PMRCAP_RDS;
	memory->writes = pmrcap & PMRCAP_WDS;
	memory->movable = pmrcap & PMRCAP_CMSS;
	memory->before[0] = reg(regs, REG_PMRCTL);
	return check_bar(memory, "PMR", err);
}

static int enable_cmb(const struct nvme_regs *regs, uint64_t address, char err[DP_ERR_MAX])
{
	const uint32_t halves[2] = { (uint32_t)address | CMBMSC_CRE | CMBMSC_CMSE, (uint32_t)(address >> 32) };
	uint32_t found;

	write_halves(regs, REG_CMBMSC, halves);
	if (reg(regs, REG_CMBSTS) & CMBSTS_CBAI) {
		snprintf(err, DP_ERR_MAX, "its controller does not take %#llx as address of its CMB (CMBSTS.CBAI)",
			 (unsigned long long)address);
		return -EADDRNOTAVAIL;
	}
	found = reg(regs, REG_CMBMSC);
	if (found == halves[0] && reg(regs, REG_CMBMSC + 4) == halves[1])
		return 0;
	snprintf(err, DP_ERR_MAX, "its CMB cannot be enabled: CMBMSC reads as %08xh after %08xh was written", found, halves[0]);
	return -EIO;
}

static int enable_pmr(const struct nvme_regs *regs, const struct nvme_memory *memory, uint64_t address, char err[DP_ERR_MAX])
{
	const uint32_t halves[2] = { (uint32_t)address | PMRMSCL_CMSE, (uint32_t)(address >> 32) };
	const struct timespec pause = { .tv_nsec = 1000000 };
	uint32_t cap = reg(regs, REG_PMRCAP), units = cap >> 16 & 0xFF;
	uint32_t limit = (cap >> 8 & 3) == 0 ? units * 500 : PMR_WAIT_MS; /* of half a second, or of a minute */

	regs->write(regs->arg, REG_PMRCTL, PMRCTL_EN);
	if (limit > PMR_WAIT_MS)
		limit = PMR_WAIT_MS;
	for (uint32_t ms = 0; reg(regs, REG_PMRSTS) & PMRSTS_NRDY; ms++) {
		if (ms >= limit) {
			snprintf(err, DP_ERR_MAX, "its PMR is not ready after %u ms (PMRSTS %08xh)", ms,
				 reg(regs, REG_PMRSTS));
			return -ETIMEDOUT;
		}
		nanosleep(&pause, NULL);
	}
	if (!memory->movable)
		return 0;
	write_halves(regs, REG_PMRMSCL, halves);
	if (reg(regs, REG_PMRSTS) & PMRSTS_CBAI) {
		snprintf(err, DP_ERR_MAX, "its controller does not take %#llx as address of its PMR (PMRSTS.CBAI)",
			 (unsigned long long)address);
		return -EADDRNOTAVAIL;
	}
	return 0;
}

int nvme_memory_enable(const struct nvme_regs *regs, struct nvme_memory *memory, uint64_t address, char err[DP_ERR_MAX])
{
	uint32_t cap;

	if (address & 0xFFF)
		return -EINVAL;
	if (!is_there(regs, &cap, err))
		return -ENODEV;
	if (memory->kind == NVME_PMR)
		return enable_pmr(regs, memory, address, err);
	return memory->kind == NVME_CMB ? enable_cmb(regs, address, err) : 0;
}

void nvme_memory_disable(const struct nvme_regs *regs, const struct nvme_memory *memory)
{
	static const uint32_t nowhere[2];

	if (memory->kind == NVME_CMB)
		write_halves(regs, REG_CMBMSC, memory->before);
	if (memory->kind != NVME_PMR)
		return;
	if (memory->movable)
		write_halves(regs, REG_PMRMSCL, nowhere);
	regs->write(regs->arg, REG_PMRCTL, memory->before[0]);
}

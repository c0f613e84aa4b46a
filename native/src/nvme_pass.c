/* SPDX-License-Identifier: BSD-3-Clause */
#include "nvme_pass.h"

#include <errno.h>
#include <fcntl.h>
#include <linux/fs.h>
#include <linux/hdreg.h>
#include <linux/nvme_ioctl.h>
#include <stdio.h>
#include <stdlib.h>
#include <sys/ioctl.h>
#include <sys/stat.h>
#include <sys/sysmacros.h>
#include <unistd.h>

#include "common.h"
#include "spec.h"

#define PAGE_SHIFT_MIN 12u            /* CAP.MPSMIN, which no ioctl tells, is at least this */
#define COMPARE_BYTES_MAX (256u << 10) /* the kernel maps at most 127 separate pages */
#define COMMAND_BYTES_MAX (8u << 20)  /* Copy and Verify: far from the driver's timeout on any drive */
#define VERIFY_BLOCKS_MAX 65536u
#define FEATURE_HOST_BEHAVIOR 0x16u
#define HOST_BEHAVIOR_CDFE 4u /* its byte offset of the copy descriptor formats that are enabled */

static int real_call(int fd, unsigned long request, void *arg)
{
	int rc = ioctl(fd, request, arg);

	return rc < 0 ? -errno : rc;
}

/* Namespaces and multipath heads, and their partitions, have an NSID in sysfs; devices that lie on them have none. */
static bool real_is_namespace(int fd)
{
	char path[96];
	struct stat st;

	if (fstat(fd, &st) < 0 || !S_ISBLK(st.st_mode))
		return false;
	snprintf(path, sizeof(path), "/sys/dev/block/%u:%u/nsid", major(st.st_rdev), minor(st.st_rdev));
	if (access(path, F_OK) == 0)
		return true;
	snprintf(path, sizeof(path), "/sys/dev/block/%u:%u/../nsid", major(st.st_rdev), minor(st.st_rdev));
	return access(path, F_OK) == 0;
}

struct nvme_pass_env nvme_pass_env = { real_call, real_is_namespace };

/* -- at open */

static int call_of(const struct nvme_pass *pass, unsigned long request, void *arg)
{
	return pass->call ? pass->call(pass->arg, request, arg) : nvme_pass_env.call(pass->fd, request, arg);
}

static int admin(const struct nvme_pass *pass, uint8_t opcode, uint32_t nsid, uint32_t cdw10, uint32_t cdw11, void *data)
{
	struct nvme_passthru_cmd cmd = { .opcode = opcode,
					 .nsid = nsid,
					 .cdw10 = cdw10,
					 .cdw11 = cdw11,
					 .addr = (uintptr_t)data,
					 .data_len = opcode == 0x06 || opcode == 0x02 ? 4096 : 512 };

	return call_of(pass, NVME_IOCTL_ADMIN_CMD, &cmd);
}

static int identify(const struct nvme_pass *pass, uint32_t nsid, uint8_t cns, uint8_t csi, uint8_t data[4096])
{
	memset(data, 0, 4096);
	return admin(pass, 0x06, nsid, cns, (uint32_t)csi << 24, data);
}

/* Copy across namespaces has to be enabled by the host (Host Behavior Support, CDFE); Linux does not. */
static bool enable_format_2(const struct nvme_pass *pass)
{
	uint8_t data[512] __attribute__((aligned(4096))) = { 0 };

	if (admin(pass, 0x0A, 0, FEATURE_HOST_BEHAVIOR, 0, data) != 0)
		return false;
	if (data[HOST_BEHAVIOR_CDFE] & 4)
		return true;
	data[HOST_BEHAVIOR_CDFE] |= 4;
	if (admin(pass, 0x09, 0, FEATURE_HOST_BEHAVIOR, 0, data) != 0)
		return false;
	memset(data, 0, sizeof(data));
	return admin(pass, 0x0A, 0, FEATURE_HOST_BEHAVIOR, 0, data) == 0 && data[HOST_BEHAVIOR_CDFE] & 4;
}

/* False: its blocks are not what the bdev shows. */
static bool read_namespace(struct nvme_pass *pass, unsigned block_shift, const uint8_t *ns)
{
	const uint8_t *format = ns + 128 + 4 * ((ns[26] & 0xF) | (ns[26] >> 1 & 0x30));
	uint32_t mssrl = get16(ns + 74), mcl = get32(ns + 76);

	pass->shift = format[2];
	pass->shared = ns[30] & 1;
	if (get16(format) != 0 || pass->shift < 9 || pass->shift > block_shift)
		return false; /* metadata, or a block that is larger than ours */
	pass->copy_total = min_u32(mcl, COMMAND_BYTES_MAX >> pass->shift);
	pass->copy_range = min_u32(mssrl, 0xFFFF);
	pass->copy_ranges = min_u32(ns[80] + 1u, NVME_COPY_RANGES);
	return true;
}

/* Commands Supported and Effects: there are drives (QEMU's) that have Verify there and not in ONCS. */
static bool effects_have(const struct nvme_pass *pass, uint8_t opcode, uint8_t data[4096])
{
	memset(data, 0, 4096);
	return admin(pass, 0x02, NSID_ALL, 0x05 | (4096 / 4 - 1) << 16, 0, data) == 0 && data[1024 + 4 * opcode] & 1;
}

static unsigned read_controller(struct nvme_pass *pass, uint8_t *ctrl)
{
	uint16_t oncs = get16(ctrl + 520), formats = get16(ctrl + 534);
	uint8_t mdts = ctrl[77];
	bool effects = ctrl[261] & 2; /* LPA */
	unsigned can = 0;

	memcpy(pass->id, ctrl + 4, 60);
	memcpy(pass->id + 60, ctrl + 768, 256);
	pass->cntlid = get16(ctrl + 78);
	pass->compare_bytes = COMPARE_BYTES_MAX;
	if (mdts && mdts + PAGE_SHIFT_MIN < 31)
		pass->compare_bytes = min_u32(pass->compare_bytes, 1u << (mdts + PAGE_SHIFT_MIN));
	if (oncs & 1u && pass->compare_bytes >> pass->shift)
		can |= NVME_PASS_COMPARE;
	if (oncs & 1u << 8 && pass->copy_range && pass->copy_total) {
		can |= NVME_PASS_COPY;
		if (formats & 4 && enable_format_2(pass))
			can |= NVME_PASS_COPY_NS;
	}
	if (oncs & 1u << 7 || (effects && effects_have(pass, OPC_VERIFY, ctrl)))
		can |= NVME_PASS_VERIFY;
	return can;
}

static void read_verify_limit(struct nvme_pass *pass, uint8_t data[4096])
{
	uint64_t most = min_u64((uint64_t)VERIFY_BLOCKS_MAX << pass->shift, COMMAND_BYTES_MAX);

	/* CNS 06h, NVM command set: VSL; a controller without that page has no limit of its own */
	if (identify(pass, 0, 0x06, 0, data) == 0 && data[0] && data[0] + PAGE_SHIFT_MIN < 31)
		most = min_u64(most, 1ull << (data[0] + PAGE_SHIFT_MIN));
	pass->verify_bytes = (uint32_t)most;
	if (!(most >> pass->shift))
		atomic_fetch_and(&pass->can, ~(unsigned)NVME_PASS_VERIFY);
}

/* What the drive says; NULL, and pass is freed: there is nothing that could be used. */
static struct nvme_pass *inquire(struct nvme_pass *pass, unsigned block_shift)
{
	uint8_t data[4096] __attribute__((aligned(4096)));

	if (identify(pass, pass->nsid, 0x00, 0, data) != 0 || !read_namespace(pass, block_shift, data) ||
	    pass->start & ((1ull << pass->shift) - 1) || identify(pass, 0, 0x01, 0, data) != 0)
		goto none;
	atomic_init(&pass->can, read_controller(pass, data));
	if (nvme_pass_can(pass, NVME_PASS_VERIFY))
		read_verify_limit(pass, data);
	if (atomic_load(&pass->can))
		return pass;
none:
	free(pass);
	return NULL;
}

struct nvme_pass *nvme_pass_open(int fd, unsigned block_shift)
{
	struct hd_geometry where = { 0 };
	struct nvme_pass *pass;
	int nsid;

	if (!nvme_pass_env.is_namespace(fd))
		return NULL;
	nsid = nvme_pass_env.call(fd, NVME_IOCTL_ID, NULL);
	if (nsid <= 0 || nvme_pass_env.call(fd, HDIO_GETGEO, &where) != 0)
		return NULL;
	pass = calloc(1, sizeof(*pass));
	if (!pass)
		return NULL;
	pass->fd = fd;
	pass->nsid = (uint32_t)nsid;
	pass->start = (uint64_t)where.start << 9;
	return inquire(pass, block_shift);
}

struct nvme_pass *nvme_pass_open_call(int (*call)(void *arg, unsigned long request, void *cmd), void *arg, uint32_t nsid,
				      unsigned block_shift)
{
	struct nvme_pass *pass = calloc(1, sizeof(*pass));

	if (!pass)
		return NULL;
	pass->fd = -1;
	pass->nsid = nsid;
	pass->call = call;
	pass->arg = arg;
	return inquire(pass, block_shift);
}

void nvme_pass_close(struct nvme_pass *pass)
{
	free(pass);
}

/*
 * An NSID names a namespace where both can be reached: two shared ones have the same meaning on every controller of the
 * subsystem, private ones on their own controller alone.
 */
int nvme_pass_copy_format(struct nvme_pass *to, struct nvme_pass *from)
{
	if (!nvme_pass_can(to, NVME_PASS_COPY) || !from || to->shift != from->shift || to->shared != from->shared ||
	    memcmp(to->id, from->id, sizeof(to->id)) != 0 || (!to->shared && to->cntlid != from->cntlid))
		return -1;
	if (to->nsid == from->nsid)
		return 0;
	return nvme_pass_can(to, NVME_PASS_COPY_NS) ? 2 : -1;
}

/* -- commands */

/* Not something of this one command: it will not work the next time either. */
static bool for_good(int rc)
{
	switch (rc) {
	case ST_INVALID_OPCODE:
	case ST_INVALID_FIELD:
	case ST_INVALID_NS:
	case -EACCES:
	case -EPERM:
	case -ENOTTY:
	case -EINVAL:
	case -EOPNOTSUPP:
		return true;
	default:
		return false;
	}
}

static int command(struct nvme_pass *pass, enum nvme_pass_what what, struct nvme_passthru_cmd *cmd, uint64_t end)
{
	uint64_t bytes = 0;
	int rc;

	/* A partition may have been made smaller since; the drive knows its namespace only. */
	if (pass->start && (nvme_pass_env.call(pass->fd, BLKGETSIZE64, &bytes) != 0 || end > bytes))
		return -ENXIO;
	cmd->nsid = pass->nsid;
	rc = call_of(pass, NVME_IOCTL_IO_CMD, cmd);
	if (rc > 0)
		rc &= 0x7FF; /* without DNR, More, CRD */
	if (for_good(rc))
		atomic_fetch_and(&pass->can, ~(unsigned)what);
	return rc;
}

static void put_lba(struct nvme_passthru_cmd *cmd, const struct nvme_pass *pass, uint64_t offset)
{
	uint64_t lba = (pass->start + offset) >> pass->shift;

	cmd->cdw10 = (uint32_t)lba;
	cmd->cdw11 = (uint32_t)(lba >> 32);
}

uint64_t nvme_copy_add(struct nvme_copy *copy, const struct nvme_pass *from, uint64_t offset, uint64_t bytes)
{
	const struct nvme_pass *to = copy->to;
	uint64_t blocks = min_u64(bytes >> to->shift, min_u64(to->copy_range, to->copy_total - copy->blocks));
	uint8_t *entry = copy->entries + copy->n * 32;
	uint64_t lba = (from->start + offset) >> from->shift;

	if (copy->n == to->copy_ranges || !blocks)
		return 0;
	memset(entry, 0, 32);
	if (copy->format == 2)
		put32(entry, from->nsid);
	put32(entry + 8, (uint32_t)lba);
	put32(entry + 12, (uint32_t)(lba >> 32));
	put16(entry + 16, (uint16_t)(blocks - 1));
	copy->n++;
	copy->blocks += blocks;
	return blocks << to->shift;
}

int nvme_copy_send(struct nvme_copy *copy)
{
	struct nvme_pass *to = copy->to;
	uint64_t bytes = copy->blocks << to->shift;
	struct nvme_passthru_cmd cmd = { .opcode = OPC_COPY,
					 .addr = (uintptr_t)copy->entries,
					 .data_len = copy->n * 32,
					 .cdw12 = (copy->n - 1) | (uint32_t)copy->format << 8 };
	int rc;

	put_lba(&cmd, to, copy->offset);
	rc = command(to, copy->format ? NVME_PASS_COPY_NS : NVME_PASS_COPY, &cmd, copy->offset + bytes);
	copy->offset += bytes;
	copy->n = 0;
	copy->blocks = 0;
	return rc;
}

int nvme_pass_compare(struct nvme_pass *pass, uint64_t offset, const void *data, uint64_t bytes, bool fua)
{
	for (uint64_t at = 0; at < bytes;) {
		uint32_t part = (uint32_t)min_u64(bytes - at, pass->compare_bytes);
		struct nvme_passthru_cmd cmd = { .opcode = OPC_COMPARE,
						 .addr = (uintptr_t)data + at,
						 .data_len = part,
						 .cdw12 = ((part >> pass->shift) - 1) | (uint32_t)fua << 30 };
		int rc;

		put_lba(&cmd, pass, offset + at);
		rc = command(pass, NVME_PASS_COMPARE, &cmd, offset + at + part);
		if (rc)
			return rc;
		at += part;
	}
	return 0;
}

int nvme_pass_verify(struct nvme_pass *pass, uint64_t offset, uint64_t bytes, bool fua)
{
	for (uint64_t at = 0; at < bytes;) {
		uint32_t part = (uint32_t)min_u64(bytes - at, pass->verify_bytes);
		struct nvme_passthru_cmd cmd = { .opcode = OPC_VERIFY, .cdw12 = ((part >> pass->shift) - 1) | (uint32_t)fua << 30 };
		int rc;

		put_lba(&cmd, pass, offset + at);
		rc = command(pass, NVME_PASS_VERIFY, &cmd, offset + at + part);
		if (rc)
			return rc;
		at += part;
	}
	return 0;
}

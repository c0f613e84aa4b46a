/* SPDX-License-Identifier: BSD-3-Clause */
#include "route_rig.h"

#include <errno.h>
#include <fcntl.h>
#include <linux/fs.h>
#include <linux/hdreg.h>
#include <linux/nvme_ioctl.h>
#include <stdio.h>
#include <stdlib.h>
#include <unistd.h>

#include "engine_priv.h"

struct route_rig rr;
uint32_t rr_dw0;

/* -- the driver and its drives */

static unsigned ns_of_fd(int fd)
{
	for (unsigned i = 0; i < RR_NS; i++)
		if (rr.fd[i] == fd)
			return i;
	abort();
}

static void identify(const struct drive *d, uint32_t cns, uint8_t *data)
{
	memset(data, 0, 4096);
	if (cns == 0) {
		data[30] = d->shared;
		put16(data + 74, d->mssrl);
		put32(data + 76, d->mcl);
		data[80] = d->msrc;
		data[26] = 1; /* the second LBA format */
		put16(data + 132, d->metadata ? 8 : 0);
		data[134] = d->lbads;
	} else if (cns == 1) {
		memset(data + 4, ' ', 60);
		memcpy(data + 4, d->serial, strlen(d->serial));
		data[77] = d->mdts;
		put16(data + 78, d->cntlid);
		put16(data + 520, d->oncs);
		put16(data + 534, d->ocfs);
		data[261] = 2;
	} else {
		data[0] = d->vsl;
	}
}

static int admin(unsigned ns, struct nvme_passthru_cmd *cmd)
{
	uint8_t *data = (uint8_t *)(uintptr_t)cmd->addr;

	if (cmd->opcode == 0x02) {
		memset(data, 0, cmd->data_len);
		data[1024 + 4 * OPC_VERIFY] = rr.drive[ns].effects_verify;
	} else if (cmd->opcode == 0x06) {
		identify(&rr.drive[ns], cmd->cdw10, data);
	} else if (cmd->cdw10 != 0x16 || rr.no_features) {
		return ST_INVALID_FIELD | 0x4000;
	} else if (cmd->opcode == 0x0A) {
		memcpy(data, rr.behavior, 512);
	} else {
		memcpy(rr.behavior, data, 512);
	}
	return 0;
}

static uint64_t lba_of(const struct nvme_passthru_cmd *cmd)
{
	return (uint64_t)cmd->cdw11 << 32 | cmd->cdw10;
}

/* Of a namespace's file, whose first byte is that of the namespace. */
static int move(unsigned to, uint64_t at, unsigned from, uint64_t from_at, uint64_t bytes)
{
	static uint8_t buf[4u << 20];

	if (bytes > sizeof(buf) || pread(rr.fd[from], buf, bytes, (off_t)from_at) != (ssize_t)bytes)
		return 0x281;
	return pwrite(rr.fd[to], buf, bytes, (off_t)at) == (ssize_t)bytes ? 0 : 0x280;
}

static int copy(unsigned ns, const struct nvme_passthru_cmd *cmd)
{
	const struct drive *d = &rr.drive[ns];
	uint32_t n = (cmd->cdw12 & 0xFF) + 1, format = cmd->cdw12 >> 8 & 0xF;
	uint64_t to = lba_of(cmd) << d->lbads, total = 0;

	rr.copies++;
	if (!(d->oncs & 0x100))
		return ST_INVALID_OPCODE | 0x4000;
	if (n > d->msrc + 1u || cmd->data_len != n * 32 || (format && !(d->ocfs & rr.behavior[4] & 1u << format)))
		return ST_INVALID_FIELD | 0x4000;
	for (uint32_t i = 0; i < n; i++) {
		const uint8_t *entry = (const uint8_t *)(uintptr_t)cmd->addr + i * 32;
		uint64_t blocks = get16(entry + 16) + 1u;
		unsigned from = ns;
		int status;

		if (format == 2)
			for (from = 0; from < RR_NS && rr.drive[from].nsid != get32(entry); from++)
				;
		total += blocks;
		if (blocks > d->mssrl || total > d->mcl)
			return ST_SIZE_LIMIT | 0x4000;
		if (from == RR_NS)
			return ST_INVALID_NS | 0x4000;
		status = move(ns, to, from, get64(entry + 8) << d->lbads, blocks << d->lbads);
		if (status)
			return status;
		to += blocks << d->lbads;
		rr.copied += blocks;
		rr.ranges++;
	}
	return 0;
}

static int compare(unsigned ns, const struct nvme_passthru_cmd *cmd)
{
	const struct drive *d = &rr.drive[ns];
	uint8_t *found = malloc(cmd->data_len);
	int status = 0;

	rr.compares++;
	if (!(d->oncs & 1))
		status = ST_INVALID_OPCODE | 0x4000;
	else if ((cmd->cdw12 & 0xFFFF) + 1 != cmd->data_len >> d->lbads || (d->mdts && cmd->data_len > 4096u << d->mdts))
		status = ST_INVALID_FIELD | 0x4000;
	else if (pread(rr.fd[ns], found, cmd->data_len, (off_t)(lba_of(cmd) << d->lbads)) != (ssize_t)cmd->data_len)
		status = ST_READ_ERROR;
	else if (memcmp(found, (const void *)(uintptr_t)cmd->addr, cmd->data_len) != 0)
		status = ST_COMPARE_FAILURE;
	free(found);
	return status;
}

static int verify(unsigned ns, const struct nvme_passthru_cmd *cmd)
{
	const struct drive *d = &rr.drive[ns];

	rr.verifies++;
	if (!(d->oncs & 0x80) && !d->effects_verify)
		return ST_INVALID_OPCODE | 0x4000;
	if (d->vsl && (((uint64_t)cmd->cdw12 & 0xFFFF) + 1) << d->lbads > 4096u << d->vsl)
		return ST_INVALID_FIELD | 0x4000;
	return cmd->data_len || cmd->addr ? ST_INVALID_FIELD : 0;
}

static int io_cmd(unsigned ns, struct nvme_passthru_cmd *cmd)
{
	if (cmd->nsid != rr.drive[ns].nsid)
		return -EINVAL;
	rr.fua = cmd->cdw12 >> 30 & 1;
	if (rr.fail_at && --rr.fail_at == 0) {
		rr.fail_at = 1;
		return rr.fail_with;
	}
	switch (cmd->opcode) {
	case OPC_COPY:
		return copy(ns, cmd);
	case OPC_COMPARE:
		return compare(ns, cmd);
	case OPC_VERIFY:
		return verify(ns, cmd);
	default:
		return ST_INVALID_OPCODE | 0x4000;
	}
}

static int call(int fd, unsigned long request, void *arg)
{
	unsigned ns = ns_of_fd(fd);

	switch (request) {
	case NVME_IOCTL_ID:
		return (int)rr.drive[ns].nsid;
	case NVME_IOCTL_ADMIN_CMD:
		return admin(ns, arg);
	case NVME_IOCTL_IO_CMD:
		return io_cmd(ns, arg);
	case HDIO_GETGEO:
		((struct hd_geometry *)arg)->start = rr.drive[ns].start >> 9;
		return 0;
	case BLKGETSIZE64:
		*(uint64_t *)arg = rr.drive[ns].size ? rr.drive[ns].size : RR_BLOCKS * 512;
		return 0;
	default:
		return -ENOTTY;
	}
}

static bool is_namespace(int fd)
{
	return !rr.drive[ns_of_fd(fd)].none;
}

/* -- the queue */

void rr_defaults(void)
{
	memset(&rr, 0, sizeof(rr));
	for (unsigned i = 0; i < RR_NS; i++)
		rr.drive[i] = (struct drive){ .nsid = i + 1,
					      .cntlid = 1,
					      .shared = false,
					      .mssrl = 128,
					      .mcl = 128,
					      .msrc = 127,
					      .mdts = 7,
					      .vsl = 7,
					      .lbads = 9,
					      .serial = "S1",
					      .oncs = 0x181,
					      .ocfs = 0x5 };
}

static void open_ns(unsigned i)
{
	struct dp_bdev_config config = { .kind = DP_BDEV_URING, .name = "f", .block_size = 512, .fallocate = true };
	char err[DP_ERR_MAX], name[64];
	int rc;

	snprintf(rr.path[i], sizeof(rr.path[i]), "/tmp/route_rig.XXXXXX");
	rr.fd[i] = mkstemp(rr.path[i]);
	if (rr.fd[i] < 0 || ftruncate(rr.fd[i], RR_BLOCKS * 512) < 0)
		abort();
	snprintf(name, sizeof(name), "%s", rr.path[i]);
	config.filename = name;
	rr.bdev[i] = bdev_open(&config, NULL, 1, &rc, err);
	if (!rr.bdev[i])
		abort();
	if (rr.drive[i].start) { /* the namespace is larger than the bdev's file, and another one */
		close(rr.fd[i]);
		rr.fd[i] = open("/tmp", O_TMPFILE | O_RDWR | O_CLOEXEC, 0600);
		if (rr.fd[i] < 0 || ftruncate(rr.fd[i], (off_t)(2 * rr.drive[i].start + RR_BLOCKS * 512)) < 0)
			abort();
	}
	rr.bdev[i]->nvme = nvme_pass_open(rr.fd[i], 9);
}

static void pushed(void *arg)
{
}

void rr_open(void)
{
	const struct rig_options plain = { .flow_control = true };
	struct ns_config ns[RR_NS];
	struct ctrlr ctrlr = { .key = 1, .mdts_bytes = 1u << 20, .copy_formats = 0xF, .n = RR_NS, .ns = ns };

	nvme_pass_env = (struct nvme_pass_env){ call, is_namespace };
	rig_open(&plain);
	memset(ns, 0, sizeof(ns));
	for (unsigned i = 0; i < RR_NS; i++) {
		open_ns(i);
		ns[i].nsid = i + 1;
		ns[i].anagrpid = 1;
		ns[i].ana_state = 1;
		ns[i].bdev = rr.bdev[i];
	}
	if (ctrlr_push(&ctrlr, pushed, NULL) < 0)
		abort();
	rig_turn();
}

void rr_settle(void)
{
	do {
		rig_turn();
		offload_drain();
	} while (atomic_load(&rig.r.inbox));
}

void rr_close(void)
{
	rr_settle();
	rig_view(7, 1);
	for (unsigned i = 0; i < RR_NS; i++) {
		if (rr.bdev[i]->r[0].in_flight || rr.bdev[i]->r[0].unlocked)
			abort();
		bdev_destroy(rr.bdev[i]);
		close(rr.fd[i]);
		unlink(rr.path[i]);
	}
	rig_close();
	offload_stop();
}

void rr_fill(unsigned ns, unsigned seed)
{
	uint8_t block[512];

	for (uint64_t b = 0; b < RR_BLOCKS; b++) {
		for (unsigned i = 0; i < 512; i++)
			block[i] = (uint8_t)(i * 7 + b * 13 + (b >> 8) + seed * 101);
		if (pwrite(rr.fd[ns - 1], block, 512, (off_t)(rr.drive[ns - 1].start + b * 512)) != 512)
			abort();
	}
}

uint8_t *rr_bytes(unsigned ns, uint64_t block, uint32_t blocks)
{
	static uint8_t buf[2][2u << 20];
	static unsigned turn;
	uint8_t *p = buf[turn++ & 1];

	if (pread(rr.fd[ns - 1], p, blocks * 512, (off_t)(rr.drive[ns - 1].start + block * 512)) != (ssize_t)blocks * 512)
		abort();
	return p;
}

/* -- commands */

static uint16_t answer(uint16_t cid)
{
	const uint8_t *p;

	rr_settle();
	p = rig.out;
	if (rig.out_len < 24 || p[0] != PDU_CAPSULE_RESP || get16(p + 20) != cid)
		abort();
	rr_dw0 = get32(p + 8);
	rig.out_len = 0;
	return get16(p + 22) >> 1;
}

static uint16_t h2c(uint8_t sqe[64], const void *data, uint32_t len)
{
	static uint8_t pdu[(1u << 20) + 256];
	uint16_t cid = get16(sqe + 2);

	put32(sqe + 32, len);
	sqe[39] = len <= 8192 ? 0x01 : 0x5A;
	rig_feed(pdu, rig_capsule(pdu, sqe, data, len <= 8192 ? len : 0));
	while (len > 8192 && rig.out_len >= 24 && rig.out[0] == PDU_R2T) {
		uint16_t tag = get16(rig.out + 10);
		uint32_t at = get32(rig.out + 12), part = get32(rig.out + 16);

		rig.out_len = 0;
		rig_feed(pdu, rig_h2c(pdu, cid, tag, at, (const uint8_t *)data + at, part, true));
	}
	return answer(cid);
}

uint16_t rr_copy(unsigned nsid, uint64_t slba, unsigned format, const uint32_t (*ranges)[3], unsigned n, bool fua)
{
	uint8_t sqe[64], entries[COPY_RANGES_MAX * 32] = { 0 };

	for (unsigned i = 0; i < n; i++) { /* nsid, block, blocks */
		put32(entries + i * 32, format ? ranges[i][0] : 0);
		put32(entries + i * 32 + 8, ranges[i][1]);
		put16(entries + i * 32 + 16, (uint16_t)(ranges[i][2] - 1));
	}
	rig_sqe(sqe, OPC_COPY, 7, nsid, slba, 0, 0, 0);
	put32(sqe + 48, (n - 1) | format << 8 | (uint32_t)fua << 30);
	return h2c(sqe, entries, n * 32);
}

uint16_t rr_compare(unsigned nsid, uint64_t slba, const void *data, uint32_t blocks, bool fua)
{
	uint8_t sqe[64];

	rig_sqe(sqe, OPC_COMPARE, 8, nsid, slba, 0, 0, 0);
	put32(sqe + 48, (blocks - 1) | (uint32_t)fua << 30);
	return h2c(sqe, data, blocks * 512);
}

uint16_t rr_verify(unsigned nsid, uint64_t slba, uint32_t blocks, bool fua)
{
	static uint8_t pdu[128];
	uint8_t sqe[64];

	rig_sqe(sqe, OPC_VERIFY, 9, nsid, slba, 0, 0, 0x5A);
	put32(sqe + 48, (blocks - 1) | (uint32_t)fua << 30);
	rig_feed(pdu, rig_capsule(pdu, sqe, NULL, 0));
	return answer(9);
}

uint64_t rr_route(unsigned ns, enum dp_copy_route route)
{
	return atomic_load(&rr.bdev[ns - 1]->r[0].staging.copy_bytes[route]);
}

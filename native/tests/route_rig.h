/* SPDX-License-Identifier: BSD-3-Clause
 *
 * route_rig.h: uring bdevs on temporary files as namespaces 1 to 3 of the queue rig, and an NVMe driver made of them: its
 * ioctls read and write the same files. What the drive is and what it refuses is set in struct drive.
 */
#pragma once

#include "nvme_pass.h"
#include "queue_rig.h"

#define RR_BLOCKS 4096u /* of 512 bytes, each bdev */
#define RR_NS 3u

struct drive {
	bool none, shared, metadata;
	uint64_t start; /* of the partition that the bdev is, bytes; rr.fd is then the namespace, in a file of its own */
	uint32_t nsid;
	uint16_t cntlid, mssrl;
	uint32_t mcl;
	uint8_t msrc, mdts, vsl, lbads;
	const char *serial;
	uint16_t oncs, ocfs;
	bool effects_verify; /* Commands Supported and Effects has it */
	uint64_t size; /* that BLKGETSIZE64 tells; 0: as it is */
};

struct route_rig {
	struct drive drive[RR_NS];
	struct bdev *bdev[RR_NS];
	int fd[RR_NS]; /* the drive's: the file of the namespace */
	char path[RR_NS][32];
	uint8_t behavior[512]; /* Host Behavior Support */
	bool no_features;
	/* the I/O commands that came */
	unsigned copies, compares, verifies, ranges;
	uint64_t copied; /* blocks */
	bool fua;
	unsigned fail_at; /* the n-th I/O command from now on ... */
	int fail_with;    /* ... and later ones end so */
};

extern struct route_rig rr;

/* A queue whose namespaces are those of rr.drive; before it, rr_defaults and changes of it. */
void rr_defaults(void);
void rr_open(void);
void rr_close(void);
void rr_settle(void); /* until no worker and no reactor has anything to do */

void rr_fill(unsigned ns, unsigned seed);
uint8_t *rr_bytes(unsigned ns, uint64_t block, uint32_t blocks); /* of the file; valid until the next call */

/* A command and its status (with DNR 4000h); rr_dw0: of its answer. */
extern uint32_t rr_dw0;
uint16_t rr_copy(unsigned nsid, uint64_t slba, unsigned format, const uint32_t (*ranges)[3], unsigned n, bool fua);
uint16_t rr_compare(unsigned nsid, uint64_t slba, const void *data, uint32_t blocks, bool fua);
uint16_t rr_verify(unsigned nsid, uint64_t slba, uint32_t blocks, bool fua);
uint64_t rr_route(unsigned ns, enum dp_copy_route route); /* bytes */

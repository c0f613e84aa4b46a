/* SPDX-License-Identifier: BSD-3-Clause
 *
 * fake_verbs.h: librdmacm and libibverbs without a device. Work requests are carried out at once, or when the test says
 * so, against memory of a host that the test can look at. Local memory is checked against what is registered, and
 * everything that was made is counted until it is destroyed. Any thread may post; the test speaks for the host.
 */
#pragma once

#include <stdbool.h>
#include <stdint.h>

#include <infiniband/verbs.h>
#include <rdma/rdma_cma.h>

#define HOST_ADDRESS 0x700000000000u
#define HOST_BYTES (1u << 20)
#define HOST_KEY 0x11223344u
#define HOST_INBOX 256

struct fake_capsule {
	uint8_t cqe[16];
	bool invalidate;
	uint32_t key;
};

struct fake_peer { /* one connection, as the host has it */
	struct rdma_cm_id *id;
	bool accepted, rejected, gone; /* gone: the target has destroyed its side */
	uint8_t answer[64];
	uint8_t answer_len, initiator_depth;
	struct fake_capsule inbox[HOST_INBOX];
	unsigned n, read;
	unsigned reads_open, reads_most; /* RDMA READs with the device */
	unsigned writes, sends, reads;
};

struct fake_verbs {
	uint8_t host[HOST_BYTES]; /* at HOST_ADDRESS, HOST_KEY */
	int live;                 /* objects */
	bool hold;                /* nothing posted is carried out */
	bool absent;              /* no device has the address */
	bool no_srq, no_inline, no_invalidate;
	bool dmabuf; /* its driver makes regions of dma-bufs */
	uint32_t max_msg, rd_atom, post_fails; /* post_fails: so many calls */
	unsigned listening;
};

extern struct fake_verbs fv;

void fake_verbs_reset(void);
struct fake_peer *fake_connect(const void *data, uint8_t len, uint8_t ird);
void fake_disconnected(struct fake_peer *peer); /* the host has gone */
void fake_removal(void);                        /* the device goes, from everything that is bound to it */
void fake_return(void);                         /* it is back, opened by librdmacm anew */
void fake_fatal(void);                          /* the device fails, and stays */
bool fake_is_open(void);                        /* the descriptors that librdmacm has of the device are still its */
bool fake_capsule(struct fake_peer *peer, const void *bytes, uint32_t len); /* false: no receive was posted */
void fake_carry_out(unsigned count); /* carries out what is held, the oldest first */
unsigned fake_held(void);
unsigned fake_inbox(struct fake_peer *peer); /* capsules that have come and were not taken */
struct fake_capsule fake_take(struct fake_peer *peer);

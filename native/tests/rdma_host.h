/* SPDX-License-Identifier: BSD-3-Clause
 *
 * rdma_host.h: host and control plane of NVMe/RDMA on fake verbs, for tests of the whole engine with its reactor.
 */
#pragma once

#include <setjmp.h>
#include <stdarg.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <time.h>

#include <cmocka.h>

#include "engine_priv.h"
#include "fake_verbs.h"
#include "io.h"
#include "loop.h"
#include "rdma.h"

#define KEY 7u
#define ICD 4096u
#define SGL_IN_CAPSULE 0x01
#define SGL_KEYED 0x40

static struct {
	unsigned connected, capsules, datas, closed, queue_closed, pool_lost, adopted, dones;
	struct dp_rdma_connected last;
	uint64_t conn;
	uint8_t sqe[64], icd[8192], data[64u << 10];
	uint32_t icd_len, data_len;
	int rc, done_rc;
	char reason[128];
} seen;
static char err[DP_ERR_MAX];

/* -- what the engine tells */

static inline void on_connected(const struct dp_rdma_connected *connected)
{
	seen.last = *connected;
	seen.connected++;
}

static inline void on_capsule(uint64_t conn, const uint8_t sqe[64], const void *icd, uint32_t icd_len)
{
	seen.conn = conn;
	memcpy(seen.sqe, sqe, 64);
	assert_true(icd_len <= sizeof(seen.icd));
	memcpy(seen.icd, icd, icd_len);
	seen.icd_len = icd_len;
	seen.capsules++;
}

static inline void on_data(uint64_t conn, uint16_t cid, int rc, const void *data, uint32_t len)
{
	seen.rc = rc;
	seen.data_len = len;
	if (len)
		memcpy(seen.data, data, len);
	seen.datas++;
}

static inline void on_closed(uint64_t conn, const char *reason)
{
	seen.conn = conn;
	snprintf(seen.reason, sizeof(seen.reason), "%s", reason);
	seen.closed++;
}

static inline void on_queue_closed(struct dp_queue_key key, const char *reason)
{
	snprintf(seen.reason, sizeof(seen.reason), "%s", reason);
	seen.queue_closed++;
}

static inline void on_pool_lost(const char *name, const char *why)
{
	seen.pool_lost++;
}

static inline void on_adopted(uint64_t token, int rc, const char *text)
{
	seen.rc = rc;
	seen.adopted++;
}

static inline void done(void *arg, int rc)
{
	seen.done_rc = rc;
	seen.dones++;
}

static const struct dp_rdma_events rdma_events = {
	.connected = on_connected, .capsule = on_capsule, .data = on_data, .closed = on_closed};
static const struct dp_events events = {.queue_closed = on_queue_closed, .pool_lost = on_pool_lost};

/* -- waiting: bounded, so that a test which fails says where */

static inline uint64_t now_s(void)
{
	struct timespec ts;

	clock_gettime(CLOCK_MONOTONIC, &ts);
	return (uint64_t)ts.tv_sec;
}

#define AWAIT(condition)                                                                                               \
	do {                                                                                                           \
		uint64_t until = now_s() + 20;                                                                         \
		while (!(condition)) {                                                                                 \
			loop_step(1);                                                                                  \
			if (now_s() > until)                                                                           \
				fail_msg("waited in vain for " #condition);                                            \
		}                                                                                                      \
	} while (0)

/* -- the engine's begin and end; between their halves is what a test has of its own */

static inline void open_host(void)
{
	memset(&seen, 0, sizeof(seen));
	fake_verbs_reset();
	assert_int_equal(loop_open(), 0);
	for (size_t i = 0; i < HOST_BYTES; i++)
		fv.host[i] = (uint8_t)(i * 7 + (i >> 8));
}

static inline struct dp_rdma_listen listener(void)
{
	return (struct dp_rdma_listen){.traddr = "10.0.0.1",
				       .trsvcid = "4420",
				       .adrfam = "IPv4",
				       .max_queue_depth = 32,
				       .max_aq_depth = 32,
				       .in_capsule_data_size = ICD,
				       .backlog = 10};
}

/* No connection is left, and nothing of the controller. */
static inline void end_controller(void)
{
	unsigned before = seen.dones;

	fv.hold = false;
	fake_carry_out(UINT32_MAX);
	dp_rdma_reset();
	dp_ctrlr_remove(KEY, done, NULL);
	AWAIT(seen.dones == before + 1);
}

static inline void close_host(void)
{
	unsigned before = seen.dones;

	dp_stop(done, NULL);
	AWAIT(seen.dones == before + 1);
	loop_close();
	dp_rdma_fini();
	assert_int_equal(fv.live, 0); /* nothing of verbs is left */
}

/* -- a host */

static inline struct fake_peer *request(uint16_t qid, uint16_t entries)
{
	uint8_t data[56] = {0};

	put16(data + 2, qid);
	put16(data + 4, entries);
	put16(data + 6, (uint16_t)(entries - 1));
	return fake_connect(data, sizeof(data), 4);
}

/* type: the SGL descriptor's last byte; a keyed one (0x40, 0x4F) means the host's memory from its first byte on */
static inline void make_sqe(uint8_t *sqe, uint8_t opc, uint16_t cid, uint32_t sgl_len, uint8_t type)
{
	memset(sqe, 0, 64);
	sqe[0] = opc;
	sqe[1] = 0x40;
	put16(sqe + 2, cid);
	put32(sqe + 4, 1);
	put32(sqe + 32, sgl_len);
	if (type >> 4 == SGL_KEYED >> 4) {
		uint64_t address = htole64(HOST_ADDRESS);

		memcpy(sqe + 24, &address, 8);
		put32(sqe + 35, HOST_KEY);
	}
	sqe[39] = type;
}

/* A read or write of blocks of `block` bytes, with the host's memory from byte `at` on. */
static inline void transfer(struct fake_peer *peer, uint8_t opc, uint16_t cid, uint64_t slba, uint32_t bytes,
			    uint32_t block, uint32_t at, uint8_t type)
{
	uint8_t sqe[64];
	uint64_t address = htole64(HOST_ADDRESS + at);

	make_sqe(sqe, opc, cid, bytes, type);
	memcpy(sqe + 24, &address, 8);
	put32(sqe + 40, (uint32_t)slba);
	put32(sqe + 48, bytes / block - 1);
	assert_true(fake_capsule(peer, sqe, sizeof(sqe)));
}

static inline struct fake_capsule answer_to(struct fake_peer *peer, uint16_t cid)
{
	struct fake_capsule capsule;

	AWAIT(fake_inbox(peer));
	capsule = fake_take(peer);
	assert_int_equal(get16(capsule.cqe + 12), cid);
	return capsule;
}

static inline uint16_t status_of(struct fake_peer *peer, uint16_t cid)
{
	struct fake_capsule capsule = answer_to(peer, cid);

	return get16(capsule.cqe + 14) >> 1;
}

/* An admin queue, or one that waits for its Connect. */
static inline struct fake_peer *connected(uint16_t qid)
{
	unsigned before = seen.connected;
	struct fake_peer *peer = request(qid, 16);

	AWAIT(seen.connected == before + 1 && peer->accepted);
	return peer;
}

/* An I/O queue. */
static inline struct fake_peer *queue(uint16_t qid)
{
	struct fake_peer *peer = connected(qid);
	struct dp_queue config = {.key = {KEY, qid}, .sqsize = 15, .sq_flow_control = true, .icd_max = ICD, .peer = "p"};
	unsigned before = seen.adopted, capsules = seen.capsules;
	uint8_t sqe[64 + 1024] = {0}, cqe[16] = {0};

	make_sqe(sqe, OPC_FABRICS, 1, 1024, SGL_IN_CAPSULE);
	assert_true(fake_capsule(peer, sqe, sizeof(sqe)));
	AWAIT(seen.capsules == capsules + 1);
	put16(cqe + 12, 1);
	dp_rdma_adopt(seen.last.conn, &config, cqe, 5, on_adopted);
	AWAIT(seen.adopted == before + 1);
	assert_int_equal(seen.rc, 0);
	assert_int_equal(status_of(peer, 1), 0);
	return peer;
}

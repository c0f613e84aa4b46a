/* SPDX-License-Identifier: BSD-3-Clause
 *
 * fake_engine.h: engine.h without I/O, for tests of what is above it. Callbacks come through loop_post, as the real
 * engine's do, or, for the operations in `held`, when the test says so.
 */
#pragma once

#include "engine.h"

struct fake_engine {
	int adopt_rc, create_rc, set_rc, check_rc; /* what the next call of that kind answers, then 0 again */
	bool hold;                       /* keep callbacks until fake_release() */
	struct dp_queue adopted;         /* last; fd is open */
	char adopted_peer[64];
	size_t adopted_response_len;
	unsigned adoptions, bdevs, controllers, queue_closes, held;
	struct dp_ctrlr_view view; /* last; without namespaces */
	char host[64], pools[3][64]; /* of it and of its first namespace; empty: none */
	bool strict;
	struct dp_bdev_config bdev;
	struct {
		uint64_t token;
		uint16_t status;
		bool dnr, close;
		uint32_t dw0;
		unsigned count;
	} upcall;
	struct dp_queue_key closed;
	uint64_t qos[4];
	int pool_rc; /* as create_rc, of calls about pools */
	struct dp_pool_config pool; /* last */
	char pool_name[64], pool_path[128], pool_bdev[64];
	bool pool_allow, calibration_fails;
};

extern struct fake_engine fake;

/* fake_rdma.c: what the last calls of rdma.h said. */
struct fake_rdma {
	unsigned listens, fetches, replies, adopts, closes, resets;
	uint64_t conn;
	uint16_t cid;
	uint32_t length, flags, offset, depth;
	uint8_t cqe[16], data[64];
	char traddr[64];
	struct dp_queue queue;
};

extern struct fake_rdma fake_rdma;

void fake_reset(void);
void fake_release(void);

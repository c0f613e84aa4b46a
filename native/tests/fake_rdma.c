/* SPDX-License-Identifier: BSD-3-Clause
 *
 * fake_rdma.c: rdma.h that notes what it is asked.
 */
#include <errno.h>
#include <stdio.h>
#include <string.h>

#include "fake_engine.h"
#include "rdma.h"

struct fake_rdma fake_rdma;

void dp_rdma_init(const struct dp_rdma_events *events)
{
	(void)events;
}

bool dp_rdma_built(void)
{
	return true;
}

int dp_rdma_listen(const struct dp_rdma_listen *listen, char err[DP_ERR_MAX])
{
	(void)err;
	fake_rdma.listens++;
	fake_rdma.depth = listen->max_queue_depth;
	snprintf(fake_rdma.traddr, sizeof(fake_rdma.traddr), "%s", listen->traddr);
	if (strcmp(listen->traddr, "10.9.9.9") != 0)
		return 0;
	snprintf(err, DP_ERR_MAX, "no RDMA device has this address");
	return -ENODEV;
}

int dp_rdma_unlisten(const char *traddr, const char *trsvcid, const char *adrfam)
{
	(void)trsvcid;
	(void)adrfam;
	return strcmp(traddr, fake_rdma.traddr) == 0 ? 0 : -ENOENT;
}

json_t *dp_rdma_devices(void)
{
	return json_pack("{s:i, s:[]}", "pending_data_buffer", 0, "devices");
}

json_t *dp_rdma_pool(const char *name)
{
	return json_array();
}

json_t *dp_rdma_info(void)
{
	return json_pack("{s:b}", "built", 1);
}

void dp_rdma_fetch(uint64_t conn, uint16_t cid, uint32_t length)
{
	fake_rdma.conn = conn;
	fake_rdma.cid = cid;
	fake_rdma.length = length;
	fake_rdma.fetches++;
}

void dp_rdma_reply(uint64_t conn, const uint8_t cqe[16], uint32_t flags, uint32_t offset, const void *data, uint32_t len)
{
	fake_rdma.conn = conn;
	fake_rdma.flags = flags;
	fake_rdma.offset = offset;
	fake_rdma.length = len;
	memcpy(fake_rdma.cqe, cqe, 16);
	if (len && len <= sizeof(fake_rdma.data))
		memcpy(fake_rdma.data, data, len);
	fake_rdma.replies++;
}

void dp_rdma_close(uint64_t conn)
{
	fake_rdma.conn = conn;
	fake_rdma.closes++;
}

void dp_rdma_adopt(uint64_t conn, const struct dp_queue *queue, const uint8_t cqe[16], uint64_t token,
		   dp_rdma_adopted_fn done)
{
	fake_rdma.conn = conn;
	fake_rdma.queue = *queue;
	memcpy(fake_rdma.cqe, cqe, 16);
	fake_rdma.adopts++;
	done(token, conn == 99 ? -ENOTCONN : 0, conn == 99 ? "gone" : "");
}

void dp_rdma_reset(void)
{
	fake_rdma.resets++;
}

void dp_rdma_fini(void)
{
}

/* SPDX-License-Identifier: BSD-3-Clause
 *
 * rdma_absent.c: rdma.h without librdmacm and libibverbs.
 */
#include <errno.h>
#include <stdio.h>

#include "rdma.h"

void dp_rdma_init(const struct dp_rdma_events *events)
{
}

bool dp_rdma_built(void)
{
	return false;
}

int dp_rdma_listen(const struct dp_rdma_listen *listen, char err[DP_ERR_MAX])
{
	snprintf(err, DP_ERR_MAX, "nvmet-p2p-dataplane is built without librdmacm");
	return -EOPNOTSUPP;
}

int dp_rdma_unlisten(const char *traddr, const char *trsvcid, const char *adrfam)
{
	return -ENOENT;
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
	return json_pack("{s:b}", "built", 0);
}

void dp_rdma_fetch(uint64_t conn, uint16_t cid, uint32_t length)
{
}

void dp_rdma_reply(uint64_t conn, const uint8_t cqe[16], uint32_t flags, uint32_t offset, const void *data, uint32_t len)
{
}

void dp_rdma_close(uint64_t conn)
{
}

void dp_rdma_adopt(uint64_t conn, const struct dp_queue *queue, const uint8_t cqe[16], uint64_t token,
		   dp_rdma_adopted_fn done)
{
	done(token, -ENOTCONN, "nvmet-p2p-dataplane is built without librdmacm");
}

void dp_rdma_reset(void)
{
}

void dp_rdma_fini(void)
{
}

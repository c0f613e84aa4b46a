/* SPDX-License-Identifier: BSD-3-Clause */
#include "rpc_methods.h"

#include "rdma.h"

void rpc_rdma_listen(struct rpc_request *request, const void *params)
{
	const struct rpc_rdma_listen *given = params;
	const struct dp_rdma_listen options = {
		.traddr = given->traddr,
		.trsvcid = given->trsvcid,
		.adrfam = given->adrfam,
		.max_queue_depth = given->max_queue_depth,
		.max_aq_depth = given->max_aq_depth,
		.in_capsule_data_size = given->in_capsule_data_size,
		.max_srq_depth = given->max_srq_depth,
		.no_srq = given->no_srq,
		.backlog = given->acceptor_backlog,
	};
	char err[DP_ERR_MAX] = "";
	int rc = dp_rdma_listen(&options, err);

	rpc_finish(request, rc, err);
}

void rpc_rdma_unlisten(struct rpc_request *request, const void *params)
{
	const struct rpc_rdma_listen *given = params;

	rpc_finish(request, dp_rdma_unlisten(given->traddr, given->trsvcid, given->adrfam), "no such listener");
}

void rpc_rdma_get_devices(struct rpc_request *request, const void *params)
{
	(void)params;
	rpc_reply(request, dp_rdma_devices());
}

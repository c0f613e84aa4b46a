/* SPDX-License-Identifier: BSD-3-Clause
 *
 * io_check.c: what is judged before a command's data moves, in the order of nvmet_p2p/dataplane/inprocess/nvm.py:
 * opcode, FUSE, NSID, ANA, write protection, MDTS; the data pointer; ranges and protection information.
 */
#include "io.h"

static uint32_t ana_status(uint8_t state)
{
	switch (state) {
	case 3:
		return ST_ANA_INACCESSIBLE;
	case 4:
		return ST_ANA_LOSS;
	case 15:
		return ST_ANA_TRANSITION;
	default:
		return 0;
	}
}

uint32_t io_path_status(const struct ns_entry *ns)
{
	uint32_t status = ana_status(ns->ana_state);

	return status || ns->bdev ? status : ST_NS_NOT_READY;
}

uint32_t io_admit(struct request *rq, struct view *view)
{
	const struct io_cmd *cmd = io_cmd_of(rq->opc);
	struct ns_entry *ns;
	uint32_t status;

	rq->cmd = cmd;
	rq->view = view;
	rq->view_gen = view->gen;
	rq->ns = NULL;
	rq->length = 0;
	if (DP_UNLIKELY(!cmd))
		return ST_INVALID_OPCODE | ST_DNR;
	if (DP_UNLIKELY(rq->fuse == 3))
		return ST_INVALID_FIELD | ST_DNR;
	if (rq->opc == OPC_FLUSH && rq->nsid == NSID_ALL)
		return 0;
	ns = view_find(view, rq->nsid);
	if (DP_UNLIKELY(!ns))
		return ST_INVALID_NS | ST_DNR;
	status = io_path_status(ns);
	if (DP_UNLIKELY(status))
		return status;
	rq->ns = ns;
	if (cmd->writes && (ns->write_protected || ns->bdev->readonly))
		return ST_WRITE_PROTECTED | ST_DNR;
	if (cmd->length) {
		status = cmd->length(rq, &rq->length);
		if (status)
			return status;
	}
	if (cmd->user_data && view->mdts_bytes && rq->length > view->mdts_bytes)
		return ST_INVALID_FIELD | ST_DNR;
	return 0;
}

uint32_t io_check_range(uint64_t slba, uint64_t blocks, const struct bdev *bdev)
{
	uint64_t all = atomic_load_explicit(&bdev->num_blocks, memory_order_relaxed);

	return slba > all || blocks > all - slba ? ST_LBA_RANGE | ST_DNR : 0;
}

uint32_t io_validate(const struct request *rq)
{
	if (!rq->ns)
		return 0;
	if (rq->cmd->prinfo && rq->cdw12 >> 26 & 0xF)
		return ST_INVALID_PI | ST_DNR; /* the namespace has no protection information */
	if (rq->cmd->range)
		return io_check_range(rq_slba(rq), rq_blocks(rq), rq->ns->bdev);
	return rq->cmd->check ? rq->cmd->check(rq) : 0;
}

static uint32_t plan_in_capsule(const uint8_t sqe[64], const struct request *rq, uint32_t icd_len, struct plan *plan)
{
	uint64_t address = get64(sqe + 24), end;
	uint32_t length = get32(sqe + 32);

	if (rq->cmd->dir == DIR_C2H)
		return ST_INVALID_FIELD | ST_DNR;
	end = address + length;
	if (end < address || end > rq->q->icd_max || address > icd_len)
		return ST_SGL_OFFSET | ST_DNR;
	if (end != icd_len) /* "never any undefined data following in-capsule data" (TCP 3.3.1) */
		return ST_SGL_LENGTH | ST_DNR;
	if (rq->cmd->at_least ? length < rq->length : length != rq->length)
		return ST_SGL_LENGTH | ST_DNR;
	plan->in_capsule = rq->length != 0;
	plan->offset = (uint32_t)address;
	return 0;
}

/* Keyed data block, with or without invalidation of its key (RDMA 3.1.2). */
static uint32_t plan_keyed(const uint8_t sqe[64], const struct request *rq, uint32_t icd_len, struct plan *plan)
{
	uint32_t length = get32(sqe + 32) & 0xFFFFFF;

	if (icd_len)
		return ST_INVALID_FIELD | ST_DNR;
	if (rq->cmd->at_least ? length < rq->length : length != rq->length)
		return ST_SGL_LENGTH | ST_DNR;
	plan->transport = rq->length != 0;
	plan->remote = (struct remote){ .address = get64(sqe + 24),
					.key = get32(sqe + 35),
					.invalidate = length && (sqe[39] & 0xF) == 0xF };
	return 0;
}

uint32_t io_plan(const uint8_t sqe[64], const struct request *rq, uint32_t icd_len, struct plan *plan)
{
	uint32_t length = get32(sqe + 32);
	uint8_t type = sqe[39];

	*plan = (struct plan){ 0 };
	if (sqe[1] >> 6 != 1)
		return ST_INVALID_FIELD | ST_DNR; /* PSDT: Fabrics want SGLs */
	if (rq->q->keyed && (type == 0x40 || type == 0x4F))
		return plan_keyed(sqe, rq, icd_len, plan);
	if (length == 0 && icd_len == 0)
		return rq->length ? ST_SGL_LENGTH | ST_DNR : 0;
	if (type == 0x5A && !rq->q->keyed) { /* transport data block */
		if (icd_len)
			return ST_INVALID_FIELD | ST_DNR;
		if (rq->cmd->at_least ? length < rq->length : length != rq->length)
			return ST_SGL_LENGTH | ST_DNR;
		plan->transport = rq->length != 0;
		return 0;
	}
	if (type == 0x01) /* data block, offset */
		return plan_in_capsule(sqe, rq, icd_len, plan);
	return ST_SGL_TYPE | ST_DNR;
}

/* SPDX-License-Identifier: BSD-3-Clause
 *
 * queue.c: an I/O queue that never blocks. Everything a wake-up produces leaves in as few sends as possible; received
 * bytes are looked at where they lie. Every field that the target sends is checked in begin_*().
 */
#include "queue.h"

#include <errno.h>
#include <stdio.h>
#include <stdlib.h>
#include <sys/socket.h>

#include "rdma.h"

enum { OPC_WRITE = 0x01, OPC_READ = 0x02 };

#define PDU_SCRATCH (PDU_PDO_MAX + 8) /* arena bytes that one PDU takes at most */
#define PDU_IOVS 3                    /* iovecs that one PDU takes at most */
#define MSEC 1000000ull

int queue_init(struct queue *queue, uint16_t qid, unsigned index, struct stats *stats)
{
	*queue = (struct queue){.conn = {.fd = -1}, .qid = qid, .depth = bench.opt.depth, .stats = stats};
	uint32_t jobs = 4; /* a capsule and maxr2t H2CData answers for each slot */
	while (jobs < queue->depth * (2 + bench.opt.maxr2t))
		jobs *= 2;
	queue->job_mask = jobs - 1;
	queue->slots = calloc(queue->depth, sizeof(*queue->slots));
	queue->free_cids = calloc(queue->depth, sizeof(*queue->free_cids));
	queue->jobs = calloc(jobs, sizeof(*queue->jobs));
	queue->arena = malloc(TX_ARENA);
	if (!queue->slots || !queue->free_cids || !queue->jobs || !queue->arena)
		return bench_fail(EXIT_RUN_FAILED, "no memory for a queue of depth %u", queue->depth);
	if (bench.opt.verify || bench.opt.rdma) {
		queue->memory = calloc(queue->depth, bench.opt.bs);
		if (queue->memory == NULL)
			return bench_fail(EXIT_RUN_FAILED, "no memory for %u buffers of %u bytes", queue->depth,
					  bench.opt.bs);
	}
	for (uint32_t i = 0; i < queue->depth; i++) {
		queue->free_cids[i] = (uint16_t)(queue->depth - 1 - i);
		if (bench.opt.verify)
			queue->slots[i].data = queue->memory + (size_t)i * bench.opt.bs;
	}
	queue->payload_crc = crc32c(bench.payload, bench.opt.bs);
	return workload_init(&queue->load, index);
}

void queue_free(struct queue *queue)
{
	conn_close(&queue->conn);
	workload_free(&queue->load);
	free(queue->memory);
	free(queue->slots);
	free(queue->free_cids);
	free(queue->jobs);
	free(queue->arena);
}

/* -- sending ------------------------------------------------------------------------------------------------------- */

static void push_job(struct queue *queue, struct job job)
{
	queue->jobs[queue->job_tail++ & queue->job_mask] = job;
}

static void add_iov(struct queue *queue, const void *base, size_t len)
{
	if (queue->iov_count > 0) {
		struct iovec *last = &queue->iov[queue->iov_count - 1];
		if ((const uint8_t *)last->iov_base + last->iov_len == base) {
			last->iov_len += len;
			return;
		}
	}
	queue->iov[queue->iov_count++] = (struct iovec){.iov_base = (void *)(uintptr_t)base, .iov_len = len};
}

static uint8_t *arena_take(struct queue *queue, uint32_t len)
{
	uint8_t *at = queue->arena + queue->arena_used;
	queue->arena_used += len;
	return at;
}

/* Completes a PDU whose header `pdu` of `hlen` bytes is at the arena's end: digests, padding, data. */
static void finish_pdu(struct queue *queue, uint8_t *pdu, uint8_t flags, uint8_t hlen, const uint8_t *data, uint32_t len)
{
	const struct params *params = &queue->conn.params;
	uint32_t start = hlen + (params->hdgst ? 4 : 0), pdo = 0, plen = start;
	bool ddgst = params->ddgst && len > 0;
	if (len > 0) {
		pdo = align_up(start, params->data_align);
		memset(pdu + start, 0, pdo - start);
		plen = pdo + len + (ddgst ? 4 : 0);
	}
	flags |= (uint8_t)((params->hdgst ? PDU_HDGSTF : 0) | (ddgst ? PDU_DDGSTF : 0));
	pdu_common(pdu, pdu[0], flags, hlen, (uint8_t)pdo, plen);
	if (params->hdgst)
		put32(pdu + hlen, crc32c(pdu, hlen));
	uint32_t head = len > 0 ? pdo : start;
	queue->arena_used += head - hlen;
	add_iov(queue, pdu, head);
	if (len > 0)
		add_iov(queue, data, len);
	if (ddgst) {
		uint8_t *digest = arena_take(queue, 4);
		bool all = data == bench.payload && len == bench.opt.bs;
		put32(digest, all ? queue->payload_crc : crc32c(data, len));
		add_iov(queue, digest, 4);
	}
}

bool queue_in_capsule(const struct slot *slot)
{
	return slot->op == OP_WRITE && bench.opt.bs <= bench.target.icd_max;
}

void queue_sqe(struct queue *queue, uint16_t cid, uint8_t sqe[64], uint64_t now)
{
	struct slot *slot = &queue->slots[cid];
	memset(sqe, 0, 64);
	sqe[0] = slot->op == OP_WRITE ? OPC_WRITE : OPC_READ;
	sqe[1] = 0x40; /* PSDT: SGL */
	put16(sqe + 2, cid);
	put32(sqe + 4, bench.target.nsid);
	put64(sqe + 40, bench.opt.lba_start + slot->unit * bench.unit_blocks);
	put16(sqe + 48, (uint16_t)(bench.unit_blocks - 1));
	slot->sent_ns = now;
	slot->sent = true;
}

static void build_command(struct queue *queue, uint16_t cid, uint64_t now)
{
	struct slot *slot = &queue->slots[cid];
	uint8_t *pdu = arena_take(queue, PDU_CMD_HLEN), *sqe = pdu + PDU_COMMON;
	bool in_capsule = queue_in_capsule(slot);
	memset(pdu, 0, PDU_COMMON);
	pdu[0] = PDU_CAPSULE_CMD;
	queue_sqe(queue, cid, sqe, now);
	sgl_set(sqe, bench.opt.bs, in_capsule);
	const uint8_t *data = slot->data ? slot->data : bench.payload;
	finish_pdu(queue, pdu, 0, PDU_CMD_HLEN, data, in_capsule ? bench.opt.bs : 0);
}

/* One H2CData PDU of a job; true when it was the last one. */
static bool build_h2c(struct queue *queue, struct job *job)
{
	struct slot *slot = &queue->slots[job->cid];
	uint8_t *pdu = arena_take(queue, PDU_DATA_HLEN);
	uint32_t len = job->left < queue->conn.params.maxh2cdata ? job->left : queue->conn.params.maxh2cdata;
	memset(pdu, 0, PDU_DATA_HLEN);
	pdu[0] = PDU_H2C_DATA;
	put16(pdu + 8, job->cid);
	put16(pdu + 10, job->ttag);
	put32(pdu + 12, job->offset);
	put32(pdu + 16, len);
	const uint8_t *data = slot->data ? slot->data : bench.payload;
	finish_pdu(queue, pdu, len == job->left ? PDU_LAST : 0, PDU_DATA_HLEN, data + job->offset, len);
	job->offset += len;
	job->left -= len;
	return job->left == 0;
}

static void build(struct queue *queue, uint64_t now)
{
	queue->iov_at = queue->iov_count = 0;
	queue->arena_used = 0;
	while (queue->job_head != queue->job_tail && queue->iov_count + PDU_IOVS <= TX_IOVS &&
	       queue->arena_used + PDU_SCRATCH <= TX_ARENA) {
		struct job *job = &queue->jobs[queue->job_head & queue->job_mask];
		if (!job->h2c) {
			build_command(queue, job->cid, now);
			queue->job_head++;
		} else if (build_h2c(queue, job)) {
			queue->slots[job->cid].r2ts_open--;
			queue->job_head++;
		}
	}
}

int queue_flush(struct queue *queue, uint64_t now)
{
	if (queue->conn.rdma != NULL)
		return rdma_flush(queue);
	for (;;) {
		if (queue->iov_at == queue->iov_count)
			build(queue, now);
		if (queue->iov_count == 0) {
			queue->want_out = false;
			return 0;
		}
		struct msghdr msg = {
			.msg_iov = queue->iov + queue->iov_at,
			.msg_iovlen = queue->iov_count - queue->iov_at,
		};
		ssize_t sent = sendmsg(queue->conn.fd, &msg, MSG_NOSIGNAL | MSG_DONTWAIT);
		queue->stats->sends++;
		if (sent < 0 && errno == EINTR)
			continue;
		if (sent < 0 && (errno == EAGAIN || errno == EWOULDBLOCK)) {
			queue->want_out = true;
			return 0;
		}
		if (sent < 0)
			return bench_fail(EXIT_RUN_FAILED, "queue %u: send: %m", queue->qid);
		for (size_t left = (size_t)sent; left > 0;) {
			struct iovec *iov = &queue->iov[queue->iov_at];
			size_t part = left < iov->iov_len ? left : iov->iov_len;
			iov->iov_base = (uint8_t *)iov->iov_base + part;
			iov->iov_len -= part;
			left -= part;
			queue->iov_at += iov->iov_len == 0;
		}
	}
}

int queue_submit(struct queue *queue, uint64_t now)
{
	while (queue->inflight < queue->depth) {
		uint16_t cid = queue->free_cids[queue->depth - queue->inflight - 1];
		struct slot *slot = &queue->slots[cid];
		if (!workload_next(&queue->load, slot, queue->inflight, now))
			break;
		slot->busy = true;
		slot->sent = slot->last_seen = slot->left = false;
		slot->received = slot->granted = 0;
		slot->r2ts_open = 0;
		slot->sent_ns = now;
		queue->inflight++;
		if (queue->conn.rdma == NULL)
			push_job(queue, (struct job){.cid = cid});
		else if (rdma_send(queue, cid))
			return -1;
	}
	return queue_flush(queue, now);
}

/* -- receiving ----------------------------------------------------------------------------------------------------- */

static int broken(const struct queue *queue, const char *what)
{
	const uint8_t *h = queue->head;
	return bench_fail(EXIT_RUN_FAILED, "queue %u: %s: PDU type %#x, flags %#x, HLEN %u, PDO %u, PLEN %u, "
			  "then %08x %08x %08x", queue->qid, what, h[0], h[1], h[2], h[3], get32(h + 4),
			  get32(h + 8), get32(h + 12), get32(h + 16));
}

struct slot *queue_slot(struct queue *queue, uint16_t cid)
{
	return cid < queue->depth && queue->slots[cid].busy && queue->slots[cid].sent ? &queue->slots[cid] : NULL;
}

int queue_complete(struct queue *queue, struct slot *slot, uint64_t now)
{
	struct stats *stats = queue->stats;
	uint16_t cid = (uint16_t)(slot - queue->slots);
	if (queue->load.phase == PHASE_RUN && now >= bench.measure_ns && now <= bench.end_ns) {
		struct op_stats *op = &stats->op[slot->op];
		op->ios++;
		hist_add(&op->latency, now - slot->sent_ns);
		stats->last_ns = now;
	}
	slot->busy = false;
	queue->inflight--;
	queue->free_cids[queue->depth - queue->inflight - 1] = cid;
	return workload_completed(&queue->load, slot, stats);
}

/* All data has moved, as far as the PDUs said. */
static int complete(struct queue *queue, struct slot *slot, uint64_t now)
{
	uint32_t moved = slot->op == OP_READ ? slot->received : slot->granted;
	if (!queue_in_capsule(slot) && (moved != bench.opt.bs || slot->r2ts_open > 0))
		return bench_fail(EXIT_RUN_FAILED, "queue %u: %s at unit %llu succeeded after %u of %u bytes", queue->qid,
				  slot->op == OP_READ ? "Read" : "Write", (unsigned long long)slot->unit, moved,
				  bench.opt.bs);
	return queue_complete(queue, slot, now);
}

int queue_status(const struct queue *queue, const struct slot *slot, const uint8_t cqe[16])
{
	uint16_t status = cqe_status(cqe);
	if (status == 0)
		return 0;
	return bench_fail(EXIT_RUN_FAILED, "queue %u: %s at LBA %llu: status %#05x (%s)", queue->qid,
			  slot->op == OP_READ ? "Read" : "Write",
			  (unsigned long long)(bench.opt.lba_start + slot->unit * bench.unit_blocks), status,
			  status_text(status));
}

static int begin_response(struct queue *queue, const uint8_t *head, uint64_t now)
{
	const uint8_t *cqe = head + PDU_COMMON;
	struct slot *slot = queue_slot(queue, get16(cqe + 12));
	if (slot == NULL)
		return broken(queue, "response to no command of ours");
	return queue_status(queue, slot, cqe) ? -1 : complete(queue, slot, now);
}

static int begin_data(struct queue *queue, const uint8_t *head, uint32_t len)
{
	struct slot *slot = queue_slot(queue, get16(head + 8));
	if (slot == NULL || slot->op != OP_READ || slot->last_seen)
		return broken(queue, "C2HData for no Read of ours");
	if (get32(head + 12) != slot->received || get32(head + 16) != len || len == 0 ||
	    len > bench.opt.bs - slot->received)
		return broken(queue, "C2HData out of its place");
	if (head[1] & PDU_SUCCESS && !(head[1] & PDU_LAST))
		return broken(queue, "SUCCESS without LAST_PDU");
	slot->last_seen = head[1] & PDU_LAST;
	queue->data_slot = slot;
	queue->data_flags = head[1];
	queue->data_left = len;
	queue->crc = CRC_START;
	queue->digest_have = 0;
	queue->rx = RX_DATA;
	return 0;
}

static int begin_r2t(struct queue *queue, const uint8_t *head)
{
	struct slot *slot = queue_slot(queue, get16(head + 8));
	uint32_t offset = get32(head + 12), len = get32(head + 16);
	if (slot == NULL || slot->op != OP_WRITE || bench.opt.bs <= bench.target.icd_max)
		return broken(queue, "R2T for no Write of ours");
	if (offset != slot->granted || len == 0 || len > bench.opt.bs - offset)
		return broken(queue, "R2T out of its place");
	if (slot->r2ts_open >= queue->conn.params.maxr2t)
		return broken(queue, "more R2Ts outstanding than MAXR2T");
	slot->granted += len;
	slot->r2ts_open++;
	queue->stats->r2ts++;
	push_job(queue, (struct job){get16(head + 8), get16(head + 10), true, offset, len});
	return 0;
}

static int terminated(const struct queue *queue, const uint8_t *head)
{
	return bench_fail(EXIT_RUN_FAILED, "queue %u: the target ended the connection: C2HTermReq, FES %u, FEI %u",
			  queue->qid, get16(head + 8), get32(head + 10));
}

/* How long the header is, with digest and padding; 0 if the common header is impossible. */
static uint32_t head_len(const struct queue *queue, const uint8_t *head)
{
	const struct params *params = &queue->conn.params;
	uint32_t plen = get32(head + 4), start = PDU_DATA_HLEN + (params->hdgst ? 4 : 0);
	if (head[0] == PDU_C2H_TERM)
		return plen >= PDU_DATA_HLEN && plen <= TERM_LEN_MAX && head[2] == PDU_DATA_HLEN ? PDU_DATA_HLEN : 0;
	if (head[2] != PDU_DATA_HLEN || !(head[1] & PDU_HDGSTF) != !params->hdgst)
		return 0;
	if (head[0] == PDU_CAPSULE_RESP || head[0] == PDU_R2T)
		return plen == start ? start : 0;
	if (head[0] != PDU_C2H_DATA || !(head[1] & PDU_DDGSTF) != !params->ddgst)
		return 0;
	uint32_t pdo = head[3];
	return pdo >= start && pdo <= PDU_PDO_MAX && plen > pdo + (params->ddgst ? 4 : 0) ? pdo : 0;
}

/* A whole header of `len` bytes is in queue->head. */
static int begin_pdu(struct queue *queue, uint32_t len, uint64_t now)
{
	const uint8_t *head = queue->head;
	const struct params *params = &queue->conn.params;
	if (head[0] == PDU_C2H_TERM)
		return terminated(queue, head);
	if (params->hdgst && get32(head + PDU_DATA_HLEN) != crc32c(head, PDU_DATA_HLEN))
		return broken(queue, "header digest error");
	if (head[0] == PDU_CAPSULE_RESP)
		return begin_response(queue, head, now);
	if (head[0] == PDU_R2T)
		return begin_r2t(queue, head);
	return begin_data(queue, head, get32(head + 4) - len - (params->ddgst ? 4 : 0));
}

/* The data of a C2HData, and its digest, are complete. */
static int end_data(struct queue *queue, uint64_t now)
{
	queue->rx = RX_HEADER;
	if (queue->conn.params.ddgst && get32(queue->digest) != ~queue->crc)
		return broken(queue, "data digest error");
	if (!(queue->data_flags & PDU_SUCCESS))
		return 0;
	queue->stats->success_flags++;
	return complete(queue, queue->data_slot, now);
}

static int take_data(struct queue *queue, const uint8_t *data, uint32_t len, uint64_t now)
{
	struct slot *slot = queue->data_slot;
	if (slot->data != NULL)
		memcpy(slot->data + slot->received, data, len);
	if (queue->conn.params.ddgst)
		queue->crc = crc_more(queue->crc, data, len);
	return queue_skipped(queue, len, now);
}

int queue_skipped(struct queue *queue, uint32_t len, uint64_t now)
{
	queue->data_slot->received += len;
	queue->data_left -= len;
	if (queue->data_left > 0)
		return 0;
	if (!queue->conn.params.ddgst)
		return end_data(queue, now);
	queue->rx = RX_DIGEST;
	return 0;
}

/* Adds to the header; sets *used to the bytes taken. */
static int take_head(struct queue *queue, const uint8_t *data, size_t len, size_t *used, uint64_t now)
{
	uint32_t want = queue->head_have < PDU_COMMON ? PDU_COMMON : head_len(queue, queue->head);
	*used = 0;
	for (;;) {
		size_t part = want - queue->head_have < len - *used ? want - queue->head_have : len - *used;
		memcpy(queue->head + queue->head_have, data + *used, part);
		queue->head_have += (uint32_t)part;
		*used += part;
		if (queue->head_have < want)
			return 0;
		if (want > PDU_COMMON)
			break;
		want = head_len(queue, queue->head);
		if (want == 0)
			return broken(queue, "impossible header");
	}
	queue->head_have = 0;
	return begin_pdu(queue, want, now);
}

int queue_receive(struct queue *queue, const uint8_t *data, size_t len, uint64_t now)
{
	queue->rx_ns = now;
	while (len > 0) {
		size_t used = 0;
		int rc = 0;
		if (queue->rx == RX_HEADER) {
			rc = take_head(queue, data, len, &used, now);
		} else if (queue->rx == RX_DATA) {
			used = len < queue->data_left ? len : queue->data_left;
			rc = take_data(queue, data, (uint32_t)used, now);
		} else {
			used = len < 4 - queue->digest_have ? len : 4 - queue->digest_have;
			memcpy(queue->digest + queue->digest_have, data, used);
			queue->digest_have += (uint32_t)used;
			if (queue->digest_have == 4)
				rc = end_data(queue, now);
		}
		if (rc)
			return rc;
		data += used;
		len -= used;
	}
	return 0;
}

int queue_check_timeouts(const struct queue *queue, uint64_t now)
{
	for (uint32_t i = 0; queue->inflight > 0 && i < queue->depth; i++) {
		const struct slot *slot = &queue->slots[i];
		if (slot->busy && now > slot->sent_ns && now - slot->sent_ns > bench.opt.timeout_ns)
			return bench_fail(EXIT_RUN_FAILED, "queue %u: %s at LBA %llu: no answer within %llu ms",
					  queue->qid, slot->op == OP_READ ? "Read" : "Write",
					  (unsigned long long)(bench.opt.lba_start + slot->unit * bench.unit_blocks),
					  (unsigned long long)(bench.opt.timeout_ns / MSEC));
	}
	return 0;
}

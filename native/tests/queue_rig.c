/* SPDX-License-Identifier: BSD-3-Clause */
#include "queue_rig.h"

#include <errno.h>
#include <stdlib.h>

#include "crc32c.h"
#include "engine_priv.h"
#include "pool_priv.h"

struct rig rig;
static struct rig_options rig_opts;

/* -- what engine.c gives to the reactor side */

struct reactor *engine_reactor(unsigned index)
{
	return &rig.r;
}

unsigned engine_reactors(void)
{
	return 1;
}

void engine_post(void (*fn)(void *arg), void *arg)
{
	rig.posted++;
	fn(arg);
}

static void on_upcall(struct dp_queue_key key, uint64_t token, const uint8_t sqe[64], const void *data, size_t len)
{
	rig.upcalls++;
	rig.token = token;
}

const struct dp_events *engine_events(void)
{
	static const struct dp_events events = { .upcall = on_upcall };

	return &events;
}

/* -- the socket */

static ssize_t sink(struct qpair *q, const struct iovec *iov, unsigned n)
{
	size_t total = 0, most = rig.send_most ? rig.send_most : SIZE_MAX;
	int error;

	if (rig.on_send)
		rig.on_send();
	error = rig.send_error;
	rig.send_error = 0;
	if (error)
		return error;

	for (unsigned i = 0; i < n && total < most; i++) {
		size_t len = iov[i].iov_len < most - total ? iov[i].iov_len : most - total;

		if (len > sizeof(rig.out) - rig.out_len)
			rig.out_len = 0; /* nobody looks at so much */
		memcpy(rig.out + rig.out_len, iov[i].iov_base, len);
		rig.out_len += len;
		total += len;
	}
	return (ssize_t)total;
}

static void on_ended(struct qpair *q)
{
	rig.ended++;
}

static void nothing(void *arg)
{
}

void rig_turn(void)
{
	while (!STAILQ_EMPTY(&rig.r.flush) || atomic_load(&rig.r.inbox)) {
		reactor_run_inbox(&rig.r);
		reactor_flush(&rig.r);
	}
}

void rig_feed(const void *bytes, size_t len)
{
	const uint8_t *p = bytes;

	while (len && rig.q->ending == END_NONE) {
		uint32_t room, take;
		uint8_t *to = qpair_rx_room(rig.q, &room);

		take = room < len ? room : (uint32_t)len;
		if (!take || rig.q->rx_paused)
			return; /* the host would have to wait */
		memcpy(to, p, take);
		qpair_rx_bytes(rig.q, take);
		rig_turn();
		p += take;
		len -= take;
	}
}

/* -- drives: malloc bdevs that take pieces, and time */

static const struct bdev_ops *medium; /* what does the work */

static int drive_work(struct bdev_io *io)
{
	const struct iovec one = { io->buf, io->length }, *iov = io->iovcnt ? io->iov : &one;
	unsigned n = io->iovcnt ? io->iovcnt : 1;
	uint64_t at = io->offset;

	if (io->op != BDEV_READ && io->op != BDEV_WRITE)
		return medium->submit(io);
	for (unsigned i = 0; i < n; at += iov[i++].iov_len) {
		uint32_t len = (uint32_t)iov[i].iov_len;
		uint8_t *p = (uint8_t *)(uintptr_t)medium->map(io->bdev, at, &len);

		if (!p)
			return -EIO;
		if (io->op == BDEV_READ)
			memcpy(iov[i].iov_base, p, len);
		else
			memcpy(p, iov[i].iov_base, len);
	}
	if (at != io->offset + io->length)
		abort(); /* the pieces are not what the operation says */
	return 0;
}

static int drive_submit(struct bdev_io *io)
{
	if (!rig.hold || (io->op != BDEV_READ && io->op != BDEV_WRITE))
		return drive_work(io);
	TAILQ_INSERT_TAIL(&rig.held, io, link);
	rig.n_held++;
	return BDEV_PENDING;
}

uint8_t *rig_medium(unsigned nsid)
{
	uint32_t len = 1;

	return (uint8_t *)(uintptr_t)medium->map(rig.bdevs[nsid == 4 ? 3 : 6], 0, &len);
}

void rig_drive(int rc)
{
	struct bdev_io *io = TAILQ_FIRST(&rig.held);

	if (!io)
		abort();
	TAILQ_REMOVE(&rig.held, io, link);
	rig.n_held--;
	bdev_done(io, rc ? rc : drive_work(io));
}

static void drive_destroy(struct bdev *bdev)
{
	medium->destroy(bdev);
}

static const struct bdev_ops drive_ops = { .submit = drive_submit, .destroy = drive_destroy, .scatters = true };

static struct bdev *as_drive(struct bdev *bdev)
{
	medium = bdev->ops;
	bdev->ops = &drive_ops;
	bdev_update_direct(bdev);
	atomic_store(&bdev->pools_allowed, 1ull << (pool_index(rig.pool) - 1));
	return bdev;
}

/* -- set-up */

static struct bdev *open_bdev(enum dp_bdev_kind kind, const char *name, struct bdev *base)
{
	struct dp_bdev_config config = { .kind = kind, .name = name, .block_size = base ? 0 : 512, .num_blocks = RIG_BLOCKS };
	char err[DP_ERR_MAX];
	int rc;
	struct bdev *bdev = bdev_open(&config, base, 1, &rc, err);

	if (!bdev)
		abort();
	return bdev;
}

void rig_view(unsigned namespaces, uint8_t ana_state)
{
	struct ns_config ns[RIG_NS];
	struct ctrlr ctrlr = { .key = 1, .mdts_bytes = 128 * 1024, .copy_formats = 0xF, .owner = rig.owner, .ns = ns };

	for (uint32_t i = 0; i < (rig.pool ? RIG_NS : 3); i++)
		if (namespaces >> i & 1) {
			struct ns_config *each = &ns[ctrlr.n++];

			*each = (struct ns_config){ i + 1, 1, ana_state, false, NULL, rig.bdevs[i] };
			for (unsigned use = 0; i >= 3 && use < POOL_USES; use++)
				each->pool[use] = rig.pool;
			each->strict = rig.strict;
		}
	if (ctrlr_push(&ctrlr, nothing, NULL) < 0)
		abort();
	rig_turn();
}

static void open_bdevs(void)
{
	rig.bdevs[0] = open_bdev(DP_BDEV_MALLOC, "m", NULL);
	rig.bdevs[1] = open_bdev(DP_BDEV_NULL, "n", NULL);
	rig.bdevs[5] = open_bdev(DP_BDEV_MALLOC, "base", NULL);
	rig.bdevs[2] = open_bdev(DP_BDEV_ERROR, "e", rig.bdevs[5]);
	if (!rig.pool)
		return;
	rig.bdevs[3] = as_drive(open_bdev(DP_BDEV_MALLOC, "d", NULL));
	rig.bdevs[6] = as_drive(open_bdev(DP_BDEV_MALLOC, "drive below", NULL));
	rig.bdevs[4] = open_bdev(DP_BDEV_ERROR, "f", rig.bdevs[6]);
	rig.bdevs[4]->base = rig.bdevs[6];
}

static void open_pool(const struct rig_options *o)
{
	struct dp_pool_config config = { .name = "p", .kind = DP_POOL_EMULATED, .bytes = o->peer_bytes };
	char err[DP_ERR_MAX];
	int rc;

	rig.pool = pool_open(&config, false, &rc, err);
	if (!rig.pool)
		abort();
}

void rig_open(const struct rig_options *o)
{
	struct dp_queue config = { .key = { 1, 1 },
				   .fd = -1,
				   .sqsize = o->sqsize ? o->sqsize : 31,
				   .sq_flow_control = o->flow_control,
				   .c2h_success = o->c2h_success,
				   .hdgst = o->hdgst,
				   .ddgst = o->ddgst,
				   .hpda = o->hpda,
				   .cpda = o->cpda,
				   .maxr2t = o->maxr2t,
				   .maxh2cdata = o->maxh2cdata ? o->maxh2cdata : 128 * 1024,
				   .icd_max = 8192 };

	memset(&rig, 0, offsetof(struct rig, out));
	rig.out_len = rig.send_most = rig.posted = rig.upcalls = rig.ended = 0;
	rig_opts = *o;
	rig.r.efd = -1;
	rig.r.sink = sink;
	STAILQ_INIT(&rig.r.flush);
	LIST_INIT(&rig.r.queues);
	LIST_INIT(&rig.r.ctrlrs);
	LIST_INIT(&rig.r.upcalls);
	if (staging_init(&rig.r.pool, o->pool_bytes ? o->pool_bytes : 2u << 20, false) < 0)
		abort();
	rig.r.pool.poison = true;
	TAILQ_INIT(&rig.held);
	rig.owner = 1;
	rig.strict = o->strict;
	if (o->peer_bytes)
		open_pool(o);
	open_bdevs();
	rig_view(0x1F, 1);
	rig.q = qpair_new(&config);
	if (!rig.q)
		abort();
	rig.q->ended = on_ended;
	rig.q->staged_max = rig.r.pool.units * STAGING_UNIT / 4;
	qpair_begin(&rig.r, ctrlr_find(&rig.r, 1), rig.q);
	rig_turn();
}

static void count(void *arg)
{
	++*(unsigned *)arg;
}

static void close_pool(void)
{
	unsigned idle = 0;

	pool_close(rig.pool, count, &idle);
	if (idle != 1)
		abort(); /* a buffer was not put */
	pool_destroy(rig.pool);
}

void rig_close(void)
{
	struct ctrlr_r *c = ctrlr_find(&rig.r, 1);

	/* What the error bdev holds comes back, and nothing is held any more that waited for its memory. */
	bdev_error_inject(rig.bdevs[2], "clear", "failure", 0, 0, 0);
	rig.hold = false;
	while (rig.n_held)
		rig_drive(-EIO);
	for (unsigned i = 0; i < RIG_BDEVS; i++)
		if (rig.bdevs[i] && rig.bdevs[i]->ops->drain)
			rig.bdevs[i]->ops->drain(rig.bdevs[i], &rig.r);
	rig_turn();
	if (!rig.q->finished)
		qpair_end(rig.q, END_ORDERED, "the test is over");
	rig_turn();
	if (rig.ended != 1 || c->view->users || c->old || rig.r.pool.free_bytes != rig.r.pool.units * STAGING_UNIT)
		abort();
	for (unsigned i = 0; i < RIG_BDEVS; i++)
		if (rig.bdevs[i] && (rig.bdevs[i]->r[0].pins || rig.bdevs[i]->r[0].unlocked || rig.bdevs[i]->r[0].in_flight ||
				     !TAILQ_EMPTY(&rig.bdevs[i]->locks.held)))
			abort();
	if (rig.q->rescued || rig.q->at_work)
		abort();
	qpair_free(rig.q);
	if (ctrlr_drop(1, nothing, NULL) < 0)
		abort();
	rig_turn();
	for (unsigned i = 0; i < RIG_BDEVS; i++)
		if (rig.bdevs[i])
			bdev_destroy(rig.bdevs[i]);
	if (rig.pool)
		close_pool();
	staging_fini(&rig.r.pool);
}

/* -- a host */

static size_t frame(uint8_t *pdu, uint8_t type, uint8_t flags, uint32_t hlen, const void *data, uint32_t len)
{
	uint32_t hd = rig_opts.hdgst ? 4 : 0, dd = rig_opts.ddgst && len ? 4 : 0, align = (rig_opts.cpda + 1u) * 4;
	uint32_t pdo = len ? (hlen + hd + align - 1) / align * align : 0, plen = len ? pdo + len + dd : hlen + hd;

	pdu[0] = type;
	pdu[1] = (uint8_t)(flags | (hd ? PDU_F_HDGST : 0) | (dd ? PDU_F_DDGST : 0));
	pdu[2] = (uint8_t)hlen;
	pdu[3] = (uint8_t)pdo;
	put32(pdu + 4, plen);
	if (hd)
		put32(pdu + hlen, crc32c(0, pdu, hlen));
	if (len) {
		memset(pdu + hlen + hd, 0, pdo - hlen - hd);
		memcpy(pdu + pdo, data, len);
	}
	if (dd)
		put32(pdu + pdo + len, crc32c(0, data, len));
	return plen;
}

size_t rig_capsule(uint8_t *pdu, const uint8_t *sqe, const void *icd, uint32_t icd_len)
{
	memcpy(pdu + CH_LEN, sqe, 64);
	return frame(pdu, PDU_CAPSULE_CMD, 0, CMD_HLEN, icd, icd_len);
}

size_t rig_h2c(uint8_t *pdu, uint16_t cid, uint16_t tag, uint32_t offset, const void *data, uint32_t len, bool last)
{
	put16(pdu + 8, cid);
	put16(pdu + 10, tag);
	put32(pdu + 12, offset);
	put32(pdu + 16, len);
	put32(pdu + 20, 0);
	return frame(pdu, PDU_H2C_DATA, last ? PDU_F_LAST : 0, DATA_HLEN, data, len);
}

void rig_sqe(uint8_t *sqe, uint8_t opc, uint16_t cid, uint32_t nsid, uint64_t slba, uint16_t nlb0, uint32_t sgl_len,
	     uint8_t sgl_type)
{
	memset(sqe, 0, 64);
	sqe[0] = opc;
	sqe[1] = 0x40;
	put16(sqe + 2, cid);
	put32(sqe + 4, nsid);
	put32(sqe + 32, sgl_len);
	sqe[39] = sgl_type;
	put32(sqe + 40, (uint32_t)slba);
	put32(sqe + 44, (uint32_t)(slba >> 32));
	put32(sqe + 48, nlb0);
}

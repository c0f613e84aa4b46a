/* SPDX-License-Identifier: BSD-3-Clause
 *
 * spdk_bdev.c: a namespace of a controller in user space, on the reactors: commands into the reactor's own queue pair, which
 * it polls. See spdk_priv.h for who owns a queue pair when.
 */
#include <errno.h>
#include <linux/nvme_ioctl.h>
#include <stdio.h>
#include <stdlib.h>

#include "spdk_priv.h"
#include "spec.h"

#define ZEROES_BLOCKS_MAX 65536u /* of one Write Zeroes */
#define UNMAP_BLOCKS_MAX UINT32_MAX
#define SPIN_NS 150000u /* drives answer in less: asked again and again for so long, then at intervals */
#define INTERVAL_NS 100000
#define EFFECT_UNKNOWN (-ECANCELED) /* it ended with its queue pair: not decided by the drive */

/* What a reactor polls. */
struct polled {
	LIST_HEAD(, sqp) live;
	struct uop timer;
	struct __kernel_timespec interval;
	uint64_t active_ns; /* something was sent or came */
	bool armed;
};

static struct polled polled[REACTORS_MAX];

struct spdk_bdev {
	struct bdev bdev;
	struct sns *ns;
};

static void issue_or_wait(struct sqp *qp, struct bdev_io *io);

static struct sqp *qp_of(const struct bdev_io *io)
{
	return &io->spdk.ns->c->qp[io->r->id];
}

/* -- how it ends */

static int rc_of(const struct spdk_nvme_cpl *cpl)
{
	uint32_t status = (uint32_t)cpl->status.sct << 8 | cpl->status.sc;

	if (!status)
		return 0;
	if (cpl->status.dnr)
		status |= ST_DNR;
	return -(int)(BDEV_NVME | status);
}

/* The drive, or the way to it, has not decided: the same command again may go well. */
static bool undecided(const struct spdk_nvme_cpl *cpl)
{
	if (cpl->status.sct == SPDK_NVME_SCT_PATH)
		return true;
	if (cpl->status.sct != SPDK_NVME_SCT_GENERIC || cpl->status.dnr)
		return cpl->status.sct == SPDK_NVME_SCT_GENERIC && cpl->status.sc == SPDK_NVME_SC_ABORTED_SQ_DELETION;
	switch (cpl->status.sc) {
	case SPDK_NVME_SC_ABORTED_BY_REQUEST:
	case SPDK_NVME_SC_ABORTED_SQ_DELETION:
	case SPDK_NVME_SC_ABORTED_POWER_LOSS:
	case SPDK_NVME_SC_COMMAND_TRANSIENT_TRANSPORT_ERROR:
		return true;
	default:
		return false;
	}
}

/* So all commands of a queue pair that is freed end, by releases before 26.09: as if somebody had asked for it, and for good. */
static bool aborted(const struct spdk_nvme_cpl *cpl)
{
	return cpl->status.sct == SPDK_NVME_SCT_GENERIC && cpl->status.sc == SPDK_NVME_SC_ABORTED_BY_REQUEST;
}

/* Statuses that say something of the host's command or of the medium are the host's; others are ours. */
static int told(int rc, enum bdev_op op)
{
	uint32_t status = (uint32_t)-rc & 0x7FF;

	if (rc == 0 || !(-rc & BDEV_NVME))
		return rc;
	switch (status) {
	case ST_WRITE_PROTECTED:
	case ST_INTERRUPTED:
	case ST_LBA_RANGE:
	case ST_CAPACITY:
	case ST_NS_NOT_READY:
		return rc;
	case 0x182: /* Attempted Write to Read Only Range */
		return -EROFS;
	case ST_INVALID_NS:
		return -ENODEV;
	case ST_DATA_TRANSFER:
	case ST_CMB_USE: /* Invalid Use of Controller Memory Buffer */
		return -EREMOTEIO; /* it did not reach the memory, as the kernel says it: of a pool there is another one */
	default:
		break;
	}
	if (status >> 8 == SPDK_NVME_SCT_MEDIA_ERROR && status != ST_COMPARE_FAILURE)
		return rc;
	if (status >> 8 == SPDK_NVME_SCT_PATH)
		return -ETIMEDOUT;
	return -(int)(BDEV_NVME | ST_INTERNAL | ((uint32_t)-rc & ST_DNR));
}

static void give_bounce(struct sqp *qp, struct bdev_io *io)
{
	if (io->spdk.bounce)
		qp->bounces[qp->n_bounces++] = io->spdk.bounce;
	io->spdk.bounce = NULL;
}

static void over(struct sqp *qp, struct bdev_io *io, int rc)
{
	give_bounce(qp, io);
	if (io->spdk.over)
		io->spdk.over(io, rc);
	else
		bdev_done(io, told(rc, io->op));
}

/* May it be tried once more? */
static bool again(struct sqp *qp, struct bdev_io *io)
{
	int most = (int)qp->c->options.bdev_retry_count;

	if (most != RETRY_FOR_EVER && io->spdk.retries >= (unsigned)most)
		return false;
	io->spdk.retries++;
	counter_add(&qp->retries, 1);
	return true;
}

/* A command of it has succeeded: is there more? False: it is over. */
static bool next_chunk(struct sqp *qp, struct bdev_io *io)
{
	if (io->spdk.bounce && io->op == BDEV_READ && !io->spdk.cmd)
		memcpy(io->buf + io->progress, io->spdk.bounce, io->spdk.chunk);
	give_bounce(qp, io);
	io->progress += io->spdk.chunk;
	return !io->spdk.cmd && io->op != BDEV_FLUSH && io->progress < io->length;
}

static bool zeroes_refused(const struct bdev_io *io, int rc)
{
	uint32_t status = (uint32_t)-rc & 0x7FF;

	return io->op == BDEV_ZERO && !io->spdk.cmd && (status == ST_INVALID_FIELD || status == ST_INVALID_OPCODE) &&
	       !atomic_load(&io->spdk.ns->no_zeroes);
}

static void completed(void *arg, const struct spdk_nvme_cpl *cpl)
{
	struct bdev_io *io = arg;
	struct sqp *qp = qp_of(io);
	int rc = rc_of(cpl);

	if (DP_UNLIKELY(qp->freeing)) { /* on spdk-admin */
		io->rc = rc && (undecided(cpl) || aborted(cpl)) ? EFFECT_UNKNOWN : rc;
		TAILQ_INSERT_TAIL(&qp->orphans, io, link);
		return;
	}
	qp->outstanding--;
	if (DP_UNLIKELY(rc && zeroes_refused(io, rc))) {
		atomic_store(&io->spdk.ns->no_zeroes, true);
		issue_or_wait(qp, io);
	} else if (DP_UNLIKELY(rc && undecided(cpl) && again(qp, io))) {
		give_bounce(qp, io);
		issue_or_wait(qp, io);
	} else if (rc == 0 && next_chunk(qp, io)) {
		issue_or_wait(qp, io);
	} else {
		over(qp, io, rc);
	}
}

/* -- commands */

static void sgl_reset(void *arg, uint32_t offset)
{
	struct bdev_io *io = arg;

	io->spdk.piece = 0;
	while (io->spdk.piece < io->iovcnt && offset >= io->iov[io->spdk.piece].iov_len)
		offset -= (uint32_t)io->iov[io->spdk.piece++].iov_len;
	io->spdk.at = offset;
}

static int sgl_next(void *arg, void **address, uint32_t *length)
{
	struct bdev_io *io = arg;
	const struct iovec *piece = &io->iov[io->spdk.piece];

	if (io->spdk.piece >= io->iovcnt)
		return -EINVAL;
	*address = (uint8_t *)piece->iov_base + io->spdk.at;
	*length = (uint32_t)piece->iov_len - io->spdk.at;
	io->spdk.piece++;
	io->spdk.at = 0;
	return 0;
}

/* Memory that the drive does not reach goes by way of some that it does. False: none is free. */
static bool take_bounce(struct sqp *qp, struct bdev_io *io, uint64_t bytes)
{
	if (!io->spdk.bounce) {
		if (!qp->n_bounces)
			return false;
		io->spdk.bounce = qp->bounces[--qp->n_bounces];
	}
	counter_add(&qp->bounced_ops, 1);
	counter_add(&qp->bounced_bytes, bytes);
	return true;
}

static int issue_rw(struct sqp *qp, struct bdev_io *io, struct spdk_nvme_ns *ns)
{
	unsigned shift = io->spdk.ns->shift;
	uint64_t lba = (io->offset + io->progress) >> shift, left = io->length - io->progress;
	uint32_t flags = io->fua ? NVME_FUA : 0;
	uint8_t *data = io->buf + io->progress;

	io->spdk.chunk = left;
	if (io->iovcnt && io->op == BDEV_READ)
		return spdk_nvme_ns_cmd_readv(ns, qp->q, lba, (uint32_t)(left >> shift), completed, io, flags, sgl_reset, sgl_next);
	if (io->iovcnt)
		return spdk_nvme_ns_cmd_writev(ns, qp->q, lba, (uint32_t)(left >> shift), completed, io, flags, sgl_reset, sgl_next);
	if (DP_UNLIKELY(qp->c->dma && !dp_spdk_mem_reaches(data, left))) {
		io->spdk.chunk = min_u64(left, BOUNCE_BYTES);
		if (!take_bounce(qp, io, io->spdk.chunk))
			return -ENOMEM;
		if (io->op == BDEV_WRITE)
			memcpy(io->spdk.bounce, data, io->spdk.chunk);
		data = io->spdk.bounce;
	}
	if (io->op == BDEV_READ)
		return spdk_nvme_ns_cmd_read(ns, qp->q, data, lba, (uint32_t)(io->spdk.chunk >> shift), completed, io, flags);
	return spdk_nvme_ns_cmd_write(ns, qp->q, data, lba, (uint32_t)(io->spdk.chunk >> shift), completed, io, flags);
}

static int issue_zero(struct sqp *qp, struct bdev_io *io, struct spdk_nvme_ns *ns)
{
	const struct sns *n = io->spdk.ns;
	uint64_t lba = (io->offset + io->progress) >> n->shift, left = io->length - io->progress;
	uint32_t flags = io->fua ? NVME_FUA : 0;

	if (n->zeroes && !atomic_load(&n->no_zeroes)) {
		if (io->unmap && n->zeroes_unmap)
			flags |= NVME_DEAC;
		io->spdk.chunk = min_u64(left, (uint64_t)ZEROES_BLOCKS_MAX << n->shift);
		return spdk_nvme_ns_cmd_write_zeroes(ns, qp->q, lba, (uint32_t)(io->spdk.chunk >> n->shift), completed, io, flags);
	}
	io->spdk.chunk = min_u64(left, BOUNCE_BYTES);
	return spdk_nvme_ns_cmd_write(ns, qp->q, spdk_env_zeroes(), lba, (uint32_t)(io->spdk.chunk >> n->shift), completed, io,
				      flags);
}

static int issue_unmap(struct sqp *qp, struct bdev_io *io, struct spdk_nvme_ns *ns)
{
	unsigned shift = io->spdk.ns->shift;
	uint64_t blocks = min_u64((io->length - io->progress) >> shift, UNMAP_BLOCKS_MAX);
	struct spdk_nvme_dsm_range range = { .length = (uint32_t)blocks, .starting_lba = (io->offset + io->progress) >> shift };

	io->spdk.chunk = blocks << shift;
	return spdk_nvme_ns_cmd_dataset_management(ns, qp->q, SPDK_NVME_DSM_ATTR_DEALLOCATE, &range, 1, completed, io);
}

/* A whole command of somebody else's making, with at most BOUNCE_BYTES where the drive does not reach its data. */
static int issue_cmd(struct sqp *qp, struct bdev_io *io)
{
	const struct nvme_passthru_cmd *from = io->spdk.cmd;
	struct spdk_nvme_cmd cmd = { .opc = from->opcode, .nsid = from->nsid };
	void *data = (void *)(uintptr_t)from->addr;

	cmd.cdw10 = from->cdw10;
	cmd.cdw11 = from->cdw11;
	cmd.cdw12 = from->cdw12;
	cmd.cdw13 = from->cdw13;
	cmd.cdw14 = from->cdw14;
	cmd.cdw15 = from->cdw15;
	io->spdk.chunk = 0;
	if (from->data_len && qp->c->dma && !dp_spdk_mem_reaches(data, from->data_len)) {
		if (from->data_len > BOUNCE_BYTES)
			return -EOPNOTSUPP;
		if (!take_bounce(qp, io, from->data_len))
			return -ENOMEM;
		memcpy(io->spdk.bounce, data, from->data_len);
		data = io->spdk.bounce;
	}
	return spdk_nvme_ctrlr_cmd_io_raw(qp->c->c, qp->q, &cmd, from->data_len ? data : NULL, from->data_len, completed, io);
}

static int issue_one(struct sqp *qp, struct bdev_io *io)
{
	struct spdk_nvme_ns *ns = atomic_load_explicit(&io->spdk.ns->ns, memory_order_acquire);

	if (!ns)
		return -ENODEV;
	if (io->spdk.cmd)
		return issue_cmd(qp, io);
	switch (io->op) {
	case BDEV_READ:
	case BDEV_WRITE:
		return issue_rw(qp, io, ns);
	case BDEV_FLUSH:
		return spdk_nvme_ns_cmd_flush(ns, qp->q, completed, io);
	case BDEV_UNMAP:
		return issue_unmap(qp, io, ns);
	default:
		return issue_zero(qp, io, ns);
	}
}

/* The queue pair, or its controller, does not work any more. */
static void complain(struct sqp *qp)
{
	if (qp->complained)
		return;
	qp->complained = true;
	admin_send(&qp->complain);
}

static void ask(struct sqp *qp)
{
	if (qp->state != QP_NONE)
		return;
	qp->state = QP_ASKED;
	admin_send(&qp->ask);
}

/* 0: in the drive's hands; -EAGAIN: it has to wait; else what is wrong with it. */
static int issue(struct sqp *qp, struct bdev_io *io)
{
	int rc;

	if (DP_UNLIKELY(qp->state != QP_LIVE || qp->complained))
		return qp->dead ? -ENXIO : -EAGAIN;
	qp->outstanding++; /* before: it can be over at once */
	polled[qp->r->id].active_ns = qp->r->now_ns;
	rc = issue_one(qp, io);
	if (DP_LIKELY(rc == 0))
		return 0;
	qp->outstanding--;
	if (rc == -ENXIO) {
		complain(qp);
		return -EAGAIN;
	}
	if (rc == -ENOMEM || rc == -EAGAIN) {
		/* Of what is in flight something comes back; if there is nothing, it is not our own load. */
		return qp->outstanding ? -EAGAIN : -ENOMEM;
	}
	return rc;
}

static void issue_or_wait(struct sqp *qp, struct bdev_io *io)
{
	int rc = issue(qp, io);

	if (DP_UNLIKELY(rc == -EAGAIN)) {
		TAILQ_INSERT_TAIL(&qp->waiting, io, link);
		ask(qp);
	} else if (DP_UNLIKELY(rc)) {
		over(qp, io, rc);
	}
}

static void work_waiting(struct sqp *qp)
{
	struct bdev_io *io;

	while ((io = TAILQ_FIRST(&qp->waiting))) {
		int rc;

		TAILQ_REMOVE(&qp->waiting, io, link);
		rc = issue(qp, io);
		if (rc == -EAGAIN) {
			TAILQ_INSERT_HEAD(&qp->waiting, io, link);
			ask(qp);
			return;
		}
		if (rc)
			over(qp, io, rc);
	}
}

static int spdk_submit(struct bdev_io *io)
{
	struct spdk_bdev *b = dp_container_of(io->bdev, struct spdk_bdev, bdev);
	struct sqp *qp = &b->ns->c->qp[io->r->id];
	int rc;

	io->progress = 0;
	io->spdk.ns = b->ns;
	io->spdk.bounce = io->spdk.cmd = NULL;
	io->spdk.over = NULL;
	io->spdk.retries = 0;
	if ((io->op == BDEV_FLUSH && !io->bdev->write_cache) || (io->op == BDEV_UNMAP && !b->ns->dsm))
		return 0;
	if (DP_UNLIKELY(!TAILQ_EMPTY(&qp->waiting))) {
		TAILQ_INSERT_TAIL(&qp->waiting, io, link);
		ask(qp);
		return BDEV_PENDING;
	}
	rc = issue(qp, io);
	if (DP_LIKELY(rc == 0))
		return BDEV_PENDING;
	if (rc != -EAGAIN)
		return told(rc, io->op);
	TAILQ_INSERT_TAIL(&qp->waiting, io, link);
	ask(qp);
	return BDEV_PENDING;
}

/* -- polling */

static bool poll_live(struct reactor *r)
{
	struct polled *p = &polled[r->id];
	struct sqp *qp, *next;
	bool any = false, busy = false;

	for (qp = LIST_FIRST(&p->live); qp; qp = next) {
		int rc;

		next = LIST_NEXT(qp, live);
		if (!qp->outstanding || qp->complained)
			continue;
		rc = spdk_nvme_qpair_process_completions(qp->q, 0);
		if (DP_UNLIKELY(rc < 0))
			complain(qp);
		any |= rc > 0;
		if (DP_UNLIKELY(!TAILQ_EMPTY(&qp->waiting)))
			work_waiting(qp);
		busy |= qp->outstanding && !qp->complained;
	}
	if (any)
		p->active_ns = r->now_ns;
	r->spin_until_ns = busy ? p->active_ns + SPIN_NS : 0;
	return any;
}

static void timer_over(struct reactor *r, struct uop *op, int res)
{
	polled[r->id].armed = false; /* the reactor is awake, and polls */
}

/* Before the reactor sleeps: nothing wakes it when a drive answers, so it looks by itself while it waits for one. */
static bool rest(struct reactor *r)
{
	struct polled *p = &polled[r->id];
	struct io_uring_sqe *sqe;

	if (poll_live(r))
		return true;
	if (!r->spin_until_ns || p->armed)
		return false;
	p->armed = true;
	p->interval = (struct __kernel_timespec){ .tv_nsec = INTERVAL_NS };
	p->timer.fn = timer_over;
	sqe = reactor_sqe(r);
	io_uring_prep_timeout(sqe, &p->interval, 0, 0);
	io_uring_sqe_set_data(sqe, &p->timer);
	return false;
}

/* -- queue pairs come and go, on their reactor */

/* What ended with its queue pair is tried again, or fails. */
static void adopt_orphans(struct sqp *qp)
{
	struct bdev_io *io;

	while ((io = TAILQ_FIRST(&qp->orphans))) {
		TAILQ_REMOVE(&qp->orphans, io, link);
		qp->outstanding--;
		if (io->rc != 0 && io->rc != EFFECT_UNKNOWN) {
			over(qp, io, io->rc);
		} else if (io->rc == 0 ? next_chunk(qp, io) : !qp->dead && again(qp, io)) {
			give_bounce(qp, io);
			TAILQ_INSERT_TAIL(&qp->waiting, io, link);
		} else {
			over(qp, io, io->rc == 0 ? 0 : qp->dead ? -ENXIO : -(int)(BDEV_NVME | ST_INTERNAL));
		}
	}
}

static void fail_waiting(struct sqp *qp, int rc)
{
	struct bdev_io_list failed = TAILQ_HEAD_INITIALIZER(failed);
	struct bdev_io *io;

	TAILQ_CONCAT(&failed, &qp->waiting, link); /* what follows may submit more */
	while ((io = TAILQ_FIRST(&failed))) {
		TAILQ_REMOVE(&failed, io, link);
		over(qp, io, rc);
	}
}

void sqp_come(struct reactor *r, struct rmsg *msg)
{
	struct come come = *dp_container_of(msg, struct come, msg);
	struct sqp *qp = come.qp;

	free(dp_container_of(msg, struct come, msg));
	qp->dead = come.rc == -ENXIO;
	qp->complained = false;
	if (come.q) {
		qp->q = come.q;
		qp->state = QP_LIVE;
		if (reactor_poller(r, poll_live, rest))
			memset(&polled[r->id], 0, sizeof(polled[0]));
		LIST_INSERT_HEAD(&polled[r->id].live, qp, live);
		work_waiting(qp);
		return;
	}
	qp->state = qp->dead ? QP_BACK : QP_NONE;
	adopt_orphans(qp);
	if (come.rc)
		fail_waiting(qp, come.rc);
	else if (!TAILQ_EMPTY(&qp->waiting))
		ask(qp);
}

void sqp_call(struct reactor *r, struct rmsg *msg)
{
	struct sqp *qp = dp_container_of(msg, struct sqp, call);

	if (qp->state == QP_LIVE)
		LIST_REMOVE(qp, live);
	qp->q = NULL;
	qp->state = QP_BACK;
	admin_send(&qp->give);
}

void sqp_init(struct sqp *qp, struct sctrl *c, struct reactor *r)
{
	qp->c = c;
	qp->r = r;
	qp->state = QP_NONE;
	TAILQ_INIT(&qp->waiting);
	TAILQ_INIT(&qp->orphans);
	qp->ask.fn = sqp_asked;
	qp->complain.fn = sqp_complained;
	qp->give.fn = sqp_given;
	qp->call.fn = sqp_call;
}

/* -- commands of nvme_pass: a worker waits for the reactor */

struct call {
	struct bdev_io io;
	struct rmsg msg;
	sem_t over;
	int rc;
};

static void call_over(struct bdev_io *io, int rc)
{
	struct call *call = dp_container_of(io, struct call, io);

	call->rc = rc < 0 && -rc & BDEV_NVME ? (-rc & 0x7FF) : rc;
	sem_post(&call->over);
}

static void call_start(struct reactor *r, struct rmsg *msg)
{
	struct call *call = dp_container_of(msg, struct call, msg);

	call->io.r = r;
	issue_or_wait(qp_of(&call->io), &call->io);
}

int sns_io_call(struct sns *ns, void *cmd)
{
	static _Atomic unsigned turn;
	struct call call = { .io.spdk = { .ns = ns, .cmd = cmd, .over = call_over }, .msg.fn = call_start };

	sem_init(&call.over, 0, 0);
	reactor_send(engine_reactor(atomic_fetch_add(&turn, 1) % engine_reactors()), &call.msg);
	while (sem_wait(&call.over) < 0 && errno == EINTR)
		;
	sem_destroy(&call.over);
	return call.rc;
}

/* -- the bdev, on the control thread */

static int64_t spdk_look(struct bdev *bdev)
{
	struct sns *ns = dp_container_of(bdev, struct spdk_bdev, bdev)->ns;
	bool there;

	pthread_mutex_lock(&ns->c->lock);
	there = ns->c->shown == DP_SPDK_ENABLED || ns->c->shown == DP_SPDK_RESETTING;
	pthread_mutex_unlock(&ns->c->lock);
	return there ? (int64_t)atomic_load(&ns->blocks) : -ENODEV;
}

static int spdk_resize(struct bdev *bdev, uint64_t num_blocks)
{
	int64_t blocks = spdk_look(bdev);

	if (num_blocks)
		return -EINVAL; /* it has the size of its namespace */
	if (blocks <= 0)
		return -ENODEV;
	atomic_store(&bdev->num_blocks, (uint64_t)blocks);
	return 0;
}

static void spdk_destroy(struct bdev *bdev)
{
	struct spdk_bdev *b = dp_container_of(bdev, struct spdk_bdev, bdev);

	sctrl_bdev_gone(b->ns->c);
	free(b);
}

static const struct bdev_ops spdk_ops = {
	.submit = spdk_submit,
	.resize = spdk_resize,
	.look = spdk_look,
	.destroy = spdk_destroy,
	.scatters = true,
};

static struct sns *find_ns(struct sctrl *c, uint32_t nsid)
{
	struct sns *ns;

	pthread_mutex_lock(&c->lock);
	LIST_FOREACH(ns, &c->namespaces, link)
		if (ns->nsid == nsid)
			break;
	pthread_mutex_unlock(&c->lock);
	return ns;
}

static bool stranger(struct sns *ns, const char *name, char err[DP_ERR_MAX])
{
	bool is;

	pthread_mutex_lock(&ns->c->lock);
	is = ns->stranger[0];
	if (is)
		snprintf(err, DP_ERR_MAX, "bdev %.60s: %.180s", name, ns->stranger);
	pthread_mutex_unlock(&ns->c->lock);
	return is;
}

struct bdev *dp_spdk_bdev_open(const struct dp_bdev_config *config, int *rc, char err[DP_ERR_MAX])
{
	struct sctrl *c = config->ctrlr ? sctrl_find(config->ctrlr) : NULL;
	struct sns *ns = c && !c->leaving ? find_ns(c, config->nsid) : NULL;
	struct spdk_bdev *b;

	*rc = -ENODEV;
	if (ns && stranger(ns, config->name, err))
		return NULL;
	if (!ns || !atomic_load(&ns->blocks)) {
		snprintf(err, DP_ERR_MAX, "bdev %.60s: controller %.60s has no namespace %u", config->name,
			 config->ctrlr ? config->ctrlr : "", config->nsid);
		return NULL;
	}
	if (ns->refused[0]) {
		*rc = -EOPNOTSUPP;
		snprintf(err, DP_ERR_MAX, "bdev %.60s: %.180s", config->name, ns->refused);
		return NULL;
	}
	b = calloc(1, sizeof(*b));
	*rc = -ENOMEM;
	if (!b)
		return NULL;
	b->ns = ns;
	b->bdev.ops = &spdk_ops;
	b->bdev.block_size = ns->facts.block_size;
	b->bdev.physical_block_size = ns->facts.physical_block_size;
	atomic_init(&b->bdev.num_blocks, atomic_load(&ns->blocks));
	b->bdev.readonly = ns->facts.readonly;
	b->bdev.write_cache = ns->facts.write_cache;
	b->bdev.unmap = ns->facts.unmap;
	b->bdev.nvme = ns->pass;
	c->bdevs++;
	return &b->bdev;
}

/* SPDX-License-Identifier: BSD-3-Clause
 *
 * spdk_admin.c: the life of a controller, on spdk-admin: connecting, resets, reconnecting, removal, detaching.
 *
 * A reset goes so: the reactors give their queue pairs back; the controller is disabled (from then on it moves no data);
 * the queue pairs are freed, which ends their commands; it is enabled again; the reactors take their commands back and send
 * them again through new queue pairs.
 */
#include <errno.h>
#include <inttypes.h>
#include <stdarg.h>
#include <stdio.h>
#include <stdlib.h>
#include <unistd.h>

#include "spdk_priv.h"

#define SOON_NS 1000000u      /* something is under way */
#define LOOK_NS 100000000u    /* admin completions of a controller that works: events, keep alive */
#define TRIES 5u              /* for a queue pair of a controller that works otherwise */
#define S_NS 1000000000ull
#define NO_TIMEOUT_US (1800 * 1000000ull) /* in effect; more would overflow the driver's ticks, and 0 is at once */

static LIST_HEAD(, sctrl) ctrlrs = LIST_HEAD_INITIALIZER(ctrlrs);

const char *spdk_sysfs = "/sys/bus/pci/devices";

static uint64_t round_all(uint64_t now);
static void decide(struct sctrl *c);

static const char *text_of(int rc)
{
	return strerror(rc < 0 ? -rc : rc);
}

static void answer(struct job **job, int rc, const char *why)
{
	struct job *it = *job;

	*job = NULL;
	if (it)
		job_done(it, rc, "%s", why);
}

static void enter(struct sctrl *c, enum sctrl_state state)
{
	c->state = state;
	c->next_ns = 0;
}

/* -- reactors */

static void tell(struct sqp *qp, struct spdk_nvme_qpair *q, int rc)
{
	struct come *come = malloc(sizeof(*come));

	if (!come)
		abort(); /* a few bytes; I/O would wait for ever */
	*come = (struct come){ .msg.fn = sqp_come, .qp = qp, .q = q, .rc = rc };
	reactor_send(qp->r, &come->msg);
}

static void tell_all(struct sctrl *c, int rc)
{
	for (unsigned i = 0; i < c->n; i++) {
		c->qp[i].asked = false;
		tell(&c->qp[i], NULL, rc);
	}
}

static void collect(struct sctrl *c, enum sctrl_goal goal)
{
	enter(c, CS_COLLECT);
	c->goal = goal;
	c->left = c->n;
	for (unsigned i = 0; i < c->n; i++)
		reactor_send(c->qp[i].r, &c->qp[i].call);
}

/* Their commands end with them, and wait for what becomes of the controller. */
static void free_qpairs(struct sctrl *c)
{
	for (unsigned i = 0; i < c->n; i++) {
		struct sqp *qp = &c->qp[i];

		if (!qp->made)
			continue;
		qp->freeing = true;
		spdk_nvme_ctrlr_free_io_qpair(qp->made);
		qp->freeing = false;
		qp->made = NULL;
	}
}

static bool bounce_memory(struct sqp *qp)
{
	if (!qp->c->dma || qp->memory)
		return true;
	qp->memory = spdk_dma_malloc((size_t)BOUNCES * BOUNCE_BYTES, 4096, NULL);
	if (!qp->memory)
		return false;
	/* the reactor waits for the answer, so these are ours now */
	for (qp->n_bounces = 0; qp->n_bounces < BOUNCES; qp->n_bounces++)
		qp->bounces[qp->n_bounces] = (uint8_t *)qp->memory + (size_t)qp->n_bounces * BOUNCE_BYTES;
	return true;
}

static void make_qpair(struct sqp *qp)
{
	struct spdk_nvme_io_qpair_opts opts;
	struct sctrl *c = qp->c;

	qp->asked = true;
	if (c->state != CS_READY)
		return; /* answered when it is, or never will be */
	spdk_nvme_ctrlr_get_default_io_qpair_opts(c->c, &opts, sizeof(opts));
	opts.delay_cmd_submit = true; /* one doorbell for all that a round of the reactor has */
	if (opts.io_queue_requests < 2 * opts.io_queue_size)
		opts.io_queue_requests = 2 * opts.io_queue_size;
	qp->made = bounce_memory(qp) ? spdk_nvme_ctrlr_alloc_io_qpair(c->c, &opts, sizeof(opts)) : NULL;
	if (qp->made) {
		qp->asked = false;
		qp->tries = 0;
		tell(qp, qp->made, 0);
	} else if (++qp->tries >= TRIES) {
		qp->asked = false;
		qp->tries = 0;
		log_error("spdk.queue", "%s: no I/O queue for reactor %u", c->name, qp->r->id);
		tell(qp, NULL, -EBUSY);
	}
}

void sqp_asked(struct task *task)
{
	make_qpair(dp_container_of(task, struct sqp, ask));
}

/* -- events of the driver; on spdk-admin, or on the reactor whose queue pair it is */

static void on_event(void *arg, const struct spdk_nvme_cpl *cpl)
{
	struct sctrl *c = arg;

	if (cpl->status.sct == 0 && cpl->status.sc == 0 && (cpl->cdw0 & 7) == SPDK_NVME_ASYNC_EVENT_TYPE_NOTICE &&
	    (cpl->cdw0 >> 8 & 0xFF) == SPDK_NVME_ASYNC_EVENT_NS_ATTR_CHANGED)
		c->rescan = true;
}

static void complain(struct sctrl *c)
{
	if (!atomic_exchange(&c->complaining, true))
		admin_send(&c->complain);
}

/* That it was too late to abort anything is no error. */
static void on_aborted(void *arg, const struct spdk_nvme_cpl *cpl)
{
	struct sctrl *c = arg;

	if ((cpl->status.sct || cpl->status.sc) && c->state == CS_READY)
		complain(c);
}

struct abortion {
	struct task task;
	struct sctrl *c;
	struct spdk_nvme_qpair *q;
	uint16_t cid;
};

static void abort_one(struct task *task)
{
	struct abortion *a = dp_container_of(task, struct abortion, task);

	for (unsigned i = 0; i < a->c->n && a->c->state == CS_READY; i++)
		if (a->c->qp[i].made == a->q)
			spdk_nvme_ctrlr_cmd_abort(a->c->c, a->q, a->cid, on_aborted, a->c);
	free(a);
}

static void on_timeout(void *arg, struct spdk_nvme_ctrlr *ctrlr, struct spdk_nvme_qpair *q, uint16_t cid)
{
	struct sctrl *c = arg;
	struct abortion *a;

	atomic_fetch_add(&c->timeouts, 1);
	if (c->options.action_on_timeout == DP_SPDK_ACTION_RESET || (!q && c->options.action_on_timeout)) {
		complain(c);
	} else if (c->options.action_on_timeout == DP_SPDK_ACTION_ABORT) {
		a = malloc(sizeof(*a));
		if (!a)
			return;
		*a = (struct abortion){ { .fn = abort_one }, c, q, cid };
		admin_send(&a->task);
	}
}

/* -- trouble */

static void gone(struct sctrl *c, const char *why)
{
	struct dp_spdk_hold *hold;

	pthread_mutex_lock(&c->lock);
	LIST_FOREACH(hold, &c->holds, link)
		hold->gone(hold->arg, why);
	pthread_mutex_unlock(&c->lock);
}

static void trouble(struct sctrl *c, const char *why)
{
	if (c->state != CS_READY)
		return;
	log_warning("spdk.trouble", "%s: %s; it is being reset", c->name, why);
	c->since_ns = dp_now_ns();
	sctrl_shown(c, DP_SPDK_RESETTING);
	gone(c, "its controller is being reset");
	collect(c, GOAL_RESET);
}

static void removed(struct sctrl *c)
{
	log_error("spdk.removed", "%s: %s is gone", c->name, c->trid.traddr);
	sctrl_shown(c, DP_SPDK_REMOVED);
	gone(c, "its drive was removed");
	spdk_nvme_ctrlr_fail(c->c);
	collect(c, GOAL_REMOVE);
}

static void failed(struct sctrl *c, const char *why)
{
	log_error("spdk.failed", "%s: %s", c->name, why);
	enter(c, CS_FAILED);
	sctrl_shown(c, DP_SPDK_FAILED);
	sns_none(c);
	tell_all(c, -ENXIO);
	answer(&c->reset_job, -EIO, why);
	sctrl_changed(c);
	decide(c);
}

void sqp_complained(struct task *task)
{
	trouble(dp_container_of(task, struct sqp, complain)->c, "an I/O queue does not work any more");
}

static void ctrlr_complained(struct task *task)
{
	struct sctrl *c = dp_container_of(task, struct sctrl, complain);

	atomic_store(&c->complaining, false);
	trouble(c, "a command has timed out");
}

/* -- it works */

static void remember(struct sctrl *c)
{
	const uint8_t *data = (const uint8_t *)spdk_nvme_ctrlr_get_data(c->c);

	pthread_mutex_lock(&c->lock);
	identify_text(c->serial, data + 4, sizeof(c->serial) - 1);
	identify_text(c->model, data + 24, sizeof(c->model) - 1);
	identify_text(c->firmware, data + 64, sizeof(c->firmware) - 1);
	c->cntlid = get16(data + 78);
	c->oncs = get16(data + 520);
	c->vendor = get16(data);
	identify_text(c->own_nqn, data + 768, sizeof(c->own_nqn) - 1);
	c->mdts_bytes = spdk_nvme_ctrlr_get_max_xfer_size(c->c);
	pthread_mutex_unlock(&c->lock);
}

static void works(struct sctrl *c)
{
	enter(c, CS_READY);
	c->rescan = false;
	sns_scan(c);
	remember(c);
	sctrl_shown(c, DP_SPDK_ENABLED);
	tell_all(c, 0);
	answer(&c->reset_job, 0, "");
	if (c->came_up)
		sctrl_changed(c);
	c->came_up = true;
	answer(&c->attach_job, 0, "");
	decide(c);
}

static void reset_over(struct sctrl *c)
{
	pthread_mutex_lock(&c->lock);
	c->resets++;
	pthread_mutex_unlock(&c->lock);
	log_info("spdk.reset", "%s works again", c->name);
	works(c);
}

/* An attempt to reconnect has come to nothing. */
static void not_yet(struct sctrl *c, const char *why)
{
	uint64_t waited = dp_now_ns() - c->since_ns;

	if (c->options.ctrlr_loss_timeout_sec >= 0 && waited >= (uint64_t)c->options.ctrlr_loss_timeout_sec * S_NS) {
		failed(c, why);
		return;
	}
	enter(c, CS_WAIT);
	c->next_ns = dp_now_ns() + c->options.reconnect_delay_sec * S_NS;
	decide(c);
}

static void fast_fail(struct sctrl *c)
{
	uint64_t limit = c->options.fast_io_fail_timeout_sec * S_NS;

	if (limit && !c->failing_fast && dp_now_ns() - c->since_ns >= limit) {
		c->failing_fast = true;
		tell_all(c, -ENXIO);
	}
}

static void disconnect(struct sctrl *c)
{
	int rc = spdk_nvme_ctrlr_disconnect(c->c);

	if (rc == 0) {
		enter(c, CS_DISCONNECTING);
		return;
	}
	free_qpairs(c);
	not_yet(c, rc == -ENXIO ? "it has been removed" : "it cannot be reset");
}

/* -- connecting */

/* arg: the options that were given; the driver has nothing else for that. */
static void attached(void *arg, const struct spdk_nvme_transport_id *trid, struct spdk_nvme_ctrlr *ctrlr,
		     const struct spdk_nvme_ctrlr_opts *opts)
{
	struct sctrl *c = dp_container_of(arg, struct sctrl, opts);

	c->c = ctrlr;
}

static bool begin_connect(struct sctrl *c)
{
	struct spdk_nvme_ctrlr_opts *opts = &c->opts;

	spdk_nvme_ctrlr_get_default_ctrlr_opts(opts, sizeof(*opts));
	opts->num_io_queues = c->n;
	opts->header_digest = c->hdgst;
	opts->data_digest = c->ddgst;
	opts->disable_error_logging = true;
	if (c->options.keep_alive_timeout_ms)
		opts->keep_alive_timeout_ms = (uint32_t)c->options.keep_alive_timeout_ms;
	if (c->hostnqn[0])
		snprintf(opts->hostnqn, sizeof(opts->hostnqn), "%s", c->hostnqn);
	snprintf(opts->src_addr, sizeof(opts->src_addr), "%s", c->hostaddr);
	snprintf(opts->src_svcid, sizeof(opts->src_svcid), "%s", c->hostsvcid);
	enter(c, CS_CONNECTING);
	c->c = NULL;
	c->probe = spdk_nvme_connect_async(&c->trid, opts, attached);
	return c->probe != NULL;
}

static void begin_detach(struct sctrl *c)
{
	sns_none(c);
	c->detach = NULL;
	enter(c, CS_DETACHING);
	if (c->c && spdk_nvme_detach_async(c->c, &c->detach) != 0)
		c->detach = NULL;
}

static void not_connected(struct sctrl *c, const char *why)
{
	if (!c->came_up) {
		enter(c, CS_GONE);
		LIST_REMOVE(c, admin_link);
		answer(&c->attach_job, -ENODEV, why); /* then the control thread frees it */
		return;
	}
	enter(c, CS_REMOVED);
	c->next_ns = dp_now_ns() + atomic_load(&spdk_hotplug_period_us) * 1000;
	answer(&c->reset_job, -ENODEV, why);
	decide(c);
}

static void connected(struct sctrl *c)
{
	struct spdk_nvme_ctrlr_opts const *opts = spdk_nvme_ctrlr_get_opts(c->c);
	uint32_t queues = opts->num_io_queues;

	if (queues < c->n) {
		snprintf(c->trouble, sizeof(c->trouble), "it grants %u I/O queues, and there are %u reactors", queues, c->n);
		c->refused = true;
		begin_detach(c);
		return;
	}
	spdk_nvme_ctrlr_register_aer_callback(c->c, on_event, c);
	if (c->options.timeout_us || c->options.timeout_admin_us)
		spdk_nvme_ctrlr_register_timeout_callback(c->c, c->options.timeout_us ? c->options.timeout_us : NO_TIMEOUT_US,
							  c->options.timeout_admin_us ? c->options.timeout_admin_us :
							  c->options.timeout_us, on_timeout, c);
	works(c);
}

static void step_connecting(struct sctrl *c)
{
	int rc = spdk_nvme_probe_poll_async(c->probe);

	if (rc == -EAGAIN)
		return;
	c->probe = NULL;
	if (c->c)
		connected(c);
	else
		not_connected(c, "the controller cannot be reached, or does not work; the log says more");
}

static void step_disconnecting(struct sctrl *c)
{
	if (spdk_nvme_ctrlr_process_admin_completions(c->c) >= 0)
		return;
	free_qpairs(c); /* it is disabled: nothing of it moves data any more */
	spdk_nvme_ctrlr_reconnect_async(c->c);
	enter(c, CS_RECONNECTING);
}

static void step_reconnecting(struct sctrl *c)
{
	int rc = spdk_nvme_ctrlr_reconnect_poll_async(c->c);

	fast_fail(c);
	if (rc == -EAGAIN)
		return;
	c->failing_fast = false;
	if (rc == 0)
		reset_over(c);
	else
		not_yet(c, "it does not come back after a reset");
}

static void detached(struct sctrl *c)
{
	c->c = NULL;
	if (c->refused) {
		c->refused = false;
		not_connected(c, c->trouble);
	} else if (c->goal == GOAL_DETACH) {
		enter(c, CS_GONE);
		LIST_REMOVE(c, admin_link);
		answer(&c->detach_job, 0, ""); /* the same */
	} else {
		enter(c, CS_REMOVED);
		answer(&c->reset_job, -ENODEV, "the drive was removed");
		decide(c);
	}
}

static void step_detaching(struct sctrl *c)
{
	if (c->detach && spdk_nvme_detach_poll_async(c->detach) == -EAGAIN)
		return;
	c->detach = NULL;
	detached(c);
}

/* All reactors have given their queue pairs back. */
static void collected(struct sctrl *c)
{
	if (c->goal == GOAL_RESET && c->c) {
		disconnect(c);
		return;
	}
	free_qpairs(c);
	if (c->goal == GOAL_RESET) { /* it was removed before: look whether it is back */
		if (!begin_connect(c))
			not_connected(c, "the drive is not there");
		return;
	}
	enter(c, CS_LEAVING);
	if (c->goal == GOAL_REMOVE) { /* nothing waits for a drive that is gone; its memory may still be held */
		sns_none(c);
		tell_all(c, -ENXIO);
		sctrl_changed(c);
	}
}

void sqp_given(struct task *task)
{
	struct sctrl *c = dp_container_of(task, struct sqp, give)->c;

	if (--c->left == 0)
		collected(c);
}

/* -- rounds */

static bool held(struct sctrl *c)
{
	bool any;

	pthread_mutex_lock(&c->lock);
	any = !LIST_EMPTY(&c->holds);
	pthread_mutex_unlock(&c->lock);
	return any;
}

static bool device_there(const struct sctrl *c, bool *ours)
{
	char path[300], driver[256];
	ssize_t len;

	snprintf(path, sizeof(path), "%s/%s/driver", spdk_sysfs, c->trid.traddr);
	len = readlink(path, driver, sizeof(driver) - 1);
	driver[len < 0 ? 0 : len] = 0;
	*ours = strstr(driver, "vfio-pci") || strstr(driver, "uio_pci_generic") || strstr(driver, "igb_uio");
	snprintf(path, sizeof(path), "%s/%s", spdk_sysfs, c->trid.traddr);
	return access(path, F_OK) == 0;
}

static bool device_gone(struct sctrl *c)
{
	struct spdk_pci_device *device = spdk_nvme_ctrlr_get_pci_device(c->c);
	bool ours;

	return (device && spdk_pci_device_is_removed(device)) || !device_there(c, &ours);
}

/* Once a second, as they come in crowds. */
static void tell_timeouts(struct sctrl *c, uint64_t now)
{
	uint64_t timeouts = atomic_load(&c->timeouts);

	if (timeouts == c->told_timeouts || now < c->told_ns + S_NS)
		return;
	log_warning("spdk.timeout", "%s: %" PRIu64 " commands have taken longer than they may", c->name,
		    timeouts - c->told_timeouts);
	c->told_timeouts = timeouts;
	c->told_ns = now;
}

static void step_ready(struct sctrl *c, uint64_t now)
{
	tell_timeouts(c, now);
	if (c->dma && device_gone(c)) {
		removed(c);
		return;
	}
	if (spdk_nvme_ctrlr_process_admin_completions(c->c) < 0) {
		trouble(c, "its admin queue does not work any more");
		return;
	}
	if (c->dma && spdk_nvme_ctrlr_get_regs_csts(c->c).bits.cfs) {
		trouble(c, "it reports a fatal error");
		return;
	}
	for (unsigned i = 0; i < c->n; i++)
		if (c->qp[i].asked)
			make_qpair(&c->qp[i]);
	if (c->rescan) {
		c->rescan = false;
		sns_scan(c);
		sctrl_changed(c);
	}
}

static void step_removed(struct sctrl *c, uint64_t now)
{
	bool ours;

	if (!atomic_load(&spdk_hotplug) || now < c->next_ns)
		return;
	c->next_ns = now + atomic_load(&spdk_hotplug_period_us) * 1000;
	if (device_there(c, &ours) && ours)
		collect(c, GOAL_RESET);
}

static uint64_t step(struct sctrl *c, uint64_t now)
{
	switch (c->state) {
	case CS_CONNECTING:
		step_connecting(c);
		return now + SOON_NS;
	case CS_READY:
		step_ready(c, now);
		return now + (c->busy || c->state != CS_READY ? SOON_NS : LOOK_NS);
	case CS_DISCONNECTING:
		step_disconnecting(c);
		return now + SOON_NS;
	case CS_RECONNECTING:
		step_reconnecting(c);
		return now + SOON_NS;
	case CS_DETACHING:
		step_detaching(c);
		return now + SOON_NS;
	case CS_LEAVING:
		if (!held(c)) /* what is mapped of it goes with it */
			begin_detach(c);
		return now + LOOK_NS / 10;
	case CS_WAIT:
		fast_fail(c);
		if (now >= c->next_ns)
			disconnect(c);
		return now + LOOK_NS;
	case CS_FAILED:
		if (!c->dma || !c->c)
			return UINT64_MAX;
		if (device_gone(c))
			removed(c);
		return now + LOOK_NS;
	case CS_REMOVED:
		step_removed(c, now);
		return atomic_load(&spdk_hotplug) ? now + LOOK_NS : UINT64_MAX;
	default:
		return UINT64_MAX; /* a message comes */
	}
}

static uint64_t round_all(uint64_t now)
{
	uint64_t next = UINT64_MAX;
	struct sctrl *c, *after;

	for (c = LIST_FIRST(&ctrlrs); c; c = after) {
		after = LIST_NEXT(c, admin_link);
		next = min_u64(next, step(c, now));
	}
	return next;
}

/* -- what the control thread wants */

/* What has been asked for meanwhile, when the controller stands somewhere. */
static void decide(struct sctrl *c)
{
	bool stands = c->state == CS_READY || c->state == CS_FAILED || c->state == CS_WAIT || c->state == CS_REMOVED;

	if (!stands)
		return;
	if (c->detach_job) {
		collect(c, GOAL_DETACH);
	} else if (c->reset_job && c->state != CS_WAIT) {
		c->since_ns = dp_now_ns();
		if (c->state == CS_READY)
			trouble(c, "somebody asked for it");
		else
			collect(c, GOAL_RESET);
	} else if (c->reset_job) {
		c->next_ns = 0;
	}
}

void sctrl_attach(struct task *task)
{
	struct job *job = dp_container_of(task, struct job, task);
	struct sctrl *c = job->c;

	admin_round(round_all);
	c->attach_job = job;
	c->complain.fn = ctrlr_complained;
	LIST_INSERT_HEAD(&ctrlrs, c, admin_link);
	if (!begin_connect(c))
		not_connected(c, "the controller is not there; PCIe: is it bound to vfio-pci?");
}

void sctrl_detach(struct task *task)
{
	struct job *job = dp_container_of(task, struct job, task);

	job->c->detach_job = job;
	decide(job->c);
}

void sctrl_reset(struct task *task)
{
	struct job *job = dp_container_of(task, struct job, task);

	if (job->c->reset_job) {
		job_done(job, -EBUSY, "controller %s is being reset already", job->c->name);
		return;
	}
	job->c->reset_job = job;
	decide(job->c);
}

static void health_over(void *arg, const struct spdk_nvme_cpl *cpl)
{
	struct job *job = arg;

	job->c->busy--;
	memcpy(job->page, job->dma, sizeof(job->page));
	spdk_dma_free(job->dma);
	if (cpl->status.sct == 0 && cpl->status.sc == 0)
		job_done(job, 0, "%s", "");
	else
		job_done(job, -EIO, "the controller has refused its health log: status %u/%u", cpl->status.sct, cpl->status.sc);
}

void sctrl_health(struct task *task)
{
	struct job *job = dp_container_of(task, struct job, task);
	struct sctrl *c = job->c;
	int rc;

	if (c->state != CS_READY) {
		job_done(job, -EAGAIN, "controller %s does not work now", c->name);
		return;
	}
	job->dma = spdk_dma_zmalloc(sizeof(job->page), 4096, NULL);
	rc = job->dma ? spdk_nvme_ctrlr_cmd_get_log_page(c->c, SPDK_NVME_LOG_HEALTH_INFORMATION, SPDK_NVME_GLOBAL_NS_TAG, job->dma,
							 sizeof(job->page), 0, health_over, job) :
			-ENOMEM;
	if (rc == 0) {
		c->busy++;
		return;
	}
	spdk_dma_free(job->dma);
	job_done(job, rc, "controller %s: %s", c->name, text_of(rc));
}

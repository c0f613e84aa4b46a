/* SPDX-License-Identifier: BSD-3-Clause
 *
 * spdk_ctrlr.c: controllers as the control thread sees them. What they do is in spdk_admin.c.
 */
#include <errno.h>
#include <stdarg.h>
#include <stdio.h>
#include <stdlib.h>
#include <strings.h>

#include "spdk_priv.h"

#define HOTPLUG_PERIOD_US 100000u
#define HOTPLUG_PERIOD_MIN_US 10000u

static LIST_HEAD(, sctrl) all = LIST_HEAD_INITIALIZER(all);
static struct dp_spdk_options options = { .bdev_retry_count = 3, .action_on_timeout = DP_SPDK_ACTION_NONE };
static void (*watcher)(const char *name);

_Atomic bool spdk_hotplug;
_Atomic uint64_t spdk_hotplug_period_us = HOTPLUG_PERIOD_US;

struct sctrl *sctrl_find(const char *name)
{
	struct sctrl *c;

	LIST_FOREACH(c, &all, link)
		if (strcmp(c->name, name) == 0)
			return c;
	return NULL;
}

static void ctrlr_free(struct sctrl *c)
{
	struct sns *ns;

	LIST_REMOVE(c, link);
	while ((ns = LIST_FIRST(&c->namespaces)) || (ns = LIST_FIRST(&c->former))) {
		LIST_REMOVE(ns, link);
		nvme_pass_close(ns->pass);
		free(ns);
	}
	for (unsigned i = 0; i < c->n; i++)
		spdk_dma_free(c->qp[i].memory);
	pthread_mutex_destroy(&c->lock);
	free(c->known);
	free(c);
}

/* -- jobs */

static void job_tell(void *arg)
{
	struct job *job = arg;

	if (job->health)
		job->health(job->arg, job->rc, job->err, job->page);
	else
		job->done(job->arg, job->rc, job->err);
	free(job);
}

void job_done(struct job *job, int rc, const char *format, ...)
{
	va_list args;

	va_start(args, format);
	vsnprintf(job->err, sizeof(job->err), format, args);
	va_end(args);
	job->rc = rc;
	engine_post(job_tell, job);
}

static struct job *job_new(struct sctrl *c, void (*fn)(struct task *task), dp_spdk_done_fn done, void *arg)
{
	struct job *job = calloc(1, sizeof(*job));

	if (!job)
		return NULL;
	job->task.fn = fn;
	job->c = c;
	job->done = done;
	job->arg = arg;
	return job;
}

/* -- attach */

static bool copy_text(char *to, size_t size, const char *from)
{
	if (from && strlen(from) >= size)
		return false;
	snprintf(to, size, "%s", from ? from : "");
	return true;
}

static int parse_address(struct sctrl *c, const struct dp_spdk_attach *a, char err[DP_ERR_MAX])
{
	struct spdk_nvme_transport_id *trid = &c->trid;
	bool fits = copy_text(trid->traddr, sizeof(trid->traddr), a->traddr) &&
		    copy_text(trid->trsvcid, sizeof(trid->trsvcid), a->trsvcid) &&
		    copy_text(trid->subnqn, sizeof(trid->subnqn), a->subnqn) &&
		    copy_text(c->hostnqn, sizeof(c->hostnqn), a->hostnqn) &&
		    copy_text(c->hostaddr, sizeof(c->hostaddr), a->hostaddr) &&
		    copy_text(c->hostsvcid, sizeof(c->hostsvcid), a->hostsvcid);

	if (!fits) {
		snprintf(err, DP_ERR_MAX, "an address or a name is too long");
		return -EINVAL;
	}
	if (strcasecmp(a->trtype, "PCIe") == 0) {
		struct spdk_pci_addr bdf;

		if (spdk_pci_addr_parse(&bdf, a->traddr) != 0 ||
		    spdk_pci_addr_fmt(trid->traddr, sizeof(trid->traddr), &bdf) != 0) {
			snprintf(err, DP_ERR_MAX, "traddr: '%.60s' is no address of a PCI device", a->traddr);
			return -EINVAL;
		}
		c->dma = true;
		spdk_nvme_trid_populate_transport(trid, SPDK_NVME_TRANSPORT_PCIE);
		return 0;
	}
	if (strcasecmp(a->trtype, "TCP") != 0) {
		snprintf(err, DP_ERR_MAX, "trtype: '%.60s': PCIe and TCP are what there is", a->trtype);
		return -EINVAL;
	}
	if (!a->trsvcid || !a->subnqn) {
		snprintf(err, DP_ERR_MAX, "trtype TCP needs trsvcid and subnqn");
		return -EINVAL;
	}
	spdk_nvme_trid_populate_transport(trid, SPDK_NVME_TRANSPORT_TCP);
	if (spdk_nvme_transport_id_parse_adrfam(&trid->adrfam, a->adrfam ? a->adrfam : "IPv4") != 0 ||
	    (trid->adrfam != SPDK_NVMF_ADRFAM_IPV4 && trid->adrfam != SPDK_NVMF_ADRFAM_IPV6)) {
		snprintf(err, DP_ERR_MAX, "adrfam: '%.60s': IPv4 and IPv6 are what there is", a->adrfam);
		return -EINVAL;
	}
	return 0;
}

static int check_timeouts(const struct dp_spdk_options *o, char err[DP_ERR_MAX])
{
	const char *wrong = NULL;

	if (o->ctrlr_loss_timeout_sec < -1)
		wrong = "ctrlr_loss_timeout_sec: -1 (never), 0 (at once) or seconds";
	else if ((o->ctrlr_loss_timeout_sec == 0) != (o->reconnect_delay_sec == 0))
		wrong = "reconnect_delay_sec and ctrlr_loss_timeout_sec: both, or none";
	else if (o->ctrlr_loss_timeout_sec > 0 && o->reconnect_delay_sec > (uint32_t)o->ctrlr_loss_timeout_sec)
		wrong = "reconnect_delay_sec is longer than ctrlr_loss_timeout_sec";
	else if (o->fast_io_fail_timeout_sec && !o->reconnect_delay_sec)
		wrong = "fast_io_fail_timeout_sec needs reconnect_delay_sec";
	else if (o->fast_io_fail_timeout_sec && o->ctrlr_loss_timeout_sec > 0 &&
		 o->fast_io_fail_timeout_sec > (uint32_t)o->ctrlr_loss_timeout_sec)
		wrong = "fast_io_fail_timeout_sec is longer than ctrlr_loss_timeout_sec";
	if (wrong)
		snprintf(err, DP_ERR_MAX, "%s", wrong);
	return wrong ? -EINVAL : 0;
}

static struct sctrl *ctrlr_new(const struct dp_spdk_attach *a, int *rc, char err[DP_ERR_MAX])
{
	struct sctrl *c = calloc(1, sizeof(*c) + engine_reactors() * sizeof(struct sqp));

	*rc = -ENOMEM;
	if (!c)
		return NULL;
	snprintf(c->name, sizeof(c->name), "%s", a->name);
	c->options = options;
	if (a->own_times) {
		c->options.ctrlr_loss_timeout_sec = a->ctrlr_loss_timeout_sec;
		c->options.reconnect_delay_sec = a->reconnect_delay_sec;
		c->options.fast_io_fail_timeout_sec = a->fast_io_fail_timeout_sec;
	}
	c->hdgst = a->hdgst;
	c->ddgst = a->ddgst;
	c->state = CS_CONNECTING;
	c->shown = DP_SPDK_RESETTING;
	*rc = parse_address(c, a, err);
	if (*rc == 0)
		*rc = check_timeouts(&c->options, err);
	if (*rc == 0 && a->num_known) {
		c->known = calloc(a->num_known, sizeof(*c->known));
		c->num_known = a->num_known;
		if (c->known)
			memcpy(c->known, a->known, a->num_known * sizeof(*c->known));
		else
			*rc = -ENOMEM;
	}
	if (*rc < 0) {
		free(c);
		return NULL;
	}
	pthread_mutex_init(&c->lock, NULL);
	c->n = engine_reactors();
	for (unsigned i = 0; i < c->n; i++)
		sqp_init(&c->qp[i], c, engine_reactor(i));
	LIST_INSERT_HEAD(&all, c, link);
	return c;
}

struct attaching {
	struct sctrl *c;
	dp_spdk_done_fn done;
	void *arg;
};

static void attach_over(void *arg, int rc, const char *err)
{
	struct attaching at = *(struct attaching *)arg;
	char text[DP_ERR_MAX];

	free(arg);
	text[0] = 0;
	if (rc < 0) {
		snprintf(text, sizeof(text), "controller %.60s: %.170s", at.c->name, err);
		ctrlr_free(at.c);
	} else {
		at.c->attached = true;
	}
	at.done(at.arg, rc, text);
}

static void env_ready(void *arg, int rc, const char *err)
{
	struct attaching *at = arg;
	struct job *job;

	if (rc == 0 && at->c->dma && !spdk_env_dma()) {
		rc = -ENOMEM;
		err = "this release of SPDK needs huge pages for drives on PCI Express, and the data plane started it without: "
		      "reserve some, restart";
	}
	job = rc < 0 ? NULL : job_new(at->c, sctrl_attach, attach_over, at);
	if (job)
		admin_send(&job->task);
	else
		attach_over(at, rc < 0 ? rc : -ENOMEM, rc < 0 ? err : "no memory");
}

static bool same_place(const struct sctrl *c, const struct sctrl *other)
{
	return c != other && spdk_nvme_transport_id_compare(&c->trid, &other->trid) == 0;
}

void dp_spdk_attach(const struct dp_spdk_attach *attach, dp_spdk_done_fn done, void *arg)
{
	char err[DP_ERR_MAX] = "";
	struct attaching *at;
	struct sctrl *c, *other;
	int rc = -EINVAL;

	if (!attach->name[0] || strlen(attach->name) > DP_SPDK_NAME_MAX)
		snprintf(err, sizeof(err), "a controller's name has 1 to %d bytes", DP_SPDK_NAME_MAX);
	if (sctrl_find(attach->name)) {
		rc = -EEXIST;
		snprintf(err, sizeof(err), "a controller named %.60s exists already", attach->name);
	}
	c = err[0] ? NULL : ctrlr_new(attach, &rc, err);
	if (!c) {
		done(arg, rc, err[0] ? err : strerror(-rc));
		return;
	}
	LIST_FOREACH(other, &all, link)
		if (same_place(c, other)) {
			snprintf(err, sizeof(err), "it is attached already, as %.60s", other->name);
			ctrlr_free(c);
			done(arg, -EEXIST, err);
			return;
		}
	at = malloc(sizeof(*at));
	if (!at)
		abort();
	*at = (struct attaching){ c, done, arg };
	dp_spdk_start(env_ready, at);
}

/* -- detach */

static void detach_over(void *arg, int rc, const char *err)
{
	struct attaching at = *(struct attaching *)arg;

	free(arg);
	ctrlr_free(at.c);
	at.done(at.arg, rc, err);
}

static void detach_if_free(struct sctrl *c)
{
	struct job *job = c->detaching;

	if (!job || c->bdevs)
		return;
	c->detaching = NULL;
	admin_send(&job->task);
}

void sctrl_bdev_gone(struct sctrl *c)
{
	c->bdevs--;
	detach_if_free(c);
}

void dp_spdk_detach(const char *name, dp_spdk_done_fn done, void *arg)
{
	struct sctrl *c = sctrl_find(name);
	struct attaching *at;
	bool held;

	if (!c || c->leaving || !c->attached) {
		done(arg, c ? -EBUSY : -ENODEV, c ? "the controller is being attached or detached" : "there is no such controller");
		return;
	}
	pthread_mutex_lock(&c->lock);
	held = !LIST_EMPTY(&c->holds);
	pthread_mutex_unlock(&c->lock);
	if (held) {
		done(arg, -EBUSY, "a pool lies in its memory");
		return;
	}
	at = malloc(sizeof(*at));
	if (!at)
		abort();
	*at = (struct attaching){ c, done, arg };
	c->leaving = true;
	c->detaching = job_new(c, sctrl_detach, detach_over, at);
	if (!c->detaching)
		abort();
	detach_if_free(c);
}

struct stop {
	void (*done)(void *arg);
	void *arg;
	unsigned left;
};

static void stop_step(void *arg, int rc, const char *err)
{
	struct stop *stop = arg;

	if (--stop->left)
		return;
	stop->done(stop->arg);
	free(stop);
}

void dp_spdk_stop(void (*done)(void *arg), void *arg)
{
	struct stop *stop = malloc(sizeof(*stop));
	struct sctrl *c, *next;

	if (!stop)
		abort();
	*stop = (struct stop){ done, arg, 1 };
	for (c = LIST_FIRST(&all); c; c = next) {
		next = LIST_NEXT(c, link);
		stop->left++;
		dp_spdk_detach(c->name, stop_step, stop);
	}
	stop_step(stop, 0, "");
}

/* -- what else can be asked of it */

static void ask_job(const char *name, struct job *job)
{
	struct sctrl *c = sctrl_find(name);

	if (!job)
		abort();
	job->c = c;
	if (!c || c->leaving || !c->attached)
		job_done(job, c ? -EBUSY : -ENODEV, "%s",
			 c ? "the controller is being attached or detached" : "there is no such controller");
	else
		admin_send(&job->task);
}

void dp_spdk_reset(const char *name, dp_spdk_done_fn done, void *arg)
{
	ask_job(name, job_new(NULL, sctrl_reset, done, arg));
}

void dp_spdk_health(const char *name, dp_spdk_health_fn done, void *arg)
{
	struct job *job = job_new(NULL, sctrl_health, NULL, arg);

	if (job)
		job->health = done;
	ask_job(name, job);
}

void dp_spdk_get_options(struct dp_spdk_options *to)
{
	*to = options;
}

int dp_spdk_set_options(const struct dp_spdk_options *from, char err[DP_ERR_MAX])
{
	int rc = check_timeouts(from, err);

	if (rc == 0)
		options = *from;
	return rc;
}

static void wake(struct task *task)
{
	free(task);
}

void dp_spdk_set_hotplug(bool enable, uint64_t period_us)
{
	struct task *task;

	atomic_store(&spdk_hotplug_period_us, !period_us ? HOTPLUG_PERIOD_US :
						     period_us < HOTPLUG_PERIOD_MIN_US ? HOTPLUG_PERIOD_MIN_US : period_us);
	atomic_store(&spdk_hotplug, enable);
	task = malloc(sizeof(*task));
	if (task) {
		task->fn = wake; /* it sleeps for as long as there is nothing to look at */
		admin_send(task);
	}
}

/* -- what is seen of it */

void sctrl_shown(struct sctrl *c, enum dp_spdk_state state)
{
	pthread_mutex_lock(&c->lock);
	c->shown = state;
	pthread_mutex_unlock(&c->lock);
}

struct change {
	char name[DP_SPDK_NAME_MAX + 1];
};

static void changed(void *arg)
{
	struct change *change = arg;

	dp_bdev_check();
	if (watcher)
		watcher(change->name);
	free(change);
}

void sctrl_changed(struct sctrl *c)
{
	struct change *change = malloc(sizeof(*change));

	if (!change)
		return; /* the regular look finds it */
	memcpy(change->name, c->name, sizeof(change->name));
	engine_post(changed, change);
}

void dp_spdk_watch(void (*fn)(const char *name))
{
	watcher = fn;
}

static int by_nsid(const void *a, const void *b)
{
	const struct dp_spdk_ns *x = a, *y = b;

	return x->nsid < y->nsid ? -1 : x->nsid > y->nsid;
}

static void show_namespaces(struct sctrl *c, struct dp_spdk_ctrlr *to)
{
	struct sns *ns;
	size_t n = 0;

	LIST_FOREACH(ns, &c->namespaces, link)
		n++;
	to->ns = calloc(n ? n : 1, sizeof(*to->ns));
	if (!to->ns)
		abort();
	LIST_FOREACH(ns, &c->namespaces, link) {
		struct dp_spdk_ns *shown = &to->ns[to->num_ns];

		if (!atomic_load(&ns->blocks) && !ns->stranger[0])
			continue;
		shown->nsid = ns->nsid;
		shown->facts = ns->facts;
		shown->facts.num_blocks = atomic_load(&ns->blocks);
		snprintf(shown->bdev, sizeof(shown->bdev), "%sn%u", c->name, ns->nsid);
		memcpy(shown->refused, ns->stranger[0] ? ns->stranger : ns->refused, sizeof(shown->refused));
		memcpy(shown->uuid, ns->uuid, sizeof(shown->uuid));
		memcpy(shown->identity, ns->identity, sizeof(shown->identity));
		to->num_ns++;
	}
	qsort(to->ns, to->num_ns, sizeof(*to->ns), by_nsid);
}

static void show(struct sctrl *c, struct dp_spdk_ctrlr *to)
{
	memcpy(to->name, c->name, sizeof(to->name));
	snprintf(to->trtype, sizeof(to->trtype), "%s", c->dma ? "PCIe" : "TCP");
	snprintf(to->traddr, sizeof(to->traddr), "%s", c->trid.traddr);
	snprintf(to->trsvcid, sizeof(to->trsvcid), "%s", c->trid.trsvcid);
	snprintf(to->subnqn, sizeof(to->subnqn), "%s", c->trid.subnqn);
	snprintf(to->hostnqn, sizeof(to->hostnqn), "%s", c->hostnqn);
	snprintf(to->adrfam, sizeof(to->adrfam), "%s", c->dma ? "" : c->trid.adrfam == SPDK_NVMF_ADRFAM_IPV6 ? "IPv6" : "IPv4");
	to->dma = c->dma;
	to->timeouts = atomic_load(&c->timeouts);
	for (unsigned i = 0; i < c->n; i++) {
		to->bounced_ops += atomic_load_explicit(&c->qp[i].bounced_ops, memory_order_relaxed);
		to->bounced_bytes += atomic_load_explicit(&c->qp[i].bounced_bytes, memory_order_relaxed);
		to->retries += atomic_load_explicit(&c->qp[i].retries, memory_order_relaxed);
	}
	pthread_mutex_lock(&c->lock);
	to->state = c->shown;
	memcpy(to->serial, c->serial, sizeof(to->serial));
	memcpy(to->model, c->model, sizeof(to->model));
	memcpy(to->firmware, c->firmware, sizeof(to->firmware));
	to->cntlid = c->cntlid;
	to->vendor = c->vendor;
	memcpy(to->own_nqn, c->own_nqn, sizeof(to->own_nqn));
	to->oncs = c->oncs;
	to->mdts_bytes = c->mdts_bytes;
	to->resets = c->resets;
	show_namespaces(c, to);
	pthread_mutex_unlock(&c->lock);
}

size_t dp_spdk_ctrlrs(const char *name, struct dp_spdk_ctrlr **ctrlrs)
{
	struct sctrl *c;
	size_t n = 0;

	LIST_FOREACH(c, &all, link)
		n++;
	*ctrlrs = calloc(n ? n : 1, sizeof(**ctrlrs));
	if (!*ctrlrs)
		return 0;
	n = 0;
	LIST_FOREACH(c, &all, link)
		if (c->attached && (!name || strcmp(c->name, name) == 0))
			show(c, &(*ctrlrs)[n++]);
	return n;
}

void dp_spdk_ctrlrs_free(struct dp_spdk_ctrlr *ctrlrs, size_t count)
{
	for (size_t i = 0; ctrlrs && i < count; i++)
		free(ctrlrs[i].ns);
	free(ctrlrs);
}

/* -- a controller's own memory */

struct dp_spdk_hold *dp_spdk_hold(const char *bdf, void (*gone)(void *arg, const char *why), void *arg)
{
	struct dp_spdk_hold *hold;
	struct sctrl *c;

	LIST_FOREACH(c, &all, link)
		if (c->dma && c->attached && !c->leaving && strcasecmp(c->trid.traddr, bdf) == 0)
			break;
	hold = c ? calloc(1, sizeof(*hold)) : NULL;
	if (!hold)
		return NULL;
	*hold = (struct dp_spdk_hold){ .c = c, .gone = gone, .arg = arg };
	pthread_mutex_lock(&c->lock);
	if (c->shown == DP_SPDK_ENABLED) {
		LIST_INSERT_HEAD(&c->holds, hold, link);
	} else {
		free(hold);
		hold = NULL;
	}
	pthread_mutex_unlock(&c->lock);
	return hold;
}

void dp_spdk_let_go(struct dp_spdk_hold *hold)
{
	pthread_mutex_lock(&hold->c->lock);
	LIST_REMOVE(hold, link);
	pthread_mutex_unlock(&hold->c->lock);
	free(hold);
}

/* c->c is not freed while there is a hold. */

volatile void *dp_spdk_registers(struct dp_spdk_hold *hold)
{
	return spdk_nvme_ctrlr_get_registers(hold->c->c);
}

int dp_spdk_map_bar(struct dp_spdk_hold *hold, unsigned bar, void **addr, uint64_t *phys, uint64_t *size)
{
	struct spdk_pci_device *device = spdk_nvme_ctrlr_get_pci_device(hold->c->c);

	return device ? spdk_pci_device_map_bar(device, bar, addr, phys, size) : -ENODEV;
}

void dp_spdk_unmap_bar(struct dp_spdk_hold *hold, unsigned bar, void *addr)
{
	struct spdk_pci_device *device = spdk_nvme_ctrlr_get_pci_device(hold->c->c);

	if (device)
		spdk_pci_device_unmap_bar(device, bar, addr);
}

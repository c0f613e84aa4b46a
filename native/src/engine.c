/* SPDX-License-Identifier: BSD-3-Clause
 *
 * engine.c: engine.h carried out on the control thread: the registry of back ends and controllers, start and stop. Queues
 * are in engine_queue.c.
 */
#include <assert.h>
#include <errno.h>
#include <stdio.h>
#include <stdlib.h>

#include "cpumask.h"
#include "engine_priv.h"
#include "fan.h"
#include "spdk.h"
#include "qpair_zc.h"

#define POOL_MIN (4u << 20)

static struct {
	struct dp_options options;
	struct reactor *reactors;
	unsigned n;
	LIST_HEAD(, bdev) bdevs;
	LIST_HEAD(, ctrlr) ctrlrs;
} engine;

struct reactor *engine_reactor(unsigned index)
{
	return &engine.reactors[index];
}

unsigned engine_reactors(void)
{
	return engine.n;
}

void engine_post(void (*fn)(void *arg), void *arg)
{
	engine.options.post(fn, arg);
}

const struct dp_events *engine_events(void)
{
	return engine.options.events;
}

volatile uint64_t *engine_activity(uint32_t slot)
{
	return engine.options.activity && slot < engine.options.activity_slots ? &engine.options.activity[slot] : NULL;
}

/* -- life */

int dp_start(const struct dp_options *options, char err[DP_ERR_MAX])
{
	int cpus[REACTORS_MAX];
	int n = 1;

	cpus[0] = -1;
	if (options->cpumask) {
		n = cpumask_parse(options->cpumask, cpus, REACTORS_MAX, err);
		if (n < 0)
			return n;
	}
	engine.options = *options;
	zc_config = (struct zc_config){ options->zero_copy, options->zero_copy_min };
	engine.reactors = aligned_alloc(64, (size_t)n * sizeof(*engine.reactors));
	if (!engine.reactors)
		return -ENOMEM;
	memset(engine.reactors, 0, (size_t)n * sizeof(*engine.reactors));
	LIST_INIT(&engine.bdevs);
	LIST_INIT(&engine.ctrlrs);
	bdev_watch_start(dp_bdev_check);
	dp_spdk_early(options->hugepages);
	for (engine.n = 0; engine.n < (unsigned)n; engine.n++) {
		struct reactor_options each = { .id = engine.n,
						.cpu = cpus[engine.n],
						.spin_us = options->spin_us,
						.pool_bytes = options->pool_bytes / (unsigned)n,
						.hugepages = options->hugepages };
		int rc;

		if (each.pool_bytes < POOL_MIN)
			each.pool_bytes = POOL_MIN;
		rc = reactor_start(&engine.reactors[engine.n], &each);
		if (rc < 0) {
			snprintf(err, DP_ERR_MAX, "reactor %u: %s%s", engine.n, strerror(-rc),
				 rc == -ENOSYS || rc == -EPERM ? " (io_uring is not available)" : "");
			while (engine.n-- > 0)
				reactor_stop(&engine.reactors[engine.n]);
			engine.n = 0;
			free(engine.reactors);
			return rc;
		}
	}
	return 0;
}

static void free_ns(struct ctrlr *c)
{
	for (uint32_t i = 0; i < c->n; i++) {
		free(c->ns[i].bdev_name);
		for (unsigned use = 0; use < POOL_USES; use++)
			free(c->ns[i].pool_name[use]);
	}
	free(c->ns);
	c->ns = NULL;
	c->n = 0;
}

struct stop {
	dp_done_fn done;
	void *arg;
	unsigned left;
};

static void stop_end(void *arg_of_stop)
{
	struct stop *stop = arg_of_stop;
	dp_done_fn done = stop->done;
	void *arg = stop->arg;
	struct ctrlr *c;

	offload_stop(); /* every command is over: no job is left */
	for (unsigned i = 0; i < engine.n; i++)
		reactor_stop(&engine.reactors[i]);
	free(engine.reactors);
	engine.n = 0;
	while ((c = LIST_FIRST(&engine.ctrlrs))) {
		LIST_REMOVE(c, link);
		free_ns(c);
		pool_owner_put(c->owner);
		free(c);
	}
	engine_pools_stop();
	free(stop);
	done(arg, 0);
}

static bool stop_layer(struct stop *stop);

static void stop_step(void *arg, int rc)
{
	struct stop *stop = arg;

	if (--stop->left == 0 && !stop_layer(stop))
		dp_spdk_stop(stop_end, stop);
}

/* Deletes the back ends that nothing lies on any more; false when there is none. */
static bool stop_layer(struct stop *stop)
{
	struct bdev *bdev, *next;
	bool any = false;

	stop->left++;
	for (bdev = LIST_FIRST(&engine.bdevs); bdev; bdev = next) {
		next = LIST_NEXT(bdev, link);
		if (bdev->deleting || bdev->layers)
			continue;
		any = true;
		stop->left++;
		if (dp_bdev_delete(bdev->name, stop_step, stop) < 0)
			stop->left--;
	}
	if (any)
		stop_step(stop, 0);
	else
		stop->left--;
	return any;
}

static void stop_bdevs(void *arg, int rc)
{
	struct stop *stop = arg;
	struct ctrlr *c;

	if (--stop->left)
		return;
	stop->left = 1;
	LIST_FOREACH(c, &engine.ctrlrs, link) {
		stop->left++;
		free_ns(c); /* or the deletion of its back ends would give the reactors a view of it again */
		ctrlr_drop(c->key, engine_step, engine_step_new(stop_step, stop));
	}
	stop_step(stop, 0);
}

void dp_stop(dp_done_fn done, void *arg)
{
	struct stop *stop = calloc(1, sizeof(*stop));
	struct ctrlr *c;

	if (!stop)
		abort();
	stop->done = done;
	stop->arg = arg;
	stop->left = 1;
	if (engine_calibrations_stop(stop_bdevs, stop))
		stop->left++;
	LIST_FOREACH(c, &engine.ctrlrs, link) {
		stop->left++;
		dp_queue_close((struct dp_queue_key){ .ctrlr = c->key }, stop_bdevs, stop);
	}
	stop_bdevs(stop, 0);
}

/* -- a done callback with a code from a fan, which has none */

struct step {
	dp_done_fn done;
	void *arg;
};

void *engine_step_new(dp_done_fn done, void *arg)
{
	struct step *step = malloc(sizeof(*step));

	if (!step)
		abort();
	*step = (struct step){ done, arg };
	return step;
}

void engine_step(void *arg)
{
	struct step step = *(struct step *)arg;

	free(arg);
	step.done(step.arg, 0);
}

/* -- back ends */

struct bdev *engine_first_bdev(void)
{
	return LIST_FIRST(&engine.bdevs);
}

struct bdev *engine_bdev(const char *name)
{
	struct bdev *bdev;

	LIST_FOREACH(bdev, &engine.bdevs, link)
		if (!bdev->deleting && strcmp(bdev->name, name) == 0)
			return bdev;
	return NULL;
}

static struct bdev *find(const char *name)
{
	return engine_bdev(name);
}

static void nothing(void *arg, int rc)
{
}

/* Ties every namespace that names the bdev to it (or, bdev NULL, to nothing). done: once for each controller. */
static unsigned retie(const char *name, struct bdev *bdev, dp_done_fn done, void *arg)
{
	struct ctrlr *c;
	unsigned n = 0;

	LIST_FOREACH(c, &engine.ctrlrs, link) {
		bool changed = false;

		for (uint32_t i = 0; i < c->n; i++)
			if (strcmp(c->ns[i].bdev_name, name) == 0 && c->ns[i].bdev != bdev) {
				c->ns[i].bdev = bdev;
				changed = true;
			}
		if (changed) {
			n++;
			if (ctrlr_push(c, engine_step, engine_step_new(done, arg)) < 0)
				abort();
		}
	}
	return n;
}

unsigned engine_retie_pool(const char *name, struct pool *pool, dp_done_fn done, void *arg)
{
	struct ctrlr *c;
	unsigned n = 0;

	LIST_FOREACH(c, &engine.ctrlrs, link) {
		bool changed = false;

		for (uint32_t i = 0; i < c->n * POOL_USES; i++) {
			struct ns_config *ns = &c->ns[i / POOL_USES];
			unsigned use = i % POOL_USES;

			if (ns->pool_name[use] && strcmp(ns->pool_name[use], name) == 0 && ns->pool[use] != pool) {
				ns->pool[use] = pool;
				changed = true;
			}
		}
		if (changed) {
			n++;
			if (ctrlr_push(c, engine_step, engine_step_new(done, arg)) < 0)
				abort();
		}
	}
	return n;
}

int dp_bdev_create(const struct dp_bdev_config *config, struct dp_bdev_facts *facts, char err[DP_ERR_MAX])
{
	struct bdev *bdev, *base = NULL;
	int rc;

	err[0] = 0;
	if (strlen(config->name) > DP_NAME_MAX || !config->name[0])
		return -EINVAL;
	LIST_FOREACH(bdev, &engine.bdevs, link)
		if (strcmp(bdev->name, config->name) == 0) {
			snprintf(err, DP_ERR_MAX, "bdev %.100s exists already", config->name);
			return -EEXIST;
		}
	if (config->kind == DP_BDEV_DELAY || config->kind == DP_BDEV_ERROR) {
		base = config->base ? find(config->base) : NULL;
		if (!base) {
			snprintf(err, DP_ERR_MAX, "bdev %.100s does not exist", config->base ? config->base : "");
			return -ENODEV;
		}
		if (base->calibrating) {
			snprintf(err, DP_ERR_MAX, "bdev %.100s is being calibrated", config->base);
			return -EBUSY;
		}
	}
	if (config->kind == DP_BDEV_CMB) {
		rc = engine_pools_watch();
		if (rc < 0)
			return rc;
	}
	bdev = bdev_open(config, base, engine.n, &rc, err);
	if (!bdev) {
		if (!err[0])
			snprintf(err, DP_ERR_MAX, "bdev %.100s: %s", config->name, strerror(-rc));
		return rc;
	}
	if (config->kind == DP_BDEV_URING && engine_is_probed(bdev)) {
		bdev_destroy(bdev);
		snprintf(err, DP_ERR_MAX, "bdev %.60s: %.120s is being calibrated", config->name, config->filename);
		return -EBUSY;
	}
	bdev->base = base;
	if (base)
		base->layers++;
	LIST_INSERT_HEAD(&engine.bdevs, bdev, link);
	bdev_facts(bdev, facts);
	retie(bdev->name, bdev, nothing, NULL);
	return 0;
}

struct bdev_end {
	struct bdev *bdev;
	dp_done_fn done;
	void *arg;
	unsigned left;
};

static void bdev_unpinned(struct reactor *r, struct rmsg *msg)
{
	fan_ack(dp_container_of(msg, struct fan_part, msg));
}

static void bdev_unpin_wait(struct reactor *r, struct rmsg *msg)
{
	struct fan_part *part = dp_container_of(msg, struct fan_part, msg);
	struct bdev *bdev = part->data;

	if (bdev->r[r->id].pins == 0 && !bdev->r[r->id].qos_armed) {
		fan_ack(part);
	} else if (bdev->r[r->id].pins == 0) {
		reactor_send(r, msg); /* the timer of its rate limit has yet to expire */
	} else {
		msg->fn = bdev_unpinned;
		bdev->r[r->id].on_unpinned = msg;
	}
}

/* Nobody sends from its memory any more. */
static void bdev_gone(void *arg)
{
	struct bdev *bdev = arg;

	LIST_REMOVE(bdev, link);
	bdev_destroy(bdev);
}

static void fan_bdev(struct bdev *bdev, void (*fn)(struct reactor *r, struct rmsg *msg), void (*done)(void *arg),
		     void *arg)
{
	struct fan *fan = fan_new(fn, done, arg);

	if (!fan)
		abort();
	for (unsigned i = 0; i < engine.n; i++)
		fan->parts[i].data = bdev;
	fan_send(fan);
}

/* No command is in it. Its memory may still be on the way to sockets: a host that does not read holds up nobody. */
static void bdev_drained(void *arg, int rc)
{
	struct bdev_end *end = arg;
	struct bdev_end last = *end;

	if (--end->left)
		return;
	free(end);
	if (last.bdev->base)
		last.bdev->base->layers--;
	snprintf(last.bdev->name, sizeof(last.bdev->name), "%s", "");
	fan_bdev(last.bdev, bdev_unpin_wait, bdev_gone, last.bdev);
	last.done(last.arg, 0);
}

static void bdev_drain(struct reactor *r, struct rmsg *msg)
{
	struct fan_part *part = dp_container_of(msg, struct fan_part, msg);
	struct bdev *bdev = part->data;

	if (bdev->ops->drain)
		bdev->ops->drain(bdev, r);
	fan_ack(part);
}

int dp_bdev_delete(const char *name, dp_done_fn done, void *arg)
{
	struct bdev *bdev = find(name);
	struct bdev_end *end;

	if (!bdev)
		return -ENODEV;
	if (bdev->layers || bdev->calibrating)
		return -EBUSY;
	end = malloc(sizeof(*end));
	if (!end)
		return -ENOMEM;
	bdev->deleting = true;
	*end = (struct bdev_end){ bdev, done, arg, 2 };
	end->left += retie(name, NULL, bdev_drained, end);
	fan_bdev(bdev, bdev_drain, engine_step, engine_step_new(bdev_drained, end));
	bdev_drained(end, 0);
	return 0;
}

/* What lies on a bdev changes with it: the highest first. */
static void tell_layers(struct bdev *base, const struct dp_bdev_facts *facts)
{
	struct bdev *bdev;

	LIST_FOREACH(bdev, &engine.bdevs, link) {
		if (bdev->base != base || bdev->deleting)
			continue;
		tell_layers(bdev, facts);
		if (facts)
			atomic_store(&bdev->num_blocks, facts->num_blocks);
		engine.options.events->bdev_changed(bdev->name, facts);
	}
}

int dp_bdev_resize(const char *name, uint64_t num_blocks, struct dp_bdev_facts *facts, char err[DP_ERR_MAX])
{
	struct bdev *bdev = find(name);
	int rc;

	err[0] = 0;
	if (!bdev)
		return -ENODEV;
	rc = bdev->ops->resize ? bdev->ops->resize(bdev, num_blocks) : -ENOTSUP;
	if (rc < 0) {
		snprintf(err, DP_ERR_MAX, "bdev %.100s: %s", name, strerror(-rc));
		return rc;
	}
	if (num_blocks)
		atomic_store(&bdev->num_blocks, num_blocks);
	bdev->lost = bdev->flush_told = false;
	bdev_facts(bdev, facts);
	tell_layers(bdev, facts);
	return 0;
}

void dp_bdev_check(void)
{
	struct bdev *bdev;

	LIST_FOREACH(bdev, &engine.bdevs, link) {
		struct dp_bdev_facts facts;
		bool flush_failed = atomic_load(&bdev->flush_failed);
		int64_t blocks;

		if (bdev->deleting || !bdev->ops->look)
			continue;
		blocks = bdev->ops->look(bdev);
		if (blocks <= 0 && !bdev->lost) {
			bdev->lost = true;
			tell_layers(bdev, NULL);
			engine.options.events->bdev_changed(bdev->name, NULL);
		} else if (blocks > 0 && (bdev->lost || flush_failed != bdev->flush_told ||
					  (uint64_t)blocks != atomic_load(&bdev->num_blocks))) {
			bdev->lost = false;
			bdev->flush_told = flush_failed;
			atomic_store(&bdev->num_blocks, (uint64_t)blocks);
			bdev_facts(bdev, &facts);
			tell_layers(bdev, &facts);
			engine.options.events->bdev_changed(bdev->name, &facts);
		}
	}
}

int dp_bdev_iostat(const char *name, struct dp_iostat *stat)
{
	struct bdev *bdev = find(name);
	const uint64_t *zero;
	uint64_t *value = (uint64_t *)stat;

	if (!bdev)
		return -ENODEV;
	bdev_stat_sum(bdev, stat);
	zero = (const uint64_t *)&bdev->zero;
	for (size_t i = 0; i < sizeof(*stat) / sizeof(uint64_t); i++)
		value[i] -= zero[i];
	return 0;
}

int dp_bdev_iostat_reset(const char *name)
{
	struct bdev *bdev = find(name);

	if (!bdev)
		return -ENODEV;
	bdev_stat_sum(bdev, &bdev->zero);
	return 0;
}

int dp_bdev_set_qos(const char *name, uint64_t rw_ios_per_sec, uint64_t rw_mbytes_per_sec, uint64_t r_mbytes_per_sec,
		    uint64_t w_mbytes_per_sec, char err[DP_ERR_MAX])
{
	const uint64_t mib = 1u << 20;
	const uint64_t limit[4] = { rw_ios_per_sec, rw_mbytes_per_sec * mib, r_mbytes_per_sec * mib, w_mbytes_per_sec * mib };
	struct bdev *bdev = find(name);

	err[0] = 0;
	if (!bdev)
		return -ENODEV;
	if (rw_mbytes_per_sec >> 40 || r_mbytes_per_sec >> 40 || w_mbytes_per_sec >> 40 || rw_ios_per_sec >> 60)
		return -EINVAL;
	return bdev_qos_set(bdev, limit);
}

int dp_bdev_histogram_enable(const char *name, bool enable)
{
	struct bdev *bdev = find(name);

	return bdev ? bdev_histogram_enable(bdev, enable) : -ENODEV;
}

int dp_bdev_histogram_get(const char *name, uint64_t **buckets, size_t *count, unsigned *bucket_shift)
{
	struct bdev *bdev = find(name);

	return bdev ? bdev_histogram_get(bdev, buckets, count, bucket_shift) : -ENODEV;
}

int dp_bdev_error_inject(const char *name, const char *io_type, const char *error_type, uint32_t num,
			 uint32_t corrupt_offset, uint8_t corrupt_value)
{
	struct bdev *bdev = find(name);

	if (!bdev)
		return -ENODEV;
	return bdev->kind == DP_BDEV_ERROR ?
		       bdev_error_inject(bdev, io_type, error_type, num, corrupt_offset, corrupt_value) :
		       -EINVAL;
}

int dp_bdev_delay_update(const char *name, const char *latency_type, uint64_t us)
{
	struct bdev *bdev = find(name);

	if (!bdev)
		return -ENODEV;
	return bdev->kind == DP_BDEV_DELAY ? bdev_delay_update(bdev, latency_type, us) : -EINVAL;
}

/* -- controllers */

struct ctrlr *engine_ctrlr(uint64_t key)
{
	struct ctrlr *c;

	LIST_FOREACH(c, &engine.ctrlrs, link)
		if (c->key == key)
			return c;
	return NULL;
}

static int by_nsid(const void *a, const void *b)
{
	const struct ns_config *x = a, *y = b;

	return x->nsid < y->nsid ? -1 : x->nsid > y->nsid;
}

/* Of a namespace's pools, those that are given. One that does not exist is tied to when it does. */
static bool copy_pools(struct ns_config *ns, const struct dp_ns_view *from)
{
	const char *names[POOL_USES] = { [POOL_READ] = from->read_pool,
					 [POOL_WRITE] = from->write_pool,
					 [POOL_COPY] = from->copy_pool };

	ns->strict = from->strict;
	for (unsigned use = 0; use < POOL_USES; use++) {
		if (!names[use])
			continue;
		ns->pool[use] = pool_find(names[use]);
		ns->pool_name[use] = strdup(names[use]);
		if (!ns->pool_name[use])
			return false;
	}
	return true;
}

static int copy_ns(struct ctrlr *c, const struct dp_ctrlr_view *view)
{
	c->ns = calloc(view->num_ns ? view->num_ns : 1, sizeof(*c->ns));
	if (!c->ns)
		return -ENOMEM;
	for (c->n = 0; c->n < view->num_ns; c->n++) {
		const struct dp_ns_view *from = &view->ns[c->n];

		c->ns[c->n] = (struct ns_config){ .nsid = from->nsid,
						  .anagrpid = from->anagrpid,
						  .ana_state = from->ana_state,
						  .write_protected = from->write_protected,
						  .bdev = find(from->bdev),
						  .bdev_name = strdup(from->bdev) };
		if (!copy_pools(&c->ns[c->n], from) || !c->ns[c->n].bdev_name) {
			c->n++;
			free_ns(c);
			return -ENOMEM;
		}
	}
	qsort(c->ns, c->n, sizeof(*c->ns), by_nsid);
	return 0;
}

/* Whose bytes they are that a controller leaves in a pool: its host's. Without a name, nobody's but its own. */
static uint32_t owner_of(const struct dp_ctrlr_view *view)
{
	char alone[32];

	if (view->host)
		return pool_owner_get(view->host);
	snprintf(alone, sizeof(alone), "controller %llu", (unsigned long long)view->key);
	return pool_owner_get(alone);
}

static int check_pool(const struct dp_ns_view *ns, const char *name, char err[DP_ERR_MAX])
{
	const struct bdev *bdev = find(ns->bdev);
	const struct pool *pool = name ? pool_find(name) : NULL;

	if (!name)
		return 0;
	if (!pool) {
		snprintf(err, DP_ERR_MAX, "namespace %u: there is no pool '%.100s'", ns->nsid, name);
		return -ENODEV;
	}
	if (bdev && !bdev_pool_allowed(bdev, pool)) {
		snprintf(err, DP_ERR_MAX, "namespace %u: bdev '%.60s' may not use pool '%.60s': %s", ns->nsid, ns->bdev, name,
			 bdev_scatters(bdev) ? "it was not allowed (p2p_pool_allow)" : "its data does not come from a drive");
		return -EPERM;
	}
	return 0;
}

int dp_ctrlr_check(const struct dp_ctrlr_view *view, char err[DP_ERR_MAX])
{
	int rc = 0;

	err[0] = 0;
	for (uint32_t i = 0; i < view->num_ns && rc == 0; i++) {
		const struct dp_ns_view *ns = &view->ns[i];

		rc = check_pool(ns, ns->read_pool, err);
		rc = rc ? rc : check_pool(ns, ns->write_pool, err);
		rc = rc ? rc : check_pool(ns, ns->copy_pool, err);
	}
	return rc;
}

int dp_ctrlr_set(const struct dp_ctrlr_view *view, dp_done_fn done, void *arg)
{
	struct ctrlr *c = engine_ctrlr(view->key), fresh = { .key = view->key };
	int rc = copy_ns(&fresh, view);
	uint32_t owner;

	if (rc < 0)
		return rc;
	if (!c) {
		c = calloc(1, sizeof(*c));
		if (!c) {
			free_ns(&fresh);
			return -ENOMEM;
		}
		c->key = view->key;
		LIST_INSERT_HEAD(&engine.ctrlrs, c, link);
	} else {
		free_ns(c);
	}
	c->ns = fresh.ns;
	c->n = fresh.n;
	owner = owner_of(view);
	pool_owner_put(c->owner);
	c->owner = owner;
	c->mdts_bytes = view->mdts_bytes;
	c->copy_formats = view->copy_formats;
	return ctrlr_push(c, engine_step, engine_step_new(done, arg));
}

struct ctrlr_end {
	uint64_t key;
	dp_done_fn done;
	void *arg;
};

static void ctrlr_closed(void *arg, int rc)
{
	struct ctrlr_end end = *(struct ctrlr_end *)arg;
	struct ctrlr *c = engine_ctrlr(end.key);

	free(arg);
	if (!c) {
		end.done(end.arg, 0);
		return;
	}
	LIST_REMOVE(c, link);
	free_ns(c);
	pool_owner_put(c->owner);
	free(c);
	if (ctrlr_drop(end.key, engine_step, engine_step_new(end.done, end.arg)) < 0)
		abort();
}

void dp_ctrlr_remove(uint64_t key, dp_done_fn done, void *arg)
{
	struct ctrlr_end *end = malloc(sizeof(*end));

	if (!end)
		abort();
	*end = (struct ctrlr_end){ key, done, arg };
	dp_queue_close((struct dp_queue_key){ .ctrlr = key }, ctrlr_closed, end);
}

/* -- what the kernel offers */

char *dp_describe(void)
{
	static const char *const modes[] = { [DP_ZERO_COPY_AUTO] = "auto",
					     [DP_ZERO_COPY_OFF] = "off",
					     [DP_ZERO_COPY_ALWAYS] = "always" };
	const struct reactor_features *f = &reactor_features;
	char *text = NULL;

	if (asprintf(&text,
		     "{\"reactors\": %u, \"io_uring\": {\"single_issuer\": %s, \"defer_taskrun\": %s, \"coop_taskrun\": %s, "
		     "\"recv_poll_first\": %s, \"send_zc\": %s}, \"zero_copy_send\": {\"mode\": \"%s\", \"min_bytes\": %u}, \"hugepages\": %s, \"crc32c\": \"isa-l\"}",
		     engine.n, f->single_issuer ? "true" : "false", f->defer_taskrun ? "true" : "false",
		     f->coop_taskrun ? "true" : "false", f->poll_first ? "true" : "false",
		     f->send_zc ? "true" : "false", modes[zc_config.mode], zc_config.min_bytes,
		     f->hugepages ? "true" : "false") < 0)
		return NULL;
	return text;
}

/* SPDX-License-Identifier: BSD-3-Clause
 *
 * ctrlr.c: views of controllers. Each reactor has its own copy and counts its own users of each namespace, so nothing
 * is shared on the path of I/O. A new view replaces the old one whole; the old one lives until its last command is over,
 * and whoever replaced it is told when nobody uses a namespace that the new one lacks.
 */
#include <assert.h>
#include <errno.h>
#include <stdlib.h>

#include "engine_priv.h"
#include "fan.h"

struct view_msg {
	struct view_msg *next;
	struct fan_part *part;
};

struct ns_entry *view_find(struct view *view, uint32_t nsid)
{
	uint32_t low = 0, high = view->n;

	/* most controllers have namespaces 1, 2, 3 ... */
	if (nsid - 1 < view->n && view->ns[nsid - 1].nsid == nsid)
		return &view->ns[nsid - 1];
	while (low < high) {
		uint32_t mid = (low + high) / 2;

		if (view->ns[mid].nsid == nsid)
			return &view->ns[mid];
		if (view->ns[mid].nsid < nsid)
			low = mid + 1;
		else
			high = mid;
	}
	return NULL;
}

struct ctrlr_r *ctrlr_find(struct reactor *r, uint64_t key)
{
	struct ctrlr_r *c;

	LIST_FOREACH(c, &r->ctrlrs, link)
		if (c->key == key)
			return c;
	return NULL;
}

void ctrlr_enter(struct ctrlr_r *c, struct ns_entry *ns)
{
	c->view->users++;
	if (ns)
		ns->users++;
	else
		c->view->whole++;
}

static bool accessible(const struct ns_entry *ns)
{
	return ns->ana_state == 1 || ns->ana_state == 2; /* optimized, non-optimized */
}

/* Does the current view forbid what the old one let through? Then no such I/O may still reach the medium. */
static bool forbids(const struct ns_entry *now, const struct ns_entry *was)
{
	return (now->write_protected && !was->write_protected) || (!accessible(now) && accessible(was));
}

/* Is a namespace that the current view lacks (or ties to another bdev or pool, or closes) still used? */
static bool gone_in_use(const struct ctrlr_r *c)
{
	for (const struct view *old = c->old; old; old = old->next) {
		if (old->whole)
			return true;
		for (uint32_t i = 0; i < old->n; i++) {
			const struct ns_entry *ns = &old->ns[i], *now;

			if (!ns->users)
				continue;
			now = view_find(c->view, ns->nsid);
			if (!now || now->bdev != ns->bdev || forbids(now, ns) ||
			    memcmp(now->pool, ns->pool, sizeof(ns->pool)) != 0)
				return true;
		}
	}
	return false;
}

static void free_unused(struct ctrlr_r *c)
{
	struct view **at = &c->old;

	while (*at) {
		struct view *view = *at;

		if (view->users) {
			at = &view->next;
			continue;
		}
		*at = view->next;
		free(view);
	}
}

static void tell_waiting(struct ctrlr_r *c)
{
	if (!c->waiting || gone_in_use(c))
		return;
	while (c->waiting) {
		struct view_msg *msg = c->waiting;

		c->waiting = msg->next;
		fan_ack(msg->part);
		free(msg);
	}
}

void ctrlr_leave(struct ctrlr_r *c, struct view *view, struct ns_entry *ns)
{
	assert(view->users);
	view->users--;
	if (ns)
		ns->users--;
	else
		view->whole--;
	if (DP_UNLIKELY(view != c->view)) {
		free_unused(c);
		tell_waiting(c);
	}
}

static void view_take(struct reactor *r, struct rmsg *msg)
{
	struct fan_part *part = dp_container_of(msg, struct fan_part, msg);
	struct ctrlr_r *fresh = part->data, *c = ctrlr_find(r, fresh->key);
	struct view_msg *wait = fresh->waiting;

	fresh->waiting = NULL;
	if (!c) {
		LIST_INSERT_HEAD(&r->ctrlrs, fresh, link);
		free(wait);
		fan_ack(part);
		return;
	}
	c->view->next = c->old;
	c->old = c->view;
	c->view = fresh->view;
	free(fresh);
	wait->part = part;
	wait->next = c->waiting;
	c->waiting = wait;
	free_unused(c);
	tell_waiting(c);
}

static struct view *view_copy(const struct ctrlr *ctrlr)
{
	static uint64_t generation; /* control thread */
	struct view *view = calloc(1, sizeof(*view) + ctrlr->n * sizeof(view->ns[0]));

	if (!view)
		return NULL;
	view->gen = ++generation;
	view->mdts_bytes = ctrlr->mdts_bytes;
	view->copy_formats = ctrlr->copy_formats;
	view->owner = ctrlr->owner;
	view->n = ctrlr->n;
	for (uint32_t i = 0; i < ctrlr->n; i++) {
		const struct ns_config *ns = &ctrlr->ns[i];

		view->ns[i] = (struct ns_entry){ .nsid = ns->nsid,
						 .anagrpid = ns->anagrpid,
						 .ana_state = ns->ana_state,
						 .write_protected = ns->write_protected,
						 .bdev = ns->bdev,
						 .strict = ns->strict };
		memcpy(view->ns[i].pool, ns->pool, sizeof(ns->pool));
	}
	return view;
}

static struct ctrlr_r *fresh_copy(const struct ctrlr *ctrlr)
{
	struct ctrlr_r *c = calloc(1, sizeof(*c));

	if (!c)
		return NULL;
	c->key = ctrlr->key;
	c->waiting = calloc(1, sizeof(*c->waiting));
	c->view = view_copy(ctrlr);
	if (c->waiting && c->view)
		return c;
	free(c->waiting);
	free(c->view);
	free(c);
	return NULL;
}

int ctrlr_push(const struct ctrlr *ctrlr, void (*done)(void *arg), void *arg)
{
	struct fan *fan = fan_new(view_take, done, arg);
	unsigned n = engine_reactors();

	if (!fan)
		return -ENOMEM;
	for (unsigned i = 0; i < n; i++) {
		fan->parts[i].data = fresh_copy(ctrlr);
		if (fan->parts[i].data)
			continue;
		while (i-- > 0) {
			struct ctrlr_r *c = fan->parts[i].data;

			free(c->waiting);
			free(c->view);
			free(c);
		}
		fan_free(fan);
		return -ENOMEM;
	}
	fan_send(fan);
	return 0;
}

static void view_drop(struct reactor *r, struct rmsg *msg)
{
	struct fan_part *part = dp_container_of(msg, struct fan_part, msg);
	struct ctrlr_r *c = ctrlr_find(r, *(uint64_t *)part->data);

	free(part->data);
	if (c) {
		LIST_REMOVE(c, link);
		free_unused(c);
		tell_waiting(c);
		assert(!c->old && !c->view->users && !c->waiting); /* its queues have gone before */
		free(c->view);
		free(c);
	}
	fan_ack(part);
}

int ctrlr_drop(uint64_t key, void (*done)(void *arg), void *arg)
{
	struct fan *fan = fan_new(view_drop, done, arg);

	if (!fan)
		return -ENOMEM;
	for (unsigned i = 0; i < engine_reactors(); i++) {
		uint64_t *data = malloc(sizeof(*data));

		if (!data)
			abort(); /* eight bytes */
		*data = key;
		fan->parts[i].data = data;
	}
	fan_send(fan);
	return 0;
}

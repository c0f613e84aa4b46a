/* SPDX-License-Identifier: BSD-3-Clause
 *
 * rpc_spdk.c: SPDK's methods bdev_nvme_*: controllers in user space, whose namespaces are back ends.
 */
#include <errno.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

#include "channel.h"
#include "common.h"
#include "log.h"
#include "rpc_methods.h"
#include "spdk.h"

/* What a controller's bdevs were made from, by the controller's name. */
static json_t *attached;

static const char *const states[] = {[DP_SPDK_ENABLED] = "enabled",
				     [DP_SPDK_RESETTING] = "resetting",
				     [DP_SPDK_FAILED] = "failed",
				     [DP_SPDK_REMOVED] = "removed"};

static json_t *facts_of(const struct dp_spdk_ns *ns)
{
	json_t *shown = rpc_bdev_show(ns->bdev);

	if (!shown)
		shown = json_pack("{s:s}", "name", ns->bdev);
	json_object_set_new(shown, "nsid", json_integer(ns->nsid));
	json_object_set_new(shown, "identity", json_string(ns->identity));
	if (ns->uuid[0])
		json_object_set_new(shown, "uuid", json_string(ns->uuid));
	if (ns->refused[0])
		json_object_set_new(shown, "refused", json_string(ns->refused));
	return shown;
}

/* -- back ends of a controller */

/* Makes those that are not there yet. Returns how many namespaces could not be used; the last reason in err. */
static size_t make_bdevs(const struct dp_spdk_ctrlr *ctrlr, bool tell, char err[DP_ERR_MAX])
{
	json_t *params = json_object_get(attached, ctrlr->name);
	size_t refused = 0;

	for (size_t i = 0; i < ctrlr->num_ns; i++) {
		const struct dp_spdk_ns *ns = &ctrlr->ns[i];
		const struct dp_bdev_config config = {
			.kind = DP_BDEV_SPDK, .name = ns->bdev, .ctrlr = ctrlr->name, .nsid = ns->nsid};
		json_t *shown = rpc_bdev_show(ns->bdev);
		const bool new = !shown;
		char why[DP_ERR_MAX] = "";
		int rc = 0;

		if (new)
			rc = rpc_bdev_add(&config, "bdev_nvme_attach_controller", json_incref(params), why);
		json_decref(shown);
		if (rc < 0) {
			refused++;
			snprintf(err, DP_ERR_MAX, "%s", *why ? why : strerror(-rc));
			log_warning("spdk.namespace", "%s", err);
		} else if (new && tell) {
			channel_bdev_changed(ns->bdev, true);
		}
	}
	return refused;
}

static void ctrlr_changed(const char *name)
{
	char err[DP_ERR_MAX];
	struct dp_spdk_ctrlr *ctrlr;
	size_t n = dp_spdk_ctrlrs(name, &ctrlr);

	for (size_t i = 0; i < n; i++)
		if (json_object_get(attached, name))
			make_bdevs(&ctrlr[i], true, err);
	dp_spdk_ctrlrs_free(ctrlr, n);
}

/* -- attach ---------------------------------------------------------------------------------------------------------- */

struct attaching {
	struct rpc_request *request;
	char name[DP_SPDK_NAME_MAX + 1];
	char err[DP_ERR_MAX];
};

static void undone(void *arg, int rc, const char *err)
{
	struct attaching *at = arg;

	(void)rc;
	(void)err;
	rpc_finish(at->request, -EOPNOTSUPP, at->err);
	free(at);
}

static void attach_over(void *arg, int rc, const char *err)
{
	struct attaching *at = arg;
	struct dp_spdk_ctrlr *ctrlr = NULL;
	size_t n = rc < 0 ? 0 : dp_spdk_ctrlrs(at->name, &ctrlr);
	json_t *shown;

	if (n == 0) {
		json_object_del(attached, at->name);
		rpc_finish(at->request, rc < 0 ? rc : -ENODEV, err);
		free(at);
		return;
	}
	if (make_bdevs(ctrlr, false, at->err) == ctrlr->num_ns && ctrlr->num_ns) {
		json_object_del(attached, at->name);
		dp_spdk_detach(at->name, undone, at); /* nothing of it is of any use */
	} else {
		shown = json_array();
		for (size_t i = 0; i < ctrlr->num_ns; i++)
			json_array_append_new(shown, facts_of(&ctrlr->ns[i]));
		rpc_reply(at->request, shown);
		free(at);
	}
	dp_spdk_ctrlrs_free(ctrlr, n);
}

/* As they were given: what a control plane that finds the bdev compares with its own. */
static json_t *params_of(const struct rpc_nvme_attach *p)
{
	json_t *params = json_pack("{s:s, s:s, s:s}", "name", p->name, "trtype", p->trtype, "traddr", p->traddr);
	const struct {
		const char *key, *value;
	} texts[] = {{"adrfam", p->adrfam},   {"trsvcid", p->trsvcid},   {"subnqn", p->subnqn},
		     {"hostnqn", p->hostnqn}, {"hostaddr", p->hostaddr}, {"hostsvcid", p->hostsvcid}};

	for (size_t i = 0; i < DP_ARRAY_LEN(texts); i++)
		if (texts[i].value)
			json_object_set_new(params, texts[i].key, json_string(texts[i].value));
	if (p->hdgst)
		json_object_set_new(params, "hdgst", json_true());
	if (p->ddgst)
		json_object_set_new(params, "ddgst", json_true());
	if (p->ctrlr_loss_timeout_sec != INT32_MIN)
		json_object_set_new(params, "ctrlr_loss_timeout_sec", json_integer(p->ctrlr_loss_timeout_sec));
	if (p->reconnect_delay_sec != UINT32_MAX)
		json_object_set_new(params, "reconnect_delay_sec", json_integer(p->reconnect_delay_sec));
	if (p->fast_io_fail_timeout_sec != UINT32_MAX)
		json_object_set_new(params, "fast_io_fail_timeout_sec", json_integer(p->fast_io_fail_timeout_sec));
	return params;
}

/* [{"nsid": 1, "identity": "..."}, ...] */
static int known_of(const json_t *rows, struct dp_spdk_identity **known, char err[DP_ERR_MAX])
{
	size_t i, n = json_array_size(rows);
	const json_t *row;

	*known = n ? calloc(n, sizeof(**known)) : NULL;
	if (n && !*known)
		return -ENOMEM;
	json_array_foreach (rows, i, row) {
		const json_t *nsid = json_object_get(row, "nsid");
		const char *text = json_string_value(json_object_get(row, "identity"));

		if (!json_is_integer(nsid) || json_integer_value(nsid) < 1 || json_integer_value(nsid) >= UINT32_MAX || !text ||
		    strlen(text) > DP_SPDK_IDENTITY_MAX) {
			snprintf(err, DP_ERR_MAX, "namespaces: expected members nsid, and identity of %d bytes at most",
				 DP_SPDK_IDENTITY_MAX);
			free(*known);
			return -EINVAL;
		}
		(*known)[i].nsid = (uint32_t)json_integer_value(nsid);
		memcpy((*known)[i].text, text, strlen(text));
	}
	return 0;
}

void rpc_nvme_attach(struct rpc_request *request, const void *params)
{
	const struct rpc_nvme_attach *p = params;
	struct dp_spdk_options times;
	struct dp_spdk_attach attach = {
		.name = p->name,
		.trtype = p->trtype,
		.traddr = p->traddr,
		.adrfam = p->adrfam,
		.trsvcid = p->trsvcid,
		.subnqn = p->subnqn,
		.hostnqn = p->hostnqn,
		.hostaddr = p->hostaddr,
		.hostsvcid = p->hostsvcid,
		.hdgst = p->hdgst,
		.ddgst = p->ddgst,
		.own_times = true,
	};
	struct dp_spdk_identity *known;
	char err[DP_ERR_MAX] = "";
	struct attaching *at;
	int rc;

	dp_spdk_get_options(&times);
	attach.ctrlr_loss_timeout_sec =
		p->ctrlr_loss_timeout_sec != INT32_MIN ? p->ctrlr_loss_timeout_sec : times.ctrlr_loss_timeout_sec;
	attach.reconnect_delay_sec = p->reconnect_delay_sec != UINT32_MAX ? p->reconnect_delay_sec : times.reconnect_delay_sec;
	attach.fast_io_fail_timeout_sec =
		p->fast_io_fail_timeout_sec != UINT32_MAX ? p->fast_io_fail_timeout_sec : times.fast_io_fail_timeout_sec;
	if (!attached)
		attached = json_object();
	if (strlen(p->name) > DP_SPDK_NAME_MAX) {
		rpc_finish(request, -EINVAL, "the name is too long");
		return;
	}
	if (json_object_get(attached, p->name)) {
		rpc_fail(request, -EEXIST, "a controller named %.60s exists already", p->name);
		return;
	}
	rc = known_of(p->namespaces, &known, err);
	if (rc < 0) {
		rpc_finish(request, rc, err[0] ? err : NULL);
		return;
	}
	at = calloc(1, sizeof(*at));
	if (!at) {
		free(known);
		rpc_finish(request, -ENOMEM, NULL);
		return;
	}
	attach.known = known;
	attach.num_known = json_array_size(p->namespaces);
	at->request = request;
	snprintf(at->name, sizeof(at->name), "%s", p->name);
	json_object_set_new(attached, p->name, params_of(p));
	dp_spdk_watch(ctrlr_changed);
	dp_spdk_attach(&attach, attach_over, at);
	free(known);
}

/* -- detach ---------------------------------------------------------------------------------------------------------- */

struct detaching {
	struct rpc_request *request;
	char name[DP_SPDK_NAME_MAX + 1];
	json_t *params;
	unsigned left;
	int rc;
};

static void detached(void *arg, int rc, const char *err)
{
	struct detaching *d = arg;

	if (rc < 0 && rc != -ENODEV) {
		json_object_set(attached, d->name, d->params);
		ctrlr_changed(d->name); /* its bdevs are back */
	}
	rpc_finish(d->request, rc, err);
	json_decref(d->params);
	free(d);
}

static void bdev_removed(void *arg, int rc)
{
	struct detaching *d = arg;

	if (rc < 0 && rc != -ENODEV)
		d->rc = rc;
	if (--d->left)
		return;
	if (d->rc < 0)
		detached(d, d->rc, "one of its bdevs is in use: another bdev lies on it, or it is being calibrated");
	else
		dp_spdk_detach(d->name, detached, d);
}

void rpc_nvme_detach(struct rpc_request *request, const void *params)
{
	const struct rpc_bdev_name *p = params;
	json_t *made_from = json_object_get(attached, p->name);
	struct dp_spdk_ctrlr *ctrlr = NULL;
	size_t n = made_from ? dp_spdk_ctrlrs(p->name, &ctrlr) : 0;
	struct detaching *d = n ? calloc(1, sizeof(*d)) : NULL;

	if (!d) {
		rpc_fail(request, made_from ? -EBUSY : -ENODEV,
			 made_from ? "controller '%.60s' is being attached" : "there is no controller '%.60s'", p->name);
		dp_spdk_ctrlrs_free(ctrlr, n);
		return;
	}
	*d = (struct detaching){.request = request, .params = json_incref(made_from), .left = 1};
	snprintf(d->name, sizeof(d->name), "%s", p->name);
	json_object_del(attached, d->name);
	rpc_bdev_remove_made_from(d->params, bdev_removed, d, &d->left);
	dp_spdk_ctrlrs_free(ctrlr, n);
	bdev_removed(d, 0);
}

/* -- look ------------------------------------------------------------------------------------------------------------ */

static json_t *ctrlr_json(const struct dp_spdk_ctrlr *c)
{
	json_t *trid = json_pack("{s:s, s:s}", "trtype", c->trtype, "traddr", c->traddr);
	json_t *namespaces = json_array(), *one;

	if (!c->dma) {
		json_object_set_new(trid, "adrfam", json_string(c->adrfam));
		json_object_set_new(trid, "trsvcid", json_string(c->trsvcid));
		json_object_set_new(trid, "subnqn", json_string(c->subnqn));
	}
	for (size_t i = 0; i < c->num_ns; i++)
		json_array_append_new(namespaces, facts_of(&c->ns[i]));
	one = json_pack("{s:s, s:o, s:i, s:{s:s}, s:s, s:s, s:s, s:I, s:b, s:I, s:I, s:I, s:I, s:I, s:o}", "state",
			states[c->state], "trid", trid, "cntlid", (int)c->cntlid, "host", "nqn", c->hostnqn, "serial_number",
			c->serial, "model_number", c->model, "firmware_revision", c->firmware, "mdts_bytes",
			(json_int_t)c->mdts_bytes, "dma", c->dma, "resets", (json_int_t)c->resets, "timeouts",
			(json_int_t)c->timeouts, "retries", (json_int_t)c->retries, "bounced_ops", (json_int_t)c->bounced_ops,
			"bounced_bytes", (json_int_t)c->bounced_bytes, "namespaces", namespaces);
	json_object_set_new(one, "vendor_id", json_integer(c->vendor));
	json_object_set_new(one, "subnqn", json_string(c->own_nqn));
	return json_pack("{s:s, s:[o]}", "name", c->name, "ctrlrs", one);
}

void rpc_nvme_get_controllers(struct rpc_request *request, const void *params)
{
	const struct rpc_bdev_name *p = params;
	struct dp_spdk_ctrlr *ctrlrs;
	size_t n = dp_spdk_ctrlrs(p->name, &ctrlrs);
	json_t *shown = json_array();

	for (size_t i = 0; i < n; i++)
		json_array_append_new(shown, ctrlr_json(&ctrlrs[i]));
	dp_spdk_ctrlrs_free(ctrlrs, n);
	if (p->name && n == 0) {
		json_decref(shown);
		rpc_fail(request, -ENODEV, "there is no controller '%.60s'", p->name);
	} else {
		rpc_reply(request, shown);
	}
}

static void reset_over(void *arg, int rc, const char *err)
{
	rpc_finish(arg, rc, err);
}

void rpc_nvme_reset(struct rpc_request *request, const void *params)
{
	dp_spdk_reset(((const struct rpc_bdev_name *)params)->name, reset_over, request);
}

struct health {
	struct rpc_request *request;
	char name[DP_SPDK_NAME_MAX + 1];
};

static json_t *number(const uint8_t *at)
{
	const uint64_t value = get64(at); /* of 128 bits; nothing counts that far */

	return json_integer((json_int_t)(value > INT64_MAX ? INT64_MAX : value));
}

static void health_over(void *arg, int rc, const char *err, const uint8_t page[512])
{
	static const struct {
		const char *key;
		size_t at;
	} counts[] = {{"data_units_read", 32},       {"data_units_written", 48}, {"host_read_commands", 64},
		      {"host_write_commands", 80},   {"controller_busy_time", 96}, {"power_cycles", 112},
		      {"power_on_hours", 128},       {"unsafe_shutdowns", 144},  {"media_errors", 160},
		      {"num_err_log_entries", 176}};
	struct health *health = arg;
	struct dp_spdk_ctrlr *ctrlr = NULL;
	size_t n = rc < 0 ? 0 : dp_spdk_ctrlrs(health->name, &ctrlr);

	if (n == 0) {
		rpc_finish(health->request, rc < 0 ? rc : -ENODEV, err);
	} else {
		json_t *shown = json_pack("{s:s, s:s, s:s, s:s, s:i, s:i, s:i, s:i, s:i}", "model_number", ctrlr->model,
					  "serial_number", ctrlr->serial, "firmware_revision", ctrlr->firmware, "traddr",
					  ctrlr->traddr, "critical_warning", page[0], "temperature_celsius",
					  get16(page + 1) - 273, "available_spare_percentage", page[3],
					  "available_spare_threshold_percentage", page[4], "percentage_used", page[5]);

		for (size_t i = 0; i < DP_ARRAY_LEN(counts); i++)
			json_object_set_new(shown, counts[i].key, number(page + counts[i].at));
		json_object_set_new(shown, "warning_temperature_time_minutes", json_integer(get32(page + 192)));
		json_object_set_new(shown, "critical_composite_temperature_time_minutes", json_integer(get32(page + 196)));
		rpc_reply(health->request, shown);
	}
	dp_spdk_ctrlrs_free(ctrlr, n);
	free(health);
}

void rpc_nvme_health(struct rpc_request *request, const void *params)
{
	const struct rpc_bdev_name *p = params;
	struct health *health = calloc(1, sizeof(*health));

	if (!health) {
		rpc_finish(request, -ENOMEM, NULL);
		return;
	}
	health->request = request;
	snprintf(health->name, sizeof(health->name), "%s", p->name);
	dp_spdk_health(p->name, health_over, health);
}

/* -- options --------------------------------------------------------------------------------------------------------- */

void rpc_nvme_set_options(struct rpc_request *request, const void *params)
{
	static const char *const actions[] = {[DP_SPDK_ACTION_NONE] = "none",
					      [DP_SPDK_ACTION_ABORT] = "abort",
					      [DP_SPDK_ACTION_RESET] = "reset"};
	const struct rpc_nvme_options *p = params;
	struct dp_spdk_options options;
	char err[DP_ERR_MAX] = "";
	size_t action = 0;

	dp_spdk_get_options(&options);
	while (p->action_on_timeout && action < DP_ARRAY_LEN(actions) && strcmp(p->action_on_timeout, actions[action]) != 0)
		action++;
	if (action == DP_ARRAY_LEN(actions)) {
		rpc_fail(request, RPC_INVALID_PARAMS, "params: action_on_timeout: expected none, abort or reset");
		return;
	}
	if (p->action_on_timeout)
		options.action_on_timeout = (enum dp_spdk_action)action;
	if (p->timeout_us != UINT64_MAX)
		options.timeout_us = p->timeout_us;
	if (p->timeout_admin_us != UINT64_MAX)
		options.timeout_admin_us = p->timeout_admin_us;
	if (p->keep_alive_timeout_ms != UINT64_MAX)
		options.keep_alive_timeout_ms = p->keep_alive_timeout_ms;
	if (p->bdev_retry_count != INT32_MIN)
		options.bdev_retry_count = p->bdev_retry_count;
	if (p->ctrlr_loss_timeout_sec != INT32_MIN)
		options.ctrlr_loss_timeout_sec = p->ctrlr_loss_timeout_sec;
	if (p->reconnect_delay_sec != UINT32_MAX)
		options.reconnect_delay_sec = p->reconnect_delay_sec;
	if (p->fast_io_fail_timeout_sec != UINT32_MAX)
		options.fast_io_fail_timeout_sec = p->fast_io_fail_timeout_sec;
	rpc_finish(request, dp_spdk_set_options(&options, err), err);
}

void rpc_nvme_set_hotplug(struct rpc_request *request, const void *params)
{
	const struct rpc_nvme_hotplug *p = params;

	if (!dp_spdk_built()) {
		rpc_fail(request, -EOPNOTSUPP, DP_SPDK_BUILT_WITHOUT);
		return;
	}
	dp_spdk_set_hotplug(p->enable, p->period_us);
	rpc_finish(request, 0, NULL);
}

json_t *rpc_spdk_info(void)
{
	return json_pack("{s:b, s:s?, s:b}", "built", dp_spdk_built(), "version", dp_spdk_version(), "active", dp_spdk_active());
}

void rpc_spdk_forget_all(void)
{
	json_decref(attached);
	attached = NULL;
}

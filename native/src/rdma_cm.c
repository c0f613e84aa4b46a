/* SPDX-License-Identifier: BSD-3-Clause
 *
 * rdma_cm.c: listeners, and connection requests judged by their private data (RDMA 3.3). Everything here is on the
 * control thread. A listener whose device goes away stays on the list and is tried again each second.
 */
#include "rdma_priv.h"

#include <arpa/inet.h>
#include <errno.h>
#include <fcntl.h>
#include <netdb.h>
#include <stdio.h>
#include <stdlib.h>
#include <sys/epoll.h>
#include <sys/timerfd.h>
#include <unistd.h>

#define CONNS_MAX 1024u        /* that are no I/O queue */
#define CONNECTING_MAX 256u    /* of those: will be I/O queues */
#define CM_REQUEST_BYTES 32u
#define CNTLID_LAST 0xFFEFu
#define ENTRIES_MAX 0x4000u

enum cm_status {
	CM_OK = 0,
	CM_LENGTH = 1,
	CM_RECFMT = 2,
	CM_QID = 3,
	CM_HSQSIZE = 4,
	CM_HRQSIZE = 5,
	CM_RESOURCES = 6,
	CM_IRD = 7,
	CM_ORD = 8,
	CM_CNTLID = 9,
};

struct listener {
	LIST_ENTRY(listener) link;
	struct rdma_cm_id *id; /* NULL: its device is gone */
	char *traddr, *trsvcid, *adrfam;
	struct dp_rdma_listen options;
};

/* An identifier that is bound to a device from its first request on, and tells of its removal: nothing else may be. */
struct anchor {
	LIST_ENTRY(anchor) link;
	struct rdma_cm_id *id;
};

static LIST_HEAD(, listener) listeners = LIST_HEAD_INITIALIZER(listeners);
static LIST_HEAD(, anchor) anchors = LIST_HEAD_INITIALIZER(anchors);
static struct rdma_event_channel *channel;
static struct loop_source channel_source = { .fd = -1 }, timer_source = { .fd = -1 };

/* -- a clock for what is rare */

static void retry_listeners(void);

static bool some_are_down(void)
{
	struct listener *l;

	LIST_FOREACH(l, &listeners, link)
		if (!l->id)
			return true;
	return false;
}

static void set_tick(bool on)
{
	struct itimerspec spec = { .it_value.tv_sec = on, .it_interval.tv_sec = on };

	if (timer_source.fd >= 0)
		timerfd_settime(timer_source.fd, 0, &spec, NULL);
}

static void on_tick(struct loop_source *source, uint32_t events)
{
	uint64_t count;
	bool more;

	if (read(source->fd, &count, sizeof(count)) < 0)
		return;
	more = rdma_ctl_tick();
	retry_listeners();
	if (!more && !some_are_down())
		set_tick(false);
}

void rdma_cm_want_tick(void)
{
	set_tick(true);
}

/* -- connection requests */

static void refuse(struct rdma_cm_id *id, enum cm_status status, const char *why)
{
	uint8_t data[4] = { 0 };

	put16(data + 2, status);
	log_info("rdma.refused", "a connection request: %s", why);
	rdma_reject(id, data, sizeof(data));
	rdma_destroy_id(id);
}

struct request_data {
	uint8_t bytes[CM_REQUEST_BYTES];
	size_t len;
	uint8_t host_ird; /* RDMA READs that the host serves at a time */
};

static enum cm_status judge(const struct request_data *data, const struct listener *l, const char **why)
{
	uint16_t qid = get16(data->bytes + 2), hrqsize = get16(data->bytes + 4), hsqsize = get16(data->bytes + 6);
	uint16_t cntlid = get16(data->bytes + 8);
	uint32_t most = qid ? l->options.max_queue_depth : l->options.max_aq_depth;

	if (data->len < CM_REQUEST_BYTES) {
		*why = "private data of less than 32 bytes";
		return CM_LENGTH;
	}
	if (get16(data->bytes) != 0) {
		*why = "RECFMT";
		return CM_RECFMT;
	}
	if (qid == 0xFFFF) {
		*why = "QID";
		return CM_QID;
	}
	if (hsqsize == 0 || hsqsize + 1u > most) {
		*why = "HSQSIZE";
		return CM_HSQSIZE;
	}
	if (hrqsize == 0 || hrqsize < hsqsize) {
		*why = "HRQSIZE";
		return CM_HRQSIZE;
	}
	if (data->host_ird == 0) {
		*why = "the host serves no RDMA READ";
		return CM_IRD;
	}
	if (qid && cntlid > CNTLID_LAST) {
		*why = "CNTLID";
		return CM_CNTLID;
	}
	return CM_OK;
}

static uint8_t take_address(const struct sockaddr *address, uint8_t bytes[16], uint16_t *port)
{
	if (address->sa_family == AF_INET6) {
		const struct sockaddr_in6 *in6 = (const struct sockaddr_in6 *)address;

		memcpy(bytes, &in6->sin6_addr, 16);
		*port = ntohs(in6->sin6_port);
		return 2;
	}
	const struct sockaddr_in *in = (const struct sockaddr_in *)address;

	memcpy(bytes, &in->sin_addr, 4);
	*port = ntohs(in->sin_port);
	return 1;
}

static void tell(const struct rdma_conn *c, const struct request_data *data)
{
	struct dp_rdma_connected connected = { .conn = c->ident,
					       .qid = c->qid,
					       .hrqsize = get16(data->bytes + 4),
					       .hsqsize = get16(data->bytes + 6),
					       .cntlid = get16(data->bytes + 8) };

	connected.adrfam = take_address(rdma_get_local_addr(c->id), connected.local, &connected.local_port);
	take_address(rdma_get_peer_addr(c->id), connected.peer, &connected.peer_port);
	rdma_ctl_events()->connected(&connected);
}

static int accept_it(struct rdma_conn *c, const struct request_data *data)
{
	uint8_t answer[32] = { 0 };
	struct rdma_conn_param param = { .private_data = answer,
					 .private_data_len = sizeof(answer),
					 .responder_resources = 0,
					 .initiator_depth = (uint8_t)c->ord,
					 .flow_control = 1,
					 .rnr_retry_count = 7,
					 .srq = c->rx->srq != NULL };

	put16(answer + 2, c->entries);
	return rdma_accept(c->id, &param) < 0 ? -errno : 0;
}

static void on_request(struct rdma_cm_id *id, const struct listener *l, const struct request_data *data)
{
	struct rdma_conn_params params = { .qid = get16(data->bytes + 2), .ord = data->host_ird };
	const char *why = "";
	enum cm_status status = judge(data, l, &why);
	struct rdma_conn *c;
	int rc;

	if (status == CM_OK && (rdma_ctl_count(false) >= CONNS_MAX || (params.qid && rdma_ctl_count(true) >= CONNECTING_MAX))) {
		status = CM_RESOURCES;
		why = "there are too many connections that are not I/O queues";
	}
	if (status != CM_OK) {
		refuse(id, status, why);
		return;
	}
	params.entries = (uint16_t)(get16(data->bytes + 6) + 1);
	params.icd_max = l->options.in_capsule_data_size;
	params.srq_depth = l->options.no_srq ? 0 : l->options.max_srq_depth;
	c = rdma_conn_new(id, &params, &rc);
	if (!c) {
		refuse(id, CM_RESOURCES, strerror(-rc));
		return;
	}
	if (c->ord > (uint32_t)c->dev->attr.max_qp_init_rd_atom)
		c->ord = (uint32_t)c->dev->attr.max_qp_init_rd_atom;
	c->dev->accepted++;
	tell(c, data);
	rc = accept_it(c, data);
	if (rc < 0)
		rdma_ctl_end(c, strerror(-rc));
}

/* -- devices */

static void anchor_free(struct anchor *anchor)
{
	LIST_REMOVE(anchor, link);
	rdma_destroy_id(anchor->id);
	free(anchor);
}

static struct anchor *anchor_of(const struct ibv_context *verbs)
{
	struct anchor *anchor;

	LIST_FOREACH(anchor, &anchors, link)
		if (anchor->id->verbs == verbs)
			return anchor;
	return NULL;
}

/* librdmacm has opened the device that a request came by, whatever becomes of the request. */
static void hold(struct rdma_cm_id *request)
{
	struct anchor *anchor = anchor_of(request->verbs) ? NULL : calloc(1, sizeof(*anchor));
	struct sockaddr_storage address = { 0 };

	if (!anchor)
		return;
	if (rdma_create_id(channel, &anchor->id, NULL, RDMA_PS_TCP) < 0) {
		free(anchor);
		return;
	}
	if (rdma_get_local_addr(request)->sa_family == AF_INET6) {
		memcpy(&address, rdma_get_local_addr(request), sizeof(struct sockaddr_in6));
		((struct sockaddr_in6 *)&address)->sin6_port = 0;
	} else {
		memcpy(&address, rdma_get_local_addr(request), sizeof(struct sockaddr_in));
		((struct sockaddr_in *)&address)->sin_port = 0;
	}
	LIST_INSERT_HEAD(&anchors, anchor, link);
	if (rdma_bind_addr(anchor->id, (struct sockaddr *)&address) < 0 || anchor->id->verbs != request->verbs)
		anchor_free(anchor);
}

bool rdma_cm_uses(const struct ibv_context *verbs)
{
	const struct listener *l;

	LIST_FOREACH(l, &listeners, link)
		if (l->id && l->id->verbs == verbs)
			return true;
	return anchor_of(verbs) != NULL;
}

/* -- events */

static void listener_down(struct listener *l)
{
	log_warning("rdma.listener", "%s:%s: the RDMA device is gone; it is tried again", l->traddr, l->trsvcid);
	rdma_destroy_id(l->id);
	l->id = NULL;
	rdma_cm_want_tick();
}

void rdma_cm_lost(struct rdma_conn *c, const char *why)
{
	if (c->io)
		rdma_queue_lost(c, why);
	else
		rdma_ctl_end(c, why);
}

static bool is_listener(const void *context)
{
	const struct listener *l;

	LIST_FOREACH(l, &listeners, link)
		if (l == context)
			return true;
	return false;
}

static void on_event(enum rdma_cm_event_type type, struct rdma_cm_id *id, struct rdma_cm_id *listen_id,
		     const struct request_data *data)
{
	void *context = id->context;

	switch (type) {
	case RDMA_CM_EVENT_CONNECT_REQUEST:
		hold(id);
		if (listen_id && is_listener(listen_id->context))
			on_request(id, listen_id->context, data);
		else
			refuse(id, CM_RESOURCES, "the listener is gone");
		break;
	case RDMA_CM_EVENT_DEVICE_REMOVAL:
		rdma_dev_removed(id->verbs); /* before its last identifier goes */
		if (is_listener(context))
			listener_down(context);
		else if (context)
			rdma_cm_lost(context, "the RDMA device is gone");
		else if (anchor_of(id->verbs) && anchor_of(id->verbs)->id == id)
			anchor_free(anchor_of(id->verbs));
		rdma_dev_settle();
		break;
	case RDMA_CM_EVENT_DISCONNECTED:
		if (context && !is_listener(context))
			rdma_cm_lost(context, "closed by the host");
		break;
	case RDMA_CM_EVENT_CONNECT_ERROR:
	case RDMA_CM_EVENT_UNREACHABLE:
	case RDMA_CM_EVENT_REJECTED:
		if (context && !is_listener(context))
			rdma_cm_lost(context, rdma_event_str(type));
		break;
	default:
		break;
	}
}

static void on_channel(struct loop_source *source, uint32_t ready)
{
	struct rdma_cm_event *event;

	while (channel && rdma_get_cm_event(channel, &event) == 0) {
		enum rdma_cm_event_type type = event->event;
		struct rdma_cm_id *id = event->id, *listen_id = event->listen_id;
		const struct rdma_conn_param *param = &event->param.conn;
		struct request_data data = { .len = param->private_data_len };

		if (param->private_data && data.len)
			memcpy(data.bytes, param->private_data, min_u32((uint32_t)data.len, CM_REQUEST_BYTES));
		else
			data.len = 0;
		data.host_ird = param->initiator_depth;
		rdma_ack_cm_event(event); /* what it names may be destroyed from now on */
		on_event(type, id, listen_id, &data);
	}
}

/* -- listeners */

static int open_channel(char err[DP_ERR_MAX])
{
	if (channel)
		return 0;
	channel = rdma_create_event_channel();
	if (!channel) {
		int rc = errno == ENOENT ? ENODEV : errno;

		snprintf(err, DP_ERR_MAX, "no RDMA device, or the kernel's rdma_ucm is not loaded (%s)", strerror(errno));
		return -rc;
	}
	fcntl(channel->fd, F_SETFL, O_NONBLOCK);
	channel_source = (struct loop_source){ .fd = channel->fd, .ready = on_channel };
	timer_source = (struct loop_source){ .fd = timerfd_create(CLOCK_MONOTONIC, TFD_NONBLOCK | TFD_CLOEXEC),
					     .ready = on_tick };
	if (timer_source.fd < 0 || loop_add(&channel_source, EPOLLIN) < 0 || loop_add(&timer_source, EPOLLIN) < 0)
		return -errno;
	return 0;
}

static int listener_up(struct listener *l, char err[DP_ERR_MAX])
{
	struct addrinfo hints = { .ai_flags = AI_NUMERICHOST | AI_NUMERICSERV | AI_PASSIVE, .ai_socktype = SOCK_STREAM };
	struct addrinfo *found = NULL;
	int one = 1, rc = 0;

	hints.ai_family = strcasecmp(l->adrfam, "ipv6") == 0 ? AF_INET6 : AF_INET;
	if (getaddrinfo(l->traddr, l->trsvcid, &hints, &found) != 0 || !found) {
		snprintf(err, DP_ERR_MAX, "%.100s:%.20s is no %.10s address and port", l->traddr, l->trsvcid, l->adrfam);
		return -EINVAL;
	}
	if (rdma_create_id(channel, &l->id, l, RDMA_PS_TCP) < 0) {
		rc = -errno;
		l->id = NULL;
	}
	if (rc == 0) {
		rdma_set_option(l->id, RDMA_OPTION_ID, RDMA_OPTION_ID_REUSEADDR, &one, sizeof(one));
		if (hints.ai_family == AF_INET6)
			rdma_set_option(l->id, RDMA_OPTION_ID, RDMA_OPTION_ID_AFONLY, &one, sizeof(one));
		if (rdma_bind_addr(l->id, found->ai_addr) < 0 || rdma_listen(l->id, (int)l->options.backlog) < 0)
			rc = -errno;
	}
	freeaddrinfo(found);
	if (rc < 0) {
		snprintf(err, DP_ERR_MAX, "%.100s:%.20s: %s%s", l->traddr, l->trsvcid, strerror(-rc),
			 rc == -ENODEV ? " (no RDMA device has this address)" : "");
		if (l->id)
			rdma_destroy_id(l->id);
		l->id = NULL;
	}
	return rc;
}

static void retry_listeners(void)
{
	char err[DP_ERR_MAX];
	struct listener *l;

	LIST_FOREACH(l, &listeners, link)
		if (!l->id && listener_up(l, err) == 0)
			log_info("rdma.listener", "%s:%s: the RDMA device is back", l->traddr, l->trsvcid);
}

static void listener_free(struct listener *l)
{
	if (l->id)
		rdma_destroy_id(l->id);
	free(l->traddr);
	free(l->trsvcid);
	free(l->adrfam);
	free(l);
	rdma_dev_settle();
}

static struct listener *find(const char *traddr, const char *trsvcid, const char *adrfam)
{
	struct listener *l;

	LIST_FOREACH(l, &listeners, link)
		if (strcmp(l->traddr, traddr) == 0 && strcmp(l->trsvcid, trsvcid) == 0 && strcasecmp(l->adrfam, adrfam) == 0)
			return l;
	return NULL;
}

static int check_options(const struct dp_rdma_listen *o, char err[DP_ERR_MAX])
{
	if (strcasecmp(o->adrfam, "ipv4") != 0 && strcasecmp(o->adrfam, "ipv6") != 0) {
		snprintf(err, DP_ERR_MAX, "address family %.20s: it is IPv4 or IPv6", o->adrfam);
		return -EINVAL;
	}
	if (o->max_queue_depth < 2 || o->max_queue_depth > ENTRIES_MAX || o->max_aq_depth < 2 ||
	    o->max_aq_depth > ENTRIES_MAX || o->in_capsule_data_size > 60u << 10) {
		snprintf(err, DP_ERR_MAX, "queues of such a size, or with so much in-capsule data, cannot be");
		return -EINVAL;
	}
	return 0;
}

bool dp_rdma_built(void)
{
	return true;
}

json_t *dp_rdma_pool(const char *name)
{
	return rdma_dev_pool(name);
}

void dp_rdma_init(const struct dp_rdma_events *events)
{
	engine_pools_tell(rdma_dev_pool_changed);
	rdma_ctl_init(events);
}

int dp_rdma_listen(const struct dp_rdma_listen *options, char err[DP_ERR_MAX])
{
	struct listener *l;
	int rc = check_options(options, err);

	if (rc == 0)
		rc = open_channel(err);
	if (rc < 0)
		return rc;
	if (find(options->traddr, options->trsvcid, options->adrfam)) {
		snprintf(err, DP_ERR_MAX, "%.100s:%.20s is listened on already", options->traddr, options->trsvcid);
		return -EEXIST;
	}
	l = calloc(1, sizeof(*l));
	if (!l)
		return -ENOMEM;
	l->options = *options;
	l->traddr = strdup(options->traddr);
	l->trsvcid = strdup(options->trsvcid);
	l->adrfam = strdup(options->adrfam);
	rc = l->traddr && l->trsvcid && l->adrfam ? listener_up(l, err) : -ENOMEM;
	if (rc < 0) {
		listener_free(l);
		return rc;
	}
	LIST_INSERT_HEAD(&listeners, l, link);
	log_info("rdma.listening", "%s:%s", l->traddr, l->trsvcid);
	return 0;
}

int dp_rdma_unlisten(const char *traddr, const char *trsvcid, const char *adrfam)
{
	struct listener *l = find(traddr, trsvcid, adrfam);

	if (!l)
		return -ENOENT;
	LIST_REMOVE(l, link);
	listener_free(l);
	return 0;
}

json_t *dp_rdma_devices(void)
{
	return rdma_dev_list();
}

json_t *dp_rdma_info(void)
{
	struct listener *l;
	int n = 0;

	LIST_FOREACH(l, &listeners, link)
		n++;
	return json_pack("{s:b, s:i, s:i}", "built", 1, "listeners", n, "connections", (int)rdma_ctl_count(false));
}

void dp_rdma_reset(void)
{
	while (!LIST_EMPTY(&listeners)) {
		struct listener *l = LIST_FIRST(&listeners);

		LIST_REMOVE(l, link);
		listener_free(l);
	}
	rdma_ctl_end_all("the control plane is gone");
}

void dp_rdma_fini(void)
{
	engine_pools_tell(NULL);
	rdma_dev_fini();
	while (!LIST_EMPTY(&anchors))
		anchor_free(LIST_FIRST(&anchors));
	if (channel) {
		loop_remove(&channel_source);
		loop_remove(&timer_source);
		close(timer_source.fd);
		rdma_destroy_event_channel(channel);
		channel = NULL;
		timer_source.fd = -1;
	}
}

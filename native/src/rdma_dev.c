/* SPDX-License-Identifier: BSD-3-Clause
 *
 * rdma_dev.c: a device in use: its protection domain and the memory that it knows. Staging memory is registered once,
 * when the first connection comes.
 *
 * librdmacm opens the device itself, and keeps it open when it has gone: until it looks for devices and finds another one.
 * A kernel driver that cannot take a device away from its users (soft RoCE cannot) waits for that: `rdma link delete` hangs.
 * So once nothing of ours is in a device that is gone, its files are closed here, behind librdmacm's back.
 */
#include "rdma_priv.h"

#include "pool_device.h"
#include "pool_priv.h"

#include <arpa/inet.h>
#include <assert.h>
#include <errno.h>
#include <fcntl.h>
#include <stdlib.h>
#include <sys/epoll.h>
#include <sys/stat.h>
#include <unistd.h>

#define CTL_POOL_BYTES (8u << 20)
#define GIDS_MAX 16

/* A device that is gone and that librdmacm has open. */
struct absent {
	LIST_ENTRY(absent) link;
	const struct ibv_context *verbs; /* to be compared only */
	int cmd_fd, async_fd;
	dev_t rdev;
};

static LIST_HEAD(, rdma_dev) devs = LIST_HEAD_INITIALIZER(devs);
static LIST_HEAD(, absent) absents = LIST_HEAD_INITIALIZER(absents);
struct staging rdma_ctl_pool;

struct rdma_counters *rdma_count(struct rdma_dev *dev, const struct reactor *r)
{
	return &dev->count[r ? r->id : REACTORS_MAX];
}

/* -- shared receive queue */

static void srq_fini(struct rdma_dev *dev)
{
	if (!dev->srq)
		return;
	if (dev->srq->srq)
		ibv_destroy_srq(dev->srq->srq);
	rdma_rx_fini(dev->srq);
	free(dev->srq);
	dev->srq = NULL;
}

static bool srq_fill(struct rdma_dev *dev)
{
	struct rdma_rx *rx = dev->srq;

	for (uint32_t i = 0; i < rx->slots; i++) {
		struct ibv_sge sge = { (uintptr_t)rx->mem + (size_t)i * rx->slot_bytes, rx->slot_bytes, rx->mr->lkey };
		struct ibv_recv_wr wr = { .wr_id = RDMA_WR(RDMA_WR_RECV, i), .sg_list = &sge, .num_sge = 1 }, *bad;

		if (ibv_post_srq_recv(rx->srq, &wr, &bad))
			return false;
	}
	return true;
}

/* The first that asks says how large it is; who needs larger slots has a queue of its own. */
struct rdma_rx *rdma_dev_srq(struct rdma_dev *dev, uint32_t depth, uint32_t icd_max)
{
	struct ibv_srq_init_attr attr = { .attr = { .max_sge = 1 } };

	if (dev->srq)
		return dev->srq_icd >= icd_max ? dev->srq : NULL;
	if (dev->attr.max_srq <= 0 || dev->attr.max_srq_wr <= 0)
		return NULL;
	depth = min_u32(depth, (uint32_t)dev->attr.max_srq_wr);
	dev->srq = calloc(1, sizeof(*dev->srq));
	if (!dev->srq)
		return NULL;
	attr.attr.max_wr = depth;
	dev->srq_icd = icd_max;
	if (rdma_rx_init(dev->srq, dev, depth, icd_max, 0) < 0) {
		free(dev->srq);
		dev->srq = NULL;
		return NULL;
	}
	dev->srq->srq = ibv_create_srq(dev->pd, &attr);
	if (!dev->srq->srq || !srq_fill(dev)) {
		log_warning("rdma.srq", "%s: no shared receive queue of %u entries: %s", ibv_get_device_name(dev->verbs->device),
			    depth, strerror(errno));
		srq_fini(dev);
		return NULL;
	}
	return dev->srq;
}

/* -- asynchronous events */

static void dev_ended(struct rdma_dev *dev, const char *why);

static void on_async(struct loop_source *source, uint32_t events)
{
	struct rdma_dev *dev = dp_container_of(source, struct rdma_dev, async);
	struct ibv_async_event event;

	while (ibv_get_async_event(dev->verbs, &event) == 0) {
		struct rdma_conn *c = NULL;

		switch (event.event_type) {
		case IBV_EVENT_QP_LAST_WQE_REACHED:
			c = event.element.qp->qp_context;
			atomic_store(&c->last_wqe, true);
			rdma_queue_wake(c);
			break;
		case IBV_EVENT_SRQ_LIMIT_REACHED:
			dev->srq_limits++;
			break;
		case IBV_EVENT_DEVICE_FATAL:
			log_error("rdma.fatal", "%s: %s", ibv_get_device_name(dev->verbs->device),
				  ibv_event_type_str(event.event_type));
			ibv_ack_async_event(&event);
			dev_ended(dev, "the RDMA device has failed");
			return; /* it may be no more */
		default:
			log_info("rdma.event", "%s: %s", ibv_get_device_name(dev->verbs->device),
				 ibv_event_type_str(event.event_type));
		}
		ibv_ack_async_event(&event);
	}
}

/* -- memory of pools that is a device's: there is no ibv_reg_mr of it, as that pins */

static void peer_register(struct rdma_dev *dev, struct pool *pool)
{
	const unsigned index = pool_index(pool);
	const int fd = pool->device ? pool_device_dmabuf(pool->device) : -1;
	struct ibv_mr *mr;

	dev->no_peer_mr[index][0] = 0;
	if (fd < 0) {
		snprintf(dev->no_peer_mr[index], sizeof(dev->no_peer_mr[index]), "there is no dma-buf of it");
		return;
	}
	mr = ibv_reg_dmabuf_mr(dev->pd, 0, pool->bytes, (uintptr_t)pool->base, fd, IBV_ACCESS_LOCAL_WRITE);
	if (!mr)
		snprintf(dev->no_peer_mr[index], sizeof(dev->no_peer_mr[index]), "its driver makes no region of a dma-buf: %s",
			 strerror(errno));
	atomic_store(&dev->peer_mr[index], mr);
	log_info("rdma.peer_memory", "%s and pool %s: %s", ibv_get_device_name(dev->verbs->device), pool_name(pool),
		 mr ? "registered" : dev->no_peer_mr[index]);
}

static void peer_forget(struct rdma_dev *dev, unsigned index)
{
	struct ibv_mr *mr = atomic_exchange(&dev->peer_mr[index], NULL);

	if (mr)
		ibv_dereg_mr(mr);
}

void rdma_dev_pool_changed(struct pool *pool, bool there)
{
	struct rdma_dev *dev;

	LIST_FOREACH(dev, &devs, link)
		if (!there)
			peer_forget(dev, pool_index(pool));
		else if (!dev->removed)
			peer_register(dev, pool);
}

static void peers_register(struct rdma_dev *dev)
{
	for (unsigned i = 1; i <= POOLS_MAX; i++)
		if (atomic_load(&pool_at(i)->state) == POOL_LIVE && !pool_at(i)->hidden && !pool_is_lost(pool_at(i)))
			peer_register(dev, pool_at(i));
}

json_t *rdma_dev_pool(const char *name)
{
	const struct pool *pool = pool_find(name);
	json_t *rows = json_array();
	struct rdma_dev *dev;

	LIST_FOREACH(dev, &devs, link)
		if (pool && !dev->removed)
			json_array_append_new(rows, json_pack("{s:s, s:b, s:s}", "device", ibv_get_device_name(dev->verbs->device),
							      "registered", atomic_load(&dev->peer_mr[pool_index(pool)]) != NULL,
							      "reason", dev->no_peer_mr[pool_index(pool)]));
	return rows;
}

/* -- life */

static void dev_free(struct rdma_dev *dev)
{
	LIST_REMOVE(dev, link);
	loop_remove(&dev->async);
	srq_fini(dev);
	for (unsigned i = 0; i < REACTORS_MAX; i++)
		if (dev->pool_mr[i])
			ibv_dereg_mr(dev->pool_mr[i]);
	if (dev->ctl_mr)
		ibv_dereg_mr(dev->ctl_mr);
	for (unsigned i = 1; i <= POOLS_MAX; i++)
		peer_forget(dev, i);
	if (dev->pd)
		ibv_dealloc_pd(dev->pd);
	free(dev);
}

static int dev_open(struct rdma_dev *dev)
{
	if (!rdma_ctl_pool.order) {
		int rc = staging_init(&rdma_ctl_pool, CTL_POOL_BYTES, false);

		if (rc < 0)
			return rc;
	}
	if (ibv_query_device(dev->verbs, &dev->attr))
		return -EIO;
	dev->pd = ibv_alloc_pd(dev->verbs);
	if (!dev->pd)
		return -errno;
	dev->ctl_mr = ibv_reg_mr(dev->pd, rdma_ctl_pool.base, rdma_ctl_pool.units * STAGING_UNIT, IBV_ACCESS_LOCAL_WRITE);
	if (!dev->ctl_mr)
		return -errno;
	for (unsigned i = 0; i < engine_reactors(); i++) {
		const struct staging *pool = &engine_reactor(i)->pool;

		dev->pool_mr[i] = ibv_reg_mr(dev->pd, pool->base, pool->units * STAGING_UNIT, IBV_ACCESS_LOCAL_WRITE);
		if (!dev->pool_mr[i])
			return -errno;
	}
	fcntl(dev->verbs->async_fd, F_SETFL, O_NONBLOCK);
	dev->async = (struct loop_source){ .fd = dev->verbs->async_fd, .ready = on_async };
	return loop_add(&dev->async, EPOLLIN);
}

struct rdma_dev *rdma_dev_get(struct ibv_context *verbs, int *rc)
{
	struct rdma_dev *dev;

	LIST_FOREACH(dev, &devs, link)
		if (dev->verbs == verbs && !dev->removed) {
			dev->users++;
			return dev;
		}
	dev = calloc(1, sizeof(*dev));
	if (!dev) {
		*rc = -ENOMEM;
		return NULL;
	}
	dev->verbs = verbs;
	dev->async.fd = -1;
	LIST_INSERT_HEAD(&devs, dev, link);
	*rc = dev_open(dev);
	if (*rc < 0) {
		log_error("rdma.device", "%s: %s%s", ibv_get_device_name(verbs->device), strerror(-*rc),
			  *rc == -ENOMEM ? " (is the limit of locked memory too low?)" : "");
		dev_free(dev);
		return NULL;
	}
	log_info("rdma.device", "%s: staging memory registered", ibv_get_device_name(verbs->device));
	dev->users = 1;
	peers_register(dev);
	return dev;
}

void rdma_dev_put(struct rdma_dev *dev)
{
	if (--dev->users == 0 && dev->removed)
		dev_free(dev);
}

void rdma_dev_fini(void)
{
	while (!LIST_EMPTY(&devs)) {
		struct rdma_dev *dev = LIST_FIRST(&devs);

		assert(dev->users == 0);
		dev_free(dev);
	}
	while (!LIST_EMPTY(&absents)) {
		struct absent *absent = LIST_FIRST(&absents);

		LIST_REMOVE(absent, link);
		free(absent);
	}
	staging_fini(&rdma_ctl_pool);
}

static void dev_ended(struct rdma_dev *dev, const char *why)
{
	struct rdma_conn *c;

	if (dev->removed)
		return;
	dev->removed = true;
	dev->users++;
	LIST_FOREACH(c, &dev->conns, dev_link)
		rdma_cm_lost(c, why);
	rdma_dev_put(dev);
}

static void remember(const struct ibv_context *verbs)
{
	struct absent *absent;
	struct stat st;

	LIST_FOREACH(absent, &absents, link)
		if (absent->verbs == verbs)
			return;
	absent = calloc(1, sizeof(*absent));
	if (!absent || fstat(verbs->cmd_fd, &st) < 0) {
		free(absent);
		return;
	}
	absent->verbs = verbs;
	absent->cmd_fd = verbs->cmd_fd;
	absent->async_fd = verbs->async_fd;
	absent->rdev = st.st_rdev;
	LIST_INSERT_HEAD(&absents, absent, link);
}

/* What names it is in use: the caller calls rdma_dev_settle once it has let go of that. */
void rdma_dev_removed(struct ibv_context *verbs)
{
	struct rdma_dev *dev, *next;

	remember(verbs);
	for (dev = LIST_FIRST(&devs); dev; dev = next) {
		next = LIST_NEXT(dev, link);
		if (dev->verbs == verbs)
			dev_ended(dev, "the RDMA device is gone");
	}
}

static bool in_use(const struct ibv_context *verbs)
{
	const struct rdma_dev *dev;

	LIST_FOREACH(dev, &devs, link)
		if (dev->verbs == verbs)
			return true;
	return rdma_cm_uses(verbs);
}

/* librdmacm closes these descriptors some day: then they are those of /dev/null. */
static void let_go(const struct absent *absent)
{
	struct stat st;
	int null;

	if (fstat(absent->cmd_fd, &st) < 0 || !S_ISCHR(st.st_mode) || st.st_rdev != absent->rdev)
		return; /* librdmacm has closed it */
	null = open("/dev/null", O_RDWR | O_CLOEXEC);
	if (null < 0)
		return;
	if (dup3(null, absent->async_fd, O_CLOEXEC) < 0 || dup3(null, absent->cmd_fd, O_CLOEXEC) < 0)
		log_warning("rdma.device", "a device that is gone stays open: %s", strerror(errno));
	close(null);
}

/* To be called whenever something of a device has been given back: then no identifier of librdmacm's was made meanwhile. */
void rdma_dev_settle(void)
{
	struct absent *absent, *next;

	for (absent = LIST_FIRST(&absents); absent; absent = next) {
		next = LIST_NEXT(absent, link);
		if (in_use(absent->verbs))
			continue;
		let_go(absent);
		LIST_REMOVE(absent, link);
		free(absent);
	}
}

/* -- what there is */

static uint64_t sum(const struct rdma_dev *dev, size_t offset)
{
	uint64_t total = 0;

	for (unsigned i = 0; i <= REACTORS_MAX; i++)
		total += atomic_load_explicit((const _Atomic uint64_t *)((const char *)&dev->count[i] + offset),
					      memory_order_relaxed);
	return total;
}

#define SUM(dev, field) ((json_int_t)sum(dev, offsetof(struct rdma_counters, field)))

static void add_counters(json_t *shown, const struct rdma_dev *dev)
{
	json_object_update_new(
		shown, json_pack("{s:I, s:I, s:I, s:I, s:I, s:I, s:I, s:I, s:I, s:I, s:I}", "polls", SUM(dev, polls), "idle_polls",
				 SUM(dev, idle_polls), "completions", SUM(dev, completions), "requests", SUM(dev, requests),
				 "pending_rdma_read", SUM(dev, pending_read), "pending_rdma_write", SUM(dev, pending_write),
				 "total_send_wrs", SUM(dev, sends) + SUM(dev, reads) + SUM(dev, writes),
				 "send_doorbell_updates", SUM(dev, doorbells), "total_recv_wrs", SUM(dev, receives),
				 "recv_doorbell_updates", SUM(dev, receives), "events", SUM(dev, events)));
	json_object_update_new(shown, json_pack("{s:I, s:I, s:I, s:I}", "rdma_reads", SUM(dev, reads), "rdma_writes",
						SUM(dev, writes), "remote_invalidates", SUM(dev, invalidates), "connections",
						(json_int_t)dev->users));
	json_object_update_new(shown, json_pack("{s:I, s:I, s:b, s:i, s:I}", "accepted", (json_int_t)dev->accepted,
						"rejected", (json_int_t)dev->rejected, "removed", dev->removed, "srq_entries",
						dev->srq ? (int)dev->srq->slots : 0, "srq_limit_events",
						(json_int_t)dev->srq_limits));
}

/* Dynamic (on demand) registration of memory that cannot be pinned: what the device says that it can. */
static bool has_odp(struct ibv_context *verbs)
{
	struct ibv_device_attr_ex ex = { 0 };

	return ibv_query_device_ex(verbs, NULL, &ex) == 0 && ex.odp_caps.general_caps & IBV_ODP_SUPPORT;
}

/* Memory that others export as a dma-buf: a driver that takes them finds that this is none, another refuses at once. */
static bool has_dmabuf(struct ibv_context *verbs)
{
	struct ibv_pd *pd = ibv_alloc_pd(verbs);
	struct ibv_mr *mr = pd ? ibv_reg_dmabuf_mr(pd, 0, 4096, 0, -1, IBV_ACCESS_LOCAL_WRITE) : NULL;
	bool known = pd && !mr && errno == EBADF;

	if (pd)
		ibv_dealloc_pd(pd);
	return known;
}

/* IP addresses of its first port, as its table of GIDs has them. */
static json_t *addresses(struct ibv_context *verbs)
{
	json_t *shown = json_array();
	char text[INET6_ADDRSTRLEN], last[INET6_ADDRSTRLEN] = "";
	union ibv_gid gid;

	for (int i = 0; verbs && i < GIDS_MAX && ibv_query_gid(verbs, 1, i, &gid) == 0; i++) {
		const struct in6_addr *in6 = (const struct in6_addr *)(const void *)gid.raw;
		const bool v4 = IN6_IS_ADDR_V4MAPPED(in6);

		if (IN6_IS_ADDR_UNSPECIFIED(in6) ||
		    !inet_ntop(v4 ? AF_INET : AF_INET6, v4 ? (const void *)(gid.raw + 12) : in6, text, sizeof(text)) ||
		    strcmp(text, last) == 0) /* RoCE v1 and v2 have an entry each */
			continue;
		memcpy(last, text, sizeof(last));
		json_array_append_new(shown, json_string(text));
	}
	return shown;
}

static json_t *device_row(struct ibv_device *device)
{
	struct ibv_context *verbs = ibv_open_device(device);
	struct ibv_device_attr attr = { 0 };
	struct rdma_dev *dev;
	json_t *shown;
	bool odp = false, dmabuf = false;

	if (verbs && ibv_query_device(verbs, &attr) == 0) {
		odp = has_odp(verbs);
		dmabuf = has_dmabuf(verbs);
	}
	shown = json_pack("{s:s, s:i, s:i, s:i, s:i, s:b, s:b, s:b}", "name", ibv_get_device_name(device), "max_qp", attr.max_qp,
			  "max_sge", attr.max_sge, "max_rd_atomic", attr.max_qp_init_rd_atom, "max_srq", attr.max_srq,
			  "remote_invalidate", (attr.device_cap_flags & IBV_DEVICE_MEM_MGT_EXTENSIONS) != 0, "on_demand_paging",
			  odp, "dma_buf", dmabuf);
	json_object_update_new(shown, json_pack("{s:b, s:o}", "present", 1, "addresses", addresses(verbs)));
	LIST_FOREACH(dev, &devs, link)
		if (strcmp(ibv_get_device_name(dev->verbs->device), ibv_get_device_name(device)) == 0) {
			add_counters(shown, dev);
			break;
		}
	if (verbs)
		ibv_close_device(verbs);
	return shown;
}

json_t *rdma_dev_list(void)
{
	struct ibv_device **list = ibv_get_device_list(NULL);
	json_t *rows = json_array();
	uint64_t waits = 0;

	for (size_t i = 0; list && list[i]; i++)
		json_array_append_new(rows, device_row(list[i]));
	if (list)
		ibv_free_device_list(list);
	for (unsigned i = 0; i < engine_reactors(); i++)
		waits += atomic_load_explicit(&engine_reactor(i)->pool_waits, memory_order_relaxed);
	return json_pack("{s:I, s:o}", "pending_data_buffer", (json_int_t)waits, "devices", rows);
}

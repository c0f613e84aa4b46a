/* SPDX-License-Identifier: BSD-3-Clause */
#include "fake_spdk.h"

#include <errno.h>
#include <pthread.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/queue.h>
#include <sys/uio.h>

#include <spdk/env.h>
#include <spdk/log.h>

#define MUST(x)                                                                                                                \
	do {                                                                                                                   \
		if (!(x)) {                                                                                                    \
			fprintf(stderr, "fake_spdk: %s:%d: %s\n", __FILE__, __LINE__, #x);                                     \
			abort();                                                                                               \
		}                                                                                                              \
	} while (0)

struct fake_spdk fake;

enum { OP_READ, OP_WRITE, OP_ZERO, OP_FLUSH, OP_UNMAP, OP_RAW, OP_ADMIN };

struct cmd {
	TAILQ_ENTRY(cmd) link;
	int op;
	struct spdk_nvme_ns *ns;
	uint64_t lba, blocks;
	void *data;
	struct spdk_nvme_cmd raw;
	spdk_nvme_cmd_cb cb;
	void *arg;
	spdk_nvme_req_reset_sgl_cb reset;
	spdk_nvme_req_next_sge_cb next;
	unsigned status;
};

TAILQ_HEAD(cmds, cmd);

struct spdk_nvme_ns {
	uint32_t nsid, size, md;
	uint8_t data[4096];
};

struct spdk_nvme_qpair {
	struct spdk_nvme_ctrlr *c;
	struct cmds cmds;
	unsigned n, generation;
	pthread_t maker, owner;
	bool owned, timed_out;
};

struct spdk_nvme_ctrlr {
	struct spdk_nvme_ctrlr_opts opts;
	uint8_t data[4096];
	struct spdk_nvme_ns ns[FAKE_NS + 1];
	struct cmds admin;
	bool pcie, disconnecting, disconnected, failed;
	unsigned generation, qpairs;
	pthread_t owner;
	spdk_nvme_aer_cb aer;
	void *aer_arg;
	spdk_nvme_timeout_cb timeout;
	void *timeout_arg;
};

struct spdk_nvme_probe_ctx {
	struct spdk_nvme_transport_id trid;
	const struct spdk_nvme_ctrlr_opts *opts;
	spdk_nvme_attach_cb cb;
	unsigned turns;
};

struct spdk_nvme_detach_ctx {
	struct spdk_nvme_ctrlr *c;
	unsigned turns;
};

/* -- environment */

static struct {
	pthread_mutex_t lock;
	struct {
		uintptr_t base;
		size_t len;
	} of[64];
} memory = { .lock = PTHREAD_MUTEX_INITIALIZER };

static void remember(void *at, size_t len)
{
	unsigned i = 0;

	pthread_mutex_lock(&memory.lock);
	while (memory.of[i].len)
		MUST(++i < 64);
	memory.of[i].base = (uintptr_t)at;
	memory.of[i].len = len;
	pthread_mutex_unlock(&memory.lock);
}

static void forget(void *at)
{
	bool found = false;

	pthread_mutex_lock(&memory.lock);
	for (unsigned i = 0; i < 64; i++)
		if (memory.of[i].len && memory.of[i].base == (uintptr_t)at) {
			memory.of[i].len = 0;
			found = true;
			break;
		}
	pthread_mutex_unlock(&memory.lock);
	MUST(found);
}

static bool reached(const void *at, size_t len)
{
	bool found = false;

	pthread_mutex_lock(&memory.lock);
	for (unsigned i = 0; i < 64; i++) {
		uintptr_t offset = (uintptr_t)at - memory.of[i].base;

		found |= offset < memory.of[i].len && len <= memory.of[i].len - offset;
	}
	pthread_mutex_unlock(&memory.lock);
	return found;
}

void spdk_env_opts_init(struct spdk_env_opts *opts)
{
	memset(opts, 0, sizeof(*opts));
}

int spdk_env_init(const struct spdk_env_opts *opts)
{
	MUST(opts->num_pci_addr == 1 && opts->pci_allowed->domain == 0xFFFF); /* never all devices of the machine */
	return 0;
}

void *spdk_dma_malloc(size_t size, size_t align, uint64_t *unused)
{
	void *at = aligned_alloc(align, (size + align - 1) / align * align);

	MUST(at);
	remember(at, size);
	return at;
}

void *spdk_dma_zmalloc(size_t size, size_t align, uint64_t *unused)
{
	return memset(spdk_dma_malloc(size, align, unused), 0, size);
}

uint64_t spdk_vtophys(const void *buf, uint64_t *size)
{
	return fake.no_dma ? SPDK_VTOPHYS_ERROR : (uint64_t)(uintptr_t)buf;
}

void spdk_dma_free(void *buf)
{
	if (!buf)
		return;
	forget(buf);
	free(buf);
}

int spdk_mem_register(void *vaddr, size_t len)
{
	MUST((((uintptr_t)vaddr | len) & ((2u << 20) - 1)) == 0);
	remember(vaddr, len);
	return 0;
}

int spdk_mem_unregister(void *vaddr, size_t len)
{
	forget(vaddr);
	return 0;
}

void spdk_log_open(fake_log_fn log)
{
}

int spdk_pci_addr_parse(struct spdk_pci_addr *addr, const char *bdf)
{
	unsigned domain, bus, dev, func;

	if (sscanf(bdf, "%x:%x:%x.%x", &domain, &bus, &dev, &func) != 4)
		return -EINVAL;
	*addr = (struct spdk_pci_addr){ domain, (uint8_t)bus, (uint8_t)dev, (uint8_t)func };
	return 0;
}

int spdk_pci_addr_fmt(char *bdf, size_t size, const struct spdk_pci_addr *addr)
{
	snprintf(bdf, size, "%04x:%02x:%02x.%x", addr->domain, addr->bus, addr->dev, addr->func);
	return 0;
}

static uint8_t bar[4096];

bool spdk_pci_device_is_removed(struct spdk_pci_device *device)
{
	return false;
}

int spdk_pci_device_map_bar(struct spdk_pci_device *device, uint32_t number, void **addr, uint64_t *phys, uint64_t *size)
{
	*addr = bar;
	*phys = 0xF0000000;
	*size = sizeof(bar);
	return number == 2 ? 0 : -EINVAL;
}

int spdk_pci_device_unmap_bar(struct spdk_pci_device *device, uint32_t number, void *addr)
{
	MUST(addr == bar);
	return 0;
}

/* -- connecting */

void fake_reset(void)
{
	uint8_t *disk[FAKE_NS + 1];

	memcpy(disk, fake.disk, sizeof(disk));
	memset(&fake, 0, sizeof(fake));
	memcpy(fake.disk, disk, sizeof(disk));
	for (unsigned i = 1; i <= FAKE_NS; i++) {
		if (!fake.disk[i])
			fake.disk[i] = malloc((size_t)FAKE_BLOCKS * 4096);
		MUST(fake.disk[i]);
		memset(fake.disk[i], 0x11 * (int)i, (size_t)FAKE_BLOCKS * 4096);
	}
	fake.io_queues = 64;
	fake.drive = '1';
	fake.volume = 0xAB;
	fake.active = 1 << 1 | 1 << 2 | 1 << 3;
}

void spdk_nvme_trid_populate_transport(struct spdk_nvme_transport_id *trid, enum spdk_nvme_transport_type type)
{
	trid->trtype = type;
}

int spdk_nvme_transport_id_parse_adrfam(enum spdk_nvmf_adrfam *adrfam, const char *text)
{
	*adrfam = strcmp(text, "IPv6") == 0 ? SPDK_NVMF_ADRFAM_IPV6 : SPDK_NVMF_ADRFAM_IPV4;
	return strncmp(text, "IPv", 3) == 0 ? 0 : -EINVAL;
}

int spdk_nvme_transport_id_compare(const struct spdk_nvme_transport_id *a, const struct spdk_nvme_transport_id *b)
{
	return a->trtype != b->trtype || strcmp(a->traddr, b->traddr) != 0 || strcmp(a->trsvcid, b->trsvcid) != 0 ||
	       strcmp(a->subnqn, b->subnqn) != 0;
}

void spdk_nvme_ctrlr_get_default_ctrlr_opts(struct spdk_nvme_ctrlr_opts *opts, size_t size)
{
	memset(opts, 0, size);
}

struct spdk_nvme_probe_ctx *spdk_nvme_connect_async(const struct spdk_nvme_transport_id *trid,
						    const struct spdk_nvme_ctrlr_opts *opts, spdk_nvme_attach_cb cb)
{
	struct spdk_nvme_probe_ctx *ctx = calloc(1, sizeof(*ctx));

	MUST(ctx);
	ctx->trid = *trid;
	ctx->opts = opts;
	ctx->cb = cb;
	fake.connects++;
	return ctx;
}

static void put(uint8_t *at, uint64_t value, unsigned bytes)
{
	for (unsigned i = 0; i < bytes; i++)
		at[i] = (uint8_t)(value >> 8 * i);
}

static void identities(struct spdk_nvme_ctrlr *c)
{
	memcpy(c->data + 4, "FAKE000?            ", 20);
	c->data[11] = fake.drive;
	c->ns[1].data[120] = fake.eui64;
	for (uint32_t nsid = 2; nsid <= FAKE_NS; nsid++)
		c->ns[nsid].data[104] = fake.volume;
}

static void identify(struct spdk_nvme_ctrlr *c)
{
	memcpy(c->data + 24, "Fake drive                              ", 40);
	memcpy(c->data + 64, "1.0     ", 8);
	put(c->data + 520, 1 | 1 << 2 | 1 << 3 | 1 << 7 | 1 << 8, 2); /* Compare, DSM, Write Zeroes, Verify, Copy */
	c->data[525] = 1; /* VWC */
	for (uint32_t nsid = 1; nsid <= FAKE_NS; nsid++) {
		struct spdk_nvme_ns *ns = &c->ns[nsid];

		*ns = (struct spdk_nvme_ns){ .nsid = nsid, .size = nsid == 1 ? 512 : 4096, .md = nsid == 3 ? 8 : 0 };
		put(ns->data, FAKE_BLOCKS, 8);
		put(ns->data + 128, ns->md, 2);
		ns->data[130] = nsid == 1 ? 9 : 12;
		put(ns->data + 74, 128, 2); /* MSSRL */
		put(ns->data + 76, 128, 4); /* MCL */
		ns->data[119] = (uint8_t)(nsid - 1);
		ns->data[33] = 8; /* DLFEAT */
	}
	identities(c);
}

int spdk_nvme_probe_poll_async(struct spdk_nvme_probe_ctx *ctx)
{
	struct spdk_nvme_ctrlr *c;

	if (ctx->turns++ < 2)
		return -EAGAIN;
	if (!fake.absent) {
		c = calloc(1, sizeof(*c));
		MUST(c);
		c->opts = *ctx->opts;
		if (c->opts.num_io_queues > fake.io_queues)
			c->opts.num_io_queues = fake.io_queues;
		c->pcie = ctx->trid.trtype == SPDK_NVME_TRANSPORT_PCIE;
		c->owner = pthread_self();
		TAILQ_INIT(&c->admin);
		identify(c);
		ctx->cb((void *)(uintptr_t)ctx->opts, &ctx->trid, c, &c->opts);
	}
	free(ctx);
	return 0;
}

static void mine(struct spdk_nvme_ctrlr *c)
{
	MUST(pthread_equal(c->owner, pthread_self()));
}

static void finish(struct cmd *cmd, unsigned status)
{
	struct spdk_nvme_cpl cpl = { .status = { .sc = status & 0xFF, .sct = status >> 8 & 7, .dnr = status >> 16 & 1 } };

	cmd->cb(cmd->arg, &cpl);
	free(cmd);
}

/* status 0: each with its own; else they were aborted with their queue */
static void end_admin(struct spdk_nvme_ctrlr *c, unsigned status)
{
	struct cmd *cmd;

	while ((cmd = TAILQ_FIRST(&c->admin))) {
		TAILQ_REMOVE(&c->admin, cmd, link);
		finish(cmd, status ? status : cmd->status);
	}
}

int spdk_nvme_detach_async(struct spdk_nvme_ctrlr *c, struct spdk_nvme_detach_ctx **ctx)
{
	mine(c);
	MUST(c->qpairs == 0);
	end_admin(c, 0x008);
	*ctx = calloc(1, sizeof(**ctx));
	MUST(*ctx);
	(*ctx)->c = c;
	return 0;
}

int spdk_nvme_detach_poll_async(struct spdk_nvme_detach_ctx *ctx)
{
	if (ctx->turns++ < 2)
		return -EAGAIN;
	fake.detaches++;
	free(ctx->c);
	free(ctx);
	return 0;
}

/* -- the controller */

const struct spdk_nvme_ctrlr_opts *spdk_nvme_ctrlr_get_opts(struct spdk_nvme_ctrlr *c)
{
	return &c->opts;
}

const struct spdk_nvme_ctrlr_data *spdk_nvme_ctrlr_get_data(struct spdk_nvme_ctrlr *c)
{
	return (const struct spdk_nvme_ctrlr_data *)c->data;
}

uint32_t spdk_nvme_ctrlr_get_max_xfer_size(const struct spdk_nvme_ctrlr *c)
{
	return 128u << 10;
}

struct spdk_pci_device *spdk_nvme_ctrlr_get_pci_device(struct spdk_nvme_ctrlr *c)
{
	return c->pcie ? (struct spdk_pci_device *)c : NULL;
}

volatile struct spdk_nvme_registers *spdk_nvme_ctrlr_get_registers(struct spdk_nvme_ctrlr *c)
{
	return (volatile struct spdk_nvme_registers *)bar;
}

union spdk_nvme_csts_register spdk_nvme_ctrlr_get_regs_csts(struct spdk_nvme_ctrlr *c)
{
	return (union spdk_nvme_csts_register){ .bits = { .rdy = 1, .cfs = fake.fatal } };
}

void spdk_nvme_ctrlr_register_aer_callback(struct spdk_nvme_ctrlr *c, spdk_nvme_aer_cb cb, void *arg)
{
	c->aer = cb;
	c->aer_arg = arg;
}

void spdk_nvme_ctrlr_register_timeout_callback(struct spdk_nvme_ctrlr *c, uint64_t io_us, uint64_t admin_us,
					       spdk_nvme_timeout_cb cb, void *arg)
{
	c->timeout = cb;
	c->timeout_arg = arg;
}

int spdk_nvme_ctrlr_process_admin_completions(struct spdk_nvme_ctrlr *c)
{
	struct spdk_nvme_cpl notice = { .cdw0 = SPDK_NVME_ASYNC_EVENT_TYPE_NOTICE };
	mine(c);
	if (fake.admin_broken || c->disconnecting || c->failed) {
		c->disconnecting = false;
		return -ENXIO;
	}
	if (c->aer && atomic_exchange(&fake.event, false)) {
		identities(c);
		c->aer(c->aer_arg, &notice);
	}
	if (fake.admin_lost && !TAILQ_EMPTY(&c->admin)) {
		fake.admin_lost--;
		return -ENXIO;
	}
	end_admin(c, 0);
	return 0;
}

int spdk_nvme_ctrlr_disconnect(struct spdk_nvme_ctrlr *c)
{
	mine(c);
	end_admin(c, 0x008);
	c->disconnecting = c->disconnected = true;
	c->failed = false;
	c->generation++;
	return 0;
}

void spdk_nvme_ctrlr_reconnect_async(struct spdk_nvme_ctrlr *c)
{
	mine(c);
	MUST(c->disconnected && c->qpairs == 0); /* all have been given back, and freed after it was disabled */
}

int spdk_nvme_ctrlr_reconnect_poll_async(struct spdk_nvme_ctrlr *c)
{
	mine(c);
	if (fake.reconnects_fail) {
		fake.reconnects_fail--;
		c->failed = true;
		return -1;
	}
	fake.broken = fake.admin_broken = fake.fatal = false;
	c->disconnected = false;
	identities(c);
	fake.resets++;
	return 0;
}

void spdk_nvme_ctrlr_fail(struct spdk_nvme_ctrlr *c)
{
	mine(c);
	c->failed = true;
}

static struct cmd *cmd_new(int op, spdk_nvme_cmd_cb cb, void *arg)
{
	struct cmd *cmd = calloc(1, sizeof(*cmd));

	MUST(cmd);
	cmd->op = op;
	cmd->cb = cb;
	cmd->arg = arg;
	return cmd;
}

int spdk_nvme_ctrlr_cmd_abort(struct spdk_nvme_ctrlr *c, struct spdk_nvme_qpair *q, uint16_t cid, spdk_nvme_cmd_cb cb, void *arg)
{
	struct cmd *cmd = cmd_new(OP_ADMIN, cb, arg);

	mine(c);
	fake.aborts++;
	cmd->status = fake.refuse_aborts ? 0x103 : 0; /* Abort Command Limit Exceeded */
	TAILQ_INSERT_TAIL(&c->admin, cmd, link);
	return 0;
}

int spdk_nvme_ctrlr_cmd_admin_raw(struct spdk_nvme_ctrlr *c, struct spdk_nvme_cmd *from, void *buf, uint32_t len,
				  spdk_nvme_cmd_cb cb, void *arg)
{
	struct cmd *cmd = cmd_new(OP_ADMIN, cb, arg);

	mine(c);
	MUST(reached(buf, len));
	memset(buf, 0, len);
	if (from->opc == 0x06 && (from->cdw10 & 0xFF) == 0)
		memcpy(buf, c->ns[from->nsid].data, 4096);
	else if (from->opc == 0x06 && (from->cdw10 & 0xFF) == 1)
		memcpy(buf, c->data, 4096);
	else
		cmd->status = 0x002;
	TAILQ_INSERT_TAIL(&c->admin, cmd, link);
	return 0;
}

int spdk_nvme_ctrlr_cmd_get_log_page(struct spdk_nvme_ctrlr *c, uint8_t page, uint32_t nsid, void *buf, uint32_t len,
				     uint64_t offset, spdk_nvme_cmd_cb cb, void *arg)
{
	struct cmd *cmd = cmd_new(OP_ADMIN, cb, arg);

	mine(c);
	MUST(reached(buf, len) && page == 2);
	memset(buf, 0, len);
	((uint8_t *)buf)[1] = 0x2C; /* 300 K */
	((uint8_t *)buf)[2] = 0x01;
	TAILQ_INSERT_TAIL(&c->admin, cmd, link);
	return 0;
}

/* -- namespaces */

uint32_t spdk_nvme_ctrlr_get_next_active_ns(struct spdk_nvme_ctrlr *c, uint32_t nsid)
{
	while (++nsid <= FAKE_NS)
		if (fake.active >> nsid & 1)
			return nsid;
	return 0;
}

uint32_t spdk_nvme_ctrlr_get_first_active_ns(struct spdk_nvme_ctrlr *c)
{
	return spdk_nvme_ctrlr_get_next_active_ns(c, 0);
}

bool spdk_nvme_ctrlr_is_active_ns(struct spdk_nvme_ctrlr *c, uint32_t nsid)
{
	return fake.active >> nsid & 1;
}

struct spdk_nvme_ns *spdk_nvme_ctrlr_get_ns(struct spdk_nvme_ctrlr *c, uint32_t nsid)
{
	mine(c);
	return &c->ns[nsid];
}

const struct spdk_nvme_ns_data *spdk_nvme_ns_get_data(struct spdk_nvme_ns *ns)
{
	return (const struct spdk_nvme_ns_data *)ns->data;
}

uint64_t spdk_nvme_ns_get_num_sectors(struct spdk_nvme_ns *ns)
{
	return FAKE_BLOCKS;
}

uint32_t spdk_nvme_ns_get_sector_size(struct spdk_nvme_ns *ns)
{
	return ns->size;
}

uint32_t spdk_nvme_ns_get_md_size(struct spdk_nvme_ns *ns)
{
	return ns->md;
}

const struct spdk_uuid *spdk_nvme_ns_get_uuid(const struct spdk_nvme_ns *ns)
{
	return NULL;
}

const uint8_t *spdk_nvme_ns_get_nguid(const struct spdk_nvme_ns *ns)
{
	return ns->data + 104;
}

int spdk_nvme_ns_get_pi_type(struct spdk_nvme_ns *ns)
{
	return 0;
}

int spdk_nvme_ns_get_csi(const struct spdk_nvme_ns *ns)
{
	return SPDK_NVME_CSI_NVM;
}

/* -- queue pairs */

void spdk_nvme_ctrlr_get_default_io_qpair_opts(struct spdk_nvme_ctrlr *c, struct spdk_nvme_io_qpair_opts *opts, size_t size)
{
	*opts = (struct spdk_nvme_io_qpair_opts){ .io_queue_size = 256, .io_queue_requests = 512 };
}

struct spdk_nvme_qpair *spdk_nvme_ctrlr_alloc_io_qpair(struct spdk_nvme_ctrlr *c, const struct spdk_nvme_io_qpair_opts *opts,
						       size_t size)
{
	struct spdk_nvme_qpair *q;

	mine(c);
	MUST(!c->disconnected);
	if (fake.allocs_fail) {
		fake.allocs_fail--;
		return NULL;
	}
	q = calloc(1, sizeof(*q));
	MUST(q);
	q->c = c;
	q->generation = c->generation;
	q->maker = pthread_self();
	TAILQ_INIT(&q->cmds);
	c->qpairs++;
	fake.qpairs++;
	return q;
}

int spdk_nvme_ctrlr_free_io_qpair(struct spdk_nvme_qpair *q)
{
	struct cmd *cmd;

	mine(q->c);
	while ((cmd = TAILQ_FIRST(&q->cmds))) {
		TAILQ_REMOVE(&q->cmds, cmd, link);
		finish(cmd, fake.in_drive-- & 1 ? 0x008 : 0x007 | 1 << 16); /* from 26.09 on, and before */
	}
	q->c->qpairs--;
	fake.qpairs--;
	free(q);
	return 0;
}

/* One thread uses it; the first who does. */
static void own(struct spdk_nvme_qpair *q)
{
	if (!q->owned) {
		q->owned = true;
		q->owner = pthread_self();
		MUST(!pthread_equal(q->owner, q->maker));
	}
	MUST(pthread_equal(q->owner, pthread_self()));
}

static void move(struct cmd *cmd)
{
	uint8_t *at = fake.disk[cmd->ns->nsid] + cmd->lba * cmd->ns->size;
	size_t left = cmd->blocks * cmd->ns->size;

	MUST(cmd->lba + cmd->blocks <= FAKE_BLOCKS);
	if (cmd->reset)
		cmd->reset(cmd->arg, 0);
	while (left) {
		uint32_t len = (uint32_t)left;
		void *data = cmd->data;

		if (cmd->next)
			MUST(cmd->next(cmd->arg, &data, &len) == 0 && len <= left);
		if (cmd->op == OP_READ)
			memcpy(data, at, len);
		else
			memcpy(at, data, len);
		at += len;
		left -= len;
	}
}

static unsigned run_raw(struct cmd *cmd)
{
	uint64_t lba = (uint64_t)cmd->raw.cdw11 << 32 | cmd->raw.cdw10;
	uint32_t size = cmd->raw.nsid == 1 ? 512 : 4096;
	uint8_t *at = fake.disk[cmd->raw.nsid] + lba * size;

	if (cmd->raw.opc == 0x05)
		return memcmp(at, cmd->data, ((cmd->raw.cdw12 & 0xFFFF) + 1) * size) == 0 ? 0 : 0x285;
	if (cmd->raw.opc == 0x19) { /* Copy of one range */
		const uint8_t *entry = cmd->data;
		uint64_t from = 0;

		for (unsigned i = 0; i < 8; i++)
			from |= (uint64_t)entry[8 + i] << 8 * i;
		memmove(at, fake.disk[cmd->raw.nsid] + from * size, ((size_t)(entry[16] | entry[17] << 8) + 1) * size);
		return 0;
	}
	return cmd->raw.opc == 0x0C ? 0 : 0x001;
}

static unsigned run(struct cmd *cmd)
{
	unsigned left = fake.statuses;

	if (left) {
		fake.statuses = left - 1;
		return fake.status;
	}
	switch (cmd->op) {
	case OP_READ:
	case OP_WRITE:
		move(cmd);
		return 0;
	case OP_ZERO:
		if (fake.refuse_zeroes)
			return 0x002 | 1 << 16;
		memset(fake.disk[cmd->ns->nsid] + cmd->lba * cmd->ns->size, 0, cmd->blocks * cmd->ns->size);
		return 0;
	case OP_RAW:
		return run_raw(cmd);
	default:
		return 0;
	}
}

int32_t spdk_nvme_qpair_process_completions(struct spdk_nvme_qpair *q, uint32_t max)
{
	struct cmd *cmd;
	int n = 0;

	own(q);
	if (fake.broken || q->generation != q->c->generation)
		return -ENXIO;
	if (q->c->timeout && !TAILQ_EMPTY(&q->cmds) && atomic_exchange(&fake.time_out, false))
		q->c->timeout(q->c->timeout_arg, q->c, q, 1);
	while (!fake.hold && (cmd = TAILQ_FIRST(&q->cmds))) {
		TAILQ_REMOVE(&q->cmds, cmd, link);
		q->n--;
		fake.in_drive--;
		finish(cmd, run(cmd));
		n++;
	}
	return n;
}

static int send(struct spdk_nvme_qpair *q, int op, struct spdk_nvme_ns *ns, uint64_t lba, uint64_t blocks, void *data,
		spdk_nvme_cmd_cb cb, void *arg, struct cmd **made)
{
	struct cmd *cmd;

	own(q);
	if (fake.broken)
		return -ENXIO;
	if (fake.room && q->n >= fake.room)
		return -ENOMEM;
	if (q->c->pcie && data && ns)
		MUST(reached(data, blocks * ns->size));
	cmd = cmd_new(op, cb, arg);
	cmd->ns = ns;
	cmd->lba = lba;
	cmd->blocks = blocks;
	cmd->data = data;
	TAILQ_INSERT_TAIL(&q->cmds, cmd, link);
	q->n++;
	fake.in_drive++;
	if (made)
		*made = cmd;
	return 0;
}

static void flags_seen(uint32_t flags)
{
	fake.fua += flags >> 30 & 1;
	fake.deac += flags >> 25 & 1;
}

int spdk_nvme_ns_cmd_read(struct spdk_nvme_ns *ns, struct spdk_nvme_qpair *q, void *data, uint64_t lba, uint32_t blocks,
			  spdk_nvme_cmd_cb cb, void *arg, uint32_t flags)
{
	fake.reads++;
	return send(q, OP_READ, ns, lba, blocks, data, cb, arg, NULL);
}

int spdk_nvme_ns_cmd_write(struct spdk_nvme_ns *ns, struct spdk_nvme_qpair *q, void *data, uint64_t lba, uint32_t blocks,
			   spdk_nvme_cmd_cb cb, void *arg, uint32_t flags)
{
	fake.writes++;
	flags_seen(flags);
	return send(q, OP_WRITE, ns, lba, blocks, data, cb, arg, NULL);
}

static int sendv(struct spdk_nvme_qpair *q, int op, struct spdk_nvme_ns *ns, uint64_t lba, uint32_t blocks, spdk_nvme_cmd_cb cb,
		 void *arg, spdk_nvme_req_reset_sgl_cb reset, spdk_nvme_req_next_sge_cb next)
{
	struct cmd *cmd;
	int rc = send(q, op, ns, lba, blocks, NULL, cb, arg, &cmd);

	fake.sgls++;
	if (rc == 0) {
		cmd->reset = reset;
		cmd->next = next;
	}
	return rc;
}

int spdk_nvme_ns_cmd_readv(struct spdk_nvme_ns *ns, struct spdk_nvme_qpair *q, uint64_t lba, uint32_t blocks, spdk_nvme_cmd_cb cb,
			   void *arg, uint32_t flags, spdk_nvme_req_reset_sgl_cb reset, spdk_nvme_req_next_sge_cb next)
{
	return sendv(q, OP_READ, ns, lba, blocks, cb, arg, reset, next);
}

int spdk_nvme_ns_cmd_writev(struct spdk_nvme_ns *ns, struct spdk_nvme_qpair *q, uint64_t lba, uint32_t blocks,
			    spdk_nvme_cmd_cb cb, void *arg, uint32_t flags, spdk_nvme_req_reset_sgl_cb reset,
			    spdk_nvme_req_next_sge_cb next)
{
	flags_seen(flags);
	return sendv(q, OP_WRITE, ns, lba, blocks, cb, arg, reset, next);
}

int spdk_nvme_ns_cmd_write_zeroes(struct spdk_nvme_ns *ns, struct spdk_nvme_qpair *q, uint64_t lba, uint32_t blocks,
				  spdk_nvme_cmd_cb cb, void *arg, uint32_t flags)
{
	fake.zeroes++;
	flags_seen(flags);
	return send(q, OP_ZERO, ns, lba, blocks, NULL, cb, arg, NULL);
}

int spdk_nvme_ns_cmd_flush(struct spdk_nvme_ns *ns, struct spdk_nvme_qpair *q, spdk_nvme_cmd_cb cb, void *arg)
{
	fake.flushes++;
	return send(q, OP_FLUSH, ns, 0, 0, NULL, cb, arg, NULL);
}

int spdk_nvme_ns_cmd_dataset_management(struct spdk_nvme_ns *ns, struct spdk_nvme_qpair *q, uint32_t type,
					const struct spdk_nvme_dsm_range *ranges, uint16_t n, spdk_nvme_cmd_cb cb, void *arg)
{
	fake.unmaps++;
	MUST(type == 4 && n == 1 && ranges->starting_lba + ranges->length <= FAKE_BLOCKS);
	return send(q, OP_UNMAP, ns, 0, 0, NULL, cb, arg, NULL);
}

int spdk_nvme_ctrlr_cmd_io_raw(struct spdk_nvme_ctrlr *c, struct spdk_nvme_qpair *q, struct spdk_nvme_cmd *from, void *buf,
			       uint32_t len, spdk_nvme_cmd_cb cb, void *arg)
{
	struct cmd *cmd;
	int rc;

	if (c->pcie && buf)
		MUST(reached(buf, len));
	rc = send(q, OP_RAW, NULL, 0, 0, buf, cb, arg, &cmd);
	fake.raws++;
	if (rc == 0)
		cmd->raw = *from;
	return rc;
}

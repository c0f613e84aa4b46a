/* SPDX-License-Identifier: BSD-3-Clause
 *
 * spdk_ns.c: a controller's namespaces, on spdk-admin: what they are, what they can, and whether they are still the same.
 */
#include <endian.h>
#include <errno.h>
#include <inttypes.h>
#include <linux/nvme_ioctl.h>
#include <stdio.h>
#include <stdlib.h>

#include "spdk_priv.h"

#define ADMIN_WAIT_NS 10000000000ull

/* An admin command of ours that somebody waits for. Given up, it belongs to the driver, whose callback may still come: with its
 * controller's reset or end. The drive may write to its page until then. */
struct waiting {
	bool over, given_up;
	int rc;
	void *page; /* 4 KiB, for DMA */
};

static void waiting_free(struct waiting *waiting)
{
	spdk_dma_free(waiting->page);
	free(waiting);
}

static void admin_over(void *arg, const struct spdk_nvme_cpl *cpl)
{
	struct waiting *waiting = arg;

	waiting->rc = cpl->status.sct << 8 | cpl->status.sc;
	waiting->over = true;
	if (waiting->given_up)
		waiting_free(waiting);
}

/* 0 or a status once it is over, else -errno, and nobody may touch it any more. */
static int wait_for(struct sctrl *c, struct waiting *waiting)
{
	uint64_t end = dp_now_ns() + ADMIN_WAIT_NS;

	while (!waiting->over) {
		int got = spdk_nvme_ctrlr_process_admin_completions(c->c);

		if (waiting->over)
			break;
		if (got >= 0 && dp_now_ns() > end)
			got = -ETIMEDOUT;
		if (got < 0) {
			log_warning("spdk.admin", "%s: no answer to an admin command: %s", c->name, strerror(-got));
			waiting->given_up = true;
			return got;
		}
	}
	return waiting->rc;
}

/* For nvme_pass_open_call, on this thread; I/O of nvme_pass comes from workers. */
static int ns_call(void *arg, unsigned long request, void *command)
{
	struct sns *ns = arg;
	const struct nvme_passthru_cmd *from = command;
	struct spdk_nvme_cmd cmd = { .opc = from->opcode, .nsid = from->nsid };
	bool to_drive = from->opcode & 1;
	struct waiting *waiting;
	int rc = -ENOMEM;

	if (request == NVME_IOCTL_IO_CMD)
		return sns_io_call(ns, command);
	if (from->data_len > 4096)
		return -EINVAL;
	waiting = calloc(1, sizeof(*waiting));
	if (!waiting)
		return rc;
	waiting->page = spdk_dma_zmalloc(4096, 4096, NULL);
	cmd.cdw10 = from->cdw10;
	cmd.cdw11 = from->cdw11;
	if (waiting->page && to_drive)
		memcpy(waiting->page, (void *)(uintptr_t)from->addr, from->data_len);
	if (waiting->page)
		rc = spdk_nvme_ctrlr_cmd_admin_raw(ns->c->c, &cmd, waiting->page, from->data_len, admin_over, waiting);
	if (rc == 0) {
		rc = wait_for(ns->c, waiting);
		if (rc < 0)
			return rc;
		if (rc == 0 && !to_drive)
			memcpy((void *)(uintptr_t)from->addr, waiting->page, from->data_len);
	}
	waiting_free(waiting);
	return rc;
}

static void judge(struct sns *ns, struct spdk_nvme_ns *from)
{
	uint32_t size = spdk_nvme_ns_get_sector_size(from);

	if (spdk_nvme_ns_get_csi(from) != SPDK_NVME_CSI_NVM)
		snprintf(ns->refused, sizeof(ns->refused), "namespace %u is not of the NVM command set", ns->nsid);
	else if (spdk_nvme_ns_get_md_size(from) || spdk_nvme_ns_get_pi_type(from))
		snprintf(ns->refused, sizeof(ns->refused), "namespace %u is formatted with metadata (%u bytes a block)", ns->nsid,
			 spdk_nvme_ns_get_md_size(from));
	else if (size < 512 || size & (size - 1) || size > 1u << 20)
		snprintf(ns->refused, sizeof(ns->refused), "namespace %u has blocks of %u bytes", ns->nsid, size);
}

/* Its UUID, or its NGUID in that form; nothing of the kind: empty. */
static void name_of(char to[40], struct spdk_nvme_ns *from)
{
	const uint8_t *id = (const uint8_t *)spdk_nvme_ns_get_uuid(from);
	static const uint8_t none[16];

	to[0] = 0;
	if (!id || memcmp(id, none, sizeof(none)) == 0)
		id = spdk_nvme_ns_get_nguid(from);
	if (!id || memcmp(id, none, sizeof(none)) == 0)
		return;
	for (unsigned i = 0; i < 16; i++)
		to += snprintf(to, 4, "%s%02x", i == 4 || i == 6 || i == 8 || i == 10 ? "-" : "", id[i]);
}

/* A field of an Identify structure, padded with spaces there. What is no printable ASCII, as it must be, is shown as '?'. */
void identify_text(char *to, const uint8_t *from, size_t size)
{
	size_t len = 0;

	for (size_t i = 0; i < size && from[i]; i++) {
		to[i] = (char)(from[i] >= ' ' && from[i] <= '~' ? from[i] : '?');
		if (to[i] != ' ')
			len = i + 1;
	}
	to[len] = 0;
}

/* A drive's serial number tells it from all others, also where drives of one make give all namespaces the same identifiers.
 * A target's may be another one after each start, so there the namespace's own identifier counts, if it has one. */
static void identity_of(char to[DP_SPDK_IDENTITY_MAX + 1], struct sctrl *c, struct spdk_nvme_ns *from)
{
	const uint8_t *data = (const uint8_t *)spdk_nvme_ctrlr_get_data(c->c);
	uint64_t eui64 = get64((const uint8_t *)spdk_nvme_ns_get_data(from) + 120);
	char serial[21], id[40], drive[32] = "";

	identify_text(serial, data + 4, sizeof(serial) - 1);
	name_of(id, from);
	if (!id[0] && eui64)
		snprintf(id, sizeof(id), "eui64.%016" PRIx64, be64toh(htole64(eui64)));
	if (c->dma || !id[0])
		snprintf(drive, sizeof(drive), "%04x.%s", get16(data), serial);
	snprintf(to, DP_SPDK_IDENTITY_MAX + 1, "%s%s%s", drive, drive[0] && id[0] ? "/" : "", id);
}

static struct sns *found(struct sctrl *c, uint32_t nsid, struct spdk_nvme_ns *from)
{
	const uint8_t *ctrlr = (const uint8_t *)spdk_nvme_ctrlr_get_data(c->c);
	const uint8_t *data = (const uint8_t *)spdk_nvme_ns_get_data(from);
	struct sns *ns = calloc(1, sizeof(*ns));
	uint32_t size = spdk_nvme_ns_get_sector_size(from);

	if (!ns)
		return NULL;
	ns->c = c;
	ns->nsid = nsid;
	judge(ns, from);
	ns->shift = size ? (unsigned)__builtin_ctz(size) : 0;
	ns->zeroes = get16(ctrlr + 520) & ONCS_WRITE_ZEROES;
	ns->zeroes_unmap = data[33] & 8; /* DLFEAT */
	ns->dsm = get16(ctrlr + 520) & ONCS_DSM;
	ns->facts = (struct dp_bdev_facts){
		.block_size = size,
		.num_blocks = spdk_nvme_ns_get_num_sectors(from),
		.readonly = data[99] & 1, /* NSATTR */
		.write_cache = ctrlr[525] & 1, /* VWC */
		.unmap = ns->dsm,
		.write_zeroes = true,
		.physical_block_size = data[24] & 0x10 ? (get16(data + 64) + 1u) * size : size, /* NSFEAT.OPTPERF, NPWG */
	};
	name_of(ns->uuid, from);
	identity_of(ns->identity, c, from);
	for (size_t i = 0; i < c->num_known; i++)
		if (c->known[i].nsid == nsid && strcmp(c->known[i].text, ns->identity) != 0) {
			memcpy(ns->identity, c->known[i].text, sizeof(ns->identity));
			ns->hollow = true;
		}
	if (!ns->refused[0] && !ns->hollow)
		ns->pass = nvme_pass_open_call(ns_call, ns, nsid, ns->shift);
	return ns;
}

static bool is(const struct sns *ns, struct spdk_nvme_ns *from, char identity[DP_SPDK_IDENTITY_MAX + 1])
{
	identity_of(identity, ns->c, from);
	return strcmp(identity, ns->identity) == 0;
}

/* Is it the one that was found at first? The host of that one must never see the bytes of another. */
static bool same(struct sns *ns, struct spdk_nvme_ns *from)
{
	char identity[DP_SPDK_IDENTITY_MAX + 1], why[DP_ERR_MAX] = "";

	if (!is(ns, from, identity)) {
		snprintf(why, sizeof(why), "namespace %u is another one than before: '%s', and was '%s'", ns->nsid, identity,
			 ns->identity);
		if (!ns->stranger[0])
			log_error("spdk.another", "%s: %s", ns->c->name, why);
	}
	pthread_mutex_lock(&ns->c->lock);
	memcpy(ns->stranger, why, sizeof(why));
	pthread_mutex_unlock(&ns->c->lock);
	return !why[0];
}

/* What is there now, against what was there. */
void sns_scan(struct sctrl *c)
{
	char identity[DP_SPDK_IDENTITY_MAX + 1];
	struct sns *ns;

	for (uint32_t nsid = spdk_nvme_ctrlr_get_first_active_ns(c->c); nsid;
	     nsid = spdk_nvme_ctrlr_get_next_active_ns(c->c, nsid)) {
		struct spdk_nvme_ns *from = spdk_nvme_ctrlr_get_ns(c->c, nsid);

		LIST_FOREACH(ns, &c->namespaces, link) /* only this thread adds */
			if (ns->nsid == nsid)
				break;
		if (from && ns && ns->hollow && is(ns, from, identity)) { /* the right one has come */
			pthread_mutex_lock(&c->lock);
			LIST_REMOVE(ns, link);
			LIST_INSERT_HEAD(&c->former, ns, link); /* somebody may be looking at it */
			pthread_mutex_unlock(&c->lock);
			ns = NULL;
		}
		if (ns || !from)
			continue;
		ns = found(c, nsid, from);
		pthread_mutex_lock(&c->lock);
		if (ns)
			LIST_INSERT_HEAD(&c->namespaces, ns, link);
		pthread_mutex_unlock(&c->lock);
	}
	LIST_FOREACH(ns, &c->namespaces, link) {
		struct spdk_nvme_ns *from =
			spdk_nvme_ctrlr_is_active_ns(c->c, ns->nsid) ? spdk_nvme_ctrlr_get_ns(c->c, ns->nsid) : NULL;

		if (from && (!same(ns, from) || ns->hollow || spdk_nvme_ns_get_sector_size(from) != ns->facts.block_size))
			from = NULL; /* not what it was, or formatted otherwise */
		atomic_store(&ns->ns, from);
		atomic_store(&ns->blocks, from ? spdk_nvme_ns_get_num_sectors(from) : 0);
	}
}

void sns_none(struct sctrl *c)
{
	struct sns *ns;

	LIST_FOREACH(ns, &c->namespaces, link)
		atomic_store(&ns->ns, NULL);
}

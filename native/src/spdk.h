/* SPDX-License-Identifier: BSD-3-Clause
 *
 * spdk.h: SPDK's NVMe driver in this process, as the rest of it sees it: controllers in user space (drives on vfio-pci, and
 * NVMe/TCP targets), their namespaces as back ends (DP_BDEV_SPDK), memory that they reach, and for a pool in a drive's CMB
 * its registers. Built without SPDK (spdk_none.c) everything is refused with -EOPNOTSUPP.
 *
 * Nothing of SPDK runs before the first dp_spdk_start. Its blocking calls run on one thread of its own, "spdk-admin". All
 * functions here are called on the control thread, unless they say otherwise, and call back on it, exactly once.
 *
 * The names begin with dp_spdk, as those that begin with spdk are the library's.
 */
#pragma once

#include "bdev.h"

#define DP_SPDK_BUILT_WITHOUT "nvmet-p2p-dataplane is built without SPDK"
#define DP_SPDK_NAME_MAX 63 /* bytes of a controller's name: a bdev is <name>n<nsid> */
#define DP_SPDK_IDENTITY_MAX 79

typedef void (*dp_spdk_done_fn)(void *arg, int rc, const char *err); /* err: "" with rc 0 */

/* -- life */

bool dp_spdk_built(void);
const char *dp_spdk_version(void); /* NULL: built without */
bool dp_spdk_active(void);         /* it was started, and it runs */
/* At the beginning of the process: SPDK's handler of SIGBUS serves from its first fault to the process' default. */
void dp_spdk_early(bool hugepages); /* hugepages: use them if there are enough */
/* Starts SPDK's environment, once; later calls are answered with how that went. */
void dp_spdk_start(dp_spdk_done_fn done, void *arg);
/* After the last bdev and pool is gone, before the reactors end: detaches all controllers. */
void dp_spdk_stop(void (*done)(void *arg), void *arg);

/* -- controllers */

/* What tells a namespace from all others: the drive's vendor and serial number, its own UUID, NGUID or EUI-64. */
struct dp_spdk_identity {
	uint32_t nsid;
	char text[DP_SPDK_IDENTITY_MAX + 1];
};

struct dp_spdk_attach {
	const char *name, *trtype, *traddr; /* PCIe: traddr is the BDF */
	const char *adrfam, *trsvcid, *subnqn, *hostnqn, *hostaddr, *hostsvcid; /* TCP; NULL: SPDK's own choice */
	bool hdgst, ddgst;
	bool own_times; /* these three count; else those of the options */
	int32_t ctrlr_loss_timeout_sec; /* gives up reconnecting after it; -1: never, 0: at once */
	uint32_t reconnect_delay_sec;   /* between attempts */
	uint32_t fast_io_fail_timeout_sec; /* I/O waits no longer for a reconnect; 0: as ctrlr_loss_timeout_sec */
	/* Namespaces that are known from before: another one in the place of one of them is refused. */
	const struct dp_spdk_identity *known;
	size_t num_known;
};

struct dp_spdk_ns {
	uint32_t nsid;
	char bdev[DP_NAME_MAX + 1]; /* <name>n<nsid> */
	struct dp_bdev_facts facts;
	char refused[DP_ERR_MAX]; /* why it cannot be a back end; "" : it can */
	char uuid[40];            /* its UUID, or its NGUID in that form; "": none */
	char identity[DP_SPDK_IDENTITY_MAX + 1]; /* of the one that it is, or should be */
};

enum dp_spdk_state { DP_SPDK_ENABLED, DP_SPDK_RESETTING, DP_SPDK_FAILED, DP_SPDK_REMOVED };

struct dp_spdk_ctrlr {
	char name[DP_SPDK_NAME_MAX + 1];
	char trtype[8], traddr[257], trsvcid[33], subnqn[224], hostnqn[224], adrfam[8];
	char serial[21], model[41], firmware[9];
	char own_nqn[224]; /* as the controller itself says */
	uint16_t cntlid, vendor;
	uint32_t mdts_bytes;
	uint16_t oncs;
	enum dp_spdk_state state;
	bool dma; /* data moves by DMA of the device: it reaches registered memory only */
	uint64_t resets, timeouts, bounced_ops, bounced_bytes, retries;
	size_t num_ns;
	struct dp_spdk_ns *ns;
};

/* The namespaces are found; nobody has made back ends of them yet (dp_bdev_create, kind DP_BDEV_SPDK, that name).
 * -EEXIST, -EINVAL, -ENODEV, or what connecting to it met. */
void dp_spdk_attach(const struct dp_spdk_attach *attach, dp_spdk_done_fn done, void *arg);
/* Its back ends have been deleted, or are being: waits for that. -ENODEV; -EBUSY: a pool holds it. */
void dp_spdk_detach(const char *name, dp_spdk_done_fn done, void *arg);
/* I/O in flight is done again afterwards. -ENODEV, -EBUSY (at it already), -EIO. */
void dp_spdk_reset(const char *name, dp_spdk_done_fn done, void *arg);
/* 512 bytes of its SMART / health log; valid during the call. */
typedef void (*dp_spdk_health_fn)(void *arg, int rc, const char *err, const uint8_t page[512]);
void dp_spdk_health(const char *name, dp_spdk_health_fn done, void *arg);
/* A snapshot of one (NULL: all), freed with dp_spdk_ctrlrs_free. Returns the number. */
size_t dp_spdk_ctrlrs(const char *name, struct dp_spdk_ctrlr **ctrlrs);
void dp_spdk_ctrlrs_free(struct dp_spdk_ctrlr *ctrlrs, size_t count);
/* Called when a controller was lost or has come back, or its namespaces have changed; dp_bdev_check was called before. */
void dp_spdk_watch(void (*changed)(const char *name));

enum dp_spdk_action { DP_SPDK_ACTION_NONE, DP_SPDK_ACTION_ABORT, DP_SPDK_ACTION_RESET };

struct dp_spdk_options {
	uint64_t timeout_us, timeout_admin_us; /* of a command; 0: none */
	enum dp_spdk_action action_on_timeout;
	int32_t bdev_retry_count;     /* of a command that the drive has not decided; -1: for ever */
	uint64_t keep_alive_timeout_ms; /* TCP; 0: SPDK's default */
	/* for those who give none at attach */
	int32_t ctrlr_loss_timeout_sec;
	uint32_t reconnect_delay_sec, fast_io_fail_timeout_sec;
};

void dp_spdk_get_options(struct dp_spdk_options *options);
int dp_spdk_set_options(const struct dp_spdk_options *options, char err[DP_ERR_MAX]); /* for controllers attached later */
/* PCIe drives that were attached and went away are attached again when they are back. */
void dp_spdk_set_hotplug(bool enable, uint64_t period_us);

/* -- memory */

/* Memory for the data of I/O, 2 MiB aligned and whole 2 MiB: registered now, or when SPDK starts. 0 or -errno (-EINVAL). It
 * is also said to be reachable by every controller with DMA. Any thread. */
int dp_spdk_mem_add(void *addr, size_t bytes);
void dp_spdk_mem_remove(void *addr, size_t bytes);
/* Can controllers with DMA reach all of it? Any thread, no lock. */
bool dp_spdk_mem_reaches(const void *addr, size_t bytes);

/* -- a controller's own memory: for pools in a CMB or PMR */

struct dp_spdk_hold;

/* The attached PCIe controller with that BDF, held: it is not detached before dp_spdk_let_go. gone: it was removed or reset,
 * what lay in its memory is lost, what was mapped stays mapped until let_go; any thread, and it calls nothing here. NULL: none
 * is attached. */
struct dp_spdk_hold *dp_spdk_hold(const char *bdf, void (*gone)(void *arg, const char *why), void *arg);
void dp_spdk_let_go(struct dp_spdk_hold *hold);
/* Its registers (BAR 0), mapped uncached; NULL: removed. Little endian, to be read and written 4 or 8 bytes at a time. */
volatile void *dp_spdk_registers(struct dp_spdk_hold *hold);
/* A whole BAR: where it is mapped, its bus address, its size. */
int dp_spdk_map_bar(struct dp_spdk_hold *hold, unsigned bar, void **addr, uint64_t *phys, uint64_t *size);
void dp_spdk_unmap_bar(struct dp_spdk_hold *hold, unsigned bar, void *addr);

/* -- back ends: bdev.c */

struct bdev *dp_spdk_bdev_open(const struct dp_bdev_config *config, int *rc, char err[DP_ERR_MAX]);

/* SPDX-License-Identifier: BSD-3-Clause
 *
 * spdk_priv.h: between spdk_env.c (environment, the thread spdk-admin, memory), spdk_ctrlr.c (controllers, as the control
 * thread sees them), spdk_admin.c (their life on spdk-admin), spdk_ns.c (their namespaces) and spdk_bdev.c (I/O on reactors).
 *
 * Who owns what: a controller and its admin queue belong to spdk-admin. An I/O queue pair is made there and handed to its
 * reactor, which alone uses it until it gives it back; freed, and its commands with it, it is on spdk-admin again. So
 * nothing of SPDK that waits for a drive is ever called on a reactor.
 */
#pragma once

#include <pthread.h>
#include <semaphore.h>
#include <spdk/env.h>
#include <spdk/nvme.h>
#include <stdatomic.h>
#include <sys/queue.h>

/* of syslog.h, which the library's headers include */
#undef LOG_DEBUG
#undef LOG_INFO
#undef LOG_WARNING

#include "engine_priv.h"
#include "log.h"
#include "nvme_pass.h"
#include "spdk.h"

#define BOUNCES 8u /* of a queue pair with DMA */
#define BOUNCE_BYTES (128u << 10)
#define RETRY_FOR_EVER (-1)

/* Names in the library's structures have changed over its releases: flags and fields by their place in the specification. */
#define NVME_FUA (1u << 30)  /* CDW12 */
#define NVME_DEAC (1u << 25)
#define ONCS_DSM (1u << 2)
#define ONCS_WRITE_ZEROES (1u << 3)

struct sctrl;
struct sqp;

/* -- spdk_env.c */

struct task {
	void (*fn)(struct task *task); /* on spdk-admin; owns the task */
	STAILQ_ENTRY(task) link;
};

void admin_send(struct task *task); /* any thread */
/* What spdk-admin does between tasks; returns when it wants to be called again (CLOCK_MONOTONIC), UINT64_MAX: never. */
void admin_round(uint64_t (*round)(uint64_t now_ns));
void *spdk_env_zeroes(void); /* BOUNCE_BYTES of zeroes that controllers reach */
bool spdk_env_dma(void);     /* drives on PCI Express reach the library's memory; once the environment runs */

/* -- a namespace; made on spdk-admin, never freed before its controller */

struct sns {
	struct sctrl *c;
	uint32_t nsid;
	_Atomic(struct spdk_nvme_ns *) ns; /* NULL: not there */
	_Atomic uint64_t blocks;           /* 0: not there, or no more what it was */
	/* from when it was found */
	struct dp_bdev_facts facts;
	unsigned shift;
	bool zeroes, zeroes_unmap, dsm;
	_Atomic bool no_zeroes; /* the drive has refused it */
	struct nvme_pass *pass; /* NULL: the drive has no Compare, Verify or Copy */
	char refused[DP_ERR_MAX], uuid[40], identity[DP_SPDK_IDENTITY_MAX + 1];
	bool hollow;               /* it was another one when it was found: nothing of the above is of this one */
	char stranger[DP_ERR_MAX]; /* under the controller's lock: what is in its place now; "": nothing else */
	LIST_ENTRY(sns) link;
};

/* -- a queue pair: one reactor's way to a controller */

enum qp_state {
	QP_NONE,  /* the first I/O asks for one */
	QP_ASKED,
	QP_LIVE,
	QP_BACK,  /* given back: the controller is being reset or detached */
};

struct sqp {
	struct sctrl *c;
	struct reactor *r;
	/* the reactor's */
	enum qp_state state;
	struct spdk_nvme_qpair *q;
	bool dead;       /* I/O fails at once */
	bool complained; /* it does not work any more; spdk-admin knows */
	uint32_t outstanding;
	struct bdev_io_list waiting; /* for a queue pair, or for room in it */
	void *bounces[BOUNCES];
	unsigned n_bounces; /* that are free */
	LIST_ENTRY(sqp) live;
	_Atomic uint64_t bounced_ops, bounced_bytes, retries;
	/* on their way: at most once each */
	struct task ask, complain, give;
	struct rmsg call;
	/* spdk-admin's */
	struct spdk_nvme_qpair *made;
	bool asked, freeing;
	unsigned tries;
	void *memory; /* of the bounces */
	struct bdev_io_list orphans; /* ended when it was freed; their reactor decides */
};

/* -- a controller */

enum sctrl_state {
	CS_CONNECTING,
	CS_READY,
	CS_COLLECT,       /* reactors are giving their queue pairs back */
	CS_DISCONNECTING,
	CS_RECONNECTING,
	CS_WAIT,          /* until the next attempt */
	CS_FAILED,        /* given up; a reset tries again */
	CS_REMOVED,       /* the device is gone: nothing of SPDK is left of it */
	CS_LEAVING,       /* until nobody holds its memory */
	CS_DETACHING,
	CS_GONE,
};

enum sctrl_goal { GOAL_RESET, GOAL_REMOVE, GOAL_DETACH };

struct dp_spdk_hold {
	struct sctrl *c;
	void (*gone)(void *arg, const char *why);
	void *arg;
	LIST_ENTRY(dp_spdk_hold) link;
};

struct sctrl {
	LIST_ENTRY(sctrl) link;       /* the control thread's list */
	LIST_ENTRY(sctrl) admin_link; /* spdk-admin's */
	char name[DP_SPDK_NAME_MAX + 1];
	char hostaddr[SPDK_NVMF_TRADDR_MAX_LEN + 1], hostsvcid[SPDK_NVMF_TRSVCID_MAX_LEN + 1], hostnqn[SPDK_NVMF_NQN_MAX_LEN + 1];
	struct spdk_nvme_transport_id trid;
	bool hdgst, ddgst, dma;
	struct dp_spdk_options options;
	struct dp_spdk_identity *known;
	size_t num_known;
	/* spdk-admin's */
	struct spdk_nvme_ctrlr *c;
	struct spdk_nvme_ctrlr_opts opts;
	struct spdk_nvme_probe_ctx *probe;
	struct spdk_nvme_detach_ctx *detach;
	enum sctrl_state state;
	enum sctrl_goal goal;
	bool came_up; /* once: it is not being attached any more */
	bool rescan, failing_fast, refused;
	char trouble[DP_ERR_MAX];
	unsigned left; /* reactors that have not given their queue pair back */
	unsigned busy; /* admin commands that somebody waits for */
	uint64_t since_ns, next_ns; /* not usable since; next attempt, or look at the device */
	struct job *attach_job, *reset_job, *detach_job;
	struct task complain;
	_Atomic bool complaining;
	/* under lock: what the others see of it */
	pthread_mutex_t lock;
	enum dp_spdk_state shown;
	char serial[21], model[41], firmware[9];
	char own_nqn[224];
	uint16_t cntlid, oncs, vendor;
	uint32_t mdts_bytes;
	uint64_t resets;
	_Atomic uint64_t timeouts;
	uint64_t told_timeouts, told_ns; /* spdk-admin: so many, and when, in the log */
	LIST_HEAD(, sns) namespaces, former; /* former: hollow ones, when the right one had come */
	LIST_HEAD(, dp_spdk_hold) holds;
	unsigned bdevs; /* control thread */
	bool attached, leaving; /* the same: it was found; it is being detached */
	struct job *detaching;  /* the same: when the last bdev is gone */
	unsigned n;
	struct sqp qp[];
};

/* What the control thread waits for. */
struct job {
	struct task task;
	struct sctrl *c;
	dp_spdk_done_fn done;
	dp_spdk_health_fn health; /* or this */
	void *arg;
	int rc;
	char err[DP_ERR_MAX];
	uint8_t page[512];
	void *dma;
};

/* spdk_ctrlr.c */
void job_done(struct job *job, int rc, const char *format, ...) __attribute__((format(printf, 3, 4)));
void sctrl_changed(struct sctrl *c); /* any thread: the control thread looks at its bdevs, and tells */
struct sctrl *sctrl_find(const char *name);
void sctrl_bdev_gone(struct sctrl *c);
void sctrl_shown(struct sctrl *c, enum dp_spdk_state state); /* any thread */
extern _Atomic bool spdk_hotplug;
extern _Atomic uint64_t spdk_hotplug_period_us;

/* spdk_admin.c: on spdk-admin */
extern const char *spdk_sysfs; /* /sys/bus/pci/devices; tests have another */
void sctrl_attach(struct task *task); /* of struct job */
void sctrl_detach(struct task *task);
void sctrl_reset(struct task *task);
void sctrl_health(struct task *task);

/* spdk_ns.c: on spdk-admin */
void sns_scan(struct sctrl *c); /* what is there now, against what was there */
void sns_none(struct sctrl *c); /* none of them is there any more */
void identify_text(char *to, const uint8_t *from, size_t size); /* to: size + 1 bytes */

/* spdk_bdev.c */
void sqp_init(struct sqp *qp, struct sctrl *c, struct reactor *r);
/* What spdk-admin tells a reactor: a queue pair; or none: 0: ask again if you need one, -ENXIO: there will be none, all I/O
 * fails, -errno: what waits fails. */
struct come {
	struct rmsg msg;
	struct sqp *qp;
	struct spdk_nvme_qpair *q;
	int rc;
};

void sqp_come(struct reactor *r, struct rmsg *msg); /* of a struct come from malloc */
void sqp_call(struct reactor *r, struct rmsg *msg); /* give it back */
void sqp_asked(struct task *task);                  /* spdk_admin.c */
void sqp_complained(struct task *task);
void sqp_given(struct task *task);
/* For nvme_pass: a command of the namespace (struct nvme_passthru_cmd), on a worker. 0, a status, or -errno. */
int sns_io_call(struct sns *ns, void *cmd);

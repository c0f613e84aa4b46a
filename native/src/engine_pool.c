/* SPDX-License-Identifier: BSD-3-Clause
 *
 * engine_pool.c: engine.h's part about pools of peer memory: their life among the views that name them, calibration on
 * threads of its own, which bdev may use which, and who is told of a loss. Control thread unless it says otherwise.
 */
#include <assert.h>
#include <errno.h>
#include <fcntl.h>
#include <limits.h>
#include <stdio.h>
#include <stdlib.h>
#include <sys/stat.h>
#include <sys/sysmacros.h>
#include <unistd.h>

#include "calibrate.h"
#include "engine_priv.h"
#include "pool_device.h"
#include "spdk.h"

#define QUIESCE_S 30 /* for so long a drive may take to finish what is in flight */

static bool watching;

static uint64_t bit_of(const struct pool *pool)
{
	return 1ull << (pool_index(pool) - 1);
}

const char *dp_pool_name(unsigned index)
{
	struct pool *pool = pool_at(index);

	return pool && pool->name[0] ? pool->name : NULL;
}

/* -- loss */

static bool lies_in_lost(const struct bdev *bdev)
{
	return bdev->kind == DP_BDEV_CMB && !bdev->deleting && !bdev->told_lost && pool_is_lost(bdev_cmb_pool(bdev));
}

static void tell_lost(void *arg)
{
	const struct dp_events *events = engine_events();

	for (unsigned i = 1; i <= POOLS_MAX; i++) {
		struct pool *pool = pool_at(i);

		if (atomic_load(&pool->state) == POOL_FREE || !pool_is_lost(pool) || pool->told)
			continue;
		pool->told = true;
		if (!pool->hidden && events->pool_lost)
			events->pool_lost(pool->name, atomic_load(&pool->why));
	}
	for (struct bdev *bdev = engine_first_bdev(); bdev; bdev = LIST_NEXT(bdev, link))
		if (lies_in_lost(bdev)) {
			bdev->told_lost = true;
			events->bdev_changed(bdev->name, NULL);
		}
}

/* On the watching thread. */
static void on_lost(void)
{
	engine_post(tell_lost, NULL);
}

int engine_pools_watch(void)
{
	int rc = watching ? 0 : pool_watch_start(on_lost);

	watching |= rc == 0;
	return rc;
}

/* -- life */

static void (*pools_changed)(struct pool *pool, bool there);

void engine_pools_tell(void (*changed)(struct pool *pool, bool there))
{
	pools_changed = changed;
	for (unsigned i = 1; i <= POOLS_MAX && changed; i++)
		if (atomic_load(&pool_at(i)->state) == POOL_LIVE && !pool_at(i)->hidden)
			changed(pool_at(i), true);
}

/* An index that was another pool's before starts from zero. Nobody counts for it now. */
static void clear_counters(const struct pool *pool)
{
	for (struct bdev *bdev = engine_first_bdev(); bdev; bdev = LIST_NEXT(bdev, link))
		for (unsigned i = 0; i < bdev->n_reactors; i++)
			for (unsigned use = 0; use < POOL_USES; use++) {
				atomic_store(&bdev->r[i].staging.pool[pool->index].bytes[use], 0);
				atomic_store(&bdev->r[i].staging.pool[pool->index].ops[use], 0);
			}
}

static void nothing(void *arg, int rc)
{
}

int dp_pool_create(const struct dp_pool_config *config, struct dp_pool_facts *facts, char err[DP_ERR_MAX])
{
	struct pool *pool;
	int rc;

	err[0] = 0;
	rc = engine_pools_watch();
	if (rc < 0)
		return rc;
	pool = pool_open(config, false, &rc, err);
	if (!pool)
		return rc;
	if (pool->renamed)
		clear_counters(pool);
	facts->bytes = pool->bytes;
	if (pools_changed)
		pools_changed(pool, true);
	engine_retie_pool(pool->name, pool, nothing, NULL);
	return 0;
}

struct pool_end {
	struct pool *pool;
	dp_done_fn done; /* NULL: has been called */
	void *arg;
	unsigned left; /* views, and this call */
	bool idle;
};

/* The name of a bdev that lies there; NULL: none, or it is on its way out. */
static const char *resident_of(const struct pool *pool)
{
	for (struct bdev *bdev = engine_first_bdev(); bdev; bdev = LIST_NEXT(bdev, link))
		if (bdev->kind == DP_BDEV_CMB && !bdev->deleting && bdev_cmb_pool(bdev) == pool)
			return bdev->name;
	return NULL;
}

static void end_if_over(struct pool_end *end)
{
	dp_done_fn done = end->done;
	void *arg = end->arg;

	if (end->left)
		return;
	/* A bdev that lies in a lost pool keeps our zeroes, and the slot; the provider's memory was given back at the loss. */
	if (!end->idle && !resident_of(end->pool))
		return;
	end->done = NULL;
	if (end->idle) {
		if (pools_changed)
			pools_changed(end->pool, false);
		pool_destroy(end->pool);
		free(end);
	}
	if (done)
		done(arg, 0);
}

static void end_idle(void *arg)
{
	struct pool_end *end = arg;

	end->idle = true;
	end_if_over(end);
}

/* Any thread. */
static void post_idle(void *arg)
{
	engine_post(end_idle, arg);
}

static void end_viewed(void *arg, int rc)
{
	struct pool_end *end = arg;

	end->left--;
	end_if_over(end);
}

static void disallow(const struct pool *pool)
{
	for (struct bdev *bdev = engine_first_bdev(); bdev; bdev = LIST_NEXT(bdev, link)) {
		atomic_fetch_and(&bdev->pools_allowed, ~bit_of(pool));
		atomic_fetch_and(&bdev->pools_withdrawn, ~bit_of(pool));
	}
}

int dp_pool_delete(const char *name, dp_done_fn done, void *arg, char err[DP_ERR_MAX])
{
	struct pool *pool = pool_find(name);
	struct pool_end *end;

	err[0] = 0;
	if (!pool) {
		snprintf(err, DP_ERR_MAX, "there is no pool '%.100s'", name);
		return -ENODEV;
	}
	if (pool->calibrating) {
		snprintf(err, DP_ERR_MAX, "pool %.100s is being calibrated", name);
		return -EBUSY;
	}
	if (resident_of(pool) && !pool_is_lost(pool)) {
		snprintf(err, DP_ERR_MAX, "bdev %.100s lies in pool %.100s: delete it first", resident_of(pool), name);
		return -EBUSY;
	}
	end = calloc(1, sizeof(*end));
	if (!end)
		return -ENOMEM;
	*end = (struct pool_end){ .pool = pool, .done = done, .arg = arg, .left = 1 };
	disallow(pool);
	end->left += engine_retie_pool(pool->name, NULL, end_viewed, end);
	pool_close(pool, post_idle, end);
	end_viewed(end, 0);
	return 0;
}

static void destroy_now(void *arg)
{
	if (pools_changed)
		pools_changed(arg, false);
	pool_destroy(arg);
}

/* Reactors and bdevs are gone, but for those whose end is still on its way to this thread: their pools go with them. */
void engine_pools_stop(void)
{
	for (unsigned i = 1; i <= POOLS_MAX; i++) {
		struct pool *pool = pool_at(i);

		if (atomic_load(&pool->state) == POOL_LIVE && !pool->hidden)
			pool_close(pool, destroy_now, pool);
	}
	if (watching)
		pool_watch_stop();
	watching = false;
}

void dp_pool_check(void)
{
	for (unsigned i = 1; i <= POOLS_MAX; i++)
		if (atomic_load(&pool_at(i)->state) != POOL_FREE && !pool_is_lost(pool_at(i)))
			pool_check(pool_at(i));
}

/* -- to look at */

static size_t list_allowed(const struct pool *pool, struct dp_pool_stat *stat)
{
	size_t n = 0;

	for (struct bdev *bdev = engine_first_bdev(); bdev; bdev = LIST_NEXT(bdev, link))
		n += !bdev->deleting && atomic_load(&bdev->pools_allowed) & bit_of(pool) ? 1 : 0;
	stat->allowed = calloc(n + 1, sizeof(*stat->allowed));
	if (!stat->allowed)
		return 0;
	n = 0;
	for (struct bdev *bdev = engine_first_bdev(); bdev; bdev = LIST_NEXT(bdev, link))
		if (!bdev->deleting && atomic_load(&bdev->pools_allowed) & bit_of(pool))
			snprintf(stat->allowed[n++], sizeof(*stat->allowed), "%s", bdev->name);
	return n;
}

int dp_pool_probe(const char *bdf, bool attached, struct dp_pool_device *found, char err[DP_ERR_MAX])
{
	struct pool *pool = pool_find(bdf);

	if (!pool || !pool->device || pool_is_lost(pool))
		return pool_device_probe(bdf, attached, found, err);
	pool_device_facts(pool->device, found);
	return 0;
}

static void look(struct pool *pool, struct dp_pool_stat *stat)
{
	*stat = (struct dp_pool_stat){ .kind = pool->kind,
				       .bytes = pool->bytes,
				       .waits = atomic_load(&pool->waits),
				       .fallbacks = atomic_load(&pool->fallbacks),
				       .wiped_bytes = atomic_load(&pool->wiped_bytes),
				       .lost = pool_is_lost(pool) };
	snprintf(stat->name, sizeof(stat->name), "%s", pool->name);
	snprintf(stat->why, sizeof(stat->why), "%s", atomic_load(&pool->why));
	pthread_mutex_lock(&pool->lock);
	stat->free_bytes = (uint64_t)pool->space.free * POOL_GRANULE;
	stat->largest_free_bytes = (uint64_t)space_largest(&pool->space) * POOL_GRANULE;
	stat->waiting = pool->waiting;
	stat->buffers = pool->in_use;
	pthread_mutex_unlock(&pool->lock);
	if (pool->device)
		pool_device_facts(pool->device, &stat->device);
	stat->num_allowed = list_allowed(pool, stat);
}

size_t dp_pool_stats(struct dp_pool_stat **stats)
{
	size_t n = 0;

	*stats = calloc(POOLS_MAX, sizeof(**stats));
	for (unsigned i = 1; i <= POOLS_MAX && *stats; i++)
		if (atomic_load(&pool_at(i)->state) == POOL_LIVE && !pool_at(i)->hidden)
			look(pool_at(i), &(*stats)[n++]);
	return n;
}

void dp_pool_stats_free(struct dp_pool_stat *stats, size_t count)
{
	for (size_t i = 0; i < count; i++)
		free(stats[i].allowed);
	free(stats);
}

int dp_bdev_staging(const char *name, struct dp_staging *staging)
{
	struct bdev *bdev = engine_bdev(name);

	if (!bdev)
		return -ENODEV;
	bdev_staging_sum(bdev, staging);
	return 0;
}

/* -- who may use what */

/* The lowest of a stack, if it is a drive. */
static struct bdev *drive_of(const char *name, char err[DP_ERR_MAX], int *rc)
{
	struct bdev *bdev = engine_bdev(name);

	*rc = -ENODEV;
	if (!bdev) {
		snprintf(err, DP_ERR_MAX, "there is no bdev '%.100s'", name);
		return NULL;
	}
	while (bdev->base)
		bdev = bdev->base;
	if (bdev->kind == DP_BDEV_URING || bdev->kind == DP_BDEV_SPDK)
		return bdev;
	*rc = -EINVAL;
	snprintf(err, DP_ERR_MAX, "bdev %.100s is memory, no drive: nothing of it is staged in a pool", name);
	return NULL;
}

/* Whether the drive can do DMA there at all. */
static int check_reach(const struct pool *pool, const struct bdev *bdev, char err[DP_ERR_MAX])
{
	if (pool->kind == DP_POOL_SPDK_CMB && bdev->kind != DP_BDEV_SPDK) {
		snprintf(err, DP_ERR_MAX,
			 "pool %.32s is memory of a drive on vfio-pci, bdev %.60s a drive of the kernel's, which takes no "
			 "such memory (EFAULT): attach the drive with bdev_nvme_attach_controller",
			 pool->name, bdev->name);
		return -EINVAL;
	}
	if (pool->kind == DP_POOL_P2PMEM && bdev->kind == DP_BDEV_SPDK) {
		snprintf(err, DP_ERR_MAX,
			 "pool %.32s is memory that the kernel's nvme driver gives out, bdev %.60s a drive of SPDK's, which "
			 "does not reach it: bind the provider to vfio-pci as well",
			 pool->name, bdev->name);
		return -EINVAL;
	}
	if (pool->kind == DP_POOL_SPDK_CMB && !dp_spdk_mem_reaches(pool->base, pool->bytes)) {
		snprintf(err, DP_ERR_MAX, "pool %.32s is not mapped for SPDK's drives: it needs 2 MiB at least, and an IOMMU",
			 pool->name);
		return -EINVAL;
	}
	return 0;
}

int dp_pool_allow(const char *name, const char *bdev_name, bool allow, char err[DP_ERR_MAX])
{
	struct pool *pool = pool_find(name);
	struct bdev *bdev;
	int rc;

	err[0] = 0;
	if (!pool) {
		snprintf(err, DP_ERR_MAX, "there is no pool '%.100s'", name);
		return -ENODEV;
	}
	bdev = drive_of(bdev_name, err, &rc);
	if (!bdev)
		return rc;
	if (!allow) {
		atomic_fetch_and(&bdev->pools_allowed, ~bit_of(pool));
		atomic_fetch_and(&bdev->pools_withdrawn, ~bit_of(pool));
		return 0;
	}
	if (pool_is_lost(pool)) {
		snprintf(err, DP_ERR_MAX, "pool %.60s was lost: %.100s", name, atomic_load(&pool->why));
		return -ENODEV;
	}
	rc = check_reach(pool, bdev, err);
	if (rc == 0) {
		atomic_fetch_and(&bdev->pools_withdrawn, ~bit_of(pool));
		atomic_fetch_or(&bdev->pools_allowed, bit_of(pool));
	}
	return rc;
}

/* -- calibration
 *
 * A thread of its own does it. For the time in which it writes to the drive it has the control thread quiesce every bdev
 * on it:   thread: CPU -> ask -> (wait until quiet) probe -> resume -> bandwidth -> end
 */

struct job {
	LIST_ENTRY(job) link;
	struct pool *pool; /* NULL: a journal is put back */
	struct bdev *bdev; /* the drive; NULL: the CPU's part alone */
	struct bdev **stack; /* it, whatever else lies on the same medium, and their layers: none comes or goes meanwhile */
	unsigned n_stack;
	char *bdev_name, *journal;
	struct calibrate_drive drive;
	struct dp_calibration result;
	int rc;
	dp_calibrated_fn done;
	dp_restored_fn restored;
	void *arg;
	pthread_t thread;
	atomic_bool cancel;
	unsigned refs;  /* the thread, and answers of the reactors that are to come; control thread */
	unsigned noisy; /* bdevs that are not quiet yet; control thread */

	pthread_mutex_t lock; /* of quiet, which the thread waits for */
	pthread_cond_t changed;
	bool quiet;
};

static LIST_HEAD(, job) jobs = LIST_HEAD_INITIALIZER(jobs);
static dp_done_fn jobs_over;
static void *jobs_over_arg;

/* What a file is, or which disk a block device is a part of. */
static bool medium_of(const struct bdev *bdev, char medium[PATH_MAX])
{
	char path[64];
	struct stat st;
	char *slash;

	if (bdev->kind != DP_BDEV_URING || fstat(bdev_uring_fd(bdev), &st) < 0)
		return false;
	snprintf(medium, PATH_MAX, "file %llu %llu", (unsigned long long)st.st_dev, (unsigned long long)st.st_ino);
	if (!S_ISBLK(st.st_mode))
		return true;
	snprintf(path, sizeof(path), "/sys/dev/block/%u:%u/partition", major(st.st_rdev), minor(st.st_rdev));
	bool part = access(path, F_OK) == 0;

	snprintf(path, sizeof(path), "/sys/dev/block/%u:%u", major(st.st_rdev), minor(st.st_rdev));
	if (!realpath(path, medium))
		snprintf(medium, PATH_MAX, "device %u:%u", major(st.st_rdev), minor(st.st_rdev));
	else if (part && (slash = strrchr(medium, '/')))
		*slash = 0;
	return true;
}

static bool same_medium(const struct bdev *a, const struct bdev *b)
{
	char of_a[PATH_MAX], of_b[PATH_MAX];

	a = bdev_bottom(a);
	b = bdev_bottom(b);
	return a == b || (medium_of(a, of_a) && medium_of(b, of_b) && strcmp(of_a, of_b) == 0);
}

bool engine_is_probed(const struct bdev *bdev)
{
	struct job *job;

	LIST_FOREACH(job, &jobs, link)
		if (job->bdev && same_medium(job->bdev, bdev))
			return true;
	return false;
}

/* 0, -EBUSY or -ENOMEM. */
static int collect(struct job *job)
{
	unsigned n = 0;

	for (struct bdev *bdev = engine_first_bdev(); bdev; bdev = LIST_NEXT(bdev, link))
		n++;
	job->stack = calloc(n, sizeof(struct bdev *));
	if (!job->stack)
		return -ENOMEM;
	for (struct bdev *bdev = engine_first_bdev(); bdev; bdev = LIST_NEXT(bdev, link)) {
		if ((bdev->deleting && !bdev->name[0]) || !same_medium(bdev, job->bdev))
			continue; /* without a name it is drained, and what lay below it may be gone */
		if (bdev->deleting || bdev->calibrating)
			return -EBUSY;
		job->stack[job->n_stack++] = bdev;
	}
	return 0;
}

static void mark(struct job *job, bool busy)
{
	if (job->pool)
		job->pool->calibrating = busy;
	for (unsigned i = 0; i < job->n_stack; i++)
		job->stack[i]->calibrating = busy;
}

static void job_free(struct job *job)
{
	if (job->drive.fd >= 0)
		close(job->drive.fd);
	pthread_mutex_destroy(&job->lock);
	pthread_cond_destroy(&job->changed);
	free(job->stack);
	free(job->bdev_name);
	free(job->journal);
	free(job);
}

static void job_release(struct job *job)
{
	if (--job->refs)
		return;
	pthread_join(job->thread, NULL);
	mark(job, false);
	LIST_REMOVE(job, link);
	if (job->restored)
		job->restored(job->arg, job->rc, job->result.reason);
	else
		job->done(job->arg, job->rc, &job->result);
	job_free(job);
	if (LIST_EMPTY(&jobs) && jobs_over) {
		dp_done_fn over = jobs_over;

		jobs_over = NULL;
		over(jobs_over_arg, 0);
	}
}

static void job_quiet(void *arg)
{
	struct job *job = arg;

	if (--job->noisy == 0) {
		pthread_mutex_lock(&job->lock);
		job->quiet = true;
		pthread_cond_signal(&job->changed);
		pthread_mutex_unlock(&job->lock);
	}
	job_release(job);
}

static void job_resumed(void *arg)
{
	job_release(arg);
}

static void for_stack(struct job *job, void (*fn)(struct bdev *bdev, void (*done)(void *arg), void *arg),
		      void (*done)(void *arg), unsigned *count)
{
	job->refs += job->n_stack;
	if (count)
		*count = job->n_stack;
	for (unsigned i = 0; i < job->n_stack; i++)
		fn(job->stack[i], done, job);
}

static void job_quiesce(void *arg)
{
	struct job *job = arg;

	for_stack(job, bdev_quiesce, job_quiet, &job->noisy);
}

static void job_resume(void *arg)
{
	for_stack(arg, bdev_resume, job_resumed, NULL);
}

static void job_over(void *arg)
{
	job_release(arg);
}

/* On the job's thread. */
static bool wait_until_quiet(struct job *job)
{
	struct timespec until;
	bool quiet;

	clock_gettime(CLOCK_REALTIME, &until);
	until.tv_sec += QUIESCE_S;
	pthread_mutex_lock(&job->lock);
	while (!job->quiet && pthread_cond_timedwait(&job->changed, &job->lock, &until) != ETIMEDOUT)
		;
	quiet = job->quiet;
	pthread_mutex_unlock(&job->lock);
	return quiet;
}

static void probe(struct job *job)
{
	engine_post(job_quiesce, job);
	if (wait_until_quiet(job)) {
		job->rc = job->restored ? calibrate_restore(&job->drive, job->result.reason) :
					  calibrate_verify(job->pool, &job->drive, &job->result);
	} else {
		job->rc = job->restored ? -ETIMEDOUT : 0;
		snprintf(job->result.reason, sizeof(job->result.reason), "I/O in flight on the drive did not end within %d s",
			 QUIESCE_S);
	}
	engine_post(job_resume, job);
	if (job->result.verified)
		calibrate_bandwidth(job->pool, &job->drive, &job->result);
}

static void *job_main(void *arg)
{
	struct job *job = arg;

	if (job->pool)
		calibrate_cpu(job->pool, &job->result);
	if (job->bdev && !job->result.reason[0])
		probe(job);
	if (job->result.reason[0])
		job->result.verified = false;
	engine_post(job_over, job);
	return NULL;
}

/* Its file, opened again: an error of a write that the kernel reports once for each open file stays there for hosts' Flush. */
static int open_drive(struct job *job, char err[DP_ERR_MAX])
{
	char path[64];
	int rc, fd;

	if (job->bdev->kind == DP_BDEV_SPDK) {
		calibrate_drive_of_bdev(&job->drive, job->bdev);
		return 0;
	}
	if (!job->pool) {
		snprintf(err, DP_ERR_MAX, "bdev %.60s is a file: what its journal holds is put back before it is opened",
			 job->bdev->name);
		return -EINVAL;
	}
	snprintf(path, sizeof(path), "/proc/self/fd/%d", bdev_uring_fd(job->bdev));
	fd = open(path, O_RDWR | O_CLOEXEC | (fcntl(bdev_uring_fd(job->bdev), F_GETFL) & O_DIRECT));
	if (fd < 0) {
		rc = -errno;
		snprintf(err, DP_ERR_MAX, "bdev %.60s: its file cannot be opened: %s", job->bdev->name, strerror(-rc));
		return rc;
	}
	calibrate_drive_init(&job->drive, fd);
	if (job->pool->kind == DP_POOL_P2PMEM && !(fcntl(fd, F_GETFL) & O_DIRECT)) {
		snprintf(err, DP_ERR_MAX, "bdev %.60s: its file is not read and written past the page cache: nothing goes peer to peer",
			 job->bdev->name);
		return -EINVAL;
	}
	return 0;
}

static int job_drive(struct job *job, const struct dp_calibrate_config *config, char err[DP_ERR_MAX])
{
	int rc;

	job->bdev = drive_of(config->bdev, err, &rc);
	if (!job->bdev)
		return rc;
	rc = job->pool ? check_reach(job->pool, job->bdev, err) : 0;
	if (rc < 0)
		return rc;
	rc = collect(job);
	if (rc < 0) {
		snprintf(err, DP_ERR_MAX, "bdev %.100s%s", config->bdev,
			 rc == -EBUSY ? ", or another on the same drive, is being calibrated or deleted" : ": no memory");
		return rc;
	}
	if (job->bdev->readonly || !config->journal) {
		snprintf(err, DP_ERR_MAX, "bdev %.60s: %s", config->bdev,
			 config->journal ? "it cannot be written, so nothing proves the way from the pool to it" :
					   "a journal is needed, for what is overwritten");
		return config->journal ? -EROFS : -EINVAL;
	}
	rc = open_drive(job, err);
	if (rc < 0)
		return rc;
	job->bdev_name = strdup(job->bdev->name);
	job->journal = strdup(config->journal);
	job->drive.name = job->bdev_name;
	job->drive.journal = job->journal;
	job->drive.block_size = job->bdev->block_size;
	job->drive.bytes = atomic_load(&job->bdev->num_blocks) << job->bdev->block_shift;
	job->drive.cancel = &job->cancel;
	return job->bdev_name && job->journal ? 0 : -ENOMEM;
}

static struct job *job_new(struct pool *pool, void *arg)
{
	struct job *job = calloc(1, sizeof(*job));

	if (!job)
		return NULL;
	*job = (struct job){ .pool = pool, .arg = arg, .refs = 1, .drive.fd = -1 };
	pthread_mutex_init(&job->lock, NULL);
	pthread_cond_init(&job->changed, NULL);
	return job;
}

/* rc: of what was prepared. */
static int job_start(struct job *job, int rc)
{
	if (rc == 0) {
		mark(job, true);
		LIST_INSERT_HEAD(&jobs, job, link);
		rc = -pthread_create(&job->thread, NULL, job_main, job);
		if (rc == 0)
			return 0;
		LIST_REMOVE(job, link);
		mark(job, false);
	}
	job_free(job);
	return rc;
}

int dp_pool_calibrate(const struct dp_calibrate_config *config, dp_calibrated_fn done, void *arg, char err[DP_ERR_MAX])
{
	struct pool *pool = pool_find(config->pool);
	struct job *job;
	int rc = -ENODEV;

	err[0] = 0;
	if (!pool || pool_is_lost(pool)) {
		snprintf(err, DP_ERR_MAX, "pool '%.100s' %s", config->pool, pool ? "was lost" : "does not exist");
		return rc;
	}
	if (pool->calibrating || jobs_over) {
		snprintf(err, DP_ERR_MAX, "pool %.100s %s", config->pool,
			 jobs_over ? "comes to its end" : "is being calibrated");
		return -EBUSY;
	}
	job = job_new(pool, arg);
	if (!job)
		return -ENOMEM;
	job->done = done;
	rc = config->bdev ? job_drive(job, config, err) : 0;
	return job_start(job, rc);
}

int dp_pool_restore(const char *bdev, const char *journal, dp_restored_fn done, void *arg, char err[DP_ERR_MAX])
{
	const struct dp_calibrate_config config = { .bdev = bdev, .journal = journal };
	struct job *job = jobs_over ? NULL : job_new(NULL, arg);
	int rc;

	err[0] = 0;
	if (!job)
		return jobs_over ? -EBUSY : -ENOMEM;
	job->restored = done;
	rc = job_drive(job, &config, err);
	return job_start(job, rc);
}

bool engine_calibrations_stop(dp_done_fn over, void *arg)
{
	struct job *job;

	if (LIST_EMPTY(&jobs))
		return false;
	LIST_FOREACH(job, &jobs, link)
		atomic_store(&job->cancel, true);
	jobs_over = over;
	jobs_over_arg = arg;
	return true;
}

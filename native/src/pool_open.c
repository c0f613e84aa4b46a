/* SPDX-License-Identifier: BSD-3-Clause
 *
 * pool_open.c: how pools come and go, and whose number a host has. Control thread.
 */
#include <assert.h>
#include <errno.h>
#include <fcntl.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/mman.h>
#include <sys/random.h>
#include <unistd.h>

#include "pool_device.h"
#include "pool_registry.h"

#define BYTES_MIN (2 * POOL_GRANULE)
#define BYTES_MAX ((uint64_t)UINT32_MAX * POOL_GRANULE)
#define BUFS_MAX 65536u

/* Slot 0 is nobody's: index 0 means host memory. */
static struct pool pools[POOLS_MAX + 1];
static uint64_t births;

struct pool *pool_at(unsigned index)
{
	return index && index <= POOLS_MAX ? &pools[index] : NULL;
}

struct pool *pool_find(const char *name)
{
	for (unsigned i = 1; i <= POOLS_MAX; i++)
		if (atomic_load(&pools[i].state) == POOL_LIVE && !pools[i].hidden && strcmp(pools[i].name, name) == 0)
			return &pools[i];
	return NULL;
}

static void init_slots(void)
{
	static bool ready;

	for (unsigned i = 1; i <= POOLS_MAX && !ready; i++) {
		pthread_mutexattr_t attr;

		pools[i].index = i;
		pools[i].fd = -1;
		TAILQ_INIT(&pools[i].waiters);
		/* spins a little, then sleeps: whoever holds it may have lost its CPU */
		pthread_mutexattr_init(&attr);
		pthread_mutexattr_settype(&attr, PTHREAD_MUTEX_ADAPTIVE_NP);
		pthread_mutex_init(&pools[i].lock, &attr);
		pthread_mutexattr_destroy(&attr);
	}
	ready = true;
}

/* The slot that had this name before (counters go on), else one that was never used, else the one unused for longest. */
static struct pool *slot_for(const char *name)
{
	struct pool *best = NULL;

	for (unsigned i = 1; i <= POOLS_MAX; i++) {
		struct pool *pool = &pools[i];

		if (atomic_load(&pool->state) != POOL_FREE)
			continue;
		if (strcmp(pool->name, name) == 0)
			return pool;
		if (!best || pool->born < best->born)
			best = pool;
	}
	return best;
}

/* -- the memory */

static int map_emulated(struct pool *pool, const struct dp_pool_config *config, char err[DP_ERR_MAX])
{
	pool->fd = memfd_create("nvmet-p2p emulated CMB", MFD_CLOEXEC);
	if (pool->fd < 0 || ftruncate(pool->fd, (off_t)config->bytes) < 0) {
		snprintf(err, DP_ERR_MAX, "pool %.60s: no memory to emulate a CMB in: %s", config->name, strerror(errno));
		return -errno;
	}
	pool->base = mmap(NULL, config->bytes, PROT_READ | PROT_WRITE, MAP_SHARED, pool->fd, 0);
	pool->bytes = config->bytes;
	if (pool->base != MAP_FAILED)
		return 0;
	snprintf(err, DP_ERR_MAX, "pool %.60s: %s", config->name, strerror(errno));
	return -errno;
}

/* p2pmem/available beside p2pmem/allocate; 0: cannot be read. */
static uint64_t available_at(const char *allocate)
{
	char path[DP_ERR_MAX + 64], text[32];
	const char *slash = strrchr(allocate, '/');
	ssize_t n = -1;
	int fd;

	snprintf(path, sizeof(path), "%.*savailable", slash ? (int)(slash + 1 - allocate) : 0, allocate);
	fd = open(path, O_RDONLY | O_CLOEXEC);
	if (fd >= 0) {
		n = read(fd, text, sizeof(text) - 1);
		close(fd);
	}
	if (n <= 0)
		return 0;
	text[n] = 0;
	return strtoull(text, NULL, 10);
}

/* Each mapping is one allocation, in one piece, of the provider's memory; without a size, as much as can be had. */
static int map_p2pmem(struct pool *pool, const struct dp_pool_config *config, char err[DP_ERR_MAX])
{
	uint64_t bytes = config->bytes ? config->bytes : available_at(config->path) / POOL_GRANULE * POOL_GRANULE;
	int fd = open(config->path, O_RDWR | O_CLOEXEC), rc = 0;

	if (fd < 0) {
		rc = -errno;
		snprintf(err, DP_ERR_MAX, "pool %.40s: cannot open %.120s: %s", config->name, config->path, strerror(-rc));
		return rc;
	}
	for (; bytes >= BYTES_MIN; bytes = bytes / 4 * 3 / POOL_GRANULE * POOL_GRANULE) {
		pool->base = mmap(NULL, bytes, PROT_READ | PROT_WRITE, MAP_SHARED, fd, 0);
		if (pool->base != MAP_FAILED || config->bytes || errno != ENOMEM)
			break;
	}
	rc = bytes < BYTES_MIN ? -ENOMEM : pool->base == MAP_FAILED ? -errno : 0;
	close(fd);
	pool->bytes = bytes;
	if (rc < 0)
		snprintf(err, DP_ERR_MAX, "pool %.40s: %.120s gives no memory: %s", config->name, config->path, strerror(-rc));
	return rc;
}

static int map_device(struct pool *pool, const struct dp_pool_config *config, char err[DP_ERR_MAX])
{
	char why[DP_ERR_MAX];
	int rc;

	pool->device = pool_device_open(config->name, config->bytes, &rc, why);
	if (!pool->device) {
		snprintf(err, DP_ERR_MAX, "pool %.32s: %.200s", config->name, why);
		return rc;
	}
	pool->base = pool_device_base(pool->device);
	pool->bytes = pool_device_bytes(pool->device);
	return 0;
}

static int map(struct pool *pool, const struct dp_pool_config *config, char err[DP_ERR_MAX])
{
	switch (config->kind) {
	case DP_POOL_EMULATED:
		return map_emulated(pool, config, err);
	case DP_POOL_SPDK_CMB:
		return map_device(pool, config, err);
	default:
		return map_p2pmem(pool, config, err);
	}
}

/* Any thread. */
static void device_lost(void *arg, const char *why)
{
	pool_lose(arg, why);
}

static void unmap(struct pool *pool)
{
	uint8_t *base = pool->base;

	if (pool->device)
		pool_device_unwatch(pool->device);
	pool->base = NULL;
	if (base && base != MAP_FAILED) {
		pool_ranges_update(); /* first: the addresses may be another mapping's at once */
		if (!pool->device)
			munmap(base, pool->bytes);
	}
	if (pool->device)
		pool_device_close(pool->device);
	pool->device = NULL;
	if (pool->fd >= 0)
		close(pool->fd);
	pool->fd = -1;
}

/* -- life */

static int check(const struct dp_pool_config *config, bool hidden, char err[DP_ERR_MAX])
{
	bool sized = config->bytes || config->kind == DP_POOL_EMULATED;

	if (!config->name[0] || strlen(config->name) > DP_NAME_MAX) {
		snprintf(err, DP_ERR_MAX, "a pool's name has 1 to %d bytes", DP_NAME_MAX);
		return -EINVAL;
	}
	if (!hidden && pool_find(config->name)) {
		snprintf(err, DP_ERR_MAX, "pool %.100s exists already", config->name);
		return -EEXIST;
	}
	if (sized && (config->bytes < BYTES_MIN || config->bytes > BYTES_MAX || config->bytes % POOL_GRANULE)) {
		snprintf(err, DP_ERR_MAX, "pool %.100s: its size is no multiple of %u of at least %u", config->name,
			 POOL_GRANULE, BYTES_MIN);
		return -EINVAL;
	}
	if (config->kind == DP_POOL_P2PMEM && !config->path) {
		snprintf(err, DP_ERR_MAX, "pool %.100s: a p2pmem pool needs the path of its provider's p2pmem/allocate",
			 config->name);
		return -EINVAL;
	}
	return 0;
}

static int alloc_tables(struct pool *pool)
{
	pool->granules = (uint32_t)(pool->bytes / POOL_GRANULE) - 1;
	pool->max_bufs = pool->granules < BUFS_MAX ? pool->granules : BUFS_MAX;
	pool->tags = calloc(pool->granules, sizeof(*pool->tags));
	pool->bufs = calloc(pool->max_bufs, sizeof(*pool->bufs)); /* pages that are never used are never there */
	if (!pool->tags || !pool->bufs || space_init(&pool->space, pool->granules) < 0)
		return -ENOMEM;
	/* A device's memory holds what others left there; a fresh memfd is zeroes. */
	if (pool->kind != DP_POOL_EMULATED)
		for (uint32_t i = 0; i < pool->granules; i++)
			pool->tags[i] = TAG_MIXED;
	return 0;
}

static void free_tables(struct pool *pool)
{
	space_fini(&pool->space);
	free(pool->tags);
	free(pool->bufs);
	pool->tags = NULL;
	pool->bufs = pool->free_bufs = NULL;
	pool->fresh = 0;
}

/* Any value that memory which is gone, or was set back, is not likely to show. */
static void set_canary(struct pool *pool)
{
	do {
		if (getrandom(&pool->nonce, sizeof(pool->nonce), 0) != (ssize_t)sizeof(pool->nonce))
			pool->nonce = (uint64_t)(uintptr_t)pool->base ^ 0x9E3779B97F4A7C15u;
	} while (pool->nonce == 0 || pool->nonce == UINT64_MAX);
	*(volatile uint64_t *)pool->base = pool->nonce;
}

static void begin(struct pool *pool, const struct dp_pool_config *config, bool hidden)
{
	pool->renamed = strcmp(pool->name, config->name) != 0;
	if (pool->renamed)
		snprintf(pool->name, sizeof(pool->name), "%s", config->name);
	pool->kind = config->kind;
	pool->wipe_always = config->wipe_always;
	pool->hidden = hidden;
	pool->born = ++births;
	pool->told = pool->calibrating = false;
	pool->in_use = pool->waiting = 0;
	pool->epoch++; /* what queues remember of the slot's pool before is of no account */
	if (pool->epoch == 0)
		pool->epoch = 1;
	pool->asked_now = pool->asked_before = 0;
	pool->granted = 0;
	atomic_store(&pool->loss, POOL_THERE);
	atomic_store(&pool->why, "");
	atomic_store(&pool->fallbacks, 0);
	atomic_store(&pool->wiped_bytes, 0);
	atomic_store(&pool->waits, 0);
#ifdef DP_TEST_HOOKS
	if (getenv("NVMET_P2P_TEST_NO_WIPE"))
		pool_test_no_wipe = true;
#endif
}

struct pool *pool_open(const struct dp_pool_config *config, bool hidden, int *rc, char err[DP_ERR_MAX])
{
	struct pool *pool;

	err[0] = 0;
	init_slots();
	*rc = check(config, hidden, err);
	if (*rc < 0)
		return NULL;
	pool = slot_for(config->name);
	if (!pool) {
		*rc = -ENOSPC;
		snprintf(err, DP_ERR_MAX, "there are %u pools already", POOLS_MAX);
		return NULL;
	}
	*rc = pool_catch_sigbus();
	if (*rc < 0)
		return NULL;
	*rc = map(pool, config, err);
	if (*rc < 0) {
		unmap(pool);
		return NULL;
	}
	madvise(pool->base, pool->bytes, MADV_DONTDUMP);
	begin(pool, config, hidden);
	pool_ranges_update(); /* before the first touch: it may be gone already */
	*rc = alloc_tables(pool);
	if (*rc < 0) {
		snprintf(err, DP_ERR_MAX, "pool %.100s: no memory", config->name);
		free_tables(pool);
		unmap(pool);
		return NULL;
	}
	set_canary(pool);
	if (pool->device && !pool_check(pool)) {
		*rc = -EIO;
		snprintf(err, DP_ERR_MAX, "pool %.32s: its memory does not hold what is written to it", config->name);
		free_tables(pool);
		unmap(pool);
		atomic_store(&pool->loss, POOL_THERE);
		return NULL;
	}
	pthread_mutex_lock(&pool->lock);
	atomic_store(&pool->state, POOL_LIVE);
	pthread_mutex_unlock(&pool->lock);
	if (pool->device)
		pool_device_watch(pool->device, device_lost, pool);
	return pool;
}

void pool_close(struct pool *pool, void (*idle)(void *arg), void *arg)
{
	bool now;

	pthread_mutex_lock(&pool->lock);
	atomic_store(&pool->state, POOL_CLOSING);
	now = pool->in_use == 0;
	if (!now) {
		pool->idle = idle;
		pool->idle_arg = arg;
	}
	pthread_mutex_unlock(&pool->lock);
	pool_settle(pool);
	if (now)
		idle(arg);
}

void pool_destroy(struct pool *pool)
{
	assert(atomic_load(&pool->state) == POOL_CLOSING && pool->in_use == 0 && TAILQ_EMPTY(&pool->waiters));
	unmap(pool);
	free_tables(pool);
	atomic_store(&pool->loss, POOL_THERE);
	pthread_mutex_lock(&pool->lock);
	atomic_store(&pool->state, POOL_FREE);
	pthread_mutex_unlock(&pool->lock);
}

/* -- owners */

struct owner {
	char *host;
	uint32_t number, users;
};

static struct owner *owners;
static size_t n_owners, max_owners;
static uint32_t last_number;

static uint32_t new_number(void)
{
	for (bool taken = true; taken;) {
		last_number++;
		taken = last_number == POOL_OWNER_NONE || last_number == TAG_MIXED;
		for (size_t i = 0; i < n_owners; i++)
			taken |= owners[i].number == last_number;
	}
	return last_number;
}

/* A number comes again only after 2^32 others: what granules remember of a host that has gone is nobody else's. */
uint32_t pool_owner_get(const char *hostnqn)
{
	for (size_t i = 0; i < n_owners; i++)
		if (strcmp(owners[i].host, hostnqn) == 0) {
			owners[i].users++;
			return owners[i].number;
		}
	if (n_owners == max_owners) {
		max_owners = max_owners ? 2 * max_owners : 64;
		owners = realloc(owners, max_owners * sizeof(*owners));
		if (!owners)
			abort();
	}
	owners[n_owners] = (struct owner){ strdup(hostnqn), new_number(), 1 };
	if (!owners[n_owners].host)
		abort();
	return owners[n_owners++].number;
}

void pool_owner_put(uint32_t owner)
{
	for (size_t i = 0; i < n_owners; i++)
		if (owners[i].number == owner && --owners[i].users == 0) {
			free(owners[i].host);
			owners[i] = owners[--n_owners];
			break;
		}
	if (n_owners == 0) {
		free(owners);
		owners = NULL;
		max_owners = 0;
	}
}

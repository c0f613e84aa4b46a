/* SPDX-License-Identifier: BSD-3-Clause
 *
 * pool.c: pools, their buffers, who gets one and who waits. Loss is in pool_loss.c, opening and closing in pool_open.c.
 */
#include "pool.h"

#include <assert.h>
#include <errno.h>

#include "common.h"
#include "pool_registry.h"

#define EPOCH_TURNS 4u
#define LOOK_QUEUES 16   /* so many queues beyond their share are passed over to find one within, */
#define LOOK_WAITERS 256 /* and so many of their waiters: the lock is held */

#ifdef DP_TEST_HOOKS
bool pool_test_no_wipe;
#else
#define pool_test_no_wipe false
#endif

static uint32_t granules_of(uint32_t bytes)
{
	return (uint32_t)(((uint64_t)bytes + POOL_GRANULE - 1) / POOL_GRANULE);
}

unsigned pool_index(const struct pool *pool)
{
	return pool->index;
}

const char *pool_name(const struct pool *pool)
{
	return pool->name;
}

bool pool_possible(const struct pool *pool, uint32_t bytes)
{
	return atomic_load_explicit(&pool->state, memory_order_acquire) == POOL_LIVE && !pool_is_lost(pool) &&
	       granules_of(bytes) <= pool->granules;
}

void pool_count_fallback(struct pool *pool)
{
	atomic_fetch_add_explicit(&pool->fallbacks, 1, memory_order_relaxed);
}

/* -- memory that is not cached: as wide as can be, for each access is a transaction on the bus */

typedef uint64_t wide __attribute__((vector_size(16), aligned(1), may_alias));

void pool_copy(void *to, const void *from, size_t length)
{
	volatile wide *t = to;
	const volatile wide *f = from;

	assert(length % sizeof(wide) == 0);
	for (size_t i = 0; i < length / sizeof(wide); i++)
		t[i] = f[i];
}

void pool_zero(void *to, size_t length)
{
	volatile wide *t = to;

	assert(length % sizeof(wide) == 0);
	for (size_t i = 0; i < length / sizeof(wide); i++)
		t[i] = (wide){ 0 };
}

/* -- fair shares, under the lock
 *
 * Every queue that has asked in this epoch or the one before has an equal share of the pool. It may always have its share;
 * beyond that, only what leaves one more share free, so that whoever comes next finds room at once.
 */

static void note_asked(struct pool *pool, struct pool_user *user)
{
	if (!user || user->of[pool->index].epoch == pool->epoch)
		return;
	user->of[pool->index].epoch = pool->epoch;
	pool->asked_now++;
}

static void note_granted(struct pool *pool, uint32_t n)
{
	pool->granted += n;
	if (pool->granted < (uint64_t)pool->granules * EPOCH_TURNS)
		return;
	pool->granted = 0;
	if (++pool->epoch == 0)
		pool->epoch = 1; /* 0: a queue that has never asked */
	pool->asked_before = pool->asked_now;
	pool->asked_now = 0;
}

static bool is_fair(const struct pool *pool, const struct pool_user *user, uint32_t n)
{
	uint32_t active = pool->asked_now > pool->asked_before ? pool->asked_now : pool->asked_before;
	uint32_t share = pool->granules / (active ? active : 1), held;

	if (!user)
		return true;
	held = user->of[pool->index].granules;
	if (held == 0 || (uint64_t)held + n <= share)
		return true;
	return (uint64_t)n + share <= pool->space.free;
}

/* -- buffers */

static struct pool_buf *take(struct pool *pool, const struct pool_want *want)
{
	struct space_run runs[POOL_PIECES_MAX];
	struct pool_buf *buf = pool->free_bufs;
	uint32_t n = granules_of(want->bytes), left = want->bytes;

	if (!buf && pool->fresh == pool->max_bufs)
		return NULL;
	uint32_t pieces = space_take(&pool->space, n, runs, POOL_PIECES_MAX);

	if (!pieces)
		return NULL;
	if (buf)
		pool->free_bufs = buf->next;
	else
		buf = &pool->bufs[pool->fresh++];
	buf->pool = pool;
	buf->bytes = want->bytes;
	buf->n = pieces;
	buf->granules = n;
	buf->owner = want->owner;
	buf->user = want->user;
	buf->next = NULL;
	for (uint32_t i = 0; i < pieces; i++) {
		uint32_t bytes = min_u32(left, runs[i].n * POOL_GRANULE);

		buf->iov[i].iov_base = pool->base + (runs[i].at + 1ull) * POOL_GRANULE;
		buf->iov[i].iov_len = bytes;
		left -= bytes;
	}
	if (want->user)
		want->user->of[pool->index].granules += n;
	pool->in_use++;
	note_granted(pool, n);
	return buf;
}

static uint32_t first_of(const struct pool *pool, const struct iovec *piece)
{
	return (uint32_t)((size_t)((uint8_t *)piece->iov_base - pool->base) / POOL_GRANULE) - 1;
}

/* The granules are ours alone: their tags need no lock. */
static void prepare(struct pool_buf *buf, bool wipe)
{
	struct pool *pool = buf->pool;
	uint64_t wiped = 0;

	wipe = (wipe || pool->wipe_always) && !pool_test_no_wipe;
	for (uint32_t i = 0; i < buf->n; i++) {
		uint32_t first = first_of(pool, &buf->iov[i]), n = granules_of((uint32_t)buf->iov[i].iov_len);

		for (uint32_t g = first; g < first + n; g++) {
			uint32_t *tag = &pool->tags[g];

			if (*tag == buf->owner && buf->owner != POOL_OWNER_NONE)
				continue;
			if (wipe && *tag != TAG_CLEAN) {
				pool_zero(pool->base + (g + 1ull) * POOL_GRANULE, POOL_GRANULE);
				wiped += POOL_GRANULE;
				*tag = TAG_CLEAN;
			}
			*tag = *tag == TAG_CLEAN && buf->owner != POOL_OWNER_NONE ? buf->owner : TAG_MIXED;
		}
	}
	if (wiped)
		atomic_fetch_add_explicit(&pool->wiped_bytes, wiped, memory_order_relaxed);
}

void pool_filled(struct pool_buf *buf)
{
	struct pool *pool = buf->pool;

	if (buf->owner == POOL_OWNER_NONE)
		return;
	for (uint32_t i = 0; i < buf->n; i++) {
		uint32_t first = first_of(pool, &buf->iov[i]), whole = (uint32_t)buf->iov[i].iov_len / POOL_GRANULE;

		for (uint32_t g = first; g < first + whole; g++)
			pool->tags[g] = buf->owner;
	}
}

static bool usable(struct pool *pool)
{
	return atomic_load_explicit(&pool->state, memory_order_relaxed) == POOL_LIVE && !pool_is_lost(pool);
}

struct pool_buf *pool_get(struct pool *pool, const struct pool_want *want)
{
	struct pool_buf *buf = NULL;

	assert(want->bytes > 0);
	pthread_mutex_lock(&pool->lock);
	if (DP_LIKELY(usable(pool))) {
		note_asked(pool, want->user);
		if (TAILQ_EMPTY(&pool->waiters) && is_fair(pool, want->user, granules_of(want->bytes)))
			buf = take(pool, want);
	}
	pthread_mutex_unlock(&pool->lock);
	if (!buf)
		return NULL;
	prepare(buf, want->wipe);
	if (DP_LIKELY(!pool_is_lost(pool)))
		return buf;
	pool_put(buf); /* while it was wiped */
	return NULL;
}

/* -- waiting */

static void granted(struct reactor *r, struct rmsg *msg)
{
	struct pool_waiter *waiter = dp_container_of(msg, struct pool_waiter, msg);
	struct pool_buf *buf = waiter->buf;

	waiter->buf = NULL;
	if (buf) {
		prepare(buf, waiter->want.wipe);
		if (pool_is_lost(buf->pool)) {
			pool_put(buf);
			buf = NULL;
		}
	}
	waiter->granted(r, waiter, buf);
}

static bool among(const struct pool_user *user, const struct pool_user *const *users, unsigned n)
{
	while (n)
		if (users[--n] == user)
			return true;
	return false;
}

/* The first whose queue has not had its share. Who is beyond it holds something: its turn comes when that is put, at the
 * latest; so nobody of the same queue goes before it, or a large one would wait for as long as small ones come. */
static struct pool_waiter *next_waiter(const struct pool *pool)
{
	const struct pool_user *beyond[LOOK_QUEUES];
	struct pool_waiter *waiter;
	unsigned n = 0, looked = 0;

	TAILQ_FOREACH(waiter, &pool->waiters, link) {
		const struct pool_user *user = waiter->want.user;

		if (++looked > LOOK_WAITERS)
			break;
		if (among(user, beyond, n))
			continue;
		if (is_fair(pool, user, granules_of(waiter->want.bytes)))
			return waiter;
		beyond[n++] = user;
		if (n == LOOK_QUEUES)
			break;
	}
	return NULL;
}

/* Takes waiters off the queue that can go on; they are told, in order, by tell(), without the lock. */
static void pick(struct pool *pool, struct pool_waiters *going)
{
	bool any = usable(pool);

	while (!TAILQ_EMPTY(&pool->waiters)) {
		struct pool_waiter *waiter = any ? next_waiter(pool) : TAILQ_FIRST(&pool->waiters);

		if (any && waiter)
			waiter->buf = take(pool, &waiter->want);
		if (any && (!waiter || !waiter->buf))
			return;
		TAILQ_REMOVE(&pool->waiters, waiter, link);
		waiter->queued = false;
		pool->waiting--;
		TAILQ_INSERT_TAIL(going, waiter, link);
	}
}

static void tell(struct pool_waiters *going)
{
	struct pool_waiter *waiter;

	while ((waiter = TAILQ_FIRST(going))) {
		TAILQ_REMOVE(going, waiter, link);
		reactor_send(waiter->reactor, &waiter->msg); /* from here on it is its reactor's */
	}
}

void pool_settle(struct pool *pool)
{
	struct pool_waiters going = TAILQ_HEAD_INITIALIZER(going);

	pthread_mutex_lock(&pool->lock);
	pick(pool, &going);
	pthread_mutex_unlock(&pool->lock);
	tell(&going);
}

void pool_wait(struct pool *pool, struct pool_waiter *waiter, struct reactor *r)
{
	struct pool_waiters going = TAILQ_HEAD_INITIALIZER(going);

	waiter->pool = pool;
	waiter->reactor = r;
	waiter->buf = NULL;
	waiter->msg.fn = granted;
	atomic_fetch_add_explicit(&pool->waits, 1, memory_order_relaxed);
	pthread_mutex_lock(&pool->lock);
	if (granules_of(waiter->want.bytes) > pool->granules) {
		TAILQ_INSERT_TAIL(&going, waiter, link); /* it would wait for ever */
	} else {
		note_asked(pool, waiter->want.user);
		waiter->queued = true;
		pool->waiting++;
		TAILQ_INSERT_TAIL(&pool->waiters, waiter, link);
		pick(pool, &going);
	}
	pthread_mutex_unlock(&pool->lock);
	tell(&going);
}

bool pool_unwait(struct pool_waiter *waiter)
{
	struct pool_waiters going = TAILQ_HEAD_INITIALIZER(going);
	struct pool *pool = waiter->pool;
	bool queued;

	pthread_mutex_lock(&pool->lock);
	queued = waiter->queued;
	if (queued) {
		TAILQ_REMOVE(&pool->waiters, waiter, link);
		waiter->queued = false;
		pool->waiting--;
		pick(pool, &going); /* it may have stood in the way of smaller ones */
	}
	pthread_mutex_unlock(&pool->lock);
	tell(&going);
	return queued;
}

void pool_put(struct pool_buf *buf)
{
	struct pool_waiters going = TAILQ_HEAD_INITIALIZER(going);
	struct pool *pool = buf->pool;
	void (*idle)(void *arg) = NULL;
	void *arg = NULL;

	pthread_mutex_lock(&pool->lock);
	for (uint32_t i = 0; i < buf->n; i++)
		space_give(&pool->space, first_of(pool, &buf->iov[i]), granules_of((uint32_t)buf->iov[i].iov_len));
	if (buf->user)
		buf->user->of[pool->index].granules -= buf->granules;
	buf->next = pool->free_bufs;
	pool->free_bufs = buf;
	if (--pool->in_use == 0 && pool->idle) {
		idle = pool->idle;
		arg = pool->idle_arg;
		pool->idle = NULL;
	}
	if (DP_UNLIKELY(!TAILQ_EMPTY(&pool->waiters)))
		pick(pool, &going);
	pthread_mutex_unlock(&pool->lock);
	tell(&going);
	if (DP_UNLIKELY(idle != NULL))
		idle(arg); /* the pool may be gone when it returns */
}

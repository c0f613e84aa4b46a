/* SPDX-License-Identifier: BSD-3-Clause
 *
 * pool_loss.c: which pool a byte belongs to, and what happens when its memory goes away.
 *
 * The kernel takes a provider's pages out of our mapping when its driver is unbound or the device is pulled out. A CPU that
 * touches one then gets SIGBUS, a system call -EFAULT; a device that was reset answers with other bytes, which the canary
 * shows. In each case the whole mapping is replaced, in place, by zeroes of our own, so that whatever is in progress comes
 * to an end; and pool_check tells everybody that it has come to nothing.
 */
#include <errno.h>
#include <sched.h>
#include <signal.h>
#include <stdlib.h>
#include <sys/eventfd.h>
#include <sys/mman.h>
#include <unistd.h>

#include "common.h"
#include "pool_priv.h"
#include "pool_registry.h"

#define SAME_FAULT_MAX 16u

/*
 * The ranges of all pools, sorted. Two tables: the control thread fills the one that is not in use and then counts the
 * generation up, which makes it the one in use. A reader whose generation is not the current one any more when it has
 * finished may have seen a table that was being filled, and looks again. It waits for nobody, so a signal handler can do it
 * wherever the signal came.
 */
struct range {
	_Atomic uintptr_t base, end;
	_Atomic unsigned index;
};

static struct {
	struct range ranges[POOLS_MAX];
	_Atomic unsigned n;
} tables[2];
static _Atomic unsigned generation;

static int by_base(const void *a, const void *b)
{
	const struct pool *x = *(struct pool *const *)a, *y = *(struct pool *const *)b;

	return x->base < y->base ? -1 : x->base > y->base;
}

void pool_ranges_update(void)
{
	unsigned next = atomic_load(&generation) + 1, n = 0;
	struct pool *sorted[POOLS_MAX];

	for (unsigned i = 1; i <= POOLS_MAX; i++)
		if (pool_at(i)->base)
			sorted[n++] = pool_at(i);
	qsort(sorted, n, sizeof(sorted[0]), by_base);
	atomic_thread_fence(memory_order_release);
	for (unsigned i = 0; i < n; i++) {
		struct range *range = &tables[next & 1].ranges[i];
		uintptr_t base = (uintptr_t)sorted[i]->base;

		atomic_store_explicit(&range->base, base, memory_order_relaxed);
		atomic_store_explicit(&range->end, base + sorted[i]->bytes, memory_order_relaxed);
		atomic_store_explicit(&range->index, sorted[i]->index, memory_order_relaxed);
	}
	atomic_store_explicit(&tables[next & 1].n, n, memory_order_relaxed);
	atomic_store_explicit(&generation, next, memory_order_release);
}

/* Index of the pool, 0: none. */
static unsigned search(unsigned table, uintptr_t at, unsigned *comparisons)
{
	unsigned low = 0, high = atomic_load_explicit(&tables[table].n, memory_order_relaxed);

	while (low < high) { /* the last range that begins at or before the byte is below high */
		unsigned mid = (low + high) / 2;

		++*comparisons;
		if (atomic_load_explicit(&tables[table].ranges[mid].base, memory_order_relaxed) <= at)
			low = mid + 1;
		else
			high = mid;
	}
	if (low == 0)
		return 0;
	++*comparisons;
	if (at >= atomic_load_explicit(&tables[table].ranges[low - 1].end, memory_order_relaxed))
		return 0;
	return atomic_load_explicit(&tables[table].ranges[low - 1].index, memory_order_relaxed);
}

struct pool *pool_of_counted(const void *addr, unsigned *comparisons)
{
	unsigned now, index;

	do {
		now = atomic_load_explicit(&generation, memory_order_acquire);
		*comparisons = 0;
		index = search(now & 1, (uintptr_t)addr, comparisons);
		atomic_thread_fence(memory_order_acquire);
	} while (DP_UNLIKELY(atomic_load_explicit(&generation, memory_order_relaxed) != now));
	return index ? pool_at(index) : NULL;
}

struct pool *pool_of(const void *addr)
{
	unsigned comparisons;

	return pool_of_counted(addr, &comparisons);
}

/* -- loss */

static _Atomic int watch_fd = -1;

static bool put_zeroes(struct pool *pool)
{
	return mmap(pool->base, pool->bytes, PROT_READ | PROT_WRITE, MAP_PRIVATE | MAP_ANONYMOUS | MAP_FIXED | MAP_NORESERVE,
		    -1, 0) != MAP_FAILED;
}

/* Async-signal-safe. False: the memory cannot be replaced. True does not mean that it has been already. */
static bool replace(struct pool *pool, const char *why)
{
	unsigned there = POOL_THERE;
	uint64_t one = 1;
	ssize_t written;
	int fd;

	if (!atomic_compare_exchange_strong(&pool->loss, &there, POOL_GOING))
		return there == POOL_GOING || put_zeroes(pool); /* another thread is at it, or even the zeroes went bad */
	atomic_store(&pool->why, why);
	if (!put_zeroes(pool))
		return false;
	atomic_store(&pool->loss, POOL_LOST);
	fd = atomic_load(&watch_fd);
	if (fd >= 0) {
		written = write(fd, &one, sizeof(one));
		(void)written;
	}
	return true;
}

void pool_lose(struct pool *pool, const char *why)
{
	if (atomic_load(&pool->loss) != POOL_LOST && !replace(pool, why))
		abort(); /* a mapping of ours is replaced by a simpler one: it cannot fail */
	while (atomic_load(&pool->loss) == POOL_GOING)
		sched_yield();
	pool_settle(pool);
}

bool pool_is_lost(const struct pool *pool)
{
	return atomic_load_explicit(&pool->loss, memory_order_acquire) != POOL_THERE;
}

bool pool_check(struct pool *pool)
{
	uint64_t found;

	if (pool->device) /* may be mapped write combining: what the CPU has gathered goes first */
		atomic_thread_fence(memory_order_seq_cst);
	/* One load past every cache, which also waits for the CPU's own writes before it. */
	found = *(volatile uint64_t *)pool->base;

	if (DP_LIKELY(found == pool->nonce))
		return !pool_is_lost(pool);
	pool_lose(pool, found == UINT64_MAX ? "its memory reads as all ones: the device is gone" :
					      "its memory has changed: the device was reset");
	return false;
}

/* -- the signal */

static struct sigaction previous;

/* The same address many times in a row: whoever else wanted to see to it could not. */
static bool again(const void *addr)
{
	static _Thread_local const void *last;
	static _Thread_local unsigned times;

	times = addr == last ? times + 1 : 0;
	last = addr;
	return times >= SAME_FAULT_MAX;
}

static void on_sigbus(int sig, siginfo_t *info, void *context)
{
	int error = errno;
	struct pool *pool = info->si_code > 0 ? pool_of(info->si_addr) : NULL;

	if (pool && replace(pool, "SIGBUS: the kernel has taken its pages away")) {
		errno = error;
		return; /* the access is tried again */
	}
	if (info->si_code > 0 && previous.sa_flags & SA_SIGINFO && previous.sa_sigaction && !again(info->si_addr)) {
		previous.sa_sigaction(sig, info, context); /* SPDK's, for registers of drives that are gone */
		errno = error;
		return;
	}
	sigaction(SIGBUS, &previous, NULL); /* not ours: the access is tried again and gets what it would have got */
	if (info->si_code <= 0)
		raise(sig); /* somebody sent it */
	errno = error;
}

int pool_catch_sigbus(void)
{
	struct sigaction action = { .sa_sigaction = on_sigbus, .sa_flags = SA_SIGINFO | SA_RESTART }, now;

	if (sigaction(SIGBUS, NULL, &now) < 0)
		return -errno;
	if (now.sa_flags & SA_SIGINFO && now.sa_sigaction == on_sigbus)
		return 0;
	previous = now;
	sigfillset(&action.sa_mask);
	return sigaction(SIGBUS, &action, NULL) < 0 ? -errno : 0;
}

/* -- those who have to be told */

static pthread_t watcher;
static void (*watch_lost)(void);
static atomic_bool watch_stopping;

static void *watch(void *arg)
{
	uint64_t count;

	while (read(atomic_load(&watch_fd), &count, sizeof(count)) == (ssize_t)sizeof(count) || errno == EINTR) {
		if (atomic_load(&watch_stopping))
			break;
		for (unsigned i = 1; i <= POOLS_MAX; i++)
			if (pool_is_lost(pool_at(i)))
				pool_settle(pool_at(i));
		watch_lost();
	}
	return NULL;
}

int pool_watch_start(void (*lost)(void))
{
	int fd = eventfd(0, EFD_CLOEXEC), rc;

	if (fd < 0)
		return -errno;
	atomic_store(&watch_stopping, false);
	watch_lost = lost;
	atomic_store(&watch_fd, fd);
	rc = -pthread_create(&watcher, NULL, watch, NULL);
	if (rc < 0) {
		atomic_store(&watch_fd, -1);
		close(fd);
		return rc;
	}
	pthread_setname_np(watcher, "pool watch");
	return 0;
}

void pool_watch_stop(void)
{
	uint64_t one = 1;
	int fd = atomic_load(&watch_fd);
	ssize_t written;

	if (fd < 0)
		return;
	atomic_store(&watch_stopping, true);
	written = write(fd, &one, sizeof(one));
	(void)written;
	pthread_join(watcher, NULL);
	atomic_store(&watch_fd, -1);
	close(fd);
}

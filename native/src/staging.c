/* SPDX-License-Identifier: BSD-3-Clause */
#include "staging.h"

#include <assert.h>
#include <errno.h>
#include <stdlib.h>
#include <string.h>
#include <sys/mman.h>

#define STAGING_IS_FREE 0x80u
#define STAGING_INSIDE 0xFFu
#define STAGING_ALIGN (2u << 20)

static unsigned order_of(uint32_t bytes)
{
	uint32_t units = (bytes + STAGING_UNIT - 1) / STAGING_UNIT;

	return units <= 1 ? 0 : 32u - (unsigned)__builtin_clz(units - 1);
}

static void push(struct staging *pool, size_t unit, unsigned order)
{
	struct staging_free *block = (struct staging_free *)(pool->base + unit * STAGING_UNIT);
	struct staging_free *head = &pool->heads[order];

	block->next = head->next;
	block->prev = head;
	head->next->prev = block;
	head->next = block;
	pool->order[unit] = (uint8_t)(order | STAGING_IS_FREE);
}

static void unlink_block(struct staging_free *block)
{
	block->prev->next = block->next;
	block->next->prev = block->prev;
}

/* As huge pages would lie: where drives in user space reach it, it is registered in pieces of that size. */
static uint8_t *map_aligned(size_t bytes)
{
	uint8_t *at = mmap(NULL, bytes + STAGING_ALIGN, PROT_READ | PROT_WRITE, MAP_PRIVATE | MAP_ANONYMOUS | MAP_NORESERVE, -1, 0);
	size_t before;

	if (at == MAP_FAILED)
		return MAP_FAILED;
	before = -(uintptr_t)at & (STAGING_ALIGN - 1);
	if (before)
		munmap(at, before);
	if (before != STAGING_ALIGN)
		munmap(at + before + bytes, STAGING_ALIGN - before);
	return at + before;
}

int staging_init(struct staging *pool, size_t bytes, bool hugepages)
{
	size_t unit = 0;

	memset(pool, 0, sizeof(*pool));
	TAILQ_INIT(&pool->waiters);
	bytes = (bytes + STAGING_ALIGN - 1) / STAGING_ALIGN * STAGING_ALIGN;
	pool->base = MAP_FAILED;
	if (hugepages) {
		pool->base = mmap(NULL, bytes, PROT_READ | PROT_WRITE, MAP_PRIVATE | MAP_ANONYMOUS | MAP_HUGETLB, -1, 0);
		pool->huge = pool->base != MAP_FAILED;
	}
	if (pool->base == MAP_FAILED)
		pool->base = map_aligned(bytes);
	if (pool->base == MAP_FAILED)
		return -errno;
	pool->units = bytes / STAGING_UNIT;
	pool->order = malloc(pool->units);
	if (!pool->order) {
		munmap(pool->base, bytes);
		return -ENOMEM;
	}
	memset(pool->order, STAGING_INSIDE, pool->units);
	for (unsigned i = 0; i < STAGING_ORDERS; i++)
		pool->heads[i].next = pool->heads[i].prev = &pool->heads[i];
	for (pool->max_order = STAGING_ORDERS - 1; (1ul << pool->max_order) > pool->units;)
		pool->max_order--;
	while (unit < pool->units) {
		unsigned order = pool->max_order;

		while ((1ul << order) > pool->units - unit || unit & ((1ul << order) - 1))
			order--;
		push(pool, unit, order);
		unit += 1ul << order;
	}
	pool->free_bytes = bytes;
	return 0;
}

void staging_fini(struct staging *pool)
{
	if (!pool->order)
		return;
	assert(TAILQ_EMPTY(&pool->waiters));
	munmap(pool->base, pool->units * STAGING_UNIT);
	free(pool->order);
	pool->order = NULL;
}

bool staging_possible(const struct staging *pool, uint32_t bytes)
{
	return order_of(bytes) <= pool->max_order;
}

size_t staging_size(uint32_t bytes)
{
	return (size_t)STAGING_UNIT << order_of(bytes);
}

static void *take(struct staging *pool, uint32_t bytes)
{
	unsigned want = order_of(bytes), order = want;
	struct staging_free *block;
	size_t unit;

	while (order <= pool->max_order && pool->heads[order].next == &pool->heads[order])
		order++;
	if (order > pool->max_order)
		return NULL;
	block = pool->heads[order].next;
	unlink_block(block);
	unit = (size_t)((uint8_t *)block - pool->base) / STAGING_UNIT;
	while (order > want) {
		order--;
		push(pool, unit + (1ul << order), order);
	}
	pool->order[unit] = (uint8_t)order;
	pool->free_bytes -= (size_t)STAGING_UNIT << order;
	if (pool->poison)
		memset(block, 0xA5, (size_t)STAGING_UNIT << order);
	return block;
}

void *staging_alloc(struct staging *pool, uint32_t bytes)
{
	if (!TAILQ_EMPTY(&pool->waiters))
		return NULL;
	return take(pool, bytes);
}

void staging_wait(struct staging *pool, struct staging_waiter *waiter)
{
	assert(!waiter->waiting && staging_possible(pool, waiter->bytes));
	waiter->waiting = true;
	pool->waits++;
	TAILQ_INSERT_TAIL(&pool->waiters, waiter, link);
}

static void grant(struct staging *pool)
{
	struct staging_waiter *waiter;

	if (pool->granting)
		return; /* the loop below goes on */
	pool->granting = true;
	while ((waiter = TAILQ_FIRST(&pool->waiters))) {
		void *buf = take(pool, waiter->bytes);

		if (!buf)
			break;
		TAILQ_REMOVE(&pool->waiters, waiter, link);
		waiter->waiting = false;
		waiter->granted(waiter, buf);
	}
	pool->granting = false;
}

void staging_unwait(struct staging *pool, struct staging_waiter *waiter)
{
	if (!waiter->waiting)
		return;
	waiter->waiting = false;
	TAILQ_REMOVE(&pool->waiters, waiter, link);
	grant(pool);
}

void staging_free(struct staging *pool, void *buf)
{
	size_t unit = (size_t)((uint8_t *)buf - pool->base) / STAGING_UNIT;
	unsigned order = pool->order[unit];

	assert((uint8_t *)buf >= pool->base && unit < pool->units && order <= pool->max_order);
	pool->free_bytes += (size_t)STAGING_UNIT << order;
	while (order < pool->max_order) {
		size_t buddy = unit ^ (1ul << order);

		if (buddy + (1ul << order) > pool->units || pool->order[buddy] != (order | STAGING_IS_FREE))
			break;
		unlink_block((struct staging_free *)(pool->base + buddy * STAGING_UNIT));
		pool->order[unit] = pool->order[buddy] = STAGING_INSIDE;
		unit &= ~(1ul << order);
		order++;
	}
	push(pool, unit, order);
	if (!TAILQ_EMPTY(&pool->waiters))
		grant(pool);
}

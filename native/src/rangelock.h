/* SPDX-License-Identifier: BSD-3-Clause
 *
 * rangelock.h: who may write which bytes of one bdev while fused pairs run on it, over all reactors. Writes hold their
 * range shared, a fused Compare and Write holds it exclusively; first come, first served where ranges meet.
 */
#pragma once

#include <pthread.h>
#include <stdbool.h>
#include <stdint.h>
#include <sys/queue.h>

#include "reactor.h"

struct range_hold {
	uint64_t start, end;
	bool exclusive, granted, waiting;
	struct reactor *r;
	struct rmsg msg; /* sent to r when a waiter is granted; msg.fn is the owner's */
	TAILQ_ENTRY(range_hold) link;
};

TAILQ_HEAD(range_holds, range_hold);

struct rangelock {
	pthread_mutex_t mutex;
	struct range_holds held, waiting;
	bool open; /* false: even a hold without conflict waits (writes without a lock are still in flight) */
};

void rangelock_init(struct rangelock *lock);
/* True: granted now. Else hold->msg comes to hold->r later. */
bool rangelock_acquire(struct rangelock *lock, struct range_hold *hold);
void rangelock_release(struct rangelock *lock, struct range_hold *hold);
/* False: it was granted meanwhile, its message is on its way. */
bool rangelock_cancel(struct rangelock *lock, struct range_hold *hold);
void rangelock_open(struct rangelock *lock);

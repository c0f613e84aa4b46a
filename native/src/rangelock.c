/* SPDX-License-Identifier: BSD-3-Clause */
#include "rangelock.h"

void rangelock_init(struct rangelock *lock)
{
	pthread_mutex_init(&lock->mutex, NULL);
	TAILQ_INIT(&lock->held);
	TAILQ_INIT(&lock->waiting);
	lock->open = false;
}

static bool conflict(const struct range_hold *a, const struct range_hold *b)
{
	return (a->exclusive || b->exclusive) && a->start < b->end && b->start < a->end;
}

static bool grantable(struct rangelock *lock, const struct range_hold *hold, const struct range_hold *until)
{
	struct range_hold *other;

	if (!lock->open)
		return false;
	TAILQ_FOREACH(other, &lock->held, link)
		if (conflict(hold, other))
			return false;
	for (other = TAILQ_FIRST(&lock->waiting); other && other != until; other = TAILQ_NEXT(other, link))
		if (conflict(hold, other))
			return false;
	return true;
}

bool rangelock_acquire(struct rangelock *lock, struct range_hold *hold)
{
	bool now;

	pthread_mutex_lock(&lock->mutex);
	now = grantable(lock, hold, NULL);
	hold->granted = now;
	hold->waiting = !now;
	if (now)
		TAILQ_INSERT_TAIL(&lock->held, hold, link);
	else
		TAILQ_INSERT_TAIL(&lock->waiting, hold, link);
	pthread_mutex_unlock(&lock->mutex);
	return now;
}

/* Under the mutex. */
static void grant_waiting(struct rangelock *lock)
{
	struct range_hold *hold = TAILQ_FIRST(&lock->waiting);

	while (hold) {
		struct range_hold *next = TAILQ_NEXT(hold, link);

		if (grantable(lock, hold, hold)) {
			TAILQ_REMOVE(&lock->waiting, hold, link);
			hold->waiting = false;
			hold->granted = true;
			TAILQ_INSERT_TAIL(&lock->held, hold, link);
			reactor_send(hold->r, &hold->msg);
		}
		hold = next;
	}
}

void rangelock_release(struct rangelock *lock, struct range_hold *hold)
{
	pthread_mutex_lock(&lock->mutex);
	TAILQ_REMOVE(&lock->held, hold, link);
	hold->granted = false;
	grant_waiting(lock);
	pthread_mutex_unlock(&lock->mutex);
}

bool rangelock_cancel(struct rangelock *lock, struct range_hold *hold)
{
	bool was;

	pthread_mutex_lock(&lock->mutex);
	was = hold->waiting;
	if (was) {
		TAILQ_REMOVE(&lock->waiting, hold, link);
		hold->waiting = false;
		grant_waiting(lock);
	}
	pthread_mutex_unlock(&lock->mutex);
	return was;
}

void rangelock_open(struct rangelock *lock)
{
	pthread_mutex_lock(&lock->mutex);
	lock->open = true;
	grant_waiting(lock);
	pthread_mutex_unlock(&lock->mutex);
}

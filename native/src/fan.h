/* SPDX-License-Identifier: BSD-3-Clause
 *
 * fan.h: a job for every reactor, and one call on the control thread when all have done their part.
 */
#pragma once

#include "reactor.h"

struct fan;

struct fan_part {
	struct rmsg msg;
	struct fan *fan;
	void *data; /* this reactor's, the job's to free */
};

struct fan {
	_Atomic unsigned left;
	void (*done)(void *arg);
	void *arg;
	struct fan_part parts[];
};

/* fn runs on each reactor and calls fan_ack(part), at once or later. NULL: no memory. */
struct fan *fan_new(void (*fn)(struct reactor *r, struct rmsg *msg), void (*done)(void *arg), void *arg);
void fan_send(struct fan *fan);
void fan_ack(struct fan_part *part);
void fan_free(struct fan *fan); /* one that was not sent */

/* SPDX-License-Identifier: BSD-3-Clause */
#include "fan.h"

#include <stdlib.h>

#include "engine_priv.h"

struct fan *fan_new(void (*fn)(struct reactor *r, struct rmsg *msg), void (*done)(void *arg), void *arg)
{
	unsigned n = engine_reactors();
	struct fan *fan = calloc(1, sizeof(*fan) + n * sizeof(fan->parts[0]));

	if (!fan)
		return NULL;
	atomic_init(&fan->left, n);
	fan->done = done;
	fan->arg = arg;
	for (unsigned i = 0; i < n; i++) {
		fan->parts[i].fan = fan;
		fan->parts[i].msg.fn = fn;
	}
	return fan;
}

void fan_send(struct fan *fan)
{
	/* The last reactor may finish the whole fan before this loop ends. */
	unsigned n = engine_reactors();

	for (unsigned i = 0; i < n; i++)
		reactor_send(engine_reactor(i), &fan->parts[i].msg);
}

static void all_done(void *arg)
{
	struct fan *fan = arg;

	fan->done(fan->arg);
	free(fan);
}

void fan_ack(struct fan_part *part)
{
	struct fan *fan = part->fan;

	if (atomic_fetch_sub(&fan->left, 1) == 1)
		engine_post(all_done, fan);
}

void fan_free(struct fan *fan)
{
	free(fan);
}

/* SPDX-License-Identifier: BSD-3-Clause
 *
 * offload.h: calls that block (ioctl, FICLONERANGE) off the reactors: a few worker threads, made when the first job comes.
 *
 * A job lies in the memory of whoever submits it and is his again in done(), which runs on his reactor. Nothing is
 * allocated, so there are as many jobs as there are commands, and no more workers than OFFLOAD_WORKERS.
 */
#pragma once

#include "reactor.h"

#define OFFLOAD_WORKERS 4u

struct offload_job {
	void (*work)(struct offload_job *job); /* on a worker; may block */
	void (*done)(struct reactor *r, struct offload_job *job); /* on the reactor that submitted it */
	struct reactor *r;
	struct rmsg msg;
	STAILQ_ENTRY(offload_job) link;
};

/* False: there is no worker and none can be made; nothing has happened. Else done() comes, unless it is cancelled. */
bool offload_submit(struct reactor *r, struct offload_job *job);
/* True: no worker had begun it, and done() does not come. False: it is at work or over; done() comes. */
bool offload_cancel(struct offload_job *job);
/* Waits until no job is queued or at work. Any thread but a worker. */
void offload_drain(void);
/* Ends the workers once all jobs are over. A later submit makes new ones. */
void offload_stop(void);

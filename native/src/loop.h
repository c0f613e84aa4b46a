/* SPDX-License-Identifier: BSD-3-Clause
 *
 * loop.h: the control thread's event loop: file descriptors, and work posted by other threads.
 */
#pragma once

#include <stdbool.h>
#include <stdint.h>

/* A descriptor that is watched. The owner keeps it in memory until loop_remove; events are EPOLLIN, EPOLLOUT ... */
struct loop_source {
	int fd;
	void (*ready)(struct loop_source *source, uint32_t events);
};

int loop_open(void);
void loop_close(void);
int loop_add(struct loop_source *source, uint32_t events);
int loop_change(struct loop_source *source, uint32_t events);
void loop_remove(struct loop_source *source); /* no event of it is delivered any more, even one already fetched */

/* Runs fn(arg) on the control thread, in the order of the calls. Any thread. */
void loop_post(void (*fn)(void *arg), void *arg);

/* Serves until loop_quit, which may be called from inside. */
void loop_run(void);
void loop_quit(void);
/* Serves what is ready now, waiting at most timeout_ms for something (-1: for ever). For tests and for loop_run. */
void loop_step(int timeout_ms);

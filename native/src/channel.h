/* SPDX-License-Identifier: BSD-3-Clause
 *
 * channel.h: the capsule channel: descriptors of I/O queues come in, capsules that the engine does not decide go out.
 *
 * Two ways to have one: an inherited socket (channel_open_fd), whose end is the end of the only control plane there can
 * be; or a listening socket (channel_listen), which takes one control plane after the other, I/O queues going on between.
 */
#pragma once

#include <stdbool.h>
#include <stdint.h>

#include "engine.h"
#include "rdma.h"

struct channel_options {
	const char *rpc_socket;  /* told in HELLO */
	int activity_fd;         /* memfd given with HELLO, or -1 */
	uint32_t activity_slots;
	/* A control plane said HELLO with RESET: forget the controllers, then call done(arg, 0). */
	void (*reset)(dp_done_fn done, void *arg);
	/* The control plane is gone. */
	void (*lost)(const char *why);
};

int channel_open_fd(int fd, const struct channel_options *options);
int channel_listen(const char *path, const struct channel_options *options, char err[DP_ERR_MAX]);
void channel_close(void);

/* What the engine tells: see dp_events. Without a control plane a capsule is answered so that the host tries again. */
void channel_queue_closed(struct dp_queue_key key, const char *reason);
void channel_upcall(struct dp_queue_key key, uint64_t token, const uint8_t sqe[64], const void *data, size_t len);
extern const struct dp_rdma_events channel_rdma_events;
void channel_bdev_changed(const char *name, bool present);
void channel_pool_lost(const char *name, const char *why);

/* SPDX-License-Identifier: BSD-3-Clause
 *
 * pool_registry.h: between pool.c, pool_loss.c and pool_open.c.
 */
#pragma once

#include "pool_priv.h"

/* Tags of granules beside the owners' numbers. */
#define TAG_CLEAN POOL_OWNER_NONE
#define TAG_MIXED 0xFFFFFFFFu /* of several owners, or nobody knows whose */

void pool_ranges_update(void); /* control thread: after a pool got or lost its memory */
int pool_catch_sigbus(void);   /* control thread; 0 or -errno */
void pool_settle(struct pool *pool); /* lost or closing: those who wait get NULL. Any thread */

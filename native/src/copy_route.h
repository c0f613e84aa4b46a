/* SPDX-License-Identifier: BSD-3-Clause
 *
 * copy_route.h: the routes of Copy on which no data passes through this process (DESIGN section 5): the drive's own Copy
 * and shared extents (reflink). They take source ranges as a whole or not at all; copy.c moves the others, so a route
 * that fails costs time and nothing else, and the lowest range that was not copied is what copy.c finds.
 */
#pragma once

#include "io.h"

/* After all entries have been checked, nothing overlaps and nothing moves yet. True: at work (IO_WAIT), rq->io.done comes
 * with 0 when the routes have done what they can. False: there is nothing for them. */
bool copy_route_start(struct request *rq, uint32_t ranges);

/* Has a route copied that range? */
static inline bool copy_routed(const struct request *rq, uint32_t index)
{
	return rq->routed[index / 64] >> index % 64 & 1;
}

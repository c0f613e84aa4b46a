/* SPDX-License-Identifier: BSD-3-Clause
 *
 * io_pass.h: Compare and Verify done by the drive itself (nvme_pass.h). Verify then moves no data at all.
 */
#pragma once

#include "io.h"

/* True: at work (IO_WAIT), rq->io.done comes with 0. rq->passed then: the drive has answered, rq->status is set; otherwise
 * it could not, and the command is to be done by reading. False: by reading, at once. */
bool io_pass_start(struct request *rq);

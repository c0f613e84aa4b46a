/* SPDX-License-Identifier: BSD-3-Clause
 *
 * bdev_watch.c: an I/O that failed makes the control thread look whether the device is still there and as large as it was
 * (dp_bdev_check), without waiting for its next regular look.
 */
#include <errno.h>

#include "bdev.h"
#include "engine_priv.h"

#define PAUSE_NS 200000000u /* a device that fails all the time is looked at so often */

static void (*_Atomic check)(void);
static atomic_bool posted;
static _Atomic uint64_t looked_ns;

void bdev_watch_start(void (*fn)(void))
{
	atomic_store(&check, fn);
}

static void look(void *arg)
{
	void (*fn)(void) = atomic_load(&check);

	atomic_store(&looked_ns, dp_now_ns());
	atomic_store(&posted, false);
	if (fn)
		fn();
}

void bdev_watch_now(void)
{
	if (atomic_load(&check) && !atomic_exchange(&posted, true))
		engine_post(look, NULL);
}

void bdev_watch_error(int rc)
{
	if (rc != -EIO && rc != -ENODEV && rc != -ENXIO && rc != -ENOSPC && rc != -EFBIG)
		return;
	if (dp_now_ns() - atomic_load(&looked_ns) >= PAUSE_NS)
		bdev_watch_now();
}

/* SPDX-License-Identifier: BSD-3-Clause
 *
 * sd_notify.h: tells systemd what a service does (sd_notify(3)); nothing when it was not started by systemd.
 */
#pragma once

void sd_notify_send(const char *state);

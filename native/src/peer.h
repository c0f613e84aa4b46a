/* SPDX-License-Identifier: BSD-3-Clause
 *
 * peer.h: Unix sockets that only this user and root may use.
 */
#pragma once

#include <stdbool.h>

/* A listening, non-blocking socket of mode 0600 at path, in the place of one that nobody listens on. Or -errno. */
int peer_listen(const char *path, int type, char *err);

/* The process at the other end runs as this user or as root. */
bool peer_allowed(int fd);

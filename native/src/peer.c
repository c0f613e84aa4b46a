/* SPDX-License-Identifier: BSD-3-Clause */
#include "peer.h"

#include <errno.h>
#include <stdio.h>
#include <string.h>
#include <sys/socket.h>
#include <sys/stat.h>
#include <sys/un.h>
#include <unistd.h>

#include "engine.h"

#define BACKLOG 64

bool peer_allowed(int fd)
{
	struct ucred peer;
	socklen_t size = sizeof(peer);

	return getsockopt(fd, SOL_SOCKET, SO_PEERCRED, &peer, &size) == 0 && (peer.uid == 0 || peer.uid == geteuid());
}

/* Removes what an ended process has left; a socket that somebody listens on stays. */
static int clear_stale(const struct sockaddr_un *address, int type)
{
	struct stat found;
	int probe, rc;

	if (lstat(address->sun_path, &found) < 0)
		return errno == ENOENT ? 0 : -errno;
	if (!S_ISSOCK(found.st_mode))
		return -EEXIST;
	probe = socket(AF_UNIX, type | SOCK_CLOEXEC, 0);
	if (probe < 0)
		return -errno;
	rc = connect(probe, (const struct sockaddr *)address, sizeof(*address)) == 0 ? -EADDRINUSE : -errno;
	close(probe);
	if (rc != -ECONNREFUSED)
		return rc == -ENOENT ? 0 : rc;
	return unlink(address->sun_path) < 0 && errno != ENOENT ? -errno : 0;
}

int peer_listen(const char *path, int type, char *err)
{
	struct sockaddr_un address = {.sun_family = AF_UNIX};
	int fd, rc;

	if (strlen(path) >= sizeof(address.sun_path)) {
		snprintf(err, DP_ERR_MAX, "%s: a Unix socket's path has at most %zu bytes", path,
			 sizeof(address.sun_path) - 1);
		return -ENAMETOOLONG;
	}
	strcpy(address.sun_path, path);
	rc = clear_stale(&address, type);
	fd = rc == 0 ? socket(AF_UNIX, type | SOCK_CLOEXEC | SOCK_NONBLOCK, 0) : -1;
	if (rc == 0 && fd < 0)
		rc = -errno;
	const mode_t before = umask(0177);

	if (rc == 0 && bind(fd, (const struct sockaddr *)&address, sizeof(address)) < 0)
		rc = -errno;
	umask(before);
	if (rc == 0 && listen(fd, BACKLOG) < 0)
		rc = -errno;
	if (rc == 0)
		return fd;
	if (fd >= 0)
		close(fd);
	snprintf(err, DP_ERR_MAX, "%s: %s", path, strerror(-rc));
	return rc;
}

/* SPDX-License-Identifier: BSD-3-Clause */
#include "vfio_sys.h"

#include <dirent.h>
#include <errno.h>
#include <fcntl.h>
#include <limits.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/ioctl.h>
#include <sys/mman.h>
#include <unistd.h>

#define WEAK __attribute__((weak)) /* tests have their own */

WEAK int vfio_sys_open(const char *path, int flags)
{
	int fd = open(path, flags | O_CLOEXEC);

	return fd < 0 ? -errno : fd;
}

WEAK void vfio_sys_close(int fd)
{
	close(fd);
}

WEAK int vfio_sys_ioctl(int fd, unsigned long request, void *arg)
{
	int rc = ioctl(fd, request, arg);

	return rc < 0 ? -errno : rc;
}

WEAK void *vfio_sys_map(void *at, size_t bytes, int fd, uint64_t offset)
{
	return mmap(at, bytes, PROT_READ | PROT_WRITE, MAP_SHARED | MAP_FIXED, fd, (off_t)offset);
}

WEAK ssize_t vfio_sys_pread(int fd, void *to, size_t bytes, uint64_t offset)
{
	ssize_t n = pread(fd, to, bytes, (off_t)offset);

	return n < 0 ? -errno : n;
}

WEAK ssize_t vfio_sys_pwrite(int fd, const void *from, size_t bytes, uint64_t offset)
{
	ssize_t n = pwrite(fd, from, bytes, (off_t)offset);

	return n < 0 ? -errno : n;
}

WEAK size_t vfio_sys_devices(int *fds, size_t most)
{
	DIR *dir = opendir("/proc/self/fd");
	struct dirent *entry;
	char path[64], what[128];
	size_t n = 0;

	while (dir && n < most && (entry = readdir(dir))) {
		ssize_t length;

		snprintf(path, sizeof(path), "/proc/self/fd/%.20s", entry->d_name);
		length = readlink(path, what, sizeof(what) - 1);
		what[length < 0 ? 0 : length] = 0;
		if (strstr(what, "[vfio-device]") || strstr(what, "/dev/vfio/devices/"))
			fds[n++] = atoi(entry->d_name);
	}
	if (dir)
		closedir(dir);
	return n;
}

WEAK int vfio_sys_text(const char *path, char *text, size_t size)
{
	int fd = open(path, O_RDONLY | O_CLOEXEC);
	ssize_t n = fd < 0 ? -1 : read(fd, text, size - 1);
	int rc = n < 0 ? -errno : 0;

	if (fd >= 0)
		close(fd);
	text[n < 0 ? 0 : n] = 0;
	return rc;
}

WEAK int vfio_sys_link(const char *path, char *name, size_t size)
{
	char target[PATH_MAX];
	ssize_t n = readlink(path, target, sizeof(target) - 1);
	const char *last;

	if (n < 0)
		return -errno;
	target[n] = 0;
	last = strrchr(target, '/');
	return snprintf(name, size, "%s", last ? last + 1 : target) < (int)size ? 0 : -ENAMETOOLONG;
}

WEAK int vfio_sys_entry(const char *folder, const char *prefix, char *name, size_t size)
{
	DIR *dir = opendir(folder);
	struct dirent *entry;
	int rc = dir ? -ENOENT : -errno;

	while (dir && rc < 0 && (entry = readdir(dir)))
		if (strncmp(entry->d_name, prefix, strlen(prefix)) == 0)
			rc = snprintf(name, size, "%s", entry->d_name) < (int)size ? 0 : -ENAMETOOLONG;
	if (dir)
		closedir(dir);
	return rc;
}

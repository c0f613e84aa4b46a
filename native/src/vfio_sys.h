/* SPDX-License-Identifier: BSD-3-Clause
 *
 * vfio_sys.h: what vfio.c asks of the system; tests put a machine of their own in its place. Errors are negated errno values.
 */
#pragma once

#include <stddef.h>
#include <stdint.h>
#include <sys/types.h>

int vfio_sys_open(const char *path, int flags);
void vfio_sys_close(int fd);
int vfio_sys_ioctl(int fd, unsigned long request, void *arg);
void *vfio_sys_map(void *at, size_t bytes, int fd, uint64_t offset); /* shared, at that address; MAP_FAILED with errno */
ssize_t vfio_sys_pread(int fd, void *to, size_t bytes, uint64_t offset);
ssize_t vfio_sys_pwrite(int fd, const void *from, size_t bytes, uint64_t offset);
size_t vfio_sys_devices(int *fds, size_t most); /* descriptors of VFIO devices that this process has, whoever opened them */
int vfio_sys_text(const char *path, char *text, size_t size); /* at most size - 1 bytes of a file */
int vfio_sys_link(const char *path, char *name, size_t size);                        /* last part of what it points to */
int vfio_sys_entry(const char *folder, const char *prefix, char *name, size_t size); /* one that begins so; -ENOENT */

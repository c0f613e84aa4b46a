"""System calls and ioctls that ``os`` lacks; an errno becomes ``OSError``. They block: call them from a worker."""

from __future__ import annotations

import ctypes
import errno
import fcntl
import os
import stat
import struct
from typing import Final

FALLOC_FL_KEEP_SIZE: Final = 0x01  # linux/falloc.h
FALLOC_FL_PUNCH_HOLE: Final = 0x02
FALLOC_FL_ZERO_RANGE: Final = 0x10
BLKSSZGET: Final = 0x1268  # linux/fs.h: logical block size, int
BLKPBSZGET: Final = 0x127B  # physical block size, unsigned int
BLKGETSIZE64: Final = 0x80081272  # size in bytes, u64
BLKROGET: Final = 0x125E  # read-only flag, int

UNSUPPORTED: Final = frozenset({errno.EOPNOTSUPP, errno.ENOSYS, errno.EINVAL})  # "not by this file system or device"

_libc = ctypes.CDLL(None, use_errno=True)
_fallocate = _libc.fallocate64 if hasattr(_libc, "fallocate64") else _libc.fallocate
_fallocate.argtypes = (ctypes.c_int, ctypes.c_int, ctypes.c_int64, ctypes.c_int64)
_fallocate.restype = ctypes.c_int


def fallocate(fd: int, mode: int, offset: int, length: int) -> None:
    """fallocate(2) with ``mode``; ``offset`` and ``length`` in bytes. Interrupted calls are repeated."""
    while _fallocate(fd, mode, offset, length) != 0:
        code = ctypes.get_errno()
        if code != errno.EINTR:
            raise OSError(code, os.strerror(code))


def _ioctl_int(fd: int, request: int, layout: str) -> int:
    raw = fcntl.ioctl(fd, request, bytes(struct.calcsize(layout)))
    return int(struct.unpack(layout, raw)[0])


def size_bytes(fd: int) -> int:
    """Size of a regular file or block device; ``EINVAL`` for anything else, ``ENXIO`` and the like if it is gone."""
    st = os.fstat(fd)
    if stat.S_ISREG(st.st_mode):
        return st.st_size
    if stat.S_ISBLK(st.st_mode):
        return _ioctl_int(fd, BLKGETSIZE64, "=Q")
    raise OSError(errno.EINVAL, "neither a regular file nor a block device")


def block_sizes(fd: int) -> tuple[int, int]:
    """(logical, physical) block size in bytes of a block device; (0, 0) for a regular file."""
    if not stat.S_ISBLK(os.fstat(fd).st_mode):
        return 0, 0
    return _ioctl_int(fd, BLKSSZGET, "=i"), _ioctl_int(fd, BLKPBSZGET, "=I")


def is_read_only(fd: int) -> bool:
    """True if a block device is set read-only (a regular file is as its open mode says)."""
    return stat.S_ISBLK(os.fstat(fd).st_mode) and _ioctl_int(fd, BLKROGET, "=i") != 0

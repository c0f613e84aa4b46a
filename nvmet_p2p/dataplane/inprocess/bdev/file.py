"""A regular file or a block device, through the page cache, with worker threads (kinds ``aio`` and ``uring``).

SPDK's options keep their meaning: ``block_size`` overrides what a device says and must not be smaller, a regular file
needs one, ``fallocate`` (aio) lets Deallocate and Write Zeroes reach the file system. The kind ``uring`` has no such
option there; here it tries and falls back.
"""

from __future__ import annotations

import asyncio
import errno
import os
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from typing import Final, ParamSpec, TypeVar

import msgspec

from nvmet_p2p.dataplane.inprocess import linux
from nvmet_p2p.dataplane.inprocess.bdev.base import ZEROES, check_block_size, facts_of
from nvmet_p2p.errors import OperatorError
from nvmet_p2p.target.config import BdevConfig, BdevFacts
from nvmet_p2p.wire.codec import BytesLike

WORKERS: Final = 8  # threads a back end; its own, so that a device that hangs holds up nobody else

P = ParamSpec("P")
T = TypeVar("T")


def read_full(fd: int, offset: int, length: int) -> bytearray:
    """``length`` bytes at ``offset``. EIO where the file ends before: it has shrunk under us."""
    data = bytearray(length)
    view, done = memoryview(data), 0
    while done < length:
        count = os.preadv(fd, [view[done:]], offset + done)
        if count == 0:
            raise OSError(errno.EIO, f"end of file at {offset + done}, {length - done} bytes short")
        done += count
    return data


def write_full(fd: int, offset: int, data: BytesLike, flags: int = 0) -> None:
    """All of ``data`` at ``offset``."""
    view, done = memoryview(data).cast("B"), 0
    while done < len(view):
        count = os.pwritev(fd, [view[done:]], offset + done, flags)
        if count == 0:
            raise OSError(errno.EIO, f"nothing written at {offset + done}")
        done += count


def zero_full(fd: int, offset: int, length: int) -> None:
    """Writes ``length`` zero bytes at ``offset``."""
    while length > 0:
        count = min(length, len(ZEROES))
        write_full(fd, offset, ZEROES[:count])
        offset += count
        length -= count


def _open_fd(config: BdevConfig, readonly: bool) -> tuple[int, bool]:
    """(descriptor, read-only); O_NONBLOCK so that a FIFO or a terminal cannot hold us up."""
    mode = os.O_RDONLY if readonly else os.O_RDWR
    fd = os.open(config.filename, mode | os.O_CLOEXEC | os.O_NONBLOCK)
    try:
        linux.size_bytes(fd)  # refuses what is neither file nor block device
        return fd, readonly or linux.is_read_only(fd)
    except OSError:
        os.close(fd)
        raise


def _probe(fd: int, config: BdevConfig, readonly: bool) -> BdevFacts:
    """Size and block size by SPDK's rules (module/bdev/aio: create_aio_bdev)."""
    size = linux.size_bytes(fd)
    logical, physical = linux.block_sizes(fd)
    if config.block_size == 0 and logical == 0:
        raise OperatorError(-errno.EINVAL, f"bdev {config.name}: {config.filename} is a file and needs a block size")
    if 0 < config.block_size < logical:
        raise OperatorError(
            -errno.EINVAL, f"bdev {config.name}: block size {config.block_size} is smaller than the device's {logical}"
        )
    block_size = check_block_size(config, config.block_size or logical)
    if size == 0 or size % block_size:
        raise OperatorError(
            -errno.EINVAL, f"bdev {config.name}: size {size} of {config.filename} is not whole blocks of {block_size}"
        )
    facts = facts_of(
        config,
        block_size=block_size,
        num_blocks=size // block_size,
        readonly=readonly,
        write_cache=True,
        unmap=not readonly and (config.fallocate or config.kind == "uring"),
    )
    return msgspec.structs.replace(facts, physical_block_size=config.physical_block_size or physical)


async def _work(executor: ThreadPoolExecutor, function: Callable[P, T], *args: P.args, **kwargs: P.kwargs) -> T:
    """``function`` in a worker thread. EAGAIN where no thread can be had; then it is not called, now or later."""
    refused = False

    def call() -> T:
        if refused:  # the executor has kept it for a thread that comes one day
            raise OSError(errno.EAGAIN, "refused before")
        return function(*args, **kwargs)

    try:
        future = asyncio.get_running_loop().run_in_executor(executor, call)
    except RuntimeError as error:
        refused = True
        raise OSError(errno.EAGAIN, str(error)) from error
    return await future


class FileBdev:
    """An open file; all blocking calls are made by its own threads."""

    def __init__(self, fd: int, facts: BdevFacts, executor: ThreadPoolExecutor) -> None:
        self.facts = facts
        self._fd = fd
        self._executor = executor
        self._can_fallocate = facts.unmap
        self._can_dsync = True

    @classmethod
    async def open(cls, config: BdevConfig) -> FileBdev:
        executor = ThreadPoolExecutor(WORKERS, thread_name_prefix=f"bdev-{config.name}")
        try:
            fd, readonly = await _work(executor, _open_fd, config, config.readonly)
            try:
                facts = await _work(executor, _probe, fd, config, readonly)
            except BaseException:
                os.close(fd)
                raise
        except BaseException:
            executor.shutdown(wait=False)
            raise
        return cls(fd, facts, executor)

    async def _call(self, function: Callable[P, T], *args: P.args, **kwargs: P.kwargs) -> T:
        return await _work(self._executor, function, *args, **kwargs)

    async def read(self, offset: int, length: int) -> BytesLike:
        return await self._call(read_full, self._fd, offset, length)

    async def write(self, offset: int, data: BytesLike, *, fua: bool) -> None:
        await self._call(self._write, offset, data, fua)

    def _write(self, offset: int, data: BytesLike, fua: bool) -> None:
        if fua and self._can_dsync:
            try:
                write_full(self._fd, offset, data, os.RWF_DSYNC)
                return
            except OSError as error:
                if error.errno not in linux.UNSUPPORTED:
                    raise
                self._can_dsync = False
        write_full(self._fd, offset, data)
        if fua:
            os.fdatasync(self._fd)

    async def flush(self) -> None:
        await self._call(os.fdatasync, self._fd)

    def _fallocate(self, mode: int, offset: int, length: int) -> bool:
        """True if the file system or device did it; False (also from now on) if it cannot."""
        if not self._can_fallocate:
            return False
        try:
            linux.fallocate(self._fd, mode | linux.FALLOC_FL_KEEP_SIZE, offset, length)
        except OSError as error:
            if error.errno not in linux.UNSUPPORTED:
                raise
            self._can_fallocate = False
            return False
        return True

    async def unmap(self, offset: int, length: int) -> None:
        """Deallocate is advisory: where it cannot be done the data stays (NVM 3.3.3)."""
        await self._call(self._fallocate, linux.FALLOC_FL_PUNCH_HOLE, offset, length)

    async def write_zeroes(self, offset: int, length: int, *, fua: bool, unmap: bool) -> None:
        await self._call(self._write_zeroes, offset, length, fua, unmap)

    def _write_zeroes(self, offset: int, length: int, fua: bool, unmap: bool) -> None:
        mode = linux.FALLOC_FL_PUNCH_HOLE if unmap else linux.FALLOC_FL_ZERO_RANGE
        if not self._fallocate(mode, offset, length):
            zero_full(self._fd, offset, length)
        if fua:
            os.fdatasync(self._fd)

    async def rescan(self, config: BdevConfig) -> BdevFacts:
        """The size of the open file, whole blocks; ENODEV when nothing is left of it."""
        num_blocks = await self._call(linux.size_bytes, self._fd) // self.facts.block_size
        if num_blocks == 0:
            raise OSError(errno.ENODEV, f"{config.filename} has size 0")
        self.facts = msgspec.structs.replace(self.facts, num_blocks=num_blocks)
        return self.facts

    async def close(self) -> None:
        try:
            await self._call(os.close, self._fd)
        finally:
            self._executor.shutdown(wait=False)

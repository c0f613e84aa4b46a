"""An open back end with what the engine keeps beside it: counters, range locks, and the count of users to drain."""

from __future__ import annotations

import asyncio
import errno
import time
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Final

from nvmet_p2p.dataplane.inprocess.bdev.base import Bdev
from nvmet_p2p.dataplane.inprocess.rangelock import RangeLock
from nvmet_p2p.dataplane.port import IoStat
from nvmet_p2p.target.config import BdevConfig, BdevFacts
from nvmet_p2p.wire.codec import BytesLike


class InFlight:
    """Counts users of something; ``drained`` waits until there are none."""

    def __init__(self) -> None:
        self.count = 0
        self._waiters: list[asyncio.Future[None]] = []

    def enter(self) -> None:
        self.count += 1

    def leave(self) -> None:
        self.count -= 1
        if self.count == 0 and self._waiters:
            waiters, self._waiters = self._waiters, []
            for waiter in waiters:
                if not waiter.done():
                    waiter.set_result(None)

    async def drained(self) -> None:
        """Returns at a moment at which nobody is inside."""
        while self.count:
            waiter = asyncio.get_running_loop().create_future()
            self._waiters.append(waiter)
            await waiter


def _error_name(error: OSError) -> str:
    """SPDK's names of ``bdev_io`` errors (lib/bdev: bdev_io_status_get_string)."""
    return "nomem" if error.errno == errno.ENOMEM else "aio_error"


class Backend:
    """A back end in use. The I/O methods are those of ``Bdev``, counted and timed."""

    def __init__(self, config: BdevConfig, bdev: Bdev) -> None:
        self.config = config
        self.users: Final = InFlight()
        self.locks: Final = RangeLock()
        self.closing = False
        self.stat = IoStat()
        self._bdev = bdev

    @property
    def facts(self) -> BdevFacts:
        return self._bdev.facts

    @property
    def size_bytes(self) -> int:
        return self._bdev.facts.num_blocks * self._bdev.facts.block_size

    @contextmanager
    def _errors(self) -> Iterator[None]:
        try:
            yield
        except OSError as error:
            self.count_error(_error_name(error))
            raise

    def count_error(self, name: str) -> None:
        """Adds one to the ``io_error`` counter of that name."""
        self.stat.io_error[name] = self.stat.io_error.get(name, 0) + 1

    async def read(self, offset: int, length: int) -> BytesLike:
        """A counted read."""
        started = time.perf_counter_ns()
        with self._errors():
            data = await self._bdev.read(offset, length)
        stat = self.stat
        stat.num_read_ops += 1
        stat.bytes_read += length
        stat.read_latency_ns += time.perf_counter_ns() - started
        return data

    async def write(self, offset: int, data: BytesLike, *, fua: bool) -> None:
        """A counted write."""
        started = time.perf_counter_ns()
        with self._errors():
            await self._bdev.write(offset, data, fua=fua)
        self._wrote(len(data), started)

    async def write_zeroes(self, offset: int, length: int, *, fua: bool, unmap: bool) -> None:
        """Counted as a write, as SPDK does."""
        started = time.perf_counter_ns()
        with self._errors():
            await self._bdev.write_zeroes(offset, length, fua=fua, unmap=unmap)
        self._wrote(length, started)

    def _wrote(self, length: int, started: int) -> None:
        stat = self.stat
        stat.num_write_ops += 1
        stat.bytes_written += length
        stat.write_latency_ns += time.perf_counter_ns() - started

    async def unmap(self, offset: int, length: int) -> None:
        """A counted Deallocate of one range."""
        started = time.perf_counter_ns()
        with self._errors():
            await self._bdev.unmap(offset, length)
        stat = self.stat
        stat.num_unmap_ops += 1
        stat.bytes_unmapped += length
        stat.unmap_latency_ns += time.perf_counter_ns() - started

    async def flush(self) -> None:
        """Not counted: SPDK has no counter for it."""
        with self._errors():
            await self._bdev.flush()

    async def copy_read(self, offset: int, length: int) -> BytesLike:
        """The read portion of a Copy; the copy is counted as one at its end."""
        with self._errors():
            return await self._bdev.read(offset, length)

    async def copy_write(self, offset: int, data: BytesLike) -> None:
        """The write portion of a Copy."""
        with self._errors():
            await self._bdev.write(offset, data, fua=False)

    def copied(self, length: int, started: int) -> None:
        """Counts a Copy that wrote ``length`` bytes here; ``started`` from ``time.perf_counter_ns``."""
        stat = self.stat
        stat.num_copy_ops += 1
        stat.bytes_copied += length
        stat.copy_latency_ns += time.perf_counter_ns() - started

    async def rescan(self, config: BdevConfig) -> BdevFacts:
        facts = await self._bdev.rescan(config)
        self.config = config
        return facts

    async def close(self) -> None:
        """Refuses new users, waits for those that are in, closes."""
        self.closing = True
        await self.users.drained()
        await self._bdev.close()

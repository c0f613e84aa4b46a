"""What a back end is to the engine: an array of blocks with a few asynchronous operations.

Offsets and lengths are in bytes and always whole blocks inside the device: the engine has checked the LBA range. An
operation that fails raises ``OSError`` with the errno; ``dataplane.inprocess.status`` alone turns that into an NVMe
status. A back end is used by one event loop; several operations may run at a time and in any order.
"""

from __future__ import annotations

import errno
from collections.abc import Awaitable, Callable
from typing import Final, Protocol

from nvmet_p2p.errors import OperatorError
from nvmet_p2p.target.config import BdevConfig, BdevFacts
from nvmet_p2p.wire.codec import BytesLike

BLOCK_SIZE_MIN: Final = 512  # LBADS is at least 9 (NVM command set, LBA Format)
ZEROES: Final = memoryview(bytes(1 << 20))  # shared, never written: what a write of zeroes is fed from


class Bdev(Protocol):
    """A back end. ``facts`` is what it is now; a changed size replaces the whole value."""

    facts: BdevFacts

    async def read(self, offset: int, length: int) -> BytesLike:
        """Required. Exactly ``length`` bytes, never memory that was not filled. The caller does not write to it."""
        ...

    async def write(self, offset: int, data: BytesLike, *, fua: bool) -> None:
        """Required. Writes all of ``data``; with ``fua`` it is on stable storage when this returns.

        ``data`` stays unchanged until the call returns. After an error any part of it may have been written.
        """
        ...

    async def flush(self) -> None:
        """Required. What was acknowledged before the call is on stable storage when it returns."""
        ...

    async def unmap(self, offset: int, length: int) -> None:
        """Required, may do nothing. Gives space back; each block then reads as zeroes or as before, always the same."""
        ...

    async def write_zeroes(self, offset: int, length: int, *, fua: bool, unmap: bool) -> None:
        """Required. The range reads as zeroes afterwards; with ``unmap`` its space may be given back."""
        ...

    async def rescan(self, config: BdevConfig) -> BdevFacts:
        """Required. Reads the size again (file) or takes it from ``config`` (memory), into ``facts``."""
        ...

    async def close(self) -> None:
        """Required. Called once, when no operation is in flight."""
        ...


Opener = Callable[[BdevConfig], Awaitable[Bdev]]


def check_block_size(config: BdevConfig, block_size: int) -> int:
    """Returns ``block_size`` if an LBA can have it: a power of two of at least 512 bytes (LBADS)."""
    if block_size < BLOCK_SIZE_MIN or block_size & (block_size - 1):
        raise OperatorError(
            -errno.EINVAL,
            f"bdev {config.name}: block size {block_size} is no power of two of at least {BLOCK_SIZE_MIN}",
        )
    return block_size


def check_num_blocks(config: BdevConfig) -> int:
    """Returns the number of blocks that ``config`` gives to a memory back end."""
    if config.num_blocks < 1:
        raise OperatorError(-errno.EINVAL, f"bdev {config.name}: the number of blocks must be greater than 0")
    return config.num_blocks


def facts_of(
    config: BdevConfig, *, block_size: int, num_blocks: int, readonly: bool, write_cache: bool, unmap: bool
) -> BdevFacts:
    """``BdevFacts`` with what every kind fills in the same way."""
    return BdevFacts(
        name=config.name,
        block_size=block_size,
        num_blocks=num_blocks,
        readonly=readonly,
        write_cache=write_cache,
        unmap=unmap,
        optimal_io_boundary=config.optimal_io_boundary,
        physical_block_size=config.physical_block_size,
    )

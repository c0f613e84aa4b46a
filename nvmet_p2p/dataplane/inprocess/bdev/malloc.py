"""A RAM disk: private anonymous memory, which the kernel fills with zeroes and backs when it is first written."""

from __future__ import annotations

import errno
import mmap
from typing import Final

import msgspec

from nvmet_p2p.dataplane.inprocess.bdev.base import ZEROES, check_block_size, check_num_blocks, facts_of
from nvmet_p2p.target.config import BdevConfig, BdevFacts
from nvmet_p2p.wire.codec import BytesLike

MAP_NORESERVE: Final = 0x4000  # linux/mman.h; mmap has the name from Python 3.13 on


class MallocBdev:
    """Blocks in memory. Operations run at once on the event loop: each is one memory copy."""

    def __init__(self, facts: BdevFacts, memory: mmap.mmap) -> None:
        self.facts = facts
        self._memory = memory

    @classmethod
    async def open(cls, config: BdevConfig) -> MallocBdev:
        """``OSError(ENOMEM)`` where the address space does not hold it."""
        block_size = check_block_size(config, config.block_size)
        num_blocks = check_num_blocks(config)
        flags = mmap.MAP_PRIVATE | mmap.MAP_ANONYMOUS | MAP_NORESERVE
        try:
            memory = mmap.mmap(-1, block_size * num_blocks, flags=flags)
        except (OverflowError, ValueError) as error:  # more than an address can name
            raise OSError(errno.ENOMEM, str(error)) from error
        facts = facts_of(
            config,
            block_size=block_size,
            num_blocks=num_blocks,
            readonly=config.readonly,
            write_cache=False,
            unmap=True,
        )
        return cls(facts, memory)

    def _check(self, offset: int, length: int) -> None:
        if offset + length > len(self._memory):  # made smaller after the command was checked
            raise OSError(errno.EIO, f"{offset} + {length} is past the end of memory")

    async def read(self, offset: int, length: int) -> BytesLike:
        self._check(offset, length)
        return self._memory[offset : offset + length]

    async def write(self, offset: int, data: BytesLike, *, fua: bool) -> None:
        view = memoryview(data)
        self._check(offset, len(view))
        self._memory[offset : offset + len(view)] = view

    async def flush(self) -> None:
        """Memory has no volatile cache above it."""

    async def unmap(self, offset: int, length: int) -> None:
        await self.write_zeroes(offset, length, fua=False, unmap=True)

    async def write_zeroes(self, offset: int, length: int, *, fua: bool, unmap: bool) -> None:
        self._check(offset, length)
        page = mmap.PAGESIZE
        end = offset + length
        first, last = -(-offset // page) * page, end // page * page
        if first >= last:
            self._zero(offset, end)
            return
        self._zero(offset, first)
        self._memory.madvise(mmap.MADV_DONTNEED, first, last - first)  # private anonymous pages come back as zeroes
        self._zero(last, end)

    def _zero(self, start: int, end: int) -> None:
        self._memory[start:end] = ZEROES[: end - start]

    async def rescan(self, config: BdevConfig) -> BdevFacts:
        """New blocks read as zeroes, also those that existed once before."""
        num_blocks = check_num_blocks(config)
        self._memory.resize(num_blocks * self.facts.block_size)
        self.facts = msgspec.structs.replace(self.facts, num_blocks=num_blocks)
        return self.facts

    async def close(self) -> None:
        self._memory.close()

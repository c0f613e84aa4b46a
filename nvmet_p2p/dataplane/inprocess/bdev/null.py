"""A back end that keeps nothing: writes succeed, reads give zeroes (SPDK leaves the buffer as it was; we never do)."""

from __future__ import annotations

import msgspec

from nvmet_p2p.dataplane.inprocess.bdev.base import ZEROES, check_block_size, check_num_blocks, facts_of
from nvmet_p2p.target.config import BdevConfig, BdevFacts
from nvmet_p2p.wire.codec import BytesLike


class NullBdev:
    """Costs no memory whatever its size."""

    def __init__(self, facts: BdevFacts) -> None:
        self.facts = facts

    @classmethod
    async def open(cls, config: BdevConfig) -> NullBdev:
        return cls(
            facts_of(
                config,
                block_size=check_block_size(config, config.block_size),
                num_blocks=check_num_blocks(config),
                readonly=config.readonly,
                write_cache=False,
                unmap=True,
            )
        )

    async def read(self, offset: int, length: int) -> BytesLike:
        return ZEROES[:length] if length <= len(ZEROES) else bytes(length)

    async def write(self, offset: int, data: BytesLike, *, fua: bool) -> None:
        """Drops ``data``."""

    async def flush(self) -> None:
        """Nothing is kept, so nothing is unsafe."""

    async def unmap(self, offset: int, length: int) -> None:
        """Every block reads as zeroes already."""

    async def write_zeroes(self, offset: int, length: int, *, fua: bool, unmap: bool) -> None:
        """Every block reads as zeroes already."""

    async def rescan(self, config: BdevConfig) -> BdevFacts:
        self.facts = msgspec.structs.replace(self.facts, num_blocks=check_num_blocks(config))
        return self.facts

    async def close(self) -> None:
        """Holds nothing."""
